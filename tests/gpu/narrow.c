/* Products of a few rows: the bits of cuBLASLt's, fused or not; and their speed against the bytes
 * of the weights.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { WIDE = 64 };

static const struct ops *ops;
static struct device *dev;

static void *take(size_t bytes, uint32_t seed)
{
    void *p = NULL;
    size_t n = bytes / 2;
    uint16_t *h = mem_alloc(n, 2);
    uint32_t x = seed;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        h[i] = (uint16_t)(0x3c00 | (x >> 31) << 15 | (x >> 15 & 0x3ff)); /* 0.008 to 2, signed */
    }
    if (cudaMalloc(&p, bytes) != cudaSuccess)
        fail_msg("no memory");
    cudaMemcpy(p, h, bytes, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize(); /* the device's own stream does not wait for this one */
    mem_free(h);
    return p;
}

/* A residual: f32 values near 1. */
static float *take_residual(size_t n)
{
    float *p = NULL, *h = mem_alloc(n, sizeof *h);
    uint32_t x = 99;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        h[i] = (float)(int32_t)x * 0x1p-30f;
    }
    assert_int_equal(cudaMalloc((void **)&p, n * sizeof *p), cudaSuccess);
    cudaMemcpy(p, h, n * sizeof *p, cudaMemcpyHostToDevice);
    cudaDeviceSynchronize();
    mem_free(h);
    return p;
}

static void same(const void *a, const void *b, size_t bytes, const char *what, int m)
{
    unsigned char *x = mem_alloc(bytes, 1), *y = mem_alloc(bytes, 1);
    fuse_flush(dev);
    assert_int_equal(cudaStreamSynchronize(dev->stream), cudaSuccess);
    cudaMemcpy(x, a, bytes, cudaMemcpyDeviceToHost);
    cudaMemcpy(y, b, bytes, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i])
            fail_msg("%s, %d rows: byte %zu of %zu differs", what, m, i, bytes);
    mem_free(x);
    mem_free(y);
}

static const int sizes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336},
                               {1536, 512},  {1000, 528},  {896, 896},    {128256, 2048}};
static const int ms[] = {1, 2, 3, 8, 9, 16, 17, 32};

static void bits(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int rows = sizes[s][0], cols = sizes[s][1];
        size_t n = (size_t)rows * WIDE;
        struct weight w = {.format = W_BF16, .rows = rows, .cols = cols};
        w.data = take((size_t)rows * (size_t)cols * 2, 1);
        void *x = take((size_t)WIDE * (size_t)cols * 2, 2);
        void *want = take(n * 2, 3), *got = take(n * 2, 4);
        gemm_run(dev, want, false, &w, x, WIDE);
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
            struct narrow_args a = {
                .w = w.data, .rows = rows, .cols = cols, .x = x, .m = ms[i], .y = got};
            cudaMemset(got, 0xff, n * 2);
            cudaDeviceSynchronize();
            assert_true(launch_narrow(dev->stream, &a, dev->n_sms));
            same(got, want, (size_t)ms[i] * (size_t)rows * 2, "a product", ms[i]);
        }
        print_message("%d x %d: the bits of cuBLASLt\n", rows, cols);
        cudaFree(w.data);
        cudaFree(x);
        cudaFree(want);
        cudaFree(got);
    }
}

/* norm -> product -> residual; norm -> gate and up -> activation: `rows` of them at once. */
static void layer(int rows, float *h, void *x, void *y, void *z, const struct weight *square,
                  const struct weight *gate_up, const struct norm *norm)
{
    int n = square->cols;
    ops->add_norm(dev, x, h, NULL, 1, norm, rows, n);
    ops->linear(dev, y, square, x, rows);
    ops->add_norm(dev, x, h, y, 0.5f, norm, rows, n);
    ops->linear(dev, y, gate_up, x, rows);
    ops->act(dev, z, y, ACT_SILU, true, rows, gate_up->rows / 2);
}

