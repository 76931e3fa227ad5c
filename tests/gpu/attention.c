/* Attention on the CUDA device against sums in double, and bit by bit against itself: the rows of
 * one prompt computed at once, in chunks, decoded one by one, among others, and by the kernels of
 * older devices. What no row may see (pages of others, positions past the sequence) is NaN.
 * SPDX-License-Identifier: Apache-2.0 */
#include "gpu/card.h"

#include "base/fp8.h"
#include "base/mem.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIBI = 1, BOTH_WAYS = 2, FP8 = 4 };

struct shape {
    int heads, kv_heads, dim, block_size, n;
    int window;
    float softcap;
    int flags;
};

static const struct shape shapes[] = {
    {32, 8, 128, 16, 700, 0, 0, 0},
    {8, 8, 128, 16, 1037, 0, 0, 0},
    {8, 1, 64, 16, 517, 0, 0, 0},
    {14, 2, 64, 32, 300, 0, 0, 0},
    {12, 4, 80, 16, 411, 0, 0, 0},
    {4, 2, 96, 48, 333, 0, 0, 0},
    {4, 4, 112, 16, 290, 0, 0, 0},
    {6, 2, 120, 16, 641, 0, 0, 0},
    {4, 1, 72, 16, 258, 0, 0, 0},
    {4, 2, 8, 16, 270, 0, 0, 0},
    {8, 4, 256, 16, 530, 0, 0, 0},
    {71, 1, 64, 16, 300, 0, 0, 0},
    {160, 1, 128, 16, 140, 0, 0, 0},
    {16, 4, 128, 16, 900, 100, 0, 0},
    {8, 2, 128, 16, 1200, 512, 0, 0},
    {8, 4, 256, 16, 700, 300, 50, 0},
    {8, 2, 64, 16, 600, 0, 30, 0},
    {8, 8, 128, 16, 400, 0, 0, ALIBI},
    {12, 12, 64, 16, 401, 0, 0, BOTH_WAYS},
    {16, 8, 128, 16, 145, 0, 0, BOTH_WAYS},
    {32, 8, 128, 16, 1, 0, 0, 0},
    {32, 8, 128, 16, 128, 0, 0, 0},
    {32, 8, 128, 16, 2100, 0, 0, 0},
    {32, 8, 128, 16, 700, 0, 0, FP8},
    {8, 2, 64, 16, 517, 0, 0, FP8},
    {12, 4, 80, 32, 411, 0, 0, FP8},
    {8, 8, 96, 16, 300, 128, 0, FP8},
    {8, 4, 256, 16, 530, 0, 50, FP8},
    {12, 12, 64, 16, 401, 0, 0, BOTH_WAYS | FP8},
};

static const struct ops *ops;
static struct device *d;
static uint64_t seed = 1;

/* About normal, a bf16. */
static float draw(float width)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(seed >> 40) / (float)(1 << 24) - 0.5f;
    }
    union {
        float f;
        uint32_t u;
    } x = {sum * 1.7f * width};
    x.u &= 0xffff0000;
    return x.f;
}

static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)(u >> 16);
}

