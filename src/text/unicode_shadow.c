/* SPDX-License-Identifier: Apache-2.0 */
#include "text/unicode.h"
#include "text/unicode_tables.h"

#include <string.h>

/* A character that PCRE2 classes as the tokenizers library classes cp, with as many bytes in UTF-8;
 * 0: cp itself will do. */
static int32_t stand_in(int32_t c)
{
    const struct unicode_stand_in *k = unicode_find(unicode_stand_ins, unicode_stand_ins_page, c);
    return k ? (int32_t)k->instead : 0;
}

const char *unicode_for_regex(const char *s, size_t n, struct strbuf *copy)
{
    bool copied = false;
    for (size_t i = 0; i < n;) {
        if ((unsigned char)s[i] < 0xE0) {
            i++;
            continue;
        }
        int32_t cp;
        size_t len = utf8_next(s + i, &cp);
        int32_t other = stand_in(cp);
        if (other) {
            if (!copied) {
                strbuf_clear(copy);
                strbuf_add(copy, s, n);
                if (copy->failed)
                    return s;
                copied = true;
            }
            utf8_put(copy->data + i, other);
        }
        i += len;
    }
    return copied ? copy->data : s;
}
