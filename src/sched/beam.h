/* beam.h - beam search: the sequences of a request advance together, and are chosen anew after each
 * step.
 *
 * The search is transformers': of all continuations of all beams the best are taken in order of
 * their summed logprobs; those that end within the first `width` places enter the pool of finished
 * ones, which keeps the `width` best by score = sum / length ^ length_penalty; the best `width`
 * that do not end are the next beams. Ties go to the lower beam, then to the lower token id.
 *
 * Blocks: a beam that is continued more than once shares its blocks with the new ones, and the
 * block that is written to next is copied when that step is planned. Blocks that no beam uses are
 * free at once. Beams hold rows from admission to the end, for the whole width, so that no step
 * ever lacks one. Preemption takes all of them; afterwards one computes what they have in common
 * (the prompt at least), then the others share it and compute their own ends.
 *
 * A beam's `limit` is one more than its tokens: it is never planned before its step was read.
 * Tokens and logprobs of the paths are kept as a tree of nodes, counted, each pointing at the one
 * before; nothing is reported before the search has ended.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread, but for sched_prepare(). */
#ifndef SL_SCHED_BEAM_H
#define SL_SCHED_BEAM_H

#include "sched/sched.h"

/* The request is being added: it needs sched_prepare() to have been called. */
void beam_open(struct sched *s, struct request *r);
/* Its last sequence has finished. */
void beam_close(struct request *r);

/* Rows that its admission takes, one of them at once. */
int beam_rows(const struct sequence *q);
/* Blocks, beside its own, that its admission must find free for the others to join. */
int beam_extra_blocks(const struct sched *s, const struct sequence *q);
/* None of its tokens is in flight. */
bool beam_settled(const struct sequence *q);
void beam_admitted(struct sched *s, struct sequence *q);
void beam_preempt(struct sched *s, struct request *r);
/* Its rows beyond those of running beams are not promised any more. */
void beam_leave(struct sched *s, struct request *r);
/* Another beam of the request computes in this plan. */
bool beam_is_planned(const struct sched *s, const struct sequence *q);
/* All of q's tokens are planned to be computed. true: it was the common part after a preemption, so
 * the others have joined, and nothing is to be sampled. */
bool beam_rejoin(struct sched *s, struct sequence *q);

/* The row of one beam came back; after the last one the next beams are chosen. */
void beam_take(struct sched *s, struct sequence *q, const struct sched_event *ev, sched_sink sink,
               void *ctx);

/* Asserts the invariants; returns the rows that are promised and not taken. */
int beam_check(const struct request *r);

#endif
