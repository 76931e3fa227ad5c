/* pebble on the reference device in float32 against transformers in float32: the tokens of all 64
 * prompts, their logprobs, and one window of held-out text.
 * SPDX-License-Identifier: Apache-2.0 */
#include "support/golden.h"

#include "base/clock.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const struct drive_config config = {.device = "ref",
                                           .model = "models/pebble",
                                           .dtype = SL_DTYPE_F32,
                                           .max_tokens = 256,
                                           .max_seqs = 64,
                                           .kv_tokens = 12288};

static void prompts(void **state)
{
    (void)state;
    struct drive *d = drive_create(&config);
    int n;
    struct golden *g = golden_load(&n);
    struct golden_report r;
    int64_t t0 = clock_mono_ns();
    golden_run(d, g, n, 64, 1e-4, &r);
    print_message("%d of %d prompts identical to the end, worst logprob error %.2e, prompt %.2e, "
                  "%.1f s\n",
                  r.n_identical, n, r.worst_logprob, r.worst_prompt_logprob,
                  (double)(clock_mono_ns() - t0) / 1e9);
    assert_int_equal(n, 64);
    assert_int_equal(r.n_bad, 0);
    assert_true(r.n_identical >= 64);
    assert_true(r.worst_logprob < 1e-3);
    assert_true(r.worst_prompt_logprob < 1e-3);
    golden_free(&g, n);
    drive_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
