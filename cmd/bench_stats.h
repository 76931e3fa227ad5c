/* bench_stats.h - numbers about numbers, and random ones for workloads.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_BENCH_STATS_H
#define CMD_BENCH_STATS_H

#include <stddef.h>
#include <stdint.h>

/* A growing list of samples. Zero-initialise. */
struct samples {
    double *v;
    size_t n, cap;
};

void samples_add(struct samples *s, double v);
void samples_free(struct samples *s);
double samples_mean(const struct samples *s); /* 0 of nothing, as in numpy with "or 0" */
double samples_std(const struct samples *s);  /* of the population */
/* p from 0 to 100, linear between neighbours as in numpy. Sorts the samples. */
double samples_percentile(struct samples *s, double p);

/* splitmix64: small, seeded, the same everywhere. */
struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *r);
double rng_uniform(struct rng *r);              /* [0, 1) */
int rng_between(struct rng *r, int lo, int hi); /* lo .. hi, both included */
double rng_gamma(struct rng *r, double shape);  /* scale 1 */

double bench_now(void); /* seconds, CLOCK_MONOTONIC */

#endif
