/* device.c - the CUDA device: memory, weights, a step's upload, and the ops that launch kernels.
 *
 * A step's arrays go up in one pinned buffer and one copy. Launches are asynchronous on one stream;
 * fetch() waits for it.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/clock.h"
#include "base/half.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum sl_status cuda_check(cudaError_t e, const char *what, struct sl_err *err)
{
    if (e == cudaSuccess)
        return SL_OK;
    return SL_FAIL(err, e == cudaErrorMemoryAllocation ? SL_ENOMEM : SL_EDEVICE, "CUDA: %s: %s",
                   what, cudaGetErrorString(e));
}

/* Remember the first failure of a step; end() and fetch() report it. */
void cuda_note(struct device *d, const char *what)
{
    cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess && d->failed == cudaSuccess) {
        d->failed = e;
        d->failed_what = what;
    }
}

static void *cuda_alloc(struct device *d, size_t bytes, const char *name, struct sl_err *err)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p, 0, bytes, d->stream);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        (void)SL_FAIL(err, SL_ENOMEM, "CUDA: no memory for %s (%zu bytes): %s", name, bytes,
                      cudaGetErrorString(e));
        return NULL;
    }
    return p;
}

static void cuda_free(struct device *d, void *p)
{
    (void)d;
    cudaFree(p);
}

static bool cuda_supports(struct device *d, enum sl_dtype dtype)
{
    (void)d;
    return dtype == SL_DTYPE_BF16;
}

/* ---- weights ------------------------------------------------------------------------------- */

static float get(const void *data, enum sl_dtype t, size_t i)
{
    if (t == SL_DTYPE_F32)
        return ((const float *)data)[i];
    uint16_t h = ((const uint16_t *)data)[i];
    return t == SL_DTYPE_BF16 ? bf16_f32(h) : f16_f32(h);
}

/* Values on their way through a staging buffer, as bf16 or as the e4m3 that they are. Several
 * threads take pieces of it: one alone spends its time on the faults of a mapped file's pages. */
enum { PIECE = 1 << 19, LOADERS_MAX = 8 };
struct staged {
    uint16_t *to;
    const void *from;
    enum sl_dtype t;
    bool codes;
    size_t first, n;
    atomic_int next; /* the first piece that nobody has taken */
};

static void stage_piece(const struct staged *s, size_t at)
{
    size_t size = s->codes ? 1 : 2, n = s->n - at < PIECE ? s->n - at : PIECE;
    if (s->codes || s->t == SL_DTYPE_BF16)
        memcpy((char *)s->to + at * size, (const char *)s->from + (s->first + at) * size, n * size);
    else
        for (size_t i = at; i < at + n; i++)
            s->to[i] = f32_bf16(get(s->from, s->t, s->first + i));
}

static void *stage_pieces(void *arg)
{
    struct staged *s = arg;
    for (size_t at; (at = (size_t)atomic_fetch_add(&s->next, 1) * PIECE) < s->n;)
        stage_piece(s, at);
    return NULL;
}

static void stage(struct staged *s)
{
    size_t n_pieces = (s->n + PIECE - 1) / PIECE;
    int cores = limits_cores(), n_threads = 0;
    pthread_t thread[LOADERS_MAX];
    while (n_threads + 1 < (int)n_pieces && n_threads + 1 < cores && n_threads < LOADERS_MAX &&
           pthread_create(&thread[n_threads], NULL, stage_pieces, s) == 0)
        n_threads++;
    (void)stage_pieces(s);
    for (int i = 0; i < n_threads; i++)
        pthread_join(thread[i], NULL);
}

/* Copies n values to the device through the pinned staging buffers, alternating, so that filling
 * one overlaps the other's transfer. */
static enum sl_status upload(struct device *d, void *to, const void *from, enum sl_dtype t,
                             bool codes, size_t n, struct sl_err *err)
{
    size_t at = 0, cap = STAGING_BYTES / 2, size = codes ? 1 : 2;
    for (; at < n;) {
        size_t now = n - at < cap ? n - at : cap;
        int s = d->next_staging ^= 1;
        enum sl_status st = cuda_check(cudaEventSynchronize(d->staged[s]), "staging", err);
        if (st)
            return st;
        struct staged values = {
            .to = d->staging[s], .from = from, .t = t, .codes = codes, .first = at, .n = now};
        stage(&values);
        st = cuda_check(cudaMemcpyAsync((char *)to + at * size, d->staging[s], now * size,
                                        cudaMemcpyHostToDevice, d->stream),
                        "weight upload", err);
        if (st)
            return st;
        cudaEventRecord(d->staged[s], d->stream);
        at += now;
    }
    return SL_OK;
}

