/* ceilings.h - what this machine can do at most: the numbers that kernels are held against.
 *
 * Read bandwidth: all threads read one buffer far larger than the caches, front to back, as a
 * decode step reads weights. Rates: each thread issues nothing but independent multiply-adds of one
 * kind on registers (AVX-512, AVX2) or tiles (AMX). Each figure is the best of several short runs,
 * because other load only ever lowers it.
 *
 * Thread: the caller's; measuring takes all of the pool's threads.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_CEILINGS_H
#define SL_BACKEND_CPU_CEILINGS_H

#include "backend/cpu/isa.h"
#include "backend/cpu/pool.h"

enum ceiling { CEILING_READ, CEILING_F32, CEILING_BF16, CEILING_I8, N_CEILINGS };

struct ceilings;

/* threads: 0 chooses. Takes a buffer of read_bytes (0: 512 MiB) until it is destroyed. */
SL_MUST_CHECK enum sl_status ceilings_create(struct ceilings **out, int threads, size_t read_bytes,
                                             struct sl_err *err);
void ceilings_destroy(struct ceilings **c);
int ceilings_threads(const struct ceilings *c);
enum cpu_isa ceilings_isa(const struct ceilings *c);

/* The best of runs of about `ms` milliseconds in all. READ: bytes a second; the rest: operations a
 * second, two for a multiply-add. 0: this level has no instruction for it. */
double ceilings_measure(struct ceilings *c, enum ceiling what, int ms);
/* One short run (about 1.5 ms), to be compared with a kernel's run right before or after it. */
double ceilings_run(struct ceilings *c, enum ceiling what);
/* The clock that both should use: with one thread its CPU time, which other load on the core does
 * not enter; else the monotonic clock. */
int64_t ceilings_now_ns(const struct ceilings *c);
const char *ceiling_name(enum ceiling what); /* "read", "f32", "bf16", "int8" */

#endif
