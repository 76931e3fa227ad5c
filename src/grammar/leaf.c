/* Leaves and their splits.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    DENSE = 2048,          /* inside tokens that are worth a bit set */
    SPLIT_BYTES = 16 << 20 /* kept of one leaf; more of them are made again each time */
};

/* ---- leaves ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
}

static uint64_t fsm_hash(const struct fsm *m, int body)
{
    uint64_t h = mix(11, (uint64_t)m->n * 4 + (uint64_t)(body + 1));
    for (int i = 0; i < m->n; i++) {
        h = mix(h, (uint64_t)m->s[i].n_e * 2 + m->s[i].final);
        for (int k = 0; k < m->s[i].n_e; k++)
            h = mix(mix(h, (uint64_t)m->s[i].e[k].lo << 32 | m->s[i].e[k].hi),
                    (uint64_t)m->s[i].e[k].to);
    }
    return h;
}

/* Bytes that no state tells apart are one class. */
static void find_classes(struct leaf *l, const struct fsm *m)
{
    bool cut[257] = {true};
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < m->s[i].n_e; k++)
            cut[m->s[i].e[k].lo] = cut[m->s[i].e[k].hi + 1] = true;
    int c = -1;
    for (int b = 0; b < 256; b++) {
        c += cut[b];
        l->cls[b] = (uint8_t)c;
    }
    l->n_class = c + 1;
}

static void leaf_free(struct leaf *l)
{
    if (!l)
        return;
    for (int i = 0; i < l->cap_split; i++)
        mem_free(l->split[i]);
    mem_free(l->split);
    mem_free(l->next);
    mem_free(l->final);
    mem_free(l->allow);
    mem_free(l->wide);
    mem_free(l);
}

static struct leaf *leaf_new(const struct fsm *m, int body, uint64_t hash)
{
    struct leaf *l = mem_zalloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->hash = hash;
    l->n = m->n;
    l->body = body;
    l->refs = 1;
    find_classes(l, m);
    size_t n = (size_t)m->n;
    l->next = mem_alloc(n * (size_t)l->n_class, sizeof *l->next);
    l->final = mem_zalloc(n, sizeof *l->final);
    l->allow = mem_zalloc(n, sizeof *l->allow);
    l->wide = mem_zalloc(n, sizeof *l->wide);
    if (!l->next || !l->final || !l->allow || !l->wide) {
        leaf_free(l);
        return NULL;
    }
    l->bytes = sizeof *l + n * ((size_t)l->n_class * sizeof *l->next + 2 + sizeof *l->allow);
    memset(l->next, -1, n * (size_t)l->n_class * sizeof *l->next);
    for (int i = 0; i < m->n; i++) {
        int count = 0;
        l->final[i] = m->s[i].final;
        for (int k = 0; k < m->s[i].n_e; k++)
            for (uint32_t b = m->s[i].e[k].lo; b <= m->s[i].e[k].hi; b++, count++) {
                l->next[i * l->n_class + l->cls[b]] = m->s[i].e[k].to;
                l->allow[i][b >> 6] |= (uint64_t)1 << (b & 63);
            }
        l->wide[i] = count >= WIDE_BYTES;
    }
    return l;
}

static bool leaf_is(const struct leaf *l, const struct leaf *o)
{
    size_t n = (size_t)l->n;
    return l->hash == o->hash && l->n == o->n && l->n_class == o->n_class && l->body == o->body &&
           memcmp(l->cls, o->cls, sizeof l->cls) == 0 && memcmp(l->final, o->final, n) == 0 &&
           memcmp(l->next, o->next, n * (size_t)l->n_class * sizeof *l->next) == 0;
}

