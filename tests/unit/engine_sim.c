/* engine over sim: the life of requests through the public interface, many at once, ended in every
 * way that there is.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "core/metrics.h"
#include "engine/engine.h"
#include "sluice.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <cmocka.h>

static void nap(int ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static struct sl_config sim_config(void)
{
    struct sl_config cfg;
    sl_config_init(&cfg);
    cfg.model = "models/pebble";
    cfg.device = SL_DEVICE_SIM;
    cfg.sim_step_ms = 0.2;
    cfg.num_blocks_override = 4096;
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

static struct sl_sampling_params params(int max_tokens)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = max_tokens;
    p.ignore_eos = true;
    p.has_seed = true;
    p.seed = 7;
    return p;
}

static struct sl_request *submit(struct sl_engine *e, int n_prompt, int first,
                                 const struct sl_sampling_params *p, struct sl_err *err)
{
    int32_t prompt[512];
    struct sl_request *r = NULL;
    assert_true(n_prompt <= 512);
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = 100 + first + i;
    struct sl_input in = {.tokens = prompt, .n_tokens = n_prompt};
    struct sl_err own = {0};
    enum sl_status st = sl_submit(e, &in, p, NULL, NULL, &r, err ? err : &own);
    if (!err && st)
        fail_msg("submit: %d %s", st, own.msg);
    return st ? NULL : r;
}

/* What one choice has given so far. */
struct got {
    char text[32768];
    size_t bytes;
    int32_t tokens[4096];
    int n_tokens, n_outputs;
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    struct sl_err error;
};

static void take(struct got *g, const struct sl_output *o)
{
    g += o->index;
    assert_int_equal(g->finish, SL_RUNNING); /* nothing after the end */
    assert_true(g->bytes + o->text_bytes < sizeof g->text);
    memcpy(g->text + g->bytes, o->text, o->text_bytes + 1);
    g->bytes += o->text_bytes;
    if (o->n_tokens)
        memcpy(g->tokens + g->n_tokens, o->tokens, (size_t)o->n_tokens * sizeof *o->tokens);
    g->n_tokens += o->n_tokens;
    g->n_outputs++;
    g->finish = o->finish;
    g->stop_kind = o->stop_kind;
    if (o->error)
        g->error = *o->error;
}

/* Reads to the end. got: one for each choice, zeroed. */
static void read_all(struct sl_request *r, struct got *got)
{
    const struct sl_output *o;
    while (sl_request_wait(r, 20000) == SL_OK)
        while ((o = sl_request_next(r)))
            take(got, o);
    assert_true(sl_request_done(r));
    assert_int_equal(sl_request_wait(r, 0), SL_ESHUTDOWN);
}

static struct got *run(struct sl_engine *e, int n_prompt, int first,
                       const struct sl_sampling_params *p)
{
    struct got *g = calloc((size_t)p->n, sizeof *g);
    struct sl_request *r = submit(e, n_prompt, first, p, NULL);
    read_all(r, g);
    sl_request_release(&r);
    return g;
}

/* The gauge follows within a step. */
static void assert_kv_returns(struct sl_engine *e)
{
    char line[] = "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"models/pebble\"} 0.0\n";
    for (int i = 0; i < 200; i++) {
        struct strbuf b;
        strbuf_init(&b, 0);
        engine_metrics_render(e, &b);
        bool empty = strstr(b.data, line) != NULL;
        strbuf_fini(&b);
        if (empty)
            return;
        nap(5);
    }
    fail_msg("KV blocks were not returned");
}

/* ---- outputs --------------------------------------------------------------------------------- */

static void outputs_do_not_depend_on_depth(void **state)
{
    (void)state;
    struct got *want = NULL;
    for (int depth = 1; depth <= 4; depth *= 2) {
        struct sl_config cfg = sim_config();
        cfg.sim_depth = depth;
        struct sl_engine *e = start(&cfg);
        struct sl_sampling_params p = params(50);
        struct got *g = run(e, 20, 0, &p);
        assert_int_equal(g->n_tokens, 50);
        assert_int_equal(g->finish, SL_LENGTH);
        assert_true(g->bytes > 20);
        if (want) {
            assert_memory_equal(g->tokens, want->tokens, 50 * sizeof *g->tokens);
            assert_string_equal(g->text, want->text);
        }
        free(want);
        want = g;
        assert_kv_returns(e);
        sl_engine_destroy(&e);
        assert_null(e);
    }
    free(want);
}

