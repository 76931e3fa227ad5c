/* Stacks, sets of stacks, and how a byte moves them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <string.h>

enum {
    /* the cache grows to about these, then is dropped before the next token */
    STACKS_KEEP = 200000,
    SETS_KEEP = 60000,
    TRANS_KEEP = 400000,
    MEMBERS_KEEP = 400000,
    MASK_KEEP = 16 << 20, /* bytes */
    CLOSURE_MAX = 8192    /* stacks looked at for one set */
};

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
}

static bool grow(struct grammar *g, void *array, int *cap, int need, size_t size)
{
    void *p;
    if (need <= *cap)
        return true;
    int n = *cap ? *cap : 32;
    while (n < need)
        n *= 2;
    memcpy(&p, array, sizeof p);
    p = mem_realloc(p, (size_t)n, size);
    if (!p) {
        g->no_memory = true;
        return false;
    }
    memcpy(array, &p, sizeof p);
    *cap = n;
    return true;
}

static void clear_masks(struct grammar *g)
{
    for (int i = 0; i < g->n_set; i++) {
        mem_free(g->set[i].mask);
        g->set[i].mask = NULL;
    }
    g->mask_bytes = 0;
}

void machine_clear(struct grammar *g)
{
    clear_masks(g);
    mem_free(g->stack);
    mem_free(g->stack_bucket);
    mem_free(g->set);
    mem_free(g->set_bucket);
    mem_free(g->member);
    mem_free(g->trans);
    mem_free(g->todo);
    mem_free(g->out);
    mem_free(g->scratch);
    g->stack = NULL;
    g->set = NULL;
    g->stack_bucket = g->set_bucket = NULL;
    g->member = g->todo = g->out = NULL;
    g->trans = NULL;
    g->scratch = NULL;
    g->n_stack = g->cap_stack = g->n_stack_bucket = g->n_set = g->cap_set = g->n_set_bucket = 0;
    g->n_member = g->cap_member = g->n_trans = g->cap_trans = g->n_todo = g->cap_todo = 0;
    g->n_out = g->cap_out = 0;
}

/* ---- stacks ---------------------------------------------------------------------------------- */

static bool rehash_stacks(struct grammar *g)
{
    int n = g->n_stack_bucket ? 4 * g->n_stack_bucket : 256;
    int *p = mem_alloc((size_t)n, sizeof *p);
    if (!p) {
        g->no_memory = true;
        return false;
    }
    memset(p, -1, (size_t)n * sizeof *p);
    for (int i = 0; i < g->n_stack; i++) {
        struct stack *s = &g->stack[i];
        uint64_t h = mix(mix(mix(3, (uint64_t)s->state), (uint64_t)s->count), (uint64_t)s->parent);
        s->chain = p[h & (uint64_t)(n - 1)];
        p[h & (uint64_t)(n - 1)] = i;
    }
    mem_free(g->stack_bucket);
    g->stack_bucket = p;
    g->n_stack_bucket = n;
    return true;
}

/* -1: a stack that could not be finished within the bound, or no memory. */
static int stack_intern(struct grammar *g, int state, int count, int parent)
{
    int depth = parent < 0 ? 0 : g->stack[parent].depth + 1;
    if (depth + g->state[state].need > DEPTH_MAX)
        return -1;
    if (g->n_stack >= g->n_stack_bucket && !rehash_stacks(g))
        return -1;
    uint64_t h = mix(mix(mix(3, (uint64_t)state), (uint64_t)count), (uint64_t)parent);
    int *bucket = &g->stack_bucket[h & (uint64_t)(g->n_stack_bucket - 1)];
    for (int i = *bucket; i >= 0; i = g->stack[i].chain) {
        const struct stack *s = &g->stack[i];
        if (s->state == state && s->count == count && s->parent == parent)
            return i;
    }
    if (!grow(g, &g->stack, &g->cap_stack, g->n_stack + 1, sizeof *g->stack))
        return -1;
    int id = g->n_stack++;
    g->stack[id] = (struct stack){state, count, parent, depth, *bucket, -1, 0};
    *bucket = id;
    return id;
}

