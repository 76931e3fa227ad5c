/* oai_request.c - a request's body: parsed, the fields applied, then the rules across fields.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* A body of commas would cost 50 times its size once parsed: count before parsing. */
static size_t count_values(const char *s, size_t n)
{
    size_t values = 1;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        if (quoted) {
            if (s[i] == '\\')
                i++;
            else if (s[i] == '"')
                quoted = false;
        } else if (s[i] == '"') {
            quoted = true;
        } else if (s[i] == ',' || s[i] == '[' || s[i] == '{') {
            values++;
        }
    }
    return values;
}

static json_t *parse_json(const char *body, size_t bytes, struct oai_error *e)
{
    if (count_values(body, bytes) > OAI_MAX_JSON_VALUES) {
        oai_fail(e, 400, "Bad Request", "body", "The body holds more than %d JSON values.",
                 OAI_MAX_JSON_VALUES);
        return NULL;
    }
    json_error_t je;
    json_t *root = json_loadb(body, bytes, JSON_ALLOW_NUL, &je);
    if (root && json_is_object(root))
        return root;
    if (root) {
        json_decref(root);
        oai_fail(e, 400, "Bad Request", "body",
                 "1 validation error:\n  {'type': 'model_attributes_type', 'loc': ('body',), "
                 "'msg': 'Input should be a valid dictionary or object to extract fields from'}");
    } else if (json_error_code(&je) == json_error_invalid_utf8) {
        oai_fail(e, 400, "Bad Request", NULL, "There was an error parsing the body");
    } else if (json_error_code(&je) == json_error_out_of_memory) {
        oai_fail(e, 500, NULL, NULL, "There is not enough memory to parse the body");
    } else {
        char param[32];
        snprintf(param, sizeof param, "body.%d", je.position);
        oai_fail(e, 400, "Bad Request", param,
                 "1 validation error:\n  {'type': 'json_invalid', 'loc': ('body', %d), "
                 "'msg': 'JSON decode error', 'ctx': {'error': '%s'}}",
                 je.position, je.text);
    }
    return NULL;
}

static json_t *present(const json_t *body, const char *key)
{
    json_t *v = json_object_get(body, key);
    return json_is_null(v) ? NULL : v;
}

/* Python's truth of a JSON value. */
static bool truthy(const json_t *v)
{
    if (!v || json_is_null(v) || json_is_false(v))
        return false;
    if (json_is_number(v))
        return json_number_value(v) != 0;
    if (json_is_string(v))
        return json_string_length(v) > 0;
    if (json_is_array(v))
        return json_array_size(v) > 0;
    return json_is_true(v) || json_object_size(v) > 0;
}

/* Logprob counts are looked at before their types are coerced, with texts of their own. */
static bool check_count(const json_t *body, const char *name, struct oai_error *e)
{
    json_t *v = present(body, name);
    if (v && !json_is_number(v) && !json_is_boolean(v))
        return oai_fail(e, 400, NULL, name, "`%s` must be an integer.", name);
    double d = json_number_value(v);
    if (d < 0 && d != -1)
        return oai_fail(e, 400, NULL, name, "`%s` must be a positive value%s.", name,
                        strcmp(name, "logprobs") ? " or -1" : "");
    return true;
}

static bool check_logprobs(const struct oai_request *r, const json_t *body, struct oai_error *e)
{
    json_t *ids = present(body, "logprob_token_ids");
    if (ids && json_is_array(ids)) {
        const char *name = "logprob_token_ids";
        if (!json_array_size(ids))
            return oai_fail(e, 400, NULL, name, "`logprob_token_ids` must not be an empty list.");
        if (r->api == OAI_CHAT && !truthy(present(body, "logprobs")))
            return oai_fail(e, 400, NULL, name,
                            "when using `logprob_token_ids`, `logprobs` must be set to true.");
        if (r->api == OAI_COMPLETIONS && !present(body, "logprobs"))
            return oai_fail(e, 400, NULL, name,
                            "when using `logprob_token_ids`, `logprobs` must be set.");
    }
    json_t *v = present(body, "prompt_logprobs");
    if (v && (json_is_number(v) || json_is_boolean(v)) && truthy(present(body, "stream")) &&
        (json_number_value(v) > 0 || json_is_true(v) || json_number_value(v) == -1))
        return oai_fail(e, 400, NULL, "prompt_logprobs",
                        "`prompt_logprobs` are not available when `stream=True`.");
    if (!check_count(body, "prompt_logprobs", e))
        return false;
    if (r->api == OAI_COMPLETIONS)
        return check_count(body, "logprobs", e);
    if (!check_count(body, "top_logprobs", e))
        return false;
    if (truthy(present(body, "top_logprobs")) && !truthy(present(body, "logprobs")))
        return oai_fail(e, 400, NULL, "top_logprobs",
                        "when using `top_logprobs`, `logprobs` must be set to true.");
    return true;
}

