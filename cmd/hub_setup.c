/* SPDX-License-Identifier: Apache-2.0 */
#include "hub_setup.h"

#include "commands.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include <jansson.h>

/* ---- the environment --------------------------------------------------------------------------
 */

static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static bool env_true(const char *name)
{
    const char *v = env(name);
    return v && (!strcmp(v, "1") || !strcasecmp(v, "on") || !strcasecmp(v, "yes") ||
                 !strcasecmp(v, "true"));
}

/* "~/x" -> "/home/me/x", as Python's expanduser; a new string. */
static char *expand(const char *path)
{
    const char *home = env("HOME");
    if (path[0] == '~' && (path[1] == '/' || !path[1]) && home)
        return xformat("%s%s", home, path + 1);
    return xstrdup(path);
}

/* $HF_HOME, or ~/.cache/huggingface; NULL: no home either. */
static char *hf_home(void)
{
    if (env("HF_HOME"))
        return expand(env("HF_HOME"));
    if (env("XDG_CACHE_HOME"))
        return xformat("%s/huggingface", env("XDG_CACHE_HOME"));
    return env("HOME") ? xformat("%s/.cache/huggingface", env("HOME")) : NULL;
}

static const char *cache_dir(const struct options *o, const char *home)
{
    if (o->hub.download_dir)
        return expand(o->hub.download_dir);
    const char *names[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"};
    for (int i = 0; i < 2; i++)
        if (env(names[i]))
            return expand(env(names[i]));
    return home ? xformat("%s/hub", home) : NULL;
}

/* Without the blanks and the line's end around it; NULL when nothing is left. */
static char *stripped(const char *text)
{
    static const char blanks[] = " \t\r\n";
    text += strspn(text, blanks);
    size_t n = strlen(text);
    while (n && strchr(blanks, text[n - 1]))
        n--;
    return n ? xformat("%.*s", (int)n, text) : NULL;
}

static char *token_of_file(const char *home)
{
    char text[4096] = "";
    char *path = env("HF_TOKEN_PATH") ? expand(env("HF_TOKEN_PATH"))
                 : home               ? xformat("%s/token", home)
                                      : NULL;
    FILE *in = path ? fopen(path, "rb") : NULL;
    if (in) {
        text[fread(text, 1, sizeof text - 1, in)] = '\0';
        fclose(in);
    }
    free(path);
    return stripped(text);
}

static const char *token(const struct options *o, const char *home)
{
    if (o->hub.token)
        return stripped(o->hub.token);
    const char *names[] = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"};
    for (int i = 0; i < 2; i++)
        if (env(names[i]))
            return stripped(env(names[i]));
    return env_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") ? NULL : token_of_file(home);
}

static void read_config(struct sl_hub_config *cfg, const struct options *o)
{
    static const char *const bundles[] = {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"};
    char *home = hf_home();
    sl_hub_config_init(cfg);
    if (env("HF_ENDPOINT"))
        cfg->endpoint = stripped(env("HF_ENDPOINT"));
    if (!cfg->endpoint)
        cfg->endpoint = "";
    cfg->token = token(o, home);
    cfg->cache_dir = cache_dir(o, home);
    cfg->offline = env_true("HF_HUB_OFFLINE") || env_true("TRANSFORMERS_OFFLINE");
    for (int i = 0; i < 3 && !cfg->ca_file; i++)
        cfg->ca_file = env(bundles[i]);
    if (env("HF_HUB_DOWNLOAD_TIMEOUT")) {
        long s = strtol(env("HF_HUB_DOWNLOAD_TIMEOUT"), NULL, 10);
        cfg->silence_s = s > 0 && s < 86400 ? (int)s : cfg->silence_s;
    }
    free(home);
}

void hub_config(struct sl_hub_config *cfg, const struct options *o)
{
    static struct sl_hub_config kept; /* read once; its strings stay */
    if (!kept.endpoint)
        read_config(&kept, o);
    *cfg = kept;
}

/* ---- names into folders ------------------------------------------------------------------------
 */

static bool is_name(const char *model)
{
    struct stat info;
    return model && stat(model, &info) != 0 && sl_hub_is_name(model);
}

/* NULL: it failed, and said so. */
static char *fetch(const struct options *o, const char *name, const char *revision, bool weights)
{
    struct sl_hub_config cfg;
    struct sl_err err = {0};
    char *dir = NULL;
    hub_config(&cfg, o);
    struct hub_progress *p =
        hub_progress_begin(name, !o->no_progress && !env_true("HF_HUB_DISABLE_PROGRESS_BARS"));
    cfg.progress = hub_progress_show;
    cfg.ctx = p;
    enum sl_status st = sl_hub_fetch(&cfg, name, revision, weights, &dir, &err);
    hub_progress_end(p);
    if (st != SL_OK)
        fail_with(EXIT_FAILED, "%s", err.msg);
    return st == SL_OK ? dir : NULL;
}

/* What computes with made-up weights, or with none, needs no gigabytes of them. */
static bool needs_weights(const struct options *o)
{
    const unsigned without =
        CMD_TOKENIZE | CMD_DETOKENIZE | CMD_RENDER | CMD_BENCH_SERVE | CMD_BENCH_SIM;
    bool real = o->engine.device != SL_DEVICE_SIM && o->engine.load_format != SL_LOAD_DUMMY;
    if (o->flags.command == CMD_BENCH_POLICIES)
        real = o->engine.device == SL_DEVICE_CPU || o->engine.device == SL_DEVICE_REF;
    return real && !(o->flags.command & without);
}

/* The name is what the model is called, though its folder is elsewhere. */
static bool resolve_model(struct options *o)
{
    struct sl_config *e = &o->engine;
    const char *name = e->model;
    bool text_only = o->flags.command & (CMD_TOKENIZE | CMD_DETOKENIZE | CMD_RENDER);
    if (text_only && e->tokenizer)
        return true; /* the model is not looked at */
    char *dir = fetch(o, name, o->hub.revision, needs_weights(o));
    if (!dir)
        return false;
    if (o->hub.tokenizer_revision && !e->tokenizer)
        e->tokenizer = name; /* another revision of the same */
    e->model_name = name;
    e->model = dir;
    return true;
}

/* The draft model of --speculative-config may be a name as well. */
static bool resolve_draft(struct options *o)
{
    json_t *config =
        o->engine.speculative_config ? json_loads(o->engine.speculative_config, 0, NULL) : NULL;
    const char *name = json_string_value(json_object_get(config, "model"));
    const char *revision = json_string_value(json_object_get(config, "revision"));
    char *dir = NULL;
    bool named = is_name(name) && strcmp(name, "ngram") != 0; /* vLLM's old way to name a method */
    bool ok = !named || (dir = fetch(o, name, revision, needs_weights(o)));
    if (dir) {
        static char *text; /* lives as long as the options */
        json_object_set_new(config, "model", json_string(dir));
        json_object_del(config, "revision");
        text = json_dumps(config, JSON_COMPACT);
        o->engine.speculative_config = text;
        sl_free(dir);
    }
    json_decref(config);
    return ok;
}

int hub_resolve(struct options *o)
{
    struct sl_config *e = &o->engine;
    bool client = o->flags.command == CMD_BENCH_SERVE; /* MODEL is what the server calls it */
    if (is_name(e->model) && (!client || strchr(e->model, '/'))) {
        if (!resolve_model(o) && !client)
            return EXIT_FAILED;
    }
    if (is_name(e->tokenizer)) {
        char *dir = fetch(o, e->tokenizer, o->hub.tokenizer_revision, false);
        if (!dir)
            return EXIT_FAILED;
        e->tokenizer = dir;
    }
    return resolve_draft(o) ? EXIT_DONE : EXIT_FAILED;
}

char *hub_cached(const struct options *o, const char *name)
{
    struct sl_hub_config cfg;
    char *dir = NULL;
    if (!is_name(name))
        return NULL;
    hub_config(&cfg, o);
    cfg.offline = true;
    return sl_hub_fetch(&cfg, name, o->hub.revision, false, &dir, NULL) == SL_OK ? dir : NULL;
}

int command_pull(struct options *o)
{
    char *dir;
    struct stat info;
    if (!sl_hub_is_name(o->engine.model)) {
        bool folder = stat(o->engine.model, &info) == 0;
        return fail_with(EXIT_USAGE, "%.200s is %s, not a model's name such as org/name",
                         o->engine.model, folder ? "a folder that is here" : "a path");
    }
    if (!(dir = fetch(o, o->engine.model, o->hub.revision, true)))
        return EXIT_FAILED;
    puts(dir);
    sl_free(dir);
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}
