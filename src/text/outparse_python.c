/* outparse_python.c - calls written as Python: [name(key='text', n=3), other()].
 *
 * A call is sent when its closing parenthesis has come: until then it may be no call at all.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NESTING = 64 };

/* ---- literals as JSON ----------------------------------------------------------------------- */

struct py {
    const char *p, *end;
    struct strbuf *out;
    int depth;
};

static void spaces(struct py *y)
{
    while (y->p < y->end && out_is_space(*y->p))
        y->p++;
}

static bool eat(struct py *y, char c)
{
    spaces(y);
    if (y->p == y->end || *y->p != c)
        return false;
    y->p++;
    return true;
}

static bool letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool word_char(char c)
{
    return letter(c) || (c >= '0' && c <= '9') || c == '_';
}

static size_t word_length(const struct py *y)
{
    size_t n = 0;
    while (y->p + n < y->end && word_char(y->p[n]))
        n++;
    return n;
}

/* One code point inside a JSON string. */
static void put_code(struct strbuf *b, unsigned long c)
{
    if (c == '"' || c == '\\' || c == '\n') {
        strbuf_addc(b, '\\');
        strbuf_addc(b, c == '\n' ? 'n' : (char)c);
    } else if (c < 0x20) {
        strbuf_addf(b, "\\u%04lx", c);
    } else if (c < 0x80) {
        strbuf_addc(b, (char)c);
    } else {
        int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
        strbuf_addc(b, (char)(lead[more] | c >> (6 * more)));
        while (more--)
            strbuf_addc(b, (char)(0x80 | (c >> (6 * more) & 0x3f)));
    }
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'                 ? c - '0'
           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                : -1;
}

