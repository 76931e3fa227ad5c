/* kvpool.h - fixed-size KV cache blocks, shared between sequences by reference count.
 *
 * The scheduler decides who gets blocks; attention kernels only ever see block numbers. Every layer
 * group has n_blocks blocks of its own, numbered from 0.
 *
 * A free block waits on its group's list and keeps the content that the prefix cache knows it by,
 * until it is taken: what was freed longest ago goes first, and what has no known content before
 * everything else. Hold, drop and take are O(1).
 *
 * Invariants, all verified by kvpool_check():
 *   - a block is free (ref == 0, on the free list) or held (ref > 0), never both;
 *   - n_free plus the number of held blocks equals n_blocks, in every group;
 *   - the prefix cache's own (prefix.h).
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread only.   Memory: all of it comes from kvpool_create(). */
#ifndef SL_SCHED_KVPOOL_H
#define SL_SCHED_KVPOOL_H

#include "core/kvlayout.h"

struct kvpool; /* opaque: defined in kvpool.c */

enum { KV_BLOCK_SIZE_MAX = 1024 };

/* max_len: positions that a sequence can have, for kvpool_match(). */
SL_MUST_CHECK enum sl_status kvpool_create(struct kvpool **out, const struct kv_layout *layout,
                                           int max_len, bool prefix_caching, struct sl_err *err);
void kvpool_destroy(struct kvpool **pool); /* *pool may be NULL; leaves it NULL */

/* Hold one free block (ref = 1), forgetting what it held. SL_EAGAIN: none free; preempt someone
 * and retry. */
SL_MUST_CHECK enum sl_status kvpool_take(struct kvpool *pool, int group, int32_t *blk);
void kvpool_hold(struct kvpool *pool, int group, int32_t blk); /* once more; it may be free */
void kvpool_drop(struct kvpool *pool, int group, int32_t blk); /* free at the last one */
int kvpool_refs(const struct kvpool *pool, int group, int32_t blk);
int kvpool_n_free(const struct kvpool *pool, int group);

/* ---- the prefix cache; without prefix_caching all of it does nothing and finds nothing ------- */

/* An extra key: keeps equal tokens apart. Ids are given back with _drop. -1: no memory. */
int32_t kvpool_key_take(struct kvpool *pool, const char *bytes, size_t n);
void kvpool_key_drop(struct kvpool *pool, int32_t key);

/* How many leading blocks of tokens[0 .. n_blocks * block_size) are cached, in every group as far
 * as its window reaches back. The answer is kept for kvpool_match_free and _adopt, which must
 * follow before the pool changes. */
int kvpool_match(struct kvpool *pool, int32_t key, const int32_t *tokens, int n_blocks);
/* Blocks of the group that a match of n would take off the free list. */
int kvpool_match_free(const struct kvpool *pool, int group, int n);
/* Hold the first n matched blocks (n as matched) and write them to table[group], which has room and
 * is empty; -1 where a window has passed. */
void kvpool_adopt(struct kvpool *pool, int n, struct block_table *table, struct kv_chain *chain);
/* The next full block after `chain` now has these tokens, in blk[group] (-1: none there). */
void kvpool_enter(struct kvpool *pool, struct kv_chain *chain, int32_t key, const int32_t *tokens,
                  const int32_t *blk);
void kvpool_forget(struct kvpool *pool); /* every cached content */
int kvpool_n_cached(const struct kvpool *pool);

void kvpool_check(const struct kvpool *pool); /* asserts the invariants; O(n_blocks) */

#endif
