/* levels.h - the levels of the CPU's kernels that a test goes through.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_LEVELS_H
#define TESTS_SUPPORT_LEVELS_H

#include "backend/cpu/isa.h"

#ifndef FIRST_LEVEL /* builds with emulated tiles begin, and end, there */
#define FIRST_LEVEL ISA_PLAIN
#endif

/* Runs BODY for each level this machine has, from `from` on; `isa` is the level. */
#define EACH_ISA(isa, from)                                                                       \
    for (enum cpu_isa isa = (from) > FIRST_LEVEL ? (from) : FIRST_LEVEL; isa <= cpu_isa_detect(); \
         isa = (enum cpu_isa)(isa + 1))

#endif
