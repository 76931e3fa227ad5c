/* SPDX-License-Identifier: Apache-2.0 */
#include "model/loader.h"

#include "base/half.h"
#include "model/plan.h"

#include <math.h>
#include <string.h>

/* Memory that a weight borrows although no file holds it. */
struct kept_buffer {
    struct kept_buffer *next;
    void *data;
};

/* One weight on its way: its parts as they are handed to the device. */
struct staging {
    struct weight_source src;
    void *temp[8]; /* copies that had to be made; src points into them */
    int n_temps;
    const char *name; /* of the first part, for messages */
};

struct load {
    const struct load_request *req;
    struct model_weights *w;
    struct sl_err *err;
};

static size_t dtype_bytes(enum sl_dtype t)
{
    return t == SL_DTYPE_F32 ? 4 : 2;
}

static enum sl_dtype from_st(enum st_dtype t)
{
    return t == ST_F32 ? SL_DTYPE_F32 : t == ST_F16 ? SL_DTYPE_F16 : SL_DTYPE_BF16;
}

/* ---- looking for NaN and Inf --------------------------------------------------------------- */

/* In blocks without a branch inside: the loop runs at the speed of memory. */
#define FIRST_NOT_FINITE(type, mask)                                 \
    static size_t first_bad_##type(const type *v, size_t n)          \
    {                                                                \
        enum { BLOCK = 64 };                                         \
        size_t i = 0;                                                \
        for (; n - i >= BLOCK; i += BLOCK) {                         \
            type bad = 0;                                            \
            for (int j = 0; j < BLOCK; j++)                          \
                bad = (type)(bad | ((v[i + j] & (mask)) == (mask))); \
            if (bad)                                                 \
                break;                                               \
        }                                                            \
        while (i < n && (v[i] & (mask)) != (mask))                   \
            i++;                                                     \
        return i;                                                    \
    }

typedef uint16_t bf16_bits, f16_bits;
typedef uint32_t f32_word;
FIRST_NOT_FINITE(bf16_bits, 0x7f80)
FIRST_NOT_FINITE(f16_bits, 0x7c00)
FIRST_NOT_FINITE(f32_word, 0x7f800000u)

size_t first_not_finite(const void *data, enum sl_dtype dtype, size_t n)
{
    if (dtype == SL_DTYPE_F32)
        return first_bad_f32_word(data, n);
    return dtype == SL_DTYPE_F16 ? first_bad_f16_bits(data, n) : first_bad_bf16_bits(data, n);
}

/* ---- staging ------------------------------------------------------------------------------- */

static void staging_fini(struct staging *s)
{
    for (int i = 0; i < s->n_temps; i++)
        mem_free(s->temp[i]);
    s->n_temps = 0;
}

static enum sl_status new_temp(const struct load *l, struct staging *s, size_t n, size_t size,
                               void **out)
{
    void *p = mem_aligned(n, size, 64);
    if (!p)
        return SL_FAIL(l->err, SL_ENOMEM, "no memory to load tensor '%s'", s->name);
    SL_ASSERT(s->n_temps < (int)(sizeof s->temp / sizeof *s->temp));
    *out = s->temp[s->n_temps++] = p;
    return SL_OK;
}

static void widen(float *out, const void *in, enum sl_dtype dtype, size_t n)
{
    if (dtype == SL_DTYPE_F32) {
        memcpy(out, in, n * sizeof *out);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const char *)in + 2 * i, 2);
        out[i] = dtype == SL_DTYPE_BF16 ? bf16_f32(h) : f16_f32(h);
    }
}

/* Large weights keep activations near size 1: a product of unit inputs has unit variance. */
static enum sl_status make_up(const struct load *l, struct staging *s, const struct plan_tensor *t,
                              enum sl_dtype dtype, const void **out)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    void *data;
    enum sl_status st = new_temp(l, s, n, dtype_bytes(dtype), &data);
    if (st)
        return st;
    float mean = 0, width = 0.02f;
    if (t->row->slot >= SLOT_N_MATRICES && !t->row->bias)
        mean = 1 - l->req->spec->norm_add;
    else if (!t->row->bias)
        width = (float)sqrt(3.0 / t->cols);
    dummy_fill(data, dtype, n, l->req->seed, t->name, mean, width);
    *out = data;
    return SL_OK;
}

