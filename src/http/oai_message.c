/* SPDX-License-Identifier: Apache-2.0 */
#include "http/oai_message.h"

#include "http/http_metrics.h"
#include "http/json_out.h"

#include <string.h>
#include <sys/random.h>

/* ---- counting the thoughts' tokens ---------------------------------------------------------- */

static bool ends_room(struct oai_choice *c, size_t more)
{
    if (c->next_end == c->n_ends)
        c->next_end = c->n_ends = 0;
    if (c->n_ends + more <= c->cap_ends)
        return true;
    size_t cap = c->n_ends + more + c->n_ends / 2 + 16;
    size_t *p = mem_realloc(c->ends, cap, sizeof *p);
    if (!p) {
        c->text.failed = true;
        return false;
    }
    c->ends = p;
    c->cap_ends = cap;
    return true;
}

/* Where each token's text ends: a piece of reasoning asks for those inside it. Tokens without text
 * (parts of a character) count with the one that completes it; the last one, which ends the
 * answer, with none. */
static void note_ends(struct oai_choice *c, const struct sl_output *out)
{
    for (int i = 0; out->token_text_end && i < out->n_tokens; i++) {
        size_t end = out->token_text_end[i];
        c->n_blank++;
        if (end <= c->last_end)
            continue;
        if (!ends_room(c, c->n_blank))
            return;
        for (; c->n_blank; c->n_blank--)
            c->ends[c->n_ends++] = end;
        c->last_end = end;
    }
}

static void count_tokens(struct oai_choice *c, size_t from, size_t to)
{
    while (c->next_end < c->n_ends && c->ends[c->next_end] <= from)
        c->next_end++;
    for (; c->next_end < c->n_ends && c->ends[c->next_end] <= to; c->next_end++)
        c->n_reasoning++;
}

/* ---- tool_calls ----------------------------------------------------------------------------- */

static void put_call_id(struct strbuf *b, bool short_id)
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    char id[33];
    unsigned char raw[9] = {0};
    if (!short_id) {
        oai_random_id(id);
        strbuf_adds(b, "chatcmpl-tool-");
        strbuf_adds(b, id);
        return;
    }
    ssize_t got = getrandom(raw, sizeof raw, 0);
    (void)got;                              /* so few bytes never come in parts */
    for (size_t i = 0; i < sizeof raw; i++) /* what Mistral's templates demand */
        strbuf_addc(b, digits[raw[i] % (sizeof digits - 1)]);
}

static void close_entry(struct oai_choice *c)
{
    if (c->open_call >= 0)
        strbuf_adds(&c->calls, "\"}}");
    c->open_call = -1;
}

static void open_entry(struct oai_choice *c, const struct oai_style *s, int call, const char *name,
                       size_t n)
{
    struct strbuf *b = &c->calls;
    close_entry(c);
    strbuf_adds(b, b->len ? ",{" : "{");
    if (s->stream)
        strbuf_addf(b, "\"index\":%d", call);
    if (name) {
        strbuf_adds(b, s->stream ? ",\"id\":\"" : "\"id\":\"");
        put_call_id(b, s->short_ids);
        strbuf_adds(b, "\",\"type\":\"function\"");
    }
    strbuf_adds(b, ",\"function\":{");
    if (name) {
        strbuf_adds(b, "\"name\":");
        json_put_lossy(b, name, n);
        strbuf_addc(b, ',');
    }
    strbuf_adds(b, "\"arguments\":\"");
    c->open_call = call;
}

static void put_text(struct strbuf *b, const char *text, size_t n)
{
    if (n)
        json_put_escaped(b, text, n);
}

