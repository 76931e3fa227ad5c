/* gemm: every format at every level against the plain reference; bits do not depend on rows or
 * on where k is cut; NaN and Inf come through.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kernels/chk.h"

#include "backend/cpu/device.h"

enum { MAX_ROWS = 20 };

/* One panel and its activations, in the form that one level wants. */
struct problem {
    enum wformat f;
    int rows, k, k_pad, groups;
    size_t w_bytes, xs_ref, xs; /* strides: x as f32 (or s8) for the reference, x for the level */
    char *w, *x_ref, *x;
    float *w_scale, *x_scale;
    uint32_t *w_group;
    int32_t *sum;
    double *magnitude; /* [PANEL] sum of |x w|, filled per row */
};

static void random_weights(struct problem *p)
{
    size_t n = p->w_bytes;
    if (p->f == W_F32)
        chk_fill((float *)p->w, n / 4);
    for (size_t i = 0; i < n / 2 && (p->f == W_F16 || p->f == W_BF16); i++)
        ((uint16_t *)p->w)[i] = p->f == W_F16 ? f32_f16(chk_float()) : f32_bf16(chk_float());
    for (size_t i = 0; i < n && (p->f == W_I8 || p->f == W_I4); i++)
        p->w[i] = (char)chk_int(256);
}

static void random_rows(struct problem *p, bool x_bf16)
{
    for (int r = 0; r < p->rows; r++) {
        char *ref = p->x_ref + r * p->xs_ref, *x = p->x + r * p->xs;
        if (p->f == W_I8 || p->f == W_I4) {
            int32_t total = 0;
            for (int g = 0; g < p->groups; g++)
                p->sum[r * (p->groups + 1) + g] = 0;
            for (int k = 0; k < p->k_pad; k++) {
                ref[k] = (char)(chk_int(255) - 127);
                total += ref[k];
                p->sum[r * (p->groups + 1) + k / I4_GROUP] += ref[k];
            }
            p->sum[r * (p->groups + 1) + p->groups] = total;
            memcpy(x, ref, (size_t)p->k_pad);
            continue;
        }
        for (int k = 0; k < p->k_pad; k++) {
            float v = k < p->k ? chk_bf16() : 0;
            memcpy(ref + 4 * k, &v, 4);
            uint16_t h = f32_bf16(v);
            if (x_bf16)
                memcpy(x + 2 * k, &h, 2);
            else
                memcpy(x + 4 * k, &v, 4);
        }
    }
}

static void make(struct problem *p, enum wformat f, int rows, int k, bool x_bf16)
{
    *p = (struct problem){.f = f, .rows = rows, .k = k, .k_pad = weight_k_pad(f, k)};
    bool q = f == W_I8 || f == W_I4;
    x_bf16 &= f == W_BF16;
    p->groups = (p->k_pad + I4_GROUP - 1) / I4_GROUP;
    p->w_bytes = weight_panel_bytes(f, k);
    p->xs_ref = (size_t)p->k_pad * (q ? 1 : 4);
    p->xs = (size_t)p->k_pad * (q ? 1 : x_bf16 ? 2 : 4);
    p->w = chk_alloc(p->w_bytes);
    p->x_ref = chk_alloc(p->xs_ref * rows);
    p->x = chk_alloc(p->xs * rows);
    p->w_scale = chk_floats((size_t)p->groups * PANEL);
    p->x_scale = chk_floats(rows);
    p->sum = chk_alloc((size_t)rows * (p->groups + 1) * 4);
    chk_fill(p->w_scale, (size_t)p->groups * PANEL);
    p->w_group = chk_alloc((size_t)p->groups * PANEL * 4);
    for (int i = 0; i < p->groups * PANEL; i++)
        p->w_group[i] = i4_pair(f32_bf16(p->w_scale[i]), f32_bf16(8 * chk_float()));
    chk_fill(p->x_scale, rows);
    random_weights(p);
    random_rows(p, x_bf16);
}

static void unmake(struct problem *p)
{
    chk_free(p->w, p->w_bytes);
    chk_free(p->x_ref, p->xs_ref * p->rows);
    chk_free(p->x, p->xs * p->rows);
    chk_free(p->w_scale, (size_t)p->groups * PANEL * 4);
    chk_free(p->w_group, (size_t)p->groups * PANEL * 4);
    chk_free(p->x_scale, (size_t)p->rows * 4);
    chk_free(p->sum, (size_t)p->rows * (p->groups + 1) * 4);
}

/* Rows [r0, r0 + rows) and k in [0, k_pad), cut at `cut` when 0 < cut < k_pad. */
static void multiply(const struct cpu_kernels *k, const struct problem *p, float *c, bool ref,
                     int r0, int rows, int cut)
{
    size_t xs = ref ? p->xs_ref : p->xs;
    const char *x = (ref ? p->x_ref : p->x) + r0 * xs;
    size_t x_bytes = xs / (size_t)p->k_pad;
    const int32_t *sum = p->sum + (size_t)r0 * (p->groups + 1);
    int32_t totals[MAX_ROWS];
    for (int r = 0; r < rows; r++)
        totals[r] = sum[r * (p->groups + 1) + p->groups];
    for (int k0 = 0, end; k0 < p->k_pad; k0 = end) {
        end = k0 < cut && cut < p->k_pad ? cut : p->k_pad;
        struct gemm g = {.c = c,
                         .ldc = PANEL,
                         .x = x + k0 * x_bytes,
                         .x_stride = xs,
                         .w = p->w + weight_k_bytes(p->f, k0),
                         .rows = rows,
                         .k = end - k0,
                         .first = k0 == 0,
                         .last = end == p->k_pad,
                         .w_scale = p->w_scale,
                         .w_group = p->w_group,
                         .x_scale = p->x_scale + r0,
                         .x_sum = totals,
                         .x_sum_stride = (size_t)p->groups + 1};
        if (p->f == W_I4) {
            g.w_group += k0 / I4_GROUP * PANEL;
            g.x_sum = sum + k0 / I4_GROUP;
        }
        k->gemm[p->f](&g);
    }
}

