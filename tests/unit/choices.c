/* Several choices of one request through the public interface, over sim: best_of and beam search,
 * what they refuse, and how they end.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/mem.h"
#include "core/metrics.h"
#include "engine/engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { MAX_CHOICES = 8, MAX_TOKENS = 64 };

static struct sl_config sim_config(void)
{
    struct sl_config cfg;
    sl_config_init(&cfg);
    cfg.model = "models/pebble";
    cfg.device = SL_DEVICE_SIM;
    cfg.sim_step_ms = 0.1;
    cfg.num_blocks_override = 512;
    cfg.max_num_seqs = 16;
    return cfg;
}

static struct sl_engine *start(const struct sl_config *cfg)
{
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    if (sl_engine_create(&e, cfg, &err))
        fail_msg("no engine: %s", err.msg);
    return e;
}

static struct sl_sampling_params params(int n, int best_of)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.n = n;
    p.best_of = best_of;
    p.max_tokens = 20;
    p.ignore_eos = true;
    p.has_seed = true;
    p.seed = 11;
    return p;
}

static struct sl_request *submit(struct sl_engine *e, const struct sl_sampling_params *p)
{
    int32_t prompt[40];
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    for (int i = 0; i < 40; i++)
        prompt[i] = 200 + i;
    struct sl_input in = {.tokens = prompt, .n_tokens = 40};
    if (sl_submit(e, &in, p, NULL, NULL, &r, &err))
        fail_msg("submit: %s", err.msg);
    return r;
}

struct got {
    int32_t token[MAX_TOKENS];
    int n, n_lp, n_outputs;
    double lp_sum, sum, score;
    size_t text_bytes;
    enum sl_finish finish;
};

/* Reads to the end; choices come in any order, each once or in pieces. */
static void read_all(struct sl_request **r, struct got *got, struct sl_usage *usage)
{
    const struct sl_output *o;
    memset(got, 0, MAX_CHOICES * sizeof *got);
    while (sl_request_wait(*r, 20000) == SL_OK && (o = sl_request_next(*r))) {
        assert_true(o->index >= 0 && o->index < MAX_CHOICES);
        struct got *g = &got[o->index];
        assert_int_equal(g->finish, SL_RUNNING);
        for (int i = 0; i < o->n_tokens; i++) {
            assert_true(g->n < MAX_TOKENS);
            g->token[g->n++] = o->tokens[i];
            if (o->logprobs) {
                assert_int_equal(o->logprobs[i].entry[0].token, o->tokens[i]);
                g->lp_sum += (double)o->logprobs[i].entry[0].logprob;
                g->n_lp += o->logprobs[i].n;
            }
        }
        g->text_bytes += o->text_bytes;
        g->n_outputs++;
        g->finish = o->finish;
        g->sum = o->cumulative_logprob;
        g->score = o->score;
    }
    assert_true(sl_request_done(*r));
    sl_request_usage(*r, usage);
    sl_request_release(r);
}

/* ---- best_of --------------------------------------------------------------------------------- */

static void the_best_are_given(void **state)
{
    struct sl_engine *e = *state;
    struct got all[MAX_CHOICES], best[MAX_CHOICES];
    struct sl_usage usage;
    struct sl_sampling_params p = params(6, SL_NONE);
    p.logprobs = 1;
    struct sl_request *r = submit(e, &p);
    read_all(&r, all, &usage);
    assert_int_equal(usage.completion_tokens, 120);
    for (int i = 0; i < 6; i++) {
        assert_true(fabs(all[i].sum - all[i].lp_sum) < 1e-9);
        assert_true(all[i].score == all[i].sum);
        assert_int_equal(all[i].n_lp, 40);
    }
    for (int shown = 0; shown < 2; shown++) {
        p = params(3, 6);
        p.logprobs = shown ? 2 : SL_NONE;
        r = submit(e, &p);
        read_all(&r, best, &usage);
        assert_int_equal(usage.completion_tokens, 60); /* of what is given, as vLLM counts */
        bool used[MAX_CHOICES] = {false};
        for (int i = 0; i < 3; i++) {
            int top = -1;
            for (int k = 0; k < 6; k++)
                if (!used[k] && (top < 0 || all[k].sum > all[top].sum))
                    top = k;
            used[top] = true;
            assert_int_equal(best[i].n, 20);
            assert_memory_equal(best[i].token, all[top].token, 20 * sizeof(int32_t));
            assert_true(best[i].sum == all[top].sum);
            assert_int_equal(best[i].n_lp, shown ? 60 : 0); /* only to rank them */
            assert_int_equal(best[i].finish, SL_LENGTH);
            assert_int_equal(best[i].n_outputs, 1);
        }
        assert_int_equal(best[3].n_outputs, 0);
    }
}

