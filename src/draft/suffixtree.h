/* suffixtree.h - every stretch of the texts that were put in, to a depth, and how often it
 * occurred.
 *
 * A compressed tree of suffixes: an edge is a stretch of the log of tokens, a node knows how many
 * suffixes run through it and which child most of them take. A suffix is followed to `depth` tokens
 * and no further, so entering a token costs O(depth) and at most two nodes. Texts cannot be taken
 * out: when the tree is full it is cleared (suffix.c keeps two and clears the older one).
 *
 * Invariants, verified by suffixtree_check():
 *   - a node's count is at least the sum of its children's, and its best child has the most;
 *   - every node but the root is found under (parent, first token of its edge).
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: its owner's.   Memory: all of it comes from suffixtree_create(). */
#ifndef SL_DRAFT_SUFFIXTREE_H
#define SL_DRAFT_SUFFIXTREE_H

#include "base/status.h"

struct suffixtree;

SL_MUST_CHECK enum sl_status suffixtree_create(struct suffixtree **out, int max_tokens, int depth,
                                               struct sl_err *err);
void suffixtree_destroy(struct suffixtree **t);
void suffixtree_clear(struct suffixtree *t);
/* Every suffix of the text. false: there is no room left for it. */
bool suffixtree_add(struct suffixtree *t, const int32_t *tokens, int n);
int suffixtree_n_tokens(const struct suffixtree *t);
/* How often the n tokens occurred, n <= depth. */
int suffixtree_count(const struct suffixtree *t, const int32_t *tokens, int n);
/* The longest end of the text, of at most `depth` tokens, that occurred; 0: not even the last. */
int suffixtree_match(const struct suffixtree *t, const int32_t *tokens, int n);
/* What most often followed these n tokens (an end that matched), token by token while the share of
 * the occurrences that went this way stays at least min_prob. Returns how many of max were written.
 * Edges end at `depth` tokens: with n of them given, at most depth - n follow. */
int suffixtree_follow(const struct suffixtree *t, const int32_t *tokens, int n, double min_prob,
                      int32_t *out, int max);
void suffixtree_check(const struct suffixtree *t);

#endif
