/* bench_report.h - what bench serve prints and saves about a run.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_BENCH_REPORT_H
#define CMD_BENCH_REPORT_H

#include "bench_drafts.h"
#include "loadgen.h"
#include "options.h"

struct bench_report {
    const struct options *o;
    const struct load_run *run;
    const char *model, *tokenizer;
    bool chat;
    struct bench_drafts drafts; /* of the server, while the load ran */
};

/* The flags that say what to report; false: one is wrong, and a sentence was printed. */
bool bench_report_check(const struct options *o);
int bench_report(const struct bench_report *r); /* the exit code */

#endif
