/* serve: load the model, listen, and end well.
 *
 * One thread takes the signals (sigwait), so nothing runs in a handler: the first SIGTERM or SIGINT
 * drains, the second ends at once; before the server is up, the first ends the program.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "util.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LOG(...) sl_log(SL_LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)

struct serving {
    struct options *o;
    sigset_t signals;
    pthread_t signal_thread;
    _Atomic(struct sl_server *) server; /* main sets it once; the signal thread drains it */
};

/* Every stream is a descriptor: take as many as the system lets this process have. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static bool loopback(const char *host)
{
    struct in6_addr six;
    if (strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0)
        return true;
    return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

static void warn_if_open(const struct sl_server_config *c)
{
    if (!c->uds && !loopback(c->host) && c->n_api_keys == 0)
        sl_log(SL_LOG_WARNING, __FILE__, __LINE__,
               "listening on %s without --api-key: anybody who reaches this port can use the model",
               c->host);
}

/* What a person can paste; the last words of a start. */
static void print_hints(const struct sl_server_config *c, const struct sl_server *server,
                        const struct sl_engine *engine)
{
    struct sl_engine_info info;
    sl_engine_info(engine, &info);
    bool any = strcmp(c->host, "0.0.0.0") == 0 || strcmp(c->host, "::") == 0;
    const char *host = any ? "127.0.0.1" : c->host;
    bool six = strchr(host, ':') != NULL;
    char *base = c->uds ? xstrdup("http://localhost")
                        : xformat("%s://%s%s%s:%d", c->ssl_certfile ? "https" : "http",
                                  six ? "[" : "", host, six ? "]" : "", sl_server_port(server));
    const char *path = info.has_chat_template ? "/v1/chat/completions" : "/v1/completions";
    const char *body = info.has_chat_template
                           ? "\"messages\":[{\"role\":\"user\",\"content\":\"How do I list the "
                             "contents of a tar archive?\"}]"
                           : "\"prompt\":\"Once upon a time\"";
    printf("\n  curl %s%s%s%s%s -H 'Content-Type: application/json'%s -d '{\"model\":\"%s\",%s}'\n",
           c->uds ? "--unix-socket " : "", c->uds ? c->uds : "", c->uds ? " " : "", base, path,
           c->n_api_keys ? " -H \"Authorization: Bearer $KEY\"" : "", info.served_names[0], body);
    printf("  %s/ is the status page\n", base);
    printf("  Ctrl-C stops\n\n");
    fflush(stdout);
    free(base);
}

static void *take_signals(void *arg)
{
    struct serving *s = arg;
    int n_asked = 0;
    for (int sig; sigwait(&s->signals, &sig) == 0 && sig != SIGUSR1;) {
        struct sl_server *server = atomic_load(&s->server);
        if (sig == SIGHUP)
            continue; /* a terminal that goes away does not stop a server */
        if (!server)
            _exit(128 + sig); /* still loading: nothing to finish */
        int timeout = n_asked++ ? 0 : s->o->server.shutdown_timeout_s;
        LOG("[shutdown] API server: shutdown triggered");
        LOG("[shutdown] EngineCore: start mode=%s timeout=%ds", timeout > 0 ? "drain" : "abort",
            timeout);
        sl_server_drain(server, timeout);
    }
    return NULL;
}

/* Until the server has ended: because it drained, or because the engine died. */
static int serve(struct serving *s, struct sl_engine *engine)
{
    struct sl_server *server = NULL;
    struct sl_err err = {0};
    if (sl_server_start(&server, engine, &s->o->server, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    atomic_store(&s->server, server);
    print_hints(&s->o->server, server, engine);
    return sl_server_wait(server) == SL_OK ? EXIT_DONE : EXIT_FAILED;
}

static void log_start(const struct options *o)
{
    char args[2048];
    flags_describe(&o->flags, args, sizeof args);
    LOG("vLLM server version %s, serving model %s", sl_version(), options_model_name(o));
    LOG("non-default args: %s", args);
}

static int load_and_serve(struct serving *s)
{
    struct sl_engine *engine = NULL;
    struct sl_err err = {0};
    int code = EXIT_FAILED;
    if (sl_engine_create(&engine, &s->o->engine, &err) == SL_OK)
        code = serve(s, engine);
    else
        fail_with(EXIT_FAILED, "%s", err.msg);
    pthread_kill(s->signal_thread, SIGUSR1);
    pthread_join(s->signal_thread, NULL);
    struct sl_server *server = atomic_load(&s->server);
    sl_server_stop(&server);
    sl_engine_destroy(&engine);
    return code;
}

int command_serve(struct options *o)
{
    struct serving s = {.o = o};
    if (o->server.shutdown_timeout_s < 0)
        return fail_with(EXIT_USAGE, "--shutdown-timeout must not be negative");
    if (o->server.port < 0 || o->server.port > 65535)
        return fail_with(EXIT_USAGE, "--port must be from 0 to 65535");
    /* Blocked before any other thread exists, so that every one leaves them to the signal thread.
     */
    sigemptyset(&s.signals);
    sigaddset(&s.signals, SIGINT);
    sigaddset(&s.signals, SIGTERM);
    sigaddset(&s.signals, SIGHUP);
    sigaddset(&s.signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &s.signals, NULL);
    if (pthread_create(&s.signal_thread, NULL, take_signals, &s) != 0)
        return fail_with(EXIT_FAILED, "cannot start a thread");
    raise_descriptor_limit();
    log_start(o);
    warn_if_open(&o->server);
    return load_and_serve(&s);
}
