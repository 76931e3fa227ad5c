/* Decoder steps: reading them from the file, and what each does to one whole token.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

void dec_step_fini(struct dec_step *s)
{
    pattern_fini(&s->pattern);
    mem_free(s->content);
    mem_free(s->delimiter);
    *s = (struct dec_step){0};
}

struct dec_step *dec_push(struct tokenizer *t, enum dec_kind kind, struct sl_err *err)
{
    if (t->n_dec == TOK_MAX_STEPS) {
        SL_FAIL(err, SL_EFORMAT, "tokenizer: more than %d decoders", TOK_MAX_STEPS);
        return NULL;
    }
    struct dec_step *s = &t->dec[t->n_dec++];
    *s = (struct dec_step){.kind = kind};
    return s;
}

/* ---- one token --------------------------------------------------------------------------------
 */

static void replace_all(struct strbuf *out, const char *s, size_t n, const char *what,
                        const char *by)
{
    size_t k = strlen(what), b = strlen(by);
    while (k && n) {
        const char *hit = memmem(s, n, what, k);
        if (!hit)
            break;
        strbuf_add(out, s, (size_t)(hit - s));
        strbuf_add(out, by, b);
        n -= (size_t)(hit - s) + k;
        s = hit + k;
    }
    strbuf_add(out, s, n);
}

/* What WordPiece and CTC call cleanup: these replacements, one after another. */
static void cleanup(struct strbuf *b)
{
    static const char *const pairs[][2] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (!b->len || !memmem(b->data, b->len, pairs[i][0], strlen(pairs[i][0])))
            continue;
        struct strbuf next;
        strbuf_init(&next, 0);
        replace_all(&next, b->data, b->len, pairs[i][0], pairs[i][1]);
        next.failed |= b->failed;
        strbuf_fini(b);
        *b = next;
    }
}

static void strip(const struct dec_step *d, const char **s, size_t *n)
{
    size_t k = d->content_len;
    for (size_t i = 0; i < d->start && *n >= k && !memcmp(*s, d->content, k); i++) {
        *s += k;
        *n -= k;
    }
    for (size_t i = 0; i < d->stop && *n >= k && !memcmp(*s + *n - k, d->content, k); i++)
        *n -= k;
}

static int replace_pattern(const struct dec_step *d, struct scratch *sc, const char *s, size_t n,
                           struct strbuf *out)
{
    struct pattern_iter it = {0};
    size_t done = 0, start, end;
    int rc = 0;
    while (n && (rc = pattern_next(&d->pattern, sc, s, n, &it, &start, &end)) > 0) {
        strbuf_add(out, s + done, start - done);
        strbuf_add(out, d->content, d->content_len);
        done = end;
    }
    strbuf_add(out, s + done, n - done);
    return rc;
}

int dec_byte_token(const char *s, size_t n)
{
    int byte = 0;
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        byte = byte * 16 + digit;
    }
    return byte;
}

int dec_apply(const struct dec_step *d, struct scratch *sc, const char *s, size_t n, bool first,
              bool last, bool glue, struct strbuf *out)
{
    size_t from = out->len;
    switch (d->kind) {
    case DEC_BYTE_LEVEL:
        if (!byte_level_bytes(s, n, out)) {
            out->len = from;
            strbuf_add(out, s, n);
        }
        return 0;
    case DEC_REPLACE:
        return replace_pattern(d, sc, s, n, out);
    case DEC_STRIP:
        strip(d, &s, &n);
        strbuf_add(out, s, n);
        return 0;
    case DEC_METASPACE:
        replace_all(out, s, n, d->content, first && d->drop_first ? "" : " ");
        return 0;
    case DEC_WORDPIECE:
        if (first)
            strbuf_add(out, s, n);
        else if (n >= d->content_len && !memcmp(s, d->content, d->content_len))
            strbuf_add(out, s + d->content_len, n - d->content_len);
        else
            strbuf_addf(out, "%s%.*s", glue ? "" : " ", (int)n, s);
        if (d->cleanup)
            cleanup(out);
        return 0;
    case DEC_BPE:
        replace_all(out, s, n, d->content, last ? "" : " ");
        return 0;
    case DEC_CTC:
        replace_all(out, s, n, d->content, "");
        if (d->cleanup) {
            struct strbuf b;
            cleanup(out);
            strbuf_init(&b, 0);
            replace_all(&b, out->data ? out->data : "", out->len, d->delimiter, " ");
            b.failed |= out->failed;
            strbuf_fini(out);
            *out = b;
        }
        return 0;
    case DEC_JOIN_SPACE:
        if (!first && !glue)
            strbuf_addc(out, ' ');
        strbuf_add(out, s, n);
        return 0;
    case DEC_BYTE_FALLBACK:
    case DEC_FUSE:
        strbuf_add(out, s, n);
        return 0;
    }
    return SL_EINVAL;
}

/* ---- a token's bytes for the vocabulary -------------------------------------------------------
 */

