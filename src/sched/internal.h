/* internal.h - the scheduler's state, and what its files ask of each other.
 *
 *     sched.c   life of a request: add, abort, finish; limits, statistics, checks
 *     policy.c  who gets how many tokens: mixed, prefill-first
 *     policy_batch.c                      static, request
 *     admit.c   a waiting sequence begins to run; preemption
 *     blocks.c  a sequence's block tables over the pool
 *     swap.c    the same, to host memory and back
 *     plan.c    the decision becomes a batch; forks
 *     drafts.c  speculation: how many guesses, and what became of them
 *     update.c  tokens come back; stop rules
 *     beam.c    beam search: rows and blocks of its beams
 *     beam_pick.c                         which ones, and when it ends
 *
 * Invariants, verified by sched_check():
 *   - every unfinished sequence that exists is on exactly one queue, both are in order;
 *   - rows: each of [0, max_num_seqs) is free or of one running sequence (or ghost); rows_reserved
 *     of the free ones are promised to beam searches that run;
 *   - a block's reference count is the number of tables that name it;
 *   - the pool's and each sequence's own.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread. */
#ifndef SL_SCHED_INTERNAL_H
#define SL_SCHED_INTERNAL_H

#include "sched/beam.h"
#include "sched/draftcost.h"
#include "sched/intpool.h"
#include "sched/kvpool.h"
#include "sched/prefix.h"
#include "sched/queue.h"
#include "sched/sched.h"

/* Logit rows a step may spend on prompt logprobs, beside one for each sequence: it bounds the
 * logits buffer, so a long prompt that wants them is computed in more chunks. */
enum { PLOGPROB_ROWS = 128 };

/* Decides what a step computes, through give(); false: a policy has nothing to do. */
typedef void (*policy_fn)(struct sched *s);

struct drafts {
    struct draft_item *item; /* [max_num_seqs] */
    int n_items;
    float hits, tries; /* of all sequences, old verdicts fading */
    struct draft_cost cost;
    int64_t last_done_ns; /* when the last step that was read ended; 0: nobody ran since */
    int n_unread;         /* steps in flight */
    int n_gained;         /* tokens of the step being read */
};

struct sched {
    struct sched_config cfg;
    policy_fn policy;
    bool by_batch; /* static, request: choices do not fork, memory is reserved for all positions */
    int max_len;   /* tokens of a sequence */
    struct kvpool *pool;
    struct intpool ints;
    struct queue waiting, running;
    int32_t *free_row; /* [max_num_seqs]: a stack */
    int n_free_rows, rows_reserved;
    struct sched_stats stats;

    /* The plan being made. */
    uint64_t step, n_steps; /* plans tried, and made */
    int64_t now_ns;
    struct sequence **entry; /* [max_num_seqs] */
    int n_entries;
    int n_left;                /* of the token budget */
    int plogprob_left;         /* of PLOGPROB_ROWS */
    struct proposer *proposer; /* NULL: no speculation */
    sched_refine refine;       /* of sequences with a grammar; NULL: there are none */
    void *refine_ctx;
    struct drafts drafts;
    int rows_promised; /* to the forks of prompts that this plan completes */
    bool preempted;    /* somebody, so nobody is admitted */

    /* Static batching: a member that has ended keeps its row and blocks, and goes on computing
     * padding, until all have ended. */
    struct sequence *ghost; /* [max_num_seqs], NULL with other policies */
    int n_ghosts;
    struct request ghost_request;
};

static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Between two steps other work has had the caches. Sequences lie apart and are reached through each
 * other, so without this each would be waited for in turn. */
static inline void prefetch_sequence(const struct sequence *q)
{
    __builtin_prefetch(q);
    __builtin_prefetch((const char *)q + 64);
    __builtin_prefetch((const char *)q + 128);
}

/* Tokens that are known, or will be after the steps in flight. */
static inline int seq_length(const struct sequence *q)
{
    return q->n_tokens + q->n_inflight;
}

/* Tokens to compute before the next can be sampled; 0 once the last is in flight. */
static inline int seq_todo(const struct sequence *q)
{
    return seq_length(q) < q->limit ? seq_length(q) - q->n_computed : 0;
}

