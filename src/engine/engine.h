/* engine.h - what http/ may ask of an engine beside include/sluice.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_ENGINE_H
#define SL_ENGINE_ENGINE_H

#include "core/metrics.h"
#include "sluice.h"

/* The vllm: families in Prometheus text format. Any thread. */
void engine_metrics_render(const struct sl_engine *e, struct strbuf *out);
struct metrics *engine_metrics(struct sl_engine *e); /* lives as long as the engine */

#endif
