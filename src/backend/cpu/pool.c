/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/pool.h"

#include "backend/cpu/affinity.h"
#include "base/limits.h"
#include "base/clock.h"
#include "base/mem.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POOL_THREADS_MAX = 512, SPIN_NS = 60 * 1000 };

/* A counter that threads wait on. Whoever raises it publishes what it wrote before; whoever sees
 * the new value may read that. `sleepers` lets the raiser skip the system call; both are accessed
 * in sequentially consistent order, so a waiter is seen or sees the new value. */
struct gate {
    _Alignas(64) atomic_uint value;
    atomic_int sleepers;
};

struct pool {
    struct gate start;               /* raised by the caller: a job is there */
    struct gate done;                /* raised by the last worker to finish */
    struct gate barrier;             /* raised by the last thread to arrive */
    _Alignas(64) atomic_int left;    /* workers still in the job */
    _Alignas(64) atomic_int arrived; /* at the barrier */
    _Alignas(64) atomic_int next_item;
    _Alignas(64) int n_threads;
    bool stop;     /* written before start is raised, read after */
    pool_fn fn;    /* likewise */
    void *ctx;     /* likewise */
    int n_started; /* workers to join */
    struct worker {
        struct pool *pool;
        pthread_t thread;
        int index;
    } worker[];
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void gate_raise(struct gate *g)
{
    atomic_fetch_add(&g->value, 1);
    if (atomic_load(&g->sleepers))
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Returns once the value is no longer `old`. */
static void gate_wait(struct gate *g, unsigned old)
{
    int64_t give_up = 0;
    for (int i = 1; atomic_load_explicit(&g->value, memory_order_acquire) == old; i++) {
        cpu_relax();
        if (i & 63)
            continue;
        int64_t now = clock_mono_ns();
        if (!give_up)
            give_up = now + SPIN_NS;
        else if (now > give_up)
            break;
    }
    while (atomic_load_explicit(&g->value, memory_order_acquire) == old) {
        atomic_fetch_add(&g->sleepers, 1);
        syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
        atomic_fetch_sub(&g->sleepers, 1);
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    for (unsigned seen = 0;; seen++) {
        gate_wait(&p->start, seen);
        if (p->stop)
            return NULL;
        p->fn(p->ctx, w->index, p->n_threads);
        if (atomic_fetch_sub(&p->left, 1) == 1)
            gate_raise(&p->done);
    }
}

/* Thread names show in top -H and gdb. Binding is advice: a refusal changes nothing. */
static bool start_workers(struct pool *p, struct sl_err *err)
{
    struct affinity *aff = affinity_create(p->n_threads);
    for (int i = 1; i < p->n_threads; i++) {
        struct worker *w = &p->worker[i];
        *w = (struct worker){.pool = p, .index = i};
        int rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc) {
            affinity_destroy(&aff);
            SL_FAIL(err, SL_ENOMEM, "cannot start compute thread %d of %d", i + 1, p->n_threads);
            return false;
        }
        pthread_setname_np(w->thread, "sluice-cpu");
        affinity_bind(aff, w->thread, i);
        p->n_started = i;
    }
    affinity_destroy(&aff);
    return true;
}

enum sl_status pool_create(struct pool **out, int threads, struct sl_err *err)
{
    int n = threads > 0 ? threads : limits_cores();
    if (n > POOL_THREADS_MAX && threads > 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "threads", "threads is %d; at most %d are possible",
                             threads, POOL_THREADS_MAX);
    if (n > POOL_THREADS_MAX)
        n = POOL_THREADS_MAX;
    struct pool *p = mem_aligned(1, sizeof *p + (size_t)n * sizeof p->worker[0], 64);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "no memory for %d compute threads", n);
    *p = (struct pool){.n_threads = n};
    if (!start_workers(p, err)) {
        pool_destroy(&p);
        return SL_ENOMEM;
    }
    *out = p;
    return SL_OK;
}

void pool_destroy(struct pool **pp)
{
    struct pool *p = *pp;
    if (!p)
        return;
    p->stop = true;
    gate_raise(&p->start);
    for (int i = 1; i <= p->n_started; i++)
        pthread_join(p->worker[i].thread, NULL);
    mem_free(p);
    *pp = NULL;
}

int pool_threads(const struct pool *p)
{
    return p->n_threads;
}

void pool_run(struct pool *p, pool_fn fn, void *ctx)
{
    atomic_store_explicit(&p->next_item, 0, memory_order_relaxed);
    if (p->n_threads == 1) {
        fn(ctx, 0, 1);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    atomic_store_explicit(&p->left, p->n_threads - 1, memory_order_relaxed);
    unsigned done = atomic_load_explicit(&p->done.value, memory_order_relaxed);
    gate_raise(&p->start);
    fn(ctx, 0, p->n_threads);
    gate_wait(&p->done, done);
}

struct items {
    struct pool *pool;
    pool_item_fn fn;
    void *ctx;
    int n;
};

static void run_items(void *arg, int thread, int n_threads)
{
    struct items *it = arg;
    (void)n_threads;
    for (int i; (i = pool_next_item(it->pool)) < it->n;)
        it->fn(it->ctx, i, thread);
}

void pool_for(struct pool *p, int n_items, pool_item_fn fn, void *ctx)
{
    struct items it = {p, fn, ctx, n_items};
    if (n_items <= 1 || p->n_threads == 1) { /* not worth waking anyone */
        for (int i = 0; i < n_items; i++)
            fn(ctx, i, 0);
        return;
    }
    pool_run(p, run_items, &it);
}

int pool_next_item(struct pool *p)
{
    return atomic_fetch_add_explicit(&p->next_item, 1, memory_order_relaxed);
}

void pool_barrier(struct pool *p)
{
    if (p->n_threads == 1)
        return;
    unsigned phase = atomic_load_explicit(&p->barrier.value, memory_order_relaxed);
    if (atomic_fetch_add(&p->arrived, 1) == p->n_threads - 1) {
        /* The last one in: nobody touches `arrived` again before it sees the gate raised. */
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        gate_raise(&p->barrier);
        return;
    }
    gate_wait(&p->barrier, phase);
}
