/* SPDX-License-Identifier: Apache-2.0 */
#include "hub/download.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/strbuf.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    TRIES = 6,
    PROGRESS_BYTES = 1 << 20, /* a try that moved on by so much does not count as one */
    READ_BYTES = 256 << 10,
    LOCK_POLL_MS = 100,
    META_S = 60 /* for a HEAD, all in all */
};

/* Why a piece of a body was not taken. */
enum refusal {
    TAKEN,
    WRONG_RANGE, /* the server sent other bytes than those asked for */
    TOO_LONG,
    NOT_WRITTEN /* see `why` */
};

struct blob {
    struct download *d;
    struct session *s;
    int fd;
    EVP_MD_CTX *hash; /* NULL: the ETag is no hash that is known */
    int64_t size, have;
    int64_t most; /* that there ever was: what comes again after a new start is no progress */
    bool resumed; /* some bytes are from an earlier try */
    bool began;   /* of this call: the first piece was seen */
    enum refusal refusal;
    int why; /* errno */
};

/* ---- what the hub says about a file -----------------------------------------------------------
 */

bool etag_normalize(const char *header, char out[160])
{
    if (!strncmp(header, "W/", 2))
        header += 2;
    if (*header == '"')
        header++;
    size_t n = strcspn(header, "\"");
    if (n >= 160)
        return false;
    memcpy(out, header, n);
    out[n] = '\0';
    return etag_ok(out);
}

static enum sl_status read_metadata(struct download *d, const struct session *s,
                                    const struct http_answer *a, struct sl_err *err)
{
    int64_t size = a->linked_size >= 0    ? a->linked_size
                   : a->status / 100 == 2 ? a->content_length
                                          : -1;
    if (a->commit[0] && strcmp(a->commit, s->commit) != 0)
        return SL_FAIL(err, SL_EFORMAT, "%s: %.200s: %s answers with another commit than %s",
                       s->repo, d->file, a->host, s->commit);
    if (!etag_normalize(a->linked_etag[0] ? a->linked_etag : a->etag, d->etag))
        return SL_FAIL(err, SL_EFORMAT, "%s: %.200s: %s sends no usable ETag", s->repo, d->file,
                       a->host);
    if (size < 0)
        return SL_FAIL(err, SL_EFORMAT, "%s: %.200s: %s does not say how large it is", s->repo,
                       d->file, a->host);
    atomic_store(&d->size, size);
    return SL_OK;
}

static enum sl_status get_metadata(struct download *d, struct session *s, struct transport *t,
                                   struct sl_err *err)
{
    struct tries tries = {.limit = TRIES};
    struct http_answer *a = mem_zalloc(1, sizeof *a);
    char *url = session_file_url(s, d->file);
    enum sl_status st = SL_OK;
    if (!a || !url)
        st = SL_FAIL(err, SL_ENOMEM, "hub: no memory for a request");
    while (!st) {
        struct sl_err last;
        struct http_call call = session_call(s, "HEAD", url);
        call.stop_off_origin = true;
        call.total_s = META_S;
        enum http_end end = transport_call(t, &call, a, &last);
        bool good =
            end == HTTP_ANSWERED && (a->status == 200 || (a->status / 100 == 3 && a->location[0]));
        if (good) {
            st = read_metadata(d, s, a, err);
            break;
        }
        if (!session_again(s, &tries, end, a))
            st = session_explain(s, end, a, &last, d->file, err);
    }
    mem_free(url);
    mem_free(a);
    return st;
}

/* ---- the hash ---------------------------------------------------------------------------------
 */

static bool is_hex(const char *s, size_t n)
{
    return strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

/* From the beginning: for a git blob that is its header. */
static bool hash_begin(struct blob *b)
{
    char header[40];
    bool git = is_hex(b->d->etag, 40);
    if (!git && !is_hex(b->d->etag, 64))
        return true;
    if (!b->hash && !(b->hash = EVP_MD_CTX_new()))
        return false;
    if (EVP_DigestInit_ex(b->hash, git ? EVP_sha1() : EVP_sha256(), NULL) != 1)
        return false;
    int n = snprintf(header, sizeof header, "blob %lld", (long long)b->size);
    return !git || EVP_DigestUpdate(b->hash, header, (size_t)n + 1) == 1;
}

static bool hash_add(struct blob *b, const void *data, size_t n)
{
    return !b->hash || EVP_DigestUpdate(b->hash, data, n) == 1;
}

static bool hash_is_right(struct blob *b)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
    unsigned n = 0;
    if (!b->hash)
        return true;
    if (EVP_DigestFinal_ex(b->hash, sum, &n) != 1)
        return false;
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    return !strcmp(hex, b->d->etag);
}

/* ---- the partial file -------------------------------------------------------------------------
 */

static enum sl_status write_failed(const struct blob *b, int why, struct sl_err *err)
{
    const struct session *s = b->s;
    if (why == ENOSPC || why == EDQUOT || why == EFBIG)
        return SL_FAIL(err, SL_EIO,
                       "%s: no room in %s for %.200s (%lld bytes; %lld of them are kept as "
                       ".incomplete for the next try)",
                       s->repo, s->cache.root, b->d->file, (long long)b->size, (long long)b->have);
    return SL_FAIL(err, SL_EIO, "%s: cannot write %.200s in %s: %s", s->repo, b->d->file,
                   s->cache.root, strerror(why));
}