static void cuda_weight_release(struct device *d, struct weight *w)
{
    if (!w->in_stack)
        cuda_free(d, w->data);
    cuda_free(d, w->scale);
    cuda_free(d, w->bias);
    *w = (struct weight){0};
}

static enum sl_status upload_bias(struct device *d, struct weight *w,
                                  const struct weight_source *src, struct sl_err *err)
{
    float *bias = mem_zalloc((size_t)w->rows, sizeof *bias);
    w->bias = cuda_alloc(d, (size_t)w->rows * sizeof *bias, "a bias", err);
    if (!bias || !w->bias) {
        mem_free(bias);
        return SL_FAIL(err, SL_ENOMEM, "no memory for a bias of %d values", w->rows);
    }
    int row = 0;
    for (int i = 0; i < src->n_parts; row += src->part[i++].rows)
        for (int r = 0; src->part[i].bias && r < src->part[i].rows; r++)
            bias[row + r] = get(src->part[i].bias, src->dtype, (size_t)r);
    /* On the stream that cuda_alloc clears on: the default one is not in order with it. */
    enum sl_status st = cuda_check(cudaMemcpyAsync(w->bias, bias, (size_t)w->rows * sizeof *bias,
                                                   cudaMemcpyHostToDevice, d->stream),
                                   "bias upload", err);
    if (st == SL_OK)
        st = cuda_check(cudaStreamSynchronize(d->stream), "bias upload", err);
    mem_free(bias);
    return st;
}

/* A part's values as bf16. */
static enum sl_status take_bf16(struct device *d, void *to, const struct weight_source *src,
                                int part, struct sl_err *err)
{
    size_t n = (size_t)src->part[part].rows * (size_t)src->cols;
    if (src->part[part].data)
        return upload(d, to, src->part[part].data, src->dtype, false, n, err);
    launch_make_up(d->stream, to, n, src->part[part].made_up_key, src->part[part].made_up_width);
    cuda_note(d, "make_up");
    return SL_OK;
}

/* A part's values as e4m3: the checkpoint's own, or quantized here, by way of `wide`. */
static enum sl_status take_fp8(struct device *d, const struct coded *to, void *wide,
                               const struct weight_source *src, int part, struct sl_err *err)
{
    int rows = src->part[part].rows;
    size_t n = (size_t)rows * (size_t)src->cols;
    if (src->part[part].scale) {
        enum sl_status st = upload(d, to->q, src->part[part].data, src->dtype, true, n, err);
        return st ? st
                  : cuda_check(cudaMemcpyAsync(to->scale, src->part[part].scale,
                                               (size_t)rows * sizeof *to->scale,
                                               cudaMemcpyHostToDevice, d->stream),
                               "weight scales", err);
    }
    enum sl_status st = take_bf16(d, wide, src, part, err);
    if (st == SL_OK)
        launch_quantize(d->stream, to, wide, rows, src->cols);
    cuda_note(d, "quantize");
    return st;
}

static enum sl_status take_parts(struct device *d, const struct weight *w,
                                 const struct weight_source *src, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    size_t row = 0, cols = (size_t)src->cols, most = 0;
    void *wide = NULL;
    for (int i = 0; i < src->n_parts; i++)
        most = (size_t)src->part[i].rows > most ? (size_t)src->part[i].rows : most;
    if (w->format == W_FP8 && !src->part[0].scale &&
        !(wide = cuda_alloc(d, most * cols * 2, "weights before they are quantized", err)))
        return SL_ENOMEM;
    for (int i = 0; st == SL_OK && i < src->n_parts; row += (size_t)src->part[i++].rows) {
        const struct coded to = {(char *)w->data + row * cols, (float *)w->scale + row};
        st = w->format == W_FP8 ? take_fp8(d, &to, wide, src, i, err)
                                : take_bf16(d, (char *)w->data + row * cols * 2, src, i, err);
    }
    cuda_free(d, wide); /* waits for the device */
    return st;
}

