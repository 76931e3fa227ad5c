/* prefix.h - the prefix cache: a tree of block contents, found by hash.
 *
 * A node is one full block's content: its tokens, after its parent's, under an extra key. The
 * chained 128-bit hash over (parent hash, tokens, extra key) finds it; equality of the stored
 * tokens, the parent's serial number and the extra key decides, so that a crafted collision cannot
 * show one user's KV to another. Blocks that hold this content are attached to the node, by place:
 * a group's blocks on the device are one place, those in host memory another. Several of a place
 * may be (two sequences computed the same prompt at once), and a block keeps its content while it
 * is free, until it is used again.
 *
 * Invariants, verified by prefix_check():
 *   - a node is in use exactly while a block is attached to it;
 *   - every node in use is on the bucket list of its hash, and on no other;
 *   - a block is attached to one node at most.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread.   Memory: all of it comes from prefix_create(). */
#ifndef SL_SCHED_PREFIX_H
#define SL_SCHED_PREFIX_H

#include "core/kvlayout.h"

struct prefix; /* opaque: defined in prefix.c */

enum { PREFIX_NONE = -1, KV_PLACES_MAX = 2 * KV_GROUPS_MAX };

/* Places [0, n_groups) are the groups' blocks on the device; those in host memory follow. */
static inline int prefix_host(const struct kv_layout *l, int group)
{
    return l->n_groups + group;
}
static inline int prefix_n_places(const struct kv_layout *l)
{
    return l->n_host_blocks ? 2 * l->n_groups : l->n_groups;
}
static inline int prefix_n_blocks(const struct kv_layout *l, int place)
{
    return place < l->n_groups ? l->n_blocks : l->n_host_blocks;
}

SL_MUST_CHECK enum sl_status prefix_create(struct prefix **out, const struct kv_layout *layout,
                                           struct sl_err *err);
void prefix_destroy(struct prefix **p);

/* The identity of a block content, as prefix_find compares it. */
struct prefix_content {
    uint64_t hash[2];      /* of everything up to the block's end */
    uint64_t parent;       /* serial of the parent node, 0: the root */
    int32_t key;           /* extra key's id */
    const int32_t *tokens; /* [block_size] */
};
/* chain: where the block before stands (zero, with node -1, for the first). extra: the key's hash.
 */
struct prefix_content prefix_content_of(const struct prefix *p, const struct kv_chain *chain,
                                        int32_t key, const uint64_t extra[2],
                                        const int32_t *tokens);
/* The node with this content, or PREFIX_NONE. */
int32_t prefix_find(const struct prefix *p, const struct prefix_content *c);
/* Makes one (none must exist); a block must be attached at once. PREFIX_NONE: its bucket is full
 * of other contents, which only a crafted collision can do. */
int32_t prefix_add(struct prefix *p, const struct prefix_content *c);
/* Moves the chain on to `node`. */
void prefix_follow(const struct prefix *p, struct kv_chain *chain, int32_t node);
/* The chain's node is still there. */
bool prefix_alive(const struct prefix *p, const struct kv_chain *chain);

void prefix_attach(struct prefix *p, int32_t node, int place, int32_t blk);
/* Frees the node with its last block. Returns the extra key that it referred to, or 0. */
int32_t prefix_detach(struct prefix *p, int place, int32_t blk);
/* The node that a block is attached to, or PREFIX_NONE. */
int32_t prefix_node(const struct prefix *p, int place, int32_t blk);
/* A block of the place with this content, -1: none. */
int32_t prefix_block(const struct prefix *p, int32_t node, int place);
/* The only block of its place with its content. */
bool prefix_is_last(const struct prefix *p, int place, int32_t blk);

int prefix_n_nodes(const struct prefix *p);
void prefix_check(const struct prefix *p); /* asserts the invariants; O(blocks) */

#endif
