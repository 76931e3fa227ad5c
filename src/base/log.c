/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "sluice.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int min_level = LOG_INFO;

void log_set_level(enum log_level min)
{
    atomic_store(&min_level, (int)min);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&min_level, memory_order_relaxed);
}

/* The public levels are the same four, in the same order. */
void sl_log_set_level(enum sl_log_level min)
{
    log_set_level((enum log_level)min);
}

__attribute__((format(printf, 4, 0))) static void log_args(enum log_level level, const char *file,
                                                           int line, const char *fmt, va_list ap)
{
    static const char *const name[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
    if (!log_enabled(level))
        return;
    char buf[4096];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    const char *slash = strrchr(file, '/');
    int n = snprintf(buf, sizeof buf, "%s %02d-%02d %02d:%02d:%02d [%s:%d] ", name[level],
                     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                     slash ? slash + 1 : file, line);
    int m = vsnprintf(buf + n, sizeof buf - (size_t)n - 1, fmt, ap);
    if (m < 0)
        return;
    size_t len = (size_t)n + (size_t)m;
    if (len > sizeof buf - 2)
        len = sizeof buf - 2;
    for (size_t i = (size_t)n; i < len; i++) /* one line stays one line, whatever was logged */
        if ((unsigned char)buf[i] < 0x20 || buf[i] == 0x7f)
            buf[i] = ' ';
    buf[len++] = '\n';
    if (write(STDERR_FILENO, buf, len) < 0)
        return; /* nobody is left to tell */
}

void log_line(enum log_level level, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_args(level, file, line, fmt, ap);
    va_end(ap);
}

void sl_log(enum sl_log_level level, const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_args((enum log_level)level, file, line, fmt, ap);
    va_end(ap);
}
