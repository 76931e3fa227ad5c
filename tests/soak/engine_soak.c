/* The engine with its thread, over a backend whose tokens are right only if every KV cell is: many
 * clients submit, read, give up, abort and end choices, and whoever gets a whole answer gets the
 * same one as alone. At the end all memory is back.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kv_backend.h"

#include "base/log.h"
#include "engine/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

enum { MAX_LEN = 120, N_CLIENTS = 6, N_REQUESTS = 150 };

static struct sl_engine *start(int depth, int n_blocks, struct kv_layout *layout)
{
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = "test";
    cfg.disable_log_stats = true;
    assert_int_equal(engine_init(&e, &cfg, &err), SL_OK);
    *layout = (struct kv_layout){.n_groups = 2, .block_size = 4, .n_blocks = n_blocks};
    layout->group[1].window = 24;
    e->sched_cfg = (struct sched_config){.max_num_seqs = 12,
                                         .max_num_batched_tokens = 48,
                                         .max_model_len = MAX_LEN,
                                         .max_num_partial_prefills = 2,
                                         .max_long_partial_prefills = 1,
                                         .enable_prefix_caching = true,
                                         .depth = depth,
                                         .layout = *layout};
    e->be = kv_backend_make(layout, depth, 12, MAX_LEN);
    ((struct kv_backend *)e->be)->real_clock = true;
    e->info.max_model_len = MAX_LEN;
    e->info.vocab_size = KVB_VOCAB;
    e->info.n_kv_blocks = n_blocks;
    e->info.block_size = layout->block_size;
    e->cache_info = mem_strdup("");
    if (engine_start(e, &err))
        fail_msg("%s", err.msg);
    return e;
}

struct client {
    struct sl_engine *e;
    const struct kv_layout *layout;
    uint32_t rnd;
    int n_whole, n_given_up, n_wrong;
};

static uint32_t rnd(struct client *c, uint32_t n)
{
    c->rnd = c->rnd * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)c->rnd * n) >> 32);
}

/* What choice i must give, from a request made only to ask that. */
static void expect(struct client *c, const int32_t *prompt, int n_prompt, uint64_t seed, int i,
                   int n_out, int32_t *tokens)
{
    struct request r = {.params.seed = seed, .n_prompt = n_prompt};
    struct sequence q = {.req = &r, .index = i, .n_prompt = n_prompt};
    memcpy(tokens, prompt, (size_t)n_prompt * sizeof *tokens);
    expected_tokens(c->layout, &q, tokens, n_prompt + n_out);
}

/* Reads until the end, or until `patience` outputs; true: all choices ended by themselves. */
static bool read_outputs(struct sl_request *r, int patience, int32_t (*got)[MAX_LEN], int *n_got)
{
    const struct sl_output *out;
    bool whole = true;
    while (sl_request_wait(r, 60000) == SL_OK)
        while ((out = sl_request_next(r))) {
            for (int t = 0; t < out->n_tokens; t++)
                got[out->index][n_got[out->index]++] = out->tokens[t];
            whole = whole && (out->finish == SL_RUNNING || out->finish == SL_LENGTH);
            if (--patience <= 0)
                return false;
        }
    return whole && sl_request_done(r);
}

static void one_request(struct client *c)
{
    int32_t prompt[MAX_LEN], got[4][MAX_LEN], want[MAX_LEN + 1];
    int n_got[4] = {0}, n_prompt = 1 + (int)rnd(c, 70), family = (int)rnd(c, 3);
    int same = (int)rnd(c, (uint32_t)n_prompt + 1);
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = i < same ? (family * 31 + i) % KVB_VOCAB : (int32_t)rnd(c, KVB_VOCAB);
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 1 + (int)rnd(c, 40);
    p.ignore_eos = p.has_seed = true;
    p.detokenize = false;
    p.seed = (int64_t)rnd(c, 1000);
    p.n = rnd(c, 3) ? 1 : 1 + (int)rnd(c, 4);
    struct sl_input in = {.tokens = prompt, .n_tokens = n_prompt};
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    if (sl_submit(c->e, &in, &p, NULL, NULL, &r, &err)) {
        c->n_wrong++;
        return;
    }
    int patience = rnd(c, 3) ? 1 << 30 : (int)rnd(c, 20);
    if (patience == 0)
        sl_request_abort(r);
    if (read_outputs(r, patience, got, n_got)) {
        c->n_whole++;
        for (int i = 0; i < p.n; i++)
            c->n_wrong += n_got[i] != p.max_tokens;
    } else {
        c->n_given_up++;
    }
    for (int i = 0; i < p.n; i++) { /* whole or a beginning: it is right */
        expect(c, prompt, n_prompt, (uint64_t)p.seed, i, p.max_tokens, want);
        c->n_wrong += memcmp(want + n_prompt, got[i], (size_t)n_got[i] * sizeof *want) != 0;
    }
    sl_request_release(&r);
}

static void *be_a_client(void *arg)
{
    for (int i = 0; i < N_REQUESTS; i++)
        one_request(arg);
    return NULL;
}

static void clients_come_and_go(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        struct kv_layout layout;
        int depth = 1 << round % 3, n_blocks = round < 3 ? 60 : 400;
        struct sl_engine *e = start(depth, n_blocks, &layout);
        struct client c[N_CLIENTS];
        pthread_t t[N_CLIENTS];
        int n_whole = 0, n_wrong = 0, n_given_up = 0;
        for (int i = 0; i < N_CLIENTS; i++) {
            c[i] = (struct client){.e = e, .layout = &layout, .rnd = (uint32_t)(round * 97 + i)};
            assert_int_equal(pthread_create(&t[i], NULL, be_a_client, &c[i]), 0);
        }
        for (int i = 0; i < N_CLIENTS; i++) {
            pthread_join(t[i], NULL);
            n_whole += c[i].n_whole;
            n_wrong += c[i].n_wrong;
            n_given_up += c[i].n_given_up;
        }
        sl_engine_drain(e, 60000);
        struct sched_stats st;
        sched_get_stats(core_sched(e->core), &st); /* the engine thread is idle now */
        sched_check(core_sched(e->core));
        printf("depth %d, %d blocks: %d whole, %d given up, %llu preemptions, %llu prefix tokens\n",
               depth, n_blocks, n_whole, n_given_up, (unsigned long long)st.n_preemptions,
               (unsigned long long)st.prefix_hits);
        assert_int_equal(n_wrong, 0);
        assert_int_equal(n_whole + n_given_up, N_CLIENTS * N_REQUESTS);
        assert_true(n_whole > N_CLIENTS * N_REQUESTS / 2 && n_given_up > 50);
        assert_int_equal(st.n_blocks_used, 0);
        assert_int_equal(st.n_running + st.n_waiting, 0);
        sl_engine_destroy(&e);
    }
}

int main(void)
{
    log_set_level(LOG_WARNING);
    const struct CMUnitTest tests[] = {cmocka_unit_test(clients_come_and_go)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
