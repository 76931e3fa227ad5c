/* tokenizer.json: the model, the added tokens, and the list of stages.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <math.h>
#include <string.h>

static bool flag(const json_t *json, const char *key, bool absent)
{
    const json_t *v = json_object_get(json, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
}

/* ---- vocabulary -------------------------------------------------------------------------------
 */

/* {"token": id, ...} */
enum sl_status vocab_parse(struct tokenizer *t, json_t *vocab, struct sl_err *err)
{
    const char *key;
    size_t len;
    json_t *value;
    if (!json_is_object(vocab))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the model has no \"vocab\" object");
    size_t n = json_object_size(vocab);
    if (n > TOK_MAX_ID)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a vocabulary of %zu tokens is too large", n);
    if (!strmap_reserve(&t->model_vocab, n, n * 12))
        return no_memory(err);
    json_object_keylen_foreach(vocab, key, len, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= TOK_MAX_ID)
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: the token %.80s has no usable id", key);
        if (!strmap_put(&t->model_vocab, key, len, (int32_t)id))
            return no_memory(err);
    }
    return SL_OK;
}

static enum sl_status parse_unk(struct tokenizer *t, const json_t *model, int32_t *id,
                                struct sl_err *err)
{
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    *id = unk ? strmap_get(&t->model_vocab, unk, strlen(unk)) : -1;
    (void)err;
    return SL_OK;
}

/* ---- BPE --------------------------------------------------------------------------------------
 */

struct merge_text {
    const char *a, *b;
    size_t a_len, b_len;
};

/* "a b" or ["a", "b"]. */
static bool merge_parts(const json_t *m, struct merge_text *out)
{
    if (json_is_string(m)) {
        out->a = json_string_value(m);
        size_t n = json_string_length(m);
        const char *space = memchr(out->a, ' ', n);
        if (!space)
            return false;
        out->a_len = (size_t)(space - out->a);
        out->b = space + 1;
        out->b_len = n - out->a_len - 1;
        return !memchr(out->b, ' ', out->b_len);
    }
    const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    if (json_array_size(m) != 2 || !json_is_string(a) || !json_is_string(b))
        return false;
    *out = (struct merge_text){json_string_value(a), json_string_value(b), json_string_length(a),
                               json_string_length(b)};
    return true;
}

/* One merge on its way into the table. */
struct merge_item {
    struct merge_text text;
    uint32_t joined, joined_len; /* in the block's buffer */
    struct strmap_probe left, right, both;
    uint32_t rank;
};

static enum sl_status merge_failed(const struct merge_item *m, struct sl_err *err)
{
    return SL_FAIL(err, SL_EFORMAT,
                   "tokenizer: merge %u joins %.*s and %.*s, not all in the vocabulary", m->rank,
                   (int)(m->text.a_len < 80 ? m->text.a_len : 80), m->text.a,
                   (int)(m->text.b_len < 80 ? m->text.b_len : 80), m->text.b);
}

enum { MERGE_BLOCK = 32 };

/* The lookups of many merges wait for memory together instead of one after another: a vocabulary
 * and its merges are larger than the near caches, and loading is mostly this. */
static enum sl_status put_block(struct tokenizer *t, struct merge_item *m, size_t n,
                                struct strbuf *buf, struct sl_err *err)
{
    const struct strmap *v = &t->model_vocab;
    size_t prefix = t->bpe.prefix ? strlen(t->bpe.prefix) : 0;
    int32_t ids[MERGE_BLOCK][3];
    strbuf_clear(buf);
    for (size_t i = 0; i < n; i++) {
        const struct merge_text *p = &m[i].text;
        m[i].joined = (uint32_t)buf->len;
        strbuf_add(buf, p->a, p->a_len);
        if (p->b_len >= prefix)
            strbuf_add(buf, p->b + prefix, p->b_len - prefix);
        m[i].joined_len = (uint32_t)(buf->len - m[i].joined);
    }
    if (buf->failed)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        m[i].left = strmap_probe(v, m[i].text.a, m[i].text.a_len);
        m[i].right = strmap_probe(v, m[i].text.b, m[i].text.b_len);
        m[i].both = strmap_probe(v, buf->len ? buf->data + m[i].joined : "", m[i].joined_len);
    }
    for (size_t i = 0; i < n; i++) {
        strmap_prefetch(v, &m[i].left);
        strmap_prefetch(v, &m[i].right);
        strmap_prefetch(v, &m[i].both);
    }
    for (size_t i = 0; i < n; i++) {
        ids[i][0] = strmap_found(v, &m[i].left);
        ids[i][1] = strmap_found(v, &m[i].right);
        ids[i][2] = strmap_found(v, &m[i].both);
        if (ids[i][0] < 0 || ids[i][1] < 0 || ids[i][2] < 0)
            return merge_failed(&m[i], err);
        bpe_prefetch_merge(&t->bpe, ids[i][0], ids[i][1]);
    }
    for (size_t i = 0; i < n; i++)
        bpe_put_merge(&t->bpe, ids[i][0], ids[i][1], m[i].rank, ids[i][2]);
    return SL_OK;
}

