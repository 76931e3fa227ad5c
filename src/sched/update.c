/* Tokens come back: sequences grow, stop rules are applied, what was sampled past a stop is thrown
 * away.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include <string.h>

static bool is_stop_id(const struct sl_sampling_params *p, int32_t token)
{
    for (int i = 0; i < p->n_stop_token_ids; i++)
        if (p->stop_token_ids[i] == token)
            return true;
    return false;
}

/* The output ends in some pattern of the sizes asked for, min_count times in a row. */
static bool repeats(const struct sl_sampling_params *p, const int32_t *out, int n)
{
    int from = p->repetition_min_pattern > 0 ? p->repetition_min_pattern : 1;
    if (p->repetition_max_pattern <= 0 || p->repetition_min_count < 2)
        return false;
    for (int size = from; size <= p->repetition_max_pattern; size++) {
        if (size > n / p->repetition_min_count)
            return false;
        int span = size * (p->repetition_min_count - 1); /* equal to itself, shifted by size */
        const int32_t *end = out + n;
        if (memcmp(end - span, end - span - size, (size_t)span * sizeof *out) == 0)
            return true;
    }
    return false;
}

/* vLLM's order. The context's length binds even below min_tokens. */
static enum sl_finish stop_rule(const struct sched *s, struct sequence *q, int32_t token)
{
    const struct sl_sampling_params *p = &q->req->params.p;
    int n_out = q->n_tokens - q->n_prompt;
    bool full = q->n_tokens >= q->limit;
    if (!q->plain_stop && n_out < p->min_tokens)
        return q->n_tokens >= s->max_len ? SL_LENGTH : SL_RUNNING;
    if (token == q->eos && token >= 0)
        return SL_STOP;
    if (q->plain_stop)
        return full ? SL_LENGTH : SL_RUNNING;
    if (is_stop_id(p, token)) {
        q->stop_kind = SL_STOP_TOKEN;
        q->stop_token = token;
        return SL_STOP;
    }
    if (full)
        return SL_LENGTH;
    return repeats(p, q->tokens + q->n_prompt, n_out) ? SL_REPETITION : SL_RUNNING;
}

static bool append(struct sched *s, struct sequence *q, int32_t token)
{
    if (!intpool_grow(&s->ints, &q->tokens, &q->cap_tokens, q->n_tokens, q->n_tokens + 1))
        return false;
    q->tokens[q->n_tokens++] = token;
    return true;
}

/* refuted: it is not what was proposed for this place. */
static void take_token(struct sched *s, struct sequence *q, struct sched_event *ev, bool refuted,
                       sched_sink sink, void *ctx)
{
    if (!q->plain_stop && q->req->params.max_tokens <= 0) {
        ev->finish = SL_LENGTH; /* only the prompt was asked for */
        ev->n_lp = 0;
    } else if (ev->token < 0 || !append(s, q, ev->token)) {
        ev->finish = SL_ERROR; /* NaN logits, or no memory */
        ev->n_lp = 0;
    } else {
        ev->has_token = true;
        ev->finish = stop_rule(s, q, ev->token);
        if (q->first_token_ns == 0)
            q->first_token_ns = ev->now_ns;
    }
    if (refuted && q->n_computed >= q->n_tokens)
        q->n_computed = q->n_tokens - 1; /* the cache holds what was proposed, not this */
    if (ev->finish != SL_RUNNING)
        sequence_finish(s, q, ev->finish);
    else if (q->state == SEQ_RUNNING)
        blocks_publish(s, q);
    sink(ctx, ev);
    if (ev->has_token)
        q->last_token_ns = ev->now_ns;
}

static void report_plogprobs(const struct batch *b, const struct step_result *r, sched_sink sink,
                             void *ctx)
{
    for (int i = 0; i < b->n_plogprobs; i++) {
        const struct plogprob_row *row = &b->plogprob[i];
        if (row->seq->state == SEQ_FINISHED)
            continue;
        struct sched_event ev = {.seq = (struct sequence *)row->seq,
                                 .token = row->token,
                                 .is_prompt_logprob = true,
                                 .pos = b->pos[b->logit_row[row->logit]] + 1,
                                 .lp = r->plp + r->plp_start[i],
                                 .n_lp = r->plp_start[i + 1] - r->plp_start[i],
                                 .now_ns = r->done_ns};
        sink(ctx, &ev);
    }
}

