/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/ref/ref.h"

#include "base/fp8.h"

#include <math.h>
#include <string.h>

/* Sum of a[i] * x[i] in double: eight sums over i mod 8, added in pairs at the end. The order is
 * fixed; the products of two floats are exact. */
static double dot(const double *a, const float *x, int n)
{
    double s[8] = {0};
    int i = 0;
    for (; n - i >= 8; i += 8)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            s[j] += a[i + j] * (double)x[i + j];
    for (; i < n; i++)
        s[i % 8] += a[i] * (double)x[i];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static void widen(double *out, const void *data, enum wformat format, size_t from, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = (double)ref_get(data, format, from + (size_t)i);
}

/* ---- rows ---------------------------------------------------------------------------------- */

void ref_embed(struct device *d, float *h, const struct weight *e, float scale,
               const struct weight *p, int pos_offset)
{
    const struct batch *b = d->batch;
    size_t n = (size_t)(e ? e : p)->cols;
    for (int r = 0; r < b->n_tokens; r++) {
        SL_ASSERT(!e || (b->token[r] >= 0 && b->token[r] < e->rows));
        const float *own = e ? e->scale : NULL;
        for (size_t i = 0; i < n; i++) {
            float v = e ? ref_get(e->data, e->format, (size_t)b->token[r] * n + i) : 0;
            v = (own ? v * own[b->token[r]] : v) * scale;
            if (p)
                v += ref_get(p->data, p->format, (size_t)(b->pos[r] + pos_offset) * n + i);
            h[(size_t)r * n + i] = v;
        }
    }
}

void ref_embed_types(struct device *d, float *h, const struct weight *types)
{
    const struct batch *b = d->batch;
    size_t n = (size_t)types->cols;
    for (int r = 0; r < b->n_tokens; r++) {
        SL_ASSERT(b->token_type[r] >= 0 && b->token_type[r] < types->rows);
        for (size_t i = 0; i < n; i++)
            h[(size_t)r * n + i] +=
                ref_get(types->data, types->format, (size_t)b->token_type[r] * n + i);
    }
}

void ref_residual(struct device *d, float *h, const void *x, int rows, int n)
{
    (void)d;
    memcpy(h, x, (size_t)rows * (size_t)n * sizeof *h);
}

static void norm_row(float *y, const float *x, const struct norm *norm, int n)
{
    double mean = 0, square = 0;
    for (int i = 0; !norm->rms && i < n; i++)
        mean += (double)x[i] / n;
    for (int i = 0; i < n; i++)
        square += ((double)x[i] - mean) * ((double)x[i] - mean);
    double factor = 1 / sqrt(square / n + (double)norm->eps);
    for (int i = 0; i < n; i++) {
        double v = ((double)x[i] - mean) * factor;
        if (norm->w)
            v *= (double)norm->w[i];
        if (norm->b)
            v += (double)norm->b[i];
        y[i] = (float)v;
    }
}

void ref_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                  const struct norm *norm, int rows, int n)
{
    (void)d;
    for (int r = 0; r < rows; r++, h += n) {
        const float *a = add ? (const float *)add + (size_t)r * (size_t)n : NULL;
        for (int i = 0; a && i < n; i++)
            h[i] += a[i] * add_scale;
        float *y = x ? (float *)x + (size_t)r * (size_t)n : NULL;
        if (y && norm)
            norm_row(y, h, norm, n);
        else if (y)
            memcpy(y, h, (size_t)n * sizeof *y);
    }
}

void ref_norm(struct device *d, void *y, const void *x, const struct norm *norm, int rows, int n)
{
    (void)d;
    for (size_t r = 0; r < (size_t)rows; r++)
        norm_row((float *)y + r * (size_t)n, (const float *)x + r * (size_t)n, norm, n);
}

/* ---- matrices ------------------------------------------------------------------------------ */

/* Activations that meet e4m3 weights become e4m3 too, with a scale for each row. */
struct input {
    const float *x; /* what is multiplied: the rows, or their codes */
    const float *scale;
};

static struct input input_rows(struct device *d, const struct weight *w, const float *x,
                               const int32_t *row, int n)
{
    size_t cols = (size_t)w->cols;
    if (w->format != W_FP8)
        return (struct input){.x = x};
    SL_ASSERT((size_t)n * cols <= d->coded_cap);
    for (size_t i = 0; i < (size_t)n; i++) {
        const float *in = x + (row ? (size_t)row[i] : i) * cols;
        float *out = d->coded + i * cols;
        d->x_scale[i] = e4m3_scale(max_magnitude(in, cols));
        float inv = 1 / d->x_scale[i];
        for (size_t c = 0; c < cols; c++)
            out[c] = e4m3_f32(f32_e4m3(in[c] * inv));
    }
    return (struct input){d->coded, d->x_scale};
}

/* Sum of output o, whose widened weights are in d->row, for one row of x. */
static double output(const struct device *d, const struct weight *w, size_t o, const float *x,
                     const float *x_scale)
{
    const float *bias = w->bias, *scale = w->scale;
    double v = dot(d->row, x, w->cols);
    if (x_scale)
        v *= (double)*x_scale * (double)scale[o];
    return v + (bias ? (double)bias[o] : 0);
}

