/* FP8 on the CUDA device: rows become the codes and scales of base/fp8.h to the bit, alone and
 * fused with a norm; the plain product of codes is right and does not depend on neighbours; a whole
 * model's logits are the reference device's.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"
#include "support/drive.h"

#include "base/fp8.h"
#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct ops *ops;
static struct device *dev;

static int open_device(void **state)
{
    struct sl_err err = {0};
    (void)state;
    if (cuda_device_create(&ops, &dev, &err))
        fail_msg("%s", err.msg);
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    ops->destroy(dev);
    return 0;
}

static void *take(size_t bytes)
{
    struct sl_err err = {0};
    void *p = ops->alloc(dev, bytes, "a test", &err);
    if (!p)
        fail_msg("%s", err.msg);
    return p;
}

static void put(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, dev->stream), 0);
    assert_int_equal(cudaStreamSynchronize(dev->stream), 0);
}

static void fetch(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, dev->stream), 0);
    assert_int_equal(cudaStreamSynchronize(dev->stream), 0);
}

static float draw(uint32_t *x)
{
    *x = *x * 1664525 + 1013904223;
    float unit = (float)(int32_t)*x / 2147483648.0f;
    return unit * unit * unit; /* from tiny to 1 */
}

/* ---- rows -------------------------------------------------------------------------------------
 */

static void check_rows(const uint16_t *x, const uint8_t *q, const float *scale, int rows, int n)
{
    float *row = mem_alloc((size_t)n, sizeof *row);
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < n; i++)
            row[i] = bf16_f32(x[r * n + i]);
        float want = e4m3_scale(max_magnitude(row, (size_t)n)), inv = 1 / want;
        if (isnan(want)) {
            assert_true(isnan(scale[r]));
            continue;
        }
        assert_int_equal(f32_bits(scale[r]), f32_bits(want));
        for (int i = 0; i < n; i++)
            if (q[r * n + i] != f32_e4m3(row[i] * inv))
                fail_msg("row %d of %d values: [%d] is code %d, not %d", r, n, i, q[r * n + i],
                         f32_e4m3(row[i] * inv));
    }
    mem_free(row);
}

static void rows_become_codes(void **state)
{
    (void)state;
    static const int widths[] = {16, 384, 4096, 14336, 16384, 20000};
    enum { ROWS = 5 };
    uint32_t seed = 3;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        int n = widths[w];
        size_t total = ROWS * (size_t)n;
        uint16_t *x = mem_alloc(total, sizeof *x);
        uint8_t *q = mem_alloc(total, 1);
        float scale[ROWS];
        for (size_t i = 0; i < total; i++)
            x[i] = f32_bf16(draw(&seed) * (float)(1 + i / (size_t)n));
        memset(x + n, 0, (size_t)n * sizeof *x); /* a row of zeros, one with NaN, one with Inf */
        x[2 * n + n / 2] = 0x7fc1;
        x[3 * n + n - 1] = 0xff80;
        struct coded to = {take(total), take(sizeof scale)};
        void *from = take(total * 2);
        put(from, x, total * 2);
        launch_quantize(dev->stream, &to, from, ROWS, n);
        fetch(q, to.q, total);
        fetch(scale, to.scale, sizeof scale);
        check_rows(x, q, scale, ROWS, n);
        ops->free(dev, from);
        ops->free(dev, to.q);
        ops->free(dev, to.scale);
        mem_free(x);
        mem_free(q);
    }
}

/* norm with codes = norm, then codes. */
static void norms_write_codes(void **state)
{
    (void)state;
    static const int widths[] = {384, 4096, 8192};
    enum { ROWS = 3 };
    uint32_t seed = 5;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        int n = widths[w];
        size_t total = ROWS * (size_t)n;
        float *h = mem_alloc(total, sizeof *h);
        uint16_t *x[2] = {mem_alloc(total, 2), mem_alloc(total, 2)};
        uint8_t *q = mem_alloc(total, 1);
        float scale[ROWS];
        for (size_t i = 0; i < total; i++)
            h[i] = draw(&seed) * 3;
        void *h_dev = take(total * sizeof *h), *x_dev = take(total * 2), *add = take(total * 2);
        struct coded to = {take(total), take(sizeof scale)};
        const struct norm_args norm = {.eps = 1e-5f, .rms = w != 1};
        for (int i = 0; i < 2; i++) {
            put(h_dev, h, total * sizeof *h);
            launch_add_norm(dev->stream, x_dev, h_dev, add, 1, NULL, &norm, ROWS, n,
                            i ? &to : NULL);
            fetch(x[i], x_dev, total * 2);
        }
        fetch(q, to.q, total);
        fetch(scale, to.scale, sizeof scale);
        assert_memory_equal(x[0], x[1], total * 2);
        check_rows(x[1], q, scale, ROWS, n);
        void *all[] = {h_dev, x_dev, add, to.q, to.scale};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            ops->free(dev, all[i]);
        mem_free(h);
        mem_free(x[0]);
        mem_free(x[1]);
        mem_free(q);
    }
}

/* ---- products of what has no wgmma ------------------------------------------------------------
 */

/* Against sums in double: products of halves are exact, and each of the mmas that follow one
 * another loses 2^-22 of its sum at most. Few rows and many give the same bits. */
