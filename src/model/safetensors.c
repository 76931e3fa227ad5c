/* SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"

#include "base/mem.h"
#include "model/jsonfile.h"
#include "model/torchfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A parsed header takes some 25 times its size for a moment. The largest known ones have 0.5 MB. */
static const uint64_t MAX_HEADER_BYTES = 16u << 20;
enum { MAX_HEADER_DEPTH = 3, MAX_INDEX_BYTES = 64 << 20, MAX_NAME = 512 };

static const struct {
    const char *name;
    size_t bytes;
} dtypes[ST_N_DTYPES] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_F8_E8M0] = {"F8_E8M0", 1},
    [ST_I16] = {"I16", 2},         [ST_U16] = {"U16", 2},         [ST_F16] = {"F16", 2},
    [ST_BF16] = {"BF16", 2},       [ST_I32] = {"I32", 4},         [ST_U32] = {"U32", 4},
    [ST_F32] = {"F32", 4},         [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
    [ST_F64] = {"F64", 8},
};

struct mapping {
    void *addr;
    size_t bytes;
};

/* What a folder calls its files, and who reads one. */
struct file_names {
    const char *what, *single, *index;
    enum sl_status (*read)(struct safetensors *s, const void *bytes, size_t n, const char *file,
                           struct sl_err *err);
};

struct safetensors {
    const struct file_names *names;
    struct arena arena; /* names of tensors and files */
    struct mapping *map;
    int n_maps;
    struct st_tensor *tensor; /* sorted by name once open */
    int n, cap;
};

const char *st_dtype_name(enum st_dtype t)
{
    return dtypes[t].name;
}

size_t st_dtype_bytes(enum st_dtype t)
{
    return dtypes[t].bytes;
}

int safetensors_count(const struct safetensors *s)
{
    return s->n;
}

