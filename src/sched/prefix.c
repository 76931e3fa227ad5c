/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/prefix.h"

#include "base/mem.h"

#include <string.h>
#include <xxhash.h>

/* A bucket holds half a node on average, so this is reached only by contents made to collide. */
enum { WALK_MAX = 32 };

struct node {
    uint64_t hash[2];
    uint64_t serial; /* unique; 0: not in use, and `next` links the unused ones */
    uint64_t parent;
    int32_t key;
    int32_t next, prev;           /* in the bucket; prev < 0: the first */
    int32_t block[KV_PLACES_MAX]; /* first attached block, -1: none */
};

/* A block's place among the blocks of the same content. */
struct attachment {
    int32_t node, next, prev;
};

struct prefix {
    struct kv_layout layout;
    int n_places, block_size;
    int n_nodes, n_used;
    uint64_t last_serial;
    uint64_t bucket_mask;
    int32_t unused;
    struct node *node;
    int32_t *tokens; /* [n_nodes, block_size] */
    int32_t *bucket;
    struct attachment *attached[KV_PLACES_MAX]; /* [blocks of the place] */
};

enum sl_status prefix_create(struct prefix **out, const struct kv_layout *layout,
                             struct sl_err *err)
{
    struct prefix *p = mem_zalloc(1, sizeof *p);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "prefix cache: no memory");
    p->layout = *layout;
    p->n_places = prefix_n_places(layout);
    p->block_size = layout->block_size;
    for (int i = 0; i < p->n_places; i++) /* a node holds a block at least */
        p->n_nodes += prefix_n_blocks(layout, i);
    size_t n_buckets = 16;
    while (n_buckets < (size_t)p->n_nodes * 2)
        n_buckets *= 2;
    p->bucket_mask = n_buckets - 1;
    p->node = mem_zalloc((size_t)p->n_nodes, sizeof *p->node);
    p->tokens = mem_alloc((size_t)p->n_nodes * (size_t)p->block_size, sizeof *p->tokens);
    p->bucket = mem_alloc(n_buckets, sizeof *p->bucket);
    bool ok = p->node && p->tokens && p->bucket;
    for (int i = 0; i < p->n_places; i++) {
        p->attached[i] = mem_alloc((size_t)prefix_n_blocks(layout, i), sizeof *p->attached[i]);
        ok = ok && p->attached[i];
    }
    if (!ok) {
        prefix_destroy(&p);
        return SL_FAIL(err, SL_ENOMEM, "prefix cache: no memory for %d blocks", layout->n_blocks);
    }
    memset(p->bucket, 0xff, n_buckets * sizeof *p->bucket);
    for (int i = 0; i < p->n_places; i++)
        memset(p->attached[i], 0xff, (size_t)prefix_n_blocks(layout, i) * sizeof *p->attached[i]);
    for (int32_t i = 0; i < p->n_nodes; i++)
        p->node[i].next = i + 1 < p->n_nodes ? i + 1 : -1;
    *out = p;
    return SL_OK;
}

void prefix_destroy(struct prefix **pp)
{
    struct prefix *p = *pp;
    if (!p)
        return;
    mem_free(p->node);
    mem_free(p->tokens);
    mem_free(p->bucket);
    for (int i = 0; i < p->n_places; i++)
        mem_free(p->attached[i]);
    mem_free(p);
    *pp = NULL;
}

struct prefix_content prefix_content_of(const struct prefix *p, const struct kv_chain *chain,
                                        int32_t key, const uint64_t extra[2], const int32_t *tokens)
{
    XXH128_hash_t own = XXH3_128bits(tokens, (size_t)p->block_size * sizeof *tokens);
    const uint64_t all[6] = {chain->hash[0], chain->hash[1], extra[0],
                             extra[1],       own.low64,      own.high64};
    XXH128_hash_t h = XXH3_128bits(all, sizeof all);
    return (struct prefix_content){
        .hash = {h.low64, h.high64}, .parent = chain->serial, .key = key, .tokens = tokens};
}

static int32_t *tokens_of(const struct prefix *p, int32_t node)
{
    return p->tokens + (size_t)node * (size_t)p->block_size;
}

static bool equal(const struct prefix *p, int32_t i, const struct prefix_content *c)
{
    const struct node *n = &p->node[i];
    return n->hash[0] == c->hash[0] && n->hash[1] == c->hash[1] && n->parent == c->parent &&
           n->key == c->key &&
           memcmp(tokens_of(p, i), c->tokens, (size_t)p->block_size * sizeof *c->tokens) == 0;
}

int32_t prefix_find(const struct prefix *p, const struct prefix_content *c)
{
    for (int32_t i = p->bucket[c->hash[0] & p->bucket_mask]; i >= 0; i = p->node[i].next)
        if (equal(p, i, c))
            return i;
    return PREFIX_NONE;
}

