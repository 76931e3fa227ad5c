/* Keywords to alternatives.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <math.h>
#include <string.h>

static const json_t *get(const json_t *s, const char *key)
{
    return json_object_get(s, key);
}

int schema_count(struct schema *c, const json_t *s, const char *keyword)
{
    const json_t *v = get(s, keyword);
    double d = json_number_value(v);
    if (!v)
        return -1;
    if (!json_is_number(v) || d < 0 || d != floor(d)) {
        schema_refuse(c, s, keyword, "must be a whole number, not negative");
        return -1;
    }
    return d > 1000000000.0 ? 1000000000 : (int)d;
}

const struct fsm *schema_pattern(struct schema *c, const json_t *s, const char *keyword,
                                 const char *pattern, size_t n)
{
    struct sl_err own = {0}, *outer = c->w->err;
    if (c->w->st)
        return NULL;
    c->w->err = &own; /* its message, with the place in front */
    const struct fsm *m = regex_fsm(c->w, pattern, n, true);
    c->w->err = outer;
    if (c->w->st == SL_EINVAL) {
        size_t skip = strlen(c->w->what) + 2;
        char text[200];
        memcpy(text, own.msg, sizeof text);
        text[sizeof text - 1] = 0;
        c->w->st = SL_OK;
        schema_refuse(c, s, keyword, "%s", strlen(text) > skip ? text + skip : text);
    } else if (c->w->st) {
        c->w->st = SL_FAIL(outer, SL_ENOMEM, "%s: no memory to compile it", c->w->what);
    }
    return c->w->st ? NULL : m;
}

/* ---- types and values ------------------------------------------------------------------------ */

static struct alt *type_named(struct schema *c, const char *name)
{
    static const char *const names[] = {"null", "boolean", "number", "string", "array", "object"};
    for (int t = 0; name && t < 6; t++)
        if (strcmp(name, names[t]) == 0)
            return alt_new(c, (enum alt_type)t);
    struct alt *a = name && strcmp(name, "integer") == 0 ? alt_new(c, ALT_NUM) : NULL;
    if (a)
        a->integer = true;
    return a;
}

/* Numbers that no integer equals. */
static struct alt *not_integer(struct schema *c)
{
    struct alt *a = alt_new(c, ALT_NUM);
    const char *text = "-?(0|[1-9][0-9]*)(\\.0+)?";
    const struct fsm *whole = regex_fsm(c->w, text, strlen(text), false);
    if (!a || !whole)
        return NULL;
    a->num = fsm_without(c->w, schema_plain_number(c), whole);
    return a;
}

struct alts *schema_types(struct schema *c, const json_t *s, const json_t *type, bool negated)
{
    struct alts *out = alts_new(c);
    bool has[ALT_VALUE] = {false}, integer = false;
    size_t n = json_is_array(type) ? json_array_size(type) : 1;
    for (size_t i = 0; i < n && !c->w->st; i++) {
        const json_t *t = json_is_array(type) ? json_array_get(type, i) : type;
        struct alt *a = type_named(c, json_string_value(t));
        if (!a) {
            schema_refuse(c, s, "type", "'%.40s' is not a type",
                          json_is_string(t) ? json_string_value(t) : "(not a string)");
            return NULL;
        }
        if (a->integer)
            integer = true;
        else
            has[a->type] = true;
    }
    for (int t = ALT_NULL; t < ALT_VALUE && !c->w->st; t++) {
        struct alt *a = NULL;
        if (has[t] != negated)
            a = alt_new(c, (enum alt_type)t);
        if (t == ALT_NUM && integer && !has[t])
            a = negated ? not_integer(c) : type_named(c, "integer");
        alts_add(c, out, a);
    }
    return out;
}

static const struct fsm *literals(struct schema *c, const json_t *s, const json_t *list,
                                  bool strings, bool exact)
{
    struct nfa a;
    nfa_init(&a, c->w);
    int start = nfa_state(&a), end = nfa_state(&a);
    if (c->w->st)
        return NULL;
    a.final[end] = true;
    for (size_t i = 0; i < json_array_size(list) && !c->w->st; i++) {
        const json_t *v = json_array_get(list, i);
        const struct fsm *m = NULL;
        if (strings && json_is_string(v))
            m = fsm_literal(c->w, json_string_value(v), json_string_length(v));
        else if (!strings && json_is_number(v))
            m = schema_number_value(c, s, v, exact);
        if (m)
            nfa_add_fsm(&a, m, start, end);
    }
    return c->w->st ? NULL : fsm_minimize(c->w, fsm_from_nfa(&a, start));
}

