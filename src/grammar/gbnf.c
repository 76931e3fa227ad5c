/* GBNF, as llama.cpp and XGrammar write grammars: rules `name ::= ...`, the first one read is root.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/expr.h"

#include <string.h>

enum { NEST_MAX = 100, REPEAT_MAX = 100000 };

struct gbnf {
    struct work *w;
    struct rules *g;
    struct names names;
    const char *s;
    size_t n, i;
    int depth, line;
};

static struct expr *read_alternatives(struct gbnf *r);

static void refuse(struct gbnf *r, const char *what)
{
    work_refuse(r->w, "line %d: %s", r->line, what);
}

static void skip_space(struct gbnf *r)
{
    for (; r->i < r->n; r->i++) {
        if (r->s[r->i] == '#')
            while (r->i + 1 < r->n && r->s[r->i + 1] != '\n')
                r->i++;
        else if (r->s[r->i] == '\n')
            r->line++;
        else if (r->s[r->i] != ' ' && r->s[r->i] != '\t' && r->s[r->i] != '\r')
            break;
    }
}

static bool at(const struct gbnf *r, char c)
{
    return r->i < r->n && r->s[r->i] == c;
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
}

static size_t name_length(const struct gbnf *r, size_t i)
{
    size_t n = 0;
    while (i + n < r->n && is_name_char(r->s[i + n]))
        n++;
    return n;
}

/* Does a new rule begin here? Then the one before it is over. */
static bool at_definition(const struct gbnf *r)
{
    size_t n = name_length(r, r->i), i = r->i + n;
    while (i < r->n && (r->s[i] == ' ' || r->s[i] == '\t'))
        i++;
    return n > 0 && r->n - i >= 3 && memcmp(r->s + i, "::=", 3) == 0;
}

static bool hex_escape(struct gbnf *r, int digits, uint32_t *c)
{
    *c = 0;
    for (int k = 0; k < digits; k++, r->i++) {
        char h = r->i < r->n ? r->s[r->i] : 0;
        int v = h >= '0' && h <= '9'   ? h - '0'
                : h >= 'a' && h <= 'f' ? h - 'a' + 10
                : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                       : -1;
        if (v < 0) {
            refuse(r, "an escape without its hex digits");
            return false;
        }
        *c = *c << 4 | (uint32_t)v;
    }
    return true;
}

/* One character of a literal or a class. */
static bool read_char(struct gbnf *r, uint32_t *c)
{
    static const char *names = "nrtfv0abe", *values = "\n\r\t\f\v\0\a\b\033";
    if (!at(r, '\\')) {
        size_t len = utf8_take(r->s + r->i, r->n - r->i, c);
        if (len == 0)
            refuse(r, r->i < r->n ? "invalid UTF-8" : "the text ends inside a literal or class");
        r->i += len;
        return len > 0;
    }
    char e = ++r->i < r->n ? r->s[r->i] : 0;
    const char *p = e ? strchr(names, e) : NULL;
    if (!e) {
        refuse(r, "the text ends with a backslash");
        return false;
    }
    r->i++;
    if (p)
        *c = (unsigned char)values[p - names];
    else if (e == 'x')
        return hex_escape(r, 2, c);
    else if (e == 'u')
        return hex_escape(r, 4, c);
    else if (e == 'U')
        return hex_escape(r, 8, c);
    else
        *c = (unsigned char)e;
    return true;
}

static struct expr *set_expr(struct gbnf *r, struct cset *s)
{
    struct expr *e = expr_new(r->w, EXPR_SET);
    cset_normalize(s);
    if (e)
        e->set = *s;
    return e;
}

static struct expr *read_literal(struct gbnf *r)
{
    char quote = r->s[r->i++];
    struct expr *cat = expr_new(r->w, EXPR_CAT);
    while (!r->w->st && !at(r, quote)) {
        struct cset s = {0};
        uint32_t c;
        if (!read_char(r, &c))
            return NULL;
        cset_add(r->w, &s, c, c);
        expr_add(r->w, cat, set_expr(r, &s));
    }
    r->i++;
    return cat;
}

static struct expr *read_class(struct gbnf *r)
{
    struct cset s = {0};
    r->i++;
    bool negated = at(r, '^');
    r->i += negated;
    while (!r->w->st && !at(r, ']')) {
        uint32_t lo, hi;
        if (!read_char(r, &lo))
            return NULL;
        hi = lo;
        if (at(r, '-') && r->i + 1 < r->n && r->s[r->i + 1] != ']') {
            r->i++;
            if (!read_char(r, &hi))
                return NULL;
        }
        if (hi < lo)
            refuse(r, "a class has a range that runs backwards");
        cset_add(r->w, &s, lo, hi);
    }
    r->i++;
    cset_normalize(&s);
    if (negated)
        cset_invert(r->w, &s);
    return set_expr(r, &s);
}

