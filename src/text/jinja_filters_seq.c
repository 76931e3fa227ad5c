/* SPDX-License-Identifier: Apache-2.0
 *
 * Filters over sequences. */
#include "text/jinja.h"

#include <string.h>

#define FILTER(name) \
    static struct jval name(struct jrt *rt, struct jval v, struct jval *a, const struct jargs *raw)
#define UNUSED (void)rt, (void)v, (void)a, (void)raw

static bool given(struct jval v)
{
    return v.kind != J_MISSING;
}

static bool flag(struct jrt *rt, struct jval v)
{
    return given(v) && jtruth(rt, v);
}

/* What sorted(reverse=...) takes: truth is not enough. */
static bool reverse_flag(struct jrt *rt, struct jval v)
{
    return given(v) && jneed_int(rt, v, "reverse") != 0;
}

/* ---- attribute paths
 * ------------------------------------------------------------------------------- */

static struct jval path_part(struct jrt *rt, const struct jstr *s, size_t from, size_t to)
{
    bool digits = to > from;
    for (size_t i = from; i < to; i++)
        digits &= s->p[i] >= '0' && s->p[i] <= '9';
    if (digits)
        return jbig_parse(rt, s->p + from, to - from, 10, false);
    return jstrv(jstr_view(rt, s->p + from, to - from));
}

static struct jattrs split_path(struct jrt *rt, struct jval attribute)
{
    struct jattrs out = {0};
    if (attribute.kind == J_NONE || attribute.kind == J_MISSING)
        return out;
    if (attribute.kind != J_STR) {
        out.v = jalloc(rt, 1, sizeof *out.v);
        out.v[out.n++] = attribute;
        return out;
    }
    const struct jstr *s = attribute.s;
    size_t dots = 0;
    for (size_t i = 0; i < s->n; i++)
        dots += s->p[i] == '.';
    out.v = jalloc(rt, dots + 1, sizeof *out.v);
    for (size_t from = 0, i = 0; i <= s->n; i++) {
        if (i < s->n && s->p[i] != '.')
            continue;
        out.v[out.n++] = path_part(rt, s, from, i);
        from = i + 1;
    }
    return out;
}

struct jattrs jattrs_of(struct jrt *rt, struct jval attribute)
{
    return split_path(rt, attribute);
}

struct jval jattrs_get(struct jrt *rt, const struct jattrs *a, struct jval v, struct jval fallback)
{
    for (size_t i = 0; i < a->n; i++) {
        v = jget_item(rt, v, a->v[i]);
        if (v.kind == J_UNDEF && fallback.kind != J_NONE && fallback.kind != J_MISSING)
            v = fallback;
    }
    return v;
}

struct jval jignore_case(struct jrt *rt, struct jval v)
{
    return v.kind == J_STR ? jstr_case(rt, v, JM_lower) : v;
}

/* ---- sorting
 * -------------------------------------------------------------------------------------------- */

struct sort_item {
    struct jval key, item;
};

/* Merge sort, stable. Reversed order keeps equal items in place, too: b goes first only when it is
 * strictly on the other side. */
static void merge_sort(struct jrt *rt, struct sort_item *v, struct sort_item *tmp, size_t n,
                       bool reverse)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, k = half, out = 0;
    merge_sort(rt, v, tmp, half, reverse);
    merge_sort(rt, v + half, tmp, n - half, reverse);
    memcpy(tmp, v, n * sizeof *v);
    while (i < half && k < n) {
        bool take = reverse ? jless(rt, tmp[i].key, tmp[k].key) : jless(rt, tmp[k].key, tmp[i].key);
        v[out++] = take ? tmp[k++] : tmp[i++];
    }
    while (i < half)
        v[out++] = tmp[i++];
    while (k < n)
        v[out++] = tmp[k++];
}

