/* Products: every kernel against sums in float64, at sizes that no tile divides; the same bits from
 * all of them and from cuBLASLt, for any number of rows, fused or not; nothing written beside the
 * output. Then their speed, against bytes and operations and against cuBLASLt.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/half.h"
#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const struct ops *ops;
static struct device *dev;

/* ---- data --------------------------------------------------------------------------------------
 */

static void *on_device(const void *host, size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess)
        fail_msg("no memory");
    if (host)
        assert_int_equal(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    cudaDeviceSynchronize(); /* the device's own stream does not wait for this one */
    return p;
}

static void *on_host(const void *p, size_t bytes)
{
    void *h = mem_alloc(bytes, 1);
    fuse_flush(dev);
    assert_int_equal(cudaStreamSynchronize(dev->stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(h, p, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    return h;
}

static void poison(void *p, size_t bytes)
{
    cudaMemset(p, 0xff, bytes);
    cudaDeviceSynchronize();
}

static uint32_t next_random(uint32_t *x)
{
    *x = *x * 1664525 + 1013904223;
    return *x >> 8;
}

enum { PERIOD = 1000003 }; /* random values that are made before they repeat */

/* n values: bf16 of either sign between 0.008 and 2, or e4m3 codes that are not NaN. */
static void *take(size_t n, bool e4m3, uint32_t seed)
{
    size_t each = e4m3 ? 1 : 2, made = n < PERIOD ? n : PERIOD;
    uint16_t *h = mem_alloc(made, 2);
    for (size_t i = 0; i < made; i++) {
        uint32_t r = next_random(&seed);
        if (e4m3)
            ((uint8_t *)h)[i] = (uint8_t)((r & 0x7f) % 0x7f | (r >> 8 & 0x80));
        else
            h[i] = (uint16_t)(0x3c00 | (r & 0x3ff) | (r >> 3 & 0x8000));
    }
    char *p = on_device(NULL, n * each);
    for (size_t at = 0; at < n; at += made)
        cudaMemcpy(p + at * each, h, (n - at < made ? n - at : made) * each,
                   cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
    mem_free(h);
    return p;
}

/* n f32 within base +- width. */
static float *take_f32(size_t n, float base, float width)
{
    float *h = mem_alloc(n, sizeof *h);
    uint32_t seed = 99;
    for (size_t i = 0; i < n; i++)
        h[i] = base + width * ((float)next_random(&seed) * 0x1p-23f - 1);
    float *p = on_device(h, n * sizeof *h);
    mem_free(h);
    return p;
}

static double value(const void *p, bool e4m3, size_t i)
{
    if (!e4m3)
        return (double)bf16_f32(((const uint16_t *)p)[i]);
    int c = ((const uint8_t *)p)[i], e = c >> 3 & 15, f = c & 7;
    double v = e ? ldexp(8 + f, e - 10) : ldexp(f, -9);
    return c & 0x80 ? -v : v;
}

/* W of each group, and rows of x. */
struct problem {
    bool e4m3;
    int rows, cols, m, n_groups;
    void *w, *x;
    float *w_scale, *x_scale, *bias;
};

static struct problem problem(bool e4m3, int rows, int cols, int m, int n_groups)
{
    size_t outputs = (size_t)rows * (size_t)n_groups, k = (size_t)cols;
    struct problem p = {e4m3, rows, cols, m, n_groups, NULL, NULL, NULL, NULL, NULL};
    p.w = take(outputs * k, e4m3, 1);
    p.x = take((size_t)m * k, e4m3, 2);
    p.bias = take_f32(outputs, 0, 4);
    if (e4m3) {
        p.w_scale = take_f32(outputs, 2e-4f, 1e-4f);
        p.x_scale = take_f32((size_t)m, 2e-2f, 1e-2f);
    }
    return p;
}

static void problem_free(struct problem *p)
{
    cudaFree(p->w);
    cudaFree(p->x);
    cudaFree(p->bias);
    cudaFree(p->w_scale);
    cudaFree(p->x_scale);
}

static struct narrow_args args_of(const struct problem *p, int m, void *y)
{
    return (struct narrow_args){.w = p->w,
                                .rows = p->rows,
                                .cols = p->cols,
                                .x = p->x,
                                .m = m,
                                .w_scale = p->w_scale,
                                .x_scale = p->x_scale,
                                .y = y,
                                .scale = 1,
                                .add_scale = 0.5f};
}

/* The kernels by number: those of wide.cu, then narrow.cu's. */
static bool launch(const struct narrow_args *a, int kernel)
{
    if (kernel < wide_tiles())
        return launch_wide(dev->stream, a, dev->n_sms, kernel);
    return launch_narrow(dev->stream, a, dev->n_sms);
}

static bool takes(int kernel, const struct problem *p, int m)
{
    return kernel < wide_tiles() || (!p->e4m3 && m <= NARROW_MAX && p->cols % 16 == 0);
}

/* ---- right -----------------------------------------------------------------------------------
 */

/* Sums and sums of sizes in float64, [m, rows]. */
static void exact_sums(const struct problem *p, double *sum, double *size)
{
    const size_t rows = (size_t)p->rows, cols = (size_t)p->cols, m = (size_t)p->m;
    const size_t each = p->e4m3 ? 1 : 2;
    void *w = on_host(p->w, rows * cols * each), *x = on_host(p->x, m * cols * each);
    float *ws = p->e4m3 ? on_host(p->w_scale, rows * 4) : NULL;
    float *xs = p->e4m3 ? on_host(p->x_scale, m * 4) : NULL;
    double *wd = mem_alloc(rows * cols, sizeof *wd), *xd = mem_alloc(cols, sizeof *xd);
    for (size_t i = 0; i < rows * cols; i++)
        wd[i] = value(w, p->e4m3, i);
    for (size_t t = 0; t < m; t++) {
        for (size_t k = 0; k < cols; k++)
            xd[k] = value(x, p->e4m3, t * cols + k);
        for (size_t r = 0; r < rows; r++) {
            double s = 0, g = 0, by = ws ? (double)ws[r] * (double)xs[t] : 1;
            for (size_t k = 0; k < cols; k++) {
                double v = wd[r * cols + k] * xd[k];
                s += v;
                g += fabs(v);
            }
            sum[t * rows + r] = s * by;
            size[t * rows + r] = g * by;
        }
    }
    void *all[] = {w, x, ws, xs, wd, xd};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        mem_free(all[i]);
}

/* Largest |got - sum| / size, of m rows. */
static double worst_of(const float *got, const double *sum, const double *size, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - sum[i]) / size[i];
        if (!(e <= worst))
            worst = isnan(e) ? INFINITY : e;
    }
    return worst;
}

/* f32 sums lose up to 2^-24 of what they are at each step, and the instruction drops what is under
 * its own last bit rather than round it. For e4m3 that bit is 13 below the largest term's, once for
 * each 32 of K. Errors of either sign mostly cancel; the worst of 300,000 sums is some times that.
 */
static double tolerance(const struct problem *p)
{
    return p->e4m3 ? 0x1p-11 * sqrt(p->cols / 32) : 0x1p-23 * sqrt(p->cols);
}

static void exact(void **state)
{
    static const int sizes[2][3][2] = {{{1001, 1032}, {48, 4096}, {40, 14336}},
                                       {{1001, 1040}, {48, 4096}, {40, 14336}}};
    static const int ms[] = {1, 17, 333};
    (void)state;
    for (int e4m3 = 0; e4m3 < 2; e4m3++)
        for (int s = 0; s < 3; s++) {
            struct problem p = problem(e4m3, sizes[e4m3][s][0], sizes[e4m3][s][1], 333, 1);
            size_t rows = (size_t)p.rows, n = rows * (size_t)p.m;
            double *sum = mem_alloc(n, sizeof *sum), *size = mem_alloc(n, sizeof *size);
            float *y = on_device(NULL, n * sizeof *y);
            double worst = 0;
            exact_sums(&p, sum, size);
            for (int kernel = 0; kernel <= wide_tiles(); kernel++)
                for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
                    struct narrow_args a = args_of(&p, ms[i], y);
                    a.out_f32 = true;
                    if (!takes(kernel, &p, ms[i]))
                        continue;
                    poison(y, n * sizeof *y);
                    assert_true(launch(&a, kernel));
                    float *got = on_host(y, n * sizeof *y);
                    double e = worst_of(got, sum, size, (size_t)ms[i] * rows);
                    if (e > tolerance(&p))
                        fail_msg("kernel %d, %s, %d rows of %d x %d: off by %g of the sum of sizes",
                                 kernel, e4m3 ? "e4m3" : "bf16", ms[i], p.rows, p.cols, e);
                    worst = e > worst ? e : worst;
                    mem_free(got);
                }
            print_message("%s %4d x %5d: off by at most %.1e of the sum of sizes (allowed %.1e)\n",
                          e4m3 ? "e4m3" : "bf16", p.rows, p.cols, worst, tolerance(&p));
            mem_free(sum);
            mem_free(size);
            cudaFree(y);
            problem_free(&p);
        }
}

enum { CHOSEN = -1 };

/* got is want in its first n bytes, and poison in the rest. */
static void same(const void *got, const void *want, size_t n, size_t bytes, const char *what,
                 int kernel, int m)
{
    uint8_t *x = on_host(got, bytes), *y = on_host(want, n);
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != (i < n ? y[i] : 0xff))
            fail_msg("kernel %d, %s, %d rows: byte %zu of %zu is wrong", kernel, what, m, i, n);
    mem_free(x);
    mem_free(y);
}

