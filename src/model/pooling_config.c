/* pooling_config.c - how hidden states are pooled: sentence-transformers' files in the model's
 * folder, config.json, and --pooler-config over both.
 *
 * modules.json lists what follows the transformer: Pooling (with a config of its own), Normalize.
 * Without it an encoder gives its first position's vector and a decoder its last one's, of unit
 * length. A decoder that classifies has a matrix of its own, or lm_head's rows of a few tokens.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/jsonfile.h"
#include "model/spec.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    MAX_BYTES = 1 << 20,
    MAX_DEPTH = 8,
    MAX_LABELS = 1 << 16,
    MAX_DIMS = 64,
    MAX_HEAD_TOKENS = 64
};

/* ---- modules.json -------------------------------------------------------------------------- */

/* "sentence_transformers.models.Pooling" -> "Pooling" */
static const char *last_part(const char *type)
{
    const char *dot = type ? strrchr(type, '.') : NULL;
    return dot ? dot + 1 : type ? type : "";
}

/* NULL: there is none. */
static json_t *read_modules(const char *dir, enum sl_status *st, struct sl_err *err)
{
    json_t *list = NULL;
    struct sl_err own = {0};
    enum sl_status got = json_list_read(&list, dir, "modules.json", MAX_BYTES, MAX_DEPTH, &own);
    if (got && got != SL_ENOTFOUND && *st == SL_OK)
        *st = SL_FAIL(err, got, "%s", own.msg);
    return list;
}

static const json_t *find_module(const json_t *modules, const char *type)
{
    for (size_t i = 0; i < json_array_size(modules); i++) {
        const json_t *m = json_array_get(modules, i);
        if (!strcmp(last_part(json_string_value(json_object_get(m, "type"))), type))
            return m;
    }
    return NULL;
}

bool has_pooling_module(const struct config *c, const char *dir)
{
    json_t *modules = read_modules(dir, c->st, c->err);
    bool has = find_module(modules, "Pooling") != NULL;
    json_decref(modules);
    return has;
}

static void check_modules(const struct config *c, const json_t *modules)
{
    static const char *const known[] = {"Transformer", "Pooling", "Normalize"};
    for (size_t i = 0; i < json_array_size(modules); i++) {
        const json_t *m = json_array_get(modules, i);
        const char *type = last_part(json_string_value(json_object_get(m, "type")));
        bool ok = false;
        for (int k = 0; k < 3; k++)
            ok = ok || !strcmp(type, known[k]);
        if (!ok)
            config_fail(c,
                        "modules.json: module '%.64s' is not there yet; known are: Transformer, "
                        "Pooling, Normalize",
                        type);
    }
}

static bool set_kind(struct model_spec *s, const char *name)
{
    static const struct {
        const char *name;
        enum pool_kind kind;
    } known[] = {{"cls_token", POOL_CLS}, {"cls", POOL_CLS},        {"mean_tokens", POOL_MEAN},
                 {"mean", POOL_MEAN},     {"lasttoken", POOL_LAST}, {"last", POOL_LAST}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(name, known[i].name)) {
            s->pool.kind = known[i].kind;
            return true;
        }
    return false;
}

/* "pooling_mode_mean_tokens": true among its siblings, or "pooling_mode": "mean". */
static void read_pooling(struct model_spec *s, const struct config *c, const json_t *pooling)
{
    const char *name, *mode = json_string_value(json_object_get(pooling, "pooling_mode"));
    static const char begin[] = "pooling_mode_";
    json_t *v;
    json_object_foreach((json_t *)pooling, name, v)
    {
        if (strncmp(name, begin, sizeof begin - 1) || !json_is_true(v))
            continue;
        if (mode) {
            config_fail(c, "its pooling module has several modes at once, which is not there yet");
            return;
        }
        mode = name + sizeof begin - 1;
    }
    if (mode && !set_kind(s, mode))
        config_fail(c, "pooling mode '%.64s' is not there yet; known are: cls, mean, last", mode);
}

static bool is_plain_path(const char *p)
{
    return *p && *p != '/' && !strstr(p, "..") && strlen(p) < 256;
}

static void read_sentence_transformers(struct model_spec *s, const struct config *c,
                                       const char *dir)
{
    json_t *modules = read_modules(dir, c->st, c->err), *pooling = NULL;
    const json_t *m = find_module(modules, "Pooling");
    const char *path = json_string_value(json_object_get(m, "path"));
    if (modules)
        check_modules(c, modules);
    if (m && (!path || !is_plain_path(path))) {
        config_fail(c, "modules.json: the pooling module's path is no folder in this one");
    } else if (m) {
        char file[300];
        snprintf(file, sizeof file, "%s/config.json", path);
        enum sl_status st = json_object_read(&pooling, dir, file, MAX_BYTES, MAX_DEPTH, c->err);
        if (st && *c->st == SL_OK)
            *c->st = st;
        if (pooling)
            read_pooling(s, c, pooling);
        s->pool.normalize = find_module(modules, "Normalize") != NULL;
    }
    json_decref(pooling);
    json_decref(modules);
}

