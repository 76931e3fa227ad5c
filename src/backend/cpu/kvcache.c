/* kvcache.c - the paged cache in tiles, and the op that fills it.
 *
 * A block holds, for each layer and KV head, its K tiles and then its V tiles (kernels.h). Block
 * sizes that are not multiples of TILE_POS leave their last tile partly unused; attention then
 * regroups positions before it reads them.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"
#include "base/half.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

/* ---- memory --------------------------------------------------------------------------------- */

static size_t element_bytes(enum wformat f)
{
    return f == W_F32 ? 4 : f == W_I8 ? 1 : 2;
}

static enum sl_status group_create(struct device *d, struct kv_group_memory *g,
                                   const struct kv_layout *l, int index,
                                   const struct attn_spec *layers, int n_layers, struct sl_err *err)
{
    for (int i = 0; i < n_layers; i++) {
        const struct attn_spec *a = &layers[i];
        if (a->group != index)
            continue;
        if (a->layer_in_group < 0 || a->head_dim < 1 || a->head_dim > HEAD_DIM_MAX ||
            (g->n_layers && (g->n_kv_heads != a->n_kv_heads || g->head_dim != a->head_dim)))
            return SL_FAIL(err, SL_ENOSUPPORT, "KV cache: layer %d does not fit its group", i);
        g->n_kv_heads = a->n_kv_heads;
        g->head_dim = a->head_dim;
        if (g->n_layers <= a->layer_in_group)
            g->n_layers = a->layer_in_group + 1;
    }
    g->hd_pad = (g->head_dim + 15) & ~15;
    g->tiles = (l->block_size + TILE_POS - 1) / TILE_POS;
    g->tile_bytes = (size_t)TILE_POS * g->hd_pad * element_bytes(d->kv.format);
    if (d->kv.format == W_I8)
        g->tile_bytes += TILE_POS * sizeof(float);
    g->head_bytes = 2 * g->tile_bytes * g->tiles;
    g->block_bytes = g->head_bytes * g->n_kv_heads;
    g->layer_bytes = g->block_bytes * (size_t)(l->n_blocks + l->n_host_blocks);
    if (g->n_layers == 0)
        return SL_OK;
    g->data = cpu_alloc(g->layer_bytes * g->n_layers, "KV cache", err);
    return g->data ? SL_OK : SL_ENOMEM;
}

enum sl_status kv_cache_create(struct device *d, const struct kv_layout *layout,
                               const struct attn_spec *layers, int n_layers, enum wformat format,
                               struct sl_err *err)
{
    if ((int)format >= N_FORMATS || !d->k.qk[format])
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "kv_cache_dtype",
                             "the CPU has no FP8 KV cache; its 8-bit type is int8");
    kv_cache_fini(d);
    d->kv.layout = *layout;
    d->kv.format = format;
    for (int i = 0; i < layout->n_groups; i++) {
        enum sl_status st = group_create(d, &d->kv.group[i], layout, i, layers, n_layers, err);
        if (st != SL_OK)
            return st;
    }
    return attention_reserve(d, layers, n_layers, err);
}

void kv_cache_fini(struct device *d)
{
    for (int i = 0; i < KV_GROUPS_MAX; i++)
        cpu_free(d->kv.group[i].data);
    d->kv = (struct kv_cache){0};
}

char *kv_tile(const struct kv_group_memory *g, int layer, int block, int head, int offset)
{
    return g->data + layer * g->layer_bytes + block * g->block_bytes + head * g->head_bytes +
           offset / TILE_POS * g->tile_bytes;
}

static void copy_block(void *ctx, int i, int thread)
{
    const struct device *d = ctx;
    const struct block_copy *c = &d->batch->copy[i];
    const struct kv_group_memory *g = &d->kv.group[c->group];
    int src = (int)block_copy_src(c, d->kv.layout.n_blocks);
    int dst = (int)block_copy_dst(c, d->kv.layout.n_blocks);
    (void)thread;
    for (int l = 0; l < g->n_layers; l++)
        memcpy(kv_tile(g, l, dst, 0, 0), kv_tile(g, l, src, 0, 0), g->block_bytes);
}

void kv_cache_copy_blocks(struct device *d)
{
    for (int i = 0; i < d->batch->n_copies; i++) /* in order: a copy may feed the next */
        copy_block(d, i, 0);
}

/* ---- writing one position ------------------------------------------------------------------- */

