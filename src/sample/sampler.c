/* SPDX-License-Identifier: Apache-2.0 */
#include "sample/sampler.h"

#include "sample/processors.h"
#include "sample/row.h"
#include "sample/rowmath.h"

#include <math.h>
#include <string.h>

enum sl_status sampler_create(struct sampler **out, int vocab_size, enum sl_logprobs_mode mode,
                              struct sl_err *err)
{
    struct sampler *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "sampler: no memory");
    size_t n = (size_t)vocab_size;
    s->n = vocab_size;
    s->mode = mode;
    s->x = mem_aligned(n, sizeof *s->x, 64);
    s->masked = mem_aligned(n, sizeof *s->masked, 64);
    s->count = mem_zalloc(n, sizeof *s->count);
    s->seen = mem_alloc(n, sizeof *s->seen);
    s->draw.w = mem_aligned(n, sizeof *s->draw.w, 64);
    s->draw.ids = mem_alloc(n, sizeof *s->draw.ids);
    s->draw.top = mem_alloc(n, sizeof *s->draw.top);
    s->draw.edge = mem_alloc(n, sizeof *s->draw.edge);
    if (!s->x || !s->masked || !s->count || !s->seen || !s->draw.w || !s->draw.ids ||
        !s->draw.top || !s->draw.edge) {
        sampler_destroy(&s);
        return SL_FAIL(err, SL_ENOMEM, "sampler: no memory for a vocabulary of %d", vocab_size);
    }
    *out = s;
    return SL_OK;
}

void sampler_destroy(struct sampler **sp)
{
    struct sampler *s = *sp;
    if (!s)
        return;
    mem_free(s->x);
    mem_free(s->masked);
    mem_free(s->count);
    mem_free(s->seen);
    mem_free(s->draw.w);
    mem_free(s->draw.ids);
    mem_free(s->draw.top);
    mem_free(s->draw.edge);
    mem_free(s);
    *sp = NULL;
}

enum sl_logprobs_mode sampler_mode(const struct sampler *s)
{
    return s->mode;
}

/* ---- logprobs -------------------------------------------------------------------------------- */

/* Entries of one row: the chosen token, the top k, the ids asked for by name. */
static int n_entries(const struct sl_sampling_params *p, int k, int vocab)
{
    if (k == SL_NONE)
        return p->n_logprob_token_ids ? 1 + p->n_logprob_token_ids : 0;
    if (k < 0 || k > vocab)
        k = vocab;
    return 1 + k + p->n_logprob_token_ids;
}

/* x: the row that the mode is about, `max` its largest value; e: [n_entries]. */
static void fill_entries(struct sampler *s, const struct sl_sampling_params *p, int k,
                         const float *x, float max, int32_t chosen, struct sl_logprob *e)
{
    bool logits = sampler_mode_is_logits(s->mode);
    /* one subtraction for every token, so that equal logits have equal logprobs */
    float norm = logits ? 0 : sampler_log_norm(max, row_sum_exp(x, s->n, max));
    if (k == SL_NONE)
        k = 0;
    else if (k < 0 || k > s->n)
        k = s->n;
    *e++ = (struct sl_logprob){chosen, row_count_ge(x, s->n, x[chosen]), x[chosen] - norm};
    row_top(x, NULL, s->n, k, s->draw.top);
    for (int i = 0; i < k; i++) {
        int32_t id = s->draw.top[i];
        *e++ = (struct sl_logprob){id, i + 1, x[id] - norm};
    }
    for (int i = 0; i < p->n_logprob_token_ids; i++) {
        int32_t id = p->logprob_token_ids[i];
        *e++ = (struct sl_logprob){id, row_count_ge(x, s->n, x[id]), x[id] - norm};
    }
}

/* ---- beam search ----------------------------------------------------------------------------- */

/* The best n_beam_top tokens of the row, then logprob_token_ids, with f32 logprobs of log_softmax
 * whatever the mode. As in transformers what the processors do is done to the logprobs, which are
 * not normalized again. Returns the number of entries, 0: bad logits. e: [n_beam_top + named]. */
