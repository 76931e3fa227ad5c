/* bench throughput, latency, startup: the engine alone, no HTTP. Meanings and JSON names are
 * vLLM's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "bench_drafts.h"
#include "bench_stats.h"
#include "commands.h"
#include "offline.h"
#include "progress.h"
#include "sampling_json.h"
#include "util.h"
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

static void stop_on_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
}

/* Takes `result`. */
static int write_json(const struct options *o, json_t *result)
{
    const char *path = o->workload.output_json;
    int code = EXIT_DONE;
    if (path && json_dump_file(result, path, JSON_INDENT(4)) != 0)
        code = fail_with(EXIT_FAILED, "%s: cannot write", path);
    json_decref(result);
    return code;
}

/* Lengths are what the benchmark says, so answers never end early. */
static void set_params(struct offline_job *job, const struct options *o, int output_len)
{
    sl_sampling_params_init(&job->params);
    job->params.n = o->sampling.n;
    job->params.use_beam_search = o->sampling.use_beam_search;
    job->params.temperature = isnan(o->sampling.temperature) ? 1 : o->sampling.temperature;
    job->params.top_p = 1;
    job->params.ignore_eos = true;
    job->params.max_tokens = output_len;
    job->params.detokenize = !o->workload.disable_detokenize;
}

/* ---- throughput -------------------------------------------------------------------------------
 */

static void on_tick(void *ctx, const struct offline_stats *s)
{
    progress_show(ctx, s->n_done, s->n_total, s->elapsed_s, s->output_tokens);
}

static struct offline_job *make_jobs(const struct workload *w, const struct options *o, int n)
{
    struct offline_job *jobs = xcalloc((size_t)n, sizeof *jobs);
    for (int i = 0; i < n; i++) {
        const struct work_item *item = &w->items[i % w->n];
        jobs[i].tokens = item->tokens;
        jobs[i].n_tokens = item->n_tokens;
        jobs[i].arrival_s = item->arrival_s;
        set_params(&jobs[i], o, item->output_len);
    }
    return jobs;
}

static bool run_jobs(struct sl_engine *engine, struct offline_job *jobs, int n,
                     const struct offline_options *opts, struct offline_stats *stats)
{
    offline_run(engine, jobs, n, opts, stats);
    for (int i = 0; i < n && stats->n_failed; i++) {
        if (jobs[i].err.code) {
            fail_with(0, "request %d: %s", i, jobs[i].err.msg);
            break;
        }
    }
    for (int i = 0; i < n; i++)
        offline_job_fini(&jobs[i]);
    return !interrupted && stats->n_failed < n;
}

static void print_request_times(const struct offline_job *jobs, int n)
{
    struct samples ttft = {0}, e2e = {0};
    for (int i = 0; i < n; i++) {
        if (jobs[i].err.code || jobs[i].first_token_s < 0)
            continue;
        samples_add(&ttft, (jobs[i].first_token_s - jobs[i].arrival_s) * 1e3);
        samples_add(&e2e, (jobs[i].end_s - jobs[i].arrival_s) * 1e3);
    }
    printf("Time to first token: median %.1f ms, p99 %.1f ms; to the last: median %.1f ms, "
           "p99 %.1f ms\n",
           samples_percentile(&ttft, 50), samples_percentile(&ttft, 99),
           samples_percentile(&e2e, 50), samples_percentile(&e2e, 99));
    samples_free(&ttft);
    samples_free(&e2e);
}

/* What speculation came to, warm-up included. */
static void report_drafts(const struct sl_engine *engine, json_t *result)
{
    struct bench_drafts d;
    bench_drafts_of(&d, engine);
    if (d.n_places == 0)
        return;
    printf("Speculation: %.0f of %.0f draft tokens accepted (%.1f%%), mean acceptance length "
           "%.2f in %.0f drafts\n",
           d.accepted, d.tokens, bench_drafts_rate(&d), bench_drafts_length(&d), d.drafts);
    bench_drafts_put(&d, result);
}

static int report_throughput(const struct options *o, const struct sl_engine *engine,
                             const struct offline_stats *s, const struct offline_job *jobs, int n,
                             bool timed)
{
    double t = s->elapsed_s;
    long long total = s->prompt_tokens + s->output_tokens;
    int done = s->n_done - s->n_failed;
    printf("Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n", done / t,
           (double)total / t, (double)s->output_tokens / t);
    printf("Total num prompt tokens:  %lld\n", s->prompt_tokens);
    printf("Total num output tokens:  %lld\n", s->output_tokens);
    if (timed)
        print_request_times(jobs, n);
    json_t *result = json_pack("{s:f, s:i, s:I, s:f, s:f, s:f}", "elapsed_time", t, "num_requests",
                               done, "total_num_tokens", (json_int_t)total, "requests_per_second",
                               done / t, "tokens_per_second", (double)total / t,
                               "output_tokens_per_second", (double)s->output_tokens / t);
    report_drafts(engine, result);
    return write_json(o, result);
}

