/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/peak.h"

#include <immintrin.h>

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Eight full tiles. */
static void configure(void)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = 16;
        c.row_bytes[i] = 64;
    }
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not see that ldtilecfg reads c */
    _tile_loadconfig(&c);
}

/* Four tiles of sums, as the kernels have: latency 52 cycles, one product in 16. */
static double bf16_amx(int64_t n)
{
    configure();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t i = 0; i < n; i++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
    return 2.0 * 16 * 16 * 32 * 4 * (double)n;
}

static double i8_amx(int64_t n)
{
    configure();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t i = 0; i < n; i++) {
        _tile_dpbsud(0, 4, 5);
        _tile_dpbsud(1, 4, 5);
        _tile_dpbsud(2, 4, 5);
        _tile_dpbsud(3, 4, 5);
    }
    _tile_release();
    return 2.0 * 16 * 16 * 64 * 4 * (double)n;
}

/* Reading and f32 stay those of AVX-512. */
void peak_amx(struct peak *p)
{
    p->bf16 = bf16_amx;
    p->i8 = i8_amx;
}