static void write_f32(float *k_tile, float *v_tile, int lane, const float *k, const float *v,
                      const struct kv_group_memory *g)
{
    for (int i = 0; i < g->head_dim; i++)
        k_tile[i * TILE_POS + lane] = k[i];
    memcpy(v_tile + (size_t)lane * g->hd_pad, v, (size_t)g->head_dim * sizeof *v);
}

static void write_f16(uint16_t *k_tile, uint16_t *v_tile, int lane, const float *k, const float *v,
                      const struct kv_group_memory *g)
{
    for (int i = 0; i < g->head_dim; i++) {
        k_tile[i * TILE_POS + lane] = f32_f16(k[i]);
        v_tile[lane * g->hd_pad + i] = f32_f16(v[i]);
    }
}

static void write_bf16(const struct device *d, uint16_t *k_tile, uint16_t *v_tile, int lane,
                       const float *k, const float *v, const struct kv_group_memory *g)
{
    uint16_t kb[HEAD_DIM_MAX], vb[HEAD_DIM_MAX];
    d->k.to_bf16(kb, k, g->head_dim, g->hd_pad);
    d->k.to_bf16(vb, v, g->head_dim, g->hd_pad);
    for (int i = 0; i < g->hd_pad; i += 2)
        memcpy(&k_tile[(i / 2 * TILE_POS + lane) * 2], &kb[i], 4);
    uint16_t *out = v_tile + (size_t)(lane / 2) * g->hd_pad * 2 + lane % 2;
    for (int i = 0; i < g->hd_pad; i++)
        out[2 * i] = vb[i];
}

/* K and V of one position, each with its own scale. */
static void write_i8(const struct device *d, char *k_tile, char *v_tile, int lane, const float *k,
                     const float *v, const struct kv_group_memory *g)
{
    enum { PAD = HEAD_DIM_MAX };
    int8_t kb[PAD], vb[PAD];
    int32_t sum[PAD / I4_GROUP], total;
    float *k_scale = (float *)(k_tile + i8_scale_at(g->hd_pad)) + lane;
    float *v_scale = (float *)(v_tile + i8_scale_at(g->hd_pad)) + lane;
    int n_pad = (g->head_dim + I4_GROUP - 1) / I4_GROUP * I4_GROUP;
    d->k.quantize(kb, k_scale, sum, &total, k, g->head_dim, n_pad);
    d->k.quantize(vb, v_scale, sum, &total, v, g->head_dim, n_pad);
    for (int i = 0; i < g->hd_pad; i += 2)
        memcpy(&k_tile[(i / 2 * TILE_POS + lane) * 2], &kb[i], 2);
    char *out = v_tile + (size_t)(lane / 2) * g->hd_pad * 2 + lane % 2;
    for (int i = 0; i < g->hd_pad; i++)
        out[2 * i] = (char)vb[i];
}

static void write_position(const struct device *d, const struct kv_group_memory *g, int layer,
                           int slot, int head, const float *k, const float *v)
{
    int bs = d->kv.layout.block_size, offset = slot % bs, lane = offset % TILE_POS;
    char *kt = kv_tile(g, layer, slot / bs, head, offset), *vt = kt + g->tile_bytes * g->tiles;
    if (d->kv.format == W_F32)
        write_f32((float *)kt, (float *)vt, lane, k, v, g);
    else if (d->kv.format == W_F16)
        write_f16((uint16_t *)kt, (uint16_t *)vt, lane, k, v, g);
    else if (d->kv.format == W_I8)
        write_i8(d, kt, vt, lane, k, v, g);
    else
        write_bf16(d, (uint16_t *)kt, (uint16_t *)vt, lane, k, v, g);
}

/* ---- rope ----------------------------------------------------------------------------------- */

struct rope_fill {
    const struct batch *b;
    const struct rope *rope;
    float *cos_sin;
    int half;
};

/* The angle is rounded to f32 first, as in the models' own code; its sine and cosine are exact. */
static void rope_row(void *ctx, int r, int thread)
{
    const struct rope_fill *f = ctx;
    float *c = f->cos_sin + (size_t)r * 2 * f->half, *s = c + f->half;
    (void)thread;
    for (int i = 0; i < f->half; i++) {
        double angle = (float)f->b->pos[r] * f->rope->inv_freq[i], sn, cs;
        sincos(angle, &sn, &cs);
        c[i] = (float)cs * f->rope->mscale;
        s[i] = (float)sn * f->rope->mscale;
    }
}

/* cos and sin of this step's rows, computed once for all layers that share the frequencies.
 * NULL: no memory (kept in d->err). */
