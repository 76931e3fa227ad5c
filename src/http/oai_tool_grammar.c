/* SPDX-License-Identifier: Apache-2.0 */
#include "http/oai_tool_grammar.h"

#include "base/mem.h"
#include "base/strbuf.h"

#include <stdio.h>
#include <string.h>

static json_t *function_of(const json_t *tools, size_t i)
{
    return json_object_get(json_array_get(tools, i), "function");
}

static const char *name_of(const json_t *function)
{
    return json_string_value(json_object_get(function, "name"));
}

/* A new reference to what a call's arguments must be. */
static json_t *parameters_of(const json_t *function)
{
    json_t *p = json_object_get(function, "parameters");
    if (json_is_object(p) && json_object_size(p))
        return json_deep_copy(p);
    return json_pack("{s:s}", "type", "object");
}

/* ---- required and named --------------------------------------------------------------------- */

/* The keys whose values are data, not schemas. */
static bool holds_data(const char *key)
{
    static const char *const keys[] = {"const", "enum", "default", "examples"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!strcmp(key, keys[i]))
            return true;
    return false;
}

/* "#/$defs/x" -> "#/items/anyOf/2/properties/parameters/$defs/x": the schema has moved into a
 * larger one. False: no memory. Bodies nest no deeper than jansson reads. */
static bool move_refs(json_t *schema, const char *to)
{
    const char *key;
    json_t *v;
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(schema); i++)
        ok = move_refs(json_array_get(schema, i), to);
    if (!json_is_object(schema))
        return ok;
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    if (ref && ref[0] == '#' && (!ref[1] || ref[1] == '/')) {
        struct strbuf b;
        strbuf_init(&b, 0);
        strbuf_adds(&b, to);
        strbuf_adds(&b, ref + 1);
        ok = !b.failed && !json_object_set_new(schema, "$ref", json_string(b.data));
        strbuf_fini(&b);
    }
    json_object_foreach(schema, key, v)
    {
        if (ok && !holds_data(key))
            ok = move_refs(v, to);
    }
    return ok;
}

json_t *oai_required_schema(const json_t *tools, bool just_one)
{
    json_t *any = json_array();
    for (size_t i = 0; any && i < json_array_size(tools); i++) {
        char to[80];
        json_t *f = function_of(tools, i), *parameters = parameters_of(f);
        snprintf(to, sizeof to, "#/items/anyOf/%zu/properties/parameters", i);
        json_t *one = NULL;
        if (parameters && move_refs(parameters, to))
            one = json_pack("{s:s, s:{s:{s:s, s:[O]}, s:O}, s:[s,s], s:b}", "type", "object",
                            "properties", "name", "type", "string", "enum",
                            json_object_get(f, "name"), "parameters", parameters, "required",
                            "name", "parameters", "additionalProperties", 0);
        json_decref(parameters);
        if (!one || json_array_append_new(any, one)) {
            json_decref(any);
            any = NULL;
        }
    }
    json_t *list = any ? json_pack("{s:s, s:i, s:{s:o}}", "type", "array", "minItems", 1, "items",
                                   "anyOf", any)
                       : NULL;
    if (list && just_one)
        json_object_set_new(list, "maxItems", json_integer(1));
    return list;
}

json_t *oai_named_schema(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!strcmp(name_of(function_of(tools, i)), name))
            return parameters_of(function_of(tools, i));
    return NULL;
}

/* ---- strict --------------------------------------------------------------------------------- */

/* The content of a call: JSON of the tool's schema, or any object. Takes over nothing. */
static json_t *json_format(const json_t *function)
{
    bool loose = json_is_false(json_object_get(function, "strict"));
    json_t *schema = loose ? json_pack("{s:s}", "type", "object") : parameters_of(function);
    return schema ? json_pack("{s:s, s:o}", "type", "json_schema", "json_schema", schema) : NULL;
}

/* begin NAME middle content end. Steals content. */
static json_t *tag(const char *begin, const char *name, const char *middle, json_t *content,
                   const char *end)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_adds(&b, begin);
    strbuf_adds(&b, name);
    strbuf_adds(&b, middle);
    json_t *t = NULL;
    if (content && !b.failed)
        t = json_pack("{s:s, s:s, s:o, s:s}", "type", "tag", "begin", b.data ? b.data : "",
                      "content", content, "end", end);
    else
        json_decref(content);
    strbuf_fini(&b);
    return t;
}

