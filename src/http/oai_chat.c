/* oai_chat.c - chat messages as templates expect them: contents are plain text, tool call
 * arguments are objects.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool bad_message(struct oai_error *e, size_t i, const char *field, const char *msg)
{
    char param[64];
    snprintf(param, sizeof param, "body.messages.%zu%s%s", i, *field ? "." : "", field);
    return oai_fail(e, 400, "Bad Request", param,
                    "1 validation error:\n  {'type': 'value_error', 'loc': ('body', 'messages', "
                    "%zu%s%s%s), 'msg': '%s'}",
                    i, *field ? ", '" : "", field, *field ? "'" : "", msg);
}

/* Media parts have many names; all of them end up here. */
static bool refuse_part(struct oai_error *e, const char *type)
{
    static const char *const media[][2] = {{"image_url", "image"},    {"image_embeds", "image"},
                                           {"image_pil", "image"},    {"input_image", "image"},
                                           {"audio_url", "audio"},    {"input_audio", "audio"},
                                           {"audio_embeds", "audio"}, {"video_url", "video"}};
    for (size_t i = 0; i < sizeof media / sizeof media[0]; i++)
        if (!strcmp(type, media[i][0]))
            return oai_fail(e, 400, NULL, NULL, "At most 0 %s(s) may be provided in one prompt.",
                            media[i][1]);
    return oai_fail(e, 400, NULL, NULL, "Unknown part type: %.100s", type);
}

/* Text parts joined by newlines; NULL: not text (e is set). */
static json_t *join_parts(const json_t *parts, size_t at, struct oai_error *e)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    json_t *joined = NULL;
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(parts); i++) {
        json_t *part = json_array_get(parts, i), *text = part;
        if (json_is_object(part)) {
            const char *type = json_string_value(json_object_get(part, "type"));
            text = json_object_get(part, "text");
            if (type && !strcmp(type, "refusal"))
                text = json_object_get(part, "refusal");
            else if (type && strcmp(type, "text") && strcmp(type, "input_text") &&
                     strcmp(type, "output_text"))
                ok = refuse_part(e, type);
            else if (!type && !text)
                ok = bad_message(e, at, "content", "Missing type field in multimodal part.");
        }
        if (ok && !json_is_string(text))
            ok = bad_message(e, at, "content", "The text of a content part should be a string");
        if (!ok)
            break;
        if (i)
            strbuf_addc(&b, '\n');
        strbuf_add(&b, json_string_value(text), json_string_length(text));
    }
    if (ok)
        joined = json_stringn_nocheck(b.data ? b.data : "", b.len);
    strbuf_fini(&b);
    if (ok && !joined)
        oai_fail(e, 500, NULL, NULL, "There is not enough memory for the messages");
    return joined;
}

static json_t *plain_content(const json_t *content, size_t at, struct oai_error *e)
{
    if (!content || json_is_null(content))
        return json_string("");
    if (json_is_string(content))
        return json_incref((json_t *)content);
    if (json_is_array(content))
        return join_parts(content, at, e);
    bad_message(e, at, "content", "Input should be a valid string or a list of parts");
    return NULL;
}

/* The content as templates of multimodal models want it: [{"type": "text", "text": ..}]. Takes over
 * `joined`, what plain_content() made of it. */
static json_t *as_parts(const json_t *content, json_t *joined)
{
    json_t *list = json_array();
    size_t n = json_is_array(content) ? json_array_size(content) : json_is_string(content);
    for (size_t i = 0; i < n; i++) {
        json_t *text = joined, *part = json_array_get(content, i);
        if (json_is_string(part))
            text = part;
        else if (json_is_object(part))
            text = json_object_get(part, json_object_get(part, "text") ? "text" : "refusal");
        json_array_append_new(list, json_pack("{s:s, s:O}", "type", "text", "text", text));
    }
    json_decref(joined);
    return list;
}

/* {"function": {"arguments": "{\"a\":1}"}} -> {"function": {"arguments": {"a": 1}}}: templates
 * print arguments with tojson. */
static json_t *plain_tool_call(const json_t *call, size_t at, struct oai_error *e)
{
    json_t *function = json_object_get(call, "function"), *type = json_object_get(call, "type");
    if (!json_is_object(call) || !json_is_object(function) ||
        (type && (!json_is_string(type) || strcmp(json_string_value(type), "function")))) {
        bad_message(e, at, "tool_calls",
                    "Each tool call should be an object of type function, with a function");
        return NULL;
    }
    json_t *copy = json_copy((json_t *)call), *f = json_copy(function);
    json_t *arguments = json_object_get(function, "arguments");
    if (!arguments || json_is_null(arguments) ||
        (json_is_string(arguments) && !json_string_length(arguments))) {
        json_object_set_new(f, "arguments", json_object());
    } else if (json_is_string(arguments)) {
        json_t *parsed = json_loadb(json_string_value(arguments), json_string_length(arguments),
                                    JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
        if (json_is_null(parsed))
            parsed = json_object();
        if (!parsed) {
            json_decref(copy);
            json_decref(f);
            bad_message(e, at, "tool_calls", "The arguments of a tool call should be valid JSON");
            return NULL;
        }
        json_object_set_new(f, "arguments", parsed);
    }
    json_object_set_new(copy, "function", f);
    return copy;
}

static json_t *plain_tool_calls(const json_t *calls, size_t at, struct oai_error *e)
{
    if (!json_is_array(calls)) {
        bad_message(e, at, "tool_calls", "Input should be a valid list");
        return NULL;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *call = plain_tool_call(json_array_get(calls, i), at, e);
        if (!call) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, call);
    }
    return list;
}