/* ---- closures -------------------------------------------------------------------------------- */

static void closure_begin(struct grammar *g)
{
    g->stamp++;
    g->n_todo = g->n_out = 0;
}

static void closure_add(struct grammar *g, int stack)
{
    if (stack < 0 || g->stack[stack].mark == g->stamp || g->n_todo >= CLOSURE_MAX ||
        !grow(g, &g->todo, &g->cap_todo, g->n_todo + 1, sizeof *g->todo))
        return;
    g->stack[stack].mark = g->stamp;
    g->todo[g->n_todo++] = stack;
}

static void closure_return(struct grammar *g, int stack, bool *accept)
{
    if (g->stack[stack].parent < 0)
        *accept = true;
    else
        closure_add(g, g->stack[stack].parent);
}

static void closure_call(struct grammar *g, int rule, int ret, int count, int parent)
{
    int back = parent;
    if (ret >= 0) {
        back = stack_intern(g, ret, count, parent);
        if (back < 0)
            return;
    }
    closure_add(g, stack_intern(g, g->rule[rule].first, 0, back));
}

/* Everything that g->todo leads to without a byte: calls go in, ends return. */
static void closure_run(struct grammar *g, bool *accept)
{
    for (int i = 0; i < g->n_todo; i++) {
        struct stack s = g->stack[g->todo[i]];
        const struct gstate *q = &g->state[s.state];
        const struct grule *r = &g->rule[q->rule];
        if (r->kind == RULE_COUNT) {
            if (r->max < 0 || s.count < r->max) {
                int next = r->max < 0 && s.count >= r->min ? s.count : s.count + 1;
                closure_call(g, r->of, s.state, next, s.parent);
            }
            if (s.count >= r->min)
                closure_return(g, g->todo[i], accept);
            continue;
        }
        bool consumes = r->leaf ? r->leaf->allow[s.state - r->first][0] |
                                      r->leaf->allow[s.state - r->first][1] |
                                      r->leaf->allow[s.state - r->first][2] |
                                      r->leaf->allow[s.state - r->first][3]
                                : q->n_edge > 0;
        if (consumes && g->n_out < STACKS_MAX &&
            grow(g, &g->out, &g->cap_out, g->n_out + 1, sizeof *g->out))
            g->out[g->n_out++] = g->todo[i];
        for (int k = 0; k < q->n_call; k++) {
            struct gcall c = g->call[q->call + k];
            /* where returning would return at once, the callee returns to our caller */
            closure_call(g, c.rule, g->state[c.to].tail ? -1 : c.to, 0, s.parent);
        }
        if (q->final)
            closure_return(g, g->todo[i], accept);
    }
}

/* ---- sets ------------------------------------------------------------------------------------ */

static bool rehash_sets(struct grammar *g)
{
    int n = g->n_set_bucket ? 4 * g->n_set_bucket : 256;
    int *p = mem_alloc((size_t)n, sizeof *p);
    if (!p) {
        g->no_memory = true;
        return false;
    }
    memset(p, -1, (size_t)n * sizeof *p);
    for (int i = 0; i < g->n_set; i++) {
        int *bucket = &p[g->set[i].hash & (uint64_t)(n - 1)];
        g->set[i].chain = *bucket;
        *bucket = i;
    }
    mem_free(g->set_bucket);
    g->set_bucket = p;
    g->n_set_bucket = n;
    return true;
}

static void describe(struct grammar *g, struct set *s)
{
    for (int i = 0; i < s->n; i++) {
        const struct stack *k = &g->stack[g->member[s->first + i]];
        const struct grule *r = stack_rule(g, k);
        const uint64_t *allow = r->leaf ? r->leaf->allow[k->state - r->first] : g->allow[k->state];
        for (int w = 0; w < 4; w++)
            s->allow[w] |= allow[w];
        s->wide |= stack_is_wide(g, k);
    }
}

