/* SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"

#include "base/mem.h"
#include "base/strbuf.h"
#include "model/jsonfile.h"
#include "model/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 4 << 20, MAX_CONFIG_DEPTH = 32, MAX_DIM = 1 << 20, MAX_LAYERS = 4096 };

static const struct family *const families[] = {
    &family_llama,           &family_mistral,       &family_qwen2,
    &family_qwen3,           &family_smollm3,       &family_granite,
    &family_olmo2,           &family_phi3,          &family_gemma,
    &family_gemma2,          &family_gemma3,        &family_gpt2,
    &family_gptneox,         &family_opt,           &family_falcon,
    &family_refinedweb,      &family_stablelm,      &family_mixtral,
    &family_qwen2moe,        &family_qwen3moe,      &family_bert,
    &family_bert_mlm,        &family_bert_score,    &family_roberta,
    &family_roberta_mlm,     &family_roberta_score, &family_xlmr,
    &family_xlmr_mlm,        &family_xlmr_score,    &family_distilbert,
    &family_distilbert_score};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* ---- typed reading ------------------------------------------------------------------------- */

void config_fail(const struct config *c, const char *fmt, ...)
{
    char why[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    if (*c->st == SL_OK)
        *c->st = SL_FAIL(c->err, SL_EFORMAT, "%s: %s", c->path, why);
}

static const json_t *get(const struct config *c, const char *key)
{
    const json_t *v = json_object_get(c->root, key);
    return json_is_null(v) ? NULL : v;
}

bool config_has(const struct config *c, const char *key)
{
    return get(c, key) != NULL;
}

int config_int(const struct config *c, const char *key, int fallback, int min, int max)
{
    const json_t *v = get(c, key);
    if (!v)
        return fallback;
    if (!json_is_integer(v)) {
        config_fail(c, "%s must be a whole number", key);
        return fallback;
    }
    json_int_t i = json_integer_value(v);
    if (i < min || i > max) {
        config_fail(c, "%s is %lld; it must be between %d and %d", key, (long long)i, min, max);
        return fallback;
    }
    return (int)i;
}

int config_int_required(const struct config *c, const char *key, int min, int max)
{
    if (!config_has(c, key))
        config_fail(c, "%s is missing", key);
    return config_int(c, key, min, min, max);
}

double config_real(const struct config *c, const char *key, double fallback)
{
    const json_t *v = get(c, key);
    if (!v)
        return fallback;
    if (!json_is_number(v)) {
        config_fail(c, "%s must be a number", key);
        return fallback;
    }
    return json_number_value(v);
}

double config_real_or_null(const struct config *c, const char *key, double fallback, double none)
{
    return config_real(c, key, json_object_get(c->root, key) ? none : fallback);
}

bool config_bool(const struct config *c, const char *key, bool fallback)
{
    const json_t *v = get(c, key);
    if (!v)
        return fallback;
    if (!json_is_boolean(v))
        config_fail(c, "%s must be true or false", key);
    return json_is_true(v);
}

const char *config_string(const struct config *c, const char *key, const char *fallback)
{
    const json_t *v = get(c, key);
    if (!v)
        return fallback;
    if (!json_is_string(v)) {
        config_fail(c, "%s must be a string", key);
        return fallback;
    }
    return json_string_value(v);
}

enum act_kind config_act(const struct config *c, const char *key, const char *fallback)
{
    static const struct {
        const char *name;
        enum act_kind kind;
    } known[] = {{"silu", ACT_SILU},           {"swish", ACT_SILU},
                 {"gelu", ACT_GELU},           {"gelu_new", ACT_GELU_TANH},
                 {"gelu_fast", ACT_GELU_TANH}, {"gelu_pytorch_tanh", ACT_GELU_TANH},
                 {"relu", ACT_RELU},           {"relu2", ACT_RELU2}};
    const char *name = config_string(c, key, fallback);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name))
            return known[i].kind;
    config_fail(c, "%s '%.64s' is not known", key, name);
    return ACT_SILU;
}

/* ---- what decoders share ------------------------------------------------------------------- */

const struct size_keys usual_size_keys = {
    "vocab_size",          "hidden_size",       "num_hidden_layers",      "num_attention_heads",
    "num_key_value_heads", "intermediate_size", "max_position_embeddings"};

