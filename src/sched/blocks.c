/* A sequence's block tables: adopted from the prefix cache, reserved at admission, grown a block at
 * a time, copied on write, freed behind a window.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include <string.h>

/* A window's blocks come back as it moves, so a long prompt needs no more than the window and one
 * chunk. */
int blocks_at_admission(const struct sched *s, int group, int n_hit, int reserve)
{
    int window = s->cfg.layout.group[group].window;
    int64_t hit = (int64_t)n_hit * s->cfg.layout.block_size; /* the window before it is held */
    int64_t most =
        (hit > window ? hit : window) + s->cfg.max_num_batched_tokens + s->cfg.layout.block_size;
    return window && !s->by_batch && most < reserve ? (int)most : reserve;
}

bool blocks_take(struct sched *s, int group, int32_t *blk)
{
    struct proposer *p = s->proposer;
    if (kvpool_take(s->pool, group, blk))
        return false;
    if (p && p->ops->block_taken && group == p->group)
        p->ops->block_taken(p, *blk);
    return true;
}

bool blocks_extend(struct sched *s, int group, struct block_table *t, int n)
{
    int want = ceil_div(n, s->cfg.layout.block_size);
    if (want > t->n && !intpool_grow(&s->ints, &t->block, &t->cap, t->n, want))
        return false;
    for (; t->n < want; t->n++)
        if (!blocks_take(s, group, &t->block[t->n]))
            return false;
    return true;
}

static bool fits(const struct sched *s, struct sequence *q, int n_hit, int reserve, int spare)
{
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        int cover = blocks_at_admission(s, g, n_hit, reserve);
        int need = ceil_div(cover, s->cfg.layout.block_size) - n_hit +
                   kvpool_match_free(s->pool, g, n_hit);
        if (need + spare > kvpool_n_free(s->pool, g)) {
            q->admit_need = g == 0 ? need : 0;
            return false;
        }
    }
    return true;
}

/* Blocks that the prefix cache gave a new sequence, on the device and from host memory. */
static void count_hits(struct sched *s, const struct sequence *q, int n_here, int n_loaded)
{
    uint64_t size = (uint64_t)s->cfg.layout.block_size, here = (uint64_t)n_here * size;
    s->stats.prefix_queries += (uint64_t)q->n_tokens;
    s->stats.prefix_hits += here;
    if (s->cfg.layout.n_host_blocks) {
        s->stats.host_queries += (uint64_t)q->n_tokens - here;
        s->stats.host_hits += (uint64_t)n_loaded * size;
    }
}

bool blocks_admit(struct sched *s, struct sequence *q, int reserve, int spare)
{
    int size = s->cfg.layout.block_size, n_groups = s->cfg.layout.n_groups;
    /* Hashing a long prompt again in each step that cannot admit it would cost more than the step.
     */
    if (q->admit_need + spare > kvpool_n_free(s->pool, 0))
        return false;
    if (q->swapped)
        return swap_in(s, q, reserve, spare);
    bool all_rows = (q->index == 0 && q->req->params.p.prompt_logprobs != SL_NONE &&
                     q->n_plogprobs < q->n_prompt - 1) || /* a hit would compute no logits */
                    pooling_wants_all(q->req->pooling);
    int n_hit = all_rows ? 0
                         : kvpool_match(s->pool, q->req->cache_key, q->tokens,
                                        (q->n_tokens - 1) / size); /* the last is computed */
    if (!fits(s, q, n_hit, reserve, spare))
        return false;
    for (int g = 0; g < n_groups; g++) {
        struct block_table *t = &q->table[g];
        if (!intpool_grow(&s->ints, &t->block, &t->cap, 0, ceil_div(reserve, size)))
            return false;
    }
    int n_loaded[KV_GROUPS_MAX] = {0};
    if (n_hit)
        kvpool_adopt(s->pool, n_hit, q->table, &q->chain);
    for (int g = 0; g < n_groups; g++) {
        n_loaded[g] = load_away(s, g, &q->table[g]);
        bool took = blocks_extend(s, g, &q->table[g], blocks_at_admission(s, g, n_hit, reserve));
        SL_ASSERT(took);
    }
    q->n_computed = n_hit * size;
    q->n_hashed = n_hit;
    q->admit_need = 0;
    if (q->n_preempted == 0)
        count_hits(s, q, n_hit - n_loaded[0], n_loaded[0]);
    return true;
}

