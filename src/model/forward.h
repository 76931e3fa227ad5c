/* forward.h - one pass of a batch through the layers, written once for every family and device.
 *
 * Buffers are planned from the largest batch and taken once.   Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_FORWARD_H
#define SL_MODEL_FORWARD_H

#include "model/loader.h"

struct forward {
    const struct model_spec *spec;
    const struct model_weights *weights;
    const struct attn_spec *attn; /* [n_layers] */
    const struct ops *ops;
    struct device *device;
    float *h; /* residual, [max_tokens, hidden] */
    void *x; /* a sublayer's input, [max_tokens, hidden]; after the pass: the final hidden states */
    void *wide;            /* qkv, or gate and up */
    void *mid;             /* attention's output, or the activated MLP row */
    void *sub;             /* a sublayer's output, [max_tokens, hidden] */
    void *moe;             /* scratch of a mixture of experts, NULL without */
    const int *keep_layer; /* [n_keep]: the residual behind these layers is copied to kept[i] */
    int n_keep;
    void *kept[HIDDEN_LAYERS_MAX]; /* [max_tokens, hidden] activations */
};

/* What forward_alloc would take for f, whose buffers need not be there. */
size_t forward_bytes(const struct forward *f, int max_tokens);
/* Fills the buffers of f, whose other fields are set. On failure forward_fini frees what is there.
 */
SL_MUST_CHECK enum sl_status forward_alloc(struct forward *f, int max_tokens, struct sl_err *err);
void forward_fini(struct forward *f);
/* The batch that ops->begin was given, n_tokens rows: normed final hidden states in f->x. */
void forward_run(const struct forward *f, int n_tokens);

#endif
