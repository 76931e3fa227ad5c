/* tiles.h - the tile instructions in plain C, so that AMX kernels can be checked where there is no
 * AMX. Comes before tiles_amx.h (-include), whose macros it defines.
 *
 * As Intel's manual specifies them, with asserts where the processor would fault. A thread has its
 * own registers.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_EMULATED_TILES_H
#define TESTS_SUPPORT_EMULATED_TILES_H

#include <stddef.h>
#include <stdint.h>

struct emulated_tile {
    int rows, row_bytes; /* 0: not configured */
    _Alignas(64) uint8_t row[16][64];
};

/* c += a b, see tiles.c. */
void emulated_dp_bf16(struct emulated_tile *c, const struct emulated_tile *a,
                      const struct emulated_tile *b);
void emulated_dp_s8u8(struct emulated_tile *c, const struct emulated_tile *a,
                      const struct emulated_tile *b);
void emulated_load(struct emulated_tile *t, const void *p, size_t stride);
void emulated_store(const struct emulated_tile *t, void *p, size_t stride);
void emulated_zero(struct emulated_tile *t);
void emulated_configure(struct emulated_tile t[8], const void *config); /* NULL: release */

extern _Thread_local struct emulated_tile emulated[8];

#define TILE_LOAD(t, p, stride) emulated_load(&emulated[t], p, stride)
#define TILE_STORE(t, p, stride) emulated_store(&emulated[t], p, stride)
#define TILE_ZERO(t) emulated_zero(&emulated[t])
#define TILE_DP_BF16(c, a, b) emulated_dp_bf16(&emulated[c], &emulated[a], &emulated[b])
#define TILE_DP_S8U8(c, a, b) emulated_dp_s8u8(&emulated[c], &emulated[a], &emulated[b])
#define TILE_RELEASE() emulated_configure(emulated, NULL)
#define TILE_CONFIGURE(c) emulated_configure(emulated, c)

#endif
