/* SPDX-License-Identifier: Apache-2.0 */
#include "grammar/expr.h"

#include <stdarg.h>
#include <string.h>

enum {
    COPIES_MAX = 16,  /* body{m,n} of more copies becomes a counter */
    RULES_MAX = 20000 /* of one grammar */
};

struct expr *expr_new(struct work *w, enum expr_kind kind)
{
    struct expr *e = work_alloc(w, 1, sizeof *e);
    if (e)
        e->kind = kind;
    return e;
}

void expr_add(struct work *w, struct expr *parent, struct expr *child)
{
    if (!parent || !child ||
        !work_grow(w, &parent->child, &parent->cap, parent->n + 1, sizeof(struct expr *)))
        return;
    parent->child[parent->n++] = child;
}

struct expr *expr_bytes(struct work *w, const char *s, size_t n)
{
    struct expr *e = expr_new(w, EXPR_BYTES);
    if (!e)
        return NULL;
    e->bytes = work_strndup(w, s, n);
    e->n_bytes = n;
    return e->bytes ? e : NULL;
}

struct expr *expr_call(struct work *w, int rule)
{
    struct expr *e = expr_new(w, EXPR_CALL);
    if (e)
        e->rule = rule;
    return e;
}

struct expr *expr_rep(struct work *w, struct expr *body, int min, int max)
{
    struct expr *e = expr_new(w, EXPR_REP);
    if (!e)
        return NULL;
    e->min = min;
    e->max = max;
    expr_add(w, e, body);
    return e;
}

struct expr *expr_fsm(struct work *w, const struct fsm *m)
{
    struct expr *e = m ? expr_new(w, EXPR_FSM) : NULL;
    if (e)
        e->fsm = m;
    return e;
}

struct expr *expr_cat(struct work *w, ...)
{
    struct expr *e = expr_new(w, EXPR_CAT), *child;
    va_list ap;
    va_start(ap, w);
    while ((child = va_arg(ap, struct expr *)) != NULL)
        expr_add(w, e, child);
    va_end(ap);
    return w->st ? NULL : e;
}

static int emit_bytes(struct nfa *a, const struct expr *e, int from, bool chars)
{
    for (size_t i = 0; i < e->n_bytes;) {
        uint32_t c = (unsigned char)e->bytes[i];
        size_t len = 1;
        if (chars && (len = utf8_take(e->bytes + i, e->n_bytes - i, &c)) == 0) {
            work_refuse(a->w, "a text in it is not valid UTF-8");
            return 0;
        }
        int to = nfa_state(a);
        nfa_range(a, from, c, c, to);
        from = to;
        i += len;
    }
    return from;
}

static int emit_rep(struct nfa *a, const struct expr *e, int from, bool chars)
{
    const struct expr *body = e->child[0];
    for (int i = 0; i < e->min && !a->w->st; i++)
        from = expr_emit(a, body, from, chars);
    if (e->max < 0) {
        int loop = nfa_state(a), end = nfa_state(a);
        nfa_eps(a, from, loop);
        nfa_eps(a, expr_emit(a, body, loop, chars), loop);
        nfa_eps(a, loop, end);
        return end;
    }
    if (e->max == e->min)
        return from;
    int end = nfa_state(a);
    for (int i = e->min; i < e->max && !a->w->st; i++) {
        nfa_eps(a, from, end);
        int own = nfa_state(a); /* so that nothing outside leads back into the copy */
        nfa_eps(a, from, own);
        from = expr_emit(a, body, own, chars);
    }
    nfa_eps(a, from, end);
    return end;
}

static int emit_alt(struct nfa *a, const struct expr *e, int from, bool chars)
{
    int end = nfa_state(a);
    for (int i = 0; i < e->n && !a->w->st; i++) {
        int own = nfa_state(a);
        nfa_eps(a, from, own);
        nfa_eps(a, expr_emit(a, e->child[i], own, chars), end);
    }
    return end;
}

