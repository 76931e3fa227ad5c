/* Iteration-level policies: who gets how many tokens of the next step.
 *
 * mixed: every decode first (a token each: they are what users watch), then prompts under way, then
 * new ones, in order, until the budget is spent. Chunks of long prompts fill what decodes leave,
 * and beside decodes they are small enough that the next token is not long in coming.
 * prefill-first: while a prompt can be computed, a step is prompts alone; decodes wait.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

/* Requests over the limit of long prompts that a plan may pass over to find a shorter one. */
enum { SKIP_MAX = 256 };

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Rows among the next n whose prompt logprobs are still to be reported. */
static int plogprob_rows(const struct sequence *q, int n)
{
    if (q->n_computed >= q->n_prompt - 1 || q->index != 0 ||
        q->req->params.p.prompt_logprobs == SL_NONE)
        return 0;
    int from = q->n_computed > q->n_plogprobs ? q->n_computed : q->n_plogprobs;
    int to = min_int(q->n_computed + n, q->n_prompt - 1);
    return to > from ? to - from : 0;
}

int cap_plogprobs(const struct sched *s, const struct sequence *q, int n)
{
    int over = plogprob_rows(q, n) - s->plogprob_left;
    if (over <= 0)
        return n;
    /* The rows without logprobs after the prompt's end go with the last chunk. */
    int past_prompt = q->n_computed + n - (q->n_prompt - 1);
    return n - over - (past_prompt > 0 ? past_prompt : 0);
}

void give(struct sched *s, struct sequence *q, int n)
{
    SL_ASSERT(n > 0 && n <= s->n_left && q->plan_step != s->step);
    q->plan_step = s->step;
    q->n_planned = n;
    q->n_pad_planned = 0;
    s->n_left -= n;
    s->plogprob_left -= plogprob_rows(q, n);
    s->entry[s->n_entries++] = q;
    if (q->n_computed < q->n_prompt && n == seq_todo(q) && !s->by_batch && !q->req->forked)
        s->rows_promised += q->req->n_seqs - 1;
}

void give_decodes(struct sched *s)
{
    for (struct sequence *q = s->running.head; q && s->n_left > 0; q = q->next)
        if (seq_ready(s, q) && seq_todo(q) == 1)
            give(s, q, 1);
}

/* Free blocks that an admission leaves, so that those who run need not preempt it at once. */
static int spare_blocks(const struct sched *s)
{
    return min_int(s->running.n, s->cfg.layout.n_blocks / 64);
}

struct prefills {
    int share;             /* of one prompt, while several are computed at once; 0: no limit */
    int n_partial, n_long; /* prompts that this step does not complete; those that are long */
};

static bool is_long(const struct sched *s, const struct sequence *q)
{
    int threshold = s->cfg.long_prefill_token_threshold;
    return threshold > 0 && q->n_prompt > threshold;
}

/* The largest chunk that the rules allow, of a prompt with n tokens to go. */
static int chunk(const struct sched *s, const struct prefills *p, const struct sequence *q, int n)
{
    if (s->cfg.whole_prompts)
        return n <= s->n_left ? n : 0;
    n = min_int(n, s->n_left);
    if (p->share > 0)
        n = min_int(n, p->share);
    if (is_long(s, q))
        n = min_int(n, s->cfg.long_prefill_token_threshold);
    return cap_plogprobs(s, q, n);
}

static void give_chunk(struct sched *s, struct prefills *p, struct sequence *q)
{
    int todo = seq_todo(q), n = chunk(s, p, q, todo);
    if (n < todo) {
        p->n_partial++;
        p->n_long += is_long(s, q);
    }
    if (n <= 0)
        return;
    if (blocks_cover(s, q, q->n_computed + n))
        give(s, q, n);
    else if (!beam_is_planned(s, q)) /* then the others go on, and it tries again */
        preempt(s, q); /* blocks that others share: it starts again when there is room */
}

static void prefill_running(struct sched *s, struct prefills *p)
{
    for (struct sequence *q = s->running.head, *next; q && s->n_left > 0; q = next) {
        next = q->next;
        if (seq_ready(s, q))
            give_chunk(s, p, q);
        if (next && next->state != SEQ_RUNNING)
            return; /* q was preempted, and its beams with it */
    }
}

/* A step that cannot complete the prompt needs a place among the partial ones. */
static bool has_place(const struct sched *s, const struct prefills *p, const struct sequence *q)
{
    int todo = q->n_tokens - q->n_computed, n = chunk(s, p, q, todo);
    return n > 0 && (n == todo || p->n_partial < s->cfg.max_num_partial_prefills);
}

