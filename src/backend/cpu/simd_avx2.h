/* simd_avx2.h - a vector of floats for kernel templates: 8 lanes. Included by *_avx2.c only; the
 * names are the same in simd_avx512.h, which says what they mean.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_SIMD_AVX2_H
#define SL_BACKEND_CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VL = 8 };
typedef __m256 vf;

#define SIMD static inline __attribute__((always_inline))

SIMD vf v_set1(float a)
{
    return _mm256_set1_ps(a);
}

SIMD vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

SIMD void v_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}

SIMD __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

SIMD vf v_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, lanes_below(n));
}

SIMD void v_store_n(float *p, vf a, int n)
{
    _mm256_maskstore_ps(p, lanes_below(n), a);
}

SIMD vf v_keep_range(vf a, int lo, int hi, float other)
{
    __m256i in = _mm256_andnot_si256(lanes_below(lo), lanes_below(hi));
    return _mm256_blendv_ps(v_set1(other), a, _mm256_castsi256_ps(in));
}

SIMD vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

SIMD vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

SIMD vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

SIMD vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

SIMD vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

SIMD vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

SIMD vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

SIMD vf v_select_less(vf a, vf b, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

SIMD vf v_abs(vf a)
{
    return _mm256_andnot_ps(v_set1(-0.0f), a);
}

SIMD vf v_copysign(vf magnitude, vf sign)
{
    return _mm256_or_ps(magnitude, _mm256_and_ps(v_set1(-0.0f), sign));
}

SIMD vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

SIMD vf pow2(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

SIMD vf v_scale2(vf a, vf n) /* in two steps: 2^n alone may not be a float */
{
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
    return v_mul(v_mul(a, pow2(half)), pow2(_mm256_sub_epi32(i, half)));
}

SIMD float v_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

SIMD float v_top(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

SIMD void v_store_bf16(uint16_t *p, vf a)
{
    __m256i u = _mm256_castps_si256(a), odd = _mm256_srli_epi32(u, 16);
    odd = _mm256_and_si256(odd, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    u = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
    u = _mm256_packus_epi32(_mm256_srli_epi32(u, 16), _mm256_setzero_si256());
    u = _mm256_permute4x64_epi64(u, 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(u));
}

SIMD vf v_load_bf16(const uint16_t *p)
{
    __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}

SIMD void v_store_i8(int8_t *p, vf a)
{
    __m256i i = _mm256_cvtps_epi32(a);
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(w, w));
}

SIMD void v_store_i16(int16_t *p, vf a)
{
    __m256i w = _mm256_cvtps_epi32(a);
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, h);
}

SIMD vf v_load_i32(const void *p) /* int32 as floats */
{
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(p));
}

#endif
