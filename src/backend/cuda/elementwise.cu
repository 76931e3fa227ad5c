/* elementwise.cu - everything that touches each value once: embedding, norms, activation, rope and
 * cache writes, logits' ends.
 *
 * All are bound by bytes. A row is one block (norms) or a slice of blocks; sums run in a fixed tree
 * over the threads of a block, so a row's bits do not depend on the others.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/fp8.cuh"

static const int THREADS = 256;

static int blocks_for(size_t n, int per_block)
{
    return (int)((n + per_block - 1) / per_block);
}

/* One block a row; a thread takes every 256th element. */
__global__ void embed_kernel(float *h, const void *table, const float *row_scale,
                             struct step_arrays a, int n, float scale, const bf16 *pos_table,
                             int pos_offset)
{
    begin();
    size_t r = blockIdx.x, p = (size_t)(a.pos[r] + pos_offset);
    int id = a.token[r];
    if (id < 0) /* bad logits end the sequence: what its next row computes is thrown away */
        id = max(a.table[(size_t)~id * TABLE_DEPTH + a.pos[r] % TABLE_DEPTH], 0);
    if (a.seen && threadIdx.x == 0 && a.seen_slot[r] >= 0)
        a.seen[a.seen_slot[r]] = id;
    size_t token = (size_t)id;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = 0;
        if (row_scale)
            v = code_value(((const unsigned char *)table)[token * n + i]) * row_scale[token];
        else if (table)
            v = to_f(((const bf16 *)table)[token * n + i]);
        v *= scale;
        if (pos_table)
            v += to_f(pos_table[p * n + i]);
        h[r * n + i] = v;
    }
}

extern "C" int cuda_find_kernels(void)
{
    cudaFuncAttributes a;
    return (int)cudaFuncGetAttributes(&a, embed_kernel);
}

extern "C" void launch_embed(cuda_stream s, float *h, const void *table, const float *row_scale,
                             const struct step_arrays *a, int n, float scale, const void *pos_table,
                             int pos_offset)
{
    launch_after(s, embed_kernel, dim3(a->n_tokens), dim3(THREADS), 0, h, table, row_scale, *a, n,
                 scale, (const bf16 *)pos_table, pos_offset);
}

/* One block a row. */
__global__ void embed_types_kernel(float *h, const bf16 *types, struct step_arrays a, int n)
{
    begin();
    const size_t r = blockIdx.x;
    const bf16 *row = types + (size_t)a.token_type[r] * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        h[r * n + i] += to_f(row[i]);
}

extern "C" void launch_embed_types(cuda_stream s, float *h, const void *types,
                                   const struct step_arrays *a, int n)
{
    launch_after(s, embed_types_kernel, dim3(a->n_tokens), dim3(THREADS), 0, h, (const bf16 *)types,
                 *a, n);
}

__global__ void residual_kernel(float *h, const bf16 *x, size_t n)
{
    begin();
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        h[i] = to_f(x[i]);
}

extern "C" void launch_residual(cuda_stream s, float *h, const void *x, size_t n)
{
    launch_after(s, residual_kernel, dim3(blocks_for(n, THREADS)), dim3(THREADS), 0, h,
                 (const bf16 *)x, n);
}

/* Four values a thread, out of one 64-bit word. */
__global__ void make_up_kernel(bf16 *out, size_t n, uint64_t key, float unit)
{
    begin();
    size_t step = (size_t)gridDim.x * blockDim.x * 4;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += step) {
        uint64_t z = key + i * 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        for (size_t j = i; j < i + 4 && j < n; j++, z >>= 16)
            out[j] = to_bf((float)(int16_t)z * unit);
    }
}

extern "C" void launch_make_up(cuda_stream s, void *out, size_t n, uint64_t key, float width)
{
    launch_after(s, make_up_kernel, dim3(132 * 16), dim3(THREADS), 0, (bf16 *)out, n, key,
                 width / 32768);
}

