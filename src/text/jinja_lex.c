/* SPDX-License-Identifier: Apache-2.0
 *
 * Template text to tokens: Jinja's lexer with trim_blocks and lstrip_blocks on, and the last
 * newline of a template dropped. Whitespace control lives here and nowhere else. */
#include "text/jinja.h"

#include <string.h>

struct lexer {
    struct jrt *rt;
    const char *p, *end; /* the whole source, its newlines made \n */
    const char *at;
    const char *counted; /* up to here `pos` is known */
    struct jpos pos;
    struct toks *out;
    char closers[256]; /* brackets that are open, as what closes them */
    int n_closers;
    bool line_starting; /* what was matched last ended in a newline */
};

static bool at_is(const struct lexer *x, const char *at, const char *s)
{
    size_t n = strlen(s);
    return (size_t)(x->end - at) >= n && memcmp(at, s, n) == 0;
}

static struct jpos pos_of(struct lexer *x, const char *at)
{
    for (; x->counted < at; x->counted++) {
        if (*x->counted == '\n') {
            x->pos.line++;
            x->pos.col = 1;
        } else if ((*x->counted & 0xc0) != 0x80) {
            x->pos.col++;
        }
    }
    return x->pos;
}

static struct tok *emit(struct lexer *x, enum tok_kind kind, const char *from)
{
    struct toks *out = x->out;
    if (out->n == out->cap) {
        size_t cap = out->cap ? out->cap * 2 : 256;
        struct tok *v = jalloc(x->rt, cap, sizeof *v);
        if (out->n)
            memcpy(v, out->v, out->n * sizeof *v);
        out->v = v;
        out->cap = cap;
    }
    struct tok *t = &out->v[out->n++];
    *t = (struct tok){.kind = kind, .pos = pos_of(x, from)};
    return t;
}

static void lex_fail(struct lexer *x, const char *at, const char *what)
{
    x->rt->at = pos_of(x, at);
    jfail(x->rt, JERR_SYNTAX, "%s", what);
}

static const char *skip_space(const struct lexer *x, const char *at)
{
    while (at < x->end) {
        uint32_t cp;
        size_t n = juni_decode(at, (size_t)(x->end - at), &cp);
        if (!juni_space(cp))
            break;
        at += n;
    }
    return at;
}

/* Where the trailing white space of from..to begins. */
static const char *rstrip(const char *from, const char *to)
{
    const char *keep = from;
    for (const char *at = from; at < to;) {
        uint32_t cp;
        at += juni_decode(at, (size_t)(to - at), &cp);
        if (!juni_space(cp))
            keep = at;
    }
    return keep;
}

/* The text before a tag whose sign is '-', '+' or 0. */
static void emit_data(struct lexer *x, const char *from, const char *to, char sign, bool is_var)
{
    if (sign == '-') {
        to = rstrip(from, to);
    } else if (sign != '+' && !is_var) {
        const char *line = to;
        while (line > from && line[-1] != '\n')
            line--;
        if ((line > from || x->line_starting) && line < to && rstrip(line, to) == line)
            to = line;
    }
    if (to > from) {
        struct tok *t = emit(x, T_DATA, from);
        t->p = from;
        t->n = (size_t)(to - from);
    }
}

/* A match ended: remember whether it ended a line. */
static void matched(struct lexer *x, const char *to)
{
    x->line_starting = to > x->p && to[-1] == '\n';
    x->at = to;
}

/* The end of a block or comment tag at `at`, or NULL: "-%}" eats all white space behind it, "%}"
 * one newline, "+%}" nothing. */
static const char *tag_end(const struct lexer *x, const char *at, const char *close)
{
    if (at < x->end && *at == '+' && at_is(x, at + 1, close))
        return at + 3;
    if (at < x->end && *at == '-' && at_is(x, at + 1, close))
        return skip_space(x, at + 3);
    if (!at_is(x, at, close))
        return NULL;
    at += 2;
    return at < x->end && *at == '\n' ? at + 1 : at;
}

static void lex_comment(struct lexer *x, const char *from)
{
    for (const char *at = x->at; at < x->end; at++) {
        const char *to = tag_end(x, at, "#}");
        if (to) {
            matched(x, to);
            return;
        }
    }
    lex_fail(x, from, "missing end of comment tag");
}

