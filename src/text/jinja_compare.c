/* SPDX-License-Identifier: Apache-2.0
 *
 * Truth, equality, order and membership, as Python has them. */
#include "text/jinja.h"

#include <math.h>
#include <string.h>

const char *jtype(struct jval v)
{
    static const char *const views[] = {"dict_keys", "dict_values", "dict_items"};
    static const char *const names[] = {[J_MISSING] = "missing",
                                        [J_UNDEF] = "Undefined",
                                        [J_NONE] = "NoneType",
                                        [J_BOOL] = "bool",
                                        [J_INT] = "int",
                                        [J_BIG] = "int",
                                        [J_FLOAT] = "float",
                                        [J_STR] = "str",
                                        [J_TUPLE] = "tuple",
                                        [J_LIST] = "list",
                                        [J_DICT] = "dict",
                                        [J_RANGE] = "range",
                                        [J_ITER] = "generator",
                                        [J_NS] = "Namespace",
                                        [J_FUNC] = "function",
                                        [J_METHOD] = "builtin_function_or_method",
                                        [J_MACRO] = "Macro",
                                        [J_LOOP] = "LoopContext",
                                        [J_CYCLER] = "Cycler",
                                        [J_JOINER] = "Joiner",
                                        [J_SELF] = "TemplateReference",
                                        [J_BLOCK] = "BlockReference"};
    if (v.kind == J_VIEW)
        return views[v.w->kind];
    if (v.kind == J_STR && v.markup)
        return "Markup";
    return names[v.kind];
}

const char *jtype_long(struct jval v)
{
    switch (v.kind) {
    case J_NONE:
        return "None";
    case J_BOOL:
        return "bool object";
    case J_INT:
    case J_BIG:
        return "int object";
    case J_FLOAT:
        return "float object";
    case J_STR:
        return v.markup ? "markupsafe.Markup object" : "str object";
    case J_TUPLE:
        return "tuple object";
    case J_LIST:
        return "list object";
    case J_DICT:
        return "dict object";
    case J_RANGE:
        return "range object";
    case J_ITER:
        return "generator object";
    case J_NS:
        return "jinja2.utils.Namespace object";
    case J_MACRO:
        return "jinja2.runtime.Macro object";
    case J_LOOP:
        return "jinja2.runtime.LoopContext object";
    case J_CYCLER:
        return "jinja2.utils.Cycler object";
    case J_JOINER:
        return "jinja2.utils.Joiner object";
    case J_SELF:
        return "jinja2.runtime.TemplateReference object";
    default:
        return jtype(v);
    }
}

bool jis_number(struct jval v)
{
    return v.kind == J_INT || v.kind == J_FLOAT || v.kind == J_BOOL || v.kind == J_BIG;
}

bool jis_intlike(struct jval v, int64_t *out)
{
    if (v.kind == J_INT)
        *out = v.i;
    else if (v.kind == J_BOOL)
        *out = v.b;
    else
        return false;
    return true;
}

int64_t jneed_int(struct jrt *rt, struct jval v, const char *what)
{
    int64_t i;
    if (jis_intlike(v, &i))
        return i;
    if (v.kind == J_BIG)
        jfail(rt, JERR_VALUE, "%s: the integer is too large", what);
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    jfail(rt, JERR_TYPE, "%s: '%s' object cannot be interpreted as an integer", what, jtype(v));
}

double jnumber(struct jrt *rt, struct jval v)
{
    return v.kind == J_FLOAT  ? v.f
           : v.kind == J_INT  ? (double)v.i
           : v.kind == J_BOOL ? (double)v.b
                              : jbig_double(rt, v);
}

bool jtruth(struct jrt *rt, struct jval v)
{
    switch (v.kind) {
    case J_MISSING:
    case J_UNDEF:
    case J_NONE:
        return false;
    case J_BOOL:
        return v.b;
    case J_INT:
        return v.i != 0;
    case J_FLOAT:
        return v.f != 0;
    case J_STR:
        return v.s->n > 0;
    case J_TUPLE:
    case J_LIST:
        return v.l->n > 0;
    case J_DICT:
        return v.d->n > 0;
    case J_VIEW:
        return v.w->d->n > 0;
    case J_RANGE:
        return v.r->n > 0;
    case J_LOOP:
        return jloop_length(rt, v) > 0;
    default:
        return true;
    }
}

bool jlen(struct jrt *rt, struct jval v, int64_t *n)
{
    switch (v.kind) {
    case J_UNDEF:
        *n = 0;
        return true;
    case J_STR:
        if (v.s->chars == SIZE_MAX)
            jstep_bytes(rt, v.s->n);
        *n = (int64_t)jstr_chars(v.s);
        return true;
    case J_TUPLE:
    case J_LIST:
        *n = (int64_t)v.l->n;
        return true;
    case J_DICT:
        *n = (int64_t)v.d->n;
        return true;
    case J_VIEW:
        *n = (int64_t)v.w->d->n;
        return true;
    case J_RANGE:
        *n = v.r->n;
        return true;
    case J_LOOP:
        *n = jloop_length(rt, v);
        return true;
    default:
        return false;
    }
}