enum sl_status dec_token_bytes(const struct tokenizer *t, struct scratch *sc, int32_t id,
                               struct strbuf *out, struct strbuf *tmp, bool *is_byte)
{
    strbuf_clear(out);
    strbuf_add(out, t->token[id], t->token_len[id]);
    *is_byte = false;
    bool fused = false;
    for (int i = 0; i < t->n_dec_token; i++) {
        const struct dec_step *d = &t->dec[i];
        int byte = d->kind == DEC_BYTE_FALLBACK ? dec_byte_token(out->data, out->len) : -1;
        if (byte >= 0) {
            strbuf_clear(out);
            strbuf_addc(out, (char)byte);
            *is_byte = true;
            break; /* later steps look at text */
        }
        fused |= d->kind == DEC_FUSE || d->kind == DEC_BYTE_LEVEL;
        if (fused && d->kind == DEC_STRIP)
            continue; /* the ends of the text, not of this token */
        strbuf_clear(tmp);
        if (dec_apply(d, sc, out->data ? out->data : "", out->len, false, false, false, tmp) < 0)
            return SL_EINVAL;
        struct strbuf swap = *out;
        *out = *tmp;
        *tmp = swap;
        if (d->kind == DEC_BYTE_LEVEL && out->len == 1 && (out->data[0] & 0x80))
            *is_byte = true;
    }
    return out->failed || tmp->failed ? SL_ENOMEM : SL_OK;
}

/* ---- parsing ----------------------------------------------------------------------------------
 */

static enum sl_status take_string(char **out, size_t *n, const json_t *json, const char *key,
                                  const char *absent, struct sl_err *err)
{
    const json_t *v = json_object_get(json, key);
    if (!json_is_string(v) && !absent)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a decoder lacks its \"%s\"", key);
    const char *s = json_is_string(v) ? json_string_value(v) : absent;
    size_t len = json_is_string(v) ? json_string_length(v) : strlen(absent);
    *out = mem_strndup(s, len);
    if (n)
        *n = len;
    return *out ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
}

static bool flag(const json_t *json, const char *key, bool absent)
{
    const json_t *v = json_object_get(json, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

static size_t count(const json_t *json, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(json, key));
    return v < 0 ? 0 : v > 1 << 20 ? 1 << 20 : (size_t)v;
}

static enum sl_status parse_fields(struct dec_step *d, const json_t *json, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    switch (d->kind) {
    case DEC_REPLACE:
        st = pattern_parse(&d->pattern, json_object_get(json, "pattern"), "Replace", err);
        return st ? st : take_string(&d->content, &d->content_len, json, "content", NULL, err);
    case DEC_STRIP:
        d->start = count(json, "start");
        d->stop = count(json, "stop");
        st = take_string(&d->content, &d->content_len, json, "content", NULL, err);
        if (!st && !d->content_len)
            st = SL_FAIL(err, SL_EFORMAT, "tokenizer: a Strip decoder needs a character");
        return st;
    case DEC_METASPACE:
        d->drop_first =
            (!scheme || strcmp(scheme, "never")) && flag(json, "add_prefix_space", true);
        return take_string(&d->content, &d->content_len, json, "replacement", NULL, err);
    case DEC_WORDPIECE:
        d->cleanup = flag(json, "cleanup", true);
        return take_string(&d->content, &d->content_len, json, "prefix", "##", err);
    case DEC_BPE:
        return take_string(&d->content, &d->content_len, json, "suffix", "</w>", err);
    case DEC_CTC:
        d->cleanup = flag(json, "cleanup", true);
        st = take_string(&d->content, &d->content_len, json, "pad_token", "<pad>", err);
        return st ? st : take_string(&d->delimiter, NULL, json, "word_delimiter_token", "|", err);
    default:
        return SL_OK;
    }
}

static const struct {
    const char *name;
    enum dec_kind kind;
} names[] = {
    {"ByteLevel", DEC_BYTE_LEVEL},
    {"ByteFallback", DEC_BYTE_FALLBACK},
    {"Fuse", DEC_FUSE},
    {"Replace", DEC_REPLACE},
    {"Strip", DEC_STRIP},
    {"Metaspace", DEC_METASPACE},
    {"WordPiece", DEC_WORDPIECE},
    {"BPEDecoder", DEC_BPE},
    {"CTC", DEC_CTC},
};

static enum sl_status parse(struct tokenizer *t, const json_t *json, int depth, struct sl_err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a decoder has no \"type\"");
    if (depth > 16)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: decoders are nested too deep");
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(json, "decoders");
        size_t i;
        json_t *item;
        if (!json_is_array(list))
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: a decoder Sequence without \"decoders\"");
        json_array_foreach((json_t *)list, i, item)
        {
            enum sl_status st = parse(t, item, depth + 1, err);
            if (st)
                return st;
        }
        return SL_OK;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(type, names[i].name))
            continue;
        struct dec_step *d = dec_push(t, names[i].kind, err);
        return d ? parse_fields(d, json, err) : SL_EFORMAT;
    }
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown decoder %.80s", type);
}

enum sl_status dec_parse(struct tokenizer *t, const json_t *json, int depth, struct sl_err *err)
{
    if (!json || json_is_null(json))
        return dec_push(t, DEC_JOIN_SPACE, err) ? SL_OK : SL_EFORMAT;
    return parse(t, json, depth, err);
}
