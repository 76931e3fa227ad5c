/* The decision becomes a batch.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include <string.h>

/* Rows of positions [pos, pos + n): tokens that are known, or will be in the device's table, or
 * padding. */
static void put_tokens(struct batch *b, const struct sequence *q, int pos, int n, int n_pad)
{
    int32_t *token = b->token + b->n_tokens, *at = b->pos + b->n_tokens;
    int known = q->n_tokens + q->n_draft - pos;
    known = known < 0 ? 0 : known < n ? known : n;
    if (known)
        memcpy(token, q->tokens + pos, (size_t)known * sizeof *token);
    for (int i = known; i < n; i++)
        token[i] = TOKEN_FROM_TABLE;
    for (int i = n; i < n + n_pad; i++)
        token[i] = 0;
    for (int i = 0; i < n + n_pad; i++)
        at[i] = pos + i;
    const struct pooling *p = q->req->pooling;
    int32_t *type = b->token_type + b->n_tokens;
    for (int i = 0; i < n + n_pad; i++)
        type[i] = p && p->n_first && pos + i >= p->n_first;
}

static void put_blocks(struct batch *b, const struct sequence *q, int group, int pos, int n,
                       int size)
{
    const struct block_table *t = &q->table[group];
    int32_t *slot = b->slot + (size_t)group * b->limits.max_tokens + b->n_tokens;
    int32_t *start = b->block_start + (size_t)group * (b->limits.max_seqs + 1) + b->n_seqs;
    for (int i = 0, p = pos; i < n; p = pos + i) {
        int32_t first = t->block[p / size] * size + p % size;
        int run = size - p % size;
        for (int end = i + run < n ? i + run : n; i < end; i++)
            slot[i] = first++;
    }
    int n_blocks = ceil_div(pos + n, size);
    memcpy(b->block + (size_t)group * b->limits.max_blocks + start[0], t->block,
           (size_t)n_blocks * sizeof *t->block);
    start[1] = start[0] + n_blocks;
}

static struct sample_row *put_sample(struct batch *b, struct sequence *q, int logit)
{
    struct sample_row *row = &b->sample[b->n_samples++];
    *row = (struct sample_row){
        .seq = q, .logit = logit, .seq_row = q->row, .pos = q->n_computed, .forced = -1};
    q->n_inflight++;
    q->n_steps_held++;
    return row;
}

/* Each guess is checked by the row before it, and one more token follows the last. */
static void put_drafts(const struct sched *s, struct batch *b, struct sequence *q, int first_row)
{
    for (int i = 0; i <= q->n_draft; i++) {
        int logit = b->n_logits++;
        b->logit_row[logit] = first_row + i;
        struct sample_row *row = put_sample(b, q, logit);
        if (i == q->n_draft)
            break;
        row->has_draft = true;
        row->draft = q->tokens[q->n_computed];
        if (q->draft_prob)
            row->draft_prob = q->draft_prob + (size_t)i * (size_t)s->proposer->vocab_size;
        q->n_computed++;
    }
}

/* Logprobs of the prompt tokens after rows of positions [pos, pos + n). */
static void put_plogprobs(struct batch *b, struct sequence *q, int pos, int n)
{
    int from = pos > q->n_plogprobs ? pos : q->n_plogprobs;
    int to = pos + n < q->n_prompt - 1 ? pos + n : q->n_prompt - 1;
    for (int p = from; p < to; p++) {
        b->plogprob[b->n_plogprobs++] =
            (struct plogprob_row){.seq = q, .logit = b->n_logits, .token = q->tokens[p + 1]};
        b->logit_row[b->n_logits++] = b->n_tokens + p - pos;
    }
    if (to > q->n_plogprobs)
        q->n_plogprobs = to;
}

/* A choice begins with the prompt's blocks, shared. false: no row or memory for it now. */
static bool fork_choice(struct sched *s, const struct sequence *parent, struct sequence *c)
{
    if (s->n_free_rows <= s->rows_reserved)
        return false;
    int32_t *t = intpool_take(&s->ints, c->n_prompt + 1, &c->cap_tokens);
    if (!t)
        return false;
    if (!blocks_share(s, parent, c)) {
        intpool_give(&s->ints, t, c->cap_tokens);
        blocks_release(s, c);
        c->cap_tokens = c->n_prompt;
        return false;
    }
    memcpy(t, parent->tokens, (size_t)c->n_prompt * sizeof *t);
    c->tokens = t;
    c->state = SEQ_RUNNING;
    c->row = row_take(s);
    c->n_cached = parent->n_cached;
    c->first_scheduled_ns = parent->first_scheduled_ns;
    c->plan_step = s->step;
    queue_push_late(&s->running, c);
    return true;
}

/* The prompt is computed: every choice samples from its last row, each by its own index. Those that
 * find no room compute the prompt again later, from the prefix cache if there is one. */
static void fork_choices(struct sched *s, struct batch *b, struct sequence *parent, int logit)
{
    struct request *r = parent->req;
    for (int i = 1; i < r->n_seqs; i++) {
        struct sequence *c = r->seq[i];
        if (c->state != SEQ_NEW)
            continue;
        if (!fork_choice(s, parent, c))
            break;
        put_sample(b, c, logit);
    }
    enqueue_rest(s, r);
}

