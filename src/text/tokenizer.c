/* SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <pcre2.h>
#include <string.h>

void token_vec_fini(struct token_vec *v)
{
    mem_free(v->ids);
    *v = (struct token_vec){0};
}

/* ---- scratches --------------------------------------------------------------------------------
 */

/* No stage may blow a text up beyond this: a file can chain dozens that double it. */
enum { MAX_TEXT_BYTES = 1 << 27 };

static struct scratch *scratch_create(void)
{
    struct scratch *sc = mem_zalloc(1, sizeof *sc);
    if (!sc)
        return NULL;
    sc->norm[0].max = sc->norm[1].max = sc->word.max = sc->repaired.max = MAX_TEXT_BYTES;
    for (int i = 0; i < TOK_MAX_STEPS; i++)
        sc->step[i].max = MAX_TEXT_BYTES;
    return sc;
}

struct scratch *scratch_take(const struct tokenizer *t)
{
    struct tokenizer *mut = (struct tokenizer *)t; /* the pool is not part of the value */
    pthread_mutex_lock(&mut->lock);
    struct scratch *sc = mut->pool;
    if (sc)
        mut->pool = sc->next;
    pthread_mutex_unlock(&mut->lock);
    return sc ? sc : scratch_create();
}

/* Buffers that one huge text left behind are not kept. */
static void scratch_trim(struct scratch *sc)
{
    enum { KEEP = 1 << 18 };
    struct strbuf *b[] = {&sc->repaired, &sc->norm[0], &sc->norm[1], &sc->word};
    for (size_t i = 0; i < sizeof b / sizeof *b; i++) {
        if (b[i]->cap > KEEP)
            strbuf_fini(b[i]);
    }
    for (int i = 0; i < TOK_MAX_STEPS; i++) {
        if (sc->step[i].cap > KEEP)
            strbuf_fini(&sc->step[i]);
        if (sc->shadow[i].cap > KEEP)
            strbuf_fini(&sc->shadow[i]);
    }
    if (sc->cap_symbols * sizeof *sc->symbols > KEEP) {
        mem_free(sc->symbols);
        sc->symbols = NULL;
        sc->cap_symbols = 0;
    }
    if (sc->cap_heap * sizeof *sc->heap > KEEP) {
        mem_free(sc->heap);
        sc->heap = NULL;
        sc->cap_heap = 0;
    }
    if (sc->lattice_cap > KEEP) {
        mem_free(sc->lattice);
        sc->lattice = NULL;
        sc->lattice_cap = 0;
    }
}

void scratch_give(const struct tokenizer *t, struct scratch *sc)
{
    struct tokenizer *mut = (struct tokenizer *)t;
    scratch_trim(sc);
    pthread_mutex_lock(&mut->lock);
    sc->next = mut->pool;
    mut->pool = sc;
    pthread_mutex_unlock(&mut->lock);
}

void scratch_destroy(struct scratch *sc)
{
    pcre2_match_data_free(sc->match_data);
    pcre2_match_context_free(sc->match_context);
    pcre2_jit_stack_free(sc->jit_stack);
    mem_free(sc->cache);
    mem_free(sc->symbols);
    mem_free(sc->heap);
    mem_free(sc->lattice);
    strbuf_fini(&sc->repaired);
    strbuf_fini(&sc->norm[0]);
    strbuf_fini(&sc->norm[1]);
    strbuf_fini(&sc->word);
    for (int i = 0; i < TOK_MAX_STEPS; i++) {
        strbuf_fini(&sc->step[i]);
        strbuf_fini(&sc->shadow[i]);
    }
    mem_free(sc);
}

bool text_is_utf8(const char *s, size_t n)
{
    return utf8_valid_prefix(s, n) == n;
}

/* ---- life -------------------------------------------------------------------------------------
 */

struct tokenizer *tokenizer_new(void)
{
    struct tokenizer *t = mem_zalloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->unk_id = t->bpe.unk_id = -1;
    t->lock_ready = !pthread_mutex_init(&t->lock, NULL);
    return t;
}

