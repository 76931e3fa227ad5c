/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/core.h"

#include "base/clock.h"
#include "base/mem.h"

#include <time.h>

struct core {
    struct sched *sched;
    struct backend *be;
    sched_sink sink;
    void *ctx;
    struct batch *ring[CORE_DEPTH_MAX]; /* steps [first, first + n_inflight) modulo depth */
    int depth, first, n_inflight;
    struct step_result *result;
    core_masks masks; /* NULL: none */
    void *masks_ctx;
    struct proposer *proposer; /* NULL: no speculation */
    struct core_times times;
};

enum sl_status core_create(struct core **out, const struct sched_config *cfg, struct backend *be,
                           sched_sink sink, void *ctx, struct sl_err *err)
{
    struct sched_config own = *cfg;
    own.depth = be->depth;
    if (be->depth < 1 || be->depth > CORE_DEPTH_MAX)
        return SL_FAIL(err, SL_EINVAL, "%s: depth %d, 1 to %d are possible", be->name, be->depth,
                       CORE_DEPTH_MAX);
    struct core *c = mem_zalloc(1, sizeof *c);
    if (!c)
        return SL_FAIL(err, SL_ENOMEM, "engine core: no memory");
    c->be = be;
    c->sink = sink;
    c->ctx = ctx;
    c->depth = be->depth;
    c->proposer = cfg->proposer;
    struct batch_limits limits = {0};
    enum sl_status st = sched_create(&c->sched, &own, err);
    if (!st)
        sched_batch_limits(c->sched, &limits);
    for (int i = 0; !st && i < c->depth; i++)
        st = batch_create(&c->ring[i], &limits, err);
    if (!st)
        st = step_result_create(&c->result, &limits, err);
    if (st)
        core_destroy(&c);
    else
        *out = c;
    return st;
}

static void discard_all(struct core *c)
{
    for (; c->n_inflight > 0; c->n_inflight--) {
        sched_discard(c->sched, c->ring[c->first]);
        c->first = (c->first + 1) % c->depth;
    }
}

void core_destroy(struct core **cp)
{
    struct core *c = *cp;
    if (!c)
        return;
    discard_all(c);
    sched_destroy(&c->sched);
    for (int i = 0; i < c->depth; i++)
        batch_destroy(&c->ring[i]);
    step_result_destroy(&c->result);
    mem_free(c);
    *cp = NULL;
}

struct sched *core_sched(struct core *c)
{
    return c->sched;
}

void core_set_masks(struct core *c, core_masks fn, void *ctx)
{
    c->masks = fn;
    c->masks_ctx = ctx;
}

/* Adds the time since *since to *sum, and moves *since on. */
static void lap(int64_t *since, int64_t *sum)
{
    int64_t now = clock_mono_ns();
    *sum += now - *since;
    *since = now;
}

static enum sl_status fill(struct core *c, int64_t *since, struct sl_err *err)
{
    while (c->n_inflight < c->depth) {
        int slot = (c->first + c->n_inflight) % c->depth;
        struct batch *b = c->ring[slot];
        bool any = sched_plan(c->sched, c->be->ops->now_ns(c->be), b);
        if (any && c->masks)
            c->masks(c->masks_ctx, slot, b);
        lap(since, &c->times.plan_ns);
        if (!any)
            break;
        c->n_inflight++; /* from here on its sequences are held */
        enum sl_status st = c->be->ops->submit(c->be, b, err);
        if (!st && c->proposer && c->proposer->ops->step_begun)
            c->proposer->ops->step_begun(c->proposer, b,
                                         c->be->ops->hidden ? c->be->ops->hidden(c->be) : NULL);
        lap(since, &c->times.submit_ns);
        if (st)
            return st;
    }
    return SL_OK;
}

enum sl_status core_step(struct core *c, struct sl_err *err)
{
    int64_t since = clock_mono_ns();
    enum sl_status st = fill(c, &since, err);
    if (!st && c->n_inflight == 0) {
        if (core_idle(c))
            return SL_EAGAIN;
        /* Somebody waits and nobody runs: the host had no memory to admit him. */
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
        return SL_OK;
    }
    if (!st)
        st = c->be->ops->collect(c->be, c->result, err);
    lap(&since, &c->times.collect_ns);
    if (st) {
        discard_all(c);
        return st;
    }
    struct batch *b = c->ring[c->first];
    sched_update(c->sched, b, c->result, c->sink, c->ctx);
    c->first = (c->first + 1) % c->depth;
    c->n_inflight--;
    c->times.steps++;
    lap(&since, &c->times.update_ns);
    return SL_OK;
}

bool core_idle(const struct core *c)
{
    struct sched_stats st;
    sched_get_stats(c->sched, &st);
    return c->n_inflight == 0 && st.n_running == 0 && st.n_waiting == 0;
}

void core_get_times(const struct core *c, struct core_times *out)
{
    *out = c->times;
}
