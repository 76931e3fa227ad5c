/* SPDX-License-Identifier: Apache-2.0 */
#include "http/server_impl.h"

#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

static enum sl_status tls_fail(SSL_CTX *ctx, const char *what, const char *file, struct sl_err *err)
{
    char reason[160] = "";
    ERR_error_string_n(ERR_get_error(), reason, sizeof reason);
    SSL_CTX_free(ctx);
    return SL_FAIL(err, SL_EINVAL, "cannot use the %s %s: %s", what, file, reason);
}

enum sl_status tls_create(void **out, const struct sl_server_config *cfg, struct sl_err *err)
{
    if (!cfg->ssl_certfile && !cfg->ssl_keyfile)
        return SL_OK;
    if (!cfg->ssl_certfile)
        return SL_FAIL_PARAM(err, SL_EINVAL, "ssl-certfile", "--ssl-keyfile needs --ssl-certfile");
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return SL_FAIL(err, SL_ENOMEM, "http: no memory for TLS");
    /* a file with both is fine */
    const char *key = cfg->ssl_keyfile ? cfg->ssl_keyfile : cfg->ssl_certfile;
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    if (SSL_CTX_use_certificate_chain_file(ctx, cfg->ssl_certfile) != 1)
        return tls_fail(ctx, "certificate", cfg->ssl_certfile, err);
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ctx) != 1)
        return tls_fail(ctx, "private key", key, err);
    if (cfg->ssl_ca_certs && SSL_CTX_load_verify_locations(ctx, cfg->ssl_ca_certs, NULL) != 1)
        return tls_fail(ctx, "CA certificates", cfg->ssl_ca_certs, err);
    *out = ctx;
    return SL_OK;
}

void tls_destroy(void **tls)
{
    SSL_CTX_free(*tls);
    *tls = NULL;
}

struct bufferevent *tls_bufferevent(void *tls, struct event_base *base)
{
    SSL *ssl = SSL_new(tls);
    if (!ssl)
        return NULL;
    struct bufferevent *bev = bufferevent_openssl_socket_new(
        base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
    if (!bev) {
        SSL_free(ssl);
        return NULL;
    }
    bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    return bev;
}
