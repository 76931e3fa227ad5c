/* sampler.h - logits to tokens on the host.
 *
 * Order, as vLLM's: raw logprobs -> allowed ids -> bad words -> min_tokens -> logit_bias ->
 * repetition, frequency, presence penalty -> argmax if greedy, or temperature -> min_p ->
 * top_k / top_p -> draw.
 * The draw is counter-based: Philox4x32-10 keyed by (seed, choice index, position, purpose), so a
 * token depends on its own request alone: not on the batch, nor on the step that computes it.
 *
 * NaN or infinity in a row, or nothing left to choose from: that row alone gets TOKEN_BAD_LOGITS.
 *
 * Logprobs of a row, in order: the chosen token, the best k by value, logprob_token_ids. Rank is
 * the number of tokens at least as probable, so 1 for the best; the i-th of the best k has rank i.
 *
 * Thread: the engine thread. A run allocates only when r's logprob arrays must grow.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SAMPLE_SAMPLER_H
#define SL_SAMPLE_SAMPLER_H

#include "core/batch.h"

struct sampler;

SL_MUST_CHECK enum sl_status sampler_create(struct sampler **out, int vocab_size,
                                            enum sl_logprobs_mode mode, struct sl_err *err);
void sampler_destroy(struct sampler **s);
/* logits: [b->n_logits, vocab_size] f32, kept unchanged. Fills r->token, lp and plp. */
SL_MUST_CHECK enum sl_status sampler_run(struct sampler *s, const struct batch *b,
                                         const float *logits, struct step_result *r,
                                         struct sl_err *err);

#endif