static bool check_completion_prompt(const json_t *body, struct oai_error *e)
{
    json_t *prompt = present(body, "prompt"), *embeds = present(body, "prompt_embeds");
    bool no_prompt = !prompt || (json_is_string(prompt) && !json_string_length(prompt));
    if (no_prompt && (!embeds || (json_is_array(embeds) && !json_array_size(embeds))))
        return oai_fail(e, 400, NULL, "prompt",
                        "Either prompt or prompt_embeds must be provided and non-empty.");
    size_t n = json_array_size(prompt);
    if (n > OAI_MAX_PROMPTS && !json_is_integer(json_array_get(prompt, 0)))
        return oai_fail(e, 400, NULL, "prompt",
                        "prompt list length %zu exceeds the maximum allowed count of %d. To "
                        "increase this limit, set the VLLM_MAX_COMPLETION_PROMPTS environment "
                        "variable.",
                        n, OAI_MAX_PROMPTS);
    return true;
}

/* Constraints of the output: the mistakes that vLLM finds first. */
static bool check_constraints(const json_t *body, struct oai_error *e)
{
    json_t *rf = present(body, "response_format");
    const char *type = json_string_value(json_object_get(rf, "type"));
    if (type && !strcmp(type, "json_schema") && !present(rf, "json_schema"))
        return oai_fail(e, 400, NULL, "response_format",
                        "When response_format type is 'json_schema', the 'json_schema' field must "
                        "be provided.");
    json_t *so = present(body, "structured_outputs");
    int kinds = !!present(so, "json") + !!present(so, "regex") + !!present(so, "choice");
    if (kinds > 1)
        return oai_fail(e, 400, NULL, "structured_outputs",
                        "You can only use one kind of constraints for structured outputs ('json', "
                        "'regex' or 'choice').");
    if (kinds && json_is_object(present(body, "tool_choice")))
        return oai_fail(e, 400, NULL, NULL,
                        "You can only either use constraints for structured outputs or tools, not "
                        "both.");
    return true;
}

static bool check_turn(const json_t *body, struct oai_error *e)
{
    if (truthy(present(body, "continue_final_message")) &&
        truthy(present(body, "add_generation_prompt")))
        return oai_fail(e, 400, NULL, NULL,
                        "Cannot set both `continue_final_message` and `add_generation_prompt` to "
                        "True.");
    return true;
}

/* vLLM's rules that look at the raw body, in its order. */
static bool check_raw(const struct oai_request *r, const json_t *body, struct oai_error *e)
{
    if (!(r->api & OAI_GENERATE))
        return check_turn(body, e);
    json_t *salt = present(body, "cache_salt");
    if (json_is_string(salt) && !json_string_length(salt))
        return oai_fail(e, 400, NULL, "cache_salt",
                        "Parameter 'cache_salt' must be a non-empty string if provided.");
    if (!check_constraints(body, e) || !check_logprobs(r, body, e))
        return false;
    if (truthy(present(body, "stream_options")) && !truthy(present(body, "stream")))
        return oai_fail(e, 400, NULL, "stream_options",
                        "Stream options can only be defined when `stream=True`.");
    if (r->api == OAI_COMPLETIONS)
        return check_completion_prompt(body, e);
    return oai_check_tool_choice(body, e) && check_turn(body, e);
}

static bool schema_fail(struct oai_error *e, const char *field, const char *type, const char *msg)
{
    char param[64];
    snprintf(param, sizeof param, "body.%s", field);
    return oai_fail(e, 400, "Bad Request", param,
                    "1 validation error:\n  {'type': '%s', 'loc': ('body', '%s'), 'msg': '%s'}",
                    type, field, msg);
}

