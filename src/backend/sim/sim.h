/* sim.h - a backend that takes virtual time and makes up tokens.
 *
 * A step lasts as long as a roofline says: the dense products take max(weight bytes / bandwidth,
 * flops / rate), attention takes max(KV bytes / bandwidth, flops / rate), and a launch costs
 * something; see cost.h. Its tokens are a hash of (request seed, choice, position): they do not
 * depend on the batch, nor on depth. The scheduler and server above are the real ones.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: the engine thread. */
#ifndef SL_BACKEND_SIM_SIM_H
#define SL_BACKEND_SIM_SIM_H

#include "backend/backend.h"

struct sim_config {
    const char *device;                                        /* "h200" or "cpu" */
    double weight_bytes, flops_per_token, attn_flops_per_pair; /* of the model */
    double fixed_step_ns; /* > 0: every step lasts this, whatever it computes */
    int fail_step;        /* > 0: that one is refused, and all after it */
    int vocab_size, depth, max_seqs;
    bool real_time; /* collect() sleeps until the virtual step is over */
    struct kv_layout layout;
    int32_t eos; /* never made up, unless < 0 */
};

SL_MUST_CHECK enum sl_status sim_create(struct backend **out, const struct sim_config *cfg,
                                        struct sl_err *err);
/* Virtual time during which the device computed, summed. */
int64_t sim_busy_ns(const struct backend *be);

#endif
