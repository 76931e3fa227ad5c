/* json_out.h - writing JSON text into a strbuf: strings, numbers, nothing clever.
 *
 * Text that is streamed token by token does not go through a JSON tree.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_JSON_OUT_H
#define SL_HTTP_JSON_OUT_H

#include "base/strbuf.h"

#include <stdint.h>

/* Without the quotes. Bytes must be UTF-8; control characters, quotes and backslashes are escaped.
 */
void json_put_escaped(struct strbuf *b, const char *s, size_t n);
void json_put_str(struct strbuf *b, const char *s, size_t n);
/* The same for bytes that need not be UTF-8 (a message cut by a fixed buffer, a token that is a
 * part of a character): each bad byte becomes U+FFFD. */
void json_put_lossy(struct strbuf *b, const char *s, size_t n);
/* NULL gives null. */
void json_put_cstr(struct strbuf *b, const char *s);
void json_put_int(struct strbuf *b, int64_t v);
/* Shortest-enough decimal of a float: reads back to the same bits. Below -9999 (-inf too) gives
 * -9999.0, as OpenAI clients expect of log probabilities; NaN gives null. */
void json_put_logprob(struct strbuf *b, float v);

#endif