/* A row of bf16 in shared memory goes to x and, as e4m3, to q. top: largest of a thread's own. */
__device__ void code_row(bf16 *x, unsigned char *q, float *scale, const bf16 *row, unsigned top,
                         int n)
{
    const float s = code_scale(block_top(top)), inv = __frcp_rn(s); /* a barrier: row is whole */
    if (threadIdx.x == 0)
        *scale = s;
    for (int i = threadIdx.x * 8; i < n; i += 256 * 8) {
        bf16x8 v = *(const bf16x8 *)(row + i);
        *(bf16x8 *)(x + i) = v;
        *(uint2 *)(q + i) = code8(v, inv);
    }
}

/* One block a row: h += add * scale, then x = norm(h), or h itself. POST: add is normed before;
 * CODED: x comes as e4m3 too, by way of shared memory. */
template <bool POST, bool CODED>
__global__ void __launch_bounds__(256)
    add_norm_kernel(bf16 *x, float *h, const bf16 *add, float add_scale, norm_args post,
                    norm_args k, bool plain, int n, struct coded coded)
{
    extern __shared__ __align__(16) bf16 whole[];
    row_norm<ROW_LONG> row, before;
    row.load_weights(k, n);
    if (POST)
        before.load_weights(post, n);
    begin();
    h += (size_t)blockIdx.x * n;
    bool taken = false;
    if (add) {
        add += (size_t)blockIdx.x * n;
        taken = !POST && x && !plain && row.take_sum(h, add, add_scale, n);
    }
    if (POST)
        before.run([&](int i) { return to_f(add[i]); },
                   [&](int i, float v) { h[i] = __fmaf_rn(to_f(to_bf(v)), add_scale, h[i]); }, n,
                   post);
    else if (add && !taken)
#pragma unroll 8
        for (int i = threadIdx.x; i < n; i += 256)
            h[i] = __fmaf_rn(to_f(add[i]), add_scale, h[i]);
    if (!x)
        return;
    x += (size_t)blockIdx.x * n;
    unsigned top = 0;
    auto put = [&](int i, float v) {
        bf16 b = to_bf(v);
        (CODED ? whole : x)[i] = b;
        top = max(top, (unsigned)__bfloat16_as_ushort(b) & 0x7fffu);
    };
    if (plain)
        for (int i = threadIdx.x; i < n; i += 256)
            put(i, h[i]);
    else
        row.run([&](int i) { return h[i]; }, put, n, k, taken); /* own elements: no barrier */
    if (CODED)
        code_row(x, (unsigned char *)coded.q + (size_t)blockIdx.x * n, coded.scale + blockIdx.x,
                 whole, top, n);
}

extern "C" void launch_add_norm(cuda_stream s, void *x, float *h, const void *add, float add_scale,
                                const struct norm_args *post, const struct norm_args *norm,
                                int rows, int n, const struct coded *coded)
{
    norm_args none = {};
    struct coded nowhere = {};
    auto kernel = post ? (coded ? add_norm_kernel<true, true> : add_norm_kernel<true, false>)
                       : (coded ? add_norm_kernel<false, true> : add_norm_kernel<false, false>);
    launch_after(s, kernel, dim3(rows), dim3(256), coded ? n * (int)sizeof(bf16) : 0, (bf16 *)x, h,
                 (const bf16 *)add, add_scale, post ? *post : none, norm ? *norm : none,
                 norm == NULL, n, coded ? *coded : nowhere);
}

/* One block a row; rows are x_stride values apart in x and in y. */
__global__ void __launch_bounds__(256)
    norm_kernel(bf16 *y, const bf16 *x, norm_args k, int n, size_t stride)
{
    row_norm<ROW_LONG> row;
    row.load_weights(k, n);
    begin();
    x += blockIdx.x * stride;
    y += blockIdx.x * stride;
    row.run([&](int i) { return to_f(x[i]); }, [&](int i, float v) { y[i] = to_bf(v); }, n, k);
}

