/* A preempted sequence's blocks go to host memory and come back, when that takes less time than
 * computing them again; and contents of the prefix cache come back from there on a hit.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

static int host_place(const struct sched *s, int group)
{
    return prefix_host(&s->cfg.layout, group);
}

static double block_ns(const struct sched *s, int group)
{
    const struct kv_layout *l = &s->cfg.layout;
    return (double)l->group[group].bytes_per_token * l->block_size * 1e9 / s->cfg.host_bytes_per_s;
}

/* There is room, and a copy to the host and back is quicker than a second computation. */
static bool is_worth_it(const struct sched *s, const struct sequence *q, int n_blocks)
{
    double ns = 0;
    int n_copies = 0;
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        const struct block_table *t = &q->table[g];
        int host = host_place(s, g), n_taken = 0;
        for (int i = t->first; i < n_blocks; i++) {
            int32_t twin = kvpool_twin(s->pool, g, t->block[i]);
            n_taken += twin < 0 || kvpool_refs(s->pool, host, twin) == 0;
            n_copies += twin < 0;
            ns += 2 * block_ns(s, g);
        }
        if (n_taken > kvpool_n_free(s->pool, host))
            return false;
    }
    return n_copies <= kvpool_stores_left(s->pool) && ns < q->n_computed * s->cfg.token_ns;
}

/* Twins are held before any other block is taken, which could be one of them. */
static void move_out(struct sched *s, int group, struct block_table *t, int n_blocks)
{
    int host = host_place(s, group);
    for (; t->n > n_blocks; t->n--)
        kvpool_drop(s->pool, group, t->block[t->n - 1]);
    for (int i = t->n - 1; i >= t->first; i--) {
        int32_t twin = kvpool_twin(s->pool, group, t->block[i]);
        if (twin < 0)
            continue;
        kvpool_hold(s->pool, host, twin);
        kvpool_drop(s->pool, group, t->block[i]);
        t->block[i] = KV_AWAY(twin);
    }
    for (int i = t->n - 1; i >= t->first; i--) {
        int32_t to = KV_AWAY(t->block[i]);
        if (t->block[i] >= 0) {
            enum sl_status st = kvpool_store(s->pool, group, t->block[i], &to);
            SL_ASSERT(st == SL_OK);
            kvpool_drop(s->pool, group, t->block[i]);
        }
        t->block[i] = to;
    }
}

bool swap_out(struct sched *s, struct sequence *q)
{
    int n_blocks = ceil_div(q->n_computed, s->cfg.layout.block_size);
    if (!s->cfg.swap || n_blocks == 0 || q->req->pooling || !is_worth_it(s, q, n_blocks))
        return false;
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        move_out(s, g, &q->table[g], n_blocks);
    q->swapped = true;
    q->n_drafted = 0;
    s->stats.n_swaps++;
    return true;
}

/* Blocks off the group's free list to have the table's contents there; *n_loads of them copied. */
static int blocks_to_return(const struct sched *s, int group, const struct block_table *t,
                            int *n_loads)
{
    int n = 0;
    for (int i = t->first; i < t->n; i++) {
        int32_t twin = kvpool_twin(s->pool, host_place(s, group), t->block[i]);
        n += twin < 0 || kvpool_refs(s->pool, group, twin) == 0;
        *n_loads += twin < 0;
    }
    return n;
}

int load_away(struct sched *s, int group, struct block_table *t)
{
    int n = 0;
    for (int i = t->first; i < t->n; i++) {
        int32_t host = KV_AWAY(t->block[i]);
        if (t->block[i] >= 0)
            continue;
        bool took = blocks_take(s, group, &t->block[i]);
        SL_ASSERT(took);
        kvpool_load(s->pool, group, host, t->block[i]);
        kvpool_drop(s->pool, host_place(s, group), host);
        n++;
    }
    return n;
}

/* What is on the device still is held, the rest is named as away. */
static void hold_twins(struct sched *s, int group, struct block_table *t)
{
    int host = host_place(s, group);
    for (int i = t->first; i < t->n; i++) {
        int32_t blk = t->block[i], twin = kvpool_twin(s->pool, host, blk);
        t->block[i] = twin < 0 ? KV_AWAY(blk) : twin;
        if (twin < 0)
            continue;
        kvpool_hold(s->pool, group, twin);
        kvpool_drop(s->pool, host, blk);
    }
}

bool swap_in(struct sched *s, struct sequence *q, int reserve, int spare)
{
    int size = s->cfg.layout.block_size, n_loads = 0, want[KV_GROUPS_MAX];
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        struct block_table *t = &q->table[g];
        int n = ceil_div(blocks_at_admission(s, g, q->n_computed / size, reserve), size);
        want[g] = n > t->n ? n : t->n;
        int need = want[g] - t->n + blocks_to_return(s, g, t, &n_loads);
        if (need + spare > kvpool_n_free(s->pool, g)) {
            q->admit_need = g == 0 ? need : 0;
            return false;
        }
    }
    if (n_loads > kvpool_loads_left(s->pool))
        return false;
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        if (!intpool_grow(&s->ints, &q->table[g].block, &q->table[g].cap, q->table[g].n, want[g]))
            return false;
    for (int g = 0; g < s->cfg.layout.n_groups; g++)
        hold_twins(s, g, &q->table[g]);
    for (int g = 0; g < s->cfg.layout.n_groups; g++) {
        (void)load_away(s, g, &q->table[g]);
        bool took = blocks_extend(s, g, &q->table[g], want[g] * size);
        SL_ASSERT(took);
    }
    q->swapped = false;
    q->admit_need = 0;
    return true;
}
