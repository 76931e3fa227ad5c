/* jsonfile.h - JSON from files that nobody vouches for: bounded in size and depth.
 *
 * Thread: any.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_MODEL_JSONFILE_H
#define SL_MODEL_JSONFILE_H

#include "base/status.h"

#include <jansson.h>

/* Parse an object. `what` names it in errors. max_depth counts nested {} and [] together. The
 * caller owns *out (json_decref). */
SL_MUST_CHECK enum sl_status json_object_parse(json_t **out, const char *text, size_t bytes,
                                               int max_depth, const char *what, struct sl_err *err);
/* The same for the file dir/name (dir NULL: name is a path). SL_ENOTFOUND: there is no such file.
 */
SL_MUST_CHECK enum sl_status json_object_read(json_t **out, const char *dir, const char *name,
                                              size_t max_bytes, int max_depth, struct sl_err *err);
/* The same for a file that holds a list. */
SL_MUST_CHECK enum sl_status json_list_read(json_t **out, const char *dir, const char *name,
                                            size_t max_bytes, int max_depth, struct sl_err *err);
/* dir/name in memory of its own (mem_free), or NULL. */
char *path_join(const char *dir, const char *name);

#endif
