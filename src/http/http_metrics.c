/* SPDX-License-Identifier: Apache-2.0 */
#include "http/http_metrics.h"

#include "base/mem.h"

#include <stdatomic.h>
#include <string.h>

static const char *const methods[] = {"GET",    "POST",    "HEAD",  "PUT",
                                      "DELETE", "OPTIONS", "PATCH", "other"};
static const double buckets[] = {0.1, 0.5, 1};
static const double fine_buckets[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1,  1.5, 2,
                                      2.5,  3,     3.5,  4,     4.5, 5,    7.5, 10,   30, 60};
enum {
    N_METHODS = sizeof methods / sizeof methods[0],
    N_CLASSES = 5, /* 1xx to 5xx */
    N_BUCKETS = sizeof buckets / sizeof buckets[0],
    N_FINE = sizeof fine_buckets / sizeof fine_buckets[0]
};

struct durations {
    atomic_ullong bucket[N_BUCKETS + 1];
    atomic_ullong ns;
};

struct handler {
    const char *name;
    atomic_ullong requests[N_METHODS][N_CLASSES];
    struct durations took[N_METHODS];
    atomic_ullong request_bytes, response_bytes;
};

struct http_metrics {
    atomic_ullong fine[N_FINE + 1], fine_ns;
    atomic_ullong parsed[2][2]; /* [streamed][a call was found] */
    int n;
    struct handler handler[];
};

enum sl_status http_metrics_create(struct http_metrics **out, const char *const *handlers,
                                   int n_handlers, struct sl_err *err)
{
    struct http_metrics *m =
        mem_zalloc(1, sizeof *m + (size_t)(n_handlers + 1) * sizeof m->handler[0]);
    if (!m)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for metrics");
    m->n = n_handlers + 1;
    for (int i = 0; i < m->n; i++)
        m->handler[i].name = i < n_handlers ? handlers[i] : "none";
    *out = m;
    return SL_OK;
}

void http_metrics_destroy(struct http_metrics **m)
{
    mem_free(*m);
    *m = NULL;
}

