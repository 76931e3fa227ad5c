/* narrow.cu - products of a few rows: y[m, rows] = x[m, cols] W^T for m up to NARROW_MAX.
 *
 * Bound by the weights' bytes. A warp owns sixteen rows of W at a time and walks all of their
 * columns in steps of sixteen through one accumulator (weights are the mma's first operand), so
 * bits are those of every other product here (cuda.h). Its weights stream through a ring of its
 * own in shared memory, so warps never wait for each other; the ring begins to fill before the
 * kernel that made x has ended (programmatic dependent launch), which hides launch and ramp-up.
 * Blocks are as many as multiprocessors where the shape allows, each with as many sixteens.
 *
 * What comes before and after a product in a layer is done in it, with the same roundings as the
 * kernels of elementwise.cu: the norm of the residual that makes x, a bias, the addition to the
 * residual, the activation of a gated MLP (then a warp owns sixteen rows of gate and of up).
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/common.cuh"

static const int KS = 64;         /* columns in a stage */
static const int STRIDE = KS + 8; /* bf16 from one row of a stage to the next: no bank conflicts */
static const int THREADS = 256, WARPS = THREADS / 32;

/* A warp's stream of weights: sixteen rows (twice, if gated) by KS columns a stage, one group of
 * rows after the other. */
template <int STAGES, bool GATED> struct stream {
    static const int ROWS = GATED ? 32 : 16;
    bf16 *ring;
    const bf16 *w;
    int rows, cols, group, n_k, k, left; /* left: stages to issue */
    int step;                            /* between this warp's groups */
    int slot;

    __device__ __forceinline__ void issue()
    {
        if (left > 0) {
            const int lane = threadIdx.x % 32, half = GATED ? rows / 2 : 0;
            bf16 *to = ring + slot * ROWS * STRIDE;
#pragma unroll
            for (int i = lane; i < ROWS * (KS / 8); i += 32) {
                int r = i / (KS / 8), c = k * KS + i % (KS / 8) * 8;
                int row = group * 16 + r % 16;
                row = min(row, (GATED ? half : rows) - 1) + (r >= 16 ? half : 0);
                cp_async16(to + r * STRIDE + i % (KS / 8) * 8,
                           w + (size_t)row * cols + min(c, cols - 8), c < cols);
            }
            if (++k == n_k) {
                k = 0;
                group += step;
            }
            left--;
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        cp_async_commit();
    }
};

/* x as the mma's second operand: columns of eight rows of x. In shared memory, or read in place a
 * stage ahead. */
template <int NT, bool SHARED_X> struct operand {
    const bf16 *x; /* shared: [m][cols + 8]; else global */
    const int32_t *row_of;
    int m, cols, stride;
    unsigned b[SHARED_X ? 1 : KS / 16][NT][2];

    __device__ __forceinline__ void load(unsigned (&to)[NT][2], int c) const
    {
        const int lane = threadIdx.x % 32;
        c += lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < NT; t++) {
            int r = t * 8 + lane / 4;
            bool there = r < m && c < cols; /* cols % 8 == 0: a pair is there, or is not */
            if (!SHARED_X && row_of && there)
                r = row_of[r];
            const bf16 *p = x + (size_t)r * stride + c;
            to[t][0] = there ? *(const unsigned *)p : 0u;
            to[t][1] = there && c + 8 < cols ? *(const unsigned *)(p + 8) : 0u;
        }
    }

    __device__ __forceinline__ void prefetch(int k)
    {
        if (!SHARED_X)
#pragma unroll
            for (int s = 0; s < KS / 16; s++)
                load(b[SHARED_X ? 0 : s], k * KS + s * 16);
    }

    __device__ __forceinline__ void get(unsigned (&to)[NT][2], int k, int s) const
    {
        if (SHARED_X) {
            load(to, k * KS + s * 16);
        } else {
#pragma unroll
            for (int t = 0; t < NT; t++) {
                to[t][0] = b[SHARED_X ? 0 : s][t][0];
                to[t][1] = b[SHARED_X ? 0 : s][t][1];
            }
        }
    }
};

