/* SPDX-License-Identifier: Apache-2.0
 *
 * Integers outside int64, for templates that compute one by accident or print a large id.
 * Schoolbook algorithms over 32-bit limbs, lowest first; BIG_LIMBS bounds what a template can make
 * them do. */
#include "text/jinja.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

enum { BIG_LIMBS = 2048, BIG_DIGITS = 4300 /* Python refuses longer texts */ };

struct jbig {
    bool neg;
    size_t n; /* no leading zero limbs; 0: the number 0 */
    uint32_t d[];
};

static struct jbig *big_new(struct jrt *rt, size_t n)
{
    if (n > BIG_LIMBS)
        jfail(rt, JERR_LIMIT, "an integer is too large (more than %d bits)", BIG_LIMBS * 32);
    struct jbig *b = jalloc(rt, 1, sizeof *b + (n + 1) * sizeof b->d[0]);
    b->n = n;
    return b;
}

static void trim(struct jbig *b)
{
    while (b->n && !b->d[b->n - 1])
        b->n--;
}

static struct jbig *big_of(struct jrt *rt, struct jval v)
{
    if (v.kind == J_BIG)
        return v.big;
    int64_t i = v.kind == J_BOOL ? v.b : v.i;
    struct jbig *b = big_new(rt, 2);
    uint64_t u = i < 0 ? -(uint64_t)i : (uint64_t)i;
    b->neg = i < 0;
    b->d[0] = (uint32_t)u;
    b->d[1] = (uint32_t)(u >> 32);
    trim(b);
    return b;
}

static struct jval big_done(struct jbig *b)
{
    trim(b);
    if (b->n <= 2) {
        uint64_t u = (b->n > 0 ? b->d[0] : 0) | (b->n > 1 ? (uint64_t)b->d[1] << 32 : 0);
        if (u <= (uint64_t)INT64_MAX)
            return jint(b->neg ? -(int64_t)u : (int64_t)u);
        if (b->neg && u == (uint64_t)1 << 63)
            return jint(INT64_MIN);
    }
    return (struct jval){.kind = J_BIG, .big = b};
}

static int mag_cmp(const struct jbig *a, const struct jbig *b)
{
    if (a->n != b->n)
        return a->n < b->n ? -1 : 1;
    for (size_t i = a->n; i-- > 0;)
        if (a->d[i] != b->d[i])
            return a->d[i] < b->d[i] ? -1 : 1;
    return 0;
}

static struct jbig *mag_add(struct jrt *rt, const struct jbig *a, const struct jbig *b)
{
    if (a->n < b->n) {
        const struct jbig *t = a;
        a = b;
        b = t;
    }
    struct jbig *r = big_new(rt, a->n + 1);
    uint64_t carry = 0;
    for (size_t i = 0; i < a->n; i++) {
        carry += (uint64_t)a->d[i] + (i < b->n ? b->d[i] : 0);
        r->d[i] = (uint32_t)carry;
        carry >>= 32;
    }
    r->d[a->n] = (uint32_t)carry;
    return r;
}

/* |a| - |b|, where |a| >= |b| */
static struct jbig *mag_sub(struct jrt *rt, const struct jbig *a, const struct jbig *b)
{
    struct jbig *r = big_new(rt, a->n);
    int64_t borrow = 0;
    for (size_t i = 0; i < a->n; i++) {
        int64_t d = (int64_t)a->d[i] - (i < b->n ? b->d[i] : 0) + borrow;
        r->d[i] = (uint32_t)d;
        borrow = d < 0 ? -1 : 0;
    }
    return r;
}

static struct jbig *add(struct jrt *rt, const struct jbig *a, const struct jbig *b, bool negate_b)
{
    bool b_neg = b->neg != negate_b;
    struct jbig *r;
    if (a->neg == b_neg) {
        r = mag_add(rt, a, b);
        r->neg = a->neg;
    } else if (mag_cmp(a, b) >= 0) {
        r = mag_sub(rt, a, b);
        r->neg = a->neg;
    } else {
        r = mag_sub(rt, b, a);
        r->neg = b_neg;
    }
    trim(r);
    return r;
}

