/* SentencePiece models (tokenizer.model): a protobuf of pieces, a trainer's and a normalizer's
 * spec.
 *
 * Only the few fields that say how to tokenize are read; the wire format is simple enough (varints,
 * fixed and counted fields) that each is checked against what remains.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

#define META "\xE2\x96\x81" /* U+2581, the space's stand-in */

/* ---- wire format ------------------------------------------------------------------------------
 */

struct wire {
    const unsigned char *p, *end;
};
struct field {
    unsigned number, type;
    uint64_t value;    /* varint, fixed */
    struct wire bytes; /* counted */
};

static bool varint(struct wire *w, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 64 && w->p < w->end; shift += 7) {
        unsigned char b = *w->p++;
        *out |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80))
            return true;
    }
    return false;
}

static bool fixed(struct wire *w, size_t n, uint64_t *out)
{
    if ((size_t)(w->end - w->p) < n)
        return false;
    *out = 0;
    for (size_t i = 0; i < n; i++)
        *out |= (uint64_t)w->p[i] << (8 * i);
    w->p += n;
    return true;
}

/* 1: a field, 0: the end, -1: broken. */
static int next_field(struct wire *w, struct field *f)
{
    uint64_t key, n;
    if (w->p == w->end)
        return 0;
    if (!varint(w, &key) || key >> 3 == 0 || key >> 3 > 1 << 20)
        return -1;
    *f = (struct field){.number = (unsigned)(key >> 3), .type = (unsigned)(key & 7)};
    switch (f->type) {
    case 0:
        return varint(w, &f->value) ? 1 : -1;
    case 1:
        return fixed(w, 8, &f->value) ? 1 : -1;
    case 5:
        return fixed(w, 4, &f->value) ? 1 : -1;
    case 2:
        if (!varint(w, &n) || n > (uint64_t)(w->end - w->p))
            return -1;
        f->bytes = (struct wire){w->p, w->p + n};
        w->p += n;
        return 1;
    default:
        return -1;
    }
}

/* ---- the model --------------------------------------------------------------------------------
 */

enum piece_type { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };
enum { MODEL_TYPE_UNIGRAM = 1, MODEL_TYPE_BPE = 2 };

struct piece {
    const char *s;
    uint32_t n;
    float score;
    enum piece_type type;
};

struct spm {
    struct piece *pieces;
    size_t n, cap;
    uint64_t model_type, unk_id;
    int64_t bos_id, eos_id;
    bool byte_fallback, dummy_prefix, trim_spaces;
    struct wire charsmap;
};

static bool read_piece(struct wire w, struct piece *p)
{
    struct field f;
    int rc;
    *p = (struct piece){.s = "", .type = NORMAL};
    while ((rc = next_field(&w, &f)) > 0) {
        if (f.number == 1 && f.type == 2) {
            p->s = (const char *)f.bytes.p;
            p->n = (uint32_t)(f.bytes.end - f.bytes.p);
        } else if (f.number == 2 && f.type == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&p->score, &bits, 4);
        } else if (f.number == 3 && f.type == 0) {
            p->type = (enum piece_type)f.value;
        }
    }
    return !rc && utf8_valid_prefix(p->s, p->n) == p->n && p->score == p->score;
}

static bool read_trainer(struct wire w, struct spm *m)
{
    struct field f;
    int rc;
    while ((rc = next_field(&w, &f)) > 0) {
        if (f.type)
            continue;
        if (f.number == 3)
            m->model_type = f.value;
        else if (f.number == 35)
            m->byte_fallback = f.value != 0;
        else if (f.number == 40)
            m->unk_id = f.value;
        else if (f.number == 41)
            m->bos_id = (int64_t)f.value;
        else if (f.number == 42)
            m->eos_id = (int64_t)f.value;
    }
    return !rc;
}

static bool read_normalizer(struct wire w, struct spm *m)
{
    struct field f;
    int rc;
    while ((rc = next_field(&w, &f)) > 0) {
        if (f.number == 2 && f.type == 2)
            m->charsmap = f.bytes;
        else if (f.number == 3 && f.type == 0)
            m->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.type == 0)
            m->trim_spaces = f.value != 0;
    }
    return !rc;
}

static enum sl_status push_piece(struct spm *m, const struct field *f, struct sl_err *err)
{
    if (m->n == TOK_MAX_ID)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer.model: too many pieces");
    if (m->n == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 4096;
        struct piece *p = mem_realloc(m->pieces, cap, sizeof *p);
        if (!p)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer.model: no memory for the pieces");
        m->pieces = p;
        m->cap = cap;
    }
    if (!read_piece(f->bytes, &m->pieces[m->n]))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer.model: piece %zu is broken", m->n);
    m->n++;
    return SL_OK;
}