static const float *rope_table(struct device *d, const struct rope *rope)
{
    struct rope_table *t = NULL;
    for (int i = ROPE_TABLES - 1; i >= 0; i--) {
        if (d->rope[i].inv_freq == rope->inv_freq && d->rope[i].mscale == rope->mscale)
            return d->rope[i].cos_sin.p;
        if (!d->rope[i].inv_freq)
            t = &d->rope[i];
    }
    if (!t) /* more kinds than tables: the last is made again and again */
        t = &d->rope[ROPE_TABLES - 1];
    int half = rope->rot_dims / 2;
    size_t bytes = (size_t)d->batch->limits.max_tokens * (size_t)half * 2 * sizeof(float);
    if (scratch_need(&t->cos_sin, bytes, "rope table", &d->err) != SL_OK)
        return NULL;
    t->inv_freq = rope->inv_freq;
    t->mscale = rope->mscale;
    struct rope_fill f = {d->batch, rope, t->cos_sin.p, half};
    if (d->batch->n_tokens < 16)
        for (int r = 0; r < d->batch->n_tokens; r++)
            rope_row(&f, r, 0);
    else
        pool_for(d->pool, d->batch->n_tokens, rope_row, &f);
    return t->cos_sin.p;
}

static void rotate(float *x, const float *c, const float *s, int half, bool interleaved)
{
    for (int i = 0; i < half; i++) {
        float *a = interleaved ? x + 2 * i : x + i, *b = interleaved ? a + 1 : x + half + i;
        float u = *a, v = *b;
        *a = u * c[i] - v * s[i];
        *b = v * c[i] + u * s[i];
    }
}

/* ---- the op --------------------------------------------------------------------------------- */

struct qkv_job {
    const struct device *d;
    const struct attn_spec *a;
    const struct rope *rope;
    const struct norm *q_norm, *k_norm;
    const float *cos_sin;
    float *qkv;
};

/* The heads of q (or k) in one row. */
static void norm_heads(const struct device *d, float *x, const struct norm *norm, enum qk_norm kind,
                       int n_heads, int hd)
{
    if (kind == QK_NORM_ALL) {
        d->k.norm(x, x, norm, n_heads * hd);
        return;
    }
    for (int h = 0; h < n_heads; h++, x += hd) {
        struct norm own = *norm;
        if (kind == QK_NORM_HEADS)
            own.w += (size_t)h * hd;
        d->k.norm(x, x, &own, hd);
    }
}

static void qkv_row(void *ctx, int r, int thread)
{
    const struct qkv_job *j = ctx;
    const struct attn_spec *a = j->a;
    const struct batch *b = j->d->batch;
    int hd = a->head_dim, half = j->cos_sin ? j->rope->rot_dims / 2 : 0;
    float *q = j->qkv + (size_t)r * (a->n_heads + 2 * a->n_kv_heads) * hd;
    float *k = q + (size_t)a->n_heads * hd, *v = k + (size_t)a->n_kv_heads * hd;
    const float *c = j->cos_sin ? j->cos_sin + (size_t)r * 2 * half : NULL;
    (void)thread;
    if (j->q_norm)
        norm_heads(j->d, q, j->q_norm, a->qk_norm, a->n_heads, hd);
    if (j->k_norm)
        norm_heads(j->d, k, j->k_norm, a->qk_norm, a->n_kv_heads, hd);
    for (int h = 0; c && h < a->n_heads + a->n_kv_heads; h++)
        rotate(q + (size_t)h * hd, c, c + half, half, j->rope->interleaved);
    int slot = b->slot[(size_t)a->group * b->limits.max_tokens + r];
    for (int h = 0; h < a->n_kv_heads; h++)
        write_position(j->d, &j->d->kv.group[a->group], a->layer_in_group, slot, h,
                       k + (size_t)h * hd, v + (size_t)h * hd);
}

void cpu_qkv_rope_cache(struct device *d, void *qkv, const struct attn_spec *a,
                        const struct rope *rope, const struct norm *q_norm,
                        const struct norm *k_norm)
{
    struct qkv_job j = {d, a, rope, q_norm, k_norm, NULL, qkv};
    if (rope && rope->inv_freq && rope->rot_dims > 1) {
        j.cos_sin = rope_table(d, rope);
        if (!j.cos_sin)
            return;
    }
    if (d->batch->n_tokens < 4)
        for (int r = 0; r < d->batch->n_tokens; r++)
            qkv_row(&j, r, 0);
    else
        pool_for(d->pool, d->batch->n_tokens, qkv_row, &j);
}
