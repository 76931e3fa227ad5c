/* attention.cu - attention over the paged cache: decode, and many query rows without wgmma.
 *
 * decode_kernel takes the rows that come alone, tile_kernel the others where attention_hopper.cu
 * does not serve. The arithmetic is attention.cuh's in all of them, so a position's bits are the
 * same either way.
 *
 * Query rows of one KV head are (token, head in its group) pairs, so a group shares each K and V.
 * A warp owns 16 of them. Halves of tiles of K and of V, in turn, stream through a ring of STAGES
 * in shared memory, rows padded by 16 bytes, which keeps ldmatrix free of bank conflicts. The loop
 * over tiles is not unrolled: unrolled over a chunk it outgrows the instruction cache and runs 8
 * times slower.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/attention.cuh"

static const int HALF = ATTN_TILE / 2; /* keys in a stage: half a tile's */

template <int HD> struct config {
    static const int STAGES = HD > 128 ? 3 : 4, DECODE_STAGES = 3,
                     DECODE_STAGES_ALONE = HD > 128 ? 5 : 10;
    static const int STRIDE = HD + 8;              /* bf16 from one row to the next */
    static const int PER_CHUNK = 2 * CHUNK / HALF; /* stages a chunk: K, K, V, V of each tile */
    static const int SHARED = STAGES * HALF * STRIDE * (int)sizeof(bf16);
};

/* Stage `in` of a chunk: which half of a tile, counted from the chunk's beginning. */
__device__ __forceinline__ int stage_half(int in)
{
    return in / 4 * 2 + in % 2;
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
    int at, at_next;
    attn_shape shape;
    bf16 *ring;

    __device__ int look_up(int chunk) const
    {
        int key = chunk * CHUNK + threadIdx.x % (CHUNK / 16) * 16;
        return key < kv_len ? key_row(block, key, kv_head, shape) : NOWHERE;
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

    /* Of a tile: K's two halves, then V's. */
    __device__ void issue()
    {
        if (next < n_stages) {
            int chunk = first_chunk + next / C::PER_CHUNK, in = next % C::PER_CHUNK;
            if (in == 0) {
                at = at_next;
                at_next = look_up(chunk + 1);
            }
            bf16 *to = ring + next % C::STAGES * HALF * C::STRIDE;
            for (int j = 0; j < HALF / 16; j++) {
                int sixteen = stage_half(in) * (HALF / 16) + j;
                int from = __shfl_sync(0xffffffffu, at, sixteen);
                bool there = from != NOWHERE;
                copy16(to + j * 16 * C::STRIDE,
                       (in / 2 % 2 ? v : k) + (there ? (size_t)from * shape.head_dim : 0),
                       there ? kv_len - chunk * CHUNK - sixteen * 16 : 0);
            }
        }
        next++;
        cp_async_commit(); /* an empty group too, so that counting stays right */
    }

    __device__ void start()
    {
        if (HD != shape.head_dim) {
            for (int i = threadIdx.x; i < C::STAGES * HALF * C::STRIDE; i += WARPS * 32)
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
        return ring + i % C::STAGES * HALF * C::STRIDE;
    }
};

/* What a thread holds of 16 query rows: it owns parts of rows g and g + 8 (g = lane / 4). */
template <int HD> struct query_rows {
    unsigned q[HD / 16][4];
    int pos[2], head[2]; /* of rows g and g + 8 */
};

/* q K^T of half a tile. */
template <int HD>
__device__ __forceinline__ void scores(float (*s)[4], const query_rows<HD> &rows, const bf16 *half)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < HALF / 16; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[2 * j][e] = s[2 * j + 1][e] = 0;
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            unsigned b[4];
            int row = j * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix4(b, half + row * config<HD>::STRIDE + d * 16 + lane / 8 % 2 * 8);
            mma16816(s[2 * j], rows.q[d], b[0], b[1]);
            mma16816(s[2 * j + 1], rows.q[d], b[2], b[3]);
        }
    }
}

/* o += weights V of half a tile. */
template <int HD>
__device__ __forceinline__ void gather(float (&o)[HD / 8][4], const unsigned (&p)[HALF / 16][4],
                                       const bf16 *half)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < HALF / 16; j++)
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            unsigned b[4];
            int row = j * 16 + lane % 16;
            ldmatrix4_trans(b, half + row * config<HD>::STRIDE + d * 16 + lane / 16 * 8);
            mma16816(o[2 * d], p[j], b[0], b[1]);
            mma16816(o[2 * d + 1], p[j], b[2], b[3]);
        }
}

