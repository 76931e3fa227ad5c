/* metrics.h - what the engine counts, under vLLM's names and with vLLM's buckets.
 *
 * One table in metrics.c describes every family; the rest is atomics. Numbers are kept as integers
 * (nanoseconds, tokens), so a sum never depends on the order of its additions.
 *
 * Thread: any, all calls. Every atomic is a statistic: relaxed, and it publishes nothing else.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_METRICS_H
#define SL_CORE_METRICS_H

#include "base/status.h"
#include "base/strbuf.h"

/* Counters; those of one family differ in a label and stand together. */
enum metric_counter {
    M_PROMPT_TOKENS,
    M_PROMPT_LOCAL_COMPUTE, /* prompt_tokens_by_source */
    M_PROMPT_CACHE_HIT,
    M_PROMPT_EXTERNAL,
    M_PROMPT_CACHED,
    M_GENERATION_TOKENS,
    M_PREEMPTIONS,
    M_FINISHED_STOP, /* request_success, in the order of enum sl_finish */
    M_FINISHED_LENGTH,
    M_FINISHED_ABORT,
    M_FINISHED_ERROR,
    M_FINISHED_REPETITION,
    M_PREFIX_QUERIES,
    M_PREFIX_HITS,
    M_EXTERNAL_QUERIES,
    M_EXTERNAL_HITS,
    M_MM_QUERIES,
    M_MM_HITS,
    M_DRAFTS, /* from here on: shown once metrics_set_draft_places was called */
    M_DRAFT_TOKENS,
    M_DRAFT_ACCEPTED,
    M_DRAFT_ACCEPTED_AT, /* by place in the proposal */
    M_DRAFT_ACCEPTED_LAST = M_DRAFT_ACCEPTED_AT + SL_DRAFT_MAX - 1,
    N_METRIC_COUNTERS
};

enum metric_gauge {
    M_RUNNING,
    M_WAITING,
    M_WAITING_CAPACITY, /* num_requests_waiting_by_reason */
    M_WAITING_DEFERRED,
    M_SLEEP_AWAKE, /* engine_sleep_state */
    M_SLEEP_OFFLOADED,
    M_SLEEP_DISCARDED,
    M_KV_USAGE_PPM, /* rendered as a fraction */
    N_METRIC_GAUGES
};

enum metric_histogram {
    M_TTFT, /* these take nanoseconds */
    M_ITL,
    M_TPOT,
    M_E2E,
    M_QUEUE_TIME,
    M_INFERENCE_TIME,
    M_PREFILL_TIME,
    M_DECODE_TIME,
    M_ITERATION_TOKENS, /* these take counts */
    M_PARAMS_N,
    M_REQUEST_PROMPT_TOKENS,
    M_REQUEST_GENERATION_TOKENS,
    M_MAX_GENERATION_TOKENS,
    M_PARAMS_MAX_TOKENS,
    M_PREFILL_KV_COMPUTED,
    N_METRIC_HISTOGRAMS
};

struct metrics;

/* The token histograms have buckets 1, 2, 5, 10, ... up to max_model_len. Copies model_name. */
SL_MUST_CHECK enum sl_status metrics_create(struct metrics **out, const char *model_name,
                                            int max_model_len, struct sl_err *err);
void metrics_destroy(struct metrics **m);

/* The speculation's counters exist, with n places in a proposal. Before the engine starts. */
void metrics_set_draft_places(struct metrics *m, int n);

void metrics_add(struct metrics *m, enum metric_counter c, uint64_t n);
void metrics_set(struct metrics *m, enum metric_gauge g, int64_t v);
/* Negative values (a clock that was read late) count as 0. */
void metrics_observe(struct metrics *m, enum metric_histogram h, int64_t v);
uint64_t metrics_counter(const struct metrics *m, enum metric_counter c);
uint64_t metrics_count(const struct metrics *m, enum metric_histogram h);

/* Prometheus text format 0.0.4. info: what vllm:cache_config_info says, as `name="value",...`. */
void metrics_render(const struct metrics *m, const char *info, struct strbuf *out);
/* Appends v as a label's value: backslash, quote and newline escaped, between quotes. */
void metrics_label(struct strbuf *out, const char *v);

#endif
