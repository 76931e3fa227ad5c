/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_report.h"
#include "commands.h"
#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

enum metric { TTFT, TPOT, ITL, E2EL, N_METRICS };

static const struct {
    const char *name, *label, *heading;
} metric[N_METRICS] = {
    [TTFT] = {"ttft", "TTFT", "Time to First Token"},
    [TPOT] = {"tpot", "TPOT", "Time per Output Token (excl. 1st token)"},
    [ITL] = {"itl", "ITL", "Inter-token Latency"},
    [E2EL] = {"e2el", "E2EL", "End-to-end Latency"},
};

struct numbers {
    int completed, failed;
    long long input_tokens, output_tokens;
    double good; /* requests within every --goodput limit */
    double peak_tokens_per_s;
    int peak_concurrency;
    struct samples of[N_METRICS]; /* seconds */
};

/* ---- flags --------------------------------------------------------------------------------------
 */

static int find_metric(const char *name, size_t len)
{
    for (int m = 0; m < N_METRICS; m++)
        if (strlen(metric[m].name) == len && strncmp(metric[m].name, name, len) == 0)
            return m;
    return -1;
}

/* "ttft:100": which metric, and its limit in milliseconds. */
static bool parse_goodput(const char *text, int *which, double *limit_ms)
{
    char *end;
    size_t len = strcspn(text, ":");
    *which = find_metric(text, len);
    if (*which < 0 || *which == ITL || text[len] != ':')
        return false;
    *limit_ms = strtod(text + len + 1, &end);
    return end != text + len + 1 && !*end && *limit_ms >= 0;
}

static bool wants(const struct options *o, int m)
{
    const char *list = o->load.percentile_metrics ? o->load.percentile_metrics : "ttft,tpot,itl";
    for (const char *p = list; *p;) {
        size_t len = strcspn(p, ",");
        if (find_metric(p, len) == m)
            return true;
        p += len + (p[len] == ',');
    }
    return false;
}

bool bench_report_check(const struct options *o)
{
    int which;
    double limit;
    for (int i = 0; i < o->load.n_goodput; i++) {
        if (!parse_goodput(o->load.goodput[i], &which, &limit)) {
            fail_with(0, "--goodput takes ttft:MS, tpot:MS and e2el:MS, not \"%s\"",
                      o->load.goodput[i]);
            return false;
        }
    }
    for (const char *p = o->load.percentile_metrics; p && *p;) {
        size_t len = strcspn(p, ",");
        if (find_metric(p, len) < 0) {
            fail_with(0, "--percentile-metrics takes ttft, tpot, itl and e2el, not \"%.*s\"",
                      (int)len, p);
            return false;
        }
        p += len + (p[len] == ',');
    }
    for (const char *p = o->load.metric_percentiles; *p;) {
        char *end;
        double v = strtod(p, &end);
        if (end == p || (*end && *end != ',') || !(v >= 0 && v <= 100)) {
            fail_with(0, "--metric-percentiles takes numbers from 0 to 100 between commas");
            return false;
        }
        p = end + (*end == ',');
    }
    return true;
}

/* ---- numbers ------------------------------------------------------------------------------------
 */

static bool is_good(const struct options *o, const struct load_request *r, double tpot)
{
    for (int i = 0; i < o->load.n_goodput; i++) {
        int which;
        double limit_ms;
        parse_goodput(o->load.goodput[i], &which, &limit_ms);
        double value = which == TTFT ? r->ttft_s : which == TPOT ? tpot : r->latency_s;
        if (value * 1e3 > limit_ms)
            return false;
    }
    return true;
}

/* Tokens and requests in each second of the run; the fullest second of either. */
static void find_peaks(const struct load_run *run, struct numbers *n)
{
    size_t seconds = (size_t)run->elapsed_s + 2;
    int *tokens = xcalloc(seconds, sizeof *tokens), *open = xcalloc(seconds, sizeof *open);
    for (int i = 0; i < run->n; i++) {
        const struct load_request *r = &run->requests[i];
        if (!r->success)
            continue;
        for (size_t k = 0; k < r->chunk_at_s.n; k++)
            tokens[(size_t)r->chunk_at_s.v[k]]++;
        for (size_t s = (size_t)r->start_s; s <= (size_t)(r->start_s + r->latency_s); s++)
            open[s]++;
    }
    for (size_t s = 0; s < seconds; s++) {
        n->peak_tokens_per_s = fmax(n->peak_tokens_per_s, tokens[s]);
        n->peak_concurrency = open[s] > n->peak_concurrency ? open[s] : n->peak_concurrency;
    }
    free(tokens);
    free(open);
}

