/* batch_url.h - run-batch's files where they are URLs: fetched before, sent after.
 *
 * Both go through a file that has no name any more, so nothing is left behind.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_BATCH_URL_H
#define CMD_BATCH_URL_H

#include "sluice.h"

#include <stdio.h>

bool is_url(const char *path);
/* A file in `folder` (NULL: $TMPDIR or /tmp) that is gone when it is closed; NULL: err says why. */
FILE *url_scratch(const char *folder, struct sl_err *err);
/* GET into a scratch file, at its start; NULL: err says why. */
FILE *url_get(const char *url, const char *folder, struct sl_err *err);
/* PUT of all that was written to `f`. */
SL_MUST_CHECK enum sl_status url_put(const char *url, FILE *f, struct sl_err *err);

#endif
