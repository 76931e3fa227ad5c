/* assets.c - web/index.html and openapi.json, as they were when the library was built.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/routes.h"

/* The assembler reads the files; CMake passes SLUICE_SOURCE and the dependency. */
#define EMBED(name, file)                                                   \
    __asm__(".pushsection .rodata\n"                                        \
            ".hidden asset_" #name "\n"                                     \
            ".global asset_" #name "\n"                                     \
            "asset_" #name ":\n"                                            \
            ".incbin \"" SLUICE_SOURCE "/" file "\"\n"                      \
            ".hidden asset_" #name "_end\n"                                 \
            ".global asset_" #name "_end\n"                                 \
            "asset_" #name "_end:\n"                                        \
            ".byte 0\n"                                                     \
            ".popsection\n");                                               \
    extern const char asset_##name[] __attribute__((visibility("hidden"))); \
    extern const char asset_##name##_end[] __attribute__((visibility("hidden")))

EMBED(index_html, "web/index.html");
EMBED(openapi_json, "src/http/openapi.json");

struct asset asset_page(void)
{
    return (struct asset){asset_index_html, (size_t)(asset_index_html_end - asset_index_html)};
}

struct asset asset_openapi(void)
{
    return (struct asset){asset_openapi_json,
                          (size_t)(asset_openapi_json_end - asset_openapi_json)};
}
