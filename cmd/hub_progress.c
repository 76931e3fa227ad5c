/* What a fetch looks like: on a terminal a bar for each file under way and one for all, redrawn in
 * place under the lines of those that are done; elsewhere one line when a file begins and one when
 * it is there.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "hub_setup.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 24, NAME = 34, MAX_BARS = 10 };

struct hub_progress {
    char *model;
    bool bars;
    int drawn; /* lines below the cursor's first one */
    enum sl_hub_file_state *state;
    int n;
    struct timespec start;
    int64_t already; /* bytes that were there at the start */
};

struct hub_progress *hub_progress_begin(const char *model, bool bars)
{
    struct hub_progress *p = xcalloc(1, sizeof *p);
    p->model = xstrdup(model);
    p->bars = bars && isatty(STDERR_FILENO);
    return p;
}

const char *hub_bytes(char out[32], int64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)bytes;
    int u = 0;
    for (; v >= 999.5 && u < 4; u++)
        v /= 1000;
    snprintf(out, 32, u ? "%.1f %s" : "%.0f %s", v, units[u]);
    return out;
}

/* A name from the hub is shown without whatever a terminal would obey. */
static void plain(const char *name, char out[NAME + 1])
{
    size_t n = strlen(name);
    if (n > NAME)
        name += n - NAME;
    size_t i = 0;
    for (; i < NAME && name[i]; i++)
        out[i] = name[i] < 0x20 || name[i] > 0x7e ? '?' : name[i];
    out[i] = '\0';
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

static void bar_line(const char *name, int64_t done, int64_t size, const char *more)
{
    char bar[BAR + 1], a[32], b[32], shown[NAME + 1], line[256];
    int filled = size > 0 ? (int)((double)done / (double)size * BAR) : 0;
    filled = filled < 0 ? 0 : filled > BAR ? BAR : filled;
    memset(bar, ' ', BAR);
    memset(bar, '#', (size_t)filled);
    bar[BAR] = '\0';
    plain(name, shown);
    snprintf(line, sizeof line, "%-*s [%s] %s of %s%s", NAME, shown, bar, hub_bytes(a, done),
             hub_bytes(b, size > 0 ? size : 0), more);
    fprintf(stderr, "%.*s\033[K\n", columns() - 1, line);
}

static double seconds_since(const struct timespec *start)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) + 1e-9 * (double)(now.tv_nsec - start->tv_nsec);
}

static void draw(struct hub_progress *p, const struct sl_hub_file *files, int n)
{
    int64_t done = 0, size = 0;
    char rate[64], a[32];
    for (int i = 0; i < n && p->drawn < MAX_BARS; i++) {
        if (files[i].state != SL_HUB_FETCHING)
            continue;
        bar_line(files[i].name, files[i].done, files[i].size, "");
        p->drawn++;
    }
    for (int i = 0; i < n; i++) {
        done += files[i].done;
        size += files[i].size > 0 ? files[i].size : 0;
    }
    double s = seconds_since(&p->start);
    snprintf(rate, sizeof rate, ", %s/s",
             hub_bytes(a, s > 0.2 ? (int64_t)((double)(done - p->already) / s) : 0));
    bar_line(p->model, done, size, rate);
    p->drawn++;
}

static void wipe(struct hub_progress *p)
{
    if (p->drawn)
        fprintf(stderr, "\033[%dA\033[J", p->drawn);
    p->drawn = 0;
}

static void say(const struct hub_progress *p, const struct sl_hub_file *f, const char *what)
{
    char size[32], shown[NAME + 1];
    plain(f->name, shown);
    fprintf(stderr, "%s: %s %s (%s)\n", p->model, what, shown,
            hub_bytes(size, f->size > 0 ? f->size : 0));
}

void hub_progress_show(void *progress, const struct sl_hub_file *files, int n)
{
    struct hub_progress *p = progress;
    bool active = false;
    if (p->n < n) {
        p->state = xrealloc(p->state, (size_t)n, sizeof *p->state);
        for (; p->n < n; p->n++) /* done, and nobody asked for its size: it was there before */
            p->state[p->n] = files[p->n].size < 0 ? files[p->n].state : SL_HUB_WAITING;
    }
    if (!p->start.tv_sec) {
        clock_gettime(CLOCK_MONOTONIC, &p->start);
        for (int i = 0; i < n; i++)
            p->already += files[i].done;
    }
    wipe(p);
    for (int i = 0; i < n; i++) {
        active |= files[i].state != SL_HUB_DONE;
        if (files[i].state == p->state[i])
            continue;
        if (files[i].state == SL_HUB_DONE)
            say(p, &files[i], "fetched");
        else if (files[i].state == SL_HUB_FETCHING && !p->bars)
            say(p, &files[i], "fetching");
        p->state[i] = files[i].state;
    }
    if (p->bars && active)
        draw(p, files, n);
}

void hub_progress_end(struct hub_progress *p)
{
    wipe(p);
    free(p->state);
    free(p->model);
    free(p);
}
