/* SPDX-License-Identifier: Apache-2.0 */
#include "http/routes.h"

#include "base/log.h"
#include "engine/engine.h"
#include "http/call.h"
#include "http/json_out.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <string.h>

static struct sl_server *server_of(const struct conn *c)
{
    return c->loop->srv;
}

static bool engine_dead(const struct sl_server *s)
{
    struct sl_engine_info info;
    sl_engine_info(s->engine, &info);
    return info.dead;
}

/* ---- handlers that need no engine */

static void get_page(struct conn *c)
{
    struct asset a = asset_page();
    conn_reply_static(c, 200, "text/html; charset=utf-8", a.bytes, a.n);
}

static void get_openapi(struct conn *c)
{
    struct asset a = asset_openapi();
    conn_reply_static(c, 200, "application/json", a.bytes, a.n);
}

static void get_health(struct conn *c)
{
    struct sl_server *s = server_of(c);
    conn_reply(c, atomic_load(&s->draining) || engine_dead(s) ? 503 : 200, NULL, NULL);
}

static void get_version(struct conn *c)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_addf(&b, "{\"version\":\"%s\"}", sl_version());
    conn_reply(c, 200, "application/json", &b);
}

static void get_load(struct conn *c)
{
    struct sl_server *s = server_of(c);
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_addf(&b, "{\"server_load\":%d}",
                s->cfg.enable_server_load_tracking ? atomic_load(&s->n_load) : 0);
    conn_reply(c, 200, "application/json", &b);
}

static void get_metrics(struct conn *c)
{
    struct sl_server *s = server_of(c);
    struct strbuf b;
    strbuf_init(&b, 0);
    engine_metrics_render(s->engine, &b);
    http_metrics_render(s->metrics, s->env.tool_parser ? s->env.info.served_names[0] : NULL, &b);
    conn_reply(c, 200, "text/plain; version=0.0.4; charset=utf-8", &b);
}

static void put_model_card(const struct sl_server *s, struct strbuf *b, int i)
{
    const struct sl_engine_info *info = &s->env.info;
    const char *name = info->served_names[i], *root = info->model;
    strbuf_adds(b, "{\"id\":");
    json_put_lossy(b, name, strlen(name));
    strbuf_addf(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"vllm\",\"root\":",
                (long long)s->created);
    json_put_lossy(b, root, strlen(root));
    strbuf_addf(
        b,
        ",\"parent\":null,\"max_model_len\":%d,\"permission\":[{\"id\":\"modelperm-%016llx%d"
        "\",\"object\":\"model_permission\",\"created\":%lld,\"allow_create_engine\":false,"
        "\"allow_sampling\":true,\"allow_logprobs\":true,\"allow_search_indices\":false,"
        "\"allow_view\":true,\"allow_fine_tuning\":false,\"organization\":\"*\","
        "\"group\":null,\"is_blocking\":false}]}",
        info->max_model_len, (unsigned long long)s->created * 0x9e3779b97f4a7c15u, i,
        (long long)s->created);
}

static void get_models(struct conn *c)
{
    struct sl_server *s = server_of(c);
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_adds(&b, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < s->env.info.n_served_names; i++) {
        if (i)
            strbuf_addc(&b, ',');
        put_model_card(s, &b, i);
    }
    strbuf_adds(&b, "]}");
    conn_reply(c, 200, "application/json", &b);
}

/* The request's path, decoded, without the prefix that a proxy adds; mem_free it. */
static char *request_path(const struct conn *c)
{
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(c->req);
    const char *path = uri ? evhttp_uri_get_path(uri) : NULL;
    const char *root = server_of(c)->cfg.root_path;
    size_t n = root ? strlen(root) : 0;
    while (n && root[n - 1] == '/')
        n--;
    if (path && n && !strncmp(path, root, n) && path[n] == '/')
        path += n;
    return mem_strdup(path && *path ? path : "/");
}

