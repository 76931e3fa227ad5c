/* SPDX-License-Identifier: Apache-2.0
 *
 * Expressions. */
#include "text/jinja.h"
#include "text/jinja_run.h"

#include <string.h>

struct jval *jslot(struct jrt *rt, struct slot s)
{
    struct env *e = rt->env;
    for (unsigned i = s.hops; i; i--)
        e = e->up;
    return &e->slot[s.index];
}

static struct jval eval_list(struct jrt *rt, const struct node *n)
{
    struct jlist *l = jlist_new(rt, n->list.n);
    for (size_t i = 0; i < l->n; i++)
        l->v[i] = jeval(rt, n->list.v[i]);
    return (struct jval){.kind = n->kind == N_TUPLE ? J_TUPLE : J_LIST, .l = l};
}

static struct jval eval_dict(struct jrt *rt, const struct node *n)
{
    struct jdict *d = jdict_new(rt);
    for (size_t i = 0; i + 1 < n->list.n; i += 2) {
        struct jval key = jeval(rt, n->list.v[i]);
        struct jval value = jeval(rt, n->list.v[i + 1]);
        rt->at = n->list.v[i]->pos;
        jdict_set(rt, d, key, value);
    }
    return jdictv(d);
}

static struct jval eval_concat(struct jrt *rt, const struct node *n)
{
    struct jval first = jeval(rt, n->list.v[0]);
    struct jstr *s = jto_str(rt, first);
    bool markup = rt->autoescape && first.kind == J_STR && first.markup;
    struct jlist *all = rt->autoescape ? jlist_new(rt, 0) : NULL;
    if (all)
        jlist_push(rt, all, first);
    for (size_t i = 1; i < n->list.n; i++) {
        struct jval v = jeval(rt, n->list.v[i]);
        if (all) {
            jlist_push(rt, all, v);
            markup |= v.kind == J_STR && v.markup;
        } else {
            s = jstr_cat(rt, s, jto_str(rt, v));
        }
    }
    for (size_t i = 0; all && i < all->n; i++) {
        struct jstr *part = (markup ? jescape(rt, all->v[i]) : jsoft_str(rt, all->v[i])).s;
        s = i ? jstr_cat(rt, s, part) : part;
    }
    struct jval out = jstrv(s);
    out.markup = markup;
    return out;
}

static struct jval eval_compare(struct jrt *rt, const struct node *n)
{
    struct jval left = jeval(rt, n->cmp.first);
    for (size_t i = 0; i < n->cmp.rest.n; i++) {
        struct jval right = jeval(rt, n->cmp.rest.v[i]);
        rt->at = n->pos;
        if (!jcompare(rt, n->cmp.ops[i], left, right))
            return jbool(false);
        left = right;
    }
    return jbool(true);
}

static struct jval eval_part(struct jrt *rt, const struct node *n)
{
    return n ? jeval(rt, n) : JNONE;
}

static struct jval eval_item(struct jrt *rt, const struct node *n)
{
    struct jval obj = jeval(rt, n->e.a);
    const struct node *key = n->e.b;
    if (key->kind != N_SLICE) {
        struct jval k = jeval(rt, key);
        rt->at = n->pos;
        return jget_item(rt, obj, k);
    }
    struct jval from = eval_part(rt, key->e.a);
    struct jval to = eval_part(rt, key->e.b);
    struct jval step = eval_part(rt, key->e.c);
    rt->at = n->pos;
    return jslice(rt, obj, from, to, step);
}

/* ---- calls ---------------------------------------------------------------------------------- */

static void add_kwargs(struct jrt *rt, struct jargs *out, struct jval map)
{
    if (map.kind != J_DICT) {
        if (map.kind == J_UNDEF)
            jfail(rt, JERR_TYPE, "argument after ** must be a mapping, not Undefined");
        jfail(rt, JERR_TYPE, "argument after ** must be a mapping, not %s", jtype(map));
    }
    size_t n = out->n_kw + map.d->n;
    struct jval *names = jalloc(rt, n + 1, sizeof *names),
                *values = jalloc(rt, n + 1, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        if (i < out->n_kw) {
            names[i] = out->kw_name[i];
            values[i] = out->kw[i];
            continue;
        }
        const struct jpair *e = &map.d->v[i - out->n_kw];
        if (e->key.kind != J_STR)
            jfail(rt, JERR_TYPE, "keywords must be strings");
        for (size_t k = 0; k < out->n_kw; k++)
            if (jstr_eq(names[k].s, e->key.s))
                jfail(rt, JERR_TYPE, "got multiple values for keyword argument '%.*s'",
                      (int)e->key.s->n, e->key.s->p);
        names[i] = e->key;
        values[i] = e->value;
    }
    out->kw_name = names;
    out->kw = values;
    out->n_kw = n;
}

