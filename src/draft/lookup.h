/* lookup.h - the end of a text, found again earlier in it.   Thread: any (a plain function).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_DRAFT_LOOKUP_H
#define SL_DRAFT_LOOKUP_H

#include "draft/draft.h"

struct lookup {
    int length; /* tokens that match, 0: fewer than min */
    int next;   /* index of the token that follows them there */
};

struct lookup lookup_find(const int32_t *tokens, int n, int min, int max);

#endif
