/* sampler.h - logits to tokens on the host.
 *
 * Order, as vLLM's: the row's mask -> raw logprobs -> allowed ids -> bad words -> min_tokens ->
 * logit_bias -> repetition, frequency, presence penalty -> argmax if greedy, or temperature ->
 * min_p -> top_k / top_p -> draw. The draw is counter-based: Philox4x32-10 keyed by (seed, choice
 * index, position, purpose), so a token depends on its own request alone: not on the batch, nor on
 * the step that computes it.
 *
 * NaN or infinity in a row, or nothing left to choose from: that row alone gets TOKEN_BAD_LOGITS.
 *
 * A beam's row gives no token to go on with but its candidates: the best params.n_beam_top tokens
 * in order, then logprob_token_ids.
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
#include "core/drawrow.h"

struct sampler;

SL_MUST_CHECK enum sl_status sampler_create(struct sampler **out, int vocab_size,
                                            enum sl_logprobs_mode mode, struct sl_err *err);
void sampler_destroy(struct sampler **s);
/* logits: [b->n_logits, vocab_size] f32, kept unchanged. Fills r->token, lp and plp. */
SL_MUST_CHECK enum sl_status sampler_run(struct sampler *s, const struct batch *b,
                                         const float *logits, struct step_result *r,
                                         struct sl_err *err);

/* ---- a device that samples by itself (device_rows.c) ------------------------------------------
 */

/* Whether core/drawrow.h can say all that these parameters want. keeps_tokens: the device knows
 * the tokens before a row's position. */
bool sampler_device_can(const struct seq_params *sp, enum sl_logprobs_mode mode, bool keeps_tokens);
/* Rows of b for the device; those of requests on_host, and with more masks than it takes, are left
 * to sampler_run. */
void sampler_describe(const struct batch *b, struct draw_rows *out);
/* Fills r for all of b: from what the device gave, [n_samples] and [n_samples][DRAW_TOP_MAX], and
 * from `host`, sampler_run's result for the rows it was left, and for prompt logprobs. */
SL_MUST_CHECK enum sl_status
sampler_read(const struct sampler *s, const struct batch *b, const struct draw_rows *rows,
             const struct draw_result *result, const struct draw_top *top,
             const struct step_result *host, struct step_result *r, struct sl_err *err);
/* One token can follow, and nothing is to be told of the others: it needs no row. */
bool sampler_is_forced(const struct sample_row *sr);
/* A row before row i, of the same proposal, has drawn something else. */
bool sampler_is_refuted(const struct batch *b, const struct step_result *r, int i);
/* What to subtract from a raw logit: max + log(sum), one rounding for every token of the row. */
float sampler_log_norm(float max, uint64_t sum);
bool sampler_mode_is_logits(enum sl_logprobs_mode mode);
enum sl_logprobs_mode sampler_mode(const struct sampler *s);

/* ---- speculation (rejection.c) ----------------------------------------------------------------
 */

/* From now on a proposed token is kept with probability min(1, p / q), or replaced by a draw from
 * what p has beyond q (arXiv 2211.17192). Else it is kept while it equals the token drawn. */
void sampler_reject_by_probability(struct sampler *s);
/* A draft's token from its own logits, [vocab_size], with the request's parameters. prob NULL:
 * with the random number that the target will draw with at this place. Else with another, and
 * prob: [vocab_size] is what it was drawn from. TOKEN_BAD_LOGITS: none. */
int32_t sampler_draft(struct sampler *s, const struct sample_row *sr, const float *logits,
                      float *prob);

#endif
