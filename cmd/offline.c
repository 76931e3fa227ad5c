/* SPDX-License-Identifier: Apache-2.0 */
#include "offline.h"
#include "util.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICK_MS 100

/* The engine's thread puts jobs that have output on the ready list; the caller's thread takes them.
 */
struct offline {
    pthread_mutex_t lock;
    pthread_cond_t some_ready;
    struct offline_job *ready; /* under lock, linked by next_ready */
    struct sl_engine *engine;
    struct timespec start;
    struct offline_stats stats;
    int n_running;
};

static double seconds_since(const struct timespec *start)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) + 1e-9 * (double)(now.tv_nsec - start->tv_nsec);
}

static void wake(void *ctx)
{
    struct offline_job *job = ctx;
    struct offline *o = job->owner;
    pthread_mutex_lock(&o->lock);
    if (!job->ready) {
        job->ready = true;
        job->next_ready = o->ready;
        o->ready = job;
        pthread_cond_signal(&o->some_ready);
    }
    pthread_mutex_unlock(&o->lock);
}

/* One job that has output, waiting up to `limit_s` for one; NULL: none came. */
static struct offline_job *pop_ready(struct offline *o, double limit_s)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long long ns = until.tv_nsec + (long long)(limit_s * 1e9);
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&o->lock);
    while (!o->ready && limit_s > 0 &&
           pthread_cond_timedwait(&o->some_ready, &o->lock, &until) == 0) {}
    struct offline_job *job = o->ready;
    if (job) {
        o->ready = job->next_ready;
        job->ready = false; /* what comes from here on puts it on the list again */
    }
    pthread_mutex_unlock(&o->lock);
    return job;
}

/* ---- results ------------------------------------------------------------------------------ */

static void keep_text(struct offline_choice *c, const char *text, size_t bytes)
{
    if (c->text_bytes + bytes + 1 > c->text_capacity) {
        c->text_capacity = (c->text_bytes + bytes + 1) * 2;
        c->text = xrealloc(c->text, c->text_capacity, 1);
    }
    memcpy(c->text + c->text_bytes, text, bytes);
    c->text_bytes += bytes;
    c->text[c->text_bytes] = '\0';
}

static void keep_logprobs(struct offline_choice *c, const struct sl_output *out, int first)
{
    c->entry_counts = xrealloc(c->entry_counts, (size_t)c->n_tokens, sizeof *c->entry_counts);
    for (int i = 0; i < out->n_tokens; i++) {
        const struct sl_token_logprobs *lp = &out->logprobs[i];
        c->entries = xrealloc(c->entries, (size_t)(c->n_entries + lp->n) + 1, sizeof *c->entries);
        memcpy(c->entries + c->n_entries, lp->entry, (size_t)lp->n * sizeof *lp->entry);
        c->n_entries += lp->n;
        c->entry_counts[first + i] = lp->n;
    }
}

static void take_output(struct offline *o, struct offline_job *job, const struct sl_output *out)
{
    struct offline_choice *c = &job->choices[out->index];
    if (job->first_token_s < 0 && out->n_tokens > 0)
        job->first_token_s = seconds_since(&o->start);
    o->stats.output_tokens += out->n_tokens;
    if (job->keep && out->n_tokens > 0) {
        int first = c->n_tokens;
        c->tokens = xrealloc(c->tokens, (size_t)(first + out->n_tokens), sizeof *c->tokens);
        memcpy(c->tokens + first, out->tokens, (size_t)out->n_tokens * sizeof *out->tokens);
        c->n_tokens += out->n_tokens;
        if (out->logprobs)
            keep_logprobs(c, out, first);
    }
    if (job->keep && out->text_bytes > 0)
        keep_text(c, out->text, out->text_bytes);
    if (out->finish == SL_RUNNING)
        return;
    c->finish = out->finish;
    c->stop_kind = out->stop_kind;
    c->stop_token = out->stop_token;
    c->cumulative_logprob = out->cumulative_logprob;
    c->score = out->score;
    c->stop_string = out->stop_string ? xstrdup(out->stop_string) : NULL;
    if (out->finish == SL_ERROR && out->error && !job->err.code)
        job->err = *out->error;
}

