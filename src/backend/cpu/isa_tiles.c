/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TILE_BITS = 1 << 22 /* BF16 */ | 1 << 24 /* TILE */ | 1 << 25 /* INT8 */ };
enum { XCR0_TILES = 0x60000, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

/* Linux gives tile registers only to processes that ask; threads made later inherit it. */
bool cpu_has_tiles(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & TILE_BITS) != TILE_BITS ||
        (cpu_xcr0() & XCR0_TILES) != XCR0_TILES)
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
