/* attention.c - paged attention, prefill and decode alike.
 *
 * The query heads that share a KV head, times the rows of a sequence, are one list of "query rows":
 * row c is position c / G, head c % G of the group. An item is up to ATTN_ROWS of them and one KV
 * head, so K and V are read once for the whole group. An item walks the chunks of ATTN_CHUNK
 * positions, at absolute multiples of it:
 *
 *     scores of the chunk -> softmax within the chunk -> weighted values -> combine with the sum
 *
 * A row's chunk sees nothing but that row's query and the positions it may attend to; chunks are
 * combined in order. So a row's bits are the same whoever computes it, with whom and when.
 *
 * Where there are fewer items than threads, chunks are spread over threads too: a round computes
 * some chunks of every item into slots, then combines each item's slots in order. The operations
 * on a row and their order stay the same.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/device.h"

#include <math.h>
#include <string.h>

/* One chunk's result, or the running one, for ATTN_ROWS query rows. */
struct partial {
    float *o; /* [ATTN_ROWS][hd_pad] */
    float max[ATTN_ROWS], sum[ATTN_ROWS];
};

/* What a thread needs for an item; carved from attn_threads. */
struct room {
    char *q;                /* [ATTN_ROWS] packed queries */
    float scale[ATTN_ROWS]; /* i8 KV: of the queries */
    float *s;               /* [ATTN_ROWS][ATTN_CHUNK] scores, then probabilities in place */
    char *regrouped;        /* K and V tiles of a chunk, for odd block sizes */
    struct partial part, total;
};

struct attn {
    struct device *d;
    const struct attn_spec *a;
    const struct kv_group_memory *g;
    const float *qkv;
    float *out;
    int group_heads; /* query heads a KV head */
    int item_rows;   /* query rows an item has at most */
    size_t q_stride; /* bytes of a packed query */
    bool p_bf16, i8;
    const int32_t *first_item; /* [n_seqs + 1] */
    int n_items;
    /* split mode */
    int first_chunk, round_chunks; /* relative to each item's own first chunk */
};

/* One item, located. */
struct item {
    int seq, kv_head;
    int first, rows;                  /* query rows [first, first + rows) of the sequence */
    const int32_t *blocks;            /* of the sequence */
    int end;                          /* of the positions that any row sees */
    int chunk0, n_chunks;             /* that any of its rows can see */
    int lo[ATTN_ROWS], hi[ATTN_ROWS]; /* positions that each row sees: [lo, hi) */
};

/* ---- memory --------------------------------------------------------------------------------- */

enum { SPLIT_ITEMS = 2, SPLIT_SLOTS = 8 }; /* per thread */

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static size_t partial_bytes(const struct device *d)
{
    return align64((size_t)ATTN_ROWS * d->attn_hd_pad * sizeof(float));
}

static size_t regrouped_bytes(const struct device *d)
{
    bool whole = d->kv.layout.block_size % TILE_POS == 0;
    return whole ? 0 : (size_t)2 * ATTN_CHUNK * d->attn_hd_pad * sizeof(float);
}

static size_t room_bytes(const struct device *d)
{
    return align64(sizeof(struct room)) + 3 * partial_bytes(d) +
           (size_t)ATTN_ROWS * ATTN_CHUNK * sizeof(float) + regrouped_bytes(d);
}

static char *take(char **at, size_t bytes)
{
    char *p = *at;
    *at += align64(bytes);
    return p;
}

static void carve_room(struct device *d, int thread)
{
    char *at = (char *)d->attn_threads.p + thread * room_bytes(d);
    struct room *m = (struct room *)take(&at, sizeof *m);
    m->q = take(&at, partial_bytes(d));
    m->part.o = (float *)take(&at, partial_bytes(d));
    m->total.o = (float *)take(&at, partial_bytes(d));
    m->s = (float *)take(&at, (size_t)ATTN_ROWS * ATTN_CHUNK * sizeof(float));
    m->regrouped = take(&at, regrouped_bytes(d));
}

