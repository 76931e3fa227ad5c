/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/peak.h"
#include "backend/cpu/unroll.h"

#include <immintrin.h>

static uint64_t read_avx512(const void *p, size_t bytes)
{
    const char *c = p;
    __m512i sum[4] = {_mm512_setzero_si512()};
    /* One cache line after the other: reordered loads disturb the prefetcher (22 against 29 GB/s).
     */
    for (size_t i = 0; i < bytes; i += 256) {
        UNROLL
        for (int j = 0; j < 4; j++)
            sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(c + i + 64 * j));
    }
    sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    return (uint64_t)_mm512_reduce_add_epi64(sum[0]);
}

enum { CHAINS = 24 }; /* as many sums as the kernels have: more than latency needs */

/* Written in assembly, so that no compiler sees that nobody needs the sums. */
#define PEAK(NAME, INSTRUCTION, LANES)                                               \
    static double NAME(int64_t n)                                                    \
    {                                                                                \
        __m512i acc[CHAINS], x = _mm512_setzero_si512();                             \
        UNROLL                                                                       \
        for (int j = 0; j < CHAINS; j++)                                             \
            acc[j] = _mm512_setzero_si512();                                         \
        for (int64_t i = 0; i < n; i++) {                                            \
            UNROLL                                                                   \
            for (int j = 0; j < CHAINS; j++)                                         \
                __asm__ volatile(INSTRUCTION " %1, %1, %0" : "+v"(acc[j]) : "v"(x)); \
        }                                                                            \
        return 2.0 * (LANES)*CHAINS * (double)n;                                     \
    }
PEAK(f32_avx512, "vfmadd231ps", 16)
PEAK(bf16_avx512, "vdpbf16ps", 32)
PEAK(i8_avx512, "vpdpbusd", 64)

void peak_avx512(struct peak *p)
{
    *p = (struct peak){read_avx512, f32_avx512, bf16_avx512, i8_avx512};
}
