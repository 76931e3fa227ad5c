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

/* `lines` lines of what will be read soon, or NULL. A few at a time, between products: many at once
 * would hold up the loads behind them. */
INLINE void fetch_lines(const char *p, int lines)
{
    for (int i = 0; p && i < lines; i++)
        _mm_prefetch(p + (size_t)i * 64, _MM_HINT_T1);
}

/* Up to four K tiles, scored side by side: what is loaded of the queries serves all. */
struct four {
    const char *k[4], *ahead[4];
    int n;
};

INLINE struct four take_four(const struct tiles *k, int t, int n_tiles, bool ahead)
{
    struct four f = {.n = n_tiles - t < 4 ? n_tiles - t : 4};
    for (int i = 0; i < f.n; i++) {
        f.k[i] = k->tile[t + i];
        f.ahead[i] = ahead ? k->ahead[t + i] : NULL;
    }
    return f;
}

/* Adds dims from byte `at` of a K tile on, `rows` pairs of them; q and k are tiles' numbers. */
#define SCORE(c, q, k_tile, rows)                                   \
    do {                                                            \
        if ((c) < f.n) {                                            \
            TILE_LOAD(k_tile, f.k[c] + at, 64);                     \
            fetch_lines(f.ahead[c] ? f.ahead[c] + at : NULL, rows); \
            TILE_DP_BF16(c, q, k_tile);                             \
        }                                                           \
    } while (0)

#define STORE(c)                                                           \
    do {                                                                   \
        if ((c) < f.n)                                                     \
            TILE_STORE(c, s + (size_t)(t + (c)) * TILE_POS, s_stride * 4); \
    } while (0)

static void score_rows(float *s, size_t s_stride, const char *q, size_t q_stride,
                       const struct tiles *k, int n_tiles, int hd, bool ahead)
{
    size_t whole = (size_t)(hd / K_STEP) * K_STEP * TILE_POS * 2;
    for (int t = 0; t < n_tiles; t += 4) {
        struct four f = take_four(k, t, n_tiles, ahead);
        size_t at = 0;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        for (; at < whole; at += K_STEP * TILE_POS * 2) {
            TILE_LOAD(4, q + at / TILE_POS, q_stride);
            SCORE(0, 4, 6, 16);
            SCORE(1, 4, 6, 16);
            SCORE(2, 4, 6, 16);
            SCORE(3, 4, 6, 16);
        }
        if (hd % K_STEP) {
            TILE_LOAD(5, q + at / TILE_POS, q_stride);
            SCORE(0, 5, 7, 8);
            SCORE(1, 5, 7, 8);
            SCORE(2, 5, 7, 8);
            SCORE(3, 5, 7, 8);
        }
        STORE(0);
        STORE(1);
        STORE(2);
        STORE(3);
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

/* The right factors of n vectors of 16 dims, and their products with tile 4. Each goes with as many
 * bytes fetched from `ahead` on. */
INLINE void weigh_tile(const char *v, size_t stride, int n, const char *ahead)
{
    TILE_LOAD(6, v, stride);
    fetch_lines(ahead, 8);
    TILE_DP_BF16(0, 4, 6);
    if (n > 1) {
        TILE_LOAD(7, v + 64, stride);
        fetch_lines(ahead ? ahead + 512 : NULL, 8);
        TILE_DP_BF16(1, 4, 7);
    }
    if (n > 2) {
        TILE_LOAD(6, v + 128, stride);
        fetch_lines(ahead ? ahead + 1024 : NULL, 8);
        TILE_DP_BF16(2, 4, 6);
    }
    if (n > 3) {
        TILE_LOAD(7, v + 192, stride);
        fetch_lines(ahead ? ahead + 1536 : NULL, 8);
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
        const char *ahead = w->ahead ? (const char *)w->v->ahead[t] + (size_t)dim * 32 : NULL;
        if (lo > 0 || hi < TILE_POS) {
            mask_edge(&e, p, w->p_stride, w->m, v, w->hd, dim, lo, hi);
            TILE_LOAD(4, e.p, sizeof e.p[0]);
            weigh_tile((const char *)e.v, sizeof e.v[0], n, ahead);
            continue;
        }
        TILE_LOAD(4, p, w->p_stride);
        weigh_tile(v + (size_t)dim * 4, (size_t)w->hd * 4, n, ahead);
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
