/* One allocation holds every array of a batch, each on a cache line of its own.
 * SPDX-License-Identifier: Apache-2.0 */
#include "core/batch.h"

#include "base/mem.h"

enum { ARRAY_ALIGN = 64 };

/* Adds n elements of `size` bytes to *total, rounded up to a cache line; false on overflow. */
static bool plan_array(size_t *total, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2 - ARRAY_ALIGN - *total)
        return false;
    *total += (bytes + ARRAY_ALIGN - 1) & ~(size_t)(ARRAY_ALIGN - 1);
    return true;
}

static bool limits_ok(const struct batch_limits *l)
{
    return l->max_tokens > 0 && l->max_seqs > 0 && l->max_blocks > 0 && l->max_samples > 0 &&
           l->max_logits > 0 && l->max_copies >= 0 && l->n_groups > 0 &&
           l->n_groups <= KV_GROUPS_MAX;
}

enum sl_status batch_create(struct batch **out, const struct batch_limits *limits,
                            struct sl_err *err)
{
    const struct batch_limits *l = limits;
    if (!limits_ok(l))
        return SL_FAIL(err, SL_EINVAL, "batch: every limit must be positive");
    struct batch *b = mem_zalloc(1, sizeof *b);
    if (!b)
        return SL_FAIL(err, SL_ENOMEM, "batch: no memory");
    b->limits = *l;
    size_t total = 0;
    bool fits = true;
#define PLAN(name, type, len) fits = fits && plan_array(&total, (size_t)(len), sizeof(type));
    BATCH_ARRAYS(PLAN)
#undef PLAN
    if (fits)
        b->memory = mem_aligned(1, total, ARRAY_ALIGN);
    if (!b->memory) {
        batch_destroy(&b);
        return SL_FAIL(err, SL_ENOMEM, "batch: no memory for %d tokens of %d sequences",
                       l->max_tokens, l->max_seqs);
    }
    size_t at = 0;
#define CARVE(name, type, len)                           \
    b->name = (void *)((unsigned char *)b->memory + at); \
    (void)plan_array(&at, (size_t)(len), sizeof(type));
    BATCH_ARRAYS(CARVE)
#undef CARVE
    batch_clear(b);
    *out = b;
    return SL_OK;
}

void batch_destroy(struct batch **b)
{
    if (!*b)
        return;
    mem_free((*b)->memory);
    mem_free(*b);
    *b = NULL;
}

void batch_clear(struct batch *b)
{
    b->n_tokens = b->n_seqs = b->n_logits = b->n_samples = b->n_plogprobs = b->n_pools =
        b->n_copies = 0;
    b->q_start[0] = 0;
    for (int g = 0; g < b->limits.n_groups; g++)
        b->block_start[(size_t)g * (b->limits.max_seqs + 1)] = 0;
}

static void check_group(const struct batch *b, int s, int g, const struct kv_layout *layout)
{
    int n, size = layout->block_size, window = layout->group[g].window;
    const int32_t *blocks = batch_blocks(b, g, s, &n);
    const int32_t *slot = b->slot + (size_t)g * b->limits.max_tokens;
    int first = b->q_start[s], last = b->q_start[s + 1] - 1;
    SL_ASSERT(n * size >= b->kv_len[s] && n <= b->limits.max_blocks);
    int visible = window ? b->pos[first] - window + 1 : 0; /* the lowest position that is read */
    for (int i = 0; i < n; i++) {
        SL_ASSERT(blocks[i] >= -1 && blocks[i] < layout->n_blocks);
        SL_ASSERT(blocks[i] >= 0 || (i + 1) * size <= visible);
    }
    for (int r = first; r <= last; r++)
        SL_ASSERT(slot[r] == blocks[b->pos[r] / size] * size + b->pos[r] % size);
}

static void check_sequence(const struct batch *b, int s, const struct kv_layout *layout)
{
    int first = b->q_start[s], last = b->q_start[s + 1] - 1;
    SL_ASSERT(first <= last && last < b->n_tokens);
    SL_ASSERT(b->seq[s] && b->seq_row[s] >= 0 && b->seq_row[s] < b->limits.max_seqs);
    SL_ASSERT(b->pos[first] >= 0 && b->kv_len[s] == b->pos[last] + 1);
    for (int r = first; r <= last; r++) {
        SL_ASSERT(b->token[r] >= TOKEN_FROM_TABLE);
        SL_ASSERT(r == first || b->pos[r] == b->pos[r - 1] + 1);
    }
    for (int g = 0; g < layout->n_groups; g++)
        check_group(b, s, g, layout);
}

void batch_check(const struct batch *b, const struct kv_layout *layout)
{
    const struct batch_limits *l = &b->limits;
    SL_ASSERT(layout->n_groups == l->n_groups);
    SL_ASSERT(b->n_tokens > 0 && b->n_tokens <= l->max_tokens);
    SL_ASSERT(b->n_seqs > 0 && b->n_seqs <= l->max_seqs);
    SL_ASSERT(b->n_logits <= l->max_logits && b->n_samples <= l->max_samples);
    SL_ASSERT(b->n_plogprobs <= l->max_logits && b->n_copies <= l->max_copies);
    SL_ASSERT(b->q_start[0] == 0 && b->q_start[b->n_seqs] == b->n_tokens);
    for (int s = 0; s < b->n_seqs; s++)
        check_sequence(b, s, layout);
    for (int i = 0; i < b->n_logits; i++)
        SL_ASSERT(b->logit_row[i] >= 0 && b->logit_row[i] < b->n_tokens);
    for (int i = 0; i < b->n_samples; i++) {
        const struct sample_row *r = &b->sample[i];
        SL_ASSERT(r->seq && r->logit >= 0 && r->logit < b->n_logits);
        SL_ASSERT(r->seq_row >= 0 && r->seq_row < l->max_seqs);
        SL_ASSERT(r->pos == b->pos[b->logit_row[r->logit]] + 1);
    }
    for (int i = 0; i < b->n_plogprobs; i++)
        SL_ASSERT(b->plogprob[i].seq && b->plogprob[i].logit < b->n_logits);
    for (int i = 0; i < b->n_pools; i++) {
        const struct pool_row *r = &b->pool[i];
        SL_ASSERT(r->seq && r->seq->req->pooling && r->row >= 0 && r->n > 0);
        SL_ASSERT(r->n <= b->n_tokens - r->row);
    }
    for (int i = 0; i < b->n_copies; i++) {
        const struct block_copy *c = &b->copy[i];
        int n_src = c->kind == COPY_FROM_HOST ? layout->n_host_blocks : layout->n_blocks;
        int n_dst = c->kind == COPY_TO_HOST ? layout->n_host_blocks : layout->n_blocks;
        SL_ASSERT(c->kind >= 0 && c->kind < N_COPY_KINDS);
        SL_ASSERT(c->group >= 0 && c->group < l->n_groups);
        SL_ASSERT(c->kind != COPY_ON_DEVICE || c->src != c->dst);
        SL_ASSERT(c->src >= 0 && c->src < n_src && c->dst >= 0 && c->dst < n_dst);
    }
}