static int beam_entries(struct sampler *s, const struct sample_row *sr, const float *raw,
                        struct sl_logprob *e)
{
    const struct seq_params *sp = &sr->seq->req->params;
    const struct sl_sampling_params *p = &sp->p;
    int k = sp->n_beam_top < s->n ? sp->n_beam_top : s->n;
    float max;
    if (!row_max(raw, s->n, &max) || max == -INFINITY)
        return 0;
    float norm = sampler_log_norm(max, row_sum_exp(raw, s->n, max));
    for (int i = 0; i < s->n; i++)
        s->x[i] = raw[i] - norm;
    if (processors_needed(sr->seq, sr->pos)) {
        processors_apply(sr->seq, sr->pos, s->x, s->n, s->count, s->seen);
        if (!row_max(s->x, s->n, &max))
            return 0;
        for (int i = 0; max == -INFINITY && sr->mask && i < s->n; i++)
            s->x[i] = raw[i] - norm;
        if (max == -INFINITY && !sr->mask)
            return 0;
    }
    row_top(s->x, NULL, s->n, k, s->draw.top);
    for (int i = 0; i < k; i++) {
        int32_t id = s->draw.top[i];
        e[i] = (struct sl_logprob){id, i + 1, s->x[id]};
    }
    for (int i = 0; i < p->n_logprob_token_ids; i++) {
        int32_t id = p->logprob_token_ids[i];
        e[k + i] = (struct sl_logprob){id, row_count_ge(s->x, s->n, s->x[id]), s->x[id]};
    }
    return k + p->n_logprob_token_ids;
}

static enum sl_status no_memory(int n, struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "sampler: no memory for %d logprobs", n);
}

static enum sl_status beam_row(struct sampler *s, const struct sample_row *sr, const float *raw,
                               int32_t *token, struct step_result *r, int *used, struct sl_err *err)
{
    const struct seq_params *sp = &sr->seq->req->params;
    int room = sp->n_beam_top + sp->p.n_logprob_token_ids;
    if (!step_result_reserve(&r->lp, &r->cap_lp, *used, room))
        return no_memory(*used + room, err);
    int n = beam_entries(s, sr, raw, r->lp + *used);
    *token = n ? r->lp[*used].token : TOKEN_BAD_LOGITS;
    *used += n;
    return SL_OK;
}

/* ---- masks ----------------------------------------------------------------------------------- */

/* The row with what its mask forbids at -inf: what comes after sees no other. NaN stays, so that it
 * is found. */
static const float *masked_row(struct sampler *s, const struct sample_row *sr, const float *raw)
{
    if (!sr->mask)
        return raw;
    for (int i = 0; i < s->n; i++) {
        bool allowed = sr->mask[i >> 5] >> (i & 31) & 1;
        s->masked[i] = allowed || raw[i] != raw[i] ? raw[i] : -INFINITY;
    }
    return s->masked;
}

bool sampler_is_forced(const struct sample_row *sr)
{
    const struct sl_sampling_params *p = &sr->seq->req->params.p;
    return sr->mask && sr->forced >= 0 && p->logprobs == SL_NONE && p->n_logprob_token_ids == 0;
}

/* ---- one row --------------------------------------------------------------------------------- */

/* Before the temperature: `raw` itself, or s->x. */
static const float *processed_row(struct sampler *s, const struct sample_row *sr, const float *raw,
                                  float *raw_max, float *max)
{
    if (!row_max(raw, s->n, raw_max) || *raw_max == -INFINITY)
        return NULL;
    *max = *raw_max;
    if (!processors_needed(sr->seq, sr->pos))
        return raw;
    memcpy(s->x, raw, (size_t)s->n * sizeof *raw);
    processors_apply(sr->seq, sr->pos, s->x, s->n, s->count, s->seen);
    if (!row_max(s->x, s->n, max))
        return NULL;
    if (*max == -INFINITY && sr->mask) { /* where a grammar leaves no other way it goes first */
        memcpy(s->x, raw, (size_t)s->n * sizeof *raw);
        *max = *raw_max;
    }
    return *max > -INFINITY ? s->x : NULL;
}

