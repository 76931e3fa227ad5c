/* spec.h - a model's architecture as data: what config.json says, in one vocabulary.
 *
 * A family (family_*.c) reads its config into a struct model_spec and lists its checkpoint's
 * tensors in a table of struct tensor_row. One loader and one forward pass read both; they know no
 * family's name.   Immutable after model_spec_load.   Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_SPEC_H
#define SL_MODEL_SPEC_H

#include "base/mem.h"
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

/* Between a classification head's two matrices. */
enum head_act { HEAD_TANH, HEAD_RELU };
/* What a head's values become unless a request wants them as they are. ONE_OF: the sigmoid of a
 * single value, the softmax of several. */
enum head_out { HEAD_ONE_OF, HEAD_SIGMOIDS, HEAD_PLAIN };

/* What differs from layer to layer. */
struct layer_spec {
    int window;                /* positions a row can see, itself included; 0: all */
    int rope;                  /* index into rope[], -1: none */
    int group, layer_in_group; /* in the KV cache */
    bool moe;                  /* experts in place of the MLP */
};

struct tensor_row;

/* What a model that generates nothing makes of its hidden states. */
struct pool_spec {
    bool only;           /* it has no lm_head, or need not have one */
    enum pool_kind kind; /* of its one vector for a text */
    bool token_level;    /* a vector for each position instead */
    bool normalize;
    bool classify; /* a head gives a value for each label */
    int n_labels;  /* of the head, 0: none */
    /* A decoder's head is one matrix: these rows beside its family's. NULL: no decoder's. */
    const struct tensor_row *head_rows;
    /* classifier_from_token: the head is lm_head's rows of these tokens; two_way: the second's less
     * the first's, so that a sigmoid is what a softmax of the two gives. NULL: a head of its own.
     */
    const char **head_token; /* [n_head_tokens] */
    int32_t *head_id; /* [n_head_tokens], by whoever has the tokenizer, before weights load */
    int n_head_tokens;
    bool two_way;
    bool joins_pairs; /* a pair is one text after the other, without separating tokens */
    enum head_act head_act;
    enum head_out head_out;
    const char **label; /* [n_labels], NULL: none are given */
    int max_len;        /* of sentence_bert_config.json, 0: none */
    int dimensions;     /* kept unless a request says otherwise, 0: all */
    bool matryoshka;
    int n_dims, *dims; /* the only sizes that may be asked for; 0: any */
    struct arena arena;
};

struct model_spec {
    char architecture[64];
    const struct family *family;
    enum sl_dtype dtype;   /* what the config says the weights are */
    const char *quantized; /* how the checkpoint was quantized (to FP8), NULL: it was not */
    int vocab_size, hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn, max_position;

    bool rms; /* else layernorm */
    float norm_eps;
    float norm_add;   /* added to norm weights: 1 where the checkpoint stores w - 1 */
    bool no_pre_norm; /* sublayers read h itself; their outputs are normed (OLMo 2) */
    bool post_norm;   /* h = norm(h + sublayer(h)): the residual itself is normed (BERT) */
    bool both_ways;   /* a position sees the later ones too: an encoder */
    bool parallel;    /* h + attention(norm(h)) + mlp(norm'(h)), one addition after the other */
    bool one_norm;    /* parallel: the MLP reads attention's input */
    bool other_names; /* the family's second set of tensor names, or of their places */
    bool no_final_norm;
    int embed_width; /* of the token table, with a matrix from it and one back; 0: hidden, none */

    bool qkv_bias, o_bias, has_qk_norm;
    enum qk_norm qk_norm;
    float attn_scale, attn_softcap;
    float alibi_scale; /* factor on ALiBi slopes, 0: no ALiBi */
    int pos_offset;    /* of learned positions */
    int n_positions;   /* rows of their table, 0: none */
    int n_types;       /* rows of the table of token types, 0: none */

    bool gated, mlp_bias;
    enum act_kind act;

    int n_experts, top_k, moe_ffn, shared_ffn; /* n_experts 0: no layer has experts */
    bool renormalize, shared_gate;

    int n_ropes;
    struct rope_spec rope[ROPES_MAX];
    struct layer_spec *layer; /* [n_layers] */

