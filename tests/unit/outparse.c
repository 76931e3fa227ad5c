/* outparse: texts and what becomes of them, and texts made of markers' pieces cut in every way.
 * The full set of vectors is tests/golden/tool_calls.c.
 * SPDX-License-Identifier: Apache-2.0 */
#include "outcheck.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static json_t *weather_tools(void)
{
    return json_loads("[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": "
                      "{\"properties\": {\"n\": {\"type\": \"integer\"}, \"x\": {\"type\": "
                      "\"number\"}, \"b\": {\"type\": [\"boolean\", \"null\"]}, \"s\": {\"type\": "
                      "\"string\"}, \"o\": {\"anyOf\": [{\"type\": \"object\"}, {\"type\": "
                      "\"array\"}]}}}}}]",
                      0, NULL);
}

/* "C:content R:reasoning name(arguments) ..."; null parts are left out. */
static void describe(const struct outparse_message *m, char *out, size_t room)
{
    size_t at = 0;
    out[0] = 0;
    if (m->has_content)
        at += (size_t)snprintf(out + at, room - at, "C:%s|", m->content.len ? m->content.data : "");
    if (m->has_reasoning)
        at += (size_t)snprintf(out + at, room - at, "R:%s|",
                               m->reasoning.len ? m->reasoning.data : "");
    for (int i = 0; i < m->n_calls; i++)
        at += (size_t)snprintf(out + at, room - at, "%s(%s)|", m->calls[i].name.data,
                               m->calls[i].arguments.len ? m->calls[i].arguments.data : "");
}

static const struct {
    const char *tool, *reasoning, *text, *want;
} cases[] = {
    {"hermes", NULL, "A <tool_call>{\"name\":\"f\",\"arguments\":{\"n\":1}}</tool_call>",
     "C:A |f({\"n\":1})|"},
    {"hermes", NULL, "<tool_call>{\"name\":5,\"arguments\":{}}</tool_call>",
     "C:<tool_call>{\"name\":5,\"arguments\":{}}</tool_call>|"},
    {"hermes", NULL, "<tool_call>{\"arguments\":[1,{\"a\":2}],\"name\":\"f\"}</tool_call>",
     "f([1,{\"a\":2}])|"},
    {"hermes", NULL, "<tool_call>{\"name\":\"\\u0066\",\"arguments\":12}</tool_call>", "f(12)|"},
    {"hermes", NULL, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"\n\"}}</tool_call>",
     "C:<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"\n\"}}</tool_call>|"},
    {"hermes", "deepseek_r1", "T</think>", "R:T|"},
    {"hermes", "deepseek_r1", "T</think>\n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}",
     "R:T|f({})|"},
    {"llama3_json", NULL, "x{\"name\":\"f\",\"parameters\":{}}; y", "f({})|"},
    {"mistral", NULL, "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{\"n\":1} x", "f({\"n\":1})|"},
    {"mistral", NULL, "[TOOL_CALLS]f", "C:[TOOL_CALLS]f|"},
    {"mistral", NULL, "[TOOL_CALLS]f{}[TOOL_CALLS]g", "f({})|"},
    {"mistral", NULL, "[TOOL_CALLS] []", ""},
    {"granite", NULL,
     "<tool_call>[{\"name\":\"f\",\"arguments\":{}},{\"name\":\"g\","
     "\"arguments\":{\"a\":[]}}] ",
     "f({})|g({\"a\":[]})|"},
    {"pythonic", NULL, "[f(a='x' 'y', b=(1,), c=(2), d={1: None, 'k': {3, 4}}, e=r'\\n')]",
     "f({\"a\": \"xy\", \"b\": [1], \"c\": 2, \"d\": {\"1\": null, \"k\": [3, 4]}, \"e\": "
     "\"\\\\n\"})|"},
    {"pythonic", NULL, "[f(a='''it's''', b=0b101, c=-.5e3, d=\"\\x41\\u00e9\\q\")]",
     "f({\"a\": \"it's\", \"b\": 5, \"c\": -0.5e3, \"d\": \"A\xc3\xa9\\\\q\"})|"},
    {"pythonic", NULL, "[f(a=007)]", "C:[f(a=007)]|"},
    {"pythonic", NULL, "[f(a=1 if x else 2)]", "C:[f(a=1 if x else 2)]|"},
    {"qwen3_xml", NULL,
     "<function=f><parameter=n>07</parameter><parameter=x>1.50</parameter>"
     "<parameter=b>NULL</parameter><parameter=s>\"\\\n</parameter>"
     "<parameter=o>[1, 2</parameter></function>",
     "f({\"n\": 7, \"x\": 1.5, \"b\": null, \"s\": \"\\\"\\\\\", \"o\": \"[1, 2\"})|"},
    {"qwen3_xml", NULL, "<tool_call>{\"name\"", "C:<tool_call>{\"name\"|"},
    {"deepseek_v3", NULL,
     "a<｜tool▁calls▁begin｜>junk<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
     "```json\n{}\n```<｜tool▁call▁end｜>junk",
     "C:a|f({})|"},
    {"openai", "openai_gptoss", "plain text", "C:plain text|"},
    {"openai", NULL,
     "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final"
     "<|message|>y",
     "C:y|"},
    {NULL, "openai_gptoss", "<|channel|>commentary to=functions.f<|message|>{}<|call|>", ""},
    {NULL, "qwen3", "a</think>b<tool_call>c</think>d", "C:b<tool_call>c</think>d|R:a|"},
    {NULL, "granite", "Here is my thought process: a", "C:Here is my thought process: a|"},
    {NULL, NULL, " \n", "C: \n|"},
};

