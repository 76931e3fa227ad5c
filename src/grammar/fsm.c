/* SPDX-License-Identifier: Apache-2.0 */
#include "grammar/fsm.h"

#include <stdlib.h>
#include <string.h>

/* ---- building -------------------------------------------------------------------------------- */

void nfa_init(struct nfa *a, struct work *w)
{
    *a = (struct nfa){.w = w};
}

int nfa_state(struct nfa *a)
{
    if (a->n >= 8 * FSM_STATES_MAX) {
        work_refuse(a->w, "too large: more than %d states", 8 * FSM_STATES_MAX);
        return 0;
    }
    if (!work_grow(a->w, &a->first, &a->cap, a->n + 1, sizeof *a->first) ||
        !work_grow(a->w, &a->final, &a->cap_final, a->n + 1, sizeof *a->final))
        return 0;
    a->first[a->n] = -1;
    a->final[a->n] = false;
    return a->n++;
}

static void add_edge(struct nfa *a, int from, struct nfa_edge e)
{
    if (!work_grow(a->w, &a->e, &a->cap_e, a->n_e + 1, sizeof *a->e))
        return;
    e.next = a->first[from];
    a->first[from] = a->n_e;
    a->e[a->n_e++] = e;
}

void nfa_eps(struct nfa *a, int from, int to)
{
    if (!a->w->st && from != to)
        add_edge(a, from, (struct nfa_edge){.kind = NFA_EPS, .to = to});
}

void nfa_range(struct nfa *a, int from, uint32_t lo, uint32_t hi, int to)
{
    if (!a->w->st && lo <= hi)
        add_edge(a, from, (struct nfa_edge){.kind = NFA_RANGE, .lo = lo, .hi = hi, .to = to});
}

void nfa_set(struct nfa *a, int from, const struct cset *s, int to)
{
    for (int i = 0; i < s->n; i++)
        nfa_range(a, from, s->r[i].lo, s->r[i].hi, to);
}

void nfa_call(struct nfa *a, int from, int rule, int to)
{
    if (!a->w->st)
        add_edge(a, from, (struct nfa_edge){.kind = NFA_CALL, .lo = (uint32_t)rule, .to = to});
}

void nfa_add_fsm(struct nfa *a, const struct fsm *m, int from, int to)
{
    if (m->n == 0 || a->w->st)
        return;
    int base = nfa_state(a);
    for (int i = 1; i < m->n; i++)
        nfa_state(a);
    if (a->w->st)
        return;
    nfa_eps(a, from, base);
    for (int i = 0; i < m->n; i++) {
        const struct fstate *s = &m->s[i];
        for (int k = 0; k < s->n_e; k++)
            nfa_range(a, base + i, s->e[k].lo, s->e[k].hi, base + s->e[k].to);
        for (int k = 0; k < s->n_c; k++)
            nfa_call(a, base + i, s->c[k].rule, base + s->c[k].to);
        if (s->final)
            nfa_eps(a, base + i, to);
    }
}

static int fsm_state(struct work *w, struct fsm *m)
{
    if (m->n >= FSM_STATES_MAX) {
        work_refuse(w, "too large: more than %d automaton states", FSM_STATES_MAX);
        return -1;
    }
    if (!work_grow(w, &m->s, &m->cap, m->n + 1, sizeof *m->s))
        return -1;
    m->s[m->n] = (struct fstate){0};
    return m->n++;
}

/* ---- subset construction --------------------------------------------------------------------- */

struct subset {
    int *q; /* ascending */
    int n;
    uint64_t hash;
    int chain; /* next with the same bucket, -1: none */
};

struct builder {
    struct work *w;
    struct nfa *a;
    struct fsm *m;
    struct subset *set;
    int n_set, cap_set;
    int *bucket; /* [n_bucket], a power of two */
    int n_bucket;
    int *mark, stamp;  /* [a->n]: closure */
    int *list;         /* [a->n] */
    struct fedge *cut; /* range edges of one subset, `to` an nfa state */
    int n_cut, cap_cut;
    struct fcall *call;
    int n_call, cap_call;
    uint32_t *bound;
    int n_bound, cap_bound;
};

