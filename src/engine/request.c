/* The consumer's side of a request: events become text, stop strings are found, outputs are given.
 *
 * What the metrics say about tokens is counted here, where it is known which of them count.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/pyrepr.h"

#include <stdlib.h>

void request_unref(struct sl_request *r)
{
    if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    for (int i = 0; r->choice && i < r->n_made; i++)
        choice_fini(&r->choice[i]);
    event_buf_fini(&r->pending);
    event_buf_fini(&r->taken);
    cond_fini(&r->ready);
    mutex_fini(&r->lock);
    structured_release(r->engine, &r->core);
    mem_free(r->plp);
    arena_fini(&r->core.arena);
    mem_free(r);
}

/* ---- metrics and log lines ------------------------------------------------------------------- */

static void count_token(struct sl_request *r, int64_t previous_ns, int64_t now_ns)
{
    struct metrics *m = r->engine->metrics;
    metrics_add(m, M_GENERATION_TOKENS, 1);
    if (previous_ns && r->rules.beams)
        return; /* all tokens of a beam search come at once, at its end */
    if (previous_ns)
        metrics_observe(m, M_ITL, now_ns - previous_ns);
    else
        metrics_observe(m, M_TTFT, now_ns - r->core.arrival_ns);
}

static enum metric_counter finish_counter(enum sl_finish f)
{
    switch (f) {
    case SL_STOP:
        return M_FINISHED_STOP;
    case SL_LENGTH:
        return M_FINISHED_LENGTH;
    case SL_ERROR:
        return M_FINISHED_ERROR;
    case SL_REPETITION:
        return M_FINISHED_REPETITION;
    default:
        return M_FINISHED_ABORT;
    }
}

static void log_output(const struct sl_request *r, const struct choice *c)
{
    static const char *const name[] = {"", "stop", "length", "abort", "error", "repetition"};
    struct strbuf text;
    strbuf_init(&text, 0);
    pyrepr_str(&text, c->logged.len ? c->logged.data : "");
    log_info("Generated response %s: output: %s, finish_reason: %s", r->core.id,
             text.data ? text.data : "?", name[c->finish]);
    strbuf_fini(&text);
}

/* A pooling request has ended with its prompt. */
static void count_pooled(struct sl_request *r)
{
    struct metrics *m = r->engine->metrics;
    int64_t end_ns = r->core.seq[0]->last_token_ns, prefill_ns = end_ns - r->seen_scheduled_ns;
    metrics_observe(m, M_E2E, end_ns - r->core.arrival_ns);
    metrics_observe(m, M_QUEUE_TIME, r->seen_scheduled_ns - r->core.arrival_ns);
    metrics_observe(m, M_PREFILL_TIME, prefill_ns);
    metrics_observe(m, M_INFERENCE_TIME, prefill_ns);
    metrics_observe(m, M_REQUEST_PROMPT_TOKENS, r->core.n_prompt);
    metrics_observe(m, M_PREFILL_KV_COMPUTED, r->core.n_prompt - r->usage.cached_tokens);
}

/* A choice has finished, as its consumer sees it. */
static void count_finish(struct sl_request *r, const struct choice *c)
{
    struct metrics *m = r->engine->metrics;
    metrics_add(m, finish_counter(c->finish), 1);
    r->n_done++;
    if (r->core.pooling && c->finish == SL_STOP)
        count_pooled(r);
    r->n_longest = c->n_tokens > r->n_longest ? c->n_tokens : r->n_longest;
    if (c->finish == SL_ABORT || c->finish == SL_ERROR || !c->first_ns)
        return;
    metrics_observe(m, M_E2E, c->last_ns - r->core.arrival_ns);
    metrics_observe(m, M_QUEUE_TIME, r->seen_scheduled_ns - r->core.arrival_ns);
    metrics_observe(m, M_PREFILL_TIME, c->first_ns - r->seen_scheduled_ns);
    metrics_observe(m, M_INFERENCE_TIME, c->last_ns - r->seen_scheduled_ns);
    metrics_observe(m, M_DECODE_TIME, c->last_ns - c->first_ns);
    if (c->n_tokens > 1)
        metrics_observe(m, M_TPOT, (c->last_ns - c->first_ns) / (c->n_tokens - 1));
    metrics_observe(m, M_REQUEST_PROMPT_TOKENS, r->core.n_prompt);
    metrics_observe(m, M_REQUEST_GENERATION_TOKENS, c->n_tokens);
    metrics_observe(m, M_PARAMS_MAX_TOKENS, r->core.params.max_tokens);
    metrics_observe(m, M_PREFILL_KV_COMPUTED, r->core.n_prompt - r->usage.cached_tokens);
    if (r->n_done < r->n_made)
        return;
    metrics_observe(m, M_PARAMS_N, r->n_choices);
    metrics_observe(m, M_MAX_GENERATION_TOKENS, r->n_longest);
}

