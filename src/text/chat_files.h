/* chat_files.h - what chat.c reads from a model folder.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_CHAT_FILES_H
#define SL_TEXT_CHAT_FILES_H

#include "base/status.h"

#include <jansson.h>

enum { CHAT_MAX_FILE_BYTES = 64 << 20 };

typedef enum sl_status (*chat_template_fn)(void *ctx, const char *name, const char *source,
                                           size_t bytes, struct sl_err *err);
/* Calls add() for each template of the folder and sets the special tokens in `vars`. */
SL_MUST_CHECK enum sl_status chat_read_folder(const char *dir, chat_template_fn add, void *ctx,
                                              json_t *vars, struct sl_err *err);

#endif
