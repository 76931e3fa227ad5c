/* Rules to tables: left recursion away, each rule deterministic, leaves apart, dead ends known.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"

#include <string.h>

enum { STATES_TOTAL = 400000 };

struct build {
    struct work *w;
    struct rules *r;
    const struct fsm **fsm; /* [n_rules]: NULL for counts and strings */
    bool *nullable;
    int n_rules;
};

static const char *rule_name(const struct build *b, int rule)
{
    return b->r->r[rule].name ? b->r->r[rule].name : "(part of a rule)";
}

/* ---- expressions ----------------------------------------------------------------------------- */

/* The alternatives of a rule's body, one level of ALT opened. */
static struct expr *as_alternatives(struct work *w, struct expr *e)
{
    if (e->kind == EXPR_ALT)
        return e;
    struct expr *alt = expr_new(w, EXPR_ALT);
    expr_add(w, alt, e);
    return alt;
}

static bool begins_with(const struct expr *e, int rule)
{
    return (e->kind == EXPR_CALL && e->rule == rule) ||
           (e->kind == EXPR_CAT && e->n > 0 && begins_with(e->child[0], rule));
}

/* e without its first item, which is a call. */
static struct expr *without_first(struct work *w, struct expr *e)
{
    if (e->kind == EXPR_CALL)
        return expr_new(w, EXPR_EMPTY);
    struct expr *out = expr_new(w, EXPR_CAT);
    expr_add(w, out, without_first(w, e->child[0]));
    for (int i = 1; i < e->n; i++)
        expr_add(w, out, e->child[i]);
    return out;
}

/* a: a x | y   is   a: y x*   to who only asks which strings there are. */
static struct expr *without_left_recursion(struct work *w, struct expr *body, int rule)
{
    struct expr *alt = as_alternatives(w, body), *first = NULL, *rest = NULL;
    bool found = false;
    for (int i = 0; alt && i < alt->n; i++)
        found |= begins_with(alt->child[i], rule);
    if (!found || w->st)
        return body;
    first = expr_new(w, EXPR_ALT);
    rest = expr_new(w, EXPR_ALT);
    for (int i = 0; i < alt->n; i++) {
        bool left = begins_with(alt->child[i], rule);
        expr_add(w, left ? rest : first, left ? without_first(w, alt->child[i]) : alt->child[i]);
    }
    return expr_cat(w, first, expr_rep(w, rest, 0, -1), (struct expr *)NULL);
}

/* Does e repeat something wide, and call nobody? Then it becomes a leaf of its own. */
static bool is_wide_part(const struct expr *e, bool in_rep)
{
    uint32_t n = 0;
    if (e->kind == EXPR_SET) {
        for (int i = 0; i < e->set.n; i++)
            n += e->set.r[i].hi - e->set.r[i].lo + 1;
        return in_rep && n >= WIDE_BYTES;
    }
    bool any = false;
    for (int i = 0; i < e->n; i++)
        any |= is_wide_part(e->child[i], in_rep || e->kind == EXPR_REP);
    return any;
}

static bool calls_someone(const struct expr *e)
{
    bool any = e->kind == EXPR_CALL;
    for (int i = 0; i < e->n && !any; i++)
        any = calls_someone(e->child[i]);
    return any;
}

static struct expr *outline(struct build *b, struct expr *e)
{
    if (!work_spend(b->w, 4))
        return e;
    if (e->kind == EXPR_REP && !calls_someone(e) && is_wide_part(e, false)) {
        int id = rules_new(b->r, NULL);
        rules_define(b->r, id, e);
        return expr_call(b->w, id);
    }
    for (int i = 0; i < e->n && !b->w->st; i++)
        e->child[i] = outline(b, e->child[i]);
    return e;
}

