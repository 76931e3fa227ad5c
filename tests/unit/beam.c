/* Beam search and parallel sampling over shared blocks.
 *
 * On kv_backend a row's candidates depend on every cell that it sees, so a beam whose blocks were
 * shared, copied, given up or computed again wrongly goes another way than the plain search below,
 * which knows tokens only. Every step checks the scheduler and its pool.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kv_backend.h"
#include "sched_world.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_WIDTH = 8, MAX_LEN = 160, STOP_ID = 19 };

static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % n);
}

/* ---- the plain search ------------------------------------------------------------------------ */

struct path {
    int32_t tokens[MAX_LEN];
    int n, from; /* from: the beam that it continues */
    double sum, score;
    enum sl_finish finish;
};

/* transformers' loop for one prompt, over copies of whole sequences. */
struct plain {
    const struct kv_layout *layout;
    const struct request *r;
    int width, limit;
    struct path beam[MAX_WIDTH], done[2 * MAX_WIDTH + 2], cand[MAX_WIDTH * (MAX_WIDTH + 4)];
    int n_beams, n_done, n_cand;
};

static int by_sum(const void *x, const void *y)
{
    const struct path *a = x, *b = y;
    if (a->sum != b->sum)
        return a->sum > b->sum ? -1 : 1;
    if (a->from != b->from)
        return a->from - b->from;
    return a->tokens[a->n - 1] - b->tokens[b->n - 1];
}

static int by_score(const void *x, const void *y)
{
    const struct path *a = x, *b = y;
    return a->score > b->score ? -1 : a->score < b->score ? 1 : a->from - b->from;
}

static void continue_beam(struct plain *p, int b)
{
    static uint64_t chain[MAX_LEN];
    const struct path *beam = &p->beam[b];
    struct sl_logprob e[MAX_WIDTH + 4];
    int n = p->r->params.n_beam_top;
    for (int i = 0; i < beam->n; i++)
        chain[i] = kvb_chain(i ? chain[i - 1] : 0, beam->tokens[i]);
    kvb_candidates(kvb_seen(p->layout, chain, beam->n - 1), p->r->params.seed, n, e);
    for (int i = 0; i < n; i++) {
        struct path *c = &p->cand[p->n_cand++];
        *c = *beam;
        c->tokens[c->n++] = e[i].token;
        c->sum += (double)e[i].logprob;
        c->from = b;
        int n_out = c->n - p->r->n_prompt;
        bool may = n_out >= p->r->params.p.min_tokens;
        bool stop = may && ((e[i].token == WORLD_EOS && !p->r->params.p.ignore_eos) ||
                            (p->r->params.p.n_stop_token_ids && e[i].token == STOP_ID));
        c->finish = stop ? SL_STOP : c->n >= p->limit ? SL_LENGTH : SL_RUNNING;
    }
}

static double plain_score(const struct plain *p, double sum, int n_out)
{
    return sum / pow(n_out, (double)p->r->params.p.length_penalty);
}

/* One step; false: it is over. */
static bool plain_step(struct plain *p)
{
    const struct sl_sampling_params *sp = &p->r->params.p;
    p->n_cand = 0;
    for (int b = 0; b < p->n_beams; b++)
        continue_beam(p, b);
    qsort(p->cand, (size_t)p->n_cand, sizeof *p->cand, by_sum);
    int n_out = p->cand[0].n - p->r->n_prompt, n_next = 0;
    for (int i = 0; i < p->n_cand; i++) {
        struct path *c = &p->cand[i];
        if (c->finish == SL_RUNNING && n_next < p->width) {
            p->beam[n_next++] = *c;
        } else if (c->finish != SL_RUNNING && i < p->width) {
            c->score = plain_score(p, c->sum, n_out);
            c->from = 1000 + n_out * 100 + i; /* who came first goes first */
            p->done[p->n_done++] = *c;
        }
    }
    qsort(p->done, (size_t)p->n_done, sizeof *p->done, by_score);
    p->n_done = p->n_done < p->width ? p->n_done : p->width;
    p->n_beams = n_next;
    if (n_next == 0)
        return false;
    if (p->n_done < p->width)
        return true;
    int len = sp->early_stopping == SL_EARLY_NEVER && sp->length_penalty > 0
                  ? p->limit - p->r->n_prompt
                  : n_out;
    return sp->early_stopping != SL_EARLY_TRUE &&
           plain_score(p, p->beam[0].sum, len) > p->done[p->width - 1].score;
}

