/* SPDX-License-Identifier: Apache-2.0
 *
 * Strings, lists and dicts: how they are made and found. */
#include "text/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

/* ---- strings -------------------------------------------------------------------------------- */

struct jstr *jstr_view(struct jrt *rt, const char *p, size_t n)
{
    struct jstr *s = jalloc(rt, 1, sizeof *s);
    *s = (struct jstr){p, n, SIZE_MAX, NULL};
    return s;
}

struct jstr *jstr_new(struct jrt *rt, const char *p, size_t n)
{
    char *copy = jalloc(rt, n + 1, 1);
    if (n)
        memcpy(copy, p, n);
    return jstr_view(rt, copy, n);
}

struct jval jstr_lit(struct jrt *rt, const char *s)
{
    return jstrv(jstr_view(rt, s, strlen(s)));
}

static struct jgrow *grow_new(struct jrt *rt, size_t bytes)
{
    struct jgrow *g = jalloc(rt, 1, sizeof *g);
    g->cap = bytes + bytes / 2 + 64;
    g->data = jalloc(rt, g->cap, 1);
    return g;
}

/* Appending to the last piece of a growing block writes behind it; nobody else sees those bytes. */
struct jstr *jstr_cat(struct jrt *rt, struct jstr *a, struct jstr *b)
{
    if (!b->n)
        return a;
    if (!a->n)
        return b;
    jstep_bytes(rt, b->n);
    struct jgrow *g = a->in;
    const char *p = a->p;
    if (!g || a->p + a->n != g->data + g->used || g->cap - g->used < b->n) {
        jstep_bytes(rt, a->n);
        g = grow_new(rt, a->n + b->n);
        memcpy(g->data, a->p, a->n);
        g->used = a->n;
        p = g->data;
    }
    memcpy(g->data + g->used, b->p, b->n);
    g->used += b->n;
    struct jstr *s = jstr_view(rt, p, a->n + b->n);
    s->in = g;
    if (a->chars != SIZE_MAX && b->chars != SIZE_MAX)
        s->chars = a->chars + b->chars;
    return s;
}

bool jstr_eq(const struct jstr *a, const struct jstr *b)
{
    return a == b || (a->n == b->n && memcmp(a->p, b->p, a->n) == 0);
}

bool jstr_is(const struct jstr *a, const char *s)
{
    size_t n = strlen(s);
    return a->n == n && memcmp(a->p, s, n) == 0;
}

/* UTF-8 sorts as its code points do. */
int jstr_cmp(const struct jstr *a, const struct jstr *b)
{
    int c = memcmp(a->p, b->p, a->n < b->n ? a->n : b->n);
    return c ? c : a->n < b->n ? -1 : a->n > b->n;
}

size_t jstr_chars(struct jstr *s)
{
    if (s->chars == SIZE_MAX) {
        size_t n = 0;
        for (size_t i = 0; i < s->n; i++)
            n += (s->p[i] & 0xc0) != 0x80;
        s->chars = n;
    }
    return s->chars;
}

bool jstr_ascii(struct jstr *s)
{
    return jstr_chars(s) == s->n;
}

size_t jstr_offset(struct jstr *s, size_t chars)
{
    if (jstr_ascii(s))
        return chars < s->n ? chars : s->n;
    if (chars >= s->chars)
        return s->n;
    size_t i = 0;
    if (chars <= s->chars / 2) {
        for (;;) {
            if ((s->p[i] & 0xc0) != 0x80 && chars-- == 0)
                return i;
            i++;
        }
    }
    for (i = s->n, chars = s->chars - chars; chars; chars--)
        while ((s->p[--i] & 0xc0) == 0x80)
            ;
    return i;
}

struct jstr *jstr_sub(struct jrt *rt, struct jstr *s, size_t from, size_t to)
{
    if (to <= from)
        return jstr_view(rt, "", 0);
    if (!jstr_ascii(s))
        jstep_bytes(rt, s->n);
    size_t a = jstr_offset(s, from), b = jstr_offset(s, to);
    struct jstr *sub = jstr_view(rt, s->p + a, b - a);
    sub->in = s->in;
    sub->chars = to - from;
    return sub;
}

struct jstr *jstr_char(struct jrt *rt, uint32_t cp)
{
    char buf[4];
    return jstr_new(rt, buf, juni_encode(cp, buf));
}

/* ---- text under construction ---------------------------------------------------------------- */

