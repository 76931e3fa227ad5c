/* linear.c - y = x W^T + bias.
 *
 * Rows are packed once for the format (bf16 pairs, or s8 with a scale per row), then threads take
 * panels of outputs from a counter. When there are many rows, a panel is walked in blocks of k that
 * fit half of a level-2 cache, each serving all rows; with few rows it is read once from front to
 * back. Neither changes a bit (kernels.h, "K order").
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"
#include "base/mem.h"

#include <string.h>

enum {
    K_BLOCK_BYTES = 128 * 1024, /* of a panel */
    ROW_PART = 48,              /* rows an item takes when there are few panels */
    FETCH_ROWS = 8              /* with fewer, reading is all there is to do */
};

/* ---- scratch -------------------------------------------------------------------------------- */

static size_t packed_stride(enum wformat format, bool x_bf16, int cols)
{
    size_t k = (size_t)weight_k_pad(format, cols), row = k * sizeof(float);
    if (format == W_BF16 && x_bf16)
        row = k * 2;
    else if (format == W_I8 || format == W_I4)
        row = k;
    /* An odd number of cache lines, lest a power of two puts all rows into the same sets. */
    return ((row + 63) / 64 | 1) * 64;
}

enum sl_status linear_reserve(struct device *d, int cols, struct sl_err *err)
{
    if (cols <= d->max_cols)
        return SL_OK;
    size_t groups = (size_t)weight_k_pad(W_I4, cols) / I4_GROUP;
    size_t rows = packed_stride(W_BF16, d->k.x_bf16, cols), sums = (groups + 2) * 4;
    if (scratch_need(&d->packed, rows * SLAB_ROWS, "activations", err) != SL_OK ||
        scratch_need(&d->packed_sums, sums * SLAB_ROWS, "activation sums", err) != SL_OK ||
        scratch_need(&d->tail, SLAB_ROWS * PANEL * sizeof(float), "last panel", err) != SL_OK)
        return SL_ENOMEM;
    d->max_cols = cols;
    return SL_OK;
}

/* ---- packing -------------------------------------------------------------------------------- */

struct linear {
    struct device *d;
    const struct weight *w;
    float *y;            /* [rows, w->rows] of this slab */
    const float *x;      /* all rows of the call */
    const int32_t *map;  /* NULL: rows in order */
    int first_row, rows; /* of this slab */
    int k_pad, n_panels, row_parts;
    struct packed p;
};

static const float *source(const struct linear *l, int r)
{
    size_t row = (size_t)(l->map ? l->map[l->first_row + r] : l->first_row + r);
    return l->x + row * (size_t)l->w->cols;
}

static void pack_row(void *ctx, int r, int thread)
{
    struct linear *l = ctx;
    const struct cpu_kernels *k = &l->d->k;
    const float *x = source(l, r);
    char *out = l->p.x + r * l->p.stride;
    int cols = l->w->cols;
    (void)thread;
    switch (l->w->format) {
    case W_I8:
    case W_I4:
        k->quantize((int8_t *)out, &l->p.scale[r], &l->p.group[(size_t)r * l->p.n_groups],
                    &l->p.total[r], x, cols, l->k_pad);
        break;
    case W_BF16:
        if (k->x_bf16) {
            k->to_bf16((uint16_t *)out, x, cols, l->k_pad);
            break;
        } /* fallthrough */
    default:
        memcpy(out, x, (size_t)cols * sizeof *x);
        memset((float *)out + cols, 0, (size_t)(l->k_pad - cols) * sizeof *x);
    }
}

/* Rows that the kernel can read as they are stay where they are. */
static bool pack_in_place(struct linear *l)
{
    bool f32 = l->w->format == W_F32 || l->w->format == W_F16 ||
               (l->w->format == W_BF16 && !l->d->k.x_bf16);
    if (!f32 || l->map || l->k_pad != l->w->cols)
        return false;
    l->p.x = (char *)(uintptr_t)source(l, 0);
    l->p.stride = (size_t)l->w->cols * sizeof(float);
    return true;
}

static void pack_rows(struct linear *l)
{
    struct device *d = l->d;
    l->k_pad = weight_k_pad(l->w->format, l->w->cols);
    l->p.n_groups = weight_k_pad(W_I4, l->w->cols) / I4_GROUP;
    l->p.scale = d->packed_sums.p;
    l->p.total = (int32_t *)(l->p.scale + SLAB_ROWS);
    l->p.group = l->p.total + SLAB_ROWS;
    if (pack_in_place(l))
        return;
    l->p.x = d->packed.p;
    l->p.stride = packed_stride(l->w->format, d->k.x_bf16, l->w->cols);
    if ((size_t)l->rows * l->w->cols > 1 << 15) {
        pool_for(d->pool, l->rows, pack_row, l);
        return;
    }
    for (int r = 0; r < l->rows; r++) /* less than waking a thread takes */
        pack_row(l, r, 0);
}

/* ---- multiplying ---------------------------------------------------------------------------- */

