/* Speculation in the scheduler: what a proposer guesses never changes what a request says, however
 * good the guesses are, and what they cost is learned.
 *
 * The backend's tokens hash what the block tables read (kv_backend.h), so one row of a refused
 * guess left in the cache, or in the prefix cache, changes tokens.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kv_backend.h"
#include "sched/draftcost.h"
#include "sched_world.h"

#include <math.h>

/* ---- a proposer that knows the answer, and errs as often as it is told ------------------------
 */

struct oracle {
    struct proposer p; /* first */
    const struct kv_layout *layout;
    int right_percent;
    uint64_t random;
    int n_calls, n_taken, n_finished, n_steps;
    int32_t tokens[1024];
};

static uint32_t next_random(uint64_t *state)
{
    *state = kvb_mix(*state + 1);
    return (uint32_t)(*state >> 33);
}

static void oracle_propose(struct proposer *p, struct draft_item *item, int n_items)
{
    struct oracle *o = (struct oracle *)p;
    o->n_calls++;
    for (int i = 0; i < n_items; i++) {
        struct sequence *q = item[i].seq;
        int n = q->n_tokens + item[i].n;
        assert_true(item[i].n >= 1 && item[i].n <= p->max_tokens);
        assert_ptr_equal(item[i].token, q->tokens + q->n_tokens);
        memcpy(o->tokens, q->tokens, (size_t)q->n_prompt * sizeof *o->tokens);
        expected_tokens(o->layout, q, o->tokens, n);
        for (int j = 0; j < item[i].n; j++) {
            bool right = (int)(next_random(&o->random) % 100) < o->right_percent;
            item[i].token[j] = o->tokens[q->n_tokens + j];
            if (!right)
                item[i].token[j] = (item[i].token[j] + 1) % KVB_VOCAB;
        }
        if (next_random(&o->random) % 8 == 0)
            item[i].n = (int)(next_random(&o->random) % (uint32_t)(item[i].n + 1));
    }
}

static void oracle_taken(struct proposer *p, int32_t blk)
{
    struct oracle *o = (struct oracle *)p;
    assert_true(blk >= 0 && blk < o->layout->n_blocks);
    o->n_taken++;
}

static void oracle_finished(struct proposer *p, const struct sequence *seq)
{
    ((struct oracle *)p)->n_finished++;
    assert_non_null(seq->tokens);
}

static void oracle_step_begun(struct proposer *p, const struct batch *b,
                              const struct hidden_states *hidden)
{
    ((struct oracle *)p)->n_steps++;
    assert_true(b->n_tokens > 0);
    assert_null(hidden); /* kv_backend has no layers */
}

static const struct proposer_ops oracle_ops = {.step_begun = oracle_step_begun,
                                               .propose = oracle_propose,
                                               .block_taken = oracle_taken,
                                               .finished = oracle_finished};

static struct oracle oracle_make(const struct kv_layout *layout, int right_percent)
{
    return (struct oracle){
        .p = {.ops = &oracle_ops, .name = "oracle", .max_tokens = 4, .vocab_size = KVB_VOCAB},
        .layout = layout,
        .right_percent = right_percent,
        .random = (uint64_t)right_percent + 1};
}

/* ---- helpers ----------------------------------------------------------------------------------
 */

static void check_output(const struct world *w, const struct rec *rec, int choice, int n)
{
    int32_t *want = calloc((size_t)(rec->r.n_prompt + n + 1), sizeof *want);
    memcpy(want, rec->r.prompt, (size_t)rec->r.n_prompt * sizeof *want);
    expected_tokens(&w->cfg.layout, rec->r.seq[choice], want, rec->r.n_prompt + n);
    for (int i = 0; i < n; i++)
        assert_int_equal(rec->out[choice][i], want[rec->r.n_prompt + i]);
    free(want);
}

static void open_world(struct world *w, struct sched_config *cfg, struct oracle *o)
{
    cfg->proposer = &o->p;
    struct backend *be = kv_backend_make(&cfg->layout, cfg->depth, cfg->max_num_seqs, 512);
    ((struct kv_backend *)be)->step_ns = 100000000; /* guesses are made in real time: cheap */
    world_init_on(w, cfg, be);
}

static struct sched_stats stats_of(struct world *w)
{
    struct sched_stats st;
    sched_get_stats(world_sched(w), &st);
    return st;
}

/* ---- tests ------------------------------------------------------------------------------------
 */

