/* golden.h - the reference outputs of pebble, read and compared (tests/golden/pebble/README.md).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_GOLDEN_H
#define TESTS_SUPPORT_GOLDEN_H

#include "support/drive.h"

struct golden {
    char id[32];
    int32_t *prompt, *output;
    int n_prompt, n_output;
    double *logprob;        /* [n_output] of the chosen tokens */
    double *gap;            /* [n_output] between the best two */
    double *prompt_logprob; /* [n_prompt], first one unset; NULL: not given */
    int near_tie_at;        /* n_output when there is none */
};

/* All prompts of tests/golden/pebble/generate.jsonl. */
struct golden *golden_load(int *n);
void golden_free(struct golden **g, int n);

struct golden_report {
    int n_identical;      /* prompts whose tokens are the golden's to the end */
    int n_bad;            /* prompts that differ before the first near tie */
    double worst_logprob; /* error of a chosen token's, while the tokens are the same */
    double worst_prompt_logprob;
};

/* Greedy decoding of each prompt, `width` at a time. A step whose gap is under `tie` may choose
 * otherwise (then the rest is not compared); where another token is chosen before that, the prompt
 * counts as bad and is printed. */
void golden_run(struct drive *d, const struct golden *g, int n, int width, double tie,
                struct golden_report *out);

/* The ids of tests/golden/pebble/perplexity.txt, checked against perplexity.json. */
int32_t *golden_text_ids(int *n);
/* Perplexity of windows [from, to) of that text, divided by the golden one of the same windows. */
double golden_perplexity_ratio(struct drive *d, const int32_t *ids, int from, int to);

#endif
