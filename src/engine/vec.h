/* vec.h - room in a growing array.   Thread: the array's owner's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_VEC_H
#define SL_ENGINE_VEC_H

#include "base/mem.h"

#include <stdbool.h>
#include <string.h>

/* Room for `need` elements in the array that *array points to; false: no memory, all is kept. */
static inline bool vec_room(void *array, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t grown = *cap < 8 ? 8 : *cap;
    while (grown < need)
        grown = grown > SIZE_MAX / 2 ? need : grown * 2;
    void *old, *p;
    memcpy(&old, array, sizeof old);
    if (!(p = mem_realloc(old, grown, size)))
        return false;
    memcpy(array, &p, sizeof p);
    *cap = grown;
    return true;
}

#endif
