/* strbuf.h - a growing byte buffer with a maximum.
 *
 * A failed append (maximum or memory) sets `failed` and later appends do nothing, so a writer
 * checks once at the end. Always NUL-terminated once anything was appended.   Thread: its owner's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_STRBUF_H
#define SL_BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *data; /* NULL while empty */
    size_t len, cap, max;
    bool failed;
};

void strbuf_init(struct strbuf *b, size_t max); /* max: bytes, 0 for none */
void strbuf_fini(struct strbuf *b);
void strbuf_clear(struct strbuf *b); /* keeps the memory, clears `failed` */
void strbuf_add(struct strbuf *b, const void *bytes, size_t n);
void strbuf_adds(struct strbuf *b, const char *s);
void strbuf_addc(struct strbuf *b, char c);
void strbuf_addf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_drop_front(struct strbuf *b, size_t n);
char *strbuf_take(struct strbuf *b); /* the caller frees it (mem_free); b is empty again; "" when
                                        empty, NULL if failed */

#endif
