/* attn_avx512.c - scores and weighted values over KV tiles.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/mac_avx512.h"

#include "backend/cpu/attn_body.h"

/* Scores of i8 K: each position's scale. */
INLINE void qk_scale(__m512i acc[MAC_ROWS][MAC_VECS], const char *const w[MAC_VECS],
                     const ptrdiff_t to[MAC_VECS], bool ahead, int hd, const int rows)
{
    UNROLL
    for (int j = 0; j < MAC_VECS; j++) {
        const char *at = w[j] + i8_scale_at(hd);
        __m512 scale = _mm512_loadu_ps((const float *)at);
        if (ahead)
            _mm_prefetch(at + to[j], _MM_HINT_T1);
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r][j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][j]), scale));
    }
}

/* Four tiles; a missing one repeats the last and is not stored. */
INLINE void qk_block(float *s, size_t s_stride, const char *q, size_t q_stride,
                     const struct tiles *k, int t, int n_tiles, int hd, enum wformat f, bool ahead,
                     const int rows)
{
    __m512i acc[MAC_ROWS][MAC_VECS];
    const char *w[MAC_VECS];
    ptrdiff_t to[MAC_VECS];
    UNROLL
    for (int j = 0; j < MAC_VECS; j++) {
        int i = t + j < n_tiles ? t + j : n_tiles - 1;
        w[j] = k->tile[i];
        to[j] = ahead ? (const char *)k->ahead[i] - w[j] : 0;
    }
    mac_start(acc, NULL, 0, true, rows, MAC_VECS);
    int steps = is_pair(f) ? hd / 2 : hd;
    if (ahead)
        mac_tile_ahead(acc, q, q_stride, w, mac_bytes(f), steps, f, to, rows, MAC_VECS);
    else
        mac_tile(acc, q, q_stride, w, mac_bytes(f), steps, f, rows, MAC_VECS);
    if (f == MAC_I8_PAIRS)
        qk_scale(acc, w, to, ahead, hd, rows);
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
    for (int j = 0; j < MAC_VECS; j++)
        if (t + j < n_tiles)
            _mm512_storeu_si512(s + r * s_stride + TILE_POS * j, acc[r][j]);
}

/* Tiles are fetched ahead once, with the first rows. */
INLINE void qk_all(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                   const struct tiles *k, int n_tiles, int hd, enum wformat f)
{
    for (int t = 0; t < n_tiles; t += MAC_VECS) {
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float *sr = s + r * s_stride + (size_t)t * TILE_POS;
            const char *qr = (const char *)q + r * q_stride;
            bool ahead = k->ahead && r == 0;
#define QK_CALL(n) qk_block(sr, s_stride, qr, q_stride, k, t, n_tiles, hd, f, ahead, n)
            MAC_DISPATCH(rows - r, QK_CALL)
        }
    }
}

/* A pair of positions of which only one counts: the other's p and V may be anything. */
INLINE void pv_half_pair(__m512i acc[MAC_ROWS][MAC_VECS], const char *p, size_t p_stride,
                         const char *v, uint32_t keep, enum wformat f, const int rows,
                         const int vecs)
{
    __m512i mask = _mm512_set1_epi32((int)keep);
    UNROLL
    for (int j = 0; j < vecs; j++) {
        __m512i w = _mm512_and_si512(mac_load(v + (size_t)j * mac_bytes(f), f), mask);
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r][j] =
                mac(acc[r][j], _mm512_and_si512(mac_broadcast(p + r * p_stride), mask), w, f);
    }
}

/* `vecs` vectors of dims from `dim` on. Steps are pairs of positions for bf16, else positions. */
INLINE void pv_block(float *o, size_t o_stride, const char *p, size_t p_stride,
                     const struct tiles *v, int lo, int hi, int hd, int dim, enum wformat f,
                     bool ahead, const int rows, const int vecs)
{
    const int pair = is_pair(f) ? 2 : 1, tile_steps = TILE_POS / pair;
    const size_t step = (size_t)hd / 16 * mac_bytes(f), offset = (size_t)dim / 16 * mac_bytes(f);
    __m512i acc[MAC_ROWS][MAC_VECS];
    mac_start(acc, o + dim, o_stride, false, rows, vecs);
    int i = (lo + pair - 1) / pair, end = hi / pair;
    if (pair == 2 && lo % 2) {
        const char *w = (const char *)v->tile[lo / TILE_POS] + offset;
        pv_half_pair(acc, p + (size_t)(lo / 2) * 4, p_stride,
                     w + (size_t)(lo % TILE_POS / 2) * step, 0xffff0000u, f, rows, vecs);
    }
    for (int n; i < end; i += n) {
        int t = i / tile_steps, first = i % tile_steps;
        const char *w[MAC_VECS], *tile = v->tile[t];
        n = tile_steps - first < end - i ? tile_steps - first : end - i;
        UNROLL
        for (int j = 0; j < vecs; j++)
            w[j] = tile + offset + first * step + (size_t)j * mac_bytes(f);
        if (ahead) {
            ptrdiff_t d = (const char *)v->ahead[t] - tile, to[MAC_VECS] = {d, d, d, d};
            mac_tile_ahead(acc, p + (size_t)i * 4, p_stride, w, step, n, f, to, rows, vecs);
        } else {
            mac_tile(acc, p + (size_t)i * 4, p_stride, w, step, n, f, rows, vecs);
        }
    }
    if (pair == 2 && hi % 2 && hi > lo) {
        const char *w = (const char *)v->tile[hi / TILE_POS] + offset;
        pv_half_pair(acc, p + (size_t)(hi / 2) * 4, p_stride,
                     w + (size_t)(hi % TILE_POS / 2) * step, 0x0000ffffu, f, rows, vecs);
    }
    mac_store(o + dim, o_stride, acc, rows, vecs);
}

INLINE void pv_all(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                   const struct tiles *v, int lo, int hi, int hd, enum wformat f)
{
    for (int dim = 0, vecs; dim < hd; dim += 16 * vecs) {
        vecs = hd - dim >= 16 * MAC_VECS ? MAC_VECS : 1;
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float *out = o + r * o_stride;
            const char *pr = (const char *)p + r * p_stride;
            bool ahead = v->ahead && r == 0;
#define PV_WIDE(n) pv_block(out, o_stride, pr, p_stride, v, lo, hi, hd, dim, f, ahead, n, MAC_VECS)
#define PV_NARROW(n) pv_block(out, o_stride, pr, p_stride, v, lo, hi, hd, dim, f, ahead, n, 1)
            if (vecs == MAC_VECS)
                MAC_DISPATCH(rows - r, PV_WIDE)
            else
                MAC_DISPATCH(rows - r, PV_NARROW)
        }
    }
}

ATTENTION_LEVEL(avx512)
