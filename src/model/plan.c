/* SPDX-License-Identifier: Apache-2.0 */
#include "model/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSORS = 1 << 20 }; /* the largest mixtures have a tenth of it */

/* Whether this spec has the row (in this layer). */
static bool has_row(const struct model_spec *s, const struct tensor_row *row, int layer)
{
    unsigned have = 0;
    have |= s->tied || s->pool.only ? 0 : WHEN_UNTIED;
    have |= s->pool.classify ? WHEN_CLASSIFY : 0;
    have |= s->qkv_bias ? WHEN_QKV_BIAS : 0;
    have |= s->o_bias ? WHEN_O_BIAS : 0;
    have |= s->mlp_bias ? WHEN_MLP_BIAS : 0;
    have |= s->has_qk_norm ? WHEN_QK_NORM : 0;
    have |= s->one_norm ? 0 : WHEN_TWO_NORMS;
    have |= layer >= 0 && s->layer[layer].moe ? WHEN_MOE : WHEN_DENSE;
    have |= s->other_names ? WHEN_OTHER_NAME : WHEN_ONE_NAME;
    have |= s->shared_ffn ? WHEN_SHARED : 0;
    have |= s->shared_gate ? WHEN_SHARED_GATE : 0;
    have |= s->no_final_norm ? 0 : WHEN_FINAL_NORM;
    have |= s->embed_width ? WHEN_PROJECTED : 0;
    return (have & row->when) == row->when;
}

static int times(const struct model_spec *s, const struct tensor_row *row)
{
    switch (row->times) {
    case ONCE:
        return 1;
    case PER_Q_HEAD:
        return s->n_heads;
    case PER_KV_HEAD:
        return s->n_kv_heads;
    case PER_EXPERT:
        return s->n_experts;
    }
    return 0;
}

typedef bool (*tensor_fn)(void *ctx, const struct tensor_row *row, int layer, int index);
static bool each_row(const struct model_spec *s, const struct tensor_row *rows, tensor_fn fn,
                     void *ctx)
{
    for (const struct tensor_row *r = rows; r->name; r++) {
        bool in_layer = slot_is_layer(r->slot);
        for (int l = in_layer ? 0 : -1; l < (in_layer ? s->n_layers : 0); l++)
            for (int i = 0; has_row(s, r, l) && i < times(s, r); i++)
                if (!fn(ctx, r, l, i))
                    return false;
    }
    return true;
}

/* Calls fn for every tensor of the spec, in the table's order. */
static bool each_tensor(const struct model_spec *s, tensor_fn fn, void *ctx)
{
    return each_row(s, s->family->rows, fn, ctx) &&
           (!s->pool.head_rows || each_row(s, s->pool.head_rows, fn, ctx));
}

struct counting {
    const struct model_spec *s;
    uint64_t params;
    size_t n;
};

static bool count_tensor(void *ctx, const struct tensor_row *r, int layer, int index)
{
    struct counting *c = ctx;
    (void)layer;
    c->n++;
    bool table = (r->slot == SLOT_EMBED && (!c->s->tied || c->s->pool.only)) ||
                 r->slot == SLOT_POSITIONS || r->slot == SLOT_TYPES;
    table = table || (r->slot == SLOT_HEAD_OUT && c->s->pool.head_token); /* a few rows of it */
    if (!table && (r->times != PER_EXPERT || index < c->s->top_k))
        c->params += (uint64_t)spec_dim(c->s, r->rows) * (uint64_t)spec_dim(c->s, r->cols);
    return true;
}

uint64_t plan_step_parameters(const struct model_spec *s)
{
    struct counting c = {.s = s};
    each_tensor(s, count_tensor, &c);
    return c.params;
}

static int by_slot(const void *a, const void *b)
{
    const struct plan_tensor *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->row->slot != y->row->slot)
        return x->row->slot < y->row->slot ? -1 : 1;
    if (x->index != y->index)
        return x->index < y->index ? -1 : 1;
    if (x->row->bias != y->row->bias)
        return x->row->bias ? 1 : -1;
    return x->row->part - y->row->part;
}

/* "a.%d.b" with the layer's number, and the same for "%e" and the index. */
static const char *expand(struct arena *a, const char *pattern, int layer, int index)
{
    char name[256];
    size_t n = 0;
    for (const char *p = pattern; *p && n < sizeof name - 16; p++) {
        if (p[0] == '%') {
            n += (size_t)snprintf(name + n, sizeof name - n, "%d", p[1] == 'd' ? layer : index);
            p++;
        } else {
            name[n++] = *p;
        }
    }
    name[n] = 0;
    return arena_strndup(a, name, n);
}

struct planning {
    struct plan *p;
    const struct model_spec *s;
};

