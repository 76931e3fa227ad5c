/* kv_backend.h - a backend that has a KV cache and believes nothing.
 *
 * A cell of the cache holds the hash of all tokens up to its position; a sampled token is a hash of
 * every cell that its row can see, read through the block table. So a token is right only if every
 * block of the sequence holds what it should, however it came there: computed, found in the prefix
 * cache, shared and copied, brought back from host memory, or computed again. expected_tokens()
 * says what is right, from the tokens alone. A step is computed when it is collected, from the
 * batch as it then is. SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_KV_BACKEND_H
#define TESTS_KV_BACKEND_H

#include "backend/backend.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { KVB_VOCAB = 200, KVB_DEPTH_MAX = 4 };

struct kv_backend {
    struct backend be; /* first */
    uint64_t *cell[KV_GROUPS_MAX];
    int32_t *table; /* [max_seqs, max_len]: sampled tokens by row and position */
    int max_len;
    const struct batch *step[KVB_DEPTH_MAX];
    int first, n_steps;
    int64_t clock_ns, step_ns;
    bool real_clock; /* set by the test */
    uint64_t rows_computed;
};

static inline uint64_t kvb_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A cell after the one before it. */
static inline uint64_t kvb_chain(uint64_t before, int32_t token)
{
    return kvb_mix(before ^ ((uint64_t)(uint32_t)token << 20));
}

static inline int32_t kvb_token(uint64_t seen, const struct sequence *q)
{
    uint64_t h = kvb_mix(seen ^ kvb_mix(q->req->params.seed + (uint64_t)q->index));
    return (int32_t)(h % KVB_VOCAB);
}

/* The n best tokens after what was seen, falling by steps of different sizes: what a beam's row
 * gives. */
static inline void kvb_candidates(uint64_t seen, uint64_t seed, int n, struct sl_logprob *e)
{
    uint64_t h = kvb_mix(seen ^ kvb_mix(seed));
    float lp = -0.01f;
    for (int i = 0; i < n; i++) {
        h = kvb_mix(h);
        lp -= (float)(1 + h % 64) / 64.0f * (i ? 1.0f : 0.25f);
        e[i] = (struct sl_logprob){(int32_t)((seen + (uint64_t)i * 7) % KVB_VOCAB), i + 1, lp};
    }
}

static inline int kvb_lowest(const struct kv_layout *l, int group, int pos)
{
    int window = l->group[group].window;
    return window && pos - window + 1 > 0 ? pos - window + 1 : 0;
}

/* What a row at `pos` sees of its sequence, whose cells would be chain[0 .. pos]. */
static inline uint64_t kvb_seen(const struct kv_layout *l, const uint64_t *chain, int pos)
{
    uint64_t sum = 0;
    for (int g = 0; g < l->n_groups; g++)
        for (int p = kvb_lowest(l, g, pos); p <= pos; p++)
            sum += kvb_mix(chain[p] + (uint64_t)g);
    return sum;
}

/* Tokens [n_prompt, n) of the choice, into tokens (which begins with the prompt). */
static inline void expected_tokens(const struct kv_layout *l, const struct sequence *q,
                                   int32_t *tokens, int n)
{
    uint64_t *chain = calloc((size_t)n + 1, sizeof *chain);
    for (int p = 0; p < n; p++) {
        if (p >= q->n_prompt)
            tokens[p] = kvb_token(kvb_seen(l, chain, p - 1), q);
        chain[p] = kvb_chain(p ? chain[p - 1] : 0, tokens[p]);
    }
    free(chain);
}

static inline uint64_t *kvb_cell(const struct kv_backend *k, const struct batch *b, int g, int s,
                                 int pos)
{
    int n, size = k->be.layout.block_size;
    const int32_t *blocks = batch_blocks(b, g, s, &n);
    SL_ASSERT(pos / size < n && blocks[pos / size] >= 0);
    return &k->cell[g][blocks[pos / size] * size + pos % size];
}

static inline void kvb_compute(struct kv_backend *k, const struct batch *b)
{
    const struct kv_layout *l = &k->be.layout;
    size_t block = (size_t)l->block_size;
    for (int i = 0; i < b->n_copies; i++) {
        const struct block_copy *c = &b->copy[i];
        uint64_t *cell = k->cell[c->group];
        memcpy(cell + block_copy_dst(c, l->n_blocks) * block,
               cell + block_copy_src(c, l->n_blocks) * block, block * sizeof *cell);
    }
    for (int s = 0; s < b->n_seqs; s++)
        for (int r = b->q_start[s]; r < b->q_start[s + 1]; r++) {
            int pos = b->pos[r];
            int32_t token = b->token[r];
            if (token == TOKEN_FROM_TABLE)
                token = k->table[b->seq_row[s] * k->max_len + pos];
            uint64_t h = kvb_chain(pos ? *kvb_cell(k, b, 0, s, pos - 1) : 0, token);
            for (int g = 0; g < l->n_groups; g++)
                k->cell[g][b->slot[(size_t)g * (size_t)b->limits.max_tokens + (size_t)r]] = h;
            k->rows_computed++;
        }
}

