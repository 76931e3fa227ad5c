/* SPDX-License-Identifier: Apache-2.0 */
#include "text/unicode.h"
#include "text/unicode_tables.h"

#include <string.h>
#include <utf8proc.h>

size_t utf8_put(char *out, int32_t cp)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

void utf8_add(struct strbuf *b, int32_t cp)
{
    char c[4];
    strbuf_add(b, c, utf8_put(c, cp));
}

/* The range that the second byte must be in after this lead byte, and the length of the character;
 * 0: not a lead byte. Rules out overlong forms, surrogates and what is past U+10FFFF. */
static size_t lead_info(unsigned char lead, unsigned char *lo, unsigned char *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        return 2;
    if ((lead & 0xF0) == 0xE0) {
        if (lead == 0xE0)
            *lo = 0xA0;
        if (lead == 0xED)
            *hi = 0x9F;
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (lead == 0xF0)
            *lo = 0x90;
        if (lead == 0xF4)
            *hi = 0x8F;
        return 4;
    }
    return 0;
}

/* How many bytes at s agree with one character: its length when it is whole. */
static size_t agreeing(const unsigned char *s, size_t n, size_t *want)
{
    unsigned char lo, hi;
    *want = lead_info(s[0], &lo, &hi);
    if (!*want)
        return 0;
    size_t k = 1;
    for (; k < *want && k < n; k++) {
        if (s[k] < (k == 1 ? lo : 0x80) || s[k] > (k == 1 ? hi : 0xBF))
            break;
    }
    return k;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        while (n - i >= 8) {
            memcpy(&eight, u + i, 8);
            if (eight & 0x8080808080808080u)
                break;
            i += 8;
        }
        if (i == n)
            break;
        size_t want, have = agreeing(u + i, n - i, &want);
        if (!want || have < want)
            return i;
        i += want;
    }
    return n;
}

size_t utf8_bad_part(const char *s, size_t n)
{
    size_t want, have = agreeing((const unsigned char *)s, n, &want);
    if (!want)
        return 1;
    return have == n && have < want ? 0 : have;
}

void utf8_repair(struct strbuf *out, const char *s, size_t n)
{
    while (n) {
        size_t good = utf8_valid_prefix(s, n);
        strbuf_add(out, s, good);
        s += good;
        n -= good;
        if (!n)
            return;
        size_t bad = utf8_bad_part(s, n);
        if (!bad)
            bad = n;
        strbuf_adds(out, UNICODE_REPLACEMENT);
        s += bad;
        n -= bad;
    }
}

bool unicode_is_space(int32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static bool has(int32_t c, uint32_t flag)
{
    return unicode_flags(c) & flag;
}

bool unicode_is_number(int32_t c)
{
    return c < 0x80 ? c >= '0' && c <= '9' : has(c, UNICODE_NUMBER);
}

bool unicode_is_punctuation(int32_t c)
{
    return has(c, UNICODE_PUNCTUATION);
}

bool unicode_is_other(int32_t c)
{
    return has(c, UNICODE_OTHER);
}

bool unicode_is_mark(int32_t c)
{
    return c >= 0x300 && has(c, UNICODE_MARK);
}

bool unicode_is_mark_nonspacing(int32_t c)
{
    return c >= 0x300 && has(c, UNICODE_MARK_NONSPACING);
}

bool unicode_is_word(int32_t c)
{
    return has(c, UNICODE_WORD);
}

bool unicode_is_cjk(int32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
           (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

void unicode_lower(struct strbuf *out, int32_t c)
{
    if (c < 0x80) {
        strbuf_addc(out, (char)(c >= 'A' && c <= 'Z' ? c + 32 : c));
        return;
    }
    if (c == 0x130) { /* the one character whose lower case is two */
        strbuf_adds(out, "i\xCC\x87");
        return;
    }
    const struct unicode_stand_in *k =
        unicode_find(unicode_lower_table, unicode_lower_table_page, c);
    utf8_add(out, k ? (int32_t)(k->instead + ((uint32_t)c - k->first)) : utf8proc_tolower(c));
}
