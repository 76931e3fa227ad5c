/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_long fail_countdown; /* tests write it; every allocation reads it */
static atomic_ullong n_allocations;

static bool refuse(size_t n, size_t size, size_t *bytes)
{
    if (__builtin_mul_overflow(n, size, bytes))
        return true;
    if (*bytes == 0)
        *bytes = 1;
    atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed);
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) > 0)
        return atomic_fetch_sub(&fail_countdown, 1) == 1;
    return false;
}

void *mem_alloc(size_t n, size_t size)
{
    size_t bytes;
    return refuse(n, size, &bytes) ? NULL : malloc(bytes);
}

void *mem_zalloc(size_t n, size_t size)
{
    size_t bytes;
    return refuse(n, size, &bytes) ? NULL : calloc(1, bytes);
}

void *mem_realloc(void *p, size_t n, size_t size)
{
    size_t bytes;
    return refuse(n, size, &bytes) ? NULL : realloc(p, bytes);
}

void *mem_aligned(size_t n, size_t size, size_t align)
{
    size_t bytes;
    void *p;
    if (refuse(n, size, &bytes) || posix_memalign(&p, align, bytes))
        return NULL;
    return p;
}

char *mem_strndup(const char *s, size_t n)
{
    char *p = n == SIZE_MAX ? NULL : mem_alloc(n + 1, 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *mem_strdup(const char *s)
{
    return s ? mem_strndup(s, strlen(s)) : NULL;
}

void mem_free(void *p)
{
    free(p);
}

static const size_t HUGE_PAGE = (size_t)2 << 20, SMALL_PAGE = 4096;

static size_t round_pages(size_t bytes)
{
    return (bytes + SMALL_PAGE - 1) & ~(SMALL_PAGE - 1);
}

void *mem_pages(size_t bytes)
{
    size_t n;
    if (refuse(1, bytes, &n) || n > SIZE_MAX / 2)
        return NULL;
    n = round_pages(n);
    bool huge = n >= HUGE_PAGE;
    size_t slack = huge ? HUGE_PAGE : 0; /* the kernel aligns to 4 KiB only: take more, trim */
    char *p = mmap(NULL, n + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t front = huge ? (size_t)(-(uintptr_t)p & (HUGE_PAGE - 1)) : 0;
    if (front)
        munmap(p, front);
    if (slack - front)
        munmap(p + front + n, slack - front);
    if (huge)
        (void)madvise(p + front, n, MADV_HUGEPAGE); /* refused: small pages do as well */
    return p + front;
}

void mem_pages_free(void *p, size_t bytes)
{
    if (p)
        munmap(p, round_pages(bytes ? bytes : 1));
}

void mem_fail_nth(long n)
{
    atomic_store(&fail_countdown, n);
}

uint64_t mem_count(void)
{
    return atomic_load_explicit(&n_allocations, memory_order_relaxed);
}

struct arena_chunk {
    struct arena_chunk *next;
    size_t cap;
    _Alignas(16) unsigned char data[];
};

enum { ARENA_CHUNK = 4096 };

void arena_init(struct arena *a, size_t limit)
{
    *a = (struct arena){.limit = limit};
}

void *arena_alloc(struct arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2)
        return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (a->limit && bytes > a->limit - a->total)
        return NULL;
    if (!a->head || bytes > a->head->cap - a->used) {
        size_t cap = bytes > ARENA_CHUNK ? bytes : ARENA_CHUNK;
        struct arena_chunk *c = mem_zalloc(1, sizeof *c + cap);
        if (!c)
            return NULL;
        c->cap = cap;
        c->next = a->head;
        a->head = c;
        a->used = 0;
    }
    void *p = a->head->data + a->used;
    a->used += bytes;
    a->total += bytes;
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    char *p = n == SIZE_MAX ? NULL : arena_alloc(a, n + 1, 1);
    if (p)
        memcpy(p, s, n);
    return p;
}

void arena_fini(struct arena *a)
{
    for (struct arena_chunk *c = a->head, *next; c; c = next) {
        next = c->next;
        mem_free(c);
    }
    *a = (struct arena){.limit = a->limit};
}