static struct expr *read_item(struct gbnf *r)
{
    struct cset all = {0};
    if (at(r, '"') || at(r, '\''))
        return read_literal(r);
    if (at(r, '['))
        return read_class(r);
    if (at(r, '.')) {
        r->i++;
        cset_invert(r->w, &all);
        return set_expr(r, &all);
    }
    if (at(r, '(')) {
        r->i++;
        if (at(r, '=')) {
            refuse(r, "lookahead (= ...) is not supported");
            return NULL;
        }
        struct expr *e = read_alternatives(r);
        skip_space(r);
        if (!at(r, ')'))
            refuse(r, "a ( without its )");
        r->i++;
        return e;
    }
    size_t n = name_length(r, r->i);
    if (n == 0) {
        char text[64] = "unexpected ' '";
        text[12] = r->i < r->n && r->s[r->i] >= ' ' ? r->s[r->i] : '?';
        refuse(r, text);
        return NULL;
    }
    int rule = names_rule(r->g, &r->names, r->s + r->i, n);
    r->i += n;
    return expr_call(r->w, rule);
}

static bool read_count(struct gbnf *r, int *v)
{
    bool any = false;
    *v = 0;
    skip_space(r);
    for (; r->i < r->n && r->s[r->i] >= '0' && r->s[r->i] <= '9'; r->i++, any = true)
        *v = *v > REPEAT_MAX ? *v : *v * 10 + (r->s[r->i] - '0');
    if (*v > REPEAT_MAX)
        refuse(r, "a repetition of more than 100000");
    skip_space(r);
    return any;
}

static struct expr *read_bounds(struct gbnf *r, struct expr *e)
{
    int min, max;
    r->i++;
    bool has_min = read_count(r, &min), comma = at(r, ',');
    max = comma ? -1 : min;
    if (comma) {
        r->i++;
        if (!read_count(r, &max))
            max = -1;
    } else if (!has_min) {
        refuse(r, "a repetition without its numbers");
    }
    if (!at(r, '}'))
        refuse(r, "a { without its }");
    if (max >= 0 && max < min)
        refuse(r, "a repetition that runs backwards");
    r->i++;
    return rules_repeat(r->g, e, min, max);
}

static struct expr *read_sequence(struct gbnf *r)
{
    struct expr *cat = expr_new(r->w, EXPR_CAT);
    for (;;) {
        skip_space(r);
        if (r->w->st || r->i >= r->n || at(r, '|') || at(r, ')') || at_definition(r))
            return cat;
        struct expr *e = read_item(r);
        for (skip_space(r); e && !r->w->st && r->i < r->n; skip_space(r)) {
            if (at(r, '*'))
                e = expr_rep(r->w, e, 0, -1);
            else if (at(r, '+'))
                e = expr_rep(r->w, e, 1, -1);
            else if (at(r, '?'))
                e = expr_rep(r->w, e, 0, 1);
            else if (at(r, '{')) {
                e = read_bounds(r, e);
                continue;
            } else
                break;
            r->i++;
        }
        expr_add(r->w, cat, e);
    }
}

static struct expr *read_alternatives(struct gbnf *r)
{
    struct expr *alt = expr_new(r->w, EXPR_ALT);
    if (++r->depth > NEST_MAX)
        refuse(r, "more than 100 groups inside one another");
    while (!r->w->st) {
        expr_add(r->w, alt, read_sequence(r));
        if (!at(r, '|'))
            break;
        r->i++;
    }
    r->depth--;
    return alt && alt->n == 1 ? alt->child[0] : alt;
}

int gbnf_read(struct rules *g, const char *text, size_t n)
{
    struct gbnf r = {.w = g->w, .g = g, .s = text, .n = n, .line = 1};
    for (skip_space(&r); r.i < n && !g->w->st; skip_space(&r)) {
        if (!at_definition(&r)) {
            refuse(&r, "expected a rule, as in: root ::= \"yes\" | \"no\"");
            break;
        }
        size_t len = name_length(&r, r.i);
        int rule = names_rule(g, &r.names, text + r.i, len);
        if (g->w->st)
            return 0;
        if (g->r[rule].defined)
            work_refuse(g->w, "line %d: rule '%s' is defined twice", r.line, g->r[rule].name);
        r.i += len;
        while (r.s[r.i] != '=')
            r.i++;
        r.i++;
        rules_define(g, rule, read_alternatives(&r));
        if (at(&r, ')'))
            refuse(&r, "a ) without its (");
    }
    int root = names_find(&r.names, "root", 4);
    if (root < 0)
        work_refuse(g->w, "there is no rule named root");
    return g->w->st ? 0 : root;
}
