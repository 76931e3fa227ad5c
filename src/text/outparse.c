/* SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include "base/mem.h"

#include <string.h>

/* ---- names ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum out_tool kind;
} tools[] = {
    {"deepseek_v3", OUT_DEEPSEEK_V3}, {"granite", OUT_GRANITE},       {"hermes", OUT_HERMES},
    {"llama3_json", OUT_LLAMA3_JSON}, {"mistral", OUT_MISTRAL},       {"openai", OUT_HARMONY},
    {"pythonic", OUT_PYTHONIC},       {"qwen3_coder", OUT_QWEN3_XML}, {"qwen3_xml", OUT_QWEN3_XML},
};
static const struct {
    const char *name;
    enum out_reasoning kind;
} thoughts[] = {
    {"deepseek_r1", OUT_DEEPSEEK_R1},
    {"granite", OUT_GRANITE_THOUGHTS},
    {"openai_gptoss", OUT_GPTOSS},
    {"qwen3", OUT_QWEN3},
};
enum {
    N_TOOLS = sizeof tools / sizeof tools[0],
    N_THOUGHTS = sizeof thoughts / sizeof thoughts[0]
};

bool outparse_tool_named(const char *name, enum out_tool *out)
{
    for (int i = 0; i < N_TOOLS; i++) {
        if (!strcmp(name, tools[i].name)) {
            *out = tools[i].kind;
            return true;
        }
    }
    return false;
}

bool outparse_reasoning_named(const char *name, enum out_reasoning *out)
{
    for (int i = 0; i < N_THOUGHTS; i++) {
        if (!strcmp(name, thoughts[i].name)) {
            *out = thoughts[i].kind;
            return true;
        }
    }
    return false;
}

const char *outparse_tool_name(int i)
{
    return i >= 0 && i < N_TOOLS ? tools[i].name : NULL;
}

const char *outparse_reasoning_name(int i)
{
    return i >= 0 && i < N_THOUGHTS ? thoughts[i].name : NULL;
}

const char *outparse_reasoning_end(enum out_reasoning kind)
{
    switch (kind) {
    case OUT_DEEPSEEK_R1:
    case OUT_QWEN3:
        return "</think>";
    case OUT_GPTOSS:
        return "<|channel|>final<|message|>";
    default:
        return NULL;
    }
}

/* ---- what the stages share ------------------------------------------------------------------ */

size_t stage_end(const struct stage *s)
{
    return s->base + s->in.len;
}

const char *stage_text(const struct stage *s, size_t pos)
{
    return s->in.data ? s->in.data + (pos - s->base) : "";
}

bool out_is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

size_t stage_skip_spaces(const struct stage *s, size_t pos)
{
    while (pos < stage_end(s) && out_is_space(*stage_text(s, pos)))
        pos++;
    return pos;
}

int stage_begins(const struct stage *s, size_t pos, bool eof, const char *marker)
{
    size_t n = strlen(marker), have = stage_end(s) - pos;
    if (memcmp(stage_text(s, pos), marker, have < n ? have : n))
        return 0;
    return have >= n ? 1 : eof ? 0 : -1;
}

size_t stage_seek(const struct stage *s, size_t pos, bool eof, const char *const *markers, int n,
                  int *which)
{
    for (; pos < stage_end(s); pos++) {
        char first = *stage_text(s, pos);
        bool may = false;
        for (int i = 0; i < n; i++) {
            if (first != markers[i][0])
                continue;
            int is = stage_begins(s, pos, eof, markers[i]);
            if (is > 0) {
                *which = i;
                return pos;
            }
            may |= is < 0;
        }
        if (may)
            break;
    }
    *which = -1;
    return pos;
}

static void send(struct outparse *p, enum out_event event, const char *text, size_t n, size_t raw)
{
    struct outparse_piece piece = {
        .event = event, .call = p->n_calls - 1, .text = text, .bytes = n, .raw_end = raw};
    p->fn(p->ctx, &piece);
}

void out_reasoning(struct outparse *p, const struct stage *s, size_t from, size_t to)
{
    if (to > from)
        send(p, OUT_EV_REASONING, stage_text(s, from), to - from, to);
}

void out_to_tools(struct outparse *p, const char *text, size_t n)
{
    if (p->all)
        strbuf_add(p->all, text, n);
    strbuf_add(&p->tools.in, text, n);
}

void out_plain(struct outparse *p, const char *text, size_t n)
{
    if (n)
        send(p, OUT_EV_CONTENT, text, n, 0);
    p->has_content |= n > 0;
}