static int int_cmp(const void *a, const void *b)
{
    const int *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* The eps closure of list[0..n), sorted, in b->list. */
static int close_over(struct builder *b, int n)
{
    const struct nfa *a = b->a;
    for (int i = 0; i < n; i++)
        for (int k = a->first[b->list[i]]; k >= 0; k = a->e[k].next)
            if (a->e[k].kind == NFA_EPS && b->mark[a->e[k].to] != b->stamp) {
                b->mark[a->e[k].to] = b->stamp;
                b->list[n++] = a->e[k].to;
            }
    if (n > 0)
        qsort(b->list, (size_t)n, sizeof *b->list, int_cmp);
    return n;
}

/* States that only pass on say nothing about a subset's future: leave them out of its name. */
static bool matters(const struct nfa *a, int q)
{
    if (a->final[q])
        return true;
    for (int k = a->first[q]; k >= 0; k = a->e[k].next)
        if (a->e[k].kind != NFA_EPS)
            return true;
    return false;
}

static void rehash(struct builder *b)
{
    int n = b->n_bucket ? b->n_bucket * 4 : 64;
    b->bucket = work_alloc(b->w, (size_t)n, sizeof *b->bucket);
    if (!b->bucket)
        return;
    b->n_bucket = n;
    memset(b->bucket, -1, (size_t)n * sizeof *b->bucket);
    for (int i = 0; i < b->n_set; i++) {
        int h = (int)(b->set[i].hash & (uint64_t)(n - 1));
        b->set[i].chain = b->bucket[h];
        b->bucket[h] = i;
    }
}

/* The deterministic state of list[0..n), new or known; -1: failed. */
static int intern(struct builder *b, int n)
{
    int k = 0;
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < n; i++)
        if (matters(b->a, b->list[i])) {
            b->list[k++] = b->list[i];
            hash = (hash ^ (uint64_t)(unsigned)b->list[i]) * 1099511628211u;
            hash ^= hash >> 29;
        }
    n = k;
    if (!work_spend(b->w, 8 + 2 * n))
        return -1;
    if (b->n_set >= b->n_bucket)
        rehash(b);
    if (b->w->st)
        return -1;
    int h = (int)(hash & (uint64_t)(b->n_bucket - 1));
    for (int i = b->bucket[h]; i >= 0; i = b->set[i].chain)
        if (b->set[i].n == n && b->set[i].hash == hash &&
            (n == 0 || memcmp(b->set[i].q, b->list, (size_t)n * sizeof(int)) == 0))
            return i;
    int id = fsm_state(b->w, b->m);
    if (id < 0 || !work_grow(b->w, &b->set, &b->cap_set, id + 1, sizeof *b->set))
        return -1;
    struct subset *s = &b->set[id];
    *s = (struct subset){.n = n, .hash = hash, .chain = b->bucket[h]};
    s->q = work_alloc(b->w, (size_t)n, sizeof *s->q);
    if (!s->q)
        return -1;
    if (n)
        memcpy(s->q, b->list, (size_t)n * sizeof *s->q);
    b->bucket[h] = id;
    b->n_set = id + 1;
    for (int i = 0; i < n; i++)
        b->m->s[id].final |= b->a->final[s->q[i]];
    return id;
}