struct jargs jeval_args(struct jrt *rt, const struct call_args *a, size_t spare_kw)
{
    struct jargs out = {0};
    if (a->pos.n) {
        out.n = a->pos.n;
        out.pos = jalloc(rt, out.n, sizeof *out.pos);
        for (size_t i = 0; i < out.n; i++)
            out.pos[i] = jeval(rt, a->pos.v[i]);
    }
    if (a->n_kw + spare_kw) {
        out.n_kw = a->n_kw;
        out.kw = jalloc(rt, out.n_kw + spare_kw, sizeof *out.kw);
        out.kw_name = jalloc(rt, out.n_kw + spare_kw, sizeof *out.kw_name);
        for (size_t i = 0; i < out.n_kw; i++) {
            out.kw_name[i] = jstrv(a->kw[i].name);
            out.kw[i] = jeval(rt, a->kw[i].value);
        }
    }
    if (a->dyn_args) {
        struct jval extra = jeval(rt, a->dyn_args);
        if (!jiterable(extra))
            jfail(rt, JERR_TYPE, "argument after * must be an iterable, not %s", jtype(extra));
        struct jlist *l = jlist_of(rt, extra);
        struct jval *all = jalloc(rt, out.n + l->n + 1, sizeof *all);
        if (out.n)
            memcpy(all, out.pos, out.n * sizeof *all);
        if (l->n)
            memcpy(all + out.n, l->v, l->n * sizeof *all);
        jstep(rt, l->n);
        out.pos = all;
        out.n += l->n;
    }
    if (a->dyn_kwargs)
        add_kwargs(rt, &out, jeval(rt, a->dyn_kwargs));
    return out;
}

static struct jval eval_call(struct jrt *rt, const struct node *n)
{
    struct jval f = jeval(rt, n->call.base);
    struct jargs args = jeval_args(rt, n->call.args, 0);
    rt->at = n->pos;
    struct jval v = jcall(rt, f, &args);
    rt->at = n->pos;
    return v;
}

struct jval jeval_filter(struct jrt *rt, const struct node *n, struct jval text)
{
    if (!n->call.filter) {
        rt->at = n->pos;
        jfail(rt, JERR_RUNTIME, "no filter named '%.*s'", (int)n->call.name->n, n->call.name->p);
    }
    const struct node *base = n->call.base;
    struct jval v = !base                    ? text
                    : base->kind == N_FILTER ? (jenter(rt), jeval_filter(rt, base, text))
                                             : jeval(rt, base);
    if (base && base->kind == N_FILTER)
        jleave(rt);
    struct jargs args = jeval_args(rt, n->call.args, 0);
    rt->at = n->pos;
    return jfilter_call(rt, n->call.filter, v, &args);
}

static struct jval eval_test(struct jrt *rt, const struct node *n)
{
    if (!n->call.test) {
        rt->at = n->pos;
        jfail(rt, JERR_RUNTIME, "no test named '%.*s'", (int)n->call.name->n, n->call.name->p);
    }
    struct jval v = jeval(rt, n->call.base);
    struct jargs args = jeval_args(rt, n->call.args, 0);
    rt->at = n->pos;
    return jbool(jtest_call(rt, n->call.test, v, &args));
}

static struct jval eval_cond(struct jrt *rt, const struct node *n)
{
    bool yes = jtruth(rt, jeval(rt, n->e.a));
    if (yes || n->e.c)
        return jeval(rt, yes ? n->e.b : n->e.c);
    struct jbuild b = {.rt = rt};
    jb_fmt(&b,
           "the inline if-expression on line %u evaluated to false and no else section was defined",
           (unsigned)n->pos.line);
    return jundef_hint(rt, jb_done(&b)->p);
}

