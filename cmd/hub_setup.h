/* hub_setup.h - MODEL as a name: where names are looked up, and folders put in their place.
 *
 * This is where huggingface_hub's environment variables are read, once, into struct sl_hub_config.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_HUB_SETUP_H
#define CMD_HUB_SETUP_H

#include "options.h"

/* HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, ... and the flags that win over
 * them. Strings live as long as the process. */
void hub_config(struct sl_hub_config *cfg, const struct options *o);

/* engine.model and engine.tokenizer: a name that is no folder is fetched and replaced by its
 * folder. The exit code; not EXIT_DONE: a sentence is on stderr. */
int hub_resolve(struct options *o);

/* The folder in the cache of what a server calls `name`; NULL: not there. The caller frees it. */
char *hub_cached(const struct options *o, const char *name);

/* A progress() for a fetch on standard error: bars on a terminal, else a line a file. */
struct hub_progress;
struct hub_progress *hub_progress_begin(const char *model, bool bars);
void hub_progress_show(void *progress, const struct sl_hub_file *files, int n);
void hub_progress_end(struct hub_progress *p);

/* "24.1 MB" */
const char *hub_bytes(char out[32], int64_t bytes);

#endif