const struct st_tensor *safetensors_at(const struct safetensors *s, int i)
{
    return &s->tensor[i];
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static int by_address(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones first */
}

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    struct st_tensor key = {.name = name};
    if (!s->n)
        return NULL;
    return bsearch(&key, s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
}

/* ---- one header ---------------------------------------------------------------------------- */

/* What a header's reader needs at hand for its messages. */
struct header {
    struct safetensors *st;
    const char *file; /* in the arena */
    const char *data; /* where the tensors' bytes begin */
    uint64_t data_bytes;
    struct sl_err *err;
};

#define BAD(h, name, ...) bad_tensor((h), (name), __LINE__, __VA_ARGS__)

__attribute__((format(printf, 4, 5))) static enum sl_status
bad_tensor(const struct header *h, const char *name, int line, const char *fmt, ...)
{
    char why[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    return sl_err_set(h->err, SL_EFORMAT, __FILE__, line, NULL, "%s: tensor '%.200s': %s", h->file,
                      name, why);
}

static bool get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static enum sl_status read_dtype(const struct header *h, const char *name, const json_t *v,
                                 enum st_dtype *out)
{
    const char *s = json_string_value(v);
    if (!s)
        return BAD(h, name, "no dtype");
    for (int i = 0; i < ST_N_DTYPES; i++)
        if (!strcmp(s, dtypes[i].name)) {
            *out = (enum st_dtype)i;
            return SL_OK;
        }
    return BAD(h, name, "unknown dtype '%.32s'", s);
}

static enum sl_status read_shape(const struct header *h, const char *name, const json_t *v,
                                 struct st_tensor *t, uint64_t *elements)
{
    if (!json_is_array(v))
        return BAD(h, name, "no shape");
    if (json_array_size(v) > ST_MAX_DIMS)
        return BAD(h, name, "%zu dimensions, at most %d are known", json_array_size(v),
                   ST_MAX_DIMS);
    t->n_dims = (int)json_array_size(v);
    *elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        if (!get_u64(json_array_get(v, (size_t)i), &t->dim[i]))
            return BAD(h, name, "dimension %d is not a size", i);
        if (__builtin_mul_overflow(*elements, t->dim[i], elements))
            return BAD(h, name, "its shape is larger than any memory");
    }
    return SL_OK;
}

static enum sl_status read_tensor(const struct header *h, const char *name, const json_t *v)
{
    struct st_tensor t = {.file = h->file};
    uint64_t elements = 0, bytes, begin, end;
    enum sl_status st;
    if (!json_is_object(v))
        return BAD(h, name, "its entry is not an object");
    if (strlen(name) > MAX_NAME)
        return BAD(h, name, "a name of %zu bytes", strlen(name));
    if ((st = read_dtype(h, name, json_object_get(v, "dtype"), &t.dtype)) ||
        (st = read_shape(h, name, json_object_get(v, "shape"), &t, &elements)))
        return st;
    const json_t *off = json_object_get(v, "data_offsets");
    if (json_array_size(off) != 2 || !get_u64(json_array_get(off, 0), &begin) ||
        !get_u64(json_array_get(off, 1), &end))
        return BAD(h, name, "data_offsets must be two sizes");
    if (begin > end)
        return BAD(h, name, "its data ends (%llu) before it begins (%llu)", (unsigned long long)end,
                   (unsigned long long)begin);
    if (end > h->data_bytes)
        return BAD(h, name, "its data ends at byte %llu, but the file has only %llu (truncated?)",
                   (unsigned long long)end, (unsigned long long)h->data_bytes);
    if (__builtin_mul_overflow(elements, (uint64_t)dtypes[t.dtype].bytes, &bytes) ||
        bytes != end - begin)
        return BAD(h, name, "%llu bytes of data do not match its shape and dtype %s",
                   (unsigned long long)(end - begin), dtypes[t.dtype].name);
    t.bytes = bytes;
    t.data = h->data + begin;
    if (!(t.name = arena_strndup(&h->st->arena, name, strlen(name))))
        return SL_FAIL(h->err, SL_ENOMEM, "%s: no memory for tensor names", h->file);
    h->st->tensor[h->st->n++] = t; /* room was made for all entries */
    return SL_OK;
}

/* Byte ranges in order must touch each other and cover all data. */
static enum sl_status check_ranges(const struct header *h, struct st_tensor *t, int n)
{
    if (n)
        qsort(t, (size_t)n, sizeof *t, by_address);
    const char *at = h->data;
    for (int i = 0; i < n; at = (const char *)t[i].data + t[i].bytes, i++) {
        const char *begin = t[i].data;
        if (begin < at)
            return BAD(h, t[i].name, "its data overlaps that of '%.200s'", t[i - 1].name);
        if (begin > at)
            return BAD(h, t[i].name, "%llu bytes before its data belong to no tensor",
                       (unsigned long long)(begin - at));
    }
    uint64_t left = h->data_bytes - (uint64_t)(at - h->data);
    if (left)
        return SL_FAIL(h->err, SL_EFORMAT, "%s: %llu bytes at the end belong to no tensor", h->file,
                       (unsigned long long)left);
    return SL_OK;
}

static enum sl_status make_room(struct safetensors *st, size_t more, struct sl_err *err)
{
    if (more > (size_t)(INT32_MAX - st->n))
        return SL_FAIL(err, SL_EFORMAT, "safetensors: too many tensors");
    if ((size_t)st->n + more <= (size_t)st->cap)
        return SL_OK;
    struct st_tensor *t = mem_realloc(st->tensor, (size_t)st->n + more, sizeof *t);
    if (!t)
        return SL_FAIL(err, SL_ENOMEM, "safetensors: no memory for %zu tensors",
                       (size_t)st->n + more);
    st->tensor = t;
    st->cap = st->n + (int)more;
    return SL_OK;
}

static enum sl_status read_entries(const struct header *h, const json_t *root)
{
    int first = h->st->n;
    enum sl_status st = make_room(h->st, json_object_size(root), h->err);
    if (st)
        return st;
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)root, name, v)
    {
        if (strcmp(name, "__metadata__") && (st = read_tensor(h, name, v)))
            return st;
    }
    return check_ranges(h, h->st->tensor ? h->st->tensor + first : NULL, h->st->n - first);
}

