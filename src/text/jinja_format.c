/* SPDX-License-Identifier: Apache-2.0
 *
 * "%s" % x, "{}".format(x) and the numbers in them; tojson is in jinja_json.c. */
#include "text/jinja.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PRECISION = 400, MAX_WIDTH = 1 << 20 };

/* ---- one number
 * ------------------------------------------------------------------------------------ */

/* What a specification asks for, in either notation. */
struct spec {
    uint32_t fill;
    char align; /* '<', '>', '=', '^' or 0 */
    char sign;  /* '+', ' ' or '-' */
    bool alt, zero;
    char group; /* ',' or '_' */
    int64_t width, precision;
    char type;
};

static void add_fill(struct jbuild *b, uint32_t fill, int64_t n)
{
    char text[4];
    size_t len = juni_encode(fill, text);
    if (n > 0)
        jb_fill(b, text, len, (size_t)n);
}

/* `prefix` is what zeros go behind: a sign, 0x. */
static void add_padded(struct jbuild *b, const struct spec *s, const char *prefix, const char *body,
                       size_t n, int64_t chars, char align)
{
    int64_t space = s->width - chars - (int64_t)strlen(prefix);
    if (s->align)
        align = s->align;
    int64_t left = align == '>' ? space : align == '^' ? space / 2 : 0;
    add_fill(b, s->fill, left);
    jb_adds(b, prefix);
    if (align == '=')
        add_fill(b, s->fill, space);
    jb_add(b, body, n);
    if (align == '<' || align == '^')
        add_fill(b, s->fill, align == '<' ? space : space - left);
}

/* Separators between groups of three (four for hex, octal, binary) digits; zeros that fill the
 * width are grouped too. */
static struct jstr *group_digits(struct jrt *rt, const struct spec *s, const char *p, size_t n,
                                 size_t n_digits, size_t prefix, int every)
{
    struct jbuild b = {.rt = rt};
    size_t total = n_digits, rest = n - n_digits;
    bool pad = s->align == '=' && s->fill == '0';
    while (pad && (int64_t)(total + (total - 1) / (size_t)every + rest + prefix) < s->width)
        total++;
    for (size_t i = 0; i < total; i++) {
        size_t left = total - i;
        if (i && left % (size_t)every == 0)
            jb_addc(&b, s->group);
        jb_addc(&b, left > n_digits ? '0' : p[n_digits - left]);
    }
    jb_add(&b, p + n_digits, rest);
    return jb_done(&b);
}

static void append(char *text, size_t size, const char *more)
{
    size_t n = strlen(text);
    snprintf(text + n, size - n, "%s", more);
}

static void add_number(struct jbuild *b, const struct spec *s, bool negative, const char *base,
                       const char *p, size_t n, int every)
{
    const char *sign = negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
    char prefix[4];
    snprintf(prefix, sizeof prefix, "%s%s", sign, base);
    size_t digits = 0;
    while (digits < n && ((p[digits] >= '0' && p[digits] <= '9') ||
                          (every == 4 && (p[digits] | 32) >= 'a' && (p[digits] | 32) <= 'f')))
        digits++;
    if (s->group && digits) {
        struct jstr *g = group_digits(b->rt, s, p, n, digits, strlen(prefix), every);
        p = g->p;
        n = g->n;
    }
    add_padded(b, s, prefix, p, n, (int64_t)n, '>');
}

static void upper_ascii(char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] >= 'a' && p[i] <= 'z')
            p[i] = (char)(p[i] - 32);
}

static void add_int(struct jbuild *b, const struct spec *s, struct jval v)
{
    struct jbuild digits = {.rt = b->rt};
    char t = s->type;
    int base = t == 'x' || t == 'X' ? 16 : t == 'o' ? 8 : t == 'b' ? 2 : 10;
    if (v.kind == J_BOOL)
        v = jint(v.b);
    bool negative = jbig_negative(v);
    jbig_print(&digits, negative ? jbig_negate(b->rt, v) : v, base);
    char prefix[3] = {'0', t, 0};
    if (!s->alt || base == 10)
        prefix[0] = 0;
    if (t == 'X')
        upper_ascii(digits.p, digits.n);
    char *p = digits.p;
    size_t n = digits.n;
    if (s->precision > (int64_t)n) { /* '%.5d' */
        struct jbuild zeros = {.rt = b->rt};
        jb_fill(&zeros, "0", 1, (size_t)(s->precision - (int64_t)n));
        jb_add(&zeros, p, n);
        p = zeros.p;
        n = zeros.n;
    }
    add_number(b, s, negative, prefix, p, n, base == 10 ? 3 : 4);
}

