/* Normalizers: each reads one buffer and writes the other.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

void normalizer_fini(struct normalizer *n)
{
    pattern_fini(&n->pattern);
    mem_free(n->content);
    charsmap_destroy(&n->charsmap);
    *n = (struct normalizer){0};
}

struct normalizer *norm_push(struct tokenizer *t, enum norm_kind kind, struct sl_err *err)
{
    if (t->n_norm == TOK_MAX_STEPS) {
        SL_FAIL(err, SL_EFORMAT, "tokenizer: more than %d normalizers", TOK_MAX_STEPS);
        return NULL;
    }
    struct normalizer *n = &t->norm[t->n_norm++];
    *n = (struct normalizer){.kind = kind};
    return n;
}

int norm_form_nfc(void)
{
    return UNICODE_NFC;
}

/* ---- running ----------------------------------------------------------------------------------
 */

static void run_lowercase(struct strbuf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += utf8_next(s + i, &cp);
        unicode_lower(out, cp);
    }
}

static void run_strip(struct strbuf *out, const char *s, size_t n, const struct normalizer *nz)
{
    size_t from = 0;
    int32_t cp;
    while (nz->left && from < n) {
        size_t len = utf8_next(s + from, &cp);
        if (!unicode_is_space(cp))
            break;
        from += len;
    }
    while (nz->right && n > from) {
        size_t i = n - 1;
        while (i > from && (s[i] & 0xC0) == 0x80)
            i--;
        utf8_next(s + i, &cp);
        if (!unicode_is_space(cp))
            break;
        n = i;
    }
    strbuf_add(out, s + from, n - from);
}

/* Keeps what `drop` refuses. */
static void run_filter(struct strbuf *out, const char *s, size_t n, bool (*drop)(int32_t cp))
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = utf8_next(s + i, &cp);
        if (!drop(cp))
            strbuf_add(out, s + i, len);
        i += len;
    }
}

static void bert_clean(struct strbuf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = utf8_next(s + i, &cp);
        if (cp == '\t' || cp == '\n' || cp == '\r' || unicode_is_space(cp)) {
            /* U+0085 and the like are controls first, and dropped */
            if (cp == '\t' || cp == '\n' || cp == '\r' || !unicode_is_other(cp))
                strbuf_addc(out, ' ');
        } else if (cp && cp != 0xFFFD && !unicode_is_other(cp)) {
            strbuf_add(out, s + i, len);
        }
        i += len;
    }
}

static void bert_cjk(struct strbuf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = utf8_next(s + i, &cp);
        bool cjk = unicode_is_cjk(cp);
        if (cjk)
            strbuf_addc(out, ' ');
        strbuf_add(out, s + i, len);
        if (cjk)
            strbuf_addc(out, ' ');
        i += len;
    }
}

/* BERT's four passes; from and to swap after each. */
static void run_bert(struct strbuf *out, struct strbuf *tmp, const char *s, size_t n,
                     const struct normalizer *nz)
{
    struct strbuf a, *bufs[2] = {tmp, &a};
    int side = 0;
    strbuf_init(&a, 0);
#define PASS(call)                      \
    do {                                \
        struct strbuf *to = bufs[side]; \
        strbuf_clear(to);               \
        call;                           \
        out->failed |= to->failed;      \
        s = to->data ? to->data : "";   \
        n = to->len;                    \
        side ^= 1;                      \
    } while (0)
    if (nz->clean)
        PASS(bert_clean(to, s, n));
    if (nz->cjk)
        PASS(bert_cjk(to, s, n));
    if (nz->strip_accents) {
        PASS(unicode_normalize(to, s, n, UNICODE_NFD));
        PASS(run_filter(to, s, n, unicode_is_mark_nonspacing));
    }
    if (nz->lower)
        PASS(run_lowercase(to, s, n));
#undef PASS
    strbuf_add(out, s, n);
    strbuf_fini(&a);
}

static bool nmt_drops(int32_t cp)
{
    return (cp >= 1 && cp <= 8) || cp == 0xB || (cp >= 0xE && cp <= 0x1F) || cp == 0x7F ||
           cp == 0x8F || cp == 0x9F;
}

