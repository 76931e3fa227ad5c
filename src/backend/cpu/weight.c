/* weight.c - checkpoint matrices into the panels of kernels.h.
 *
 * A panel is packed by one thread: 64 source rows are read KSTEP values at a time into a small f32
 * tile, which is then written in the format's order. Quantized formats find their scales first.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"
#include "base/half.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

enum { KSTEP = I4_GROUP };

int weight_k_pad(enum wformat format, int cols)
{
    int unit = format == W_BF16 ? 32 : format == W_I8 || format == W_I4 ? I4_GROUP : 1;
    return (cols + unit - 1) / unit * unit;
}

size_t weight_k_bytes(enum wformat format, int k)
{
    static const int half_bytes[] = {
        [W_F32] = 8, [W_F16] = 4, [W_BF16] = 4, [W_I8] = 2, [W_I4] = 1};
    return (size_t)k * PANEL * half_bytes[format] / 2;
}

size_t weight_panel_bytes(enum wformat format, int cols)
{
    return weight_k_bytes(format, weight_k_pad(format, cols));
}

static int n_panels(int rows)
{
    return (rows + PANEL - 1) / PANEL;
}

static int n_scales(enum wformat format, int cols) /* vectors of PANEL scales a panel */
{
    return format == W_I8 ? 1 : format == W_I4 ? weight_k_pad(W_I4, cols) / I4_GROUP : 0;
}

/* ---- reading the source --------------------------------------------------------------------- */

static size_t dtype_bytes(enum sl_dtype dtype)
{
    return dtype == SL_DTYPE_F32 ? 4 : 2;
}

static void read_values(float *y, const char *src, enum sl_dtype dtype, int n)
{
    for (int i = 0; i < n; i++) {
        uint16_t h;
        if (dtype == SL_DTYPE_F32) {
            memcpy(&y[i], src + 4 * (size_t)i, 4);
            continue;
        }
        memcpy(&h, src + 2 * (size_t)i, 2);
        y[i] = dtype == SL_DTYPE_F16 ? f16_f32(h) : bf16_f32(h);
    }
}

static const char *source_row(const struct weight_source *src, int row)
{
    int p = 0;
    while (row >= src->part[p].rows)
        row -= src->part[p++].rows;
    return (const char *)src->part[p].data + (size_t)row * src->cols * dtype_bytes(src->dtype);
}

/* Values [k0, k0 + KSTEP) of a panel's rows as f32; zeros beyond rows and columns. */
static void read_tile(float tile[PANEL][KSTEP], const struct weight_source *src, int rows,
                      int panel, int k0)
{
    int n = src->cols - k0 < KSTEP ? src->cols - k0 : KSTEP;
    for (int i = 0; i < PANEL; i++) {
        int row = panel * PANEL + i, have = row < rows ? n : 0;
        if (have)
            read_values(tile[i], source_row(src, row) + (size_t)k0 * dtype_bytes(src->dtype),
                        src->dtype, have);
        memset(tile[i] + have, 0, (size_t)(KSTEP - have) * sizeof(float));
    }
}

/* ---- writing panels ------------------------------------------------------------------------- */

static void write_f32(char *out, float tile[PANEL][KSTEP], int n)
{
    float *w = (float *)out;
    for (int k = 0; k < n; k++)
        for (int i = 0; i < PANEL; i++)
            w[(size_t)k * PANEL + i] = tile[i][k];
}

static void write_f16(char *out, float tile[PANEL][KSTEP], int n)
{
    uint16_t *w = (uint16_t *)out;
    for (int k = 0; k < n; k++)
        for (int i = 0; i < PANEL; i++)
            w[(size_t)k * PANEL + i] = f32_f16(tile[i][k]);
}

static void write_bf16(char *out, float tile[PANEL][KSTEP], int n)
{
    uint16_t *w = (uint16_t *)out;
    for (int k = 0; k < n; k += 2) {
        for (int i = 0; i < PANEL; i++) {
            w[(size_t)k * PANEL + 2 * i] = f32_bf16(tile[i][k]);
            w[(size_t)k * PANEL + 2 * i + 1] = f32_bf16(tile[i][k + 1]);
        }
    }
}

