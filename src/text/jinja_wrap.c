/* SPDX-License-Identifier: Apache-2.0
 *
 * The wordwrap filter: Python's textwrap with the settings that Jinja gives it. */
#include "text/jinja.h"

#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_word(uint32_t cp)
{
    return cp == '_' || juni_alpha(cp) || juni_numeric(cp) || juni_digit(cp);
}

struct cursor {
    uint32_t *cp; /* the text as code points */
    size_t *at;   /* and where each begins, in bytes; one more for the end */
    size_t n;
};

static struct cursor spread(struct jrt *rt, struct jstr *s)
{
    struct cursor c = {.n = 0};
    c.cp = jalloc(rt, s->n + 1, sizeof *c.cp);
    c.at = jalloc(rt, s->n + 1, sizeof *c.at);
    jstep_bytes(rt, s->n * 8);
    for (size_t i = 0; i < s->n;) {
        c.at[c.n] = i;
        i += juni_decode(s->p + i, s->n - i, &c.cp[c.n++]);
    }
    c.at[c.n] = s->n;
    return c;
}

static bool space_at(const struct cursor *c, size_t i)
{
    return c->cp[i] < 0x80 && is_space((char)c->cp[i]);
}

static bool letter(const struct cursor *c, size_t i)
{
    int digit;
    return i < c->n && is_word(c->cp[i]) && !juni_decimal(c->cp[i], &digit);
}

static bool word_punct(const struct cursor *c, size_t i)
{
    return i < c->n && (is_word(c->cp[i]) ||
                        (c->cp[i] < 0x80 && strchr("!\"'&.,?", (int)c->cp[i]) && c->cp[i]));
}

/* Two or more hyphens at i with a word behind them are a chunk of their own. */
static size_t dash_run(const struct cursor *c, size_t i)
{
    size_t end = i;
    while (end < c->n && c->cp[end] == '-')
        end++;
    return end - i >= 2 && end < c->n && is_word(c->cp[end]) ? end : i;
}

/* A word ends behind a hyphen that stands between letters. */
static bool breaks_after_hyphen(const struct cursor *c, size_t hyphen)
{
    bool before = hyphen >= 2 && letter(c, hyphen - 1) &&
                  (letter(c, hyphen - 2) ||
                   (hyphen >= 3 && c->cp[hyphen - 2] == '-' && letter(c, hyphen - 3)));
    bool after = letter(c, hyphen + 1) &&
                 (letter(c, hyphen + 2) ||
                  (hyphen + 2 < c->n && c->cp[hyphen + 2] == '-' && letter(c, hyphen + 3)));
    return before && after;
}

/* The end of the chunk that begins at i: white space, dashes between words, or (part of) a word. */
static size_t chunk_end(const struct cursor *c, size_t i, bool hyphens)
{
    size_t end = i + 1;
    if (space_at(c, i)) {
        while (end < c->n && space_at(c, end))
            end++;
        return end;
    }
    if (hyphens && i > 0 && word_punct(c, i - 1) && dash_run(c, i) > i)
        return dash_run(c, i);
    for (; end < c->n && !space_at(c, end); end++) {
        if (!hyphens)
            continue;
        if (c->cp[end] == '-' && breaks_after_hyphen(c, end))
            return end + 1;
        if (word_punct(c, end - 1) && dash_run(c, end) > end)
            return end;
    }
    return end;
}

struct wrap {
    struct jrt *rt;
    struct cursor text;
    const char *p;
    struct jlist *lines;
    size_t width, *ends; /* ends: of the chunks */
    bool break_words, hyphens;
};

static void add_line(struct wrap *w, size_t from, size_t to)
{
    jlist_push(w->rt, w->lines,
               jstrv(jstr_view(w->rt, w->p + w->text.at[from], w->text.at[to] - w->text.at[from])));
}

static bool all_space(const struct cursor *c, size_t from, size_t to)
{
    while (from < to && juni_space(c->cp[from]))
        from++;
    return from == to;
}

/* Where to cut the chunk at..end so that `room` of it fit: behind its last hyphen, if there is one
 * with something else before it. */
static size_t cut_word(const struct wrap *w, size_t at, size_t end, size_t room)
{
    const struct cursor *c = &w->text;
    if (!w->hyphens || end - at <= room)
        return at + room < end ? at + room : end;
    for (size_t h = at + room; h > at + 1; h--) {
        if (c->cp[h - 1] != '-')
            continue;
        for (size_t i = at; i < h - 1; i++)
            if (c->cp[i] != '-')
                return h;
        break;
    }
    return at + room;
}

/* Lines of whole chunks; white space at the end of a line goes, and at the start of all but the
 * first. */
static void wrap_paragraph(struct wrap *w)
{
    const struct cursor *c = &w->text;
    size_t chunk = 0, at = 0;
    bool first = true;
    while (at < c->n) {
        if (!first && all_space(c, at, w->ends[chunk]))
            at = w->ends[chunk++];
        size_t from = at, last = at; /* last: where the last chunk of the line begins */
        while (at < c->n && w->ends[chunk] - from <= w->width) {
            last = at;
            at = w->ends[chunk++];
        }
        if (at < c->n && w->ends[chunk] - at > w->width) { /* fits on no line */
            size_t end = w->ends[chunk];
            if (w->break_words || at == from) {
                last = at;
                at = w->break_words ? cut_word(w, at, end, w->width - (at - from)) : end;
                chunk += at == end;
            }
        }
        jstep(w->rt, 1 + (at - from) / 8);
        size_t to = at > last && all_space(c, last, at) ? last : at;
        if (to > from) {
            add_line(w, from, to);
            first = false;
        }
    }
}

struct jval jwordwrap(struct jrt *rt, struct jval v, struct jval *a)
{
    int64_t width = a[0].kind == J_MISSING ? 79 : jneed_int(rt, a[0], "wordwrap");
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    if (v.kind != J_STR)
        jfail(rt, JERR_TYPE, "'%s' object has no attribute 'splitlines'", jtype(v));
    struct wrap w = {.rt = rt, .width = (size_t)width};
    w.break_words = a[1].kind == J_MISSING || jtruth(rt, a[1]);
    w.hyphens = a[3].kind == J_MISSING || jtruth(rt, a[3]);
    struct jval sep = a[2].kind == J_MISSING || a[2].kind == J_NONE ? jstr_lit(rt, "\n") : a[2];
    if (sep.kind != J_STR)
        jfail(rt, JERR_TYPE, "wordwrap: the separator must be a string, not %s", jtype(sep));
    struct jlist *paragraphs = jstr_splitlines(rt, v, false), *out = jlist_new(rt, 0);
    if (width <= 0 && paragraphs->n)
        jfail(rt, JERR_VALUE, "invalid width %lld (must be > 0)", (long long)width);
    for (size_t i = 0; i < paragraphs->n; i++) {
        struct jstr *s = paragraphs->v[i].s;
        w.p = s->p;
        w.text = spread(rt, s);
        w.lines = jlist_new(rt, 0);
        w.ends = jalloc(rt, w.text.n + 1, sizeof *w.ends);
        for (size_t at = 0, n = 0; at < w.text.n; n++)
            at = w.ends[n] = chunk_end(&w.text, at, w.hyphens);
        wrap_paragraph(&w);
        jlist_push(rt, out, jstr_join(rt, sep, jlistv(w.lines), true));
    }
    return jstr_join(rt, sep, jlistv(out), true);
}
