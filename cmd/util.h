/* util.h - what the commands share: memory that ends the program when there is none, and messages.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_UTIL_H
#define CMD_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* These print "sluice: out of memory" and end the program with 1 rather than return NULL. */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n, size_t size);
char *xstrdup(const char *s);
char *xformat(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* "sluice: " and one sentence on stderr; returns code. */
int fail_with(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The next line without its end, or NULL at the end of the file, or when it is longer than
 * max_bytes (then *too_long is set). *line is reused; free it at the end. */
char *read_line(FILE *in, char **line, size_t *capacity, size_t max_bytes, size_t *len,
                bool *too_long);

#endif
