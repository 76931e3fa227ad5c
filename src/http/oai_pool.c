/* oai_pool.c - embeddings, pooling, classification, scores and rankings: what these endpoints ask
 * for becomes prompts, and what the model gives becomes their answer. Shapes and texts are vLLM's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include "base/half.h"
#include "http/json_out.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- which endpoints a model has ------------------------------------------------------------ */

bool oai_served(enum oai_api api, const struct oai_env *env, struct oai_error *e)
{
    const struct sl_engine_info *info = &env->info;
    bool embeds = info->pools && info->task == SL_POOL_EMBED;
    bool scores = info->pools && info->task == SL_POOL_CLASSIFY && info->embedding_size == 1;
    const struct {
        enum oai_api api;
        const char *name;
        bool served;
    } known[] = {
        {OAI_COMPLETIONS, "Completions API", !info->pools},
        {OAI_CHAT, "Chat Completions API", !info->pools},
        {OAI_EMBEDDINGS, "Embeddings API", embeds},
        {OAI_POOLING, "Pooling API", info->pools},
        {OAI_CLASSIFY, "Classification API", info->pools && info->task == SL_POOL_CLASSIFY},
        {OAI_SCORE, "Score API", embeds || scores},
        {OAI_RERANK, "Rerank (Score) API", embeds || scores}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (api & known[i].api && !known[i].served)
            return oai_fail(e, 404, NULL, NULL, "The model does not support %s", known[i].name);
    return true;
}

/* ---- fields --------------------------------------------------------------------------------- */

static bool one_of(const char *value, const char *field, const char *const *known,
                   struct oai_error *e)
{
    struct strbuf list;
    if (!value)
        return true;
    strbuf_init(&list, 1024);
    for (int i = 0; known[i]; i++) {
        if (!strcmp(value, known[i])) {
            strbuf_fini(&list);
            return true;
        }
        strbuf_addf(&list, "%s'%s'", i ? (known[i + 1] ? ", " : " or ") : "", known[i]);
    }
    char param[64];
    snprintf(param, sizeof param, "body.%s", field);
    oai_fail(e, 400, "Bad Request", param,
             "1 validation error:\n  {'type': 'literal_error', 'loc': ('body', '%s'), 'msg': "
             "\"Input should be %s\"}",
             field, list.data ? list.data : "");
    strbuf_fini(&list);
    return false;
}

static bool check_words(const struct oai_request *r, struct oai_error *e)
{
    static const char *const formats[] = {"float", "base64", NULL};
    static const char *const dtypes[] = {"float32", "float16", "bfloat16", NULL};
    static const char *const orders[] = {"native", "big", "little", NULL};
    static const char *const sides[] = {"left", "right", NULL};
    const struct oai_pool *p = &r->pool;
    if (p->normalize)
        return oai_fail(e, 400, NULL, "normalize",
                        "Parameter `normalize` was removed; use `use_activation` instead.");
    return one_of(p->encoding_format, "encoding_format", formats, e) &&
           one_of(p->embed_dtype, "embed_dtype", dtypes, e) &&
           one_of(p->endianness, "endianness", orders, e) &&
           one_of(r->truncation_side, "truncation_side", sides, e);
}

static const char *task_name(enum sl_pool_task t)
{
    static const char *const names[] = {"embed", "token_embed", "classify"};
    return names[t];
}

/* /pooling does what the model is for. */
static bool check_task(const struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    const char *task = r->pool.task, *own = task_name(env->info.task);
    if (r->api == OAI_POOLING && r->pool.dimensions != SL_NONE)
        return oai_fail(e, 400, NULL, "dimensions", "dimensions is currently not supported");
    if (!task || !strcmp(task, own))
        return true;
    if (!strcmp(task, "score"))
        return oai_fail(e, 400, NULL, "task", "`score` task was removed; use `classify` instead.");
    if (!strcmp(task, "encode"))
        return oai_fail(
            e, 400, NULL, "task",
            "`encode` task was removed; use `token_embed` or `token_classify` instead.");
    bool other = env->info.task != SL_POOL_CLASSIFY &&
                 (!strcmp(task, "embed") || !strcmp(task, "token_embed"));
    if (other)
        return oai_fail(e, 400, NULL, "task",
                        "Try switching the model's pooling_task via --pooler-config.task %s.",
                        task);
    return oai_fail(e, 400, NULL, "task", "Unsupported task: '%.64s' Supported tasks: ('%s',)",
                    task, own);
}

void oai_pool_params(const struct oai_request *r, const struct oai_env *env,
                     struct sl_pooling_params *p)
{
    sl_pooling_params_init(p, NULL);
    p->task = r->api == OAI_EMBEDDINGS ? SL_POOL_EMBED : env->info.task;
    p->dimensions = r->pool.dimensions == SL_NONE ? 0 : r->pool.dimensions;
    if (p->dimensions == 0 && r->pool.dimensions == 0)
        p->dimensions = -1; /* a size that no model has: refused in the engine's words */
    if (r->pool.has_use_activation)
        p->use_activation = r->pool.use_activation;
}

/* ---- prompts -------------------------------------------------------------------------------- */

static bool no_memory(struct oai_error *e)
{
    return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
}

static bool bad_field(struct oai_error *e, const char *field, const char *type, const char *msg)
{
    char param[64];
    snprintf(param, sizeof param, "body.%s", field);
    return oai_fail(e, 400, "Bad Request", param,
                    "1 validation error:\n  {'type': '%s', 'loc': ('body', '%s'), 'msg': '%s'}",
                    type, field, msg);
}

/* What truncate_prompt_tokens leaves of n tokens. */
static bool tokens_kept(const struct oai_request *r, const struct oai_env *env, int n, int *keep,
                        struct oai_error *e)
{
    int max = env->info.max_model_len, asked = r->params.truncate_prompt_tokens;
    if (asked != SL_NONE && asked > max)
        return oai_fail(e, 400, NULL, "truncate_prompt_tokens",
                        "truncate_prompt_tokens value is greater than max_model_len. Please, "
                        "select a smaller truncation size.");
    asked = asked == SL_NONE ? n : asked < 0 ? max : asked;
    *keep = asked < n ? asked : n;
    return true;
}

static bool cuts_left(const struct oai_request *r)
{
    return r->truncation_side && !strcmp(r->truncation_side, "left");
}

/* Of a text: the special tokens around it stay. n_first NULL: no pair. */
static bool cut_text(const struct oai_request *r, const struct oai_env *env, struct oai_prompt *p,
                     size_t n, size_t *n_first, struct oai_error *e)
{
    struct sl_err err = {0};
    int keep = 0;
    p->n_tokens = n > INT_MAX ? INT_MAX : (int)n;
    if (!tokens_kept(r, env, p->n_tokens, &keep, e))
        return false;
    if (r->add_special_tokens &&
        sl_text_truncate(env->text, p->tokens, &n, n_first, (size_t)keep, cuts_left(r), &err))
        return oai_fail_err(e, &err);
    p->n_tokens = n > INT_MAX ? INT_MAX : (int)n;
    p->n_first = n_first ? (int)*n_first : 0;
    return true;
}

/* Cut, if it was not, and measured as vLLM does: a prompt may fill the context. */
static bool fit(const struct oai_request *r, const struct oai_env *env, struct oai_prompt *p,
                struct oai_error *e)
{
    int max = env->info.max_model_len, keep = 0;
    if (!tokens_kept(r, env, p->n_tokens, &keep, e))
        return false;
    if (cuts_left(r))
        memmove(p->tokens, p->tokens + (p->n_tokens - keep), (size_t)keep * sizeof *p->tokens);
    p->n_tokens = keep;
    if (!p->n_tokens)
        return oai_fail(e, 400, NULL, NULL, "The decoder prompt cannot be empty");
    if (p->n_tokens > max)
        return oai_fail(
            e, 400, NULL, "input_tokens",
            "This model's maximum context length is %d tokens. However, you requested 0 "
            "output tokens and your prompt contains %d input tokens, for a total of %d "
            "tokens. Please reduce the length of the input prompt or the number of "
            "requested output tokens.",
            max, p->n_tokens, p->n_tokens);
    return true;
}

static bool need_text(const struct oai_env *env, struct oai_error *e)
{
    return env->text || oai_fail(e, 400, NULL, NULL,
                                 "Unable to get tokenizer because `skip_tokenizer_init=True`");
}

/* A text that no truncation can save is not tokenized: it bounds the time of one prompt. */
static bool check_chars(const struct oai_request *r, const struct oai_env *env, size_t bytes,
                        struct oai_error *e)
{
    size_t max = (size_t)env->info.max_model_len;
    if (!env->max_token_chars || r->params.truncate_prompt_tokens != SL_NONE ||
        bytes / 4 <= env->max_token_chars * max)
        return true;
    return oai_fail(e, 400, NULL, "input_text",
                    "This model's maximum context length is %zu tokens. However, you requested 0 "
                    "output tokens and your prompt contains at least %zu characters (more than %zu "
                    "characters, which is the upper bound for %zu input tokens). Please reduce the "
                    "length of the input prompt or the number of requested output tokens.",
                    max, bytes / 4, env->max_token_chars * max, max);
}

static bool encode_bytes(const struct oai_request *r, const struct oai_env *env, const char *text,
                         size_t bytes, struct oai_prompt *p, struct oai_error *e)
{
    struct sl_err err = {0};
    size_t n = 0;
    if (!check_chars(r, env, bytes, e))
        return false;
    if (sl_text_encode(env->text, text, bytes, r->add_special_tokens, &p->tokens, &n, &err))
        return oai_fail_err(e, &err);
    return cut_text(r, env, p, n, NULL, e) && fit(r, env, p, e);
}

static bool encode(const struct oai_request *r, const struct oai_env *env, const json_t *text,
                   struct oai_prompt *p, struct oai_error *e)
{
    return need_text(env, e) &&
           encode_bytes(r, env, json_string_value(text), json_string_length(text), p, e);
}

static bool encode_pair(const struct oai_request *r, const struct oai_env *env, const json_t *a,
                        const json_t *b, struct oai_prompt *p, struct oai_error *e)
{
    struct sl_err err = {0};
    size_t n = 0, first = 0;
    if (!need_text(env, e) ||
        !check_chars(r, env, json_string_length(a) + json_string_length(b), e))
        return false;
    if (sl_text_encode_pair(env->text, json_string_value(a), json_string_length(a),
                            json_string_value(b), json_string_length(b), &p->tokens, &n, &first,
                            &err))
        return oai_fail_err(e, &err);
    return cut_text(r, env, p, n, &first, e) && fit(r, env, p, e);
}

static bool copy_ids(const struct oai_request *r, const struct oai_env *env, const json_t *list,
                     struct oai_prompt *p, struct oai_error *e)
{
    size_t n = json_array_size(list);
    if (!(p->tokens = mem_alloc(n, sizeof *p->tokens)))
        return no_memory(e);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v))
            return bad_field(e, "input", "int_type", "Input should be a valid integer");
        if (id < 0 || id >= env->info.vocab_size)
            return oai_fail(e, 400, NULL, "input", "Token id %lld is out of vocabulary",
                            (long long)id);
        p->tokens[i] = (int32_t)id;
    }
    p->n_tokens = (int)n; /* a body holds at most OAI_MAX_JSON_VALUES of them */
    return fit(r, env, p, e);
}

