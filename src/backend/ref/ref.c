/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/ref/ref.h"

#include "backend/host_moe.h"
#include "base/fp8.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

/* ---- values and memory --------------------------------------------------------------------- */

float ref_get(const void *data, enum wformat format, size_t i)
{
    if (format == W_F32)
        return ((const float *)data)[i];
    if (format == W_FP8)
        return e4m3_f32(((const uint8_t *)data)[i]);
    uint16_t h = ((const uint16_t *)data)[i];
    return format == W_BF16 ? bf16_f32(h) : f16_f32(h);
}

void ref_put(void *data, enum wformat format, size_t i, float v)
{
    if (format == W_F32)
        ((float *)data)[i] = v;
    else if (format == W_FP8)
        ((uint8_t *)data)[i] = f32_e4m3(v);
    else
        ((uint16_t *)data)[i] = format == W_BF16 ? f32_bf16(v) : f32_f16(v);
}

size_t ref_bytes(enum wformat format)
{
    return format == W_F32 ? 4 : format == W_F16 || format == W_BF16 ? 2 : format == W_FP8 ? 1 : 0;
}

static void *ref_alloc(struct device *d, size_t bytes, const char *name, struct sl_err *err)
{
    (void)d;
    void *p = mem_aligned(bytes, 1, 64);
    if (!p) {
        (void)SL_FAIL(err, SL_ENOMEM, "no memory for %s (%zu bytes)", name, bytes);
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

static void ref_free(struct device *d, void *p)
{
    (void)d;
    mem_free(p);
}

/* Grow the scratch row; while preparing, never in a step. */
static bool reserve_row(struct device *d, size_t n)
{
    if (n <= d->row_cap)
        return true;
    double *row = mem_realloc(d->row, n, sizeof *row);
    if (!row)
        return false;
    d->row = row;
    d->row_cap = n;
    return true;
}

static bool reserve_kv_row(struct device *d, size_t n)
{
    if (n <= d->kv_row_cap)
        return true;
    float *row = mem_realloc(d->kv_row, n, sizeof *row);
    if (!row)
        return false;
    d->kv_row = row;
    d->kv_row_cap = n;
    return true;
}

/* Room for a step's rows as e4m3. */
static enum sl_status reserve_coded(struct device *d, int rows, struct sl_err *err)
{
    size_t n = (size_t)rows * (size_t)d->fp8_cols;
    if (n <= d->coded_cap)
        return SL_OK;
    mem_free(d->coded);
    mem_free(d->x_scale);
    d->coded = mem_alloc(n, sizeof *d->coded);
    d->x_scale = mem_alloc((size_t)rows, sizeof *d->x_scale);
    d->coded_cap = d->coded && d->x_scale ? n : 0;
    return d->coded_cap ? SL_OK : SL_FAIL(err, SL_ENOMEM, "no memory for %d rows as fp8", rows);
}

static bool ref_supports(struct device *d, enum sl_dtype dtype)
{
    (void)d;
    return dtype == SL_DTYPE_F32 || dtype == SL_DTYPE_F16 || dtype == SL_DTYPE_BF16;
}

/* ---- weights ------------------------------------------------------------------------------- */

static enum wformat format_of(enum sl_dtype t)
{
    return t == SL_DTYPE_F32 ? W_F32 : t == SL_DTYPE_F16 ? W_F16 : W_BF16;
}

/* n values from one format to another, exact where the target can hold them. False: a finite value
 * became infinite. */
static bool convert(void *out, enum wformat to, size_t at, const void *in, enum wformat from,
                    size_t n)
{
    if (to == from) {
        memcpy((char *)out + at * ref_bytes(to), in, n * ref_bytes(to));
        return true;
    }
    bool fits = true;
    for (size_t i = 0; i < n; i++) {
        ref_put(out, to, at + i, ref_get(in, from, i));
        fits = fits && (isfinite(ref_get(out, to, at + i)) || !isfinite(ref_get(in, from, i)));
    }
    return fits;
}

static void ref_weight_release(struct device *d, struct weight *w)
{
    (void)d;
    if (!w->borrowed)
        mem_free(w->data);
    mem_free(w->scale);
    mem_free(w->bias);
    *w = (struct weight){0};
}

/* Rows [row, row + part's) of a W_FP8 weight: as the checkpoint has them, or one scale a row. */
static void take_fp8(struct weight *w, const struct weight_source *src, int part, size_t row)
{
    size_t cols = (size_t)w->cols, rows = (size_t)src->part[part].rows;
    uint8_t *to = (uint8_t *)w->data + row * cols;
    float *scale = (float *)w->scale + row;
    if (src->part[part].scale) {
        memcpy(to, src->part[part].data, rows * cols);
        memcpy(scale, src->part[part].scale, rows * sizeof *scale);
        return;
    }
    for (size_t r = 0; r < rows; r++, to += cols) {
        float top = 0;
        for (size_t c = 0; c < cols; c++)
            top = fmaxf(top,
                        fabsf(ref_get(src->part[part].data, format_of(src->dtype), r * cols + c)));
        scale[r] = e4m3_scale(top);
        float inv = 1 / scale[r];
        for (size_t c = 0; c < cols; c++)
            to[c] =
                f32_e4m3(ref_get(src->part[part].data, format_of(src->dtype), r * cols + c) * inv);
    }
}

static enum sl_status take_parts(struct weight *w, const struct weight_source *src,
                                 const char *name, struct sl_err *err)
{
    enum wformat from = format_of(src->dtype);
    size_t row = 0;
    for (int i = 0; i < src->n_parts; i++) {
        size_t n = (size_t)src->part[i].rows * (size_t)src->cols;
        if (w->format == W_FP8)
            take_fp8(w, src, i, row);
        else if (!convert(w->data, w->format, row * (size_t)src->cols, src->part[i].data, from, n))
            return SL_FAIL(err, SL_EFORMAT, "tensor '%s' does not fit in float16", name);
        for (int r = 0; w->bias && r < src->part[i].rows; r++)
            ((float *)w->bias)[row + (size_t)r] =
                src->part[i].bias ? ref_get(src->part[i].bias, from, (size_t)r) : 0;
        row += (size_t)src->part[i].rows;
    }
    return SL_OK;
}

static enum sl_status ref_weight_prepare(struct device *d, struct weight *out,
                                         const struct weight_source *src, enum wformat format,
                                         const char *name, struct sl_err *err)
{
    struct weight w = {.format = format, .cols = src->cols};
    bool has_bias = false;
    if (!ref_bytes(format))
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "quantization",
                             "the reference device has no integer weights");
    for (int i = 0; i < src->n_parts; i++) {
        w.rows += src->part[i].rows;
        has_bias = has_bias || src->part[i].bias;
    }
    w.bytes = (size_t)w.rows * (size_t)w.cols * ref_bytes(format);
    w.data = mem_aligned(w.bytes, 1, 64);
    w.bias = has_bias ? mem_alloc((size_t)w.rows, sizeof(float)) : NULL;
    if (format == W_FP8) {
        w.scale = mem_alloc((size_t)w.rows, sizeof(float));
        w.bytes += (size_t)w.rows * sizeof(float);
        d->fp8_cols = w.cols > d->fp8_cols ? w.cols : d->fp8_cols;
    }
    enum sl_status st = SL_OK;
    if (!w.data || (has_bias && !w.bias) || (format == W_FP8 && !w.scale) ||
        !reserve_row(d, (size_t)w.cols))
        st = SL_FAIL(err, SL_ENOMEM, "no memory for tensor '%s' (%zu bytes)", name, w.bytes);
    if (st == SL_OK)
        st = take_parts(&w, src, name, err);
    if (st)
        ref_weight_release(d, &w);
    else
        *out = w;
    return st;
}

static float *ref_vector_prepare(struct device *d, const void *src, enum sl_dtype dtype, int n,
                                 float add, struct sl_err *err)
{
    float *v = ref_alloc(d, (size_t)n * sizeof *v, "a vector", err);
    for (int i = 0; v && i < n; i++)
        v[i] = ref_get(src, format_of(dtype), (size_t)i) + add;
    return v;
}

/* ---- KV cache ------------------------------------------------------------------------------ */

static void kv_destroy(struct device *d)
{
    for (int g = 0; g < KV_GROUPS_MAX; g++) {
        for (int l = 0; l < d->n_kv[g]; l++) {
            mem_free(d->kv[g][l].k);
            mem_free(d->kv[g][l].v);
            mem_free(d->kv[g][l].k_scale);
            mem_free(d->kv[g][l].v_scale);
        }
        mem_free(d->kv[g]);
        d->kv[g] = NULL;
        d->n_kv[g] = 0;
    }
}

static bool kv_create_layer(struct device *d, const struct kv_layout *layout,
                            const struct attn_spec *a)
{
    struct ref_kv *kv = &d->kv[a->group][a->layer_in_group];
    kv->width = a->n_kv_heads * a->head_dim;
    kv->n_heads = a->n_kv_heads;
    size_t n = (size_t)(layout->n_blocks + layout->n_host_blocks) * (size_t)layout->block_size;
    size_t bytes = (size_t)kv->width * ref_bytes(d->kv_format);
    kv->k = mem_zalloc(n, bytes);
    kv->v = mem_zalloc(n, bytes);
    if (d->kv_format == W_FP8) {
        kv->k_scale = mem_zalloc(n, (size_t)a->n_kv_heads * sizeof *kv->k_scale);
        kv->v_scale = mem_zalloc(n, (size_t)a->n_kv_heads * sizeof *kv->v_scale);
        if (!kv->k_scale || !kv->v_scale)
            return false;
    }
    return kv->k && kv->v && reserve_row(d, 2 * (size_t)a->head_dim) &&
           reserve_kv_row(d, (size_t)a->head_dim);
}

static enum sl_status ref_kv_create(struct device *d, const struct kv_layout *layout,
                                    const struct attn_spec *layers, int n_layers,
                                    enum wformat kv_format, struct sl_err *err)
{
    if (!ref_bytes(kv_format))
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "kv_cache_dtype",
                             "the reference device has no integer KV cache");
    kv_destroy(d);
    d->kv_format = kv_format;
    d->block_size = layout->block_size;
    d->n_blocks = layout->n_blocks;
    bool ok = true;
    for (int g = 0; ok && g < layout->n_groups; g++) {
        d->kv[g] = mem_zalloc((size_t)layout->group[g].n_layers, sizeof *d->kv[g]);
        d->n_kv[g] = d->kv[g] ? layout->group[g].n_layers : 0;
        ok = d->kv[g] != NULL;
    }
    for (int i = 0; ok && i < n_layers; i++)
        ok = kv_create_layer(d, layout, &layers[i]);
    if (ok)
        return SL_OK;
    kv_destroy(d);
    return SL_FAIL(err, SL_ENOMEM, "no memory for a KV cache of %d blocks", layout->n_blocks);
}

