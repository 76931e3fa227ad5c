/* SentencePiece's precompiled character map: a Darts double-array trie from byte strings to offsets
 * into a pool of NUL-terminated replacements. All offsets are checked: the file is not trusted.
 *
 * Applied as the tokenizers library does: to each grapheme of less than 6 bytes, else to each of
 * its characters; the shortest match at its front replaces it whole.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>
#include <utf8proc.h>

struct charsmap {
    uint32_t *units;
    size_t n_units;
    char *pool; /* ends in a NUL */
    size_t pool_len;
};

enum sl_status charsmap_create(struct charsmap **out, const void *blob, size_t bytes,
                               struct sl_err *err)
{
    const unsigned char *u = blob;
    size_t trie =
        bytes < 4 ? 0 : (size_t)u[0] | (size_t)u[1] << 8 | (size_t)u[2] << 16 | (size_t)u[3] << 24;
    if (bytes < 4 || trie > bytes - 4 || trie % 4)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the precompiled character map is truncated");
    struct charsmap *c = mem_zalloc(1, sizeof *c);
    if (c) {
        c->n_units = trie / 4;
        c->units = mem_alloc(c->n_units, 4);
        c->pool_len = bytes - 4 - trie;
        c->pool = mem_strndup((const char *)u + 4 + trie, c->pool_len);
    }
    if (!c || !c->units || !c->pool) {
        charsmap_destroy(&c);
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the character map");
    }
    for (size_t i = 0; i < c->n_units; i++) {
        const unsigned char *p = u + 4 + i * 4;
        c->units[i] =
            (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    if (utf8_valid_prefix(c->pool, c->pool_len) < c->pool_len) {
        charsmap_destroy(&c);
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the character map is not UTF-8");
    }
    *out = c;
    return SL_OK;
}

void charsmap_destroy(struct charsmap **c)
{
    if (!*c)
        return;
    mem_free((*c)->units);
    mem_free((*c)->pool);
    mem_free(*c);
    *c = NULL;
}

static int base64_value(char c)
{
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

bool base64_decode(struct strbuf *out, const char *s, size_t n)
{
    uint32_t bits = 0;
    int have = 0;
    while (n && s[n - 1] == '=')
        n--;
    for (size_t i = 0; i < n; i++) {
        int v = base64_value(s[i]);
        if (v < 0)
            return false;
        bits = bits << 6 | (uint32_t)v;
        have += 6;
        if (have >= 8) {
            have -= 8;
            strbuf_addc(out, (char)(bits >> have));
        }
    }
    return !out->failed;
}

enum sl_status charsmap_from_base64(struct charsmap **out, const char *s, size_t n,
                                    struct sl_err *err)
{
    struct strbuf blob;
    strbuf_init(&blob, TOK_MAX_FILE_BYTES);
    enum sl_status st = SL_OK;
    if (!base64_decode(&blob, s, n))
        st = SL_FAIL(err, SL_EFORMAT, "tokenizer: precompiled_charsmap is not base64");
    else
        st = charsmap_create(out, blob.data, blob.len, err);
    strbuf_fini(&blob);
    return st;
}

static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The replacement of the shortest entry that s begins with; NULL: none. */
static const char *lookup(const struct charsmap *c, const char *s, size_t n)
{
    if (!c->n_units)
        return NULL;
    size_t node = unit_offset(c->units[0]);
    for (size_t i = 0; i < n && s[i]; i++) {
        node ^= (unsigned char)s[i];
        if (node >= c->n_units || (c->units[node] & (1u << 31 | 0xFF)) != (unsigned char)s[i])
            return NULL;
        uint32_t unit = c->units[node];
        node ^= unit_offset(unit);
        if (!(unit >> 8 & 1))
            continue;
        size_t at = node < c->n_units ? c->units[node] & 0x7FFFFFFF : SIZE_MAX;
        return at < c->pool_len ? c->pool + at : NULL;
    }
    return NULL;
}

static void apply_grapheme(const struct charsmap *c, struct strbuf *out, const char *s, size_t n)
{
    const char *by = n < 6 ? lookup(c, s, n) : NULL;
    if (by) {
        strbuf_adds(out, by);
        return;
    }
    for (size_t i = 0; i < n;) {
        size_t len = utf8_len(s[i]);
        by = lookup(c, s + i, len);
        if (by)
            strbuf_adds(out, by);
        else
            strbuf_add(out, s + i, len);
        i += len;
    }
}

void charsmap_apply(const struct charsmap *c, struct strbuf *out, const char *s, size_t n)
{
    size_t start = 0;
    int32_t before, cp;
    utf8proc_int32_t state = 0;
    size_t at = n ? utf8_next(s, &before) : 0;
    while (at < n) {
        size_t len = utf8_next(s + at, &cp);
        if (utf8proc_grapheme_break_stateful(before, cp, &state)) {
            apply_grapheme(c, out, s + start, at - start);
            start = at;
        }
        before = cp;
        at += len;
    }
    if (n)
        apply_grapheme(c, out, s + start, n - start);
}
