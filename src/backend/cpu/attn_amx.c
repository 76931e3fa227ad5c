/* attn_amx.c - bf16 scores and weighted values over KV tiles.
 *
 * A K tile's granules are a right factor as they lie: 32 dims by 16 positions. A V tile is one of
 * 16 positions by 16 dims at a time, 8 rows high. TDPBF16PS makes every one of these products (see
 * gemm_amx.c); a row meets each V tile in one step, whose positions outside its range are zeros in
 * both factors, so neither rows nor calls change a bit.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/tiles_amx.h"

enum { ROWS = 16, K_STEP = 32 };

/* Scores: tiles 4 and 6 hold 32 dims, 5 and 7 the last 16 of heads that are no multiple of 32. */
static void configure_scores(int m)
{
    uint8_t r = (uint8_t)m;
    tiles_configure_as((const uint8_t[]){r, r, r, r, r, r, 16, 8},
                       (const uint8_t[]){64, 64, 64, 64, 64, 32, 64, 64});
}

INLINE void fetch_tile(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(p + i, _MM_HINT_T1);
}

#define SCORES(c)                                                          \
    do {                                                                   \
        const char *tile_ = k->tile[t + (c) < n_tiles ? t + (c) : t];      \
        TILE_ZERO(c);                                                      \
        for (int d = 0; d + K_STEP <= hd; d += K_STEP) {                   \
            TILE_LOAD(4, q + (size_t)d * 2, q_stride);                     \
            TILE_LOAD(6, tile_ + (size_t)d * TILE_POS * 2, 64);            \
            TILE_DP_BF16(c, 4, 6);                                         \
        }                                                                  \
        if (hd % K_STEP) {                                                 \
            size_t d = (size_t)(hd / K_STEP * K_STEP);                     \
            TILE_LOAD(5, q + d * 2, q_stride);                             \
            TILE_LOAD(7, tile_ + d * TILE_POS * 2, 64);                    \
            TILE_DP_BF16(c, 5, 7);                                         \
        }                                                                  \
        if (t + (c) < n_tiles)                                             \
            TILE_STORE(c, s + (size_t)(t + (c)) * TILE_POS, s_stride * 4); \
    } while (0)

static void score_rows(float *s, size_t s_stride, const char *q, size_t q_stride,
                       const struct tiles *k, int n_tiles, int hd, bool ahead)
{
    for (int t = 0; t < n_tiles; t += 4) {
        for (int i = t; ahead && i < t + 4 && i < n_tiles; i++)
            fetch_tile(k->ahead[i], (size_t)TILE_POS * (size_t)hd * 2);
        SCORES(0);
        SCORES(1);
        SCORES(2);
        SCORES(3);
    }
}

static void qk_bf16_amx(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                        const struct tiles *k, int n_tiles, int hd)
{
    for (int r = 0; r < rows; r += ROWS) {
        int m = rows - r < ROWS ? rows - r : ROWS;
        if (r == 0 || m < ROWS)
            configure_scores(m);
        score_rows(s + r * s_stride, s_stride, (const char *)q + r * q_stride, q_stride, k, n_tiles,
                   hd, k->ahead && r == 0);
    }
    TILE_RELEASE();
}

/* ---- values --------------------------------------------------------------------------------- */

/* One V tile's factors, masked where the range cuts it. */
struct edge {
    _Alignas(64) uint16_t v[TILE_POS / 2][64][2];
    uint16_t p[ROWS][TILE_POS];
};

static void mask_edge(struct edge *e, const char *p, size_t p_stride, int m, const char *v, int hd,
                      int dim, int lo, int hi)
{
    int n = hd - dim < 64 ? (hd - dim) / 16 : 4;
    __mmask16 in = (__mmask16)((1u << hi) - (1u << lo)); /* hi at most 16 */
    for (int r = 0; r < m; r++)
        _mm256_store_si256((__m256i *)e->p[r], _mm256_maskz_loadu_epi16(in, p + r * p_stride));
    for (int i = 0; i < TILE_POS / 2; i++) {
        uint32_t even = in >> 2 * i & 1 ? 0xffff : 0, odd = in >> (2 * i + 1) & 1 ? 0xffff0000 : 0;
        __m512i keep = _mm512_set1_epi32((int)(even | odd));
        for (int j = 0; j < n; j++) {
            const char *pairs = v + ((size_t)i * hd + dim + 16 * j) * 4;
            _mm512_store_si512(e->v[i][16 * j], _mm512_and_si512(keep, _mm512_loadu_si512(pairs)));
        }
    }
}