static void check_against_plain(const struct world *w, const struct rec *rec, int limit)
{
    struct plain *p = test_calloc(1, sizeof *p);
    const struct request *r = &rec->r;
    p->layout = &w->cfg.layout;
    p->r = r;
    p->width = r->n_seqs;
    p->limit = limit;
    p->n_beams = 1;
    p->beam[0].n = r->n_prompt;
    memcpy(p->beam[0].tokens, r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
    while (plain_step(p)) {}
    assert_int_equal(p->n_done, p->width);
    for (int i = 0; i < r->params.p.n; i++) {
        const struct path *want = &p->done[i];
        assert_int_equal(rec->finish[i], want->finish);
        assert_int_equal(rec->n_out[i], want->n - r->n_prompt);
        assert_memory_equal(rec->out[i], want->tokens + r->n_prompt,
                            (size_t)rec->n_out[i] * sizeof *rec->out[i]);
    }
    test_free(p);
}

/* ---- requests -------------------------------------------------------------------------------- */

struct beam_args {
    int width, n, n_prompt, max_tokens, min_tokens;
    float length_penalty;
    enum sl_early_stopping early;
    bool ignore_eos, stop_id;
    const int32_t *prompt;
};

static struct rec *make_beams(struct world *w, const struct beam_args *a)
{
    static const int32_t stops[] = {STOP_ID, WORLD_EOS};
    struct rec *rec = world_make(w, a->prompt, a->n_prompt, a->max_tokens, a->width);
    struct seq_params *p = &rec->r.params;
    p->p.use_beam_search = true;
    p->p.n = a->n;
    p->p.length_penalty = a->length_penalty;
    p->p.early_stopping = a->early;
    p->p.min_tokens = a->min_tokens;
    p->p.ignore_eos = a->ignore_eos;
    p->p.stop_token_ids = stops;
    p->p.n_stop_token_ids = a->stop_id;
    p->beam_width = a->width;
    p->n_beam_top = a->width + 1 + a->stop_id;
    struct sl_err err = {0};
    assert_int_equal(sched_prepare(&rec->r, &err), SL_OK);
    return rec;
}

static int max_of(const struct rec *rec)
{
    return rec->r.n_prompt + rec->r.params.max_tokens;
}

static struct world *make_world(struct world *w, const struct sched_config *cfg)
{
    world_init_on(w, cfg,
                  kv_backend_make(&cfg->layout, cfg->depth, cfg->max_num_seqs, cfg->max_model_len));
    return w;
}

static int n_used(struct world *w)
{
    struct sched_stats st;
    sched_get_stats(world_sched(w), &st);
    return st.n_blocks_used;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void one_search(void **state)
{
    (void)state;
    struct world w;
    struct sched_config cfg = world_config();
    make_world(&w, &cfg);
    for (int width = 1; width <= MAX_WIDTH; width++)
        for (int early = 0; early < 3; early++)
            for (int penalty = -1; penalty <= 2; penalty++) {
                struct beam_args a = {.width = width,
                                      .n = 1 + width / 2,
                                      .n_prompt = 5 + width,
                                      .max_tokens = 25,
                                      .length_penalty = (float)penalty,
                                      .early = (enum sl_early_stopping)early};
                struct rec *rec = make_beams(&w, &a);
                sched_add(world_sched(&w), &rec->r);
                world_run(&w, 1000);
                check_against_plain(&w, rec, max_of(rec));
                assert_int_equal(n_used(&w), 0);
                world_free(&w, rec);
            }
    world_fini(&w);
}

/* One beam is greedy decoding, whose tokens the candidates' first ones are. */
static void stops_and_limits(void **state)
{
    (void)state;
    struct world w;
    struct sched_config cfg = world_config();
    make_world(&w, &cfg);
    const struct beam_args all[] = {
        {.width = 4, .n = 4, .n_prompt = 9, .max_tokens = 1},
        {.width = 4, .n = 4, .n_prompt = 9, .max_tokens = 2, .length_penalty = 1},
        {.width = 4, .n = 2, .n_prompt = 9, .max_tokens = 40, .stop_id = true},
        {.width = 4, .n = 4, .n_prompt = 9, .max_tokens = 40, .min_tokens = 30, .stop_id = true},
        {.width = 4, .n = 4, .n_prompt = 9, .max_tokens = 40, .ignore_eos = true},
        {.width = 8, .n = 8, .n_prompt = 70, .max_tokens = 40, .length_penalty = 2, .early = 2},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct rec *rec = make_beams(&w, &all[i]);
        sched_add(world_sched(&w), &rec->r);
        world_run(&w, 1000);
        check_against_plain(&w, rec, max_of(rec));
        world_free(&w, rec);
    }
    /* only the prompt was asked for */
    struct beam_args a = {.width = 3, .n = 2, .n_prompt = 9, .max_tokens = 0};
    struct rec *rec = make_beams(&w, &a);
    sched_add(world_sched(&w), &rec->r);
    world_run(&w, 100);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rec->finish[i], SL_LENGTH);
        assert_int_equal(rec->n_out[i], 0);
    }
    world_fini(&w);
}