/* Adds one file's tensors. */
static enum sl_status read_header(struct safetensors *s, const void *bytes, size_t n,
                                  const char *file, struct sl_err *err)
{
    const unsigned char *p = bytes;
    struct header h = {.st = s, .err = err};
    uint64_t len = 0;
    if (!(h.file = arena_strndup(&s->arena, file, strlen(file))))
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for its name", file);
    if (n < 8)
        return SL_FAIL(err, SL_EFORMAT, "%s: %zu bytes are no safetensors file", file, n);
    for (int i = 7; i >= 0; i--)
        len = len << 8 | p[i];
    if (len > n - 8)
        return SL_FAIL(err, SL_EFORMAT,
                       "%s: its header claims %llu bytes, but only %zu follow (truncated?)", file,
                       (unsigned long long)len, n - 8);
    if (len > MAX_HEADER_BYTES)
        return SL_FAIL(err, SL_EFORMAT, "%s: a header of %llu bytes, at most %llu are read", file,
                       (unsigned long long)len, (unsigned long long)MAX_HEADER_BYTES);
    h.data = (const char *)p + 8 + len;
    h.data_bytes = n - 8 - len;
    json_t *root = NULL;
    enum sl_status st =
        json_object_parse(&root, (const char *)p + 8, (size_t)len, MAX_HEADER_DEPTH, file, err);
    if (st)
        return st;
    st = read_entries(&h, root);
    json_decref(root);
    return st;
}

/* ---- pytorch_model.bin --------------------------------------------------------------------- */

static enum sl_status add_torch_tensor(void *ctx, const char *name, size_t name_bytes,
                                       const struct st_tensor *t)
{
    const struct header *h = ctx;
    if (name_bytes > MAX_NAME)
        return SL_FAIL(h->err, SL_EFORMAT, "%s: a tensor has a name of %zu bytes", h->file,
                       name_bytes);
    enum sl_status st = SL_OK;
    if (h->st->n == h->st->cap)
        st = make_room(h->st, (size_t)h->st->n + 64, h->err);
    if (st)
        return st;
    struct st_tensor *to = &h->st->tensor[h->st->n];
    *to = *t;
    if (!(to->name = arena_strndup(&h->st->arena, name, name_bytes)))
        return SL_FAIL(h->err, SL_ENOMEM, "%s: no memory for tensor names", h->file);
    h->st->n++;
    return SL_OK;
}

static enum sl_status read_torch(struct safetensors *s, const void *bytes, size_t n,
                                 const char *file, struct sl_err *err)
{
    struct header h = {.st = s, .err = err};
    if (!(h.file = arena_strndup(&s->arena, file, strlen(file))))
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for its name", file);
    return torch_read(bytes, n, h.file, add_torch_tensor, &h, err);
}

/* ---- files --------------------------------------------------------------------------------- */

static const struct file_names safetensors_names = {"safetensors", "model.safetensors",
                                                    "model.safetensors.index.json", read_header};
static const struct file_names torch_names = {"torch", "pytorch_model.bin",
                                              "pytorch_model.bin.index.json", read_torch};