/* Row r of x, normed, to shared memory, and by the first block to where others may read it. */
__device__ void norm_row(bf16 *to, const narrow_args &a, int r)
{
    const float *h = a.h + (size_t)r * a.cols;
    float mean, factor;
    moments([&](int i) { return h[i]; }, a.cols, a.norm, &mean, &factor);
    for (int i = threadIdx.x; i < a.cols; i += THREADS) {
        bf16 v = to_bf(normed(h[i], mean, factor, a.norm, i));
        to[i] = v;
        if (blockIdx.x == 0)
            ((bf16 *)a.x_out)[(size_t)r * a.cols + i] = v;
    }
}

__device__ void copy_row(bf16 *to, const narrow_args &a, int r)
{
    const bf16 *from = (const bf16 *)a.x + (size_t)(a.row_of ? a.row_of[r] : r) * a.cols;
    for (int i = threadIdx.x * 8; i < a.cols; i += THREADS * 8)
        *(bf16x8 *)(to + i) = *(const bf16x8 *)(from + i);
}

/* Output `row` of token `tok`; `up` only if gated. */
template <bool GATED>
__device__ __forceinline__ void put(const narrow_args &a, int row, int tok, float v, float up)
{
    if (tok >= a.m || row >= (GATED ? a.rows / 2 : a.rows))
        return;
    if (GATED) {
        float g = to_f(to_bf(v)), u = to_f(to_bf(up));
        ((bf16 *)a.y)[(size_t)tok * (a.rows / 2) + row] = to_bf(activate(a.act, g) * u);
        return;
    }
    size_t at = (size_t)tok * a.rows + row;
    if (a.out_f32) {
        v = (v + (a.bias ? a.bias[row] : 0.f)) * a.scale;
        ((float *)a.y)[at] = a.softcap != 0 ? a.softcap * tanhf(v / a.softcap) : v;
        return;
    }
    bf16 y = to_bf(v);
    if (a.bias)
        y = to_bf(to_f(y) + a.bias[row]);
    if (a.residual)
        a.residual[at] = __fmaf_rn(to_f(y), a.add_scale, a.residual[at]);
    else
        ((bf16 *)a.y)[at] = y;
}

template <int STAGES, int NT, bool GATED, bool SHARED_X>
__global__ void __launch_bounds__(THREADS) narrow_kernel(narrow_args a)
{
    extern __shared__ __align__(16) unsigned char raw_shared[];
    typedef stream<STAGES, GATED> S;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int n_groups = ((GATED ? a.rows / 2 : a.rows) + 15) / 16;
    const int first = blockIdx.x * a.groups_per_block,
              end = min(first + a.groups_per_block, n_groups);
    const int used = min(WARPS, a.groups_per_block), mine = (end - first - warp + used - 1) / used;
    bf16 *xs = (bf16 *)raw_shared;
    const int x_bytes = SHARED_X ? a.m * (a.cols + 8) * (int)sizeof(bf16) : 0;
    S w;
    w.ring = (bf16 *)(raw_shared + x_bytes) + warp * STAGES * S::ROWS * STRIDE;
    w.w = (const bf16 *)a.w;
    w.rows = a.rows;
    w.cols = a.cols;
    w.group = first + warp;
    w.n_k = (a.cols + KS - 1) / KS;
    w.k = w.slot = 0;
    w.step = used;
    w.left = warp < used && mine > 0 ? mine * w.n_k : 0;
    const int n_stages = w.left;
    launch_dependents();
    if (n_stages)
        for (int i = 0; i < STAGES - 1; i++)
            w.issue();
    wait_for_dependencies();
    if (SHARED_X) {
        for (int r = 0; r < a.m; r++)
            if (a.h)
                norm_row(xs + r * (a.cols + 8), a, r);
            else
                copy_row(xs + r * (a.cols + 8), a, r);
        __syncthreads();
    }
    if (!n_stages)
        return;
    operand<NT, SHARED_X> x;
    x.x = SHARED_X ? xs : (const bf16 *)a.x;
    x.row_of = a.row_of;
    x.m = a.m;
    x.cols = a.cols;
    x.stride = SHARED_X ? a.cols + 8 : a.cols;
    x.prefetch(0);
    float c[NT][4], up[GATED ? NT : 1][4];
    int group = first + warp, k = 0, slot = 0;
    for (int i = 0; i < n_stages; i++) {
        if (k == 0)
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    c[t][e] = up[GATED ? t : 0][e] = 0;
        cp_async_wait<STAGES - 2>();
        __syncwarp();
        const bf16 *tile = w.ring + slot * S::ROWS * STRIDE + lane % 16 * STRIDE + lane / 16 * 8;
        unsigned f[KS / 16][4], fu[GATED ? KS / 16 : 1][4], b[KS / 16][NT][2];
#pragma unroll
        for (int s = 0; s < KS / 16; s++) {
            ldmatrix4(f[s], tile + s * 16);
            if (GATED)
                ldmatrix4(fu[GATED ? s : 0], tile + 16 * STRIDE + s * 16);
            x.get(b[s], k, s);
        }
        w.issue();
        if (++k == w.n_k)
            k = 0;
        x.prefetch(k);
#pragma unroll
        for (int s = 0; s < KS / 16; s++)
#pragma unroll
            for (int t = 0; t < NT; t++) {
                mma16816(c[t], f[s], b[s][t][0], b[s][t][1]);
                if (GATED)
                    mma16816(up[GATED ? t : 0], fu[GATED ? s : 0], b[s][t][0], b[s][t][1]);
            }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        if (k == 0) {
            int row = group * 16 + lane / 4;
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    put<GATED>(a, row + e / 2 * 8, t * 8 + lane % 4 * 2 + e % 2, c[t][e],
                               up[GATED ? t : 0][e]);
            group += used;
        }
    }
}

