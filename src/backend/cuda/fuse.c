/* fuse.c - products take in what stands before and after them.
 *
 * The forward pass asks for one op after the other. With few rows each is a microsecond or two of
 * work, and a launch costs as much; with many, what one op writes and the next one reads are bytes
 * to be saved. So a norm or a product of our own is held back until the next op is known. norm +
 * product: the product norms its own input, or the norm writes e4m3 for an FP8 product. product +
 * gated activation: the product does it as it writes; with few rows also product + residual
 * addition (with many, the norm behind it adds for less), and so does a mixture of experts. A norm
 * of what a layer adds, as Gemma has it, is part of the norm behind the addition. A row or two
 * become e4m3 in the FP8 product itself. Anything else launches what is held first. Bits are the
 * same either way (narrow.cu, wide.cu, fp8_narrow.cu).
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

bool cuda_plain_launches;

/* Some of cuBLASLt's kernels begin with what K leaves over from their steps, which adds up in
 * another order: where these products run it gets only K without a rest. */
bool product_takes(const struct device *d, const struct weight *w, int m)
{
    bool rest = w->cols % 64 != 0;
    return d->is_hopper &&
           ((w->format == W_BF16 && w->cols % 8 == 0 && (m <= WIDE_BF16_MAX || rest)) ||
            (w->format == W_FP8 && w->cols % 16 == 0));
}

static bool is_narrow(const struct narrow_args *a)
{
    return a->m <= NARROW_MAX && a->cols % 16 == 0 && !a->w_scale;
}

void cuda_mapped(struct device *d, bool launched)
{
    if (launched || d->failed != cudaSuccess)
        return;
    d->failed = cudaErrorInvalidValue;
    d->failed_what = "a product's tensor maps";
}

void product_run(struct device *d, const struct narrow_args *a)
{
    d->held.kind = HELD_NOTHING;
    bool launched = is_narrow(a)                ? launch_narrow(d->stream, a, d->n_sms)
                    : a->w_scale && !a->x_scale ? launch_fp8_narrow(d->stream, a, d->n_sms)
                                                : launch_wide(d->stream, a, d->n_sms, -1);
    cuda_mapped(d, launched);
    cuda_note(d, "a product");
}

/* The norm that is held; its rows as e4m3 too if `coded`. */
static void run_norm(struct device *d, const struct coded *coded)
{
    const struct held h = d->held;
    d->held.kind = HELD_NOTHING;
    launch_add_norm(d->stream, h.a.x_out, (float *)h.a.h, h.add, h.add_scale,
                    h.has_post ? &h.post : NULL, h.plain ? NULL : &h.a.norm, h.a.m, h.a.cols,
                    coded);
    cuda_note(d, "add_norm");
}

static void run_post_norm(struct device *d)
{
    const struct narrow_args a = d->held.a;
    d->held.kind = HELD_NOTHING;
    launch_norm(d->stream, a.x_out, a.x_out, &a.norm, a.m, a.cols, (size_t)a.cols);
    cuda_note(d, "norm");
}

static void run_experts(struct device *d)
{
    struct moe_args a = d->held.moe;
    d->held.kind = HELD_NOTHING;
    cuda_mapped(d, launch_moe_down(d->stream, &a, d->n_sms));
    cuda_note(d, "the experts' second products");
}

void fuse_flush(struct device *d)
{
    struct held *held = &d->held;
    struct narrow_args a = held->a;
    if (held->kind == HELD_LINEAR)
        product_run(d, &a);
    if (held->kind == HELD_EXPERTS)
        run_experts(d);
    if (held->kind == HELD_NORM)
        run_norm(d, NULL);
    if (held->kind == HELD_POST_NORM)
        run_post_norm(d);
}

/* x to d->coded, by the norm that makes it if that is held. */
static void code_rows(struct device *d, const void *x, int rows, int n)
{
    SL_ASSERT(rows <= d->coded_rows && n <= d->fp8_cols);
    if (d->held.kind == HELD_NORM && d->held.a.x_out == x) {
        run_norm(d, &d->coded);
        return;
    }
    fuse_flush(d);
    launch_quantize(d->stream, &d->coded, x, rows, n);
    cuda_note(d, "quantize");
}

