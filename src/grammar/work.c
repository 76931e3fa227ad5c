/* SPDX-License-Identifier: Apache-2.0 */
#include "grammar/work.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void work_init(struct work *w, const char *what, struct sl_err *err)
{
    *w = (struct work){.left = WORK_STEPS, .err = err, .what = what};
    arena_init(&w->arena, WORK_MEMORY);
}

void work_fini(struct work *w)
{
    arena_fini(&w->arena);
}

void work_refuse(struct work *w, const char *fmt, ...)
{
    char text[160];
    va_list ap;
    if (w->st)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    w->st = SL_FAIL_PARAM(w->err, SL_EINVAL, w->what, "%s: %s", w->what, text);
}

void *work_alloc(struct work *w, size_t n, size_t size)
{
    if (w->st)
        return NULL;
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > WORK_MEMORY - w->arena.total) {
        work_refuse(w, "too large: it needs more than %d MiB to compile", WORK_MEMORY >> 20);
        return NULL;
    }
    void *p = arena_alloc(&w->arena, n, size);
    if (!p)
        w->st = SL_FAIL(w->err, SL_ENOMEM, "%s: no memory to compile it", w->what);
    return p;
}

bool work_grow(struct work *w, void *array, int *cap, int need, size_t size)
{
    void *old, *p;
    if (need <= *cap)
        return !w->st;
    int n = *cap ? *cap : 4;
    while (n < need) {
        if (n > (1 << 28)) {
            work_refuse(w, "too large");
            return false;
        }
        n *= 2;
    }
    p = work_alloc(w, (size_t)n, size);
    if (!p)
        return false;
    memcpy(&old, array, sizeof old); /* array is a T **, whatever T is */
    if (*cap)
        memcpy(p, old, (size_t)*cap * size);
    memcpy(array, &p, sizeof p);
    *cap = n;
    return true;
}

char *work_strndup(struct work *w, const char *s, size_t n)
{
    char *p = work_alloc(w, n + 1, 1);
    if (p)
        memcpy(p, s, n);
    return p;
}

bool work_spend(struct work *w, long n)
{
    if (w->st)
        return false;
    w->left -= n;
    if (w->left < 0)
        work_refuse(w, "too complex: it needs more than the effort allowed to compile");
    return !w->st;
}