static void fused(void **state)
{
    (void)state;
    const int n = 2048, ffn = 5632;
    struct weight square = {.format = W_BF16, .rows = n, .cols = n};
    struct weight gate_up = {.format = W_BF16, .rows = 2 * ffn, .cols = n};
    square.data = take((size_t)n * n * 2, 5);
    gate_up.data = take((size_t)n * 2 * ffn * 2, 6);
    float *bias = take_residual((size_t)n);
    for (int with = 0; with < 2; with++) {
        square.bias = with ? bias : NULL;
        struct norm norm = {.w = take_residual((size_t)n), .eps = 1e-5f, .rms = !with};
        void *x[2], *y[2], *z[2];
        float *h[2];
        for (int i = 0; i < 2; i++) {
            x[i] = take(WIDE * n * 2, 7);
            y[i] = take((size_t)WIDE * 2 * ffn * 2, 8);
            z[i] = take((size_t)WIDE * ffn * 2, 9);
        }
        h[0] = take_residual((size_t)WIDE * n);
        layer(WIDE, h[0], x[0], y[0], z[0], &square, &gate_up, &norm);
        fuse_flush(dev);
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
            size_t m = (size_t)ms[i];
            h[1] = take_residual((size_t)WIDE * n);
            layer(ms[i], h[1], x[1], y[1], z[1], &square, &gate_up, &norm);
            same(h[1], h[0], m * n * 4, "the residual", ms[i]);
            same(x[1], x[0], m * n * 2, "the norm", ms[i]);
            same(z[1], z[0], m * ffn * 2, "the activation", ms[i]);
            cudaFree(h[1]);
        }
    }
    print_message("fused and not: the same bits\n");
}

static double time_of(struct weight *w, int n_w, const void *x, void *y, int m, bool narrow)
{
    enum { N = 24 };
    cudaEvent_t a, b;
    float ms_all = 0, best = 1e9f;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    for (int again = 0; again < 4; again++) {
        cudaEventRecord(a, dev->stream);
        for (int i = 0; i < N; i++) {
            const struct weight *v = &w[i % n_w];
            struct narrow_args k = {
                .w = v->data, .rows = v->rows, .cols = v->cols, .x = x, .m = m, .y = y};
            if (narrow)
                launch_narrow(dev->stream, &k, dev->n_sms);
            else
                gemm_run(dev, y, false, v, x, m);
        }
        cudaEventRecord(b, dev->stream);
        cudaEventSynchronize(b);
        cudaEventElapsedTime(&ms_all, a, b);
        best = ms_all < best ? ms_all : best;
    }
    cudaEventDestroy(a);
    cudaEventDestroy(b);
    return 1000.0 * (double)best / N;
}

static void speed(void **state)
{
    (void)state;
    static const char *const name[] = {"qkv", "o", "gate_up", "down"};
    size_t copied = (size_t)1 << 30;
    void *from = take(copied, 1), *to = take(copied, 2);
    float t = 0, best = 1e9f;
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    for (int i = 0; i < 8; i++) {
        cudaEventRecord(a, dev->stream);
        cudaMemcpyAsync(to, from, copied, cudaMemcpyDeviceToDevice, dev->stream);
        cudaEventRecord(b, dev->stream);
        cudaEventSynchronize(b);
        cudaEventElapsedTime(&t, a, b);
        best = t < best ? t : best;
    }
    double bandwidth = 2.0 * (double)copied / (double)best * 1e3;
    print_message("copy: %.2f TB/s\n", bandwidth / 1e12);
    cudaFree(from);
    cudaFree(to);
    for (int s = 0; s < 4; s++) {
        enum { N_W = 6 };
        struct weight w[N_W];
        size_t bytes = (size_t)sizes[s][0] * (size_t)sizes[s][1] * 2;
        for (int i = 0; i < N_W; i++) {
            w[i] = (struct weight){.format = W_BF16, .rows = sizes[s][0], .cols = sizes[s][1]};
            w[i].data = take(bytes, (uint32_t)i);
        }
        void *x = take((size_t)WIDE * (size_t)sizes[s][1] * 2, 2);
        void *y = take((size_t)WIDE * (size_t)sizes[s][0] * 2, 3);
        double floor_us = (double)bytes / bandwidth * 1e6;
        for (int m = 1; m <= 32; m *= m == 1 || m > 4 ? 2 : 4) {
            double own = time_of(w, N_W, x, y, m, true), lt = time_of(w, N_W, x, y, m, false);
            print_message("%-8s m %2d: own %6.1f us, %3.0f %% of the copy rate; cuBLASLt %6.1f "
                          "us, %3.0f %%\n",
                          name[s], m, own, 100 * floor_us / own, lt, 100 * floor_us / lt);
        }
        for (int i = 0; i < N_W; i++)
            cudaFree(w[i].data);
        cudaFree(x);
        cudaFree(y);
    }
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
    const struct CMUnitTest right[] = {cmocka_unit_test(bits), cmocka_unit_test(fused)};
    const struct CMUnitTest fast[] = {cmocka_unit_test(speed)};
    int failed = argc > 1 ? cmocka_run_group_tests(fast, NULL, NULL)
                          : cmocka_run_group_tests(right, NULL, NULL);
    ops->destroy(dev);
    return failed;
}