/* ---- events ---------------------------------------------------------------------------------- */

/* Larger sums first, failures last. */
static int by_rank(const void *x, const void *y)
{
    const struct choice *a = x, *b = y;
    bool a_failed = a->finish == SL_ERROR, b_failed = b->finish == SL_ERROR;
    if (a_failed != b_failed)
        return a_failed ? 1 : -1;
    if (a->sum != b->sum)
        return a->sum > b->sum ? -1 : 1;
    return a->index - b->index;
}

/* best_of: all have ended, and no event looks for its choice any more; the best n are given. */
static void offer_best(struct sl_request *r)
{
    qsort(r->choice, (size_t)r->n_made, sizeof *r->choice, by_rank);
    r->usage.completion_tokens = 0;
    for (int i = 0; i < r->n_choices; i++) {
        r->choice[i].shown_as = i;
        r->choice[i].offered = true;
        r->usage.completion_tokens += r->choice[i].n_tokens;
        r->ready_ring[r->n_ready++] = i;
    }
    r->ranked = true;
}

static void offer(struct sl_request *r, struct choice *c)
{
    if (r->n_made > r->n_choices) {
        if (r->n_done == r->n_made && !r->ranked)
            offer_best(r);
        return;
    }
    if (c->offered || !choice_ready(c, &r->rules))
        return;
    c->offered = true;
    r->ready_ring[(r->ready_first + r->n_ready++) % r->n_made] = c->index;
}

/* The consumer cannot go on: every choice ends with the error in r->failure. */
static void fail_all(struct sl_request *r)
{
    engine_post_abort(r);
    for (int i = 0; i < r->n_made; i++) {
        struct choice *c = &r->choice[i];
        if (c->finish != SL_RUNNING)
            continue;
        c->finish = SL_ERROR; /* and no last text: that may be what failed */
        count_finish(r, c);
        offer(r, c);
    }
}

static void take_event(struct sl_request *r, const struct event *ev, const struct sl_logprob *lp)
{
    struct choice *c = &r->choice[ev->choice];
    int n_before = c->n_tokens;
    int64_t previous_ns = c->last_ns;
    if (c->finish != SL_RUNNING)
        return;
    if (choice_take(c, &r->rules, ev, lp, &r->failure)) {
        fail_all(r);
        return;
    }
    if (c->n_tokens > n_before) {
        r->usage.completion_tokens++;
        count_token(r, previous_ns, ev->t_ns);
    }
    if (c->finish != SL_RUNNING) {
        if (ev->finish == SL_RUNNING)
            engine_post_cancel(r, c->index); /* a stop string: the engine does not know yet */
        if (c->finish == SL_ERROR)
            (void)SL_FAIL(&r->failure, SL_EDEVICE,
                          "the model's output for request %s is not a number", r->core.id);
        count_finish(r, c);
    }
    offer(r, c);
}

static void end_open_choices(struct sl_request *r, enum sl_finish why, const struct sl_err *error)
{
    if (why == SL_ERROR && r->failure.code == SL_OK)
        r->failure = *error;
    for (int i = 0; i < r->n_made; i++) {
        struct choice *c = &r->choice[i];
        if (c->finish != SL_RUNNING)
            continue;
        if (choice_end(c, why, &r->failure))
            c->finish = SL_ERROR;
        count_finish(r, c);
        offer(r, c);
    }
}