void tokenizer_destroy(struct tokenizer **tp)
{
    struct tokenizer *t = *tp;
    if (!t)
        return;
    for (struct scratch *sc = t->pool, *next; sc; sc = next) {
        next = sc->next;
        scratch_destroy(sc);
    }
    for (int i = 0; i < t->n_norm; i++)
        normalizer_fini(&t->norm[i]);
    for (int i = 0; i < t->n_pre; i++)
        pre_step_fini(&t->pre[i]);
    for (int i = 0; i < t->n_dec; i++)
        dec_step_fini(&t->dec[i]);
    post_fini(&t->post);
    added_fini(&t->added);
    bpe_fini(&t->bpe);
    unigram_destroy(&t->unigram);
    trie_destroy(&t->wp_first);
    trie_destroy(&t->wp_rest);
    mem_free(t->token);
    mem_free(t->token_len);
    mem_free(t->vocab_start);
    mem_free(t->vocab_bytes);
    mem_free(t->vocab_flags);
    strmap_fini(&t->model_vocab);
    if (t->lock_ready)
        pthread_mutex_destroy(&t->lock);
    mem_free(t);
    *tp = NULL;
}

/* A Unigram vocabulary may hold a special token's text more than once: all of them are special. */
static void mark_copies(struct tokenizer *t)
{
    const struct strmap *v = &t->model_vocab;
    for (uint32_t i = 0; i < v->n && t->kind == MODEL_UNIGRAM; i++) {
        int32_t k =
            strmap_get(&t->added.by_content, v->pool + v->entries[i].off, v->entries[i].len);
        if (k >= 0 && t->added.tokens[k].special)
            t->vocab_flags[v->entries[i].id] |= VOCAB_SPECIAL;
    }
}

static enum sl_status build_ids(struct tokenizer *t, struct sl_err *err)
{
    const struct strmap *v = &t->model_vocab;
    int32_t max = -1;
    for (uint32_t i = 0; i < v->n; i++)
        max = v->entries[i].id > max ? v->entries[i].id : max;
    for (int i = 0; i < t->added.n; i++)
        max = t->added.tokens[i].id > max ? t->added.tokens[i].id : max;
    t->n_ids = max + 1;
    size_t n = (size_t)t->n_ids;
    t->token = mem_zalloc(n, sizeof *t->token);
    t->token_len = mem_zalloc(n, sizeof *t->token_len);
    t->vocab_flags = mem_zalloc(n, 1);
    t->vocab_start = mem_zalloc(n + 1, sizeof *t->vocab_start);
    if (!t->token || !t->token_len || !t->vocab_flags || !t->vocab_start)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for %d tokens", t->n_ids);
    for (uint32_t i = 0; i < v->n; i++) {
        t->token[v->entries[i].id] = v->pool + v->entries[i].off;
        t->token_len[v->entries[i].id] = v->entries[i].len;
    }
    for (int i = 0; i < t->added.n; i++) {
        const struct added_token *tok = &t->added.tokens[i];
        t->token[tok->id] = tok->content;
        t->token_len[tok->id] = tok->len;
        t->vocab_flags[tok->id] |= (uint8_t)(VOCAB_ADDED | (tok->special ? VOCAB_SPECIAL : 0));
    }
    mark_copies(t);
    return SL_OK;
}

