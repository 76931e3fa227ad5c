/* step.c - a step's arrays and attention plan go up in one pinned buffer and one copy.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include <string.h>

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
    return arrays + (size_t)l->n_groups * (per_group + plan + copies + 64) + 64;
}

static enum sl_status reserve(struct device *d, const struct batch_limits *l, struct sl_err *err)
{
    size_t words = upload_words(l);
    if (words <= d->upload_cap)
        return SL_OK;
    step_fini(d);
    enum sl_status st = cuda_check(
        cudaHostAlloc((void **)&d->upload_host, words * sizeof(int32_t), cudaHostAllocDefault),
        "a step's upload buffer", err);
    if (st == SL_OK)
        st = cuda_check(cudaMalloc((void **)&d->upload_device, words * sizeof(int32_t)),
                        "a step's arrays", err);
    if (st == SL_OK)
        d->upload_cap = words;
    return st;
}

void step_fini(struct device *d)
{
    cudaFreeHost(d->upload_host);
    cudaFree(d->upload_device);
    d->upload_host = d->upload_device = NULL;
    d->upload_cap = 0;
}

/* Chunks [first, end) that the last row of sequence s can see. */
static int chunk_range(const struct batch *b, int s, int window, int *first)
{
    int n = b->kv_len[s];
    *first = window && n > window ? (n - window) / CUDA_ATTN_CHUNK : 0;
    return (n + CUDA_ATTN_CHUNK - 1) / CUDA_ATTN_CHUNK;
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
    int32_t *part, *seq, *chunk, *tile_seq, *tile_first;
    p->split_part = room(d, (size_t)b->n_seqs + 1, &part);
    p->split_seq = room(d, max_split, &seq);
    p->split_chunk = room(d, max_split, &chunk);
    p->tile_seq = room(d, (size_t)b->n_tokens, &tile_seq);
    p->tile_first = room(d, (size_t)b->n_tokens, &tile_first);
    for (int s = 0; s < b->n_seqs; s++) {
        int q = b->q_start[s + 1] - b->q_start[s], first,
            end = chunk_range(b, s, a->window, &first);
        part[s] = p->n_split;
        if (q == 1 && a->causal && (size_t)(p->n_split + end - first) <= max_split) {
            for (int c = first; c < end; c++) {
                seq[p->n_split] = s;
                chunk[p->n_split++] = c;
            }
            continue;
        }
        /* The last rows see the most keys: they start first. */
        for (int t = (q - 1) / p->tokens_per_tile; t >= 0; t--) {
            tile_seq[p->n_tiles] = s;
            tile_first[p->n_tiles++] = b->q_start[s] + t * p->tokens_per_tile;
        }
    }
    part[b->n_seqs] = p->n_split;
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

static void place_arrays(struct device *d)
{
    const struct batch *b = d->batch;
    struct step_arrays a = {.n_tokens = b->n_tokens, .n_seqs = b->n_seqs};
    a.token = place(d, b->token, (size_t)b->n_tokens);
    a.pos = place(d, b->pos, (size_t)b->n_tokens);
    a.q_start = place(d, b->q_start, (size_t)b->n_seqs + 1);
    a.kv_len = place(d, b->kv_len, (size_t)b->n_seqs);
    a.logit_row = place(d, b->logit_row, (size_t)b->n_logits);
    for (int g = 0; g < d->n_groups; g++) {
        const struct batch_limits *l = &b->limits;
        const int32_t *start = b->block_start + (size_t)g * ((size_t)l->max_seqs + 1);
        d->arrays[g] = a;
        d->arrays[g].slot =
            place(d, b->slot + (size_t)g * (size_t)l->max_tokens, (size_t)b->n_tokens);
        d->arrays[g].block_start = place(d, start, (size_t)b->n_seqs + 1);
        d->arrays[g].block =
            place(d, b->block + (size_t)g * (size_t)l->max_blocks, (size_t)start[b->n_seqs]);
        plan_attention(d, g);
    }
}

enum sl_status step_begin(struct device *d, const struct batch *b, struct sl_err *err)
{
    /* The step before may still be reading the buffer. */
    enum sl_status st = cuda_check(cudaStreamSynchronize(d->stream), "the step before", err);
    if (st == SL_OK)
        st = reserve(d, &b->limits, err);
    if (st)
        return st;
    const int32_t *copies[KV_GROUPS_MAX];
    int n_copies[KV_GROUPS_MAX];
    d->batch = b;
    d->upload_used = 0;
    place_arrays(d);
    for (int g = 0; g < d->n_groups; g++)
        copies[g] = place_copies(d, g, &n_copies[g]);
    cudaMemcpyAsync(d->upload_device, d->upload_host, d->upload_used * sizeof(int32_t),
                    cudaMemcpyHostToDevice, d->stream);
    cuda_note(d, "a step's upload");
    for (int g = 0; g < d->n_groups; g++)
        for (int l = 0; n_copies[g] && l < d->n_kv[g]; l++) {
            size_t bytes = d->block_bytes[g];
            launch_copy_blocks(d->stream, d->kv[g][l].k, copies[g], n_copies[g], bytes);
            launch_copy_blocks(d->stream, d->kv[g][l].v, copies[g], n_copies[g], bytes);
            cuda_note(d, "copy_blocks");
        }
    return SL_OK;
}

enum sl_status step_end(struct device *d, struct sl_err *err)
{
    cudaError_t e = cudaStreamSynchronize(d->stream);
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