static enum sl_status parse_merges(struct tokenizer *t, json_t *merges, struct sl_err *err)
{
    if (!json_is_array(merges))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the model has no \"merges\" list");
    size_t size = json_array_size(merges), n = 0;
    enum sl_status st = bpe_reserve_merges(&t->bpe, size, err);
    struct merge_item block[MERGE_BLOCK];
    struct strbuf buf;
    strbuf_init(&buf, 0);
    uint32_t rank = 0;
    for (size_t i = 0; i < size && !st; i++) {
        const json_t *m = json_array_get(merges, i);
        __builtin_prefetch(json_array_get(merges, i + MERGE_BLOCK < size ? i + MERGE_BLOCK : i));
        if (json_is_string(m) && !strncmp(json_string_value(m), "#version", 8))
            continue;
        if (!merge_parts(m, &block[n].text)) {
            st = SL_FAIL(err, SL_EFORMAT, "tokenizer: merge %zu is not a pair", i);
            break;
        }
        block[n++].rank = rank++;
        if (n == MERGE_BLOCK) {
            st = put_block(t, block, n, &buf, err);
            n = 0;
        }
    }
    if (!st && n)
        st = put_block(t, block, n, &buf, err);
    strbuf_fini(&buf);
    return st;
}

enum sl_status bpe_add_merge(struct tokenizer *t, const char *a, size_t a_len, const char *b,
                             size_t b_len, uint32_t rank, struct strbuf *joined, struct sl_err *err)
{
    struct merge_item one = {.text = {a, b, a_len, b_len}, .rank = rank};
    return put_block(t, &one, 1, joined, err);
}

/* A string that is there and not empty. */
static enum sl_status optional(char **out, const json_t *json, const char *key, struct sl_err *err)
{
    const char *s = json_string_value(json_object_get(json, key));
    if (!s || !s[0])
        return SL_OK;
    *out = mem_strdup(s);
    return *out ? SL_OK : no_memory(err);
}

static enum sl_status parse_bpe(struct tokenizer *t, const json_t *model, struct sl_err *err)
{
    struct bpe *b = &t->bpe;
    b->fuse_unk = flag(model, "fuse_unk", false);
    b->byte_fallback = flag(model, "byte_fallback", false);
    b->ignore_merges = flag(model, "ignore_merges", false);
    enum sl_status st = optional(&b->prefix, model, "continuing_subword_prefix", err);
    if (!st)
        st = optional(&b->suffix, model, "end_of_word_suffix", err);
    if (!st)
        st = vocab_parse(t, json_object_get(model, "vocab"), err);
    if (!st)
        st = parse_unk(t, model, &b->unk_id, err);
    return st ? st : parse_merges(t, json_object_get(model, "merges"), err);
}

/* ---- the other models -------------------------------------------------------------------------
 */

/* The value that serde_json reads where a file says x: it divides the digits, as a double, by a
 * power of ten, which for 16 and 17 digits can be one unit off. Scores are summed, and sums that
 * would tie are told apart by that unit. */
static double as_serde_reads(double x)
{
    static const double p10[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                 1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    double a = fabs(x);
    if (!(a > 1e-5 && a < 1e15)) /* exponents: digits unknown, and no real score */
        return x;
    int e = 16 - (int)floor(log10(a));
    if (e > 22)
        return x;
    long double digits = (long double)a * p10[e];
    long double half = ((long double)nextafter(a, INFINITY) - a) / 2 * p10[e];
    for (int unit = 100; unit >= 1; unit /= 10) { /* 15, 16, 17 digits: the first that suffices */
        long double d = roundl(digits / unit) * unit;
        if (fabsl(d - digits) >= half && unit > 1)
            continue;
        if (unit == 100)
            return x;
        double r = (double)(uint64_t)(d / unit) / p10[unit == 10 ? e - 1 : e];
        return x < 0 ? -r : r;
    }
    return x;
}

/* [["token", score], ...]: ids are places. */
static enum sl_status parse_scores(struct tokenizer *t, json_t *vocab, double *scores,
                                   struct sl_err *err)
{
    size_t i;
    json_t *item;
    json_array_foreach(vocab, i, item)
    {
        const json_t *token = json_array_get(item, 0), *score = json_array_get(item, 1);
        if (!json_is_string(token) || !json_is_number(score))
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: entry %zu of the vocabulary is no pair", i);
        scores[i] = as_serde_reads(json_number_value(score));
        if (!strmap_append(&t->model_vocab, json_string_value(token), json_string_length(token),
                           (int32_t)i))
            return no_memory(err);
    }
    return SL_OK;
}

static enum sl_status parse_unigram(struct tokenizer *t, const json_t *model, struct sl_err *err)
{
    json_t *vocab = json_object_get(model, "vocab");
    const json_t *unk = json_object_get(model, "unk_id");
    size_t n = json_array_size(vocab);
    json_int_t unk_id = json_is_integer(unk) ? json_integer_value(unk) : -1;
    if (!n || n > TOK_MAX_ID)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the Unigram model has no usable \"vocab\"");
    if (unk_id < -1 || unk_id >= (json_int_t)n)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: unk_id is not in the vocabulary");
    double *scores = mem_alloc(n, sizeof *scores);
    if (!scores || !strmap_reserve(&t->model_vocab, n, n * 12)) {
        mem_free(scores);
        return no_memory(err);
    }
    enum sl_status st = parse_scores(t, vocab, scores, err);
    if (!st)
        st = unigram_create(&t->unigram, &t->model_vocab, scores, n, (int32_t)unk_id,
                            flag(model, "byte_fallback", false), err);
    if (st)
        mem_free(scores);
    return st;
}