static bool read_stop(struct oai_request *r, struct oai_error *e)
{
    if (!r->stop)
        return true;
    bool single = json_is_string(r->stop);
    size_t n = single ? 1 : json_array_size(r->stop);
    if (!single && !json_is_array(r->stop))
        return schema_fail(e, "stop", "string_type", "Input should be a valid string");
    if (n > OAI_MAX_STOP) {
        char msg[96];
        snprintf(msg, sizeof msg, "List should have at most %d items after validation, not %zu",
                 OAI_MAX_STOP, n);
        return schema_fail(e, "stop", "too_long", msg);
    }
    const char **list = arena_alloc(&r->arena, n, sizeof *list);
    for (size_t i = 0; list && i < n; i++) {
        json_t *v = single ? r->stop : json_array_get(r->stop, i);
        list[i] = json_string_value(v);
        if (!list[i] || strlen(list[i]) != json_string_length(v))
            return schema_fail(e, "stop", "string_type", "Input should be a valid string");
    }
    if (!list)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    r->params.stop = list;
    r->params.n_stop = (int)n;
    return true;
}

static bool read_logit_bias(struct oai_request *r, struct oai_error *e)
{
    size_t n = json_object_size(r->logit_bias), at = 0;
    if (!n)
        return true;
    struct sl_logit_bias *list = arena_alloc(&r->arena, n, sizeof *list);
    if (!list)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    const char *key;
    json_t *v;
    json_object_foreach(r->logit_bias, key, v)
    {
        char *end;
        long token = strtol(key, &end, 10);
        if (end == key || *end)
            return oai_fail(e, 400, NULL, "logit_bias",
                            "logit_bias contains key(s) that cannot be converted to integer token "
                            "IDs: ['%.100s']",
                            key);
        if (!json_is_number(v))
            return schema_fail(e, "logit_bias", "float_type", "Input should be a valid number");
        double bias = json_number_value(v);
        bias = bias > 100 ? 100 : bias < -100 ? -100 : bias;
        list[at].token = token > INT_MAX ? INT_MAX : token < -1 ? -1 : (int32_t)token;
        list[at++].bias = (float)bias;
    }
    r->params.logit_bias = list;
    r->params.n_logit_bias = (int)n;
    return true;
}

static bool read_repetition(struct oai_request *r, struct oai_error *e)
{
    static const char *const names[] = {"max_pattern_size", "min_pattern_size", "min_count"};
    int *const to[] = {&r->params.repetition_max_pattern, &r->params.repetition_min_pattern,
                       &r->params.repetition_min_count};
    for (int i = 0; r->repetition_detection && i < 3; i++) {
        json_t *v = present(r->repetition_detection, names[i]);
        if (!v)
            continue;
        json_int_t x = json_integer_value(v);
        if (!json_is_integer(v) || x < INT_MIN + 1 || x > INT_MAX)
            return schema_fail(e, "repetition_detection", "int_type",
                               "Input should be a valid integer");
        *to[i] = (int)x;
    }
    return true;
}

static bool read_stream_options(struct oai_request *r, const struct oai_env *env,
                                struct oai_error *e)
{
    static const char *const names[] = {"include_usage", "continuous_usage_stats"};
    bool *const to[] = {&r->include_usage, &r->continuous_usage};
    for (int i = 0; r->stream_options && i < 2; i++) {
        json_t *v = present(r->stream_options, names[i]);
        if (v && !json_is_boolean(v))
            return schema_fail(e, "stream_options", "bool_type", "Input should be a valid boolean");
        *to[i] = json_is_true(v);
    }
    if (env->cfg->enable_force_include_usage)
        r->include_usage = r->continuous_usage = true;
    r->continuous_usage = r->continuous_usage && r->include_usage;
    return true;
}

/* What vLLM has and this server has not yet: refused by name, never ignored. */
static bool refuse_missing(const struct oai_request *r, struct oai_error *e)
{
    const struct {
        bool used;
        const char *name;
    } missing[] = {
        {truthy(r->prompt_embeds), "prompt_embeds"},
        {json_object_size(r->kv_transfer_params), "kv_transfer_params"},
        {json_object_size(r->ec_transfer_params), "ec_transfer_params"},
        {json_object_size(r->vllm_xargs), "vllm_xargs"},
        {r->thinking_token_budget >= 0, "thinking_token_budget"},
    };
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++)
        if (missing[i].used)
            return oai_fail(e, 501, NULL, missing[i].name, "`%s` is not supported yet.",
                            missing[i].name);
    if (r->suffix)
        return oai_fail(e, 400, NULL, "suffix", "suffix is not currently supported");
    return true;
}

