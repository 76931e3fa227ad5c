/* SPDX-License-Identifier: Apache-2.0
 *
 * Expressions, by recursive descent. The grammar is Jinja's own: note that `~` binds tighter than
 * `+`, that a filter binds tighter than a minus sign in front, and that `**` goes left to right. */
#include "text/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct node *node_new(struct parser *p, enum node_kind kind, struct jpos pos)
{
    struct node *n = jalloc(p->rt, 1, sizeof *n);
    n->kind = (uint8_t)kind;
    n->pos = pos;
    return n;
}

void nodes_add(struct jrt *rt, struct nodes *l, struct node *n)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        struct node **v = jalloc(rt, cap, sizeof *v);
        if (l->n)
            memcpy(v, l->v, l->n * sizeof *v);
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = n;
}

struct tok *tok_now(struct parser *p)
{
    return &p->toks.v[p->at];
}

static struct tok *tok_next(struct parser *p)
{
    return &p->toks.v[p->at + (p->toks.v[p->at].kind != T_EOF)];
}

struct tok *tok_take(struct parser *p)
{
    struct tok *t = tok_now(p);
    if (t->kind != T_EOF)
        p->at++;
    return t;
}

bool tok_is(const struct tok *t, const char *name)
{
    return t->kind == T_NAME && strlen(name) == t->n && memcmp(t->p, name, t->n) == 0;
}

bool tok_skip(struct parser *p, enum tok_kind kind)
{
    if (tok_now(p)->kind != kind)
        return false;
    tok_take(p);
    return true;
}

bool tok_skip_name(struct parser *p, const char *name)
{
    if (!tok_is(tok_now(p), name))
        return false;
    tok_take(p);
    return true;
}

static const char *kind_text(enum tok_kind kind)
{
    static const char *const text[] = {
        [T_EOF] = "end of template",
        [T_DATA] = "template data / text",
        [T_VAR_BEGIN] = "begin of print statement",
        [T_VAR_END] = "end of print statement",
        [T_BLOCK_BEGIN] = "begin of statement block",
        [T_BLOCK_END] = "end of statement block",
        [T_NAME] = "name",
        [T_STRING] = "string",
        [T_INT] = "integer",
        [T_FLOAT] = "float",
        [T_ADD] = "+",
        [T_SUB] = "-",
        [T_MUL] = "*",
        [T_DIV] = "/",
        [T_FLOORDIV] = "//",
        [T_MOD] = "%",
        [T_POW] = "**",
        [T_TILDE] = "~",
        [T_LBRACKET] = "[",
        [T_RBRACKET] = "]",
        [T_LPAREN] = "(",
        [T_RPAREN] = ")",
        [T_LBRACE] = "{",
        [T_RBRACE] = "}",
        [T_EQ] = "==",
        [T_NE] = "!=",
        [T_GT] = ">",
        [T_GE] = ">=",
        [T_LT] = "<",
        [T_LE] = "<=",
        [T_ASSIGN] = "=",
        [T_DOT] = ".",
        [T_COLON] = ":",
        [T_PIPE] = "|",
        [T_COMMA] = ",",
        [T_SEMICOLON] = ";",
    };
    return text[kind];
}

const char *tok_text(struct jrt *rt, const struct tok *t)
{
    if (t->kind != T_NAME)
        return kind_text(t->kind);
    return jstr_new(rt, t->p, t->n < 60 ? t->n : 60)->p;
}

void parse_fail(struct parser *p, struct jpos pos, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->rt->at = pos;
    jfail(p->rt, JERR_SYNTAX, "%s", text);
}

static void fail_expected(struct parser *p, const char *what)
{
    struct tok *t = tok_now(p);
    if (t->kind == T_EOF)
        parse_fail(p, t->pos, "unexpected end of template, expected '%s'", what);
    parse_fail(p, t->pos, "expected token '%s', got '%s'", what, tok_text(p->rt, t));
}

struct tok *tok_expect(struct parser *p, enum tok_kind kind)
{
    if (tok_now(p)->kind != kind)
        fail_expected(p, kind_text(kind));
    return tok_take(p);
}