static void choices_differ_and_all_finish(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(30);
    p.n = 5;
    struct got *g = run(e, 40, 3, &p);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(g[i].n_tokens, 30);
        assert_int_equal(g[i].finish, SL_LENGTH);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(g[i].tokens, g[j].tokens, 30 * sizeof *g->tokens);
    }
    p.n = 1; /* choice 0 is what the request alone would have given */
    struct got *alone = run(e, 40, 3, &p);
    assert_memory_equal(alone->tokens, g[0].tokens, 30 * sizeof *g->tokens);
    free(alone);
    free(g);
}

static void logprobs_and_prompt_logprobs(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(4);
    p.logprobs = 3;
    p.prompt_logprobs = 2;
    struct sl_request *r = submit(e, 50, 1, &p, NULL);
    const struct sl_output *o;
    int n = 0, n_prompt;
    while (sl_request_wait(r, 5000) == SL_OK && (o = sl_request_next(r))) {
        for (int i = 0; i < o->n_tokens; i++, n++) {
            assert_int_equal(o->logprobs[i].n, 4);
            assert_int_equal(o->logprobs[i].entry[0].token, o->tokens[i]);
        }
        const struct sl_token_logprobs *pl = sl_request_prompt_logprobs(r);
        const int32_t *prompt = sl_request_prompt(r, &n_prompt);
        assert_int_equal(n_prompt, 50);
        assert_non_null(pl);
        assert_int_equal(pl[0].n, 0);
        for (int i = 1; i < 50; i++) {
            assert_int_equal(pl[i].n, 3);
            assert_int_equal(pl[i].entry[0].token, prompt[i]);
        }
    }
    assert_int_equal(n, 4);
    sl_request_release(&r);
    p = params(4);
    r = submit(e, 50, 1, &p, NULL);
    assert_int_equal(sl_request_wait(r, 5000), SL_OK);
    o = sl_request_next(r);
    assert_null(o->logprobs);
    assert_null(sl_request_prompt_logprobs(r));
    sl_request_release(&r);
}

static void stop_strings_end_a_choice_alone(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(60);
    p.n = 3;
    struct got *free_run = run(e, 20, 9, &p);
    char stop[16] = {0}; /* some ASCII piece that comes late in choice 1 */
    for (size_t i = free_run[1].bytes / 2; i + 3 < free_run[1].bytes; i++) {
        memcpy(stop, free_run[1].text + i, 3);
        bool ascii = stop[0] > 32 && stop[1] > 32 && stop[2] > 32;
        if (ascii && !strstr(free_run[0].text, stop) && !strstr(free_run[2].text, stop))
            break;
    }
    const char *stops[] = {stop};
    p.stop = stops;
    p.n_stop = 1;
    struct sl_request *r = submit(e, 20, 9, &p, NULL);
    struct got *g = calloc(3, sizeof *g);
    struct sl_usage usage;
    read_all(r, g);
    size_t cut = (size_t)(strstr(free_run[1].text, stop) - free_run[1].text);
    assert_int_equal(g[1].finish, SL_STOP);
    assert_int_equal(g[1].stop_kind, SL_STOP_STRING);
    assert_int_equal(g[1].bytes, cut);
    assert_true(g[1].n_tokens < 60);
    assert_int_equal(g[0].finish, SL_LENGTH);
    assert_string_equal(g[0].text, free_run[0].text);
    assert_string_equal(g[2].text, free_run[2].text);
    sl_request_usage(r, &usage);
    assert_int_equal(usage.completion_tokens, 120 + g[1].n_tokens);
    assert_int_equal(usage.prompt_tokens, 20);
    sl_request_release(&r);
    free(g);
    free(free_run);
    assert_kv_returns(e);
}