struct alts *schema_values(struct schema *c, const json_t *s, const json_t *list)
{
    struct alts *out = alts_new(c);
    bool null = false, yes = false, no = false, strings = false, numbers = false;
    for (size_t i = 0; i < json_array_size(list) && !c->w->st; i++) {
        const json_t *v = json_array_get(list, i);
        null |= json_is_null(v);
        yes |= json_is_true(v);
        no |= json_is_false(v);
        strings |= json_is_string(v);
        numbers |= json_is_number(v);
        if (json_is_array(v) || json_is_object(v)) {
            struct alt *a = alt_new(c, ALT_VALUE);
            if (a)
                a->value = v;
            alts_add(c, out, a);
        }
    }
    if (null)
        alts_add(c, out, alt_new(c, ALT_NULL));
    struct alt *a = yes || no ? alt_new(c, ALT_BOOL) : NULL;
    if (a) {
        a->yes = yes;
        a->no = no;
        alts_add(c, out, a);
    }
    if (strings && (a = alt_new(c, ALT_STR)) != NULL) {
        a->str = literals(c, s, list, true, false);
        alts_add(c, out, a);
    }
    if (numbers && (a = alt_new(c, ALT_NUM)) != NULL) {
        a->num = literals(c, s, list, false, true);
        a->limit = literals(c, s, list, false, false);
        alts_add(c, out, a);
    }
    return c->w->st ? NULL : out;
}

/* ---- scalars --------------------------------------------------------------------------------- */

static void read_number(struct schema *c, const json_t *s, struct alt *a)
{
    struct bounds b = {get(s, "minimum"), get(s, "maximum"), get(s, "exclusiveMinimum"),
                       get(s, "exclusiveMaximum"), get(s, "multipleOf")};
    const char *format = json_string_value(get(s, "format"));
    if (b.lo || b.hi || b.lo_open || b.hi_open || b.multiple)
        a->num = schema_number(c, s, &b);
    if (format && (strcmp(format, "int32") == 0 || strcmp(format, "int64") == 0)) {
        json_int_t most = format[3] == '3' ? INT32_MAX : INT64_MAX;
        json_t *lo = json_integer(-most - 1), *hi = json_integer(most);
        struct bounds own = {.lo = lo, .hi = hi};
        const struct fsm *m = lo && hi ? schema_number(c, s, &own) : NULL;
        json_decref(lo);
        json_decref(hi);
        a->num = a->num && m ? fsm_both(c->w, a->num, m) : m;
    }
}

/* Formats that say how a value is stored or shown, not what it looks like. */
static bool says_nothing(const char *format)
{
    static const char *const names[] = {"int32",  "int64",    "float", "double",   "password",
                                        "binary", "textarea", "color", "markdown", "html"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(format, names[i]) == 0)
            return true;
    return false;
}

static void read_string(struct schema *c, const json_t *s, struct alt *a)
{
    const json_t *pattern = get(s, "pattern"), *format = get(s, "format");
    int min = schema_count(c, s, "minLength"), max = schema_count(c, s, "maxLength");
    a->min = min < 0 ? 0 : min;
    a->max = max;
    if (pattern && !json_is_string(pattern))
        schema_refuse(c, s, "pattern", "not a string");
    if (format && !json_is_string(format))
        schema_refuse(c, s, "format", "not a string");
    if (json_is_string(pattern))
        a->str = schema_pattern(c, s, "pattern", json_string_value(pattern),
                                json_string_length(pattern));
    if (json_is_string(format) && !says_nothing(json_string_value(format)) && !c->w->st) {
        const struct fsm *m = schema_format(c, s, json_string_value(format));
        a->str = a->str && m ? fsm_both(c->w, a->str, m) : m;
    }
}

/* ---- arrays ---------------------------------------------------------------------------------- */

