/* beam_impl.h - a beam search's state, shared by beam.c and beam_pick.c.
 *
 * Invariants, verified by beam_check():
 *   - while it is admitted, n_rows of its sequences run, and width - n_rows rows are reserved;
 *   - those are live[0 .. n_live), or live[0] alone while it computes what they have in common;
 *   - all live beams have the same number of tokens, under `limit`;
 *   - the other sequences of the request are idle (SEQ_NEW), without blocks.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SCHED_BEAM_IMPL_H
#define SL_SCHED_BEAM_IMPL_H

#include "sched/beam.h"
#include "sched/beam_tree.h"
#include "sched/internal.h"

struct beam_seq {
    struct sequence *seq;
    struct beam_node *path; /* held; NULL: no output yet */
    double sum;             /* of its logprobs */
    int n_row;              /* candidates in its row, 0: not reported */
    bool continued;
};

struct beam_next {
    struct beam_seq beam;
    int from; /* index in live */
};

struct beam_end {
    struct beam_node *path; /* held */
    double score;
    int n_tokens;
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
};

struct beam {
    int width, limit; /* limit: tokens of a sequence at which it ends */
    int n_shown;      /* the best logprobs that are reported with each token */
    int n_named;      /* logprob_token_ids, at the end of each row */
    int row_cap;
    struct beam_tree tree;

    struct beam_seq *live; /* [width] best first; ties between beams go by this order */
    int n_live, n_reported;
    struct sl_logprob *row; /* [width, row_cap]: what the sampler gave for each live beam */
    int *taken;             /* [width]: candidates of that row that were looked at */
    struct beam_next *next; /* [width] */
    int n_next;
    struct beam_end *finished; /* [width + 1], best first */
    int n_finished;

    bool admitted, reporting;
    int n_rows;     /* taken, while admitted */
    bool rejoining; /* preempted with several beams: live[0] has only what all have in common */
    int n_full;     /* tokens of the other beams then */
};

/* beam_pick.c is called by the scheduler (beam_take); it asks: */
/* next[0 .. n_next) become the live beams. false: no memory. */
bool beam_advance(struct sched *s, struct request *r);

#endif
