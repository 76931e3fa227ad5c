/* stop_strings.h - where a text ends because of a stop string, and what must be held back.
 *
 * Only a match that ends in the new characters counts; the one that completes first wins, ties by
 * the order of the list. All on bytes: the strings are UTF-8, and so a match begins and ends
 * between characters.   Thread: any (plain functions).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_STOP_STRINGS_H
#define SL_ENGINE_STOP_STRINGS_H

#include <stddef.h>

struct stop_strings {
    const char *const *str;
    int n;
    size_t max_bytes; /* of the longest */
    int hold_chars;   /* characters that may yet become a stop string: the longest's, less one */
};

void stop_strings_init(struct stop_strings *s, const char *const *str, int n);
/* Looks in text[0 .. bytes) for a match that ends after `from`. Gives its index in the list and
 * [*start, *end), or -1. */
int stop_strings_find(const struct stop_strings *s, const char *text, size_t bytes, size_t from,
                      size_t *start, size_t *end);
/* Bytes of the last `chars` characters of a UTF-8 text. */
size_t stop_strings_tail(const char *text, size_t bytes, int chars);

#endif
