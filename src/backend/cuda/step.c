/* step.c - a step's arrays and attention plan go up in one pinned buffer and one copy.
 *
 * A step of pure decode is padded to one of a few numbers of rows, and its arrays lie where the
 * number of rows puts them: so its launches are the same every time, and after the first time they
 * are captured in a CUDA graph (graph.c). What has a length of its own (block tables, pairs for
 * attention, lists for sampling) comes last and is found through offsets.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/mem.h"

#include <string.h>

_Static_assert((int)TOKEN_NONE == (int)TOKEN_BAD_LOGITS, "core/batch.h");
_Static_assert((int)KV_TO_HOST == (int)COPY_TO_HOST && (int)KV_FROM_HOST == (int)COPY_FROM_HOST,
               "core/batch.h");
_Static_assert(sizeof(struct draw_row) % sizeof(int32_t) == 0, "uploaded as words");

/* n words of the upload: their device address; *host is where to write them. */
static const int32_t *room(struct device *d, size_t n, int32_t **host)
{
    size_t at = d->upload_used;
    SL_ASSERT(at <= d->upload_cap && n <= d->upload_cap - at);
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
static size_t upload_words(const struct device *d, const struct batch_limits *l)
{
    size_t tokens = (size_t)l->max_tokens, seqs = (size_t)l->max_seqs;
    size_t per_group = tokens + seqs + (size_t)l->max_blocks;        /* slots, block table */
    size_t plan = 4 * (size_t)l->max_blocks + 4 * seqs + 2 * tokens; /* pairs, tiles */
    size_t copies = KV_COPY_WORDS * (size_t)l->max_copies;
    size_t arrays = 3 * tokens + 2 * seqs + (size_t)l->max_logits;
    size_t rows = (size_t)l->max_samples * (sizeof(struct draw_row) / sizeof(int32_t));
    size_t words = (size_t)l->max_samples * DRAW_WORDS_MAX;
    size_t masks = (size_t)draw_masks_max(d->vocab_size, l->max_samples) *
                   ((size_t)draw_mask_words(d->vocab_size) + 3);
    return arrays + rows + words + masks + (size_t)l->n_groups * (per_group + plan + copies + 64) +
           64;
}

static enum sl_status host_memory(void **out, size_t bytes, const char *what, struct sl_err *err)
{
    return cuda_check(cudaHostAlloc(out, bytes, cudaHostAllocDefault), what, err);
}

enum sl_status step_reserve(struct device *d, const struct batch_limits *l, struct sl_err *err)
{
    size_t words = upload_words(d, l), rows = (size_t)l->max_samples;
    enum sl_status st =
        coded_reserve(d, l->max_logits > l->max_tokens ? l->max_logits : l->max_tokens, err);
    if (st)
        return st;
    if (words <= d->upload_cap && l->max_samples <= d->max_samples && l->max_seqs <= d->max_seqs)
        return SL_OK;
    step_fini(d);
    st = cuda_check(cudaMalloc((void **)&d->upload_device, words * sizeof(int32_t)),
                    "a step's arrays", err);
    for (int i = 0; st == SL_OK && i < CUDA_DEPTH; i++) {
        struct step_slot *s = &d->slot[i];
        st = host_memory((void **)&s->upload, words * sizeof(int32_t), "a step's upload buffer",
                         err);
        if (st == SL_OK)
            st = cuda_check(
                cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming | cudaEventBlockingSync),
                "an event", err);
    }
    if (st == SL_OK)
        st = host_memory((void **)&d->result, CUDA_DEPTH * rows * sizeof *d->result, "drawn tokens",
                         err);
    if (st == SL_OK)
        st = host_memory((void **)&d->top, CUDA_DEPTH * rows * DRAW_TOP_MAX * sizeof *d->top,
                         "logprobs", err);
    d->max_samples = l->max_samples;
    d->max_seqs = l->max_seqs;
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
        if (s->done)
            cudaEventDestroy(s->done);
        *s = (struct step_slot){0};
    }
    graphs_fini(d);
    cudaFree(d->upload_device);
    cudaFree(d->table);
    cudaFreeHost(d->result);
    cudaFreeHost(d->top);
    d->upload_device = d->table = NULL;
    d->result = NULL;
    d->top = NULL;
    d->upload_cap = 0;
    d->n_begun = d->n_collected = 0;
    d->max_samples = d->max_seqs = 0;
}

