/* file.h - a whole file, read into memory within a bound.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_FILE_H
#define SL_BASE_FILE_H

#include "base/status.h"

#include <stddef.h>

/* *data is NULL when there is no such file; else it ends in a NUL that *bytes does not count, and
 * the caller frees it (mem_free). Only regular files are read: a FIFO must not hang us. */
SL_MUST_CHECK enum sl_status file_read(const char *path, size_t max_bytes, char **data,
                                       size_t *bytes, struct sl_err *err);

#endif
