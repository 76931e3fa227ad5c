/* Beam search: what the rows of all beams come to, when it ends, and what is reported.
 *
 * The rules are those of transformers' _beam_search for one prompt. There the best
 * (1 + number of stop tokens) * width continuations are looked at; here each row has the best
 * width + number of stop tokens, which holds every one of them that can matter: a beam adds at
 * most `width` to the places that count, after at most all of its stop tokens.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/beam_impl.h"

#include <math.h>
#include <string.h>

static const struct sl_logprob *row_of(const struct beam *g, int beam)
{
    return g->row + (size_t)beam * (size_t)g->row_cap;
}

static double score_of(const struct request *r, double sum, int n_tokens)
{
    return sum / pow(n_tokens, (double)r->params.p.length_penalty);
}

/* ---- the paths ------------------------------------------------------------------------------- */

/* Candidate `at` of the beam's row, as the token after its path. NULL: no memory. */
static struct beam_node *extend_path(struct beam *g, int beam, int at)
{
    const struct beam_seq *b = &g->live[beam];
    const struct sl_logprob *row = row_of(g, beam);
    struct beam_node *n = beam_node_make(&g->tree, b->path);
    if (!n)
        return NULL;
    int shown = g->n_shown < b->n_row ? g->n_shown : b->n_row;
    n->lp[0] = row[at];
    memcpy(n->lp + 1, row, (size_t)shown * sizeof *row);
    memcpy(n->lp + 1 + shown, row + b->n_row, (size_t)g->n_named * sizeof *row);
    n->n_lp = 1 + shown + g->n_named;
    return n;
}

/* Into the pool of finished ones, after those that are as good; the worst one too many goes. */
static bool finish_path(struct request *r, int beam, int at, double sum, struct beam_end end)
{
    struct beam *g = r->beam;
    end.score = score_of(r, sum, end.n_tokens);
    int i = g->n_finished;
    while (i > 0 && g->finished[i - 1].score < end.score)
        i--;
    if (i == g->width)
        return true;
    end.path = extend_path(g, beam, at);
    if (!end.path)
        return false;
    memmove(g->finished + i + 1, g->finished + i,
            (size_t)(g->n_finished - i) * sizeof *g->finished);
    g->finished[i] = end;
    if (++g->n_finished > g->width)
        beam_node_drop(&g->tree, g->finished[--g->n_finished].path);
    return true;
}

static bool is_stop_id(const struct sl_sampling_params *p, int32_t token)
{
    for (int i = 0; i < p->n_stop_token_ids; i++)
        if (p->stop_token_ids[i] == token)
            return true;
    return false;
}

/* Why a path of n_tokens ends with this token; SL_RUNNING: it goes on. */
static struct beam_end end_of(const struct request *r, int n_tokens, int32_t token)
{
    const struct sl_sampling_params *p = &r->params.p;
    struct beam_end end = {.n_tokens = n_tokens};
    bool may_stop = n_tokens >= p->min_tokens;
    if (may_stop && token == r->seq[0]->eos) {
        end.finish = SL_STOP;
    } else if (may_stop && is_stop_id(p, token)) {
        end.finish = SL_STOP;
        end.stop_kind = SL_STOP_TOKEN;
    } else if (r->n_prompt + n_tokens >= r->beam->limit) {
        end.finish = SL_LENGTH;
    }
    return end;
}

/* ---- choosing -------------------------------------------------------------------------------- */

/* The best continuation that was not taken yet: rows are in order, so it is at the front of one of
 * them. -1: none is left. */
static int best_beam(const struct beam *g, const int *taken, double *sum)
{
    int best = -1;
    for (int b = 0; b < g->n_live; b++) {
        if (taken[b] == g->live[b].n_row)
            continue;
        double s = g->live[b].sum + (double)row_of(g, b)[taken[b]].logprob;
        if (s > -INFINITY && (best < 0 || s > *sum)) {
            best = b;
            *sum = s;
        }
    }
    return best;
}

/* Fills next[] and the pool. false: no memory. */
static bool pick(struct request *r, int n_tokens)
{
    struct beam *g = r->beam;
    bool last = r->n_prompt + n_tokens >= g->limit, ok = true;
    g->n_next = 0;
    for (int b = 0; b < g->n_live; b++)
        g->taken[b] = 0;
    for (int place = 0; ok && g->n_next < g->width && !(last && place == g->width); place++) {
        double sum = 0;
        int from = best_beam(g, g->taken, &sum);
        if (from < 0)
            break;
        int at = g->taken[from]++;
        struct beam_end end = end_of(r, n_tokens, row_of(g, from)[at].token);
        if (end.finish != SL_RUNNING) {
            if (place < g->width) /* the others are only looked at for what goes on */
                ok = finish_path(r, from, at, sum, end);
            continue;
        }
        struct beam_node *path = extend_path(g, from, at);
        ok = path != NULL;
        if (ok)
            g->next[g->n_next++] =
                (struct beam_next){.beam = {.path = path, .sum = sum}, .from = from};
    }
    return ok;
}

