/* bench sim: the real scheduler on a simulated device, in virtual time.
 *
 * What it says about a machine is a bound (a roofline); what it says about scheduling, memory and
 * the host's own speed is measured.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "sim_setup.h"
#include "util.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

static const char *policy_name(enum sl_policy p)
{
    static const char *const names[] = {[SL_POLICY_MIXED] = "mixed",
                                        [SL_POLICY_PREFILL_FIRST] = "prefill-first",
                                        [SL_POLICY_STATIC] = "static",
                                        [SL_POLICY_REQUEST] = "request"};
    return names[p];
}

static void print_latency(const char *name, const struct histogram *h)
{
    printf("%-28s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, histogram_mean(h) / 1e6,
           histogram_percentile(h, 50) / 1e6, histogram_percentile(h, 90) / 1e6,
           histogram_percentile(h, 99) / 1e6, (double)h->max / 1e6);
}

static void print_head(const struct sim_setup *s, const struct replay_load *l)
{
    const struct sched_config *c = &s->sched;
    printf("%s on %s (roofline), policy %s, depth %d\n", s->model, s->device,
           policy_name(c->policy), c->depth);
    printf("max_num_seqs %d, max_num_batched_tokens %d, max_model_len %d, KV %d blocks of %d = "
           "%lld tokens\n",
           c->max_num_seqs, c->max_num_batched_tokens, c->max_model_len, c->layout.n_blocks,
           c->layout.block_size, (long long)c->layout.n_blocks * c->layout.block_size);
    if (l->n_left_out)
        printf("left out: %d requests longer than max_model_len\n", l->n_left_out);
    fflush(stdout);
}

static void print_result(const struct replay_result *r)
{
    double steps = r->times.steps ? (double)r->times.steps : 1;
    double out = (double)r->tokens_out, all = out + (double)r->tokens_in;
    printf("\n%ld requests, %llu input and %llu output tokens\n", r->n_requests,
           (unsigned long long)r->tokens_in, (unsigned long long)r->tokens_out);
    printf("virtual time   %12.1f s   %10.2f requests/s %12.1f output tokens/s %12.1f tokens/s\n",
           r->duration_s, (double)r->n_requests / r->duration_s, out / r->duration_s,
           all / r->duration_s);
    printf("this machine   %12.1f s   %10.0f requests/s %12.0f output tokens/s %12.0f tokens/s\n",
           r->wall_s, (double)r->n_requests / r->wall_s, out / r->wall_s, all / r->wall_s);
    printf("\n%-28s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "p50", "p90", "p99", "max");
    print_latency("time to first token", &r->ttft);
    print_latency("inter-token latency", &r->itl);
    print_latency("end to end", &r->e2e);
    print_latency("end to end / output token", &r->per_token);
    printf(
        "\nKV cache: %.1f %% used on average, %.1f %% at the peak; %.2f %% of what was allocated "
        "was not computed\n",
        100 * r->kv_used_mean, 100 * r->kv_used_peak, 100 * replay_kv_waste(r));
    printf("prefix cache: %llu of %llu prompt tokens; preemptions: %llu\n",
           (unsigned long long)r->sched.prefix_hits, (unsigned long long)r->sched.prefix_queries,
           (unsigned long long)r->sched.n_preemptions);
    printf("steps: %llu of %.1f sequences; host time a step: plan %.2f us, update %.2f us (with "
           "the collecting of latencies)\n",
           (unsigned long long)r->times.steps, r->batch_mean,
           (double)r->times.plan_ns / steps / 1e3, (double)r->times.update_ns / steps / 1e3);
}

static void put_latency(json_t *o, const char *name, const struct histogram *h)
{
    const struct {
        const char *prefix;
        double v;
    } fields[] = {{"mean", histogram_mean(h)},
                  {"median", histogram_percentile(h, 50)},
                  {"p90", histogram_percentile(h, 90)},
                  {"p99", histogram_percentile(h, 99)},
                  {"max", (double)h->max}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char *key = xformat("%s_%s_ms", fields[i].prefix, name);
        json_object_set_new(o, key, json_real(fields[i].v / 1e6));
        free(key);
    }
}

/* Field names as bench serve's where they mean the same. */
static json_t *to_json(const struct sim_setup *s, const struct replay_result *r)
{
    double steps = r->times.steps ? (double)r->times.steps : 1;
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:I, s:f, s:I, s:I, s:f, s:f, s:f}", "model",
                          s->model, "device", s->device, "policy", policy_name(s->sched.policy),
                          "depth", s->sched.depth, "completed", (json_int_t)r->n_requests,
                          "duration", r->duration_s, "total_input_tokens", (json_int_t)r->tokens_in,
                          "total_output_tokens", (json_int_t)r->tokens_out, "request_throughput",
                          (double)r->n_requests / r->duration_s, "output_throughput",
                          (double)r->tokens_out / r->duration_s, "total_token_throughput",
                          (double)(r->tokens_in + r->tokens_out) / r->duration_s);
    put_latency(o, "ttft", &r->ttft);
    put_latency(o, "itl", &r->itl);
    put_latency(o, "e2el", &r->e2e);
    put_latency(o, "normalized_latency", &r->per_token);
    json_t *more = json_pack(
        "{s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "kv_used_mean",
        r->kv_used_mean, "kv_used_peak", r->kv_used_peak, "kv_waste", replay_kv_waste(r),
        "preemptions", (json_int_t)r->sched.n_preemptions, "prefix_cache_queries",
        (json_int_t)r->sched.prefix_queries, "prefix_cache_hits", (json_int_t)r->sched.prefix_hits,
        "steps", (json_int_t)r->times.steps, "batch_mean", r->batch_mean, "wall_s", r->wall_s,
        "wall_requests_per_s", (double)r->n_requests / r->wall_s, "wall_output_tokens_per_s",
        (double)r->tokens_out / r->wall_s, "host_plan_us", (double)r->times.plan_ns / steps / 1e3,
        "host_update_us", (double)r->times.update_ns / steps / 1e3);
    json_object_update(o, more);
    json_decref(more);
    return o;
}

static int write_json(const char *path, json_t *o)
{
    int failed = json_dump_file(o, path, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    return failed ? fail_with(EXIT_FAILED, "%s: %s", path, strerror(errno)) : EXIT_DONE;
}

int command_bench_sim(struct options *o)
{
    struct sim_setup s;
    struct replay_load load = {0};
    struct backend *be = NULL;
    struct sl_err err = {0};
    if (!sim_setup_make(&s, o, &err) || !sim_setup_load(&load, o, s.sched.max_model_len, &err) ||
        !sim_setup_backend(&be, &s, &err)) {
        replay_load_free(&load);
        return fail_with(EXIT_FAILED, "%s", err.msg);
    }
    struct replay_result *r = xcalloc(1, sizeof *r);
    int code = EXIT_DONE;
    print_head(&s, &load);
    if (replay_run(r, &load, &s.sched, be, &err)) {
        print_result(r);
        if (o->workload.output_json)
            code = write_json(o->workload.output_json, to_json(&s, r));
    } else {
        code = fail_with(EXIT_FAILED, "%s", err.msg);
    }
    be->ops->destroy(be);
    replay_load_free(&load);
    free(r);
    return code;
}
