/* bench policies: batching policies on one trace, on a simulated device or a real one.
 *
 * First all requests at once: what a policy can do at most. Then the trace's arrivals at several
 * rates, as shares of what the best one did: what its users wait for.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "plot.h"
#include "sim_setup.h"
#include "util.h"

#include "engine/internal.h"
#include "model/model.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_POLICIES = 4, N_RATES_MAX = 16 };

static const struct {
    const char *name;
    enum sl_policy policy;
} policies[N_POLICIES] = {{"static", SL_POLICY_STATIC},
                          {"request", SL_POLICY_REQUEST},
                          {"prefill-first", SL_POLICY_PREFILL_FIRST},
                          {"mixed", SL_POLICY_MIXED}};

/* On sim points are cheap; on a real device each takes as long as it says. */
static const double sim_shares[] = {0.02, 0.05, 0.1, 0.15, 0.2,  0.3, 0.4,
                                    0.5,  0.6,  0.7, 0.8,  0.85, 0.9, 0.95};
static const double real_shares[] = {0.25, 0.5, 0.9};

struct point {
    double rate, token_ms, ttft_p50_ms, ttft_p99_ms, itl_p99_ms;
};

struct row {
    const char *name;
    double requests_s, tokens_s, batch, kv_waste, kv_used;
    int n_points;
    struct point point[N_RATES_MAX];
};

/* A device with its scheduler's configuration: simulated, or an engine's without its thread. */
struct bed {
    struct sched_config cfg;
    struct sim_setup sim;
    struct sl_engine *engine; /* NULL on sim */
    char *what;
};

static bool open_real(struct bed *bed, const struct options *o, struct sl_err *err)
{
    struct sched *s = NULL;
    struct batch_limits limits;
    if (!o->engine.model)
        return SL_FAIL(err, SL_EINVAL, "a real device needs a MODEL") == SL_OK;
    if (engine_init(&bed->engine, &o->engine, err) || setup_open(bed->engine, err))
        return false;
    struct sl_engine *e = bed->engine;
    bed->cfg = e->sched_cfg;
    if (sched_create(&s, &bed->cfg, err))
        return false;
    sched_batch_limits(s, &limits);
    sched_destroy(&s);
    runner_set_host_kv(e->runner, bed->cfg.layout.n_host_blocks);
    if (runner_take_kv(e->runner, bed->cfg.layout.n_blocks, &limits, err))
        return false;
    bed->what = xformat("%s on %s", options_model_name(o), e->be->name);
    return true;
}

static bool open_bed(struct bed *bed, const struct options *o, struct sl_err *err)
{
    bool real = o->engine.device == SL_DEVICE_CPU || o->engine.device == SL_DEVICE_REF;
    if (real)
        return open_real(bed, o, err);
    if (!sim_setup_make(&bed->sim, o, err))
        return false;
    bed->cfg = bed->sim.sched;
    bed->what = xformat("%s on %s (roofline)", bed->sim.model, bed->sim.device);
    return true;
}

static bool run_once(struct replay_result *r, struct bed *bed, const struct replay_load *load,
                     enum sl_policy policy, struct sl_err *err)
{
    struct sched_config cfg = bed->cfg;
    struct backend *be = bed->engine ? bed->engine->be : NULL;
    cfg.policy = policy;
    if (!be && !sim_setup_backend(&be, &bed->sim, err))
        return false;
    bool ok = replay_run(r, load, &cfg, be, err);
    if (!bed->engine)
        be->ops->destroy(be);
    return ok;
}

static bool is_chosen(const struct options *o, const char *name)
{
    bool chosen = o->sim.n_policies == 0;
    for (int i = 0; i < o->sim.n_policies; i++)
        chosen = chosen || strcmp(o->sim.policies[i], name) == 0;
    return chosen;
}

static bool check_names(const struct options *o, struct sl_err *err)
{
    for (int i = 0; i < o->sim.n_policies; i++) {
        bool known = false;
        for (int p = 0; p < N_POLICIES; p++)
            known = known || strcmp(o->sim.policies[i], policies[p].name) == 0;
        if (!known)
            return SL_FAIL(err, SL_EINVAL,
                           "no policy '%s'; there are static, request, prefill-first and mixed",
                           o->sim.policies[i]) == SL_OK;
    }
    return true;
}

