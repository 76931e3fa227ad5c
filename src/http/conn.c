/* SPDX-License-Identifier: Apache-2.0 */
#include "http/conn.h"

#include "base/clock.h"
#include "base/log.h"
#include "http/call.h"
#include "http/json_out.h"
#include "http/routes.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/keyvalq_struct.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_ROOM = 128 << 10,   /* bytes of a request that are not its body */
    PIPELINE_BYTES = 64 << 10, /* what a client may send ahead while it is answered */
    SLOWEST_BODY = 16 << 10,   /* bytes a second that a body must bring */
    UNSENT_BYTES = 64 << 10,   /* what the kernel holds for a client that does not read */
    RESUME_BELOW = 16 << 10,   /* waiting output at which a held stream goes on */
    LINGER_S = 2,              /* how long a condemned connection may take its last word */
    DEFERRED_ANY = EV_TIMEOUT
};

static void on_close(struct evhttp_connection *evcon, void *arg);
static void on_input(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg);
static void on_output(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg);
static void on_deferred(evutil_socket_t fd, short what, void *arg);
static void unwatch(struct conn *c);

/* ---- life */

/* evhttp asks for the bufferevent before the connection exists: conn_adopt_fresh() finds it later
 * in the same turn of the loop, before any byte is read. */
struct bufferevent *conn_create(struct event_base *base, void *arg)
{
    struct loop *l = arg;
    struct bufferevent *bev = l->srv->tls ? tls_bufferevent(l->srv->tls, base)
                                          : bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
    struct conn *c = bev ? mem_zalloc(1, sizeof *c) : NULL;
    if (!c)
        return bev; /* without a conn its requests get 503 */
    c->loop = l;
    c->bev = bev;
    c->fd = c->watch_fd = -1;
    bufferevent_incref(bev);
    c->next = l->fresh;
    l->fresh = c;
    event_active(l->adopt_event, EV_TIMEOUT, 0);
    return bev;
}

static bool register_fd(struct loop *l, struct conn *c)
{
    if (c->fd >= l->n_by_fd) {
        int n = l->n_by_fd ? l->n_by_fd : 256;
        while (n <= c->fd)
            n *= 2;
        struct conn **grown = mem_realloc(l->by_fd, (size_t)n, sizeof *grown);
        if (!grown)
            return false;
        memset(grown + l->n_by_fd, 0, (size_t)(n - l->n_by_fd) * sizeof *grown);
        l->by_fd = grown;
        l->n_by_fd = n;
    }
    l->by_fd[c->fd] = c;
    return true;
}

static void raw_reply(struct conn *c, int status, const char *message);

static void adopt(struct loop *l, struct conn *c)
{
    /* evhttp's callback argument is its connection: there is no other way to it before a request */
    void *evcon = NULL;
    bufferevent_getcb(c->bev, NULL, NULL, NULL, &evcon);
    c->fd = bufferevent_getfd(c->bev);
    if (bufferevent_decref(c->bev) || !evcon || c->fd < 0 || !register_fd(l, c)) {
        mem_free(c);
        return;
    }
    c->evcon = evcon;
    c->since_ns = clock_mono_ns();
    c->next = l->conns;
    if (c->next)
        c->next->prev = c;
    l->conns = c;
    int n = atomic_fetch_add(&l->srv->n_conns, 1) + 1;
    evhttp_connection_set_closecb(c->evcon, on_close, c);
    evbuffer_add_cb(bufferevent_get_input(c->bev), on_input, c);
    evbuffer_add_cb(bufferevent_get_output(c->bev), on_output, c);
    event_assign(&c->deferred, l->base, -1, 0, on_deferred, c);
    int one = 1, unsent = UNSENT_BYTES; /* events are small and should leave at once */
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    if (n > l->srv->cfg.max_connections)
        raw_reply(c, 503, "There are too many connections.");
}

void conn_adopt_fresh(struct loop *l)
{
    while (l->fresh) {
        struct conn *c = l->fresh;
        l->fresh = c->next;
        c->next = NULL;
        adopt(l, c);
    }
}

void conn_drop_fresh(struct loop *l)
{
    while (l->fresh) {
        struct conn *c = l->fresh;
        l->fresh = c->next;
        bufferevent_decref(c->bev);
        mem_free(c);
    }
}

static void uncharge(struct conn *c)
{
    atomic_fetch_sub(&c->loop->srv->body_bytes, c->charged);
    c->charged = 0;
}

