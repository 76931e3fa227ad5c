/* SPDX-License-Identifier: Apache-2.0
 *
 * Renderings of real chat templates and of language cases, byte for byte as Python's Jinja2 gives
 * them in transformers' configuration. The data is not in the repository: SLUICE_SHARED (or
 * ../shared) names the folder that has data/chat_templates.
 *
 * With --lines it renders what it reads instead: each line of standard input is {"template": text,
 * "context": {variables}}, each line of standard output {"text": ...} or {"error": ...}. This is
 * how the differential fuzzers (jinja_fuzz.py, templates_fuzz.py) ask it. */
#include "base/mem.h"
#include "text/template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char folder[900];
static bool have_data;

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    char *p = NULL;
    size_t cap = 0;
    *n = 0;
    for (size_t got = 1; got; *n += got) {
        if (cap - *n < 65536)
            p = realloc(p, cap += 1 << 20);
        got = fread(p + *n, 1, cap - *n - 1, f);
    }
    p[*n] = 0;
    fclose(f);
    return p;
}

static char *read_data(const char *name, size_t *n)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return read_file(path, n);
}

static struct template *compiled(const char *source, size_t n, struct sl_err *err)
{
    struct template *t = NULL;
    return template_compile(&t, source, n, err) ? NULL : t;
}

/* A failure has a place: a line and a column that exist in the template. */
static bool has_position(const struct sl_err *err)
{
    unsigned line, column;
    return sscanf(err->msg, "chat template, line %u, column %u:", &line, &column) == 2 && line &&
           column;
}

static void show_difference(const char *want, size_t want_n, const char *got, size_t got_n)
{
    size_t i = 0;
    while (i < want_n && i < got_n && want[i] == got[i])
        i++;
    size_t from = i > 40 ? i - 40 : 0;
    printf("  at byte %zu\n  want: %.*s\n  got:  %.*s\n", i,
           (int)(want_n - from < 160 ? want_n - from : 160), want + from,
           (int)(got_n - from < 160 ? got_n - from : 160), got + from);
}

/* One line of a file. `source` overrides the template. */
static bool check(const json_t *c, const char *source, size_t n, const json_t *vars)
{
    struct sl_err err = {0};
    char *text = NULL;
    size_t bytes = 0;
    struct template *t = compiled(source, n, &err);
    const char *now = json_string_value(json_object_get(c, "now"));
    if (t && template_render(t, vars, NULL, now ? now : "2024-07-26T12:00:00", NULL, &text, &bytes,
                             &err))
        text = NULL;
    template_destroy(&t);
    const json_t *want = json_object_get(c, "expected");
    bool ok;
    if (want) {
        ok = text && bytes == json_string_length(want) &&
             !memcmp(text, json_string_value(want), bytes);
    } else {
        const char *kind = json_string_value(json_object_get(c, "error_kind"));
        const char *message = json_string_value(json_object_get(c, "message"));
        ok = !text;
        if (ok && kind && !strcmp(kind, "TemplateError") && message)
            ok = !strcmp(err.msg, message);
        else if (ok && kind && strcmp(kind, "TemplateError"))
            ok = has_position(&err);
    }
    if (!ok) {
        printf("FAILED: %s %s\n", json_string_value(json_object_get(c, "template")),
               json_string_value(json_object_get(c, "name")));
        if (want && text)
            show_difference(json_string_value(want), json_string_length(want), text, bytes);
        else
            printf("  %s\n", text ? "was rendered, but should have failed" : err.msg);
    }
    mem_free(text);
    return ok;
}

static void check_line(const char *line, size_t n, bool inline_source, const json_t *default_vars,
                       int *n_ok, int *n_all)
{
    struct sl_err err = {0};
    json_t *c = template_vars_parse(line, n, &err);
    assert_non_null(c);
    const char *name = json_string_value(json_object_get(c, "template"));
    const json_t *vars = json_object_get(c, "context");
    if (!vars)
        vars = default_vars;
    size_t bytes = json_string_length(json_object_get(c, "template"));
    char *source = NULL;
    if (!inline_source) {
        source = read_data(name, &bytes);
        assert_non_null(source);
    }
    *n_ok += check(c, source ? source : name, bytes, vars);
    ++*n_all;
    free(source);
    json_decref(c);
}

static void run_file(const char *name, bool inline_source, const json_t *vars)
{
    size_t n;
    if (!have_data) {
        printf("skipped: no data in %s\n", folder);
        skip();
    }
    char *all = read_data(name, &n);
    assert_non_null(all);
    int n_ok = 0, n_all = 0;
    for (char *at = all; *at;) {
        char *end = strchr(at, '\n');
        size_t len = end ? (size_t)(end - at) : strlen(at);
        if (len)
            check_line(at, len, inline_source, vars, &n_ok, &n_all);
        at += len + (end != NULL);
    }
    free(all);
    printf("%s: %d of %d\n", name, n_ok, n_all);
    assert_true(n_all > 0);
    assert_int_equal(n_ok, n_all);
}

static void test_goldens(void **state)
{
    (void)state;
    run_file("goldens.jsonl", false, NULL);
}

static void test_goldens_own(void **state)
{
    (void)state;
    run_file("goldens_own.jsonl", false, NULL);
}

static void test_conformance(void **state)
{
    (void)state;
    run_file("jinja_conformance.jsonl", true, NULL);
}

static void test_own(void **state)
{
    (void)state;
    size_t n = 0;
    struct sl_err err = {0};
    json_t *vars = NULL;
    if (have_data) {
        char *text = read_data("jinja_own_context.json", &n);
        assert_non_null(text);
        vars = template_vars_parse(text, n, &err);
        free(text);
        assert_non_null(vars);
    }
    run_file("jinja_own.jsonl", true, vars);
    json_decref(vars);
}

static void answer_line(const char *line, size_t n)
{
    struct sl_err err = {0};
    char *text = NULL;
    size_t bytes = 0;
    struct template *t = NULL;
    json_t *c = template_vars_parse(line, n, &err), *out = NULL;
    const json_t *source = json_object_get(c, "template");
    if (c)
        t = compiled(json_string_value(source), json_string_length(source), &err);
    if (t && !template_render(t, json_object_get(c, "context"), NULL, "2024-07-26T12:00:00", NULL,
                              &text, &bytes, &err))
        out = json_pack("{s:s%}", "text", text, bytes);
    if (!out)
        out = json_pack("{s:s}", "error", err.msg);
    json_dumpf(out, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(out);
    json_decref(c);
    mem_free(text);
    template_destroy(&t);
}

static int answer_lines(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0)
        answer_line(line, (size_t)n);
    free(line);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--lines"))
        return answer_lines();
    const char *shared = getenv("SLUICE_SHARED");
    snprintf(folder, sizeof folder, "%s/data/chat_templates", shared ? shared : "../shared");
    size_t n;
    char *readme = read_data("README.md", &n);
    have_data = readme != NULL;
    free(readme);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conformance),
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_goldens_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
