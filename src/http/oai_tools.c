/* oai_tools.c - tools and reasoning of a request: what was asked for, and how the answer is read.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai_tool_grammar.h"

#include "http/oai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *present(const json_t *body, const char *key)
{
    json_t *v = json_object_get(body, key);
    return json_is_null(v) ? NULL : v;
}

/* ---- the fields, raw ------------------------------------------------------------------------ */

static bool check_named_tool(const json_t *choice, const json_t *tools, struct oai_error *e)
{
    static const char usage[] = "Correct usage: `{\"type\": \"function\", \"function\": {\"name\": "
                                "\"my_function\"}}`";
    json_t *function = json_object_get(choice, "function");
    if (!json_is_object(function))
        return oai_fail(e, 400, NULL, "tool_choice.function",
                        "Invalid value for `function` in `tool_choice`! %s", usage);
    const char *name = json_string_value(json_object_get(function, "name"));
    if (!json_object_get(function, "name"))
        return oai_fail(e, 400, NULL, "tool_choice.function.name",
                        "Expected field `name` in `function` in `tool_choice`! %s", usage);
    if (!name || !*name)
        return oai_fail(e, 400, NULL, "tool_choice.function.name",
                        "Invalid `name` in `function` in `tool_choice`! %s", usage);
    for (size_t i = 0; i < json_array_size(tools); i++) {
        json_t *f = json_object_get(json_array_get(tools, i), "function");
        const char *other = json_string_value(json_object_get(f, "name"));
        if (other && !strcmp(other, name))
            return true;
    }
    return oai_fail(e, 400, NULL, "tool_choice",
                    "The tool specified in `tool_choice` does not match any of the specified "
                    "`tools`");
}

bool oai_check_tool_choice(const json_t *body, struct oai_error *e)
{
    json_t *tools = present(body, "tools"), *choice = present(body, "tool_choice");
    if (json_is_array(tools) && !json_array_size(tools))
        return oai_fail(e, 400, NULL, "tools",
                        "`tools` must not be an empty array. Either provide at least one tool or "
                        "omit the field entirely.");
    const char *word = json_string_value(choice);
    if (!choice || (word && !strcmp(word, "none")))
        return true;
    if (!tools)
        return oai_fail(e, 400, NULL, "tool_choice",
                        "When using `tool_choice`, `tools` must be set.");
    if (json_is_object(choice))
        return check_named_tool(choice, tools, e);
    if (!word || (strcmp(word, "auto") && strcmp(word, "required"))) {
        char *shown = json_dumps(choice, JSON_ENCODE_ANY | JSON_COMPACT);
        oai_fail(e, 400, NULL, "tool_choice",
                 "Invalid value for `tool_choice`: %.100s! Only named tools, \"none\", \"auto\" or "
                 "\"required\" are supported.",
                 word ? word : (shown ? shown : "?"));
        free(shown);
        return false;
    }
    return true;
}

static bool bad_tool(struct oai_error *e, size_t i, const char *field, const char *type,
                     const char *msg)
{
    char param[64], loc[64] = "";
    snprintf(param, sizeof param, "body.tools.%zu.%s", i, field);
    const char *dot = strchr(field, '.');
    if (dot)
        snprintf(loc, sizeof loc, "'%.*s', '%s'", (int)(dot - field), field, dot + 1);
    else
        snprintf(loc, sizeof loc, "'%s'", field);
    return oai_fail(e, 400, "Bad Request", param,
                    "1 validation error:\n  {'type': '%s', 'loc': ('body', 'tools', %zu, %s), "
                    "'msg': '%s'}",
                    type, i, loc, msg);
}

static bool check_function(const json_t *f, size_t i, struct oai_error *e)
{
    const json_t *name = json_object_get(f, "name"), *strict = present(f, "strict");
    const json_t *about = present(f, "description"), *parameters = present(f, "parameters");
    if (!json_is_object(f))
        return bad_tool(e, i, "function", f ? "dict_type" : "missing",
                        f ? "Input should be a valid dictionary" : "Field required");
    if (!json_is_string(name))
        return bad_tool(e, i, "function.name", name ? "string_type" : "missing",
                        name ? "Input should be a valid string" : "Field required");
    size_t n = json_string_length(name);
    if (!n || n > OAI_MAX_TOOL_NAME || strlen(json_string_value(name)) != n)
        return bad_tool(e, i, "function.name", "value_error",
                        "A name should have 1 to 256 bytes and no NUL");
    if (about && !json_is_string(about))
        return bad_tool(e, i, "function.description", "string_type",
                        "Input should be a valid string");
    if (strict && !json_is_boolean(strict))
        return bad_tool(e, i, "function.strict", "bool_type", "Input should be a valid boolean");
    if (!parameters)
        return true;
    if (!json_is_object(parameters))
        return bad_tool(e, i, "function.parameters", "dict_type",
                        "Input should be a valid dictionary");
    const json_t *type = present(parameters, "type"), *props = present(parameters, "properties");
    if (type && !json_is_string(type) && !json_is_array(type))
        return bad_tool(e, i, "function.parameters", "value_error",
                        "The type of a schema should be a string or a list of strings");
    if (props && !json_is_object(props))
        return bad_tool(e, i, "function.parameters", "value_error",
                        "The properties of a schema should be an object");
    return true;
}

bool oai_check_tools(const json_t *tools, struct oai_error *e)
{
    if (json_array_size(tools) > OAI_MAX_TOOLS)
        return oai_fail(e, 400, NULL, "tools", "tools must be at most %d, got %zu.", OAI_MAX_TOOLS,
                        json_array_size(tools));
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i), *type = json_object_get(tool, "type");
        if (!json_is_object(tool))
            return bad_tool(e, i, "function", "dict_type", "Input should be a valid dictionary");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "function")))
            return bad_tool(e, i, "type", "literal_error", "Input should be 'function'");
        if (!check_function(json_object_get(tool, "function"), i, e))
            return false;
    }
    return true;
}

