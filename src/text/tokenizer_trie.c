/* A trie over byte strings: added tokens, Unigram and WordPiece vocabularies.
 *
 * Two arrays: nodes, whose children are a sorted slice of edges. The root's children are a table by
 * byte, because almost every position of a text fails there.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

struct trie_node {
    int32_t value; /* -1: no pattern ends here */
    uint32_t edge, n_edges;
};
struct trie {
    struct trie_node *nodes;
    uint8_t *edge_byte;
    uint32_t *edge_to;
    uint32_t root[256]; /* 0: none */
    uint32_t n_nodes, n_edges;
};

void trie_destroy(struct trie **t)
{
    if (!*t)
        return;
    mem_free((*t)->nodes);
    mem_free((*t)->edge_byte);
    mem_free((*t)->edge_to);
    mem_free(*t);
    *t = NULL;
}

static int by_bytes(const void *a, const void *b)
{
    const struct trie_key *x = a, *y = b;
    int c = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);
    return c ? c : x->n != y->n ? (x->n < y->n ? -1 : 1) : x->value < y->value ? -1 : 1;
}

struct trie_span {
    uint32_t node, lo, hi, depth;
};

/* Breadth-first over spans of the sorted keys that share their first `depth` bytes. */
static void trie_fill(struct trie *t, const struct trie_key *keys, uint32_t n,
                      struct trie_span *queue)
{
    size_t head = 0, tail = 0;
    queue[tail++] = (struct trie_span){0, 0, n, 0};
    t->n_nodes = 1;
    while (head < tail) {
        struct trie_span sp = queue[head++];
        struct trie_node *node = &t->nodes[sp.node];
        *node = (struct trie_node){-1, t->n_edges, 0};
        while (sp.lo < sp.hi && keys[sp.lo].n == sp.depth) { /* equal keys: the first wins */
            if (node->value < 0)
                node->value = keys[sp.lo].value;
            sp.lo++;
        }
        for (uint32_t i = sp.lo, k; i < sp.hi; i = k) {
            uint8_t byte = (uint8_t)keys[i].s[sp.depth];
            for (k = i + 1; k < sp.hi && (uint8_t)keys[k].s[sp.depth] == byte;)
                k++;
            t->edge_byte[t->n_edges] = byte;
            t->edge_to[t->n_edges++] = t->n_nodes;
            node->n_edges++;
            if (!sp.node)
                t->root[byte] = t->n_nodes;
            queue[tail++] = (struct trie_span){t->n_nodes++, i, k, sp.depth + 1};
        }
    }
}

enum sl_status trie_create(struct trie **out, struct trie_key *keys, uint32_t n, struct sl_err *err)
{
    size_t total = 1;
    for (uint32_t i = 0; i < n; i++)
        total += keys[i].n;
    if (total > TOK_MAX_ADDED_BYTES)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the added tokens are too long");
    qsort(keys, n, sizeof *keys, by_bytes);
    struct trie *t = mem_zalloc(1, sizeof *t);
    struct trie_span *queue = mem_alloc(total, sizeof *queue);
    if (t) {
        t->nodes = mem_alloc(total, sizeof *t->nodes);
        t->edge_byte = mem_alloc(total, 1);
        t->edge_to = mem_alloc(total, sizeof *t->edge_to);
    }
    if (!t || !queue || !t->nodes || !t->edge_byte || !t->edge_to) {
        trie_destroy(&t);
        mem_free(queue);
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    }
    trie_fill(t, keys, n, queue);
    mem_free(queue);
    *out = t;
    return SL_OK;
}

uint32_t trie_step(const struct trie *t, uint32_t node, uint8_t byte)
{
    if (!node)
        return t->root[byte];
    uint32_t lo = t->nodes[node].edge, hi = lo + t->nodes[node].n_edges;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (t->edge_byte[mid] == byte)
            return t->edge_to[mid];
        if (t->edge_byte[mid] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

int32_t trie_value(const struct trie *t, uint32_t node)
{
    return t->nodes[node].value;
}

size_t trie_longest(const struct trie *t, const char *s, size_t n, int32_t *value)
{
    size_t best = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        node = trie_step(t, node, (uint8_t)s[i]);
        if (!node)
            break;
        if (t->nodes[node].value >= 0) {
            best = i + 1;
            *value = t->nodes[node].value;
        }
    }
    return best;
}
