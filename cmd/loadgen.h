/* loadgen.h - an HTTP client that sends many streaming requests and times what comes back.
 *
 * One event loop, one thread (libevent does HTTP). Each request has a connection of its own, as
 * vLLM's benchmark does it. Times are seconds after the run began.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_LOADGEN_H
#define CMD_LOADGEN_H

#include "bench_stats.h"

#include <signal.h>
#include <stdbool.h>

struct load_request {
    /* set by the caller */
    const char *body; /* JSON, borrowed */
    const char *id;   /* X-Request-Id, or NULL */
    double due_s;     /* when to send it */
    int n_prompt_tokens;
    bool keep_text;
    bool probe; /* no part of max_concurrency */

    /* the result */
    bool finished, success;
    int status;
    double start_s, ttft_s, latency_s; /* latency: to the last chunk with choices */
    int n_chunks, n_output_tokens;     /* tokens as usage says, else chunks */
    struct samples itl_s;
    struct samples chunk_at_s; /* when each chunk with choices came */
    char *text, *error;
};

struct load_target {
    const char *host;
    int port;
    bool tls;
    const char *path; /* of the endpoint */
    const char *bearer;
    const char *const *headers; /* "Name=value" */
    int n_headers;
    double timeout_s;
};

struct load_run {
    const struct load_target *target;
    struct load_request *requests; /* in order of due_s */
    int n;
    struct load_request *probes; /* sent beside them; those still running at the end are dropped */
    int n_probes;
    int max_concurrency;               /* 0: no limit */
    const volatile sig_atomic_t *stop; /* may be NULL */
    void (*tick)(void *ctx, int n_done, double elapsed_s, long long tokens);
    void *ctx;
    double elapsed_s; /* the result: until the last one ended */
};

/* False: the loop itself could not be made. Single failures are in the requests. */
bool load_execute(struct load_run *run);
/* GET: the body, or NULL; the caller frees it. */
char *load_get(const struct load_target *target, const char *path, int *status);
void load_request_fini(struct load_request *r);
/* "http://host:port/prefix" into its parts; false when it is not one. Strings are allocated. */
bool load_parse_url(const char *url, struct load_target *t, char **prefix);

#endif