void jsort(struct jrt *rt, struct jval *items, struct jval *keys, size_t n, bool reverse)
{
    struct sort_item *v = jalloc(rt, n + 1, sizeof *v), *tmp = jalloc(rt, n + 1, sizeof *tmp);
    jstep(rt, n);
    for (size_t i = 0; i < n; i++)
        v[i] = (struct sort_item){keys[i], items[i]};
    merge_sort(rt, v, tmp, n, reverse);
    for (size_t i = 0; i < n; i++) {
        keys[i] = v[i].key;
        items[i] = v[i].item;
    }
}

/* The keys that sort(attribute="a,b.c") compares: lists, as in Jinja. */
static struct jval *sort_keys(struct jrt *rt, const struct jlist *l, struct jval attribute,
                              bool case_sensitive)
{
    struct jval *keys = jalloc(rt, l->n + 1, sizeof *keys);
    size_t n_paths = 1;
    if (attribute.kind == J_STR)
        for (size_t i = 0; i < attribute.s->n; i++)
            n_paths += attribute.s->p[i] == ',';
    struct jattrs *paths = jalloc(rt, n_paths, sizeof *paths);
    if (attribute.kind == J_STR) {
        for (size_t p = 0, from = 0, i = 0; i <= attribute.s->n; i++) {
            if (i < attribute.s->n && attribute.s->p[i] != ',')
                continue;
            paths[p++] = split_path(rt, jstrv(jstr_view(rt, attribute.s->p + from, i - from)));
            from = i + 1;
        }
    } else {
        paths[0] = split_path(rt, attribute);
    }
    for (size_t i = 0; i < l->n; i++) {
        struct jlist *key = jlist_new(rt, n_paths);
        for (size_t p = 0; p < n_paths; p++) {
            key->v[p] = jattrs_get(rt, &paths[p], l->v[i], JNONE);
            if (!case_sensitive)
                key->v[p] = jignore_case(rt, key->v[p]);
        }
        keys[i] = jlistv(key);
    }
    return keys;
}

static struct jlist *copy_list(struct jrt *rt, struct jval v)
{
    struct jlist *from = jlist_of(rt, v), *l = jlist_new(rt, from->n);
    if (l->n)
        memcpy(l->v, from->v, l->n * sizeof *l->v);
    return l;
}

FILTER(f_sort)
{
    UNUSED;
    struct jlist *l = copy_list(rt, v);
    struct jval *keys = sort_keys(rt, l, given(a[2]) ? a[2] : JNONE, flag(rt, a[1]));
    jsort(rt, l->v, keys, l->n, reverse_flag(rt, a[0]));
    return jlistv(l);
}

FILTER(f_dictsort)
{
    UNUSED;
    size_t pos = 0;
    if (given(a[1])) {
        if (a[1].kind != J_STR || (!jstr_is(a[1].s, "key") && !jstr_is(a[1].s, "value")))
            jfail(rt, JERR_VALUE, "You can only sort by either \"key\" or \"value\"");
        pos = jstr_is(a[1].s, "value");
    }
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    if (v.kind != J_DICT)
        jfail(rt, JERR_TYPE, "'%s' object has no attribute 'items'", jtype(v));
    struct jlist *l = jlist_new(rt, v.d->n);
    struct jval *keys = jalloc(rt, l->n + 1, sizeof *keys);
    for (size_t i = 0; i < l->n; i++) {
        l->v[i] = jpair_tuple(rt, v.d->v[i].key, v.d->v[i].value);
        keys[i] = l->v[i].l->v[pos];
        if (!flag(rt, a[0]))
            keys[i] = jignore_case(rt, keys[i]);
    }
    jsort(rt, l->v, keys, l->n, reverse_flag(rt, a[2]));
    return jlistv(l);
}

