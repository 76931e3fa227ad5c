/* status.h - the one error convention: an enum sl_status, and a struct that the caller passes.
 *
 * The first cause wins: a message already in *err stays. SL_EAGAIN is flow control and is
 * returned bare, without SL_FAIL.   Thread: any (the struct is the caller's).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_STATUS_H
#define SL_BASE_STATUS_H

#include "sluice.h"

#define SL_FAIL(err, code, ...) sl_err_set((err), (code), __FILE__, __LINE__, NULL, __VA_ARGS__)
/* The same, naming the request field or flag at fault (err->param). */
#define SL_FAIL_PARAM(err, code, param, ...) \
    sl_err_set((err), (code), __FILE__, __LINE__, (param), __VA_ARGS__)

enum sl_status sl_err_set(struct sl_err *err, enum sl_status code, const char *file, int line,
                          const char *param, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));

#ifndef NDEBUG
#include <assert.h>
#define SL_DCHECK(x) assert(x) /* for inner loops: gone in release; plain assert stays */
#else
#define SL_DCHECK(x) ((void)0)
#endif

/* Stays on in release builds too: for what the program cannot get wrong, at O(1) per step. */
#define SL_ASSERT(x) ((x) ? (void)0 : sl_assert_failed(#x, __FILE__, __LINE__))
void sl_assert_failed(const char *what, const char *file, int line) __attribute__((noreturn));

#endif
