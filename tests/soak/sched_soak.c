/* The scheduler and its pool under random operations, against naive models.
 *
 * SLUICE_SOAK_OPS sets the number of operations of each part (default: some seconds' worth; the
 * figure that counts is a million), SLUICE_SOAK_SEED the seed, which is printed.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kv_backend.h"
#include "sched_world.h"

#include "sched/kvpool.h"

#include <stdio.h>
#include <stdlib.h>

static long n_ops = 500000;
static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % n);
}

static bool chance(int percent)
{
    return rnd(100) < (uint32_t)percent;
}

/* ---- the pool -------------------------------------------------------------------------------- */

enum { P_BLOCKS = 24, P_SIZE = 2, P_DEEP = 6, P_HOLDERS = 12 };

/* A naive pool: for each block its count, its whole content (the path of tokens from the root), and
 * when it was freed. */
struct naive_block {
    int ref;
    bool known;
    int n; /* tokens on the path */
    int32_t key, path[P_DEEP * P_SIZE];
    uint64_t freed; /* order among free blocks; the least is reused first */
};

struct holder { /* as a sequence: blocks of one path */
    int n;
    int32_t key, tokens[P_DEEP * P_SIZE], blk[P_DEEP];
    struct kv_chain chain;
};

struct pool_world {
    struct kvpool *pool;
    struct naive_block block[P_BLOCKS];
    struct holder holder[P_HOLDERS];
    uint64_t now, never; /* counters of `freed`: upwards, and downwards for unknown contents */
};

static int naive_free(const struct pool_world *w)
{
    int n = 0;
    for (int i = 0; i < P_BLOCKS; i++)
        n += w->block[i].ref == 0;
    return n;
}

static int naive_next(const struct pool_world *w)
{
    int best = -1;
    for (int i = 0; i < P_BLOCKS; i++)
        if (w->block[i].ref == 0 && (best < 0 || w->block[i].freed < w->block[best].freed))
            best = i;
    return best;
}

static bool naive_has(const struct pool_world *w, int32_t key, const int32_t *path, int n)
{
    for (int i = 0; i < P_BLOCKS; i++) {
        const struct naive_block *b = &w->block[i];
        if (b->known && b->key == key && b->n == n &&
            memcmp(b->path, path, (size_t)n * sizeof *path) == 0)
            return true;
    }
    return false;
}

static void naive_drop(struct pool_world *w, int32_t blk)
{
    struct naive_block *b = &w->block[blk];
    if (--b->ref == 0)
        b->freed = b->known ? ++w->now : --w->never;
}

static void holder_release(struct pool_world *w, struct holder *h)
{
    for (int i = h->n - 1; i >= 0; i--) {
        kvpool_drop(w->pool, 0, h->blk[i]);
        naive_drop(w, h->blk[i]);
    }
    h->n = 0;
}

static void holder_grow(struct pool_world *w, struct holder *h)
{
    int32_t blk = -1;
    enum sl_status st = kvpool_take(w->pool, 0, &blk);
    int want = naive_next(w);
    if (want < 0) {
        assert_int_equal(st, SL_EAGAIN);
        return;
    }
    assert_int_equal(st, SL_OK);
    assert_int_equal(blk, want);
    struct naive_block *b = &w->block[blk];
    *b = (struct naive_block){.ref = 1};
    h->blk[h->n++] = blk;
    if (h->chain.broken || chance(10))
        h->chain.broken = true; /* not every block becomes full */
    else {
        kvpool_enter(w->pool, &h->chain, h->key, h->tokens + (ptrdiff_t)(h->n - 1) * P_SIZE, &blk);
        if (!h->chain.broken) {
            b->known = true;
            b->key = h->key;
            b->n = h->n * P_SIZE;
            memcpy(b->path, h->tokens, (size_t)b->n * sizeof *b->path);
        }
    }
}

static void holder_begin(struct pool_world *w, struct holder *h)
{
    int32_t room[P_DEEP];
    struct block_table t = {.block = room, .cap = P_DEEP};
    for (int i = 0; i < P_DEEP * P_SIZE; i++)
        h->tokens[i] = (int32_t)rnd(2);
    h->key = (int32_t)rnd(3);
    int want = 0, n_free = 0;
    while (want < P_DEEP && naive_has(w, h->key, h->tokens, (want + 1) * P_SIZE))
        want++;
    int n = kvpool_match(w->pool, h->key, h->tokens, P_DEEP);
    assert_int_equal(n, want);
    kvpool_adopt(w->pool, n, &t, &h->chain);
    for (int i = 0; i < n; i++) {
        struct naive_block *b = &w->block[room[i]];
        assert_true(b->known && b->key == h->key && b->n == (i + 1) * P_SIZE);
        assert_memory_equal(b->path, h->tokens, (size_t)b->n * sizeof *b->path);
        n_free += b->ref == 0;
        b->ref++;
        h->blk[i] = room[i];
    }
    h->n = n;
    assert_true(n_free <= n);
}