FILTER(f_groupby)
{
    UNUSED;
    struct jattrs path = split_path(rt, a[0]);
    struct jval fallback = given(a[1]) ? a[1] : JNONE;
    bool case_sensitive = flag(rt, a[2]);
    struct jlist *l = copy_list(rt, v), *out = jlist_new(rt, 0);
    struct jval *keys = jalloc(rt, l->n + 1, sizeof *keys);
    for (size_t i = 0; i < l->n; i++) {
        keys[i] = jattrs_get(rt, &path, l->v[i], fallback);
        if (!case_sensitive)
            keys[i] = jignore_case(rt, keys[i]);
    }
    jsort(rt, l->v, keys, l->n, false);
    for (size_t i = 0; i < l->n;) {
        struct jlist *group = jlist_new(rt, 0);
        size_t first = i;
        for (; i < l->n && jeq(rt, keys[i], keys[first]); i++)
            jlist_push(rt, group, l->v[i]);
        if (i == first) /* a key that does not equal itself (NaN) is a group of its own */
            jlist_push(rt, group, l->v[i++]);
        struct jval key =
            case_sensitive ? keys[first] : jattrs_get(rt, &path, group->v[0], fallback);
        struct jval pair = jpair_tuple(rt, key, jlistv(group));
        pair.l->group = true;
        jlist_push(rt, out, pair);
    }
    return jlistv(out);
}

/* ---- picking -------------------------------------------------------------------------------- */

FILTER(f_first)
{
    UNUSED;
    struct jval out;
    if (jnext(rt, jiter(rt, v), &out))
        return out;
    return jundef_hint(rt, "No first item, sequence was empty.");
}

FILTER(f_last)
{
    UNUSED;
    bool ok;
    struct jval it = jreversed(rt, v, &ok), out;
    if (!ok && v.kind != J_UNDEF) { /* Undefined is an empty sequence to reversed() */
        jfail(rt, JERR_TYPE, "'%s' object is not reversible", jtype(v));
    }
    if (ok && jnext(rt, it, &out))
        return out;
    return jundef_hint(rt, "No last item, sequence was empty.");
}

/* One render of one input always gives the same text, so "random" is a hash of how far it is. */
FILTER(f_random)
{
    UNUSED;
    int64_t n;
    if (!jlen(rt, v, &n))
        jfail(rt, JERR_TYPE, "object of type '%s' has no len()", jtype(v));
    if (!n)
        return jundef_hint(rt, "No random item, sequence was empty.");
    struct jval out =
        jsubscript(rt, v, jint((int64_t)((rt->steps * 0x9e3779b97f4a7c15ULL >> 33) % (uint64_t)n)));
    if (out.kind == J_MISSING)
        jfail(rt, JERR_TYPE, "'%s' object is not subscriptable", jtype(v));
    return out;
}

static struct jval extreme(struct jrt *rt, struct jval v, struct jval *a, bool max)
{
    struct jattrs path = split_path(rt, given(a[1]) ? a[1] : JNONE);
    bool case_sensitive = flag(rt, a[0]);
    struct jval it = jiter(rt, v), item, best = JMISSING, best_key = JNONE;
    while (jnext(rt, it, &item)) {
        struct jval key = jattrs_get(rt, &path, item, JNONE);
        if (!case_sensitive)
            key = jignore_case(rt, key);
        if (best.kind == J_MISSING || jcompare(rt, max ? JCMP_GT : JCMP_LT, key, best_key)) {
            best = item;
            best_key = key;
        }
    }
    if (best.kind == J_MISSING)
        return jundef_hint(rt, "No aggregated item, sequence was empty.");
    return best;
}

FILTER(f_min)
{
    UNUSED;
    return extreme(rt, v, a, false);
}

FILTER(f_max)
{
    UNUSED;
    return extreme(rt, v, a, true);
}

FILTER(f_sum)
{
    UNUSED;
    struct jattrs path = split_path(rt, given(a[0]) ? a[0] : JNONE);
    struct jval total = given(a[1]) ? a[1] : jint(0), it = jiter(rt, v), item;
    if (total.kind == J_STR)
        jfail(rt, JERR_TYPE, "sum() can't sum strings [use ''.join(seq) instead]");
    while (jnext(rt, it, &item))
        total = jbinary(rt, JOP_ADD, total, jattrs_get(rt, &path, item, JNONE));
    return total;
}

FILTER(f_list)
{
    UNUSED;
    return jlistv(jlist_of(rt, v));
}

