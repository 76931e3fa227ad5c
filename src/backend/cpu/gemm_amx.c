/* gemm_amx.c - panels of weights times rows of activations, in tiles.
 *
 * A tile of sums is 16 rows x 16 outputs; a block is two by two of them, tiles 0 .. 3; 4 and 5 are
 * rows of activations, 6 and 7 weights. A step takes 64 bytes of every row; a panel's granules lie
 * as a weight tile wants them, 256 bytes apart, 4 KB a step. After BLOCK_STEPS of them the sums go
 * through C, which costs as much as two steps. Few rows wait for memory anyway: their blocks are
 * short, so that the two halves of a panel are read almost together, from front to back.
 *
 * TDPBF16PS adds the even and the odd products of its 32 k values apart, from zero, and then both
 * to the sum: an order of its own, so every bf16 product at this level is made by it, whatever the
 * number of rows, in steps of 32 k from 0 on. Integer products are exact: few rows of them go
 * through AVX-512, with the same bits. int4 stays with AVX-512 altogether: unpacking costs more
 * than tiles save (Sapphire Rapids: half the speed at 16 rows, 1 to 1.6 times it at 512).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/tiles_amx.h"

enum {
    ROWS = 16,
    STEP_BYTES = 16 * PANEL * 4,
    BLOCK_STEPS = 32,
    FEW_ROWS = 64,
    FEW_STEPS = 4,           /* of a block, for few rows */
    AHEAD = 16 * STEP_BYTES, /* how far before its use a panel's line is fetched */
    VNNI_ROWS = 8
};

/* Sums of up to 32 rows x 32 outputs over a range of k. Tiles: rows r: 0, 1; rows r + 16: 2, 3. */
struct block {
    char *c;
    size_t ldc; /* bytes */
    const char *x;
    size_t x_stride;
    const char *w;
    int steps;
    bool zero, many;   /* many: rows, which meet weights that are in level 2 */
    const char *ahead; /* weights that are fetched, `lines` a step; or NULL */
    int lines;
};

INLINE void block_load(const struct block *b, const bool two)
{
    if (b->zero) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        return;
    }
    TILE_LOAD(0, b->c, b->ldc);
    TILE_LOAD(1, b->c + 64, b->ldc);
    if (!two)
        return;
    TILE_LOAD(2, b->c + ROWS * b->ldc, b->ldc);
    TILE_LOAD(3, b->c + ROWS * b->ldc + 64, b->ldc);
}

INLINE void block_store(const struct block *b, const bool two)
{
    TILE_STORE(0, b->c, b->ldc);
    TILE_STORE(1, b->c + 64, b->ldc);
    if (!two)
        return;
    TILE_STORE(2, b->c + ROWS * b->ldc, b->ldc);
    TILE_STORE(3, b->c + ROWS * b->ldc + 64, b->ldc);
}

INLINE void block_fetch(const struct block *b, int i)
{
    const char *w = b->ahead + (size_t)(i * b->lines) * 64;
    for (int j = 0; b->ahead && j < b->lines; j++)
        _mm_prefetch(w + (size_t)j * 64, _MM_HINT_T1);
}

/* What a tile's next load reads comes to level 1 with ordinary instructions: where tiles are slow,
 * a load that misses is slower still. */
INLINE void fetch_near(const char *p, size_t stride)
{
    UNROLL
    for (int r = 0; r < ROWS; r++)
        _mm_prefetch(p + (size_t)r * stride, _MM_HINT_T0);
}

INLINE void block_multiply(const struct block *b, const bool bf16, const bool two)
{
    const char *x = b->x, *x2 = b->x + ROWS * b->x_stride, *w = b->w;
    block_load(b, two);
    for (int i = 0; i < b->steps; i++, x += 64, x2 += 64, w += STEP_BYTES) {
        TILE_LOAD(4, x, b->x_stride);
        TILE_LOAD(6, w, PANEL * 4);
        TILE_LOAD(7, w + 64, PANEL * 4);
        if (two)
            fetch_near(x + 64, b->x_stride);
        if (b->many)
            fetch_near(w + STEP_BYTES, PANEL * 4);
        if (bf16) {
            TILE_DP_BF16(0, 4, 6);
            TILE_DP_BF16(1, 4, 7);
        } else {
            TILE_DP_S8U8(0, 4, 6);
            TILE_DP_S8U8(1, 4, 7);
        }
        block_fetch(b, i);
        if (b->many)
            fetch_near(w + STEP_BYTES + 64, PANEL * 4);
        if (!two)
            continue;
        TILE_LOAD(5, x2, b->x_stride);
        fetch_near(x2 + 64, b->x_stride);
        if (bf16) {
            TILE_DP_BF16(2, 5, 6);
            TILE_DP_BF16(3, 5, 7);
        } else {
            TILE_DP_S8U8(2, 5, 6);
            TILE_DP_S8U8(3, 5, 7);
        }
    }
    block_store(b, two);
}