static enum sl_status read_model(struct wire w, struct spm *m, struct sl_err *err)
{
    struct field f;
    int rc;
    enum sl_status st = SL_OK;
    *m = (struct spm){.model_type = MODEL_TYPE_UNIGRAM,
                      .bos_id = 1,
                      .eos_id = 2,
                      .dummy_prefix = true,
                      .trim_spaces = true};
    while (!st && (rc = next_field(&w, &f)) != 0) {
        bool ok = rc > 0;
        if (ok && f.type == 2 && f.number == 1)
            st = push_piece(m, &f, err);
        else if (ok && f.type == 2 && f.number == 2)
            ok = read_trainer(f.bytes, m);
        else if (ok && f.type == 2 && f.number == 3)
            ok = read_normalizer(f.bytes, m);
        if (!ok)
            st = SL_FAIL(err, SL_EFORMAT, "tokenizer.model: not a whole SentencePiece model");
    }
    if (!st && !m->n)
        st = SL_FAIL(err, SL_EFORMAT, "tokenizer.model: no pieces");
    return st;
}

bool is_sentencepiece(const char *data, size_t bytes)
{
    struct wire w = {(const unsigned char *)data, (const unsigned char *)data + bytes};
    struct field f;
    struct piece p;
    return next_field(&w, &f) > 0 && f.number == 1 && f.type == 2 && read_piece(f.bytes, &p);
}

/* ---- BPE --------------------------------------------------------------------------------------
 */

static int by_score(const void *a, const void *b)
{
    const struct piece *const *x = a, *const *y = b;
    return ((*x)->score < (*y)->score) - ((*x)->score > (*y)->score);
}

static bool mergeable(enum piece_type type)
{
    return type == NORMAL || type == USER_DEFINED || type == UNUSED;
}

/* Each cut of a piece in two pieces is a merge; the better the score the earlier, and equal scores
 * rank the same. */
static size_t each_cut(struct tokenizer *t, struct spm *m, struct piece **order, size_t n, bool put)
{
    size_t cuts = 0;
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        const struct piece *p = order[i];
        if (i && order[i - 1]->score != p->score)
            rank++;
        for (size_t k = utf8_len(p->s[0]); k < p->n; k += utf8_len(p->s[k])) {
            int32_t left = strmap_get(&t->model_vocab, p->s, k);
            int32_t right = left < 0 ? -1 : strmap_get(&t->model_vocab, p->s + k, p->n - k);
            if (right < 0 || !mergeable(m->pieces[left].type) || !mergeable(m->pieces[right].type))
                continue;
            cuts++;
            if (put)
                bpe_put_merge(&t->bpe, left, right, rank, (int32_t)(p - m->pieces));
        }
    }
    return cuts;
}

static enum sl_status build_bpe(struct tokenizer *t, struct spm *m, struct sl_err *err)
{
    struct piece **order = mem_alloc(m->n, sizeof *order);
    if (!order)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer.model: no memory for the merges");
    size_t n = 0;
    for (size_t i = 0; i < m->n; i++) {
        if (mergeable(m->pieces[i].type) && m->pieces[i].n)
            order[n++] = &m->pieces[i];
    }
    qsort(order, n, sizeof *order, by_score);
    t->kind = MODEL_BPE;
    t->bpe.fuse_unk = true;
    t->bpe.byte_fallback = m->byte_fallback;
    t->bpe.unk_id = m->unk_id < m->n ? (int32_t)m->unk_id : -1;
    enum sl_status st = bpe_reserve_merges(&t->bpe, each_cut(t, m, order, n, false), err);
    if (!st)
        each_cut(t, m, order, n, true);
    mem_free(order);
    return st;
}

/* ---- stages -----------------------------------------------------------------------------------
 */

static enum sl_status push_replace(struct tokenizer *t, const char *what, const char *by,
                                   struct sl_err *err)
{
    struct normalizer *n = norm_push(t, NORM_REPLACE, err);
    if (!n)
        return SL_EFORMAT;
    n->content = mem_strdup(by);
    n->content_len = strlen(by);
    if (!n->content)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a normalizer");
    return pattern_literal(&n->pattern, what, strlen(what), err);
}

