/* Suffix decoding: what most often followed the latest tokens in earlier answers, or, where that is
 * the longer match, in the sequence itself.
 *
 * Two trees bound the memory: answers enter the young one; when that is full the old one is
 * forgotten and they change places.
 * SPDX-License-Identifier: Apache-2.0 */
#include "draft/lookup.h"
#include "draft/suffixtree.h"

#include <string.h>

enum { TREE_TOKENS = 1 << 17 };

struct suffix {
    struct proposer base; /* first */
    struct suffixtree *tree[2];
    int young;
    int n_requests, max_requests; /* in the young tree */
    int depth;                    /* of a match */
    double factor, min_prob;
};

/* Guesses from the tree's longest match; *length: of that match. */
static int from_tree(const struct suffix *s, const struct suffixtree *t, const struct sequence *q,
                     int *length, int32_t *out, int max)
{
    int n = suffixtree_match(t, q->tokens, q->n_tokens);
    *length = n < s->depth ? n : s->depth;
    if (*length == 0)
        return 0;
    const int32_t *end = q->tokens + q->n_tokens - *length;
    return suffixtree_follow(t, end, *length, s->min_prob, out, max);
}

/* No more guesses than the match is long, times the factor. */
static int at_most(const struct suffix *s, int length, int n)
{
    double most = s->factor * length;
    return most < n ? (int)most : n;
}

static void propose_one(const struct suffix *s, struct draft_item *it)
{
    const struct sequence *q = it->seq;
    int32_t found[2][DRAFT_MAX];
    int n[2], length[2], max = it->n;
    for (int i = 0; i < 2; i++)
        n[i] = from_tree(s, s->tree[i], q, &length[i], found[i], max);
    int best = length[1] * (n[1] > 0) > length[0] * (n[0] > 0);
    int tree_length = n[best] ? length[best] : 0;
    struct lookup own = lookup_find(q->tokens, q->n_tokens, 1, s->depth);
    it->n = 0;
    if (own.length > tree_length) {
        int left = q->n_tokens - own.next;
        it->n = at_most(s, own.length, left < max ? left : max);
        memcpy(it->token, q->tokens + own.next, (size_t)it->n * sizeof *it->token);
    } else if (tree_length) {
        it->n = at_most(s, tree_length, n[best]);
        memcpy(it->token, found[best], (size_t)it->n * sizeof *it->token);
    }
}

static void propose(struct proposer *p, struct draft_item *item, int n_items)
{
    for (int i = 0; i < n_items; i++)
        propose_one((const struct suffix *)p, &item[i]);
}

/* Who keeps his prompts from others' prefix hits keeps his answers from their guesses. */
static void finished(struct proposer *p, const struct sequence *q)
{
    struct suffix *s = (struct suffix *)p;
    int n = q->n_tokens - q->n_prompt;
    if (q->req->cache_salt || !q->tokens || n > TREE_TOKENS || s->max_requests == 0)
        return;
    bool full = s->n_requests >= s->max_requests;
    if (full || !suffixtree_add(s->tree[s->young], q->tokens + q->n_prompt, n)) {
        s->young = !s->young;
        s->n_requests = 0;
        suffixtree_clear(s->tree[s->young]);
        bool fits = suffixtree_add(s->tree[s->young], q->tokens + q->n_prompt, n);
        SL_ASSERT(fits);
    }
    s->n_requests++;
}

static void destroy(struct proposer *p)
{
    struct suffix *s = (struct suffix *)p;
    suffixtree_destroy(&s->tree[0]);
    suffixtree_destroy(&s->tree[1]);
    mem_free(s);
}

enum sl_status suffix_create(struct proposer **out, const struct draft_config *cfg, int vocab_size,
                             struct sl_err *err)
{
    static const struct proposer_ops ops = {
        .propose = propose, .finished = finished, .destroy = destroy};
    struct suffix *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "suffix: no memory");
    *s = (struct suffix){.base = {.ops = &ops,
                                  .name = "suffix",
                                  .max_tokens = cfg->n_tokens,
                                  .fixed = cfg->fixed,
                                  .max_batch = cfg->max_batch,
                                  .vocab_size = vocab_size},
                         .max_requests = (cfg->suffix_requests + 1) / 2,
                         .depth = cfg->suffix_depth,
                         .factor = cfg->suffix_factor,
                         .min_prob = cfg->suffix_min_prob};
    enum sl_status st = SL_OK;
    for (int i = 0; i < 2 && !st; i++)
        st = suffixtree_create(&s->tree[i], TREE_TOKENS, cfg->suffix_depth + cfg->n_tokens, err);
    if (st)
        destroy(&s->base);
    else
        *out = &s->base;
    return st;
}
