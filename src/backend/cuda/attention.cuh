/* attention.cuh - the arithmetic that every attention kernel here does, in the same order.
 *
 * A tile is ATTN_TILE keys, a chunk CUDA_ATTN_CHUNK, both at absolute multiples. For each query row
 * a chunk gives (m, l, o), started from nothing: m the largest score, in powers of two; l the sum
 * of the weights 2^(s - m), o that of the weights times v. A tile takes the row's maximum over its
 * keys first, brings what came before to the new maximum, and then adds its own part (online
 * softmax). A row's chunks are folded in order.
 *
 * How a tile adds up: o takes weights rounded to bf16, sixteen keys an mma, in order. l is kept in
 * four parts, one for each lane of a quad (lane c has keys 2c, 2c + 1 of every eight): of each
 * sixteen keys the lane's four weights in pairs, then the sixteens in order; the parts meet at the
 * chunk's end. Keys that a row does not see weigh nothing and leave every bit as it was, so a tile
 * that a row sees nothing of may be gone through or left out.
 *
 * Roundings are written out: contracted in one kernel and not in another, bits would differ.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_ATTENTION_CUH
#define SL_BACKEND_CUDA_ATTENTION_CUH

#include "backend/cuda/common.cuh"

static const int CHUNK = CUDA_ATTN_CHUNK, ATTN_TILE = 128, TILES_PER_CHUNK = CHUNK / ATTN_TILE;
static const int NOWHERE = -1;

/* Where key `key` of a head lies, in heads. NOWHERE: a window has passed it and its block is gone;
 * zeros stand for it, no row sees it. */
__device__ __forceinline__ int key_row(const int32_t *block, int key, int kv_head,
                                       const attn_shape &shape)
{
    int b = block[key / shape.block_size];
    if (b < 0)
        return NOWHERE;
    return (b * shape.n_kv_heads + kv_head) * shape.block_size + key % shape.block_size;
}

/* 2^x; what is smaller than 2^-126 is 0. */
__device__ __forceinline__ float pow2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float row_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

__device__ __forceinline__ float row_sum(float v)
{
    v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

/* Scores that need more than a factor. */
__device__ __forceinline__ bool is_bent(const attn_shape &shape)
{
    return shape.softcap != 0 || shape.alibi;
}

/* What makes a score of q k^T: cap * tanh(x / cap) is cap - 2 cap / (e^(2x / cap) + 1); ALiBi. */
struct bender {
    float scale, cap, to_exponent;
    bool capped;

    __device__ __forceinline__ bender(const attn_shape &shape)
    {
        scale = shape.scale;
        cap = shape.softcap;
        capped = cap != 0;
        to_exponent = capped ? __fdiv_rn(__fmul_rn(scale, 2.88539008f), cap) : 0;
    }

    __device__ __forceinline__ float bend(float s, float slope, int distance) const
    {
        float part, below = __fadd_rn(pow2(__fmul_rn(s, to_exponent)), 1.f);
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(part) : "f"(below));
        float bent = __fmaf_rn(part, -2 * cap, cap);
        return __fmaf_rn(slope, (float)distance, capped ? bent : __fmul_rn(s, scale));
    }
};

/* From q k^T, or a bent score, to powers of two. */
__device__ __forceinline__ float score_factor(const attn_shape &shape)
{
    return __fmul_rn(is_bent(shape) ? 1.f : shape.scale, 1.44269504f);
}

/* Keys first..last are what a query at `pos` sees of kv_len. */
struct key_range {
    int first, last;
};

__device__ __forceinline__ key_range seen_keys(const attn_shape &shape, int pos, int kv_len)
{
    key_range r = {0, kv_len - 1};
    if (shape.causal && pos < r.last)
        r.last = pos;
    if (shape.window && pos - shape.window + 1 > 0)
        r.first = pos - shape.window + 1;
    return r;
}

/* -inf, which is no key at all, counts as 0 where something is subtracted from it. */
__device__ __forceinline__ float finite(float m)
{
    return m == -INFINITY ? 0.f : m;
}

/* The maximum so far takes in a tile's; gives the factor for what came before. */
__device__ __forceinline__ float raise_max(float &m, float top, float factor)
{
    float before = m;
    m = fmaxf(m, __fmul_rn(top, factor));
    return pow2(__fsub_rn(before, finite(m)));
}

