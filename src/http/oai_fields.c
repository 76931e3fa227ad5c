/* oai_fields.c - every field a request may have: its name, its type, its range, where it goes.
 *
 * A field that is absent or null keeps its default. Types are as lax as vLLM's: "5" and 5.0 are
 * integers, 1 and "true" are booleans. Unknown fields are ignored. All mistakes of a body are
 * reported together, in the form of vLLM's schema errors.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum field_type {
    T_BOOL,
    T_INT,   /* clamped to int: who asks for 2^40 tokens means "many" */
    T_INT64, /* exact */
    T_FLOAT,
    T_STRING,
    T_STRINGS, /* list of strings; count beside it */
    T_INTS,    /* list of token ids; count beside it */
    T_OBJECT,  /* kept as JSON */
    T_LIST,
    T_ANY
};

struct field {
    const char *name;
    unsigned apis;
    enum field_type type;
    size_t to, count;
    int64_t min, max; /* T_INT, T_INT64 */
};

#define AT(member) offsetof(struct oai_request, member)
#define PARAM(member) AT(params.member)
#define INTS INT64_MIN, INT64_MAX
#define MODELS (OAI_GENERATE | OAI_POOLS | OAI_TOKENIZE | OAI_DETOKENIZE)
#define POOL(member) AT(pool.member)
#define CHATS (OAI_CHAT | OAI_TOKENIZE)
#define MESSAGES (CHATS | OAI_INPUTS)

