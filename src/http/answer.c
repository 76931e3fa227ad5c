/* SPDX-License-Identifier: Apache-2.0 */
#include "http/answer.h"

#include "base/clock.h"
#include "http/json_out.h"

#include <string.h>

enum { STREAM_BUFFER = 64 << 20, BODY_BUFFER = 512 << 20 };

/* The text is parsed. Tokens of thoughts that are hidden would show in logprobs and ids. */
static void read_message(struct oai_style *s, const struct oai_env *env,
                         const struct oai_request *r)
{
    s->parse = &r->parse;
    s->tools = r->tool_mode;
    s->one_call = !r->parallel_tool_calls;
    s->short_ids = env->tool_parser == OUT_MISTRAL;
    s->hide_reasoning = !r->include_reasoning;
    bool by_parser = r->parse.tool && r->parse.tool != OUT_REQUIRED && r->parse.tool != OUT_NAMED;
    s->metrics = by_parser ? env->metrics : NULL;
    s->count_reasoning = env->reasoning_parser != OUT_REASONING_NONE;
    if (s->hide_reasoning && env->reasoning_parser)
        s->logprobs = s->token_ids = false;
}

bool answer_init(struct answer *a, const struct oai_env *env, struct oai_request *r,
                 struct pieces *pieces, const char *id, const char *fingerprint)
{
    *a = (struct answer){.env = env,
                         .r = r,
                         .created = clock_wall_s(),
                         .fingerprint = fingerprint,
                         .style = {.api = r->api,
                                   .logprobs = r->want_logprobs,
                                   .token_ids = r->return_token_ids,
                                   .as_ids = r->return_tokens_as_token_ids,
                                   .pieces = pieces,
                                   .stream = r->stream}};
    if (r->api == OAI_CHAT && (r->parse.tool || r->parse.reasoning))
        read_message(&a->style, env, r);
    strbuf_init(&a->id, 4096);
    strbuf_init(&a->head, 16384);
    strbuf_adds(&a->id, r->api == OAI_CHAT ? "chatcmpl-" : "cmpl-");
    strbuf_adds(&a->id, id);
    a->model = r->model ? r->model : env->info.served_names[0];
    for (int i = 0; i < env->info.n_served_names; i++) /* the request's own goes with its body */
        if (!strcmp(a->model, env->info.served_names[i]))
            a->model = env->info.served_names[i];
    strbuf_adds(&a->head, "data: {\"id\":");
    json_put_lossy(&a->head, a->id.data, a->id.len);
    strbuf_addf(&a->head, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
                r->api == OAI_CHAT ? "chat.completion.chunk" : "text_completion",
                (long long)a->created);
    json_put_lossy(&a->head, a->model, strlen(a->model));
    strbuf_adds(&a->head, ",\"choices\":[");
    int n = r->n_prompts * r->params.n;
    a->choices = mem_zalloc((size_t)n, sizeof *a->choices);
    if (!a->choices || a->head.failed || a->id.failed)
        return false;
    a->n_choices = n;
    for (int i = 0; i < n; i++)
        oai_choice_init(&a->choices[i], r->stream ? STREAM_BUFFER : BODY_BUFFER);
    return true;
}

void answer_fini(struct answer *a)
{
    for (int i = 0; i < a->n_choices; i++)
        oai_choice_fini(&a->choices[i]);
    mem_free(a->choices);
    a->choices = NULL;
    a->n_choices = 0;
    strbuf_fini(&a->id);
    strbuf_fini(&a->head);
}

bool answer_take(struct answer *a, int prompt, const struct sl_request *req,
                 const struct sl_output *out)
{
    struct oai_choice *c = &a->choices[prompt * a->r->params.n + out->index];
    if (out->finish == SL_ERROR) {
        if (out->error && out->error->code == SL_EDEVICE)
            oai_fail_err(&a->error, out->error);
        else
            oai_fail(&a->error, 500, NULL, NULL, "Internal server error");
        return false;
    }
    if (a->r->api == OAI_COMPLETIONS && a->r->echo && !c->echoed) {
        c->echoed = true;
        oai_choice_add_prompt(c, &a->style, &a->r->prompts[prompt],
                              sl_request_prompt_logprobs(req));
    }
    struct sl_output nothing = *out;
    if (a->r->only_echo) { /* one token was made because the engine must make one */
        nothing.text = "";
        nothing.text_bytes = 0;
        nothing.n_tokens = 0;
        out = &nothing;
    }
    oai_choice_add(c, &a->style, out);
    a->n_finished += out->finish != SL_RUNNING;
    return !oai_choice_failed(c) ||
           oai_fail(&a->error, 500, NULL, NULL, "The answer is too large to be held in memory");
}

