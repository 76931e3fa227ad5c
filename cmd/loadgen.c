/* SPDX-License-Identifier: Apache-2.0 */
#include "loadgen.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <jansson.h>
#include <openssl/ssl.h>

#define TICK_S 0.1

struct loop {
    struct load_run *run;
    struct event_base *base;
    struct event *timer;
    SSL_CTX *tls;
    double start, last_tick;
    int next, next_probe, n_running, n_done;
    long long n_tokens;
    struct flight *flights; /* all that retire() has not freed */
};

/* A request in flight. */
struct flight {
    struct loop *loop;
    struct load_request *r;
    struct evhttp_connection *connection;
    struct evbuffer *lines; /* what came and is not a whole line yet */
    double last_chunk;
    struct event *retire; /* frees this once libevent is out of the connection's callbacks */
    struct flight *prev, *next;
};

static double elapsed(const struct loop *l)
{
    return bench_now() - l->start;
}

/* ---- server-sent events -----------------------------------------------------------------------
 */

static void keep_text(struct load_request *r, const char *piece)
{
    size_t have = r->text ? strlen(r->text) : 0, more = strlen(piece);
    r->text = xrealloc(r->text, have + more + 1, 1);
    memcpy(r->text + have, piece, more + 1);
}

static void take_choice(struct flight *f, const json_t *choice)
{
    struct load_request *r = f->r;
    double now = elapsed(f->loop);
    if (r->n_chunks++ == 0)
        r->ttft_s = now - r->start_s;
    else
        samples_add(&r->itl_s, now - f->last_chunk);
    samples_add(&r->chunk_at_s, now);
    f->last_chunk = now;
    r->latency_s = now - r->start_s;
    f->loop->n_tokens++;
    if (!r->keep_text)
        return;
    const char *piece = json_string_value(json_object_get(choice, "text"));
    if (!piece)
        piece = json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (piece)
        keep_text(r, piece);
}

static void take_event(struct flight *f, const char *data, size_t len)
{
    struct load_request *r = f->r;
    if (len == 6 && memcmp(data, "[DONE]", 6) == 0) {
        r->finished = true;
        return;
    }
    json_t *event = json_loadb(data, len, JSON_ALLOW_NUL, NULL);
    const json_t *choices = json_object_get(event, "choices");
    const json_t *error = json_object_get(event, "error");
    if (error && !r->error) {
        const char *message = json_string_value(json_object_get(error, "message"));
        r->error = xstrdup(message ? message : "error event");
    } else if (json_array_size(choices) > 0) {
        take_choice(f, json_array_get(choices, 0));
    }
    const json_t *usage = json_object_get(event, "usage");
    if (json_is_object(usage) && json_array_size(choices) == 0)
        r->n_output_tokens = (int)json_integer_value(json_object_get(usage, "completion_tokens"));
    json_decref(event);
}

static void on_chunk(struct evhttp_request *request, void *arg)
{
    struct flight *f = arg;
    if (evhttp_request_get_response_code(request) != 200)
        return; /* an error's body stays in the input buffer for on_end */
    evbuffer_add_buffer(f->lines, evhttp_request_get_input_buffer(request));
    size_t len;
    for (char *line; (line = evbuffer_readln(f->lines, &len, EVBUFFER_EOL_CRLF)); free(line))
        if (len > 6 && memcmp(line, "data: ", 6) == 0)
            take_event(f, line + 6, len - 6);
}

/* ---- life of a request ------------------------------------------------------------------------
 */

static void retire(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct flight *f = arg;
    if (f->prev)
        f->prev->next = f->next;
    else
        f->loop->flights = f->next;
    if (f->next)
        f->next->prev = f->prev;
    evhttp_connection_free(f->connection);
    evbuffer_free(f->lines);
    event_free(f->retire);
    free(f);
}

static void end_flight(struct flight *f)
{
    struct loop *l = f->loop;
    struct load_request *r = f->r;
    r->success = r->finished && !r->error && r->n_chunks > 0;
    if (!r->success && !r->error)
        r->error = xstrdup(r->status == 200 ? "the stream ended early" : "no answer");
    if (r->n_output_tokens == 0)
        r->n_output_tokens = r->n_chunks;
    if (!r->probe) {
        l->n_running--;
        l->n_done++;
    }
    event_active(f->retire, EV_TIMEOUT, 0);
    event_active(l->timer, EV_TIMEOUT, 0); /* room for the next one */
}

