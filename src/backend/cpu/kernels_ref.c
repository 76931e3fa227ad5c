/* kernels_ref.c - the specification: plain C, sums in double, one row after the other.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/kernels.h"
#include "base/half.h"

#include <math.h>
#include <string.h>

/* ---- matrix products ------------------------------------------------------------------------ */

/* Element (k, column) of a float panel or tile whose granule rows are `width` outputs wide. */
static float element(const void *w, enum wformat format, int width, int k, int col)
{
    if (format == W_F32)
        return ((const float *)w)[(size_t)k * width + col];
    const uint16_t *h = w;
    if (format == W_F16)
        return f16_f32(h[(size_t)k * width + col]);
    return bf16_f32(h[((size_t)(k / 2) * width + col) * 2 + k % 2]);
}

static void gemm_float(const struct gemm *g, enum wformat format)
{
    for (int r = 0; r < g->rows; r++) {
        const float *x = (const float *)(g->x + r * g->x_stride);
        for (int n = 0; n < PANEL; n++) {
            double sum = g->first ? 0 : g->c[r * g->ldc + n];
            for (int k = 0; k < g->k; k++)
                sum += (double)x[k] * element(g->w, format, PANEL, k, n);
            g->c[r * g->ldc + n] = (float)sum;
        }
    }
}

static void gemm_f32_ref(const struct gemm *g)
{
    gemm_float(g, W_F32);
}

static void gemm_f16_ref(const struct gemm *g)
{
    gemm_float(g, W_F16);
}

static void gemm_bf16_ref(const struct gemm *g)
{
    gemm_float(g, W_BF16);
}

static void gemm_i8_ref(const struct gemm *g)
{
    for (int r = 0; r < g->rows; r++) {
        const int8_t *x = (const int8_t *)(g->x + r * g->x_stride);
        for (int n = 0; n < PANEL; n++) {
            float *c = &g->c[r * g->ldc + n];
            int32_t sum = 0;
            if (!g->first)
                memcpy(&sum, c, sizeof sum);
            for (int k = 0; k < g->k; k++)
                sum += x[k] * (uint8_t)g->w[((size_t)(k / 4) * PANEL + n) * 4 + k % 4];
            if (g->last)
                *c = (float)(sum - 128 * g->x_sum[r]) * g->w_scale[n] * g->x_scale[r];
            else
                memcpy(c, &sum, sizeof sum);
        }
    }
}

static int i4_element(const char *w, int k, int n)
{
    int byte = (uint8_t)w[((size_t)(k / 8) * PANEL + n) * 4 + k % 4];
    return k % 8 < 4 ? byte & 15 : byte >> 4;
}

static void gemm_i4_ref(const struct gemm *g)
{
    for (int r = 0; r < g->rows; r++) {
        const int8_t *x = (const int8_t *)(g->x + r * g->x_stride);
        const int32_t *x_sum = g->x_sum + r * g->x_sum_stride;
        for (int n = 0; n < PANEL; n++) {
            float *c = &g->c[r * g->ldc + n], acc = g->first ? 0 : *c;
            for (int k0 = 0; k0 < g->k; k0 += I4_GROUP) {
                uint32_t pair = g->w_group[(size_t)(k0 / I4_GROUP) * PANEL + n];
                int32_t sum = 0;
                for (int k = k0; k < k0 + I4_GROUP; k++)
                    sum += x[k] * i4_element(g->w, k, n);
                acc = fmaf((float)sum, bf16_f32((uint16_t)(pair >> 16)), acc);
                acc = fmaf((float)x_sum[k0 / I4_GROUP], bf16_f32((uint16_t)pair), acc);
            }
            *c = g->last ? acc * g->x_scale[r] : acc;
        }
    }
}

/* ---- activations ---------------------------------------------------------------------------- */

static void to_bf16_ref(uint16_t *y, const float *x, int n, int n_pad)
{
    for (int i = 0; i < n_pad; i++)
        y[i] = i < n ? f32_bf16(x[i]) : 0;
}