void out_joint(struct outparse *p, bool reasoning)
{
    send(p, reasoning ? OUT_EV_REASONING : OUT_EV_CONTENT, "\n", 1, 0);
}

void out_content(struct outparse *p, const char *text, size_t n)
{
    size_t kept = n; /* whitespace at the end waits */
    while (kept && out_is_space(text[kept - 1]))
        kept--;
    if (kept) {
        if (p->spaces.len)
            send(p, OUT_EV_CONTENT, p->spaces.data, p->spaces.len, 0);
        strbuf_clear(&p->spaces);
        send(p, OUT_EV_CONTENT, text, kept, 0);
        p->has_content = true;
    }
    strbuf_add(&p->spaces, text + kept, n - kept);
}

void out_content_to(struct outparse *p, struct stage *s, size_t to)
{
    out_content(p, stage_text(s, s->at), to - s->at);
    s->at = to;
}

void out_call(struct outparse *p, const char *name, size_t n, bool trim)
{
    if (p->spaces.len && p->has_content && !trim && !p->n_calls)
        send(p, OUT_EV_CONTENT, p->spaces.data, p->spaces.len, 0);
    strbuf_clear(&p->spaces);
    p->n_calls++;
    p->call_open = true;
    send(p, OUT_EV_CALL, name, n, 0);
}

void out_arguments(struct outparse *p, const char *text, size_t n)
{
    if (n)
        send(p, OUT_EV_ARGUMENTS, text, n, 0);
}

void out_call_end(struct outparse *p)
{
    if (p->call_open)
        send(p, OUT_EV_CALL_END, "", 0, 0);
    p->call_open = false;
}

bool out_call_broken(struct outparse *p, struct stage *s, const char *end, int after)
{
    p->broken = true;
    p->raw_end = end;
    p->after_raw = after;
    p->raw_mute = !p->call.args_open;
    s->state = OUT_STATE_RAW;
    return true;
}

bool out_give_up(struct outparse *p, struct stage *s)
{
    p->broken |= p->n_calls > 0;
    p->took = false;
    s->state = OUT_STATE_PASS;
    return true;
}

/* A call that is not JSON after all: its text goes on as arguments, up to what ends it. */
static bool raw_step(struct outparse *p, struct stage *s)
{
    int which = -1;
    size_t to = p->raw_end ? stage_seek(s, s->at, p->eof, &p->raw_end, 1, &which) : stage_end(s);
    bool moved = to > s->at;
    if (!p->raw_mute)
        out_arguments(p, stage_text(s, s->at), to - s->at);
    s->at = to;
    if (which < 0)
        return moved;
    out_call_end(p);
    s->state = p->after_raw;
    return true;
}

bool out_step_common(struct outparse *p, struct stage *s)
{
    bool any = s->at < stage_end(s);
    if (s->state == OUT_STATE_RAW)
        return raw_step(p, s);
    if (s->state == OUT_STATE_PASS)
        out_content_to(p, s, stage_end(s));
    s->at = stage_end(s);
    return any;
}

/* ---- the stages, one after the other -------------------------------------------------------- */

static bool plain_step(struct outparse *p, struct stage *s)
{
    if (s->at == stage_end(s))
        return false;
    out_plain(p, stage_text(s, s->at), stage_end(s) - s->at);
    s->at = stage_end(s);
    return true;
}

static bool tools_step(struct outparse *p, struct stage *s)
{
    if (s->state >= OUT_STATE_PASS)
        return out_step_common(p, s);
    switch (p->spec.tool) {
    case OUT_HERMES:
        return hermes_step(p, s);
    case OUT_LLAMA3_JSON:
        return llama3_step(p, s);
    case OUT_MISTRAL:
        return mistral_step(p, s);
    case OUT_PYTHONIC:
        return pythonic_step(p, s);
    case OUT_GRANITE:
    case OUT_REQUIRED:
        return array_step(p, s);
    case OUT_DEEPSEEK_V3:
        return deepseek_step(p, s);
    case OUT_QWEN3_XML:
        return xml_step(p, s);
    case OUT_HARMONY:
        return p->spec.reasoning == OUT_GPTOSS ? plain_step(p, s) : harmony_step(p, s);
    case OUT_NAMED:
        return named_step(p, s);
    case OUT_TOOL_NONE:
        break;
    }
    return plain_step(p, s);
}