static bool add(json_t *list, json_t *item)
{
    return item && !json_array_append_new(list, item);
}

/* {"name": "f", "arguments": {..}}, written as `key` says. */
static json_t *object_tag(const char *before, const json_t *f, const char *key, const char *after)
{
    struct strbuf begin, end;
    strbuf_init(&begin, 0);
    strbuf_init(&end, 0);
    strbuf_adds(&begin, before);
    strbuf_adds(&begin, "{\"name\": \"");
    strbuf_adds(&end, "}");
    strbuf_adds(&end, after);
    char middle[40];
    snprintf(middle, sizeof middle, "\", \"%s\": ", key);
    json_t *t = NULL;
    if (!begin.failed && !end.failed)
        t = tag(begin.data, name_of(f), middle, json_format(f), end.data);
    strbuf_fini(&begin);
    strbuf_fini(&end);
    return t;
}

/* One or more of the tools' calls, each an object in a list. */
static json_t *object_list(const json_t *tools)
{
    json_t *tags = json_array();
    bool ok = tags != NULL;
    for (size_t i = 0; ok && i < json_array_size(tools); i++)
        ok = add(tags, object_tag("", function_of(tools, i), "arguments", ""));
    if (!ok) {
        json_decref(tags);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:s, s:b}", "type", "tags_with_separator", "tags", tags,
                     "separator", ", ", "at_least_one", 1);
}

/* The value of one of qwen3_xml's parameters: text, or JSON. */
static json_t *xml_value(const json_t *schema, const json_t *root)
{
    const json_t *list = json_object_get(schema, "enum"), *type = json_object_get(schema, "type");
    bool text = !type || (json_is_string(type) && !strcmp(json_string_value(type), "string"));
    if (!text || json_object_get(schema, "$ref") || json_object_get(schema, "anyOf")) {
        json_t *copy = json_deep_copy(schema), *defs = json_object_get(root, "$defs");
        if (copy && defs && !json_object_get(copy, "$defs"))
            json_object_set(copy, "$defs", defs);
        return copy ? json_pack("{s:s, s:o}", "type", "json_schema", "json_schema", copy) : NULL;
    }
    json_t *choices = json_array();
    for (size_t i = 0; choices && i < json_array_size(list); i++)
        if (json_is_string(json_array_get(list, i)))
            json_array_append_new(choices, json_pack("{s:s, s:O}", "type", "const_string", "value",
                                                     json_array_get(list, i)));
    if (json_array_size(choices))
        return json_pack("{s:s, s:o}", "type", "or", "elements", choices);
    json_decref(choices);
    return json_pack("{s:s, s:[s,s,s]}", "type", "any_text", "excludes", "</parameter>",
                     "<parameter=", "</function>");
}

static bool is_required(const json_t *schema, const char *key)
{
    const json_t *list = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *other = json_string_value(json_array_get(list, i));
        if (other && !strcmp(other, key))
            return true;
    }
    return false;
}

/* The parameters in the order of the schema, those that need not be there optional. */
static json_t *xml_parameters(const json_t *function)
{
    json_t *schema = parameters_of(function), *v, *list = json_array();
    json_t *properties = json_object_get(schema, "properties");
    const char *key;
    bool ok = schema && list;
    json_object_foreach(properties, key, v)
    {
        json_t *one =
            ok ? tag("<parameter=", key, ">\n", xml_value(v, schema), "\n</parameter>\n") : NULL;
        if (one && !is_required(schema, key))
            one = json_pack("{s:s, s:o}", "type", "optional", "content", one);
        ok = ok && add(list, one);
    }
    if (ok && !json_array_size(list))
        ok = add(list, json_pack("{s:s, s:s}", "type", "const_string", "value", ""));
    json_decref(schema);
    if (!ok) {
        json_decref(list);
        return NULL;
    }
    return json_pack("{s:s, s:o}", "type", "sequence", "elements", list);
}

