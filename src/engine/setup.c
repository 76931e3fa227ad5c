/* From a configuration to a backend that is ready but for its memory: the model's spec and
 * defaults, the tokenizer, the device, the sizes.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/isa.h"
#include "backend/sim/sim.h"
#include "base/limits.h"
#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/sizes.h"
#include "model/spec.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const double GIB = 1024.0 * 1024.0 * 1024.0;

/* ---- the model's own sampling defaults ------------------------------------------------------- */

static void default_float(const json_t *over, const char *key, double of_model, float *field)
{
    const json_t *v = json_object_get(over, key);
    double d = json_is_number(v) ? json_number_value(v) : of_model;
    if (!isnan(d))
        *field = (float)d;
}

static void default_int(const json_t *over, const char *key, int of_model, int *field)
{
    const json_t *v = json_object_get(over, key);
    int d = json_is_integer(v) ? (int)json_integer_value(v) : of_model;
    if (d != SL_NONE)
        *field = d;
}

/* generation_config.json, then --override-generation-config. */
static enum sl_status set_defaults(struct sl_engine *e, const struct model_info *mi,
                                   struct sl_err *err)
{
    const char *text = e->cfg.override_generation_config;
    json_error_t je;
    json_t *over = text ? json_loads(text, 0, &je) : NULL;
    if (text && !json_is_object(over)) {
        json_decref(over);
        return SL_FAIL_PARAM(err, SL_EINVAL, "override_generation_config",
                             "override_generation_config must be a JSON object");
    }
    struct sl_sampling_params *p = &e->defaults;
    sl_sampling_params_init(p);
    e->info.max_new_tokens = SL_NONE;
    default_float(over, "temperature", mi->temperature, &p->temperature);
    default_float(over, "top_p", mi->top_p, &p->top_p);
    default_float(over, "min_p", mi->min_p, &p->min_p);
    default_float(over, "repetition_penalty", mi->repetition_penalty, &p->repetition_penalty);
    default_int(over, "top_k", mi->top_k, &p->top_k);
    default_int(over, "max_new_tokens", mi->max_new_tokens, &e->info.max_new_tokens);
    if (e->info.max_new_tokens != SL_NONE)
        p->max_tokens = e->info.max_new_tokens;
    json_decref(over);
    return SL_OK;
}

/* ---- devices --------------------------------------------------------------------------------- */

static enum sl_status sample_rows(void *ctx, const struct batch *b, const float *logits,
                                  struct step_result *r, struct sl_err *err)
{
    return sampler_run(ctx, b, logits, r, err);
}

static enum sl_status read_drawn(void *ctx, const struct batch *b, const struct draw_rows *rows,
                                 const struct draw_result *result, const struct draw_top *top,
                                 const struct step_result *host, struct step_result *r,
                                 struct sl_err *err)
{
    return sampler_read(ctx, b, rows, result, top, host, r, err);
}

static const struct draw_hooks draw_hooks = {.describe = sampler_describe, .read = read_drawn};

static enum sl_status open_sim(struct sl_engine *e, const struct model_info *mi, struct sl_err *err)
{
    const struct model_spec *s = e->spec;
    struct sim_config sim = {
        .device = e->cfg.sim_device,
        .weight_bytes = (double)mi->weight_bytes,
        .flops_per_token = (double)mi->flops_per_token,
        .attn_flops_per_pair = 4.0 * s->n_heads * s->head_dim * s->n_layers,
        .fixed_step_ns = e->cfg.sim_step_ms * 1e6,
        .vocab_size = mi->vocab_size,
        .depth = e->cfg.sim_depth,
        .fail_step = e->cfg.sim_fail_step,
        .real_time = true,
        .layout = mi->layout,
        .eos = mi->n_eos ? mi->eos[0] : -1,
    };
    sim.layout.block_size = e->cfg.block_size;
    return sim_create(&e->be, &sim, err);
}

