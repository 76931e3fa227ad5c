/* What forced and strict calls must look like: the grammar takes what the parser reads as a call
 * with allowed arguments, and nothing else. A vocabulary of single bytes.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/grammar.h"
#include "http/oai_tool_grammar.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct grammar_lib *lib;

static json_t *tools(void)
{
    return json_loads(
        "[{\"type\": \"function\", \"function\": {\"name\": \"go\", \"strict\": true, "
        "\"parameters\": {\"type\": \"object\", \"properties\": {\"n\": {\"type\": \"integer\"}, "
        "\"to\": {\"$ref\": \"#/$defs/place\"}}, \"required\": [\"n\"], \"additionalProperties\": "
        "false, \"$defs\": {\"place\": {\"type\": \"string\", \"enum\": [\"up\", \"down\"]}}}}}, "
        "{\"type\": \"function\", \"function\": {\"name\": \"ping\"}}]",
        0, NULL);
}

/* 1: the whole text is accepted and may end there; 0: it is accepted and may not end; -1: it is
 * not. */
static int matches(enum grammar_kind kind, json_t *form, const char *text)
{
    char *json = json_dumps(form, JSON_COMPACT);
    struct grammar_spec spec = {.kind = kind, .text = json, .n_text = strlen(json)};
    struct grammar *g = NULL;
    struct matcher *m = NULL;
    struct sl_err err = {0};
    static const int32_t stop[] = {256};
    if (grammar_compile(lib, &spec, &g, &err))
        print_message("%s\n%s\n", err.msg, json);
    assert_non_null(g);
    assert_int_equal(matcher_create(&m, g, stop, 1, NULL), SL_OK);
    int result = 1;
    for (const char *p = text; *p && result >= 0; p++)
        result = matcher_accept(m, (unsigned char)*p) ? -1 : 1;
    if (result > 0)
        result = matcher_may_end(m);
    matcher_destroy(&m);
    grammar_unref(&g);
    free(json);
    return result;
}

static void forced(void **state)
{
    (void)state;
    json_t *t = tools(), *required = oai_required_schema(t, false),
           *named = oai_named_schema(t, "go");
    static const struct {
        const char *text;
        int want;
    } lists[] = {
        {"[{\"name\": \"go\", \"parameters\": {\"n\": 5, \"to\": \"up\"}}]", 1},
        {"[{\"name\": \"ping\", \"parameters\": {\"any\": [1]}}, {\"name\": \"go\", "
         "\"parameters\": {\"n\": 5}}]",
         1},
        {"[]", -1},
        {"[{\"name\": \"go\", \"parameters\": {\"n\": 5, \"to\": \"left\"", -1},
        {"[{\"name\": \"fly\"", -1},
        {"[{\"name\": \"go\", \"parameters\": {\"n\": 5}}", 0},
    };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        if (matches(GRAMMAR_JSON_SCHEMA, required, lists[i].text) != lists[i].want)
            print_message("%s\n", lists[i].text);
        assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, required, lists[i].text), lists[i].want);
    }
    json_t *one = oai_required_schema(t, true);
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, one, lists[0].text), 1);
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, one, lists[1].text), -1);
    json_decref(one);
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, named, "{\"n\": 5, \"to\": \"down\"}"), 1);
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, named, "{\"x"), -1);
    json_decref(named);
    named = oai_named_schema(t, "ping");
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, named, "{\"x\": 1}"), 1);
    assert_int_equal(matches(GRAMMAR_JSON_SCHEMA, named, "5"), -1);
    json_decref(named);
    json_decref(required);
    json_decref(t);
}