static void copy_part(void *part, const struct block_copy *c, int n_blocks, size_t bytes)
{
    if (part)
        memcpy((char *)part + block_copy_dst(c, n_blocks) * bytes,
               (char *)part + block_copy_src(c, n_blocks) * bytes, bytes);
}

static void copy_block(struct device *d, const struct block_copy *c)
{
    size_t n = (size_t)d->block_size;
    for (int l = 0; l < d->n_kv[c->group]; l++) {
        const struct ref_kv *kv = &d->kv[c->group][l];
        size_t bytes = n * (size_t)kv->width * ref_bytes(d->kv_format);
        size_t scale_bytes = n * (size_t)kv->n_heads * sizeof(float);
        copy_part(kv->k, c, d->n_blocks, bytes);
        copy_part(kv->v, c, d->n_blocks, bytes);
        copy_part(kv->k_scale, c, d->n_blocks, scale_bytes);
        copy_part(kv->v_scale, c, d->n_blocks, scale_bytes);
    }
}

/* ---- steps --------------------------------------------------------------------------------- */

static enum sl_status ref_begin(struct device *d, const struct batch *b, struct sl_err *err)
{
    enum sl_status st = reserve_coded(d, b->limits.max_tokens, err);
    if (st)
        return st;
    d->batch = b;
    for (int i = 0; i < b->n_copies; i++)
        copy_block(d, &b->copy[i]);
    return SL_OK;
}

