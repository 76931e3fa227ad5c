/* SPDX-License-Identifier: Apache-2.0 */
#include "http/oai_choice.h"

#include "http/json_out.h"
#include "http/oai_message.h"

#include <stdio.h>
#include <string.h>

void oai_choice_init(struct oai_choice *c, size_t max)
{
    *c = (struct oai_choice){0};
    struct strbuf *const all[] = {&c->text,    &c->ids, &c->content,   &c->values, &c->top,
                                  &c->offsets, &c->raw, &c->reasoning, &c->calls};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        strbuf_init(all[i], max);
    c->open_call = -1;
}

void oai_choice_fini(struct oai_choice *c)
{
    strbuf_fini(&c->text);
    strbuf_fini(&c->ids);
    strbuf_fini(&c->content);
    strbuf_fini(&c->values);
    strbuf_fini(&c->top);
    strbuf_fini(&c->offsets);
    strbuf_fini(&c->raw);
    strbuf_fini(&c->reasoning);
    strbuf_fini(&c->calls);
    outparse_destroy(&c->parser);
    mem_free(c->ends);
    mem_free(c->stop_string);
    c->stop_string = NULL;
}

void oai_choice_clear(struct oai_choice *c)
{
    strbuf_clear(&c->text);
    strbuf_clear(&c->ids);
    strbuf_clear(&c->content);
    strbuf_clear(&c->values);
    strbuf_clear(&c->top);
    strbuf_clear(&c->offsets);
    strbuf_clear(&c->reasoning);
    strbuf_clear(&c->calls);
    c->open_call = -1;
    c->n_pending = 0;
}

size_t oai_choice_pending(const struct oai_choice *c)
{
    return c->text.len + c->ids.len + c->content.len + c->values.len + c->top.len + c->offsets.len +
           c->raw.len + c->reasoning.len + c->calls.len;
}

bool oai_choice_failed(const struct oai_choice *c)
{
    return c->text.failed || c->ids.failed || c->content.failed || c->values.failed ||
           c->top.failed || c->offsets.failed || c->raw.failed || c->reasoning.failed ||
           c->calls.failed;
}

static void separate(struct strbuf *b)
{
    if (b->len)
        strbuf_addc(b, ',');
}

/* The token's name between quotes; returns its length in code points. */
static size_t put_token(struct strbuf *b, const struct oai_style *s, int32_t token)
{
    if (s->as_ids) {
        char name[32];
        int n = snprintf(name, sizeof name, "token_id:%d", token);
        json_put_str(b, name, (size_t)n);
        return (size_t)n;
    }
    const struct piece *p = pieces_get(s->pieces, token);
    json_put_str(b, p->text, p->bytes);
    return p->chars;
}

static void put_bytes(struct strbuf *b, const struct oai_style *s, int32_t token)
{
    char name[32];
    size_t n;
    const char *text = pieces_bytes(s->pieces, token, &n);
    if (s->as_ids) {
        n = (size_t)snprintf(name, sizeof name, "token_id:%d", token);
        text = name;
    }
    strbuf_addc(b, '[');
    for (size_t i = 0; i < n; i++) {
        if (i)
            strbuf_addc(b, ',');
        json_put_int(b, (unsigned char)text[i]);
    }
    strbuf_addc(b, ']');
}

static void put_chat_entry(struct strbuf *b, const struct oai_style *s, const struct sl_logprob *lp)
{
    strbuf_adds(b, "{\"token\":");
    put_token(b, s, lp->token);
    strbuf_adds(b, ",\"logprob\":");
    json_put_logprob(b, lp->logprob);
    strbuf_adds(b, ",\"bytes\":");
    put_bytes(b, s, lp->token);
}

