/* sched: order, budget, chunks, preemption, forks, cancellation; equal outputs at every depth and
 * policy.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched_world.h"

static const enum sl_policy policies[] = {SL_POLICY_MIXED, SL_POLICY_PREFILL_FIRST,
                                          SL_POLICY_STATIC, SL_POLICY_REQUEST};
enum { N_POLICIES = 4 };

/* A plan by hand, to look into; collected with tokens 1, 2, 3, ... */
struct hand {
    struct sched *s;
    struct batch *b;
    struct step_result *r;
    struct world w; /* for its requests and sink only */
};

static void hand_init(struct hand *h, const struct sched_config *cfg)
{
    memset(h, 0, sizeof *h);
    world_init(&h->w, cfg);
    h->s = world_sched(&h->w);
    struct batch_limits limits;
    sched_batch_limits(h->s, &limits);
    assert_int_equal(batch_create(&h->b, &limits, NULL), SL_OK);
    assert_int_equal(step_result_create(&h->r, &limits, NULL), SL_OK);
}

static bool hand_plan(struct hand *h)
{
    bool any = sched_plan(h->s, 1, h->b);
    if (any)
        batch_check(h->b, &h->w.cfg.layout);
    assert_true(h->b->n_tokens <= h->w.cfg.max_num_batched_tokens);
    return any;
}

static void hand_update(struct hand *h)
{
    static struct sl_logprob lp[4096];
    h->r->n_samples = h->b->n_samples;
    h->r->n_plogprobs = h->b->n_plogprobs;
    h->r->plp = lp;
    for (int i = 0; i < h->b->n_samples; i++)
        h->r->token[i] = 100 + i;
    for (int i = 0; i <= h->b->n_samples; i++)
        h->r->lp_start[i] = 0;
    for (int i = 0; i <= h->b->n_plogprobs; i++)
        h->r->plp_start[i] = i;
    sched_update(h->s, h->b, h->r, world_sink, &h->w);
    h->r->plp = NULL;
    sched_check(h->s);
}

static bool hand_step(struct hand *h)
{
    if (!hand_plan(h))
        return false;
    hand_update(h);
    return true;
}

static void hand_fini(struct hand *h)
{
    batch_destroy(&h->b);
    step_result_destroy(&h->r);
    world_fini(&h->w);
}

/* Rows that the plan gives to choice i of a request. */
static int rows_of(const struct hand *h, const struct rec *rec, int i)
{
    for (int s = 0; s < h->b->n_seqs; s++)
        if (h->b->seq[s] == rec->r.seq[i])
            return h->b->q_start[s + 1] - h->b->q_start[s];
    return 0;
}

static void a_prompt_then_tokens(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_add(&h.w, 10, 3);
    assert_true(hand_plan(&h));
    assert_int_equal(h.b->n_tokens, 10);
    assert_int_equal(h.b->n_samples, 1);
    assert_int_equal(h.b->logit_row[0], 9);
    assert_int_equal(h.b->sample[0].pos, 10);
    assert_memory_equal(h.b->token, a->r.prompt, 10 * sizeof(int32_t));
    hand_update(&h);
    assert_int_equal(a->n_out[0], 1);
    assert_true(hand_plan(&h));
    assert_int_equal(h.b->n_tokens, 1);
    assert_int_equal(h.b->token[0], 100);
    assert_int_equal(h.b->pos[0], 10);
    hand_update(&h);
    assert_true(hand_step(&h));
    assert_int_equal(a->finish[0], SL_LENGTH);
    assert_int_equal(a->n_out[0], 3);
    assert_false(hand_step(&h));
    hand_fini(&h);
}

static void decodes_come_first_and_chunks_fill(void **state)
{
    (void)state;
    struct sched_config cfg = world_config(); /* budget 64 */
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_add(&h.w, 10, 50);
    assert_true(hand_step(&h));
    struct rec *b = world_add(&h.w, 100, 5), *c = world_add(&h.w, 20, 5);
    assert_true(hand_plan(&h));
    assert_ptr_equal(h.b->seq[0], a->r.seq[0]);
    assert_int_equal(rows_of(&h, a, 0), 1);
    assert_int_equal(rows_of(&h, b, 0), 63);
    assert_int_equal(rows_of(&h, c, 0), 0); /* b is the one partial prefill */
    assert_int_equal(h.b->n_samples, 1);
    hand_update(&h);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, a, 0), 1);
    assert_int_equal(rows_of(&h, b, 0), 37);
    assert_int_equal(rows_of(&h, c, 0), 20);
    assert_int_equal(h.b->n_samples, 3);
    hand_update(&h);
    while (hand_step(&h))
        ;
    assert_int_equal(c->n_out[0], 5);
    hand_fini(&h);
}

