/* A model folder: which files make the tokenizer.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* *found false: no such file. The caller frees *data. */
static enum sl_status read_file(const char *path, char **data, size_t *bytes, bool *found,
                                struct sl_err *err)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *found = fd >= 0;
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? SL_OK
                   : SL_FAIL(err, SL_EIO, "cannot read %s: %s", path, strerror(errno));
    if (fstat(fd, &info) || !S_ISREG(info.st_mode) || info.st_size > TOK_MAX_FILE_BYTES) {
        close(fd);
        return SL_FAIL(err, SL_EFORMAT, "%s is not a file of at most %d MiB", path,
                       TOK_MAX_FILE_BYTES >> 20);
    }
    size_t want = (size_t)info.st_size, have = 0;
    char *p = mem_alloc(want + 1, 1);
    ssize_t got = 0;
    while (p && have < want && (got = read(fd, p + have, want - have)) > 0)
        have += (size_t)got;
    close(fd);
    if (!p || have < want) {
        mem_free(p);
        return p ? SL_FAIL(err, SL_EIO, "cannot read %s to its end", path)
                 : SL_FAIL(err, SL_ENOMEM, "no memory to read %s", path);
    }
    p[have] = 0;
    *data = p;
    *bytes = have;
    return SL_OK;
}

static char *join(const char *dir, const char *name)
{
    struct strbuf b;
    strbuf_init(&b, 1 << 16);
    strbuf_addf(&b, "%s/%s", dir, name);
    return strbuf_take(&b);
}

/* NULL in *out: no such file. */
static enum sl_status read_json(const char *dir, const char *name, json_t **out, struct sl_err *err)
{
    char *path = name ? join(dir, name) : mem_strdup(dir), *data = NULL;
    size_t bytes = 0;
    bool found;
    if (!path)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a path");
    enum sl_status st = read_file(path, &data, &bytes, &found, err);
    if (!st && found) {
        json_error_t why;
        *out = json_loadb(data, bytes, JSON_ALLOW_NUL, &why);
        if (!*out)
            st = SL_FAIL(err, SL_EFORMAT, "%s: line %d: %s", path, why.line, why.text);
        mem_free(data);
    }
    mem_free(path);
    return st;
}

static int by_id(const void *a, const void *b)
{
    const json_int_t *x = a, *y = b;
    return (x[0] > y[0]) - (x[0] < y[0]);
}

/* transformers adds the tokens of added_tokens_decoder once more, in the order of their ids; their
 * flags win over those in tokenizer.json. */
static enum sl_status add_config_tokens(struct tokenizer *t, json_t *decoder, struct sl_err *err)
{
    size_t n = json_object_size(decoder), k = 0;
    json_int_t(*order)[2] = mem_alloc(n + 1, sizeof *order);
    json_t **items = mem_alloc(n + 1, sizeof *items);
    const char *key;
    json_t *value;
    enum sl_status st = order && items ? SL_OK : SL_ENOMEM;
    if (!st) {
        json_object_foreach(decoder, key, value)
        {
            order[k][0] = strtoll(key, NULL, 10);
            order[k][1] = (json_int_t)k;
            items[k++] = value;
        }
        qsort(order, k, sizeof *order, by_id);
    }
    for (size_t i = 0; i < k && !st; i++)
        st = added_parse(t, items[order[i][1]], err);
    mem_free(order);
    mem_free(items);
    return st == SL_ENOMEM ? SL_FAIL(err, st, "tokenizer: no memory for added tokens") : st;
}

static enum sl_status apply_config(struct tokenizer *t, const char *dir, struct sl_err *err)
{
    json_t *config = NULL;
    enum sl_status st = read_json(dir, "tokenizer_config.json", &config, err);
    if (!st && config)
        st = add_config_tokens(t, json_object_get(config, "added_tokens_decoder"), err);
    json_decref(config);
    return st;
}

enum sl_status tokenizer_from_dir(struct tokenizer *t, const char *dir, struct sl_err *err)
{
    struct stat info;
    if (stat(dir, &info))
        return SL_FAIL(err, SL_ENOTFOUND, "no tokenizer at %s: %s", dir, strerror(errno));
    bool is_dir = S_ISDIR(info.st_mode);
    json_t *root = NULL;
    enum sl_status st = read_json(dir, is_dir ? "tokenizer.json" : NULL, &root, err);
    if (st)
        return st;
    if (!root)
        return SL_FAIL(err, SL_ENOTFOUND, "%s has no tokenizer.json", dir);
    st = tokenizer_parse_json(t, root, err);
    json_decref(root);
    if (!st && is_dir)
        st = apply_config(t, dir, err);
    return st;
}