static enum sl_status build_vocab(struct tokenizer *t, struct sl_err *err)
{
    struct strbuf all, one, tmp;
    strbuf_init(&all, MAX_TEXT_BYTES * 2u);
    strbuf_init(&one, 1 << 24);
    strbuf_init(&tmp, 1 << 24);
    struct scratch *sc = scratch_take(t);
    enum sl_status st = sc ? SL_OK : SL_ENOMEM;
    for (int32_t id = 0; id < t->n_ids && !st; id++) {
        bool byte = false;
        t->vocab_start[id] = (uint32_t)all.len;
        if (!t->token[id]) {
            t->vocab_flags[id] |= VOCAB_UNUSED;
            continue;
        }
        st = dec_token_bytes(t, sc, id, &one, &tmp, &byte);
        strbuf_add(&all, one.data, one.len);
        t->vocab_flags[id] |= byte ? VOCAB_BYTE : 0;
    }
    t->vocab_start[t->n_ids] = (uint32_t)all.len;
    if (sc)
        scratch_give(t, sc);
    strbuf_fini(&one);
    strbuf_fini(&tmp);
    t->vocab_bytes = st ? NULL : (uint8_t *)strbuf_take(&all);
    strbuf_fini(&all);
    if (!t->vocab_bytes)
        return SL_FAIL(err, st ? st : SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    t->vocab = (struct vocab){t->n_ids, t->vocab_start, t->vocab_bytes, t->vocab_flags};
    return SL_OK;
}

static enum sl_status check_post(const struct tokenizer *t, const struct post_piece *p, int n,
                                 struct sl_err *err)
{
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < p[i].n; k++) {
            if (p[i].ids[k] >= t->n_ids)
                return SL_FAIL(err, SL_EFORMAT,
                               "tokenizer: the post-processor names id %d of a vocabulary of %d",
                               p[i].ids[k], t->n_ids);
        }
    }
    return SL_OK;
}

enum sl_status tokenizer_finish(struct tokenizer *t, struct sl_err *err)
{
    if (!t->n_dec_token)
        t->n_dec_token = t->n_dec;
    enum sl_status st = t->kind == MODEL_BPE ? bpe_finish(t, err) : SL_OK;
    if (!st)
        st = added_finish(t, err);
    if (!st)
        st = build_ids(t, err);
    if (!st && !t->n_ids)
        st = SL_FAIL(err, SL_EFORMAT, "tokenizer: the vocabulary is empty");
    if (!st)
        st = build_vocab(t, err);
    if (!st)
        st = check_post(t, t->post.single, t->post.n_single, err);
    if (!st)
        st = check_post(t, t->post.pair, t->post.n_pair, err);
    return st;
}

enum sl_status tokenizer_from_json(struct tokenizer **out, const char *json, size_t bytes,
                                   struct sl_err *err)
{
    json_error_t why;
    json_t *root = json_loadb(json, bytes, JSON_ALLOW_NUL, &why);
    if (!root)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer.json: line %d: %s", why.line, why.text);
    struct tokenizer *t = tokenizer_new();
    enum sl_status st =
        t ? tokenizer_parse_json(t, root, err) : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory");
    json_decref(root);
    if (!st)
        st = tokenizer_finish(t, err);
    if (st) {
        tokenizer_destroy(&t);
        return st;
    }
    *out = t;
    return SL_OK;
}

enum sl_status tokenizer_load(struct tokenizer **out, const char *dir, struct sl_err *err)
{
    struct tokenizer *t = tokenizer_new();
    enum sl_status st =
        t ? tokenizer_from_dir(t, dir, err) : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory");
    if (!st)
        st = tokenizer_finish(t, err);
    if (st) {
        tokenizer_destroy(&t);
        return st;
    }
    *out = t;
    return SL_OK;
}

/* ---- encoding ---------------------------------------------------------------------------------
 */

enum sl_status encoder_emit(struct encoder *e, const int32_t *ids, size_t n)
{
    struct token_vec *v = e->out;
    if (n > e->limit - v->n)
        return SL_FAIL(e->err, SL_EINVAL, "the text has more tokens than the limit allows");
    if (n > v->cap - v->n) {
        size_t cap = v->cap ? v->cap * 2 : 64;
        while (cap - v->n < n)
            cap *= 2;
        int32_t *p = mem_realloc(v->ids, cap, sizeof *p);
        if (!p)
            return SL_FAIL(e->err, SL_ENOMEM, "no memory for %zu tokens", cap);
        v->ids = p;
        v->cap = cap;
    }
    memcpy(v->ids + v->n, ids, n * sizeof *ids);
    v->n += n;
    return SL_OK;
}

enum sl_status model_word(struct encoder *e, const char *s, size_t n)
{
    switch (e->t->kind) {
    case MODEL_BPE:
        return bpe_word(e, s, n);
    case MODEL_UNIGRAM:
        return unigram_word(e, s, n);
    case MODEL_WORDPIECE:
        return wordpiece_word(e, s, n);
    case MODEL_WORDLEVEL:
        return wordlevel_word(e, s, n);
    }
    return SL_EINVAL;
}