enum sl_status setup_device(const struct sl_config *cfg, struct runner_config *rc,
                            struct sl_err *err)
{
#ifdef SLUICE_CUDA
    if (cfg->device == SL_DEVICE_CUDA)
        return cuda_device_create(&rc->ops, &rc->device, err);
#endif
    if (cfg->device == SL_DEVICE_REF)
        return ref_device_create(&rc->ops, &rc->device, err);
    return cpu_device_create(&rc->ops, &rc->device, cfg->threads, err);
}

#ifdef SLUICE_CUDA
/* What is asked for is the CPU's alone; err says what. */
static bool wants_cpu(const struct sl_config *cfg, struct sl_err *err)
{
    const char *q = cfg->quantization, *kv = cfg->kv_cache_dtype;
    const char *what = q && (!strcmp(q, "int8") || !strcmp(q, "int4")) ? "quantization"
                       : kv && !strcmp(kv, "int8")                     ? "kv_cache_dtype"
                                                                       : NULL;
    return what && SL_FAIL(err, SL_ENOTFOUND, "%s %s is for the CPU", what, *what == 'q' ? q : kv);
}
#endif

/* A GPU if there is one that can be used. */
static enum sl_status choose_device(struct sl_config *cfg, struct runner_config *rc,
                                    struct sl_err *err)
{
#ifdef SLUICE_CUDA
    struct sl_err none = {0};
    cfg->device = SL_DEVICE_CUDA;
    enum sl_status st = wants_cpu(cfg, &none) ? SL_ENOTFOUND : setup_device(cfg, rc, &none);
    if (st != SL_ENOTFOUND) {
        if (st && err)
            *err = none;
        return st;
    }
    log_info("Computing on the CPU, not on a GPU: %s", none.msg);
#endif
    cfg->device = SL_DEVICE_CPU;
    return setup_device(cfg, rc, err);
}

