/* kvpool: blocks are free or held, the longest free goes first, contents are found again and never
 * confused.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/kvpool.h"
#include "sched/prefix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { B = 4 };

static struct kvpool *make(int n_blocks, int n_groups, int window)
{
    struct kv_layout layout = {.n_groups = n_groups, .block_size = B, .n_blocks = n_blocks};
    layout.group[1].window = window;
    struct kvpool *pool = NULL;
    assert_int_equal(
        kvpool_create(&pool,
                      &(struct kvpool_config){
                          .layout = layout, .max_len = 1000, .max_seqs = 8, .prefix_caching = true},
                      NULL),
        SL_OK);
    return pool;
}

static int32_t take(struct kvpool *pool, int group)
{
    int32_t blk;
    assert_int_equal(kvpool_take(pool, group, &blk), SL_OK);
    kvpool_check(pool);
    return blk;
}

static void drop(struct kvpool *pool, int group, int32_t blk)
{
    kvpool_drop(pool, group, blk);
    kvpool_check(pool);
}

/* Takes and names n blocks of one group for the tokens; blk[] gets them. */
static void fill(struct kvpool *pool, int32_t key, const int32_t *tokens, int n, int32_t *blk)
{
    struct kv_chain chain = {.node = -1};
    for (int i = 0; i < n; i++) {
        blk[i] = take(pool, 0);
        kvpool_enter(pool, &chain, key, tokens + (ptrdiff_t)i * B, &blk[i]);
        assert_false(chain.broken);
    }
    kvpool_check(pool);
}

static void drop_all(struct kvpool *pool, const int32_t *blk, int n)
{
    for (int i = n - 1; i >= 0; i--)
        drop(pool, 0, blk[i]);
}

static void free_or_held(void **state)
{
    (void)state;
    struct kvpool *pool = make(3, 1, 0);
    int32_t a = take(pool, 0), b = take(pool, 0), c = take(pool, 0), d;
    assert_true(a != b && b != c && a != c);
    assert_int_equal(kvpool_take(pool, 0, &d), SL_EAGAIN);
    kvpool_hold(pool, 0, b);
    drop(pool, 0, b);
    assert_int_equal(kvpool_n_free(pool, 0), 0);
    drop(pool, 0, b);
    assert_int_equal(kvpool_n_free(pool, 0), 1);
    assert_int_equal(take(pool, 0), b);
    kvpool_destroy(&pool);
    assert_null(pool);
}

