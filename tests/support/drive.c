/* SPDX-License-Identifier: Apache-2.0 */
#include "support/drive.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCK_SIZE = 16 };

struct drive {
    struct model_spec *spec;
    struct model_info info;
    struct backend *backend;
    struct batch *batch;
    struct step_result *result;
    int32_t *free_block; /* a stack, shared by all groups: each gets the same numbers */
    int n_free;
    drive_logits fn; /* of the step that runs */
    void *ctx;
    int n_rows_seen;
    struct ops ops;         /* the device's, but for moe */
    const struct ops *real; /* the device's */
    const int32_t *experts; /* [layers with experts, n_pos, top_k], NULL: not forced */
    int n_pos, moe_layer;   /* the layer with experts that is next in this step */
};

static struct drive *running; /* the one whose step is under way: ops->moe is not told */

#define OK(call, err)                             \
    do {                                          \
        if ((call) != SL_OK)                      \
            fail_msg("%s: %s", #call, (err).msg); \
    } while (0)

static int item_of_row(const struct batch *b, int row)
{
    int s = 0;
    while (b->q_start[s + 1] <= row)
        s++;
    return s;
}

static enum sl_status hand_out(void *ctx, const struct batch *b, const float *logits,
                               struct step_result *r, struct sl_err *err)
{
    struct drive *d = ctx;
    (void)err;
    for (int i = 0; i < b->n_logits; i++) {
        int row = b->logit_row[i];
        d->n_rows_seen++;
        if (d->fn)
            d->fn(d->ctx, item_of_row(b, row), b->pos[row],
                  logits + (size_t)i * (size_t)d->info.vocab_size, d->info.vocab_size);
    }
    r->n_samples = r->n_plogprobs = 0;
    r->lp_start[0] = r->plp_start[0] = 0;
    return SL_OK;
}

static void moe_with_forced(struct device *dev, void *out, const void *x, const struct moe *m,
                            int rows, void *scratch)
{
    struct drive *d = running;
    size_t top_k = (size_t)m->top_k, layer = (size_t)d->moe_layer++ * (size_t)d->n_pos * top_k;
    struct sl_err err = {0};
    struct moe forced = *m;
    if (!d->experts) {
        d->real->moe(dev, out, x, m, rows, scratch);
        return;
    }
    float *list = mem_alloc((size_t)rows * top_k, sizeof *list);
    for (int r = 0; r < rows; r++)
        for (size_t k = 0; k < top_k; k++) {
            int pos = d->batch->pos[r];
            list[(size_t)r * top_k + k] =
                pos < d->n_pos ? (float)d->experts[layer + (size_t)pos * top_k + k] : -1;
        }
    float *vector = d->real->vector_prepare(dev, list, SL_DTYPE_F32, rows * m->top_k, 0, &err);
    if (!vector)
        fail_msg("%s", err.msg);
    forced.forced = vector;
    d->real->moe(dev, out, x, &forced, rows, scratch);
    d->real->free(dev, vector);
    mem_free(list);
}

void drive_force_experts(struct drive *d, const int32_t *experts, int n_pos)
{
    d->experts = experts;
    d->n_pos = n_pos;
}

static void open_device(const struct drive_config *cfg, struct runner_config *rc)
{
    struct sl_err err = {0};
    if (strcmp(cfg->device, "cpu") == 0) {
        OK(cpu_device_create(&rc->ops, &rc->device, cfg->threads, &err), err);
        return;
    }
#ifdef SLUICE_CUDA
    if (!strcmp(cfg->device, "cuda")) {
        OK(cuda_device_create(&rc->ops, &rc->device, &err), err);
        return;
    }
#endif
    assert_string_equal(cfg->device, "ref");
    OK(ref_device_create(&rc->ops, &rc->device, &err), err);
}

/* Neighbouring positions must not get neighbouring blocks, or a wrong table would go unseen. */
static void scatter_blocks(struct drive *d, int n)
{
    d->free_block = mem_alloc((size_t)n, sizeof *d->free_block);
    assert_non_null(d->free_block);
    for (int i = 0; i < n; i++)
        d->free_block[i] = i;
    uint32_t x = 12345;
    for (int i = n - 1; i > 0; i--) {
        x = x * 1664525 + 1013904223;
        int j = (int)((x >> 8) % (uint32_t)(i + 1));
        int32_t t = d->free_block[i];
        d->free_block[i] = d->free_block[j];
        d->free_block[j] = t;
    }
    d->n_free = n;
}

struct drive *drive_create(const struct drive_config *cfg)
{
    struct sl_err err = {0};
    struct drive *d = mem_zalloc(1, sizeof *d);
    assert_non_null(d);
    OK(model_spec_load(&d->spec, cfg->model, cfg->hf_overrides, "auto", &err), err);
    model_spec_info(d->spec, &d->info);
    struct runner_config rc = {.spec = d->spec,
                               .dir = cfg->model,
                               .load_format = cfg->load_format,
                               .dtype = cfg->dtype,
                               .quantization = cfg->quantization,
                               .kv_cache_dtype = cfg->kv_cache_dtype,
                               .block_size = BLOCK_SIZE};
    open_device(cfg, &rc);
    d->real = rc.ops;
    d->ops = *rc.ops;
    d->ops.moe = moe_with_forced;
    rc.ops = &d->ops;
    int n_blocks = cfg->kv_tokens / BLOCK_SIZE + 2 * cfg->max_seqs;
    struct batch_limits limits = {.max_tokens = cfg->max_tokens,
                                  .max_seqs = cfg->max_seqs,
                                  .max_blocks = n_blocks,
                                  .max_samples = cfg->max_tokens,
                                  .max_logits = cfg->max_tokens,
                                  .n_groups = d->info.layout.n_groups};
    rc.limits = limits;
    struct runner *r = NULL;
    OK(runner_create(&r, &rc, &err), err);
    OK(runner_take_kv(r, n_blocks, &limits, &err), err);
    runner_set_sampler(r, hand_out, d);
    d->backend = runner_backend(r);
    OK(batch_create(&d->batch, &limits, &err), err);
    OK(step_result_create(&d->result, &limits, &err), err);
    scatter_blocks(d, n_blocks);
    return d;
}

void drive_destroy(struct drive **pd)
{
    struct drive *d = *pd;
    if (!d)
        return;
    d->backend->ops->destroy(d->backend);
    batch_destroy(&d->batch);
    step_result_destroy(&d->result);
    model_spec_destroy(&d->spec);
    mem_free(d->free_block);
    mem_free(d);
    *pd = NULL;
}

int drive_vocab(const struct drive *d)
{
    return d->info.vocab_size;
}

int drive_block_size(const struct drive *d)
{
    (void)d;
    return BLOCK_SIZE;
}

const struct model_info *drive_info(const struct drive *d)
{
    return &d->info;
}

void drive_seq_init(struct drive *d, struct drive_seq *s, const int32_t *tokens, int n, int cap)
{
    *s = (struct drive_seq){.n = n, .cap = cap, .n_blocks = (cap + BLOCK_SIZE - 1) / BLOCK_SIZE};
    assert_true(n <= cap && s->n_blocks <= d->n_free);
    s->tokens = mem_alloc((size_t)cap, sizeof *s->tokens);
    memcpy(s->tokens, tokens, (size_t)n * sizeof *tokens);
    d->n_free -= s->n_blocks;
    for (int g = 0; g < d->info.layout.n_groups; g++) {
        s->block[g] = mem_alloc((size_t)s->n_blocks, sizeof(int32_t));
        memcpy(s->block[g], d->free_block + d->n_free, (size_t)s->n_blocks * sizeof(int32_t));
    }
}

void drive_seq_push(struct drive_seq *s, int32_t token)
{
    assert_true(s->n < s->cap);
    s->tokens[s->n++] = token;
}

void drive_seq_fini(struct drive *d, struct drive_seq *s)
{
    memcpy(d->free_block + d->n_free, s->block[0], (size_t)s->n_blocks * sizeof(int32_t));
    d->n_free += s->n_blocks;
    for (int g = 0; g < KV_GROUPS_MAX; g++)
        mem_free(s->block[g]);
    mem_free(s->tokens);
    *s = (struct drive_seq){0};
}

static void add_item(struct batch *b, const struct drive_item *it)
{
    struct drive_seq *s = it->seq;
    int i = b->n_seqs++, end = s->n_computed + it->n;
    assert_true(it->n > 0 && end <= s->n && b->n_tokens + it->n <= b->limits.max_tokens);
    for (int p = s->n_computed; p < end; p++) {
        int row = b->n_tokens++;
        b->token[row] = s->tokens[p];
        b->pos[row] = p;
        for (int g = 0; g < b->limits.n_groups; g++)
            b->slot[(size_t)g * (size_t)b->limits.max_tokens + (size_t)row] =
                s->block[g][p / BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE;
        if (it->all_logits || p == end - 1)
            b->logit_row[b->n_logits++] = row;
    }
    b->q_start[i + 1] = b->n_tokens;
    b->kv_len[i] = end;
    b->seq_row[i] = i;
    b->seq[i] = NULL;
    int n_blocks = (end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    for (int g = 0; g < b->limits.n_groups; g++) {
        int32_t *start = b->block_start + (size_t)g * (size_t)(b->limits.max_seqs + 1) + i;
        assert_true(start[0] + n_blocks <= b->limits.max_blocks);
        memcpy(b->block + (size_t)g * (size_t)b->limits.max_blocks + start[0], s->block[g],
               (size_t)n_blocks * sizeof(int32_t));
        start[1] = start[0] + n_blocks;
    }
    s->n_computed = end;
}

void drive_step(struct drive *d, struct drive_item *items, int n_items, drive_logits fn, void *ctx)
{
    struct sl_err err = {0};
    batch_clear(d->batch);
    for (int i = 0; i < n_items; i++)
        add_item(d->batch, &items[i]);
    d->fn = fn;
    d->ctx = ctx;
    d->n_rows_seen = d->moe_layer = 0;
    running = d;
    OK(d->backend->ops->submit(d->backend, d->batch, &err), err);
    OK(d->backend->ops->collect(d->backend, d->result, &err), err);
    assert_int_equal(d->n_rows_seen, d->batch->n_logits);
}

void drive_prefill(struct drive *d, struct drive_seq *s, int chunk, drive_logits fn, void *ctx)
{
    while (s->n_computed < s->n) {
        int left = s->n - s->n_computed;
        struct drive_item it = {.seq = s, .n = left < chunk ? left : chunk};
        drive_step(d, &it, 1, it.n == left ? fn : NULL, ctx);
    }
}

double drive_bf16_bound(int n_layers, int width)
{
    const double bf16 = 1.0 / 512, f32 = 1.0 / (1 << 24);
    double k = 10.0 * n_layers + 2;
    return 4 * (bf16 * sqrt(k) + f32 * sqrt(k * width));
}

double drive_logprob(const float *logits, int vocab, int32_t token)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < vocab; i++)
        top = fmax(top, (double)logits[i]);
    for (int i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - top);
    return (double)logits[token] - top - log(sum);
}

int32_t drive_argmax(const float *logits, int vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}