static bool reasoning_step(struct outparse *p, struct stage *s)
{
    if (p->spec.reasoning == OUT_GPTOSS)
        return harmony_step(p, s);
    return think_step(p, s);
}

/* What is decided goes. */
static void drop_decided(struct stage *s)
{
    strbuf_drop_front(&s->in, s->at - s->base);
    s->base = s->at;
}

static void run(struct outparse *p)
{
    if (p->spec.reasoning) {
        while (!p->failed && reasoning_step(p, &p->think))
            ;
        drop_decided(&p->think);
    }
    while (!p->failed && tools_step(p, &p->tools))
        ;
    drop_decided(&p->tools);
    p->failed |= p->think.in.failed || p->tools.in.failed || p->spaces.failed ||
                 p->call.name.failed || p->function.failed || (p->all && p->all->failed);
}

static void take(struct outparse *p, const char *text, size_t n)
{
    if (p->spec.reasoning)
        strbuf_add(&p->think.in, text, n);
    else
        out_to_tools(p, text, n);
}

/* Bytes at the end that begin a character and do not complete it. */
static size_t open_character(const char *text, size_t n)
{
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        unsigned char c = (unsigned char)text[n - k];
        if (c < 0x80)
            return 0;
        if (c >= 0xc0)
            return k < (c >= 0xf0 ? 4u : c >= 0xe0 ? 3u : 2u) ? k : 0;
    }
    return 0;
}

void outparse_feed(struct outparse *p, const char *text, size_t bytes)
{
    if (!bytes || p->failed)
        return;
    while (p->n_tail && bytes) { /* complete the character of the piece before */
        p->tail[p->n_tail++] = *text++;
        bytes--;
        if (p->n_tail == sizeof p->tail || !open_character(p->tail, p->n_tail)) {
            take(p, p->tail, p->n_tail);
            p->n_tail = 0;
        }
    }
    size_t open = p->n_tail ? 0 : open_character(text, bytes);
    take(p, text, bytes - open);
    for (size_t i = 0; i < open; i++)
        p->tail[p->n_tail++] = text[bytes - open + i];
    run(p);
}

void outparse_finish(struct outparse *p)
{
    if (p->eof)
        return;
    take(p, p->tail, p->n_tail);
    p->n_tail = 0;
    if (p->spec.reasoning) { /* what the first stage gives up is not the end for the second */
        p->eof = true;
        while (!p->failed && reasoning_step(p, &p->think))
            ;
        drop_decided(&p->think);
    }
    p->eof = true;
    run(p);
    out_call_end(p);
    if (!p->n_calls && p->spaces.len && !p->took)
        send(p, OUT_EV_CONTENT, p->spaces.data, p->spaces.len, 0);
    strbuf_clear(&p->spaces);
}

int outparse_calls(const struct outparse *p)
{
    return p->n_calls;
}

bool outparse_failed(const struct outparse *p)
{
    return p->failed;
}

/* ---- life ----------------------------------------------------------------------------------- */

enum sl_status outparse_create(struct outparse **out, const struct outparse_spec *spec,
                               outparse_fn fn, void *ctx, struct sl_err *err)
{
    struct outparse *p = mem_zalloc(1, sizeof *p);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "no memory to parse an answer");
    p->spec = *spec;
    p->fn = fn;
    p->ctx = ctx;
    p->content_is_held = spec->tool == OUT_DEEPSEEK_V3;
    *out = p;
    return SL_OK;
}

void outparse_destroy(struct outparse **pp)
{
    struct outparse *p = *pp;
    *pp = NULL;
    if (!p)
        return;
    strbuf_fini(&p->think.in);
    strbuf_fini(&p->tools.in);
    strbuf_fini(&p->spaces);
    strbuf_fini(&p->call.name);
    strbuf_fini(&p->function);
    mem_free(p);
}

/* ---- in one piece --------------------------------------------------------------------------- */

struct whole {
    struct outparse_message *m;
    bool failed;
    size_t n_room, span_room;
};

static struct outparse_call *add_call(struct whole *w)
{
    struct outparse_message *m = w->m;
    if ((size_t)m->n_calls == w->n_room) {
        size_t room = w->n_room ? 2 * w->n_room : 4;
        struct outparse_call *more = mem_realloc(m->calls, room, sizeof *more);
        if (!more)
            return NULL;
        m->calls = more;
        w->n_room = room;
    }
    struct outparse_call *c = &m->calls[m->n_calls++];
    *c = (struct outparse_call){0};
    return c;
}

