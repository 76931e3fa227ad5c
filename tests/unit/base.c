/* base: errors keep the first cause, buffers and arenas respect their limits.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/status.h"
#include "base/strbuf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void first_cause_wins(void **state)
{
    (void)state;
    struct sl_err err = {0};
    assert_int_equal(SL_FAIL_PARAM(&err, SL_EINVAL, "top_p", "top_p is %d", 3), SL_EINVAL);
    assert_int_equal(SL_FAIL(&err, SL_ENOMEM, "later"), SL_ENOMEM);
    assert_int_equal(err.code, SL_EINVAL);
    assert_string_equal(err.msg, "top_p is 3");
    assert_string_equal(err.param, "top_p");
    assert_int_equal(SL_FAIL(NULL, SL_EIO, "nobody listens"), SL_EIO);
}

static void strbuf_has_a_maximum(void **state)
{
    (void)state;
    struct strbuf b;
    strbuf_init(&b, 8);
    strbuf_adds(&b, "12345678");
    assert_false(b.failed);
    strbuf_addc(&b, '9');
    assert_true(b.failed);
    assert_null(strbuf_take(&b));
    strbuf_addf(&b, "%s-%d", "ab", 7);
    strbuf_drop_front(&b, 1);
    char *s = strbuf_take(&b);
    assert_string_equal(s, "b-7");
    mem_free(s);
}

static void arena_respects_limit(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 10000);
    char *p = arena_alloc(&a, 5000, 1);
    assert_non_null(p);
    assert_int_equal(p[4999], 0);
    assert_non_null(arena_strndup(&a, "hello", 5));
    assert_null(arena_alloc(&a, 6000, 1));
    assert_null(arena_alloc(&a, SIZE_MAX / 2, 3));
    arena_fini(&a);
}

static void nth_allocation_fails(void **state)
{
    (void)state;
    mem_fail_nth(2);
    void *a = mem_alloc(1, 1), *b = mem_alloc(1, 1), *c = mem_alloc(1, 1);
    assert_non_null(a);
    assert_null(b);
    assert_non_null(c);
    mem_free(a);
    mem_free(c);
    assert_null(mem_zalloc(SIZE_MAX, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_cause_wins),
        cmocka_unit_test(strbuf_has_a_maximum),
        cmocka_unit_test(arena_respects_limit),
        cmocka_unit_test(nth_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
