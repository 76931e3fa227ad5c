/* intpool.h - arrays of int32 (a sequence's tokens, its block tables) that grow by doubling and are
 * used again: once every size was needed a few times, nothing is allocated any more.
 *
 * Sizes are powers of two. What is given back waits on the list of its size; nothing returns to the
 * system before fini, so the pool holds at most what was in use at once, per size.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: its owner's. */
#ifndef SL_SCHED_INTPOOL_H
#define SL_SCHED_INTPOOL_H

#include <stdbool.h>
#include <stdint.h>

enum { INTPOOL_MIN = 64, INTPOOL_CLASSES = 24 };

struct intpool {
    void *free[INTPOOL_CLASSES]; /* linked through their first bytes */
};

/* At least n elements, *cap of them; NULL: no memory, or n beyond the largest size. */
int32_t *intpool_take(struct intpool *p, int n, int *cap);
void intpool_give(struct intpool *p, int32_t *a, int cap); /* a may be NULL */
/* Room for n elements, the first `used` kept; false: no memory, and nothing has changed. */
bool intpool_grow(struct intpool *p, int32_t **a, int *cap, int used, int n);
void intpool_fini(struct intpool *p);

#endif
