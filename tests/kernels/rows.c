/* rows: norms, activations, softmax and their kin against the plain reference, at sizes with tails,
 * against guard pages; NaN and Inf come through.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kernels/chk.h"

static const int sizes[] = {1, 2, 7, 8, 15, 16, 17, 31, 64, 127, 384, 1009};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

struct both {
    struct cpu_kernels ref, opt;
};

static void to_bf16(const struct both *b, int n)
{
    int n_pad = (n + 31) & ~31;
    float *x = chk_floats(n);
    uint16_t *want = chk_alloc(n_pad * 2), *got = chk_alloc(n_pad * 2);
    chk_fill(x, n);
    x[chk_int(n)] = INFINITY;
    b->ref.to_bf16(want, x, n, n_pad);
    b->opt.to_bf16(got, x, n, n_pad);
    assert_memory_equal(got, want, n_pad * 2);
    x[0] = NAN;
    b->opt.to_bf16(got, x, n, n_pad);
    assert_true(isnan(bf16_f32(got[0])));
    chk_free(x, n * 4);
    chk_free(want, n_pad * 2);
    chk_free(got, n_pad * 2);
}

static void quantize(const struct both *b, int n)
{
    int n_pad = (n + I4_GROUP - 1) / I4_GROUP * I4_GROUP, groups = n_pad / I4_GROUP;
    float *x = chk_floats(n), scale[2];
    int8_t *q[2] = {chk_alloc(n_pad), chk_alloc(n_pad)};
    int32_t *sum[2] = {chk_alloc(groups * 4), chk_alloc(groups * 4)}, total[2];
    chk_fill(x, n);
    for (int i = 0; i < 2; i++)
        (i ? b->opt : b->ref).quantize(q[i], &scale[i], sum[i], &total[i], x, n, n_pad);
    assert_true(scale[0] == scale[1] && total[0] == total[1]);
    assert_memory_equal(q[0], q[1], n_pad);
    assert_memory_equal(sum[0], sum[1], groups * 4);
    for (int i = 0; i < n; i++)
        chk_close(q[1][i] * scale[1], x[i], scale[1] * 0.501, "quantize n %d, i %d\n", n, i);
    memset(x, 0, n * 4);
    b->opt.quantize(q[1], &scale[1], sum[1], &total[1], x, n, n_pad);
    assert_true(scale[1] == 0 && total[1] == 0 && q[1][0] == 0);
    x[n - 1] = INFINITY;
    b->opt.quantize(q[1], &scale[1], sum[1], &total[1], x, n, n_pad);
    assert_true(isnan(scale[1]));
    x[n - 1] = NAN;
    b->opt.quantize(q[1], &scale[1], sum[1], &total[1], x, n, n_pad);
    assert_true(isnan(scale[1]));
    chk_free(x, n * 4);
    for (int i = 0; i < 2; i++) {
        chk_free(q[i], n_pad);
        chk_free(sum[i], groups * 4);
    }
}

static void norm(const struct both *b, int n)
{
    float *x = chk_floats(n), *w = chk_floats(n), *bias = chk_floats(n);
    float *want = chk_floats(n), *got = chk_floats(n);
    for (int kind = 0; kind < 4; kind++) {
        struct norm nm = {kind & 1 ? w : NULL, kind & 2 ? bias : NULL, 1e-5f, kind != 3};
        chk_fill(x, n);
        chk_fill(w, n);
        chk_fill(bias, n);
        b->ref.norm(want, x, &nm, n);
        b->opt.norm(got, x, &nm, n);
        /* The mean's error is divided by the deviation, which is small for tiny rows. */
        double dev = 0, mean = 0;
        for (int i = 0; i < n; i++)
            mean += x[i] / (double)n;
        for (int i = 0; i < n; i++)
            dev += (x[i] - mean) * (x[i] - mean) / n;
        double tol = 8 * FLT_EPSILON * sqrt(n) * (1 + (nm.rms ? 0 : 1 / sqrt(dev + 1e-5)));
        for (int i = 0; i < n; i++)
            chk_close(got[i], want[i], tol * 4, "norm %d, n %d, i %d\n", kind, n, i);
        b->opt.norm(x, x, &nm, n); /* in place */
        assert_memory_equal(x, got, n * 4);
        x[n / 2] = NAN;
        b->opt.norm(got, x, &nm, n);
        assert_true(isnan(got[0]));
    }
    chk_free(x, n * 4);
    chk_free(w, n * 4);
    chk_free(bias, n * 4);
    chk_free(want, n * 4);
    chk_free(got, n * 4);
}