enum { MOST = 333 };
enum output { PLAIN, BIASED, LOGITS, ADDED, GATED, N_OUTPUTS };
static const char *const output_name[] = {"plain", "bias", "logits", "residual", "gated"};

static struct narrow_args args_for(const struct problem *p, int m, enum output kind, void *y)
{
    struct narrow_args a = args_of(p, m, y);
    a.bias = kind == BIASED || kind == LOGITS ? p->bias : NULL;
    a.out_f32 = kind == LOGITS;
    a.scale = 0.5f;
    a.softcap = 30;
    a.residual = kind == ADDED ? y : NULL;
    a.gated = kind == GATED;
    return a;
}

/* Every kernel, number of rows and kind of output: the bits of the first kernel at MOST rows. */
static void rows_and_kernels(void **state)
{
    static const int ms[] = {1, 2, 7, 16, 32, 33, 64, 65, 100, 128, 200, MOST};
    static const int sizes[][2] = {{1008, 528}, {1001, 1040}, {4096, 4096}, {512, 14336}};
    (void)state;
    for (int e4m3 = 0; e4m3 < 2; e4m3++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            struct problem p = problem(e4m3, sizes[s][0], sizes[s][1], MOST, 1);
            size_t n = (size_t)p.rows * MOST, bytes = n * 4;
            void *want = on_device(NULL, bytes), *got = on_device(NULL, bytes);
            float *residual = take_f32(n, 0, 2);
            for (int kind = 0; kind < N_OUTPUTS; kind++) {
                if (kind == GATED && p.rows % 16)
                    continue;
                size_t row = (size_t)(kind == GATED ? p.rows / 2 : p.rows) *
                             (kind == LOGITS || kind == ADDED ? 4 : 2);
                struct narrow_args a = args_for(&p, MOST, kind, want);
                cudaMemcpy(want, residual, bytes, cudaMemcpyDeviceToDevice);
                cudaDeviceSynchronize();
                assert_true(launch(&a, 0));
                for (int kernel = 0; kernel <= wide_tiles(); kernel++)
                    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
                        if (!takes(kernel, &p, ms[i]) || (s > 1 && i % 4))
                            continue;
                        poison(got, bytes);
                        if (kind == ADDED)
                            cudaMemcpy(got, residual, (size_t)ms[i] * row,
                                       cudaMemcpyDeviceToDevice);
                        cudaDeviceSynchronize();
                        a = args_for(&p, ms[i], kind, got);
                        assert_true(launch(&a, kernel));
                        same(got, want, (size_t)ms[i] * row, MOST * row, output_name[kind], kernel,
                             ms[i]);
                    }
            }
            print_message("%s %d x %d: one set of bits\n", e4m3 ? "e4m3" : "bf16", p.rows, p.cols);
            cudaFree(want);
            cudaFree(got);
            cudaFree(residual);
            problem_free(&p);
        }
}

