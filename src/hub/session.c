/* SPDX-License-Identifier: Apache-2.0 */
#include "hub/session.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/strbuf.h"

#include <string.h>

enum { MAX_URL = 1 << 14, FIRST_WAIT_MS = 250, MAX_WAIT_MS = 8000, MAX_RETRY_AFTER_S = 60 };

enum sl_status session_open(struct session *s, const struct sl_hub_config *cfg, const char *repo,
                            const char *revision, struct sl_err *err)
{
    *s = (struct session){.cfg = cfg, .repo = repo, .revision = revision};
    enum sl_status st = cache_open(&s->cache, cfg->cache_dir, repo, err);
    if (st)
        return st;
    atomic_init(&s->stop, false);
    mutex_init(&s->lock, LOCK_HUB);
    cond_init(&s->changed);
    return SL_OK;
}

void session_close(struct session *s)
{
    cond_fini(&s->changed);
    mutex_fini(&s->lock);
    cache_close(&s->cache);
}

void session_stop(struct session *s)
{
    mutex_lock(&s->lock);
    atomic_store(&s->stop, true);
    cond_broadcast(&s->changed);
    mutex_unlock(&s->lock);
}

bool session_sleep(struct session *s, int ms)
{
    int64_t until = clock_mono_ns() + (int64_t)ms * 1000000;
    mutex_lock(&s->lock);
    while (!atomic_load(&s->stop) && cond_wait_until(&s->changed, &s->lock, until)) {}
    mutex_unlock(&s->lock);
    return !atomic_load(&s->stop);
}

/* ---- requests ---------------------------------------------------------------------------------
 */

static void add_endpoint(struct strbuf *b, const struct session *s)
{
    size_t n = strlen(s->cfg->endpoint);
    while (n && s->cfg->endpoint[n - 1] == '/')
        n--;
    strbuf_init(b, MAX_URL);
    strbuf_add(b, s->cfg->endpoint, n);
}

char *session_listing_url(const struct session *s)
{
    struct strbuf b;
    add_endpoint(&b, s);
    strbuf_addf(&b, "/api/models/%s/revision/", s->repo);
    url_quote(&b, s->revision, false);
    return strbuf_take(&b);
}

char *session_file_url(const struct session *s, const char *file)
{
    struct strbuf b;
    add_endpoint(&b, s);
    strbuf_addf(&b, "/%s/resolve/%s/", s->repo, s->commit);
    url_quote(&b, file, true);
    return strbuf_take(&b);
}

struct http_call session_call(const struct session *s, const char *method, const char *url)
{
    return (struct http_call){.method = method,
                              .url = url,
                              .token = s->cfg->token,
                              .token_origin = s->cfg->endpoint,
                              .silence_s = s->cfg->silence_s,
                              .ca_file = s->cfg->ca_file,
                              .stop = &s->stop};
}

/* ---- patience ---------------------------------------------------------------------------------
 */

static bool may_pass(enum http_end end, const struct http_answer *a)
{
    if (end == HTTP_BROKEN)
        return true;
    return end == HTTP_ANSWERED && (a->status == 408 || a->status == 429 || a->status / 100 == 5) &&
           a->status != 501 && a->retry_after_s <= MAX_RETRY_AFTER_S;
}

bool session_again(struct session *s, struct tries *t, enum http_end end,
                   const struct http_answer *a)
{
    if (!may_pass(end, a) || ++t->failed >= t->limit)
        return false;
    int ms = FIRST_WAIT_MS;
    for (int i = 1; i < t->failed && ms < MAX_WAIT_MS; i++)
        ms *= 2;
    if (a->retry_after_s > 0)
        ms = a->retry_after_s * 1000;
    return session_sleep(s, ms);
}

/* ---- sentences --------------------------------------------------------------------------------
 */

static enum sl_status explain_denied(const struct session *s, const struct http_answer *a,
                                     struct sl_err *err)
{
    bool gated = !strcmp(a->error_code, "GatedRepo");
    if (gated && s->cfg->token)
        return SL_FAIL(err, SL_ENOTFOUND,
                       "%s is gated: ask for access on its page at %s; the account of the token "
                       "that was given has none yet",
                       s->repo, a->host);
    if (gated)
        return SL_FAIL(err, SL_ENOTFOUND,
                       "%s is gated: accept its terms on its page at %s, then set HF_TOKEN or "
                       "--hf-token",
                       s->repo, a->host);
    if (s->cfg->token)
        return SL_FAIL(err, SL_ENOTFOUND,
                       "%s: %s answers %d: the token that was given does not open it, or there is "
                       "no such model",
                       s->repo, a->host, a->status);
    return SL_FAIL(err, SL_ENOTFOUND,
                   "%s: %s answers %d: there is no such model, or it is private: set HF_TOKEN or "
                   "--hf-token",
                   s->repo, a->host, a->status);
}

static enum sl_status explain_missing(const struct session *s, const struct http_answer *a,
                                      const char *file, struct sl_err *err)
{
    if (!strcmp(a->error_code, "RevisionNotFound"))
        return SL_FAIL(err, SL_ENOTFOUND, "%s has no revision '%.100s' at %s", s->repo, s->revision,
                       a->host);
    if (file)
        return SL_FAIL(err, SL_ENOTFOUND, "%s: %s has no file %.200s in revision '%.100s'", s->repo,
                       a->host, file, s->revision);
    return SL_FAIL(err, SL_ENOTFOUND,
                   "%s: neither a folder here nor a model at %s (it answers 404); check the name",
                   s->repo, a->host);
}

enum sl_status session_explain(const struct session *s, enum http_end end,
                               const struct http_answer *a, const struct sl_err *last,
                               const char *file, struct sl_err *err)
{
    const char *colon = file ? ": " : "", *name = file ? file : "";
    if (end == HTTP_STOPPED)
        return SL_FAIL(err, SL_EIO, "%s%s%.200s: stopped", s->repo, colon, name);
    if (end != HTTP_ANSWERED && !file)
        return SL_FAIL(err, last->code,
                       "%s: no such folder is here, and it cannot be fetched: %.300s", s->repo,
                       last->msg);
    if (end != HTTP_ANSWERED)
        return SL_FAIL(err, last->code, "%s%s%.200s: cannot be fetched: %.300s", s->repo, colon,
                       name, last->msg);
    if (a->status == 401 || a->status == 403)
        return explain_denied(s, a, err);
    if (a->status == 404)
        return explain_missing(s, a, file, err);
    if (a->status == 429 && a->retry_after_s > 0)
        return SL_FAIL(err, SL_EIO, "%s%s%.200s: %s asks to come back in %d seconds (429)", s->repo,
                       colon, name, a->host, a->retry_after_s);
    return SL_FAIL(err, SL_EIO, "%s%s%.200s: %s answers %d%s", s->repo, colon, name, a->host,
                   a->status,
                   a->status == 429       ? ": too many requests; try again later"
                   : a->status / 100 == 5 ? "; try again later"
                                          : "");
}