static void run_nmt(struct strbuf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = utf8_next(s + i, &cp);
        bool space = cp == 9 || cp == 0xA || cp == 0xC || cp == 0xD || cp == 0x1680 ||
                     (cp >= 0x200B && cp <= 0x200F) || cp == 0x2028 || cp == 0x2029 ||
                     cp == 0x2581 || cp == 0xFEFF || cp == 0xFFFD;
        if (space)
            strbuf_addc(out, ' ');
        else if (!nmt_drops(cp))
            strbuf_add(out, s + i, len);
        i += len;
    }
}

static int run_replace(struct strbuf *out, struct scratch *sc, const char *s, size_t n,
                       const struct normalizer *nz)
{
    struct pattern_iter it = {0};
    size_t done = 0, start, end;
    const char *text = s;
    if (nz->pattern.kind == PATTERN_REGEX)
        text = unicode_for_regex(s, n, &sc->shadow[0]);
    int rc = 0;
    while (n && (rc = pattern_next(&nz->pattern, sc, text, n, &it, &start, &end)) > 0) {
        strbuf_add(out, s + done, start - done);
        strbuf_add(out, nz->content, nz->content_len);
        done = end;
    }
    strbuf_add(out, s + done, n - done);
    return rc;
}

static void run_byte_level(struct strbuf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        utf8_add(out, byte_to_char((unsigned char)s[i]));
}

/* Runs of spaces become one; those at the ends go. */
static void run_collapse_spaces(struct strbuf *out, const char *s, size_t n)
{
    while (n && s[n - 1] == ' ')
        n--;
    size_t i = 0;
    while (i < n && s[i] == ' ')
        i++;
    for (; i < n; i++) {
        if (s[i] != ' ' || s[i - 1] != ' ')
            strbuf_addc(out, s[i]);
    }
}

static int run_one(struct strbuf *out, struct strbuf *tmp, struct scratch *sc, const char *s,
                   size_t n, const struct normalizer *nz)
{
    switch (nz->kind) {
    case NORM_UNICODE:
        unicode_normalize(out, s, n, (enum unicode_form)nz->form);
        return 0;
    case NORM_LOWERCASE:
        run_lowercase(out, s, n);
        return 0;
    case NORM_STRIP:
        run_strip(out, s, n, nz);
        return 0;
    case NORM_STRIP_ACCENTS:
        run_filter(out, s, n, unicode_is_mark);
        return 0;
    case NORM_BERT:
        run_bert(out, tmp, s, n, nz);
        return 0;
    case NORM_NMT:
        run_nmt(out, s, n);
        return 0;
    case NORM_REPLACE:
        return run_replace(out, sc, s, n, nz);
    case NORM_PREPEND:
        if (n)
            strbuf_add(out, nz->content, nz->content_len);
        strbuf_add(out, s, n);
        return 0;
    case NORM_BYTE_LEVEL:
        run_byte_level(out, s, n);
        return 0;
    case NORM_CHARSMAP:
        charsmap_apply(nz->charsmap, out, s, n);
        return 0;
    case NORM_COLLAPSE_SPACES:
        run_collapse_spaces(out, s, n);
        return 0;
    }
    return SL_EINVAL;
}

/* True if this normalizer cut something off the front that Metaspace's "first" would miss. */
static bool cuts_front(const struct normalizer *nz, struct scratch *sc, const char *s, size_t n)
{
    struct pattern_iter it = {0};
    size_t start, end;
    int32_t cp;
    if (!n)
        return false;
    utf8_next(s, &cp);
    switch (nz->kind) {
    case NORM_STRIP:
        return nz->left && unicode_is_space(cp);
    case NORM_STRIP_ACCENTS:
        return unicode_is_mark(cp);
    case NORM_REPLACE:
        return !nz->content_len && pattern_next(&nz->pattern, sc, s, n, &it, &start, &end) > 0 &&
               !start && end;
    case NORM_NMT:
        return nmt_drops(cp);
    case NORM_BERT:
        return (nz->clean && (!cp || cp == 0xFFFD ||
                              (unicode_is_other(cp) && cp != '\t' && cp != '\n' && cp != '\r'))) ||
               (nz->strip_accents && unicode_is_mark_nonspacing(cp));
    default:
        return false;
    }
}

