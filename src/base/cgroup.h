/* cgroup.h - how much of the machine the kernel lets this process use.
 *
 * Both read /proc and the cgroup files (v1 and v2, every ancestor, the least wins); a few file
 * reads, so call them at start-up.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_CGROUP_H
#define SL_BASE_CGROUP_H

#include <stdint.h>

/* Whole cores: the CPU quota or the affinity mask, whichever is less; at least 1. */
int cpu_quota_cores(void);

/* Bytes that may still be taken: the cgroup's limit less its use, or MemAvailable, whichever is
 * less. 0: unknown. Page cache counts as free, as in MemAvailable. */
uint64_t memory_left_bytes(void);

#endif