static void contents_come_back(void **state)
{
    (void)state;
    struct kvpool *pool = make(8, 1, 0);
    const int32_t tokens[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    int32_t blk[3], room[8];
    fill(pool, 0, tokens, 3, blk);
    assert_int_equal(kvpool_match(pool, 0, tokens, 4), 3);
    assert_int_equal(kvpool_match_free(pool, 0, 3), 0);
    drop_all(pool, blk, 3);
    assert_int_equal(kvpool_match(pool, 0, tokens, 4), 3);
    assert_int_equal(kvpool_match(pool, 0, tokens, 2), 2);
    assert_int_equal(kvpool_match_free(pool, 0, 2), 2);
    struct block_table t = {.block = room, .cap = 8};
    struct kv_chain chain;
    kvpool_adopt(pool, 2, &t, &chain);
    assert_int_equal(t.n, 2);
    assert_int_equal(room[0], blk[0]);
    assert_int_equal(kvpool_refs(pool, 0, blk[1]), 1);
    assert_int_equal(kvpool_n_free(pool, 0), 6);
    /* The adopted chain goes on: the third block's content is still known after it. */
    int32_t other = take(pool, 0);
    kvpool_enter(pool, &chain, 0, tokens + 8, &other);
    assert_int_equal(kvpool_n_cached(pool), 3);
    /* Another first token: nothing. */
    int32_t wrong[12] = {99, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    assert_int_equal(kvpool_match(pool, 0, wrong, 3), 0);
    /* The same tokens after another beginning: not the same content. */
    assert_int_equal(kvpool_match(pool, 0, tokens + 4, 2), 0);
    kvpool_destroy(&pool);
}

static void longest_free_is_forgotten_first(void **state)
{
    (void)state;
    struct kvpool *pool = make(4, 1, 0);
    const int32_t x[8] = {1, 1, 1, 1, 2, 2, 2, 2}, y[4] = {3, 3, 3, 3};
    int32_t bx[2], by[1];
    fill(pool, 0, x, 2, bx);
    fill(pool, 0, y, 1, by);
    drop_all(pool, bx, 2);
    drop_all(pool, by, 1);
    assert_int_equal(take(pool, 0), 3);     /* never used: no content to lose */
    assert_int_equal(take(pool, 0), bx[1]); /* then the tail of what was freed first */
    assert_int_equal(kvpool_match(pool, 0, x, 2), 1);
    assert_int_equal(take(pool, 0), bx[0]);
    assert_int_equal(kvpool_match(pool, 0, x, 2), 0);
    assert_int_equal(kvpool_match(pool, 0, y, 1), 1);
    kvpool_destroy(&pool);
}

static void two_blocks_of_one_content(void **state)
{
    (void)state;
    struct kvpool *pool = make(4, 1, 0);
    const int32_t x[8] = {1, 1, 1, 1, 2, 2, 2, 2};
    int32_t a[2], b[2];
    fill(pool, 0, x, 2, a);
    fill(pool, 0, x, 2, b);
    assert_int_equal(kvpool_n_cached(pool), 2);
    drop_all(pool, a, 2);
    take(pool, 0);
    take(pool, 0); /* a's blocks are used again; b still holds the content */
    assert_int_equal(kvpool_match(pool, 0, x, 2), 2);
    drop_all(pool, b, 2);
    take(pool, 0);
    assert_int_equal(kvpool_match(pool, 0, x, 2), 1);
    kvpool_destroy(&pool);
}

static void keys_keep_apart(void **state)
{
    (void)state;
    struct kvpool *pool = make(8, 1, 0);
    const int32_t x[4] = {1, 1, 1, 1};
    int32_t blk[1];
    int32_t a = kvpool_key_take(pool, "alice", 5), b = kvpool_key_take(pool, "bob", 3);
    assert_true(a > 0 && b > 0 && a != b);
    assert_int_equal(kvpool_key_take(pool, "alice", 5), a);
    assert_int_equal(kvpool_key_take(pool, "", 0), 0);
    fill(pool, a, x, 1, blk);
    drop_all(pool, blk, 1);
    assert_int_equal(kvpool_match(pool, b, x, 1), 0);
    assert_int_equal(kvpool_match(pool, 0, x, 1), 0);
    assert_int_equal(kvpool_match(pool, a, x, 1), 1);
    kvpool_key_drop(pool, a);
    kvpool_key_drop(pool, a);
    /* The cached block still refers to it: the id is not given to another. */
    for (int i = 0; i < 40; i++) {
        char name[8] = {'k', (char)('A' + i), 0};
        assert_int_not_equal(kvpool_key_take(pool, name, 2), a);
    }
    assert_int_equal(kvpool_key_take(pool, "alice", 5), a);
    assert_int_equal(kvpool_match(pool, a, x, 1), 1);
    kvpool_destroy(&pool);
}

static void forgetting_breaks_chains(void **state)
{
    (void)state;
    struct kvpool *pool = make(8, 1, 0);
    const int32_t x[8] = {1, 1, 1, 1, 2, 2, 2, 2};
    struct kv_chain chain = {.node = -1};
    int32_t a = take(pool, 0), b = take(pool, 0);
    kvpool_enter(pool, &chain, 0, x, &a);
    kvpool_forget(pool);
    kvpool_check(pool);
    assert_int_equal(kvpool_n_cached(pool), 0);
    kvpool_enter(pool, &chain, 0, x + 4, &b); /* its parent is gone */
    assert_true(chain.broken);
    assert_int_equal(kvpool_n_cached(pool), 0);
    kvpool_destroy(&pool);
}

static void hits_hold_in_every_group(void **state)
{
    (void)state;
    struct kvpool *pool = make(8, 2, 5); /* group 1 sees 5 positions: at 12 from 8 on */
    const int32_t x[12] = {1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    struct kv_chain chain = {.node = -1};
    int32_t blk[3][KV_GROUPS_MAX], room[2][8];
    for (int i = 0; i < 3; i++) {
        blk[i][0] = take(pool, 0);
        blk[i][1] = take(pool, 1);
        kvpool_enter(pool, &chain, 0, x + (ptrdiff_t)i * B, blk[i]);
    }
    /* Block 0 falls out of the window and is used again: 3 and 2 blocks still match... */
    drop(pool, 1, blk[0][1]);
    for (int i = 0; i < 6; i++)
        take(pool, 1);
    assert_int_equal(kvpool_match(pool, 0, x, 3), 3);
    struct block_table t[2] = {{.block = room[0], .cap = 8}, {.block = room[1], .cap = 8}};
    kvpool_adopt(pool, 3, t, &chain);
    assert_int_equal(room[1][0], -1);
    assert_int_equal(room[1][1], -1);
    assert_int_equal(t[1].first, 2);
    assert_int_equal(room[1][2], blk[2][1]);
    assert_int_equal(t[0].first, 0);
    assert_int_equal(kvpool_match(pool, 0, x, 2), 2);
    /* ...but one does not: its window would reach into block 0. */
    assert_int_equal(kvpool_match(pool, 0, x, 1), 0);
    kvpool_destroy(&pool);
}

/* The hash finds, equality decides: contents are forged here with one hash for all. */
static void collisions_are_told_apart(void **state)
{
    (void)state;
    struct kv_layout layout = {.n_groups = 1, .block_size = B, .n_blocks = 64};
    struct prefix *p = NULL;
    assert_int_equal(prefix_create(&p, &layout, NULL), SL_OK);
    const int32_t x[B] = {1, 2, 3, 4}, y[B] = {1, 2, 3, 5};
    struct prefix_content c = {.hash = {42, 43}, .tokens = x};
    int32_t first = prefix_add(p, &c);
    prefix_attach(p, first, 0, 0);
    struct prefix_content other[4] = {c, c, c, c};
    other[0].tokens = y;
    other[1].parent = 9;
    other[2].key = 1;
    other[3].hash[1] = 44;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(prefix_find(p, &other[i]), PREFIX_NONE);
        int32_t node = prefix_add(p, &other[i]);
        assert_true(node >= 0 && node != first);
        prefix_attach(p, node, 0, i + 1);
        assert_int_equal(prefix_find(p, &other[i]), node);
    }
    assert_int_equal(prefix_find(p, &c), first);
    /* Somebody who can make collisions cannot make the search long. */
    int n = 5;
    for (int i = 0; i < 59; i++) {
        int32_t z[B] = {i, 7, 7, 7};
        struct prefix_content d = {.hash = {42, 43}, .tokens = z};
        int32_t node = prefix_add(p, &d);
        if (node >= 0)
            prefix_attach(p, node, 0, n++);
    }
    assert_int_equal(prefix_n_nodes(p), 32);
    prefix_check(p);
    assert_int_equal(prefix_find(p, &c), first);
    for (int i = 0; i < n; i++)
        prefix_detach(p, 0, i);
    assert_int_equal(prefix_n_nodes(p), 0);
    prefix_check(p);
    prefix_destroy(&p);
}

static void create_fails_cleanly(void **state)
{
    (void)state;
    struct kv_layout layout = {.n_groups = 2, .block_size = B, .n_blocks = 64};
    struct kvpool *pool = NULL;
    int n = 0;
    enum sl_status st;
    do {
        struct sl_err err = {0};
        mem_fail_nth(++n);
        st = kvpool_create(
            &pool,
            &(struct kvpool_config){
                .layout = layout, .max_len = 100, .max_seqs = 8, .prefix_caching = true},
            &err);
        assert_true(st == SL_OK || (st == SL_ENOMEM && err.msg[0] && !pool));
    } while (st);
    mem_fail_nth(0);
    assert_true(n > 5);
    kvpool_destroy(&pool);
    struct sl_err err = {0};
    layout.block_size = 0;
    assert_int_equal(
        kvpool_create(&pool,
                      &(struct kvpool_config){
                          .layout = layout, .max_len = 100, .max_seqs = 8, .prefix_caching = true},
                      &err),
        SL_EINVAL);
    layout.block_size = B;
    layout.n_blocks = 0;
    assert_int_equal(
        kvpool_create(&pool,
                      &(struct kvpool_config){
                          .layout = layout, .max_len = 100, .max_seqs = 8, .prefix_caching = true},
                      NULL),
        SL_EINVAL);
}

static void without_caching_nothing_is_kept(void **state)
{
    (void)state;
    struct kv_layout layout = {.n_groups = 1, .block_size = B, .n_blocks = 4};
    struct kvpool *pool = NULL;
    assert_int_equal(
        kvpool_create(&pool,
                      &(struct kvpool_config){
                          .layout = layout, .max_len = 100, .max_seqs = 8, .prefix_caching = false},
                      NULL),
        SL_OK);
    const int32_t x[4] = {1, 1, 1, 1};
    int32_t blk[1];
    assert_int_equal(kvpool_key_take(pool, "salt", 4), 0);
    fill(pool, 0, x, 1, blk);
    drop_all(pool, blk, 1);
    assert_int_equal(kvpool_match(pool, 0, x, 1), 0);
    kvpool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(free_or_held),
        cmocka_unit_test(contents_come_back),
        cmocka_unit_test(longest_free_is_forgotten_first),
        cmocka_unit_test(two_blocks_of_one_content),
        cmocka_unit_test(keys_keep_apart),
        cmocka_unit_test(forgetting_breaks_chains),
        cmocka_unit_test(hits_hold_in_every_group),
        cmocka_unit_test(collisions_are_told_apart),
        cmocka_unit_test(create_fails_cleanly),
        cmocka_unit_test(without_caching_nothing_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
