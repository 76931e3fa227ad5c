/* The suffix tree against counting by hand, on texts with long repeats; and its bounds.
 * SPDX-License-Identifier: Apache-2.0 */
#include "draft/suffixtree.h"

#include "base/mem.h"
#include "draft/draft.h"
#include "draft/lookup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { MAX = 600, DEPTH = 10 };

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

struct text {
    int32_t tokens[MAX];
    int n;
};

static int count_by_hand(const struct text *texts, int n_texts, const int32_t *what, int n)
{
    int count = 0;
    for (int t = 0; t < n_texts; t++)
        for (int i = 0; i + n <= texts[t].n; i++)
            count += memcmp(texts[t].tokens + i, what, (size_t)n * sizeof *what) == 0;
    return count;
}

static int match_by_hand(const struct text *texts, int n_texts, const int32_t *tokens, int n)
{
    int best = 0;
    for (int len = 1; len <= n && len <= DEPTH; len++)
        if (count_by_hand(texts, n_texts, tokens + n - len, len))
            best = len;
    return best;
}

/* Few ids, and pieces copied from before: many long matches. */
static void make_text(struct text *t, uint64_t *seed)
{
    t->n = 1 + (int)(next_random(seed) % MAX);
    int ids = 2 + (int)(next_random(seed) % 6);
    for (int i = 0; i < t->n; i++)
        t->tokens[i] = i > 20 && next_random(seed) % 4
                           ? t->tokens[i - 13]
                           : (int32_t)(next_random(seed) % (unsigned)ids);
}

static void equals_counting(void **state)
{
    static struct text texts[4];
    uint64_t seed = 7;
    (void)state;
    for (int round = 0; round < 60; round++) {
        struct suffixtree *t = NULL;
        int n_texts = 1 + round % 4;
        assert_int_equal(suffixtree_create(&t, 4 * MAX, DEPTH, NULL), SL_OK);
        for (int i = 0; i < n_texts; i++) {
            make_text(&texts[i], &seed);
            assert_true(suffixtree_add(t, texts[i].tokens, texts[i].n));
            suffixtree_check(t);
        }
        for (int i = 0; i < 200; i++) {
            const struct text *from = &texts[next_random(&seed) % (unsigned)n_texts];
            int32_t what[DEPTH], out[4];
            int n = 1 + (int)(next_random(&seed) % DEPTH);
            int at = from->n > n ? (int)(next_random(&seed) % (unsigned)(from->n - n)) : 0;
            for (int j = 0; j < n; j++)
                what[j] = at + j < from->n ? from->tokens[at + j] : 1;
            if (i % 3 == 0)
                what[next_random(&seed) % (unsigned)n] ^= 1;
            int count = count_by_hand(texts, n_texts, what, n);
            assert_int_equal(suffixtree_count(t, what, n), count);
            assert_int_equal(suffixtree_match(t, what, n), match_by_hand(texts, n_texts, what, n));
            int n_out = suffixtree_follow(t, what, n, 0, out, DEPTH - n < 4 ? DEPTH - n : 4);
            if (!count)
                assert_int_equal(n_out, 0);
            for (int j = 0; j < n_out; j++) { /* no other token has followed more often */
                int32_t seen[DEPTH + 4];
                memcpy(seen, what, (size_t)n * sizeof *what);
                memcpy(seen + n, out, (size_t)(j + 1) * sizeof *out);
                int mine = count_by_hand(texts, n_texts, seen, n + j + 1);
                for (int32_t id = 0; id < 9; id++) {
                    seen[n + j] = id;
                    assert_true(count_by_hand(texts, n_texts, seen, n + j + 1) <= mine);
                }
            }
        }
        suffixtree_destroy(&t);
    }
}

static void is_bounded(void **state)
{
    struct suffixtree *t = NULL;
    int32_t tokens[100];
    uint64_t seed = 3;
    (void)state;
    for (int i = 0; i < 100; i++)
        tokens[i] = (int32_t)(next_random(&seed) % 3);
    assert_int_equal(suffixtree_create(&t, 1000, 8, NULL), SL_OK);
    for (int i = 0; i < 10; i++)
        assert_true(suffixtree_add(t, tokens, 100));
    assert_false(suffixtree_add(t, tokens, 1));
    assert_true(suffixtree_add(t, tokens, 0));
    suffixtree_check(t);
    suffixtree_clear(t);
    assert_int_equal(suffixtree_match(t, tokens, 100), 0);
    assert_true(suffixtree_add(t, tokens, 100));
    assert_int_equal(suffixtree_match(t, tokens, 100), 8);
    suffixtree_destroy(&t);
}