static const struct fsm *rule_fsm(struct build *b, int rule)
{
    struct nfa a;
    struct expr *body = b->r->r[rule].body;
    if (b->r->r[rule].kind == RULE_LEAF)
        return b->r->r[rule].fsm;
    nfa_init(&a, b->w);
    int start = nfa_state(&a), end = expr_emit(&a, body, start, false);
    if (b->w->st)
        return NULL;
    a.final[end] = true;
    return fsm_minimize(b->w, fsm_from_nfa(&a, start));
}

static void make_automata(struct build *b)
{
    for (int i = 0, n = b->r->n; i < n && !b->w->st; i++) {
        struct rule *r = &b->r->r[i];
        if (!r->defined) {
            work_refuse(b->w, "rule '%s' is not defined", rule_name(b, i));
        } else if (r->kind == RULE_EXPR && r->body) {
            struct expr *body = without_left_recursion(b->w, r->body, i);
            if (!b->w->st && calls_someone(body))
                body = outline(b, body); /* may move r */
            b->r->r[i].body = body;
        }
    }
    b->n_rules = b->r->n;
    b->fsm = work_alloc(b->w, (size_t)b->n_rules, sizeof(struct fsm *));
    b->nullable = work_alloc(b->w, (size_t)b->n_rules, sizeof *b->nullable);
    for (int i = 0; i < b->n_rules && !b->w->st; i++)
        if (b->r->r[i].kind == RULE_EXPR || b->r->r[i].kind == RULE_LEAF)
            b->fsm[i] = rule_fsm(b, i);
}

/* ---- what may be empty, and left recursion across rules ---------------------------------------
 */

/* Marks the states of a rule that its start reaches without a byte; true: an end is among them. */
static bool reach_empty(struct build *b, const struct fsm *m, bool *seen, int *list)
{
    int n = 0;
    bool end = false;
    if (m->n == 0)
        return false;
    seen[0] = true;
    list[n++] = 0;
    for (int i = 0; i < n; i++) {
        const struct fstate *s = &m->s[list[i]];
        end |= s->final;
        for (int k = 0; k < s->n_c; k++)
            if (b->nullable[s->c[k].rule] && !seen[s->c[k].to]) {
                seen[s->c[k].to] = true;
                list[n++] = s->c[k].to;
            }
    }
    (void)work_spend(b->w, n);
    for (int i = 0; i < n; i++)
        seen[list[i]] = false;
    return end;
}

static void find_nullable(struct build *b, bool *seen, int *list)
{
    for (bool again = true; again && work_spend(b->w, b->n_rules);) {
        again = false;
        for (int i = 0; i < b->n_rules; i++) {
            const struct rule *r = &b->r->r[i];
            bool now = r->kind == RULE_COUNT ? r->min == 0 || b->nullable[r->of]
                       : b->fsm[i]           ? reach_empty(b, b->fsm[i], seen, list)
                                             : false;
            again |= now != b->nullable[i];
            b->nullable[i] |= now;
        }
    }
}

enum { NEW, OPEN, DONE };

/* Rules that `rule` may call before it has consumed a byte. */
static int left_calls(struct build *b, int rule, int *out, int cap)
{
    const struct rule *r = &b->r->r[rule];
    const struct fsm *m = b->fsm[rule];
    int n = 0, n_list = 0;
    if (r->kind == RULE_COUNT) {
        out[0] = r->of;
        return 1;
    }
    if (!m || m->n == 0)
        return 0;
    bool *seen = work_alloc(b->w, (size_t)m->n, sizeof *seen);
    int *list = work_alloc(b->w, (size_t)m->n, sizeof *list);
    if (b->w->st)
        return 0;
    seen[0] = true;
    list[n_list++] = 0;
    for (int i = 0; i < n_list; i++)
        for (int k = 0; k < m->s[list[i]].n_c; k++) {
            struct fcall c = m->s[list[i]].c[k];
            if (n < cap)
                out[n++] = c.rule;
            if (b->nullable[c.rule] && !seen[c.to]) {
                seen[c.to] = true;
                list[n_list++] = c.to;
            }
        }
    return n;
}