/* It has something to compute that this plan has not given it yet. */
static inline bool seq_ready(const struct sched *s, const struct sequence *q)
{
    if (q->plan_step == s->step || seq_todo(q) <= 0)
        return false;
    bool in_lockstep = q->req->lockstep || q->n_draft > 0 || q->n_draft_wanted > 0;
    return q->n_inflight == 0 || !in_lockstep;
}

/* blocks.c */
/* Takes the blocks of `reserve` positions, after what the prefix cache gives (*n_hit blocks);
 * false: they do not fit, nothing has changed. spare: free blocks to leave. */
bool blocks_admit(struct sched *s, struct sequence *q, int reserve, int spare);
/* Room for one more step up to position `upto`, the block written to being q's own; false: none
 * are left. */
bool blocks_cover(struct sched *s, struct sequence *q, int upto);
/* A free block. The proposer hears of it if its own cache lives under these numbers. */
bool blocks_take(struct sched *s, int group, int32_t *blk);
/* Appends blocks until the table covers n positions. false: none left; what was taken stays. */
bool blocks_extend(struct sched *s, int group, struct block_table *t, int n);
/* Positions that a group needs blocks for at admission, n_hit blocks being there. */
int blocks_at_admission(const struct sched *s, int group, int n_hit, int reserve);
void blocks_release(struct sched *s, struct sequence *q);
/* c's tables become p's. false: no memory for the tables. */
bool blocks_share(struct sched *s, const struct sequence *p, struct sequence *c);
void blocks_publish(struct sched *s, struct sequence *q); /* full blocks to the prefix cache */

/* swap.c */
/* q's blocks go to host memory, and n_computed stays; false: that costs more than computing them
 * again, or there is no room. Nothing has changed then. */
bool swap_out(struct sched *s, struct sequence *q);
/* They come back, with room for `reserve` positions; false: it does not fit now. */
bool swap_in(struct sched *s, struct sequence *q, int reserve, int spare);
/* Brings back what the table names as KV_AWAY; gives how many blocks that were. */
int load_away(struct sched *s, int group, struct block_table *t);

/* admit.c */
/* From waiting to running; false: no row, no blocks, no memory, or its tokens are in flight. */
bool admit(struct sched *s, struct sequence *q, int reserve, int spare);
void preempt(struct sched *s, struct sequence *q);
/* Blocks for one more token of every sequence that decodes, by preemption if need be. */
void grow_running(struct sched *s);

/* policy.c */
void policy_mixed(struct sched *s);
void policy_prefill_first(struct sched *s);
void policy_batch(struct sched *s); /* policy_batch.c: static and request */
/* This plan computes n more tokens of q. */
void give(struct sched *s, struct sequence *q, int n);
void give_decodes(struct sched *s);
/* At most n, as the rows for prompt logprobs allow. */
int cap_plogprobs(const struct sched *s, const struct sequence *q, int n);

/* policy_batch.c */
void ghosts_add(struct sched *s, struct sequence *q); /* takes q's row and blocks */
void ghosts_drop(struct sched *s);

/* drafts.c */
SL_MUST_CHECK enum sl_status drafts_init(struct sched *s, struct proposer *p, struct sl_err *err);
/* Guesses for those among this plan's sequences for whom they pay. */
void drafts_propose(struct sched *s, struct batch *b);
/* For each proposal, how far it was right; and the step b was read: what its rows cost, and what
 * its guesses brought. */
void drafts_learn_step(struct sched *s, const struct batch *b, int64_t done_ns);
void drafts_learn(struct sched *s, struct sequence *q, int n_draft, int n_accepted);

/* sched.c */
void sequence_finish(struct sched *s, struct sequence *q, enum sl_finish why);
/* A step that named q was read. */
void sequence_unhold(struct sched *s, struct sequence *q);
void enqueue_rest(struct sched *s, struct request *r); /* choices that did not fork, to waiting */
int32_t row_take(struct sched *s);
void row_give(struct sched *s, struct sequence *q);

#endif