static void get_model(struct conn *c)
{
    struct sl_server *s = server_of(c);
    char *path = request_path(c), *decoded = NULL;
    if (path)
        decoded = evhttp_uridecode(path + strlen("/v1/models/"), 0, NULL);
    mem_free(path);
    int found = -1;
    for (int i = 0; decoded && i < s->env.info.n_served_names; i++)
        if (!strcmp(decoded, s->env.info.served_names[i]))
            found = i;
    if (found >= 0) {
        struct strbuf b;
        strbuf_init(&b, 0);
        put_model_card(s, &b, found);
        conn_reply(c, 200, "application/json", &b);
    } else {
        struct oai_error e = {0};
        oai_fail(&e, 404, NULL, "model", "The model `%.400s` does not exist.",
                 decoded ? decoded : "");
        conn_reply_error(c, &e);
    }
    free(decoded);
}

static void not_found(struct conn *c)
{
    struct oai_error e = {0};
    oai_fail(&e, 404, "Not Found", NULL, "Not Found");
    conn_reply_error(c, &e);
}

static void get_tokenizer_info(struct conn *c)
{
    const char *info = server_of(c)->tokenizer_info;
    if (info)
        conn_reply_static(c, 200, "application/json", info, strlen(info));
    else
        not_found(c);
}

/* ---- handlers that start a call */

static void start_call(struct conn *c, enum oai_api api)
{
    struct sl_server *s = server_of(c);
    struct oai_error e = {0};
    char *body;
    size_t bytes, charged;
    if (atomic_load(&s->draining)) {
        oai_fail(&e, 503, NULL, NULL, "The server is shutting down.");
    } else if (engine_dead(s)) {
        oai_fail(&e, 503, NULL, NULL, "The engine has stopped after a device error.");
    } else if (!conn_take_body(c, &body, &bytes, &charged)) {
        oai_fail(&e, 500, NULL, NULL, "There is not enough memory for the request.");
    } else {
        const char *given = conn_header(c, "X-Request-Id");
        conn_watch(c);
        if (call_start(c->loop, api, body, bytes, charged, given ? c->request_id : NULL, c, NULL,
                       NULL))
            return;
        oai_fail(&e, 500, NULL, NULL, "There is not enough memory for the request.");
    }
    conn_reply_error(c, &e);
}

/* SageMaker's one endpoint: the body's shape says what it is. */
static void post_invocations(struct conn *c)
{
    struct evbuffer *in = evhttp_request_get_input_buffer(c->req);
    struct evbuffer_ptr at = evbuffer_search(in, "\"messages\"", 10, NULL);
    start_call(c, at.pos >= 0 ? OAI_CHAT : OAI_COMPLETIONS);
}

const struct route routes[] = {
    {"/", "GET HEAD", ROUTE_OPEN | ROUTE_QUIET, 0, get_page},
    {"/health", "GET HEAD", ROUTE_OPEN | ROUTE_QUIET, 0, get_health},
    {"/ping", "GET HEAD POST", ROUTE_OPEN | ROUTE_QUIET, 0, get_health},
    {"/version", "GET HEAD", ROUTE_OPEN | ROUTE_QUIET, 0, get_version},
    {"/load", "GET HEAD", ROUTE_QUIET, 0, get_load},
    {"/metrics", "GET HEAD", ROUTE_OPEN | ROUTE_QUIET, 0, get_metrics},
    {"/openapi.json", "GET HEAD", 0, 0, get_openapi},
    {"/tokenizer_info", "GET HEAD", 0, 0, get_tokenizer_info},
    {"/v1/models", "GET HEAD", 0, 0, get_models},
    {"/v1/models/{model_id}", "GET HEAD", ROUTE_PREFIX, 0, get_model},
    {"/v1/completions", "POST", ROUTE_JSON, OAI_COMPLETIONS, NULL},
    {"/v1/chat/completions", "POST", ROUTE_JSON, OAI_CHAT, NULL},
    {"/v1/embeddings", "POST", ROUTE_JSON, OAI_EMBEDDINGS, NULL},
    {"/pooling", "POST", ROUTE_JSON, OAI_POOLING, NULL},
    {"/classify", "POST", ROUTE_JSON, OAI_CLASSIFY, NULL},
    {"/score", "POST", ROUTE_JSON, OAI_SCORE, NULL},
    {"/v1/score", "POST", ROUTE_JSON, OAI_SCORE, NULL},
    {"/rerank", "POST", ROUTE_JSON, OAI_RERANK, NULL},
    {"/v1/rerank", "POST", ROUTE_JSON, OAI_RERANK, NULL},
    {"/v2/rerank", "POST", ROUTE_JSON, OAI_RERANK, NULL},
    {"/tokenize", "POST", ROUTE_JSON, OAI_TOKENIZE, NULL},
    {"/detokenize", "POST", ROUTE_JSON, OAI_DETOKENIZE, NULL},
    {"/invocations", "POST", ROUTE_JSON, 0, post_invocations},
};
const int n_routes = sizeof routes / sizeof routes[0];

