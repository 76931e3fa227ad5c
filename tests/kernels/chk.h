/* chk.h - what kernel tests share: seeded numbers, buffers that end at a guard page, comparison.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KERNELS_CHK_H
#define TESTS_KERNELS_CHK_H

#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "support/levels.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

/* ---- numbers: the seed is fixed, SLUICE_TEST_SEED passes another --------------------------- */

static uint64_t chk_state = 20240611;

static inline void chk_seed(void)
{
    const char *s = getenv("SLUICE_TEST_SEED");
    if (s)
        chk_state = strtoull(s, NULL, 10);
    print_message("seed %llu\n", (unsigned long long)chk_state);
}

static inline uint64_t chk_u64(void) /* splitmix64 */
{
    uint64_t z = chk_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline int chk_int(int below)
{
    return (int)(chk_u64() % (uint64_t)below);
}

static inline float chk_float(void) /* about normal, variance 1 */
{
    float s = 0;
    for (int i = 0; i < 4; i++)
        s += (float)(int32_t)(chk_u64() >> 32) * 0x1p-31f;
    return s * 0.866f;
}

static inline float chk_bf16(void)
{
    return bf16_f32(f32_bf16(chk_float()));
}

static inline void chk_fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = chk_float();
}

/* Values that bf16 holds exactly, so that packing activations loses nothing. */
static inline void chk_fill_bf16(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = chk_bf16();
}

/* ---- memory: a byte past the end is a crash ------------------------------------------------- */

enum { CHK_PAGE = 4096 };

static inline size_t chk_round(size_t bytes)
{
    return (bytes + CHK_PAGE - 1) & ~(size_t)(CHK_PAGE - 1);
}

/* A guard page before and behind; the buffer ends exactly at the one behind. Filled with NaN. */
static inline void *chk_alloc(size_t bytes)
{
    size_t n = chk_round(bytes);
    char *p = mmap(NULL, n + 2 * CHK_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + CHK_PAGE, n, PROT_READ | PROT_WRITE), 0);
    memset(p + CHK_PAGE, 0xff, n);
    return p + CHK_PAGE + n - bytes;
}

static inline float *chk_floats(size_t n)
{
    return chk_alloc(n * sizeof(float));
}

static inline void chk_free(void *p, size_t bytes)
{
    if (!p)
        return;
    size_t n = chk_round(bytes);
    munmap((char *)p + bytes - n - CHK_PAGE, n + 2 * CHK_PAGE);
}

/* ---- comparison ----------------------------------------------------------------------------- */

/* |got - want| <= tol, NaN equals NaN and nothing else; an Inf equals itself. */
static inline bool chk_same(float got, double want, double tol)
{
    if (want != want || got != got)
        return want != want && got != got;
    if (isinf(want) || isinf(got))
        return (double)got == want;
    return fabs(got - want) <= tol;
}

#define chk_close(got, want, tol, ...)                                        \
    do {                                                                      \
        float g_ = (got);                                                     \
        double w_ = (want), t_ = (tol);                                       \
        if (!chk_same(g_, w_, t_)) {                                          \
            print_error("got %.9g, want %.9g +- %.3g: ", (double)g_, w_, t_); \
            print_error(__VA_ARGS__);                                         \
            fail();                                                           \
        }                                                                     \
    } while (0)

#endif
