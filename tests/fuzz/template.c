/* Any bytes as a chat template: refused with a place and a reason, or a text within the bounds.
 * What follows the first NUL is the template's variables, as JSON.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "text/template.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const struct template_limits limits = {
    .output_bytes = 1 << 16, .memory_bytes = 4 << 20, .depth = 200, .steps = 200 * 1000};
static const char context[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"H\\u00e9 \"}, {\"role\": \"assistant\", "
    "\"content\": null, \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": {\"x\": "
    "[1, 2.5, true]}}}]}], \"tools\": [{\"name\": \"t\"}], \"big\": 123456789012345678901234567890,"
    "\"s\": \"a,b<c>\\u03a3 \", \"l\": [3, 1, 2], \"d\": {\"k\": \"v\"}, \"n\": -7, \"f\": 0.1}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct sl_err err = {0};
    struct template *t = NULL;
    const char *source = (const char *)data, *nul = n ? memchr(data, 0, n) : NULL;
    size_t source_n = nul ? (size_t)(nul - source) : n;
    enum sl_status st = template_compile(&t, source, source_n, &err);
    if (st) {
        SL_ASSERT(!t && err.code == st && err.msg[0]);
        return 0;
    }
    json_t *vars = nul ? template_vars_parse(nul + 1, n - source_n - 1, NULL)
                       : template_vars_parse(context, sizeof context - 1, NULL);
    char *text = NULL;
    size_t bytes = 0;
    if (vars) {
        st = template_render(t, vars, NULL, "2024-07-26T12:00:00", &limits, &text, &bytes, &err);
        SL_ASSERT(st ? !text && err.msg[0] != 0 : text && bytes <= limits.output_bytes);
        SL_ASSERT(st || text[bytes] == 0);
    }
    mem_free(text);
    json_decref(vars);
    template_destroy(&t);
    return 0;
}
