/* Alternatives of a value, and their intersection.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <string.h>

struct alt *alt_new(struct schema *c, enum alt_type type)
{
    struct alt *a = work_alloc(c->w, 1, sizeof *a);
    if (!a)
        return NULL;
    *a = (struct alt){.type = type, .yes = true, .no = true, .max = -1, .items = ANYTHING};
    if (type == ALT_OBJ)
        alt_add_group(c, a, (struct group){.conj = ANYTHING, .soft = true});
    return a;
}

struct alt *alt_copy(struct schema *c, const struct alt *a)
{
    struct alt *b = work_alloc(c->w, 1, sizeof *b);
    if (!b)
        return NULL;
    *b = *a;
    b->prop = NULL;
    b->group = NULL;
    b->n_prop = b->cap_prop = b->n_group = b->cap_group = 0;
    for (int i = 0; i < a->n_prop; i++)
        alt_add_prop(c, b, a->prop[i]);
    for (int i = 0; i < a->n_group; i++)
        alt_add_group(c, b, a->group[i]);
    return b;
}

void alt_add_prop(struct schema *c, struct alt *a, struct prop p)
{
    if (work_grow(c->w, &a->prop, &a->cap_prop, a->n_prop + 1, sizeof *a->prop))
        a->prop[a->n_prop++] = p;
}

void alt_add_group(struct schema *c, struct alt *a, struct group g)
{
    if (work_grow(c->w, &a->group, &a->cap_group, a->n_group + 1, sizeof *a->group))
        a->group[a->n_group++] = g;
}

struct alts *alts_new(struct schema *c)
{
    return work_alloc(c->w, 1, sizeof(struct alts));
}

void alts_add(struct schema *c, struct alts *a, struct alt *x)
{
    if (!a || !x || c->w->st)
        return;
    if (a->n >= ALTS_MAX)
        work_refuse(c->w, "too complex: a value with more than %d alternatives", ALTS_MAX);
    else if (work_grow(c->w, &a->a, &a->cap, a->n + 1, sizeof(struct alt *)))
        a->a[a->n++] = x;
}

void alts_join(struct schema *c, struct alts *a, const struct alts *b)
{
    for (int i = 0; b && i < b->n; i++)
        alts_add(c, a, b->a[i]);
}

struct alts *alts_any(struct schema *c)
{
    struct alts *a = alts_new(c);
    for (int t = ALT_NULL; t < ALT_VALUE; t++)
        alts_add(c, a, alt_new(c, (enum alt_type)t));
    return a;
}

struct prop *alt_prop(const struct alt *a, const char *name, size_t n)
{
    for (int i = 0; i < a->n_prop; i++)
        if (a->prop[i].n_name == n && memcmp(a->prop[i].name, name, n) == 0)
            return &a->prop[i];
    return NULL;
}

static const struct group *group_of(const struct alt *a, const char *name, size_t n)
{
    for (int i = 0; i < a->n_group; i++)
        if (!a->group[i].keys || fsm_matches_utf8(a->group[i].keys, name, n))
            return &a->group[i];
    return NULL;
}

struct prop *alt_need_prop(struct schema *c, struct alt *a, const char *name, size_t n)
{
    struct prop *p = alt_prop(a, name, n);
    const struct group *g = p ? NULL : group_of(a, name, n);
    if (p || !g)
        return p;
    alt_add_prop(c, a, (struct prop){.name = name, .n_name = n, .conj = g->conj});
    return c->w->st ? NULL : &a->prop[a->n_prop - 1];
}

/* ---- is there a value at all? ---------------------------------------------------------------- */

static bool array_is_empty(struct schema *c, const struct alt *a)
{
    if (a->max >= 0 && a->min > a->max)
        return true;
    for (int i = 0; i < a->min && i <= a->n_prefix; i++)
        if (conj_is_never(c, i < a->n_prefix ? a->prefix[i] : a->items))
            return true;
    return false;
}

static bool object_is_empty(struct schema *c, const struct alt *a)
{
    if (a->max >= 0 && a->min > a->max)
        return true;
    for (int i = 0; i < a->n_prop; i++)
        if (a->prop[i].required && conj_is_never(c, a->prop[i].conj))
            return true;
    return false;
}

bool alt_is_empty(struct schema *c, const struct alt *a)
{
    if (c->w->st)
        return false;
    switch (a->type) {
    case ALT_BOOL:
        return !a->yes && !a->no;
    case ALT_NUM:
        return (a->num && fsm_empty(a->num)) || (a->limit && fsm_empty(a->limit));
    case ALT_STR:
        return (a->max >= 0 && a->min > a->max) || (a->str && fsm_empty(a->str));
    case ALT_ARR:
        return array_is_empty(c, a);
    case ALT_OBJ:
        return object_is_empty(c, a);
    default:
        return false;
    }
}

/* ---- intersection ---------------------------------------------------------------------------- */

static const struct fsm *both(struct schema *c, const struct fsm *a, const struct fsm *b)
{
    if (!a || !b || a == b)
        return a ? a : b;
    return fsm_both(c->w, a, b);
}

