/* attn_avx512.c - scores and weighted values over KV tiles.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/mac_avx512.h"

INLINE void qk_block(float *s, size_t s_stride, const char *q, size_t q_stride,
                     const void *const *tiles, int n_tiles, int hd, enum wformat f, const int rows)
{
    __m512i acc[MAC_ROWS][MAC_VECS];
    const char *w[MAC_VECS];
    UNROLL for (int j = 0; j < MAC_VECS; j++) /* a missing tile repeats the last: not stored */
        w[j] = tiles[j < n_tiles ? j : n_tiles - 1];
    mac_start(acc, NULL, 0, true, rows, MAC_VECS);
    mac_tile(acc, q, q_stride, w, mac_bytes(f), f == W_BF16 ? hd / 2 : hd, f, rows, MAC_VECS);
    if (n_tiles >= MAC_VECS) {
        mac_store(s, s_stride, acc, rows, MAC_VECS);
        return;
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int j = 0; j < MAC_VECS; j++) if (j < n_tiles)
        _mm512_storeu_si512(s + r * s_stride + TILE_POS * j, acc[r][j]);
}

INLINE void qk_all(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                   const void *const *tiles, int n_tiles, int hd, enum wformat f)
{
    for (int t = 0; t < n_tiles; t += MAC_VECS) {
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float *sr = s + r * s_stride + (size_t)t * TILE_POS;
            const char *qr = (const char *)q + r * q_stride;
#define QK_CALL(n) qk_block(sr, s_stride, qr, q_stride, tiles + t, n_tiles - t, hd, f, n)
            MAC_DISPATCH(rows - r, QK_CALL)
        }
    }
}

/* A pair of positions of which only one counts: the other's p and V may be anything. */
INLINE void pv_half_pair(__m512i acc[MAC_ROWS][MAC_VECS], const char *p, size_t p_stride,
                         const char *v, uint32_t keep, const int rows, const int vecs)
{
    __m512i mask = _mm512_set1_epi32((int)keep);
    UNROLL for (int j = 0; j < vecs; j++)
    {
        __m512i w = _mm512_and_si512(_mm512_loadu_si512(v + 64 * j), mask);
        UNROLL for (int r = 0; r < rows; r++) acc[r][j] =
            mac(acc[r][j], _mm512_and_si512(mac_broadcast(p + r * p_stride), mask), w, W_BF16);
    }
}

/* `vecs` vectors of dims from `dim` on. Steps are pairs of positions for bf16, else positions. */
INLINE void pv_block(float *o, size_t o_stride, const char *p, size_t p_stride,
                     const void *const *tiles, int lo, int hi, int hd, int dim, enum wformat f,
                     const int rows, const int vecs)
{
    const int pair = f == W_BF16 ? 2 : 1, tile_steps = TILE_POS / pair;
    const size_t step = (size_t)hd / 16 * mac_bytes(f), offset = (size_t)dim / 16 * mac_bytes(f);
    __m512i acc[MAC_ROWS][MAC_VECS];
    mac_start(acc, o + dim, o_stride, false, rows, vecs);
    int i = (lo + pair - 1) / pair, end = hi / pair;
    if (pair == 2 && lo % 2) {
        const char *v = (const char *)tiles[lo / TILE_POS] + offset;
        pv_half_pair(acc, p + (size_t)(lo / 2) * 4, p_stride,
                     v + (size_t)(lo % TILE_POS / 2) * step, 0xffff0000u, rows, vecs);
    }
    while (i < end) {
        int first = i % tile_steps, n = tile_steps - first < end - i ? tile_steps - first : end - i;
        const char *v = (const char *)tiles[i / tile_steps] + offset + first * step;
        const char *w[MAC_VECS];
        UNROLL for (int j = 0; j < vecs; j++) w[j] = v + (size_t)j * mac_bytes(f);
        mac_tile(acc, p + (size_t)i * 4, p_stride, w, step, n, f, rows, vecs);
        i += n;
    }
    if (pair == 2 && hi % 2 && hi > lo) {
        const char *v = (const char *)tiles[hi / TILE_POS] + offset;
        pv_half_pair(acc, p + (size_t)(hi / 2) * 4, p_stride,
                     v + (size_t)(hi % TILE_POS / 2) * step, 0x0000ffffu, rows, vecs);
    }
    mac_store(o + dim, o_stride, acc, rows, vecs);
}

INLINE void pv_all(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                   const void *const *tiles, int lo, int hi, int hd, enum wformat f)
{
    for (int dim = 0, vecs; dim < hd; dim += 16 * vecs) {
        vecs = hd - dim >= 16 * MAC_VECS ? MAC_VECS : 1;
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float * or = o + r * o_stride;
            const char *pr = (const char *)p + r * p_stride;
#define PV_WIDE(n) pv_block(or, o_stride, pr, p_stride, tiles, lo, hi, hd, dim, f, n, MAC_VECS)
#define PV_NARROW(n) pv_block(or, o_stride, pr, p_stride, tiles, lo, hi, hd, dim, f, n, 1)
            if (vecs == MAC_VECS)
                MAC_DISPATCH(rows - r, PV_WIDE)
            else
                MAC_DISPATCH(rows - r, PV_NARROW)
        }
    }
}

#define ATTENTION(NAME, FORMAT)                                                                \
    static void qk_##NAME##_avx512(float *s, size_t s_stride, const void *q, size_t q_stride,  \
                                   int rows, const void *const *tiles, int n_tiles, int hd)    \
    {                                                                                          \
        qk_all(s, s_stride, q, q_stride, rows, tiles, n_tiles, hd, FORMAT);                    \
    }                                                                                          \
    static void pv_##NAME##_avx512(float *o, size_t o_stride, const void *p, size_t p_stride,  \
                                   int rows, const void *const *tiles, int lo, int hi, int hd) \
    {                                                                                          \
        pv_all(o, o_stride, p, p_stride, rows, tiles, lo, hi, hd, FORMAT);                     \
    }
ATTENTION(f32, W_F32)
ATTENTION(f16, W_F16)
ATTENTION(bf16, W_BF16)

void attn_avx512_fill(struct cpu_kernels *k)
{
    k->qk[W_F32] = qk_f32_avx512;
    k->qk[W_F16] = qk_f16_avx512;
    k->qk[W_BF16] = qk_bf16_avx512;
    k->pv[W_F32] = pv_f32_avx512;
    k->pv[W_F16] = pv_f16_avx512;
    k->pv[W_BF16] = pv_bf16_avx512;
}
