/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/peak.h"
#include "backend/cpu/unroll.h"

#include <immintrin.h>

static uint64_t read_avx2(const void *p, size_t bytes)
{
    const char *c = p;
    __m256i sum[4] = {_mm256_setzero_si256()};
    /* One cache line after the other: merged or reordered loads disturb the prefetcher. */
    for (size_t i = 0; i < bytes; i += 128) {
        UNROLL
        for (int j = 0; j < 4; j++)
            sum[j] =
                _mm256_xor_si256(sum[j], _mm256_loadu_si256((const __m256i *)(c + i + 32 * j)));
    }
    sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    return (uint64_t)_mm256_extract_epi64(sum[0], 0) ^ (uint64_t)_mm256_extract_epi64(sum[0], 3);
}

enum { CHAINS = 12 };

static double f32_avx2(int64_t n)
{
    __m256 acc[CHAINS], x = _mm256_setzero_ps();
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        acc[j] = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++)
            __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(acc[j]) : "x"(x));
    }
    return 2.0 * 8 * CHAINS * (double)n;
}

/* A 16-bit product and an addition: what int8 takes without VNNI is twice this and more. */
static double i8_avx2(int64_t n)
{
    __m256i acc[CHAINS], x = _mm256_setzero_si256();
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        acc[j] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++) {
            __m256i t;
            __asm__ volatile("vpmaddwd %1, %1, %0" : "=x"(t) : "x"(x));
            __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc[j]) : "x"(t));
        }
    }
    return 2.0 * 16 * CHAINS * (double)n;
}

void peak_avx2(struct peak *p)
{
    *p = (struct peak){read_avx2, f32_avx2, NULL, i8_avx2};
}
