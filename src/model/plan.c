/* SPDX-License-Identifier: Apache-2.0 */
#include "model/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool plan_has_row(const struct model_spec *s, const struct tensor_row *row)
{
    unsigned have = 0;
    if (!s->tied)
        have |= WHEN_UNTIED;
    if (s->qkv_bias)
        have |= WHEN_QKV_BIAS;
    if (s->o_bias)
        have |= WHEN_O_BIAS;
    if (s->mlp_bias)
        have |= WHEN_MLP_BIAS;
    if (s->qk_norm)
        have |= WHEN_QK_NORM;
    return (have & row->when) == row->when;
}

uint64_t plan_step_parameters(const struct model_spec *s)
{
    uint64_t total = 0;
    for (const struct tensor_row *r = s->family->rows; r->name; r++) {
        if (!plan_has_row(s, r) || (r->slot == SLOT_EMBED && !s->tied))
            continue;
        uint64_t n = (uint64_t)spec_dim(s, r->rows) * (uint64_t)spec_dim(s, r->cols);
        total += slot_is_layer(r->slot) ? n * (uint64_t)s->n_layers : n;
    }
    return total;
}

static int by_slot(const void *a, const void *b)
{
    const struct plan_tensor *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->row->slot != y->row->slot)
        return x->row->slot < y->row->slot ? -1 : 1;
    if (x->row->bias != y->row->bias)
        return x->row->bias ? 1 : -1;
    return x->row->part - y->row->part;
}

/* "a.%d.b" with the layer's number. */
static const char *expand(struct arena *a, const char *pattern, int layer)
{
    char name[256];
    const char *hole = strstr(pattern, "%d");
    if (hole)
        snprintf(name, sizeof name, "%.*s%d%s", (int)(hole - pattern), pattern, layer, hole + 2);
    else
        snprintf(name, sizeof name, "%s", pattern);
    return arena_strndup(a, name, strlen(name));
}

enum sl_status plan_create(struct plan *p, const struct model_spec *s, struct sl_err *err)
{
    size_t n = 0;
    *p = (struct plan){0};
    for (const struct tensor_row *r = s->family->rows; r->name; r++)
        if (plan_has_row(s, r))
            n += slot_is_layer(r->slot) ? (size_t)s->n_layers : 1;
    if (!(p->tensor = mem_zalloc(n, sizeof *p->tensor)))
        goto no_memory;
    for (const struct tensor_row *r = s->family->rows; r->name; r++) {
        if (!plan_has_row(s, r))
            continue;
        bool in_layer = slot_is_layer(r->slot);
        for (int l = in_layer ? 0 : -1; l < (in_layer ? s->n_layers : 0); l++) {
            struct plan_tensor *t = &p->tensor[p->n++];
            *t = (struct plan_tensor){
                .row = r, .layer = l, .rows = spec_dim(s, r->rows), .cols = spec_dim(s, r->cols)};
            if (!(t->name = expand(&p->arena, r->name, l)))
                goto no_memory;
        }
    }
    qsort(p->tensor, (size_t)p->n, sizeof *p->tensor, by_slot);
    return SL_OK;
no_memory:
    plan_fini(p);
    return SL_FAIL(err, SL_ENOMEM, "no memory for a list of %zu tensors", n);
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

static enum sl_status check_tensor(const struct plan_tensor *t, struct sl_err *err)
{
    const struct st_tensor *f = t->found;
    uint64_t want[2] = {(uint64_t)t->rows, (uint64_t)t->cols};
    int n_dims = t->row->cols == DIM_1 ? 1 : 2;
    if (f->n_dims != n_dims || memcmp(f->dim, want, sizeof *want * (size_t)n_dims)) {
        char is[200], should[64];
        format_shape(is, sizeof is, f->dim, f->n_dims);
        format_shape(should, sizeof should, want, n_dims);
        return SL_FAIL(err, SL_EFORMAT, "%s: tensor '%s' has shape %s, but config.json makes it %s",
                       f->file, t->name, is, should);
    }
    if (f->dtype != ST_F32 && f->dtype != ST_F16 && f->dtype != ST_BF16)
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
    for (const char *const *end = s->family->ignored; *end; end++)
        if (ends_with(name, *end))
            return true;
    for (const struct tensor_row *r = s->family->rows; r->name; r++)
        if (r->slot == SLOT_LM_HEAD && s->tied && !strcmp(name, r->name))
            return true; /* a copy of the embedding table */
    return false;
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
    const struct st_tensor **used = mem_alloc((size_t)p->n, sizeof *used);
    if (!used)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a list of %d tensors", p->n);
    for (int i = 0; i < p->n; i++)
        used[i] = p->tensor[i].found;
    qsort(used, (size_t)p->n, sizeof *used, by_found);
    const struct st_tensor *extra = NULL;
    int n_extra = 0;
    for (int i = 0, u = 0; i < safetensors_count(st); i++) {
        const struct st_tensor *t = safetensors_at(st, i);
        if (u < p->n && used[u] == t)
            u++;
        else if (!may_ignore(s, t->name) && !n_extra++)
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

enum sl_status plan_bind(struct plan *p, const struct model_spec *s, const struct safetensors *st,
                         struct sl_err *err)
{
    const char *missing = NULL;
    int n_missing = 0;
    for (int i = 0; i < p->n; i++) {
        struct plan_tensor *t = &p->tensor[i];
        if (!(t->found = safetensors_find(st, t->name)) && !n_missing++)
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
        enum sl_status bad = check_tensor(&p->tensor[i], err);
        if (bad)
            return bad;
    }
    return check_extra(p, s, st, err);
}
