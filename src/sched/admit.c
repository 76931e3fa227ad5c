/* From waiting to running and back.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include <string.h>

/* Its own buffer instead of the request's prompt, with room for what comes. */
static bool own_tokens(struct sched *s, struct sequence *q)
{
    if (q->tokens != q->req->prompt)
        return true;
    int cap;
    int32_t *t = intpool_take(&s->ints, q->n_prompt + 1, &cap);
    if (!t)
        return false;
    memcpy(t, q->tokens, (size_t)q->n_tokens * sizeof *t);
    q->tokens = t;
    q->cap_tokens = cap;
    return true;
}

bool admit(struct sched *s, struct sequence *q, int reserve, int spare)
{
    if (q->n_inflight > 0 || s->n_free_rows - s->rows_reserved - s->rows_promised < beam_rows(q))
        return false; /* preempted while its token was computed: that comes first */
    if (q->req->beam && !beam_settled(q))
        return false;
    if (!own_tokens(s, q) || !blocks_admit(s, q, reserve, spare + beam_extra_blocks(s, q)))
        return false;
    queue_remove(&s->waiting, q);
    q->state = SEQ_RUNNING;
    q->row = row_take(s);
    queue_push_late(&s->running, q);
    beam_admitted(s, q);
    if (q->n_preempted == 0) {
        q->n_cached = q->n_computed;
        s->stats.prompt_tokens_cached += (uint64_t)q->n_cached;
        if (q->first_scheduled_ns == 0)
            q->first_scheduled_ns = s->now_ns;
    }
    return true;
}

void preempt(struct sched *s, struct sequence *q)
{
    s->stats.n_preemptions++;
    s->preempted = true;
    if (q->req->beam) {
        beam_preempt(s, q->req);
        return;
    }
    queue_remove(&s->running, q);
    if (!swap_out(s, q))
        blocks_release(s, q);
    row_give(s, q);
    q->state = SEQ_WAITING;
    q->n_preempted++;
    queue_push_early(&s->waiting, q);
}

void grow_running(struct sched *s)
{
    for (struct sequence *q = s->running.head; q; q = q->next) {
        if (!seq_ready(s, q) || seq_todo(q) > 1)
            continue;
        while (!blocks_cover(s, q, q->n_computed + 1)) {
            struct sequence *last = s->running.tail;
            bool own = last == q || (last->req == q->req && q->req->beam); /* beams go together */
            preempt(s, last);
            if (own)
                return;
        }
    }
}