static enum sl_status pre_run_first(struct encoder *e, const char *s, size_t n, bool at_origin)
{
    return pre_run(e, 0, s, n, at_origin);
}

/* Text between the added tokens that are looked for as they are. */
static enum sl_status run_section(struct encoder *e, const char *s, size_t n, bool at_origin)
{
    enum sl_status st = norm_run(e->t, e->sc, &s, &n, &at_origin, e->err);
    if (st || !n)
        return st;
    return added_run(e, e->t->added.normalized, s, n, at_origin, pre_run_first);
}

static enum sl_status run_text(struct encoder *e, const char *s, size_t n)
{
    if (n > INT32_MAX)
        return SL_FAIL(e->err, SL_EINVAL, "a text of %zu bytes is too long to tokenize", n);
    if (utf8_valid_prefix(s, n) < n) {
        struct strbuf *b = &e->sc->repaired;
        strbuf_clear(b);
        utf8_repair(b, s, n);
        if (b->failed)
            return SL_FAIL(e->err, SL_ENOMEM, "no memory to tokenize %zu bytes", n);
        s = b->data;
        n = b->len;
    }
    return added_run(e, e->t->added.raw, s, n, true, run_section);
}

/* text[i], bytes[i] for each sequence, in the order of the post-processor. second: it is a pair,
 * and gets where its second text begins. */
static enum sl_status encode(const struct tokenizer *t, const char *const *text,
                             const size_t *bytes, size_t *second, unsigned flags, size_t max_tokens,
                             struct token_vec *out, struct sl_err *err)
{
    bool pair = second != NULL;
    struct scratch *sc = scratch_take(t);
    if (!sc)
        return SL_FAIL(err, SL_ENOMEM, "no memory to tokenize");
    size_t before = out->n;
    struct encoder e = {t, sc, out, SIZE_MAX, flags, err};
    if (max_tokens && max_tokens < SIZE_MAX - before)
        e.limit = before + max_tokens;
    static const struct post_piece plain[] = {{.sequence = 0}, {.sequence = 1}};
    const struct post_piece *pieces = pair ? t->post.pair : t->post.single;
    int n = pair ? t->post.n_pair : t->post.n_single;
    if (!n) {
        pieces = plain;
        n = pair ? 2 : 1;
    }
    enum sl_status st = SL_OK;
    for (int i = 0; i < n && !st; i++) {
        int seq = pieces[i].sequence;
        if (seq > 0 && pair)
            *second = out->n - before;
        if (seq >= 0)
            st = seq && !pair ? SL_OK : run_text(&e, text[seq], bytes[seq]);
        else if (flags & ENCODE_ADD_SPECIAL)
            st = encoder_emit(&e, pieces[i].ids, (size_t)pieces[i].n);
    }
    scratch_give(t, sc);
    if (st)
        out->n = before;
    return st;
}

enum sl_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                                unsigned flags, size_t max_tokens, struct token_vec *out,
                                struct sl_err *err)
{
    return encode(t, &text, &bytes, NULL, flags, max_tokens, out, err);
}

enum sl_status tokenizer_encode_pair(const struct tokenizer *t, const char *a, size_t a_bytes,
                                     const char *b, size_t b_bytes, unsigned flags, size_t *second,
                                     struct token_vec *out, struct sl_err *err)
{
    *second = 0;
    const char *text[] = {a, b};
    size_t bytes[] = {a_bytes, b_bytes};
    return encode(t, text, bytes, second, flags, 0, out, err);
}

/* ---- looking things up ------------------------------------------------------------------------
 */

const struct vocab *tokenizer_vocab(const struct tokenizer *t)
{
    return &t->vocab;
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_ids ? t->token[id] : NULL;
}

int32_t tokenizer_token_id(const struct tokenizer *t, const char *token)
{
    size_t n = strlen(token);
    int32_t i = strmap_get(&t->added.by_content, token, n);
    return i >= 0 ? t->added.tokens[i].id : strmap_get(&t->model_vocab, token, n);
}
