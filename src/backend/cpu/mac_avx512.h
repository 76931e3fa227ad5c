/* mac_avx512.h - the inner loop of every AVX-512 product: up to 6 rows x 4 vectors of outputs.
 *
 * All formats look alike here: one step takes 4 bytes of each row (one f32, two bf16 or four s8),
 * broadcasts them, and multiplies them with a vector that holds the same k of 16 outputs. 24
 * accumulators, 4 vectors of weights and a broadcast fill the 32 registers, and 24 independent
 * sums hide the latency. Included by *_avx512.c only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_MAC_AVX512_H
#define SL_BACKEND_CPU_MAC_AVX512_H

#include "backend/cpu/kernels.h"
#include "backend/cpu/unroll.h"

#include <immintrin.h>
#include <string.h>

enum { MAC_ROWS = 6, MAC_VECS = 4 };

/* i8 KV tiles: pairs, widened to s16. (W_I8 is quads of u8, as weights are.) */
#define MAC_I8_PAIRS ((enum wformat)N_FORMATS)

/* 16 outputs of one step; f16 and pairs of i8 are widened. */
INLINE __m512i mac_load(const char *w, enum wformat f)
{
    if (f == W_F16)
        return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)w)));
    if (f == MAC_I8_PAIRS)
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
    return _mm512_loadu_si512(w);
}

INLINE size_t mac_bytes(enum wformat f) /* that mac_load reads */
{
    return f == W_F16 || f == MAC_I8_PAIRS ? 32 : 64;
}

INLINE __m512i mac(__m512i acc, __m512i x, __m512i w, enum wformat f)
{
    if (f == W_I8)
        return _mm512_dpbusd_epi32(acc, w, x);
    if (f == MAC_I8_PAIRS)
        return _mm512_dpwssd_epi32(acc, w, x);
    __m512 a = _mm512_castsi512_ps(acc);
    if (f == W_BF16)
        return _mm512_castps_si512(_mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)w));
    return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), a));
}

INLINE __m512i mac_broadcast(const char *x)
{
    int32_t bits;
    memcpy(&bits, x, sizeof bits);
    return _mm512_set1_epi32(bits);
}

/* n steps; w[j] is where vector j's first step lies, `step` bytes before its second. What lies
 * ahead[j] bytes further is fetched at the same time, unless ahead is NULL. */
INLINE void mac_tile_ahead(__m512i acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride,
                           const char *const w[MAC_VECS], size_t step, int n, enum wformat f,
                           const ptrdiff_t *ahead, const int rows, const int vecs)
{
    for (int i = 0; i < n; i++) {
        __m512i v[MAC_VECS];
        UNROLL
        for (int j = 0; j < vecs; j++)
            v[j] = mac_load(w[j] + i * step, f);
        if (ahead) {
            UNROLL
            for (int j = 0; j < vecs; j++)
                _mm_prefetch(w[j] + ahead[j] + i * step, _MM_HINT_T1);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512i b = mac_broadcast(x + r * x_stride + 4 * (size_t)i);
            UNROLL
            for (int j = 0; j < vecs; j++)
                acc[r][j] = mac(acc[r][j], b, v[j], f);
        }
    }
}

/* Lines that a step fetches beside its own work: 1 or 2; at NULL: none. */
struct fetch {
    const char *at;
    size_t lines;
};

/* Spreads what g wants fetched over the first of its n groups of rows; each takes `steps` steps,
 * which read `bytes` bytes each. */
INLINE struct fetch fetch_part(const struct gemm *g, int group, int n, int steps, size_t bytes)
{
    size_t lines = n >= 4 ? 1 : 2, part = lines * 64 * (size_t)steps;
    if (!g->ahead || (size_t)(group + 1) * part > bytes * (size_t)steps)
        return (struct fetch){NULL, 0};
    return (struct fetch){g->ahead + group * part, lines};
}

INLINE void fetch_step(const struct fetch *f, int i)
{
    if (!f->at)
        return;
    const char *at = f->at + f->lines * 64 * (size_t)i;
    _mm_prefetch(at, _MM_HINT_T1);
    _mm_prefetch(at + 64 * (f->lines - 1), _MM_HINT_T1);
}

/* As mac_tile, with lines fetched on the way. */
INLINE void mac_tile_fetch(__m512i acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride,
                           const char *const w[MAC_VECS], size_t step, int n, enum wformat f,
                           struct fetch fetch, const int rows)
{
    for (int i = 0; i < n; i++) {
        __m512i v[MAC_VECS];
        UNROLL
        for (int j = 0; j < MAC_VECS; j++)
            v[j] = mac_load(w[j] + i * step, f);
        fetch_step(&fetch, i);
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m512i b = mac_broadcast(x + r * x_stride + 4 * (size_t)i);
            UNROLL
            for (int j = 0; j < MAC_VECS; j++)
                acc[r][j] = mac(acc[r][j], b, v[j], f);
        }
    }
}

INLINE void mac_tile(__m512i acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride,
                     const char *const w[MAC_VECS], size_t step, int n, enum wformat f,
                     const int rows, const int vecs)
{
    mac_tile_ahead(acc, x, x_stride, w, step, n, f, NULL, rows, vecs);
}

INLINE void mac_start(__m512i acc[MAC_ROWS][MAC_VECS], const float *c, size_t ldc, bool zero,
                      const int rows, const int vecs)
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int j = 0; j < vecs; j++)
        acc[r][j] = zero ? _mm512_setzero_si512() : _mm512_loadu_si512(c + r * ldc + 16 * j);
}

INLINE void mac_store(float *c, size_t ldc, __m512i acc[MAC_ROWS][MAC_VECS], const int rows,
                      const int vecs)
{
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int j = 0; j < vecs; j++)
        _mm512_storeu_si512(c + r * ldc + 16 * j, acc[r][j]);
}

/* CALL(rows) with a constant in place of n: each count is compiled on its own. */
#define MAC_DISPATCH(n, CALL) \
    switch (n) {              \
    case 1:                   \
        CALL(1);              \
        break;                \
    case 2:                   \
        CALL(2);              \
        break;                \
    case 3:                   \
        CALL(3);              \
        break;                \
    case 4:                   \
        CALL(4);              \
        break;                \
    case 5:                   \
        CALL(5);              \
        break;                \
    default:                  \
        CALL(6);              \
    }

#endif