static enum sl_status ref_end(struct device *d, struct sl_err *err)
{
    (void)err;
    d->batch = NULL;
    return SL_OK;
}

static void ref_destroy(struct device *d)
{
    if (!d)
        return;
    kv_destroy(d);
    mem_free(d->row);
    mem_free(d->kv_row);
    mem_free(d->coded);
    mem_free(d->x_scale);
    mem_free(d);
}

static void ref_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
                    void *scratch);

static const struct ops ref_ops = {
    .name = "ref",
    .act_bytes = sizeof(float),
    .fp8_weights = true,
    .alloc = ref_alloc,
    .free = ref_free,
    .supports = ref_supports,
    .weight_prepare = ref_weight_prepare,
    .weight_release = ref_weight_release,
    .vector_prepare = ref_vector_prepare,
    .kv_create = ref_kv_create,
    .begin = ref_begin,
    .end = ref_end,
    .embed = ref_embed,
    .embed_types = ref_embed_types,
    .residual = ref_residual,
    .add_norm = ref_add_norm,
    .norm = ref_norm,
    .linear = ref_linear,
    .qkv_rope_cache = ref_qkv_rope_cache,
    .attention = ref_attention,
    .act = ref_act,
    .logits = ref_logits,
    .moe = ref_moe,
    .moe_bytes = host_moe_bytes,
    .destroy = ref_destroy,
};

static void ref_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
                    void *scratch)
{
    host_moe(&ref_ops, d, out, x, m, rows, scratch);
}

enum sl_status ref_device_create(const struct ops **ops, struct device **d, struct sl_err *err)
{
    struct device *dev = mem_zalloc(1, sizeof *dev);
    if (!dev)
        return SL_FAIL(err, SL_ENOMEM, "no memory for the reference device");
    *ops = &ref_ops;
    *d = dev;
    return SL_OK;
}
