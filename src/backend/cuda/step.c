/* step.c - a step's arrays and attention plan go up in one pinned buffer and one copy.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/mem.h"

#include <string.h>

_Static_assert((int)TOKEN_NONE == (int)TOKEN_BAD_LOGITS, "core/batch.h");
_Static_assert(sizeof(struct draw_row) % sizeof(int32_t) == 0, "uploaded as words");

/* n words of the upload: their device address; *host is where to write them. */
static const int32_t *room(struct device *d, size_t n, int32_t **host)
{
    size_t at = d->upload_used;
    SL_ASSERT(n <= d->upload_cap - at);
    d->upload_used = (at + n + 3) & ~(size_t)3; /* 16-byte aligned */
    *host = d->upload_host + at;
    return d->upload_device + at;
}

static const int32_t *place(struct device *d, const int32_t *from, size_t n)
{
    int32_t *host;
    const int32_t *to = room(d, n, &host);
    if (n)
        memcpy(host, from, n * sizeof *from);
    return to;
}

/* The most that any batch with these limits places, alignment included. */
static size_t upload_words(const struct batch_limits *l)
{
    size_t tokens = (size_t)l->max_tokens, seqs = (size_t)l->max_seqs;
    size_t per_group = tokens + seqs + (size_t)l->max_blocks; /* slots, block table */
    size_t plan =
        seqs + 2 * (size_t)l->max_blocks + 2 * seqs + 2 * tokens; /* parts, splits, tiles */
    size_t copies = 2 * seqs;
    size_t arrays = 2 * tokens + 2 * seqs + (size_t)l->max_logits;
    size_t rows = (size_t)l->max_samples * (sizeof(struct draw_row) / sizeof(int32_t));
    size_t words = (size_t)l->max_samples * DRAW_WORDS_MAX;
    return arrays + rows + words + (size_t)l->n_groups * (per_group + plan + copies + 64) + 64;
}

static enum sl_status host_memory(void **out, size_t bytes, const char *what, struct sl_err *err)
{
    return cuda_check(cudaHostAlloc(out, bytes, cudaHostAllocDefault), what, err);
}

enum sl_status step_reserve(struct device *d, const struct batch_limits *l, struct sl_err *err)
{
    size_t words = upload_words(l), rows = (size_t)l->max_samples;
    if (words <= d->upload_cap)
        return SL_OK;
    step_fini(d);
    enum sl_status st = cuda_check(cudaMalloc((void **)&d->upload_device, words * sizeof(int32_t)),
                                   "a step's arrays", err);
    for (int i = 0; st == SL_OK && i < CUDA_DEPTH; i++) {
        struct step_slot *s = &d->slot[i];
        st = host_memory((void **)&s->upload, words * sizeof(int32_t), "a step's upload buffer",
                         err);
        if (st == SL_OK)
            st = host_memory((void **)&s->result, rows * sizeof *s->result, "drawn tokens", err);
        if (st == SL_OK)
            st = host_memory((void **)&s->top, rows * DRAW_TOP_MAX * sizeof *s->top, "logprobs",
                             err);
        if (st == SL_OK)
            st = cuda_check(
                cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming | cudaEventBlockingSync),
                "an event", err);
    }
    if (st == SL_OK)
        st = cuda_check(
            cudaMalloc((void **)&d->table, (size_t)l->max_seqs * TABLE_DEPTH * sizeof *d->table),
            "the token table", err);
    if (st == SL_OK)
        d->upload_cap = words;
    else
        step_fini(d);
    return st;
}

void step_fini(struct device *d)
{
    if (d->stream)
        cudaStreamSynchronize(d->stream);
    for (int i = 0; i < CUDA_DEPTH; i++) {
        struct step_slot *s = &d->slot[i];
        cudaFreeHost(s->upload);
        cudaFreeHost(s->result);
        cudaFreeHost(s->top);
        if (s->done)
            cudaEventDestroy(s->done);
        *s = (struct step_slot){0};
    }
    cudaFree(d->upload_device);
    cudaFree(d->table);
    d->upload_device = NULL;
    d->table = NULL;
    d->upload_cap = 0;
    d->n_begun = d->n_collected = 0;
}

/* Chunks [first, end) that the last row of sequence s can see. */
static int chunk_range(const struct batch *b, int s, int window, int *first)
{
    int n = b->kv_len[s];
    *first = window && n > window ? (n - window) / CUDA_ATTN_CHUNK : 0;
    return (n + CUDA_ATTN_CHUNK - 1) / CUDA_ATTN_CHUNK;
}

