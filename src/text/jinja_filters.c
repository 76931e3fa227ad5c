/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters that give text or a number. */
#include "text/jinja.h"

#include <math.h>
#include <string.h>

#define FILTER(name) \
    static struct jval name(struct jrt *rt, struct jval v, struct jval *a, const struct jargs *raw)
#define UNUSED (void)rt, (void)v, (void)a, (void)raw

static bool given(struct jval v)
{
    return v.kind != J_MISSING;
}

static bool flag(struct jrt *rt, struct jval v, bool fallback)
{
    return given(v) ? jtruth(rt, v) : fallback;
}

/* ---- plain text
 * ---------------------------------------------------------------------------------- */

FILTER(f_upper)
{
    UNUSED;
    return jstr_case(rt, jsoft_str(rt, v), JM_upper);
}

FILTER(f_lower)
{
    UNUSED;
    return jstr_case(rt, jsoft_str(rt, v), JM_lower);
}

FILTER(f_capitalize)
{
    UNUSED;
    return jstr_case(rt, jsoft_str(rt, v), JM_capitalize);
}

static bool begins_word(uint32_t cp)
{
    return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || juni_space(cp);
}

/* Not str.title(): only white space and opening brackets end a word. */
FILTER(f_title)
{
    UNUSED;
    struct jstr *s = jsoft_str(rt, v).s;
    struct jbuild b = {.rt = rt};
    jstep_bytes(rt, s->n * 4);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp, out[3];
        size_t n = juni_decode(s->p + i, s->n - i, &cp), end;
        bool separates = begins_word(cp);
        for (end = i + n; end < s->n; end += n) {
            n = juni_decode(s->p + end, s->n - end, &cp);
            if (begins_word(cp) != separates)
                break;
        }
        n = juni_decode(s->p + i, s->n - i, &cp);
        int m = juni_map(cp, JCASE_UPPER, out);
        for (int k = 0; k < m; k++)
            jb_cp(&b, out[k]);
        jb_str(&b, jstr_case(rt, jstrv(jstr_view(rt, s->p + i + n, end - i - n)), JM_lower).s);
        i = end;
    }
    return jstrv(jb_done(&b));
}

FILTER(f_trim)
{
    UNUSED;
    return jstr_strip(rt, jsoft_str(rt, v), a[0], true, true);
}

FILTER(f_string)
{
    UNUSED;
    return jsoft_str(rt, v);
}

FILTER(f_safe)
{
    UNUSED;
    struct jval s = jstrv(jto_str(rt, v));
    s.markup = true;
    return s;
}

FILTER(f_escape)
{
    UNUSED;
    return jescape(rt, v);
}

FILTER(f_forceescape)
{
    UNUSED;
    return jescape(rt, jstrv(jto_str(rt, v)));
}

FILTER(f_center)
{
    UNUSED;
    struct jval s = jsoft_str(rt, v);
    return jstr_center(rt, s, given(a[0]) ? jneed_int(rt, a[0], "center") : 80, JMISSING);
}

FILTER(f_replace)
{
    UNUSED;
    int64_t count = given(a[2]) && a[2].kind != J_NONE ? jneed_int(rt, a[2], "replace") : -1;
    struct jval s = jstrv(jto_str(rt, v)), from = jstrv(jto_str(rt, a[0])),
                to = jstrv(jto_str(rt, a[1]));
    return jstr_replace(rt, s, from, to, count);
}

FILTER(f_format)
{
    UNUSED;
    if (raw->n && raw->n_kw)
        jfail(rt, JERR_TYPE, "can't handle positional and keyword arguments at the same time");
    struct jval args;
    if (raw->n_kw) {
        struct jdict *d = jdict_new(rt);
        for (size_t i = 0; i < raw->n_kw; i++)
            jdict_set(rt, d, raw->kw_name[i], raw->kw[i]);
        args = jdictv(d);
    } else {
        struct jlist *l = jlist_new(rt, raw->n);
        if (raw->n)
            memcpy(l->v, raw->pos, raw->n * sizeof *l->v);
        args = jtuplev(l);
    }
    return jpercent(rt, jsoft_str(rt, v), args);
}

