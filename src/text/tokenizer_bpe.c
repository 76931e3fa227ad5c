/* Byte-pair encoding.
 *
 * A word starts as one symbol a byte (byte-level vocabularies) or a character; again and again the
 * adjacent pair with the lowest rank is merged, the leftmost on ties. Short words scan for it; long
 * ones keep the pairs in a heap, so a word of n symbols costs n log n. A cache of short words in
 * the scratch spares most of both: natural text repeats itself. SPDX-License-Identifier: Apache-2.0
 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define META "\xE2\x96\x81" /* U+2581, SentencePiece's space */

enum { SHORT_WORD = 32, NO_RANK = -1, META_LEN = 3 };

int32_t byte_to_char(unsigned char b)
{
    if ((b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE)
        return b;
    if (b <= 0x20)
        return 0x100 + b;
    if (b <= 0xA0) /* 0x7F..0xA0 */
        return 0x100 + 33 + (b - 0x7F);
    return 0x143; /* 0xAD */
}

int char_to_byte(int32_t c)
{
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF))
        return c;
    if (c >= 0x100 && c <= 0x120)
        return c - 0x100;
    if (c >= 0x121 && c <= 0x142)
        return c - 0x121 + 0x7F;
    return c == 0x143 ? 0xAD : -1;
}

bool byte_level_bytes(const char *s, size_t n, struct strbuf *out)
{
    char buf[256];
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp = (unsigned char)s[i];
        if (cp < 0x80)
            i++;
        else
            i += utf8_next(s + i, &cp);
        int byte = char_to_byte(cp);
        if (byte < 0)
            return false;
        buf[k++] = (char)byte;
        if (k == sizeof buf) {
            strbuf_add(out, buf, k);
            k = 0;
        }
    }
    strbuf_add(out, buf, k);
    return true;
}

/* ---- the table of merges ----------------------------------------------------------------------
 */

enum sl_status bpe_reserve_merges(struct bpe *b, size_t n, struct sl_err *err)
{
    size_t cap = 64;
    while (cap < n + n / 2)
        cap *= 2;
    mem_free(b->merges);
    b->merges = cap > UINT32_MAX ? NULL : mem_alloc(cap, sizeof *b->merges);
    if (!b->merges)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for %zu merges", n);
    memset(b->merges, 0xFF, cap * sizeof *b->merges);
    b->merge_mask = (uint32_t)(cap - 1);
    return SL_OK;
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint32_t place_of(const struct bpe *b, uint64_t pair)
{
    return (uint32_t)(pair * 0x9E3779B97F4A7C15u >> 32) & b->merge_mask;
}

static struct merge_slot *merge_slot(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = pair_of(left, right);
    uint32_t k = place_of(b, pair);
    while (b->merges[k].pair != pair && b->merges[k].pair != UINT64_MAX)
        k = (k + 1) & b->merge_mask;
    return &b->merges[k];
}

void bpe_prefetch_merge(const struct bpe *b, int32_t left, int32_t right)
{
    __builtin_prefetch(&b->merges[place_of(b, pair_of(left, right))]);
}

void bpe_put_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    struct merge_slot *slot = merge_slot(b, left, right);
    *slot = (struct merge_slot){pair_of(left, right), rank, id};
}

static const struct merge_slot *merge_find(const struct bpe *b, int32_t left, int32_t right)
{
    const struct merge_slot *slot = merge_slot(b, left, right);
    return slot->pair == UINT64_MAX ? NULL : slot;
}

/* ---- the word cache ---------------------------------------------------------------------------
 */

static struct word_slot *cache_slot(struct scratch *sc, const char *s, size_t n, uint32_t *tag)
{
    if (n > WORD_CACHE_KEY)
        return NULL;
    if (!sc->cache && !(sc->cache = mem_zalloc(WORD_CACHE_SLOTS, sizeof *sc->cache)))
        return NULL; /* slower, not wrong */
    uint64_t h = XXH3_64bits(s, n);
    *tag = (uint32_t)(h >> 32);
    return &sc->cache[h & (WORD_CACHE_SLOTS - 1)];
}

static bool cache_hit(const struct word_slot *w, uint32_t tag, const char *s, size_t n)
{
    return w && w->tag == tag && w->len == n && !memcmp(w->key, s, n);
}

static void cache_put(struct word_slot *w, uint32_t tag, const char *s, size_t n,
                      const int32_t *ids, size_t n_ids)
{
    if (!w || n_ids > WORD_CACHE_IDS)
        return;
    w->tag = tag;
    w->len = (uint8_t)n;
    w->n = (uint8_t)n_ids;
    memcpy(w->key, s, n);
    memcpy(w->ids, ids, n_ids * sizeof *ids);
}

