/* Life of a request in the scheduler: added, aborted, finished; limits, statistics, checks.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched/internal.h"

#include <string.h>

static bool is_batch_policy(const struct sched_config *cfg)
{
    return cfg->policy == SL_POLICY_STATIC || cfg->policy == SL_POLICY_REQUEST;
}

/* The longest sequence that the pool can hold when it runs alone. Its last token is sampled and
 * never computed, so it needs no place. */
static int longest(const struct sched_config *cfg)
{
    const struct kv_layout *l = &cfg->layout;
    int64_t len = cfg->max_model_len;
    int64_t places = (int64_t)l->n_blocks * l->block_size;
    for (int g = 0; g < l->n_groups; g++) {
        int64_t window = l->group[g].window;
        bool enough = window && !is_batch_policy(cfg) &&
                      places >= window + cfg->max_num_batched_tokens + 2 * l->block_size;
        if (!enough && places + 1 < len)
            len = places + 1;
    }
    return (int)len;
}

static enum sl_status check_config(const struct sched_config *c, struct sl_err *err)
{
    if (c->max_num_seqs < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_num_seqs", "max_num_seqs must be at least 1");
    if (c->max_num_batched_tokens < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_num_batched_tokens",
                             "max_num_batched_tokens must be at least 1");
    if (c->max_model_len < 2)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_model_len", "max_model_len must be at least 2");
    if (c->depth < 1)
        return SL_FAIL(err, SL_EINVAL, "scheduler: depth must be at least 1");
    for (int g = 0; g < c->layout.n_groups && g < KV_GROUPS_MAX; g++)
        if (c->layout.group[g].window < 0)
            return SL_FAIL(err, SL_EINVAL, "scheduler: a window must not be negative");
    return SL_OK;
}

static void set_config(struct sched *s, const struct sched_config *cfg)
{
    static const policy_fn policies[] = {[SL_POLICY_MIXED] = policy_mixed,
                                         [SL_POLICY_PREFILL_FIRST] = policy_prefill_first,
                                         [SL_POLICY_STATIC] = policy_batch,
                                         [SL_POLICY_REQUEST] = policy_batch};
    s->cfg = *cfg;
    s->policy = policies[cfg->policy];
    s->by_batch = is_batch_policy(cfg);
    /* So that each running sequence can decode in every step. */
    if (s->cfg.max_num_seqs > cfg->max_num_batched_tokens)
        s->cfg.max_num_seqs = cfg->max_num_batched_tokens;
    if (s->cfg.max_num_partial_prefills < 1)
        s->cfg.max_num_partial_prefills = 1;
    if (s->cfg.max_long_partial_prefills < 1)
        s->cfg.max_long_partial_prefills = 1;
    if (s->cfg.max_num_partial_prefills > 1 && cfg->long_prefill_token_threshold == 0)
        s->cfg.long_prefill_token_threshold = cfg->max_model_len / 25; /* as vLLM does */
    s->max_len = longest(cfg);
    s->waiting.by_priority = s->running.by_priority = cfg->order == SL_ORDER_PRIORITY;
}

enum sl_status sched_create(struct sched **out, const struct sched_config *cfg, struct sl_err *err)
{
    enum sl_status st = check_config(cfg, err);
    if (st)
        return st;
    struct sched *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "scheduler: no memory");
    set_config(s, cfg);
    int n = s->cfg.max_num_seqs;
    const struct kvpool_config pool = {.layout = cfg->layout,
                                       .max_len = s->max_len,
                                       .max_seqs = n,
                                       .prefix_caching = cfg->enable_prefix_caching,
                                       .offload = cfg->offload};
    st = kvpool_create(&s->pool, &pool, err);
    if (st) {
        sched_destroy(&s);
        return st;
    }
    s->free_row = mem_alloc((size_t)n, sizeof *s->free_row);
    s->entry = mem_alloc((size_t)n, sizeof *s->entry);
    if (cfg->policy == SL_POLICY_STATIC)
        s->ghost = mem_zalloc((size_t)n, sizeof *s->ghost);
    if (!s->free_row || !s->entry || (cfg->policy == SL_POLICY_STATIC && !s->ghost)) {
        sched_destroy(&s);
        return SL_FAIL(err, SL_ENOMEM, "scheduler: no memory for %d sequences", n);
    }
    if (cfg->proposer)
        st = drafts_init(s, cfg->proposer, err);
    if (st) {
        sched_destroy(&s);
        return st;
    }
    for (int i = 0; i < n; i++)
        s->free_row[i] = n - 1 - i;
    s->n_free_rows = n;
    s->ghost_request.params.p.prompt_logprobs = s->ghost_request.params.p.logprobs = SL_NONE;
    *out = s;
    return SL_OK;
}

