/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/sizes.h"

#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "sched/kvpool.h"

static const double GIB = 1024.0 * 1024.0 * 1024.0;

/* About 200 ms of work, so that a long prompt delays the others' next token by no more; a power of
 * two from 256 to 8192. */
static int tokens_of_200_ms(const struct machine *m)
{
    double fit = 0.2 * m->threads * m->core_flops_per_s / m->flops_per_token;
    int n = 256;
    while (n < 8192 && n * 2 <= fit)
        n *= 2;
    return n;
}

/* A GPU's are those of vLLM's server, by the size of its memory. */
void sizes_batch(struct sl_config *cfg, const struct machine *m, int max_model_len)
{
    bool large = m->memory >= UINT64_C(70) << 30;
    int tokens = !m->memory ? tokens_of_200_ms(m) : large ? 8192 : 2048;
    int seqs = large ? 1024 : 256;
    if (!cfg->enable_chunked_prefill && cfg->policy == SL_POLICY_MIXED)
        cfg->policy = SL_POLICY_PREFILL_FIRST;
    if (cfg->policy != SL_POLICY_MIXED && tokens < max_model_len)
        tokens = max_model_len; /* so that every prompt is one step's work */
    if (cfg->max_num_batched_tokens == 0)
        cfg->max_num_batched_tokens = tokens;
    if (cfg->max_num_seqs == 0)
        cfg->max_num_seqs = seqs < cfg->max_num_batched_tokens ? seqs : cfg->max_num_batched_tokens;
}

uint64_t sizes_kv_bytes(const struct sl_config *cfg, const struct machine *m)
{
    if (cfg->kv_cache_bytes > 0)
        return (uint64_t)cfg->kv_cache_bytes;
    if (m->memory) { /* the share that may be used, less what is taken or will be */
        double left = (double)m->memory * (double)cfg->gpu_memory_utilization -
                      (double)(m->memory - m->memory_left) - (double)m->step_bytes;
        return left > 0 ? (uint64_t)left : 0;
    }
    uint64_t most = UINT64_C(4) << 30;
    return m->memory_left && m->memory_left / 2 < most ? m->memory_left / 2 : most;
}

size_t sizes_block_bytes(const struct kv_layout *l)
{
    size_t bytes = l->more_bytes_per_token * (size_t)l->block_size;
    for (int g = 0; g < l->n_groups; g++)
        bytes += l->group[g].bytes_per_token * (size_t)l->block_size;
    return bytes;
}

enum sl_status sizes_kv(struct kv_sizes *out, const struct sl_config *cfg,
                        const struct kv_layout *l, uint64_t kv_bytes, int max_position,
                        struct sl_err *err)
{
    size_t block_bytes = sizes_block_bytes(l);
    uint64_t n =
        cfg->num_blocks_override > 0 ? (uint64_t)cfg->num_blocks_override : kv_bytes / block_bytes;
    if (n > INT32_MAX / KV_BLOCK_SIZE_MAX)
        n = INT32_MAX / KV_BLOCK_SIZE_MAX;
    uint64_t fits = n * (uint64_t)l->block_size;
    int len = cfg->max_model_len > 0 ? cfg->max_model_len : max_position;
    if (len > max_position)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_model_len",
                             "User-specified max_model_len (%d) is greater than the derived "
                             "max_model_len (max_position_embeddings=%d).",
                             len, max_position);
    if ((uint64_t)len > fits && cfg->max_model_len == -1)
        len = (int)fits;
    if (len < 2 || (uint64_t)len > fits)
        return SL_FAIL_PARAM(
            err, SL_ENOMEM, "max_model_len",
            "To serve at least one request with the model's max seq len (%d), %.2f GiB KV cache is "
            "needed, which is larger than the available KV cache memory (%.2f GiB). Based on the "
            "available memory, the estimated maximum model length is %d. Try a larger "
            "kv_cache_memory_bytes or num_gpu_blocks_override, or a smaller max_model_len.",
            len, (double)((len + l->block_size - 1) / l->block_size) * (double)block_bytes / GIB,
            (double)n * (double)block_bytes / GIB, (int)(fits < (uint64_t)len ? fits : 0));
    *out = (struct kv_sizes){.n_blocks = (int)n, .max_model_len = len, .n_tokens = fits};
    return SL_OK;
}

enum sl_status sizes_host_kv(struct sched_config *s, const struct sl_config *cfg,
                             const struct machine *m, struct sl_err *err)
{
    double offload = cfg->enable_prefix_caching ? cfg->kv_offloading_size : 0;
    double bytes = (cfg->swap_space + offload) * GIB, block = 0;
    double available = (double)limits_memory_available();
    for (int g = 0; g < s->layout.n_groups; g++)
        block += (double)s->layout.group[g].bytes_per_token * s->layout.block_size;
    if (cfg->device != SL_DEVICE_SIM && available > 0 && bytes > available)
        return SL_FAIL_PARAM(err, SL_ENOMEM,
                             cfg->swap_space > 0 ? "swap_space" : "kv_offloading_size",
                             "swap_space and kv_offloading_size ask for %.2f GiB of host memory, "
                             "%.2f GiB are available",
                             bytes / GIB, available / GIB);
    double n = bytes / block, most = INT32_MAX / KV_BLOCK_SIZE_MAX;
    s->layout.n_host_blocks = (int)(n < most ? n : most);
    s->swap = cfg->swap_space > 0 && s->layout.n_host_blocks;
    s->offload = offload > 0 && s->layout.n_host_blocks;
    if (cfg->kv_offloading_size > offload)
        log_warning("kv_offloading_size changes nothing: the prefix cache is off");
    s->host_bytes_per_s = m->host_bytes_per_s;
    s->token_ns = m->flops_per_token * 1e9 / m->flops_per_s;
    return SL_OK;
}
