/* beam_tree.h - the paths of a beam search as a tree of counted nodes, one a token.
 *
 * A path is named by its last node, and holds it; a node holds the one before. Nodes have one size
 * and are used again; they come in chunks, so a step allocates nothing once as many were made as
 * live at a time.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: its owner's. */
#ifndef SL_SCHED_BEAM_TREE_H
#define SL_SCHED_BEAM_TREE_H

#include "sluice.h"

#include <stddef.h>

struct beam_node {
    struct beam_node *parent; /* NULL: the first token; of an unused node the next unused one */
    int ref, n_lp;
    struct sl_logprob lp[]; /* [0]: the token */
};

struct beam_tree {
    struct beam_node *unused;
    void *chunk; /* the last one; each begins with a pointer to the one before */
    size_t node_bytes;
    int n_live; /* nodes that something holds */
};

void beam_tree_init(struct beam_tree *t, int max_lp);
void beam_tree_fini(struct beam_tree *t); /* frees every node, held or not */
/* A node with ref 1 that holds its parent (NULL: none). NULL: no memory. */
struct beam_node *beam_node_make(struct beam_tree *t, struct beam_node *parent);
void beam_node_hold(struct beam_node *n);                      /* n may be NULL */
void beam_node_drop(struct beam_tree *t, struct beam_node *n); /* n may be NULL */

#endif
