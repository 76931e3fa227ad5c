/* half.h - the 16-bit floats, one value at a time. Round to nearest even; NaN stays NaN.
 *
 * The plain form of what vector code does with instructions.   Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_HALF_H
#define SL_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_f32(uint16_t h)
{
    return bits_f32((uint32_t)h << 16);
}

static inline uint16_t f32_bf16(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40); /* quiet, so that truncation cannot make it Inf */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float f16_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31)
        return bits_f32(sign | 0x7f800000 | man << 13);
    if (exp)
        return bits_f32(sign | (exp + 112) << 23 | man << 13);
    float tiny = (float)man * 0x1p-24f; /* zero and subnormals, exactly */
    return sign ? -tiny : tiny;
}

static inline uint16_t f32_f16(float f)
{
    uint32_t u = f32_bits(f), sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (u >= 0x477ff000) /* 65520 and more round to Inf */
        return (uint16_t)(sign | 0x7c00);
    if (u < 0x38800000) { /* subnormal: the sum's last bit is worth 2^-24, so the FPU rounds */
        float shifted = bits_f32(u) + 0.5f;
        return (uint16_t)(sign | (f32_bits(shifted) - 0x3f000000));
    }
    return (uint16_t)(sign | ((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13));
}

#endif
