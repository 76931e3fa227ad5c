/* rowmath.h - passes over one row of logits: maximum, exponentials, selection.
 *
 * Sums are of integers, so they have no order. Ties are always broken by the lower id.
 * Thread: any (plain functions).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SAMPLE_ROWMATH_H
#define SL_SAMPLE_ROWMATH_H

#include <stdbool.h>
#include <stdint.h>

/* The largest value; false if one of x is NaN or +inf. All -inf gives -inf. */
bool row_max(const float *x, int n, float *max);
/* The lowest index whose value is `max`, which is one of x. */
int32_t row_find(const float *x, int n, float max);
/* Sum of exp(x[i] - max) as weights of core/drawrow.h: exact, in units of 2^-DRAW_BITS. */
uint64_t row_sum_exp(const float *x, int n, float max);
/* w[i] = exp(x[i] - max), exactly 0 for -inf; w may equal x. */
void row_exp(float *w, const float *x, int n, float max);
/* How many x[i] >= v. */
int row_count_ge(const float *x, int n, float v);

/* The k best ids by value, best first; ids: [k], k <= n. Among `in` (NULL: 0 .. n-1). */
void row_top(const float *x, const int32_t *in, int n, int k, int32_t *ids);

#endif