static int quantized(float w, float inv, int lo, int hi)
{
    float q = w * inv;
    if (!(q > (float)lo)) /* NaN too: its scale says so */
        return lo;
    if (q > (float)hi)
        return hi;
    return (int)(q + 0x1.8p23f - 0x1.8p23f); /* nearest even, without a call */
}

static float inverse(float scale)
{
    float inv = 1 / scale;
    return isfinite(inv) ? inv : 0;
}

static void write_i8(char *out, float tile[PANEL][KSTEP], const float *scale)
{
    for (int i = 0; i < PANEL; i++) {
        float inv = inverse(scale[i]);
        for (int k = 0; k < KSTEP; k++)
            out[((size_t)(k / 4) * PANEL + i) * 4 + k % 4] =
                (char)(uint8_t)(quantized(tile[i][k], inv, -127, 127) + 128);
    }
}

/* Fits each output's group, which gives scale and offset too. */
static void write_i4(char *out, uint32_t *pair, float tile[PANEL][KSTEP],
                     const struct cpu_kernels *kernels)
{
    for (int i = 0; i < PANEL; i++) {
        uint8_t q[I4_GROUP];
        pair[i] = kernels->fit_i4(q, tile[i]);
        for (int k = 0; k < KSTEP; k++) {
            char *byte = &out[((size_t)(k / 8) * PANEL + i) * 4 + k % 4];
            *byte = (char)(k % 8 < 4 ? q[k] : (uint8_t)*byte | q[k] << 4);
        }
    }
}

/* ---- scales --------------------------------------------------------------------------------- */

static float max_abs(const float *w, int n, float top)
{
    for (int i = 0; i < n; i++)
        top = fabsf(w[i]) <= top ? top : fabsf(w[i]); /* NaN wins and stays */
    return top == top ? top : NAN;
}

static void scales_i8(float *scale, const struct weight_source *src, int rows, int panel)
{
    float tile[PANEL][KSTEP], top[PANEL] = {0};
    for (int k = 0; k < src->cols; k += KSTEP) {
        read_tile(tile, src, rows, panel, k);
        for (int i = 0; i < PANEL; i++)
            top[i] = max_abs(tile[i], KSTEP, top[i]);
    }
    for (int i = 0; i < PANEL; i++)
        scale[i] = isfinite(top[i]) ? top[i] / 127 : NAN;
}

/* ---- one panel, one matrix ------------------------------------------------------------------ */

struct pack {
    const struct weight_source *src;
    struct weight *w;
    const struct cpu_kernels *kernels;
    size_t panel_bytes;
    int n_scales;
};

static void pack_panel(void *ctx, int panel, int thread)
{
    const struct pack *p = ctx;
    const struct weight *w = p->w;
    float tile[PANEL][KSTEP];
    float *scale = (float *)w->scale + (size_t)panel * p->n_scales * PANEL;
    (void)thread;
    if (w->format == W_I8)
        scales_i8(scale, p->src, w->rows, panel);
    for (int k = 0, k_pad = weight_k_pad(w->format, w->cols); k < k_pad; k += KSTEP) {
        char *out = (char *)w->data + panel * p->panel_bytes + weight_k_bytes(w->format, k);
        int n = k_pad - k < KSTEP ? k_pad - k : KSTEP;
        read_tile(tile, p->src, w->rows, panel, k);
        if (w->format == W_F32)
            write_f32(out, tile, n);
        else if (w->format == W_F16)
            write_f16(out, tile, n);
        else if (w->format == W_BF16)
            write_bf16(out, tile, n);
        else if (w->format == W_I8)
            write_i8(out, tile, scale);
        else
            write_i4(out, (uint32_t *)(void *)scale + (size_t)(k / I4_GROUP) * PANEL, tile,
                     p->kernels);
    }
}

static void read_bias(float *bias, const struct weight_source *src)
{
    for (int p = 0, row = 0; p < src->n_parts; row += src->part[p++].rows)
        if (src->part[p].bias)
            read_values(bias + row, src->part[p].bias, src->dtype, src->part[p].rows);
}

static bool has_bias(const struct weight_source *src)
{
    bool any = false;
    for (int p = 0; p < src->n_parts; p++)
        any |= src->part[p].bias != NULL;
    return any;
}

