/* SPDX-License-Identifier: Apache-2.0 */
#include "sim_setup.h"

#include "backend/sim/sim.h"
#include "engine/sizes.h"
#include "model/model.h"

#include <string.h>

enum { DEFAULT_MAX_LEN = 8192, DEFAULT_REQUESTS = 1000 };

static bool model_shape(struct sim_setup *s, const struct options *o, int *max_position,
                        struct sl_err *err)
{
    struct model_spec *spec = NULL;
    struct model_info info;
    if (model_spec_load(&spec, o->engine.model, o->engine.hf_overrides, "vllm", err))
        return false;
    model_spec_info(spec, &info);
    model_spec_destroy(&spec);
    s->model = options_model_name(o);
    s->weight_bytes = (double)info.weight_bytes;
    s->flops_per_token = (double)info.flops_per_token;
    s->attn_flops_per_pair = 4.0 * info.hidden * info.n_layers;
    s->vocab_size = info.vocab_size;
    s->sched.layout = info.layout;
    *max_position = info.max_position;
    return true;
}

static void llama_8b_shape(struct sim_setup *s)
{
    s->model = "Llama-3.1-8B bf16";
    s->weight_bytes = 15.01e9;
    s->flops_per_token = 13.96e9;
    s->attn_flops_per_pair = 4.0 * 4096 * 32;
    s->vocab_size = 128256;
    s->sched.layout = (struct kv_layout){
        .n_groups = 1, .group = {{.n_layers = 32, .bytes_per_token = 2 * 8 * 128 * 2 * 32}}};
}

/* KV memory as a serving process would take it: what the weights leave, or 4 GiB on the CPU. */
static int64_t kv_bytes(const struct sim_setup *s, const struct options *o)
{
    if (o->engine.kv_cache_bytes > 0)
        return o->engine.kv_cache_bytes;
    if (strcmp(s->device, "h200") != 0)
        return (int64_t)4 << 30;
    double usable = 139.8 * (1 << 30) * (double)o->engine.gpu_memory_utilization;
    return (int64_t)(usable - s->weight_bytes - 3e9); /* activations and the embedding table */
}

bool sim_setup_make(struct sim_setup *s, const struct options *o, struct sl_err *err)
{
    const struct sl_config *e = &o->engine;
    int max_position = DEFAULT_MAX_LEN;
    *s = (struct sim_setup){.device = e->sim_device ? e->sim_device : "h200",
                            .fixed_step_ns = e->sim_step_ms * 1e6};
    bool gpu = strcmp(s->device, "cpu") != 0;
    if (e->model && !model_shape(s, o, &max_position, err))
        return false;
    if (!e->model)
        llama_8b_shape(s);
    struct sched_config *c = &s->sched;
    c->policy = e->enable_chunked_prefill ? e->policy : SL_POLICY_PREFILL_FIRST;
    c->order = e->order;
    c->max_model_len = e->max_model_len > 0 ? e->max_model_len : max_position;
    c->max_num_seqs = e->max_num_seqs > 0 ? e->max_num_seqs : 256;
    c->max_num_batched_tokens = e->max_num_batched_tokens > 0 ? e->max_num_batched_tokens
                                : gpu                         ? 8192
                                                              : 1024;
    c->max_num_partial_prefills = e->max_num_partial_prefills;
    c->max_long_partial_prefills = e->max_long_partial_prefills;
    c->long_prefill_token_threshold = e->long_prefill_token_threshold;
    c->enable_prefix_caching = e->enable_prefix_caching;
    c->depth = flags_is_set(&o->flags, "sim-depth") ? e->sim_depth : gpu ? 2 : 1;
    c->layout.block_size = e->block_size > 0 ? e->block_size : 16;
    double bytes_per_block = 0;
    for (int g = 0; g < c->layout.n_groups; g++)
        bytes_per_block += (double)c->layout.group[g].bytes_per_token * c->layout.block_size;
    double n_blocks = (double)kv_bytes(s, o) / bytes_per_block;
    if (e->num_blocks_override > 0)
        n_blocks = e->num_blocks_override;
    if (n_blocks < 1)
        return SL_FAIL(err, SL_ENOMEM, "no memory is left for a KV block of %.0f bytes",
                       bytes_per_block) == SL_OK;
    c->layout.n_blocks = n_blocks < 1 << 20 ? (int)n_blocks : 1 << 20;
    const struct machine machine = {.flops_per_token = s->flops_per_token,
                                    .flops_per_s = gpu ? 450e12 : 3e12,
                                    .host_bytes_per_s = gpu ? 50e9 : 10e9};
    struct sl_config host = *e;
    host.device = SL_DEVICE_SIM;
    if (sizes_host_kv(c, &host, &machine, err))
        return false;
    if (c->max_model_len > c->layout.n_blocks * c->layout.block_size)
        c->max_model_len = c->layout.n_blocks * c->layout.block_size;
    if (c->max_model_len < 2)
        return SL_FAIL(err, SL_EINVAL, "a context of %d tokens is too short", c->max_model_len) ==
               SL_OK;
    return true;
}

bool sim_setup_backend(struct backend **out, const struct sim_setup *s, struct sl_err *err)
{
    struct sim_config cfg = {.device = s->device,
                             .weight_bytes = s->weight_bytes,
                             .flops_per_token = s->flops_per_token,
                             .attn_flops_per_pair = s->attn_flops_per_pair,
                             .vocab_size = s->vocab_size,
                             .depth = s->sched.depth,
                             .max_seqs = s->sched.max_num_seqs,
                             .fixed_step_ns = s->fixed_step_ns,
                             .layout = s->sched.layout,
                             .eos = -1};
    return sim_create(out, &cfg, err) == SL_OK;
}

bool sim_setup_load(struct replay_load *l, const struct options *o, int max_len, struct sl_err *err)
{
    const struct workload_options *w = &o->workload;
    int n = flags_is_set(&o->flags, "num-prompts") ? w->num_prompts : 0;
    if (o->sim.replicate < 1 || o->sim.rate_scale <= 0)
        return SL_FAIL(err, SL_EINVAL, "--replicate and --rate-scale must be positive") == SL_OK;
    if (w->trace) {
        if (!replay_load_trace(l, w->trace, max_len, n, err))
            return false;
        l->rate_scale = o->sim.rate_scale;
    } else {
        if (w->random_input_len < 1 || w->random_output_len < 1 ||
            w->random_input_len > max_len - w->random_output_len)
            return SL_FAIL(err, SL_EINVAL,
                           "--random-input-len and --random-output-len must be positive and "
                           "together at most %d",
                           max_len) == SL_OK;
        replay_load_equal(l, n > 0 ? n : DEFAULT_REQUESTS, w->random_input_len,
                          w->random_output_len);
    }
    l->replicate = o->sim.replicate;
    l->seed = (uint64_t)o->engine.seed;
    return true;
}