static void count(const struct bench_report *r, struct numbers *n)
{
    for (int i = 0; i < r->run->n; i++) {
        const struct load_request *q = &r->run->requests[i];
        if (!q->success) {
            n->failed++;
            continue;
        }
        double tpot = 0;
        n->completed++;
        n->input_tokens += q->n_prompt_tokens;
        n->output_tokens += q->n_output_tokens;
        samples_add(&n->of[TTFT], q->ttft_s);
        samples_add(&n->of[E2EL], q->latency_s);
        if (q->n_output_tokens > 1) {
            tpot = (q->latency_s - q->ttft_s) / (q->n_output_tokens - 1);
            samples_add(&n->of[TPOT], tpot);
        }
        for (size_t k = 0; k < q->itl_s.n; k++)
            samples_add(&n->of[ITL], q->itl_s.v[k]);
        n->good += is_good(r->o, q, tpot);
    }
    find_peaks(r->run, n);
}

/* ---- print and save
 * ------------------------------------------------------------------------------ */

static void rule(const char *text, char fill)
{
    int room = 50 - (int)strlen(text), left = room / 2;
    for (int i = 0; i < left; i++)
        putchar(fill);
    fputs(text, stdout);
    for (int i = left; i < room; i++)
        putchar(fill);
    putchar('\n');
}

static void row(const char *name, double value)
{
    printf("%-40s %-10.2f\n", name, value);
}

static void row_int(const char *name, long long value)
{
    printf("%-40s %-10lld\n", name, value);
}

static void one_metric(int m, const char *percentiles, struct samples *s, json_t *out)
{
    char name[64];
    const struct {
        const char *word, *key;
        double value;
    } rows[] = {{"Mean", "mean", samples_mean(s)},
                {"Median", "median", samples_percentile(s, 50)},
                {NULL, "std", samples_std(s)}};
    rule(metric[m].heading, '-');
    for (int i = 0; i < 3; i++) {
        if (rows[i].word) {
            snprintf(name, sizeof name, "%s %s (ms):", rows[i].word, metric[m].label);
            row(name, rows[i].value * 1e3);
        }
        snprintf(name, sizeof name, "%s_%s_ms", rows[i].key, metric[m].name);
        json_object_set_new(out, name, json_real(rows[i].value * 1e3));
    }
    for (const char *p = percentiles; *p;) {
        char *end;
        double percent = strtod(p, &end), value = samples_percentile(s, percent) * 1e3;
        snprintf(name, sizeof name, "P%g %s (ms):", percent, metric[m].label);
        row(name, value);
        snprintf(name, sizeof name, "p%g_%s_ms", percent, metric[m].name);
        json_object_set_new(out, name, json_real(value));
        p = end + (*end == ',');
    }
}

static void print_head(const struct bench_report *r, const struct numbers *n)
{
    double t = r->run->elapsed_s;
    const struct load_options *l = &r->o->load;
    rule(" Serving Benchmark Result ", '=');
    row_int("Successful requests:", n->completed);
    row_int("Failed requests:", n->failed);
    if (l->max_concurrency)
        row_int("Maximum request concurrency:", l->max_concurrency);
    if (!isinf(l->request_rate))
        row("Request rate configured (RPS):", l->request_rate);
    row("Benchmark duration (s):", t);
    row_int("Total input tokens:", n->input_tokens);
    row_int("Total generated tokens:", n->output_tokens);
    row("Request throughput (req/s):", n->completed / t);
    if (l->n_goodput)
        row("Request goodput (req/s):", n->good / t);
    row("Output token throughput (tok/s):", (double)n->output_tokens / t);
    row("Peak output token throughput (tok/s):", n->peak_tokens_per_s);
    row("Peak concurrent requests:", n->peak_concurrency);
    row("Total token throughput (tok/s):", (double)(n->input_tokens + n->output_tokens) / t);
}