static void examples(void **state)
{
    (void)state;
    json_t *tools = weather_tools();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct outparse_spec spec = {.tools = tools};
        struct outparse_message m;
        char got[1000];
        assert_true(!cases[i].tool || outparse_tool_named(cases[i].tool, &spec.tool));
        assert_true(!cases[i].reasoning ||
                    outparse_reasoning_named(cases[i].reasoning, &spec.reasoning));
        assert_int_equal(outparse_whole(&m, &spec, cases[i].text, strlen(cases[i].text), NULL),
                         SL_OK);
        describe(&m, got, sizeof got);
        if (strcmp(got, cases[i].want))
            print_message("%s\n", cases[i].text);
        assert_string_equal(got, cases[i].want);
        outparse_message_fini(&m);
    }
    json_decref(tools);
}

static void forced(void **state)
{
    (void)state;
    struct outparse_message m;
    char got[1000];
    static const char list[] = "[{\"name\": \"f\", \"parameters\": {\"n\": 1}}, {\"name\": \"g\", "
                               "\"parameters\": {}}]";
    struct outparse_spec required = {.tool = OUT_REQUIRED};
    struct outparse_spec named = {.tool = OUT_NAMED, .named = "f", .reasoning = OUT_DEEPSEEK_R1};
    assert_int_equal(outparse_whole(&m, &required, list, strlen(list), NULL), SL_OK);
    describe(&m, got, sizeof got);
    assert_string_equal(got, "f({\"n\": 1})|g({})|");
    outparse_message_fini(&m);
    assert_int_equal(outparse_whole(&m, &named, "T</think>\n{\"n\": 1}", 18, NULL), SL_OK);
    describe(&m, got, sizeof got);
    assert_string_equal(got, "R:T|f({\"n\": 1})|");
    assert_int_equal(m.n_spans, 1);
    assert_int_equal(m.reasoning_ends[0], 0);
    assert_int_equal(m.reasoning_ends[1], 1);
    outparse_message_fini(&m);
    assert_int_equal(outparse_whole(&m, &named, "T</think> \n", 11, NULL), SL_OK);
    assert_false(m.has_content);
    assert_int_equal(m.n_calls, 0);
    outparse_message_fini(&m);
}