static bool plan_tensor(void *ctx, const struct tensor_row *r, int layer, int index)
{
    struct planning *x = ctx;
    struct plan_tensor *t = &x->p->tensor[x->p->n++];
    *t = (struct plan_tensor){.row = r,
                              .layer = layer,
                              .index = index,
                              .rows = spec_dim(x->s, r->rows),
                              .cols = spec_dim(x->s, r->cols)};
    t->name = expand(&x->p->arena, r->name, layer, index);
    return t->name != NULL;
}

enum sl_status plan_create(struct plan *p, const struct model_spec *s, struct sl_err *err)
{
    struct counting c = {.s = s};
    struct planning x = {p, s};
    *p = (struct plan){0};
    each_tensor(s, count_tensor, &c);
    if (c.n > MAX_TENSORS)
        return SL_FAIL(err, SL_EFORMAT, "config.json makes %zu tensors; at most %d are taken", c.n,
                       MAX_TENSORS);
    if (!(p->tensor = mem_zalloc(c.n, sizeof *p->tensor)) || !each_tensor(s, plan_tensor, &x)) {
        plan_fini(p);
        return SL_FAIL(err, SL_ENOMEM, "no memory for a list of %zu tensors", c.n);
    }
    qsort(p->tensor, (size_t)p->n, sizeof *p->tensor, by_slot);
    return SL_OK;
}

void plan_fini(struct plan *p)
{
    mem_free(p->tensor);
    arena_fini(&p->arena);
    *p = (struct plan){0};
}

static void format_shape(char *buf, size_t n, const uint64_t *dim, int n_dims)
{
    size_t at = (size_t)snprintf(buf, n, "[");
    for (int i = 0; i < n_dims && at < n; i++)
        at +=
            (size_t)snprintf(buf + at, n - at, "%s%llu", i ? ", " : "", (unsigned long long)dim[i]);
    if (at < n)
        snprintf(buf + at, n - at, "]");
}

static bool is_float(enum st_dtype t)
{
    return t == ST_F32 || t == ST_F16 || t == ST_BF16;
}

static enum sl_status check_scale(const struct plan_tensor *t, struct sl_err *err)
{
    const struct st_tensor *s = t->scale;
    uint64_t n = 1;
    for (int i = 0; i < s->n_dims; i++)
        n *= s->dim[i];
    if (t->row->layout != AS_IS || t->row->cols == DIM_1)
        return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%s' may not be F8_E4M3", t->found->file,
                       t->name);
    if (!is_float(s->dtype) || (n != 1 && (n != (uint64_t)t->rows || s->dim[0] != n))) {
        char is[200];
        format_shape(is, sizeof is, s->dim, s->n_dims);
        return SL_FAIL(err, SL_EFORMAT,
                       "%s: tensor '%s' is %s %s; it must be one floating-point scale, or one for "
                       "each of %d outputs",
                       s->file, s->name, st_dtype_name(s->dtype), is, t->rows);
    }
    return SL_OK;
}

static enum sl_status check_tensor(const struct plan_tensor *t, struct sl_err *err)
{
    const struct st_tensor *f = t->found;
    bool turned = t->row->layout == TRANSPOSED;
    uint64_t want[2] = {(uint64_t)(turned ? t->cols : t->rows),
                        (uint64_t)(turned ? t->rows : t->cols)};
    int n_dims = t->row->cols == DIM_1 ? 1 : 2;
    if (f->n_dims != n_dims || memcmp(f->dim, want, sizeof *want * (size_t)n_dims)) {
        char is[200], should[64];
        format_shape(is, sizeof is, f->dim, f->n_dims);
        format_shape(should, sizeof should, want, n_dims);
        return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%s' has shape %s, but config.json makes it %s",
                       f->file, t->name, is, should);
    }
    if (t->scale)
        return check_scale(t, err);
    if (!is_float(f->dtype))
        return SL_FAIL(err, SL_EFORMAT,
                       "%s: tensor '%s' has dtype %s; weights are F32, F16 or BF16", f->file,
                       t->name, st_dtype_name(f->dtype));
    return SL_OK;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* A tensor that may be there although the spec does not want it. */
static bool may_ignore(const struct model_spec *s, const char *name)
{
    static const char *const calibrated[] = {".input_scale", ".output_scale", ".q_scale",
                                             ".k_scale",     ".v_scale",      ".kv_scale"};
    for (const char *const *end = s->family->ignored; *end; end++)
        if (ends_with(name, *end))
            return true;
    for (size_t i = 0; s->quantized && i < sizeof calibrated / sizeof *calibrated; i++)
        if (ends_with(name, calibrated[i]))
            return true;
    for (const struct tensor_row *r = s->family->rows; r->name; r++) {
        size_t n = strlen(r->name);
        bool is_it = !strncmp(name, r->name, n) &&
                     (!name[n] || (s->quantized && !strcmp(name + n, "_scale")));
        if (r->slot == SLOT_LM_HEAD && (s->tied || s->pool.only) && is_it)
            return true; /* a copy of the embedding table, or of no use */
    }
    return false;
}

