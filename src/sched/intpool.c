/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/intpool.h"

#include "base/mem.h"
#include "base/status.h"

#include <string.h>

static int size_class(int n)
{
    int c = 0;
    while (c < INTPOOL_CLASSES && INTPOOL_MIN << c < n)
        c++;
    return c;
}

int32_t *intpool_take(struct intpool *p, int n, int *cap)
{
    int c = size_class(n);
    if (c == INTPOOL_CLASSES)
        return NULL;
    int32_t *a = p->free[c];
    if (a)
        memcpy(&p->free[c], a, sizeof(void *));
    else
        a = mem_alloc((size_t)INTPOOL_MIN << c, sizeof *a);
    if (a)
        *cap = INTPOOL_MIN << c;
    return a;
}

void intpool_give(struct intpool *p, int32_t *a, int cap)
{
    if (!a)
        return;
    int c = size_class(cap);
    SL_ASSERT(c < INTPOOL_CLASSES && INTPOOL_MIN << c == cap);
    memcpy(a, &p->free[c], sizeof(void *));
    p->free[c] = a;
}

bool intpool_grow(struct intpool *p, int32_t **a, int *cap, int used, int n)
{
    if (n <= *cap)
        return true;
    int new_cap;
    int32_t *b = intpool_take(p, n, &new_cap);
    if (!b)
        return false;
    if (used)
        memcpy(b, *a, (size_t)used * sizeof *b);
    intpool_give(p, *a, *cap);
    *a = b;
    *cap = new_cap;
    return true;
}

void intpool_fini(struct intpool *p)
{
    for (int c = 0; c < INTPOOL_CLASSES; c++)
        while (p->free[c]) {
            void *a = p->free[c];
            memcpy(&p->free[c], a, sizeof(void *));
            mem_free(a);
        }
}
