/* dummy.c - weights made up from their names, for benchmarks of shapes without a checkpoint.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"
#include "model/loader.h"

static uint64_t mix(uint64_t z) /* splitmix64's finalizer */
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t dummy_key(uint64_t seed, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return mix(h ^ mix(seed));
}

void dummy_fill(void *out, enum sl_dtype dtype, size_t n, uint64_t seed, const char *name,
                float mean, float width)
{
    uint64_t key = dummy_key(seed, name);
    float unit = width / 32768;
    for (size_t i = 0; i < n; i += 4) {
        uint64_t bits = mix(key + i * 0x9e3779b97f4a7c15u);
        for (size_t j = i; j < i + 4 && j < n; j++, bits >>= 16) {
            float v = mean + (float)(int16_t)bits * unit;
            if (dtype == SL_DTYPE_F32)
                ((float *)out)[j] = v;
            else
                ((uint16_t *)out)[j] = dtype == SL_DTYPE_BF16 ? f32_bf16(v) : f32_f16(v);
        }
    }
}
