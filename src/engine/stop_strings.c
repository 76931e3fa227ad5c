/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/stop_strings.h"

#include <string.h>

static int count_chars(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

void stop_strings_init(struct stop_strings *s, const char *const *str, int n)
{
    *s = (struct stop_strings){.str = str, .n = n};
    for (int i = 0; i < n; i++) {
        size_t bytes = strlen(str[i]);
        int chars = count_chars(str[i]);
        s->max_bytes = bytes > s->max_bytes ? bytes : s->max_bytes;
        s->hold_chars = chars - 1 > s->hold_chars ? chars - 1 : s->hold_chars;
    }
}

int stop_strings_find(const struct stop_strings *s, const char *text, size_t bytes, size_t from,
                      size_t *start, size_t *end)
{
    int found = -1;
    size_t limit = bytes; /* nothing that ends later is of interest */
    for (int i = 0; i < s->n; i++) {
        size_t len = strlen(s->str[i]);
        size_t first = from + 1 > len ? from + 1 - len : 0;
        if (len == 0 || first > limit || len > limit - first)
            continue;
        const char *hit = memmem(text + first, limit - first, s->str[i], len);
        if (!hit || (found >= 0 && (size_t)(hit - text) + len >= *end))
            continue;
        found = i;
        *start = (size_t)(hit - text);
        *end = *start + len;
        limit = *end;
    }
    return found;
}

size_t stop_strings_tail(const char *text, size_t bytes, int chars)
{
    size_t at = bytes;
    while (at > 0 && chars > 0) {
        at--;
        chars -= ((unsigned char)text[at] & 0xC0) != 0x80;
    }
    return bytes - at;
}