/* entry[0] is the chosen token; what follows is what top_logprobs shows, in order. */
static void add_chat(struct oai_choice *c, const struct oai_style *s,
                     const struct sl_token_logprobs *lp)
{
    struct strbuf *b = &c->content;
    separate(b);
    put_chat_entry(b, s, &lp->entry[0]);
    strbuf_adds(b, ",\"top_logprobs\":[");
    for (int i = 1; i < lp->n; i++) {
        if (i > 1)
            strbuf_addc(b, ',');
        put_chat_entry(b, s, &lp->entry[i]);
        strbuf_addc(b, '}');
    }
    strbuf_adds(b, "]}");
}

static bool shown_before(const struct oai_style *s, const struct sl_token_logprobs *lp, int i)
{
    if (lp->entry[i].token == lp->entry[0].token && i)
        return true;
    const struct piece *p = pieces_get(s->pieces, lp->entry[i].token);
    for (int k = 0; k < i && i < 64; k++) { /* whole vocabularies are not worth the squares */
        const struct piece *q = pieces_get(s->pieces, lp->entry[k].token);
        if (lp->entry[k].token == lp->entry[i].token ||
            (!s->as_ids && p->bytes == q->bytes && !memcmp(p->text, q->text, p->bytes)))
            return true;
    }
    return false;
}

/* Keys are token texts, so several tokens with one text (parts of characters) share a key: the
 * first, the most probable, has it. */
static void put_top_map(struct strbuf *b, const struct oai_style *s,
                        const struct sl_token_logprobs *lp)
{
    strbuf_addc(b, '{');
    for (int i = 0; i < lp->n; i++) {
        if (shown_before(s, lp, i))
            continue;
        if (i)
            strbuf_addc(b, ',');
        put_token(b, s, lp->entry[i].token);
        strbuf_addc(b, ':');
        json_put_logprob(b, lp->entry[i].logprob);
    }
    strbuf_addc(b, '}');
}

static void add_completion(struct oai_choice *c, const struct oai_style *s, int32_t token,
                           const struct sl_token_logprobs *lp)
{
    separate(&c->offsets);
    json_put_int(&c->offsets, (int64_t)c->chars);
    separate(&c->content);
    c->chars += put_token(&c->content, s, token);
    separate(&c->values);
    separate(&c->top);
    if (lp && lp->n) {
        json_put_logprob(&c->values, lp->entry[0].logprob);
        put_top_map(&c->top, s, lp);
    } else { /* the first prompt token */
        strbuf_adds(&c->values, "null");
        strbuf_adds(&c->top, "null");
    }
}

static void add_tokens(struct oai_choice *c, const struct oai_style *s, const int32_t *tokens,
                       int n, const struct sl_token_logprobs *lps)
{
    for (int i = 0; i < n && s->logprobs; i++) {
        if (s->api == OAI_COMPLETIONS)
            add_completion(c, s, tokens[i], lps ? &lps[i] : NULL);
        else if (lps && lps[i].n)
            add_chat(c, s, &lps[i]);
    }
}

void oai_choice_add(struct oai_choice *c, const struct oai_style *s, const struct sl_output *out)
{
    if (s->parse)
        oai_choice_read(c, s, out);
    else
        json_put_escaped(&c->text, out->text, out->text_bytes);
    add_tokens(c, s, out->tokens, out->n_tokens, out->logprobs);
    for (int i = 0; i < out->n_tokens && s->token_ids; i++) {
        separate(&c->ids);
        json_put_int(&c->ids, out->tokens[i]);
    }
    c->n_tokens += out->n_tokens;
    c->n_pending += out->n_tokens;
    if (out->finish == SL_RUNNING)
        return;
    c->finish = out->finish;
    c->stop_kind = out->stop_kind;
    c->stop_token = out->stop_token;
    if (out->stop_kind == SL_STOP_STRING)
        c->stop_string = mem_strdup(out->stop_string);
}

void oai_choice_add_prompt(struct oai_choice *c, const struct oai_style *s,
                           const struct oai_prompt *p, const struct sl_token_logprobs *lps)
{
    json_put_escaped(&c->text, p->text, p->bytes);
    add_tokens(c, s, p->tokens, p->n_tokens, lps);
}

