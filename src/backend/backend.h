/* backend.h - who computes steps: ref, cpu, cuda through a model's forward pass, or sim.
 *
 * Asynchronous from the first day: submit() hands a planned batch over and returns; collect()
 * waits for the oldest submitted step and gives its tokens. At most `depth` steps are in flight;
 * they complete in order. depth is 1 on ref and cpu (submit computes), 2 on cuda.
 *
 * SL_EDEVICE poisons the backend: every later call fails the same way.
 * Thread: the engine thread, all calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_BACKEND_H
#define SL_BACKEND_BACKEND_H

#include "core/batch.h"
#include "core/kvlayout.h"

struct backend;

struct backend_ops {
    /* b stays untouched until the step is collected. */
    SL_MUST_CHECK enum sl_status (*submit)(struct backend *be, const struct batch *b,
                                           struct sl_err *err);
    /* Blocks until the oldest step in flight is done. */
    SL_MUST_CHECK enum sl_status (*collect)(struct backend *be, struct step_result *r,
                                            struct sl_err *err);
    /* The clock that arrivals and latencies are measured with: virtual for sim, else monotonic. */
    int64_t (*now_ns)(struct backend *be);
    /* Nothing to compute before t_ns: a virtual clock jumps there. NULL: real time. */
    void (*skip_to)(struct backend *be, int64_t t_ns);
    void (*destroy)(struct backend *be);
    /* Of the step submitted last, until the next submit. A device that runs ahead may be about to
     * compute them: what it is asked for now, in its own order of work, comes behind that. NULL:
     * there are none. */
    const struct hidden_states *(*hidden)(struct backend *be);
};

struct backend {
    const struct backend_ops *ops;
    const char *name;        /* "ref", "cpu", "cuda", "sim" */
    int depth;               /* steps that may be in flight */
    struct kv_layout layout; /* n_blocks is set once the KV memory is taken */
    int vocab_size;
};

#endif