static void as_cublas(void **state)
{
    static const int sizes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336},
                                   {1536, 512},  {1000, 528},  {896, 896},    {128256, 2048}};
    static const int ms[] = {1, 32, 33, 64, 128};
    enum { ROWS = 128 };
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct problem p = problem(false, sizes[s][0], sizes[s][1], ROWS, 1);
        struct weight w = {.format = W_BF16, .rows = p.rows, .cols = p.cols, .data = p.w};
        size_t n = (size_t)p.rows * ROWS * 2;
        void *want = on_device(NULL, n), *got = on_device(NULL, n);
        gemm_run(dev, want, false, &w, p.x, ROWS);
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
            struct narrow_args a = args_of(&p, ms[i], got);
            poison(got, n);
            product_run(dev, &a);
            same(got, want, (size_t)ms[i] * (size_t)p.rows * 2, n, "a product", CHOSEN, ms[i]);
        }
        print_message("%d x %d: the bits of cuBLASLt\n", p.rows, p.cols);
        cudaFree(want);
        cudaFree(got);
        problem_free(&p);
    }
}

/* Rows in groups, each with a W of its own: the bits of one product after the other. */
static void groups(void **state)
{
    enum { N = 9, FIRST = 3 };
    static const int of_group[N] = {0, 1, 70, 0, 130, 3, 64, 65, 0};
    (void)state;
    int32_t start[N + 1] = {FIRST};
    for (int i = 0; i < N; i++)
        start[i + 1] = start[i] + of_group[i];
    int32_t *starts = on_device(start, sizeof start);
    for (int e4m3 = 0; e4m3 < 2; e4m3++) {
        struct problem p = problem(e4m3, 1408, 528, start[N] + 5, N);
        size_t bytes = (size_t)p.rows * (size_t)p.m * 2, each = e4m3 ? 1 : 2;
        void *want = on_device(NULL, bytes), *got = on_device(NULL, bytes);
        for (int kernel = 0; kernel < wide_tiles(); kernel++)
            for (int kind = 0; kind < 4; kind++) {
                struct narrow_args a = args_of(&p, p.m, got);
                a.gated = kind & 1;
                a.bias = kind & 2 ? p.bias : NULL;
                a.group_start = starts;
                a.n_groups = N;
                poison(got, bytes);
                poison(want, bytes);
                assert_true(launch(&a, kernel));
                size_t row = (size_t)p.rows / (a.gated ? 2 : 1) * 2;
                for (int g = 0; g < N; g++) {
                    size_t first = (size_t)g * (size_t)p.rows;
                    struct narrow_args one = a;
                    one.group_start = NULL;
                    one.m = of_group[g];
                    one.w = (char *)p.w + first * (size_t)p.cols * each;
                    one.x = (char *)p.x + (size_t)start[g] * (size_t)p.cols * each;
                    one.w_scale = e4m3 ? p.w_scale + first : NULL;
                    one.x_scale = e4m3 ? p.x_scale + start[g] : NULL;
                    one.bias = a.bias ? p.bias + first : NULL;
                    one.y = (char *)want + (size_t)start[g] * row;
                    if (one.m)
                        assert_true(launch(&one, 0));
                }
                same(got, want, (size_t)start[N] * row, bytes, "groups", kernel, p.m);
            }
        print_message("%s: groups of rows, the bits of one after the other\n",
                      e4m3 ? "e4m3" : "bf16");
        cudaFree(want);
        cudaFree(got);
        problem_free(&p);
    }
    cudaFree(starts);
}

