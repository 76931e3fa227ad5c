/* work.h - one compilation's memory, effort and first error.
 *
 * Everything a front end builds lives in one arena and is gone when the compilation ends; what
 * stays (struct grammar) is copied out. Both are bounded: a schema, a regex or a grammar that wants
 * more is refused by name. After the first failure every call fails, so that builders check once.
 *
 * Thread: its owner's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_WORK_H
#define SL_GRAMMAR_WORK_H

#include "base/mem.h"
#include "base/status.h"

enum {
    WORK_MEMORY = 96 << 20,   /* bytes a compilation may take */
    WORK_STEPS = 40 * 1000000 /* units of effort, some nanoseconds each */
};

struct work {
    struct arena arena;
    long left;
    enum sl_status st;
    struct sl_err *err;
    const char *what; /* the field that is being read: named in messages and in err->param */
};

void work_init(struct work *w, const char *what, struct sl_err *err);
void work_fini(struct work *w);
/* Zeroed; NULL (and a failed work) when a bound or the memory is reached. */
void *work_alloc(struct work *w, size_t n, size_t size);
/* Room for `need` elements; what was there is kept. false: failed. */
SL_MUST_CHECK bool work_grow(struct work *w, void *array, int *cap, int need, size_t size);
char *work_strndup(struct work *w, const char *s, size_t n);
/* Counts n units of effort. false: failed. */
bool work_spend(struct work *w, long n);
/* Fails with SL_EINVAL, "<what>: ..."; the first failure stays. */
void work_refuse(struct work *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
