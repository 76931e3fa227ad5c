/* fp8_narrow.cu - FP8 products of a row or two of x, which become e4m3 here: y[m, rows] = x W^T.
 *
 * Bound by the bytes of W, of which every multiprocessor has an equal share: a block owns N
 * outputs, and one warpgroup walks K in order through one accumulator of the instruction that all
 * FP8 products take, so bits are theirs (wide.cu). Of the 64 rows of its first operand only m are
 * there; the others are read from what lies behind them, and their sums are not used.
 *
 * The ring begins to fill before the kernel that made x has ended. Then every block makes the same
 * codes of x for itself: from the residual and its norm, or from bf16. W's bytes are on their way
 * meanwhile; a kernel of its own would take that time from them.
 *
 * Sums go to shared memory, so that a thread finishes one output, of a gated product with its half
 * of gate and of up.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/fp8.cuh"
#include "backend/cuda/wgmma.cuh"

static const int RING_MAX = 32, THREADS = 256, ROWS_MAX = FP8_NARROW_MAX;

/* N: outputs of a block, of a gated product half of gate and half of up. */
template <int N_> struct few_config {
    static const int N = N_, BOXES = N <= 64 ? 2 : 1, KS = BOXES * ROW;
    static const int BOX_BYTES = N * ROW, STAGE = BOXES * BOX_BYTES;
};

struct few_shared {
    uint64_t full[RING_MAX], empty[RING_MAX];
    float x_scale[ROWS_MAX], sum[ROWS_MAX][256];
};

template <class C>
__device__ __forceinline__ void ask(const narrow_args &a, const CUtensorMap *map,
                                    unsigned char *ring, few_shared &sh, int slot, int k)
{
    unsigned char *to = ring + slot * C::STAGE;
    barrier_expect(sh.full + slot, C::STAGE);
#pragma unroll
    for (int i = 0; i < C::BOXES; i++, to += C::BOX_BYTES) {
        int col = k * C::KS + i * ROW;
        if (a.gated) {
            int row = blockIdx.x * C::N / 2;
            box_copy(to, map, col, row, sh.full + slot);
            box_copy(to + C::BOX_BYTES / 2, map, col, a.rows / 2 + row, sh.full + slot);
        } else {
            box_copy(to, map, col, blockIdx.x * C::N, sh.full + slot);
        }
    }
}

/* Eight codes from column i on of a row: sixteens of the m rows in turn. */
__device__ __forceinline__ void put8(unsigned char *row, int i, int m, uint2 codes)
{
    *(uint2 *)(row + i / 16 * 16 * m + i % 16) = codes;
}

/* Row r of the residual, normed, to `whole`, and by the first block to where others may read it;
 * then as codes. */
__device__ float code_normed(unsigned char *q, bf16 *whole, const narrow_args &a,
                             row_norm<ROW_SHORT> &row, int r)
{
    const float *h = a.h + (size_t)r * a.cols;
    bf16 *out = (bf16 *)a.x_out + (size_t)r * a.cols;
    unsigned top = 0;
    row.run([&](int i) { return h[i]; },
            [&](int i, float v) {
                bf16 b = to_bf(v);
                whole[i] = b;
                top = max(top, (unsigned)__bfloat16_as_ushort(b) & 0x7fffu);
                if (blockIdx.x == 0)
                    out[i] = b;
            },
            a.cols, a.norm);
    const float s = code_scale(block_top(top)), inv = __frcp_rn(s);
    for (int i = threadIdx.x * 8; i < a.cols; i += THREADS * 8)
        put8(q, i, a.m, code8(*(const bf16x8 *)(whole + i), inv));
    return s;
}

/* One thread asks for what the ring did not hold at first. */
template <class C>
__device__ void ask_rest(const narrow_args &a, const CUtensorMap *map, unsigned char *ring,
                         few_shared &sh, int n_stages)
{
    for (int k = a.stages, slot = 0, phase = 0; k < n_stages; k++) {
        barrier_wait(sh.empty + slot, phase);
        ask<C>(a, map, ring, sh, slot, k);
        if (++slot == a.stages) {
            slot = 0;
            phase ^= 1;
        }
    }
}

