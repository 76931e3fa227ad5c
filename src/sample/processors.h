/* processors.h - what a request's parameters do to its logits before the draw.
 *
 * In vLLM's order: allowed ids, bad words, min_tokens, logit_bias, then repetition, frequency and
 * presence penalty. Everything is derived from the request's parameters and its tokens so far, so
 * nothing has to survive a preemption. Counting costs O(tokens), beside the O(vocabulary) pass that
 * such a row needs anyway.
 *
 * Thread: any; scratch is the caller's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SAMPLE_PROCESSORS_H
#define SL_SAMPLE_PROCESSORS_H

#include "core/sequence.h"

/* Does processors_apply change anything for the token at position `pos`? */
bool processors_needed(const struct sequence *seq, int pos);
/* x: [n] logits, changed in place. count: [n], all zero before and after; seen: [n]. */
void processors_apply(const struct sequence *seq, int pos, float *x, int n, uint32_t *count,
                      int32_t *seen);

#endif