/* All at once, for each policy; returns the best requests/s, or a negative number. */
static double run_offline(struct row *rows, int *n_rows, struct bed *bed, const struct options *o,
                          const struct replay_load *load, struct replay_result *r,
                          struct sl_err *err)
{
    struct replay_load all = *load;
    double best = 0;
    all.rate_scale = INFINITY;
    for (int p = 0; p < N_POLICIES; p++) {
        if (!is_chosen(o, policies[p].name))
            continue;
        if (!run_once(r, bed, &all, policies[p].policy, err))
            return -1;
        struct row *row = &rows[(*n_rows)++];
        *row = (struct row){.name = policies[p].name,
                            .requests_s = (double)r->n_requests / r->duration_s,
                            .tokens_s = (double)r->tokens_out / r->duration_s,
                            .batch = r->batch_mean,
                            .kv_waste = replay_kv_waste(r),
                            .kv_used = r->kv_used_mean};
        best = fmax(best, row->requests_s);
        fprintf(stderr, "%-14s all at once: %.2f requests/s\n", row->name, row->requests_s);
    }
    return best;
}

static bool run_rates(struct row *rows, int n_rows, struct bed *bed, const struct replay_load *load,
                      double best, struct replay_result *r, struct sl_err *err)
{
    const double *shares = bed->engine ? real_shares : sim_shares;
    size_t n = bed->engine ? sizeof real_shares / sizeof *real_shares
                           : sizeof sim_shares / sizeof *sim_shares;
    double trace_rate = load->n / load->span_s;
    for (int i = 0; i < n_rows; i++)
        for (size_t k = 0; k < n; k++) {
            struct replay_load part = *load;
            enum sl_policy policy = SL_POLICY_MIXED;
            for (int p = 0; p < N_POLICIES; p++)
                if (strcmp(rows[i].name, policies[p].name) == 0)
                    policy = policies[p].policy;
            part.rate_scale = shares[k] * best / trace_rate;
            if (!run_once(r, bed, &part, policy, err))
                return false;
            rows[i].point[rows[i].n_points++] =
                (struct point){.rate = shares[k] * best,
                               .token_ms = histogram_mean(&r->per_token) / 1e6,
                               .ttft_p50_ms = histogram_percentile(&r->ttft, 50) / 1e6,
                               .ttft_p99_ms = histogram_percentile(&r->ttft, 99) / 1e6,
                               .itl_p99_ms = histogram_percentile(&r->itl, 99) / 1e6};
            fprintf(stderr, "%-14s at %.2f requests/s: %.2f ms a token\n", rows[i].name,
                    shares[k] * best, histogram_mean(&r->per_token) / 1e6);
        }
    return true;
}

/* The highest rate at which a token costs at most limit_ms, between points on a line. */
static double rate_within(const struct row *row, double limit_ms)
{
    double rate = 0;
    for (int i = 0; i < row->n_points; i++) {
        const struct point *p = &row->point[i], *before = i ? p - 1 : NULL;
        if (p->token_ms <= limit_ms) {
            rate = p->rate;
            continue;
        }
        if (before)
            rate += (p->rate - before->rate) * (limit_ms - before->token_ms) /
                    (p->token_ms - before->token_ms);
        break;
    }
    return rate;
}

/* The point whose latencies the table shows: about half of what the best can do. */
static const struct point *shown_point(const struct row *row, double best)
{
    const struct point *at = &row->point[0];
    for (int i = 0; i < row->n_points; i++)
        if (fabs(row->point[i].rate - best / 2) < fabs(at->rate - best / 2))
            at = &row->point[i];
    return at;
}

static double latency_limit(const struct row *rows, int n_rows)
{
    double least = INFINITY;
    for (int i = 0; i < n_rows; i++)
        least = fmin(least, rows[i].point[0].token_ms);
    return 3 * least;
}

static void print_table(const struct bed *bed, const struct replay_load *load,
                        const struct row *rows, int n_rows, double best)
{
    double limit = latency_limit(rows, n_rows);
    const struct point *shown = shown_point(&rows[0], best);
    printf("%s; %d requests of the trace, max_num_seqs %d, max_num_batched_tokens %d, "
           "max_model_len %d, KV %d blocks of %d\n\n",
           bed->what, load->n * load->replicate, bed->cfg.max_num_seqs,
           bed->cfg.max_num_batched_tokens, bed->cfg.max_model_len, bed->cfg.layout.n_blocks,
           bed->cfg.layout.block_size);
    printf("%-14s | %-52s | %-9s | at %.2f requests/s, milliseconds\n", "", "all requests at once",
           "requests/s", shown->rate);
    printf("%-14s | %10s %10s %8s %6s %6s %6s | %10s | %9s %9s %9s %9s\n", "policy", "requests/s",
           "tokens/s", "x", "batch", "KV use", "waste", "in limit*", "TTFT p50", "TTFT p99",
           "ITL p99", "ms/token");
    for (int i = 0; i < n_rows; i++) {
        const struct row *r = &rows[i];
        const struct point *p = shown_point(r, best);
        printf("%-14s | %10.2f %10.0f %7.2fx %6.1f %5.1f%% %5.1f%% | %10.2f | %9.1f %9.1f %9.1f "
               "%9.2f\n",
               r->name, r->requests_s, r->tokens_s, r->tokens_s / rows[0].tokens_s, r->batch,
               100 * r->kv_used, 100 * r->kv_waste, rate_within(r, limit), p->ttft_p50_ms,
               p->ttft_p99_ms, p->itl_p99_ms, p->token_ms);
    }
    printf("\n* the highest rate of arrivals at which an output token costs at most %.2f ms of the "
           "request's whole time: three times the least seen\n",
           limit);
}