void sched_destroy(struct sched **sp)
{
    struct sched *s = *sp;
    if (!s)
        return;
    struct queue *queues[] = {&s->running, &s->waiting};
    for (int i = 0; i < 2; i++)
        while (queues[i]->head)
            sched_abort(s, queues[i]->head->req, SL_ABORT);
    kvpool_destroy(&s->pool);
    intpool_fini(&s->ints);
    mem_free(s->free_row);
    mem_free(s->entry);
    mem_free(s->ghost);
    mem_free(s->drafts.item);
    mem_free(s);
    *sp = NULL;
}

void sched_batch_limits(const struct sched *s, struct batch_limits *out)
{
    const struct sched_config *c = &s->cfg;
    int64_t blocks = (int64_t)c->max_num_seqs * ceil_div(s->max_len, c->layout.block_size);
    int64_t guesses = s->proposer ? (int64_t)c->max_num_seqs * s->proposer->max_tokens : 0;
    int n_drafts = guesses < c->max_num_batched_tokens ? (int)guesses : c->max_num_batched_tokens;
    *out = (struct batch_limits){.max_tokens = c->max_num_batched_tokens,
                                 .max_seqs = c->max_num_seqs,
                                 .max_blocks = blocks < INT32_MAX ? (int)blocks : INT32_MAX,
                                 .max_samples = c->max_num_seqs + n_drafts,
                                 .max_logits = c->max_num_seqs + n_drafts + PLOGPROB_ROWS,
                                 .n_groups = c->layout.n_groups,
                                 .max_copies = kvpool_max_copies(s->pool)};
}

int sched_max_len(const struct sched *s)
{
    return s->max_len;
}

bool sched_can_ever_fit(const struct sched *s, int n_prompt)
{
    return n_prompt > 0 && n_prompt < s->max_len;
}

int sched_max_beams(const struct sched *s)
{
    return s->by_batch ? 0 : s->cfg.max_num_seqs;
}

int32_t row_take(struct sched *s)
{
    SL_ASSERT(s->n_free_rows > 0);
    return s->free_row[--s->n_free_rows];
}

void row_give(struct sched *s, struct sequence *q)
{
    s->free_row[s->n_free_rows++] = q->row;
    q->row = -1;
}

static void enqueue(struct sched *s, struct sequence *q)
{
    q->state = SEQ_WAITING;
    queue_push_late(&s->waiting, q);
}

void enqueue_rest(struct sched *s, struct request *r)
{
    r->forked = true;
    for (int i = 0; i < r->n_seqs; i++)
        if (r->seq[i]->state == SEQ_NEW) {
            r->seq[i]->state = SEQ_WAITING;
            queue_push_early(&s->waiting, r->seq[i]);
        }
}

/* What the stop rules come to. max_tokens 0 still samples once: the prompt's last row has to be
 * computed, and its token is thrown away. */