struct leaf *leaf_make(struct grammar_lib *lib, struct work *w, const struct fsm *m, int body)
{
    uint64_t hash = fsm_hash(m, body);
    struct leaf *l = w->st ? NULL : leaf_new(m, body, hash);
    if (!l) {
        if (!w->st)
            w->st = SL_FAIL(w->err, SL_ENOMEM, "%s: no memory to compile it", w->what);
        return NULL;
    }
    mutex_lock(&lib->lock);
    struct leaf **bucket = &lib->leaf[hash % LEAF_BUCKETS], *found = *bucket;
    while (found && !leaf_is(found, l))
        found = found->chain;
    if (found) {
        found->refs++;
    } else {
        l->chain = *bucket;
        *bucket = l;
    }
    mutex_unlock(&lib->lock);
    if (found)
        leaf_free(l);
    return found ? found : l;
}

void leaf_unref(struct grammar_lib *lib, struct leaf *l)
{
    if (!l)
        return;
    mutex_lock(&lib->lock);
    bool last = --l->refs == 0;
    if (last) {
        struct leaf **p = &lib->leaf[l->hash % LEAF_BUCKETS];
        while (*p != l)
            p = &(*p)->chain;
        *p = l->chain;
    }
    mutex_unlock(&lib->lock);
    if (last)
        leaf_free(l);
}

/* ---- splits ---------------------------------------------------------------------------------- */

struct list {
    struct split_at *at;
    int n, cap;
    bool failed;
};

static void push(struct list *l, int32_t id, int units)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 64;
        struct split_at *p = mem_realloc(l->at, (size_t)cap, sizeof *p);
        if (!p) {
            l->failed = true;
            return;
        }
        l->at = p;
        l->cap = cap;
    }
    l->at[l->n++] = (struct split_at){id, units};
}

struct walk {
    const struct trie *t;
    const struct leaf *l;
    struct list inside, shut, exit;
};

static void visit(struct walk *k, int node, int state, int units)
{
    bool shut = k->l->body >= 0 && k->l->final[state];
    for (int32_t id = k->t->token[node]; id >= 0; id = k->t->same[id])
        push(shut ? &k->shut : &k->inside, id, units);
    if (k->l->final[state] && k->t->subtree[node] > 1)
        push(&k->exit, node, units);
}

static void descend(struct walk *k, int node, int state, int units)
{
    const struct trie *t = k->t;
    const struct leaf *l = k->l;
    for (int c = t->first[node]; c < t->first[node + 1]; c++) {
        int to = leaf_step(l, state, t->byte[c]);
        if (to < 0)
            continue;
        int u = units + (state == l->body && t->byte[c] != '"');
        visit(k, c, to, u);
        if (t->subtree[c] > 1)
            descend(k, c, to, u); /* no deeper than a token is long */
    }
}