static void check_heads(const struct model_spec *s, const struct config *c)
{
    if (s->n_heads % s->n_kv_heads)
        config_fail(c, "%d attention heads are no multiple of %d KV heads", s->n_heads,
                    s->n_kv_heads);
    if (s->head_dim % 8 || s->head_dim < 8)
        config_fail(c, "head size %d is no multiple of 8", s->head_dim);
    if (s->head_dim > MAX_DIM / s->n_heads)
        config_fail(c, "%d heads of size %d are more than %d values", s->n_heads, s->head_dim,
                    MAX_DIM);
}

void config_sizes(struct model_spec *s, const struct config *c, const struct size_keys *k)
{
    if (!config_has(c, k->positions))
        config_fail(c, "%s is missing", k->positions);
    config_sizes_with_positions(s, c, k, 1);
}

void config_sizes_with_positions(struct model_spec *s, const struct config *c,
                                 const struct size_keys *k, int positions)
{
    s->vocab_size = config_int_required(c, k->vocab, 1, 1 << 24);
    s->hidden = config_int_required(c, k->hidden, 1, MAX_DIM);
    s->n_layers = config_int_required(c, k->layers, 1, MAX_LAYERS);
    s->n_heads = config_int_required(c, k->heads, 1, 4096);
    s->n_kv_heads = k->kv_heads ? config_int(c, k->kv_heads, s->n_heads, 1, 4096) : s->n_heads;
    int ffn = s->hidden <= MAX_DIM / 4 ? 4 * s->hidden : MAX_DIM;
    s->ffn = k->ffn ? config_int(c, k->ffn, ffn, 1, MAX_DIM) : ffn;
    s->max_position = config_int(c, k->positions, positions, 1, 1 << 28);
    if (!config_has(c, "head_dim") && s->hidden % s->n_heads)
        config_fail(c, "%s %d is no multiple of %s %d", k->hidden, s->hidden, k->heads, s->n_heads);
    s->head_dim = config_int(c, "head_dim", s->hidden / s->n_heads, 1, 4096);
    check_heads(s, c);
    if (*c->st)
        return;
    s->attn_scale = (float)(1 / sqrt(s->head_dim));
    if (!(s->layer = mem_zalloc((size_t)s->n_layers, sizeof *s->layer)))
        *c->st = SL_FAIL(c->err, SL_ENOMEM, "%s: no memory for %d layers", c->path, s->n_layers);
}

bool config_layer_is_sliding(const struct model_spec *s, const struct config *c, int layer,
                             bool fallback)
{
    const json_t *types = get(c, "layer_types");
    if (!types)
        return fallback;
    if (json_array_size(types) != (size_t)s->n_layers) {
        config_fail(c, "layer_types names %zu layers of %d", json_array_size(types), s->n_layers);
        return fallback;
    }
    const char *kind = json_string_value(json_array_get(types, (size_t)layer));
    if (kind && !strcmp(kind, "sliding_attention"))
        return true;
    if (!kind || strcmp(kind, "full_attention"))
        config_fail(c, "layer_types: '%.32s' is not known", kind ? kind : "");
    return false;
}

int config_rotary_dims(const struct model_spec *s, const struct config *c, const char *key,
                       double fallback)
{
    const json_t *rope = get(c, "rope_parameters"); /* transformers 5 moves it in there */
    struct config in = *c;
    double share = config_real(c, key, fallback);
    if (json_is_object(rope)) {
        in.root = rope;
        share = config_real(&in, "partial_rotary_factor", share);
    }
    if (!(share > 0 && share <= 1)) {
        config_fail(c, "%s is %g; it must be between 0 and 1", key, share);
        return 2;
    }
    return (int)(s->head_dim * share);
}

int spec_dim(const struct model_spec *s, enum dim d)
{
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    switch (d) {
    case DIM_1:
    case DIM_ONE_ROW:
        return 1;
    case DIM_HIDDEN:
        return s->hidden;
    case DIM_EMBED:
        return s->embed_width ? s->embed_width : s->hidden;
    case DIM_VOCAB:
        return s->vocab_size;
    case DIM_FFN:
        return s->ffn;
    case DIM_2_FFN:
        return 2 * s->ffn;
    case DIM_Q:
        return q;
    case DIM_KV:
        return kv;
    case DIM_QKV:
        return q + 2 * kv;
    case DIM_HEAD:
        return s->head_dim;
    case DIM_Q_NORM:
        return s->qk_norm == QK_NORM_HEAD ? s->head_dim : q;
    case DIM_K_NORM:
        return s->qk_norm == QK_NORM_HEAD ? s->head_dim : kv;
    case DIM_POSITIONS:
        return s->n_positions;
    case DIM_TYPES:
        return s->n_types;
    case DIM_LABELS:
        return s->pool.n_labels;
    case DIM_EXPERTS:
        return s->n_experts;
    case DIM_MOE_FFN:
        return s->moe_ffn;
    case DIM_SHARED_FFN:
        return s->shared_ffn;
    }
    return 0;
}

