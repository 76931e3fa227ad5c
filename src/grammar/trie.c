/* SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <stdlib.h>
#include <string.h>

size_t trie_token_bytes(const struct vocab *v, int32_t eos, int32_t id, uint8_t *buf)
{
    size_t n;
    const uint8_t *p = vocab_bytes(v, id, &n);
    if (id == eos || (v->flags[id] & VOCAB_UNUSED) || n == 0 || n > TOKEN_BYTES_MAX - 2)
        return 0;
    bool special = v->flags[id] & VOCAB_SPECIAL;
    for (size_t i = 0; i < n; i++)
        if (p[i] >= 0xF8) /* never in UTF-8, and kept for the marks of special tokens */
            return 0;
    memcpy(buf + special, p, n);
    if (!special)
        return n;
    buf[0] = SPECIAL_OPEN;
    buf[n + 1] = SPECIAL_CLOSE;
    return n + 2;
}

struct entry {
    const uint8_t *p;
    int n;
    int32_t id;
};

static int entry_cmp(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int n = x->n < y->n ? x->n : y->n, c = memcmp(x->p, y->p, (size_t)n);
    if (c)
        return c;
    return x->n != y->n ? x->n - y->n : (x->id > y->id) - (x->id < y->id);
}

/* A node in the making: the sorted entries [lo, hi) share their first `depth` bytes. */
struct span {
    int lo, hi, depth;
};

/* Breadth first over the sorted entries: each node's children come out in a row. */
static bool build_nodes(struct trie *t, const struct entry *e, int n, int cap)
{
    struct span *span = mem_alloc((size_t)cap, sizeof *span);
    if (!span)
        return false;
    span[0] = (struct span){0, n, 0};
    t->byte[0] = 0;
    t->n = 1;
    for (int i = 0; i < t->n; i++) {
        struct span s = span[i];
        t->token[i] = -1;
        t->first[i] = t->n;
        int k = s.lo;
        for (; k < s.hi && e[k].n == s.depth; k++) {
            t->same[e[k].id] = t->token[i];
            t->token[i] = e[k].id;
        }
        while (k < s.hi) {
            int from = k;
            uint8_t b = e[k].p[s.depth];
            while (k < s.hi && e[k].p[s.depth] == b)
                k++;
            SL_ASSERT(t->n < cap);
            t->byte[t->n] = b;
            span[t->n++] = (struct span){from, k, s.depth + 1};
        }
    }
    t->first[t->n] = t->n;
    mem_free(span);
    return true;
}

/* Distinct beginnings of the sorted entries, plus the root. */
static int count_nodes(const struct entry *e, int n)
{
    int total = 1;
    for (int i = 0; i < n; i++) {
        int same = 0;
        while (i && same < e[i].n && same < e[i - 1].n && e[i].p[same] == e[i - 1].p[same])
            same++;
        total += e[i].n - same;
    }
    return total;
}

static bool build(struct trie *t, const struct vocab *v, int32_t eos, struct entry *e,
                  uint8_t *bytes)
{
    size_t used = 0;
    int n = 0;
    for (int32_t id = 0; id < v->n; id++) {
        size_t len = trie_token_bytes(v, eos, id, bytes + used);
        t->same[id] = -1;
        if (len == 0)
            continue;
        e[n++] = (struct entry){bytes + used, (int)len, id};
        used += len;
    }
    qsort(e, (size_t)n, sizeof *e, entry_cmp);
    size_t nodes = (size_t)count_nodes(e, n);
    t->first = mem_alloc(nodes + 1, sizeof *t->first);
    t->byte = mem_alloc(nodes, sizeof *t->byte);
    t->token = mem_alloc(nodes, sizeof *t->token);
    t->subtree = mem_alloc(nodes, sizeof *t->subtree);
    if (!t->first || !t->byte || !t->token || !t->subtree || !build_nodes(t, e, n, (int)nodes))
        return false;
    for (int i = t->n - 1; i >= 0; i--) {
        t->subtree[i] = 1;
        for (int c = t->first[i]; c < t->first[i + 1]; c++)
            t->subtree[i] += t->subtree[c];
    }
    return true;
}

enum sl_status trie_init(struct trie *t, const struct vocab *v, int32_t eos, struct sl_err *err)
{
    *t = (struct trie){.n_tokens = v->n, .n_words = (v->n + 31) / 32};
    size_t total = v->start[v->n] + 2 * (size_t)v->n + TOKEN_BYTES_MAX;
    struct entry *e = mem_alloc((size_t)v->n, sizeof *e);
    uint8_t *bytes = mem_alloc(total, 1);
    t->same = mem_alloc((size_t)v->n, sizeof *t->same);
    bool ok = e && bytes && t->same && build(t, v, eos, e, bytes);
    mem_free(e);
    mem_free(bytes);
    if (ok)
        return SL_OK;
    trie_fini(t);
    return SL_FAIL(err, SL_ENOMEM, "grammar: no memory for a trie of %d tokens", v->n);
}

void trie_fini(struct trie *t)
{
    mem_free(t->first);
    mem_free(t->byte);
    mem_free(t->token);
    mem_free(t->same);
    mem_free(t->subtree);
    *t = (struct trie){0};
}