static struct room *room_of(const struct device *d, int thread)
{
    return (struct room *)((char *)d->attn_threads.p + thread * room_bytes(d));
}

static size_t slot_bytes(const struct device *d)
{
    return align64(sizeof(struct partial)) + partial_bytes(d);
}

static struct partial *slot_of(const struct device *d, int i)
{
    return (struct partial *)((char *)d->attn_split.p + i * slot_bytes(d));
}

enum sl_status attention_reserve(struct device *d, const struct attn_spec *layers, int n_layers,
                                 struct sl_err *err)
{
    int threads = pool_threads(d->pool), slots = (SPLIT_ITEMS + SPLIT_SLOTS) * threads;
    d->attn_hd_pad = 16;
    for (int i = 0; i < n_layers; i++)
        if (layers[i].head_dim > d->attn_hd_pad)
            d->attn_hd_pad = (layers[i].head_dim + 15) & ~15;
    if (scratch_need(&d->attn_threads, threads * room_bytes(d), "attention", err) != SL_OK ||
        scratch_need(&d->attn_split, slots * slot_bytes(d), "attention", err) != SL_OK)
        return SL_ENOMEM;
    for (int i = 0; i < threads; i++)
        carve_room(d, i);
    for (int i = 0; i < slots; i++)
        slot_of(d, i)->o = (float *)((char *)slot_of(d, i) + align64(sizeof(struct partial)));
    return SL_OK;
}

/* ---- locating ------------------------------------------------------------------------------- */

static int seq_query_rows(const struct attn *t, int s)
{
    const int32_t *q = t->d->batch->q_start;
    return (q[s + 1] - q[s]) * t->group_heads;
}

static void list_items(struct attn *t)
{
    int32_t *first = t->d->attn_items.p;
    first[0] = 0;
    for (int s = 0; s < t->d->batch->n_seqs; s++) {
        int parts = (seq_query_rows(t, s) + t->item_rows - 1) / t->item_rows;
        first[s + 1] = first[s] + parts * t->a->n_kv_heads;
    }
    t->first_item = first;
    t->n_items = first[t->d->batch->n_seqs];
}

