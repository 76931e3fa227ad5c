/* Lark's EBNF: rules in lower case, terminals in upper case, %ignore and %import common.NAME.
 *
 * A rule's text may be cut into terminals in any way that fits (there is no lexer that would prefer
 * the longest). What %ignore names may stand before and after each terminal.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/expr.h"

#include <string.h>

enum { NEST_MAX = 100, REPEAT_MAX = 100000, IGNORES_MAX = 32 };

struct lark {
    struct work *w;
    struct rules *g;
    struct names names;
    const char *s;
    size_t n, i;
    int depth, line;
    bool in_terminal; /* the definition being read is a terminal's */
    int ignore;       /* rule of what may stand between terminals, -1: nothing is ignored */
    struct expr *ignored[IGNORES_MAX];
    int n_ignored;
};

/* Terminals of Lark's `common`, in our own words. */
static const struct {
    const char *name, *regex;
} common[] = {
    {"DIGIT", "[0-9]"},
    {"HEXDIGIT", "[0-9a-fA-F]"},
    {"INT", "[0-9]+"},
    {"SIGNED_INT", "[+-]?[0-9]+"},
    {"DECIMAL", "[0-9]+\\.[0-9]*|\\.[0-9]+"},
    {"FLOAT", "[0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?"},
    {"SIGNED_FLOAT", "[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?)"},
    {"NUMBER", "[0-9]+|[0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?"},
    {"SIGNED_NUMBER",
     "[+-]?([0-9]+|[0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]+)?)"},
    {"ESCAPED_STRING", "\"([^\"\\\\\\n]|\\\\.)*\""},
    {"LCASE_LETTER", "[a-z]"},
    {"UCASE_LETTER", "[A-Z]"},
    {"LETTER", "[a-zA-Z]"},
    {"WORD", "[a-zA-Z]+"},
    {"CNAME", "[a-zA-Z_][a-zA-Z0-9_]*"},
    {"WS_INLINE", "[ \\t]+"},
    {"WS", "[ \\t\\f\\r\\n]+"},
    {"CR", "\\r"},
    {"LF", "\\n"},
    {"NEWLINE", "(\\r?\\n)+"},
    {"SH_COMMENT", "#[^\\n]*"},
    {"CPP_COMMENT", "//[^\\n]*"},
    {"SQL_COMMENT", "--[^\\n]*"},
};

static struct expr *read_alternatives(struct lark *r);

static void refuse(struct lark *r, const char *what)
{
    work_refuse(r->w, "line %d: %s", r->line, what);
}

static bool at(const struct lark *r, const char *text)
{
    size_t n = strlen(text);
    return n <= r->n - r->i && memcmp(r->s + r->i, text, n) == 0;
}

static bool take(struct lark *r, const char *text)
{
    if (!at(r, text))
        return false;
    r->i += strlen(text);
    return true;
}

/* Blanks and comments; line ends too if asked. */
static void skip(struct lark *r, bool lines)
{
    for (; r->i < r->n; r->i++) {
        char c = r->s[r->i];
        if (at(r, "//") || c == '#')
            while (r->i + 1 < r->n && r->s[r->i + 1] != '\n')
                r->i++;
        else if (c == '\n' && lines)
            r->line++;
        else if (c != ' ' && c != '\t' && c != '\r')
            break;
    }
}

static size_t name_length(const struct lark *r)
{
    size_t n = 0;
    for (; r->i + n < r->n; n++) {
        char c = r->s[r->i + n];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
              (n && c >= '0' && c <= '9')))
            break;
    }
    return n;
}

static bool is_terminal_name(const char *s, size_t n)
{
    while (n && *s == '_') {
        s++;
        n--;
    }
    return n && *s >= 'A' && *s <= 'Z';
}

/* After a line end: does the definition go on? It does with `|`, or inside a group. */
static bool continues(struct lark *r)
{
    size_t i = r->i;
    int line = r->line;
    skip(r, true);
    if (at(r, "|") || r->depth > 1)
        return true;
    r->i = i;
    r->line = line;
    return false;
}

/* ---- literals -------------------------------------------------------------------------------- */

