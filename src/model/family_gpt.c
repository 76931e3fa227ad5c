/* family_gpt.c - the older families: layer norms with biases and a plain MLP (StableLM's is gated).
 * GPT-2 and OPT have learned positions, GPT-NeoX and StableLM rotate a share of each head, Falcon
 * comes with rotary positions or ALiBi, and with one KV head, few, or as many as query heads.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

/* A norm's weight and bias. */
#define NORM(name, slot, ...)                              \
    VECTOR(name ".weight", slot, DIM_HIDDEN, __VA_ARGS__), \
        BIAS(name ".bias", slot, DIM_HIDDEN, __VA_ARGS__)

/* ---- GPT-2 --------------------------------------------------------------------------------- */

#define H "transformer.h.%d."
static const struct tensor_row gpt2_rows[] = {
    ROW("transformer.wte.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),
    ROW("transformer.wpe.weight", SLOT_POSITIONS, DIM_POSITIONS, DIM_HIDDEN),
    NORM(H "ln_1", SLOT_ATTN_NORM),
    ROW(H "attn.c_attn.weight", SLOT_QKV, DIM_QKV, DIM_HIDDEN, .layout = TRANSPOSED),
    BIAS(H "attn.c_attn.bias", SLOT_QKV, DIM_QKV),
    ROW(H "attn.c_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q, .layout = TRANSPOSED),
    BIAS(H "attn.c_proj.bias", SLOT_O, DIM_HIDDEN),
    NORM(H "ln_2", SLOT_MLP_NORM),
    ROW(H "mlp.c_fc.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .layout = TRANSPOSED),
    BIAS(H "mlp.c_fc.bias", SLOT_GATE_UP, DIM_FFN),
    ROW(H "mlp.c_proj.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN, .layout = TRANSPOSED),
    BIAS(H "mlp.c_proj.bias", SLOT_DOWN, DIM_HIDDEN),
    NORM("transformer.ln_f", SLOT_FINAL_NORM),
    ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED),
    {0},
};
static const char *const gpt2_ignored[] = {".attn.bias", ".attn.masked_bias", NULL};

static void no_rope(struct model_spec *s)
{
    for (int l = 0; s->layer && l < s->n_layers; l++)
        s->layer[l].rope = -1;
}

static void read_norm(struct model_spec *s, const struct config *c, const char *eps)
{
    s->rms = false;
    s->norm_eps = (float)config_real(c, eps, 1e-5);
}

static void read_gpt2(struct model_spec *s, const struct config *c)
{
    static const struct size_keys keys = {"vocab_size", "n_embd",  "n_layer",    "n_head",
                                          NULL,         "n_inner", "n_positions"};
    config_sizes(s, c, &keys);
    read_norm(s, c, "layer_norm_epsilon");
    s->act = config_act(c, "activation_function", "gelu_new");
    s->tied = config_bool(c, "tie_word_embeddings", true);
    s->n_positions = s->max_position;
    if (!config_bool(c, "scale_attn_weights", true) ||
        config_bool(c, "scale_attn_by_inverse_layer_idx", false))
        config_fail(c, "unusual attention scales are not there yet");
    no_rope(s);
}

/* ---- OPT ----------------------------------------------------------------------------------- */

#define D "model.decoder.layers.%d."
static const struct tensor_row opt_rows[] = {
    ROW("model.decoder.embed_tokens.weight", SLOT_EMBED, DIM_VOCAB, DIM_EMBED),
    ROW("model.decoder.project_in.weight", SLOT_PROJECT_IN, DIM_HIDDEN, DIM_EMBED,
        .when = WHEN_PROJECTED),
    ROW("model.decoder.project_out.weight", SLOT_PROJECT_OUT, DIM_EMBED, DIM_HIDDEN,
        .when = WHEN_PROJECTED),
    ROW("model.decoder.embed_positions.weight", SLOT_POSITIONS, DIM_POSITIONS, DIM_HIDDEN),
    NORM(D "self_attn_layer_norm", SLOT_ATTN_NORM, .when = WHEN_ONE_NAME),
    NORM(D "self_attn_layer_norm", SLOT_ATTN_POST_NORM, .when = WHEN_OTHER_NAME),
    ROW(D "self_attn.q_proj.weight", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0),
    ROW(D "self_attn.k_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 1),
    ROW(D "self_attn.v_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 2),
    BIAS(D "self_attn.q_proj.bias", SLOT_QKV, DIM_Q, .part = 0, .when = WHEN_QKV_BIAS),
    BIAS(D "self_attn.k_proj.bias", SLOT_QKV, DIM_KV, .part = 1, .when = WHEN_QKV_BIAS),
    BIAS(D "self_attn.v_proj.bias", SLOT_QKV, DIM_KV, .part = 2, .when = WHEN_QKV_BIAS),
    ROW(D "self_attn.out_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q),
    BIAS(D "self_attn.out_proj.bias", SLOT_O, DIM_HIDDEN, .when = WHEN_O_BIAS),
    NORM(D "final_layer_norm", SLOT_MLP_NORM, .when = WHEN_ONE_NAME),
    NORM(D "final_layer_norm", SLOT_MLP_POST_NORM, .when = WHEN_OTHER_NAME),
    ROW(D "fc1.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN),
    BIAS(D "fc1.bias", SLOT_GATE_UP, DIM_FFN, .when = WHEN_MLP_BIAS),
    ROW(D "fc2.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    BIAS(D "fc2.bias", SLOT_DOWN, DIM_HIDDEN, .when = WHEN_MLP_BIAS),
    NORM("model.decoder.final_layer_norm", SLOT_FINAL_NORM, .when = WHEN_FINAL_NORM),
    ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_EMBED, .when = WHEN_UNTIED),
    {0},
};
static const char *const none_ignored[] = {NULL};

static void read_opt(struct model_spec *s, const struct config *c)
{
    static const struct size_keys keys = {
        "vocab_size", "hidden_size", "num_hidden_layers",      "num_attention_heads",
        NULL,         "ffn_dim",     "max_position_embeddings"};
    config_sizes(s, c, &keys);
    read_norm(s, c, "layer_norm_eps"); /* never written: 1e-5 */
    s->act = config_act(c, "activation_function", "relu");
    s->tied = config_bool(c, "tie_word_embeddings", true);
    s->pos_offset = 2; /* the table's first two rows stood for padding */
    s->n_positions = s->max_position + s->pos_offset;
    s->qkv_bias = s->o_bias = s->mlp_bias = config_bool(c, "enable_bias", true);
    s->post_norm = s->other_names = !config_bool(c, "do_layer_norm_before", true); /* OPT-350m */
    s->no_final_norm = s->post_norm || config_bool(c, "_remove_final_layer_norm", false);
    int width = config_int(c, "word_embed_proj_dim", s->hidden, 1, 1 << 20);
    s->embed_width = width == s->hidden ? 0 : width;
    if (!config_bool(c, "layer_norm_elementwise_affine", true))
        config_fail(c, "layer_norm_elementwise_affine false: OPT's norms without weights are not "
                       "there yet");
    no_rope(s);
}

/* ---- GPT-NeoX ------------------------------------------------------------------------------ */

#define N "gpt_neox.layers.%d."
static const struct tensor_row gptneox_rows[] = {
    ROW("gpt_neox.embed_in.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),
    NORM(N "input_layernorm", SLOT_ATTN_NORM),
    ROW(N "attention.query_key_value.weight", SLOT_QKV, DIM_QKV, DIM_HIDDEN, .layout = GROUPED_QKV),
    BIAS(N "attention.query_key_value.bias", SLOT_QKV, DIM_QKV, .when = WHEN_QKV_BIAS,
         .layout = GROUPED_QKV),
    ROW(N "attention.dense.weight", SLOT_O, DIM_HIDDEN, DIM_Q),
    BIAS(N "attention.dense.bias", SLOT_O, DIM_HIDDEN, .when = WHEN_O_BIAS),
    NORM(N "post_attention_layernorm", SLOT_MLP_NORM),
    ROW(N "mlp.dense_h_to_4h.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN),
    BIAS(N "mlp.dense_h_to_4h.bias", SLOT_GATE_UP, DIM_FFN),
    ROW(N "mlp.dense_4h_to_h.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    BIAS(N "mlp.dense_4h_to_h.bias", SLOT_DOWN, DIM_HIDDEN),
    NORM("gpt_neox.final_layer_norm", SLOT_FINAL_NORM),
    ROW("embed_out.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED),
    {0},
};
static const char *const gptneox_ignored[] = {".attention.bias", ".attention.masked_bias",
                                              ".rotary_emb.inv_freq", NULL};

static void read_gptneox(struct model_spec *s, const struct config *c)
{
    static const struct size_keys keys = {
        "vocab_size", "hidden_size",       "num_hidden_layers",      "num_attention_heads",
        NULL,         "intermediate_size", "max_position_embeddings"};
    config_sizes(s, c, &keys);
    read_norm(s, c, "layer_norm_eps");
    s->act = config_act(c, "hidden_act", "gelu");
    s->tied = config_bool(c, "tie_word_embeddings", false);
    s->qkv_bias = s->o_bias = config_bool(c, "attention_bias", true);
    s->parallel = config_bool(c, "use_parallel_residual", true);
    if (*c->st)
        return;
    int dims = config_rotary_dims(s, c, "rotary_pct", 0.25);
    const json_t *scaling = json_object_get(c->root, "rope_parameters");
    if (!scaling)
        scaling = json_object_get(c->root, "rope_scaling");
    double theta = config_real(c, "rotary_emb_base", config_real(c, "rope_theta", 10000));
    config_rope_object(s, c, dims, scaling, theta);
}

/* ---- Falcon -------------------------------------------------------------------------------- */

static const struct tensor_row falcon_rows[] = {
    ROW("transformer.word_embeddings.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),
    NORM(H "input_layernorm", SLOT_ATTN_NORM, .when = WHEN_ONE_NAME),
    NORM(H "ln_attn", SLOT_ATTN_NORM, .when = WHEN_OTHER_NAME),
    NORM(H "post_attention_layernorm", SLOT_MLP_NORM, .when = WHEN_ONE_NAME | WHEN_TWO_NORMS),
    NORM(H "ln_mlp", SLOT_MLP_NORM, .when = WHEN_OTHER_NAME | WHEN_TWO_NORMS),
    ROW(H "self_attention.query_key_value.weight", SLOT_QKV, DIM_QKV, DIM_HIDDEN,
        .layout = GROUPED_QKV),
    BIAS(H "self_attention.query_key_value.bias", SLOT_QKV, DIM_QKV, .when = WHEN_QKV_BIAS,
         .layout = GROUPED_QKV),
    ROW(H "self_attention.dense.weight", SLOT_O, DIM_HIDDEN, DIM_Q),
    BIAS(H "self_attention.dense.bias", SLOT_O, DIM_HIDDEN, .when = WHEN_O_BIAS),
    ROW(H "mlp.dense_h_to_4h.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN),
    BIAS(H "mlp.dense_h_to_4h.bias", SLOT_GATE_UP, DIM_FFN, .when = WHEN_MLP_BIAS),
    ROW(H "mlp.dense_4h_to_h.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    BIAS(H "mlp.dense_4h_to_h.bias", SLOT_DOWN, DIM_HIDDEN, .when = WHEN_MLP_BIAS),
    NORM("transformer.ln_f", SLOT_FINAL_NORM),
    ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED),
    {0},
};

/* The first checkpoints (RefinedWeb) call their sizes n_layer, n_head, n_head_kv. */
static const char *either(const struct config *c, const char *key, const char *old)
{
    return !config_has(c, key) && config_has(c, old) ? old : key;
}

static void read_falcon(struct model_spec *s, const struct config *c)
{
    bool grouped = config_bool(c, "new_decoder_architecture", config_has(c, "n_head_kv"));
    struct size_keys keys = {"vocab_size",
                             "hidden_size",
                             either(c, "num_hidden_layers", "n_layer"),
                             either(c, "num_attention_heads", "n_head"),
                             grouped ? either(c, "num_kv_heads", "n_head_kv") : NULL,
                             "ffn_hidden_size",
                             "max_position_embeddings"};
    config_sizes_with_positions(s, c, &keys, 2048);
    if (!grouped && config_bool(c, "multi_query", true))
        s->n_kv_heads = 1;
    read_norm(s, c, "layer_norm_epsilon");
    s->act = config_act(c, "activation", "gelu");
    s->tied = config_bool(c, "tie_word_embeddings", true);
    s->qkv_bias = s->o_bias = s->mlp_bias = config_bool(c, "bias", false);
    s->parallel = grouped || config_bool(c, "parallel_attn", true);
    int norms = config_int(c, "num_ln_in_parallel_attn", grouped ? 2 : 1, 1, 2);
    s->one_norm = s->parallel && norms == 1;
    s->other_names = s->parallel && norms == 2;
    if (config_bool(c, "alibi", false)) {
        s->alibi_scale = s->attn_scale; /* it joins the scores before they are scaled */
        no_rope(s);
    } else if (*c->st == SL_OK) {
        config_rope(s, c, s->head_dim);
    }
}

/* ---- StableLM ------------------------------------------------------------------------------ */

#define L "model.layers.%d."
static const struct tensor_row stablelm_rows[] = {
    ROW("model.embed_tokens.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),
    NORM(L "input_layernorm", SLOT_ATTN_NORM),
    ROW(L "self_attn.q_proj.weight", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0),
    ROW(L "self_attn.k_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 1),
    ROW(L "self_attn.v_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 2),
    BIAS(L "self_attn.q_proj.bias", SLOT_QKV, DIM_Q, .part = 0, .when = WHEN_QKV_BIAS),
    BIAS(L "self_attn.k_proj.bias", SLOT_QKV, DIM_KV, .part = 1, .when = WHEN_QKV_BIAS),
    BIAS(L "self_attn.v_proj.bias", SLOT_QKV, DIM_KV, .part = 2, .when = WHEN_QKV_BIAS),
    VECTOR(L "self_attn.q_layernorm.norms.%e.weight", SLOT_Q_NORM, DIM_HEAD, .when = WHEN_QK_NORM,
           .times = PER_Q_HEAD),
    VECTOR(L "self_attn.k_layernorm.norms.%e.weight", SLOT_K_NORM, DIM_HEAD, .when = WHEN_QK_NORM,
           .times = PER_KV_HEAD),
    ROW(L "self_attn.o_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q),
    NORM(L "post_attention_layernorm", SLOT_MLP_NORM, .when = WHEN_TWO_NORMS),
    ROW(L "mlp.gate_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 0),
    ROW(L "mlp.up_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 1),
    ROW(L "mlp.down_proj.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    NORM("model.norm", SLOT_FINAL_NORM),
    ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED),
    {0},
};

static void read_stablelm(struct model_spec *s, const struct config *c)
{
    config_sizes(s, c, &usual_size_keys);
    read_norm(s, c, "layer_norm_eps");
    s->gated = true;
    s->act = config_act(c, "hidden_act", "silu");
    s->tied = config_bool(c, "tie_word_embeddings", false);
    s->qkv_bias = config_bool(c, "use_qkv_bias", false);
    s->parallel = s->one_norm = config_bool(c, "use_parallel_residual", false);
    s->has_qk_norm = config_bool(c, "qk_layernorm", false);
    s->qk_norm = QK_NORM_HEADS;
    if (*c->st == SL_OK)
        config_rope(s, c, config_rotary_dims(s, c, "partial_rotary_factor", 0.25));
}

const struct family family_gpt2 = {"GPT2LMHeadModel", read_gpt2,      gpt2_rows,
                                   gpt2_ignored,      "transformer.", GENERATES};
const struct family family_opt = {"OPTForCausalLM", read_opt, opt_rows,
                                  none_ignored,     "model.", GENERATES};
const struct family family_gptneox = {"GPTNeoXForCausalLM", read_gptneox, gptneox_rows,
                                      gptneox_ignored,      "gpt_neox.",  GENERATES};
const struct family family_falcon = {"FalconForCausalLM", read_falcon,    falcon_rows,
                                     gptneox_ignored,     "transformer.", GENERATES};
/* What the first Falcon checkpoints call it. */
const struct family family_refinedweb = {"RWForCausalLM", read_falcon,    falcon_rows,
                                         gptneox_ignored, "transformer.", GENERATES};
const struct family family_stablelm = {"StableLmForCausalLM", read_stablelm, stablelm_rows,
                                       gptneox_ignored,       "model.",      GENERATES};