enum sl_status cpu_weight_prepare(struct device *d, struct weight *out,
                                  const struct weight_source *src, enum wformat format,
                                  const char *name, struct sl_err *err)
{
    if ((int)format >= N_FORMATS || !d->k.gemm[format])
        return SL_FAIL(err, SL_ENOSUPPORT, "%s: the CPU has no kernel for this weight format",
                       name);
    struct weight w = {.format = format, .cols = src->cols};
    for (int p = 0; p < src->n_parts; p++)
        w.rows += src->part[p].rows;
    if (format == W_I8 && w.cols > 65536) /* 255 * 127 * 65536 still fits the int32 sums */
        return SL_FAIL(err, SL_ENOSUPPORT, "%s: int8 rows longer than 65536", name);
    struct pack p = {src, &w, &d->k, weight_panel_bytes(format, w.cols), n_scales(format, w.cols)};
    size_t data_bytes = p.panel_bytes * (size_t)n_panels(w.rows);
    size_t scale_bytes = (size_t)n_panels(w.rows) * p.n_scales * PANEL * sizeof(float);
    enum sl_status st = linear_reserve(d, w.cols, err);
    if (st != SL_OK)
        return st;
    w.data = cpu_alloc(data_bytes, name, err);
    w.scale = scale_bytes ? cpu_alloc(scale_bytes, name, err) : NULL;
    w.bias = has_bias(src) ? cpu_alloc((size_t)w.rows * sizeof(float), name, err) : NULL;
    w.bytes = data_bytes + scale_bytes;
    if (!w.data || (scale_bytes && !w.scale) || (has_bias(src) && !w.bias)) {
        cpu_weight_release(d, &w);
        return SL_ENOMEM;
    }
    if (w.bias)
        read_bias(w.bias, src);
    pool_for(d->pool, n_panels(w.rows), pack_panel, &p);
    *out = w;
    return SL_OK;
}

void cpu_weight_release(struct device *d, struct weight *w)
{
    (void)d;
    cpu_free(w->data);
    cpu_free(w->scale);
    cpu_free(w->bias);
    *w = (struct weight){0};
}

float *cpu_vector_prepare(struct device *d, const void *src, enum sl_dtype dtype, int n, float add,
                          struct sl_err *err)
{
    (void)d;
    float *v = cpu_alloc((size_t)n * sizeof *v, "vector", err);
    if (!v)
        return NULL;
    read_values(v, src, dtype, n);
    for (int i = 0; i < n; i++)
        v[i] += add;
    return v;
}

/* ---- reading back (embeddings) -------------------------------------------------------------- */

static float element(const char *panel, enum wformat f, const float *scale, int k, int i)
{
    const uint16_t *h = (const uint16_t *)panel;
    switch (f) {
    case W_F32:
        return ((const float *)panel)[(size_t)k * PANEL + i];
    case W_F16:
        return f16_f32(h[(size_t)k * PANEL + i]);
    case W_BF16:
        return bf16_f32(h[((size_t)(k / 2) * PANEL + i) * 2 + k % 2]);
    case W_I8:
        return (float)((uint8_t)panel[((size_t)(k / 4) * PANEL + i) * 4 + k % 4] - 128) * scale[i];
    default:
        break;
    }
    int byte = (uint8_t)panel[((size_t)(k / 8) * PANEL + i) * 4 + k % 4];
    uint32_t pair;
    memcpy(&pair, &scale[(size_t)(k / I4_GROUP) * PANEL + i], sizeof pair);
    float q = (float)(k % 8 < 4 ? byte & 15 : byte >> 4);
    return q * bf16_f32((uint16_t)(pair >> 16)) + bf16_f32((uint16_t)pair);
}

void weight_read_part(const struct weight *w, int row, int k0, int n, float *y)
{
    int panel = row / PANEL, i = row % PANEL;
    const char *data = (const char *)w->data + panel * weight_panel_bytes(w->format, w->cols);
    const float *scale = (const float *)w->scale;
    if (scale)
        scale += (size_t)panel * n_scales(w->format, w->cols) * PANEL;
    for (int k = 0; k < n; k++)
        y[k] = element(data, w->format, scale, k0 + k, i);
}

void weight_read_row(const struct weight *w, int row, float *y)
{
    weight_read_part(w, row, 0, w->cols, y);
}