static void count_request(struct conn *c)
{
    if (!c->status)
        c->status = 499; /* the client left before its answer began */
    if (!c->route || !(c->route->flags & ROUTE_QUIET))
        http_metrics_count(c->loop->srv->metrics, route_index(c->route), conn_method(c), c->status,
                           clock_mono_ns() - c->arrival_ns, c->request_bytes, c->response_bytes);
    server_busy(c->loop->srv, -1);
}

/* evhttp frees the connection, for whatever reason. */
static void on_close(struct evhttp_connection *evcon, void *arg)
{
    (void)evcon;
    struct conn *c = arg;
    struct loop *l = c->loop;
    if (c->phase == CONN_REPLYING && c->req)
        count_request(c);
    if (c->call)
        call_client_left(c->call);
    if (c->req && !evhttp_request_get_connection(c->req))
        evhttp_request_free(c->req); /* evhttp has let go of it */
    uncharge(c);
    atomic_fetch_sub(&l->srv->n_conns, 1);
    unwatch(c);
    if (c->watch_fd >= 0)
        close(c->watch_fd);
    event_del(&c->deferred);
    evbuffer_remove_cb(bufferevent_get_input(c->bev), on_input, c);
    evbuffer_remove_cb(bufferevent_get_output(c->bev), on_output, c);
    l->by_fd[c->fd] = NULL;
    if (c->prev)
        c->prev->next = c->next;
    else
        l->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    mem_free(c);
}

void conn_kill(struct conn *c)
{
    evhttp_connection_free(c->evcon);
}

/* ---- the client that leaves while it waits
 *
 * evhttp does not read while an answer is made, and libevent reports a reset (EPOLLERR) to readers
 * and writers only. So the socket is watched through a second descriptor, which epoll treats as
 * another file: edge-triggered, so that bytes that a client sends ahead do not wake the loop again
 * and again. */

static void on_sign(evutil_socket_t fd, short what, void *arg)
{
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (what & EV_CLOSED || !n || (n < 0 && errno != EAGAIN && errno != EINTR))
        conn_kill(arg);
}

void conn_watch(struct conn *c)
{
    if (c->watch_fd < 0) {
        c->watch_fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
        if (c->watch_fd < 0)
            return; /* out of descriptors: the next write finds out */
        event_assign(&c->watch, c->loop->base, c->watch_fd,
                     EV_READ | EV_CLOSED | EV_ET | EV_PERSIST, on_sign, c);
    }
    event_add(&c->watch, NULL);
}

static void unwatch(struct conn *c)
{
    if (c->watch_fd >= 0)
        event_del(&c->watch);
}

/* ---- what comes in, what goes out */

static void on_input(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg)
{
    (void)b;
    struct conn *c = arg;
    struct sl_server *s = c->loop->srv;
    if (!info->n_added)
        return;
    if (c->phase == CONN_CONDEMNED) {
        c->drain_input = true;
        event_active(&c->deferred, DEFERRED_ANY, 0);
        return;
    }
    if (c->phase == CONN_READING && !c->in_bytes)
        c->since_ns = clock_mono_ns();
    c->in_bytes += info->n_added;
    /* evhttp throws away what is beyond the limit of one body */
    size_t most = s->cfg.max_body_bytes + HEADER_ROOM;
    size_t want = c->in_bytes < most ? c->in_bytes : most;
    if (want <= c->charged || c->phase != CONN_READING)
        return;
    size_t all = atomic_fetch_add(&s->body_bytes, want - c->charged) + (want - c->charged);
    c->charged = want;
    /* small requests always get in, so that a flood of bodies does not close the door on them */
    if (all > s->cfg.max_body_bytes_total && want > PIPELINE_BYTES) {
        c->over_budget = true;
        event_active(&c->deferred, DEFERRED_ANY, 0);
    }
}

static void on_output(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg)
{
    struct conn *c = arg;
    if (info->n_deleted || !info->orig_size)
        c->since_ns = clock_mono_ns(); /* progress, or the first byte that waits */
    if (info->n_deleted && c->call && evbuffer_get_length(b) <= RESUME_BELOW)
        call_drained(c->call);
    if (info->n_added && c->phase == CONN_READING) {
        c->error_page = true; /* not ours, so it is evhttp's */
        event_active(&c->deferred, DEFERRED_ANY, 0);
    }
}