static const struct field fields[] = {
    {"model", MODELS, T_STRING, AT(model), 0, 0, 0},
    {"prompt", OAI_COMPLETIONS | OAI_TOKENIZE, T_ANY, AT(prompt), 0, 0, 0},
    {"messages", MESSAGES, T_LIST, AT(messages), 0, 0, 0},
    {"tokens", OAI_DETOKENIZE, T_INTS, AT(tokens), AT(n_tokens), 0, 0},
    {"echo", OAI_GENERATE, T_BOOL, AT(echo), 0, 0, 0},
    {"frequency_penalty", OAI_GENERATE, T_FLOAT, PARAM(frequency_penalty), 0, 0, 0},
    {"logit_bias", OAI_GENERATE, T_OBJECT, AT(logit_bias), 0, 0, 0},
    {"logprobs", OAI_COMPLETIONS, T_INT, AT(logprobs_count), 0, INTS},
    {"logprobs", OAI_CHAT, T_BOOL, AT(logprobs_flag), 0, 0, 0},
    {"top_logprobs", OAI_CHAT, T_INT, AT(top_logprobs), 0, INTS},
    {"max_tokens", OAI_GENERATE, T_INT, AT(max_tokens), 0, INTS},
    {"max_completion_tokens", OAI_CHAT, T_INT, AT(max_completion_tokens), 0, INTS},
    {"n", OAI_GENERATE, T_INT, PARAM(n), 0, INTS},
    {"presence_penalty", OAI_GENERATE, T_FLOAT, PARAM(presence_penalty), 0, 0, 0},
    {"seed", OAI_GENERATE, T_INT64, PARAM(seed), PARAM(has_seed), INTS},
    {"stop", OAI_GENERATE, T_ANY, AT(stop), 0, 0, 0},
    {"stream", OAI_GENERATE, T_BOOL, AT(stream), 0, 0, 0},
    {"stream_options", OAI_GENERATE, T_OBJECT, AT(stream_options), 0, 0, 0},
    {"suffix", OAI_COMPLETIONS, T_STRING, AT(suffix), 0, 0, 0},
    {"temperature", OAI_GENERATE, T_FLOAT, PARAM(temperature), 0, 0, 0},
    {"top_p", OAI_GENERATE, T_FLOAT, PARAM(top_p), 0, 0, 0},
    {"best_of", OAI_GENERATE, T_INT, PARAM(best_of), 0, INTS},
    {"use_beam_search", OAI_GENERATE, T_BOOL, PARAM(use_beam_search), 0, 0, 0},
    {"length_penalty", OAI_GENERATE, T_FLOAT, PARAM(length_penalty), 0, 0, 0},
    {"early_stopping", OAI_GENERATE, T_ANY, AT(early_stopping), 0, 0, 0},
    {"top_k", OAI_GENERATE, T_INT, PARAM(top_k), 0, INTS},
    {"min_p", OAI_GENERATE, T_FLOAT, PARAM(min_p), 0, 0, 0},
    {"repetition_penalty", OAI_GENERATE, T_FLOAT, PARAM(repetition_penalty), 0, 0, 0},
    {"stop_token_ids", OAI_GENERATE, T_INTS, PARAM(stop_token_ids), PARAM(n_stop_token_ids), 0, 0},
    {"include_stop_str_in_output", OAI_GENERATE, T_BOOL, PARAM(include_stop_str_in_output), 0, 0,
     0},
    {"ignore_eos", OAI_GENERATE, T_BOOL, PARAM(ignore_eos), 0, 0, 0},
    {"min_tokens", OAI_GENERATE, T_INT, PARAM(min_tokens), 0, INTS},
    {"skip_special_tokens", OAI_GENERATE, T_BOOL, PARAM(skip_special_tokens), 0, 0, 0},
    {"spaces_between_special_tokens", OAI_GENERATE, T_BOOL, PARAM(spaces_between_special_tokens), 0,
     0, 0},
    {"truncate_prompt_tokens", OAI_GENERATE | OAI_POOLS, T_INT, PARAM(truncate_prompt_tokens), 0,
     -1, INT64_MAX},
    {"truncation_side", OAI_GENERATE | OAI_POOLS, T_STRING, AT(truncation_side), 0, 0, 0},
    {"allowed_token_ids", OAI_GENERATE, T_INTS, PARAM(allowed_token_ids),
     PARAM(n_allowed_token_ids), 0, 0},
    {"prompt_logprobs", OAI_GENERATE, T_INT, PARAM(prompt_logprobs), 0, INTS},
    {"logprob_token_ids", OAI_GENERATE, T_INTS, PARAM(logprob_token_ids),
     PARAM(n_logprob_token_ids), 0, 0},
    {"bad_words", OAI_GENERATE, T_STRINGS, PARAM(bad_words), PARAM(n_bad_words), 0, 0},
    {"add_special_tokens", OAI_GENERATE | OAI_INPUTS | OAI_TOKENIZE, T_BOOL, AT(add_special_tokens),
     0, 0, 0},
    {"response_format", OAI_GENERATE, T_OBJECT, AT(response_format), 0, 0, 0},
    {"structured_outputs", OAI_GENERATE, T_OBJECT, AT(structured_outputs), 0, 0, 0},
    {"priority", OAI_GENERATE | OAI_POOLS, T_INT, AT(priority), 0, INTS},
    {"request_id", OAI_GENERATE | OAI_POOLS, T_STRING, AT(request_id), 0, 0, 0},
    {"return_tokens_as_token_ids", OAI_GENERATE, T_BOOL, AT(return_tokens_as_token_ids), 0, 0, 0},
    {"return_token_ids", OAI_GENERATE, T_BOOL, AT(return_token_ids), 0, 0, 0},
    {"return_prompt_text", OAI_CHAT, T_BOOL, AT(return_prompt_text), 0, 0, 0},
    {"return_token_strs", OAI_TOKENIZE, T_BOOL, AT(return_token_strs), 0, 0, 0},
    {"cache_salt", OAI_GENERATE | OAI_POOLS, T_STRING, AT(cache_salt), 0, 0, 0},
    {"kv_transfer_params", OAI_GENERATE, T_OBJECT, AT(kv_transfer_params), 0, 0, 0},
    {"ec_transfer_params", OAI_GENERATE, T_OBJECT, AT(ec_transfer_params), 0, 0, 0},
    {"vllm_xargs", OAI_GENERATE, T_OBJECT, AT(vllm_xargs), 0, 0, 0},
    {"repetition_detection", OAI_GENERATE, T_OBJECT, AT(repetition_detection), 0, 0, 0},
    {"thinking_token_budget", OAI_GENERATE, T_INT, AT(thinking_token_budget), 0, INTS},
    {"stream_interval", OAI_GENERATE, T_INT, PARAM(stream_interval), 0, 1, INT64_MAX},
    {"prompt_embeds", OAI_COMPLETIONS, T_ANY, AT(prompt_embeds), 0, 0, 0},
    {"tools", CHATS, T_LIST, AT(tools), 0, 0, 0},
    {"tool_choice", OAI_CHAT, T_ANY, AT(tool_choice), 0, 0, 0},
    {"parallel_tool_calls", OAI_CHAT, T_BOOL, AT(parallel_tool_calls), 0, 0, 0},
    {"include_reasoning", OAI_CHAT, T_BOOL, AT(include_reasoning), 0, 0, 0},
    {"reasoning_effort", OAI_CHAT, T_STRING, AT(reasoning_effort), 0, 0, 0},
    {"add_generation_prompt", MESSAGES, T_BOOL, AT(add_generation_prompt),
     AT(has_add_generation_prompt), 0, 0},
    {"continue_final_message", MESSAGES, T_BOOL, AT(continue_final_message), 0, 0, 0},
    {"documents", OAI_CHAT, T_LIST, AT(documents), 0, 0, 0},
    {"input", OAI_INPUTS, T_ANY, POOL(input), 0, 0, 0},
    {"encoding_format", OAI_EMBEDDINGS | OAI_POOLING, T_STRING, POOL(encoding_format), 0, 0, 0},
    {"embed_dtype", OAI_EMBEDDINGS | OAI_POOLING, T_STRING, POOL(embed_dtype), 0, 0, 0},
    {"endianness", OAI_EMBEDDINGS | OAI_POOLING, T_STRING, POOL(endianness), 0, 0, 0},
    {"dimensions", OAI_EMBEDDINGS | OAI_POOLING, T_INT, POOL(dimensions), 0, INTS},
    {"use_activation", OAI_POOLS, T_BOOL, POOL(use_activation), POOL(has_use_activation), 0, 0},
    {"normalize", OAI_POOLS, T_ANY, POOL(normalize), 0, 0, 0},
    {"task", OAI_POOLING, T_STRING, POOL(task), 0, 0, 0},
    {"query", OAI_RERANK, T_ANY, POOL(query), 0, 0, 0},
    {"queries", OAI_SCORE, T_ANY, POOL(queries), 0, 0, 0},
    {"documents", OAI_PAIRS, T_ANY, POOL(documents), 0, 0, 0},
    {"items", OAI_SCORE, T_ANY, POOL(items), 0, 0, 0},
    {"data_1", OAI_SCORE, T_ANY, POOL(data_1), 0, 0, 0},
    {"data_2", OAI_SCORE, T_ANY, POOL(data_2), 0, 0, 0},
    {"text_1", OAI_SCORE, T_ANY, POOL(text_1), 0, 0, 0},
    {"text_2", OAI_SCORE, T_ANY, POOL(text_2), 0, 0, 0},
    {"instruction", OAI_PAIRS, T_STRING, POOL(instruction), 0, 0, 0},
    {"top_n", OAI_RERANK, T_INT, POOL(top_n), 0, 0, INT64_MAX},
    {"max_tokens_per_query", OAI_PAIRS, T_INT, POOL(max_tokens_per_query), 0, INTS},
    {"max_tokens_per_doc", OAI_PAIRS, T_INT, POOL(max_tokens_per_doc), 0, INTS},
    {"chat_template", MESSAGES, T_STRING, AT(chat_template), 0, 0, 0},
    {"chat_template_kwargs", MESSAGES | OAI_PAIRS, T_OBJECT, AT(chat_template_kwargs), 0, 0, 0},
};