template <int STAGES, int NT, bool GATED, bool SHARED_X>
static void launch(cudaStream_t s, const narrow_args &a, int blocks, int x_bytes)
{
    int warps = min(WARPS, a.groups_per_block);
    int bytes = x_bytes + warps * STAGES * stream<STAGES, GATED>::ROWS * STRIDE * (int)sizeof(bf16);
    auto kernel = narrow_kernel<STAGES, NT, GATED, SHARED_X>;
    static int most; /* shared memory that this kernel may have by now */
    if (bytes > most) {
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        most = bytes;
    }
    launch_after(s, kernel, dim3(blocks), dim3(THREADS), bytes, a);
}

template <int NT, bool GATED, bool SHARED_X>
static void launch_stages(cudaStream_t s, const narrow_args &a, int blocks, int x_bytes)
{
    int warps = min(WARPS, a.groups_per_block) * (GATED ? 2 : 1);
    if (warps <= 2)
        launch<16, NT, GATED, SHARED_X>(s, a, blocks, x_bytes);
    else if (warps <= 4)
        launch<12, NT, GATED, SHARED_X>(s, a, blocks, x_bytes);
    else if (warps <= 8)
        launch<6, NT, GATED, SHARED_X>(s, a, blocks, x_bytes);
    else
        launch<4, NT, GATED, SHARED_X>(s, a, blocks, x_bytes);
}

template <int NT, bool GATED> static void launch_x(cudaStream_t s, const narrow_args &a, int blocks)
{
    int x_bytes = a.m * (a.cols + 8) * (int)sizeof(bf16);
    if (a.h || x_bytes <= 40 << 10)
        launch_stages<NT, GATED, true>(s, a, blocks, x_bytes);
    else
        launch_stages<NT, GATED, false>(s, a, blocks, 0);
}

extern "C" void launch_narrow(cuda_stream s, const struct narrow_args *args, int n_sms)
{
    narrow_args a = *args;
    int groups = ((a.gated ? a.rows / 2 : a.rows) + 15) / 16;
    int per = (groups + n_sms - 1) / n_sms;
    a.groups_per_block = per > WARPS ? WARPS : per;
    int blocks = (groups + a.groups_per_block - 1) / a.groups_per_block;
    if (a.m <= 8)
        a.gated ? launch_x<1, true>(s, a, blocks) : launch_x<1, false>(s, a, blocks);
    else
        a.gated ? launch_x<2, true>(s, a, blocks) : launch_x<2, false>(s, a, blocks);
}
