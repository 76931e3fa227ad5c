/* fp8.h - e4m3 (the OCP's E4M3: no infinities, largest 448, one NaN a sign), one value at a time,
 * and the scales that go with it.
 *
 * Conversion rounds to nearest even and saturates, as the hardware's .satfinite does; NaN stays
 * NaN. A row or head that becomes e4m3 has one scale: value ~ code * scale.   Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_FP8_H
#define SL_BASE_FP8_H

#include "base/half.h"

#include <math.h>
#include <stddef.h>

#define E4M3_MAX 448.0f

static inline float e4m3_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80) << 24, exp = c >> 3 & 15, man = c & 7;
    if ((c & 0x7f) == 0x7f)
        return bits_f32(sign | 0x7fc00000);
    if (exp)
        return bits_f32(sign | (exp + 120) << 23 | man << 20);
    float tiny = (float)man * 0x1p-9f; /* zero and subnormals, exactly */
    return sign ? -tiny : tiny;
}

static inline uint8_t f32_e4m3(float f)
{
    uint32_t u = f32_bits(f), sign = u >> 24 & 0x80;
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return 0x7f;
    if (u >= 0x43e00000) /* 448 */
        return (uint8_t)(sign | 0x7e);
    if (u < 0x3c800000) /* subnormal: the sum's last bit is worth 2^-9, so the FPU rounds */
        return (uint8_t)(sign | (f32_bits(bits_f32(u) + 0x1p14f) - 0x46800000));
    return (uint8_t)(sign | ((u - 0x3c000000 + 0x7ffff + (u >> 20 & 1)) >> 20));
}

/* The scale of values whose largest is `top`. NaN if that is not finite, so that it shows. */
static inline float e4m3_scale(float top)
{
    if (!(top <= 0x1.fffffep127f))
        return bits_f32(0x7fc00000);
    float scale = top / E4M3_MAX;
    return scale > 0x1p-126f ? scale : 0x1p-126f;
}

/* Largest magnitude of n values; NaN if there is one. */
static inline float max_magnitude(const float *x, size_t n)
{
    float top = 0;
    for (size_t i = 0; i < n && top == top; i++)
        top = fabsf(x[i]) <= top ? top : fabsf(x[i]);
    return top;
}

#endif
