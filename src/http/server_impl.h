/* server_impl.h - the server's parts, for the files of http/ only.
 *
 *     sockets -> loop (evhttp) -> conn -> route -> call -> worker -> engine
 *     engine -> wake -> loop -> call -> answer -> conn -> socket
 *
 * A loop is one thread with one event_base; a connection and its calls belong to one loop for
 * life. Workers parse and tokenize; the engine thread only ever marks a call as ready and writes
 * the loop's eventfd when the loop has gone to sleep.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_SERVER_IMPL_H
#define SL_HTTP_SERVER_IMPL_H

#include "base/strbuf.h"
#include "base/sync.h"
#include "http/http_metrics.h"
#include "http/oai.h"
#include "http/pieces.h"
#include "http/workers.h"

#include <event2/event.h>
#include <event2/http.h>
#include <stdatomic.h>

struct call;
struct conn;

struct loop {
    struct sl_server *srv;
    int index;
    pthread_t thread;
    bool running; /* the thread was started */
    struct event_base *base;
    struct evhttp *http; /* NULL in an offline server */
    struct evconnlistener *listener;
    struct event *wake_event, *tick_event, *adopt_event;
    int wake_fd;

    /* Any thread pushes, the loop takes all: a stack, turned around by the loop. */
    _Atomic(struct call *) ready;
    atomic_bool asleep; /* who sets it false must write wake_fd; the loop sets it true */
    atomic_bool stop;   /* main sets it, then wakes the loop */

    /* the loop's thread only */
    struct call *run_head, **run_tail; /* taken from `ready`, waiting for their turn */
    struct call *calls;                /* all calls of this loop */
    struct conn *conns, *fresh;        /* all connections; those not adopted yet */
    struct conn **by_fd;
    int n_by_fd;
    struct strbuf scratch; /* events on their way to a socket */
    bool killed, paused;   /* all calls were told to abort; accepting waits for descriptors */
};

struct sl_server {
    struct sl_engine *engine;
    struct sl_server_config cfg; /* strings live in `arena` */
    struct arena arena;
    struct oai_env env;
    struct pieces *pieces;
    struct http_metrics *metrics;
    struct workers *workers;
    void *tls; /* SSL_CTX, or NULL */
    unsigned char (*key_hash)[32];
    char *tokenizer_info; /* JSON, with --enable-tokenizer-info-endpoint */
    const char *fingerprint;
    int64_t created; /* seconds since 1970: of the model cards */
    int port;
    bool offline;

    struct loop *loops;
    int n_loops;

    /* Counters that several loops and workers touch; each is only ever compared with a limit. */
    atomic_size_t body_bytes;
    atomic_int n_conns;
    atomic_int n_busy; /* requests that have come and are not answered completely */
    atomic_int n_load; /* of those, the ones that generate */
    atomic_uint next_loop;
    atomic_bool draining, killed; /* set once, by sl_server_drain and sl_server_wait */

    struct mutex lock;   /* guards deadline_ns; rank LOCK_SERVER */
    struct cond changed; /* draining began, or the last busy request ended */
    int64_t deadline_ns; /* 0: not draining */
};

/* ---- loop.c */
SL_MUST_CHECK enum sl_status loop_init(struct loop *l, struct sl_server *s, int index,
                                       struct sl_err *err);
SL_MUST_CHECK enum sl_status loop_start(struct loop *l, struct sl_err *err);
void loop_join(struct loop *l);
void loop_fini(struct loop *l);
void loop_poke(struct loop *l); /* any thread: run once */
/* Any thread: the call wants its turn. Cheap when it is already waiting for it. */
void loop_post(struct loop *l, struct call *c);
/* The loop's own thread: the same, without a system call. */
void loop_requeue(struct loop *l, struct call *c);

/* ---- listen.c */
SL_MUST_CHECK enum sl_status server_listen(struct sl_server *s, struct sl_err *err);
void server_unlisten(struct sl_server *s);

/* ---- tls.c */
SL_MUST_CHECK enum sl_status tls_create(void **out, const struct sl_server_config *cfg,
                                        struct sl_err *err);
void tls_destroy(void **tls);
struct bufferevent *tls_bufferevent(void *tls, struct event_base *base);

/* ---- server.c */
void server_busy(struct sl_server *s, int change);

#endif