/* Blocks of threads for each KV head, so that all are on the device at once and have the same
 * number of pairs. */
static int decode_blocks(const struct device *d, const struct attn_spec *a, int n_pairs)
{
    int group = (a->n_heads / a->n_kv_heads + 15) / 16, each = a->n_kv_heads * group;
    int most = d->n_sms * attn_decode_blocks_per_sm(a->head_dim) / each;
    most = most < 1 ? 1 : most;
    int rounds = (n_pairs + most - 1) / most;
    return rounds ? (n_pairs + rounds - 1) / rounds : 0;
}

/* One row that sees what is before it goes over the chunks in parallel, while partial sums have
 * room; all other rows go in tiles. Both ways give the same bits. */
static void plan_attention(struct device *d, int g)
{
    const struct batch *b = d->batch;
    const struct attn_spec *a = &d->group[g];
    struct attn_plan *p = &d->plan[g];
    *p = (struct attn_plan){.tokens_per_tile = attn_tokens_per_tile(a->n_heads, a->n_kv_heads),
                            .partial = d->partial};
    size_t max_split = (size_t)b->limits.max_blocks + (size_t)b->limits.max_seqs;
    max_split = max_split < d->max_parts ? max_split : d->max_parts;
    int32_t *part, *count, *pair, *tile_seq, *tile_first;
    p->split_part = room(d, (size_t)b->n_seqs + 1, &part);
    p->n_split = room(d, 1, &count);
    p->tile_seq = room(d, (size_t)b->n_tokens, &tile_seq);
    p->tile_first = room(d, (size_t)b->n_tokens, &tile_first);
    size_t before = d->upload_used;
    p->split = room(d, 2 * max_split, &pair);
    int n = 0;
    for (int s = 0; s < b->n_seqs; s++) {
        int q = b->q_start[s + 1] - b->q_start[s], first,
            end = chunk_range(b, s, a->window, &first);
        part[s] = n;
        if (q == 1 && a->causal && (size_t)(n + end - first) <= max_split) {
            for (int c = first; c < end; c++) {
                pair[2 * n] = s;
                pair[2 * n++ + 1] = c;
            }
            continue;
        }
        /* The last rows see the most keys: they start first. */
        for (int t = (q - 1) / p->tokens_per_tile; t >= 0; t--) {
            tile_seq[p->n_tiles] = s;
            tile_first[p->n_tiles++] = b->q_start[s] + t * p->tokens_per_tile;
        }
    }
    part[b->n_seqs] = *count = n;
    d->upload_used = (before + 2 * (size_t)n + 3) & ~(size_t)3; /* what was not needed */
    p->n_blocks = decode_blocks(d, a, n);
}

/* (src, dst) pairs of group g; gives their device address. */
static const int32_t *place_copies(struct device *d, int g, int *n)
{
    const struct batch *b = d->batch;
    int32_t *pair;
    const int32_t *to = room(d, 2 * (size_t)b->n_copies, &pair);
    *n = 0;
    for (int i = 0; i < b->n_copies; i++)
        if (b->copy[i].group == g) {
            pair[2 * *n] = b->copy[i].src;
            pair[2 * (*n)++ + 1] = b->copy[i].dst;
        }
    return to;
}

/* Tokens; one that only the device knows becomes ~(its row of the token table). */
static const int32_t *place_tokens(struct device *d)
{
    const struct batch *b = d->batch;
    int32_t *host;
    const int32_t *to = room(d, (size_t)b->n_tokens, &host);
    for (int s = 0; s < b->n_seqs; s++)
        for (int r = b->q_start[s]; r < b->q_start[s + 1]; r++)
            host[r] = b->token[r] == TOKEN_FROM_TABLE ? ~b->seq_row[s] : b->token[r];
    return to;
}

static void place_draws(struct device *d)
{
    const struct draw_rows *r = d->draws;
    if (!r || !r->n_rows)
        return;
    size_t each = sizeof *r->row / sizeof(int32_t);
    d->draw_row =
        (const struct draw_row *)place(d, (const int32_t *)r->row, (size_t)r->n_rows * each);
    d->draw_word = place(d, r->word, (size_t)r->n_words);
}

