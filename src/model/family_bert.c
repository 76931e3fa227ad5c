/* family_bert.c - encoders: every position sees all of its text, norms come after the sublayers
 * and over the residual, positions are learned. BERT and DistilBERT count them from 0; RoBERTa and
 * XLM-R from the padding token's id + 1. A classification head sees the first position.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include <string.h>

#define NORM(name, slot) \
    VECTOR(name ".weight", slot, DIM_HIDDEN), BIAS(name ".bias", slot, DIM_HIDDEN)
#define DENSE(name, slot, rows, cols, ...) \
    ROW(name ".weight", slot, rows, cols, __VA_ARGS__), BIAS(name ".bias", slot, rows, __VA_ARGS__)

#define ENCODER(prefix)                                                                           \
    ROW(prefix "embeddings.word_embeddings.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),           \
        ROW(prefix "embeddings.position_embeddings.weight", SLOT_POSITIONS, DIM_POSITIONS,        \
            DIM_HIDDEN),                                                                          \
        ROW(prefix "embeddings.token_type_embeddings.weight", SLOT_TYPES, DIM_TYPES, DIM_HIDDEN), \
        NORM(prefix "embeddings.LayerNorm", SLOT_EMBED_NORM),                                     \
        DENSE(prefix "encoder.layer.%d.attention.self.query", SLOT_QKV, DIM_Q, DIM_HIDDEN,        \
              .part = 0),                                                                         \
        DENSE(prefix "encoder.layer.%d.attention.self.key", SLOT_QKV, DIM_KV, DIM_HIDDEN,         \
              .part = 1),                                                                         \
        DENSE(prefix "encoder.layer.%d.attention.self.value", SLOT_QKV, DIM_KV, DIM_HIDDEN,       \
              .part = 2),                                                                         \
        DENSE(prefix "encoder.layer.%d.attention.output.dense", SLOT_O, DIM_HIDDEN, DIM_Q),       \
        NORM(prefix "encoder.layer.%d.attention.output.LayerNorm", SLOT_ATTN_POST_NORM),          \
        DENSE(prefix "encoder.layer.%d.intermediate.dense", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN),   \
        DENSE(prefix "encoder.layer.%d.output.dense", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),            \
        NORM(prefix "encoder.layer.%d.output.LayerNorm", SLOT_MLP_POST_NORM)

static const struct tensor_row bert_rows[] = {
    ENCODER("bert."),
    DENSE("bert.pooler.dense", SLOT_HEAD_DENSE, DIM_HIDDEN, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    DENSE("classifier", SLOT_HEAD_OUT, DIM_LABELS, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    {0},
};
static const struct tensor_row roberta_rows[] = {
    ENCODER("roberta."),
    DENSE("classifier.dense", SLOT_HEAD_DENSE, DIM_HIDDEN, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    DENSE("classifier.out_proj", SLOT_HEAD_OUT, DIM_LABELS, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    {0},
};
#define D "distilbert.transformer.layer.%d."
static const struct tensor_row distilbert_rows[] = {
    ROW("distilbert.embeddings.word_embeddings.weight", SLOT_EMBED, DIM_VOCAB, DIM_HIDDEN),
    ROW("distilbert.embeddings.position_embeddings.weight", SLOT_POSITIONS, DIM_POSITIONS,
        DIM_HIDDEN),
    NORM("distilbert.embeddings.LayerNorm", SLOT_EMBED_NORM),
    DENSE(D "attention.q_lin", SLOT_QKV, DIM_Q, DIM_HIDDEN, .part = 0),
    DENSE(D "attention.k_lin", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 1),
    DENSE(D "attention.v_lin", SLOT_QKV, DIM_KV, DIM_HIDDEN, .part = 2),
    DENSE(D "attention.out_lin", SLOT_O, DIM_HIDDEN, DIM_Q),
    NORM(D "sa_layer_norm", SLOT_ATTN_POST_NORM),
    DENSE(D "ffn.lin1", SLOT_GATE_UP, DIM_FFN, DIM_HIDDEN),
    DENSE(D "ffn.lin2", SLOT_DOWN, DIM_HIDDEN, DIM_FFN),
    NORM(D "output_layer_norm", SLOT_MLP_POST_NORM),
    DENSE("pre_classifier", SLOT_HEAD_DENSE, DIM_HIDDEN, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    DENSE("classifier", SLOT_HEAD_OUT, DIM_LABELS, DIM_HIDDEN, .when = WHEN_CLASSIFY),
    {0},
};

/* What the checkpoints of other tasks hold beside the encoder. */
static const char *const ignored[] = {"embeddings.position_ids",
                                      "embeddings.token_type_ids",
                                      "pooler.dense.weight",
                                      "pooler.dense.bias",
                                      "cls.predictions.bias",
                                      "cls.predictions.transform.dense.weight",
                                      "cls.predictions.transform.dense.bias",
                                      "cls.predictions.transform.LayerNorm.weight",
                                      "cls.predictions.transform.LayerNorm.bias",
                                      "cls.predictions.transform.LayerNorm.gamma",
                                      "cls.predictions.transform.LayerNorm.beta",
                                      "cls.predictions.decoder.weight",
                                      "cls.predictions.decoder.bias",
                                      "cls.seq_relationship.weight",
                                      "cls.seq_relationship.bias",
                                      "lm_head.bias",
                                      "lm_head.dense.weight",
                                      "lm_head.dense.bias",
                                      "lm_head.layer_norm.weight",
                                      "lm_head.layer_norm.bias",
                                      "lm_head.decoder.weight",
                                      "lm_head.decoder.bias",
                                      "vocab_transform.weight",
                                      "vocab_transform.bias",
                                      "vocab_layer_norm.weight",
                                      "vocab_layer_norm.bias",
                                      "vocab_projector.weight",
                                      "vocab_projector.bias",
                                      NULL};

