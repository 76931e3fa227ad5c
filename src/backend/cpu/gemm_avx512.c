/* gemm_avx512.c - panels of weights times rows of activations.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/mac_avx512.h"

INLINE void panel_pointers(const char *w[MAC_VECS], const char *panel, enum wformat f)
{
    UNROLL
    for (int j = 0; j < MAC_VECS; j++)
        w[j] = panel + (size_t)j * mac_bytes(f);
}

INLINE int row_groups(const struct gemm *g, int size)
{
    return (g->rows + size - 1) / size;
}

/* ---- f32, f16, bf16 ------------------------------------------------------------------------- */

INLINE void float_rows(const struct gemm *g, int r, enum wformat f, const int rows)
{
    __m512i acc[MAC_ROWS][MAC_VECS];
    const char *w[MAC_VECS];
    float *c = g->c + r * g->ldc;
    int steps = f == W_BF16 ? (g->k + 1) / 2 : g->k;
    size_t step = MAC_VECS * mac_bytes(f);
    panel_pointers(w, g->w, f);
    mac_start(acc, c, g->ldc, g->first, rows, MAC_VECS);
    mac_tile_fetch(acc, g->x + r * g->x_stride, g->x_stride, w, step, steps, f,
                   fetch_part(g, r / MAC_ROWS, row_groups(g, MAC_ROWS), steps, step), rows);
    mac_store(c, g->ldc, acc, rows, MAC_VECS);
}

#define FLOAT_GEMM(NAME, FORMAT)                           \
    static void NAME(const struct gemm *g)                 \
    {                                                      \
        for (int r = 0; r < g->rows; r += MAC_ROWS)        \
            MAC_DISPATCH(g->rows - r, FLOAT_CALL_##FORMAT) \
    }
#define FLOAT_CALL_W_F32(n) float_rows(g, r, W_F32, n)
#define FLOAT_CALL_W_F16(n) float_rows(g, r, W_F16, n)
#define FLOAT_CALL_W_BF16(n) float_rows(g, r, W_BF16, n)
FLOAT_GEMM(gemm_f32_avx512, W_F32)
FLOAT_GEMM(gemm_f16_avx512, W_F16)
FLOAT_GEMM(gemm_bf16_avx512, W_BF16)

/* ---- i8: exact integer sums, scaled once at the end ----------------------------------------- */

INLINE void i8_finish(const struct gemm *g, int r, __m512i acc[MAC_ROWS][MAC_VECS], const int rows)
{
    UNROLL
    for (int i = 0; i < rows; i++) {
        __m512i zero = _mm512_set1_epi32(128 * g->x_sum[r + i]);
        __m512 xs = _mm512_set1_ps(g->x_scale[r + i]);
        UNROLL
        for (int j = 0; j < MAC_VECS; j++) {
            __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[i][j], zero));
            v = _mm512_mul_ps(v, _mm512_loadu_ps(g->w_scale + 16 * j));
            acc[i][j] = _mm512_castps_si512(_mm512_mul_ps(v, xs));
        }
    }
}

INLINE void i8_rows(const struct gemm *g, int r, const int rows)
{
    __m512i acc[MAC_ROWS][MAC_VECS];
    const char *w[MAC_VECS];
    float *c = g->c + r * g->ldc;
    panel_pointers(w, g->w, W_I8);
    mac_start(acc, c, g->ldc, g->first, rows, MAC_VECS);
    mac_tile_fetch(acc, g->x + r * g->x_stride, g->x_stride, w, PANEL * 4, g->k / 4, W_I8,
                   fetch_part(g, r / MAC_ROWS, row_groups(g, MAC_ROWS), g->k / 4, PANEL * 4), rows);
    if (g->last)
        i8_finish(g, r, acc, rows);
    mac_store(c, g->ldc, acc, rows, MAC_VECS);
}

void gemm_i8_avx512(const struct gemm *g)
{
#define I8_CALL(n) i8_rows(g, r, n)
    for (int r = 0; r < g->rows; r += MAC_ROWS)
        MAC_DISPATCH(g->rows - r, I8_CALL)
}