/* bf16, or FP8 where rows are of a length that products take; experts stay bf16. */
static enum sl_status check_format(const struct weight_source *src, enum wformat *format,
                                   const char *name, struct sl_err *err)
{
    if (*format == W_BF16)
        return SL_OK;
    if (*format != W_FP8)
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "quantization",
                             "the CUDA device has bfloat16 and fp8 weights only");
    if (src->cols % 16 == 0 && !src->stack_n)
        return SL_OK;
    *format = W_BF16;
    if (!src->part[0].scale)
        return SL_OK;
    if (src->stack_n)
        return SL_FAIL(err, SL_ENOSUPPORT, "tensor '%s' is F8_E4M3: experts on CUDA are bfloat16",
                       name);
    return SL_FAIL(err, SL_ENOSUPPORT,
                   "tensor '%s' is F8_E4M3 in rows of %d values: CUDA takes multiples of 16", name,
                   src->cols);
}

/* Memory of weight `out`. Those of a stack lie one after the other, in the first one's. */
static enum sl_status weight_memory(struct device *d, const struct weight *out, struct weight *w,
                                    const struct weight_source *src, const char *name,
                                    struct sl_err *err)
{
    size_t n = src->stack_n ? (size_t)src->stack_n : 1, at = (size_t)src->stack_at;
    w->in_stack = at > 0;
    if (w->in_stack) {
        w->data = (char *)(out - at)->data + at * w->bytes;
        return SL_OK;
    }
    if (src->stack_n && (w->cols % 8 || src->stack_n > MOE_EXPERTS_MAX))
        return SL_FAIL(err, SL_ENOSUPPORT,
                       "%s: CUDA takes at most %d experts, of multiples of 8 columns", name,
                       MOE_EXPERTS_MAX);
    w->data = cuda_alloc(d, n * w->bytes, name, err);
    return w->data ? SL_OK : SL_ENOMEM;
}

static enum sl_status cuda_weight_prepare(struct device *d, struct weight *out,
                                          const struct weight_source *src, enum wformat format,
                                          const char *name, struct sl_err *err)
{
    bool has_bias = false;
    enum sl_status st = check_format(src, &format, name, err);
    struct weight w = {.format = format, .cols = src->cols};
    if (st)
        return st;
    for (int i = 0; i < src->n_parts; i++) {
        w.rows += src->part[i].rows;
        has_bias = has_bias || src->part[i].bias;
    }
    w.bytes = (size_t)w.rows * (size_t)w.cols * (format == W_FP8 ? 1 : 2);
    st = weight_memory(d, out, &w, src, name, err);
    if (st == SL_OK && format == W_FP8) {
        w.scale = cuda_alloc(d, (size_t)w.rows * sizeof(float), name, err);
        w.bytes += (size_t)w.rows * sizeof(float);
        d->fp8_cols = w.cols > d->fp8_cols ? w.cols : d->fp8_cols;
    }
    if (st == SL_OK && format == W_FP8 && !w.scale)
        st = SL_ENOMEM;
    if (st == SL_OK)
        st = take_parts(d, &w, src, err);
    if (st == SL_OK && has_bias)
        st = upload_bias(d, &w, src, err);
    if (st)
        cuda_weight_release(d, &w);
    else
        *out = w;
    return st;
}

/* Room for a step's rows as e4m3. */
enum sl_status coded_reserve(struct device *d, int rows, struct sl_err *err)
{
    if (!d->fp8_cols || rows <= d->coded_rows)
        return SL_OK;
    cudaFree(d->coded.q);
    cudaFree(d->coded.scale);
    d->coded.q = cuda_alloc(d, (size_t)rows * (size_t)d->fp8_cols, "rows as fp8", err);
    d->coded.scale = cuda_alloc(d, (size_t)rows * sizeof *d->coded.scale, "scales of rows", err);
    d->coded_rows = d->coded.q && d->coded.scale ? rows : 0;
    return d->coded_rows ? SL_OK : SL_ENOMEM;
}

static size_t cuda_step_bytes(struct device *d, int max_tokens)
{
    return d->fp8_cols ? (size_t)max_tokens * ((size_t)d->fp8_cols + sizeof(float)) : 0;
}

