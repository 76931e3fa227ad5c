/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"
#include "bench_stats.h"
#include "util.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define MAX_LINE_BYTES ((size_t)16 << 20)

struct maker {
    struct workload *w;
    const struct options *o;
    const struct sl_text *text;
    int vocab_size, max_len, n_left_out;
    struct rng rng;
    struct sl_err *err;
};

__attribute__((format(printf, 2, 3))) static bool bad(struct maker *m, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    m->err->code = SL_EINVAL;
    vsnprintf(m->err->msg, sizeof m->err->msg, fmt, ap);
    va_end(ap);
    return false;
}

/* ---- items ---------------------------------------------------------------------------------- */

/* Takes `tokens`. An item that cannot fit is left out. */
static void add(struct maker *m, int32_t *tokens, int n_tokens, int output_len, double arrival_s,
                bool encoded)
{
    struct workload *w = m->w;
    if (n_tokens < 1 || output_len < 1 || (m->max_len && n_tokens + output_len > m->max_len)) {
        m->n_left_out++;
        if (encoded)
            sl_free(tokens);
        else
            free(tokens);
        return;
    }
    if ((w->n & (w->n - 1)) == 0)
        w->items = xrealloc(w->items, w->n ? (size_t)w->n * 2 : 1, sizeof *w->items);
    w->items[w->n++] = (struct work_item){tokens, n_tokens, output_len, arrival_s, encoded};
}

/* Low ids are where vocabularies keep their special tokens. */
static int32_t draw_token(struct rng *rng, int vocab_size)
{
    int low = vocab_size > 1024 ? 256 : vocab_size / 4;
    return rng_between(rng, low, vocab_size - 1);
}

static void fill(struct rng *rng, int vocab_size, int32_t *tokens, int n)
{
    for (int i = 0; i < n; i++)
        tokens[i] = draw_token(rng, vocab_size);
}

/* A length within --random-range-ratio of `len`. */
static int draw_length(struct maker *m, int len)
{
    double ratio = m->o->workload.random_range_ratio;
    return rng_between(&m->rng, (int)floor(len * (1 - ratio)), (int)ceil(len * (1 + ratio)));
}

/* ---- made-up datasets ------------------------------------------------------------------------ */

static bool make_random(struct maker *m)
{
    const struct workload_options *c = &m->o->workload;
    int input = c->input_len >= 0 ? c->input_len : c->random_input_len;
    int output = c->output_len >= 0 ? c->output_len : c->random_output_len;
    int prefix_len = c->random_prefix_len;
    if (c->random_range_ratio < 0 || c->random_range_ratio >= 1)
        return bad(m, "--random-range-ratio must be at least 0 and less than 1");
    if (input < 0 || prefix_len < 0 || output < 1 || input + prefix_len < 1)
        return bad(m, "prompt and output lengths must be at least 1");
    int32_t *prefix = xcalloc((size_t)prefix_len, sizeof *prefix);
    fill(&m->rng, m->vocab_size, prefix, prefix_len);
    for (int i = 0; i < c->num_prompts; i++) {
        int len = draw_length(m, input), out = draw_length(m, output);
        if (len + prefix_len < 1)
            len = 1;
        int32_t *tokens = xcalloc((size_t)(prefix_len + len), sizeof *tokens);
        memcpy(tokens, prefix, (size_t)prefix_len * sizeof *prefix);
        fill(&m->rng, m->vocab_size, tokens + prefix_len, len);
        add(m, tokens, prefix_len + len, out < 1 ? 1 : out, 0, false);
    }
    free(prefix);
    return true;
}

static bool make_prefix_repetition(struct maker *m)
{
    const struct workload_options *c = &m->o->workload;
    if (c->prefix_len < 0 || c->suffix_len < 1 || c->num_prefixes < 1)
        return bad(m, "prefix lengths and numbers must be positive");
    for (int i = 0; i < c->num_prompts; i++) {
        int which = (int)((long long)i * c->num_prefixes / c->num_prompts);
        struct rng prefix = {(uint64_t)m->o->engine.seed * 1000003u + (uint64_t)which};
        int32_t *tokens = xcalloc((size_t)(c->prefix_len + c->suffix_len), sizeof *tokens);
        fill(&prefix, m->vocab_size, tokens, c->prefix_len);
        fill(&m->rng, m->vocab_size, tokens + c->prefix_len, c->suffix_len);
        add(m, tokens, c->prefix_len + c->suffix_len, c->prefix_output_len, 0, false);
    }
    return true;
}

/* ---- files, line by line ----------------------------------------------------------------------
 */

typedef bool (*line_fn)(struct maker *m, const char *line, size_t len, long number);

static bool each_line(struct maker *m, const char *path, line_fn take)
{
    FILE *in = path ? fopen(path, "rb") : NULL;
    char *line = NULL;
    size_t capacity = 0, len;
    bool too_long = false, ok = true;
    if (!path)
        return bad(m, "--dataset-path is needed for this dataset");
    if (!in)
        return bad(m, "%s: %s", path, strerror(errno));
    for (long number = 1; ok && m->w->n < m->o->workload.num_prompts &&
                          read_line(in, &line, &capacity, MAX_LINE_BYTES, &len, &too_long);
         number++)
        ok = take(m, line, len, number);
    if (ok && too_long)
        ok = bad(m, "%s: a line is longer than 16 MiB", path);
    else if (ok && ferror(in))
        ok = bad(m, "%s: %s", path, strerror(errno));
    free(line);
    fclose(in);
    return ok;
}