static bool hex_escape(struct py *y, int digits)
{
    unsigned long c = 0;
    for (; digits; digits--, y->p++) {
        if (y->p == y->end || hex_digit(*y->p) < 0)
            return false;
        c = c * 16 + (unsigned long)hex_digit(*y->p);
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return false; /* JSON text cannot hold a lone surrogate */
    put_code(y->out, c);
    return true;
}

/* Behind the backslash. */
static bool escape(struct py *y)
{
    static const char plain[] = "\\'\"abfnrtv", means[] = "\\'\"\a\b\f\n\r\t\v";
    if (y->p == y->end)
        return false;
    char c = *y->p++;
    const char *at = c ? strchr(plain, c) : NULL;
    if (at) {
        put_code(y->out, (unsigned char)means[at - plain]);
        return true;
    }
    if (c == '\n')
        return true;
    if (c == 'x' || c == 'u' || c == 'U')
        return hex_escape(y, c == 'x' ? 2 : c == 'u' ? 4 : 8);
    if (c >= '0' && c <= '7') {
        unsigned long code = (unsigned long)(c - '0');
        for (int i = 0; i < 2 && y->p < y->end && *y->p >= '0' && *y->p <= '7'; i++)
            code = code * 8 + (unsigned long)(*y->p++ - '0');
        put_code(y->out, code);
        return true;
    }
    if (c == 'N')
        return false;
    strbuf_adds(y->out, "\\\\"); /* Python keeps what it does not know */
    y->p--;
    return true;
}

static bool quoted(struct py *y, bool raw)
{
    char q = *y->p;
    bool triple = y->end - y->p >= 3 && y->p[1] == q && y->p[2] == q;
    y->p += triple ? 3 : 1;
    while (y->p < y->end) {
        char c = *y->p++;
        if (c == q && (!triple || (y->end - y->p >= 2 && y->p[0] == q && y->p[1] == q))) {
            y->p += triple ? 2 : 0;
            return true;
        }
        if (c == '\n' && !triple)
            return false;
        if (c == '\\' && !raw) {
            if (!escape(y))
                return false;
        } else if ((unsigned char)c < 0x80) {
            put_code(y->out, (unsigned char)c);
            if (c == '\\' && y->p < y->end && (unsigned char)*y->p < 0x80)
                put_code(y->out, (unsigned char)*y->p++);
        } else {
            strbuf_addc(y->out, c);
        }
    }
    return false;
}

/* 'a' "b": neighbours are one string. */
static bool string(struct py *y)
{
    strbuf_addc(y->out, '"');
    for (;;) {
        bool raw = y->p < y->end && (*y->p | 32) == 'r';
        if (y->p < y->end && (raw || (*y->p | 32) == 'u'))
            y->p++;
        if (y->p == y->end || (*y->p != '\'' && *y->p != '"') || !quoted(y, raw))
            return false;
        spaces(y);
        if (y->p == y->end || (*y->p != '\'' && *y->p != '"'))
            break;
    }
    strbuf_addc(y->out, '"');
    return true;
}

/* 0x10, 0o7, 0b1 */
static bool based_number(struct py *y, int base)
{
    unsigned long long v = 0;
    int digits = 0;
    for (y->p += 2; y->p < y->end && (hex_digit(*y->p) >= 0 || *y->p == '_'); y->p++) {
        int d = hex_digit(*y->p);
        if (*y->p == '_')
            continue;
        if (d >= base || v >> 59)
            return false;
        v = v * (unsigned)base + (unsigned)d;
        digits++;
    }
    strbuf_addf(y->out, "%llu", v);
    return digits > 0 && (y->p == y->end || !word_char(*y->p));
}

static bool number(struct py *y)
{
    if (y->end - y->p > 2 && *y->p == '0' && strchr("xXoObB", y->p[1]))
        return based_number(y, (y->p[1] | 32) == 'x' ? 16 : (y->p[1] | 32) == 'o' ? 8 : 2);
    struct strbuf *b = y->out;
    size_t start = b->len, whole = 0, fraction = 0, exponent = 0;
    bool zero = y->p < y->end && *y->p == '0';
    for (; y->p < y->end && (hex_digit(*y->p) >= 0 || *y->p == '_') && !letter(*y->p); y->p++)
        if (*y->p != '_') {
            strbuf_addc(b, *y->p);
            whole++;
        }
    bool point = y->p < y->end && *y->p == '.';
    if (!whole && point)
        strbuf_addc(b, '0');
    if (point) {
        strbuf_addc(b, '.');
        for (y->p++; y->p < y->end && *y->p >= '0' && *y->p <= '9'; y->p++, fraction++)
            strbuf_addc(b, *y->p);
        if (!fraction)
            strbuf_addc(b, '0');
    }
    bool e = y->p < y->end && (*y->p | 32) == 'e';
    if (e) {
        strbuf_addc(b, 'e');
        if (++y->p < y->end && (*y->p == '+' || *y->p == '-'))
            strbuf_addc(b, *y->p++);
        for (; y->p < y->end && *y->p >= '0' && *y->p <= '9'; y->p++, exponent++)
            strbuf_addc(b, *y->p);
    }
    if ((!whole && !fraction) || (e && !exponent) || (y->p < y->end && word_char(*y->p)))
        return false;
    return !(zero && whole > 1) || (point && b->data[start + 1] == '.'); /* 007 is no number */
}

static bool signed_number(struct py *y)
{
    bool minus = *y->p == '-';
    y->p++;
    spaces(y);
    if (y->p == y->end || !(*y->p == '.' || (*y->p >= '0' && *y->p <= '9')))
        return false;
    if (minus)
        strbuf_addc(y->out, '-');
    return number(y);
}

static bool name_literal(struct py *y)
{
    static const char *const names[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"},
                                           {"true", "true"}, {"false", "false"}, {"null", "null"}};
    size_t n = word_length(y);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strlen(names[i][0]) == n && !memcmp(y->p, names[i][0], n)) {
            strbuf_adds(y->out, names[i][1]);
            y->p += n;
            return true;
        }
    }
    return false;
}

static bool value(struct py *y);

