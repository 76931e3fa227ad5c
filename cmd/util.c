/* SPDX-License-Identifier: Apache-2.0 */
#include "util.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void no_memory(void)
{
    fputs("sluice: out of memory\n", stderr);
    exit(1);
}

void *xcalloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        no_memory();
    return p;
}

void *xrealloc(void *p, size_t n, size_t size)
{
    if (size && n > SIZE_MAX / size)
        no_memory();
    void *q = realloc(p, n && size ? n * size : 1);
    if (!q)
        no_memory();
    return q;
}

char *xstrdup(const char *s)
{
    char *copy = strdup(s);
    if (!copy)
        no_memory();
    return copy;
}

char *xformat(const char *fmt, ...)
{
    char *out;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&out, fmt, ap);
    va_end(ap);
    if (n < 0)
        no_memory();
    return out;
}

int fail_with(int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    flockfile(stderr);
    fputs("sluice: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    funlockfile(stderr);
    va_end(ap);
    return code;
}

char *read_line(FILE *in, char **line, size_t *capacity, size_t max_bytes, size_t *len,
                bool *too_long)
{
    size_t n = 0;
    int c = EOF;
    *too_long = false;
    while ((c = getc_unlocked(in)) != EOF && c != '\n') {
        if (n == max_bytes) {
            *too_long = true;
            return NULL;
        }
        if (n + 1 >= *capacity) {
            *capacity = *capacity ? *capacity * 2 : 256;
            *line = xrealloc(*line, *capacity, 1);
        }
        (*line)[n++] = (char)c;
    }
    if (c == EOF && n == 0)
        return NULL;
    if (n == 0 && *capacity == 0) {
        *capacity = 256;
        *line = xrealloc(*line, *capacity, 1);
    }
    if (n && (*line)[n - 1] == '\r')
        n--;
    (*line)[n] = '\0';
    *len = n;
    return *line;
}