static enum sl_status map_file(struct safetensors *s, const char *path, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return SL_FAIL(err, errno == ENOENT || errno == ENOTDIR ? SL_ENOTFOUND : SL_EIO, "%s: %s",
                       path, strerror(errno));
    struct stat sb;
    enum sl_status st = SL_OK;
    struct mapping *m = &s->map[s->n_maps];
    if (fstat(fd, &sb) || !S_ISREG(sb.st_mode)) {
        st = SL_FAIL(err, SL_EFORMAT, "%s: not a regular file", path);
    } else if (sb.st_size < 8) {
        st = SL_FAIL(err, SL_EFORMAT, "%s: %lld bytes are no %s file", path, (long long)sb.st_size,
                     s->names->what);
    } else {
        m->bytes = (size_t)sb.st_size;
        m->addr = mmap(NULL, m->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (m->addr == MAP_FAILED)
            st = SL_FAIL(err, SL_EIO, "%s: mmap: %s", path, strerror(errno));
        else
            s->n_maps++;
    }
    close(fd);
    return st;
}

/* s->map has room for one more. */
static enum sl_status add_path(struct safetensors *s, const char *path, struct sl_err *err)
{
    enum sl_status st = map_file(s, path, err);
    if (st)
        return st;
    const struct mapping *m = &s->map[s->n_maps - 1];
    return s->names->read(s, m->addr, m->bytes, path, err);
}

static enum sl_status add_file(struct safetensors *s, const char *dir, const char *name,
                               struct sl_err *err)
{
    char *path = path_join(dir, name);
    if (!path)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for its path", name);
    enum sl_status st = add_path(s, path, err);
    mem_free(path);
    return st;
}

/* Sorts; a name that comes twice is refused, with both files. */
static enum sl_status sort_names(struct safetensors *s, struct sl_err *err)
{
    if (s->n)
        qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
    for (int i = 1; i < s->n; i++)
        if (!strcmp(s->tensor[i - 1].name, s->tensor[i].name))
            return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%.200s' is in %s too", s->tensor[i].file,
                           s->tensor[i].name, s->tensor[i - 1].file);
    return SL_OK;
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard is a plain file name: no folders, no way out of this one. */
static bool plain_name(const char *s)
{
    return *s && !strchr(s, '/') && strcmp(s, ".") && strcmp(s, "..") && strlen(s) < 256;
}

/* The distinct file names of the index, sorted, in list[0 .. *n). */
static enum sl_status shard_names(const struct safetensors *s, const json_t *weight_map,
                                  const char **list, int *n, struct sl_err *err)
{
    const char *name;
    json_t *v;
    size_t k = 0;
    json_object_foreach((json_t *)weight_map, name, v)
    {
        const char *file = json_string_value(v);
        if (!file || !plain_name(file))
            return SL_FAIL(err, SL_EFORMAT,
                           "%s: tensor '%.200s': '%.200s' is not the name of a file in this folder",
                           s->names->index, name, file ? file : "");
        list[k++] = file;
    }
    qsort(list, k, sizeof *list, by_string);
    *n = 0;
    for (size_t i = 0; i < k; i++) {
        if (i && !strcmp(list[i], list[*n - 1]))
            continue;
        if (*n == ST_MAX_SHARDS)
            return SL_FAIL(err, SL_EFORMAT, "%s: more than %d shards", s->names->index,
                           ST_MAX_SHARDS);
        list[(*n)++] = list[i];
    }
    return SL_OK;
}

/* The index and the shards must say the same. */
static enum sl_status check_index(const struct safetensors *s, const json_t *weight_map,
                                  struct sl_err *err)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)weight_map, name, v)
    {
        const struct st_tensor *t = safetensors_find(s, name);
        const char *base = t ? strrchr(t->file, '/') + 1 : "";
        if (strcmp(base, json_string_value(v)))
            return SL_FAIL(err, SL_EFORMAT,
                           "%s: tensor '%.200s' is not in %s, where the index has it",
                           s->names->index, name, json_string_value(v));
    }
    if ((size_t)s->n == json_object_size(weight_map))
        return SL_OK;
    for (int i = 0; i < s->n; i++)
        if (!json_object_get(weight_map, s->tensor[i].name))
            return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%.200s' is not in the index",
                           s->tensor[i].file, s->tensor[i].name);
    return SL_OK;
}

