/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/kernels.h"

void cpu_kernels_amx(struct cpu_kernels *k)
{
    (void)k;
}
