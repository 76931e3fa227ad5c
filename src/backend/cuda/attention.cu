/* attention.cu - attention over the paged cache, one way of adding up for decode and prefill.
 *
 * A chunk is CUDA_ATTN_CHUNK keys at an absolute multiple of it, gone through in tiles of TILE
 * keys. For each query row a chunk gives (m, l, o): the largest score, the sum of e^(s - m), and
 * the sum of e^(s - m) v, started from zero; a tile first rescales what came before it (online
 * softmax). Chunks are then combined in order: M = max(m, m'), l = l e^(m - M) + l' e^(m' - M), o
 * likewise. split_kernel (decode) writes each chunk's triple and combine_kernel adds them up;
 * tile_kernel (prefill) keeps the running triple in registers. Both do the same operations on a
 * row in the same order, and a row or column of an mma does not depend on those beside it, so a
 * position's bits are the same either way.
 *
 * Query rows of one KV head are (token, head in its group) pairs, so a group shares each K and V.
 * A warp owns 16 of them. Tiles of K and of V, in turn, stream through a ring of STAGES in shared
 * memory, rows padded by 16 bytes, which keeps ldmatrix free of bank conflicts. The loop over tiles
 * is not unrolled: unrolled over a chunk it outgrows the instruction cache and runs 8 times slower.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/common.cuh"

static const int CHUNK = CUDA_ATTN_CHUNK;
static const int TILE = 64; /* keys in a stage */

template <int HD> struct config {
    static const int STAGES = HD > 128 ? 3 : 4, DECODE_STAGES = 3;
    static const int STRIDE = HD + 8;              /* bf16 from one row to the next */
    static const int PER_CHUNK = 2 * CHUNK / TILE; /* stages a chunk: K and V of each tile */
    static const int SHARED = STAGES * TILE * STRIDE * (int)sizeof(bf16);
};

static const size_t NOWHERE = ~(size_t)0;

/* Where key `key` of a head lies. NOWHERE: a window has passed it and its block is gone; zeros
 * stand for it, no row sees it. */
__device__ __forceinline__ size_t key_offset(const int32_t *block, int key, int kv_head,
                                             const attn_shape &shape)
{
    int b = block[key / shape.block_size];
    if (b < 0)
        return NOWHERE;
    size_t off = key % shape.block_size;
    return (((size_t)b * shape.n_kv_heads + kv_head) * shape.block_size + off) * shape.head_dim;
}

/* Streams K and V of chunks first_chunk, first_chunk + 1, ... of one sequence and KV head.
 *
 * Sixteen keys of a head lie together in memory (block_size % 16 == 0). Lane i of each warp holds
 * where the i-th sixteen of the current chunk begin, looked up a whole chunk ahead. */