extern "C" void launch_norm(cuda_stream s, void *y, const void *x, const struct norm_args *norm,
                            int rows, int n, size_t stride)
{
    launch_after(s, norm_kernel, dim3(rows), dim3(256), 0, (bf16 *)y, (const bf16 *)x, *norm, n,
                 stride);
}

/* Eight values a thread; n % 8 == 0. */
__global__ void act_kernel(bf16 *y, const bf16 *x, int kind, bool gated, size_t total, int n)
{
    begin();
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= total)
        return;
    size_t r = at / n, i = at % n, from = r * (gated ? 2 * (size_t)n : n) + i;
    bf16x8 g = *(const bf16x8 *)(x + from), u = g, out;
    if (gated)
        u = *(const bf16x8 *)(x + from + n);
    for (int j = 0; j < 4; j++) {
        float2 a = __bfloat1622float2(g.v[j]), b = __bfloat1622float2(u.v[j]);
        a.x = activate(kind, a.x) * (gated ? b.x : 1.f);
        a.y = activate(kind, a.y) * (gated ? b.y : 1.f);
        out.v[j] = __floats2bfloat162_rn(a.x, a.y);
    }
    *(bf16x8 *)(y + at) = out;
}

extern "C" void launch_act(cuda_stream s, void *y, const void *x, int kind, bool gated, int rows,
                           int n)
{
    size_t total = (size_t)rows * n;
    launch_after(s, act_kernel, dim3(blocks_for(total / 8, THREADS)), dim3(THREADS), 0, (bf16 *)y,
                 (const bf16 *)x, kind, gated, total, n);
}

__global__ void add_bias_kernel(bf16 *y, const float *bias, size_t total, int n)
{
    begin();
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < total)
        y[at] = to_bf(to_f(y[at]) + bias[at % n]);
}

extern "C" void launch_add_bias(cuda_stream s, void *y, const float *bias, int rows, int n)
{
    size_t total = (size_t)rows * n;
    launch_after(s, add_bias_kernel, dim3(blocks_for(total, THREADS)), dim3(THREADS), 0, (bf16 *)y,
                 bias, total, n);
}

__global__ void gather_rows_kernel(bf16 *out, const bf16 *x, const int32_t *row, int width)
{
    begin();
    const bf16 *from = x + (size_t)row[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[(size_t)blockIdx.x * width + i] = from[i];
}

extern "C" void launch_gather_rows(cuda_stream s, void *out, const void *x, const int32_t *row,
                                   int n, int width)
{
    launch_after(s, gather_rows_kernel, dim3(n), dim3(THREADS), 0, (bf16 *)out, (const bf16 *)x,
                 row, width);
}

__global__ void finish_logits_kernel(float *logits, const float *bias, size_t total, int n,
                                     float scale, float softcap)
{
    begin();
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total)
        return;
    float v = (logits[at] + (bias ? bias[at % n] : 0.f)) * scale;
    logits[at] = softcap != 0 ? softcap * tanhf(v / softcap) : v;
}

extern "C" void launch_finish_logits(cuda_stream s, float *logits, const float *bias, int rows,
                                     int n, float scale, float softcap)
{
    size_t total = (size_t)rows * n;
    launch_after(s, finish_logits_kernel, dim3(blocks_for(total, THREADS)), dim3(THREADS), 0,
                 logits, bias, total, n, scale, softcap);
}

/* Copies happen in order, for one may read what another wrote: every thread owns the same 16 bytes
 * of each KV block's part blockIdx.y and goes through the list. */