/* A share of the occurrences under min_prob ends a guess. */
static void follows_what_is_likely(void **state)
{
    static const int32_t usual[] = {1, 2, 3, 4, 5}, rare[] = {1, 2, 9, 9, 9};
    struct suffixtree *t = NULL;
    int32_t out[4];
    (void)state;
    assert_int_equal(suffixtree_create(&t, 100, 8, NULL), SL_OK);
    for (int i = 0; i < 3; i++)
        assert_true(suffixtree_add(t, usual, 5));
    assert_true(suffixtree_add(t, rare, 5));
    assert_int_equal(suffixtree_follow(t, usual, 2, 0.5, out, 4), 3);
    assert_memory_equal(out, usual + 2, 3 * sizeof *out);
    assert_int_equal(suffixtree_follow(t, usual, 2, 0.8, out, 4), 0);
    assert_int_equal(suffixtree_follow(t, rare, 3, 0.5, out, 4), 2);
    assert_int_equal(suffixtree_follow(t, usual, 1, 0.5, out, 2), 2);
    suffixtree_destroy(&t);
}

/* ---- the lookup in the sequence itself --------------------------------------------------------
 */

static void lookup(void **state)
{
    static const int32_t text[] = {1, 2, 3, 7, 1, 2, 3, 8, 2, 3, 9, 1, 2, 3};
    (void)state;
    struct lookup l = lookup_find(text, 14, 1, 5);
    assert_int_equal(l.length, 3); /* 1 2 3: the later of the two places */
    assert_int_equal(l.next, 7);
    l = lookup_find(text, 14, 1, 2);
    assert_int_equal(l.length, 2);
    assert_int_equal(l.next, 10);
    assert_int_equal(lookup_find(text, 14, 4, 5).length, 0);
    assert_int_equal(lookup_find(text, 1, 1, 5).length, 0);
    assert_int_equal(lookup_find(text, 4, 1, 5).length, 0);
}

/* The suffix proposer: answers are found again, those with a salt are not, memory is let go. */
static void proposer(void **state)
{
    struct draft_config cfg = {.n_tokens = 4,
                               .suffix_depth = 6,
                               .suffix_requests = 4,
                               .suffix_factor = 2,
                               .suffix_min_prob = 0.1};
    struct proposer *p = NULL;
    struct request salted = {.cache_salt = "mine"}, open = {0};
    int32_t answer[] = {50, 10, 11, 12, 13, 14, 15}, secret[] = {50, 20, 21, 22, 23, 24};
    int32_t tokens[16] = {90, 91, 11, 12};
    struct sequence a = {.req = &open, .tokens = answer, .n_prompt = 1, .n_tokens = 7};
    struct sequence b = {.req = &salted, .tokens = secret, .n_prompt = 1, .n_tokens = 6};
    struct sequence q = {.req = &open, .tokens = tokens, .n_prompt = 1, .n_tokens = 4};
    (void)state;
    assert_int_equal(suffix_create(&p, &cfg, 100, NULL), SL_OK);
    p->ops->finished(p, &a);
    p->ops->finished(p, &b);
    struct draft_item item = {.seq = &q, .token = tokens + 4, .n = 4};
    p->ops->propose(p, &item, 1);
    assert_int_equal(item.n, 3);
    assert_int_equal(tokens[4], 13);
    assert_int_equal(tokens[6], 15);
    tokens[2] = 20;
    tokens[3] = 21;
    item.n = 4;
    p->ops->propose(p, &item, 1);
    assert_int_equal(item.n, 0);
    for (int i = 0; i < 10; i++) { /* two of four requests a tree: the first is long forgotten */
        answer[1] = 60 + i;
        answer[2] = 70 + i;
        p->ops->finished(p, &a);
    }
    tokens[2] = 60;
    tokens[3] = 70;
    item.n = 4;
    p->ops->propose(p, &item, 1);
    assert_int_equal(item.n, 0);
    tokens[2] = 69;
    tokens[3] = 79;
    item.n = 4;
    p->ops->propose(p, &item, 1);
    assert_int_equal(item.n, 4);
    p->ops->destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_counting),
        cmocka_unit_test(is_bounded),
        cmocka_unit_test(follows_what_is_likely),
        cmocka_unit_test(lookup),
        cmocka_unit_test(proposer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
