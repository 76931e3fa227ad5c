/* SPDX-License-Identifier: Apache-2.0
 *
 * Iterators. They are used up as they are read, and generators (map, select, ...) work only when
 * they are read: a template can tell, and some errors never happen because of it. */
#include "text/jinja.h"

#include <string.h>

enum iter_kind { IT_LIST, IT_STR, IT_DICT, IT_RANGE, IT_GEN, IT_NONE };

struct jiter {
    enum iter_kind kind;
    bool backwards;
    enum jview_kind view;
    size_t at, n; /* IT_STR: bytes */
    union {
        struct jlist *l;
        struct jstr *s;
        struct jdict *d;
        struct jrange *r;
        struct jgen *gen;
    };
    bool markup;
};

bool jiterable(struct jval v)
{
    switch (v.kind) {
    case J_UNDEF:
    case J_STR:
    case J_TUPLE:
    case J_LIST:
    case J_DICT:
    case J_RANGE:
    case J_VIEW:
    case J_ITER:
    case J_LOOP:
        return true;
    default:
        return false;
    }
}

static struct jval make(struct jrt *rt, struct jiter it)
{
    struct jiter *p = jalloc(rt, 1, sizeof *p);
    *p = it;
    return (struct jval){.kind = J_ITER, .it = p};
}

struct jval jiter(struct jrt *rt, struct jval v)
{
    switch (v.kind) {
    case J_UNDEF:
        return make(rt, (struct jiter){.kind = IT_NONE});
    case J_STR:
        return make(rt, (struct jiter){.kind = IT_STR, .n = v.s->n, .s = v.s});
    case J_TUPLE:
    case J_LIST:
        return make(rt, (struct jiter){.kind = IT_LIST, .n = v.l->n, .l = v.l});
    case J_DICT:
        return make(rt, (struct jiter){.kind = IT_DICT, .n = v.d->n, .d = v.d});
    case J_VIEW:
        return make(
            rt, (struct jiter){.kind = IT_DICT, .n = v.w->d->n, .d = v.w->d, .view = v.w->kind});
    case J_RANGE:
        return make(rt, (struct jiter){.kind = IT_RANGE, .n = (size_t)v.r->n, .r = v.r});
    case J_ITER:
        return v;
    default:
        jfail(rt, JERR_TYPE, "'%s' object is not iterable", jtype(v));
    }
}

struct jval jreversed(struct jrt *rt, struct jval v, bool *ok)
{
    *ok = v.kind == J_TUPLE || v.kind == J_LIST || v.kind == J_DICT || v.kind == J_VIEW ||
          v.kind == J_RANGE || v.kind == J_STR;
    if (!*ok)
        return JNONE;
    struct jval it = jiter(rt, v);
    it.it->backwards = true;
    return it;
}

struct jval jgenerator(struct jrt *rt, struct jgen *g)
{
    return make(rt, (struct jiter){.kind = IT_GEN, .gen = g});
}

static struct jval dict_item(struct jrt *rt, const struct jiter *it, size_t i)
{
    const struct jpair *e = &it->d->v[i];
    if (it->view == JVIEW_ITEMS)
        return jpair_tuple(rt, e->key, e->value);
    return it->view == JVIEW_KEYS ? e->key : e->value;
}

static struct jval next_char(struct jrt *rt, struct jiter *it)
{
    uint32_t cp;
    size_t from = it->at, n;
    if (!it->backwards) {
        n = juni_decode(it->s->p + from, it->s->n - from, &cp);
        it->at += n;
    } else {
        size_t end = it->s->n - it->at;
        for (from = end - 1; (it->s->p[from] & 0xc0) == 0x80; from--)
            ;
        n = end - from;
        it->at += n;
    }
    struct jstr *s = jstr_view(rt, it->s->p + from, n);
    s->chars = 1;
    return jstrv(s);
}

