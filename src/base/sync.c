/* SPDX-License-Identifier: Apache-2.0 */
#include "base/sync.h"

#include "base/status.h"

#include <time.h>

#ifndef NDEBUG
static _Thread_local unsigned held; /* bit r: this thread holds a lock of rank r */
#define RANK_TAKE(m)                         \
    do {                                     \
        SL_ASSERT((held >> (m)->rank) == 0); \
        held |= 1u << (m)->rank;             \
    } while (0)
#define RANK_GIVE(m) (held &= ~(1u << (m)->rank))
#else
#define RANK_TAKE(m) ((void)0)
#define RANK_GIVE(m) ((void)0)
#endif

void mutex_init(struct mutex *m, enum lock_rank rank)
{
    m->rank = rank;
    SL_ASSERT(pthread_mutex_init(&m->m, NULL) == 0);
}

void mutex_fini(struct mutex *m)
{
    pthread_mutex_destroy(&m->m);
}

void mutex_lock(struct mutex *m)
{
    RANK_TAKE(m);
    SL_ASSERT(pthread_mutex_lock(&m->m) == 0);
}

void mutex_unlock(struct mutex *m)
{
    RANK_GIVE(m);
    SL_ASSERT(pthread_mutex_unlock(&m->m) == 0);
}

void cond_init(struct cond *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    SL_ASSERT(pthread_cond_init(&c->c, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

void cond_fini(struct cond *c)
{
    pthread_cond_destroy(&c->c);
}

void cond_wait(struct cond *c, struct mutex *m)
{
    pthread_cond_wait(&c->c, &m->m);
}

bool cond_wait_until(struct cond *c, struct mutex *m, int64_t deadline_ns)
{
    struct timespec ts = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    return pthread_cond_timedwait(&c->c, &m->m, &ts) == 0;
}

void cond_signal(struct cond *c)
{
    pthread_cond_signal(&c->c);
}

void cond_broadcast(struct cond *c)
{
    pthread_cond_broadcast(&c->c);
}