/* ---- usage */

struct totals {
    int64_t prompt, completion, reasoning;
    int cached; /* of the last prompt, as vLLM reports it */
};

static struct totals count_usage(const struct answer *a, struct sl_request *const *reqs)
{
    struct totals t = {0};
    for (int i = 0; i < a->r->n_prompts; i++) {
        struct sl_usage u;
        sl_request_usage(reqs[i], &u);
        t.prompt += a->r->prompts[i].n_tokens;
        t.cached = u.cached_tokens;
    }
    for (int i = 0; i < a->n_choices; i++)
        t.completion += a->choices[i].n_tokens;
    for (int i = 0; i < a->n_choices; i++)
        t.reasoning += a->choices[i].n_reasoning;
    return t;
}

static void put_counts(struct strbuf *b, int64_t prompt, int64_t completion)
{
    strbuf_adds(b, "{\"prompt_tokens\":");
    json_put_int(b, prompt);
    strbuf_adds(b, ",\"total_tokens\":");
    json_put_int(b, prompt + completion);
    strbuf_adds(b, ",\"completion_tokens\":");
    json_put_int(b, completion);
}

/* Only where a reasoning parser is set. */
static void put_details(const struct answer *a, struct strbuf *b, int64_t reasoning)
{
    if (a->env->reasoning_parser && a->r->api == OAI_CHAT)
        strbuf_addf(b, ",\"completion_tokens_details\":{\"reasoning_tokens\":%lld}",
                    (long long)reasoning);
}

static void put_usage(const struct answer *a, struct strbuf *b, struct totals t, bool nulls)
{
    put_counts(b, t.prompt, t.completion);
    if (a->env->cfg->enable_prompt_tokens_details)
        strbuf_addf(b, ",\"prompt_tokens_details\":{\"cached_tokens\":%d}", t.cached);
    else if (nulls)
        strbuf_adds(b, ",\"prompt_tokens_details\":null");
    put_details(a, b, t.reasoning);
    strbuf_addc(b, '}');
}

/* ---- streams */

static void begin_event(const struct answer *a, struct strbuf *b, int index)
{
    strbuf_add(b, a->head.data, a->head.len);
    strbuf_adds(b, "{\"index\":");
    json_put_int(b, index);
}

/* After the choice's object: what belongs to the event itself. */
static void end_event(const struct answer *a, struct strbuf *b, int index, bool last)
{
    const struct oai_choice *c = &a->choices[index];
    if (last && a->fingerprint && !a->r->include_usage) {
        strbuf_adds(b, ",\"system_fingerprint\":");
        json_put_cstr(b, a->fingerprint);
    }
    if (a->r->continuous_usage) {
        strbuf_adds(b, ",\"usage\":");
        put_counts(b, a->r->prompts[index / a->r->params.n].n_tokens, c->n_tokens);
        put_details(a, b, c->n_reasoning);
        strbuf_addc(b, '}');
    }
    strbuf_adds(b, "}\n\n");
}

/* Chat: the first events name the role, one for each choice; then what `echo` repeats. */
static void open_chat(struct answer *a, struct strbuf *b)
{
    const struct oai_request *r = a->r;
    for (int i = 0; i < a->n_choices; i++) {
        begin_event(a, b, i);
        strbuf_adds(b, ",\"delta\":{\"role\":");
        json_put_lossy(b, r->role, strlen(r->role));
        strbuf_adds(b, ",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]");
        strbuf_adds(b, ",\"prompt_token_ids\":");
        if (r->return_token_ids)
            put_token_list(b, r->prompts[0].tokens, r->prompts[0].n_tokens);
        else
            strbuf_adds(b, "null");
        if (r->return_prompt_text) {
            strbuf_adds(b, ",\"prompt_text\":");
            json_put_lossy(b, r->rendered, r->rendered_bytes);
        }
        end_event(a, b, i, false);
    }
    for (int i = 0; r->echo_text && *r->echo_text && i < a->n_choices; i++) {
        begin_event(a, b, i);
        strbuf_adds(b, ",\"delta\":{\"content\":");
        json_put_cstr(b, r->echo_text);
        strbuf_adds(b, "},\"logprobs\":null,\"finish_reason\":null}]");
        end_event(a, b, i, false);
    }
    a->opened = true;
}

static void put_text(struct strbuf *b, const struct oai_choice *c)
{
    strbuf_addc(b, '"');
    strbuf_add(b, c->text.data, c->text.len);
    strbuf_addc(b, '"');
}

