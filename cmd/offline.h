/* offline.h - many requests through one engine, from one thread: what generate and the offline
 * benchmarks do.
 *
 *     jobs[i].tokens = ...; jobs[i].params = ...;
 *     offline_run(engine, jobs, n, &opts, &stats);
 *
 * Jobs are submitted in order, at their arrival times where they have one, and as the engine's
 * queue takes them. done() is called as each ends, in any order. Thread: the caller's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_OFFLINE_H
#define CMD_OFFLINE_H

#include "sluice.h"

#include <signal.h>

struct offline_choice {
    char *text;
    size_t text_bytes, text_capacity;
    int32_t *tokens;
    int n_tokens;
    struct sl_logprob *entries; /* all tokens' logprobs, one after another */
    int *entry_counts; /* [n_tokens] how many belong to each token; NULL without logprobs */
    int n_entries;
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    int32_t stop_token;
    char *stop_string;
    double cumulative_logprob, score; /* NaN: not known */
};

struct offline_job {
    /* set by the caller */
    const int32_t *tokens;
    int n_tokens;
    struct sl_sampling_params params;
    int priority;
    const char *cache_salt;
    double arrival_s; /* after the start; 0: at once */
    bool keep;        /* keep text, tokens and logprobs, not only their numbers */

    /* set by offline_run */
    struct offline_choice *choices; /* [params.n] */
    int n_choices;
    struct sl_usage usage;
    double submitted_s, first_token_s, end_s; /* after the start; -1: did not happen */
    struct sl_err err;          /* code != 0: it failed, or the caller says that it cannot run */
    struct sl_request *request; /* while it runs */

    /* private */
    struct offline *owner;
    struct offline_job *next_ready;
    bool ready, finished;
};

struct offline_stats {
    double elapsed_s;
    long long prompt_tokens, output_tokens;
    int n_done, n_failed, n_total;
};

struct offline_options {
    void (*done)(void *ctx, struct offline_job *job);            /* NULL: none */
    void (*tick)(void *ctx, const struct offline_stats *so_far); /* about 10 times a second */
    void *ctx;
    const volatile sig_atomic_t *stop; /* not 0: abort what runs and return */
};

void offline_run(struct sl_engine *engine, struct offline_job *jobs, int n,
                 const struct offline_options *opts, struct offline_stats *stats);
void offline_job_fini(struct offline_job *job); /* frees the results */

#endif