/* True, False or "never". */
static bool read_early_stopping(struct oai_request *r, struct oai_error *e)
{
    const char *word = json_string_value(r->early_stopping);
    if (!r->early_stopping || json_is_false(r->early_stopping))
        return true;
    if (json_is_true(r->early_stopping))
        r->params.early_stopping = SL_EARLY_TRUE;
    else if (word && !strcmp(word, "never"))
        r->params.early_stopping = SL_EARLY_NEVER;
    else
        return oai_fail(e, 400, NULL, "early_stopping",
                        "early_stopping must be True, False, or 'never'.");
    return true;
}

/* n, best_of and what cannot be told token by token. */
static bool check_choices(const struct oai_request *r, struct oai_error *e)
{
    const struct sl_sampling_params *p = &r->params;
    if (p->use_beam_search && r->stream)
        return oai_fail(e, 400, NULL, NULL,
                        "Streaming is not currently supported with beam search");
    if (p->n < 1)
        return oai_fail(e, 400, NULL, "n", "n must be at least 1, got %d.", p->n);
    if (p->n > OAI_MAX_CHOICES)
        return oai_fail(e, 400, NULL, "n",
                        "n must be at most %d, got %d. To increase this limit, set the "
                        "VLLM_MAX_N_SEQUENCES environment variable.",
                        OAI_MAX_CHOICES, p->n);
    if (p->best_of == SL_NONE)
        return true;
    if (p->best_of < p->n)
        return oai_fail(e, 400, NULL, "best_of",
                        "best_of must be greater than or equal to n, got n=%d and best_of=%d.",
                        p->n, p->best_of);
    if (p->best_of > OAI_MAX_CHOICES)
        return oai_fail(e, 400, NULL, "best_of", "best_of must be at most %d, got %d.",
                        OAI_MAX_CHOICES, p->best_of);
    if (p->best_of > p->n && r->stream)
        return oai_fail(e, 400, NULL, "best_of",
                        "Streaming is not supported when `best_of` is greater than `n`: the best "
                        "are known when all have ended.");
    return true;
}

static bool check_words(const struct oai_request *r, struct oai_error *e)
{
    static const char *const efforts[] = {"none", "minimal", "low", "medium",
                                          "high", "xhigh",   "max"};
    if (r->truncation_side && strcmp(r->truncation_side, "left") &&
        strcmp(r->truncation_side, "right"))
        return schema_fail(e, "truncation_side", "literal_error", "Input should be left or right");
    if (r->cache_salt && strlen(r->cache_salt) > 1024)
        return schema_fail(e, "cache_salt", "string_too_long",
                           "String should have at most 1024 characters");
    if (r->request_id && strlen(r->request_id) > 256)
        return schema_fail(e, "request_id", "string_too_long",
                           "String should have at most 256 characters");
    bool known = !r->reasoning_effort;
    for (size_t i = 0; !known && i < sizeof efforts / sizeof efforts[0]; i++)
        known = !strcmp(r->reasoning_effort, efforts[i]);
    return known || schema_fail(e, "reasoning_effort", "literal_error",
                                "Input should be none, minimal, low, medium, high, xhigh or max");
}

static bool check_model(const struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!r->model)
        return true;
    for (int i = 0; i < env->info.n_served_names; i++)
        if (!strcmp(r->model, env->info.served_names[i]))
            return true;
    return oai_fail(e, 404, NULL, "model", "The model `%.400s` does not exist.", r->model);
}

/* Logprobs are one field in completions and two in chat; inside they are one number. */
static void settle_logprobs(struct oai_request *r)
{
    if (r->api == OAI_COMPLETIONS) {
        r->want_logprobs = r->logprobs_count != SL_NONE;
        r->top_logprobs = r->want_logprobs ? r->logprobs_count : 0;
        if (r->echo && r->params.prompt_logprobs == SL_NONE && r->want_logprobs)
            r->params.prompt_logprobs = r->logprobs_count;
    } else {
        r->want_logprobs = r->logprobs_flag;
    }
    r->params.logprobs = !r->want_logprobs               ? SL_NONE
                         : r->params.n_logprob_token_ids ? 0
                                                         : r->top_logprobs;
}

