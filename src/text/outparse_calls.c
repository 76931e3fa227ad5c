/* outparse_calls.c - calls written as JSON objects: between tags, in a list, or one after another.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <string.h>

enum {
    TEXT,  /* content; a marker is looked for */
    OPEN,  /* behind the marker */
    CALL,  /* in a call's object */
    AFTER, /* behind it */
    BETWEEN,
    ITEM, /* in a list: an object is due */
    SEPARATOR,
    LIST_END,
    NAME, /* mistral from v11 on: name{...} */
    ARGUMENTS
};

/* Content up to the marker. True: it is there, s->at is where it begins. */
static bool content_to_marker(struct outparse *p, struct stage *s, const char *marker)
{
    int which;
    out_content_to(p, s, stage_seek(s, s->at, p->eof, &marker, 1, &which));
    return which == 0;
}

/* Drops the text up to the marker. True: it is there. */
static bool drop_to_marker(struct outparse *p, struct stage *s, const char *marker)
{
    int which;
    s->at = stage_seek(s, s->at, p->eof, &marker, 1, &which);
    return which == 0;
}

/* p->scan past whitespace. True: something else follows. */
static bool skip_spaces(struct outparse *p, struct stage *s)
{
    p->scan = stage_skip_spaces(s, p->scan);
    return p->scan < stage_end(s);
}

/* The text ends where a call is not complete. */
static bool cut_off(struct outparse *p, struct stage *s)
{
    if (!p->call.committed)
        return out_give_up(p, s);
    p->broken = true;
    out_call_end(p);
    s->state = OUT_STATE_DROP;
    return true;
}

static bool begin_call(struct outparse *p, struct stage *s, size_t pos)
{
    jcall_begin(&p->call, pos);
    s->state = CALL;
    return true;
}

/* The object of a call; goes on to `next` behind it. */
static bool call_step(struct outparse *p, struct stage *s, int next, const char *end, int after)
{
    switch (jcall_step(p, s, false)) {
    case JSCAN_MORE:
        return p->eof && cut_off(p, s);
    case JSCAN_BAD:
        return p->call.committed ? out_call_broken(p, s, end, after) : out_give_up(p, s);
    case JSCAN_DONE:
        break;
    }
    if (!p->call.committed)
        return out_give_up(p, s);
    p->scan = p->call.pos;
    s->state = next;
    return true;
}

/* ---- hermes: <tool_call>{"name": .., "arguments": ..}</tool_call> ---------------------------- */

bool hermes_step(struct outparse *p, struct stage *s)
{
    static const char open[] = "<tool_call>", close[] = "</tool_call>";
    int is;
    switch (s->state) {
    case TEXT:
    case BETWEEN:
        if (s->state == TEXT ? !content_to_marker(p, s, open) : !drop_to_marker(p, s, open))
            return false;
        p->call_keys = JCALL_ARGUMENTS;
        p->scan = s->at + strlen(open);
        s->state = OPEN;
        return true;
    case OPEN:
        if (!skip_spaces(p, s))
            return p->eof && out_give_up(p, s);
        return *stage_text(s, p->scan) == '{' ? begin_call(p, s, p->scan) : out_give_up(p, s);
    case CALL:
        return call_step(p, s, AFTER, close, BETWEEN);
    default: /* AFTER */
        s->at = stage_skip_spaces(s, s->at);
        if (s->at == stage_end(s))
            return false;
        is = stage_begins(s, s->at, p->eof, close);
        if (is < 0)
            return false;
        if (is > 0)
            s->at += strlen(close);
        p->broken |= !is;
        s->state = BETWEEN;
        return true;
    }
}

/* ---- llama3_json: {"name": .., "parameters": ..}; {..} --------------------------------------- */

/* Text before the first call is dropped, as vLLM does, but only this much of it: a stream cannot
 * hold a whole answer back in case a call should follow. Longer text is content, stream or not. */
enum { MAX_PREAMBLE = 256 };

bool llama3_step(struct outparse *p, struct stage *s)
{
    int which;
    static const char *const brace[] = {"{"};
    switch (s->state) {
    case TEXT:
        p->scan = stage_seek(s, p->scan > s->at ? p->scan : s->at, p->eof, brace, 1, &which);
        if (p->scan > MAX_PREAMBLE)
            out_content_to(p, s, p->scan);
        if (which < 0)
            return p->eof && s->at < stage_end(s) && out_give_up(p, s);
        p->call_keys = JCALL_ARGUMENTS | JCALL_PARAMETERS;
        return begin_call(p, s, p->scan);
    case CALL:
        return call_step(p, s, BETWEEN, NULL, BETWEEN);
    default: /* BETWEEN */
        return drop_to_marker(p, s, "{") && begin_call(p, s, s->at);
    }
}

/* ---- lists of calls ------------------------------------------------------------------------- */

/* strict: nothing may follow the list. */
static bool list_step(struct outparse *p, struct stage *s, bool strict)
{
    char c;
    switch (s->state) {
    case CALL:
        return call_step(p, s, SEPARATOR, NULL, OUT_STATE_DROP);
    case LIST_END:
        s->at = stage_skip_spaces(s, s->at);
        if (s->at == stage_end(s))
            return false;
        if (strict)
            return out_give_up(p, s);
        s->state = OUT_STATE_DROP;
        return true;
    default: /* ITEM, SEPARATOR */
        if (!skip_spaces(p, s))
            return p->eof && out_give_up(p, s);
        c = *stage_text(s, p->scan);
        if (c == ']' && (s->state == SEPARATOR || !p->n_calls)) {
            s->at = p->scan + 1;
            p->took = true;
            s->state = LIST_END;
            return true;
        }
        if (c == (s->state == ITEM ? '{' : ',')) {
            if (s->state == ITEM)
                return begin_call(p, s, p->scan);
            p->scan++;
            s->state = ITEM;
            return true;
        }
        return out_give_up(p, s);
    }
}

