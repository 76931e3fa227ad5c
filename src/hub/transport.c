/* SPDX-License-Identifier: Apache-2.0 */
#include "hub/transport.h"

#include "base/mem.h"
#include "base/strbuf.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    MAX_HOPS = 10,
    CONNECT_S = 10,
    SLOW_BYTES_S = 1024,
    MAX_HEADER = 8192,
    MAX_HEADERS = 200,
    MAX_DROPPED = 1 << 20, /* of a body that nobody reads */
    BUFFER = 512 << 10
};

struct transport {
    CURL *curl;
    /* of the exchange under way */
    const struct http_call *call;
    struct http_answer *a;
    int64_t uploaded;
    size_t dropped;
    int n_headers;
    bool stopped, too_much;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool curl_ready;

static void init_curl(void)
{
    curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
}

enum sl_status transport_create(struct transport **out, struct sl_err *err)
{
    pthread_once(&once, init_curl);
    struct transport *t = mem_zalloc(1, sizeof *t);
    if (t && curl_ready)
        t->curl = curl_easy_init();
    if (!t || !t->curl) {
        mem_free(t);
        return SL_FAIL(err, SL_ENOMEM, "hub: no memory for a connection");
    }
    *out = t;
    return SL_OK;
}

void transport_destroy(struct transport **t)
{
    if (!*t)
        return;
    curl_easy_cleanup((*t)->curl);
    mem_free(*t);
    *t = NULL;
}

/* ---- URLs -------------------------------------------------------------------------------------
 */

/* What decides who sees the token. */
struct origin {
    char scheme[8], host[264], port[8];
};

static bool get_part(CURLU *u, CURLUPart part, unsigned flags, char *out, size_t size)
{
    char *text = NULL;
    if (curl_url_get(u, part, &text, flags) != CURLUE_OK)
        return false;
    size_t n = strlen(text);
    if (n < size)
        memcpy(out, text, n + 1);
    curl_free(text);
    return n < size;
}

static bool origin_of(CURLU *u, struct origin *o)
{
    char user[264];
    if (get_part(u, CURLUPART_USER, 0, user, sizeof user))
        return false;
    if (!get_part(u, CURLUPART_SCHEME, 0, o->scheme, sizeof o->scheme) ||
        !get_part(u, CURLUPART_HOST, 0, o->host, sizeof o->host) ||
        !get_part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT, o->port, sizeof o->port))
        return false;
    return !strcasecmp(o->scheme, "http") || !strcasecmp(o->scheme, "https");
}

static bool parse_origin(const char *url, struct origin *o)
{
    CURLU *u = curl_url();
    bool ok = u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK && origin_of(u, o);
    curl_url_cleanup(u);
    return ok;
}

static bool same_origin(const struct origin *a, const struct origin *b)
{
    return !strcasecmp(a->scheme, b->scheme) && !strcasecmp(a->host, b->host) &&
           !strcmp(a->port, b->port);
}

bool url_check(const char *url)
{
    struct origin o;
    return parse_origin(url, &o);
}

bool url_same_origin(const char *a, const char *b)
{
    struct origin x, y;
    return parse_origin(a, &x) && parse_origin(b, &y) && same_origin(&x, &y);
}

/* ---- what libcurl calls ------------------------------------------------------------------------
 */

static int64_t number(const char *s)
{
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    return end == s || errno || v < 0 ? -1 : v;
}

/* "bytes 100-199/200" */
static void read_content_range(struct http_answer *a, const char *v)
{
    const char *slash = strchr(v, '/');
    if (strncasecmp(v, "bytes ", 6) != 0 || !slash)
        return;
    a->range_from = number(v + 6);
    a->range_total = number(slash + 1);
}

static void keep(char *out, size_t size, const char *v)
{
    if (strlen(v) < size)
        memcpy(out, v, strlen(v) + 1);
}

static void read_header(struct http_answer *a, const char *name, const char *v)
{
    if (!strcasecmp(name, "Content-Length"))
        a->content_length = number(v);
    else if (!strcasecmp(name, "Content-Range"))
        read_content_range(a, v);
    else if (!strcasecmp(name, "Location"))
        keep(a->location, sizeof a->location, v);
    else if (!strcasecmp(name, "ETag"))
        keep(a->etag, sizeof a->etag, v);
    else if (!strcasecmp(name, "X-Repo-Commit"))
        keep(a->commit, sizeof a->commit, v);
    else if (!strcasecmp(name, "X-Linked-ETag"))
        keep(a->linked_etag, sizeof a->linked_etag, v);
    else if (!strcasecmp(name, "X-Linked-Size"))
        a->linked_size = number(v);
    else if (!strcasecmp(name, "X-Error-Code"))
        keep(a->error_code, sizeof a->error_code, v);
}