/* Frees what no row from position `from` on can see. */
static void free_behind_window(struct sched *s, int group, struct block_table *t, int from)
{
    int window = s->cfg.layout.group[group].window;
    int lowest = from - window + 1;
    if (!window || s->by_batch || lowest <= 0)
        return;
    for (; t->first < t->n && (t->first + 1) * s->cfg.layout.block_size <= lowest; t->first++) {
        kvpool_drop(s->pool, group, t->block[t->first]);
        t->block[t->first] = -1;
    }
}

/* The block that position `pos` is written to becomes q's own. */
static bool own_block(struct sched *s, int group, struct sequence *q, int pos)
{
    struct block_table *t = &q->table[group];
    int i = pos / s->cfg.layout.block_size;
    if (i >= t->n || kvpool_refs(s->pool, group, t->block[i]) == 1)
        return true;
    int32_t blk;
    if (!blocks_take(s, group, &blk))
        return false;
    if (!kvpool_copy(s->pool, group, t->block[i], blk)) {
        kvpool_drop(s->pool, group, blk);
        return false;
    }
    kvpool_drop(s->pool, group, t->block[i]);
    t->block[i] = blk;
    if (s->proposer && group == s->proposer->group && q->n_drafted > i * s->cfg.layout.block_size)
        q->n_drafted = i * s->cfg.layout.block_size; /* the draft's half is not copied */
    return true;
}

bool blocks_cover(struct sched *s, struct sequence *q, int upto)
{
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        struct block_table *t = &q->table[g];
        free_behind_window(s, g, t, q->n_computed);
        if (!own_block(s, g, q, q->n_computed) || !blocks_extend(s, g, t, upto))
            return false;
    }
    return true;
}

void blocks_release(struct sched *s, struct sequence *q)
{
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        struct block_table *t = &q->table[g];
        int place = q->swapped ? prefix_host(&s->cfg.layout, g) : g;
        for (int i = t->n - 1; i >= t->first; i--) /* a prefix outlives what hangs on it */
            kvpool_drop(s->pool, place, t->block[i]);
        intpool_give(&s->ints, t->block, t->cap);
        *t = (struct block_table){0};
    }
    q->swapped = false;
    q->n_computed = q->n_hashed = q->n_drafted = 0;
    q->chain = (struct kv_chain){.node = -1};
}

bool blocks_share(struct sched *s, const struct sequence *p, struct sequence *c)
{
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        if (!intpool_grow(&s->ints, &c->table[g].block, &c->table[g].cap, 0, p->table[g].n))
            return false;
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        const struct block_table *from = &p->table[g];
        struct block_table *to = &c->table[g];
        memcpy(to->block, from->block, (size_t)from->n * sizeof *to->block);
        to->n = from->n;
        to->first = from->first;
        for (int i = to->first; i < to->n; i++)
            kvpool_hold(s->pool, g, to->block[i]);
    }
    c->n_computed = p->n_computed;
    c->n_hashed = p->n_hashed;
    c->chain = p->chain;
    return true;
}

void blocks_publish(struct sched *s, struct sequence *q)
{
    int size = s->cfg.layout.block_size;
    int known = q->n_tokens < q->n_computed ? q->n_tokens : q->n_computed;
    if (!s->cfg.enable_prefix_caching)
        return;
    /* Steps run in order, so what a step in flight will have computed may be found already. */
    for (; (q->n_hashed + 1) * size <= known && !q->chain.broken; q->n_hashed++) {
        int32_t blk[KV_GROUPS_MAX];
        for (int g = 0; g < s->cfg.layout.n_groups; g++)
            blk[g] = q->table[g].block[q->n_hashed];
        kvpool_enter(s->pool, &q->chain, q->req->cache_key,
                     q->tokens + (size_t)q->n_hashed * (size_t)size, blk);
    }
}