    bool tied; /* lm_head is the embedding table */
    float embed_scale, residual_scale, logit_scale, logit_softcap;

    struct pool_spec pool;

    struct model_info info; /* what the engine asks for */
};

/* ---- checkpoint tensors ---------------------------------------------------------------------- */

/* Where a tensor goes. Matrices first, then experts, then norms. */
enum slot {
    SLOT_EMBED,
    SLOT_POSITIONS,
    SLOT_TYPES, /* added by token type */
    SLOT_LM_HEAD,
    SLOT_PROJECT_IN, /* embeddings to the residual's width */
    SLOT_PROJECT_OUT,
    SLOT_QKV, /* parts 0, 1, 2: stacked by rows */
    SLOT_O,
    SLOT_GATE_UP, /* parts 0, 1; plain MLP: only up */
    SLOT_DOWN,
    SLOT_ROUTER,
    SLOT_SHARED_GATE_UP, /* the expert that every row visits */
    SLOT_SHARED_DOWN,
    SLOT_SHARED_GATE,
    SLOT_N_MATRICES,
    SLOT_EXPERT_GATE_UP = SLOT_N_MATRICES, /* one matrix for each expert */
    SLOT_EXPERT_DOWN,
    SLOT_HEAD_DENSE, /* of a classification head: on the host, in f32 */
    SLOT_HEAD_OUT,
    SLOT_NORMS,
    SLOT_FINAL_NORM = SLOT_NORMS,
    SLOT_EMBED_NORM, /* of the embeddings, before the first layer */
    SLOT_ATTN_NORM,  /* before attention */
    SLOT_Q_NORM,
    SLOT_K_NORM,
    SLOT_ATTN_POST_NORM, /* after attention */
    SLOT_MLP_NORM,       /* before the MLP */
    SLOT_MLP_POST_NORM,
    SLOT_N
};

static inline bool slot_is_layer(enum slot s)
{
    return s != SLOT_EMBED && s != SLOT_POSITIONS && s != SLOT_TYPES && s != SLOT_LM_HEAD &&
           s != SLOT_PROJECT_IN && s != SLOT_PROJECT_OUT && s != SLOT_HEAD_DENSE &&
           s != SLOT_HEAD_OUT && s != SLOT_FINAL_NORM && s != SLOT_EMBED_NORM;
}

/* Sizes by name, so that a family's table needs no code. */
enum dim {
    DIM_1, /* as cols: a vector */
    DIM_ONE_ROW,
    DIM_HIDDEN,
    DIM_EMBED, /* of the token table and of final hidden states */
    DIM_VOCAB,
    DIM_FFN,
    DIM_2_FFN,
    DIM_Q,
    DIM_KV,
    DIM_QKV,
    DIM_HEAD,
    DIM_Q_NORM, /* by enum qk_norm */
    DIM_K_NORM,
    DIM_POSITIONS,
    DIM_TYPES,
    DIM_LABELS,
    DIM_EXPERTS,
    DIM_MOE_FFN,
    DIM_SHARED_FFN
};

/* A row exists when the spec (and the layer) has all these properties. */
enum when {
    WHEN_UNTIED = 1,
    WHEN_QKV_BIAS = 2,
    WHEN_O_BIAS = 4,
    WHEN_MLP_BIAS = 8,
    WHEN_QK_NORM = 16,
    WHEN_TWO_NORMS = 32, /* not one_norm */
    WHEN_DENSE = 64,     /* a layer without experts */
    WHEN_MOE = 128,
    WHEN_SHARED = 256,
    WHEN_SHARED_GATE = 512,
    WHEN_ONE_NAME = 1024, /* not other_names */
    WHEN_OTHER_NAME = 2048,
    WHEN_CLASSIFY = 4096,
    WHEN_FINAL_NORM = 8192,
    WHEN_PROJECTED = 16384 /* embed_width is set */
};

/* Tensors that a row stands for; "%e" in its name is the index. */
enum times { ONCE, PER_Q_HEAD, PER_KV_HEAD, PER_EXPERT };

/* How a checkpoint's tensor differs from the matrix that the device is given. */
enum layout {
    AS_IS,
    TRANSPOSED, /* stored [cols, rows] */
    GROUPED_QKV /* rows: for each KV head its q heads, k, v; wanted: all q, all k, all v */
};