/* A status line begins an answer anew; what the hub says about the file itself stays. */
static void begin_answer(struct http_answer *a)
{
    a->status = 0;
    a->content_length = a->range_from = a->range_total = -1;
    a->retry_after_s = 0;
    a->location[0] = a->etag[0] = a->error_code[0] = '\0';
}

static size_t on_header(char *data, size_t size, size_t n, void *ctx)
{
    struct transport *t = ctx;
    char line[MAX_HEADER + 512];
    size_t len = size * n;
    if (t->n_headers++ > MAX_HEADERS)
        return 0;
    if (len >= 5 && !strncasecmp(data, "HTTP/", 5)) {
        begin_answer(t->a);
        return len;
    }
    if (len >= sizeof line)
        return len; /* none that matters is so long */
    memcpy(line, data, len);
    line[len] = '\0';
    line[strcspn(line, "\r\n")] = '\0';
    char *colon = strchr(line, ':');
    if (!colon)
        return len;
    *colon = '\0';
    char *v = colon + 1 + strspn(colon + 1, " \t");
    for (size_t k = strlen(v); k && (v[k - 1] == ' ' || v[k - 1] == '\t'); k--)
        v[k - 1] = '\0';
    read_header(t->a, line, v);
    return len;
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct transport *t = ctx;
    size_t len = size * n;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    t->a->status = (int)status;
    if (status / 100 != 2 || !t->call->body) {
        t->dropped += len;
        t->too_much = t->dropped > MAX_DROPPED;
        return t->too_much ? 0 : len;
    }
    if (t->call->body(t->call->ctx, t->a, data, len))
        return len;
    t->stopped = true;
    return 0;
}

static size_t on_upload(char *data, size_t size, size_t n, void *ctx)
{
    struct transport *t = ctx;
    ssize_t got;
    do
        got = pread(t->call->upload_fd, data, size * n, t->uploaded);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return CURL_READFUNC_ABORT;
    t->uploaded += got;
    return (size_t)got;
}

static int on_seek(void *ctx, curl_off_t offset, int origin)
{
    struct transport *t = ctx;
    if (origin != SEEK_SET)
        return CURL_SEEKFUNC_CANTSEEK;
    t->uploaded = offset;
    return CURL_SEEKFUNC_OK;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    struct transport *t = ctx;
    if (!t->call->stop || !atomic_load(t->call->stop))
        return 0;
    t->stopped = true;
    return 1;
}

/* ---- one hop ----------------------------------------------------------------------------------
 */

static bool add_header(struct curl_slist **list, const char *name, const char *value)
{
    struct strbuf b;
    strbuf_init(&b, MAX_HEADER);
    strbuf_addf(&b, "%s%s", name, value);
    struct curl_slist *more = b.failed ? NULL : curl_slist_append(*list, b.data);
    if (more)
        *list = more;
    strbuf_fini(&b);
    return more != NULL;
}

static bool make_headers(const struct http_call *c, bool with_token, struct curl_slist **list)
{
    char range[48];
    snprintf(range, sizeof range, "bytes=%lld-", (long long)c->range_from);
    *list = NULL;
    return add_header(list, "Accept-Encoding: ", "identity") && add_header(list, "Expect:", "") &&
           (c->range_from <= 0 || add_header(list, "Range: ", range)) &&
           (!with_token || add_header(list, "Authorization: Bearer ", c->token));
}

/* The scheme of a https hop stays https. */
static void set_options(struct transport *t, const char *url, bool only_https,
                        struct curl_slist *headers)
{
    const struct http_call *c = t->call;
    CURL *h = t->curl;
    curl_easy_reset(h); /* keeps the connections */
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, only_https ? "https" : "http,https");
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h, CURLOPT_USERAGENT, "sluice/" SLUICE_VERSION);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW_BYTES_S);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_TIME, (long)(c->silence_s > 0 ? c->silence_s : 30));
    curl_easy_setopt(h, CURLOPT_TIMEOUT, (long)c->total_s);
    curl_easy_setopt(h, CURLOPT_BUFFERSIZE, (long)BUFFER);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(h, CURLOPT_XFERINFODATA, t);
    if (c->ca_file)
        curl_easy_setopt(h, CURLOPT_CAINFO, c->ca_file);
    if (!strcmp(c->method, "HEAD"))
        curl_easy_setopt(h, CURLOPT_NOBODY, 1L);
    if (strcmp(c->method, "PUT") != 0)
        return;
    curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)c->upload_bytes);
    curl_easy_setopt(h, CURLOPT_READFUNCTION, on_upload);
    curl_easy_setopt(h, CURLOPT_READDATA, t);
    curl_easy_setopt(h, CURLOPT_SEEKFUNCTION, on_seek);
    curl_easy_setopt(h, CURLOPT_SEEKDATA, t);
}

