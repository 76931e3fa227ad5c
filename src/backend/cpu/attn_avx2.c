/* attn_avx2.c - scores and weighted values over KV tiles.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/mac_avx2.h"

#include "backend/cpu/attn_body.h"

INLINE void qk_rows(float *s, size_t s_stride, const char *q, size_t q_stride, const char *tile,
                    int hd, enum wformat f, const int rows)
{
    __m256 acc[MAC_ROWS][MAC_VECS];
    mac_start(acc, NULL, 0, true, rows, 2);
    mac_tile(acc, q, q_stride, tile, 2 * mac_bytes(f), is_pair(f) ? hd / 2 : hd, f, rows, 2);
    UNROLL
    for (int r = 0; r < rows && f == MAC_I8_PAIRS; r++)
        UNROLL
    for (int j = 0; j < 2; j++) {
        __m256 scale = _mm256_loadu_ps((const float *)(tile + i8_scale_at(hd)) + 8 * j);
        acc[r][j] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_castps_si256(acc[r][j])), scale);
    }
    mac_store(s, s_stride, acc, rows, 2);
}

INLINE void qk_all(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                   const struct tiles *k, int n_tiles, int hd, enum wformat f)
{
    for (int t = 0; t < n_tiles; t++) {
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float *sr = s + r * s_stride + (size_t)t * TILE_POS;
            const char *qr = (const char *)q + r * q_stride;
#define QK_CALL(n, vecs) qk_rows(sr, s_stride, qr, q_stride, k->tile[t], hd, f, n)
            MAC_DISPATCH(rows - r, QK_CALL)
        }
    }
}

/* Single positions at the ends of bf16 pairs take the half of the pair that counts. */
INLINE void pv_position(__m256 acc[MAC_ROWS][MAC_VECS], const char *p, size_t p_stride,
                        const char *v, bool odd, enum wformat f, const int rows, const int vecs)
{
    int32_t keep = odd ? (int32_t)0xffff0000u : 0xffff; /* of x: W may be anything there */
    UNROLL
    for (int j = 0; j < vecs; j++) {
        if (f == MAC_I8_PAIRS) {
            mac_i8_rows(acc, p, p_stride, load_i8(v + 16 * j), keep, rows, j);
            continue;
        }
        __m256i pair = _mm256_loadu_si256((const __m256i *)(v + 32 * j));
        mac_rows(acc, p, p_stride, odd ? odd_bf16(pair) : even_bf16(pair), rows, j);
    }
}

INLINE void pv_block(float *o, size_t o_stride, const char *p, size_t p_stride,
                     const struct tiles *v, int lo, int hi, int hd, int dim, enum wformat f,
                     const int rows, const int vecs)
{
    const int pair = is_pair(f) ? 2 : 1;
    const size_t x_bytes = f == MAC_I8_PAIRS ? 2 : 4;
    const size_t step = (size_t)hd / 8 * mac_bytes(f), offset = (size_t)dim / 8 * mac_bytes(f);
    __m256 acc[MAC_ROWS][MAC_VECS];
    mac_start(acc, o + dim, o_stride, false, rows, vecs);
    for (int i = lo, n; i < hi; i += n) {
        int in_tile = i % TILE_POS, room = TILE_POS - in_tile, left = hi - i;
        const char *w =
            (const char *)v->tile[i / TILE_POS] + offset + (size_t)(in_tile / pair) * step;
        n = left < room ? left : room;
        if (pair == 2 && (i % 2 || n == 1)) {
            n = 1;
            size_t at = f == MAC_I8_PAIRS ? (size_t)(i / 2) * 4 : (size_t)i * 4;
            pv_position(acc, p + at, p_stride, w, i % 2, f, rows, vecs);
            continue;
        }
        n -= n % pair;
        mac_tile(acc, p + (size_t)i * x_bytes, p_stride, w, step, n / pair, f, rows, vecs);
    }
    mac_store(o + dim, o_stride, acc, rows, vecs);
}

INLINE void pv_all(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                   const struct tiles *v, int lo, int hi, int hd, enum wformat f)
{
    for (int dim = 0; dim < hd; dim += 16) {
        for (int r = 0; r < rows; r += MAC_ROWS) {
            float *out = o + r * o_stride;
            const char *pr = (const char *)p + r * p_stride;
#define PV_CALL(n, vecs) pv_block(out, o_stride, pr, p_stride, v, lo, hi, hd, dim, f, n, 2)
            MAC_DISPATCH(rows - r, PV_CALL)
        }
    }
}

ATTENTION_LEVEL(avx2)