static float *cuda_vector_prepare(struct device *d, const void *src, enum sl_dtype dtype, int n,
                                  float add, struct sl_err *err)
{
    float *host = mem_alloc((size_t)n, sizeof *host);
    float *v = cuda_alloc(d, (size_t)n * sizeof *v, "a vector", err);
    for (int i = 0; host && i < n; i++)
        host[i] = get(src, dtype, (size_t)i) + add;
    enum sl_status st = host && v ? SL_OK : SL_ENOMEM;
    if (st == SL_OK)
        st = cuda_check(
            cudaMemcpyAsync(v, host, (size_t)n * sizeof *v, cudaMemcpyHostToDevice, d->stream),
            "vector upload", err);
    if (st == SL_OK)
        st = cuda_check(cudaStreamSynchronize(d->stream), "vector upload", err);
    mem_free(host);
    if (st == SL_OK)
        return v;
    cuda_free(d, v);
    (void)SL_FAIL(err, st, "no memory for a vector of %d values", n);
    return NULL;
}

/* ---- KV cache ------------------------------------------------------------------------------ */

static void kv_destroy(struct device *d)
{
    cudaFree(d->wide.k);
    cudaFree(d->wide.v);
    d->wide = (struct kv_cache){0};
    for (int g = 0; g < KV_GROUPS_MAX; g++) {
        for (int l = 0; l < d->n_kv[g]; l++) {
            cudaFree(d->kv[g][l].k);
            cudaFree(d->kv[g][l].v);
            cudaFree(d->kv[g][l].k_scale);
            cudaFree(d->kv[g][l].v_scale);
        }
        mem_free(d->kv[g]);
        d->kv[g] = NULL;
        d->n_kv[g] = 0;
    }
    kv_parts_destroy(d);
}

static enum sl_status take_layer(struct device *d, struct kv_cache *kv,
                                 const struct kv_layout *layout, const struct attn_spec *a,
                                 bool fp8, struct sl_err *err)
{
    size_t n_blocks = (size_t)layout->n_blocks;
    size_t heads = (size_t)layout->block_size * (size_t)a->n_kv_heads; /* of a block */
    size_t block = heads * (size_t)a->head_dim * (fp8 ? 1 : 2);
    size_t scales = fp8 ? heads * sizeof(float) : 0;
    d->block_bytes[a->group] = block;
    d->scale_bytes[a->group] = scales;
    if (!(kv->k = cuda_alloc(d, block * n_blocks, "the KV cache", err)) ||
        !(kv->v = cuda_alloc(d, block * n_blocks, "the KV cache", err)) ||
        (fp8 && !(kv->k_scale = cuda_alloc(d, scales * n_blocks, "the KV cache's scales", err))) ||
        (fp8 && !(kv->v_scale = cuda_alloc(d, scales * n_blocks, "the KV cache's scales", err))))
        return SL_ENOMEM;
    return SL_OK;
}