static void put_sequence(struct sched *s, struct batch *b, struct sequence *q)
{
    int n = q->n_planned, n_pad = q->n_pad_planned, n_draft = q->n_draft;
    int pos = n ? q->n_computed : q->n_computed + q->n_pad;
    put_tokens(b, q, pos, n + n_draft, n_pad);
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        put_blocks(b, q, g, pos, n + n_draft + n_pad, s->cfg.layout.block_size);
    if (pos < q->n_prompt - 1 && q->index == 0 && q->req->params.p.prompt_logprobs != SL_NONE)
        put_plogprobs(b, q, pos, n);
    int last = b->n_tokens + n - 1;
    b->seq[b->n_seqs] = q;
    b->seq_row[b->n_seqs] = q->row;
    b->kv_len[b->n_seqs] = pos + n + n_draft + n_pad;
    b->n_tokens += n + n_draft + n_pad;
    b->q_start[++b->n_seqs] = b->n_tokens;
    q->n_steps_held++;
    q->n_pad += n_pad;
    if (n == 0)
        return;
    if (q->n_preempted == 0 && q->n_computed < q->n_prompt)
        s->stats.prompt_tokens_computed += (uint64_t)n;
    q->n_computed += n;
    blocks_publish(s, q);
    if (q->req->pooling)
        b->pool[b->n_pools++] = (struct pool_row){.seq = q, .row = last - n + 1, .n = n};
    if (q->n_computed < seq_length(q) || q->req->pooling || beam_rejoin(s, q))
        return;
    if (n_draft) {
        put_drafts(s, b, q, last);
        return;
    }
    int logit = b->n_logits++;
    b->logit_row[logit] = last;
    put_sample(b, q, logit);
    if (pos < q->n_prompt && !s->by_batch && !q->req->forked)
        fork_choices(s, b, q, logit);
}

/* Slots that are allocated, and those among them that will be computed after this step. */
static void count_slots(struct sched *s)
{
    int size = s->cfg.layout.block_size;
    int held = s->cfg.layout.n_blocks - kvpool_n_free(s->pool, 0);
    int64_t reserved = (int64_t)held * size, unused = 0;
    for (const struct sequence *q = s->running.head; q; q = q->next) {
        const struct block_table *t = &q->table[0];
        int n = t->n * size - q->n_computed;
        if (n > 0 && n < size)
            n /= kvpool_refs(s->pool, 0, t->block[t->n - 1]); /* counted once by its sharers */
        unused += n;
    }
    for (int i = 0; i < s->n_ghosts; i++)
        unused += (int64_t)s->ghost[i].table[0].n * size; /* ended: nothing of it is of use */
    s->stats.kv_slots_reserved += (uint64_t)reserved;
    s->stats.kv_slots_used += (uint64_t)(unused < reserved ? reserved - unused : 0);
}

/* What a decode of q will read behind its pointers. */
static void prefetch_tables(const struct sched *s, const struct sequence *q)
{
    __builtin_prefetch(q->tokens + q->n_computed);
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        __builtin_prefetch(q->table[g].block + q->n_computed / s->cfg.layout.block_size);
}

static void reap_aborted(struct sched *s)
{
    for (struct sequence *q = s->running.head, *next; q; q = next) {
        next = q->next;
        if (q->abort)
            sched_abort_seq(s, q, SL_ABORT);
        else
            prefetch_tables(s, q);
    }
    while (s->waiting.head && s->waiting.head->abort)
        sched_abort_seq(s, s->waiting.head, SL_ABORT);
}

bool sched_plan(struct sched *s, int64_t now_ns, struct batch *b)
{
    batch_clear(b);
    for (int i = 0; i < s->n_entries; i++) /* most of the last plan's are in this one */
        prefetch_sequence(s->entry[i]);
    reap_aborted(s);
    s->step++;
    s->now_ns = now_ns;
    s->n_entries = s->rows_promised = 0;
    s->n_left = s->cfg.max_num_batched_tokens;
    s->plogprob_left = PLOGPROB_ROWS;
    s->preempted = false;
    s->policy(s);
    if (s->n_entries == 0) {
        if (s->running.n == 0)
            s->drafts.last_done_ns = 0; /* what comes next does not follow a step */
        return false;                   /* copies wait for a step */
    }
    b->drafts = (struct batch_drafts){.ahead = s->drafts.n_unread > 0};
    if (s->proposer)
        drafts_propose(s, b);
    b->n_copies = kvpool_take_copies(s->pool, b->copy);
    for (int i = 0; i < s->n_entries; i++)
        put_sequence(s, b, s->entry[i]);
    b->step = ++s->n_steps;
    b->planned_ns = now_ns + b->drafts.ns;
    s->drafts.n_unread++;
    s->stats.last_step_tokens = b->n_tokens;
    s->stats.last_step_seqs = b->n_seqs;
    count_slots(s);
#ifndef NDEBUG
    batch_check(b, &s->cfg.layout);
#endif
    return true;
}
