/* session.h - one fetch from the hub: what its workers share, and how long they keep trying.
 *
 * The patience: TRIES tries that get nowhere, with 1/4, 1/2, 1, 2, 4 seconds between them, or what
 * Retry-After asks for up to MAX_RETRY_AFTER_S. A try that moved a file on does not count.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HUB_SESSION_H
#define SL_HUB_SESSION_H

#include "base/sync.h"
#include "hub/cache.h"
#include "hub/transport.h"

struct session {
    const struct sl_hub_config *cfg;
    const char *repo, *revision; /* as asked for */
    char commit[HUB_COMMIT + 1]; /* once known */
    struct repo_cache cache;
    atomic_bool stop; /* any worker sets it when it fails; all look at it */
    struct mutex lock;
    struct cond changed; /* under lock: stop, or a worker's end */
};

SL_MUST_CHECK enum sl_status session_open(struct session *s, const struct sl_hub_config *cfg,
                                          const char *repo, const char *revision,
                                          struct sl_err *err);
void session_close(struct session *s);

void session_stop(struct session *s);
/* Sleeps; false: the session was stopped meanwhile. */
bool session_sleep(struct session *s, int ms);

/* ENDPOINT/api/models/REPO/revision/REV, ENDPOINT/REPO/resolve/COMMIT/FILE; the caller frees. */
char *session_listing_url(const struct session *s);
char *session_file_url(const struct session *s, const char *file);

/* A call that the session's limits and token are set in. */
struct http_call session_call(const struct session *s, const char *method, const char *url);

struct tries {
    int failed, limit;
};
/* After a try that failed: waits, and says whether another is worth it. */
bool session_again(struct session *s, struct tries *t, enum http_end end,
                   const struct http_answer *a);
/* Why the last try failed, as one sentence; `file`: NULL for the repository as a whole. `last` is
 * transport_call's own error. */
enum sl_status session_explain(const struct session *s, enum http_end end,
                               const struct http_answer *a, const struct sl_err *last,
                               const char *file, struct sl_err *err);

#endif