/* Steps and a cache for prompts of thousands. */
static struct sched_config long_prompts_config(void)
{
    struct sched_config cfg = world_config();
    cfg.max_num_batched_tokens = 2048;
    cfg.max_model_len = 4096;
    cfg.layout.n_blocks = 4096;
    return cfg;
}

static void chunks_beside_decodes_are_small(void **state)
{
    (void)state;
    struct sched_config cfg = long_prompts_config();
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_add(&h.w, 900, 2);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, a, 0), 900); /* nobody decodes */
    hand_update(&h);
    struct rec *b = world_add(&h.w, 3000, 2);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, a, 0), 1);
    assert_int_equal(rows_of(&h, b, 0), 256 + 4 + 32); /* one runs, one waits */
    hand_update(&h);
    assert_int_equal(a->finish[0], SL_LENGTH);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, b, 0), 2048);
    hand_update(&h);
    while (hand_step(&h))
        ;
    assert_int_equal(b->n_out[0], 2);
    hand_fini(&h);
}

static void who_has_nothing_left_to_compute_does_not_decode(void **state)
{
    (void)state;
    struct sched_config cfg = long_prompts_config();
    cfg.depth = 2;
    struct hand h;
    hand_init(&h, &cfg);
    struct batch *first = h.b, *second;
    assert_int_equal(batch_create(&second, &first->limits, NULL), SL_OK);
    struct rec *a = world_add(&h.w, 900, 1);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, a, 0), 900);
    struct rec *b = world_add(&h.w, 3000, 2);
    h.b = second;
    assert_true(hand_plan(&h)); /* a's only token is in flight */
    assert_int_equal(rows_of(&h, b, 0), 2048);
    h.b = first;
    hand_update(&h);
    h.b = second;
    hand_update(&h);
    while (hand_step(&h))
        ;
    assert_int_equal(a->n_out[0], 1);
    assert_int_equal(b->n_out[0], 2);
    batch_destroy(&first);
    hand_fini(&h);
}

static void several_prompts_share_the_budget(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.max_num_partial_prefills = 2;
    cfg.long_prefill_token_threshold = 100;
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_add(&h.w, 200, 2), *b = world_add(&h.w, 150, 2);
    struct rec *c = world_add(&h.w, 40, 2), *d = world_add(&h.w, 8, 2);
    assert_true(hand_plan(&h));
    /* b is long as well, and one long prompt at a time is the rule: c passes it. */
    assert_int_equal(rows_of(&h, a, 0), 32);
    assert_int_equal(rows_of(&h, b, 0), 0);
    assert_int_equal(rows_of(&h, c, 0), 32);
    assert_int_equal(rows_of(&h, d, 0), 0);
    hand_update(&h);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, c, 0), 8);
    assert_int_equal(rows_of(&h, d, 0), 8);
    assert_int_equal(rows_of(&h, a, 0), 48); /* its share and what the others left */
    hand_update(&h);
    while (hand_step(&h))
        ;
    assert_int_equal(a->order, 3);
    assert_int_equal(b->order, 4);
    assert_int_equal(b->n_out[0], 2);
    hand_fini(&h);
}

static void long_prompts_are_cut_at_the_threshold(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.long_prefill_token_threshold = 16;
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_add(&h.w, 50, 2), *b = world_add(&h.w, 10, 2);
    assert_true(hand_plan(&h));
    assert_int_equal(rows_of(&h, a, 0), 16);
    assert_int_equal(rows_of(&h, b, 0), 10); /* whole, so it needs no place among the partial */
    hand_update(&h);
    while (hand_step(&h))
        ;
    assert_int_equal(a->n_out[0], 2);
    hand_fini(&h);
}

static void prefill_first_never_mixes(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.policy = SL_POLICY_PREFILL_FIRST;
    struct hand h;
    hand_init(&h, &cfg);
    for (int i = 0; i < 12; i++)
        world_add(&h.w, 5 + i * 9, 4);
    int n_prefills = 0;
    while (hand_plan(&h)) {
        bool prefill = false, decode = false;
        for (int s = 0; s < h.b->n_seqs; s++) {
            bool in_prompt = h.b->pos[h.b->q_start[s]] < h.b->seq[s]->n_prompt;
            prefill = prefill || in_prompt;
            decode = decode || !in_prompt;
        }
        assert_true(prefill != decode);
        n_prefills += prefill;
        hand_update(&h);
    }
    assert_true(n_prefills > 3);
    hand_fini(&h);
}

static void fcfs_order(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.max_num_seqs = 2;
    struct world w;
    world_init(&w, &cfg);
    struct rec *rec[10];
    for (int i = 0; i < 10; i++)
        rec[i] = world_add(&w, i % 2 ? 5 : 90, 3 + i % 5);
    world_run(&w, 1000);
    for (int i = 0; i < 10; i++)
        assert_int_equal(rec[i]->order, i + 1);
    world_fini(&w);
}

