/* Speculation on and off in turns, within one process: tokens a second of the same requests, and
 * how many guesses were kept. bench/speculation.py makes the plan and keeps the rows.
 *
 *     bench_speculation PLAN.json
 *
 * The plan: {"model", "device": "cpu" or "cuda", "threads", "clock": "wall" or "cpu", "methods":
 * {NAME: speculative_config, null: another engine without}, "cases": [{"name", "data": JSONL of
 * prompt and output_tokens, "methods": [NAME], "width": requests at a time, "temperature",
 * "rounds", "turns"}]}. One line of JSON a case and method.
 *
 * Of two engines that do the same one can be some percent faster all its life: by where its memory
 * lies, and by what came before. So a round has two new ones, and each is started first in every
 * second round; in a turn the same requests run without, with, with, without.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/mem.h"
#include "sluice.h"
#include "text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WIDTH_MAX = 256, TURNS_MAX = 256 };

struct prompt {
    struct token_vec ids;
    int max_tokens;
};

struct plan {
    const char *model;
    enum sl_device device;
    int threads;
    clockid_t clock;
    struct tokenizer *tok;
};

struct bench_case {
    struct prompt *prompt;
    int n, width, rounds, turns;
    float temperature;
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_speculation: %s: %s\n", what, why);
    exit(1);
}

static struct sl_engine *start(const struct plan *pl, const char *speculative)
{
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = pl->model;
    cfg.device = pl->device;
    cfg.threads = pl->threads;
    cfg.dtype = SL_DTYPE_BF16;
    cfg.max_num_seqs = WIDTH_MAX;
    cfg.kv_cache_bytes = (int64_t)256 << 20;
    cfg.speculative_config = speculative;
    if (sl_engine_create(&e, &cfg, &err))
        die("no engine", err.msg);
    return e;
}

static struct sl_request *submit(struct sl_engine *e, const struct bench_case *c, int i, int seed)
{
    const struct prompt *q = &c->prompt[i];
    struct sl_sampling_params p;
    struct sl_input in = {.tokens = q->ids.ids, .n_tokens = (int)q->ids.n};
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    sl_sampling_params_init(&p);
    p.temperature = c->temperature;
    p.max_tokens = q->max_tokens;
    p.ignore_eos = true;
    p.has_seed = true;
    p.seed = seed + i;
    if (sl_submit(e, &in, &p, NULL, NULL, &r, &err))
        die("a request was refused", err.msg);
    return r;
}

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* All prompts, `width` at a time: tokens, and seconds from the first submission to the last one. */
struct took {
    double tokens, s;
};

static void add_run(const struct plan *pl, struct sl_engine *e, const struct bench_case *c,
                    int seed, struct took *sum)
{
    struct sl_request *r[WIDTH_MAX] = {0};
    int next = 0, n_live = 0;
    long n_tokens = 0;
    double begin = seconds(pl->clock);
    do {
        for (int i = 0; i < c->width; i++) {
            const struct sl_output *o;
            while (r[i] && (o = sl_request_next(r[i])))
                n_tokens += o->n_tokens;
            if (r[i] && sl_request_done(r[i])) {
                sl_request_release(&r[i]);
                n_live--;
            }
            if (!r[i] && next < c->n) {
                r[i] = submit(e, c, next++, seed);
                n_live++;
            }
        }
        for (int i = 0; i < c->width; i++)
            if (r[i]) {
                (void)!sl_request_wait(r[i], 100);
                break;
            }
    } while (n_live);
    sum->tokens += (double)n_tokens;
    sum->s += seconds(pl->clock) - begin;
}

static void print_list(const char *name, const double *v, int n)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < n; i++)
        printf("%s%.1f", i ? ", " : "", v[i]);
    printf("], ");
}

struct pair {
    struct sl_engine *without, *with;
};

static void start_pair(struct pair *p, const struct plan *pl, const char *config, bool with_first)
{
    if (with_first)
        p->with = start(pl, config);
    p->without = start(pl, NULL);
    if (!with_first)
        p->with = start(pl, config);
}

static void run_pair(const struct pair *p, const struct plan *pl, const struct bench_case *c,
                     int seed, bool with_first, struct took *without, struct took *with)
{
    if (with_first)
        add_run(pl, p->with, c, seed, with);
    add_run(pl, p->without, c, seed, without);
    if (!with_first)
        add_run(pl, p->with, c, seed, with);
}

static void add_drafts(struct sl_draft_stats *sum, const struct sl_draft_stats *s, int sign)
{
    sum->n_drafts += (uint64_t)sign * s->n_drafts;
    sum->n_draft_tokens += (uint64_t)sign * s->n_draft_tokens;
    sum->n_accepted += (uint64_t)sign * s->n_accepted;
}

/* `learns`: the method remembers answers, so engines are new for each turn, and it is half of one.
 */