static enum sl_status push_prefix(struct tokenizer *t, struct sl_err *err)
{
    struct normalizer *n = norm_push(t, NORM_PREPEND, err);
    if (!n)
        return SL_EFORMAT;
    n->content = mem_strdup(META);
    n->content_len = strlen(META);
    return n->content ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a normalizer");
}

static enum sl_status push_metaspace(struct tokenizer *t, enum prepend_scheme scheme, bool split,
                                     struct sl_err *err)
{
    struct pre_step *p = pre_push(t, PRE_METASPACE, err);
    if (!p)
        return SL_EFORMAT;
    memcpy(p->replacement, META, sizeof META);
    p->scheme = scheme;
    if (!split)
        return SL_OK;
    p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->behavior = SPLIT_MERGED_WITH_NEXT;
    return pattern_literal(&p->pattern, META, strlen(META), err);
}

static enum sl_status push_common_normalizers(struct tokenizer *t, const struct spm *m,
                                              struct sl_err *err)
{
    if (m->charsmap.end > m->charsmap.p) {
        struct normalizer *n = norm_push(t, NORM_CHARSMAP, err);
        if (!n)
            return SL_EFORMAT;
        enum sl_status st = charsmap_create(&n->charsmap, m->charsmap.p,
                                            (size_t)(m->charsmap.end - m->charsmap.p), err);
        if (st)
            return st;
    }
    if (m->trim_spaces && !norm_push(t, NORM_COLLAPSE_SPACES, err))
        return SL_EFORMAT;
    return SL_OK;
}

/* legacy: every piece of text between special tokens gets the first space, as Llama 2's tokenizer
 * had it first; else only the beginning of the whole text. */
static enum sl_status bpe_stages(struct tokenizer *t, const struct spm *m, bool legacy,
                                 struct sl_err *err)
{
    static const struct {
        const char *what, *by;
    } meta = {META, " "};
    enum sl_status st = push_common_normalizers(t, m, err);
    if (!st && legacy && m->dummy_prefix)
        st = push_prefix(t, err);
    if (!st && legacy)
        st = push_replace(t, " ", META, err);
    if (!st && !legacy)
        st = push_metaspace(t, m->dummy_prefix ? PREPEND_FIRST : PREPEND_NEVER, false, err);
    struct dec_step *d = st ? NULL : dec_push(t, DEC_REPLACE, err);
    if (!d)
        return st ? st : SL_EFORMAT;
    d->content = mem_strdup(meta.by);
    d->content_len = 1;
    st = pattern_literal(&d->pattern, meta.what, strlen(meta.what), err);
    if (st || !d->content || !dec_push(t, DEC_BYTE_FALLBACK, err) || !dec_push(t, DEC_FUSE, err))
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
    if (!m->dummy_prefix)
        return SL_OK;
    d = dec_push(t, DEC_STRIP, err);
    if (!d || !(d->content = mem_strdup(" ")))
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
    d->content_len = d->start = 1;
    return SL_OK;
}

static enum sl_status unigram_stages(struct tokenizer *t, const struct spm *m, struct sl_err *err)
{
    enum sl_status st = push_common_normalizers(t, m, err);
    if (!st)
        st = push_metaspace(t, m->dummy_prefix ? PREPEND_ALWAYS : PREPEND_NEVER, true, err);
    struct dec_step *d = st ? NULL : dec_push(t, DEC_METASPACE, err);
    if (!d)
        return st ? st : SL_EFORMAT;
    d->content = mem_strdup(META);
    d->content_len = strlen(META);
    d->drop_first = m->dummy_prefix;
    return d->content ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
}

/* ---- putting it together ----------------------------------------------------------------------
 */

static enum sl_status add_specials(struct tokenizer *t, const struct spm *m, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < m->n && !st; i++) {
        const struct piece *p = &m->pieces[i];
        if (p->type != CONTROL && p->type != USER_DEFINED && p->type != UNKNOWN)
            continue;
        struct added_token tok = {.id = -1, .len = p->n, .special = p->type != USER_DEFINED};
        tok.content = mem_strndup(p->s, p->n); /* with a NUL, for messages */
        if (!tok.content)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
        st = added_put(t, &tok, err);
        mem_free(tok.content);
    }
    return st;
}

