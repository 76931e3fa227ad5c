/* bench serve: load a running server and tell what its clients see. Names, definitions and the
 * printed block are vLLM's, so the same scripts read the results.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "bench_report.h"
#include "commands.h"
#include "hub_setup.h"
#include "loadgen.h"
#include "progress.h"
#include "util.h"
#include "workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

struct bench {
    const struct options *o;
    struct load_target target;
    char *model;     /* as requests name it */
    char *model_dir; /* a local folder, or NULL */
    struct sl_text *text;
    bool chat;
    struct workload w;
    struct load_request *requests, *probes;
    int n_probes;
    struct progress bar;
};

/* ---- who is asked, and in which words ----------------------------------------------------------
 */

static bool set_target(struct bench *b)
{
    const struct load_options *l = &b->o->load;
    char *prefix = NULL;
    b->chat = strcmp(l->backend, "openai-chat") == 0;
    const char *endpoint = l->endpoint ? l->endpoint
                           : b->chat   ? "/v1/chat/completions"
                                       : "/v1/completions";
    b->target = (struct load_target){.host = b->o->server.host,
                                     .port = b->o->server.port,
                                     .headers = l->headers,
                                     .n_headers = l->n_headers,
                                     .timeout_s = 6 * 3600};
    if (l->base_url && !load_parse_url(l->base_url, &b->target, &prefix)) {
        fail_with(0, "--base-url must look like http://host:port");
        return false;
    }
    b->target.path = xformat("%s%s", prefix ? prefix : "", endpoint);
    if (b->o->server.n_api_keys)
        b->target.bearer = b->o->server.api_keys[0];
    free(prefix);
    return true;
}

static bool has_file(const char *folder, const char *name)
{
    char *path = xformat("%s/%s", folder, name);
    bool there = access(path, R_OK) == 0;
    free(path);
    return there;
}

/* The first card of /v1/models: its id, and its folder when that is on this machine too. */
static bool ask_model(struct bench *b)
{
    int status;
    json_t *models = NULL;
    double until = bench_now() + b->o->load.ready_check_timeout_s;
    char *body;
    while (!(body = load_get(&b->target, "/v1/models", &status)) && bench_now() < until &&
           !interrupted)
        nanosleep(&(struct timespec){0, 100000000}, NULL);
    if (body)
        models = json_loads(body, 0, NULL);
    const json_t *card = json_array_get(json_object_get(models, "data"), 0);
    const char *id = json_string_value(json_object_get(card, "id"));
    const char *root = json_string_value(json_object_get(card, "root"));
    if (b->o->engine.n_served_names)
        id = b->o->engine.served_names[0];
    else if (b->o->engine.model && !id)
        id = options_model_name(b->o);
    if (id)
        b->model = xstrdup(id);
    const char *dir = b->o->engine.tokenizer ? b->o->engine.tokenizer : b->o->engine.model;
    if (!dir)
        dir = root;
    if (dir && has_file(dir, "config.json"))
        b->model_dir = xstrdup(dir);
    else if (dir)
        b->model_dir = hub_cached(b->o, dir);
    if (!body)
        fail_with(0, "no server answers at %s:%d", b->target.host, b->target.port);
    else if (!id)
        fail_with(0, "GET /v1/models answers %d and names no model; give --model", status);
    bool ok = body && id;
    json_decref(models);
    free(body);
    return ok;
}

static int vocab_size(const struct bench *b)
{
    char *path = xformat("%s/config.json", b->model_dir ? b->model_dir : "");
    json_t *config = b->model_dir ? json_load_file(path, 0, NULL) : NULL;
    int size = (int)json_integer_value(json_object_get(config, "vocab_size"));
    json_decref(config);
    free(path);
    return size > 0 ? size : 8000; /* what every model has */
}

/* ---- requests ----------------------------------------------------------------------------------
 */

