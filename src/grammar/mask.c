/* Which tokens may come next: the trie against a set of stacks.
 *
 * A stack inside a leaf (a string's characters, a pattern, a number) would visit most of the trie;
 * there the answer for all contexts was made once (struct split), and only what leaves the leaf is
 * followed here. Everything else allows few bytes, so that few paths are walked.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <limits.h>
#include <string.h>

enum { LIST_MAX = 512 }; /* allowed tokens kept as a list */

static void walk(struct grammar *g, int set, int node);

static void or_words(uint32_t *d, const uint32_t *s, int n)
{
    for (int i = 0; i < n; i++)
        d[i] |= s[i];
}

static void add_inside(struct grammar *g, const struct split *s, int room)
{
    int i = 0;
    if (s->bits && room >= s->max_units) {
        or_words(g->scratch, s->bits, g->lib->trie.n_words);
        return;
    }
    if (s->bits) {
        int u = room < BELOW ? room : BELOW - 1;
        or_words(g->scratch, s->below[u], g->lib->trie.n_words);
        if (room < BELOW)
            return;
        int lo = 0, hi = s->n_inside; /* the first with BELOW units */
        while (lo < hi) {
            int mid = lo + (hi - lo) / 2;
            if (s->inside[mid].units < BELOW)
                lo = mid + 1;
            else
                hi = mid;
        }
        i = lo;
    }
    for (; i < s->n_inside && s->inside[i].units <= room; i++)
        set_bit(g->scratch, s->inside[i].id);
}

static void add_split(struct grammar *g, int stack, int node)
{
    struct stack k = g->stack[stack];
    const struct grule *r = stack_rule(g, &k);
    bool mine;
    struct split *s = leaf_split(g->lib, r->leaf, k.state - r->first, node, &mine);
    if (!s) {
        g->no_memory = true;
        return;
    }
    bool counts = r->kind == RULE_STRING;
    int room = counts && r->max >= 0 ? r->max - k.count : INT_MAX;
    int least = counts && r->min > k.count ? r->min - k.count : 0;
    add_inside(g, s, room);
    for (int i = 0; i < s->n_shut; i++)
        if (s->shut[i].units <= room && s->shut[i].units >= least)
            set_bit(g->scratch, s->shut[i].id);
    int below = s->n_exit ? machine_below(g, stack) : SET_DEAD;
    for (int i = 0; i < s->n_exit && below != SET_DEAD && !g->no_memory; i++)
        if (s->exit[i].units <= room && s->exit[i].units >= least)
            walk(g, below, s->exit[i].id);
    if (mine)
        mem_free(s);
}

/* Marks the tokens below a node that the set can follow. No deeper than a token is long. */
static void walk(struct grammar *g, int set, int node)
{
    const struct trie *t = &g->lib->trie;
    if (g->set[set].wide && t->subtree[node] >= SUBTREE_MIN) {
        for (int i = 0; i < g->set[set].n && !g->no_memory; i++) {
            int stack = g->member[g->set[set].first + i];
            if (stack_is_wide(g, &g->stack[stack]))
                add_split(g, stack, node);
        }
        set = machine_narrow(g, set);
        if (set == SET_DEAD)
            return;
    }
    for (int c = t->first[node]; c < t->first[node + 1]; c++) {
        if (!byte_in(g->set[set].allow, t->byte[c]))
            continue;
        int to = machine_step(g, set, t->byte[c]);
        if (g->no_memory)
            return;
        if (to == SET_DEAD)
            continue;
        trie_mark(t, c, g->scratch);
        if (t->first[c] < t->first[c + 1])
            walk(g, to, c);
    }
}

/* Without an instruction for it: bits are added in pairs, fours, bytes, then all bytes at once. */
static int count_bits(const uint32_t *bits, int n_words)
{
    int n = 0;
    for (int i = 0; i < n_words; i++) {
        uint32_t w = bits[i];
        w -= w >> 1 & 0x55555555;
        w = (w & 0x33333333) + (w >> 2 & 0x33333333);
        n += (int)(((w + (w >> 4)) & 0x0F0F0F0F) * 0x01010101u >> 24);
    }
    return n;
}

/* The first `max` of the tokens; returns how many there are of them. */
static int list_bits(const uint32_t *bits, int n_words, int32_t *ids, int max)
{
    int n = 0;
    for (int i = 0; i < n_words && n < max; i++)
        for (uint32_t w = bits[i]; w && n < max; w &= w - 1)
            ids[n++] = 32 * i + __builtin_ctz(w);
    return n;
}

static struct mask *pack(const uint32_t *bits, int n_words)
{
    int32_t ids[LIST_MAX + 1];
    int n = list_bits(bits, n_words, ids, LIST_MAX + 1);
    bool few = n <= LIST_MAX;
    size_t room = (few ? (size_t)n : (size_t)n_words) * 4, bytes = sizeof(struct mask) + room;
    struct mask *m = mem_alloc(1, bytes);
    if (!m)
        return NULL;
    *m = (struct mask){.n = few ? n : count_bits(bits, n_words), .bytes = bytes};
    if (few) {
        m->ids = (int32_t *)(m + 1);
        memcpy(m->ids, ids, room);
    } else {
        m->bits = (uint32_t *)(m + 1);
        memcpy(m->bits, bits, room);
    }
    return m;
}

const struct mask *machine_mask(struct grammar *g, int set)
{
    int n_words = g->lib->trie.n_words;
    if (g->set[set].mask)
        return g->set[set].mask;
    memset(g->scratch, 0, (size_t)n_words * sizeof *g->scratch);
    walk(g, set, 0);
    struct mask *m = g->no_memory ? NULL : pack(g->scratch, n_words);
    if (m) {
        g->set[set].mask = m;
        g->mask_bytes += m->bytes;
    }
    return m;
}