/* The cache cannot hold all beams to the end: they end where it is full, whatever else is there. */
static void the_cache_bounds_them(void **state)
{
    (void)state;
    struct world w;
    struct sched_config cfg = world_config();
    cfg.layout.n_blocks = 20;
    make_world(&w, &cfg);
    struct beam_args a = {.width = 4, .n = 4, .n_prompt = 18, .max_tokens = 60, .ignore_eos = true};
    struct rec *rec = make_beams(&w, &a);
    sched_add(world_sched(&w), &rec->r);
    world_run(&w, 1000);
    int limit = (4 + (20 - 4) / 4) * 4 + 1; /* the prompt's 4 full blocks once, 4 more a beam */
    check_against_plain(&w, rec, limit);
    sched_get_stats(world_sched(&w), &(struct sched_stats){0});
    assert_int_equal(n_used(&w), 0);
    world_fini(&w);
}

/* ---- at random ------------------------------------------------------------------------------- */

/* Guesses for the sampled requests, every third one wrong; beams get none. */
struct guesser {
    struct proposer p; /* first */
    const struct kv_layout *layout;
};

static void guess(struct proposer *p, struct draft_item *item, int n_items)
{
    int32_t tokens[MAX_LEN];
    for (int i = 0; i < n_items; i++) {
        struct sequence *q = item[i].seq;
        assert_null(q->req->beam);
        memcpy(tokens, q->tokens, (size_t)q->n_prompt * sizeof *tokens);
        expected_tokens(((struct guesser *)p)->layout, q, tokens, q->n_tokens + item[i].n);
        for (int j = 0; j < item[i].n; j++)
            item[i].token[j] = (tokens[q->n_tokens + j] + (rnd(3) == 0)) % KVB_VOCAB;
    }
}

static const struct proposer_ops guess_ops = {.propose = guess};

struct mix {
    int depth, n_blocks, budget, n_seqs;
    bool caching, window, guesses;
    enum sl_policy policy;
    bool priority;
};

static struct rec *add_random(struct world *w, int beam_percent)
{
    struct rec *rec;
    if ((int)rnd(100) < beam_percent) {
        int width = 1 + (int)rnd(w->cfg.max_num_seqs < MAX_WIDTH ? (uint32_t)w->cfg.max_num_seqs
                                                                 : MAX_WIDTH);
        struct beam_args a = {.width = width,
                              .n = 1 + (int)rnd((uint32_t)width),
                              .n_prompt = 1 + (int)rnd(40),
                              .max_tokens = 1 + (int)rnd(30),
                              .min_tokens = (int)rnd(4),
                              .length_penalty = (float)rnd(3),
                              .early = (enum sl_early_stopping)rnd(3),
                              .ignore_eos = rnd(3) == 0,
                              .stop_id = rnd(2) == 0};
        a.min_tokens = a.min_tokens < a.max_tokens ? a.min_tokens : a.max_tokens;
        rec = make_beams(w, &a);
    } else {
        rec = world_make(w, NULL, 1 + (int)rnd(40), 1 + (int)rnd(30), 1 + (int)rnd(4));
    }
    rec->r.priority = w->cfg.order == SL_ORDER_PRIORITY ? (int)rnd(3) : 0;
    sched_add(world_sched(w), &rec->r);
    return rec;
}

static void check_sampled(const struct world *w, const struct rec *rec)
{
    int32_t tokens[MAX_LEN];
    for (int i = 0; i < rec->r.n_seqs; i++) {
        memcpy(tokens, rec->r.prompt, (size_t)rec->r.n_prompt * sizeof *tokens);
        expected_tokens(&w->cfg.layout, rec->r.seq[i], tokens, rec->r.n_prompt + rec->n_out[i]);
        assert_memory_equal(rec->out[i], tokens + rec->r.n_prompt,
                            (size_t)rec->n_out[i] * sizeof *tokens);
    }
}

/* Longest that the cache holds, as the scheduler reckons it. */
static int bound(const struct world *w, const struct rec *rec)
{
    int size = w->cfg.layout.block_size, shared = rec->r.n_prompt / size;
    int n = (shared + (w->cfg.layout.n_blocks - shared) / rec->r.n_seqs) * size + 1;
    n = n <= rec->r.n_prompt ? rec->r.n_prompt + 1 : n;
    return n < max_of(rec) ? n : max_of(rec);
}

