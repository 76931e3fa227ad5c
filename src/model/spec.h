/* spec.h - a model's architecture as data: what config.json says, in one vocabulary.
 *
 * A family (family_*.c) reads its config into a struct model_spec and lists its checkpoint's
 * tensors in a table of struct tensor_row. One loader and one forward pass read both; they know no
 * family's name.   Immutable after model_spec_load.   Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_SPEC_H
#define SL_MODEL_SPEC_H

#include "model/model.h"

#include <jansson.h>

/* One rotary encoding; a model may have two (Gemma 3: local and global layers). */
struct rope_spec {
    float *inv_freq; /* [rot_dims / 2], every scaling applied */
    int rot_dims;
    float mscale;
    bool interleaved;
};

enum { ROPES_MAX = 2 };

/* What differs from layer to layer. */
struct layer_spec {
    int window;                /* positions a row can see, itself included; 0: all */
    int rope;                  /* index into rope[], -1: none */
    int group, layer_in_group; /* in the KV cache */
};

struct model_spec {
    char architecture[64];
    const struct family *family;
    enum sl_dtype dtype; /* what the config says the weights are */
    int vocab_size, hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn, max_position;

    bool rms; /* else layernorm */
    float norm_eps;
    float norm_add; /* added to norm weights: 1 where the checkpoint stores w - 1 */

    bool qkv_bias, o_bias, qk_norm /* per head */;
    float attn_scale, attn_softcap;

    bool gated, mlp_bias;
    enum act_kind act;

    int n_ropes;
    struct rope_spec rope[ROPES_MAX];
    struct layer_spec *layer; /* [n_layers] */

    bool tied; /* lm_head is the embedding table */
    float embed_scale, residual_scale, logit_scale, logit_softcap;

    struct model_info info; /* what the engine asks for */
};

/* ---- checkpoint tensors ---------------------------------------------------------------------- */

/* Where a tensor goes. Matrices first, then norms; those before SLOT_FIRST_LAYER_* are the model's,
 * the others every layer's. */
enum slot {
    SLOT_EMBED,
    SLOT_LM_HEAD,
    SLOT_QKV, /* parts 0, 1, 2: stacked by rows */
    SLOT_O,
    SLOT_GATE_UP, /* parts 0, 1; plain MLP: only up */
    SLOT_DOWN,
    SLOT_N_MATRICES,
    SLOT_FINAL_NORM = SLOT_N_MATRICES,
    SLOT_ATTN_NORM, /* before attention */
    SLOT_Q_NORM,
    SLOT_K_NORM,
    SLOT_MLP_NORM, /* before the MLP */
    SLOT_N
};

static inline bool slot_is_layer(enum slot s)
{
    return s != SLOT_EMBED && s != SLOT_LM_HEAD && s != SLOT_FINAL_NORM;
}

/* Sizes by name, so that a family's table needs no code. */
enum dim { DIM_1, DIM_HIDDEN, DIM_VOCAB, DIM_FFN, DIM_Q, DIM_KV, DIM_HEAD };

/* A row exists when the spec has all these properties. */
enum when {
    WHEN_UNTIED = 1,
    WHEN_QKV_BIAS = 2,
    WHEN_O_BIAS = 4,
    WHEN_MLP_BIAS = 8,
    WHEN_QK_NORM = 16
};

struct tensor_row {
    const char *name; /* "%d" stands for the layer; NULL ends the table */
    enum slot slot;
    int part;
    bool bias;
    enum dim rows, cols; /* a vector (norm, bias) has cols DIM_1 and one dimension */
    unsigned when;       /* enum when, or-ed */
};

struct config;

struct family {
    const char *architecture;
    enum sl_status (*read)(struct model_spec *s, const struct config *c);
    const struct tensor_row *rows;
    const char *const *ignored; /* name endings of tensors that are not weights; NULL ends */
};

extern const struct family family_llama, family_mistral, family_qwen2, family_qwen3;

int spec_dim(const struct model_spec *s, enum dim d);

/* ---- config.c: typed reading with one clear sentence when a key is wrong --------------------- */

/* config.json while a family reads it. The first failure sticks; readers return the default then,
 * and the family's caller looks at `st` once. */
struct config {
    const char *path;
    const json_t *root;
    enum sl_status *st;
    struct sl_err *err;
};

int config_int(const struct config *c, const char *key, int fallback, int min, int max);
int config_int_required(const struct config *c, const char *key, int min, int max);
double config_real(const struct config *c, const char *key, double fallback);
bool config_bool(const struct config *c, const char *key, bool fallback);
const char *config_string(const struct config *c, const char *key, const char *fallback);
enum act_kind config_act(const struct config *c, const char *key, const char *fallback);
/* The key exists and is not null. */
bool config_has(const struct config *c, const char *key);
__attribute__((format(printf, 2, 3))) void config_fail(const struct config *c, const char *fmt,
                                                       ...);

/* Sizes that all decoders name alike; head_dim defaults to hidden / heads. */
void config_sizes(struct model_spec *s, const struct config *c);
/* One rotary encoding over rot_dims of each head, from rope_theta and rope_scaling (transformers 4)
 * or rope_parameters (5); adds it to s->rope. */
void config_rope(struct model_spec *s, const struct config *c, int rot_dims);

#endif
