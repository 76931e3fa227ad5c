/* outcheck.h - a model's text cut in every way must give the same events.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_OUTCHECK_H
#define TESTS_OUTCHECK_H

#include "base/mem.h"
#include "text/outparse.h"

#include <string.h>

/* What a stream's pieces add up to. Calls: "name\0arguments\0". */
struct outcheck {
    struct strbuf content, reasoning, calls;
    int n_calls;
    bool open, disorder; /* pieces of calls came in the wrong order */
};

static inline void outcheck_piece(void *ctx, const struct outparse_piece *e)
{
    struct outcheck *o = ctx;
    switch (e->event) {
    case OUT_EV_CONTENT:
        strbuf_add(&o->content, e->text, e->bytes);
        break;
    case OUT_EV_REASONING:
        strbuf_add(&o->reasoning, e->text, e->bytes);
        break;
    case OUT_EV_CALL:
        o->disorder |= o->open || e->call != o->n_calls;
        o->open = true;
        o->n_calls++;
        strbuf_add(&o->calls, e->text, e->bytes);
        strbuf_addc(&o->calls, 0);
        break;
    case OUT_EV_ARGUMENTS:
        o->disorder |= !o->open || e->call != o->n_calls - 1;
        strbuf_add(&o->calls, e->text, e->bytes);
        break;
    case OUT_EV_CALL_END:
        o->disorder |= !o->open;
        o->open = false;
        strbuf_addc(&o->calls, 0);
        break;
    }
}

static inline void outcheck_fini(struct outcheck *o)
{
    strbuf_fini(&o->content);
    strbuf_fini(&o->reasoning);
    strbuf_fini(&o->calls);
}

static inline bool outcheck_same(const struct strbuf *a, const struct strbuf *b)
{
    return a->len == b->len && (!a->len || !memcmp(a->data, b->data, a->len));
}

/* Pieces of the sizes that `cut` gives; a size of 0 is the rest. */
static inline bool outcheck_stream(struct outcheck *o, const struct outparse_spec *spec,
                                   const char *text, size_t n, size_t (*cut)(void *), void *ctx)
{
    struct outparse *p = NULL;
    *o = (struct outcheck){0};
    if (outparse_create(&p, spec, outcheck_piece, o, NULL))
        return false;
    for (size_t at = 0; at < n;) {
        size_t k = cut(ctx);
        k = !k || k > n - at ? n - at : k;
        char *piece = mem_alloc(k, 1); /* of its own, so that a read beyond it is noticed */
        if (!piece)
            break;
        memcpy(piece, text + at, k);
        outparse_feed(p, piece, k);
        mem_free(piece);
        at += k;
    }
    outparse_finish(p);
    bool ok = !outparse_failed(p) && !o->disorder && !o->open && outparse_calls(p) == o->n_calls;
    outparse_destroy(&p);
    return ok;
}

/* The whole answer as a stream would have told it. */
static inline bool outcheck_whole(const struct outparse_message *m, const struct outcheck *o)
{
    struct strbuf calls;
    strbuf_init(&calls, 0);
    for (int i = 0; i < m->n_calls; i++) {
        strbuf_add(&calls, m->calls[i].name.data, m->calls[i].name.len);
        strbuf_addc(&calls, 0);
        strbuf_add(&calls, m->calls[i].arguments.data, m->calls[i].arguments.len);
        strbuf_addc(&calls, 0);
    }
    bool given_up = !m->n_calls && o->n_calls; /* a stream cannot take a call back */
    bool same =
        outcheck_same(&m->reasoning, &o->reasoning) &&
        (given_up || (outcheck_same(&m->content, &o->content) && outcheck_same(&calls, &o->calls)));
    strbuf_fini(&calls);
    return same && (m->has_content || !m->content.len) && (m->has_reasoning || !m->reasoning.len);
}

#endif
