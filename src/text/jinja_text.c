/* SPDX-License-Identifier: Apache-2.0
 *
 * str() and repr() as Python writes them, and numbers to and from text. */
#include "text/jinja.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- floats --------------------------------------------------------------------------------- */

double jstrtod(const char *p, size_t n, bool *ok)
{
    char small[64], *buf = n < sizeof small ? small : mem_alloc(n + 1, 1);
    *ok = false;
    if (!buf)
        return 0;
    memcpy(buf, p, n);
    buf[n] = 0;
    char *end;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    double f = c ? strtod_l(buf, &end, c) : strtod(buf, &end);
    if (c)
        freelocale(c);
    *ok = end == buf + n && n > 0;
    if (buf != small)
        mem_free(buf);
    return f;
}

int jformat_double(char *out, size_t cap, char type, int precision, bool alt, double f)
{
    const char fmt[] = {'%', alt ? '#' : '-', '.', '*', type, 0};
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0), old = c ? uselocale(c) : (locale_t)0;
    int n = snprintf(out, cap, fmt, precision, f);
    if (c) {
        uselocale(old);
        freelocale(c);
    }
    return n;
}

static int digits_of(double f, int n_digits, char digits[24])
{
    char text[64];
    jformat_double(text, sizeof text, 'e', n_digits - 1, false, f);
    int n = 0;
    char *at = text;
    for (; *at && *at != 'e'; at++)
        if (*at >= '0' && *at <= '9')
            digits[n++] = *at;
    digits[n] = 0;
    return (int)strtol(at + 1, NULL, 10);
}

static double from_digits(const char *digits, int exp)
{
    char text[64];
    bool ok;
    int n = snprintf(text, sizeof text, "%c%se%d", digits[0], digits + 1,
                     exp - (int)strlen(digits + 1));
    return jstrtod(text, (size_t)n, &ok);
}

