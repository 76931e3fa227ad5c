/* bench_drafts.h - what speculation came to in a benchmark, under the names of vLLM's bench serve.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_BENCH_DRAFTS_H
#define CMD_BENCH_DRAFTS_H

#include "sluice.h"

#include <jansson.h>

struct bench_drafts {
    int n_places; /* 0: no speculation */
    double drafts, tokens, accepted, accepted_at[SL_DRAFT_MAX];
};

/* The counters in a page of metrics, ours or vLLM's, all engines together. */
void bench_drafts_parse(struct bench_drafts *d, const char *metrics);
void bench_drafts_of(struct bench_drafts *d, const struct sl_engine *e);
/* What came since `before`. */
void bench_drafts_since(struct bench_drafts *d, const struct bench_drafts *before);
double bench_drafts_rate(const struct bench_drafts *d);        /* accepted, percent */
double bench_drafts_length(const struct bench_drafts *d);      /* tokens a verification gives */
double bench_drafts_at(const struct bench_drafts *d, int pos); /* share of drafts accepted so far */
void bench_drafts_put(const struct bench_drafts *d, json_t *result);

#endif
