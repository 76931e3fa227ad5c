/* SPDX-License-Identifier: Apache-2.0 */
#include "core/metrics.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* ---- the families ---------------------------------------------------------------------------- */

struct series {
    const char *family, *label; /* label: `name="value"`, or NULL */
    const char *help;           /* of the family's first series */
};

static const struct series counter_series[N_METRIC_COUNTERS] = {
    [M_PROMPT_TOKENS] = {"prompt_tokens", NULL, "Number of prefill tokens processed."},
    [M_PROMPT_LOCAL_COMPUTE] = {"prompt_tokens_by_source", "source=\"local_compute\"",
                                "Number of prompt tokens by source."},
    [M_PROMPT_CACHE_HIT] = {"prompt_tokens_by_source", "source=\"local_cache_hit\"", NULL},
    [M_PROMPT_EXTERNAL] = {"prompt_tokens_by_source", "source=\"external_kv_transfer\"", NULL},
    [M_PROMPT_CACHED] = {"prompt_tokens_cached", NULL,
                         "Number of prompt tokens taken from a cache."},
    [M_GENERATION_TOKENS] = {"generation_tokens", NULL, "Number of generation tokens processed."},
    [M_PREEMPTIONS] = {"num_preemptions", NULL, "Cumulative number of preemptions."},
    [M_FINISHED_STOP] = {"request_success", "finished_reason=\"stop\"",
                         "Count of finished requests by reason."},
    [M_FINISHED_LENGTH] = {"request_success", "finished_reason=\"length\"", NULL},
    [M_FINISHED_ABORT] = {"request_success", "finished_reason=\"abort\"", NULL},
    [M_FINISHED_ERROR] = {"request_success", "finished_reason=\"error\"", NULL},
    [M_FINISHED_REPETITION] = {"request_success", "finished_reason=\"repetition\"", NULL},
    [M_PREFIX_QUERIES] = {"prefix_cache_queries", NULL,
                          "Prefix cache queries, in number of queried tokens."},
    [M_PREFIX_HITS] = {"prefix_cache_hits", NULL, "Prefix cache hits, in number of cached tokens."},
    [M_EXTERNAL_QUERIES] = {"external_prefix_cache_queries", NULL,
                            "External prefix cache queries, in number of queried tokens."},
    [M_EXTERNAL_HITS] = {"external_prefix_cache_hits", NULL,
                         "External prefix cache hits, in number of cached tokens."},
    [M_MM_QUERIES] = {"mm_cache_queries", NULL,
                      "Multi-modal cache queries, in number of queried items."},
    [M_MM_HITS] = {"mm_cache_hits", NULL, "Multi-modal cache hits, in number of cached items."},
    [M_DRAFTS] = {"spec_decode_num_drafts", NULL, "Number of spec decoding drafts."},
    [M_DRAFT_TOKENS] = {"spec_decode_num_draft_tokens", NULL, "Number of draft tokens."},
    [M_DRAFT_ACCEPTED] = {"spec_decode_num_accepted_tokens", NULL, "Number of accepted tokens."},
    /* a label for each place: render_accepted_at */
    [M_DRAFT_ACCEPTED_AT] = {"spec_decode_num_accepted_tokens_per_pos", NULL,
                             "Accepted tokens per draft position."},
};

static const struct series gauge_series[N_METRIC_GAUGES] = {
    [M_RUNNING] = {"num_requests_running", NULL, "Number of requests in model execution batches."},
    [M_WAITING] = {"num_requests_waiting", NULL, "Number of requests waiting to be processed."},
    [M_WAITING_CAPACITY] = {"num_requests_waiting_by_reason", "reason=\"capacity\"",
                            "Number of requests waiting, by reason."},
    [M_WAITING_DEFERRED] = {"num_requests_waiting_by_reason", "reason=\"deferred\"", NULL},
    [M_SLEEP_AWAKE] = {"engine_sleep_state", "sleep_state=\"awake\"",
                       "Whether the engine is awake, or what sleeping has done."},
    [M_SLEEP_OFFLOADED] = {"engine_sleep_state", "sleep_state=\"weights_offloaded\"", NULL},
    [M_SLEEP_DISCARDED] = {"engine_sleep_state", "sleep_state=\"discard_all\"", NULL},
    [M_KV_USAGE_PPM] = {"kv_cache_usage_perc", NULL, "KV-cache usage. 1 means 100 percent usage."},
};

