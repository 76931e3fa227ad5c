/* SPDX-License-Identifier: Apache-2.0 */
#include "model/forward.h"

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Values a row in each buffer. */
struct widths {
    size_t hidden, wide, mid;
};

static struct widths widths(const struct model_spec *s)
{
    size_t q = (size_t)spec_dim(s, DIM_Q), kv = (size_t)spec_dim(s, DIM_KV), ffn = (size_t)s->ffn;
    return (struct widths){.hidden = (size_t)s->hidden,
                           .wide = max_size(q + 2 * kv, s->gated ? 2 * ffn : ffn),
                           .mid = max_size(q, ffn)};
}

size_t forward_bytes(const struct model_spec *s, size_t act_bytes, int max_tokens)
{
    struct widths w = widths(s);
    size_t row = w.hidden * sizeof(float) + (2 * w.hidden + w.wide + w.mid) * act_bytes;
    return row * (size_t)max_tokens;
}

enum sl_status forward_alloc(struct forward *f, int max_tokens, struct sl_err *err)
{
    struct widths w = widths(f->spec);
    const struct ops *ops = f->ops;
    size_t n = (size_t)max_tokens, act = ops->act_bytes;
    if ((f->h = ops->alloc(f->device, n * w.hidden * sizeof(float), "the residual", err)) &&
        (f->x = ops->alloc(f->device, n * w.hidden * act, "layer inputs", err)) &&
        (f->sub = ops->alloc(f->device, n * w.hidden * act, "layer outputs", err)) &&
        (f->wide = ops->alloc(f->device, n * w.wide * act, "wide activations", err)) &&
        (f->mid = ops->alloc(f->device, n * w.mid * act, "inner activations", err)))
        return SL_OK;
    return SL_FAIL(err, SL_ENOMEM, "no memory for activations of %d tokens", max_tokens);
}

void forward_fini(struct forward *f)
{
    void *all[] = {f->h, f->x, f->sub, f->wide, f->mid};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        f->ops->free(f->device, all[i]);
    f->h = NULL;
    f->x = f->sub = f->wide = f->mid = NULL;
}

static void attention(const struct forward *f, int l, int rows)
{
    const struct model_weights *w = f->weights;
    const struct ops *ops = f->ops;
    int rope = f->spec->layer[l].rope;
    ops->linear(f->device, f->wide, weights_matrix(w, SLOT_QKV, l), f->x, rows);
    ops->qkv_rope_cache(f->device, f->wide, &f->attn[l], rope < 0 ? NULL : &w->rope[rope],
                        weights_norm(w, SLOT_Q_NORM, l), weights_norm(w, SLOT_K_NORM, l));
    ops->attention(f->device, f->mid, f->wide, &f->attn[l]);
    ops->linear(f->device, f->sub, weights_matrix(w, SLOT_O, l), f->mid, rows);
}

static void mlp(const struct forward *f, int l, int rows)
{
    const struct model_weights *w = f->weights;
    const struct ops *ops = f->ops;
    ops->linear(f->device, f->wide, weights_matrix(w, SLOT_GATE_UP, l), f->x, rows);
    ops->act(f->device, f->mid, f->wide, f->spec->act, f->spec->gated, rows, f->spec->ffn);
    ops->linear(f->device, f->sub, weights_matrix(w, SLOT_DOWN, l), f->mid, rows);
}

void forward_run(const struct forward *f, int n_tokens)
{
    const struct model_spec *s = f->spec;
    const struct model_weights *w = f->weights;
    const struct ops *ops = f->ops;
    ops->embed(f->device, f->h, weights_matrix(w, SLOT_EMBED, -1), s->embed_scale, NULL, 0);
    ops->add_norm(f->device, f->x, f->h, NULL, 1, weights_norm(w, SLOT_ATTN_NORM, 0), n_tokens,
                  s->hidden);
    for (int l = 0; l < s->n_layers; l++) {
        attention(f, l, n_tokens);
        ops->add_norm(f->device, f->x, f->h, f->sub, s->residual_scale,
                      weights_norm(w, SLOT_MLP_NORM, l), n_tokens, s->hidden);
        mlp(f, l, n_tokens);
        const struct norm *next = l + 1 < s->n_layers ? weights_norm(w, SLOT_ATTN_NORM, l + 1)
                                                      : weights_norm(w, SLOT_FINAL_NORM, -1);
        ops->add_norm(f->device, f->x, f->h, f->sub, s->residual_scale, next, n_tokens, s->hidden);
    }
}
