/* isa.h - which instruction sets the kernels may use here.
 *
 * Levels are cumulative: each takes in the ones before. A level counts as present only if all that
 * its kernels use is there and the system saves the registers.
 *
 * Thread: cpu_isa_limit() once, by main or a test, before a device is created.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_ISA_H
#define SL_BACKEND_CPU_ISA_H

#include <stdbool.h>
#include <stdint.h>

enum cpu_isa {
    ISA_PLAIN = 0,  /* whatever the compiler's baseline is */
    ISA_AVX2 = 1,   /* AVX2, FMA, F16C */
    ISA_AVX512 = 2, /* F, BW, VL, DQ, VNNI, BF16 */
    ISA_AMX = 3     /* bf16 and int8 tiles, on top of AVX-512 */
};

/* What this machine offers, limit aside. Asks the kernel for the right to use AMX tiles. */
enum cpu_isa cpu_isa_detect(void);
/* Its part for AMX, in a file of its own: tests put emulated tiles in its place. */
bool cpu_has_tiles(void);
/* Cap the level: "ref" (plain C), "avx2", "avx512" or "amx". false: no such name, nothing changed.
 */
bool cpu_isa_limit(const char *name);
/* The level that a device created now would use. */
enum cpu_isa cpu_isa_current(void);
const char *cpu_isa_name(enum cpu_isa isa);
/* Operations a second that one core does in products of bf16 weights, about: steps are sized by it.
 */
double cpu_isa_core_flops(enum cpu_isa isa);

/* Which registers the system saves. */
static inline uint64_t cpu_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

#endif
