/* simd_avx512.h - a vector of floats for kernel templates: 16 lanes. Included by *_avx512.c only.
 *
 * v_max(a, b) and v_min(a, b) give b when either is NaN, as the instructions do.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_SIMD_AVX512_H
#define SL_BACKEND_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VL = 16 };
typedef __m512 vf;

#define SIMD static inline __attribute__((always_inline))

SIMD vf v_set1(float a)
{
    return _mm512_set1_ps(a);
}

SIMD vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

SIMD void v_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}

SIMD __mmask16 lanes_below(int n) /* n: any; lanes 0 .. n-1 */
{
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

SIMD vf v_load_n(const float *p, int n) /* zeros from n on; reads nothing there */
{
    return _mm512_maskz_loadu_ps(lanes_below(n), p);
}

SIMD void v_store_n(float *p, vf a, int n)
{
    _mm512_mask_storeu_ps(p, lanes_below(n), a);
}

SIMD vf v_keep_range(vf a, int lo, int hi, float other) /* lanes lo .. hi-1 of a */
{
    return _mm512_mask_mov_ps(v_set1(other), lanes_below(hi) & (__mmask16)~lanes_below(lo), a);
}

SIMD vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

SIMD vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

SIMD vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

SIMD vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

SIMD vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

SIMD vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

SIMD vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

SIMD vf v_select_less(vf a, vf b, vf yes, vf no) /* a < b ? yes : no, by lane */
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}

SIMD vf v_abs(vf a)
{
    return _mm512_abs_ps(a);
}

SIMD vf v_copysign(vf magnitude, vf sign) /* magnitude >= 0 */
{
    return _mm512_or_ps(magnitude, _mm512_and_ps(v_set1(-0.0f), sign));
}

SIMD vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

SIMD vf v_scale2(vf a, vf n) /* a * 2^n */
{
    return _mm512_scalef_ps(a, n);
}

SIMD float v_sum(vf a) /* a fixed tree */
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

SIMD float v_top(vf a) /* the largest lane */
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

SIMD void v_store_bf16(uint16_t *p, vf a) /* nearest even; subnormals become zero here */
{
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(a));
}

SIMD vf v_load_bf16(const uint16_t *p)
{
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}

SIMD void v_store_i8(int8_t *p, vf a) /* nearest even, saturated */
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}

SIMD void v_store_i16(int16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}

SIMD vf v_load_i32(const void *p) /* int32 as floats */
{
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
}

#endif