static void intervals_make_fewer_outputs(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(41);
    struct got *every = run(e, 20, 5, &p);
    p.stream_interval = 10;
    struct got *tenth = run(e, 20, 5, &p);
    assert_string_equal(every->text, tenth->text);
    assert_memory_equal(every->tokens, tenth->tokens, 41 * sizeof *every->tokens);
    /* 1, 11, 21, 31, 41; fewer when this thread was slow and events coalesced */
    assert_in_range(tenth->n_outputs, 1, 5);
    free(every);
    free(tenth);
}

static void cached_prompts_are_reported(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(2);
    struct sl_usage usage;
    for (int i = 0; i < 2; i++) {
        struct got g = {0};
        struct sl_request *r = submit(e, 100, 300, &p, NULL);
        read_all(r, &g);
        sl_request_usage(r, &usage);
        assert_int_equal(usage.cached_tokens, i ? 96 : 0);
        sl_request_release(&r);
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void wrong_prompts_are_refused(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(5);
    struct sl_request *r = NULL;
    static int32_t tokens[5000];
    struct {
        int n, bad;
        const char *text;
    } cases[] = {
        {0, 0, "The decoder prompt cannot be empty"},
        {4097, 0,
         "The decoder prompt (length 4097) is longer than the maximum model length of 4096. Make "
         "sure that `max_model_len` is no smaller than the number of text tokens."},
        {4096, 0,
         "The decoder prompt (length 4096) plus the number of requested output tokens (at least "
         "1) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no "
         "smaller than the number of text tokens (prompt + requested output tokens)."},
        {3, 8192, "Token id 8192 is out of vocabulary"},
        {3, -1, "Token id -1 is out of vocabulary"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_err err = {0};
        struct sl_input in = {.tokens = tokens, .n_tokens = cases[i].n};
        tokens[1] = cases[i].bad;
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, &err), SL_EINVAL);
        assert_string_equal(err.msg, cases[i].text);
    }
    tokens[1] = 0;
    struct sl_err err = {0};
    p.temperature = -1;
    struct sl_input in = {.tokens = tokens, .n_tokens = 3};
    assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, &err), SL_EINVAL);
    assert_string_equal(err.param, "temperature");
}

static void prompts_are_truncated_on_request(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(100);
    static int32_t tokens[5000];
    struct sl_input in = {.tokens = tokens, .n_tokens = 5000};
    for (int i = 0; i < 5000; i++)
        tokens[i] = i;
    struct {
        int keep, right, n, first;
    } cases[] = {{10, 0, 10, 4990}, {10, 1, 10, 0}, {-1, 0, 3996, 1004}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_request *r;
        int n;
        p.truncate_prompt_tokens = cases[i].keep;
        p.truncate_right = cases[i].right;
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, NULL), SL_OK);
        const int32_t *prompt = sl_request_prompt(r, &n);
        assert_int_equal(n, cases[i].n);
        assert_int_equal(prompt[0], cases[i].first);
        sl_request_release(&r);
    }
    struct sl_err err = {0};
    struct sl_request *r;
    p.truncate_prompt_tokens = 4097;
    assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, &err), SL_EINVAL);
    assert_string_equal(err.msg, "truncate_prompt_tokens value is greater than max_model_len. "
                                 "Please, select a smaller truncation size.");
}