void tok_expect_name(struct parser *p, const char *name)
{
    if (!tok_skip_name(p, name))
        fail_expected(p, name);
}

static struct jstr *tok_str(struct parser *p, const struct tok *t)
{
    return jstr_view(p->rt, t->p, t->n);
}

static struct node *make_const(struct parser *p, struct jpos pos, struct jval v)
{
    struct node *n = node_new(p, N_CONST, pos);
    n->konst = v;
    return n;
}

static struct node *make_pair(struct parser *p, enum node_kind kind, struct jpos pos,
                              struct node *a, struct node *b)
{
    struct node *n = node_new(p, kind, pos);
    n->e.a = a;
    n->e.b = b;
    return n;
}

/* ---- primaries ------------------------------------------------------------------------------ */

static struct node *parse_name(struct parser *p, bool with_ns)
{
    static const struct {
        const char *name;
        int8_t value; /* -1: none */
    } consts[] = {{"true", 1}, {"True", 1}, {"false", 0}, {"False", 0}, {"none", -1}, {"None", -1}};
    struct tok *t = tok_take(p);
    for (size_t i = 0; i < sizeof consts / sizeof *consts; i++)
        if (tok_is(t, consts[i].name))
            return make_const(p, t->pos, consts[i].value < 0 ? JNONE : jbool(consts[i].value == 1));
    bool ns = with_ns && tok_skip(p, T_DOT);
    struct node *n = node_new(p, ns ? N_NSREF : N_NAME, t->pos);
    n->name.name = tok_str(p, t);
    if (ns)
        n->name.attr = tok_str(p, tok_expect(p, T_NAME));
    return n;
}

static struct node *parse_strings(struct parser *p)
{
    struct tok *t = tok_take(p);
    struct jstr *s = tok_str(p, t);
    while (tok_now(p)->kind == T_STRING)
        s = jstr_cat(p->rt, s, tok_str(p, tok_take(p)));
    s->in = NULL; /* a constant is shared by threads: nobody may append to it */
    (void)jstr_chars(s);
    return make_const(p, t->pos, jstrv(s));
}

static struct node *parse_list(struct parser *p)
{
    struct node *n = node_new(p, N_LIST, tok_take(p)->pos);
    while (tok_now(p)->kind != T_RBRACKET) {
        if (n->list.n)
            tok_expect(p, T_COMMA);
        if (tok_now(p)->kind == T_RBRACKET)
            break;
        nodes_add(p->rt, &n->list, parse_expr(p, true));
    }
    tok_expect(p, T_RBRACKET);
    return n;
}

static struct node *parse_dict(struct parser *p)
{
    struct node *n = node_new(p, N_DICT, tok_take(p)->pos);
    while (tok_now(p)->kind != T_RBRACE) {
        if (n->list.n)
            tok_expect(p, T_COMMA);
        if (tok_now(p)->kind == T_RBRACE)
            break;
        nodes_add(p->rt, &n->list, parse_expr(p, true));
        tok_expect(p, T_COLON);
        nodes_add(p->rt, &n->list, parse_expr(p, true));
    }
    tok_expect(p, T_RBRACE);
    return n;
}

static struct node *parse_primary(struct parser *p, bool with_ns)
{
    struct tok *t = tok_now(p);
    struct node *n;
    switch (t->kind) {
    case T_NAME:
        return parse_name(p, with_ns);
    case T_STRING:
        return parse_strings(p);
    case T_INT:
    case T_FLOAT:
        tok_take(p);
        return make_const(p, t->pos, t->num);
    case T_LPAREN:
        tok_take(p);
        n = parse_tuple(p, true, true, NULL);
        tok_expect(p, T_RPAREN);
        return n;
    case T_LBRACKET:
        return parse_list(p);
    case T_LBRACE:
        return parse_dict(p);
    default:
        parse_fail(p, t->pos, "unexpected '%s'", tok_text(p->rt, t));
    }
}

static bool tuple_ends(struct parser *p, const char *end)
{
    enum tok_kind k = tok_now(p)->kind;
    return k == T_VAR_END || k == T_BLOCK_END || k == T_RPAREN || (end && tok_is(tok_now(p), end));
}