static void add_float(struct jbuild *b, const struct spec *s, double f)
{
    char text[1024], type = s->type == 'n' ? 'g' : s->type == '%' ? 'f' : s->type;
    int64_t precision = s->precision < 0 ? 6 : s->precision;
    if (precision > MAX_PRECISION)
        jfail(b->rt, JERR_VALUE, "precision too big");
    if (s->type == '%')
        f *= 100;
    bool negative = signbit(f) && !isnan(f);
    if (!isfinite(f)) {
        memcpy(text, isnan(f) ? "nan" : "inf", 4);
        if (type == 'E' || type == 'F' || type == 'G')
            upper_ascii(text, 3);
    } else if (!type && s->precision < 0) {
        jfloat_repr(text, fabs(f));
    } else {
        jformat_double(text, sizeof text, type ? type : 'g', (int)precision, s->alt, fabs(f));
        if (!type) { /* like g, but a float stays recognizable as one */
            if (precision <= 1 && !strchr(text, 'e'))
                jformat_double(text, sizeof text, 'g', (int)(precision ? precision : 1), false,
                               fabs(f));
            int digits = 0, exp10 = f != 0 ? (int)floor(log10(fabs(f))) : 0;
            for (char *c = text; *c && *c != 'e'; c++)
                digits += *c >= '0' && *c <= '9';
            if (!strpbrk(text, ".e") && exp10 + 1 >= precision && precision > 0 && f != 0)
                jformat_double(text, sizeof text, 'e', (int)(digits > 1 ? digits - 1 : 0), false,
                               fabs(f));
            else if (!strpbrk(text, ".e"))
                append(text, sizeof text, ".0");
        }
    }
    if (s->type == '%')
        append(text, sizeof text, "%");
    add_number(b, s, negative, "", text, strlen(text), 3);
}

/* ---- printf style
 * ------------------------------------------------------------------------------------- */

struct percent {
    struct jrt *rt;
    struct jbuild out;
    const char *at, *end;
    struct jval args;
    size_t used; /* of the tuple; 1 when the single value was used */
    bool mapping, markup;
};

static struct jval next_arg(struct percent *p)
{
    if (p->args.kind == J_TUPLE) {
        if (p->used < p->args.l->n)
            return p->args.l->v[p->used++];
    } else if (!p->used) {
        p->used = 1;
        return p->args;
    }
    jfail(p->rt, JERR_TYPE, "not enough arguments for format string");
}

static int64_t star_or_number(struct percent *p, const char *what)
{
    if (p->at < p->end && *p->at == '*') {
        p->at++;
        struct jval v = next_arg(p);
        if (v.kind != J_INT && v.kind != J_BOOL)
            jfail(p->rt, JERR_TYPE, "* wants int");
        return jneed_int(p->rt, v, what);
    }
    int64_t n = 0;
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
        if ((n = n * 10 + (*p->at - '0')) > MAX_WIDTH)
            jfail(p->rt, JERR_VALUE, "%s too big", what);
    return n;
}

/* %(name)s: the value is the mapping's from here on. */
static void take_key(struct percent *p)
{
    if (!p->mapping)
        jfail(p->rt, JERR_TYPE, "format requires a mapping");
    const char *from = ++p->at;
    int depth = 1;
    for (; p->at < p->end && depth; p->at++)
        depth += *p->at == '(' ? 1 : *p->at == ')' ? -1 : 0;
    if (depth)
        jfail(p->rt, JERR_VALUE, "incomplete format key");
    struct jval key = jstrv(jstr_view(p->rt, from, (size_t)(p->at - 1 - from)));
    struct jval v = jsubscript(p->rt, p->args, key);
    if (v.kind == J_MISSING)
        jfail(p->rt, JERR_TYPE, "the format's key '%.*s' is not there", (int)key.s->n, key.s->p);
    p->args = v;
    p->used = 0;
    if (v.kind == J_TUPLE) /* one value, whatever it is */
        p->args = jpair_tuple(p->rt, v, JNONE);
}