static void products(void **state)
{
    (void)state;
    enum { ROWS = 72, COLS = 208, M = 37, FEW = 5 };
    const double most = (COLS / 64 + 1) * 4.0 / (1 << 22) + 2.0 / (1 << 23);
    static uint8_t w[ROWS * COLS], x[M * COLS];
    static float w_scale[ROWS], x_scale[M], y[M * ROWS], few[FEW * ROWS];
    uint32_t seed = 9;
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = f32_e4m3(draw(&seed) * E4M3_MAX);
    for (int i = 0; i < M * COLS; i++)
        x[i] = f32_e4m3(draw(&seed) * E4M3_MAX);
    for (int i = 0; i < ROWS; i++)
        w_scale[i] = 0.01f * (float)(i + 1);
    for (int i = 0; i < M; i++)
        x_scale[i] = 0.1f * (float)(i + 1);
    void *w_dev = take(sizeof w), *w_scale_dev = take(sizeof w_scale), *y_dev = take(sizeof y);
    struct coded in = {take(sizeof x), take(sizeof x_scale)};
    put(w_dev, w, sizeof w);
    put(w_scale_dev, w_scale, sizeof w_scale);
    put(in.q, x, sizeof x);
    put(in.scale, x_scale, sizeof x_scale);
    launch_fp8_product(dev->stream, y_dev, true, w_dev, w_scale_dev, ROWS, COLS, &in, FEW);
    fetch(few, y_dev, sizeof few);
    launch_fp8_product(dev->stream, y_dev, true, w_dev, w_scale_dev, ROWS, COLS, &in, M);
    fetch(y, y_dev, sizeof y);
    assert_memory_equal(few, y, sizeof few);
    for (int r = 0; r < M; r++)
        for (int o = 0; o < ROWS; o++) {
            double sum = 0, size = 0;
            for (int k = 0; k < COLS; k++) {
                double p = (double)e4m3_f32(x[r * COLS + k]) * (double)e4m3_f32(w[o * COLS + k]);
                sum += p;
                size += fabs(p);
            }
            double scale = (double)x_scale[r] * (double)w_scale[o];
            assert_true(fabs((double)y[r * ROWS + o] - sum * scale) <= size * scale * most);
        }
    void *all[] = {w_dev, w_scale_dev, y_dev, in.q, in.scale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ops->free(dev, all[i]);
}

/* ---- a whole model ----------------------------------------------------------------------------
 */

enum { N_TOKENS = 96 };

struct seen {
    float *logits;
};

static void keep(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct seen *s = ctx;
    (void)item;
    memcpy(s->logits + (size_t)pos * (size_t)vocab, logits, (size_t)vocab * sizeof(float));
}

static void run_model(struct drive_config c, const char *device, float **logits, int *vocab)
{
    int32_t tokens[N_TOKENS];
    uint32_t x = 11;
    c.device = device;
    struct drive *d = drive_create(&c);
    struct drive_seq seq;
    for (int i = 0; i < N_TOKENS; i++) {
        x = x * 1664525 + 1013904223;
        tokens[i] = (int32_t)(x >> 8) % 8000 + 100;
    }
    *vocab = drive_vocab(d);
    struct seen s = {mem_zalloc((size_t)N_TOKENS * (size_t)*vocab, sizeof(float))};
    drive_seq_init(d, &seq, tokens, N_TOKENS, N_TOKENS);
    struct drive_item it = {&seq, N_TOKENS, true};
    drive_step(d, &it, 1, keep, &s);
    drive_seq_fini(d, &seq);
    drive_destroy(&d);
    *logits = s.logits;
}

/* Activations are rounded to bf16 some ten times a layer, which is half of 2^-8 each time. Where a
 * rounded one lies on the other side of the middle between two codes than the reference's, it is a
 * code off: one in 2^6 are, by 2^-3, or 2^-6 of the row together, at the input of each product. */
static double tolerance(bool fp8, int n_layers)
{
    double bf16 = sqrt(10.0 * n_layers) / 512, codes = sqrt(4.0 * n_layers) / 64;
    return bf16 + (fp8 ? codes : 0);
}

static void logits_of_the_reference(void **state)
{
    (void)state;
    static const struct {
        const char *weights, *kv;
    } way[] = {{NULL, NULL}, {"fp8", NULL}, {NULL, "fp8"}, {"fp8", "fp8"}};
    for (size_t w = 0; w < sizeof way / sizeof *way; w++) {
        const struct drive_config c = {.model = "models/pebble",
                                       .dtype = SL_DTYPE_BF16,
                                       .quantization = way[w].weights,
                                       .kv_cache_dtype = way[w].kv,
                                       .max_tokens = 128,
                                       .max_seqs = 2,
                                       .kv_tokens = 256};
        float *want, *got;
        int vocab;
        if (way[w].kv && !attn_supports(64, true))
            continue;
        run_model(c, "ref", &want, &vocab);
        run_model(c, "cuda", &got, &vocab);
        double worst = 0, sum = 0, square = 0;
        size_t n = (size_t)N_TOKENS * (size_t)vocab;
        for (size_t i = 0; i < n; i++) {
            double e = fabs((double)got[i] - (double)want[i]);
            worst = e > worst ? e : worst;
            sum += e * e;
            square += (double)want[i] * (double)want[i];
        }
        double rms = sqrt(sum / square), most = tolerance(way[w].weights || way[w].kv, 8);
        print_message("weights %s, KV %s: rms of the difference %.4f of the logits' (at most "
                      "%.4f), worst %.3f\n",
                      way[w].weights ? "fp8" : "bf16", way[w].kv ? "fp8" : "bf16", rms, most,
                      worst);
        assert_true(rms < most && rms > 0);
        mem_free(want);
        mem_free(got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_become_codes), cmocka_unit_test(norms_write_codes),
        cmocka_unit_test(products), cmocka_unit_test(logits_of_the_reference)};
    return cmocka_run_group_tests(tests, open_device, close_device);
}