static void on_end(struct evhttp_request *request, void *arg)
{
    struct flight *f = arg;
    struct load_request *r = f->r;
    if (request) {
        r->status = evhttp_request_get_response_code(request);
        struct evbuffer *in = evhttp_request_get_input_buffer(request);
        size_t len = evbuffer_get_length(in);
        if (r->status == 200) {
            on_chunk(request, f);
        } else if (r->status != 0) {
            len = len < 400 ? len : 400;
            r->error = xformat("HTTP %d: %.*s", r->status, (int)len,
                               len ? (const char *)evbuffer_pullup(in, (ssize_t)len) : "");
        }
    }
    end_flight(f);
}

static void on_error(enum evhttp_request_error error, void *arg)
{
    static const char *const what[] = {[EVREQ_HTTP_TIMEOUT] = "timed out",
                                       [EVREQ_HTTP_EOF] = "the server closed the connection",
                                       [EVREQ_HTTP_INVALID_HEADER] =
                                           "the answer's head is not HTTP",
                                       [EVREQ_HTTP_BUFFER_ERROR] = "reading or writing failed",
                                       [EVREQ_HTTP_REQUEST_CANCEL] = "cancelled",
                                       [EVREQ_HTTP_DATA_TOO_LONG] = "the answer is too long"};
    struct flight *f = arg;
    if (!f->r->error)
        f->r->error = xstrdup(what[error]);
}

static struct bufferevent *open_tls(struct loop *l, const struct load_target *t)
{
    if (!t->tls)
        return NULL;
    if (!l->tls)
        l->tls = SSL_CTX_new(TLS_client_method());
    SSL *ssl = l->tls ? SSL_new(l->tls) : NULL;
    if (!ssl)
        return NULL;
    SSL_set_tlsext_host_name(ssl, t->host);
    return bufferevent_openssl_socket_new(l->base, -1, ssl, BUFFEREVENT_SSL_CONNECTING,
                                          BEV_OPT_CLOSE_ON_FREE);
}

static void add_headers(struct evhttp_request *request, const struct load_target *t, const char *id)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    evhttp_add_header(headers, "Host", t->host);
    evhttp_add_header(headers, "Content-Type", "application/json");
    evhttp_add_header(headers, "Connection", "close");
    if (id)
        evhttp_add_header(headers, "X-Request-Id", id);
    if (t->bearer) {
        char *value = xformat("Bearer %s", t->bearer);
        evhttp_add_header(headers, "Authorization", value);
        free(value);
    }
    for (int i = 0; i < t->n_headers; i++) {
        char *name = xstrdup(t->headers[i]), *equals = strchr(name, '=');
        if (equals) {
            *equals = '\0';
            evhttp_add_header(headers, name, equals + 1);
        }
        free(name);
    }
}

static struct evhttp_connection *connect_to(struct loop *l, const struct load_target *t)
{
    struct evhttp_connection *c = evhttp_connection_base_bufferevent_new(
        l->base, NULL, open_tls(l, t), t->host, (ev_uint16_t)t->port);
    if (c)
        evhttp_connection_set_timeout(c, (int)t->timeout_s);
    return c;
}

static void send_one(struct loop *l, struct load_request *r)
{
    const struct load_target *t = l->run->target;
    struct flight *f = xcalloc(1, sizeof *f);
    *f = (struct flight){.loop = l, .r = r, .lines = evbuffer_new(), .next = l->flights};
    if (f->next)
        f->next->prev = f;
    l->flights = f;
    f->retire = event_new(l->base, -1, 0, retire, f);
    f->connection = connect_to(l, t);
    struct evhttp_request *request = evhttp_request_new(on_end, f);
    if (!f->lines || !f->retire || !f->connection || !request) {
        fputs("sluice: out of memory\n", stderr);
        exit(1);
    }
    r->start_s = elapsed(l);
    if (!r->probe)
        l->n_running++;
    evhttp_request_set_chunked_cb(request, on_chunk);
    evhttp_request_set_error_cb(request, on_error);
    add_headers(request, t, r->id);
    evbuffer_add_reference(evhttp_request_get_output_buffer(request), r->body, strlen(r->body),
                           NULL, NULL);
    if (evhttp_make_request(f->connection, request, EVHTTP_REQ_POST, t->path) != 0)
        end_flight(f); /* libevent has freed the request */
}

/* ---- the loop -----------------------------------------------------------------------------------
 */