static bool make_room(struct oai_request *r, size_t n, const char *field, struct oai_error *e)
{
    if (n > OAI_MAX_CHOICES)
        return oai_fail(e, 400, NULL, field, "at most %d texts are taken at once, got %zu.",
                        OAI_MAX_CHOICES, n);
    r->prompts = arena_alloc(&r->arena, n, sizeof *r->prompts);
    return r->prompts || no_memory(e);
}

/* A string, token ids, or a list of either. */
static bool input_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    const json_t *in = r->pool.input, *first = json_array_get(in, 0);
    bool several = first && !json_is_integer(first);
    size_t n = several ? json_array_size(in) : 1;
    if (json_is_array(in) && !first)
        return oai_fail(e, 400, NULL, "input", "The decoder prompt cannot be empty");
    if (!make_room(r, n, "input", e))
        return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = several ? json_array_get(in, i) : in;
        r->n_prompts = (int)i + 1; /* oai_fini frees what this one has so far */
        if (json_is_string(v) && !encode(r, env, v, &r->prompts[i], e))
            return false;
        if (json_is_array(v) && !copy_ids(r, env, v, &r->prompts[i], e))
            return false;
        if (!json_is_string(v) && !json_is_array(v))
            return bad_field(e, "input", "string_type",
                             "Input should be a string, a list of strings, a list of token ids or "
                             "a list of such lists");
    }
    return true;
}

