/* What the cache holds, and taking it out again.
 *
 * All walking is by descriptor and follows no link, so nothing outside the cache is ever removed; a
 * link is counted with what it points to, and removed as a link.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/strbuf.h"
#include "hub/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_DEPTH = 16, MAX_ENTRIES = 100000, MAX_REFS_BYTES = 4096 };

/* ---- walking ----------------------------------------------------------------------------------
 */

static int open_folder(int at, const char *name)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Calls each() for every entry of the folder fd, which it takes; a failure ends the walk. */
typedef enum sl_status (*entry_fn)(void *ctx, int fd, const char *name, bool is_folder,
                                   struct sl_err *err);

static enum sl_status for_entries(int fd, entry_fn each, void *ctx, struct sl_err *err)
{
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *e;
    enum sl_status st = SL_OK;
    if (!d) {
        if (fd >= 0)
            close(fd);
        return SL_OK; /* not there: nothing in it */
    }
    while (!st && (e = readdir(d))) {
        struct stat info;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
            fstatat(dirfd(d), e->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        st = each(ctx, dirfd(d), e->d_name, S_ISDIR(info.st_mode), err);
    }
    closedir(d);
    return st;
}

/* Every file below a folder, with its path from there. */
struct walk {
    enum sl_status (*file)(void *ctx, int fd, const char *name, const char *path,
                           struct sl_err *err);
    void *ctx;
    struct strbuf path;
    int depth;
};

static enum sl_status walk_entry(void *ctx, int fd, const char *name, bool is_folder,
                                 struct sl_err *err)
{
    struct walk *w = ctx;
    size_t len = w->path.len;
    enum sl_status st = SL_OK;
    strbuf_addf(&w->path, "%s%s", len ? "/" : "", name);
    if (w->path.failed)
        return SL_FAIL(err, SL_ENOMEM, "hub: a path in the cache is too long");
    if (!is_folder) {
        st = w->file(w->ctx, fd, name, w->path.data, err);
    } else if (w->depth < MAX_DEPTH) {
        w->depth++;
        st = for_entries(open_folder(fd, name), walk_entry, w, err);
        w->depth--;
    }
    w->path.len = len;
    w->path.data[len] = '\0';
    return st;
}

static enum sl_status walk(int fd,
                           enum sl_status (*file)(void *ctx, int fd, const char *name,
                                                  const char *path, struct sl_err *err),
                           void *ctx, struct sl_err *err)
{
    struct walk w = {.file = file, .ctx = ctx};
    strbuf_init(&w.path, 1 << 14);
    enum sl_status st = for_entries(fd, walk_entry, &w, err);
    strbuf_fini(&w.path);
    return st;
}

/* ---- the table --------------------------------------------------------------------------------
 */

struct inventory {
    const char *root;
    struct sl_hub_entry *list;
    size_t n, cap;
    /* of the model under way */
    char *name;
    int repo; /* its folder */
    struct sl_hub_entry *at;
    dev_t *dev; /* the blobs of the revision under way: each counts once */
    ino_t *ino;
    size_t n_seen, cap_seen;
};

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "hub: no memory to list the cache");
}

static bool seen(struct inventory *v, const struct stat *info)
{
    for (size_t i = 0; i < v->n_seen; i++)
        if (v->ino[i] == info->st_ino && v->dev[i] == info->st_dev)
            return true;
    if (v->n_seen == v->cap_seen) {
        size_t cap = v->cap_seen ? 2 * v->cap_seen : 64;
        dev_t *dev = mem_realloc(v->dev, cap, sizeof *dev);
        if (dev)
            v->dev = dev;
        ino_t *ino = mem_realloc(v->ino, cap, sizeof *ino);
        if (ino)
            v->ino = ino;
        if (!dev || !ino)
            return false;
        v->cap_seen = cap;
    }
    v->dev[v->n_seen] = info->st_dev;
    v->ino[v->n_seen++] = info->st_ino;
    return false;
}

static enum sl_status count_file(void *ctx, int fd, const char *name, const char *path,
                                 struct sl_err *err)
{
    struct inventory *v = ctx;
    struct stat info;
    (void)path, (void)err;
    if (fstatat(fd, name, &info, 0) != 0 || !S_ISREG(info.st_mode))
        return SL_OK; /* a link whose blob is gone */
    v->at->n_files++;
    if (info.st_atime > v->at->last_used_s)
        v->at->last_used_s = info.st_atime;
    if (!seen(v, &info))
        v->at->bytes += info.st_size;
    return SL_OK;
}