static void priority_order(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.order = SL_ORDER_PRIORITY;
    cfg.max_num_seqs = 1;
    struct world w;
    world_init(&w, &cfg);
    const int priority[6] = {5, 0, 3, 0, -1, 3}, want[6] = {6, 2, 4, 3, 1, 5};
    struct rec *rec[6];
    for (int i = 0; i < 6; i++) {
        rec[i] = world_make(&w, NULL, 8, 3, 1);
        rec[i]->r.priority = priority[i];
        sched_add(world_sched(&w), &rec[i]->r);
    }
    world_run(&w, 1000);
    for (int i = 0; i < 6; i++)
        assert_int_equal(rec[i]->order, want[i]);
    world_fini(&w);
}

static void the_last_is_preempted_and_loses_nothing(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    int32_t want[4][40], got = 0;
    for (int round = 0; round < 2; round++) {
        cfg.layout.n_blocks = round ? 18 : 256; /* 72 places for 4 * 56 */
        cfg.enable_prefix_caching = false;
        struct world w;
        world_init(&w, &cfg);
        struct rec *rec[4];
        for (int i = 0; i < 4; i++)
            rec[i] = world_add(&w, 16, 40);
        world_run(&w, 1000);
        struct sched_stats st;
        sched_get_stats(world_sched(&w), &st);
        assert_int_equal(st.n_preemptions > 0, round);
        assert_int_equal(rec[0]->r.seq[0]->n_preempted, 0);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(rec[i]->n_out[0], 40);
            if (round == 0)
                memcpy(want[i], rec[i]->out[0], sizeof want[i]);
            else
                got += memcmp(want[i], rec[i]->out[0], sizeof want[i]) == 0;
            assert_true(i == 0 || rec[i]->end_ns >= rec[i - 1]->end_ns);
        }
        world_fini(&w);
    }
    assert_int_equal(got, 4);
}

static void prefixes_are_found_again(void **state)
{
    (void)state;
    struct sched_config cfg = world_config(); /* blocks of 4 */
    struct world w;
    world_init(&w, &cfg);
    int32_t prompt[32];
    for (int i = 0; i < 32; i++)
        prompt[i] = i + 500;
    struct rec *a = world_make(&w, prompt, 32, 4, 1), *b = world_make(&w, prompt, 32, 4, 1);
    struct rec *c = world_make(&w, prompt, 30, 4, 1), *d = world_make(&w, prompt, 32, 4, 1);
    struct rec *e = world_make(&w, prompt, 32, 4, 1), *f = world_make(&w, prompt, 32, 4, 1);
    d->r.cache_salt = "d";
    f->r.cache_salt = "d";
    e->r.params.p.prompt_logprobs = 0;
    struct rec *all[] = {a, b, c, d, e, f};
    const int cached[] = {0, 28, 28, 0, 0, 28}; /* the last token is always computed */
    for (int i = 0; i < 6; i++) {
        sched_add(world_sched(&w), &all[i]->r);
        world_run(&w, 100);
        assert_int_equal(all[i]->r.seq[0]->n_cached, cached[i]);
    }
    assert_int_equal(e->n_plp[0], 31);
    struct sched_stats st;
    sched_get_stats(world_sched(&w), &st);
    assert_int_equal(st.prefix_hits, 3 * 28);
    assert_int_equal(st.prefix_queries, 5 * 32 + 30);
    assert_int_equal(st.prompt_tokens_computed + st.prompt_tokens_cached, 5 * 32 + 30);
    sched_reset_prefix_cache(world_sched(&w));
    struct rec *g = world_make(&w, prompt, 32, 4, 1);
    sched_add(world_sched(&w), &g->r);
    world_run(&w, 100);
    assert_int_equal(g->r.seq[0]->n_cached, 0);
    world_fini(&w);
}

/* Two sequences for whom there is not room enough; the blocks of the younger one are copied away,
 * and come back. A copy takes 8 us a block there and back, a token that is computed again token_ns.
 */
