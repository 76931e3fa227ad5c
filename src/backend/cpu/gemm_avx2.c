/* gemm_avx2.c - panels of weights times rows of activations.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/mac_avx2.h"

#include <string.h>

/* ---- f32, f16, bf16 ------------------------------------------------------------------------- */

INLINE void float_rows(const struct gemm *g, int r, enum wformat f, const int rows, const int vecs)
{
    const char *x = g->x + r * g->x_stride;
    int steps = f == W_BF16 ? (g->k + 1) / 2 : g->k;
    for (int v = 0; v < PANEL / 8; v += vecs) {
        __m256 acc[MAC_ROWS][MAC_VECS];
        float *c = g->c + r * g->ldc + (size_t)v * 8;
        mac_start(acc, c, g->ldc, g->first, rows, vecs);
        mac_tile(acc, x, g->x_stride, g->w + (size_t)v * mac_bytes(f), PANEL / 8 * mac_bytes(f),
                 steps, f, rows, vecs);
        mac_store(c, g->ldc, acc, rows, vecs);
    }
}

#define FLOAT_GEMM(NAME, FORMAT)                           \
    static void NAME(const struct gemm *g)                 \
    {                                                      \
        for (int r = 0; r < g->rows; r += MAC_ROWS)        \
            MAC_DISPATCH(g->rows - r, FLOAT_CALL_##FORMAT) \
    }
#define FLOAT_CALL_W_F32(n, vecs) float_rows(g, r, W_F32, n, vecs)
#define FLOAT_CALL_W_F16(n, vecs) float_rows(g, r, W_F16, n, vecs)
#define FLOAT_CALL_W_BF16(n, vecs) float_rows(g, r, W_BF16, n, vecs)
FLOAT_GEMM(gemm_f32_avx2, W_F32)
FLOAT_GEMM(gemm_f16_avx2, W_F16)
FLOAT_GEMM(gemm_bf16_avx2, W_BF16)

/* ---- i8, i4: without VNNI, through 16-bit products of even and odd bytes -------------------- */

struct s16_pairs {
    __m256i even, odd; /* k = 0, 2 and k = 1, 3 of a quad, as 16-bit */
};

INLINE struct s16_pairs unpack_x(const char *x)
{
    int32_t bits;
    memcpy(&bits, x, sizeof bits);
    __m256i b = _mm256_set1_epi32(bits);
    return (struct s16_pairs){_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8),
                              _mm256_srai_epi16(b, 8)};
}

INLINE struct s16_pairs unpack_w(__m256i w)
{
    return (struct s16_pairs){_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16(w, 8)};
}

INLINE __m256i mac_quad(__m256i acc, struct s16_pairs w, struct s16_pairs x)
{
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(w.even, x.even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w.odd, x.odd));
}

/* 8 outputs (vector v of the panel) of `rows` rows. */
INLINE void i8_rows(const struct gemm *g, int r, int v, const int rows)
{
    __m256i acc[MAC_ROWS];
    float *c = g->c + r * g->ldc + (size_t)v * 8;
    UNROLL
    for (int i = 0; i < rows; i++)
        acc[i] = g->first ? _mm256_setzero_si256()
                          : _mm256_loadu_si256((const __m256i *)(c + i * g->ldc));
    const char *w = g->w + (size_t)v * 32, *x = g->x + r * g->x_stride;
    for (int k = 0; k < g->k; k += 4, w += PANEL * 4) {
        struct s16_pairs u = unpack_w(_mm256_loadu_si256((const __m256i *)w));
        UNROLL
        for (int i = 0; i < rows; i++)
            acc[i] = mac_quad(acc[i], u, unpack_x(x + i * g->x_stride + k));
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        if (g->last) {
            __m256i sum = _mm256_sub_epi32(acc[i], _mm256_set1_epi32(128 * g->x_sum[r + i]));
            __m256 s = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(g->w_scale + 8 * v));
            acc[i] = _mm256_castps_si256(_mm256_mul_ps(s, _mm256_set1_ps(g->x_scale[r + i])));
        }
        _mm256_storeu_si256((__m256i *)(c + i * g->ldc), acc[i]);
    }
}

INLINE void i4_group(const struct gemm *g, int r, int v, int group, const int rows)
{
    __m256i acc[MAC_ROWS], mask = _mm256_set1_epi8(15);
    UNROLL
    for (int i = 0; i < rows; i++)
        acc[i] = _mm256_setzero_si256();
    const char *w = g->w + (size_t)group * (I4_GROUP / 8) * PANEL * 4 + (size_t)v * 32;
    const char *x = g->x + r * g->x_stride + (size_t)group * I4_GROUP;
    for (int k = 0; k < I4_GROUP; k += 8, w += PANEL * 4) {
        __m256i b = _mm256_loadu_si256((const __m256i *)w);
        struct s16_pairs lo = unpack_w(_mm256_and_si256(b, mask));
        struct s16_pairs hi = unpack_w(_mm256_and_si256(_mm256_srli_epi16(b, 4), mask));
        UNROLL
        for (int i = 0; i < rows; i++) {
            acc[i] = mac_quad(acc[i], lo, unpack_x(x + i * g->x_stride + k));
            acc[i] = mac_quad(acc[i], hi, unpack_x(x + i * g->x_stride + k + 4));
        }
    }
    bool zero = g->first && group == 0, finish = g->last && (group + 1) * I4_GROUP == g->k;
    const uint32_t *pairs = g->w_group + (size_t)group * PANEL + 8 * (size_t)v;
    __m256i pair = _mm256_loadu_si256((const __m256i *)pairs);
    UNROLL
    for (int i = 0; i < rows; i++) {
        float *c = g->c + (size_t)(r + i) * g->ldc + 8 * v;
        float x_sum = (float)g->x_sum[(size_t)(r + i) * g->x_sum_stride + group];
        __m256 f = zero ? _mm256_setzero_ps() : _mm256_loadu_ps(c);
        f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i]), odd_bf16(pair), f);
        f = _mm256_fmadd_ps(_mm256_set1_ps(x_sum), even_bf16(pair), f);
        if (finish)
            f = _mm256_mul_ps(f, _mm256_set1_ps(g->x_scale[r + i]));
        _mm256_storeu_ps(c, f);
    }
}

static void gemm_i8_avx2(const struct gemm *g)
{
    int r = 0;
    for (; r + MAC_ROWS <= g->rows; r += MAC_ROWS)
        for (int v = 0; v < PANEL / 8; v++)
            i8_rows(g, r, v, MAC_ROWS);
    for (; r < g->rows; r++)
        for (int v = 0; v < PANEL / 8; v++)
            i8_rows(g, r, v, 1);
}

INLINE void i4_rows(const struct gemm *g, int r, const int rows)
{
    for (int group = 0; group < g->k / I4_GROUP; group++)
        for (int v = 0; v < PANEL / 8; v++)
            i4_group(g, r, v, group, rows);
}

static void gemm_i4_avx2(const struct gemm *g)
{
    int r = 0;
    for (; r + MAC_ROWS <= g->rows; r += MAC_ROWS)
        i4_rows(g, r, MAC_ROWS);
    for (; r < g->rows; r++)
        i4_rows(g, r, 1);
}

void gemm_avx2_fill(struct cpu_kernels *k)
{
    k->gemm[W_F32] = gemm_f32_avx2;
    k->gemm[W_F16] = gemm_f16_avx2;
    k->gemm[W_BF16] = gemm_bf16_avx2;
    k->gemm[W_I8] = gemm_i8_avx2;
    k->gemm[W_I4] = gemm_i4_avx2;
}