static int units_cmp(const void *a, const void *b)
{
    const struct split_at *x = a, *y = b;
    if (x->units != y->units)
        return x->units < y->units ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* One allocation: the struct, its lists, its bit sets. */
static struct split *pack(const struct walk *k, int state, int node, int n_words)
{
    bool dense = k->inside.n >= DENSE, counts = k->l->body >= 0;
    int n = k->inside.n + k->shut.n + k->exit.n;
    size_t words = dense ? (size_t)n_words * (counts ? BELOW + 1 : 1) : 0;
    size_t lists = (size_t)n * sizeof(struct split_at);
    size_t bytes = sizeof(struct split) + lists + words * sizeof(uint32_t);
    struct split *s = mem_zalloc(1, bytes);
    if (!s)
        return NULL;
    *s = (struct split){.state = state,
                        .node = node,
                        .n_inside = k->inside.n,
                        .n_shut = k->shut.n,
                        .n_exit = k->exit.n,
                        .bytes = bytes};
    s->inside = (struct split_at *)(s + 1);
    s->shut = s->inside + s->n_inside;
    s->exit = s->shut + s->n_shut;
    if (s->n_inside)
        memcpy(s->inside, k->inside.at, (size_t)s->n_inside * sizeof *s->inside);
    if (s->n_shut)
        memcpy(s->shut, k->shut.at, (size_t)s->n_shut * sizeof *s->shut);
    if (s->n_exit)
        memcpy(s->exit, k->exit.at, (size_t)s->n_exit * sizeof *s->exit);
    if (counts && s->n_inside)
        qsort(s->inside, (size_t)s->n_inside, sizeof *s->inside, units_cmp);
    s->max_units = s->n_inside ? s->inside[s->n_inside - 1].units : 0;
    if (!dense)
        return s;
    s->bits = (uint32_t *)(s->exit + s->n_exit);
    for (int i = 0; i < s->n_inside; i++)
        set_bit(s->bits, s->inside[i].id);
    for (int u = 0, i = 0; u < BELOW && counts; u++) {
        s->below[u] = s->bits + (size_t)n_words * (size_t)(u + 1);
        if (u)
            memcpy(s->below[u], s->below[u - 1], (size_t)n_words * sizeof(uint32_t));
        for (; i < s->n_inside && s->inside[i].units <= u; i++)
            set_bit(s->below[u], s->inside[i].id);
    }
    return s;
}

static struct split *make_split(const struct trie *t, const struct leaf *l, int state, int node)
{
    struct walk k = {.t = t, .l = l};
    descend(&k, node, state, 0);
    bool failed = k.inside.failed || k.shut.failed || k.exit.failed;
    struct split *s = failed ? NULL : pack(&k, state, node, t->n_words);
    mem_free(k.inside.at);
    mem_free(k.shut.at);
    mem_free(k.exit.at);
    return s;
}

static unsigned slot_of(int state, int node, int cap)
{
    return (unsigned)mix((uint64_t)(unsigned)state << 32, (uint64_t)(unsigned)node) &
           (unsigned)(cap - 1);
}

static struct split *find_split(const struct leaf *l, int state, int node)
{
    if (!l->cap_split)
        return NULL;
    for (unsigned h = slot_of(state, node, l->cap_split);;
         h = (h + 1) & (unsigned)(l->cap_split - 1)) {
        struct split *s = l->split[h];
        if (!s || (s->state == state && s->node == node))
            return s;
    }
}

static void put_split(struct leaf *l, struct split *s)
{
    unsigned h = slot_of(s->state, s->node, l->cap_split);
    while (l->split[h])
        h = (h + 1) & (unsigned)(l->cap_split - 1);
    l->split[h] = s;
}

static bool grow_splits(struct leaf *l)
{
    int old_cap = l->cap_split, cap = old_cap ? 2 * old_cap : 16;
    struct split **old = l->split, **p = mem_zalloc((size_t)cap, sizeof(struct split *));
    if (!p)
        return false;
    l->split = p;
    l->cap_split = cap;
    for (int i = 0; i < old_cap; i++)
        if (old[i])
            put_split(l, old[i]);
    mem_free(old);
    return true;
}

/* Made outside the lock, so that nobody waits for a walk of the vocabulary; who comes second throws
 * his away. */
struct split *leaf_split(struct grammar_lib *lib, struct leaf *l, int state, int node, bool *mine)
{
    *mine = false;
    mutex_lock(&lib->lock);
    struct split *s = find_split(l, state, node);
    mutex_unlock(&lib->lock);
    if (s)
        return s;
    struct split *made = make_split(&lib->trie, l, state, node);
    if (!made)
        return NULL;
    mutex_lock(&lib->lock);
    s = find_split(l, state, node);
    if (!s && l->split_bytes > SPLIT_BYTES) {
        mutex_unlock(&lib->lock);
        *mine = true;
        return made;
    }
    if (!s && (2 * l->n_split < l->cap_split || grow_splits(l))) {
        put_split(l, made);
        l->n_split++;
        l->split_bytes += made->bytes;
        s = made;
    }
    mutex_unlock(&lib->lock);
    if (s != made)
        mem_free(made);
    return s;
}
