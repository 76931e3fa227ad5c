/* server.c - the server's life: start, drain, stop.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/server_impl.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "http/call.h"
#include "http/routes.h"

#include <openssl/sha.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    FLUSH_MS = 2000,     /* after everything was aborted: time for the last bytes */
    DEATH_POLL_MS = 500, /* how often sl_server_wait looks whether the engine lives */
    MAX_LOOPS = 64,
    MAX_OFFLINE = 1 << 16, /* calls without a socket that may wait for a worker */
    CONFIG_FILE_BYTES = 32 << 20
};

void sl_server_config_init(struct sl_server_config *cfg)
{
    *cfg = (struct sl_server_config){
        .host = "127.0.0.1",
        .port = 8000,
        .max_body_bytes = 16 << 20,
        .max_body_bytes_total = 256 << 20,
        .max_output_buffer = 1 << 20,
        .max_connections = 16384,
        .header_timeout_s = 10,
        .idle_timeout_s = 60,
        .shutdown_timeout_s = 30,
        .response_role = "assistant",
        .fingerprint_mode = "full",
    };
}

/* ---- the copy of the configuration */

static const char *copy(struct sl_server *s, const char *text)
{
    return text ? arena_strndup(&s->arena, text, strlen(text)) : NULL;
}

static const char *const *copy_list(struct sl_server *s, const char *const *list, int n)
{
    const char **out = list ? arena_alloc(&s->arena, (size_t)n, sizeof *out) : NULL;
    for (int i = 0; out && i < n; i++)
        out[i] = copy(s, list[i]);
    return out;
}

static void copy_config(struct sl_server *s, const struct sl_server_config *from)
{
    struct sl_server_config *c = &s->cfg;
    *c = *from;
    const char **const strings[] = {
        &c->host,
        &c->uds,
        &c->ssl_keyfile,
        &c->ssl_certfile,
        &c->ssl_ca_certs,
        &c->root_path,
        &c->response_role,
        &c->default_chat_template_kwargs,
        &c->disable_access_log_for,
        &c->fingerprint_mode,
        &c->tool_call_parser,
        &c->reasoning_parser,
    };
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
        *strings[i] = copy(s, *strings[i]);
    c->api_keys = copy_list(s, c->api_keys, c->n_api_keys);
    c->allowed_origins = copy_list(s, c->allowed_origins, c->n_allowed_origins);
}

/* ---- what requests are checked against */

static size_t longest_token(const struct sl_text *text, int vocab_size)
{
    size_t longest = 0;
    for (int i = 0; text && i < vocab_size; i++) {
        const char *t = sl_text_token(text, i);
        size_t n = t ? strlen(t) : 0; /* bytes are no fewer than characters: an upper bound */
        longest = n > longest ? n : longest;
    }
    return longest;
}

/* "'hermes', 'mistral'" */
static void list_names(char *out, size_t room, const char *(*name)(int))
{
    size_t at = 0;
    for (int i = 0; name(i) && at < room; i++)
        at += (size_t)snprintf(out + at, room - at, "%s'%s'", i ? ", " : "", name(i));
}

static enum sl_status init_parsers(struct sl_server *s, struct sl_err *err)
{
    const struct sl_server_config *c = &s->cfg;
    char names[400];
    if (c->enable_auto_tool_choice && !c->tool_call_parser)
        return SL_FAIL_PARAM(err, SL_EINVAL, "enable-auto-tool-choice",
                             "--enable-auto-tool-choice requires --tool-call-parser");
    if (c->tool_call_parser && !outparse_tool_named(c->tool_call_parser, &s->env.tool_parser)) {
        list_names(names, sizeof names, outparse_tool_name);
        return SL_FAIL_PARAM(err, SL_EINVAL, "tool-call-parser",
                             "invalid tool call parser: %s (chose from { %s })",
                             c->tool_call_parser, names);
    }
    if (c->reasoning_parser &&
        !outparse_reasoning_named(c->reasoning_parser, &s->env.reasoning_parser)) {
        list_names(names, sizeof names, outparse_reasoning_name);
        return SL_FAIL_PARAM(err, SL_EINVAL, "reasoning-parser",
                             "invalid reasoning parser: %s (chose from { %s })",
                             c->reasoning_parser, names);
    }
    return SL_OK;
}

