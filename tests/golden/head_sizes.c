/* Every head size through a whole model: a tiny Llama of made-up weights with heads of 8, 16, ...
 * 512 values, on the CPU at each of its levels against the reference; what is larger, or no
 * multiple of 8, is refused by name before any weight is read. SPDX-License-Identifier: Apache-2.0
 */
#include "base/mem.h"
#include "support/drive.h"
#include "support/levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { N = 37, VOCAB = 64, HIDDEN = 32, LAYERS = 2, LARGEST = 512 };

struct rows {
    float logits[N][VOCAB];
};

static void take(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct rows *r = ctx;
    (void)item;
    assert_int_equal(vocab, VOCAB);
    memcpy(r->logits[pos], logits, sizeof r->logits[pos]);
}

static void overrides(char *buf, size_t n, int head_dim)
{
    snprintf(buf, n,
             "{\"hidden_size\":%d,\"intermediate_size\":48,\"num_hidden_layers\":%d,"
             "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":%d,"
             "\"vocab_size\":%d}",
             HIDDEN, LAYERS, head_dim, VOCAB);
}

/* A prompt in two pieces, then token by token. */
static void run(const char *device, enum sl_dtype dtype, int head_dim, struct rows *out)
{
    static const int pieces[] = {21, 9};
    char config[256];
    int32_t tokens[N];
    overrides(config, sizeof config, head_dim);
    struct drive_config c = {.device = device,
                             .model = "models/pebble",
                             .dtype = dtype,
                             .hf_overrides = config,
                             .load_format = SL_LOAD_DUMMY,
                             .threads = 1,
                             .max_tokens = N,
                             .max_seqs = 1,
                             .kv_tokens = 64};
    struct drive *d = drive_create(&c);
    struct drive_seq s;
    for (int i = 0; i < N; i++)
        tokens[i] = i * 29 % VOCAB;
    drive_seq_init(d, &s, tokens, N, N);
    for (int i = 0; s.n_computed < N; i++) {
        struct drive_item it = {.seq = &s, .n = i < 2 ? pieces[i] : 1, .all_logits = true};
        drive_step(d, &it, 1, take, out);
    }
    drive_seq_fini(d, &s);
    drive_destroy(&d);
}

static void compare(const struct rows *want, const struct rows *got, double bound, const char *what,
                    int head_dim)
{
    double worst = 0, largest = 0;
    for (int p = 0; p < N; p++)
        for (int i = 0; i < VOCAB; i++) {
            double e = fabs((double)got->logits[p][i] - (double)want->logits[p][i]);
            largest = fmax(largest, fabs((double)want->logits[p][i]));
            worst = e <= worst ? worst : isnan(e) ? INFINITY : e;
        }
    assert_true(largest > 0.01);
    if (!(worst <= bound * largest))
        fail_msg("heads of %d, %s: off by %.1e of the largest logit", head_dim, what,
                 worst / largest);
}

static void every_size(void **state)
{
    (void)state;
    static struct rows want, got;
    for (int hd = 8; hd <= LARGEST; hd += 8) {
        run("ref", SL_DTYPE_F32, hd, &want);
        EACH_ISA(isa, ISA_PLAIN)
        {
            assert_true(cpu_isa_limit(cpu_isa_name(isa)));
            run("cpu", SL_DTYPE_F32, hd, &got);
            compare(&want, &got, 2e-4, cpu_isa_name(isa), hd);
            run("cpu", SL_DTYPE_BF16, hd, &got);
            compare(&want, &got, drive_bf16_bound(LAYERS, HIDDEN), cpu_isa_name(isa), hd);
        }
    }
}

static enum sl_status takes_memory(struct device *d, struct weight *out,
                                   const struct weight_source *src, enum wformat format,
                                   const char *name, struct sl_err *err)
{
    (void)d, (void)out, (void)src, (void)format;
    return SL_FAIL(err, SL_ENOMEM, "memory was taken for '%s'", name);
}

static void larger_ones_are_refused(void **state)
{
    (void)state;
    char config[256];
    struct sl_err err = {0}, odd = {0};
    struct model_spec *spec = NULL;
    struct runner *r = NULL;
    struct runner_config rc = {.load_format = SL_LOAD_DUMMY, .block_size = 16};
    overrides(config, sizeof config, LARGEST + 4);
    assert_int_equal(model_spec_load(&spec, "models/pebble", config, "vllm", &odd), SL_EFORMAT);
    assert_non_null(strstr(odd.msg, "head size 516 is no multiple of 8"));
    overrides(config, sizeof config, LARGEST + 8);
    if (model_spec_load(&spec, "models/pebble", config, "vllm", &err) ||
        cpu_device_create(&rc.ops, &rc.device, 1, &err))
        fail_msg("%s", err.msg);
    struct ops strict = *rc.ops;
    strict.weight_prepare = takes_memory;
    rc.ops = &strict;
    rc.spec = spec;
    assert_int_equal(runner_create(&r, &rc, &err), SL_ENOSUPPORT);
    if (!strstr(err.msg, "attention heads have 520 values; device cpu takes multiples of 8 up to"))
        fail_msg("'%s' does not name the size", err.msg);
    model_spec_destroy(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_size),
                                       cmocka_unit_test(larger_ones_are_refused)};
    sl_log_set_level(SL_LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
