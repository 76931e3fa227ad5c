/* Numbers by their texts: bounds and multiples as automata over decimal digits.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MAX = 420, MULTIPLE_MAX = 50000 };

/* A decimal: digits without leading zeros (but one), fraction without trailing ones. */
struct decimal {
    bool neg, given, open;
    char whole[DIGITS_MAX + 1], frac[DIGITS_MAX + 1];
    int n_whole, n_frac;
};

/* The shortest text that reads back as v, spread out: 1e-7 is 0.0000001. */
static bool spread(struct decimal *d, const char *text)
{
    char digits[64] = {0};
    int n = 0, point = -1, exp = 0;
    d->neg = *text == '-';
    for (text += d->neg; *text && *text != 'e' && n < 60; text++) {
        if (*text == '.')
            point = n;
        else
            digits[n++] = *text;
    }
    if (*text == 'e')
        exp = (int)strtol(text + 1, NULL, 10);
    point = (point < 0 ? n : point) + exp; /* digits before the point; may be outside */
    if (point > DIGITS_MAX || n - point > DIGITS_MAX)
        return false;
    for (int i = 0; i < point; i++)
        d->whole[d->n_whole++] = i < n ? digits[i] : '0';
    for (int i = point; i < n; i++)
        d->frac[d->n_frac++] = i < 0 ? '0' : digits[i];
    int zeros = 0;
    while (zeros < d->n_whole - 1 && d->whole[zeros] == '0')
        zeros++;
    memmove(d->whole, d->whole + zeros, (size_t)(d->n_whole -= zeros));
    if (d->n_whole == 0)
        d->whole[d->n_whole++] = '0';
    while (d->n_frac > 0 && d->frac[d->n_frac - 1] == '0')
        d->n_frac--;
    d->neg = d->neg && !(d->n_frac == 0 && d->n_whole == 1 && d->whole[0] == '0');
    return true;
}

static void number_text(const json_t *v, char *buf, size_t cap)
{
    if (json_is_integer(v)) {
        snprintf(buf, cap, "%lld", (long long)json_integer_value(v));
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, cap, "%.*g", digits, json_real_value(v));
        if (strtod(buf, NULL) == json_real_value(v))
            break;
    }
}

static bool read_decimal(struct schema *c, const json_t *s, const char *keyword, const json_t *v,
                         struct decimal *d)
{
    char text[64];
    *d = (struct decimal){.given = true};
    if (!json_is_number(v)) {
        schema_refuse(c, s, keyword, "not a number");
        return false;
    }
    number_text(v, text, sizeof text);
    if (!spread(d, text)) {
        schema_refuse(c, s, keyword, "a number of more than %d digits", DIGITS_MAX);
        return false;
    }
    return true;
}

/* ---- the automaton --------------------------------------------------------------------------- */

enum phase { P_START, P_SIGN, P_ZERO, P_WHOLE, P_POINT, P_FRAC };

/* Where a text is. cmp: its digits so far against a bound's, as if they were equally long. */
struct at {
    int16_t phase, n_whole, n_frac;
    int8_t cmp[2], neg, nonzero;
    int16_t zero; /* so that equal states are equal bytes */
    int32_t rem;
};

struct numbers {
    struct schema *c;
    struct decimal bound[2]; /* least, greatest */
    int64_t multiple;        /* of 10^-scale; 0: none */
    int scale;
    int cap_whole, cap_frac;
    struct at *at;
    int n, cap;
    int *slot, n_slot;
};

