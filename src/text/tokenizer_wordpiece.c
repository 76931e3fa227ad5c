/* WordPiece: the longest token at the front of a word, then the longest continuation, and so on; a
 * word that does not come out even is unknown as a whole. And WordLevel: a word is a token or not.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

/* The trie of the tokens that begin with the prefix, without it. */
static enum sl_status build(const struct strmap *v, const char *prefix, struct trie **out,
                            struct sl_err *err)
{
    size_t p = strlen(prefix);
    struct trie_key *keys = mem_alloc(v->n, sizeof *keys);
    if (!keys)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        const struct strmap_entry *e = &v->entries[i];
        if (e->len > p && !memcmp(v->pool + e->off, prefix, p))
            keys[n++] = (struct trie_key){v->pool + e->off + p, e->len - p, e->id};
    }
    enum sl_status st = trie_create(out, keys, n, err);
    mem_free(keys);
    return st;
}

enum sl_status wordpiece_build(struct tokenizer *t, const char *prefix, struct sl_err *err)
{
    enum sl_status st = build(&t->model_vocab, "", &t->wp_first, err);
    return st ? st : build(&t->model_vocab, prefix, &t->wp_rest, err);
}

static enum sl_status unknown(struct encoder *e)
{
    if (e->t->unk_id < 0)
        return SL_FAIL(e->err, SL_EFORMAT, "tokenizer: the unknown token is not in the vocabulary");
    return encoder_emit(e, &e->t->unk_id, 1);
}

static bool too_long(const char *s, size_t n, size_t max)
{
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += (s[i] & 0xC0) != 0x80;
    return chars > max;
}

/* Walks the word, with emit also gives its tokens out; *even: it came out even. */
static enum sl_status walk(struct encoder *e, const char *s, size_t n, bool emit, bool *even)
{
    for (size_t at = 0; at < n;) {
        int32_t id;
        size_t len = trie_longest(at ? e->t->wp_rest : e->t->wp_first, s + at, n - at, &id);
        if (!len) {
            *even = false;
            return SL_OK;
        }
        enum sl_status st = emit ? encoder_emit(e, &id, 1) : SL_OK;
        if (st)
            return st;
        at += len;
    }
    *even = true;
    return SL_OK;
}

enum sl_status wordpiece_word(struct encoder *e, const char *s, size_t n)
{
    bool even = false;
    if (too_long(s, n, e->t->wp_max_chars))
        return unknown(e);
    enum sl_status st = walk(e, s, n, false, &even);
    if (st || !even)
        return st ? st : unknown(e);
    return walk(e, s, n, true, &even);
}

enum sl_status wordlevel_word(struct encoder *e, const char *s, size_t n)
{
    int32_t id = strmap_get(&e->t->model_vocab, s, n);
    if (id >= 0)
        return encoder_emit(e, &id, 1);
    return unknown(e);
}