static void set_defaults(struct oai_request *r, const struct oai_env *env)
{
    r->params = env->defaults;
    r->params.n = 1;
    r->params.best_of = SL_NONE;
    r->params.n_allowed_token_ids = -1;
    r->max_tokens = r->api == OAI_COMPLETIONS ? 16 : SL_NONE;
    r->max_completion_tokens = SL_NONE;
    r->logprobs_count = SL_NONE;
    r->thinking_token_budget = -1;
    r->add_special_tokens = r->api == OAI_COMPLETIONS || r->api & OAI_POOLS;
    r->pool.dimensions = SL_NONE;
    r->add_generation_prompt = !(r->api & OAI_POOLS);
    r->parallel_tool_calls = r->include_reasoning = true;
    r->return_tokens_as_token_ids = env->cfg->return_tokens_as_token_ids;
}

static bool settle(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!check_words(r, e) || !read_stop(r, e) || !read_logit_bias(r, e) ||
        !read_repetition(r, e) || !read_early_stopping(r, e) || !read_stream_options(r, env, e) ||
        !check_choices(r, e) || !refuse_missing(r, e) || !check_model(r, env, e) ||
        !oai_structured(r, e) || !oai_settle_tools(r, env, e))
        return false;
    settle_logprobs(r);
    r->truncate_right = r->truncation_side && !strcmp(r->truncation_side, "right");
    r->only_echo = r->api == OAI_COMPLETIONS && r->echo && r->max_tokens == 0;
    if (r->only_echo && r->params.n_logprob_token_ids)
        return oai_fail(e, 400, NULL, "logprob_token_ids",
                        "`logprob_token_ids` is not supported when `echo=True` and "
                        "`max_tokens=0` because no output tokens are generated.");
    if (r->params.has_seed && r->params.seed == -1)
        r->params.has_seed = false;
    if (r->chat_template && !env->cfg->trust_request_chat_template)
        return oai_fail(e, 400, NULL, NULL,
                        "Chat template is passed with request, but --trust-request-chat-template "
                        "is not set. Refused request with untrusted chat template.");
    if (r->continue_final_message && !r->has_add_generation_prompt)
        r->add_generation_prompt = false;
    return true;
}

bool oai_parse(struct oai_request *r, enum oai_api api, const struct oai_env *env, const char *body,
               size_t bytes, struct oai_error *e)
{
    *r = (struct oai_request){.api = api};
    arena_init(&r->arena, (size_t)64 << 20);
    r->body = parse_json(body, bytes, e);
    if (!r->body)
        return false;
    set_defaults(r, env);
    if (api & (OAI_TOKENIZE | OAI_INPUTS)) /* templates write them */
        r->add_special_tokens = !present(r->body, "messages");
    return check_raw(r, r->body, e) && oai_fields_apply(r, r->body, e) && settle(r, env, e);
}

void oai_random_id(char out[33])
{
    static const char hex[] = "0123456789abcdef";
    unsigned char raw[16] = {0};
    ssize_t got = getrandom(raw, sizeof raw, 0);
    (void)got; /* so few bytes never come in parts */
    for (int i = 0; i < 32; i++)
        out[i] = hex[raw[i / 2] >> (i & 1 ? 0 : 4) & 15];
    out[32] = 0;
}

void oai_drop_body(struct oai_request *r)
{
    /* everything that was borrowed from it */
    r->prompt = r->messages = r->tools = r->tool_choice = r->documents = r->chat_template_kwargs =
        NULL;
    r->stop = r->stream_options = r->response_format = r->structured_outputs = r->prompt_embeds =
        NULL;
    r->kv_transfer_params = r->ec_transfer_params = r->vllm_xargs = r->repetition_detection =
        r->logit_bias = r->early_stopping = NULL;
    r->model = r->request_id = r->cache_salt = r->suffix = r->truncation_side = NULL;
    r->chat_template = r->reasoning_effort = NULL;
    r->pool.input = r->pool.query = r->pool.queries = r->pool.documents = r->pool.items = NULL;
    r->pool.data_1 = r->pool.data_2 = r->pool.text_1 = r->pool.text_2 = r->pool.normalize = NULL;
    r->pool.instruction = NULL;
    r->params.stop = r->params.bad_words = NULL;
    r->params.n_stop = r->params.n_bad_words = 0;
    json_decref(r->body);
    r->body = NULL;
}

void oai_fini(struct oai_request *r)
{
    oai_drop_body(r);
    for (int i = 0; i < r->n_prompts; i++)
        sl_free(r->prompts[i].tokens);
    r->n_prompts = 0;
    sl_free(r->rendered);
    r->rendered = NULL;
    json_decref(r->kept_tools);
    r->kept_tools = NULL;
    arena_fini(&r->arena);
}