/* One chunk's triple for this warp's rows. `stage` is the chunk's first stage. */
template <int HD, int WARPS>
__device__ __forceinline__ void chunk_attend(row_pair &t, float (&o)[HD / 8][4],
                                             const query_rows<HD> &rows, loader<HD, WARPS> &load,
                                             int chunk, int stage)
{
    const attn_shape &shape = load.shape;
    const bool bent = is_bent(shape);
    const float factor = score_factor(shape);
    t.clear();
#pragma unroll
    for (int d = 0; d < HD / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[d][e] = 0;
#pragma unroll 1
    for (int i = 0; i < TILES_PER_CHUNK; i++) {
        tile_scores s;
        unsigned p[2][HALF / 16][4];
        float f[2];
        scores(s, rows, load.take(stage + 4 * i));
        scores(s + HALF / 8, rows, load.take(stage + 4 * i + 1));
        mask_tile(s, shape, rows.pos, rows.head, chunk * CHUNK + i * ATTN_TILE, load.kv_len, bent,
                  true);
        weigh_tile(s, t, f, factor);
#pragma unroll
        for (int j = 0; j < ATTN_TILE / 16; j++)
            pack_weights(p[j / (HALF / 16)][j % (HALF / 16)], s, j);
#pragma unroll
        for (int d = 0; d < HD / 8; d++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[d][e] = __fmul_rn(o[d][e], f[e / 2]);
        gather<HD>(o, p[0], load.take(stage + 4 * i + 2));
        gather<HD>(o, p[1], load.take(stage + 4 * i + 3));
    }
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
        rows.pos[h] = 0;
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
 * Four warps go over a run of (sequence, chunk) pairs of one KV head and share each tile's work
 * without changing a row's sums: of q K^T a warp makes the scores of sixteen keys of each half, of
 * P V the values of its own quarter of the head. Largest scores, sums and P meet in shared memory.
 * Stages stream through the same kind of ring as the tile kernel's, across pairs; the q rows of a
 * pair come with its first stage.
 *
 * The pairs are shared out evenly, so a sequence's chunks may be those of several blocks. One that
 * has them all writes the result. Else the block with the first of them folds its own; the others
 * leave theirs as they are, in `partial`; and the block that is last to be done folds these, in
 * order. */
enum { DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * 32 };

/* T: bf16, or uint8_t for e4m3, whose values times their scales are rounded to bf16. */
template <int HD, int STAGES, class T> struct decode_shared {
    static const int ROW = HD * (int)sizeof(T) + 16; /* bytes from one key to the next */
    unsigned char ring[STAGES * HALF * ROW];
    bf16 q[2][16 * config<HD>::STRIDE];
    bf16 p[16 * (ATTN_TILE + 8)];
    float top[DECODE_WARPS][16], sum[ATTN_TILE / 16][16][4], l[16];
    float scale[sizeof(T) == 1 ? STAGES : 1][HALF];
    int is_last;
};

/* One of the plan's pairs, and how many chunks its sequence has from `first_chunk` on. */
struct pair {
    int row, chunk, kv_len, block_start, first_chunk, n_chunks;

    __device__ __forceinline__ pair(int4 p, int window)
    {
        row = p.x;
        chunk = p.y;
        kv_len = p.z;
        block_start = p.w;
        first_chunk = window && kv_len > window ? (kv_len - window) / CHUNK : 0;
        n_chunks = (kv_len + CHUNK - 1) / CHUNK - first_chunk;
    }
};

/* Where the run of block i begins. */
__device__ __forceinline__ int run_begin(int i, int n_pairs)
{
    return (int)((long long)i * n_pairs / gridDim.x);
}

/* Whose run pair p belongs to. */
__device__ __forceinline__ int run_of(int p, int n_pairs)
{
    return (int)((((long long)p + 1) * gridDim.x - 1) / n_pairs);
}

template <int HD, int STAGES, class T> struct decoder {
    typedef config<HD> C;
    typedef decode_shared<HD, STAGES, T> shared;
    shared &m;
    const bf16 *qkv;
    const kv_cache &kv;
    const step_arrays &a;
    const attn_shape &shape;
    const int4 *pairs;                            /* this block's, n of them */
    int n, kv_head, first_row, next, slot, taken; /* next: stage to issue, to `slot` */
    int at, at_next;                              /* where lane i's sixteen keys lie */
    int keys, keys_next, row, row_next; /* of the pair that is being issued, and of the next */

    __device__ void look_up(int i)
    {
        keys_next = 0;
        at_next = NOWHERE;
        if (i >= n)
            return;
        const int4 p = pairs[i];
        int in = threadIdx.x % (CHUNK / 16) * 16;
        row_next = p.x;
        keys_next = p.z - p.y * CHUNK;
        if (in < keys_next)
            at_next = key_row(a.block + p.w, p.y * CHUNK + in, kv_head, shape);
    }

    __device__ void copy_q(int i)
    {
        const int group = shape.n_heads / shape.n_kv_heads, pieces = shape.head_dim / 8;
        const size_t width = (size_t)(shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
        const bf16 *from =
            qkv + row * width + ((size_t)kv_head * group + first_row) * shape.head_dim;
        int rows = min(16, group - first_row);
        for (int j = threadIdx.x; j < rows * pieces; j += DECODE_THREADS)
            cp_async16(m.q[i % 2] + j / pieces * C::STRIDE + j % pieces * 8, from + j * 8, true);
    }

    __device__ __forceinline__ static void copy16(unsigned char *to, const unsigned char *from,
                                                  int pieces, int n_keys)
    {
#pragma unroll
        for (int j = threadIdx.x % 32; j < 16 * pieces; j += 32)
            cp_async16(to + j / pieces * shared::ROW + j % pieces * 16, from + j * 16,
                       j / pieces < n_keys);
    }

    /* Of each tile: K's two halves, then V's. A warp brings sixteen keys of each. */
    __device__ __forceinline__ void issue()
    {
        int i = next / C::PER_CHUNK, in = next % C::PER_CHUNK;
        if (i < n) {
            if (in == 0) {
                at = at_next;
                keys = keys_next;
                row = row_next;
                copy_q(i);
                look_up(i + 1);
            }
            const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, in_row = 16 / sizeof(T);
            const int sixteen = stage_half(in) * (HALF / 16) + warp;
            const bool is_v = in / 2 % 2;
            int row_at = __shfl_sync(0xffffffffu, at, sixteen), n_keys = keys - sixteen * 16;
            if (row_at == NOWHERE)
                row_at = n_keys = 0;
            const unsigned char *from = (const unsigned char *)(is_v ? kv.v : kv.k) +
                                        (size_t)row_at * shape.head_dim * sizeof(T);
            unsigned char *to = m.ring + (slot * HALF + warp * 16) * shared::ROW;
            if (HD == shape.head_dim)
                copy16(to, from, HD / in_row, n_keys); /* no division */
            else
                copy16(to, from, shape.head_dim / in_row, n_keys);
            if (sizeof(T) == 1 && lane < 16)
                cp_async4(&m.scale[slot][warp * 16 + lane],
                          (is_v ? kv.v_scale : kv.k_scale) + row_at + lane, lane < n_keys);
        }
        next++;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        cp_async_commit();
    }

    __device__ void start()
    {
        /* what no copy fills must be finite: padding of heads and of groups */
        for (int i = threadIdx.x; i < 2 * 16 * C::STRIDE; i += DECODE_THREADS)
            m.q[0][i] = to_bf(0.f);
        if (HD != shape.head_dim)
            for (int i = threadIdx.x; i < STAGES * HALF * shared::ROW / 16; i += DECODE_THREADS)
                ((uint4 *)m.ring)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
        next = slot = taken = 0;
        look_up(0);
        for (int i = 0; i < STAGES - 1; i++)
            issue();
    }

    /* The next stage's slot, readable by all; meanwhile the one before it is refilled. */
    __device__ __forceinline__ int take()
    {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        issue();
        int i = taken;
        taken = taken + 1 == STAGES ? 0 : taken + 1;
        return i;
    }
};

__device__ __forceinline__ __nv_bfloat162 as_bf162(unsigned x)
{
    return *reinterpret_cast<__nv_bfloat162 *>(&x);
}

/* The scales of two e4m3, each as the sum of two bf16. */
struct scale_pair {
    __nv_bfloat162 high, low;

    __device__ __forceinline__ scale_pair(float a, float b)
    {
        high = __floats2bfloat162_rn(a, b);
        low = __floats2bfloat162_rn(a - __low2float(high), b - __high2float(high));
    }
};

/* The e4m3 in the upper bytes of x's halves, times their scales, rounded to bf16. Their exponents
 * and fractions are those of bf16, 2^120 times smaller. */
__device__ __forceinline__ unsigned widen_upper(unsigned x, const scale_pair &scale)
{
    const __nv_bfloat162 up = as_bf162(0x7b807b80); /* 2^120 */
    __nv_bfloat162 v = __hmul2_rn(as_bf162((x >> 4 & 0x07f007f0) | (x & 0x80008000)), up);
    v = __hfma2(v, scale.high, __hmul2_rn(v, scale.low));
    return *reinterpret_cast<unsigned *>(&v);
}

__device__ __forceinline__ unsigned widen_lower(unsigned x, const scale_pair &scale)
{
    return widen_upper(x << 8, scale);
}

/* The pair's q. Of e4m3, a lane holds four neighbours of each sixteen columns, the first and third
 * beside each other, so q's columns go to the same places of an mma: its sixteen products are added
 * at once, whatever their places. */
template <int HD, class T>
__device__ __forceinline__ void decode_queries(unsigned (&q)[HD / 16][4], const bf16 *from)
{
    const int lane = threadIdx.x % 32, stride = config<HD>::STRIDE;
#pragma unroll
    for (int d = 0; d < HD / 16; d++) {
        if (sizeof(T) == 2) {
            ldmatrix4(q[d], from + lane % 16 * stride + d * 16 + lane / 16 * 8);
            continue;
        }
        const bf16 *at = from + lane / 4 * stride + d * 16 + lane % 4 * 4;
        uint2 low = *(const uint2 *)at, high = *(const uint2 *)(at + 8 * stride);
        q[d][0] = __byte_perm(low.x, low.y, 0x5410);
        q[d][1] = __byte_perm(high.x, high.y, 0x5410);
        q[d][2] = __byte_perm(low.x, low.y, 0x7632);
        q[d][3] = __byte_perm(high.x, high.y, 0x7632);
    }
}

/* A warp's sixteen keys of half a tile, in slot `slot`. */
template <int HD, int STAGES>
__device__ __forceinline__ void decode_scores(float (*s)[4], const unsigned (&q)[HD / 16][4],
                                              const decode_shared<HD, STAGES, bf16> &m, int slot)
{
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 8 + lane / 16 * 8;
    const unsigned char *at = m.ring + (slot * HALF + row) * m.ROW + lane / 8 % 2 * 16;
#pragma unroll
    for (int d = 0; d < HD / 16; d++) {
        unsigned b[4];
        ldmatrix4(b, at + d * 32);
        mma16816(s[0], q[d], b[0], b[1]);
        mma16816(s[1], q[d], b[2], b[3]);
    }
}

template <int HD, int STAGES>
__device__ __forceinline__ void decode_scores(float (*s)[4], const unsigned (&q)[HD / 16][4],
                                              const decode_shared<HD, STAGES, uint8_t> &m, int slot)
{
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
    const int row = first + lane % 8 + lane / 16 * 8;
    const unsigned char *at = m.ring + (slot * HALF + row) * m.ROW + lane / 8 % 2 * 16;
    const float *scale = m.scale[slot] + first + lane / 4;
    const scale_pair scales[2] = {{scale[0], scale[0]}, {scale[8], scale[8]}};
#pragma unroll
    for (int d = 0; d < HD / 16; d += 2) {
        unsigned b[4];
        ldmatrix4(b, at + d * 16);
#pragma unroll
        for (int i = 0; i < 4; i++)
            mma16816(s[i / 2], q[d + i % 2], widen_lower(b[i], scales[i / 2]),
                     widen_upper(b[i], scales[i / 2]));
    }
}

/* What every warp holds of the chunk's rows: m, and o of its quarter; l, the first warp. */
template <int HD> struct decode_triple {
    row_pair t;
    float o[HD / 32][4];

    __device__ __forceinline__ void clear()
    {
        t.clear();
#pragma unroll
        for (int d = 0; d < HD / 32; d++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[d][e] = 0;
    }
};

/* s: of a warp's sixteens w and w + 4 of the tile. */
template <int HD, class SHARED>
__device__ __forceinline__ void decode_weigh(decode_triple<HD> &t, float (&s)[4][4], SHARED &m,
                                             const attn_shape &shape, int pos, int first_head,
                                             int n_rows, int first_key)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const int key0 = first_key + warp * 16 + c * 2;
    const bool bent = is_bent(shape);
    const float factor = score_factor(shape);
    const key_range seen = seen_keys(shape, pos, pos + 1);
    const bender b(shape);
    float top[2] = {-INFINITY, -INFINITY}, slope[2] = {0, 0}, f[2];
    for (int h = 0; h < 2; h++)
        if (shape.alibi && g + 8 * h < n_rows)
            slope[h] = shape.alibi[first_head + g + 8 * h];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int key = key0 + i / 2 * HALF + i % 2 * 8 + e % 2;
            if (bent)
                s[i][e] = b.bend(s[i][e], slope[e / 2], key - pos);
            if (key < seen.first || key > seen.last)
                s[i][e] = -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], s[i][e]);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float v = row_max(top[h]);
        if (c == 0)
            m.top[warp][g + 8 * h] = v;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float v = -INFINITY;
        for (int w = 0; w < DECODE_WARPS; w++)
            v = fmaxf(v, m.top[w][g + 8 * h]);
        f[h] = raise_max(t.t.m[h], v, factor);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++)
                s[i][e] = weight_of(s[i][e], factor, t.t.m[h]);
            *(unsigned *)(m.p + (g + 8 * h) * (ATTN_TILE + 8) + i / 2 * HALF + warp * 16 +
                          i % 2 * 8 + c * 2) = pack_bf16(s[i][2 * h], s[i][2 * h + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            m.sum[i / 2 * DECODE_WARPS + warp][g + 8 * h][c] =
                sum4(s[i][2 * h], s[i][2 * h + 1], s[i + 1][2 * h], s[i + 1][2 * h + 1]);
    }
    __syncthreads();
    if (warp == 0)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = m.sum[0][g + 8 * h][c];
#pragma unroll
            for (int j = 1; j < ATTN_TILE / 16; j++)
                sum = __fadd_rn(sum, m.sum[j][g + 8 * h][c]);
            t.t.l[h] = __fmaf_rn(t.t.l[h], f[h], sum);
        }
#pragma unroll
    for (int d = 0; d < HD / 32; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            t.o[d][e] = __fmul_rn(t.o[d][e], f[e / 2]);
}

/* o += P V of half a tile in slot `slot`, this warp's quarter of the head: HD / 32 columns of
 * eight. HD / 64 is whole, or the last column of eight comes alone (HD 96). */
template <int HD, int STAGES>
__device__ __forceinline__ void decode_gather(decode_triple<HD> &t, const bf16 *weights,
                                              const decode_shared<HD, STAGES, bf16> &m, int slot)
{
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (HD / 4);
#pragma unroll
    for (int j = 0; j < HALF / 16; j++) {
        unsigned p[4];
        ldmatrix4(p, weights + lane % 16 * (ATTN_TILE + 8) + j * 16 + lane / 16 * 8);
        const unsigned char *row = m.ring + (slot * HALF + j * 16 + lane % 16) * m.ROW + first * 2;
#pragma unroll
        for (int d = 0; d < HD / 32; d += 2) {
            unsigned b[4];
            bool pair = d + 1 < HD / 32;
            ldmatrix4_trans(b, row + d * 16 + (pair ? lane / 16 * 16 : 0));
            mma16816(t.o[d], p, b[0], b[1]);
            if (pair)
                mma16816(t.o[d + 1 < HD / 32 ? d + 1 : d], p, b[2], b[3]);
        }
    }
}

/* Sixteen columns are the even ones in o[2i], the odd ones in o[2i + 1]. */
template <int HD, int STAGES>
__device__ __forceinline__ void decode_gather(decode_triple<HD> &t, const bf16 *weights,
                                              const decode_shared<HD, STAGES, uint8_t> &m, int slot)
{
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * (HD / 4);
    const int SIXTEENS = HD / 64, KEYS = SIXTEENS == 1 ? 32 : 16; /* keys that one ldmatrix takes */
#pragma unroll
    for (int j = 0; j < HALF; j += KEYS) {
#pragma unroll
        for (int d = 0; d < SIXTEENS; d += 32 / KEYS) {
            unsigned b[4];
            int row = j + lane % 16 + (KEYS == 32 ? lane / 16 * 16 : 0);
            int column = first + d * 16 + (KEYS == 32 ? 0 : lane / 16 * 16);
            ldmatrix4_trans(b, m.ring + (slot * HALF + row) * m.ROW + column);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int key = j + (KEYS == 32 ? i * 16 : 0), at = KEYS == 32 ? d : d + i;
                const float *scale = m.scale[slot] + key + lane % 4 * 2;
                const scale_pair low(scale[0], scale[1]), high(scale[8], scale[9]);
                unsigned p[4];
                ldmatrix4(p, weights + lane % 16 * (ATTN_TILE + 8) + key + lane / 16 * 8);
                mma16816(t.o[2 * at], p, widen_lower(b[2 * i], low),
                         widen_lower(b[2 * i + 1], high));
                mma16816(t.o[2 * at + 1], p, widen_upper(b[2 * i], low),
                         widen_upper(b[2 * i + 1], high));
            }
        }
    }
}

/* Two neighbouring values of row g + 8h that a lane holds, the i-th such pair of HD / 32; `column`:
 * the first's, in the head. */
template <int HD, class T>
__device__ __forceinline__ float2 value_pair(const decode_triple<HD> &t, int i, int h, int &column)
{
    const int first = threadIdx.x / 32 * (HD / 4), c = threadIdx.x % 4, d = i / 2 * 2, e = i % 2;
    if (sizeof(T) == 2) {
        column = first + i * 8 + c * 2;
        return make_float2(t.o[i][2 * h], t.o[i][2 * h + 1]);
    }
    column = first + d * 8 + c * 4 + e * 2;
    return make_float2(t.o[d][2 * h + e], t.o[d + 1 < HD / 32 ? d + 1 : d][2 * h + e]);
}

/* A chunk's triple joins those before it in `sum`. */
template <int HD>
__device__ __forceinline__ void decode_fold(decode_triple<HD> &sum, const decode_triple<HD> &t)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        fold_factors f = fold_max(sum.t.m[h], t.t.m[h]);
        sum.t.l[h] = fold(sum.t.l[h], t.t.l[h], f);
#pragma unroll
        for (int d = 0; d < HD / 32; d++)
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++)
                sum.o[d][e] = fold(sum.o[d][e], t.o[d][e], f);
    }
}

