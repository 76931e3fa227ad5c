/* pooling.h - what a request wants of its prompt's hidden states, and the result as it comes about.
 *
 * A pooling request ends when its prompt is computed. The backend takes the hidden states of each
 * of its rows, in order of position, and leaves the result in `out` with the last one. Sums go on
 * from step to step in one order, so the result does not depend on how the prompt was cut; rows
 * that a preempted request computes again are passed over.
 *
 * Thread: the request's owner until it is submitted and after it was reported finished; the backend
 * until the step is collected.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_POOLING_H
#define SL_CORE_POOLING_H

#include <stdbool.h>

enum pool_kind {
    POOL_LAST, /* the last position's */
    POOL_CLS,  /* the first one's */
    POOL_MEAN, /* over all positions */
    POOL_ALL   /* each position's own */
};

struct pooling {
    enum pool_kind kind;
    bool classify;  /* through the model's head: a value for each label */
    bool activate;  /* unit length; of a head's values the sigmoid (one label) or softmax */
    int dimensions; /* leading values that are kept, 0: all */
    int n_first; /* positions of a pair's first text: the others are of token type 1; 0: no pair */

    int n_done;  /* positions taken so far */
    double *sum; /* [hidden] */
    float *out;  /* [n_rows, n_cols] */
    int n_rows, n_cols;
    bool not_finite; /* a value of the result is none */
};

/* Every row's hidden state is wanted, so none may come from the prefix cache. */
static inline bool pooling_wants_all(const struct pooling *p)
{
    return p && p->kind != POOL_LAST;
}

#endif