/* A warpgroup: all columns; the sums go to shared memory. */
template <class C>
__device__ __forceinline__ void multiply(const narrow_args &a, unsigned ring, unsigned x,
                                         few_shared &sh, int n_stages)
{
    const int lane = threadIdx.x % 32, r = lane / 4, pitch = a.m * 16;
    float d[C::N / 2];
    int slot = 0, phase = 0, before = 0;
#pragma unroll 1
    for (int k = 0; k < n_stages; k++) {
        barrier_wait(sh.full + slot, phase);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < C::BOXES; i++) {
            uint64_t wd = box_descriptor(ring + slot * C::STAGE + i * C::BOX_BYTES);
            uint64_t xd = few_descriptor(x + (k * C::KS + i * ROW) * a.m, pitch);
#pragma unroll
            for (int s = 0; s < 4; s++)
                wgmma<C::N, true>::run(d, xd + 2 * a.m * s, wd + 2 * s, k || i || s);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (k && lane == 0)
            barrier_arrive(sh.empty + before);
        before = slot;
        if (++slot == a.stages) {
            slot = 0;
            phase ^= 1;
        }
    }
    wgmma_wait<0>();
    if (threadIdx.x < 32 && r < a.m)
#pragma unroll
        for (int j = 0; j < C::N / 8; j++)
            *(float2 *)(sh.sum[r] + j * 8 + lane % 4 * 2) = make_float2(d[4 * j], d[4 * j + 1]);
}

/* What a thread finishes: its output of every row. */
struct few_output {
    int col, n;          /* of n */
    float scale[2];      /* of W's row, and of up's */
    float old[ROWS_MAX]; /* the residual */

    __device__ __forceinline__ void begin(const narrow_args &a, int of_block)
    {
        n = a.gated ? a.rows / 2 : a.rows;
        col = threadIdx.x < of_block ? (int)blockIdx.x * of_block + (int)threadIdx.x : n;
        scale[0] = col < n ? a.w_scale[col] : 0.f;
        scale[1] = col < n && a.gated ? a.w_scale[n + col] : 0.f;
    }

    __device__ __forceinline__ void load_residual(const narrow_args &a)
    {
#pragma unroll
        for (int r = 0; r < ROWS_MAX; r++)
            old[r] = a.residual && col < n && r < a.m ? a.residual[(size_t)r * n + col] : 0.f;
    }

    __device__ __forceinline__ void put(const narrow_args &a, const few_shared &sh, int half,
                                        int r) const
    {
        const size_t at = (size_t)r * n + col;
        float v = __fmul_rn(__fmul_rn(sh.sum[r][threadIdx.x], sh.x_scale[r]), scale[0]);
        if (a.gated) {
            float u = __fmul_rn(__fmul_rn(sh.sum[r][half + threadIdx.x], sh.x_scale[r]), scale[1]);
            ((bf16 *)a.y)[at] = to_bf(activate(a.act, to_f(to_bf(v))) * to_f(to_bf(u)));
            return;
        }
        put_value(a, col, at, v, [&] { return old[r]; });
    }
};