static enum sl_status cuda_kv_create(struct device *d, const struct kv_layout *layout,
                                     const struct attn_spec *layers, int n_layers,
                                     enum wformat kv_format, struct sl_err *err)
{
    if (kv_format != W_BF16 && kv_format != W_FP8)
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "kv_cache_dtype",
                             "the CUDA device has a bfloat16 or fp8 KV cache only");
    if (layout->block_size % 16)
        return SL_FAIL_PARAM(err, SL_EINVAL, "block_size",
                             "block_size must be a multiple of 16 on CUDA, got %d.",
                             layout->block_size);
    kv_destroy(d);
    d->block_size = layout->block_size;
    d->n_groups = layout->n_groups;
    d->seen_group = -1;
    for (int g = 0; g < layout->n_groups; g++) {
        if (d->seen_group < 0 && !layout->group[g].window)
            d->seen_group = g;
        d->n_kv[g] = layout->group[g].n_layers;
        if (!(d->kv[g] = mem_zalloc((size_t)d->n_kv[g], sizeof *d->kv[g])))
            return SL_FAIL(err, SL_ENOMEM, "no memory for %d layers", n_layers);
    }
    size_t partial = 0, heads = 0, wide = 0; /* the most that a layer needs */
    for (int i = 0; i < n_layers; i++) {
        const struct attn_spec *a = &layers[i];
        struct kv_cache *kv = &d->kv[a->group][a->layer_in_group];
        if (!attn_supports(a->head_dim, kv_format == W_FP8))
            return SL_FAIL(err, SL_ENOSUPPORT,
                           "attention heads of %d values: CUDA takes multiples of %d up to 256",
                           a->head_dim, kv_format == W_FP8 ? 16 : 8);
        d->group[a->group] = *a;
        enum sl_status st = take_layer(d, kv, layout, a, kv_format == W_FP8, err);
        if (st)
            return st;
        size_t part = attn_partial_bytes(a->n_heads, a->head_dim);
        partial = part > partial ? part : partial;
        heads = (size_t)a->n_heads > heads ? (size_t)a->n_heads : heads;
        size_t block = (size_t)(a->n_kv_heads * a->head_dim) * (size_t)layout->block_size;
        wide = block > wide ? block : wide;
    }
    /* Shared blocks count once for each sequence that reads them, so this may run out: then the
     * sequences that are left go the tile kernel's way, with the same bits. */
    d->max_parts =
        2 * (size_t)layout->n_blocks * (size_t)layout->block_size / CUDA_ATTN_CHUNK + 256;
    cudaFree(d->partial);
    cudaFree(d->counter);
    cudaFree(d->seen);
    size_t slots = (size_t)layout->n_blocks * (size_t)layout->block_size;
    d->partial = cuda_alloc(d, d->max_parts * partial, "attention's partial sums", err);
    d->counter =
        cuda_alloc(d, (1 + d->max_parts * heads) * sizeof *d->counter, "attention's counters", err);
    d->seen = cuda_alloc(d, slots * sizeof *d->seen, "the tokens of the KV cache", err);
    bool good = d->partial && d->counter && d->seen;
    if (kv_format == W_FP8) {
        wide *= (size_t)layout->n_blocks * sizeof(uint16_t);
        d->wide.k = cuda_alloc(d, wide, "an FP8 cache's keys as bf16", err);
        d->wide.v = cuda_alloc(d, wide, "an FP8 cache's values as bf16", err);
        good = good && d->wide.k && d->wide.v;
    }
    return good ? kv_parts_create(d, layout->n_host_blocks, err) : SL_ENOMEM;
}

/* Of an FP8 cache: one layer's K and V as bf16. */
static size_t cuda_kv_more_bytes(enum wformat kv_format, int n_kv_heads, int head_dim)
{
    return kv_format == W_FP8 ? (size_t)n_kv_heads * (size_t)head_dim * 2 * sizeof(uint16_t) : 0;
}

/* ---- ops ------------------------------------------------------------------------------------- */

struct norm_args norm_args(const struct norm *n)
{
    return (struct norm_args){.w = n->w, .b = n->b, .eps = n->eps, .rms = n->rms};
}

static void cuda_embed(struct device *d, float *h, const struct weight *e, float scale,
                       const struct weight *p, int pos_offset)
{
    launch_embed(d->stream, h, e ? e->data : NULL, e ? e->scale : NULL, &d->arrays[0],
                 (e ? e : p)->cols, scale, p ? p->data : NULL, pos_offset);
    cuda_note(d, "embed");
}

static void cuda_embed_types(struct device *d, float *h, const struct weight *types)
{
    launch_embed_types(d->stream, h, types->data, &d->arrays[0], types->cols);
    cuda_note(d, "embed_types");
}

static void cuda_residual(struct device *d, float *h, const void *x, int rows, int n)
{
    fuse_flush(d);
    launch_residual(d->stream, h, x, (size_t)rows * (size_t)n);
    cuda_note(d, "residual");
}

static void cuda_norm(struct device *d, void *y, const void *x, const struct norm *norm, int rows,
                      int n)
{
    if (y == x) {
        fuse_post_norm(d, y, norm, rows, n);
        return;
    }
    struct norm_args k = norm_args(norm);
    fuse_flush(d);
    launch_norm(d->stream, y, x, &k, rows, n, (size_t)n);
    cuda_note(d, "norm");
}

