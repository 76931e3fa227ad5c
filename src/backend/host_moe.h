/* host_moe.h - a mixture of experts for devices whose activations are f32 in host memory.
 *
 * The rows of each expert are gathered and go through the device's own linear() and act(), with no
 * padding. A row's outputs are added in ascending order of expert, so its bits do not depend on
 * which rows share its experts.   Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_HOST_MOE_H
#define SL_BACKEND_HOST_MOE_H

#include "backend/ops.h"

size_t host_moe_bytes(const struct moe *m, int hidden, int rows);
void host_moe(const struct ops *ops, struct device *d, void *out, const void *x,
              const struct moe *m, int rows, void *scratch);

#endif