bool jnext(struct jrt *rt, struct jval v, struct jval *out)
{
    struct jiter *it = v.it;
    jstep(rt, 1);
    if (it->kind == IT_GEN)
        return jgen_next(rt, it->gen, out);
    if (it->at >= it->n)
        return false;
    if (it->kind == IT_STR) {
        *out = next_char(rt, it);
        return true;
    }
    size_t i = it->backwards ? it->n - 1 - it->at : it->at;
    it->at++;
    if (it->kind == IT_LIST)
        *out = it->l->v[i];
    else if (it->kind == IT_RANGE)
        *out = jint(it->r->start + (int64_t)i * it->r->step);
    else
        *out = dict_item(rt, it, i);
    return true;
}

struct jlist *jlist_of(struct jrt *rt, struct jval v)
{
    if (v.kind == J_LIST || v.kind == J_TUPLE)
        return v.l;
    struct jval it = jiter(rt, v), item;
    struct jlist *l = jlist_new(rt, 0);
    while (jnext(rt, it, &item))
        jlist_push(rt, l, item);
    return l;
}

/* ---- generators ----------------------------------------------------------------------------- */

static void prepare_map(struct jrt *rt, struct jgen *g)
{
    struct jval *attribute = g->args.n ? NULL : jarg_kw(&g->args, "attribute");
    if (attribute) {
        struct jval *fallback = jarg_kw(&g->args, "default");
        if (g->args.n_kw > (fallback ? 2u : 1u))
            jfail(rt, JERR_TYPE, "map: unexpected keyword argument");
        g->by_attr = true;
        g->attrs = jattrs_of(rt, *attribute);
        g->fallback = fallback ? *fallback : JNONE;
        return;
    }
    if (!g->args.n)
        jfail(rt, JERR_TYPE, "map requires a filter argument");
    struct jval name = g->args.pos[0];
    g->filter = name.kind == J_STR ? jfilter_find(name.s->p, name.s->n) : NULL;
    if (!g->filter)
        jfail(rt, JERR_RUNTIME, "no filter named '%s'", jto_str(rt, name)->p);
    g->args.pos++;
    g->args.n--;
}

static void prepare_select(struct jrt *rt, struct jgen *g)
{
    size_t off = 0;
    if (g->by_attr) {
        if (!g->args.n)
            jfail(rt, JERR_TYPE, "missing parameter for attribute name");
        g->attrs = jattrs_of(rt, g->args.pos[0]);
        off = 1;
    }
    if (g->args.n > off) {
        struct jval name = g->args.pos[off];
        g->test = name.kind == J_STR ? jtest_find(name.s->p, name.s->n) : NULL;
        if (!g->test) {
            struct jstr *s = jto_str(rt, name);
            jfail(rt, JERR_RUNTIME, "no test named '%.*s'", (int)s->n, s->p);
        }
        off++;
    }
    if (off) {
        g->args.pos += off;
        g->args.n -= off;
    }
}

static void prepare_slice(struct jrt *rt, struct jgen *g)
{
    g->all = jlist_of(rt, g->source);
    g->count = jneed_int(rt, g->args.pos[0], "slice");
    if (!g->count)
        jfail(rt, JERR_VALUE, "integer division or modulo by zero");
}

/* The count is only compared with: what is no number is never reached. */
static void prepare_batch(struct jrt *rt, struct jgen *g)
{
    struct jval count = g->args.pos[0];
    g->count = -1;
    if (jis_intlike(count, &g->count))
        return;
    if (count.kind == J_FLOAT && count.f >= 0 && count.f < 1e15 &&
        count.f == (double)(int64_t)count.f)
        g->count = (int64_t)count.f;
    else if (g->args.pos[1].kind != J_NONE)
        (void)jneed_int(rt, count, "batch");
}

static bool prepare(struct jrt *rt, struct jgen *g)
{
    g->prepared = true;
    if ((g->kind == JGEN_MAP || g->kind == JGEN_SELECT) && !jtruth(rt, g->source)) {
        g->it = jiter(rt, (struct jval){.kind = J_UNDEF});
        return true;
    }
    if (g->kind == JGEN_MAP)
        prepare_map(rt, g);
    else if (g->kind == JGEN_SELECT)
        prepare_select(rt, g);
    else if (g->kind == JGEN_SLICE)
        prepare_slice(rt, g);
    else if (g->kind == JGEN_BATCH)
        prepare_batch(rt, g);
    else if (g->kind == JGEN_UNIQUE)
        g->seen = jdict_new(rt);
    else if (g->kind == JGEN_ITEMS && g->source.kind != J_DICT && g->source.kind != J_UNDEF)
        jfail(rt, JERR_TYPE, "Can only get item pairs from a mapping.");
    g->it = jiter(rt, g->source);
    if (g->kind == JGEN_ITEMS)
        g->it.it->view = JVIEW_ITEMS;
    return true;
}

