/* generate: prompts in, completions out, in the order of the prompts.
 *
 * Text for people: one prompt gives just its text; several give a heading each, as tail(1) does for
 * files. --json gives one object a prompt, with all that a program may want.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "progress.h"
#include "prompts.h"
#include "util.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

struct run {
    const struct options *o;
    struct prompt_list list;
    FILE *out;
    int n_written;
    bool write_failed;
    struct progress progress;
};

/* ---- one object a prompt ----------------------------------------------------------------------
 */

static const char *finish_name(enum sl_finish finish)
{
    static const char *const names[] = {
        [SL_RUNNING] = "abort", [SL_STOP] = "stop",   [SL_LENGTH] = "length",
        [SL_ABORT] = "abort",   [SL_ERROR] = "error", [SL_REPETITION] = "repetition"};
    return names[finish];
}

/* JSON has no infinity: as vLLM does, -inf is -9999. */
static json_t *logprob_json(const struct sl_logprob *lp)
{
    double value = isfinite(lp->logprob) ? (double)lp->logprob : -9999.0;
    return json_pack("{s:i, s:f, s:i}", "token_id", lp->token, "logprob", value, "rank", lp->rank);
}

static json_t *entries_json(const struct sl_logprob *entries, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, logprob_json(&entries[i]));
    return list;
}

