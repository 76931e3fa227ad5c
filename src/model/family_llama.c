/* family_llama.c - Llama and what shares its shape: RMS norm before each sublayer, rotary
 * positions, grouped query heads, gated MLP. Mistral adds a window, Qwen2 biases on q, k, v, Qwen3
 * norms on q and k, Granite scales, SmolLM3 layers without positions, OLMo2 moves the norms behind
 * the sublayers, Phi-3 fuses its tensors. SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#define LAYER "model.layers.%d."

#define HEAD_AND_TAIL                                                    \
    ROW("model.embed_tokens.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN), \
        VECTOR("model.norm.weight", SLOT_FINAL_NORM, DIM_HIDDEN),        \
        ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED)

#define ATTENTION                                                                                \
    ROW(LAYER "self_attn.q_proj.weight", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0),                \
        ROW(LAYER "self_attn.k_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 1),           \
        ROW(LAYER "self_attn.v_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 2),           \
        BIAS(LAYER "self_attn.q_proj.bias", SLOT_QKV, DIM_Q, .part = 0, .when = WHEN_QKV_BIAS),  \
        BIAS(LAYER "self_attn.k_proj.bias", SLOT_QKV, DIM_KV, .part = 1, .when = WHEN_QKV_BIAS), \
        BIAS(LAYER "self_attn.v_proj.bias", SLOT_QKV, DIM_KV, .part = 2, .when = WHEN_QKV_BIAS), \
        VECTOR(LAYER "self_attn.q_norm.weight", SLOT_Q_NORM, DIM_Q_NORM, .when = WHEN_QK_NORM),  \
        VECTOR(LAYER "self_attn.k_norm.weight", SLOT_K_NORM, DIM_K_NORM, .when = WHEN_QK_NORM),  \
        ROW(LAYER "self_attn.o_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q),                         \
        BIAS(LAYER "self_attn.o_proj.bias", SLOT_O, DIM_HIDDEN, .when = WHEN_O_BIAS)

#define DENSE_MLP                                                                                  \
    ROW(LAYER "mlp.gate_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 0,                \
        .when = WHEN_DENSE),                                                                       \
        ROW(LAYER "mlp.up_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 1,              \
            .when = WHEN_DENSE),                                                                   \
        ROW(LAYER "mlp.down_proj.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN, .when = WHEN_DENSE),     \
        BIAS(LAYER "mlp.gate_proj.bias", SLOT_GATE_UP, DIM_FFN, .part = 0, .when = WHEN_MLP_BIAS), \
        BIAS(LAYER "mlp.up_proj.bias", SLOT_GATE_UP, DIM_FFN, .part = 1, .when = WHEN_MLP_BIAS),   \
        BIAS(LAYER "mlp.down_proj.bias", SLOT_DOWN, DIM_HIDDEN, .when = WHEN_MLP_BIAS)

#define PRE_NORMS                                                       \
    VECTOR(LAYER "input_layernorm.weight", SLOT_ATTN_NORM, DIM_HIDDEN), \
        VECTOR(LAYER "post_attention_layernorm.weight", SLOT_MLP_NORM, DIM_HIDDEN)

#define EXPERTS(prefix, gate, up, down)                                                        \
    ROW(prefix "gate.weight", SLOT_ROUTER, DIM_EXPERTS, DIM_HIDDEN, .when = WHEN_MOE),         \
        ROW(prefix "experts.%e." gate ".weight", SLOT_EXPERT_GATE_UP, DIM_MOE_FFN, DIM_HIDDEN, \
            .part = 0, .when = WHEN_MOE, .times = PER_EXPERT),                                 \
        ROW(prefix "experts.%e." up ".weight", SLOT_EXPERT_GATE_UP, DIM_MOE_FFN, DIM_HIDDEN,   \
            .part = 1, .when = WHEN_MOE, .times = PER_EXPERT),                                 \
        ROW(prefix "experts.%e." down ".weight", SLOT_EXPERT_DOWN, DIM_HIDDEN, DIM_MOE_FFN,    \
            .when = WHEN_MOE, .times = PER_EXPERT)

static const struct tensor_row rows[] = {HEAD_AND_TAIL, PRE_NORMS, ATTENTION, DENSE_MLP, {0}};

static const struct tensor_row olmo2_rows[] = {
    HEAD_AND_TAIL,
    ATTENTION,
    DENSE_MLP,
    VECTOR(LAYER "post_attention_layernorm.weight", SLOT_ATTN_POST_NORM, DIM_HIDDEN),
    VECTOR(LAYER "post_feedforward_layernorm.weight", SLOT_MLP_POST_NORM, DIM_HIDDEN),
    {0},
};

static const struct tensor_row phi3_rows[] = {
    HEAD_AND_TAIL,
    PRE_NORMS,
    ROW(LAYER "self_attn.qkv_proj.weight", SLOT_QKV, DIM_QKV, DIM_HIDDEN),
    ROW(LAYER "self_attn.o_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q),
    ROW(LAYER "mlp.gate_up_proj.weight", SLOT_GATE_UP, DIM_2_FFN, DIM_HIDDEN),
    ROW(LAYER "mlp.down_proj.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    {0},
};

static const struct tensor_row mixtral_rows[] = {
    HEAD_AND_TAIL, PRE_NORMS, ATTENTION, EXPERTS(LAYER "block_sparse_moe.", "w1", "w3", "w2"), {0}};

static const struct tensor_row qwen_moe_rows[] = {
    HEAD_AND_TAIL,
    PRE_NORMS,
    ATTENTION,
    DENSE_MLP,
    EXPERTS(LAYER "mlp.", "gate_proj", "up_proj", "down_proj"),
    ROW(LAYER "mlp.shared_expert.gate_proj.weight", SLOT_SHARED_GATE_UP, DIM_SHARED_FFN, DIM_HIDDEN,
        .part = 0, .when = WHEN_MOE | WHEN_SHARED),
    ROW(LAYER "mlp.shared_expert.up_proj.weight", SLOT_SHARED_GATE_UP, DIM_SHARED_FFN, DIM_HIDDEN,
        .part = 1, .when = WHEN_MOE | WHEN_SHARED),
    ROW(LAYER "mlp.shared_expert.down_proj.weight", SLOT_SHARED_DOWN, DIM_HIDDEN, DIM_SHARED_FFN,
        .when = WHEN_MOE | WHEN_SHARED),
    ROW(LAYER "mlp.shared_expert_gate.weight", SLOT_SHARED_GATE, DIM_ONE_ROW, DIM_HIDDEN,
        .when = WHEN_MOE | WHEN_SHARED_GATE),
    {0},
};

/* Buffers that old exports carry along. */
static const char *const ignored[] = {".rotary_emb.inv_freq", NULL};