/* Chat messages as the template writes them: one prompt. */
static bool message_prompt(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!need_text(env, e) || !make_room(r, 1, "messages", e))
        return false;
    r->n_prompts = 1;
    return oai_render(r, env, e) &&
           encode_bytes(r, env, r->rendered, r->rendered_bytes, &r->prompts[0], e);
}

/* ---- pairs as a prompt ---------------------------------------------------------------------- */

/* What the template of a pair sees beside it; NULL: *e says why not. */
static char *pair_vars(const struct oai_request *r, struct oai_error *e)
{
    static const char *const fixed[] = {"chat_template", "tools", "tokenize"};
    for (int i = 0; i < 3; i++)
        if (json_object_get(r->chat_template_kwargs, fixed[i])) {
            oai_fail(e, 400, NULL, NULL,
                     "chat_template_kwargs contains reserved keys that conflict with fixed scorer "
                     "arguments: {'%s'}",
                     fixed[i]);
            return NULL;
        }
    json_t *vars = json_object();
    if (r->pool.instruction) /* the general field goes before the short one */
        json_object_set_new(vars, "instruction", json_string(r->pool.instruction));
    json_object_update(vars, r->chat_template_kwargs);
    char *text = json_dumps(vars, JSON_COMPACT);
    json_decref(vars);
    if (!text)
        no_memory(e);
    return text;
}