static uint64_t run_mix(const struct mix *m, int n_requests, uint64_t seed)
{
    struct world w;
    struct sched_config cfg = world_config();
    cfg.depth = m->depth;
    cfg.policy = m->policy;
    cfg.order = m->priority ? SL_ORDER_PRIORITY : SL_ORDER_FCFS;
    cfg.max_num_seqs = m->n_seqs;
    cfg.max_num_batched_tokens = m->budget;
    cfg.enable_prefix_caching = m->caching;
    cfg.layout.n_blocks = m->n_blocks;
    cfg.layout.n_host_blocks = m->n_blocks / 2;
    cfg.swap = cfg.offload = true;
    cfg.host_bytes_per_s = 1e12;
    cfg.token_ns = 1e6;
    cfg.max_model_len = MAX_LEN - 1;
    if (m->window) {
        cfg.layout.n_groups = 2;
        cfg.layout.group[1] = (struct kv_group){.n_layers = 2, .bytes_per_token = 256, .window = 9};
    }
    struct guesser g = {
        .p = {.ops = &guess_ops, .name = "guess", .max_tokens = 4, .vocab_size = KVB_VOCAB},
        .layout = &cfg.layout};
    g.p.fixed = true;
    cfg.proposer = m->guesses ? &g.p : NULL;
    make_world(&w, &cfg);
    rng_state = seed;
    int made = 0;
    for (int step = 0; made < n_requests || w.head; step++) {
        assert_true(step < 40 * n_requests + 4000);
        while (made < n_requests && w.n_live < 6 && rnd(3)) {
            add_random(&w, 60);
            made++;
        }
        (void)world_step(&w);
        for (struct rec *rec = w.head, *next; rec; rec = next) {
            next = rec->next;
            if (!rec_done(rec) && rnd(400) == 0)
                world_abort(&w, rec);
            if (!rec_done(rec) || sched_holds(world_sched(&w), &rec->r))
                continue;
            if (!rec->aborted && rec->r.params.beam_width)
                check_against_plain(&w, rec, bound(&w, rec));
            else if (!rec->aborted)
                check_sampled(&w, rec);
            world_free(&w, rec);
        }
    }
    while (world_step(&w)) {}
    struct sched_stats st;
    sched_get_stats(world_sched(&w), &st);
    assert_int_equal(st.n_blocks_used, 0);
    world_fini(&w);
    return st.n_preemptions;
}

static void random_mixes(void **state)
{
    (void)state;
    const char *rounds = getenv("SLUICE_BEAM_ROUNDS");
    int n = rounds ? (int)strtol(rounds, NULL, 10) : 1;
    uint64_t n_preempted = 0;
    for (int round = 0; round < n; round++)
        for (int i = 0; i < 96; i++) {
            struct mix m = {.depth = 1 << i % 3,
                            .n_blocks = i % 2 ? 26 : 400,
                            .budget = i % 5 < 2 ? 12 : 64,
                            .n_seqs = i % 7 < 3 ? 4 : 12,
                            .caching = i / 2 % 2,
                            .window = i / 4 % 2,
                            .guesses = i % 13 < 5,
                            .policy = i / 8 % 3 == 2 ? SL_POLICY_PREFILL_FIRST : SL_POLICY_MIXED,
                            .priority = i / 16 % 2};
            m.n_blocks = i % 11 == 0 ? 14 : m.n_blocks;
            n_preempted += run_mix(&m, 24, (uint64_t)(round * 1000 + i + 1));
        }
    print_message("%llu preemptions\n", (unsigned long long)n_preempted);
    assert_true(n_preempted > 100);
}

/* The host has no memory for an array, at any time: somebody may end with an error or wait, nobody
 * hangs, blocks and rows come back, nothing leaks. */