/* One request alone: the same tokens, in as many steps as the guesses leave. */
static void equal_and_faster(void **state)
{
    static const int percents[] = {0, 50, 80, 100};
    (void)state;
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        struct sched_config cfg = world_config();
        struct oracle o = oracle_make(&cfg.layout, percents[i]);
        struct world w;
        open_world(&w, &cfg, &o);
        struct rec *rec = world_make(&w, NULL, 21, 120, 1);
        rec->r.params.p.logprobs = 0;
        rec->r.params.p.ignore_eos = true;
        sched_add(world_sched(&w), &rec->r);
        int n_steps = world_run(&w, 400);
        assert_int_equal(rec->n_out[0], 120);
        assert_int_equal(rec->finish[0], SL_LENGTH);
        check_output(&w, rec, 0, 120);
        struct sched_stats st = stats_of(&w);
        assert_true(st.n_draft_accepted <= st.n_draft_tokens);
        assert_int_equal(o.n_finished, 1);
        assert_int_equal(o.n_steps, n_steps);
        uint64_t by_place = 0;
        for (int k = 0; k < DRAFT_MAX; k++)
            by_place += st.n_draft_accepted_at[k];
        assert_int_equal(by_place, st.n_draft_accepted);
        print_message("%d%%: %d steps, %d of %d\n", percents[i], n_steps, (int)st.n_draft_accepted,
                      (int)st.n_draft_tokens);
        if (percents[i] == 100)
            assert_true(n_steps < 45 && st.n_draft_accepted == st.n_draft_tokens);
        if (percents[i] == 0) /* it gives up, but for a try now and then */
            assert_true(st.n_draft_tokens < 60 && st.n_draft_accepted == 0);
        world_free(&w, rec);
        world_fini(&w);
    }
}

/* A token that ends the answer is found inside a proposal, and nothing after it is reported. */
static void ends_inside_a_proposal(void **state)
{
    (void)state;
    for (int end = 1; end < 14; end++) {
        struct sched_config cfg = world_config();
        struct oracle o = oracle_make(&cfg.layout, 100);
        struct world w;
        open_world(&w, &cfg, &o);
        struct rec *rec = world_make(&w, NULL, 9, 40, 1);
        int32_t want[64];
        memcpy(want, rec->r.prompt, 9 * sizeof *want);
        expected_tokens(&cfg.layout, rec->r.seq[0], want, 49);
        int n = end;
        for (int i = 0; i < end; i++) /* the first place where it comes */
            if (want[9 + i] == want[9 + end - 1]) {
                n = i + 1;
                break;
            }
        int32_t stop = want[9 + end - 1];
        if (end % 2) {
            rec->r.params.eos_token = stop;
        } else {
            rec->r.params.p.stop_token_ids = &stop;
            rec->r.params.p.n_stop_token_ids = 1;
            rec->r.params.eos_token = -1;
        }
        sched_add(world_sched(&w), &rec->r);
        world_run(&w, 100);
        assert_int_equal(rec->finish[0], SL_STOP);
        assert_int_equal(rec->n_out[0], n);
        check_output(&w, rec, 0, n);
        world_free(&w, rec);
        world_fini(&w);
    }
}

/* max_tokens and the context's end: never a row more than can become a token. */
static void ends_at_the_limit(void **state)
{
    (void)state;
    for (int n = 1; n < 12; n++) {
        struct sched_config cfg = world_config();
        cfg.max_model_len = 40;
        struct oracle o = oracle_make(&cfg.layout, 100);
        struct world w;
        open_world(&w, &cfg, &o);
        struct rec *a = world_make(&w, NULL, 13, n, 1), *b = world_make(&w, NULL, 40 - n, 60, 1);
        a->r.params.p.ignore_eos = b->r.params.p.ignore_eos = true;
        sched_add(world_sched(&w), &a->r);
        sched_add(world_sched(&w), &b->r);
        world_run(&w, 100);
        assert_int_equal(a->n_out[0], n);
        assert_int_equal(b->n_out[0], n);
        check_output(&w, a, 0, n);
        check_output(&w, b, 0, n);
        world_free(&w, a);
        world_free(&w, b);
        world_fini(&w);
    }
}

/* What a refused guess wrote is not found by the next request with the same beginning. */
static void prefix_cache_holds_accepted_tokens(void **state)
{
    (void)state;
    for (int percent = 0; percent <= 100; percent += 20) {
        struct sched_config cfg = world_config();
        struct oracle o = oracle_make(&cfg.layout, percent);
        struct world w;
        open_world(&w, &cfg, &o);
        struct rec *a = world_make(&w, NULL, 17, 60, 1);
        a->r.params.p.ignore_eos = true;
        sched_add(world_sched(&w), &a->r);
        world_run(&w, 200);
        int32_t prompt[70];
        memcpy(prompt, a->r.prompt, 17 * sizeof *prompt);
        memcpy(prompt + 17, a->out[0], 53 * sizeof *prompt);
        struct rec *b = world_make(&w, prompt, 70, 20, 1);
        b->r.params.p.ignore_eos = true;
        sched_add(world_sched(&w), &b->r);
        world_run(&w, 200);
        assert_true(b->r.seq[0]->n_cached >= 64);
        check_output(&w, b, 0, 20);
        world_free(&w, a);
        world_free(&w, b);
        world_fini(&w);
    }
}

