/* pebble through the public interface: the golden tokens on ref and cpu; and that a request's
 * tokens and logprobs do not depend, in a single bit, on what else the engine does: alone, beside
 * 63 others, in chunks of 16, after a prefix hit, after preemptions, on one thread or two.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/metrics.h"
#include "engine/internal.h"
#include "support/crowd.h"
#include "support/pebble.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = CROWD_MAX };

static struct crowd crowd; /* prompts that are submitted */

/* CPU, or the one that is named on the command line. */
static enum sl_device device_of_tests = SL_DEVICE_CPU;

/* Prompt i's parameters: every second one is sampled, some with penalties, from its own seed. */
static struct sl_sampling_params mixed_params(int i)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 40;
    p.logprobs = ANSWER_TOP;
    p.temperature = i % 2 ? 0.9f : 0;
    p.top_p = i % 4 == 1 ? 0.9f : 1;
    p.top_k = i % 8 == 3 ? 30 : 0;
    p.repetition_penalty = i % 3 ? 1 : 1.1f;
    p.frequency_penalty = i % 5 ? 0 : 0.3f;
    p.has_seed = true;
    p.seed = 1000 + i;
    return p;
}

static struct sl_sampling_params greedy_params(int i)
{
    struct sl_sampling_params p = mixed_params(0);
    (void)i;
    p.max_tokens = ANSWER_MAX;
    p.repetition_penalty = 1;
    p.frequency_penalty = 0;
    return p;
}

/* ---- golden ---------------------------------------------------------------------------------- */

/* Every stride-th prompt; how many may differ after a near tie. */
static void compare_with_golden(enum sl_device device, enum sl_dtype dtype, int stride, int n_may)
{
    struct sl_config cfg = pebble_config(device, dtype);
    struct sl_engine *e = pebble_start(&cfg);
    static struct answer got[N];
    int n = 0, n_same = 0;
    crowd_choose(&crowd, stride, 4096);
    double worst = 0, tie = dtype == SL_DTYPE_F32 ? 1e-4 : 0.05;
    crowd_run(&crowd, e, N, greedy_params, got);
    for (int i = 0; i < N; i++) {
        const struct golden *g = &crowd.golden[i];
        int at = 0;
        if (!crowd.chosen[i])
            continue;
        n++;
        for (; at < g->n_output && at < got[i].n && got[i].token[at] == g->output[at]; at++)
            worst = fmax(worst, fabs((double)got[i].lp[at][0].logprob - g->logprob[at]));
        n_same += at == g->n_output && got[i].n == at;
        if (at < g->n_output && g->gap[at] >= tie)
            fail_msg("%s: token %d differs, where the best two are %.4f apart", g->id, at,
                     g->gap[at]);
    }
    print_message("%d of %d prompts identical to the end, worst logprob error %.1e\n", n_same, n,
                  worst);
    assert_true(n_same >= n - n_may);
    if (dtype == SL_DTYPE_F32)
        assert_true(worst < 1e-3);
    sl_engine_destroy(&e);
}

static void golden_on_ref(void **state)
{
    (void)state;
    compare_with_golden(SL_DEVICE_REF, SL_DTYPE_F32, 3, 0); /* slow; pebble_ref.c has them all */
}

static void golden_on_cpu_f32(void **state)
{
    (void)state;
    compare_with_golden(SL_DEVICE_CPU, SL_DTYPE_F32, 1, 0);
}

static void golden_on_cpu_bf16(void **state)
{
    (void)state;
    compare_with_golden(SL_DEVICE_CPU, SL_DTYPE_BF16, 1, 9);
}

/* ---- invariance ------------------------------------------------------------------------------ */

static struct answer base[N];

static void assert_base(const struct answer *got, const char *what)
{
    crowd_assert_same(&crowd, base, got, what);
}

/* All chosen prompts at once. */
static void compare_on(struct sl_engine *e, const char *what)
{
    static struct answer got[N];
    crowd_run(&crowd, e, N, mixed_params, got);
    assert_base(got, what);
}

static struct sl_engine *compare(const struct sl_config *cfg, const char *what)
{
    struct sl_engine *e = pebble_start(cfg);
    compare_on(e, what);
    return e;
}