__device__ __forceinline__ float weight_of(float s, float factor, float m)
{
    return pow2(__fmaf_rn(s, factor, -finite(m)));
}

/* A lane's part of sixteen keys. */
__device__ __forceinline__ float sum4(float a, float b, float c, float d)
{
    return __fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d));
}

/* Folding a chunk's triple into (m, l, o), which begins as (-inf, 0, 0): the factors of both. */
struct fold_factors {
    float before, now;
};

__device__ __forceinline__ fold_factors fold_max(float &m, float m_new)
{
    float top = fmaxf(m, m_new);
    fold_factors f = {pow2(__fsub_rn(m, finite(top))), pow2(__fsub_rn(m_new, finite(top)))};
    m = top;
    return f;
}

__device__ __forceinline__ float fold(float a, float a_new, const fold_factors &f)
{
    return __fmaf_rn(a_new, f.now, __fmul_rn(a, f.before));
}

/* The result; zeros have no sign, so it does not matter which way they came. */
__device__ __forceinline__ float result(float o, float part)
{
    return __fmaf_rn(o, part, 0.f);
}

/* Of rows g and g + 8 (g = lane / 4) of sixteen: what a lane keeps beside o. */
struct row_pair {
    float m[2], l[2];

    __device__ __forceinline__ void clear()
    {
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0;
    }
};

/* A tile's scores, as an mma leaves them: s[i] has keys 8i + 2c, 8i + 2c + 1 of rows g and g + 8. */
typedef float tile_scores[ATTN_TILE / 8][4];

/* Bends scores and takes out those that a row does not see. `first_key`: of the tile. */
__device__ __forceinline__ void mask_tile(tile_scores &s, const attn_shape &shape,
                                          const int (&pos)[2], const int (&head)[2], int first_key,
                                          int kv_len, bool bent, bool masked)
{
    const int key0 = first_key + threadIdx.x % 4 * 2;
    if (bent) {
        const bender b(shape);
        const float slope[2] = {shape.alibi ? shape.alibi[head[0]] : 0,
                                shape.alibi ? shape.alibi[head[1]] : 0};
#pragma unroll
        for (int i = 0; i < ATTN_TILE / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[i][e] = b.bend(s[i][e], slope[e / 2], key0 + i * 8 + e % 2 - pos[e / 2]);
    }
    if (!masked)
        return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        key_range r = seen_keys(shape, pos[h], kv_len);
        int first = r.first - key0, last = r.last - key0;
#pragma unroll
        for (int i = 0; i < ATTN_TILE / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (i * 8 + e < first || i * 8 + e > last)
                    s[i][2 * h + e] = -INFINITY;
    }
}

/* Scores become weights; t takes them in. f: the factors for o. */
__device__ __forceinline__ void weigh_tile(tile_scores &s, row_pair &t, float (&f)[2], float factor)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = -INFINITY, sum = 0;
#pragma unroll
        for (int i = 0; i < ATTN_TILE / 8; i++)
            top = fmaxf(top, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
        f[h] = raise_max(t.m[h], row_max(top), factor);
#pragma unroll
        for (int j = 0; j < ATTN_TILE / 16; j++) {
            float *lo = s[2 * j] + 2 * h, *hi = s[2 * j + 1] + 2 * h;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                lo[e] = weight_of(lo[e], factor, t.m[h]);
                hi[e] = weight_of(hi[e], factor, t.m[h]);
            }
            float part = sum4(lo[0], lo[1], hi[0], hi[1]);
            sum = j ? __fadd_rn(sum, part) : part;
        }
        t.l[h] = __fmaf_rn(t.l[h], f[h], sum);
    }
}

/* The weights of sixteen keys as an mma's first operand. */
__device__ __forceinline__ void pack_weights(unsigned (&p)[4], const tile_scores &s, int j)
{
    const float(&lo)[4] = s[2 * j], (&hi)[4] = s[2 * j + 1];
    p[0] = pack_bf16(lo[0], lo[1]);
    p[1] = pack_bf16(lo[2], lo[3]);
    p[2] = pack_bf16(hi[0], hi[1]);
    p[3] = pack_bf16(hi[2], hi[3]);
}

#endif