static void as_many_as_candidates_is_plain(void **state)
{
    struct sl_engine *e = *state;
    struct got a[MAX_CHOICES], b[MAX_CHOICES];
    struct sl_usage usage;
    struct sl_sampling_params p = params(3, SL_NONE), q = params(3, 3);
    struct sl_request *r = submit(e, &p);
    read_all(&r, a, &usage);
    r = submit(e, &q);
    read_all(&r, b, &usage);
    for (int i = 0; i < 3; i++) {
        assert_memory_equal(a[i].token, b[i].token, 20 * sizeof(int32_t));
        assert_true(isnan(a[i].sum)); /* nobody asked for logprobs */
    }
}

static void stop_strings_count_before_ranking(void **state)
{
    struct sl_engine *e = *state;
    static const char *const stop[] = {"e"};
    struct got g[MAX_CHOICES];
    struct sl_usage usage;
    struct sl_sampling_params p = params(2, 6);
    p.stop = stop;
    p.n_stop = 1;
    struct sl_request *r = submit(e, &p);
    read_all(&r, g, &usage);
    assert_true(g[0].finish == SL_STOP || g[0].finish == SL_LENGTH);
    assert_true(g[0].sum >= g[1].sum);
    assert_int_equal(usage.completion_tokens, g[0].n + g[1].n);
}

/* ---- beams ----------------------------------------------------------------------------------- */

static void beams_come_best_first(void **state)
{
    struct sl_engine *e = *state;
    struct got g[MAX_CHOICES];
    struct sl_usage usage;
    static const int32_t named[] = {5, 9};
    for (int logprobs = -1; logprobs < 3; logprobs++) {
        struct sl_sampling_params p = params(3, 5);
        p.use_beam_search = true;
        p.length_penalty = 2;
        p.logprobs = logprobs < 0 ? SL_NONE : logprobs;
        p.logprob_token_ids = named;
        p.n_logprob_token_ids = logprobs == 2 ? 2 : 0;
        struct sl_request *r = submit(e, &p);
        read_all(&r, g, &usage);
        assert_int_equal(usage.completion_tokens, 60);
        assert_int_equal(g[3].n_outputs, 0);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(g[i].finish, SL_LENGTH);
            assert_int_equal(g[i].n, 20);
            assert_int_equal(g[i].n_outputs, 1);
            assert_true(g[i].text_bytes > 0);
            assert_true(fabs(g[i].score - g[i].sum / 400) < 1e-12); /* length_penalty 2 */
            assert_true(i == 0 || g[i].score <= g[i - 1].score);
            assert_int_equal(g[i].n_lp, logprobs < 0 ? 0 : 20 * (logprobs == 2 ? 5 : 1 + logprobs));
            if (logprobs >= 0)
                assert_true(fabs(g[i].lp_sum - g[i].sum) < 1e-9);
        }
    }
}

/* 20 beams of 64 tokens with all of their logprobs pass max_unread_bytes at once: an answer that
 * could not be read earlier is not held against its reader. */
static void a_whole_answer_is_not_unread(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.max_unread_bytes = 1024;
    struct sl_engine *e = start(&cfg);
    struct got g[MAX_CHOICES];
    struct sl_usage usage;
    struct sl_sampling_params p = params(8, SL_NONE);
    p.use_beam_search = true;
    p.max_tokens = 60;
    p.logprobs = 20;
    struct sl_request *r = submit(e, &p);
    read_all(&r, g, &usage);
    for (int i = 0; i < 8; i++)
        assert_int_equal(g[i].finish, SL_LENGTH);
    sl_engine_destroy(&e);
}

static void aborts_end_all_choices(void **state)
{
    struct sl_engine *e = *state;
    struct got g[MAX_CHOICES];
    struct sl_usage usage;
    for (int beams = 0; beams < 2; beams++)
        for (int i = 0; i < 20; i++) {
            struct sl_sampling_params p = params(2, 6);
            p.use_beam_search = beams;
            p.max_tokens = 4000;
            p.ignore_eos = true;
            struct sl_request *r = submit(e, &p);
            struct timespec nap = {.tv_nsec = i * 200000};
            nanosleep(&nap, NULL);
            if (i % 2) {
                sl_request_abort(r);
                while (sl_request_wait(r, 20000) == SL_OK) /* more tokens than g has room for */
                    (void)sl_request_next(r);
                assert_true(sl_request_done(r));
            }
            sl_request_release(&r);
        }
    struct sl_sampling_params p = params(1, SL_NONE); /* the engine goes on */
    struct sl_request *r = submit(e, &p);
    read_all(&r, g, &usage);
    assert_int_equal(g[0].n, 20);
}