template <int HD, int WARPS> struct loader {
    typedef config<HD> C;
    const bf16 *k, *v;
    const int32_t *block;
    int kv_head, kv_len, first_chunk, n_stages, next;
    size_t at, at_next;
    attn_shape shape;
    bf16 *ring;

    __device__ size_t look_up(int chunk) const
    {
        int key = chunk * CHUNK + threadIdx.x % (CHUNK / 16) * 16;
        return key < kv_len ? key_offset(block, key, kv_head, shape) : NOWHERE;
    }

    __device__ void copy16(bf16 *to, const bf16 *from, int n_keys) const
    {
        if (HD == shape.head_dim) {
            const int pieces = HD / 8;
#pragma unroll
            for (int i = threadIdx.x; i < 16 * pieces; i += WARPS * 32)
                cp_async16(to + i / pieces * C::STRIDE + i % pieces * 8, from + i * 8,
                           i / pieces < n_keys);
            return;
        }
        const int pieces = shape.head_dim / 8; /* the rest of each row stays zero */
        for (int i = threadIdx.x; i < 16 * pieces; i += WARPS * 32)
            cp_async16(to + i / pieces * C::STRIDE + i % pieces * 8, from + i * 8,
                       i / pieces < n_keys);
    }

    /* Stage 2t is K of tile t, stage 2t + 1 its V. */
    __device__ void issue()
    {
        if (next < n_stages) {
            int chunk = first_chunk + next / C::PER_CHUNK, in = next % C::PER_CHUNK;
            if (in == 0) {
                at = at_next;
                at_next = look_up(chunk + 1);
            }
            bf16 *to = ring + next % C::STAGES * TILE * C::STRIDE;
            for (int j = 0; j < TILE / 16; j++) {
                int sixteen = in / 2 * (TILE / 16) + j;
                size_t from = __shfl_sync(0xffffffffu, (unsigned long long)at, sixteen);
                bool there = from != NOWHERE;
                copy16(to + j * 16 * C::STRIDE, (in % 2 ? v : k) + (there ? from : 0),
                       there ? kv_len - chunk * CHUNK - sixteen * 16 : 0);
            }
        }
        next++;
        cp_async_commit(); /* an empty group too, so that counting stays right */
    }

    __device__ void start()
    {
        if (HD != shape.head_dim) {
            for (int i = threadIdx.x; i < C::STAGES * TILE * C::STRIDE; i += WARPS * 32)
                ring[i] = to_bf(0.f);
            __syncthreads();
        }
        next = 0;
        at_next = look_up(first_chunk);
        for (int i = 0; i < C::STAGES - 1; i++)
            issue();
    }

    /* Stage i, readable by all; meanwhile the slot before it is refilled. */
    __device__ const bf16 *take(int i)
    {
        cp_async_wait<C::STAGES - 2>();
        __syncthreads();
        issue();
        return ring + i % C::STAGES * TILE * C::STRIDE;
    }
};

/* What a thread holds of 16 query rows: it owns parts of rows g and g + 8 (g = lane / 4). */
template <int HD> struct triple {
    float m[2], l[2], o[HD / 8][4];
};

template <int HD> struct query_rows {
    unsigned q[HD / 16][4];
    int pos[2]; /* position of rows g and g + 8; -1: no such row */
    int head[2];
};

__device__ __forceinline__ float row_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

__device__ __forceinline__ float row_sum(float v)
{
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

__device__ __forceinline__ float score(float s, const attn_shape &shape, int pos, int head, int key)
{
    /* Roundings are written out: contracted in one kernel and not in the other, bits would differ.
     */
    s = __fmul_rn(s, shape.scale);
    if (shape.softcap != 0)
        s = __fmul_rn(shape.softcap, tanhf(__fdiv_rn(s, shape.softcap)));
    if (shape.alibi)
        s = __fadd_rn(s, __fmul_rn(shape.alibi[head], (float)(key - pos)));
    bool seen =
        pos >= 0 && (!shape.causal || key <= pos) && (!shape.window || key > pos - shape.window);
    return seen ? __fmul_rn(s, 1.44269504f) : -INFINITY; /* base 2 from here on */
}

/* s[TILE / 8][4] = q K^T of one tile. */
template <int HD>
__device__ __forceinline__ void scores(float (&s)[TILE / 8][4], const query_rows<HD> &rows,
                                       const bf16 *tile)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[2 * j][e] = s[2 * j + 1][e] = 0;
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            unsigned b[4];
            int row = j * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix4(b, tile + row * config<HD>::STRIDE + d * 16 + lane / 8 % 2 * 8);
            mma16816(s[2 * j], rows.q[d], b[0], b[1]);
            mma16816(s[2 * j + 1], rows.q[d], b[2], b[3]);
        }
    }
}