static struct jstr *ascii_repr(struct jrt *rt, struct jval v)
{
    struct jbuild b = {.rt = rt}, out = {.rt = rt};
    jrepr_of(&b, v);
    for (size_t i = 0; i < b.n;) {
        uint32_t cp;
        i += juni_decode(b.p + i, b.n - i, &cp);
        if (cp < 0x80)
            jb_addc(&out, (char)cp);
        else
            jb_fmt(&out,
                   cp < 0x100     ? "\\x%02x"
                   : cp < 0x10000 ? "\\u%04x"
                                  : "\\U%08x",
                   (unsigned)cp);
    }
    return jb_done(&out);
}

static struct jstr *converted(struct jrt *rt, struct jval v, char how)
{
    if (how == 's')
        return jto_str(rt, v);
    if (how == 'a')
        return ascii_repr(rt, v);
    struct jbuild b = {.rt = rt};
    jrepr_of(&b, v);
    return jb_done(&b);
}

static void percent_text(struct percent *p, struct spec *s, struct jval v)
{
    struct jval text = jstrv(converted(p->rt, v, s->type));
    if (p->markup && !(s->type == 's' && v.kind == J_STR && v.markup))
        text = jescape(p->rt, text);
    int64_t n = (int64_t)jstr_chars(text.s);
    if (s->precision >= 0 && s->precision < n) {
        text.s = jstr_sub(p->rt, text.s, 0, (size_t)s->precision);
        n = s->precision;
    }
    s->fill = ' ';
    if (s->align == '=')
        s->align = '>';
    add_padded(&p->out, s, "", text.s->p, text.s->n, n, '>');
}

static void percent_char(struct percent *p, struct spec *s, struct jval v)
{
    struct jstr *c = NULL;
    int64_t i;
    if (v.kind == J_STR && jstr_chars(v.s) == 1)
        c = v.s;
    else if (jis_intlike(v, &i) && i >= 0 && i < 0x110000)
        c = jstr_char(p->rt, (uint32_t)i);
    else
        jfail(p->rt, JERR_TYPE, "%%c requires int or char");
    s->fill = ' ';
    if (s->align == '=')
        s->align = '>';
    add_padded(&p->out, s, "", c->p, c->n, 1, '>');
}

static void percent_number(struct percent *p, struct spec *s, struct jval v)
{
    if (v.kind == J_UNDEF && strchr("eEfFgGdiu", s->type))
        jfail_undef(p->rt, v);
    if (!jis_number(v))
        jfail(p->rt, JERR_TYPE,
              strchr("oxX", s->type)   ? "%%%c format: an integer is required, not %s"
              : strchr("diu", s->type) ? "%%%c format: a real number is required, not %s"
                                       : "%%%c format: must be real number, not %s",
              s->type, jtype(v));
    if (strchr("eEfFgG", s->type)) {
        add_float(&p->out, s, jnumber(p->rt, v));
        return;
    }
    if (v.kind == J_FLOAT) {
        if (strchr("oxX", s->type))
            jfail(p->rt, JERR_TYPE, "%%%c format: an integer is required, not float", s->type);
        if (!isfinite(v.f))
            jfail(p->rt, JERR_VALUE, "cannot convert float %s to integer",
                  isnan(v.f) ? "NaN" : "infinity");
        v = jbig_from_double(p->rt, v.f);
    }
    add_int(&p->out, s, v);
}

static void percent_flags(struct percent *p, struct spec *s)
{
    for (; p->at < p->end && strchr("-+ #0", *p->at) && *p->at; p->at++) {
        if (*p->at == '-')
            s->align = '<';
        else if (*p->at == '+' || (*p->at == ' ' && s->sign != '+'))
            s->sign = *p->at;
        else if (*p->at == '#')
            s->alt = true;
        else if (*p->at == '0')
            s->zero = true;
    }
}