/* A tensor of the checkpoint as aligned values of `dtype`: in place when it is so already. */
static enum sl_status fetch(const struct load *l, struct staging *s, const struct plan_tensor *t,
                            enum sl_dtype dtype, const void **out)
{
    const struct st_tensor *f = t->found;
    enum sl_dtype has = from_st(f->dtype);
    size_t n = (size_t)t->rows * (size_t)t->cols;
    const void *data = f->data;
    if (has != dtype || (uintptr_t)data % dtype_bytes(has)) {
        void *copy;
        enum sl_status st = new_temp(l, s, n, dtype_bytes(dtype), &copy);
        if (st)
            return st;
        if (has == dtype)
            memcpy(copy, data, f->bytes);
        else
            widen(copy, data, has, n); /* mixed dtypes meet in f32 */
        data = copy;
    }
    size_t bad = first_not_finite(data, dtype, n);
    if (bad < n)
        return SL_FAIL(l->err, SL_EFORMAT, "%s: tensor '%s' holds NaN or Inf (first at [%zu, %zu])",
                       f->file, t->name, bad / (size_t)t->cols, bad % (size_t)t->cols);
    *out = data;
    return SL_OK;
}

static enum sl_status get_values(const struct load *l, struct staging *s,
                                 const struct plan_tensor *t, enum sl_dtype dtype, const void **out)
{
    if (l->req->load_format == SL_LOAD_DUMMY)
        return make_up(l, s, t, dtype, out);
    return fetch(l, s, t, dtype, out);
}

/* The dtype that all n tensors have, or f32 when they differ. */
static enum sl_dtype common_dtype(const struct load *l, const struct plan_tensor *t, int n)
{
    if (l->req->load_format == SL_LOAD_DUMMY)
        return l->req->spec->dtype;
    for (int i = 1; i < n; i++)
        if (t[i].found->dtype != t->found->dtype)
            return SL_DTYPE_F32;
    return from_st(t->found->dtype);
}

/* ---- one weight ---------------------------------------------------------------------------- */

static enum sl_status choose_format(const struct load *l, enum slot slot, enum wformat *out)
{
    const char *q = l->req->quantization;
    if (!q) {
        *out = l->req->dtype == SL_DTYPE_F32   ? W_F32
               : l->req->dtype == SL_DTYPE_F16 ? W_F16
                                               : W_BF16;
        return SL_OK;
    }
    bool table = slot == SLOT_EMBED || slot == SLOT_LM_HEAD; /* these stay at 8 bits or more */
    if (!strcmp(q, "int8") || (table && !strcmp(q, "int4")))
        *out = W_I8;
    else if (!strcmp(q, "int4"))
        *out = W_I4;
    else if (!strcmp(q, "fp8"))
        *out = W_FP8;
    else
        return SL_FAIL_PARAM(l->err, SL_EINVAL, "quantization",
                             "quantization '%.32s' is not known; known are: int8, int4, fp8", q);
    return SL_OK;
}

static enum sl_status keep(const struct load *l, struct staging *s)
{
    for (; s->n_temps; s->n_temps--) {
        struct kept_buffer *k = mem_alloc(1, sizeof *k);
        if (!k)
            return SL_FAIL(l->err, SL_ENOMEM, "no memory to keep tensor '%s'", s->name);
        *k = (struct kept_buffer){.next = l->w->kept, .data = s->temp[s->n_temps - 1]};
        l->w->kept = k;
    }
    return SL_OK;
}

/* t[0 .. n): the parts of one matrix and their biases. */
static enum sl_status stage_matrix(const struct load *l, struct staging *s,
                                   const struct plan_tensor *t, int n)
{
    struct weight_source *src = &s->src;
    src->dtype = common_dtype(l, t, n);
    src->cols = t->cols;
    for (int i = 0; i < n; i++) {
        int part = t[i].row->part;
        const void **to = t[i].row->bias ? &src->part[part].bias : &src->part[part].data;
        enum sl_status st = get_values(l, s, &t[i], src->dtype, to);
        if (st)
            return st;
        if (!t[i].row->bias) {
            SL_ASSERT(part == src->n_parts);
            src->part[src->n_parts++].rows = t[i].rows;
        }
    }
    return SL_OK;
}

static enum sl_status load_matrix(const struct load *l, const struct plan_tensor *t, int n)
{
    enum wformat format = W_F32;
    struct staging s = {.name = t->name};
    struct weight *out = &l->w->set[t->layer + 1].matrix[t->row->slot];
    enum sl_status st = choose_format(l, t->row->slot, &format);
    if (st == SL_OK)
        st = stage_matrix(l, &s, t, n);
    if (st == SL_OK)
        st = l->req->ops->weight_prepare(l->req->device, out, &s.src, format, t->name, l->err);
    if (st == SL_OK && out->borrowed)
        st = keep(l, &s);
    if (st == SL_OK)
        l->w->bytes += out->bytes;
    staging_fini(&s);
    return st;
}