/* Heads first_head, ... of a decoding row. */
struct decode_rows {
    bf16 *out;
    float *partial; /* [pairs][n_heads][HD + PARTIAL_MORE]: o, m, l */
    int first_head, n_rows, n_heads, head_dim;
};

enum { PARTIAL_MORE = 4 }; /* floats beside o, so that o is 16-byte aligned */

template <int HD, class T>
__device__ __forceinline__ void leave_partial(const decode_rows &r, const decode_triple<HD> &t,
                                              int pair)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = lane / 4 + 8 * h;
        if (row >= r.n_rows)
            continue;
        float *to =
            r.partial + ((size_t)pair * r.n_heads + r.first_head + row) * (HD + PARTIAL_MORE);
        if (warp == 0 && lane % 4 == 0)
            *(float2 *)(to + HD) = make_float2(t.t.m[h], t.t.l[h]);
#pragma unroll
        for (int i = 0; i < HD / 32; i++) {
            int at;
            float2 v = value_pair<HD, T>(t, i, h, at);
            *(float2 *)(to + at) = v;
        }
    }
}

template <int HD, class T>
__device__ __forceinline__ void write_whole(const decode_rows &r, const decode_triple<HD> &t,
                                            float *l, int token)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (warp == 0 && lane % 4 == 0) {
        l[lane / 4] = t.t.l[0];
        l[lane / 4 + 8] = t.t.l[1];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = lane / 4 + 8 * h;
        if (row >= r.n_rows)
            continue;
        float part = __frcp_rn(l[row]);
        bf16 *to = r.out + ((size_t)token * r.n_heads + r.first_head + row) * r.head_dim;
#pragma unroll
        for (int i = 0; i < HD / 32; i++) {
            int at;
            float2 v = value_pair<HD, T>(t, i, h, at);
            if (at < r.head_dim)
                *(unsigned *)(to + at) = pack_bf16(result(v.x, part), result(v.y, part));
        }
    }
}

