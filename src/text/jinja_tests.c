/* SPDX-License-Identifier: Apache-2.0
 *
 * What may follow `is`. */
#include "text/jinja.h"

#include <string.h>

#define TEST(name) static bool name(struct jrt *rt, struct jval v, struct jval *a)
#define UNUSED (void)rt, (void)v, (void)a

static struct jval modulo(struct jrt *rt, struct jval v, struct jval by)
{
    return jbinary(rt, JOP_MOD, v, by);
}

TEST(t_odd)
{
    UNUSED;
    return jeq(rt, modulo(rt, v, jint(2)), jint(1));
}

TEST(t_even)
{
    UNUSED;
    return jeq(rt, modulo(rt, v, jint(2)), jint(0));
}

TEST(t_divisibleby)
{
    return jeq(rt, modulo(rt, v, a[0]), jint(0));
}

TEST(t_defined)
{
    UNUSED;
    return v.kind != J_UNDEF;
}

TEST(t_undefined)
{
    UNUSED;
    return v.kind == J_UNDEF;
}

/* `x in environment.filters`: x must be hashable */
static bool named(struct jrt *rt, struct jval v, bool filter)
{
    if (v.kind != J_STR) {
        (void)jhash(rt, v);
        return false;
    }
    return filter ? jfilter_find(v.s->p, v.s->n) != NULL : jtest_find(v.s->p, v.s->n) != NULL;
}

TEST(t_filter)
{
    UNUSED;
    return named(rt, v, true);
}

TEST(t_test)
{
    UNUSED;
    return named(rt, v, false);
}

TEST(t_none)
{
    UNUSED;
    return v.kind == J_NONE;
}

TEST(t_boolean)
{
    UNUSED;
    return v.kind == J_BOOL;
}

TEST(t_false)
{
    UNUSED;
    return v.kind == J_BOOL && !v.b;
}

TEST(t_true)
{
    UNUSED;
    return v.kind == J_BOOL && v.b;
}

TEST(t_integer)
{
    UNUSED;
    return v.kind == J_INT || v.kind == J_BIG;
}

TEST(t_float)
{
    UNUSED;
    return v.kind == J_FLOAT;
}

TEST(t_lower)
{
    UNUSED;
    return jstr_method(rt, jstrv(jto_str(rt, v)), JM_islower, &(struct jargs){0}).b;
}

TEST(t_upper)
{
    UNUSED;
    return jstr_method(rt, jstrv(jto_str(rt, v)), JM_isupper, &(struct jargs){0}).b;
}

TEST(t_string)
{
    UNUSED;
    return v.kind == J_STR;
}

TEST(t_mapping)
{
    UNUSED;
    return v.kind == J_DICT;
}

TEST(t_number)
{
    UNUSED;
    return jis_number(v);
}

TEST(t_sequence)
{
    UNUSED;
    return v.kind == J_STR || v.kind == J_LIST || v.kind == J_TUPLE || v.kind == J_DICT ||
           v.kind == J_RANGE || v.kind == J_UNDEF;
}

TEST(t_iterable)
{
    UNUSED;
    return jiterable(v);
}

TEST(t_callable)
{
    UNUSED;
    return v.kind == J_FUNC || v.kind == J_METHOD || v.kind == J_MACRO || v.kind == J_LOOP ||
           v.kind == J_JOINER || v.kind == J_BLOCK || v.kind == J_UNDEF;
}

TEST(t_sameas)
{
    UNUSED;
    return jis_same(v, a[0]);
}

TEST(t_escaped)
{
    UNUSED;
    return v.kind == J_STR && v.markup;
}

TEST(t_in)
{
    return jcontains(rt, a[0], v);
}

TEST(t_eq)
{
    return jcompare(rt, JCMP_EQ, v, a[0]);
}

TEST(t_ne)
{
    return jcompare(rt, JCMP_NE, v, a[0]);
}

TEST(t_gt)
{
    return jcompare(rt, JCMP_GT, v, a[0]);
}

TEST(t_ge)
{
    return jcompare(rt, JCMP_GE, v, a[0]);
}

TEST(t_lt)
{
    return jcompare(rt, JCMP_LT, v, a[0]);
}

TEST(t_le)
{
    return jcompare(rt, JCMP_LE, v, a[0]);
}

static const struct jtest tests[] = {
    {"odd", t_odd, ""},
    {"even", t_even, ""},
    {"divisibleby", t_divisibleby, "num"},
    {"defined", t_defined, ""},
    {"undefined", t_undefined, ""},
    {"filter", t_filter, ""},
    {"test", t_test, ""},
    {"none", t_none, ""},
    {"boolean", t_boolean, ""},
    {"false", t_false, ""},
    {"true", t_true, ""},
    {"integer", t_integer, ""},
    {"float", t_float, ""},
    {"lower", t_lower, ""},
    {"upper", t_upper, ""},
    {"string", t_string, ""},
    {"mapping", t_mapping, ""},
    {"number", t_number, ""},
    {"sequence", t_sequence, ""},
    {"iterable", t_iterable, ""},
    {"callable", t_callable, ""},
    {"sameas", t_sameas, "other"},
    {"escaped", t_escaped, ""},
    {"in", t_in, "seq"},
    {"==", t_eq, "b"},
    {"eq", t_eq, "b"},
    {"equalto", t_eq, "b"},
    {"!=", t_ne, "b"},
    {"ne", t_ne, "b"},
    {">", t_gt, "b"},
    {"gt", t_gt, "b"},
    {"greaterthan", t_gt, "b"},
    {"ge", t_ge, "b"},
    {">=", t_ge, "b"},
    {"<", t_lt, "b"},
    {"lt", t_lt, "b"},
    {"lessthan", t_lt, "b"},
    {"<=", t_le, "b"},
    {"le", t_le, "b"},
};

const struct jtest *jtest_find(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (strlen(tests[i].name) == n && !memcmp(tests[i].name, name, n))
            return &tests[i];
    return NULL;
}