void routes_log(void)
{
    log_info("Available routes are:");
    for (int i = 0; i < n_routes; i++) {
        char methods[64];
        size_t n = 0;
        for (const char *p = routes[i].methods; *p && n + 3 < sizeof methods; p++) {
            if (*p == ' ')
                methods[n++] = ',';
            methods[n++] = *p;
        }
        methods[n] = '\0';
        log_info("Route: %s, Methods: %s", routes[i].path, methods);
    }
}

int route_index(const struct route *r)
{
    return r ? (int)(r - routes) : n_routes;
}

static bool matches(const struct route *r, const char *path, size_t n)
{
    size_t fixed = r->flags & ROUTE_PREFIX ? strcspn(r->path, "{") : strlen(r->path);
    return (r->flags & ROUTE_PREFIX ? n > fixed : n == fixed) && !memcmp(path, r->path, fixed);
}

const struct route *route_find(const char *path, size_t n)
{
    for (int i = 0; i < n_routes; i++)
        if (matches(&routes[i], path, n))
            return &routes[i];
    return NULL;
}

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = words; (p = strstr(p, word)); p += n)
        if ((p == words || p[-1] == ' ') && (!p[n] || p[n] == ' '))
            return true;
    return false;
}

/* "Application/JSON; charset=utf-8" is fine. */
static bool is_json(const char *type)
{
    static const char want[] = "application/json";
    size_t n = type ? strcspn(type, ";") : 0;
    while (n && (type[n - 1] == ' ' || type[n - 1] == '\t'))
        n--;
    return n == sizeof want - 1 && !strncasecmp(type, want, n);
}

static void wrong_method(struct conn *c, const struct route *r)
{
    struct oai_error e = {0};
    char allow[64] = "";
    for (size_t i = 0, at = 0; r->methods[i] && at < sizeof allow - 3; i++) {
        if (r->methods[i] == ' ')
            allow[at++] = ',';
        allow[at++] = r->methods[i];
    }
    conn_add_header(c, "Allow", allow);
    oai_fail(&e, 405, "Method Not Allowed", NULL, "Method Not Allowed");
    conn_reply_error(c, &e);
}

static void unauthorized(struct conn *c)
{
    static const char body[] = "{\"error\":\"Unauthorized\"}";
    conn_add_header(c, "WWW-Authenticate", "Bearer");
    conn_reply_static(c, 401, "application/json", body, sizeof body - 1);
}

/* Visible ASCII goes through to ids, headers and logs; the rest does not. */
static void take_request_id(struct conn *c)
{
    const char *given = conn_header(c, "X-Request-Id");
    size_t n = 0;
    for (; given && given[n] && n < sizeof c->request_id - 1; n++)
        c->request_id[n] = given[n] > ' ' && given[n] < 0x7f ? given[n] : '_';
    c->request_id[n] = 0;
    if (!n && server_of(c)->cfg.enable_request_id_headers)
        oai_random_id(c->request_id);
}

void routes_dispatch(struct conn *c)
{
    char *path = request_path(c);
    const struct route *r = path ? route_find(path, strlen(path)) : NULL;
    mem_free(path);
    c->route = r;
    take_request_id(c);
    if (access_preflight(c))
        return;
    if (!(r && r->flags & ROUTE_OPEN) && !access_allowed(c)) {
        unauthorized(c);
    } else if (!r) {
        not_found(c);
    } else if (!has_word(r->methods, conn_method(c))) {
        wrong_method(c, r);
    } else if (r->flags & ROUTE_JSON && !is_json(conn_header(c, "Content-Type"))) {
        struct oai_error e = {0};
        oai_fail(&e, 400, "Bad Request", NULL,
                 "1 validation error:\n  Unsupported Media Type: Only 'application/json' is "
                 "allowed");
        conn_reply_error(c, &e);
    } else if (r->handle) {
        r->handle(c);
    } else {
        start_call(c, r->api);
    }
}
