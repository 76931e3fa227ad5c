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
    size_t q = (size_t)spec_dim(s, DIM_Q), kv = (size_t)spec_dim(s, DIM_KV);
    size_t ffn = 0;
    for (int l = 0; l < s->n_layers; l++) /* a mixture's experts use its own scratch */
        ffn = s->layer[l].moe ? ffn : (size_t)s->ffn;
    return (struct widths){.hidden = max_size((size_t)s->hidden, (size_t)spec_dim(s, DIM_EMBED)),
                           .wide = max_size(q + 2 * kv, s->gated ? 2 * ffn : ffn),
                           .mid = max_size(q, ffn)};
}

static size_t moe_bytes(const struct forward *f, int max_tokens)
{
    size_t most = 0;
    for (int l = 0; l < f->spec->n_layers; l++)
        if (f->spec->layer[l].moe)
            most = max_size(
                most, f->ops->moe_bytes(&f->weights->set[1 + l].moe, f->spec->hidden, max_tokens));
    return most;
}

size_t forward_bytes(const struct forward *f, int max_tokens)
{
    struct widths w = widths(f->spec);
    size_t acts = (2 + (size_t)f->n_keep) * w.hidden + w.wide + w.mid;
    size_t row = w.hidden * sizeof(float) + acts * f->ops->act_bytes;
    return row * (size_t)max_tokens + moe_bytes(f, max_tokens);
}

enum sl_status forward_alloc(struct forward *f, int max_tokens, struct sl_err *err)
{
    struct widths w = widths(f->spec);
    const struct ops *ops = f->ops;
    size_t n = (size_t)max_tokens, act = ops->act_bytes, moe = moe_bytes(f, max_tokens);
    for (int i = 0; i < f->n_keep; i++)
        if (!(f->kept[i] = ops->alloc(f->device, n * w.hidden * act, "kept layers", err)))
            return SL_FAIL(err, SL_ENOMEM, "no memory for hidden states of %d tokens", max_tokens);
    if ((f->h = ops->alloc(f->device, n * w.hidden * sizeof(float), "the residual", err)) &&
        (f->x = ops->alloc(f->device, n * w.hidden * act, "layer inputs", err)) &&
        (f->sub = ops->alloc(f->device, n * w.hidden * act, "layer outputs", err)) &&
        (f->wide = ops->alloc(f->device, n * w.wide * act, "wide activations", err)) &&
        (f->mid = ops->alloc(f->device, n * w.mid * act, "inner activations", err)) &&
        (!moe || (f->moe = ops->alloc(f->device, moe, "experts' activations", err))))
        return SL_OK;
    return SL_FAIL(err, SL_ENOMEM, "no memory for activations of %d tokens", max_tokens);
}

void forward_fini(struct forward *f)
{
    void *all[] = {f->h, f->x, f->sub, f->wide, f->mid, f->moe};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        f->ops->free(f->device, all[i]);
    for (int i = 0; i < f->n_keep; i++) {
        f->ops->free(f->device, f->kept[i]);
        f->kept[i] = NULL;
    }
    f->h = NULL;
    f->x = f->sub = f->wide = f->mid = f->moe = NULL;
}

/* x -> sub */
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

/* x -> sub */
static void mlp(const struct forward *f, int l, int rows)
{
    const struct model_weights *w = f->weights;
    const struct ops *ops = f->ops;
    if (f->spec->layer[l].moe) {
        ops->moe(f->device, f->sub, f->x, &w->set[1 + l].moe, rows, f->moe);
        return;
    }
    const struct weight *up = weights_matrix(w, SLOT_GATE_UP, l);
    if (ops->linear_act) {
        ops->linear_act(f->device, f->mid, f->wide, up, f->x, f->spec->act, f->spec->gated, rows);
    } else {
        ops->linear(f->device, f->wide, up, f->x, rows);
        ops->act(f->device, f->mid, f->wide, f->spec->act, f->spec->gated, rows, f->spec->ffn);
    }
    ops->linear(f->device, f->sub, weights_matrix(w, SLOT_DOWN, l), f->mid, rows);
}

/* sub = norm(sub), where the family has a norm there. */
static void post_norm(const struct forward *f, enum slot slot, int l, int rows)
{
    const struct norm *norm = weights_norm(f->weights, slot, l);
    if (norm)
        f->ops->norm(f->device, f->sub, f->sub, norm, rows, f->spec->hidden);
}

/* h += sub; x = norm(h), or h itself where the family has no norm there. */
static void add_norm(const struct forward *f, const void *sub, enum slot slot, int l, int rows)
{
    f->ops->add_norm(f->device, f->x, f->h, sub, f->spec->residual_scale,
                     weights_norm(f->weights, slot, l), rows, f->spec->hidden);
}