static struct jbig *mul(struct jrt *rt, const struct jbig *a, const struct jbig *b)
{
    struct jbig *r = big_new(rt, a->n + b->n);
    jstep(rt, 1 + a->n * b->n / 16);
    for (size_t i = 0; i < a->n; i++) {
        uint64_t carry = 0;
        for (size_t k = 0; k < b->n || carry; k++) {
            carry += r->d[i + k] + (uint64_t)a->d[i] * (k < b->n ? b->d[k] : 0);
            r->d[i + k] = (uint32_t)carry;
            carry >>= 32;
        }
    }
    r->neg = a->neg != b->neg;
    trim(r);
    return r;
}

static uint32_t divide_small(struct jbig *a, uint32_t by)
{
    uint64_t rest = 0;
    for (size_t i = a->n; i-- > 0;) {
        rest = rest << 32 | a->d[i];
        a->d[i] = (uint32_t)(rest / by);
        rest %= by;
    }
    trim(a);
    return (uint32_t)rest;
}

static struct jbig *shift(struct jrt *rt, const struct jbig *a, size_t bits)
{
    size_t limbs = bits / 32, rest = bits % 32;
    struct jbig *r = big_new(rt, a->n + limbs + 1);
    for (size_t i = 0; i < a->n; i++) {
        uint64_t v = (uint64_t)a->d[i] << rest;
        r->d[i + limbs] |= (uint32_t)v;
        r->d[i + limbs + 1] |= (uint32_t)(v >> 32);
    }
    r->neg = a->neg;
    trim(r);
    return r;
}

static void shift_right(struct jbig *a, size_t bits) /* bits < 32 */
{
    for (size_t i = 0; bits && i < a->n; i++)
        a->d[i] = a->d[i] >> bits | (i + 1 < a->n ? a->d[i + 1] << (32 - bits) : 0);
    trim(a);
}

/* |a| / |b| and |a| % |b|, b != 0: Knuth's algorithm D. */
static struct jbig *mag_divide(struct jrt *rt, const struct jbig *a, const struct jbig *b,
                               struct jbig **rest)
{
    struct jbig *q = big_new(rt, a->n + 1);
    if (mag_cmp(a, b) < 0) {
        *rest = shift(rt, a, 0);
        q->n = 0;
        return q;
    }
    if (b->n == 1) {
        struct jbig *copy = shift(rt, a, 0);
        *rest = big_new(rt, 1);
        (*rest)->d[0] = divide_small(copy, b->d[0]);
        trim(*rest);
        return copy;
    }
    size_t s = (size_t)__builtin_clz(b->d[b->n - 1]);
    struct jbig *u = big_new(rt, a->n + 1), *ua = shift(rt, a, s), *v = shift(rt, b, s);
    memcpy(u->d, ua->d, ua->n * sizeof u->d[0]);
    jstep(rt, 1 + a->n * b->n / 16);
    for (size_t j = a->n - b->n + 1; j-- > 0;) {
        uint64_t top = (uint64_t)u->d[j + v->n] << 32 | u->d[j + v->n - 1];
        uint64_t guess = top / v->d[v->n - 1], left = top % v->d[v->n - 1];
        while (guess >> 32 || guess * v->d[v->n - 2] > (left << 32 | u->d[j + v->n - 2])) {
            guess--;
            left += v->d[v->n - 1];
            if (left >> 32)
                break;
        }
        int64_t borrow = 0;
        uint64_t carry = 0;
        for (size_t i = 0; i <= v->n; i++) {
            carry += guess * (i < v->n ? v->d[i] : 0);
            int64_t d = (int64_t)u->d[i + j] - (int64_t)(uint32_t)carry + borrow;
            u->d[i + j] = (uint32_t)d;
            borrow = d < 0 ? -1 : 0;
            carry >>= 32;
        }
        if (borrow) {
            guess--;
            carry = 0;
            for (size_t i = 0; i <= v->n; i++) {
                carry += (uint64_t)u->d[i + j] + (i < v->n ? v->d[i] : 0);
                u->d[i + j] = (uint32_t)carry;
                carry >>= 32;
            }
        }
        q->d[j] = (uint32_t)guess;
    }
    trim(q);
    trim(u);
    shift_right(u, s);
    *rest = u;
    return q;
}

static struct jbig *divide(struct jrt *rt, const struct jbig *a, const struct jbig *b,
                           struct jbig **rest)
{
    struct jbig *q = mag_divide(rt, a, b, rest);
    q->neg = a->neg != b->neg;
    (*rest)->neg = a->neg;
    if ((*rest)->n && q->neg) { /* towards minus infinity */
        struct jbig *one = big_of(rt, jint(1));
        q = add(rt, q, one, true);
        q->neg = true;
        *rest = add(rt, *rest, b, false);
    }
    return q;
}