/* `{% raw %}` at `at`: where its body begins, or NULL. */
static const char *raw_begin(const struct lexer *x, const char *at)
{
    at += 2;
    if (at < x->end && (*at == '-' || *at == '+'))
        at++;
    at = skip_space(x, at);
    if (!at_is(x, at, "raw"))
        return NULL;
    at = skip_space(x, at + 3);
    if (at_is(x, at, "-%}"))
        return skip_space(x, at + 3);
    return at_is(x, at, "%}") ? at + 2 : NULL;
}

static void lex_raw(struct lexer *x, const char *from)
{
    for (const char *at = x->at; at < x->end; at++) {
        if (!at_is(x, at, "{%"))
            continue;
        const char *q = at + 2;
        char sign = q < x->end && (*q == '-' || *q == '+') ? *q++ : 0;
        q = skip_space(x, q);
        if (!at_is(x, q, "endraw"))
            continue;
        q = tag_end(x, skip_space(x, q + 6), "%}");
        if (!q)
            continue;
        emit_data(x, x->at, at, sign, false);
        matched(x, q);
        return;
    }
    lex_fail(x, from, "missing end of raw directive");
}

/* ---- inside a tag --------------------------------------------------------------------------- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* `(\d+_)*\d+` */
static const char *digits_end(const struct lexer *x, const char *at)
{
    if (at >= x->end || !is_digit(*at))
        return NULL;
    while (at < x->end && (is_digit(*at) ||
                           (*at == '_' && at + 1 < x->end && is_digit(at[1]) && is_digit(at[-1]))))
        at++;
    return at;
}

static char *without_underscores(struct lexer *x, const char *from, const char *to, size_t *n)
{
    char *s = jalloc(x->rt, (size_t)(to - from) + 1, 1);
    *n = 0;
    for (; from < to; from++)
        if (*from != '_')
            s[(*n)++] = *from;
    return s;
}

static bool lex_float(struct lexer *x)
{
    const char *from = x->at;
    if (from > x->p && from[-1] == '.')
        return false;
    const char *at = digits_end(x, from);
    if (!at)
        return false;
    const char *to = NULL;
    if (at < x->end && *at == '.') {
        const char *frac = digits_end(x, at + 1);
        if (frac)
            at = to = frac;
    }
    if (at < x->end && (*at == 'e' || *at == 'E')) {
        const char *exp = at + 1;
        if (exp < x->end && (*exp == '+' || *exp == '-'))
            exp++;
        exp = digits_end(x, exp);
        if (exp)
            to = exp;
    }
    if (!to)
        return false;
    size_t n;
    char *s = without_underscores(x, from, to, &n);
    bool ok;
    struct tok *t = emit(x, T_FLOAT, from);
    t->num = jfloat(jstrtod(s, n, &ok));
    matched(x, to);
    return true;
}

static int digit_in(char c, int base)
{
    int d = is_digit(c) ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : 99;
    return d < base ? d : -1;
}

static bool lex_int(struct lexer *x)
{
    const char *from = x->at, *at = from;
    if (!is_digit(*at))
        return false;
    int base = 10;
    if (*at == '0' && at + 1 < x->end) {
        char b = (char)(at[1] | 32);
        base = b == 'x' ? 16 : b == 'o' ? 8 : b == 'b' ? 2 : 10;
        const char *first = at + 2;
        if (first < x->end && *first == '_')
            first++;
        if (base != 10 && (first >= x->end || digit_in(*first, base) < 0))
            base = 10; /* "0x" alone is a zero and a name */
        if (base != 10)
            at = first;
    }
    const char *digits = at;
    bool zero = base == 10 && *at == '0'; /* a decimal that starts with 0 has zeros only */
    while (at < x->end && ((digit_in(*at, base) >= 0 && (!zero || *at == '0')) ||
                           (*at == '_' && at + 1 < x->end && digit_in(at[1], base) >= 0 &&
                            (!zero || at[1] == '0'))))
        at++;
    size_t n;
    char *s = without_underscores(x, digits, at, &n);
    struct tok *t = emit(x, T_INT, from);
    t->num = jbig_parse(x->rt, s, n, base, false);
    matched(x, at);
    return true;
}