static int item_at(const struct alt *a, int i)
{
    return i < a->n_prefix ? a->prefix[i] : a->items;
}

static void and_arrays(struct schema *c, struct alt *x, const struct alt *a, const struct alt *b)
{
    int n = a->n_prefix > b->n_prefix ? a->n_prefix : b->n_prefix;
    x->prefix = work_alloc(c->w, (size_t)n, sizeof *x->prefix);
    x->contains = work_alloc(c->w, (size_t)(a->n_contains + b->n_contains), sizeof *x->contains);
    if (c->w->st)
        return;
    for (int i = 0; i < n; i++)
        x->prefix[i] = conj_and(c, item_at(a, i), item_at(b, i));
    x->n_prefix = n;
    x->items = conj_and(c, a->items, b->items);
    x->items_known = a->items_known || b->items_known;
    x->n_contains = a->n_contains + b->n_contains;
    for (int i = 0; i < a->n_contains; i++)
        x->contains[i] = a->contains[i];
    for (int i = 0; i < b->n_contains; i++)
        x->contains[a->n_contains + i] = b->contains[i];
}

/* a's properties as b sees them, and those of b alone. A property that one side forbids stays, with
 * no value, so that the other side's groups do not bring it back. */
static void and_props(struct schema *c, struct alt *x, const struct alt *a, const struct alt *b,
                      bool shared)
{
    for (int i = 0; i < a->n_prop && !c->w->st; i++) {
        struct prop p = a->prop[i];
        const struct prop *q = alt_prop(b, p.name, p.n_name);
        if (q && !shared)
            continue;
        if (q) {
            p.conj = conj_and(c, p.conj, q->conj);
            p.required |= q->required;
        } else {
            const struct group *g = group_of(b, p.name, p.n_name);
            p.conj = g ? conj_and(c, p.conj, g->conj) : conj_never(c);
        }
        alt_add_prop(c, x, p);
    }
}

static void and_groups(struct schema *c, struct alt *x, const struct alt *a, const struct alt *b)
{
    x->n_group = 0;
    for (int i = 0; i < a->n_group; i++)
        for (int k = 0; k < b->n_group && !c->w->st; k++) {
            const struct group *p = &a->group[i], *q = &b->group[k];
            struct group g = {.keys = both(c, p->keys, q->keys),
                              .conj = conj_and(c, p->conj, q->conj),
                              .soft = p->soft && q->soft,
                              .asked = p->asked || q->asked};
            if (!g.keys || !fsm_empty(g.keys))
                alt_add_group(c, x, g);
        }
}

static struct alt *alt_and(struct schema *c, const struct alt *a, const struct alt *b)
{
    if (a->type != b->type)
        return NULL;
    struct alt *x = alt_new(c, a->type);
    if (!x)
        return NULL;
    x->yes = a->yes && b->yes;
    x->no = a->no && b->no;
    x->num = both(c, a->num, b->num);
    x->limit = both(c, a->limit, b->limit);
    x->integer = a->integer || b->integer;
    x->str = both(c, a->str, b->str);
    x->min = a->min > b->min ? a->min : b->min;
    x->max = a->max < 0 || (b->max >= 0 && b->max < a->max) ? b->max : a->max;
    if (a->type == ALT_ARR)
        and_arrays(c, x, a, b);
    if (a->type == ALT_OBJ) {
        and_props(c, x, a, b, true);
        and_props(c, x, b, a, false);
        and_groups(c, x, a, b);
    }
    return c->w->st || alt_is_empty(c, x) ? NULL : x;
}

static bool is_plain(const struct alt *a)
{
    return a->min == 0 && a->max < 0 && a->n_prefix == 0 && a->items == ANYTHING &&
           a->n_contains == 0 && a->n_prop == 0 && a->n_group <= 1 &&
           (a->n_group == 0 || (!a->group[0].keys && a->group[0].conj == ANYTHING));
}

/* An array or object given whole (enum, const), against keywords beside it. */
static struct alt *value_and(struct schema *c, struct alt *v, const struct alt *b)
{
    bool array = json_is_array(v->value);
    if (b->type == ALT_VALUE)
        return json_equal(v->value, b->value) ? v : NULL;
    if (b->type != (array ? ALT_ARR : ALT_OBJ))
        return NULL;
    if (is_plain(b) && (array || b->n_group))
        return v;
    schema_refuse(c, v->value, NULL,
                  "an array or object in enum or const cannot be combined with other keywords");
    return NULL;
}

struct alts *alts_and(struct schema *c, const struct alts *a, const struct alts *b)
{
    struct alts *out = alts_new(c);
    for (int i = 0; a && b && i < a->n; i++)
        for (int k = 0; k < b->n && work_spend(c->w, 4); k++) {
            struct alt *x = a->a[i], *y = b->a[k];
            if (x->type == ALT_VALUE)
                alts_add(c, out, value_and(c, x, y));
            else if (y->type == ALT_VALUE)
                alts_add(c, out, value_and(c, y, x));
            else
                alts_add(c, out, alt_and(c, x, y));
        }
    return c->w->st ? NULL : out;
}
