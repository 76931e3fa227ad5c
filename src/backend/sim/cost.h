/* cost.h - how long a machine takes for a step: a roofline, and nothing measured of this program.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Immutable.   Thread: any. */
#ifndef SL_BACKEND_SIM_COST_H
#define SL_BACKEND_SIM_COST_H

#include "core/batch.h"

struct sim_device {
    const char *name;
    double bytes_per_s;      /* memory, read */
    double flops_per_s;      /* dense products, bf16 */
    double attn_flops_per_s; /* causal attention, prefill */
    double launch_ns;        /* a step costs this beside its work */
    double host_bytes_per_s; /* KV blocks to host memory or back */
};

const struct sim_device *sim_device_find(const char *name); /* NULL: no such preset */

struct sim_model {
    double weight_bytes;        /* read once a step */
    double flops_per_token;     /* dense products, a row */
    double attn_flops_per_pair; /* attention, a row and a position that it sees; all layers */
};

double sim_step_ns(const struct sim_device *d, const struct sim_model *m,
                   const struct kv_layout *layout, const struct batch *b);

#endif