enum tuple_items { ITEMS_EXPR, ITEMS_PLAIN_EXPR, ITEMS_TARGET, ITEMS_NS_TARGET };

/* One item, or a tuple when there is a comma. */
static struct node *parse_items(struct parser *p, enum tuple_items items, bool parens,
                                const char *end)
{
    struct jpos pos = tok_now(p)->pos;
    struct nodes list = {0};
    bool is_tuple = false;
    for (;;) {
        if (list.n)
            tok_expect(p, T_COMMA);
        if (tuple_ends(p, end))
            break;
        nodes_add(p->rt, &list,
                  items >= ITEMS_TARGET ? parse_primary(p, items == ITEMS_NS_TARGET)
                                        : parse_expr(p, items == ITEMS_EXPR));
        if (tok_now(p)->kind != T_COMMA)
            break;
        is_tuple = true;
    }
    if (!is_tuple && list.n)
        return list.v[0];
    if (!is_tuple && !parens)
        parse_fail(p, tok_now(p)->pos, "expected an expression, got '%s'",
                   tok_text(p->rt, tok_now(p)));
    struct node *n = node_new(p, N_TUPLE, pos);
    n->list = list;
    return n;
}

struct node *parse_tuple(struct parser *p, bool with_cond, bool parens, const char *end)
{
    return parse_items(p, with_cond ? ITEMS_EXPR : ITEMS_PLAIN_EXPR, parens, end);
}

static const char *kind_name(const struct node *n)
{
    static const char *const names[] = {
        [N_CONST] = "const",  [N_LIST] = "list",     [N_DICT] = "dict",       [N_ATTR] = "getattr",
        [N_ITEM] = "getitem", [N_CALL] = "call",     [N_FILTER] = "filter",   [N_TEST] = "test",
        [N_NOT] = "not",      [N_NEG] = "neg",       [N_POS] = "pos",         [N_AND] = "and",
        [N_OR] = "or",        [N_CONCAT] = "concat", [N_COMPARE] = "compare", [N_COND] = "condexpr",
        [N_TUPLE] = "tuple"};
    return n->kind < sizeof names / sizeof *names && names[n->kind] ? names[n->kind] : "expression";
}

static void make_target(struct parser *p, struct node *n)
{
    if (n->kind == N_NSREF)
        return;
    if (n->kind == N_NAME) {
        n->store = true;
        return;
    }
    if (n->kind != N_TUPLE)
        parse_fail(p, n->pos, "can't assign to '%s'", kind_name(n));
    jenter(p->rt);
    for (size_t i = 0; i < n->list.n; i++)
        make_target(p, n->list.v[i]);
    jleave(p->rt);
}

struct node *parse_target(struct parser *p, bool with_ns, const char *end)
{
    struct node *n = parse_items(p, with_ns ? ITEMS_NS_TARGET : ITEMS_TARGET, false, end);
    make_target(p, n);
    return n;
}

/* ---- what follows a primary ----------------------------------------------------------------- */

static void call_fail(struct parser *p, struct jpos pos, bool ok)
{
    if (!ok)
        parse_fail(p, pos, "invalid syntax for function call expression");
}

static void add_kw(struct parser *p, struct call_args *a, struct tok *name, struct node *value)
{
    struct jstr *s = tok_str(p, name);
    for (size_t i = 0; i < a->n_kw; i++)
        if (jstr_eq(a->kw[i].name, s))
            parse_fail(p, name->pos, "keyword argument repeated: %.*s", (int)s->n, s->p);
    struct jkw *kw = jalloc(p->rt, a->n_kw + 1, sizeof *kw);
    if (a->n_kw)
        memcpy(kw, a->kw, a->n_kw * sizeof *kw);
    kw[a->n_kw++] = (struct jkw){s, value};
    a->kw = kw;
}