static void take_piece(void *ctx, const struct outparse_piece *piece)
{
    struct oai_choice *c = ctx;
    const struct oai_style *s = c->style;
    bool extra = piece->call > 0 && s->one_call;
    switch (piece->event) {
    case OUT_EV_CONTENT:
        put_text(&c->text, piece->text, piece->bytes);
        break;
    case OUT_EV_REASONING:
        if (s->count_reasoning && piece->raw_end)
            count_tokens(c, piece->raw_end - piece->bytes, piece->raw_end);
        if (!s->hide_reasoning)
            put_text(&c->reasoning, piece->text, piece->bytes);
        break;
    case OUT_EV_CALL:
        c->n_calls++;
        if (!extra)
            open_entry(c, s, piece->call, piece->text, piece->bytes);
        break;
    case OUT_EV_ARGUMENTS:
        if (extra)
            break;
        if (c->open_call != piece->call)
            open_entry(c, s, piece->call, NULL, 0);
        put_text(&c->calls, piece->text, piece->bytes);
        break;
    case OUT_EV_CALL_END:
        break;
    }
}

/* ---- in and out ----------------------------------------------------------------------------- */

void oai_choice_read(struct oai_choice *c, const struct oai_style *s, const struct sl_output *out)
{
    c->style = s;
    if (s->count_reasoning)
        note_ends(c, out);
    if (!s->stream) {
        strbuf_add(&c->raw, out->text, out->text_bytes);
        return;
    }
    if (!c->parser && outparse_create(&c->parser, s->parse, take_piece, c, NULL)) {
        c->text.failed = true;
        return;
    }
    size_t before = c->calls.len;
    outparse_feed(c->parser, out->text, out->text_bytes);
    if (out->finish != SL_RUNNING)
        outparse_finish(c->parser);
    if (s->metrics)
        http_metrics_count_parse(s->metrics, true, c->calls.len > before);
    c->text.failed |= outparse_failed(c->parser);
}

void oai_choice_parse(struct oai_choice *c, const struct oai_style *s)
{
    struct outparse_message m;
    c->style = s;
    if (outparse_whole(&m, s->parse, c->raw.data ? c->raw.data : "", c->raw.len, NULL)) {
        c->text.failed = true;
        return;
    }
    c->has_content = m.has_content;
    c->has_reasoning = m.has_reasoning && !s->hide_reasoning;
    put_text(&c->text, m.content.data, m.content.len);
    if (c->has_reasoning)
        put_text(&c->reasoning, m.reasoning.data, m.reasoning.len);
    for (int i = 0; i < m.n_spans; i++)
        count_tokens(c, m.reasoning_ends[2 * i], m.reasoning_ends[2 * i + 1]);
    for (int i = 0; i < m.n_calls && !(i && s->one_call); i++) {
        const struct outparse_call *call = &m.calls[i];
        open_entry(c, s, i, call->name.data ? call->name.data : "", call->name.len);
        put_text(&c->calls, call->arguments.data, call->arguments.len);
    }
    c->n_calls = m.n_calls;
    if (s->metrics)
        http_metrics_count_parse(s->metrics, false, m.n_calls > 0);
    close_entry(c);
    strbuf_clear(&c->raw);
    outparse_message_fini(&m);
}

bool oai_choice_has_delta(const struct oai_choice *c)
{
    return c->text.len || c->reasoning.len || c->calls.len;
}

static void put_field(struct strbuf *b, bool *any, const char *key, const struct strbuf *text,
                      const char *quotes)
{
    if (!text->len)
        return;
    strbuf_addf(b, "%s\"%s\":%c", *any ? "," : "", key, quotes[0]);
    strbuf_add(b, text->data, text->len);
    strbuf_addc(b, quotes[1]);
    *any = true;
}

void oai_choice_put_delta(struct strbuf *b, struct oai_choice *c)
{
    bool any = false;
    close_entry(c);
    put_field(b, &any, "reasoning", &c->reasoning, "\"\"");
    put_field(b, &any, "content", &c->text, "\"\"");
    put_field(b, &any, "tool_calls", &c->calls, "[]");
}

/* As vLLM: with auto also where the length cut it, with required only where it ended by itself, a
 * named tool never. */
bool oai_choice_called(const struct oai_choice *c)
{
    if (!c->n_calls || !c->style || c->finish == SL_RUNNING || c->finish == SL_ERROR)
        return false;
    return c->style->tools == OAI_TOOLS_AUTO ||
           (c->style->tools == OAI_TOOLS_REQUIRED && c->finish == SL_STOP);
}
