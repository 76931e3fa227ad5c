/* pool.h - hidden states become a vector for a text, or a value for each label.
 *
 * Sums run in double over positions in ascending order, whatever the steps were.
 * Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_POOL_H
#define SL_MODEL_POOL_H

#include "core/pooling.h"

/* A classification head, f32 on the host: it sees one row of a text. */
struct pool_head {
    float *dense, *dense_bias; /* [hidden, hidden], [hidden]; NULL: none */
    float *out, *out_bias;     /* [labels, hidden], [labels] or NULL */
};

void pool_head_fini(struct pool_head *h);

/* n rows of hidden states from position `pos` on. */
void pool_take(struct pooling *p, const float *rows, int pos, int n, int hidden);
/* After the prompt's last row: p->out. */
struct model_spec;
void pool_finish(struct pooling *p, const struct model_spec *s, const struct pool_head *h);

#endif