/* Prompts that this step completed. */
static void finish_pooled(struct sched *s, const struct batch *b, int64_t now_ns, sched_sink sink,
                          void *ctx)
{
    for (int i = 0; i < b->n_pools; i++) {
        struct sequence *q = (struct sequence *)b->pool[i].seq; /* the scheduler's own */
        const struct pooling *p = q->req->pooling;
        if (q->state == SEQ_FINISHED || p->n_done < q->n_prompt)
            continue;
        struct sched_event ev = {.seq = q,
                                 .pos = q->n_prompt,
                                 .finish = p->not_finite ? SL_ERROR : SL_STOP,
                                 .now_ns = now_ns};
        q->first_token_ns = q->last_token_ns = now_ns;
        sequence_finish(s, q, ev.finish);
        sink(ctx, &ev);
    }
}

static void unhold_all(struct sched *s, const struct batch *b)
{
    for (int i = 0; i < b->n_samples; i++)
        sequence_unhold(s, (struct sequence *)b->sample[i].seq);
    for (int i = 0; i < b->n_seqs; i++)
        sequence_unhold(s, (struct sequence *)b->seq[i]);
}

/* Sample rows [first, return value) are one sequence's: a proposal, and the token after it. */
static int take_rows(struct sched *s, const struct batch *b, const struct step_result *r, int first,
                     sched_sink sink, void *ctx)
{
    struct sequence *q = (struct sequence *)b->sample[first].seq; /* the scheduler's own */
    int end = first + 1, n_kept = 0;
    while (b->sample[end - 1].has_draft)
        end++;
    q->n_inflight -= end - first;
    q->n_draft = 0;
    bool refuted = false;
    for (int i = first; i < end && !refuted && q->state != SEQ_FINISHED; i++) {
        refuted = b->sample[i].has_draft && r->token[i] != b->sample[i].draft;
        n_kept += b->sample[i].has_draft && !refuted;
        int n_lp = r->lp_start[i + 1] - r->lp_start[i];
        struct sched_event ev = {.seq = q,
                                 .token = r->token[i],
                                 .pos = b->sample[i].pos,
                                 .lp = n_lp ? r->lp + r->lp_start[i] : NULL,
                                 .n_lp = n_lp,
                                 .now_ns = r->done_ns};
        if (q->req->beam)
            beam_take(s, q, &ev, sink, ctx);
        else
            take_token(s, q, &ev, refuted, sink, ctx);
    }
    s->drafts.n_gained += 1 + n_kept;
    if (end - first > 1) {
        drafts_learn(s, q, end - first - 1, n_kept);
        if (q->n_drafted >= q->n_tokens)
            q->n_drafted = q->n_tokens - 1;
    }
    return end;
}

void sched_update(struct sched *s, const struct batch *b, const struct step_result *r,
                  sched_sink sink, void *ctx)
{
    SL_ASSERT(r->n_samples == b->n_samples && r->n_plogprobs == b->n_plogprobs);
    for (int i = 0; i < b->n_samples; i++)
        prefetch_sequence(b->sample[i].seq);
    report_plogprobs(b, r, sink, ctx);
    s->drafts.n_unread--;
    s->drafts.n_gained = 0;
    for (int i = 0; i < b->n_samples;) /* one that has finished by now was computed for nothing */
        i = take_rows(s, b, r, i, sink, ctx);
    if (s->proposer)
        drafts_learn_step(s, b, r->done_ns);
    finish_pooled(s, b, r->done_ns, sink, ctx);
    unhold_all(s, b);
}

void sched_discard(struct sched *s, const struct batch *b)
{
    for (int i = 0; i < b->n_samples; i++) {
        struct sequence *q = (struct sequence *)b->sample[i].seq;
        q->n_inflight--;
        q->n_draft = 0;
    }
    s->drafts.n_unread--;
    unhold_all(s, b);
}
