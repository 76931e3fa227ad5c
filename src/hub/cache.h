/* cache.h - the folder that huggingface_hub keeps models in; shared with it, both ways.
 *
 *     CACHE/models--org--name/refs/main                   holds a commit
 *                             snapshots/COMMIT/config.json -> ../../blobs/ETAG
 *                             blobs/ETAG, blobs/ETAG.incomplete
 *     CACHE/.locks/models--org--name/ETAG.lock            flock(2), as filelock takes it
 *
 * A blob gets its name only when it is whole; a snapshot's links are made when all of its blobs
 * are there. Folders below a snapshot are opened one by one without following links, so nothing is
 * written elsewhere.   Thread: any; two processes meet in the locks and in rename(2).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HUB_CACHE_H
#define SL_HUB_CACHE_H

#include "base/status.h"
#include "hub/names.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct repo_cache {
    char *root;  /* CACHE */
    char *repo;  /* CACHE/models--org--name */
    char *locks; /* CACHE/.locks/models--org--name */
};

SL_MUST_CHECK enum sl_status cache_open(struct repo_cache *c, const char *root, const char *name,
                                        struct sl_err *err);
void cache_close(struct repo_cache *c);

/* CACHE/models--org--name/WHAT, or with two parts; the caller frees it, NULL: no memory. */
char *cache_path(const struct repo_cache *c, const char *a, const char *b);

/* The commit of a ref, "" when there is none (or the revision is a commit itself: then that). */
void cache_read_ref(const struct repo_cache *c, const char *revision, char commit[HUB_COMMIT + 1]);
SL_MUST_CHECK enum sl_status cache_write_ref(const struct repo_cache *c, const char *revision,
                                             const char *commit, struct sl_err *err);

/* Whether snapshots/COMMIT/NAME leads to a file. */
bool cache_has_file(const struct repo_cache *c, const char *commit, const char *name);
/* Whether the snapshot holds a model: config.json or a tokenizer, and with `weights` all shards. */
bool cache_is_whole(const struct repo_cache *c, const char *commit, bool weights);
/* The shards that a cached index names; see index_shards(). */
SL_MUST_CHECK enum sl_status
cache_index_shards(const struct repo_cache *c, const char *commit, const char *index,
                   enum sl_status (*add)(void *ctx, const char *shard, struct sl_err *err),
                   void *ctx, struct sl_err *err);

/* snapshots/COMMIT/NAME -> blobs/ETAG, whatever was there before. */
SL_MUST_CHECK enum sl_status cache_link(const struct repo_cache *c, const char *commit,
                                        const char *name, const char *etag, struct sl_err *err);

/* blobs/, snapshots/COMMIT and the locks' folder. */
SL_MUST_CHECK enum sl_status cache_make_folders(const struct repo_cache *c, const char *commit,
                                                struct sl_err *err);

/* The lock on one blob, without waiting: SL_EAGAIN when another has it. Close *fd to give it back.
 */
SL_MUST_CHECK enum sl_status cache_try_lock(const struct repo_cache *c, const char *etag, int *fd,
                                            struct sl_err *err);

#endif