/* Eight searches and as many sampled requests, in a cache for a few of them. */
static void together_as_alone(void **state)
{
    struct sl_engine *e = *state;
    static struct got alone[16][MAX_CHOICES], together[MAX_CHOICES];
    struct sl_usage usage;
    struct sl_request *r[16];
    struct sl_sampling_params p[16];
    for (int i = 0; i < 16; i++) {
        p[i] = params(1 + i % 4, i % 3 ? 4 + i % 4 : SL_NONE);
        p[i].use_beam_search = i % 2;
        p[i].seed = i;
        p[i].max_tokens = 10 + i * 3;
        r[0] = submit(e, &p[i]);
        read_all(&r[0], alone[i], &usage);
    }
    struct sl_config cfg = sim_config();
    cfg.num_blocks_override = 40;
    cfg.max_model_len = 128;
    cfg.sim_depth = 2;
    cfg.max_num_batched_tokens = 32;
    struct sl_engine *small = start(&cfg);
    for (int i = 0; i < 16; i++)
        r[i] = submit(small, &p[i]);
    for (int i = 0; i < 16; i++) {
        read_all(&r[i], together, &usage);
        for (int k = 0; k < MAX_CHOICES; k++) {
            together[k].n_outputs = alone[i][k].n_outputs; /* pieces may differ */
            assert_int_equal(together[k].n, alone[i][k].n);
            assert_memory_equal(together[k].token, alone[i][k].token, sizeof alone[i][k].token);
            assert_int_equal(together[k].finish, alone[i][k].finish);
        }
    }
    sl_engine_destroy(&small);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void assert_refused(struct sl_engine *e, const struct sl_sampling_params *p,
                           const char *param, const char *text)
{
    int32_t token = 5;
    struct sl_input in = {.tokens = &token, .n_tokens = 1};
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    assert_int_equal(sl_submit(e, &in, p, NULL, NULL, &r, &err), SL_EINVAL);
    assert_string_equal(err.param, param);
    assert_non_null(strstr(err.msg, text));
}

static void absurd_numbers(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(17, SL_NONE);
    p.use_beam_search = true;
    assert_refused(e, &p, "n", "n must be at most 16 (max_num_seqs) when using beam search");
    p = params(1, 1000000000);
    assert_refused(e, &p, "best_of", "best_of must be at most 16384, got 1000000000.");
    p = params(1, 17);
    p.use_beam_search = true;
    assert_refused(e, &p, "best_of", "best_of must be at most 16 (max_num_seqs)");
    p.best_of = 16;
    p.length_penalty = INFINITY;
    assert_refused(e, &p, "length_penalty", "length_penalty must be in [-10, 10], got inf.");
}

static void what_cannot_be_combined(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.policy = SL_POLICY_STATIC;
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(2, SL_NONE);
    p.use_beam_search = true;
    assert_refused(e, &p, "use_beam_search", "not supported with --batching-policy static");
    sl_engine_destroy(&e);
    cfg = sim_config();
    cfg.logprobs_mode = SL_RAW_LOGITS;
    e = start(&cfg);
    p = params(2, 3);
    assert_refused(e, &p, "best_of", "best_of needs logprobs");
    sl_engine_destroy(&e);
}

static int setup(void **state)
{
    log_set_level(LOG_ERROR);
    struct sl_config cfg = sim_config();
    *state = start(&cfg);
    return 0;
}

static int teardown(void **state)
{
    struct sl_engine *e = *state;
    sl_engine_destroy(&e);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_are_given),
        cmocka_unit_test(as_many_as_candidates_is_plain),
        cmocka_unit_test(stop_strings_count_before_ranking),
        cmocka_unit_test(beams_come_best_first),
        cmocka_unit_test(a_whole_answer_is_not_unread),
        cmocka_unit_test(aborts_end_all_choices),
        cmocka_unit_test(together_as_alone),
        cmocka_unit_test(absurd_numbers),
        cmocka_unit_test(what_cannot_be_combined),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