static void compare(const struct plan *pl, const char *name, const char *config,
                    const struct bench_case *c, bool learns)
{
    double off[TURNS_MAX], on[TURNS_MAX];
    struct sl_draft_stats sum = {0}, s;
    int n = 0, rounds = learns ? c->rounds * c->turns : c->rounds, turns = learns ? 1 : c->turns;
    for (int round = 0; round < rounds; round++) {
        struct pair p;
        bool with_first = round % 2;
        start_pair(&p, pl, config, with_first);
        if (!learns) { /* to warm up */
            struct took nobody = {0};
            run_pair(&p, pl, c, 500, with_first, &nobody, &nobody);
            sl_engine_draft_stats(p.with, &s);
            add_drafts(&sum, &s, -1);
        }
        for (int i = 0; i < turns; i++, n++) {
            struct took without = {0}, with = {0};
            int seed = 1000 * (n + 1);
            run_pair(&p, pl, c, seed, with_first, &without, &with);
            if (!learns)
                run_pair(&p, pl, c, seed, !with_first, &without, &with);
            off[n] = without.tokens / without.s;
            on[n] = with.tokens / with.s;
        }
        sl_engine_draft_stats(p.with, &s);
        add_drafts(&sum, &s, 1);
        sl_engine_destroy(&p.without);
        sl_engine_destroy(&p.with);
    }
    printf("{\"method\": \"%s\", ", name);
    print_list("without", off, n);
    print_list("with", on, n);
    printf("\"drafts\": %llu, \"draft_tokens\": %llu, \"accepted\": %llu}\n",
           (unsigned long long)sum.n_drafts, (unsigned long long)sum.n_draft_tokens,
           (unsigned long long)sum.n_accepted);
    fflush(stdout);
}

static void read_prompts(const struct plan *pl, const char *path, struct bench_case *c)
{
    char *line = NULL;
    size_t cap = 0;
    FILE *f = fopen(path, "r");
    if (!f)
        die("cannot read", path);
    while (getline(&line, &cap, f) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        const char *text = json_string_value(json_object_get(row, "prompt"));
        struct sl_err err = {0};
        c->prompt = mem_realloc(c->prompt, (size_t)c->n + 1, sizeof *c->prompt);
        struct prompt *q = c->prompt ? &c->prompt[c->n++] : NULL;
        if (!q || !text)
            die("no prompt in", path);
        *q = (struct prompt){.max_tokens =
                                 (int)json_integer_value(json_object_get(row, "output_tokens"))};
        if (tokenizer_encode(pl->tok, text, strlen(text), ENCODE_ADD_SPECIAL, 0, &q->ids, &err))
            die("tokenizer", err.msg);
        json_decref(row);
    }
    free(line);
    fclose(f);
}

static int int_of(const json_t *row, const char *key)
{
    return (int)json_integer_value(json_object_get(row, key));
}

static void run_case(const struct plan *pl, const json_t *methods, const json_t *row)
{
    struct bench_case c = {.width = int_of(row, "width"),
                           .rounds = int_of(row, "rounds"),
                           .turns = int_of(row, "turns"),
                           .temperature =
                               (float)json_number_value(json_object_get(row, "temperature"))};
    const json_t *names = json_object_get(row, "methods");
    read_prompts(pl, json_string_value(json_object_get(row, "data")), &c);
    if (c.width < 1 || c.width > WIDTH_MAX)
        die("plan", "width out of range");
    if (c.rounds < 1 || c.turns < 1 || c.rounds > TURNS_MAX || c.turns > TURNS_MAX / c.rounds)
        die("plan", "rounds or turns out of range");
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        const json_t *method = json_object_get(methods, name);
        char *config = json_dumps(method, 0); /* NULL of null */
        if (!method)
            die("plan: no such method", name);
        compare(pl, name, config, &c, strcmp(name, "suffix") == 0);
        free(config);
    }
    for (int i = 0; i < c.n; i++)
        token_vec_fini(&c.prompt[i].ids);
    mem_free(c.prompt);
}

int main(int argc, char **argv)
{
    json_error_t why;
    json_t *plan = argc == 2 ? json_load_file(argv[1], 0, &why) : NULL;
    struct sl_err err = {0};
    if (!plan)
        die("usage: bench_speculation PLAN.json", argc == 2 ? why.text : "no plan");
    const char *device = json_string_value(json_object_get(plan, "device"));
    const char *clock = json_string_value(json_object_get(plan, "clock"));
    struct plan pl = {.model = json_string_value(json_object_get(plan, "model")),
                      .device = strcmp(device, "cuda") == 0 ? SL_DEVICE_CUDA : SL_DEVICE_CPU,
                      .threads = (int)json_integer_value(json_object_get(plan, "threads")),
                      .clock =
                          strcmp(clock, "cpu") == 0 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC};
    if (tokenizer_load(&pl.tok, pl.model, &err))
        die("tokenizer", err.msg);
    sl_log_set_level(SL_LOG_WARNING);
    const json_t *cases = json_object_get(plan, "cases");
    for (size_t i = 0; i < json_array_size(cases); i++)
        run_case(&pl, json_object_get(plan, "methods"), json_array_get(cases, i));
    tokenizer_destroy(&pl.tok);
    json_decref(plan);
    return 0;
}