void ref_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows)
{
    const struct input in = input_rows(d, w, x, NULL, rows);
    size_t n = (size_t)w->cols;
    for (size_t o = 0; o < (size_t)w->rows; o++) {
        widen(d->row, w->data, w->format, o * n, w->cols);
        for (size_t r = 0; r < (size_t)rows; r++)
            ((float *)y)[r * (size_t)w->rows + o] =
                (float)output(d, w, o, in.x + r * n, in.scale ? in.scale + r : NULL);
    }
}

void ref_logits(struct device *d, float *logits, const struct weight *w, const void *x, int first,
                int n, float scale, float softcap)
{
    const int32_t *row = d->batch->logit_row + first;
    const struct input in = input_rows(d, w, x, row, n);
    size_t cols = (size_t)w->cols;
    for (size_t o = 0; o < (size_t)w->rows; o++) {
        widen(d->row, w->data, w->format, o * cols, w->cols);
        for (size_t i = 0; i < (size_t)n; i++) {
            size_t at = in.scale ? i : (size_t)row[i];
            double v = output(d, w, o, in.x + at * cols, in.scale ? in.scale + i : NULL);
            v *= (double)scale;
            if (softcap != 0)
                v = (double)softcap * tanh(v / (double)softcap);
            logits[i * (size_t)w->rows + o] = (float)v;
        }
    }
}

static double activate(enum act_kind kind, double x)
{
    switch (kind) {
    case ACT_SILU:
        return x / (1 + exp(-x));
    case ACT_GELU:
        return x * 0.5 * (1 + erf(x * 0.70710678118654752440));
    case ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case ACT_RELU:
        return x > 0 || isnan(x) ? x : 0;
    case ACT_RELU2:
        return x > 0 || isnan(x) ? x * x : 0;
    }
    return x;
}

void ref_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
             int n)
{
    (void)d;
    size_t width = (size_t)n * (gated ? 2 : 1);
    for (size_t r = 0; r < (size_t)rows; r++) {
        const float *in = (const float *)x + r * width;
        float *out = (float *)y + r * (size_t)n;
        for (int i = 0; i < n; i++) {
            double v = activate(kind, (double)in[i]);
            out[i] = (float)(gated ? v * (double)in[n + i] : v);
        }
    }
}

/* ---- attention ----------------------------------------------------------------------------- */

static void rotate(float *head, const struct rope *rope, int pos)
{
    int half = rope->rot_dims / 2;
    for (int i = 0; i < half; i++) {
        double angle = (double)((float)pos * rope->inv_freq[i]);
        double c = cos(angle) * (double)rope->mscale, s = sin(angle) * (double)rope->mscale;
        float *a = head + (rope->interleaved ? 2 * i : i);
        float *b = head + (rope->interleaved ? 2 * i + 1 : i + half);
        double x = (double)*a, y = (double)*b;
        *a = (float)(x * c - y * s);
        *b = (float)(y * c + x * s);
    }
}

/* The heads of q (or k) in one row. */
static void norm_heads(float *x, const struct norm *norm, enum qk_norm kind, int n_heads, int n)
{
    if (kind == QK_NORM_ALL)
        norm_row(x, x, norm, n_heads * n);
    for (int h = 0; kind != QK_NORM_ALL && h < n_heads; h++) {
        struct norm own = *norm;
        if (kind == QK_NORM_HEADS)
            own.w += (size_t)h * (size_t)n;
        norm_row(x + (size_t)h * (size_t)n, x + (size_t)h * (size_t)n, &own, n);
    }
}

/* One head's K or V at one position, number `at` of them all. */
static void cache_head(const struct device *d, void *data, float *scale, size_t at, const float *x,
                       int n)
{
    float inv = 1;
    if (scale) {
        scale[at] = e4m3_scale(max_magnitude(x, (size_t)n));
        inv = 1 / scale[at];
    }
    for (int i = 0; i < n; i++)
        ref_put(data, d->kv_format, at * (size_t)n + (size_t)i, x[i] * inv);
}

void ref_qkv_rope_cache(struct device *d, void *qkv, const struct attn_spec *a,
                        const struct rope *rope, const struct norm *q_norm,
                        const struct norm *k_norm)
{
    const struct batch *b = d->batch;
    const struct ref_kv *kv = &d->kv[a->group][a->layer_in_group];
    const int32_t *slot = b->slot + (size_t)a->group * (size_t)b->limits.max_tokens;
    int n_rotated = a->n_heads + a->n_kv_heads;
    size_t width = (size_t)(n_rotated + a->n_kv_heads) * (size_t)a->head_dim;
    for (int r = 0; r < b->n_tokens; r++) {
        float *row = (float *)qkv + (size_t)r * width;
        float *k = row + (size_t)a->n_heads * (size_t)a->head_dim, *v = k + kv->width;
        if (q_norm)
            norm_heads(row, q_norm, a->qk_norm, a->n_heads, a->head_dim);
        if (k_norm)
            norm_heads(k, k_norm, a->qk_norm, a->n_kv_heads, a->head_dim);
        for (int h = 0; rope && rope->inv_freq && h < n_rotated; h++)
            rotate(row + (size_t)h * (size_t)a->head_dim, rope, b->pos[r]);
        for (int h = 0; h < kv->n_heads; h++) {
            size_t at = (size_t)slot[r] * (size_t)kv->n_heads + (size_t)h;
            cache_head(d, kv->k, kv->k_scale, at, k + h * a->head_dim, a->head_dim);
            cache_head(d, kv->v, kv->v_scale, at, v + h * a->head_dim, a->head_dim);
        }
    }
}

