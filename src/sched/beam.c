/* Beam search in the scheduler: how beams hold rows and blocks, and how the next ones are made.
 * What is chosen is beam_pick.c's.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/beam_impl.h"

#include <string.h>

static const size_t MAX_ROW_BYTES = (size_t)64 << 20;

/* ---- life ------------------------------------------------------------------------------------ */

enum sl_status sched_prepare(struct request *r, struct sl_err *err)
{
    const struct seq_params *p = &r->params;
    if (!p->beam_width)
        return SL_OK;
    SL_ASSERT(p->beam_width == r->n_seqs && p->p.n >= 1 && p->p.n <= r->n_seqs);
    size_t width = (size_t)p->beam_width, n_named = (size_t)p->p.n_logprob_token_ids;
    size_t row = (size_t)p->n_beam_top + n_named;
    if (row > MAX_ROW_BYTES / sizeof(struct sl_logprob) / width)
        return SL_FAIL_PARAM(err, SL_EINVAL, "logprobs",
                             "logprobs: %zu entries for each of %zu beams would take more than %zu "
                             "MiB a step.",
                             row, width, MAX_ROW_BYTES >> 20);
    struct beam *g = arena_alloc(&r->arena, 1, sizeof *g);
    if (!g)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a beam search");
    struct arena *a = &r->arena;
    *g = (struct beam){.width = p->beam_width, .row_cap = (int)row, .n_named = (int)n_named};
    g->n_shown = p->p.logprobs == SL_NONE                             ? 0
                 : p->p.logprobs < 0 || p->p.logprobs > p->n_beam_top ? p->n_beam_top
                                                                      : p->p.logprobs;
    g->live = arena_alloc(a, width, sizeof *g->live);
    g->next = arena_alloc(a, width, sizeof *g->next);
    g->finished = arena_alloc(a, width + 1, sizeof *g->finished);
    g->row = arena_alloc(a, width * row, sizeof *g->row);
    g->taken = arena_alloc(a, width, sizeof *g->taken);
    if (!g->live || !g->next || !g->taken || !g->finished || !g->row)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a beam search of %d beams", g->width);
    beam_tree_init(&g->tree, 1 + g->n_shown + g->n_named);
    r->beam = g;
    return SL_OK;
}

/* The KV cache holds all beams at that many tokens, whatever they have in common: the prompt's full
 * blocks once, the rest once a beam. The last token is never computed. */
static int longest_that_fits(const struct sched *s, const struct request *r)
{
    int64_t size = s->cfg.layout.block_size, shared = r->n_prompt / size;
    int64_t own = (s->cfg.layout.n_blocks - shared) / r->n_seqs;
    int64_t n = (shared + own) * size + 1;
    return n <= r->n_prompt ? r->n_prompt + 1 : n < s->max_len ? (int)n : s->max_len;
}

void beam_open(struct sched *s, struct request *r)
{
    struct beam *g = r->beam;
    struct sequence *q = r->seq[0];
    SL_ASSERT(g && !s->by_batch && g->width <= s->cfg.max_num_seqs);
    int fits = longest_that_fits(s, r);
    g->limit = q->limit < fits ? q->limit : fits;
    q->limit = q->n_tokens + 1;
    g->live[0] = (struct beam_seq){.seq = q};
    g->n_live = 1;
    r->forked = true; /* not as the choices of a sampled request do */
}

void beam_close(struct request *r)
{
    if (r->beam && !r->beam->reporting)
        beam_tree_fini(&r->beam->tree);
}

/* ---- rows and blocks ------------------------------------------------------------------------- */

int beam_rows(const struct sequence *q)
{
    return q->req->beam ? q->req->beam->width : 1;
}

bool beam_settled(const struct sequence *q)
{
    for (int i = 0; i < q->req->n_seqs; i++)
        if (q->req->seq[i]->n_inflight)
            return false;
    return true;
}

