/* limits.h - what this process may use: the machine, cut down by cgroups (v1 and v2) and affinity.
 *
 * Thread: any; reads /proc and /sys each time, so ask once at start.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_LIMITS_H
#define SL_BASE_LIMITS_H

#include <stdint.h>

/* Cores: the affinity mask, and the CPU quota rounded up; at least 1. */
int limits_cores(void);
/* Bytes that can still be taken: the least of MemAvailable and every cgroup's limit - use. */
int64_t limits_memory_available(void);
/* Raises the soft RLIMIT_NOFILE to the hard one; gives what is in force. */
int64_t limits_raise_nofile(void);

#endif