static bool write_plot(const char *path, const struct bed *bed, const struct row *rows, int n_rows)
{
    struct plot *plot = xcalloc(1, sizeof *plot);
    plot->title = "What a token costs at each rate of arrivals";
    plot->subtitle = bed->what;
    plot->x_label = "requests/s";
    plot->y_label = "mean of request time / output tokens, ms";
    plot->log_y = true;
    plot->n_series = n_rows;
    for (int i = 0; i < n_rows; i++) {
        struct plot_series *s = &plot->series[i];
        s->name = rows[i].name;
        for (int k = 0; k < rows[i].n_points; k++) {
            s->x[s->n] = rows[i].point[k].rate;
            s->y[s->n++] = rows[i].point[k].token_ms;
        }
    }
    bool ok = plot_write(plot, path);
    free(plot);
    return ok;
}

static bool write_json(const char *path, const struct bed *bed, const struct row *rows, int n_rows)
{
    json_t *list = json_array();
    for (int i = 0; i < n_rows; i++) {
        json_t *points = json_array();
        for (int k = 0; k < rows[i].n_points; k++) {
            const struct point *p = &rows[i].point[k];
            json_array_append_new(points,
                                  json_pack("{s:f, s:f, s:f, s:f, s:f}", "request_rate", p->rate,
                                            "mean_normalized_latency_ms", p->token_ms,
                                            "median_ttft_ms", p->ttft_p50_ms, "p99_ttft_ms",
                                            p->ttft_p99_ms, "p99_itl_ms", p->itl_p99_ms));
        }
        json_array_append_new(
            list, json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:o}", "policy", rows[i].name,
                            "request_throughput", rows[i].requests_s, "output_throughput",
                            rows[i].tokens_s, "batch_mean", rows[i].batch, "kv_waste",
                            rows[i].kv_waste, "kv_used_mean", rows[i].kv_used, "rates", points));
    }
    json_t *all = json_pack("{s:s, s:o}", "what", bed->what, "policies", list);
    int failed = json_dump_file(all, path, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(all);
    return !failed;
}

static int report(const struct options *o, const struct bed *bed, const struct replay_load *load,
                  const struct row *rows, int n_rows, double best)
{
    print_table(bed, load, rows, n_rows, best);
    const char *svg = o->sim.output_svg, *json = o->workload.output_json;
    if (svg && !write_plot(svg, bed, rows, n_rows))
        return fail_with(EXIT_FAILED, "%s: %s", svg, strerror(errno));
    if (json && !write_json(json, bed, rows, n_rows))
        return fail_with(EXIT_FAILED, "%s: %s", json, strerror(errno));
    return EXIT_DONE;
}

int command_bench_policies(struct options *o)
{
    struct bed bed = {0};
    struct replay_load load = {0};
    struct row rows[N_POLICIES];
    struct sl_err err = {0};
    int n_rows = 0, code = EXIT_FAILED;
    struct replay_result *r = xcalloc(1, sizeof *r);
    bool ok = o->workload.trace || SL_FAIL(&err, SL_EINVAL, "--trace FILE.csv is needed") == SL_OK;
    ok = ok && check_names(o, &err) && open_bed(&bed, o, &err) &&
         sim_setup_load(&load, o, bed.cfg.max_model_len, &err);
    double best = ok ? run_offline(rows, &n_rows, &bed, o, &load, r, &err) : -1;
    if (best > 0 && run_rates(rows, n_rows, &bed, &load, best, r, &err))
        code = report(o, &bed, &load, rows, n_rows, best);
    else
        fail_with(EXIT_FAILED, "%s", err.msg);
    if (bed.engine)
        sl_engine_destroy(&bed.engine);
    replay_load_free(&load);
    free(bed.what);
    free(r);
    return code;
}