static void a_full_queue_says_so(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.max_num_seqs = 1;
    cfg.max_queued_reqs = 4;
    cfg.sim_step_ms = 5;
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(4000);
    struct sl_request *r[20];
    int n = 0;
    r[n++] = submit(e, 5, 0, &p, NULL);
    assert_int_equal(sl_request_wait(r[0], 5000), SL_OK); /* it runs */
    nap(20);
    while (n < 20) {
        struct sl_err err = {0};
        if (!(r[n] = submit(e, 5, n, &p, &err))) {
            assert_int_equal(err.code, SL_OK); /* flow control writes no message */
            break;
        }
        n++;
    }
    assert_int_equal(n, 5);
    sl_request_release(&r[1]); /* a place is free again */
    nap(40);
    r[1] = submit(e, 5, 1, &p, NULL);
    for (int i = 0; i < n; i++)
        sl_request_release(&r[i]);
    assert_kv_returns(e);
    sl_engine_destroy(&e);
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void aborts_free_everything(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(4000);
    p.n = 3;
    for (int i = 0; i < 6; i++) {
        struct got *g = calloc(3, sizeof *g);
        struct sl_request *r = submit(e, 200, i, &p, NULL);
        if (i % 3) /* else before it has run */
            assert_int_equal(sl_request_wait(r, 5000), SL_OK);
        if (i % 2) {
            sl_request_abort(r);
            read_all(r, g);
            for (int c = 0; c < 3; c++)
                assert_int_equal(g[c].finish, SL_ABORT);
        }
        sl_request_release(&r);
        assert_null(r);
        free(g);
    }
    assert_kv_returns(e);
}

static void a_slow_reader_is_aborted_alone(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.max_unread_bytes = 4096;
    cfg.sim_step_ms = 1; /* the other reader may be late by a hundred steps, too */
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(400);
    struct sl_request *slow = submit(e, 5, 0, &p, NULL);
    struct got *g = run(e, 5, 1, &p); /* reads as it comes */
    assert_int_equal(g->finish, SL_LENGTH);
    memset(g, 0, sizeof *g);
    nap(20);
    read_all(slow, g);
    assert_int_equal(g->finish, SL_ABORT);
    assert_true(g->n_tokens > 20 && g->n_tokens < 200); /* what was in bounds is there */
    sl_request_release(&slow);
    free(g);
    assert_kv_returns(e);
    sl_engine_destroy(&e);
}

static void drain_waits_then_refuses(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(200);
    struct sl_request *r = submit(e, 5, 0, &p, NULL), *s = NULL;
    struct sl_err err = {0};
    struct got *g = calloc(1, sizeof *g);
    sl_engine_drain(e, 20000);
    s = submit(e, 5, 0, &p, &err);
    assert_null(s);
    assert_int_equal(err.code, SL_ESHUTDOWN);
    read_all(r, g);
    assert_int_equal(g->finish, SL_LENGTH); /* it was let finish */
    sl_request_release(&r);
    sl_engine_destroy(&e);

    e = start(&cfg);
    p.max_tokens = 4000;
    r = submit(e, 5, 0, &p, NULL);
    memset(g, 0, sizeof *g);
    sl_engine_drain(e, 10);
    read_all(r, g);
    assert_int_equal(g->finish, SL_ABORT);
    sl_request_release(&r);
    sl_engine_destroy(&e);
    free(g);
}

static void destroy_aborts_what_runs(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.sim_depth = 4;
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(4000);
    for (int i = 0; i < 10; i++) {
        struct sl_request *r = submit(e, 50, i, &p, NULL);
        if (i == 9)
            assert_int_equal(sl_request_wait(r, 5000), SL_OK);
        sl_request_release(&r);
    }
    sl_engine_destroy(&e);
}

static void priority_goes_first(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.max_num_seqs = 1;
    cfg.order = SL_ORDER_PRIORITY;
    cfg.sim_step_ms = 1;
    struct sl_engine *e = start(&cfg);
    struct sl_sampling_params p = params(20);
    struct sl_request *r[4];
    int priority[] = {0, 5, 3, 1}, order[4], n = 0;
    int32_t prompt[] = {1, 2, 3};
    for (int i = 0; i < 4; i++) {
        struct sl_input in = {.tokens = prompt, .n_tokens = 3, .priority = priority[i]};
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r[i], NULL), SL_OK);
        if (i == 0)
            assert_int_equal(sl_request_wait(r[0], 5000), SL_OK);
    }
    bool done[4] = {0};
    for (int64_t end = clock_mono_ns() + INT64_C(10000000000); n < 4 && clock_mono_ns() < end;
         nap(1))
        for (int i = 0; i < 4; i++) {
            while (sl_request_next(r[i]))
                ;
            if (!done[i] && sl_request_done(r[i])) {
                done[i] = true;
                order[n++] = i;
            }
        }
    assert_int_equal(n, 4);
    int want[] = {0, 3, 2, 1};
    assert_memory_equal(order, want, sizeof want);
    for (int i = 0; i < 4; i++)
        sl_request_release(&r[i]);
    sl_engine_destroy(&e);
}