static struct call_args *parse_args(struct parser *p)
{
    struct call_args *a = jalloc(p->rt, 1, sizeof *a);
    struct jpos pos = tok_expect(p, T_LPAREN)->pos;
    for (bool first = true; tok_now(p)->kind != T_RPAREN; first = false) {
        if (!first) {
            tok_expect(p, T_COMMA);
            if (tok_now(p)->kind == T_RPAREN)
                break;
        }
        if (tok_skip(p, T_MUL)) {
            call_fail(p, pos, !a->dyn_args && !a->dyn_kwargs);
            a->dyn_args = parse_expr(p, true);
        } else if (tok_skip(p, T_POW)) {
            call_fail(p, pos, !a->dyn_kwargs);
            a->dyn_kwargs = parse_expr(p, true);
        } else if (tok_now(p)->kind == T_NAME && tok_next(p)->kind == T_ASSIGN) {
            call_fail(p, pos, !a->dyn_kwargs);
            struct tok *name = tok_take(p);
            tok_take(p);
            add_kw(p, a, name, parse_expr(p, true));
        } else {
            call_fail(p, pos, !a->dyn_args && !a->dyn_kwargs && !a->n_kw);
            nodes_add(p->rt, &a->pos, parse_expr(p, true));
        }
    }
    tok_expect(p, T_RPAREN);
    return a;
}

static struct node *parse_call(struct parser *p, struct node *base)
{
    struct node *n = node_new(p, N_CALL, tok_now(p)->pos);
    n->call.base = base;
    n->call.args = parse_args(p);
    return n;
}

/* Inside the brackets: an expression or a slice. */
static struct node *parse_subscribed(struct parser *p)
{
    struct jpos pos = tok_now(p)->pos;
    struct node *part[3] = {NULL, NULL, NULL};
    if (tok_now(p)->kind != T_COLON) {
        part[0] = parse_expr(p, true);
        if (tok_now(p)->kind != T_COLON)
            return part[0];
    }
    tok_take(p);
    for (int i = 1; i < 3; i++) {
        enum tok_kind k = tok_now(p)->kind;
        if (k != T_COLON && k != T_RBRACKET && k != T_COMMA)
            part[i] = parse_expr(p, true);
        if (i == 1 && !tok_skip(p, T_COLON))
            break;
    }
    struct node *n = node_new(p, N_SLICE, pos);
    n->e.a = part[0];
    n->e.b = part[1];
    n->e.c = part[2];
    return n;
}

static struct node *parse_brackets(struct parser *p, struct node *base, struct jpos pos)
{
    struct nodes list = {0};
    while (tok_now(p)->kind != T_RBRACKET) {
        if (list.n)
            tok_expect(p, T_COMMA);
        struct node *item = parse_subscribed(p);
        nodes_add(p->rt, &list, item);
        if (list.n > 1 && (item->kind == N_SLICE || list.v[0]->kind == N_SLICE))
            parse_fail(p, item->pos, "a slice cannot stand in a list of subscripts");
    }
    tok_take(p);
    struct node *index;
    if (list.n == 1) {
        index = list.v[0];
    } else {
        index = node_new(p, N_TUPLE, pos);
        index->list = list;
    }
    return make_pair(p, N_ITEM, pos, base, index);
}

static struct node *parse_subscript(struct parser *p, struct node *base)
{
    struct tok *t = tok_take(p);
    if (t->kind == T_LBRACKET)
        return parse_brackets(p, base, t->pos);
    struct tok *attr = tok_take(p);
    if (attr->kind == T_INT)
        return make_pair(p, N_ITEM, t->pos, base, make_const(p, attr->pos, attr->num));
    if (attr->kind != T_NAME)
        parse_fail(p, attr->pos, "expected name or number");
    struct node *n = node_new(p, N_ATTR, t->pos);
    n->attr.base = base;
    n->attr.name = tok_str(p, attr);
    (void)jstr_chars(n->attr.name);
    n->attr.attr = jattr_find(attr->p, attr->n);
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    for (;;) {
        enum tok_kind k = tok_now(p)->kind;
        if (k == T_DOT || k == T_LBRACKET)
            n = parse_subscript(p, n);
        else if (k == T_LPAREN)
            n = parse_call(p, n);
        else
            return n;
    }
}

static struct jstr *parse_dotted(struct parser *p)
{
    struct jstr *s = tok_str(p, tok_expect(p, T_NAME));
    while (tok_skip(p, T_DOT)) {
        s = jstr_cat(p->rt, s, jstr_view(p->rt, ".", 1));
        s = jstr_cat(p->rt, s, tok_str(p, tok_expect(p, T_NAME)));
    }
    return s;
}

