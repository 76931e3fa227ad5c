/* pebble.h - an engine with the bundled model, as the tests of the library want it.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_PEBBLE_H
#define TESTS_SUPPORT_PEBBLE_H

#include "sluice.h"

/* One thread (two that wait for each other are slow on a busy machine), 256 MiB of KV cache. */
struct sl_config pebble_config(enum sl_device device, enum sl_dtype dtype);
/* The test fails where there is none. */
struct sl_engine *pebble_start(const struct sl_config *cfg);
/* The same, but preempted requests are swapped out whatever that is thought to cost, not computed
 * again. */
struct sl_engine *pebble_start_swapping(const struct sl_config *cfg);

/* CPU, or CUDA where `PROGRAM cuda` asks for it; tests/gpu runs it so. The program ends where the
 * argument is another one, or the build is without CUDA. */
enum sl_device pebble_device(int argc, char **argv);

#endif