/* Partial results `first` (those before `rest`, folded), and [rest, end), in order. A thread has
 * four values of a head at a time. */
template <int HD>
__device__ void fold_partials(const decode_rows &r, int token, int first, int rest, int end)
{
    const int AT_ONCE = 8, QUADS = HD / 4; /* loads under way */
    const size_t stride = (size_t)r.n_heads * (HD + PARTIAL_MORE);
    for (int u = threadIdx.x; u < r.n_rows * QUADS; u += DECODE_THREADS) {
        const int head = r.first_head + u / QUADS, at = u % QUADS * 4;
        const float *base = r.partial + (size_t)head * (HD + PARTIAL_MORE);
        float m = -INFINITY, l = 0, o[4] = {0, 0, 0, 0};
        for (int j = rest - 1; j < end; j += AT_ONCE) {
            float4 o_new[AT_ONCE];
            float2 ml[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                int p = j + i < rest ? first : min(j + i, end - 1);
                o_new[i] = __ldcg((const float4 *)(base + p * stride + at));
                ml[i] = __ldcg((const float2 *)(base + p * stride + HD));
                if (j + i >= end)
                    ml[i].x = -INFINITY; /* nothing */
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                fold_factors f = fold_max(m, ml[i].x);
                l = fold(l, ml[i].y, f);
                o[0] = fold(o[0], o_new[i].x, f);
                o[1] = fold(o[1], o_new[i].y, f);
                o[2] = fold(o[2], o_new[i].z, f);
                o[3] = fold(o[3], o_new[i].w, f);
            }
        }
        float part = __frcp_rn(l);
        bf16 *to = r.out + ((size_t)token * r.n_heads + head) * r.head_dim + at;
        if (at < r.head_dim)
            *(uint2 *)to = make_uint2(pack_bf16(result(o[0], part), result(o[1], part)),
                                      pack_bf16(result(o[2], part), result(o[3], part)));
    }
}