struct values {
    float *o;
    size_t o_stride; /* bytes */
    const char *p;
    size_t p_stride;
    const struct tiles *v;
    int m, lo, hi, hd;
    bool ahead;
};

/* The right factors of n vectors of 16 dims, and their products with tile 4. */
INLINE void weigh_tile(const char *v, size_t stride, int n)
{
    TILE_LOAD(6, v, stride);
    TILE_DP_BF16(0, 4, 6);
    if (n > 1) {
        TILE_LOAD(7, v + 64, stride);
        TILE_DP_BF16(1, 4, 7);
    }
    if (n > 2) {
        TILE_LOAD(6, v + 128, stride);
        TILE_DP_BF16(2, 4, 6);
    }
    if (n > 3) {
        TILE_LOAD(7, v + 192, stride);
        TILE_DP_BF16(3, 4, 7);
    }
}

INLINE void load_sums(const char *o, size_t stride, int n)
{
    TILE_LOAD(0, o, stride);
    if (n > 1)
        TILE_LOAD(1, o + 64, stride);
    if (n > 2)
        TILE_LOAD(2, o + 128, stride);
    if (n > 3)
        TILE_LOAD(3, o + 192, stride);
}

INLINE void store_sums(char *o, size_t stride, int n)
{
    TILE_STORE(0, o, stride);
    if (n > 1)
        TILE_STORE(1, o + 64, stride);
    if (n > 2)
        TILE_STORE(2, o + 128, stride);
    if (n > 3)
        TILE_STORE(3, o + 192, stride);
}

/* Up to 64 dims from `dim` on. */
static void weigh_dims(const struct values *w, int dim)
{
    int n = (w->hd - dim < 64 ? w->hd - dim : 64) / 16;
    struct edge e;
    load_sums((const char *)(w->o + dim), w->o_stride, n);
    for (int t = w->lo / TILE_POS; t * TILE_POS < w->hi; t++) {
        int first = t * TILE_POS, lo = w->lo > first ? w->lo - first : 0;
        int hi = w->hi < first + TILE_POS ? w->hi - first : TILE_POS;
        const char *p = w->p + (size_t)first * 2, *v = w->v->tile[t];
        if (w->ahead)
            fetch_tile((const char *)w->v->ahead[t] + (size_t)dim / 64 * TILE_POS * 64 * 2,
                       (size_t)TILE_POS * (size_t)n * 16 * 2);
        if (lo > 0 || hi < TILE_POS) {
            mask_edge(&e, p, w->p_stride, w->m, v, w->hd, dim, lo, hi);
            TILE_LOAD(4, e.p, sizeof e.p[0]);
            weigh_tile((const char *)e.v, sizeof e.v[0], n);
            continue;
        }
        TILE_LOAD(4, p, w->p_stride);
        weigh_tile(v + (size_t)dim * 4, (size_t)w->hd * 4, n);
    }
    store_sums((char *)(w->o + dim), w->o_stride, n);
}

static void pv_bf16_amx(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                        const struct tiles *v, int lo, int hi, int hd)
{
    for (int r = 0; r < rows; r += ROWS) {
        int m = rows - r < ROWS ? rows - r : ROWS;
        struct values w = {o + r * o_stride,
                           o_stride * sizeof(float),
                           (const char *)p + r * p_stride,
                           p_stride,
                           v,
                           m,
                           lo,
                           hi,
                           hd,
                           v->ahead && r == 0};
        if (r == 0 || m < ROWS)
            tiles_configure(m, m, 32, 8);
        for (int dim = 0; dim < hd; dim += 64)
            weigh_dims(&w, dim);
    }
    TILE_RELEASE();
}

void attn_amx_fill(struct cpu_kernels *k)
{
    k->qk[W_BF16] = qk_bf16_amx;
    k->pv[W_BF16] = pv_bf16_amx;
}
