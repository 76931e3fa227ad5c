/* Speculation: how many guesses each sequence gets in a step, and what became of them.
 *
 * Guesses come last: they take what decodes and prompts have left of the step's budget, never
 * preempt anybody, and take a new block only while there are more than enough.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include "base/clock.h"

#include <string.h>

static const float FADE = 0.98f;  /* a verdict's weight, a step later */
static const float PRIOR = 2;     /* what everybody's acceptance counts for, in guesses */
static const float HOPE = 0.9f;   /* acceptance before the first verdict */
static const float LOWEST = 0.1f; /* so that a request is tried again some time */

enum sl_status drafts_init(struct sched *s, struct proposer *p, struct sl_err *err)
{
    if (s->by_batch)
        return SL_FAIL_PARAM(err, SL_EINVAL, "speculative_config",
                             "speculative decoding needs the policy mixed or prefill-first");
    s->drafts.item = mem_alloc((size_t)s->cfg.max_num_seqs, sizeof *s->drafts.item);
    if (!s->drafts.item)
        return SL_FAIL(err, SL_ENOMEM, "scheduler: no memory for drafts");
    s->drafts.hits = HOPE * PRIOR;
    s->drafts.tries = PRIOR;
    s->proposer = p;
    return SL_OK;
}

void sched_set_refine(struct sched *s, sched_refine fn, void *ctx)
{
    s->refine = fn;
    s->refine_ctx = ctx;
}

/* ---- before a step --------------------------------------------------------------------------- */

static float acceptance(const struct sched *s, const struct sequence *q)
{
    float all = s->drafts.hits / s->drafts.tries;
    all = all < LOWEST ? LOWEST : all;
    return (q->draft_hits + PRIOR * all) / (q->draft_tries + PRIOR);
}

/* It computes one token in this plan and gives the next: all that it knows is in the cache. */
static bool decodes(const struct sequence *q)
{
    return q->n_planned == 1 && q->n_computed + 1 == seq_length(q) && q->req->forked &&
           !q->req->beam;
}

/* Guesses that could still become tokens: one more follows the last of them. */
static int room(const struct sched *s, const struct sequence *q)
{
    int n = q->limit - seq_length(q) - 1, most = s->proposer->max_tokens;
    return n < 0 ? 0 : n < most ? n : most;
}

/* Rows that the guesser must compute first, a step: nobody knows how long an answer becomes, so it
 * is taken to be as far from its end as from its beginning. */
static double catch_up(const struct sequence *q)
{
    enum { AT_LEAST = 16 };
    int left = q->limit - q->n_tokens, n = q->n_tokens - q->n_prompt + AT_LEAST;
    return (double)(q->n_tokens - q->n_drafted) / (n < left ? n : left);
}

static int choose(struct sched *s)
{
    struct draft_case k = {.max_rows = s->n_left,
                           .max_tokens = s->proposer->max_tokens,
                           .cost_share = (double)s->proposer->cost_share};
    k.n_rows = s->cfg.max_num_batched_tokens - s->n_left;
    for (int i = 0; i < s->n_entries; i++) {
        const struct sequence *q = s->entry[i];
        if (q->n_computed + q->n_planned < seq_length(q))
            continue;
        k.n_decodes++;
        if (!decodes(q) || room(s, q) <= 0)
            continue;
        k.level[draft_level(acceptance(s, q))]++;
        if (k.cost_share > 0)
            k.catch_up_rows += catch_up(q);
    }
    if (s->proposer->max_batch && k.n_decodes > s->proposer->max_batch)
        return DRAFT_NONE;
    return s->proposer->fixed ? 0 : draft_choose(&s->drafts.cost, &k);
}

/* As many of n guesses as there are blocks for. */
static int cover(struct sched *s, struct sequence *q, int n)
{
    int size = s->cfg.layout.block_size;
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        int have = q->table[g].n * size - q->n_computed - 1;
        bool plenty = kvpool_n_free(s->pool, g) > s->running.n + n / size + 1;
        if (n > have && !plenty)
            n = have;
    }
    /* The block that is written to is its own already: only new ones can be missing. */
    return n > 0 && blocks_cover(s, q, q->n_computed + 1 + n) ? n : 0;
}

static void ask(struct sched *s, struct sequence *q)
{
    int n = q->n_draft_wanted;
    n = n < s->n_left ? n : s->n_left;
    n = cover(s, q, n);
    int upto = q->n_tokens + n;
    if (n <= 0 || !intpool_grow(&s->ints, &q->tokens, &q->cap_tokens, q->n_tokens, upto))
        return;
    s->n_left -= n;
    s->drafts.item[s->drafts.n_items++] =
        (struct draft_item){.seq = q, .token = q->tokens + q->n_tokens, .most = n, .n = n};
}

/* What was proposed, up to the first id that is none, and as a grammar leaves it. */
static int checked(const struct sched *s, const struct draft_item *it)
{
    struct sequence *q = it->seq;
    int n = 0;
    SL_ASSERT(it->n >= 0 && it->n <= it->most);
    while (n < it->n && it->token[n] >= 0 && it->token[n] < s->proposer->vocab_size)
        n++;
    if (!q->req->grammar || !s->refine)
        return n;
    bool may_add = !it->prob; /* what is certain was drawn from nothing */
    int kept = s->refine(s->refine_ctx, q, n, may_add ? it->most : n), same = kept < n ? kept : n;
    if (q->n_drafted > q->n_tokens + same)
        q->n_drafted = q->n_tokens + same; /* the draft's cache holds what was cut */
    return kept;
}