/* Layer norms of the first BERT checkpoints have "gamma" and "beta". */
static const struct st_tensor *find_old(const struct safetensors *st, const char *name)
{
    static const char *const ends[][2] = {{"LayerNorm.weight", "LayerNorm.gamma"},
                                          {"LayerNorm.bias", "LayerNorm.beta"}};
    char old[512];
    for (int i = 0; i < 2; i++)
        if (ends_with(name, ends[i][0])) {
            int keep = (int)(strlen(name) - strlen(ends[i][0]));
            snprintf(old, sizeof old, "%.*s%s", keep, name, ends[i][1]);
            return safetensors_find(st, old);
        }
    return NULL;
}

static const struct st_tensor *find_name(const struct safetensors *st, const char *name)
{
    const struct st_tensor *t = safetensors_find(st, name);
    return t ? t : find_old(st, name);
}

/* Some checkpoints were saved without the outermost module's name. */
static const struct st_tensor *find(const struct model_spec *s, const struct safetensors *st,
                                    const char *name)
{
    const struct st_tensor *t = find_name(st, name);
    const char *prefix = s->family->prefix;
    if (!t && prefix && !strncmp(name, prefix, strlen(prefix)))
        t = find_name(st, name + strlen(prefix));
    return t;
}

static int by_found(const void *a, const void *b)
{
    const struct st_tensor *const *x = a, *const *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Names the first tensor of the checkpoint that nothing wants. */
static enum sl_status check_extra(const struct plan *p, const struct model_spec *s,
                                  const struct safetensors *st, struct sl_err *err)
{
    const struct st_tensor **used = mem_alloc(2 * (size_t)p->n, sizeof *used);
    int n_used = 0;
    if (!used)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a list of %d tensors", p->n);
    for (int i = 0; i < p->n; i++) {
        used[n_used++] = p->tensor[i].found;
        if (p->tensor[i].scale)
            used[n_used++] = p->tensor[i].scale;
    }
    qsort(used, (size_t)n_used, sizeof *used, by_found);
    const struct st_tensor *extra = NULL;
    int n_extra = 0;
    for (int i = 0, u = 0; i < safetensors_count(st); i++) {
        const struct st_tensor *t = safetensors_at(st, i);
        bool wanted = u < n_used && used[u] == t;
        while (u < n_used && used[u] == t) /* twice: a head of tokens and the tied table */
            u++;
        if (!wanted && !may_ignore(s, t->name) && !n_extra++)
            extra = t;
    }
    mem_free(used);
    if (!n_extra)
        return SL_OK;
    char more[32] = "";
    if (n_extra > 1)
        snprintf(more, sizeof more, " (and %d more)", n_extra - 1);
    return SL_FAIL(err, SL_EFORMAT,
                   "%s: tensor '%.200s'%s is not part of a %s with this config.json", extra->file,
                   extra->name, more, s->architecture);
}

/* The scales of an F8_E4M3 matrix "a.weight" are "a.weight_scale". */
static enum sl_status find_scale(struct plan_tensor *t, const struct model_spec *s,
                                 const struct safetensors *st, struct sl_err *err)
{
    char name[512];
    if (!s->quantized || t->found->dtype != ST_F8_E4M3)
        return SL_OK;
    snprintf(name, sizeof name, "%s_scale", t->name);
    if ((t->scale = find(s, st, name)))
        return SL_OK;
    return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%s' is F8_E4M3 and has no '%s' beside it",
                   t->found->file, t->name, name);
}

enum sl_status plan_bind(struct plan *p, const struct model_spec *s, const struct safetensors *st,
                         struct sl_err *err)
{
    const char *missing = NULL;
    int n_missing = 0;
    for (int i = 0; i < p->n; i++) {
        struct plan_tensor *t = &p->tensor[i];
        if (!(t->found = find(s, st, t->name)) && !n_missing++)
            missing = t->name;
    }
    if (n_missing) {
        char more[32] = "";
        if (n_missing > 1)
            snprintf(more, sizeof more, " (and %d more)", n_missing - 1);
        return SL_FAIL(err, SL_EFORMAT, "the checkpoint has no tensor '%s'%s, which %s needs",
                       missing, more, s->architecture);
    }
    for (int i = 0; i < p->n; i++) {
        enum sl_status bad = find_scale(&p->tensor[i], s, st, err);
        if (bad == SL_OK)
            bad = check_tensor(&p->tensor[i], err);
        if (bad)
            return bad;
    }
    return check_extra(p, s, st, err);
}
