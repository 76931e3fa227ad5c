/* SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum sl_status sl_err_set(struct sl_err *err, enum sl_status code, const char *file, int line,
                          const char *param, const char *fmt, ...)
{
    if (!err || err->code != SL_OK)
        return code;
    const char *slash = strrchr(file, '/');
    err->code = code;
    err->file = slash ? slash + 1 : file;
    err->line = line;
    snprintf(err->param, sizeof err->param, "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return code;
}

void sl_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "sluice: %s:%d: invariant broken: %s\n", file, line, what);
    __builtin_trap();
}
