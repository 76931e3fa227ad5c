/* Added tokens: found in the text before anything else looks at it, the longest at the leftmost
 * place first.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

/* ---- the list of added tokens -----------------------------------------------------------------
 */

static struct added_token *added_find(struct added *a, const char *s, size_t n)
{
    int32_t i = strmap_get(&a->by_content, s, n);
    return i < 0 ? NULL : &a->tokens[i];
}

/* As the library numbers them: a token it knows keeps its id, whatever the file says; a new one
 * gets the next free number, unless its file's number counts. */
static int64_t id_for(struct tokenizer *t, const struct added_token *tok)
{
    struct added_token *known = added_find(&t->added, tok->content, tok->len);
    if (known)
        return known->id;
    int32_t id = strmap_get(&t->model_vocab, tok->content, tok->len);
    if (id >= 0)
        return id;
    if (t->exact_ids && tok->id >= 0)
        return tok->id;
    int64_t next = t->model_vocab.n;
    for (int i = 0; i < t->added.n; i++) {
        if (t->added.tokens[i].id >= next)
            next = (int64_t)t->added.tokens[i].id + 1;
    }
    return next;
}

static enum sl_status added_append(struct tokenizer *t, const struct added_token *tok, int32_t id,
                                   struct sl_err *err)
{
    struct added *a = &t->added;
    if (a->n == a->cap) {
        int cap = a->cap ? a->cap * 2 : 32;
        struct added_token *p = mem_realloc(a->tokens, (size_t)cap, sizeof *p);
        if (!p)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
        a->tokens = p;
        a->cap = cap;
    }
    struct added_token copy = *tok;
    copy.id = id;
    copy.content = mem_strndup(tok->content, tok->len);
    if (!copy.content || !strmap_put(&a->by_content, tok->content, tok->len, a->n)) {
        mem_free(copy.content);
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    }
    a->tokens[a->n++] = copy;
    return SL_OK;
}

enum sl_status added_put(struct tokenizer *t, const struct added_token *tok, struct sl_err *err)
{
    if (!tok->len)
        return SL_OK;
    int64_t id = id_for(t, tok);
    if (id >= TOK_MAX_ID)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the added token %.80s would get id %lld",
                       tok->content, (long long)id);
    struct added_token *known = added_find(&t->added, tok->content, tok->len);
    if (!known)
        return added_append(t, tok, (int32_t)id, err);
    known->lstrip = tok->lstrip;
    known->rstrip = tok->rstrip;
    known->single_word = tok->single_word;
    known->normalized = tok->normalized;
    known->special = tok->special || known->special; /* once special, always special */
    return SL_OK;
}

/* Builds the trie of those whose `normalized` is this; their normalized forms when it is true. */
static enum sl_status build_trie(struct tokenizer *t, bool normalized, struct trie **out,
                                 struct scratch *sc, struct sl_err *err)
{
    struct added *a = &t->added;
    struct trie_key *keys = mem_zalloc((size_t)a->n + 1, sizeof *keys);
    if (!keys)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    uint32_t n = 0;
    enum sl_status st = SL_OK;
    for (int i = 0; i < a->n && !st; i++) {
        const struct added_token *tok = &a->tokens[i];
        if (tok->normalized != normalized)
            continue;
        const char *s = tok->content;
        size_t len = tok->len;
        bool origin = true;
        if (normalized && t->n_norm)
            st = norm_run(t, sc, &s, &len, &origin, err);
        if (st || !len)
            continue;
        char *copy = mem_strndup(s, len);
        if (!copy)
            st = SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
        else
            keys[n++] = (struct trie_key){copy, len, i};
    }
    if (!st && n)
        st = trie_create(out, keys, n, err);
    for (uint32_t i = 0; i < n; i++)
        mem_free((char *)keys[i].s);
    mem_free(keys);
    return st;
}

enum sl_status added_finish(struct tokenizer *t, struct sl_err *err)
{
    struct scratch *sc = scratch_take(t);
    if (!sc)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    enum sl_status st = build_trie(t, false, &t->added.raw, sc, err);
    if (!st)
        st = build_trie(t, true, &t->added.normalized, sc, err);
    scratch_give(t, sc);
    return st;
}

void added_fini(struct added *a)
{
    for (int i = 0; i < a->n; i++)
        mem_free(a->tokens[i].content);
    mem_free(a->tokens);
    strmap_fini(&a->by_content);
    trie_destroy(&a->raw);
    trie_destroy(&a->normalized);
    *a = (struct added){0};
}

/* ---- cutting a text ---------------------------------------------------------------------------
 */

static bool word_before(const char *s, size_t at)
{
    if (!at)
        return false;
    size_t i = at - 1;
    while (i && (s[i] & 0xC0) == 0x80)
        i--;
    int32_t cp;
    utf8_next(s + i, &cp);
    return unicode_is_word(cp);
}

static bool word_at(const char *s, size_t n, size_t at)
{
    int32_t cp;
    if (at == n)
        return false;
    utf8_next(s + at, &cp);
    return unicode_is_word(cp);
}

/* Where the white space that ends at `at` begins, not before `from`. */
static size_t spaces_before(const char *s, size_t from, size_t at)
{
    while (at > from) {
        size_t i = at - 1;
        while (i > from && (s[i] & 0xC0) == 0x80)
            i--;
        int32_t cp;
        utf8_next(s + i, &cp);
        if (!unicode_is_space(cp))
            break;
        at = i;
    }
    return at;
}

static size_t spaces_after(const char *s, size_t n, size_t at)
{
    while (at < n) {
        int32_t cp;
        size_t len = utf8_next(s + at, &cp);
        if (!unicode_is_space(cp))
            break;
        at += len;
    }
    return at;
}

/* The next match at or after *pos that counts; false: none. [*start, *end) is what it covers with
 * stripped spaces; *pos moves behind the match itself. */
static bool next_added(const struct encoder *e, const struct trie *trie, const char *s, size_t n,
                       size_t *pos, size_t done, size_t *start, size_t *end, int32_t *index)
{
    for (size_t i = *pos; i < n;) {
        int32_t value = -1;
        size_t len = trie_longest(trie, s + i, n - i, &value);
        if (!len) {
            i++;
            continue;
        }
        const struct added_token *tok = &e->t->added.tokens[value];
        *pos = i + len;
        if (((e->flags & ENCODE_PLAIN) && tok->special) ||
            (tok->single_word && (word_before(s, i) || word_at(s, n, i + len)))) {
            i += len;
            continue;
        }
        *start = i;
        if (tok->lstrip) { /* spaces that an earlier match took stay with it */
            size_t floor = done < i ? done : i;
            *start = spaces_before(s, floor, i);
        }
        *end = tok->rstrip ? spaces_after(s, n, i + len) : i + len;
        *index = value;
        return true;
    }
    return false;
}

enum sl_status added_run(struct encoder *e, const struct trie *trie, const char *s, size_t n,
                         bool at_origin, added_text_fn text)
{
    size_t pos = 0, done = 0, start, end;
    int32_t index;
    enum sl_status st = SL_OK;
    while (!st && trie && next_added(e, trie, s, n, &pos, done, &start, &end, &index)) {
        if (done < start)
            st = text(e, s + done, start - done, at_origin && !done);
        if (!st)
            st = encoder_emit(e, &e->t->added.tokens[index].id, 1);
        done = end;
    }
    if (!st && done < n)
        st = text(e, s + done, n - done, at_origin && !done);
    return st;
}