static int run_throughput(const struct options *o, struct sl_engine *engine)
{
    struct sl_engine_info info;
    struct workload w;
    struct sl_err err = {0};
    struct progress bar;
    struct offline_stats stats;
    sl_engine_info(engine, &info);
    if (!workload_make(&w, o, sl_engine_text(engine), info.vocab_size, info.max_model_len, &err)) {
        workload_free(&w);
        return fail_with(EXIT_FAILED, "%s", err.msg);
    }
    struct offline_options opts = {.tick = on_tick, .ctx = &bar, .stop = &interrupted};
    progress_begin(&bar, "running", !o->no_progress);
    bool ok = true;
    if (o->workload.num_warmups > 0) {
        struct offline_job *warm = make_jobs(&w, o, o->workload.num_warmups);
        for (int i = 0; i < o->workload.num_warmups; i++) {
            warm[i].cache_salt = "warm-up"; /* no prefix hits for the measured run */
            warm[i].arrival_s = 0;
        }
        ok = run_jobs(engine, warm, o->workload.num_warmups, &opts, &stats);
        free(warm);
    }
    struct offline_job *jobs = make_jobs(&w, o, w.n);
    ok = ok && run_jobs(engine, jobs, w.n, &opts, &stats);
    progress_end(&bar);
    int code = ok ? report_throughput(o, engine, &stats, jobs, w.n, w.has_arrivals)
                  : fail_with(interrupted ? EXIT_INTERRUPTED : EXIT_FAILED, "no result");
    free(jobs);
    workload_free(&w);
    return code;
}

