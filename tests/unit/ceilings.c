/* ceilings: every rate is measured where the level has the instruction, and is a possible number.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/ceilings.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void rates_are_possible(void **state)
{
    (void)state;
    for (enum cpu_isa isa = ISA_PLAIN; isa <= cpu_isa_detect(); isa++) {
        struct ceilings *c = NULL;
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        assert_int_equal(ceilings_create(&c, 2, (size_t)128 << 20, NULL), SL_OK);
        assert_int_equal(ceilings_threads(c), 2);
        assert_int_equal(ceilings_isa(c), isa);
        double gb = ceilings_measure(c, CEILING_READ, 5) / 1e9;
        double f32 = ceilings_measure(c, CEILING_F32, 5) / 1e9;
        double bf16 = ceilings_measure(c, CEILING_BF16, 5) / 1e9;
        double i8 = ceilings_measure(c, CEILING_I8, 5) / 1e9;
        assert_true(gb > 0.05 && gb < 5000);
        assert_true(f32 > 0.05 && f32 < 100000);
        assert_true(isa >= ISA_AVX512 ? bf16 > 1 : bf16 == 0);
        assert_true(isa >= ISA_AVX2 ? i8 > 1 : i8 == 0);
        ceilings_destroy(&c);
        assert_null(c);
    }
}

static void no_memory_is_said(void **state)
{
    (void)state;
    struct ceilings *c = NULL;
    struct sl_err err = {0};
    assert_int_equal(ceilings_create(&c, 1, SIZE_MAX / 4, &err), SL_ENOMEM);
    assert_null(c);
    assert_true(err.msg[0] != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rates_are_possible),
                                       cmocka_unit_test(no_memory_is_said)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