static enum sl_status collect_ref(void *ctx, int fd, const char *name, const char *path,
                                  struct sl_err *err)
{
    struct inventory *v = ctx;
    char text[64] = "", *refs = v->at->refs;
    int file = openat(fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    ssize_t n = file >= 0 ? read(file, text, sizeof text - 1) : -1;
    if (file >= 0)
        close(file);
    if (n < HUB_COMMIT || strncmp(text, v->at->commit, HUB_COMMIT) != 0)
        return SL_OK;
    struct strbuf b;
    strbuf_init(&b, MAX_REFS_BYTES);
    strbuf_addf(&b, "%s%s%s", refs, *refs ? ", " : "", path);
    char *more = strbuf_take(&b);
    if (!more)
        return no_memory(err);
    mem_free(refs);
    v->at->refs = more;
    return SL_OK;
}

/* A new row for a revision, or for what has none. */
static enum sl_status add_row(struct inventory *v, const char *commit, struct sl_err *err)
{
    if (v->n == MAX_ENTRIES)
        return SL_FAIL(err, SL_EFORMAT, "hub: more than %d revisions in the cache", MAX_ENTRIES);
    if (v->n == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 16;
        struct sl_hub_entry *list = mem_realloc(v->list, cap, sizeof *list);
        if (!list)
            return no_memory(err);
        v->list = list;
        v->cap = cap;
    }
    struct repo_cache c;
    enum sl_status st = cache_open(&c, v->root, v->name, err);
    if (st)
        return st;
    struct sl_hub_entry *e = &v->list[v->n++];
    *e = (struct sl_hub_entry){.name = mem_strdup(v->name),
                               .commit = mem_strdup(commit),
                               .refs = mem_strdup(""),
                               .path = *commit ? cache_path(&c, "snapshots", commit)
                                               : mem_strdup(c.repo)};
    cache_close(&c);
    v->at = e;
    v->n_seen = 0;
    return e->name && e->commit && e->refs && e->path ? SL_OK : no_memory(err);
}

static enum sl_status list_revision(void *ctx, int fd, const char *name, bool is_folder,
                                    struct sl_err *err)
{
    struct inventory *v = ctx;
    if (!is_folder)
        return SL_OK;
    enum sl_status st = add_row(v, name, err);
    if (!st)
        st = walk(open_folder(fd, name), count_file, v, err);
    if (!st)
        st = walk(open_folder(v->repo, "refs"), collect_ref, v, err);
    return st;
}

/* "models--org--name" -> "org/name"; NULL: something else. */
static char *name_of_folder(const char *folder)
{
    if (strncmp(folder, "models--", 8) != 0)
        return NULL;
    struct strbuf b;
    strbuf_init(&b, 1024);
    for (const char *p = folder + 8; *p; p++)
        if (p[0] == '-' && p[1] == '-') {
            strbuf_addc(&b, '/');
            p++;
        } else {
            strbuf_addc(&b, *p);
        }
    char *name = strbuf_take(&b);
    if (name && !repo_name_ok(name)) {
        mem_free(name);
        name = NULL;
    }
    return name;
}

static enum sl_status list_repo(void *ctx, int fd, const char *folder, bool is_folder,
                                struct sl_err *err)
{
    struct inventory *v = ctx;
    (void)is_folder; /* a link to a folder on another disk is a model too */
    size_t before = v->n;
    if (!(v->name = name_of_folder(folder)))
        return SL_OK;
    v->repo = openat(fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum sl_status st = SL_OK;
    if (v->repo >= 0)
        st = for_entries(open_folder(v->repo, "snapshots"), list_revision, v, err);
    if (!st && v->repo >= 0 && v->n == before) {
        st = add_row(v, "", err);
        if (!st)
            st = walk(open_folder(v->repo, "blobs"), count_file, v, err);
    }
    if (v->repo >= 0)
        close(v->repo);
    mem_free(v->name);
    return st;
}

static int by_name(const void *a, const void *b)
{
    const struct sl_hub_entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : strcmp(x->commit, y->commit);
}

enum sl_status sl_hub_list(const struct sl_hub_config *cfg, struct sl_hub_entry **list, size_t *n,
                           struct sl_err *err)
{
    struct inventory v = {.root = cfg->cache_dir};
    if (!cfg->cache_dir || !*cfg->cache_dir)
        return SL_FAIL(err, SL_EINVAL, "no cache: set HOME, HF_HOME or --download-dir");
    int fd = open(cfg->cache_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno != ENOENT)
        return SL_FAIL(err, SL_EIO, "%s: %s", cfg->cache_dir, strerror(errno));
    enum sl_status st = for_entries(fd, list_repo, &v, err);
    mem_free(v.dev);
    mem_free(v.ino);
    if (st) {
        sl_hub_list_free(v.list, v.n);
        return st;
    }
    if (v.n)
        qsort(v.list, v.n, sizeof *v.list, by_name);
    *list = v.list;
    *n = v.n;
    return SL_OK;
}

void sl_hub_list_free(struct sl_hub_entry *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        mem_free(list[i].name);
        mem_free(list[i].commit);
        mem_free(list[i].refs);
        mem_free(list[i].path);
    }
    mem_free(list);
}

/* ---- removing ---------------------------------------------------------------------------------
 */

struct removal {
    int64_t bytes;
    int depth;
    const char *commit; /* refs to it go too */
    json_t *used;       /* a set of names in blobs/: what note_blob() adds to */
};

static enum sl_status cannot(const char *name, struct sl_err *err)
{
    return SL_FAIL(err, SL_EIO, "cannot remove %.200s: %s", name, strerror(errno));
}

static enum sl_status remove_one(struct removal *r, int fd, const char *name, struct sl_err *err)
{
    struct stat info;
    bool counts = fstatat(fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(info.st_mode);
    if (unlinkat(fd, name, 0) != 0)
        return errno == ENOENT ? SL_OK : cannot(name, err);
    if (counts && info.st_nlink <= 1)
        r->bytes += info.st_size;
    return SL_OK;
}

static enum sl_status remove_tree(void *ctx, int fd, const char *name, bool is_folder,
                                  struct sl_err *err)
{
    struct removal *r = ctx;
    if (!is_folder)
        return remove_one(r, fd, name, err);
    if (r->depth == 2 * MAX_DEPTH)
        return SL_FAIL(err, SL_EIO, "cannot remove %.200s: folders within folders", name);
    r->depth++;
    enum sl_status st = for_entries(open_folder(fd, name), remove_tree, r, err);
    r->depth--;
    if (!st && unlinkat(fd, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        st = cannot(name, err);
    return st;
}

/* A lock that somebody holds: a download is under way. */
static enum sl_status refuse_if_locked(void *ctx, int fd, const char *name, bool is_folder,
                                       struct sl_err *err)
{
    const char *repo = ctx;
    int lock = is_folder ? -1 : openat(fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (lock < 0)
        return SL_OK;
    bool taken = flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(lock);
    return taken ? SL_FAIL(err, SL_EIO, "%s is being fetched right now", repo) : SL_OK;
}

/* The name in blobs/ that a snapshot's file leads to, or "". */
static const char *blob_of(int fd, const char *name, char target[1024])
{
    ssize_t n = readlinkat(fd, name, target, 1023);
    if (n <= 0)
        return "";
    target[n] = '\0';
    const char *slash = strrchr(target, '/');
    return slash ? slash + 1 : "";
}

static enum sl_status note_blob(void *ctx, int fd, const char *name, const char *path,
                                struct sl_err *err)
{
    struct removal *r = ctx;
    char target[1024];
    const char *blob = blob_of(fd, name, target);
    (void)path;
    return json_object_set_new(r->used, blob, json_true()) == 0 ? SL_OK : no_memory(err);
}

static enum sl_status note_others(void *ctx, int fd, const char *name, bool is_folder,
                                  struct sl_err *err)
{
    struct removal *r = ctx;
    if (!is_folder || !strcmp(name, r->commit))
        return SL_OK;
    return walk(open_folder(fd, name), note_blob, r, err);
}

static enum sl_status remove_ref(void *ctx, int fd, const char *name, const char *path,
                                 struct sl_err *err)
{
    const struct removal *r = ctx;
    char text[64] = "";
    (void)path;
    int file = openat(fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    ssize_t n = file >= 0 ? read(file, text, sizeof text - 1) : -1;
    if (file >= 0)
        close(file);
    if (n >= HUB_COMMIT && !strncmp(text, r->commit, HUB_COMMIT) && unlinkat(fd, name, 0) != 0)
        return cannot(name, err);
    return SL_OK;
}

/* Blobs that this revision uses and no other does. */
static enum sl_status remove_blobs(struct removal *r, int repo, const json_t *mine,
                                   const json_t *others, struct sl_err *err)
{
    const char *blob;
    json_t *yes;
    int fd = open_folder(repo, "blobs");
    enum sl_status st = SL_OK;
    json_object_foreach((json_t *)mine, blob, yes)
    {
        if (!st && fd >= 0 && etag_ok(blob) && !json_object_get(others, blob))
            st = remove_one(r, fd, blob, err);
    }
    if (fd >= 0)
        close(fd);
    return st;
}

static enum sl_status remove_revision(struct removal *r, int repo, struct sl_err *err)
{
    json_t *mine = json_object(), *others = json_object();
    int snapshots = open_folder(repo, "snapshots");
    enum sl_status st = mine && others ? SL_OK : no_memory(err);
    r->used = mine;
    if (!st)
        st = walk(open_folder(snapshots, r->commit), note_blob, r, err);
    r->used = others;
    if (!st)
        st = for_entries(open_folder(repo, "snapshots"), note_others, r, err);
    if (!st)
        st = walk(open_folder(repo, "refs"), remove_ref, r, err);
    if (!st)
        st = remove_tree(r, snapshots, r->commit, true, err);
    if (!st)
        st = remove_blobs(r, repo, mine, others, err);
    if (snapshots >= 0)
        close(snapshots);
    json_decref(mine);
    json_decref(others);
    return st;
}

static bool has_revision(int repo, const char *commit)
{
    int snapshots = open_folder(repo, "snapshots");
    int one = snapshots >= 0 && *commit ? open_folder(snapshots, commit) : -1;
    if (snapshots >= 0)
        close(snapshots);
    if (one >= 0)
        close(one);
    return one >= 0;
}

static enum sl_status remove_model(const struct repo_cache *c, struct removal *r, const char *name,
                                   const char *revision, struct sl_err *err)
{
    char commit[HUB_COMMIT + 1];
    struct stat info;
    int root = open(c->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const char *folder = strrchr(c->repo, '/') + 1;
    int repo = root >= 0 ? open_folder(root, folder) : -1;
    int locks = root >= 0 ? open_folder(root, ".locks") : -1;
    enum sl_status st = SL_OK;
    cache_read_ref(c, revision ? revision : "main", commit);
    r->commit = commit;
    if (root >= 0 && repo < 0 && fstatat(root, folder, &info, AT_SYMLINK_NOFOLLOW) == 0)
        st = SL_FAIL(err, SL_EINVAL, "%s is a link, not a folder of the cache; remove it yourself",
                     c->repo);
    else if (repo < 0)
        st = SL_FAIL(err, SL_ENOTFOUND, "%s is not in %s", name, c->root);
    else if (revision && !has_revision(repo, commit))
        st = SL_FAIL(err, SL_ENOTFOUND, "%s has no revision '%.100s' in %s", name, revision,
                     c->root);
    if (!st)
        st = for_entries(locks >= 0 ? open_folder(locks, folder) : -1, refuse_if_locked,
                         (void *)name, err);
    if (!st && revision)
        st = remove_revision(r, repo, err);
    /* with its last revision, or when all was asked for, the model goes */
    bool all = !revision || (!st && unlinkat(repo, "snapshots", AT_REMOVEDIR) == 0);
    if (!st && all)
        st = remove_tree(r, root, folder, true, err);
    if (!st && all && locks >= 0)
        st = remove_tree(r, locks, folder, true, err);
    const int fds[] = {root, repo, locks};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return st;
}

enum sl_status sl_hub_remove(const struct sl_hub_config *cfg, const char *name,
                             const char *revision, int64_t *bytes, struct sl_err *err)
{
    struct removal r = {0};
    struct repo_cache c;
    if (!sl_hub_is_name(name))
        return SL_FAIL(err, SL_EINVAL, "'%.200s' is not a model's name, such as org/name", name);
    if (revision && !revision_ok(revision))
        return SL_FAIL(err, SL_EINVAL, "%s: '%.200s' is not a revision's name", name, revision);
    if (!cfg->cache_dir || !*cfg->cache_dir)
        return SL_FAIL(err, SL_EINVAL, "no cache: set HOME, HF_HOME or --download-dir");
    enum sl_status st = cache_open(&c, cfg->cache_dir, name, err);
    if (!st)
        st = remove_model(&c, &r, name, revision, err);
    if (!st)
        *bytes = r.bytes;
    cache_close(&c);
    return st;
}