/* JSON's keys are strings: 1 becomes "1", as json.dumps does. */
static bool dict_key(struct py *y)
{
    spaces(y);
    if (y->p == y->end || strchr("[({", *y->p))
        return false;
    size_t start = y->out->len;
    if (!value(y) || y->out->failed)
        return false;
    if (y->out->data[start] == '"')
        return true;
    struct strbuf key;
    strbuf_init(&key, 0);
    strbuf_add(&key, y->out->data + start, y->out->len - start);
    y->out->len = start;
    strbuf_addc(y->out, '"');
    strbuf_add(y->out, key.data, key.len);
    strbuf_addc(y->out, '"');
    bool ok = !key.failed;
    strbuf_fini(&key);
    return ok;
}

static bool dict_rest(struct py *y)
{
    for (;;) {
        strbuf_adds(y->out, ": ");
        if (!value(y))
            return false;
        bool comma = eat(y, ',');
        if (eat(y, '}'))
            break;
        if (!comma)
            return false;
        strbuf_adds(y->out, ", ");
        if (!dict_key(y) || !eat(y, ':'))
            return false;
    }
    strbuf_addc(y->out, '}');
    return true;
}

/* Items up to the closing bracket; a tuple and a set are lists. One in parentheses without a comma
 * is just itself. */
static bool list_rest(struct py *y, char close)
{
    size_t start = y->out->len;
    int n = 0;
    bool comma = false;
    strbuf_addc(y->out, '[');
    while (!eat(y, close)) {
        if (n && !comma)
            return false;
        if (n++)
            strbuf_adds(y->out, ", ");
        if (!value(y))
            return false;
        comma = eat(y, ',');
    }
    strbuf_addc(y->out, ']');
    if (y->out->failed)
        return false;
    if (close == ')' && n == 1 && !comma) {
        memmove(y->out->data + start, y->out->data + start + 1, y->out->len - start - 1);
        y->out->len -= 2;
        y->out->data[y->out->len] = 0;
    }
    return true;
}

/* {} is a dict; {1, 2} a set; what follows the first value tells. */
static bool braces(struct py *y)
{
    if (eat(y, '}')) {
        strbuf_adds(y->out, "{}");
        return true;
    }
    const char *from = y->p;
    size_t start = y->out->len;
    strbuf_addc(y->out, '{');
    if (dict_key(y) && eat(y, ':'))
        return dict_rest(y);
    y->p = from;
    if (y->out->failed)
        return false;
    y->out->len = start;
    return list_rest(y, '}');
}

static bool value(struct py *y)
{
    spaces(y);
    if (y->p == y->end || y->depth >= MAX_NESTING)
        return false;
    char c = *y->p;
    bool ok;
    y->depth++;
    if (c == '[' || c == '(' || c == '{') {
        y->p++;
        ok = c == '{' ? braces(y) : list_rest(y, c == '[' ? ']' : ')');
    } else if (c == '-' || c == '+') {
        ok = signed_number(y);
    } else if ((c >= '0' && c <= '9') || c == '.') {
        ok = number(y);
    } else if (c == '\'' || c == '"' ||
               (strchr("rRuU", c) && y->end - y->p > 1 && (y->p[1] == '\'' || y->p[1] == '"'))) {
        ok = string(y);
    } else {
        ok = name_literal(y);
    }
    y->depth--;
    return ok;
}

bool python_call(const char *text, size_t n, struct strbuf *name, struct strbuf *arguments)
{
    struct py y = {.p = text, .end = text + n, .out = arguments};
    size_t len = word_length(&y);
    if (!len || !letter(*text))
        return false;
    strbuf_add(name, text, len);
    y.p += len;
    if (!eat(&y, '('))
        return false;
    strbuf_addc(arguments, '{');
    for (int i = 0; !eat(&y, ')'); i++) {
        spaces(&y);
        len = word_length(&y);
        if (!len || !letter(*y.p))
            return false;
        strbuf_adds(arguments, i ? ", \"" : "\"");
        strbuf_add(arguments, y.p, len);
        strbuf_adds(arguments, "\": ");
        y.p += len;
        if (!eat(&y, '=') || !value(&y))
            return false;
        if (!eat(&y, ',') && (spaces(&y), y.p == y.end || *y.p != ')'))
            return false;
    }
    strbuf_addc(arguments, '}');
    return y.p == y.end;
}