static enum sl_status init_env(struct sl_server *s, struct sl_err *err)
{
    struct oai_env *env = &s->env;
    struct sl_sampling_params plain;
    env->cfg = &s->cfg;
    env->text = sl_engine_text(s->engine);
    sl_engine_info(s->engine, &env->info);
    sl_sampling_params_init(&plain);
    sl_engine_default_params(s->engine, &env->defaults);
    env->max_new_tokens =
        env->defaults.max_tokens == plain.max_tokens ? SL_NONE : env->defaults.max_tokens;
    env->max_token_chars = longest_token(env->text, env->info.vocab_size);
    if (s->cfg.default_chat_template_kwargs) {
        json_error_t je;
        env->default_kwargs = json_loads(s->cfg.default_chat_template_kwargs, 0, &je);
        if (!json_is_object(env->default_kwargs))
            return SL_FAIL_PARAM(err, SL_EINVAL, "default-chat-template-kwargs",
                                 "--default-chat-template-kwargs should be a JSON object");
    }
    return init_parsers(s, err);
}

/* "sluice-0.1.0-1a2b3c4d": version, and a hash of what shapes the answers. */
static void make_fingerprint(struct sl_server *s)
{
    const char *mode = s->cfg.fingerprint_mode ? s->cfg.fingerprint_mode : "full";
    const struct sl_engine_info *info = &s->env.info;
    char text[1024];
    unsigned char hash[32];
    if (!strcmp(mode, "none"))
        return;
    int n = snprintf(text, sizeof text, "%s|%s|%s|%d|%d|%d", sl_version(), info->model,
                     info->architecture, info->max_model_len, info->vocab_size, info->block_size);
    SHA256((const unsigned char *)text, n < (int)sizeof text ? (size_t)n : sizeof text - 1, hash);
    if (!strcmp(mode, "full"))
        snprintf(text, sizeof text, "sluice-%s-%02x%02x%02x%02x", sl_version(), hash[0], hash[1],
                 hash[2], hash[3]);
    else if (!strcmp(mode, "hash"))
        snprintf(text, sizeof text, "%02x%02x%02x%02x", hash[0], hash[1], hash[2], hash[3]);
    else
        snprintf(text, sizeof text, "%s", mode);
    s->fingerprint = copy(s, text);
}

/* tokenizer_config.json as it is, for /tokenizer_info. */
static enum sl_status load_tokenizer_info(struct sl_server *s, struct sl_err *err)
{
    if (!s->cfg.enable_tokenizer_info_endpoint)
        return SL_OK;
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer_config.json", s->env.info.model);
    json_error_t je;
    json_t *config = json_load_file(path, 0, &je);
    if (!config) /* model_max_length is often 1e30, written out */
        config = json_load_file(path, JSON_DECODE_INT_AS_REAL, &je);
    if (!json_is_object(config)) {
        json_decref(config);
        return SL_FAIL(err, SL_EFORMAT, "--enable-tokenizer-info-endpoint: cannot read %s: %s",
                       path, je.text);
    }
    char *text = json_dumps(config, JSON_COMPACT);
    json_decref(config);
    s->tokenizer_info = text ? mem_strdup(text) : NULL;
    free(text);
    return s->tokenizer_info ? SL_OK : SL_FAIL(err, SL_ENOMEM, "http: no memory");
}

static void raise_descriptors(void)
{
    struct rlimit lim;
    if (getrlimit(RLIMIT_NOFILE, &lim) || lim.rlim_cur == lim.rlim_max)
        return;
    lim.rlim_cur = lim.rlim_max;
    setrlimit(RLIMIT_NOFILE, &lim);
}