/* ---- first symbols ----------------------------------------------------------------------------
 */

static bool add_symbol(struct scratch *sc, int32_t id, uint32_t len)
{
    if (sc->n_symbols == sc->cap_symbols) {
        size_t cap = sc->cap_symbols ? sc->cap_symbols * 2 : 256;
        struct bpe_symbol *p = cap > INT32_MAX ? NULL : mem_realloc(sc->symbols, cap, sizeof *p);
        if (!p)
            return false;
        sc->symbols = p;
        sc->cap_symbols = cap;
    }
    int32_t at = (int32_t)sc->n_symbols++;
    sc->symbols[at] = (struct bpe_symbol){id, at - 1, at + 1, len};
    return true;
}

static bool start_bytes(const struct bpe *b, struct scratch *sc, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!add_symbol(sc, b->byte_id[(unsigned char)s[i]], 1))
            return false;
    }
    return true;
}

/* The token of one character, dressed with the prefix (not the first) and suffix (the last). */
static int32_t char_id(const struct tokenizer *t, struct strbuf *word, const char *s, size_t len,
                       bool first, bool last)
{
    const struct bpe *b = &t->bpe;
    bool prefix = b->prefix && !first, suffix = b->suffix && last;
    if (!prefix && !suffix)
        return len == 1 ? b->ascii_id[(unsigned char)s[0]] : strmap_get(&t->model_vocab, s, len);
    strbuf_clear(word);
    if (prefix)
        strbuf_adds(word, b->prefix);
    strbuf_add(word, s, len);
    if (suffix)
        strbuf_adds(word, b->suffix);
    return word->failed ? -1 : strmap_get(&t->model_vocab, word->data, word->len);
}

/* The bytes of what was not found, as <0xNN> tokens; false: not all of them exist. */
static bool start_fallback(const struct bpe *b, struct scratch *sc, const char *s, size_t len,
                           bool *ok)
{
    for (size_t i = 0; i < len; i++) {
        if (b->byte_id[(unsigned char)s[i]] < 0)
            return false;
    }
    for (size_t i = 0; i < len && *ok; i++)
        *ok = add_symbol(sc, b->byte_id[(unsigned char)s[i]], 1);
    return true;
}

static bool start_chars(const struct tokenizer *t, struct scratch *sc, const char *s, size_t n)
{
    const struct bpe *b = &t->bpe;
    uint32_t unk = 0; /* bytes of an unknown run not yet written */
    bool ok = true;
    for (size_t i = 0; i < n && ok;) {
        size_t len = utf8_len(s[i]);
        bool first = !i, last = i + len == n;
        int32_t id = char_id(t, &sc->word, s + i, len, first, last);
        const char *bytes = s + i;
        i += len;
        if (id >= 0) {
            if (unk)
                ok = add_symbol(sc, b->unk_id, unk);
            unk = 0;
            ok = ok && add_symbol(sc, id, (uint32_t)len);
            continue;
        }
        if (b->byte_fallback) {
            bool dressed = (b->prefix && !first) || (b->suffix && last);
            const char *of = dressed ? sc->word.data : bytes;
            if (start_fallback(b, sc, of, dressed ? sc->word.len : len, &ok))
                continue;
        }
        if (b->unk_id < 0)
            continue; /* dropped, as the library does */
        if (unk && !b->fuse_unk) {
            ok = add_symbol(sc, b->unk_id, unk);
            unk = 0;
        }
        unk += (uint32_t)len;
    }
    return ok && (!unk || add_symbol(sc, b->unk_id, unk));
}

/* ---- merging ----------------------------------------------------------------------------------
 */

static void pair_rank(const struct bpe *b, int32_t left, int32_t right, uint32_t *rank, int32_t *id)
{
    const struct merge_slot *m = merge_find(b, left, right);
    *rank = m ? m->rank : (uint32_t)NO_RANK;
    *id = m ? m->id : -1;
}

/* Up to SHORT_WORD symbols, in place; gives how many are left. */
static size_t merge_short(const struct bpe *b, struct bpe_symbol *sym, size_t n)
{
    int32_t id[SHORT_WORD], to[SHORT_WORD];
    uint32_t rank[SHORT_WORD];
    for (size_t i = 0; i < n; i++)
        id[i] = sym[i].id;
    for (size_t i = 0; i + 1 < n; i++)
        pair_rank(b, id[i], id[i + 1], &rank[i], &to[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (rank[i] < rank[best])
                best = i;
        }
        if (rank[best] == (uint32_t)NO_RANK)
            break;
        id[best] = to[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
            to[i - 1] = to[i];
        }
        if (best)
            pair_rank(b, id[best - 1], id[best], &rank[best - 1], &to[best - 1]);
        if (best + 1 < n)
            pair_rank(b, id[best], id[best + 1], &rank[best], &to[best]);
    }
    for (size_t i = 0; i < n; i++)
        sym[i].id = id[i];
    return n;
}

