/* Any bytes as a JSON schema, a regular expression, a grammar, choices or a structural tag: refused
 * with a reason, or compiled and followed. The first byte picks which; what follows the first NUL
 * is an output to follow. SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "grammar/grammar.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { N_VOCAB = 259, N_WORDS = (N_VOCAB + 31) / 32 };

static struct grammar_lib *make_lib(void)
{
    static uint32_t start[N_VOCAB + 1];
    static uint8_t bytes[512], flags[N_VOCAB];
    static const struct vocab vocab = {N_VOCAB, start, bytes, flags};
    struct grammar_lib *lib = NULL;
    for (int i = 0; i < N_VOCAB; i++) {
        size_t len = i < 256 ? 1 : 2;
        memcpy(bytes + start[i], i < 256 ? (char[]){(char)i, 0} : i == 256 ? "\":" : "ab", len);
        start[i + 1] = start[i] + (uint32_t)len;
    }
    SL_ASSERT(grammar_lib_create(&lib, &vocab, 258, NULL) == SL_OK);
    return lib;
}

static void follow(struct grammar *g, const uint8_t *s, size_t n)
{
    static const int32_t stop[] = {258};
    struct matcher *m = NULL;
    uint32_t bits[N_WORDS];
    int n_allowed;
    int32_t forced;
    SL_ASSERT(matcher_create(&m, g, stop, 1, NULL) == SL_OK);
    for (size_t i = 0; i < n && i < 200; i++) {
        SL_ASSERT(matcher_mask(m, bits, N_WORDS, &n_allowed, &forced) == SL_OK);
        SL_ASSERT(n_allowed > 0);
        bool in = bits[s[i] >> 5] >> (s[i] & 31) & 1;
        SL_ASSERT((matcher_accept(m, s[i]) == SL_OK) == in);
        if (!in)
            break;
    }
    (void)matcher_may_end(m);
    matcher_destroy(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct grammar_lib *lib;
    struct sl_err err = {0};
    struct grammar *g = NULL;
    if (!lib)
        lib = make_lib();
    if (n < 1)
        return 0;
    const uint8_t *nul = memchr(data + 1, 0, n - 1);
    struct grammar_spec spec = {.kind = (enum grammar_kind)(data[0] % 6),
                                .text = (const char *)data + 1,
                                .n_text = nul ? (size_t)(nul - data) - 1 : n - 1,
                                .compact = data[0] & 64,
                                .closed = data[0] & 128};
    enum sl_status st = grammar_compile(lib, &spec, &g, &err);
    SL_ASSERT(st ? !g && err.msg[0] != 0 : g != NULL);
    if (g)
        follow(g, nul ? nul + 1 : data, nul ? n - (size_t)(nul + 1 - data) : n);
    grammar_unref(&g);
    return 0;
}