/* ---- waking ---------------------------------------------------------------------------------- */

struct bell {
    pthread_mutex_t lock;
    pthread_cond_t rung;
    int n;
    atomic_bool released;
    atomic_int after; /* calls after release: must stay 0 */
};

static void ring(void *ctx)
{
    struct bell *b = ctx;
    pthread_mutex_lock(&b->lock);
    b->n++;
    pthread_cond_signal(&b->rung);
    pthread_mutex_unlock(&b->lock);
    if (atomic_load(&b->released))
        atomic_fetch_add(&b->after, 1);
}

static void wakes_are_enough_and_end(void **state)
{
    struct sl_engine *e = *state;
    struct bell bell = {.lock = PTHREAD_MUTEX_INITIALIZER, .rung = PTHREAD_COND_INITIALIZER};
    struct sl_sampling_params p = params(100);
    int32_t prompt[] = {1, 2, 3};
    struct sl_input in = {.tokens = prompt, .n_tokens = 3};
    struct sl_request *r;
    struct got *g = calloc(1, sizeof *g);
    const struct sl_output *o;
    assert_int_equal(sl_submit(e, &in, &p, ring, &bell, &r, NULL), SL_OK);
    while (!sl_request_done(r)) { /* an event loop's way: sleep until rung, then read all */
        pthread_mutex_lock(&bell.lock);
        while (!bell.n)
            pthread_cond_wait(&bell.rung, &bell.lock);
        bell.n = 0;
        pthread_mutex_unlock(&bell.lock);
        while ((o = sl_request_next(r)))
            take(g, o);
    }
    assert_int_equal(g->n_tokens, 100);
    sl_request_release(&r);
    free(g);

    p.max_tokens = 4000;
    for (int i = 0; i < 20; i++) {
        atomic_store(&bell.released, false);
        assert_int_equal(sl_submit(e, &in, &p, ring, &bell, &r, NULL), SL_OK);
        nap(i % 4);
        sl_request_release(&r);
        atomic_store(&bell.released, true);
    }
    nap(20);
    assert_int_equal(atomic_load(&bell.after), 0);
}

static void an_idle_engine_sleeps(void **state)
{
    struct sl_engine *e = *state;
    struct sl_sampling_params p = params(5);
    free(run(e, 5, 0, &p));
    struct rusage a, b;
    getrusage(RUSAGE_SELF, &a);
    nap(300);
    getrusage(RUSAGE_SELF, &b);
    long us =
        (b.ru_utime.tv_sec - a.ru_utime.tv_sec + b.ru_stime.tv_sec - a.ru_stime.tv_sec) * 1000000L +
        b.ru_utime.tv_usec - a.ru_utime.tv_usec + b.ru_stime.tv_usec - a.ru_stime.tv_usec;
    assert_true(us < 1500); /* under 0.5 % of a core */
    assert_true(b.ru_nvcsw - a.ru_nvcsw < 10);
}

/* ---- many threads ---------------------------------------------------------------------------- */

struct crowd {
    struct sl_engine *e;
    int id;
    int n_finished, n_given_up, n_hung;
};

static void *be_a_client(void *arg)
{
    struct crowd *c = arg;
    unsigned x = (unsigned)c->id * 7919u + 1;
    for (int i = 0; i < 25; i++) {
        x = x * 1664525u + 1013904223u;
        struct sl_sampling_params p = params(1 + (int)(x >> 8) % 60);
        static const char *const stops[] = {"e", "qq"};
        p.n = 1 + (int)(x >> 16) % 3;
        p.seed = (int64_t)x;
        if (x >> 20 & 1) {
            p.stop = stops;
            p.n_stop = 2;
        }
        struct sl_request *r = submit(c->e, 1 + (int)(x >> 9) % 100, c->id, &p, NULL);
        int limit = x >> 21 & 3 ? 1 << 30 : (int)(x >> 24) % 20;
        enum sl_status st;
        while ((st = sl_request_wait(r, 20000)) == SL_OK && limit-- > 0)
            while (sl_request_next(r))
                ;
        c->n_hung += st == SL_EAGAIN;
        c->n_finished += sl_request_done(r);
        c->n_given_up += !sl_request_done(r);
        if (x >> 23 & 1)
            sl_request_abort(r);
        sl_request_release(&r);
    }
    return NULL;
}

