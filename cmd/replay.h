/* replay.h - requests of given lengths and arrival times, run through the engine's step loop on any
 * backend, and what their clients would have seen.
 *
 * It stands directly on the scheduler: no threads, no text, no HTTP. On a backend with a virtual
 * clock time jumps to the next arrival; on a real one it sleeps.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_REPLAY_H
#define CMD_REPLAY_H

#include "histogram.h"

#include "backend/backend.h"
#include "engine/core.h"

struct replay_item {
    double arrival_s;
    int n_in, n_out;
};

struct replay_load {
    struct replay_item *item; /* in order of arrival */
    int n;
    double span_s;     /* of one copy: the next begins after it */
    int replicate;     /* copies, one after another */
    double rate_scale; /* arrivals come this many times faster; INFINITY: all at once */
    int n_left_out;    /* lines of the trace that are longer than max_len */
    uint64_t seed;
};

/* Reads "seconds,input tokens,output tokens" lines; at most max_items if that is > 0. */
bool replay_load_trace(struct replay_load *l, const char *path, int max_len, int max_items,
                       struct sl_err *err);
/* n equal requests, all at once. */
bool replay_load_equal(struct replay_load *l, int n, int n_in, int n_out);
void replay_load_free(struct replay_load *l);

struct replay_result {
    long n_requests;
    double duration_s; /* on the backend's clock, first arrival to last token */
    double wall_s;     /* on this machine's */
    uint64_t tokens_in, tokens_out;
    struct histogram ttft, itl, e2e;   /* ns */
    struct histogram per_token;        /* end-to-end latency / output tokens, ns */
    double kv_used_mean, kv_used_peak; /* shares of the blocks; the mean is over time */
    double batch_mean;                 /* sequences a step, over steps */
    struct sched_stats sched;
    struct core_times times;
};

/* cfg->layout is the backend's. False: err holds a sentence. */
bool replay_run(struct replay_result *out, const struct replay_load *load,
                const struct sched_config *cfg, struct backend *be, struct sl_err *err);
double replay_kv_waste(const struct replay_result *r); /* slots allocated and not computed */

#endif
