/* SPDX-License-Identifier: Apache-2.0 */
#include "text/chat_files.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEMPLATES = 64, MAX_PATH_BYTES = 1 << 16 };

static char *join(const char *dir, const char *name)
{
    struct strbuf b;
    strbuf_init(&b, MAX_PATH_BYTES);
    strbuf_adds(&b, dir);
    strbuf_addc(&b, '/');
    strbuf_adds(&b, name);
    return strbuf_take(&b);
}

static enum sl_status read_in(const char *dir, const char *name, char **data, size_t *bytes,
                              struct sl_err *err)
{
    char *path = join(dir, name);
    *data = NULL;
    if (!path)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a file's name");
    enum sl_status st = file_read(path, CHAT_MAX_FILE_BYTES, data, bytes, err);
    mem_free(path);
    return st;
}

/* *out is NULL when there is no such file. */
static enum sl_status read_json(const char *dir, const char *name, json_t **out, struct sl_err *err)
{
    char *data;
    size_t bytes;
    *out = NULL;
    enum sl_status st = read_in(dir, name, &data, &bytes, err);
    if (st || !data)
        return st;
    json_error_t why;
    *out = json_loadb(data, bytes, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &why);
    mem_free(data);
    if (!*out)
        return SL_FAIL(err, SL_EFORMAT, "%s/%s, line %d: %s", dir, name, why.line, why.text);
    if (json_is_object(*out))
        return SL_OK;
    json_decref(*out);
    *out = NULL;
    return SL_FAIL(err, SL_EFORMAT, "%s/%s is not a JSON object", dir, name);
}

/* ---- templates ---------------------------------------------------------------------------------
 */

struct sink {
    chat_template_fn add;
    void *ctx;
    int n;
};

static enum sl_status emit(struct sink *s, const char *name, const char *source, size_t bytes,
                           struct sl_err *err)
{
    if (s->n++ == MAX_TEMPLATES)
        return SL_FAIL(err, SL_EFORMAT, "the model has more than %d chat templates", MAX_TEMPLATES);
    return s->add(s->ctx, name, source, bytes, err);
}

static enum sl_status emit_file(struct sink *s, const char *dir, const char *file, const char *name,
                                struct sl_err *err)
{
    char *data;
    size_t bytes;
    enum sl_status st = read_in(dir, file, &data, &bytes, err);
    if (!st && data)
        st = emit(s, name, data, bytes, err);
    mem_free(data);
    return st;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names of DIR/additional_chat_templates/NAME.jinja, sorted. */
static enum sl_status list_additional(const char *path, char **names, size_t *n, struct sl_err *err)
{
    DIR *d = opendir(path);
    struct dirent *e;
    enum sl_status st = SL_OK;
    while (d && !st && (e = readdir(d))) {
        size_t len = strlen(e->d_name);
        if (len <= 6 || strcmp(e->d_name + len - 6, ".jinja"))
            continue;
        if (*n == MAX_TEMPLATES)
            st = SL_FAIL(err, SL_EFORMAT, "%s has more than %d templates", path, MAX_TEMPLATES);
        else if (!(names[(*n)++] = mem_strdup(e->d_name)))
            st = SL_FAIL(err, SL_ENOMEM, "no memory for the names of the chat templates");
    }
    if (d)
        closedir(d);
    if (!st)
        qsort(names, *n, sizeof *names, by_name);
    return st;
}

static enum sl_status emit_additional(struct sink *s, const char *dir, struct sl_err *err)
{
    char *names[MAX_TEMPLATES], *path = join(dir, "additional_chat_templates");
    size_t n = 0;
    if (!path)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a file's name");
    enum sl_status st = list_additional(path, names, &n, err);
    for (size_t i = 0; i < n; i++) {
        char *name = st || !names[i] ? NULL : mem_strndup(names[i], strlen(names[i]) - 6);
        if (!st && !name)
            st = SL_FAIL(err, SL_ENOMEM, "no memory for the names of the chat templates");
        if (!st)
            st = emit_file(s, path, names[i], name, err);
        mem_free(name);
        mem_free(names[i]);
    }
    mem_free(path);
    return st;
}

static enum sl_status emit_value(struct sink *s, const json_t *v, const char *name,
                                 struct sl_err *err)
{
    if (json_is_string(v))
        return emit(s, name, json_string_value(v), json_string_length(v), err);
    return SL_OK;
}

/* A text, or [{"name": ..., "template": ...}, ...]. */
static enum sl_status emit_config(struct sink *s, const json_t *config, struct sl_err *err)
{
    const json_t *v = json_object_get(config, "chat_template");
    enum sl_status st = emit_value(s, v, "default", err);
    for (size_t i = 0; !st && json_is_array(v) && i < json_array_size(v); i++) {
        const json_t *e = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        if (name)
            st = emit_value(s, json_object_get(e, "template"), name, err);
    }
    return st;
}

/* ---- special tokens
 * ------------------------------------------------------------------------------ */

/* "<s>", or {"content": "<s>", ...} */
static const json_t *token_text(const json_t *v)
{
    if (json_is_object(v))
        v = json_object_get(v, "content");
    return json_is_string(v) ? v : NULL;
}

static bool set_text(json_t *vars, const char *name, const json_t *v)
{
    const json_t *text = token_text(v);
    return !text ||
           !json_object_set_new(
               vars, name, json_stringn_nocheck(json_string_value(text), json_string_length(text)));
}

static bool set_list(json_t *vars, const char *name, const json_t *v)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < json_array_size(v); i++) {
        const json_t *text = token_text(json_array_get(v, i));
        if (text && json_array_append_new(list, json_stringn_nocheck(json_string_value(text),
                                                                     json_string_length(text)))) {
            json_decref(list);
            return false;
        }
    }
    return !json_object_set_new(vars, name, list);
}