/* All but the rotary encoding. */
static void read_base(struct model_spec *s, const struct config *c)
{
    config_sizes(s, c, &usual_size_keys);
    s->norm_eps = (float)config_real(c, "rms_norm_eps", 1e-6);
    s->gated = true;
    s->act = config_act(c, "hidden_act", "silu");
    s->tied = config_bool(c, "tie_word_embeddings", false);
}

static void read_common(struct model_spec *s, const struct config *c)
{
    read_base(s, c);
    if (*c->st == SL_OK)
        config_rope(s, c, s->head_dim);
}

static void all_windows(struct model_spec *s, int window)
{
    for (int l = 0; s->layer && l < s->n_layers; l++)
        s->layer[l].window = window;
}

static void read_llama(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = s->o_bias = config_bool(c, "attention_bias", false);
    s->mlp_bias = config_bool(c, "mlp_bias", false);
}

static void read_mistral(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    all_windows(s, config_int(c, "sliding_window", 0, 1, 1 << 28));
}

/* Layers from max_window_layers on use the window; newer configs list each layer's kind. */
static void read_qwen_windows(struct model_spec *s, const struct config *c)
{
    int window = 0;
    if (config_bool(c, "use_sliding_window", false))
        window = config_int(c, "sliding_window", 4096, 1, 1 << 28);
    int from = config_int(c, "max_window_layers", 28, 0, 1 << 28);
    for (int l = 0; s->layer && l < s->n_layers; l++)
        s->layer[l].window = config_layer_is_sliding(s, c, l, l >= from) ? window : 0;
}

static void read_qwen2(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = true;
    read_qwen_windows(s, c);
}

static void read_qwen3(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = s->o_bias = config_bool(c, "attention_bias", false);
    s->has_qk_norm = true;
    read_qwen_windows(s, c);
}

static void read_granite(struct model_spec *s, const struct config *c)
{
    read_llama(s, c);
    s->embed_scale = (float)config_real(c, "embedding_multiplier", 1);
    s->residual_scale = (float)config_real(c, "residual_multiplier", 1);
    s->logit_scale = (float)(1 / config_real(c, "logits_scaling", 1));
    s->attn_scale = (float)config_real(c, "attention_multiplier", 1);
}

static void read_smollm3(struct model_spec *s, const struct config *c)
{
    read_llama(s, c);
    s->tied = config_bool(c, "tie_word_embeddings", true);
    const json_t *list = json_object_get(c->root, "no_rope_layers"); /* 1: it has positions */
    int every = config_int(c, "no_rope_layer_interval", 4, 1, 1 << 28);
    if (json_is_array(list) && json_array_size(list) != (size_t)s->n_layers)
        config_fail(c, "no_rope_layers names %zu layers of %d", json_array_size(list), s->n_layers);
    for (int l = 0; *c->st == SL_OK && l < s->n_layers; l++) {
        bool rope = (l + 1) % every != 0;
        if (json_is_array(list))
            rope = json_integer_value(json_array_get(list, (size_t)l)) != 0;
        s->layer[l].rope = rope ? 0 : -1;
    }
    read_qwen_windows(s, c);
}

