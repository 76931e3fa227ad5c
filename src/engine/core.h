/* core.h - the step loop without a thread: scheduler + backend, up to `depth` steps in flight.
 *
 *     plan = schedule(); logits = forward(plan); tokens = sample(logits); publish(tokens);
 *
 * engine.c runs it on the engine thread; bench sim runs it in virtual time. One owner, no locks.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_CORE_H
#define SL_ENGINE_CORE_H

#include "backend/backend.h"
#include "sched/sched.h"

struct core;

enum { CORE_DEPTH_MAX = 16 };
/* Looks at a plan before it is submitted: gives its sample rows their masks. slot: of the steps in
 * flight, the one that this is; what the rows point to stays until that slot comes again. */
typedef void (*core_masks)(void *ctx, int slot, struct batch *b);

SL_MUST_CHECK enum sl_status core_create(struct core **out, const struct sched_config *cfg,
                                         struct backend *be, /* borrowed */
                                         sched_sink sink, void *ctx, struct sl_err *err);
/* Steps in flight are discarded, requests aborted; the caller frees both request and backend. */
void core_destroy(struct core **c);
struct sched *core_sched(struct core *c);
void core_set_masks(struct core *c, core_masks fn, void *ctx);
/* Plan and submit while there is room, then collect the oldest step and publish it. SL_EAGAIN:
 * idle, there is nothing to do. SL_EDEVICE: the backend is dead, and no step is in flight any more.
 * SL_OK without progress, after a pause of a millisecond: the host had no memory to admit
 * somebody. */
SL_MUST_CHECK enum sl_status core_step(struct core *c, struct sl_err *err);
bool core_idle(const struct core *c); /* no request is unfinished, no step in flight */
/* Host nanoseconds spent in plan, submit, collect and update, summed; steps counted. */
struct core_times {
    uint64_t steps;
    int64_t plan_ns, submit_ns, collect_ns, update_ns;
};
void core_get_times(const struct core *c, struct core_times *out);

#endif
