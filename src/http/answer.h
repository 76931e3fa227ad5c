/* answer.h - what goes back to the client of one API call: events of a stream, or one body.
 *
 * Streams: answer_take() an output, answer_event() the choice it belongs to; at the end
 * answer_end(). In one piece: answer_take() all, then answer_body().
 *
 * Thread: the loop that owns the call.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_ANSWER_H
#define SL_HTTP_ANSWER_H

#include "http/oai_choice.h"

struct answer {
    const struct oai_env *env;
    struct oai_request *r;
    struct oai_style style;
    struct strbuf id; /* "cmpl-..." */
    int64_t created;
    const char *model, *fingerprint; /* fingerprint NULL: none */
    struct oai_choice *choices;      /* [n_prompts * n] */
    int n_choices, n_finished;
    bool opened;        /* chat: the events that name the role went out */
    struct strbuf head; /* data: {"id":...,"choices":[ */
    struct oai_error error;
};

/* Borrows all but id, which is copied. r has its prompts. False: no memory. */
bool answer_init(struct answer *a, const struct oai_env *env, struct oai_request *r,
                 struct pieces *pieces, const char *id, const char *fingerprint);
void answer_fini(struct answer *a);
/* req: of prompt number `prompt`. False: the whole call failed (a->error). */
bool answer_take(struct answer *a, int prompt, const struct sl_request *req,
                 const struct sl_output *out);
/* The event(s) that the choice's waiting output is due; nothing if there is nothing to say. */
void answer_event(struct answer *a, int choice, struct sl_request *const *reqs, struct strbuf *out);
/* Usage, if asked for, and [DONE]. */
void answer_end(struct answer *a, struct sl_request *const *reqs, struct strbuf *out);
/* An error after the first byte, and [DONE]. */
void answer_error_event(const struct oai_error *e, struct strbuf *out);
void answer_body(struct answer *a, struct sl_request *const *reqs, struct strbuf *out);

#endif