/* Trouble of the moment: a second try may find it gone. */
static bool passes(CURLcode rc)
{
    switch (rc) {
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
        return true;
    default:
        return false;
    }
}

static enum http_end trouble(const struct transport *t, CURLcode rc, struct sl_err *err)
{
    if (t->stopped)
        return HTTP_STOPPED;
    if (t->too_much && t->a->status / 100 != 2)
        return HTTP_ANSWERED; /* an error page without end: its status is enough */
    (void)SL_FAIL(err, rc == CURLE_OUT_OF_MEMORY ? SL_ENOMEM : SL_EIO, "%s: %s", t->a->host,
                  curl_easy_strerror(rc));
    return passes(rc) ? HTTP_BROKEN : HTTP_REFUSED;
}

static enum http_end perform(struct transport *t, const char *url, bool only_https, bool with_token,
                             struct sl_err *err)
{
    struct curl_slist *headers;
    long status = 0;
    curl_off_t wait = 0;
    if (!make_headers(t->call, with_token, &headers)) {
        curl_slist_free_all(headers);
        (void)SL_FAIL(err, SL_ENOMEM, "hub: no memory for a request");
        return HTTP_REFUSED;
    }
    begin_answer(t->a);
    t->uploaded = 0;
    t->dropped = 0;
    t->n_headers = 0;
    t->stopped = t->too_much = false;
    set_options(t, url, only_https, headers);
    CURLcode rc = curl_easy_perform(t->curl);
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->curl, CURLINFO_RETRY_AFTER, &wait);
    curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(headers);
    t->a->status = (int)status;
    t->a->retry_after_s = wait > 0 ? (wait < 86400 ? (int)wait : 86400) : 0;
    return rc == CURLE_OK ? HTTP_ANSWERED : trouble(t, rc, err);
}

/* ---- all hops ---------------------------------------------------------------------------------
 */

static bool redirects(const struct http_answer *a)
{
    return a->location[0] && (a->status == 301 || a->status == 302 || a->status == 303 ||
                              a->status == 307 || a->status == 308);
}

/* u moves on to where the answer points; false: it is no place to go. */
static bool step(CURLU *u, const struct origin *from, const char *location, struct origin *to)
{
    return curl_url_set(u, CURLUPART_URL, location, 0) == CURLUE_OK && origin_of(u, to) &&
           (strcasecmp(from->scheme, "https") != 0 || !strcasecmp(to->scheme, "https"));
}

static enum http_end walk(struct transport *t, CURLU *u, const struct origin *trusted,
                          struct sl_err *err)
{
    const struct http_call *c = t->call;
    struct origin at;
    if (curl_url_set(u, CURLUPART_URL, c->url, 0) != CURLUE_OK || !origin_of(u, &at)) {
        (void)SL_FAIL(err, SL_EINVAL, "not an http or https URL");
        return HTTP_REFUSED;
    }
    for (int hop = 0; hop < MAX_HOPS; hop++) {
        char *url = NULL;
        if (curl_url_get(u, CURLUPART_URL, &url, 0) != CURLUE_OK) {
            (void)SL_FAIL(err, SL_ENOMEM, "hub: no memory for a URL");
            return HTTP_REFUSED;
        }
        bool ours = trusted && same_origin(&at, trusted);
        snprintf(t->a->host, sizeof t->a->host, "%s", at.host);
        enum http_end end = perform(t, url, !strcasecmp(at.scheme, "https"), ours && c->token, err);
        curl_free(url);
        struct origin next;
        if (end != HTTP_ANSWERED || !redirects(t->a))
            return end;
        if (!step(u, &at, t->a->location, &next)) {
            (void)SL_FAIL(err, SL_EIO, "%s redirects to where this program does not follow",
                          at.host);
            return HTTP_REFUSED;
        }
        if (c->stop_off_origin && trusted && !same_origin(&next, trusted))
            return HTTP_ANSWERED;
        at = next;
    }
    (void)SL_FAIL(err, SL_EIO, "%s: more than %d redirects", at.host, MAX_HOPS);
    return HTTP_REFUSED;
}

enum http_end transport_call(struct transport *t, const struct http_call *call,
                             struct http_answer *a, struct sl_err *err)
{
    struct origin trusted;
    bool have = call->token_origin && parse_origin(call->token_origin, &trusted);
    *a = (struct http_answer){.linked_size = -1};
    begin_answer(a);
    *err = (struct sl_err){0};
    t->call = call;
    t->a = a;
    CURLU *u = curl_url();
    enum http_end end = HTTP_REFUSED;
    if (!u)
        (void)SL_FAIL(err, SL_ENOMEM, "hub: no memory for a URL");
    else
        end = walk(t, u, have ? &trusted : NULL, err);
    curl_url_cleanup(u);
    t->call = NULL;
    t->a = NULL;
    return end;
}
