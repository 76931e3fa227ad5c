/* SPDX-License-Identifier: Apache-2.0
 *
 * Arithmetic, subscripts, slices, and attribute access under the sandbox's rules. */
#include "text/jinja.h"

#include <math.h>
#include <string.h>

/* ---- arithmetic ----------------------------------------------------------------------------- */

static const char *const op_text[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

static void op_fail(struct jrt *rt, enum jop op, struct jval a, struct jval b)
{
    if (a.kind == J_UNDEF)
        jfail_undef(rt, a);
    if (b.kind == J_UNDEF)
        jfail_undef(rt, b);
    if (op == JOP_ADD && a.kind == J_STR)
        jfail(rt, JERR_TYPE, "can only concatenate str (not \"%s\") to str", jtype(b));
    if (op == JOP_ADD && (a.kind == J_LIST || a.kind == J_TUPLE))
        jfail(rt, JERR_TYPE, "can only concatenate %s (not \"%s\") to %s", jtype(a), jtype(b),
              jtype(a));
    jfail(rt, JERR_TYPE, "unsupported operand type(s) for %s: '%s' and '%s'", op_text[op], jtype(a),
          jtype(b));
}

static double float_mod(double a, double b)
{
    double m = fmod(a, b);
    if (m == 0)
        return copysign(0, b);
    return (b < 0) != (m < 0) ? m + b : m;
}

static double float_floordiv(double a, double b)
{
    double m = fmod(a, b), d = (a - m) / b;
    if (m != 0 && (b < 0) != (m < 0))
        d -= 1;
    if (d == 0)
        return copysign(0, a / b);
    double f = floor(d);
    return d - f > 0.5 ? f + 1 : f;
}

static struct jval float_pow(struct jrt *rt, double a, double b)
{
    if (a == 0 && b < 0)
        jfail(rt, JERR_VALUE, "0.0 cannot be raised to a negative power");
    if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
        jfail(rt, JERR_VALUE, "complex numbers are not supported");
    double r = pow(a, b);
    if (isinf(r) && isfinite(a) && isfinite(b))
        jfail(rt, JERR_VALUE, "the result of ** is too large for a float");
    return jfloat(r);
}

static struct jval float_binary(struct jrt *rt, enum jop op, double a, double b)
{
    if (b == 0 && (op == JOP_DIV || op == JOP_FLOORDIV || op == JOP_MOD))
        jfail(rt, JERR_VALUE,
              op == JOP_MOD   ? "float modulo"
              : op == JOP_DIV ? "float division by zero"
                              : "float floor division by zero");
    switch (op) {
    case JOP_ADD:
        return jfloat(a + b);
    case JOP_SUB:
        return jfloat(a - b);
    case JOP_MUL:
        return jfloat(a * b);
    case JOP_DIV:
        return jfloat(a / b);
    case JOP_FLOORDIV:
        return jfloat(float_floordiv(a, b));
    case JOP_MOD:
        return jfloat(float_mod(a, b));
    default:
        return float_pow(rt, a, b);
    }
}

static bool small_pow(int64_t a, int64_t n, int64_t *out)
{
    *out = 1;
    for (; n > 0; n >>= 1) {
        if ((n & 1) && __builtin_mul_overflow(*out, a, out))
            return false;
        if (n > 1 && __builtin_mul_overflow(a, a, &a))
            return false;
    }
    return n == 0;
}

static struct jval int_binary(struct jrt *rt, enum jop op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool big = false;
    if (b == 0 && (op == JOP_DIV || op == JOP_FLOORDIV || op == JOP_MOD))
        jfail(rt, JERR_VALUE,
              op == JOP_DIV ? "division by zero" : "integer division or modulo by zero");
    switch (op) {
    case JOP_ADD:
        big = __builtin_add_overflow(a, b, &r);
        break;
    case JOP_SUB:
        big = __builtin_sub_overflow(a, b, &r);
        break;
    case JOP_MUL:
        big = __builtin_mul_overflow(a, b, &r);
        break;
    case JOP_DIV: {
        const int64_t exact = (int64_t)1 << 53;
        if (a >= -exact && a <= exact && b >= -exact && b <= exact)
            return jfloat((double)a / (double)b);
        big = true;
        break;
    }
    case JOP_FLOORDIV:
        big = b == -1 && a == INT64_MIN;
        r = big ? 0 : a / b - ((a % b != 0) && ((a < 0) != (b < 0)));
        break;
    case JOP_MOD:
        r = b == -1 ? 0 : a % b;
        if (r && (r < 0) != (b < 0))
            r += b;
        break;
    case JOP_POW:
        big = !small_pow(a, b, &r);
        break;
    }
    return big ? jbig_binary(rt, op, jint(a), jint(b)) : jint(r);
}

static struct jval number_binary(struct jrt *rt, enum jop op, struct jval a, struct jval b)
{
    int64_t x, y;
    if (jis_intlike(a, &x) && jis_intlike(b, &y))
        return int_binary(rt, op, x, y);
    if (a.kind == J_FLOAT || b.kind == J_FLOAT)
        return float_binary(rt, op, jnumber(rt, a), jnumber(rt, b));
    return jbig_binary(rt, op, a, b);
}

/* s * n, for strings, lists and tuples */
static struct jval repeat(struct jrt *rt, struct jval s, struct jval times)
{
    int64_t n = times.kind == J_BIG && jbig_negative(times) ? 0 : jneed_int(rt, times, "*");
    if (n < 0)
        n = 0;
    if (s.kind == J_STR) {
        struct jbuild b = {.rt = rt};
        if (s.s->n)
            jb_fill(&b, s.s->p, s.s->n, (size_t)n);
        struct jval v = jstrv(jb_done(&b));
        v.markup = s.markup;
        return v;
    }
    size_t total;
    if (__builtin_mul_overflow(s.l->n, (size_t)n, &total) || total > SIZE_MAX / 64)
        jfail(rt, JERR_LIMIT, "a list of that length does not fit");
    struct jval v = {.kind = s.kind, .l = jlist_new(rt, total)};
    for (size_t i = 0; i < total; i++)
        v.l->v[i] = s.l->v[i % s.l->n];
    return v;
}

static struct jval add_strings(struct jrt *rt, struct jval a, struct jval b)
{
    bool markup = a.markup || b.markup;
    if (markup) { /* Markup escapes what it is joined with */
        a = jescape(rt, a);
        b = jescape(rt, b);
    }
    struct jval v = jstrv(jstr_cat(rt, a.s, b.s));
    v.markup = markup;
    return v;
}

static bool is_sequence(struct jval v)
{
    return v.kind == J_STR || v.kind == J_LIST || v.kind == J_TUPLE;
}

static bool is_integer(struct jval v)
{
    return v.kind == J_INT || v.kind == J_BOOL || v.kind == J_BIG;
}

struct jval jbinary(struct jrt *rt, enum jop op, struct jval a, struct jval b)
{
    if (jis_number(a) && jis_number(b))
        return number_binary(rt, op, a, b);
    if (op == JOP_ADD && a.kind == J_STR && b.kind == J_STR)
        return add_strings(rt, a, b);
    if (op == JOP_ADD && a.kind == b.kind && (a.kind == J_LIST || a.kind == J_TUPLE))
        return (struct jval){.kind = a.kind, .l = jlist_cat(rt, a.l, b.l)};
    if (op == JOP_MUL && is_sequence(a) && is_integer(b))
        return repeat(rt, a, b);
    if (op == JOP_MUL && is_sequence(b) && is_integer(a))
        return repeat(rt, b, a);
    if (op == JOP_MOD && a.kind == J_STR)
        return jpercent(rt, a, b);
    op_fail(rt, op, a, b);
    return JNONE;
}

struct jval jnegate(struct jrt *rt, struct jval v, bool plus)
{
    int64_t i;
    if (jis_intlike(v, &i)) {
        if (plus)
            return jint(i);
        return i == INT64_MIN ? jbig_negate(rt, v) : jint(-i);
    }
    if (v.kind == J_FLOAT)
        return jfloat(plus ? v.f : -v.f);
    if (v.kind == J_BIG)
        return plus ? v : jbig_negate(rt, v);
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    jfail(rt, JERR_TYPE, "bad operand type for unary %c: '%s'", plus ? '+' : '-', jtype(v));
}

/* ---- subscripts -------------------------------------------------------------------------------
 */

/* A Python index into n things; false: out of range. */
static bool index_at(int64_t i, size_t n, size_t *out)
{
    if (i < 0)
        i += (int64_t)n;
    *out = (size_t)i;
    return i >= 0 && i < (int64_t)n;
}

struct jval jsubscript(struct jrt *rt, struct jval obj, struct jval key)
{
    int64_t i;
    size_t at;
    switch (obj.kind) {
    case J_DICT: {
        if (key.kind == J_LIST || key.kind == J_DICT || key.kind == J_VIEW)
            return JMISSING; /* unhashable is a TypeError, which Jinja takes for "not there" */
        struct jval *v = jdict_get(rt, obj.d, key);
        return v ? *v : JMISSING;
    }
    case J_TUPLE:
    case J_LIST:
        if (jis_intlike(key, &i) && index_at(i, obj.l->n, &at))
            return obj.l->v[at];
        return JMISSING;
    case J_STR:
        if (!jis_intlike(key, &i) || !index_at(i, jstr_chars(obj.s), &at))
            return JMISSING;
        struct jval c = jstrv(jstr_sub(rt, obj.s, at, at + 1));
        c.markup = obj.markup;
        return c;
    case J_RANGE:
        if (jis_intlike(key, &i) && index_at(i, (size_t)obj.r->n, &at))
            return jint(obj.r->start + (int64_t)at * obj.r->step);
        return JMISSING;
    case J_UNDEF:
        jfail_undef(rt, obj);
    case J_SELF:
        return jblock_find(rt, key);
    default:
        return JMISSING;
    }
}

struct span {
    int64_t from, to, step, n;
};

/* slice(from, to, step).indices(n) */
static struct span slice_span(struct jrt *rt, struct jval from, struct jval to, struct jval step,
                              int64_t n)
{
    struct jval part[3] = {from, to, step};
    int64_t v[3];
    for (int i = 0; i < 3; i++) {
        v[i] = 0;
        if (part[i].kind == J_UNDEF)
            jfail(rt, JERR_TYPE,
                  "slice indices must be integers or None or have an __index__ method");
        if (part[i].kind == J_BIG)
            v[i] = jbig_negative(part[i]) ? INT64_MIN / 2 : INT64_MAX / 2;
        else if (part[i].kind != J_NONE && !jis_intlike(part[i], &v[i]))
            jfail(rt, JERR_TYPE,
                  "slice indices must be integers or None or have an __index__ method");
    }
    int64_t by = step.kind == J_NONE ? 1 : v[2];
    if (by == 0)
        jfail(rt, JERR_VALUE, "slice step cannot be zero");
    if (by < -INT64_MAX)
        by = -INT64_MAX;
    int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
    for (int i = 0; i < 2; i++) {
        if (part[i].kind == J_NONE) {
            v[i] = (i == 0) == (by > 0) ? low : high;
            continue;
        }
        if (v[i] < 0)
            v[i] += n;
        v[i] = v[i] < low ? low : v[i] > high ? high : v[i];
    }
    struct span s = {v[0], v[1], by, 0};
    if (by > 0 && v[0] < v[1])
        s.n = (v[1] - v[0] - 1) / by + 1;
    else if (by < 0 && v[1] < v[0])
        s.n = (v[0] - v[1] - 1) / -by + 1;
    return s;
}

static struct jval slice_str(struct jrt *rt, struct jval obj, struct span s)
{
    struct jval v;
    if (s.step == 1) {
        v = jstrv(jstr_sub(rt, obj.s, (size_t)s.from, (size_t)(s.from + s.n)));
    } else {
        struct jbuild b = {.rt = rt};
        bool ascii = jstr_ascii(obj.s);
        size_t *at = NULL;
        if (!ascii) {
            at = jalloc(rt, jstr_chars(obj.s) + 1, sizeof *at);
            jstep_bytes(rt, obj.s->n * 8);
            for (size_t i = 0, k = 0; i < obj.s->n; i++)
                if ((obj.s->p[i] & 0xc0) != 0x80)
                    at[k++] = i;
            at[jstr_chars(obj.s)] = obj.s->n;
        }
        for (int64_t i = 0; i < s.n; i++) {
            size_t c = (size_t)(s.from + i * s.step);
            if (ascii)
                jb_addc(&b, obj.s->p[c]);
            else
                jb_add(&b, obj.s->p + at[c], at[c + 1] - at[c]);
        }
        v = jstrv(jb_done(&b));
    }
    v.markup = obj.markup;
    return v;
}

static struct jval slice_list(struct jrt *rt, struct jval obj, struct span s)
{
    struct jval v = {.kind = obj.kind};
    if (s.step == 1) {
        v.l = jalloc(rt, 1, sizeof *v.l);
        *v.l = (struct jlist){obj.l->v + s.from, (size_t)s.n, obj.l->in, false};
        return v;
    }
    v.l = jlist_new(rt, (size_t)s.n);
    for (int64_t i = 0; i < s.n; i++)
        v.l->v[i] = obj.l->v[s.from + i * s.step];
    return v;
}

static struct jval slice_range(struct jrt *rt, const struct jrange *r, struct span s)
{
    struct jrange *out = jalloc(rt, 1, sizeof *out);
    if (__builtin_mul_overflow(r->step, s.step, &out->step))
        jfail(rt, JERR_VALUE, "the slice of a range is too large");
    out->start = r->start + s.from * r->step;
    out->stop = r->start + s.to * r->step;
    out->n = s.n;
    return (struct jval){.kind = J_RANGE, .r = out};
}

struct jval jslice(struct jrt *rt, struct jval obj, struct jval from, struct jval to,
                   struct jval step)
{
    int64_t n;
    if (obj.kind == J_UNDEF)
        jfail_undef(rt, obj);
    if (obj.kind == J_DICT)
        jfail(rt, JERR_TYPE, "unhashable type: 'slice'");
    if (!is_sequence(obj) && obj.kind != J_RANGE)
        jfail(rt, JERR_TYPE, "'%s' object is not subscriptable", jtype(obj));
    (void)jlen(rt, obj, &n);
    struct span s = slice_span(rt, from, to, step, n);
    if (obj.kind == J_STR)
        return slice_str(rt, obj, s);
    return obj.kind == J_RANGE ? slice_range(rt, obj.r, s) : slice_list(rt, obj, s);
}

/* ---- attributes ---------------------------------------------------------------------------------
 */

static const struct {
    const char *name;
    uint16_t has, hides;
} attrs[] = {
#define X(name, has, hides) {#name, has, hides},
    JATTRS(X)
#undef X
};

int jattr_find(const char *name, size_t n)
{
    for (int i = 0; i < JM_COUNT; i++)
        if (attrs[i].name[0] == name[0] && strlen(attrs[i].name) == n &&
            !memcmp(attrs[i].name, name, n))
            return i;
    return -1;
}

const char *jattr_name(int attr)
{
    return attrs[attr].name;
}

static unsigned type_bit(struct jval v)
{
    switch (v.kind) {
    case J_STR:
        return v.markup ? JA_STR | JA_MARKUP : JA_STR;
    case J_LIST:
        return JA_LIST;
    case J_TUPLE:
        return JA_TUPLE;
    case J_DICT:
        return JA_DICT;
    case J_RANGE:
        return JA_RANGE;
    case J_VIEW:
        return v.w->kind == JVIEW_VALUES ? 0 : JA_VIEW;
    case J_INT:
    case J_BIG:
    case J_BOOL:
        return JA_INT;
    case J_FLOAT:
        return JA_FLOAT;
    case J_LOOP:
        return JA_LOOP;
    case J_CYCLER:
        return JA_CYCLER;
    default:
        return 0;
    }
}

static struct jval bind_method(struct jrt *rt, struct jval self, int id)
{
    struct jmethod *m = jalloc(rt, 1, sizeof *m);
    *m = (struct jmethod){self, id};
    return (struct jval){.kind = J_METHOD, .m = m};
}

static struct jval number_attr(struct jval v, const struct jstr *name)
{
    bool is_float = v.kind == J_FLOAT;
    if (jstr_is(name, "real") || (!is_float && jstr_is(name, "numerator")))
        return v.kind == J_BOOL ? jint(v.b) : v;
    if (jstr_is(name, "imag"))
        return is_float ? jfloat(0) : jint(0);
    if (!is_float && jstr_is(name, "denominator"))
        return jint(1);
    return JMISSING;
}

static struct jval range_attr(const struct jrange *r, const struct jstr *name)
{
    if (jstr_is(name, "start"))
        return jint(r->start);
    if (jstr_is(name, "stop"))
        return jint(r->stop);
    return jstr_is(name, "step") ? jint(r->step) : JMISSING;
}

/* Attributes that are not methods; J_MISSING: no such attribute. */
static struct jval data_attr(struct jrt *rt, struct jval obj, struct jstr *name)
{
    switch (obj.kind) {
    case J_INT:
    case J_BIG:
    case J_BOOL:
    case J_FLOAT:
        return number_attr(obj, name);
    case J_RANGE:
        return range_attr(obj.r, name);
    case J_TUPLE:
        if (obj.l->group && (jstr_is(name, "grouper") || jstr_is(name, "list")))
            return obj.l->v[jstr_is(name, "list")];
        return JMISSING;
    case J_NS: {
        struct jval *v = jdict_get_str(obj.d, name);
        return v ? *v : JMISSING;
    }
    case J_LOOP:
        return jloop_attr(rt, obj, name);
    case J_MACRO:
        return jmacro_attr(rt, obj, name);
    case J_CYCLER:
        if (jstr_is(name, "current"))
            return obj.cyc->v[obj.cyc->pos];
        if (jstr_is(name, "pos"))
            return jint((int64_t)obj.cyc->pos);
        return JMISSING;
    case J_JOINER:
        if (jstr_is(name, "sep"))
            return obj.join->sep;
        return jstr_is(name, "used") ? jbool(obj.join->used) : JMISSING;
    default:
        return JMISSING;
    }
}

static struct jval unsafe(struct jrt *rt, struct jval obj, const struct jstr *name)
{
    struct jbuild b = {.rt = rt};
    jb_fmt(&b, "access to attribute '%.*s' of '%s' object is unsafe", (int)name->n, name->p,
           jtype(obj));
    return jundef_hint(rt, jb_done(&b)->p);
}

/* getattr(obj, name) and the sandbox's verdict; J_MISSING: AttributeError. */
static struct jval python_attr(struct jrt *rt, struct jval obj, struct jstr *name, int attr)
{
    unsigned bit = type_bit(obj);
    if (attr >= 0 && attrs[attr].has & bit)
        return bind_method(rt, obj, attr);
    if (attr >= 0 && attrs[attr].hides & bit)
        return unsafe(rt, obj, name);
    struct jval v = data_attr(rt, obj, name);
    if (v.kind != J_MISSING && name->n && name->p[0] == '_')
        return unsafe(rt, obj, name);
    return v;
}

static bool is_dunder(const struct jstr *name)
{
    static const char *const common[] = {"__class__",  "__init__", "__doc__",   "__dir__",
                                         "__eq__",     "__hash__", "__repr__",  "__str__",
                                         "__format__", "__new__",  "__reduce__"};
    for (size_t i = 0; i < sizeof common / sizeof *common; i++)
        if (jstr_is(name, common[i]))
            return true;
    return false;
}

struct jval jget_attr(struct jrt *rt, struct jval obj, struct jstr *name, int attr)
{
    if (obj.kind == J_UNDEF) {
        if (is_dunder(name))
            return unsafe(rt, obj, name);
        jfail_undef(rt, obj);
    }
    struct jval v = python_attr(rt, obj, name, attr);
    if (v.kind == J_MISSING)
        v = jsubscript(rt, obj, jstrv(name));
    if (v.kind == J_MISSING)
        v = is_dunder(name) && obj.kind != J_NS ? unsafe(rt, obj, name)
                                                : jundef_attr(rt, obj, jstrv(name));
    return v;
}

struct jval jget_item(struct jrt *rt, struct jval obj, struct jval key)
{
    struct jval v = jsubscript(rt, obj, key);
    if (v.kind != J_MISSING)
        return v;
    if (key.kind == J_STR) {
        v = python_attr(rt, obj, key.s, jattr_find(key.s->p, key.s->n));
        if (v.kind != J_MISSING)
            return v;
        if (is_dunder(key.s) && obj.kind != J_NS)
            return unsafe(rt, obj, key.s);
    }
    return jundef_attr(rt, obj, key);
}
