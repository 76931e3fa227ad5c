/* fp8.cuh - rows and heads become e4m3, with the roundings of base/fp8.h.
 *
 * Largest magnitudes are compared as bits, which puts NaN above everything.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_FP8_CUH
#define SL_BACKEND_CUDA_FP8_CUH

#include "backend/cuda/common.cuh"

#include <cuda_fp8.h>

__device__ __forceinline__ float code_scale(float top)
{
    return top <= 3.402823466e38f ? fmaxf(__fdiv_rn(top, 448.f), 1.175494351e-38f)
                                  : __uint_as_float(0x7fc00000u);
}

/* Two values, already times the inverse of their scale. */
__device__ __forceinline__ unsigned code2(float lo, float hi)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ float code_value(unsigned char code)
{
    return __half2float(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3));
}

/* Eight bf16 as codes. */
__device__ __forceinline__ uint2 code8(const bf16x8 &v, float inv)
{
    unsigned c[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(v.v[i]);
        c[i] = code2(__fmul_rn(f.x, inv), __fmul_rn(f.y, inv));
    }
    return make_uint2(c[0] | c[1] << 16, c[2] | c[3] << 16);
}

/* The larger of `top` and eight magnitudes, as bits of a bf16 in both halves. */
__device__ __forceinline__ unsigned top8(unsigned top, const bf16x8 &v)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        top = __vmaxu2(top, *(const unsigned *)&v.v[i] & 0x7fff7fffu);
    return top;
}

/* The largest of what 256 threads' `top` hold, bits of a bf16 in both halves, as a float. */
__device__ __forceinline__ float block_top(unsigned top)
{
    __shared__ unsigned scratch[8];
    top = __reduce_max_sync(0xffffffffu, max(top >> 16, top & 0xffffu));
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++)
        top = max(top, scratch[i]);
    return __uint_as_float(top << 16);
}

/* A row of n bf16 by 256 threads: put(i, codes) takes eights of codes from column i on. Up to HELD
 * eights of values a thread stay in registers between the search for the largest and the rounding.
 * n % 8 == 0. Returns the scale. */
template <class P> __device__ __forceinline__ float codes_of(const bf16 *x, int n, P put)
{
    const int HELD = 8, STEP = 256 * 8;
    bf16x8 v[HELD];
    unsigned top = 0;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int i = threadIdx.x * 8 + j * STEP;
        if (i < n) {
            v[j] = *(const bf16x8 *)(x + i);
            top = top8(top, v[j]);
        }
    }
    for (int i = threadIdx.x * 8 + HELD * STEP; i < n; i += STEP)
        top = top8(top, *(const bf16x8 *)(x + i));
    const float s = code_scale(block_top(top)), inv = __frcp_rn(s);
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int i = threadIdx.x * 8 + j * STEP;
        if (i < n)
            put(i, code8(v[j], inv));
    }
    for (int i = threadIdx.x * 8 + HELD * STEP; i < n; i += STEP)
        put(i, code8(*(const bf16x8 *)(x + i), inv));
    return s;
}

#endif