template <class C>
__global__ void __launch_bounds__(THREADS, 1)
    fp8_narrow_kernel(narrow_args a, const __grid_constant__ CUtensorMap map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char raw_shared[];
    __shared__ few_shared sh;
    const int n_stages = (a.cols + C::KS - 1) / C::KS, padded = n_stages * C::KS;
    unsigned char *ring = raw_shared + (1024 - shared_address(raw_shared) % 1024) % 1024;
    unsigned char *x = ring + a.stages * C::STAGE;
    bf16 *whole = (bf16 *)(x + a.m * padded);
    launch_dependents();
    const bool asks = threadIdx.x == THREADS / 2;
    if (asks) {
        for (int i = 0; i < a.stages; i++) {
            barrier_init(sh.full + i, 1);
            barrier_init(sh.empty + i, 4);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        for (int k = 0; k < a.stages && k < n_stages; k++)
            ask<C>(a, &map, ring, sh, k, k);
    }
    few_output out;
    row_norm<ROW_SHORT> row;
    out.begin(a, a.gated ? C::N / 2 : C::N);
    if (a.h)
        row.load_weights(a.norm, a.cols);
    wait_for_dependencies();
    out.load_residual(a);
    for (int r = 0; r < a.m; r++) {
        unsigned char *q = x + r * 16;
        float s = a.h ? code_normed(q, whole, a, row, r)
                      : codes_of((const bf16 *)a.x + (size_t)r * a.cols, a.cols,
                                 [&](int i, uint2 codes) { put8(q, i, a.m, codes); });
        for (int i = a.cols + threadIdx.x * 8; i < padded; i += THREADS * 8)
            put8(q, i, a.m, make_uint2(0, 0));
        if (threadIdx.x == 0)
            sh.x_scale[r] = s;
        __syncthreads();
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* so that the products see x */
    __syncthreads();
    if (threadIdx.x < 128)
        multiply<C>(a, shared_address(ring), shared_address(x), sh, n_stages);
    else if (asks)
        ask_rest<C>(a, &map, ring, sh, n_stages);
    __syncthreads();
    if (out.col < out.n)
#pragma unroll
        for (int r = 0; r < ROWS_MAX; r++)
            if (r < a.m)
                out.put(a, sh, C::N / 2, r);
#endif
}

/* One block a multiprocessor, which leaves some shared memory to attention's. Two of them, each
 * with half of it, are slower: where the next product's blocks gather in pairs others idle. */
template <class C> static bool launch(cudaStream_t s, narrow_args a, int blocks)
{
    const int most = 150 << 10, n_stages = (a.cols + C::KS - 1) / C::KS;
    const int rest = 2048 + a.m * n_stages * C::KS + (a.h ? a.cols * (int)sizeof(bf16) : 0);
    int stages = (most - rest) / C::STAGE;
    a.stages = stages < 2 ? 2 : stages > RING_MAX ? RING_MAX : stages;
    const int bytes = rest + a.stages * C::STAGE;
    static int allowed; /* shared memory that this kernel may have by now */
    if (bytes > allowed) {
        cudaFuncSetAttribute(fp8_narrow_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes);
        allowed = bytes;
    }
    CUtensorMap map;
    if (!rows_map(&map, a.w, a.rows, a.cols, true, a.gated ? C::N / 2 : C::N))
        return false;
    launch_after(s, fp8_narrow_kernel<C>, dim3(blocks), dim3(THREADS), bytes, a, map);
    return true;
}

struct few_kernel {
    int n;
    bool (*launch)(cudaStream_t, narrow_args, int);
};

template <int N> static constexpr few_kernel few_of()
{
    return {N, launch<few_config<N>>};
}

static const few_kernel few_list[] = {few_of<256>(), few_of<224>(), few_of<192>(),
                                      few_of<128>(), few_of<96>(),  few_of<64>(),
                                      few_of<48>(),  few_of<32>(),  few_of<16>()};

/* The N that gives the busiest multiprocessor the fewest rows of W. */
extern "C" bool launch_fp8_narrow(cuda_stream s, const struct narrow_args *a, int n_sms)
{
    const few_kernel *best = NULL;
    int least = 0, best_blocks = 0;
    for (const few_kernel &k : few_list) {
        int blocks = (a->rows + k.n - 1) / k.n, rows = (blocks + n_sms - 1) / n_sms * k.n;
        if (best && rows >= least)
            continue;
        best = &k;
        least = rows;
        best_blocks = blocks;
    }
    return best->launch(s, *a, best_blocks);
}