/* Guesses share a step with prompts and with plain decodes. */
static void mixed_steps(void **state)
{
    (void)state;
    struct sched_config cfg = world_config();
    struct oracle o = oracle_make(&cfg.layout, 90);
    struct world w;
    open_world(&w, &cfg, &o);
    struct rec *a = world_make(&w, NULL, 10, 100, 1);
    a->r.params.p.ignore_eos = true;
    sched_add(world_sched(&w), &a->r);
    for (int i = 0; i < 8; i++)
        world_step(&w);
    uint64_t before = stats_of(&w).n_draft_tokens;
    struct rec *b = world_make(&w, NULL, 50, 30, 3);
    b->r.params.p.ignore_eos = true;
    sched_add(world_sched(&w), &b->r);
    world_step(&w);
    struct sched_stats st = stats_of(&w);
    assert_int_equal(st.last_step_seqs, 2);
    assert_true(st.n_draft_tokens > before && st.last_step_tokens > 51);
    world_run(&w, 400);
    check_output(&w, a, 0, 100);
    for (int i = 0; i < 3; i++)
        check_output(&w, b, i, 30);
    world_free(&w, a);
    world_free(&w, b);
    world_fini(&w);
}

/* ---- a soak -----------------------------------------------------------------------------------
 */

static struct sched_config random_config(uint64_t *seed)
{
    static const int depths[] = {1, 2, 4};
    struct sched_config cfg = world_config();
    cfg.depth = depths[next_random(seed) % 3];
    cfg.max_num_seqs = 1 + (int)(next_random(seed) % 12);
    cfg.max_num_batched_tokens = 16 + (int)(next_random(seed) % 60);
    cfg.max_model_len = 160;
    cfg.policy = next_random(seed) % 4 ? SL_POLICY_MIXED : SL_POLICY_PREFILL_FIRST;
    cfg.order = next_random(seed) % 3 ? SL_ORDER_FCFS : SL_ORDER_PRIORITY;
    cfg.max_num_partial_prefills = 1 + (int)(next_random(seed) % 3);
    cfg.enable_prefix_caching = next_random(seed) % 4 != 0;
    cfg.layout.n_blocks = 42 + (int)(next_random(seed) % 60); /* preemption is common */
    cfg.layout.n_host_blocks = next_random(seed) % 2 ? 40 : 0;
    cfg.swap = cfg.offload = cfg.layout.n_host_blocks > 0;
    cfg.host_bytes_per_s = 1e12;
    cfg.token_ns = 1e6;
    if (next_random(seed) % 2) {
        cfg.layout.n_groups = 2;
        cfg.layout.group[1] = (struct kv_group){.n_layers = 1, .bytes_per_token = 8, .window = 24};
    }
    return cfg;
}

static void soak_once(uint64_t seed, uint64_t *n_preempted, uint64_t *n_accepted)
{
    struct sched_config cfg = random_config(&seed);
    struct oracle o = oracle_make(&cfg.layout, (int)(next_random(&seed) % 101));
    struct rec *live[16] = {0};
    struct world w;
    open_world(&w, &cfg, &o);
    int n_left = 40;
    int32_t shared[80];
    for (int i = 0; i < 80; i++)
        shared[i] = (int32_t)(next_random(&seed) % KVB_VOCAB);
    for (int guard = 0; guard < 20000; guard++) {
        struct rec **slot = &live[next_random(&seed) % 16];
        if (!*slot && n_left > 0) {
            int n_prompt = 1 + (int)(next_random(&seed) % 79),
                n_out = (int)(next_random(&seed) % 60);
            const int32_t *prompt = next_random(&seed) % 2 ? shared : NULL;
            int n = cfg.max_num_seqs >= 3 ? 1 + (int)(next_random(&seed) % 3) : 1;
            *slot = world_make(&w, prompt, n_prompt, n_out, n);
            (*slot)->r.priority = (int)(next_random(&seed) % 3);
            (*slot)->r.params.p.ignore_eos = next_random(&seed) % 2;
            (*slot)->r.params.p.logprobs = next_random(&seed) % 2 ? 0 : SL_NONE;
            for (int i = 0; i < n_prompt && !prompt; i++)
                (*slot)->r.prompt[i] %= KVB_VOCAB;
            sched_add(world_sched(&w), &(*slot)->r);
            n_left--;
        } else if (*slot && next_random(&seed) % 64 == 0 && !rec_done(*slot)) {
            world_abort(&w, *slot);
        }
        for (int i = 0; i < 16; i++)
            if (live[i] && rec_done(live[i]) && !sched_holds(world_sched(&w), &live[i]->r)) {
                for (int c = 0; c < live[i]->r.n_seqs; c++)
                    check_output(&w, live[i], c, live[i]->n_out[c]);
                world_free(&w, live[i]);
                live[i] = NULL;
            }
        if (!world_step(&w) && n_left == 0 && core_idle(w.core))
            break;
    }
    assert_true(core_idle(w.core));
    *n_preempted += stats_of(&w).n_preemptions;
    *n_accepted += stats_of(&w).n_draft_accepted;
    for (int i = 0; i < 16; i++)
        if (live[i])
            world_free(&w, live[i]);
    assert_int_equal(stats_of(&w).n_blocks_used, 0);
    world_fini(&w);
}

