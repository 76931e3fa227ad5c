/* call.h - one API call: from its body to its answer, over a socket or without one.
 *
 * queued -> a worker parses, renders, tokenizes, submits -> prepared -> the loop pumps outputs into
 * the answer -> done. The loop owns the call, except between call_start and `prepared`, when a
 * worker does; the engine thread only posts it.
 *
 * Thread: as said above.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_CALL_H
#define SL_HTTP_CALL_H

#include "http/answer.h"
#include "http/server_impl.h"

struct call {
    struct job job; /* first: a job is the call */
    struct loop *loop;
    struct call *next_ready; /* in loop->ready or the run list */
    struct call *prev, *next;
    atomic_bool queued;    /* in one of these; set by who posts, cleared by the loop */
    atomic_bool prepared;  /* worker -> loop: publishes all that the worker wrote */
    atomic_bool cancelled; /* loop -> worker: nobody waits for it any more */

    enum oai_api api;
    char *body;
    size_t bytes, charged;
    int64_t arrival_ns;
    char id[260];

    struct oai_request r;
    struct oai_error error;
    struct strbuf reply; /* tokenize, detokenize: made by the worker */
    struct answer a;
    struct sl_request **reqs;
    int n_reqs;
    int n_pooled; /* of them, those that have given their vector or score */
    bool has_id, linked;
    bool answering, streaming; /* a is valid; events go out */
    bool held, flush;          /* the client is slow and events wait; they need wait no longer */

    struct conn *conn;      /* NULL: offline, or the client has left */
    sl_openai_done_fn done; /* offline */
    void *done_ctx;
};

/* Takes body. False: no memory (body was freed). conn or done. */
bool call_start(struct loop *l, enum oai_api api, char *body, size_t bytes, size_t charged,
                const char *id, struct conn *conn, sl_openai_done_fn done, void *ctx);
void call_run(struct call *c);         /* its turn on the loop; may free it */
void call_client_left(struct call *c); /* its connection is gone; may free it */
void call_drained(struct call *c);     /* its connection took what was waiting */
void call_abort(struct call *c);       /* shutdown: finish with what there is */
void call_free_all(struct loop *l);    /* after the workers have stopped */

#endif
