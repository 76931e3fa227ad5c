/* workers.h - the few threads that parse, render and tokenize, so that loops never do.
 *
 * Large jobs (a prompt of a book) are taken by the first worker only: with two or more workers a
 * short prompt never waits behind a long one.
 *
 * Thread: any, all calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_WORKERS_H
#define SL_HTTP_WORKERS_H

#include "base/status.h"

struct job {
    struct job *next;
    void (*run)(struct job *job);
};

struct workers;

SL_MUST_CHECK enum sl_status workers_create(struct workers **out, int n_threads,
                                            struct sl_err *err);
/* Runs what is queued to its end, then joins. */
void workers_destroy(struct workers **w);
void workers_post(struct workers *w, struct job *job, bool large);

#endif