/* Chunks [first, end) that the last row of sequence s can see. */
static int chunk_range(const struct batch *b, int s, int window, int *first)
{
    int n = b->kv_len[s];
    *first = window && n > window ? (n - window) / CUDA_ATTN_CHUNK : 0;
    return (n + CUDA_ATTN_CHUNK - 1) / CUDA_ATTN_CHUNK;
}

/* Blocks of threads for each KV head, so that all are on the device at once; in a padded step a few
 * numbers only. */
static int decode_blocks(const struct device *d, const struct attn_spec *a, int n_pairs)
{
    int group = (a->n_heads / a->n_kv_heads + 15) / 16, each = a->n_kv_heads * group;
    int most = d->n_sms * attn_decode_blocks_per_sm(a->head_dim) / each, n = n_pairs;
    most = most < 1 ? 1 : most;
    if (d->padded)
        for (n = 4; n < n_pairs && n < most;)
            n *= 2;
    return n < most ? n : most;
}

static size_t max_pairs(const struct device *d, const struct batch *b)
{
    size_t n = (size_t)b->limits.max_blocks + (size_t)b->limits.max_seqs;
    return n < d->max_parts ? n : d->max_parts;
}

/* One row that sees what is before it goes over the chunks in parallel, while partial sums have
 * room; all other rows go in tiles. Both ways give the same bits. `start` is of this group. */
static void plan_attention(struct device *d, int g, int32_t *header, const int32_t *start)
{
    const struct batch *b = d->batch;
    const struct attn_spec *a = &d->group[g];
    struct attn_plan *p = &d->plan[g];
    size_t most = max_pairs(d, b), n_tiles = d->padded ? 0 : (size_t)b->n_tokens;
    int32_t *pair, *tile_seq, *tile_first;
    p->tile_seq = room(d, n_tiles, &tile_seq);
    p->tile_first = room(d, n_tiles, &tile_first);
    size_t at = d->upload_used;
    (void)room(d, 4 * most, &pair);
    int n = 0;
    for (int s = 0; s < b->n_seqs; s++) {
        int q = b->q_start[s + 1] - b->q_start[s], first,
            end = chunk_range(b, s, a->window, &first);
        if (q == 1 && a->causal && (size_t)(n + end - first) <= most) {
            for (int c = first; c < end; c++) {
                pair[4 * n] = b->q_start[s];
                pair[4 * n + 1] = c;
                pair[4 * n + 2] = b->kv_len[s];
                pair[4 * n++ + 3] = start[s];
            }
            continue;
        }
        /* The last rows see the most keys: they start first. */
        for (int t = (q - 1) / p->tokens_per_tile; t >= 0; t--) {
            tile_seq[p->n_tiles] = s;
            tile_first[p->n_tiles++] = b->q_start[s] + t * p->tokens_per_tile;
        }
    }
    header[0] = n;
    header[1] = (int32_t)at;
    d->upload_used = (at + 4 * (size_t)n + 3) & ~(size_t)3; /* what was not needed */
    p->n_blocks = decode_blocks(d, a, n);
}

/* The copies of group g; gives their device address. */
static const int32_t *place_copies(struct device *d, int g, int *n)
{
    int32_t *host;
    const int32_t *to = room(d, KV_COPY_WORDS * (size_t)d->batch->n_copies, &host);
    *n = kv_copies_place(d, g, host);
    return to;
}

/* n values, then `fill` up to `padded`. */
static const int32_t *place_padded(struct device *d, const int32_t *from, int n, int padded,
                                   int32_t fill)
{
    int32_t *host;
    const int32_t *to = room(d, (size_t)padded, &host);
    if (n)
        memcpy(host, from, (size_t)n * sizeof *from);
    for (int i = n; i < padded; i++)
        host[i] = fill;
    return to;
}

/* 0, 1, ... go on where padding begins. */
static const int32_t *place_counting(struct device *d, const int32_t *from, int n, int padded)
{
    int32_t *host;
    const int32_t *to = room(d, (size_t)padded, &host);
    if (n)
        memcpy(host, from, (size_t)n * sizeof *from);
    for (int i = n; i < padded; i++)
        host[i] = i;
    return to;
}

