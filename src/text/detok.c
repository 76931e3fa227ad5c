/* Incremental detokenizing: the decoder's steps as stages of a pipe.
 *
 * Up to the first step that joins tokens (Fuse, ByteLevel), tokens travel whole; behind it there is
 * one token that arrives in chunks. Each stage hands on what can no longer change and holds back
 * the rest: an unfinished character, a run of byte tokens, trailing characters that a Strip may
 * take, the beginning of a Replace's match. Decoding a whole text is the same pipe run at once.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

struct stage {
    bool chunks;        /* its input is one token in chunks */
    bool begun;         /* a token came by */
    bool bad_run;       /* DEC_BYTE_FALLBACK: the run of bytes cannot become valid any more */
    bool waiting;       /* DEC_BPE: a token waits to know whether it is the last */
    size_t stripped;    /* DEC_STRIP: characters taken off the front, or SIZE_MAX: done there */
    struct strbuf held; /* held back; DEC_CTC: the token before */
    struct strbuf made; /* what dec_apply makes */
};

struct detok {
    const struct tokenizer *t;
    struct scratch *sc; /* for patterns only; NULL when no step has one */
    bool skip_special, glue_special;
    bool last_added, glue;
    struct strbuf *out;
    enum sl_status st;
    struct stage stage[TOK_MAX_STEPS];
};

static void token_in(struct detok *d, int k, const char *s, size_t n);
static void chunk_in(struct detok *d, int k, const char *s, size_t n);

/* From stage k to the next one. */
static void token_out(struct detok *d, int k, const char *s, size_t n)
{
    if (k + 1 == d->t->n_dec)
        strbuf_add(d->out, s, n);
    else
        token_in(d, k + 1, s, n);
}

static void chunk_out(struct detok *d, int k, const char *s, size_t n)
{
    if (!n)
        return;
    if (k + 1 == d->t->n_dec)
        strbuf_add(d->out, s, n);
    else
        chunk_in(d, k + 1, s, n);
}

static void note(struct detok *d, const struct strbuf *b)
{
    if (b->failed && !d->st)
        d->st = SL_ENOMEM;
}

/* ---- tokens -----------------------------------------------------------------------------------
 */

/* Hands on the whole characters among the held bytes, ill-formed parts as U+FFFD. */
static void characters_out(struct detok *d, int k, bool end)
{
    struct strbuf *held = &d->stage[k].held;
    size_t at = 0;
    while (at < held->len) {
        size_t good = utf8_valid_prefix(held->data + at, held->len - at);
        chunk_out(d, k, held->data + at, good);
        at += good;
        if (at == held->len)
            break;
        size_t bad = utf8_bad_part(held->data + at, held->len - at);
        if (!bad && !end)
            break;
        chunk_out(d, k, UNICODE_REPLACEMENT, 3);
        at += bad ? bad : held->len - at;
    }
    strbuf_drop_front(held, at);
}

/* The run of byte tokens ends, or cannot become valid: one token of text, or U+FFFD for each. */
static void run_out(struct detok *d, int k)
{
    struct stage *g = &d->stage[k];
    if (!g->held.len)
        return;
    if (utf8_valid_prefix(g->held.data, g->held.len) == g->held.len) {
        token_out(d, k, g->held.data, g->held.len);
    } else {
        for (size_t i = 0; i < g->held.len; i++)
            token_out(d, k, UNICODE_REPLACEMENT, 3);
    }
    strbuf_clear(&g->held);
}

static void byte_fallback_in(struct detok *d, int k, const char *s, size_t n)
{
    struct stage *g = &d->stage[k];
    int byte = dec_byte_token(s, n);
    if (byte < 0) {
        run_out(d, k);
        g->bad_run = false;
        token_out(d, k, s, n);
        return;
    }
    strbuf_addc(&g->held, (char)byte);
    note(d, &g->held);
    size_t good = utf8_valid_prefix(g->held.data, g->held.len);
    if (good < g->held.len && utf8_bad_part(g->held.data + good, g->held.len - good))
        g->bad_run = true;
    if (g->bad_run) {
        for (size_t i = 0; i < g->held.len; i++)
            token_out(d, k, UNICODE_REPLACEMENT, 3);
        strbuf_clear(&g->held);
    }
}