static void read_dtype(struct model_spec *s, const struct config *c)
{
    const char *t = config_string(c, "dtype", config_string(c, "torch_dtype", "float32"));
    if (!strncmp(t, "torch.", 6))
        t += 6;
    if (!strcmp(t, "float32") || !strcmp(t, "auto"))
        s->dtype = SL_DTYPE_F32;
    else if (!strcmp(t, "float16"))
        s->dtype = SL_DTYPE_F16;
    else if (!strcmp(t, "bfloat16"))
        s->dtype = SL_DTYPE_BF16;
    else
        config_fail(c, "dtype '%.32s' is not known", t);
}

/* Layers of one window size form a group of the KV cache. */
static void make_groups(struct model_spec *s, const struct config *c)
{
    struct kv_layout *kv = &s->info.layout;
    size_t elem = s->dtype == SL_DTYPE_F32 ? 4 : 2;
    for (int l = 0; l < s->n_layers; l++) {
        struct layer_spec *layer = &s->layer[l];
        int g = 0;
        while (g < kv->n_groups && kv->group[g].window != layer->window)
            g++;
        if (g == KV_GROUPS_MAX) {
            config_fail(c, "more than %d different attention windows", KV_GROUPS_MAX);
            return;
        }
        if (g == kv->n_groups)
            kv->group[kv->n_groups++].window = layer->window;
        layer->group = g;
        layer->layer_in_group = kv->group[g].n_layers++;
        kv->group[g].bytes_per_token += 2 * elem * (size_t)(s->n_kv_heads * s->head_dim);
    }
}

/* ---- generation_config.json ---------------------------------------------------------------- */

static void add_eos(struct model_info *info, const struct config *c, const json_t *v)
{
    if (!json_is_integer(v)) {
        config_fail(c, "eos_token_id must be a token id or a list of them");
        return;
    }
    json_int_t id = json_integer_value(v);
    if (id < 0 || id > INT32_MAX) /* some configs write -1 for none */
        return;
    for (int i = 0; i < info->n_eos; i++)
        if (info->eos[i] == id)
            return;
    if (info->n_eos == (int)(sizeof info->eos / sizeof *info->eos))
        config_fail(c, "eos_token_id: more than %zu ids", sizeof info->eos / sizeof *info->eos);
    else
        info->eos[info->n_eos++] = (int32_t)id;
}

static void read_eos(struct model_info *info, const struct config *c)
{
    const json_t *v = get(c, "eos_token_id");
    if (json_is_array(v))
        for (size_t i = 0; i < json_array_size(v); i++)
            add_eos(info, c, json_array_get(v, i));
    else if (v)
        add_eos(info, c, v);
}

static void read_sampling(struct model_info *info, const struct config *c)
{
    info->temperature = config_real(c, "temperature", NAN);
    info->top_p = config_real(c, "top_p", NAN);
    info->min_p = config_real(c, "min_p", NAN);
    info->repetition_penalty = config_real(c, "repetition_penalty", NAN);
    info->top_k = config_int(c, "top_k", SL_NONE, -1, INT32_MAX);
    info->max_new_tokens = config_int(c, "max_new_tokens", SL_NONE, 1, INT32_MAX);
}

/* The stop tokens hold whatever `source` says; "vllm" only keeps the sampling defaults out. */
static enum sl_status read_generation(struct model_spec *s, const char *dir, const char *source,
                                      struct sl_err *err)
{
    bool own = !source || !strcmp(source, "auto") || !strcmp(source, "vllm");
    const char *from = own ? dir : source;
    char *path = path_join(from, "generation_config.json");
    json_t *root = NULL;
    enum sl_status st = path ? SL_OK : SL_FAIL(err, SL_ENOMEM, "generation_config.json: no memory");
    struct sl_err why = {0};
    if (st == SL_OK)
        st = json_object_read(&root, NULL, path, MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH, &why);
    struct config c = {.path = path, .root = root, .st = &st, .err = err};
    if (st == SL_ENOTFOUND && own)
        st = SL_OK; /* few models need one */
    else if (st && path)
        SL_FAIL(err, st, "%s", why.msg);
    read_eos(&s->info, &c);
    if (!source || strcmp(source, "vllm"))
        read_sampling(&s->info, &c);
    json_decref(root);
    mem_free(path);
    return st;
}

