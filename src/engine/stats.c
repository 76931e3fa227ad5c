/* The gauges and counters that the scheduler keeps, and the log line every ten seconds.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"

static const int64_t LOG_INTERVAL_NS = INT64_C(10000000000);

static void add_since(struct metrics *m, enum metric_counter c, uint64_t now, uint64_t *before)
{
    if (now > *before)
        metrics_add(m, c, now - *before);
    *before = now;
}

static void count_drafts(struct sl_engine *e, const struct sched_stats *s)
{
    struct sl_draft_stats *d = &e->stats.drafts;
    add_since(e->metrics, M_DRAFTS, s->n_drafts, &d->n_drafts);
    add_since(e->metrics, M_DRAFT_TOKENS, s->n_draft_tokens, &d->n_draft_tokens);
    add_since(e->metrics, M_DRAFT_ACCEPTED, s->n_draft_accepted, &d->n_accepted);
    for (int i = 0; i < e->proposer->max_tokens; i++)
        add_since(e->metrics, M_DRAFT_ACCEPTED_AT + i, s->n_draft_accepted_at[i],
                  &d->n_accepted_at[i]);
}

/* vLLM's line, of the proposals since the one before. */
static void log_drafts(struct sl_engine *e, double seconds)
{
    const struct sl_draft_stats now = e->stats.drafts, was = e->stats.logged_drafts;
    double drafts = (double)(now.n_drafts - was.n_drafts);
    double drafted = (double)(now.n_draft_tokens - was.n_draft_tokens);
    double accepted = (double)(now.n_accepted - was.n_accepted);
    if (drafts <= 0)
        return;
    struct strbuf rates;
    strbuf_init(&rates, 0);
    for (int i = 0; i < e->proposer->max_tokens; i++)
        strbuf_addf(&rates, "%s%.3f", i ? ", " : "",
                    (double)(now.n_accepted_at[i] - was.n_accepted_at[i]) / drafts);
    log_info("SpecDecoding metrics: Mean acceptance length: %.2f, Accepted throughput: %.2f "
             "tokens/s, Drafted throughput: %.2f tokens/s, Accepted: %.0f tokens, Drafted: %.0f "
             "tokens, Per-position acceptance rate: %s, Avg Draft acceptance rate: %.1f%%",
             1 + accepted / drafts, accepted / seconds, drafted / seconds, accepted, drafted,
             rates.data ? rates.data : "", drafted > 0 ? 100 * accepted / drafted : 0);
    strbuf_fini(&rates);
    e->stats.logged_drafts = now;
}

void sl_engine_draft_stats(const struct sl_engine *e, struct sl_draft_stats *out)
{
    *out = (struct sl_draft_stats){
        .n_drafts = metrics_counter(e->metrics, M_DRAFTS),
        .n_draft_tokens = metrics_counter(e->metrics, M_DRAFT_TOKENS),
        .n_accepted = metrics_counter(e->metrics, M_DRAFT_ACCEPTED),
        .n_places = e->proposer ? e->proposer->max_tokens : 0,
    };
    for (int i = 0; i < out->n_places; i++)
        out->n_accepted_at[i] = metrics_counter(e->metrics, M_DRAFT_ACCEPTED_AT + i);
}

void stats_after_step(struct sl_engine *e, bool stepped)
{
    struct stats *t = &e->stats;
    struct sched_stats s;
    sched_get_stats(core_sched(e->core), &s);
    metrics_set(e->metrics, M_RUNNING, s.n_running);
    metrics_set(e->metrics, M_WAITING, s.n_waiting);
    metrics_set(e->metrics, M_WAITING_CAPACITY, s.n_waiting);
    metrics_set(e->metrics, M_KV_USAGE_PPM,
                s.n_blocks ? INT64_C(1000000) * s.n_blocks_used / s.n_blocks : 0);
    add_since(e->metrics, M_PREEMPTIONS, s.n_preemptions, &t->preemptions);
    add_since(e->metrics, M_PREFIX_QUERIES, s.prefix_queries, &t->prefix_queries);
    add_since(e->metrics, M_PREFIX_HITS, s.prefix_hits, &t->prefix_hits);
    add_since(e->metrics, M_EXTERNAL_QUERIES, s.host_queries, &t->host_queries);
    add_since(e->metrics, M_EXTERNAL_HITS, s.host_hits, &t->host_hits);
    if (e->proposer)
        count_drafts(e, &s);
    if (!stepped)
        return;
    metrics_observe(e->metrics, M_ITERATION_TOKENS, s.last_step_tokens);
    t->active = true;
    stats_tick(e, clock_mono_ns());
}

int64_t stats_deadline(const struct sl_engine *e)
{
    bool wanted = !e->cfg.disable_log_stats && (e->stats.active || log_enabled(LOG_DEBUG));
    return wanted ? e->stats.last_ns + LOG_INTERVAL_NS : INT64_MAX;
}

/* At info level while there is work, at debug level while idle. */
void stats_tick(struct sl_engine *e, int64_t now_ns)
{
    struct stats *t = &e->stats;
    if (now_ns - t->last_ns < LOG_INTERVAL_NS || e->cfg.disable_log_stats)
        return;
    double seconds = (double)(now_ns - t->last_ns) * 1e-9;
    uint64_t prompt = metrics_counter(e->metrics, M_PROMPT_TOKENS);
    uint64_t generated = metrics_counter(e->metrics, M_GENERATION_TOKENS);
    struct sched_stats s;
    sched_get_stats(core_sched(e->core), &s);
    log_line(t->active ? LOG_INFO : LOG_DEBUG, __FILE__, __LINE__,
             "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
             "Running: %d reqs, Waiting: %d reqs, Preemptions: %d, GPU KV cache usage: %.1f%%, "
             "Prefix cache hit rate: %.1f%%",
             (double)(prompt - t->logged_prompt) / seconds,
             (double)(generated - t->logged_generation) / seconds, s.n_running, s.n_waiting,
             (int)(s.n_preemptions - t->logged_preemptions),
             s.n_blocks ? 100.0 * s.n_blocks_used / s.n_blocks : 0,
             s.prefix_queries ? 100.0 * (double)s.prefix_hits / (double)s.prefix_queries : 0);
    if (e->proposer)
        log_drafts(e, seconds);
    t->logged_prompt = prompt;
    t->logged_generation = generated;
    t->logged_preemptions = s.n_preemptions;
    t->last_ns = now_ns;
    t->active = s.n_running + s.n_waiting > 0;
}
