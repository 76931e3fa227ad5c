/* SPDX-License-Identifier: Apache-2.0 */
#include "model/loader.h"

#include "base/fp8.h"
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
    void *temp[16]; /* copies that had to be made; src points into them */
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

/* F8_E4M3 is widened to f32, unless its codes are handed on. */
static enum sl_dtype from_st(enum st_dtype t)
{
    if (t == ST_F32 || t == ST_F8_E4M3)
        return SL_DTYPE_F32;
    return t == ST_F16 ? SL_DTYPE_F16 : SL_DTYPE_BF16;
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

typedef uint8_t e4m3_bits;
typedef uint16_t bf16_bits, f16_bits;
typedef uint32_t f32_word;
FIRST_NOT_FINITE(e4m3_bits, 0x7f)
FIRST_NOT_FINITE(bf16_bits, 0x7f80)
FIRST_NOT_FINITE(f16_bits, 0x7c00)
FIRST_NOT_FINITE(f32_word, 0x7f800000u)

size_t first_not_finite(const void *data, enum sl_dtype dtype, size_t n)
{
    if (dtype == SL_DTYPE_F32)
        return first_bad_f32_word(data, n);
    return dtype == SL_DTYPE_F16 ? first_bad_f16_bits(data, n) : first_bad_bf16_bits(data, n);
}

static enum sl_status check_finite(const struct load *l, const struct plan_tensor *t, size_t bad)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    size_t width = (size_t)(t->row->layout == TRANSPOSED ? t->rows : t->cols);
    if (bad == n)
        return SL_OK;
    return SL_FAIL(l->err, SL_EFORMAT, "%s: tensor '%s' holds NaN or Inf (first at [%zu, %zu])",
                   t->found->file, t->name, bad / width, bad % width);
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

/* The rows (or elements) of a [n_kv_heads, q heads of each + 2] arrangement of heads in the order
 * q, k, v. */
static void ungroup(char *out, const char *in, const struct model_spec *s, size_t row_bytes)
{
    size_t head = (size_t)s->head_dim * row_bytes;
    int per_group = s->n_heads / s->n_kv_heads;
    char *q = out, *k = q + (size_t)s->n_heads * head, *v = k + (size_t)s->n_kv_heads * head;
    for (int g = 0; g < s->n_kv_heads; g++) {
        memcpy(q, in, (size_t)per_group * head);
        in += (size_t)per_group * head;
        q += (size_t)per_group * head;
        memcpy(k, in, head);
        memcpy(v, in + head, head);
        in += 2 * head;
        k += head;
        v += head;
    }
}

static void transpose(char *out, const char *in, size_t rows, size_t cols, size_t bytes)
{
    enum { TILE = 32 }; /* a tile of input lines and output lines stays in the cache */
    for (size_t r0 = 0; r0 < rows; r0 += TILE)
        for (size_t c0 = 0; c0 < cols; c0 += TILE)
            for (size_t r = r0; r < rows && r < r0 + TILE; r++)
                for (size_t c = c0; c < cols && c < c0 + TILE; c++)
                    memcpy(out + (r * cols + c) * bytes, in + (c * rows + r) * bytes, bytes);
}

/* Rows as the device wants them, from how this checkpoint stores them. */
static enum sl_status rearrange(const struct load *l, struct staging *s,
                                const struct plan_tensor *t, enum sl_dtype dtype, const void **data)
{
    size_t rows = (size_t)t->rows, cols = (size_t)t->cols, bytes = dtype_bytes(dtype);
    void *out;
    if (t->row->layout == AS_IS)
        return SL_OK;
    enum sl_status st = new_temp(l, s, rows * cols, bytes, &out);
    if (st)
        return st;
    if (t->row->layout == TRANSPOSED)
        transpose(out, *data, rows, cols, bytes);
    else
        ungroup(out, *data, l->req->spec, cols * bytes);
    *data = out;
    return SL_OK;
}

/* Large weights keep activations near size 1: a product of unit inputs has unit variance. */
static float dummy_width(const struct plan_tensor *t)
{
    return (float)sqrt(3.0 / t->cols);
}

/* Whether the device can make this part of a matrix up by itself. */
static bool device_makes_up(const struct load *l, const struct plan_tensor *t, enum sl_dtype dtype)
{
    return l->req->load_format == SL_LOAD_DUMMY && l->req->ops->makes_up && !t->row->bias &&
           t->row->layout == AS_IS && dtype == SL_DTYPE_BF16;
}

static enum sl_status make_up(const struct load *l, struct staging *s, const struct plan_tensor *t,
                              enum sl_dtype dtype, const void **out)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    void *data;
    enum sl_status st = new_temp(l, s, n, dtype_bytes(dtype), &data);
    if (st)
        return st;
    float mean = 0, width = 0.02f;
    if (t->row->slot >= SLOT_NORMS && !t->row->bias)
        mean = 1 - l->req->spec->norm_add;
    else if (!t->row->bias)
        width = dummy_width(t);
    dummy_fill(data, dtype, n, l->req->seed, t->name, mean, width);
    *out = data;
    return SL_OK;
}

