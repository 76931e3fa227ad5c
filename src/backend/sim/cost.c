/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/sim/cost.h"

#include <string.h>

/* Ceilings measured on these machines (docs/scheduling.md); a real engine stays below them. The
 * launch cost is a guess: one replayed graph, or waking the compute threads. */
static const struct sim_device devices[] = {
    {"h200", 4.39e12, 750e12, 550e12, 20e3, 50e9},
    {"cpu", 31e9, 6e12, 6e12, 20e3, 15e9}, /* 2 cores with AMX */
};

const struct sim_device *sim_device_find(const char *name)
{
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if (strcmp(devices[i].name, name) == 0)
            return &devices[i];
    return NULL;
}

/* Positions that rows [pos, pos + n) see together: each itself and all before, within the window.
 */
static double visible_pairs(int64_t pos, int64_t n, int64_t window)
{
    int64_t last = pos + n;
    double all = 0.5 * ((double)last * (double)(last + 1) - (double)pos * (double)(pos + 1));
    if (window == 0 || last <= window)
        return all;
    if (pos >= window)
        return (double)(n * window);
    return visible_pairs(pos, window - pos, 0) + (double)((last - window) * window);
}

static double max_double(double a, double b)
{
    return a > b ? a : b;
}

/* Of blocks that go to host memory or come from there. */
static double host_bytes(const struct kv_layout *layout, const struct batch *b)
{
    double bytes = 0;
    for (int i = 0; i < b->n_copies; i++)
        if (b->copy[i].kind != COPY_ON_DEVICE)
            bytes += (double)layout->group[b->copy[i].group].bytes_per_token * layout->block_size;
    return bytes;
}

double sim_step_ns(const struct sim_device *d, const struct sim_model *m,
                   const struct kv_layout *layout, const struct batch *b)
{
    double kv_bytes = 0, pairs = 0;
    int n_layers = 0;
    for (int g = 0; g < layout->n_groups; g++)
        n_layers += layout->group[g].n_layers;
    for (int s = 0; s < b->n_seqs; s++) {
        int n = b->q_start[s + 1] - b->q_start[s], pos = b->kv_len[s] - n;
        for (int g = 0; g < layout->n_groups; g++) {
            const struct kv_group *group = &layout->group[g];
            double part = n_layers ? (double)group->n_layers / n_layers : 1.0 / layout->n_groups;
            int read = b->kv_len[s];
            if (group->window && read > group->window + n)
                read = group->window + n;
            kv_bytes += (double)read * (double)group->bytes_per_token;
            pairs += visible_pairs(pos, n, group->window) * part;
        }
    }
    double dense = max_double(m->weight_bytes / d->bytes_per_s,
                              (double)b->n_tokens * m->flops_per_token / d->flops_per_s);
    double copies = host_bytes(layout, b) / d->host_bytes_per_s;
    double attention =
        max_double(kv_bytes / d->bytes_per_s, pairs * m->attn_flops_per_pair / d->attn_flops_per_s);
    return (dense + attention + copies) * 1e9 + d->launch_ns;
}