/* The tags of one tool, for parsers whose calls stand alone. */
static bool add_tool(json_t *tags, const json_t *f, enum out_tool parser)
{
    const char *name = name_of(f);
    switch (parser) {
    case OUT_HERMES:
        return add(tags, object_tag("<tool_call>\n", f, "arguments", "\n</tool_call>")) &&
               add(tags, object_tag("<tool_call>", f, "arguments", "</tool_call>"));
    case OUT_LLAMA3_JSON:
        return add(tags, object_tag("", f, "parameters", ""));
    case OUT_MISTRAL:
        return add(tags, tag("[TOOL_CALLS]", name, "", json_format(f), "")) &&
               add(tags, tag("[TOOL_CALLS]", name, "[ARGS]", json_format(f), ""));
    case OUT_HARMONY:
        return add(tags, tag("<|channel|>commentary to=functions.", name,
                             " <|constrain|>json<|message|>", json_format(f), ""));
    case OUT_QWEN3_XML:
        return add(tags, tag("<tool_call>\n<function=", name, ">\n", xml_parameters(f),
                             "</function>\n</tool_call>"));
    case OUT_DEEPSEEK_V3:
        return add(tags, tag("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", name, "\n```json\n",
                             json_format(f), "\n```<｜tool▁call▁end｜>"));
    default:
        return false;
    }
}

/* The tags of the whole block, for parsers that have one. Steals `calls`. */
static bool add_block(json_t *tags, const json_t *tools, json_t *calls, enum out_tool parser)
{
    static const char *const lists[][2] = {{"[TOOL_CALLS] [", "]"},
                                           {"[TOOL_CALLS][", "]"},
                                           {"<|tool_call|>[", "]"},
                                           {"<tool_call>[", "]"}};
    if (parser == OUT_DEEPSEEK_V3)
        return add(tags, tag("<｜tool▁calls▁begin｜>", "", "",
                             json_pack("{s:s, s:o, s:s, s:b}", "type", "tags_with_separator",
                                       "tags", calls, "separator", "\n", "at_least_one", 1),
                             "<｜tool▁calls▁end｜>"));
    json_decref(calls);
    bool ok = true;
    for (int i = parser == OUT_MISTRAL ? 0 : 2; ok && i < (parser == OUT_MISTRAL ? 2 : 4); i++)
        ok = add(tags, tag(lists[i][0], "", "", object_list(tools), lists[i][1]));
    return ok;
}

static json_t *triggers_of(enum out_tool parser)
{
    switch (parser) {
    case OUT_HERMES:
    case OUT_QWEN3_XML:
        return json_pack("[s]", "<tool_call>");
    case OUT_LLAMA3_JSON:
        return json_pack("[s]", "{\"name\": \"");
    case OUT_MISTRAL:
        return json_pack("[s]", "[TOOL_CALLS]");
    case OUT_HARMONY:
        return json_pack("[s]", "<|channel|>commentary to=functions.");
    case OUT_GRANITE:
        return json_pack("[s,s]", "<|tool_call|>", "<tool_call>");
    case OUT_DEEPSEEK_V3:
        return json_pack("[s]", "<｜tool▁calls▁begin｜>");
    default:
        return NULL;
    }
}

json_t *oai_strict_tag(const json_t *tools, enum out_tool parser)
{
    json_t *triggers = triggers_of(parser), *tags = json_array(), *calls = json_array();
    bool blocks = parser == OUT_DEEPSEEK_V3 || parser == OUT_GRANITE || parser == OUT_MISTRAL;
    bool ok = triggers && tags && calls;
    for (size_t i = 0; ok && i < json_array_size(tools) && parser != OUT_GRANITE; i++)
        ok = add_tool(parser == OUT_DEEPSEEK_V3 ? calls : tags, function_of(tools, i), parser);
    if (ok && blocks)
        ok = add_block(tags, tools, calls, parser);
    else
        json_decref(calls);
    if (!ok) {
        json_decref(triggers);
        json_decref(tags);
        return NULL;
    }
    return json_pack("{s:s, s:{s:s, s:o, s:o}}", "type", "structural_tag", "format", "type",
                     "triggered_tags", "triggers", triggers, "tags", tags);
}
