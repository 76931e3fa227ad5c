/* $ref, and the negation of keywords: the union of what breaks each of them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <stdlib.h>
#include <string.h>

/* ---- $ref ------------------------------------------------------------------------------------ */

static const json_t *find_anchor(const json_t *at, const char *name)
{
    const json_t *found = NULL, *v;
    const char *key;
    if (json_is_object(at)) {
        json_t *child;
        const char *anchor = json_string_value(json_object_get(at, "$anchor"));
        if (anchor && strcmp(anchor, name) == 0)
            return at;
        json_object_foreach((json_t *)at, key, child)
        {
            if (strcmp(key, "enum") != 0 && strcmp(key, "const") != 0 &&
                (found = find_anchor(child, name)) != NULL)
                return found;
        }
    }
    for (size_t i = 0; i < json_array_size(at); i++)
        if ((v = find_anchor(json_array_get(at, i), name)) != NULL)
            return v;
    return NULL;
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* One step of a pointer: %XX and ~0 ~1 undone; to[cap]. */
static bool unescape(const char *p, size_t n, char *to, size_t cap)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        char ch = p[i];
        if (ch == '%' && i + 2 < n + 0 && hex(p[i + 1]) >= 0 && hex(p[i + 2]) >= 0) {
            ch = (char)(hex(p[i + 1]) * 16 + hex(p[i + 2]));
            i += 2;
        }
        if (k + 1 >= cap)
            return false;
        to[k++] = ch;
    }
    to[k] = 0;
    size_t d = 0;
    for (size_t i = 0; i < k; i++) {
        char ch = to[i];
        if (ch == '~' && i + 1 < k && (to[i + 1] == '0' || to[i + 1] == '1'))
            ch = to[++i] == '0' ? '~' : '/';
        to[d++] = ch;
    }
    to[d] = 0;
    return true;
}

static const json_t *follow(const json_t *at, const char *pointer)
{
    char step[512];
    while (at && *pointer == '/') {
        const char *end = strchr(++pointer, '/');
        size_t n = end ? (size_t)(end - pointer) : strlen(pointer);
        if (!unescape(pointer, n, step, sizeof step))
            return NULL;
        if (json_is_array(at)) {
            char *stop;
            unsigned long i = strtoul(step, &stop, 10);
            at = *step && *stop == 0 ? json_array_get(at, i) : NULL;
        } else {
            at = json_object_get(at, step);
        }
        pointer += n;
    }
    return *pointer ? NULL : at;
}

const json_t *schema_resolve(struct schema *c, const json_t *s, const char *ref)
{
    const json_t *to = NULL;
    const char *id = json_string_value(json_object_get(c->root, "$id"));
    if (!ref) {
        schema_refuse(c, s, "$ref", "not a string");
        return NULL;
    }
    if (id && strncmp(ref, id, strlen(id)) == 0 && !strchr(id, '#') &&
        (ref[strlen(id)] == '#' || ref[strlen(id)] == 0))
        ref = ref[strlen(id)] ? ref + strlen(id) : "#";
    if (*ref != '#') {
        schema_refuse(c, s, "$ref", "'%.60s' leaves the document", ref);
        return NULL;
    }
    if (c->nested_id) {
        schema_refuse(c, s, "$ref", "not supported in a document with $id below its root");
        return NULL;
    }
    ref++;
    if (*ref == 0 || *ref == '/')
        to = follow(c->root, ref);
    else
        to = find_anchor(c->root, ref);
    if (!to)
        schema_refuse(c, s, "$ref", "nothing is at '#%.60s'", ref);
    return to;
}

/* ---- not ------------------------------------------------------------------------------------- */

static void add_number(struct schema *c, const json_t *s, const char *keyword, struct alts *out)
{
    const json_t *v = json_object_get(s, keyword);
    struct bounds b = {0};
    if (!v)
        return;
    struct alt *a = alt_new(c, ALT_NUM);
    if (!a)
        return;
    if (strcmp(keyword, "minimum") == 0)
        b.hi_open = v;
    else if (strcmp(keyword, "maximum") == 0)
        b.lo_open = v;
    else if (strcmp(keyword, "exclusiveMinimum") == 0)
        b.hi = v;
    else if (strcmp(keyword, "exclusiveMaximum") == 0)
        b.lo = v;
    else
        b.multiple = v;
    a->num = schema_number(c, s, &b);
    if (b.multiple && a->num)
        a->num = fsm_without(c->w, schema_plain_number(c), a->num);
    if (!c->w->st)
        alts_add(c, out, a);
}

static void add_size(struct schema *c, const json_t *s, enum alt_type type, const char *least,
                     const char *most, struct alts *out)
{
    int min = schema_count(c, s, least), max = schema_count(c, s, most);
    struct alt *a = min > 0 ? alt_new(c, type) : NULL;
    if (a) {
        a->max = min - 1;
        alts_add(c, out, a);
    }
    a = max >= 0 ? alt_new(c, type) : NULL;
    if (a) {
        a->min = max + 1;
        alts_add(c, out, a);
    }
}

