/* template.h - chat templates: the Jinja language as transformers configures it
 * (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loopcontrols, generation blocks).
 *
 * A compiled template is immutable.   Thread: any, all calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_TEMPLATE_H
#define SL_TEXT_TEMPLATE_H

#include "base/status.h"

#include <jansson.h>

struct template;

/* Bounds of one render; exceeding one is an error with line and column. */
struct template_limits {
    size_t output_bytes, memory_bytes;
    int depth;
    uint64_t steps;
};
extern const struct template_limits template_default_limits;

/* Errors name line and column. */
SL_MUST_CHECK enum sl_status template_compile(struct template **out, const char *source,
                                              size_t bytes, struct sl_err *err);
void template_destroy(struct template **t);
/* vars: an object, every key a variable; defaults: variables that vars need not have, or NULL. Both
 * are borrowed. now: "YYYY-MM-DDTHH:MM:SS" for strftime_now, NULL: the clock. limits NULL: the
 * default ones. *text is NUL-terminated, free it with mem_free; it may hold NUL bytes.
 * SL_EINVAL: the template called raise_exception (err->msg is its message) or failed. */
SL_MUST_CHECK enum sl_status template_render(const struct template *t, const json_t *vars,
                                             const json_t *defaults, const char *now,
                                             const struct template_limits *limits, char **text,
                                             size_t *bytes, struct sl_err *err);

/* The template goes through a message's content as through a list of parts (vLLM's "openai" content
 * format), rather than printing it ("string"). */
bool template_reads_parts(const struct template *t);

/* Variables from JSON text, as Python's json module would read them: integers of any size, and NUL
 * in strings. (JSON integers outside int64 become objects that only template_render() understands.)
 * NULL: *err says why. */
SL_MUST_CHECK json_t *template_vars_parse(const char *json, size_t bytes, struct sl_err *err);

#endif