__global__ void copy_blocks_kernel(const struct kv_part *parts, const int32_t *copy, int n_copies)
{
    begin();
    const struct kv_part part = parts[blockIdx.y];
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 16;
    if (i >= part.bytes)
        return;
    for (int c = 0; c < n_copies; c++) {
        const int32_t *of = copy + c * KV_COPY_WORDS;
        const char *from = of[0] == KV_FROM_HOST ? part.host : part.device;
        char *to = of[0] == KV_TO_HOST ? part.host : part.device;
        *(uint4 *)(to + (size_t)of[2] * part.bytes + i) =
            *(const uint4 *)(from + (size_t)of[1] * part.bytes + i);
    }
}

extern "C" void launch_copy_blocks(cuda_stream s, const struct kv_part *parts, int n_parts,
                                   size_t most_bytes, const int32_t *copies, int n_copies)
{
    launch_after(s, copy_blocks_kernel, dim3(blocks_for(most_bytes / 16, THREADS), n_parts),
                 dim3(THREADS), 0, parts, copies, n_copies);
}

/* One warp: a head's n values, n % 4 == 0, as e4m3. */
__device__ void code_head(unsigned char *to, float *scale, const float *x, int n)
{
    const int lane = threadIdx.x % 32;
    unsigned top = 0;
    for (int i = lane; i < n; i += 32)
        top = max(top, __float_as_uint(x[i]) & 0x7fffffffu);
    const float s = code_scale(__uint_as_float(__reduce_max_sync(0xffffffffu, top)));
    const float inv = __frcp_rn(s);
    if (lane == 0)
        *scale = s;
    for (int i = lane * 4; i < n; i += 128)
        *(unsigned *)(to + i) = code2(__fmul_rn(x[i], inv), __fmul_rn(x[i + 1], inv)) |
                                code2(__fmul_rn(x[i + 2], inv), __fmul_rn(x[i + 3], inv)) << 16;
}

static const int ROPE_WARPS = 8;
static const int ROPE_PARTS_BELOW = 512; /* tokens: with fewer, more blocks each */

/* A head of up to 256 values, four neighbours of every 128 a lane. */
struct head_values {
    uint2 v[2];

    __device__ __forceinline__ void load(const bf16 *from, int n)
    {
#pragma unroll
        for (int p = 0; p < 2; p++)
            if (p * 128 + threadIdx.x % 32 * 4 < n)
                v[p] = *(const uint2 *)(from + p * 128 + threadIdx.x % 32 * 4);
    }

    __device__ __forceinline__ void widen(float *to, int n) const
    {
#pragma unroll
        for (int p = 0; p < 2; p++) {
            float2 lo = __bfloat1622float2(*(const __nv_bfloat162 *)&v[p].x);
            float2 hi = __bfloat1622float2(*(const __nv_bfloat162 *)&v[p].y);
            if (p * 128 + threadIdx.x % 32 * 4 < n)
                *(float4 *)(to + p * 128 + threadIdx.x % 32 * 4) =
                    make_float4(lo.x, lo.y, hi.x, hi.y);
        }
    }
};

