/* row.h - the sampler's inside: its scratch, and one row of logits on its way to a token.
 *
 * Thread: its owner's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SAMPLE_ROW_H
#define SL_SAMPLE_ROW_H

#include "sample/draw.h"
#include "sample/sampler.h"

struct sampler {
    int n; /* vocabulary */
    enum sl_logprobs_mode mode;
    bool by_probability; /* how proposed tokens are verified */
    float *x;            /* [n]: the row being worked on */
    float *masked;       /* [n]: a row as its mask leaves it */
    uint32_t *count;     /* [n]: zero between rows */
    int32_t *seen;       /* [n] */
    struct draw_scratch draw;
};

/* What noise its token is drawn with: a draft's is that of the model behind it. */
static inline struct race_key row_key(const struct sample_row *sr)
{
    return (struct race_key){sr->seq->req->params.seed, (uint32_t)sr->pos,
                             (uint32_t)sr->seq->index};
}

/* The row of sr after processors and temperature: s->x, or `raw` itself where it is greedy and
 * nothing changes it; *raw_max and *max are the largest values of raw and of it. NULL: NaN or
 * infinity from the model, or nothing left to choose from. */
const float *sampler_row(struct sampler *s, const struct sample_row *sr, const float *raw,
                         float *raw_max, float *max);

/* rejection.c: the token for a row that has a draft and a temperature, from s->x. mask: what min_p,
 * top_k and top_p drop becomes -inf there. */
int32_t sampler_verify(struct sampler *s, const struct sample_row *sr, float max, bool mask);

#endif
