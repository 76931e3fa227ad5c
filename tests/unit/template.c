/* SPDX-License-Identifier: Apache-2.0
 *
 * The chat-template language in small: each case is a template, its variables and what Python's
 * Jinja2 makes of it. Then templates that mean harm, and a sweep of failing allocations. */
#include "base/mem.h"
#include "text/template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* The text, or NULL with *err set. Free with mem_free. */
static char *render(const char *source, const char *vars, struct sl_err *err)
{
    struct template *t = NULL;
    char *text = NULL;
    size_t bytes;
    if (template_compile(&t, source, strlen(source), err))
        return NULL;
    json_t *j = template_vars_parse(vars, strlen(vars), err);
    assert_non_null(j);
    if (template_render(t, j, NULL, "2024-07-26T12:00:00", NULL, &text, &bytes, err))
        assert_null(text);
    else
        assert_int_equal(bytes, strlen(text));
    json_decref(j);
    template_destroy(&t);
    return text;
}

static void gives(const char *source, const char *vars, const char *want)
{
    struct sl_err err = {0};
    char *text = render(source, vars, &err);
    if (!text)
        fail_msg("%s: %s", source, err.msg);
    assert_string_equal(text, want);
    mem_free(text);
}

static void fails(const char *source, const char *want)
{
    struct sl_err err = {0};
    char *text = render(source, "{\"n\": null, \"l\": [1, 2], \"d\": {\"a\": 1}}", &err);
    if (text)
        fail_msg("%s: gave '%s' instead of failing", source, text);
    assert_int_equal(err.code, SL_EINVAL);
    if (!strstr(err.msg, want))
        fail_msg("%s: the message is '%s', not '%s'", source, err.msg, want);
}

static void test_whitespace(void **state)
{
    (void)state;
    gives("a\n{% if true %}\nb\n{% endif %}\nc\n", "{}", "a\nb\nc");
    gives("  {% if true %}x{% endif %}", "{}", "x");
    gives("  {%+ if true %}x{% endif %}", "{}", "  x");
    gives("a {{- ' b ' -}} c", "{}", "a b c");
    gives("{#- x -#} y {# z #}\nw", "{}", "y w");
    gives("{% raw %}{{ x }}{% endraw %}", "{}", "{{ x }}");
    gives("a\r\nb\rc", "{}", "a\nb\nc");
}

static void test_scoping(void **state)
{
    (void)state;
    gives("{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "{}",
          "231");
    gives("{% macro m() %}{{ y }}{% endmacro %}{% set y = 2 %}{{ m() }}", "{\"y\": 1}", "2");
    gives("{{ y }}{% set y = 2 %}{{ y }}", "{\"y\": 1}", "12");
    gives("{% if false %}{% set y = 2 %}{% endif %}{{ y }}", "{\"y\": 1}", "1");
    gives("{% for x in [1] %}{% continue %}{% else %}e{% endfor %}", "{}", "e");
    gives(
        "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}"
        "{{ ns.n }}",
        "{}", "6");
    gives("{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
          "{}", "123");
}

static void test_values(void **state)
{
    (void)state;
    gives("{{ [1, 'a', none, true, 2.0, {'k': (1,)}] }}", "{}",
          "[1, 'a', None, True, 2.0, {'k': (1,)}]");
    gives("{{ 2**100 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 1e16 }} {{ big + 1 }}",
          "{\"big\": 123456789012345678901234567890}",
          "1267650600228229401496703205376 -4 2 3.5 1e+16 123456789012345678901234567891");
    gives("{{ 'h\xc3\xa9llo'[1:3] }} {{ 'abc'[::-1] }} {{ 'h\xc3\xa9llo'|length }}", "{}",
          "\xc3\xa9l cba 5");
    gives("{{ {'a': [1, \"\xc3\xa9\"], 'b': 1.5}|tojson }}", "{}",
          "{\"a\": [1, \"\xc3\xa9\"], \"b\": 1.5}");
    gives("{{ x.y is defined }}{{ x.y }}{{ x['y']|default('d') }}", "{\"x\": {}}", "Falsed");
    gives("{{ ('<b>'|safe) + '<i>' }}", "{}", "<b>&lt;i&gt;");
    gives("{{ strftime_now('%d %B %Y') }}", "{}", "26 July 2024");
}

static void test_errors(void **state)
{
    (void)state;
    fails("{{ raise_exception('no, ' ~ 1) }}", "no, 1");
    fails("\n{{ nothing.x }}", "line 2, column 11: 'nothing' is undefined");
    fails("{{ 1 + 'a' }}", "unsupported operand type(s) for +: 'int' and 'str'");
    fails("{{ 'a' + 1 }}", "can only concatenate str (not \"int\") to str");
    fails("{{ l.append(3) }}", "access to attribute 'append' of 'list' object is unsafe");
    fails("{% if x %}", "unexpected end of template");
    fails("{% endif %}", "encountered unknown tag 'endif'");
    fails("{{ x | nosuch }}", "no filter named 'nosuch'");
    fails("{{ 'x }}", "line 1, column 4");
    fails("{% include 'x' %}", "no loader");
    fails("{{ 1 / 0 }}", "division by zero");
}