static json_t *ids_json(const int32_t *ids, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *choice_json(const struct offline_choice *c, int index, bool beams)
{
    json_t *o = json_pack("{s:i, s:s%, s:o, s:s}", "index", index, "text", c->text ? c->text : "",
                          c->text_bytes, "token_ids", ids_json(c->tokens, c->n_tokens),
                          "finish_reason", finish_name(c->finish));
    if (!o)
        return NULL;
    if (c->stop_kind == SL_STOP_TOKEN)
        json_object_set_new(o, "stop_reason", json_integer(c->stop_token));
    else if (c->stop_kind == SL_STOP_STRING)
        json_object_set_new(o, "stop_reason", json_string(c->stop_string));
    else
        json_object_set_new(o, "stop_reason", json_null());
    if (isfinite(c->cumulative_logprob))
        json_object_set_new(o, "cumulative_logprob", json_real(c->cumulative_logprob));
    if (isfinite(c->score) && beams)
        json_object_set_new(o, "score", json_real(c->score));
    if (c->entry_counts) {
        json_t *all = json_array();
        for (int i = 0, at = 0; i < c->n_tokens; at += c->entry_counts[i++])
            json_array_append_new(all, entries_json(c->entries + at, c->entry_counts[i]));
        json_object_set_new(o, "logprobs", all);
    }
    return o;
}

/* While the request still lives: done() is called before it is released. */
static json_t *prompt_logprobs_json(const struct offline_job *job)
{
    int n;
    const int32_t *ids = sl_request_prompt(job->request, &n);
    const struct sl_token_logprobs *lp = sl_request_prompt_logprobs(job->request);
    if (!lp || !ids)
        return NULL;
    json_t *all = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(all, lp[i].n ? entries_json(lp[i].entry, lp[i].n) : json_null());
    return all;
}

static json_t *job_json(const struct prompt *p, const struct offline_job *job, int index)
{
    json_t *o = json_pack("{s:i}", "index", index);
    json_t *id = json_object_get(p->line, "id");
    if (id)
        json_object_set(o, "id", id);
    if (p->text)
        json_object_set_new(o, "prompt", json_string(p->text));
    if (job->err.code) {
        json_object_set_new(o, "error", json_string(job->err.msg));
        return o;
    }
    json_object_set_new(o, "prompt_token_ids", ids_json(job->tokens, job->n_tokens));
    if (job->request && job->params.prompt_logprobs != SL_NONE)
        json_object_set_new(o, "prompt_logprobs", prompt_logprobs_json(job));
    json_t *outputs = json_array();
    for (int i = 0; i < job->n_choices; i++)
        json_array_append_new(outputs,
                              choice_json(&job->choices[i], i, job->params.use_beam_search));
    json_object_set_new(o, "outputs", outputs);
    json_object_set_new(o, "usage",
                        json_pack("{s:i, s:i, s:i}", "prompt_tokens", job->usage.prompt_tokens,
                                  "completion_tokens", job->usage.completion_tokens,
                                  "cached_tokens", job->usage.cached_tokens));
    return o;
}

/* ---- text for people ---------------------------------------------------------------------------
 */

static void heading(const struct run *r, int index)
{
    const struct prompt *p = &r->list.prompts[index];
    const char *text = p->text ? p->text : "";
    size_t len = strcspn(text, "\n");
    size_t cut = len < 72 ? len : 72;
    while (cut < len && cut > 0 && ((unsigned char)text[cut] & 0xC0) == 0x80)
        cut--; /* not inside a character */
    fprintf(r->out, "%s==> %d: %.*s%s <==\n", index ? "\n" : "", index + 1, (int)cut, text,
            cut < len || text[len] ? "..." : "");
}

static void write_text(const struct run *r, int index)
{
    const struct offline_job *job = &r->list.jobs[index];
    bool headings = r->list.n > 1;
    if (headings)
        heading(r, index);
    if (job->err.code) {
        fprintf(stderr, "sluice: prompt %d: %s\n", index + 1, job->err.msg);
        return;
    }
    for (int i = 0; i < job->n_choices; i++) {
        const struct offline_choice *c = &job->choices[i];
        if (job->n_choices > 1)
            fprintf(r->out, "--- choice %d\n", i);
        if (c->text_bytes)
            fwrite(c->text, 1, c->text_bytes, r->out);
        if (!c->text_bytes || c->text[c->text_bytes - 1] != '\n')
            fputc('\n', r->out);
    }
}

/* ---- the run -----------------------------------------------------------------------------------
 */

/* Writes what is finished and whose predecessors are written; frees what is written. */
static void write_ready(struct run *r)
{
    while (r->n_written < r->list.n && r->list.jobs[r->n_written].finished) {
        int i = r->n_written++;
        struct prompt *p = &r->list.prompts[i];
        progress_end(&r->progress);
        if (!r->o->json_lines) {
            write_text(r, i);
        } else {
            json_dumpf(p->result, r->out, JSON_COMPACT | JSON_REAL_PRECISION(9));
            fputc('\n', r->out);
            json_decref(p->result);
            p->result = NULL;
        }
        offline_job_fini(&r->list.jobs[i]);
    }
    r->write_failed = fflush(r->out) != 0 || r->write_failed;
}

static void on_done(void *ctx, struct offline_job *job)
{
    struct run *r = ctx;
    int i = (int)(job - r->list.jobs);
    if (r->o->json_lines)
        r->list.prompts[i].result = job_json(&r->list.prompts[i], job, i);
    write_ready(r);
}

static void on_tick(void *ctx, const struct offline_stats *s)
{
    struct run *r = ctx;
    progress_show(&r->progress, s->n_done, s->n_total, s->elapsed_s, s->output_tokens);
}

static int report(const struct run *r, const struct offline_stats *s)
{
    if (r->write_failed)
        return fail_with(EXIT_FAILED, "cannot write: %s", strerror(errno));
    if (interrupted)
        return fail_with(EXIT_INTERRUPTED, "interrupted; %d of %d prompts were answered", s->n_done,
                         s->n_total);
    if (r->progress.shown && s->elapsed_s > 0)
        fprintf(stderr, "%d prompts, %lld tokens in, %lld out, %.2f s, %.1f tokens/s out\n",
                s->n_done, s->prompt_tokens, s->output_tokens, s->elapsed_s,
                (double)s->output_tokens / s->elapsed_s);
    return s->n_failed ? EXIT_FAILED : EXIT_DONE;
}

static int run_all(struct run *r, struct sl_engine *engine)
{
    struct sl_err err = {0};
    struct offline_stats stats;
    if (!prompts_read(&r->list, r->o, engine, &err))
        return fail_with(EXIT_FAILED, "%s", err.msg);
    if (r->list.n == 0)
        return fail_with(EXIT_USAGE, "no prompt given");
    struct offline_options opts = {
        .done = on_done, .tick = on_tick, .ctx = r, .stop = &interrupted};
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    progress_begin(&r->progress, "generating", !r->o->no_progress);
    offline_run(engine, r->list.jobs, r->list.n, &opts, &stats);
    progress_end(&r->progress);
    return report(r, &stats);
}

int command_generate(struct options *o)
{
    struct run r = {.o = o, .out = stdout};
    struct sl_engine *engine = NULL;
    struct sl_err err = {0};
    if (o->output_file && strcmp(o->output_file, "-") != 0)
        r.out = fopen(o->output_file, "wb");
    if (!r.out)
        return fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    int code = EXIT_FAILED;
    if (sl_engine_create(&engine, &o->engine, &err) != SL_OK)
        fail_with(EXIT_FAILED, "%s", err.msg);
    else
        code = run_all(&r, engine);
    prompts_free(&r.list);
    sl_engine_destroy(&engine);
    if (r.out != stdout && fclose(r.out) != 0)
        code = fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    return code;
}
