/* The draft model: one token after another for all sequences at once, each a step of its own
 * runner. A call begins with what the model lacks of each sequence; a sequence that has caught up
 * draws while others still read their prompts.
 * SPDX-License-Identifier: Apache-2.0 */
#include "draft/draft.h"

#include "base/log.h"
#include "sample/sampler.h"

#include <string.h>

/* Probability rows that standard verification may keep at once. */
static const size_t PROB_BYTES = (size_t)64 << 20;

/* One item of a call. */
struct work {
    int n_drawn;
    int from;    /* the first position that was missing */
    float *prob; /* standard: its rows */
};

struct draft_model {
    struct proposer base; /* first */
    struct runner *runner;
    struct backend *be;
    struct sampler *sampler;
    struct batch *batch;
    struct step_result *result;
    int max_position;
    bool standard, dead;
    uint8_t *have;     /* [n_blocks] the whole block is in this cache, for the content it has */
    struct work *work; /* [max_seqs] */
    int *item_of;      /* [max_seqs] which item each sample row of the batch is of */
    float *prob;       /* [prob_rows, vocab_size], NULL unless standard */
    int prob_rows;
};

/* ---- one step of the draft ------------------------------------------------------------------- */

/* Instead of the sampler of answers: no logprobs. */
static enum sl_status draw_rows(void *ctx, const struct batch *b, const float *logits,
                                struct step_result *r, struct sl_err *err)
{
    struct draft_model *d = ctx;
    size_t vocab = (size_t)d->base.vocab_size;
    (void)err;
    r->n_samples = b->n_samples;
    r->n_plogprobs = 0;
    r->lp_start[0] = r->plp_start[0] = 0;
    for (int i = 0; i < b->n_samples; i++) {
        const struct sample_row *sr = &b->sample[i];
        float *prob = (float *)sr->draft_prob; /* ours */
        r->token[i] = sampler_draft(d->sampler, sr, logits + (size_t)sr->logit * vocab, prob);
        r->lp_start[i + 1] = 0;
    }
    return SL_OK;
}

static void put_blocks(struct draft_model *d, const struct sequence *q, int pos, int n)
{
    struct batch *b = d->batch;
    const struct block_table *t = &q->table[d->base.group];
    int size = d->be->layout.block_size, n_blocks = (pos + n + size - 1) / size;
    for (int g = 0; g < b->limits.n_groups; g++) {
        int32_t *slot = b->slot + (size_t)g * (size_t)b->limits.max_tokens + b->n_tokens;
        int32_t *start = b->block_start + (size_t)g * (size_t)(b->limits.max_seqs + 1) + b->n_seqs;
        for (int i = 0; i < n; i++)
            slot[i] = t->block[(pos + i) / size] * size + (pos + i) % size;
        memcpy(b->block + (size_t)g * (size_t)b->limits.max_blocks + start[0], t->block,
               (size_t)n_blocks * sizeof *t->block);
        start[1] = start[0] + n_blocks;
    }
}

/* Rows of positions [pos, pos + n) of q. */
static void put_rows(struct draft_model *d, const struct sequence *q, int pos, int n)
{
    struct batch *b = d->batch;
    memcpy(b->token + b->n_tokens, q->tokens + pos, (size_t)n * sizeof *b->token);
    for (int i = 0; i < n; i++)
        b->pos[b->n_tokens + i] = pos + i;
    put_blocks(d, q, pos, n);
    b->seq[b->n_seqs] = q;
    b->seq_row[b->n_seqs] = q->row;
    b->kv_len[b->n_seqs] = pos + n;
    b->n_tokens += n;
    b->q_start[++b->n_seqs] = b->n_tokens;
}

/* The last row's logits give the next guess of item `index`. */
static void put_draw(struct draft_model *d, const struct draft_item *it, int index)
{
    struct batch *b = d->batch;
    const struct sequence *q = it->seq;
    const struct work *w = &d->work[index];
    int drawn = w->n_drawn;
    float *prob = w->prob ? w->prob + (size_t)drawn * (size_t)d->base.vocab_size : NULL;
    d->item_of[b->n_samples] = index;
    b->logit_row[b->n_logits] = b->n_tokens - 1;
    b->sample[b->n_samples++] = (struct sample_row){.seq = q,
                                                    .logit = b->n_logits++,
                                                    .seq_row = q->row,
                                                    .pos = q->n_tokens + drawn,
                                                    .draft_prob = prob};
}