static void read_array(struct schema *c, const json_t *s, struct alt *a)
{
    const json_t *prefix = get(s, "prefixItems"), *items = get(s, "items");
    const json_t *contains = get(s, "contains");
    int min = schema_count(c, s, "minItems"), max = schema_count(c, s, "maxItems");
    a->min = min < 0 ? 0 : min;
    a->max = max;
    if (json_is_array(items)) { /* as older drafts write tuples */
        prefix = items;
        items = get(s, "additionalItems");
    }
    if (prefix && !json_is_array(prefix))
        schema_refuse(c, s, "prefixItems", "not an array");
    if (json_array_size(prefix) > 1000)
        schema_refuse(c, s, "prefixItems", "more than 1000 items");
    a->n_prefix = (int)json_array_size(prefix);
    a->prefix = work_alloc(c->w, (size_t)a->n_prefix, sizeof *a->prefix);
    for (int i = 0; i < a->n_prefix && !c->w->st; i++)
        a->prefix[i] = conj_of(c, json_array_get(prefix, (size_t)i), false);
    if (items)
        a->items = conj_of(c, items, false);
    a->items_known = items != NULL;
    int least = schema_count(c, s, "minContains"), most = schema_count(c, s, "maxContains");
    if (contains && !c->w->st) {
        a->contains = work_alloc(c->w, 1, sizeof *a->contains);
        if (!a->contains)
            return;
        a->contains[0] =
            (struct contains){conj_of(c, contains, false), least < 0 ? 1 : least, most};
        a->n_contains = !(least == 0 && most < 0);
    }
}

/* ---- objects --------------------------------------------------------------------------------- */

/* Splits the groups by a pattern: its names also have values in conj. matched[i] tells the groups
 * that some pattern speaks of. */
static void split_groups(struct schema *c, struct alt *a, const struct fsm *m, int conj)
{
    struct group old[64];
    int n = a->n_group;
    if (n > 32) {
        work_refuse(c->w, "patternProperties: too many patterns that overlap");
        return;
    }
    if (n)
        memcpy(old, a->group, (size_t)n * sizeof *old);
    a->n_group = 0;
    for (int i = 0; i < n && !c->w->st; i++) {
        const struct fsm *all = old[i].keys ? old[i].keys : fsm_all(c->w);
        const struct fsm *in = fsm_both(c->w, all, m), *out = fsm_without(c->w, all, m);
        if (c->w->st)
            return;
        if (!fsm_empty(in))
            alt_add_group(c, a, (struct group){.keys = in, .conj = conj_and(c, old[i].conj, conj)});
        if (!fsm_empty(out))
            alt_add_group(c, a, (struct group){out, old[i].conj, old[i].soft, old[i].asked});
    }
}

static void read_names(struct schema *c, const json_t *s, struct alt *a)
{
    const json_t *names = get(s, "propertyNames");
    if (!names || c->w->st)
        return;
    const struct alts *alts = schema_alts(c, conj_of(c, names, false));
    const struct fsm *any = NULL;
    bool all = false;
    for (int i = 0; alts && i < alts->n && !c->w->st; i++) {
        const struct alt *x = alts->a[i];
        if (x->type != ALT_STR)
            continue;
        const struct fsm *m = x->str;
        if (x->min > 0 || x->max >= 0) {
            if (x->min > 2000 || x->max > 2000) {
                schema_refuse(c, names, NULL, "names of more than 2000 characters");
                return;
            }
            const struct fsm *len = fsm_length(c->w, x->min, x->max);
            m = m ? fsm_both(c->w, m, len) : len;
        }
        all |= !m;
        any = any && m ? fsm_either(c->w, any, m) : m;
    }
    if (all || c->w->st)
        return;
    int n = 0;
    for (int i = 0; i < a->n_group && any; i++) {
        struct group g = a->group[i];
        g.keys = g.keys ? fsm_both(c->w, g.keys, any) : any;
        g.asked = true;
        if (g.keys && !fsm_empty(g.keys))
            a->group[n++] = g;
    }
    a->n_group = n;
    for (int i = 0; i < a->n_prop && !c->w->st; i++)
        if (!any || !fsm_matches_utf8(any, a->prop[i].name, a->prop[i].n_name))
            a->prop[i].conj = conj_never(c);
}

