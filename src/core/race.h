/* race.h - the noise that a token is drawn with.
 *
 * Every token waits for a time of its own, exponential with the token's weight as its rate, and the
 * one that comes first is drawn (in logarithms: the Gumbel-max trick). The noise belongs to the
 * request, the position and the token, not to the distribution: two distributions that are alike
 * draw the same token but for 2 d / (1 + d) of the draws, d being their total variation distance.
 * So a draft model that draws with the noise of the model behind it mostly says what that will say.
 *
 * Only tokens of RACE_LIGHT or more race for themselves. Those below, most of a vocabulary, race as
 * one with the sum of their weights; if that comes first, a second number picks among them, along
 * the ids.
 *
 * Integers, and doubles in a fixed order with roundings written out: every device agrees in every
 * bit.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_RACE_H
#define SL_CORE_RACE_H

#include "core/drawrow.h"
#include "core/philox.h"

#ifdef __CUDA_ARCH__
#define RACE_MUL(a, b) __dmul_rn(a, b)
#define RACE_ADD(a, b) __dadd_rn(a, b)
#define RACE_DIV(a, b) __ddiv_rn(a, b)
#define RACE_CLZ(x) __clzll((long long)(x))
#else
#define RACE_MUL(a, b) ((a) * (b))
#define RACE_ADD(a, b) ((a) + (b))
#define RACE_DIV(a, b) ((a) / (b))
#define RACE_CLZ(x) __builtin_clzll(x)
#endif

static const uint64_t RACE_LIGHT = (uint64_t)1
                                   << (DRAW_BITS - 10); /* of core/drawrow.h's weights */

struct race_key {
    uint64_t seed;
    uint32_t pos, choice;
};

/* 53 random bits each. */
struct race_noise {
    uint64_t wait, pick;
};

/* id -1: of the light tokens together. */
PHILOX_FN struct race_noise race_noise(const struct race_key *k, int32_t id)
{
    uint32_t ctr[4] = {k->pos, (uint32_t)(id + 1), k->choice, PHILOX_TOKEN}, out[4];
    philox4x32(ctr, k->seed, out);
    struct race_noise n = {((uint64_t)out[1] << 32 | out[0]) >> 11,
                           ((uint64_t)out[3] << 32 | out[2]) >> 11};
    return n;
}

/* When a token of this weight comes: -ln(u) / weight, u = (bits + 1/2) / 2^53. The logarithm is
 * that of m in [1/sqrt 2, sqrt 2), from the series of artanh; what is left out is 1e-12 of it. */
PHILOX_FN double race_time(uint64_t bits, uint64_t weight)
{
    uint64_t x = 2 * bits + 1; /* u * 2^54 */
    int top = 63 - RACE_CLZ(x), e = 54 - top;
    double m = RACE_MUL((double)(x << (53 - top)), 0x1p-53);
    if (m > 1.4142135623730951) {
        m = RACE_MUL(m, 0.5);
        e--;
    }
    double s = RACE_DIV(RACE_ADD(m, -1.0), RACE_ADD(m, 1.0)), z = RACE_MUL(s, s), p = 1.0 / 13;
    p = RACE_ADD(RACE_MUL(p, z), 1.0 / 11);
    p = RACE_ADD(RACE_MUL(p, z), 1.0 / 9);
    p = RACE_ADD(RACE_MUL(p, z), 1.0 / 7);
    p = RACE_ADD(RACE_MUL(p, z), 1.0 / 5);
    p = RACE_ADD(RACE_MUL(p, z), 1.0 / 3);
    p = RACE_ADD(RACE_MUL(p, z), 1.0);
    double log_m = RACE_MUL(RACE_MUL(2.0, s), p);
    double t = RACE_ADD(RACE_MUL((double)e, 0.69314718055994531), -log_m);
    return RACE_DIV(t, (double)weight);
}

#endif