static void put_head(const struct bench_report *r, const struct numbers *n, const char *date,
                     json_t *out)
{
    const struct load_options *l = &r->o->load;
    double t = r->run->elapsed_s;
    json_object_set_new(out, "date", json_string(date));
    json_object_set_new(out, "endpoint_type", json_string(l->backend));
    json_object_set_new(out, "backend", json_string(l->backend));
    json_object_set_new(out, "label", l->label ? json_string(l->label) : json_null());
    json_object_set_new(out, "model_id", json_string(r->model));
    json_object_set_new(out, "tokenizer_id", json_string(r->tokenizer));
    json_object_set_new(out, "num_prompts", json_integer(r->run->n));
    for (int i = 0; i < l->n_metadata; i++) {
        char *key = xstrdup(l->metadata[i]), *equals = strchr(key, '=');
        if (equals) {
            *equals = '\0';
            json_object_set_new(out, key, json_string(equals + 1));
        }
        free(key);
    }
    json_object_set_new(out, "request_rate",
                        isinf(l->request_rate) ? json_string("inf") : json_real(l->request_rate));
    json_object_set_new(out, "burstiness", json_real(l->burstiness));
    json_object_set_new(out, "max_concurrency",
                        l->max_concurrency ? json_integer(l->max_concurrency) : json_null());
    if (l->ramp_up_strategy) {
        json_object_set_new(out, "ramp_up_strategy", json_string(l->ramp_up_strategy));
        json_object_set_new(out, "ramp_up_start_rps", json_real(l->ramp_up_start_rps));
        json_object_set_new(out, "ramp_up_end_rps", json_real(l->ramp_up_end_rps));
    }
    json_object_set_new(out, "duration", json_real(t));
    json_object_set_new(out, "completed", json_integer(n->completed));
    json_object_set_new(out, "failed", json_integer(n->failed));
    json_object_set_new(out, "total_input_tokens", json_integer(n->input_tokens));
    json_object_set_new(out, "total_output_tokens", json_integer(n->output_tokens));
    json_object_set_new(out, "request_throughput", json_real(n->completed / t));
    json_object_set_new(out, "request_goodput",
                        l->n_goodput ? json_real(n->good / t) : json_null());
    json_object_set_new(out, "output_throughput", json_real((double)n->output_tokens / t));
    json_object_set_new(out, "total_token_throughput",
                        json_real((double)(n->input_tokens + n->output_tokens) / t));
    json_object_set_new(out, "max_output_tokens_per_s", json_real(n->peak_tokens_per_s));
    json_object_set_new(out, "max_concurrent_requests", json_integer(n->peak_concurrency));
    json_object_set_new(out, "rtfx", json_real(0.0));
}

static void put_detail(const struct load_run *run, json_t *out)
{
    static const char *const names[] = {"input_lens",  "output_lens",     "ttfts", "itls",
                                        "start_times", "generated_texts", "errors"};
    json_t *list[7];
    for (int k = 0; k < 7; k++)
        json_object_set_new(out, names[k], list[k] = json_array());
    for (int i = 0; i < run->n; i++) {
        const struct load_request *r = &run->requests[i];
        json_t *itls = json_array();
        for (size_t k = 0; k < r->itl_s.n; k++)
            json_array_append_new(itls, json_real(r->itl_s.v[k]));
        json_array_append_new(list[0], json_integer(r->n_prompt_tokens));
        json_array_append_new(list[1], json_integer(r->success ? r->n_output_tokens : 0));
        json_array_append_new(list[2], json_real(r->ttft_s));
        json_array_append_new(list[3], itls);
        json_array_append_new(list[4], json_real(r->start_s));
        json_array_append_new(list[5], json_string(r->text ? r->text : ""));
        json_array_append_new(list[6], json_string(r->error && !r->success ? r->error : ""));
    }
}

