/* A model by name: what it needs is listed, chosen, fetched side by side and linked together.
 *
 * The snapshot's links come last, config.json the very last, and then the ref: a fetch that ends in
 * the middle leaves blobs behind, never a folder that looks like a model.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "hub/download.h"

#include <pthread.h>
#include <string.h>

enum { LISTING_TRIES = 6, LISTING_S = 60, MAX_LISTING = 8 << 20, MAX_WORKERS = 32, TICK_MS = 100 };

/* What is to be there at the end. */
struct fetch {
    struct session s;
    bool weights;
    struct listing listing;
    struct download *file; /* [n], room for every file of the listing */
    int n;
    struct sl_hub_file *shown; /* [n] for the caller's progress() */
    /* under s.lock */
    int next, n_running;
    struct sl_err first; /* what failed first */
};

/* ---- configuration ----------------------------------------------------------------------------
 */

void sl_hub_config_init(struct sl_hub_config *cfg)
{
    *cfg = (struct sl_hub_config){
        .endpoint = "https://huggingface.co", .silence_s = 30, .max_parallel = 8};
}

bool sl_hub_is_name(const char *model)
{
    return model && repo_name_ok(model);
}

static bool token_ok(const char *t)
{
    size_t n = strlen(t);
    if (n == 0 || n > 4096)
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)t[i] <= 0x20 || (unsigned char)t[i] >= 0x7f)
            return false;
    return true;
}

static enum sl_status check(const struct sl_hub_config *cfg, const char *name, const char *revision,
                            struct sl_err *err)
{
    if (!sl_hub_is_name(name))
        return SL_FAIL(err, SL_EINVAL, "'%.200s' is not a model's name, such as org/name", name);
    if (!revision_ok(revision))
        return SL_FAIL(err, SL_EINVAL, "%s: '%.200s' is not a revision's name", name, revision);
    if (!cfg->cache_dir || !*cfg->cache_dir)
        return SL_FAIL(err, SL_EINVAL,
                       "%s: no folder to keep it in: set HOME, HF_HOME or --download-dir", name);
    if (!url_check(cfg->endpoint))
        return SL_FAIL(err, SL_EINVAL,
                       "HF_ENDPOINT must be an http or https URL without a name and password");
    if (cfg->token && !token_ok(cfg->token))
        return SL_FAIL(err, SL_EINVAL, "HF_TOKEN holds characters that cannot be part of a token");
    return SL_OK;
}

/* ---- the listing ------------------------------------------------------------------------------
 */

static bool take_listing(void *ctx, const struct http_answer *a, const void *data, size_t n)
{
    struct strbuf *b = ctx;
    (void)a;
    strbuf_add(b, data, n);
    return !b->failed;
}

/* *may_use_cache: the hub could not be asked, which says nothing about the model. */
static enum sl_status ask_listing(struct fetch *f, int tries_limit, bool *may_use_cache,
                                  struct sl_err *err)
{
    struct session *s = &f->s;
    struct tries tries = {.limit = tries_limit};
    struct http_answer *a = mem_zalloc(1, sizeof *a);
    struct transport *t = NULL;
    struct sl_err last = {0};
    struct strbuf body;
    enum http_end end = HTTP_REFUSED;
    strbuf_init(&body, MAX_LISTING);
    char *url = session_listing_url(s);
    enum sl_status st =
        a && url ? transport_create(&t, err) : SL_FAIL(err, SL_ENOMEM, "hub: no memory");
    *may_use_cache = false;
    while (!st) {
        struct http_call call = session_call(s, "GET", url);
        call.body = take_listing;
        call.ctx = &body;
        call.total_s = LISTING_S;
        strbuf_clear(&body);
        end = transport_call(t, &call, a, &last);
        if (end == HTTP_ANSWERED && a->status == 200)
            break;
        if (end == HTTP_STOPPED && body.failed)
            st = SL_FAIL(err, SL_EFORMAT, "%s: the hub's list of its files is longer than %d MiB",
                         s->repo, MAX_LISTING >> 20);
        else if (!session_again(s, &tries, end, a))
            st = session_explain(s, end, a, &last, NULL, err);
    }
    if (st && a)
        *may_use_cache = end == HTTP_BROKEN ||
                         (end == HTTP_ANSWERED && (a->status / 100 == 5 || a->status == 429));
    if (!st)
        st = listing_parse(&f->listing, body.data ? body.data : "", body.len, s->repo, err);
    if (!st && commit_ok(s->revision) && strcmp(s->revision, f->listing.commit) != 0)
        st = SL_FAIL(err, SL_EFORMAT, "%s: the hub answers with another commit than %s", s->repo,
                     s->revision);
    strbuf_fini(&body);
    transport_destroy(&t);
    mem_free(url);
    mem_free(a);
    return st;
}

