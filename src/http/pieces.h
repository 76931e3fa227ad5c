/* pieces.h - what a single token says as text, for logprobs; decoded once, then remembered.
 *
 * Thread: any, all calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_PIECES_H
#define SL_HTTP_PIECES_H

#include "base/status.h"

struct piece {
    uint32_t bytes, chars; /* chars: code points, as Python counts */
    char text[];           /* UTF-8; a part of a character is U+FFFD */
};

struct pieces;

/* text NULL (no tokenizer): every piece is empty. Borrows text. */
SL_MUST_CHECK enum sl_status pieces_create(struct pieces **out, const struct sl_text *text,
                                           int vocab_size, struct sl_err *err);
void pieces_destroy(struct pieces **p);
/* Never NULL. */
const struct piece *pieces_get(struct pieces *p, int32_t token);
/* The same as bytes: those of the token itself where it is no whole text. */
const char *pieces_bytes(struct pieces *p, int32_t token, size_t *n);

#endif