static void compare_chunks(struct sl_config cfg)
{
    cfg.max_num_batched_tokens = 16;
    struct sl_engine *e = compare(&cfg, "in steps of 16 tokens");
    sl_engine_destroy(&e);
    cfg.max_num_batched_tokens = 0;
    cfg.long_prefill_token_threshold = 16;
    cfg.max_num_partial_prefills = cfg.max_long_partial_prefills = 4;
    e = compare(&cfg, "in chunks of 16 tokens");
    sl_engine_destroy(&e);
}

static void compare_cached(struct sl_config cfg)
{
    static struct answer got[N];
    int n = 0, n_hits = 0;
    cfg.enable_prefix_caching = true;
    struct sl_engine *e = compare(&cfg, "filling the prefix cache");
    crowd_run(&crowd, e, N, mixed_params, got);
    assert_base(got, "with the prefix cached");
    for (int i = 0; i < N; i++) {
        n += crowd.chosen[i];
        n_hits += crowd.chosen[i] && got[i].n_cached > 0;
    }
    assert_true(n_hits > n / 2);
    sl_engine_destroy(&e);
}

static void swap_counts(struct sl_engine *e, struct sched_stats *st)
{
    sl_engine_drain(e, 0); /* its thread is idle from here on */
    sched_get_stats(core_sched(e->core), st);
    assert_int_equal(st->n_blocks_used + st->n_host_blocks_used, 0);
}

/* Preempted requests come back from host memory, and so does what the prefix cache let go. */
static void compare_swapped(struct sl_config cfg)
{
    struct sched_stats st;
    cfg.swap_space = 0.25;
    cfg.enable_prefix_caching = false;
    struct sl_engine *e = pebble_start_swapping(&cfg);
    compare_on(e, "after swaps");
    swap_counts(e, &st);
    assert_true(st.n_swaps > 0);
    sl_engine_destroy(&e);

    cfg.kv_offloading_size = 0.25;
    cfg.enable_prefix_caching = true;
    e = pebble_start_swapping(&cfg);
    compare_on(e, "after swaps, filling host memory");
    compare_on(e, "with the prefix in host memory");
    swap_counts(e, &st);
    assert_true(st.n_swaps > 0 && st.host_hits > 0);
    sl_engine_destroy(&e);
}

/* Room for a few sequences at a time, so that they drive each other out. */
static void compare_preempted(struct sl_config cfg)
{
    bool all[N];
    memcpy(all, crowd.chosen, sizeof all);
    for (int i = 0; i < N; i++)
        crowd.chosen[i] = crowd.chosen[i] && crowd.golden[i].n_prompt <= 150;
    cfg.num_blocks_override = 16;
    cfg.max_model_len = 250;
    for (int caching = 0; caching < 2; caching++) {
        cfg.enable_prefix_caching = caching;
        struct sl_engine *e = compare(&cfg, "after preemptions");
        assert_true(metrics_counter(engine_metrics(e), M_PREEMPTIONS) > 0);
        sl_engine_destroy(&e);
    }
    compare_swapped(cfg);
    memcpy(crowd.chosen, all, sizeof all);
}

static void invariance(enum sl_dtype dtype, int stride)
{
    struct sl_config cfg = pebble_config(device_of_tests, dtype);
    static struct answer got[N];
    int64_t t0 = clock_mono_ns();
    crowd_choose(&crowd, stride, 4096);
    cfg.enable_prefix_caching = false;
    struct sl_engine *e = pebble_start(&cfg);
    crowd_run(&crowd, e, 1, mixed_params, base); /* each alone */
    crowd_run(&crowd, e, N, mixed_params, got);
    assert_base(got, "beside the others");
    sl_engine_destroy(&e);
    compare_chunks(cfg);
    compare_cached(cfg);
    compare_preempted(cfg);

    crowd_choose(&crowd, stride * 4, 4096);
    cfg.threads = 2;
    e = compare(&cfg, "on two threads");
    sl_engine_destroy(&e);
    cfg.threads = 1;
    for (cfg.policy = SL_POLICY_PREFILL_FIRST; cfg.policy <= SL_POLICY_REQUEST; cfg.policy++) {
        cfg.max_num_seqs = 16;
        e = compare(&cfg, "under another policy");
        sl_engine_destroy(&e);
    }
    print_message("%.1f s\n", (double)(clock_mono_ns() - t0) * 1e-9);
}