enum { N_FIELDS = sizeof fields / sizeof fields[0], MAX_REPORTED = 8 };

const char *oai_field_name(enum oai_api api, int i)
{
    for (int f = 0; f < N_FIELDS; f++)
        if (fields[f].apis & api && i-- == 0)
            return fields[f].name;
    return NULL;
}

/* The mistakes of one body. */
struct complaints {
    struct strbuf text;
    int n;
    char first[64];
};

static void complain(struct complaints *c, const char *name, int item, const char *type,
                     const char *msg)
{
    char at[24] = "";
    if (item >= 0)
        snprintf(at, sizeof at, ".%d", item);
    if (c->n++ == 0)
        snprintf(c->first, sizeof c->first, "body.%s%s", name, at);
    if (c->n > MAX_REPORTED)
        return;
    strbuf_addf(&c->text, "\n  {'type': '%s', 'loc': ('body', '%s'", type, name);
    if (item >= 0)
        strbuf_addf(&c->text, ", %d", item);
    strbuf_addf(&c->text, "), 'msg': '%s'}", msg);
}

static void *field_at(struct oai_request *r, size_t offset)
{
    return (char *)r + offset;
}

/* A string as a number, all of it. */
static bool parse_number(const json_t *v, double *d)
{
    const char *s = json_string_value(v);
    char *end;
    if (!*s || strlen(s) > 64 || s[strspn(s, "+-.0123456789eE")])
        return false; /* neither hex nor "inf" nor "nan" */
    *d = strtod(s, &end);
    return end != s && !*end;
}