static void preempted_without_and_with_swap(void **state)
{
    (void)state;
    static const struct {
        double token_ns;
        int n_host_blocks;
        bool swaps;
    } way[] = {{1e6, 16, true}, {100, 16, false}, {1e6, 3, false}, {1e6, 0, false}};
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        struct sched_config cfg = world_config();
        cfg.layout.n_blocks = 12; /* of 4 */
        cfg.layout.n_host_blocks = way[i].n_host_blocks;
        cfg.enable_prefix_caching = false;
        cfg.swap = true;
        cfg.host_bytes_per_s = 256e6;
        cfg.token_ns = way[i].token_ns;
        struct hand h;
        struct sched_stats st;
        hand_init(&h, &cfg);
        struct rec *a = world_add(&h.w, 16, 20), *b = world_add(&h.w, 16, 20);
        int to_host = 0, from_host = 0, n_rows = 0;
        while (hand_step(&h)) {
            n_rows += h.b->n_tokens;
            for (int c = 0; c < h.b->n_copies; c++) {
                to_host += h.b->copy[c].kind == COPY_TO_HOST;
                from_host += h.b->copy[c].kind == COPY_FROM_HOST;
            }
        }
        sched_get_stats(h.s, &st);
        assert_true(st.n_preemptions > 0);
        assert_int_equal(st.n_swaps, way[i].swaps ? st.n_preemptions : 0);
        assert_int_equal(a->n_out[0] + b->n_out[0], 40);
        assert_int_equal(to_host, from_host);
        assert_int_equal(to_host > 0, way[i].swaps);
        assert_int_equal(n_rows == 2 * (16 + 19), way[i].swaps); /* nothing is computed twice */
        hand_fini(&h);
    }
}

/* Contents that leave the device are found again, and cost no computation. */
static void evicted_prefixes_come_back(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.layout.n_blocks = 12; /* of 4: one prompt of 32 at a time */
    cfg.layout.n_host_blocks = 40;
    cfg.offload = true;
    struct world w;
    struct sched_stats st;
    world_init(&w, &cfg);
    for (int i = 0; i < 3; i++) {
        (void)world_add(&w, 32, 2);
        world_run(&w, 100);
    }
    struct rec *again = world_make(&w, w.head->next->next->r.prompt, 32, 2, 1); /* the first one */
    sched_add(world_sched(&w), &again->r);
    world_run(&w, 100);
    sched_get_stats(world_sched(&w), &st);
    assert_int_equal(again->r.seq[0]->n_cached, 28);
    assert_int_equal(st.host_hits, 28);
    assert_int_equal(st.host_queries, 4 * 32);
    assert_int_equal(st.prefix_hits, 0);
    sched_reset_prefix_cache(world_sched(&w));
    again = world_make(&w, again->r.prompt, 32, 2, 1);
    sched_add(world_sched(&w), &again->r);
    world_run(&w, 100);
    assert_int_equal(again->r.seq[0]->n_cached, 0);
    world_fini(&w);
}

static void choices_share_the_prompt(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    struct hand h;
    hand_init(&h, &cfg);
    struct rec *a = world_make(&h.w, NULL, 10, 4, 3); /* 2 full blocks and a half */
    sched_add(h.s, &a->r);
    assert_true(hand_plan(&h));
    assert_int_equal(h.b->n_seqs, 1);
    assert_int_equal(h.b->n_tokens, 10);
    assert_int_equal(h.b->n_logits, 1);
    assert_int_equal(h.b->n_samples, 3); /* from one row */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(h.b->sample[i].logit, 0);
        assert_ptr_equal(h.b->sample[i].seq, a->r.seq[i]);
    }
    hand_update(&h);
    struct sched_stats st;
    sched_get_stats(h.s, &st);
    assert_int_equal(st.n_blocks_used, 3);
    assert_true(hand_plan(&h));
    assert_int_equal(h.b->n_seqs, 3);
    assert_int_equal(h.b->n_copies, 2); /* the last one writes in place */
    sched_get_stats(h.s, &st);
    assert_int_equal(st.n_blocks_used, 2 + 3);
    for (int i = 0; i < 2; i++)
        assert_int_equal(h.b->copy[i].src, a->r.seq[2]->table[0].block[2]);
    hand_update(&h);
    while (hand_step(&h))
        assert_int_equal(h.b->n_copies, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(a->n_out[i], 4);
    hand_fini(&h);
}

static void more_choices_than_rows(void **state)
{
    (void)state;
    for (int p = 0; p < N_POLICIES; p++) {
        struct sched_config cfg = world_config();
        cfg.policy = policies[p];
        struct world w;
        world_init(&w, &cfg); /* 8 rows */
        struct rec *a = world_make(&w, NULL, 21, 5, 30), *b = world_make(&w, NULL, 9, 5, 1);
        sched_add(world_sched(&w), &a->r);
        sched_add(world_sched(&w), &b->r);
        world_run(&w, 1000);
        for (int i = 0; i < 30; i++) {
            assert_int_equal(a->n_out[i], 5);
            for (int j = 0; j < i; j++)
                assert_memory_not_equal(a->out[i], a->out[j], 5 * sizeof(int32_t));
        }
        assert_int_equal(b->n_out[0], 5);
        world_fini(&w);
    }
}