/* ---- which files ------------------------------------------------------------------------------
 */

static void add_file(struct fetch *f, const char *name)
{
    struct download *d = &f->file[f->n];
    for (int i = 0; i < f->n; i++)
        if (!strcmp(f->file[i].file, name))
            return;
    *d = (struct download){.file = name};
    atomic_init(&d->size, -1);
    if (cache_has_file(&f->s.cache, f->s.commit, name))
        atomic_init(&d->state, SL_HUB_DONE);
    f->n++;
}

static const char *listed(const struct listing *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (!strcmp(l->name[i], name))
            return l->name[i];
    return NULL;
}

static bool has_listed(const void *ctx, const char *name)
{
    return listing_has(ctx, name);
}

static enum sl_status add_shard(void *ctx, const char *shard, struct sl_err *err)
{
    struct fetch *f = ctx;
    const char *name = listed(&f->listing, shard);
    if (!name)
        return SL_FAIL(err, SL_EFORMAT,
                       "%s: its index names the shard %.200s, which the repository does not have",
                       f->s.repo, shard);
    add_file(f, name);
    return SL_OK;
}

/* ---- fetching side by side --------------------------------------------------------------------
 */

static struct download *take_next(struct fetch *f)
{
    struct download *d = NULL;
    mutex_lock(&f->s.lock);
    while (!atomic_load(&f->s.stop) && f->next < f->n && !d) {
        d = &f->file[f->next++];
        if (atomic_load(&d->state) == SL_HUB_DONE)
            d = NULL;
    }
    mutex_unlock(&f->s.lock);
    return d;
}

static void report(struct fetch *f, const struct sl_err *err)
{
    mutex_lock(&f->s.lock);
    if (!f->first.code)
        f->first = *err;
    mutex_unlock(&f->s.lock);
    session_stop(&f->s);
}

static void *work(void *ctx)
{
    struct fetch *f = ctx;
    struct transport *t = NULL;
    struct sl_err err = {0};
    enum sl_status st = transport_create(&t, &err);
    for (struct download *d; !st && (d = take_next(f));)
        st = download_run(d, &f->s, t, &err);
    if (st)
        report(f, &err);
    transport_destroy(&t);
    mutex_lock(&f->s.lock);
    f->n_running--;
    cond_broadcast(&f->s.changed);
    mutex_unlock(&f->s.lock);
    return NULL;
}

static void show(struct fetch *f)
{
    const struct sl_hub_config *cfg = f->s.cfg;
    if (!cfg->progress)
        return;
    for (int i = 0; i < f->n; i++)
        f->shown[i] =
            (struct sl_hub_file){.name = f->file[i].file,
                                 .size = atomic_load(&f->file[i].size),
                                 .done = atomic_load(&f->file[i].done),
                                 .state = (enum sl_hub_file_state)atomic_load(&f->file[i].state)};
    cfg->progress(cfg->ctx, f->shown, f->n);
}

static void watch(struct fetch *f)
{
    for (bool more = true; more;) {
        int64_t until = clock_mono_ns() + (int64_t)TICK_MS * 1000000;
        mutex_lock(&f->s.lock);
        while (f->n_running > 0 && cond_wait_until(&f->s.changed, &f->s.lock, until)) {}
        more = f->n_running > 0;
        mutex_unlock(&f->s.lock);
        show(f);
    }
}