static bool to_int(const json_t *v, int64_t *out, const char **type, const char **msg)
{
    *type = "int_type";
    *msg = "Input should be a valid integer";
    double d;
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    } else if (json_is_boolean(v)) {
        *out = json_is_true(v);
        return true;
    } else if (json_is_real(v)) {
        d = json_real_value(v);
    } else if (json_is_string(v)) {
        *type = "int_parsing";
        *msg = "Input should be a valid integer, unable to parse string as an integer";
        if (!parse_number(v, &d))
            return false;
    } else {
        return false;
    }
    if (d != floor(d) || fabs(d) >= 9.2e18) {
        *type = "int_from_float";
        *msg = "Input should be a valid integer, got a number with a fractional part";
        return false;
    }
    *out = (int64_t)d;
    return true;
}

static bool to_float(const json_t *v, float *out, const char **type, const char **msg)
{
    *type = "float_type";
    *msg = "Input should be a valid number";
    double d;
    if (json_is_number(v)) {
        d = json_number_value(v);
    } else if (json_is_boolean(v)) {
        d = json_is_true(v);
    } else if (json_is_string(v)) {
        *type = "float_parsing";
        *msg = "Input should be a valid number, unable to parse string as a number";
        if (!parse_number(v, &d))
            return false;
    } else {
        return false;
    }
    *out = (float)d;
    return true;
}

static bool to_bool(const json_t *v, bool *out, const char **type, const char **msg)
{
    static const char *const yes[] = {"1", "true", "t", "yes", "y", "on"};
    static const char *const no[] = {"0", "false", "f", "no", "n", "off"};
    *type = "bool_type";
    *msg = "Input should be a valid boolean";
    if (json_is_boolean(v)) {
        *out = json_is_true(v);
        return true;
    }
    double d = json_is_number(v) ? json_number_value(v) : -1;
    if (d == 0 || d == 1) {
        *out = d == 1;
        return true;
    }
    *type = "bool_parsing";
    *msg = "Input should be a valid boolean, unable to interpret input";
    for (size_t i = 0; json_is_string(v) && i < sizeof yes / sizeof yes[0]; i++) {
        if (!strcasecmp(json_string_value(v), yes[i]))
            return *out = true;
        if (!strcasecmp(json_string_value(v), no[i])) {
            *out = false;
            return true;
        }
    }
    return false;
}

/* A string that C may borrow: without NUL inside. */
static bool to_string(const json_t *v, const char **out, const char **type, const char **msg)
{
    *type = "string_type";
    *msg = "Input should be a valid string";
    if (!json_is_string(v))
        return false;
    *msg = "Input should be a string without NUL characters";
    *out = json_string_value(v);
    return strlen(*out) == json_string_length(v);
}

static int clamp_int(int64_t v)
{
    /* SL_NONE stands for "absent", so the smallest int is not a value */
    return v > INT_MAX ? INT_MAX : v <= INT_MIN ? INT_MIN + 1 : (int)v;
}

static void apply_int(struct oai_request *r, const struct field *f, const json_t *v,
                      struct complaints *c)
{
    int64_t i;
    const char *type, *msg;
    if (!to_int(v, &i, &type, &msg)) {
        complain(c, f->name, -1, type, msg);
        return;
    }
    if (i < f->min) {
        char text[96];
        snprintf(text, sizeof text, "Input should be greater than or equal to %lld",
                 (long long)f->min);
        complain(c, f->name, -1, "greater_than_equal", text);
        return;
    }
    if (f->type == T_INT)
        *(int *)field_at(r, f->to) = clamp_int(i);
    else
        *(int64_t *)field_at(r, f->to) = i;
}

