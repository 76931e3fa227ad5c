/* embed: texts in, vectors (or a head's values) out, JSON Lines in the order of the texts.
 *
 * Up to AHEAD requests are with the engine at once; each line is written as soon as those before it
 * are, and flushed.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "util.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define MAX_LINE_BYTES ((size_t)64 << 20)
enum { AHEAD = 256 };

struct run {
    const struct options *o;
    struct sl_engine *engine;
    struct sl_engine_info info;
    const struct sl_text *text;
    FILE *out;
    /* Lines [first, n) are under way. */
    struct pending {
        json_t *id; /* of the line, or NULL */
        struct sl_request *request;
        struct sl_err err; /* code != 0: it failed, and there is no request */
    } pending[AHEAD];
    long first, n;
    long n_failed;
    bool write_failed;
};

static bool fail(struct sl_err *err, const char *what)
{
    err->code = SL_EINVAL;
    snprintf(err->msg, sizeof err->msg, "%s", what);
    return false;
}

/* ---- out --------------------------------------------------------------------------------------
 */

static json_t *vector(const float *v, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_real((double)v[i]));
    return list;
}

static void put_values(const struct run *r, json_t *o, const float *v, int rows, int cols)
{
    if (r->info.task == SL_POOL_CLASSIFY) {
        int best = 0;
        for (int i = 1; i < cols; i++)
            best = v[i] > v[best] ? i : best;
        const char *label = r->info.labels ? r->info.labels[best] : NULL;
        json_object_set_new(o, "label", label ? json_string(label) : json_null());
        json_object_set_new(o, "scores", vector(v, cols));
        return;
    }
    if (r->info.task == SL_POOL_EMBED) {
        json_object_set_new(o, "embedding", vector(v, cols));
        return;
    }
    json_t *all = json_array();
    for (int i = 0; i < rows; i++)
        json_array_append_new(all, vector(v + (size_t)i * (size_t)cols, cols));
    json_object_set_new(o, "embeddings", all);
}

static const float *wait_for(struct pending *p, int *rows, int *cols)
{
    const struct sl_output *out;
    while (sl_request_wait(p->request, -1) == SL_OK && (out = sl_request_next(p->request))) {
        if (out->finish == SL_STOP)
            return sl_request_pooled(p->request, rows, cols);
        if (out->finish == SL_ERROR && out->error)
            p->err = *out->error;
    }
    if (p->err.code == SL_OK)
        fail(&p->err, "the request was aborted");
    return NULL;
}

/* Writes the oldest line under way. */
static void finish_one(struct run *r)
{
    struct pending *p = &r->pending[r->first % AHEAD];
    int rows = 0, cols = 0, n_tokens = 0;
    const float *v = p->request ? wait_for(p, &rows, &cols) : NULL;
    json_t *o = json_pack("{s:I}", "index", (json_int_t)r->first);
    if (p->id)
        json_object_set(o, "id", p->id);
    if (v) {
        put_values(r, o, v, rows, cols);
        sl_request_prompt(p->request, &n_tokens);
        json_object_set_new(o, "prompt_tokens", json_integer(n_tokens));
    } else {
        json_t *message = json_string(p->err.msg);
        json_object_set_new(o, "error", message ? message : json_string("failed"));
        r->n_failed++;
    }
    json_dumpf(o, r->out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', r->out);
    r->write_failed = r->write_failed || fflush(r->out) != 0;
    json_decref(o);
    json_decref(p->id);
    sl_request_release(&p->request);
    r->first++;
}

/* ---- in ---------------------------------------------------------------------------------------
 */

static bool submit(struct run *r, struct pending *p, const int32_t *tokens, size_t n,
                   size_t n_first)
{
    struct sl_pooling_params params;
    sl_pooling_params_init(&params, r->engine);
    params.n_first = (int)n_first;
    params.truncate_prompt_tokens = r->o->truncate ? -1 : SL_NONE;
    params.truncate_right = true;
    params.dimensions = r->o->dimensions;
    const struct sl_input in = {.tokens = tokens, .n_tokens = n > INT32_MAX ? INT32_MAX : (int)n};
    enum sl_status st;
    while ((st = sl_pool(r->engine, &in, &params, NULL, NULL, &p->request, &p->err)) == SL_EAGAIN &&
           p != &r->pending[r->first % AHEAD])
        finish_one(r);
    if (st == SL_EAGAIN)
        return fail(&p->err, "the engine's queue is full");
    p->err.code = st;
    return st == SL_OK;
}

static bool take_text(struct run *r, struct pending *p, const char *text, size_t bytes,
                      const json_t *pair);

/* A pair that this model takes as one text. */
static bool take_joined(struct run *r, struct pending *p, const char *text, size_t bytes,
                        const json_t *pair)
{
    char *joined = NULL;
    size_t n = 0;
    p->err.code =
        sl_text_pair(r->text, text, bytes, json_string_value(pair), json_string_length(pair),
                     r->info.renders_pairs ? "{}" : NULL, &joined, &n, &p->err);
    bool ok = p->err.code == SL_OK && take_text(r, p, joined, n, NULL);
    sl_free(joined);
    return ok;
}

static bool take_text(struct run *r, struct pending *p, const char *text, size_t bytes,
                      const json_t *pair)
{
    int32_t *ids = NULL;
    size_t n = 0, n_first = 0;
    if (!r->text)
        return fail(&p->err, "the model has no tokenizer");
    if (pair && (r->info.renders_pairs || r->info.joins_pairs))
        return take_joined(r, p, text, bytes, pair);
    p->err.code = pair ? sl_text_encode_pair(r->text, text, bytes, json_string_value(pair),
                                             json_string_length(pair), &ids, &n, &n_first, &p->err)
                       : sl_text_encode(r->text, text, bytes, true, &ids, &n, &p->err);
    if (p->err.code == SL_OK && r->o->truncate)
        p->err.code = sl_text_truncate(r->text, ids, &n, pair ? &n_first : NULL,
                                       (size_t)r->info.max_model_len, false, &p->err);
    bool ok = p->err.code == SL_OK && submit(r, p, ids, n, n_first);
    sl_free(ids);
    return ok;
}

static bool take_ids(struct run *r, struct pending *p, const json_t *list)
{
    size_t n = json_array_size(list);
    int32_t *ids = xcalloc(n ? n : 1, sizeof *ids);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t v = json_integer_value(id);
        ok = json_is_integer(id) && v >= 0 && v <= INT32_MAX;
        ids[i] = ok ? (int32_t)v : 0;
    }
    ok = ok ? submit(r, p, ids, n, 0) : fail(&p->err, "\"tokens\" must be a list of token ids");
    free(ids);
    return ok;
}

