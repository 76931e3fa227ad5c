/* SPDX-License-Identifier: Apache-2.0 */
#include "model/torchfile.h"

#include "model/unpickle.h"
#include "model/zip.h"

#include <stdio.h>
#include <string.h>

struct reading {
    const char *file;
    struct sl_err *err;
    torch_tensor_fn fn;
    void *ctx;
    const struct zip *zip; /* storages are its members */
    const char *prefix;    /* "X/", the folder in the archive */
    size_t prefix_bytes;
};

static int shown(size_t n)
{
    return n < 200 ? (int)n : 200;
}

/* ---- one tensor ---------------------------------------------------------------------------- */

static const struct zip_member *find_storage(const struct reading *r,
                                             const struct pickle_storage *s)
{
    char name[512];
    static const char folder[] = "data/";
    size_t at = r->prefix_bytes, n = at + sizeof folder - 1 + s->key_bytes;
    if (n > sizeof name)
        return NULL;
    memcpy(name, r->prefix, at);
    memcpy(name + at, folder, sizeof folder - 1);
    memcpy(name + at + sizeof folder - 1, s->key, s->key_bytes);
    return zip_find(r->zip, name, n);
}

static enum sl_status check_strides(const struct reading *r, const char *name, size_t n_name,
                                    const struct pickle_tensor *t, uint64_t *elements)
{
    uint64_t expect = 1;
    bool empty = false, strided = false;
    for (int i = t->n_dims - 1; i >= 0; i--) {
        strided |= t->dim[i] != 1 && t->stride[i] != expect;
        empty |= t->dim[i] == 0;
        if (t->dim[i] && __builtin_mul_overflow(expect, t->dim[i], &expect))
            return SL_FAIL(r->err, SL_EFORMAT,
                           "%s: tensor '%.*s': its shape is larger than any "
                           "memory",
                           r->file, shown(n_name), name);
    }
    *elements = empty ? 0 : expect;
    if (strided && !empty)
        return SL_FAIL(r->err, SL_EFORMAT,
                       "%s: tensor '%.*s' is a view with strides of its own; only contiguous "
                       "tensors are read (call .contiguous() before torch.save)",
                       r->file, shown(n_name), name);
    return SL_OK;
}

static enum sl_status read_tensor(const struct reading *r, const char *name, size_t n_name,
                                  const struct pickle_tensor *p)
{
    const struct pickle_storage *s = p->storage;
    const struct zip_member *m = find_storage(r, s);
    uint64_t elements = 0, size = st_dtype_bytes(s->dtype);
    enum sl_status st = check_strides(r, name, n_name, p, &elements);
    if (st)
        return st;
    if (!m)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: tensor '%.*s': storage '%.*s' is not in the file",
                       r->file, shown(n_name), name, shown(s->key_bytes), s->key);
    if (s->elements > m->bytes / size)
        return SL_FAIL(r->err, SL_EFORMAT,
                       "%s: tensor '%.*s': its storage has %llu bytes, too few for %llu elements "
                       "(truncated?)",
                       r->file, shown(n_name), name, (unsigned long long)m->bytes,
                       (unsigned long long)s->elements);
    if (p->offset > s->elements || elements > s->elements - p->offset)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: tensor '%.*s' reaches past its storage", r->file,
                       shown(n_name), name);
    struct st_tensor t = {.file = r->file,
                          .dtype = s->dtype,
                          .n_dims = p->n_dims,
                          .data = m->data + p->offset * size,
                          .bytes = elements * size};
    memcpy(t.dim, p->dim, sizeof t.dim);
    return r->fn(r->ctx, name, n_name, &t);
}

static enum sl_status read_dict(const struct reading *r, const struct pickle_value *root)
{
    enum sl_status st = SL_OK;
    if (root->kind != PICKLE_DICT)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: a dictionary of tensors is expected", r->file);
    for (size_t i = 0; st == SL_OK && i < root->dict->n; i++) {
        const struct pickle_value *key = &root->dict->pair[2 * i], *v = key + 1;
        if (key->kind != PICKLE_STRING || memchr(key->string, 0, key->n))
            st = SL_FAIL(r->err, SL_EFORMAT, "%s: a key of its dictionary is no name", r->file);
        else if (v->kind != PICKLE_TENSOR)
            st = SL_FAIL(r->err, SL_EFORMAT,
                         "%s: '%.*s' is no tensor; a plain state dict is expected", r->file,
                         shown(key->n), key->string);
        else
            st = read_tensor(r, key->string, key->n, v->tensor);
    }
    return st;
}

/* ---- the zip archive ----------------------------------------------------------------------- */

static bool ends_with(const struct zip_member *m, const char *end)
{
    size_t n = strlen(end);
    return m->name_bytes > n && !memcmp(m->name + m->name_bytes - n, end, n);
}

static enum sl_status check_byte_order(const struct reading *r)
{
    char name[512];
    int n = snprintf(name, sizeof name, "%.*sbyteorder", (int)r->prefix_bytes, r->prefix);
    const struct zip_member *m = zip_find(r->zip, name, (size_t)n);
    if (m && (m->bytes != 6 || memcmp(m->data, "little", 6)))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: its numbers are not little-endian", r->file);
    return SL_OK;
}

static enum sl_status read_zip(struct reading *r)
{
    static const char pickle_name[] = "/data.pkl";
    const struct zip_member *m = NULL;
    for (size_t i = 0; i < r->zip->n && !m; i++)
        if (ends_with(&r->zip->member[i], pickle_name))
            m = &r->zip->member[i];
    if (!m)
        return SL_FAIL(r->err, SL_EFORMAT,
                       "%s: a zip archive without data.pkl: torch.save did not "
                       "write it",
                       r->file);
    r->prefix = m->name;
    r->prefix_bytes = m->name_bytes - (sizeof pickle_name - 2); /* with the slash */
    if (r->prefix_bytes > 256)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: its folder has a name of %zu bytes", r->file,
                       r->prefix_bytes);
    struct pickle p = {0};
    enum sl_status st = check_byte_order(r);
    if (st || (st = unpickle(&p, m->data, (size_t)m->bytes, r->file, r->err)))
        return st;
    st = read_dict(r, &p.root);
    pickle_fini(&p);
    return st;
}

/* ---- the file ------------------------------------------------------------------------------ */

/* How a file of torch before 1.6 begins: the pickle of 0x1950a86a20f9469cfc6c. */
static const unsigned char old_magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                          0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};

enum sl_status torch_read(const void *bytes, size_t n, const char *file, torch_tensor_fn fn,
                          void *ctx, struct sl_err *err)
{
    struct zip zip;
    struct reading r = {.file = file, .err = err, .fn = fn, .ctx = ctx, .zip = &zip};
    if (n >= sizeof old_magic && !memcmp(bytes, old_magic, sizeof old_magic))
        return SL_FAIL(
            err, SL_EFORMAT,
            "%s: the format of torch.save before 1.6 is not read; load it with torch and "
            "save it again",
            file);
    if (!zip_is_one(bytes, n))
        return SL_FAIL(err, SL_EFORMAT, "%s: not a file of torch.save (no zip archive)", file);
    enum sl_status st = zip_open(&zip, bytes, n, file, err);
    if (st == SL_OK)
        st = read_zip(&r);
    zip_close(&zip);
    return st;
}