/* The set of these stacks, in this order: it is the order they were found in, so equal outputs give
 * equal sets whatever the cache held before. SET_DEAD: nothing, or no memory. */
static int set_intern(struct grammar *g, const int32_t *stack, int n, bool accept)
{
    if (n == 0 && !accept)
        return SET_DEAD;
    uint64_t h = mix(5, (uint64_t)n * 2 + accept);
    for (int i = 0; i < n; i++)
        h = mix(h, (uint64_t)stack[i]);
    if (g->n_set >= g->n_set_bucket && !rehash_sets(g))
        return SET_DEAD;
    int *bucket = &g->set_bucket[h & (uint64_t)(g->n_set_bucket - 1)];
    for (int i = *bucket; i >= 0; i = g->set[i].chain) {
        const struct set *s = &g->set[i];
        if (s->hash == h && s->n == n && s->accept == accept && i > SET_ENDED &&
            (n == 0 || memcmp(g->member + s->first, stack, (size_t)n * sizeof *stack) == 0))
            return i;
    }
    if (!grow(g, &g->set, &g->cap_set, g->n_set + 1, sizeof *g->set) ||
        !grow(g, &g->member, &g->cap_member, g->n_member + n, sizeof *g->member))
        return SET_DEAD;
    int id = g->n_set++;
    struct set *s = &g->set[id];
    *s = (struct set){
        .hash = h, .first = g->n_member, .n = n, .chain = *bucket, .narrow = -1, .accept = accept};
    if (n)
        memcpy(g->member + g->n_member, stack, (size_t)n * sizeof *stack);
    g->n_member += n;
    *bucket = id;
    describe(g, s);
    return id;
}

int machine_below(struct grammar *g, int stack)
{
    bool accept = false;
    if (g->stack[stack].below >= 0)
        return g->stack[stack].below;
    if (g->stack[stack].parent < 0)
        return SET_DEAD; /* the output's end: no byte may follow */
    closure_begin(g);
    closure_add(g, g->stack[stack].parent);
    closure_run(g, &accept);
    int to = set_intern(g, g->out, g->n_out, accept);
    if (!g->no_memory)
        g->stack[stack].below = to;
    return to;
}

int machine_narrow(struct grammar *g, int set)
{
    if (g->set[set].narrow >= 0)
        return g->set[set].narrow;
    g->n_out = 0;
    for (int i = 0; i < g->set[set].n; i++) {
        int stack = g->member[g->set[set].first + i];
        if (!stack_is_wide(g, &g->stack[stack]) &&
            grow(g, &g->out, &g->cap_out, g->n_out + 1, sizeof *g->out))
            g->out[g->n_out++] = stack;
    }
    int to = set_intern(g, g->out, g->n_out, false);
    if (!g->no_memory)
        g->set[set].narrow = to;
    return to;
}

/* ---- a byte ---------------------------------------------------------------------------------- */

/* Where one stack goes on a byte: -1, or the stack after it. */
static int stack_step(struct grammar *g, const struct stack *s, unsigned byte)
{
    const struct gstate *q = &g->state[s->state];
    const struct grule *r = &g->rule[q->rule];
    if (!r->leaf) {
        for (int k = 0; k < q->n_edge; k++) {
            const struct gedge *e = &g->edge[q->edge + k];
            if (byte >= e->lo && byte <= e->hi)
                return stack_intern(g, e->to, 0, s->parent);
        }
        return -1;
    }
    int local = s->state - r->first, count = s->count;
    int to = leaf_step(r->leaf, local, byte);
    if (to < 0)
        return -1;
    if (r->kind == RULE_STRING && local == r->leaf->body) {
        if (byte == '"') {
            if (count < r->min)
                return -1;
            count = 0;
        } else if (r->max >= 0 && count >= r->max) {
            return -1;
        } else if (r->max >= 0 || count < r->min) {
            count++; /* without a maximum, what is beyond the minimum need not be known */
        }
    }
    return stack_intern(g, r->first + to, count, s->parent);
}