static void no_memory_while_running(void **state)
{
    (void)state;
    int n_failed = 0;
    for (int n = 1; n < 60; n++) {
        struct world w;
        struct sched_config cfg = world_config();
        cfg.layout.n_blocks = 60;
        make_world(&w, &cfg);
        for (int i = 0; i < 4; i++) { /* so that the step's result has its memory */
            struct beam_args a = {.width = 4, .n = 4, .n_prompt = 2, .max_tokens = 3};
            sched_add(world_sched(&w), &make_beams(&w, &a)->r);
        }
        world_run(&w, 100);
        while (w.head)
            world_free(&w, w.head);
        for (int i = 0; i < 4; i++) {
            struct beam_args a = {
                .width = 4, .n = 4, .n_prompt = 30 + 30 * i, .max_tokens = 38, .ignore_eos = true};
            sched_add(world_sched(&w), &make_beams(&w, &a)->r);
        }
        mem_fail_nth(n);
        world_run(&w, 4000);
        mem_fail_nth(0);
        assert_int_equal(n_used(&w), 0);
        for (const struct rec *rec = w.head; rec; rec = rec->next) {
            bool failed = rec->finish[0] == SL_ERROR;
            n_failed += failed;
            for (int i = 0; i < 4; i++)
                assert_true(rec->finish[i] == (failed ? SL_ERROR : SL_LENGTH));
            if (!failed)
                check_against_plain(&w, rec, bound(&w, rec));
        }
        world_fini(&w);
    }
    assert_true(n_failed > 3);
}

/* ---- what sharing saves ---------------------------------------------------------------------- */

/* Blocks that the request's running sequences name, and how many of them are different. */
static void count_blocks(const struct request *r, int n_blocks, long long *named, long long *held)
{
    bool *seen = test_calloc((size_t)n_blocks, sizeof *seen);
    for (int i = 0; i < r->n_seqs; i++) {
        const struct sequence *q = r->seq[i];
        for (int b = 0; q->state == SEQ_RUNNING && b < q->table[0].n; b++) {
            ++*named;
            *held += !seen[q->table[0].block[b]];
            seen[q->table[0].block[b]] = true;
        }
    }
    test_free(seen);
}

struct lengths {
    const char *name;
    int prompt, output; /* means */
};

/* Mean lengths with a spread of a half to twice as much. */
static int spread(int mean)
{
    return mean / 2 + (int)rnd((uint32_t)mean);
}

static double saved_by_sharing(const struct lengths *l, int width, bool beams)
{
    struct world w;
    struct sched_config cfg = world_config();
    cfg.max_num_seqs = 64;
    cfg.max_num_batched_tokens = 2048;
    cfg.max_model_len = 4096;
    cfg.enable_prefix_caching = false; /* only what the request itself shares */
    cfg.layout.block_size = 16;
    cfg.layout.n_blocks = 8192;
    make_world(&w, &cfg);
    long long named = 0, held = 0;
    rng_state = 7;
    for (int i = 0; i < 4; i++) {
        struct beam_args a = {.width = width,
                              .n = width,
                              .n_prompt = spread(l->prompt),
                              .max_tokens = spread(l->output),
                              .ignore_eos = true};
        struct rec *rec =
            beams ? make_beams(&w, &a) : world_make(&w, NULL, a.n_prompt, a.max_tokens, width);
        rec->r.params.eos_token = -1;
        sched_add(world_sched(&w), &rec->r);
    }
    while (world_step(&w))
        for (const struct rec *rec = w.head; rec; rec = rec->next)
            count_blocks(&rec->r, cfg.layout.n_blocks, &named, &held);
    world_fini(&w);
    return 1 - (double)held / (double)named;
}

/* The PagedAttention paper reports 6.1 to 9.8 % (parallel sampling) and 37.6 to 55.2 % (beams) on
 * Alpaca, 16.2 to 30.5 % and 44.3 to 66.3 % on ShareGPT. */
static void memory_saved(void **state)
{
    (void)state;
    static const struct lengths all[] = {{"Alpaca-like", 19, 58},
                                         {"ShareGPT-like", 161, 338},
                                         {"Azure conversation-like", 1155, 211}};
    print_message("blocks saved by sharing, of those that copies would take\n%-26s", "");
    print_message("sampling n=2   n=4    n=6   beams 2      4      6\n");
    for (int i = 0; i < 3; i++) {
        print_message("%-26s", all[i].name);
        double before = 0;
        for (int k = 0; k < 6; k++) {
            double saved = saved_by_sharing(&all[i], 2 + k % 3 * 2, k >= 3);
            print_message("%s%5.1f%%", k == 0 ? "     " : k == 3 ? "    " : " ", 100 * saved);
            assert_true(saved > 0.02 && saved < 0.9);
            assert_true(k == 3 || saved > before); /* more with more sequences */
            before = saved;
        }
        print_message("\n");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_search),
                                       cmocka_unit_test(stops_and_limits),
                                       cmocka_unit_test(the_cache_bounds_them),
                                       cmocka_unit_test(random_mixes),
                                       cmocka_unit_test(no_memory_while_running),
                                       cmocka_unit_test(memory_saved)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
