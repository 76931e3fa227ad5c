/* Speculation on pebble through the public interface: tokens, text and logprobs are bit for bit
 * those without it, greedy and sampled, whatever guesses, alone, beside 63 others, in small chunks,
 * and when sequences drive each other out.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/metrics.h"
#include "engine/engine.h"
#include "support/crowd.h"
#include "support/pebble.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = CROWD_MAX };

static struct crowd crowd;

/* CPU, or the one that is named on the command line. */
static enum sl_device device_of_tests = SL_DEVICE_CPU;

static const struct method {
    const char *name, *json;
} methods[] = {
    {"ngram", "{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"prompt_lookup_min\": 1, "
              "\"prompt_lookup_max\": 4%s}"},
    {"suffix", "{\"method\": \"suffix\", \"num_speculative_tokens\": 6%s}"},
    {"draft model", "{\"model\": \"models/pebble-draft\", \"num_speculative_tokens\": 4%s}"},
};
enum { N_METHODS = sizeof methods / sizeof *methods };

/* As many guesses as there can be, or as many as pay. */
static struct sl_engine *start_with(struct sl_config cfg, const struct method *m, bool adaptive)
{
    char json[256];
    snprintf(json, sizeof json, m->json, adaptive ? "" : ", \"adaptive\": false");
    cfg.speculative_config = json;
    return pebble_start(&cfg);
}

/* Every way to choose a token, and to end. */
static struct sl_sampling_params mixed_params(int i)
{
    static const char *const stop[] = {"the", "\n\n"}, *const bad[] = {" you", " the"};
    static const struct sl_logit_bias bias[] = {{300, 2.5f}, {16, -3}};
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 24 + i % 25;
    p.logprobs = ANSWER_TOP;
    p.temperature = i % 3 ? 0.4f + 0.1f * (float)(i % 7) : 0;
    p.top_p = i % 4 == 1 ? 0.9f : 1;
    p.top_k = i % 8 == 3 ? 30 : 0;
    p.min_p = i % 8 == 5 ? 0.05f : 0;
    p.repetition_penalty = i % 5 ? 1 : 1.1f;
    p.frequency_penalty = i % 7 ? 0 : 0.3f;
    p.min_tokens = i % 6 == 2 ? 12 : 0;
    p.stop = stop;
    p.n_stop = i % 10 == 4 ? 2 : 0;
    p.bad_words = bad;
    p.n_bad_words = i % 9 == 4 ? 2 : 0;
    p.logit_bias = bias;
    p.n_logit_bias = i % 11 == 6 ? 2 : 0;
    p.ignore_eos = i % 13 == 7;
    p.has_seed = true;
    p.seed = 1000 + i;
    return p;
}

static struct sl_sampling_params greedy_params(int i)
{
    struct sl_sampling_params p;
    (void)i;
    sl_sampling_params_init(&p);
    p.max_tokens = ANSWER_MAX;
    p.logprobs = ANSWER_TOP;
    p.temperature = 0;
    return p;
}

static struct answer base[N], got[N];

static void assert_base(const struct method *m, const char *what)
{
    char text[96];
    snprintf(text, sizeof text, "%s, %s", m->name, what);
    crowd_assert_same(&crowd, base, got, text);
}

static struct sl_draft_stats stats_of(const struct sl_engine *e)
{
    struct sl_draft_stats s;
    sl_engine_draft_stats(e, &s);
    return s;
}

static void report(const struct sl_engine *e, const struct method *m, const char *what)
{
    struct sl_draft_stats s = stats_of(e);
    print_message("%s, %s: %llu of %llu guesses kept\n", m->name, what,
                  (unsigned long long)s.n_accepted, (unsigned long long)s.n_draft_tokens);
    assert_true(s.n_accepted > 0 && s.n_accepted <= s.n_draft_tokens);
}

/* Every golden prompt on one device: alone and 64 at a time. */
static void compare(const struct sl_config *cfg, const struct method *m, crowd_params params)
{
    static const int widths[] = {1, N};
    for (int adaptive = 0; adaptive < 2; adaptive++)
        for (int w = 0; w < 2; w++) {
            struct sl_engine *e = start_with(*cfg, m, adaptive);
            crowd_run(&crowd, e, widths[w], params, got);
            assert_base(m, w ? "64 at a time" : "one at a time");
            if (!adaptive)
                report(e, m, w ? "64 at a time" : "one at a time");
            sl_engine_destroy(&e);
        }
}

static void make_base(const struct sl_config *cfg, crowd_params params)
{
    struct sl_engine *e = pebble_start(cfg);
    crowd_run(&crowd, e, N, params, base);
    sl_engine_destroy(&e);
}