/* The pair as one text. vars: pair_vars(), if it is rendered. */
static bool one_text(const struct oai_request *r, const struct oai_env *env, const json_t *a,
                     const json_t *b, const char *vars, struct oai_prompt *p, struct oai_error *e)
{
    char *text = NULL;
    size_t bytes = 0;
    struct sl_err err = {0};
    bool ok = !sl_text_pair(env->text, json_string_value(a), json_string_length(a),
                            json_string_value(b), json_string_length(b), vars, &text, &bytes, &err);
    ok = ok ? encode_bytes(r, env, text, bytes, p, e) : oai_fail_err(e, &err);
    sl_free(text);
    return ok;
}

/* ---- pairs ---------------------------------------------------------------------------------- */

/* Under the first of the names that clients use. */
static const json_t *first_side(const struct oai_pool *p)
{
    return p->query ? p->query : p->queries ? p->queries : p->data_1 ? p->data_1 : p->text_1;
}

static const json_t *second_side(const struct oai_pool *p)
{
    if (p->documents && (p->query || p->queries))
        return p->documents;
    return p->queries && p->items ? p->items : p->data_1 ? p->data_2 : p->text_2;
}

static size_t side_size(const json_t *side)
{
    return json_is_array(side) ? json_array_size(side) : 1;
}