static inline uint64_t kvb_row_seen(struct kv_backend *k, const struct batch *b,
                                    const struct sample_row *row)
{
    const struct kv_layout *l = &k->be.layout;
    int r = b->logit_row[row->logit], s = 0;
    while (b->q_start[s + 1] <= r)
        s++;
    uint64_t sum = 0;
    for (int g = 0; g < l->n_groups; g++)
        for (int p = kvb_lowest(l, g, row->pos - 1); p < row->pos; p++)
            sum += kvb_mix(*kvb_cell(k, b, g, s, p) + (uint64_t)g);
    return sum;
}

static inline int32_t kvb_sample(struct kv_backend *k, const struct batch *b,
                                 const struct sample_row *row)
{
    int32_t token = kvb_token(kvb_row_seen(k, b, row), row->seq);
    k->table[row->seq_row * k->max_len + row->pos] = token;
    return token;
}

static inline enum sl_status kvb_submit(struct backend *be, const struct batch *b,
                                        struct sl_err *err)
{
    struct kv_backend *k = (struct kv_backend *)be;
    (void)err;
    batch_check(b, &be->layout);
    k->step[(k->first + k->n_steps++) % KVB_DEPTH_MAX] = b;
    return SL_OK;
}

static inline enum sl_status kvb_collect(struct backend *be, struct step_result *r,
                                         struct sl_err *err)
{
    struct kv_backend *k = (struct kv_backend *)be;
    const struct batch *b = k->step[k->first];
    (void)err;
    k->first = (k->first + 1) % KVB_DEPTH_MAX;
    k->n_steps--;
    kvb_compute(k, b);
    int n_lp = 0;
    r->n_samples = b->n_samples;
    r->n_plogprobs = b->n_plogprobs;
    for (int i = 0; i < b->n_samples; i++) {
        const struct seq_params *sp = &b->sample[i].seq->req->params;
        r->token[i] = kvb_sample(k, b, &b->sample[i]);
        r->lp_start[i] = n_lp;
        if (sp->beam_width && step_result_reserve(&r->lp, &r->cap_lp, n_lp, sp->n_beam_top)) {
            kvb_candidates(kvb_row_seen(k, b, &b->sample[i]), sp->seed, sp->n_beam_top,
                           r->lp + n_lp);
            n_lp += sp->n_beam_top;
            continue;
        }
        if (b->sample[i].seq->req->params.p.logprobs != SL_NONE &&
            step_result_reserve(&r->lp, &r->cap_lp, n_lp, 1))
            r->lp[n_lp++] = (struct sl_logprob){.token = r->token[i], .rank = 1};
    }
    r->lp_start[b->n_samples] = n_lp;
    bool ok = step_result_reserve(&r->plp, &r->cap_plp, 0, b->n_plogprobs + 1);
    SL_ASSERT(ok);
    for (int i = 0; i < b->n_plogprobs; i++) {
        r->plp_start[i] = i;
        r->plp[i] = (struct sl_logprob){.token = b->plogprob[i].token, .rank = 1};
    }
    r->plp_start[b->n_plogprobs] = b->n_plogprobs;
    k->clock_ns += k->step_ns;
    r->done_ns = be->ops->now_ns(be);
    return SL_OK;
}

static inline int64_t kvb_now(struct backend *be)
{
    const struct kv_backend *k = (struct kv_backend *)be;
    return k->real_clock ? clock_mono_ns() : k->clock_ns;
}

static inline void kvb_destroy(struct backend *be)
{
    struct kv_backend *k = (struct kv_backend *)be;
    for (int g = 0; g < KV_GROUPS_MAX; g++)
        free(k->cell[g]);
    free(k->table);
    free(k);
}

static inline struct backend *kv_backend_make(const struct kv_layout *layout, int depth,
                                              int max_seqs, int max_len)
{
    static const struct backend_ops ops = {kvb_submit, kvb_collect, kvb_now,
                                           NULL,       kvb_destroy, NULL};
    struct kv_backend *k = calloc(1, sizeof *k);
    size_t n = (size_t)(layout->n_blocks + layout->n_host_blocks) * (size_t)layout->block_size;
    k->be = (struct backend){
        .ops = &ops, .name = "kv", .depth = depth, .layout = *layout, .vocab_size = KVB_VOCAB};
    for (int g = 0; g < layout->n_groups; g++)
        k->cell[g] = calloc(n, sizeof *k->cell[g]);
    k->table = calloc((size_t)max_seqs * (size_t)(max_len + 1), sizeof *k->table);
    k->max_len = max_len + 1;
    k->clock_ns = 1;
    k->step_ns = 1000;
    return &k->be;
}

#endif
