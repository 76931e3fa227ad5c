/* The CUDA kernels' speed against their floors: bytes over bandwidth, operations over the rate that
 * cuBLASLt reaches. Prints a table; checks nothing but that launches succeed. With the argument
 * "attention", attention alone.
 * SPDX-License-Identifier: Apache-2.0 */
#include "gpu/card.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 30 };

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

typedef void (*launch_fn)(struct device *d, int i, void *ctx);

/* Median microseconds of one launch. */
static double measure(struct device *d, launch_fn fn, void *ctx)
{
    cudaEvent_t a[REPEATS + 1];
    float us[REPEATS];
    for (int i = 0; i <= REPEATS; i++)
        cudaEventCreate(&a[i]);
    for (int i = 0; i < 3; i++)
        fn(d, i, ctx);
    cudaEventRecord(a[0], d->stream);
    for (int i = 0; i < REPEATS; i++) {
        fn(d, i, ctx);
        cudaEventRecord(a[i + 1], d->stream);
    }
    if (cudaStreamSynchronize(d->stream) != cudaSuccess)
        die("launch");
    for (int i = 0; i < REPEATS; i++) {
        cudaEventElapsedTime(&us[i], a[i], a[i + 1]);
        us[i] *= 1000;
    }
    for (int i = 0; i <= REPEATS; i++)
        cudaEventDestroy(a[i]);
    qsort(us, REPEATS, sizeof *us, by_value);
    return us[REPEATS / 2];
}

/* ---- ceilings -------------------------------------------------------------------------------- */

struct product {
    struct weight w[4]; /* rotated, so that L2 does not keep them */
    int n_w, m;
    void *x, *y;
};

static void run_product(struct device *d, int i, void *ctx)
{
    struct product *p = ctx;
    gemm_run(d, p->y, false, &p->w[i % p->n_w], p->x, p->m);
}

struct copy {
    void *a, *b;
    size_t bytes;
};

static void run_copy(struct device *d, int i, void *ctx)
{
    struct copy *c = ctx;
    (void)i;
    cudaMemcpyAsync(c->a, c->b, c->bytes, cudaMemcpyDeviceToDevice, d->stream);
}

static void fill(void *p, size_t bytes)
{
    size_t n = bytes / 2;
    uint16_t *h = mem_alloc(n, 2);
    uint32_t x = 7;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        h[i] = (uint16_t)(0x3c00 | (x >> 31) << 15 | (x >> 16 & 0xff)); /* about 0.01 to 0.03 */
    }
    cudaMemcpy(p, h, bytes, cudaMemcpyHostToDevice);
    mem_free(h);
}

static void products(struct device *d, double bandwidth, double rate)
{
    static const struct {
        const char *name;
        int rows, cols;
    } shape[] = {
        {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
    static const int ms[] = {1, 8, 16, 32, 64, 128, 256, 2048};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        struct product p = {.n_w = 4};
        size_t bytes = (size_t)shape[s].rows * (size_t)shape[s].cols * 2;
        for (int i = 0; i < 4; i++) {
            p.w[i] =
                (struct weight){.format = W_BF16, .rows = shape[s].rows, .cols = shape[s].cols};
            p.w[i].data = take(bytes);
            fill(p.w[i].data, bytes);
        }
        p.x = take((size_t)2048 * (size_t)shape[s].cols * 2);
        p.y = take((size_t)2048 * (size_t)shape[s].rows * 2);
        fill(p.x, (size_t)2048 * (size_t)shape[s].cols * 2);
        for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
            p.m = ms[i];
            double us = measure(d, run_product, &p);
            double by_bytes = (double)bytes / bandwidth * 1e6;
            double by_flops = 2.0 * p.m * shape[s].rows * (double)shape[s].cols / rate * 1e6;
            double floor_us = by_bytes > by_flops ? by_bytes : by_flops;
            printf("product %-8s m %4d: %8.1f us, floor %8.1f, %3.0f %%\n", shape[s].name, p.m, us,
                   floor_us, 100 * floor_us / us);
        }
        for (int i = 0; i < 4; i++)
            cudaFree(p.w[i].data);
        cudaFree(p.x);
        cudaFree(p.y);
    }
}

/* ---- attention ---------------------------------------------------------------------------------
 */

struct attend {
    struct attn_spec spec;
    struct batch *b;
    void *qkv, *out;
};

static const struct ops *ops;

static void run_attention(struct device *d, int i, void *ctx)
{
    struct attend *a = ctx;
    struct attn_spec spec = a->spec;
    spec.layer_in_group = i % d->n_kv[0];
    ops->attention(d, a->out, a->qkv, &spec);
}