#define MS(x) INT64_C(x##000000)
static const int64_t ttft_bounds[] = {
    MS(1),     MS(5),     MS(10),    MS(20),     MS(40),     MS(60),     MS(80),   MS(100),
    MS(250),   MS(500),   MS(750),   MS(1000),   MS(2500),   MS(5000),   MS(7500), MS(10000),
    MS(20000), MS(40000), MS(80000), MS(160000), MS(640000), MS(2560000)};
static const int64_t token_time_bounds[] = {MS(10),    MS(25),    MS(50),    MS(75),   MS(100),
                                            MS(150),   MS(200),   MS(300),   MS(400),  MS(500),
                                            MS(750),   MS(1000),  MS(2500),  MS(5000), MS(7500),
                                            MS(10000), MS(20000), MS(40000), MS(80000)};
static const int64_t request_time_bounds[] = {
    MS(300),   MS(500),    MS(800),    MS(1000),   MS(1500),   MS(2000),    MS(2500),
    MS(5000),  MS(10000),  MS(15000),  MS(20000),  MS(30000),  MS(40000),   MS(50000),
    MS(60000), MS(120000), MS(240000), MS(480000), MS(960000), MS(1920000), MS(7680000)};
static const int64_t iteration_bounds[] = {1,   8,    16,   32,   64,   128,  256,
                                           512, 1024, 2048, 4096, 8192, 16384};
static const int64_t n_bounds[] = {1, 2, 5, 10, 20};

struct histogram_series {
    const char *family, *help;
    const int64_t *bounds; /* NULL: 1, 2, 5, 10, ... up to max_model_len */
    int n;
    bool seconds;
};
#define BOUNDS(a) a, (int)(sizeof a / sizeof *a)
static const struct histogram_series histogram_series[N_METRIC_HISTOGRAMS] = {
    [M_TTFT] = {"time_to_first_token_seconds", "Histogram of time to first token in seconds.",
                BOUNDS(ttft_bounds), true},
    [M_ITL] = {"inter_token_latency_seconds", "Histogram of inter-token latency in seconds.",
               BOUNDS(token_time_bounds), true},
    [M_TPOT] = {"request_time_per_output_token_seconds",
                "Histogram of time per output token of a request, in seconds.",
                BOUNDS(token_time_bounds), true},
    [M_E2E] = {"e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.",
               BOUNDS(request_time_bounds), true},
    [M_QUEUE_TIME] = {"request_queue_time_seconds",
                      "Histogram of time spent in the WAITING phase of a request.",
                      BOUNDS(request_time_bounds), true},
    [M_INFERENCE_TIME] = {"request_inference_time_seconds",
                          "Histogram of time spent in the RUNNING phase of a request.",
                          BOUNDS(request_time_bounds), true},
    [M_PREFILL_TIME] = {"request_prefill_time_seconds",
                        "Histogram of time spent in the PREFILL phase of a request.",
                        BOUNDS(request_time_bounds), true},
    [M_DECODE_TIME] = {"request_decode_time_seconds",
                       "Histogram of time spent in the DECODE phase of a request.",
                       BOUNDS(request_time_bounds), true},
    [M_ITERATION_TOKENS] = {"iteration_tokens_total",
                            "Histogram of number of tokens per engine step.",
                            BOUNDS(iteration_bounds), false},
    [M_PARAMS_N] = {"request_params_n", "Histogram of the n request parameter.", BOUNDS(n_bounds),
                    false},
    [M_REQUEST_PROMPT_TOKENS] = {"request_prompt_tokens", "Number of prefill tokens processed.",
                                 NULL, 0, false},
    [M_REQUEST_GENERATION_TOKENS] = {"request_generation_tokens",
                                     "Number of generation tokens processed.", NULL, 0, false},
    [M_MAX_GENERATION_TOKENS] = {"request_max_num_generation_tokens",
                                 "Histogram of maximum number of generation tokens of a request.",
                                 NULL, 0, false},
    [M_PARAMS_MAX_TOKENS] = {"request_params_max_tokens",
                             "Histogram of the max_tokens request parameter.", NULL, 0, false},
    [M_PREFILL_KV_COMPUTED] = {"request_prefill_kv_computed_tokens",
                               "Histogram of prompt tokens computed, cached ones left out.", NULL,
                               0, false},
};

