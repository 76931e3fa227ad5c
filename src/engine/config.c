/* SPDX-License-Identifier: Apache-2.0 */
#include "sluice.h"

void sl_config_init(struct sl_config *cfg)
{
    *cfg = (struct sl_config){
        .generation_config = "auto",
        .kv_cache_dtype = "auto",
        .block_size = 16,
        .gpu_memory_utilization = 0.92f,
        .enable_prefix_caching = true,
        .enable_chunked_prefill = true,
        .policy = SL_POLICY_MIXED,
        .order = SL_ORDER_FCFS,
        .max_num_partial_prefills = 1,
        .max_long_partial_prefills = 1,
        .stream_interval = 1,
        .max_logprobs = 20,
        .logprobs_mode = SL_RAW_LOGPROBS,
        .max_queued_reqs = 16384,
        .max_unread_bytes = 4 << 20,
        .max_log_len = -1,
        .sim_device = "h200",
        .sim_depth = 1,
    };
}

void sl_sampling_params_init(struct sl_sampling_params *p)
{
    *p = (struct sl_sampling_params){
        .n = 1,
        .best_of = SL_NONE,
        .length_penalty = 1,
        .repetition_penalty = 1,
        .temperature = 1,
        .top_p = 1,
        .max_tokens = 16,
        .logprobs = SL_NONE,
        .prompt_logprobs = SL_NONE,
        .n_allowed_token_ids = -1,
        .detokenize = true,
        .skip_special_tokens = true,
        .spaces_between_special_tokens = true,
        .truncate_prompt_tokens = SL_NONE,
    };
}