int beam_extra_blocks(const struct sched *s, const struct sequence *q)
{
    const struct beam *g = q->req->beam;
    int size = s->cfg.layout.block_size;
    if (!g || !g->rejoining)
        return 0;
    int common = q->n_tokens / size;
    return common + g->n_live * (ceil_div(g->n_full, size) - common) - ceil_div(q->n_tokens, size);
}

void beam_admitted(struct sched *s, struct sequence *q)
{
    struct beam *g = q->req->beam;
    if (!g)
        return;
    SL_ASSERT(!g->admitted && q == g->live[0].seq);
    g->admitted = true;
    g->n_rows = 1;
    s->rows_reserved += g->width - 1;
}

void beam_leave(struct sched *s, struct request *r)
{
    struct beam *g = r->beam;
    if (!g || !g->admitted)
        return;
    s->rows_reserved -= g->width - g->n_rows;
    g->admitted = false;
}

/* One beam more runs, or one less. */
static void start_running(struct sched *s, struct beam *g, struct sequence *q)
{
    q->state = SEQ_RUNNING;
    q->row = row_take(s);
    q->plan_step = s->step;
    queue_push_late(&s->running, q);
    g->n_rows++;
    s->rows_reserved--;
    SL_ASSERT(g->n_rows <= g->width && s->rows_reserved >= 0);
}

static void stop_running(struct sched *s, struct sequence *q)
{
    queue_remove(&s->running, q);
    blocks_release(s, q);
    row_give(s, q);
    q->state = SEQ_NEW;
}

static int common_tokens(const struct beam *g)
{
    const struct sequence *a = g->live[0].seq;
    int n = a->n_tokens;
    for (int i = 1; i < g->n_live; i++) {
        const struct sequence *b = g->live[i].seq;
        int same = a->n_prompt;
        while (same < n && a->tokens[same] == b->tokens[same])
            same++;
        n = same;
    }
    return n;
}

void beam_preempt(struct sched *s, struct request *r)
{
    struct beam *g = r->beam;
    struct sequence *first = g->live[0].seq;
    beam_leave(s, r);
    for (int i = 0; i < g->n_live; i++) {
        g->live[i].n_row = 0; /* sampled again, to the same bits */
        if (g->live[i].seq->state == SEQ_RUNNING)
            stop_running(s, g->live[i].seq);
    }
    g->n_reported = 0;
    if (!g->rejoining && g->n_live > 1) {
        g->rejoining = true;
        g->n_full = first->n_tokens;
        first->n_tokens = common_tokens(g);
        first->limit = first->n_tokens + 1;
    }
    first->state = SEQ_WAITING;
    first->n_preempted++;
    queue_push_early(&s->waiting, first);
}

bool beam_is_planned(const struct sched *s, const struct sequence *q)
{
    const struct beam *g = q->req->beam;
    for (int i = 0; g && i < g->n_live; i++)
        if (g->live[i].seq != q && g->live[i].seq->state == SEQ_RUNNING &&
            g->live[i].seq->plan_step == s->step)
            return true;
    return false;
}

bool beam_rejoin(struct sched *s, struct sequence *q)
{
    struct beam *g = q->req->beam;
    if (!g || !g->rejoining)
        return false;
    SL_ASSERT(q == g->live[0].seq && q->n_tokens < g->n_full);
    for (int i = 1; i < g->n_live; i++) {
        struct sequence *c = g->live[i].seq;
        if (!blocks_share(s, q, c)) { /* the host has no memory for a table: all again, later */
            blocks_release(s, c);
            beam_preempt(s, q->req);
            return true;
        }
        start_running(s, g, c);
    }
    g->rejoining = false;
    q->n_tokens = g->n_full;
    q->limit = q->n_tokens + 1;
    return true;
}

/* ---- the next beams -------------------------------------------------------------------------- */

