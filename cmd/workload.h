/* workload.h - what a benchmark asks for: prompts as token ids, output lengths, arrival times.
 *
 * Made from a seed, so the same command makes the same requests.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_WORKLOAD_H
#define CMD_WORKLOAD_H

#include "options.h"

struct work_item {
    int32_t *tokens; /* sl_free or free as `encoded` says */
    int n_tokens;
    int output_len;
    double arrival_s; /* 0 unless a trace says otherwise */
    bool encoded;
};

struct workload {
    struct work_item *items;
    int n;
    bool has_arrivals; /* from a trace */
    const char *name;  /* of the dataset */
};

/* `text` may be NULL when the dataset needs no tokenizer. Token ids are under vocab_size. What is
 * longer than max_len together with its output is left out and counted on standard error; 0: no
 * limit. False: err holds a sentence. */
bool workload_make(struct workload *w, const struct options *o, const struct sl_text *text,
                   int vocab_size, int max_len, struct sl_err *err);
void workload_free(struct workload *w);

#endif
