/* vocab.h - each token's bytes and flags: made by text, read by sample and by grammar masks.
 *
 * Immutable after it is made; owned by the tokenizer.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_VOCAB_H
#define SL_CORE_VOCAB_H

#include <stddef.h>
#include <stdint.h>

enum vocab_flag {
    VOCAB_SPECIAL = 1, /* hidden by skip_special_tokens */
    VOCAB_ADDED = 2,   /* an added token, special or not */
    VOCAB_BYTE = 4,    /* a single byte that need not be a whole character */
    VOCAB_UNUSED = 8   /* no token has this id */
};

struct vocab {
    int n;                 /* ids are [0, n) */
    const uint32_t *start; /* [n + 1]: offsets into bytes */
    const uint8_t *bytes;  /* what the token decodes to, in the middle of a text */
    const uint8_t *flags;  /* [n] */
};

static inline const uint8_t *vocab_bytes(const struct vocab *v, int32_t id, size_t *n)
{
    *n = v->start[id + 1] - v->start[id];
    return v->bytes + v->start[id];
}

#endif
