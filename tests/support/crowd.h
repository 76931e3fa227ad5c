/* crowd.h - many requests through the public interface, and their answers to the last bit.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_CROWD_H
#define TESTS_SUPPORT_CROWD_H

#include "sluice.h"
#include "support/golden.h"

#include <stdbool.h>

enum { CROWD_MAX = 64, ANSWER_MAX = 64, ANSWER_TOP = 3 };

/* What one request gave; its parameters ask for ANSWER_TOP logprobs or none. */
struct answer {
    int32_t token[ANSWER_MAX];
    struct sl_logprob lp[ANSWER_MAX][ANSWER_TOP + 1];
    char text[2048];
    int n, n_cached;
    size_t bytes;
    enum sl_finish finish;
};

/* Parameters of prompt i's request. */
typedef struct sl_sampling_params (*crowd_params)(int i);

/* The prompts that a crowd submits: every stride-th one of at most max_prompt tokens. */
struct crowd {
    struct golden *golden; /* [CROWD_MAX] */
    bool chosen[CROWD_MAX];
};
/* For a test group's setup: 0, or the goldens are not all there. */
int crowd_load(struct crowd *c);
void crowd_free(struct crowd *c);
void crowd_choose(struct crowd *c, int stride, int max_prompt);

struct sl_request *crowd_submit(const struct crowd *c, struct sl_engine *e, int i,
                                crowd_params params);
/* `width` requests at a time. out: [CROWD_MAX] */
void crowd_run(const struct crowd *c, struct sl_engine *e, int width, crowd_params params,
               struct answer *out);
/* Fails at the first answer that is another one, in tokens, logprobs, text or ending. */
void crowd_assert_same(const struct crowd *c, const struct answer *want, const struct answer *got,
                       const char *what);

#endif
