/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/isa.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

static const char *const names[] = {"ref", "avx2", "avx512", "amx"};
/* Written by cpu_isa_limit, read when a device is created. */
static atomic_int limit = ISA_AMX;

/* Register state the system saves, by XCR0 bit. */
enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6 };

static bool all_set(uint64_t value, uint64_t bits)
{
    return (value & bits) == bits;
}

#define BIT(n) (1u << (n))

static bool has_avx2(uint32_t ecx1, uint32_t ebx7)
{
    return all_set(ecx1, BIT(12) /* FMA */ | BIT(28) /* AVX */ | BIT(29) /* F16C */) &&
           all_set(ebx7, BIT(5) /* AVX2 */);
}

static bool has_avx512(uint32_t ebx7, uint32_t ecx7, uint32_t eax7_1)
{
    return all_set(ebx7,
                   BIT(16) /* F */ | BIT(17) /* DQ */ | BIT(30) /* BW */ | BIT(31) /* VL */) &&
           all_set(ecx7, BIT(11) /* VNNI */) && all_set(eax7_1, BIT(5) /* BF16 */);
}

enum cpu_isa cpu_isa_detect(void)
{
    uint32_t a, b, c1, d, b7, c7, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !(c1 & BIT(27)) /* OSXSAVE */)
        return ISA_PLAIN;
    uint64_t xcr0 = cpu_xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d))
        return ISA_PLAIN;
    if (a >= 1)
        __get_cpuid_count(7, 1, &a71, &b, &a, &d);
    if (!has_avx2(c1, b7) || !all_set(xcr0, XCR0_AVX))
        return ISA_PLAIN;
    if (!has_avx512(b7, c7, a71) || !all_set(xcr0, XCR0_AVX512))
        return ISA_AVX2;
    return cpu_has_tiles() ? ISA_AMX : ISA_AVX512;
}

bool cpu_isa_limit(const char *name)
{
    for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            atomic_store(&limit, i);
            return true;
        }
    }
    return false;
}

enum cpu_isa cpu_isa_current(void)
{
    enum cpu_isa have = cpu_isa_detect(), cap = (enum cpu_isa)atomic_load(&limit);
    return have < cap ? have : cap;
}

double cpu_isa_core_flops(enum cpu_isa isa)
{
    /* Zen 4 without and with VDPBF16PS; tiles at half of a Sapphire Rapids core's peak. */
    static const double rate[] = {2e9, 80e9, 200e9, 1500e9};
    return rate[isa];
}

const char *cpu_isa_name(enum cpu_isa isa)
{
    return names[isa];
}