static void refuse_left_recursion(struct build *b)
{
    /* depth first, with a stack of our own: grammars may be deep */
    struct visit {
        int rule, n, i, *call;
    } *stack = work_alloc(b->w, (size_t)b->n_rules + 1, sizeof *stack);
    uint8_t *state = work_alloc(b->w, (size_t)b->n_rules, 1);
    int *buf = work_alloc(b->w, (size_t)b->n_rules * 4 + 64, sizeof *buf);
    for (int root = 0; root < b->n_rules && !b->w->st; root++) {
        int depth = 0, next = state[root] == NEW ? root : -1;
        while ((next >= 0 || depth > 0) && !b->w->st) {
            if (next >= 0) {
                int n = left_calls(b, next, buf, b->n_rules * 4 + 64);
                struct visit *v = &stack[depth++];
                *v = (struct visit){.rule = next, .n = n};
                v->call = work_alloc(b->w, (size_t)n, sizeof *v->call);
                if (b->w->st)
                    return;
                if (n)
                    memcpy(v->call, buf, (size_t)n * sizeof *buf);
                state[next] = OPEN;
                next = -1;
            }
            struct visit *v = &stack[depth - 1];
            if (v->i == v->n) {
                state[v->rule] = DONE;
                depth--;
            } else {
                int to = v->call[v->i++];
                if (state[to] == OPEN)
                    work_refuse(b->w,
                                "rule '%s' is left recursive through '%s'; only direct left "
                                "recursion (a: a x | y) is supported",
                                rule_name(b, to), rule_name(b, v->rule));
                if (state[to] == NEW)
                    next = to;
            }
        }
    }
}

/* A counter cannot tell empty rounds from full ones. */
static void refuse_empty_counts(struct build *b)
{
    for (int i = 0; i < b->n_rules && !b->w->st; i++)
        if (b->r->r[i].kind == RULE_COUNT && b->nullable[b->r->r[i].of])
            work_refuse(b->w,
                        "'%s' may be empty and is repeated {%d,%d}: that often, what is "
                        "repeated must not be empty",
                        rule_name(b, b->r->r[i].of), b->r->r[i].min, b->r->r[i].max);
}

