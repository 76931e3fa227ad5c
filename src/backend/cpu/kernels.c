/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/kernels.h"

void cpu_kernels_init(struct cpu_kernels *k, enum cpu_isa isa)
{
    *k = (struct cpu_kernels){.isa = isa};
    cpu_kernels_ref(k);
#if defined(__x86_64__)
    if (isa >= ISA_AVX2)
        cpu_kernels_avx2(k);
    if (isa >= ISA_AVX512)
        cpu_kernels_avx512(k);
    if (isa >= ISA_AMX)
        cpu_kernels_amx(k);
#endif
}
