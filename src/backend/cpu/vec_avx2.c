/* SPDX-License-Identifier: Apache-2.0 */
#define VEC(name) name##_avx2

#include "backend/cpu/simd_avx2.h"

#include "backend/cpu/vec_body.h"

void cpu_kernels_avx2(struct cpu_kernels *k)
{
    VEC(fill)(k);
    gemm_avx2_fill(k);
    attn_avx2_fill(k);
    memset(k->whole_k, 0, sizeof k->whole_k);
}