/* max_seq_length of the sentence_*_config.json that is there. */
static void read_max_length(struct model_spec *s, const struct config *c, const char *dir)
{
    static const char *const names[] = {"sentence_bert_config.json", "sentence_roberta_config.json",
                                        "sentence_distilbert_config.json",
                                        "sentence_xlm-roberta_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *root = NULL;
        struct sl_err err = {0};
        if (json_object_read(&root, dir, names[i], MAX_BYTES, MAX_DEPTH, &err))
            continue;
        struct config own = *c;
        own.root = root;
        own.path = names[i];
        s->pool.max_len = config_int(&own, "max_seq_length", 0, 1, 1 << 28);
        json_decref(root);
        return;
    }
}

/* ---- config.json --------------------------------------------------------------------------- */

static void no_memory(const struct config *c)
{
    if (*c->st == SL_OK)
        *c->st = SL_FAIL(c->err, SL_ENOMEM, "%s: no memory for its labels", c->path);
}

static void read_labels(struct model_spec *s, const struct config *c)
{
    const json_t *names = json_object_get(c->root, "id2label");
    size_t n = json_object_size(names);
    s->pool.n_labels = config_int(c, "num_labels", n ? (int)n : 2, 1, MAX_LABELS);
    if (n > MAX_LABELS) {
        config_fail(c, "id2label names more than %d labels", MAX_LABELS);
        return;
    }
    if (!n)
        return;
    s->pool.label = arena_alloc(&s->pool.arena, (size_t)s->pool.n_labels, sizeof *s->pool.label);
    for (int i = 0; s->pool.label && i < s->pool.n_labels; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        const char *name = json_string_value(json_object_get(names, key));
        if (name && !(s->pool.label[i] = arena_strndup(&s->pool.arena, name, strlen(name))))
            no_memory(c);
    }
    if (!s->pool.label)
        no_memory(c);
}

/* The head of a decoder that classifies. */
static const struct tensor_row score_rows[] = {
    ROW("score.weight", SLOT_HEAD_OUT, DIM_LABELS, DIM_EMBED),
    {0},
};

/* As head: the matrix that makes logits. */
static const struct tensor_row *logit_rows(struct model_spec *s)
{
    const struct tensor_row *from = s->family->rows;
    while (from->slot != (s->tied ? SLOT_EMBED : SLOT_LM_HEAD))
        from++;
    struct tensor_row *rows = arena_alloc(&s->pool.arena, 2, sizeof *rows);
    if (rows) {
        rows[0] = (struct tensor_row){
            .name = from->name, .slot = SLOT_HEAD_OUT, .rows = from->rows, .cols = from->cols};
        rows[1] = (struct tensor_row){0};
    }
    return rows;
}

static void take_head_tokens(struct model_spec *s, const struct config *c, const json_t *list)
{
    struct pool_spec *p = &s->pool;
    int n = (int)json_array_size(list);
    p->head_token = arena_alloc(&p->arena, (size_t)n, sizeof *p->head_token);
    p->head_id = arena_alloc(&p->arena, (size_t)n, sizeof *p->head_id);
    p->head_rows = logit_rows(s);
    p->n_head_tokens = n;
    p->n_labels = p->two_way ? 1 : n;
    p->label = NULL; /* id2label is about another head */
    bool ok = p->head_token && p->head_id && p->head_rows;
    for (int i = 0; ok && i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        p->head_id[i] = -1;
        p->head_token[i] = arena_strndup(&p->arena, json_string_value(v), json_string_length(v));
        ok = p->head_token[i] != NULL;
    }
    if (!ok)
        no_memory(c);
}

/* A reranker that was trained to answer with a word, as vLLM takes it: classifier_from_token names
 * the words and `method` what is made of their logits. */