enum sl_status norm_run(const struct tokenizer *t, struct scratch *sc, const char **s, size_t *n,
                        bool *at_origin, struct sl_err *err)
{
    for (int i = 0; i < t->n_norm; i++) {
        struct strbuf *out = &sc->norm[i & 1];
        strbuf_clear(out);
        if (cuts_front(&t->norm[i], sc, *s, *n))
            *at_origin = false;
        int rc = run_one(out, &sc->word, sc, *s, *n, &t->norm[i]);
        if (rc == SL_EINVAL)
            return SL_FAIL(err, SL_EINVAL, "the tokenizer's pattern is too expensive on this text");
        if (rc < 0 || out->failed)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for %zu bytes of text", *n);
        *s = out->data ? out->data : "";
        *n = out->len;
    }
    return SL_OK;
}

/* ---- parsing ----------------------------------------------------------------------------------
 */

static bool flag(const json_t *json, const char *key, bool absent)
{
    const json_t *v = json_object_get(json, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

static enum sl_status parse_content(struct normalizer *n, const json_t *json, const char *key,
                                    struct sl_err *err)
{
    const json_t *v = json_object_get(json, key);
    if (!json_is_string(v))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a normalizer lacks its \"%s\"", key);
    n->content = mem_strndup(json_string_value(v), json_string_length(v));
    n->content_len = json_string_length(v);
    return n->content ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a normalizer");
}

static enum sl_status parse_sequence(struct tokenizer *t, const json_t *list, int depth,
                                     struct sl_err *err)
{
    if (!json_is_array(list))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a normalizer Sequence without \"normalizers\"");
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        enum sl_status st = norm_parse(t, item, depth + 1, err);
        if (st)
            return st;
    }
    return SL_OK;
}

static const struct {
    const char *name;
    enum norm_kind kind;
    int form;
} names[] = {
    {"NFC", NORM_UNICODE, UNICODE_NFC},
    {"NFD", NORM_UNICODE, UNICODE_NFD},
    {"NFKC", NORM_UNICODE, UNICODE_NFKC},
    {"NFKD", NORM_UNICODE, UNICODE_NFKD},
    {"Lowercase", NORM_LOWERCASE, 0},
    {"Strip", NORM_STRIP, 0},
    {"StripAccents", NORM_STRIP_ACCENTS, 0},
    {"BertNormalizer", NORM_BERT, 0},
    {"Nmt", NORM_NMT, 0},
    {"Replace", NORM_REPLACE, 0},
    {"Prepend", NORM_PREPEND, 0},
    {"ByteLevel", NORM_BYTE_LEVEL, 0},
    {"Precompiled", NORM_CHARSMAP, 0},
};

static enum sl_status parse_fields(struct normalizer *n, const json_t *json, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    switch (n->kind) {
    case NORM_STRIP:
        n->left = flag(json, "strip_left", true);
        n->right = flag(json, "strip_right", true);
        return SL_OK;
    case NORM_BERT:
        n->clean = flag(json, "clean_text", true);
        n->cjk = flag(json, "handle_chinese_chars", true);
        n->lower = flag(json, "lowercase", true);
        n->strip_accents = flag(json, "strip_accents", n->lower);
        return SL_OK;
    case NORM_REPLACE:
        st = pattern_parse(&n->pattern, json_object_get(json, "pattern"), "Replace", err);
        return st ? st : parse_content(n, json, "content", err);
    case NORM_PREPEND:
        return parse_content(n, json, "prepend", err);
    case NORM_CHARSMAP: {
        const json_t *map = json_object_get(json, "precompiled_charsmap");
        if (!json_is_string(map))
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: Precompiled lacks precompiled_charsmap");
        return charsmap_from_base64(&n->charsmap, json_string_value(map), json_string_length(map),
                                    err);
    }
    default:
        return SL_OK;
    }
}

enum sl_status norm_parse(struct tokenizer *t, const json_t *json, int depth, struct sl_err *err)
{
    if (!json || json_is_null(json))
        return SL_OK;
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a normalizer has no \"type\"");
    if (depth > 16)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: normalizers are nested too deep");
    if (!strcmp(type, "Sequence"))
        return parse_sequence(t, json_object_get(json, "normalizers"), depth, err);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(type, names[i].name))
            continue;
        struct normalizer *n = norm_push(t, names[i].kind, err);
        if (!n)
            return SL_EFORMAT;
        n->form = names[i].form;
        return parse_fields(n, json, err);
    }
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown normalizer %.80s", type);
}