static void quantize_ref(int8_t *q, float *scale, int32_t *sum, int32_t *total, const float *x,
                         int n, int n_pad)
{
    float max = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        max = fmaxf(max, fabsf(x[i]));
    }
    *scale = finite ? max / 127 : NAN;
    float inv = finite && max > 0 ? 127 / max : 0;
    if (isinf(inv)) { /* max is subnormal: as good as zero */
        inv = 0;
        *scale = 0;
    }
    *total = 0;
    for (int i = 0; i < n_pad; i++) {
        q[i] = i < n && finite ? (int8_t)rintf(x[i] * inv) : 0;
        if (i % I4_GROUP == 0)
            sum[i / I4_GROUP] = 0;
        sum[i / I4_GROUP] += q[i];
        *total += q[i];
    }
}

/* One range of fit_i4: [lo, hi] gives q, least squares on them scale and offset, those q again.
 * Values are taken from their middle, where sums of products cancel least. Gives the error. */
static double fit_range(uint8_t q[I4_GROUP], uint32_t *pair, const float *w, double mid,
                        double half)
{
    double step = half / 7.5, s1 = 0, s2 = 0, a = 0, qa = 0, error = 0;
    for (int i = 0; i < I4_GROUP; i++) {
        double v = w[i] - mid, c = fmin(fmax(rint(v / step + 7.5), 0), 15);
        s1 += c;
        s2 += c * c;
        a += v;
        qa += c * v;
    }
    double det = I4_GROUP * s2 - s1 * s1;
    step = det > 0 ? (I4_GROUP * qa - s1 * a) / det : 0;
    uint16_t scale = f32_bf16((float)step);
    step = bf16_f32(scale);
    uint16_t offset = f32_bf16((float)(mid + (a - step * s1) / I4_GROUP));
    double inv = step > 0 ? 1 / step : 0, from = bf16_f32(offset);
    for (int i = 0; i < I4_GROUP; i++) {
        double c = fmin(fmax(rint((w[i] - from) * inv), 0), 15), e = from + c * step - w[i];
        q[i] = (uint8_t)c;
        error += e * e;
    }
    *pair = i4_pair(scale, offset);
    return error;
}

