/* unicode.h - UTF-8 and the character classes that tokenizers split on.
 *
 * Classes come from utf8proc, corrected where the tokenizers library differs (its own tables follow
 * other Unicode versions). Text handed in is valid UTF-8 unless a function says otherwise.
 * Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_UNICODE_H
#define SL_TEXT_UNICODE_H

#include "base/strbuf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNICODE_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* Bytes of the character at s, s < end; *cp gets it. */
static inline size_t utf8_next(const char *s, int32_t *cp)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    if (u[0] < 0xE0) {
        *cp = (u[0] & 0x1F) << 6 | (u[1] & 0x3F);
        return 2;
    }
    if (u[0] < 0xF0) {
        *cp = (u[0] & 0x0F) << 12 | (u[1] & 0x3F) << 6 | (u[2] & 0x3F);
        return 3;
    }
    *cp = (u[0] & 0x07) << 18 | (u[1] & 0x3F) << 12 | (u[2] & 0x3F) << 6 | (u[3] & 0x3F);
    return 4;
}

static inline size_t utf8_len(char lead)
{
    unsigned char u = (unsigned char)lead;
    return u < 0x80 ? 1 : u < 0xE0 ? 2 : u < 0xF0 ? 3 : 4;
}

/* Writes cp (a scalar value) to out[4]; gives the length. */
size_t utf8_put(char *out, int32_t cp);
void utf8_add(struct strbuf *b, int32_t cp);

/* Any bytes: length of the valid prefix of s[0, n). */
size_t utf8_valid_prefix(const char *s, size_t n);
/* Any bytes, not starting with a whole character: length of the maximal ill-formed part at s (what
 * one U+FFFD stands for), or 0 when all n bytes are the beginning of a character. */
size_t utf8_bad_part(const char *s, size_t n);
/* Any bytes: appends s with each ill-formed part as U+FFFD, as Python's errors="replace". */
void utf8_repair(struct strbuf *out, const char *s, size_t n);

bool unicode_is_space(int32_t cp);       /* White_Space */
bool unicode_is_number(int32_t cp);      /* Nd, Nl, No */
bool unicode_is_punctuation(int32_t cp); /* ASCII punctuation and P* */
bool unicode_is_other(int32_t cp);       /* Cc, Cf, Cn, Co */
bool unicode_is_mark(int32_t cp);        /* M* */
bool unicode_is_mark_nonspacing(int32_t cp);
bool unicode_is_word(int32_t cp); /* \w: Alphabetic, M, Nd, Pc, joiners */
bool unicode_is_cjk(int32_t cp);  /* what BERT sets apart */
int unicode_script(int32_t cp);   /* equal numbers, equal scripts; 0: any */

enum unicode_form { UNICODE_NFD, UNICODE_NFC, UNICODE_NFKD, UNICODE_NFKC };
/* Appends the normalized text; O(n log n) for any text. */
void unicode_normalize(struct strbuf *out, const char *s, size_t n, enum unicode_form form);
void unicode_lower(struct strbuf *out, int32_t cp);

/* PCRE2 classes some code points otherwise than the tokenizers library: newer than its Unicode
 * version, or U+180E. Gives s itself, or a copy of the same length in *copy (cleared first) where a
 * well-known character of the right class stands for each of them; matching offsets carry over. */
const char *unicode_for_regex(const char *s, size_t n, struct strbuf *copy);

#endif