FILTER(f_join)
{
    UNUSED;
    struct jval sep = given(a[0]) ? a[0] : jstr_lit(rt, "");
    struct jval items = v;
    if (given(a[1]) && a[1].kind != J_NONE) {
        struct jattrs attrs = jattrs_of(rt, a[1]);
        struct jlist *l = jlist_new(rt, 0);
        struct jval it = jiter(rt, v), item;
        while (jnext(rt, it, &item))
            jlist_push(rt, l, jattrs_get(rt, &attrs, item, JNONE));
        items = jlistv(l);
    }
    if (!rt->autoescape)
        return jstr_join(rt, jstrv(jto_str(rt, sep)), items, true);
    struct jlist *l = jlist_of(rt, items);
    bool markup = sep.kind == J_STR && sep.markup;
    for (size_t i = 0; i < l->n; i++)
        markup |= l->v[i].kind == J_STR && l->v[i].markup;
    return jstr_join(rt, markup ? jescape(rt, sep) : jstrv(jto_str(rt, sep)), jlistv(l), true);
}

FILTER(f_indent)
{
    UNUSED;
    struct jval indent = given(a[0]) ? a[0] : jint(4);
    bool first = flag(rt, a[1], false), blank = flag(rt, a[2], false);
    if (indent.kind != J_STR)
        indent = jbinary(rt, JOP_MUL, jstr_lit(rt, " "), indent);
    if (v.kind == J_STR && v.markup)
        indent = jescape(rt, indent);
    /* Python's filter appends a newline and splits, so that a last empty line survives. */
    struct jval text = jbinary(rt, JOP_ADD, v, jstr_lit(rt, "\n"));
    struct jlist *lines = jstr_splitlines(rt, text, false);
    struct jbuild b = {.rt = rt};
    for (size_t i = 0; i < lines->n; i++) {
        struct jstr *line = lines->v[i].s;
        if (i)
            jb_addc(&b, '\n');
        if (i ? blank || line->n : first) {
            jstep_bytes(rt, indent.s->n);
            jb_str(&b, indent.s);
        }
        jb_str(&b, line);
    }
    struct jval out = jstrv(jb_done(&b));
    out.markup = text.markup;
    return out;
}

FILTER(f_truncate)
{
    UNUSED;
    int64_t length = given(a[0]) ? jneed_int(rt, a[0], "truncate") : 255, n;
    bool kill = flag(rt, a[1], false);
    struct jval end = given(a[2]) ? a[2] : jstr_lit(rt, "...");
    int64_t leeway = given(a[3]) && a[3].kind != J_NONE ? jneed_int(rt, a[3], "truncate") : 5;
    if (end.kind != J_STR)
        jfail(rt, JERR_TYPE, "truncate: the end must be a string, not %s", jtype(end));
    int64_t end_n = (int64_t)jstr_chars(end.s);
    if (length < end_n)
        jfail(rt, JERR_VALUE, "expected length >= %lld, got %lld", (long long)end_n,
              (long long)length);
    if (leeway < 0)
        jfail(rt, JERR_VALUE, "expected leeway >= 0, got %lld", (long long)leeway);
    if (!jlen(rt, v, &n))
        jfail(rt, JERR_TYPE, "object of type '%s' has no len()", jtype(v));
    if (n <= leeway || n - leeway <= length)
        return v;
    struct jval cut = jslice(rt, v, JNONE, jint(length - end_n), JNONE);
    if (!kill) {
        if (cut.kind != J_STR)
            jfail(rt, JERR_TYPE, "truncate: a string is needed, not %s", jtype(v));
        size_t at = cut.s->n;
        while (at > 0 && cut.s->p[at - 1] != ' ')
            at--;
        if (at)
            cut.s = jstr_view(rt, cut.s->p, at - 1);
    }
    return jbinary(rt, JOP_ADD, cut, end);
}