/* `done` more of a sequence's `all` chunks are there; is that all of them? The counter ends at 0.
 */
__device__ __forceinline__ bool last_to_be_done(int *counter, int done, int all, int *shared)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = atomicAdd(counter, done) + done == all;
        if (*shared)
            *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return *shared;
}

template <int HD, int STAGES, class T>
__global__ void __launch_bounds__(DECODE_THREADS, HD > 128         ? 1
                                                  : sizeof(T) == 1 ? 4
                                                                   : 3)
    decode_kernel(bf16 *out, const bf16 *qkv, kv_cache kv, step_arrays a, attn_shape shape,
                  attn_plan plan)
{
    begin();
    extern __shared__ __align__(16) unsigned char raw_shared[];
    decode_shared<HD, STAGES, T> &m = *(decode_shared<HD, STAGES, T> *)raw_shared;
    const int group = shape.n_heads / shape.n_kv_heads;
    const int first_row = blockIdx.z * 16, first_head = blockIdx.y * group + first_row;
    const int n_pairs = plan.n_split[0];
    const int run = run_begin(blockIdx.x, n_pairs), n = run_begin(blockIdx.x + 1, n_pairs) - run;
    const decode_rows rows = {out,           (float *)plan.partial,
                              first_head,    min(16, group - first_row),
                              shape.n_heads, shape.head_dim};
    decoder<HD, STAGES, T> load = {m, qkv, kv, a, shape};
    load.pairs = (const int4 *)(plan.split + plan.n_split[1]) + run;
    load.n = n;
    load.kv_head = blockIdx.y;
    load.first_row = first_row;
    load.start();
    decode_triple<HD> sum, t;
    sum.clear();
    int done = 0; /* chunks of the sequence, by this block */
    for (int i = 0; i < n; i++) {
        const pair p(load.pairs[i], shape.window);
        const int begin_pair = run + i - (p.chunk - p.first_chunk);
        const bool from_start = begin_pair >= run;
        unsigned q[HD / 16][4];
        t.clear();
#pragma unroll 1
        for (int j = 0; j < TILES_PER_CHUNK; j++) {
            float s[4][4] = {};
            int slot = load.take();
            if (j == 0)
                decode_queries<HD, T>(q, m.q[i % 2]);
            decode_scores<HD, STAGES>(s, q, m, slot);
            slot = load.take();
            decode_scores<HD, STAGES>(s + 2, q, m, slot);
            decode_weigh<HD>(t, s, m, shape, p.kv_len - 1, first_head, rows.n_rows,
                             p.chunk * CHUNK + j * ATTN_TILE);
            slot = load.take();
            decode_gather<HD, STAGES>(t, m.p, m, slot);
            slot = load.take();
            decode_gather<HD, STAGES>(t, m.p + HALF, m, slot);
        }
        t.t.l[0] = row_sum(t.t.l[0]);
        t.t.l[1] = row_sum(t.t.l[1]);
        if (p.chunk == p.first_chunk)
            sum.clear();
        if (from_start)
            decode_fold(sum, t);
        else
            leave_partial<HD, T>(rows, t, run + i);
        done++;
        const bool ended = p.chunk + 1 == p.first_chunk + p.n_chunks;
        if (!ended && i + 1 < n)
            continue;
        if (done == p.n_chunks) {
            write_whole<HD, T>(rows, sum, m.l, p.row);
        } else {
            if (from_start)
                leave_partial<HD, T>(rows, sum, begin_pair);
            int *counter = plan.counter + (size_t)begin_pair * shape.n_heads + first_head;
            if (last_to_be_done(counter, done, p.n_chunks, &m.is_last)) {
                int rest = run_begin(run_of(begin_pair, n_pairs) + 1, n_pairs);
                fold_partials<HD>(rows, p.row, begin_pair, rest, begin_pair + p.n_chunks);
            }
        }
        done = 0;
    }
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
    row_pair sum, t;
    float o[HD / 8][4], o_new[HD / 8][4];
    sum.clear();
#pragma unroll
    for (int d = 0; d < HD / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[d][e] = 0;
#pragma unroll 1
    for (int c = 0; c < n_chunks; c++) {
        chunk_attend<HD, 4>(t, o_new, rows, load, first_chunk + c, c * config<HD>::PER_CHUNK);
        for (int h = 0; h < 2; h++) {
            fold_factors f = fold_max(sum.m[h], t.m[h]);
            sum.l[h] = fold(sum.l[h], row_sum(t.l[h]), f);
#pragma unroll
            for (int d = 0; d < HD / 8; d++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++)
                    o[d][e] = fold(o[d][e], o_new[d][e], f);
        }
    }
    for (int h = 0; h < 2; h++) {
        int row = first_row + lane / 4 + 8 * h, token = row / group;
        if (token >= n)
            continue;
        float part = __frcp_rn(sum.l[h]);
        bf16 *to = out + ((size_t)(first + token) * shape.n_heads + rows.head[h]) * shape.head_dim;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            int at = d * 8 + lane % 4 * 2;
            if (at < shape.head_dim)
                *(unsigned *)(to + at) =
                    pack_bf16(result(o[d][2 * h], part), result(o[d][2 * h + 1], part));
        }
    }
}

