/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/affinity.h"

#include "base/limits.h"
#include "base/mem.h"

#include <hwloc.h>

enum { BIND_MIN_CORES = 5 };

struct affinity {
    hwloc_topology_t topo;
};

struct affinity *affinity_create(int n_threads)
{
    if (n_threads < 2 || limits_cores() < BIND_MIN_CORES)
        return NULL; /* before hwloc: reading the topology takes milliseconds */
    struct affinity *a = mem_zalloc(1, sizeof *a);
    if (!a)
        return NULL;
    if (hwloc_topology_init(&a->topo)) {
        mem_free(a);
        return NULL;
    }
    /* Cores outside our cpuset are left out by default, so every core found may be used. */
    if (hwloc_topology_load(a->topo) ||
        hwloc_get_nbobjs_by_type(a->topo, HWLOC_OBJ_CORE) < n_threads)
        affinity_destroy(&a);
    return a;
}

void affinity_bind(struct affinity *a, pthread_t thread, int i)
{
    hwloc_obj_t core = a ? hwloc_get_obj_by_type(a->topo, HWLOC_OBJ_CORE, (unsigned)i) : NULL;
    if (core)
        (void)hwloc_set_thread_cpubind(a->topo, thread, core->cpuset, 0);
}

void affinity_destroy(struct affinity **a)
{
    if (!*a)
        return;
    hwloc_topology_destroy((*a)->topo);
    mem_free(*a);
    *a = NULL;
}
