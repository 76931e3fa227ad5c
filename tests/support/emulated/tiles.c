/* SPDX-License-Identifier: Apache-2.0 */
#include "support/emulated/tiles.h"

#include "backend/cpu/isa.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <xmmintrin.h>

_Thread_local struct emulated_tile emulated[8];

enum { FLUSH = 0x8040 }; /* of MXCSR: results and inputs that are subnormal count as zeros */

bool cpu_has_tiles(void)
{
    return true;
}

void emulated_configure(struct emulated_tile t[8], const void *config)
{
    const uint8_t *c = config;
    assert(!c || c[0] == 1);
    for (int i = 0; i < 8; i++) {
        uint16_t row_bytes = 0;
        if (c)
            memcpy(&row_bytes, c + 16 + 2 * i, sizeof row_bytes);
        assert(row_bytes <= 64 && (!c || c[48 + i] <= 16));
        emulated_zero(&t[i]);
        t[i].rows = c ? c[48 + i] : 0;
        t[i].row_bytes = row_bytes;
    }
}

void emulated_zero(struct emulated_tile *t)
{
    memset(t->row, 0, sizeof t->row);
}

void emulated_load(struct emulated_tile *t, const void *p, size_t stride)
{
    assert(t->rows > 0);
    emulated_zero(t);
    for (int r = 0; r < t->rows; r++)
        memcpy(t->row[r], (const char *)p + (size_t)r * stride, (size_t)t->row_bytes);
}

void emulated_store(const struct emulated_tile *t, void *p, size_t stride)
{
    assert(t->rows > 0);
    for (int r = 0; r < t->rows; r++)
        memcpy((char *)p + (size_t)r * stride, t->row[r], (size_t)t->row_bytes);
}

/* What the processor wants of the three, and more: a zero dimension would hide a mistake. */
static void check_shapes(const struct emulated_tile *c, const struct emulated_tile *a,
                         const struct emulated_tile *b)
{
    assert(c->rows > 0 && a->row_bytes > 0 && c->row_bytes > 0);
    assert(c != a && c != b && a != b);
    assert(a->rows == c->rows && a->row_bytes == 4 * b->rows && b->row_bytes == c->row_bytes);
    assert(a->row_bytes % 4 == 0 && c->row_bytes % 4 == 0);
}

static void widen(float even[16], float odd[16], const uint8_t row[64])
{
    uint32_t pair[16], high[16];
    memcpy(pair, row, sizeof pair);
    for (int i = 0; i < 16; i++) {
        high[i] = pair[i] & 0xffff0000u;
        pair[i] <<= 16;
    }
    memcpy(even, pair, sizeof pair);
    memcpy(odd, high, sizeof high);
}

/* A row: even and odd products are added apart, each to a sum from zero, both rounded once a
 * product; then their sum to c. */
__attribute__((noinline)) static void row_bf16(uint8_t c[64], const float *x0, const float *x1,
                                               float (*w0)[16], float (*w1)[16], int n)
{
    float even[16] = {0}, odd[16] = {0}, sum[16];
    for (int k = 0; k < n; k++)
        for (int i = 0; i < 16; i++) {
            even[i] = fmaf(x0[k], w0[k][i], even[i]);
            odd[i] = fmaf(x1[k], w1[k][i], odd[i]);
        }
    memcpy(sum, c, sizeof sum);
    for (int i = 0; i < 16; i++)
        sum[i] += even[i] + odd[i];
    memcpy(c, sum, sizeof sum);
}

void emulated_dp_bf16(struct emulated_tile *c, const struct emulated_tile *a,
                      const struct emulated_tile *b)
{
    float x0[16], x1[16], w0[16][16], w1[16][16];
    unsigned mode = _mm_getcsr();
    check_shapes(c, a, b);
    for (int k = 0; k < b->rows; k++)
        widen(w0[k], w1[k], b->row[k]);
    _mm_setcsr((mode & ~0x6000u) | FLUSH); /* rounds to nearest even */
    for (int r = 0; r < c->rows; r++) {
        widen(x0, x1, a->row[r]);
        row_bf16(c->row[r], x0, x1, w0, w1, b->rows);
    }
    _mm_setcsr(mode);
}

void emulated_dp_s8u8(struct emulated_tile *c, const struct emulated_tile *a,
                      const struct emulated_tile *b)
{
    check_shapes(c, a, b);
    for (int r = 0; r < c->rows; r++) {
        const int8_t *x = (const int8_t *)a->row[r];
        uint32_t sum[16];
        memcpy(sum, c->row[r], sizeof sum);
        for (int k = 0; k < b->rows; k++)
            for (int i = 0; i < 16; i++)
                for (int j = 0; j < 4; j++)
                    sum[i] += (uint32_t)(x[4 * k + j] * b->row[k][4 * i + j]);
        memcpy(c->row[r], sum, sizeof sum);
    }
}