/* {"text": ..., "pair": ..., "id": ...} or {"tokens": [...]} */
static void take_object(struct run *r, struct pending *p, const char *line, size_t len)
{
    json_error_t why;
    json_t *o = json_loadb(line, len, JSON_ALLOW_NUL, &why);
    const json_t *text = json_object_get(o, "text"), *pair = json_object_get(o, "pair");
    const json_t *tokens = json_object_get(o, "tokens");
    p->id = json_incref(json_object_get(o, "id"));
    if (!o)
        fail(&p->err, "the line is not JSON");
    else if (json_is_array(tokens))
        take_ids(r, p, tokens);
    else if (!json_is_string(text) || (pair && !json_is_string(pair)))
        fail(&p->err, "a line needs \"text\" (and may have \"pair\") or \"tokens\"");
    else
        take_text(r, p, json_string_value(text), json_string_length(text), pair);
    json_decref(o);
}

static void take_line(struct run *r, const char *line, size_t len)
{
    if (r->n - r->first == AHEAD)
        finish_one(r);
    struct pending *p = &r->pending[r->n++ % AHEAD];
    *p = (struct pending){0};
    if (line[strspn(line, " \t")] == '{')
        take_object(r, p, line, len);
    else
        take_text(r, p, line, len, NULL);
}

static bool read_lines(struct run *r, const char *path)
{
    bool standard = !path || strcmp(path, "-") == 0, too_long = false;
    FILE *in = standard ? stdin : fopen(path, "rb");
    const char *name = standard ? "standard input" : path;
    char *line = NULL;
    size_t capacity = 0, len;
    if (!in)
        return fail_with(EXIT_FAILED, "%s: %s", path, strerror(errno)) == EXIT_DONE;
    while (!r->write_failed && read_line(in, &line, &capacity, MAX_LINE_BYTES, &len, &too_long))
        if (strspn(line, " \t") != len)
            take_line(r, line, len);
    bool ok = !too_long && !ferror(in);
    if (too_long)
        fail_with(EXIT_FAILED, "%s: a line is longer than 64 MiB", name);
    else if (!ok)
        fail_with(EXIT_FAILED, "%s: %s", name, strerror(errno));
    free(line);
    if (!standard)
        fclose(in);
    return ok;
}

static int run_all(struct run *r)
{
    bool ok = true;
    for (int i = 0; i < r->o->n_args; i++)
        take_line(r, r->o->args[i], strlen(r->o->args[i]));
    if (r->o->input_file || r->o->n_args == 0)
        ok = read_lines(r, r->o->input_file);
    while (r->first < r->n)
        finish_one(r);
    if (r->write_failed)
        return fail_with(EXIT_FAILED, "cannot write: %s", strerror(errno));
    return ok && !r->n_failed ? EXIT_DONE : EXIT_FAILED;
}

int command_embed(struct options *o)
{
    struct run *r = xcalloc(1, sizeof *r);
    struct sl_err err = {0};
    int code = EXIT_FAILED;
    r->o = o;
    r->out = stdout;
    if (o->output_file && strcmp(o->output_file, "-") != 0)
        r->out = fopen(o->output_file, "wb");
    o->engine.runner = SL_RUNNER_POOLING; /* any decoder embeds */
    if (!r->out) {
        fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    } else if (sl_engine_create(&r->engine, &o->engine, &err) != SL_OK) {
        fail_with(EXIT_FAILED, "%s", err.msg);
    } else {
        sl_engine_info(r->engine, &r->info);
        r->text = sl_engine_text(r->engine);
        code = run_all(r);
    }
    sl_engine_destroy(&r->engine);
    if (r->out && r->out != stdout && fclose(r->out) != 0)
        code = fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    free(r);
    return code;
}