/* `steps` steps from `step` on for rows [r0, r1), all as high as the tiles are now. */
struct range {
    const struct gemm *g;
    int step, steps, total; /* total: of the panel's range */
    int r0, r1;
};

/* The share of block `i` of `n` in fetching what is read AHEAD of this range: of this panel, or of
 * what comes after it. */
static void plan_fetch(struct block *b, const struct range *s, int i, int n)
{
    const struct gemm *g = s->g;
    b->lines = (STEP_BYTES / 64 + n - 1) / n;
    size_t own = (size_t)(i * b->lines * b->steps) * 64, end = (size_t)s->total * STEP_BYTES;
    size_t at = (size_t)s->step * STEP_BYTES + AHEAD + own;
    b->ahead = NULL;
    if (i * b->lines >= STEP_BYTES / 64)
        return;
    if (at < end)
        b->ahead = g->w + at;
    else if (g->ahead)
        b->ahead = g->ahead + (at - end);
}

INLINE void range_multiply(const struct range *s, const bool bf16, const bool two)
{
    const struct gemm *g = s->g;
    const int height = two ? 2 * ROWS : ROWS;
    int n = 2 * ((s->r1 - s->r0 + height - 1) / height), i = 0;
    struct block b = {.ldc = g->ldc * sizeof(float),
                      .x_stride = g->x_stride,
                      .steps = s->steps,
                      .zero = g->first && s->step == 0,
                      .many = g->rows > FEW_ROWS};
    for (int r = s->r0; r < s->r1; r += height) {
        b.x = g->x + r * g->x_stride + (size_t)s->step * 64;
        for (int half = 0; half < 2; half++, i++) {
            b.c = (char *)(g->c + r * g->ldc) + half * 128;
            b.w = g->w + (size_t)s->step * STEP_BYTES + half * 128;
            plan_fetch(&b, s, i, n);
            block_multiply(&b, bf16, two);
        }
    }
}

INLINE void rows_multiply(const struct gemm *g, int r0, int r1, const bool bf16)
{
    int m = r1 - r0, most = g->rows > FEW_ROWS ? BLOCK_STEPS : FEW_STEPS;
    struct range s = {.g = g, .total = g->k / (bf16 ? 32 : 64), .r0 = r0, .r1 = r1};
    tiles_configure(m < ROWS ? m : ROWS, m > ROWS && m < 2 * ROWS ? m - ROWS : ROWS, 64, 16);
    for (; s.step < s.total; s.step += s.steps) {
        s.steps = s.total - s.step < most ? s.total - s.step : most;
        if (m > ROWS)
            range_multiply(&s, bf16, true);
        else
            range_multiply(&s, bf16, false);
    }
}

/* Blocks of 32 rows, then what is left of them. */
INLINE void panel_multiply(const struct gemm *g, const bool bf16)
{
    int whole = g->rows / (2 * ROWS) * (2 * ROWS);
    if (whole)
        rows_multiply(g, 0, whole, bf16);
    if (whole < g->rows)
        rows_multiply(g, whole, g->rows, bf16);
    TILE_RELEASE();
}

static void gemm_bf16_amx(const struct gemm *g)
{
    panel_multiply(g, true);
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
    panel_multiply(g, false);
    if (g->last)
        i8_finish(g, g->rows);
}

void cpu_kernels_amx(struct cpu_kernels *k)
{
    k->gemm[W_BF16] = gemm_bf16_amx;
    k->gemm[W_I8] = gemm_i8_amx;
    k->whole_k[W_BF16] = k->whole_k[W_I8] = true;
    k->x_cache = 1 << 20; /* half of level 2 */
    attn_amx_fill(k);
}