static void add(atomic_ullong *to, uint64_t n)
{
    atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

static unsigned long long get(const atomic_ullong *from)
{
    return atomic_load_explicit((atomic_ullong *)from, memory_order_relaxed);
}

void http_metrics_count(struct http_metrics *m, int handler, const char *method, int status,
                        int64_t duration_ns, size_t request_bytes, size_t response_bytes)
{
    struct handler *h = &m->handler[handler];
    int k = 0, b = 0, f = 0, class = status / 100 - 1;
    while (k < N_METHODS - 1 && strcmp(method, methods[k]))
        k++;
    double s = (double)duration_ns * 1e-9;
    while (b < N_BUCKETS && s > buckets[b])
        b++;
    while (f < N_FINE && s > fine_buckets[f])
        f++;
    add(&h->requests[k][class < 0 ? 0 : class >= N_CLASSES ? N_CLASSES - 1 : class], 1);
    add(&h->took[k].bucket[b], 1);
    add(&h->took[k].ns, (uint64_t)duration_ns);
    add(&h->request_bytes, request_bytes);
    add(&h->response_bytes, response_bytes);
    add(&m->fine[f], 1);
    add(&m->fine_ns, (uint64_t)duration_ns);
}

static uint64_t handler_count(const struct handler *h)
{
    uint64_t n = 0;
    for (int k = 0; k < N_METHODS; k++)
        for (int c = 0; c < N_CLASSES; c++)
            n += get(&h->requests[k][c]);
    return n;
}

static void head(struct strbuf *out, const char *name, const char *type, const char *help)
{
    strbuf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void render_requests(const struct http_metrics *m, struct strbuf *out)
{
    head(out, "http_requests_total", "counter",
         "Total number of requests by method, status and handler.");
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < N_METHODS; k++)
            for (int c = 0; c < N_CLASSES; c++)
                if (get(&m->handler[i].requests[k][c]))
                    strbuf_addf(out,
                                "http_requests_total{handler=\"%s\",method=\"%s\",status=\"%dxx\"} "
                                "%llu.0\n",
                                m->handler[i].name, methods[k], c + 1,
                                get(&m->handler[i].requests[k][c]));
}

static void render_sizes(const struct http_metrics *m, struct strbuf *out, bool response)
{
    const char *name = response ? "http_response_size_bytes" : "http_request_size_bytes";
    head(out, name, "summary",
         response ? "Content length of outgoing responses by handler."
                  : "Content length of incoming requests by handler.");
    for (int i = 0; i < m->n; i++) {
        const struct handler *h = &m->handler[i];
        uint64_t n = handler_count(h);
        if (!n)
            continue;
        strbuf_addf(out, "%s_count{handler=\"%s\"} %llu.0\n", name, h->name, (unsigned long long)n);
        strbuf_addf(out, "%s_sum{handler=\"%s\"} %llu.0\n", name, h->name,
                    get(response ? &h->response_bytes : &h->request_bytes));
    }
}

static void render_durations(const struct http_metrics *m, struct strbuf *out)
{
    const char *name = "http_request_duration_seconds";
    head(out, name, "histogram", "Latency with only few buckets by handler.");
    for (int i = 0; i < m->n; i++)
        for (int k = 0; k < N_METHODS; k++) {
            const struct durations *d = &m->handler[i].took[k];
            uint64_t n = 0;
            for (int b = 0; b <= N_BUCKETS; b++)
                n += get(&d->bucket[b]);
            if (!n)
                continue;
            const char *h = m->handler[i].name;
            unsigned long long sum = 0;
            for (int b = 0; b < N_BUCKETS; b++)
                strbuf_addf(out, "%s_bucket{handler=\"%s\",method=\"%s\",le=\"%g\"} %llu.0\n", name,
                            h, methods[k], buckets[b], sum += get(&d->bucket[b]));
            strbuf_addf(out, "%s_bucket{handler=\"%s\",method=\"%s\",le=\"+Inf\"} %llu.0\n", name,
                        h, methods[k], (unsigned long long)n);
            strbuf_addf(out, "%s_count{handler=\"%s\",method=\"%s\"} %llu.0\n", name, h, methods[k],
                        (unsigned long long)n);
            strbuf_addf(out, "%s_sum{handler=\"%s\",method=\"%s\"} %.9g\n", name, h, methods[k],
                        (double)get(&d->ns) * 1e-9);
        }
}

static void render_fine(const struct http_metrics *m, struct strbuf *out)
{
    const char *name = "http_request_duration_highr_seconds";
    head(out, name, "histogram",
         "Latency with many buckets but no API specific labels. Made for more accurate percentile "
         "calculations.");
    unsigned long long sum = 0;
    for (int f = 0; f < N_FINE; f++)
        strbuf_addf(out, "%s_bucket{le=\"%g\"} %llu.0\n", name, fine_buckets[f],
                    sum += get(&m->fine[f]));
    sum += get(&m->fine[N_FINE]);
    strbuf_addf(out, "%s_bucket{le=\"+Inf\"} %llu.0\n%s_count %llu.0\n%s_sum %.9g\n", name, sum,
                name, sum, name, (double)get(&m->fine_ns) * 1e-9);
}

void http_metrics_count_parse(struct http_metrics *m, bool stream, bool called)
{
    add(&m->parsed[stream][called], 1);
}

static void render_parsed(const struct http_metrics *m, const char *model, struct strbuf *out)
{
    const char *name = "vllm:tool_call_parser_invocations_total";
    head(out, name, "counter", "Tool parser runs: one per choice, when streaming one per delta.");
    for (int stream = 0; stream < 2; stream++)
        for (int called = 0; called < 2; called++)
            strbuf_addf(out,
                        "%s{mode=\"%s\",model_name=\"%s\",outcome=\"%s\","
                        "request_type=\"chat_completions\"} %llu.0\n",
                        name, stream ? "streaming" : "non_streaming", model,
                        called ? "tool_call" : "no_tool_call", get(&m->parsed[stream][called]));
}

void http_metrics_render(const struct http_metrics *m, const char *model, struct strbuf *out)
{
    if (model)
        render_parsed(m, model, out);
    render_requests(m, out);
    render_sizes(m, out, false);
    render_sizes(m, out, true);
    render_fine(m, out);
    render_durations(m, out);
}