static void read_encoder(struct model_spec *s, const struct config *c, const char *act)
{
    const char *positions = config_string(c, "position_embedding_type", "absolute");
    s->rms = false;
    s->post_norm = s->both_ways = true;
    s->norm_eps = (float)config_real(c, "layer_norm_eps", 1e-12);
    s->act = config_act(c, act, "gelu");
    s->n_positions = s->max_position;
    if (strcmp(positions, "absolute"))
        config_fail(c, "position_embedding_type '%.64s' is not there yet; absolute is", positions);
    if (config_bool(c, "is_decoder", false) || config_bool(c, "add_cross_attention", false))
        config_fail(c, "this encoder is configured as a decoder, which is not there");
    for (int l = 0; s->layer && l < s->n_layers; l++)
        s->layer[l].rope = -1;
}

static void read_bert(struct model_spec *s, const struct config *c)
{
    config_sizes(s, c, &usual_size_keys);
    s->n_types = config_int(c, "type_vocab_size", 2, 1, 1 << 16);
    read_encoder(s, c, "hidden_act");
}

static void read_roberta(struct model_spec *s, const struct config *c)
{
    read_bert(s, c);
    s->pos_offset = config_int(c, "pad_token_id", 1, 0, 1 << 20) + 1;
    s->max_position -= s->pos_offset;
    if (s->max_position < 1)
        config_fail(c, "max_position_embeddings leaves no position after pad_token_id");
}

static void read_distilbert(struct model_spec *s, const struct config *c)
{
    static const struct size_keys keys = {
        "vocab_size", "dim", "n_layers", "n_heads", NULL, "hidden_dim", "max_position_embeddings"};
    config_sizes(s, c, &keys);
    read_encoder(s, c, "activation");
    s->pool.head_act = HEAD_RELU;
}

#define FAMILY(var, name, read, rows, prefix, kind) \
    const struct family var = {name, read, rows, ignored, prefix, kind}
FAMILY(family_bert, "BertModel", read_bert, bert_rows, "bert.", EMBEDS);
FAMILY(family_bert_mlm, "BertForMaskedLM", read_bert, bert_rows, "bert.", EMBEDS);
FAMILY(family_bert_score, "BertForSequenceClassification", read_bert, bert_rows, "bert.",
       CLASSIFIES);
FAMILY(family_roberta, "RobertaModel", read_roberta, roberta_rows, "roberta.", EMBEDS);
FAMILY(family_roberta_mlm, "RobertaForMaskedLM", read_roberta, roberta_rows, "roberta.", EMBEDS);
FAMILY(family_roberta_score, "RobertaForSequenceClassification", read_roberta, roberta_rows,
       "roberta.", CLASSIFIES);
FAMILY(family_xlmr, "XLMRobertaModel", read_roberta, roberta_rows, "roberta.", EMBEDS);
FAMILY(family_xlmr_mlm, "XLMRobertaForMaskedLM", read_roberta, roberta_rows, "roberta.", EMBEDS);
FAMILY(family_xlmr_score, "XLMRobertaForSequenceClassification", read_roberta, roberta_rows,
       "roberta.", CLASSIFIES);
FAMILY(family_distilbert, "DistilBertModel", read_distilbert, distilbert_rows, "distilbert.",
       EMBEDS);
FAMILY(family_distilbert_score, "DistilBertForSequenceClassification", read_distilbert,
       distilbert_rows, "distilbert.", CLASSIFIES);