const float *sampler_row(struct sampler *s, const struct sample_row *sr, const float *raw,
                         float *raw_max, float *max)
{
    float t = sr->seq->req->params.p.temperature;
    const float *x = processed_row(s, sr, raw, raw_max, max);
    if (!x || t == 0)
        return x;
    for (int i = 0; i < s->n; i++)
        s->x[i] = x[i] / t;
    *max /= t;
    return *max < INFINITY ? s->x : NULL;
}

/* The token, and in *row, *row_max what logprobs are about. TOKEN_BAD_LOGITS: NaN or infinity from
 * the model, or nothing left to choose from. */
static int32_t sample_one(struct sampler *s, const struct sample_row *sr, const float *raw,
                          const float **row, float *max)
{
    const struct seq_params *sp = &sr->seq->req->params;
    bool processed = s->mode == SL_PROCESSED_LOGPROBS || s->mode == SL_PROCESSED_LOGITS;
    float x_max;
    const float *x = sampler_row(s, sr, raw, max, &x_max);
    int32_t token;

    *row = raw;
    if (!x)
        return TOKEN_BAD_LOGITS;
    if (sp->p.temperature == 0) {
        token = row_find(x, s->n, x_max);
    } else if (s->by_probability && sr->has_draft) {
        token = sampler_verify(s, sr, x_max, processed);
    } else {
        struct draw_params dp = {sp->p.min_p, sp->p.top_k, sp->p.top_p};
        struct race_key key = row_key(sr);
        token = draw_token(&dp, s->x, s->n, x_max, &key, processed, &s->draw);
    }
    if (processed) {
        *row = x;
        *max = x_max;
    }
    return token;
}

bool sampler_is_refuted(const struct batch *b, const struct step_result *r, int i)
{
    const struct sample_row *before = &b->sample[i - 1];
    return i > 0 && before->has_draft && before->seq == b->sample[i].seq &&
           r->token[i - 1] != before->draft;
}

enum sl_status sampler_run(struct sampler *s, const struct batch *b, const float *logits,
                           struct step_result *r, struct sl_err *err)
{
    int used = 0;
    r->n_samples = b->n_samples;
    r->lp_start[0] = 0;
    for (int i = 0; i < b->n_samples; i++) {
        const struct sample_row *sr = &b->sample[i];
        const struct sl_sampling_params *p = &sr->seq->req->params.p;
        const float *row = NULL;
        float max = 0;
        const float *raw = logits + (size_t)sr->logit * (size_t)s->n;
        if (sr->seq->req->params.beam_width) {
            enum sl_status st =
                beam_row(s, sr, masked_row(s, sr, raw), &r->token[i], r, &used, err);
            if (st)
                return st;
            r->lp_start[i + 1] = used;
            continue;
        }
        if (sampler_is_refuted(b, r, i))
            r->token[i] = TOKEN_REFUTED;
        else if (sampler_is_forced(sr))
            r->token[i] = sr->forced < s->n ? sr->forced : TOKEN_BAD_LOGITS;
        else
            r->token[i] = sample_one(s, sr, masked_row(s, sr, raw), &row, &max);
        int n = r->token[i] >= 0 ? n_entries(p, p->logprobs, s->n) : 0;
        if (n) {
            if (!step_result_reserve(&r->lp, &r->cap_lp, used, n))
                return no_memory(used + n, err);
            fill_entries(s, p, p->logprobs, row, max, r->token[i], r->lp + used);
            used += n;
        }
        r->lp_start[i + 1] = used;
    }
    used = 0;
    r->n_plogprobs = b->n_plogprobs;
    r->plp_start[0] = 0;
    for (int i = 0; i < b->n_plogprobs; i++) {
        const struct plogprob_row *pr = &b->plogprob[i];
        const struct sl_sampling_params *p = &pr->seq->req->params.p;
        const float *row = logits + (size_t)pr->logit * (size_t)s->n;
        float max = 0;
        int n = n_entries(p, p->prompt_logprobs, s->n);
        if (n && row_max(row, s->n, &max) && max > -INFINITY) {
            if (!step_result_reserve(&r->plp, &r->cap_plp, used, n))
                return no_memory(used + n, err);
            fill_entries(s, p, p->prompt_logprobs, row, max, pr->token, r->plp + used);
            used += n;
        }
        r->plp_start[i + 1] = used;
    }
    return SL_OK;
}
