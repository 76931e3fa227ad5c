/* conn.h - one client connection: evhttp parses and writes, this file knows what state it is in.
 *
 * States: READING (idle, or a request is coming in), REPLYING (a handler or a call owns the
 * request), CONDEMNED (a last word is being written, then it closes).
 * What evhttp 2.1 lacks is added here: when a client leaves while it waits for its first byte, how
 * much of a body has come, time limits of a whole request, error pages in the API's own form.
 *
 * Thread: the loop's. A function that may free the connection says so.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_CONN_H
#define SL_HTTP_CONN_H

#include "http/server_impl.h"

#include <event2/event_struct.h>

enum conn_phase { CONN_READING, CONN_REPLYING, CONN_CONDEMNED };

struct route;

struct conn {
    struct loop *loop;
    struct conn *prev, *next;
    struct bufferevent *bev;
    struct evhttp_connection *evcon;
    struct event watch;    /* of watch_fd, while a call runs */
    struct event deferred; /* what an evbuffer callback found but must not do itself */
    int fd, watch_fd;      /* the second: a duplicate, -1 until it is needed */
    enum conn_phase phase;
    bool over_budget, error_page, drain_input; /* why `deferred` was activated */
    size_t in_bytes, charged;                  /* of the request that is coming in */
    int64_t since_ns;                          /* of the phase, or of the last progress in it */

    /* the request, in REPLYING */
    struct evhttp_request *req;
    const struct route *route;
    struct call *call;
    int64_t arrival_ns;
    size_t request_bytes, response_bytes;
    int status; /* once the answer began */
    char request_id[260];
    bool streaming, chunked;
};

/* evhttp callbacks; arg: the loop. */
struct bufferevent *conn_create(struct event_base *base, void *arg);
void conn_on_request(struct evhttp_request *req, void *arg);
void conn_adopt_fresh(struct loop *l);
void conn_tick(struct loop *l, int64_t now_ns); /* time limits */
void conn_drop_fresh(struct loop *l);

/* Answers. Each may free the connection. body may be NULL; its memory is taken. */
void conn_reply(struct conn *c, int status, const char *content_type, struct strbuf *body);
void conn_reply_static(struct conn *c, int status, const char *content_type, const char *body,
                       size_t bytes); /* body lives for ever */
void conn_reply_error(struct conn *c, const struct oai_error *e);
void conn_add_header(struct conn *c, const char *name, const char *value);
const char *conn_header(const struct conn *c, const char *name); /* of the request, or NULL */
const char *conn_method(const struct conn *c);

/* A stream of events. Only _end and _kill may free the connection. */
void conn_stream_start(struct conn *c);
void conn_stream_write(struct conn *c, const char *data, size_t n);
void conn_stream_end(struct conn *c);
void conn_kill(struct conn *c);
size_t conn_pending(const struct conn *c); /* bytes that the client has not taken */

/* From now until the answer is out, a client that leaves frees the connection. */
void conn_watch(struct conn *c);
/* The request body: *body belongs to the caller (mem_free), the bytes stay charged to the server's
 * budget until server->body_bytes is lowered by *charged. False: no memory. */
bool conn_take_body(struct conn *c, char **body, size_t *bytes, size_t *charged);

#endif