static void pool_against_model(void **state)
{
    (void)state;
    struct kv_layout layout = {.n_groups = 1, .block_size = P_SIZE, .n_blocks = P_BLOCKS};
    struct pool_world w = {.now = UINT64_MAX / 2, .never = UINT64_MAX / 2};
    assert_int_equal(
        kvpool_create(&w.pool,
                      &(struct kvpool_config){
                          .layout = layout, .max_len = 100, .max_seqs = 8, .prefix_caching = true},
                      NULL),
        SL_OK);
    assert_int_equal(kvpool_key_take(w.pool, "one", 3), 1);
    assert_int_equal(kvpool_key_take(w.pool, "two", 3), 2);
    for (int i = 0; i < P_BLOCKS; i++)
        w.block[i].freed = (uint64_t)i;
    for (long op = 0; op < n_ops * 6; op++) {
        struct holder *h = &w.holder[rnd(P_HOLDERS)];
        if (h->n == 0)
            holder_begin(&w, h);
        else if (h->n < P_DEEP && chance(60))
            holder_grow(&w, h);
        else if (chance(50))
            holder_release(&w, h);
        else if (chance(1)) {
            kvpool_forget(w.pool);
            for (int i = 0; i < P_BLOCKS; i++)
                w.block[i].known = false;
        }
        assert_int_equal(kvpool_n_free(w.pool, 0), naive_free(&w));
        for (int i = 0; i < P_BLOCKS; i++)
            assert_int_equal(kvpool_refs(w.pool, 0, i), w.block[i].ref);
        kvpool_check(w.pool);
    }
    for (int i = 0; i < P_HOLDERS; i++)
        holder_release(&w, &w.holder[i]);
    assert_int_equal(kvpool_n_free(w.pool, 0), P_BLOCKS);
    kvpool_check(w.pool);
    kvpool_destroy(&w.pool);
    printf("pool: %ld operations\n", n_ops * 6);
}

/* ---- the scheduler --------------------------------------------------------------------------- */

enum { S_MAX_LEN = 96, S_STOP_IDS = 10 };

/* What each choice must give: tokens, and why it ends. */
struct expect {
    int n_out;
    enum sl_finish finish;
    int32_t tokens[S_MAX_LEN + 1];
};

static enum sl_finish naive_end(const struct sequence *q, const int32_t *out, int n, int max_len)
{
    const struct sl_sampling_params *p = &q->req->params.p;
    int32_t last = out[n - 1];
    if (n < p->min_tokens)
        return q->n_prompt + n >= max_len ? SL_LENGTH : SL_RUNNING;
    if (last == WORLD_EOS && !p->ignore_eos)
        return SL_STOP;
    for (int i = 0; i < p->n_stop_token_ids; i++)
        if (last == p->stop_token_ids[i])
            return SL_STOP;
    return q->n_prompt + n >= max_len || n >= q->req->params.max_tokens ? SL_LENGTH : SL_RUNNING;
}

static void expect_make(struct expect *e, const struct world *w, const struct sequence *q,
                        int max_len)
{
    memcpy(e->tokens, q->req->prompt, (size_t)q->n_prompt * sizeof *e->tokens);
    expected_tokens(&w->cfg.layout, q, e->tokens, max_len);
    e->finish = SL_LENGTH;
    e->n_out = 0;
    if (q->req->params.max_tokens == 0)
        return;
    do {
        e->n_out++;
        e->finish = naive_end(q, e->tokens + q->n_prompt, e->n_out, max_len);
    } while (e->finish == SL_RUNNING);
}