static void cancelled_at_once(void **state)
{
    (void)state;
    for (int depth = 1; depth <= 4; depth *= 2) {
        struct sched_config cfg = world_config();
        cfg.depth = depth;
        struct world w;
        world_init(&w, &cfg);
        struct rec *a = world_add(&w, 30, 50), *b = world_add(&w, 90, 50);
        struct rec *c = world_make(&w, NULL, 10, 50, 3);
        for (int i = 0; i < 2; i++)
            assert_true(world_step(&w));
        sched_add(world_sched(&w), &c->r);
        for (int i = 0; i < 3; i++)
            assert_true(world_step(&w));
        struct rec *d = world_add(&w, 10, 50); /* still waiting when it is cancelled */
        world_abort(&w, a);
        world_abort(&w, c);
        world_abort(&w, d);
        world_abort(&w, b);
        struct sched_stats st;
        sched_get_stats(world_sched(&w), &st);
        assert_int_equal(st.n_blocks_used, 0);
        assert_int_equal(st.n_running + st.n_waiting, 0);
        sched_check(world_sched(&w));
        assert_int_equal(sched_holds(world_sched(&w), &a->r), depth > 1);
        world_run(&w, 100);
        assert_false(sched_holds(world_sched(&w), &a->r));
        assert_true(rec_done(c));
        world_fini(&w);
    }
}

static void one_choice_is_cancelled(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    struct world w;
    world_init(&w, &cfg);
    struct rec *a = world_make(&w, NULL, 100, 6, 3), *b = world_make(&w, NULL, 10, 6, 3);
    sched_add(world_sched(&w), &a->r);
    world_step(&w); /* a part of the prompt: choice 0 alone computes it, and goes */
    sched_abort_seq(world_sched(&w), a->r.seq[0], SL_ABORT);
    sched_add(world_sched(&w), &b->r);
    while (b->n_out[0] < 2)
        world_step(&w);
    b->r.seq[1]->abort = true;
    world_run(&w, 100);
    assert_int_equal(a->n_out[0], 0);
    assert_int_equal(a->n_out[1], 6);
    assert_int_equal(a->n_out[2], 6);
    assert_int_equal(b->n_out[0], 6);
    assert_int_equal(b->n_out[1], 2);
    assert_int_equal(b->r.seq[1]->finish, SL_ABORT);
    assert_true(rec_done(a) && rec_done(b));
    world_fini(&w);
}

static uint64_t run_load(struct sched_config cfg, int *n_preempted)
{
    struct world w;
    world_init(&w, &cfg);
    struct rec *rec[40];
    for (int i = 0; i < 40; i++) {
        rec[i] = world_make(&w, NULL, 1 + (i * 37) % 120, 1 + (i * 11) % 60, 1 + i % 3);
        if (i % 7 == 0)
            rec[i]->r.params.p.prompt_logprobs = 2;
        sched_add(world_sched(&w), &rec[i]->r);
        if (i % 3 == 0)
            world_step(&w);
    }
    world_run(&w, 5000);
    uint64_t h = 1469598103934665603u;
    for (int i = 0; i < 40; i++)
        for (int c = 0; c < rec[i]->r.n_seqs; c++) {
            assert_int_equal(rec[i]->n_out[c], rec[i]->r.params.max_tokens);
            if (rec[i]->r.params.p.prompt_logprobs != SL_NONE && c == 0)
                assert_int_equal(rec[i]->n_plp[c], rec[i]->r.n_prompt - 1);
            for (int t = 0; t < rec[i]->n_out[c]; t++)
                h = (h ^ (uint64_t)rec[i]->out[c][t]) * 1099511628211u;
        }
    struct sched_stats st;
    sched_get_stats(world_sched(&w), &st);
    *n_preempted += (int)st.n_preemptions;
    world_fini(&w);
    return h;
}

static void equal_outputs_everywhere(void **state)
{
    (void)state;
    int n_preempted = 0;
    uint64_t want = run_load(world_config(), &n_preempted);
    for (int p = 0; p < N_POLICIES; p++)
        for (int depth = 1; depth <= 4; depth *= 2)
            for (int small = 0; small < 2; small++) {
                struct sched_config cfg = world_config();
                cfg.policy = policies[p];
                cfg.depth = depth;
                cfg.layout.n_blocks = small ? 64 : 1024;
                cfg.max_num_partial_prefills = 1 + small;
                cfg.enable_prefix_caching = !small || depth == 2;
                assert_true(run_load(cfg, &n_preempted) == want);
            }
    assert_true(n_preempted > 10);
}