static void greedy(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    crowd_choose(&crowd, 1, 4096);
    make_base(&cfg, greedy_params);
    for (int m = 0; m < N_METHODS; m++)
        compare(&cfg, &methods[m], greedy_params);
}

static void sampled(void **state)
{
    (void)state;
    enum sl_dtype dtype = device_of_tests == SL_DEVICE_CPU ? SL_DTYPE_F32 : SL_DTYPE_BF16;
    struct sl_config cfg = pebble_config(device_of_tests, dtype);
    crowd_choose(&crowd, 1, 4096);
    make_base(&cfg, mixed_params);
    for (int m = 0; m < N_METHODS; m++)
        compare(&cfg, &methods[m], mixed_params);
}

static void on_ref(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(SL_DEVICE_REF, SL_DTYPE_F32);
    crowd_choose(&crowd, 9, 60);
    make_base(&cfg, mixed_params);
    for (int m = 0; m < N_METHODS; m++) {
        struct sl_engine *e = start_with(cfg, &methods[m], false);
        crowd_run(&crowd, e, N, mixed_params, got);
        assert_base(&methods[m], "on ref");
        sl_engine_destroy(&e);
    }
}

/* Room for a few sequences at a time, and steps of 24 tokens; the cache is filled and hit. */
static void preempted(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    crowd_choose(&crowd, 1, 150);
    make_base(&cfg, mixed_params);
    cfg.num_blocks_override = 16;
    cfg.max_model_len = 250;
    for (int m = 0; m < N_METHODS; m++)
        for (int caching = 0; caching < 2; caching++) {
            cfg.enable_prefix_caching = caching;
            cfg.max_num_batched_tokens = caching ? 24 : 0;
            cfg.max_num_seqs = caching ? 24 : 0;
            struct sl_engine *e = start_with(cfg, &methods[m], false);
            for (int again = 0; again <= caching; again++) {
                crowd_run(&crowd, e, N, mixed_params, got);
                assert_base(&methods[m], "after preemptions");
            }
            report(e, &methods[m], "after preemptions");
            assert_true(metrics_counter(engine_metrics(e), M_PREEMPTIONS) > 0);
            sl_engine_destroy(&e);
        }
}

/* n choices fork from one prompt and are guessed for each by itself. */
static void choices(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    for (int m = 0; m < N_METHODS; m++) {
        int32_t token[2][6][ANSWER_MAX];
        int n_tokens[2][6] = {{0}};
        for (int with = 0; with < 2; with++) {
            struct sl_engine *e = with ? start_with(cfg, &methods[m], false) : pebble_start(&cfg);
            struct sl_sampling_params p = mixed_params(1);
            struct sl_input in = {.tokens = crowd.golden[5].prompt,
                                  .n_tokens = crowd.golden[5].n_prompt};
            struct sl_request *r = NULL;
            const struct sl_output *o;
            p.n = 6;
            assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, NULL), SL_OK);
            while (sl_request_wait(r, 60000) == SL_OK && (o = sl_request_next(r)))
                for (int i = 0; i < o->n_tokens; i++)
                    token[with][o->index][n_tokens[with][o->index]++] = o->tokens[i];
            sl_request_release(&r);
            sl_engine_destroy(&e);
        }
        for (int c = 0; c < 6; c++) {
            assert_int_equal(n_tokens[0][c], n_tokens[1][c]);
            assert_memory_equal(token[0][c], token[1][c], (size_t)n_tokens[0][c] * sizeof(int32_t));
        }
    }
}

/* The classic rejection sampler: greedy answers are the same, sampled ones are whole and may differ
 * (tests/unit/rejection.c has their distribution). */
static void standard(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    crowd_choose(&crowd, 2, 4096);
    make_base(&cfg, greedy_params);
    cfg.rejection_sample_method = "standard";
    for (int m = 0; m < N_METHODS; m++) {
        struct sl_engine *e = start_with(cfg, &methods[m], false);
        crowd_run(&crowd, e, N, greedy_params, got);
        assert_base(&methods[m], "standard, greedy");
        crowd_run(&crowd, e, N, mixed_params, got);
        for (int i = 0; i < N; i++)
            assert_true(!crowd.chosen[i] || (got[i].n > 0 && got[i].finish != SL_ERROR));
        report(e, &methods[m], "standard");
        sl_engine_destroy(&e);
    }
}

/* A draft that is the model itself is always right: its cache holds what it should after prefix
 * hits, preemptions, forks and refuted guesses (there are none), to the last bit. */
static struct sl_sampling_params endless_params(int i)
{
    struct sl_sampling_params p = mixed_params(i);
    p.ignore_eos = true;
    p.n_stop = p.min_tokens = p.n_bad_words = 0;
    p.n = p.temperature > 0 && i % 5 == 4 ? 3 : 1; /* choices that fork */
    return p;
}