/* A stream does not wait without need. */
static void streams(void **state)
{
    (void)state;
    static const struct {
        enum out_tool tool;
        enum out_reasoning reasoning;
        const char *text, *content, *calls;
    } at_once[] = {
        {OUT_HERMES, 0, "Hello <", "Hello", ""},
        {OUT_HERMES, 0, "<tool_call>{\"name\":\"f\",\"arguments\":{\"city\":\"Par", "",
         "f|{\"city\":\"Par"},
        {OUT_MISTRAL, 0, "[TOOL_CALLS]f{\"city\":\"Par", "", "f|{\"city\":\"Par"},
        {OUT_HARMONY, OUT_GPTOSS, "<|channel|>final<|message|>Hel", "Hel", ""},
        {OUT_NAMED, 0, "{\"a", "", "n|{\"a"},
    };
    for (size_t i = 0; i < sizeof at_once / sizeof at_once[0]; i++) {
        struct outparse_spec spec = {
            .tool = at_once[i].tool, .reasoning = at_once[i].reasoning, .named = "n"};
        struct outparse *p = NULL;
        struct outcheck o = {0};
        assert_int_equal(outparse_create(&p, &spec, outcheck_piece, &o, NULL), SL_OK);
        outparse_feed(p, at_once[i].text, strlen(at_once[i].text));
        for (size_t k = 0; k < o.calls.len; k++)
            o.calls.data[k] = o.calls.data[k] ? o.calls.data[k] : '|';
        assert_string_equal(o.content.len ? o.content.data : "", at_once[i].content);
        assert_string_equal(o.calls.len ? o.calls.data : "", at_once[i].calls);
        outparse_destroy(&p);
        outcheck_fini(&o);
    }
}

/* ---- texts made of pieces ------------------------------------------------------------------- */

static uint64_t seed;

static size_t roll(size_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(seed >> 33) % n;
}

static size_t random_cut(void *ctx)
{
    (void)ctx;
    return 1 + roll(9);
}

static size_t all(void *ctx)
{
    (void)ctx;
    return 0;
}

static const char *const scraps[] = {
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "\\",
    "'",
    "=",
    "{\"name\": \"f\", ",
    "\"arguments\": ",
    "\"parameters\": ",
    "{\"n\": 1}",
    "{\"name\": \"f\"",
    "{\"name\": \"g\", \"arguments\": {\"s\": \"x\"}}",
    "[TOOL_CALLS]",
    "[ARGS]",
    "f",
    "ping",
    "<|tool_call|>",
    "<|python_tag|>",
    "; ",
    "<think>",
    "</think>",
    "é",
    "你",
    "🙂",
    "<",
    "text ",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function<｜tool▁sep｜>",
    "\n```json\n",
    "\n```<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<function=f>",
    "</function>",
    "<parameter=n>",
    "</parameter>",
    "12",
    "-0.5e1",
    "true",
    "null",
    "None",
    "f(",
    ")",
    "s='a'",
    "<|channel|>analysis",
    "<|channel|>final",
    "<|channel|>commentary to=functions.f",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|start|>assistant",
    "Here is my thought process:",
    "Here's my response:",
    "a long text that says nothing and goes on for sixty-four bytes or more",
};

/* Half of the texts begin as a call does. */
static size_t make_text(char *text, size_t room, enum out_tool tool)
{
    static const char *const heads[] = {
        [OUT_HERMES] = "<tool_call>{\"name\": \"f\", \"arguments\": ",
        [OUT_LLAMA3_JSON] = "{\"name\": \"f\", \"parameters\": ",
        [OUT_MISTRAL] = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": ",
        [OUT_PYTHONIC] = "[f(s=",
        [OUT_GRANITE] = "[{\"name\": \"f\", \"arguments\": ",
        [OUT_DEEPSEEK_V3] = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f",
        [OUT_QWEN3_XML] = "<tool_call><function=f><parameter=n>",
        [OUT_HARMONY] = "<|channel|>commentary to=functions.f<|message|>",
        [OUT_REQUIRED] = "[{\"name\": \"f\", \"parameters\": ",
        [OUT_NAMED] = "{"};
    size_t n = 0, pieces = 1 + roll(14);
    if (roll(2) && heads[tool])
        n = (size_t)snprintf(text, room, "%s", heads[tool]);
    for (size_t i = 0; i < pieces; i++) {
        const char *scrap = scraps[roll(sizeof scraps / sizeof scraps[0])];
        size_t k = strlen(scrap);
        if (k > room - n)
            break;
        memcpy(text + n, scrap, k);
        n += k;
    }
    return n;
}