FILTER(f_wordcount)
{
    UNUSED;
    struct jstr *s = jsoft_str(rt, v).s;
    int64_t n = 0;
    bool in_word = false;
    jstep_bytes(rt, s->n * 2);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        i += juni_decode(s->p + i, s->n - i, &cp);
        bool word = cp == '_' || juni_alpha(cp) || juni_numeric(cp) || juni_digit(cp);
        n += word && !in_word;
        in_word = word;
    }
    return jint(n);
}

FILTER(f_wordwrap)
{
    UNUSED;
    return jwordwrap(rt, v, a);
}

FILTER(f_striptags)
{
    UNUSED;
    return jstrip_tags(rt, v);
}

static bool url_safe(unsigned char c, bool query)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || c == '.' ||
           c == '-' || c == '~' || (c == '/' && !query);
}

static void url_quote(struct jbuild *b, struct jval v, bool query)
{
    struct jstr *s = jto_str(b->rt, v);
    jstep_bytes(b->rt, s->n * 2);
    for (size_t i = 0; i < s->n; i++) {
        unsigned char c = (unsigned char)s->p[i];
        if (url_safe(c, query))
            jb_addc(b, (char)c);
        else if (c == ' ' && query)
            jb_addc(b, '+');
        else
            jb_fmt(b, "%%%02X", c);
    }
}

FILTER(f_urlencode)
{
    UNUSED;
    struct jbuild b = {.rt = rt};
    if (v.kind == J_STR || !jiterable(v)) {
        url_quote(&b, v, false);
        return jstrv(jb_done(&b));
    }
    struct jval it = jiter(rt, v), pair;
    if (v.kind == J_DICT)
        it = jiter(rt, jobj_method(rt, v, JM_items, &(struct jargs){0}));
    for (size_t i = 0; jnext(rt, it, &pair); i++) {
        struct jlist *l = jlist_of(rt, pair);
        if (l->n != 2)
            jfail(rt, JERR_VALUE, "urlencode: pairs are needed, got %zu values", l->n);
        if (i)
            jb_addc(&b, '&');
        url_quote(&b, l->v[0], true);
        jb_addc(&b, '=');
        url_quote(&b, l->v[1], true);
    }
    return jstrv(jb_done(&b));
}

FILTER(f_xmlattr)
{
    UNUSED;
    struct jbuild b = {.rt = rt};
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    if (v.kind != J_DICT)
        jfail(rt, JERR_TYPE, "'%s' object has no attribute 'items'", jtype(v));
    bool space = flag(rt, a[0], true);
    for (size_t i = 0; i < v.d->n; i++) {
        struct jval key = v.d->v[i].key, value = v.d->v[i].value;
        if (value.kind == J_NONE || value.kind == J_UNDEF)
            continue;
        if (key.kind != J_STR)
            jfail(rt, JERR_TYPE, "expected string or bytes-like object, got '%s'", jtype(key));
        for (size_t k = 0; k < key.s->n; k++)
            if (key.s->p[k] && strchr(" \t\n\r\f\v/>=", key.s->p[k]))
                jfail(rt, JERR_VALUE, "Invalid character in attribute name: '%.*s'", (int)key.s->n,
                      key.s->p);
        if (b.n || space)
            jb_addc(&b, ' ');
        jb_str(&b, jescape(rt, key).s);
        jb_adds(&b, "=\"");
        jb_str(&b, jescape(rt, value).s);
        jb_addc(&b, '"');
    }
    struct jval out = jstrv(jb_done(&b));
    out.markup = rt->autoescape;
    return out;
}

/* ---- numbers
 * -------------------------------------------------------------------------------------------- */

FILTER(f_abs)
{
    UNUSED;
    if (!jis_number(v)) {
        if (v.kind == J_UNDEF)
            jfail(rt, JERR_TYPE, "bad operand type for abs(): 'Undefined'");
        jfail(rt, JERR_TYPE, "bad operand type for abs(): '%s'", jtype(v));
    }
    if (v.kind == J_FLOAT)
        return jfloat(fabs(v.f));
    return jnegate(rt, v, !jbig_negative(v));
}

FILTER(f_int)
{
    UNUSED;
    int64_t base = 10;
    if (given(a[1]) && !jis_intlike(a[1], &base))
        base = -1; /* only strings look at it, and then it is one more thing that fails */
    return jto_int(rt, v, given(a[0]) ? a[0] : jint(0), base);
}

