/* fuse.c - products of a few rows take in what stands before and after them.
 *
 * The forward pass asks for one op after the other. With few rows each is a microsecond or two of
 * work, and a launch costs as much; so a norm or a narrow product is held back until the next op is
 * known. norm + product: the product norms its own input, or the norm writes e4m3 for an FP8
 * product, at any number of rows. product + residual addition, product + gated activation: the
 * product does it as it writes, and so does a mixture of experts with the residual. Anything else
 * launches what is held first.
 * Bits are the same either way (narrow.cu).
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

bool cuda_plain_launches;

bool narrow_takes(const struct device *d, const struct weight *w, int m)
{
    return d->is_hopper && m <= NARROW_MAX && w->format == W_BF16 && w->cols % 16 == 0;
}

void run_narrow(struct device *d, const struct narrow_args *a)
{
    d->held.kind = HELD_NOTHING;
    if (!launch_narrow(d->stream, a, d->n_sms) && d->failed == cudaSuccess) {
        d->failed = cudaErrorInvalidValue;
        d->failed_what = "a narrow product's tensor maps";
    }
    cuda_note(d, "a narrow product");
}

/* The norm that is held; its rows as e4m3 too if `coded`. */
static void run_norm(struct device *d, const struct coded *coded)
{
    const struct held h = d->held;
    d->held.kind = HELD_NOTHING;
    launch_add_norm(d->stream, h.a.x_out, (float *)h.a.h, h.add, h.add_scale,
                    h.plain ? NULL : &h.a.norm, h.a.m, h.a.cols, coded);
    cuda_note(d, "add_norm");
}

static void run_experts(struct device *d)
{
    struct moe_args a = d->held.moe;
    d->held.kind = HELD_NOTHING;
    launch_moe_down(d->stream, &a, d->n_sms);
    cuda_note(d, "the experts' second products");
}

void fuse_flush(struct device *d)
{
    struct held *held = &d->held;
    struct narrow_args a = held->a;
    if (held->kind == HELD_LINEAR)
        run_narrow(d, &a);
    if (held->kind == HELD_EXPERTS)
        run_experts(d);
    if (held->kind == HELD_NORM)
        run_norm(d, NULL);
}

void fuse_fp8(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
              int rows)
{
    SL_ASSERT(rows <= d->coded_rows && w->cols <= d->fp8_cols);
    if (d->held.kind == HELD_NORM && d->held.a.x_out == x) {
        run_norm(d, &d->coded);
    } else {
        fuse_flush(d);
        launch_quantize(d->stream, &d->coded, x, rows, w->cols);
        cuda_note(d, "quantize");
    }
    launch_fp8_product(d->stream, y, out_f32, w->data, w->scale, w->rows, w->cols, &d->coded, rows);
    cuda_note(d, "an FP8 product");
}

/* Whether a narrow product can do the norm that is held. */
static bool narrow_norms(const struct held *h, const void *x)
{
    return h->kind == HELD_NORM && h->a.x_out == x && !h->add && !h->plain &&
           h->a.m <= NARROW_NORM_MAX;
}

/* The norm that is held becomes the product's, if it makes x. */
static void take_norm(struct device *d, struct narrow_args *a)
{
    const struct held *held = &d->held;
    if (narrow_norms(held, a->x)) {
        a->h = held->a.h;
        a->x_out = held->a.x_out;
        a->norm = held->a.norm;
    } else {
        fuse_flush(d);
    }
}

void fuse_linear_f32(struct device *d, float *y, const struct weight *w, const void *x, int rows)
{
    struct narrow_args a = {.w = w->data,
                            .rows = w->rows,
                            .cols = w->cols,
                            .x = x,
                            .m = rows,
                            .y = y,
                            .out_f32 = true,
                            .scale = 1};
    if (narrow_takes(d, w, rows)) {
        take_norm(d, &a);
        run_narrow(d, &a);
        return;
    }
    fuse_flush(d);
    gemm_run(d, y, true, w, x, rows);
}

void fuse_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows)
{
    if (!narrow_takes(d, w, rows)) {
        if (w->format == W_FP8) {
            fuse_fp8(d, y, false, w, x, rows);
        } else {
            fuse_flush(d);
            gemm_run(d, y, false, w, x, rows);
        }
        if (w->bias) {
            launch_add_bias(d->stream, y, w->bias, rows, w->rows);
            cuda_note(d, "add_bias");
        }
        return;
    }
    struct narrow_args a = {
        .w = w->data, .rows = w->rows, .cols = w->cols, .x = x, .m = rows, .bias = w->bias, .y = y};
    take_norm(d, &a);
    d->held = (struct held){.kind = HELD_LINEAR, .a = a};
}

void fuse_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                   const struct norm *norm, int rows, int n)
{
    struct held *held = &d->held;
    struct norm_args k = norm ? norm_args(norm) : (struct norm_args){0};
    if (held->kind == HELD_LINEAR && add && held->a.y == add) {
        struct narrow_args a = held->a;
        a.residual = h;
        a.add_scale = add_scale;
        run_narrow(d, &a);
        add = NULL;
    }
    if (held->kind == HELD_EXPERTS && add && held->moe.out == add) {
        held->moe.residual = h;
        held->moe.add_scale = add_scale;
        run_experts(d);
        add = NULL;
    }
    fuse_flush(d);
    if (!add && !x)
        return;
    *held = (struct held){
        .kind = HELD_NORM,
        .add = add,
        .add_scale = add_scale,
        .plain = !norm,
        .a = {.h = h, .x_out = x, .norm = k, .m = rows, .cols = n},
    };
    if (!x || (!d->fp8_cols && (add || !norm || rows > NARROW_NORM_MAX)))
        run_norm(d, NULL); /* nothing that follows could take it in */
}

void fuse_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
              int n)
{
    struct held *held = &d->held;
    if (held->kind == HELD_LINEAR && held->a.y == x && gated && !held->a.bias) {
        struct narrow_args a = held->a;
        a.gated = true;
        a.act = (int)kind;
        a.y = y;
        run_narrow(d, &a);
        return;
    }
    fuse_flush(d);
    launch_act(d->stream, y, x, (int)kind, gated, rows, n);
    cuda_note(d, "act");
}