static void percent_one(struct percent *p)
{
    struct spec s = {.fill = ' ', .sign = '-', .precision = -1};
    struct jval all = p->args;
    bool keyed = false;
    if (p->at < p->end && *p->at == '(') {
        take_key(p);
        keyed = true;
    }
    percent_flags(p, &s);
    s.width = star_or_number(p, "width");
    if (s.width < 0) {
        s.align = '<';
        s.width = -s.width;
    }
    if (p->at < p->end && *p->at == '.') {
        p->at++;
        s.precision = star_or_number(p, "precision");
        if (s.precision < 0)
            s.precision = 0;
    }
    while (p->at < p->end && strchr("hlL", *p->at) && *p->at)
        p->at++;
    if (p->at == p->end)
        jfail(p->rt, JERR_VALUE, "incomplete format");
    s.type = *p->at++;
    if (s.type == '%') {
        jb_addc(&p->out, '%');
        p->args = all;
        return;
    }
    if (s.zero && s.align != '<') {
        s.align = '=';
        s.fill = '0';
    }
    struct jval v = next_arg(p);
    if (s.type && strchr("sra", s.type))
        percent_text(p, &s, v);
    else if (s.type == 'c')
        percent_char(p, &s, v);
    else if (s.type && strchr("diuoxXeEfFgG", s.type))
        percent_number(p, &s, v);
    else
        jfail(p->rt, JERR_VALUE, "unsupported format character '%c'", s.type);
    if (keyed) {
        p->args = all;
        p->used = 1;
    }
}

struct jval jpercent(struct jrt *rt, struct jval fmt, struct jval args)
{
    struct percent p = {.rt = rt,
                        .out = {.rt = rt},
                        .at = fmt.s->p,
                        .end = fmt.s->p + fmt.s->n,
                        .args = args,
                        .markup = fmt.markup};
    p.mapping =
        args.kind == J_DICT || args.kind == J_LIST || args.kind == J_RANGE || args.kind == J_UNDEF;
    jstep_bytes(rt, fmt.s->n);
    while (p.at < p.end) {
        const char *next = memchr(p.at, '%', (size_t)(p.end - p.at));
        jb_add(&p.out, p.at, (size_t)((next ? next : p.end) - p.at));
        if (!next)
            break;
        p.at = next + 1;
        percent_one(&p);
    }
    size_t given = args.kind == J_TUPLE ? args.l->n : 1;
    if (p.used < given && !p.mapping)
        jfail(rt, JERR_TYPE, "not all arguments converted during string formatting");
    struct jval out = jstrv(jb_done(&p.out));
    out.markup = fmt.markup;
    return out;
}

/* ---- str.format
 * ------------------------------------------------------------------------------------------ */

struct formatter {
    struct jrt *rt;
    const struct jargs *args;
    const struct jdict *map; /* format_map */
    int64_t next;            /* automatic numbering; -1: fields are numbered by hand */
    bool markup;
};

static struct jstr *format_text(struct formatter *f, const char *p, size_t n, int depth);

static int64_t spec_number(struct jrt *rt, const char **at, const char *end)
{
    int64_t n = 0;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at)
        if ((n = n * 10 + (**at - '0')) > MAX_WIDTH)
            jfail(rt, JERR_VALUE, "Too many decimal digits in format string");
    return n;
}

static struct spec parse_spec(struct jrt *rt, const struct jstr *text)
{
    struct spec s = {.fill = ' ', .sign = '-', .precision = -1};
    const char *at = text->p, *end = at + text->n;
    if (text->n) {
        uint32_t cp;
        size_t n = juni_decode(at, text->n, &cp);
        if (text->n > n && at[n] && strchr("<>=^", at[n])) {
            s.fill = cp;
            s.align = at[n];
            at += n + 1;
        } else if (*at && strchr("<>=^", *at)) {
            s.align = *at++;
        }
    }
    if (at < end && (*at == '+' || *at == '-' || *at == ' '))
        s.sign = *at++;
    if (at < end && *at == '#') {
        s.alt = true;
        at++;
    }
    if (at < end && *at == '0') {
        s.zero = true;
        at++;
        if (!s.align) {
            s.align = '=';
            s.fill = '0';
        } else if (s.fill == ' ') {
            s.fill = '0';
        }
    }
    s.width = spec_number(rt, &at, end);
    if (at < end && (*at == ',' || *at == '_'))
        s.group = *at++;
    if (at < end && *at == '.') {
        at++;
        if (at == end || *at < '0' || *at > '9')
            jfail(rt, JERR_VALUE, "Format specifier missing precision");
        s.precision = spec_number(rt, &at, end);
    }
    if (at < end)
        s.type = *at++;
    if (at < end)
        jfail(rt, JERR_VALUE, "Invalid format specifier");
    return s;
}