static void report_probes(const struct load_run *run, json_t *out)
{
    struct samples s = {0};
    int failed = 0;
    for (int i = 0; i < run->n_probes; i++) {
        if (run->probes[i].success)
            samples_add(&s, run->probes[i].latency_s * 1e3);
        else
            failed += run->probes[i].error != NULL;
    }
    rule("Probes of one token", '-');
    row_int("Probes completed:", (long long)s.n);
    row_int("Probes failed:", failed);
    row("Median probe E2EL (ms):", samples_percentile(&s, 50));
    row("P99 probe E2EL (ms):", samples_percentile(&s, 99));
    json_object_set_new(out, "probe_completed", json_integer((json_int_t)s.n));
    json_object_set_new(out, "probe_failed", json_integer(failed));
    json_object_set_new(out, "probe_median_e2el_ms", json_real(samples_percentile(&s, 50)));
    json_object_set_new(out, "probe_p99_e2el_ms", json_real(samples_percentile(&s, 99)));
    json_object_set_new(out, "probe_max_e2el_ms", json_real(samples_percentile(&s, 100)));
    samples_free(&s);
}

static void report_drafts(const struct bench_drafts *d, json_t *out)
{
    rule("Speculative Decoding", '-');
    row("Acceptance rate (%):", bench_drafts_rate(d));
    row("Acceptance length:", bench_drafts_length(d));
    row_int("Drafts:", (long long)d->drafts);
    row_int("Draft tokens:", (long long)d->tokens);
    row_int("Accepted tokens:", (long long)d->accepted);
    printf("Per-position acceptance (%%):\n");
    for (int i = 0; i < d->n_places; i++) {
        char name[24];
        snprintf(name, sizeof name, "  Position %d:", i);
        row(name, 100 * bench_drafts_at(d, i));
    }
    bench_drafts_put(d, out);
}

static char *file_name(const struct bench_report *r, const char *date)
{
    const struct load_options *l = &r->o->load;
    const char *slash = strrchr(r->model, '/');
    char concurrency[32] = "", rate[32];
    snprintf(rate, sizeof rate, isinf(l->request_rate) ? "inf" : "%g", l->request_rate);
    if (l->max_concurrency)
        snprintf(concurrency, sizeof concurrency, "-concurrency%d", l->max_concurrency);
    char *name = l->result_filename
                     ? xstrdup(l->result_filename)
                     : xformat("%s-%sqps%s-%s-%s.json", l->label ? l->label : l->backend, rate,
                               concurrency, slash ? slash + 1 : r->model, date);
    char *path = l->result_dir ? xformat("%s/%s", l->result_dir, name) : xstrdup(name);
    free(name);
    return path;
}

static int save(const struct bench_report *r, const char *date, const json_t *out)
{
    const struct load_options *l = &r->o->load;
    char *path = file_name(r, date);
    if (l->result_dir)
        mkdir(l->result_dir, 0777);
    FILE *f = fopen(path, l->append_result ? "a" : "w");
    bool ok = f && (!l->append_result || ftell(f) == 0 || fputc('\n', f) != EOF) &&
              json_dumpf(out, f, 0) == 0;
    ok = f && fclose(f) == 0 && ok;
    int code = ok ? EXIT_DONE : fail_with(EXIT_FAILED, "%s: cannot write", path);
    free(path);
    return code;
}

static void tell_first_failure(const struct load_run *run)
{
    for (int i = 0; i < run->n; i++) {
        if (!run->requests[i].success && run->requests[i].error) {
            fail_with(0, "request %d: %s", i, run->requests[i].error);
            return;
        }
    }
}

int bench_report(const struct bench_report *r)
{
    struct numbers n = {0};
    char date[32];
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(date, sizeof date, "%Y%m%d-%H%M%S", &tm);
    count(r, &n);
    json_t *out = json_object();
    put_head(r, &n, date, out);
    print_head(r, &n);
    for (int m = 0; m < N_METRICS; m++)
        if (wants(r->o, m))
            one_metric(m, r->o->load.metric_percentiles, &n.of[m], out);
    if (r->drafts.n_places)
        report_drafts(&r->drafts, out);
    if (r->run->n_probes)
        report_probes(r->run, out);
    rule("", '=');
    if (n.failed)
        tell_first_failure(r->run);
    if (r->o->load.save_detailed)
        put_detail(r->run, out);
    int code = n.completed ? EXIT_DONE : EXIT_FAILED;
    if (r->o->load.save_result || r->o->load.append_result || r->o->load.save_detailed)
        code = save(r, date, out) == EXIT_DONE ? code : EXIT_FAILED;
    json_decref(out);
    for (int m = 0; m < N_METRICS; m++)
        samples_free(&n.of[m]);
    return code;
}