/* ---- putting it together ------------------------------------------------------------------- */

/* "LlamaModel" and "LlamaForSequenceClassification" are the decoder of "LlamaForCausalLM" without
 * its lm_head. */
static bool is_decoder_of(const struct family *f, const char *name, enum family_kind *kind)
{
    static const char *const generates[] = {"ForCausalLM", "LMHeadModel"};
    static const struct {
        const char *end;
        enum family_kind kind;
    } as[] = {{"Model", EMBEDS}, {"ForSequenceClassification", CLASSIFIES}};
    for (int i = 0; f->kind == GENERATES && i < 2; i++) {
        size_t n = strlen(f->architecture), m = strlen(generates[i]);
        if (n <= m || strcmp(f->architecture + n - m, generates[i]))
            continue;
        for (int k = 0; k < 2; k++)
            if (!strncmp(name, f->architecture, n - m) && !strcmp(name + n - m, as[k].end)) {
                *kind = as[k].kind;
                return true;
            }
    }
    return false;
}

static const struct family *find_named(const char *name, enum family_kind *kind)
{
    for (int f = 0; f < N_FAMILIES; f++)
        if (!strcmp(name, families[f]->architecture)) {
            *kind = families[f]->kind;
            return families[f];
        }
    for (int f = 0; f < N_FAMILIES; f++)
        if (is_decoder_of(families[f], name, kind))
            return families[f];
    return NULL;
}

static const struct family *find_family(const struct config *c, struct model_spec *s,
                                        enum family_kind *kind)
{
    const json_t *list = get(c, "architectures");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        const struct family *f = name ? find_named(name, kind) : NULL;
        if (f) {
            snprintf(s->architecture, sizeof s->architecture, "%s", name);
            return f;
        }
    }
    struct strbuf known;
    strbuf_init(&known, 4096);
    for (int f = 0; f < N_FAMILIES; f++)
        strbuf_addf(&known, "%s%s", f ? ", " : "", families[f]->architecture);
    const char *first = json_string_value(json_array_get(list, 0));
    if (json_is_object(get(c, "auto_map")))
        config_fail(c,
                    "architecture '%.64s' comes as code with the model (auto_map), and a model's "
                    "code is never run; known are: %s",
                    first ? first : "(none given)", known.data ? known.data : "");
    config_fail(c, "architecture '%.64s' is not known; known are: %s",
                first ? first : "(none given)", known.data ? known.data : "");
    strbuf_fini(&known);
    return NULL;
}

static void check_numbers(const struct model_spec *s, const struct config *c)
{
    if (!(s->norm_eps > 0 && s->norm_eps < 1))
        config_fail(c, "the norm's epsilon is %g; it must be between 0 and 1", (double)s->norm_eps);
    const float scales[] = {s->attn_scale,     s->attn_softcap, s->embed_scale,
                            s->residual_scale, s->logit_scale,  s->logit_softcap};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        if (!isfinite(scales[i]))
            config_fail(c, "a scale in the config is not a finite number");
}

/* Whether the model is to generate, embed or classify: by its architecture, its folder, and what
 * was asked for. */
static void choose_use(struct model_spec *s, const struct config *c, const char *dir,
                       const struct spec_options *o, enum family_kind kind)
{
    const char *convert = o->convert && strcmp(o->convert, "auto") ? o->convert : "";
    bool pools = o->runner == SL_RUNNER_POOLING ||
                 (o->runner == SL_RUNNER_AUTO &&
                  (kind != GENERATES || !strcmp(convert, "embed") || !strcmp(convert, "classify") ||
                   has_pooling_module(c, dir)));
    if (!pools && kind != GENERATES)
        config_fail(c, "%s generates nothing; its runner is pooling", s->architecture);
    if (pools && kind == GENERATES && !strcmp(convert, "none"))
        config_fail(c, "%s pools nothing unless it is converted (--convert embed)",
                    s->architecture);
    s->pool.only = pools;
    s->pool.classify = pools && (*convert ? !strcmp(convert, "classify") : kind == CLASSIFIES);
    if (s->pool.classify && kind != CLASSIFIES && !config_has(c, "classifier_from_token"))
        config_fail(c, "%s has no classification head to convert to", s->architecture);
}