static void random_texts(void **state)
{
    (void)state;
    enum { ROUNDS = 1500 };
    json_t *tools = weather_tools();
    int calls = 0;
    for (int kind = OUT_TOOL_NONE; kind <= OUT_NAMED; kind++) {
        for (int round = 0; round < ROUNDS; round++) {
            char text[2000];
            seed = (uint64_t)kind * 1000003 + (uint64_t)round;
            (void)roll(2);
            struct outparse_spec spec = {.tool = (enum out_tool)kind,
                                         .reasoning = (enum out_reasoning)roll(5),
                                         .tools = tools,
                                         .named = "f"};
            size_t n = make_text(text, sizeof text, spec.tool);
            struct outparse_message m;
            struct outcheck o, parts;
            assert_int_equal(outparse_whole(&m, &spec, text, n, NULL), SL_OK);
            assert_true(outcheck_stream(&o, &spec, text, n, all, NULL));
            assert_true(outcheck_stream(&parts, &spec, text, n, random_cut, NULL));
            bool ok = outcheck_same(&o.content, &parts.content) &&
                      outcheck_same(&o.reasoning, &parts.reasoning) &&
                      outcheck_same(&o.calls, &parts.calls) && outcheck_whole(&m, &o);
            if (!ok)
                print_message("kind %d, reasoning %d: %.*s\n", kind, spec.reasoning, (int)n, text);
            assert_true(ok);
            calls += m.n_calls;
            outcheck_fini(&o);
            outcheck_fini(&parts);
            outparse_message_fini(&m);
        }
    }
    json_decref(tools);
    assert_true(calls > ROUNDS); /* not only broken ones */
}

/* Each step looks at new text only: a megabyte byte by byte takes no time to speak of. */
static void long_texts(void **state)
{
    (void)state;
    enum { LONG = 300000 };
    static const char *const fill[] = {" ", "a", "{\"a\":", "[", "<", "\\", "'"};
    char *text = malloc(LONG + 100);
    assert_non_null(text);
    for (int kind = OUT_TOOL_NONE; kind <= OUT_NAMED; kind++) {
        for (size_t f = 0; f < sizeof fill / sizeof fill[0]; f++) {
            struct outparse_spec spec = {.tool = (enum out_tool)kind,
                                         .named = "f",
                                         .reasoning = (enum out_reasoning)(f % 5)};
            struct outcheck o;
            size_t n = 0, k = strlen(fill[f]);
            seed = (uint64_t)kind;
            n = make_text(text, 100, spec.tool);
            for (; n + k < LONG; n += k)
                memcpy(text + n, fill[f], k);
            assert_true(outcheck_stream(&o, &spec, text, n, random_cut, NULL));
            outcheck_fini(&o);
        }
    }
    free(text);
}

static void no_memory(void **state)
{
    (void)state;
    static const char text[] =
        "Hm</think>A<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    struct outparse_spec spec = {.tool = OUT_HERMES, .reasoning = OUT_DEEPSEEK_R1};
    for (long nth = 1; nth < 100; nth++) {
        struct outparse_message m;
        struct sl_err err = {0};
        mem_fail_nth(nth);
        enum sl_status st = outparse_whole(&m, &spec, text, sizeof text - 1, &err);
        mem_fail_nth(0);
        if (st == SL_OK) {
            assert_int_equal(m.n_calls, 1);
            outparse_message_fini(&m);
            return;
        }
        assert_int_equal(st, SL_ENOMEM);
        assert_true(err.msg[0] != 0);
    }
    fail();
}

static void names(void **state)
{
    (void)state;
    enum out_tool tool;
    enum out_reasoning reasoning;
    int n = 0;
    for (; outparse_tool_name(n); n++)
        assert_true(outparse_tool_named(outparse_tool_name(n), &tool));
    assert_int_equal(n, 9);
    for (n = 0; outparse_reasoning_name(n); n++)
        assert_true(outparse_reasoning_named(outparse_reasoning_name(n), &reasoning));
    assert_int_equal(n, 4);
    assert_false(outparse_tool_named("Hermes", &tool));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(examples),     cmocka_unit_test(forced),     cmocka_unit_test(streams),
        cmocka_unit_test(random_texts), cmocka_unit_test(long_texts), cmocka_unit_test(no_memory),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
