/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/queue.h"

bool queue_before(const struct queue *q, const struct sequence *a, const struct sequence *b)
{
    const struct request *x = a->req, *y = b->req;
    if (q->by_priority && x->priority != y->priority)
        return x->priority < y->priority;
    if (x->number != y->number)
        return x->number < y->number;
    return a->index < b->index;
}

/* after NULL: at the head */
static void link_after(struct queue *q, struct sequence *after, struct sequence *s)
{
    s->prev = after;
    s->next = after ? after->next : q->head;
    if (after)
        after->next = s;
    else
        q->head = s;
    if (s->next)
        s->next->prev = s;
    else
        q->tail = s;
    q->n++;
}

void queue_push_late(struct queue *q, struct sequence *s)
{
    struct sequence *after = q->tail;
    while (after && queue_before(q, s, after))
        after = after->prev;
    link_after(q, after, s);
}

void queue_push_early(struct queue *q, struct sequence *s)
{
    struct sequence *before = q->head;
    while (before && queue_before(q, before, s))
        before = before->next;
    link_after(q, before ? before->prev : q->tail, s);
}

void queue_remove(struct queue *q, struct sequence *s)
{
    if (s->prev)
        s->prev->next = s->next;
    else
        q->head = s->next;
    if (s->next)
        s->next->prev = s->prev;
    else
        q->tail = s->prev;
    s->prev = s->next = NULL;
    q->n--;
}

void queue_check(const struct queue *q)
{
    int n = 0;
    const struct sequence *before = NULL;
    for (const struct sequence *s = q->head; s; before = s, s = s->next) {
        SL_ASSERT(s->prev == before && ++n <= q->n);
        SL_ASSERT(!before || queue_before(q, before, s));
    }
    SL_ASSERT(q->tail == before && n == q->n);
}
