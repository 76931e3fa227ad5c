/* SPDX-License-Identifier: Apache-2.0 */
#include "model/zip.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* Sizes of the fixed parts, and the signatures they begin with. */
enum { LOCAL = 30, CENTRAL = 46, END = 22, END64 = 56, LOCATOR64 = 20, MAX_COMMENT = 65535 };
enum { MAX_MEMBERS = 1 << 20 };
static const uint32_t LOCAL_SIG = 0x04034b50, CENTRAL_SIG = 0x02014b50, END_SIG = 0x06054b50,
                      END64_SIG = 0x06064b50, LOCATOR64_SIG = 0x07064b50;

struct reader {
    const unsigned char *bytes;
    uint64_t n;
    const char *file;
    struct sl_err *err;
};

static uint64_t le(const unsigned char *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* [at, at + n) lies inside the archive. */
static bool inside(const struct reader *r, uint64_t at, uint64_t n)
{
    return at <= r->n && n <= r->n - at;
}

static bool is_at(const struct reader *r, uint64_t at, uint32_t sig, uint64_t n)
{
    return inside(r, at, n) && le(r->bytes + at, 4) == sig;
}

bool zip_is_one(const void *bytes, size_t n)
{
    return n >= LOCAL && le(bytes, 4) == LOCAL_SIG;
}

/* The record at the end; a comment may follow it. */
static bool find_end(const struct reader *r, uint64_t *at)
{
    for (uint64_t back = END; back <= r->n && back <= END + MAX_COMMENT; back++)
        if (is_at(r, r->n - back, END_SIG, END)) {
            *at = r->n - back;
            return true;
        }
    return false;
}

struct directory {
    uint64_t at, bytes, n;
};

static enum sl_status read_end(const struct reader *r, struct directory *d)
{
    uint64_t at = 0;
    if (!find_end(r, &at))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: no end of a zip archive (truncated?)", r->file);
    const unsigned char *p = r->bytes + at;
    *d = (struct directory){.n = le(p + 10, 2), .bytes = le(p + 12, 4), .at = le(p + 16, 4)};
    if (at >= LOCATOR64 && is_at(r, at - LOCATOR64, LOCATOR64_SIG, LOCATOR64)) {
        uint64_t end64 = le(p - LOCATOR64 + 8, 8);
        if (!is_at(r, end64, END64_SIG, END64))
            return SL_FAIL(r->err, SL_EFORMAT, "%s: its zip64 directory is not where it says",
                           r->file);
        p = r->bytes + end64;
        *d = (struct directory){.n = le(p + 32, 8), .bytes = le(p + 40, 8), .at = le(p + 48, 8)};
    }
    if (!inside(r, d->at, d->bytes) || d->n > d->bytes / CENTRAL || d->n > MAX_MEMBERS)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: its zip directory of %llu members does not fit",
                       r->file, (unsigned long long)d->n);
    return SL_OK;
}

struct entry {
    uint64_t stored, size, local; /* 32-bit fields, until zip64's replace them */
};

/* The zip64 field has, in this order, what did not fit into 32 bits. */
static bool read_zip64(struct entry *e, const unsigned char *extra, size_t n)
{
    uint64_t *const field[] = {&e->size, &e->stored, &e->local};
    while (n >= 4) {
        size_t id = le(extra, 2), len = le(extra + 2, 2);
        extra += 4;
        n -= 4;
        if (len > n)
            return false;
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*field[i] != UINT32_MAX)
                continue;
            if (len < 8)
                return false;
            *field[i] = le(extra, 8);
            extra += 8;
            n -= 8;
            len -= 8;
        }
        extra += len;
        n -= len;
    }
    return true;
}

/* Where the member's bytes are: after its own header, whose lengths may differ from the
 * directory's. */