/* Scores become weights e^(s - m); the triple is brought to the new m, and l takes them in. */
template <int HD>
__device__ __forceinline__ void weigh(triple<HD> &t, float (&s)[TILE / 8][4],
                                      const query_rows<HD> &rows, const attn_shape &shape,
                                      int first_key, int kv_len)
{
    const int lane = threadIdx.x % 32;
    float top[2] = {-INFINITY, -INFINITY}, f[2];
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int key = first_key + i * 8 + lane % 4 * 2 + e % 2;
            s[i][e] = key < kv_len ? score(s[i][e], shape, rows.pos[e / 2], rows.head[e / 2], key)
                                   : -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], s[i][e]);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = fmaxf(t.m[h], row_max(top[h]));
        f[h] = t.m[h] == -INFINITY ? 0.f : exp2f(__fsub_rn(t.m[h], m));
        t.m[h] = m;
        t.l[h] = __fmul_rn(t.l[h], f[h]);
    }
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        float sum[2] = {0, 0}; /* sixteen keys at a time, in order */
#pragma unroll
        for (int i = 2 * j; i < 2 * j + 2; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float m = t.m[e / 2];
                s[i][e] = m == -INFINITY ? 0.f : exp2f(__fsub_rn(s[i][e], m));
                sum[e / 2] = __fadd_rn(sum[e / 2], s[i][e]);
            }
#pragma unroll
        for (int h = 0; h < 2; h++)
            t.l[h] = __fadd_rn(t.l[h], row_sum(sum[h]));
    }
#pragma unroll
    for (int d = 0; d < HD / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            t.o[d][e] = __fmul_rn(t.o[d][e], f[e / 2]);
}

/* o += weights V of one tile. */
template <int HD>
__device__ __forceinline__ void gather(triple<HD> &t, const float (&s)[TILE / 8][4],
                                       const bf16 *tile)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        const float(&lo)[4] = s[2 * j], (&hi)[4] = s[2 * j + 1];
        unsigned p[4] = {pack_bf16(lo[0], lo[1]), pack_bf16(lo[2], lo[3]), pack_bf16(hi[0], hi[1]),
                         pack_bf16(hi[2], hi[3])};
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            unsigned b[4];
            int row = j * 16 + lane % 16;
            ldmatrix4_trans(b, tile + row * config<HD>::STRIDE + d * 16 + lane / 16 * 8);
            mma16816(t.o[2 * d], p, b[0], b[1]);
            mma16816(t.o[2 * d + 1], p, b[2], b[3]);
        }
    }
}

/* One chunk's triple for this warp's rows. `stage` is the chunk's first stage. */
template <int HD, int WARPS>
__device__ __forceinline__ void chunk_attend(triple<HD> &t, const query_rows<HD> &rows,
                                             loader<HD, WARPS> &load, int chunk, int stage)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        t.m[h] = -INFINITY;
        t.l[h] = 0;
    }
#pragma unroll
    for (int d = 0; d < HD / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            t.o[d][e] = 0;
#pragma unroll 1
    for (int i = 0; i < CHUNK / TILE; i++) {
        float s[TILE / 8][4];
        scores(s, rows, load.take(stage + 2 * i));
        weigh(t, s, rows, load.shape, chunk * CHUNK + i * TILE, load.kv_len);
        gather(t, s, load.take(stage + 2 * i + 1));
    }
}

/* Factors that bring two triples to their common maximum; -inf never meets -inf here. */
__device__ __forceinline__ void common_max(float m, float m_new, float *top, float *f, float *f_new)
{
    *top = fmaxf(m, m_new);
    *f = m == -INFINITY ? 0.f : exp2f(m - *top);
    *f_new = exp2f(m_new - *top);
}

__device__ __forceinline__ float combine(float a, float f, float a_new, float f_new)
{
    return __fmaf_rn(a_new, f_new, __fmul_rn(a, f));
}

