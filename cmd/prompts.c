/* SPDX-License-Identifier: Apache-2.0 */
#include "prompts.h"
#include "sampling_json.h"
#include "util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LINE_BYTES ((size_t)64 << 20)

struct source {
    const struct options *o;
    const struct sl_text *text;       /* NULL with --skip-tokenizer-init */
    struct sl_sampling_params params; /* the engine's defaults, then the command line's */
    struct prompt_list *list;
    struct sl_err *err;
};

__attribute__((format(printf, 2, 3))) static bool bad(struct sl_err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err->code = SL_EINVAL;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return false;
}

static bool encode(const struct source *s, struct prompt *p, struct offline_job *job,
                   const char *text, size_t bytes, bool special)
{
    size_t n;
    if (!s->text)
        return bad(&job->err, "there is no tokenizer: prompts must be token ids");
    if (sl_text_encode(s->text, text, bytes, special, &p->tokens, &n, &job->err) != SL_OK)
        return false;
    job->tokens = p->tokens;
    job->n_tokens = (int)n;
    return true;
}

static bool take_ids(struct prompt *p, struct offline_job *job, const json_t *ids)
{
    size_t n = json_array_size(ids);
    p->tokens = xcalloc(n, sizeof *p->tokens);
    p->ours = true;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX)
            return bad(&job->err, "\"prompt\" must be text or a list of token ids");
        p->tokens[i] = (int32_t)json_integer_value(id);
    }
    job->tokens = p->tokens;
    job->n_tokens = (int)n;
    return true;
}

/* `vars` holds messages and whatever else the template may use; it gets add_generation_prompt. */
static bool render(const struct source *s, struct prompt *p, struct offline_job *job, json_t *vars)
{
    char *text = NULL, *json;
    if (!s->text)
        return bad(&job->err, "there is no tokenizer: prompts must be token ids");
    if (!json_object_get(vars, "add_generation_prompt"))
        json_object_set_new(vars, "add_generation_prompt", json_true());
    json = json_dumps(vars, JSON_COMPACT);
    bool ok = sl_text_render(s->text, json, NULL, &text, &job->err) == SL_OK &&
              encode(s, p, job, text, strlen(text), false);
    sl_free(text);
    free(json);
    return ok;
}

static bool render_user(const struct source *s, struct prompt *p, struct offline_job *job,
                        const char *text, size_t bytes)
{
    json_t *messages = json_array(), *content = json_stringn(text, bytes);
    if (!content) {
        json_decref(messages);
        return bad(&job->err, "the prompt is not UTF-8");
    }
    if (s->o->system_prompt)
        json_array_append_new(
            messages, json_pack("{s:s, s:s}", "role", "system", "content", s->o->system_prompt));
    json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
    json_t *vars = json_pack("{s:o}", "messages", messages);
    bool ok = render(s, p, job, vars);
    json_decref(vars);
    return ok;
}

static bool take_text(const struct source *s, struct prompt *p, struct offline_job *job,
                      const char *text, size_t bytes)
{
    if (s->o->chat)
        return render_user(s, p, job, text, bytes);
    return encode(s, p, job, text, bytes, true);
}

/* A line's parameters and prompt; false: the job has an error and will not run. */
static bool take_object(const struct source *s, struct prompt *p, struct offline_job *job)
{
    char why[200];
    const json_t *prompt = json_object_get(p->line, "prompt");
    if (!sampling_from_json(&job->params, p->line, why, sizeof why))
        return bad(&job->err, "%s", why);
    job->priority = (int)json_integer_value(json_object_get(p->line, "priority"));
    job->cache_salt = json_string_value(json_object_get(p->line, "cache_salt"));
    if (json_object_get(p->line, "messages"))
        return render(s, p, job, p->line);
    if (json_is_array(prompt))
        return take_ids(p, job, prompt);
    if (!json_is_string(prompt))
        return bad(&job->err, "a line needs \"prompt\" (text or token ids) or \"messages\"");
    p->text = json_string_value(prompt);
    return take_text(s, p, job, p->text, json_string_length(prompt));
}

/* Room for one more, already counted. */
static struct offline_job *grow(struct source *s, struct prompt **prompt)
{
    struct prompt_list *l = s->list;
    if ((l->n & (l->n - 1)) == 0) {
        size_t room = l->n ? (size_t)l->n * 2 : 1;
        l->prompts = xrealloc(l->prompts, room, sizeof *l->prompts);
        l->jobs = xrealloc(l->jobs, room, sizeof *l->jobs);
    }
    *prompt = &l->prompts[l->n];
    **prompt = (struct prompt){0};
    l->jobs[l->n] = (struct offline_job){.params = s->params, .keep = true};
    return &l->jobs[l->n++];
}

static void add_line(struct source *s, const char *line, size_t len, long number)
{
    struct prompt *p;
    if (line[strspn(line, " \t")] != '{') {
        struct offline_job *job = grow(s, &p);
        p->text = xstrdup(line);
        take_text(s, p, job, p->text, len);
        return;
    }
    json_error_t why;
    json_t *object = json_loadb(line, len, JSON_ALLOW_NUL, &why);
    struct offline_job *job = grow(s, &p);
    p->line = object;
    if (object)
        take_object(s, p, job);
    else
        bad(&job->err, "line %ld is not JSON: %s (column %d)", number, why.text, why.column);
}

static bool read_file(struct source *s, const char *path)
{
    bool standard = !path || strcmp(path, "-") == 0, too_long = false, ok = true;
    const char *name = standard ? "standard input" : path;
    FILE *in = standard ? stdin : fopen(path, "rb");
    char *line = NULL;
    size_t capacity = 0, len;
    if (!in)
        return bad(s->err, "%s: %s", path, strerror(errno));
    for (long number = 1; read_line(in, &line, &capacity, MAX_LINE_BYTES, &len, &too_long);
         number++)
        if (strspn(line, " \t") != len)
            add_line(s, line, len, number);
    if (too_long)
        ok = bad(s->err, "%s: a line is longer than 64 MiB", name);
    else if (ferror(in))
        ok = bad(s->err, "%s: %s", name, strerror(errno));
    free(line);
    if (!standard)
        fclose(in);
    return ok;
}

bool prompts_read(struct prompt_list *out, const struct options *o, struct sl_engine *engine,
                  struct sl_err *err)
{
    struct source s = {.o = o, .text = sl_engine_text(engine), .list = out, .err = err};
    *out = (struct prompt_list){0};
    sl_engine_default_params(engine, &s.params);
    if (o->chat)
        s.params.max_tokens = SL_NONE; /* an answer ends by itself */
    sampling_from_options(&s.params, &o->sampling);
    for (int i = 0; i < o->n_args; i++) {
        struct prompt *p;
        struct offline_job *job = grow(&s, &p);
        p->text = o->args[i];
        take_text(&s, p, job, p->text, strlen(p->text));
    }
    if (o->input_file || o->n_args == 0)
        return read_file(&s, o->input_file);
    return true;
}

void prompts_free(struct prompt_list *list)
{
    for (int i = 0; i < list->n; i++) {
        offline_job_fini(&list->jobs[i]);
        json_decref(list->prompts[i].line);
        json_decref(list->prompts[i].result);
        if (list->prompts[i].ours)
            free(list->prompts[i].tokens);
        else
            sl_free(list->prompts[i].tokens);
    }
    free(list->prompts);
    free(list->jobs);
}