static struct attn_shape attn_shape(const struct device *d, const struct attn_spec *a)
{
    return (struct attn_shape){.n_heads = a->n_heads,
                               .n_kv_heads = a->n_kv_heads,
                               .head_dim = a->head_dim,
                               .block_size = d->block_size,
                               .scale = a->scale,
                               .softcap = a->softcap,
                               .window = a->window,
                               .alibi = a->alibi,
                               .causal = a->causal};
}

static void cuda_qkv_rope_cache(struct device *d, void *qkv, const struct attn_spec *a,
                                const struct rope *rope, const struct norm *q_norm,
                                const struct norm *k_norm)
{
    struct attn_shape shape = attn_shape(d, a);
    struct rope_args r = {0};
    struct norm_args q = q_norm ? norm_args(q_norm) : (struct norm_args){0};
    struct norm_args k = k_norm ? norm_args(k_norm) : (struct norm_args){0};
    if (rope)
        r = (struct rope_args){.inv_freq = rope->inv_freq,
                               .rot_dims = rope->rot_dims,
                               .mscale = rope->mscale,
                               .interleaved = rope->interleaved};
    fuse_flush(d);
    const size_t width = (size_t)(a->n_heads + 2 * a->n_kv_heads) * (size_t)a->head_dim;
    if (a->qk_norm == QK_NORM_HEADS)
        q.head_stride = k.head_stride = a->head_dim;
    if (a->qk_norm == QK_NORM_ALL && q_norm && k_norm) {
        uint16_t *first_k = (uint16_t *)qkv + a->n_heads * a->head_dim;
        int rows = d->rows.tokens;
        launch_norm(d->stream, qkv, qkv, &q, rows, a->n_heads * a->head_dim, width);
        launch_norm(d->stream, first_k, first_k, &k, rows, a->n_kv_heads * a->head_dim, width);
        q_norm = k_norm = NULL;
    }
    launch_qkv_rope_cache(d->stream, qkv, &d->kv[a->group][a->layer_in_group], &d->arrays[a->group],
                          &shape, &r, q_norm ? &q : NULL, k_norm ? &k : NULL);
    cuda_note(d, "qkv_rope_cache");
}

static void cuda_attention(struct device *d, void *out, const void *qkv, const struct attn_spec *a)
{
    struct attn_shape shape = attn_shape(d, a);
    fuse_flush(d);
    launch_attention(d->stream, out, qkv, &d->kv[a->group][a->layer_in_group], &d->arrays[a->group],
                     &shape, &d->plan[a->group]);
    cuda_note(d, "attention");
}

/* Whether rows [first, first + n) of logits are those rows of the step, as in pure decode. */
static bool rows_are_themselves(const struct device *d, int first, int n)
{
    if (d->padded)
        return true;
    for (int i = 0; i < n; i++)
        if (d->batch->logit_row[first + i] != i)
            return false;
    return true;
}

static void cuda_logits(struct device *d, float *logits, const struct weight *w, const void *x,
                        int first, int n, float scale, float softcap)
{
    size_t row_bytes = (size_t)w->cols * 2;
    fuse_flush(d);
    if ((size_t)n * row_bytes > d->gathered_bytes) { /* once: taking it waits for the device */
        size_t bytes = (size_t)d->batch->limits.max_logits * row_bytes;
        cudaFree(d->gathered);
        d->gathered_bytes = cudaMalloc(&d->gathered, bytes) == cudaSuccess ? bytes : 0;
        cuda_note(d, "memory for rows of logits");
        if (!d->gathered_bytes)
            return;
    }
    if (!rows_are_themselves(d, first, n)) {
        launch_gather_rows(d->stream, d->gathered, x, d->arrays[0].logit_row + first, n, w->cols);
        cuda_note(d, "gather_rows");
        x = d->gathered;
    }
    if (product_takes(d, w, n)) {
        struct narrow_args a = fuse_input(d, w, x, n);
        a.y = logits;
        a.out_f32 = true;
        a.scale = scale;
        a.softcap = softcap;
        product_run(d, &a);
        return;
    }
    fuse_other(d, logits, true, w, x, n);
    if (w->bias || scale != 1 || softcap != 0) {
        launch_finish_logits(d->stream, logits, w->bias, n, w->rows, scale, softcap);
        cuda_note(d, "finish_logits");
    }
}

static enum sl_status cuda_fetch(struct device *d, void *host, const void *from, size_t bytes,
                                 struct sl_err *err)
{
    fuse_flush(d);
    cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, d->stream);
    cuda_note(d, "fetch");
    return step_end(d, err);
}

