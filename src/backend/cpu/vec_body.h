/* vec_body.h - row kernels written once over simd_*.h; vec_avx2.c and vec_avx512.c include it.
 *
 * Sums run over fixed lanes in a fixed order that depends on n alone. Ends of rows go through the
 * same vector code with masked loads, so an element's bits do not depend on where a row ends.
 *
 * VEC(name) gives the function its suffix.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/kernels.h"
#include "base/half.h"

#include <math.h>

/* exp: x = n ln 2 + r with |r| <= ln2/2, e^r by its series to degree 7 (relative error 2^-27
 * before rounding), scaled by 2^n. 0 below -104, Inf above 88.7; NaN stays NaN because
 * v_min and v_max give their second operand then. */
SIMD vf v_exp(vf x)
{
    x = v_max(v_set1(-104.0f), v_min(v_set1(89.0f), x));
    vf n = v_round(v_mul(x, v_set1(1.44269504088896341f)));
    vf r = v_fma(n, v_set1(-0.693145751953125f), x);
    r = v_fma(n, v_set1(-1.42860682030941723e-6f), r);
    vf p = v_set1(1.0f / 5040);
    p = v_fma(p, r, v_set1(1.0f / 720));
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(v_mul(r, r), p, r); /* e^r - 1 */
    return v_scale2(v_add(p, v_set1(1.0f)), n);
}

/* tanh through exp(-2|x|): near 0 the difference would lose digits, so a series takes over. */
SIMD vf v_tanh(vf x)
{
    vf a = v_abs(x), e = v_exp(v_mul(a, v_set1(-2.0f)));
    vf large = v_div(v_sub(v_set1(1.0f), e), v_add(v_set1(1.0f), e));
    vf x2 = v_mul(x, x), s = v_set1(-17.0f / 315);
    s = v_fma(s, x2, v_set1(2.0f / 15));
    s = v_fma(s, x2, v_set1(-1.0f / 3));
    vf small = v_fma(v_mul(s, x2), a, a);
    return v_copysign(v_select_less(a, v_set1(0.1f), small, large), x);
}

/* Runs BODY for each vector of [0, n): `i`, and `m` lanes of it. A masked last vector costs what a
 * whole one does. */
#define EACH_VECTOR(i, m, n) for (int i = 0, m; m = (n)-i < VL ? (n)-i : VL, i < (n); i += VL)

static void VEC(to_bf16)(uint16_t *y, const float *x, int n, int n_pad)
{
    int i = 0;
    for (; i + VL <= n; i += VL)
        v_store_bf16(y + i, v_load(x + i));
    if (i < n_pad) { /* through a buffer: n_pad may end inside a vector */
        uint16_t last[VL];
        v_store_bf16(last, v_load_n(x + i, n - i));
        int m = n_pad - i < VL ? n_pad - i : VL;
        memcpy(y + i, last, (size_t)m * sizeof *y);
        memset(y + i + m, 0, (size_t)(n_pad - i - m) * sizeof *y);
    }
}

static float VEC(max_abs)(const float *x, int n, bool *finite)
{
    vf top = v_set1(0), zero = v_set1(0); /* 0 * x is NaN for Inf and NaN, and NaN stays */
    EACH_VECTOR(i, m, n)
    {
        vf v = v_load_n(x + i, m);
        top = v_max(v_abs(v), top);
        zero = v_fma(v, v_set1(0), zero);
    }
    float z = v_sum(zero);
    *finite = z == z;
    return v_top(top);
}

static void VEC(quantize)(int8_t *q, float *scale, int32_t *sum, int32_t *total, const float *x,
                          int n, int n_pad)
{
    bool finite;
    float max = VEC(max_abs)(x, n, &finite), inv = finite && max > 0 ? 127 / max : 0;
    *scale = finite ? max / 127 : NAN;
    if (isinf(inv)) { /* max is subnormal: as good as zero */
        inv = 0;
        *scale = 0;
    }
    if (!finite) {
        n = 0;
        inv = 0;
    }
    *total = 0;
    for (int g = 0; g < n_pad; g += I4_GROUP) {
        vf s = v_set1(0); /* whole numbers below 2^24: exact */
        for (int i = g; i < g + I4_GROUP; i += VL) {
            vf v = v_round(v_mul(v_load_n(x + (i < n ? i : 0), i < n ? n - i : 0), v_set1(inv)));
            v_store_i8(q + i, v);
            s = v_add(s, v);
        }
        sum[g / I4_GROUP] = (int32_t)v_sum(s);
        *total += sum[g / I4_GROUP];
    }
}