size_t conn_pending(const struct conn *c)
{
    return evbuffer_get_length(bufferevent_get_output(c->bev));
}

static const char *phrase_of(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 204:
        return "No Content";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 413:
        return "Request Entity Too Large";
    case 429:
        return "Too Many Requests";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 503:
        return "Service Unavailable";
    default:
        return status < 500 ? "Client Error" : "Server Error";
    }
}

/* A whole answer around evhttp, which is not ready to give one: then the connection ends. */
static void raw_page(struct strbuf *out, int status, const char *message)
{
    struct oai_error e = {0};
    struct strbuf body;
    strbuf_init(&body, 4096);
    oai_fail(&e, status, phrase_of(status), NULL, "%s", message);
    oai_error_json(&body, &e);
    strbuf_addf(out,
                "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                "Connection: close\r\n%s\r\n",
                status, phrase_of(status), body.len, status == 503 ? "Retry-After: 1\r\n" : "");
    strbuf_add(out, body.data, body.len);
    strbuf_fini(&body);
}

static void condemned_write(struct bufferevent *bev, void *arg)
{
    (void)bev;
    struct conn *c = arg;
    shutdown(c->fd, SHUT_WR); /* what still comes is drained, so that no reset eats the answer */
}

static void condemned_event(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    (void)what;
    conn_kill(arg);
}

static void raw_reply(struct conn *c, int status, const char *message)
{
    struct strbuf page;
    strbuf_init(&page, 8192);
    raw_page(&page, status, message);
    c->phase = CONN_CONDEMNED;
    c->since_ns = clock_mono_ns();
    bufferevent_setcb(c->bev, NULL, condemned_write, condemned_event, c);
    struct evbuffer *in = bufferevent_get_input(c->bev);
    evbuffer_drain(in, evbuffer_get_length(in));
    uncharge(c);
    bufferevent_write(c->bev, page.data, page.len);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    strbuf_fini(&page);
}

/* evhttp answers what it cannot parse, or finds too long, with an HTML page: same status, our
 * form. The page is still whole in the output buffer. */
static void replace_error_page(struct conn *c)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    size_t n = evbuffer_get_length(out);
    char start[16] = "";
    evbuffer_unfreeze(out, 1); /* libevent keeps a socket's buffer from everyone but itself */
    evbuffer_copyout(out, start, sizeof start - 1);
    int status = (int)strtol(strlen(start) > 9 ? start + 9 : "", NULL, 10);
    if (!strncmp(start, "HTTP/1.", 7) && (!status || status >= 400) && n <= 4096) {
        const char *message = phrase_of(status);
        if (status == 413) {
            message = "The request body is longer than --max-body-bytes allows.";
        } else if (!status || status == 501) {
            status = 405; /* a method that evhttp has no name for */
            message = phrase_of(status);
        } else if (status == 400) {
            message = "The request is not valid HTTP, or its headers are too long.";
        }
        struct strbuf page;
        strbuf_init(&page, 8192);
        raw_page(&page, status, message);
        evbuffer_drain(out, n);
        evbuffer_add(out, page.data, page.len);
        strbuf_fini(&page);
        log_info("%d to a request that was not understood", status);
    }
    if (!c->loop->srv->tls)
        evbuffer_freeze(out, 1);
}

static void on_deferred(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct conn *c = arg;
    if (c->error_page && c->phase == CONN_READING)
        replace_error_page(c);
    c->error_page = false;
    if (c->drain_input) {
        struct evbuffer *in = bufferevent_get_input(c->bev);
        c->drain_input = false;
        evbuffer_drain(in, evbuffer_get_length(in));
    }
    if (c->over_budget && c->phase == CONN_READING)
        raw_reply(c, 503, "Too many request bodies are in flight. Try again later.");
    c->over_budget = false;
}

/* ---- time limits */

/* Seconds that the phase may last, counted from since_ns; 0: no limit. */
static int64_t limit_s(const struct conn *c)
{
    const struct sl_server_config *cfg = &c->loop->srv->cfg;
    switch (c->phase) {
    case CONN_CONDEMNED:
        return LINGER_S;
    case CONN_REPLYING: /* a client that takes nothing of what waits for it */
        return conn_pending(c) ? cfg->idle_timeout_s : 0;
    case CONN_READING:
        break;
    }
    if (conn_pending(c))
        return cfg->idle_timeout_s;
    if (!c->in_bytes)
        return cfg->idle_timeout_s;
    return cfg->header_timeout_s + (int64_t)(c->in_bytes / SLOWEST_BODY);
}

