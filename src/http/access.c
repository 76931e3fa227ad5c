/* access.c - who may ask: API keys, and pages from other origins (CORS, as Starlette answers).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/routes.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

enum sl_status access_init(struct sl_server *s, struct sl_err *err)
{
    int n = s->cfg.n_api_keys;
    if (n <= 0)
        return SL_OK;
    s->key_hash = arena_alloc(&s->arena, (size_t)n, sizeof *s->key_hash);
    if (!s->key_hash)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for API keys");
    for (int i = 0; i < n; i++)
        SHA256((const unsigned char *)s->cfg.api_keys[i], strlen(s->cfg.api_keys[i]),
               s->key_hash[i]);
    return SL_OK;
}

/* Hashes make all keys equally long; the comparison looks at every byte of every key. */
bool access_allowed(const struct conn *c)
{
    const struct sl_server *s = c->loop->srv;
    if (s->cfg.n_api_keys <= 0 || evhttp_request_get_command(c->req) == EVHTTP_REQ_OPTIONS)
        return true;
    const char *given = conn_header(c, "Authorization");
    size_t scheme = given ? strcspn(given, " ") : 0;
    if (scheme != 6 || strncasecmp(given, "bearer", 6))
        return false;
    given += scheme + strspn(given + scheme, " ");
    unsigned char hash[32];
    SHA256((const unsigned char *)given, strlen(given), hash);
    int equal = 0;
    for (int i = 0; i < s->cfg.n_api_keys; i++)
        equal |= CRYPTO_memcmp(hash, s->key_hash[i], sizeof hash) == 0;
    return equal;
}

static bool all_origins(const struct sl_server_config *cfg)
{
    for (int i = 0; i < cfg->n_allowed_origins; i++)
        if (!strcmp(cfg->allowed_origins[i], "*"))
            return true;
    return !cfg->allowed_origins || !cfg->n_allowed_origins;
}

static bool origin_allowed(const struct sl_server_config *cfg, const char *origin)
{
    for (int i = 0; i < cfg->n_allowed_origins; i++)
        if (!strcmp(cfg->allowed_origins[i], origin))
            return true;
    return all_origins(cfg);
}

void access_cors(struct conn *c)
{
    const struct sl_server_config *cfg = &c->loop->srv->cfg;
    const char *origin = conn_header(c, "Origin");
    if (!origin || !origin_allowed(cfg, origin))
        return;
    if (all_origins(cfg)) {
        conn_add_header(c, "Access-Control-Allow-Origin", "*");
    } else {
        conn_add_header(c, "Access-Control-Allow-Origin", origin);
        conn_add_header(c, "Vary", "Origin");
    }
}

bool access_preflight(struct conn *c)
{
    const char *origin = conn_header(c, "Origin");
    const char *headers = conn_header(c, "Access-Control-Request-Headers");
    if (evhttp_request_get_command(c->req) != EVHTTP_REQ_OPTIONS || !origin ||
        !conn_header(c, "Access-Control-Request-Method"))
        return false;
    bool ok = origin_allowed(&c->loop->srv->cfg, origin);
    conn_add_header(c, "Access-Control-Allow-Methods",
                    "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
    conn_add_header(c, "Access-Control-Max-Age", "600");
    if (headers)
        conn_add_header(c, "Access-Control-Allow-Headers", headers);
    const char *text = ok ? "OK" : "Disallowed CORS origin";
    conn_reply_static(c, ok ? 200 : 400, "text/plain; charset=utf-8", text, strlen(text));
    return true;
}