static enum sl_status build_unigram(struct tokenizer *t, const struct spm *m, int extra,
                                    struct sl_err *err)
{
    size_t n = m->n + (size_t)extra;
    double *scores = mem_alloc(n, sizeof *scores);
    if (!scores)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    for (size_t i = 0; i < n; i++)
        scores[i] = i < m->n ? (double)m->pieces[i].score : 0.0;
    t->kind = MODEL_UNIGRAM;
    enum sl_status st =
        unigram_create(&t->unigram, &t->model_vocab, scores, n,
                       m->unk_id < m->n ? (int32_t)m->unk_id : -1, m->byte_fallback, err);
    if (st)
        mem_free(scores);
    return st;
}

/* T5 has room for 100 sentinels behind the pieces. */
static enum sl_status add_sentinels(struct tokenizer *t, const struct spm *m, int extra, bool added,
                                    struct sl_err *err)
{
    enum sl_status st = SL_OK;
    for (int i = 0; i < extra && !st; i++) {
        char name[32];
        snprintf(name, sizeof name, "<extra_id_%d>", extra - 1 - i);
        struct added_token tok = {
            .id = -1, .content = name, .len = (uint32_t)strlen(name), .special = true};
        if (added)
            st = added_put(t, &tok, err);
        else if (!strmap_append(&t->model_vocab, name, strlen(name), (int32_t)m->n + i))
            st = SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    }
    return st;
}

static const char *piece_name(const struct tokenizer *t, int64_t id)
{
    for (uint32_t i = 0; i < t->model_vocab.n; i++) {
        if (t->model_vocab.entries[i].id == id)
            return t->model_vocab.pool + t->model_vocab.entries[i].off;
    }
    return NULL;
}

/* These number their pieces otherwise than the file does. */
static const char *renumbered(const char *class)
{
    static const char *const classes[] = {"XLMRoberta", "Camembert", "MBart",    "M2M100",
                                          "NllB",       "Nllb",      "XGLM",     "Barthez",
                                          "Pegasus",    "BigBird",   "Reformer", "DebertaV2"};
    for (size_t i = 0; class && i < sizeof classes / sizeof *classes; i++) {
        if (!strncmp(class, classes[i], strlen(classes[i])))
            return classes[i];
    }
    return NULL;
}

static enum sl_status build(struct tokenizer *t, struct spm *m, const json_t *config,
                            struct sl_err *err)
{
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    bool bpe = m->model_type == MODEL_TYPE_BPE, t5 = class && !strncmp(class, "T5", 2);
    const json_t *ids = json_object_get(config, "extra_ids");
    int extra = !t5 ? 0 : json_is_number(ids) ? (int)json_number_value(ids) : 100;
    if (renumbered(class))
        return SL_FAIL(err, SL_ENOSUPPORT, "%s from tokenizer.model: it needs a tokenizer.json",
                       class);
    if ((!bpe && m->model_type != MODEL_TYPE_UNIGRAM) || extra < 0 || extra > 10000)
        return SL_FAIL(err, SL_ENOSUPPORT, "tokenizer.model: model type %d is not supported",
                       (int)m->model_type);
    for (size_t i = 0; i < m->n; i++) {
        if (!strmap_append(&t->model_vocab, m->pieces[i].s, m->pieces[i].n, (int32_t)i))
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    }
    enum sl_status st = add_sentinels(t, m, extra, false, err);
    if (!st)
        st = bpe ? build_bpe(t, m, err) : build_unigram(t, m, extra, err);
    if (!st)
        st = bpe ? bpe_stages(t, m, !json_is_false(json_object_get(config, "legacy")), err)
                 : unigram_stages(t, m, err);
    if (!st)
        st = add_specials(t, m, err);
    if (!st)
        st = add_sentinels(t, m, extra, true, err);
    if (st)
        return st;
    const json_t *add_bos = json_object_get(config, "add_bos_token");
    const json_t *add_eos = json_object_get(config, "add_eos_token");
    bool bos = json_is_boolean(add_bos) ? json_is_true(add_bos) : bpe;
    bool eos = json_is_boolean(add_eos) ? json_is_true(add_eos) : t5;
    return config_set_bos_eos(t, bos ? piece_name(t, m->bos_id) : NULL,
                              eos ? piece_name(t, m->eos_id) : NULL, err);
}

enum sl_status tokenizer_from_sentencepiece(struct tokenizer *t, const char *data, size_t bytes,
                                            const json_t *config, struct sl_err *err)
{
    struct wire w = {(const unsigned char *)data, (const unsigned char *)data + bytes};
    struct spm m = {0};
    enum sl_status st = read_model(w, &m, err);
    if (!st)
        st = build(t, &m, config, err);
    mem_free(m.pieces);
    return st;
}