/* norm -> product -> residual; norm -> gate and up -> activation -> product: `rows` at once. */
struct layer_weights {
    struct weight square, gate_up, down;
    struct norm norm;
};

struct layer_data {
    float *h;
    void *x, *y, *z, *out;
};

static void layer(bool fuse, int rows, const struct layer_data *d, const struct layer_weights *w)
{
    int n = w->square.cols;
    ops->add_norm(dev, d->x, d->h, NULL, 1, &w->norm, rows, n);
    if (!fuse)
        fuse_flush(dev);
    ops->linear(dev, d->y, &w->square, d->x, rows);
    if (!fuse)
        fuse_flush(dev);
    ops->add_norm(dev, d->x, d->h, d->y, 0.5f, &w->norm, rows, n);
    if (!fuse)
        fuse_flush(dev);
    ops->linear(dev, d->y, &w->gate_up, d->x, rows);
    if (!fuse)
        fuse_flush(dev);
    ops->act(dev, d->z, d->y, ACT_SILU, true, rows, w->down.cols);
    ops->linear(dev, d->out, &w->down, d->z, rows);
    fuse_flush(dev);
}

static struct weight layer_weight(bool e4m3, int rows, int cols, uint32_t seed)
{
    struct weight w = {.format = e4m3 ? W_FP8 : W_BF16, .rows = rows, .cols = cols};
    w.data = take((size_t)rows * (size_t)cols, e4m3, seed);
    w.scale = e4m3 ? take_f32((size_t)rows, 2e-4f, 1e-4f) : NULL;
    return w;
}

static void weight_free(struct weight *w)
{
    cudaFree(w->data);
    cudaFree((void *)w->scale);
}