/* Nothing that could still come would change the answer, or is waited for. */
static bool is_over(const struct request *r, int n_tokens)
{
    const struct beam *g = r->beam;
    const struct sl_sampling_params *p = &r->params.p;
    if (g->n_next == 0)
        return true;
    if (g->n_finished < g->width)
        return false;
    if (p->early_stopping == SL_EARLY_TRUE)
        return true;
    bool to_the_end = p->early_stopping == SL_EARLY_NEVER && p->length_penalty > 0;
    double hope = score_of(r, g->next[0].beam.sum, to_the_end ? g->limit - r->n_prompt : n_tokens);
    return hope <= g->finished[g->n_finished - 1].score;
}

/* ---- reporting ------------------------------------------------------------------------------- */

static void report_end(struct sequence *q, enum sl_finish why, int64_t now_ns, sched_sink sink,
                       void *ctx)
{
    const struct sched_event ev = {.seq = q, .finish = why, .now_ns = now_ns};
    sink(ctx, &ev);
}

/* The tokens of one finished path, as choice q->index. path: room for its nodes. */
static void report_path(struct sequence *q, const struct beam_end *end,
                        const struct beam_node **path, int64_t now_ns, sched_sink sink, void *ctx)
{
    const struct beam_node *n = end->path;
    for (int i = end->n_tokens; i-- > 0; n = n->parent)
        path[i] = n;
    q->finish = end->finish;
    q->stop_kind = end->stop_kind;
    q->stop_token = end->path->lp[0].token;
    for (int i = 0; i < end->n_tokens; i++) {
        q->n_tokens = q->n_prompt + i + 1;
        const struct sched_event ev = {.seq = q,
                                       .token = path[i]->lp[0].token,
                                       .has_token = true,
                                       .lp = path[i]->lp,
                                       .n_lp = path[i]->n_lp,
                                       .pos = q->n_prompt + i,
                                       .finish = i + 1 == end->n_tokens ? end->finish : SL_RUNNING,
                                       .now_ns = now_ns};
        if (i == 0)
            q->first_token_ns = now_ns;
        sink(ctx, &ev);
        q->last_token_ns = now_ns;
    }
}

/* Every sequence is finished first: blocks are free, and a sink may abort. A choice for which there
 * is no path ends with `otherwise`. */
static void end_search(struct sched *s, struct request *r, enum sl_finish otherwise, int64_t now_ns,
                       sched_sink sink, void *ctx)
{
    struct beam *g = r->beam;
    int longest = 1;
    for (int i = 0; i < g->n_finished; i++)
        if (g->finished[i].n_tokens > longest)
            longest = g->finished[i].n_tokens;
    const struct beam_node **path = mem_alloc((size_t)longest, sizeof *path);
    g->reporting = true;
    beam_leave(s, r);
    for (int i = 0; i < r->n_seqs; i++)
        sequence_finish(s, r->seq[i], SL_STOP);
    for (int i = 0; i < r->params.p.n; i++) {
        if (path && i < g->n_finished && otherwise != SL_ERROR)
            report_path(r->seq[i], &g->finished[i], path, now_ns, sink, ctx);
        else
            report_end(r->seq[i], path ? otherwise : SL_ERROR, now_ns, sink, ctx);
    }
    mem_free(path);
    g->reporting = false;
    beam_close(r);
}

/* ---- the step -------------------------------------------------------------------------------- */

static bool take_row(struct beam *g, const struct sequence *q, const struct sched_event *ev)
{
    int b = 0;
    while (g->live[b].seq != q)
        b++;
    int n = ev->n_lp - g->n_named;
    if (ev->token < 0 || n < 1 || ev->n_lp > g->row_cap)
        return false; /* NaN logits */
    SL_ASSERT(g->live[b].n_row == 0);
    memcpy(g->row + (size_t)b * (size_t)g->row_cap, ev->lp, (size_t)ev->n_lp * sizeof *ev->lp);
    g->live[b].n_row = n;
    g->n_reported++;
    return true;
}

void beam_take(struct sched *s, struct sequence *q, const struct sched_event *ev, sched_sink sink,
               void *ctx)
{
    struct request *r = q->req;
    struct beam *g = r->beam;
    if (q->state != SEQ_RUNNING)
        return;                      /* preempted while it was computed: it comes again */
    if (r->params.max_tokens <= 0) { /* only the prompt was asked for */
        end_search(s, r, SL_LENGTH, ev->now_ns, sink, ctx);
        return;
    }
    if (!take_row(g, q, ev)) {
        end_search(s, r, SL_ERROR, ev->now_ns, sink, ctx);
        return;
    }
    if (g->n_reported < g->n_live)
        return;
    int n_tokens = q->n_tokens - q->n_prompt + 1;
    if (!pick(r, n_tokens))
        end_search(s, r, SL_ERROR, ev->now_ns, sink, ctx);
    else if (is_over(r, n_tokens))
        end_search(s, r, SL_STOP, ev->now_ns, sink, ctx);
    else if (!beam_advance(s, r))
        end_search(s, r, SL_ERROR, ev->now_ns, sink, ctx);
}