static void prefill_waiting(struct sched *s, struct prefills *p)
{
    int skipped = 0;
    for (struct sequence *q = s->waiting.head, *next; q && s->n_left > 0; q = next) {
        next = q->next;
        if (is_long(s, q) && p->n_long >= s->cfg.max_long_partial_prefills) {
            if (++skipped > SKIP_MAX)
                return;
            continue; /* shorter prompts may pass it */
        }
        if (!has_place(s, p, q) || !admit(s, q, q->n_tokens, spare_blocks(s)))
            return; /* in order: nobody passes for being small */
        give_chunk(s, p, q);
    }
}

/* What the shares left over, to the prompts in order. */
static void spend_rest(struct sched *s)
{
    for (int i = 0; i < s->n_entries && s->n_left > 0; i++) {
        struct sequence *q = s->entry[i];
        int n = min_int(seq_todo(q), q->n_planned + s->n_left);
        if (is_long(s, q) && !s->cfg.whole_prompts)
            n = min_int(n, s->cfg.long_prefill_token_threshold);
        int more = n - q->n_planned;
        if (more <= 0 || plogprob_rows(q, n) > 0 || !blocks_cover(s, q, q->n_computed + n))
            continue;
        s->n_left -= more;
        q->n_planned += more;
    }
}

/* With several prompts at once each gets an equal part, so that a short one behind a long one is
 * done in a step or two. */
static int prefill_share(const struct sched *s)
{
    int most = s->cfg.max_num_partial_prefills, n = min_int(s->waiting.n, most);
    if (most == 1)
        return 0;
    for (const struct sequence *q = s->running.head; q && n < most; q = q->next)
        n += seq_ready(s, q);
    return n > 1 ? ceil_div(s->n_left, n) : 0;
}

/* Somebody's next token comes from this step or, where steps wait for each other, from the next;
 * the last one of those that have nothing left to compute is in flight. */
static bool anybody_decodes(const struct sched *s)
{
    const struct sequence *q = s->running.head;
    while (q && (q->n_computed < q->n_prompt || (seq_todo(q) <= 0 && q->n_draft == 0)))
        q = q->next;
    return q != NULL;
}

/* Prompt tokens of a step, so that one with decodes lasts about 2.5 times as long as without, at
 * most. On whatever multiplies matrices fast, some 200 rows take as long as reading the weights; a
 * decode's own row and cache take as long as two or three rows of a prompt. Where many wait, their
 * first tokens are late, and large steps bring them sooner: 250 get the whole budget. */
static int prompt_budget(const struct sched *s)
{
    enum { BESIDE_DECODES = 256, EACH_RUNNING = 4, EACH_WAITING = 32 };
    if (s->cfg.whole_prompts || !anybody_decodes(s))
        return s->n_left;
    int n = BESIDE_DECODES + EACH_RUNNING * s->running.n;
    return min_int(s->n_left, n + EACH_WAITING * min_int(s->waiting.n, s->n_left));
}

void policy_mixed(struct sched *s)
{
    grow_running(s);
    give_decodes(s);
    int kept_back = s->n_left - prompt_budget(s);
    s->n_left -= kept_back;
    struct prefills p = {.share = prefill_share(s)};
    prefill_running(s, &p);
    if (!s->preempted)
        prefill_waiting(s, &p);
    if (p.share)
        spend_rest(s);
    s->n_left += kept_back; /* guesses may use it */
}

static bool in_prompt(const struct sched *s, const struct sequence *q)
{
    return seq_ready(s, q) && (q->n_computed < q->n_prompt || seq_todo(q) > 1);
}

void policy_prefill_first(struct sched *s)
{
    struct prefills p = {0};
    for (struct sequence *q = s->running.head, *next; q && s->n_left > 0; q = next) {
        next = q->next;
        if (in_prompt(s, q))
            give_chunk(s, &p, q);
        if (next && next->state != SEQ_RUNNING)
            break; /* q was preempted, and its beams with it */
    }
    for (struct sequence *q = s->waiting.head, *next; q && s->n_left > 0; q = next) {
        next = q->next;
        /* Whole prompts; one that is longer than a step is computed alone, over several. */
        int todo = q->n_tokens - q->n_computed;
        bool whole = chunk(s, &p, q, todo) == todo;
        if ((!whole && s->n_entries > 0) || !admit(s, q, q->n_tokens, spare_blocks(s)))
            break;
        give_chunk(s, &p, q);
    }
    if (s->n_entries)
        return;
    grow_running(s);
    give_decodes(s);
}
