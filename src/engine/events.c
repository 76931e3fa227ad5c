/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/events.h"

#include "engine/vec.h"

bool event_buf_push(struct event_buf *b, const struct event *ev, const struct sl_logprob *lp)
{
    size_t n_lp = (size_t)ev->n_lp;
    if (!vec_room(&b->ev, &b->cap, b->n + 1, sizeof *b->ev) ||
        !vec_room(&b->lp, &b->cap_lp, b->n_lp + n_lp, sizeof *b->lp))
        return false;
    b->ev[b->n++] = *ev;
    if (n_lp)
        memcpy(b->lp + b->n_lp, lp, n_lp * sizeof *lp);
    b->n_lp += n_lp;
    return true;
}

size_t event_buf_bytes(const struct event_buf *b)
{
    return b->n * sizeof *b->ev + b->n_lp * sizeof *b->lp;
}

void event_buf_clear(struct event_buf *b)
{
    b->n = b->n_lp = 0;
}

void event_buf_fini(struct event_buf *b)
{
    mem_free(b->ev);
    mem_free(b->lp);
    *b = (struct event_buf){0};
}
