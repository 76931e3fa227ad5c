/* SPDX-License-Identifier: Apache-2.0 */
#define VEC(name) name##_avx512

#include "backend/cpu/simd_avx512.h"

#include "backend/cpu/vec_body.h"

void cpu_kernels_avx512(struct cpu_kernels *k)
{
    VEC(fill)(k);
    gemm_avx512_fill(k);
    attn_avx512_fill(k);
    k->x_bf16 = true;
}