int expr_emit(struct nfa *a, const struct expr *e, int from, bool chars)
{
    int to;
    if (!e || !work_spend(a->w, 2))
        return 0;
    switch (e->kind) {
    case EXPR_EMPTY:
        return from;
    case EXPR_BYTES:
        return emit_bytes(a, e, from, chars);
    case EXPR_CAT:
        for (int i = 0; i < e->n && !a->w->st; i++)
            from = expr_emit(a, e->child[i], from, chars);
        return from;
    case EXPR_ALT:
        return emit_alt(a, e, from, chars);
    case EXPR_REP:
        return emit_rep(a, e, from, chars);
    default:
        break;
    }
    to = nfa_state(a);
    if (e->kind == EXPR_SET && chars)
        nfa_set(a, from, &e->set, to);
    else if (e->kind == EXPR_SET)
        nfa_add_utf8(a, &e->set, from, to);
    else if (e->kind == EXPR_CALL)
        nfa_call(a, from, e->rule, to);
    else if (e->kind == EXPR_FSM)
        nfa_add_fsm(a, e->fsm, from, to);
    else if (e->kind == EXPR_BEGIN)
        nfa_range(a, from, MARK_BEGIN, MARK_BEGIN, to);
    else if (e->kind == EXPR_END)
        nfa_range(a, from, MARK_END, MARK_END, to);
    return to; /* EXPR_NEVER: nothing leads there */
}

/* ---- rules ----------------------------------------------------------------------------------- */

void rules_init(struct rules *g, struct work *w)
{
    *g = (struct rules){.w = w, .string_rule = -1};
}

int rules_new(struct rules *g, const char *name)
{
    if (g->n >= RULES_MAX)
        work_refuse(g->w, "too large: more than %d rules", RULES_MAX);
    if (!work_grow(g->w, &g->r, &g->cap, g->n + 1, sizeof *g->r))
        return 0;
    g->r[g->n] = (struct rule){.kind = RULE_EXPR, .name = name};
    return g->n++;
}

void rules_define(struct rules *g, int rule, struct expr *body)
{
    if (g->w->st || !body)
        return;
    g->r[rule].body = body;
    g->r[rule].defined = true;
}

int rules_leaf(struct rules *g, const struct fsm *bytes)
{
    int id = bytes ? rules_new(g, NULL) : 0;
    if (g->w->st)
        return 0;
    g->r[id].kind = RULE_LEAF;
    g->r[id].fsm = bytes;
    g->r[id].defined = true;
    return id;
}

int rules_string(struct rules *g, int min, int max)
{
    bool plain = min == 0 && max < 0;
    if (plain && g->string_rule >= 0)
        return g->string_rule;
    int id = rules_new(g, NULL);
    if (g->w->st)
        return 0;
    g->r[id].kind = RULE_STRING;
    g->r[id].min = min;
    g->r[id].max = max;
    g->r[id].defined = true;
    if (plain)
        g->string_rule = id;
    return id;
}

struct expr *rules_repeat(struct rules *g, struct expr *body, int min, int max)
{
    int copies = max < 0 ? min : max;
    if (g->w->st || !body)
        return NULL;
    if (max >= 0 && max < min)
        return expr_new(g->w, EXPR_NEVER);
    if (copies <= COPIES_MAX)
        return expr_rep(g->w, body, min, max);
    int inner = body->kind == EXPR_CALL ? body->rule : rules_new(g, NULL);
    if (body->kind != EXPR_CALL)
        rules_define(g, inner, body);
    int id = rules_new(g, NULL);
    if (g->w->st)
        return NULL;
    g->r[id].kind = RULE_COUNT;
    g->r[id].of = inner;
    g->r[id].min = min;
    g->r[id].max = max;
    g->r[id].defined = true;
    return expr_call(g->w, id);
}

/* ---- names ----------------------------------------------------------------------------------- */

static unsigned name_hash(const char *s, size_t n)
{
    unsigned h = 2166136261u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 16777619u;
    return (h ^ h >> 15) & 255;
}

int names_find(const struct names *t, const char *s, size_t n)
{
    for (int i = t->ready ? t->bucket[name_hash(s, n)] : -1; i >= 0; i = t->e[i].chain)
        if (t->e[i].n == n && memcmp(t->e[i].s, s, n) == 0)
            return t->e[i].rule;
    return -1;
}

int names_rule(struct rules *g, struct names *t, const char *s, size_t n)
{
    int rule = names_find(t, s, n);
    if (rule >= 0 || g->w->st)
        return rule < 0 ? 0 : rule;
    if (!t->ready)
        memset(t->bucket, -1, sizeof t->bucket);
    t->ready = true;
    rule = rules_new(g, work_strndup(g->w, s, n < 60 ? n : 60));
    if (!work_grow(g->w, &t->e, &t->cap, t->n + 1, sizeof *t->e))
        return 0;
    int *bucket = &t->bucket[name_hash(s, n)];
    t->e[t->n] = (struct name){s, n, rule, *bucket};
    *bucket = t->n++;
    return rule;
}
