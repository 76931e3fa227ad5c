/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/kvpool.h"

#include "base/mem.h"
#include "sched/cachekey.h"
#include "sched/prefix.h"

#include <string.h>

struct kvblock {
    int32_t ref;
    int32_t prev, next; /* on the free list while ref == 0 */
};

struct kvpool {
    struct kv_layout layout;
    int n_places;
    /* [blocks + 1]: the last is the free list's sentinel; its next is reused first. */
    struct kvblock *block[KV_PLACES_MAX];
    int n_free[KV_PLACES_MAX];
    bool caching, offload;
    struct prefix *prefix; /* NULL without caching */
    struct cachekeys keys;
    int32_t *match; /* [max_blocks]: nodes of the last kvpool_match */
    int max_blocks;
    /* Copies of each kind have room of their own: blocks of the longest sequence to host memory and
     * back, and one a sequence on the device. */
    struct block_copy *copy;
    int n_copies, n_of_kind[N_COPY_KINDS], max_of_kind[N_COPY_KINDS];
};

static int blocks_of(const struct kvpool *pool, int place)
{
    return prefix_n_blocks(&pool->layout, place);
}

static int host_of(const struct kvpool *pool, int group)
{
    return prefix_host(&pool->layout, group);
}

static void unlink_free(struct kvblock *b, int32_t i)
{
    b[b[i].prev].next = b[i].next;
    b[b[i].next].prev = b[i].prev;
}

static void link_free_after(struct kvblock *b, int32_t at, int32_t i)
{
    b[i].prev = at;
    b[i].next = b[at].next;
    b[b[at].next].prev = i;
    b[at].next = i;
}

static enum sl_status check_layout(const struct kv_layout *l, struct sl_err *err)
{
    if (l->n_groups < 1 || l->n_groups > KV_GROUPS_MAX)
        return SL_FAIL(err, SL_EINVAL, "KV cache: %d layer groups, 1 to %d are possible",
                       l->n_groups, KV_GROUPS_MAX);
    if (l->block_size < 1 || l->block_size > KV_BLOCK_SIZE_MAX)
        return SL_FAIL(err, SL_EINVAL, "KV cache: block size %d, 1 to %d are possible",
                       l->block_size, KV_BLOCK_SIZE_MAX);
    if (l->n_blocks < 1 || l->n_blocks > INT32_MAX / KV_BLOCK_SIZE_MAX)
        return SL_FAIL(err, SL_EINVAL, "KV cache: %d blocks, 1 to %d are possible", l->n_blocks,
                       INT32_MAX / KV_BLOCK_SIZE_MAX);
    if (l->n_host_blocks < 0 || l->n_host_blocks > INT32_MAX / KV_BLOCK_SIZE_MAX)
        return SL_FAIL(err, SL_EINVAL, "KV cache: %d blocks in host memory, 0 to %d are possible",
                       l->n_host_blocks, INT32_MAX / KV_BLOCK_SIZE_MAX);
    return SL_OK;
}

static bool make_place(struct kvpool *pool, int g)
{
    int n = blocks_of(pool, g);
    struct kvblock *b = mem_zalloc((size_t)n + 1, sizeof *b);
    if (!b)
        return false;
    pool->block[g] = b;
    b[n].prev = b[n].next = n;
    for (int32_t i = n - 1; i >= 0; i--) /* low numbers first */
        link_free_after(b, n, i);
    pool->n_free[g] = n;
    return true;
}

static bool make_copies(struct kvpool *pool, const struct kvpool_config *cfg)
{
    const struct kv_layout *l = &cfg->layout;
    int longest = l->n_host_blocks ? l->n_groups * (cfg->max_len / l->block_size + 1) : 0;
    pool->max_of_kind[COPY_ON_DEVICE] = l->n_groups * cfg->max_seqs;
    pool->max_of_kind[COPY_TO_HOST] = pool->max_of_kind[COPY_FROM_HOST] = longest;
    int n = kvpool_max_copies(pool);
    return n == 0 || (pool->copy = mem_alloc((size_t)n, sizeof *pool->copy)) != NULL;
}