FILTER(f_float)
{
    UNUSED;
    return jto_float(rt, v, given(a[0]) ? a[0] : jfloat(0));
}

/* Rounds to `digits` after the point as the decimal text of the number would be, ties to even. */
static double round_to(struct jrt *rt, double f, int64_t digits)
{
    if (!isfinite(f) || digits > 323)
        return f;
    if (digits < -308)
        return copysign(0, f);
    if (digits <= 0) {
        double unit = pow(10, (double)-digits), r = nearbyint(f / unit) * unit;
        if (!isfinite(r))
            jfail(rt, JERR_VALUE, "rounded value too large to represent");
        return r;
    }
    struct jval text = jpercent(rt, jstr_lit(rt, "%.*f"), jpair_tuple(rt, jint(digits), jfloat(f)));
    bool ok;
    return jstrtod(text.s->p, text.s->n, &ok);
}

static struct jval round_int(struct jrt *rt, struct jval v, int64_t digits)
{
    if (digits >= 0)
        return v.kind == J_BOOL ? jint(v.b) : v;
    struct jval unit = jbinary(rt, JOP_POW, jint(10), jint(-digits));
    struct jval rest = jbinary(rt, JOP_MOD, v, unit);
    struct jval low = jbinary(rt, JOP_SUB, v, rest);
    struct jval twice = jbinary(rt, JOP_MUL, rest, jint(2));
    int c = jorder(rt, twice, unit, "<");
    struct jval odd = jbinary(rt, JOP_MOD, jbinary(rt, JOP_FLOORDIV, low, unit), jint(2));
    return c > 0 || (c == 0 && jtruth(rt, odd)) ? jbinary(rt, JOP_ADD, low, unit) : low;
}

FILTER(f_round)
{
    UNUSED;
    struct jval method = given(a[1]) ? a[1] : jstr_lit(rt, "common");
    bool ceiling = method.kind == J_STR && jstr_is(method.s, "ceil");
    if (method.kind != J_STR ||
        (!ceiling && !jstr_is(method.s, "common") && !jstr_is(method.s, "floor")))
        jfail(rt, JERR_VALUE, "method must be common, ceil or floor");
    struct jval precision = given(a[0]) ? a[0] : jint(0);
    if (!jis_number(v)) {
        if (v.kind == J_UNDEF && !jstr_is(method.s, "common"))
            jfail_undef(rt, v);
        jfail(rt, JERR_TYPE, "type %s doesn't define __round__ method", jtype(v));
    }
    if (jstr_is(method.s, "common")) {
        if (precision.kind == J_NONE)
            return v.kind == J_FLOAT ? jbig_from_double(rt, nearbyint(v.f)) : round_int(rt, v, 0);
        int64_t digits = jneed_int(rt, precision, "round");
        return v.kind == J_FLOAT ? jfloat(round_to(rt, v.f, digits)) : round_int(rt, v, digits);
    }
    struct jval scale = jbinary(rt, JOP_POW, jint(10), precision);
    struct jval scaled = jbinary(rt, JOP_MUL, v, scale);
    if (scaled.kind == J_FLOAT) {
        if (!isfinite(scaled.f))
            jfail(rt, JERR_VALUE, "cannot convert float %s to integer",
                  isnan(scaled.f) ? "NaN" : "infinity");
        scaled = jbig_from_double(rt, ceiling ? ceil(scaled.f) : floor(scaled.f));
    }
    return jbinary(rt, JOP_DIV, scaled, scale);
}