/* c, which is idle, becomes a copy of p. */
static bool fork_beam(struct sched *s, struct beam *g, const struct sequence *p, struct sequence *c)
{
    if (c->tokens == c->req->prompt) { /* its first use */
        int cap;
        int32_t *t = intpool_take(&s->ints, p->n_tokens + 1, &cap);
        if (!t)
            return false;
        c->tokens = t;
        c->cap_tokens = cap;
    }
    if (!intpool_grow(&s->ints, &c->tokens, &c->cap_tokens, 0, p->n_tokens + 1))
        return false;
    if (!blocks_share(s, p, c)) {
        blocks_release(s, c);
        return false;
    }
    memcpy(c->tokens, p->tokens, (size_t)p->n_tokens * sizeof *c->tokens);
    c->n_tokens = p->n_tokens;
    c->n_cached = p->n_cached;
    c->first_scheduled_ns = p->first_scheduled_ns;
    start_running(s, g, c);
    return true;
}

static struct sequence *idle_sequence(struct request *r)
{
    for (int i = 0; i < r->n_seqs; i++)
        if (r->seq[i]->state == SEQ_NEW)
            return r->seq[i];
    return NULL;
}

/* A sequence for each of the next beams: the first that continues a beam goes on with it, the
 * others with copies; what nobody continues is idle. */
static bool take_sequences(struct sched *s, struct request *r)
{
    struct beam *g = r->beam;
    for (int i = 0; i < g->n_next; i++) {
        struct beam_seq *from = &g->live[g->next[i].from];
        g->next[i].beam.seq = from->continued ? NULL : from->seq;
        from->continued = true;
    }
    for (int i = 0; i < g->n_live; i++)
        if (!g->live[i].continued) {
            stop_running(s, g->live[i].seq);
            g->n_rows--;
            s->rows_reserved++;
        }
    for (int i = 0; i < g->n_next; i++) {
        struct beam_next *n = &g->next[i];
        if (n->beam.seq)
            continue;
        struct sequence *c = idle_sequence(r);
        if (!c || !fork_beam(s, g, g->live[n->from].seq, c))
            return false;
        n->beam.seq = c;
    }
    return true;
}

bool beam_advance(struct sched *s, struct request *r)
{
    struct beam *g = r->beam;
    if (!take_sequences(s, r))
        return false;
    for (int i = 0; i < g->n_live; i++)
        beam_node_drop(&g->tree, g->live[i].path);
    g->n_live = g->n_next;
    g->n_reported = 0;
    for (int i = 0; i < g->n_next; i++) {
        struct sequence *q = g->next[i].beam.seq;
        int32_t token = g->next[i].beam.path->lp[0].token;
        g->live[i] = g->next[i].beam;
        if (!intpool_grow(&s->ints, &q->tokens, &q->cap_tokens, q->n_tokens, q->n_tokens + 1))
            return false;
        q->tokens[q->n_tokens++] = token;
        q->limit = q->n_tokens + 1;
        blocks_publish(s, q);
    }
    return true;
}

/* ---- checks ---------------------------------------------------------------------------------- */

int beam_check(const struct request *r)
{
    const struct beam *g = r->beam;
    int n_running = 0;
    for (int i = 0; i < r->n_seqs; i++)
        n_running += r->seq[i]->state == SEQ_RUNNING;
    SL_ASSERT(g->admitted == (n_running > 0));
    if (!g->admitted)
        return 0;
    SL_ASSERT(g->n_rows == n_running && n_running == (g->rejoining ? 1 : g->n_live));
    SL_ASSERT(g->n_live <= g->width && g->n_finished <= g->width && g->n_reported < g->n_live);
    for (int i = 0; i < g->n_live; i++) {
        const struct sequence *q = g->live[i].seq;
        bool runs = i == 0 || !g->rejoining;
        SL_ASSERT((q->state == SEQ_RUNNING) == runs && q->n_tokens < g->limit);
        if (runs)
            SL_ASSERT(q->limit == q->n_tokens + 1 && q->n_inflight <= 1);
    }
    return g->width - n_running;
}
