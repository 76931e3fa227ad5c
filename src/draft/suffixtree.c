/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/suffixtree.h"

#include "base/mem.h"

#include <string.h>

enum { ROOT = 0, NONE = -1 };

struct node {
    int32_t start, len; /* its edge: log[start .. start + len) */
    int32_t count;      /* suffixes that run through it */
    int32_t best;       /* the child with the largest count */
};

struct edge {
    int32_t parent, token, child; /* child NONE: an empty place */
};

struct suffixtree {
    int max_tokens, depth, n_tokens, n_nodes, max_nodes;
    int32_t *log;
    struct node *node;
    struct edge *edge; /* open addressing, n_edges a power of two */
    uint32_t mask;
};

enum sl_status suffixtree_create(struct suffixtree **out, int max_tokens, int depth,
                                 struct sl_err *err)
{
    struct suffixtree *t = mem_zalloc(1, sizeof *t);
    uint32_t places = 64;
    if (!t)
        return SL_FAIL(err, SL_ENOMEM, "suffix tree: no memory");
    t->max_tokens = max_tokens;
    t->depth = depth;
    t->max_nodes = 2 * max_tokens + 1;
    while (places < 2 * (uint32_t)t->max_nodes)
        places *= 2;
    t->mask = places - 1;
    t->log = mem_alloc((size_t)max_tokens, sizeof *t->log);
    t->node = mem_alloc((size_t)t->max_nodes, sizeof *t->node);
    t->edge = mem_alloc(places, sizeof *t->edge);
    if (!t->log || !t->node || !t->edge) {
        suffixtree_destroy(&t);
        return SL_FAIL(err, SL_ENOMEM, "suffix tree: no memory for %d tokens", max_tokens);
    }
    suffixtree_clear(t);
    *out = t;
    return SL_OK;
}

void suffixtree_destroy(struct suffixtree **t)
{
    if (!*t)
        return;
    mem_free((*t)->log);
    mem_free((*t)->node);
    mem_free((*t)->edge);
    mem_free(*t);
    *t = NULL;
}

void suffixtree_clear(struct suffixtree *t)
{
    t->n_tokens = 0;
    t->n_nodes = 1;
    t->node[ROOT] = (struct node){.best = NONE};
    for (uint32_t i = 0; i <= t->mask; i++)
        t->edge[i].child = NONE;
}

/* ---- edges ----------------------------------------------------------------------------------- */

/* Where the edge is, or the empty place where it would be. */
static struct edge *edge_at(const struct suffixtree *t, int32_t parent, int32_t token)
{
    uint64_t h = ((uint64_t)(uint32_t)parent << 32 | (uint32_t)token) * 0x9e3779b97f4a7c15u;
    uint32_t i = (uint32_t)(h >> 32) & t->mask;
    while (t->edge[i].child != NONE && (t->edge[i].parent != parent || t->edge[i].token != token))
        i = (i + 1) & t->mask;
    return &t->edge[i];
}

static void put_edge(struct suffixtree *t, int32_t parent, int32_t child)
{
    int32_t token = t->log[t->node[child].start];
    *edge_at(t, parent, token) = (struct edge){parent, token, child};
}

static int32_t new_node(struct suffixtree *t, int32_t start, int32_t len, int32_t count)
{
    SL_ASSERT(t->n_nodes < t->max_nodes);
    t->node[t->n_nodes] = (struct node){.start = start, .len = len, .count = count, .best = NONE};
    return t->n_nodes++;
}

static void count_child(struct suffixtree *t, int32_t parent, int32_t child)
{
    struct node *p = &t->node[parent];
    t->node[child].count++;
    if (p->best == NONE || t->node[child].count > t->node[p->best].count)
        p->best = child;
}

/* A node in the middle of the edge to `child`, at `at` tokens. */
static int32_t split(struct suffixtree *t, int32_t parent, int32_t child, int32_t at)
{
    struct node *c = &t->node[child];
    int32_t mid = new_node(t, c->start, at, c->count);
    c->start += at;
    c->len -= at;
    t->node[mid].best = child;
    if (t->node[parent].best == child)
        t->node[parent].best = mid;
    put_edge(t, parent, mid); /* in the old one's place */
    put_edge(t, mid, child);
    return mid;
}

/* ---- in -------------------------------------------------------------------------------------- */

