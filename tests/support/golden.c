/* SPDX-License-Identifier: Apache-2.0 */
#include "support/golden.h"

#include "model/jsonfile.h"
#include "text/tokenizer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char PROMPTS[] = "tests/golden/pebble/generate.jsonl";
static const char PERPLEXITY[] = "tests/golden/pebble/perplexity.json";
static const char TEXT[] = "tests/golden/pebble/perplexity.txt";
enum { WINDOW = 1024, BOS = 1 };

/* ---- reading ------------------------------------------------------------------------------- */

static int32_t *read_ids(const json_t *a, int *n)
{
    *n = (int)json_array_size(a);
    int32_t *ids = mem_alloc((size_t)*n, sizeof *ids);
    for (int i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(a, (size_t)i));
    return ids;
}

static void read_logprobs(struct golden *g, const json_t *list)
{
    assert_int_equal(json_array_size(list), g->n_output);
    g->logprob = mem_alloc((size_t)g->n_output, sizeof *g->logprob);
    g->gap = mem_alloc((size_t)g->n_output, sizeof *g->gap);
    for (int i = 0; i < g->n_output; i++) {
        const json_t *e = json_array_get(list, (size_t)i), *top = json_object_get(e, "top");
        g->logprob[i] = json_number_value(json_object_get(e, "logprob"));
        g->gap[i] = json_number_value(json_array_get(json_array_get(top, 0), 1)) -
                    json_number_value(json_array_get(json_array_get(top, 1), 1));
    }
}

static void read_golden(struct golden *g, const json_t *j)
{
    snprintf(g->id, sizeof g->id, "%s", json_string_value(json_object_get(j, "id")));
    g->prompt = read_ids(json_object_get(j, "prompt_ids"), &g->n_prompt);
    g->output = read_ids(json_object_get(j, "output_ids"), &g->n_output);
    const json_t *near = json_object_get(j, "near_tie_at");
    g->near_tie_at = json_is_integer(near) ? (int)json_integer_value(near) : g->n_output;
    read_logprobs(g, json_object_get(j, "logprobs"));
    const json_t *pl = json_object_get(j, "prompt_logprobs");
    if (!json_is_array(pl))
        return;
    assert_int_equal(json_array_size(pl), g->n_prompt);
    g->prompt_logprob = mem_zalloc((size_t)g->n_prompt, sizeof *g->prompt_logprob);
    for (int i = 1; i < g->n_prompt; i++)
        g->prompt_logprob[i] = json_number_value(json_array_get(pl, (size_t)i));
}

struct golden *golden_load(int *n)
{
    FILE *f = fopen(PROMPTS, "r");
    if (!f)
        fail_msg("%s: not there (run from the repository's root)", PROMPTS);
    struct golden *g = NULL;
    char *line = NULL;
    size_t cap = 0;
    *n = 0;
    while (getline(&line, &cap, f) > 0) {
        json_t *j = json_loads(line, 0, NULL);
        assert_non_null(j);
        g = mem_realloc(g, (size_t)*n + 1, sizeof *g);
        memset(&g[*n], 0, sizeof *g);
        read_golden(&g[(*n)++], j);
        json_decref(j);
    }
    free(line); /* getline's */
    fclose(f);
    return g;
}

void golden_free(struct golden **g, int n)
{
    for (int i = 0; i < n; i++) {
        mem_free((*g)[i].prompt);
        mem_free((*g)[i].output);
        mem_free((*g)[i].logprob);
        mem_free((*g)[i].gap);
        mem_free((*g)[i].prompt_logprob);
    }
    mem_free(*g);
    *g = NULL;
}

/* ---- greedy decoding ----------------------------------------------------------------------- */

/* One prompt under way. */
struct run {
    const struct golden *g;
    struct drive_seq seq;
    int n_done; /* output tokens compared */
    bool over;
};

struct compare {
    struct run **run; /* item i of the step is run[i] */
    double tie;
    struct golden_report *out;
};

static void max_error(double *worst, double got, double want)
{
    double e = fabs(got - want);
    if (!(e <= *worst)) /* NaN counts */
        *worst = isnan(e) ? INFINITY : e;
}

static void compare_token(const struct compare *c, struct run *r, const float *logits, int vocab)
{
    const struct golden *g = r->g;
    int step = r->n_done, best = drive_argmax(logits, vocab);
    if (best != g->output[step]) {
        r->over = true;
        for (int i = 0; i <= step; i++)
            if (g->gap[i] < c->tie)
                return;
        print_message("%s: step %d chooses %d, not %d\n", g->id, step, best, g->output[step]);
        c->out->n_bad++;
        return;
    }
    max_error(&c->out->worst_logprob, drive_logprob(logits, vocab, best), g->logprob[step]);
    drive_seq_push(&r->seq, best);
    r->over = ++r->n_done == g->n_output;
    c->out->n_identical += r->over;
}

static void see_logits(void *ctx, int item, int pos, const float *logits, int vocab)
{
    const struct compare *c = ctx;
    struct run *r = c->run[item];
    const struct golden *g = r->g;
    if (pos + 1 < g->n_prompt) {
        if (g->prompt_logprob)
            max_error(&c->out->worst_prompt_logprob,
                      drive_logprob(logits, vocab, g->prompt[pos + 1]), g->prompt_logprob[pos + 1]);
        return;
    }
    compare_token(c, r, logits, vocab);
}

