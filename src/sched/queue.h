/* queue.h - sequences in scheduling order: by priority if that counts, then arrival, then choice.
 *
 * A sorted, intrusive, doubly linked list: new requests are put in from the tail and preempted
 * ones from the head, so both end their search at once unless priorities differ. With priorities a
 * push may walk the queue, which is bounded (--max-num-queued-reqs).
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread. */
#ifndef SL_SCHED_QUEUE_H
#define SL_SCHED_QUEUE_H

#include "core/sequence.h"

struct queue {
    struct sequence *head, *tail;
    int n;
    bool by_priority;
};

bool queue_before(const struct queue *q, const struct sequence *a, const struct sequence *b);
void queue_push_late(struct queue *q, struct sequence *s);  /* searched from the tail */
void queue_push_early(struct queue *q, struct sequence *s); /* searched from the head */
void queue_remove(struct queue *q, struct sequence *s);
void queue_check(const struct queue *q); /* asserts order and links */

#endif