static size_t bits_of(const struct jbig *a)
{
    return a->n ? a->n * 32 - (size_t)__builtin_clz(a->d[a->n - 1]) : 0;
}

/* The top 64 bits, the last one set also when anything below was; *exp: what to scale by. */
static uint64_t top_bits(const struct jbig *a, bool sticky, int *exp)
{
    size_t bits = bits_of(a), drop = bits > 64 ? bits - 64 : 0;
    uint64_t v = 0;
    for (size_t i = 0; i < bits && i < 64; i++) {
        size_t at = drop + i;
        v |= (uint64_t)(a->d[at / 32] >> (at % 32) & 1) << i;
    }
    for (size_t i = 0; i < drop && !sticky; i++)
        sticky = a->d[i / 32] >> (i % 32) & 1;
    *exp = (int)drop;
    return v | sticky;
}

double jbig_double(struct jrt *rt, struct jval a)
{
    const struct jbig *b = big_of(rt, a);
    int exp;
    uint64_t top = top_bits(b, false, &exp);
    double d = ldexp((double)top, exp);
    if (isinf(d))
        jfail(rt, JERR_VALUE, "int too large to convert to float");
    return b->neg ? -d : d;
}

static struct jval true_divide(struct jrt *rt, const struct jbig *a, const struct jbig *b)
{
    int64_t want = 66 - (int64_t)bits_of(a) + (int64_t)bits_of(b), scale = want > 0 ? want : 0;
    struct jbig *rest, *q = mag_divide(rt, shift(rt, a, (size_t)scale), b, &rest);
    int exp;
    uint64_t top = top_bits(q, rest->n > 0, &exp);
    double d = ldexp((double)top, exp - (int)scale);
    if (isinf(d))
        jfail(rt, JERR_VALUE, "integer division result too large for a float");
    return jfloat(a->neg != b->neg ? -d : d);
}

static struct jval power(struct jrt *rt, struct jval a, struct jval b)
{
    int64_t n;
    if (jbig_negative(b)) {
        double x = jbig_double(rt, a), y = jbig_double(rt, b);
        if (x == 0)
            jfail(rt, JERR_VALUE, "0.0 cannot be raised to a negative power");
        return jfloat(pow(x, y));
    }
    const struct jbig *base = big_of(rt, a);
    if (base->n == 0 || (base->n == 1 && base->d[0] == 1)) {
        bool odd = jbig_odd(b), zero = b.kind != J_BIG && big_of(rt, b)->n == 0;
        return base->n == 0 ? jint(zero) : jint(base->neg && odd ? -1 : 1);
    }
    if (!jis_intlike(b, &n) || n > BIG_LIMBS * 32)
        jfail(rt, JERR_LIMIT, "an integer is too large (more than %d bits)", BIG_LIMBS * 32);
    struct jbig *r = big_of(rt, jint(1)), *square = shift(rt, base, 0);
    for (;;) {
        if (n & 1)
            r = mul(rt, r, square);
        n >>= 1;
        if (!n)
            return big_done(r);
        square = mul(rt, square, square);
    }
}

struct jval jbig_binary(struct jrt *rt, enum jop op, struct jval a, struct jval b)
{
    if (op == JOP_POW)
        return power(rt, a, b);
    struct jbig *x = big_of(rt, a), *y = big_of(rt, b), *rest;
    if (op == JOP_ADD || op == JOP_SUB)
        return big_done(add(rt, x, y, op == JOP_SUB));
    if (op == JOP_MUL)
        return big_done(mul(rt, x, y));
    if (!y->n)
        jfail(rt, JERR_VALUE,
              op == JOP_DIV ? "division by zero" : "integer division or modulo by zero");
    if (op == JOP_DIV)
        return true_divide(rt, x, y);
    struct jbig *q = divide(rt, x, y, &rest);
    return big_done(op == JOP_FLOORDIV ? q : rest);
}

struct jval jbig_negate(struct jrt *rt, struct jval a)
{
    struct jbig *r = shift(rt, big_of(rt, a), 0);
    r->neg = !r->neg;
    return big_done(r);
}

int jbig_cmp(struct jrt *rt, struct jval a, struct jval b)
{
    const struct jbig *x = big_of(rt, a), *y = big_of(rt, b);
    if (x->neg != y->neg)
        return x->neg ? -1 : 1;
    return x->neg ? -mag_cmp(x, y) : mag_cmp(x, y);
}

