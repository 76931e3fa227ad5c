/* prompts.h - prompts from arguments, a file or standard input, as jobs for an engine.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_PROMPTS_H
#define CMD_PROMPTS_H

#include "offline.h"
#include "options.h"

#include <jansson.h>

struct prompt {
    json_t *line;     /* the JSON object it came as, or NULL */
    const char *text; /* what was given: text, or NULL for token ids and messages */
    int32_t *tokens;  /* from sl_text_encode, or `ours` when given as ids */
    bool ours;
    json_t *result; /* what --json will write, until the prompts before it are written */
};

struct prompt_list {
    struct prompt *prompts;
    struct offline_job *jobs; /* [n], tokens and params set */
    int n;
};

/* False: `err` holds a sentence. What one prompt gets wrong is that job's error (err.code != 0),
 * and the others still run. */
bool prompts_read(struct prompt_list *out, const struct options *o, struct sl_engine *engine,
                  struct sl_err *err);
void prompts_free(struct prompt_list *list);

#endif