/* Query rows `first_row + 0..15` of a sequence's tokens from `first_token`, for one KV head. */
template <int HD>
__device__ void load_rows(query_rows<HD> &rows, const bf16 *qkv, const step_arrays &a,
                          const attn_shape &shape, int kv_head, int first_token, int n_tokens,
                          int first_row)
{
    const int lane = threadIdx.x % 32, group = shape.n_heads / shape.n_kv_heads;
    const size_t width = (size_t)(shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    const bf16 *from[2] = {NULL, NULL};
    for (int h = 0; h < 2; h++) {
        int row = first_row + lane / 4 + 8 * h, token = row / group;
        rows.pos[h] = -1;
        rows.head[h] = kv_head * group + row % group;
        if (token < n_tokens) {
            rows.pos[h] = a.pos[first_token + token];
            from[h] =
                qkv + (size_t)(first_token + token) * width + (size_t)rows.head[h] * shape.head_dim;
        }
    }
#pragma unroll
    for (int d = 0; d < HD / 16; d++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at = d * 16 + lane % 4 * 2 + e / 2 * 8;
            const bf16 *row = from[e % 2];
            rows.q[d][e] = row && at < shape.head_dim ? *(const unsigned *)(row + at) : 0u;
        }
}

template <int HD, int WARPS>
__device__ loader<HD, WARPS> make_loader(const kv_cache &kv, const step_arrays &a,
                                         const attn_shape &shape, int seq, int kv_head,
                                         int first_chunk, int n_chunks, bf16 *ring)
{
    loader<HD, WARPS> l;
    l.k = (const bf16 *)kv.k;
    l.v = (const bf16 *)kv.v;
    l.block = a.block + a.block_start[seq];
    l.kv_head = kv_head;
    l.kv_len = a.kv_len[seq];
    l.first_chunk = first_chunk;
    l.n_stages = n_chunks * config<HD>::PER_CHUNK;
    l.shape = shape;
    l.ring = ring;
    return l;
}

/* ---- decode -----------------------------------------------------------------------------------
 *
 * Four warps go over (sequence, chunk) pairs of one KV head, n_blocks apart, and share each tile's
 * work without changing a row's sums: of q K^T a warp makes the scores of its own sixteen keys, of
 * P V the values of its own quarter of the head. Largest scores, sums and P meet in shared memory.
 * Stages stream through the same kind of ring as the tile kernel's, across pairs; the q rows of a
 * pair come with its first stage. */
enum { DECODE_WARPS = 4 };

template <int HD> struct decode_shared {
    bf16 ring[config<HD>::DECODE_STAGES * TILE * config<HD>::STRIDE];
    bf16 q[2][16 * config<HD>::STRIDE];
    bf16 p[16 * (TILE + 8)];
    float top[DECODE_WARPS][16], sum[DECODE_WARPS][16];
};

template <int HD> struct decoder {
    typedef config<HD> C;
    decode_shared<HD> &m;
    const bf16 *qkv, *k, *v;
    const step_arrays &a;
    const attn_shape &shape;
    const int32_t *split;
    int n_split, kv_head, first_row, next; /* next: stage to issue */
    size_t at, at_next;                    /* where lane i's sixteen keys lie */
    int keys, keys_next, row, row_next;    /* of the pair that is being issued, and of the next */

    __device__ __forceinline__ int pair_of(int i) const
    {
        return blockIdx.x + i * gridDim.x;
    }

    __device__ void look_up(int i)
    {
        int pair = pair_of(i);
        keys_next = 0;
        at_next = 0;
        if (pair >= n_split)
            return;
        const int4 p = ((const int4 *)split)[pair];
        int lane = threadIdx.x % 32, in = lane % (CHUNK / 16) * 16;
        row_next = p.x;
        keys_next = p.z - p.y * CHUNK;
        if (in < keys_next)
            at_next = key_offset(a.block + p.w, p.y * CHUNK + in, kv_head, shape);
    }

    __device__ void copy_q(int i)
    {
        const int group = shape.n_heads / shape.n_kv_heads, pieces = shape.head_dim / 8;
        const size_t width = (size_t)(shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
        const bf16 *from =
            qkv + row * width + ((size_t)kv_head * group + first_row) * shape.head_dim;
        int rows = min(16, group - first_row);
        for (int j = threadIdx.x; j < rows * pieces; j += DECODE_WARPS * 32)
            cp_async16(m.q[i % 2] + j / pieces * C::STRIDE + j % pieces * 8, from + j * 8, true);
    }

    /* Of a pair: K of tile 0, its V, K of tile 1, its V. */
    __device__ __forceinline__ void issue()
    {
        int i = next / C::PER_CHUNK, in = next % C::PER_CHUNK;
        if (pair_of(i) < n_split) {
            if (in == 0) {
                at = at_next;
                keys = keys_next;
                row = row_next;
                copy_q(i);
                look_up(i + 1);
            }
            int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
            int sixteen = in / 2 * (TILE / 16) + warp, n_keys = keys - sixteen * 16;
            size_t from_at = __shfl_sync(0xffffffffu, (unsigned long long)at, sixteen);
            n_keys = from_at == NOWHERE ? 0 : n_keys;
            const bf16 *from = (in % 2 ? v : k) + (from_at == NOWHERE ? 0 : from_at);
            bf16 *to = m.ring + (next % C::DECODE_STAGES * TILE + warp * 16) * C::STRIDE;
            const int pieces = HD == shape.head_dim ? HD / 8 : shape.head_dim / 8;
#pragma unroll 8
            for (int j = lane; j < 16 * pieces; j += 32)
                cp_async16(to + j / pieces * C::STRIDE + j % pieces * 8, from + j * 8,
                           j / pieces < n_keys);
        }
        next++;
        cp_async_commit();
    }

    __device__ void start()
    {
        bf16 *all = m.ring; /* what no copy fills must be finite: padding of heads and of groups */
        for (int i = threadIdx.x; i < 2 * 16 * C::STRIDE; i += DECODE_WARPS * 32)
            m.q[0][i] = to_bf(0.f);
        if (HD != shape.head_dim)
            for (int i = threadIdx.x; i < C::DECODE_STAGES * TILE * C::STRIDE;
                 i += DECODE_WARPS * 32)
                all[i] = to_bf(0.f);
        __syncthreads();
        next = 0;
        look_up(0);
        for (int i = 0; i < C::DECODE_STAGES - 1; i++)
            issue();
    }

    __device__ __forceinline__ const bf16 *take(int i)
    {
        cp_async_wait<C::DECODE_STAGES - 2>();
        __syncthreads();
        issue();
        return m.ring + i % C::DECODE_STAGES * TILE * C::STRIDE;
    }
};

/* A warp's sixteen keys of a tile: s[2][4]. */
template <int HD>
__device__ __forceinline__ void decode_scores(float (&s)[2][4], const unsigned (&q)[HD / 16][4],
                                              const bf16 *tile)
{
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int e = 0; e < 4; e++)
        s[0][e] = s[1][e] = 0;
#pragma unroll
    for (int d = 0; d < HD / 16; d++) {
        unsigned b[4];
        ldmatrix4(b, tile + row * config<HD>::STRIDE + d * 16 + lane / 8 % 2 * 8);
        mma16816(s[0], q[d], b[0], b[1]);
        mma16816(s[1], q[d], b[2], b[3]);
    }
}

/* What every warp holds of the chunk's rows g and g + 8: m and l, and o of its quarter. */
template <int HD> struct decode_triple {
    float m[2], l[2], o[HD / 32][4];
};

template <int HD>
__device__ __forceinline__ void decode_weigh(decode_triple<HD> &t, float (&s)[2][4],
                                             decode_shared<HD> &m, const attn_shape &shape, int pos,
                                             int first_head, int n_rows, int first_key)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
    float top[2] = {-INFINITY, -INFINITY}, f[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int key = first_key + warp * 16 + i * 8 + lane % 4 * 2 + e % 2, row = g + e / 2 * 8;
            s[i][e] = key <= pos && row < n_rows ? score(s[i][e], shape, pos, first_head + row, key)
                                                 : -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], s[i][e]);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float v = row_max(top[h]);
        if (lane % 4 == 0)
            m.top[warp][g + 8 * h] = v;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float v = t.m[h], sum = 0;
        for (int w = 0; w < DECODE_WARPS; w++)
            v = fmaxf(v, m.top[w][g + 8 * h]);
        f[h] = t.m[h] == -INFINITY ? 0.f : exp2f(__fsub_rn(t.m[h], v));
        t.m[h] = v;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                s[i][e] = v == -INFINITY ? 0.f : exp2f(__fsub_rn(s[i][e], v));
                sum = __fadd_rn(sum, s[i][e]);
            }
        sum = row_sum(sum);
        if (lane % 4 == 0)
            m.sum[warp][g + 8 * h] = sum;
