/* routes.h - which path does what, who may ask, and what every answer carries.
 *
 * Thread: the loop's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_ROUTES_H
#define SL_HTTP_ROUTES_H

#include "http/conn.h"

enum route_flag {
    ROUTE_OPEN = 1,  /* needs no API key */
    ROUTE_QUIET = 2, /* not counted in the http_ metrics */
    ROUTE_JSON = 4,  /* the body must be application/json */
    ROUTE_PREFIX = 8 /* path/{something} */
};

struct route {
    const char *path;    /* as in openapi.json */
    const char *methods; /* "GET POST" */
    unsigned flags;
    enum oai_api api; /* 0: `handle` answers */
    void (*handle)(struct conn *c);
};

extern const struct route routes[];
extern const int n_routes;

void routes_log(void);                  /* "Available routes are:", one line a route */
void routes_dispatch(struct conn *c);   /* may free the connection */
int route_index(const struct route *r); /* n_routes for NULL */
const struct route *route_find(const char *path, size_t n);

/* access.c */
bool access_allowed(const struct conn *c); /* the API key */
SL_MUST_CHECK enum sl_status access_init(struct sl_server *s, struct sl_err *err);
void access_cors(struct conn *c); /* headers of an answer to another origin's page */
/* A browser's question before such a request; true: answered. */
bool access_preflight(struct conn *c);

/* assets.c: files that were built in */
struct asset {
    const char *bytes;
    size_t n;
};
struct asset asset_page(void);
struct asset asset_openapi(void);

#endif