enum sl_status kvpool_create(struct kvpool **out, const struct kvpool_config *cfg,
                             struct sl_err *err)
{
    const struct kv_layout *layout = &cfg->layout;
    enum sl_status st = check_layout(layout, err);
    if (st)
        return st;
    struct kvpool *pool = mem_zalloc(1, sizeof *pool);
    if (!pool)
        return SL_FAIL(err, SL_ENOMEM, "KV pool: no memory");
    pool->layout = *layout;
    pool->n_places = prefix_n_places(layout);
    pool->caching = cfg->prefix_caching;
    pool->offload = cfg->prefix_caching && cfg->offload && layout->n_host_blocks;
    bool ok = cachekeys_init(&pool->keys) == 0 && make_copies(pool, cfg);
    for (int i = 0; ok && i < pool->n_places; i++)
        ok = make_place(pool, i);
    if (ok && pool->caching) {
        pool->max_blocks = cfg->max_len / layout->block_size + 1;
        pool->match = mem_alloc((size_t)pool->max_blocks, sizeof *pool->match);
        ok = pool->match && prefix_create(&pool->prefix, layout, err) == SL_OK;
    }
    if (!ok) {
        kvpool_destroy(&pool);
        return SL_FAIL(err, SL_ENOMEM, "KV pool: no memory for %d blocks", layout->n_blocks);
    }
    *out = pool;
    return SL_OK;
}

void kvpool_destroy(struct kvpool **pp)
{
    struct kvpool *pool = *pp;
    if (!pool)
        return;
    for (int i = 0; i < KV_PLACES_MAX; i++)
        mem_free(pool->block[i]);
    mem_free(pool->copy);
    prefix_destroy(&pool->prefix);
    cachekeys_fini(&pool->keys);
    mem_free(pool->match);
    mem_free(pool);
    *pp = NULL;
}

static bool can_note(const struct kvpool *pool, enum copy_kind kind)
{
    return pool->n_of_kind[kind] < pool->max_of_kind[kind];
}

static void note(struct kvpool *pool, enum copy_kind kind, int group, int32_t src, int32_t dst)
{
    pool->n_of_kind[kind]++;
    pool->copy[pool->n_copies++] =
        (struct block_copy){.kind = (int32_t)kind, .group = group, .src = src, .dst = dst};
}

static int32_t node_of(const struct kvpool *pool, int place, int32_t blk)
{
    return pool->caching ? prefix_node(pool->prefix, place, blk) : PREFIX_NONE;
}

/* The block's content is about to change. */
static void forget(struct kvpool *pool, int place, int32_t blk)
{
    if (pool->caching)
        cachekey_drop(&pool->keys, prefix_detach(pool->prefix, place, blk));
}

/* A content leaves the device with this block: to host memory, if nothing forbids. */
static void offload(struct kvpool *pool, int group, int32_t blk)
{
    int host = host_of(pool, group);
    int32_t to;
    if (!pool->offload || group >= pool->layout.n_groups || !can_note(pool, COPY_TO_HOST) ||
        !prefix_is_last(pool->prefix, group, blk) ||
        prefix_block(pool->prefix, node_of(pool, group, blk), host) >= 0 ||
        kvpool_take(pool, host, &to))
        return;
    note(pool, COPY_TO_HOST, group, blk, to);
    prefix_attach(pool->prefix, node_of(pool, group, blk), host, to);
    kvpool_drop(pool, host, to);
}

enum sl_status kvpool_take(struct kvpool *pool, int place, int32_t *blk)
{
    struct kvblock *b = pool->block[place];
    if (pool->n_free[place] == 0)
        return SL_EAGAIN;
    int32_t i = b[blocks_of(pool, place)].next;
    unlink_free(b, i);
    pool->n_free[place]--;
    b[i].ref = 1;
    offload(pool, place, i);
    forget(pool, place, i);
    *blk = i;
    return SL_OK;
}

void kvpool_hold(struct kvpool *pool, int place, int32_t blk)
{
    struct kvblock *b = pool->block[place];
    if (b[blk].ref++ == 0) {
        unlink_free(b, blk);
        pool->n_free[place]--;
    }
}

void kvpool_drop(struct kvpool *pool, int place, int32_t blk)
{
    struct kvblock *b = pool->block[place];
    int32_t sentinel = blocks_of(pool, place);
    SL_ASSERT(b[blk].ref > 0);
    if (--b[blk].ref > 0)
        return;
    link_free_after(b, node_of(pool, place, blk) >= 0 ? b[sentinel].prev : sentinel, blk);
    pool->n_free[place]++;
}

int kvpool_refs(const struct kvpool *pool, int place, int32_t blk)
{
    return pool->block[place][blk].ref;
}

int kvpool_n_free(const struct kvpool *pool, int place)
{
    return pool->n_free[place];
}

int kvpool_max_copies(const struct kvpool *pool)
{
    int n = 0;
    for (int i = 0; i < N_COPY_KINDS; i++)
        n += pool->max_of_kind[i];
    return n;
}

