/* Fuzz target: a tokenizer.json, then a text after a NUL byte, through load, encode and decode.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/strbuf.h"
#include "text/tokenizer.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(const struct tokenizer *t, const struct token_vec *v)
{
    char *text = NULL;
    size_t bytes = 0;
    struct detok *d = NULL;
    struct strbuf b;
    if (tokenizer_decode(t, v->ids, v->n, false, &text, &bytes, NULL))
        return;
    strbuf_init(&b, 0);
    if (!detok_create(&d, t, false, true, NULL)) {
        for (size_t i = 0; i < v->n; i++)
            (void)!detok_push(d, v->ids[i], &b);
        (void)!detok_finish(d, &b);
        if (b.len != bytes || (bytes && memcmp(b.data, text, bytes)))
            abort(); /* a stream differs from the whole */
        detok_destroy(&d);
    }
    strbuf_fini(&b);
    mem_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = memchr(data, 0, size);
    size_t json = nul ? (size_t)(nul - data) : size;
    static const char plain[] = "Hello w\xC3\xB6rld  <s> 12\n\xF0\x9F\x98\x80\xFF x";
    const char *text = nul ? (const char *)nul + 1 : plain;
    size_t n = nul ? size - json - 1 : sizeof plain - 1;
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    if (tokenizer_from_json(&t, (const char *)data, json, &err))
        return 0;
    for (unsigned flags = 0; flags < 4; flags++) {
        struct token_vec v = {0};
        if (!tokenizer_encode(t, text, n, flags, 4096, &v, &err))
            decode(t, &v);
        token_vec_fini(&v);
    }
    tokenizer_destroy(&t);
    return 0;
}