static void act(const struct both *b, int n)
{
    static const float special[] = {0, -0.0f, 1e-30f, -1e-30f, 88, -88, 1000, -1000, 3e38f, NAN};
    float *x = chk_floats(n), *up = chk_floats(n), *want = chk_floats(n), *got = chk_floats(n);
    for (int kind = ACT_SILU; kind <= ACT_RELU2; kind++) {
        for (int gated = 0; gated < 2; gated++) {
            chk_fill(x, n);
            chk_fill(up, n);
            for (int i = 0; i < n; i++)
                x[i] = i < 10 ? special[(i + n) % 10] : 4 * x[i];
            b->ref.act(want, x, gated ? up : NULL, kind, n);
            b->opt.act(got, x, gated ? up : NULL, kind, n);
            for (int i = 0; i < n; i++) /* e^x is off by |x| eps: that is what |x| stands for */
                chk_close(got[i], want[i],
                          FLT_EPSILON * (8 * fabs(want[i]) +
                                         fabs((double)x[i]) * (gated ? fabs(up[i]) : 1)) +
                              1e-37,
                          "act %d of %g\n", kind, (double)x[i]);
        }
    }
    chk_free(x, n * 4);
    chk_free(up, n * 4);
    chk_free(want, n * 4);
    chk_free(got, n * 4);
}

static void axpy_softcap_scale(const struct both *b, int n)
{
    float *x = chk_floats(n), *want = chk_floats(n), *got = chk_floats(n);
    chk_fill(x, n);
    chk_fill(want, n);
    memcpy(got, want, n * 4);
    b->ref.axpy(want, x, 0.37f, n);
    b->opt.axpy(got, x, 0.37f, n);
    for (int i = 0; i < n; i++)
        chk_close(got[i], want[i], 4 * FLT_EPSILON, "axpy\n");
    for (int i = 0; i < n; i++)
        got[i] = want[i] = x[i] * (i % 3 ? 20 : 0.01f);
    got[n / 2] = want[n / 2] = NAN;
    b->ref.softcap(want, 1.7f, 30, n);
    b->opt.softcap(got, 1.7f, 30, n);
    for (int i = 0; i < n; i++)
        chk_close(got[i], want[i], 8 * FLT_EPSILON * 30, "softcap of %g\n", (double)x[i]);
    b->opt.scale_out(got, x, 3, n);
    for (int i = 0; i < n; i++)
        assert_true(got[i] == x[i] / 3);
    chk_free(x, n * 4);
    chk_free(want, n * 4);
    chk_free(got, n * 4);
}

static void combine(const struct both *b, int n)
{
    float *o = chk_floats(n), *o2 = chk_floats(n), *want = chk_floats(n);
    chk_fill(o2, n);
    memset(o, 0, n * 4);
    float max = -INFINITY, sum = 0;
    b->opt.combine(o, &max, &sum, o2, 1.5f, 2, n); /* onto nothing: exactly the chunk */
    assert_memory_equal(o, o2, n * 4);
    assert_true(max == 1.5f && sum == 2);
    for (int i = 0; i < 4; i++) {
        float max2 = chk_float() * 5, sum2 = 1 + fabsf(chk_float()), wm = max, ws = sum;
        chk_fill(o2, n);
        memcpy(want, o, n * 4);
        b->ref.combine(want, &wm, &ws, o2, max2, sum2, n);
        b->opt.combine(o, &max, &sum, o2, max2, sum2, n);
        assert_true(max == wm);
        chk_close(sum, ws, 32 * FLT_EPSILON * ws, "sum\n");
        for (int j = 0; j < n; j++)
            chk_close(o[j], want[j], 32 * FLT_EPSILON * 4, "combine\n");
        memcpy(o, want, n * 4);
        sum = ws;
    }
    b->opt.combine(o, &max, &sum, o2, NAN, 1, n);
    assert_true(isnan(sum) && isnan(o[n - 1]));
    chk_free(o, n * 4);
    chk_free(o2, n * 4);
    chk_free(want, n * 4);
}

static double fit_error(const struct cpu_kernels *k, const float *w, uint8_t *q)
{
    uint32_t pair = k->fit_i4(q, w);
    double scale = bf16_f32((uint16_t)(pair >> 16)), offset = bf16_f32((uint16_t)pair), sum = 0;
    for (int i = 0; i < I4_GROUP; i++) {
        assert_true(q[i] < 16);
        sum += (scale * q[i] + offset - w[i]) * (scale * q[i] + offset - w[i]);
    }
    return sum;
}