/* CTC drops a token that repeats the one before it. */
static bool repeats(struct detok *d, int k, const char *s, size_t n)
{
    struct stage *g = &d->stage[k];
    bool same = g->begun && g->held.len == n && !memcmp(g->held.data ? g->held.data : "", s, n);
    strbuf_clear(&g->held);
    strbuf_add(&g->held, s, n);
    note(d, &g->held);
    return same;
}

static void apply_out(struct detok *d, int k, const char *s, size_t n, bool last)
{
    struct stage *g = &d->stage[k];
    const struct dec_step *step = &d->t->dec[k];
    strbuf_clear(&g->made);
    int rc = dec_apply(step, d->sc, s, n, !g->begun, last, d->glue, &g->made);
    if (rc < 0 && !d->st)
        d->st = (enum sl_status)rc;
    note(d, &g->made);
    g->begun = true;
    if (step->kind != DEC_CTC || g->made.len)
        token_out(d, k, g->made.data ? g->made.data : "", g->made.len);
}

static void byte_level_in(struct detok *d, int k, const char *s, size_t n)
{
    struct stage *g = &d->stage[k];
    size_t before = g->held.len;
    if (!byte_level_bytes(s, n, &g->held)) {
        g->held.len = before;
        strbuf_add(&g->held, s, n);
    }
    note(d, &g->held);
    if (!g->held.failed)
        characters_out(d, k, false);
}

/* The last token is treated otherwise, so each waits for the next. */
static void bpe_in(struct detok *d, int k, const char *s, size_t n)
{
    struct stage *g = &d->stage[k];
    if (g->waiting) {
        struct strbuf token = g->held;
        strbuf_init(&g->held, token.max);
        apply_out(d, k, token.data ? token.data : "", token.len, false);
        strbuf_fini(&token);
    }
    strbuf_clear(&g->held);
    strbuf_add(&g->held, s, n);
    note(d, &g->held);
    g->waiting = true;
}

static void token_in(struct detok *d, int k, const char *s, size_t n)
{
    if (d->stage[k].chunks) {
        chunk_in(d, k, s, n);
        return;
    }
    switch (d->t->dec[k].kind) {
    case DEC_FUSE:
        chunk_out(d, k, s, n);
        return;
    case DEC_BYTE_LEVEL:
        byte_level_in(d, k, s, n);
        return;
    case DEC_BYTE_FALLBACK:
        byte_fallback_in(d, k, s, n);
        return;
    case DEC_BPE:
        bpe_in(d, k, s, n);
        return;
    case DEC_CTC:
        if (!repeats(d, k, s, n))
            apply_out(d, k, s, n, false);
        d->stage[k].begun = true;
        return;
    default:
        apply_out(d, k, s, n, false);
    }
}

/* ---- one token in chunks ----------------------------------------------------------------------
 */

static void strip_chunk(struct detok *d, int k, const char *s, size_t n)
{
    const struct dec_step *step = &d->t->dec[k];
    struct stage *g = &d->stage[k];
    size_t c = step->content_len;
    while (n && g->stripped < step->start) {
        if (n < c || memcmp(s, step->content, c)) {
            g->stripped = SIZE_MAX;
            break;
        }
        s += c;
        n -= c;
        g->stripped++;
    }
    if (!step->stop) {
        chunk_out(d, k, s, n);
        return;
    }
    strbuf_add(&g->held, s, n);
    note(d, &g->held);
    size_t keep = 0;
    for (size_t i = 0; i < step->stop && g->held.len >= keep + c; i++, keep += c) {
        if (memcmp(g->held.data + g->held.len - keep - c, step->content, c))
            break;
    }
    size_t give = g->held.len - keep;
    chunk_out(d, k, g->held.data, give);
    strbuf_drop_front(&g->held, give);
}

/* How many bytes at the end of s[0, n) could begin the literal. */
static size_t partial_match(const struct pattern *p, const char *s, size_t n)
{
    size_t k = p->literal_len - 1 < n ? p->literal_len - 1 : n;
    while (k && memcmp(s + n - k, p->literal, k))
        k--;
    return k;
}