static enum sl_status locate(const struct reader *r, struct zip_member *m, const struct entry *e)
{
    int len = m->name_bytes < 200 ? (int)m->name_bytes : 200;
    if (!is_at(r, e->local, LOCAL_SIG, LOCAL))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: member '%.*s' is not where the directory says",
                       r->file, len, m->name);
    const unsigned char *p = r->bytes + e->local;
    uint64_t at = e->local + LOCAL + le(p + 26, 2) + le(p + 28, 2);
    if (!inside(r, at, e->size))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: member '%.*s' ends after the file (truncated?)",
                       r->file, len, m->name);
    m->data = r->bytes + at;
    m->bytes = e->size;
    return SL_OK;
}

/* The directory's entry at *at, which moves on. */
static enum sl_status read_member(const struct reader *r, uint64_t *at, uint64_t end,
                                  struct zip_member *m)
{
    if (end - *at < CENTRAL || !is_at(r, *at, CENTRAL_SIG, CENTRAL))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: its zip directory is broken", r->file);
    const unsigned char *p = r->bytes + *at;
    uint64_t flags = le(p + 8, 2), method = le(p + 10, 2);
    uint64_t n_name = le(p + 28, 2), n_extra = le(p + 30, 2), n_comment = le(p + 32, 2);
    struct entry e = {.stored = le(p + 20, 4), .size = le(p + 24, 4), .local = le(p + 42, 4)};
    *at += CENTRAL;
    if (n_name + n_extra + n_comment > end - *at || !read_zip64(&e, p + CENTRAL + n_name, n_extra))
        return SL_FAIL(r->err, SL_EFORMAT, "%s: its zip directory is broken", r->file);
    *at += n_name + n_extra + n_comment;
    *m = (struct zip_member){.name = (const char *)p + CENTRAL, .name_bytes = n_name};
    int len = n_name < 200 ? (int)n_name : 200;
    if (method || e.stored != e.size)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: member '%.*s' is compressed; torch.save stores",
                       r->file, len, m->name);
    if (flags & 1)
        return SL_FAIL(r->err, SL_EFORMAT, "%s: member '%.*s' is encrypted", r->file, len, m->name);
    return locate(r, m, &e);
}

static int by_name(const void *a, const void *b)
{
    const struct zip_member *x = a, *y = b;
    size_t n = x->name_bytes < y->name_bytes ? x->name_bytes : y->name_bytes;
    int order = memcmp(x->name, y->name, n);
    return order ? order : x->name_bytes < y->name_bytes ? -1 : x->name_bytes > y->name_bytes;
}

enum sl_status zip_open(struct zip *z, const void *bytes, size_t n, const char *file,
                        struct sl_err *err)
{
    const struct reader r = {.bytes = bytes, .n = n, .file = file, .err = err};
    struct directory d = {0};
    *z = (struct zip){0};
    enum sl_status st = read_end(&r, &d);
    if (st)
        return st;
    if (!(z->member = mem_alloc((size_t)d.n, sizeof *z->member)))
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for %llu members", file,
                       (unsigned long long)d.n);
    for (uint64_t at = d.at; st == SL_OK && z->n < d.n; z->n++)
        st = read_member(&r, &at, d.at + d.bytes, &z->member[z->n]);
    if (st == SL_OK && z->n)
        qsort(z->member, z->n, sizeof *z->member, by_name);
    for (size_t i = 1; st == SL_OK && i < z->n; i++)
        if (!by_name(&z->member[i - 1], &z->member[i]))
            st = SL_FAIL(err, SL_EFORMAT, "%s: two members of one name", file);
    if (st)
        zip_close(z);
    return st;
}

void zip_close(struct zip *z)
{
    mem_free(z->member);
    *z = (struct zip){0};
}

const struct zip_member *zip_find(const struct zip *z, const char *name, size_t name_bytes)
{
    const struct zip_member key = {.name = name, .name_bytes = name_bytes};
    return z->n ? bsearch(&key, z->member, z->n, sizeof key, by_name) : NULL;
}