static void set_stop(const struct sched *s, struct sequence *q)
{
    const struct seq_params *params = &q->req->params;
    const struct sl_sampling_params *p = &params->p;
    if (q->req->pooling) {
        q->limit = q->n_prompt + 1;
        return;
    }
    int n = params->max_tokens > 0 ? params->max_tokens : 1;
    q->limit = n < s->max_len - q->n_prompt ? q->n_prompt + n : s->max_len;
    q->eos = p->ignore_eos ? -1 : params->eos_token;
    q->n_draft_wanted = s->proposer != NULL;
    q->plain_stop = params->max_tokens > 0 && p->min_tokens == 0 && p->n_stop_token_ids == 0 &&
                    p->repetition_max_pattern == 0;
}

void sched_add(struct sched *s, struct request *r)
{
    SL_ASSERT(sched_can_ever_fit(s, r->n_prompt) && r->n_seqs > 0);
    const char *salt = r->cache_salt;
    r->cache_key = kvpool_key_take(s->pool, salt, salt ? strlen(salt) : 0);
    r->n_finished = 0;
    r->forked = r->n_seqs == 1;
    for (int i = 0; i < r->n_seqs; i++)
        set_stop(s, r->seq[i]);
    if (r->params.beam_width)
        beam_open(s, r);
    if (!s->by_batch) {
        enqueue(s, r->seq[0]);
        return;
    }
    r->forked = true; /* each choice is a member of its own */
    for (int i = 0; i < r->n_seqs; i++)
        enqueue(s, r->seq[i]);
}

/* The scheduler's buffers back, once nothing reads them. */
static void give_tokens(struct sched *s, struct sequence *q)
{
    if (q->tokens != q->req->prompt)
        intpool_give(&s->ints, q->tokens, q->cap_tokens);
    q->tokens = NULL;
    q->cap_tokens = 0;
}

void sequence_unhold(struct sched *s, struct sequence *q)
{
    SL_ASSERT(q->n_steps_held > 0);
    if (--q->n_steps_held == 0 && q->state == SEQ_FINISHED)
        give_tokens(s, q);
}

void sequence_finish(struct sched *s, struct sequence *q, enum sl_finish why)
{
    if (q->state == SEQ_RUNNING) {
        queue_remove(&s->running, q);
        if (s->ghost && why != SL_ABORT) {
            ghosts_add(s, q);
        } else {
            blocks_release(s, q);
            row_give(s, q);
        }
        if (s->running.n == 0)
            ghosts_drop(s);
    } else if (q->state == SEQ_WAITING) {
        queue_remove(&s->waiting, q);
        if (q->swapped)
            blocks_release(s, q);
    }
    q->state = SEQ_FINISHED;
    q->finish = why;
    if (s->proposer && s->proposer->ops->finished && why != SL_ABORT && !q->req->beam)
        s->proposer->ops->finished(s->proposer, q);
    s->stats.n_finished++;
    struct request *r = q->req;
    if (++r->n_finished == r->n_seqs) {
        kvpool_key_drop(s->pool, r->cache_key);
        r->cache_key = -1;
        beam_close(r);
    }
    if (q->n_steps_held == 0)
        give_tokens(s, q);
}

void sched_abort(struct sched *s, struct request *r, enum sl_finish why)
{
    r->forked = true; /* nobody is left to fork */
    beam_leave(s, r);
    for (int i = 0; i < r->n_seqs; i++)
        if (r->seq[i]->state != SEQ_FINISHED)
            sequence_finish(s, r->seq[i], why);
}

void sched_abort_seq(struct sched *s, struct sequence *q, enum sl_finish why)
{
    if (q->state == SEQ_FINISHED)
        return;
    if (q->req->beam) { /* its choices are not sequences before it ends */
        sched_abort(s, q->req, why);
        return;
    }
    bool first = !q->req->forked && q->index == 0;
    sequence_finish(s, q, why);
    if (first) /* it would have computed the prompt for the others */
        enqueue_rest(s, q->req);
}