static void invariance_bf16(void **state)
{
    (void)state;
    invariance(SL_DTYPE_BF16, 1);
}

static void invariance_f32(void **state)
{
    (void)state;
    invariance(SL_DTYPE_F32, 5);
}

/* n choices share the prompt's blocks: each is what it would be without the others. */
static void choices_are_what_they_are_alone(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    struct sl_engine *e = pebble_start(&cfg);
    int32_t token[6][ANSWER_MAX];
    int n_tokens[6] = {0};
    for (int n = 6; n >= 1; n -= 5) {
        struct sl_sampling_params p = mixed_params(1);
        p.n = n;
        struct sl_input in = {.tokens = crowd.golden[5].prompt,
                              .n_tokens = crowd.golden[5].n_prompt};
        struct sl_request *r = NULL;
        const struct sl_output *o;
        int at[6] = {0};
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, NULL), SL_OK);
        while (sl_request_wait(r, 60000) == SL_OK && (o = sl_request_next(r)))
            for (int i = 0; i < o->n_tokens; i++, at[o->index]++) {
                if (n == 6)
                    token[o->index][n_tokens[o->index]++] = o->tokens[i];
                else
                    assert_int_equal(o->tokens[i], token[0][at[0]]);
            }
        if (n == 1)
            assert_int_equal(at[0], n_tokens[0]);
        sl_request_release(&r);
    }
    sl_engine_destroy(&e);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Eight sequences decode; their consumer keeps up. Once warm, nobody allocates. */
static void a_warm_decode_step_allocates_nothing(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    struct sl_engine *e = pebble_start(&cfg);
    struct sl_request *r[8];
    int n = 0, n_now = 0;
    uint64_t before = 0;
    for (int i = 0; i < 8; i++) {
        struct sl_sampling_params p = mixed_params(i);
        static const char *const stop[] = {"never said by it"};
        struct sl_input in = {.tokens = crowd.golden[i].prompt,
                              .n_tokens = crowd.golden[i].n_prompt};
        p.ignore_eos = true;
        p.stop = stop;
        p.n_stop = 1;
        p.max_tokens = 600;
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r[i], NULL), SL_OK);
    }
    while (n < 8 * 600) {
        const struct sl_output *o;
        n_now = n;
        for (int i = 0; i < 8; i++)
            while ((o = sl_request_next(r[i])))
                n += o->n_tokens;
        if (n_now < 8 * 520 && n >= 8 * 520) /* no table grows between positions 512 and 600 */
            before = mem_count();
        if (n_now < 8 * 580 && n >= 8 * 580)
            assert_int_equal(mem_count() - before, 0);
        assert_int_not_equal(sl_request_wait(r[0], 5000), SL_EAGAIN);
        int n_done = 0;
        for (int i = 0; i < 8; i++)
            n_done += sl_request_done(r[i]);
        if (n_done == 8 && n == n_now)
            break;
    }
    assert_int_equal(n, 8 * 600);
    for (int i = 0; i < 8; i++)
        sl_request_release(&r[i]);
    sl_engine_destroy(&e);
}

static int setup(void **state)
{
    (void)state;
    return crowd_load(&crowd);
}

static int teardown(void **state)
{
    (void)state;
    crowd_free(&crowd);
    return 0;
}

static void golden_on_cuda(void **state)
{
    (void)state;
    compare_with_golden(SL_DEVICE_CUDA, SL_DTYPE_BF16, 1, 9);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest gpu[] = {
        cmocka_unit_test(golden_on_cuda),
        cmocka_unit_test(invariance_bf16),
        cmocka_unit_test(choices_are_what_they_are_alone),
        cmocka_unit_test(a_warm_decode_step_allocates_nothing),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_on_ref),
        cmocka_unit_test(golden_on_cpu_f32),
        cmocka_unit_test(golden_on_cpu_bf16),
        cmocka_unit_test(invariance_bf16),
        cmocka_unit_test(invariance_f32),
        cmocka_unit_test(choices_are_what_they_are_alone),
        cmocka_unit_test(a_warm_decode_step_allocates_nothing),
    };
    device_of_tests = pebble_device(argc, argv);
    if (device_of_tests == SL_DEVICE_CUDA)
        return cmocka_run_group_tests(gpu, setup, teardown);
    return cmocka_run_group_tests(tests, setup, teardown);
}