static void many_clients_at_once(void **state)
{
    (void)state;
    for (int depth = 1; depth <= 2; depth++) {
        struct sl_config cfg = sim_config();
        cfg.sim_depth = depth;
        cfg.sim_step_ms = 0.05;
        cfg.num_blocks_override = 256; /* some are preempted */
        cfg.max_num_batched_tokens = 64;
        struct sl_engine *e = start(&cfg);
        struct crowd c[8];
        pthread_t t[8];
        int n = 0;
        for (int i = 0; i < 8; i++) {
            c[i] = (struct crowd){.e = e, .id = i};
            assert_int_equal(pthread_create(&t[i], NULL, be_a_client, &c[i]), 0);
        }
        for (int i = 0; i < 8; i++) {
            pthread_join(t[i], NULL);
            n += c[i].n_finished + c[i].n_given_up;
            assert_int_equal(c[i].n_hung, 0);
        }
        assert_int_equal(n, 200);
        assert_kv_returns(e);
        sl_engine_drain(e, 5000);
        struct sl_engine_info info;
        sl_engine_info(e, &info);
        assert_false(info.dead);
        sl_engine_destroy(&e);
    }
}

/* ---- metrics --------------------------------------------------------------------------------- */

static void metrics_add_up(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    struct sl_engine *e = start(&cfg);
    struct metrics *m = engine_metrics(e);
    struct sl_sampling_params p = params(30);
    p.n = 2;
    free(run(e, 32, 0, &p));
    p.n = 1;
    free(run(e, 32, 0, &p)); /* its first block is cached */
    p.max_tokens = 4000;
    struct sl_request *r = submit(e, 10, 700, &p, NULL);
    sl_request_release(&r);
    sl_engine_drain(e, 5000);
    assert_true(metrics_counter(m, M_GENERATION_TOKENS) == 90);
    assert_true(metrics_counter(m, M_PROMPT_TOKENS) >= 64);
    assert_true(metrics_counter(m, M_PROMPT_CACHED) == 16);
    assert_true(metrics_counter(m, M_FINISHED_LENGTH) == 3);
    assert_true(metrics_counter(m, M_FINISHED_ABORT) == 1);
    assert_true(metrics_count(m, M_TTFT) == 3);
    assert_true(metrics_count(m, M_ITL) == 87);
    assert_true(metrics_count(m, M_E2E) == 3);
    assert_true(metrics_count(m, M_TPOT) == 3);
    assert_true(metrics_count(m, M_PARAMS_N) == 2);
    assert_true(metrics_count(m, M_ITERATION_TOKENS) >= 60);
    sl_engine_destroy(&e);
}

/* ---- start-up -------------------------------------------------------------------------------- */

static void assert_no_engine(const struct sl_config *cfg, enum sl_status code, const char *word)
{
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    assert_int_equal(sl_engine_create(&e, cfg, &err), code);
    assert_null(e);
    assert_int_equal(err.code, code);
    if (!strstr(err.msg, word))
        fail_msg("'%s' does not say '%s'", err.msg, word);
}