static void fused(void **state)
{
    enum { ROWS = 128 };
    static const int ms[] = {1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 100, ROWS};
    const int n = 2048, ffn = 5680;
    const size_t width = (size_t)n, wide = (size_t)ffn;
    (void)state;
    float *bias = take_f32(width, 0, 2);
    for (int way = 0; way < 4; way++) {
        const bool with = way & 1, e4m3 = way & 2;
        struct layer_weights w = {.square = layer_weight(e4m3, n, n, 5),
                                  .gate_up = layer_weight(e4m3, 2 * ffn, n, 6),
                                  .down = layer_weight(e4m3, n, ffn, 7),
                                  .norm = {.w = take_f32(width, 0, 2), .eps = 1e-5f, .rms = !with}};
        w.square.bias = with ? bias : NULL;
        dev->fp8_cols = e4m3 ? ffn : 0;
        assert_int_equal(coded_reserve(dev, ROWS, NULL), SL_OK);
        struct layer_data d[2];
        for (int i = 0; i < 2; i++)
            d[i] = (struct layer_data){
                take_f32(ROWS * width, 0, 2), on_device(NULL, ROWS * width * 2),
                on_device(NULL, ROWS * 2 * wide * 2), on_device(NULL, ROWS * wide * 2),
                on_device(NULL, ROWS * width * 2)};
        layer(false, ROWS, &d[0], &w);
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
            size_t m = (size_t)ms[i];
            cudaFree(d[1].h);
            d[1].h = take_f32(ROWS * width, 0, 2);
            poison(d[1].x, ROWS * width * 2);
            poison(d[1].z, ROWS * wide * 2);
            poison(d[1].out, ROWS * width * 2);
            layer(true, ms[i], &d[1], &w);
            same(d[1].h, d[0].h, m * width * 4, m * width * 4, "the residual", CHOSEN, ms[i]);
            same(d[1].x, d[0].x, m * width * 2, ROWS * width * 2, "the norm", CHOSEN, ms[i]);
            same(d[1].z, d[0].z, m * wide * 2, ROWS * wide * 2, "the activation", CHOSEN, ms[i]);
            same(d[1].out, d[0].out, m * width * 2, ROWS * width * 2, "the end", CHOSEN, ms[i]);
        }
        for (int i = 0; i < 2; i++) {
            cudaFree(d[i].h);
            cudaFree(d[i].x);
            cudaFree(d[i].y);
            cudaFree(d[i].z);
            cudaFree(d[i].out);
        }
        cudaFree((void *)w.norm.w);
        weight_free(&w.square);
        weight_free(&w.gate_up);
        weight_free(&w.down);
        print_message("%s: fused and not, the same bits\n", e4m3 ? "e4m3" : "bf16");
    }
    dev->fp8_cols = 0;
    cudaFree(bias);
}

/* ---- fast ------------------------------------------------------------------------------------
 */

enum { N_W = 6 };

struct timed {
    struct problem p;
    void *w[N_W], *y;
    int n_w, m;
    bool own, gated;
};

/* Few FP8 rows are made from bf16 as the product begins. */
static bool makes_codes(const struct timed *t)
{
    return t->p.e4m3 && t->m <= FP8_NARROW_MAX;
}

static double microseconds(const struct timed *t)
{
    const int n = t->m > 1024 ? 4 : 24;
    cudaEvent_t a, b;
    float ms = 0, best = 1e9f;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    for (int again = 0; again < 4; again++) { /* the first one warms up */
        cudaEventRecord(a, dev->stream);
        for (int i = 0; i < n; i++) {
            struct narrow_args k = args_of(&t->p, t->m, t->y);
            struct weight w = {.format = W_BF16, .rows = t->p.rows, .cols = t->p.cols};
            k.w = w.data = t->w[i % t->n_w];
            k.gated = t->gated;
            if (makes_codes(t))
                k.x_scale = NULL;
            if (t->own)
                product_run(dev, &k);
            else
                gemm_run(dev, t->y, false, &w, t->p.x, t->m);
        }
        cudaEventRecord(b, dev->stream);
        assert_int_equal(cudaEventSynchronize(b), cudaSuccess);
        cudaEventElapsedTime(&ms, a, b);
        best = again && ms < best ? ms : best;
    }
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    return 1000.0 * (double)best / n;
}

