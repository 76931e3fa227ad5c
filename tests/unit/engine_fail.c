/* engine when things fail: the device, one sequence's logits, memory at start.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/sim/sim.h"
#include "base/log.h"
#include "engine/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { VOCAB = 100 };

/* sim, but step `fail_step` is refused, and tokens of requests with seed 666 are not numbers. While
 * it is held, a step waits. */
struct faulty {
    struct backend be;
    struct backend *sim;
    const struct batch *batch;
    int n_steps, fail_step;
    atomic_bool held;
};

static enum sl_status faulty_submit(struct backend *be, const struct batch *b, struct sl_err *err)
{
    struct faulty *f = (struct faulty *)be;
    f->batch = b;
    while (atomic_load(&f->held))
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    if (++f->n_steps == f->fail_step)
        return SL_FAIL(err, SL_EDEVICE, "the device has burnt out");
    return f->sim->ops->submit(f->sim, b, err);
}

static enum sl_status faulty_collect(struct backend *be, struct step_result *r, struct sl_err *err)
{
    struct faulty *f = (struct faulty *)be;
    enum sl_status st = f->sim->ops->collect(f->sim, r, err);
    for (int i = 0; i < r->n_samples; i++)
        if (f->batch->sample[i].seq->req->params.seed == 666 && f->batch->sample[i].pos > 6)
            r->token[i] = TOKEN_BAD_LOGITS;
    return st;
}

static int64_t faulty_now(struct backend *be)
{
    struct faulty *f = (struct faulty *)be;
    return f->sim->ops->now_ns(f->sim);
}

static void faulty_destroy(struct backend *be)
{
    struct faulty *f = (struct faulty *)be;
    f->sim->ops->destroy(f->sim);
    mem_free(f);
}

static struct backend *faulty_create(int fail_step)
{
    static const struct backend_ops ops = {.submit = faulty_submit,
                                           .collect = faulty_collect,
                                           .now_ns = faulty_now,
                                           .destroy = faulty_destroy};
    struct faulty *f = mem_zalloc(1, sizeof *f);
    struct sim_config sim = {
        .fixed_step_ns = 1e5,
        .vocab_size = VOCAB,
        .depth = 1,
        .real_time = true,
        .layout = {.n_groups = 1, .block_size = 16, .n_blocks = 64, .group = {{.n_layers = 1}}},
        .eos = -1,
    };
    assert_non_null(f);
    assert_int_equal(sim_create(&f->sim, &sim, NULL), SL_OK);
    f->be = *f->sim;
    f->be.ops = &ops;
    f->fail_step = fail_step;
    f->held = fail_step > 0; /* let go by the test, once all that it submits is there */
    return &f->be;
}

static struct sl_engine *start(int fail_step)
{
    struct sl_engine *e = NULL;
    struct sl_config cfg;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = "faulty";
    assert_int_equal(engine_init(&e, &cfg, &err), SL_OK);
    e->be = faulty_create(fail_step);
    e->info.vocab_size = VOCAB;
    e->info.max_model_len = 500;
    e->sched_cfg = (struct sched_config){.max_num_seqs = 8,
                                         .max_num_batched_tokens = 64,
                                         .max_model_len = 500,
                                         .max_num_partial_prefills = 1,
                                         .max_long_partial_prefills = 1,
                                         .layout = e->be->layout};
    assert_int_equal(engine_start(e, &err), SL_OK);
    return e;
}

static struct sl_request *submit_as(struct sl_engine *e, int64_t seed, bool beams,
                                    struct sl_err *err)
{
    static const int32_t prompt[] = {1, 2, 3};
    struct sl_input in = {.tokens = prompt, .n_tokens = 3};
    struct sl_sampling_params p;
    struct sl_request *r = NULL;
    sl_sampling_params_init(&p);
    p.max_tokens = 50;
    p.has_seed = true;
    p.seed = seed;
    p.use_beam_search = beams;
    if (beams)
        p.best_of = 4;
    return sl_submit(e, &in, &p, NULL, NULL, &r, err) ? NULL : r;
}

static struct sl_request *submit(struct sl_engine *e, int64_t seed, struct sl_err *err)
{
    return submit_as(e, seed, false, err);
}

static enum sl_finish read_all(struct sl_request *r, int *n_tokens, struct sl_err *error)
{
    enum sl_finish finish = SL_RUNNING;
    const struct sl_output *o;
    *n_tokens = 0;
    while (sl_request_wait(r, 10000) == SL_OK && (o = sl_request_next(r))) {
        *n_tokens += o->n_tokens;
        finish = o->finish;
        assert_true((finish == SL_ERROR) == (o->error != NULL));
        if (o->error)
            *error = *o->error;
    }
    assert_true(sl_request_done(r));
    return finish;
}

