/* mac_avx2.h - the inner loop of every AVX2 float product: up to 4 rows x 2 vectors of 8 outputs,
 * or one row x 8 vectors; 16 registers hold no more.
 *
 * Activations are f32 for every format; f16 and bf16 weights are widened on the way. A step of
 * bf16 is a pair of k (8 bytes of activations), of the others one. Included by *_avx2.c only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_MAC_AVX2_H
#define SL_BACKEND_CPU_MAC_AVX2_H

#include "backend/cpu/kernels.h"
#include "backend/cpu/unroll.h"

#include <immintrin.h>
#include <string.h>

enum { MAC_ROWS = 4, MAC_VECS = 8 };

/* i8 KV tiles: pairs, widened to s16. Their sums are int32 in the registers of floats. */
#define MAC_I8_PAIRS ((enum wformat)N_FORMATS)

INLINE size_t mac_bytes(enum wformat f) /* of 8 outputs' step */
{
    return f == W_F16 || f == MAC_I8_PAIRS ? 16 : 32;
}

INLINE void mac_rows(__m256 acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride, __m256 w,
                     const int rows, const int j)
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        __m256 b = _mm256_broadcast_ss((const float *)(x + r * x_stride));
        acc[r][j] = _mm256_fmadd_ps(b, w, acc[r][j]);
    }
}

INLINE void mac_i8_rows(__m256 acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride, __m256i w,
                        int32_t keep, const int rows, const int j)
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        int32_t bits;
        memcpy(&bits, x + r * x_stride, sizeof bits);
        __m256i product = _mm256_madd_epi16(w, _mm256_set1_epi32(bits & keep));
        acc[r][j] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc[r][j]), product));
    }
}

INLINE __m256i load_i8(const char *p)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}

INLINE __m256 even_bf16(__m256i w)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}

INLINE __m256 odd_bf16(__m256i w)
{
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
}

/* n steps; vector j's first step lies at w + j * mac_bytes, its second `step` bytes further. */
INLINE void mac_tile(__m256 acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride, const char *w,
                     size_t step, int n, enum wformat f, const int rows, const int vecs)
{
    for (int i = 0; i < n; i++, w += step) {
        UNROLL
        for (int j = 0; j < vecs; j++) {
            const char *p = w + (size_t)j * mac_bytes(f);
            if (f == W_BF16) {
                __m256i pair = _mm256_loadu_si256((const __m256i *)p);
                mac_rows(acc, x + 8 * (size_t)i, x_stride, even_bf16(pair), rows, j);
                mac_rows(acc, x + 8 * (size_t)i + 4, x_stride, odd_bf16(pair), rows, j);
            } else if (f == MAC_I8_PAIRS) {
                mac_i8_rows(acc, x + 4 * (size_t)i, x_stride, load_i8(p), -1, rows, j);
            } else if (f == W_F16) {
                __m256 v = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
                mac_rows(acc, x + 4 * (size_t)i, x_stride, v, rows, j);
            } else {
                mac_rows(acc, x + 4 * (size_t)i, x_stride, _mm256_loadu_ps((const float *)p), rows,
                         j);
            }
        }
    }
}

INLINE void mac_start(__m256 acc[MAC_ROWS][MAC_VECS], const float *c, size_t ldc, bool zero,
                      const int rows, const int vecs)
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int j = 0; j < vecs; j++)
        acc[r][j] = zero ? _mm256_setzero_ps() : _mm256_loadu_ps(c + r * ldc + 8 * j);
}

INLINE void mac_store(float *c, size_t ldc, __m256 acc[MAC_ROWS][MAC_VECS], const int rows,
                      const int vecs)
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int j = 0; j < vecs; j++)
        _mm256_storeu_ps(c + r * ldc + 8 * j, acc[r][j]);
}

/* CALL(rows, vecs) with constants: one row takes all 8 vectors, more rows take 2 at a time. */
#define MAC_DISPATCH(n, CALL) \
    switch (n) {              \
    case 1:                   \
        CALL(1, 8);           \
        break;                \
    case 2:                   \
        CALL(2, 2);           \
        break;                \
    case 3:                   \
        CALL(3, 2);           \
        break;                \
    default:                  \
        CALL(4, 2);           \
    }

#endif