struct node *parse_filters(struct parser *p, struct node *base, bool first_inline)
{
    while (first_inline || tok_now(p)->kind == T_PIPE) {
        if (!first_inline)
            tok_take(p);
        first_inline = false;
        struct node *n = node_new(p, N_FILTER, tok_now(p)->pos);
        n->call.name = parse_dotted(p);
        n->call.base = base;
        n->call.filter = jfilter_find(n->call.name->p, n->call.name->n);
        n->call.args =
            tok_now(p)->kind == T_LPAREN ? parse_args(p) : jalloc(p->rt, 1, sizeof *n->call.args);
        base = n;
    }
    return base;
}

static bool test_has_bare_arg(struct parser *p)
{
    struct tok *t = tok_now(p);
    switch (t->kind) {
    case T_NAME:
        return !tok_is(t, "else") && !tok_is(t, "or") && !tok_is(t, "and");
    case T_STRING:
    case T_INT:
    case T_FLOAT:
    case T_LBRACKET:
    case T_LBRACE:
        return true;
    default:
        return false;
    }
}

static struct node *parse_test(struct parser *p, struct node *base)
{
    struct jpos pos = tok_take(p)->pos;
    bool negated = tok_skip_name(p, "not");
    struct node *n = node_new(p, N_TEST, pos);
    n->call.name = parse_dotted(p);
    n->call.base = base;
    n->call.test = jtest_find(n->call.name->p, n->call.name->n);
    if (tok_now(p)->kind == T_LPAREN) {
        n->call.args = parse_args(p);
    } else {
        n->call.args = jalloc(p->rt, 1, sizeof *n->call.args);
        if (test_has_bare_arg(p)) {
            if (tok_is(tok_now(p), "is"))
                parse_fail(p, tok_now(p)->pos, "you cannot chain multiple tests with is");
            nodes_add(p->rt, &n->call.args->pos, parse_postfix(p, parse_primary(p, false)));
        }
    }
    return negated ? make_pair(p, N_NOT, pos, n, NULL) : n;
}

static struct node *parse_filter_expr(struct parser *p, struct node *n)
{
    for (;;) {
        struct tok *t = tok_now(p);
        if (t->kind == T_PIPE)
            n = parse_filters(p, n, false);
        else if (tok_is(t, "is"))
            n = parse_test(p, n);
        else if (t->kind == T_LPAREN)
            n = parse_call(p, n);
        else
            return n;
    }
}

/* ---- operators, from the tightest to the loosest -------------------------------------------- */

static struct node *parse_unary(struct parser *p, bool with_filter)
{
    jenter(p->rt);
    struct tok *t = tok_now(p);
    struct node *n;
    if (t->kind == T_SUB || t->kind == T_ADD) {
        tok_take(p);
        n = make_pair(p, t->kind == T_SUB ? N_NEG : N_POS, t->pos, parse_unary(p, false), NULL);
    } else {
        n = parse_primary(p, false);
    }
    n = parse_postfix(p, n);
    if (with_filter)
        n = parse_filter_expr(p, n);
    jleave(p->rt);
    return n;
}

static struct node *make_bin(struct parser *p, enum jop op, struct jpos pos, struct node *a,
                             struct node *b)
{
    struct node *n = make_pair(p, N_BIN, pos, a, b);
    n->op = (uint8_t)op;
    return n;
}

static struct node *parse_pow(struct parser *p)
{
    struct node *n = parse_unary(p, true);
    while (tok_now(p)->kind == T_POW) {
        struct jpos pos = tok_take(p)->pos;
        n = make_bin(p, JOP_POW, pos, n, parse_unary(p, true));
    }
    return n;
}

static struct node *parse_product(struct parser *p)
{
    struct node *n = parse_pow(p);
    for (;;) {
        enum tok_kind k = tok_now(p)->kind;
        if (k != T_MUL && k != T_DIV && k != T_FLOORDIV && k != T_MOD)
            return n;
        struct jpos pos = tok_take(p)->pos;
        enum jop op = k == T_MUL   ? JOP_MUL
                      : k == T_DIV ? JOP_DIV
                      : k == T_MOD ? JOP_MOD
                                   : JOP_FLOORDIV;
        n = make_bin(p, op, pos, n, parse_pow(p));
    }
}