/* One warp: n values to bf16. */
__device__ __forceinline__ void write_head(bf16 *to, const float *x, int n)
{
    for (int i = threadIdx.x % 32 * 4; i < n; i += 128) {
        float4 v = *(const float4 *)(x + i);
        *(uint2 *)(to + i) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
}

/* One block some heads of a token, a warp one at a time: heads are q, then k, then v. The token's
 * angles are made once, in f32 as transformers does. A head lies in shared memory, where the
 * rotation pairs its values; the next one is on its way meanwhile. */
__global__ void qkv_rope_cache_kernel(bf16 *qkv, struct kv_cache kv, struct step_arrays a,
                                      attn_shape shape, rope_args rope, norm_args q_norm,
                                      bool has_q_norm, norm_args k_norm, bool has_k_norm)
{
    begin();
    extern __shared__ __align__(16) float heads_shared[];
    const int n = shape.head_dim, n_total = shape.n_heads + 2 * shape.n_kv_heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, step = gridDim.y * ROPE_WARPS;
    const int half = rope.inv_freq ? rope.rot_dims / 2 : 0;
    const size_t r = blockIdx.x;
    const int32_t slot = a.slot[r];
    float *x = heads_shared + warp * n;
    float2 *turn = (float2 *)(heads_shared + ROPE_WARPS * n);
    bf16 *row = qkv + r * n_total * n;
    int head = blockIdx.y * ROPE_WARPS + warp;
    head_values next;
    if (head < n_total)
        next.load(row + head * n, n);
    for (int i = threadIdx.x; i < half; i += ROPE_WARPS * 32) {
        float2 t;
        sincosf((float)a.pos[r] * rope.inv_freq[i], &t.y, &t.x);
        turn[i] = make_float2(t.x * rope.mscale, t.y * rope.mscale);
    }
    __syncthreads();
    for (; head < n_total; head += step) {
        const bool is_q = head < shape.n_heads, is_v = head >= shape.n_heads + shape.n_kv_heads;
        __syncwarp();
        next.widen(x, n);
        if (head + step < n_total)
            next.load(row + (head + step) * n, n);
        __syncwarp();
        if (!is_v && (is_q ? has_q_norm : has_k_norm)) {
            norm_args k = is_q ? q_norm : k_norm;
            k.w += (is_q ? head : head - shape.n_heads) * k.head_stride;
            float mean = 0, sum = 0;
            for (int i = lane; i < n && !k.rms; i += 32)
                sum += x[i];
            if (!k.rms)
                mean = block_sum<32>(sum, NULL) / n;
            sum = 0;
            for (int i = lane; i < n; i += 32)
                sum += (x[i] - mean) * (x[i] - mean);
            float factor = rsqrtf(block_sum<32>(sum, NULL) / n + k.eps);
            for (int i = lane; i < n; i += 32)
                x[i] = normed(x[i], mean, factor, k, i);
            __syncwarp();
        }
        for (int i = lane; i < half && !is_v; i += 32) {
            int j = rope.interleaved ? 2 * i : i, l = rope.interleaved ? 2 * i + 1 : i + half;
            float p = x[j], q = x[l];
            x[j] = p * turn[i].x - q * turn[i].y;
            x[l] = q * turn[i].x + p * turn[i].y;
        }
        __syncwarp();
        if (is_q) {
            write_head(row + head * n, x, n);
            continue;
        }
        if (slot < 0)
            continue;
        const int kv_head = (head - shape.n_heads) % shape.n_kv_heads;
        size_t block = slot / shape.block_size, offset = slot % shape.block_size;
        size_t at = (block * shape.n_kv_heads + kv_head) * shape.block_size + offset;
        if (kv.k_scale)
            code_head((unsigned char *)(is_v ? kv.v : kv.k) + at * n,
                      (is_v ? kv.v_scale : kv.k_scale) + at, x, n);
        else
            write_head((bf16 *)(is_v ? kv.v : kv.k) + at * n, x, n);
    }
}

extern "C" void launch_qkv_rope_cache(cuda_stream s, void *qkv, const struct kv_cache *kv,
                                      const struct step_arrays *a, const struct attn_shape *shape,
                                      const struct rope_args *rope, const struct norm_args *q_norm,
                                      const struct norm_args *k_norm)
{
    const int heads = shape->n_heads + 2 * shape->n_kv_heads, n = shape->head_dim;
    const int parts = a->n_tokens < ROPE_PARTS_BELOW ? blocks_for(heads, ROPE_WARPS) : 1;
    norm_args none = {};
    launch_after(s, qkv_rope_cache_kernel, dim3(a->n_tokens, parts), dim3(ROPE_WARPS * 32),
                 (ROPE_WARPS * n + rope->rot_dims) * (int)sizeof(float), (bf16 *)qkv, *kv, *a,
                 *shape, *rope, q_norm ? *q_norm : none, q_norm != NULL, k_norm ? *k_norm : none,
                 k_norm != NULL);
}