static char *jb_room(struct jbuild *b, size_t n)
{
    if (n > b->cap - b->n) {
        jstep_bytes(b->rt, b->n);
        size_t cap = b->cap ? b->cap * 2 : 48;
        if (cap < b->n + n)
            cap = b->n + n;
        char *p = jalloc(b->rt, cap, 1);
        if (b->n)
            memcpy(p, b->p, b->n);
        b->p = p;
        b->cap = cap;
    }
    return b->p + b->n;
}

void jb_add(struct jbuild *b, const char *p, size_t n)
{
    if (!n)
        return;
    memcpy(jb_room(b, n), p, n);
    b->n += n;
}

void jb_adds(struct jbuild *b, const char *s)
{
    jb_add(b, s, strlen(s));
}

void jb_addc(struct jbuild *b, char c)
{
    *jb_room(b, 1) = c;
    b->n++;
}

void jb_fill(struct jbuild *b, const char *p, size_t n, size_t times)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, times, &bytes))
        bytes = SIZE_MAX / 4;
    if (!bytes)
        return;
    jstep_bytes(b->rt, bytes);
    char *to = jb_room(b, bytes);
    for (size_t i = 0; i < bytes; i += n)
        memcpy(to + i, p, n);
    b->n += bytes;
}

void jb_str(struct jbuild *b, const struct jstr *s)
{
    jb_add(b, s->p, s->n);
}

void jb_cp(struct jbuild *b, uint32_t cp)
{
    char buf[4];
    jb_add(b, buf, juni_encode(cp, buf));
}