static const json_t *side_at(const json_t *side, size_t i)
{
    return json_is_array(side) ? json_array_get(side, i) : side;
}

static bool check_side(const json_t *side, const char *field, struct oai_error *e)
{
    for (size_t i = 0; i < side_size(side); i++)
        if (!json_is_string(side_at(side, i)))
            return bad_field(e, field, "string_type", "Input should be a valid string");
    return true;
}

static bool check_pairs(const struct oai_request *r, const json_t *a, const json_t *b,
                        struct oai_error *e)
{
    if (!a || !b)
        return bad_field(e, a ? "documents" : "queries", "missing", "Field required");
    if (!check_side(a, r->api == OAI_RERANK ? "query" : "queries", e) ||
        !check_side(b, "documents", e))
        return false;
    if (r->api == OAI_RERANK && json_is_array(a))
        return bad_field(e, "query", "string_type", "Input should be a valid string");
    size_t n = side_size(a), m = side_size(b);
    if (n > 1 && n != m)
        return oai_fail(e, 400, NULL, NULL, "Input lengths must be either 1:1, 1:N or N:N");
    if (n == 0)
        return oai_fail(e, 400, NULL, NULL, "At least one text element must be given");
    if (m == 0)
        return oai_fail(e, 400, NULL, NULL, "At least one text_pair element must be given");
    return true;
}

/* max_tokens_per_query and max_tokens_per_doc; 0: none. */
static bool check_limit(const struct oai_env *env, int limit, const char *name, struct oai_error *e)
{
    int max = env->info.max_model_len;
    if (limit < 0)
        return oai_fail(e, 400, NULL, name, "%s must be a non-negative integer", name);
    if (limit && limit >= max)
        return oai_fail(e, 400, NULL, name, "%s (%d) must be less than max_model_len (%d).", name,
                        limit, max);
    return true;
}

/* The text's first `limit` tokens, as text; a new reference, NULL: *e says why not. */
static json_t *cut_to(const struct oai_env *env, const json_t *text, int limit, struct oai_error *e)
{
    struct sl_err err = {0};
    int32_t *ids = NULL;
    char *kept = NULL;
    size_t n = 0, bytes = 0;
    json_t *out = NULL;
    if (sl_text_encode(env->text, json_string_value(text), json_string_length(text), false, &ids,
                       &n, &err))
        oai_fail_err(e, &err);
    else if (n <= (size_t)limit)
        out = json_incref((json_t *)text);
    else if (sl_text_decode(env->text, ids, (size_t)limit, false, &kept, &bytes, &err))
        oai_fail_err(e, &err);
    else if (!(out = json_stringn_nocheck(kept, bytes)))
        no_memory(e);
    sl_free(ids);
    sl_free(kept);
    return out;
}