static double copy_bandwidth(void)
{
    size_t n = (size_t)1 << 30;
    void *from = on_device(NULL, n), *to = on_device(NULL, n);
    float ms = 0, best = 1e9f;
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    for (int i = 0; i < 8; i++) {
        cudaEventRecord(a, dev->stream);
        cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, dev->stream);
        cudaEventRecord(b, dev->stream);
        cudaEventSynchronize(b);
        cudaEventElapsedTime(&ms, a, b);
        best = ms < best ? ms : best;
    }
    cudaFree(from);
    cudaFree(to);
    return 2.0 * (double)n / (double)best * 1e3;
}

/* Of Llama-3.1-8B. */
static const struct {
    const char *name;
    int rows, cols;
} of_layer[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};

static struct timed timed(bool e4m3, int s, int m)
{
    struct timed t = {.m = m, .n_w = m > 1024 ? 2 : N_W};
    t.p = problem(e4m3, of_layer[s].rows, of_layer[s].cols, m, 1);
    size_t bytes = (size_t)t.p.rows * (size_t)t.p.cols * (e4m3 ? 1 : 2);
    t.w[0] = t.p.w;
    if (makes_codes(&t)) {
        cudaFree(t.p.x);
        t.p.x = take((size_t)m * (size_t)t.p.cols, false, 2);
    }
    for (int i = 1; i < t.n_w; i++) {
        t.w[i] = on_device(NULL, bytes);
        cudaMemcpy(t.w[i], t.p.w, bytes, cudaMemcpyDeviceToDevice);
    }
    t.y = on_device(NULL, (size_t)t.p.rows * (size_t)m * 2);
    return t;
}

static void timed_free(struct timed *t)
{
    for (int i = 1; i < t->n_w; i++)
        cudaFree(t->w[i]);
    cudaFree(t->y);
    problem_free(&t->p);
}

/* What cuBLASLt reaches. */
static double operation_rate(void)
{
    struct timed t = timed(false, 2, 2048);
    double us = microseconds(&t);
    timed_free(&t);
    return 2.0 * 28672 * 4096 * 2048 / us * 1e6;
}

static void time_shape(bool e4m3, int s, int m, double bandwidth, double rate)
{
    struct timed t = timed(e4m3, s, m);
    size_t n = (size_t)t.p.rows * (size_t)t.p.cols, bytes = n * (e4m3 ? 1 : 2);
    double lt = e4m3 ? 0 : microseconds(&t), flops = 2.0 * (double)n * m;
    t.own = true;
    double own = microseconds(&t), by_bytes = (double)bytes / bandwidth * 1e6;
    double by_flops = flops / (rate * (e4m3 ? 2 : 1)) * 1e6;
    double least = by_bytes > by_flops ? by_bytes : by_flops;
    print_message("%s %-8s m %5d: own %7.1f us, %3.0f %% of the floor, %4.0f TFLOP/s",
                  e4m3 ? "e4m3" : "bf16", of_layer[s].name, m, own, 100 * least / own,
                  flops / own * 1e-6);
    if (!e4m3)
        print_message("; cuBLASLt %7.1f us, own at %3.0f %% of its rate", lt, 100 * lt / own);
    print_message("\n");
    timed_free(&t);
}

static void speed(void **state)
{
    static const int ms[] = {1, 8, 16, 32, 64, 128, 256, 512, 2048, 16384};
    const double bandwidth = copy_bandwidth(), rate = operation_rate();
    (void)state;
    print_message("copy: %.2f TB/s; operations: %.0f TFLOP/s, e4m3 at twice that\n",
                  bandwidth / 1e12, rate / 1e12);
    for (int e4m3 = 0; e4m3 < 2; e4m3++)
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++)
            for (int s = 0; s < 4; s++)
                time_shape(e4m3, s, ms[i], bandwidth, rate);
}

/* Any argument: speed instead of bits. */
int main(int argc, char **argv)
{
    struct sl_err err = {0};
    (void)argv;
    if (cuda_device_create(&ops, &dev, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    const struct CMUnitTest right[] = {cmocka_unit_test(exact), cmocka_unit_test(rows_and_kernels),
                                       cmocka_unit_test(as_cublas), cmocka_unit_test(groups),
                                       cmocka_unit_test(fused)};
    const struct CMUnitTest fast[] = {cmocka_unit_test(speed)};
    int failed = argc > 1 ? cmocka_run_group_tests(fast, NULL, NULL)
                          : cmocka_run_group_tests(right, NULL, NULL);
    ops->destroy(dev);
    return failed;
}