static void place_arrays(struct device *d)
{
    const struct batch *b = d->batch;
    const struct batch_limits *l = &b->limits;
    struct step_arrays a = {.n_tokens = b->n_tokens, .n_seqs = b->n_seqs, .table = d->table};
    a.token = place_tokens(d);
    a.pos = place(d, b->pos, (size_t)b->n_tokens);
    a.q_start = place(d, b->q_start, (size_t)b->n_seqs + 1);
    a.kv_len = place(d, b->kv_len, (size_t)b->n_seqs);
    a.logit_row = place(d, b->logit_row, (size_t)b->n_logits);
    for (int g = 0; g < d->n_groups; g++) {
        const int32_t *start = b->block_start + (size_t)g * ((size_t)l->max_seqs + 1);
        d->arrays[g] = a;
        d->arrays[g].slot =
            place(d, b->slot + (size_t)g * (size_t)l->max_tokens, (size_t)b->n_tokens);
        d->arrays[g].block_start = place(d, start, (size_t)b->n_seqs + 1);
        d->arrays[g].block =
            place(d, b->block + (size_t)g * (size_t)l->max_blocks, (size_t)start[b->n_seqs]);
        plan_attention(d, g);
    }
    if (d->seen_group >= 0)
        for (int g = 0; g < d->n_groups; g++) {
            d->arrays[g].seen = d->seen;
            d->arrays[g].seen_slot = d->arrays[d->seen_group].slot;
        }
    place_draws(d);
}

static void copy_blocks(struct device *d, int g, const int32_t *pairs, int n)
{
    for (int l = 0; l < d->n_kv[g]; l++) {
        size_t bytes = d->block_bytes[g];
        launch_copy_blocks(d->stream, d->kv[g][l].k, pairs, n, bytes);
        launch_copy_blocks(d->stream, d->kv[g][l].v, pairs, n, bytes);
    }
    if (g == d->seen_group)
        launch_copy_blocks(d->stream, d->seen, pairs, n, (size_t)d->block_size * sizeof *d->seen);
    cuda_note(d, "copy_blocks");
}

enum sl_status step_begin(struct device *d, const struct batch *b, struct sl_err *err)
{
    enum sl_status st = step_reserve(d, &b->limits, err);
    struct step_slot *s = &d->slot[d->n_begun % CUDA_DEPTH];
    /* The step that had this buffer: it was collected, or ended. */
    if (st == SL_OK)
        st = cuda_check(cudaEventSynchronize(s->done), "an earlier step", err);
    if (st)
        return st;
    const int32_t *copies[KV_GROUPS_MAX];
    int n_copies[KV_GROUPS_MAX];
    d->batch = b;
    d->upload_host = s->upload;
    d->upload_used = 0;
    place_arrays(d);
    for (int g = 0; g < d->n_groups; g++)
        copies[g] = place_copies(d, g, &n_copies[g]);
    cudaMemcpyAsync(d->upload_device, d->upload_host, d->upload_used * sizeof(int32_t),
                    cudaMemcpyHostToDevice, d->stream);
    cuda_note(d, "a step's upload");
    cudaEventRecord(s->done, d->stream); /* again when the step is launched, if it tells */
    for (int g = 0; g < d->n_groups; g++)
        if (n_copies[g])
            copy_blocks(d, g, copies[g], n_copies[g]);
    d->n_begun++;
    return SL_OK;
}

/* The step's first failure, if there was one. */
static enum sl_status failure(struct device *d, cudaError_t e, struct sl_err *err)
{
    const char *what = "a kernel of this step";
    if (d->failed != cudaSuccess) {
        e = d->failed;
        what = d->failed_what;
    }
    d->failed = cudaSuccess;
    if (e == cudaSuccess)
        return SL_OK;
    return SL_FAIL(err, SL_EDEVICE, "CUDA: %s: %s", what, cudaGetErrorString(e));
}

enum sl_status step_end(struct device *d, struct sl_err *err)
{
    fuse_flush(d);
    return failure(d, cudaStreamSynchronize(d->stream), err);
}

enum sl_status step_launched(struct device *d, struct sl_err *err)
{
    fuse_flush(d);
    cudaEventRecord(d->slot[(d->n_begun - 1) % CUDA_DEPTH].done, d->stream);
    cuda_note(d, "a step's end");
    return failure(d, cudaSuccess, err);
}

enum sl_status step_collect(struct device *d, const struct draw_result **result,
                            const struct draw_top **top, struct sl_err *err)
{
    SL_ASSERT(d->n_collected < d->n_begun);
    const struct step_slot *s = &d->slot[d->n_collected++ % CUDA_DEPTH];
    *result = s->result;
    *top = s->top;
    return cuda_check(cudaEventSynchronize(s->done), "a kernel of this step", err);
}
