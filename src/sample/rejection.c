/* Speculative sampling (Leviathan et al., arXiv 2211.17192): whatever a draft's distribution q is,
 * the token has the target's, p.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sample/row.h"
#include "sample/rowmath.h"

#include <math.h>

void sampler_reject_by_probability(struct sampler *s)
{
    s->by_probability = true;
}

static uint64_t bits(const struct sample_row *sr, enum philox_purpose purpose)
{
    return philox_bits53(sr->seq->req->params.seed, (uint64_t)sr->pos, (uint32_t)sr->seq->index,
                         purpose);
}

static struct draw_params params_of(const struct sample_row *sr)
{
    const struct sl_sampling_params *p = &sr->seq->req->params.p;
    return (struct draw_params){p->min_p, p->top_k, p->top_p};
}

/* w becomes max(0, p - q), what the target has beyond the draft, the largest made 1. Where the two
 * are equal up to rounding nothing is left; then any draw from p will do, and w stays. */
static void keep_residual(float *w, double sum, const float *q, int32_t draft, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, (double)w[i] / sum - (double)(q ? q[i] : i == draft));
    for (int i = 0; i < n && most > 0; i++) {
        double more = (double)w[i] / sum - (double)(q ? q[i] : i == draft);
        w[i] = more > 0 ? (float)(more / most) : 0;
    }
}

int32_t sampler_verify(struct sampler *s, const struct sample_row *sr, float max, bool mask)
{
    struct draw_params dp = params_of(sr);
    float *w = s->draw.w;
    double sum = draw_weights(&dp, s->x, s->n, max, w, &s->draw);
    double q = sr->draft_prob ? (double)sr->draft_prob[sr->draft] : 1;
    for (int i = 0; i < s->n && mask; i++)
        if (w[i] == 0)
            s->x[i] = -INFINITY;
    if ((double)bits(sr, PHILOX_ACCEPT) * 0x1p-53 * q * sum < (double)w[sr->draft])
        return sr->draft;
    keep_residual(w, sum, sr->draft_prob, sr->draft, s->n);
    return draw_pick(w, s->n, bits(sr, PHILOX_RESIDUAL));
}

int32_t sampler_draft(struct sampler *s, const struct sample_row *sr, const float *logits,
                      float *prob)
{
    struct draw_params dp = params_of(sr);
    float raw_max, max;
    const float *x = sampler_row(s, sr, logits, &raw_max, &max);
    if (!x)
        return TOKEN_BAD_LOGITS;
    if (sr->seq->req->params.p.temperature == 0) {
        int32_t token = row_find(x, s->n, max);
        for (int i = 0; i < s->n && prob; i++)
            prob[i] = i == token;
        return token;
    }
    if (!prob) {
        struct race_key key = row_key(sr);
        return draw_token(&dp, s->x, s->n, max, &key, false, &s->draw);
    }
    double sum = draw_weights(&dp, s->x, s->n, max, prob, &s->draw);
    int32_t token = draw_pick(prob, s->n, bits(sr, PHILOX_DRAFT));
    for (int i = 0; i < s->n; i++)
        prob[i] = (float)((double)prob[i] / sum);
    return token;
}
