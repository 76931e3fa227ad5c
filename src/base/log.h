/* log.h - log lines in vLLM's form: `INFO 11-24 06:40:00 [engine.c:42] message`, on stderr.
 *
 * Thread: any; a line is written with one write(2). The level is set once by main.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_LOG_H
#define SL_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR };

void log_set_level(enum log_level min);
bool log_enabled(enum log_level level);
void log_line(enum log_level level, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define log_debug(...) log_line(LOG_DEBUG, __FILE__, __LINE__, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __FILE__, __LINE__, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __FILE__, __LINE__, __VA_ARGS__)

#endif
