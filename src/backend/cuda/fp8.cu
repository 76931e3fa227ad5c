/* fp8.cu - rows become e4m3, and products of e4m3 rows on what has no wgmma.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/fp8.cuh"

#include <cuda_fp16.h>

static const int THREADS = 256;

/* One block a row. */
__global__ void __launch_bounds__(THREADS)
    quantize_kernel(unsigned char *q, float *scale, const bf16 *x, int n)
{
    begin();
    q += (size_t)blockIdx.x * n;
    const float s = codes_of(x + (size_t)blockIdx.x * n, n,
                             [&](int i, uint2 codes) { *(uint2 *)(q + i) = codes; });
    if (threadIdx.x == 0)
        scale[blockIdx.x] = s;
}

extern "C" void launch_quantize(cuda_stream s, const struct coded *out, const void *x, int rows,
                                int n)
{
    launch_after(s, quantize_kernel, dim3(rows), dim3(THREADS), 0, (unsigned char *)out->q,
                 out->scale, (const bf16 *)x, n);
}

/* ---- products -------------------------------------------------------------------------------- */

__device__ __forceinline__ void mma16816_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Sixteen codes as halves, which hold them exactly: two a word. */
__device__ __forceinline__ void widen16(unsigned (&h)[8], const unsigned char *from, bool there)
{
    uint4 c = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
    const unsigned word[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        __half2_raw r =
            __nv_cvt_fp8x2_to_halfraw2((word[i / 2] >> i % 2 * 16) & 0xffffu, __NV_E4M3);
        h[i] = (unsigned)r.x | (unsigned)r.y << 16;
    }
}

/* A warp makes sixteen outputs of NT eights of rows. K goes in steps of 64, of which each lane of
 * a quad loads sixteen codes in one piece: an mma's sixteen columns are four from each lane, the
 * same for weights and x, so sums only go in another order, one for every number of rows. */
template <int NT>
__global__ void __launch_bounds__(128)
    fp8_product_kernel(void *y, bool out_f32, const unsigned char *w, const float *w_scale,
                       int rows, int cols, const unsigned char *x, const float *x_scale, int m)
{
    begin();
    const int lane = threadIdx.x % 32, g = lane / 4;
    const int row = (blockIdx.x * 4 + threadIdx.x / 32) * 16, tok = blockIdx.y * NT * 8;
    if (row >= rows)
        return;
    float c[NT][4] = {};
    for (int k = lane % 4 * 16; k - lane % 4 * 16 < cols; k += 64) {
        unsigned a[2][8], b[8];
        bool in = k < cols;
#pragma unroll
        for (int h = 0; h < 2; h++)
            widen16(a[h], w + (size_t)(row + g + 8 * h) * cols + k, in && row + g + 8 * h < rows);
#pragma unroll
        for (int t = 0; t < NT; t++) {
            int r = tok + t * 8 + g;
            widen16(b, x + (size_t)r * cols + k, in && r < m);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const unsigned step[4] = {a[0][2 * i], a[1][2 * i], a[0][2 * i + 1],
                                          a[1][2 * i + 1]};
                mma16816_f16(c[t], step, b[2 * i], b[2 * i + 1]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < NT; t++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int o = row + g + e / 2 * 8, r = tok + t * 8 + lane % 4 * 2 + e % 2;
            if (o >= rows || r >= m)
                continue;
            float v = __fmul_rn(__fmul_rn(c[t][e], x_scale[r]), w_scale[o]);
            size_t at = (size_t)r * rows + o;
            if (out_f32)
                ((float *)y)[at] = v;
            else
                ((bf16 *)y)[at] = to_bf(v);
        }
}

extern "C" void launch_fp8_product(cuda_stream s, void *y, bool out_f32, const void *w,
                                   const float *w_scale, int rows, int cols, const struct coded *x,
                                   int m)
{
    const int nt = m <= 8 ? 1 : 4;
    dim3 grid((rows + 63) / 64, (m + nt * 8 - 1) / (nt * 8));
    launch_after(s, nt == 1 ? fp8_product_kernel<1> : fp8_product_kernel<4>, grid, dim3(128), 0, y,
                 out_f32, (const unsigned char *)w, w_scale, rows, cols,
                 (const unsigned char *)x->q, x->scale, m);
}
