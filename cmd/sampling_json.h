/* sampling_json.h - sampling parameters from JSON and from the command line.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_SAMPLING_JSON_H
#define CMD_SAMPLING_JSON_H

#include "options.h"

#include <jansson.h>

/* What the command line says, over what is in *p. */
void sampling_from_options(struct sl_sampling_params *p, const struct sampling_options *s);

/* Keys of `object` that are sampling parameters, over what is in *p; other keys are left alone.
 * Arrays and strings are borrowed from `object` or allocated for the process's life. False: `why`
 * says which key is wrong. */
bool sampling_from_json(struct sl_sampling_params *p, const json_t *object, char *why, size_t size);
bool sampling_has_key(const char *name);

#endif