/* kernels_ref.c says what is done here; sums of whole numbers q are exact. */
static float VEC(fit_range)(uint8_t q[I4_GROUP], uint32_t *pair, const float *w, float mid,
                            float half)
{
    vf s1 = v_set1(0), s2 = s1, a = s1, qa = s1, error = s1, top = v_set1(15), zero = s1;
    vf inv = v_set1(7.5f / half);
    for (int i = 0; i < I4_GROUP; i += VL) {
        vf v = v_sub(v_load(w + i), v_set1(mid));
        vf c = v_min(v_max(v_round(v_fma(v, inv, v_set1(7.5f))), zero), top);
        s1 = v_add(s1, c);
        s2 = v_fma(c, c, s2);
        a = v_add(a, v);
        qa = v_fma(c, v, qa);
    }
    float n = I4_GROUP, sum = v_sum(s1), det = n * v_sum(s2) - sum * sum, sum_a = v_sum(a);
    float step = det > 0 ? (n * v_sum(qa) - sum * sum_a) / det : 0;
    uint16_t scale = f32_bf16(step);
    step = bf16_f32(scale);
    uint16_t offset = f32_bf16(mid + (sum_a - step * sum) / n);
    float one = step > 0 ? 1 / step : 0;
    vf from = v_set1(bf16_f32(offset));
    inv = v_set1(isfinite(one) ? one : 0);
    for (int i = 0; i < I4_GROUP; i += VL) {
        vf v = v_sub(v_load(w + i), from);
        vf c = v_min(v_max(v_round(v_mul(v, inv)), zero), top);
        vf e = v_sub(v_mul(c, v_set1(step)), v);
        v_store_i8((int8_t *)q + i, c);
        error = v_fma(e, e, error);
    }
    *pair = i4_pair(scale, offset);
    return v_sum(error);
}

static uint32_t VEC(fit_i4)(uint8_t *q, const float *w)
{
    static const float ranges[] = I4_RANGES;
    bool finite;
    VEC(max_abs)(w, I4_GROUP, &finite);
    memset(q, 0, I4_GROUP);
    uint32_t best = i4_pair(f32_bf16(NAN), f32_bf16(NAN)), pair;
    if (!finite)
        return best;
    vf max = v_load(w), min = max;
    for (int i = VL; i < I4_GROUP; i += VL) {
        max = v_max(max, v_load(w + i));
        min = v_min(min, v_load(w + i));
    }
    float hi = v_top(max), lo = -v_top(v_sub(v_set1(0), min)), half = 0.5f * hi - 0.5f * lo;
    float least = INFINITY;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        uint8_t c[I4_GROUP];
        float e = VEC(fit_range)(c, &pair, w, 0.5f * lo + 0.5f * hi,
                                 half > 0x1p-120f ? half * ranges[i] : 1);
        if (!(e < least) && i > 0) /* the first one counts even if its error is beyond f32 */
            continue;
        least = e;
        best = pair;
        memcpy(q, c, sizeof c);
    }
    return best;
}

static void VEC(axpy)(float *h, const float *x, float a, int n)
{
    EACH_VECTOR(i, m, n)
    v_store_n(h + i, v_fma(v_set1(a), v_load_n(x + i, m), v_load_n(h + i, m)), m);
}

/* Mean, and 1 / sqrt(mean square about it + eps). */
static void VEC(moments)(const float *x, const struct norm *norm, int n, float *mean, float *inv)
{
    vf sum = v_set1(0), sum2 = v_set1(0);
    *mean = 0;
    if (!norm->rms) {
        EACH_VECTOR(i, m, n)
        sum = v_add(sum, v_load_n(x + i, m));
        *mean = v_sum(sum) / (float)n;
    }
    EACH_VECTOR(i, m, n)
    {
        vf d = v_sub(v_load_n(x + i, m), v_keep_range(v_set1(*mean), 0, m, 0));
        sum2 = v_fma(d, d, sum2);
    }
    *inv = 1 / sqrtf(v_sum(sum2) / (float)n + norm->eps);
}

static void VEC(norm)(float *y, const float *x, const struct norm *norm, int n)
{
    float mean, inv;
    VEC(moments)(x, norm, n, &mean, &inv);
    EACH_VECTOR(i, m, n)
    {
        vf v = v_mul(v_sub(v_load_n(x + i, m), v_set1(mean)), v_set1(inv));
        if (norm->w)
            v = v_mul(v, v_load_n(norm->w + i, m));
        if (norm->b)
            v = v_add(v, v_load_n(norm->b + i, m));
        v_store_n(y + i, v, m);
    }
}