/* Tokens of log[at .. end) that agree with the edge to node c. */
static int32_t common(const struct suffixtree *t, int32_t c, int32_t at, int32_t end)
{
    const struct node *n = &t->node[c];
    int32_t k = 1; /* the first was looked up */
    while (k < n->len && at + k < end && t->log[n->start + k] == t->log[at + k])
        k++;
    return k;
}

static void add_suffix(struct suffixtree *t, int32_t at, int32_t end)
{
    int32_t cur = ROOT;
    t->node[ROOT].count++;
    while (at < end) {
        int32_t child = edge_at(t, cur, t->log[at])->child;
        if (child == NONE) {
            child = new_node(t, at, end - at, 0);
            put_edge(t, cur, child);
            count_child(t, cur, child);
            return;
        }
        int32_t k = common(t, child, at, end);
        if (k < t->node[child].len)
            child = split(t, cur, child, k);
        count_child(t, cur, child);
        cur = child;
        at += k;
    }
}

bool suffixtree_add(struct suffixtree *t, const int32_t *tokens, int n)
{
    if (n <= 0)
        return true;
    if (n > t->max_tokens - t->n_tokens)
        return false;
    int32_t first = t->n_tokens, last = first + n;
    memcpy(t->log + first, tokens, (size_t)n * sizeof *tokens);
    t->n_tokens = last;
    for (int32_t i = first; i < last; i++)
        add_suffix(t, i, last - i < t->depth ? last : i + t->depth);
    return true;
}

int suffixtree_n_tokens(const struct suffixtree *t)
{
    return t->n_tokens;
}

/* ---- out ------------------------------------------------------------------------------------- */

/* A place in the tree: `off` tokens into the edge to `node`. */
struct place {
    int32_t node, off;
};

static bool find(const struct suffixtree *t, const int32_t *tokens, int n, struct place *p)
{
    *p = (struct place){ROOT, 0};
    for (int i = 0; i < n; i++) {
        const struct node *c = &t->node[p->node];
        if (p->off < c->len) {
            if (t->log[c->start + p->off] != tokens[i])
                return false;
            p->off++;
            continue;
        }
        int32_t child = edge_at(t, p->node, tokens[i])->child;
        if (child == NONE)
            return false;
        *p = (struct place){child, 1};
    }
    return true;
}

int suffixtree_count(const struct suffixtree *t, const int32_t *tokens, int n)
{
    struct place p;
    return find(t, tokens, n, &p) ? t->node[p.node].count : 0;
}

int suffixtree_match(const struct suffixtree *t, const int32_t *tokens, int n)
{
    int lo = 0, hi = n < t->depth ? n : t->depth;
    while (lo < hi) { /* if an end occurred, so did every shorter one */
        int mid = (lo + hi + 1) / 2;
        struct place p;
        if (find(t, tokens + n - mid, mid, &p))
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

int suffixtree_follow(const struct suffixtree *t, const int32_t *tokens, int n, double min_prob,
                      int32_t *out, int max)
{
    struct place p;
    double prob = 1;
    int written = 0;
    if (!find(t, tokens, n, &p))
        return 0;
    while (written < max) {
        const struct node *c = &t->node[p.node];
        if (p.off == c->len) {
            if (c->best == NONE)
                break;
            prob *= (double)t->node[c->best].count / c->count;
            if (prob < min_prob)
                break;
            p = (struct place){c->best, 0};
            continue;
        }
        out[written++] = t->log[c->start + p.off++];
    }
    return written;
}

/* ---- checks ---------------------------------------------------------------------------------- */

void suffixtree_check(const struct suffixtree *t)
{
    int32_t *sum = mem_zalloc((size_t)t->n_nodes, sizeof *sum);
    int n_children = 0;
    if (!sum)
        return;
    for (uint32_t i = 0; i <= t->mask; i++) {
        const struct edge *e = &t->edge[i];
        if (e->child == NONE)
            continue;
        const struct node *c = &t->node[e->child], *p = &t->node[e->parent];
        SL_ASSERT(e->child < t->n_nodes && e->parent < t->n_nodes && c->len > 0);
        SL_ASSERT(c->start + c->len <= t->n_tokens && t->log[c->start] == e->token);
        SL_ASSERT(p->best != NONE && t->node[p->best].count >= c->count);
        sum[e->parent] += c->count;
        n_children++;
    }
    SL_ASSERT(n_children == t->n_nodes - 1);
    for (int i = 0; i < t->n_nodes; i++)
        SL_ASSERT(sum[i] <= t->node[i].count);
    mem_free(sum);
}