static void replace_chunk(struct detok *d, int k, const char *s, size_t n)
{
    const struct dec_step *step = &d->t->dec[k];
    struct stage *g = &d->stage[k];
    const struct pattern *p = &step->pattern;
    strbuf_add(&g->held, s, n);
    note(d, &g->held);
    size_t at = 0;
    const char *hit;
    while (at < g->held.len &&
           (hit = memmem(g->held.data + at, g->held.len - at, p->literal, p->literal_len))) {
        size_t start = (size_t)(hit - g->held.data);
        chunk_out(d, k, g->held.data + at, start - at);
        chunk_out(d, k, step->content, step->content_len);
        at = start + p->literal_len;
    }
    size_t keep = at < g->held.len ? partial_match(p, g->held.data + at, g->held.len - at) : 0;
    chunk_out(d, k, g->held.data + at, g->held.len - keep - at);
    strbuf_drop_front(&g->held, g->held.len - keep);
}

static bool streams_replace(const struct dec_step *step)
{
    return step->kind == DEC_REPLACE && step->pattern.kind == PATTERN_LITERAL &&
           step->pattern.literal_len;
}

static void chunk_in(struct detok *d, int k, const char *s, size_t n)
{
    const struct dec_step *step = &d->t->dec[k];
    if (!d->stage[k].chunks) { /* chunks come from a step that joins: its successor knows */
        token_in(d, k, s, n);
    } else if (step->kind == DEC_FUSE) {
        chunk_out(d, k, s, n);
    } else if (step->kind == DEC_STRIP) {
        strip_chunk(d, k, s, n);
    } else if (streams_replace(step)) {
        replace_chunk(d, k, s, n);
    } else { /* needs the whole text */
        strbuf_add(&d->stage[k].held, s, n);
        note(d, &d->stage[k].held);
    }
}

/* The whole text as the only token of a step that could not stream it. */
static void whole_out(struct detok *d, int k)
{
    struct stage *g = &d->stage[k];
    const struct dec_step *step = &d->t->dec[k];
    int byte = step->kind == DEC_BYTE_FALLBACK ? dec_byte_token(g->held.data, g->held.len) : -1;
    if (byte >= 0) {
        char c = (char)byte;
        chunk_out(d, k, byte < 0x80 ? &c : UNICODE_REPLACEMENT, byte < 0x80 ? 1 : 3);
        return;
    }
    strbuf_clear(&g->made);
    int rc = dec_apply(step, d->sc, g->held.data, g->held.len, true, true, false, &g->made);
    if (rc < 0 && !d->st)
        d->st = (enum sl_status)rc;
    note(d, &g->made);
    if (step->kind == DEC_BYTE_LEVEL) {
        struct strbuf swap = g->held;
        g->held = g->made;
        g->made = swap;
        characters_out(d, k, true);
        return;
    }
    chunk_out(d, k, g->made.data, g->made.len);
}

static void stage_finish(struct detok *d, int k)
{
    struct stage *g = &d->stage[k];
    const struct dec_step *step = &d->t->dec[k];
    if (g->chunks) {
        if (streams_replace(step))
            chunk_out(d, k, g->held.data, g->held.len);
        else if (step->kind != DEC_STRIP && step->kind != DEC_FUSE && g->held.len)
            whole_out(d, k);
    } else if (step->kind == DEC_BYTE_LEVEL) {
        characters_out(d, k, true);
    } else if (step->kind == DEC_BYTE_FALLBACK) {
        run_out(d, k);
    } else if (step->kind == DEC_BPE && g->waiting) {
        struct strbuf token = g->held;
        strbuf_init(&g->held, token.max);
        apply_out(d, k, token.data ? token.data : "", token.len, true);
        strbuf_fini(&token);
    }
    strbuf_clear(&g->held);
}

/* ---- the interface ----------------------------------------------------------------------------
 */

