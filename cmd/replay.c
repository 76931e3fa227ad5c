/* SPDX-License-Identifier: Apache-2.0 */
#include "replay.h"
#include "util.h"

#include "base/clock.h"
#include "base/mem.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- the load -------------------------------------------------------------------------------- */

static bool parse_line(const char *line, struct replay_item *item)
{
    char *end;
    item->arrival_s = strtod(line, &end);
    if (end == line || *end != ',' || !(item->arrival_s >= 0) || !isfinite(item->arrival_s))
        return false;
    long in = strtol(end + 1, &end, 10);
    if (*end != ',')
        return false;
    long out = strtol(end + 1, &end, 10);
    if (in < 1 || out < 1 || in > 1 << 24 || out > 1 << 24 || (*end && *end != '\r'))
        return false;
    item->n_in = (int)in;
    item->n_out = (int)out;
    return true;
}

static void add_item(struct replay_load *l, const struct replay_item *item, int *cap)
{
    if (l->n == *cap) {
        *cap = *cap ? *cap * 2 : 1024;
        l->item = xrealloc(l->item, (size_t)*cap, sizeof *l->item);
    }
    l->item[l->n++] = *item;
}

static bool read_trace(struct replay_load *l, FILE *in, const char *path, int max_len,
                       int max_items, struct sl_err *err)
{
    char *line = NULL;
    size_t room = 0, len;
    bool too_long = false, ok = true;
    int cap = 0;
    for (long number = 1; ok && (max_items <= 0 || l->n < max_items); number++) {
        struct replay_item item;
        char *text = read_line(in, &line, &room, 4096, &len, &too_long);
        if (!text)
            break;
        if (parse_line(text, &item)) {
            if (l->n && item.arrival_s < l->item[l->n - 1].arrival_s)
                ok = SL_FAIL(err, SL_EFORMAT, "%s: line %ld arrives before the one above it", path,
                             number) == SL_OK;
            else if (item.n_in + item.n_out > max_len)
                l->n_left_out++;
            else
                add_item(l, &item, &cap);
        } else if (number > 1 && len > 0) { /* the first may be a heading */
            ok = SL_FAIL(err, SL_EFORMAT,
                         "%s: line %ld is not \"seconds,input tokens,output tokens\"", path,
                         number) == SL_OK;
        }
    }
    free(line);
    if (ok && too_long)
        ok = SL_FAIL(err, SL_EFORMAT, "%s: a line is longer than 4096 bytes", path) == SL_OK;
    if (ok && l->n == 0)
        ok = SL_FAIL(err, SL_EFORMAT, "%s: there is no request of at most %d tokens", path,
                     max_len) == SL_OK;
    return ok;
}

bool replay_load_trace(struct replay_load *l, const char *path, int max_len, int max_items,
                       struct sl_err *err)
{
    *l = (struct replay_load){.replicate = 1, .rate_scale = 1};
    FILE *in = fopen(path, "r");
    if (!in)
        return SL_FAIL(err, SL_ENOTFOUND, "%s: %s", path, strerror(errno)) == SL_OK;
    bool ok = read_trace(l, in, path, max_len, max_items, err);
    fclose(in);
    if (!ok) {
        replay_load_free(l);
        return false;
    }
    double last = l->item[l->n - 1].arrival_s;
    l->span_s = l->n > 1 ? last * l->n / (l->n - 1) : 1; /* one more gap of the mean size */
    return true;
}

bool replay_load_equal(struct replay_load *l, int n, int n_in, int n_out)
{
    *l = (struct replay_load){.replicate = 1, .rate_scale = INFINITY};
    l->item = xcalloc((size_t)n, sizeof *l->item);
    l->n = n;
    for (int i = 0; i < n; i++)
        l->item[i] = (struct replay_item){0, n_in, n_out};
    return true;
}

void replay_load_free(struct replay_load *l)
{
    free(l->item);
    l->item = NULL;
}

static int64_t arrival_ns(const struct replay_load *l, long i)
{
    double s = l->item[i % l->n].arrival_s + (double)(i / l->n) * l->span_s;
    return isinf(l->rate_scale) ? 0 : (int64_t)(s / l->rate_scale * 1e9);
}

/* ---- the run --------------------------------------------------------------------------------- */

/* A request under way. */
struct live {
    struct request r; /* first */
    struct live *next_ended;
    struct sequence *seq[1], seq0;
    int cap_prompt;
};

struct replay {
    const struct replay_load *load;
    struct replay_result *out;
    struct core *core;
    struct backend *be;
    struct live *ended; /* finished; freed when no step names them */
    struct live *spare; /* used again, with their prompt's memory */
    int64_t start_ns, last_ns;
    double kv_blocks_ns; /* integral of used blocks over time */
    uint64_t n_seqs;     /* summed over steps */
    int vocab_size;
};