static int bound_cmp(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static int call_cmp(const void *a, const void *b)
{
    const struct fcall *x = a, *y = b;
    return x->rule != y->rule ? (x->rule < y->rule ? -1 : 1) : (x->to > y->to) - (x->to < y->to);
}

/* The edges of subset id, as they stand in the nfa. */
static void gather(struct builder *b, int id)
{
    const struct nfa *a = b->a;
    b->n_cut = b->n_call = b->n_bound = 0;
    for (int i = 0; i < b->set[id].n; i++)
        for (int k = a->first[b->set[id].q[i]]; k >= 0; k = a->e[k].next) {
            const struct nfa_edge *e = &a->e[k];
            if (e->kind == NFA_RANGE) {
                if (!work_grow(b->w, &b->cut, &b->cap_cut, b->n_cut + 1, sizeof *b->cut) ||
                    !work_grow(b->w, &b->bound, &b->cap_bound, b->n_bound + 2, sizeof *b->bound))
                    return;
                b->cut[b->n_cut++] = (struct fedge){e->lo, e->hi, e->to};
                b->bound[b->n_bound++] = e->lo;
                b->bound[b->n_bound++] = e->hi + 1;
            } else if (e->kind == NFA_CALL) {
                if (!work_grow(b->w, &b->call, &b->cap_call, b->n_call + 1, sizeof *b->call))
                    return;
                b->call[b->n_call++] = (struct fcall){(int)e->lo, e->to};
            }
        }
}

static void put_fedge(struct work *w, struct fstate *s, int *cap, uint32_t lo, uint32_t hi, int to)
{
    if (s->n_e && s->e[s->n_e - 1].to == to && s->e[s->n_e - 1].hi + 1 == lo) {
        s->e[s->n_e - 1].hi = hi;
        return;
    }
    if (work_grow(w, &s->e, cap, s->n_e + 1, sizeof *s->e))
        s->e[s->n_e++] = (struct fedge){lo, hi, to};
}

static int lo_cmp(const void *a, const void *b)
{
    const struct fedge *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

static void expand_ranges(struct builder *b, int id)
{
    int cap = 0, live = 0;
    if (b->n_bound > 0)
        qsort(b->bound, (size_t)b->n_bound, sizeof *b->bound, bound_cmp);
    if (b->n_cut > 0)
        qsort(b->cut, (size_t)b->n_cut, sizeof *b->cut, lo_cmp);
    int next = 0;
    for (int i = 0; i + 1 < b->n_bound && !b->w->st; i++) {
        uint32_t lo = b->bound[i], end = b->bound[i + 1];
        if (lo == end)
            continue;
        /* cut[0..live): the edges that began and have not ended, moved to the front */
        int k = 0, n = 0;
        for (int j = 0; j < live; j++)
            if (b->cut[j].hi >= lo)
                b->cut[k++] = b->cut[j];
        live = k;
        if (next < live)
            next = live;
        while (next < b->n_cut && b->cut[next].lo == lo)
            b->cut[live++] = b->cut[next++];
        b->stamp++;
        for (int j = 0; j < live; j++)
            if (b->mark[b->cut[j].to] != b->stamp) {
                b->mark[b->cut[j].to] = b->stamp;
                b->list[n++] = b->cut[j].to;
            }
        if (n == 0 || !work_spend(b->w, live))
            continue;
        int to = intern(b, close_over(b, n));
        if (to >= 0)
            put_fedge(b->w, &b->m->s[id], &cap, lo, end - 1, to);
    }
}

static void expand_calls(struct builder *b, int id)
{
    int cap = 0;
    if (b->n_call > 0)
        qsort(b->call, (size_t)b->n_call, sizeof *b->call, call_cmp);
    for (int i = 0; i < b->n_call && !b->w->st;) {
        int rule = b->call[i].rule, n = 0;
        b->stamp++;
        for (; i < b->n_call && b->call[i].rule == rule; i++)
            if (b->mark[b->call[i].to] != b->stamp) {
                b->mark[b->call[i].to] = b->stamp;
                b->list[n++] = b->call[i].to;
            }
        int to = intern(b, close_over(b, n));
        struct fstate *s = &b->m->s[id];
        if (to >= 0 && work_grow(b->w, &s->c, &cap, s->n_c + 1, sizeof *s->c))
            s->c[s->n_c++] = (struct fcall){rule, to};
    }
}

/* Keeps the states that reach an end; the start stays state 0, or nothing stays. */
static struct fsm *trim(struct work *w, struct fsm *m)
{
    int n_edges = 0;
    for (int i = 0; i < m->n; i++)
        n_edges += m->s[i].n_e + m->s[i].n_c;
    int *head = work_alloc(w, (size_t)m->n + 1, sizeof *head);
    int *from = work_alloc(w, (size_t)n_edges, sizeof *from);
    int *list = work_alloc(w, (size_t)m->n, sizeof *list);
    int *id = work_alloc(w, (size_t)m->n, sizeof *id);
    if (w->st)
        return NULL;
    for (int i = 0; i < m->n; i++) {
        for (int k = 0; k < m->s[i].n_e; k++)
            head[m->s[i].e[k].to + 1]++;
        for (int k = 0; k < m->s[i].n_c; k++)
            head[m->s[i].c[k].to + 1]++;
    }
    for (int i = 0; i < m->n; i++)
        head[i + 1] += head[i];
    for (int i = m->n - 1; i >= 0; i--) { /* fills each bucket from its end, then restores head */
        for (int k = 0; k < m->s[i].n_e; k++)
            from[--head[m->s[i].e[k].to + 1]] = i;
        for (int k = 0; k < m->s[i].n_c; k++)
            from[--head[m->s[i].c[k].to + 1]] = i;
    }
    /* head[t + 1] is now where t's bucket begins */
    int n = 0;
    for (int i = 0; i < m->n; i++)
        if (m->s[i].final) {
            id[i] = 1;
            list[n++] = i;
        }
    for (int i = 0; i < n; i++) {
        int t = list[i], end = t + 2 <= m->n ? head[t + 2] : n_edges;
        for (int k = head[t + 1]; k < end; k++)
            if (!id[from[k]]) {
                id[from[k]] = 1;
                list[n++] = from[k];
            }
    }
    if (n == m->n)
        return m;
    int kept = 0;
    if (m->n && id[0])
        for (int i = 0; i < m->n; i++)
            id[i] = id[i] ? kept++ : -1;
    for (int i = 0; i < m->n && kept; i++) {
        if (id[i] < 0)
            continue;
        struct fstate *s = &m->s[i], *d = &m->s[id[i]];
        int ne = 0, nc = 0;
        for (int k = 0; k < s->n_e; k++)
            if (id[s->e[k].to] >= 0)
                s->e[ne++] = (struct fedge){s->e[k].lo, s->e[k].hi, id[s->e[k].to]};
        for (int k = 0; k < s->n_c; k++)
            if (id[s->c[k].to] >= 0)
                s->c[nc++] = (struct fcall){s->c[k].rule, id[s->c[k].to]};
        s->n_e = ne;
        s->n_c = nc;
        *d = *s;
    }
    m->n = kept;
    return m;
}

struct fsm *fsm_from_nfa(struct nfa *a, int start)
{
    struct work *w = a->w;
    struct builder b = {.w = w, .a = a, .stamp = 1};
    b.m = work_alloc(w, 1, sizeof *b.m);
    b.mark = work_alloc(w, (size_t)a->n, sizeof *b.mark);
    b.list = work_alloc(w, (size_t)a->n, sizeof *b.list);
    if (w->st)
        return NULL;
    b.list[0] = start;
    b.mark[start] = b.stamp;
    (void)intern(&b, close_over(&b, 1));
    for (int id = 0; id < b.n_set && !w->st; id++) {
        gather(&b, id);
        expand_ranges(&b, id);
        expand_calls(&b, id);
    }
    return w->st ? NULL : trim(w, b.m);
}

/* ---- minimization ---------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 31);
}

/* What a state does, in terms of the classes so far. */
static uint64_t signature(const struct fstate *s, const int *cls, int own)
{
    uint64_t h = mix(7, (uint64_t)own * 2 + s->final);
    for (int k = 0; k < s->n_e;) {
        int c = cls[s->e[k].to], j = k; /* neighbours of one class count as one edge */
        while (j + 1 < s->n_e && s->e[j].hi + 1 == s->e[j + 1].lo && cls[s->e[j + 1].to] == c)
            j++;
        h = mix(mix(mix(h, s->e[k].lo), s->e[j].hi), (uint64_t)c);
        k = j + 1;
    }
    for (int k = 0; k < s->n_c; k++)
        h = mix(mix(h, (uint64_t)s->c[k].rule + 0x100000000u), (uint64_t)cls[s->c[k].to]);
    return h;
}

struct sig {
    uint64_t h;
    int state;
};

static int sig_cmp(const void *a, const void *b)
{
    const struct sig *x = a, *y = b;
    if (x->h != y->h)
        return x->h < y->h ? -1 : 1;
    return (x->state > y->state) - (x->state < y->state);
}

static struct fsm *merge_classes(struct work *w, const struct fsm *m, const int *cls, int n)
{
    struct fsm *out = work_alloc(w, 1, sizeof *out);
    int *name = work_alloc(w, (size_t)n, sizeof *name); /* classes in order of first state */
    if (w->st)
        return NULL;
    memset(name, -1, (size_t)n * sizeof *name);
    for (int i = 0; i < m->n; i++)
        if (name[cls[i]] < 0 && (name[cls[i]] = fsm_state(w, out)) < 0)
            return NULL;
    for (int i = m->n - 1; i >= 0; i--) { /* the first state of a class speaks for it */
        struct fstate *s = &out->s[name[cls[i]]];
        int cap = 0;
        *s = (struct fstate){.final = m->s[i].final};
        for (int k = 0; k < m->s[i].n_e; k++)
            put_fedge(w, s, &cap, m->s[i].e[k].lo, m->s[i].e[k].hi, name[cls[m->s[i].e[k].to]]);
        s->n_c = m->s[i].n_c;
        s->c = work_alloc(w, (size_t)s->n_c, sizeof *s->c);
        if (w->st)
            return NULL;
        for (int k = 0; k < s->n_c; k++)
            s->c[k] = (struct fcall){m->s[i].c[k].rule, name[cls[m->s[i].c[k].to]]};
    }
    return out;
}

/* Moore's refinement: states that act alike stay together until they don't. 64-bit signatures of
 * what is there: two that collide would need 2^32 states. */
struct fsm *fsm_minimize(struct work *w, struct fsm *m)
{
    if (w->st || !m)
        return NULL;
    if (m->n < 2)
        return m;
    int *cls = work_alloc(w, (size_t)m->n, sizeof *cls);
    struct sig *sig = work_alloc(w, (size_t)m->n, sizeof *sig);
    if (w->st)
        return NULL;
    int n = 0, n_edges = 0;
    for (int i = 0; i < m->n; i++)
        n_edges += m->s[i].n_e + m->s[i].n_c;
    for (;;) {
        if (w->left < (long)(m->n + n_edges) * 2 + 1000000) /* optional, so it never refuses */
            return m;
        (void)work_spend(w, (long)m->n * 2 + n_edges);
        for (int i = 0; i < m->n; i++)
            sig[i] = (struct sig){signature(&m->s[i], cls, cls[i]), i};
        qsort(sig, (size_t)m->n, sizeof *sig, sig_cmp);
        int k = 0;
        for (int i = 0; i < m->n; i++) {
            k += i == 0 || sig[i].h != sig[i - 1].h;
            cls[sig[i].state] = k - 1;
        }
        if (k == n)
            break;
        n = k;
    }
    return n == m->n ? m : merge_classes(w, m, cls, n);
}

/* ---- both, without, either ------------------------------------------------------------------- */

enum op { OP_AND, OP_NOT, OP_OR };

struct pair {
    int a, b;
};

struct product {
    struct work *w;
    const struct fsm *a, *b;
    struct fsm *m;
    enum op op;
    struct pair *p;
    int cap_p;
    int *slot, n_slot; /* open addressing, a power of two; -1 free */
};

static void product_grow(struct product *x)
{
    int n = x->n_slot ? x->n_slot * 4 : 256;
    x->slot = work_alloc(x->w, (size_t)n, sizeof *x->slot);
    if (!x->slot)
        return;
    x->n_slot = n;
    memset(x->slot, -1, (size_t)n * sizeof *x->slot);
    for (int i = 0; i < x->m->n; i++) {
        uint64_t h = mix(mix(1, (uint64_t)(x->p[i].a + 1)), (uint64_t)(x->p[i].b + 1));
        while (x->slot[h & (uint64_t)(n - 1)] >= 0)
            h++;
        x->slot[h & (uint64_t)(n - 1)] = i;
    }
}

/* -1: this pair is dead, or the work failed. */
static int product_state(struct product *x, int a, int b)
{
    if ((a < 0 && (x->op != OP_OR || b < 0)) || (b < 0 && x->op == OP_AND))
        return -1;
    if (!work_spend(x->w, 4))
        return -1;
    if (2 * x->m->n >= x->n_slot)
        product_grow(x);
    if (x->w->st)
        return -1;
    uint64_t h = mix(mix(1, (uint64_t)(a + 1)), (uint64_t)(b + 1)), m = (uint64_t)(x->n_slot - 1);
    for (; x->slot[h & m] >= 0; h++)
        if (x->p[x->slot[h & m]].a == a && x->p[x->slot[h & m]].b == b)
            return x->slot[h & m];
    int id = fsm_state(x->w, x->m);
    if (id < 0 || !work_grow(x->w, &x->p, &x->cap_p, id + 1, sizeof *x->p))
        return -1;
    bool fa = a >= 0 && x->a->s[a].final, fb = b >= 0 && x->b->s[b].final;
    x->p[id] = (struct pair){a, b};
    x->m->s[id].final = x->op == OP_AND ? fa && fb : x->op == OP_NOT ? fa && !fb : fa || fb;
    x->slot[h & m] = id;
    return id;
}

static void product_edges(struct product *x, int id)
{
    static const struct fstate none = {0};
    const struct fstate *sa = x->p[id].a >= 0 ? &x->a->s[x->p[id].a] : &none;
    const struct fstate *sb = x->p[id].b >= 0 ? &x->b->s[x->p[id].b] : &none;
    int i = 0, j = 0, cap = 0;
    uint32_t at = 0;
    while ((i < sa->n_e || j < sb->n_e) && !x->w->st) {
        /* the next stretch [lo, hi] over which neither side changes */
        const struct fedge *ea = i < sa->n_e ? &sa->e[i] : NULL;
        const struct fedge *eb = j < sb->n_e ? &sb->e[j] : NULL;
        uint32_t la = ea ? (ea->lo > at ? ea->lo : at) : UINT32_MAX;
        uint32_t lb = eb ? (eb->lo > at ? eb->lo : at) : UINT32_MAX;
        uint32_t lo = la < lb ? la : lb, hi = UINT32_MAX;
        bool in_a = ea && la == lo, in_b = eb && lb == lo;
        if (ea)
            hi = in_a ? ea->hi : ea->lo - 1;
        if (eb) {
            uint32_t h = in_b ? eb->hi : eb->lo - 1;
            hi = h < hi ? h : hi;
        }
        int to = product_state(x, in_a ? ea->to : -1, in_b ? eb->to : -1);
        if (to >= 0)
            put_fedge(x->w, &x->m->s[id], &cap, lo, hi, to);
        at = hi + 1;
        while (i < sa->n_e && sa->e[i].hi < at)
            i++;
        while (j < sb->n_e && sb->e[j].hi < at)
            j++;
        (void)work_spend(x->w, 2);
    }
}

static struct fsm *product(struct work *w, const struct fsm *a, const struct fsm *b, enum op op)
{
    if (w->st || !a || !b)
        return NULL;
    struct product x = {.w = w, .a = a, .b = b, .op = op};
    x.m = work_alloc(w, 1, sizeof *x.m);
    if (w->st)
        return NULL;
    (void)product_state(&x, a->n ? 0 : -1, b->n ? 0 : -1);
    for (int id = 0; id < x.m->n && !w->st; id++)
        product_edges(&x, id);
    return w->st ? NULL : fsm_minimize(w, trim(w, x.m));
}

struct fsm *fsm_both(struct work *w, const struct fsm *a, const struct fsm *b)
{
    return product(w, a, b, OP_AND);
}

struct fsm *fsm_without(struct work *w, const struct fsm *a, const struct fsm *b)
{
    return product(w, a, b, OP_NOT);
}

struct fsm *fsm_either(struct work *w, const struct fsm *a, const struct fsm *b)
{
    return product(w, a, b, OP_OR);
}

bool fsm_empty(const struct fsm *m)
{
    return m->n == 0; /* what reaches no end was trimmed */
}

bool fsm_matches(const struct fsm *m, const uint32_t *c, size_t n)
{
    int q = m->n ? 0 : -1;
    for (size_t i = 0; i < n && q >= 0; i++) {
        const struct fstate *s = &m->s[q];
        q = -1;
        for (int k = 0; k < s->n_e; k++)
            if (s->e[k].lo <= c[i] && c[i] <= s->e[k].hi)
                q = s->e[k].to;
    }
    return q >= 0 && m->s[q].final;
}

bool fsm_matches_utf8(const struct fsm *m, const char *s, size_t n)
{
    int q = m->n ? 0 : -1;
    for (size_t i = 0; i < n && q >= 0;) {
        uint32_t c;
        size_t len = utf8_take(s + i, n - i, &c);
        const struct fstate *f = &m->s[q];
        q = -1;
        for (int k = 0; len && k < f->n_e; k++)
            if (f->e[k].lo <= c && c <= f->e[k].hi)
                q = f->e[k].to;
        i += len;
    }
    return q >= 0 && m->s[q].final;
}

/* ---- ready-made ------------------------------------------------------------------------------ */

static void put_any(struct work *w, struct fsm *m, int from, int to)
{
    int cap = 0;
    put_fedge(w, &m->s[from], &cap, 0, 0xD7FF, to);
    put_fedge(w, &m->s[from], &cap, 0xE000, CODE_POINT_MAX, to);
}

struct fsm *fsm_length(struct work *w, int min, int max)
{
    struct fsm *m = work_alloc(w, 1, sizeof *m);
    int n = max < 0 ? min : max;
    for (int i = 0; i <= n && !w->st; i++)
        if (fsm_state(w, m) >= 0)
            m->s[i].final = i >= min;
    for (int i = 0; i < n && !w->st; i++)
        put_any(w, m, i, i + 1);
    if (max < 0 && !w->st)
        put_any(w, m, n, n);
    return w->st ? NULL : m;
}

struct fsm *fsm_all(struct work *w)
{
    return fsm_length(w, 0, -1);
}

struct fsm *fsm_literal(struct work *w, const char *s, size_t n)
{
    struct fsm *m = work_alloc(w, 1, sizeof *m);
    int q = w->st ? -1 : fsm_state(w, m);
    for (size_t i = 0; i < n && q >= 0;) {
        uint32_t c = 0;
        size_t len = utf8_take(s + i, n - i, &c);
        int cap = 0, to = fsm_state(w, m);
        if (len == 0)
            work_refuse(w, "a text in it is not valid UTF-8");
        if (to >= 0)
            put_fedge(w, &m->s[q], &cap, c, c, to);
        q = to;
        i += len ? len : n;
    }
    if (w->st || q < 0)
        return NULL;
    m->s[q].final = true;
    return m;
}

struct fsm *fsm_to_bytes(struct work *w, const struct fsm *m, bool json)
{
    struct nfa a;
    if (w->st || !m)
        return NULL;
    nfa_init(&a, w);
    for (int i = 0; i <= m->n; i++)
        nfa_state(&a);
    if (w->st)
        return NULL;
    for (int i = 0; i < m->n && !w->st; i++) {
        const struct fstate *s = &m->s[i];
        a.final[i] = s->final;
        for (int k = 0; k < s->n_e && !w->st; k++) {
            int to = s->e[k].to;
            bool seen = false;
            struct cset set = {0}; /* all ranges that lead there, in one piece */
            for (int j = 0; j < k; j++)
                seen |= s->e[j].to == to;
            for (int j = k; j < s->n_e && !seen; j++)
                if (s->e[j].to == to)
                    cset_add(w, &set, s->e[j].lo, s->e[j].hi);
            if (json)
                nfa_add_json_char(&a, &set, i, to);
            else
                nfa_add_utf8(&a, &set, i, to);
        }
    }
    return w->st ? NULL : fsm_minimize(w, fsm_from_nfa(&a, 0));
}