static void test_hostile(void **state)
{
    (void)state;
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply");
    fails("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
          "does not come to an end");
    fails("{{ 'x' * 10000000000 }}", "chat template");
    fails("{{ [0] * 10000000000 }}", "chat template");
    fails("{{ range(10000000) }}", "range too big");
    fails("{{ 9 ** (9 ** (9 ** 9)) }}", "too large");
    fails("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
          "{% endfor %}",
          "chat template");
    fails("{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}", "chat template");
    char deep[4096];
    memset(deep, '(', sizeof deep);
    memcpy(deep, "{{", 2);
    deep[sizeof deep - 1] = 0;
    fails(deep, "nested too deeply");
    for (size_t i = 2; i + 4 < sizeof deep; i += 4)
        memcpy(deep + i, "not ", 4);
    fails(deep, "nested too deeply");
}

/* Whatever allocation fails, the call says so and nothing leaks or breaks. */
static void test_no_memory(void **state)
{
    (void)state;
    const char source[] = "{% macro m(x) %}<{{ x }}>{% endmacro %}{% set ns = namespace(s='') %}{% "
                          "for i in range(40) "
                          "%}{% set ns.s = ns.s ~ m(i) %}{% endfor %}{{ ns.s }}{{ d|tojson }}{{ "
                          "l|map('string')|join }}";
    json_t *vars = json_pack("{s:{s:i}, s:[i, s]}", "d", "k", 1, "l", 2, "x");
    bool done = false;
    long n;
    for (n = 1; !done; n++) {
        struct template *t = NULL;
        struct sl_err err = {0};
        char *text = NULL;
        size_t bytes;
        mem_fail_nth(n);
        enum sl_status st = template_compile(&t, source, sizeof source - 1, &err);
        assert_true(!st == (t != NULL));
        if (!st)
            st = template_render(t, vars, NULL, NULL, NULL, &text, &bytes, &err);
        mem_fail_nth(0);
        done = !st;
        if (st) {
            assert_int_equal(st, SL_ENOMEM);
            assert_int_equal(err.code, SL_ENOMEM);
            assert_null(text);
        } else {
            assert_non_null(strstr(text, "<39>{\"k\": 1}2x"));
        }
        mem_free(text);
        template_destroy(&t);
    }
    assert_true(n > 10);
    json_decref(vars);
}

/* The deepest nesting that the limits let through fits a thread's stack many times. */
static void *deep_templates(void *arg)
{
    (void)arg;
    fails("{% macro m() %}{% for i in [1] %}{% if i %}{{ (m()|upper) ~ 1 }}{% endif %}{% endfor %}"
          "{% endmacro %}{{ m() }}",
          "nested too deeply");
    fails("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "nested too deeply");
    fails("{% set ns = namespace() %}{% set ns.l = [] %}{% for i in range(5000) %}{% set ns.l = "
          "[ns.l] %}{% endfor %}{{ ns.l }}",
          "nested too deeply");
    fails("{% set ns = namespace() %}{% set ns.l = [] %}{% for i in range(5000) %}{% set ns.l = "
          "ns.l|map('list') %}{% endfor %}{{ ns.l|list }}",
          "nested too deeply");
    return NULL;
}

static void test_stack(void **state)
{
    (void)state;
    pthread_attr_t attr;
    pthread_t thread;
    assert_int_equal(pthread_attr_init(&attr), 0);
    assert_int_equal(pthread_attr_setstacksize(&attr, 2 << 20), 0);
    assert_int_equal(pthread_create(&thread, &attr, deep_templates, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attr);
}

static void content_parts(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        bool parts;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", false},
        {"{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
         true},
        {"{% for m in messages[1:] %}{% if m['content'] is string %}x{% else %}{% for c in "
         "m['content'] | list %}y{% endfor %}{% endif %}{% endfor %}",
         true},
        {"{% set all = messages %}{% for x in all %}{% for c in x.content %}{% endfor %}{% endfor "
         "%}",
         true},
        {"{% macro show(content) %}{% for c in content %}{{ c }}{% endfor %}{% endmacro %}", true},
        {"{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{% endfor %}",
         false},
        {"{% for m in other %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct template *t = NULL;
        assert_int_equal(template_compile(&t, cases[i].source, strlen(cases[i].source), NULL),
                         SL_OK);
        if (template_reads_parts(t) != cases[i].parts)
            print_message("%s\n", cases[i].source);
        assert_int_equal(template_reads_parts(t), cases[i].parts);
        template_destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(content_parts),  cmocka_unit_test(test_whitespace),
        cmocka_unit_test(test_scoping),   cmocka_unit_test(test_values),
        cmocka_unit_test(test_errors),    cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_no_memory), cmocka_unit_test(test_stack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