/* As much of every item as fits into a step; false: nothing is left to do. */
static bool fill(struct draft_model *d, struct draft_item *item, int n_items)
{
    struct batch *b = d->batch;
    batch_clear(b);
    for (int i = 0; i < n_items && b->n_tokens < b->limits.max_tokens; i++) {
        struct sequence *q = item[i].seq;
        int todo = q->n_tokens + d->work[i].n_drawn - q->n_drafted;
        int left = b->limits.max_tokens - b->n_tokens, n = todo < left ? todo : left;
        if (d->work[i].n_drawn >= item[i].n)
            continue;
        put_rows(d, q, q->n_drafted, n);
        q->n_drafted += n;
        if (n == todo)
            put_draw(d, &item[i], i);
    }
    return b->n_seqs > 0;
}

static enum sl_status run(struct draft_model *d, struct draft_item *item, struct sl_err *err)
{
    enum sl_status st = d->be->ops->submit(d->be, d->batch, err);
    if (!st)
        st = d->be->ops->collect(d->be, d->result, err);
    for (int i = 0; !st && i < d->batch->n_samples; i++) {
        int at = d->item_of[i];
        struct work *w = &d->work[at];
        if (d->result->token[i] < 0)
            item[at].n = w->n_drawn; /* NaN: no more guesses for this one */
        else
            item[at].token[w->n_drawn++] = d->result->token[i];
    }
    return st;
}

/* ---- a call ---------------------------------------------------------------------------------- */

/* Positions that are here already: its own, and blocks that others have computed. One row at least
 * is left, whose logits give the first guess. */
static void skip_known(const struct draft_model *d, struct sequence *q)
{
    int size = d->be->layout.block_size;
    const struct block_table *t = &q->table[d->base.group];
    if (q->n_drafted > q->n_tokens - 1)
        q->n_drafted = q->n_tokens - 1;
    while (q->n_drafted % size == 0 && q->n_drafted + size < q->n_tokens &&
           d->have[t->block[q->n_drafted / size]])
        q->n_drafted += size;
}

/* Full blocks of known tokens that were completed since position `from` was the first missing. */
static void remember(struct draft_model *d, const struct sequence *q, int from)
{
    int size = d->be->layout.block_size;
    int upto = q->n_drafted < q->n_tokens ? q->n_drafted : q->n_tokens;
    int first = from > DRAFT_MAX ? (from - DRAFT_MAX) / size : 0; /* guesses that came true too */
    for (int i = first; (i + 1) * size <= upto; i++)
        d->have[q->table[d->base.group].block[i]] = 1;
}

/* Which items take part, and where standard verification keeps their probabilities. */
static void begin(struct draft_model *d, struct draft_item *item, int n_items)
{
    int rows = 0;
    d->base.n_caught_up = 0;
    for (int i = 0; i < n_items; i++) {
        struct sequence *q = item[i].seq;
        d->work[i] = (struct work){0};
        if (q->n_tokens + item[i].n > d->max_position)
            item[i].n = 0;
        if (d->standard && rows + item[i].n > d->prob_rows)
            item[i].n = d->prob_rows - rows;
        if (!item[i].n)
            continue;
        skip_known(d, q);
        d->work[i].from = q->n_drafted;
        d->base.n_caught_up += q->n_tokens - 1 - q->n_drafted;
        if (d->standard)
            d->work[i].prob = d->prob + (size_t)rows * (size_t)d->base.vocab_size;
        rows += item[i].n;
    }
}

static void propose(struct proposer *p, struct draft_item *item, int n_items)
{
    struct draft_model *d = (struct draft_model *)p;
    struct sl_err err = {0};
    if (!d->dead)
        begin(d, item, n_items);
    while (!d->dead && fill(d, item, n_items))
        if (run(d, item, &err)) {
            log_error("The draft model failed, no more guesses: %s", err.msg);
            d->dead = true;
        }
    for (int i = 0; i < n_items; i++) {
        item[i].n = d->dead ? 0 : d->work[i].n_drawn;
        item[i].prob = d->work[i].prob;
        if (item[i].n)
            remember(d, item[i].seq, d->work[i].from);
    }
}

static void block_taken(struct proposer *p, int32_t blk)
{
    struct draft_model *d = (struct draft_model *)p;
    if (d->have)
        d->have[blk] = 0;
}

/* ---- making one ------------------------------------------------------------------------------ */

static void free_buffers(struct draft_model *d)
{
    batch_destroy(&d->batch);
    step_result_destroy(&d->result);
    mem_free(d->have);
    mem_free(d->work);
    mem_free(d->item_of);
    mem_free(d->prob);
    d->have = NULL;
    d->work = NULL;
    d->item_of = NULL;
    d->prob = NULL;
}

