/* Conjunctions of schemas, and where a schema stands in its document.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- places ---------------------------------------------------------------------------------- */

/* Appends the pointer of `what` below `at` to path; false: it is not there. */
static bool find_place(const json_t *at, const json_t *what, char *path, size_t cap, size_t len)
{
    if (at == what)
        return true;
    if (len + 1 >= cap)
        return false;
    if (json_is_object(at)) {
        const char *key;
        json_t *v;
        json_object_foreach((json_t *)at, key, v)
        {
            int n = snprintf(path + len, cap - len, "/%s", key);
            if (find_place(v, what, path, cap,
                           len + (size_t)(n < 0 ? 0 : n) < cap ? len + (size_t)n : cap))
                return true;
        }
    } else if (json_is_array(at)) {
        for (size_t i = 0; i < json_array_size(at); i++) {
            int n = snprintf(path + len, cap - len, "/%zu", i);
            if (find_place(json_array_get(at, i), what, path, cap,
                           len + (size_t)n < cap ? len + (size_t)n : cap))
                return true;
        }
    }
    path[len] = 0;
    return false;
}

void schema_refuse(struct schema *c, const json_t *s, const char *keyword, const char *fmt, ...)
{
    char path[96] = {0}, text[128];
    va_list ap;
    if (c->w->st)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!find_place(c->root, s, path, sizeof path, 0))
        path[0] = 0;
    work_refuse(c->w, "%s%s%s: %s", path, keyword || !path[0] ? "/" : "", keyword ? keyword : "",
                text);
}

/* ---- conjunctions ---------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
}

static int intern(struct schema *c, const struct lit *lit, int n, bool never)
{
    uint64_t h = never ? 1 : 2;
    for (int i = 0; i < n; i++)
        h = mix(h, (uint64_t)(uintptr_t)lit[i].s * 2 + lit[i].negated);
    if (!work_spend(c->w, n + 1))
        return ANYTHING;
    for (int i = c->bucket[h & 1023]; i >= 0; i = c->conj[i].chain)
        if (c->conj[i].hash == h && c->conj[i].n == n && c->conj[i].never == never) {
            bool same = true;
            for (int k = 0; k < n && same; k++)
                same =
                    c->conj[i].lit[k].s == lit[k].s && c->conj[i].lit[k].negated == lit[k].negated;
            if (same)
                return i;
        }
    if (c->n_conj >= CONJ_MAX)
        work_refuse(c->w, "too complex: more than %d combinations of schemas", CONJ_MAX);
    if (!work_grow(c->w, &c->conj, &c->cap_conj, c->n_conj + 1, sizeof *c->conj))
        return ANYTHING;
    struct conj *j = &c->conj[c->n_conj];
    *j = (struct conj){.n = n, .never = never, .hash = h, .chain = c->bucket[h & 1023], .rule = -1};
    j->lit = work_alloc(c->w, (size_t)n, sizeof *lit);
    if (!j->lit)
        return ANYTHING;
    if (n)
        memcpy(j->lit, lit, (size_t)n * sizeof *lit);
    c->bucket[h & 1023] = c->n_conj;
    return c->n_conj++;
}

int conj_never(struct schema *c)
{
    return intern(c, NULL, 0, true);
}

int conj_of(struct schema *c, const json_t *s, bool negated)
{
    struct lit one = {s, negated};
    if (json_is_boolean(s))
        return json_is_true(s) != negated ? ANYTHING : conj_never(c);
    return intern(c, &one, 1, false);
}

int conj_and(struct schema *c, int a, int b)
{
    const struct conj *x = &c->conj[a], *y = &c->conj[b];
    if (c->w->st || a == b || b == ANYTHING || x->never)
        return a;
    if (a == ANYTHING || y->never)
        return b;
    struct lit *lit = work_alloc(c->w, (size_t)x->n + (size_t)y->n, sizeof *lit);
    int n = 0;
    if (!lit)
        return ANYTHING;
    for (int i = 0; i < x->n + y->n; i++) { /* in order of appearance: it decides nothing */
        struct lit l = i < x->n ? x->lit[i] : y->lit[i - x->n];
        bool seen = false;
        for (int k = 0; k < n; k++) {
            if (lit[k].s == l.s && lit[k].negated != l.negated)
                return conj_never(c);
            seen |= lit[k].s == l.s;
        }
        if (!seen)
            lit[n++] = l;
    }
    return intern(c, lit, n, false);
}

bool conj_is_never(struct schema *c, int conj)
{
    if (c->conj[conj].never)
        return true;
    if (conj == ANYTHING || c->conj[conj].open || c->nested >= LOOK_MAX)
        return false;
    c->nested++;
    const struct alts *a = schema_alts(c, conj);
    c->nested--;
    return a && a->n == 0;
}