static json_t *prompt_ids(const struct work_item *item)
{
    json_t *ids = json_array();
    for (int i = 0; i < item->n_tokens; i++)
        json_array_append_new(ids, json_integer(item->tokens[i]));
    return ids;
}

/* A chat's content is text: the ids decoded, or numbers in words when there is no tokenizer. */
static json_t *prompt_message(const struct bench *b, const struct work_item *item)
{
    json_t *content = NULL;
    char *text;
    size_t bytes;
    if (b->text && sl_text_decode(b->text, item->tokens, (size_t)item->n_tokens, true, &text,
                                  &bytes, NULL) == SL_OK) {
        content = json_stringn(text, bytes);
        sl_free(text);
    }
    if (!content) {
        char *words = xcalloc((size_t)item->n_tokens + 1, 6);
        for (int i = 0; i < item->n_tokens; i++)
            snprintf(words + strlen(words), 6, " %d", item->tokens[i] % 1000);
        content = json_string(words);
        free(words);
    }
    return json_pack("[{s:s, s:o}]", "role", "user", "content", content);
}

static void put_sampling(json_t *body, const struct sampling_options *s)
{
    if (!isnan(s->temperature))
        json_object_set_new(body, "temperature", json_real((double)s->temperature));
    if (!isnan(s->top_p))
        json_object_set_new(body, "top_p", json_real((double)s->top_p));
    if (!isnan(s->min_p))
        json_object_set_new(body, "min_p", json_real((double)s->min_p));
    if (!isnan(s->presence_penalty))
        json_object_set_new(body, "presence_penalty", json_real((double)s->presence_penalty));
    if (!isnan(s->frequency_penalty))
        json_object_set_new(body, "frequency_penalty", json_real((double)s->frequency_penalty));
    if (!isnan(s->repetition_penalty))
        json_object_set_new(body, "repetition_penalty", json_real((double)s->repetition_penalty));
    if (s->top_k != SL_NONE)
        json_object_set_new(body, "top_k", json_integer(s->top_k));
}

static char *make_body(const struct bench *b, const struct work_item *item, int output_len)
{
    const struct options *o = b->o;
    json_t *body = json_pack("{s:s, s:b, s:{s:b}}", "model", b->model, "stream", 1,
                             "stream_options", "include_usage", 1);
    if (b->chat) {
        json_object_set_new(body, "messages", prompt_message(b, item));
        json_object_set_new(body, "max_completion_tokens", json_integer(output_len));
    } else {
        json_object_set_new(body, "prompt", prompt_ids(item));
        json_object_set_new(body, "max_tokens", json_integer(output_len));
        json_object_set_new(body, "repetition_penalty", json_real(1.0));
    }
    if (o->sampling.logprobs != SL_NONE) {
        json_object_set_new(body, "logprobs",
                            b->chat ? json_true() : json_integer(o->sampling.logprobs));
        if (b->chat)
            json_object_set_new(body, "top_logprobs", json_integer(o->sampling.logprobs));
    }
    bool made_up = strcmp(b->w.name, "sharegpt") != 0 && strcmp(b->w.name, "custom") != 0;
    if (o->sampling.ignore_eos || made_up)
        json_object_set_new(body, "ignore_eos", json_true());
    put_sampling(body, &o->sampling);
    json_t *extra = o->load.extra_body ? json_loads(o->load.extra_body, 0, NULL) : NULL;
    if (extra)
        json_object_update(body, extra);
    json_decref(extra);
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    if (!text)
        text = xstrdup("{}");
    return text;
}

/* When each request is sent: gaps from a gamma distribution, stretched so that the last is sent
 * when the rate says, as vLLM does it; with a ramp the rate follows the request's number. */
