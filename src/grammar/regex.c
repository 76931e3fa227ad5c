/* Regular expressions: text to expression, expression to automaton.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/expr.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

enum {
    NEST_MAX = 100,     /* groups inside groups */
    REPEAT_MAX = 100000 /* the largest bound of {m,n} */
};

struct reader {
    struct work *w;
    const char *s;
    size_t n, i;
    int depth;
    bool fold;    /* (?i) */
    bool dot_all; /* (?s) */
};

static struct expr *read_alternatives(struct reader *r);

static bool peek(const struct reader *r, const char *text)
{
    size_t n = strlen(text);
    return n <= r->n - r->i && memcmp(r->s + r->i, text, n) == 0;
}

static bool take(struct reader *r, const char *text)
{
    if (!peek(r, text))
        return false;
    r->i += strlen(text);
    return true;
}

static bool next_char(struct reader *r, uint32_t *c)
{
    size_t len = utf8_take(r->s + r->i, r->n - r->i, c);
    if (len == 0) {
        work_refuse(r->w, r->i < r->n ? "invalid UTF-8 in a pattern" : "a pattern ends too early");
        return false;
    }
    r->i += len;
    return true;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static bool take_hex(struct reader *r, int digits, uint32_t *c)
{
    uint32_t v = 0;
    for (int k = 0; k < digits; k++, r->i++) {
        int h = r->i < r->n ? hex_value(r->s[r->i]) : -1;
        if (h < 0) {
            work_refuse(r->w, "a pattern has an escape without its %d hex digits", digits);
            return false;
        }
        v = v * 16 + (uint32_t)h;
    }
    *c = v;
    return true;
}

/* \uXXXX, a pair of them, or \u{X...}: after the u. */
static bool take_unicode(struct reader *r, uint32_t *c)
{
    uint32_t low;
    if (take(r, "{")) {
        uint32_t v = 0;
        int k = 0;
        for (; r->i < r->n && hex_value(r->s[r->i]) >= 0 && k < 8; k++, r->i++)
            v = v * 16 + (uint32_t)hex_value(r->s[r->i]);
        if (k == 0 || v > CODE_POINT_MAX || !take(r, "}")) {
            work_refuse(r->w, "a pattern has a bad \\u{...}");
            return false;
        }
        *c = v;
        return true;
    }
    if (!take_hex(r, 4, c))
        return false;
    if (*c >= 0xD800 && *c < 0xDC00 && take(r, "\\u")) {
        if (!take_hex(r, 4, &low))
            return false;
        *c = 0x10000 + ((*c - 0xD800) << 10) + ((low - 0xDC00) & 0x3FF);
    }
    return true;
}

/* ---- classes --------------------------------------------------------------------------------- */

static const struct crange digits[] = {{'0', '9'}};
static const struct crange words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const struct crange spaces[] = {{'\t', '\r'}, {' ', ' '}};
/* What either ECMA-262 or Python calls a space: \S excludes all, \s includes the common ones. */
static const struct crange any_spaces[] = {{'\t', '\r'},     {0x1C, ' '},      {0x85, 0x85},
                                           {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
                                           {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                           {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};

static void add_ranges(struct work *w, struct cset *s, const struct crange *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        cset_add(w, s, r[i].lo, r[i].hi);
}
#define ADD_RANGES(w, s, r) add_ranges((w), (s), (r), sizeof(r) / sizeof *(r))

/* \d and its like; false: c is not one. */
static bool named_class(struct work *w, char c, struct cset *out)
{
    struct cset s = {0};
    switch (c) {
    case 'd':
    case 'D':
        ADD_RANGES(w, &s, digits);
        break;
    case 'w':
    case 'W':
        ADD_RANGES(w, &s, words);
        break;
    case 's':
        ADD_RANGES(w, &s, spaces);
        break;
    case 'S':
        ADD_RANGES(w, &s, any_spaces);
        break;
    default:
        return false;
    }
    cset_normalize(&s);
    if (c < 'a')
        cset_invert(w, &s);
    cset_add_set(w, out, &s);
    return true;
}

static bool in_category(utf8proc_category_t cat, const char *name)
{
    static const char *const names[] = {"Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                        "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
                                        "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
    const char *own = names[cat];
    return own[0] == name[0] && (name[1] == 0 || own[1] == name[1]);
}

/* \p{..}: general categories, by their short names and the common long ones. */
static bool property_class(struct reader *r, bool negated, struct cset *out)
{
    static const char *const longer[][2] = {
        {"Letter", "L"}, {"Uppercase_Letter", "Lu"}, {"Lowercase_Letter", "Ll"},
        {"Number", "N"}, {"Decimal_Number", "Nd"},   {"Punctuation", "P"},
        {"Symbol", "S"}, {"Separator", "Z"},         {"Mark", "M"},
        {"digit", "Nd"}};
    char name[24] = {0};
    size_t k = 0;
    struct cset s = {0};
    bool known = take(r, "{");
    while (known && r->i < r->n && r->s[r->i] != '}' && k < sizeof name - 1)
        name[k++] = r->s[r->i++];
    known = known && take(r, "}") && k > 0;
    for (size_t i = 0; i < sizeof longer / sizeof *longer; i++)
        if (strcmp(name, longer[i][0]) == 0)
            snprintf(name, sizeof name, "%s", longer[i][1]);
    if (!known || strlen(name) > 2 || !memchr("LMNPSZC", name[0], 7)) {
        work_refuse(r->w, "\\p{%s} in a pattern: only general categories are supported", name);
        return false;
    }
    if (!work_spend(r->w, CODE_POINT_MAX))
        return false;
    for (uint32_t c = 0, lo = 0; c <= CODE_POINT_MAX + 1; c++) {
        bool in = c <= CODE_POINT_MAX && !(c >= 0xD800 && c <= 0xDFFF) &&
                  in_category(utf8proc_category((utf8proc_int32_t)c), name);
        if (in)
            continue;
        if (lo < c)
            cset_add(r->w, &s, lo, c - 1);
        lo = c + 1;
    }
    cset_normalize(&s);
    if (negated)
        cset_invert(r->w, &s);
    cset_add_set(r->w, out, &s);
    return true;
}

/* After a backslash: one character, or (single false) a class of them. */
static bool read_escape(struct reader *r, struct cset *set, uint32_t *c, bool *single)
{
    static const char *names = "nrtfv0ae", *values = "\n\r\t\f\v\0\a\033";
    *single = true;
    if (r->i >= r->n) {
        work_refuse(r->w, "a pattern ends with a backslash");
        return false;
    }
    char e = r->s[r->i];
    const char *at = e ? strchr(names, e) : NULL;
    if (named_class(r->w, e, set)) {
        r->i++;
        *single = false;
        return !r->w->st;
    }
    if (at) {
        *c = (unsigned char)values[at - names];
        r->i++;
        return true;
    }
    if (e == 'x') {
        r->i++;
        return take_hex(r, 2, c);
    }
    if (e == 'u') {
        r->i++;
        return take_unicode(r, c);
    }
    if (e == 'p' || e == 'P') {
        r->i++;
        *single = false;
        return property_class(r, e == 'P', set);
    }
    if (e == 'c' && r->i + 1 < r->n) {
        *c = (unsigned char)r->s[r->i + 1] & 31;
        r->i += 2;
        return true;
    }
    if ((e >= 'a' && e <= 'z') || (e >= 'A' && e <= 'Z') || (e >= '1' && e <= '9')) {
        const char *why = e >= '1' && e <= '9'      ? "a back reference"
                          : e == 'b' || e == 'B'    ? "a word boundary"
                          : strchr("AzZGkKRXQE", e) ? "an assertion or reference"
                                                    : "an unknown escape";
        work_refuse(r->w, "\\%c in a pattern is %s, which is not supported", e, why);
        return false;
    }
    return next_char(r, c);
}

static bool read_class(struct reader *r, struct cset *out)
{
    bool negated = take(r, "^");
    struct cset s = {0};
    for (;;) {
        uint32_t lo, hi;
        bool single = true, high_single = true;
        if (r->i >= r->n) {
            work_refuse(r->w, "a pattern has a [ without its ]");
            return false;
        }
        if (take(r, "]")) /* at once: ECMA's empty class */
            break;
        if (peek(r, "[:")) {
            work_refuse(r->w, "a POSIX class [:...:] in a pattern is not supported");
            return false;
        }
        if (take(r, "\\")) {
            if (peek(r, "b")) {
                r->i++;
                lo = '\b';
            } else if (!read_escape(r, &s, &lo, &single)) {
                return false;
            }
        } else if (!next_char(r, &lo)) {
            return false;
        }
        if (!single)
            continue;
        hi = lo;
        if (peek(r, "-") && r->i + 1 < r->n && r->s[r->i + 1] != ']') {
            r->i++;
            if (take(r, "\\")) {
                if (!read_escape(r, &s, &hi, &high_single))
                    return false;
            } else if (!next_char(r, &hi)) {
                return false;
            }
            if (!high_single) { /* [a-\d]: a, the hyphen and the digits */
                cset_add(r->w, &s, lo, lo);
                cset_add(r->w, &s, '-', '-');
                continue;
            }
            if (hi < lo) {
                work_refuse(r->w, "a pattern has a range that runs backwards");
                return false;
            }
        }
        cset_add(r->w, &s, lo, hi);
    }
    cset_normalize(&s);
    if (r->fold)
        cset_fold(r->w, &s);
    if (negated)
        cset_invert(r->w, &s);
    *out = s;
    return !r->w->st;
}

bool regex_class(struct work *w, const char *s, size_t n, size_t *i, struct cset *out)
{
    struct reader r = {.w = w, .s = s, .n = n, .i = *i};
    bool ok = read_class(&r, out);
    *i = r.i;
    return ok;
}

/* ---- expressions ----------------------------------------------------------------------------- */

static struct expr *one_of(struct reader *r, struct cset *s)
{
    struct expr *e = expr_new(r->w, EXPR_SET);
    cset_normalize(s);
    if (e)
        e->set = *s;
    return e;
}

static struct expr *one_char(struct reader *r, uint32_t c)
{
    struct cset s = {0};
    cset_add(r->w, &s, c, c);
    if (r->fold)
        cset_fold(r->w, &s);
    return one_of(r, &s);
}

static struct expr *any_char(struct reader *r)
{
    struct cset s = {0};
    if (!r->dot_all) {
        cset_add(r->w, &s, '\n', '\n');
        cset_add(r->w, &s, '\r', '\r');
        cset_add(r->w, &s, 0x2028, 0x2029);
    }
    cset_invert(r->w, &s);
    return one_of(r, &s);
}

/* (?flags) or (?flags: after the question mark. whole: the rest of the group has them. */
static bool read_flags(struct reader *r, bool *whole)
{
    bool on = true;
    for (; r->i < r->n; r->i++) {
        char c = r->s[r->i];
        if (c == 'i')
            r->fold = on;
        else if (c == 's')
            r->dot_all = on;
        else if (c == '-')
            on = false;
        else if (c == ')' || c == ':')
            break;
        else if (c != 'u' && c != 'a') {
            work_refuse(r->w, "(?%c in a pattern is not supported", c);
            return false;
        }
    }
    if (r->i >= r->n) {
        work_refuse(r->w, "a pattern has a ( without its )");
        return false;
    }
    *whole = r->s[r->i++] == ')';
    return true;
}

/* Begins with `(`, which is taken. */
static struct expr *read_group(struct reader *r)
{
    bool fold = r->fold, dot_all = r->dot_all, whole = false;
    if (take(r, "?=") || take(r, "?!") || take(r, "?<=") || take(r, "?<!")) {
        work_refuse(r->w, "look-around in a pattern is not supported");
        return NULL;
    }
    if (take(r, "?>") || peek(r, "?P=") || peek(r, "?(") || peek(r, "?R")) {
        work_refuse(r->w,
                    "atomic groups, conditions and references in a pattern are not supported");
        return NULL;
    }
    if (take(r, "?P<") || take(r, "?<")) {
        while (r->i < r->n && r->s[r->i] != '>')
            r->i++;
        if (!take(r, ">"))
            work_refuse(r->w, "a pattern has a group name without its >");
    } else if (take(r, "?") && !read_flags(r, &whole)) {
        return NULL;
    }
    if (whole)
        return expr_new(r->w, EXPR_EMPTY);
    struct expr *e = read_alternatives(r);
    r->fold = fold;
    r->dot_all = dot_all;
    if (!take(r, ")"))
        work_refuse(r->w, "a pattern has a ( without its )");
    return e;
}

static struct expr *read_atom(struct reader *r)
{
    struct cset s = {0};
    uint32_t c;
    bool single;
    if (take(r, "("))
        return read_group(r);
    if (take(r, "["))
        return read_class(r, &s) ? one_of(r, &s) : NULL;
    if (take(r, "."))
        return any_char(r);
    if (take(r, "^"))
        return expr_new(r->w, EXPR_BEGIN);
    if (take(r, "$"))
        return expr_new(r->w, EXPR_END);
    if (take(r, "\\A"))
        return expr_new(r->w, EXPR_BEGIN);
    if (take(r, "\\Z") || take(r, "\\z"))
        return expr_new(r->w, EXPR_END);
    if (peek(r, "*") || peek(r, "+") || peek(r, "?")) {
        work_refuse(r->w, "a pattern repeats nothing, at '%c'", r->s[r->i]);
        return NULL;
    }
    if (take(r, "\\")) {
        if (!read_escape(r, &s, &c, &single))
            return NULL;
        return single ? one_char(r, c) : one_of(r, &s);
    }
    return next_char(r, &c) ? one_char(r, c) : NULL;
}

/* {m}, {m,}, {,n}, {m,n}; false: these characters mean themselves. */
static bool read_bounds(struct reader *r, int *min, int *max)
{
    size_t i = r->i + 1;
    long v[2] = {-1, -1};
    int k = 0;
    for (; i < r->n && r->s[i] != '}'; i++) {
        if (r->s[i] == ',' && k == 0)
            k = 1;
        else if (r->s[i] >= '0' && r->s[i] <= '9')
            v[k] = (v[k] < 0 ? 0 : v[k] > REPEAT_MAX ? v[k] : v[k] * 10) + (r->s[i] - '0');
        else
            return false;
    }
    if (i >= r->n || (v[0] < 0 && v[1] < 0))
        return false;
    if (k == 0)
        v[1] = v[0];
    if (v[0] > REPEAT_MAX || v[1] > REPEAT_MAX) {
        work_refuse(r->w, "a pattern repeats more than %d times", REPEAT_MAX);
        return true;
    }
    if (v[0] < 0)
        v[0] = 0;
    if (v[1] >= 0 && v[1] < v[0])
        work_refuse(r->w, "a pattern has {%ld,%ld}, which runs backwards", v[0], v[1]);
    r->i = i + 1;
    *min = (int)v[0];
    *max = (int)v[1];
    return true;
}

static struct expr *read_repeated(struct reader *r)
{
    struct expr *e = read_atom(r);
    while (e && !r->w->st) {
        int min = 0, max = -1;
        if (take(r, "+"))
            min = 1;
        else if (take(r, "?"))
            max = 1;
        else if (!take(r, "*") && !(peek(r, "{") && read_bounds(r, &min, &max)))
            break;
        if (peek(r, "+")) {
            work_refuse(r->w, "possessive repetition in a pattern is not supported");
            break;
        }
        (void)take(r, "?"); /* lazy: the same strings */
        e = expr_rep(r->w, e, min, max);
    }
    return e;
}

static struct expr *read_sequence(struct reader *r)
{
    struct expr *e = expr_new(r->w, EXPR_CAT);
    const struct expr *last = NULL;
    while (!r->w->st && r->i < r->n && !peek(r, "|") && !peek(r, ")")) {
        struct expr *child = read_repeated(r);
        bool anchor = child && (child->kind == EXPR_BEGIN || child->kind == EXPR_END);
        if (!(anchor && last && last->kind == child->kind)) /* ^^ is ^ */
            expr_add(r->w, e, child);
        last = child;
    }
    return e;
}

static struct expr *read_alternatives(struct reader *r)
{
    struct expr *alt = expr_new(r->w, EXPR_ALT);
    if (++r->depth > NEST_MAX)
        work_refuse(r->w, "a pattern nests more than %d groups", NEST_MAX);
    if (!r->w->st) {
        do
            expr_add(r->w, alt, read_sequence(r));
        while (!r->w->st && take(r, "|"));
    }
    r->depth--;
    return alt && alt->n == 1 ? alt->child[0] : alt;
}

struct expr *regex_parse(struct work *w, const char *s, size_t n)
{
    struct reader r = {.w = w, .s = s, .n = n};
    struct expr *e = read_alternatives(&r);
    if (!w->st && r.i < n)
        work_refuse(w, "a pattern has a ) without its (");
    return w->st ? NULL : e;
}

/* ---- automata -------------------------------------------------------------------------------- */

/* Every string is read as if it stood between two marks; ^ and $ consume them. Here the marks go:
 * the machine begins after the first, and ends where the second would come. */
static struct fsm *without_marks(struct work *w, const struct fsm *m)
{
    struct nfa a;
    int start = -1;
    nfa_init(&a, w);
    for (int i = 0; i <= m->n; i++)
        nfa_state(&a);
    for (int i = 0; i < m->n && !w->st; i++)
        for (int k = 0; k < m->s[i].n_e; k++) {
            const struct fedge *e = &m->s[i].e[k];
            if (e->lo == MARK_BEGIN)
                start = i == 0 ? e->to : start;
            else if (e->lo == MARK_END)
                a.final[i] |= m->s[e->to].final;
            else
                nfa_range(&a, i, e->lo, e->hi, e->to);
        }
    return w->st ? NULL : fsm_minimize(w, fsm_from_nfa(&a, start < 0 ? m->n : start));
}

static void any_loop(struct nfa *a, int q)
{
    nfa_range(a, q, 0, 0xD7FF, q);
    nfa_range(a, q, 0xE000, CODE_POINT_MAX, q);
}

struct fsm *regex_fsm(struct work *w, const char *s, size_t n, bool search)
{
    struct expr *e = regex_parse(w, s, n);
    struct nfa a;
    nfa_init(&a, w);
    int start = nfa_state(&a), before = nfa_state(&a), after = nfa_state(&a), end = nfa_state(&a);
    int own = nfa_state(&a);
    if (w->st)
        return NULL;
    nfa_range(&a, start, MARK_BEGIN, MARK_BEGIN, before);
    nfa_eps(&a, start, own);
    nfa_eps(&a, before, own);
    int last = expr_emit(&a, e, own, true);
    if (w->st)
        return NULL;
    nfa_eps(&a, last, after);
    nfa_range(&a, after, MARK_END, MARK_END, end);
    nfa_eps(&a, last, end);
    if (search) {
        any_loop(&a, before);
        any_loop(&a, after);
    }
    a.final[end] = true;
    struct fsm *m = fsm_from_nfa(&a, start);
    return m ? without_marks(w, m) : NULL;
}