#pragma unroll
        for (int i = 0; i < 2; i++)
            *(unsigned *)(m.p + (g + 8 * h) * (TILE + 8) + warp * 16 + i * 8 + lane % 4 * 2) =
                pack_bf16(s[i][2 * h], s[i][2 * h + 1]);
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        t.l[h] = __fmul_rn(t.l[h], f[h]);
        for (int w = 0; w < DECODE_WARPS; w++) /* sixteen keys at a time, in order */
            t.l[h] = __fadd_rn(t.l[h], m.sum[w][g + 8 * h]);
    }
#pragma unroll
    for (int d = 0; d < HD / 32; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            t.o[d][e] = __fmul_rn(t.o[d][e], f[e / 2]);
}

/* o += P V, this warp's quarter of the head: HD / 32 columns of eight. HD / 64 is whole, or the
 * last column of eight comes alone (HD 96). */
template <int HD>
__device__ __forceinline__ void decode_gather(decode_triple<HD> &t, const decode_shared<HD> &m,
                                              const bf16 *tile)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = warp * (HD / 4);
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        unsigned p[4];
        ldmatrix4(p, m.p + lane % 16 * (TILE + 8) + j * 16 + lane / 16 * 8);
        const bf16 *row = tile + (j * 16 + lane % 16) * config<HD>::STRIDE + first;
