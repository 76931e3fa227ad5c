/* pool.h - a few persistent threads that run one function together, many times a step.
 *
 * The caller of pool_run() is thread 0 and works too. Waiting threads spin for a moment (the next
 * kernel of a step follows within microseconds), then sleep in the kernel, so an idle pool costs
 * nothing. How work is divided is the caller's business: by the row contract it must never show in
 * the results.
 *
 * Thread: one thread at a time may call; the pool's own threads never outlive pool_destroy().
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_POOL_H
#define SL_BACKEND_CPU_POOL_H

#include "base/status.h"

struct pool;

typedef void (*pool_fn)(void *ctx, int thread, int n_threads);
typedef void (*pool_item_fn)(void *ctx, int item, int thread);

/* threads: 0 takes what affinity and the CPU quota grant. On success *out belongs to the caller. */
SL_MUST_CHECK enum sl_status pool_create(struct pool **out, int threads, struct sl_err *err);
void pool_destroy(struct pool **p); /* *p may be NULL; leaves it NULL */
int pool_threads(const struct pool *p);

/* Every thread calls fn once; returns when all have. */
void pool_run(struct pool *p, pool_fn fn, void *ctx);
/* fn for items 0 .. n_items-1, each once, handed out in order to whichever thread is free. */
void pool_for(struct pool *p, int n_items, pool_item_fn fn, void *ctx);
/* Inside fn of pool_run: returns when every thread has arrived. */
void pool_barrier(struct pool *p);
/* Inside fn of pool_run: the next item that no thread has taken since pool_run began, from 0 on.
 * The caller compares it with its own count. */
int pool_next_item(struct pool *p);

#endif