/* ---- drawing tokens ------------------------------------------------------------------------ */

static size_t cuda_draw_bytes(int rows, int vocab_size)
{
    return (size_t)rows * (size_t)vocab_size * (sizeof(float) + sizeof(uint32_t));
}

static enum sl_status cuda_draw_plan(struct device *d, const struct batch_limits *limits, int rows,
                                     int vocab_size, struct sl_err *err)
{
    size_t n = (size_t)rows * (size_t)vocab_size;
    graphs_fini(d); /* they know the old addresses */
    cudaFree(d->draw_work);
    cudaFree(d->draw_count);
    d->draw_rows = rows;
    d->vocab_size = vocab_size;
    d->draw_work = cuda_alloc(d, n * sizeof *d->draw_work, "logits to draw from", err);
    d->draw_count = cuda_alloc(d, n * sizeof *d->draw_count, "penalties", err);
    if (!d->draw_work || !d->draw_count)
        return SL_ENOMEM;
    return step_reserve(d, limits, err);
}

static int cuda_rows(struct device *d)
{
    return d->replayed ? 0 : d->rows.tokens;
}

static void cuda_set_eager(struct device *d, bool eager)
{
    d->no_graphs = cuda_plain_launches = eager;
}

static void cuda_set_fast(struct device *d)
{
    d->fast = true;
}

static void cuda_expect(struct device *d, const struct draw_rows *rows)
{
    d->draws = rows;
}

static void cuda_draw(struct device *d, float *logits, int first, int n)
{
    const struct draw_rows *rows = d->draws;
    int g = d->seen_group < 0 ? 0 : d->seen_group;
    struct draw_args a = {
        .logits = logits,
        .first_logit = first,
        .n_logits = n,
        .n = d->vocab_size,
        .row = d->draw_row,
        .word = d->upload_device,
        .max_rows = d->draw_rows,
        .work = d->draw_work,
        .count = d->draw_count,
        .seen = d->seen,
        .block_start = d->arrays[g].block_start,
        .block = d->arrays[g].block,
        .block_size = d->block_size,
        .table = d->table,
        .slot = d->header,
        .slot_rows = d->max_samples,
        .result = d->result,
        .top = d->top,
    };
    /* Sample rows are in order of their logits. */
    int begin = 0, end;
    while (begin < rows->n_rows && d->batch->sample[begin].logit < first)
        begin++;
    for (end = begin; end < rows->n_rows && d->batch->sample[end].logit < first + n;)
        end++;
    if (d->padded) {
        begin = 0;
        end = d->rows.logits;
    }
    a.first_row = begin;
    if (end > begin)
        launch_draw(d->stream, &a, end - begin);
    cuda_note(d, "draw");
}

static void cuda_destroy(struct device *d)
{
    if (!d)
        return;
    if (d->stream)
        cudaStreamSynchronize(d->stream);
    kv_destroy(d);
    step_fini(d);
    gemm_fini(d);
    cudaFree(d->partial);
    cudaFree(d->counter);
    cudaFree(d->seen);
    cudaFree(d->draw_work);
    cudaFree(d->draw_count);
    cudaFree(d->gathered);
    cudaFree(d->coded.q);
    cudaFree(d->coded.scale);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(d->staging[i]);
        if (d->staged[i])
            cudaEventDestroy(d->staged[i]);
    }
    if (d->stream)
        cudaStreamDestroy(d->stream);
    mem_free(d);
}

static enum sl_status cuda_memory(struct device *d, size_t *left, size_t *total, struct sl_err *err)
{
    (void)d;
    return cuda_check(cudaMemGetInfo(left, total), "asking for free memory", err);
}