#pragma unroll
        for (int d = 0; d < HD / 32; d += 2) {
            unsigned b[4];
            bool pair = d + 1 < HD / 32;
            ldmatrix4_trans(b, row + d * 8 + (pair ? lane / 16 * 8 : 0));
            mma16816(t.o[d], p, b[0], b[1]);
            if (pair)
                mma16816(t.o[d + 1 < HD / 32 ? d + 1 : d], p, b[2], b[3]);
        }
    }
}

template <int HD>
__global__ void __launch_bounds__(DECODE_WARPS * 32)
    split_kernel(float *partial, const bf16 *qkv, kv_cache kv, step_arrays a, attn_shape shape,
                 attn_plan plan)
{
    begin();
    extern __shared__ __align__(16) unsigned char raw_shared[];
    decode_shared<HD> &m = *(decode_shared<HD> *)raw_shared;
    typedef config<HD> C;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = shape.n_heads / shape.n_kv_heads, first_row = blockIdx.z * 16;
    const int first_head = blockIdx.y * group + first_row, n_rows = min(16, group - first_row);
    const int32_t *split = plan.split + plan.n_split[1];
    decoder<HD> load = {m, qkv, (const bf16 *)kv.k, (const bf16 *)kv.v, a, shape, split};
    load.n_split = plan.n_split[0];
    load.kv_head = blockIdx.y;
    load.first_row = first_row;
    load.start();
    for (int i = 0; load.pair_of(i) < load.n_split; i++) {
        const int pair = load.pair_of(i);
        const int4 p = ((const int4 *)split)[pair];
        const int chunk = p.y, pos = p.z - 1;
        decode_triple<HD> t;
        unsigned q[HD / 16][4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            t.m[h] = -INFINITY;
            t.l[h] = 0;
        }
#pragma unroll
        for (int d = 0; d < HD / 32; d++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                t.o[d][e] = 0;
#pragma unroll 1
        for (int j = 0; j < CHUNK / TILE; j++) {
            float s[2][4];
            const bf16 *tile = load.take(i * C::PER_CHUNK + 2 * j);
            if (j == 0)
#pragma unroll
                for (int d = 0; d < HD / 16; d++)
                    ldmatrix4(q[d], m.q[i % 2] + lane % 16 * C::STRIDE + d * 16 + lane / 16 * 8);
            decode_scores<HD>(s, q, tile);
            decode_weigh<HD>(t, s, m, shape, pos, first_head, n_rows, chunk * CHUNK + j * TILE);
            decode_gather<HD>(t, m, load.take(i * C::PER_CHUNK + 2 * j + 1));
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = lane / 4 + 8 * h;
            if (row >= n_rows)
                continue;
            float *to = partial + ((size_t)pair * shape.n_heads + first_head + row) * (HD + 2);
            if (warp == 0 && lane % 4 == 0) {
                to[HD] = t.m[h];
                to[HD + 1] = t.l[h];
            }
#pragma unroll
            for (int d = 0; d < HD / 32; d++)
                *(float2 *)(to + warp * (HD / 4) + d * 8 + lane % 4 * 2) =
                    make_float2(t.o[d][2 * h], t.o[d][2 * h + 1]);
        }
    }
}

/* One block a (decoding sequence, head), one thread a value; chunks in order. */
template <int HD>
__global__ void combine_kernel(bf16 *out, const float *partial, step_arrays a, attn_shape shape,
                               attn_plan plan)
{
    begin();
    int seq = blockIdx.x, head = blockIdx.y, d = threadIdx.x;
    int begin = plan.split_part[seq], end = plan.split_part[seq + 1];
    if (begin == end)
        return; /* not a decoding sequence */
    float m = -INFINITY, l = 0, o = 0;
    const int AT_ONCE = 8; /* loads under way */
    for (int part = begin; part < end; part += AT_ONCE) {
        float m_new[AT_ONCE], l_new[AT_ONCE], o_new[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const float *from =
                partial + ((size_t)min(part + j, end - 1) * shape.n_heads + head) * (HD + 2);
            m_new[j] = part + j < end ? from[HD] : -INFINITY;
            l_new[j] = from[HD + 1];
            o_new[j] = from[d];
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            float top, f, f_new;
            if (m_new[j] == -INFINITY)
                continue;
            common_max(m, m_new[j], &top, &f, &f_new);
            l = combine(l, f, l_new[j], f_new);
            o = combine(o, f, o_new[j], f_new);
            m = top;
        }
    }
    if (d < shape.head_dim)
        out[((size_t)a.q_start[seq] * shape.n_heads + head) * shape.head_dim + d] = to_bf(o / l);
}

/* Four warps: 64 query rows of one sequence and KV head, over all the chunks that they see. */
template <int HD>
__global__ void __launch_bounds__(128) tile_kernel(bf16 *out, const bf16 *qkv, kv_cache kv,
                                                   step_arrays a, attn_shape shape, attn_plan plan)
{
    begin();
    extern __shared__ __align__(16) bf16 ring[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int seq = plan.tile_seq[blockIdx.x], first = plan.tile_first[blockIdx.x];
    const int left = a.q_start[seq + 1] - first;
    const int n = left < plan.tokens_per_tile ? left : plan.tokens_per_tile;
    const int first_row = (blockIdx.z * 4 + warp) * 16, group = shape.n_heads / shape.n_kv_heads;
    int lowest = a.pos[first], highest = shape.causal ? a.pos[first + n - 1] : a.kv_len[seq] - 1;
    int first_chunk = 0;
    if (shape.window && lowest + 1 > shape.window)
        first_chunk = (lowest + 1 - shape.window) / CHUNK;
    int n_chunks = highest / CHUNK + 1 - first_chunk;
    loader<HD, 4> load =
        make_loader<HD, 4>(kv, a, shape, seq, blockIdx.y, first_chunk, n_chunks, ring);
    load.start();
    query_rows<HD> rows;
    load_rows(rows, qkv, a, shape, blockIdx.y, first, n, first_row);
    triple<HD> sum, t;
    for (int h = 0; h < 2; h++) {
        sum.m[h] = -INFINITY;
        sum.l[h] = 0;
    }
    for (int d = 0; d < HD / 8; d++)
        for (int e = 0; e < 4; e++)
            sum.o[d][e] = 0;
#pragma unroll 1
    for (int c = 0; c < n_chunks; c++) {
        chunk_attend<HD, 4>(t, rows, load, first_chunk + c, c * config<HD>::PER_CHUNK);
        for (int h = 0; h < 2; h++) {
            if (t.m[h] == -INFINITY)
                continue;
            float top, f, f_new;
            common_max(sum.m[h], t.m[h], &top, &f, &f_new);
            sum.l[h] = combine(sum.l[h], f, t.l[h], f_new);
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                sum.o[d][2 * h] = combine(sum.o[d][2 * h], f, t.o[d][2 * h], f_new);
                sum.o[d][2 * h + 1] = combine(sum.o[d][2 * h + 1], f, t.o[d][2 * h + 1], f_new);
            }
            sum.m[h] = top;
        }
    }
    for (int h = 0; h < 2; h++) {
        int row = first_row + lane / 4 + 8 * h, token = row / group;
        if (token >= n)
            continue;
        bf16 *to = out + ((size_t)(first + token) * shape.n_heads + rows.head[h]) * shape.head_dim;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            int at = d * 8 + lane % 4 * 2;
            if (at < shape.head_dim)
                *(unsigned *)(to + at) =
                    pack_bf16(sum.o[d][2 * h] / sum.l[h], sum.o[d][2 * h + 1] / sum.l[h]);
        }
    }
}