/* The keys that vLLM hands to templates, and no others. */
static json_t *plain_message(const json_t *msg, size_t at, bool parts, struct oai_error *e)
{
    const char *role = json_string_value(json_object_get(msg, "role"));
    if (!json_is_object(msg)) {
        bad_message(e, at, "", "Input should be a valid dictionary");
        return NULL;
    }
    if (!role) {
        bad_message(e, at, "role",
                    json_object_get(msg, "role") ? "Input should be a valid string"
                                                 : "Field required");
        return NULL;
    }
    json_t *content = plain_content(json_object_get(msg, "content"), at, e);
    if (content && parts && strcmp(role, "tool"))
        content = as_parts(json_object_get(msg, "content"), content);
    if (!content)
        return NULL;
    json_t *out = json_object();
    json_object_set_new(out, "role", json_string(role));
    json_object_set_new(out, "content", content);
    json_t *calls = json_object_get(msg, "tool_calls");
    if (calls && !json_is_null(calls) && !strcmp(role, "assistant") &&
        json_array_size(calls) + !json_is_array(calls)) {
        json_t *plain = plain_tool_calls(calls, at, e);
        if (!plain) {
            json_decref(out);
            return NULL;
        }
        json_object_set_new(out, "tool_calls", plain);
    }
    json_t *reasoning = json_object_get(msg, "reasoning");
    if (!reasoning || json_is_null(reasoning))
        reasoning = json_object_get(msg, "reasoning_content");
    if (json_is_string(reasoning)) { /* templates know it by either name */
        json_object_set(out, "reasoning", reasoning);
        json_object_set(out, "reasoning_content", reasoning);
    }
    static const char *const kept[] = {"name", "tool_call_id"};
    for (int i = 0; i < 2; i++)
        if (json_is_string(json_object_get(msg, kept[i])))
            json_object_set(out, kept[i], json_object_get(msg, kept[i]));
    return out;
}

static json_t *plain_messages(struct oai_request *r, bool parts, struct oai_error *e)
{
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(r->messages); i++) {
        json_t *msg = plain_message(json_array_get(r->messages, i), i, parts, e);
        if (!msg) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, msg);
    }
    return list;
}

static void set_flag(json_t *vars, const char *name, bool value)
{
    json_object_set_new(vars, name, json_boolean(value));
}

/* Who answers, and what `echo` repeats. */
static bool settle_answer(struct oai_request *r, const struct oai_env *env, const json_t *messages,
                          struct oai_error *e)
{
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *role = json_string_value(json_object_get(last, "role"));
    const char *answer = env->cfg->response_role ? env->cfg->response_role : "assistant";
    if (!r->add_generation_prompt && role)
        answer = role;
    r->role = arena_strndup(&r->arena, answer, strlen(answer));
    const json_t *content = json_object_get(last, "content");
    if (json_is_array(content)) /* a list of parts: its last text, as what is continued */
        content = json_object_get(json_array_get(content, json_array_size(content) - 1), "text");
    const char *text = json_string_value(content);
    if (r->role && r->api == OAI_CHAT && r->echo && role && text && !strcmp(role, answer))
        r->echo_text = arena_strndup(&r->arena, text, strlen(text));
    return r->role || oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
}

json_t *oai_chat_vars(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!oai_check_tools(r->tools, e))
        return NULL;
    json_t *tools = r->tools;
    if (r->tool_mode == OAI_TOOLS_NONE && r->api == OAI_CHAT &&
        env->cfg->exclude_tools_when_tool_choice_none)
        tools = NULL;
    bool parts = env->cfg->content_format == SL_CONTENT_OPENAI ||
                 (env->cfg->content_format == SL_CONTENT_AUTO &&
                  sl_text_reads_parts(env->text, tools != NULL, r->chat_template));
    json_t *messages = plain_messages(r, parts, e);
    if (!messages)
        return NULL;
    json_t *vars = json_object();
    if (!vars || !settle_answer(r, env, messages, e)) {
        json_decref(messages);
        json_decref(vars);
        return NULL;
    }
    json_object_update(vars, env->default_kwargs);
    json_object_update(vars, r->chat_template_kwargs);
    json_object_set_new(vars, "messages", messages);
    json_object_set(vars, "tools", tools ? tools : json_null());
    json_object_set(vars, "documents", r->documents ? r->documents : json_null());
    set_flag(vars, "add_generation_prompt", r->add_generation_prompt);
    set_flag(vars, "continue_final_message", r->continue_final_message);
    if (r->reasoning_effort) {
        json_object_set_new(vars, "reasoning_effort", json_string(r->reasoning_effort));
        if (!json_object_get(vars, "enable_thinking"))
            set_flag(vars, "enable_thinking", strcmp(r->reasoning_effort, "none") != 0);
    }
    return vars;
}