/* ---- the numbers ----------------------------------------------------------------------------- */

enum { MAX_BOUNDS = 32 };

struct histogram {
    atomic_ullong count[MAX_BOUNDS + 1]; /* not cumulative; the last is beyond every bound */
    atomic_ullong sum;
};

struct metrics {
    char *model_name;
    int64_t length_bounds[MAX_BOUNDS];
    int n_length_bounds;
    int n_draft_places; /* 0: no speculation */
    atomic_ullong counter[N_METRIC_COUNTERS];
    atomic_llong gauge[N_METRIC_GAUGES];
    struct histogram histogram[N_METRIC_HISTOGRAMS];
};

enum sl_status metrics_create(struct metrics **out, const char *model_name, int max_model_len,
                              struct sl_err *err)
{
    struct metrics *m = mem_zalloc(1, sizeof *m);
    if (!m || !(m->model_name = mem_strdup(model_name))) {
        mem_free(m);
        return SL_FAIL(err, SL_ENOMEM, "metrics: no memory");
    }
    static const int mantissa[] = {1, 2, 5};
    int64_t power = 1;
    for (int i = 0; i < MAX_BOUNDS; i++) {
        int64_t v = mantissa[i % 3] * power;
        if (v > max_model_len)
            break;
        m->length_bounds[m->n_length_bounds++] = v;
        power *= i % 3 == 2 ? 10 : 1;
    }
    metrics_set(m, M_SLEEP_AWAKE, 1);
    *out = m;
    return SL_OK;
}

void metrics_destroy(struct metrics **m)
{
    if (!*m)
        return;
    mem_free((*m)->model_name);
    mem_free(*m);
    *m = NULL;
}

void metrics_set_draft_places(struct metrics *m, int n)
{
    m->n_draft_places = n;
}

void metrics_add(struct metrics *m, enum metric_counter c, uint64_t n)
{
    atomic_fetch_add_explicit(&m->counter[c], n, memory_order_relaxed);
}

void metrics_set(struct metrics *m, enum metric_gauge g, int64_t v)
{
    atomic_store_explicit(&m->gauge[g], v, memory_order_relaxed);
}

static const int64_t *bounds_of(const struct metrics *m, enum metric_histogram h, int *n)
{
    const struct histogram_series *s = &histogram_series[h];
    *n = s->bounds ? s->n : m->n_length_bounds;
    return s->bounds ? s->bounds : m->length_bounds;
}