static void add_pattern(struct schema *c, const json_t *s, struct alts *out)
{
    const json_t *p = json_object_get(s, "pattern"), *f = json_object_get(s, "format");
    for (int i = 0; i < 2; i++) {
        const json_t *v = i ? f : p;
        struct alt *a = json_is_string(v) ? alt_new(c, ALT_STR) : NULL;
        if (!a)
            continue;
        if (i) {
            schema_refuse(c, s, "format", "cannot be negated (under not, if or oneOf)");
            return;
        }
        const struct fsm *m =
            schema_pattern(c, s, "pattern", json_string_value(v), json_string_length(v));
        a->str = m ? fsm_without(c->w, fsm_all(c->w), m) : NULL;
        if (!c->w->st)
            alts_add(c, out, a);
    }
}

static void add_properties(struct schema *c, const json_t *s, struct alts *out)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)json_object_get(s, "properties"), key, v)
    {
        struct alt *a = alt_new(c, ALT_OBJ);
        if (!a || c->w->st)
            return;
        alt_add_prop(
            c, a,
            (struct prop){
                .name = key, .n_name = strlen(key), .conj = conj_of(c, v, true), .required = true});
        alts_add(c, out, a);
    }
    const json_t *required = json_object_get(s, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const json_t *name = json_array_get(required, i);
        struct alt *a = json_is_string(name) ? alt_new(c, ALT_OBJ) : NULL;
        if (!a)
            continue;
        alt_add_prop(c, a,
                     (struct prop){.name = json_string_value(name),
                                   .n_name = json_string_length(name),
                                   .conj = conj_never(c)});
        alts_add(c, out, a);
    }
}

/* Values that are none of these. */
static void add_values(struct schema *c, const json_t *s, const json_t *list, struct alts *out)
{
    const struct alts *in = schema_values(c, s, list), *all = alts_any(c);
    for (int t = ALT_NULL; t < ALT_VALUE && !c->w->st; t++) {
        struct alt *a = all->a[t];
        for (int i = 0; i < in->n && !c->w->st; i++) {
            const struct alt *x = in->a[i];
            if (x->type == ALT_VALUE && (t == ALT_ARR || t == ALT_OBJ)) {
                if (json_is_array(x->value) == (t == ALT_ARR))
                    schema_refuse(c, s, "not", "of an array or object in enum or const");
                continue;
            }
            if ((int)x->type != t)
                continue;
            a->yes &= !x->yes;
            a->no &= !x->no;
            if (t == ALT_NULL)
                a = NULL;
            else if (t == ALT_STR)
                a->str = fsm_without(c->w, fsm_all(c->w), x->str);
            else if (t == ALT_NUM)
                a->num = fsm_without(c->w, schema_plain_number(c), x->num);
            break;
        }
        if (a && !c->w->st && !alt_is_empty(c, a))
            alts_add(c, out, a);
    }
}

static void refuse_rest(struct schema *c, const json_t *s)
{
    static const char *const no[] = {"prefixItems",
                                     "items",
                                     "contains",
                                     "patternProperties",
                                     "additionalProperties",
                                     "propertyNames",
                                     "oneOf",
                                     "if",
                                     "dependentRequired",
                                     "dependentSchemas",
                                     "dependencies",
                                     "unevaluatedItems",
                                     "unevaluatedProperties",
                                     "uniqueItems",
                                     "$dynamicRef",
                                     "$recursiveRef"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (json_object_get(s, no[i]))
            schema_refuse(c, s, no[i], "cannot be negated (under not, if or oneOf)");
}

/* Not all of anyOf: none of them. */
static void add_any_of(struct schema *c, const json_t *s, struct alts *out)
{
    const json_t *list = json_object_get(s, "anyOf");
    struct alts *a = list ? alts_any(c) : NULL;
    for (size_t i = 0; i < json_array_size(list) && !c->w->st; i++)
        a = alts_and(c, a, schema_read(c, json_array_get(list, i), true));
    if (!c->w->st)
        alts_join(c, out, a);
}

struct alts *schema_read_not(struct schema *c, const json_t *s)
{
    static const char *const number[] = {"minimum", "maximum", "exclusiveMinimum",
                                         "exclusiveMaximum", "multipleOf"};
    struct alts *out = alts_new(c);
    const json_t *v;
    refuse_rest(c, s);
    for (int i = 0; i < 5 && !c->w->st; i++)
        add_number(c, s, number[i], out);
    if (c->w->st)
        return NULL;
    if ((v = json_object_get(s, "type")))
        alts_join(c, out, schema_types(c, s, v, true));
    add_size(c, s, ALT_STR, "minLength", "maxLength", out);
    add_size(c, s, ALT_ARR, "minItems", "maxItems", out);
    add_size(c, s, ALT_OBJ, "minProperties", "maxProperties", out);
    add_pattern(c, s, out);
    add_properties(c, s, out);
    if ((v = json_object_get(s, "enum")) && !c->w->st)
        add_values(c, s, v, out);
    if ((v = json_object_get(s, "const")) && !c->w->st) {
        json_t *one = json_pack("[O]", v);
        add_values(c, s, one, out);
        json_decref(one);
    }
    if ((v = json_object_get(s, "$ref")) && !c->w->st) {
        const json_t *to = schema_resolve(c, s, json_string_value(v));
        alts_join(c, out, to ? schema_read(c, to, true) : NULL);
    }
    if ((v = json_object_get(s, "not")) && !c->w->st)
        alts_join(c, out, schema_read(c, v, false));
    v = json_object_get(s, "allOf");
    for (size_t i = 0; i < json_array_size(v) && !c->w->st; i++)
        alts_join(c, out, schema_read(c, json_array_get(v, i), true));
    add_any_of(c, s, out);
    return c->w->st ? NULL : out;
}
