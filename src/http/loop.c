/* SPDX-License-Identifier: Apache-2.0 */
#include "http/call.h"
#include "http/conn.h"

#include <event2/listener.h>

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    TICK_MS = 500,
    SLICE = 16, /* calls a turn: then sockets are looked at again */
    MAX_HEADER_BYTES = 65536,
    SCRATCH_BYTES = 256 << 20 /* never reached: answers are bounded before */
};

void loop_poke(struct loop *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->wake_fd, &one, sizeof one);
    (void)n; /* EAGAIN: the counter is full, so it is readable */
}

void loop_post(struct loop *l, struct call *c)
{
    if (atomic_exchange(&c->queued, true))
        return;
    struct call *head = atomic_load_explicit(&l->ready, memory_order_relaxed);
    do
        c->next_ready = head;
    while (!atomic_compare_exchange_weak(&l->ready, &head, c));
    if (atomic_load(&l->asleep) && atomic_exchange(&l->asleep, false))
        loop_poke(l);
}

static void append(struct loop *l, struct call *c)
{
    c->next_ready = NULL;
    *l->run_tail = c;
    l->run_tail = &c->next_ready;
}

void loop_requeue(struct loop *l, struct call *c)
{
    if (atomic_exchange(&c->queued, true))
        return;
    append(l, c);
    if (atomic_exchange(&l->asleep, false))
        loop_poke(l);
}

/* Moves what was posted to the run list, oldest first. */
static void collect(struct loop *l)
{
    struct call *stack = atomic_exchange(&l->ready, NULL), *list = NULL;
    while (stack) {
        struct call *c = stack;
        stack = c->next_ready;
        c->next_ready = list;
        list = c;
    }
    while (list) {
        struct call *c = list;
        list = c->next_ready;
        append(l, c);
    }
}

static void run_slice(struct loop *l)
{
    for (int i = 0; i < SLICE && l->run_head; i++) {
        struct call *c = l->run_head;
        if (!(l->run_head = c->next_ready))
            l->run_tail = &l->run_head;
        atomic_store(&c->queued, false); /* before it runs: what comes meanwhile posts it again */
        call_run(c);
    }
}

static void kill_calls(struct loop *l)
{
    l->killed = true;
    for (struct call *c = l->calls, *next; c; c = next) {
        next = c->next;
        call_abort(c);
    }
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    (void)what;
    struct loop *l = arg;
    if (atomic_load(&l->stop)) {
        event_base_loopbreak(l->base);
        return;
    }
    if (atomic_load(&l->srv->killed) && !l->killed)
        kill_calls(l);
    collect(l);
    run_slice(l);
    if (l->run_head)
        return; /* the eventfd stays readable: next turn after the sockets had theirs */
    uint64_t n;
    ssize_t got = read(fd, &n, sizeof n);
    (void)got;
    atomic_store(&l->asleep, true);
    /* Posted after collect() and before the store: its poster saw us awake and did not write. */
    if (atomic_load(&l->ready) && atomic_exchange(&l->asleep, false))
        loop_poke(l);
    if (atomic_load(&l->stop))
        loop_poke(l);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct loop *l = arg;
    if (l->paused && l->listener) {
        l->paused = false;
        evconnlistener_enable(l->listener);
    }
    conn_tick(l, clock_mono_ns());
}

static void on_adopt(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    conn_adopt_fresh(arg);
}

static bool make_http(struct loop *l)
{
    const struct sl_server_config *cfg = &l->srv->cfg;
    l->http = evhttp_new(l->base);
    if (!l->http)
        return false;
    evhttp_set_bevcb(l->http, conn_create, l);
    evhttp_set_gencb(l->http, conn_on_request, l);
    evhttp_set_max_body_size(l->http, (ev_ssize_t)cfg->max_body_bytes);
    evhttp_set_max_headers_size(l->http, MAX_HEADER_BYTES);
    evhttp_set_default_content_type(l->http, NULL);
    /* a body that is too long is read to its end and thrown away, so that the client sees the 413
     * and not a broken connection; the time limit of a request bounds this */
    evhttp_set_flags(l->http, EVHTTP_SERVER_LINGERING_CLOSE);
    evhttp_set_allowed_methods(l->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD |
                                            EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE |
                                            EVHTTP_REQ_OPTIONS | EVHTTP_REQ_TRACE |
                                            EVHTTP_REQ_CONNECT | EVHTTP_REQ_PATCH);
    return true;
}

enum sl_status loop_init(struct loop *l, struct sl_server *s, int index, struct sl_err *err)
{
    *l = (struct loop){.srv = s, .index = index, .wake_fd = -1};
    l->run_tail = &l->run_head;
    strbuf_init(&l->scratch, SCRATCH_BYTES);
    atomic_store(&l->asleep, true);
    l->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct event_config *ec = event_config_new();
    if (ec) {
        event_config_require_features(ec, EV_FEATURE_EARLY_CLOSE);
        event_config_set_flag(ec, EVENT_BASE_FLAG_NOLOCK);
        l->base = event_base_new_with_config(ec);
        event_config_free(ec);
    }
    if (l->wake_fd < 0 || !l->base)
        return SL_FAIL(err, SL_EIO, "http: cannot create an event loop: %s", strerror(errno));
    struct timeval tick = {.tv_usec = TICK_MS * 1000};
    l->wake_event = event_new(l->base, l->wake_fd, EV_READ | EV_PERSIST, on_wake, l);
    l->adopt_event = event_new(l->base, -1, 0, on_adopt, l);
    l->tick_event = event_new(l->base, -1, EV_PERSIST, on_tick, l);
    if (!l->wake_event || !l->adopt_event || !l->tick_event || event_add(l->wake_event, NULL) ||
        (!s->offline && (event_add(l->tick_event, &tick) || !make_http(l))))
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for an event loop");
    return SL_OK;
}

static void *loop_main(void *arg)
{
    struct loop *l = arg;
    event_base_loop(l->base, EVLOOP_NO_EXIT_ON_EMPTY);
    return NULL;
}

enum sl_status loop_start(struct loop *l, struct sl_err *err)
{
    /* Signals are the main thread's; SIGPIPE must not end the process when a client has left. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&l->thread, NULL, loop_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        return SL_FAIL(err, SL_ENOMEM, "http: cannot start a thread: %s", strerror(failed));
    pthread_setname_np(l->thread, "sluice-http");
    l->running = true;
    return SL_OK;
}

void loop_join(struct loop *l)
{
    if (!l->running)
        return;
    atomic_store(&l->stop, true);
    loop_poke(l);
    pthread_join(l->thread, NULL);
    l->running = false;
}

void loop_fini(struct loop *l)
{
    collect(l); /* what was posted after the last turn is freed with the rest */
    if (l->http)
        evhttp_free(l->http); /* its listener and its connections, which let go of their calls */
    conn_drop_fresh(l);
    call_free_all(l);
    struct event *const events[] = {l->wake_event, l->adopt_event, l->tick_event};
    for (int i = 0; i < 3; i++)
        if (events[i])
            event_free(events[i]);
    if (l->base) {
        event_base_loop(l->base, EVLOOP_NONBLOCK); /* finalizers of freed bufferevents */
        event_base_free(l->base);
    }
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    strbuf_fini(&l->scratch);
    mem_free(l->by_fd);
    l->http = NULL;
    l->base = NULL;
    l->wake_fd = -1;
}