/* Levels may differ at near ties, so errors are compared, and with what 4 bits can do: a normal
 * group of 128 loses about 1 % of its squares. */
static void fit_i4(const struct both *b)
{
    uint8_t *q = chk_alloc(I4_GROUP);
    float *w = chk_floats(I4_GROUP);
    static const float units[] = {1, 0.02f, 1e-15f, 1e15f};
    for (int i = 0; i < 4; i++) {
        double squares = 0;
        for (int k = 0; k < I4_GROUP; k++) {
            w[k] = (chk_float() + 0.1f) * units[i];
            squares += (double)w[k] * w[k];
        }
        double want = fit_error(&b->ref, w, q), got = fit_error(&b->opt, w, q);
        assert_true(got <= 1.01 * want && want <= 0.015 * squares && want > 0);
    }
    for (int k = 0; k < I4_GROUP; k++)
        w[k] = -0.25f;
    assert_true(fit_error(&b->opt, w, q) == 0);
    w[100] = INFINITY;
    assert_true(isnan(bf16_f32((uint16_t)(b->opt.fit_i4(q, w) >> 16))));
    w[100] = NAN;
    assert_true(isnan(bf16_f32((uint16_t)b->opt.fit_i4(q, w))));
    chk_free(q, I4_GROUP);
    chk_free(w, I4_GROUP * 4);
}

static void softmax(const struct both *b, int lo, int hi, int kind)
{
    float s[ATTN_CHUNK], s2[ATTN_CHUNK], p[ATTN_CHUNK], p2[ATTN_CHUNK], max, sum, max2, sum2;
    struct softmax a = {.lo = lo, .hi = hi, .scale = 0.3f};
    a.softcap = kind == 1 ? 5 : 0;
    a.alibi = kind == 2 ? 0.25f : 0;
    a.alibi_first = -100;
    for (int i = 0; i < ATTN_CHUNK; i++) /* what lies outside [lo, hi) may be anything */
        s[i] = i >= lo && i < hi ? chk_float() * 30 : i % 2 ? NAN : INFINITY;
    memcpy(s2, s, sizeof s);
    b->ref.softmax(p, false, &max, &sum, s, &a);
    b->opt.softmax(p2, false, &max2, &sum2, s2, &a);
    chk_close(max2, max, 8 * FLT_EPSILON * (fabs(max) + 10), "max\n");
    double tol = FLT_EPSILON * 64; /* of exponents up to about 50 */
    chk_close(sum2, sum, tol * sum, "sum of [%d, %d)\n", lo, hi);
    for (int i = lo & ~15; i < ((hi + 15) & ~15); i++)
        chk_close(p2[i], p[i], tol, "p[%d] of [%d, %d)\n", i, lo, hi);
    memcpy(s, s2, sizeof s); /* scores scaled already: again, as bf16 and in place */
    a.scale = 1;
    a.softcap = a.alibi = 0;
    memcpy(s2, s, sizeof s);
    b->ref.softmax(p, true, &max, &sum, s, &a);
    b->opt.softmax(s2, true, &max2, &sum2, s2, &a);
    for (int i = lo & ~15; i < ((hi + 15) & ~15); i++)
        chk_close(bf16_f32(((uint16_t *)s2)[i]), bf16_f32(((uint16_t *)p)[i]), 0x1p-8, "bf16\n");
    for (int i = lo; i < hi; i++)
        s[i] = i == (lo + hi) / 2 ? NAN : 1;
    b->opt.softmax(p2, false, &max2, &sum2, s, &a);
    assert_true(isnan(sum2));
}

static void every_level(void **state)
{
    (void)state;
    struct both b;
    cpu_kernels_init(&b.ref, ISA_PLAIN);
    EACH_ISA(isa, ISA_PLAIN)
    {
        cpu_kernels_init(&b.opt, isa);
        fit_i4(&b);
        for (int i = 0; i < N_SIZES; i++) {
            to_bf16(&b, sizes[i]);
            quantize(&b, sizes[i]);
            norm(&b, sizes[i]);
            act(&b, sizes[i]);
            axpy_softcap_scale(&b, sizes[i]);
            combine(&b, sizes[i]);
        }
        for (int i = 0; i < 300; i++) {
            int lo = i < 20 ? 0 : chk_int(ATTN_CHUNK), hi = lo + 1 + chk_int(ATTN_CHUNK - lo);
            softmax(&b, lo, i == 0 ? 1 : i == 1 ? ATTN_CHUNK : hi, i % 3);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_level)};
    chk_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
