/* Unigram: of all ways to cut a word into tokens, the one whose scores add up highest. Viterbi over
 * byte positions; a character that no token covers costs ten more than the worst token.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <math.h>
#include <string.h>

struct unigram {
    struct trie *trie;
    double *scores; /* by id */
    double unk_score;
    int32_t unk_id;
    bool byte_fallback;
    int32_t byte_id[256];
};

struct best { /* the best path that ends at this byte */
    double score;
    int32_t start; /* -1: none yet */
    int32_t id;
};

enum sl_status unigram_create(struct unigram **out, const struct strmap *vocab, double *scores,
                              size_t n, int32_t unk_id, bool byte_fallback, struct sl_err *err)
{
    struct unigram *u = mem_zalloc(1, sizeof *u);
    struct trie_key *keys = mem_alloc(vocab->n, sizeof *keys);
    if (!u || !keys) {
        mem_free(u);
        mem_free(keys);
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    }
    uint32_t n_keys = 0;
    for (uint32_t i = 0; i < vocab->n; i++) {
        const struct strmap_entry *e = &vocab->entries[i];
        const char *key = vocab->pool + e->off;
        if (e->len) /* of equal pieces the last one's id and score count */
            keys[n_keys++] = (struct trie_key){key, e->len, strmap_get(vocab, key, e->len)};
    }
    enum sl_status st = trie_create(&u->trie, keys, n_keys, err);
    mem_free(keys);
    if (st) {
        mem_free(u);
        return st;
    }
    double min = INFINITY;
    for (size_t i = 0; i < n; i++)
        min = scores[i] < min ? scores[i] : min;
    u->scores = scores;
    u->unk_score = min - 10.0;
    u->unk_id = unk_id;
    u->byte_fallback = byte_fallback;
    for (int i = 0; i < 256; i++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'};
        u->byte_id[i] = strmap_get(vocab, name, sizeof name);
        u->byte_fallback &= u->byte_id[i] >= 0;
    }
    *out = u;
    return SL_OK;
}

void unigram_destroy(struct unigram **u)
{
    if (!*u)
        return;
    trie_destroy(&(*u)->trie);
    mem_free((*u)->scores);
    mem_free(*u);
    *u = NULL;
}

static void offer(struct best *b, double score, size_t start, int32_t id)
{
    if (b->start < 0 || score > b->score)
        *b = (struct best){score, (int32_t)start, id};
}

static void viterbi(const struct unigram *u, const char *s, size_t n, struct best *best)
{
    for (size_t i = 0; i <= n; i++)
        best[i] = (struct best){0, -1, 0};
    for (size_t at = 0; at < n;) {
        size_t len = utf8_len(s[at]);
        double here = best[at].score;
        bool single = false;
        uint32_t node = 0;
        for (size_t i = at; i < n; i++) {
            node = trie_step(u->trie, node, (uint8_t)s[i]);
            if (!node)
                break;
            int32_t id = trie_value(u->trie, node);
            if (id < 0)
                continue;
            offer(&best[i + 1], here + u->scores[id], at, id);
            single |= i + 1 - at == len;
        }
        if (!single)
            offer(&best[at + len], here + u->unk_score, at, u->unk_id);
        at += len;
    }
}

/* Turns the links round: best[i].start of a beginning becomes the end of its token. */
static void turn_round(struct best *best, size_t n)
{
    int32_t end = (int32_t)n, id = best[n].id, start = best[n].start;
    while (end > 0) {
        int32_t before = best[start].start, before_id = best[start].id;
        best[start] = (struct best){0, end, id};
        end = start;
        start = before;
        id = before_id;
    }
}

static enum sl_status emit_unknown(struct encoder *e, const char *s, size_t n)
{
    const struct unigram *u = e->t->unigram;
    int32_t id = strmap_get(&e->t->model_vocab, s, n);
    if (id < 0 && u->byte_fallback) {
        enum sl_status st = SL_OK;
        for (size_t i = 0; i < n && !st; i++)
            st = encoder_emit(e, &u->byte_id[(unsigned char)s[i]], 1);
        return st;
    }
    if (id < 0)
        id = u->unk_id;
    if (id < 0)
        return SL_FAIL(e->err, SL_EINVAL,
                       "the tokenizer has no token for a part of the text, and no unknown token");
    return encoder_emit(e, &id, 1);
}

enum sl_status unigram_word(struct encoder *e, const char *s, size_t n)
{
    const struct unigram *u = e->t->unigram;
    struct scratch *sc = e->sc;
    if ((n + 1) * sizeof(struct best) > sc->lattice_cap) {
        size_t cap = (n + 1) * 2 * sizeof(struct best);
        void *p = mem_realloc(sc->lattice, cap, 1);
        if (!p)
            return SL_FAIL(e->err, SL_ENOMEM, "no memory to tokenize %zu bytes", n);
        sc->lattice = p;
        sc->lattice_cap = cap;
    }
    struct best *best = sc->lattice;
    viterbi(u, s, n, best);
    turn_round(best, n);
    enum sl_status st = SL_OK;
    for (size_t at = 0; at < n && !st;) {
        size_t end = (size_t)best[at].start;
        if (best[at].id != u->unk_id) {
            st = encoder_emit(e, &best[at].id, 1);
        } else { /* a run of unknowns is one */
            while (end < n && best[end].id == u->unk_id)
                end = (size_t)best[end].start;
            st = emit_unknown(e, s + at, end - at);
        }
        at = end;
    }
    return st;
}
