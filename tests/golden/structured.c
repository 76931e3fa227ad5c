/* Structured output on ../shared/data/structured_output, with pebble's vocabulary: every schema
 * compiles, every valid instance is accepted token by token in several spellings, every invalid one
 * is rejected; of the JSON-Schema suite, what compiles, and every refusal, printed.
 *
 * SLUICE_SHARED names the folder (default ../shared); without it the test is skipped.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "grammar/grammar.h"
#include "text/tokenizer.h"

#include <dirent.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What was reached; a change may only raise these. */
enum { SUITE_GROUPS = 383, SUITE_COMPILED = 297, SUITE_VALID_ACCEPTED = 627 };

static const char *shared;
static struct tokenizer *tok;
static struct grammar_lib *lib;

static bool skipped(void)
{
    char path[512];
    FILE *f;
    shared = getenv("SLUICE_SHARED");
    if (!shared)
        shared = "../shared";
    snprintf(path, sizeof path, "%s/data/structured_output/schemas.jsonl", shared);
    f = fopen(path, "r");
    if (f)
        fclose(f);
    return !f;
}

static int open_all(void **state)
{
    struct sl_err err = {0};
    (void)state;
    if (skipped())
        return 0;
    assert_int_equal(tokenizer_load(&tok, "models/pebble", &err), SL_OK);
    assert_int_equal(grammar_lib_create(&lib, tokenizer_vocab(tok), -1, &err), SL_OK);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    grammar_lib_destroy(&lib);
    tokenizer_destroy(&tok);
    return 0;
}

static struct grammar *compile(const json_t *schema, struct sl_err *err)
{
    char *text = json_dumps(schema, JSON_ENCODE_ANY);
    struct grammar_spec spec = {.kind = GRAMMAR_JSON_SCHEMA, .text = text, .n_text = strlen(text)};
    struct grammar *g = NULL;
    if (grammar_compile(lib, &spec, &g, err))
        g = NULL;
    free(text);
    return g;
}

/* A whole output? */
static bool accepts(struct grammar *g, const char *text)
{
    struct matcher *m = NULL;
    struct sl_err err = {0};
    struct token_vec v = {0};
    bool ok = true;
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), ENCODE_PLAIN, 0, &v, &err), SL_OK);
    assert_int_equal(matcher_create(&m, g, NULL, 0, &err), SL_OK);
    for (size_t i = 0; i < v.n && ok; i++)
        ok = matcher_accept(m, v.ids[i]) == SL_OK;
    ok = ok && matcher_may_end(m);
    token_vec_fini(&v);
    matcher_destroy(&m);
    return ok;
}

/* The ways in which JSON is commonly written. */
static const size_t spellings[] = {
    JSON_ENCODE_ANY, JSON_ENCODE_ANY | JSON_COMPACT, JSON_ENCODE_ANY | JSON_ENSURE_ASCII,
    JSON_ENCODE_ANY | JSON_INDENT(2), JSON_ENCODE_ANY | JSON_INDENT(4) | JSON_ESCAPE_SLASH};

static bool accepts_value(struct grammar *g, const json_t *v, size_t flags)
{
    char *text = json_dumps(v, flags | JSON_REAL_PRECISION(15));
    bool ok = accepts(g, text);
    free(text);
    return ok;
}

/* Not what a grammar promises. */
static bool is_exempt(const json_t *why)
{
    for (size_t i = 0; i < json_array_size(why); i++) {
        const char *s = json_string_value(json_array_get(why, i));
        if (strstr(s, "uniqueItems") == NULL)
            return false;
    }
    return true;
}

static void check_schema(const json_t *row, int *n_valid, int *n_invalid, int *n_exempt, int *bad)
{
    const char *name = json_string_value(json_object_get(row, "name"));
    const json_t *valid = json_object_get(row, "valid"), *invalid = json_object_get(row, "invalid");
    struct sl_err err = {0};
    struct grammar *g = compile(json_object_get(row, "schema"), &err);
    if (!g) {
        print_message("%s: does not compile: %s\n", name, err.msg);
        (*bad)++;
        return;
    }
    for (size_t i = 0; i < json_array_size(valid); i++, (*n_valid)++)
        for (size_t k = 0; k < sizeof spellings / sizeof *spellings; k++)
            if (!accepts_value(g, json_array_get(valid, i), spellings[k])) {
                char *text = json_dumps(json_array_get(valid, i), spellings[k]);
                print_message("%s: rejects valid %.300s\n", name, text);
                free(text);
                (*bad)++;
            }
    for (size_t i = 0; i < json_array_size(invalid); i++, (*n_invalid)++) {
        const json_t *why = json_array_get(json_object_get(row, "invalid_why"), i);
        if (is_exempt(why)) {
            (*n_exempt)++;
        } else if (accepts_value(g, json_array_get(invalid, i), JSON_ENCODE_ANY)) {
            char *text = json_dumps(json_array_get(invalid, i), JSON_ENCODE_ANY);
            print_message("%s: accepts invalid %.300s\n", name, text);
            free(text);
            (*bad)++;
        }
    }
    grammar_unref(&g);
}

