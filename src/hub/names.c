/* SPDX-License-Identifier: Apache-2.0 */
#include "hub/names.h"

#include "base/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PART = 96, MAX_REVISION = 255, MAX_FILE_NAME = 1024, MAX_ETAG = 128 };

/* ---- names -------------------------------------------------------------------------------------
 */

static bool word_char(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_' || c == '.';
}

/* One half of a repository's name, by the hub's own rules. */
static bool repo_part_ok(const char *s, size_t n)
{
    if (n == 0 || n > MAX_PART || s[0] == '-' || s[0] == '.' || s[n - 1] == '-' || s[n - 1] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!word_char(s[i]) || (i && s[i] == s[i - 1] && (s[i] == '-' || s[i] == '.')))
            return false; /* "--" is what joins the halves on disk */
    return true;
}

bool repo_name_ok(const char *s)
{
    const char *slash = strchr(s, '/');
    size_t n = strlen(s);
    if (n > 4 && !strcmp(s + n - 4, ".git"))
        return false;
    return slash
               ? repo_part_ok(s, (size_t)(slash - s)) && repo_part_ok(slash + 1, strlen(slash + 1))
               : repo_part_ok(s, n);
}

bool file_name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > MAX_FILE_NAME || s[0] == '/')
        return false;
    for (const char *part = s;; part++) {
        size_t len = strcspn(part, "/");
        if (len == 0 || len > 255 || (len == 1 && part[0] == '.') ||
            (len == 2 && part[0] == '.' && part[1] == '.'))
            return false;
        for (size_t i = 0; i < len; i++)
            if (part[i] == '\\' || (unsigned char)part[i] < 0x20 || part[i] == 0x7f)
                return false;
        part += len;
        if (!*part)
            return true;
    }
}

bool revision_ok(const char *s)
{
    return strlen(s) <= MAX_REVISION && file_name_ok(s) && !strpbrk(s, " ~^:?*[");
}

bool commit_ok(const char *s)
{
    return strlen(s) == HUB_COMMIT && strspn(s, "0123456789abcdef") == HUB_COMMIT;
}

bool etag_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > MAX_ETAG || s[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!word_char(s[i]))
            return false;
    return true;
}

void url_quote(struct strbuf *b, const char *s, bool keep_slash)
{
    for (; *s; s++) {
        if (word_char(*s) || *s == '~' || (*s == '/' && keep_slash))
            strbuf_addc(b, *s);
        else
            strbuf_addf(b, "%%%02X", (unsigned char)*s);
    }
}

/* ---- the listing ------------------------------------------------------------------------------
 */

static enum sl_status add_sibling(struct listing *l, const json_t *v, const char *repo,
                                  struct sl_err *err)
{
    const json_t *name = json_object_get(v, "rfilename");
    const char *s = json_string_value(name);
    if (!s || strlen(s) != json_string_length(name) || !file_name_ok(s))
        return SL_FAIL(err, SL_EFORMAT,
                       "%s: the hub lists a file '%.100s', a name that leaves the model's folder; "
                       "refused",
                       repo, s ? s : "");
    if (!(l->name[l->n] = mem_strdup(s)))
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for the names of its files", repo);
    l->n++;
    return SL_OK;
}

static enum sl_status read_listing(struct listing *l, const json_t *root, const char *repo,
                                   struct sl_err *err)
{
    const char *sha = json_string_value(json_object_get(root, "sha"));
    const json_t *files = json_object_get(root, "siblings");
    if (!sha || !commit_ok(sha))
        return SL_FAIL(err, SL_EFORMAT, "%s: the hub's answer names no commit", repo);
    if (!json_is_array(files))
        return SL_FAIL(err, SL_EFORMAT, "%s: the hub's answer lists no files", repo);
    if (json_array_size(files) > HUB_MAX_LISTED)
        return SL_FAIL(err, SL_EFORMAT, "%s: the hub lists more than %d files", repo,
                       HUB_MAX_LISTED);
    memcpy(l->commit, sha, HUB_COMMIT + 1);
    if (!(l->name = mem_zalloc(json_array_size(files), sizeof *l->name)))
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for the names of its files", repo);
    enum sl_status st = SL_OK;
    for (size_t i = 0; !st && i < json_array_size(files); i++)
        st = add_sibling(l, json_array_get(files, i), repo, err);
    return st;
}

enum sl_status listing_parse(struct listing *l, const char *body, size_t bytes, const char *repo,
                             struct sl_err *err)
{
    json_error_t why;
    *l = (struct listing){0};
    json_t *root = json_loadb(body, bytes, JSON_ALLOW_NUL, &why);
    if (!root)
        return SL_FAIL(err, SL_EFORMAT, "%s: the hub's answer is not JSON: %s", repo, why.text);
    enum sl_status st = read_listing(l, root, repo, err);
    json_decref(root);
    if (st)
        listing_fini(l);
    return st;
}

void listing_fini(struct listing *l)
{
    for (size_t i = 0; i < l->n; i++)
        mem_free(l->name[i]);
    mem_free(l->name);
    *l = (struct listing){0};
}

