/* pool: every item once, barriers hold, nothing is lost over many jobs, and idling is free.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/pool.h"
#include "base/limits.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <cmocka.h>

enum { N_ITEMS = 1000 };

struct job {
    struct pool *pool;
    int hits[N_ITEMS]; /* each item has one owner: plain ints, so TSan sees a double visit */
    atomic_int phase[3];
    atomic_int wrong;
    int n_threads;
};

static struct pool *make(int threads)
{
    struct pool *p = NULL;
    struct sl_err err = {0};
    assert_int_equal(pool_create(&p, threads, &err), SL_OK);
    assert_int_equal(pool_threads(p), threads);
    return p;
}

static void hit(void *ctx, int item, int thread)
{
    struct job *j = ctx;
    j->hits[item]++;
    if (thread < 0 || thread >= j->n_threads)
        atomic_fetch_add(&j->wrong, 1);
}

static void every_item_once(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 7};
    for (int t = 0; t < 4; t++) {
        static struct job j;
        memset(&j, 0, sizeof j);
        j.n_threads = threads[t];
        struct pool *p = make(threads[t]);
        for (int rep = 0; rep < 20; rep++)
            pool_for(p, N_ITEMS, hit, &j);
        for (int i = 0; i < N_ITEMS; i++)
            assert_int_equal(j.hits[i], 20);
        pool_for(p, 0, hit, &j);
        pool_for(p, 1, hit, &j);
        assert_int_equal(j.hits[0], 21);
        assert_int_equal(atomic_load(&j.wrong), 0);
        pool_destroy(&p);
        assert_null(p);
        pool_destroy(&p);
    }
}

/* Each thread counts itself in, and after the barrier must see everyone counted. */
static void three_phases(void *ctx, int thread, int n_threads)
{
    struct job *j = ctx;
    (void)thread;
    for (int i = 0; i < 3; i++) {
        atomic_fetch_add_explicit(&j->phase[i], 1, memory_order_relaxed);
        pool_barrier(j->pool);
        if (atomic_load_explicit(&j->phase[i], memory_order_relaxed) % n_threads)
            atomic_fetch_add(&j->wrong, 1);
        pool_barrier(j->pool);
    }
}

static void barriers_hold(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        static struct job j;
        memset(&j, 0, sizeof j);
        j.pool = make(threads);
        for (int rep = 0; rep < 100; rep++)
            pool_run(j.pool, three_phases, &j);
        assert_int_equal(atomic_load(&j.wrong), 0);
        assert_int_equal(atomic_load(&j.phase[2]), 100 * threads);
        pool_destroy(&j.pool);
    }
}

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void idle_is_free(void **state)
{
    (void)state;
    static struct job j;
    j.n_threads = 4;
    struct pool *p = make(4);
    pool_for(p, N_ITEMS, hit, &j);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* past the spinning */
    int64_t before = cpu_ns();
    nanosleep(&(struct timespec){.tv_nsec = 400000000}, NULL);
    assert_true(cpu_ns() - before < 400000000 / 200); /* 0.5 % of a core */
    pool_for(p, N_ITEMS, hit, &j);                    /* and it wakes up again */
    assert_int_equal(j.hits[N_ITEMS - 1], 2);
    pool_destroy(&p);
}

static void absurd_counts_and_no_memory(void **state)
{
    (void)state;
    struct pool *p = NULL;
    struct sl_err err = {0};
    assert_int_equal(pool_create(&p, 1000000, &err), SL_EINVAL);
    assert_string_equal(err.param, "threads");
    assert_null(p);
    err = (struct sl_err){0};
    mem_fail_nth(1);
    assert_int_equal(pool_create(&p, 2, &err), SL_ENOMEM);
    assert_null(p);
    mem_fail_nth(0);
    assert_int_equal(pool_create(&p, 0, NULL), SL_OK);
    assert_int_equal(pool_threads(p), limits_cores());
    pool_destroy(&p);
}

static void pages_are_zeroed_and_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4096, 5000, (2 << 20) - 1, 2 << 20, (5 << 20) + 3};
    for (int i = 0; i < 6; i++) {
        unsigned char *b = mem_pages(sizes[i]);
        assert_non_null(b);
        assert_int_equal((uintptr_t)b & (sizes[i] > 2 << 20 ? (2 << 20) - 1 : 4095), 0);
        assert_int_equal(b[0] | b[sizes[i] - 1], 0);
        memset(b, 1, sizes[i]);
        mem_pages_free(b, sizes[i]);
    }
    assert_null(mem_pages(SIZE_MAX - 5));
    mem_pages_free(NULL, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_once),
        cmocka_unit_test(barriers_hold),
        cmocka_unit_test(idle_is_free),
        cmocka_unit_test(absurd_counts_and_no_memory),
        cmocka_unit_test(pages_are_zeroed_and_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
