/* What a device that samples by itself is told of a batch's rows, and what is made of its answer.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sample/sampler.h"

#include <math.h>
#include <string.h>

bool sampler_mode_is_logits(enum sl_logprobs_mode mode)
{
    return mode == SL_RAW_LOGITS || mode == SL_PROCESSED_LOGITS;
}

float sampler_log_norm(float max, uint64_t sum)
{
    return (float)((double)max + log((double)sum * 0x1p-40));
}

static bool penalizes(const struct sl_sampling_params *p)
{
    return p->repetition_penalty != 1.0f || p->frequency_penalty != 0.0f ||
           p->presence_penalty != 0.0f;
}

/* Two biases of one id would be added by two threads at once. */
static bool biases_differ(const struct sl_sampling_params *p)
{
    for (int i = 0; i < p->n_logit_bias; i++)
        for (int j = 0; j < i; j++)
            if (p->logit_bias[i].token == p->logit_bias[j].token)
                return false;
    return true;
}

bool sampler_device_can(const struct seq_params *sp, enum sl_logprobs_mode mode, bool keeps_tokens)
{
    const struct sl_sampling_params *p = &sp->p;
    int n_allowed = p->n_allowed_token_ids > 0 ? p->n_allowed_token_ids : 0;
    int n_stop = p->min_tokens > 0 ? sp->n_all_stop_ids : 0;
    bool raw = mode == SL_RAW_LOGPROBS || mode == SL_RAW_LOGITS;
    if (sp->beam_width || sp->n_bad_word_seqs || p->n_logprob_token_ids ||
        (penalizes(p) && !keeps_tokens))
        return false;
    if (p->logprobs != SL_NONE && (!raw || p->logprobs < 0 || p->logprobs > DRAW_TOP_MAX))
        return false;
    if (n_allowed > DRAW_WORDS_MAX || n_stop > DRAW_WORDS_MAX || p->n_logit_bias > DRAW_WORDS_MAX ||
        n_allowed + n_stop + 2 * p->n_logit_bias > DRAW_WORDS_MAX)
        return false;
    return biases_differ(p);
}

static void put_words(struct draw_rows *out, const int32_t *word, int n)
{
    if (n > 0)
        memcpy(out->word + out->n_words, word, (size_t)n * sizeof *word);
    out->n_words += n > 0 ? n : 0;
}

static void put_lists(const struct seq_params *sp, int n_out, struct draw_row *r,
                      struct draw_rows *out)
{
    const struct sl_sampling_params *p = &sp->p;
    r->list = out->n_words;
    r->n_allowed = p->n_allowed_token_ids;
    r->n_forbidden = n_out < p->min_tokens ? sp->n_all_stop_ids : 0;
    r->n_bias = p->n_logit_bias;
    put_words(out, p->allowed_token_ids, r->n_allowed);
    put_words(out, sp->all_stop_ids, r->n_forbidden);
    for (int i = 0; i < r->n_bias; i++)
        put_words(out, &p->logit_bias[i].token, 1);
    for (int i = 0; i < r->n_bias; i++) {
        int32_t bits;
        memcpy(&bits, &p->logit_bias[i].bias, sizeof bits);
        put_words(out, &bits, 1);
    }
}

/* false: there are too many. */
static bool put_mask(const struct sample_row *sr, struct draw_row *r, struct draw_rows *out)
{
    if (sampler_is_forced(sr)) {
        r->forced = sr->forced;
    } else if (sr->mask) {
        if (out->n_masks >= out->cap_masks)
            return false;
        r->mask = out->n_masks;
        out->mask[out->n_masks++] = sr->mask;
    }
    return true;
}

static struct draw_row describe(const struct sample_row *sr, int seq, struct draw_rows *out)
{
    const struct sequence *q = sr->seq;
    const struct seq_params *sp = &q->req->params;
    const struct sl_sampling_params *p = &sp->p;
    struct draw_row r = {
        .seed = sp->seed,
        .logit = sr->logit,
        .seq = seq,
        .seq_row = sr->seq_row,
        .pos = sr->pos,
        .choice = (uint32_t)q->index,
        .n_prompt = q->n_prompt,
        .temperature = p->temperature,
        .min_p_log = p->min_p > 0 ? logf(p->min_p) : -INFINITY,
        .top_p = p->top_p,
        .top_k = p->top_k > 0 ? p->top_k : 0,
        .repetition = p->repetition_penalty,
        .frequency = p->frequency_penalty,
        .presence = p->presence_penalty,
        .n_top = p->logprobs == SL_NONE ? -1 : p->logprobs,
    };
    put_lists(sp, sr->pos - q->n_prompt, &r, out);
    return r;
}

