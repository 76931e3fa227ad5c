/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum sl_status read_all(int fd, const char *path, char *p, size_t bytes, struct sl_err *err)
{
    for (size_t have = 0; have < bytes;) {
        ssize_t got = read(fd, p + have, bytes - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return SL_FAIL(err, SL_EIO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0)
            return SL_FAIL(err, SL_EIO, "cannot read %s to its end", path);
        have += (size_t)got;
    }
    return SL_OK;
}

static enum sl_status read_open(int fd, const char *path, size_t max_bytes, char **data,
                                size_t *bytes, struct sl_err *err)
{
    struct stat info;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode))
        return SL_FAIL(err, SL_EFORMAT, "%s is not a regular file", path);
    if ((uint64_t)info.st_size > max_bytes)
        return SL_FAIL(err, SL_EFORMAT, "%s is larger than %zu MiB", path, max_bytes >> 20);
    size_t n = (size_t)info.st_size;
    char *p = mem_alloc(n + 1, 1);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "no memory to read %s", path);
    enum sl_status st = read_all(fd, path, p, n, err);
    if (st) {
        mem_free(p);
        return st;
    }
    p[n] = 0;
    *data = p;
    *bytes = n;
    return SL_OK;
}

enum sl_status file_read(const char *path, size_t max_bytes, char **data, size_t *bytes,
                         struct sl_err *err)
{
    *data = NULL;
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG
                   ? SL_OK
                   : SL_FAIL(err, SL_EIO, "cannot read %s: %s", path, strerror(errno));
    enum sl_status st = read_open(fd, path, max_bytes, data, bytes, err);
    close(fd);
    return st;
}