/* Tokens; one that only the device knows becomes ~(its row of the token table). */
static const int32_t *place_tokens(struct device *d)
{
    const struct batch *b = d->batch;
    int32_t *host;
    const int32_t *to = room(d, (size_t)d->rows.tokens, &host);
    for (int s = 0; s < b->n_seqs; s++)
        for (int r = b->q_start[s]; r < b->q_start[s + 1]; r++)
            host[r] = b->token[r] == TOKEN_FROM_TABLE ? ~b->seq_row[s] : b->token[r];
    for (int r = b->n_tokens; r < d->rows.tokens; r++)
        host[r] = 0;
    return to;
}

static struct draw_row *place_draw_rows(struct device *d)
{
    const struct draw_rows *r = d->draws;
    int32_t *host;
    int n = r ? r->n_rows : 0, padded = d->padded ? d->rows.logits : n;
    d->draw_row = (const struct draw_row *)room(
        d, (size_t)padded * (sizeof(struct draw_row) / sizeof(int32_t)), &host);
    struct draw_row *to = (struct draw_row *)host;
    if (n)
        memcpy(to, r->row, (size_t)n * sizeof *to);
    for (int i = n; i < padded; i++)
        to[i] = (struct draw_row){.logit = -1};
    return to;
}

/* The block tables of group g; `start` becomes offsets from the upload's beginning. */
static void place_blocks(struct device *d, int g, int32_t *start)
{
    const struct batch *b = d->batch;
    const struct batch_limits *l = &b->limits;
    const int32_t *from = b->block_start + (size_t)g * ((size_t)l->max_seqs + 1);
    size_t at = d->upload_used;
    (void)place(d, b->block + (size_t)g * (size_t)l->max_blocks, (size_t)from[b->n_seqs]);
    for (int s = 0; s <= d->rows.seqs; s++)
        start[s] = (int32_t)at + from[s < b->n_seqs ? s : b->n_seqs];
}

static void place_words(struct device *d, struct draw_row *row)
{
    const struct draw_rows *r = d->draws;
    int32_t at = (int32_t)d->upload_used;
    if (!r)
        return;
    (void)place(d, r->word, (size_t)r->n_words);
    for (int i = 0; i < r->n_rows; i++)
        row[i].list += at;
    for (int i = 0; i < r->n_rows; i++) {
        if (row[i].mask < 0)
            continue;
        const uint32_t *mask = r->mask[row[i].mask];
        row[i].mask = (int32_t)d->upload_used;
        (void)place(d, (const int32_t *)mask, (size_t)draw_mask_words(d->vocab_size));
    }
}

/* Lengths first that the numbers of rows give, then those that are the step's own. */
static void place_arrays(struct device *d, int slot)
{
    const struct batch *b = d->batch;
    const struct batch_limits *l = &b->limits;
    const struct step_rows *n = &d->rows;
    struct step_arrays a = {
        .n_tokens = n->tokens, .n_seqs = n->seqs, .table = d->table, .block = d->upload_device};
    int32_t *header, *start[KV_GROUPS_MAX];
    d->header = room(d, 1 + 2 * KV_GROUPS_MAX, &header);
    header[0] = slot;
    a.token = place_tokens(d);
    a.pos = place_padded(d, b->pos, b->n_tokens, n->tokens, 0);
    a.token_type = place_padded(d, b->token_type, b->n_tokens, n->tokens, 0);
    a.q_start = place_counting(d, b->q_start, b->n_seqs + 1, n->seqs + 1);
    a.kv_len = place_padded(d, b->kv_len, b->n_seqs, n->seqs, 0);
    a.logit_row = place_counting(d, b->logit_row, b->n_logits, n->logits);
    for (int g = 0; g < d->n_groups; g++) {
        const struct attn_spec *spec = &d->group[g];
        d->arrays[g] = a;
        d->arrays[g].slot = place_padded(d, b->slot + (size_t)g * (size_t)l->max_tokens,
                                         b->n_tokens, n->tokens, -1);
        d->arrays[g].block_start = room(d, (size_t)n->seqs + 1, &start[g]);
        d->plan[g] = (struct attn_plan){.tokens_per_tile =
                                            attn_tokens_per_tile(spec->n_heads, spec->n_kv_heads),
                                        .n_sms = d->n_sms,
                                        .hopper = d->is_hopper,
                                        .partial = d->partial,
                                        .counter = d->counter + 1,
                                        .ticket = d->counter,
                                        .wide = d->wide,
                                        .n_split = d->header + 1 + 2 * g,
                                        .split = d->upload_device};
    }
    for (int g = 0; d->seen_group >= 0 && g < d->n_groups; g++) {
        d->arrays[g].seen = d->seen;
        d->arrays[g].seen_slot = d->arrays[d->seen_group].slot;
    }
    struct draw_row *row = place_draw_rows(d);
    for (int g = 0; g < d->n_groups; g++) {
        place_blocks(d, g, start[g]);
        plan_attention(d, g, header + 1 + 2 * g, start[g]);
    }
    place_words(d, row);
}

