/* moe.c - a mixture of experts on the CUDA device: the order of its launches, and their memory.
 *
 * router, routing, gate and up with their activation, down with the weighted sum; of the shared
 * expert the dense products before those. Numbers of pairs and tiles stay on the device.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

struct carved {
    struct moe_args a;
    float *logits;                               /* [rows, n_experts] */
    void *shared_wide, *shared_mid, *shared_out; /* [rows, 2 shared_ffn], ..., [rows, hidden] */
};

struct carver {
    char *base; /* NULL: only counting */
    size_t used;
};

static void *take(struct carver *c, size_t n, size_t bytes)
{
    size_t at = c->used;
    c->used += (n * bytes + 255) & ~(size_t)255;
    return c->base ? c->base + at : NULL;
}

static size_t carve(struct carved *c, void *base, const struct moe *m, int hidden, int rows)
{
    struct carver from = {.base = base};
    size_t n = (size_t)rows, pairs = n * (size_t)m->top_k, experts = (size_t)m->n_experts;
    size_t tiles = pairs / 8 + (pairs < experts ? pairs : experts), shared = (size_t)m->shared_ffn;
    *c = (struct carved){.logits = take(&from, n * experts, sizeof(float))};
    c->a.expert = take(&from, pairs, sizeof(int32_t));
    c->a.weight = take(&from, pairs, sizeof(float));
    c->a.pair_of = take(&from, pairs, sizeof(int32_t));
    c->a.row_of = take(&from, pairs, sizeof(int32_t));
    c->a.tile = take(&from, tiles, 4 * sizeof(int32_t));
    c->a.n_tiles = take(&from, 1, sizeof(int32_t));
    c->a.first = take(&from, experts + 1, sizeof(int32_t));
    c->a.mid = take(&from, pairs * (size_t)m->ffn, 2);
    c->a.sub = take(&from, pairs * (size_t)hidden, 2);
    c->a.shared_weight = take(&from, n, sizeof(float));
    c->shared_wide = take(&from, n * 2 * shared, 2);
    c->shared_mid = take(&from, n * shared, 2);
    c->shared_out = take(&from, shared ? n * (size_t)hidden : 0, 2);
    return from.used;
}

size_t cuda_moe_bytes(const struct moe *m, int hidden, int rows)
{
    struct carved c;
    return carve(&c, NULL, m, hidden, rows);
}

void cuda_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
              void *scratch)
{
    struct carved c;
    struct moe_args *a = &c.a;
    carve(&c, scratch, m, m->router->cols, rows);
    fuse_linear_f32(d, c.logits, m->router, x, rows);
    if (m->shared_gate_up) {
        fuse_linear(d, c.shared_wide, m->shared_gate_up, x, rows);
        fuse_act(d, c.shared_mid, c.shared_wide, m->act, true, rows, m->shared_ffn);
        fuse_linear(d, c.shared_out, m->shared_down, c.shared_mid, rows);
        a->shared = c.shared_out;
        a->shared_gate = m->shared_gate ? m->shared_gate->data : NULL;
    }
    fuse_flush(d);
    a->rows = rows;
    a->top_k = m->top_k;
    a->n_experts = m->n_experts;
    a->hidden = m->router->cols;
    a->ffn = m->ffn;
    a->act = (int)m->act;
    a->renormalize = m->renormalize;
    a->slot = d->arrays[0].slot;
    a->logits = c.logits;
    a->forced = m->forced;
    a->x = x;
    a->gate_up = m->gate_up[0].data;
    a->down = m->down[0].data;
    a->tile_rows = moe_tile_rows(rows, m->top_k, m->n_experts, d->is_hopper);
    a->wide = d->is_hopper;
    a->out = out;
    launch_moe_route(d->stream, a);
    cuda_note(d, "routing to experts");
    cuda_mapped(d, launch_moe_gate_up(d->stream, a, d->n_sms));
    cuda_note(d, "the experts' first products");
    d->held = (struct held){.kind = HELD_EXPERTS, .moe = *a};
}