static void read_required(struct schema *c, const json_t *s, const char *keyword,
                          const json_t *required, struct alt *a)
{
    for (size_t i = 0; i < json_array_size(required) && !c->w->st; i++) {
        const json_t *v = json_array_get(required, i);
        if (!json_is_string(v)) {
            schema_refuse(c, s, keyword, "not an array of strings");
            return;
        }
        struct prop *p = alt_need_prop(c, a, json_string_value(v), json_string_length(v));
        if (!p && !c->w->st) {
            alt_add_prop(c, a,
                         (struct prop){.name = json_string_value(v),
                                       .n_name = json_string_length(v),
                                       .conj = conj_never(c)});
            p = c->w->st ? NULL : &a->prop[a->n_prop - 1];
        }
        if (p)
            p->required = true;
    }
}

static void read_patterns(struct schema *c, const json_t *patterns, struct alt *a)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)patterns, key, v)
    {
        const struct fsm *m = schema_pattern(c, patterns, key, key, strlen(key));
        int conj = m ? conj_of(c, v, false) : ANYTHING;
        if (!m)
            return;
        split_groups(c, a, m, conj);
        for (int i = 0; i < a->n_prop && !c->w->st; i++)
            if (fsm_matches_utf8(m, a->prop[i].name, a->prop[i].n_name))
                a->prop[i].conj = conj_and(c, a->prop[i].conj, conj);
    }
}

static void read_object(struct schema *c, const json_t *s, struct alt *a)
{
    const json_t *props = get(s, "properties"), *patterns = get(s, "patternProperties");
    const json_t *more = get(s, "additionalProperties"), *required = get(s, "required");
    int min = schema_count(c, s, "minProperties"), max = schema_count(c, s, "maxProperties");
    const char *key;
    json_t *v;
    if ((props && !json_is_object(props)) || (patterns && !json_is_object(patterns)))
        schema_refuse(c, s, props && !json_is_object(props) ? "properties" : "patternProperties",
                      "not an object");
    if (required && !json_is_array(required))
        schema_refuse(c, s, "required", "not an array of strings");
    a->min = min < 0 ? 0 : min;
    a->max = max;
    json_object_foreach((json_t *)props, key, v)
    {
        if (c->w->st)
            return;
        alt_add_prop(
            c, a, (struct prop){.name = key, .n_name = strlen(key), .conj = conj_of(c, v, false)});
    }
    if (json_is_object(patterns))
        read_patterns(c, patterns, a);
    for (int i = 0; i < a->n_group && more && !c->w->st;) {
        struct group *g = &a->group[i];
        if (!g->soft) { /* a pattern speaks of it */
            i++;
        } else if (json_is_false(more)) {
            *g = a->group[--a->n_group];
        } else {
            g->soft = false;
            g->conj = conj_and(c, g->conj, conj_of(c, more, false));
            i++;
        }
    }
    read_names(c, s, a);
    read_required(c, s, "required", required, a);
}

/* ---- one schema's own keywords --------------------------------------------------------------- */

static bool has_any(const json_t *s, const char *const *keys)
{
    for (; *keys; keys++)
        if (get(s, *keys))
            return true;
    return false;
}