/* granite: an optional tag and a list, and nothing else. required: the list alone. */
bool array_step(struct outparse *p, struct stage *s)
{
    static const char *const tags[] = {"<|tool_call|>", "<tool_call>"};
    if (s->state != TEXT && s->state != OPEN)
        return list_step(p, s, true);
    if (!skip_spaces(p, s))
        return p->eof && out_give_up(p, s);
    if (s->state == TEXT && p->spec.tool == OUT_GRANITE) {
        for (int i = 0; i < 2; i++) {
            int is = stage_begins(s, p->scan, p->eof, tags[i]);
            if (is < 0)
                return false;
            if (is > 0) {
                p->scan += strlen(tags[i]);
                s->state = OPEN;
                return true;
            }
        }
    }
    if (*stage_text(s, p->scan) != '[')
        return out_give_up(p, s);
    p->call_keys = p->spec.tool == OUT_GRANITE ? JCALL_ARGUMENTS : JCALL_PARAMETERS;
    p->scan++;
    s->state = ITEM;
    return true;
}

/* ---- mistral: [TOOL_CALLS] [{..}, {..}], or [TOOL_CALLS]name{..} and [TOOL_CALLS]name[ARGS]{..}
 */

static const char mistral_marker[] = "[TOOL_CALLS]";

/* "name" and what may stand between it and the arguments; s->at is the marker's place. */
static bool mistral_name(struct outparse *p, struct stage *s)
{
    static const char *const ends[] = {"{", "[ARGS]"};
    size_t from = s->at + strlen(mistral_marker);
    int which;
    p->scan = stage_seek(s, p->scan, p->eof, ends, 2, &which);
    const char *name = stage_text(s, from);
    size_t n = p->scan - from;
    const char *bracket = memchr(name, '[', n); /* [CALL_ID]... */
    bool too_long = n > 2 * OUT_MAX_NAME;
    n = bracket ? (size_t)(bracket - name) : n;
    if (which < 0 && !too_long) {
        if (p->eof && p->n_calls)
            s->state = OUT_STATE_DROP;
        return p->eof && (p->n_calls || out_give_up(p, s));
    }
    for (; n && out_is_space(*name); n--)
        name++;
    while (n && out_is_space(name[n - 1]))
        n--;
    if (too_long || !n || n > OUT_MAX_NAME || memchr(name, '\n', n))
        return out_give_up(p, s);
    out_call(p, name, n, true);
    s->at = which ? p->scan + strlen("[ARGS]") : p->scan;
    p->scan = s->at;
    jscan_init(&p->call.js);
    s->state = ARGUMENTS;
    return true;
}

static bool mistral_arguments(struct outparse *p, struct stage *s)
{
    enum jscan_result r = JSCAN_MORE;
    while (r == JSCAN_MORE && p->scan < stage_end(s)) {
        r = jscan_byte(&p->call.js, (unsigned char)*stage_text(s, p->scan));
        p->scan += r != JSCAN_BAD;
    }
    out_arguments(p, stage_text(s, s->at), p->scan - s->at);
    s->at = p->scan;
    if (r == JSCAN_MORE)
        return false; /* or cut off: the call stays, as vLLM has it */
    if (r == JSCAN_DONE) {
        out_call_end(p);
        s->state = BETWEEN;
        return true;
    }
    bool broken = p->broken;
    p->call.args_open = true;
    out_call_broken(p, s, mistral_marker, BETWEEN);
    p->broken = broken; /* text that is no JSON is handed on */
    return true;
}

bool mistral_step(struct outparse *p, struct stage *s)
{
    switch (s->state) {
    case TEXT:
        if (!content_to_marker(p, s, mistral_marker))
            return false;
        p->scan = s->at + strlen(mistral_marker);
        s->state = OPEN;
        return true;
    case OPEN:
        if (!skip_spaces(p, s))
            return p->eof && out_give_up(p, s);
        p->call_keys = JCALL_ARGUMENTS | JCALL_OPTIONAL;
        if (*stage_text(s, p->scan) == '[') {
            p->scan++;
            s->state = ITEM;
        } else {
            s->state = NAME;
        }
        return true;
    case NAME:
        return mistral_name(p, s);
    case ARGUMENTS:
        return mistral_arguments(p, s);
    case BETWEEN:
        if (!drop_to_marker(p, s, mistral_marker))
            return false;
        p->scan = s->at + strlen(mistral_marker);
        s->state = NAME;
        return true;
    default:
        return list_step(p, s, false);
    }
}

/* ---- one named function: all is its arguments ------------------------------------------------ */

bool named_step(struct outparse *p, struct stage *s)
{
    if (s->state == TEXT) {
        s->at = stage_skip_spaces(s, s->at);
        p->took = true; /* whitespace alone is no content */
        if (s->at == stage_end(s))
            return false;
        out_call(p, p->spec.named, strlen(p->spec.named), true);
        s->state = ARGUMENTS;
    }
    bool any = s->at < stage_end(s);
    out_arguments(p, stage_text(s, s->at), stage_end(s) - s->at);
    s->at = stage_end(s);
    return any;
}