static void read_head_tokens(struct model_spec *s, const struct config *c)
{
    const json_t *list = json_object_get(c->root, "classifier_from_token");
    bool original = config_bool(c, "is_original_qwen3_reranker", false);
    const char *method = config_string(c, "method", original ? "from_2_way_softmax" : "");
    size_t n = json_array_size(list);
    if (!*method && !n)
        return;
    s->pool.two_way = !strcmp(method, "from_2_way_softmax");
    if (!s->pool.two_way && strcmp(method, "no_post_processing")) {
        config_fail(c,
                    "method '%.64s' of classifier_from_token is not known; known are: "
                    "from_2_way_softmax, no_post_processing",
                    method);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (!json_is_string(json_array_get(list, i)))
            n = 0;
    if (n < 1 || n > MAX_HEAD_TOKENS || (s->pool.two_way && n != 2)) {
        config_fail(c, "classifier_from_token must list %s, as strings",
                    s->pool.two_way ? "two tokens, the one for no and the one for yes"
                                    : "1 to 64 tokens");
        return;
    }
    take_head_tokens(s, c, list);
}

/* What cross-encoders say about their activation, then what transformers does. */
static void read_head_out(struct model_spec *s, const struct config *c)
{
    const json_t *st = json_object_get(c->root, "sentence_transformers");
    const char *fn = json_string_value(json_object_get(st, "activation_fn"));
    const char *problem = config_string(c, "problem_type", "");
    if (!fn)
        fn = config_string(c, "sbert_ce_default_activation_function", NULL);
    const char *name = last_part(fn);
    if (fn && !strcmp(name, "Identity"))
        s->pool.head_out = HEAD_PLAIN;
    else if (fn && !strcmp(name, "Sigmoid"))
        s->pool.head_out = HEAD_SIGMOIDS;
    else if (fn)
        config_fail(c, "activation '%.64s' of its scores is not known; Identity and Sigmoid are",
                    fn);
    else if (!strcmp(problem, "regression"))
        s->pool.head_out = HEAD_PLAIN;
    else if (!strcmp(problem, "multi_label_classification"))
        s->pool.head_out = HEAD_SIGMOIDS;
}

static void read_matryoshka(struct model_spec *s, const struct config *c)
{
    const json_t *list = json_object_get(c->root, "matryoshka_dimensions");
    size_t n = json_array_size(list);
    s->pool.matryoshka = config_bool(c, "is_matryoshka", false) || n;
    if (n > MAX_DIMS) {
        config_fail(c, "matryoshka_dimensions has more than %d entries", MAX_DIMS);
        return;
    }
    if (!n)
        return;
    if (!(s->pool.dims = arena_alloc(&s->pool.arena, n, sizeof *s->pool.dims))) {
        no_memory(c);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        json_int_t v = json_integer_value(json_array_get(list, i));
        if (v < 1 || v > spec_dim(s, DIM_EMBED))
            config_fail(c, "matryoshka_dimensions: every entry must be between 1 and %d",
                        spec_dim(s, DIM_EMBED));
        else
            s->pool.dims[s->pool.n_dims++] = (int)v;
    }
}

/* ---- --pooler-config ----------------------------------------------------------------------- */

static void set_task(struct model_spec *s, const struct config *c, const char *task)
{
    s->pool.token_level = !strcmp(task, "token_embed");
    if (!s->pool.token_level && strcmp(task, s->pool.classify ? "classify" : "embed"))
        config_fail(c, "task '%.32s' is not one of this model", task);
    else if (s->pool.token_level && s->pool.classify)
        config_fail(c, "task 'token_embed' is not one of a model that classifies");
}

static void apply_key(struct model_spec *s, const struct config *c, const char *key)
{
    if (!strcmp(key, "normalize")) {
        config_fail(c, "Parameter `normalize` was removed; use `use_activation` instead.");
    } else if (!strcmp(key, "pooling_type") || !strcmp(key, "seq_pooling_type") ||
               !strcmp(key, "tok_pooling_type")) {
        const char *name = config_string(c, key, "");
        if (!strcmp(name, "ALL"))
            s->pool.token_level = strcmp(key, "tok_pooling_type") != 0 || s->pool.token_level;
        else if (!set_kind(s, name))
            config_fail(c, "%s '%.32s' is not known; known are: CLS, LAST, MEAN, ALL", key, name);
    } else if (!strcmp(key, "use_activation")) {
        s->pool.normalize = config_bool(c, key, true);
        if (s->pool.classify && !s->pool.normalize)
            s->pool.head_out = HEAD_PLAIN;
    } else if (!strcmp(key, "dimensions")) {
        s->pool.dimensions = config_int(c, key, 0, 1, spec_dim(s, DIM_EMBED));
    } else if (!strcmp(key, "task")) {
        set_task(s, c, config_string(c, key, ""));
    } else {
        config_fail(c,
                    "'%.64s' is not there yet; known are: task, pooling_type, seq_pooling_type, "
                    "tok_pooling_type, use_activation, dimensions",
                    key);
    }
}

static void apply_pooler_config(struct model_spec *s, const struct config *c, const char *text)
{
    json_t *root = NULL, *v;
    const char *key;
    enum sl_status st =
        json_object_parse(&root, text, strlen(text), MAX_DEPTH, "pooler_config", c->err);
    if (st && *c->st == SL_OK)
        *c->st = st;
    struct config own = *c;
    own.path = "pooler_config";
    own.root = root;
    json_object_foreach(root, key, v)
    {
        if (!json_is_null(v))
            apply_key(s, &own, key);
    }
    json_decref(root);
}

void config_pooling(struct model_spec *s, const struct config *c, const char *dir,
                    const struct spec_options *o)
{
    s->pool.kind = s->both_ways ? POOL_CLS : POOL_LAST;
    s->pool.normalize = true;
    if (s->pool.classify) {
        read_labels(s, c);
        if (s->family->kind == GENERATES) {
            s->pool.head_rows = score_rows;
            read_head_tokens(s, c);
        }
        s->pool.joins_pairs = !config_bool(c, "use_sep_token", !s->pool.head_token);
        read_head_out(s, c);
    } else {
        read_sentence_transformers(s, c, dir);
        read_matryoshka(s, c);
    }
    read_max_length(s, c, dir);
    if (o->pooler_config && *c->st == SL_OK)
        apply_pooler_config(s, c, o->pooler_config);
}
