/* SPDX-License-Identifier: Apache-2.0
 *
 * tojson: Python's json.dumps with the arguments that transformers passes on, byte for byte. */
#include "text/jinja.h"

#include <math.h>
#include <string.h>

struct dump {
    struct jbuild out;
    const char *indent; /* NULL: one line */
    size_t indent_n;
    const struct jstr *item_sep, *key_sep;
    bool ascii, sort;
    int level;
};

static void dump_value(struct dump *d, struct jval v);

static void dump_str(struct dump *d, const struct jstr *s)
{
    static const char short_escapes[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    struct jbuild *b = &d->out;
    jstep_bytes(b->rt, s->n);
    jb_addc(b, '"');
    for (size_t i = 0; i < s->n;) {
        size_t plain = i;
        while (plain < s->n && (unsigned char)s->p[plain] >= 0x20 && s->p[plain] != '"' &&
               s->p[plain] != '\\' && (!d->ascii || (unsigned char)s->p[plain] < 0x7f))
            plain++;
        jb_add(b, s->p + i, plain - i);
        if (plain == s->n)
            break;
        uint32_t cp;
        i = plain + juni_decode(s->p + plain, s->n - plain, &cp);
        const char *known = cp && cp < 0x80 ? strchr(short_escapes, (char)cp) : NULL;
        if (known) {
            jb_addc(b, '\\');
            jb_addc(b, letters[known - short_escapes]);
        } else if (cp == 0x7f) {
            jb_addc(b, 0x7f);
        } else if (cp < 0x10000) {
            jb_fmt(b, "\\u%04x", (unsigned)cp);
        } else {
            jb_fmt(b, "\\u%04x\\u%04x", (unsigned)(0xd800 + ((cp - 0x10000) >> 10)),
                   (unsigned)(0xdc00 + ((cp - 0x10000) & 0x3ff)));
        }
    }
    jb_addc(b, '"');
}

static void dump_float(struct jbuild *b, double f)
{
    char text[32];
    jfloat_repr(text, f);
    jb_adds(b, isnan(f) ? "NaN" : isinf(f) ? (f < 0 ? "-Infinity" : "Infinity") : text);
}

static void dump_newline(struct dump *d)
{
    if (!d->indent)
        return;
    jb_addc(&d->out, '\n');
    if (d->indent_n && d->level)
        jb_fill(&d->out, d->indent, d->indent_n, (size_t)d->level);
}

/* Keys are text: numbers, booleans and None become what they are in JSON. */
static void dump_key(struct dump *d, struct jval key)
{
    struct jbuild b = {.rt = d->out.rt};
    switch (key.kind) {
    case J_STR:
        dump_str(d, key.s);
        return;
    case J_NONE:
        jb_adds(&b, "null");
        break;
    case J_BOOL:
        jb_adds(&b, key.b ? "true" : "false");
        break;
    case J_INT:
    case J_BIG:
        jrepr_of(&b, key);
        break;
    case J_FLOAT:
        dump_float(&b, key.f);
        break;
    default:
        jfail(b.rt, JERR_TYPE, "keys must be str, int, float, bool or None, not %s", jtype(key));
    }
    dump_str(d, jb_done(&b));
}

static const struct jpair *sorted(struct jrt *rt, const struct jdict *dict)
{
    struct jval *keys = jalloc(rt, dict->n, sizeof *keys), *at = jalloc(rt, dict->n, sizeof *at);
    struct jpair *out = jalloc(rt, dict->n, sizeof *out);
    for (size_t i = 0; i < dict->n; i++) {
        keys[i] = dict->v[i].key;
        at[i] = jint((int64_t)i);
    }
    jsort(rt, at, keys, dict->n, false);
    for (size_t i = 0; i < dict->n; i++)
        out[i] = dict->v[at[i].i];
    return out;
}

static void dump_dict(struct dump *d, const struct jdict *dict)
{
    if (!dict->n) {
        jb_adds(&d->out, "{}");
        return;
    }
    const struct jpair *v = d->sort ? sorted(d->out.rt, dict) : dict->v;
    jb_addc(&d->out, '{');
    d->level++;
    for (size_t i = 0; i < dict->n; i++) {
        if (i)
            jb_str(&d->out, d->item_sep);
        dump_newline(d);
        dump_key(d, v[i].key);
        jb_str(&d->out, d->key_sep);
        dump_value(d, v[i].value);
    }
    d->level--;
    dump_newline(d);
    jb_addc(&d->out, '}');
}

static void dump_list(struct dump *d, const struct jlist *l)
{
    if (!l->n) {
        jb_adds(&d->out, "[]");
        return;
    }
    jb_addc(&d->out, '[');
    d->level++;
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            jb_str(&d->out, d->item_sep);
        dump_newline(d);
        dump_value(d, l->v[i]);
    }
    d->level--;
    dump_newline(d);
    jb_addc(&d->out, ']');
}

static void dump_value(struct dump *d, struct jval v)
{
    struct jrt *rt = d->out.rt;
    jstep(rt, 1);
    jenter(rt);
    switch (v.kind) {
    case J_NONE:
        jb_adds(&d->out, "null");
        break;
    case J_BOOL:
        jb_adds(&d->out, v.b ? "true" : "false");
        break;
    case J_INT:
    case J_BIG:
        jrepr_of(&d->out, v);
        break;
    case J_FLOAT:
        dump_float(&d->out, v.f);
        break;
    case J_STR:
        dump_str(d, v.s);
        break;
    case J_LIST:
    case J_TUPLE:
        dump_list(d, v.l);
        break;
    case J_DICT:
        dump_dict(d, v.d);
        break;
    default:
        jfail(rt, JERR_TYPE, "Object of type %s is not JSON serializable", jtype(v));
    }
    jleave(rt);
}

static void take_indent(struct jrt *rt, struct dump *d, struct jval v)
{
    if (v.kind == J_MISSING || v.kind == J_NONE)
        return;
    if (v.kind == J_STR) {
        d->indent = v.s->p;
        d->indent_n = v.s->n;
        return;
    }
    int64_t n = jneed_int(rt, v, "tojson(indent)");
    struct jbuild spaces = {.rt = rt};
    if (n > 0)
        jb_fill(&spaces, " ", 1, (size_t)n);
    d->indent = jb_done(&spaces)->p;
    d->indent_n = spaces.n - 1;
}

static void take_separators(struct jrt *rt, struct dump *d, struct jval v)
{
    d->item_sep = jstr_lit(rt, d->indent ? "," : ", ").s;
    d->key_sep = jstr_lit(rt, ": ").s;
    if (v.kind == J_MISSING || v.kind == J_NONE)
        return;
    struct jlist *l = jlist_of(rt, v);
    if (l->n != 2)
        jfail(rt, JERR_VALUE, "tojson: separators must be a pair, got %zu value(s)", l->n);
    if (l->v[0].kind != J_STR || l->v[1].kind != J_STR)
        jfail(rt, JERR_TYPE, "tojson: separators must be strings");
    d->item_sep = l->v[0].s;
    d->key_sep = l->v[1].s;
}

/* a: ensure_ascii, indent, separators, sort_keys */
struct jval jtojson(struct jrt *rt, struct jval v, struct jval *a, const struct jargs *raw)
{
    (void)raw;
    struct dump d = {.out = {.rt = rt}};
    d.ascii = a[0].kind != J_MISSING && jtruth(rt, a[0]);
    d.sort = a[3].kind != J_MISSING && jtruth(rt, a[3]);
    take_indent(rt, &d, a[1]);
    take_separators(rt, &d, a[2]);
    dump_value(&d, v);
    return jstrv(jb_done(&d.out));
}