static void set_arrivals(struct bench *b)
{
    const struct load_options *l = &b->o->load;
    struct rng rng = {(uint64_t)b->o->engine.seed ^ 0x6c6f6164u};
    double at = 0;
    int n = b->w.n;
    bool ramp = l->ramp_up_strategy != NULL;
    for (int i = 0; i < n; i++) {
        double rate = l->request_rate, progress = (double)i / n;
        if (b->w.has_arrivals && isinf(rate) && !ramp) {
            b->requests[i].due_s = b->w.items[i].arrival_s;
            continue;
        }
        if (ramp && strcmp(l->ramp_up_strategy, "linear") == 0)
            rate = l->ramp_up_start_rps + (l->ramp_up_end_rps - l->ramp_up_start_rps) * progress;
        else if (ramp)
            rate = l->ramp_up_start_rps * pow(l->ramp_up_end_rps / l->ramp_up_start_rps, progress);
        if (!isinf(rate))
            at += rng_gamma(&rng, l->burstiness) / (rate * l->burstiness);
        b->requests[i].due_s = at;
    }
    if (!ramp && !isinf(l->request_rate) && at > 0)
        for (int i = 0; i < n; i++)
            b->requests[i].due_s *= n / l->request_rate / at;
}

static void make_requests(struct bench *b)
{
    b->requests = xcalloc((size_t)b->w.n, sizeof *b->requests);
    for (int i = 0; i < b->w.n; i++) {
        struct load_request *r = &b->requests[i];
        r->body = make_body(b, &b->w.items[i], b->w.items[i].output_len);
        r->id = xformat("%s%d", b->o->load.request_id_prefix, i);
        r->n_prompt_tokens = b->w.items[i].n_tokens;
        r->keep_text = b->o->load.save_detailed;
    }
    set_arrivals(b);
}

/* One-token requests at a steady rate beside the load: what an idle user would feel. */
static void make_probes(struct bench *b, double run_s)
{
    double rate = b->o->load.probe_request_rate;
    if (rate <= 0)
        return;
    int n = (int)(rate * (run_s + 600)); /* more than the run needs; it ends with its load */
    n = n < 1 ? 1 : n > 100000 ? 100000 : n;
    struct work_item item = b->w.items[0];
    item.n_tokens = item.n_tokens < 16 ? item.n_tokens : 16;
    char *body = make_body(b, &item, 1);
    b->probes = xcalloc((size_t)n, sizeof *b->probes);
    b->n_probes = n;
    for (int i = 0; i < n; i++)
        b->probes[i] = (struct load_request){.body = body, .due_s = i / rate, .probe = true};
}

/* ---- running -----------------------------------------------------------------------------------
 */

static void on_tick(void *ctx, int n_done, double elapsed_s, long long tokens)
{
    struct bench *b = ctx;
    progress_show(&b->bar, n_done, b->w.n, elapsed_s, tokens);
}

static bool warm_up(struct bench *b)
{
    int n = b->o->workload.num_warmups;
    if (n <= 0)
        return true;
    printf("Warming up with %d requests...\n", n);
    struct load_request *warm = xcalloc((size_t)n, sizeof *warm);
    for (int i = 0; i < n; i++)
        warm[i] = (struct load_request){.body = b->requests[0].body};
    struct load_run run = {.target = &b->target,
                           .requests = warm,
                           .n = n,
                           .max_concurrency = b->o->load.max_concurrency,
                           .stop = &interrupted};
    bool ok = load_execute(&run);
    for (int i = 0; i < n; i++) {
        if (ok && !warm[i].success && !interrupted) {
            fail_with(0, "a warm-up request failed: %s", warm[i].error ? warm[i].error : "?");
            ok = false;
        }
        load_request_fini(&warm[i]);
    }
    free(warm);
    return ok && !interrupted;
}

static void announce(const struct bench *b)
{
    const struct load_options *l = &b->o->load;
    if (l->ramp_up_strategy)
        printf("Traffic ramp-up strategy: %s.\n", l->ramp_up_strategy);
    else if (b->w.has_arrivals && isinf(l->request_rate))
        printf("Traffic request rate: as in the trace\n");
    else
        printf("Traffic request rate: %g\n", l->request_rate);
    printf("Burstiness factor: %g (%s)\n", l->burstiness,
           l->burstiness == 1.0 ? "Poisson process" : "Gamma distribution");
    if (l->max_concurrency)
        printf("Maximum request concurrency: %d\n", l->max_concurrency);
    else
        printf("Maximum request concurrency: None\n");
    fflush(stdout);
}

