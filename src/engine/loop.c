/* The engine thread: messages in, a step, events out; asleep when there is nothing to do.
 *
 * Messages are taken before every step, so what is cancelled is not planned again. Consumers are
 * woken once after each step, when all of its tokens are in their queues.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"

#include <string.h>

/* ---- events out ------------------------------------------------------------------------------ */

static void wake_later(struct sl_engine *e, struct sl_request *r)
{
    if (r->to_wake)
        return;
    r->to_wake = true;
    r->wake_next = e->to_wake;
    e->to_wake = r;
}

static void wake_consumers(struct sl_engine *e)
{
    while (e->to_wake) {
        struct sl_request *r = e->to_wake;
        e->to_wake = r->wake_next;
        r->to_wake = false;
        mutex_lock(&r->lock);
        /* If it has taken the events already, telling it again would be remembered as a call that
         * it has not followed yet, and the next one would not be made. */
        bool news = r->pending.n > 0 || r->closed != SL_RUNNING;
        if (news && !r->notified) {
            r->notified = true;
            cond_signal(&r->ready);
            if (r->wake)
                r->wake(r->wake_ctx);
        }
        mutex_unlock(&r->lock);
    }
}

/* Every choice has ended: give it up as soon as no step names it. */
static void finish(struct sl_engine *e, struct sl_request *r)
{
    SL_ASSERT(!r->finished);
    r->finished = true;
    r->done_next = e->done;
    e->done = r;
}

/* No more events: choices that the consumer sees open end with `why`. */
static void close_request(struct sl_engine *e, struct sl_request *r, enum sl_finish why,
                          const struct sl_err *error)
{
    mutex_lock(&r->lock);
    r->closed = why;
    if (error)
        r->error = *error;
    mutex_unlock(&r->lock);
    finish(e, r);
    wake_later(e, r);
}

static void abort_request(struct sl_engine *e, struct sl_request *r, enum sl_finish why,
                          const struct sl_err *error)
{
    if (r->finished)
        return;
    sched_abort(core_sched(e->core), &r->core, why);
    close_request(e, r, why, error);
}

static void take_prompt_logprobs(struct sl_request *r, const struct sched_event *ev)
{
    if (!r->plp || r->told || ev->pos < 1 || ev->pos >= r->core.n_prompt)
        return;
    struct sl_logprob *to = r->plp + (size_t)ev->pos * (size_t)r->plp_width;
    int n = ev->n_lp < r->plp_width ? ev->n_lp : r->plp_width;
    if (n)
        memcpy(to, ev->lp, (size_t)n * sizeof *to);
    r->plp_list[ev->pos] = (struct sl_token_logprobs){.entry = to, .n = n};
}

/* The consumer is told of the first token, then of every wake_interval tokens. */
static bool worth_waking(struct sl_request *r, const struct sched_event *ev)
{
    if (r->wake_interval == 1)
        return true;
    int *unsent = &r->unsent[ev->seq->index];
    bool first = ev->seq->n_tokens <= ev->seq->n_prompt + 1;
    ++*unsent;
    if (!first && ev->finish == SL_RUNNING && *unsent < r->wake_interval)
        return false;
    *unsent = 0;
    return true;
}

/* With the first token: what the prompt has cost. */
static void first_event(struct sl_engine *e, struct sl_request *r)
{
    const struct sequence *seq = r->core.seq[0];
    uint64_t n = (uint64_t)r->core.n_prompt, cached = (uint64_t)seq->n_cached;
    r->told = true;
    mutex_lock(&r->lock);
    r->n_cached = seq->n_cached;
    r->scheduled_ns = seq->first_scheduled_ns;
    mutex_unlock(&r->lock);
    metrics_add(e->metrics, M_PROMPT_TOKENS, n);
    metrics_add(e->metrics, M_PROMPT_CACHED, cached);
    metrics_add(e->metrics, M_PROMPT_CACHE_HIT, cached);
    metrics_add(e->metrics, M_PROMPT_LOCAL_COMPUTE, n - cached);
}

