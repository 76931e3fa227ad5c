/* SPDX-License-Identifier: Apache-2.0 */
#include "hub/cache.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATH_BYTES = 1 << 14, MAX_INDEX_BYTES = 16 << 20 };

/* ---- paths ------------------------------------------------------------------------------------
 */

/* "models--org--name" under `root`/`folder`. */
static char *repo_folder(const char *root, const char *folder, const char *name)
{
    struct strbuf b;
    strbuf_init(&b, MAX_PATH_BYTES);
    strbuf_addf(&b, "%s/%smodels--", root, folder);
    for (; *name; name++)
        if (*name == '/')
            strbuf_adds(&b, "--");
        else
            strbuf_addc(&b, *name);
    return strbuf_take(&b);
}

enum sl_status cache_open(struct repo_cache *c, const char *root, const char *name,
                          struct sl_err *err)
{
    c->root = mem_strdup(root);
    c->repo = repo_folder(root, "", name);
    c->locks = repo_folder(root, ".locks/", name);
    if (c->root && c->repo && c->locks)
        return SL_OK;
    cache_close(c);
    return SL_FAIL(err, SL_ENOMEM, "hub: no memory for a path");
}

void cache_close(struct repo_cache *c)
{
    mem_free(c->root);
    mem_free(c->repo);
    mem_free(c->locks);
    *c = (struct repo_cache){0};
}

static char *join(const char *a, const char *b, const char *c)
{
    struct strbuf s;
    strbuf_init(&s, MAX_PATH_BYTES);
    strbuf_addf(&s, "%s/%s", a, b);
    if (c)
        strbuf_addf(&s, "/%s", c);
    return strbuf_take(&s);
}

char *cache_path(const struct repo_cache *c, const char *a, const char *b)
{
    return join(c->repo, a, b);
}

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "hub: no memory for a path");
}

/* mkdir -p */
static enum sl_status make_path(const char *path, struct sl_err *err)
{
    char *p = mem_strdup(path);
    if (!p)
        return no_memory(err);
    for (char *at = p + 1;; at++) {
        at += strcspn(at, "/");
        char end = *at;
        *at = '\0';
        if (mkdir(p, 0777) && errno != EEXIST) {
            enum sl_status st = SL_FAIL(err, SL_EIO, "cannot make %s: %s", p, strerror(errno));
            mem_free(p);
            return st;
        }
        *at = end;
        if (!end)
            break;
    }
    mem_free(p);
    return SL_OK;
}

enum sl_status cache_make_folders(const struct repo_cache *c, const char *commit,
                                  struct sl_err *err)
{
    char *blobs = cache_path(c, "blobs", NULL), *snapshot = cache_path(c, "snapshots", commit);
    enum sl_status st = blobs && snapshot ? make_path(blobs, err) : no_memory(err);
    if (!st)
        st = make_path(snapshot, err);
    if (!st)
        st = make_path(c->locks, err);
    mem_free(blobs);
    mem_free(snapshot);
    return st;
}

/* ---- refs -------------------------------------------------------------------------------------
 */

void cache_read_ref(const struct repo_cache *c, const char *revision, char commit[HUB_COMMIT + 1])
{
    char *path, *text = NULL;
    size_t n = 0;
    commit[0] = '\0';
    if (commit_ok(revision)) {
        memcpy(commit, revision, HUB_COMMIT + 1);
        return;
    }
    if (!(path = cache_path(c, "refs", revision)))
        return;
    if (file_read(path, 4096, &text, &n, NULL) == SL_OK && text) {
        text[strcspn(text, "\r\n \t")] = '\0';
        if (commit_ok(text))
            memcpy(commit, text, HUB_COMMIT + 1);
    }
    mem_free(text);
    mem_free(path);
}

static enum sl_status write_text(const char *path, const char *text, struct sl_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    size_t n = strlen(text);
    bool ok = fd >= 0 && write(fd, text, n) == (ssize_t)n;
    int why = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        why = errno;
        ok = false;
    }
    return ok ? SL_OK : SL_FAIL(err, SL_EIO, "cannot write %s: %s", path, strerror(why));
}

enum sl_status cache_write_ref(const struct repo_cache *c, const char *revision, const char *commit,
                               struct sl_err *err)
{
    char now[HUB_COMMIT + 1], suffix[32];
    if (commit_ok(revision))
        return SL_OK;
    cache_read_ref(c, revision, now);
    if (!strcmp(now, commit))
        return SL_OK; /* the cache may be read-only */
    char *path = cache_path(c, "refs", revision);
    char *folder = path ? mem_strndup(path, (size_t)(strrchr(path, '/') - path)) : NULL;
    snprintf(suffix, sizeof suffix, ".%ld.tmp", (long)getpid());
    struct strbuf temp;
    strbuf_init(&temp, MAX_PATH_BYTES);
    strbuf_addf(&temp, "%s%s", path ? path : "", suffix);
    enum sl_status st = path && folder && !temp.failed ? make_path(folder, err) : no_memory(err);
    if (!st)
        st = write_text(temp.data, commit, err);
    if (!st && rename(temp.data, path) != 0)
        st = SL_FAIL(err, SL_EIO, "cannot write %s: %s", path, strerror(errno));
    strbuf_fini(&temp);
    mem_free(folder);
    mem_free(path);
    return st;
}

/* ---- snapshots ---------------------------------------------------------------------------------
 */

static char *in_snapshot(const struct repo_cache *c, const char *commit, const char *name)
{
    char *snapshot = cache_path(c, "snapshots", commit);
    char *path = snapshot ? join(snapshot, name, NULL) : NULL;
    mem_free(snapshot);
    return path;
}

