/* events.h - what the engine thread tells a request's consumer, in a buffer that both swap.
 *
 * The producer appends to one buffer under the request's lock; the consumer takes it whole and
 * gives its own, emptied one, in exchange. Both keep their memory, so that a consumer who keeps up
 * costs no allocation.   Thread: whoever holds the buffer.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_EVENTS_H
#define SL_ENGINE_EVENTS_H

#include "sluice.h"

/* One token of one choice, or its end, or both. */
struct event {
    int64_t t_ns; /* CLOCK_MONOTONIC, when the step ended */
    int32_t choice, token;
    int32_t n_lp; /* entries in the buffer's lp array, in the order of the events */
    int32_t stop_token;
    bool has_token;
    uint8_t finish, stop_kind; /* enum sl_finish, enum sl_stop_kind */
};

struct event_buf {
    struct event *ev;
    struct sl_logprob *lp;
    size_t n, cap, n_lp, cap_lp;
};

/* false: no memory; the buffer is as before. */
SL_MUST_CHECK bool event_buf_push(struct event_buf *b, const struct event *ev,
                                  const struct sl_logprob *lp);
size_t event_buf_bytes(const struct event_buf *b); /* in use */
void event_buf_clear(struct event_buf *b);         /* keeps the memory */
void event_buf_fini(struct event_buf *b);

#endif