/* Stops are found late at depth 2 and 4: the tokens after them must not show. */
static void stops_found_late_do_not_show(void **state)
{
    (void)state;
    int n_want[20] = {0};
    for (int depth = 1; depth <= 4; depth *= 2) {
        struct sched_config cfg = world_config();
        cfg.depth = depth;
        struct world w;
        world_init(&w, &cfg);
        static int32_t stop_ids[100];
        for (int i = 0; i < 100; i++)
            stop_ids[i] = i * 10 + 3; /* a tenth of the vocabulary */
        struct rec *rec[20];
        for (int i = 0; i < 20; i++) {
            rec[i] = world_make(&w, NULL, 10 + i, 100, 1);
            rec[i]->r.params.p.stop_token_ids = stop_ids;
            rec[i]->r.params.p.n_stop_token_ids = 100;
            rec[i]->r.params.p.min_tokens = i % 5;
            sched_add(world_sched(&w), &rec[i]->r);
        }
        world_run(&w, 1000);
        for (int i = 0; i < 20; i++) {
            int n = rec[i]->n_out[0];
            if (depth == 1)
                n_want[i] = n;
            assert_int_equal(n, n_want[i]);
            assert_true(n >= i % 5 && n <= 100);
            if (rec[i]->finish[0] == SL_STOP) {
                assert_int_equal(rec[i]->out[0][n - 1] % 10, 3);
                assert_int_equal(rec[i]->r.seq[0]->stop_token, rec[i]->out[0][n - 1]);
            }
        }
        world_fini(&w);
    }
}

/* The stop rules alone: tokens are given by hand. */
static enum sl_finish feed(struct hand *h, struct rec *rec, const int32_t *tokens, int n)
{
    sched_add(h->s, &rec->r);
    for (int i = 0; i < n && rec->finish[0] == SL_RUNNING; i++) {
        assert_true(hand_plan(h));
        h->r->n_samples = 1;
        h->r->n_plogprobs = 0;
        h->r->token[0] = tokens[i];
        h->r->lp_start[0] = h->r->lp_start[1] = h->r->plp_start[0] = 0;
        sched_update(h->s, h->b, h->r, world_sink, &h->w);
    }
    enum sl_finish f = rec->finish[0];
    if (f == SL_RUNNING)
        world_abort(&h->w, rec);
    return f;
}

static void stop_rules(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.max_model_len = 30;
    struct hand h;
    hand_init(&h, &cfg);
    const int32_t eos[4] = {1, 2, WORLD_EOS, 3}, stop[4] = {1, 50, WORLD_EOS, 50};
    static const int32_t ids[2] = {50, WORLD_EOS};
    struct rec *a = world_make(&h.w, NULL, 5, 10, 1);
    assert_int_equal(feed(&h, a, eos, 4), SL_STOP);
    assert_int_equal(a->n_out[0], 3);
    assert_int_equal(a->r.seq[0]->stop_kind, SL_STOP_NONE);
    a = world_make(&h.w, NULL, 5, 10, 1);
    a->r.params.p.ignore_eos = true;
    assert_int_equal(feed(&h, a, eos, 4), SL_RUNNING);
    a = world_make(&h.w, NULL, 5, 10, 1);
    a->r.params.p.stop_token_ids = ids;
    a->r.params.p.n_stop_token_ids = 2;
    assert_int_equal(feed(&h, a, stop, 4), SL_STOP);
    assert_int_equal(a->r.seq[0]->stop_kind, SL_STOP_TOKEN);
    assert_int_equal(a->r.seq[0]->stop_token, 50);
    a = world_make(&h.w, NULL, 5, 10, 1);
    a->r.params.p.stop_token_ids = ids;
    a->r.params.p.n_stop_token_ids = 2;
    a->r.params.p.min_tokens = 3;
    assert_int_equal(feed(&h, a, stop, 4), SL_STOP);
    assert_int_equal(a->n_out[0], 3);
    assert_int_equal(a->r.seq[0]->stop_kind, SL_STOP_NONE); /* EOS is looked at first */
    a = world_make(&h.w, NULL, 5, 2, 1);
    assert_int_equal(feed(&h, a, eos, 4), SL_LENGTH);
    assert_int_equal(a->n_out[0], 2);
    a = world_make(&h.w, NULL, 28, 10, 1); /* the context ends first, min_tokens or not */
    a->r.params.p.min_tokens = 5;
    assert_int_equal(feed(&h, a, eos, 4), SL_LENGTH);
    assert_int_equal(a->n_out[0], 2);
    a = world_make(&h.w, NULL, 5, 0, 1); /* the prompt alone */
    assert_int_equal(feed(&h, a, eos, 1), SL_LENGTH);
    assert_int_equal(a->n_out[0], 0);
    const int32_t nan[1] = {TOKEN_BAD_LOGITS};
    a = world_make(&h.w, NULL, 5, 3, 1);
    assert_int_equal(feed(&h, a, nan, 1), SL_ERROR);
    const int32_t again[8] = {9, 1, 2, 1, 2, 1, 2, 5};
    a = world_make(&h.w, NULL, 5, 20, 1);
    a->r.params.p.repetition_max_pattern = 3;
    a->r.params.p.repetition_min_pattern = 2;
    a->r.params.p.repetition_min_count = 3;
    assert_int_equal(feed(&h, a, again, 8), SL_REPETITION);
    assert_int_equal(a->n_out[0], 7);
    a = world_make(&h.w, NULL, 5, 20, 1);
    a->r.params.p.repetition_max_pattern = 1;
    a->r.params.p.repetition_min_count = 2;
    assert_int_equal(feed(&h, a, again, 8), SL_RUNNING);
    hand_fini(&h);
}