/* "arrived_s,input_tokens,output_tokens", with or without such a heading. */
static bool take_trace_line(struct maker *m, const char *line, size_t len, long number)
{
    char *end;
    if (len == 0)
        return true;
    double arrival = strtod(line, &end);
    if (end == line && number == 1)
        return true;
    long input = *end == ',' ? strtol(end + 1, &end, 10) : -1;
    long output = *end == ',' ? strtol(end + 1, &end, 10) : -1;
    if (!(arrival >= 0) || input < 0 || output < 0 || input > 1 << 24 || output > 1 << 24)
        return bad(m, "the trace's line %ld is not \"seconds,input tokens,output tokens\"", number);
    int32_t *tokens = xcalloc((size_t)input, sizeof *tokens);
    fill(&m->rng, m->vocab_size, tokens, (int)input);
    add(m, tokens, (int)input, (int)output, arrival / m->o->sim.rate_scale, false);
    return true;
}

/* {"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}: each hash stands for 512
 * tokens, so that equal hashes make equal prefixes. */
static bool take_timed_line(struct maker *m, const char *line, size_t len, long number)
{
    enum { HASHED = 512 };
    json_t *o = json_loadb(line, len, 0, NULL);
    json_int_t input = json_integer_value(json_object_get(o, "input_length"));
    json_int_t output = json_integer_value(json_object_get(o, "output_length"));
    double at = json_number_value(json_object_get(o, "timestamp")) / 1e3;
    const json_t *hashes = json_object_get(o, "hash_ids");
    if (!o || input < 0 || output < 0 || input > 1 << 24 || output > 1 << 24) {
        json_decref(o);
        return bad(m, "line %ld is not an object with input_length and output_length", number);
    }
    int32_t *tokens = xcalloc((size_t)input, sizeof *tokens);
    for (int i = 0; i < (int)input; i += HASHED) {
        json_t *hash = json_array_get(hashes, (size_t)(i / HASHED));
        struct rng block = {hash ? (uint64_t)json_integer_value(hash) * 0x9e37u + 17
                                 : rng_next(&m->rng)};
        int n = (int)input - i < HASHED ? (int)input - i : HASHED;
        fill(&block, m->vocab_size, tokens + i, n);
    }
    json_decref(o);
    add(m, tokens, (int)input, (int)output, at / m->o->sim.rate_scale, false);
    return true;
}

static bool add_text(struct maker *m, const char *text, size_t bytes, int output_len)
{
    int32_t *ids;
    size_t n;
    if (!m->text)
        return bad(m, "this dataset needs a tokenizer: --tokenizer DIR or --model DIR");
    if (sl_text_encode(m->text, text, bytes, true, &ids, &n, m->err) != SL_OK)
        return false;
    add(m, ids, (int)n, output_len, 0, true);
    return true;
}

/* {"prompt": "...", "output_tokens": n}; --output-len where the line has none. */
static bool take_custom_line(struct maker *m, const char *line, size_t len, long number)
{
    json_t *o = json_loadb(line, len, JSON_ALLOW_NUL, NULL);
    const json_t *prompt = json_object_get(o, "prompt");
    const json_t *output = json_object_get(o, "output_tokens");
    int fallback = m->o->workload.output_len > 0 ? m->o->workload.output_len : 256;
    bool ok = json_is_string(prompt);
    if (!ok && len > 0)
        bad(m, "line %ld is not an object with \"prompt\"", number);
    else if (ok)
        ok = add_text(m, json_string_value(prompt), json_string_length(prompt),
                      json_is_integer(output) ? (int)json_integer_value(output) : fallback);
    json_decref(o);
    return ok || len == 0;
}

/* ---- whole files ------------------------------------------------------------------------------
 */

static size_t count_tokens(const struct maker *m, const json_t *text)
{
    int32_t *ids;
    size_t n = 0;
    if (sl_text_encode(m->text, json_string_value(text), json_string_length(text), false, &ids, &n,
                       NULL) == SL_OK)
        sl_free(ids);
    return n;
}

/* ShareGPT's first question and answer of each conversation, as vLLM takes them. */
static bool make_sharegpt(struct maker *m)
{
    json_error_t why;
    size_t i;
    json_t *all, *item;
    if (!m->o->workload.dataset_path || !m->text)
        return bad(m, "sharegpt needs --dataset-path FILE.json and a tokenizer");
    all = json_load_file(m->o->workload.dataset_path, 0, &why);
    if (!json_is_array(all)) {
        json_decref(all);
        return bad(m, "%s: %s", m->o->workload.dataset_path, all ? "not a list" : why.text);
    }
    bool ok = true;
    json_array_foreach(all, i, item)
    {
        const json_t *turns = json_object_get(item, "conversations");
        const json_t *q = json_object_get(json_array_get(turns, 0), "value");
        const json_t *a = json_object_get(json_array_get(turns, 1), "value");
        if (!ok || m->w->n >= m->o->workload.num_prompts)
            break;
        if (!json_is_string(q) || !json_is_string(a))
            continue;
        int output =
            m->o->workload.output_len > 0 ? m->o->workload.output_len : (int)count_tokens(m, a);
        if (output >= 4)
            ok = add_text(m, json_string_value(q), json_string_length(q), output);
    }
    json_decref(all);
    return ok;
}