bool listing_has(const struct listing *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (!strcmp(l->name[i], name))
            return true;
    return false;
}

/* ---- which files ------------------------------------------------------------------------------
 */

static bool ends_in(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && !strcmp(s + n - m, end);
}

static bool is_one_of(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(name, *list))
            return true;
    return false;
}

bool file_is_text(const char *name, bool has_tokenizer_json)
{
    static const char *const always[] = {"config.json",
                                         "generation_config.json",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "added_tokens.json",
                                         "chat_template.jinja",
                                         "chat_template.json",
                                         "preprocessor_config.json",
                                         "processor_config.json",
                                         "quantize_config.json",
                                         "quant_config.json",
                                         NULL};
    static const char *const vocabularies[] = {"tekken.json", "tokenizer.model", "spiece.model",
                                               "vocab.json",  "merges.txt",      "vocab.txt",
                                               NULL};
    static const char folder[] = "additional_chat_templates/";
    if (!strncmp(name, folder, sizeof folder - 1))
        return ends_in(name, ".jinja") && !strchr(name + sizeof folder - 1, '/');
    if (is_one_of(name, always))
        return true;
    return !has_tokenizer_json && !strchr(name, '/') &&
           (is_one_of(name, vocabularies) || ends_in(name, ".tiktoken"));
}

enum weights_kind weights_choose(bool (*has)(const void *ctx, const char *name), const void *ctx,
                                 const char **file)
{
    static const struct {
        const char *file;
        enum weights_kind kind;
    } order[] = {{"model.safetensors", WEIGHTS_SINGLE},
                 {"model.safetensors.index.json", WEIGHTS_INDEXED},
                 {"pytorch_model.bin", WEIGHTS_SINGLE},
                 {"pytorch_model.bin.index.json", WEIGHTS_INDEXED}};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (has(ctx, order[i].file)) {
            *file = order[i].file;
            return order[i].kind;
        }
    *file = NULL;
    return WEIGHTS_NONE;
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files of a weight_map, each once: an index has thousands of tensors in a few of them. */
static enum sl_status distinct_shards(const char *file, const json_t *map, const char **list,
                                      size_t *n, struct sl_err *err)
{
    const char *tensor;
    json_t *v;
    size_t k = 0;
    json_object_foreach((json_t *)map, tensor, v)
    {
        const char *s = json_string_value(v);
        if (!s || strlen(s) != json_string_length(v) || !file_name_ok(s) || strchr(s, '/'))
            return SL_FAIL(err, SL_EFORMAT,
                           "%s: tensor '%.200s': '%.200s' is not the name of a file in this folder",
                           file, tensor, s ? s : "");
        list[k++] = s;
    }
    qsort(list, k, sizeof *list, by_string);
    *n = 0;
    for (size_t i = 0; i < k; i++)
        if (i == 0 || strcmp(list[i], list[*n - 1]))
            list[(*n)++] = list[i];
    return *n <= HUB_MAX_SHARDS
               ? SL_OK
               : SL_FAIL(err, SL_EFORMAT, "%s: more than %d shards", file, HUB_MAX_SHARDS);
}

enum sl_status index_shards(const char *file, const char *text, size_t bytes,
                            enum sl_status (*add)(void *ctx, const char *shard, struct sl_err *err),
                            void *ctx, struct sl_err *err)
{
    json_error_t why;
    json_t *root = json_loadb(text, bytes, JSON_ALLOW_NUL, &why);
    const json_t *map = json_object_get(root, "weight_map");
    size_t n = json_object_size(map);
    enum sl_status st = SL_OK;
    if (!root)
        return SL_FAIL(err, SL_EFORMAT, "%s: not valid JSON: %s (line %d)", file, why.text,
                       why.line);
    const char **list = mem_alloc(n, sizeof *list);
    if (!n)
        st = SL_FAIL(err, SL_EFORMAT, "%s: no weight_map", file);
    else if (!list)
        st = SL_FAIL(err, SL_ENOMEM, "%s: no memory for its names", file);
    else
        st = distinct_shards(file, map, list, &n, err);
    for (size_t i = 0; !st && i < n; i++)
        st = add(ctx, list[i], err);
    mem_free(list);
    json_decref(root);
    return st;
}

const char *weights_instead(const struct listing *l)
{
    static const struct {
        const char *end, *what;
    } others[] = {{".gguf", " (it has GGUF files, which are not read)"},
                  {".onnx", " (it has ONNX files, which are not read)"},
                  {"adapter_model.safetensors", " (it is an adapter; give its base model)"},
                  {".h5", " (it has TensorFlow files, which are not read)"},
                  {".msgpack", " (it has Flax files, which are not read)"}};
    for (size_t k = 0; k < sizeof others / sizeof *others; k++)
        for (size_t i = 0; i < l->n; i++)
            if (ends_in(l->name[i], others[k].end) || !strcmp(l->name[i], others[k].end))
                return others[k].what;
    return "";
}