static void add_bias(float *y, size_t ldc, const float *bias, int rows, int n)
{
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < n; i++)
            y[r * ldc + i] += bias[i];
}

/* Where the range of k after this one lies, of the same size: in this panel, or in the one that
 * this thread is likely to take next. */
static const char *next_range(const struct linear *l, const struct gemm *g, int panel, int k)
{
    const struct weight *w = l->w;
    size_t panel_bytes = weight_panel_bytes(w->format, w->cols);
    int next = panel + pool_threads(l->d->pool);
    if (k + 2 * g->k <= l->k_pad)
        return g->w + weight_k_bytes(w->format, g->k);
    if (g->last && l->row_parts == 1 && next < l->n_panels)
        return (const char *)w->data + (size_t)next * panel_bytes;
    return NULL;
}

static void panel_k_blocks(const struct linear *l, struct gemm *g, int panel)
{
    const struct weight *w = l->w;
    const char *data = (const char *)w->data + panel * weight_panel_bytes(w->format, w->cols);
    const char *x = g->x;
    size_t x_bytes = w->format == W_I8 || w->format == W_I4  ? 1
                     : w->format == W_BF16 && l->d->k.x_bf16 ? 2
                                                             : 4;
    int block = (int)(K_BLOCK_BYTES / weight_k_bytes(w->format, 4) * 4);
    bool cut = g->rows > 8 && !l->d->k.whole_k, i4 = w->format == W_I4;
    int scales = i4 ? l->p.n_groups : w->format == W_I8 ? 1 : 0;
    size_t scale = (size_t)panel * scales * PANEL;
    const int32_t *sum = g->x_sum;
    for (int k = 0; k < l->k_pad; k += g->k) {
        g->k = cut && l->k_pad - k > block + block / 2 ? block : l->k_pad - k;
        g->first = k == 0;
        g->last = k + g->k == l->k_pad;
        g->w = data + weight_k_bytes(w->format, k);
        g->ahead = g->rows > FETCH_ROWS ? next_range(l, g, panel, k) : NULL;
        g->x = x + (size_t)k * x_bytes;
        if (i4) {
            g->w_group = (const uint32_t *)w->scale + scale + (size_t)(k / I4_GROUP) * PANEL;
            g->x_sum = sum + k / I4_GROUP;
        } else if (scales) {
            g->w_scale = (const float *)w->scale + scale;
        }
        l->d->k.gemm[w->format](g);
    }
}

static void run_item(void *ctx, int item, int thread)
{
    const struct linear *l = ctx;
    const struct weight *w = l->w;
    int panel = item / l->row_parts, part = item % l->row_parts;
    int r0 = (int)((int64_t)l->rows * part / l->row_parts);
    int r1 = (int)((int64_t)l->rows * (part + 1) / l->row_parts);
    int n = w->rows - panel * PANEL < PANEL ? w->rows - panel * PANEL : PANEL;
    float *y = l->y + (size_t)r0 * w->rows + (size_t)panel * PANEL;
    float *tail = (float *)l->d->tail.p + (size_t)r0 * PANEL; /* one last panel: rows suffice */
    bool whole = n == PANEL;
    struct gemm g = {
        .c = whole ? y : tail,
        .ldc = whole ? (size_t)w->rows : PANEL,
        .x = l->p.x + r0 * l->p.stride,
        .x_stride = l->p.stride,
        .rows = r1 - r0,
        .x_scale = l->p.scale + r0,
        .x_sum = w->format == W_I4 ? l->p.group + (size_t)r0 * l->p.n_groups : l->p.total + r0,
        .x_sum_stride = (size_t)l->p.n_groups,
    };
    (void)thread;
    panel_k_blocks(l, &g, panel);
    for (int r = 0; r < g.rows && !whole; r++)
        memcpy(y + (size_t)r * w->rows, tail + (size_t)r * PANEL, (size_t)n * sizeof *y);
    if (w->bias)
        add_bias(y, (size_t)w->rows, (const float *)w->bias + (size_t)panel * PANEL, g.rows, n);
}

static int row_parts(const struct linear *l)
{
    int enough = 4 * pool_threads(l->d->pool), most = (l->rows + ROW_PART - 1) / ROW_PART;
    int parts = (enough + l->n_panels - 1) / l->n_panels;
    return parts < most ? parts : most;
}

void linear_rows(struct device *d, float *y, const struct weight *w, const float *x,
                 const int32_t *map, int rows)
{
    for (int r = 0; r < rows; r += SLAB_ROWS) {
        struct linear l = {.d = d, .w = w, .x = x, .map = map, .first_row = r};
        l.y = y + (size_t)r * w->rows;
        l.rows = rows - r < SLAB_ROWS ? rows - r : SLAB_ROWS;
        l.n_panels = (w->rows + PANEL - 1) / PANEL;
        l.row_parts = row_parts(&l);
        pack_rows(&l);
        pool_for(d->pool, l.n_panels * l.row_parts, run_item, &l);
    }
}