int command_bench_throughput(struct options *o)
{
    struct sl_engine *engine = NULL;
    struct sl_err err = {0};
    stop_on_interrupt();
    if (sl_engine_create(&engine, &o->engine, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    int code = run_throughput(o, engine);
    sl_engine_destroy(&engine);
    return code;
}

/* ---- latency ----------------------------------------------------------------------------------
 */

static const int percentiles[] = {10, 25, 50, 75, 90, 99};
enum { N_PERCENTILES = sizeof percentiles / sizeof *percentiles };

static json_t *percentiles_json(struct samples *s)
{
    json_t *out = json_object();
    for (int i = 0; i < N_PERCENTILES; i++) {
        char name[8];
        snprintf(name, sizeof name, "%d", percentiles[i]);
        json_object_set_new(out, name, json_real(samples_percentile(s, percentiles[i])));
    }
    return out;
}

static json_t *list_json(const struct samples *s)
{
    json_t *out = json_array();
    for (size_t i = 0; i < s->n; i++)
        json_array_append_new(out, json_real(s->v[i]));
    return out;
}

static int report_latency(const struct options *o, const struct sl_engine *engine,
                          struct samples *s)
{
    json_t *in_order = list_json(s); /* percentiles sort */
    printf("Avg latency: %.6f seconds\n", samples_mean(s));
    for (int i = 0; i < N_PERCENTILES; i++)
        printf("%d%% percentile latency: %.6f seconds\n", percentiles[i],
               samples_percentile(s, percentiles[i]));
    json_t *result = json_pack("{s:f, s:o, s:o}", "avg_latency", samples_mean(s), "latencies",
                               in_order, "percentiles", percentiles_json(s));
    report_drafts(engine, result);
    return write_json(o, result);
}

/* One batch, all of it at once; prompts differ from each other but not between iterations. */
static bool one_batch(struct sl_engine *engine, const struct workload *w, const struct options *o,
                      double *seconds)
{
    struct offline_options opts = {.stop = &interrupted};
    struct offline_stats stats;
    struct offline_job *jobs = make_jobs(w, o, w->n);
    bool ok = run_jobs(engine, jobs, w->n, &opts, &stats) && stats.n_failed == 0;
    *seconds = stats.elapsed_s;
    free(jobs);
    return ok;
}

static int run_latency(struct options *o, struct sl_engine *engine)
{
    const struct iteration_options *it = &o->iterations;
    struct sl_engine_info info;
    struct workload w;
    struct sl_err err = {0};
    struct samples s = {0};
    int warmups = it->num_iters_warmup < 0 ? 10 : it->num_iters_warmup;
    sl_engine_info(engine, &info);
    o->workload.input_len = o->workload.input_len < 0 ? 32 : o->workload.input_len;
    o->workload.output_len = o->workload.output_len < 0 ? 128 : o->workload.output_len;
    o->workload.num_prompts = it->batch_size;
    if (!workload_make(&w, o, sl_engine_text(engine), info.vocab_size, info.max_model_len, &err)) {
        workload_free(&w);
        return fail_with(EXIT_FAILED, "%s", err.msg);
    }
    bool ok = true;
    for (int i = 0; ok && i < warmups + it->num_iters; i++) {
        double seconds;
        ok = one_batch(engine, &w, o, &seconds);
        if (ok && i >= warmups)
            samples_add(&s, seconds);
    }
    int code = ok && s.n ? report_latency(o, engine, &s)
                         : fail_with(interrupted ? EXIT_INTERRUPTED : EXIT_FAILED, "no result");
    samples_free(&s);
    workload_free(&w);
    return code;
}

int command_bench_latency(struct options *o)
{
    struct sl_engine *engine = NULL;
    struct sl_err err = {0};
    if (o->iterations.batch_size < 1 || o->iterations.num_iters < 1)
        return fail_with(EXIT_USAGE, "--batch-size and --num-iters must be at least 1");
    stop_on_interrupt();
    if (!flags_is_set(&o->flags, "enable-prefix-caching"))
        o->engine.enable_prefix_caching = false; /* each iteration computes its prompts */
    if (sl_engine_create(&engine, &o->engine, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    int code = run_latency(o, engine);
    sl_engine_destroy(&engine);
    return code;
}

/* ---- startup ----------------------------------------------------------------------------------
 */

/* Asks the system to forget the files' pages, so that a start reads them from the disk. */
static void drop_pages(const char *folder)
{
    static const char *const names[] = {"model.safetensors", "tokenizer.json", "config.json",
                                        "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = xformat("%s/%s", folder, names[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            close(fd);
        }
        free(path);
    }
}

static bool one_start(const struct options *o, bool cold, double *seconds, struct sl_err *err)
{
    struct sl_engine *engine = NULL;
    if (cold)
        drop_pages(o->engine.model);
    double start = bench_now();
    if (sl_engine_create(&engine, &o->engine, err) != SL_OK)
        return false;
    *seconds = bench_now() - start;
    sl_engine_destroy(&engine);
    return true;
}

static bool measure_starts(const struct options *o, bool cold, int warmups, int n,
                           struct samples *s, struct sl_err *err)
{
    for (int i = 0; i < warmups + n; i++) {
        double seconds;
        if (!one_start(o, cold, &seconds, err))
            return false;
        if (i >= warmups)
            samples_add(s, seconds);
    }
    return true;
}

static void put_times(json_t *result, const char *key, struct samples *s)
{
    char *avg = xformat("avg_%s_time", key), *times = xformat("%s_times", key);
    char *percent = xformat("%s_percentiles", key);
    json_object_set_new(result, avg, json_real(samples_mean(s)));
    json_object_set_new(result, times, list_json(s));
    json_object_set_new(result, percent, percentiles_json(s));
    free(avg);
    free(times);
    free(percent);
}

static void print_times(const char *name, struct samples *s)
{
    printf("%s: avg %.4f s, median %.4f s, p99 %.4f s\n", name, samples_mean(s),
           samples_percentile(s, 50), samples_percentile(s, 99));
}

int command_bench_startup(struct options *o)
{
    const struct iteration_options *it = &o->iterations;
    struct samples cold = {0}, warm = {0}, none = {0};
    struct sl_err err = {0};
    int warmups = it->num_iters_warmup < 0 ? 1 : it->num_iters_warmup;
    if (it->num_iters_cold < 1 || it->num_iters_warm < 1)
        return fail_with(EXIT_USAGE, "--num-iters-cold and --num-iters-warm must be at least 1");
    if (!measure_starts(o, true, 0, it->num_iters_cold, &cold, &err) ||
        !measure_starts(o, false, warmups, it->num_iters_warm, &warm, &err))
        return fail_with(EXIT_FAILED, "%s", err.msg);
    for (size_t i = 0; i < cold.n; i++)
        samples_add(&none, 0); /* nothing is compiled at a start; the fields are vLLM's */
    json_t *result = json_object();
    put_times(result, "cold_startup", &cold);
    put_times(result, "warm_startup", &warm);
    put_times(result, "cold_compilation", &none);
    put_times(result, "warm_compilation", &none);
    put_times(result, "cold_encoder_compilation", &none);
    put_times(result, "warm_encoder_compilation", &none);
    print_times("Cold startup", &cold);
    print_times("Warm startup", &warm);
    samples_free(&cold);
    samples_free(&warm);
    samples_free(&none);
    return write_json(o, result);
}
