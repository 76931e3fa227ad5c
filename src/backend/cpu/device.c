/* device.c - the CPU as an ops table.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"

#include "backend/host_moe.h"
#include "base/log.h"
#include "base/mem.h"

#include <string.h>

/* ---- memory --------------------------------------------------------------------------------- */

enum { HEADER = 64, PAGES_FROM = 1 << 20 }; /* larger buffers come from the kernel, huge pages */

void *cpu_alloc(size_t bytes, const char *name, struct sl_err *err)
{
    size_t total = bytes + HEADER;
    char *p = NULL;
    if (total > bytes)
        p = total >= PAGES_FROM ? mem_pages(total) : mem_aligned(1, total, HEADER);
    if (!p) {
        SL_FAIL(err, SL_ENOMEM, "no memory for %s (%zu bytes)", name, bytes);
        return NULL;
    }
    if (total < PAGES_FROM)
        memset(p, 0, total);
    memcpy(p, &total, sizeof total);
    return p + HEADER;
}

void cpu_free(void *p)
{
    if (!p)
        return;
    size_t total;
    char *start = (char *)p - HEADER;
    memcpy(&total, start, sizeof total);
    if (total >= PAGES_FROM)
        mem_pages_free(start, total);
    else
        mem_free(start);
}

enum sl_status scratch_need(struct scratch *s, size_t bytes, const char *name, struct sl_err *err)
{
    if (bytes <= s->bytes)
        return SL_OK;
    cpu_free(s->p);
    s->bytes = 0;
    s->p = cpu_alloc(bytes, name, err);
    if (!s->p)
        return SL_ENOMEM;
    s->bytes = bytes;
    return SL_OK;
}

static void scratch_fini(struct scratch *s)
{
    cpu_free(s->p);
    *s = (struct scratch){0};
}

/* ---- the ops that are one line here --------------------------------------------------------- */

static void *dev_alloc(struct device *d, size_t bytes, const char *name, struct sl_err *err)
{
    (void)d;
    return cpu_alloc(bytes, name, err);
}

static void dev_free(struct device *d, void *p)
{
    (void)d;
    cpu_free(p);
}

static bool dev_supports(struct device *d, enum sl_dtype dtype)
{
    (void)d;
    return dtype == SL_DTYPE_F32 || dtype == SL_DTYPE_F16 || dtype == SL_DTYPE_BF16;
}

static enum sl_status dev_kv_create(struct device *d, const struct kv_layout *layout,
                                    const struct attn_spec *layers, int n_layers,
                                    enum wformat kv_format, struct sl_err *err)
{
    enum sl_status st = kv_cache_create(d, layout, layers, n_layers, kv_format, err);
    if (st != SL_OK)
        kv_cache_fini(d);
    return st;
}

static void dev_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows)
{
    linear_rows(d, y, w, x, NULL, rows);
}

static void dev_logits(struct device *d, float *logits, const struct weight *w, const void *x,
                       int first, int n, float scale, float softcap)
{
    linear_rows(d, logits, w, x, d->batch->logit_row + first, n);
    if (scale != 1 || softcap != 0)
        for (int i = 0; i < n; i++)
            d->k.softcap(logits + (size_t)i * w->rows, scale, softcap, w->rows);
}

/* ---- a step --------------------------------------------------------------------------------- */

static enum sl_status dev_begin(struct device *d, const struct batch *b, struct sl_err *err)
{
    size_t items = ((size_t)b->limits.max_seqs + 1) * sizeof(int32_t);
    if (scratch_need(&d->attn_items, items, "attention items", err) != SL_OK)
        return SL_ENOMEM;
    d->batch = b;
    d->err = (struct sl_err){0};
    for (int i = 0; i < ROPE_TABLES; i++)
        d->rope[i].inv_freq = NULL;
    kv_cache_copy_blocks(d);
    return SL_OK;
}

static enum sl_status dev_end(struct device *d, struct sl_err *err)
{
    d->batch = NULL;
    if (d->err.code == SL_OK)
        return SL_OK;
    return SL_FAIL(err, d->err.code, "%s", d->err.msg);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void dev_destroy(struct device *d)
{
    if (!d)
        return;
    kv_cache_fini(d);
    for (int i = 0; i < ROPE_TABLES; i++)
        scratch_fini(&d->rope[i].cos_sin);
    scratch_fini(&d->packed);
    scratch_fini(&d->packed_sums);
    scratch_fini(&d->sums);
    scratch_fini(&d->attn_threads);
    scratch_fini(&d->attn_split);
    scratch_fini(&d->attn_items);
    pool_destroy(&d->pool);
    mem_free(d);
}

static void dev_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
                    void *scratch);

static const struct ops cpu_ops = {
    .name = "cpu",
    .act_bytes = sizeof(float),
    .head_dim_max = HEAD_DIM_MAX,
    .alloc = dev_alloc,
    .free = dev_free,
    .supports = dev_supports,
    .weight_prepare = cpu_weight_prepare,
    .weight_release = cpu_weight_release,
    .vector_prepare = cpu_vector_prepare,
    .kv_create = dev_kv_create,
    .begin = dev_begin,
    .end = dev_end,
    .embed = cpu_embed,
    .embed_types = cpu_embed_types,
    .residual = cpu_residual,
    .add_norm = cpu_add_norm,
    .norm = cpu_norm,
    .linear = dev_linear,
    .linear_act = cpu_linear_act,
    .qkv_rope_cache = cpu_qkv_rope_cache,
    .attention = cpu_attention,
    .act = cpu_act,
    .logits = dev_logits,
    .moe = dev_moe,
    .moe_bytes = host_moe_bytes,
    .destroy = dev_destroy,
};

static void dev_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
                    void *scratch)
{
    host_moe(&cpu_ops, d, out, x, m, rows, scratch);
}

enum sl_status cpu_device_create(const struct ops **ops, struct device **out, int threads,
                                 struct sl_err *err)
{
    struct device *d = mem_zalloc(1, sizeof *d);
    if (!d)
        return SL_FAIL(err, SL_ENOMEM, "no memory for the CPU device");
    enum sl_status st = pool_create(&d->pool, threads, err);
    if (st != SL_OK) {
        dev_destroy(d);
        return st;
    }
    cpu_kernels_init(&d->k, cpu_isa_current());
    log_info("CPU: %d threads, %s kernels", pool_threads(d->pool), cpu_isa_name(d->k.isa));
    *ops = &cpu_ops;
    *out = d;
    return SL_OK;
}