static enum sl_status load_vector(const struct load *l, const struct plan_tensor *t)
{
    const struct model_spec *spec = l->req->spec;
    struct norm *out = &l->w->set[t->layer + 1].norm[t->row->slot - SLOT_N_MATRICES];
    struct staging s = {.name = t->name};
    enum sl_dtype dtype = common_dtype(l, t, 1);
    const void *data = NULL;
    enum sl_status st = get_values(l, &s, t, dtype, &data);
    if (st == SL_OK) {
        float *v = l->req->ops->vector_prepare(l->req->device, data, dtype, t->rows * t->cols,
                                               t->row->bias ? 0 : spec->norm_add, l->err);
        if (!v)
            st = SL_FAIL(l->err, SL_ENOMEM, "no device memory for tensor '%s'", t->name);
        else if (t->row->bias)
            out->b = v;
        else
            out->w = v;
        out->eps = spec->norm_eps;
        out->rms = spec->rms;
    }
    staging_fini(&s);
    return st;
}

static enum sl_status load_all(const struct load *l, const struct plan *p)
{
    enum sl_status st = SL_OK;
    for (int i = 0, n; st == SL_OK && i < p->n; i += n) {
        const struct plan_tensor *t = &p->tensor[i];
        n = 1;
        if (t->row->slot >= SLOT_N_MATRICES) {
            st = load_vector(l, t);
            continue;
        }
        while (i + n < p->n && t[n].layer == t->layer && t[n].row->slot == t->row->slot)
            n++;
        st = load_matrix(l, t, n);
    }
    return st;
}

static enum sl_status load_ropes(const struct load *l)
{
    for (int i = 0; i < l->req->spec->n_ropes; i++) {
        const struct rope_spec *r = &l->req->spec->rope[i];
        const float *freq = l->req->ops->vector_prepare(l->req->device, r->inv_freq, SL_DTYPE_F32,
                                                        r->rot_dims / 2, 0, l->err);
        if (!freq)
            return SL_FAIL(l->err, SL_ENOMEM, "no device memory for rotary frequencies");
        l->w->rope[l->w->n_ropes++] = (struct rope){.inv_freq = freq,
                                                    .rot_dims = r->rot_dims,
                                                    .mscale = r->mscale,
                                                    .interleaved = r->interleaved};
    }
    return SL_OK;
}

static bool any_borrowed(const struct model_weights *w)
{
    for (int i = 0; i < w->n_sets; i++)
        for (int s = 0; s < SLOT_N_MATRICES; s++)
            if (w->set[i].matrix[s].borrowed)
                return true;
    return false;
}

enum sl_status weights_load(struct model_weights *w, const struct load_request *req,
                            struct sl_err *err)
{
    struct plan plan = {0};
    struct load l = {.req = req, .w = w, .err = err};
    *w = (struct model_weights){.ops = req->ops, .device = req->device};
    enum sl_status st = plan_create(&plan, req->spec, err);
    if (st == SL_OK && req->load_format != SL_LOAD_DUMMY) {
        st = safetensors_open(&w->mapped, req->dir, err);
        if (st == SL_OK)
            st = plan_bind(&plan, req->spec, w->mapped, err);
    }
    if (st == SL_OK) {
        w->n_sets = 1 + req->spec->n_layers;
        if (!(w->set = mem_zalloc((size_t)w->n_sets, sizeof *w->set)))
            st = SL_FAIL(err, SL_ENOMEM, "no memory for %d layers' weights", w->n_sets - 1);
    }
    if (st == SL_OK)
        st = load_all(&l, &plan);
    if (st == SL_OK)
        st = load_ropes(&l);
    plan_fini(&plan);
    if (st)
        weights_fini(w);
    else if (!any_borrowed(w))
        safetensors_close(&w->mapped);
    return st;
}

void weights_fini(struct model_weights *w)
{
    for (int i = 0; w->set && i < w->n_sets; i++) {
        for (int s = 0; s < SLOT_N_MATRICES; s++)
            if (w->set[i].matrix[s].data)
                w->ops->weight_release(w->device, &w->set[i].matrix[s]);
        for (int s = 0; s < SLOT_N - SLOT_N_MATRICES; s++) {
            w->ops->free(w->device, (void *)w->set[i].norm[s].w);
            w->ops->free(w->device, (void *)w->set[i].norm[s].b);
        }
    }
    for (int i = 0; i < w->n_ropes; i++)
        w->ops->free(w->device, (void *)w->rope[i].inv_freq);
    mem_free(w->set);
    safetensors_close(&w->mapped);
    for (struct kept_buffer *k = w->kept, *next; k; k = next) {
        next = k->next;
        mem_free(k->data);
        mem_free(k);
    }
    *w = (struct model_weights){0};
}