/* ---- what they come to ---------------------------------------------------------------------- */

static enum oai_tool_mode tool_mode(const struct oai_request *r)
{
    const char *word = json_string_value(r->tool_choice);
    if (!r->tools || (word && !strcmp(word, "none")))
        return OAI_TOOLS_NONE;
    if (json_is_object(r->tool_choice))
        return OAI_TOOLS_NAMED;
    return word && !strcmp(word, "required") ? OAI_TOOLS_REQUIRED : OAI_TOOLS_AUTO;
}

static bool wants_strict(const json_t *tools)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *f = json_object_get(json_array_get(tools, i), "function");
        if (json_is_true(json_object_get(f, "strict")))
            return true;
    }
    return false;
}

/* The output must have this form, in place of what response_format asks for, as vLLM does. Takes
 * the form over. */
static bool constrain(struct oai_request *r, enum sl_structured_kind kind, json_t *form,
                      struct oai_error *e)
{
    char *text = form ? json_dumps(form, JSON_COMPACT) : NULL;
    const char *kept = text ? arena_strndup(&r->arena, text, strlen(text)) : NULL;
    free(text);
    json_decref(form);
    if (!kept)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    r->params.structured = (struct sl_structured_output){
        .kind = kind, .text = kept, .field = "tools", .disable_any_whitespace = true};
    return true;
}

/* Calls that a grammar forces. */
static bool settle_forced(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    bool named = r->tool_mode == OAI_TOOLS_NAMED;
    if (!env->tool_parser)
        return oai_fail(e, 400, NULL, NULL,
                        "tool_choice=\"%s\" requires --tool-call-parser to be set",
                        named ? "function" : "required");
    if (!named) {
        r->parse.tool = OUT_REQUIRED;
        return constrain(r, SL_STRUCTURED_JSON,
                         oai_required_schema(r->tools, !r->parallel_tool_calls), e);
    }
    const json_t *function = json_object_get(r->tool_choice, "function");
    const char *name = json_string_value(json_object_get(function, "name"));
    r->parse.tool = OUT_NAMED;
    r->parse.named = arena_strndup(&r->arena, name, strlen(name));
    if (!r->parse.named)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    return constrain(r, SL_STRUCTURED_JSON, oai_named_schema(r->tools, name), e);
}

static bool settle_auto(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!env->cfg->enable_auto_tool_choice || !env->tool_parser)
        return oai_fail(e, 400, NULL, NULL,
                        "\"auto\" tool choice requires --enable-auto-tool-choice and "
                        "--tool-call-parser to be set");
    r->parse.tool = env->tool_parser;
    if (!wants_strict(r->tools))
        return true;
    if (env->tool_parser == OUT_PYTHONIC)
        return oai_fail(e, 400, NULL, "tools",
                        "`strict` tools cannot be enforced with --tool-call-parser pythonic");
    return constrain(r, SL_STRUCTURED_TAG, oai_strict_tag(r->tools, env->tool_parser), e);
}

bool oai_settle_tools(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (r->api != OAI_CHAT)
        return true;
    if (!oai_check_tools(r->tools, e))
        return false;
    r->tool_mode = tool_mode(r);
    r->parse.reasoning = env->reasoning_parser;
    if (r->tool_mode == OAI_TOOLS_AUTO
            ? !settle_auto(r, env, e)
            : r->tool_mode != OAI_TOOLS_NONE && !settle_forced(r, env, e))
        return false;
    if (r->parse.tool)
        r->parse.tools = r->kept_tools = json_incref(r->tools);
    /* The parsers look for markers that many tokenizers have as special tokens. */
    bool plain = r->parse.tool == OUT_TOOL_NONE || r->parse.tool == OUT_PYTHONIC ||
                 r->parse.tool == OUT_REQUIRED || r->parse.tool == OUT_NAMED;
    if (!plain || r->parse.reasoning == OUT_QWEN3 || r->parse.reasoning == OUT_GPTOSS)
        r->params.skip_special_tokens = false;
    return true;
}

/* The prompt may have ended the thoughts already ("<think>\n\n</think>\n\n" where thinking is
 * off), or told the model not to have any. */
void oai_settle_reasoning(struct oai_request *r, const json_t *vars)
{
    static const char end[] = "</think>";
    size_t n = r->rendered_bytes, k = sizeof end - 1;
    if (r->parse.reasoning == OUT_QWEN3 && json_is_false(json_object_get(vars, "enable_thinking")))
        r->parse.reasoning = OUT_REASONING_NONE;
    if (r->parse.reasoning != OUT_QWEN3 && r->parse.reasoning != OUT_DEEPSEEK_R1)
        return;
    while (n && strchr(" \t\r\n", r->rendered[n - 1]) && r->rendered[n - 1])
        n--;
    if (n >= k && !memcmp(r->rendered + n - k, end, k))
        r->parse.reasoning = OUT_REASONING_NONE;
}

/* A grammar begins where the thoughts end. */
bool oai_settle_grammar(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    const char *end = outparse_reasoning_end(r->parse.reasoning);
    struct sl_err err = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    if (!end || r->params.structured.kind == SL_STRUCTURED_NONE)
        return true;
    if (sl_text_encode(env->text, end, strlen(end), false, &ids, &n, &err))
        return oai_fail_err(e, &err);
    int32_t *kept = arena_alloc(&r->arena, n, sizeof *kept);
    if (kept)
        memcpy(kept, ids, n * sizeof *kept);
    sl_free(ids);
    r->params.structured.after = kept;
    r->params.structured.n_after = (int)n;
    return kept || oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
}