static float from_bf16(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* One prompt: its q, k and v on the host, its cache and its q on the device. */
struct prompt {
    const struct shape *s;
    struct attn_spec spec;
    float *q, *k, *v; /* [n][heads or kv_heads][dim] */
    float *slopes;    /* [heads] */
    int32_t *block;
    int n_blocks;
    uint16_t *rows; /* [n][heads + 2 kv_heads][dim], as the device takes them */
    void *rows_device;
};

/* K or V, [n][kv_heads][dim], to the cache; what is in it instead, where it is e4m3. */
static void fill_cache(const struct prompt *p, float *x, void *to, float *scales_to)
{
    const struct shape *s = p->s;
    size_t heads = (size_t)(3 * p->n_blocks) * (size_t)(s->kv_heads * s->block_size);
    size_t dim = (size_t)s->dim;
    uint16_t *values = mem_alloc(heads * dim, 2);
    uint8_t *codes = mem_alloc(heads * dim, 1);
    float *scales = mem_alloc(heads, sizeof *scales);
    memset(values, 0xff, heads * dim * 2); /* NaN */
    memset(codes, 0xff, heads * dim);
    memset(scales, 0xff, heads * sizeof *scales);
    for (int i = 0; i < s->n; i++)
        for (int h = 0; h < s->kv_heads; h++) {
            size_t block = (size_t)p->block[i / s->block_size];
            size_t head = (block * (size_t)s->kv_heads + (size_t)h) * (size_t)s->block_size +
                          (size_t)(i % s->block_size);
            float *from = x + (size_t)(i * s->kv_heads + h) * dim;
            scales[head] = e4m3_scale(max_magnitude(from, dim));
            for (size_t e = 0; e < dim; e++) {
                values[head * dim + e] = to_bf16(from[e]);
                codes[head * dim + e] = f32_e4m3(from[e] / scales[head]);
                if ((s->flags & FP8))
                    from[e] = e4m3_f32(codes[head * dim + e]) * scales[head];
            }
        }
    if ((s->flags & FP8))
        cudaMemcpy(to, codes, heads * dim, cudaMemcpyHostToDevice);
    else
        cudaMemcpy(to, values, heads * dim * 2, cudaMemcpyHostToDevice);
    if ((s->flags & FP8))
        cudaMemcpy(scales_to, scales, heads * sizeof *scales, cudaMemcpyHostToDevice);
    mem_free(values);
    mem_free(codes);
    mem_free(scales);
}

static float *draws(size_t n, float width)
{
    float *x = mem_alloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = draw(width);
    return x;
}

static void prompt_init(struct prompt *p, const struct shape *s)
{
    struct sl_err err = {0};
    size_t n = (size_t)s->n, dim = (size_t)s->dim;
    size_t width = (size_t)(s->heads + 2 * s->kv_heads) * dim;
    *p = (struct prompt){.s = s, .n_blocks = (s->n + s->block_size - 1) / s->block_size};
    p->q = draws(n * (size_t)s->heads * dim, 2);
    p->k = draws(n * (size_t)s->kv_heads * dim, 2);
    p->v = draws(n * (size_t)s->kv_heads * dim, 1);
    p->slopes = mem_alloc((size_t)s->heads, sizeof *p->slopes);
    for (int h = 0; h < s->heads; h++)
        p->slopes[h] = exp2f(-8.f * (float)(h + 1) / (float)s->heads);
    p->spec = (struct attn_spec){.n_heads = s->heads,
                                 .n_kv_heads = s->kv_heads,
                                 .head_dim = s->dim,
                                 .scale = 1 / sqrtf((float)s->dim),
                                 .softcap = s->softcap,
                                 .window = s->window,
                                 .causal = !(s->flags & BOTH_WAYS)};
    float *slopes = take((size_t)s->heads * sizeof *slopes);
    cudaMemcpy(slopes, p->slopes, (size_t)s->heads * sizeof *slopes, cudaMemcpyHostToDevice);
    p->spec.alibi = (s->flags & ALIBI) ? slopes : NULL;
    struct kv_layout layout = {
        .n_groups = 1, .block_size = s->block_size, .n_blocks = 3 * p->n_blocks};
    layout.group[0].n_layers = 1;
    if (ops->kv_create(d, &layout, &p->spec, 1, (s->flags & FP8) ? W_FP8 : W_BF16, &err))
        die(err.msg);
    p->block = mem_alloc((size_t)p->n_blocks, sizeof *p->block);
    for (int i = 0; i < p->n_blocks; i++) /* every third, from the end */
        p->block[i] = (p->n_blocks - 1 - i) * 3 + 1;
    cudaDeviceSynchronize(); /* the device's stream is not ordered with copies */
    fill_cache(p, p->k, d->kv[0][0].k, d->kv[0][0].k_scale);
    fill_cache(p, p->v, d->kv[0][0].v, d->kv[0][0].v_scale);
    p->rows = mem_alloc(n * width, 2);
    memset(p->rows, 0xff, n * width * 2);
    for (size_t i = 0; i < n; i++)
        for (size_t e = 0; e < (size_t)s->heads * dim; e++)
            p->rows[i * width + e] = to_bf16(p->q[i * (size_t)s->heads * dim + e]);
    p->rows_device = slopes; /* freed with it */
}

static void prompt_fini(struct prompt *p)
{
    cudaFree(p->rows_device);
    mem_free(p->q);
    mem_free(p->k);
    mem_free(p->v);
    mem_free(p->slopes);
    mem_free(p->block);
    mem_free(p->rows);
}

/* Positions [from, to) of the prompt in a step. */
struct part {
    int from, to;
};

static void fill_batch(struct batch *b, const struct prompt *p, const struct part *part, int n)
{
    const struct shape *s = p->s;
    int blocks = 0;
    b->n_seqs = n;
    b->n_tokens = 0;
    for (int i = 0; i < n; i++) {
        int first_seen = s->window ? part[i].from - s->window + 1 : 0;
        b->kv_len[i] = part[i].to;
        for (int j = 0; j * s->block_size < part[i].to; j++)
            b->block[blocks++] = (j + 1) * s->block_size <= first_seen ? -1 : p->block[j];
        b->block_start[i + 1] = blocks;
        for (int pos = part[i].from; pos < part[i].to; pos++)
            b->pos[b->n_tokens++] = pos;
        b->q_start[i + 1] = b->n_tokens;
    }
}

/* out: [rows of all parts][heads][dim] */
static void run(const struct prompt *p, const struct part *part, int n, uint16_t *out)
{
    struct sl_err err = {0};
    const struct shape *s = p->s;
    size_t width = (size_t)((s->heads + 2 * s->kv_heads) * s->dim), rows = 0, at = 0;
    int blocks = 0;
    for (int i = 0; i < n; i++) {
        rows += (size_t)(part[i].to - part[i].from);
        blocks += (part[i].to + s->block_size - 1) / s->block_size;
    }
    struct batch_limits limits = {.max_tokens = (int)rows,
                                  .max_seqs = n,
                                  .max_blocks = blocks,
                                  .max_samples = n,
                                  .max_logits = n,
                                  .n_groups = 1};
    struct batch *b;
    if (batch_create(&b, &limits, &err))
        die(err.msg);
    fill_batch(b, p, part, n);
    size_t bytes = rows * (size_t)(s->heads * s->dim) * 2;
    void *qkv = take(rows * width * 2), *to = take(bytes);
    for (int i = 0; i < n; i++) {
        size_t count = (size_t)(part[i].to - part[i].from) * width;
        cudaMemcpy((uint16_t *)qkv + at, p->rows + (size_t)part[i].from * width, count * 2,
                   cudaMemcpyHostToDevice);
        at += count;
    }
    cudaMemset(to, 0xff, bytes);
    cudaDeviceSynchronize();
    if (ops->begin(d, b, &err))
        die(err.msg);
    ops->attention(d, to, qkv, &p->spec);
    if (ops->end(d, &err))
        die(err.msg);
    cudaMemcpy(out, to, bytes, cudaMemcpyDeviceToHost);
    cudaFree(qkv);
    cudaFree(to);
    batch_destroy(&b);
}

/* Row `pos`, head `h`, in double. */
static void reference(const struct prompt *p, int pos, int h, double *out, double *weight)
{
    const struct shape *s = p->s;
    int kv = h / (s->heads / s->kv_heads), last = (s->flags & BOTH_WAYS) ? s->n - 1 : pos;
    int first = s->window && pos - s->window + 1 > 0 ? pos - s->window + 1 : 0;
    double top = -INFINITY, sum = 0;
    const float *q = p->q + (size_t)(pos * s->heads + h) * (size_t)s->dim;
    for (int j = first; j <= last; j++) {
        const float *k = p->k + (size_t)(j * s->kv_heads + kv) * (size_t)s->dim;
        double x = 0;
        for (int e = 0; e < s->dim; e++)
            x += (double)q[e] * k[e];
        x *= p->spec.scale;
        if (s->softcap != 0)
            x = s->softcap * tanh(x / s->softcap);
        if ((s->flags & ALIBI))
            x += p->slopes[h] * (double)(j - pos);
        weight[j] = x;
        top = x > top ? x : top;
    }
    for (int e = 0; e < s->dim; e++)
        out[e] = 0;
    for (int j = first; j <= last; j++) {
        const float *v = p->v + (size_t)(j * s->kv_heads + kv) * (size_t)s->dim;
        double w = exp(weight[j] - top);
        sum += w;
        for (int e = 0; e < s->dim; e++)
            out[e] += w * v[e];
    }
    for (int e = 0; e < s->dim; e++)
        out[e] /= sum;
}

/* The norm of the error over that of the result, over some rows. */
static double error_of(const struct prompt *p, const uint16_t *out)
{
    const struct shape *s = p->s;
    double error = 0, norm = 0, want[256], *weight = mem_alloc((size_t)s->n, sizeof *weight);
    for (int i = 0; i < 24; i++) {
        int pos = i < 12 ? (int)((int64_t)(s->n - 1) * i / 11) : (i * 67 + 5) % s->n;
        for (int h = i % 3; h < s->heads; h += 3) {
            const uint16_t *got = out + (size_t)(pos * s->heads + h) * (size_t)s->dim;
            reference(p, pos, h, want, weight);
            for (int e = 0; e < s->dim; e++) {
                double x = from_bf16(got[e]) - want[e];
                error += x * x;
                norm += want[e] * want[e];
            }
        }
    }
    mem_free(weight);
    return sqrt(error / norm);
}

/* Rows of `parts`, computed in one step, against those of the whole prompt. */
static int differing(const struct prompt *p, const struct part *part, int n, const uint16_t *whole)
{
    size_t row = (size_t)(p->s->heads * p->s->dim), rows = 0, at = 0;
    int bad = 0;
    for (int i = 0; i < n; i++)
        rows += (size_t)(part[i].to - part[i].from);
    uint16_t *out = mem_alloc(rows * row, 2);
    run(p, part, n, out);
    for (int i = 0; i < n; i++)
        for (int pos = part[i].from; pos < part[i].to; pos++, at++)
            bad += memcmp(out + at * row, whole + (size_t)pos * row, row * 2) != 0;
    mem_free(out);
    return bad;
}

static int decoded(const struct prompt *p, const uint16_t *whole)
{
    enum { AT_ONCE = 24 };
    struct part part[AT_ONCE];
    int bad = 0, n = 0;
    for (int pos = 0; pos < p->s->n; pos += pos % 128 >= 125 || pos % 128 < 2 ? 1 : 17) {
        part[n++] = (struct part){pos, pos + 1};
        if (n == AT_ONCE) {
            bad += differing(p, part, n, whole);
            n = 0;
        }
    }
    part[n++] = (struct part){p->s->n - 1, p->s->n};
    return bad + differing(p, part, n, whole);
}

static int chunked(const struct prompt *p, const uint16_t *whole)
{
    static const int cut[] = {0, 1, 18, 50, 128, 131, 290, 512, 700, 4096};
    int bad = 0, n = p->s->n;
    for (size_t i = 0; i + 1 < sizeof cut / sizeof *cut && cut[i] < n; i++) {
        struct part part = {cut[i], cut[i + 1] < n ? cut[i + 1] : n};
        bad += differing(p, &part, 1, whole);
    }
    struct part mixed[] = {{n / 3, n / 2 + 1}, {n / 2, n / 2 + 1}, {0, n / 4 + 1}, {n - 1, n}};
    return bad + differing(p, mixed, 4, whole);
}

static bool check(const struct shape *s)
{
    struct prompt p;
    prompt_init(&p, s);
    uint16_t *whole = mem_alloc((size_t)s->n * (size_t)(s->heads * s->dim), 2);
    struct part all = {0, s->n};
    const bool hopper = d->is_hopper;
    int by_chunks = 0, by_decode = 0;
    run(&p, &all, 1, whole);
    double error = error_of(&p, whole);
    if (!(s->flags & BOTH_WAYS)) {
        by_chunks = chunked(&p, whole);
        by_decode = decoded(&p, whole);
    }
    d->is_hopper = false;
    int plain = differing(&p, &all, 1, whole);
    d->is_hopper = hopper;
    /* Weights, results and an FP8 cache's values are rounded to bf16, by 1/512 at most each time.
     */
    bool good = error <= ((s->flags & FP8) ? 3 : 2) / 512.0 && !by_chunks && !by_decode && !plain;
    printf("%3d heads, %2d of KV, %3d values, blocks %2d, %4d keys, window %3d, cap %2.0f%s%s%s: "
           "error "
           "%.1e; rows that differ in chunks %d, decoded %d, without wgmma %d%s\n",
           s->heads, s->kv_heads, s->dim, s->block_size, s->n, s->window, (double)s->softcap,
           (s->flags & ALIBI) ? ", ALiBi" : "", (s->flags & BOTH_WAYS) ? ", both ways" : "",
           (s->flags & FP8) ? ", FP8" : "", error, by_chunks, by_decode, plain,
           good ? "" : " <-- WRONG");
    fflush(stdout);
    mem_free(whole);
    prompt_fini(&p);
    return good;
}

int main(void)
{
    struct sl_err err = {0};
    int bad = 0, n = sizeof shapes / sizeof *shapes;
    if (cuda_device_create(&ops, &d, &err))
        die(err.msg);
    for (int i = 0; i < n; i++)
        bad += !check(&shapes[i]);
    printf("%d of %d shapes are right\n", n - bad, n);
    ops->destroy(d);
    return bad != 0;
}
