/* pyrepr.h - values as Python prints them, for the texts of error messages.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_PYREPR_H
#define SL_ENGINE_PYREPR_H

#include "base/strbuf.h"

#include <stdint.h>

/* The shortest digits that give the same float back: 1.0, 0.1, 1e-06, inf, nan. */
void pyrepr_float(struct strbuf *b, float v);
void pyrepr_str(struct strbuf *b, const char *s); /* quoted and escaped */
void pyrepr_strs(struct strbuf *b, const char *const *s, int n);
void pyrepr_ints(struct strbuf *b, const int32_t *v, int n);

#endif