static bool set_tokens(json_t *vars, const json_t *from)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    bool ok = true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        ok &= set_text(vars, names[i], json_object_get(from, names[i]));
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    for (size_t i = 0; i < 2; i++) {
        json_t *v = json_object_get(from, lists[i]);
        const char *key;
        json_t *token;
        if (json_array_size(v))
            ok &= set_list(vars, "additional_special_tokens", v);
        json_object_foreach(v, key, token) /* tokens with names of their own: image_token, ... */
            ok &= set_text(vars, key, token);
    }
    return ok;
}

/* The configuration's tokens; in checkpoints from before it listed the added tokens, those of
 * special_tokens_map.json win. */
static bool merge_tokens(json_t *vars, const json_t *config, const json_t *map)
{
    bool old = !json_object_get(config, "added_tokens_decoder");
    if (!config)
        return set_tokens(vars, map);
    return set_tokens(vars, config) && (!old || set_tokens(vars, map));
}

static enum sl_status read_configs(const char *dir, struct sink *s, json_t *vars,
                                   struct sl_err *err)
{
    json_t *config = NULL, *map = NULL, *processor = NULL;
    enum sl_status st = read_json(dir, "tokenizer_config.json", &config, err);
    if (!st)
        st = read_json(dir, "special_tokens_map.json", &map, err);
    if (!st && !merge_tokens(vars, config, map))
        st = SL_FAIL(err, SL_ENOMEM, "no memory for the special tokens");
    if (!st && !s->n)
        st = emit_config(s, config, err);
    if (!st && !s->n)
        st = read_json(dir, "chat_template.json", &processor, err);
    if (!st && processor)
        st = emit_config(s, processor, err);
    json_decref(config);
    json_decref(map);
    json_decref(processor);
    return st;
}

enum sl_status chat_read_folder(const char *dir, chat_template_fn add, void *ctx, json_t *vars,
                                struct sl_err *err)
{
    struct sink s = {add, ctx, 0};
    enum sl_status st = emit_file(&s, dir, "chat_template.jinja", "default", err);
    if (!st)
        st = emit_additional(&s, dir, err);
    return st ? st : read_configs(dir, &s, vars, err);
}