static void attention(struct device *d, int n_seqs, int q_len, int kv, enum wformat format,
                      double bandwidth)
{
    struct sl_err err = {0};
    int per_seq = (kv + 15) / 16, n_blocks = per_seq * n_seqs, tokens = n_seqs * q_len;
    struct attn_spec spec = {
        .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .scale = 0.088f, .causal = true};
    struct attn_spec layers[2] = {spec, spec};
    layers[1].layer_in_group = 1;
    struct kv_layout layout = {.n_groups = 1, .block_size = 16, .n_blocks = n_blocks};
    layout.group[0].n_layers = 2;
    if (ops->kv_create(d, &layout, layers, 2, format, &err))
        die(err.msg);
    for (int l = 0; l < 2; l++) {
        fill(d->kv[0][l].k, (size_t)n_blocks * d->block_bytes[0]);
        fill(d->kv[0][l].v, (size_t)n_blocks * d->block_bytes[0]);
        if (format == W_FP8) {
            fill(d->kv[0][l].k_scale, (size_t)n_blocks * d->scale_bytes[0]);
            fill(d->kv[0][l].v_scale, (size_t)n_blocks * d->scale_bytes[0]);
        }
    }
    struct batch_limits limits = {.max_tokens = tokens,
                                  .max_seqs = n_seqs,
                                  .max_blocks = n_blocks,
                                  .max_samples = n_seqs,
                                  .max_logits = n_seqs,
                                  .n_groups = 1};
    struct attend a = {.spec = spec};
    if (batch_create(&a.b, &limits, &err))
        die(err.msg);
    a.b->n_tokens = tokens;
    a.b->n_seqs = n_seqs;
    for (int s = 0; s < n_seqs; s++) {
        a.b->q_start[s + 1] = (s + 1) * q_len;
        a.b->kv_len[s] = kv;
        a.b->block_start[s + 1] = (s + 1) * per_seq;
        for (int i = 0; i < per_seq; i++) /* scattered */
            a.b->block[s * per_seq + i] = (int)(((int64_t)(s * per_seq + i) * 7919) % n_blocks);
        for (int i = 0; i < q_len; i++)
            a.b->pos[s * q_len + i] = kv - q_len + i;
    }
    a.qkv = take((size_t)tokens * 48 * 128 * 2);
    a.out = take((size_t)tokens * 32 * 128 * 2);
    fill(a.qkv, (size_t)tokens * 48 * 128 * 2);
    if (ops->begin(d, a.b, &err))
        die(err.msg);
    double us = measure(d, run_attention, &a);
    double pairs = (double)n_seqs * ((double)q_len * kv - (double)q_len * (q_len - 1) / 2);
    double flops = pairs * 32 * 128 * 4,
           bytes = (double)n_seqs * kv * 8 * 128 * 2 * (format == W_FP8 ? 1 : 2);
    printf("attention%s %3d x q %4d kv %5d: %8.1f us, %6.0f TFLOP/s, KV bytes at %3.0f %% of "
           "bandwidth\n",
           format == W_FP8 ? ", FP8 cache" : "", n_seqs, q_len, kv, us, flops / us / 1e6,
           100 * bytes / bandwidth * 1e6 / us);
    if (ops->end(d, &err))
        die(err.msg);
    cudaFree(a.qkv);
    cudaFree(a.out);
    batch_destroy(&a.b);
}

int main(int argc, char **argv)
{
    const char *part = argc > 1 ? argv[1] : "";
    struct sl_err err = {0};
    struct device *d;
    if (cuda_device_create(&ops, &d, &err))
        die(err.msg);
    struct copy c = {take((size_t)2 << 30), take((size_t)2 << 30), (size_t)2 << 30};
    double bandwidth = 2.0 * (double)c.bytes / measure(d, run_copy, &c) * 1e6;
    cudaFree(c.a);
    cudaFree(c.b);
    struct product big = {.n_w = 1, .m = 8192};
    big.w[0] = (struct weight){.format = W_BF16, .rows = 8192, .cols = 8192};
    big.w[0].data = take((size_t)8192 * 8192 * 2);
    big.x = take((size_t)8192 * 8192 * 2);
    big.y = take((size_t)8192 * 8192 * 2);
    fill(big.w[0].data, (size_t)8192 * 8192 * 2);
    fill(big.x, (size_t)8192 * 8192 * 2);
    double rate = 2.0 * 8192 * 8192 * 8192.0 / measure(d, run_product, &big) * 1e6;
    printf("ceilings: copy %.2f TB/s, bf16 product %.0f TFLOP/s\n", bandwidth / 1e12, rate / 1e12);
    cudaFree(big.w[0].data);
    cudaFree(big.x);
    cudaFree(big.y);
    if (strcmp(part, "attention"))
        products(d, bandwidth, rate);
    static const int shape[][3] = {{1, 1, 1024},   {1, 1, 8192},    {1, 1, 32768},
                                   {16, 1, 1024},  {64, 1, 1024},   {64, 1, 4096},
                                   {256, 1, 1024}, {8, 2048, 2048}, {1, 512, 512},
                                   {1, 512, 4096}, {1, 8192, 8192}, {1, 16384, 16384}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        attention(d, shape[i][0], shape[i][1], shape[i][2], W_BF16, bandwidth);
        attention(d, shape[i][0], shape[i][1], shape[i][2], W_FP8, bandwidth);
    }
    ops->destroy(d);
    return 0;
}
