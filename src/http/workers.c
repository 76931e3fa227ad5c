/* SPDX-License-Identifier: Apache-2.0 */
#include "http/workers.h"

#include "base/mem.h"
#include "base/sync.h"

#include <pthread.h>

enum { MAX_WORKERS = 8 };

struct job_queue {
    struct job *head, **tail;
};

struct worker {
    struct workers *all;
    pthread_t thread;
    bool takes_large;
};

struct workers {
    struct mutex lock; /* guards what follows */
    struct cond more;
    struct job_queue small, large;
    bool stop;
    int n;
    struct worker worker[MAX_WORKERS];
};

static void queue_init(struct job_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
}

static void queue_push(struct job_queue *q, struct job *job)
{
    job->next = NULL;
    *q->tail = job;
    q->tail = &job->next;
}

static struct job *queue_pop(struct job_queue *q)
{
    struct job *job = q->head;
    if (job && !(q->head = job->next))
        q->tail = &q->head;
    return job;
}

static void *work(void *arg)
{
    struct worker *me = arg;
    struct workers *w = me->all;
    for (;;) {
        mutex_lock(&w->lock);
        struct job *job = NULL;
        for (;;) {
            if (me->takes_large)
                job = queue_pop(&w->large);
            if (!job)
                job = queue_pop(&w->small);
            if (job || w->stop)
                break;
            cond_wait(&w->more, &w->lock);
        }
        mutex_unlock(&w->lock);
        if (!job)
            return NULL;
        job->run(job);
    }
}

enum sl_status workers_create(struct workers **out, int n_threads, struct sl_err *err)
{
    struct workers *w = mem_zalloc(1, sizeof *w);
    if (!w)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for worker threads");
    mutex_init(&w->lock, LOCK_WORK);
    cond_init(&w->more);
    queue_init(&w->small);
    queue_init(&w->large);
    for (int i = 0; i < n_threads && i < MAX_WORKERS; i++) {
        w->worker[i] = (struct worker){.all = w, .takes_large = i == 0};
        if (pthread_create(&w->worker[i].thread, NULL, work, &w->worker[i])) {
            workers_destroy(&w);
            return SL_FAIL(err, SL_ENOMEM, "http: cannot start a worker thread");
        }
        pthread_setname_np(w->worker[i].thread, "sluice-text");
        w->n++;
    }
    *out = w;
    return SL_OK;
}

void workers_destroy(struct workers **ww)
{
    struct workers *w = *ww;
    *ww = NULL;
    if (!w)
        return;
    mutex_lock(&w->lock);
    w->stop = true;
    cond_broadcast(&w->more);
    mutex_unlock(&w->lock);
    for (int i = 0; i < w->n; i++)
        pthread_join(w->worker[i].thread, NULL);
    cond_fini(&w->more);
    mutex_fini(&w->lock);
    mem_free(w);
}

void workers_post(struct workers *w, struct job *job, bool large)
{
    mutex_lock(&w->lock);
    queue_push(large ? &w->large : &w->small, job);
    if (large)
        cond_broadcast(&w->more); /* only one of the sleepers may take it */
    else
        cond_signal(&w->more);
    mutex_unlock(&w->lock);
}