static void chat_event(struct answer *a, int index, struct strbuf *b)
{
    struct oai_choice *c = &a->choices[index];
    bool last = c->finish != SL_RUNNING;
    if (!a->opened)
        open_chat(a, b);
    begin_event(a, b, index);
    strbuf_adds(b, ",\"delta\":{");
    if (a->style.parse) {
        oai_choice_put_delta(b, c);
    } else {
        strbuf_adds(b, "\"content\":");
        put_text(b, c);
    }
    strbuf_adds(b, "},\"logprobs\":");
    oai_choice_put_logprobs(b, c, &a->style);
    strbuf_adds(b, ",\"finish_reason\":");
    oai_choice_put_finish(b, c);
    if (last) {
        strbuf_adds(b, ",\"stop_reason\":");
        oai_choice_put_stop_reason(b, c);
    }
    strbuf_adds(b, ",\"token_ids\":");
    oai_choice_put_ids(b, c, &a->style);
    strbuf_adds(b, "}]");
    end_event(a, b, index, last);
}

static void completion_event(struct answer *a, int index, struct strbuf *b)
{
    struct oai_choice *c = &a->choices[index];
    const struct oai_prompt *p = &a->r->prompts[index / a->r->params.n];
    begin_event(a, b, index);
    strbuf_adds(b, ",\"text\":");
    put_text(b, c);
    strbuf_adds(b, ",\"logprobs\":");
    oai_choice_put_logprobs(b, c, &a->style);
    strbuf_adds(b, ",\"finish_reason\":");
    oai_choice_put_finish(b, c);
    strbuf_adds(b, ",\"stop_reason\":");
    oai_choice_put_stop_reason(b, c);
    strbuf_adds(b, ",\"prompt_token_ids\":");
    if (a->r->return_token_ids && !c->started)
        put_token_list(b, p->tokens, p->n_tokens);
    else
        strbuf_adds(b, "null");
    strbuf_adds(b, ",\"token_ids\":");
    oai_choice_put_ids(b, c, &a->style);
    strbuf_adds(b, "}]");
    end_event(a, b, index, c->finish != SL_RUNNING);
}

void answer_event(struct answer *a, int index, struct sl_request *const *reqs, struct strbuf *out)
{
    (void)reqs;
    struct oai_choice *c = &a->choices[index];
    bool last = c->finish != SL_RUNNING;
    if (c->ended || (!last && !c->n_pending && !c->text.len))
        return;
    if (!last && a->style.parse && !oai_choice_has_delta(c)) { /* a marker may have begun */
        if (!a->opened)
            open_chat(a, out);
        return;
    }
    if (a->r->api == OAI_CHAT)
        chat_event(a, index, out);
    else
        completion_event(a, index, out);
    c->started = true;
    c->ended = last;
    oai_choice_clear(c);
}

void answer_end(struct answer *a, struct sl_request *const *reqs, struct strbuf *out)
{
    if (a->r->include_usage) {
        strbuf_add(out, a->head.data, a->head.len);
        strbuf_adds(out, "],\"usage\":");
        put_usage(a, out, count_usage(a, reqs), false);
        if (a->fingerprint) {
            strbuf_adds(out, ",\"system_fingerprint\":");
            json_put_cstr(out, a->fingerprint);
        }
        strbuf_adds(out, "}\n\n");
    }
    strbuf_adds(out, "data: [DONE]\n\n");
}

void answer_error_event(const struct oai_error *e, struct strbuf *out)
{
    strbuf_adds(out, "data: ");
    oai_error_json(out, e);
    strbuf_adds(out, "\n\ndata: [DONE]\n\n");
}

/* ---- one body */

/* What the parsers made of the text; echo's part is in front of the content. */
static void put_parsed(const struct answer *a, struct oai_choice *c, struct strbuf *b)
{
    const char *echo = a->r->echo_text;
    oai_choice_parse(c, &a->style);
    b->failed |= c->text.failed || c->reasoning.failed || c->calls.failed;
    strbuf_adds(b, ",\"content\":");
    if (c->has_content || echo) {
        strbuf_addc(b, '"');
        if (echo)
            json_put_escaped(b, echo, strlen(echo));
        strbuf_add(b, c->text.data, c->text.len);
        strbuf_addc(b, '"');
    } else {
        strbuf_adds(b, "null");
    }
    strbuf_adds(b, ",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,"
                   "\"reasoning\":");
    if (c->has_reasoning) {
        strbuf_addc(b, '"');
        strbuf_add(b, c->reasoning.data, c->reasoning.len);
        strbuf_addc(b, '"');
    } else {
        strbuf_adds(b, "null");
    }
    if (c->calls.len) {
        strbuf_adds(b, ",\"tool_calls\":[");
        strbuf_add(b, c->calls.data, c->calls.len);
        strbuf_addc(b, ']');
    }
}