static enum sl_status restart(struct blob *b, struct sl_err *err)
{
    b->have = 0;
    b->resumed = false;
    atomic_store(&b->d->done, 0);
    if (ftruncate(b->fd, 0) != 0)
        return write_failed(b, errno, err);
    return hash_begin(b) ? SL_OK : SL_FAIL(err, SL_ENOMEM, "hub: no memory for a hash");
}

/* Hashes what an earlier try left; more than the file has, or what cannot be read, is dropped. */
static enum sl_status take_partial(struct blob *b, struct sl_err *err)
{
    struct stat info;
    enum sl_status st =
        hash_begin(b) ? SL_OK : SL_FAIL(err, SL_ENOMEM, "hub: no memory for a hash");
    if (st || fstat(b->fd, &info) != 0 || info.st_size > b->size)
        return st ? st : restart(b, err);
    char *piece = mem_alloc(READ_BYTES, 1);
    if (!piece)
        return SL_FAIL(err, SL_ENOMEM, "hub: no memory to read a partial file");
    while (b->have < info.st_size && !atomic_load(&b->s->stop)) {
        ssize_t got = pread(b->fd, piece, READ_BYTES, b->have);
        if (got <= 0 || !hash_add(b, piece, (size_t)got)) {
            st = restart(b, err);
            break;
        }
        b->have += got;
    }
    mem_free(piece);
    b->resumed = b->have > 0;
    b->most = b->have;
    atomic_store(&b->d->done, b->have);
    return st;
}

static enum sl_status check_room(const struct blob *b, const char *folder, struct sl_err *err)
{
    struct statvfs v;
    if (statvfs(folder, &v) != 0)
        return SL_OK;
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize, need = (uint64_t)(b->size - b->have);
    if (need <= room)
        return SL_OK;
    return SL_FAIL(err, SL_EIO,
                   "%s: no room in %s for %.200s: %llu bytes are needed, %llu are free", b->s->repo,
                   b->s->cache.root, b->d->file, (unsigned long long)need,
                   (unsigned long long)room);
}

/* ---- the body ---------------------------------------------------------------------------------
 */

/* 200 instead of 206: the server sends the file from its start, whatever was asked. */
static bool take_first(struct blob *b, const struct http_answer *a)
{
    b->began = true;
    if (a->status == 200 && b->have > 0)
        return restart(b, NULL) == SL_OK;
    if (a->status == 206 &&
        (b->have == 0 || a->range_from != b->have || a->range_total != b->size)) {
        b->refusal = WRONG_RANGE;
        return false;
    }
    return a->status == 200 || a->status == 206;
}

static bool take_body(void *ctx, const struct http_answer *a, const void *data, size_t n)
{
    struct blob *b = ctx;
    if (!b->began && !take_first(b, a))
        return false;
    if (n > (uint64_t)(b->size - b->have)) {
        b->refusal = TOO_LONG;
        return false;
    }
    for (size_t at = 0; at < n;) {
        ssize_t put = pwrite(b->fd, (const char *)data + at, n - at, b->have);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0 || !hash_add(b, (const char *)data + at, (size_t)put)) {
            b->refusal = NOT_WRITTEN;
            b->why = put < 0 ? errno : EIO;
            return false;
        }
        at += (size_t)put;
        b->have += put;
        atomic_store(&b->d->done, b->have);
    }
    return true;
}

/* What to do after a call that did not bring the rest: SL_OK to call again. */
static enum sl_status after_call(struct blob *b, struct tries *tries, enum http_end end,
                                 const struct http_answer *a, const struct sl_err *last,
                                 int64_t before, struct sl_err *err)
{
    const struct session *s = b->s;
    if (b->refusal == NOT_WRITTEN)
        return write_failed(b, b->why, err);
    if (b->refusal == TOO_LONG)
        return SL_FAIL(err, SL_EFORMAT, "%s: %.200s: %s sends more than its %lld bytes", s->repo,
                       b->d->file, a->host, (long long)b->size);
    if (b->refusal == WRONG_RANGE || (end == HTTP_ANSWERED && a->status == 416)) {
        if (before == 0 || ++tries->failed >= tries->limit)
            return SL_FAIL(err, SL_EFORMAT, "%s: %.200s: %s sends a part that was not asked for",
                           s->repo, b->d->file, a->host);
        return restart(b, err);
    }
    if (b->have - b->most >= PROGRESS_BYTES) {
        tries->failed = 0;
        b->most = b->have;
    }
    if (end == HTTP_ANSWERED && a->status / 100 == 2)
        end = HTTP_BROKEN; /* it ended, and not at its end */
    if (session_again(b->s, tries, end, a))
        return SL_OK;
    if (atomic_load(&b->s->stop))
        end = HTTP_STOPPED;
    struct sl_err cut = {.code = SL_EIO};
    snprintf(cut.msg, sizeof cut.msg, "%s ended after %lld of %lld bytes", a->host,
             (long long)b->have, (long long)b->size);
    return session_explain(s, end, a, last->code ? last : &cut, b->d->file, err);
}

