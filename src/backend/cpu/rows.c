/* rows.c - what is done to each row by itself: embeddings, norms, activations.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"

#include <string.h>

enum { ALONE = 1 << 14 }; /* elements that one thread does sooner than it wakes another */

static void each_row(struct device *d, int rows, int n, pool_item_fn fn, void *ctx)
{
    if ((int64_t)rows * n > ALONE) {
        pool_for(d->pool, rows, fn, ctx);
        return;
    }
    for (int r = 0; r < rows; r++)
        fn(ctx, r, 0);
}

struct embed_job {
    struct device *d;
    float *h;
    const struct weight *e, *p;
    float scale;
    int pos_offset;
};

static void embed_row(void *ctx, int r, int thread)
{
    const struct embed_job *j = ctx;
    const struct batch *b = j->d->batch;
    int n = (j->e ? j->e : j->p)->cols;
    float *h = j->h + (size_t)r * n;
    (void)thread;
    if (j->e)
        weight_read_row(j->e, b->token[r], h);
    else
        memset(h, 0, (size_t)n * sizeof *h);
    for (int i = 0; i < n && j->scale != 1; i++)
        h[i] *= j->scale;
    if (!j->p)
        return;
    float pos[256]; /* a position's row is added piece by piece */
    for (int k = 0; k < n; k += 256) {
        int m = n - k < 256 ? n - k : 256;
        weight_read_part(j->p, b->pos[r] + j->pos_offset, k, m, pos);
        for (int i = 0; i < m; i++)
            h[k + i] += pos[i];
    }
}

void cpu_embed(struct device *d, float *h, const struct weight *e, float scale,
               const struct weight *p, int pos_offset)
{
    struct embed_job j = {d, h, e, p, scale, pos_offset};
    each_row(d, d->batch->n_tokens, (e ? e : p)->cols, embed_row, &j);
}

struct types_job {
    struct device *d;
    float *h;
    const struct weight *types;
};

static void types_row(void *ctx, int r, int thread)
{
    const struct types_job *j = ctx;
    int n = j->types->cols;
    float *h = j->h + (size_t)r * n, part[256];
    (void)thread;
    for (int k = 0; k < n; k += 256) {
        int m = n - k < 256 ? n - k : 256;
        weight_read_part(j->types, j->d->batch->token_type[r], k, m, part);
        for (int i = 0; i < m; i++)
            h[k + i] += part[i];
    }
}

void cpu_embed_types(struct device *d, float *h, const struct weight *types)
{
    struct types_job j = {d, h, types};
    each_row(d, d->batch->n_tokens, types->cols, types_row, &j);
}

void cpu_residual(struct device *d, float *h, const void *x, int rows, int n)
{
    (void)d;
    memcpy(h, x, (size_t)rows * n * sizeof *h);
}

struct norm_job {
    struct device *d;
    float *y, *h; /* y may be NULL: only the addition */
    const float *x, *add;
    float add_scale;
    const struct norm *norm;
    int n;
};

static void norm_row(void *ctx, int r, int thread)
{
    const struct norm_job *j = ctx;
    size_t at = (size_t)r * j->n;
    (void)thread;
    if (j->add)
        j->d->k.axpy(j->h + at, j->add + at, j->add_scale, j->n);
    if (j->y && j->norm)
        j->d->k.norm(j->y + at, j->x + at, j->norm, j->n);
    else if (j->y)
        memcpy(j->y + at, j->x + at, (size_t)j->n * sizeof *j->y);
}

void cpu_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                  const struct norm *norm, int rows, int n)
{
    struct norm_job j = {d, x, h, h, add, add_scale, norm, n};
    each_row(d, rows, n, norm_row, &j);
}

void cpu_norm(struct device *d, void *y, const void *x, const struct norm *norm, int rows, int n)
{
    struct norm_job j = {d, y, NULL, x, NULL, 0, norm, n};
    each_row(d, rows, n, norm_row, &j);
}

struct act_job {
    struct device *d;
    float *y;
    const float *x;
    enum act_kind kind;
    bool gated;
    int n;
};

static void act_row(void *ctx, int r, int thread)
{
    const struct act_job *j = ctx;
    const float *x = j->x + (size_t)r * j->n * (j->gated ? 2 : 1);
    (void)thread;
    j->d->k.act(j->y + (size_t)r * j->n, x, j->gated ? x + j->n : NULL, j->kind, j->n);
}

void cpu_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
             int n)
{
    struct act_job j = {d, y, x, kind, gated, n};
    each_row(d, rows, n, act_row, &j);
}
