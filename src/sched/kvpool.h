/* kvpool.h - fixed-size KV cache blocks, shared between sequences by reference count.
 *
 * The scheduler decides who gets blocks; attention kernels only ever see block numbers. Every layer
 * group has n_blocks blocks of its own, numbered from 0, and n_host_blocks in host memory: each is
 * a place (prefix.h). Nothing is computed from a block in host memory; it holds what a preempted
 * sequence will go on with, or a content that left the device.
 *
 * A free block waits on its place's list and keeps the content that the prefix cache knows it by,
 * until it is taken: what was freed longest ago goes first, and what has no known content before
 * everything else. With `offload` a content whose last block on the device is taken goes to host
 * memory, while the step has room for the copy. Hold, drop and take are O(1).
 *
 * Copies are noted in order and made before the next step computes. Steps run one after another, so
 * a block may be taken, filled or given up as if they had been made already.
 *
 * Invariants, all verified by kvpool_check():
 *   - a block is free (ref == 0, on the free list) or held (ref > 0), never both;
 *   - n_free plus the number of held blocks equals the number of blocks, in every place;
 *   - the prefix cache's own (prefix.h).
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread only.   Memory: all of it comes from kvpool_create(). */
#ifndef SL_SCHED_KVPOOL_H
#define SL_SCHED_KVPOOL_H

#include "core/batch.h"
#include "core/kvlayout.h"

struct kvpool; /* opaque: defined in kvpool.c */

enum { KV_BLOCK_SIZE_MAX = 1024 };

struct kvpool_config {
    struct kv_layout layout;
    int max_len, max_seqs; /* positions of a sequence, sequences that run: bounds for copies */
    bool prefix_caching, offload;
};
SL_MUST_CHECK enum sl_status kvpool_create(struct kvpool **out, const struct kvpool_config *cfg,
                                           struct sl_err *err);
void kvpool_destroy(struct kvpool **pool); /* *pool may be NULL; leaves it NULL */

/* Hold one free block (ref = 1), forgetting what it held. SL_EAGAIN: none free; preempt someone
 * and retry. */
SL_MUST_CHECK enum sl_status kvpool_take(struct kvpool *pool, int place, int32_t *blk);
void kvpool_hold(struct kvpool *pool, int place, int32_t blk); /* once more; it may be free */
void kvpool_drop(struct kvpool *pool, int place, int32_t blk); /* free at the last one */
int kvpool_refs(const struct kvpool *pool, int place, int32_t blk);
int kvpool_n_free(const struct kvpool *pool, int place);

/* ---- copies -----------------------------------------------------------------------------------
 */

int kvpool_max_copies(const struct kvpool *pool);
/* Moves what was noted to `to`, which has room for max_copies; gives their number. */
int kvpool_take_copies(struct kvpool *pool, struct block_copy *to);
/* One block of the group becomes a copy of another. false: no more can be noted for this step. */
SL_MUST_CHECK bool kvpool_copy(struct kvpool *pool, int group, int32_t src, int32_t dst);
/* How many blocks can still be moved to host memory, or back, before this step. */
int kvpool_stores_left(const struct kvpool *pool);
int kvpool_loads_left(const struct kvpool *pool);
/* A block of the other place of this group with the same content, -1: none. */
int32_t kvpool_twin(const struct kvpool *pool, int place, int32_t blk);
/* *host: a block in host memory, held, with the content of blk: its twin, or a new one and a copy.
 * SL_EAGAIN: no block is free there, or none can be copied before this step. */
SL_MUST_CHECK enum sl_status kvpool_store(struct kvpool *pool, int group, int32_t blk,
                                          int32_t *host);
/* blk, which was taken for it, becomes a copy of `host`, and known by its content. */
void kvpool_load(struct kvpool *pool, int group, int32_t host, int32_t blk);

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
 * is empty; -1 where a window has passed, KV_AWAY(h) where the content is only in host memory:
 * block h there is held, and the caller loads it. */
#define KV_AWAY(h) (-2 - (h)) /* its own inverse */
void kvpool_adopt(struct kvpool *pool, int n, struct block_table *table, struct kv_chain *chain);
/* The next full block after `chain` now has these tokens, in blk[group] (-1: none there). */
void kvpool_enter(struct kvpool *pool, struct kv_chain *chain, int32_t key, const int32_t *tokens,
                  const int32_t *blk);
void kvpool_forget(struct kvpool *pool); /* every cached content */
int kvpool_n_cached(const struct kvpool *pool);

void kvpool_check(const struct kvpool *pool); /* asserts the invariants; O(n_blocks) */

#endif
