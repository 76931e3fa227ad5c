/* model.h - a checkpoint: its config, its weights, its forward pass.
 *
 * Loading: config.json -> struct model_spec; safetensors headers are checked against the spec's
 * table of names before any memory is taken; each weight is then prepared for the device.
 * model_runner turns model + device into a struct backend.   Thread: the engine thread.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_MODEL_H
#define SL_MODEL_MODEL_H

#include "backend/backend.h"
#include "backend/ops.h"

struct model_spec; /* model/spec.h: the architecture as data */

/* What the engine asks of a model folder before loading weights. */
struct model_info {
    char architecture[64];
    int vocab_size, max_position, n_layers, hidden;
    enum sl_dtype dtype; /* of the checkpoint */
    int32_t bos, eos[16];
    int n_eos; /* config.json's and generation_config.json's, primary first */
    uint64_t weight_bytes, flops_per_token; /* of the dense products, 2 * parameters read */
    struct kv_layout layout;                /* block_size, n_blocks unset */
    /* generation_config.json; NAN or SL_NONE when unset */
    double temperature, top_p, min_p, repetition_penalty;
    int top_k, max_new_tokens;
    bool whole_prompts; /* a prompt is one step's work */
};

/* How a model is to be used: vLLM's flags. Zeroed: as its files say. */
struct spec_options {
    const char *hf_overrides;      /* JSON object over config.json, or NULL */
    const char *generation_config; /* "auto" (NULL), "vllm", or a folder */
    enum sl_runner runner;
    const char *convert;       /* "auto" (NULL), "none", "embed", "classify" */
    const char *pooler_config; /* JSON object or NULL */
};

SL_MUST_CHECK enum sl_status
model_spec_load(struct model_spec **out, const char *dir, const char *hf_overrides,
                const char *generation_config, /* "auto", "vllm", dir */
                struct sl_err *err);
SL_MUST_CHECK enum sl_status model_spec_load_as(struct model_spec **out, const char *dir,
                                                const struct spec_options *o, struct sl_err *err);
void model_spec_destroy(struct model_spec **s);
void model_spec_info(const struct model_spec *s, struct model_info *out);

/* Fills r from logits, f32 [b->n_logits, vocab_size]; engine/ passes the host sampler. Called
 * inside collect: once a step, or once for each piece of a step whose logits exceed the buffer;
 * then b is a view of the batch with the rows of that piece. */
typedef enum sl_status (*sample_fn)(void *ctx, const struct batch *b, const float *logits,
                                    struct step_result *r, struct sl_err *err);

/* For a device that draws by itself (ops->draw): what it is to draw for b, and a step's result from
 * its answer and the host's share. sample/sampler.h has both. */
struct draw_hooks {
    void (*describe)(const struct batch *b, struct draw_rows *out);
    enum sl_status (*read)(void *ctx, const struct batch *b, const struct draw_rows *rows,
                           const struct draw_result *result, const struct draw_top *top,
                           const struct step_result *host, struct step_result *r,
                           struct sl_err *err);
};

struct runner_config {
    const struct model_spec *spec;
    const char *dir; /* where the weights are */
    enum sl_load_format load_format;
    uint64_t seed; /* of dummy weights */
    enum sl_dtype dtype;
    const char *quantization, *kv_cache_dtype;
    const struct ops *ops; /* the runner owns the device from here on, failing or not */
    struct device *device;
    int block_size;
    struct batch_limits limits; /* max_blocks may be set later by runner_take_kv */
};

struct runner; /* begins with a struct backend */

/* Checks and loads the weights. */
SL_MUST_CHECK enum sl_status runner_create(struct runner **out, const struct runner_config *cfg,
                                           struct sl_err *err);
/* Before memory is taken: KV blocks in host memory beside it. */
void runner_set_host_kv(struct runner *r, int n_blocks);
/* Before memory is planned or taken: layers whose outputs the backend's hidden() shows beside the
 * final ones, HIDDEN_LAYERS_MAX at most. */
void runner_keep_layers(struct runner *r, const int *layer, int n);
/* Takes n_blocks of KV memory and the activation buffers for `limits`; after this it can run. */
SL_MUST_CHECK enum sl_status runner_take_kv(struct runner *r, int n_blocks,
                                            const struct batch_limits *limits, struct sl_err *err);
void runner_set_sampler(struct runner *r, sample_fn fn, void *ctx);
/* Lets a device that can draw do so, before memory is taken; ctx is the sampler's. false: it
 * cannot, and the runner's depth stays 1. */
bool runner_set_draw(struct runner *r, const struct draw_hooks *hooks, bool eager);
size_t runner_weight_bytes(const struct runner *r); /* of all matrices, as they were prepared */
struct backend *runner_backend(struct runner *r);   /* destroy through backend->ops->destroy */
/* Bytes of activations and logits that `limits` needs: planned, not measured. */
size_t runner_activation_bytes(const struct runner *r, const struct batch_limits *limits);

#endif