static struct alts *read_own(struct schema *c, const json_t *s)
{
    static const char *const num[] = {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format", NULL};
    static const char *const str[] = {"minLength", "maxLength", "pattern", "format", NULL};
    static const char *const arr[] = {"minItems", "maxItems", "prefixItems",
                                      "items",    "contains", NULL};
    static const char *const obj[] = {
        "properties",    "patternProperties", "additionalProperties", "required",
        "minProperties", "maxProperties",     "propertyNames",        NULL};
    const json_t *type = get(s, "type");
    struct alts *all = type ? schema_types(c, s, type, false) : alts_any(c), *out = alts_new(c);
    for (int i = 0; all && i < all->n && !c->w->st; i++) {
        struct alt *a = all->a[i];
        if (a->type == ALT_NUM && has_any(s, num))
            read_number(c, s, a);
        if (a->type == ALT_STR && has_any(s, str))
            read_string(c, s, a);
        if (a->type == ALT_ARR && has_any(s, arr))
            read_array(c, s, a);
        if (a->type == ALT_OBJ && has_any(s, obj))
            read_object(c, s, a);
        if (!c->w->st && !alt_is_empty(c, a))
            alts_add(c, out, a);
    }
    return c->w->st ? NULL : out;
}

/* ---- applicators ----------------------------------------------------------------------------- */

static void refuse_unsupported(struct schema *c, const json_t *s)
{
    static const char *const no[] = {"$dynamicRef", "$recursiveRef", NULL};
    for (int i = 0; no[i]; i++)
        if (get(s, no[i]))
            schema_refuse(c, s, no[i], "not supported");
}

static struct alts *read_any_of(struct schema *c, const json_t *s, const json_t *list)
{
    struct alts *out = alts_new(c);
    if (!json_is_array(list) || json_array_size(list) == 0) {
        schema_refuse(c, s, "anyOf", "not an array of schemas");
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(list) && !c->w->st; i++)
        alts_join(c, out, schema_read(c, json_array_get(list, i), false));
    return out;
}

/* Each branch, without the others where they could both hold. */
static struct alts *read_one_of(struct schema *c, const json_t *s, const json_t *list)
{
    struct alts *out = alts_new(c);
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0 || n > 200) {
        schema_refuse(c, s, "oneOf",
                      n > 200 ? "more than 200 branches" : "not an array of schemas");
        return NULL;
    }
    const struct alts **branch = work_alloc(c->w, n, sizeof(struct alts *));
    for (size_t i = 0; i < n && !c->w->st; i++)
        branch[i] = schema_read(c, json_array_get(list, i), false);
    for (size_t i = 0; i < n && !c->w->st; i++) {
        const struct alts *own = branch[i];
        for (size_t k = 0; k < n && !c->w->st && own->n; k++) {
            const struct alts *overlap = k == i ? NULL : alts_and(c, own, branch[k]);
            if (overlap && overlap->n)
                own = alts_and(c, own, schema_read(c, json_array_get(list, k), true));
        }
        if (!c->w->st)
            alts_join(c, out, own);
    }
    return out;
}

/* (if and then) or (not if and else). */
static struct alts *read_if(struct schema *c, const json_t *s)
{
    const json_t *cond = get(s, "if"), *yes = get(s, "then"), *no = get(s, "else");
    struct alts *a = schema_read(c, cond, false), *b;
    if (yes && !c->w->st)
        a = alts_and(c, a, schema_read(c, yes, false));
    b = c->w->st ? NULL : schema_read(c, cond, true);
    if (no && !c->w->st)
        b = alts_and(c, b, schema_read(c, no, false));
    if (!c->w->st)
        alts_join(c, a, b);
    return a;
}

/* Where the name is absent, or present and `then` holds. */
static struct alts *read_dependency(struct schema *c, const json_t *s, const char *keyword,
                                    const char *name, const json_t *then)
{
    struct alts *with = alts_any(c), *out = alts_any(c);
    if (c->w->st)
        return NULL;
    struct alt *absent = out->a[ALT_OBJ], *present = with->a[ALT_OBJ];
    size_t n = strlen(name);
    alt_add_prop(c, absent, (struct prop){.name = name, .n_name = n, .conj = conj_never(c)});
    alt_add_prop(c, present,
                 (struct prop){.name = name, .n_name = n, .conj = ANYTHING, .required = true});
    struct alts *only = alts_new(c);
    if (json_is_array(then)) {
        read_required(c, s, keyword, then, present);
        alts_add(c, only, present);
    } else {
        alts_add(c, only, present);
        only = c->w->st ? NULL : alts_and(c, only, schema_read(c, then, false));
    }
    if (!c->w->st)
        alts_join(c, out, only);
    return out;
}

static struct alts *read_dependencies(struct schema *c, const json_t *s, struct alts *a)
{
    static const char *const keywords[] = {"dependentRequired", "dependentSchemas", "dependencies"};
    for (int i = 0; i < 3; i++) {
        const char *name;
        json_t *v;
        json_object_foreach((json_t *)get(s, keywords[i]), name, v)
        {
            if (c->w->st)
                return NULL;
            a = alts_and(c, a, read_dependency(c, s, keywords[i], name, v));
        }
    }
    return a;
}