bool cache_has_file(const struct repo_cache *c, const char *commit, const char *name)
{
    struct stat info;
    char *path = in_snapshot(c, commit, name);
    bool has = path && stat(path, &info) == 0 && S_ISREG(info.st_mode);
    mem_free(path);
    return has;
}

enum sl_status cache_index_shards(const struct repo_cache *c, const char *commit, const char *index,
                                  enum sl_status (*add)(void *ctx, const char *shard,
                                                        struct sl_err *err),
                                  void *ctx, struct sl_err *err)
{
    char *text = NULL, *path = in_snapshot(c, commit, index);
    size_t n = 0;
    enum sl_status st = path ? file_read(path, MAX_INDEX_BYTES, &text, &n, err) : no_memory(err);
    if (!st && !text)
        st = SL_FAIL(err, SL_ENOTFOUND, "%s is not there", path);
    if (!st)
        st = index_shards(index, text, n, add, ctx, err);
    mem_free(text);
    mem_free(path);
    return st;
}

struct snapshot {
    const struct repo_cache *c;
    const char *commit;
};

static bool snapshot_has(const void *ctx, const char *name)
{
    const struct snapshot *s = ctx;
    return cache_has_file(s->c, s->commit, name);
}

static enum sl_status need_shard(void *ctx, const char *shard, struct sl_err *err)
{
    return snapshot_has(ctx, shard) ? SL_OK : SL_FAIL(err, SL_ENOTFOUND, "no %s", shard);
}

bool cache_is_whole(const struct repo_cache *c, const char *commit, bool weights)
{
    struct snapshot s = {c, commit};
    const char *file;
    if (!weights)
        return cache_has_file(c, commit, "config.json") ||
               cache_has_file(c, commit, "tokenizer.json") ||
               cache_has_file(c, commit, "tokenizer_config.json");
    if (!cache_has_file(c, commit, "config.json"))
        return false;
    switch (weights_choose(snapshot_has, &s, &file)) {
    case WEIGHTS_SINGLE:
        return true;
    case WEIGHTS_INDEXED:
        return cache_index_shards(c, commit, file, need_shard, &s, NULL) == SL_OK;
    case WEIGHTS_NONE:
        break;
    }
    return false;
}

/* ---- links ------------------------------------------------------------------------------------
 */

/* Opens the folder of `name` below fd, making what is missing; links on the way are not followed.
 * Takes fd. */
static int open_folder_of(int fd, const char *name, int *depth)
{
    char part[256];
    for (*depth = 0; fd >= 0 && strchr(name, '/'); ++*depth) {
        size_t n = strcspn(name, "/");
        memcpy(part, name, n); /* file_name_ok(): at most 255 bytes */
        part[n] = '\0';
        name += n + 1;
        int next = -1;
        if (mkdirat(fd, part, 0777) == 0 || errno == EEXIST)
            next = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int why = errno;
        close(fd);
        errno = why;
        fd = next;
    }
    return fd;
}

static bool link_at(int fd, const char *base, const char *target)
{
    char temp[64], now[512];
    ssize_t n = readlinkat(fd, base, now, sizeof now);
    if (n > 0 && (size_t)n == strlen(target) && !memcmp(now, target, (size_t)n))
        return true;
    snprintf(temp, sizeof temp, ".link.%ld", (long)getpid());
    unlinkat(fd, temp, 0);
    if (symlinkat(target, fd, temp) != 0)
        return false;
    if (renameat(fd, temp, fd, base) == 0)
        return true;
    int why = errno;
    unlinkat(fd, temp, 0);
    errno = why;
    return false;
}

enum sl_status cache_link(const struct repo_cache *c, const char *commit, const char *name,
                          const char *etag, struct sl_err *err)
{
    int depth = 0;
    char *snapshot = cache_path(c, "snapshots", commit);
    struct strbuf target;
    strbuf_init(&target, 4096);
    int fd = snapshot ? open(snapshot, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    fd = open_folder_of(fd, name, &depth);
    for (int i = 0; i < depth + 2; i++)
        strbuf_adds(&target, "../");
    strbuf_addf(&target, "blobs/%s", etag);
    const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    enum sl_status st = SL_OK;
    if (!snapshot || target.failed)
        st = no_memory(err);
    else if (fd < 0 || !link_at(fd, base, target.data))
        st =
            SL_FAIL(err, SL_EIO, "cannot make the link %s/%s: %s", snapshot, name, strerror(errno));
    if (fd >= 0)
        close(fd);
    strbuf_fini(&target);
    mem_free(snapshot);
    return st;
}

/* ---- locks ------------------------------------------------------------------------------------
 */

/* filelock leaves the file in place; should one have been deleted between open and flock, the lock
 * guards nothing and is taken anew. */
enum sl_status cache_try_lock(const struct repo_cache *c, const char *etag, int *fd,
                              struct sl_err *err)
{
    struct strbuf path;
    struct stat info;
    strbuf_init(&path, MAX_PATH_BYTES);
    strbuf_addf(&path, "%s/%s.lock", c->locks, etag);
    if (path.failed)
        return no_memory(err);
    int got = open(path.data, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0664);
    enum sl_status st = SL_OK;
    if (got < 0)
        st = SL_FAIL(err, SL_EIO, "cannot make %s: %s", path.data, strerror(errno));
    else if (flock(got, LOCK_EX | LOCK_NB) != 0)
        st = errno == EWOULDBLOCK || errno == EINTR || errno == EACCES
                 ? SL_EAGAIN
                 : SL_FAIL(err, SL_EIO, "cannot lock %s: %s", path.data, strerror(errno));
    else if (fstat(got, &info) != 0 || info.st_nlink == 0)
        st = SL_EAGAIN;
    if (st && got >= 0)
        close(got);
    if (!st)
        *fd = got;
    strbuf_fini(&path);
    return st;
}