static void its_own_draft(void **state)
{
    static const char json[] =
        "{\"model\": \"models/pebble\", \"num_speculative_tokens\": 3, \"adaptive\": false}";
    (void)state;
    crowd_choose(&crowd, 1, 150);
    for (int tight = 0; tight < 2; tight++) {
        struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
        cfg.speculative_config = json;
        cfg.num_blocks_override = tight ? 24 : 0;
        cfg.max_model_len = tight ? 250 : 0;
        cfg.max_num_batched_tokens = tight ? 40 : 0;
        cfg.max_num_seqs = tight ? 24 : 0;
        struct sl_engine *e = pebble_start(&cfg);
        for (int again = 0; again < 2; again++) {
            struct sl_request *r[N];
            for (int i = 0; i < N; i++)
                r[i] = crowd.chosen[i] ? crowd_submit(&crowd, e, i, endless_params) : NULL;
            for (int i = 0; i < N; i++) {
                while (r[i] && sl_request_wait(r[i], 240000) == SL_OK && sl_request_next(r[i]))
                    ;
                sl_request_release(&r[i]);
            }
        }
        struct sl_draft_stats s = stats_of(e);
        print_message("its own draft: %llu of %llu guesses kept, %llu preemptions\n",
                      (unsigned long long)s.n_accepted, (unsigned long long)s.n_draft_tokens,
                      (unsigned long long)metrics_counter(engine_metrics(e), M_PREEMPTIONS));
        assert_true(s.n_draft_tokens > 500);
        assert_int_equal(s.n_accepted, s.n_draft_tokens);
        assert_true(!tight || metrics_counter(engine_metrics(e), M_PREEMPTIONS) > 0);
        assert_true(tight || metrics_counter(engine_metrics(e), M_PREFIX_HITS) > 0);
        sl_engine_destroy(&e);
    }
}

static void refuse(const char *json, const char *method, const char *why)
{
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    cfg.speculative_config = json;
    cfg.rejection_sample_method = method;
    assert_int_not_equal(sl_engine_create(&e, &cfg, &err), SL_OK);
    if (!strstr(err.msg, why))
        fail_msg("%s: %s", json, err.msg);
    assert_null(e);
}

static void refusals(void **state)
{
    (void)state;
    refuse("[]", NULL, "must be a JSON object");
    refuse("{", NULL, "must be a JSON object");
    refuse("{}", NULL, "give a model or a method");
    refuse("{\"method\": \"ngram\"}", NULL, "num_speculative_tokens must be provided");
    refuse("{\"method\": \"ngram\", \"num_speculative_tokens\": 0}", NULL, "from 1 to 32");
    refuse("{\"method\": \"ngram\", \"num_speculative_tokens\": 1e9}", NULL, "from 1 to 32");
    refuse("{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"prompt_lookup_min\": 5, "
           "\"prompt_lookup_max\": 2}",
           NULL, "must not be greater than");
    refuse("{\"method\": \"eagle\", \"num_speculative_tokens\": 4}", NULL, "'eagle' is not there");
    refuse("{\"method\": \"magic\", \"num_speculative_tokens\": 4}", NULL, "'magic' is not known");
    refuse("{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"colour\": 1}", NULL,
           "unknown key 'colour'");
    refuse("{\"method\": \"ngram\", \"num_speculative_tokens\": 4}", "guess", "'guess'");
    refuse(NULL, "standard", "needs a speculative_config");
    refuse("{\"method\": \"draft_model\", \"num_speculative_tokens\": 4}", NULL, "needs a model");
    refuse("{\"model\": \"tests/golden/families/gpt2\", \"num_speculative_tokens\": 4}", NULL,
           "tests/golden/families/gpt2 has a vocabulary of");
    refuse("{\"model\": \"models/absent\", \"num_speculative_tokens\": 4}", NULL, "models/absent");
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

int main(int argc, char **argv)
{
    const struct CMUnitTest any[] = {
        cmocka_unit_test(greedy),   cmocka_unit_test(sampled),  cmocka_unit_test(preempted),
        cmocka_unit_test(choices),  cmocka_unit_test(standard), cmocka_unit_test(its_own_draft),
        cmocka_unit_test(refusals),
    };
    const struct CMUnitTest here[] = {cmocka_unit_test(on_ref)};
    device_of_tests = pebble_device(argc, argv);
    int failed = cmocka_run_group_tests(any, setup, teardown);
    if (device_of_tests == SL_DEVICE_CPU)
        failed += cmocka_run_group_tests(here, setup, teardown);
    return failed;
}