/* What no keyword of this schema, nor of those applied to the same value, has spoken of. */
static void read_unevaluated(struct schema *c, const json_t *s, struct alts *a)
{
    const json_t *props = get(s, "unevaluatedProperties"), *items = get(s, "unevaluatedItems");
    if ((props || items) && (get(s, "not") || get(s, "if") || get(s, "oneOf") ||
                             get(s, "dependentSchemas") || get(s, "contains")))
        schema_refuse(c, s, props ? "unevaluatedProperties" : "unevaluatedItems",
                      "not supported beside not, if, oneOf, contains or dependentSchemas");
    for (int i = 0; a && i < a->n && !c->w->st; i++) {
        struct alt *x = a->a[i] = alt_copy(c, a->a[i]);
        if (x && x->type == ALT_ARR && items && !x->items_known) {
            x->items = conj_and(c, x->items, conj_of(c, items, false));
            x->items_known = true;
        }
        for (int k = 0; x && x->type == ALT_OBJ && props && k < x->n_group;) {
            struct group *g = &x->group[k];
            if (!g->soft) {
                k++;
            } else if (json_is_false(props)) {
                *g = x->group[--x->n_group];
            } else {
                g->soft = false;
                g->conj = conj_and(c, g->conj, conj_of(c, props, false));
                k++;
            }
        }
    }
}

static struct alts *read_schema(struct schema *c, const json_t *s)
{
    const json_t *v;
    struct alts *a;
    refuse_unsupported(c, s);
    a = c->w->st ? NULL : read_own(c, s);
    if ((v = get(s, "enum")) && !c->w->st) {
        if (!json_is_array(v))
            schema_refuse(c, s, "enum", "not an array");
        a = alts_and(c, a, schema_values(c, s, v));
    }
    if ((v = get(s, "const")) && !c->w->st) {
        json_t *one = json_pack("[O]", v);
        struct alts *values = one ? schema_values(c, s, one) : NULL;
        a = alts_and(c, a, values);
        json_decref(one);
    }
    if ((v = get(s, "$ref")) && !c->w->st) {
        const json_t *to = schema_resolve(c, s, json_string_value(v));
        a = to ? alts_and(c, a, schema_read(c, to, false)) : NULL;
    }
    if ((v = get(s, "allOf")) && !json_is_array(v))
        schema_refuse(c, s, "allOf", "not an array of schemas");
    for (size_t i = 0; i < json_array_size(v) && !c->w->st; i++)
        a = alts_and(c, a, schema_read(c, json_array_get(v, i), false));
    if ((v = get(s, "anyOf")) && !c->w->st)
        a = alts_and(c, a, read_any_of(c, s, v));
    if ((v = get(s, "oneOf")) && !c->w->st)
        a = alts_and(c, a, read_one_of(c, s, v));
    if ((v = get(s, "not")) && !c->w->st)
        a = alts_and(c, a, schema_read(c, v, true));
    if (get(s, "if") && (get(s, "then") || get(s, "else")) && !c->w->st)
        a = alts_and(c, a, read_if(c, s));
    if (!c->w->st)
        a = read_dependencies(c, s, a);
    if (!c->w->st)
        read_unevaluated(c, s, a);
    return c->w->st ? NULL : a;
}

struct alts *schema_read(struct schema *c, const json_t *s, bool negated)
{
    struct alts *a;
    if (c->w->st || !work_spend(c->w, 50))
        return NULL;
    if (json_is_boolean(s))
        return json_is_true(s) != negated ? alts_any(c) : alts_new(c);
    if (!json_is_object(s)) {
        schema_refuse(c, s, NULL, "not a schema (an object or a boolean)");
        return NULL;
    }
    if (++c->depth > APPLY_MAX)
        schema_refuse(c, s, NULL,
                      "more than %d schemas apply to one value, or a $ref leads to itself",
                      APPLY_MAX);
    a = c->w->st ? NULL : negated ? schema_read_not(c, s) : read_schema(c, s);
    c->depth--;
    return c->w->st ? NULL : a;
}

struct alts *schema_alts(struct schema *c, int conj)
{
    struct alts *a;
    if (c->w->st || c->conj[conj].alts)
        return c->conj[conj].alts;
    int depth = c->depth;
    c->depth = 0;
    c->conj[conj].open = true;
    a = c->conj[conj].never ? alts_new(c) : alts_any(c);
    for (int i = 0; i < c->conj[conj].n && !c->w->st; i++) {
        struct lit l = c->conj[conj].lit[i];
        a = alts_and(c, a, schema_read(c, l.s, l.negated));
    }
    c->conj[conj].open = false;
    c->conj[conj].alts = a;
    c->depth = depth;
    return c->w->st ? NULL : a;
}