void conn_tick(struct loop *l, int64_t now_ns)
{
    for (struct conn *c = l->conns, *next; c; c = next) {
        next = c->next;
        int64_t limit = limit_s(c);
        if (limit && now_ns - c->since_ns > limit * 1000000000)
            conn_kill(c); /* only itself: `next` stays */
    }
}

/* ---- requests */

const char *conn_header(const struct conn *c, const char *name)
{
    return evhttp_find_header(evhttp_request_get_input_headers(c->req), name);
}

const char *conn_method(const struct conn *c)
{
    switch (c->req ? evhttp_request_get_command(c->req) : 0) {
    case EVHTTP_REQ_GET:
        return "GET";
    case EVHTTP_REQ_POST:
        return "POST";
    case EVHTTP_REQ_HEAD:
        return "HEAD";
    case EVHTTP_REQ_PUT:
        return "PUT";
    case EVHTTP_REQ_DELETE:
        return "DELETE";
    case EVHTTP_REQ_OPTIONS:
        return "OPTIONS";
    case EVHTTP_REQ_PATCH:
        return "PATCH";
    case EVHTTP_REQ_TRACE:
        return "TRACE";
    case EVHTTP_REQ_CONNECT:
        return "CONNECT";
    default:
        return "other";
    }
}

void conn_add_header(struct conn *c, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(c->req), name, value);
}

static struct conn *conn_of(struct loop *l, struct evhttp_request *req)
{
    struct evhttp_connection *evcon = evhttp_request_get_connection(req);
    int fd = bufferevent_getfd(evhttp_connection_get_bufferevent(evcon));
    struct conn *c = fd >= 0 && fd < l->n_by_fd ? l->by_fd[fd] : NULL;
    return c && c->evcon == evcon ? c : NULL;
}

void conn_on_request(struct evhttp_request *req, void *arg)
{
    struct loop *l = arg;
    struct conn *c = conn_of(l, req);
    if (!c) {
        evhttp_send_error(req, 503, NULL);
        return;
    }
    c->req = req;
    c->phase = CONN_REPLYING;
    c->arrival_ns = c->since_ns = clock_mono_ns();
    c->request_bytes = evbuffer_get_length(evhttp_request_get_input_buffer(req));
    c->response_bytes = 0;
    c->status = 0;
    c->route = NULL;
    c->streaming = false;
    c->request_id[0] = 0;
    server_busy(l->srv, 1);
    routes_dispatch(c);
}

bool conn_take_body(struct conn *c, char **body, size_t *bytes, size_t *charged)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(c->req);
    size_t n = evbuffer_get_length(in);
    *body = mem_alloc(n + 1, 1);
    if (!*body)
        return false;
    evbuffer_remove(in, *body, n);
    (*body)[n] = 0;
    *bytes = n;
    *charged = c->charged;
    c->charged = 0;
    return true;
}

/* The answer is out: evhttp waits for the next request, or closes. */
static void on_complete(struct evhttp_request *req, void *arg)
{
    (void)req;
    struct conn *c = arg;
    count_request(c);
    unwatch(c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, 0);
    c->req = NULL;
    c->phase = CONN_READING;
    c->in_bytes = evbuffer_get_length(bufferevent_get_input(c->bev));
    c->since_ns = clock_mono_ns();
}

static void access_log(const struct conn *c)
{
    const struct sl_server_config *cfg = &c->loop->srv->cfg;
    const char *uri = evhttp_request_get_uri(c->req);
    size_t path = strcspn(uri, "?");
    if (cfg->disable_access_log)
        return;
    for (const char *p = cfg->disable_access_log_for; p && *p;) {
        size_t n = strcspn(p, ",");
        if (n == path && !strncmp(p, uri, n))
            return;
        p += n + (p[n] == ',');
    }
    char *address;
    ev_uint16_t port;
    evhttp_connection_get_peer(c->evcon, &address, &port);
    log_info("%s:%d - \"%s %.1000s HTTP/1.1\" %d %s", address, port, conn_method(c), uri, c->status,
             phrase_of(c->status));
}