/* A string's or a regular expression's text up to the closing mark, escapes untouched. */
static bool take_quoted(struct lark *r, char mark, const char **text, size_t *n)
{
    size_t from = ++r->i;
    while (r->i < r->n && r->s[r->i] != mark && r->s[r->i] != '\n')
        r->i += r->s[r->i] == '\\' && r->i + 1 < r->n ? 2 : 1;
    if (r->i >= r->n || r->s[r->i] != mark) {
        refuse(r, "a string or regular expression without its end");
        return false;
    }
    *text = r->s + from;
    *n = r->i - from;
    r->i++;
    return true;
}

/* As a regular expression: a string's characters lose their special meaning, its escapes stay. */
static struct expr *literal(struct lark *r, const char *text, size_t n, bool regex, bool fold,
                            bool dot_all)
{
    char *p = work_alloc(r->w, 2 * n + 8, 1);
    size_t k = 0;
    if (!p)
        return NULL;
    if (fold || dot_all) {
        memcpy(p, fold && dot_all ? "(?is)" : fold ? "(?i)" : "(?s)", 5);
        k = fold && dot_all ? 5 : 4;
    }
    for (size_t i = 0; i < n; i++) {
        if (!regex && strchr(".^$*+?()[]{}|/-", text[i]) && text[i])
            p[k++] = '\\';
        p[k++] = text[i];
        if (text[i] == '\\' && i + 1 < n)
            p[k++] = text[++i];
    }
    const struct fsm *m = regex_fsm(r->w, p, k, false);
    return expr_fsm(r->w, fsm_to_bytes(r->w, m, false));
}

/* "a".."z": after the first string. */
static struct expr *read_range(struct lark *r, const char *lo_text, size_t lo_n)
{
    uint32_t lo = 0, hi = 0;
    const char *text;
    size_t n;
    skip(r, false);
    if (!at(r, "\"") || !take_quoted(r, '"', &text, &n)) {
        refuse(r, "a range needs two strings");
        return NULL;
    }
    if (utf8_take(lo_text, lo_n, &lo) != lo_n || utf8_take(text, n, &hi) != n || hi < lo) {
        refuse(r, "a range needs two single characters, the lower one first");
        return NULL;
    }
    struct expr *e = expr_new(r->w, EXPR_SET);
    if (e)
        cset_add(r->w, &e->set, lo, hi);
    return e;
}

/* What may be ignored after a terminal in a rule. */
static struct expr *as_terminal(struct lark *r, struct expr *e)
{
    if (r->in_terminal || r->ignore < 0 || !e)
        return e;
    return expr_cat(r->w, e, expr_call(r->w, r->ignore), (struct expr *)NULL);
}

static struct expr *read_literal(struct lark *r, bool regex)
{
    const char *text;
    size_t n;
    if (!take_quoted(r, regex ? '/' : '"', &text, &n))
        return NULL;
    if (!regex && take(r, ".."))
        return as_terminal(r, read_range(r, text, n));
    bool fold = false, dot_all = false;
    for (; r->i < r->n; r->i++) {
        char c = r->s[r->i];
        if (c == 'i')
            fold = true;
        else if (regex && c == 's')
            dot_all = true;
        else if (regex && (c == 'm' || c == 'x' || c == 'l')) {
            refuse(r, "regular expression flags m, x and l are not supported");
            return NULL;
        } else if (!(regex && c == 'u'))
            break;
    }
    return as_terminal(r, literal(r, text, n, regex, fold, dot_all));
}

/* ---- expressions ----------------------------------------------------------------------------- */

static struct expr *read_group(struct lark *r, const char *close)
{
    struct expr *e = read_alternatives(r);
    skip(r, true);
    if (!take(r, close))
        refuse(r, *close == ')' ? "a ( without its )" : "a [ without its ]");
    return e;
}

static struct expr *read_atom(struct lark *r)
{
    if (take(r, "("))
        return read_group(r, ")");
    if (take(r, "[")) {
        struct expr *e = read_group(r, "]");
        return e ? expr_rep(r->w, e, 0, 1) : NULL;
    }
    if (at(r, "\""))
        return read_literal(r, false);
    if (at(r, "/"))
        return read_literal(r, true);
    size_t n = name_length(r);
    if (n == 0) {
        char text[32] = "unexpected ' '";
        text[12] = r->i < r->n && r->s[r->i] >= ' ' ? r->s[r->i] : '?';
        refuse(r, text);
        return NULL;
    }
    const char *name = r->s + r->i;
    struct expr *e = expr_call(r->w, names_rule(r->g, &r->names, name, n));
    r->i += n;
    if (at(r, "{")) {
        refuse(r, "templates are not supported");
        return NULL;
    }
    return is_terminal_name(name, n) ? as_terminal(r, e) : e;
}