/* Every file of the list that is not there yet. */
static enum sl_status fetch_all(struct fetch *f, struct sl_err *err)
{
    pthread_t thread[MAX_WORKERS];
    int missing = 0, n = 0, want = f->s.cfg->max_parallel;
    for (int i = 0; i < f->n; i++)
        missing += atomic_load(&f->file[i].state) != SL_HUB_DONE;
    if (!missing)
        return SL_OK;
    enum sl_status st = cache_make_folders(&f->s.cache, f->s.commit, err);
    if (st)
        return st;
    want = want < 1 ? 1 : want > MAX_WORKERS ? MAX_WORKERS : want;
    f->next = 0;
    f->n_running = want < missing ? want : missing;
    for (int i = f->n_running; i > 0; i--)
        if (pthread_create(&thread[n], NULL, work, f) == 0)
            n++;
    mutex_lock(&f->s.lock);
    f->n_running -= (want < missing ? want : missing) - n;
    mutex_unlock(&f->s.lock);
    if (n == 0)
        return SL_FAIL(err, SL_ENOMEM, "hub: cannot start a thread");
    watch(f);
    for (int i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
    if (f->first.code && err && !err->code)
        *err = f->first;
    return f->first.code;
}

static enum sl_status link_file(const struct fetch *f, const struct download *d, struct sl_err *err)
{
    return d->etag[0] ? cache_link(&f->s.cache, f->s.commit, d->file, d->etag, err) : SL_OK;
}

/* ---- all of it --------------------------------------------------------------------------------
 */

/* The index is needed before anything else: it says which shards there are. */
static enum sl_status choose(struct fetch *f, struct sl_err *err)
{
    const struct listing *l = &f->listing;
    const char *file = NULL;
    bool json = listing_has(l, "tokenizer.json");
    enum sl_status st = SL_OK;
    if (f->weights) {
        enum weights_kind kind = weights_choose(has_listed, l, &file);
        if (kind == WEIGHTS_NONE)
            return SL_FAIL(err, SL_ENOTFOUND,
                           "%s has no weights that are read here: neither model.safetensors nor "
                           "its index nor pytorch_model.bin%s",
                           f->s.repo, weights_instead(l));
        add_file(f, listed(l, file));
        if (kind == WEIGHTS_INDEXED) {
            st = fetch_all(f, err);
            if (!st)
                st = link_file(f, &f->file[0], err);
            f->file[0].etag[0] = '\0';
            if (!st)
                st = cache_index_shards(&f->s.cache, f->s.commit, file, add_shard, f, err);
        }
    }
    for (size_t i = 0; !st && i < l->n; i++)
        if (file_is_text(l->name[i], json))
            add_file(f, l->name[i]);
    if (!st && f->n == 0)
        st = SL_FAIL(err, SL_ENOTFOUND, "%s has no files of a model", f->s.repo);
    return st;
}

static enum sl_status fetch_listed(struct fetch *f, struct sl_err *err)
{
    struct session *s = &f->s;
    memcpy(s->commit, f->listing.commit, sizeof s->commit);
    f->file = mem_zalloc(f->listing.n + 1, sizeof *f->file);
    f->shown = mem_zalloc(f->listing.n + 1, sizeof *f->shown);
    enum sl_status st =
        f->file && f->shown ? choose(f, err) : SL_FAIL(err, SL_ENOMEM, "hub: no memory");
    if (!st)
        st = fetch_all(f, err);
    const struct download *config = NULL;
    for (int i = 0; !st && i < f->n; i++)
        if (!strcmp(f->file[i].file, "config.json"))
            config = &f->file[i];
        else
            st = link_file(f, &f->file[i], err);
    if (!st && config)
        st = link_file(f, config, err);
    if (!st && cache_write_ref(&s->cache, s->revision, s->commit, NULL) != SL_OK)
        log_warning("%s: cannot note in %s which commit '%s' is", s->repo, s->cache.root,
                    s->revision);
    return st;
}

/* The cache's own answer; SL_ENOTFOUND without words when it has none. */
static enum sl_status use_cache(struct fetch *f)
{
    struct session *s = &f->s;
    cache_read_ref(&s->cache, s->revision, s->commit);
    return s->commit[0] && cache_is_whole(&s->cache, s->commit, f->weights) ? SL_OK : SL_ENOTFOUND;
}

static enum sl_status fetch_model(struct fetch *f, struct sl_err *err)
{
    struct session *s = &f->s;
    bool cached = use_cache(f) == SL_OK, may_use_cache;
    struct sl_err why = {0};
    if (s->cfg->offline)
        return cached
                   ? SL_OK
                   : SL_FAIL(err, SL_ENOTFOUND,
                             "%s is neither a folder here nor a whole model (revision '%.100s') in "
                             "%s, and HF_HUB_OFFLINE forbids to fetch it",
                             s->repo, s->revision, s->cache.root);
    enum sl_status st = ask_listing(f, cached ? 1 : LISTING_TRIES, &may_use_cache, &why);
    if (!st)
        return fetch_listed(f, err);
    if (cached && may_use_cache) {
        log_warning("%s; using what the cache has", why.msg);
        return SL_OK;
    }
    if (err && !err->code)
        *err = why;
    return st;
}

enum sl_status sl_hub_fetch(const struct sl_hub_config *cfg, const char *name, const char *revision,
                            bool weights, char **dir, struct sl_err *err)
{
    struct fetch f = {.weights = weights};
    if (!revision)
        revision = "main";
    enum sl_status st = check(cfg, name, revision, err);
    if (!st)
        st = session_open(&f.s, cfg, name, revision, err);
    if (st)
        return st;
    st = fetch_model(&f, err);
    char *path = st ? NULL : cache_path(&f.s.cache, "snapshots", f.s.commit);
    if (!st && !path)
        st = SL_FAIL(err, SL_ENOMEM, "hub: no memory for a path");
    if (!st)
        *dir = path;
    listing_fini(&f.listing);
    mem_free(f.file);
    mem_free(f.shown);
    session_close(&f.s);
    return st;
}
