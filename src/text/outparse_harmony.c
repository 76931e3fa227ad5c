/* outparse_harmony.c - harmony: messages with a channel and a recipient.
 *
 *     <|channel|>analysis<|message|>..<|end|><|start|>assistant<|channel|>final<|message|>..<|return|>
 *     <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{..}<|call|>
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <string.h>

enum { HEADER, BODY };
enum { REASONING, CONTENT, TOOL, IGNORED };
enum { MAX_HEADER = 1024 };

static const char *find(const char *text, size_t n, const char *what)
{
    return memmem(text, n, what, strlen(what));
}

/* The word behind `key`, up to a space or a token. */
static size_t word_after(const char *text, size_t n, const char *key, const char **word)
{
    const char *at = find(text, n, key);
    size_t len = 0;
    *word = at ? at + strlen(key) : NULL;
    while (at && *word + len < text + n && !out_is_space((*word)[len]) && (*word)[len] != '<')
        len++;
    return len;
}

static bool is_word(const char *word, size_t n, const char *what)
{
    return n == strlen(what) && !memcmp(word, what, n);
}

static void begin_message(struct outparse *p, const char *header, size_t n)
{
    static const char functions[] = "functions.";
    const char *channel, *to;
    size_t n_channel = word_after(header, n, "<|channel|>", &channel);
    size_t n_to = word_after(header, n, "to=", &to), n_fn = strlen(functions);
    p->kind = IGNORED;
    if (n_to > n_fn && !memcmp(to, functions, n_fn)) {
        p->kind = TOOL;
        if (p->spec.tool == OUT_HARMONY)
            out_call(p, to + n_fn, n_to - n_fn, false);
        else
            p->kind = IGNORED;
    } else if (channel && is_word(channel, n_channel, "analysis")) {
        p->kind = p->spec.reasoning == OUT_GPTOSS ? REASONING : IGNORED;
    } else if (!n_to && (!channel || is_word(channel, n_channel, "final") ||
                         is_word(channel, n_channel, "commentary"))) {
        p->kind = CONTENT;
    } else if (channel && is_word(channel, n_channel, "final")) {
        p->kind = CONTENT;
    }
    p->kind_begun = false;
}

/* Content of either stage. */
static void content(struct outparse *p, const struct stage *s, const char *text, size_t n)
{
    if (s == &p->think)
        out_to_tools(p, text, n);
    else
        out_plain(p, text, n);
}

/* An answer that is not harmony at all is content. */
static bool plain_text(struct outparse *p, struct stage *s)
{
    p->took = false;
    s->state = OUT_STATE_PASS;
    return true;
}

/* The first header need not begin with a token, but it is a header or all is plain text. 1, 0, or
 * -1: too short to tell. */
static int begins_header(const struct outparse *p, const struct stage *s, size_t pos)
{
    static const char *const begins[] = {"<|channel|>", "<|start|>", "to="};
    int best = p->any_message;
    for (int i = 0; i < 3 && best <= 0; i++) {
        int is = stage_begins(s, pos, p->eof, begins[i]);
        best = is ? is : best;
    }
    return best;
}

static bool header_step(struct outparse *p, struct stage *s)
{
    static const char *const message[] = {"<|message|>"};
    size_t from = stage_skip_spaces(s, s->at);
    int which;
    if (from - s->at > MAX_HEADER)
        return plain_text(p, s);
    if (from == stage_end(s))
        return p->eof && !p->any_message && from > s->at && plain_text(p, s);
    int is = begins_header(p, s, from);
    if (is <= 0)
        return !is && plain_text(p, s);
    size_t to = stage_seek(s, s->at, p->eof, message, 1, &which);
    if (to - s->at > MAX_HEADER)
        return plain_text(p, s);
    p->took = true;
    if (which < 0)
        return false;
    begin_message(p, stage_text(s, s->at), to - s->at);
    p->any_message = true;
    s->at = to + strlen(message[0]);
    s->state = BODY;
    return true;
}

static void body_text(struct outparse *p, struct stage *s, size_t to)
{
    const char *text = stage_text(s, s->at);
    size_t n = to - s->at;
    if (n && p->kind <= CONTENT) {
        if (!p->kind_begun && p->sent[p->kind] && p->kind == REASONING)
            out_joint(p, true);
        else if (!p->kind_begun && p->sent[p->kind])
            content(p, s, "\n", 1);
        p->kind_begun = p->sent[p->kind] = true;
    }
    if (p->kind == REASONING)
        out_reasoning(p, s, s->at, to);
    else if (p->kind == CONTENT)
        content(p, s, text, n);
    else if (p->kind == TOOL)
        out_arguments(p, text, n);
    s->at = to;
}

bool harmony_step(struct outparse *p, struct stage *s)
{
    static const char *const ends[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>",
                                       "<|channel|>"};
    int which;
    if (s->state == HEADER)
        return header_step(p, s);
    if (s->state == OUT_STATE_PASS) {
        bool any = s->at < stage_end(s);
        content(p, s, stage_text(s, s->at), stage_end(s) - s->at);
        s->at = stage_end(s);
        return any;
    }
    size_t to = stage_seek(s, s->at, p->eof, ends, 5, &which);
    body_text(p, s, to);
    if (which < 0)
        return false;
    if (which < 3)
        s->at += strlen(ends[which]);
    if (p->kind == TOOL)
        out_call_end(p);
    s->state = HEADER;
    return true;
}
