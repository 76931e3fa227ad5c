/* plan.h - the tensors that a spec wants, one entry each, bound to those that a checkpoint has.
 *
 * Everything is compared here (names, shapes, dtypes, nothing missing, nothing extra), before any
 * device memory is taken.   Thread: its owner's.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_PLAN_H
#define SL_MODEL_PLAN_H

#include "base/mem.h"
#include "model/safetensors.h"
#include "model/spec.h"

struct plan_tensor {
    const struct tensor_row *row;
    const char *name; /* in the plan's arena */
    int layer;        /* -1: the model's */
    int index;        /* of head or expert, 0 */
    int rows, cols;
    const struct st_tensor *found; /* NULL until plan_bind, and for dummy weights */
    const struct st_tensor *scale; /* of F8_E4M3: one value, or one a row; else NULL */
};

/* Entries of one slot and layer stand together: experts and heads in order, of each the weights
 * before the biases, parts in order. */
struct plan {
    struct plan_tensor *tensor;
    int n;
    struct arena arena;
};

SL_MUST_CHECK enum sl_status plan_create(struct plan *p, const struct model_spec *s,
                                         struct sl_err *err);
void plan_fini(struct plan *p);
SL_MUST_CHECK enum sl_status plan_bind(struct plan *p, const struct model_spec *s,
                                       const struct safetensors *st, struct sl_err *err);
/* Parameters that a decode step reads: everything but an untied embedding table. */
uint64_t plan_step_parameters(const struct model_spec *s);

#endif
