/* SPDX-License-Identifier: Apache-2.0 */
#include "base/strbuf.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void strbuf_init(struct strbuf *b, size_t max)
{
    *b = (struct strbuf){.max = max};
}

void strbuf_fini(struct strbuf *b)
{
    mem_free(b->data);
    *b = (struct strbuf){.max = b->max};
}

void strbuf_clear(struct strbuf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = 0;
}

/* Room for n more bytes and the NUL. */
static bool reserve(struct strbuf *b, size_t n)
{
    if (b->failed)
        return false;
    size_t limit = b->max ? b->max : (size_t)-1 / 4;
    if (n > limit || b->len > limit - n)
        return !(b->failed = true);
    if (b->cap > b->len && n < b->cap - b->len)
        return true;
    size_t cap = b->cap ? b->cap * 2 : 64;
    while (cap < b->len + n + 1)
        cap *= 2;
    char *p = mem_realloc(b->data, cap, 1);
    if (!p)
        return !(b->failed = true);
    b->data = p;
    b->cap = cap;
    return true;
}

void strbuf_add(struct strbuf *b, const void *bytes, size_t n)
{
    if (!reserve(b, n))
        return;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
}

void strbuf_adds(struct strbuf *b, const char *s)
{
    strbuf_add(b, s, strlen(s));
}

void strbuf_addc(struct strbuf *b, char c)
{
    strbuf_add(b, &c, 1);
}

void strbuf_addf(struct strbuf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !reserve(b, (size_t)n))
        return;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
}

void strbuf_drop_front(struct strbuf *b, size_t n)
{
    if (n > b->len)
        n = b->len;
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

char *strbuf_take(struct strbuf *b)
{
    char *p = NULL;
    if (!b->failed)
        p = b->data ? b->data : mem_strndup("", 0);
    else
        mem_free(b->data);
    *b = (struct strbuf){.max = b->max};
    return p;
}
