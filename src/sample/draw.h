/* draw.h - from logits to one token: min_p, top_k, top_p, then a weighted draw.
 *
 * The draw depends on the row and on the key of its noise alone (core/race.h). Weights are added as
 * integers (core/drawrow.h), so a device that adds them in another order draws the same token.
 * Nothing is sorted but the values around top_p's edge.
 *
 * Thread: any; scratch is the caller's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SAMPLE_DRAW_H
#define SL_SAMPLE_DRAW_H

#include "core/race.h"

#include <stdbool.h>

struct draw_params {
    float min_p; /* 0: off */
    int top_k;   /* 0: off */
    float top_p; /* 1: off */
};

/* Room for one row of n values, for draw_token's own use. */
struct draw_scratch {
    float *w;                  /* [n] */
    int32_t *ids, *top, *edge; /* [n] */
};

/* x: [n] logits after temperature, with `max` their largest, finite.
 * mask: what min_p, top_k and top_p drop becomes -inf in x. */
int32_t draw_token(const struct draw_params *p, float *x, int n, float max,
                   const struct race_key *key, bool mask, const struct draw_scratch *s);

/* The same distribution as weights: w[i] is in proportion to the probability of i, exactly 0 for
 * what min_p, top_k and top_p drop. w: [n], may be s->w. Returns their sum. */
double draw_weights(const struct draw_params *p, const float *x, int n, float max, float *w,
                    const struct draw_scratch *s);
/* Index i with probability w[i] / sum, the largest of them about 1. u: 53 random bits. */
int draw_pick(const float *w, int n, uint64_t u);

#endif
