/* family_llama.c - Llama and what shares its shape: RMS norm before each sublayer, rotary
 * positions, grouped query heads, gated MLP. Mistral adds a window, Qwen2 biases on q, k, v, Qwen3
 * norms on q and k. SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include <string.h>

#define LAYER "model.layers.%d."

static const struct tensor_row rows[] = {
    {"model.embed_tokens.weight", SLOT_EMBED, 0, false, DIM_VOCAB, DIM_HIDDEN, 0},
    {LAYER "input_layernorm.weight", SLOT_ATTN_NORM, 0, false, DIM_HIDDEN, DIM_1, 0},
    {LAYER "self_attn.q_proj.weight", SLOT_QKV, 0, false, DIM_Q, DIM_HIDDEN, 0},
    {LAYER "self_attn.k_proj.weight", SLOT_QKV, 1, false, DIM_KV, DIM_HIDDEN, 0},
    {LAYER "self_attn.v_proj.weight", SLOT_QKV, 2, false, DIM_KV, DIM_HIDDEN, 0},
    {LAYER "self_attn.q_proj.bias", SLOT_QKV, 0, true, DIM_Q, DIM_1, WHEN_QKV_BIAS},
    {LAYER "self_attn.k_proj.bias", SLOT_QKV, 1, true, DIM_KV, DIM_1, WHEN_QKV_BIAS},
    {LAYER "self_attn.v_proj.bias", SLOT_QKV, 2, true, DIM_KV, DIM_1, WHEN_QKV_BIAS},
    {LAYER "self_attn.q_norm.weight", SLOT_Q_NORM, 0, false, DIM_HEAD, DIM_1, WHEN_QK_NORM},
    {LAYER "self_attn.k_norm.weight", SLOT_K_NORM, 0, false, DIM_HEAD, DIM_1, WHEN_QK_NORM},
    {LAYER "self_attn.o_proj.weight", SLOT_O, 0, false, DIM_HIDDEN, DIM_Q, 0},
    {LAYER "self_attn.o_proj.bias", SLOT_O, 0, true, DIM_HIDDEN, DIM_1, WHEN_O_BIAS},
    {LAYER "post_attention_layernorm.weight", SLOT_MLP_NORM, 0, false, DIM_HIDDEN, DIM_1, 0},
    {LAYER "mlp.gate_proj.weight", SLOT_GATE_UP, 0, false, DIM_FFN, DIM_HIDDEN, 0},
    {LAYER "mlp.up_proj.weight", SLOT_GATE_UP, 1, false, DIM_FFN, DIM_HIDDEN, 0},
    {LAYER "mlp.down_proj.weight", SLOT_DOWN, 0, false, DIM_HIDDEN, DIM_FFN, 0},
    {LAYER "mlp.gate_proj.bias", SLOT_GATE_UP, 0, true, DIM_FFN, DIM_1, WHEN_MLP_BIAS},
    {LAYER "mlp.up_proj.bias", SLOT_GATE_UP, 1, true, DIM_FFN, DIM_1, WHEN_MLP_BIAS},
    {LAYER "mlp.down_proj.bias", SLOT_DOWN, 0, true, DIM_HIDDEN, DIM_1, WHEN_MLP_BIAS},
    {"model.norm.weight", SLOT_FINAL_NORM, 0, false, DIM_HIDDEN, DIM_1, 0},
    {"lm_head.weight", SLOT_LM_HEAD, 0, false, DIM_VOCAB, DIM_HIDDEN, WHEN_UNTIED},
    {0},
};

/* Buffers that old exports carry along. */
static const char *const ignored[] = {".rotary_emb.inv_freq", NULL};

static void read_common(struct model_spec *s, const struct config *c)
{
    s->norm_eps = (float)config_real(c, "rms_norm_eps", 1e-6);
    s->gated = true;
    s->act = config_act(c, "hidden_act", "silu");
    s->tied = config_bool(c, "tie_word_embeddings", false);
    config_rope(s, c, s->head_dim);
}

static enum sl_status read_llama(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = s->o_bias = config_bool(c, "attention_bias", false);
    s->mlp_bias = config_bool(c, "mlp_bias", false);
    return *c->st;
}

static enum sl_status read_mistral(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    int window = config_int(c, "sliding_window", 0, 1, 1 << 28);
    for (int l = 0; l < s->n_layers; l++)
        s->layer[l].window = window;
    return *c->st;
}

/* Layers from max_window_layers on use the window; newer configs list each layer's kind. */
static void read_qwen_windows(struct model_spec *s, const struct config *c)
{
    int window = 0;
    if (config_bool(c, "use_sliding_window", false))
        window = config_int(c, "sliding_window", 4096, 1, 1 << 28);
    int from = config_int(c, "max_window_layers", 28, 0, 1 << 28);
    const json_t *types = json_object_get(c->root, "layer_types");
    if (json_is_array(types) && json_array_size(types) != (size_t)s->n_layers)
        config_fail(c, "layer_types names %zu layers of %d", json_array_size(types), s->n_layers);
    for (int l = 0; l < s->n_layers; l++) {
        bool windowed = l >= from;
        if (json_is_array(types)) {
            const char *kind = json_string_value(json_array_get(types, (size_t)l));
            windowed = kind && !strcmp(kind, "sliding_attention");
            if (!windowed && (!kind || strcmp(kind, "full_attention")))
                config_fail(c, "layer_types: '%.32s' is not known", kind ? kind : "");
        }
        s->layer[l].window = windowed ? window : 0;
    }
}

static enum sl_status read_qwen2(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = true;
    read_qwen_windows(s, c);
    return *c->st;
}

static enum sl_status read_qwen3(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->qkv_bias = s->o_bias = config_bool(c, "attention_bias", false);
    s->qk_norm = true;
    read_qwen_windows(s, c);
    return *c->st;
}

const struct family family_llama = {"LlamaForCausalLM", read_llama, rows, ignored};
const struct family family_mistral = {"MistralForCausalLM", read_mistral, rows, ignored};
const struct family family_qwen2 = {"Qwen2ForCausalLM", read_qwen2, rows, ignored};
const struct family family_qwen3 = {"Qwen3ForCausalLM", read_qwen3, rows, ignored};