static void check_rules(struct build *b)
{
    int most = 1;
    for (int i = 0; i < b->n_rules && !b->w->st; i++)
        if (b->fsm[i] && b->fsm[i]->n > most)
            most = b->fsm[i]->n;
    bool *seen = work_alloc(b->w, (size_t)most, sizeof *seen);
    int *list = work_alloc(b->w, (size_t)most, sizeof *list);
    if (b->w->st)
        return;
    find_nullable(b, seen, list);
    refuse_empty_counts(b);
    refuse_left_recursion(b);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static bool has_calls(const struct fsm *m)
{
    for (int i = 0; i < m->n; i++)
        if (m->s[i].n_c)
            return true;
    return false;
}

static bool has_wide(const struct fsm *m)
{
    for (int i = 0; i < m->n; i++) {
        uint32_t n = 0;
        for (int k = 0; k < m->s[i].n_e; k++)
            n += m->s[i].e[k].hi - m->s[i].e[k].lo + 1;
        if (n >= WIDE_BYTES)
            return true;
    }
    return false;
}

/* A JSON string with its quotes; state 1 is the one between characters. */
static struct fsm *string_fsm(struct work *w)
{
    struct nfa a;
    struct cset all = {0};
    nfa_init(&a, w);
    cset_add(w, &all, 0, 0xD7FF);
    cset_add(w, &all, 0xE000, CODE_POINT_MAX);
    int open = nfa_state(&a), body = nfa_state(&a), end = nfa_state(&a);
    if (w->st)
        return NULL;
    nfa_range(&a, open, '"', '"', body);
    nfa_range(&a, body, '"', '"', end);
    nfa_add_json_char(&a, &all, body, body);
    if (w->st)
        return NULL;
    a.final[end] = true;
    struct fsm *m = fsm_minimize(w, fsm_from_nfa(&a, open));
    SL_ASSERT(!m || m->s[0].e[0].to == 1); /* numbered as they were found */
    return m;
}

static int count_states(const struct build *b, int i)
{
    const struct rule *r = &b->r->r[i];
    return r->kind == RULE_COUNT || !b->fsm[i] ? 1 : b->fsm[i]->n > 0 ? b->fsm[i]->n : 1;
}

static void copy_state(struct grammar *g, int s, const struct fstate *f, int base, int *n_edge,
                       int *n_call)
{
    struct gstate *d = &g->state[s];
    d->edge = *n_edge;
    d->call = *n_call;
    d->n_edge = (uint16_t)f->n_e;
    d->n_call = (uint16_t)f->n_c;
    d->final = f->final;
    d->tail = f->final && f->n_e == 0 && f->n_c == 0;
    for (int k = 0; k < f->n_e; k++) {
        g->edge[(*n_edge)++] =
            (struct gedge){(uint8_t)f->e[k].lo, (uint8_t)f->e[k].hi, base + f->e[k].to};
        for (uint32_t c = f->e[k].lo; c <= f->e[k].hi; c++)
            g->allow[s][c >> 6] |= (uint64_t)1 << (c & 63);
    }
    for (int k = 0; k < f->n_c; k++)
        g->call[(*n_call)++] = (struct gcall){f->c[k].rule, base + f->c[k].to};
}

/* Frames that suffice from each state to its rule's end; NEED_NEVER where no number does. */
static void find_needs(struct build *b, struct grammar *g)
{
    for (int s = 0; s < g->n_states; s++)
        g->state[s].need = NEED_NEVER;
    for (bool again = true; again && work_spend(b->w, g->n_states);) {
        again = false;
        for (int s = g->n_states - 1; s >= 0; s--) {
            const struct gstate *q = &g->state[s];
            const struct grule *r = &g->rule[q->rule];
            int need = q->final ? 0 : NEED_NEVER;
            if (r->leaf) {
                need = 0; /* a leaf's states all reach its end */
            } else if (r->kind == RULE_COUNT) {
                int of = g->state[g->rule[r->of].first].need;
                need = r->min == 0 ? 0 : of < NEED_NEVER ? of + 1 : NEED_NEVER;
            }
            for (int k = 0; k < q->n_edge; k++) {
                int to = g->state[g->edge[q->edge + k].to].need;
                need = to < need ? to : need;
            }
            for (int k = 0; k < q->n_call; k++) {
                struct gcall c = g->call[q->call + k];
                int in = g->state[g->rule[c.rule].first].need + 1, after = g->state[c.to].need;
                int both = in > after ? in : after;
                need = both < need ? both : need;
            }
            again |= need < q->need;
            if (need < q->need)
                g->state[s].need = need;
        }
    }
}

static bool alloc_tables(struct build *b, struct grammar *g)
{
    size_t n_states = 0, n_edges = 0, n_calls = 0;
    for (int i = 0; i < b->n_rules; i++) {
        const struct fsm *m = b->fsm[i];
        n_states += (size_t)count_states(b, i);
        for (int k = 0; m && k < m->n; k++) {
            n_edges += (size_t)m->s[k].n_e;
            n_calls += (size_t)m->s[k].n_c;
            if (m->s[k].n_e > UINT16_MAX || m->s[k].n_c > UINT16_MAX)
                work_refuse(b->w, "too large: a rule with %d alternatives", m->s[k].n_c);
        }
    }
    if (n_states > STATES_TOTAL)
        work_refuse(b->w, "too large: %zu automaton states, at most %d", n_states, STATES_TOTAL);
    if (b->w->st)
        return false;
    g->n_rules = b->n_rules;
    g->n_states = (int)n_states;
    g->rule = mem_zalloc((size_t)g->n_rules, sizeof *g->rule);
    g->state = mem_zalloc(n_states, sizeof *g->state);
    g->edge = mem_alloc(n_edges, sizeof *g->edge);
    g->call = mem_alloc(n_calls, sizeof *g->call);
    g->allow = mem_zalloc(n_states, sizeof *g->allow);
    g->bytes += sizeof *g + (size_t)g->n_rules * sizeof *g->rule +
                n_states * (sizeof *g->state + sizeof *g->allow) + n_edges * sizeof *g->edge +
                n_calls * sizeof *g->call;
    if (g->rule && g->state && g->edge && g->call && g->allow)
        return true;
    b->w->st = SL_FAIL(b->w->err, SL_ENOMEM, "%s: no memory to compile it", b->w->what);
    return false;
}

static void fill_rule(struct build *b, struct grammar *g, int i, int *n_edge, int *n_call)
{
    const struct rule *r = &b->r->r[i];
    struct grule *d = &g->rule[i];
    const struct fsm *m = b->fsm[i];
    int first = d->first;
    for (int k = 0; k < count_states(b, i); k++)
        g->state[first + k].rule = i;
    *d = (struct grule){.kind = r->kind, .first = first, .of = r->of, .min = r->min, .max = r->max};
    if (r->kind == RULE_STRING) {
        d->leaf = leaf_make(g->lib, b->w, m, 1);
    } else if (r->kind != RULE_COUNT && m && m->n && !has_calls(m) && has_wide(m)) {
        d->kind = RULE_LEAF;
        d->leaf = leaf_make(g->lib, b->w, m, -1);
    } else {
        for (int k = 0; m && k < m->n; k++)
            copy_state(g, first + k, &m->s[k], first, n_edge, n_call);
    }
    if (d->leaf) {
        g->bytes += d->leaf->bytes / 4; /* shared: an estimate */
        for (int k = 0; k < m->n; k++)
            g->state[first + k].final = m->s[k].final;
    }
}

enum sl_status grammar_build(struct grammar_lib *lib, struct rules *r, struct grammar **out)
{
    struct build b = {.w = r->w, .r = r};
    struct fsm *string = NULL;
    if (!b.w->st)
        make_automata(&b);
    if (!b.w->st)
        check_rules(&b);
    for (int i = 0; i < b.n_rules && !b.w->st; i++)
        if (r->r[i].kind == RULE_STRING) {
            string = string ? string : string_fsm(b.w);
            b.fsm[i] = string;
        }
    struct grammar *g = b.w->st ? NULL : mem_zalloc(1, sizeof *g);
    if (!g)
        return b.w->st ? b.w->st : SL_FAIL(b.w->err, SL_ENOMEM, "%s: no memory", b.w->what);
    g->lib = lib;
    g->root = r->root;
    atomic_init(&g->refs, 1);
    int n_edge = 0, n_call = 0, first = 0;
    if (alloc_tables(&b, g)) {
        for (int i = 0; i < b.n_rules; first += count_states(&b, i), i++)
            g->rule[i].first = first;
        for (int i = 0; i < b.n_rules && !b.w->st; i++)
            fill_rule(&b, g, i, &n_edge, &n_call);
        if (!b.w->st)
            find_needs(&b, g);
    }
    if (!b.w->st) {
        int need = g->state[g->rule[g->root].first].need;
        if (need >= NEED_NEVER)
            work_refuse(b.w, "no text can match it");
        else if (need >= DEPTH_MAX)
            work_refuse(b.w, "it nests at least %d levels deep, at most %d", need, DEPTH_MAX);
    }
    if (b.w->st)
        grammar_free(g);
    else
        *out = g;
    return b.w->st;
}

void grammar_free(struct grammar *g)
{
    if (!g)
        return;
    machine_clear(g);
    for (int i = 0; g->rule && i < g->n_rules; i++)
        leaf_unref(g->lib, g->rule[i].leaf);
    mem_free(g->rule);
    mem_free(g->state);
    mem_free(g->edge);
    mem_free(g->call);
    mem_free(g->allow);
    mem_free(g->key);
    mem_free(g);
}