static struct jval eval_name(struct jrt *rt, const struct node *n)
{
    struct jval v = *jslot(rt, n->name.slot);
    return v.kind == J_MISSING ? jundef_name(rt, n->name.name) : v;
}

static struct jval eval_binary(struct jrt *rt, const struct node *n)
{
    struct jval a = jeval(rt, n->e.a);
    struct jval b = jeval(rt, n->e.b);
    rt->at = n->pos;
    return jbinary(rt, n->op, a, b);
}

static struct jval eval_any(struct jrt *rt, const struct node *n)
{
    struct jval v;
    switch (n->kind) {
    case N_TUPLE:
    case N_LIST:
        return eval_list(rt, n);
    case N_DICT:
        return eval_dict(rt, n);
    case N_ATTR:
        v = jeval(rt, n->attr.base);
        rt->at = n->pos;
        return jget_attr(rt, v, n->attr.name, n->attr.attr);
    case N_ITEM:
        return eval_item(rt, n);
    case N_CALL:
        return eval_call(rt, n);
    case N_FILTER:
        return jeval_filter(rt, n, JMISSING);
    case N_TEST:
        return eval_test(rt, n);
    case N_NOT:
        return jbool(!jtruth(rt, jeval(rt, n->e.a)));
    case N_NEG:
    case N_POS:
        v = jeval(rt, n->e.a);
        rt->at = n->pos;
        return jnegate(rt, v, n->kind == N_POS);
    case N_BIN:
        return eval_binary(rt, n);
    case N_AND:
    case N_OR:
        v = jeval(rt, n->e.a);
        return jtruth(rt, v) == (n->kind == N_AND) ? jeval(rt, n->e.b) : v;
    case N_CONCAT:
        return eval_concat(rt, n);
    case N_COMPARE:
        return eval_compare(rt, n);
    case N_COND:
        return eval_cond(rt, n);
    default:
        return JNONE;
    }
}

struct jval jeval(struct jrt *rt, const struct node *n)
{
    jstep(rt, 1);
    rt->at = n->pos;
    if (n->kind == N_CONST)
        return n->konst;
    if (n->kind == N_NAME)
        return eval_name(rt, n);
    jenter(rt);
    struct jval v = eval_any(rt, n);
    jleave(rt);
    return v;
}

/* ---- assignment -------------------------------------------------------------------------------
 */

static void assign_tuple(struct jrt *rt, const struct node *target, struct jval v)
{
    if (!jiterable(v)) {
        if (v.kind == J_UNDEF)
            jfail_undef(rt, v);
        jfail(rt, JERR_TYPE, "cannot unpack non-iterable %s object", jtype(v));
    }
    struct jval it = jiter(rt, v), more;
    size_t n = target->list.n;
    struct jval *items = jalloc(rt, n + 1, sizeof *items);
    for (size_t i = 0; i < n; i++)
        if (!jnext(rt, it, &items[i]))
            jfail(rt, JERR_VALUE, "not enough values to unpack (expected %zu, got %zu)", n, i);
    if (jnext(rt, it, &more))
        jfail(rt, JERR_VALUE, "too many values to unpack (expected %zu)", n);
    for (size_t i = 0; i < n; i++)
        jassign(rt, target->list.v[i], items[i]);
}

/* Before anything is assigned, every `ns.x` among the targets must name a namespace. */
void jcheck_targets(struct jrt *rt, const struct node *target)
{
    if (target->kind == N_NSREF) {
        rt->at = target->pos;
        if (jslot(rt, target->name.slot)->kind != J_NS)
            jfail(rt, JERR_RUNTIME, "cannot assign attribute on non-namespace object");
    }
    for (size_t i = 0; target->kind == N_TUPLE && i < target->list.n; i++)
        jcheck_targets(rt, target->list.v[i]);
}

void jassign(struct jrt *rt, const struct node *target, struct jval v)
{
    rt->at = target->pos;
    if (target->kind == N_NAME) {
        *jslot(rt, target->name.slot) = v;
    } else if (target->kind == N_NSREF) {
        struct jval ns = *jslot(rt, target->name.slot);
        if (ns.kind != J_NS)
            jfail(rt, JERR_RUNTIME, "cannot assign attribute on non-namespace object");
        jdict_set(rt, ns.d, jstrv(target->name.attr), v);
    } else {
        jenter(rt);
        assign_tuple(rt, target, v);
        jleave(rt);
    }
}
