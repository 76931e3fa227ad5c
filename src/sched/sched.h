/* sched.h - who computes what in the next step.
 *
 * A step gives each sequence some tokens to compute, within max_num_batched_tokens and
 * max_num_seqs; there is no prefill or decode phase. Running sequences first, then waiting ones in
 * order (FCFS, or priority then arrival). A policy is a small function over the same queues.
 * When blocks run out the last running sequence (lowest priority, latest arrival) is preempted: its
 * blocks are freed and it waits again; it loses nothing. It recomputes, or with `swap` its blocks
 * are copied to host memory and back, when that is estimated to take less time. Admission reserves
 * the whole prompt.
 *
 * Speculation: a sequence that decodes may compute guesses of a proposer behind its last token, in
 * rows of the same step. sched_update() takes those that the model would have drawn itself, and one
 * more; n_computed goes back behind them, and what the rest wrote into the cache is overwritten.
 *
 * A plan may be made while earlier ones are in flight: n_computed and n_inflight of each sequence
 * say what those will have done. sched_update() must be given the steps in order.
 * A request with `pooling` ends with its prompt; nothing is sampled for it.
 *
 * Thread: the engine thread.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SCHED_SCHED_H
#define SL_SCHED_SCHED_H

#include "core/batch.h"
#include "core/kvlayout.h"
#include "core/proposer.h"

struct sched;

struct sched_config {
    enum sl_policy policy;
    enum sl_order order;
    int max_num_seqs, max_num_batched_tokens, max_model_len;
    int max_num_partial_prefills, max_long_partial_prefills, long_prefill_token_threshold;
    bool enable_prefix_caching;
    bool whole_prompts; /* a prompt is one step's work: its rows see each other, both ways */
    bool swap, offload; /* layout.n_host_blocks > 0: for whom is preempted, for cached contents */
    double host_bytes_per_s, token_ns; /* estimates: copies to host memory; computing a token */
    int depth;                         /* steps that may be in flight */
    struct kv_layout layout;
    struct proposer *proposer; /* borrowed; NULL: no speculation */
};

SL_MUST_CHECK enum sl_status sched_create(struct sched **out, const struct sched_config *cfg,
                                          struct sl_err *err);
/* Every step must have been read or discarded. Requests still queued are aborted. */
void sched_destroy(struct sched **s);
/* Limits for batch_create and step_result_create. */
void sched_batch_limits(const struct sched *s, struct batch_limits *out);

/* A prompt of n_prompt tokens can be computed and followed by a token at least, when it runs alone:
 * ask before sched_add(), which does not accept others. Thread: any (reads the configuration). */
bool sched_can_ever_fit(const struct sched *s, int n_prompt);
/* Tokens that one sequence can have: max_model_len, or what the KV cache can hold if less. */
int sched_max_len(const struct sched *s);
/* Beams that a search can have, 0: this policy knows none. Thread: any. */
int sched_max_beams(const struct sched *s);
/* What a beam search (params.beam_width > 0) needs beside its sequences, from r->arena: call it
 * after request_make_seqs(). Thread: any. */
SL_MUST_CHECK enum sl_status sched_prepare(struct request *r, struct sl_err *err);
/* Queue a request with its sequences, fresh from request_make_seqs() (choice 0 alone exists until
 * its prompt is computed; the others fork from it). The request stays owned by the caller, who
 * frees it after the last choice was reported finished and sched_holds() is false; inside
 * sched_update() the step being read still holds it. */
void sched_add(struct sched *s, struct request *r);
/* Take every unfinished choice out within this call: blocks are free when it returns. Nothing is
 * reported for them afterwards. May be called from a sink. */
void sched_abort(struct sched *s, struct request *r, enum sl_finish why);
/* The same for one choice: a stop string ended it. */
void sched_abort_seq(struct sched *s, struct sequence *seq, enum sl_finish why);
/* A step in flight still names the request. */
bool sched_holds(const struct sched *s, const struct request *r);

/* q has a grammar, and n guesses behind its n_tokens tokens: cut at the first that the grammar
 * refuses, and continued up to `most` where only one token can follow. Returns how many there are
 * now. */
typedef int (*sched_refine)(void *ctx, struct sequence *q, int n, int most);
void sched_set_refine(struct sched *s, sched_refine fn, void *ctx);

/* Fill b with the next step; false: nothing can be computed now. */
bool sched_plan(struct sched *s, int64_t now_ns, struct batch *b);

/* One sampled token, or the end of a choice, or a prompt's logprobs; called by sched_update. A beam
 * search reports choices 0 .. params.p.n-1, best first, whole, when it has ended. */
struct sched_event {
    struct sequence *seq;
    int32_t token; /* valid if has_token */
    bool has_token;
    const struct sl_logprob *lp; /* chosen first */
    int n_lp;
    bool is_prompt_logprob; /* then lp is about the prompt token at position `pos` */
    int pos;
    enum sl_finish finish; /* SL_RUNNING, or why this choice ended (with this token) */
    int64_t now_ns;        /* when the step ended, on the backend's clock */
};
typedef void (*sched_sink)(void *ctx, const struct sched_event *ev);

/* Take the tokens of the oldest step in flight: extend sequences, apply the stop rules (min_tokens,
 * EOS, stop ids, length, repetition), free the blocks of finished ones, report each token; of a
 * proposal, those up to the first that differs from it. */
void sched_update(struct sched *s, const struct batch *b, const struct step_result *r,
                  sched_sink sink, void *ctx);

/* The backend died: a step in flight will never be read. Its sequences are not held by it any more;
 * abort them. */
void sched_discard(struct sched *s, const struct batch *b);

struct sched_stats {
    int n_running, n_waiting, n_blocks, n_blocks_used, n_host_blocks_used;
    uint64_t n_preemptions, n_swaps, n_finished; /* n_swaps: of the preemptions */
    uint64_t prefix_queries, prefix_hits;        /* tokens */
    uint64_t host_queries, host_hits;            /* tokens not on the device; of them those found */
    uint64_t prompt_tokens_computed, prompt_tokens_cached;
    int last_step_tokens, last_step_seqs;
    uint64_t kv_slots_reserved, kv_slots_used; /* summed over steps: waste = 1 - used / reserved */
    uint64_t n_drafts, n_draft_tokens, n_draft_accepted; /* proposals, their tokens, those kept */
    uint64_t n_draft_accepted_at[DRAFT_MAX];             /* by place in the proposal */
};
void sched_get_stats(const struct sched *s, struct sched_stats *out);
void sched_reset_prefix_cache(struct sched *s);
/* Asserts every invariant, the pool's included; O(everything). */
void sched_check(const struct sched *s);

#endif