static void format_str(struct jbuild *b, struct spec *s, struct jval v)
{
    if (s->type && s->type != 's')
        jfail(b->rt, JERR_VALUE, "Unknown format code '%c' for object of type 'str'", s->type);
    if (s->sign != '-' || s->alt || s->group || (s->align == '=' && !s->zero))
        jfail(b->rt, JERR_VALUE, "this format specifier is not allowed for a string");
    if (s->align == '=')
        s->align = '<';
    struct jstr *text = v.s;
    int64_t n = (int64_t)jstr_chars(text);
    if (s->precision >= 0 && s->precision < n) {
        text = jstr_sub(b->rt, text, 0, (size_t)s->precision);
        n = s->precision;
    }
    add_padded(b, s, "", text->p, text->n, n, '<');
}

static void format_number(struct jbuild *b, struct spec *s, struct jval v)
{
    bool is_float = v.kind == J_FLOAT;
    if (s->type && strchr(is_float ? "eEfFgGn%" : "eEfFgG%", s->type)) {
        add_float(b, s, jnumber(b->rt, v));
    } else if (is_float && !s->type) {
        add_float(b, s, v.f);
    } else if (!is_float && (!s->type || strchr("bdoxXn", s->type))) {
        if (s->precision >= 0)
            jfail(b->rt, JERR_VALUE, "Precision not allowed in integer format specifier");
        if (s->group == ',' && s->type && strchr("boxX", s->type))
            jfail(b->rt, JERR_VALUE, "Cannot specify ',' with '%c'.", s->type);
        add_int(b, s, v);
    } else if (!is_float && s->type == 'c') {
        int64_t i = jneed_int(b->rt, v, "%c");
        if (i < 0 || i >= 0x110000)
            jfail(b->rt, JERR_VALUE, "%%c arg not in range(0x110000)");
        struct jstr *c = jstr_char(b->rt, (uint32_t)i);
        add_padded(b, s, "", c->p, c->n, 1, '<');
    } else {
        jfail(b->rt, JERR_VALUE, "Unknown format code '%c' for object of type '%s'", s->type,
              jtype(v));
    }
}

static void format_value(struct jbuild *b, struct jval v, const struct jstr *spec)
{
    if (!spec->n) {
        jstr_of(b, v);
        return;
    }
    if (v.kind != J_STR && !jis_number(v))
        jfail(b->rt, JERR_TYPE, "unsupported format string passed to %s.__format__", jtype(v));
    struct spec s = parse_spec(b->rt, spec);
    if (v.kind == J_STR)
        format_str(b, &s, v);
    else
        format_number(b, &s, v);
}

static struct jval first_value(struct formatter *f, const char *p, size_t n)
{
    struct jrt *rt = f->rt;
    bool digits = n > 0;
    for (size_t i = 0; i < n; i++)
        digits &= p[i] >= '0' && p[i] <= '9';
    struct jval key;
    if (n && !digits) {
        struct jstr name = {p, n, SIZE_MAX, NULL};
        struct jval *v = f->map ? jdict_get_str(f->map, &name) : NULL;
        for (size_t i = 0; f->args && i < f->args->n_kw; i++)
            if (jstr_eq(f->args->kw_name[i].s, &name))
                v = &f->args->kw[i];
        if (!v)
            jfail(rt, JERR_VALUE, "format: no argument named '%.*s'", (int)n, p);
        return *v;
    }
    if (n ? f->next > 0 : f->next < 0)
        jfail(rt, JERR_VALUE,
              "cannot switch between manual field specification and automatic field numbering");
    key = n ? jbig_parse(rt, p, n, 10, false) : jint(f->next++);
    if (n)
        f->next = -1;
    if (key.kind != J_INT || !f->args || (uint64_t)key.i >= f->args->n)
        jfail(rt, JERR_VALUE, "Replacement index out of range for positional args tuple");
    return f->args->pos[key.i];
}