int32_t prefix_add(struct prefix *p, const struct prefix_content *c)
{
    int32_t *bucket = &p->bucket[c->hash[0] & p->bucket_mask];
    int n = 0;
    for (int32_t i = *bucket; i >= 0; i = p->node[i].next)
        n++;
    if (n >= WALK_MAX)
        return PREFIX_NONE;
    int32_t at = p->unused;
    SL_ASSERT(at >= 0); /* as many nodes as blocks, and each has one */
    struct node *node = &p->node[at];
    p->unused = node->next;
    p->n_used++;
    *node = (struct node){.hash = {c->hash[0], c->hash[1]},
                          .serial = ++p->last_serial,
                          .parent = c->parent,
                          .key = c->key,
                          .next = *bucket,
                          .prev = -1,
                          .block = {-1, -1, -1, -1, -1, -1, -1, -1}};
    _Static_assert(KV_PLACES_MAX == 8, "one -1 a place");
    if (*bucket >= 0)
        p->node[*bucket].prev = at;
    *bucket = at;
    memcpy(tokens_of(p, at), c->tokens, (size_t)p->block_size * sizeof *c->tokens);
    return at;
}

void prefix_follow(const struct prefix *p, struct kv_chain *chain, int32_t node)
{
    const struct node *n = &p->node[node];
    *chain = (struct kv_chain){.hash = {n->hash[0], n->hash[1]}, .serial = n->serial, .node = node};
}

bool prefix_alive(const struct prefix *p, const struct kv_chain *chain)
{
    return !chain->broken && (chain->node < 0 || p->node[chain->node].serial == chain->serial);
}

void prefix_attach(struct prefix *p, int32_t node, int place, int32_t blk)
{
    struct attachment *all = p->attached[place];
    int32_t *first = &p->node[node].block[place];
    SL_ASSERT(all[blk].node < 0);
    all[blk] = (struct attachment){.node = node, .next = *first, .prev = -1};
    if (*first >= 0)
        all[*first].prev = blk;
    *first = blk;
}

static void free_node(struct prefix *p, int32_t at)
{
    struct node *n = &p->node[at];
    if (n->prev >= 0)
        p->node[n->prev].next = n->next;
    else
        p->bucket[n->hash[0] & p->bucket_mask] = n->next;
    if (n->next >= 0)
        p->node[n->next].prev = n->prev;
    n->serial = 0;
    n->next = p->unused;
    p->unused = at;
    p->n_used--;
}

int32_t prefix_detach(struct prefix *p, int place, int32_t blk)
{
    struct attachment *all = p->attached[place], *a = &all[blk];
    int32_t at = a->node;
    if (at < 0)
        return 0;
    struct node *n = &p->node[at];
    if (a->prev >= 0)
        all[a->prev].next = a->next;
    else
        n->block[place] = a->next;
    if (a->next >= 0)
        all[a->next].prev = a->prev;
    *a = (struct attachment){-1, -1, -1};
    for (int i = 0; i < p->n_places; i++)
        if (n->block[i] >= 0)
            return 0;
    free_node(p, at);
    return n->key;
}

int32_t prefix_node(const struct prefix *p, int place, int32_t blk)
{
    return p->attached[place][blk].node;
}

int32_t prefix_block(const struct prefix *p, int32_t node, int place)
{
    return p->node[node].block[place];
}

bool prefix_is_last(const struct prefix *p, int place, int32_t blk)
{
    const struct attachment *a = &p->attached[place][blk];
    return a->node >= 0 && a->next < 0 && a->prev < 0;
}

int prefix_n_nodes(const struct prefix *p)
{
    return p->n_used;
}

/* Every block on the node's lists points back at it; returns how many there are. */
static int check_node(const struct prefix *p, int32_t at)
{
    int n = 0;
    for (int i = 0; i < p->n_places; i++) {
        int32_t before = -1;
        for (int32_t b = p->node[at].block[i]; b >= 0; b = p->attached[i][b].next) {
            SL_ASSERT(p->attached[i][b].node == at && p->attached[i][b].prev == before);
            before = b;
            n++;
            SL_ASSERT(n <= p->n_nodes);
        }
    }
    SL_ASSERT(n > 0);
    return n;
}

void prefix_check(const struct prefix *p)
{
    int n_nodes = 0, n_attached = 0, n_found = 0;
    for (uint64_t b = 0; b <= p->bucket_mask; b++) {
        int32_t before = -1;
        for (int32_t i = p->bucket[b]; i >= 0; i = p->node[i].next) {
            const struct node *n = &p->node[i];
            SL_ASSERT(n->serial > 0 && (n->hash[0] & p->bucket_mask) == b && n->prev == before);
            before = i;
            n_attached += check_node(p, i);
            SL_ASSERT(++n_nodes <= p->n_nodes);
        }
    }
    SL_ASSERT(n_nodes == p->n_used);
    for (int i = 0; i < p->n_places; i++)
        for (int b = 0; b < prefix_n_blocks(&p->layout, i); b++)
            n_found += p->attached[i][b].node >= 0;
    SL_ASSERT(n_found == n_attached);
    for (int32_t i = p->unused; i >= 0; i = p->node[i].next)
        SL_ASSERT(++n_nodes <= p->n_nodes);
    SL_ASSERT(n_nodes == p->n_nodes);
}