static int read_int(struct lark *r)
{
    int v = -1;
    for (; r->i < r->n && r->s[r->i] >= '0' && r->s[r->i] <= '9'; r->i++)
        v = v > REPEAT_MAX ? v : (v < 0 ? 0 : v * 10) + (r->s[r->i] - '0');
    if (v < 0 || v > REPEAT_MAX)
        refuse(r, "a repetition needs a number up to 100000");
    return v;
}

static struct expr *read_item(struct lark *r)
{
    struct expr *e = read_atom(r);
    skip(r, false);
    if (take(r, "*"))
        return e ? expr_rep(r->w, e, 0, -1) : NULL;
    if (take(r, "+"))
        return e ? expr_rep(r->w, e, 1, -1) : NULL;
    if (take(r, "?"))
        return e ? expr_rep(r->w, e, 0, 1) : NULL;
    if (!take(r, "~"))
        return e;
    skip(r, false);
    int min = read_int(r), max = min;
    if (take(r, ".."))
        max = read_int(r);
    if (max < min)
        refuse(r, "a repetition that runs backwards");
    return r->w->st ? NULL : rules_repeat(r->g, e, min, max);
}

static struct expr *read_sequence(struct lark *r)
{
    struct expr *cat = expr_new(r->w, EXPR_CAT);
    for (;;) {
        skip(r, r->depth > 1);
        if (r->w->st || r->i >= r->n || at(r, "|") || at(r, ")") || at(r, "]"))
            return cat;
        if (at(r, "\n")) {
            if (!continues(r))
                return cat;
            continue;
        }
        if (take(r, "->")) { /* an alias names a tree's node: nothing to a text */
            skip(r, false);
            r->i += name_length(r);
            continue;
        }
        expr_add(r->w, cat, read_item(r));
    }
}

static struct expr *read_alternatives(struct lark *r)
{
    struct expr *alt = expr_new(r->w, EXPR_ALT);
    if (++r->depth > NEST_MAX)
        refuse(r, "more than 100 groups inside one another");
    skip(r, r->depth > 1);
    while (!r->w->st) {
        expr_add(r->w, alt, read_sequence(r));
        if (!take(r, "|"))
            break;
    }
    r->depth--;
    return alt && alt->n == 1 ? alt->child[0] : alt;
}

/* ---- statements ------------------------------------------------------------------------------ */

static void define_common(struct lark *r, const char *name, size_t n, const char *as, size_t n_as)
{
    for (size_t i = 0; i < sizeof common / sizeof *common; i++) {
        const char *own = common[i].name, *regex = common[i].regex;
        if (strlen(own) != n || memcmp(own, name, n) != 0)
            continue;
        int rule = names_rule(r->g, &r->names, as, n_as);
        const struct fsm *m = regex_fsm(r->w, regex, strlen(regex), false);
        rules_define(r->g, rule, expr_fsm(r->w, fsm_to_bytes(r->w, m, false)));
        return;
    }
    work_refuse(r->w, "line %d: %%import common.%.*s: not one of the terminals known", r->line,
                (int)(n < 40 ? n : 40), name);
}

/* %import common.NAME, common.NAME -> OTHER, common (A, B): after the %import. */
static void read_import(struct lark *r)
{
    skip(r, false);
    if (!take(r, "common")) {
        refuse(r, "%import leaves the document; only common.NAME is built in");
        return;
    }
    skip(r, false);
    bool list = take(r, "(");
    if (!list && !take(r, ".")) {
        refuse(r, "%import common needs a name");
        return;
    }
    do {
        skip(r, list);
        const char *name = r->s + r->i, *as = name;
        size_t n = name_length(r), n_as = n;
        r->i += n;
        skip(r, false);
        if (!list && take(r, "->")) {
            skip(r, false);
            as = r->s + r->i;
            n_as = name_length(r);
            r->i += n_as;
        }
        define_common(r, name, n, as, n_as);
        skip(r, list);
    } while (list && take(r, ",") && !r->w->st);
    if (list && !take(r, ")"))
        refuse(r, "a ( without its )");
}