/* Sends what is due; the wait until the next is. */
static double send_due(struct loop *l)
{
    struct load_run *run = l->run;
    double now = elapsed(l), wait = TICK_S;
    while (l->next < run->n && (!run->max_concurrency || l->n_running < run->max_concurrency)) {
        double due = run->requests[l->next].due_s - now;
        if (due > 0) {
            wait = due < wait ? due : wait;
            break;
        }
        send_one(l, &run->requests[l->next++]);
    }
    for (; l->next_probe < run->n_probes; l->next_probe++) {
        double due = run->probes[l->next_probe].due_s - now;
        if (due > 0) {
            wait = due < wait ? due : wait;
            break;
        }
        send_one(l, &run->probes[l->next_probe]);
    }
    return wait;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    struct loop *l = arg;
    struct load_run *run = l->run;
    if (l->n_done == run->n || (run->stop && *run->stop)) {
        event_base_loopbreak(l->base);
        return;
    }
    double wait = send_due(l), now = elapsed(l);
    if (run->tick && now - l->last_tick >= TICK_S) {
        l->last_tick = now;
        run->tick(run->ctx, l->n_done, now, l->n_tokens);
    }
    struct timeval tv = {(time_t)wait, (suseconds_t)((wait - (double)(time_t)wait) * 1e6)};
    event_add(l->timer, &tv);
}

bool load_execute(struct load_run *run)
{
    struct loop l = {.run = run, .base = event_base_new()};
    if (!l.base)
        return false;
    l.timer = event_new(l.base, -1, 0, on_timer, &l);
    if (!l.timer) {
        event_base_free(l.base);
        return false;
    }
    l.start = bench_now();
    event_active(l.timer, EV_TIMEOUT, 0);
    event_base_dispatch(l.base);
    run->elapsed_s = elapsed(&l);
    while (l.flights) /* probes, and what a Ctrl-C left */
        retire(-1, 0, l.flights);
    event_free(l.timer);
    event_base_free(l.base);
    SSL_CTX_free(l.tls);
    return true;
}

void load_request_fini(struct load_request *r)
{
    samples_free(&r->itl_s);
    samples_free(&r->chunk_at_s);
    free(r->text);
    free(r->error);
}

/* ---- one GET
 * -------------------------------------------------------------------------------------- */

struct get {
    struct event_base *base;
    char *body;
    int status;
};

static void on_got(struct evhttp_request *request, void *arg)
{
    struct get *g = arg;
    if (request && evhttp_request_get_response_code(request) != 0) {
        struct evbuffer *in = evhttp_request_get_input_buffer(request);
        size_t len = evbuffer_get_length(in);
        g->status = evhttp_request_get_response_code(request);
        g->body = xcalloc(len + 1, 1);
        evbuffer_remove(in, g->body, len);
    }
    event_base_loopexit(g->base, NULL);
}

char *load_get(const struct load_target *target, const char *path, int *status)
{
    struct get g = {.base = event_base_new()};
    struct loop l = {.base = g.base};
    struct load_target t = *target;
    t.timeout_s = 10;
    struct evhttp_connection *c = g.base ? connect_to(&l, &t) : NULL;
    struct evhttp_request *request = c ? evhttp_request_new(on_got, &g) : NULL;
    if (request) {
        add_headers(request, &t, NULL);
        if (evhttp_make_request(c, request, EVHTTP_REQ_GET, path) == 0)
            event_base_dispatch(g.base);
    }
    if (c)
        evhttp_connection_free(c);
    if (g.base)
        event_base_free(g.base);
    SSL_CTX_free(l.tls);
    *status = g.status;
    return g.body;
}

bool load_parse_url(const char *url, struct load_target *t, char **prefix)
{
    struct evhttp_uri *uri = evhttp_uri_parse(url);
    const char *scheme = uri ? evhttp_uri_get_scheme(uri) : NULL;
    const char *host = uri ? evhttp_uri_get_host(uri) : NULL;
    bool ok = scheme && host && *host && (!strcmp(scheme, "http") || !strcmp(scheme, "https"));
    if (ok) {
        size_t bracket = host[0] == '[';
        t->tls = strcmp(scheme, "https") == 0;
        t->host = xformat("%.*s", (int)strcspn(host + bracket, "]"), host + bracket);
        t->port = evhttp_uri_get_port(uri) > 0 ? evhttp_uri_get_port(uri) : (t->tls ? 443 : 80);
        const char *path = evhttp_uri_get_path(uri);
        *prefix = xstrdup(path && strcmp(path, "/") != 0 ? path : "");
    }
    if (uri)
        evhttp_uri_free(uri);
    return ok;
}
