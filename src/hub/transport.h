/* transport.h - one HTTP exchange over libcurl, bounded in time, in size and in hops.
 *
 * Redirects are followed here, one after another, because two things must hold on every hop: the
 * token goes only to the scheme, host and port of `token_origin`, and nothing leads from https to
 * http. No URL is ever part of a message: signed ones are secrets too. Proxies are libcurl's
 * business (https_proxy, no_proxy).
 *
 * Thread: a transport belongs to one thread at a time; it keeps its connection between calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HUB_TRANSPORT_H
#define SL_HUB_TRANSPORT_H

#include "base/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct transport; /* opaque: defined in transport.c */

struct http_answer {
    int status;                      /* 0: none came */
    int64_t content_length;          /* -1: not said */
    int64_t range_from, range_total; /* of Content-Range; -1 */
    int retry_after_s;               /* 0: not said */
    char location[8192];             /* of a redirect that was not followed, or "" */
    /* These are kept from any hop that had them: the hub sends them with its redirect. */
    char commit[64], linked_etag[160];
    int64_t linked_size;
    char etag[160];
    char error_code[40]; /* X-Error-Code */
    char host[264];      /* who was asked last: for messages */
};

struct http_call {
    const char *method; /* "GET", "HEAD" or "PUT" */
    const char *url;
    const char *token;        /* NULL: none */
    const char *token_origin; /* a URL: nobody else sees the token */
    int64_t range_from;       /* > 0: ask for what follows */
    bool stop_off_origin;     /* a redirect that leaves token_origin ends the call, as its answer */
    int total_s;              /* 0: no limit but the one on silence */
    int silence_s;            /* under 1 KiB/s for so long is a broken connection */
    const char *ca_file;      /* NULL: the system's */
    int upload_fd;            /* PUT: upload_bytes of it, from its start */
    int64_t upload_bytes;
    /* Each piece of a 2xx body; false ends the exchange. NULL: bodies are dropped. */
    bool (*body)(void *ctx, const struct http_answer *a, const void *data, size_t n);
    void *ctx;
    const atomic_bool *stop; /* another thread sets it: the exchange ends within a second */
};

enum http_end {
    HTTP_ANSWERED, /* an answer came whole, whatever its status */
    HTTP_BROKEN,   /* the network, or a server that went away: may be tried again; err says what */
    HTTP_REFUSED,  /* will not get better: err says why */
    HTTP_STOPPED   /* by body() or by *stop; err is not set */
};

SL_MUST_CHECK enum sl_status transport_create(struct transport **out, struct sl_err *err);
void transport_destroy(struct transport **t);

/* err is overwritten by each call. */
enum http_end transport_call(struct transport *t, const struct http_call *call,
                             struct http_answer *a, struct sl_err *err);

/* "https://host" of a URL, for messages; false when it is none of http or https, or holds a name
 * and password. */
bool url_check(const char *url);
bool url_same_origin(const char *a, const char *b);

#endif