FILTER(f_filesizeformat)
{
    UNUSED;
    static const char *const names[2][8] = {
        {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
        {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    bool binary = flag(rt, a[0], false);
    struct jval f = jto_float(rt, v, JMISSING);
    if (f.kind == J_MISSING)
        jfail(rt, JERR_VALUE, "could not convert to float");
    double base = binary ? 1024 : 1000, unit = base;
    struct jbuild b = {.rt = rt};
    if (f.f == 1) {
        jb_adds(&b, "1 Byte");
    } else if (f.f < base) {
        jb_fmt(&b, "%.0f Bytes", trunc(f.f));
    } else {
        int i = 0;
        while (unit *= base, i < 7 && f.f >= unit)
            i++;
        jb_fmt(&b, "%.1f %s", base * f.f / unit, names[binary][i]);
    }
    return jstrv(jb_done(&b));
}

FILTER(f_length)
{
    UNUSED;
    int64_t n;
    if (!jlen(rt, v, &n))
        jfail(rt, JERR_TYPE, "object of type '%s' has no len()", jtype(v));
    return jint(n);
}

FILTER(f_default)
{
    UNUSED;
    if (v.kind == J_UNDEF || (flag(rt, a[1], false) && !jtruth(rt, v)))
        return given(a[0]) ? a[0] : jstr_lit(rt, "");
    return v;
}

FILTER(f_attr)
{
    UNUSED;
    if (a[0].kind != J_STR)
        jfail(rt, JERR_TYPE, "attribute name must be string, not '%s'", jtype(a[0]));
    if (v.kind == J_DICT || v.kind == J_LIST || v.kind == J_STR) {
        /* attributes only: no falling back to subscripts */
        int attr = jattr_find(a[0].s->p, a[0].s->n);
        struct jval empty = v.kind == J_DICT ? jdictv(jdict_new(rt)) : v;
        struct jval found = jget_attr(rt, empty, a[0].s, attr);
        if (found.kind == J_UNDEF && !found.u->hint)
            return jundef_attr(rt, v, a[0]);
        return v.kind == J_DICT ? jget_attr(rt, v, a[0].s, attr) : found;
    }
    return jget_attr(rt, v, a[0].s, jattr_find(a[0].s->p, a[0].s->n));
}

FILTER(f_pprint)
{
    UNUSED;
    struct jbuild b = {.rt = rt};
    jrepr_of(&b, v);
    return jstrv(jb_done(&b));
}

FILTER(f_tojson)
{
    return jtojson(rt, v, a, raw);
}

const struct jfilter jfilters_text[] = {
    {"abs", f_abs, ""},
    {"attr", f_attr, "name"},
    {"capitalize", f_capitalize, ""},
    {"center", f_center, "width?"},
    {"count", f_length, ""},
    {"d", f_default, "default_value? boolean?"},
    {"default", f_default, "default_value? boolean?"},
    {"e", f_escape, ""},
    {"escape", f_escape, ""},
    {"filesizeformat", f_filesizeformat, "binary?"},
    {"float", f_float, "default?"},
    {"forceescape", f_forceescape, ""},
    {"format", f_format, NULL},
    {"indent", f_indent, "width? first? blank?"},
    {"int", f_int, "default? base?"},
    {"join", f_join, "d? attribute?"},
    {"length", f_length, ""},
    {"lower", f_lower, ""},
    {"pprint", f_pprint, ""},
    {"replace", f_replace, "old new count?"},
    {"round", f_round, "precision? method?"},
    {"safe", f_safe, ""},
    {"string", f_string, ""},
    {"striptags", f_striptags, ""},
    {"title", f_title, ""},
    {"tojson", f_tojson, "ensure_ascii? indent? separators? sort_keys?"},
    {"trim", f_trim, "chars?"},
    {"truncate", f_truncate, "length? killwords? end? leeway?"},
    {"upper", f_upper, ""},
    {"urlencode", f_urlencode, ""},
    {"wordcount", f_wordcount, ""},
    {"wordwrap", f_wordwrap, "width? break_long_words? wrapstring? break_on_hyphens?"},
    {"xmlattr", f_xmlattr, "autospace?"},
    {NULL, NULL, NULL},
};

const struct jfilter *jfilter_find(const char *name, size_t n)
{
    const struct jfilter *const tables[] = {jfilters_text, jfilters_seq};
    for (int t = 0; t < 2; t++)
        for (const struct jfilter *f = tables[t]; f->name; f++)
            if (strlen(f->name) == n && !memcmp(f->name, name, n))
                return f;
    return NULL;
}