static struct node *parse_concat(struct parser *p)
{
    struct node *first = parse_product(p);
    if (tok_now(p)->kind != T_TILDE)
        return first;
    struct node *n = node_new(p, N_CONCAT, tok_now(p)->pos);
    nodes_add(p->rt, &n->list, first);
    while (tok_skip(p, T_TILDE))
        nodes_add(p->rt, &n->list, parse_product(p));
    return n;
}

static struct node *parse_sum(struct parser *p)
{
    struct node *n = parse_concat(p);
    while (tok_now(p)->kind == T_ADD || tok_now(p)->kind == T_SUB) {
        struct tok *t = tok_take(p);
        n = make_bin(p, t->kind == T_ADD ? JOP_ADD : JOP_SUB, t->pos, n, parse_concat(p));
    }
    return n;
}

static bool take_comparison(struct parser *p, enum jcmp *op)
{
    struct tok *t = tok_now(p);
    if (t->kind == T_NAME) {
        bool negated = tok_is(t, "not");
        if (!tok_is(negated ? tok_next(p) : t, "in"))
            return false;
        if (negated)
            tok_take(p);
        *op = negated ? JCMP_NOTIN : JCMP_IN;
    } else if (t->kind >= T_EQ && t->kind <= T_LE) {
        static const enum jcmp ops[] = {JCMP_EQ, JCMP_NE, JCMP_GT, JCMP_GE, JCMP_LT, JCMP_LE};
        *op = ops[t->kind - T_EQ];
    } else {
        return false;
    }
    tok_take(p);
    return true;
}

static struct node *parse_compare(struct parser *p)
{
    struct node *first = parse_sum(p);
    struct node *n = NULL;
    uint8_t ops[64];
    enum jcmp op;
    for (;;) {
        struct jpos pos = tok_now(p)->pos;
        if (!take_comparison(p, &op))
            break;
        if (!n) {
            n = node_new(p, N_COMPARE, pos);
            n->cmp.first = first;
        }
        if (n->cmp.rest.n == sizeof ops)
            parse_fail(p, pos, "more than %zu comparisons in one chain", sizeof ops);
        ops[n->cmp.rest.n] = (uint8_t)op;
        nodes_add(p->rt, &n->cmp.rest, parse_sum(p));
    }
    if (!n)
        return first;
    n->cmp.ops = jalloc(p->rt, n->cmp.rest.n, 1);
    memcpy(n->cmp.ops, ops, n->cmp.rest.n);
    return n;
}

static struct node *parse_not(struct parser *p)
{
    struct tok *t = tok_now(p);
    if (!tok_skip_name(p, "not"))
        return parse_compare(p);
    jenter(p->rt);
    struct node *n = make_pair(p, N_NOT, t->pos, parse_not(p), NULL);
    jleave(p->rt);
    return n;
}

static struct node *parse_and(struct parser *p)
{
    struct node *n = parse_not(p);
    while (tok_is(tok_now(p), "and")) {
        struct jpos pos = tok_take(p)->pos;
        n = make_pair(p, N_AND, pos, n, parse_not(p));
    }
    return n;
}

static struct node *parse_or(struct parser *p)
{
    struct node *n = parse_and(p);
    while (tok_is(tok_now(p), "or")) {
        struct jpos pos = tok_take(p)->pos;
        n = make_pair(p, N_OR, pos, n, parse_and(p));
    }
    return n;
}

struct node *parse_expr(struct parser *p, bool with_cond)
{
    jenter(p->rt);
    struct node *n = parse_or(p);
    while (with_cond && tok_is(tok_now(p), "if")) {
        struct node *c = node_new(p, N_COND, tok_take(p)->pos);
        c->e.b = n;
        c->e.a = parse_or(p);
        if (tok_skip_name(p, "else"))
            c->e.c = parse_expr(p, true);
        n = c;
    }
    jleave(p->rt);
    return n;
}
