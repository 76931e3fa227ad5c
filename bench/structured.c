/* What structured output costs: compiling each schema of a file, and the mask of every token of its
 * valid instances, the first time and again.
 *
 *     bench_structured NAME TOKENIZER_FOLDER SCHEMAS.jsonl
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/mem.h"
#include "grammar/grammar.h"
#include "text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct series {
    double *us;
    int n, cap;
};

static void add(struct series *s, int64_t ns)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 4096;
        s->us = mem_realloc(s->us, (size_t)s->cap, sizeof *s->us);
        if (!s->us)
            abort();
    }
    s->us[s->n++] = (double)ns / 1000;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void show(const char *name, struct series *s, const char *end)
{
    qsort(s->us, (size_t)s->n, sizeof *s->us, by_value);
    printf("\"%s\": {\"n\": %d, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.1f}%s", name, s->n,
           s->us[s->n / 2], s->us[(int)(0.99 * s->n)], s->us[s->n - 1], end);
}

static void follow(struct grammar *g, const struct tokenizer *t, const json_t *value, int32_t eos,
                   uint32_t *bits, int n_words, struct series *s)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    struct token_vec v = {0};
    struct matcher *m = NULL;
    struct sl_err err = {0};
    if (tokenizer_encode(t, text, strlen(text), ENCODE_PLAIN, 0, &v, &err) ||
        matcher_create(&m, g, &eos, 1, &err))
        abort();
    for (size_t i = 0; i <= v.n; i++) {
        int n_allowed;
        int32_t forced;
        int64_t start = clock_mono_ns();
        if (matcher_mask(m, bits, n_words, &n_allowed, &forced))
            abort();
        if (i < v.n && matcher_accept(m, v.ids[i]))
            abort();
        add(s, clock_mono_ns() - start);
    }
    matcher_destroy(&m);
    token_vec_fini(&v);
    free(text);
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct grammar_lib *lib = NULL;
    struct sl_err err = {0};
    struct series compiled = {0}, again = {0}, cold = {0}, warm = {0};
    char *line = NULL;
    size_t cap = 0;
    if (argc != 4 || tokenizer_load(&t, argv[2], &err)) {
        fprintf(stderr, "usage: bench_structured NAME TOKENIZER_FOLDER SCHEMAS.jsonl  %s\n",
                err.msg);
        return 2;
    }
    const struct vocab *v = tokenizer_vocab(t);
    int n_words = (v->n + 31) / 32;
    uint32_t *bits = mem_alloc((size_t)n_words, sizeof *bits);
    int64_t start = clock_mono_ns();
    if (!bits || grammar_lib_create(&lib, v, v->n - 1, &err))
        return 1;
    int64_t trie_ns = clock_mono_ns() - start;
    FILE *f = fopen(argv[3], "r");
    while (f && getline(&line, &cap, f) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        char *schema = json_dumps(json_object_get(row, "schema"), JSON_ENCODE_ANY);
        const json_t *valid = json_object_get(row, "valid");
        struct grammar_spec spec = {
            .kind = GRAMMAR_JSON_SCHEMA, .text = schema, .n_text = strlen(schema)};
        struct grammar *g = NULL, *same = NULL;
        start = clock_mono_ns();
        if (grammar_compile(lib, &spec, &g, &err))
            return 1;
        add(&compiled, clock_mono_ns() - start);
        start = clock_mono_ns();
        if (grammar_compile(lib, &spec, &same, &err))
            return 1;
        add(&again, clock_mono_ns() - start);
        for (int pass = 0; pass < 2; pass++)
            for (size_t i = 0; i < json_array_size(valid); i++)
                follow(g, t, json_array_get(valid, i), v->n - 1, bits, n_words,
                       pass ? &warm : &cold);
        grammar_unref(&g);
        grammar_unref(&same);
        json_decref(row);
        free(schema);
    }
    printf("{\"vocabulary\": \"%s\", \"tokens\": %d, \"trie_ms\": %.1f, ", argv[1], v->n,
           (double)trie_ns / 1e6);
    show("compile_us", &compiled, ", ");
    show("compile_cached_us", &again, ", ");
    show("mask_first_us", &cold, ", ");
    show("mask_again_us", &warm, "}\n");
    if (f)
        fclose(f);
    free(line);
    mem_free(bits);
    mem_free(compiled.us);
    mem_free(again.us);
    mem_free(cold.us);
    mem_free(warm.us);
    grammar_lib_destroy(&lib);
    tokenizer_destroy(&t);
    return 0;
}