/* The scale of each row of an F8_E4M3 tensor. */
static enum sl_status fetch_scales(const struct load *l, struct staging *s,
                                   const struct plan_tensor *t, const float **out)
{
    const struct st_tensor *f = t->scale;
    size_t n = f->bytes / dtype_bytes(from_st(f->dtype)), rows = (size_t)t->rows;
    void *temp;
    enum sl_status st = new_temp(l, s, rows, sizeof(float), &temp);
    if (st)
        return st;
    float *scale = temp;
    widen(scale, f->data, from_st(f->dtype), n);
    for (size_t r = n; r < rows; r++)
        scale[r] = scale[0];
    for (size_t r = 0; r < rows; r++)
        if (!isfinite(scale[r] * E4M3_MAX))
            return SL_FAIL(l->err, SL_EFORMAT,
                           "%s: tensor '%s' holds NaN, Inf or a scale too large for its values",
                           f->file, f->name);
    *out = scale;
    return SL_OK;
}

/* An F8_E4M3 tensor as f32. */
static enum sl_status fetch_widened(const struct load *l, struct staging *s,
                                    const struct plan_tensor *t, const void **out)
{
    size_t rows = (size_t)t->rows, cols = (size_t)t->cols;
    const uint8_t *code = t->found->data;
    const float *scale = NULL;
    void *temp = NULL;
    enum sl_status st = check_finite(l, t, first_bad_e4m3_bits(code, rows * cols));
    if (st == SL_OK)
        st = fetch_scales(l, s, t, &scale);
    if (st == SL_OK)
        st = new_temp(l, s, rows * cols, sizeof(float), &temp);
    if (st)
        return st;
    float *value = temp;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            value[r * cols + c] = e4m3_f32(code[r * cols + c]) * scale[r];
    *out = value;
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
    if (t->scale)
        return fetch_widened(l, s, t, out);
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
    *out = data;
    return check_finite(l, t, first_not_finite(data, dtype, n));
}

