/* common.cuh - what the kernels share: vector loads, warp sums, bf16 pairs.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_COMMON_CUH
#define SL_BACKEND_CUDA_COMMON_CUH

#include "backend/cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;

/* Eight bf16 as one 16-byte access. */
struct __align__(16) bf16x8
{
    __nv_bfloat162 v[4];
};

__device__ __forceinline__ float to_f(bf16 x)
{
    return __bfloat162float(x);
}

__device__ __forceinline__ bf16 to_bf(float x)
{
    return __float2bfloat16_rn(x);
}

/* Sum over a block of `THREADS`, the same tree for every row. `scratch` holds THREADS / 32 floats.
 */
template <int THREADS> __device__ __forceinline__ float block_sum(float v, float *scratch)
{
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    if (THREADS == 32)
        return v;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads(); /* scratch may still be read from an earlier sum */
    if (lane == 0)
        scratch[warp] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < THREADS / 32; w++)
        v += scratch[w];
    return v;
}

__device__ __forceinline__ float shifted(float v, const norm_args &k, int i)
{
    return k.b ? __fadd_rn(v, k.b[i]) : v;
}

__device__ __forceinline__ float normed(float v, float mean, float factor, const norm_args &k,
                                        int i)
{
    v = __fmul_rn(__fsub_rn(v, mean), factor);
    return shifted(k.w ? __fmul_rn(v, k.w[i]) : v, k, i);
}

static const int ROW_SHORT = 16, ROW_LONG = 20; /* up to 4,096 values, as most have; 5,120 */

/* One row of n values by 256 threads: thread t owns elements t, t + 256, ... Loads of up to HELD of
 * them are under way at once, weights even before the row is there; sums go over a thread's
 * elements in order, then in the tree of block_sum. */
template <int HELD> struct row_norm {
    float v[HELD], w[HELD];

    /* f(j, i): value j of this thread's is the row's i-th, or beyond its end. */
    template <class F> static __device__ __forceinline__ void each(F f)
    {
#pragma unroll
        for (int j = 0; j < HELD; j++)
            f(j, threadIdx.x + j * 256);
    }

    __device__ __forceinline__ void load_weights(const norm_args &k, int n)
    {
        if (n > HELD * 256)
            return;
        each([&](int j, int i) { w[j] = k.w && i < n ? k.w[i] : 1.f; });
    }

    /* h += add * scale, and that is the row; every load is under way before the first store.
     * false: it is too long. */
    __device__ __forceinline__ bool take_sum(float *h, const bf16 *add, float scale, int n)
    {
        bf16 more[HELD];
        if (n > HELD * 256)
            return false;
        each([&](int j, int i) {
            v[j] = i < n ? h[i] : 0.f;
            more[j] = i < n ? add[i] : to_bf(0.f);
        });
        each([&](int j, int i) {
            v[j] = __fmaf_rn(to_f(more[j]), scale, v[j]);
            if (i < n)
                h[i] = v[j];
        });
        return true;
    }

    /* get(i) reads the row, if it is not taken yet; put(i, value) takes the normed one. */
    template <class G, class P>
    __device__ __forceinline__ void run(G get, P put, int n, const norm_args &k, bool taken = false)
    {
        __shared__ float scratch[32];
        const bool held = n <= HELD * 256;
        float sum = 0, mean = 0;
        if (held && !taken)
            each([&](int j, int i) { v[j] = i < n ? get(i) : 0.f; });
        if (!k.rms) {
            if (held)
                each([&](int j, int) { sum = __fadd_rn(sum, v[j]); }); /* beyond the end: 0 */
            else
                for (int i = threadIdx.x; i < n; i += 256)
                    sum = __fadd_rn(sum, get(i));
            mean = block_sum<256>(sum, scratch) / n;
        }
        sum = 0;
        if (held)
            each([&](int j, int i) {
                float d = __fsub_rn(v[j], mean);
                sum = i < n ? __fmaf_rn(d, d, sum) : sum;
            });
        else
            for (int i = threadIdx.x; i < n; i += 256) {
                float d = __fsub_rn(get(i), mean);
                sum = __fmaf_rn(d, d, sum);
            }
        float factor = rsqrtf(block_sum<256>(sum, scratch) / n + k.eps);
        if (held)
            each([&](int j, int i) {
                if (i < n)
                    put(i,
                        shifted(__fmul_rn(__fmul_rn(__fsub_rn(v[j], mean), factor), w[j]), k, i));
            });
        else
            for (int i = threadIdx.x; i < n; i += 256)
                put(i, normed(get(i), mean, factor, k, i));
    }
};

/* Numbered as enum act_kind. */
__device__ __forceinline__ float activate(int kind, float x)
{
    switch (kind) {
    case 0:
        return __fdividef(x, 1 + __expf(-x));
    case 1:
        return 0.5f * x * (1 + erff(x * 0.70710678f));
    case 2:
        return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case 3:
        return x > 0 || isnan(x) ? x : 0;
    default:
        return x > 0 || isnan(x) ? x * x : 0;
    }
}

/* What a product of few rows that is not gated does with v, one output: W's row `row`, at `at` of y.
 * old() is the residual there. */
template <class R>
__device__ __forceinline__ void put_value(const narrow_args &a, int row, size_t at, float v, R old)
{
    if (a.out_f32) {
        v = (v + (a.bias ? a.bias[row] : 0.f)) * a.scale;
        ((float *)a.y)[at] = a.softcap != 0 ? a.softcap * tanhf(v / a.softcap) : v;
        return;
    }
    bf16 y = to_bf(v);
    if (a.bias)
        y = to_bf(to_f(y) + a.bias[row]);
    if (a.residual)
        a.residual[at] = __fmaf_rn(to_f(y), a.add_scale, old());
    else
        ((bf16 *)a.y)[at] = y;
}

/* Programmatic dependent launch: a kernel launched with launch_after() may start while the one
 * before it runs, as soon as all of that one's blocks have called launch_dependents(); it must
 * wait_for_dependencies() before it reads or writes anything but weights. */
__device__ __forceinline__ void launch_dependents()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_dependencies()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* For kernels with nothing to do in between. */
__device__ __forceinline__ void begin()
{
    wait_for_dependencies(); /* first: no more than one kernel is ahead, and takes up room */
    launch_dependents();
}

template <class... P, class... A>
static void launch_after(cudaStream_t s, void (*kernel)(P...), dim3 grid, dim3 block, int shared,
                         const A &...args)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = (size_t)shared;
    c.stream = s;
    c.attrs = &overlap;
    c.numAttrs = cuda_plain_launches ? 0 : 1;
    cudaLaunchKernelEx(&c, kernel, P(args)...);
}

__device__ __forceinline__ void cp_async16(void *shared, const void *global, bool valid)
{
    unsigned dst = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0; /* the rest is zero-filled */
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(global),
                 "r"(bytes));
}

__device__ __forceinline__ void cp_async4(void *shared, const void *global, bool valid)
{
    unsigned dst = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(global),
                 "r"(bytes));
}

__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;");
}

template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

__device__ __forceinline__ void ldmatrix4_at(unsigned (&r)[4], unsigned p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p));
}

__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], const void *shared)
{
    ldmatrix4_at(r, (unsigned)__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ void ldmatrix4_trans(unsigned (&r)[4], const void *shared)
{
    unsigned p = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p));
}

/* c[16x8] += a[16x16] b[16x8], bf16 with f32 accumulation. */
__device__ __forceinline__ void mma16816(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned pack_bf16(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<unsigned *>(&p);
}

#endif
