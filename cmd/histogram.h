/* histogram.h - percentiles of any number of samples in a fixed space, within 1 %.
 *
 * Buckets are linear inside each power of two (as HdrHistogram's), 64 to an octave.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_HISTOGRAM_H
#define CMD_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BUCKETS = 59 * 64 };

struct histogram {
    uint64_t n;
    double sum;
    int64_t max;
    uint64_t count[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, int64_t v); /* v >= 0 */
double histogram_mean(const struct histogram *h);   /* 0 of nothing */
double histogram_percentile(const struct histogram *h, double p);

#endif