/* How the calls go({..}) and ping({}) are written. */
static const struct {
    enum out_tool parser;
    const char *call, *both;
} forms[] = {
    {OUT_HERMES, "Sure. <tool_call>\n{\"name\": \"go\", \"arguments\": %}\n</tool_call>",
     "<tool_call>{\"name\": \"go\", \"arguments\": %}</tool_call>\n<tool_call>{\"name\": \"ping\", "
     "\"arguments\": {}}</tool_call>"},
    {OUT_LLAMA3_JSON, "{\"name\": \"go\", \"parameters\": %}",
     "{\"name\": \"go\", \"parameters\": %}; {\"name\": \"ping\", \"parameters\": {}}"},
    {OUT_MISTRAL, "[TOOL_CALLS]go%", "[TOOL_CALLS]go[ARGS]%[TOOL_CALLS]ping[ARGS]{}"},
    {OUT_MISTRAL, "[TOOL_CALLS] [{\"name\": \"go\", \"arguments\": %}]",
     "[TOOL_CALLS][{\"name\": \"go\", \"arguments\": %}, {\"name\": \"ping\", \"arguments\": {}}]"},
    {OUT_GRANITE, "<|tool_call|>[{\"name\": \"go\", \"arguments\": %}]",
     "<tool_call>[{\"name\": \"go\", \"arguments\": %}, {\"name\": \"ping\", \"arguments\": {}}]"},
    {OUT_DEEPSEEK_V3,
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>go\n```json\n%\n"
     "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>go\n```json\n%\n"
     "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n"
     "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
    {OUT_HARMONY, "<|channel|>commentary to=functions.go <|constrain|>json<|message|>%",
     "<|channel|>commentary to=functions.go <|constrain|>json<|message|>%<|call|><|start|>assistant"
     "<|channel|>commentary to=functions.ping <|constrain|>json<|message|>{}"},
};

static char *fill(const char *form, const char *arguments)
{
    const char *at = strchr(form, '%');
    size_t n = strlen(form) + strlen(arguments);
    char *text = calloc(1, n);
    assert_non_null(text);
    snprintf(text, n, "%.*s%s%s", (int)(at - form), form, arguments, at + 1);
    return text;
}

static void check_calls(const char *text, enum out_tool parser, const json_t *t, int n,
                        const char *arguments)
{
    struct outparse_message m;
    struct outparse_spec spec = {.tool = parser, .tools = t};
    assert_int_equal(outparse_whole(&m, &spec, text, strlen(text), NULL), SL_OK);
    if (m.n_calls != n)
        print_message("%s\n", text);
    assert_int_equal(m.n_calls, n);
    assert_string_equal(m.calls[0].name.data, "go");
    assert_string_equal(m.calls[0].arguments.data, arguments);
    outparse_message_fini(&m);
}

static void strict(void **state)
{
    (void)state;
    static const char good[] = "{\"n\": 5, \"to\": \"up\"}", bad[] = "{\"n\": \"five\"}";
    json_t *t = tools();
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        json_t *tag = oai_strict_tag(t, forms[i].parser);
        assert_non_null(tag);
        for (int both = 0; both < 2; both++) {
            const char *form = both ? forms[i].both : forms[i].call;
            char *text = fill(form, good);
            int got = matches(GRAMMAR_TAGS, tag, text);
            if (got != 1)
                print_message("%d: %s\n", got, text);
            assert_int_equal(got, 1);
            check_calls(text, forms[i].parser, t, 1 + both, good);
            free(text);
            text = fill(form, bad);
            assert_int_equal(matches(GRAMMAR_TAGS, tag, text), -1);
            free(text);
        }
        assert_int_equal(matches(GRAMMAR_TAGS, tag, "Hello, nobody calls."), 1);
        json_decref(tag);
    }
    assert_null(oai_strict_tag(t, OUT_PYTHONIC));
    json_decref(t);
}

static void strict_xml(void **state)
{
    (void)state;
    json_t *t = tools(), *tag = oai_strict_tag(t, OUT_QWEN3_XML);
    json_t *go = json_object_get(json_array_get(t, 0), "function");
    json_object_set_new(
        json_object_get(json_object_get(json_object_get(go, "parameters"), "properties"), "n"),
        "maximum", json_integer(9));
    json_t *small = oai_strict_tag(t, OUT_QWEN3_XML);
    static const char call[] = "<tool_call>\n<function=go>\n<parameter=n>\n12\n</parameter>\n"
                               "</function>\n</tool_call>";
    assert_int_equal(matches(GRAMMAR_TAGS, tag, call), 1);
    check_calls(call, OUT_QWEN3_XML, t, 1, "{\"n\": 12}");
    assert_int_equal(matches(GRAMMAR_TAGS, small, call), -1);
    assert_int_equal(matches(GRAMMAR_TAGS, tag, "<tool_call>\n<function=go>\n</function>"), -1);
    assert_int_equal(
        matches(GRAMMAR_TAGS, tag, "<tool_call>\n<function=ping>\n</function>\n</tool_call>"), 1);
    json_decref(small);
    json_decref(tag);
    json_decref(t);
}

static int setup(void **state)
{
    (void)state;
    enum { N = 257 };
    static uint32_t start[N + 1];
    static uint8_t bytes[N], flags[N];
    static struct vocab vocab = {.n = N, .start = start, .bytes = bytes, .flags = flags};
    for (uint32_t i = 0; i < N; i++) {
        start[i] = i;
        bytes[i] = (uint8_t)i;
    }
    start[N] = N;
    flags[N - 1] = VOCAB_SPECIAL;
    return grammar_lib_create(&lib, &vocab, N - 1, NULL);
}

static int teardown(void **state)
{
    (void)state;
    grammar_lib_destroy(&lib);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forced), cmocka_unit_test(strict),
                                       cmocka_unit_test(strict_xml)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
