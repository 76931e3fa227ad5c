/* http_metrics.h - http_requests_total and its relatives, as prometheus-fastapi-instrumentator
 * names them, and vLLM's count of what its tool parsers came to.
 *
 * Thread: any. Every atomic is a statistic: relaxed, publishes nothing.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_HTTP_METRICS_H
#define SL_HTTP_HTTP_METRICS_H

#include "base/status.h"
#include "base/strbuf.h"

struct http_metrics;

/* One row per handler; index n_handlers counts requests that no route answers ("none"). */
SL_MUST_CHECK enum sl_status http_metrics_create(struct http_metrics **out,
                                                 const char *const *handlers, int n_handlers,
                                                 struct sl_err *err);
void http_metrics_destroy(struct http_metrics **m);
void http_metrics_count(struct http_metrics *m, int handler, const char *method, int status,
                        int64_t duration_ns, size_t request_bytes, size_t response_bytes);
/* A tool parser has read an answer, or one piece of a stream. */
void http_metrics_count_parse(struct http_metrics *m, bool stream, bool called);
/* model: of the tool parser's count; NULL: there is no tool parser. */
void http_metrics_render(const struct http_metrics *m, const char *model, struct strbuf *out);

#endif
