/* SPDX-License-Identifier: Apache-2.0 */
#include "base/limits.h"

#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

/* The first number in a file; false when there is none ("max", no file). */
static bool read_number(const char *path, int64_t *out)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fscanf(f, "%" SCNd64, out) == 1;
    fclose(f);
    return ok;
}

/* This process's cgroup path of one controller ("" for v2's single hierarchy). */
static bool cgroup_path(const char *controller, char *out, size_t size)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return false;
    char line[1024];
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':');
        char *path = names ? strchr(names + 1, ':') : NULL;
        if (!path)
            continue;
        *names++ = 0;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        char *save = NULL, *one = strtok_r(names, ",", &save);
        if (!*controller && !one)
            found = true;
        for (; one && !found; one = strtok_r(NULL, ",", &save))
            found = *controller && strcmp(one, controller) == 0;
        if (found)
            snprintf(out, size, "%s", path);
    }
    fclose(f);
    return found;
}

typedef void (*visit_fn)(const char *dir, void *ctx);

/* Visits the process's cgroup folder and each parent up to the mount: limits are inherited. */
static void visit_cgroups(const char *mount, const char *controller, visit_fn fn, void *ctx)
{
    char path[1024], dir[1200];
    if (!cgroup_path(controller, path, sizeof path))
        return;
    for (;;) {
        snprintf(dir, sizeof dir, "%s%s", mount, strcmp(path, "/") ? path : "");
        fn(dir, ctx);
        char *slash = strrchr(path, '/');
        if (!slash || slash == path) {
            if (path[0] && path[1]) { /* "/a" -> "/" */
                path[1] = 0;
                continue;
            }
            return;
        }
        *slash = 0;
    }
}

static void take_v2_quota(const char *dir, void *ctx)
{
    double *cores = ctx;
    char path[1300];
    int64_t quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    if (fscanf(f, "%" SCNd64 " %" SCNd64, &quota, &period) == 2 && period > 0 && quota > 0 &&
        (double)quota / (double)period < *cores)
        *cores = (double)quota / (double)period;
    fclose(f);
}

static void take_v1_quota(const char *dir, void *ctx)
{
    double *cores = ctx;
    char path[1300];
    int64_t quota, period;
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", dir);
    bool ok = read_number(path, &quota);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", dir);
    if (ok && read_number(path, &period) && quota > 0 && period > 0 &&
        (double)quota / (double)period < *cores)
        *cores = (double)quota / (double)period;
}

int limits_cores(void)
{
    cpu_set_t set;
    double cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    visit_cgroups("/sys/fs/cgroup", "", take_v2_quota, &cores);
    visit_cgroups("/sys/fs/cgroup/cpu", "cpu", take_v1_quota, &cores);
    int whole = (int)cores;
    return whole < cores ? whole + 1 : whole < 1 ? 1 : whole;
}

/* The value after `key` in a file of "key value" lines; 0 when it is not there. */
static int64_t read_key(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    char line[256], name[128];
    int64_t value, found = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%127s %" SCNd64, name, &value) == 2 && !strcmp(name, key))
            found = value;
    if (f)
        fclose(f);
    return found;
}

/* The kernel gives back file pages that nobody has used lately (`idle`) before it refuses any. */
static void take_remaining(const char *dir, const char *limit, const char *used, const char *idle,
                           int64_t *least)
{
    char path[1300];
    int64_t max, now;
    snprintf(path, sizeof path, "%s/%s", dir, limit);
    bool ok = read_number(path, &max);
    snprintf(path, sizeof path, "%s/%s", dir, used);
    if (!ok || !read_number(path, &now))
        return;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    int64_t reclaimable = read_key(path, idle);
    now -= reclaimable < now ? reclaimable : now;
    int64_t left = max > now ? max - now : 0;
    if (left < *least)
        *least = left;
}

static void take_v2_memory(const char *dir, void *ctx)
{
    take_remaining(dir, "memory.max", "memory.current", "inactive_file", ctx);
}

static void take_v1_memory(const char *dir, void *ctx)
{
    take_remaining(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                   ctx);
}

int64_t limits_memory_available(void)
{
    int64_t least = INT64_MAX;
    FILE *f = fopen("/proc/meminfo", "re");
    if (f) {
        char line[256];
        int64_t kib;
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "MemAvailable: %" SCNd64 " kB", &kib) == 1)
                least = kib * 1024;
        fclose(f);
    }
    visit_cgroups("/sys/fs/cgroup", "", take_v2_memory, &least);
    visit_cgroups("/sys/fs/cgroup/memory", "memory", take_v1_memory, &least);
    return least;
}

int64_t limits_raise_nofile(void)
{
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl))
        return -1;
    rl.rlim_cur = rl.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &rl))
        getrlimit(RLIMIT_NOFILE, &rl);
    return (int64_t)rl.rlim_cur;
}