bool sched_holds(const struct sched *s, const struct request *r)
{
    (void)s;
    for (int i = 0; i < r->n_seqs; i++)
        if (r->seq[i]->n_steps_held > 0)
            return true;
    return false;
}

void sched_get_stats(const struct sched *s, struct sched_stats *out)
{
    *out = s->stats;
    out->n_running = s->running.n;
    out->n_waiting = s->waiting.n;
    out->n_blocks = s->cfg.layout.n_blocks;
    out->n_blocks_used = out->n_blocks - kvpool_n_free(s->pool, 0);
    if (s->cfg.layout.n_host_blocks)
        out->n_host_blocks_used =
            s->cfg.layout.n_host_blocks - kvpool_n_free(s->pool, prefix_host(&s->cfg.layout, 0));
}

void sched_reset_prefix_cache(struct sched *s)
{
    kvpool_forget(s->pool);
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* Blocks of the places before this one. */
static size_t blocks_before(const struct kv_layout *l, int place)
{
    size_t n = 0;
    for (int p = 0; p < place; p++)
        n += (size_t)prefix_n_blocks(l, p);
    return n;
}

static void count_refs(const struct sched *s, const struct sequence *q, int32_t *refs)
{
    const struct kv_layout *l = &s->cfg.layout;
    for (int g = 0; g < l->n_groups; g++) {
        int place = q->swapped ? prefix_host(l, g) : g;
        for (int i = 0; i < q->table[g].n; i++) {
            int32_t blk = q->table[g].block[i];
            SL_ASSERT((blk < 0) == (i < q->table[g].first) && blk < prefix_n_blocks(l, place));
            if (blk >= 0)
                refs[blocks_before(l, place) + (size_t)blk]++;
        }
    }
}

static void check_rows(const struct sched *s)
{
    int n = s->cfg.max_num_seqs, n_taken = s->running.n + s->n_ghosts;
    SL_ASSERT(s->n_free_rows + n_taken == n);
    int n_reserved = 0;
    for (const struct sequence *q = s->running.head; q; q = q->next)
        if (q->req->beam && !(q->prev && q->prev->req == q->req)) /* beams stand together */
            n_reserved += beam_check(q->req);
    SL_ASSERT(n_reserved == s->rows_reserved && n_reserved <= s->n_free_rows);
    bool *seen = mem_zalloc((size_t)n, sizeof *seen);
    if (!seen)
        return;
    for (int i = 0; i < s->n_free_rows; i++) {
        SL_ASSERT(!seen[s->free_row[i]]);
        seen[s->free_row[i]] = true;
    }
    for (const struct sequence *q = s->running.head; q; q = q->next) {
        SL_ASSERT(!seen[q->row]);
        seen[q->row] = true;
    }
    mem_free(seen);
}

void sched_check(const struct sched *s)
{
    const struct kv_layout *l = &s->cfg.layout;
    queue_check(&s->waiting);
    queue_check(&s->running);
    check_rows(s);
    kvpool_check(s->pool);
    int n_places = prefix_n_places(l);
    int32_t *refs = mem_zalloc(blocks_before(l, n_places), sizeof *refs);
    if (!refs)
        return;
    for (const struct sequence *q = s->waiting.head; q; q = q->next) {
        SL_ASSERT(q->state == SEQ_WAITING);
        sequence_check(q, l->block_size);
        count_refs(s, q, refs);
    }
    for (const struct sequence *q = s->running.head; q; q = q->next) {
        SL_ASSERT(q->state == SEQ_RUNNING);
        sequence_check(q, l->block_size);
        count_refs(s, q, refs);
    }
    for (int i = 0; i < s->n_ghosts; i++)
        count_refs(s, &s->ghost[i], refs);
    for (int p = 0; p < n_places; p++)
        for (int i = 0; i < prefix_n_blocks(l, p); i++)
            SL_ASSERT(refs[blocks_before(l, p) + (size_t)i] == kvpool_refs(s->pool, p, i));
    mem_free(refs);
}