/* ---- the list ------------------------------------------------------------------------------- */

enum { START, NAME, BODY, SEPARATOR, END };

static bool name_step(struct outparse *p, struct stage *s)
{
    if (p->n_calls)
        p->scan = stage_skip_spaces(s, p->scan);
    size_t pos = p->scan;
    while (pos < stage_end(s) && word_char(*stage_text(s, pos)) && pos - p->scan <= OUT_MAX_NAME)
        pos++;
    if (pos == stage_end(s))
        return p->eof && out_give_up(p, s);
    if (pos == p->scan || !letter(*stage_text(s, p->scan)) || *stage_text(s, pos) != '(')
        return out_give_up(p, s);
    p->call_from = p->scan;
    p->scan = pos + 1;
    p->nest = 0;
    p->quote = 0;
    s->state = BODY;
    return true;
}

/* How many characters of the text at p->scan belong together; 0: more must come. Keeps track of
 * strings and brackets; *end: the call's closing parenthesis. */
static size_t next_unit(struct outparse *p, const struct stage *s, bool *end)
{
    const char *t = stage_text(s, p->scan);
    size_t have = stage_end(s) - p->scan;
    bool tripled = have >= 3 && t[1] == *t && t[2] == *t;
    if (p->quote && *t == '\\')
        return have >= 2 ? 2 : p->eof;
    if (p->quote && *t != p->quote)
        return 1;
    if (*t == '\'' || *t == '"') {
        if (have < 3 && !p->eof && (!p->quote || p->triple))
            return 0;
        if (!p->quote)
            p->triple = tripled;
        else if (p->triple && !tripled)
            return 1;
        p->quote = p->quote ? 0 : *t;
        return p->triple ? 3 : 1;
    }
    p->nest += strchr("([{", *t) && *t ? 1 : 0;
    if (!strchr(")]}", *t) || !*t)
        return 1;
    *end = *t == ')' && !p->nest;
    p->nest -= p->nest > 0;
    return 1;
}

static bool body_step(struct outparse *p, struct stage *s)
{
    struct strbuf name, arguments;
    bool end = false;
    while (!end && p->scan < stage_end(s)) {
        size_t n = next_unit(p, s, &end);
        if (!n)
            return false;
        p->scan += n;
    }
    if (!end)
        return p->eof && out_give_up(p, s);
    strbuf_init(&name, 0);
    strbuf_init(&arguments, 0);
    bool ok = python_call(stage_text(s, p->call_from), p->scan - p->call_from, &name, &arguments) &&
              !name.failed && !arguments.failed;
    if (ok) {
        out_call(p, name.data, name.len, true);
        out_arguments(p, arguments.data, arguments.len);
        out_call_end(p);
        s->at = p->scan;
        s->state = SEPARATOR;
    }
    strbuf_fini(&name);
    strbuf_fini(&arguments);
    return ok || out_give_up(p, s);
}

bool pythonic_step(struct outparse *p, struct stage *s)
{
    char c;
    switch (s->state) {
    case START:
        if (s->at == stage_end(s))
            return false;
        if (*stage_text(s, s->at) != '[')
            return out_give_up(p, s);
        p->scan = s->at + 1;
        s->state = NAME;
        return true;
    case NAME:
        return name_step(p, s);
    case BODY:
        return body_step(p, s);
    default: /* SEPARATOR, END */
        p->scan = stage_skip_spaces(s, p->scan);
        if (p->scan == stage_end(s))
            return p->eof && s->state == SEPARATOR && out_give_up(p, s);
        c = *stage_text(s, p->scan);
        if (s->state == END || (c != ',' && c != ']'))
            return out_give_up(p, s);
        p->scan++;
        s->state = c == ']' ? END : NAME;
        return true;
    }
}