/* The texts of one side as a new list, each cut to `limit` tokens if that is not 0. */
static json_t *side_texts(const struct oai_request *r, const struct oai_env *env,
                          const json_t *side, int limit, struct oai_error *e)
{
    json_t *list = json_array();
    for (size_t i = 0; i < side_size(side); i++) {
        json_t *text = (json_t *)side_at(side, i);
        bool may_be_long = check_chars(r, env, json_string_length(text), e);
        text = !may_be_long ? NULL : limit ? cut_to(env, text, limit, e) : json_incref(text);
        if (!text || json_array_append_new(list, text)) {
            if (text)
                no_memory(e);
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* A query is read again with each of its documents, and so are the template's variables: a small
 * body can ask for much. */
static bool check_work(const json_t *a, const json_t *b, size_t vars_bytes, struct oai_error *e)
{
    size_t n = side_size(a), m = side_size(b), bytes = 0;
    for (size_t i = 0; i < m && bytes <= OAI_MAX_PAIR_BYTES; i++)
        bytes += json_string_length(side_at(a, n > 1 ? i : 0)) + json_string_length(side_at(b, i)) +
                 vars_bytes;
    return bytes <= OAI_MAX_PAIR_BYTES ||
           oai_fail(e, 400, NULL, "documents",
                    "the texts of all pairs have more than %d bytes together; send fewer documents "
                    "at a time.",
                    OAI_MAX_PAIR_BYTES);
}

/* By a head: each pair is a prompt. */
static bool head_prompts(struct oai_request *r, const struct oai_env *env, const json_t *a,
                         const json_t *b, struct oai_error *e)
{
    size_t n = side_size(a), m = side_size(b);
    bool one = env->info.renders_pairs || env->info.joins_pairs;
    char *vars = env->info.renders_pairs ? pair_vars(r, e) : NULL;
    bool ok = (vars || !env->info.renders_pairs) && check_work(a, b, vars ? strlen(vars) : 0, e) &&
              make_room(r, m, "documents", e);
    for (size_t i = 0; ok && i < m; i++) {
        const json_t *first = side_at(a, n > 1 ? i : 0), *second = side_at(b, i);
        struct oai_prompt *p = &r->prompts[i];
        r->n_prompts = (int)i + 1;
        ok = one ? one_text(r, env, first, second, vars, p, e)
                 : encode_pair(r, env, first, second, p, e);
    }
    free(vars);
    return ok;
}

/* By vectors: first the queries', then the documents'. */
static bool vector_prompts(struct oai_request *r, const struct oai_env *env, const json_t *a,
                           const json_t *b, struct oai_error *e)
{
    size_t n = side_size(a), m = side_size(b);
    if (!make_room(r, n + m, "documents", e))
        return false;
    r->pool.n_queries = (int)n;
    for (size_t i = 0; i < n + m; i++) {
        r->n_prompts = (int)i + 1;
        if (!encode(r, env, i < n ? side_at(a, i) : side_at(b, i - n), &r->prompts[i], e))
            return false;
    }
    return true;
}

static bool pair_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    const struct oai_pool *p = &r->pool;
    const json_t *a = first_side(p), *b = second_side(p);
    if (!check_pairs(r, a, b, e) ||
        !check_limit(env, p->max_tokens_per_query, "max_tokens_per_query", e) ||
        !check_limit(env, p->max_tokens_per_doc, "max_tokens_per_doc", e) || !need_text(env, e))
        return false;
    json_t *queries = side_texts(r, env, a, p->max_tokens_per_query, e);
    json_t *documents = queries ? side_texts(r, env, b, p->max_tokens_per_doc, e) : NULL;
    bool head = env->info.task == SL_POOL_CLASSIFY;
    bool ok = documents && (head ? head_prompts(r, env, queries, documents, e)
                                 : vector_prompts(r, env, queries, documents, e));
    json_decref(queries);
    json_decref(documents);
    return ok;
}

bool oai_pool_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!check_words(r, e) || !check_task(r, env, e))
        return false;
    return r->api & OAI_PAIRS ? pair_prompts(r, env, e)
           : r->pool.input    ? input_prompts(r, env, e)
                              : message_prompt(r, env, e);
}

/* ---- numbers -------------------------------------------------------------------------------- */

static void put_floats(struct strbuf *b, const float *v, int n)
{
    strbuf_addc(b, '[');
    for (int i = 0; i < n; i++)
        strbuf_addf(b, "%s%.9g", i ? "," : "", (double)v[i]);
    strbuf_addc(b, ']');
}

/* One value as bytes. */
static int value_bytes(const struct oai_pool *p, float v, unsigned char out[4])
{
    uint32_t bits;
    int n = 4;
    memcpy(&bits, &v, sizeof bits);
    if (p->embed_dtype && strcmp(p->embed_dtype, "float32")) {
        bits = !strcmp(p->embed_dtype, "float16") ? f32_f16(v) : f32_bf16(v);
        n = 2;
    }
    bool big = p->endianness && !strcmp(p->endianness, "big");
    for (int i = 0; i < n; i++)
        out[big ? n - 1 - i : i] = (unsigned char)(bits >> 8 * i);
    return n;
}