/* Append to the consumer's queue. SL_EAGAIN: too much of it is unread. */
static enum sl_status push_event(const struct sl_engine *e, struct sl_request *r,
                                 const struct sched_event *ev)
{
    const struct event event = {
        .t_ns = ev->now_ns,
        .choice = ev->seq->index,
        .token = ev->token,
        .n_lp = ev->n_lp,
        .stop_token = ev->seq->stop_token,
        .has_token = ev->has_token,
        .finish = (uint8_t)ev->finish,
        .stop_kind = (uint8_t)ev->seq->stop_kind,
    };
    size_t bytes = sizeof event + (size_t)ev->n_lp * sizeof *ev->lp;
    enum sl_status st = SL_OK;
    mutex_lock(&r->lock);
    size_t unread = event_buf_bytes(&r->pending);
    /* A beam search gives all of its answer at once: who reads could not have read any before. */
    bool counts = !r->core.params.beam_width;
    if (counts && unread > 0 && unread + bytes > e->cfg.max_unread_bytes)
        st = SL_EAGAIN;
    else if (!event_buf_push(&r->pending, &event, ev->lp))
        st = SL_ENOMEM;
    mutex_unlock(&r->lock);
    return st;
}

void engine_sink(void *engine, const struct sched_event *ev)
{
    struct sl_engine *e = engine;
    struct sl_request *r = ev->seq->req->consumer;
    if (r->finished)
        return; /* the rest of a beam search, one of whose events could not be kept */
    if (ev->is_prompt_logprob) {
        take_prompt_logprobs(r, ev);
        return;
    }
    if (!r->told)
        first_event(e, r);
    enum sl_status st = push_event(e, r, ev);
    if (st == SL_EAGAIN) {
        log_warning("Request %s aborted: more than %zu bytes of its output are unread.", r->core.id,
                    e->cfg.max_unread_bytes);
        abort_request(e, r, SL_ABORT, NULL);
    } else if (st) {
        struct sl_err error = {0};
        (void)SL_FAIL(&error, st, "no memory for the output of request %s", r->core.id);
        abort_request(e, r, SL_ERROR, &error);
    } else {
        if (ev->finish != SL_RUNNING && --r->n_open == 0)
            finish(e, r);
        if (worth_waking(r, ev))
            wake_later(e, r);
    }
}

/* ---- messages in ----------------------------------------------------------------------------- */

/* Under the engine's lock. */
static void post(struct sl_request *r)
{
    struct sl_engine *e = r->engine;
    if (r->in_inbox)
        return;
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    r->in_inbox = true;
    r->inbox_next = NULL;
    *e->inbox_end = r;
    e->inbox_end = &r->inbox_next;
    cond_signal(&e->work);
}

void engine_post_abort(struct sl_request *r)
{
    mutex_lock(&r->engine->lock);
    r->want_abort = true;
    post(r);
    mutex_unlock(&r->engine->lock);
}

void engine_post_cancel(struct sl_request *r, int choice)
{
    mutex_lock(&r->engine->lock);
    r->want_cancel = r->cancel[choice] = true;
    post(r);
    mutex_unlock(&r->engine->lock);
}

enum sl_status engine_post_new(struct sl_request *r, struct sl_err *err)
{
    struct sl_engine *e = r->engine;
    enum sl_status st = SL_OK;
    mutex_lock(&e->lock);
    if (atomic_load_explicit(&e->dead, memory_order_acquire))
        st = SL_FAIL(err, SL_EDEVICE, "the engine is dead: %s", e->dead_err.msg);
    else if (e->draining || e->stop)
        st = SL_FAIL(err, SL_ESHUTDOWN, "the engine is shutting down");
    else if (e->n_inbox_new + e->n_waiting >= e->cfg.max_queued_reqs)
        st = SL_EAGAIN;
    if (!st) {
        r->is_new = true;
        e->n_inbox_new++;
        e->n_live++;
        post(r);
    }
    mutex_unlock(&e->lock);
    return st;
}

static void add_request(struct sl_engine *e, struct sl_request *r)
{
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    r->next = e->live;
    if (e->live)
        e->live->prev = r;
    e->live = r;
    if (atomic_load_explicit(&e->dead, memory_order_relaxed)) {
        close_request(e, r, SL_ERROR, &e->dead_err);
        return;
    }
    sched_add(core_sched(e->core), &r->core);
    if (e->cfg.log_requests)
        log_info("Added request %s.", r->core.id);
}

static void cancel_choices(struct sl_engine *e, struct sl_request *r)
{
    for (int i = 0; i < r->core.n_seqs && !r->finished; i++) {
        struct sequence *seq = r->core.seq[i];
        if (!r->cancelled[i] || seq->state == SEQ_FINISHED)
            continue;
        sched_abort_seq(core_sched(e->core), seq, SL_STOP);
        if (--r->n_open == 0)
            finish(e, r);
    }
}