template <int HD>
static void launch(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                   const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    int group = shape.n_heads / shape.n_kv_heads;
    if (plan.n_blocks) {
        dim3 grid(plan.n_blocks, shape.n_kv_heads, (group + 15) / 16);
        int bytes = sizeof(decode_shared<HD>);
        cudaFuncSetAttribute(split_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        launch_after(s, split_kernel<HD>, grid, dim3(DECODE_WARPS * 32), bytes,
                     (float *)plan.partial, qkv, kv, a, shape, plan);
        launch_after(s, combine_kernel<HD>, dim3(a.n_seqs, shape.n_heads), dim3(HD), 0, out,
                     (const float *)plan.partial, a, shape, plan);
    }
    if (plan.n_tiles) {
        int rows = plan.tokens_per_tile * group, bytes = config<HD>::SHARED;
        dim3 grid(plan.n_tiles, shape.n_kv_heads, (rows + 63) / 64);
        cudaFuncSetAttribute(tile_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        launch_after(s, tile_kernel<HD>, grid, dim3(128), bytes, out, qkv, kv, a, shape, plan);
    }
}

extern "C" int attn_tokens_per_tile(int n_heads, int n_kv_heads)
{
    int group = n_heads / n_kv_heads;
    return group >= 64 ? 1 : 64 / group;
}

extern "C" int attn_decode_blocks_per_sm(int head_dim)
{
    return head_dim > 128 ? 1 : 3; /* by shared memory */
}

extern "C" int attn_padded_dim(int head_dim)
{
    return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

extern "C" bool attn_supports(int head_dim, bool fp8)
{
    return !fp8 && head_dim % 8 == 0 && head_dim > 0 && head_dim <= 256;
}

extern "C" void launch_attention(cuda_stream s, void *out, const void *qkv,
                                 const struct kv_cache *kv, const struct step_arrays *a,
                                 const struct attn_shape *shape, const struct attn_plan *plan)
{
    bf16 *to = (bf16 *)out;
    const bf16 *from = (const bf16 *)qkv;
    switch (attn_padded_dim(shape->head_dim)) { /* padded with zeros in shared memory */
    case 64:
        return launch<64>(s, to, from, *kv, *a, *shape, *plan);
    case 96:
        return launch<96>(s, to, from, *kv, *a, *shape, *plan);
    case 128:
        return launch<128>(s, to, from, *kv, *a, *shape, *plan);
    default:
        return launch<256>(s, to, from, *kv, *a, *shape, *plan);
    }
}