static void what_cannot_fit_is_told_before(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.layout.n_blocks = 10; /* 40 places */
    struct world w;
    world_init(&w, &cfg);
    struct sched *s = world_sched(&w);
    assert_int_equal(sched_max_len(s), 41);
    assert_false(sched_can_ever_fit(s, 41));
    assert_true(sched_can_ever_fit(s, 40));
    assert_false(sched_can_ever_fit(s, 0));
    struct rec *a = world_add(&w, 40, 10), *b = world_add(&w, 20, 200);
    world_run(&w, 1000);
    assert_int_equal(a->n_out[0], 1);
    assert_int_equal(b->n_out[0], 21); /* the cache is full: length */
    assert_int_equal(b->finish[0], SL_LENGTH);
    world_fini(&w);
}

static void batches_wait_for_their_longest(void **state)
{
    (void)state;
    for (int p = 2; p < 4; p++) {
        struct sched_config cfg = world_config();
        cfg.policy = policies[p];
        cfg.max_num_seqs = 3;
        cfg.max_model_len = 64;
        struct hand h;
        hand_init(&h, &cfg);
        struct rec *a = world_add(&h.w, 20, 2), *b = world_add(&h.w, 5, 10);
        assert_true(hand_plan(&h));
        bool pads = policies[p] == SL_POLICY_STATIC;
        assert_int_equal(rows_of(&h, a, 0), 20);
        assert_int_equal(rows_of(&h, b, 0), pads ? 20 : 5);
        struct sched_stats st;
        sched_get_stats(h.s, &st);
        assert_int_equal(st.n_blocks_used, pads ? 2 * 16 : 6 + 4); /* 21 and 14 places */
        hand_update(&h);
        struct rec *c = world_add(&h.w, 5, 2);
        assert_true(hand_step(&h));
        assert_int_equal(a->finish[0], SL_LENGTH);
        int n = 0;
        while (b->finish[0] == SL_RUNNING) {
            assert_true(hand_plan(&h));
            assert_int_equal(h.b->n_seqs, pads ? 2 : 1); /* a is computed on, as padding */
            assert_int_equal(rows_of(&h, c, 0), 0);
            assert_int_equal(h.b->n_samples, 1);
            hand_update(&h);
            n++;
        }
        assert_int_equal(n, 8);
        sched_get_stats(h.s, &st);
        assert_int_equal(st.n_blocks_used, 0);
        while (hand_step(&h))
            ;
        assert_int_equal(c->n_out[0], 2);
        hand_fini(&h);
    }
}

static void windows_free_what_they_passed(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.layout.n_groups = 2;
    cfg.layout.group[1] = (struct kv_group){.n_layers = 2, .bytes_per_token = 256, .window = 16};
    cfg.layout.n_blocks = 128;
    struct world w;
    world_init(&w, &cfg);
    struct rec *rec[6];
    for (int i = 0; i < 6; i++)
        rec[i] = world_make(&w, NULL, 70 + i * 10, 60, 1 + i % 2);
    for (int i = 0; i < 6; i++)
        sched_add(world_sched(&w), &rec[i]->r);
    int most = 0;
    while (world_step(&w))
        for (int i = 0; i < 6; i++) {
            const struct block_table *t = &rec[i]->r.seq[0]->table[1];
            most = t->n - t->first > most ? t->n - t->first : most;
        }
    assert_in_range(most, 4, 4 + 16 + 2); /* window, chunk and the ends */
    for (int i = 0; i < 6; i++)
        assert_int_equal(rec[i]->n_out[0], 60);
    struct rec *again = world_make(&w, rec[5]->r.prompt, 120, 5, 1);
    sched_add(world_sched(&w), &again->r);
    world_run(&w, 1000);
    assert_int_equal(again->n_out[0], 5);
    world_fini(&w);
}

/* What a hit brings of the window is not reserved once more: a pool that is just enough stays so.
 */
static void a_hit_behind_a_window_fits(void **state)
{
    (void)state;
    struct sched_config cfg = world_config(); /* blocks of 4 */
    cfg.max_num_batched_tokens = 16;
    cfg.layout.n_groups = 1;
    cfg.layout.group[0].window = 64;
    cfg.layout.n_blocks = (64 + 16) / 4 + 2;
    struct world w;
    world_init(&w, &cfg);
    int32_t prompt[230];
    for (int i = 0; i < 230; i++)
        prompt[i] = i + 500;
    for (int n = 69; n <= 230; n += 161) {
        struct rec *rec = world_make(&w, prompt, n, 3, 1);
        sched_add(world_sched(&w), &rec->r);
        world_run(&w, 200);
        assert_int_equal(rec->n_out[0], 3);
        assert_int_equal(rec->r.seq[0]->n_cached, n == 69 ? 0 : 68);
    }
    world_fini(&w);
}