static enum sl_status open_device(struct sl_engine *e, struct sl_err *err)
{
    struct runner_config rc = {
        .spec = e->spec,
        .dir = e->cfg.model,
        .load_format = e->cfg.load_format,
        .seed = (uint64_t)e->cfg.seed,
        .dtype = e->cfg.dtype,
        .quantization = e->cfg.quantization,
        .kv_cache_dtype = e->cfg.kv_cache_dtype,
        .block_size = e->cfg.block_size,
    };
    enum sl_status st = e->cfg.device == SL_DEVICE_AUTO ? choose_device(&e->cfg, &rc, err)
                                                        : setup_device(&e->cfg, &rc, err);
    if (st)
        return st;
    e->ops = rc.ops;
    e->device = rc.device;
    if (e->cfg.fast_nondeterministic && rc.ops->set_fast)
        rc.ops->set_fast(rc.device);
    else if (e->cfg.fast_nondeterministic)
        log_warning("fast_nondeterministic changes nothing on device %s", rc.ops->name);
    log_info("Starting to load model %s...", e->cfg.model_name);
    int64_t start = clock_mono_ns();
    st = runner_create(&e->runner, &rc, err);
    if (st)
        return st;
    e->be = runner_backend(e->runner);
    double seconds = (double)(clock_mono_ns() - start) * 1e-9;
    log_info("Loading weights took %.2f seconds", seconds);
    struct model_info mi;
    model_spec_info(e->spec, &mi);
    log_info("Model loading took %.4f GiB memory and %.6f seconds",
             (double)runner_weight_bytes(e->runner) / GIB, seconds);
    st = sampler_create(&e->sampler, mi.vocab_size, e->cfg.logprobs_mode, err);
    if (st)
        return st;
    runner_set_sampler(e->runner, sample_rows, e->sampler);
    e->device_draws = runner_set_draw(e->runner, &draw_hooks, e->cfg.enforce_eager);
    return SL_OK;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* 1234567 -> "1,234,567" */
static const char *commas(char *out, size_t size, uint64_t v)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%llu", (unsigned long long)v);
    size_t at = 0;
    for (int i = 0; i < n && at + 2 < size; i++) {
        if (i && (n - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

static enum sl_status see_machine(struct sl_engine *e, const struct model_info *mi,
                                  struct machine *m, struct sl_err *err)
{
    struct sl_config *cfg = &e->cfg;
    *m = (struct machine){
        .device = cfg->device,
        .threads = cfg->threads > 0 ? cfg->threads : limits_cores(),
        .memory_left = (uint64_t)limits_memory_available(),
        .flops_per_token = mi->flops_per_token ? (double)mi->flops_per_token : 1,
        .core_flops_per_s = 100e9, /* of a simulated one, so that sizes don't depend on the host */
        .host_bytes_per_s = 10e9,
    };
    if (cfg->device == SL_DEVICE_REF)
        m->core_flops_per_s = 1e9;
    else if (cfg->device != SL_DEVICE_SIM)
        m->core_flops_per_s = cpu_isa_core_flops(cpu_isa_current());
    m->flops_per_s = m->threads * m->core_flops_per_s;
    if (cfg->device == SL_DEVICE_CUDA || cfg->device == SL_DEVICE_SIM) {
        m->flops_per_s = 450e12; /* of Hopper; what came before it is slower in both alike */
        m->host_bytes_per_s = 50e9;
    }
    if (cfg->device == SL_DEVICE_SIM && strcmp(cfg->sim_device, "h200") == 0) {
        m->memory = UINT64_C(139) << 30;
        m->memory_left = m->memory > mi->weight_bytes ? m->memory - mi->weight_bytes : 0;
    }
    if (!e->ops || !e->ops->memory)
        return SL_OK;
    size_t left, total;
    enum sl_status st = e->ops->memory(e->device, &left, &total, err);
    if (st)
        return st;
    m->memory = total;
    m->memory_left = left;
    return SL_OK;
}

/* An encoder computes a prompt in one step: no step may be shorter than the longest. */
static enum sl_status size_whole_prompts(struct sl_config *cfg, int longest, struct sl_err *err)
{
    if (cfg->max_num_batched_tokens && cfg->max_num_batched_tokens < longest)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_num_batched_tokens",
                             "max_num_batched_tokens (%d) is smaller than max_model_len (%d); an "
                             "encoder computes a prompt in one step",
                             cfg->max_num_batched_tokens, longest);
    enum { USUAL = 2048 };
    if (!cfg->max_num_batched_tokens)
        cfg->max_num_batched_tokens = longest > USUAL ? longest : USUAL;
    cfg->enable_prefix_caching = false; /* K and V depend on what follows */
    return SL_OK;
}

static void log_sizes(const struct sl_engine *e, const struct kv_sizes *kv)
{
    const struct sl_config *cfg = &e->cfg;
    const struct kv_layout *layout = &e->sched_cfg.layout;
    char tokens[32], len[32];
    if (cfg->max_model_len < 0)
        log_info("Using max model len %d", kv->max_model_len);
    log_info("Available KV cache memory: %.2f GiB",
             (double)kv->n_blocks * (double)sizes_block_bytes(layout) / GIB);
    log_info("GPU KV cache size: %s tokens, Maximum concurrency for %s tokens per request: %.2fx",
             commas(tokens, sizeof tokens, kv->n_tokens),
             commas(len, sizeof len, (uint64_t)kv->max_model_len),
             (double)kv->n_tokens / kv->max_model_len);
    if (layout->n_host_blocks)
        log_info("Host memory for KV: %.2f GiB, %s tokens",
                 cfg->swap_space + cfg->kv_offloading_size,
                 commas(tokens, sizeof tokens,
                        (uint64_t)layout->n_host_blocks * (uint64_t)layout->block_size));
}

static enum sl_status set_sizes(struct sl_engine *e, const struct model_info *mi,
                                struct sl_err *err)
{
    struct sl_config *cfg = &e->cfg;
    struct machine m;
    struct kv_layout *layout = &e->sched_cfg.layout;
    struct kv_sizes kv;
    *layout = e->be->layout;
    if (e->draft_spec)
        layout->more_bytes_per_token += draft_model_bytes_per_token(e->proposer);
    enum sl_status st = see_machine(e, mi, &m, err);
    if (st)
        return st;
    int most = cfg->max_model_len > 0 ? cfg->max_model_len : mi->max_position;
    if (mi->whole_prompts && (st = size_whole_prompts(cfg, most, err)))
        return st;
    sizes_batch(cfg, &m, most);
    if (mi->whole_prompts && !cfg->num_blocks_override && !cfg->kv_cache_bytes)
        cfg->num_blocks_override = cfg->max_num_batched_tokens / cfg->block_size +
                                   cfg->max_num_seqs; /* a step's K and V, and no more */
    if (e->runner) {
        struct batch_limits limits = {.max_tokens = cfg->max_num_batched_tokens,
                                      .max_seqs = cfg->max_num_seqs,
                                      .max_samples = cfg->max_num_seqs,
                                      .max_logits = cfg->max_num_batched_tokens};
        m.step_bytes = runner_activation_bytes(e->runner, &limits);
        if (e->draft_spec)
            m.step_bytes += draft_model_step_bytes(e->proposer, limits.max_tokens, limits.max_seqs);
    }
    st = sizes_kv(&kv, cfg, layout, sizes_kv_bytes(cfg, &m), mi->max_position, err);
    if (st)
        return st;
    layout->n_blocks = kv.n_blocks;
    if ((st = sizes_host_kv(&e->sched_cfg, cfg, &m, err)))
        return st;
    if (e->runner)
        runner_set_host_kv(e->runner, layout->n_host_blocks);
    e->info.max_model_len = kv.max_model_len;
    e->info.n_kv_blocks = kv.n_blocks;
    e->info.block_size = layout->block_size;
    e->info.max_num_seqs = cfg->max_num_seqs;
    e->info.max_num_batched_tokens = cfg->max_num_batched_tokens;
    log_sizes(e, &kv);
    return SL_OK;
}

static void set_sched_config(struct sl_engine *e)
{
    const struct sl_config *cfg = &e->cfg;
    struct sched_config *s = &e->sched_cfg;
    s->policy = cfg->policy;
    s->order = cfg->order;
    s->max_num_seqs = cfg->max_num_seqs;
    s->max_num_batched_tokens = cfg->max_num_batched_tokens;
    s->max_model_len = e->info.max_model_len;
    s->max_num_partial_prefills = cfg->max_num_partial_prefills;
    s->max_long_partial_prefills = cfg->max_long_partial_prefills;
    s->long_prefill_token_threshold = cfg->long_prefill_token_threshold;
    s->enable_prefix_caching = cfg->enable_prefix_caching;
    s->depth = e->be->depth;
    s->proposer = e->proposer;
    if (!e->info.pools)
        return;
    s->policy = SL_POLICY_MIXED; /* the others are about decodes */
    s->max_model_len++;          /* a prompt may fill it: no token follows */
    s->whole_prompts = e->spec->both_ways;
}

static enum sl_status set_pooling_info(struct sl_engine *e, struct sl_err *err)
{
    const struct pool_spec *p = &e->spec->pool;
    e->info.pools = p->only;
    if (!p->only)
        return SL_OK;
    e->info.task = p->classify      ? SL_POOL_CLASSIFY
                   : p->token_level ? SL_POOL_TOKEN_EMBED
                                    : SL_POOL_EMBED;
    e->info.embedding_size = p->classify ? p->n_labels : spec_dim(e->spec, DIM_EMBED);
    e->info.labels = p->label;
    e->info.joins_pairs = p->joins_pairs;
    if (e->cfg.device == SL_DEVICE_SIM)
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "device",
                             "device sim makes up tokens, not embeddings");
    static const char *const tasks[] = {"embed", "token_embed", "classify"};
    log_info("Supported tasks: ['%s']", tasks[e->info.task]);
    return SL_OK;
}

static bool make_cache_info(struct sl_engine *e)
{
    const struct sl_config *cfg = &e->cfg;
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_addf(&b, "block_size=\"%d\",cache_dtype=", cfg->block_size);
    metrics_label(&b, cfg->kv_cache_dtype);
    strbuf_addf(&b,
                ",enable_prefix_caching=\"%s\",gpu_memory_utilization=\"%.2f\","
                "kv_cache_memory_bytes=\"%lld\",num_gpu_blocks=\"%d\"",
                cfg->enable_prefix_caching ? "True" : "False", (double)cfg->gpu_memory_utilization,
                (long long)cfg->kv_cache_bytes, e->info.n_kv_blocks);
    if (cfg->num_blocks_override)
        strbuf_addf(&b, ",num_gpu_blocks_override=\"%d\"", cfg->num_blocks_override);
    else
        strbuf_adds(&b, ",num_gpu_blocks_override=\"None\"");
    e->cache_info = strbuf_take(&b);
    return e->cache_info != NULL;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static enum sl_status check_config(const struct sl_config *c, struct sl_err *err)
{
    static const struct {
        const char *name;
        size_t offset;
        int min, max;
    } range[] = {
#define FIELD(name, min, max) {#name, offsetof(struct sl_config, name), min, max}
        FIELD(block_size, 1, 1024),
        FIELD(max_model_len, -1, INT32_MAX),
        FIELD(max_num_seqs, 0, 65536),
        FIELD(max_num_batched_tokens, 0, 1 << 20),
        FIELD(num_blocks_override, 0, INT32_MAX),
        FIELD(max_num_partial_prefills, 1, 65536),
        FIELD(max_long_partial_prefills, 1, 65536),
        FIELD(long_prefill_token_threshold, 0, INT32_MAX),
        FIELD(stream_interval, 1, INT32_MAX),
        FIELD(max_logprobs, -1, INT32_MAX),
        FIELD(max_queued_reqs, 1, INT32_MAX),
        FIELD(threads, 0, 1024),
        FIELD(max_log_len, -1, INT32_MAX),
        FIELD(sim_depth, 1, 16),
        FIELD(sim_fail_step, 0, INT32_MAX),
#undef FIELD
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; i++) {
        int v = *(const int *)((const char *)c + range[i].offset);
        if (v < range[i].min || v > range[i].max)
            return SL_FAIL_PARAM(err, SL_EINVAL, range[i].name, "%s must be from %d to %d, got %d",
                                 range[i].name, range[i].min, range[i].max, v);
    }
    if (!(c->swap_space >= 0 && c->kv_offloading_size >= 0))
        return SL_FAIL_PARAM(err, SL_EINVAL,
                             c->swap_space >= 0 ? "kv_offloading_size" : "swap_space",
                             "swap_space and kv_offloading_size must not be negative");
    if (c->kv_cache_bytes < 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "kv_cache_bytes", "kv_cache_bytes is negative");
    if (!(c->gpu_memory_utilization > 0 && c->gpu_memory_utilization <= 1))
        return SL_FAIL_PARAM(err, SL_EINVAL, "gpu_memory_utilization",
                             "gpu_memory_utilization must be in (0, 1], got %g",
                             (double)c->gpu_memory_utilization);
    if (c->max_num_batched_tokens && c->max_num_seqs > c->max_num_batched_tokens)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_num_batched_tokens",
                             "max_num_batched_tokens (%d) must be greater than or equal to "
                             "max_num_seqs (%d).",
                             c->max_num_batched_tokens, c->max_num_seqs);
#ifndef SLUICE_CUDA
    if (c->device == SL_DEVICE_CUDA)
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "device",
                             "device cuda is not in this build; there are cpu, ref and sim");
#endif
    return SL_OK;
}

static enum sl_status open_text(struct sl_engine *e, struct sl_err *err)
{
    const char *dir = e->cfg.tokenizer ? e->cfg.tokenizer : e->cfg.model;
    struct sl_err own = {0};
    if (e->cfg.skip_tokenizer_init)
        return SL_OK;
    enum sl_status st = sl_text_open(&e->text, dir, e->cfg.chat_template, &own);
    if (st == SL_ENOTFOUND && e->cfg.device == SL_DEVICE_SIM && !e->cfg.tokenizer) {
        log_warning("%s has no tokenizer: requests must be token ids.", dir);
        return SL_OK;
    }
    if (st && err && err->code == SL_OK)
        *err = own;
    return st;
}

/* The ids of the tokens that a classification head is made of. */
static enum sl_status find_head_tokens(struct sl_engine *e, struct sl_err *err)
{
    struct pool_spec *p = &e->spec->pool;
    for (int i = 0; i < p->n_head_tokens; i++) {
        int32_t id = e->text ? tokenizer_token_id(text_tokenizer(e->text), p->head_token[i]) : -1;
        if (id < 0 || id >= e->info.vocab_size)
            return SL_FAIL_PARAM(err, SL_EINVAL, "hf_overrides",
                                 "classifier_from_token: the tokenizer has no token '%.64s'",
                                 p->head_token[i]);
        p->head_id[i] = id;
    }
    return SL_OK;
}

enum sl_status setup_open(struct sl_engine *e, struct sl_err *err)
{
    struct sl_config *cfg = &e->cfg;
    struct model_info mi;
    enum sl_status st = check_config(cfg, err);
    if (st)
        return st;
    const struct spec_options use = {.hf_overrides = cfg->hf_overrides,
                                     .generation_config = cfg->generation_config,
                                     .runner = cfg->runner,
                                     .convert = cfg->convert,
                                     .pooler_config = cfg->pooler_config};
    st = model_spec_load_as(&e->spec, cfg->model, &use, err);
    if (st || (st = set_pooling_info(e, err)))
        return st;
    model_spec_info(e->spec, &mi);
    e->info.architecture = arena_strndup(&e->strings, mi.architecture, strlen(mi.architecture));
    if (!e->info.architecture)
        return SL_FAIL(err, SL_ENOMEM, "engine: no memory");
    log_info("Resolved architecture: %s", mi.architecture);
    if (cfg->max_model_len >= 0) /* -1, "as much as fits", is known when the memory is */
        log_info("Using max model len %d",
                 cfg->max_model_len ? cfg->max_model_len : mi.max_position);
    e->info.vocab_size = mi.vocab_size;
    e->limits.n_eos = mi.n_eos;
    memcpy(e->limits.eos, mi.eos, sizeof e->limits.eos);
    st = set_defaults(e, &mi, err);
    if (!st)
        st = open_text(e, err);
    if (!st)
        st = find_head_tokens(e, err);
    if (!st)
        st = cfg->device == SL_DEVICE_SIM ? open_sim(e, &mi, err) : open_device(e, err);
    if (!st)
        st = speculate_open(e, err);
    if (!st)
        st = set_sizes(e, &mi, err);
    if (st)
        return st;
    set_sched_config(e);
    for (int g = 0; g < e->be->layout.n_groups; g++)
        e->device_keeps_tokens = e->device_keeps_tokens || !e->be->layout.group[g].window;
    return make_cache_info(e) ? SL_OK : SL_FAIL(err, SL_ENOMEM, "engine: no memory");
}

enum sl_status setup_take_memory(struct sl_engine *e, struct sl_err *err)
{
    struct batch_limits limits;
    int64_t start = clock_mono_ns();
    if (!e->runner)
        return SL_OK;
    sched_batch_limits(core_sched(e->core), &limits);
    enum sl_status st = runner_take_kv(e->runner, e->sched_cfg.layout.n_blocks, &limits, err);
    if (!st)
        st = speculate_take_memory(e, &limits, err);
    log_info("KV cache and buffers took %.2f seconds", (double)(clock_mono_ns() - start) * 1e-9);
    return st;
}

void setup_close(struct sl_engine *e)
{
    speculate_close(e);
    if (e->be)
        e->be->ops->destroy(e->be);
    e->be = NULL;
    sampler_destroy(&e->sampler);
    sl_text_close(&e->text);
    model_spec_destroy(&e->spec);
    mem_free(e->cache_info);
    e->cache_info = NULL;
}
