/* Every vector of ../shared/data/tool_calls: in one piece, cut in two at each byte, byte by byte,
 * and in random pieces. Lines that are marked nonstream_only are only compared in one piece: a
 * stream may have named a call before it turned out broken. Lines that are marked ambiguous are
 * counted where we differ on purpose.
 * SLUICE_SHARED names the folder (default ../shared); without it the test is skipped.
 * SPDX-License-Identifier: Apache-2.0 */
#include "outcheck.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *text_of(const json_t *v, const char *key)
{
    return json_string_value(json_object_get(v, key));
}

static bool spec_of(const json_t *v, struct outparse_spec *spec)
{
    const char *parser = text_of(v, "parser"), *reasoning = text_of(v, "reasoning_parser");
    const char *variant = text_of(v, "variant");
    *spec = (struct outparse_spec){.tools = json_object_get(v, "tools")};
    bool alone =
        (variant && !strcmp(variant, "reasoning")) || !outparse_tool_named(parser, &spec->tool);
    if (alone) {
        spec->tool = OUT_TOOL_NONE;
        reasoning = parser;
    }
    bool known = !reasoning || outparse_reasoning_named(reasoning, &spec->reasoning);
    if (json_is_false(json_object_get(v, "enable_thinking")))
        spec->reasoning = OUT_REASONING_NONE;
    return known;
}

static bool same_text(const json_t *want, bool has, const struct strbuf *got)
{
    if (json_is_null(want))
        return !has;
    return has && json_string_length(want) == got->len &&
           (!got->len || !memcmp(json_string_value(want), got->data, got->len));
}

static bool same_call(const json_t *want, const char *name, size_t n_name, const char *args,
                      size_t n_args)
{
    const char *text = text_of(want, "arguments_text");
    json_t *value = json_loadb(args, n_args, JSON_DECODE_ANY, NULL);
    const char *expected = text_of(want, "name");
    bool same = strlen(expected) == n_name && !memcmp(expected, name, n_name);
    if (text)
        same &= strlen(text) == n_args && !memcmp(text, args, n_args);
    else
        same &= value && json_equal(value, json_object_get(want, "arguments"));
    json_decref(value);
    return same;
}

static bool same_message(const json_t *v, const struct outparse_message *m)
{
    const json_t *calls = json_object_get(v, "tool_calls");
    bool same = same_text(json_object_get(v, "content"), m->has_content, &m->content) &&
                same_text(json_object_get(v, "reasoning"), m->has_reasoning, &m->reasoning) &&
                json_array_size(calls) == (size_t)m->n_calls;
    for (int i = 0; same && i < m->n_calls; i++) {
        const struct outparse_call *c = &m->calls[i];
        same = same_call(json_array_get(calls, (size_t)i), c->name.data, c->name.len,
                         c->arguments.data ? c->arguments.data : "", c->arguments.len);
    }
    return same;
}

struct cuts {
    size_t first;
    uint64_t seed; /* 0: the first cut, then the rest */
};

static size_t next_cut(void *ctx)
{
    struct cuts *c = ctx;
    size_t k = c->first;
    c->first = 0;
    if (!c->seed)
        return k;
    c->seed = c->seed * 6364136223846793005u + 1442695040888963407u;
    return 1 + (c->seed >> 33) % 7;
}

static size_t one(void *ctx)
{
    (void)ctx;
    return 1;
}

static bool stream_matches(const struct outparse_spec *spec, const struct outparse_message *m,
                           const char *text, size_t n, size_t (*cut)(void *), void *ctx)
{
    struct outcheck o;
    bool ok = outcheck_stream(&o, spec, text, n, cut, ctx) && outcheck_whole(m, &o);
    outcheck_fini(&o);
    return ok;
}

/* Also every beginning of the text, as max_tokens may cut it. */
static bool every_cut(const struct outparse_spec *spec, const char *text, size_t n)
{
    bool ok = true;
    for (size_t len = n; ok && len + 1 > 0; len = len ? len - 1 : SIZE_MAX) {
        struct outparse_message m;
        if (outparse_whole(&m, spec, text, len, NULL))
            return false;
        ok = stream_matches(spec, &m, text, len, one, NULL);
        for (size_t k = len == n ? 1 : n; ok && k < len; k++)
            ok = stream_matches(spec, &m, text, len, next_cut, &(struct cuts){.first = k});
        for (uint64_t seed = 1; ok && seed < 4; seed++)
            ok = stream_matches(spec, &m, text, len, next_cut, &(struct cuts){.seed = seed});
        if (!ok)
            print_message("  differs when cut, at length %zu\n", len);
        outparse_message_fini(&m);
    }
    return ok;
}

static void show(const json_t *v, int line, const struct outparse_message *m, const char *what)
{
    print_message("line %d, %s: %s: %s\n  text: %.300s\n", line, text_of(v, "parser"), what,
                  text_of(v, "note"), text_of(v, "text"));
    print_message("  content %s%.200s, reasoning %s%.200s\n", m->has_content ? "" : "(null)",
                  m->content.data ? m->content.data : "", m->has_reasoning ? "" : "(null)",
                  m->reasoning.data ? m->reasoning.data : "");
    for (int i = 0; i < m->n_calls; i++)
        print_message("  call %s %.200s\n", m->calls[i].name.data,
                      m->calls[i].arguments.data ? m->calls[i].arguments.data : "");
}

static void vectors(void **state)
{
    (void)state;
    char name[512], line[1 << 16];
    const char *shared = getenv("SLUICE_SHARED");
    snprintf(name, sizeof name, "%s/data/tool_calls/vectors.jsonl", shared ? shared : "../shared");
    FILE *f = fopen(name, "r");
    if (!f) {
        print_message("no %s: skipped\n", name);
        skip();
    }
    int n = 0, wrong = 0, differs = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *v = json_loads(line, JSON_ALLOW_NUL, NULL);
        struct outparse_spec spec;
        struct outparse_message m;
        assert_non_null(v);
        const char *text = text_of(v, "text");
        size_t bytes = json_string_length(json_object_get(v, "text"));
        n++;
        assert_true(spec_of(v, &spec));
        assert_int_equal(outparse_whole(&m, &spec, text, bytes, NULL), SL_OK);
        if (!same_message(v, &m)) {
            bool ambiguous = json_is_true(json_object_get(v, "ambiguous"));
            show(v, n, &m, ambiguous ? "differs on purpose" : "WRONG");
            differs += ambiguous;
            wrong += !ambiguous;
        } else if (!json_is_true(json_object_get(v, "nonstream_only"))) {
            struct outcheck o;
            bool ok = outcheck_stream(&o, &spec, text, bytes, one, NULL);
            if (!ok || o.n_calls != m.n_calls) {
                show(v, n, &m, "WRONG as a stream");
                wrong++;
            }
            outcheck_fini(&o);
        }
        if (!every_cut(&spec, text, bytes)) {
            show(v, n, &m, "WRONG when cut");
            wrong++;
        }
        outparse_message_fini(&m);
        json_decref(v);
    }
    fclose(f);
    print_message("%d vectors, %d wrong, %d ambiguous ones differ\n", n, wrong, differs);
    assert_int_equal(wrong, 0);
    assert_true(n > 400 && differs <= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(vectors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
