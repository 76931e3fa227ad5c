/* sched_world.h - a scheduler, a sim backend in virtual time, and requests whose outputs are
 * recorded: what the scheduler's tests and soak stand on.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SCHED_WORLD_H
#define TESTS_SCHED_WORLD_H

#include "backend/sim/sim.h"
#include "engine/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { WORLD_VOCAB = 1000, WORLD_EOS = 7 };

/* One request and what was reported of it. */
struct rec {
    struct request r; /* first */
    struct rec *next, *prev;
    int32_t **out; /* [n_seqs][n_out] */
    int *n_out, *n_plp;
    enum sl_finish *finish;
    int64_t first_ns, end_ns;
    int order; /* of its first token, among all requests; 0: none yet */
    bool aborted;
    void *mark; /* the test's own */
};

struct world {
    struct core *core;
    struct backend *be;
    struct sched_config cfg;
    struct rec *head; /* unfinished or not freed, newest first */
    uint64_t n_made;
    int n_first_tokens, n_live;
};

static inline struct sched_config world_config(void)
{
    return (struct sched_config){.policy = SL_POLICY_MIXED,
                                 .order = SL_ORDER_FCFS,
                                 .max_num_seqs = 8,
                                 .max_num_batched_tokens = 64,
                                 .max_model_len = 256,
                                 .max_num_partial_prefills = 1,
                                 .max_long_partial_prefills = 1,
                                 .enable_prefix_caching = true,
                                 .depth = 1,
                                 .layout = {.n_groups = 1,
                                            .block_size = 4,
                                            .n_blocks = 256,
                                            .group = {{.n_layers = 2, .bytes_per_token = 256}}}};
}

static inline void world_sink(void *ctx, const struct sched_event *ev)
{
    struct world *w = ctx;
    struct rec *rec = (struct rec *)ev->seq->req;
    int i = ev->seq->index;
    assert_false(rec->aborted);
    assert_int_equal(rec->finish[i], SL_RUNNING);
    if (ev->is_prompt_logprob) {
        assert_int_equal(ev->pos, rec->n_plp[i] + 1); /* each once, in order */
        assert_int_equal(ev->token, rec->r.prompt[ev->pos]);
        assert_true(ev->n_lp > 0);
        rec->n_plp[i]++;
        return;
    }
    if (ev->has_token) {
        if (!rec->order) {
            rec->order = ++w->n_first_tokens;
            rec->first_ns = ev->now_ns;
        }
        assert_int_equal(ev->pos, rec->r.n_prompt + rec->n_out[i]);
        rec->out[i][rec->n_out[i]++] = ev->token;
        assert_int_equal(ev->seq->n_tokens, rec->r.n_prompt + rec->n_out[i]);
    }
    rec->finish[i] = ev->finish;
    rec->end_ns = ev->now_ns;
}

static inline void world_init_on(struct world *w, const struct sched_config *cfg,
                                 struct backend *be)
{
    *w = (struct world){.cfg = *cfg, .be = be};
    struct sl_err err = {0};
    if (core_create(&w->core, cfg, w->be, world_sink, w, &err))
        fail_msg("%s", err.msg);
}

static inline void world_init(struct world *w, const struct sched_config *cfg)
{
    struct backend *be = NULL;
    struct sim_config sim = {.device = "h200",
                             .weight_bytes = 16e9,
                             .flops_per_token = 14e9,
                             .attn_flops_per_pair = 5e5,
                             .vocab_size = WORLD_VOCAB,
                             .depth = cfg->depth,
                             .layout = cfg->layout,
                             .eos = WORLD_EOS};
    struct sl_err err = {0};
    assert_int_equal(sim_create(&be, &sim, &err), SL_OK);
    world_init_on(w, cfg, be);
}

/* A request of n_seqs choices whose prompt is `prompt`, or made up from `number` if NULL. Not
 * added yet. */