/* What every answer carries. */
static void begin_answer(struct conn *c, int status, const char *content_type)
{
    struct sl_server *s = c->loop->srv;
    c->status = status;
    uncharge(c);
    if (content_type)
        conn_add_header(c, "Content-Type", content_type);
    if (s->cfg.enable_request_id_headers && c->request_id[0])
        conn_add_header(c, "X-Request-Id", c->request_id);
    if (status == 429 || status == 503)
        conn_add_header(c, "Retry-After", "1");
    if (atomic_load(&s->draining))
        conn_add_header(c, "Connection", "close");
    access_cors(c);
    evhttp_request_set_on_complete_cb(c->req, on_complete, c);
    access_log(c);
}

static void free_body(const void *data, size_t n, void *arg)
{
    (void)n;
    (void)arg;
    mem_free((void *)(uintptr_t)data);
}

static void send_reply(struct conn *c, int status, const char *content_type, struct evbuffer *b)
{
    begin_answer(c, status, content_type);
    size_t n = b ? evbuffer_get_length(b) : 0;
    bool head = evhttp_request_get_command(c->req) == EVHTTP_REQ_HEAD;
    if (head || !n) { /* evhttp would send a body to HEAD too */
        char length[24];
        snprintf(length, sizeof length, "%zu", n);
        conn_add_header(c, "Content-Length", length);
        b = NULL;
    }
    c->response_bytes = head ? 0 : n;
    evhttp_send_reply(c->req, status, phrase_of(status), b);
}

void conn_reply(struct conn *c, int status, const char *content_type, struct strbuf *body)
{
    struct evbuffer *b = NULL;
    size_t n = body ? body->len : 0;
    bool failed = body && body->failed;
    char *data = body ? strbuf_take(body) : NULL;
    if (n && !failed && (b = evbuffer_new()) && evbuffer_add_reference(b, data, n, free_body, NULL))
        failed = true;
    if (failed || (n && !b)) {
        mem_free(data);
        status = 500;
        content_type = NULL;
    } else if (!n) {
        mem_free(data);
    }
    send_reply(c, status, content_type, failed ? NULL : b);
    if (b)
        evbuffer_free(b);
}

void conn_reply_static(struct conn *c, int status, const char *content_type, const char *body,
                       size_t bytes)
{
    struct evbuffer *b = evbuffer_new();
    if (b)
        evbuffer_add_reference(b, body, bytes, NULL, NULL);
    send_reply(c, b ? status : 500, content_type, b);
    if (b)
        evbuffer_free(b);
}

void conn_reply_error(struct conn *c, const struct oai_error *e)
{
    struct strbuf body;
    strbuf_init(&body, 0);
    oai_error_json(&body, e);
    conn_reply(c, e->status, "application/json", &body);
}

/* ---- streams */

void conn_stream_start(struct conn *c)
{
    begin_answer(c, 200, "text/event-stream; charset=utf-8");
    conn_add_header(c, "Cache-Control", "no-cache");
    bufferevent_setwatermark(c->bev, EV_READ, 0, PIPELINE_BYTES);
    evhttp_send_reply_start(c->req, 200, phrase_of(200));
    c->chunked =
        evhttp_find_header(evhttp_request_get_output_headers(c->req), "Transfer-Encoding") != NULL;
    c->streaming = true;
}

/* Straight to the socket while nothing waits before it: one system call an event, where the way
 * through the event loop takes four. Returns bytes written; errors show up as a hang-up. */
static size_t write_now(struct conn *c, struct iovec *iov, int n)
{
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    if (c->loop->srv->tls || conn_pending(c))
        return 0;
    ssize_t sent = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent > 0 ? (size_t)sent : 0;
}

void conn_stream_write(struct conn *c, const char *data, size_t n)
{
    char size[24];
    struct iovec iov[3] = {{size, 0}, {(void *)(uintptr_t)data, n}, {"\r\n", 0}};
    if (!n)
        return;
    if (c->chunked) {
        iov[0].iov_len = (size_t)snprintf(size, sizeof size, "%zx\r\n", n);
        iov[2].iov_len = 2;
    }
    size_t sent = write_now(c, iov, 3);
    struct evbuffer *out = bufferevent_get_output(c->bev);
    for (int i = 0; i < 3; i++) {
        size_t skip = sent < iov[i].iov_len ? sent : iov[i].iov_len;
        sent -= skip;
        if (iov[i].iov_len > skip)
            evbuffer_add(out, (const char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
    }
    c->response_bytes += n;
}

void conn_stream_end(struct conn *c)
{
    evhttp_send_reply_end(c->req);
}
