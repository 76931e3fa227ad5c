/* bench_cpu_kernels: the CPU's matrix products and attention alone, as shares of the machine's
 * ceilings, which are measured again beside every figure. For whoever changes a kernel.
 *
 *     bench_cpu_kernels [THREADS [ISA [FORMAT|attention]]]
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/ceilings.h"
#include "backend/cpu/device.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Several matrices in turn, together larger than any cache. */
enum { ROUND_MS = 250, MATRICES_MAX = 32, COLD_BYTES = 300 << 20 };

struct bench {
    const struct ops *ops;
    struct device *d;
    struct ceilings *ceilings;
    float *x, *y;
};

static void need(bool ok, const struct sl_err *err)
{
    if (ok)
        return;
    fprintf(stderr, "bench_cpu_kernels: %s\n", err && err->msg[0] ? err->msg : "no memory");
    exit(1);
}

/* Random small values, cheap to make. */
static uint16_t *random_bf16(size_t n)
{
    uint16_t *p = mem_pages(n * 2);
    need(p != NULL, NULL);
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525 + 1013904223;
        p[i] = (uint16_t)((s >> 16 & 0x8000) | (0x3c00 + (s >> 24)));
    }
    return p;
}

static struct weight prepare(struct bench *b, int rows, int cols, enum wformat f)
{
    struct sl_err err = {0};
    struct weight w;
    uint16_t *src = random_bf16((size_t)rows * cols);
    struct weight_source ws = {.dtype = SL_DTYPE_BF16, .n_parts = 1, .cols = cols};
    ws.part[0].data = src;
    ws.part[0].rows = rows;
    need(b->ops->weight_prepare(b->d, &w, &ws, f, "bench", &err) == SL_OK, &err);
    mem_pages_free(src, (size_t)rows * cols * 2);
    return w;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

/* Runs the kernel and the ceilings in turn; each ratio is taken within a few milliseconds, their
 * median over ROUND_MS. */
static void linear_row(struct bench *b, const struct weight *ws, int n_ws, const char *name, int m)
{
    static const enum ceiling rate_of[] = {[W_F32] = CEILING_F32,
                                           [W_F16] = CEILING_F32,
                                           [W_BF16] = CEILING_BF16,
                                           [W_I8] = CEILING_I8,
                                           [W_I4] = CEILING_I8};
    enum { MAX = 512 };
    const struct weight *w = ws;
    static double seconds[MAX], of_read[MAX], of_peak[MAX];
    enum ceiling what = rate_of[w->format];
    double ops = 2.0 * w->rows * w->cols * m, bytes = (double)w->bytes;
    if (what == CEILING_BF16 && !b->d->k.x_bf16)
        what = CEILING_F32;
    int n = 0;
    int64_t end = clock_mono_ns() + ROUND_MS * 1000000LL;
    for (; n < 3 || (n < MAX && clock_mono_ns() < end); n++) {
        double peak = ceilings_run(b->ceilings, what), bw = ceilings_run(b->ceilings, CEILING_READ);
        int64_t t0 = ceilings_now_ns(b->ceilings);
        b->ops->linear(b->d, b->y, &ws[n % n_ws], b->x, m);
        seconds[n] = (double)(ceilings_now_ns(b->ceilings) - t0) * 1e-9;
        peak = 0.5 * (peak + ceilings_run(b->ceilings, what));
        of_read[n] = bytes / seconds[n] / bw;
        of_peak[n] = ops / seconds[n] / peak;
    }
    double r = median(of_read, n), p = median(of_peak, n), s = median(seconds, n);
    printf("%-5s %6d x %-5d M %4d %9.3f ms %6.1f GB/s %5.1f %% %7.1f G/s %5.1f %% of %s\n", name,
           w->rows, w->cols, m, s * 1e3, bytes / s / 1e9, r * 100, ops / s / 1e9, p * 100,
           ceiling_name(what));
    fflush(stdout);
}

static void linears(struct bench *b, const char *only)
{
    static const struct {
        const char *name;
        enum wformat f;
    } formats[] = {
        {"bf16", W_BF16}, {"int8", W_I8}, {"int4", W_I4}, {"f16", W_F16}, {"f32", W_F32}};
    static const int shape[][2] = {{16384, 2048}, {2048, 8192}}, ms[] = {1, 4, 16, 32, 64, 512};
    for (int f = 0; f < 5; f++) {
        if (only && strcmp(only, formats[f].name) != 0)
            continue;
        for (int s = 0; s < 2; s++) {
            struct weight w[MATRICES_MAX];
            int n = 0;
            for (size_t bytes = 0; n < MATRICES_MAX && bytes < COLD_BYTES; bytes += w[n++].bytes)
                w[n] = prepare(b, shape[s][0], shape[s][1], formats[f].f);
            for (int i = 0; i < 6; i++)
                linear_row(b, w, n, formats[f].name, ms[i]);
            while (n)
                b->ops->weight_release(b->d, &w[--n]);
        }
    }
}

/* ---- attention, with Llama-3.2-1B's heads ---------------------------------------------------- */

enum { HEADS = 32, KV_HEADS = 8, HEAD_DIM = 64, BLOCK = 16 };

/* n_seqs sequences of `len` positions, of which each computes its last q_len. */
static void fill_batch(struct batch *b, int n_seqs, int len, int q_len)
{
    batch_clear(b);
    int per = (len + BLOCK - 1) / BLOCK;
    for (int s = 0; s < n_seqs; s++) {
        for (int i = 0; i < q_len; i++) {
            int pos = len - q_len + i, row = b->n_tokens++;
            b->pos[row] = pos;
            b->slot[row] = (s * per + pos / BLOCK) * BLOCK + pos % BLOCK;
        }
        for (int i = 0; i < per; i++)
            b->block[s * per + i] = s * per + i;
        b->kv_len[s] = len;
        b->q_start[s + 1] = b->n_tokens;
        b->block_start[s + 1] = (s + 1) * per;
    }
    b->n_seqs = n_seqs;
}

static void attention_row(struct bench *b, int n_seqs, int len, int q_len, enum wformat kv,
                          const char *name)
{
    enum { MAX = 200, LAYERS = 4 };
    static double seconds[MAX], of_read[MAX], of_peak[MAX];
    struct sl_err err = {0};
    struct attn_spec a[LAYERS];
    for (int l = 0; l < LAYERS; l++)
        a[l] = (struct attn_spec){.n_heads = HEADS,
                                  .n_kv_heads = KV_HEADS,
                                  .head_dim = HEAD_DIM,
                                  .layer_in_group = l,
                                  .scale = 0.125f,
                                  .causal = true};
    int per = (len + BLOCK - 1) / BLOCK;
    struct kv_layout lay = {.n_groups = 1, .block_size = BLOCK, .n_blocks = n_seqs * per};
    struct batch_limits lim = {.max_tokens = n_seqs * q_len,
                               .max_seqs = n_seqs,
                               .max_blocks = n_seqs * per,
                               .max_samples = 1,
                               .max_logits = 1,
                               .n_groups = 1};
    struct batch *batch;
    need(batch_create(&batch, &lim, &err) == SL_OK, &err);
    need(b->ops->kv_create(b->d, &lay, a, LAYERS, kv, &err) == SL_OK, &err);
    for (int pos = 1; pos <= len; pos++) { /* fill the cache */
        fill_batch(batch, n_seqs, pos, 1);
        for (int s = 0; s < n_seqs; s++)
            batch->slot[s] = (s * per + (pos - 1) / BLOCK) * BLOCK + (pos - 1) % BLOCK;
        need(b->ops->begin(b->d, batch, &err) == SL_OK, &err);
        for (int l = 0; l < LAYERS; l++)
            b->ops->qkv_rope_cache(b->d, b->x + pos, &a[l], NULL, NULL, NULL);
        need(b->ops->end(b->d, &err) == SL_OK, &err);
    }
    fill_batch(batch, n_seqs, len, q_len);
    need(b->ops->begin(b->d, batch, &err) == SL_OK, &err);
    double pairs = 0, bytes = (double)n_seqs * len * 2 * KV_HEADS * HEAD_DIM * (kv == W_I8 ? 1 : 2);
    for (int i = 0; i < q_len; i++)
        pairs += (double)n_seqs * (len - i);
    double ops = pairs * 4 * HEADS * HEAD_DIM;
    int n = 0;
    int64_t end = clock_mono_ns() + ROUND_MS * 1000000LL;
    for (; n < 3 || (n < MAX && clock_mono_ns() < end); n++) {
        double peak = ceilings_run(b->ceilings, CEILING_BF16);
        double bw = ceilings_run(b->ceilings, CEILING_READ);
        int64_t t0 = ceilings_now_ns(b->ceilings);
        b->ops->attention(b->d, b->y, b->x, &a[n % LAYERS]);
        seconds[n] = (double)(ceilings_now_ns(b->ceilings) - t0) * 1e-9;
        of_read[n] = bytes / seconds[n] / bw;
        of_peak[n] = ops / seconds[n] / (peak > 0 ? peak : 1);
    }
    double r = median(of_read, n), p = median(of_peak, n), sec = median(seconds, n);
    printf(
        "attention %s: %d x %d, q_len %d: %.3f ms %6.1f GB/s %5.1f %% %7.1f G/s %5.1f %% of bf16\n",
        name, n_seqs, len, q_len, sec * 1e3, bytes / sec / 1e9, r * 100, ops / sec / 1e9, p * 100);
    fflush(stdout);
    need(b->ops->end(b->d, &err) == SL_OK, &err);
    batch_destroy(&batch);
}

static void attentions(struct bench *b)
{
    attention_row(b, 32, 2048, 1, W_BF16, "bf16");
    attention_row(b, 32, 2048, 1, W_I8, "int8");
    attention_row(b, 1, 2048, 1, W_BF16, "bf16");
    attention_row(b, 1, 512, 512, W_BF16, "bf16");
    attention_row(b, 1, 2048, 512, W_BF16, "bf16");
    attention_row(b, 16, 1024, 1, W_F32, "f32");
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct sl_err err = {0};
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0;
    if (argc > 2 && !cpu_isa_limit(argv[2])) {
        fprintf(stderr,
                "usage: bench_cpu_kernels [THREADS [ref|avx2|avx512|amx [FORMAT|attention]]]\n");
        return 2;
    }
    need(cpu_device_create(&b.ops, &b.d, threads, &err) == SL_OK, &err);
    need(ceilings_create(&b.ceilings, threads, 0, &err) == SL_OK, &err);
    enum { X = 512 * 8192, Y = 512 * 16384 };
    b.x = b.ops->alloc(b.d, X * sizeof(float), "x", &err);
    b.y = b.ops->alloc(b.d, Y * sizeof(float), "y", &err);
    need(b.x && b.y, &err);
    for (int i = 0; i < X; i++)
        b.x[i] = (float)(i % 997 % 255 - 127) / 100;
    const char *only = argc > 3 ? argv[3] : NULL;
    if (!only || strcmp(only, "attention") == 0)
        attentions(&b);
    if (!only || strcmp(only, "attention") != 0)
        linears(&b, only);
    b.ops->free(b.d, b.x);
    b.ops->free(b.d, b.y);
    ceilings_destroy(&b.ceilings);
    b.ops->destroy(b.d);
    return 0;
}