/* ---- i4: integer sums per group, each scaled and added to the float sum in C ---------------- */

INLINE void i4_step(__m512i acc[MAC_ROWS][MAC_VECS], const char *x, size_t x_stride, const char *w,
                    const int rows)
{
    __m512i lo[MAC_VECS], hi[MAC_VECS], mask = _mm512_set1_epi8(15);
    UNROLL
    for (int j = 0; j < MAC_VECS; j++) {
        __m512i b = _mm512_loadu_si512(w + 64 * j);
        lo[j] = _mm512_and_si512(b, mask);
        hi[j] = _mm512_and_si512(_mm512_srli_epi16(b, 4), mask);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        __m512i x0 = mac_broadcast(x + r * x_stride), x1 = mac_broadcast(x + r * x_stride + 4);
        UNROLL
        for (int j = 0; j < MAC_VECS; j++)
            acc[r][j] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc[r][j], lo[j], x0), hi[j], x1);
    }
}

INLINE __m512 pair_scale(const uint32_t *pair)
{
    __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pair), high));
}

INLINE __m512 pair_offset(const uint32_t *pair)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pair), 16));
}

INLINE void i4_add_group(const struct gemm *g, int r, int group, bool zero,
                         __m512i acc[MAC_ROWS][MAC_VECS], const int rows)
{
    const uint32_t *pair = g->w_group + (size_t)group * PANEL;
    bool finish = g->last && (group + 1) * I4_GROUP == g->k;
    UNROLL
    for (int i = 0; i < rows; i++) {
        float *c = g->c + (size_t)(r + i) * g->ldc;
        __m512 x_sum = _mm512_set1_ps((float)g->x_sum[(size_t)(r + i) * g->x_sum_stride + group]);
        __m512 xs = _mm512_set1_ps(g->x_scale[r + i]);
        UNROLL
        for (int j = 0; j < MAC_VECS; j++) {
            __m512 sum = zero ? _mm512_setzero_ps() : _mm512_loadu_ps(c + 16 * j);
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i][j]), pair_scale(pair + 16 * j), sum);
            sum = _mm512_fmadd_ps(x_sum, pair_offset(pair + 16 * j), sum);
            if (finish)
                sum = _mm512_mul_ps(sum, xs);
            _mm512_storeu_ps(c + 16 * j, sum);
        }
    }
}

INLINE void i4_rows(const struct gemm *g, int r, const int rows)
{
    const char *x = g->x + r * g->x_stride, *w = g->w;
    struct fetch fetch = fetch_part(g, r / 4, row_groups(g, 4), g->k / 8, PANEL * 4);
    for (int group = 0; group < g->k / I4_GROUP; group++) {
        __m512i acc[MAC_ROWS][MAC_VECS];
        mac_start(acc, NULL, 0, true, rows, MAC_VECS);
        for (int k = 0; k < I4_GROUP; k += 8, x += 8, w += PANEL * 4) {
            fetch_step(&fetch, (group * I4_GROUP + k) / 8);
            i4_step(acc, x, g->x_stride, w, rows);
        }
        i4_add_group(g, r, group, g->first && group == 0, acc, rows);
    }
}

/* Four rows at a time: 8 vectors of unpacked weights leave no room for six rows of sums. */
static void gemm_i4_avx512(const struct gemm *g)
{
#define I4_CALL(n) i4_rows(g, r, (n) < 4 ? (n) : 4)
    for (int r = 0; r < g->rows; r += 4)
        MAC_DISPATCH(g->rows - r, I4_CALL)
}

void gemm_avx512_fill(struct cpu_kernels *k)
{
    k->gemm[W_F32] = gemm_f32_avx512;
    k->gemm[W_F16] = gemm_f16_avx512;
    k->gemm[W_BF16] = gemm_bf16_avx512;
    k->gemm[W_I8] = gemm_i8_avx512;
    k->gemm[W_I4] = gemm_i4_avx512;
}