/* The shortest digits that read back as the same number. */
void jfloat_repr(char out[32], double f)
{
    if (isnan(f) || isinf(f)) {
        snprintf(out, 32, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    char digits[24], *o = out;
    if (signbit(f))
        *o++ = '-';
    f = fabs(f);
    int exp = 0;
    for (int n = 15; n <= 17; n++) {
        exp = digits_of(f, n, digits);
        if (n == 17 || from_digits(digits, exp) == f)
            break;
    }
    int n = (int)strlen(digits);
    while (n > 1 && digits[n - 1] == '0')
        n--;
    if (exp < -4 || exp >= 16) {
        *o++ = digits[0];
        if (n > 1)
            *o++ = '.';
        memcpy(o, digits + 1, (size_t)n - 1);
        snprintf(o + n - 1, 16, "e%c%02d", exp < 0 ? '-' : '+', abs(exp));
        return;
    }
    for (int i = exp < 0 ? exp : 0; i < n || i <= exp + 1; i++) {
        if (i == exp + 1) {
            *o++ = '.';
            if (i >= n)
                *o++ = '0';
        }
        if (i < n || i <= exp)
            *o++ = i < 0 || i >= n ? '0' : digits[i];
    }
    *o = 0;
}

/* ---- repr ---------------------------------------------------------------------------------------
 */

static void repr_char(struct jbuild *b, uint32_t cp, const char *p, size_t n, char quote)
{
    if (cp == (uint32_t)quote || cp == '\\') {
        jb_addc(b, '\\');
        jb_addc(b, (char)cp);
    } else if (cp == '\n' || cp == '\r' || cp == '\t') {
        jb_adds(b, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
    } else if (juni_printable(cp)) {
        jb_add(b, p, n);
    } else {
        jb_fmt(b, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
    }
}

static void repr_str(struct jbuild *b, const struct jstr *s)
{
    jstep_bytes(b->rt, s->n);
    char quote = memchr(s->p, '\'', s->n) && !memchr(s->p, '"', s->n) ? '"' : '\'';
    jb_addc(b, quote);
    for (size_t i = 0; i < s->n;) {
        unsigned char c = (unsigned char)s->p[i];
        if (c >= 0x20 && c < 0x7f && c != '\\' && c != (unsigned char)quote) {
            jb_addc(b, s->p[i++]);
            continue;
        }
        uint32_t cp;
        size_t n = juni_decode(s->p + i, s->n - i, &cp);
        repr_char(b, cp, s->p + i, n, quote);
        i += n;
    }
    jb_addc(b, quote);
}

static void repr_items(struct jbuild *b, const struct jlist *l, char open, char close, bool tuple)
{
    jb_addc(b, open);
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            jb_adds(b, ", ");
        jrepr_of(b, l->v[i]);
    }
    if (tuple && l->n == 1)
        jb_addc(b, ',');
    jb_addc(b, close);
}

static void repr_dict(struct jbuild *b, struct jdict *d)
{
    if (d->printing) { /* a namespace that holds itself */
        jb_adds(b, "{...}");
        return;
    }
    d->printing = true;
    jb_addc(b, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            jb_adds(b, ", ");
        jrepr_of(b, d->v[i].key);
        jb_adds(b, ": ");
        jrepr_of(b, d->v[i].value);
    }
    jb_addc(b, '}');
    d->printing = false;
}

static void repr_view(struct jbuild *b, const struct jview *w)
{
    static const char *const names[] = {"dict_keys", "dict_values", "dict_items"};
    jb_adds(b, names[w->kind]);
    jb_adds(b, "([");
    for (size_t i = 0; i < w->d->n; i++) {
        if (i)
            jb_adds(b, ", ");
        if (w->kind == JVIEW_ITEMS)
            jb_addc(b, '(');
        if (w->kind != JVIEW_VALUES)
            jrepr_of(b, w->d->v[i].key);
        if (w->kind == JVIEW_ITEMS)
            jb_adds(b, ", ");
        if (w->kind != JVIEW_KEYS)
            jrepr_of(b, w->d->v[i].value);
        if (w->kind == JVIEW_ITEMS)
            jb_addc(b, ')');
    }
    jb_adds(b, "])");
}

static void repr_range(struct jbuild *b, const struct jrange *r)
{
    jb_fmt(b, "range(%lld, %lld", (long long)r->start, (long long)r->stop);
    if (r->step != 1)
        jb_fmt(b, ", %lld", (long long)r->step);
    jb_addc(b, ')');
}

static void repr_macro(struct jbuild *b, struct jval v)
{
    struct jstr *name = jmacro_name(v);
    jb_adds(b, "<Macro ");
    if (name)
        repr_str(b, name);
    else
        jb_adds(b, "anonymous");
    jb_addc(b, '>');
}

/* Functions, methods and iterators: Python prints an address, which is nobody's to rely on. */
static void repr_object(struct jbuild *b, struct jval v)
{
    switch (v.kind) {
    case J_FUNC:
        if (v.fn == JF_DICT || v.fn == JF_CYCLER || v.fn == JF_JOINER || v.fn == JF_NAMESPACE)
            jb_fmt(b, v.fn == JF_DICT ? "<class '%s'>" : "<class 'jinja2.utils.%s'>",
                   v.fn == JF_CYCLER      ? "Cycler"
                   : v.fn == JF_JOINER    ? "Joiner"
                   : v.fn == JF_NAMESPACE ? "Namespace"
                                          : "dict");
        else
            jb_fmt(b, "<function %s>", jfunc_name(v.fn));
        break;
    case J_METHOD:
        jb_fmt(b, "<built-in method %s of %s object>", jattr_name(v.m->id), jtype(v.m->self));
        break;
    case J_LOOP: {
        struct jval index = jloop_attr(b->rt, v, jstr_lit(b->rt, "index").s);
        jb_fmt(b, "<LoopContext %lld/%lld>", (long long)index.i, (long long)jloop_length(b->rt, v));
        break;
    }
    case J_SELF:
        jb_adds(b, "<TemplateReference None>");
        break;
    default:
        jb_fmt(b, "<%s object>", jtype(v));
    }
}

static void repr_or_str(struct jbuild *b, struct jval v)
{
    char text[32];
    switch (v.kind) {
    case J_NONE:
        jb_adds(b, "None");
        break;
    case J_BOOL:
        jb_adds(b, v.b ? "True" : "False");
        break;
    case J_INT:
        jb_fmt(b, "%lld", (long long)v.i);
        break;
    case J_BIG:
        jbig_print(b, v, 10);
        break;
    case J_FLOAT:
        jfloat_repr(text, v.f);
        jb_adds(b, text);
        break;
    case J_LIST:
        repr_items(b, v.l, '[', ']', false);
        break;
    case J_TUPLE:
        repr_items(b, v.l, '(', ')', true);
        break;
    case J_DICT:
        repr_dict(b, v.d);
        break;
    case J_NS:
        jb_adds(b, "<Namespace ");
        repr_dict(b, v.d);
        jb_addc(b, '>');
        break;
    case J_VIEW:
        repr_view(b, v.w);
        break;
    case J_RANGE:
        repr_range(b, v.r);
        break;
    case J_MACRO:
        repr_macro(b, v);
        break;
    default:
        repr_object(b, v);
    }
}

void jrepr_of(struct jbuild *b, struct jval v)
{
    jstep(b->rt, 1);
    jenter(b->rt);
    if (v.kind == J_UNDEF) {
        jb_adds(b, "Undefined");
    } else if (v.kind != J_STR) {
        repr_or_str(b, v);
    } else {
        if (v.markup)
            jb_adds(b, "Markup(");
        repr_str(b, v.s);
        if (v.markup)
            jb_addc(b, ')');
    }
    jleave(b->rt);
}

void jstr_of(struct jbuild *b, struct jval v)
{
    if (v.kind == J_STR)
        jb_str(b, v.s);
    else if (v.kind != J_UNDEF)
        jrepr_of(b, v);
}

struct jstr *jto_str(struct jrt *rt, struct jval v)
{
    if (v.kind == J_STR)
        return v.s;
    if (v.kind == J_UNDEF)
        return jstr_view(rt, "", 0);
    struct jbuild b = {.rt = rt};
    jrepr_of(&b, v);
    return jb_done(&b);
}

struct jval jsoft_str(struct jrt *rt, struct jval v)
{
    return v.kind == J_STR ? v : jstrv(jto_str(rt, v));
}

struct jval jescape(struct jrt *rt, struct jval v)
{
    if (v.kind == J_STR && v.markup)
        return v;
    struct jstr *s = jto_str(rt, v);
    struct jbuild b = {.rt = rt};
    jstep_bytes(rt, s->n);
    for (size_t i = 0; i < s->n; i++) {
        static const char chars[] = "&<>'\"";
        static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
        const char *c = s->p[i] ? strchr(chars, s->p[i]) : NULL;
        if (c)
            jb_adds(&b, names[c - chars]);
        else
            jb_addc(&b, s->p[i]);
    }
    struct jval out = jstrv(jb_done(&b));
    out.markup = true;
    return out;
}
