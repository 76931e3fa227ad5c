/* SPDX-License-Identifier: Apache-2.0 */
#include "model/pool.h"

#include "base/mem.h"
#include "model/spec.h"

#include <math.h>
#include <string.h>

void pool_head_fini(struct pool_head *h)
{
    mem_free(h->dense);
    mem_free(h->dense_bias);
    mem_free(h->out);
    mem_free(h->out_bias);
    *h = (struct pool_head){0};
}

/* ---- rows ---------------------------------------------------------------------------------- */

static void take_row(struct pooling *p, const float *row, int pos, int hidden)
{
    if (p->kind == POOL_ALL) {
        memcpy(p->out + (size_t)pos * (size_t)p->n_cols, row, (size_t)p->n_cols * sizeof *row);
        return;
    }
    bool add = p->kind == POOL_MEAN && pos > 0;
    if (p->kind == POOL_CLS && pos > 0)
        return;
    for (int i = 0; i < hidden; i++)
        p->sum[i] = (add ? p->sum[i] : 0) + (double)row[i];
}

void pool_take(struct pooling *p, const float *rows, int pos, int n, int hidden)
{
    for (int i = 0; i < n; i++) {
        if (pos + i < p->n_done)
            continue; /* computed again after a preemption */
        take_row(p, rows + (size_t)i * (size_t)hidden, pos + i, hidden);
        p->n_done = pos + i + 1;
    }
}

/* ---- the end ------------------------------------------------------------------------------- */

/* v / max(|v|, tiny), as torch's normalize does. */
static void normalize(float *v, int n)
{
    double square = 0;
    for (int i = 0; i < n; i++)
        square += (double)v[i] * (double)v[i];
    double length = sqrt(square);
    for (int i = 0; i < n; i++)
        v[i] = (float)((double)v[i] / (length > 1e-12 ? length : 1e-12));
}

static double dot(const float *w, const double *x, int n)
{
    double s[4] = {0};
    int i = 0;
    for (; n - i >= 4; i += 4)
        for (int j = 0; j < 4; j++)
            s[j] += (double)w[i + j] * x[i + j];
    for (; i < n; i++)
        s[0] += (double)w[i] * x[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* In place over p->sum; `out` of it is as long as the head's dense matrix is wide. */
static void head_dense(double *x, float *scratch, const struct model_spec *s,
                       const struct pool_head *h)
{
    for (int i = 0; i < s->hidden; i++) {
        double v = dot(h->dense + (size_t)i * (size_t)s->hidden, x, s->hidden) +
                   (h->dense_bias ? (double)h->dense_bias[i] : 0);
        scratch[i] = (float)(s->pool.head_act == HEAD_TANH ? tanh(v) : v > 0 ? v : 0);
    }
    for (int i = 0; i < s->hidden; i++)
        x[i] = (double)scratch[i];
}

static void softmax(float *v, int n)
{
    double most = (double)v[0], sum = 0;
    for (int i = 1; i < n; i++)
        most = (double)v[i] > most ? (double)v[i] : most;
    for (int i = 0; i < n; i++)
        sum += exp((double)v[i] - most);
    for (int i = 0; i < n; i++)
        v[i] = (float)(exp((double)v[i] - most) / sum);
}

static void classify(struct pooling *p, const struct model_spec *s, const struct pool_head *h)
{
    float *out = p->out;
    if (h->dense) /* its row fits: out has room for one of hidden values */
        head_dense(p->sum, out, s, h);
    int n = s->pool.n_labels, width = spec_dim(s, DIM_EMBED);
    for (int i = 0; i < n; i++)
        out[i] = (float)(dot(h->out + (size_t)i * (size_t)width, p->sum, width) +
                         (h->out_bias ? (double)h->out_bias[i] : 0));
    bool sigmoids = s->pool.head_out == HEAD_SIGMOIDS || n == 1;
    if (!p->activate || s->pool.head_out == HEAD_PLAIN)
        return;
    for (int i = 0; sigmoids && i < n; i++)
        out[i] = (float)(1 / (1 + exp(-(double)out[i])));
    if (!sigmoids)
        softmax(out, n);
}

static bool all_finite(const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return false;
    return true;
}

void pool_finish(struct pooling *p, const struct model_spec *s, const struct pool_head *h)
{
    if (p->classify) {
        classify(p, s, h);
    } else {
        double scale = p->kind == POOL_MEAN ? (double)p->n_done : 1;
        for (int i = 0; p->kind != POOL_ALL && i < p->n_cols; i++)
            p->out[i] = (float)(p->sum[i] / scale);
        for (int r = 0; p->activate && r < p->n_rows; r++)
            normalize(p->out + (size_t)r * (size_t)p->n_cols, p->n_cols);
    }
    p->not_finite = !all_finite(p->out, (size_t)p->n_rows * (size_t)p->n_cols);
}