void metrics_observe(struct metrics *m, enum metric_histogram h, int64_t v)
{
    int n, i = 0;
    const int64_t *bound = bounds_of(m, h, &n);
    if (v < 0)
        v = 0;
    while (i < n && v > bound[i])
        i++;
    atomic_fetch_add_explicit(&m->histogram[h].count[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->histogram[h].sum, (unsigned long long)v, memory_order_relaxed);
}

uint64_t metrics_counter(const struct metrics *m, enum metric_counter c)
{
    return atomic_load_explicit(&m->counter[c], memory_order_relaxed);
}

uint64_t metrics_count(const struct metrics *m, enum metric_histogram h)
{
    int n;
    uint64_t total = 0;
    (void)bounds_of(m, h, &n);
    for (int i = 0; i <= n; i++)
        total += atomic_load_explicit(&m->histogram[h].count[i], memory_order_relaxed);
    return total;
}

/* ---- text ------------------------------------------------------------------------------------ */

void metrics_label(struct strbuf *out, const char *v)
{
    strbuf_addc(out, '"');
    for (; *v; v++) {
        if (*v == '\n')
            strbuf_adds(out, "\\n");
        else if (*v == '"' || *v == '\\')
            strbuf_addf(out, "\\%c", *v);
        else
            strbuf_addc(out, *v);
    }
    strbuf_addc(out, '"');
}

/* v / scale, exactly, with a decimal point as Prometheus' Python client writes it. */
static void add_scaled(struct strbuf *out, uint64_t v, uint64_t scale)
{
    uint64_t rest = v % scale;
    strbuf_addf(out, "%" PRIu64 ".", v / scale);
    if (!rest)
        strbuf_addc(out, '0');
    while (rest) {
        rest *= 10;
        strbuf_addc(out, (char)('0' + rest / scale));
        rest %= scale;
    }
}

static void add_family(struct strbuf *out, const char *family, const char *suffix, const char *kind,
                       const char *help)
{
    strbuf_addf(out, "# HELP vllm:%s%s %s\n# TYPE vllm:%s%s %s\n", family, suffix, help, family,
                suffix, kind);
}

/* `vllm:name{engine="0",model_name="..."[,more]} ` */
static void add_name(struct strbuf *out, const struct metrics *m, const char *family,
                     const char *suffix, const char *more)
{
    strbuf_addf(out, "vllm:%s%s{engine=\"0\",model_name=", family, suffix);
    metrics_label(out, m->model_name);
    if (more)
        strbuf_addf(out, ",%s", more);
    strbuf_adds(out, "} ");
}

static void render_histogram(const struct metrics *m, enum metric_histogram h, struct strbuf *out)
{
    const struct histogram_series *s = &histogram_series[h];
    uint64_t scale = s->seconds ? 1000000000 : 1, total = 0;
    int n;
    const int64_t *bound = bounds_of(m, h, &n);
    add_family(out, s->family, "", "histogram", s->help);
    for (int i = 0; i <= n; i++) {
        struct strbuf le;
        strbuf_init(&le, 0);
        strbuf_adds(&le, "le=\"");
        if (i < n)
            add_scaled(&le, (uint64_t)bound[i], scale);
        else
            strbuf_adds(&le, "+Inf");
        strbuf_addc(&le, '"');
        total += atomic_load_explicit(&m->histogram[h].count[i], memory_order_relaxed);
        add_name(out, m, s->family, "_bucket", le.data);
        strbuf_addf(out, "%" PRIu64 ".0\n", total);
        strbuf_fini(&le);
    }
    add_name(out, m, s->family, "_count", NULL);
    strbuf_addf(out, "%" PRIu64 ".0\n", total); /* always the sum of the buckets shown */
    add_name(out, m, s->family, "_sum", NULL);
    add_scaled(out, atomic_load_explicit(&m->histogram[h].sum, memory_order_relaxed), scale);
    strbuf_addc(out, '\n');
}

static void render_counter(const struct metrics *m, enum metric_counter c, struct strbuf *out)
{
    const struct series *s = &counter_series[c];
    if (s->help)
        add_family(out, s->family, "_total", "counter", s->help);
    add_name(out, m, s->family, "_total", s->label);
    strbuf_addf(out, "%" PRIu64 ".0\n", metrics_counter(m, c));
}

static void render_accepted_at(const struct metrics *m, struct strbuf *out)
{
    const struct series *s = &counter_series[M_DRAFT_ACCEPTED_AT];
    add_family(out, s->family, "_total", "counter", s->help);
    for (int i = 0; i < m->n_draft_places; i++) {
        char label[32];
        snprintf(label, sizeof label, "position=\"%d\"", i);
        add_name(out, m, s->family, "_total", label);
        strbuf_addf(out, "%" PRIu64 ".0\n", metrics_counter(m, M_DRAFT_ACCEPTED_AT + i));
    }
}

void metrics_render(const struct metrics *m, const char *info, struct strbuf *out)
{
    for (int g = 0; g < N_METRIC_GAUGES; g++) {
        const struct series *s = &gauge_series[g];
        int64_t v = atomic_load_explicit(&m->gauge[g], memory_order_relaxed);
        if (s->help)
            add_family(out, s->family, "", "gauge", s->help);
        add_name(out, m, s->family, "", s->label);
        add_scaled(out, v > 0 ? (uint64_t)v : 0, g == M_KV_USAGE_PPM ? 1000000 : 1);
        strbuf_addc(out, '\n');
    }
    add_family(out, "cache_config_info", "", "gauge", "Information of the LLMEngine CacheConfig");
    add_name(out, m, "cache_config_info", "", info);
    strbuf_adds(out, "1.0\n");
    int n = m->n_draft_places ? M_DRAFT_ACCEPTED_AT : M_DRAFTS;
    for (int c = 0; c < n; c++)
        render_counter(m, (enum metric_counter)c, out);
    if (m->n_draft_places)
        render_accepted_at(m, out);
    for (int h = 0; h < N_METRIC_HISTOGRAMS; h++)
        render_histogram(m, (enum metric_histogram)h, out);
}