/* Pieces that follow one another are one span. */
static void add_span(struct whole *w, size_t from, size_t to)
{
    struct outparse_message *m = w->m;
    if (m->n_spans && m->reasoning_ends[2 * m->n_spans - 1] == from) {
        m->reasoning_ends[2 * m->n_spans - 1] = to;
        return;
    }
    if ((size_t)m->n_spans == w->span_room) {
        size_t room = w->span_room ? 2 * w->span_room : 4;
        size_t *more = mem_realloc(m->reasoning_ends, 2 * room, sizeof *more);
        if (!more) {
            w->failed = true;
            return;
        }
        m->reasoning_ends = more;
        w->span_room = room;
    }
    m->reasoning_ends[2 * m->n_spans] = from;
    m->reasoning_ends[2 * m->n_spans++ + 1] = to;
}

static void collect(void *ctx, const struct outparse_piece *piece)
{
    struct whole *w = ctx;
    struct outparse_message *m = w->m;
    struct outparse_call *call = m->n_calls ? &m->calls[m->n_calls - 1] : NULL;
    switch (piece->event) {
    case OUT_EV_CONTENT:
        strbuf_add(&m->content, piece->text, piece->bytes);
        break;
    case OUT_EV_REASONING:
        strbuf_add(&m->reasoning, piece->text, piece->bytes);
        if (piece->raw_end)
            add_span(w, piece->raw_end - piece->bytes, piece->raw_end);
        break;
    case OUT_EV_CALL:
        call = add_call(w);
        if (call)
            strbuf_add(&call->name, piece->text, piece->bytes);
        else
            w->failed = true;
        break;
    case OUT_EV_ARGUMENTS:
        if (call)
            strbuf_add(&call->arguments, piece->text, piece->bytes);
        break;
    case OUT_EV_CALL_END:
        break;
    }
}

static void forget_calls(struct outparse_message *m)
{
    for (int i = 0; i < m->n_calls; i++) {
        strbuf_fini(&m->calls[i].name);
        strbuf_fini(&m->calls[i].arguments);
    }
    m->n_calls = 0;
}

/* Which of the fields are null. */
static void settle_nulls(const struct outparse *p, struct outparse_message *m)
{
    enum out_reasoning r = p->spec.reasoning;
    m->has_reasoning = r == OUT_DEEPSEEK_R1 || (r == OUT_GRANITE_THOUGHTS && p->thought) ||
                       (r && m->reasoning.len);
    bool empty_is_null = m->n_calls || p->took || p->spec.tool == OUT_HARMONY ||
                         (r && r != OUT_GRANITE_THOUGHTS) || p->thought;
    m->has_content = m->content.len || !empty_is_null;
}

static bool any_failed(const struct outparse *p, const struct outparse_message *m)
{
    bool failed = p->failed || m->content.failed || m->reasoning.failed;
    for (int i = 0; i < m->n_calls; i++)
        failed |= m->calls[i].name.failed || m->calls[i].arguments.failed;
    return failed;
}

enum sl_status outparse_whole(struct outparse_message *out, const struct outparse_spec *spec,
                              const char *text, size_t bytes, struct sl_err *err)
{
    struct outparse_message m = {0};
    struct whole w = {.m = &m};
    struct outparse *p = NULL;
    struct strbuf all;
    strbuf_init(&all, 0);
    enum sl_status st = outparse_create(&p, spec, collect, &w, err);
    if (st)
        return st;
    p->all = &all;
    outparse_feed(p, text, bytes);
    outparse_finish(p);
    bool failed = w.failed || any_failed(p, &m);
    if (p->broken && !failed) { /* as vLLM: what does not parse is text */
        forget_calls(&m);
        if (!p->content_is_held) {
            strbuf_clear(&m.content);
            strbuf_add(&m.content, all.data ? all.data : "", all.len);
        }
        failed = m.content.failed;
    }
    settle_nulls(p, &m);
    outparse_destroy(&p);
    strbuf_fini(&all);
    if (failed) {
        outparse_message_fini(&m);
        return SL_FAIL(err, SL_ENOMEM, "no memory to parse an answer");
    }
    *out = m;
    return SL_OK;
}

void outparse_message_fini(struct outparse_message *m)
{
    forget_calls(m);
    strbuf_fini(&m->content);
    strbuf_fini(&m->reasoning);
    mem_free(m->calls);
    mem_free(m->reasoning_ends);
    *m = (struct outparse_message){0};
}
