/* pebble on the reference device in float32 against transformers in float32: the tokens of all 64
 * prompts, their logprobs, and one window of held-out text.
 * SPDX-License-Identifier: Apache-2.0 */
#include "support/golden.h"

#include "base/clock.h"
#include "base/mem.h"

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

static void perplexity(void **state)
{
    (void)state;
    struct drive *d = drive_create(&config);
    int n;
    int32_t *ids = golden_text_ids(&n);
    double ratio = golden_perplexity_ratio(d, ids, 7, 8);
    print_message("perplexity of one window: %.7f of the golden\n", ratio);
    assert_true(fabs(ratio - 1) < 1e-5);
    mem_free(ids);
    drive_destroy(&d);
}

/* Weights and cache in 16 bits, sums still exact: short prompts keep their tokens. */
static void half_precision(void **state)
{
    (void)state;
    static const enum sl_dtype dtypes[] = {SL_DTYPE_BF16, SL_DTYPE_F16};
    int n;
    struct golden *g = golden_load(&n);
    for (int i = 0; i < 2; i++) {
        struct drive_config c = config;
        c.dtype = dtypes[i];
        struct drive *d = drive_create(&c);
        struct golden_report r;
        golden_run(d, g, 16, 16, 0.05, &r);
        print_message("%s: %d of 16 identical, worst logprob error %.2e\n", i ? "f16" : "bf16",
                      r.n_identical, r.worst_logprob);
        assert_int_equal(r.n_bad, 0);
        assert_int_equal(r.n_identical, 16);
        drive_destroy(&d);
    }
    golden_free(&g, n);
}

/* FP8 weights (and activations), an FP8 cache, and both, over one window. */
static void fp8(void **state)
{
    (void)state;
    static const struct {
        const char *weights, *kv;
        double most;
    } way[] = {{"fp8", NULL, 0.01}, {NULL, "fp8", 0.01}, {"fp8", "fp8_e4m3", 0.02}};
    int n;
    int32_t *ids = golden_text_ids(&n);
    for (int i = 0; i < 3; i++) {
        struct drive_config c = config;
        c.dtype = SL_DTYPE_BF16;
        c.quantization = way[i].weights;
        c.kv_cache_dtype = way[i].kv;
        struct drive *d = drive_create(&c);
        double ratio = golden_perplexity_ratio(d, ids, 7, 8);
        print_message("perplexity of one window, weights %s, KV %s: %.4f of the golden\n",
                      way[i].weights ? "fp8" : "bf16", way[i].kv ? "fp8" : "bf16", ratio);
        assert_true(fabs(ratio - 1) < way[i].most);
        drive_destroy(&d);
    }
    mem_free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(prompts), cmocka_unit_test(perplexity),
                                       cmocka_unit_test(half_precision), cmocka_unit_test(fp8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
