/* structured.h - a request's structured output: from JSON to parameters.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_STRUCTURED_H
#define SL_ENGINE_STRUCTURED_H

#include "base/mem.h"
#include "base/status.h"

#include <jansson.h>

/* An object as vLLM's structured_outputs. What out points to is in the arena. SL_EINVAL with vLLM's
 * words where it has some. */
SL_MUST_CHECK enum sl_status structured_from_json(const json_t *so, struct arena *a,
                                                  struct sl_structured_output *out,
                                                  struct sl_err *err);

#endif
