/* params.h - a request's sampling parameters: checked once, copied once.
 *
 * The rules, their order and their texts are those of vLLM's SamplingParams, so that a client that
 * matches on them goes on working; {v} is written as Python would write it.
 *
 * Thread: any (plain functions).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_PARAMS_H
#define SL_ENGINE_PARAMS_H

#include "base/status.h"
#include "core/sequence.h"
#include "text/tokenizer.h"

/* What the rules need to know of the model and the server. */
struct params_limits {
    int vocab_size;    /* 0: unknown, ids are not checked */
    int max_logprobs;  /* -1: no limit */
    int max_model_len; /* 0: unknown */
    int max_beams;     /* 0: unknown; -1: the batching policy has no beam search */
    int32_t eos[16];   /* primary first */
    int n_eos;
};

/* Checks, and writes back what the rules change: low temperatures, greedy, "off" values. */
SL_MUST_CHECK enum sl_status params_check(const struct params_limits *l,
                                          struct sl_sampling_params *p, struct sl_err *err);

/* Copies checked parameters into the request's arena and derives the rest: bad words as tokens,
 * stop ids merged with the model's, biases clamped. t may be NULL when there are no bad words.
 * max_tokens and seed are the caller's to set. */
SL_MUST_CHECK enum sl_status params_copy(const struct params_limits *l,
                                         const struct sl_sampling_params *p,
                                         const struct tokenizer *t, struct arena *arena,
                                         struct seq_params *out, struct sl_err *err);

#endif
