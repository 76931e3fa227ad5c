/* sequence.h - a request and its sequences (choices): plain data that the stages hand on.
 *
 * The scheduler owns these structs' scheduling fields; the sampler and the backend only read.
 * A sequence is `tokens` plus how far they are computed; there is no prefill or decode state.
 *
 * Invariants, verified by sequence_check():
 *   0 < n_prompt <= n_tokens <= cap_tokens, while it is not finished;
 *   n_computed <= n_tokens + n_inflight: the cache never runs ahead of what is known or sampled;
 *   every block table covers n_computed positions while the sequence runs or is swapped, and is
 *   empty otherwise;
 *   row >= 0 exactly while it runs;
 *   n_inflight <= n_steps_held;
 *   n_draft > 0 only while its step is in flight, and that step is the only one.
 *
 * Drafts: guesses for positions [n_tokens, n_tokens + n_draft) stand in `tokens` behind what is
 * known, so whoever computes the position after them reads on. The step that verifies them moves
 * n_computed past them; when it is read, n_computed goes back to the last one that was right.
 *
 * Memory: `tokens` is the request's own prompt until the sequence is first admitted; from then on
 * it and the block tables are the scheduler's buffers, which take them back when the sequence has
 * finished and no step in flight names it (then tokens is NULL, n_tokens stays).
 *
 * Thread: the engine thread, from sched_add() until it is reported finished.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_SEQUENCE_H
#define SL_CORE_SEQUENCE_H

#include "base/mem.h"
#include "base/status.h"
#include "core/pooling.h"
#include "sluice.h"

enum { KV_GROUPS_MAX = 4 }; /* layer groups: full attention, window, draft, state, ... */

enum seq_state { SEQ_NEW, SEQ_WAITING, SEQ_RUNNING, SEQ_FINISHED };

/* Blocks of one layer group, in position order; block i holds positions [i*B, (i+1)*B).
 * -1: freed again (it fell out of a window). */
struct block_table {
    int32_t *block;
    int n, cap;
    int first; /* blocks before this one are -1 */
};

/* Where a sequence stands in the prefix cache's tree of block contents. */
struct kv_chain {
    uint64_t hash[2]; /* of everything up to here */
    uint64_t serial;  /* of the node that holds the last full block, 0: the root */
    int32_t node;     /* its index, -1: the root */
    bool broken;      /* the node is gone: nothing can be entered after it */
};

struct sequence {
    /* What every step of a sequence that decodes touches: the first two cache lines. With hundreds
     * of sequences they are what a step costs. */
    struct request *req;
    int32_t *tokens;              /* [cap_tokens]: prompt, then output */
    struct sequence *prev, *next; /* the queue it is on */
    int index;                    /* choice */
    enum seq_state state;
    int n_prompt, n_tokens;
    int n_computed; /* positions [0, n_computed) are in the cache, or will be after the steps in
                       flight */
    int n_inflight; /* sampled by steps in flight and not read yet */
    int n_hashed;   /* full blocks already entered into the prefix cache */
    int row;        /* slot in the device's per-sequence tables while running, else -1 */

    uint64_t plan_step; /* scheduler: the last plan that gave it something to do */
    int n_planned;      /* scheduler: tokens that this plan computes */
    int n_pad_planned;  /* scheduler: rows of padding after them (static batching) */
    int n_steps_held;   /* steps in flight that name this sequence; it is given up at 0 */
    int cap_tokens;
    int limit;              /* scheduler: tokens at which it ends, whatever they are */
    int32_t eos;            /* scheduler: the token that ends it, -1: none */
    uint8_t n_draft;        /* guesses that the step in flight verifies */
    uint8_t n_draft_wanted; /* scheduler: how many would pay, when last looked at; it waits for the
                               step in flight then, as guesses continue known tokens */
    bool plain_stop;        /* scheduler: nothing but eos and limit ends it */
    bool abort;             /* cancel at the next plan (set by the engine thread) */
    bool swapped;           /* scheduler: waiting, its tables name blocks in host memory */
    /* On the backend's clock, 0: not yet. last_token_ns changes after the token was reported, so
     * that the report can tell the time since the one before. */
    int64_t first_token_ns, last_token_ns;
    struct block_table table[KV_GROUPS_MAX];

    struct kv_chain chain; /* scheduler: after n_hashed blocks */
    int n_cached;          /* prompt tokens that the prefix cache gave at the first admission */
    int n_plogprobs;       /* prompt positions whose logprobs are reported or in flight */
    int n_preempted;
    /* Positions [0, n_drafted) are in the draft model's cache too, for known tokens. */
    int n_drafted;
    float draft_hits, draft_tries;    /* scheduler: verdicts on guesses, old ones fading */
    uint8_t draft_misses, draft_rest; /* scheduler: asked in vain; plans that it sits out for it */
    const float *draft_prob; /* [n_draft, vocab]: what they were drawn from, NULL: certain */
    int n_pad;               /* scheduler: rows of padding so far */
    int admit_need; /* scheduler: blocks that were missing when it was last refused, 0: not tried */
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    int32_t stop_token;
    int64_t first_scheduled_ns;
    struct matcher *matcher;        /* engine: where it is in req->grammar; NULL: not begun */
    void *sched_data, *sample_data; /* private to that stage; freed by it */
};

/* Parameters after checking, in the request's arena, every pointer owned by it; bad words are
 * tokenized, stop ids merged with the model's EOS rules. */
struct seq_params {
    struct sl_sampling_params p;
    int32_t *bad_word_tokens; /* all, concatenated */
    int *bad_word_start;      /* [n_bad_word_seqs + 1] */
    int n_bad_word_seqs;
    /* Every EOS and stop id: what min_tokens forbids, also under ignore_eos. */
    int32_t *all_stop_ids;
    int n_all_stop_ids;
    int32_t eos_token; /* the primary EOS, -1: none; ignored with ignore_eos */
    int max_tokens;    /* resolved, >= 0 */
    int beam_width;    /* 0: no beam search */
    int n_beam_top;    /* the best tokens of a beam's row that are candidates */
    uint64_t seed;     /* resolved: the request's, or drawn at submission */
};

struct request {
    char *id;
    uint64_t number; /* submission order, unique */
    int priority;
    int64_t arrival_ns;
    const char *cache_salt; /* NULL: none */
    int32_t *prompt;
    int n_prompt;
    struct seq_params params;
    struct sequence *
        *seq; /* [n_seqs]: choice i is seq[i]; of a beam search: its beams, any order */
    int n_seqs, n_finished; /* the scheduler counts n_finished, aborted choices included */
    struct beam *beam;      /* scheduler: the state of a beam search, NULL: none */
    bool forked; /* choices 1.. exist from the first sampled token on, sharing choice 0's blocks */
    /* What comes next is known when the token before it is: it has no place in a step planned while
     * a token of it is in flight. */
    bool lockstep;
    bool on_host;            /* a device that draws tokens leaves it those of this request */
    struct grammar *grammar; /* engine: what the output must look like, NULL: anything */
    struct pooling *pooling; /* its hidden states are what is wanted; NULL: it generates */
    void *consumer;          /* engine/: where events go */
    int32_t cache_key;       /* scheduler: the interned cache_salt, 0: none, -1: do not cache */
    struct arena arena;      /* everything above */
};

/* Gives r->n_seqs fresh sequences from r->arena. r->prompt and r->params must be set. */
SL_MUST_CHECK enum sl_status request_make_seqs(struct request *r, struct sl_err *err);
void sequence_init(struct sequence *s, struct request *r, int index);
void sequence_check(const struct sequence *s, int block_size);

#endif