static void put_plain(const struct answer *a, const struct oai_choice *c, struct strbuf *b)
{
    strbuf_adds(b, ",\"content\":\"");
    if (a->r->echo_text)
        json_put_escaped(b, a->r->echo_text, strlen(a->r->echo_text));
    strbuf_add(b, c->text.data, c->text.len);
    strbuf_adds(b, "\",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,"
                   "\"reasoning\":null");
}

static void put_chat_choice(const struct answer *a, int i, struct strbuf *b)
{
    struct oai_choice *c = &a->choices[i];
    strbuf_addf(b, "{\"index\":%d,\"message\":{\"role\":", i);
    json_put_lossy(b, a->r->role, strlen(a->r->role));
    if (a->style.parse)
        put_parsed(a, c, b);
    else
        put_plain(a, c, b);
    strbuf_adds(b, "},\"logprobs\":");
    oai_choice_put_logprobs(b, c, &a->style);
    strbuf_adds(b, ",\"finish_reason\":");
    oai_choice_put_finish(b, c);
    strbuf_adds(b, ",\"stop_reason\":");
    oai_choice_put_stop_reason(b, c);
    strbuf_adds(b, ",\"token_ids\":");
    oai_choice_put_ids(b, c, &a->style);
    strbuf_addc(b, '}');
}

static void put_prompt_ids(const struct answer *a, const struct oai_prompt *p, struct strbuf *b)
{
    strbuf_adds(b, ",\"prompt_token_ids\":");
    if (a->r->return_token_ids)
        put_token_list(b, p->tokens, p->n_tokens);
    else
        strbuf_adds(b, "null");
}

static void put_prompt_lps(const struct answer *a, const struct sl_request *req,
                           const struct oai_prompt *p, struct strbuf *b)
{
    strbuf_adds(b, ",\"prompt_logprobs\":");
    put_prompt_logprobs(b, sl_request_prompt_logprobs(req), p->n_tokens, a->style.pieces);
}

static void put_completion_choice(const struct answer *a, int i, struct sl_request *const *reqs,
                                  struct strbuf *b)
{
    const struct oai_choice *c = &a->choices[i];
    int prompt = i / a->r->params.n;
    strbuf_addf(b, "{\"index\":%d,\"text\":", i);
    put_text(b, c);
    strbuf_adds(b, ",\"logprobs\":");
    oai_choice_put_logprobs(b, c, &a->style);
    strbuf_adds(b, ",\"finish_reason\":");
    oai_choice_put_finish(b, c);
    strbuf_adds(b, ",\"stop_reason\":");
    oai_choice_put_stop_reason(b, c);
    strbuf_adds(b, ",\"token_ids\":");
    oai_choice_put_ids(b, c, &a->style);
    put_prompt_lps(a, reqs[prompt], &a->r->prompts[prompt], b);
    put_prompt_ids(a, &a->r->prompts[prompt], b);
    strbuf_addc(b, '}');
}

void answer_body(struct answer *a, struct sl_request *const *reqs, struct strbuf *b)
{
    bool chat = a->r->api == OAI_CHAT;
    strbuf_adds(b, "{\"id\":");
    json_put_lossy(b, a->id.data, a->id.len);
    strbuf_addf(b, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
                chat ? "chat.completion" : "text_completion", (long long)a->created);
    json_put_lossy(b, a->model, strlen(a->model));
    strbuf_adds(b, ",\"choices\":[");
    for (int i = 0; i < a->n_choices; i++) {
        if (i)
            strbuf_addc(b, ',');
        if (chat)
            put_chat_choice(a, i, b);
        else
            put_completion_choice(a, i, reqs, b);
    }
    strbuf_adds(b, "],\"service_tier\":null,\"system_fingerprint\":");
    json_put_cstr(b, a->fingerprint);
    strbuf_adds(b, ",\"usage\":");
    put_usage(a, b, count_usage(a, reqs), true);
    if (chat) {
        put_prompt_lps(a, reqs[0], &a->r->prompts[0], b);
        put_prompt_ids(a, &a->r->prompts[0], b);
        strbuf_adds(b, ",\"prompt_text\":");
        if (a->r->return_prompt_text)
            json_put_lossy(b, a->r->rendered, a->r->rendered_bytes);
        else
            json_put_cstr(b, NULL);
    }
    strbuf_adds(b, ",\"kv_transfer_params\":null}");
}
