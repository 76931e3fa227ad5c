/* gemm_amx.c - panels of weights times rows of activations, in tiles.
 *
 * A tile of sums is 16 rows x 16 outputs. Tiles 0 .. 3 are sums, 4 and 5 rows of activations, 6 and
 * 7 weights; a panel's granules lie as a weight tile wants them, 256 bytes apart.
 *
 * TDPBF16PS adds the even and the odd products of its 32 k values apart, from zero, and then both
 * to the sum: an order of its own, so every bf16 product at this level is made by it, whatever the
 * number of rows, in steps of 32 k from 0 on. Integer products are exact: few rows of them go
 * through AVX-512, with the same bits. int4 stays with AVX-512 altogether: unpacking costs more
 * than tiles save (Sapphire Rapids: half the speed at 16 rows, 1 to 1.6 times it at 512).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/tiles_amx.h"

enum { ROWS = 16, STEP_BYTES = 16 * PANEL * 4, VNNI_ROWS = 8 };

/* Sums of up to 32 rows x 32 outputs over a range of k. Tiles: rows r: 0, 1; rows r + 16: 2, 3. */
struct block {
    float *c;
    size_t ldc; /* bytes */
    const char *x;
    size_t x_stride;
    const char *w;
    int steps;
    bool zero, two; /* two: there are rows beyond 16 */
    struct tile_fetch fetch;
};

INLINE void block_load(const struct block *b)
{
    const char *c = (const char *)b->c;
    if (b->zero) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, c, b->ldc);
    TILE_LOAD(1, c + 64, b->ldc);
    if (!b->two)
        return;
    TILE_LOAD(2, c + ROWS * b->ldc, b->ldc);
    TILE_LOAD(3, c + ROWS * b->ldc + 64, b->ldc);
}

INLINE void block_store(const struct block *b)
{
    char *c = (char *)b->c;
    TILE_STORE(0, c, b->ldc);
    TILE_STORE(1, c + 64, b->ldc);
    if (!b->two)
        return;
    TILE_STORE(2, c + ROWS * b->ldc, b->ldc);
    TILE_STORE(3, c + ROWS * b->ldc + 64, b->ldc);
}

INLINE void block_multiply(const struct block *b, const bool bf16)
{
    const char *x = b->x, *x2 = b->x + ROWS * b->x_stride, *w = b->w;
    block_load(b);
    for (int i = 0; i < b->steps; i++, x += 64, x2 += 64, w += STEP_BYTES) {
        TILE_LOAD(4, x, b->x_stride);
        TILE_LOAD(6, w, PANEL * 4);
        TILE_LOAD(7, w + 64, PANEL * 4);
        tile_fetch_step(&b->fetch, i);
        if (bf16) {
            TILE_DP_BF16(0, 4, 6);
            TILE_DP_BF16(1, 4, 7);
        } else {
            TILE_DP_S8U8(0, 4, 6);
            TILE_DP_S8U8(1, 4, 7);
        }
        if (!b->two)
            continue;
        TILE_LOAD(5, x2, b->x_stride);
        if (bf16) {
            TILE_DP_BF16(2, 5, 6);
            TILE_DP_BF16(3, 5, 7);
        } else {
            TILE_DP_S8U8(2, 5, 6);
            TILE_DP_S8U8(3, 5, 7);
        }
    }
    block_store(b);
}

/* Rows [r, r + n), n at most 32, of all the panel's outputs. */
INLINE void panel_rows(const struct gemm *g, int r, int n, const bool bf16)
{
    struct block b = {.ldc = g->ldc * sizeof(float),
                      .x = g->x + r * g->x_stride,
                      .x_stride = g->x_stride,
                      .steps = g->k / (bf16 ? 32 : 64),
                      .zero = g->first,
                      .two = n > ROWS};
    int part = r / (2 * ROWS), parts = (g->rows + 2 * ROWS - 1) / (2 * ROWS);
    tiles_configure(n < ROWS ? n : ROWS, n > ROWS ? n - ROWS : ROWS, 64, 16);
    for (int half = 0; half < 2; half++) {
        b.c = g->c + r * g->ldc + (size_t)half * 32;
        b.w = g->w + (size_t)half * 128;
        b.fetch = tile_fetch_part(g, part, parts, half, (size_t)b.steps * STEP_BYTES, b.steps);
        block_multiply(&b, bf16);
    }
}

static void gemm_bf16_amx(const struct gemm *g)
{
    for (int r = 0; r < g->rows; r += 2 * ROWS)
        panel_rows(g, r, g->rows - r < 2 * ROWS ? g->rows - r : 2 * ROWS, true);
    TILE_RELEASE();
}

/* ---- i8 ------------------------------------------------------------------------------------- */

/* The same operations as AVX-512's, so the same bits. */
static void i8_finish(const struct gemm *g, int rows)
{
    for (int r = 0; r < rows; r++) {
        __m512i zero = _mm512_set1_epi32(128 * g->x_sum[r]);
        __m512 xs = _mm512_set1_ps(g->x_scale[r]);
        float *c = g->c + r * g->ldc;
        for (int j = 0; j < PANEL; j += 16) {
            __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(c + j), zero));
            v = _mm512_mul_ps(v, _mm512_loadu_ps(g->w_scale + j));
            _mm512_storeu_ps(c + j, _mm512_mul_ps(v, xs));
        }
    }
}

static void gemm_i8_amx(const struct gemm *g)
{
    if (g->rows < VNNI_ROWS) {
        gemm_i8_avx512(g);
        return;
    }
    for (int r = 0; r < g->rows; r += 2 * ROWS)
        panel_rows(g, r, g->rows - r < 2 * ROWS ? g->rows - r : 2 * ROWS, false);
    TILE_RELEASE();
    if (g->last)
        i8_finish(g, g->rows);
}

void cpu_kernels_amx(struct cpu_kernels *k)
{
    k->gemm[W_BF16] = gemm_bf16_amx;
    k->gemm[W_I8] = gemm_i8_amx;
    attn_amx_fill(k);
}