int jbig_cmp_float(struct jrt *rt, struct jval a, double b)
{
    if (isnan(b))
        return 2;
    if (isinf(b))
        return b > 0 ? -1 : 1;
    int c = jbig_cmp(rt, a, jbig_from_double(rt, b));
    double fraction = b - trunc(b);
    return c ? c : fraction > 0 ? -1 : fraction < 0;
}

struct jval jbig_from_double(struct jrt *rt, double d)
{
    d = trunc(d);
    if (fabs(d) < 9e18)
        return jint((int64_t)d);
    int exp;
    double m = frexp(fabs(d), &exp);
    struct jbig *b = big_of(rt, jint((int64_t)ldexp(m, 53)));
    b = shift(rt, b, (size_t)(exp - 53));
    b->neg = d < 0;
    return big_done(b);
}

struct jval jbig_parse(struct jrt *rt, const char *digits, size_t n, int base, bool negative)
{
    struct jbig *b = NULL;
    uint64_t small = 0;
    if (base != 2 && base != 4 && base != 8 && base != 16 && base != 32 && n > BIG_DIGITS)
        jfail(rt, JERR_VALUE, "exceeds the limit (%d digits) for integer string conversion",
              BIG_DIGITS);
    for (size_t i = 0; i < n; i++) {
        char c = digits[i];
        uint32_t d = (uint32_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
        if (!b && small <= (UINT64_MAX >> 1) / (uint64_t)base - 1) {
            small = small * (uint64_t)base + d;
            continue;
        }
        if (!b) {
            b = big_new(rt, (n * 6 + 31) / 32 + 3);
            b->d[0] = (uint32_t)small;
            b->d[1] = (uint32_t)(small >> 32);
        }
        uint64_t carry = d;
        for (size_t k = 0; k < b->n; k++) {
            carry += (uint64_t)b->d[k] * (uint32_t)base;
            b->d[k] = (uint32_t)carry;
            carry >>= 32;
        }
        jstep_bytes(rt, b->n);
    }
    if (!b)
        return jint(negative ? -(int64_t)small : (int64_t)small);
    b->neg = negative;
    return big_done(b);
}

void jbig_print(struct jbuild *out, struct jval a, int base)
{
    struct jrt *rt = out->rt;
    struct jbig *b = shift(rt, big_of(rt, a), 0);
    size_t cap = b->n * 32 + 2, n = cap;
    char *text = jalloc(rt, cap, 1);
    if (base == 10 && b->n * 32 > BIG_DIGITS * 4)
        jfail(rt, JERR_VALUE, "exceeds the limit (%d digits) for integer string conversion",
              BIG_DIGITS);
    if (!b->n)
        text[--n] = '0';
    while (b->n) {
        jstep_bytes(rt, b->n * 4);
        uint32_t unit = base == 10 ? 1000000000 : (uint32_t)base;
        uint32_t part = divide_small(b, unit);
        for (int i = 0; base == 10 ? i < 9 && (b->n || part) : i < 1; i++, part /= 10)
            text[--n] = "0123456789abcdef"[base == 10 ? part % 10 : part];
    }
    if (jbig_negative(a))
        jb_addc(out, '-');
    jb_add(out, text + n, cap - n);
}

bool jbig_negative(struct jval a)
{
    return a.kind == J_BIG ? a.big->neg : a.kind == J_INT && a.i < 0;
}

bool jbig_odd(struct jval a)
{
    return a.kind == J_BIG ? a.big->d[0] & 1 : a.kind == J_BOOL ? a.b : a.i & 1;
}

size_t jbig_bits(struct jval a)
{
    if (a.kind == J_BIG)
        return bits_of(a.big);
    int64_t i = a.kind == J_BOOL ? a.b : a.i;
    uint64_t u = i < 0 ? -(uint64_t)i : (uint64_t)i;
    return u ? 64 - (size_t)__builtin_clzll(u) : 0;
}

/* Equal to the hash of the float that is equal to it. */
uint64_t jbig_hash(struct jval a)
{
    int exp;
    uint64_t top = top_bits(a.big, false, &exp);
    double d = ldexp((double)top, exp);
    if (a.big->neg)
        d = -d;
    return XXH3_64bits(&d, sizeof d);
}