static void destroy(struct proposer *p)
{
    struct draft_model *d = (struct draft_model *)p;
    free_buffers(d);
    sampler_destroy(&d->sampler);
    if (d->be)
        d->be->ops->destroy(d->be);
    mem_free(d);
}

enum sl_status draft_model_open(struct proposer **out, const struct draft_config *cfg,
                                const struct runner_config *rc, int group, struct sl_err *err)
{
    static const struct proposer_ops ops = {
        .propose = propose, .block_taken = block_taken, .destroy = destroy};
    struct model_info info;
    struct draft_model *d = mem_zalloc(1, sizeof *d);
    if (!d) {
        rc->ops->destroy(rc->device);
        return SL_FAIL(err, SL_ENOMEM, "draft model: no memory");
    }
    model_spec_info(rc->spec, &info);
    d->base = (struct proposer){.ops = &ops,
                                .name = "draft_model",
                                .max_tokens = cfg->n_tokens,
                                .fixed = cfg->fixed,
                                .max_batch = cfg->max_batch,
                                .group = group,
                                .vocab_size = info.vocab_size};
    d->standard = cfg->verify == DRAFT_STANDARD;
    d->max_position = info.max_position;
    if (cfg->max_model_len && cfg->max_model_len < d->max_position)
        d->max_position = cfg->max_model_len;
    enum sl_status st = runner_create(&d->runner, rc, err);
    if (!st) {
        d->be = runner_backend(d->runner);
        runner_set_sampler(d->runner, draw_rows, d);
        st = sampler_create(&d->sampler, info.vocab_size, SL_RAW_LOGPROBS, err);
    }
    if (st)
        destroy(&d->base);
    else
        *out = &d->base;
    return st;
}

size_t draft_model_bytes_per_token(const struct proposer *p)
{
    const struct draft_model *d = (const struct draft_model *)p;
    size_t bytes = 0;
    for (int g = 0; g < d->be->layout.n_groups; g++)
        bytes += d->be->layout.group[g].bytes_per_token;
    return bytes;
}

static struct batch_limits limits_of(const struct draft_model *d, int max_tokens, int max_seqs,
                                     int max_blocks)
{
    return (struct batch_limits){.max_tokens = max_tokens,
                                 .max_seqs = max_seqs,
                                 .max_blocks = max_blocks,
                                 .max_samples = max_seqs,
                                 .max_logits = max_seqs,
                                 .n_groups = d->be->layout.n_groups};
}

size_t draft_model_step_bytes(const struct proposer *p, int max_tokens, int max_seqs)
{
    const struct draft_model *d = (const struct draft_model *)p;
    struct batch_limits l = limits_of(d, max_tokens, max_seqs, 1);
    return runner_activation_bytes(d->runner, &l);
}

static enum sl_status take_probs(struct draft_model *d, int max_seqs, struct sl_err *err)
{
    size_t row = (size_t)d->base.vocab_size * sizeof *d->prob, fit = PROB_BYTES / row;
    size_t most = (size_t)max_seqs * (size_t)d->base.max_tokens;
    fit = fit < (size_t)d->base.max_tokens ? (size_t)d->base.max_tokens : fit;
    d->prob_rows = (int)(fit < most ? fit : most);
    d->prob = mem_alloc((size_t)d->prob_rows, row);
    return d->prob ? SL_OK
                   : SL_FAIL(err, SL_ENOMEM, "draft model: no memory for %d rows of probabilities",
                             d->prob_rows);
}

enum sl_status draft_model_take_memory(struct proposer *p, int n_blocks,
                                       const struct batch_limits *target, struct sl_err *err)
{
    struct draft_model *d = (struct draft_model *)p;
    size_t n = (size_t)target->max_seqs;
    struct batch_limits l = limits_of(d, target->max_tokens, target->max_seqs, target->max_blocks);
    free_buffers(d);
    enum sl_status st = runner_take_kv(d->runner, n_blocks, &l, err);
    if (!st)
        st = batch_create(&d->batch, &l, err);
    if (!st)
        st = step_result_create(&d->result, &l, err);
    if (!st && d->standard)
        st = take_probs(d, target->max_seqs, err);
    if (st)
        return st;
    d->have = mem_zalloc((size_t)n_blocks, sizeof *d->have);
    d->work = mem_alloc(n, sizeof *d->work);
    d->item_of = mem_alloc(n, sizeof *d->item_of);
    if (!d->have || !d->work || !d->item_of)
        return SL_FAIL(err, SL_ENOMEM, "draft model: no memory for %d sequences", target->max_seqs);
    return SL_OK;
}
