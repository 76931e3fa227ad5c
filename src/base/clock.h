/* clock.h - time in nanoseconds.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_CLOCK_H
#define SL_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_mono_ns(void); /* CLOCK_MONOTONIC */
int64_t clock_wall_s(void);  /* seconds since 1970 */

#endif
