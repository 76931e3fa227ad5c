/* sync.h - mutexes with ranks, and condition variables on the monotonic clock.
 *
 * A thread takes locks in rising rank only; debug builds assert it. Adding a lock means adding its
 * rank to the enum, which is the whole locking order of the project.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_SYNC_H
#define SL_BASE_SYNC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum lock_rank {
    LOCK_SERVER = 1, /* http/: the server's lifecycle */
    LOCK_WORK,       /* http/: the tokenizing pool's queue */
    LOCK_SUBMIT,     /* engine/: http threads -> engine */
    LOCK_EVENTS,     /* engine/: one request's event queue */
    LOCK_LOOP,       /* http/: a loop's wake list */
    LOCK_POOL,       /* backend/cpu: compute threads going to sleep */
    LOCK_CACHE,      /* text/: caches inside immutable objects */
    LOCK_STRUCTURED, /* engine/: the library of grammars in the making */
    LOCK_GRAMMAR,    /* grammar/: leaves, splits, compiled grammars */
    LOCK_HUB,        /* hub/: one fetch's workers */
    N_LOCK_RANKS
};

struct mutex {
    pthread_mutex_t m;
    enum lock_rank rank;
};

struct cond {
    pthread_cond_t c;
};

void mutex_init(struct mutex *m, enum lock_rank rank);
void mutex_fini(struct mutex *m);
void mutex_lock(struct mutex *m);
void mutex_unlock(struct mutex *m);

void cond_init(struct cond *c);
void cond_fini(struct cond *c);
void cond_wait(struct cond *c, struct mutex *m);
/* deadline_ns: clock_mono_ns() time. false: it passed. */
bool cond_wait_until(struct cond *c, struct mutex *m, int64_t deadline_ns);
void cond_signal(struct cond *c);
void cond_broadcast(struct cond *c);

#endif
