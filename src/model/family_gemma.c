/* family_gemma.c - Gemma 1, 2 and 3 (text): norm weights stored as w - 1, scaled embeddings, a tanh
 * GELU gate. Gemma 2 adds norms behind the sublayers, soft caps and a window in every other layer;
 * Gemma 3 replaces the caps by q and k norms and gives windowed layers frequencies of their own.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include <math.h>

#define LAYER "model.layers.%d."

#define COMMON                                                                           \
    ROW("model.embed_tokens.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),                 \
        VECTOR("model.norm.weight", SLOT_FINAL_NORM, DIM_HIDDEN),                        \
        ROW("lm_head.weight", SLOT_LM_HEAD, DIM_VOCAB, DIM_HIDDEN, .when = WHEN_UNTIED), \
        VECTOR(LAYER "input_layernorm.weight", SLOT_ATTN_NORM, DIM_HIDDEN),              \
        ROW(LAYER "self_attn.q_proj.weight", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0),    \
        ROW(LAYER "self_attn.k_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 1),   \
        ROW(LAYER "self_attn.v_proj.weight", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 2),   \
        ROW(LAYER "self_attn.o_proj.weight", SLOT_O, DIM_HIDDEN, DIM_Q),                 \
        ROW(LAYER "mlp.gate_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 0), \
        ROW(LAYER "mlp.up_proj.weight", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN, .part = 1),   \
        ROW(LAYER "mlp.down_proj.weight", SLOT_DOWN, DIM_HIDDEN, DIM_FFN)

static const struct tensor_row gemma_rows[] = {
    COMMON, VECTOR(LAYER "post_attention_layernorm.weight", SLOT_MLP_NORM, DIM_HIDDEN), {0}};

static const struct tensor_row gemma2_rows[] = {
    COMMON,
    VECTOR(LAYER "post_attention_layernorm.weight", SLOT_ATTN_POST_NORM, DIM_HIDDEN),
    VECTOR(LAYER "pre_feedforward_layernorm.weight", SLOT_MLP_NORM, DIM_HIDDEN),
    VECTOR(LAYER "post_feedforward_layernorm.weight", SLOT_MLP_POST_NORM, DIM_HIDDEN),
    VECTOR(LAYER "self_attn.q_norm.weight", SLOT_Q_NORM, DIM_Q_NORM, .when = WHEN_QK_NORM),
    VECTOR(LAYER "self_attn.k_norm.weight", SLOT_K_NORM, DIM_K_NORM, .when = WHEN_QK_NORM),
    {0},
};

static const char *const ignored[] = {".rotary_emb.inv_freq", NULL};

static void read_common(struct model_spec *s, const struct config *c)
{
    config_sizes(s, c, &usual_size_keys);
    s->norm_eps = (float)config_real(c, "rms_norm_eps", 1e-6);
    s->norm_add = 1;
    s->gated = true;
    s->act = config_act(c, "hidden_activation", "gelu_pytorch_tanh");
    s->tied = config_bool(c, "tie_word_embeddings", true);
    s->embed_scale = (float)sqrt(s->hidden);
    if (config_bool(c, "attention_bias", false))
        config_fail(c, "attention_bias is not there yet for %s", s->architecture);
}

static void read_gemma(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    if (*c->st == SL_OK)
        config_rope(s, c, s->head_dim);
}

/* Scales, caps and windows of Gemma 2 and 3; each pattern-th layer sees everything. */
static void read_gemma2_attention(struct model_spec *s, const struct config *c, int pattern)
{
    double scalar = config_real(c, "query_pre_attn_scalar", 256);
    if (!(scalar > 0))
        config_fail(c, "query_pre_attn_scalar is %g", scalar);
    s->attn_scale = (float)(1 / sqrt(scalar));
    int window = config_int(c, "sliding_window", 4096, 1, 1 << 28);
    for (int l = 0; *c->st == SL_OK && l < s->n_layers; l++)
        s->layer[l].window = config_layer_is_sliding(s, c, l, (l + 1) % pattern != 0) ? window : 0;
}

static void read_gemma2(struct model_spec *s, const struct config *c)
{
    read_gemma(s, c);
    read_gemma2_attention(s, c, 2);
    s->attn_softcap = (float)config_real_or_null(c, "attn_logit_softcapping", 50, 0);
    s->logit_softcap = (float)config_real_or_null(c, "final_logit_softcapping", 30, 0);
}

static void read_gemma3(struct model_spec *s, const struct config *c)
{
    read_common(s, c);
    s->has_qk_norm = true;
    read_gemma2_attention(s, c, config_int(c, "sliding_window_pattern", 6, 1, 1 << 28));
    s->attn_softcap = (float)config_real(c, "attn_logit_softcapping", 0);
    s->logit_softcap = (float)config_real(c, "final_logit_softcapping", 0);
    if (config_bool(c, "use_bidirectional_attention", false))
        config_fail(c, "use_bidirectional_attention is not there yet");
    if (*c->st)
        return;
    const json_t *both = json_object_get(c->root, "rope_parameters");
    const json_t *full = json_object_get(c->root, "rope_scaling"), *local = NULL;
    if (json_is_object(both)) {
        full = json_object_get(both, "full_attention");
        local = json_object_get(both, "sliding_attention");
    }
    config_rope_object(s, c, s->head_dim, full, config_real(c, "rope_theta", 1e6));
    int longest = s->max_position; /* the config's: Gemma 3 counts the scaled positions */
    config_rope_object(s, c, s->head_dim, local, config_real(c, "rope_local_base_freq", 1e4));
    s->max_position = longest;
    for (int l = 0; *c->st == SL_OK && l < s->n_layers; l++)
        s->layer[l].rope = s->layer[l].window ? 1 : 0;
}

const struct family family_gemma = {"GemmaForCausalLM", read_gemma, gemma_rows, ignored,
                                    "model.",           GENERATES};
const struct family family_gemma2 = {
    "Gemma2ForCausalLM", read_gemma2, gemma2_rows, ignored, "model.", GENERATES};
const struct family family_gemma3 = {
    "Gemma3ForCausalLM", read_gemma3, gemma2_rows, ignored, "model.", GENERATES};
