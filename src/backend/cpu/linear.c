/* linear.c - y = x W^T + bias, and what follows it element by element.
 *
 * Rows are packed once for the format (bf16 pairs, or s8 with a scale per row), then threads take
 * panels of outputs from a counter. A panel's sums gather in a few rows of the thread's own memory
 * and go out once, with bias and activation: rows of y lie a power of two apart, which caches do
 * not like.
 *
 * Few rows: a panel is read once from front to back. Many: AVX walks it in blocks of k that fit
 * half of a level-2 cache, each serving all rows. Tiles are faster than what lies beyond that
 * cache, so there the rows come in parts, and k in ranges, whose activations stay in it. None of
 * this changes a bit (kernels.h, "K order").
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"
#include "base/mem.h"

#include <string.h>

enum {
    K_BLOCK_BYTES = 128 * 1024, /* of a panel */
    ROW_PART = 48,              /* rows an item takes when there are few panels */
    FETCH_ROWS = 8,             /* with fewer, reading is all there is to do */
    K_RANGE_BYTES = 4096,       /* of a row of activations, where they have to stay cached */
    SUMS_BYTES = 2 * SLAB_ROWS * PANEL * 4 /* of a thread: a panel of gates and one of the rest */
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
        scratch_need(&d->sums, (size_t)pool_threads(d->pool) * SUMS_BYTES, "sums", err) != SL_OK)
        return SL_ENOMEM;
    d->max_cols = cols;
    return SL_OK;
}

/* ---- packing -------------------------------------------------------------------------------- */

struct activation {
    enum act_kind kind;
    bool gated;
};

