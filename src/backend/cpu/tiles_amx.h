/* tiles_amx.h - the tile registers: how they are set up, and the few instructions used.
 *
 * Tiles 0 .. 3: sums; 4, 5: left factors; 6, 7: right factors. Included by *_amx.c only.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_TILES_AMX_H
#define SL_BACKEND_CPU_TILES_AMX_H

#include "backend/cpu/kernels.h"
#include "backend/cpu/unroll.h"

#include <immintrin.h>

/* Macros, as tile numbers are part of the instruction. */
#ifndef TILE_LOAD
#define TILE_LOAD(t, p, stride) _tile_loadd(t, p, (long)(stride))
#define TILE_STORE(t, p, stride) _tile_stored(t, p, (long)(stride))
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_DP_BF16(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_DP_S8U8(c, a, b) _tile_dpbsud(c, a, b)
#define TILE_RELEASE() _tile_release()
#define TILE_CONFIGURE(c) _tile_loadconfig(c)
#endif

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* m rows in tiles 0, 1 and 4, m2 in 2, 3 and 5; left factors have k_bytes a row, right factors
 * k_rows = k_bytes / 4 rows. */
INLINE void tiles_configure_as(const uint8_t rows[8], const uint8_t row_bytes[8])
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = rows[i];
        c.row_bytes[i] = row_bytes[i];
    }
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not see that ldtilecfg reads c */
    TILE_CONFIGURE(&c);
}

INLINE void tiles_configure(int m, int m2, int k_bytes, int k_rows)
{
    uint8_t a = (uint8_t)m, b = (uint8_t)m2, k = (uint8_t)k_bytes, n = (uint8_t)k_rows;
    tiles_configure_as((const uint8_t[]){a, a, b, b, a, b, n, n},
                       (const uint8_t[]){64, 64, 64, 64, k, k, 64, 64});
}

void attn_amx_fill(struct cpu_kernels *k);

#endif
