/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/lookup.h"

#include "base/mem.h"

#include <string.h>

/* The latest end of the longest match, found from the back: a copy of what was said a moment ago is
 * likelier than of what was said long before. */
struct lookup lookup_find(const int32_t *tokens, int n, int min, int max)
{
    struct lookup best = {0, 0};
    for (int end = n - 1; end >= min && best.length < max; end--) {
        int len = 0;
        while (len < max && len < end && tokens[end - 1 - len] == tokens[n - 1 - len])
            len++;
        if (len >= min && len > best.length)
            best = (struct lookup){.length = len, .next = end};
    }
    return best;
}

struct ngram {
    struct proposer base; /* first */
    int min, max;
};

static void propose(struct proposer *p, struct draft_item *item, int n_items)
{
    const struct ngram *g = (const struct ngram *)p;
    for (int i = 0; i < n_items; i++) {
        const struct sequence *q = item[i].seq;
        struct lookup found = lookup_find(q->tokens, q->n_tokens, g->min, g->max);
        int n = found.length ? q->n_tokens - found.next : 0;
        item[i].n = n < item[i].n ? n : item[i].n;
        if (item[i].n)
            memcpy(item[i].token, q->tokens + found.next,
                   (size_t)item[i].n * sizeof *item[i].token);
    }
}

static void destroy(struct proposer *p)
{
    mem_free(p);
}

enum sl_status ngram_create(struct proposer **out, const struct draft_config *cfg, int vocab_size,
                            struct sl_err *err)
{
    static const struct proposer_ops ops = {.propose = propose, .destroy = destroy};
    struct ngram *g = mem_zalloc(1, sizeof *g);
    if (!g)
        return SL_FAIL(err, SL_ENOMEM, "ngram: no memory");
    *g = (struct ngram){.base = {.ops = &ops,
                                 .name = "ngram",
                                 .max_tokens = cfg->n_tokens,
                                 .fixed = cfg->fixed,
                                 .max_batch = cfg->max_batch,
                                 .vocab_size = vocab_size},
                        .min = cfg->lookup_min,
                        .max = cfg->lookup_max};
    *out = &g->base;
    return SL_OK;
}
