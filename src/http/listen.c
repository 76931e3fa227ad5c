/* SPDX-License-Identifier: Apache-2.0 */
#include "http/server_impl.h"

#include "base/log.h"

#include <errno.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4096 };

/* Out of descriptors: accepting again at once would spin. The loop's tick turns it on again. */
static void on_accept_error(struct evconnlistener *listener, void *arg)
{
    struct loop *l = arg;
    int why = EVUTIL_SOCKET_ERROR();
    log_warning("Accepting a connection failed: %s", strerror(why));
    if (why == EMFILE || why == ENFILE || why == ENOBUFS || why == ENOMEM) {
        evconnlistener_disable(listener);
        l->paused = true;
    }
}

static enum sl_status attach(struct loop *l, int fd, struct sl_err *err)
{
    l->listener = evconnlistener_new(l->base, NULL, NULL,
                                     LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (!l->listener) {
        close(fd);
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for a listener");
    }
    if (!evhttp_bind_listener(l->http, l->listener)) {
        evconnlistener_free(l->listener);
        l->listener = NULL;
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for a listener");
    }
    evconnlistener_set_error_cb(l->listener, on_accept_error);
    return SL_OK;
}

/* ---- TCP: a socket for each loop on one port, the kernel spreads connections over them */

static int bind_one(const struct addrinfo *a, bool shared)
{
    int one = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if ((shared && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one)) ||
        bind(fd, a->ai_addr, a->ai_addrlen) || (shared && listen(fd, BACKLOG))) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

static int port_of(int fd)
{
    struct sockaddr_storage sa;
    socklen_t n = sizeof sa;
    if (getsockname(fd, (struct sockaddr *)&sa, &n))
        return 0;
    return ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
                                          : ((struct sockaddr_in *)&sa)->sin_port);
}

static void set_port(struct addrinfo *a, int port)
{
    if (a->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)a->ai_addr)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)(void *)a->ai_addr)->sin_port = htons((uint16_t)port);
}

static enum sl_status bind_fail(const struct sl_server *s, struct sl_err *err)
{
    const struct sl_server_config *cfg = &s->cfg;
    if (errno == EADDRINUSE)
        return SL_FAIL_PARAM(err, SL_EIO, "port",
                             "port %d of %s is already in use; choose another with --port",
                             cfg->port, cfg->host);
    return SL_FAIL_PARAM(err, SL_EIO, "host", "cannot listen on %s port %d: %s", cfg->host,
                         cfg->port, strerror(errno));
}

static enum sl_status listen_address(struct sl_server *s, struct addrinfo *a, struct sl_err *err)
{
    /* Sockets that share a port share it with other processes' too. A bind that does not share
     * finds out whether somebody is there. */
    if (s->cfg.port) {
        int probe = bind_one(a, false);
        if (probe < 0)
            return bind_fail(s, err);
        close(probe);
    }
    for (int i = 0; i < s->n_loops; i++) {
        int fd = bind_one(a, true);
        if (fd < 0)
            return bind_fail(s, err);
        s->port = port_of(fd);
        set_port(a, s->port);
        enum sl_status st = attach(&s->loops[i], fd, err);
        if (st)
            return st;
    }
    return SL_OK;
}

static enum sl_status listen_tcp(struct sl_server *s, struct sl_err *err)
{
    char port[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    if (s->cfg.port < 0 || s->cfg.port > 65535)
        return SL_FAIL_PARAM(err, SL_EINVAL, "port", "port %d is not between 0 and 65535",
                             s->cfg.port);
    snprintf(port, sizeof port, "%d", s->cfg.port);
    int why = getaddrinfo(s->cfg.host, port, &hints, &list);
    if (why)
        return SL_FAIL_PARAM(err, SL_EINVAL, "host", "cannot listen on %s: %s", s->cfg.host,
                             gai_strerror(why));
    enum sl_status st = listen_address(s, list, err);
    freeaddrinfo(list);
    return st;
}

/* ---- a UNIX socket: one, which all loops watch */

static bool somebody_listens(const struct sockaddr_un *sa)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool yes = fd >= 0 && !connect(fd, (const struct sockaddr *)sa, sizeof *sa);
    if (fd >= 0)
        close(fd);
    return yes;
}

static enum sl_status listen_uds(struct sl_server *s, struct sl_err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    const char *path = s->cfg.uds;
    if (strlen(path) >= sizeof sa.sun_path)
        return SL_FAIL_PARAM(err, SL_EINVAL, "uds", "the path %s is too long for a socket", path);
    memcpy(sa.sun_path, path, strlen(path) + 1);
    if (somebody_listens(&sa))
        return SL_FAIL_PARAM(err, SL_EIO, "uds", "the socket %s is already in use", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int bound = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&sa, sizeof sa);
    if (fd >= 0 && bound && errno == EADDRINUSE && !unlink(path)) /* a dead server's */
        bound = bind(fd, (struct sockaddr *)&sa, sizeof sa);
    if (bound || listen(fd, BACKLOG)) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        return SL_FAIL_PARAM(err, SL_EIO, "uds", "cannot listen on %s: %s", path, strerror(why));
    }
    for (int i = 0; i < s->n_loops; i++) {
        int own = i ? dup(fd) : fd;
        enum sl_status st =
            own < 0 ? SL_FAIL(err, SL_EIO, "cannot listen on %s: %s", path, strerror(errno))
                    : attach(&s->loops[i], own, err);
        if (st)
            return st;
    }
    return SL_OK;
}

enum sl_status server_listen(struct sl_server *s, struct sl_err *err)
{
    return s->cfg.uds ? listen_uds(s, err) : listen_tcp(s, err);
}

void server_unlisten(struct sl_server *s)
{
    if (s->cfg.uds && s->n_loops && s->loops[0].listener)
        unlink(s->cfg.uds);
}