/* One query head over positions [from, to) of its sequence. */
struct query {
    const struct attn_spec *a;
    const struct ref_kv *kv;
    const int32_t *block;
    const double *q;
    int pos, from, to, head;
};

/* The head's n values of K or V at a position, as floats: in place if the cache holds floats. */
static const float *kv_row(struct device *d, const struct query *q, const void *data,
                           const float *scale, int pos)
{
    int kv_head = q->head / (q->a->n_heads / q->a->n_kv_heads), n = q->a->head_dim;
    size_t slot = (size_t)q->block[pos / d->block_size] * (size_t)d->block_size +
                  (size_t)(pos % d->block_size);
    size_t head = slot * (size_t)q->kv->n_heads + (size_t)kv_head, at = head * (size_t)n;
    if (d->kv_format == W_F32)
        return (const float *)data + at;
    for (int i = 0; i < n; i++)
        d->kv_row[i] = ref_get(data, d->kv_format, at + (size_t)i) * (scale ? scale[head] : 1);
    return d->kv_row;
}

static double score(struct device *d, const struct query *q, int pos)
{
    double s = dot(q->q, kv_row(d, q, q->kv->k, q->kv->k_scale, pos), q->a->head_dim) *
               (double)q->a->scale;
    if (q->a->softcap != 0)
        s = (double)q->a->softcap * tanh(s / (double)q->a->softcap);
    if (q->a->alibi)
        s += (double)q->a->alibi[q->head] * (pos - q->pos);
    return s;
}

/* n % 8 == 0, as every head size is. */
static void add_scaled(double *restrict acc, double w, const float *restrict v, int n)
{
    for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++)
            acc[i + j] += w * (double)v[i + j];
}

/* Softmax over chunks at absolute positions, combined in order:
 * acc <- acc e^(m - m') + sum of e^(s - m') v. */
static void attend(struct device *d, const struct query *q, double *acc, float *out)
{
    double top = -INFINITY, total = 0;
    int n = q->a->head_dim;
    for (int i = 0; i < n; i++)
        acc[i] = 0;
    for (int begin = q->from; begin < q->to;) {
        int end = (begin / ATTN_CHUNK + 1) * ATTN_CHUNK;
        end = end < q->to ? end : q->to;
        double m = top;
        for (int p = begin; p < end; p++) {
            d->chunk[p - begin] = score(d, q, p);
            m = fmax(m, d->chunk[p - begin]);
        }
        double old = exp(top - m); /* 0 for the first chunk */
        total *= old;
        for (int i = 0; i < n; i++)
            acc[i] *= old;
        for (int p = begin; p < end; p++) {
            double w = exp(d->chunk[p - begin] - m);
            total += w;
            add_scaled(acc, w, kv_row(d, q, q->kv->v, q->kv->v_scale, p), n);
        }
        top = m;
        begin = end;
    }
    for (int i = 0; i < n; i++)
        out[i] = (float)(acc[i] / total);
}

void ref_attention(struct device *d, void *out, const void *qkv, const struct attn_spec *a)
{
    const struct batch *b = d->batch;
    size_t n = (size_t)a->head_dim;
    size_t width = (size_t)(a->n_heads + 2 * a->n_kv_heads) * n;
    double *wide_q = d->row, *acc = d->row + n;
    for (int s = 0; s < b->n_seqs; s++) {
        int n_blocks;
        struct query q = {.a = a,
                          .kv = &d->kv[a->group][a->layer_in_group],
                          .block = batch_blocks(b, a->group, s, &n_blocks),
                          .q = wide_q};
        for (int r = b->q_start[s]; r < b->q_start[s + 1]; r++)
            for (q.head = 0; q.head < a->n_heads; q.head++) {
                q.pos = b->pos[r];
                q.to = a->causal ? q.pos + 1 : b->kv_len[s];
                q.from = a->window && q.pos + 1 > a->window ? q.pos + 1 - a->window : 0;
                const float *in = (const float *)qkv + (size_t)r * width + (size_t)q.head * n;
                widen(wide_q, in, W_F32, 0, a->head_dim);
                attend(d, &q, acc,
                       (float *)out + ((size_t)r * (size_t)a->n_heads + (size_t)q.head) * n);
            }
    }
}