static inline struct rec *world_make(struct world *w, const int32_t *prompt, int n_prompt,
                                     int max_tokens, int n_seqs)
{
    struct rec *rec = test_calloc(1, sizeof *rec);
    struct request *r = &rec->r;
    r->number = ++w->n_made;
    r->n_prompt = n_prompt;
    r->prompt = arena_alloc(&r->arena, (size_t)n_prompt, sizeof *r->prompt);
    for (int i = 0; i < n_prompt; i++)
        r->prompt[i] = prompt ? prompt[i] : (int32_t)((r->number * 131 + (uint64_t)i) % 997);
    r->params.p.logprobs = r->params.p.prompt_logprobs = SL_NONE;
    r->params.eos_token = WORLD_EOS;
    r->params.max_tokens = max_tokens;
    r->params.seed = r->number * 77;
    r->n_seqs = n_seqs;
    struct sl_err err = {0};
    assert_int_equal(request_make_seqs(r, &err), SL_OK);
    rec->out = arena_alloc(&r->arena, (size_t)n_seqs, sizeof *rec->out);
    rec->n_out = arena_alloc(&r->arena, (size_t)n_seqs, sizeof *rec->n_out);
    rec->n_plp = arena_alloc(&r->arena, (size_t)n_seqs, sizeof *rec->n_plp);
    rec->finish = arena_alloc(&r->arena, (size_t)n_seqs, sizeof *rec->finish);
    for (int i = 0; i < n_seqs; i++)
        rec->out[i] = arena_alloc(&r->arena, (size_t)(max_tokens + 1), sizeof **rec->out);
    rec->next = w->head;
    if (w->head)
        w->head->prev = rec;
    w->head = rec;
    w->n_live++;
    return rec;
}

static inline struct sched *world_sched(struct world *w)
{
    return core_sched(w->core);
}

static inline struct rec *world_add(struct world *w, int n_prompt, int max_tokens)
{
    struct rec *rec = world_make(w, NULL, n_prompt, max_tokens, 1);
    sched_add(world_sched(w), &rec->r);
    return rec;
}

static inline bool rec_done(const struct rec *rec)
{
    return rec->r.n_finished == rec->r.n_seqs;
}

static inline void world_abort(struct world *w, struct rec *rec)
{
    rec->aborted = true;
    sched_abort(world_sched(w), &rec->r, SL_ABORT);
}

/* The request must not be held any more. */
static inline void world_free(struct world *w, struct rec *rec)
{
    assert_false(sched_holds(world_sched(w), &rec->r));
    if (rec->next)
        rec->next->prev = rec->prev;
    if (rec->prev)
        rec->prev->next = rec->next;
    else
        w->head = rec->next;
    w->n_live--;
    arena_fini(&rec->r.arena);
    test_free(rec);
}

/* One step; false: nothing to do. */
static inline bool world_step(struct world *w)
{
    struct sl_err err = {0};
    enum sl_status st = core_step(w->core, &err);
    if (st != SL_OK && st != SL_EAGAIN)
        fail_msg("%s", err.msg);
    sched_check(world_sched(w));
    return st == SL_OK;
}

/* Until all have finished; a bound on the steps turns starvation into a failure. */
static inline int world_run(struct world *w, int max_steps)
{
    int n = 0;
    for (; !core_idle(w->core); n++) {
        assert_true(n < max_steps);
        (void)world_step(w);
    }
    assert_false(world_step(w));
    return n;
}

static inline void world_fini(struct world *w)
{
    struct sched_stats st;
    sched_get_stats(world_sched(w), &st);
    if (core_idle(w->core))
        assert_int_equal(st.n_blocks_used + st.n_host_blocks_used, 0);
    core_destroy(&w->core);
    while (w->head) {
        struct rec *rec = w->head;
        w->head = rec->next;
        arena_fini(&rec->r.arena);
        test_free(rec);
    }
    w->be->ops->destroy(w->be);
}

#endif
