/* SPDX-License-Identifier: Apache-2.0 */
#include "http/json_out.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void put_escape(struct strbuf *b, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    char out[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    size_t n = 2;
    switch (c) {
    case '"':
    case '\\':
        out[1] = (char)c;
        break;
    case '\n':
        out[1] = 'n';
        break;
    case '\r':
        out[1] = 'r';
        break;
    case '\t':
        out[1] = 't';
        break;
    case '\b':
        out[1] = 'b';
        break;
    case '\f':
        out[1] = 'f';
        break;
    default:
        n = 6;
    }
    strbuf_add(b, out, n);
}

void json_put_escaped(struct strbuf *b, const char *s, size_t n)
{
    size_t clean = 0; /* start of the run that needs no escape */
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            continue;
        strbuf_add(b, s + clean, i - clean);
        put_escape(b, c);
        clean = i + 1;
    }
    strbuf_add(b, s + clean, n - clean);
}

void json_put_str(struct strbuf *b, const char *s, size_t n)
{
    strbuf_addc(b, '"');
    json_put_escaped(b, s, n);
    strbuf_addc(b, '"');
}

/* Bytes of the well-formed UTF-8 character at s, or 0. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    static const unsigned char least[] = {0, 0, 0x80, 0xa0, 0x90}; /* no overlong forms */
    size_t want = s[0] < 0x80   ? 1
                  : s[0] < 0xc2 ? 0
                  : s[0] < 0xe0 ? 2
                  : s[0] < 0xf0 ? 3
                  : s[0] < 0xf5 ? 4
                                : 0;
    if (want < 2 || want > n)
        return want > n ? 0 : want;
    for (size_t i = 1; i < want; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 || s[0] == 0xf0) && s[1] < least[want])
        return 0;
    if ((s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0; /* surrogates, beyond U+10FFFF */
    return want;
}

void json_put_lossy(struct strbuf *b, const char *s, size_t n)
{
    strbuf_addc(b, '"');
    for (size_t i = 0; i < n;) {
        size_t len = utf8_length((const unsigned char *)s + i, n - i);
        if (len)
            json_put_escaped(b, s + i, len);
        else
            strbuf_add(b, "\xef\xbf\xbd", 3);
        i += len ? len : 1;
    }
    strbuf_addc(b, '"');
}

void json_put_cstr(struct strbuf *b, const char *s)
{
    if (s)
        json_put_str(b, s, strlen(s));
    else
        strbuf_add(b, "null", 4);
}

void json_put_int(struct strbuf *b, int64_t v)
{
    char out[24];
    size_t at = sizeof out;
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do
        out[--at] = (char)('0' + u % 10);
    while (u /= 10);
    if (v < 0)
        out[--at] = '-';
    strbuf_add(b, out + at, sizeof out - at);
}

void json_put_logprob(struct strbuf *b, float v)
{
    if (isnan(v)) {
        strbuf_add(b, "null", 4);
        return;
    }
    if (v < -9999.0f)
        v = -9999.0f;
    if (v > 3e38f)
        v = 3e38f; /* logits modes may give +inf, which JSON has no word for */
    char out[32];
    int n = snprintf(out, sizeof out, "%.9g", (double)v);
    strbuf_add(b, out, (size_t)n);
    if (!memchr(out, '.', (size_t)n) && !memchr(out, 'e', (size_t)n))
        strbuf_add(b, ".0", 2); /* a reader that types by form must see a float */
}
