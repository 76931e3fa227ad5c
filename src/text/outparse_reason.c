/* outparse_reason.c - where the thoughts end and the answer begins.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <string.h>

enum { START, THOUGHTS, HELD_THOUGHTS, ANSWER };
/* Text before an opening marker is dropped, but no more than this can be held back for one. */
enum { MAX_BEFORE = 64, MAX_HELD = 256 };

static bool answer_rest(struct outparse *p, struct stage *s)
{
    bool any = s->at < stage_end(s);
    out_to_tools(p, stage_text(s, s->at), stage_end(s) - s->at);
    s->at = stage_end(s);
    return any;
}

static bool go(struct stage *s, size_t at, int state)
{
    s->at = at;
    s->state = state;
    return true;
}

/* ---- deepseek_r1: <think>..</think>.., the opening tag may be in the prompt ------------------ */

static bool r1_step(struct outparse *p, struct stage *s)
{
    static const char *const tags[] = {"</think>", "<think>"};
    int which;
    if (s->state == ANSWER)
        return answer_rest(p, s);
    bool start = s->state == START;
    size_t to = stage_seek(s, s->at, p->eof, tags, start ? 2 : 1, &which);
    if (start && to > MAX_BEFORE) /* too late for an opening tag */
        return go(s, s->at, THOUGHTS);
    if (which == 1)
        return go(s, to + strlen(tags[1]), THOUGHTS);
    if (start && which < 0 && !p->eof)
        return false;
    out_reasoning(p, s, s->at, to);
    s->at = to;
    if (which < 0) {
        s->state = THOUGHTS;
        return false;
    }
    return go(s, to + strlen(tags[0]), ANSWER);
}

/* ---- qwen3: the same, but stray tags vanish and a tool call ends the thoughts too ------------ */

static bool qwen_step(struct outparse *p, struct stage *s)
{
    static const char *const tags[] = {"</think>", "<tool_call>", "<think>"};
    int which;
    bool thoughts = s->state != ANSWER;
    if (p->tool_mark_seen)
        return answer_rest(p, s);
    size_t to = stage_seek(s, s->at, p->eof, tags, thoughts ? 3 : 2, &which);
    if (thoughts)
        out_reasoning(p, s, s->at, to);
    else
        out_to_tools(p, stage_text(s, s->at), to - s->at);
    s->at = to;
    if (which < 0)
        return false;
    p->tool_mark_seen = which == 1;
    return go(s, which == 1 ? to : to + strlen(tags[which]), which == 2 ? THOUGHTS : ANSWER);
}

/* ---- granite: Here is my thought process: .. Here is my response: .. ------------------------- */

static bool granite_start(struct outparse *p, struct stage *s)
{
    static const char *const opens[] = {"Here is my thought process:",
                                        "Here's my thought process:"};
    int which;
    size_t to = stage_seek(s, s->at, p->eof, opens, 2, &which);
    if (to > MAX_BEFORE || (which < 0 && p->eof))
        return go(s, s->at, ANSWER);
    if (which < 0)
        return false;
    p->think_from = p->think_scan = to + strlen(opens[which]);
    return go(s, s->at, HELD_THOUGHTS); /* nothing is decided: there may be no response */
}

static bool granite_step(struct outparse *p, struct stage *s)
{
    static const char *const closes[] = {"Here is my response:", "Here's my response:"};
    int which;
    if (s->state == ANSWER)
        return answer_rest(p, s);
    if (s->state == START)
        return granite_start(p, s);
    bool held = s->state == HELD_THOUGHTS;
    size_t from = held ? p->think_from : s->at;
    size_t to = stage_seek(s, held ? p->think_scan : s->at, p->eof, closes, 2, &which);
    p->think_scan = to;
    if (held && which < 0 && to - from <= MAX_HELD)
        return p->eof && go(s, s->at, ANSWER);
    out_reasoning(p, s, from, to);
    p->thought = true;
    if (which < 0) {
        s->at = to;
        s->state = THOUGHTS;
        return false;
    }
    return go(s, to + strlen(closes[which]), ANSWER);
}

bool think_step(struct outparse *p, struct stage *s)
{
    switch (p->spec.reasoning) {
    case OUT_DEEPSEEK_R1:
        return r1_step(p, s);
    case OUT_QWEN3:
        return qwen_step(p, s);
    default:
        return granite_step(p, s);
    }
}
