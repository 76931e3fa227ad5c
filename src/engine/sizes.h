/* sizes.h - how much of everything: computed from the machine and the model, never profiled.
 *
 * Thread: any (plain functions).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_SIZES_H
#define SL_ENGINE_SIZES_H

#include "sched/sched.h"

/* What the defaults depend on. */
struct machine {
    enum sl_device device;
    int threads;
    uint64_t memory_left; /* bytes, of the host or of the device's own; 0: unknown */
    uint64_t memory;      /* the device's own in all, 0: it has none */
    uint64_t step_bytes;  /* what a step's buffers will take of it */
    double flops_per_token, core_flops_per_s; /* the latter of a host device */
    double flops_per_s, host_bytes_per_s; /* estimates: prefill, copies to host memory and back */
};

/* Fills max_num_batched_tokens and max_num_seqs where they are 0, and turns
 * enable_chunked_prefill = false into its policy. */
void sizes_batch(struct sl_config *cfg, const struct machine *m, int max_model_len);
/* Bytes for the KV cache: cfg's, or the default of the device. */
uint64_t sizes_kv_bytes(const struct sl_config *cfg, const struct machine *m);
size_t sizes_block_bytes(const struct kv_layout *l);

struct kv_sizes {
    int n_blocks, max_model_len;
    uint64_t n_tokens;
};
/* How many blocks, and how long a sequence may be. max_position: the model's own limit. SL_EINVAL,
 * SL_ENOMEM: what was asked for does not fit, with the numbers that would. */
SL_MUST_CHECK enum sl_status sizes_kv(struct kv_sizes *out, const struct sl_config *cfg,
                                      const struct kv_layout *l, uint64_t kv_bytes,
                                      int max_position, struct sl_err *err);
/* KV in host memory: how many blocks, what for, and what copying and computing take. SL_ENOMEM:
 * there is not so much of it. */
SL_MUST_CHECK enum sl_status sizes_host_kv(struct sched_config *s, const struct sl_config *cfg,
                                           const struct machine *m, struct sl_err *err);

#endif