static uint64_t at_hash(const struct at *a)
{
    uint64_t h = 7;
    const unsigned char *p = (const unsigned char *)a;
    for (size_t i = 0; i < sizeof *a; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h ^ (h >> 29);
}

static int at_state(struct numbers *x, struct nfa *a, const struct at *v)
{
    if (2 * x->n >= x->n_slot) {
        int n = x->n_slot ? 4 * x->n_slot : 256;
        x->slot = work_alloc(x->c->w, (size_t)n, sizeof *x->slot);
        if (!x->slot)
            return 0;
        memset(x->slot, -1, (size_t)n * sizeof *x->slot);
        x->n_slot = n;
        for (int i = 0; i < x->n; i++) {
            uint64_t k = at_hash(&x->at[i]);
            while (x->slot[k & (uint64_t)(n - 1)] >= 0)
                k++;
            x->slot[k & (uint64_t)(n - 1)] = i;
        }
    }
    uint64_t k = at_hash(v), m = (uint64_t)(x->n_slot - 1);
    for (; x->slot[k & m] >= 0; k++)
        if (memcmp(&x->at[x->slot[k & m]], v, sizeof *v) == 0)
            return x->slot[k & m];
    if (!work_grow(x->c->w, &x->at, &x->cap, x->n + 1, sizeof *x->at))
        return 0;
    x->at[x->n] = *v;
    x->slot[k & m] = x->n++;
    return nfa_state(a);
}

/* The magnitude so far against bound k: -1, 0, 1. */
static int compare(const struct numbers *x, const struct at *v, int k)
{
    const struct decimal *d = &x->bound[k];
    if (v->phase == P_FRAC || v->phase == P_POINT)
        return v->cmp[k] == 0 && v->n_frac < d->n_frac ? -1 : v->cmp[k];
    return v->n_whole != d->n_whole          ? (v->n_whole < d->n_whole ? -1 : 1)
           : v->cmp[k] == 0 && d->n_frac > 0 ? -1
                                             : v->cmp[k];
}

static bool within(const struct numbers *x, const struct at *v)
{
    for (int k = 0; k < 2; k++) {
        const struct decimal *d = &x->bound[k];
        if (!d->given)
            continue;
        bool zero = d->n_frac == 0 && d->n_whole == 1 && d->whole[0] == '0';
        int order; /* of the value against the bound */
        if (!v->nonzero)
            order = zero ? 0 : d->neg ? 1 : -1;
        else if (v->neg != d->neg)
            order = v->neg ? -1 : 1;
        else
            order = v->neg ? -compare(x, v, k) : compare(x, v, k);
        if (k == 0 ? order < 0 : order > 0)
            return false;
        if (order == 0 && d->open)
            return false;
    }
    return true;
}

static bool is_end(const struct numbers *x, const struct at *v)
{
    if (v->phase == P_START || v->phase == P_SIGN || v->phase == P_POINT)
        return false;
    if (v->neg && !v->nonzero && v->phase != P_FRAC) /* -0.0 is written, -0 is not */
        return false;
    if (x->multiple) {
        int64_t r = v->rem;
        for (int i = v->n_frac < x->scale ? v->n_frac : x->scale; i < x->scale; i++)
            r = r * 10 % x->multiple;
        if (r)
            return false;
    }
    return within(x, v);
}

static void compare_digit(const struct numbers *x, struct at *v, int digit, bool frac)
{
    for (int k = 0; k < 2; k++) {
        const struct decimal *d = &x->bound[k];
        int i = frac ? v->n_frac : v->n_whole, n = frac ? d->n_frac : d->n_whole;
        int own = i < n ? (frac ? d->frac[i] : d->whole[i]) - '0' : 0;
        if (d->given && v->cmp[k] == 0 && (frac || i < n) && digit != own)
            v->cmp[k] = digit < own ? -1 : 1;
    }
}

/* v after one digit; false: no text goes on this way. */
static bool after_digit(const struct numbers *x, struct at *v, int digit)
{
    bool frac = v->phase == P_POINT || v->phase == P_FRAC;
    if (v->phase == P_ZERO)
        return false;
    compare_digit(x, v, digit, frac);
    v->nonzero |= digit != 0;
    if (x->multiple) {
        if (frac && v->n_frac >= x->scale && digit)
            return false;
        if (!frac || v->n_frac < x->scale)
            v->rem = (int32_t)(((int64_t)v->rem * 10 + digit) % x->multiple);
    }
    if (frac) {
        v->phase = P_FRAC;
        v->n_frac = (int16_t)(v->n_frac + (v->n_frac < x->cap_frac));
    } else {
        v->phase = v->n_whole == 0 && digit == 0 ? P_ZERO : P_WHOLE;
        v->n_whole = (int16_t)(v->n_whole + (v->n_whole < x->cap_whole));
    }
    return true;
}

static void after_point(const struct numbers *x, struct at *v)
{
    for (int k = 0; k < 2; k++)
        if (x->bound[k].given && v->n_whole != x->bound[k].n_whole)
            v->cmp[k] = v->n_whole < x->bound[k].n_whole ? -1 : 1;
    v->phase = P_POINT;
    v->n_whole = 0; /* said all it had to say */
}

static const struct fsm *build(struct numbers *x)
{
    struct nfa a;
    struct at start;
    memset(&start, 0, sizeof start);
    nfa_init(&a, x->c->w);
    (void)at_state(x, &a, &start);
    for (int i = 0; i < x->n && work_spend(x->c->w, 20); i++) {
        struct at v = x->at[i];
        a.final[i] = is_end(x, &v);
        if (v.phase == P_START) {
            struct at to = v;
            to.phase = P_SIGN;
            to.neg = 1;
            nfa_range(&a, i, '-', '-', at_state(x, &a, &to));
        }
        if (v.phase == P_ZERO || v.phase == P_WHOLE) {
            struct at to = v;
            after_point(x, &to);
            nfa_range(&a, i, '.', '.', at_state(x, &a, &to));
        }
        for (int d = 0; d < 10; d++) {
            struct at to = v;
            if (after_digit(x, &to, d))
                nfa_range(&a, i, '0' + (uint32_t)d, '0' + (uint32_t)d, at_state(x, &a, &to));
        }
    }
    return x->c->w->st ? NULL : fsm_minimize(x->c->w, fsm_from_nfa(&a, 0));
}

static bool read_multiple(struct numbers *x, const json_t *s, const json_t *v)
{
    struct decimal d;
    if (!read_decimal(x->c, s, "multipleOf", v, &d))
        return false;
    x->scale = d.n_frac;
    for (int i = 0; i < d.n_whole + d.n_frac; i++) {
        int digit = (i < d.n_whole ? d.whole[i] : d.frac[i - d.n_whole]) - '0';
        x->multiple = x->multiple * 10 + digit;
        if (x->multiple > MULTIPLE_MAX) {
            schema_refuse(x->c, s, "multipleOf", "too many digits to enforce (at most %d steps)",
                          MULTIPLE_MAX);
            return false;
        }
    }
    if (x->multiple == 0 || d.neg) {
        schema_refuse(x->c, s, "multipleOf", "must be greater than 0");
        return false;
    }
    return true;
}

static bool read_bound(struct numbers *x, int k, const json_t *s, const char *keyword,
                       const json_t *v, bool open)
{
    struct decimal d;
    if (!v)
        return true;
    if (json_is_boolean(v)) {
        schema_refuse(x->c, s, keyword, "a boolean is draft 4; draft 2020-12 has a number here");
        return false;
    }
    if (!read_decimal(x->c, s, keyword, v, &d))
        return false;
    d.open = open;
    x->bound[k] = d;
    return true;
}

static const struct fsm *one_side(struct schema *c, const json_t *s, int k, const char *keyword,
                                  const json_t *v, bool open)
{
    struct numbers x = {.c = c};
    if (!read_bound(&x, k, s, keyword, v, open))
        return NULL;
    x.cap_whole = x.bound[k].n_whole + 1;
    x.cap_frac = x.bound[k].n_frac;
    return build(&x);
}

const struct fsm *schema_number(struct schema *c, const json_t *s, const struct bounds *b)
{
    struct numbers x = {.c = c};
    if (!read_bound(&x, 0, s, "minimum", b->lo, false) ||
        !read_bound(&x, 1, s, "maximum", b->hi, false))
        return NULL;
    if (b->lo_open && !b->lo && !read_bound(&x, 0, s, "exclusiveMinimum", b->lo_open, true))
        return NULL;
    if (b->hi_open && !b->hi && !read_bound(&x, 1, s, "exclusiveMaximum", b->hi_open, true))
        return NULL;
    if (b->multiple && !read_multiple(&x, s, b->multiple))
        return NULL;
    int n0 = x.bound[0].n_whole, n1 = x.bound[1].n_whole;
    x.cap_whole = (n0 > n1 ? n0 : n1) + 1;
    x.cap_frac = x.scale;
    for (int k = 0; k < 2; k++)
        x.cap_frac = x.bound[k].n_frac > x.cap_frac ? x.bound[k].n_frac : x.cap_frac;
    const struct fsm *m = build(&x);
    if (m && b->lo && b->lo_open) /* both kinds of bound on one side */
        m = fsm_both(c->w, m, one_side(c, s, 0, "exclusiveMinimum", b->lo_open, true));
    if (m && b->hi && b->hi_open)
        m = fsm_both(c->w, m, one_side(c, s, 1, "exclusiveMaximum", b->hi_open, true));
    return m;
}

const struct fsm *schema_plain_number(struct schema *c)
{
    const char *text = "-?(0|[1-9][0-9]*)(\\.[0-9]+)?";
    if (!c->plain)
        c->plain = regex_fsm(c->w, text, strlen(text), false);
    return c->plain;
}

const struct fsm *schema_whole_number(struct schema *c)
{
    const char *text = "-?(0|[1-9][0-9]*)";
    if (!c->whole)
        c->whole = regex_fsm(c->w, text, strlen(text), false);
    return c->whole;
}

const struct fsm *schema_number_value(struct schema *c, const json_t *s, const json_t *v,
                                      bool exact)
{
    struct decimal d;
    if (!read_decimal(c, s, "enum or const", v, &d))
        return NULL;
    char *text = work_alloc(c->w, 2 * DIGITS_MAX + 32, 1);
    if (!text)
        return NULL;
    snprintf(text, 2 * DIGITS_MAX + 32, "%s%.*s%s%.*s%s", d.neg ? "-" : "", d.n_whole, d.whole,
             d.n_frac ? "\\." : "", d.n_frac, d.frac,
             !exact     ? ""
             : d.n_frac ? "0*"
                        : "(\\.0+)?");
    return regex_fsm(c->w, text, strlen(text), false);
}
