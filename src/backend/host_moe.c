/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/host_moe.h"

#include <math.h>
#include <string.h>

/* The scratch memory, carved. */
struct carved {
    float *
        router; /* [rows, n_experts]: logits, then the weight of each chosen expert, -1 of others */
    float *in;  /* [rows, hidden] */
    float *wide;  /* [rows, 2 * widest ffn] */
    float *mid;   /* [rows, widest ffn] */
    float *sub;   /* [rows, hidden] */
    float *gate;  /* [rows] */
    int32_t *row; /* [rows]: which rows an expert has */
};

static size_t widest(const struct moe *m)
{
    return (size_t)(m->ffn > m->shared_ffn ? m->ffn : m->shared_ffn);
}

/* Floats of each part, in the struct's order; each begins on a cache line. */
static size_t carve(struct carved *c, float *base, const struct moe *m, size_t hidden, size_t rows)
{
    size_t n[7] = {rows * (size_t)m->n_experts,
                   rows * hidden,
                   rows * 2 * widest(m),
                   rows * widest(m),
                   rows * hidden,
                   rows,
                   rows};
    size_t at[8] = {0};
    for (int i = 0; i < 7; i++)
        at[i + 1] = at[i] + ((n[i] + 15) & ~(size_t)15);
    if (c)
        *c = (struct carved){base,
                             base + at[1],
                             base + at[2],
                             base + at[3],
                             base + at[4],
                             base + at[5],
                             (int32_t *)(base + at[6])};
    return at[7] * sizeof(float);
}

size_t host_moe_bytes(const struct moe *m, int hidden, int rows)
{
    return carve(NULL, NULL, m, (size_t)hidden, (size_t)rows);
}

/* The k-th expert of a row: forced[k], or the likeliest that is not taken yet. */
static int pick(const float *p, const struct moe *m, const float *forced, int k)
{
    int best = -1;
    if (forced && forced[0] >= 0)
        return (int)forced[k];
    for (int e = 0; e < m->n_experts; e++)
        if (!signbit(p[e]) && (best < 0 || p[e] > p[best]))
            best = e;
    return best;
}

/* One row's logits become weights: the probabilities of its top_k experts, -1 for what is not
 * chosen. With a NaN or Inf among them all weights are NaN, so that it shows. */
static void choose(float *logit, const struct moe *m, const float *forced)
{
    double top = -INFINITY, total = 0, chosen = 0;
    bool nan = false;
    for (int e = 0; e < m->n_experts; e++) {
        nan = nan || isnan(logit[e]);
        top = fmax(top, (double)logit[e]);
    }
    for (int e = 0; e < m->n_experts; e++)
        total += exp((double)logit[e] - top);
    nan = nan || isnan(total); /* Inf among them */
    for (int e = 0; e < m->n_experts; e++)
        logit[e] = nan ? NAN : (float)(exp((double)logit[e] - top) / total);
    for (int k = 0; k < m->top_k && !nan; k++) { /* a chosen one is marked by its sign bit */
        int best = pick(logit, m, forced, k);
        chosen += (double)logit[best];
        logit[best] = -logit[best];
    }
    for (int e = 0; e < m->n_experts && !nan; e++) {
        double p = -(double)logit[e];
        logit[e] = !signbit(logit[e]) ? -1 : (float)(m->renormalize ? p / chosen : p);
    }
}

static void gated_mlp(const struct ops *ops, struct device *d, const struct carved *c,
                      const struct weight *gate_up, const struct weight *down, enum act_kind act,
                      const float *in, int rows, int ffn)
{
    ops->linear(d, c->wide, gate_up, in, rows);
    ops->act(d, c->mid, c->wide, act, true, rows, ffn);
    ops->linear(d, c->sub, down, c->mid, rows);
}

static void run_expert(const struct ops *ops, struct device *d, const struct carved *c,
                       const struct moe *m, int e, const float *x, float *out, int rows)
{
    size_t hidden = (size_t)m->router->cols;
    int n = 0;
    for (int r = 0; r < rows; r++) {
        float w = c->router[(size_t)r * (size_t)m->n_experts + (size_t)e];
        if (w < 0)
            continue;
        memcpy(c->in + (size_t)n * hidden, x + (size_t)r * hidden, hidden * sizeof *x);
        c->row[n++] = r;
    }
    if (!n)
        return;
    gated_mlp(ops, d, c, &m->gate_up[e], &m->down[e], m->act, c->in, n, m->ffn);
    for (int i = 0; i < n; i++) {
        size_t r = (size_t)c->row[i];
        float w = c->router[r * (size_t)m->n_experts + (size_t)e];
        for (size_t k = 0; k < hidden; k++)
            out[r * hidden + k] += w * c->sub[(size_t)i * hidden + k];
    }
}

static void run_shared(const struct ops *ops, struct device *d, const struct carved *c,
                       const struct moe *m, const float *x, float *out, int rows)
{
    size_t hidden = (size_t)m->router->cols;
    gated_mlp(ops, d, c, m->shared_gate_up, m->shared_down, m->act, x, rows, m->shared_ffn);
    if (m->shared_gate)
        ops->linear(d, c->gate, m->shared_gate, x, rows);
    for (size_t r = 0; r < (size_t)rows; r++) {
        float w = m->shared_gate ? (float)(1 / (1 + exp(-(double)c->gate[r]))) : 1;
        for (size_t k = 0; k < hidden; k++)
            out[r * hidden + k] += w * c->sub[r * hidden + k];
    }
}

void host_moe(const struct ops *ops, struct device *d, void *out, const void *x,
              const struct moe *m, int rows, void *scratch)
{
    struct carved c;
    size_t hidden = (size_t)m->router->cols;
    carve(&c, scratch, m, hidden, (size_t)rows);
    ops->linear(d, c.router, m->router, x, rows);
    for (size_t r = 0; r < (size_t)rows; r++)
        choose(c.router + r * (size_t)m->n_experts, m,
               m->forced ? m->forced + r * (size_t)m->top_k : NULL);
    memset(out, 0, (size_t)rows * hidden * sizeof(float));
    for (int e = 0; e < m->n_experts; e++)
        run_expert(ops, d, &c, m, e, x, out, rows);
    if (m->shared_gate_up)
        run_shared(ops, d, &c, m, x, out, rows);
}
