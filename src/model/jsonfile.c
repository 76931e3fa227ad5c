/* SPDX-License-Identifier: Apache-2.0 */
#include "model/jsonfile.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *path_join(const char *dir, const char *name)
{
    size_t nd = strlen(dir), nn = strlen(name);
    char *p = mem_alloc(nd + nn + 2, 1);
    if (!p)
        return NULL;
    memcpy(p, dir, nd);
    p[nd] = '/';
    memcpy(p + nd + 1, name, nn + 1);
    return p;
}

/* jansson's parser builds as it goes: depth is looked at before it takes memory for the tree. */
static int nesting(const char *text, size_t bytes)
{
    int depth = 0, deepest = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > deepest)
                deepest = depth;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return deepest;
}

static enum sl_status parse(json_t **out, const char *text, size_t bytes, int max_depth, bool list,
                            const char *what, struct sl_err *err)
{
    if (nesting(text, bytes) > max_depth)
        return SL_FAIL(err, SL_EFORMAT, "%s: JSON is nested deeper than %d levels", what,
                       max_depth);
    json_error_t je;
    json_t *j = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &je);
    if (!j && json_error_code(&je) == json_error_out_of_memory)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory to parse it", what);
    if (!j)
        return SL_FAIL(err, SL_EFORMAT, "%s: not valid JSON: %s (line %d, column %d)", what,
                       je.text, je.line, je.column);
    if (!(list ? json_is_array(j) : json_is_object(j))) {
        json_decref(j);
        return SL_FAIL(err, SL_EFORMAT, "%s: a JSON %s is expected", what,
                       list ? "list" : "object");
    }
    *out = j;
    return SL_OK;
}

enum sl_status json_object_parse(json_t **out, const char *text, size_t bytes, int max_depth,
                                 const char *what, struct sl_err *err)
{
    return parse(out, text, bytes, max_depth, false, what, err);
}

static enum sl_status read_all(int fd, char *buf, size_t bytes, const char *path,
                               struct sl_err *err)
{
    for (size_t got = 0; got < bytes;) {
        ssize_t n = read(fd, buf + got, bytes - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return SL_FAIL(err, SL_EIO, "%s: %s", path, strerror(errno));
        if (n == 0)
            return SL_FAIL(err, SL_EIO, "%s: became shorter while it was read", path);
        got += (size_t)n;
    }
    return SL_OK;
}

static enum sl_status read_path(json_t **out, const char *path, size_t max_bytes, int max_depth,
                                bool list, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0)
        return SL_FAIL(err, errno == ENOENT || errno == ENOTDIR ? SL_ENOTFOUND : SL_EIO, "%s: %s",
                       path, strerror(errno));
    enum sl_status st;
    char *buf = NULL;
    struct stat sb;
    if (fstat(fd, &sb) || !S_ISREG(sb.st_mode)) {
        st = SL_FAIL(err, SL_EFORMAT, "%s: not a regular file", path);
    } else if ((uint64_t)sb.st_size > max_bytes) {
        st = SL_FAIL(err, SL_EFORMAT, "%s: %lld bytes, more than the %zu that are allowed", path,
                     (long long)sb.st_size, max_bytes);
    } else if (!(buf = mem_alloc((size_t)sb.st_size, 1))) {
        st = SL_FAIL(err, SL_ENOMEM, "%s: no memory for %lld bytes", path, (long long)sb.st_size);
    } else {
        st = read_all(fd, buf, (size_t)sb.st_size, path, err);
        if (st == SL_OK)
            st = parse(out, buf, (size_t)sb.st_size, max_depth, list, path, err);
    }
    mem_free(buf);
    close(fd);
    return st;
}

static enum sl_status read_file(json_t **out, const char *dir, const char *name, size_t max_bytes,
                                int max_depth, bool list, struct sl_err *err)
{
    if (!dir)
        return read_path(out, name, max_bytes, max_depth, list, err);
    char *path = path_join(dir, name);
    if (!path)
        return SL_FAIL(err, SL_ENOMEM, "%s: no memory for its path", name);
    enum sl_status st = read_path(out, path, max_bytes, max_depth, list, err);
    mem_free(path);
    return st;
}

enum sl_status json_object_read(json_t **out, const char *dir, const char *name, size_t max_bytes,
                                int max_depth, struct sl_err *err)
{
    return read_file(out, dir, name, max_bytes, max_depth, false, err);
}

enum sl_status json_list_read(json_t **out, const char *dir, const char *name, size_t max_bytes,
                              int max_depth, struct sl_err *err)
{
    return read_file(out, dir, name, max_bytes, max_depth, true, err);
}