static int choose_loops(const struct sl_server_config *cfg)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int n = cfg->loops > 0 ? cfg->loops : cores <= 4 ? 1 : cores <= 16 ? 2 : 4;
    return n < MAX_LOOPS ? n : MAX_LOOPS;
}

/* ---- start */

static enum sl_status start_threads(struct sl_server *s, struct sl_err *err)
{
    sigset_t all, old; /* signals stay the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    enum sl_status st = workers_create(&s->workers, 2, err);
    for (int i = 0; !st && i < s->n_loops; i++)
        st = loop_start(&s->loops[i], err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return st;
}

static enum sl_status make_loops(struct sl_server *s, struct sl_err *err)
{
    int n = s->offline ? 1 : choose_loops(&s->cfg);
    s->loops = mem_zalloc((size_t)n, sizeof *s->loops);
    if (!s->loops)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for event loops");
    for (int i = 0; i < n; i++) {
        s->n_loops = i + 1;
        enum sl_status st = loop_init(&s->loops[i], s, i, err);
        if (st)
            return st;
    }
    return SL_OK;
}

static enum sl_status make_metrics(struct sl_server *s, struct sl_err *err)
{
    const char *names[64];
    for (int i = 0; i < n_routes && i < 64; i++)
        names[i] = routes[i].path;
    enum sl_status st = http_metrics_create(&s->metrics, names, n_routes, err);
    s->env.metrics = s->metrics;
    return st;
}

static enum sl_status init(struct sl_server *s, struct sl_err *err)
{
    enum sl_status st;
    if ((st = init_env(s, err)) || (st = access_init(s, err)) ||
        (st = load_tokenizer_info(s, err)) || (st = make_metrics(s, err)) ||
        (st = pieces_create(&s->pieces, s->env.text, s->env.info.vocab_size, err)))
        return st;
    make_fingerprint(s);
    s->created = clock_wall_s();
    if (!s->offline) {
        raise_descriptors();
        if ((st = tls_create(&s->tls, &s->cfg, err)))
            return st;
    }
    if ((st = make_loops(s, err)) || (!s->offline && (st = server_listen(s, err))))
        return st;
    return start_threads(s, err);
}

static enum sl_status start(struct sl_server **out, struct sl_engine *e,
                            const struct sl_server_config *cfg, bool offline, struct sl_err *err)
{
    struct sl_server *s = mem_zalloc(1, sizeof *s);
    if (!s)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for a server");
    s->engine = e;
    s->offline = offline;
    mutex_init(&s->lock, LOCK_SERVER);
    cond_init(&s->changed);
    copy_config(s, cfg);
    enum sl_status st = init(s, err);
    if (st) {
        sl_server_stop(&s);
        return st;
    }
    *out = s;
    return SL_OK;
}

enum sl_status sl_server_start(struct sl_server **out, struct sl_engine *e,
                               const struct sl_server_config *cfg, struct sl_err *err)
{
    enum sl_status st = start(out, e, cfg, false, err);
    if (st)
        return st;
    log_info("Supported tasks: ['generate']");
    if (cfg->uds)
        log_info("Starting vLLM server on unix:%s", cfg->uds);
    else
        log_info("Starting vLLM server on %s://%s:%d", cfg->ssl_certfile ? "https" : "http",
                 cfg->host, (*out)->port);
    routes_log();
    return SL_OK;
}

enum sl_status sl_server_start_offline(struct sl_server **out, struct sl_engine *e,
                                       const struct sl_server_config *cfg, struct sl_err *err)
{
    return start(out, e, cfg, true, err);
}

int sl_server_port(const struct sl_server *s)
{
    return s->port;
}

/* ---- the end */

void server_busy(struct sl_server *s, int change)
{
    if (atomic_fetch_add(&s->n_busy, change) + change > 0 || !atomic_load(&s->draining))
        return;
    mutex_lock(&s->lock); /* sl_server_wait sleeps on this */
    cond_broadcast(&s->changed);
    mutex_unlock(&s->lock);
}

void sl_server_drain(struct sl_server *s, int timeout_s)
{
    int64_t deadline = clock_mono_ns() + (int64_t)(timeout_s > 0 ? timeout_s : 0) * 1000000000;
    mutex_lock(&s->lock);
    if (!s->deadline_ns || deadline < s->deadline_ns)
        s->deadline_ns = deadline;
    atomic_store(&s->draining, true);
    cond_broadcast(&s->changed);
    mutex_unlock(&s->lock);
}

static bool engine_dead(const struct sl_server *s)
{
    struct sl_engine_info info;
    sl_engine_info(s->engine, &info);
    return info.dead;
}

static void kill_all(struct sl_server *s)
{
    atomic_store(&s->killed, true);
    for (int i = 0; i < s->n_loops; i++)
        loop_poke(&s->loops[i]);
}

enum sl_status sl_server_wait(struct sl_server *s)
{
    bool dead = false;
    int64_t killed_ns = 0;
    mutex_lock(&s->lock);
    for (;;) {
        int64_t now = clock_mono_ns();
        bool draining = s->deadline_ns != 0;
        dead = dead || engine_dead(s);
        if ((draining || dead) && atomic_load(&s->n_busy) <= 0)
            break;
        if (killed_ns && now - killed_ns > FLUSH_MS * INT64_C(1000000))
            break;
        if (!killed_ns && (dead || (draining && now >= s->deadline_ns))) {
            killed_ns = now;
            atomic_store(&s->draining, true);
            kill_all(s);
        }
        int64_t until = now + DEATH_POLL_MS * INT64_C(1000000);
        if (draining && !killed_ns && s->deadline_ns < until)
            until = s->deadline_ns;
        if (killed_ns)
            until = now + 20000000;
        cond_wait_until(&s->changed, &s->lock, until);
    }
    mutex_unlock(&s->lock);
    return dead ? SL_EDEVICE : SL_OK;
}

void sl_server_stop(struct sl_server **ss)
{
    struct sl_server *s = *ss;
    *ss = NULL;
    if (!s)
        return;
    atomic_store(&s->draining, true);
    atomic_store(&s->killed, true); /* offline calls stop waiting for the engine's queue */
    workers_destroy(&s->workers);   /* each call it held is the loop's again */
    server_unlisten(s);
    for (int i = 0; i < s->n_loops; i++)
        loop_join(&s->loops[i]);
    for (int i = 0; i < s->n_loops; i++)
        loop_fini(&s->loops[i]);
    mem_free(s->loops);
    pieces_destroy(&s->pieces);
    http_metrics_destroy(&s->metrics);
    tls_destroy(&s->tls);
    json_decref(s->env.default_kwargs);
    mem_free(s->tokenizer_info);
    cond_fini(&s->changed);
    mutex_fini(&s->lock);
    arena_fini(&s->arena);
    mem_free(s);
}

/* ---- calls without a socket */

enum sl_status sl_openai_call(struct sl_server *s, const char *url, const char *body, size_t bytes,
                              sl_openai_done_fn done, void *ctx, struct sl_err *err)
{
    const struct route *r = route_find(url, strlen(url));
    if (!r || !r->api)
        return SL_FAIL_PARAM(err, SL_ENOTFOUND, "url", "There is no API call at %s", url);
    if (atomic_load(&s->draining))
        return SL_FAIL(err, SL_ESHUTDOWN, "The server is shutting down.");
    if (atomic_load(&s->n_busy) >= MAX_OFFLINE)
        return SL_EAGAIN;
    char *own = mem_strndup(body, bytes);
    if (!own)
        return SL_FAIL(err, SL_ENOMEM, "There is not enough memory for the request.");
    struct loop *l = &s->loops[atomic_fetch_add(&s->next_loop, 1) % (unsigned)s->n_loops];
    server_busy(s, 1);
    if (call_start(l, r->api, own, bytes, 0, NULL, NULL, done, ctx))
        return SL_OK;
    server_busy(s, -1);
    return SL_FAIL(err, SL_ENOMEM, "There is not enough memory for the request.");
}