/* 4 eps times the sum of absolute products: rounding errors of a random walk stay well inside. */
static double tolerance(const struct problem *p, int r, int n)
{
    double sum = 0;
    for (int k = 0; k < p->k_pad; k++) {
        double x, w;
        if (p->f == W_I8 || p->f == W_I4) {
            x = p->x_ref[r * p->xs_ref + k] * (double)p->x_scale[r];
            w = p->w_scale[n] * 128;
            if (p->f == W_I4) {
                uint32_t pair = p->w_group[k / I4_GROUP * PANEL + n];
                w = 15 * fabsf(bf16_f32((uint16_t)(pair >> 16))) + fabsf(bf16_f32((uint16_t)pair));
            }
        } else {
            x = ((float *)(p->x_ref + r * p->xs_ref))[k];
            size_t i = (size_t)k * PANEL + n;
            if (p->f == W_F32)
                w = ((float *)p->w)[i];
            else if (p->f == W_F16)
                w = f16_f32(((uint16_t *)p->w)[i]);
            else
                w = bf16_f32(((uint16_t *)p->w)[((size_t)(k / 2) * PANEL + n) * 2 + k % 2]);
        }
        sum += fabs(x * w);
    }
    return 4 * FLT_EPSILON * sum;
}

static void check_one(const struct cpu_kernels *ref, const struct cpu_kernels *opt, enum wformat f,
                      int rows, int k)
{
    struct problem p;
    make(&p, f, rows, k, opt->x_bf16);
    size_t n = (size_t)rows * PANEL;
    float *want = chk_floats(n), *got = chk_floats(n), *again = chk_floats(n);
    multiply(ref, &p, want, true, 0, rows, 0);
    multiply(opt, &p, got, false, 0, rows, 0);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PANEL; i++)
            chk_close(got[r * PANEL + i], want[r * PANEL + i], tolerance(&p, r, i),
                      "format %d, %s, %d x %d, row %d, output %d\n", f, cpu_isa_name(opt->isa),
                      rows, k, r, i);
    int cut = opt->isa == ISA_PLAIN ? 0 : p.k_pad / 2 / I4_GROUP * I4_GROUP;
    for (int r = 0; r < rows; r++) /* one row at a time, k cut in two: the same bits */
        multiply(opt, &p, again + r * PANEL, false, r, 1, cut);
    assert_memory_equal(again, got, n * sizeof *got);
    unmake(&p);
    chk_free(want, n * 4);
    chk_free(got, n * 4);
    chk_free(again, n * 4);
}

static const enum wformat formats[] = {W_F32, W_F16, W_BF16, W_I8, W_I4};

static void matches_the_reference(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 3, 4, 5, 6, 7, 13, 16, 17}, ks[] = {1, 7, 64, 127, 128, 391};
    struct cpu_kernels ref, opt;
    cpu_kernels_init(&ref, ISA_PLAIN);
    EACH_ISA(isa, ISA_PLAIN)
    {
        cpu_kernels_init(&opt, isa);
        for (int f = 0; f < 5; f++)
            for (int r = 0; r < 10; r++)
                for (int k = 0; k < 6; k++)
                    check_one(&ref, &opt, formats[f], rows[r], ks[k]);
    }
}

static void nan_and_inf_come_through(void **state)
{
    (void)state;
    struct cpu_kernels opt;
    EACH_ISA(isa, ISA_PLAIN)
    {
        cpu_kernels_init(&opt, isa);
        for (int f = 0; f < 3; f++) {
            struct problem p;
            float c[3 * PANEL], inf = INFINITY;
            uint16_t inf_bf16 = f32_bf16(inf);
            make(&p, formats[f], 3, 50, opt.x_bf16);
            bool b16 = opt.x_bf16 && formats[f] == W_BF16;
            memcpy(p.x + p.xs + (b16 ? 2 : 4) * 49, b16 ? (void *)&inf_bf16 : &inf, b16 ? 2 : 4);
            memset(p.w + weight_k_bytes(formats[f], 10) + 4, 0xff, 2 * (f == 0 ? 2 : 1));
            multiply(&opt, &p, c, false, 0, 3, 0);
            int nan_col = f == 0 ? 1 : f == 1 ? 2 : 1; /* the output whose weight is NaN now */
            for (int r = 0; r < 3; r++)
                assert_true(isnan(c[r * PANEL + nan_col]));
            for (int i = 3; i < PANEL; i++) {
                assert_true(isfinite(c[i]) && isfinite(c[2 * PANEL + i]));
                assert_true(isinf(c[PANEL + i]));
            }
            unmake(&p);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_the_reference),
        cmocka_unit_test(nan_and_inf_come_through),
    };
    chk_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
