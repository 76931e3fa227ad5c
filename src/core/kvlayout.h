/* kvlayout.h - what the pool and the planner know of a model's cache: groups of layers.
 *
 * Full attention, sliding window, MLA latent, a draft model's cache, Mamba state are all groups;
 * the pool knows bytes, a window and nothing else.   Plain data.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_KVLAYOUT_H
#define SL_CORE_KVLAYOUT_H

#include "core/sequence.h"

struct kv_group {
    int n_layers;
    size_t bytes_per_token; /* K and V of all its layers, scales included */
    int window;             /* positions that a row can see, 0: all */
};

struct kv_layout {
    int n_groups, block_size, n_blocks; /* every group has n_blocks blocks */
    int n_host_blocks; /* and as many beside them in host memory, where nothing is computed */
    struct kv_group group[KV_GROUPS_MAX];
    /* Beside the groups' layers, under their block numbers: a draft model's cache, and what a
     * device keeps for itself (ops.kv_more_bytes). */
    size_t more_bytes_per_token;
};

#endif