static void put_base64(struct strbuf *b, const struct oai_pool *p, const float *v, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char group[8];
    int held = 0;
    strbuf_addc(b, '"');
    for (size_t i = 0; i <= n; i++) {
        if (i < n)
            held += value_bytes(p, v[i], group + held);
        for (; held >= 3 || (i == n && held > 0);) {
            for (int k = held; k < 3; k++)
                group[k] = 0;
            uint32_t w = (uint32_t)group[0] << 16 | (uint32_t)group[1] << 8 | group[2];
            for (int k = 0; k < 4; k++)
                strbuf_addc(b, k <= held ? digit[w >> (18 - 6 * k) & 63] : '=');
            int left = held > 3 ? held - 3 : 0;
            memmove(group, group + 3, (size_t)left);
            held = left;
        }
    }
    strbuf_addc(b, '"');
}

/* ---- answers -------------------------------------------------------------------------------- */

static void put_head(struct strbuf *b, const struct oai_env *env, const char *prefix,
                     const char *id, int64_t created)
{
    struct strbuf full;
    strbuf_init(&full, 1024);
    strbuf_addf(&full, "%s-%s", prefix, id);
    strbuf_adds(b, "{\"id\":");
    json_put_lossy(b, full.data ? full.data : "", full.len);
    strbuf_fini(&full);
    if (created)
        strbuf_addf(b, ",\"object\":\"list\",\"created\":%lld", (long long)created);
    strbuf_adds(b, ",\"model\":");
    json_put_lossy(b, env->info.served_names[0], strlen(env->info.served_names[0]));
}

static void put_usage(struct strbuf *b, long long prompt, bool all)
{
    strbuf_addf(b, ",\"usage\":{\"prompt_tokens\":%lld,\"total_tokens\":%lld%s}", prompt, prompt,
                all ? ",\"completion_tokens\":0,\"prompt_tokens_details\":null" : "");
}

static long long all_tokens(const struct oai_request *r)
{
    long long n = 0;
    for (int i = 0; i < r->n_prompts; i++)
        n += r->prompts[i].n_tokens;
    return n;
}

static void put_vector(struct strbuf *b, const struct oai_request *r, const float *v, int rows,
                       int cols)
{
    if (r->pool.encoding_format && !strcmp(r->pool.encoding_format, "base64")) {
        put_base64(b, &r->pool, v, (size_t)rows * (size_t)cols);
        return;
    }
    bool list = r->api == OAI_POOLING && rows != 1;
    if (list)
        strbuf_addc(b, '[');
    for (int i = 0; i < rows; i++) {
        if (i)
            strbuf_addc(b, ',');
        put_floats(b, v + (size_t)i * (size_t)cols, cols);
    }
    if (list)
        strbuf_addc(b, ']');
}

static void put_class(struct strbuf *b, const struct oai_env *env, const float *v, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    strbuf_adds(b, ",\"label\":");
    json_put_cstr(b, env->info.labels ? env->info.labels[best] : NULL);
    strbuf_adds(b, ",\"probs\":");
    put_floats(b, v, n);
    strbuf_addf(b, ",\"num_classes\":%d}", n);
}

static void inputs_body(const struct oai_request *r, const struct oai_env *env,
                        struct sl_request *const *reqs, const char *id, int64_t created,
                        struct strbuf *b)
{
    const char *prefix = r->api == OAI_EMBEDDINGS ? "embd"
                         : r->api == OAI_POOLING  ? "pool"
                                                  : "classify";
    put_head(b, env, prefix, id, created);
    strbuf_adds(b, ",\"data\":[");
    for (int i = 0; i < r->n_prompts; i++) {
        int rows = 0, cols = 0;
        const float *v = sl_request_pooled(reqs[i], &rows, &cols);
        strbuf_addf(b, "%s{\"index\":%d", i ? "," : "", i);
        if (r->api == OAI_CLASSIFY) {
            put_class(b, env, v, cols);
            continue;
        }
        strbuf_adds(b, r->api == OAI_EMBEDDINGS ? ",\"object\":\"embedding\",\"embedding\":"
                                                : ",\"object\":\"pooling\",\"data\":");
        put_vector(b, r, v, rows, cols);
        strbuf_addc(b, '}');
    }
    strbuf_addc(b, ']');
    put_usage(b, all_tokens(r), true);
    strbuf_addc(b, '}');
}