static void on_event(void *ctx, const struct sched_event *ev)
{
    struct replay *p = ctx;
    struct replay_result *out = p->out;
    struct live *live = (struct live *)ev->seq->req;
    if (!ev->has_token)
        return;
    out->tokens_out++;
    if (ev->seq->last_token_ns)
        histogram_add(&out->itl, ev->now_ns - ev->seq->last_token_ns);
    else
        histogram_add(&out->ttft, ev->now_ns - live->r.arrival_ns);
    if (ev->finish == SL_RUNNING)
        return;
    int64_t whole = ev->now_ns - live->r.arrival_ns;
    histogram_add(&out->e2e, whole);
    histogram_add(&out->per_token, whole / (ev->seq->n_tokens - ev->seq->n_prompt));
    p->last_ns = ev->now_ns;
    live->next_ended = p->ended;
    p->ended = live;
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void add_request(struct replay *p, long i)
{
    const struct replay_item *item = &p->load->item[i % p->load->n];
    struct live *live = p->spare;
    if (live)
        p->spare = live->next_ended;
    else
        live = xcalloc(1, sizeof *live);
    if (live->cap_prompt < item->n_in) {
        live->cap_prompt = item->n_in;
        live->r.prompt = xrealloc(live->r.prompt, (size_t)item->n_in, sizeof *live->r.prompt);
    }
    struct request *r = &live->r;
    int32_t *prompt = r->prompt;
    *r = (struct request){.number = (uint64_t)i + 1,
                          .arrival_ns = p->start_ns + arrival_ns(p->load, i),
                          .prompt = prompt,
                          .n_prompt = item->n_in,
                          .seq = live->seq,
                          .n_seqs = 1};
    r->params.p.prompt_logprobs = r->params.p.logprobs = SL_NONE;
    r->params.p.temperature = r->params.p.top_p = r->params.p.repetition_penalty = 1;
    r->params.p.n_allowed_token_ids = -1;
    r->params.p.ignore_eos = true;
    r->params.p.n = 1;
    r->params.eos_token = -1;
    r->params.max_tokens = item->n_out;
    r->params.seed = mix(p->load->seed + (uint64_t)i);
    uint32_t x = (uint32_t)r->params.seed;
    for (int t = 0; t < item->n_in; t++) {
        x = x * 1664525u + 1013904223u;
        prompt[t] = (int32_t)(((uint64_t)x * (uint64_t)p->vocab_size) >> 32);
    }
    live->seq[0] = &live->seq0;
    sequence_init(&live->seq0, r, 0);
    p->out->tokens_in += (uint64_t)item->n_in;
    p->out->n_requests++;
    sched_add(core_sched(p->core), r);
}

static void reuse_ended(struct replay *p)
{
    for (struct live **at = &p->ended; *at;) {
        struct live *live = *at;
        if (sched_holds(core_sched(p->core), &live->r)) {
            at = &live->next_ended;
            continue;
        }
        *at = live->next_ended;
        live->next_ended = p->spare;
        p->spare = live;
    }
}

static void free_live(struct live *list)
{
    for (struct live *next; list; list = next) {
        next = list->next_ended;
        free(list->r.prompt);
        free(list);
    }
}

static int64_t now(const struct replay *p)
{
    return p->be->ops->now_ns(p->be);
}

static void wait_until(struct replay *p, int64_t t_ns)
{
    if (p->be->ops->skip_to) {
        p->be->ops->skip_to(p->be, t_ns);
        return;
    }
    int64_t ns = t_ns - now(p);
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    if (ns > 0)
        nanosleep(&t, NULL);
}

static void watch_kv(struct replay *p, int64_t since_ns)
{
    struct sched_stats st;
    sched_get_stats(core_sched(p->core), &st);
    double used = (double)st.n_blocks_used / st.n_blocks;
    if (used > p->out->kv_used_peak)
        p->out->kv_used_peak = used;
    p->kv_blocks_ns += used * (double)(now(p) - since_ns);
    p->n_seqs += (uint64_t)st.last_step_seqs;
}

static enum sl_status run_all(struct replay *p, struct sl_err *err)
{
    long n = (long)p->load->n * p->load->replicate, next = 0;
    enum sl_status st = SL_OK;
    while (next < n || !core_idle(p->core)) {
        int64_t t = now(p);
        while (next < n && p->start_ns + arrival_ns(p->load, next) <= t)
            add_request(p, next++);
        st = core_step(p->core, err);
        if (st == SL_EAGAIN) /* idle, so another is to come */
            wait_until(p, p->start_ns + arrival_ns(p->load, next));
        else if (st)
            return st;
        else
            watch_kv(p, t);
        reuse_ended(p);
    }
    return SL_OK;
}

bool replay_run(struct replay_result *out, const struct replay_load *load,
                const struct sched_config *cfg, struct backend *be, struct sl_err *err)
{
    *out = (struct replay_result){0};
    struct replay p = {.load = load, .out = out, .be = be, .vocab_size = be->vocab_size};
    if (core_create(&p.core, cfg, be, on_event, &p, err))
        return false;
    int64_t wall = clock_mono_ns();
    p.start_ns = p.last_ns = now(&p);
    enum sl_status st = run_all(&p, err);
    out->wall_s = (double)(clock_mono_ns() - wall) / 1e9;
    out->duration_s = (double)(p.last_ns - p.start_ns) / 1e9;
    sched_get_stats(core_sched(p.core), &out->sched);
    core_get_times(p.core, &out->times);
    if (now(&p) > p.start_ns)
        out->kv_used_mean = p.kv_blocks_ns / (double)(now(&p) - p.start_ns);
    if (out->times.steps)
        out->batch_mean = (double)p.n_seqs / (double)out->times.steps;
    core_destroy(&p.core); /* aborts what is left, after an error */
    free_live(p.ended);
    free_live(p.spare);
    return st == SL_OK;
}

double replay_kv_waste(const struct replay_result *r)
{
    const struct sched_stats *s = &r->sched;
    return s->kv_slots_reserved ? 1 - (double)s->kv_slots_used / (double)s->kv_slots_reserved : 0;
}