static void bad_configurations_are_refused(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    cfg.model = "models/none";
    assert_no_engine(&cfg, SL_ENOTFOUND, "models/none");
    cfg = sim_config();
    cfg.model = NULL;
    assert_no_engine(&cfg, SL_EINVAL, "model");
    cfg = sim_config();
    cfg.device = SL_DEVICE_CUDA;
#ifdef SLUICE_CUDA /* built in: it is found, or said not to be */
    struct sl_engine *gpu = NULL;
    struct sl_err gpu_err = {0};
    enum sl_status st = sl_engine_create(&gpu, &cfg, &gpu_err);
    assert_int_equal(st, gpu_err.code);
    assert_true((st == SL_OK) == (gpu != NULL));
    sl_engine_destroy(&gpu);
#else
    assert_no_engine(&cfg, SL_ENOSUPPORT, "cuda");
#endif
    cfg = sim_config();
    cfg.sim_device = "abacus";
    assert_no_engine(&cfg, SL_EINVAL, "abacus");
    cfg = sim_config();
    cfg.max_model_len = 5000;
    assert_no_engine(&cfg, SL_EINVAL, "max_position_embeddings=4096");
    cfg = sim_config();
    cfg.num_blocks_override = 100;
    assert_no_engine(&cfg, SL_ENOMEM, "estimated maximum model length is 1600");
    cfg = sim_config();
    cfg.max_num_seqs = 100;
    cfg.max_num_batched_tokens = 50;
    assert_no_engine(&cfg, SL_EINVAL, "max_num_seqs (100)");
    cfg = sim_config();
    cfg.block_size = 0;
    assert_no_engine(&cfg, SL_EINVAL, "block_size");
    cfg = sim_config();
    cfg.override_generation_config = "[1";
    assert_no_engine(&cfg, SL_EINVAL, "JSON");
    cfg = sim_config();
    cfg.num_blocks_override = 100;
    cfg.max_model_len = -1; /* as much as fits */
    struct sl_engine *e = start(&cfg);
    struct sl_engine_info info;
    sl_engine_info(e, &info);
    assert_int_equal(info.max_model_len, 1600);
    sl_engine_destroy(&e);
}

static void defaults_come_from_the_model(void **state)
{
    (void)state;
    struct sl_config cfg = sim_config();
    struct sl_sampling_params p;
    struct sl_engine_info info;
    struct sl_engine *e = start(&cfg);
    sl_engine_default_params(e, &p);
    assert_true(p.temperature == 0.5f && p.top_p == 0.9f && p.max_tokens == 16);
    sl_engine_info(e, &info);
    assert_int_equal(info.max_new_tokens, SL_NONE);
    assert_int_equal(info.vocab_size, 8192);
    assert_int_equal(info.n_served_names, 1);
    assert_string_equal(info.served_names[0], "models/pebble");
    sl_engine_destroy(&e);
    cfg.override_generation_config = "{\"temperature\": 0.25, \"max_new_tokens\": 9}";
    e = start(&cfg);
    sl_engine_default_params(e, &p);
    assert_true(p.temperature == 0.25f && p.top_p == 0.9f && p.max_tokens == 9);
    sl_engine_destroy(&e);
    cfg.override_generation_config = NULL;
    cfg.generation_config = "vllm";
    e = start(&cfg);
    sl_engine_default_params(e, &p);
    assert_true(p.temperature == 1 && p.top_p == 1);
    sl_engine_destroy(&e);
}

static int setup(void **state)
{
    struct sl_config cfg = sim_config();
    log_set_level(LOG_ERROR);
    *state = start(&cfg);
    return 0;
}

static int teardown(void **state)
{
    sl_engine_destroy((struct sl_engine **)state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_do_not_depend_on_depth),
        cmocka_unit_test(choices_differ_and_all_finish),
        cmocka_unit_test(logprobs_and_prompt_logprobs),
        cmocka_unit_test(stop_strings_end_a_choice_alone),
        cmocka_unit_test(intervals_make_fewer_outputs),
        cmocka_unit_test(cached_prompts_are_reported),
        cmocka_unit_test(wrong_prompts_are_refused),
        cmocka_unit_test(prompts_are_truncated_on_request),
        cmocka_unit_test(a_full_queue_says_so),
        cmocka_unit_test(aborts_free_everything),
        cmocka_unit_test(a_slow_reader_is_aborted_alone),
        cmocka_unit_test(drain_waits_then_refuses),
        cmocka_unit_test(destroy_aborts_what_runs),
        cmocka_unit_test(priority_goes_first),
        cmocka_unit_test(wakes_are_enough_and_end),
        cmocka_unit_test(an_idle_engine_sleeps),
        cmocka_unit_test(many_clients_at_once),
        cmocka_unit_test(metrics_add_up),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(defaults_come_from_the_model),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