static bool before(const struct bpe_merge *a, const struct bpe_merge *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static bool heap_push(struct scratch *sc, struct bpe_merge m)
{
    if (sc->n_heap == sc->cap_heap) {
        size_t cap = sc->cap_heap ? sc->cap_heap * 2 : 256;
        struct bpe_merge *p = mem_realloc(sc->heap, cap, sizeof *p);
        if (!p)
            return false;
        sc->heap = p;
        sc->cap_heap = cap;
    }
    size_t i = sc->n_heap++;
    for (; i; i = (i - 1) / 4) {
        struct bpe_merge *up = &sc->heap[(i - 1) / 4];
        if (!before(&m, up))
            break;
        sc->heap[i] = *up;
    }
    sc->heap[i] = m;
    return true;
}

static struct bpe_merge heap_pop(struct scratch *sc)
{
    struct bpe_merge top = sc->heap[0], last = sc->heap[--sc->n_heap];
    size_t i = 0, n = sc->n_heap;
    for (;;) {
        size_t first = i * 4 + 1, best = first;
        if (first >= n)
            break;
        for (size_t k = first + 1; k < first + 4 && k < n; k++) {
            if (before(&sc->heap[k], &sc->heap[best]))
                best = k;
        }
        if (!before(&sc->heap[best], &last))
            break;
        sc->heap[i] = sc->heap[best];
        i = best;
    }
    sc->heap[i] = last;
    return top;
}

static bool push_pair(const struct bpe *b, struct scratch *sc, int32_t left, int32_t right)
{
    const struct merge_slot *m = merge_find(b, sc->symbols[left].id, sc->symbols[right].id);
    return !m || heap_push(sc, (struct bpe_merge){m->rank, (uint32_t)left, m->id});
}

/* Any number of symbols; survivors are moved together. */
static bool merge_long(const struct bpe *b, struct scratch *sc)
{
    struct bpe_symbol *sym = sc->symbols;
    int32_t n = (int32_t)sc->n_symbols;
    bool ok = true;
    sym[n - 1].next = -1;
    sc->n_heap = 0;
    for (int32_t i = 0; i + 1 < n && ok; i++)
        ok = push_pair(b, sc, i, i + 1);
    while (ok && sc->n_heap) {
        struct bpe_merge top = heap_pop(sc);
        struct bpe_symbol *left = &sym[top.pos];
        if (!left->len || left->next < 0)
            continue;
        struct bpe_symbol *right = &sym[left->next];
        const struct merge_slot *m = merge_find(b, left->id, right->id);
        if (!m || m->id != top.id)
            continue; /* the pair has changed since */
        left->id = top.id;
        left->len += right->len;
        left->next = right->next;
        right->len = 0;
        if (left->next >= 0) {
            sym[left->next].prev = (int32_t)top.pos;
            ok = push_pair(b, sc, (int32_t)top.pos, left->next);
        }
        if (ok && left->prev >= 0)
            ok = push_pair(b, sc, left->prev, (int32_t)top.pos);
    }
    size_t k = 0;
    for (int32_t i = 0; i < n; i++) {
        if (sym[i].len)
            sym[k++] = sym[i];
    }
    sc->n_symbols = k;
    return ok;
}

static enum sl_status emit_symbols(struct encoder *e)
{
    const struct bpe_symbol *sym = e->sc->symbols;
    size_t n = e->sc->n_symbols;
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < n && !st;) {
        int32_t ids[256];
        size_t k = 0;
        while (k < 256 && i < n)
            ids[k++] = sym[i++].id;
        st = encoder_emit(e, ids, k);
    }
    return st;
}

static enum sl_status encode_word(struct encoder *e, const char *s, size_t n)
{
    const struct tokenizer *t = e->t;
    const struct bpe *b = &t->bpe;
    struct scratch *sc = e->sc;
    uint32_t tag = 0;
    struct word_slot *w = cache_slot(sc, s, n, &tag);
    if (cache_hit(w, tag, s, n))
        return encoder_emit(e, w->ids, w->n);
    if (b->ignore_merges) {
        int32_t id = strmap_get(b->bytes ? &b->raw : &t->model_vocab, s, n);
        if (id >= 0) {
            cache_put(w, tag, s, n, &id, 1);
            return encoder_emit(e, &id, 1);
        }
    }
    sc->n_symbols = 0;
    bool ok = b->bytes ? start_bytes(b, sc, s, n) : start_chars(t, sc, s, n);
    if (ok && sc->n_symbols > SHORT_WORD)
        ok = merge_long(b, sc);
    else if (ok)
        sc->n_symbols = merge_short(b, sc->symbols, sc->n_symbols);
    if (!ok)
        return SL_FAIL(e->err, SL_ENOMEM, "tokenizer: no memory for a word of %zu bytes", n);
    size_t from = e->out->n;
    enum sl_status st = emit_symbols(e);
    if (!st && e->out->n > from)
        cache_put(w, tag, s, n, e->out->ids + from, e->out->n - from);
    return st;
}

