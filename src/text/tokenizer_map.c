/* SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static uint32_t tag_of(const char *s, size_t n)
{
    return (uint32_t)XXH3_64bits(s, n);
}

static bool grow_slots(struct strmap *m, size_t want)
{
    size_t cap = 16;
    while (cap < want * 2)
        cap *= 2;
    if (m->slots && cap <= (size_t)m->mask + 1)
        return true;
    struct strmap_slot *slots = mem_zalloc(cap, sizeof *slots);
    if (!slots)
        return false;
    for (size_t i = 0; m->slots && i <= m->mask; i++) {
        if (!m->slots[i].entry)
            continue;
        size_t k = m->slots[i].tag & (cap - 1);
        while (slots[k].entry)
            k = (k + 1) & (cap - 1);
        slots[k] = m->slots[i];
    }
    mem_free(m->slots);
    m->slots = slots;
    m->mask = (uint32_t)(cap - 1);
    return true;
}

static bool grow_pool(struct strmap *m, size_t more)
{
    if (more <= m->pool_cap - m->pool_len)
        return true;
    size_t cap = m->pool_cap ? m->pool_cap * 2 : 1024;
    while (cap - m->pool_len < more)
        cap *= 2;
    if (cap > UINT32_MAX)
        return false;
    char *pool = mem_realloc(m->pool, cap, 1);
    if (!pool)
        return false;
    m->pool = pool;
    m->pool_cap = cap;
    return true;
}

static bool grow_entries(struct strmap *m, size_t want)
{
    if (want <= m->cap)
        return true;
    size_t cap = m->cap ? (size_t)m->cap * 2 : 64;
    if (cap < want)
        cap = want;
    if (cap > UINT32_MAX / 4)
        return false;
    struct strmap_entry *e = mem_realloc(m->entries, cap, sizeof *e);
    if (!e)
        return false;
    m->entries = e;
    m->cap = (uint32_t)cap;
    return true;
}

bool strmap_reserve(struct strmap *m, size_t n, size_t pool_bytes)
{
    return n < UINT32_MAX / 4 && grow_entries(m, n) && grow_slots(m, n) && grow_pool(m, pool_bytes);
}

/* The slot of the key, or the free slot where it belongs. */
static struct strmap_slot *slot_of(const struct strmap *m, uint32_t tag, const char *s, size_t n)
{
    for (uint32_t k = tag & m->mask;; k = (k + 1) & m->mask) {
        struct strmap_slot *slot = &m->slots[k];
        if (!slot->entry)
            return slot;
        if (slot->tag != tag)
            continue;
        const struct strmap_entry *e = &m->entries[slot->entry - 1];
        if (e->len == n && !memcmp(m->pool + e->off, s, n))
            return slot;
    }
}

static bool put(struct strmap *m, const char *s, size_t n, int32_t id, bool keep_both)
{
    if (n > UINT32_MAX / 2 || !grow_entries(m, (size_t)m->n + 1) ||
        !grow_slots(m, (size_t)m->n + 1) || !grow_pool(m, n + 1))
        return false;
    uint32_t tag = tag_of(s, n);
    struct strmap_slot *slot = slot_of(m, tag, s, n);
    if (slot->entry && !keep_both) {
        m->entries[slot->entry - 1].id = id;
        return true;
    }
    m->entries[m->n] = (struct strmap_entry){(uint32_t)m->pool_len, (uint32_t)n, id};
    memcpy(m->pool + m->pool_len, s, n);
    m->pool[m->pool_len + n] = 0;
    m->pool_len += n + 1;
    *slot = (struct strmap_slot){tag, ++m->n};
    return true;
}

bool strmap_put(struct strmap *m, const char *s, size_t n, int32_t id)
{
    return put(m, s, n, id, false);
}

bool strmap_append(struct strmap *m, const char *s, size_t n, int32_t id)
{
    return put(m, s, n, id, true);
}

struct strmap_probe strmap_probe(const struct strmap *m, const char *s, size_t n)
{
    struct strmap_probe p = {s, n, tag_of(s, n)};
    if (m->slots)
        __builtin_prefetch(&m->slots[p.tag & m->mask]);
    return p;
}

void strmap_prefetch(const struct strmap *m, const struct strmap_probe *p)
{
    if (m->slots && m->slots[p->tag & m->mask].entry)
        __builtin_prefetch(&m->entries[m->slots[p->tag & m->mask].entry - 1]);
}

int32_t strmap_found(const struct strmap *m, const struct strmap_probe *p)
{
    if (!m->n)
        return -1;
    const struct strmap_slot *slot = slot_of(m, p->tag, p->s, p->n);
    return slot->entry ? m->entries[slot->entry - 1].id : -1;
}

int32_t strmap_get(const struct strmap *m, const char *s, size_t n)
{
    struct strmap_probe p = {s, n, tag_of(s, n)};
    return strmap_found(m, &p);
}

void strmap_fini(struct strmap *m)
{
    mem_free(m->pool);
    mem_free(m->entries);
    mem_free(m->slots);
    *m = (struct strmap){0};
}