static uint32_t fit_i4_ref(uint8_t *q, const float *w)
{
    static const float ranges[] = I4_RANGES;
    float lo = w[0], hi = w[0];
    bool finite = true;
    for (int i = 0; i < I4_GROUP; i++) {
        finite &= isfinite(w[i]) != 0;
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    uint32_t best = i4_pair(f32_bf16(NAN), f32_bf16(NAN)), pair;
    memset(q, 0, I4_GROUP);
    double least = INFINITY, mid = ((double)lo + hi) / 2, half = ((double)hi - lo) / 2;
    for (size_t i = 0; finite && i < sizeof ranges / sizeof *ranges; i++) {
        uint8_t c[I4_GROUP];
        double e = fit_range(c, &pair, w, mid, half > 0 ? half * ranges[i] : 1);
        if (e >= least)
            continue;
        least = e;
        best = pair;
        memcpy(q, c, sizeof c);
    }
    return best;
}

static void axpy_ref(float *h, const float *x, float a, int n)
{
    for (int i = 0; i < n; i++)
        h[i] = (float)(h[i] + (double)a * x[i]);
}

static void norm_ref(float *y, const float *x, const struct norm *norm, int n)
{
    double mean = 0, sum2 = 0;
    for (int i = 0; i < n && !norm->rms; i++)
        mean += x[i];
    mean /= n;
    for (int i = 0; i < n; i++)
        sum2 += (x[i] - mean) * (x[i] - mean);
    double inv = 1 / sqrt(sum2 / n + norm->eps);
    for (int i = 0; i < n; i++) {
        double w = norm->w ? norm->w[i] : 1, b = norm->b ? norm->b[i] : 0;
        y[i] = (float)((x[i] - mean) * inv * w + b);
    }
}

static double activate(double x, enum act_kind kind)
{
    switch (kind) {
    case ACT_SILU:
        return x / (1 + exp(-x));
    case ACT_GELU:
        return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
    case ACT_RELU:
        return x < 0 ? 0 : x;
    case ACT_RELU2:
        return x < 0 ? 0 : x * x;
    }
    return NAN;
}

static void act_ref(float *y, const float *x, const float *up, enum act_kind kind, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = (float)(activate(x[i], kind) * (up ? up[i] : 1));
}

static void softcap_ref(float *x, float scale, float cap, int n)
{
    for (int i = 0; i < n; i++) {
        double v = (double)x[i] * scale;
        x[i] = (float)(cap != 0 ? cap * tanh(v / cap) : v);
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

static void qk_float(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                     const struct tiles *k, int n_tiles, int hd, enum wformat format)
{
    for (int r = 0; r < rows; r++) {
        const float *x = (const float *)((const char *)q + r * q_stride);
        for (int p = 0; p < n_tiles * TILE_POS; p++) {
            double sum = 0;
            for (int d = 0; d < hd; d++)
                sum += (double)x[d] *
                       element(k->tile[p / TILE_POS], format, TILE_POS, d, p % TILE_POS);
            s[r * s_stride + p] = (float)sum;
        }
    }
}

/* Rounded to f32 after every position, because a row's positions may come in several calls and the
 * cut must not show. */
static void pv_float(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                     const struct tiles *v, int lo, int hi, int hd, enum wformat format)
{
    for (int r = 0; r < rows; r++) {
        const float *x = (const float *)((const char *)p + r * p_stride);
        for (int d = 0; d < hd; d++) {
            float sum = o[r * o_stride + d];
            for (int i = lo; i < hi; i++)
                sum = fmaf(x[i], element(v->tile[i / TILE_POS], format, hd, i % TILE_POS, d), sum);
            o[r * o_stride + d] = sum;
        }
    }
}

static int i8_element(const void *tile, int width, int k, int col)
{
    return ((const int8_t *)tile)[((size_t)(k / 2) * width + col) * 2 + k % 2];
}

static float i8_scale(const void *tile, int hd, int pos)
{
    float s;
    memcpy(&s, (const char *)tile + i8_scale_at(hd) + pos * sizeof s, sizeof s);
    return s;
}

static void qk_i8_ref(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                      const struct tiles *k, int n_tiles, int hd)
{
    for (int r = 0; r < rows; r++) {
        const int16_t *x = (const int16_t *)((const char *)q + r * q_stride);
        for (int p = 0; p < n_tiles * TILE_POS; p++) {
            const void *tile = k->tile[p / TILE_POS];
            int32_t sum = 0;
            for (int d = 0; d < hd; d++)
                sum += x[d] * i8_element(tile, TILE_POS, d, p % TILE_POS);
            s[r * s_stride + p] = (float)sum * i8_scale(tile, hd, p % TILE_POS);
        }
    }
}

static void pv_i8_ref(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                      const struct tiles *v, int lo, int hi, int hd)
{
    for (int r = 0; r < rows; r++) {
        const int16_t *x = (const int16_t *)((const char *)p + r * p_stride);
        for (int d = 0; d < hd; d++) {
            int32_t sum;
            memcpy(&sum, &o[r * o_stride + d], sizeof sum);
            for (int i = lo; i < hi; i++)
                sum += x[i] * i8_element(v->tile[i / TILE_POS], hd, i % TILE_POS, d);
            memcpy(&o[r * o_stride + d], &sum, sizeof sum);
        }
    }
}

static void to_i16_ref(int16_t *q, float *scale, const float *x, int n, int n_pad)
{
    float max = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        max = fmaxf(max, fabsf(x[i]));
    }
    float inv = finite && max > 0 ? 32767 / max : 0;
    *scale = !finite ? NAN : isinf(inv) ? 0 : max / 32767;
    for (int i = 0; i < n_pad; i++)
        q[i] = i < n && isfinite(inv) && finite ? (int16_t)rintf(x[i] * inv) : 0;
}

static void times_scales_ref(float *p, const void *const *tile, int hd, int lo, int hi)
{
    for (int i = lo & ~(TILE_POS - 1); i < ((hi + TILE_POS - 1) & ~(TILE_POS - 1)); i++)
        p[i] = i < lo || i >= hi ? 0 : p[i] * i8_scale(tile[i / TILE_POS], hd, i % TILE_POS);
}

static void from_i32_ref(float *o, float scale, int n)
{
    for (int i = 0; i < n; i++) {
        int32_t sum;
        memcpy(&sum, &o[i], sizeof sum);
        o[i] = (float)sum * scale;
    }
}

#define ATTENTION_REF(NAME, FORMAT)                                                        \
    static void qk_##NAME##_ref(float *s, size_t s_stride, const void *q, size_t q_stride, \
                                int rows, const struct tiles *k, int n_tiles, int hd)      \
    {                                                                                      \
        qk_float(s, s_stride, q, q_stride, rows, k, n_tiles, hd, FORMAT);                  \
    }                                                                                      \
    static void pv_##NAME##_ref(float *o, size_t o_stride, const void *p, size_t p_stride, \
                                int rows, const struct tiles *v, int lo, int hi, int hd)   \
    {                                                                                      \
        pv_float(o, o_stride, p, p_stride, rows, v, lo, hi, hd, FORMAT);                   \
    }