/* With steps in flight a sequence that finds no guess has waited for nothing; it does so less and
 * less often. */
static void rest(struct sequence *q, bool found)
{
    enum { MISSES_MAX = 6 };
    if (found)
        q->draft_misses = 0;
    else if (q->draft_misses < MISSES_MAX)
        q->draft_misses++;
    q->draft_rest = found ? 0 : (uint8_t)((1 << q->draft_misses) - 1);
}

static void take_items(struct sched *s, struct batch *b)
{
    struct drafts *d = &s->drafts;
    int n_found = 0;
    for (int i = 0; i < d->n_items; i++) {
        struct draft_item *it = &d->item[i];
        int n = checked(s, it);
        it->seq->n_draft = (uint8_t)n;
        it->seq->draft_prob = it->prob;
        if (s->cfg.depth > 1)
            rest(it->seq, n > 0);
        n_found += n > 0;
        b->drafts.n += n;
    }
    draft_found(&d->cost, d->n_items, n_found);
    s->stats.n_drafts += (uint64_t)n_found;
    s->stats.n_draft_tokens += (uint64_t)b->drafts.n;
}

/* How many guesses each sequence is to have; those that can have them now are asked for. */
static void want(struct sched *s, int threshold)
{
    for (int i = 0; i < s->n_entries; i++) {
        struct sequence *q = s->entry[i];
        q->n_draft_wanted = 0;
        q->draft_prob = NULL;
        if (threshold == DRAFT_NONE || !decodes(q))
            continue;
        int most = room(s, q), level = draft_level(acceptance(s, q));
        q->draft_hits *= FADE;
        q->draft_tries *= FADE;
        if (q->draft_rest > 0)
            q->draft_rest--;
        else
            q->n_draft_wanted =
                (uint8_t)(s->proposer->fixed ? most : draft_count(threshold, level, most));
        if (q->n_draft_wanted && q->n_inflight == 0)
            ask(s, q);
    }
}

/* Sequences that have no place in this plan because a token of theirs is in flight. */
static int count_waiting(const struct sched *s)
{
    int n = 0;
    for (const struct sequence *q = s->running.head; q; q = q->next)
        n += q->plan_step != s->step && q->n_inflight > 0 && seq_todo(q) > 0;
    return n;
}

void drafts_propose(struct sched *s, struct batch *b)
{
    struct drafts *d = &s->drafts;
    bool rests = !s->proposer->fixed && draft_rests(&d->cost, s->running.n);
    int threshold = rests ? DRAFT_NONE : choose(s), deepest = 0;
    d->n_items = 0;
    b->drafts.on = threshold != DRAFT_NONE;
    b->drafts.n_running = s->running.n;
    b->drafts.n_waiting = b->drafts.on ? count_waiting(s) : 0;
    want(s, threshold);
    if (d->n_items == 0)
        return;
    for (int i = 0; i < d->n_items; i++)
        deepest = d->item[i].n > deepest ? d->item[i].n : deepest;
    int64_t start = clock_mono_ns();
    s->proposer->ops->propose(s->proposer, d->item, d->n_items);
    b->drafts.ns = clock_mono_ns() - start;
    if (s->proposer->n_caught_up <= 2 * d->n_items) /* a prompt's first time says nothing */
        cost_curve_add(&d->cost.call, d->n_items, (double)b->drafts.ns / deepest);
    take_items(s, b);
}

/* ---- after it -------------------------------------------------------------------------------- */

/* Tokens a nanosecond, if nobody had been guessed for; 0: not known. */
static double rate_without(const struct sched *s, const struct batch *b)
{
    int n = b->n_samples - b->drafts.n + b->drafts.n_waiting;
    int rows = b->n_tokens - b->drafts.n + b->drafts.n_waiting;
    double ns = cost_curve_at(&s->drafts.cost.step, rows);
    return ns > 0 ? n / ns : 0;
}

void drafts_learn_step(struct sched *s, const struct batch *b, int64_t done_ns)
{
    struct drafts *d = &s->drafts;
    int64_t start = d->last_done_ns ? d->last_done_ns : b->planned_ns - b->drafts.ns;
    double ns = (double)(done_ns - start), without = rate_without(s, b);
    d->last_done_ns = done_ns;
    if (!b->drafts.on) {
        if (s->cfg.depth == 1 || b->drafts.ahead)
            cost_curve_add(&d->cost.step, b->n_tokens, ns);
        return;
    }
    cost_curve_add(&d->cost.guessed, b->n_tokens, ns - (double)b->drafts.ns);
    if (without > 0 && ns > 0 && !s->proposer->fixed)
        draft_measured(&d->cost, b->drafts.n_running, d->n_gained, without * ns);
}

void drafts_learn(struct sched *s, struct sequence *q, int n_draft, int n_accepted)
{
    struct drafts *d = &s->drafts;
    int n_tried = n_accepted < n_draft ? n_accepted + 1 : n_draft;
    const float fade = 0.999f;
    q->draft_hits += (float)n_accepted;
    q->draft_tries += (float)n_tried;
    d->hits = d->hits * fade + (float)n_accepted;
    d->tries = d->tries * fade + (float)n_tried;
    s->stats.n_draft_accepted += (uint64_t)n_accepted;
    for (int i = 0; i < n_accepted; i++)
        s->stats.n_draft_accepted_at[i]++;
}