int kvpool_take_copies(struct kvpool *pool, struct block_copy *to)
{
    int n = pool->n_copies;
    if (n)
        memcpy(to, pool->copy, (size_t)n * sizeof *to);
    pool->n_copies = 0;
    memset(pool->n_of_kind, 0, sizeof pool->n_of_kind);
    return n;
}

bool kvpool_copy(struct kvpool *pool, int group, int32_t src, int32_t dst)
{
    if (!can_note(pool, COPY_ON_DEVICE))
        return false;
    note(pool, COPY_ON_DEVICE, group, src, dst);
    return true;
}

int kvpool_stores_left(const struct kvpool *pool)
{
    return pool->max_of_kind[COPY_TO_HOST] - pool->n_of_kind[COPY_TO_HOST];
}

int kvpool_loads_left(const struct kvpool *pool)
{
    return pool->max_of_kind[COPY_FROM_HOST] - pool->n_of_kind[COPY_FROM_HOST];
}

int32_t kvpool_twin(const struct kvpool *pool, int place, int32_t blk)
{
    int n = pool->layout.n_groups, other = place < n ? place + n : place - n;
    int32_t node = node_of(pool, place, blk);
    return node >= 0 ? prefix_block(pool->prefix, node, other) : -1;
}

enum sl_status kvpool_store(struct kvpool *pool, int group, int32_t blk, int32_t *host)
{
    int place = host_of(pool, group);
    *host = kvpool_twin(pool, group, blk);
    if (*host >= 0) {
        kvpool_hold(pool, place, *host);
        return SL_OK;
    }
    if (!can_note(pool, COPY_TO_HOST) || kvpool_take(pool, place, host))
        return SL_EAGAIN;
    note(pool, COPY_TO_HOST, group, blk, *host);
    int32_t node = node_of(pool, group, blk);
    if (node >= 0)
        prefix_attach(pool->prefix, node, place, *host);
    return SL_OK;
}

void kvpool_load(struct kvpool *pool, int group, int32_t host, int32_t blk)
{
    SL_ASSERT(can_note(pool, COPY_FROM_HOST));
    note(pool, COPY_FROM_HOST, group, host, blk);
    int32_t node = node_of(pool, host_of(pool, group), host);
    if (node >= 0)
        prefix_attach(pool->prefix, node, group, blk);
}

int32_t kvpool_key_take(struct kvpool *pool, const char *bytes, size_t n)
{
    return pool->caching ? cachekey_take(&pool->keys, bytes, n) : 0;
}

void kvpool_key_drop(struct kvpool *pool, int32_t key)
{
    cachekey_drop(&pool->keys, key);
}

/* First block that a row at the start of block n still sees. */
static int first_visible(const struct kvpool *pool, int group, int n)
{
    int window = pool->layout.group[group].window;
    int from = n * pool->layout.block_size - window + 1;
    return window && from > 0 ? from / pool->layout.block_size : 0;
}

/* A block of the group with this content, on the device or in host memory; -1 and KV_AWAY as in a
 * table. */
static int32_t block_of(const struct kvpool *pool, int group, int32_t node)
{
    int32_t blk = prefix_block(pool->prefix, node, group);
    if (blk >= 0 || !pool->layout.n_host_blocks)
        return blk;
    int32_t host = prefix_block(pool->prefix, node, host_of(pool, group));
    return host >= 0 ? KV_AWAY(host) : -1;
}

/* The matched blocks are present in every group, as far back as a row at block n can see; with
 * `loads`, those in host memory count. */
static bool holds_in_all(const struct kvpool *pool, int n, bool loads)
{
    for (int g = 0; g < pool->layout.n_groups; g++) {
        if (!pool->layout.group[g].window)
            continue; /* kvpool_match stopped where such a group ended */
        for (int i = first_visible(pool, g, n); i < n; i++) {
            int32_t blk = block_of(pool, g, pool->match[i]);
            if (blk == -1 || (blk < 0 && !loads))
                return false;
        }
    }
    return true;
}

/* Blocks that groups without a window may load before this step, so that the others can too;
 * negative: nobody may. */
static int loads_for_whole(const struct kvpool *pool)
{
    int n = kvpool_loads_left(pool), size = pool->layout.block_size;
    for (int g = 0; g < pool->layout.n_groups; g++)
        if (pool->layout.group[g].window) {
            int seen = pool->layout.group[g].window / size + 2;
            n -= seen < pool->max_blocks ? seen : pool->max_blocks;
        }
    return n;
}

