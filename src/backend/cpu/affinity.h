/* affinity.h - which core each compute thread should stay on, from hwloc's topology.
 *
 * Binding pays where threads would otherwise wander between sockets, or two of them share one
 * core's hyperthreads. On a machine of four cores or fewer, or with fewer cores than threads, the
 * scheduler has to stay free to step aside for other load, and nothing is bound.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_AFFINITY_H
#define SL_BACKEND_CPU_AFFINITY_H

#include <pthread.h>

struct affinity;

/* NULL: binding is not sensible here (or hwloc could not say). */
struct affinity *affinity_create(int n_threads);
/* Thread i goes to the i-th core; cores of one package follow each other. a may be NULL. */
void affinity_bind(struct affinity *a, pthread_t thread, int i);
void affinity_destroy(struct affinity **a);

#endif
