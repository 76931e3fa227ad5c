/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cgroup.h"

#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 1024, LINE_BYTES = 1024 };

/* One line of a small file, without its newline. */
static bool read_line(const char *path, char *line, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fgets(line, (int)size, f) != NULL;
    fclose(f);
    if (ok)
        line[strcspn(line, "\n")] = 0;
    return ok;
}

static bool read_u64(const char *dir, const char *name, uint64_t *out)
{
    char path[PATH_BYTES + 64], line[64], *end;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!read_line(path, line, sizeof line) || line[0] < '0' || line[0] > '9')
        return false; /* absent, "max", or -1: no limit */
    *out = strtoull(line, &end, 10);
    return end != line;
}

/* The value after `key` in a file of "key value" lines. */
static bool read_key(const char *path, const char *key, uint64_t *out)
{
    FILE *f = fopen(path, "re");
    char line[256];
    size_t n = strlen(key);
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        found = strncmp(line, key, n) == 0;
        if (found)
            *out = strtoull(line + n, NULL, 10);
    }
    if (f)
        fclose(f);
    return found;
}

/* The process's own cgroup for a v1 controller, or for v2 with controller "". */
static bool own_group(const char *controller, char *path, size_t size)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[LINE_BYTES];
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *dir = names ? strchr(names + 1, ':') : NULL;
        if (!dir)
            continue;
        *dir++ = 0;
        dir[strcspn(dir, "\n")] = 0;
        char *save = NULL, *list = names + 1;
        found = !*controller && !*list;
        for (char *w = strtok_r(list, ",", &save); w && !found; w = strtok_r(NULL, ",", &save))
            found = strcmp(w, controller) == 0;
        if (found)
            snprintf(path, size, "%s", dir);
    }
    if (f)
        fclose(f);
    return found;
}

/* Calls visit for the group's folder and each ancestor's up to the mount point. In a container
 * the path may lie above what is mounted; the mount point itself is always visited. */
static void each_ancestor(const char *mount, const char *controller,
                          void (*visit)(const char *dir, void *ctx), void *ctx)
{
    char path[PATH_BYTES / 2], dir[PATH_BYTES];
    if (!own_group(controller, path, sizeof path))
        return;
    for (;;) {
        snprintf(dir, sizeof dir, "%s%s", mount, path);
        visit(dir, ctx);
        char *slash = strrchr(path, '/');
        if (!slash || !path[1])
            break;
        slash[slash == path] = 0;
    }
}

static void least_cores(double *cores, double quota, double period)
{
    if (quota > 0 && period > 0 && quota / period < *cores)
        *cores = quota / period;
}

static void quota_v1(const char *dir, void *ctx)
{
    uint64_t quota, period;
    if (read_u64(dir, "cpu.cfs_quota_us", &quota) && read_u64(dir, "cpu.cfs_period_us", &period))
        least_cores(ctx, (double)quota, (double)period);
}

static void quota_v2(const char *dir, void *ctx)
{
    char path[PATH_BYTES + 64], line[64], *end;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    if (!read_line(path, line, sizeof line))
        return;
    double quota = strtod(line, &end); /* "max 100000": no number, no limit */
    if (end != line)
        least_cores(ctx, quota, strtod(end, NULL));
}

static int affinity_cores(void)
{
    int cores = 1;
    for (int n = 1024; n <= 1 << 16; n *= 2) { /* the kernel's mask may be wider than cpu_set_t */
        cpu_set_t *set = CPU_ALLOC((size_t)n);
        size_t bytes = CPU_ALLOC_SIZE((size_t)n);
        bool ok = set && sched_getaffinity(0, bytes, set) == 0;
        if (ok)
            cores = CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
        if (ok)
            break;
    }
    return cores;
}

int cpu_quota_cores(void)
{
    double cores = affinity_cores();
    each_ancestor("/sys/fs/cgroup", "", quota_v2, &cores);
    each_ancestor("/sys/fs/cgroup/unified", "", quota_v2, &cores);
    each_ancestor("/sys/fs/cgroup/cpu", "cpu", quota_v1, &cores);
    /* Rounded down: a thread beyond the quota makes all of them wait for the next period. */
    return cores < 1 ? 1 : (int)cores;
}

static void least_left(uint64_t *left, uint64_t limit, uint64_t used, uint64_t cache)
{
    uint64_t held = used > cache ? used - cache : 0, rest = limit > held ? limit - held : 0;
    if (rest < *left)
        *left = rest;
}

static void memory_in(const char *dir, const char *limit_name, const char *used_name,
                      const char *cache_key, uint64_t *left)
{
    char stat[PATH_BYTES + 64];
    uint64_t limit, used, cache = 0;
    if (!read_u64(dir, limit_name, &limit) || !read_u64(dir, used_name, &used))
        return;
    snprintf(stat, sizeof stat, "%s/memory.stat", dir);
    (void)read_key(stat, cache_key, &cache);
    least_left(left, limit, used, cache);
}

static void memory_v1(const char *dir, void *ctx)
{
    memory_in(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ", ctx);
}

static void memory_v2(const char *dir, void *ctx)
{
    memory_in(dir, "memory.max", "memory.current", "inactive_file ", ctx);
}

uint64_t memory_left_bytes(void)
{
    uint64_t left = UINT64_MAX, kb;
    if (read_key("/proc/meminfo", "MemAvailable:", &kb))
        left = kb * 1024;
    each_ancestor("/sys/fs/cgroup", "", memory_v2, &left);
    each_ancestor("/sys/fs/cgroup/unified", "", memory_v2, &left);
    each_ancestor("/sys/fs/cgroup/memory", "memory", memory_v1, &left);
    return left == UINT64_MAX ? 0 : left;
}