static int find_seq(const struct attn *t, int index)
{
    int lo = 0, hi = t->d->batch->n_seqs - 1; /* the last sequence that begins at or before it */
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (t->first_item[mid] <= index)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

static void find_item(const struct attn *t, int index, struct item *it)
{
    const struct batch *b = t->d->batch;
    int s = find_seq(t, index), part = (index - t->first_item[s]) / t->a->n_kv_heads, n_blocks;
    it->seq = s;
    it->kv_head = (index - t->first_item[s]) % t->a->n_kv_heads;
    it->first = part * t->item_rows;
    it->rows = seq_query_rows(t, s) - it->first;
    if (it->rows > t->item_rows)
        it->rows = t->item_rows;
    it->blocks = batch_blocks(b, t->a->group, s, &n_blocks);
    int low = INT32_MAX, high = 0;
    for (int r = 0; r < it->rows; r++) {
        int pos = b->pos[b->q_start[s] + (it->first + r) / t->group_heads];
        it->hi[r] = t->a->causal ? pos + 1 : b->kv_len[s];
        it->lo[r] = t->a->window > 0 && pos >= t->a->window ? pos - t->a->window + 1 : 0;
        low = it->lo[r] < low ? it->lo[r] : low;
        high = it->hi[r] > high ? it->hi[r] : high;
    }
    it->end = high;
    it->chunk0 = low / ATTN_CHUNK;
    it->n_chunks = (high - 1) / ATTN_CHUNK + 1 - it->chunk0;
}

/* ---- packing queries, finding tiles --------------------------------------------------------- */

static void pack_queries(const struct attn *t, const struct item *it, struct room *m)
{
    const struct attn_spec *a = t->a;
    size_t row_len = (size_t)(a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    for (int r = 0; r < it->rows; r++) {
        int c = it->first + r, row = t->d->batch->q_start[it->seq] + c / t->group_heads;
        int head = it->kv_head * t->group_heads + c % t->group_heads;
        const float *q = t->qkv + row * row_len + (size_t)head * a->head_dim;
        char *out = m->q + r * t->q_stride;
        m->scale[r] = 1;
        if (t->i8) {
            t->d->k.to_i16((int16_t *)out, &m->scale[r], q, a->head_dim, t->g->hd_pad);
            continue;
        }
        if (t->p_bf16) {
            t->d->k.to_bf16((uint16_t *)out, q, a->head_dim, t->g->hd_pad);
            continue;
        }
        memcpy(out, q, (size_t)a->head_dim * sizeof *q);
        memset((float *)out + a->head_dim, 0, (size_t)(t->g->hd_pad - a->head_dim) * sizeof *q);
    }
}

static void copy_scale(const struct attn *t, char *to_tile, int to, const char *from_tile, int from)
{
    size_t at = i8_scale_at(t->g->hd_pad), size = sizeof(float);
    memcpy(to_tile + at + to * size, from_tile + at + from * size, size);
}

/* Copies one position between tiles; the granule is a pair for bf16 and i8, else one value. */
static void regroup_position(const struct attn *t, char *k_to, char *v_to, int to,
                             const char *k_from, const char *v_from, int from)
{
    int hd = t->g->hd_pad, pair = t->d->kv.format == W_BF16 || t->i8;
    size_t size = t->i8 ? 1 : t->d->kv.format == W_F32 ? 4 : 2, granule = pair ? 2 * size : size;
    for (int i = 0; i < (pair ? hd / 2 : hd); i++)
        memcpy(k_to + (size_t)(i * TILE_POS + to) * granule,
               k_from + (size_t)(i * TILE_POS + from) * granule, granule);
    if (!pair) {
        memcpy(v_to + (size_t)(to * hd) * granule, v_from + (size_t)(from * hd) * granule,
               (size_t)hd * granule);
        return;
    }
    for (int i = 0; i < hd; i++)
        memcpy(v_to + (size_t)((to / 2 * hd + i) * 2 + to % 2) * size,
               v_from + (size_t)((from / 2 * hd + i) * 2 + from % 2) * size, size);
    if (!t->i8)
        return;
    copy_scale(t, k_to, to, k_from, from);
    copy_scale(t, v_to, to, v_from, from);
}

/* K tiles of positions [pos, end), pos a multiple of TILE_POS, in blocks of whole tiles. Divides
 * once: a division takes as long as a tile's scores. */
static void list_tiles(const struct attn *t, const struct item *it, int pos, int end,
                       const void **k)
{
    const struct kv_group_memory *g = t->g;
    int bs = t->d->kv.layout.block_size, block = pos / bs, tile = pos % bs / TILE_POS;
    const char *base = kv_tile(g, t->a->layer_in_group, 0, it->kv_head, 0);
    for (; pos < end; pos += TILE_POS) {
        *k++ = base + it->blocks[block] * g->block_bytes + tile * g->tile_bytes;
        if (++tile == g->tiles) {
            tile = 0;
            block++;
        }
    }
}

/* Fills the tile pointers for positions [lo, hi) of a chunk; tile i holds 16 i .. 16 i + 15. */
static void find_tiles(const struct attn *t, const struct item *it, int chunk, int lo, int hi,
                       struct room *m, const void **k, const void **v)
{
    const struct kv_group_memory *g = t->g;
    int bs = t->d->kv.layout.block_size, layer = t->a->layer_in_group, base = chunk * ATTN_CHUNK;
    size_t v_offset = g->tile_bytes * g->tiles;
    if (bs % TILE_POS == 0) {
        list_tiles(t, it, base + lo / TILE_POS * TILE_POS, base + hi, k + lo / TILE_POS);
        for (int i = lo / TILE_POS; i < (hi + TILE_POS - 1) / TILE_POS; i++)
            v[i] = (const char *)k[i] + v_offset;
        return;
    }
    for (int i = lo; i < hi; i++) {
        int pos = base + i, tile = i / TILE_POS, offset = pos % bs;
        const char *from = kv_tile(g, layer, it->blocks[pos / bs], it->kv_head, offset);
        char *to = m->regrouped + (size_t)tile * 2 * g->tile_bytes;
        k[tile] = to;
        v[tile] = to + g->tile_bytes;
        regroup_position(t, to, to + g->tile_bytes, i % TILE_POS, from, from + v_offset,
                         offset % TILE_POS);
    }
}

/* ---- one chunk ------------------------------------------------------------------------------ */

struct span {
    int r0, r1;         /* rows that see something of the chunk */
    int lo, hi;         /* what any of them sees, relative to the chunk */
    int all_lo, all_hi; /* what all of them see, in whole tiles; empty if lo >= hi */
    int row_lo[ATTN_ROWS], row_hi[ATTN_ROWS];
};

/* lo and hi rise from row to row, so the rows that see the chunk are contiguous. */
static bool find_span(const struct item *it, int chunk, struct span *sp)
{
    int begin = chunk * ATTN_CHUNK, end = begin + ATTN_CHUNK;
    sp->r0 = 0;
    sp->r1 = it->rows;
    while (sp->r0 < sp->r1 && it->hi[sp->r0] <= begin)
        sp->r0++;
    while (sp->r1 > sp->r0 && it->lo[sp->r1 - 1] >= end)
        sp->r1--;
    sp->lo = ATTN_CHUNK;
    sp->all_hi = ATTN_CHUNK;
    sp->hi = sp->all_lo = 0;
    for (int r = sp->r0; r < sp->r1; r++) {
        int lo = it->lo[r] > begin ? it->lo[r] - begin : 0;
        int hi = it->hi[r] < end ? it->hi[r] - begin : ATTN_CHUNK;
        sp->row_lo[r] = lo;
        sp->row_hi[r] = hi;
        sp->lo = lo < sp->lo ? lo : sp->lo;
        sp->hi = hi > sp->hi ? hi : sp->hi;
        sp->all_lo = lo > sp->all_lo ? lo : sp->all_lo;
        sp->all_hi = hi < sp->all_hi ? hi : sp->all_hi;
    }
    sp->all_lo = (sp->all_lo + TILE_POS - 1) & ~(TILE_POS - 1);
    sp->all_hi &= ~(TILE_POS - 1);
    return sp->r0 < sp->r1;
}

static void softmax_rows(const struct attn *t, const struct item *it, int chunk,
                         const struct span *sp, struct room *m, struct partial *p)
{
    const struct batch *b = t->d->batch;
    struct softmax sm = {.softcap = t->a->softcap};
    for (int r = sp->r0; r < sp->r1; r++) {
        float *s = m->s + (size_t)r * ATTN_CHUNK;
        sm.lo = sp->row_lo[r];
        sm.hi = sp->row_hi[r];
        sm.scale = t->a->scale * m->scale[r];
        if (t->a->alibi) {
            int c = it->first + r, row = b->q_start[it->seq] + c / t->group_heads;
            sm.alibi = t->a->alibi[it->kv_head * t->group_heads + c % t->group_heads];
            sm.alibi_first = chunk * ATTN_CHUNK - b->pos[row];
        }
        t->d->k.softmax(s, t->p_bf16, &p->max[r], &p->sum[r], s, &sm);
    }
}

/* i8: probabilities times the scales of V become s16, in place; gives what undoes it. */
static void quantize_rows(const struct attn *t, const struct span *sp, struct room *m,
                          const void *const *v, float *scale)
{
    for (int r = sp->r0; r < sp->r1; r++) {
        float *p = m->s + (size_t)r * ATTN_CHUNK;
        int lo = sp->row_lo[r], hi = sp->row_hi[r], from = lo / TILE_POS * TILE_POS;
        int end = (hi + TILE_POS - 1) / TILE_POS * TILE_POS;
        t->d->k.times_scales(p, v, t->g->hd_pad, lo, hi);
        t->d->k.to_i16((int16_t *)(void *)p + from, &scale[r], p + from, end - from, end - from);
    }
}

/* Rows [r, end) see the same positions: heads of one token. */
static int same_span(const struct span *sp, int r)
{
    int end = r + 1;
    while (end < sp->r1 && sp->row_lo[end] == sp->row_lo[r] && sp->row_hi[end] == sp->row_hi[r])
        end++;
    return end;
}

struct values {
    const struct attn *t;
    const struct room *m;
    struct partial *p;
    const struct tiles *v;
};

static void add_values(const struct values *v, int r0, int r1, int lo, int hi)
{
    const size_t stride = ATTN_CHUNK * sizeof(float);
    size_t hd = (size_t)v->t->g->hd_pad;
    if (lo < hi)
        v->t->d->k.pv[v->t->d->kv.format](v->p->o + r0 * hd, hd,
                                          (const char *)v->m->s + r0 * stride, stride, r1 - r0,
                                          v->v, lo, hi, (int)hd);
}

/* Positions in rising order for each row: its own beginning, the tiles all rows share (one call, so
 * that V is read once), its own end. V of positions that a row does not see is never touched for
 * it: it may belong to a later token, or to nobody. */
static void weigh_row_by_row(const struct values *v, const struct span *sp)
{
    bool shared = sp->all_lo < sp->all_hi;
    for (int r = sp->r0, end; shared && r < sp->r1; r = end) {
        end = same_span(sp, r);
        add_values(v, r, end, sp->row_lo[r], sp->all_lo);
    }
    if (shared)
        add_values(v, sp->r0, sp->r1, sp->all_lo, sp->all_hi);
    for (int r = sp->r0, end; r < sp->r1; r = end) {
        end = same_span(sp, r);
        add_values(v, r, end, shared ? sp->all_hi : sp->row_lo[r], sp->row_hi[r]);
    }
}

/* Whether nothing in V from tile t0 on, before tile t1, can be seen through a zero. */
static bool harmless(const struct values *v, int t0, int t1)
{
    enum { EXPONENT = 0x7f80 };
    int bad = v->t->d->kv.format != W_BF16 && !v->t->i8;
    for (int t = t0; t < t1 && !v->t->i8; t++) {
        const uint16_t *x = v->v->tile[t];
        for (int i = 0; i < TILE_POS * v->t->g->hd_pad && !bad; i += TILE_POS)
            for (int j = 0; j < TILE_POS; j++)
                bad |= (x[i + j] & EXPONENT) == EXPONENT;
    }
    return !bad;
}

/* Zeros for the tiles that a row does not touch and others do. */
static void clear_outside(const struct values *v, const struct span *sp)
{
    size_t size = v->t->p_bf16 || v->t->i8 ? 2 : 4;
    int lo = sp->lo / TILE_POS * TILE_POS, hi = (sp->hi + TILE_POS - 1) / TILE_POS * TILE_POS;
    for (int r = sp->r0; r < sp->r1; r++) {
        char *p = (char *)(v->m->s + (size_t)r * ATTN_CHUNK);
        int from = sp->row_lo[r] / TILE_POS * TILE_POS;
        int to = (sp->row_hi[r] + TILE_POS - 1) / TILE_POS * TILE_POS;
        memset(p + (size_t)lo * size, 0, (size_t)(from - lo) * size);
        memset(p + (size_t)to * size, 0, (size_t)(hi - to) * size);
    }
}

/* Rows that see different positions take all that any of them sees, with zeros for probabilities,
 * unless V there is Inf or NaN: 0 times a finite number adds nothing, so the bits are the same. */
static void weigh_values(const struct values *v, const struct span *sp)
{
    if (same_span(sp, sp->r0) < sp->r1) {
        int lo = sp->all_lo / TILE_POS, hi = sp->all_hi / TILE_POS;
        int first = sp->lo / TILE_POS, end = (sp->hi + TILE_POS - 1) / TILE_POS;
        bool shared = lo < hi;
        if (!harmless(v, first, shared ? lo : end) || (shared && !harmless(v, hi, end))) {
            weigh_row_by_row(v, sp);
            return;
        }
        clear_outside(v, sp);
    }
    add_values(v, sp->r0, sp->r1, sp->lo, sp->hi);
}

/* While values are weighed the next chunk's K tiles are fetched: a tile is a page or less, too
 * short for the hardware to notice that it is read in order. */
static void find_next(const struct attn *t, const struct item *it, int chunk, const struct span *sp,
                      const void *const *v, const void **next)
{
    int first = sp->lo / TILE_POS, n = (sp->hi + TILE_POS - 1) / TILE_POS;
    int pos = (chunk + 1) * ATTN_CHUNK + first * TILE_POS, end = pos + (n - first) * TILE_POS;
    for (int i = first; i < n; i++)
        next[i] = v[i]; /* as good as nothing */
    list_tiles(t, it, pos, end < it->end ? end : it->end, next + first);
}

/* An item's first chunk was fetched by nobody. */
static void fetch_now(const struct attn *t, const void *const *k, int n_tiles)
{
    for (int i = 0; i < n_tiles; i++)
        for (size_t b = 0; b < t->g->tile_bytes; b += 64)
            __builtin_prefetch((const char *)k[i] + b, 0, 2);
}

/* The chunk's (max, sum, o) for the rows that see it; false: none does. */
static bool compute_chunk(const struct attn *t, const struct item *it, int chunk, struct room *m,
                          struct partial *p, struct span *sp)
{
    const void *k[CHUNK_TILES], *v[CHUNK_TILES], *next[CHUNK_TILES];
    int hd = t->g->hd_pad;
    if (!find_span(it, chunk, sp))
        return false;
    find_tiles(t, it, chunk, sp->lo, sp->hi, m, k, v);
    int tile0 = sp->lo / TILE_POS, n_tiles = (sp->hi + TILE_POS - 1) / TILE_POS - tile0;
    struct tiles kt = {k + tile0, v + tile0}, vt = {v, next};
    if (t->d->kv.layout.block_size % TILE_POS) { /* just regrouped: in the cache already */
        kt.ahead = vt.ahead = NULL;
    } else {
        if (chunk == it->chunk0)
            fetch_now(t, k + tile0, n_tiles);
        find_next(t, it, chunk, sp, v, next);
    }
    t->d->k.qk[t->d->kv.format](m->s + (size_t)sp->r0 * ATTN_CHUNK + (size_t)tile0 * TILE_POS,
                                ATTN_CHUNK, m->q + sp->r0 * t->q_stride, t->q_stride,
                                sp->r1 - sp->r0, &kt, n_tiles, hd);
    softmax_rows(t, it, chunk, sp, m, p);
    memset(p->o + (size_t)sp->r0 * hd, 0, (size_t)(sp->r1 - sp->r0) * hd * sizeof(float));
    float scale[ATTN_ROWS];
    if (t->i8)
        quantize_rows(t, sp, m, v, scale);
    weigh_values(&(struct values){t, m, p, &vt}, sp);
    for (int r = sp->r0; t->i8 && r < sp->r1; r++)
        t->d->k.from_i32(p->o + (size_t)r * hd, scale[r], hd);
    return true;
}

/* ---- one item ------------------------------------------------------------------------------- */

static void start_total(const struct attn *t, struct partial *total, int rows)
{
    memset(total->o, 0, (size_t)rows * t->g->hd_pad * sizeof(float));
    for (int r = 0; r < rows; r++) {
        total->max[r] = -INFINITY;
        total->sum[r] = 0;
    }
}

static void add_chunk(const struct attn *t, struct partial *total, const struct partial *p,
                      const struct span *sp)
{
    size_t hd = (size_t)t->g->hd_pad;
    for (int r = sp->r0; r < sp->r1; r++)
        t->d->k.combine(total->o + r * hd, &total->max[r], &total->sum[r], p->o + r * hd, p->max[r],
                        p->sum[r], (int)hd);
}

static void write_out(const struct attn *t, const struct item *it, const struct partial *total)
{
    const struct attn_spec *a = t->a;
    for (int r = 0; r < it->rows; r++) {
        int c = it->first + r, row = t->d->batch->q_start[it->seq] + c / t->group_heads;
        int head = it->kv_head * t->group_heads + c % t->group_heads;
        t->d->k.scale_out(t->out + ((size_t)row * a->n_heads + head) * a->head_dim,
                          total->o + (size_t)r * t->g->hd_pad, total->sum[r], a->head_dim);
    }
}

static void whole_item(void *ctx, int index, int thread)
{
    const struct attn *t = ctx;
    struct room *m = room_of(t->d, thread);
    struct item it;
    struct span sp;
    find_item(t, index, &it);
    pack_queries(t, &it, m);
    start_total(t, &m->total, it.rows);
    for (int c = it.chunk0; c < it.chunk0 + it.n_chunks; c++)
        if (compute_chunk(t, &it, c, m, &m->part, &sp))
            add_chunk(t, &m->total, &m->part, &sp);
    write_out(t, &it, &m->total);
}

/* ---- few items: chunks over threads --------------------------------------------------------- */

static struct partial *item_total(const struct attn *t, int index)
{
    return slot_of(t->d, SPLIT_SLOTS * pool_threads(t->d->pool) + index);
}

static void split_chunk(void *ctx, int unit, int thread)
{
    const struct attn *t = ctx;
    struct room *m = room_of(t->d, thread);
    struct item it;
    struct span sp;
    int chunk = t->first_chunk + unit % t->round_chunks;
    find_item(t, unit / t->round_chunks, &it);
    if (chunk >= it.n_chunks)
        return;
    pack_queries(t, &it, m);
    compute_chunk(t, &it, it.chunk0 + chunk, m, slot_of(t->d, unit), &sp);
}

static void split_combine(void *ctx, int index, int thread)
{
    const struct attn *t = ctx;
    struct partial *total = item_total(t, index);
    struct item it;
    struct span sp;
    (void)thread;
    find_item(t, index, &it);
    if (t->first_chunk == 0)
        start_total(t, total, it.rows);
    int end = it.n_chunks - t->first_chunk;
    if (end > t->round_chunks)
        end = t->round_chunks;
    for (int i = 0; i < end; i++)
        if (find_span(&it, it.chunk0 + t->first_chunk + i, &sp))
            add_chunk(t, total, slot_of(t->d, index * t->round_chunks + i), &sp);
    if (end > 0 && t->first_chunk + end == it.n_chunks)
        write_out(t, &it, total);
}

static int most_chunks(const struct attn *t)
{
    int most = 0;
    struct item it;
    for (int i = 0; i < t->n_items; i++) {
        find_item(t, i, &it);
        most = it.n_chunks > most ? it.n_chunks : most;
    }
    return most;
}

static void split_items(struct attn *t)
{
    int chunks = most_chunks(t), slots = SPLIT_SLOTS * pool_threads(t->d->pool);
    t->round_chunks = slots / t->n_items < chunks ? slots / t->n_items : chunks;
    for (t->first_chunk = 0; t->first_chunk < chunks; t->first_chunk += t->round_chunks) {
        pool_for(t->d->pool, t->n_items * t->round_chunks, split_chunk, t);
        pool_for(t->d->pool, t->n_items, split_combine, t);
    }
}

/* ---- the op --------------------------------------------------------------------------------- */

void cpu_attention(struct device *d, void *out, const void *qkv, const struct attn_spec *a)
{
    int threads = pool_threads(d->pool), group_heads = a->n_heads / a->n_kv_heads;
    struct attn t = {.d = d, .a = a, .g = &d->kv.group[a->group], .qkv = qkv, .out = out};
    t.group_heads = group_heads;
    t.item_rows = group_heads <= ATTN_ROWS ? ATTN_ROWS / group_heads * group_heads : ATTN_ROWS;
    t.p_bf16 = d->kv.format == W_BF16 && d->k.x_bf16;
    t.i8 = d->kv.format == W_I8;
    t.q_stride = (size_t)t.g->hd_pad * (t.p_bf16 || t.i8 ? 2 : 4);
    list_items(&t);
    if (t.n_items && threads > 1 && t.n_items < SPLIT_ITEMS * threads)
        split_items(&t);
    else
        pool_for(d->pool, t.n_items, whole_item, &t);
}
