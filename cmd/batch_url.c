/* SPDX-License-Identifier: Apache-2.0 */
#include "batch_url.h"
#include "util.h"

#include "base/status.h"
#include "hub/transport.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* vLLM tries an upload five times as well. */
enum { TRIES = 5, FIRST_WAIT_MS = 500, MAX_RETRY_AFTER_S = 60, SILENCE_S = 60 };
static const int64_t MAX_INPUT_BYTES = INT64_C(4) << 30;

bool is_url(const char *path)
{
    return !strncmp(path, "http://", 7) || !strncmp(path, "https://", 8);
}

FILE *url_scratch(const char *folder, struct sl_err *err)
{
    const char *tmp = getenv("TMPDIR");
    if (!folder)
        folder = tmp && *tmp ? tmp : "/tmp";
    char *path = xformat("%s/sluice-batch-XXXXXX", folder);
    int fd = mkstemp(path);
    FILE *f = fd >= 0 ? fdopen(fd, "w+b") : NULL;
    if (!f)
        (void)SL_FAIL(err, SL_EIO, "cannot make a file in %s: %s", folder, strerror(errno));
    if (!f && fd >= 0)
        close(fd);
    if (fd >= 0)
        unlink(path);
    free(path);
    return f;
}

struct input {
    int fd;
    int64_t have;
    int why; /* errno of a failed write */
    bool too_large;
};

static bool take(void *ctx, const struct http_answer *a, const void *data, size_t n)
{
    struct input *in = ctx;
    (void)a;
    if ((int64_t)n > MAX_INPUT_BYTES - in->have) {
        in->too_large = true;
        return false;
    }
    for (size_t at = 0; at < n;) {
        ssize_t put = pwrite(in->fd, (const char *)data + at, n - at, in->have);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            in->why = put < 0 ? errno : EIO;
            return false;
        }
        at += (size_t)put;
        in->have += put;
    }
    return true;
}

static bool again(int *failed, enum http_end end, const struct http_answer *a)
{
    bool passes = end == HTTP_BROKEN ||
                  (end == HTTP_ANSWERED && (a->status == 408 || a->status == 429 ||
                                            (a->status / 100 == 5 && a->status != 501)));
    if (!passes || ++*failed >= TRIES || a->retry_after_s > MAX_RETRY_AFTER_S)
        return false;
    int ms = a->retry_after_s ? a->retry_after_s * 1000 : FIRST_WAIT_MS << (*failed - 1);
    nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL);
    return true;
}

/* Until it is answered with 2xx or there is no use in trying again. `in`: NULL for a PUT. */
static enum sl_status exchange(struct http_call *call, struct input *in, struct sl_err *err)
{
    struct transport *t = NULL;
    struct http_answer *a = xcalloc(1, sizeof *a);
    struct sl_err last = {0};
    int failed = 0;
    enum sl_status st = transport_create(&t, err);
    call->silence_s = SILENCE_S;
    while (st == SL_OK) {
        if (in)
            in->have = 0;
        enum http_end end = transport_call(t, call, a, &last);
        if (end == HTTP_ANSWERED && a->status / 100 == 2)
            break;
        if (in && in->too_large)
            st = SL_FAIL(err, SL_EINVAL, "%s sends more than %lld GiB of requests", a->host,
                         (long long)(MAX_INPUT_BYTES >> 30));
        else if (in && in->why)
            st = SL_FAIL(err, SL_EIO, "cannot keep the requests: %s", strerror(in->why));
        else if (again(&failed, end, a))
            continue;
        else if (end == HTTP_ANSWERED)
            st = SL_FAIL(err, SL_EIO, "%s %s answers %d", call->method, a->host, a->status);
        else
            st = SL_FAIL(err, SL_EIO, "%s %s", call->method, last.msg);
    }
    transport_destroy(&t);
    free(a);
    return st;
}

FILE *url_get(const char *url, const char *folder, struct sl_err *err)
{
    FILE *f = url_scratch(folder, err);
    if (!f)
        return NULL;
    struct input in = {.fd = fileno(f)};
    struct http_call call = {.method = "GET", .url = url, .body = take, .ctx = &in};
    if (exchange(&call, &in, err) == SL_OK && ftruncate(in.fd, in.have) == 0)
        return f;
    fclose(f);
    return NULL;
}

enum sl_status url_put(const char *url, FILE *f, struct sl_err *err)
{
    if (fflush(f) != 0 || fseeko(f, 0, SEEK_END) != 0)
        return SL_FAIL(err, SL_EIO, "cannot write the answers: %s", strerror(errno));
    struct http_call call = {
        .method = "PUT", .url = url, .upload_fd = fileno(f), .upload_bytes = ftello(f)};
    return exchange(&call, NULL, err);
}