static bool lex_name(struct lexer *x)
{
    const char *from = x->at, *at = from;
    while (at < x->end) {
        uint32_t cp;
        size_t n = juni_decode(at, (size_t)(x->end - at), &cp);
        if (!(at == from ? juni_id_start(cp) : juni_id_continue(cp)))
            break;
        at += n;
    }
    if (at == from)
        return false;
    struct tok *t = emit(x, T_NAME, from);
    t->p = from;
    t->n = (size_t)(at - from);
    matched(x, at);
    return true;
}

static uint32_t hex_escape(struct lexer *x, const char **at, const char *end, int n)
{
    uint32_t v = 0;
    const char *from = *at - 2;
    for (int i = 0; i < n; i++, ++*at) {
        int d = *at < end ? digit_in(**at, 16) : -1;
        if (d < 0)
            lex_fail(x, from,
                     n == 2   ? "truncated \\xXX escape in a string"
                     : n == 4 ? "truncated \\uXXXX escape in a string"
                              : "truncated \\UXXXXXXXX escape in a string");
        v = v << 4 | (uint32_t)d;
    }
    if (v > 0x10ffff)
        lex_fail(x, from, "illegal Unicode character in a string");
    return v;
}

/* One escape; *at is behind the backslash. */
static void unescape(struct lexer *x, struct jbuild *b, const char **at, const char *end)
{
    static const char letters[] = "abfnrtv", values[] = "\a\b\f\n\r\t\v";
    char c = *(*at)++;
    const char *known = c ? strchr(letters, c) : NULL;
    if (known) {
        jb_addc(b, values[known - letters]);
    } else if (c == '\\' || c == '\'' || c == '"') {
        jb_addc(b, c);
    } else if (c >= '0' && c <= '7') {
        uint32_t v = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < end && **at >= '0' && **at <= '7'; i++)
            v = v * 8 + (uint32_t)(*(*at)++ - '0');
        jb_cp(b, v);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        jb_cp(b, hex_escape(x, at, end, c == 'x' ? 2 : c == 'u' ? 4 : 8));
    } else if (c == 'N') {
        lex_fail(x, *at - 2, "\\N{...} escapes are not supported");
    } else if ((unsigned char)c >= 0x80) {
        /* Python writes the character as an escape of its own before it decodes, so that the two
         * backslashes become one and the rest stays as text. */
        uint32_t cp;
        *at += juni_decode(*at - 1, (size_t)(end - *at) + 1, &cp) - 1;
        jb_fmt(b, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
    } else if (c != '\n') {
        jb_addc(b, '\\');
        jb_addc(b, c);
    }
}

static bool lex_string(struct lexer *x)
{
    const char *from = x->at;
    char quote = *from;
    if (quote != '\'' && quote != '"')
        return false;
    const char *to = from + 1;
    bool plain = true;
    while (to < x->end && *to != quote) {
        if (*to == '\\') {
            plain = false;
            to++;
        }
        to++;
    }
    if (to >= x->end)
        return false;
    const char *text = from + 1;
    size_t n = (size_t)(to - text);
    if (!plain) {
        struct jbuild b = {.rt = x->rt};
        for (const char *at = text; at < to;) {
            if (*at != '\\') {
                jb_addc(&b, *at++);
                continue;
            }
            at++;
            unescape(x, &b, &at, to);
        }
        struct jstr *s = jb_done(&b);
        text = s->p;
        n = s->n;
    }
    struct tok *t = emit(x, T_STRING, from);
    t->p = text;
    t->n = n;
    matched(x, to + 1);
    return true;
}

static void balance(struct lexer *x, enum tok_kind kind)
{
    static const char close[] = {[T_LPAREN] = ')', [T_LBRACKET] = ']', [T_LBRACE] = '}'};
    if (kind == T_LPAREN || kind == T_LBRACKET || kind == T_LBRACE) {
        if (x->n_closers == (int)sizeof x->closers)
            lex_fail(x, x->at, "brackets are nested too deeply");
        x->closers[x->n_closers++] = close[kind];
    } else if (kind == T_RPAREN || kind == T_RBRACKET || kind == T_RBRACE) {
        char text[] = "unexpected ' ', expected ' '";
        text[12] = *x->at;
        if (!x->n_closers) {
            text[14] = 0;
            lex_fail(x, x->at, text);
        }
        text[26] = x->closers[--x->n_closers];
        if (text[26] != *x->at)
            lex_fail(x, x->at, text);
    }
}