static bool next_select(struct jrt *rt, struct jgen *g, struct jval *out)
{
    while (jnext(rt, g->it, out)) {
        struct jval v = g->by_attr ? jattrs_get(rt, &g->attrs, *out, JNONE) : *out;
        bool yes = g->test ? jtest_call(rt, g->test, v, &g->args) : jtruth(rt, v);
        if (yes != g->negate)
            return true;
    }
    return false;
}

static bool next_map(struct jrt *rt, struct jgen *g, struct jval *out)
{
    struct jval v;
    if (!jnext(rt, g->it, &v))
        return false;
    *out = g->by_attr ? jattrs_get(rt, &g->attrs, v, g->fallback)
                      : jfilter_call(rt, g->filter, v, &g->args);
    return true;
}

static bool next_unique(struct jrt *rt, struct jgen *g, struct jval *out)
{
    while (jnext(rt, g->it, out)) {
        struct jval key = jattrs_get(rt, &g->attrs, *out, JNONE);
        if (g->ignore_case)
            key = jignore_case(rt, key);
        if (jdict_get(rt, g->seen, key))
            continue;
        jdict_set(rt, g->seen, key, JNONE);
        return true;
    }
    return false;
}

static bool next_batch(struct jrt *rt, struct jgen *g, struct jval *out)
{
    struct jlist *row = jlist_new(rt, 0);
    struct jval v;
    if (g->offset) { /* the item that did not fit into the row before */
        jlist_push(rt, row, g->fallback);
        g->offset = 0;
    }
    while (jnext(rt, g->it, &v)) {
        if ((int64_t)row->n == g->count) {
            g->fallback = v;
            g->offset = 1;
            *out = jlistv(row);
            return true;
        }
        jlist_push(rt, row, v);
    }
    if (!row->n)
        return false;
    struct jval fill = g->args.pos[1];
    while (fill.kind != J_NONE && (int64_t)row->n < g->count)
        jlist_push(rt, row, fill);
    *out = jlistv(row);
    return true;
}

static bool next_slice(struct jrt *rt, struct jgen *g, struct jval *out)
{
    if (g->pos >= g->count)
        return false;
    int64_t n = (int64_t)g->all->n, each = n / g->count, extra = n % g->count;
    int64_t from = g->offset + g->pos * each;
    if (g->pos < extra)
        g->offset++;
    int64_t to = g->offset + (g->pos + 1) * each;
    struct jlist *part = jlist_new(rt, 0);
    for (int64_t i = from; i < to && i < n; i++)
        jlist_push(rt, part, g->all->v[i]);
    if (g->args.pos[1].kind != J_NONE && g->pos >= extra)
        jlist_push(rt, part, g->args.pos[1]);
    g->pos++;
    *out = jlistv(part);
    return true;
}

bool jgen_next(struct jrt *rt, struct jgen *g, struct jval *out)
{
    bool more = false;
    jenter(rt);
    if (!g->prepared)
        prepare(rt, g);
    switch (g->kind) {
    case JGEN_MAP:
        more = next_map(rt, g, out);
        break;
    case JGEN_SELECT:
        more = next_select(rt, g, out);
        break;
    case JGEN_UNIQUE:
        more = next_unique(rt, g, out);
        break;
    case JGEN_BATCH:
        more = next_batch(rt, g, out);
        break;
    case JGEN_SLICE:
        more = next_slice(rt, g, out);
        break;
    case JGEN_ITEMS:
        more = jnext(rt, g->it, out);
        break;
    case JGEN_WHERE:
        more = jwhere_next(rt, g, out);
        break;
    }
    jleave(rt);
    return more;
}