static struct jval field_value(struct formatter *f, const char *p, size_t n)
{
    size_t at = 0;
    while (at < n && p[at] != '.' && p[at] != '[')
        at++;
    struct jval v = first_value(f, p, at);
    while (at < n) {
        bool attr = p[at++] == '.';
        size_t from = at;
        while (at < n && (attr ? p[at] != '.' && p[at] != '[' : p[at] != ']'))
            at++;
        if (at == from || (!attr && at == n))
            jfail(f->rt, JERR_VALUE,
                  at == from ? "Empty attribute in format string" : "Missing ']' in format string");
        struct jstr *name = jstr_view(f->rt, p + from, at - from);
        if (attr) {
            v = jget_attr(f->rt, v, name, jattr_find(name->p, name->n));
            continue;
        }
        bool digits = true;
        for (size_t i = from; i < at; i++)
            digits &= p[i] >= '0' && p[i] <= '9';
        v = jget_item(f->rt, v,
                      digits ? jbig_parse(f->rt, p + from, at - from, 10, false) : jstrv(name));
        at++;
        if (at < n && p[at] != '.' && p[at] != '[')
            jfail(f->rt, JERR_VALUE, "Only '.' or '[' may follow ']' in format field specifier");
    }
    return v;
}

/* One {...}; p..n is what stands between the braces. */
static void format_field(struct formatter *f, struct jbuild *out, const char *p, size_t n,
                         int depth)
{
    size_t name = 0;
    for (int square = 0; name < n && (square || (p[name] != '!' && p[name] != ':')); name++)
        square = p[name] == '[' ? 1 : p[name] == ']' ? 0 : square;
    size_t at = name;
    char how = 0;
    if (at < n && p[at] == '!') {
        if (at + 1 >= n || (at + 2 < n && p[at + 2] != ':'))
            jfail(f->rt, JERR_VALUE, "expected ':' after conversion specifier");
        how = p[at + 1];
        at += 2;
    }
    struct jval v = field_value(f, p, name);
    if (how && !strchr("sra", how))
        jfail(f->rt, JERR_VALUE, "Unknown conversion specifier %c", how);
    if (how)
        v = jstrv(converted(f->rt, v, how));
    struct jstr *spec =
        at < n ? format_text(f, p + at + 1, n - at - 1, depth - 1) : jstr_view(f->rt, "", 0);
    if (!f->markup) {
        format_value(out, v, spec);
        return;
    }
    struct jbuild b = {.rt = f->rt};
    format_value(&b, v, spec);
    struct jval text = jstrv(jb_done(&b));
    text.markup = v.kind == J_STR && v.markup;
    jb_str(out, jescape(f->rt, text).s);
}

static struct jstr *format_text(struct formatter *f, const char *p, size_t n, int depth)
{
    struct jbuild out = {.rt = f->rt};
    if (depth < 0)
        jfail(f->rt, JERR_VALUE, "Max string recursion exceeded");
    jstep_bytes(f->rt, n);
    for (size_t at = 0; at < n;) {
        if (p[at] != '{' && p[at] != '}') {
            jb_addc(&out, p[at++]);
            continue;
        }
        if (at + 1 < n && p[at + 1] == p[at]) {
            jb_addc(&out, p[at]);
            at += 2;
            continue;
        }
        if (p[at] == '}')
            jfail(f->rt, JERR_VALUE, "Single '}' encountered in format string");
        size_t from = ++at;
        int open = 1;
        for (; at < n && open; at++)
            open += p[at] == '{' ? 1 : p[at] == '}' ? -1 : 0;
        if (open)
            jfail(f->rt, JERR_VALUE,
                  from == n ? "Single '{' encountered in format string"
                            : "expected '}' before end of string");
        format_field(f, &out, p + from, at - 1 - from, depth);
    }
    return jb_done(&out);
}

struct jval jformat(struct jrt *rt, struct jval fmt, const struct jargs *args)
{
    struct formatter f = {.rt = rt, .args = args, .markup = fmt.markup};
    struct jval out = jstrv(format_text(&f, fmt.s->p, fmt.s->n, 2));
    out.markup = fmt.markup;
    return out;
}

struct jval jformat_map(struct jrt *rt, struct jval fmt, struct jval map)
{
    if (map.kind != J_DICT)
        jfail(rt, JERR_TYPE, "format_map: a mapping is needed, not %s", jtype(map));
    struct formatter f = {.rt = rt, .map = map.d, .markup = fmt.markup};
    struct jval out = jstrv(format_text(&f, fmt.s->p, fmt.s->n, 2));
    out.markup = fmt.markup;
    return out;
}