void oai_choice_put_logprobs(struct strbuf *b, const struct oai_choice *c,
                             const struct oai_style *s)
{
    if (!s->logprobs) {
        strbuf_add(b, "null", 4);
        return;
    }
    if (s->api == OAI_CHAT) {
        strbuf_adds(b, "{\"content\":[");
        strbuf_add(b, c->content.data, c->content.len);
        strbuf_adds(b, "]}");
        return;
    }
    strbuf_adds(b, "{\"text_offset\":[");
    strbuf_add(b, c->offsets.data, c->offsets.len);
    strbuf_adds(b, "],\"token_logprobs\":[");
    strbuf_add(b, c->values.data, c->values.len);
    strbuf_adds(b, "],\"tokens\":[");
    strbuf_add(b, c->content.data, c->content.len);
    strbuf_adds(b, "],\"top_logprobs\":[");
    strbuf_add(b, c->top.data, c->top.len);
    strbuf_adds(b, "]}");
}

void oai_choice_put_ids(struct strbuf *b, const struct oai_choice *c, const struct oai_style *s)
{
    if (!s->token_ids) {
        strbuf_add(b, "null", 4);
        return;
    }
    strbuf_addc(b, '[');
    strbuf_add(b, c->ids.data, c->ids.len);
    strbuf_addc(b, ']');
}

void oai_choice_put_finish(struct strbuf *b, const struct oai_choice *c)
{
    static const char *const words[] = {
        [SL_RUNNING] = NULL,  [SL_STOP] = "stop",   [SL_LENGTH] = "length",
        [SL_ABORT] = "abort", [SL_ERROR] = "error", [SL_REPETITION] = "repetition",
    };
    json_put_cstr(b, oai_choice_called(c) ? "tool_calls" : words[c->finish]);
}

void oai_choice_put_stop_reason(struct strbuf *b, const struct oai_choice *c)
{
    if (c->finish == SL_REPETITION)
        json_put_cstr(b, "repetition_detected");
    else if (c->stop_kind == SL_STOP_TOKEN)
        json_put_int(b, c->stop_token);
    else
        json_put_cstr(b, c->stop_kind == SL_STOP_STRING ? c->stop_string : NULL);
}

static void put_prompt_entry(struct strbuf *b, const struct sl_logprob *lp, struct pieces *pieces)
{
    const struct piece *p = pieces_get(pieces, lp->token);
    strbuf_addf(b, "\"%d\":{\"logprob\":", lp->token);
    json_put_logprob(b, lp->logprob);
    strbuf_addf(b, ",\"rank\":%d,\"decoded_token\":", lp->rank);
    json_put_str(b, p->text, p->bytes);
    strbuf_addc(b, '}');
}

void put_prompt_logprobs(struct strbuf *b, const struct sl_token_logprobs *lps, int n,
                         struct pieces *pieces)
{
    if (!lps) {
        strbuf_add(b, "null", 4);
        return;
    }
    strbuf_addc(b, '[');
    for (int i = 0; i < n; i++) {
        if (i)
            strbuf_addc(b, ',');
        if (!lps[i].n) {
            strbuf_add(b, "null", 4);
            continue;
        }
        strbuf_addc(b, '{');
        for (int k = 0; k < lps[i].n; k++) {
            if (k && lps[i].entry[k].token == lps[i].entry[0].token)
                continue;
            if (k)
                strbuf_addc(b, ',');
            put_prompt_entry(b, &lps[i].entry[k], pieces);
        }
        strbuf_addc(b, '}');
    }
    strbuf_addc(b, ']');
}

void put_token_list(struct strbuf *b, const int32_t *tokens, int n)
{
    strbuf_addc(b, '[');
    for (int i = 0; i < n; i++) {
        if (i)
            strbuf_addc(b, ',');
        json_put_int(b, tokens[i]);
    }
    strbuf_addc(b, ']');
}