static void read_directive(struct lark *r)
{
    if (take(r, "%ignore")) {
        if (r->n_ignored >= IGNORES_MAX) {
            refuse(r, "more than 32 %ignore");
            return;
        }
        r->in_terminal = true;
        r->ignored[r->n_ignored++] = read_alternatives(r);
        r->in_terminal = false;
    } else if (take(r, "%import")) {
        read_import(r);
    } else {
        size_t n = 1;
        while (r->i + n < r->n && r->s[r->i + n] >= 'a' && r->s[r->i + n] <= 'z')
            n++;
        work_refuse(r->w, "line %d: %.*s is not supported", r->line, (int)(n < 30 ? n : 30),
                    r->s + r->i);
    }
}

static void read_definition(struct lark *r)
{
    while (take(r, "?") || take(r, "!"))
        ; /* how trees are built */
    const char *name = r->s + r->i;
    size_t n = name_length(r);
    if (n == 0) {
        refuse(r, "expected a rule, as in: start: \"yes\" | \"no\"");
        return;
    }
    r->i += n;
    if (at(r, "{")) {
        refuse(r, "templates are not supported");
        return;
    }
    if (take(r, ".")) /* a priority: nothing to a text */
        while (r->i < r->n && ((r->s[r->i] >= '0' && r->s[r->i] <= '9') || r->s[r->i] == '-'))
            r->i++;
    skip(r, false);
    if (!take(r, ":")) {
        work_refuse(r->w, "line %d: expected : after '%.*s'", r->line, (int)(n < 40 ? n : 40),
                    name);
        return;
    }
    int rule = names_rule(r->g, &r->names, name, n);
    if (!r->w->st && r->g->r[rule].defined)
        work_refuse(r->w, "line %d: '%s' is defined twice", r->line, r->g->r[rule].name);
    r->in_terminal = is_terminal_name(name, n);
    rules_define(r->g, rule, read_alternatives(r));
    r->in_terminal = false;
}

static void define_ignore(struct lark *r)
{
    struct expr *alt = expr_new(r->w, EXPR_ALT);
    for (int i = 0; i < r->n_ignored; i++)
        expr_add(r->w, alt, r->ignored[i]);
    if (r->ignore >= 0 && alt)
        rules_define(r->g, r->ignore,
                     r->n_ignored ? expr_rep(r->w, alt, 0, -1) : expr_new(r->w, EXPR_EMPTY));
}

bool grammar_is_lark(const char *text, size_t n)
{
    bool comment = false;
    for (size_t i = 0; i + 3 <= n; i++) {
        if (text[i] == '\n')
            comment = false;
        else if (text[i] == '#' || memcmp(text + i, "//", 2) == 0)
            comment = true;
        else if (!comment && memcmp(text + i, "::=", 3) == 0)
            return false;
    }
    return true;
}

int lark_read(struct rules *g, const char *text, size_t n)
{
    struct lark r = {.w = g->w, .g = g, .s = text, .n = n, .line = 1, .ignore = -1};
    for (size_t i = 0; i + 7 <= n; i++)
        if (memcmp(text + i, "%ignore", 7) == 0) {
            r.ignore = rules_new(g, "(ignored)");
            break;
        }
    for (skip(&r, true); r.i < n && !g->w->st; skip(&r, true)) {
        if (at(&r, "%"))
            read_directive(&r);
        else
            read_definition(&r);
        skip(&r, false);
        if (r.i < n && !at(&r, "\n"))
            refuse(&r, "expected the end of the line");
    }
    define_ignore(&r);
    int start = names_find(&r.names, "start", 5);
    if (start < 0)
        work_refuse(g->w, "there is no rule named start (nor any ::=, for GBNF)");
    if (g->w->st || r.ignore < 0)
        return g->w->st ? 0 : start;
    int top = rules_new(g, NULL);
    rules_define(
        g, top,
        expr_cat(g->w, expr_call(g->w, r.ignore), expr_call(g->w, start), (struct expr *)NULL));
    return g->w->st ? 0 : top;
}