enum sl_status bpe_word(struct encoder *e, const char *s, size_t n)
{
    enum sl_status st = SL_OK;
    size_t start = 0;
    for (size_t at = 1; e->t->bpe.cuts_at_meta && at + META_LEN <= n && !st;) {
        const char *hit = memmem(s + at, n - at, META, META_LEN);
        if (!hit)
            break;
        at = (size_t)(hit - s);
        if (at - start >= META_LEN && memcmp(hit - META_LEN, META, META_LEN)) {
            st = encode_word(e, s + start, at - start);
            start = at;
        }
        at += META_LEN;
    }
    return st ? st : encode_word(e, s + start, n - start);
}

/* ---- building ---------------------------------------------------------------------------------
 */

/* Every character of GPT-2's byte alphabet is a token: words can stay bytes. */
static bool has_byte_alphabet(const struct tokenizer *t, int32_t id[256])
{
    for (int i = 0; i < 256; i++) {
        char c[4];
        size_t n = utf8_put(c, byte_to_char((unsigned char)i));
        id[i] = strmap_get(&t->model_vocab, c, n);
        if (id[i] < 0)
            return false;
    }
    return true;
}

static enum sl_status build_raw(struct tokenizer *t, struct sl_err *err)
{
    const struct strmap *v = &t->model_vocab;
    struct strbuf key;
    strbuf_init(&key, 0);
    bool ok = strmap_reserve(&t->bpe.raw, v->n, v->pool_len);
    for (uint32_t i = 0; i < v->n && ok; i++) {
        strbuf_clear(&key);
        if (byte_level_bytes(v->pool + v->entries[i].off, v->entries[i].len, &key) && key.len)
            ok = !key.failed && strmap_put(&t->bpe.raw, key.data, key.len, v->entries[i].id);
    }
    strbuf_fini(&key);
    return ok ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
}

/* Where no merge puts a token that begins with U+2581 behind one that does not end in it, a text
 * can be cut in front of each such place and the words encoded on their own: nothing would ever
 * have joined them. Vocabularies from SentencePiece are like that, and come without a
 * pre-tokenizer. */
static bool can_cut_at_meta(const struct tokenizer *t)
{
    const struct strmap *v = &t->model_vocab;
    const struct bpe *b = &t->bpe;
    if (b->bytes || b->ignore_merges || b->prefix || b->suffix || !b->merges ||
        strmap_get(v, META, META_LEN) < 0)
        return false;
    for (uint32_t i = 0; i < v->n; i++) { /* no token may hold it in the middle */
        const char *s = v->pool + v->entries[i].off;
        size_t n = v->entries[i].len;
        for (size_t at = 1; at + META_LEN <= n; at++) {
            if (!memcmp(s + at, META, META_LEN) &&
                (at < META_LEN || memcmp(s + at - META_LEN, META, META_LEN)))
                return false;
        }
    }
    return true;
}

enum sl_status bpe_finish(struct tokenizer *t, struct sl_err *err)
{
    struct bpe *b = &t->bpe;
    bool last_maps = t->n_pre && t->pre[t->n_pre - 1].kind == PRE_BYTE_MAP;
    for (int i = 0; i < 128; i++) {
        char c = (char)i;
        b->ascii_id[i] = strmap_get(&t->model_vocab, &c, 1);
    }
    if (last_maps && !b->prefix && !b->suffix && has_byte_alphabet(t, b->byte_id)) {
        b->bytes = true;
        t->n_pre--; /* a PRE_BYTE_MAP owns nothing */
        return b->ignore_merges ? build_raw(t, err) : SL_OK;
    }
    for (int i = 0; i < 256; i++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[] = {'<', '0', 'x', hex[i >> 4], hex[i & 15], '>'};
        b->byte_id[i] = strmap_get(&t->model_vocab, name, sizeof name);
    }
    b->cuts_at_meta = can_cut_at_meta(t);
    return SL_OK;
}

void bpe_fini(struct bpe *b)
{
    mem_free(b->merges);
    strmap_fini(&b->raw);
    mem_free(b->prefix);
    mem_free(b->suffix);
    *b = (struct bpe){0};
}