struct tensor_row {
    const char *name; /* "%d" stands for the layer; NULL ends the table */
    enum slot slot;
    enum dim rows, cols; /* a vector (norm, bias) has cols DIM_1 and one dimension */
    int part;
    bool bias;
    unsigned when; /* enum when, or-ed */
    enum layout layout;
    enum times times;
};
/* ROW("a.weight", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0, ...) */
#define ROW(name_, slot_, rows_, cols_, ...)                                    \
    {                                                                           \
        .name = name_, .slot = slot_, .rows = rows_, .cols = cols_, __VA_ARGS__ \
    }
#define VECTOR(name_, slot_, rows_, ...) ROW(name_, slot_, rows_, DIM_1, __VA_ARGS__)
#define BIAS(name_, slot_, rows_, ...) ROW(name_, slot_, rows_, DIM_1, .bias = true, __VA_ARGS__)

struct config;

enum family_kind { GENERATES, EMBEDS, CLASSIFIES };

struct family {
    const char *architecture;
    void (*read)(struct model_spec *s, const struct config *c); /* config_fail() what is wrong */
    const struct tensor_row *rows;
    const char *const *ignored; /* name endings of tensors that are not weights; NULL ends */
    const char *prefix;         /* what some checkpoints leave out of their names, or NULL */
    enum family_kind kind;
};

extern const struct family family_llama, family_mistral, family_qwen2, family_qwen3, family_smollm3,
    family_granite, family_olmo2, family_phi3, family_gemma, family_gemma2, family_gemma3,
    family_gpt2, family_opt, family_gptneox, family_falcon, family_refinedweb, family_stablelm,
    family_mixtral, family_qwen2moe, family_qwen3moe, family_bert, family_bert_mlm,
    family_bert_score, family_roberta, family_roberta_mlm, family_roberta_score, family_xlmr,
    family_xlmr_mlm, family_xlmr_score, family_distilbert, family_distilbert_score;

/* pooling_config.c: how this model's hidden states are pooled, from the folder's
 * sentence-transformers files, config.json and what the caller asks for; s->pool.only is set. */
void config_pooling(struct model_spec *s, const struct config *c, const char *dir,
                    const struct spec_options *o);
/* Whether modules.json has a pooling module. */
bool has_pooling_module(const struct config *c, const char *dir);

/* quantization.c: sets s->quantized, or fails with what is not supported. */
void config_quantization(struct model_spec *s, const struct config *c);

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
/* As config_real, but null means `none`, where a missing key means `fallback`. */
double config_real_or_null(const struct config *c, const char *key, double fallback, double none);
/* The key exists and is not null. */
bool config_has(const struct config *c, const char *key);
__attribute__((format(printf, 2, 3))) void config_fail(const struct config *c, const char *fmt,
                                                       ...);

/* What a family calls its sizes. NULL: it has no such key. */
struct size_keys {
    const char *vocab, *hidden, *layers, *heads, *kv_heads, *ffn, *positions;
};
extern const struct size_keys usual_size_keys; /* num_hidden_layers and so on */

/* Reads and checks the sizes and makes s->layer. head_dim defaults to hidden / heads, KV heads to
 * heads, ffn (where the key may be absent) to 4 hidden. */
void config_sizes(struct model_spec *s, const struct config *c, const struct size_keys *keys);
/* The same where max_position may be absent. */
void config_sizes_with_positions(struct model_spec *s, const struct config *c,
                                 const struct size_keys *keys, int positions);
/* One rotary encoding over rot_dims of each head, from rope_theta and rope_scaling (transformers 4)
 * or rope_parameters (5); adds it to s->rope. */
void config_rope(struct model_spec *s, const struct config *c, int rot_dims);
/* The same from an object (NULL: no scaling) and a default for theta. */
void config_rope_object(struct model_spec *s, const struct config *c, int rot_dims,
                        const json_t *object, double theta);
/* A share of each head, as partial_rotary_factor and the like say. */
int config_rotary_dims(const struct model_spec *s, const struct config *c, const char *key,
                       double fallback);
/* The layer's entry of layer_types; without that list, `fallback`. */
bool config_layer_is_sliding(const struct model_spec *s, const struct config *c, int layer,
                             bool fallback);

#endif