FILTER(f_reverse)
{
    UNUSED;
    if (v.kind == J_STR) {
        struct jval s = jslice(rt, v, JNONE, JNONE, jint(-1));
        return s;
    }
    bool ok;
    struct jval it = jreversed(rt, v, &ok);
    if (ok)
        return it;
    if (!jiterable(v))
        jfail(rt, JERR_TYPE, "argument must be iterable");
    struct jlist *l = copy_list(rt, v);
    for (size_t i = 0, k = l->n; i + 1 < k; i++) {
        struct jval t = l->v[i];
        l->v[i] = l->v[--k];
        l->v[k] = t;
    }
    return jlistv(l);
}

/* ---- generators
 * ---------------------------------------------------------------------------------------------- */

static struct jgen *generator(struct jrt *rt, enum jgen_kind kind, struct jval source)
{
    struct jgen *g = jalloc(rt, 1, sizeof *g);
    g->kind = kind;
    g->source = source;
    return g;
}

static struct jval picking(struct jrt *rt, struct jval v, const struct jargs *raw, bool by_attr,
                           bool negate)
{
    struct jgen *g = generator(rt, JGEN_SELECT, v);
    g->args = *raw;
    g->by_attr = by_attr;
    g->negate = negate;
    return jgenerator(rt, g);
}

FILTER(f_select)
{
    UNUSED;
    return picking(rt, v, raw, false, false);
}

FILTER(f_reject)
{
    UNUSED;
    return picking(rt, v, raw, false, true);
}

FILTER(f_selectattr)
{
    UNUSED;
    return picking(rt, v, raw, true, false);
}

FILTER(f_rejectattr)
{
    UNUSED;
    return picking(rt, v, raw, true, true);
}

FILTER(f_map)
{
    UNUSED;
    struct jgen *g = generator(rt, JGEN_MAP, v);
    g->args = *raw;
    return jgenerator(rt, g);
}

FILTER(f_unique)
{
    UNUSED;
    struct jgen *g = generator(rt, JGEN_UNIQUE, v);
    g->ignore_case = !flag(rt, a[0]);
    g->attrs = split_path(rt, given(a[1]) ? a[1] : JNONE);
    return jgenerator(rt, g);
}

static struct jval chunks(struct jrt *rt, enum jgen_kind kind, struct jval v, struct jval *a)
{
    struct jgen *g = generator(rt, kind, v);
    g->args.pos = jalloc(rt, 2, sizeof *g->args.pos);
    g->args.pos[0] = a[0];
    g->args.pos[1] = given(a[1]) ? a[1] : JNONE;
    g->args.n = 2;
    return jgenerator(rt, g);
}

FILTER(f_batch)
{
    UNUSED;
    return chunks(rt, JGEN_BATCH, v, a);
}

FILTER(f_slice)
{
    UNUSED;
    return chunks(rt, JGEN_SLICE, v, a);
}

FILTER(f_items)
{
    UNUSED;
    return jgenerator(rt, generator(rt, JGEN_ITEMS, v));
}

const struct jfilter jfilters_seq[] = {
    {"batch", f_batch, "linecount fill_with?"},
    {"dictsort", f_dictsort, "case_sensitive? by? reverse?"},
    {"first", f_first, ""},
    {"groupby", f_groupby, "attribute default? case_sensitive?"},
    {"items", f_items, ""},
    {"last", f_last, ""},
    {"list", f_list, ""},
    {"map", f_map, NULL},
    {"max", f_max, "case_sensitive? attribute?"},
    {"min", f_min, "case_sensitive? attribute?"},
    {"random", f_random, ""},
    {"reject", f_reject, NULL},
    {"rejectattr", f_rejectattr, NULL},
    {"reverse", f_reverse, ""},
    {"select", f_select, NULL},
    {"selectattr", f_selectattr, NULL},
    {"slice", f_slice, "slices fill_with?"},
    {"sort", f_sort, "reverse? case_sensitive? attribute?"},
    {"sum", f_sum, "attribute? start?"},
    {"unique", f_unique, "case_sensitive? attribute?"},
    {NULL, NULL, NULL},
};