static enum sl_status open_shards(struct safetensors *s, const char *dir, const json_t *index,
                                  struct sl_err *err)
{
    const json_t *weight_map = json_object_get(index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        return SL_FAIL(err, SL_EFORMAT, "%s: no weight_map", s->names->index);
    const char **list = mem_alloc(json_object_size(weight_map), sizeof *list);
    if (!list)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for its names", s->names->index);
    int n;
    enum sl_status st = shard_names(s, weight_map, list, &n, err);
    if (st == SL_OK && !(s->map = mem_zalloc((size_t)n, sizeof *s->map)))
        st = SL_FAIL(err, SL_ENOMEM, "safetensors: no memory for %d shards", n);
    for (int i = 0; st == SL_OK && i < n; i++)
        st = add_file(s, dir, list[i], err);
    if (st == SL_OK)
        st = sort_names(s, err);
    if (st == SL_OK)
        st = check_index(s, weight_map, err);
    mem_free(list);
    return st;
}

static bool exists(const char *dir, const char *name)
{
    char path[PATH_MAX]; /* no allocation: its failure would read as "not there" */
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    return n < (int)sizeof path && access(path, F_OK) == 0;
}

static enum sl_status open_path(struct safetensors *s, const char *path, struct sl_err *err)
{
    if (!(s->map = mem_zalloc(1, sizeof *s->map)))
        return SL_FAIL(err, SL_ENOMEM, "safetensors: no memory for a shard");
    enum sl_status st = add_path(s, path, err);
    return st ? st : sort_names(s, err);
}

static enum sl_status open_named(struct safetensors *s, const char *dir, struct sl_err *err)
{
    if (exists(dir, s->names->single)) {
        char *path = path_join(dir, s->names->single);
        enum sl_status st = path ? open_path(s, path, err)
                                 : SL_FAIL(err, SL_ENOMEM, "%s: no memory for a path", dir);
        mem_free(path);
        return st;
    }
    json_t *index = NULL;
    enum sl_status st = json_object_read(&index, dir, s->names->index, MAX_INDEX_BYTES, 4, err);
    if (st == SL_OK)
        st = open_shards(s, dir, index, err);
    json_decref(index);
    return st;
}

static enum sl_status open_folder(struct safetensors *s, const char *dir, struct sl_err *err)
{
    static const struct file_names *const kinds[] = {&safetensors_names, &torch_names};
    for (int i = 0; i < 2; i++)
        if (exists(dir, kinds[i]->single) || exists(dir, kinds[i]->index)) {
            s->names = kinds[i];
            return open_named(s, dir, err);
        }
    return SL_FAIL(err, SL_ENOTFOUND,
                   "%s: neither model.safetensors nor model.safetensors.index.json is there, nor "
                   "pytorch_model.bin or its index",
                   dir);
}

static enum sl_status finish(struct safetensors **out, struct safetensors *s, enum sl_status st)
{
    if (st)
        safetensors_close(&s);
    else
        *out = s;
    return st;
}

enum sl_status safetensors_open(struct safetensors **out, const char *dir, struct sl_err *err)
{
    struct safetensors *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "safetensors: no memory");
    return finish(out, s, open_folder(s, dir, err));
}

enum sl_status safetensors_open_file(struct safetensors **out, const char *path, struct sl_err *err)
{
    struct safetensors *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "safetensors: no memory");
    s->names = &safetensors_names;
    return finish(out, s, open_path(s, path, err));
}

static enum sl_status parse(struct safetensors **out, const struct file_names *names,
                            const void *bytes, size_t n, const char *file, struct sl_err *err)
{
    struct safetensors *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory", names->what);
    s->names = names;
    enum sl_status st = names->read(s, bytes, n, file, err);
    if (st == SL_OK)
        st = sort_names(s, err);
    return finish(out, s, st);
}

enum sl_status safetensors_parse(struct safetensors **out, const void *bytes, size_t n,
                                 const char *file, struct sl_err *err)
{
    return parse(out, &safetensors_names, bytes, n, file, err);
}

enum sl_status safetensors_parse_torch(struct safetensors **out, const void *bytes, size_t n,
                                       const char *file, struct sl_err *err)
{
    return parse(out, &torch_names, bytes, n, file, err);
}

void safetensors_close(struct safetensors **s)
{
    if (!*s)
        return;
    for (int i = 0; i < (*s)->n_maps; i++)
        munmap((*s)->map[i].addr, (*s)->map[i].bytes);
    mem_free((*s)->map);
    mem_free((*s)->tensor);
    arena_fini(&(*s)->arena);
    mem_free(*s);
    *s = NULL;
}