/* Servers that show no metrics do not speculate, as far as can be told. */
static void read_drafts(const struct bench *b, struct bench_drafts *d)
{
    int status;
    char *page = load_get(&b->target, "/metrics", &status);
    bench_drafts_parse(d, page && status == 200 ? page : "");
    free(page);
}

static int run_load(struct bench *b)
{
    struct bench_drafts before, drafts;
    make_requests(b);
    if (!warm_up(b))
        return interrupted ? EXIT_INTERRUPTED : EXIT_FAILED;
    make_probes(b, b->requests[b->w.n - 1].due_s);
    announce(b);
    progress_begin(&b->bar, "loading", !b->o->no_progress && !b->o->load.disable_tqdm);
    struct load_run run = {.target = &b->target,
                           .requests = b->requests,
                           .n = b->w.n,
                           .probes = b->probes,
                           .n_probes = b->n_probes,
                           .max_concurrency = b->o->load.max_concurrency,
                           .stop = &interrupted,
                           .tick = on_tick,
                           .ctx = b};
    read_drafts(b, &before);
    bool ok = load_execute(&run);
    progress_end(&b->bar);
    if (!ok)
        return fail_with(EXIT_FAILED, "cannot make an event loop");
    read_drafts(b, &drafts);
    bench_drafts_since(&drafts, &before);
    struct bench_report report = {.o = b->o,
                                  .run = &run,
                                  .model = b->model,
                                  .tokenizer = b->model_dir ? b->model_dir : b->model,
                                  .chat = b->chat,
                                  .drafts = drafts};
    int code = bench_report(&report);
    return interrupted ? EXIT_INTERRUPTED : code;
}

static void free_all(struct bench *b)
{
    for (int i = 0; b->requests && i < b->w.n; i++) {
        load_request_fini(&b->requests[i]);
        free((void *)b->requests[i].body);
        free((void *)b->requests[i].id);
    }
    for (int i = 0; i < b->n_probes; i++)
        load_request_fini(&b->probes[i]);
    if (b->n_probes)
        free((void *)b->probes[0].body);
    free(b->requests);
    free(b->probes);
    workload_free(&b->w);
    sl_text_close(&b->text);
    free(b->model);
    free(b->model_dir);
    free((void *)b->target.path);
}

int command_bench_serve(struct options *o)
{
    struct bench b = {.o = o};
    struct sl_err err = {0};
    struct sigaction action = {.sa_handler = on_interrupt};
    const struct load_options *l = &o->load;
    if (!(l->request_rate > 0) || !(l->burstiness > 0))
        return fail_with(EXIT_USAGE, "--request-rate and --burstiness must be positive");
    if (l->ramp_up_strategy && !(l->ramp_up_start_rps > 0 && l->ramp_up_end_rps > 0))
        return fail_with(EXIT_USAGE, "a ramp needs --ramp-up-start-rps and --ramp-up-end-rps");
    if (!bench_report_check(o))
        return EXIT_USAGE;
    sigaction(SIGINT, &action, NULL);
    int code = EXIT_FAILED;
    if (set_target(&b) && ask_model(&b)) {
        if (b.model_dir && sl_text_open(&b.text, b.model_dir, NULL, &err) != SL_OK)
            b.text = NULL; /* ids need no tokenizer; what does will say so */
        err = (struct sl_err){0};
        if (workload_make(&b.w, o, b.text, vocab_size(&b), 0, &err))
            code = run_load(&b);
        else
            fail_with(code, "%s", err.msg);
    }
    free_all(&b);
    return code;
}
