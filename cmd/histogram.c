/* SPDX-License-Identifier: Apache-2.0 */
#include "histogram.h"

#include <math.h>

enum { SUB_BITS = 6 }; /* 64 buckets an octave */

/* Values below 64 have a bucket each; above, the six bits after the leading one. */
static int bucket_of(int64_t v)
{
    if (v < 1 << SUB_BITS)
        return v > 0 ? (int)v : 0;
    int top = 63 - __builtin_clzll((unsigned long long)v);
    int sub = (int)(v >> (top - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    return (top - SUB_BITS + 1) * (1 << SUB_BITS) + sub;
}

static double middle_of(int b)
{
    int octave = b >> SUB_BITS, sub = b & ((1 << SUB_BITS) - 1);
    if (octave == 0)
        return b;
    return ldexp((1 << SUB_BITS) + sub + 0.5, octave - 1);
}

void histogram_add(struct histogram *h, int64_t v)
{
    h->n++;
    h->sum += (double)v;
    if (v > h->max)
        h->max = v;
    h->count[bucket_of(v)]++;
}

double histogram_mean(const struct histogram *h)
{
    return h->n ? h->sum / (double)h->n : 0;
}

double histogram_percentile(const struct histogram *h, double p)
{
    uint64_t rank = (uint64_t)ceil(p / 100 * (double)h->n), seen = 0;
    if (h->n == 0)
        return 0;
    for (int b = 0; b < HISTOGRAM_BUCKETS; b++) {
        seen += h->count[b];
        if (seen >= rank && h->count[b]) {
            double v = middle_of(b);
            return v < (double)h->max ? v : (double)h->max;
        }
    }
    return (double)h->max;
}