SIMD vf v_activate(vf x, enum act_kind kind)
{
    vf one = v_set1(1), zero = v_set1(0), u;
    switch (kind) {
    case ACT_SILU:
        return v_div(x, v_add(one, v_exp(v_sub(zero, x))));
    case ACT_GELU_TANH: /* x / (1 + exp(-2u)) is 0.5 x (1 + tanh u) */
        u = v_fma(v_mul(v_mul(x, x), x), v_set1(0.044715f), x);
        u = v_mul(u, v_set1((float)(-2 * M_2_SQRTPI * M_SQRT1_2)));
        return v_div(x, v_add(one, v_exp(u)));
    case ACT_RELU:
        return v_max(zero, x);
    case ACT_RELU2:
        u = v_max(zero, x);
        return v_mul(u, u);
    case ACT_GELU: /* libm's erf per lane, below */
        break;
    }
    return x;
}

static void VEC(gelu)(float *y, const float *x, const float *up, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = 0.5f * x[i] * (1 + erff(x[i] * (float)M_SQRT1_2)) * (up ? up[i] : 1);
}

SIMD void act_row(float *y, const float *x, const float *up, enum act_kind kind, int n)
{
    EACH_VECTOR(i, m, n)
    {
        vf v = v_activate(v_load_n(x + i, m), kind);
        v_store_n(y + i, up ? v_mul(v, v_load_n(up + i, m)) : v, m);
    }
}

static void VEC(act)(float *y, const float *x, const float *up, enum act_kind kind, int n)
{
    switch (kind) { /* constants let each loop be compiled for its kind */
    case ACT_SILU:
        act_row(y, x, up, ACT_SILU, n);
        break;
    case ACT_GELU_TANH:
        act_row(y, x, up, ACT_GELU_TANH, n);
        break;
    case ACT_RELU:
        act_row(y, x, up, ACT_RELU, n);
        break;
    case ACT_RELU2:
        act_row(y, x, up, ACT_RELU2, n);
        break;
    case ACT_GELU:
        VEC(gelu)(y, x, up, n);
        break;
    }
}