static void the_generated_schemas(void **state)
{
    char path[512], *line = NULL;
    size_t cap = 0;
    int n = 0, n_valid = 0, n_invalid = 0, n_exempt = 0, bad = 0;
    (void)state;
    if (skipped())
        skip();
    snprintf(path, sizeof path, "%s/data/structured_output/schemas.jsonl", shared);
    FILE *f = fopen(path, "r");
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *row = json_loads(line, 0, NULL);
        check_schema(row, &n_valid, &n_invalid, &n_exempt, &bad);
        json_decref(row);
    }
    fclose(f);
    free(line);
    print_message(
        "%d schemas, %d valid instances in %zu spellings each, %d invalid ones of which %d "
        "break nothing but uniqueItems\n",
        n, n_valid, sizeof spellings / sizeof *spellings, n_invalid, n_exempt);
    assert_int_equal(n, 400);
    assert_int_equal(n_valid, 1922);
    assert_int_equal(n_invalid, 3136);
    assert_int_equal(bad, 0);
}

/* ---- the suite ------------------------------------------------------------------------------- */

struct suite {
    int groups, compiled, valid, accepted, invalid, wrong;
};

static void check_group(const char *file, const json_t *group, struct suite *s)
{
    const char *name = json_string_value(json_object_get(group, "description"));
    struct sl_err err = {0};
    struct grammar *g = compile(json_object_get(group, "schema"), &err);
    const json_t *tests = json_object_get(group, "tests");
    s->groups++;
    if (!g) {
        print_message("refused: %s: %s: %s\n", file, name, err.msg);
        assert_int_equal(err.code, SL_EINVAL);
        return;
    }
    s->compiled++;
    for (size_t i = 0; i < json_array_size(tests); i++) {
        const json_t *t = json_array_get(tests, i), *data = json_object_get(t, "data");
        bool valid = json_is_true(json_object_get(t, "valid"));
        bool accepted = accepts_value(g, data, JSON_ENCODE_ANY);
        s->valid += valid;
        s->accepted += valid && accepted;
        s->invalid += !valid;
        if (!valid && accepted && strcmp(file, "uniqueItems.json") != 0) {
            char *text = json_dumps(data, JSON_ENCODE_ANY);
            print_message("accepts invalid: %s: %s: %.200s\n", file, name, text);
            free(text);
            s->wrong++;
        }
    }
    grammar_unref(&g);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void the_json_schema_suite(void **state)
{
    char dir[512], path[1024];
    struct dirent **names;
    struct suite s = {0};
    (void)state;
    if (skipped())
        skip();
    snprintf(dir, sizeof dir, "%s/data/structured_output/json-schema-test-suite/tests/draft2020-12",
             shared);
    int n = scandir(dir, &names, NULL, by_name);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", dir, names[i]->d_name);
            json_t *groups = json_load_file(path, JSON_ALLOW_NUL, NULL);
            if (!groups) /* integers beyond 64 bits */
                groups = json_load_file(path, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
            assert_non_null(groups);
            for (size_t k = 0; k < json_array_size(groups); k++)
                check_group(names[i]->d_name, json_array_get(groups, k), &s);
            json_decref(groups);
        }
        free(names[i]);
    }
    free(names);
    print_message("suite: %d of %d groups compile; of their valid instances %d of %d are accepted, "
                  "%d of %d invalid ones too\n",
                  s.compiled, s.groups, s.accepted, s.valid, s.wrong, s.invalid);
    assert_int_equal(s.groups, SUITE_GROUPS);
    assert_true(s.compiled >= SUITE_COMPILED);
    assert_true(s.accepted >= SUITE_VALID_ACCEPTED);
    assert_int_equal(s.wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_generated_schemas),
        cmocka_unit_test(the_json_schema_suite),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
