/* options.h - everything the command line can say, as plain data that the commands read.
 *
 * flag_table.c fills it; nothing else in the program reads flags or the environment.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_OPTIONS_H
#define CMD_OPTIONS_H

#include "flags.h"
#include "sluice.h"

enum command_bit {
    CMD_SERVE = 1 << 0,
    CMD_CHAT = 1 << 1,
    CMD_COMPLETE = 1 << 2,
    CMD_GENERATE = 1 << 3,
    CMD_RUN_BATCH = 1 << 4,
    CMD_TOKENIZE = 1 << 5,
    CMD_DETOKENIZE = 1 << 6,
    CMD_RENDER = 1 << 7,
    CMD_BENCH_THROUGHPUT = 1 << 8,
    CMD_BENCH_LATENCY = 1 << 9,
    CMD_BENCH_SERVE = 1 << 10,
    CMD_BENCH_STARTUP = 1 << 11,
    CMD_BENCH_SIM = 1 << 12,
    CMD_BENCH_POLICIES = 1 << 13,
    CMD_BENCH_CEILINGS = 1 << 14,
    CMD_PULL = 1 << 15,
    CMD_LS = 1 << 16,
    CMD_RM = 1 << 17,
    CMD_EMBED = 1 << 18
};

/* What a request asks for, where the command line says so; NAN and SL_NONE mean "not said". */
struct sampling_options {
    float temperature, top_p, min_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    int top_k, n, max_tokens, min_tokens, logprobs, prompt_logprobs;
    const char *const *stop;
    int n_stop;
    bool ignore_eos, use_beam_search;
};

/* Datasets: what the benchmarks ask for. */
struct workload_options {
    const char *dataset_name, *dataset_path, *trace;
    int num_prompts, input_len, output_len; /* input_len, output_len: -1 when not said */
    int random_input_len, random_output_len, random_prefix_len;
    int sonnet_input_len, sonnet_output_len, sonnet_prefix_len;
    int prefix_len, suffix_len, num_prefixes, prefix_output_len;
    double random_range_ratio;
    int num_warmups;
    bool disable_detokenize, async_engine;
    const char *output_json;
};

/* bench latency and startup. */
struct iteration_options {
    int batch_size, num_iters, num_iters_warmup;
    int num_iters_cold, num_iters_warm;
};

/* bench serve: the load and what is written about it. */
struct load_options {
    const char *backend, *base_url, *endpoint;
    double request_rate, burstiness;
    int max_concurrency; /* 0: no limit */
    const char *const *goodput;
    int n_goodput;
    const char *percentile_metrics, *metric_percentiles;
    bool save_result, save_detailed, append_result;
    const char *result_dir, *result_filename, *label, *request_id_prefix;
    const char *const *metadata;
    int n_metadata;
    const char *ramp_up_strategy;
    double ramp_up_start_rps, ramp_up_end_rps;
    const char *extra_body;
    const char *const *headers;
    int n_headers;
    int ready_check_timeout_s;
    double probe_request_rate;
    bool disable_tqdm;
};

/* bench sim and bench policies. */
struct sim_options {
    int replicate;
    double rate_scale; /* arrival times are divided by it */
    const char *output_svg;
    const char *const *policies; /* names; NULL: all four */
    int n_policies;
};

/* Models by name: --revision and so on; the environment's part is read in hub_setup.c. */
struct hub_options {
    const char *revision, *tokenizer_revision; /* NULL: main */
    const char *download_dir;                  /* NULL: huggingface_hub's own cache */
    const char *token;                         /* --hf-token; NULL: HF_TOKEN or the token file */
    bool yes;                                  /* rm: do not ask */
};

struct options {
    struct flags flags;
    struct hub_options hub;
    struct sl_config engine;
    struct sl_server_config server;
    struct sampling_options sampling;
    struct workload_options workload;
    struct iteration_options iterations;
    struct load_options load;
    struct sim_options sim;
    const char *config_file;
    const char *model_flag; /* --model; the positional model wins when both are the same or one */
    int log_level;          /* 0 debug .. 3 error; -1: the command's own default */
    const char *input_file, *output_file; /* -i, -o */
    int dimensions;                       /* embed: the first so many values; 0: all */
    bool truncate;                        /* embed: cut what is too long */
    const char *output_tmp_dir;           /* run-batch: where answers wait to be sent to a URL */
    const char *system_prompt;
    bool chat;                /* generate --chat */
    bool json_lines;          /* generate --json */
    const char *quick_text;   /* chat -q: one answer, then end */
    const char *history_file; /* chat: NULL or "" for none */
    const char *now;          /* render --now */
    const char *cpu_isa;      /* --cpu-isa, SLUICE_CPU_ISA: NULL or the best to use */
    bool no_progress;         /* --no-progress */
    char **args;              /* positional arguments after the model */
    int n_args;
};

void options_init(struct options *o);
/* MODEL as it was given: a folder, or a hub's name whose folder is in engine.model. */
const char *options_model_name(const struct options *o);

extern const struct flag flag_table[];
extern const int flag_table_n;

#endif