static enum sl_status get_values(const struct load *l, struct staging *s,
                                 const struct plan_tensor *t, enum sl_dtype dtype, const void **out)
{
    enum sl_status st = l->req->load_format == SL_LOAD_DUMMY ? make_up(l, s, t, dtype, out)
                                                             : fetch(l, s, t, dtype, out);
    return st ? st : rearrange(l, s, t, dtype, out);
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

/* What the first and the last layer add to the residual: on small models int4 there costs as much
 * perplexity as in all other layers together, for a few percent of the bytes. */
static bool is_sensitive(const struct load *l, enum slot slot, int layer)
{
    bool output =
        slot == SLOT_O || slot == SLOT_DOWN || slot == SLOT_EXPERT_DOWN || slot == SLOT_SHARED_DOWN;
    return output && (layer == 0 || layer == l->req->spec->n_layers - 1);
}

static enum wformat plain_format(const struct load *l)
{
    return l->req->dtype == SL_DTYPE_F32 ? W_F32 : l->req->dtype == SL_DTYPE_F16 ? W_F16 : W_BF16;
}

/* Whether the checkpoint is FP8 and stays so; a device without FP8 gets its weights widened. */
static bool keeps_codes(const struct load *l)
{
    return l->req->spec->quantized && l->req->ops->fp8_weights;
}

/* A weight of an FP8 checkpoint is what its tensors are. Made-up ones: layers are FP8. */
static enum wformat checkpoint_format(const struct load *l, const struct plan_tensor *t, int n)
{
    bool coded = l->req->load_format != SL_LOAD_DUMMY || slot_is_layer(t->row->slot);
    for (int i = 0; l->req->load_format != SL_LOAD_DUMMY && i < n; i++)
        coded = coded && (t[i].row->bias || t[i].scale);
    return coded ? W_FP8 : plain_format(l);
}

/* t[0 .. n): the parts of one matrix. */
static enum wformat choose_format(const struct load *l, const struct plan_tensor *t, int n)
{
    enum slot slot = t->row->slot;
    bool gate = slot == SLOT_ROUTER || slot == SLOT_SHARED_GATE;
    const char *q = gate ? NULL : l->req->quantization;
    bool table = slot == SLOT_POSITIONS || slot == SLOT_TYPES; /* small, and read by row */
    /* These stay at 8 bits or more. */
    bool wide = slot == SLOT_EMBED || slot == SLOT_LM_HEAD || is_sensitive(l, slot, t->layer);
    if (keeps_codes(l) && !gate && !table)
        return checkpoint_format(l, t, n);
    if (!q || keeps_codes(l) || (table && !strcmp(q, "fp8")))
        return plain_format(l);
    if (table)
        return W_F32;
    if (!strcmp(q, "int8") || (wide && !strcmp(q, "int4")))
        return W_I8;
    return !strcmp(q, "int4") ? W_I4 : W_FP8;
}

static enum sl_status check_quantization(const struct load *l)
{
    const char *q = l->req->quantization, *own = l->req->spec->quantized;
    if (!q || (keeps_codes(l) && (!strcmp(q, own) || !strcmp(q, "fp8"))))
        return SL_OK;
    if (keeps_codes(l))
        return SL_FAIL_PARAM(l->err, SL_EINVAL, "quantization",
                             "Quantization method specified in the model config (%s) does not "
                             "match the quantization method specified in the `quantization` "
                             "argument (%.32s).",
                             own, q);
    if (strcmp(q, "int8") && strcmp(q, "int4") && strcmp(q, "fp8"))
        return SL_FAIL_PARAM(l->err, SL_EINVAL, "quantization",
                             "quantization '%.32s' is not known; known are: int8, int4, fp8", q);
    if (!strcmp(q, "fp8") && !l->req->ops->fp8_weights)
        return SL_FAIL_PARAM(l->err, SL_ENOSUPPORT, "quantization",
                             "device %s has no FP8 products; it has int8 and int4 weights",
                             l->req->ops->name);
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

/* The codes of an F8_E4M3 part and its scales. */
static enum sl_status stage_codes(const struct load *l, struct staging *s,
                                  const struct plan_tensor *t)
{
    size_t n = (size_t)t->rows * (size_t)t->cols;
    s->src.part[t->row->part].data = t->found->data;
    enum sl_status st = check_finite(l, t, first_bad_e4m3_bits(t->found->data, n));
    return st ? st : fetch_scales(l, s, t, &s->src.part[t->row->part].scale);
}

/* t[0 .. n): the parts of one matrix and their biases. */
static enum sl_status stage_matrix(const struct load *l, struct staging *s,
                                   const struct plan_tensor *t, int n, enum wformat format)
{
    struct weight_source *src = &s->src;
    src->dtype = common_dtype(l, t, n);
    src->cols = t->cols;
    src->stack_at = t->index;
    src->stack_n = t->row->times == PER_EXPERT ? l->req->spec->n_experts : 0;
    for (int i = 0; i < n; i++) {
        int part = t[i].row->part;
        const void **to = t[i].row->bias ? &src->part[part].bias : &src->part[part].data;
        if (device_makes_up(l, &t[i], src->dtype)) {
            src->part[part].made_up_key = dummy_key(l->req->seed, t[i].name);
            src->part[part].made_up_width = dummy_width(&t[i]);
        } else {
            enum sl_status st = t[i].scale && format == W_FP8
                                    ? stage_codes(l, s, &t[i])
                                    : get_values(l, s, &t[i], src->dtype, to);
            if (st)
                return st;
        }
        if (!t[i].row->bias) {
            SL_ASSERT(part == src->n_parts);
            src->part[src->n_parts++].rows = t[i].rows;
        }
    }
    return SL_OK;
}

static struct weight *target(const struct model_weights *w, const struct plan_tensor *t)
{
    struct weight_set *set = &w->set[t->layer + 1];
    if (t->row->slot == SLOT_EXPERT_GATE_UP)
        return &set->gate_up[t->index];
    if (t->row->slot == SLOT_EXPERT_DOWN)
        return &set->down[t->index];
    return &set->matrix[t->row->slot];
}

static enum sl_status load_matrix(const struct load *l, const struct plan_tensor *t, int n)
{
    enum wformat format = choose_format(l, t, n);
    struct staging s = {.name = t->name};
    struct weight *out = target(l->w, t);
    enum sl_status st = stage_matrix(l, &s, t, n, format);
    if (st == SL_OK)
        st = l->req->ops->weight_prepare(l->req->device, out, &s.src, format, t->name, l->err);
    if (st == SL_OK && out->borrowed)
        st = keep(l, &s);
    if (st == SL_OK)
        l->w->bytes += out->bytes;
    staging_fini(&s);
    return st;
}

/* lm_head's rows of the head's tokens, one after the other. */
static enum sl_status load_token_rows(const struct load *l, const struct plan_tensor *t)
{
    const struct pool_spec *p = &l->req->spec->pool;
    size_t n = (size_t)t->cols;
    float *out = mem_alloc((size_t)p->n_head_tokens * n, sizeof *out);
    enum sl_status st = out ? SL_OK : SL_FAIL(l->err, SL_ENOMEM, "no memory for '%s'", t->name);
    l->w->head.out = out;
    if (st == SL_OK && t->scale)
        st = SL_FAIL(l->err, SL_ENOSUPPORT,
                     "%s: tensor '%s' has scales; classifier_from_token takes rows of F32, F16 or "
                     "BF16",
                     t->found->file, t->name);
    for (int i = 0; st == SL_OK && i < p->n_head_tokens; i++) {
        struct st_tensor found = {0};
        struct plan_tensor row = *t;
        struct staging s = {.name = t->name};
        const void *data = NULL;
        SL_ASSERT(p->head_id[i] >= 0 && p->head_id[i] < t->rows);
        row.rows = 1;
        if (t->found) { /* made-up weights have none */
            found = *t->found;
            found.bytes /= (size_t)t->rows;
            found.data = (const char *)found.data + (size_t)p->head_id[i] * found.bytes;
            row.found = &found;
        }
        if ((st = get_values(l, &s, &row, SL_DTYPE_F32, &data)) == SL_OK)
            memcpy(out + (size_t)i * n, data, n * sizeof *out);
        staging_fini(&s);
    }
    for (size_t k = 0; st == SL_OK && p->two_way && k < n; k++)
        out[k] = out[n + k] - out[k];
    return st;
}

/* t[0 .. n): a matrix of the classification head and its bias, which stay on the host in f32. */
static enum sl_status load_head(const struct load *l, const struct plan_tensor *t, int n)
{
    struct pool_head *h = &l->w->head;
    enum sl_status st = SL_OK;
    if (l->req->spec->pool.head_token)
        return load_token_rows(l, t);
    for (int i = 0; st == SL_OK && i < n; i++) {
        struct staging s = {.name = t[i].name};
        const void *data = NULL;
        size_t count = (size_t)t[i].rows * (size_t)t[i].cols;
        float *copy = mem_alloc(count, sizeof *copy);
        bool dense = t[i].row->slot == SLOT_HEAD_DENSE;
        float **to = t[i].row->bias ? (dense ? &h->dense_bias : &h->out_bias)
                                    : (dense ? &h->dense : &h->out);
        *to = copy;
        if (!copy)
            st = SL_FAIL(l->err, SL_ENOMEM, "no memory for tensor '%s'", t[i].name);
        if (st == SL_OK)
            st = get_values(l, &s, &t[i], SL_DTYPE_F32, &data);
        if (st == SL_OK)
            memcpy(copy, data, count * sizeof *copy);
        staging_fini(&s);
    }
    return st;
}

/* t[0 .. n): one vector, or those of n heads to be laid end to end. */
static enum sl_status stage_vector(const struct load *l, struct staging *s,
                                   const struct plan_tensor *t, int n, enum sl_dtype *dtype,
                                   const void **out)
{
    *dtype = n == 1 ? common_dtype(l, t, 1) : SL_DTYPE_F32;
    if (n == 1)
        return get_values(l, s, t, *dtype, out);
    float *all;
    void *temp = NULL;
    enum sl_status st = new_temp(l, s, (size_t)n * (size_t)t->rows, sizeof *all, &temp);
    *out = all = temp;
    for (int i = 0; st == SL_OK && i < n; i++) {
        struct staging one = {.name = t[i].name};
        const void *part = NULL;
        st = get_values(l, &one, &t[i], SL_DTYPE_F32, &part);
        if (st == SL_OK)
            memcpy(all + (size_t)i * (size_t)t->rows, part, (size_t)t->rows * sizeof *all);
        staging_fini(&one);
    }
    return st;
}

static enum sl_status load_vector(const struct load *l, const struct plan_tensor *t, int n)
{
    const struct model_spec *spec = l->req->spec;
    struct norm *out = &l->w->set[t->layer + 1].norm[t->row->slot - SLOT_NORMS];
    struct staging s = {.name = t->name};
    enum sl_dtype dtype;
    const void *data = NULL;
    enum sl_status st = stage_vector(l, &s, t, n, &dtype, &data);
    if (st == SL_OK) {
        float *v = l->req->ops->vector_prepare(l->req->device, data, dtype, n * t->rows,
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

/* Whether b belongs to the same weight as a, which stands before it. */
static bool same_weight(const struct plan_tensor *a, const struct plan_tensor *b)
{
    if (a->layer != b->layer || a->row->slot != b->row->slot)
        return false;
    if (a->row->slot >= SLOT_NORMS)
        return a->row == b->row; /* a norm's weight and bias are two vectors */
    return a->index == b->index;
}

static enum sl_status load_all(const struct load *l, const struct plan *p)
{
    enum sl_status st = SL_OK;
    for (int i = 0, n; st == SL_OK && i < p->n; i += n) {
        const struct plan_tensor *t = &p->tensor[i];
        for (n = 1; i + n < p->n && same_weight(t, &t[n]);)
            n++;
        st = t->row->slot >= SLOT_NORMS        ? load_vector(l, t, n)
             : t->row->slot >= SLOT_HEAD_DENSE ? load_head(l, t, n)
                                               : load_matrix(l, t, n);
    }
    return st;
}

/* The slopes of the ALiBi paper: powers of 2^(-8/n) for n heads; when n is no power of two, those
 * of the next smaller one, then every other one of the next larger. */
static double alibi_slope(int head, int n_heads)
{
    int pow2 = 1;
    while (2 * pow2 <= n_heads)
        pow2 *= 2;
    if (head < pow2)
        return exp2(-8.0 * (head + 1) / pow2);
    return exp2(-4.0 * (2 * (head - pow2) + 1) / pow2);
}

static enum sl_status load_alibi(const struct load *l)
{
    const struct model_spec *s = l->req->spec;
    if (s->alibi_scale == 0)
        return SL_OK;
    float *slope = mem_alloc((size_t)s->n_heads, sizeof *slope);
    if (!slope)
        return SL_FAIL(l->err, SL_ENOMEM, "no memory for ALiBi slopes");
    for (int i = 0; i < s->n_heads; i++)
        slope[i] = (float)(alibi_slope(i, s->n_heads) * (double)s->alibi_scale);
    l->w->alibi =
        l->req->ops->vector_prepare(l->req->device, slope, SL_DTYPE_F32, s->n_heads, 0, l->err);
    mem_free(slope);
    return l->w->alibi ? SL_OK : SL_FAIL(l->err, SL_ENOMEM, "no device memory for ALiBi slopes");
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

static bool make_moe(const struct model_spec *s, struct weight_set *set)
{
    set->gate_up = mem_zalloc((size_t)s->n_experts, sizeof *set->gate_up);
    set->down = mem_zalloc((size_t)s->n_experts, sizeof *set->down);
    set->moe = (struct moe){.n_experts = s->n_experts,
                            .top_k = s->top_k,
                            .ffn = s->moe_ffn,
                            .shared_ffn = s->shared_ffn,
                            .renormalize = s->renormalize,
                            .act = s->act,
                            .router = &set->matrix[SLOT_ROUTER],
                            .gate_up = set->gate_up,
                            .down = set->down};
    if (s->shared_ffn) {
        set->moe.shared_gate_up = &set->matrix[SLOT_SHARED_GATE_UP];
        set->moe.shared_down = &set->matrix[SLOT_SHARED_DOWN];
    }
    if (s->shared_gate)
        set->moe.shared_gate = &set->matrix[SLOT_SHARED_GATE];
    return set->gate_up && set->down;
}

static enum sl_status make_sets(const struct load *l)
{
    const struct model_spec *s = l->req->spec;
    struct model_weights *w = l->w;
    w->n_sets = 1 + s->n_layers;
    w->n_experts = s->n_experts;
    bool ok = (w->set = mem_zalloc((size_t)w->n_sets, sizeof *w->set)) != NULL;
    for (int i = 0; ok && i < s->n_layers; i++)
        ok = !s->layer[i].moe || make_moe(s, &w->set[1 + i]);
    return ok ? SL_OK : SL_FAIL(l->err, SL_ENOMEM, "no memory for %d layers' weights", s->n_layers);
}

static bool any_borrowed(const struct model_weights *w)
{
    for (int i = 0; i < w->n_sets; i++)
        for (int s = 0; s < SLOT_N_MATRICES; s++)
            if (w->set[i].matrix[s].borrowed)
                return true;
    for (int i = 0; i < w->n_sets; i++)
        for (int e = 0; w->set[i].gate_up && e < w->n_experts; e++)
            if (w->set[i].gate_up[e].borrowed || w->set[i].down[e].borrowed)
                return true;
    return false;
}

static void release(const struct model_weights *w, struct weight *m)
{
    if (m->data)
        w->ops->weight_release(w->device, m);
}

enum sl_status weights_load(struct model_weights *w, const struct load_request *req,
                            struct sl_err *err)
{
    struct plan plan = {0};
    struct load l = {.req = req, .w = w, .err = err};
    *w = (struct model_weights){.ops = req->ops, .device = req->device};
    enum sl_status st = check_quantization(&l);
    if (st == SL_OK)
        st = plan_create(&plan, req->spec, err);
    if (st == SL_OK && req->load_format != SL_LOAD_DUMMY) {
        st = safetensors_open(&w->mapped, req->dir, err);
        if (st == SL_OK)
            st = plan_bind(&plan, req->spec, w->mapped, err);
    }
    if (st == SL_OK)
        st = make_sets(&l);
    if (st == SL_OK)
        st = load_all(&l, &plan);
    if (st == SL_OK)
        st = load_ropes(&l);
    if (st == SL_OK)
        st = load_alibi(&l);
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
            release(w, &w->set[i].matrix[s]);
        for (int e = 0; e < w->n_experts; e++) {
            if (w->set[i].gate_up)
                release(w, &w->set[i].gate_up[e]);
            if (w->set[i].down)
                release(w, &w->set[i].down[e]);
        }
        mem_free(w->set[i].gate_up);
        mem_free(w->set[i].down);
        for (int s = 0; s < SLOT_N - SLOT_NORMS; s++) {
            w->ops->free(w->device, (void *)w->set[i].norm[s].w);
            w->ops->free(w->device, (void *)w->set[i].norm[s].b);
        }
    }
    for (int i = 0; i < w->n_ropes; i++)
        w->ops->free(w->device, (void *)w->rope[i].inv_freq);
    if (w->alibi)
        w->ops->free(w->device, w->alibi);
    mem_free(w->set);
    pool_head_fini(&w->head);
    safetensors_close(&w->mapped);
    for (struct kept_buffer *k = w->kept, *next; k; k = next) {
        next = k->next;
        mem_free(k->data);
        mem_free(k);
    }
    *w = (struct model_weights){0};
}