/* Rows that a step of pure decode is padded to; 0: it is not one, or too large. Its sequences, rows
 * and logits are one and the same. */
static int padded_rows(const struct device *d, const struct batch *b)
{
    const struct draw_rows *r = d->draws;
    int n = b->n_seqs, most = b->limits.max_seqs;
    if (d->no_graphs || !r || r->n_host || n != b->n_tokens || n != b->n_logits ||
        n != b->n_samples || b->n_plogprobs || b->n_pools)
        return 0;
    for (int i = 0; i < n; i++)
        if (b->logit_row[i] != i || b->sample[i].logit != i)
            return 0;
    for (int g = 0; g < d->n_groups; g++) {
        size_t pairs = 0;
        for (int s = 0, first; s < n; s++)
            pairs += (size_t)(chunk_range(b, s, 0, &first) - first);
        if (!d->group[g].causal || pairs > max_pairs(d, b))
            return 0;
    }
    int to = n <= 4     ? n
             : n <= 32  ? (n + 3) / 4 * 4
             : n <= 128 ? (n + 15) / 16 * 16
                        : (n + 31) / 32 * 32;
    most = most < d->draw_rows ? most : d->draw_rows;
    to = to < most ? to : most;
    return to >= n && to <= GRAPH_ROWS_MAX ? to : 0;
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
    int n_copies[KV_GROUPS_MAX], padded = padded_rows(d, b);
    d->batch = b;
    d->padded = padded > 0;
    d->rows = padded ? (struct step_rows){padded, padded, padded}
                     : (struct step_rows){b->n_tokens, b->n_seqs, b->n_logits};
    d->upload_host = s->upload;
    d->upload_used = 0;
    place_arrays(d, (int)(d->n_begun % CUDA_DEPTH));
    for (int g = 0; g < d->n_groups; g++)
        copies[g] = place_copies(d, g, &n_copies[g]);
    cudaMemcpyAsync(d->upload_device, d->upload_host, d->upload_used * sizeof(int32_t),
                    cudaMemcpyHostToDevice, d->stream);
    cuda_note(d, "a step's upload");
    cudaEventRecord(s->done, d->stream); /* again when the step is launched, if it tells */
    for (int g = 0; g < d->n_groups; g++)
        kv_copies_run(d, g, copies[g], n_copies[g]);
    d->n_begun++;
    graph_begin(d);
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
    graph_end(d);
    cudaEventRecord(d->slot[(d->n_begun - 1) % CUDA_DEPTH].done, d->stream);
    cuda_note(d, "a step's end");
    return failure(d, cudaSuccess, err);
}

enum sl_status step_collect(struct device *d, const struct draw_result **result,
                            const struct draw_top **top, struct sl_err *err)
{
    SL_ASSERT(d->n_collected < d->n_begun);
    size_t slot = d->n_collected++ % CUDA_DEPTH, first = slot * (size_t)d->max_samples;
    const struct step_slot *s = &d->slot[slot];
    *result = d->result + first;
    *top = d->top + first * DRAW_TOP_MAX;
    return cuda_check(cudaEventSynchronize(s->done), "a kernel of this step", err);
}