void sampler_describe(const struct batch *b, struct draw_rows *out)
{
    out->n_rows = b->n_samples;
    out->n_words = out->n_masks = out->n_host = 0;
    for (int i = 0, s = 0; i < b->n_samples; i++) {
        const struct sample_row *sr = &b->sample[i];
        while (b->q_start[s + 1] <= b->logit_row[sr->logit])
            s++;
        struct draw_row own = {.logit = -1, .mask = -1, .forced = -1};
        if (sr->seq->req->on_host || sr->seq->draft_prob || !put_mask(sr, &own, out)) {
            out->row[i] = own;
            out->n_host++;
            continue;
        }
        SL_ASSERT(out->cap_words - out->n_words >= DRAW_WORDS_MAX);
        out->row[i] = describe(sr, s, out);
        out->row[i].mask = own.mask;
        out->row[i].forced = own.forced;
    }
}

/* Entries of a row that the device sampled: the chosen token, then the best. */
static int put_entries(const struct sampler *s, const struct draw_result *d,
                       const struct draw_top *top, struct sl_logprob *e)
{
    float norm = sampler_mode_is_logits(sampler_mode(s)) ? 0 : sampler_log_norm(d->max, d->sum);
    *e++ = (struct sl_logprob){d->token, d->rank, d->x - norm};
    for (int i = 0; i < d->n_top; i++)
        *e++ = (struct sl_logprob){top[i].id, i + 1, top[i].x - norm};
    return 1 + d->n_top;
}

static bool append(struct sl_logprob **to, int *cap, int *used, const struct sl_logprob *from,
                   int n)
{
    if (!step_result_reserve(to, cap, *used, n))
        return false;
    if (n)
        memcpy(*to + *used, from, (size_t)n * sizeof *from);
    *used += n;
    return true;
}

static bool read_samples(const struct sampler *s, const struct batch *b,
                         const struct draw_rows *rows, const struct draw_result *result,
                         const struct draw_top *top, const struct step_result *host,
                         struct step_result *r)
{
    int used = 0;
    r->lp_start[0] = 0;
    for (int i = 0, h = 0; i < rows->n_rows; i++) {
        const struct draw_row *row = &rows->row[i];
        if (row->logit < 0) {
            int from = host->lp_start[h], n = host->lp_start[h + 1] - from;
            r->token[i] = host->token[h++];
            if (sampler_is_refuted(b, r, i)) {
                r->token[i] = TOKEN_REFUTED; /* its proposal began in another piece */
                n = 0;
            }
            if (!append(&r->lp, &r->cap_lp, &used, n ? host->lp + from : NULL, n))
                return false;
        } else {
            r->token[i] = sampler_is_refuted(b, r, i) ? TOKEN_REFUTED : result[i].token;
            if (row->n_top >= 0 && r->token[i] >= 0) {
                if (!step_result_reserve(&r->lp, &r->cap_lp, used, 1 + DRAW_TOP_MAX))
                    return false;
                used += put_entries(s, &result[i], top + (size_t)i * DRAW_TOP_MAX, r->lp + used);
            }
        }
        r->lp_start[i + 1] = used;
    }
    r->n_samples = rows->n_rows;
    return true;
}

static bool read_prompt(const struct batch *b, const struct step_result *host,
                        struct step_result *r)
{
    int used = 0;
    r->n_plogprobs = b->n_plogprobs;
    r->plp_start[0] = 0;
    if (!b->n_plogprobs)
        return true;
    SL_ASSERT(host->n_plogprobs == b->n_plogprobs);
    memcpy(r->plp_start, host->plp_start, ((size_t)b->n_plogprobs + 1) * sizeof *r->plp_start);
    return append(&r->plp, &r->cap_plp, &used, host->plp, host->plp_start[b->n_plogprobs]);
}

enum sl_status sampler_read(const struct sampler *s, const struct batch *b,
                            const struct draw_rows *rows, const struct draw_result *result,
                            const struct draw_top *top, const struct step_result *host,
                            struct step_result *r, struct sl_err *err)
{
    if (!read_samples(s, b, rows, result, top, host, r) || !read_prompt(b, host, r))
        return SL_FAIL(err, SL_ENOMEM, "sampler: no memory for a step's logprobs");
    return SL_OK;
}