static void soak(void **state)
{
    uint64_t n_preempted = 0, n_accepted = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++)
        soak_once(seed * 1000003, &n_preempted, &n_accepted);
    print_message("soak: %llu preemptions, %llu guesses kept\n", (unsigned long long)n_preempted,
                  (unsigned long long)n_accepted);
    assert_true(n_preempted > 100 && n_accepted > 1000);
}

/* ---- what pays --------------------------------------------------------------------------------
 */

static void learn(struct draft_cost *c, double fixed_ns, double row_ns)
{
    for (int rows = 1; rows <= 2048; rows++)
        for (int i = 0; i < 4; i++)
            cost_curve_add(&c->step, rows, fixed_ns + row_ns * rows);
}

static struct draft_case case_of(int n_seqs, float acceptance, int n_prompt_rows)
{
    struct draft_case k = {
        .n_rows = n_seqs + n_prompt_rows, .n_decodes = n_seqs, .max_rows = 2048, .max_tokens = 5};
    k.level[draft_level(acceptance)] = n_seqs;
    return k;
}

static int chosen(struct draft_cost *c, const struct draft_case *k, float acceptance)
{
    int t = draft_choose(c, k);
    return t == DRAFT_NONE ? 0 : draft_count(t, draft_level(acceptance), k->max_tokens);
}

/* Rows are free up to a point, then each costs: guesses fade as the batch grows, or as they prove
 * wrong, and are tried again rarely. */
static void choice(void **state)
{
    struct draft_cost c = {0};
    int before = 100;
    (void)state;
    learn(&c, 1e6, 3e4);
    for (int n = 1; n <= 512; n *= 2) {
        struct draft_case k = case_of(n, 0.8f, 0);
        int count = chosen(&c, &k, 0.8f);
        assert_true(count <= before);
        before = count;
    }
    assert_int_equal(before, 0);
    struct draft_case one = case_of(1, 0.8f, 0), bad = case_of(1, 0.02f, 0);
    assert_true(chosen(&c, &one, 0.8f) >= 4);
    assert_int_equal(chosen(&c, &bad, 0.02f), 0);
    struct draft_case crowd = case_of(64, 0.5f, 0);
    int n_tries = 0;
    for (int i = 0; i < 2560; i++)
        n_tries += chosen(&c, &crowd, 0.5f) > 0;
    assert_true(n_tries <= 10);
    for (int i = 0; i < 64; i++) /* guesses that are dear to make */
        cost_curve_add(&c.call, 1, 3e6);
    assert_int_equal(chosen(&c, &one, 0.8f), 0);
}

static void curve(void **state)
{
    struct cost_curve c = {{0}};
    (void)state;
    assert_true(cost_curve_at(&c, 7) <= 0);
    cost_curve_add(&c, 4, 100);
    cost_curve_add(&c, 4, -5); /* a clock that went backwards */
    assert_true(fabs(cost_curve_at(&c, 8) - 100) < 1);
    assert_true(cost_curve_at(&c, 64) > 300); /* more rows than are free: as many times dearer */
    cost_curve_add(&c, 64, 700);
    assert_true(cost_curve_at(&c, 16) > 100 && cost_curve_at(&c, 16) < 700);
    cost_curve_add(&c, 64, 1e9); /* one slow step */
    assert_true(cost_curve_at(&c, 64) < 800);
    assert_true(cost_curve_at(&c, INT32_MAX) > 0 && cost_curve_at(&c, 0) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_and_faster),
        cmocka_unit_test(ends_inside_a_proposal),
        cmocka_unit_test(ends_at_the_limit),
        cmocka_unit_test(prefix_cache_holds_accepted_tokens),
        cmocka_unit_test(mixed_steps),
        cmocka_unit_test(soak),
        cmocka_unit_test(choice),
        cmocka_unit_test(curve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
