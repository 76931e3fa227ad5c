/* draft.h - the proposers: who guesses, and what the command line says about it.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread. */
#ifndef SL_DRAFT_DRAFT_H
#define SL_DRAFT_DRAFT_H

#include "base/mem.h"
#include "core/proposer.h"
#include "model/model.h"

enum draft_method { DRAFT_NGRAM, DRAFT_SUFFIX, DRAFT_MODEL };

/* How a guess is verified. COUPLED: the target draws its own token at each place, the draft draws
 * with the same noise, and a guess stands while the two are equal; an answer is bit for bit
 * the one without speculation. STANDARD: a guess is kept with probability min(1, p / q), or
 * replaced by a draw from what is left of p (arXiv 2211.17192): the same distribution, other
 * tokens. */
enum draft_verify { DRAFT_COUPLED, DRAFT_STANDARD };

/* --speculative-config, checked. */
struct draft_config {
    enum draft_method method;
    enum draft_verify verify;
    const char *model; /* DRAFT_MODEL: folder */
    int n_tokens;      /* num_speculative_tokens, 1 to DRAFT_MAX */
    bool fixed;        /* "adaptive": false */
    int lookup_min, lookup_max;
    int suffix_depth, suffix_requests;
    double suffix_factor, suffix_min_prob;
    int max_model_len;        /* of the draft model; 0: its own */
    int max_batch;            /* disable_by_batch_size; 0: no limit */
    const char *quantization; /* of the draft model, or NULL */
};

/* json: a JSON object, or NULL. rejection_method: --rejection-sample-method, or NULL. Strings are
 * copied to `strings`. SL_EINVAL, SL_ENOSUPPORT: which key, and why. */
SL_MUST_CHECK enum sl_status draft_config_parse(struct draft_config *out, const char *json,
                                                const char *rejection_method, struct arena *strings,
                                                struct sl_err *err);

/* The last lookup_min .. lookup_max tokens, found again earlier in the same sequence: what followed
 * them there. The longest match wins, then the latest. */
SL_MUST_CHECK enum sl_status ngram_create(struct proposer **out, const struct draft_config *cfg,
                                          int vocab_size, struct sl_err *err);

/* What followed the latest tokens in answers given before (suffix_requests of them at most, and a
 * bounded number of tokens), or earlier in the sequence itself. */
SL_MUST_CHECK enum sl_status suffix_create(struct proposer **out, const struct draft_config *cfg,
                                           int vocab_size, struct sl_err *err);

/* A smaller model that continues the sequence by itself, in its own cache under the target's block
 * numbers: position p of a sequence lies in the same block and place there. It computes what it
 * lacks when it is asked (a prompt, at first), and remembers which full blocks it has, so that what
 * the target finds in its prefix cache is found here too.
 * rc: its spec, device and options; taken by the runner, failing or not. group: the target's layer
 * group whose tables it reads. */
SL_MUST_CHECK enum sl_status draft_model_open(struct proposer **out, const struct draft_config *cfg,
                                              const struct runner_config *rc, int group,
                                              struct sl_err *err);
size_t draft_model_bytes_per_token(const struct proposer *p); /* of its cache */
/* Buffers for steps of at most max_tokens rows. */
size_t draft_model_step_bytes(const struct proposer *p, int max_tokens, int max_seqs);
/* The cache and the buffers, once the target's limits are known. */
SL_MUST_CHECK enum sl_status draft_model_take_memory(struct proposer *p, int n_blocks,
                                                     const struct batch_limits *target,
                                                     struct sl_err *err);

#endif
