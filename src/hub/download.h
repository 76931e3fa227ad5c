/* download.h - one file of a repository, from the hub into blobs/, whole or not at all.
 *
 *   1. HEAD tells its ETag and size; the ETag is its name in blobs/ and, for files that the hub
 *      itself keeps, its hash: SHA-256 (64 digits) or git's blob hash (40 digits).
 *   2. Under the blob's lock, ETAG.incomplete grows by what GET sends; what an earlier try left is
 *      hashed and asked no second time (Range), if the server answers with just that range.
 *   3. Its size and hash right, it is synced to the disk and renamed to blobs/ETAG.
 *
 * Thread: one file, one thread; `done` and `size` may be read by another.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HUB_DOWNLOAD_H
#define SL_HUB_DOWNLOAD_H

#include "hub/session.h"

struct download {
    const char *file;     /* in the repository */
    char etag[160];       /* once known; blobs/ETAG is there when download_run() succeeded */
    _Atomic int64_t size; /* -1: not known yet */
    _Atomic int64_t done; /* bytes that are there */
    _Atomic int state;    /* enum sl_hub_file_state */
};

SL_MUST_CHECK enum sl_status download_run(struct download *d, struct session *s,
                                          struct transport *t, struct sl_err *err);

/* "W/\"abc\"" -> "abc"; false: no ETag that could name a blob. */
bool etag_normalize(const char *header, char out[160]);

#endif
