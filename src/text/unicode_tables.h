/* unicode_tables.h - generated tables behind unicode.h; only unicode*.c read them.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_UNICODE_TABLES_H
#define SL_TEXT_UNICODE_TABLES_H

#include <stddef.h>
#include <stdint.h>

enum { /* the order in tools/unicode/classes.py */
       UNICODE_NUMBER = 1,
       UNICODE_PUNCTUATION = 2,
       UNICODE_OTHER = 4,
       UNICODE_MARK = 8,
       UNICODE_MARK_NONSPACING = 16,
       UNICODE_WORD = 32,
       UNICODE_INERT = 64 /* no decomposition, no combining class, whatever utf8proc says */
};

/* Sorted ranges with a last one at UINT32_MAX; gaps have no flag. page[p] is the first range that
 * reaches into page p or lies behind it. */
struct unicode_class {
    uint32_t first, last, flags;
};
extern const struct unicode_class unicode_classes[];
extern const uint16_t unicode_classes_page[0x110000 >> 8];

struct unicode_stand_in {
    uint32_t first, last, instead;
};
extern const struct unicode_stand_in unicode_stand_ins[];
extern const uint16_t unicode_stand_ins_page[0x110000 >> 12];
/* Lower case, of letters newer than utf8proc; `instead` is that of `first`. */
extern const struct unicode_stand_in unicode_lower_table[];
extern const uint16_t unicode_lower_table_page[0x110000 >> 12];

static inline uint32_t unicode_flags(int32_t c)
{
    const struct unicode_class *k = &unicode_classes[unicode_classes_page[c >> 8]];
    while (k->last < (uint32_t)c)
        k++;
    return k->first <= (uint32_t)c ? k->flags : 0;
}

static inline const struct unicode_stand_in *unicode_find(const struct unicode_stand_in *table,
                                                          const uint16_t *page, int32_t c)
{
    const struct unicode_stand_in *k = &table[page[c >> 12]];
    while (k->last < (uint32_t)c)
        k++;
    return k->first <= (uint32_t)c ? k : NULL;
}

#endif