/* ---- equality ------------------------------------------------------------------------------- */

bool jis_same(struct jval a, struct jval b)
{
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case J_NONE:
        return true;
    case J_BOOL:
        return a.b == b.b;
    case J_INT: /* CPython keeps one copy of each small integer and of equal constants */
        return a.i == b.i;
    case J_FLOAT:
        return a.f == b.f;
    case J_FUNC:
        return a.fn == b.fn;
    case J_STR:
        return a.s == b.s || (a.s->n <= 1 && jstr_eq(a.s, b.s));
    case J_METHOD:
        return false;
    default:
        return a.s == b.s;
    }
}

/* Mixed integers and floats compare by exact value, as in Python. */
static int number_cmp(struct jrt *rt, struct jval a, struct jval b)
{
    int64_t x, y;
    if (jis_intlike(a, &x) && jis_intlike(b, &y))
        return x < y ? -1 : x > y;
    if (a.kind == J_FLOAT && b.kind == J_FLOAT)
        return a.f < b.f ? -1 : a.f > b.f ? 1 : a.f == b.f ? 0 : 2;
    if (b.kind == J_FLOAT)
        return jbig_cmp_float(rt, a, b.f);
    if (a.kind == J_FLOAT) {
        int c = jbig_cmp_float(rt, b, a.f);
        return c == 2 ? 2 : -c;
    }
    return jbig_cmp(rt, a, b);
}

static bool lists_equal(struct jrt *rt, const struct jlist *a, const struct jlist *b)
{
    if (a == b)
        return true;
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!jis_same(a->v[i], b->v[i]) && !jeq(rt, a->v[i], b->v[i]))
            return false;
    return true;
}

static bool dicts_equal(struct jrt *rt, const struct jdict *a, const struct jdict *b)
{
    if (a == b)
        return true;
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        struct jval *other = jdict_get(rt, b, a->v[i].key);
        if (!other || !jeq(rt, a->v[i].value, *other))
            return false;
    }
    return true;
}

static bool ranges_equal(const struct jrange *a, const struct jrange *b)
{
    return a->n == b->n &&
           (a->n == 0 || (a->start == b->start && (a->n == 1 || a->step == b->step)));
}

static bool views_equal(struct jrt *rt, const struct jview *a, const struct jview *b)
{
    if (a == b)
        return true;
    if (a->kind != b->kind || a->kind == JVIEW_VALUES || a->d->n != b->d->n)
        return false;
    for (size_t i = 0; i < a->d->n; i++) {
        struct jval *other = jdict_get(rt, b->d, a->d->v[i].key);
        if (!other || (a->kind == JVIEW_ITEMS && !jeq(rt, a->d->v[i].value, *other)))
            return false;
    }
    return true;
}

static bool same_kind_equal(struct jrt *rt, struct jval a, struct jval b)
{
    switch (a.kind) {
    case J_UNDEF:
        return true;
    case J_STR:
        if (a.s->n == b.s->n)
            jstep_bytes(rt, a.s->n);
        return jstr_eq(a.s, b.s);
    case J_TUPLE:
    case J_LIST:
        return lists_equal(rt, a.l, b.l);
    case J_DICT:
        return dicts_equal(rt, a.d, b.d);
    case J_RANGE:
        return ranges_equal(a.r, b.r);
    case J_VIEW:
        return views_equal(rt, a.w, b.w);
    case J_METHOD:
        return a.m->id == b.m->id && jis_same(a.m->self, b.m->self);
    default:
        return jis_same(a, b);
    }
}

bool jeq(struct jrt *rt, struct jval a, struct jval b)
{
    jstep(rt, 1);
    if (jis_number(a) && jis_number(b))
        return number_cmp(rt, a, b) == 0;
    if (a.kind != b.kind)
        return false;
    jenter(rt);
    bool equal = same_kind_equal(rt, a, b);
    jleave(rt);
    return equal;
}

/* ---- order ---------------------------------------------------------------------------------- */

static int lists_order(struct jrt *rt, const struct jlist *a, const struct jlist *b, const char *op)
{
    for (size_t i = 0; i < a->n && i < b->n; i++)
        if (!jis_same(a->v[i], b->v[i]) && !jeq(rt, a->v[i], b->v[i]))
            return jorder(rt, a->v[i], b->v[i], op);
    return a->n < b->n ? -1 : a->n > b->n;
}

/* -1, 0, 1, or 2 where neither is true (NaN). */
int jorder(struct jrt *rt, struct jval a, struct jval b, const char *op)
{
    jstep(rt, 1);
    if (jis_number(a) && jis_number(b))
        return number_cmp(rt, a, b);
    if (a.kind == J_UNDEF)
        jfail_undef(rt, a);
    if (b.kind == J_UNDEF)
        jfail_undef(rt, b);
    if (a.kind == J_STR && b.kind == J_STR) {
        jstep_bytes(rt, a.s->n < b.s->n ? a.s->n : b.s->n);
        return jstr_cmp(a.s, b.s);
    }
    if (a.kind == b.kind && (a.kind == J_LIST || a.kind == J_TUPLE)) {
        jenter(rt);
        int c = lists_order(rt, a.l, b.l, op);
        jleave(rt);
        return c;
    }
    jfail(rt, JERR_TYPE, "'%s' not supported between instances of '%s' and '%s'", op, jtype(a),
          jtype(b));
}