static const struct ops cuda_ops = {
    .memory = cuda_memory,
    .name = "cuda",
    .act_bytes = 2,
    .fp8_weights = true,
    .head_dim_max = 256,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .supports = cuda_supports,
    .weight_prepare = cuda_weight_prepare,
    .weight_release = cuda_weight_release,
    .makes_up = true,
    .vector_prepare = cuda_vector_prepare,
    .kv_create = cuda_kv_create,
    .begin = step_begin,
    .end = step_end,
    .embed = cuda_embed,
    .embed_types = cuda_embed_types,
    .residual = cuda_residual,
    .add_norm = fuse_add_norm,
    .norm = cuda_norm,
    .linear = fuse_linear,
    .qkv_rope_cache = cuda_qkv_rope_cache,
    .attention = cuda_attention,
    .act = fuse_act,
    .moe = cuda_moe,
    .moe_bytes = cuda_moe_bytes,
    .logits = cuda_logits,
    .fetch = cuda_fetch,
    .depth = CUDA_DEPTH,
    .step_bytes = cuda_step_bytes,
    .kv_more_bytes = cuda_kv_more_bytes,
    .draw_bytes = cuda_draw_bytes,
    .draw_plan = cuda_draw_plan,
    .expect = cuda_expect,
    .rows = cuda_rows,
    .set_eager = cuda_set_eager,
    .set_fast = cuda_set_fast,
    .draw = cuda_draw,
    .launched = step_launched,
    .collect = step_collect,
    .destroy = cuda_destroy,
};

/* Others' memory is seen before this process takes any but its context's. */
static void log_card(int64_t context_ns, int64_t kernels_ns)
{
    enum { CONTEXT_BYTES = 1 << 30 }; /* at most: about half of it on an H200 */
    const double gib = 1024.0 * 1024.0 * 1024.0;
    struct cudaDeviceProp card;
    size_t left, total;
    if (cudaGetDeviceProperties(&card, 0) || cudaMemGetInfo(&left, &total))
        return;
    log_info("%s, compute capability %d.%d, %.2f of %.2f GiB free; CUDA start-up took %.2f s: "
             "context %.2f, kernels and cuBLASLt %.2f",
             card.name, card.major, card.minor, (double)left / gib, (double)total / gib,
             (double)(context_ns + kernels_ns) * 1e-9, (double)context_ns * 1e-9,
             (double)kernels_ns * 1e-9);
    if (total - left > CONTEXT_BYTES)
        log_warning("Other processes use about %.2f GiB of the GPU's memory",
                    (double)(total - left) / gib);
}

static enum sl_status open_stream(struct device *d, struct sl_err *err)
{
    int major = 0;
    enum sl_status st = cuda_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking),
                                   "making a stream", err);
    if (st == SL_OK)
        st = cuda_check(cudaDeviceGetAttribute(&d->n_sms, cudaDevAttrMultiProcessorCount, 0),
                        "asking for multiprocessors", err);
    if (st == SL_OK)
        st = cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                        "asking for the compute capability", err);
    d->is_hopper = major == 9;
    return st;
}

static enum sl_status open_staging(struct device *d, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    for (int i = 0; st == SL_OK && i < 2; i++) {
        st = cuda_check(cudaHostAlloc(&d->staging[i], STAGING_BYTES, cudaHostAllocDefault),
                        "a staging buffer", err);
        if (st == SL_OK)
            st = cuda_check(cudaEventCreateWithFlags(&d->staged[i], cudaEventDisableTiming),
                            "an event", err);
    }
    return st;
}

enum sl_status cuda_device_create(const struct ops **ops, struct device **out, struct sl_err *err)
{
    int n = 0;
    int64_t start = clock_mono_ns();
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess)
        return SL_FAIL_PARAM(err, SL_ENOTFOUND, "device", "no CUDA device was found: %s",
                             cudaGetErrorString(e));
    struct device *d = mem_zalloc(1, sizeof *d);
    if (!d)
        return SL_FAIL(err, SL_ENOMEM, "no memory for the CUDA device");
    enum sl_status st = open_stream(d, err);
    int64_t context = clock_mono_ns();
    if (st == SL_OK && (e = (cudaError_t)cuda_find_kernels()) != cudaSuccess)
        st = SL_FAIL_PARAM(err, SL_ENOTFOUND, "device", "no kernels for this GPU: %s",
                           cudaGetErrorString(e));
    if (st == SL_OK)
        st = gemm_init(d, err);
    int64_t kernels = clock_mono_ns();
    if (st == SL_OK)
        st = open_staging(d, err);
    if (st) {
        cuda_destroy(d);
        return st;
    }
    log_card(context - start, kernels - context);
    *ops = &cuda_ops;
    *out = d;
    return SL_OK;
}