static void prompt_logprobs_within_the_logit_rows(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.max_num_batched_tokens = 1000;
    cfg.max_model_len = 1000;
    for (int depth = 1; depth <= 2; depth++) {
        cfg.depth = depth;
        struct world w;
        world_init(&w, &cfg);
        struct rec *a = world_make(&w, NULL, 300, 5, 2), *b = world_make(&w, NULL, 128, 5, 1);
        struct rec *c = world_make(&w, NULL, 129, 5, 1), *d = world_make(&w, NULL, 130, 5, 1);
        struct rec *all[] = {a, b, c, d};
        for (int i = 0; i < 4; i++) {
            all[i]->r.params.p.prompt_logprobs = 1;
            sched_add(world_sched(&w), &all[i]->r);
        }
        world_run(&w, 100);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(all[i]->n_plp[0], all[i]->r.n_prompt - 1);
            assert_int_equal(all[i]->n_out[0], 5);
        }
        world_fini(&w);
    }
}

static void a_warm_step_allocates_nothing(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.layout.n_blocks = 60;
    cfg.max_num_seqs = 6;
    struct world w;
    world_init(&w, &cfg);
    uint64_t before = 0;
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 12; i++)
            world_add(&w, 20 + i * 3, 90);
        before = mem_count();
        struct sl_err err = {0};
        while (core_step(w.core, &err) == SL_OK)
            ;
        before = mem_count() - before;
    }
    struct sched_stats st;
    sched_get_stats(world_sched(&w), &st);
    assert_true(st.n_preemptions > 5);
    assert_int_equal(before, 0);
    world_fini(&w);
}

static void no_memory_fails_cleanly(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    cfg.policy = SL_POLICY_STATIC;
    struct world w;
    world_init(&w, &cfg);
    enum sl_status st;
    int n = 0;
    do {
        struct core *core = NULL;
        struct sl_err err = {0};
        mem_fail_nth(++n);
        st = core_create(&core, &cfg, w.be, world_sink, &w, &err);
        mem_fail_nth(0);
        assert_true(st == SL_OK || (st == SL_ENOMEM && err.msg[0] && !core));
        if (!st)
            core_destroy(&core);
    } while (st);
    assert_true(n > 10);
    world_fini(&w);
    cfg.policy = SL_POLICY_MIXED;
    /* No memory while running: somebody may end with an error, nobody hangs, nothing leaks. */
    for (n = 1; n < 20; n++) {
        world_init(&w, &cfg);
        for (int i = 0; i < 5; i++) {
            struct rec *rec = world_make(&w, NULL, 60, 20, 2);
            sched_add(world_sched(&w), &rec->r);
        }
        mem_fail_nth(n);
        world_run(&w, 1000);
        mem_fail_nth(0);
        world_fini(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_then_tokens),
        cmocka_unit_test(decodes_come_first_and_chunks_fill),
        cmocka_unit_test(chunks_beside_decodes_are_small),
        cmocka_unit_test(who_has_nothing_left_to_compute_does_not_decode),
        cmocka_unit_test(several_prompts_share_the_budget),
        cmocka_unit_test(long_prompts_are_cut_at_the_threshold),
        cmocka_unit_test(prefill_first_never_mixes),
        cmocka_unit_test(fcfs_order),
        cmocka_unit_test(priority_order),
        cmocka_unit_test(the_last_is_preempted_and_loses_nothing),
        cmocka_unit_test(prefixes_are_found_again),
        cmocka_unit_test(choices_share_the_prompt),
        cmocka_unit_test(more_choices_than_rows),
        cmocka_unit_test(cancelled_at_once),
        cmocka_unit_test(one_choice_is_cancelled),
        cmocka_unit_test(equal_outputs_everywhere),
        cmocka_unit_test(stops_found_late_do_not_show),
        cmocka_unit_test(stop_rules),
        cmocka_unit_test(what_cannot_fit_is_told_before),
        cmocka_unit_test(batches_wait_for_their_longest),
        cmocka_unit_test(windows_free_what_they_passed),
        cmocka_unit_test(a_hit_behind_a_window_fits),
        cmocka_unit_test(preempted_without_and_with_swap),
        cmocka_unit_test(evicted_prefixes_come_back),
        cmocka_unit_test(prompt_logprobs_within_the_logit_rows),
        cmocka_unit_test(a_warm_step_allocates_nothing),
        cmocka_unit_test(no_memory_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