/* Until b->have == b->size. */
static enum sl_status get_rest(struct blob *b, struct transport *t, struct sl_err *err)
{
    struct tries tries = {.limit = TRIES};
    struct http_answer *a = mem_zalloc(1, sizeof *a);
    char *url = session_file_url(b->s, b->d->file);
    enum sl_status st = SL_OK;
    if (!a || !url)
        st = SL_FAIL(err, SL_ENOMEM, "hub: no memory for a request");
    while (!st && b->have < b->size) {
        struct sl_err last;
        int64_t before = b->have;
        struct http_call call = session_call(b->s, "GET", url);
        call.range_from = b->have;
        call.body = take_body;
        call.ctx = b;
        b->began = false;
        b->refusal = TAKEN;
        enum http_end end = transport_call(t, &call, a, &last);
        if (b->have < b->size || b->refusal != TAKEN)
            st = after_call(b, &tries, end, a, &last, before, err);
    }
    mem_free(url);
    mem_free(a);
    return st;
}

/* A wrong sum of which a part is old is tried once more from the start. */
static enum sl_status get_checked(struct blob *b, const char *partial, struct transport *t,
                                  struct sl_err *err)
{
    for (;;) {
        bool old = b->resumed;
        enum sl_status st = get_rest(b, t, err);
        if (st || hash_is_right(b))
            return st;
        if (!old) {
            unlink(partial); /* no next try could make anything of it */
            return SL_FAIL(err, SL_EFORMAT,
                           "%s: %.200s: what the hub sent does not have the hash that it names "
                           "(%.16s...); nothing of it was kept",
                           b->s->repo, b->d->file, b->d->etag);
        }
        log_warning("%s: the part of %s that was there is wrong; it is fetched anew", b->s->repo,
                    b->d->file);
        st = restart(b, err);
        if (st)
            return st;
    }
}

/* ---- all of it --------------------------------------------------------------------------------
 */

static enum sl_status fetch_into(struct blob *b, const char *blobs, const char *partial,
                                 const char *whole, struct transport *t, struct sl_err *err)
{
    b->fd = open(partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (b->fd < 0)
        return SL_FAIL(err, SL_EIO, "cannot make %s: %s", partial, strerror(errno));
    enum sl_status st = take_partial(b, err);
    if (!st)
        st = check_room(b, blobs, err);
    if (!st)
        st = get_checked(b, partial, t, err);
    if (!st && fsync(b->fd) != 0)
        st = write_failed(b, errno, err);
    if (close(b->fd) != 0 && !st)
        st = write_failed(b, errno, err);
    if (!st && rename(partial, whole) != 0)
        st = SL_FAIL(err, SL_EIO, "cannot name %s: %s", whole, strerror(errno));
    return st;
}

static enum sl_status wait_for_lock(struct download *d, struct session *s, int *fd,
                                    struct sl_err *err)
{
    bool said = false;
    for (;;) {
        enum sl_status st = cache_try_lock(&s->cache, d->etag, fd, err);
        if (st != SL_EAGAIN)
            return st;
        if (!said)
            log_info("%s: waiting for another download of %s", s->repo, d->file);
        said = true;
        if (!session_sleep(s, LOCK_POLL_MS))
            return SL_FAIL(err, SL_EIO, "%s: %.200s: stopped", s->repo, d->file);
    }
}

static bool is_there(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static enum sl_status get_blob(struct download *d, struct session *s, struct transport *t,
                               struct sl_err *err)
{
    char partial_name[180];
    int lock = -1;
    struct blob b = {.d = d, .s = s, .fd = -1, .size = atomic_load(&d->size)};
    snprintf(partial_name, sizeof partial_name, "%s.incomplete", d->etag);
    char *blobs = cache_path(&s->cache, "blobs", NULL);
    char *whole = cache_path(&s->cache, "blobs", d->etag);
    char *partial = cache_path(&s->cache, "blobs", partial_name);
    enum sl_status st =
        blobs && whole && partial ? SL_OK : SL_FAIL(err, SL_ENOMEM, "hub: no memory for a path");
    if (!st && !is_there(whole)) {
        st = wait_for_lock(d, s, &lock, err);
        if (!st && !is_there(whole)) {
            atomic_store(&d->state, SL_HUB_FETCHING);
            st = fetch_into(&b, blobs, partial, whole, t, err);
        }
        if (lock >= 0)
            close(lock);
    }
    EVP_MD_CTX_free(b.hash);
    mem_free(blobs);
    mem_free(whole);
    mem_free(partial);
    return st;
}

enum sl_status download_run(struct download *d, struct session *s, struct transport *t,
                            struct sl_err *err)
{
    enum sl_status st = get_metadata(d, s, t, err);
    if (!st)
        st = get_blob(d, s, t, err);
    if (!st) {
        atomic_store(&d->done, atomic_load(&d->size));
        atomic_store(&d->state, SL_HUB_DONE);
    }
    return st;
}