/* Takes what the engine has sent so far. */
static void pump(struct sl_request *r)
{
    event_buf_clear(&r->taken);
    mutex_lock(&r->lock);
    struct event_buf full = r->pending;
    r->pending = r->taken;
    r->taken = full;
    r->notified = false;
    enum sl_finish closed = r->closed;
    struct sl_err error = r->error;
    r->usage.cached_tokens = r->n_cached;
    r->seen_scheduled_ns = r->scheduled_ns;
    mutex_unlock(&r->lock);

    const struct sl_logprob *lp = r->taken.lp;
    for (size_t i = 0; i < r->taken.n; i++) {
        const struct event *ev = &r->taken.ev[i];
        take_event(r, ev, lp);
        if (lp)
            lp += ev->n_lp;
        r->started = true;
    }
    if (closed != SL_RUNNING)
        end_open_choices(r, closed, &error);
}

/* ---- the public calls ------------------------------------------------------------------------ */

static void take_back(struct sl_request *r)
{
    if (!r->given)
        return;
    choice_taken(r->given);
    r->given = NULL;
}

const struct sl_output *sl_request_next(struct sl_request *r)
{
    take_back(r);
    if (!r->n_ready)
        pump(r);
    if (!r->n_ready)
        return NULL;
    struct choice *c = &r->choice[r->ready_ring[r->ready_first]];
    r->ready_first = (r->ready_first + 1) % r->n_made;
    r->n_ready--;
    c->offered = false;
    r->given = c;
    if (choice_output(c, &r->rules, &r->out, &r->failure)) {
        fail_all(r);
        r->out = (struct sl_output){.index = c->index, .text = "", .finish = SL_ERROR};
        c->finish = SL_ERROR;
        c->ended = true;
    }
    if (r->out.finish == SL_ERROR)
        r->out.error = &r->failure;
    if (c->ended) {
        r->n_ended++;
        if (r->rules.max_log_bytes)
            log_output(r, c);
    }
    return &r->out;
}

enum sl_status sl_request_wait(struct sl_request *r, int timeout_ms)
{
    int64_t deadline = clock_mono_ns() + (int64_t)timeout_ms * 1000000;
    take_back(r);
    for (;;) {
        if (!r->n_ready)
            pump(r);
        if (r->n_ready)
            return SL_OK;
        if (sl_request_done(r))
            return SL_ESHUTDOWN;
        bool in_time = true;
        mutex_lock(&r->lock);
        while (in_time && !r->pending.n && r->closed == SL_RUNNING) {
            SL_DCHECK(!r->notified); /* so the next event is told */
            if (timeout_ms < 0)
                cond_wait(&r->ready, &r->lock);
            else
                in_time = cond_wait_until(&r->ready, &r->lock, deadline);
        }
        mutex_unlock(&r->lock);
        if (!in_time)
            return SL_EAGAIN;
    }
}

bool sl_request_done(const struct sl_request *r)
{
    return r->n_ended == r->n_choices;
}

void sl_request_abort(struct sl_request *r)
{
    engine_post_abort(r);
}

void sl_request_release(struct sl_request **rp)
{
    struct sl_request *r = *rp;
    if (!r)
        return;
    *rp = NULL;
    mutex_lock(&r->lock);
    r->wake = NULL; /* never called again once this lock is let go */
    mutex_unlock(&r->lock);
    if (r->n_done < r->n_made) {
        if (r->engine->cfg.log_requests)
            log_info("Request %s aborted.", r->core.id);
        metrics_add(r->engine->metrics, M_FINISHED_ABORT, (uint64_t)(r->n_made - r->n_done));
        engine_post_abort(r);
    }
    request_unref(r);
}

void sl_request_usage(const struct sl_request *r, struct sl_usage *out)
{
    *out = r->usage;
}

const char *sl_request_id(const struct sl_request *r)
{
    return r->core.id;
}

const int32_t *sl_request_prompt(const struct sl_request *r, int *n)
{
    *n = r->core.n_prompt;
    return r->core.prompt;
}

const struct sl_token_logprobs *sl_request_prompt_logprobs(const struct sl_request *r)
{
    return r->started ? r->plp_list : NULL;
}
