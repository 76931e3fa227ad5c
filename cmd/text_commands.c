/* tokenize, detokenize, render: JSON Lines in and out, no weights needed.
 *
 * One object in, one object out, in order; a line that fails gives {"error": ...} and the rest go
 * on. The output is flushed after each line, so that another program can talk to it line by line.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define MAX_LINE_BYTES ((size_t)64 << 20)

/* Answers one line: a new object, or NULL with err filled. */
typedef json_t *(*answer_fn)(const struct sl_text *text, const struct options *o, const char *line,
                             json_t *in, struct sl_err *err);

__attribute__((format(printf, 2, 3))) static json_t *refuse(struct sl_err *err, const char *fmt,
                                                            ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return NULL;
}

/* A boolean key with a default; false when it has another type. */
static bool get_bool(const json_t *in, const char *key, bool fallback, bool *out)
{
    const json_t *value = json_object_get(in, key);
    *out = value ? json_is_true(value) : fallback;
    return !value || json_is_boolean(value);
}

static json_t *answer_tokenize(const struct sl_text *text, const struct options *o,
                               const char *line, json_t *in, struct sl_err *err)
{
    (void)o, (void)line;
    const json_t *words = json_object_get(in, "text");
    bool special;
    int32_t *ids;
    size_t n;
    if (!json_is_string(words))
        return refuse(err, "\"text\" must be a string");
    if (!get_bool(in, "add_special_tokens", true, &special))
        return refuse(err, "\"add_special_tokens\" must be true or false");
    if (sl_text_encode(text, json_string_value(words), json_string_length(words), special, &ids, &n,
                       err) != SL_OK)
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    sl_free(ids);
    return json_pack("{s:o}", "ids", list);
}

static json_t *answer_detokenize(const struct sl_text *text, const struct options *o,
                                 const char *line, json_t *in, struct sl_err *err)
{
    (void)o, (void)line;
    const json_t *list = json_object_get(in, "ids");
    bool skip;
    char *words;
    size_t bytes;
    if (!json_is_array(list))
        return refuse(err, "\"ids\" must be a list of token ids");
    if (!get_bool(in, "skip_special_tokens", true, &skip))
        return refuse(err, "\"skip_special_tokens\" must be true or false");
    size_t n = json_array_size(list);
    int32_t *ids = xcalloc(n, sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v > INT32_MAX) {
            free(ids);
            return refuse(err, "\"ids\" must be a list of token ids; element %zu is none", i);
        }
        ids[i] = (int32_t)v;
    }
    enum sl_status st = sl_text_decode(text, ids, n, skip, &words, &bytes, err);
    free(ids);
    if (st != SL_OK)
        return NULL;
    json_t *out = json_stringn(words, bytes);
    sl_free(words);
    return out ? json_pack("{s:o}", "text", out) : refuse(err, "the text is not UTF-8");
}

static json_t *answer_render(const struct sl_text *text, const struct options *o, const char *line,
                             json_t *in, struct sl_err *err)
{
    (void)in;
    char *words;
    if (sl_text_render(text, line, o->now, &words, err) != SL_OK)
        return NULL;
    json_t *out = json_string(words);
    sl_free(words);
    return out ? json_pack("{s:o}", "text", out) : refuse(err, "the text is not UTF-8");
}

static json_t *answer_line(const struct sl_text *text, const struct options *o, answer_fn answer,
                           const char *line, size_t len)
{
    struct sl_err err = {0};
    json_error_t why;
    json_t *in = NULL, *out = NULL;
    if (answer == answer_render) /* the template's own reader takes integers of any size */
        out = answer(text, o, line, NULL, &err);
    else if (!(in = json_loadb(line, len, JSON_ALLOW_NUL, &why)))
        refuse(&err, "not JSON: %s (column %d)", why.text, why.column);
    else if (!json_is_object(in))
        refuse(&err, "each line must be a JSON object");
    else
        out = answer(text, o, line, in, &err);
    json_decref(in);
    if (out)
        return out;
    json_t *message = json_string(err.msg);
    return json_pack("{s:o}", "error", message ? message : json_string("failed"));
}

static int run_lines(const struct sl_text *text, const struct options *o, answer_fn answer,
                     FILE *in, FILE *out)
{
    char *line = NULL;
    size_t capacity = 0, len;
    bool too_long = false;
    int code = EXIT_DONE;
    while (read_line(in, &line, &capacity, MAX_LINE_BYTES, &len, &too_long)) {
        if (strspn(line, " \t") == len)
            continue;
        json_t *reply = answer_line(text, o, answer, line, len);
        json_dumpf(reply, out, JSON_COMPACT);
        json_decref(reply);
        fputc('\n', out);
        if (fflush(out) != 0) {
            code = fail_with(EXIT_FAILED, "cannot write: %s", strerror(errno));
            break;
        }
    }
    if (too_long)
        code = fail_with(EXIT_FAILED, "a line is longer than 64 MiB");
    else if (ferror(in))
        code = fail_with(EXIT_FAILED, "cannot read: %s", strerror(errno));
    free(line);
    return code;
}

static FILE *open_or(const char *path, const char *mode, FILE *standard)
{
    if (!path || strcmp(path, "-") == 0)
        return standard;
    return fopen(path, mode);
}

static int run_command(struct options *o, answer_fn answer)
{
    struct sl_err err = {0};
    struct sl_text *text = NULL;
    const char *model = o->engine.tokenizer ? o->engine.tokenizer : o->engine.model;
    if (!model && !o->engine.chat_template)
        return fail_with(EXIT_USAGE, "`sluice %s` needs a model or --chat-template FILE",
                         o->flags.command_name);
    FILE *in = open_or(o->input_file, "rb", stdin);
    if (!in)
        return fail_with(EXIT_FAILED, "%s: %s", o->input_file, strerror(errno));
    FILE *out = open_or(o->output_file, "wb", stdout);
    int code = EXIT_FAILED;
    if (!out)
        fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    else if (sl_text_open(&text, model, o->engine.chat_template, &err) != SL_OK)
        fail_with(EXIT_FAILED, "%s", err.msg);
    else
        code = run_lines(text, o, answer, in, out);
    sl_text_close(&text);
    if (out && out != stdout && fclose(out) != 0)
        code = fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    if (in != stdin)
        fclose(in);
    return code;
}

int command_tokenize(struct options *o)
{
    return run_command(o, answer_tokenize);
}

int command_detokenize(struct options *o)
{
    return run_command(o, answer_detokenize);
}

int command_render(struct options *o)
{
    return run_command(o, answer_render);
}