struct linear {
    struct device *d;
    const struct weight *w;
    float *y;            /* [rows, n_out] of this slab */
    float *partial;      /* [rows, w->rows] of this slab: sums between ranges of k; may be y */
    const float *x;      /* all rows of the call */
    const int32_t *map;  /* NULL: rows in order */
    int first_row, rows; /* of this slab */
    const struct activation *act; /* NULL: none */
    int n_out;
    int k_pad, k0, k1; /* the range of k at hand */
    int n_items;       /* of a part of the rows: panels, or pairs of them */
    int part_rows;
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

static size_t x_bytes(const struct linear *l) /* of one value */
{
    enum wformat f = l->w->format;
    return f == W_I8 || f == W_I4 ? 1 : f == W_BF16 && l->d->k.x_bf16 ? 2 : 4;
}

/* Where the range of k after this one lies, of the same size: in this panel, or in the one that
 * this thread is likely to take next. */
static const char *next_range(const struct linear *l, const struct gemm *g, int panel, int k)
{
    const struct weight *w = l->w;
    int next = panel % l->n_items + pool_threads(l->d->pool);
    if (k + 2 * g->k <= l->k1)
        return g->w + weight_k_bytes(w->format, g->k);
    if (k + g->k < l->k1)
        return NULL;
    if (l->act && l->act->gated && panel < l->n_items)
        next = panel + l->n_items;
    else if (next >= l->n_items)
        return NULL;
    return (const char *)w->data + (size_t)next * weight_panel_bytes(w->format, w->cols) +
           weight_k_bytes(w->format, l->k0);
}

/* One panel's sums for g->rows rows; g->x: the rows' first values. */
static void multiply_panel(const struct linear *l, struct gemm g, int panel)
{
    const struct weight *w = l->w;
    const char *data = (const char *)w->data + panel * weight_panel_bytes(w->format, w->cols);
    const char *x = g.x;
    int block = (int)(K_BLOCK_BYTES / weight_k_bytes(w->format, 4) * 4);
    bool cut = g.rows > 8 && !l->d->k.whole_k[w->format], i4 = w->format == W_I4;
    int scales = i4 ? l->p.n_groups : w->format == W_I8 ? 1 : 0;
    size_t scale = (size_t)panel * scales * PANEL;
    const int32_t *sum = g.x_sum;
    for (int k = l->k0; k < l->k1; k += g.k) {
        g.k = cut && l->k1 - k > block + block / 2 ? block : l->k1 - k;
        g.first = k == 0;
        g.last = k + g.k == l->k_pad;
        g.w = data + weight_k_bytes(w->format, k);
        g.ahead = g.rows > FETCH_ROWS ? next_range(l, &g, panel, k) : NULL;
        g.x = x + (size_t)k * x_bytes(l);
        if (i4) {
            g.w_group = (const uint32_t *)w->scale + scale + (size_t)(k / I4_GROUP) * PANEL;
            g.x_sum = sum + k / I4_GROUP;
        } else if (scales) {
            g.w_scale = (const float *)w->scale + scale;
        }
        l->d->k.gemm[w->format](&g);
    }
}

/* ---- a panel's sums, in and out ------------------------------------------------------------- */

/* What an item does: rows [r0, r0 + rows) of the slab, all outputs of one panel. */
struct part {
    const struct linear *l;
    int r0, rows, panel, n; /* n: outputs that count */
    float *c;               /* [rows][PANEL] */
};

static struct part make_part(const struct linear *l, int r0, int panel, float *c)
{
    int left = l->w->rows - panel * PANEL, most = l->rows - r0;
    return (struct part){.l = l,
                         .r0 = r0,
                         .rows = most < l->part_rows ? most : l->part_rows,
                         .panel = panel,
                         .n = left < PANEL ? left : PANEL,
                         .c = c};
}

static float *partial_at(const struct part *p, int r)
{
    return p->l->partial + (size_t)(p->r0 + r) * p->l->w->rows + (size_t)p->panel * PANEL;
}

static void sum_part(const struct part *p)
{
    const struct linear *l = p->l;
    struct gemm g = {.c = p->c,
                     .ldc = PANEL,
                     .x = l->p.x + p->r0 * l->p.stride,
                     .x_stride = l->p.stride,
                     .rows = p->rows,
                     .x_scale = l->p.scale + p->r0,
                     .x_sum = l->w->format == W_I4 ? l->p.group + (size_t)p->r0 * l->p.n_groups
                                                   : l->p.total + p->r0,
                     .x_sum_stride = (size_t)l->p.n_groups};
    for (int r = 0; l->k0 > 0 && r < p->rows; r++)
        memcpy(p->c + (size_t)r * PANEL, partial_at(p, r), (size_t)p->n * sizeof *p->c);
    multiply_panel(l, g, p->panel);
    if (l->k1 < l->k_pad) {
        for (int r = 0; r < p->rows; r++)
            memcpy(partial_at(p, r), p->c + (size_t)r * PANEL, (size_t)p->n * sizeof *p->c);
        return;
    }
    const float *bias = (const float *)l->w->bias;
    for (int r = 0; bias && r < p->rows; r++)
        for (int i = 0; i < p->n; i++)
            p->c[(size_t)r * PANEL + i] += bias[(size_t)p->panel * PANEL + i];
}

static void run_item(void *ctx, int item, int thread)
{
    const struct linear *l = ctx;
    bool gated = l->act && l->act->gated;
    int panel = item % l->n_items, r0 = item / l->n_items * l->part_rows;
    float *c = (float *)((char *)l->d->sums.p + (size_t)thread * SUMS_BYTES);
    float *up_sums = c + SUMS_BYTES / 2 / sizeof *c;
    struct part p = make_part(l, r0, panel, c);
    sum_part(&p);
    if (gated) {
        struct part up = make_part(l, r0, panel + l->n_items, up_sums);
        sum_part(&up);
    }
    if (l->k1 < l->k_pad)
        return;
    for (int r = 0; r < p.rows; r++, c += PANEL, up_sums += PANEL) {
        float *y = l->y + (size_t)(r0 + r) * l->n_out + (size_t)panel * PANEL;
        if (l->act)
            l->d->k.act(y, c, gated ? up_sums : NULL, l->act->kind, p.n);
        else
            memcpy(y, c, (size_t)p.n * sizeof *y);
    }
}

/* ---- sharing out ---------------------------------------------------------------------------- */

static size_t x_cache(const struct linear *l) /* 0: any amount of activations will do */
{
    return l->d->k.whole_k[l->w->format] ? l->d->k.x_cache : 0;
}

/* Rows of an item: all of them, unless their activations are to stay in the cache, or panels are
 * too few to keep all threads busy. */
static void cut_rows(struct linear *l, size_t k_bytes)
{
    size_t most = x_cache(l);
    int enough = 4 * pool_threads(l->d->pool), parts = (enough + l->n_items - 1) / l->n_items;
    int limit = (l->rows + ROW_PART - 1) / ROW_PART, cached = 1;
    if (most)
        cached = (int)(((size_t)l->rows * k_bytes + most - 1) / most);
    parts = parts < limit ? parts : limit;
    parts = parts > cached ? parts : cached;
    l->part_rows = ((l->rows + parts - 1) / parts + 31) / 32 * 32;
}

static void linear_slab(struct linear *l)
{
    struct device *d = l->d;
    pack_rows(l);
    size_t row = (size_t)l->k_pad * x_bytes(l), range = row, most = x_cache(l);
    if (most && (size_t)l->rows * row > most && row > K_RANGE_BYTES)
        range = K_RANGE_BYTES;
    cut_rows(l, range);
    int k = (int)(range / x_bytes(l)), parts = (l->rows + l->part_rows - 1) / l->part_rows;
    for (l->k0 = 0; l->k0 < l->k_pad; l->k0 = l->k1) {
        l->k1 = l->k_pad - l->k0 > k ? l->k0 + k : l->k_pad;
        pool_for(d->pool, l->n_items * parts, run_item, l);
    }
}

static void linear_all(struct linear *l, float *y, float *partial, int rows)
{
    for (int r = 0; r < rows; r += SLAB_ROWS) {
        l->first_row = r;
        l->rows = rows - r < SLAB_ROWS ? rows - r : SLAB_ROWS;
        l->y = y + (size_t)r * l->n_out;
        l->partial = partial + (size_t)r * l->w->rows;
        linear_slab(l);
    }
}

void linear_rows(struct device *d, float *y, const struct weight *w, const float *x,
                 const int32_t *map, int rows)
{
    struct linear l = {.d = d, .w = w, .x = x, .map = map, .n_out = w->rows};
    l.n_items = (w->rows + PANEL - 1) / PANEL;
    linear_all(&l, y, y, rows);
}

void cpu_linear_act(struct device *d, void *y, void *wide, const struct weight *w, const void *x,
                    enum act_kind kind, bool gated, int rows)
{
    struct activation act = {kind, gated};
    struct linear l = {.d = d, .w = w, .x = x, .act = &act};
    l.n_out = gated ? w->rows / 2 : w->rows;
    l.n_items = (l.n_out + PANEL - 1) / PANEL;
    if (gated && l.n_out % PANEL) { /* gates and the rest share a panel */
        linear_rows(d, wide, w, x, NULL, rows);
        cpu_act(d, y, wide, kind, gated, rows, l.n_out);
        return;
    }
    linear_all(&l, y, wide, rows);
}