static struct sched_config random_config(void)
{
    static const enum sl_policy policies[] = {SL_POLICY_MIXED,  SL_POLICY_MIXED,
                                              SL_POLICY_MIXED,  SL_POLICY_PREFILL_FIRST,
                                              SL_POLICY_STATIC, SL_POLICY_REQUEST};
    struct sched_config c = {.policy = policies[rnd(6)],
                             .order = chance(50) ? SL_ORDER_FCFS : SL_ORDER_PRIORITY,
                             .max_num_seqs = 1 + (int)rnd(10),
                             .max_num_batched_tokens = 1 + (int)rnd(60),
                             .max_model_len = 20 + (int)rnd(S_MAX_LEN - 20),
                             .max_num_partial_prefills = 1 + (int)rnd(3),
                             .max_long_partial_prefills = 1 + (int)rnd(2),
                             .long_prefill_token_threshold = chance(50) ? 0 : 4 + (int)rnd(20),
                             .enable_prefix_caching = chance(80),
                             .depth = 1 << rnd(3)};
    c.layout.n_groups = 1 + (int)rnd(2);
    c.layout.block_size = 1 + (int)rnd(6);
    c.layout.n_blocks = 4 + (int)rnd(60);
    if (chance(60)) { /* host memory, for one use of it or both */
        c.layout.n_host_blocks = 1 + (int)rnd(40);
        c.swap = chance(70);
        c.offload = chance(70);
        c.host_bytes_per_s = 1e9;
        c.token_ns = chance(80) ? 1e3 : 1; /* swapping costs less than computing, or more */
        c.layout.group[0].bytes_per_token = c.layout.group[1].bytes_per_token = 64;
    }
    if (c.layout.n_groups == 2)
        c.layout.group[1].window = 1 + (int)rnd(20);
    return c;
}

/* Prompts that begin alike in several ways. */
static struct rec *add_random(struct world *w, int max_len)
{
    static const int32_t stop_ids[S_STOP_IDS] = {3, 13, 23, 33, 43, 53, 63, 73, 83, 93};
    static const char *const salts[] = {NULL, NULL, NULL, "a", "b"};
    int32_t prompt[S_MAX_LEN];
    int n = 1 + (int)rnd((uint32_t)max_len - 1);
    int family = (int)rnd(4), same = (int)rnd((uint32_t)n + 1);
    for (int i = 0; i < n; i++)
        prompt[i] = i < same ? (family * 50 + i) % KVB_VOCAB : (int32_t)rnd(KVB_VOCAB);
    int max_tokens = chance(5) ? 0 : 1 + (int)rnd(40);
    struct rec *rec =
        world_make(w, prompt, n, max_tokens > 0 ? max_tokens : 1, chance(70) ? 1 : 1 + (int)rnd(6));
    struct seq_params *p = &rec->r.params;
    p->max_tokens = max_tokens;
    p->p.ignore_eos = chance(30);
    p->p.min_tokens = chance(20) && max_tokens ? (int)rnd((uint32_t)max_tokens) : 0;
    if (chance(30)) {
        p->p.stop_token_ids = stop_ids;
        p->p.n_stop_token_ids = S_STOP_IDS;
    }
    if (chance(10))
        p->p.prompt_logprobs = 1;
    if (chance(20))
        p->p.logprobs = 0;
    rec->r.priority = (int)rnd(4);
    rec->r.cache_salt = salts[rnd(5)];
    struct expect *e = test_calloc((size_t)rec->r.n_seqs, sizeof *e);
    for (int i = 0; i < rec->r.n_seqs; i++)
        expect_make(&e[i], w, rec->r.seq[i], max_len);
    rec->mark = e;
    sched_add(world_sched(w), &rec->r);
    return rec;
}

/* A choice that ended by itself is exactly as expected; one that was cancelled is a beginning. */
static void check_output(const struct rec *rec, int i, bool cancelled)
{
    const struct expect *e = (const struct expect *)rec->mark + i;
    assert_true(rec->n_out[i] <= e->n_out);
    assert_memory_equal(rec->out[i], e->tokens + rec->r.n_prompt,
                        (size_t)rec->n_out[i] * sizeof(int32_t));
    if (cancelled)
        return;
    assert_int_equal(rec->n_out[i], e->n_out);
    assert_int_equal(rec->finish[i], e->finish);
    if (i == 0 && rec->r.params.p.prompt_logprobs != SL_NONE)
        assert_int_equal(rec->n_plp[0], rec->r.n_prompt - 1);
}

static void free_done(struct world *w)
{
    for (struct rec *rec = w->head, *next; rec; rec = next) {
        next = rec->next;
        if (!rec_done(rec) || sched_holds(world_sched(w), &rec->r))
            continue;
        for (int i = 0; i < rec->r.n_seqs; i++)
            check_output(rec, i, rec->r.seq[i]->finish == SL_ABORT);
        test_free(rec->mark);
        world_free(w, rec);
    }
}

static bool before(const struct world *w, const struct rec *a, const struct rec *b)
{
    if (w->cfg.order == SL_ORDER_PRIORITY && a->r.priority != b->r.priority)
        return a->r.priority < b->r.priority;
    return a->r.number < b->r.number;
}

/* Nobody was admitted for the first time while somebody before him waits (the limit of long prompts
 * may let shorter ones pass, so it is not asked then). */
