/* names.h - what a hub may call things, and which of a repository's files a model needs.
 *
 * Every name that comes from the hub or from a file that it sent passes through here before it
 * becomes a path or a URL.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HUB_NAMES_H
#define SL_HUB_NAMES_H

#include "base/status.h"
#include "base/strbuf.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { HUB_COMMIT = 40, HUB_MAX_LISTED = 20000, HUB_MAX_SHARDS = 4096 };

bool repo_name_ok(const char *s); /* "org/name" or "name" */
bool revision_ok(const char *s);  /* a branch, a tag, a commit, "refs/pr/1": a safe path in refs/ */
bool commit_ok(const char *s);    /* 40 lower-case hex digits */
bool etag_ok(const char *s);      /* a plain file name for blobs/ */
/* A path below the snapshot's folder: relative, no . or .. or empty part, no backslash, no control
 * characters. */
bool file_name_ok(const char *s);

/* "main" -> "main", "refs/pr/1" -> "refs%2Fpr%2F1"; `keep_slash` for the paths of files. */
void url_quote(struct strbuf *b, const char *s, bool keep_slash);

/* What the hub says a revision is. */
struct listing {
    char commit[HUB_COMMIT + 1];
    char **name; /* [n] every file, safe; the listing's own */
    size_t n;
};

/* The body of /api/models/ORG/NAME/revision/REV. */
SL_MUST_CHECK enum sl_status listing_parse(struct listing *l, const char *body, size_t bytes,
                                           const char *repo, struct sl_err *err);
void listing_fini(struct listing *l);
bool listing_has(const struct listing *l, const char *name);

/* Files that a model is made of, besides its weights: configuration, tokenizer, chat templates.
 * Other vocabularies are read only where tokenizer.json is missing. */
bool file_is_text(const char *name, bool has_tokenizer_json);

enum weights_kind {
    WEIGHTS_NONE,    /* nothing that is read here */
    WEIGHTS_SINGLE,  /* one file: `file` */
    WEIGHTS_INDEXED, /* `file` is an index that names the shards */
};
/* Which weights to take: safetensors before pytorch_model, one file before an index, as the reader
 * chooses. `has` answers for a listing or for a folder. */
enum weights_kind weights_choose(bool (*has)(const void *ctx, const char *name), const void *ctx,
                                 const char **file);
/* Calls add() with each distinct shard that an index names; names that leave the folder are refused
 * by name. */
SL_MUST_CHECK enum sl_status index_shards(const char *file, const char *text, size_t bytes,
                                          enum sl_status (*add)(void *ctx, const char *shard,
                                                                struct sl_err *err),
                                          void *ctx, struct sl_err *err);
/* One sentence's end about a repository without weights: what it has instead, or "". */
const char *weights_instead(const struct listing *l);

#endif