enum sl_status detok_create(struct detok **out, const struct tokenizer *t, bool skip_special,
                            bool spaces_between_special, struct sl_err *err)
{
    struct detok *d = mem_zalloc(1, sizeof *d);
    if (!d)
        return SL_FAIL(err, SL_ENOMEM, "no memory to detokenize");
    d->t = t;
    d->skip_special = skip_special;
    d->glue_special = !skip_special && !spaces_between_special;
    bool chunks = false, patterns = false;
    for (int k = 0; k < t->n_dec; k++) {
        d->stage[k].chunks = chunks;
        d->stage[k].held.max = d->stage[k].made.max = 1 << 26;
        chunks |= t->dec[k].kind == DEC_FUSE || t->dec[k].kind == DEC_BYTE_LEVEL;
        patterns |= t->dec[k].kind == DEC_REPLACE;
    }
    if (patterns && !(d->sc = scratch_take(t))) {
        detok_destroy(&d);
        return SL_FAIL(err, SL_ENOMEM, "no memory to detokenize");
    }
    *out = d;
    return SL_OK;
}

void detok_destroy(struct detok **d)
{
    if (!*d)
        return;
    for (int k = 0; k < (*d)->t->n_dec; k++) {
        strbuf_fini(&(*d)->stage[k].held);
        strbuf_fini(&(*d)->stage[k].made);
    }
    if ((*d)->sc)
        scratch_give((*d)->t, (*d)->sc);
    mem_free(*d);
    *d = NULL;
}

static enum sl_status result(const struct detok *d, const struct strbuf *out)
{
    return d->st ? d->st : out->failed ? SL_ENOMEM : SL_OK;
}

enum sl_status detok_push(struct detok *d, int32_t token, struct strbuf *out)
{
    const struct tokenizer *t = d->t;
    if (token < 0 || token >= t->n_ids || !t->token[token])
        return result(d, out); /* a padded logit: no text, as in transformers */
    unsigned flags = t->vocab_flags[token];
    if (d->skip_special && (flags & VOCAB_SPECIAL))
        return result(d, out);
    bool added = flags & VOCAB_ADDED;
    d->glue = d->glue_special && added && d->last_added;
    d->last_added = added;
    d->out = out;
    token_in(d, 0, t->token[token], t->token_len[token]);
    return result(d, out);
}

enum sl_status detok_prime(struct detok *d, const int32_t *ids, size_t n)
{
    enum { ENOUGH = 8 }; /* tokens with text: more than a character or a run of them needs */
    size_t from = n, seen = 0;
    while (from && seen < ENOUGH) {
        int32_t id = ids[--from];
        if (id >= 0 && id < d->t->n_ids && d->t->token[id] &&
            !(d->skip_special && (d->t->vocab_flags[id] & VOCAB_SPECIAL)))
            seen++;
    }
    struct strbuf dropped;
    strbuf_init(&dropped, 0);
    enum sl_status st = SL_OK;
    for (; from < n && !st; from++) {
        st = detok_push(d, ids[from], &dropped);
        strbuf_clear(&dropped);
    }
    strbuf_fini(&dropped);
    return st;
}

enum sl_status detok_finish(struct detok *d, struct strbuf *out)
{
    d->out = out;
    for (int k = 0; k < d->t->n_dec; k++)
        stage_finish(d, k);
    return result(d, out);
}

enum sl_status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                                bool skip_special, char **text, size_t *bytes, struct sl_err *err)
{
    struct detok *d = NULL;
    struct strbuf out;
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->n_ids)
            return SL_FAIL(err, SL_EINVAL, "token id %d is outside the vocabulary of %d", ids[i],
                           t->n_ids);
    }
    st = detok_create(&d, t, skip_special, true, err);
    if (st)
        return st;
    strbuf_init(&out, 0);
    for (size_t i = 0; i < n && !st; i++)
        st = detok_push(d, ids[i], &out);
    if (!st)
        st = detok_finish(d, &out);
    detok_destroy(&d);
    size_t len = out.len;
    char *s = st ? NULL : strbuf_take(&out);
    if (!s) {
        strbuf_fini(&out);
        return SL_FAIL(err, st ? st : SL_ENOMEM, "no memory to decode %zu tokens", n);
    }
    *text = s;
    *bytes = len;
    return SL_OK;
}
