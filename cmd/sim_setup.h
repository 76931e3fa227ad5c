/* sim_setup.h - what bench sim and bench policies make of the command line.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_SIM_SETUP_H
#define CMD_SIM_SETUP_H

#include "options.h"
#include "replay.h"

struct sim_setup {
    const char *device, *model; /* names for the report */
    struct sched_config sched;
    double weight_bytes, flops_per_token, attn_flops_per_pair;
    double fixed_step_ns; /* 0: the roofline */
    int vocab_size;
};

/* The model's shape from its config.json, or Llama-3.1-8B's in bf16 when none is named. */
bool sim_setup_make(struct sim_setup *s, const struct options *o, struct sl_err *err);
bool sim_setup_backend(struct backend **out, const struct sim_setup *s, struct sl_err *err);
/* The trace, or --random-input-len and --random-output-len, as --num-prompts, --replicate and
 * --rate-scale say. */
bool sim_setup_load(struct replay_load *l, const struct options *o, int max_len,
                    struct sl_err *err);

#endif