void jb_fmt(struct jbuild *b, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n > 0)
        jb_add(b, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

struct jstr *jb_done(struct jbuild *b)
{
    jb_addc(b, 0); /* messages are read as C strings */
    jstep_bytes(b->rt, b->n);
    return jstr_view(b->rt, b->p, b->n - 1);
}

/* ---- lists ---------------------------------------------------------------------------------- */

struct jlist *jlist_new(struct jrt *rt, size_t n)
{
    static struct jval none[1]; /* so that an empty list has an address to count from */
    struct jlist *l = jalloc(rt, 1, sizeof *l);
    l->n = n;
    l->v = none;
    if (n) {
        jstep(rt, n);
        l->v = jalloc(rt, n, sizeof *l->v);
    }
    return l;
}

static void list_move(struct jrt *rt, struct jlist *l, size_t more)
{
    struct jgrow *g = grow_new(rt, (l->n + more) * sizeof *l->v);
    if (l->n)
        memcpy(g->data, l->v, l->n * sizeof *l->v);
    jstep(rt, l->n);
    g->used = l->n * sizeof *l->v;
    l->v = (struct jval *)(void *)g->data;
    l->in = g;
}

static bool list_has_room(const struct jlist *l, size_t more)
{
    return l->in && (char *)(l->v + l->n) == l->in->data + l->in->used &&
           l->in->cap - l->in->used >= more * sizeof *l->v;
}

void jlist_push(struct jrt *rt, struct jlist *l, struct jval v)
{
    if (!list_has_room(l, 1))
        list_move(rt, l, 1);
    jstep(rt, 1);
    l->v[l->n++] = v;
    l->in->used += sizeof v;
}

struct jlist *jlist_cat(struct jrt *rt, struct jlist *a, struct jlist *b)
{
    struct jlist *l = jalloc(rt, 1, sizeof *l);
    *l = *a;
    l->group = false;
    if (!b->n)
        return l;
    jstep(rt, b->n);
    if (!list_has_room(l, b->n))
        list_move(rt, l, b->n);
    memcpy(l->v + l->n, b->v, b->n * sizeof *l->v);
    l->n += b->n;
    l->in->used += b->n * sizeof *l->v;
    return l;
}

struct jval jpair_tuple(struct jrt *rt, struct jval a, struct jval b)
{
    struct jlist *l = jlist_new(rt, 2);
    l->v[0] = a;
    l->v[1] = b;
    return jtuplev(l);
}

/* ---- dicts ---------------------------------------------------------------------------------- */

enum { SMALL_DICT = 8 };

struct jdict *jdict_new(struct jrt *rt)
{
    struct jdict *d = jalloc(rt, 1, sizeof *d);
    d->seed = rt->seed;
    return d;
}

/* Seeded: keys come from requests, and must not be able to collide on purpose. */
static uint64_t str_hash(const struct jstr *s, uint64_t seed)
{
    return XXH3_64bits_withSeed(s->p, s->n, seed);
}

static uint64_t mix(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    return h ^ h >> 33;
}

static uint64_t number_hash(struct jval v)
{
    double f = v.f;
    if (v.kind == J_FLOAT && f >= -9.2e18 && f <= 9.2e18 && f == (double)(int64_t)f)
        return mix((uint64_t)(int64_t)f);
    if (v.kind == J_FLOAT)
        return XXH3_64bits(&f, sizeof f);
    return mix(v.kind == J_BOOL ? v.b : (uint64_t)v.i);
}

uint64_t jhash(struct jrt *rt, struct jval v)
{
    uint64_t h = 77;
    switch (v.kind) {
    case J_STR:
        return str_hash(v.s, rt->seed);
    case J_BOOL:
    case J_INT:
    case J_FLOAT:
        return number_hash(v);
    case J_BIG:
        return jbig_hash(v);
    case J_TUPLE:
        jenter(rt);
        for (size_t i = 0; i < v.l->n; i++)
            h = mix(h * 31 + jhash(rt, v.l->v[i]));
        jleave(rt);
        return h;
    case J_LIST:
    case J_DICT:
    case J_VIEW:
        jfail(rt, JERR_TYPE, "unhashable type: '%s'", jtype(v));
    case J_UNDEF:
    case J_NONE:
        return mix(v.kind);
    case J_RANGE:
        return mix((uint64_t)v.r->n);
    case J_FUNC:
        return mix((uint64_t)v.fn + 1000);
    default:
        return mix((uint64_t)(uintptr_t)v.s);
    }
}

static uint32_t *index_slot(const struct jdict *d, uint64_t hash, size_t i)
{
    return &d->index[(hash + i) & (d->n_index - 1)];
}

static void index_add(struct jdict *d, size_t entry)
{
    size_t i = 0;
    while (*index_slot(d, d->v[entry].hash, i))
        i++;
    *index_slot(d, d->v[entry].hash, i) = (uint32_t)entry + 1;
}

static bool str_matches(const struct jpair *e, uint64_t hash, const struct jstr *key)
{
    return e->hash == hash && e->key.kind == J_STR && jstr_eq(e->key.s, key);
}

struct jval *jdict_get_str(const struct jdict *d, const struct jstr *key)
{
    if (!d->index) {
        for (size_t i = 0; i < d->n; i++)
            if (d->v[i].key.kind == J_STR && jstr_eq(d->v[i].key.s, key))
                return &d->v[i].value;
        return NULL;
    }
    uint64_t hash = str_hash(key, d->seed);
    for (size_t i = 0;; i++) {
        uint32_t e = *index_slot(d, hash, i);
        if (!e)
            return NULL;
        if (str_matches(&d->v[e - 1], hash, key))
            return &d->v[e - 1].value;
    }
}

struct jval *jdict_get(struct jrt *rt, const struct jdict *d, struct jval key)
{
    if (key.kind == J_STR)
        return jdict_get_str(d, key.s);
    uint64_t hash = jhash(rt, key);
    if (!d->index) {
        for (size_t i = 0; i < d->n; i++)
            if (d->v[i].hash == hash && jeq(rt, d->v[i].key, key))
                return &d->v[i].value;
        return NULL;
    }
    for (size_t i = 0;; i++) {
        uint32_t e = *index_slot(d, hash, i);
        if (!e)
            return NULL;
        if (d->v[e - 1].hash == hash && jeq(rt, d->v[e - 1].key, key))
            return &d->v[e - 1].value;
    }
}

static void dict_grow(struct jrt *rt, struct jdict *d)
{
    size_t cap = d->cap ? d->cap * 2 : 4;
    if (cap > UINT32_MAX / 4)
        jfail(rt, JERR_LIMIT, "a dict has too many keys");
    struct jpair *v = jalloc(rt, cap, sizeof *v);
    if (d->n)
        memcpy(v, d->v, d->n * sizeof *v);
    d->v = v;
    d->cap = cap;
    if (cap <= SMALL_DICT)
        return;
    d->n_index = cap * 2;
    d->index = jalloc(rt, d->n_index, sizeof *d->index);
    for (size_t i = 0; i < d->n; i++)
        index_add(d, i);
}

void jdict_set(struct jrt *rt, struct jdict *d, struct jval key, struct jval v)
{
    jstep(rt, 1);
    struct jval *old = jdict_get(rt, d, key);
    if (old) {
        *old = v;
        return;
    }
    if (d->n == d->cap)
        dict_grow(rt, d);
    d->v[d->n] = (struct jpair){key, v, jhash(rt, key)};
    d->n++;
    if (d->index)
        index_add(d, d->n - 1);
}

/* ---- undefined ------------------------------------------------------------------------------ */

static struct jval undef(struct jrt *rt, const char *hint, struct jval obj, struct jval name)
{
    struct jundef *u = jalloc(rt, 1, sizeof *u);
    *u = (struct jundef){hint, obj, name};
    return (struct jval){.kind = J_UNDEF, .u = u};
}

struct jval jundef_name(struct jrt *rt, struct jstr *name)
{
    return undef(rt, NULL, JMISSING, jstrv(name));
}

struct jval jundef_hint(struct jrt *rt, const char *hint)
{
    return undef(rt, hint, JMISSING, JNONE);
}

struct jval jundef_attr(struct jrt *rt, struct jval obj, struct jval name)
{
    return undef(rt, NULL, obj, name);
}

void jfail_undef(struct jrt *rt, struct jval v)
{
    const struct jundef *u = v.u;
    if (u->hint)
        jfail(rt, JERR_UNDEFINED, "%s", u->hint);
    struct jbuild b = {.rt = rt};
    jrepr_of(&b, u->name);
    const char *name = jb_done(&b)->p;
    if (u->obj.kind == J_MISSING)
        jfail(rt, JERR_UNDEFINED, "%s is undefined", name);
    if (u->name.kind != J_STR)
        jfail(rt, JERR_UNDEFINED, "%s has no element %s", jtype_long(u->obj), name);
    jfail(rt, JERR_UNDEFINED, "'%s' has no attribute %s", jtype_long(u->obj), name);
}

/* ---- from JSON ------------------------------------------------------------------------------ */

/* What template_vars_parse() makes of an integer that JSON readers cannot hold. */
static bool json_big(struct jrt *rt, const json_t *j, struct jval *out)
{
    const json_t *digits = json_object_size(j) == 1 ? json_object_get(j, JINJA_BIG_KEY) : NULL;
    if (!json_is_string(digits))
        return false;
    const char *p = json_string_value(digits);
    size_t n = json_string_length(digits), sign = n && *p == '-';
    for (size_t i = sign; i < n; i++)
        if (p[i] < '0' || p[i] > '9')
            return false;
    if (n == sign)
        return false;
    *out = jbig_parse(rt, p + sign, n - sign, 10, sign);
    return true;
}

/* A key with NULs in it, which jansson does not read: template_vars_parse() has escaped them. */
static struct jstr *json_key(struct jrt *rt, const char *p, size_t n)
{
    size_t prefix = strlen(JINJA_KEY_PREFIX);
    if (n < prefix || memcmp(p, JINJA_KEY_PREFIX, prefix))
        return jstr_view(rt, p, n);
    struct jbuild b = {.rt = rt};
    for (size_t i = prefix; i < n; i++) {
        if (p[i] == 1 && i + 1 < n)
            jb_addc(&b, p[++i] == '0' ? 0 : 1);
        else
            jb_addc(&b, p[i]);
    }
    return jb_done(&b);
}

static struct jval from_object(struct jrt *rt, const json_t *j)
{
    struct jval v;
    if (json_big(rt, j, &v))
        return v;
    struct jdict *d = jdict_new(rt);
    for (void *it = json_object_iter((json_t *)j); it;
         it = json_object_iter_next((json_t *)j, it)) {
        struct jstr *key = json_key(rt, json_object_iter_key(it), json_object_iter_key_len(it));
        jdict_set(rt, d, jstrv(key), jval_from_json(rt, json_object_iter_value(it)));
    }
    return jdictv(d);
}

static struct jval from_array(struct jrt *rt, const json_t *j)
{
    struct jlist *l = jlist_new(rt, json_array_size(j));
    for (size_t i = 0; i < l->n; i++)
        l->v[i] = jval_from_json(rt, json_array_get(j, i));
    return jlistv(l);
}

struct jval jval_from_json(struct jrt *rt, const json_t *j)
{
    jstep(rt, 1);
    jenter(rt);
    struct jval v = JNONE;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        v = from_object(rt, j);
        break;
    case JSON_ARRAY:
        v = from_array(rt, j);
        break;
    case JSON_STRING:
        v = jstrv(jstr_view(rt, json_string_value(j), json_string_length(j)));
        break;
    case JSON_INTEGER:
        v = jint(json_integer_value(j));
        break;
    case JSON_REAL:
        v = jfloat(json_real_value(j));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v = jbool(json_is_true(j));
        break;
    case JSON_NULL:
        break;
    }
    jleave(rt);
    return v;
}