static enum sl_status parse_wordpiece(struct tokenizer *t, const json_t *model, struct sl_err *err)
{
    const char *prefix = json_string_value(json_object_get(model, "continuing_subword_prefix"));
    const json_t *max = json_object_get(model, "max_input_chars_per_word");
    json_int_t chars = json_is_integer(max) ? json_integer_value(max) : 100;
    t->wp_max_chars = chars < 0 ? 0 : (size_t)chars;
    enum sl_status st = vocab_parse(t, json_object_get(model, "vocab"), err);
    if (!st)
        st = parse_unk(t, model, &t->unk_id, err);
    return st ? st : wordpiece_build(t, prefix ? prefix : "##", err);
}

static enum sl_status parse_wordlevel(struct tokenizer *t, const json_t *model, struct sl_err *err)
{
    enum sl_status st = vocab_parse(t, json_object_get(model, "vocab"), err);
    return st ? st : parse_unk(t, model, &t->unk_id, err);
}

/* Old files have no "type"; the fields tell. */
static bool model_kind(const json_t *model, enum model_kind *kind)
{
    static const char *const names[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    const char *type = json_string_value(json_object_get(model, "type"));
    for (int i = 0; type && i < 4; i++) {
        if (!strcmp(type, names[i])) {
            *kind = (enum model_kind)i;
            return true;
        }
    }
    if (type)
        return false;
    *kind = json_object_get(model, "merges")                      ? MODEL_BPE
            : json_is_array(json_object_get(model, "vocab"))      ? MODEL_UNIGRAM
            : json_object_get(model, "continuing_subword_prefix") ? MODEL_WORDPIECE
                                                                  : MODEL_WORDLEVEL;
    return true;
}

static enum sl_status parse_model(struct tokenizer *t, const json_t *model, struct sl_err *err)
{
    if (!json_is_object(model))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: no \"model\" object");
    if (!model_kind(model, &t->kind))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown model type %.40s",
                       json_string_value(json_object_get(model, "type")));
    switch (t->kind) {
    case MODEL_BPE:
        return parse_bpe(t, model, err);
    case MODEL_UNIGRAM:
        return parse_unigram(t, model, err);
    case MODEL_WORDPIECE:
        return parse_wordpiece(t, model, err);
    case MODEL_WORDLEVEL:
        return parse_wordlevel(t, model, err);
    }
    return SL_EFORMAT;
}

/* ---- added tokens -----------------------------------------------------------------------------
 */

enum sl_status added_parse(struct tokenizer *t, const json_t *json, long long id,
                           struct sl_err *err)
{
    const json_t *content = json_object_get(json, "content");
    if (!json_is_string(content))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: an added token has no \"content\"");
    bool special = flag(json, "special", false);
    struct added_token tok = {
        .id = id >= 0 && id < TOK_MAX_ID ? (int32_t)id : -1,
        .content = (char *)json_string_value(content),
        .len = (uint32_t)json_string_length(content),
        .special = special,
        .lstrip = flag(json, "lstrip", false),
        .rstrip = flag(json, "rstrip", false),
        .single_word = flag(json, "single_word", false),
        .normalized = flag(json, "normalized", !special),
    };
    return added_put(t, &tok, err);
}

enum sl_status tokenizer_parse_json(struct tokenizer *t, const json_t *root, struct sl_err *err)
{
    if (!json_is_object(root))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer.json: not an object");
    enum sl_status st = parse_model(t, json_object_get(root, "model"), err);
    if (!st)
        st = norm_parse(t, json_object_get(root, "normalizer"), 0, err);
    if (!st)
        st = pre_parse(t, json_object_get(root, "pre_tokenizer"), 0, err);
    if (!st)
        st = post_parse(t, json_object_get(root, "post_processor"), err);
    if (!st)
        st = dec_parse(t, json_object_get(root, "decoder"), 0, err);
    const json_t *added = json_object_get(root, "added_tokens");
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)added, i, item)
    {
        if (!st)
            st = added_parse(t, item, -1, err);
    }
    return st;
}