static void VEC(softcap)(float *x, float scale, float cap, int n)
{
    EACH_VECTOR(i, m, n)
    {
        vf v = v_mul(v_load_n(x + i, m), v_set1(scale));
        if (cap != 0)
            v = v_mul(v_tanh(v_div(v, v_set1(cap))), v_set1(cap));
        v_store_n(x + i, v, m);
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

/* 2^x for x <= 0 (or NaN): 2^r by its series to degree 7 for |r| <= 1/2, relative error 2^-27. */
SIMD vf v_exp2(vf x)
{
    x = v_max(v_set1(-150.0f), x);
    vf n = v_round(x), r = v_sub(x, n), p = v_set1(1.52527338e-5f);
    p = v_fma(p, r, v_set1(1.54035304e-4f));
    p = v_fma(p, r, v_set1(1.33335581e-3f));
    p = v_fma(p, r, v_set1(9.61812911e-3f));
    p = v_fma(p, r, v_set1(5.55041087e-2f));
    p = v_fma(p, r, v_set1(2.40226507e-1f));
    p = v_fma(p, r, v_set1(6.93147181e-1f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_scale2(p, n);
}

static const float LOG2E = 1.44269504088896341f;

/* Scores beyond scaling: softcap and alibi. */
SIMD vf v_score(vf v, const struct softmax *a, int i)
{
    v = v_mul(v, v_set1(a->scale));
    if (a->softcap != 0)
        v = v_mul(v_tanh(v_div(v, v_set1(a->softcap))), v_set1(a->softcap));
    if (a->alibi != 0) {
        float ramp[VL];
        for (int j = 0; j < VL; j++)
            ramp[j] = (float)(a->alibi_first + i + j);
        v = v_fma(v_set1(a->alibi), v_load(ramp), v);
    }
    return v_mul(v, v_set1(LOG2E));
}

/* Scores of [begin, end) in place; gives their maximum (lanes). */
SIMD vf v_scores(float *s, const struct softmax *a, int begin, int end)
{
    bool plain = a->softcap == 0 && a->alibi == 0;
    vf top = v_set1(-INFINITY), scale = v_set1(a->scale * LOG2E);
    for (int i = begin; i < end; i += VL) {
        vf v = v_load(s + i);
        v = plain ? v_mul(v, scale) : v_score(v, a, i);
        if (i < a->lo || i + VL > a->hi)
            v = v_keep_range(v, a->lo - i, a->hi - i, -INFINITY);
        v_store(s + i, v);
        top = v_max(v, top);
    }
    return top;
}

SIMD vf v_probabilities(void *p, bool p_bf16, const float *s, float max, const struct softmax *a,
                        int begin, int end)
{
    vf total = v_set1(0), m = v_set1(max);
    for (int i = begin; i < end; i += VL) {
        vf e = v_exp2(v_sub(v_load(s + i), m));
        if (i < a->lo || i + VL > a->hi)
            e = v_keep_range(e, a->lo - i, a->hi - i, 0);
        if (p_bf16) {
            v_store_bf16((uint16_t *)p + i, e);
            e = v_load_bf16((uint16_t *)p + i);
        } else {
            v_store((float *)p + i, e);
        }
        total = v_add(total, e);
    }
    return total;
}

static void VEC(softmax)(void *p, bool p_bf16, float *max, float *sum, float *s,
                         const struct softmax *a)
{
    int begin = a->lo & ~(TILE_POS - 1), end = (a->hi + TILE_POS - 1) & ~(TILE_POS - 1);
    /* A NaN score may be lost from the maximum; its own exponential is NaN all the same. */
    *max = v_top(v_scores(s, a, begin, end));
    vf total = p_bf16 ? v_probabilities(p, true, s, *max, a, begin, end)
                      : v_probabilities(p, false, s, *max, a, begin, end);
    *sum = v_sum(total);
}

static void VEC(to_i16)(int16_t *q, float *scale, const float *x, int n, int n_pad)
{
    bool finite;
    float max = VEC(max_abs)(x, n, &finite), inv = finite && max > 0 ? 32767 / max : 0;
    *scale = !finite ? NAN : isinf(inv) ? 0 : max / 32767;
    if (isinf(inv) || !finite)
        n = 0;
    for (int i = 0; i < n_pad; i += VL) {
        vf v = i < n ? v_load_n(x + i, n - i) : v_set1(0);
        v_store_i16(q + i, v_round(v_mul(v, v_set1(n ? inv : 0))));
    }
}

static void VEC(times_scales)(float *p, const void *const *tile, int hd, int lo, int hi)
{
    for (int t = lo / TILE_POS; t * TILE_POS < hi; t++) {
        const float *scale = (const float *)((const char *)tile[t] + i8_scale_at(hd));
        for (int j = 0; j < TILE_POS; j += VL) {
            int i = t * TILE_POS + j;
            vf v = v_mul(v_load(p + i), v_load(scale + j));
            v_store(p + i, v_keep_range(v, lo - i, hi - i, 0));
        }
    }
}

static void VEC(from_i32)(float *o, float scale, int n)
{
    for (int i = 0; i < n; i += VL) /* n: whole vectors, heads are padded */
        v_store(o + i, v_mul(v_load_i32(o + i), v_set1(scale)));
}

static void VEC(combine)(float *o, float *max, float *sum, const float *o2, float max2, float sum2,
                         int n)
{
    float top = *max > max2 ? *max : max2, factor[VL] = {*max - top, max2 - top};
    v_store(factor, v_exp2(v_load(factor)));
    vf a = v_set1(factor[0]), b = v_set1(factor[1]);
    EACH_VECTOR(i, m, n)
    v_store_n(o + i, v_fma(v_load_n(o2 + i, m), b, v_mul(v_load_n(o + i, m), a)), m);
    *sum = *sum * factor[0] + sum2 * factor[1];
    *max = top;
}

static void VEC(scale_out)(float *y, const float *o, float sum, int n)
{
    EACH_VECTOR(i, m, n)
    v_store_n(y + i, v_div(v_load_n(o + i, m), v_set1(sum)), m);
}

static void VEC(fill)(struct cpu_kernels *k)
{
    k->to_bf16 = VEC(to_bf16);
    k->quantize = VEC(quantize);
    k->fit_i4 = VEC(fit_i4);
    k->axpy = VEC(axpy);
    k->norm = VEC(norm);
    k->act = VEC(act);
    k->softcap = VEC(softcap);
    k->softmax = VEC(softmax);
    k->to_i16 = VEC(to_i16);
    k->times_scales = VEC(times_scales);
    k->from_i32 = VEC(from_i32);
    k->combine = VEC(combine);
    k->scale_out = VEC(scale_out);
}