/* Takes the oldest message; false: none. What it says is read under the lock, done outside. */
static bool take_message(struct sl_engine *e)
{
    mutex_lock(&e->lock);
    struct sl_request *r = e->inbox;
    if (!r) {
        mutex_unlock(&e->lock);
        return false;
    }
    e->inbox = r->inbox_next;
    if (!e->inbox)
        e->inbox_end = &e->inbox;
    bool is_new = r->is_new, want_abort = r->want_abort, want_cancel = r->want_cancel;
    r->in_inbox = r->is_new = r->want_abort = r->want_cancel = false;
    if (is_new) {
        e->n_inbox_new--;
        e->n_waiting++; /* until the scheduler's own count is read again */
    }
    if (want_cancel)
        memcpy(r->cancelled, r->cancel, (size_t)r->core.n_seqs * sizeof *r->cancel);
    mutex_unlock(&e->lock);

    e->stalled = false;
    if (is_new)
        add_request(e, r);
    if (want_cancel)
        cancel_choices(e, r);
    if (want_abort)
        abort_request(e, r, SL_ABORT, NULL);
    request_unref(r);
    return true;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void abort_all(struct sl_engine *e, enum sl_finish why, const struct sl_err *error)
{
    for (struct sl_request *r = e->live; r; r = r->next)
        abort_request(e, r, why, error);
}

/* Give up what is finished and named by no step in flight. */
static void reap(struct sl_engine *e)
{
    struct sl_request *done = e->done;
    int n = 0;
    e->done = NULL;
    for (struct sl_request *r = done, *next; r; r = next) {
        next = r->done_next;
        if (sched_holds(core_sched(e->core), &r->core)) {
            r->done_next = e->done;
            e->done = r;
            continue;
        }
        if (r->prev)
            r->prev->next = r->next;
        else
            e->live = r->next;
        if (r->next)
            r->next->prev = r->prev;
        request_unref(r);
        n++;
    }
    if (!n)
        return;
    mutex_lock(&e->lock);
    e->n_live -= n;
    if (e->n_live == 0)
        cond_broadcast(&e->drained);
    mutex_unlock(&e->lock);
}

/* Takes every message, first waiting for one if there is nothing else to do. false: stop. */
static bool listen(struct sl_engine *e)
{
    struct sched_stats stats;
    sched_get_stats(core_sched(e->core), &stats);
    mutex_lock(&e->lock);
    e->n_waiting = stats.n_waiting;
    while (e->stalled && !e->inbox && !e->stop && !e->abort_all) {
        int64_t deadline = stats_deadline(e);
        if (deadline == INT64_MAX) {
            cond_wait(&e->work, &e->lock);
        } else if (!cond_wait_until(&e->work, &e->lock, deadline)) {
            mutex_unlock(&e->lock);
            stats_tick(e, clock_mono_ns());
            mutex_lock(&e->lock);
        }
    }
    bool go_on = !e->stop, abort_now = e->abort_all || e->stop;
    e->abort_all = false;
    mutex_unlock(&e->lock);

    while (take_message(e))
        ;
    if (abort_now) {
        e->stalled = false;
        abort_all(e, SL_ABORT, NULL);
    }
    return go_on;
}

static void die(struct sl_engine *e, const struct sl_err *err)
{
    e->dead_err = *err;
    atomic_store_explicit(&e->dead, true, memory_order_release);
    log_error("The engine is dead: %s", err->msg);
    abort_all(e, SL_ERROR, err);
}

/* One step, and everything that follows from it. */
static void step(struct sl_engine *e)
{
    struct sl_err err = {0};
    bool dead = atomic_load_explicit(&e->dead, memory_order_relaxed);
    enum sl_status st = dead ? SL_EAGAIN : core_step(e->core, &err);
    if (st && st != SL_EAGAIN)
        die(e, &err);
    wake_consumers(e);
    reap(e);
    e->stalled = st != SL_OK;
    stats_after_step(e, st == SL_OK);
}

void *engine_main(void *engine)
{
    struct sl_engine *e = engine;
    while (listen(e))
        step(e);
    while (e->done || e->live) /* aborted by now; steps in flight name them still */
        step(e);
    return NULL;
}
