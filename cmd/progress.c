/* SPDX-License-Identifier: Apache-2.0 */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BAR = 24 };

void progress_begin(struct progress *p, const char *what, bool wanted)
{
    *p = (struct progress){.shown = wanted && isatty(STDERR_FILENO), .what = what};
}

void progress_show(struct progress *p, int done, int total, double elapsed_s, long long tokens)
{
    char bar[BAR + 1];
    if (!p->shown || total <= 0)
        return;
    int filled = (int)((long long)done * BAR / total);
    memset(bar, ' ', BAR);
    memset(bar, '#', (size_t)filled);
    bar[BAR] = '\0';
    double rate = elapsed_s > 0 ? (double)tokens / elapsed_s : 0;
    fprintf(stderr, "\r%s [%s] %d/%d  %.0f s  %.1f tokens/s\033[K", p->what, bar, done, total,
            elapsed_s, rate);
}

void progress_end(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
}