/* h = norm(h + sub), and x the same as activations; sub NULL: of h alone. Without a norm h stays.
 */
static void norm_residual(const struct forward *f, const void *sub, enum slot slot, int l, int rows)
{
    const struct norm *norm = weights_norm(f->weights, slot, l);
    f->ops->add_norm(f->device, f->x, f->h, sub, f->spec->residual_scale, norm, rows,
                     f->spec->hidden);
    if (norm)
        f->ops->residual(f->device, f->h, f->x, rows, f->spec->hidden);
}

/* Layer l's output is in h. */
static void keep(const struct forward *f, int l, int rows)
{
    for (int i = 0; i < f->n_keep; i++)
        if (f->keep_layer[i] == l)
            f->ops->add_norm(f->device, f->kept[i], f->h, NULL, 1, NULL, rows, f->spec->hidden);
}

/* Layers whose norms are over the residual: BERT and those after it, OPT-350m. */
static void run_post_norm(const struct forward *f, int n_tokens)
{
    const struct model_spec *s = f->spec;
    if (s->n_types)
        f->ops->embed_types(f->device, f->h, weights_matrix(f->weights, SLOT_TYPES, -1));
    norm_residual(f, NULL, SLOT_EMBED_NORM, -1, n_tokens);
    for (int l = 0; l < s->n_layers; l++) {
        attention(f, l, n_tokens);
        norm_residual(f, f->sub, SLOT_ATTN_POST_NORM, l, n_tokens);
        mlp(f, l, n_tokens);
        norm_residual(f, f->sub, SLOT_MLP_POST_NORM, l, n_tokens);
        keep(f, l, n_tokens);
    }
}

static void run_pre_norm(const struct forward *f, int n_tokens)
{
    const struct model_spec *s = f->spec;
    add_norm(f, NULL, SLOT_ATTN_NORM, 0, n_tokens);
    for (int l = 0; l < s->n_layers; l++) {
        attention(f, l, n_tokens);
        post_norm(f, SLOT_ATTN_POST_NORM, l, n_tokens);
        if (!s->parallel) {
            add_norm(f, f->sub, SLOT_MLP_NORM, l, n_tokens);
        } else {
            if (!s->one_norm) /* of h as attention saw it */
                add_norm(f, NULL, SLOT_MLP_NORM, l, n_tokens);
            f->ops->add_norm(f->device, NULL, f->h, f->sub, s->residual_scale, NULL, n_tokens,
                             s->hidden);
        }
        mlp(f, l, n_tokens);
        post_norm(f, SLOT_MLP_POST_NORM, l, n_tokens);
        bool last = l + 1 == s->n_layers;
        add_norm(f, f->sub, last ? SLOT_FINAL_NORM : SLOT_ATTN_NORM, last ? -1 : l + 1, n_tokens);
        keep(f, l, n_tokens);
    }
}

/* h = embeddings and positions. */
static void embed(const struct forward *f, int rows)
{
    const struct model_spec *s = f->spec;
    const struct ops *ops = f->ops;
    const struct weight *e = weights_matrix(f->weights, SLOT_EMBED, -1);
    const struct weight *p = s->n_positions ? weights_matrix(f->weights, SLOT_POSITIONS, -1) : NULL;
    if (!s->embed_width) {
        ops->embed(f->device, f->h, e, s->embed_scale, p, s->pos_offset);
        return;
    }
    ops->embed(f->device, f->h, e, s->embed_scale, NULL, 0);
    ops->add_norm(f->device, f->x, f->h, NULL, 1, NULL, rows, s->embed_width);
    ops->linear(f->device, f->sub, weights_matrix(f->weights, SLOT_PROJECT_IN, -1), f->x, rows);
    ops->embed(f->device, f->h, NULL, 1, p, s->pos_offset);
    ops->add_norm(f->device, NULL, f->h, f->sub, 1, NULL, rows, s->hidden);
}

/* x, of the residual's width, becomes x of the embeddings'. */
static void project_out(const struct forward *f, int rows)
{
    const struct ops *ops = f->ops;
    int n = f->spec->embed_width;
    ops->linear(f->device, f->sub, weights_matrix(f->weights, SLOT_PROJECT_OUT, -1), f->x, rows);
    ops->residual(f->device, f->h, f->sub, rows, n);
    ops->add_norm(f->device, f->x, f->h, NULL, 1, NULL, rows, n);
}

void forward_run(const struct forward *f, int n_tokens)
{
    embed(f, n_tokens);
    if (f->spec->post_norm)
        run_post_norm(f, n_tokens);
    else
        run_pre_norm(f, n_tokens);
    if (f->spec->embed_width)
        project_out(f, n_tokens);
}