static int compute_step(struct grammar *g, int set, unsigned byte)
{
    bool accept = false;
    int first = g->set[set].first, n = g->set[set].n;
    closure_begin(g);
    for (int i = 0; i < n; i++) {
        struct stack s = g->stack[g->member[first + i]];
        closure_add(g, stack_step(g, &s, byte));
    }
    closure_run(g, &accept);
    return set_intern(g, g->out, g->n_out, accept);
}

static bool grow_trans(struct grammar *g)
{
    int n = g->cap_trans ? 2 * g->cap_trans : 1024;
    struct trans *p = mem_zalloc((size_t)n, sizeof *p);
    if (!p) {
        g->no_memory = true;
        return false;
    }
    for (int i = 0; i < g->cap_trans; i++) {
        if (!g->trans[i].key)
            continue;
        uint64_t h = mix(9, g->trans[i].key);
        while (p[h & (uint64_t)(n - 1)].key)
            h++;
        p[h & (uint64_t)(n - 1)] = g->trans[i];
    }
    mem_free(g->trans);
    g->trans = p;
    g->cap_trans = n;
    return true;
}

int machine_step(struct grammar *g, int set, unsigned byte)
{
    if (!byte_in(g->set[set].allow, byte))
        return SET_DEAD;
    if (2 * g->n_trans >= g->cap_trans && !grow_trans(g))
        return SET_DEAD;
    uint64_t key = ((uint64_t)set << 8 | byte) + 1, h = mix(9, key);
    for (;; h++) {
        struct trans *t = &g->trans[h & (uint64_t)(g->cap_trans - 1)];
        if (t->key == key)
            return t->to;
        if (t->key)
            continue;
        int to = compute_step(g, set, byte);
        if (!g->no_memory) {
            *t = (struct trans){key, to};
            g->n_trans++;
        }
        return to;
    }
}

/* ---- beginning, and beginning again -----------------------------------------------------------
 */

static bool make_start(struct grammar *g)
{
    bool accept = false;
    g->generation++;
    g->stamp = 0;
    g->scratch = mem_alloc((size_t)g->lib->trie.n_words, sizeof *g->scratch);
    if (!g->scratch || !grow(g, &g->set, &g->cap_set, 2, sizeof *g->set) || !rehash_sets(g))
        return false;
    g->set[SET_DEAD] = g->set[SET_ENDED] = (struct set){.hash = 1, .chain = -1};
    g->n_set = 2;
    closure_begin(g);
    closure_add(g, stack_intern(g, g->rule[g->root].first, 0, -1));
    closure_run(g, &accept);
    g->start_set = set_intern(g, g->out, g->n_out, accept);
    return !g->no_memory;
}

/* Is the cache larger than `part` of its usual size? */
static bool is_larger(const struct grammar *g, double part)
{
    return g->n_stack > part * STACKS_KEEP || g->n_set > part * SETS_KEEP ||
           g->n_trans > part * TRANS_KEEP || g->n_member > part * MEMBERS_KEEP;
}

void machine_settle(struct grammar *g)
{
    while (is_larger(g, 0.5 * g->room))
        g->room *= 2;
}

bool machine_ready(struct grammar *g)
{
    g->room = g->room > 0 ? g->room : 1;
    if (g->no_memory || is_larger(g, g->room) || g->stamp > UINT32_MAX - 1000000000u) {
        machine_clear(g);
        g->no_memory = false;
        g->room = g->room > 1 ? g->room / 2 : 1;
    }
    if (g->mask_bytes > MASK_KEEP)
        clear_masks(g);
    if (g->n_set == 0 && !make_start(g)) {
        machine_clear(g);
        return false;
    }
    return true;
}
