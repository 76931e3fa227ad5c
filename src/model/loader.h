/* loader.h - weights on a device, from a checkpoint or made up.
 *
 * Names, shapes and dtypes of the whole checkpoint are checked before the device gives any memory;
 * then each weight is looked through for NaN and Inf and prepared, one after the other.
 * Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_LOADER_H
#define SL_MODEL_LOADER_H

#include "model/pool.h"
#include "model/spec.h"

/* One layer's weights, or the model's own (embedding, final norm, lm_head). */
struct weight_set {
    struct weight matrix[SLOT_N_MATRICES];
    struct norm norm[SLOT_N - SLOT_NORMS]; /* w NULL: this model has none */
    struct weight *gate_up, *down;         /* [n_experts] where the layer has experts */
    struct moe moe;                        /* all of it, for ops->moe */
};

struct model_weights {
    struct weight_set *set; /* [1 + n_layers]: the model's, then each layer's */
    int n_sets, n_experts;
    struct rope rope[ROPES_MAX];
    int n_ropes;
    float *alibi; /* [n_heads] or NULL */
    size_t bytes; /* of all matrices */
    const struct ops *ops;
    struct device *device;
    struct safetensors *mapped; /* kept while a weight borrows from it */
    struct kept_buffer *kept;   /* the same for dummy weights */
    struct pool_head head;
};

struct load_request {
    const struct model_spec *spec;
    const char *dir;
    enum sl_load_format load_format;
    uint64_t seed;
    enum sl_dtype dtype; /* resolved: not SL_DTYPE_AUTO */
    const char *quantization;
    const struct ops *ops;
    struct device *device;
};

SL_MUST_CHECK enum sl_status weights_load(struct model_weights *w, const struct load_request *req,
                                          struct sl_err *err);
void weights_fini(struct model_weights *w);

/* layer -1: the model's own. */
static inline const struct weight *weights_matrix(const struct model_weights *w, enum slot s,
                                                  int layer)
{
    return &w->set[layer + 1].matrix[s];
}

/* NULL where the model has no such norm. */
static inline const struct norm *weights_norm(const struct model_weights *w, enum slot s, int layer)
{
    const struct norm *n = &w->set[layer + 1].norm[s - SLOT_NORMS];
    return n->w ? n : NULL;
}

/* Fill n values of `dtype` for the tensor `name`: uniform in mean +- width, the same for the same
 * seed and name on every machine. */
uint64_t dummy_key(uint64_t seed, const char *name); /* what the values are made from */
void dummy_fill(void *out, enum sl_dtype dtype, size_t n, uint64_t seed, const char *name,
                float mean, float width);
/* Index of the first NaN or Inf, or n. data is aligned to its dtype. */
size_t first_not_finite(const void *data, enum sl_dtype dtype, size_t n);

#endif