static void check_order(const struct world *w, int64_t since_ns)
{
    const struct rec *last = NULL;
    if (w->cfg.long_prefill_token_threshold || w->cfg.max_num_partial_prefills > 1)
        return;
    for (const struct rec *rec = w->head; rec; rec = rec->next)
        if (rec->r.seq[0]->first_scheduled_ns == since_ns && (!last || before(w, last, rec)))
            last = rec;
    for (const struct rec *rec = w->head; last && rec; rec = rec->next)
        if (rec->r.seq[0]->state == SEQ_WAITING && rec->r.seq[0]->first_scheduled_ns == 0 &&
            !rec->r.seq[0]->abort)
            assert_true(before(w, last, rec));
}

static void random_cancel(struct world *w)
{
    struct rec *rec = w->head;
    for (uint32_t n = rnd((uint32_t)w->n_live); n > 0; n--)
        rec = rec->next;
    if (rec_done(rec))
        return;
    struct sequence *q = rec->r.seq[rnd((uint32_t)rec->r.n_seqs)];
    if (chance(50))
        world_abort(w, rec);
    else if (chance(50))
        sched_abort_seq(world_sched(w), q, SL_ABORT);
    else if (q->state == SEQ_RUNNING || q->state == SEQ_WAITING)
        q->abort = true;
}

static void step_and_check(struct world *w)
{
    int64_t now = w->be->ops->now_ns(w->be);
    bool any = world_step(w);               /* checks the scheduler */
    assert_true(any || core_idle(w->core)); /* never stuck */
    check_order(w, now);
    free_done(w);
}

static long run_world(long ops, struct sched_stats *sum)
{
    struct world w;
    struct sched_config cfg = random_config();
    struct backend *be =
        kv_backend_make(&cfg.layout, cfg.depth, cfg.max_num_seqs, cfg.max_model_len);
    world_init_on(&w, &cfg, be);
    int max_len = sched_max_len(world_sched(&w));
    long op = 0;
    for (; op < ops; op++) {
        uint32_t what = rnd(100);
        if (what < 25 && w.n_live < 40 && max_len > 1)
            add_random(&w, max_len);
        else if (what < 29 && w.n_live > 0)
            random_cancel(&w);
        else if (what < 30)
            sched_reset_prefix_cache(world_sched(&w));
        else
            step_and_check(&w);
        sched_check(world_sched(&w));
    }
    /* No starvation: each step does at least one row's work for somebody. */
    long bound = 200 + (long)w.n_live * 6 * S_MAX_LEN * 4;
    while (!core_idle(w.core)) {
        assert_true(bound-- > 0);
        step_and_check(&w);
        op++;
    }
    free_done(&w);
    assert_null(w.head);
    struct sched_stats st;
    sched_get_stats(world_sched(&w), &st);
    sum->n_preemptions += st.n_preemptions;
    sum->n_swaps += st.n_swaps;
    sum->host_hits += st.host_hits;
    sum->prefix_hits += st.prefix_hits;
    sum->n_finished += st.n_finished;
    world_fini(&w); /* asserts that all memory came back */
    return op;
}

static void scheduler_against_model(void **state)
{
    (void)state;
    struct sched_stats sum = {0};
    long done = 0, n_worlds = 0;
    for (; done < n_ops; n_worlds++) {
        uint64_t seed = rng_state;
        done += run_world(400 + rnd(800), &sum);
        if (getenv("SLUICE_SOAK_VERBOSE"))
            printf("world %ld: seed %llu\n", n_worlds, (unsigned long long)seed);
    }
    printf("scheduler: %ld operations in %ld worlds, %llu choices, %llu preemptions, %llu of them "
           "to host memory, %llu prefix tokens, %llu from host memory\n",
           done, n_worlds, (unsigned long long)sum.n_finished,
           (unsigned long long)sum.n_preemptions, (unsigned long long)sum.n_swaps,
           (unsigned long long)sum.prefix_hits, (unsigned long long)sum.host_hits);
    assert_true(sum.n_preemptions > (uint64_t)n_worlds && sum.prefix_hits > (uint64_t)n_worlds);
    assert_true(sum.n_swaps > (uint64_t)n_worlds && sum.host_hits > (uint64_t)n_worlds);
}

int main(void)
{
    const char *ops = getenv("SLUICE_SOAK_OPS"), *seed = getenv("SLUICE_SOAK_SEED");
    if (ops)
        n_ops = strtol(ops, NULL, 10);
    rng_state = seed ? strtoull(seed, NULL, 10) : 20240726;
    printf("seed %llu, %ld operations\n", (unsigned long long)rng_state, n_ops);
    fflush(stdout);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_against_model),
        cmocka_unit_test(scheduler_against_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