int kvpool_match(struct kvpool *pool, int32_t key, const int32_t *tokens, int n_blocks)
{
    if (!pool->caching || key < 0)
        return 0;
    struct kv_chain chain = {.node = -1};
    int n = 0, loads = pool->layout.n_host_blocks ? loads_for_whole(pool) : -1;
    bool may_load = loads >= 0;
    for (; n < n_blocks && n < pool->max_blocks; n++) {
        struct prefix_content c =
            prefix_content_of(pool->prefix, &chain, key, pool->keys.key[key].hash,
                              tokens + (size_t)n * (size_t)pool->layout.block_size);
        int32_t node = prefix_find(pool->prefix, &c);
        if (node < 0)
            break;
        bool full = true;
        for (int g = 0; g < pool->layout.n_groups; g++) {
            int32_t blk = pool->layout.group[g].window ? 0 : block_of(pool, g, node);
            full = full && blk != -1;
            full = full && (blk >= 0 || loads-- > 0);
        }
        if (!full)
            break;
        pool->match[n] = node;
        prefix_follow(pool->prefix, &chain, node);
    }
    while (n > 0 && !holds_in_all(pool, n, may_load))
        n--;
    return n;
}

int kvpool_match_free(const struct kvpool *pool, int group, int n)
{
    int n_free = 0;
    for (int i = first_visible(pool, group, n); i < n; i++) {
        int32_t b = block_of(pool, group, pool->match[i]);
        n_free += b < 0 || pool->block[group][b].ref == 0;
    }
    return n_free;
}

void kvpool_adopt(struct kvpool *pool, int n, struct block_table *table, struct kv_chain *chain)
{
    for (int g = 0; g < pool->layout.n_groups; g++) {
        struct block_table *t = &table[g];
        SL_ASSERT(t->n == 0 && n <= t->cap);
        for (int i = 0; i < n; i++)
            t->block[i] = -1;
        for (int i = first_visible(pool, g, n); i < n; i++) {
            int32_t b = block_of(pool, g, pool->match[i]);
            t->block[i] = b;
            kvpool_hold(pool, b < 0 ? host_of(pool, g) : g, b < 0 ? KV_AWAY(b) : b);
        }
        t->n = n;
        t->first = first_visible(pool, g, n);
    }
    *chain = (struct kv_chain){.node = -1};
    if (n)
        prefix_follow(pool->prefix, chain, pool->match[n - 1]);
}

void kvpool_enter(struct kvpool *pool, struct kv_chain *chain, int32_t key, const int32_t *tokens,
                  const int32_t *blk)
{
    if (!pool->caching || key < 0)
        return;
    if (!prefix_alive(pool->prefix, chain)) {
        chain->broken = true;
        return;
    }
    struct prefix_content c =
        prefix_content_of(pool->prefix, chain, key, pool->keys.key[key].hash, tokens);
    int32_t node = prefix_find(pool->prefix, &c);
    bool made = node < 0, any = false;
    for (int g = 0; g < pool->layout.n_groups; g++)
        any = any || blk[g] >= 0;
    if (made && any)
        node = prefix_add(pool->prefix, &c);
    if (node < 0) {
        chain->broken = true;
        return;
    }
    if (made)
        cachekey_hold(&pool->keys, key);
    for (int g = 0; g < pool->layout.n_groups; g++)
        if (blk[g] >= 0 && prefix_node(pool->prefix, g, blk[g]) < 0)
            prefix_attach(pool->prefix, node, g, blk[g]);
    prefix_follow(pool->prefix, chain, node);
}

void kvpool_forget(struct kvpool *pool)
{
    for (int p = 0; p < pool->n_places; p++)
        for (int32_t i = 0; i < blocks_of(pool, p); i++)
            forget(pool, p, i);
}

int kvpool_n_cached(const struct kvpool *pool)
{
    return pool->caching ? prefix_n_nodes(pool->prefix) : 0;
}

static void check_free_list(const struct kvpool *pool, int place)
{
    const struct kvblock *b = pool->block[place];
    int n = blocks_of(pool, place), n_free = 0, n_held = 0;
    for (int32_t i = b[n].next, before = n; i != n; before = i, i = b[i].next) {
        SL_ASSERT(i >= 0 && i < n && b[i].ref == 0 && b[i].prev == before);
        SL_ASSERT(++n_free <= n);
    }
    for (int32_t i = 0; i < n; i++) {
        SL_ASSERT(b[i].ref >= 0);
        n_held += b[i].ref > 0;
    }
    SL_ASSERT(n_free == pool->n_free[place] && n_free + n_held == n);
}

void kvpool_check(const struct kvpool *pool)
{
    for (int p = 0; p < pool->n_places; p++)
        check_free_list(pool, p);
    if (pool->caching)
        prefix_check(pool->prefix);
}
