/* choice.h - one choice as its consumer sees it: tokens in, text and stop strings out.
 *
 * What a choice gives depends on its tokens alone, in order, one at a time: never on how many came
 * together. What follows a stop string is dropped here, before text, usage, logprobs or metrics
 * can see it.
 *
 * Thread: the consumer's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_CHOICE_H
#define SL_ENGINE_CHOICE_H

#include "base/strbuf.h"
#include "engine/events.h"
#include "engine/stop_strings.h"
#include "text/tokenizer.h"

/* The same for every choice of a request; borrowed. */
struct choice_rules {
    const struct tokenizer *tokenizer; /* NULL: no text is made */
    const struct sl_sampling_params *p;
    const int32_t *context; /* the prompt's last tokens: a first space depends on them */
    int n_context;
    struct stop_strings stop;
    int stream_interval;
    size_t max_log_bytes; /* of the text kept for the log, 0: none */
    bool show_logprobs;   /* asked for, not only needed to rank choices */
    bool beams;           /* choices are ranked by sum / length ^ length_penalty */
};

struct choice {
    int index;    /* as the engine numbers them */
    int shown_as; /* as the caller does: the same, or its rank */
    int n_tokens; /* generated */
    int n_ranked; /* of them with a logprob */
    double sum;   /* of their logprobs */
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    int32_t stop_token;
    const char *stop_string;
    int64_t first_ns, last_ns; /* of the tokens that count */
    bool started, ended;       /* an output was given; the last one was */
    bool offered;              /* the request's: it is on the list of those that have an output */

    struct detok *detok;
    struct strbuf text;   /* the end of the text so far */
    size_t base, sent;    /* offsets in the whole text: of text.data[0]; of what was given */
    struct strbuf out;    /* the text of the output that was given last */
    struct strbuf logged; /* the whole text, if it is to be logged */

    int32_t *tokens; /* not given yet, as are the next three */
    size_t *text_end;
    struct sl_logprob *lp;
    int *lp_start; /* [n_new + 1] */
    struct sl_token_logprobs *lists;
    size_t n_new, cap_tokens, cap_end, n_lp, cap_lp, cap_start, cap_lists;
};

void choice_init(struct choice *c, int index);
void choice_fini(struct choice *c);

/* Takes one token or end. SL_ENOMEM leaves the choice as it was or finished. After it, c->finish
 * says whether a stop string has just ended a choice that the engine still computes. */
SL_MUST_CHECK enum sl_status choice_take(struct choice *c, const struct choice_rules *r,
                                         const struct event *ev, const struct sl_logprob *lp,
                                         struct sl_err *err);
/* Ends it from outside (abort, error): what was held back comes out. */
SL_MUST_CHECK enum sl_status choice_end(struct choice *c, enum sl_finish why, struct sl_err *err);
/* There is enough for an output, or the end to tell. */
bool choice_ready(const struct choice *c, const struct choice_rules *r);
/* Fills *out (but for error) with what is new; valid until choice_taken(). */
SL_MUST_CHECK enum sl_status choice_output(struct choice *c, const struct choice_rules *r,
                                           struct sl_output *out, struct sl_err *err);
void choice_taken(struct choice *c); /* the caller has read it */

#endif
