/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/kvpool.h"

#include "base/mem.h"
#include "sched/cachekey.h"
#include "sched/prefix.h"

struct kvblock {
    int32_t ref;
    int32_t prev, next; /* on the free list while ref == 0 */
};

struct kvpool {
    struct kv_layout layout;
    /* [n_blocks + 1]: the last is the free list's sentinel; its next is reused first. */
    struct kvblock *block[KV_GROUPS_MAX];
    int n_free[KV_GROUPS_MAX];
    bool caching;
    struct prefix *prefix; /* NULL without caching */
    struct cachekeys keys;
    int32_t *match; /* [max_blocks]: nodes of the last kvpool_match */
    int max_blocks;
};

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
    return SL_OK;
}

static bool make_group(struct kvpool *pool, int g)
{
    int n = pool->layout.n_blocks;
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

enum sl_status kvpool_create(struct kvpool **out, const struct kv_layout *layout, int max_len,
                             bool prefix_caching, struct sl_err *err)
{
    enum sl_status st = check_layout(layout, err);
    if (st)
        return st;
    struct kvpool *pool = mem_zalloc(1, sizeof *pool);
    if (!pool)
        return SL_FAIL(err, SL_ENOMEM, "KV pool: no memory");
    pool->layout = *layout;
    pool->caching = prefix_caching;
    bool ok = cachekeys_init(&pool->keys) == 0;
    for (int g = 0; ok && g < layout->n_groups; g++)
        ok = make_group(pool, g);
    if (ok && prefix_caching) {
        pool->max_blocks = max_len / layout->block_size + 1;
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
    for (int g = 0; g < KV_GROUPS_MAX; g++)
        mem_free(pool->block[g]);
    prefix_destroy(&pool->prefix);
    cachekeys_fini(&pool->keys);
    mem_free(pool->match);
    mem_free(pool);
    *pp = NULL;
}

/* The block's content is about to change. */
static void forget(struct kvpool *pool, int group, int32_t blk)
{
    if (pool->caching)
        cachekey_drop(&pool->keys, prefix_detach(pool->prefix, group, blk));
}

enum sl_status kvpool_take(struct kvpool *pool, int group, int32_t *blk)
{
    struct kvblock *b = pool->block[group];
    if (pool->n_free[group] == 0)
        return SL_EAGAIN;
    int32_t i = b[pool->layout.n_blocks].next;
    unlink_free(b, i);
    pool->n_free[group]--;
    forget(pool, group, i);
    b[i].ref = 1;
    *blk = i;
    return SL_OK;
}

void kvpool_hold(struct kvpool *pool, int group, int32_t blk)
{
    struct kvblock *b = pool->block[group];
    if (b[blk].ref++ == 0) {
        unlink_free(b, blk);
        pool->n_free[group]--;
    }
}

void kvpool_drop(struct kvpool *pool, int group, int32_t blk)
{
    struct kvblock *b = pool->block[group];
    int32_t sentinel = pool->layout.n_blocks;
    SL_ASSERT(b[blk].ref > 0);
    if (--b[blk].ref > 0)
        return;
    bool keep = pool->caching && prefix_attached(pool->prefix, group, blk);
    link_free_after(b, keep ? b[sentinel].prev : sentinel, blk);
    pool->n_free[group]++;
}

int kvpool_refs(const struct kvpool *pool, int group, int32_t blk)
{
    return pool->block[group][blk].ref;
}

int kvpool_n_free(const struct kvpool *pool, int group)
{
    return pool->n_free[group];
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

/* The matched blocks are present in every group, as far back as a row at block n can see. */
static bool holds_in_all(const struct kvpool *pool, int n)
{
    for (int g = 0; g < pool->layout.n_groups; g++) {
        if (!pool->layout.group[g].window)
            continue; /* kvpool_match stopped where such a group ended */
        for (int i = first_visible(pool, g, n); i < n; i++)
            if (prefix_block(pool->prefix, pool->match[i], g) < 0)
                return false;
    }
    return true;
}

int kvpool_match(struct kvpool *pool, int32_t key, const int32_t *tokens, int n_blocks)
{
    if (!pool->caching || key < 0)
        return 0;
    struct kv_chain chain = {.node = -1};
    int n = 0;
    for (; n < n_blocks && n < pool->max_blocks; n++) {
        struct prefix_content c =
            prefix_content_of(pool->prefix, &chain, key, pool->keys.key[key].hash,
                              tokens + (size_t)n * (size_t)pool->layout.block_size);
        int32_t node = prefix_find(pool->prefix, &c);
        if (node < 0)
            break;
        bool full = true;
        for (int g = 0; g < pool->layout.n_groups; g++)
            full =
                full && (pool->layout.group[g].window || prefix_block(pool->prefix, node, g) >= 0);
        if (!full)
            break;
        pool->match[n] = node;
        prefix_follow(pool->prefix, &chain, node);
    }
    while (n > 0 && !holds_in_all(pool, n))
        n--;
    return n;
}

int kvpool_match_free(const struct kvpool *pool, int group, int n)
{
    int n_free = 0;
    for (int i = first_visible(pool, group, n); i < n; i++) {
        int32_t b = prefix_block(pool->prefix, pool->match[i], group);
        n_free += pool->block[group][b].ref == 0;
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
            t->block[i] = prefix_block(pool->prefix, pool->match[i], g);
            kvpool_hold(pool, g, t->block[i]);
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
        if (blk[g] >= 0 && !prefix_attached(pool->prefix, g, blk[g]))
            prefix_attach(pool->prefix, node, g, blk[g]);
    prefix_follow(pool->prefix, chain, node);
}

void kvpool_forget(struct kvpool *pool)
{
    for (int g = 0; g < pool->layout.n_groups; g++)
        for (int32_t i = 0; i < pool->layout.n_blocks; i++)
            forget(pool, g, i);
}

int kvpool_n_cached(const struct kvpool *pool)
{
    return pool->caching ? prefix_n_nodes(pool->prefix) : 0;
}

static void check_free_list(const struct kvpool *pool, int g)
{
    const struct kvblock *b = pool->block[g];
    int n = pool->layout.n_blocks, n_free = 0, n_held = 0;
    for (int32_t i = b[n].next, before = n; i != n; before = i, i = b[i].next) {
        SL_ASSERT(i >= 0 && i < n && b[i].ref == 0 && b[i].prev == before);
        SL_ASSERT(++n_free <= n);
    }
    for (int32_t i = 0; i < n; i++) {
        SL_ASSERT(b[i].ref >= 0);
        n_held += b[i].ref > 0;
    }
    SL_ASSERT(n_free == pool->n_free[g] && n_free + n_held == n);
}

void kvpool_check(const struct kvpool *pool)
{
    for (int g = 0; g < pool->layout.n_groups; g++)
        check_free_list(pool, g);
    if (pool->caching)
        prefix_check(pool->prefix);
}