static bool lex_operator(struct lexer *x)
{
    static const struct {
        char text[3];
        enum tok_kind kind;
    } ops[] = {{"**", T_POW},     {"//", T_FLOORDIV}, {"==", T_EQ},    {"!=", T_NE},
               {">=", T_GE},      {"<=", T_LE},       {"+", T_ADD},    {"-", T_SUB},
               {"*", T_MUL},      {"/", T_DIV},       {"%", T_MOD},    {"~", T_TILDE},
               {"[", T_LBRACKET}, {"]", T_RBRACKET},  {"(", T_LPAREN}, {")", T_RPAREN},
               {"{", T_LBRACE},   {"}", T_RBRACE},    {">", T_GT},     {"<", T_LT},
               {"=", T_ASSIGN},   {".", T_DOT},       {":", T_COLON},  {"|", T_PIPE},
               {",", T_COMMA},    {";", T_SEMICOLON}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (!at_is(x, x->at, ops[i].text))
            continue;
        balance(x, ops[i].kind);
        emit(x, ops[i].kind, x->at);
        matched(x, x->at + strlen(ops[i].text));
        return true;
    }
    return false;
}

/* A tag's contents, from behind its opening to behind its closing. */
static void lex_tag(struct lexer *x, bool is_var)
{
    x->n_closers = 0;
    while (x->at < x->end) {
        const char *to = NULL;
        if (x->n_closers)
            ;
        else if (!is_var)
            to = tag_end(x, x->at, "%}");
        else if (at_is(x, x->at, "-}}"))
            to = skip_space(x, x->at + 3);
        else if (at_is(x, x->at, "}}"))
            to = x->at + 2;
        if (to) {
            emit(x, is_var ? T_VAR_END : T_BLOCK_END, x->at);
            matched(x, to);
            return;
        }
        const char *past = skip_space(x, x->at);
        if (past > x->at) {
            matched(x, past);
            continue;
        }
        if (lex_float(x) || lex_int(x) || lex_name(x) || lex_string(x) || lex_operator(x))
            continue;
        uint32_t cp;
        char text[64] = "unexpected character '";
        size_t n = juni_decode(x->at, (size_t)(x->end - x->at), &cp), m = strlen(text);
        memcpy(text + m, x->at, n);
        text[m + n] = '\'';
        lex_fail(x, x->at, text);
    }
}

static void lex_root(struct lexer *x)
{
    while (x->at < x->end) {
        const char *open = x->at;
        while (open < x->end &&
               !(*open == '{' && open + 1 < x->end && strchr("{%#", open[1]) && open[1]))
            open++;
        if (open == x->end) {
            emit_data(x, x->at, open, '+', true);
            x->at = open;
            break;
        }
        char kind = open[1];
        const char *body = open + 2;
        char sign = body < x->end && (*body == '-' || *body == '+') ? *body++ : 0;
        emit_data(x, x->at, open, sign, kind == '{');
        const char *raw = kind == '%' ? raw_begin(x, open) : NULL;
        matched(x, raw ? raw : body);
        if (raw)
            lex_raw(x, open);
        else if (kind == '#')
            lex_comment(x, open);
        else {
            emit(x, kind == '{' ? T_VAR_BEGIN : T_BLOCK_BEGIN, open);
            lex_tag(x, kind == '{');
        }
    }
}

/* \r\n and \r become \n, and one newline at the end goes. */
static size_t normalize(const char *source, size_t bytes, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] != '\r')
            out[n++] = source[i];
        else if (i + 1 == bytes || source[i + 1] != '\n')
            out[n++] = '\n';
    }
    return n && out[n - 1] == '\n' ? n - 1 : n;
}

void jlex(struct jrt *rt, const char *source, size_t bytes, struct toks *out)
{
    char *text = jalloc(rt, bytes + 1, 1);
    size_t n = normalize(source, bytes, text);
    struct lexer x = {.rt = rt,
                      .p = text,
                      .end = text + n,
                      .at = text,
                      .counted = text,
                      .pos = {1, 1},
                      .out = out,
                      .line_starting = true};
    lex_root(&x);
    emit(&x, T_EOF, x.end);
}
