/* SPDX-License-Identifier: Apache-2.0 */
#include "sluice.h"

#include "base/mem.h"

const char *sl_version(void)
{
    return SLUICE_VERSION;
}

void sl_free(void *p)
{
    mem_free(p);
}