struct narrow_args fuse_input(struct device *d, const struct weight *w, const void *x, int rows)
{
    const struct held *h = &d->held;
    struct narrow_args a = {
        .w = w->data, .rows = w->rows, .cols = w->cols, .x = x, .m = rows, .bias = w->bias};
    const bool few =
        w->format == W_FP8 ? rows <= FP8_NARROW_MAX : rows <= NARROW_NORM_MAX && is_narrow(&a);
    if (w->format == W_FP8)
        a.w_scale = w->scale;
    if (w->format == W_FP8 && !few) {
        code_rows(d, x, rows, w->cols);
        a.x = d->coded.q;
        a.x_scale = d->coded.scale;
    } else if (few && h->kind == HELD_NORM && h->a.x_out == x && !h->add && !h->plain) {
        a.h = h->a.h;
        a.x_out = h->a.x_out;
        a.norm = h->a.norm;
    } else {
        fuse_flush(d);
    }
    return a;
}

void fuse_other(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
                int rows)
{
    if (w->format != W_FP8) {
        fuse_flush(d);
        gemm_run(d, y, out_f32, w, x, rows);
        return;
    }
    code_rows(d, x, rows, w->cols);
    launch_fp8_product(d->stream, y, out_f32, w->data, w->scale, w->rows, w->cols, &d->coded, rows);
    cuda_note(d, "an FP8 product");
}

void fuse_linear_f32(struct device *d, float *y, const struct weight *w, const void *x, int rows)
{
    if (!product_takes(d, w, rows)) {
        fuse_other(d, y, true, w, x, rows);
        return;
    }
    struct narrow_args a = fuse_input(d, w, x, rows);
    a.bias = NULL;
    a.y = y;
    a.out_f32 = true;
    a.scale = 1;
    product_run(d, &a);
}

void fuse_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows)
{
    if (product_takes(d, w, rows)) {
        struct narrow_args a = fuse_input(d, w, x, rows);
        a.y = y;
        d->held = (struct held){.kind = HELD_LINEAR, .a = a};
        return;
    }
    fuse_other(d, y, false, w, x, rows);
    if (w->bias) {
        launch_add_bias(d->stream, y, w->bias, rows, w->rows);
        cuda_note(d, "add_bias");
    }
}

void fuse_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                   const struct norm *norm, int rows, int n)
{
    struct held *held = &d->held;
    struct norm_args k = norm ? norm_args(norm) : (struct norm_args){0};
    if (held->kind == HELD_LINEAR && add && held->a.y == add && rows <= NARROW_MAX) {
        struct narrow_args a = held->a;
        a.residual = h;
        a.add_scale = add_scale;
        product_run(d, &a);
        add = NULL;
    }
    if (held->kind == HELD_EXPERTS && add && held->moe.out == add) {
        held->moe.residual = h;
        held->moe.add_scale = add_scale;
        run_experts(d);
        add = NULL;
    }
    const bool has_post = held->kind == HELD_POST_NORM && add && held->a.x_out == add;
    const struct norm_args post = held->a.norm;
    if (has_post)
        held->kind = HELD_NOTHING;
    fuse_flush(d);
    if (!add && !x)
        return;
    *held = (struct held){
        .kind = HELD_NORM,
        .add = add,
        .add_scale = add_scale,
        .plain = !norm,
        .has_post = has_post,
        .post = post,
        .a = {.h = h, .x_out = x, .norm = k, .m = rows, .cols = n},
    };
    if (!x || (!d->fp8_cols && (add || !norm || rows > NARROW_NORM_MAX)))
        run_norm(d, NULL); /* nothing that follows could take it in */
}

void fuse_post_norm(struct device *d, void *y, const struct norm *norm, int rows, int n)
{
    fuse_flush(d);
    d->held = (struct held){.kind = HELD_POST_NORM,
                            .a = {.x_out = y, .norm = norm_args(norm), .m = rows, .cols = n}};
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
        product_run(d, &a);
        return;
    }
    fuse_flush(d);
    launch_act(d->stream, y, x, (int)kind, gated, rows, n);
    cuda_note(d, "act");
}
