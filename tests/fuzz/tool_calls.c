/* Any bytes as a model's answer: the first byte names the parsers, the second the cuts. Whole or in
 * pieces it must come to the same message.
 * SPDX-License-Identifier: Apache-2.0 */
#include "outcheck.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static size_t whole(void *ctx)
{
    (void)ctx;
    return 0;
}

static size_t random_cut(void *ctx)
{
    uint64_t *seed = ctx;
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return 1 + (*seed >> 33) % 11;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static json_t *tools;
    struct outparse_message m;
    struct outcheck once, pieces;
    if (n < 2)
        return 0;
    if (!tools)
        tools = json_loads("[{\"function\": {\"name\": \"f\", \"parameters\": {\"properties\": "
                           "{\"n\": {\"type\": \"integer\"}, \"x\": {\"type\": [\"number\", "
                           "\"null\", \"object\", \"boolean\"]}}}}}]",
                           0, NULL);
    struct outparse_spec spec = {.tool = (enum out_tool)(data[0] % (OUT_NAMED + 1)),
                                 .reasoning = (enum out_reasoning)((data[0] >> 4) % 5),
                                 .tools = tools,
                                 .named = "f"};
    uint64_t seed = data[1];
    const char *text = (const char *)data + 2;
    SL_ASSERT(!outparse_whole(&m, &spec, text, n - 2, NULL));
    SL_ASSERT(outcheck_stream(&once, &spec, text, n - 2, whole, NULL));
    SL_ASSERT(outcheck_stream(&pieces, &spec, text, n - 2, random_cut, &seed));
    SL_ASSERT(outcheck_same(&once.content, &pieces.content));
    SL_ASSERT(outcheck_same(&once.reasoning, &pieces.reasoning));
    SL_ASSERT(outcheck_same(&once.calls, &pieces.calls));
    SL_ASSERT(outcheck_whole(&m, &once));
    outparse_message_fini(&m);
    outcheck_fini(&once);
    outcheck_fini(&pieces);
    return 0;
}