static double cosine(const float *a, const float *b, int n)
{
    double ab = 0, aa = 0, bb = 0;
    for (int i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    double length = sqrt(aa) * sqrt(bb);
    return ab / (length > 1e-8 ? length : 1e-8);
}

/* Of document i; *tokens: what its pair counts as. */
static double pair_score(const struct oai_request *r, struct sl_request *const *reqs, int i,
                         long long *tokens)
{
    int rows, cols, queries = r->pool.n_queries;
    if (!queries) {
        *tokens = r->prompts[i].n_tokens;
        return (double)sl_request_pooled(reqs[i], &rows, &cols)[0];
    }
    int q = queries > 1 ? i : 0;
    const float *a = sl_request_pooled(reqs[q], &rows, &cols);
    const float *v = sl_request_pooled(reqs[queries + i], &rows, &cols);
    *tokens = (long long)r->prompts[q].n_tokens + r->prompts[queries + i].n_tokens;
    return cosine(a, v, cols);
}

struct ranked {
    int index;
    double score;
};

static int by_score(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index - y->index;
}

static void put_ranking(const struct oai_request *r, struct ranked *list, int n, struct strbuf *b)
{
    int top = r->pool.top_n > 0 && r->pool.top_n < n ? r->pool.top_n : n;
    qsort(list, (size_t)n, sizeof *list, by_score);
    strbuf_adds(b, ",\"results\":[");
    for (int i = 0; i < top; i++) {
        const json_t *doc = side_at(second_side(&r->pool), (size_t)list[i].index);
        strbuf_addf(b, "%s{\"index\":%d,\"document\":{\"text\":", i ? "," : "", list[i].index);
        json_put_lossy(b, json_string_value(doc), json_string_length(doc));
        strbuf_addf(b, ",\"multi_modal\":null},\"relevance_score\":%.9g}", list[i].score);
    }
    strbuf_adds(b, "]}");
}

static void pairs_body(const struct oai_request *r, const struct oai_env *env,
                       struct sl_request *const *reqs, const char *id, int64_t created,
                       struct strbuf *b)
{
    int n = r->n_prompts - r->pool.n_queries;
    bool ranks = r->api == OAI_RERANK;
    long long total = 0, tokens = 0;
    struct ranked *list = mem_alloc((size_t)n, sizeof *list);
    put_head(b, env, "score", id, ranks ? 0 : created);
    if (!ranks)
        strbuf_adds(b, ",\"data\":[");
    for (int i = 0; list && i < n; i++) {
        list[i] = (struct ranked){.index = i, .score = pair_score(r, reqs, i, &tokens)};
        total += tokens;
        if (!ranks)
            strbuf_addf(b, "%s{\"index\":%d,\"object\":\"score\",\"score\":%.9g}", i ? "," : "", i,
                        list[i].score);
    }
    b->failed = b->failed || !list;
    if (!ranks)
        strbuf_addc(b, ']');
    put_usage(b, total, !ranks);
    if (ranks && list)
        put_ranking(r, list, n, b);
    else
        strbuf_addc(b, '}');
    mem_free(list);
}

void oai_pool_body(const struct oai_request *r, const struct oai_env *env,
                   struct sl_request *const *reqs, const char *id, int64_t created,
                   struct strbuf *out)
{
    if (r->api & OAI_PAIRS)
        pairs_body(r, env, reqs, id, created, out);
    else
        inputs_body(r, env, reqs, id, created, out);
}
