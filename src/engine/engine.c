/* Life of an engine: created, drained, destroyed; and what can be asked of it.
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"

#include <string.h>

/* The engine outlives the caller's strings. */
static enum sl_status copy_config(struct sl_engine *e, const struct sl_config *cfg,
                                  struct sl_err *err)
{
    struct sl_config *c = &e->cfg;
    *c = *cfg;
    const char **strings[] = {&c->model,
                              &c->model_name,
                              &c->tokenizer,
                              &c->chat_template,
                              &c->generation_config,
                              &c->override_generation_config,
                              &c->hf_overrides,
                              &c->quantization,
                              &c->kv_cache_dtype,
                              &c->sim_device,
                              &c->speculative_config,
                              &c->structured_outputs_config,
                              &c->rejection_sample_method,
                              &c->convert,
                              &c->pooler_config};
    if (!c->model)
        return SL_FAIL_PARAM(err, SL_EINVAL, "model", "no model was given");
    if (!c->model_name)
        c->model_name = c->model;
    if (!c->kv_cache_dtype)
        c->kv_cache_dtype = "auto";
    if (!c->generation_config)
        c->generation_config = "auto";
    if (!c->sim_device)
        c->sim_device = "h200";
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        if (*strings[i] &&
            !(*strings[i] = arena_strndup(&e->strings, *strings[i], strlen(*strings[i]))))
            return SL_FAIL(err, SL_ENOMEM, "engine: no memory");
    int n = c->n_served_names > 0 ? c->n_served_names : 1;
    const char **names = arena_alloc(&e->strings, (size_t)n, sizeof *names);
    for (int i = 0; names && i < n; i++) {
        const char *name = c->n_served_names > 0 ? c->served_names[i] : c->model_name;
        if (!(names[i] = arena_strndup(&e->strings, name, strlen(name))))
            names = NULL;
    }
    if (!names)
        return SL_FAIL(err, SL_ENOMEM, "engine: no memory");
    c->served_names = names;
    c->n_served_names = n;
    return SL_OK;
}

enum sl_status engine_init(struct sl_engine **out, const struct sl_config *cfg, struct sl_err *err)
{
    struct sl_engine *e = mem_zalloc(1, sizeof *e);
    if (!e)
        return SL_FAIL(err, SL_ENOMEM, "engine: no memory");
    arena_init(&e->strings, 0);
    mutex_init(&e->lock, LOCK_SUBMIT);
    cond_init(&e->work);
    cond_init(&e->drained);
    e->inbox_end = &e->inbox;
    e->stalled = true;
    e->started_ns = clock_mono_ns();
    *out = e;
    return copy_config(e, cfg, err);
}

enum sl_status engine_start(struct sl_engine *e, struct sl_err *err)
{
    e->limits.vocab_size = e->info.vocab_size;
    e->limits.max_logprobs = e->cfg.max_logprobs;
    e->info.model = e->cfg.model_name;
    e->info.served_names = e->cfg.served_names;
    e->info.n_served_names = e->cfg.n_served_names;
    e->info.max_logprobs = e->cfg.max_logprobs;
    e->info.max_queued_reqs = e->cfg.max_queued_reqs;
    e->info.started_s = clock_wall_s();
    e->info.has_tokenizer = e->text != NULL;
    e->info.has_chat_template = e->text && text_has_template(e->text);
    e->info.renders_pairs = e->info.has_chat_template && e->cfg.chat_template;
    if (!e->cfg.max_unread_bytes)
        e->cfg.max_unread_bytes = 4 << 20;
    enum sl_status st =
        metrics_create(&e->metrics, e->cfg.served_names[0], e->info.max_model_len, err);
    if (!st && e->proposer)
        metrics_set_draft_places(e->metrics, e->proposer->max_tokens);
    if (!st)
        st = core_create(&e->core, &e->sched_cfg, e->be, engine_sink, e, err);
    if (!st)
        st = setup_take_memory(e, err);
    if (!st)
        st = structured_start(e, err);
    if (st)
        return st;
    int max_beams = sched_max_beams(core_sched(e->core));
    e->limits.max_beams = max_beams > 0 ? max_beams : -1;
    e->stats.last_ns = clock_mono_ns();
    if (pthread_create(&e->thread, NULL, engine_main, e))
        return SL_FAIL(err, SL_ENOMEM, "engine: no thread could be started");
    pthread_setname_np(e->thread, "sluice-engine");
    e->has_thread = true;
    log_info("init engine (profile, create kv cache, warmup model) took %.2f s (compilation: 0.00 "
             "s)",
             (double)(clock_mono_ns() - e->started_ns) * 1e-9);
    return SL_OK;
}

enum sl_status sl_engine_create(struct sl_engine **out, const struct sl_config *cfg,
                                struct sl_err *err)
{
    struct sl_engine *e = NULL;
    enum sl_status st = engine_init(&e, cfg, err);
    if (!st)
        st = setup_open(e, err);
    if (!st)
        st = engine_start(e, err);
    if (st)
        sl_engine_destroy(&e);
    else
        *out = e;
    return st;
}

void sl_engine_destroy(struct sl_engine **ep)
{
    struct sl_engine *e = *ep;
    if (!e)
        return;
    if (e->has_thread) {
        mutex_lock(&e->lock);
        e->stop = true;
        cond_signal(&e->work);
        mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    core_destroy(&e->core);
    setup_close(e);
    metrics_destroy(&e->metrics);
    cond_fini(&e->work);
    cond_fini(&e->drained);
    structured_fini(e);
    mutex_fini(&e->lock);
    arena_fini(&e->strings);
    mem_free(e);
    *ep = NULL;
}

void sl_engine_drain(struct sl_engine *e, int timeout_ms)
{
    int64_t deadline = clock_mono_ns() + (int64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;
    bool in_time = true;
    mutex_lock(&e->lock);
    e->draining = true;
    while (e->n_live > 0 && in_time)
        in_time = cond_wait_until(&e->drained, &e->lock, deadline);
    if (e->n_live > 0) {
        e->abort_all = true;
        cond_signal(&e->work);
    }
    while (e->n_live > 0) /* within a step */
        cond_wait(&e->drained, &e->lock);
    mutex_unlock(&e->lock);
}

void sl_engine_info(const struct sl_engine *e, struct sl_engine_info *out)
{
    *out = e->info;
    out->dead = atomic_load_explicit(&e->dead, memory_order_acquire);
}

void sl_engine_default_params(struct sl_engine *e, struct sl_sampling_params *p)
{
    *p = e->defaults;
}

enum sl_status sl_sampling_params_check(const struct sl_engine *e, struct sl_sampling_params *p,
                                        struct sl_err *err)
{
    static const struct params_limits none = {.max_logprobs = -1};
    return params_check(e ? &e->limits : &none, p, err);
}

const struct sl_text *sl_engine_text(const struct sl_engine *e)
{
    return e->text;
}

void engine_metrics_render(const struct sl_engine *e, struct strbuf *out)
{
    metrics_render(e->metrics, e->cache_info, out);
}

struct metrics *engine_metrics(struct sl_engine *e)
{
    return e->metrics;
}
