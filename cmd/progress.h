/* progress.h - one line on a terminal that tells how far a run is.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <stdbool.h>

struct progress {
    bool shown; /* standard error is a terminal, and nobody said no */
    const char *what;
};

void progress_begin(struct progress *p, const char *what, bool wanted);
void progress_show(struct progress *p, int done, int total, double elapsed_s, long long tokens);
void progress_end(struct progress *p); /* wipes the line */

#endif