static void a_dead_device_fails_every_request(void **state)
{
    (void)state;
    struct sl_engine *e = start(10);
    struct sl_request *r[12];
    struct sl_engine_info info;
    struct sl_err err = {0};
    for (int i = 0; i < 12; i++) /* eight run, four wait */
        assert_non_null(r[i] = submit_as(e, i, i % 5 == 1, NULL));
    atomic_store(&((struct faulty *)e->be)->held, false);
    for (int i = 0; i < 12; i++) {
        int n;
        struct sl_err error = {0};
        assert_int_equal(read_all(r[i], &n, &error), SL_ERROR);
        assert_int_equal(error.code, SL_EDEVICE);
        assert_string_equal(error.msg, "the device has burnt out");
        assert_true(n < 12);
    }
    sl_engine_info(e, &info);
    assert_true(info.dead);
    assert_null(submit(e, 1, &err));
    assert_int_equal(err.code, SL_EDEVICE);
    assert_string_equal(err.msg, "the engine is dead: the device has burnt out");
    sl_engine_drain(e, 5000); /* nothing is left to wait for */
    for (int i = 0; i < 12; i++)
        sl_request_release(&r[i]);
    sl_engine_destroy(&e);
}

static void bad_logits_end_one_request(void **state)
{
    (void)state;
    struct sl_engine *e = start(0);
    struct sl_request *good = submit(e, 1, NULL), *bad = submit(e, 666, NULL);
    struct sl_err error = {0};
    int n;
    assert_int_equal(read_all(bad, &n, &error), SL_ERROR);
    assert_int_equal(n, 4);
    assert_non_null(strstr(error.msg, "is not a number"));
    assert_int_equal(read_all(good, &n, &error), SL_LENGTH);
    assert_int_equal(n, 50);
    assert_true(metrics_counter(e->metrics, M_FINISHED_ERROR) == 1);
    sl_request_release(&bad);
    bad = submit_as(e, 666, true, NULL);
    assert_int_equal(read_all(bad, &n, &error), SL_ERROR);
    assert_int_equal(n, 0);
    assert_non_null(strstr(error.msg, "is not a number"));
    sl_request_release(&good);
    sl_request_release(&bad);
    sl_engine_destroy(&e);
}

/* The nth allocation of a submission fails: one clear error, and the engine goes on. */
static void submissions_survive_lack_of_memory(void **state)
{
    (void)state;
    struct sl_engine *e = start(0);
    int n_failed = 0;
    for (long nth = 1, beams = 0;; nth++, beams = !beams) {
        struct sl_err err = {0};
        int n;
        mem_fail_nth(nth);
        struct sl_request *r = submit_as(e, 5, beams, &err);
        mem_fail_nth(0);
        if (!r) {
            assert_int_equal(err.code, SL_ENOMEM);
            n_failed++;
            continue;
        }
        /* if it was the engine thread that was refused, the request says so */
        enum sl_finish f = read_all(r, &n, &err);
        sl_request_release(&r);
        assert_true(f == SL_LENGTH || f == SL_ERROR);
        if (nth > 40)
            break;
    }
    assert_true(n_failed >= 3); /* the handle, its arena, a scratch list */
    sl_engine_destroy(&e);
}

static void start_survives_lack_of_memory(void **state)
{
    (void)state;
    int n_failed = 0;
    for (long nth = 1, n_ok = 0; n_ok < 4; nth += 1 + nth / 16) {
        struct sl_config cfg;
        struct sl_engine *e = NULL;
        struct sl_err err = {0};
        sl_config_init(&cfg);
        cfg.model = "models/pebble";
        cfg.device = SL_DEVICE_SIM;
        cfg.skip_tokenizer_init = true;
        cfg.num_blocks_override = 256;
        cfg.max_num_batched_tokens = cfg.max_num_seqs = 64;
        mem_fail_nth(nth);
        enum sl_status st = sl_engine_create(&e, &cfg, &err);
        mem_fail_nth(0);
        assert_true((st == SL_OK) == (e != NULL));
        if (st)
            assert_true(err.msg[0]);
        n_ok = st ? 0 : n_ok + 1; /* some failures do no harm; four in a row: none is reached */
        n_failed += st != SL_OK;
        sl_engine_destroy(&e);
    }
    assert_true(n_failed > 20);
}

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_ERROR + 1);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dead_device_fails_every_request),
        cmocka_unit_test(bad_logits_end_one_request),
        cmocka_unit_test(submissions_survive_lack_of_memory),
        cmocka_unit_test(start_survives_lack_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
