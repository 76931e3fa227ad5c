/* pebble on the CPU device at every ISA level: in float32 the golden tokens and logprobs, in
 * bfloat16 the tokens up to the first near tie and the perplexity of held-out text.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/isa.h"
#include "base/clock.h"
#include "base/mem.h"
#include "support/golden.h"
#include "support/levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct drive *open_kv(enum cpu_isa isa, enum sl_dtype dtype, const char *quantization,
                             const char *kv_cache_dtype)
{
    struct drive_config config = {.device = "cpu",
                                  .model = "models/pebble",
                                  .dtype = dtype,
                                  .quantization = quantization,
                                  .kv_cache_dtype = kv_cache_dtype,
                                  .threads = 2,
                                  .max_tokens = 512,
                                  .max_seqs = 64,
                                  .kv_tokens = 12288};
    assert_true(cpu_isa_limit(cpu_isa_name(isa)));
    return drive_create(&config);
}

static struct drive *open_pebble(enum cpu_isa isa, enum sl_dtype dtype, const char *quantization)
{
    return open_kv(isa, dtype, quantization, NULL);
}

static void run_prompts(struct drive *d, enum cpu_isa isa, const char *what, double tie,
                        struct golden_report *r)
{
    int n;
    struct golden *g = golden_load(&n);
    int64_t t0 = clock_mono_ns();
    golden_run(d, g, n, 64, tie, r);
    print_message("%s, %s: %d of %d prompts identical to the end, worst logprob error %.2e, "
                  "prompt %.2e, %.1f s\n",
                  cpu_isa_name(isa), what, r->n_identical, n, r->worst_logprob,
                  r->worst_prompt_logprob, (double)(clock_mono_ns() - t0) / 1e9);
    assert_int_equal(n, 64);
    golden_free(&g, n);
}

static void float32(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_AVX2)
    {
        struct golden_report r;
        struct drive *d = open_pebble(isa, SL_DTYPE_F32, NULL);
        run_prompts(d, isa, "f32", 1e-4, &r);
        assert_int_equal(r.n_bad, 0);
        assert_true(r.worst_logprob < 1e-3);
        assert_true(r.worst_prompt_logprob < 1e-3);
        drive_destroy(&d);
    }
}

static void bfloat16(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_AVX2)
    {
        struct golden_report r;
        struct drive *d = open_pebble(isa, SL_DTYPE_BF16, NULL);
        run_prompts(d, isa, "bf16", 0.05, &r);
        assert_int_equal(r.n_bad, 0);
        assert_true(r.n_identical >= 55);
        drive_destroy(&d);
    }
}

/* All 32,768 tokens: bfloat16 arithmetic costs less than half a percent. */
static void perplexity(void **state)
{
    (void)state;
    int n;
    int32_t *ids = golden_text_ids(&n);
    struct drive *d = open_pebble(cpu_isa_detect(), SL_DTYPE_BF16, NULL);
    double ratio = golden_perplexity_ratio(d, ids, 0, n / 1024);
    print_message("perplexity in bf16: %.6f of the golden\n", ratio);
    assert_true(fabs(ratio - 1) < 0.005);
    mem_free(ids);
    drive_destroy(&d);
}

/* Four windows of the same text; a quantized product is as exact on every level. */
static void quantized_perplexity(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double most;
    } q[] = {{"int8", 0.01}, {"int4", 0.06}};
    int n;
    int32_t *ids = golden_text_ids(&n);
    EACH_ISA(isa, ISA_AVX2)
    {
        for (int i = 0; i < 2; i++) {
            struct drive *d = open_pebble(isa, SL_DTYPE_BF16, q[i].name);
            double ratio = golden_perplexity_ratio(d, ids, 0, 4);
            print_message("%s, perplexity in %s: %.4f of the golden\n", cpu_isa_name(isa),
                          q[i].name, ratio);
            assert_true(fabs(ratio - 1) < q[i].most);
            drive_destroy(&d);
        }
    }
    mem_free(ids);
}

/* int8 keys and values cost a tenth of a percent of perplexity, and a few close choices. */
static void int8_kv_cache(void **state)
{
    (void)state;
    int n;
    int32_t *ids = golden_text_ids(&n);
    EACH_ISA(isa, ISA_AVX2)
    {
        struct golden_report r;
        struct drive *d = open_kv(isa, SL_DTYPE_BF16, NULL, "int8");
        run_prompts(d, isa, "int8 KV", 0.05, &r);
        double ratio = golden_perplexity_ratio(d, ids, 0, 4);
        print_message("%s, perplexity with int8 KV: %.4f of the golden\n", cpu_isa_name(isa),
                      ratio);
        assert_true(fabs(ratio - 1) < 0.005);
        assert_true(r.n_identical >= 50);
        drive_destroy(&d);
    }
    mem_free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32), cmocka_unit_test(bfloat16), cmocka_unit_test(perplexity),
        cmocka_unit_test(quantized_perplexity), cmocka_unit_test(int8_kv_cache)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