bool jless(struct jrt *rt, struct jval a, struct jval b)
{
    int c = jorder(rt, a, b, "<");
    return c < 0;
}

/* keys() and items() compare as sets do: `<` is "a part of". */
static bool is_set(struct jval v)
{
    return v.kind == J_VIEW && v.w->kind != JVIEW_VALUES;
}

static bool compare_sets(struct jrt *rt, enum jcmp op, struct jval a, struct jval b)
{
    if (op == JCMP_GT || op == JCMP_GE)
        return compare_sets(rt, op == JCMP_GT ? JCMP_LT : JCMP_LE, b, a);
    size_t n = a.w->d->n, m = b.w->d->n;
    if (op == JCMP_LT ? n >= m : n > m)
        return false;
    struct jval it = jiter(rt, a), v;
    while (jnext(rt, it, &v))
        if (!jcontains(rt, b, v))
            return false;
    return true;
}

bool jcompare(struct jrt *rt, enum jcmp op, struct jval a, struct jval b)
{
    static const char *const text[] = {
        [JCMP_LT] = "<", [JCMP_LE] = "<=", [JCMP_GT] = ">", [JCMP_GE] = ">="};
    if (op == JCMP_EQ || op == JCMP_NE)
        return jeq(rt, a, b) == (op == JCMP_EQ);
    if (op == JCMP_IN || op == JCMP_NOTIN)
        return jcontains(rt, b, a) == (op == JCMP_IN);
    if (is_set(a) && is_set(b))
        return compare_sets(rt, op, a, b);
    int c = jorder(rt, a, b, text[op]);
    if (c == 2)
        return false;
    return op == JCMP_LT ? c < 0 : op == JCMP_LE ? c <= 0 : op == JCMP_GT ? c > 0 : c >= 0;
}

/* ---- membership ----------------------------------------------------------------------------- */

static bool str_contains(struct jrt *rt, struct jval s, struct jval item)
{
    if (item.kind != J_STR)
        jfail(rt, JERR_TYPE, "'in <string>' requires string as left operand, not %s", jtype(item));
    jstep_bytes(rt, s.s->n);
    return jmem_find(s.s->p, s.s->n, item.s->p, item.s->n) != SIZE_MAX;
}

static bool range_contains(struct jrt *rt, const struct jrange *r, struct jval item)
{
    int64_t i;
    if (!jis_intlike(item, &i)) {
        if (item.kind != J_FLOAT || item.f != floor(item.f) || fabs(item.f) > 9e18)
            return false;
        i = (int64_t)item.f;
    }
    (void)rt;
    if (r->n == 0 || (r->step > 0 ? i < r->start || i >= r->stop : i > r->start || i <= r->stop))
        return false;
    return ((uint64_t)i - (uint64_t)r->start) % (uint64_t)(r->step > 0 ? r->step : -r->step) == 0 ||
           (r->step < 0 && ((uint64_t)r->start - (uint64_t)i) % (uint64_t)-r->step == 0);
}

static bool view_contains(struct jrt *rt, const struct jview *w, struct jval item)
{
    if (w->kind == JVIEW_KEYS)
        return jdict_get(rt, w->d, item) != NULL;
    if (w->kind == JVIEW_ITEMS) {
        if (item.kind != J_TUPLE || item.l->n != 2)
            return false;
        struct jval *v = jdict_get(rt, w->d, item.l->v[0]);
        return v && jeq(rt, *v, item.l->v[1]);
    }
    for (size_t i = 0; i < w->d->n; i++)
        if (jis_same(w->d->v[i].value, item) || jeq(rt, w->d->v[i].value, item))
            return true;
    return false;
}

bool jcontains(struct jrt *rt, struct jval c, struct jval item)
{
    switch (c.kind) {
    case J_STR:
        return str_contains(rt, c, item);
    case J_DICT:
        return jdict_get(rt, c.d, item) != NULL;
    case J_RANGE:
        return range_contains(rt, c.r, item);
    case J_VIEW:
        return view_contains(rt, c.w, item);
    case J_TUPLE:
    case J_LIST:
        for (size_t i = 0; i < c.l->n; i++)
            if (jis_same(c.l->v[i], item) || jeq(rt, c.l->v[i], item))
                return true;
        return false;
    default:
        break;
    }
    if (!jiterable(c))
        jfail(rt, JERR_TYPE, "argument of type '%s' is not iterable", jtype(c));
    struct jval it = jiter(rt, c), v;
    while (jnext(rt, it, &v))
        if (jis_same(v, item) || jeq(rt, v, item))
            return true;
    return false;
}