static void read_spec(struct model_spec *s, const struct config *c, const char *dir,
                      const struct spec_options *o)
{
    enum family_kind kind = GENERATES;
    if (!(s->family = find_family(c, s, &kind)))
        return;
    choose_use(s, c, dir, o, kind);
    s->rms = true;
    s->embed_scale = s->residual_scale = s->logit_scale = 1;
    read_dtype(s, c);
    config_quantization(s, c);
    s->family->read(s, c);
    if (*c->st)
        return;
    if (s->pool.only)
        config_pooling(s, c, dir, o);
    check_numbers(s, c);
    make_groups(s, c);
}

static void fill_info(struct model_spec *s, const struct config *c)
{
    struct model_info *i = &s->info;
    memcpy(i->architecture, s->architecture, sizeof i->architecture);
    i->vocab_size = s->vocab_size;
    i->max_position = s->max_position;
    i->n_layers = s->n_layers;
    i->hidden = s->hidden;
    i->dtype = s->dtype;
    i->whole_prompts = s->both_ways;
    if (s->pool.max_len && s->pool.max_len < i->max_position)
        i->max_position = s->pool.max_len;
    i->bos = config_int(c, "bos_token_id", -1, -1, INT32_MAX);
    uint64_t params = plan_step_parameters(s);
    i->weight_bytes = params * (s->dtype == SL_DTYPE_F32 ? 4 : 2);
    i->flops_per_token = 2 * params;
    read_eos(i, c);
}

static enum sl_status merge_overrides(json_t *root, const char *overrides, struct sl_err *err)
{
    json_t *over = NULL;
    enum sl_status st = json_object_parse(&over, overrides, strlen(overrides), MAX_CONFIG_DEPTH,
                                          "hf_overrides", err);
    if (st == SL_OK && json_object_update_recursive(root, over))
        st = SL_FAIL(err, SL_ENOMEM, "hf_overrides: no memory to merge");
    json_decref(over);
    return st;
}

enum sl_status model_spec_load(struct model_spec **out, const char *dir, const char *hf_overrides,
                               const char *generation_config, struct sl_err *err)
{
    const struct spec_options o = {.hf_overrides = hf_overrides,
                                   .generation_config = generation_config};
    return model_spec_load_as(out, dir, &o, err);
}

enum sl_status model_spec_load_as(struct model_spec **out, const char *dir,
                                  const struct spec_options *o, struct sl_err *err)
{
    const char *hf_overrides = o->hf_overrides;
    struct model_spec *s = mem_zalloc(1, sizeof *s);
    char *path = path_join(dir, "config.json");
    json_t *root = NULL;
    enum sl_status st;
    if (!s || !path) {
        st = SL_FAIL(err, SL_ENOMEM, "config.json: no memory");
        goto fail;
    }
    if ((st = json_object_read(&root, NULL, path, MAX_CONFIG_BYTES, MAX_CONFIG_DEPTH, err)) ||
        (hf_overrides && (st = merge_overrides(root, hf_overrides, err))))
        goto fail;
    s->info.temperature = s->info.top_p = s->info.min_p = s->info.repetition_penalty = NAN;
    s->info.top_k = s->info.max_new_tokens = SL_NONE;
    struct config c = {.path = path, .root = root, .st = &st, .err = err};
    read_spec(s, &c, dir, o);
    if (st == SL_OK)
        fill_info(s, &c);
    if (st == SL_OK)
        st = read_generation(s, dir, o->generation_config, err);
fail:
    json_decref(root);
    mem_free(path);
    if (st)
        model_spec_destroy(&s);
    else
        *out = s;
    return st;
}

void model_spec_destroy(struct model_spec **s)
{
    if (!*s)
        return;
    for (int i = 0; i < (*s)->n_ropes; i++)
        mem_free((*s)->rope[i].inv_freq);
    mem_free((*s)->layer);
    arena_fini(&(*s)->pool.arena);
    mem_free(*s);
    *s = NULL;
}

void model_spec_info(const struct model_spec *s, struct model_info *out)
{
    *out = s->info;
}
