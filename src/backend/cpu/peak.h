/* peak.h - loops that do nothing but read, or multiply; one set per instruction set.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_PEAK_H
#define SL_BACKEND_CPU_PEAK_H

#include <stddef.h>
#include <stdint.h>

/* Reads all of it (bytes: a multiple of 4096) and gives something that depends on it. */
typedef uint64_t (*peak_read_fn)(const void *p, size_t bytes);
/* n rounds of independent multiply-adds; gives the operations done, two for each. */
typedef double (*peak_rate_fn)(int64_t n);

struct peak {
    peak_read_fn read;
    peak_rate_fn f32, bf16, i8; /* NULL: no such instruction */
};

void peak_plain(struct peak *p);
void peak_avx2(struct peak *p);
void peak_avx512(struct peak *p);
void peak_amx(struct peak *p);

#endif