/* ---- an e4m3 cache for the tile kernels --------------------------------------------------------
 *
 * Its values as bf16, at the same places of `wide`, for the sequences that have tiles. A block has
 * one of gridDim.z shares of every so many'th page, as many as its sequence has tiles; a warp takes
 * sixteen keys of a page at a time, a lane sixteen values. */
static const int WIDEN_WARPS = 8;

/* Four e4m3 of one scale. */
__device__ __forceinline__ uint2 widen4(unsigned x, const scale_pair &scale)
{
    unsigned even = widen_lower(x, scale), odd = widen_upper(x, scale);
    return make_uint2(__byte_perm(even, odd, 0x5410), __byte_perm(even, odd, 0x7632));
}

__device__ __forceinline__ void widen16(uint2 *to, uint4 codes, float scale)
{
    const scale_pair s(scale, scale);
    to[0] = widen4(codes.x, s);
    to[1] = widen4(codes.y, s);
    to[2] = widen4(codes.z, s);
    to[3] = widen4(codes.w, s);
}

__global__ void __launch_bounds__(WIDEN_WARPS * 32)
    widen_kernel(kv_cache wide, kv_cache kv, step_arrays a, attn_shape shape, attn_plan plan)
{
    begin();
    const int seq = plan.tile_seq[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = a.q_start[seq], n_tokens = a.q_start[seq + 1] - first;
    const int n_tiles = (n_tokens + plan.tokens_per_tile - 1) / plan.tokens_per_tile;
    const int tile = (plan.tile_first[blockIdx.x] - first) / plan.tokens_per_tile;
    const int share = (tile * gridDim.z + blockIdx.z) * WIDEN_WARPS + warp;
    const int n_shares = n_tiles * gridDim.z * WIDEN_WARPS, pieces = shape.head_dim / 16;
    const int32_t *block = a.block + a.block_start[seq];
    for (int key = share * 16; key < a.kv_len[seq]; key += n_shares * 16) {
        int row = key_row(block, key, blockIdx.y, shape);
        if (row == NOWHERE)
            continue;
        const size_t at = (size_t)row * pieces;
        for (int i = lane; i < 16 * pieces; i += 32) {
            const uint4 k = ((const uint4 *)kv.k)[at + i], v = ((const uint4 *)kv.v)[at + i];
            widen16((uint2 *)wide.k + 4 * (at + i), k, kv.k_scale[row + i / pieces]);
            widen16((uint2 *)wide.v + 4 * (at + i), v, kv.v_scale[row + i / pieces]);
        }
    }
}

static void launch_widen(cudaStream_t s, const kv_cache &wide, const kv_cache &kv,
                         const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    const int enough = 8 * plan.n_sms, n = plan.n_tiles * shape.n_kv_heads;
    dim3 grid(plan.n_tiles, shape.n_kv_heads, n < enough ? (enough + n - 1) / n : 1);
    launch_after(s, widen_kernel, grid, dim3(WIDEN_WARPS * 32), 0, wide, kv, a, shape, plan);
}

template <int HD, int STAGES, class T>
static void launch_decode(cudaStream_t s, dim3 grid, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                          const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    const int bytes = sizeof(decode_shared<HD, STAGES, T>);
    cudaFuncSetAttribute(decode_kernel<HD, STAGES, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         bytes);
    launch_after(s, decode_kernel<HD, STAGES, T>, grid, dim3(DECODE_THREADS), bytes, out, qkv, kv,
                 a, shape, plan);
}

/* The rows that come alone. */
template <int HD, class T>
static void decode(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                   const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    typedef config<HD> C;
    const int group = shape.n_heads / shape.n_kv_heads;
    dim3 grid(plan.n_blocks, shape.n_kv_heads, (group + 15) / 16);
    const bool alone = (int)(grid.x * grid.y * grid.z) <= plan.n_sms; /* on a multiprocessor */
    if (alone && plan.hopper)
        launch_decode<HD, C::DECODE_STAGES_ALONE, T>(s, grid, out, qkv, kv, a, shape, plan);
    else
        launch_decode<HD, C::DECODE_STAGES, T>(s, grid, out, qkv, kv, a, shape, plan);
}

template <int HD>
static void tiles(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                  const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    const int rows = plan.tokens_per_tile * (shape.n_heads / shape.n_kv_heads);
    const int bytes = config<HD>::SHARED;
    dim3 grid(plan.n_tiles, shape.n_kv_heads, (rows + 63) / 64);
    cudaFuncSetAttribute(tile_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    launch_after(s, tile_kernel<HD>, grid, dim3(128), bytes, out, qkv, kv, a, shape, plan);
}

extern "C" int attn_tokens_per_tile(int n_heads, int n_kv_heads)
{
    int group = n_heads / n_kv_heads;
    return group >= 128 ? 1 : 128 / group;
}

extern "C" int attn_decode_blocks_per_sm(int head_dim)
{
    return head_dim > 128 ? 1 : 3; /* by shared memory */
}

static int padded_dim(int head_dim)
{
    return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

extern "C" size_t attn_partial_bytes(int n_heads, int head_dim)
{
    return (size_t)n_heads * (size_t)(padded_dim(head_dim) + PARTIAL_MORE) * sizeof(float);
}

extern "C" bool attn_supports(int head_dim, bool fp8)
{
    return head_dim % (fp8 ? 16 : 8) == 0 && head_dim > 0 && head_dim <= 256;
}

static void decode_any(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                       const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    const bool fp8 = kv.k_scale;
    switch (padded_dim(shape.head_dim)) { /* padded with zeros in shared memory */
    case 64:
        return fp8 ? decode<64, uint8_t>(s, out, qkv, kv, a, shape, plan)
                   : decode<64, bf16>(s, out, qkv, kv, a, shape, plan);
    case 96:
        if (!fp8)
            return decode<96, bf16>(s, out, qkv, kv, a, shape, plan);
        return decode<128, uint8_t>(s, out, qkv, kv, a, shape, plan);
    case 128:
        return fp8 ? decode<128, uint8_t>(s, out, qkv, kv, a, shape, plan)
                   : decode<128, bf16>(s, out, qkv, kv, a, shape, plan);
    default:
        return fp8 ? decode<256, uint8_t>(s, out, qkv, kv, a, shape, plan)
                   : decode<256, bf16>(s, out, qkv, kv, a, shape, plan);
    }
}

static void tiles_any(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                      const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    if (plan.hopper && launch_attention_hopper(s, out, qkv, &kv, &a, &shape, &plan))
        return;
    switch (padded_dim(shape.head_dim)) {
    case 64:
        return tiles<64>(s, out, qkv, kv, a, shape, plan);
    case 96:
        return tiles<96>(s, out, qkv, kv, a, shape, plan);
    case 128:
        return tiles<128>(s, out, qkv, kv, a, shape, plan);
    default:
        return tiles<256>(s, out, qkv, kv, a, shape, plan);
    }
}

extern "C" void launch_attention(cuda_stream s, void *out, const void *qkv,
                                 const struct kv_cache *kv, const struct step_arrays *a,
                                 const struct attn_shape *shape, const struct attn_plan *plan)
{
    bf16 *to = (bf16 *)out;
    const bf16 *from = (const bf16 *)qkv;
    kv_cache wide = *kv;
    if (plan->n_blocks)
        decode_any(s, to, from, *kv, *a, *shape, *plan);
    if (plan->n_tiles && kv->k_scale) {
        wide = plan->wide;
        launch_widen(s, wide, *kv, *a, *shape, *plan);
    }
    if (plan->n_tiles)
        tiles_any(s, to, from, wide, *a, *shape, *plan);
}