static void apply_ints(struct oai_request *r, const struct field *f, const json_t *v,
                       struct complaints *c)
{
    if (!json_is_array(v)) {
        complain(c, f->name, -1, "list_type", "Input should be a valid list");
        return;
    }
    size_t n = json_array_size(v);
    int32_t *ids = arena_alloc(&r->arena, n, sizeof *ids);
    for (size_t i = 0; ids && i < n; i++) {
        int64_t id;
        const char *type, *msg;
        if (!to_int(json_array_get(v, i), &id, &type, &msg)) {
            complain(c, f->name, (int)i, type, msg);
            return;
        }
        ids[i] = clamp_int(id); /* outside the vocabulary stays outside */
    }
    if (!ids) {
        complain(c, f->name, -1, "list_type", "no memory for so long a list");
        return;
    }
    *(const int32_t **)field_at(r, f->to) = ids;
    *(int *)field_at(r, f->count) = (int)n;
}

static void apply_strings(struct oai_request *r, const struct field *f, const json_t *v,
                          struct complaints *c)
{
    if (!json_is_array(v)) {
        complain(c, f->name, -1, "list_type", "Input should be a valid list");
        return;
    }
    size_t n = json_array_size(v);
    const char **list = arena_alloc(&r->arena, n, sizeof *list);
    for (size_t i = 0; list && i < n; i++) {
        const char *type, *msg;
        if (!to_string(json_array_get(v, i), &list[i], &type, &msg)) {
            complain(c, f->name, (int)i, type, msg);
            return;
        }
    }
    if (!list) {
        complain(c, f->name, -1, "list_type", "no memory for so long a list");
        return;
    }
    *(const char ***)field_at(r, f->to) = list;
    *(int *)field_at(r, f->count) = (int)n;
}

static void apply(struct oai_request *r, const struct field *f, json_t *v, struct complaints *c)
{
    const char *type = NULL, *msg = NULL;
    bool ok = true;
    switch (f->type) {
    case T_BOOL:
        ok = to_bool(v, field_at(r, f->to), &type, &msg);
        break;
    case T_INT:
    case T_INT64:
        apply_int(r, f, v, c);
        break;
    case T_FLOAT:
        ok = to_float(v, field_at(r, f->to), &type, &msg);
        break;
    case T_STRING:
        ok = to_string(v, field_at(r, f->to), &type, &msg);
        break;
    case T_STRINGS:
        apply_strings(r, f, v, c);
        return;
    case T_INTS:
        apply_ints(r, f, v, c);
        return;
    case T_OBJECT:
        ok = json_is_object(v);
        type = "dict_type";
        msg = "Input should be a valid dictionary";
        break;
    case T_LIST:
        ok = json_is_array(v);
        type = "list_type";
        msg = "Input should be a valid list";
        break;
    case T_ANY:
        break;
    }
    if (!ok) {
        complain(c, f->name, -1, type, msg);
        return;
    }
    if (f->type >= T_OBJECT)
        *(json_t **)field_at(r, f->to) = v;
    else if (f->count) /* a presence flag beside a scalar */
        *(bool *)field_at(r, f->count) = true;
}

static void require(struct oai_request *r, struct complaints *c)
{
    if (r->api == OAI_CHAT && !r->messages)
        complain(c, "messages", -1, "missing", "Field required");
    if (r->api == OAI_TOKENIZE && !r->messages && !r->prompt)
        complain(c, "prompt", -1, "missing", "Field required");
    if (r->api & OAI_INPUTS && !r->pool.input && !r->messages)
        complain(c, "input", -1, "missing", "Field required");
    if (r->api == OAI_RERANK && !r->pool.query)
        complain(c, "query", -1, "missing", "Field required");
    if (r->api == OAI_RERANK && !r->pool.documents)
        complain(c, "documents", -1, "missing", "Field required");
    if (r->api == OAI_DETOKENIZE && !r->tokens)
        complain(c, "tokens", -1, "missing", "Field required");
}

bool oai_fields_apply(struct oai_request *r, const json_t *body, struct oai_error *e)
{
    struct complaints c = {0};
    strbuf_init(&c.text, 8192);
    for (int i = 0; i < N_FIELDS; i++) {
        const struct field *f = &fields[i];
        json_t *v = f->apis & r->api ? json_object_get(body, f->name) : NULL;
        if (v && !json_is_null(v))
            apply(r, f, v, &c);
    }
    if (!c.n)
        require(r, &c);
    if (c.n)
        oai_fail(e, 400, "Bad Request", c.first, "%d validation error%s:%s", c.n,
                 c.n == 1 ? "" : "s", c.text.data ? c.text.data : "");
    strbuf_fini(&c.text);
    return !c.n;
}