static void start(struct drive *d, struct compare *c, struct run *r, const struct golden *g)
{
    enum { CHUNK = 256 };
    *r = (struct run){.g = g};
    drive_seq_init(d, &r->seq, g->prompt, g->n_prompt, g->n_prompt + g->n_output);
    while (r->seq.n_computed < g->n_prompt) {
        int left = g->n_prompt - r->seq.n_computed;
        struct drive_item it = {.seq = &r->seq,
                                .n = left < CHUNK ? left : CHUNK,
                                .all_logits = g->prompt_logprob != NULL};
        struct run *one[] = {r};
        c->run = one;
        drive_step(d, &it, 1, it.n == left || g->prompt_logprob ? see_logits : NULL, c);
    }
}

void golden_run(struct drive *d, const struct golden *g, int n, int width, double tie,
                struct golden_report *out)
{
    struct run *runs = mem_zalloc((size_t)width, sizeof *runs);
    struct run **active = mem_zalloc((size_t)width, sizeof *active);
    struct drive_item *items = mem_zalloc((size_t)width, sizeof *items);
    *out = (struct golden_report){0};
    struct compare c = {.tie = tie, .out = out};
    for (int at = 0; at < n; at += width) {
        int k = n - at < width ? n - at : width;
        for (int i = 0; i < k; i++)
            start(d, &c, &runs[i], &g[at + i]);
        for (;;) {
            int n_active = 0;
            for (int i = 0; i < k; i++)
                if (!runs[i].over) {
                    active[n_active] = &runs[i];
                    items[n_active++] = (struct drive_item){.seq = &runs[i].seq, .n = 1};
                }
            if (!n_active)
                break;
            c.run = active;
            drive_step(d, items, n_active, see_logits, &c);
        }
        for (int i = 0; i < k; i++)
            drive_seq_fini(d, &runs[i].seq);
    }
    mem_free(runs);
    mem_free(active);
    mem_free(items);
}

/* ---- perplexity ---------------------------------------------------------------------------- */

struct likelihood {
    const int32_t *next; /* the token after each position */
    double sum;
};

static void add_likelihood(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct likelihood *l = ctx;
    (void)item;
    l->sum -= drive_logprob(logits, vocab, l->next[pos]);
}

/* Negative log-likelihood (nats) of windows [from, to). */
static double nll(struct drive *d, const int32_t *ids, int from, int to)
{
    enum { CHUNK = 256 };
    int32_t tokens[WINDOW];
    struct likelihood l = {0};
    for (int w = from; w < to; w++) {
        struct drive_seq s;
        l.next = ids + (size_t)w * WINDOW;
        tokens[0] = BOS;
        memcpy(tokens + 1, l.next, (WINDOW - 1) * sizeof *tokens);
        drive_seq_init(d, &s, tokens, WINDOW, WINDOW);
        while (s.n_computed < WINDOW) {
            struct drive_item it = {.seq = &s, .n = CHUNK, .all_logits = true};
            drive_step(d, &it, 1, add_likelihood, &l);
        }
        drive_seq_fini(d, &s);
    }
    return l.sum;
}

static json_t *read_perplexity(void)
{
    json_t *root = json_load_file(PERPLEXITY, 0, NULL);
    assert_non_null(root);
    return root;
}

double golden_perplexity_ratio(struct drive *d, const int32_t *ids, int from, int to)
{
    json_t *root = read_perplexity();
    const json_t *list = json_object_get(json_object_get(root, "pebble"), "nll_per_window");
    double want = 0;
    assert_true((size_t)to <= json_array_size(list));
    for (int i = from; i < to; i++)
        want += json_number_value(json_array_get(list, (size_t)i));
    json_decref(root);
    return exp((nll(d, ids, from, to) - want) / ((double)(to - from) * WINDOW));
}

static char *read_text(size_t *n)
{
    FILE *f = fopen(TEXT, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *n = (size_t)ftell(f);
    rewind(f);
    char *text = mem_alloc(*n, 1);
    assert_int_equal(fread(text, 1, *n, f), *n);
    fclose(f);
    return text;
}

int32_t *golden_text_ids(int *n)
{
    struct tokenizer *t = NULL;
    struct token_vec v = {0};
    struct sl_err err = {0};
    size_t bytes;
    char *text = read_text(&bytes);
    if (tokenizer_load(&t, "models/pebble", &err) ||
        tokenizer_encode(t, text, bytes, 0, 0, &v, &err))
        fail_msg("%s", err.msg);
    json_t *root = read_perplexity();
    const json_t *first = json_object_get(root, "first_ids"),
                 *last = json_object_get(root, "last_ids");
    assert_int_equal(v.n, json_integer_value(json_object_get(root, "tokens")));
    for (size_t i = 0; i < json_array_size(first); i++)
        assert_int_equal(v.ids[i], json_integer_value(json_array_get(first, i)));
    for (size_t i = 0; i < json_array_size(last); i++)
        assert_int_equal(v.ids[v.n - json_array_size(last) + i],
                         json_integer_value(json_array_get(last, i)));
    json_decref(root);
    tokenizer_destroy(&t);
    mem_free(text);
    *n = (int)v.n;
    return v.ids; /* a token_vec's memory is mem_free's */
}