struct sonnet {
    char **lines;
    size_t n;
};

static bool read_sonnet(struct maker *m, struct sonnet *s)
{
    const char *path = m->o->workload.dataset_path;
    FILE *in = path ? fopen(path, "rb") : NULL;
    char *line = NULL;
    size_t capacity = 0, len;
    bool too_long = false;
    if (!in)
        return bad(m, "sonnet needs --dataset-path FILE.txt%s%s", path ? ": " : "",
                   path ? strerror(errno) : "");
    while (read_line(in, &line, &capacity, 4096, &len, &too_long)) {
        s->lines = xrealloc(s->lines, s->n + 1, sizeof *s->lines);
        s->lines[s->n++] = xformat("%s\n", line);
    }
    free(line);
    fclose(in);
    return s->n > 0 ? true : bad(m, "%s is empty", path);
}

/* Lines in the file's order up to the prefix's length, then lines drawn, up to the input's. */
static bool make_sonnet(struct maker *m)
{
    const struct workload_options *c = &m->o->workload;
    int input = c->input_len >= 0 ? c->input_len : c->sonnet_input_len;
    int output = c->output_len >= 0 ? c->output_len : c->sonnet_output_len;
    struct sonnet s = {0};
    if (!m->text)
        return bad(m, "sonnet needs a tokenizer");
    bool ok = read_sonnet(m, &s);
    for (int i = 0; ok && i < c->num_prompts; i++) {
        int32_t *tokens = xcalloc((size_t)input + 1, sizeof *tokens);
        int n = 0;
        for (size_t k = 0; ok && n < input; k++) {
            bool prefix = n < c->sonnet_prefix_len;
            const char *line = s.lines[prefix ? k % s.n : rng_next(&m->rng) % s.n];
            int32_t *ids;
            size_t count;
            ok = sl_text_encode(m->text, line, strlen(line), k == 0, &ids, &count, m->err) == SL_OK;
            if (!ok)
                break;
            int room = input - n < (int)count ? input - n : (int)count;
            memcpy(tokens + n, ids, (size_t)room * sizeof *ids);
            n += room;
            sl_free(ids);
        }
        add(m, tokens, n, output, 0, false);
    }
    for (size_t i = 0; i < s.n; i++)
        free(s.lines[i]);
    free(s.lines);
    return ok;
}

/* ---- choosing ---------------------------------------------------------------------------------
 */

static bool make_named(struct maker *m, const char *name)
{
    const char *path = m->o->workload.dataset_path;
    if (!strcmp(name, "trace")) {
        m->w->has_arrivals = true;
        return each_line(m, m->o->workload.trace ? m->o->workload.trace : path, take_trace_line);
    }
    if (!strcmp(name, "timed_trace")) {
        m->w->has_arrivals = true;
        return each_line(m, path, take_timed_line);
    }
    if (!strcmp(name, "custom"))
        return each_line(m, path, take_custom_line);
    if (!strcmp(name, "sharegpt"))
        return make_sharegpt(m);
    if (!strcmp(name, "sonnet"))
        return make_sonnet(m);
    if (!strcmp(name, "prefix_repetition"))
        return make_prefix_repetition(m);
    return make_random(m);
}

bool workload_make(struct workload *w, const struct options *o, const struct sl_text *text,
                   int vocab_size, int max_len, struct sl_err *err)
{
    struct maker m = {.w = w,
                      .o = o,
                      .text = text,
                      .vocab_size = vocab_size > 8 ? vocab_size : 8,
                      .max_len = max_len,
                      .rng = {(uint64_t)o->engine.seed},
                      .err = err};
    const char *name = o->workload.dataset_name ? o->workload.dataset_name : "random";
    *w = (struct workload){.name = o->workload.trace ? "trace" : name};
    if (o->workload.num_prompts < 1)
        return bad(&m, "--num-prompts must be at least 1");
    if (!(o->sim.rate_scale > 0))
        return bad(&m, "--rate-scale must be positive");
    if (!make_named(&m, w->name))
        return false;
    if (m.n_left_out)
        fprintf(stderr, "%d requests are longer than the model's %d tokens and are left out\n",
                m.n_left_out, max_len);
    if (w->n == 0)
        return bad(&m, "the workload has no request that fits");
    return true;
}

void workload_free(struct workload *w)
{
    for (int i = 0; i < w->n; i++) {
        if (w->items[i].encoded)
            sl_free(w->items[i].tokens);
        else
            free(w->items[i].tokens);
    }
    free(w->items);
    *w = (struct workload){0};
}