ATTENTION_REF(f32, W_F32)
ATTENTION_REF(f16, W_F16)
ATTENTION_REF(bf16, W_BF16)

static double score(double s, const struct softmax *a, int i)
{
    s *= a->scale;
    if (a->softcap != 0)
        s = a->softcap * tanh(s / a->softcap);
    return (s + a->alibi * (double)(a->alibi_first + i)) * M_LOG2E;
}

static void softmax_ref(void *p, bool p_bf16, float *max, float *sum, float *s,
                        const struct softmax *a)
{
    int begin = a->lo & ~(TILE_POS - 1), end = (a->hi + TILE_POS - 1) & ~(TILE_POS - 1);
    double top = -INFINITY, total = 0;
    for (int i = a->lo; i < a->hi; i++) {
        double v = score(s[i], a, i);
        s[i] = (float)v;
        top = v > top || v != v ? v : top;
    }
    *max = (float)top;
    for (int i = begin; i < end; i++) {
        float e = i < a->lo || i >= a->hi ? 0 : (float)exp2((double)s[i] - *max);
        if (p_bf16) {
            ((uint16_t *)p)[i] = f32_bf16(e);
            e = bf16_f32(((uint16_t *)p)[i]);
        } else {
            ((float *)p)[i] = e;
        }
        total += e;
    }
    *sum = (float)total;
}

static void combine_ref(float *o, float *max, float *sum, const float *o2, float max2, float sum2,
                        int n)
{
    float top = *max > max2 ? *max : max2;
    double a = exp2((double)*max - top), b = exp2((double)max2 - top);
    for (int i = 0; i < n; i++)
        o[i] = (float)(o[i] * a + o2[i] * b);
    *sum = (float)(*sum * a + sum2 * b);
    *max = top;
}

static void scale_out_ref(float *y, const float *o, float sum, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = o[i] / sum;
}

void cpu_kernels_ref(struct cpu_kernels *k)
{
    for (int f = 0; f < N_FORMATS; f++)
        k->whole_k[f] = true;
    k->gemm[W_F32] = gemm_f32_ref;
    k->gemm[W_F16] = gemm_f16_ref;
    k->gemm[W_BF16] = gemm_bf16_ref;
    k->gemm[W_I8] = gemm_i8_ref;
    k->gemm[W_I4] = gemm_i4_ref;
    k->to_bf16 = to_bf16_ref;
    k->quantize = quantize_ref;
    k->fit_i4 = fit_i4_ref;
    k->axpy = axpy_ref;
    k->norm = norm_ref;
    k->act = act_ref;
    k->softcap = softcap_ref;
    k->qk[W_F32] = qk_f32_ref;
    k->qk[W_F16] = qk_f16_ref;
    k->qk[W_BF16] = qk_bf16_ref;
    k->pv[W_F32] = pv_f32_ref;
    k->pv[W_F16] = pv_f16_ref;
    k->pv[W_BF16] = pv_bf16_ref;
    k->qk[W_I8] = qk_i8_ref;
    k->pv[W_I8] = pv_i8_ref;
    k->to_i16 = to_i16_ref;
    k->times_scales = times_scales_ref;
    k->from_i32 = from_i32_ref;
    k->softmax = softmax_ref;
    k->combine = combine_ref;
    k->scale_out = scale_out_ref;
}
