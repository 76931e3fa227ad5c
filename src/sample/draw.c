/* SPDX-License-Identifier: Apache-2.0 */
#include "sample/draw.h"

#include "base/status.h"
#include "sample/rowmath.h"

#include <math.h>
#include <string.h>

/* min_p and top_k each keep an upper set, so together they are one threshold on the logits.
 * Values equal to the k-th stay, as in vLLM. */
static float keep_threshold(const struct draw_params *p, const float *x, int n, float max,
                            int32_t *top)
{
    float lo = -INFINITY;
    if (p->min_p > 0)
        lo = max + logf(p->min_p); /* prob >= min_p * largest prob */
    if (p->top_k > 0 && p->top_k < n) {
        row_top(x, NULL, n, p->top_k, top);
        float kth = x[top[p->top_k - 1]];
        if (kth > lo)
            lo = kth;
    }
    return lo;
}

/* The weights are in (0, 1]; their leading bits put them in order of magnitude, 8 an octave. */
enum { BUCKET_SHIFT = 20, N_BUCKETS = 128 << 3 };

static inline int bucket_of(float w)
{
    uint32_t bits;
    memcpy(&bits, &w, sizeof bits);
    return (int)(bits >> BUCKET_SHIFT);
}

/* Zero the weights outside the smallest set, largest first, that holds `top_p` of the sum. The
 * set's edge falls into one bucket, and only that bucket is sorted. in_edge, sorted: [n]. */
static void keep_top_p(float *w, int n, float top_p, int32_t *in_edge, int32_t *sorted)
{
    uint64_t mass[N_BUCKETS] = {0}, total = 0;
    int count[N_BUCKETS] = {0};
    for (int i = 0; i < n; i++) {
        int b = bucket_of(w[i]);
        mass[b] += draw_weight(w[i]);
        count[b]++;
    }
    for (int b = 0; b < N_BUCKETS; b++)
        total += mass[b];
    uint64_t want = (uint64_t)((double)total * (double)top_p), have = 0;
    int edge = N_BUCKETS - 1;
    while (edge > 0 && (count[edge] == 0 || have + mass[edge] < want))
        have += mass[edge--];

    int n_edge = 0;
    for (int i = 0; i < n; i++)
        if (bucket_of(w[i]) == edge)
            in_edge[n_edge++] = i;
    row_top(w, in_edge, n_edge, n_edge, sorted);
    int kept = 0;
    while (kept < n_edge && (have < want || kept == 0))
        have += draw_weight(w[sorted[kept++]]);
    float last_w = w[sorted[kept - 1]];
    int32_t last_id = sorted[kept - 1];
    for (int i = 0; i < n; i++)
        if (w[i] < last_w || (w[i] == last_w && i > last_id))
            w[i] = 0;
}

/* Index i with probability weight[i] / sum, along the indices in order. u: 53 random bits. */
int draw_pick(const float *w, int n, uint64_t u)
{
    uint64_t total = 0, acc = 0;
    for (int i = 0; i < n; i++)
        total += draw_weight(w[i]);
    uint64_t target = (uint64_t)((unsigned __int128)u * total >> 53);
    for (int i = 0; i < n; i++)
        if ((acc += draw_weight(w[i])) > target)
            return i;
    return n - 1; /* not reached: target < total */
}

/* draw_pick among the weights under RACE_LIGHT alone, which add up to `total`. */
static int pick_light(const float *w, int n, uint64_t total, uint64_t u)
{
    uint64_t target = (uint64_t)((unsigned __int128)u * total >> 53), acc = 0;
    int at = 0;
    for (;; at++) {
        uint64_t k = draw_weight(w[at]);
        SL_ASSERT(at < n);
        if (k < RACE_LIGHT && (acc += k) > target)
            return at;
    }
}

/* Which of n weights comes first; ids (NULL: 0 .. n-1) are ascending, and equal times are the lower
 * one's. */
static int race(const float *w, const int32_t *ids, int n, const struct race_key *key)
{
    uint64_t light = 0;
    double best = INFINITY;
    int at = n - 1;
    for (int i = 0; i < n; i++) {
        uint64_t k = draw_weight(w[i]);
        if (k < RACE_LIGHT) {
            light += k;
            continue;
        }
        double t = race_time(race_noise(key, ids ? ids[i] : i).wait, k);
        if (t < best) {
            best = t;
            at = i;
        }
    }
    if (light) {
        struct race_noise all = race_noise(key, -1);
        if (race_time(all.wait, light) < best)
            return pick_light(w, n, light, all.pick);
    }
    return at;
}

int32_t draw_token(const struct draw_params *p, float *x, int n, float max,
                   const struct race_key *key, bool mask, const struct draw_scratch *s)
{
    float lo = keep_threshold(p, x, n, max, s->top);
    const int32_t *ids = NULL;
    int n_kept = n;
    if (lo > -INFINITY) {
        n_kept = 0;
        for (int i = 0; i < n; i++) {
            s->ids[n_kept] = i;
            s->w[n_kept] = x[i];
            n_kept += x[i] >= lo;
        }
        ids = s->ids;
        row_exp(s->w, s->w, n_kept, max);
    } else {
        row_exp(s->w, x, n, max);
    }
    if (p->top_p < 1)
        keep_top_p(s->w, n_kept, p->top_p, s->edge, s->top);
    int at = race(s->w, ids, n_kept, key);
    int32_t token = ids ? ids[at] : at;
    if (mask && (ids || p->top_p < 1)) {
        int j = 0;
        for (int i = 0; i < n; i++) {
            bool kept = ids ? j < n_kept && ids[j] == i : true;
            float w = kept ? s->w[ids ? j : i] : 0;
            j += ids && kept;
            if (w == 0)
                x[i] = -INFINITY;
        }
    }
    return token;
}

double draw_weights(const struct draw_params *p, const float *x, int n, float max, float *w,
                    const struct draw_scratch *s)
{
    float lo = keep_threshold(p, x, n, max, s->top);
    double sum = 0;
    row_exp(w, x, n, max);
    for (int i = 0; i < n; i++)
        if (x[i] < lo)
            w[i] = 0;
    if (p->top_p < 1)
        keep_top_p(w, n, p->top_p, s->edge, s->top);
    for (int i = 0; i < n; i++)
        sum += (double)w[i];
    return sum;
}