static void finish(struct offline *o, struct offline_job *job, const struct offline_options *opts)
{
    job->finished = true;
    job->end_s = seconds_since(&o->start);
    o->stats.n_done++;
    o->stats.n_failed += job->err.code != SL_OK;
    if (opts->done)
        opts->done(opts->ctx, job);
    if (job->request) {
        sl_request_release(&job->request);
        o->n_running--;
    }
}

static void read_job(struct offline *o, struct offline_job *job, const struct offline_options *opts)
{
    const struct sl_output *out;
    if (job->finished)
        return;
    while ((out = sl_request_next(job->request)))
        take_output(o, job, out);
    if (!sl_request_done(job->request))
        return;
    sl_request_usage(job->request, &job->usage);
    o->stats.prompt_tokens += job->usage.prompt_tokens;
    finish(o, job, opts);
}

/* ---- submitting --------------------------------------------------------------------------- */

/* False: the queue is full, try later. */
static bool submit(struct offline *o, struct offline_job *job, const struct offline_options *opts)
{
    struct sl_input in = {.tokens = job->tokens,
                          .n_tokens = job->n_tokens,
                          .priority = job->priority,
                          .cache_salt = job->cache_salt};
    job->owner = o;
    job->n_choices = job->params.n > 0 ? job->params.n : 1;
    if (!job->choices)
        job->choices = xcalloc((size_t)job->n_choices, sizeof *job->choices);
    enum sl_status st = job->err.code; /* the caller may know already that it cannot run */
    if (st == SL_OK)
        st = sl_submit(o->engine, &in, &job->params, wake, job, &job->request, &job->err);
    if (st == SL_EAGAIN)
        return false;
    job->submitted_s = seconds_since(&o->start);
    job->first_token_s = job->end_s = -1;
    if (st == SL_OK) {
        o->n_running++;
    } else {
        job->err.code = st;
        finish(o, job, opts);
    }
    return true;
}

/* Submits what is due; returns how long the loop may sleep. */
static double submit_due(struct offline *o, struct offline_job *jobs, int n, int *next,
                         const struct offline_options *opts)
{
    for (; *next < n; ++*next) {
        double wait = jobs[*next].arrival_s - seconds_since(&o->start);
        if (wait > 0)
            return wait < TICK_MS / 1e3 ? wait : TICK_MS / 1e3;
        if (!submit(o, &jobs[*next], opts))
            return o->n_running ? TICK_MS / 1e3 : 0.01;
    }
    return TICK_MS / 1e3;
}

static void abandon(struct offline_job *jobs, int n)
{
    for (int i = 0; i < n; i++)
        sl_request_release(&jobs[i].request);
}

void offline_run(struct sl_engine *engine, struct offline_job *jobs, int n,
                 const struct offline_options *opts, struct offline_stats *stats)
{
    struct offline o = {.engine = engine, .stats.n_total = n};
    pthread_condattr_t monotonic;
    pthread_mutex_init(&o.lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&o.some_ready, &monotonic);
    pthread_condattr_destroy(&monotonic);
    clock_gettime(CLOCK_MONOTONIC, &o.start);

    double last_tick = 0;
    for (int next = 0; o.stats.n_done < n && !(opts->stop && *opts->stop);) {
        double limit = submit_due(&o, jobs, n, &next, opts);
        if (o.stats.n_done == n)
            break;
        for (struct offline_job *j; (j = pop_ready(&o, limit)); limit = 0)
            read_job(&o, j, opts);
        o.stats.elapsed_s = seconds_since(&o.start);
        if (opts->tick && o.stats.elapsed_s - last_tick > TICK_MS / 1e3) {
            last_tick = o.stats.elapsed_s;
            opts->tick(opts->ctx, &o.stats);
        }
    }
    abandon(jobs, n);
    o.stats.elapsed_s = seconds_since(&o.start);
    *stats = o.stats;
    pthread_cond_destroy(&o.some_ready);
    pthread_mutex_destroy(&o.lock);
}

void offline_job_fini(struct offline_job *job)
{
    for (int i = 0; job->choices && i < job->n_choices; i++) {
        struct offline_choice *c = &job->choices[i];
        free(c->text);
        free(c->tokens);
        free(c->entries);
        free(c->entry_counts);
        free(c->stop_string);
    }
    free(job->choices);
    job->choices = NULL;
}