static void read_olmo2(struct model_spec *s, const struct config *c)
{
    read_llama(s, c);
    s->no_pre_norm = true;
    s->has_qk_norm = true;
    s->qk_norm = QK_NORM_ALL;
}

static void read_phi3(struct model_spec *s, const struct config *c)
{
    read_base(s, c);
    if (*c->st)
        return;
    config_rope(s, c, config_rotary_dims(s, c, "partial_rotary_factor", 1));
    all_windows(s, config_int(c, "sliding_window", 0, 1, 1 << 28));
}

/* ---- mixtures of experts ------------------------------------------------------------------- */

static void read_experts(struct model_spec *s, const struct config *c, const char *count_key)
{
    s->n_experts = config_int_required(c, count_key, 1, 4096);
    s->top_k = config_int(c, "num_experts_per_tok", 2, 1, 4096);
    if (s->top_k > s->n_experts)
        config_fail(c, "num_experts_per_tok %d is more than %s %d", s->top_k, count_key,
                    s->n_experts);
    for (int l = 0; s->layer && l < s->n_layers; l++)
        s->layer[l].moe = true;
}

static void read_mixtral(struct model_spec *s, const struct config *c)
{
    read_mistral(s, c);
    read_experts(s, c, "num_local_experts");
    s->moe_ffn = s->ffn;
    s->renormalize = true;
}

/* Every decoder_sparse_step-th layer has experts, but for those in mlp_only_layers. */
static void read_qwen_moe(struct model_spec *s, const struct config *c)
{
    read_experts(s, c, config_has(c, "num_experts") ? "num_experts" : "num_local_experts");
    s->moe_ffn = config_int_required(c, "moe_intermediate_size", 1, 1 << 20);
    s->renormalize = config_bool(c, "norm_topk_prob", false);
    int step = config_int(c, "decoder_sparse_step", 1, 1, 1 << 28);
    const json_t *dense = json_object_get(c->root, "mlp_only_layers");
    for (int l = 0; s->layer && l < s->n_layers; l++) {
        s->layer[l].moe = (l + 1) % step == 0;
        for (size_t i = 0; i < json_array_size(dense); i++)
            if (json_integer_value(json_array_get(dense, i)) == l)
                s->layer[l].moe = false;
    }
}

static void read_qwen2moe(struct model_spec *s, const struct config *c)
{
    read_qwen2(s, c);
    s->qkv_bias = config_bool(c, "qkv_bias", true);
    read_qwen_moe(s, c);
    s->shared_ffn = config_int_required(c, "shared_expert_intermediate_size", 1, 1 << 20);
    s->shared_gate = true;
}

static void read_qwen3moe(struct model_spec *s, const struct config *c)
{
    read_qwen3(s, c);
    read_qwen_moe(s, c);
}

const struct family family_llama = {"LlamaForCausalLM", read_llama, rows, ignored,
                                    "model.",           GENERATES};
const struct family family_mistral = {
    "MistralForCausalLM", read_mistral, rows, ignored, "model.", GENERATES};
const struct family family_qwen2 = {"Qwen2ForCausalLM", read_qwen2, rows, ignored,
                                    "model.",           GENERATES};
const struct family family_qwen3 = {"Qwen3ForCausalLM", read_qwen3, rows, ignored,
                                    "model.",           GENERATES};
const struct family family_granite = {
    "GraniteForCausalLM", read_granite, rows, ignored, "model.", GENERATES};
const struct family family_smollm3 = {
    "SmolLM3ForCausalLM", read_smollm3, rows, ignored, "model.", GENERATES};
const struct family family_olmo2 = {"Olmo2ForCausalLM", read_olmo2, olmo2_rows, ignored,
                                    "model.",           GENERATES};
const struct family family_phi3 = {"Phi3ForCausalLM", read_phi3, phi3_rows,
                                   ignored,           "model.",  GENERATES};
const struct family family_mixtral = {
    "MixtralForCausalLM", read_mixtral, mixtral_rows, ignored, "model.", GENERATES};
const struct family family_qwen2moe = {
    "Qwen2MoeForCausalLM", read_qwen2moe, qwen_moe_rows, ignored, "model.", GENERATES};
const struct family family_qwen3moe = {
    "Qwen3MoeForCausalLM", read_qwen3moe, qwen_moe_rows, ignored, "model.", GENERATES};
