/* sluice.h - the public interface of libsluice, an LLM inference and serving engine.
 *
 * Create an engine on a model folder, submit requests, read their outputs:
 *
 *     struct sl_config cfg;
 *     sl_config_init(&cfg);
 *     cfg.model = "models/pebble";
 *     sl_engine_create(&engine, &cfg, &err);
 *     sl_submit(engine, &input, &params, NULL, NULL, &req, &err);
 *     while (sl_request_wait(req, -1) == SL_OK && (out = sl_request_next(req)))
 *         fwrite(out->text, 1, out->text_bytes, stdout);
 *     sl_request_release(&req);
 *
 * Conventions: 0 (SL_OK) is success, every failing call fills `err` (NULL allowed) with one
 * sentence. Strings are UTF-8 and borrowed for the call unless said otherwise. Token ids are
 * int32_t. Threads: an engine may be used from any number of threads; one request from one thread
 * at a time.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SLUICE_H
#define SLUICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SL_API __attribute__((visibility("default")))
#define SL_MUST_CHECK __attribute__((warn_unused_result))
#else
#define SL_API
#define SL_MUST_CHECK
#endif

/* ---- status ------------------------------------------------------------------------------- */

enum sl_status {
    SL_OK = 0,
    SL_EAGAIN = -1,    /* flow control: a queue is full, nothing is ready; writes no message */
    SL_EINVAL = -2,    /* the caller's argument or request is wrong (HTTP 400) */
    SL_EFORMAT = -3,   /* a file's content is wrong */
    SL_ENOMEM = -4,    /* host or device memory, or KV cache, does not suffice */
    SL_EDEVICE = -5,   /* the device failed; the engine is dead from here on (HTTP 503) */
    SL_ENOTFOUND = -6, /* no such file, model or name (HTTP 404) */
    SL_EIO = -7,       /* reading, writing or the network failed */
    SL_ESHUTDOWN = -8, /* the engine is draining or stopped (HTTP 503) */
    SL_ENOSUPPORT = -9 /* known but not there yet, refused by name (HTTP 501) */
};

struct sl_err {
    enum sl_status code;
    const char *file; /* static string: where it was raised */
    int line;
    char param[64]; /* the request field or flag at fault; "" when none applies */
    char msg[1024]; /* one sentence */
};

SL_API const char *sl_version(void); /* "0.1.0" */

/* The library logs to stderr, one line an event, from `min` up (SL_LOG_INFO until set). A program
 * may write lines of its own in the same form; `file` is a static string. Any thread. */
enum sl_log_level { SL_LOG_DEBUG, SL_LOG_INFO, SL_LOG_WARNING, SL_LOG_ERROR };
SL_API void sl_log_set_level(enum sl_log_level min);
SL_API void sl_log(enum sl_log_level level, const char *file, int line, const char *fmt, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;

/* ---- engine configuration: the flags of `sluice serve`, same names, same defaults ----------- */

struct sl_engine;

#define SL_NONE INT32_MIN /* "absent" in an integer field for which 0 and -1 mean something */

enum sl_device { SL_DEVICE_AUTO, SL_DEVICE_REF, SL_DEVICE_CPU, SL_DEVICE_CUDA, SL_DEVICE_SIM };
enum sl_policy { SL_POLICY_MIXED, SL_POLICY_PREFILL_FIRST, SL_POLICY_STATIC, SL_POLICY_REQUEST };
enum sl_order { SL_ORDER_FCFS, SL_ORDER_PRIORITY };
enum sl_dtype { SL_DTYPE_AUTO, SL_DTYPE_F32, SL_DTYPE_F16, SL_DTYPE_BF16 };
enum sl_runner { SL_RUNNER_AUTO, SL_RUNNER_GENERATE, SL_RUNNER_POOLING };
enum sl_load_format { SL_LOAD_AUTO, SL_LOAD_DUMMY };
enum sl_logprobs_mode {
    SL_RAW_LOGPROBS,
    SL_PROCESSED_LOGPROBS,
    SL_RAW_LOGITS,
    SL_PROCESSED_LOGITS
};

struct sl_config {
    const char *model;               /* folder in Hugging Face layout; see sl_hub_fetch */
    const char *model_name;          /* what to call it; NULL: `model` as given */
    const char *tokenizer;           /* NULL: the model's folder */
    const char *const *served_names; /* NULL: one, model_name */
    int n_served_names;
    const char *chat_template;     /* file name or template text; NULL: the model's own */
    const char *generation_config; /* "auto" (the model's file), "vllm" (none) or a folder */
    const char *override_generation_config; /* JSON object or NULL */
    const char *hf_overrides;               /* JSON object merged over config.json, or NULL */
    enum sl_runner runner;     /* what requests the engine takes: sl_submit's or sl_pool's */
    const char *convert;       /* "auto" (NULL), "none", "embed", "classify" */
    const char *pooler_config; /* JSON object over the model's own pooling, or NULL */
    enum sl_device device;
    enum sl_dtype dtype;
    enum sl_load_format load_format;
    const char *quantization;     /* NULL, "int8", "int4", "fp8" */
    const char *kv_cache_dtype;   /* "auto", "bfloat16", "int8", ... */
    int64_t seed;                 /* of the engine's generator: dummy weights, unseeded requests */
    int max_model_len;            /* 0: from config.json; -1: as much as fits */
    int max_num_seqs;             /* 0: default of the device */
    int max_num_batched_tokens;   /* 0: default of the device */
    int block_size;               /* tokens a KV block, 16 */
    int64_t kv_cache_bytes;       /* 0: computed */
    int num_blocks_override;      /* 0: computed from bytes */
    float gpu_memory_utilization; /* 0.92 */
    /* Host memory for KV, GiB: of preempted requests, and of what the prefix cache lets go. 0: they
     * are computed again. */
    double swap_space, kv_offloading_size;
    bool enable_prefix_caching;  /* true */
    bool enable_chunked_prefill; /* true; false means SL_POLICY_PREFILL_FIRST */
    enum sl_policy policy;
    enum sl_order order;
    int max_num_partial_prefills;     /* 1 */
    int max_long_partial_prefills;    /* 1 */
    int long_prefill_token_threshold; /* 0: off */
    int stream_interval;              /* tokens an event, 1 */
    int max_logprobs;                 /* 20; -1: no limit */
    enum sl_logprobs_mode logprobs_mode;
    int max_queued_reqs;     /* 16384: beyond it sl_submit gives SL_EAGAIN */
    size_t max_unread_bytes; /* 4 MiB: a request whose unread output passes it is aborted */
    int threads;             /* compute threads; 0: cores that the quota grants */
    bool skip_tokenizer_init;
    bool enforce_eager;
    bool fast_nondeterministic; /* kernels that are faster but let a row's bits depend on the batch
                                 */
    bool log_requests, log_outputs; /* --enable-log-requests, --enable-log-outputs */
    bool disable_log_stats;
    int max_log_len;        /* -1: no limit */
    const char *sim_device; /* sim: "h200" (default) or "cpu" */
    double sim_step_ms;     /* sim: every step lasts this; 0: what the cost model says */
    int sim_depth;          /* sim: steps in flight, 1 */
    int sim_fail_step;      /* sim: this step finds the device dead; 0: none */
    /* JSON object: {"method": "ngram", "num_speculative_tokens": 4, ...}; NULL: no speculation */
    const char *speculative_config;
    /* JSON object: disable_any_whitespace, disable_additional_properties; NULL: neither */
    const char *structured_outputs_config;
    const char *rejection_sample_method; /* "coupled" or "standard"; NULL: what the JSON says */
};

SL_API void sl_config_init(struct sl_config *cfg); /* fills the defaults above */

/* ---- models by name ------------------------------------------------------------------------- */

/* The hub that names like "org/model" stand for, and the folder where they are kept: the one of
 * huggingface_hub, shared with it both ways. Nothing here reads the environment; `sluice` fills it
 * from HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and so on. */
enum sl_hub_file_state { SL_HUB_WAITING, SL_HUB_FETCHING, SL_HUB_DONE };

struct sl_hub_file {
    const char *name;
    int64_t size, done; /* bytes; size -1: not known yet */
    enum sl_hub_file_state state;
};

struct sl_hub_config {
    const char *endpoint;  /* "https://huggingface.co"; http only when it is said here */
    const char *token;     /* sent to the endpoint's scheme, host and port alone; NULL: none */
    const char *cache_dir; /* where models--ORG--NAME folders are; must be set to fetch */
    const char *ca_file;   /* certificates to trust; NULL: the system's */
    bool offline;          /* no requests: what the cache has */
    int silence_s;         /* a connection that brings nothing for so long is given up; 30 */
    int max_parallel;      /* files at once; 8 */
    /* Called by the fetching thread about ten times a second, and once when all files are there;
     * NULL: nobody watches. */
    void (*progress)(void *ctx, const struct sl_hub_file *files, int n_files);
    void *ctx;
};

SL_API void sl_hub_config_init(struct sl_hub_config *cfg); /* fills the defaults above */

/* Whether `model` can be a hub's name: "org/name" or "name". A folder of that name wins. */
SL_API bool sl_hub_is_name(const char *model);

/* The folder that holds `name` at `revision` (NULL: "main"; a branch, a tag or a commit), fetched
 * where it is not there yet: configuration, tokenizer and chat templates, and with `weights` the
 * safetensors too. *dir is freed with sl_free. A program that fetches ignores SIGPIPE. */
SL_API SL_MUST_CHECK enum sl_status sl_hub_fetch(const struct sl_hub_config *cfg, const char *name,
                                                 const char *revision, bool weights, char **dir,
                                                 struct sl_err *err);

/* One revision in the cache; of a model without any, what a broken download left (commit ""). */
struct sl_hub_entry {
    char *name, *commit, *refs, *path; /* refs: "main, v1" */
    int64_t bytes, last_used_s;        /* last_used_s: since 1970 */
    int n_files;
};
SL_API SL_MUST_CHECK enum sl_status sl_hub_list(const struct sl_hub_config *cfg,
                                                struct sl_hub_entry **list, size_t *n,
                                                struct sl_err *err);
SL_API void sl_hub_list_free(struct sl_hub_entry *list, size_t n);
/* Removes one revision (a ref or a commit), or with NULL all there is of a model; never anything
 * outside cache_dir. *bytes: what became free. */
SL_API SL_MUST_CHECK enum sl_status sl_hub_remove(const struct sl_hub_config *cfg, const char *name,
                                                  const char *revision, int64_t *bytes,
                                                  struct sl_err *err);

/* ---- sampling parameters: vLLM's SamplingParams --------------------------------------------- */

struct sl_logit_bias {
    int32_t token;
    float bias;
};

/* When beam search ends, as in transformers: once as many sequences have ended as there are beams
 * (TRUE), or once none that is under way is likely to do better (FALSE) or can (NEVER). */
enum sl_early_stopping { SL_EARLY_FALSE = 0, SL_EARLY_TRUE, SL_EARLY_NEVER };

/* What the output must look like (docs/structured.md). */
enum sl_structured_kind {
    SL_STRUCTURED_NONE,
    SL_STRUCTURED_JSON,        /* text: a JSON schema */
    SL_STRUCTURED_JSON_OBJECT, /* any JSON object; no text */
    SL_STRUCTURED_REGEX,       /* text: the whole output matches it */
    SL_STRUCTURED_CHOICE,      /* text: a JSON array of strings */
    SL_STRUCTURED_GRAMMAR,     /* text: GBNF or Lark */
    SL_STRUCTURED_TAG          /* text: a structural tag, as JSON */
};
struct sl_structured_output {
    enum sl_structured_kind kind;
    const char *text;
    const char *field;                  /* for error messages, NULL: the kind's usual one */
    const char *whitespace_pattern;     /* JSON: a regular expression, NULL: any white space */
    bool disable_any_whitespace;        /* JSON: only one space after , and : */
    bool disable_additional_properties; /* JSON: where the schema does not ask for them */
    const int32_t *after; /* the output is free up to these tokens (the end of a reasoning) and */
    int n_after;          /* follows the rules behind them; 0: from its beginning */
};

struct sl_sampling_params {
    int n;
    /* SL_NONE: n. Else so many candidates are computed, and the n with the largest cumulative
     * logprob are given when all have ended; with use_beam_search it is the number of beams. */
    int best_of;
    bool use_beam_search; /* the n best of best_of (or n) beams; nothing is drawn */
    float length_penalty; /* beam search: score = cumulative logprob / length ^ this; 1 */
    enum sl_early_stopping early_stopping;
    float presence_penalty, frequency_penalty, repetition_penalty;
    float temperature, top_p, min_p;
    int top_k;
    bool has_seed;
    int64_t seed;
    const char *const *stop; /* n_stop strings */
    int n_stop;
    const int32_t *stop_token_ids;
    int n_stop_token_ids;
    bool include_stop_str_in_output, ignore_eos;
    int max_tokens; /* SL_NONE: what the context leaves */
    int min_tokens;
    int logprobs;        /* SL_NONE: off; -1: whole vocabulary; k >= 0: chosen and top k */
    int prompt_logprobs; /* likewise */
    const int32_t *logprob_token_ids;
    int n_logprob_token_ids;
    const struct sl_logit_bias *logit_bias;
    int n_logit_bias;
    const int32_t *allowed_token_ids;
    int n_allowed_token_ids; /* -1: absent (0 is an error of its own) */
    const char *const *bad_words;
    int n_bad_words;
    bool detokenize, skip_special_tokens, spaces_between_special_tokens;
    int stream_interval;        /* 0: the engine's */
    int truncate_prompt_tokens; /* SL_NONE: off; -1: as much as fits; k: keep k */
    bool truncate_right;        /* keep the first tokens instead of the last */
    int repetition_max_pattern, repetition_min_pattern, repetition_min_count; /* 0: off */
    struct sl_structured_output structured;
};

/* A structured_outputs object as vLLM has it: exactly one of json, json_object, regex, choice,
 * grammar, structural_tag, and its options. What `out` points to is in *memory, for sl_free. */
SL_API SL_MUST_CHECK enum sl_status sl_structured_output_parse(const char *json, size_t bytes,
                                                               struct sl_structured_output *out,
                                                               char **memory, struct sl_err *err);

SL_API void sl_sampling_params_init(struct sl_sampling_params *p); /* vLLM's defaults */
/* The same, then the model's generation_config.json as --generation-config says. */
SL_API void sl_engine_default_params(struct sl_engine *e, struct sl_sampling_params *p);
/* The rules and texts of vLLM's SamplingParams; err->param names the field. */
SL_API SL_MUST_CHECK enum sl_status sl_sampling_params_check(const struct sl_engine *e,
                                                             struct sl_sampling_params *p,
                                                             struct sl_err *err);

/* ---- engine ------------------------------------------------------------------------------- */

struct sl_engine;

/* Loads the model and starts the engine thread. On success *out belongs to the caller. */
SL_API SL_MUST_CHECK enum sl_status
sl_engine_create(struct sl_engine **out, const struct sl_config *cfg, struct sl_err *err);
/* Aborts what still runs, joins the thread, frees all. *e may be NULL; leaves it NULL.
 * Every request must have been released. */
SL_API void sl_engine_destroy(struct sl_engine **e);
/* New requests get SL_ESHUTDOWN from now on; returns when the running ones have ended or
 * timeout_ms have passed (then the rest is aborted). */
SL_API void sl_engine_drain(struct sl_engine *e, int timeout_ms);

/* What a pooling request asks of its prompt (an engine whose runner is pooling takes no others). */
enum sl_pool_task {
    SL_POOL_EMBED,       /* one vector for the text */
    SL_POOL_TOKEN_EMBED, /* one for each of its tokens */
    SL_POOL_CLASSIFY     /* a value for each label of the model's head: scores, reward */
};

struct sl_engine_info {
    const char *model, *architecture;
    const char *const *served_names;
    int n_served_names;
    int max_model_len, vocab_size, block_size, n_kv_blocks;
    int max_num_seqs, max_num_batched_tokens, max_logprobs, max_queued_reqs;
    /* Of the generation config (a cap on every request's max_tokens, in vLLM's server), SL_NONE:
     * unset. */
    int max_new_tokens;
    int64_t started_s; /* seconds since 1970 */
    bool has_tokenizer, has_chat_template;
    bool pools;                /* its runner is pooling: sl_pool, not sl_submit */
    enum sl_pool_task task;    /* the model's own, with pooling */
    int embedding_size;        /* values of one vector, or labels */
    const char *const *labels; /* [embedding_size] of SL_POOL_CLASSIFY, each may be NULL; or NULL */
    /* How a pair of texts becomes a prompt of a model that scores: by the chat template, if one was
     * given (sl_config; the model's own is about chats); else one text after the other; else as
     * sl_text_encode_pair does. */
    bool renders_pairs, joins_pairs;
    bool dead; /* the device failed */
};
SL_API void sl_engine_info(const struct sl_engine *e, struct sl_engine_info *out);

/* What speculation has come to since the engine started; all 0 without it. */
enum { SL_DRAFT_MAX = 32 };
struct sl_draft_stats {
    uint64_t n_drafts, n_draft_tokens, n_accepted; /* proposals, their tokens, those kept */
    uint64_t n_accepted_at[SL_DRAFT_MAX];          /* by place in the proposal */
    int n_places;                                  /* num_speculative_tokens */
};
SL_API void sl_engine_draft_stats(const struct sl_engine *e, struct sl_draft_stats *out);

/* ---- requests ------------------------------------------------------------------------------- */

struct sl_request;

struct sl_input {
    const char *id;        /* copied; NULL: one is made */
    const int32_t *tokens; /* copied */
    int n_tokens;
    int priority;           /* lower first, with SL_ORDER_PRIORITY */
    const char *cache_salt; /* NULL, or keeps this prompt's KV from others' prefix hits */
    int64_t arrival_ns;     /* CLOCK_MONOTONIC when the request arrived; 0: now */
};

struct sl_pooling_params {
    enum sl_pool_task task;
    int dimensions;     /* the first so many values, of a model made for it; 0: all */
    int use_activation; /* 0: as they are; 1: vectors of unit length, probabilities; -1: as the
                           model's files say */
    int truncate_prompt_tokens; /* as in struct sl_sampling_params */
    bool truncate_right;
    int n_first; /* of a pair of texts: the first one's tokens, separators included; 0: one text */
};

enum sl_finish { SL_RUNNING = 0, SL_STOP, SL_LENGTH, SL_ABORT, SL_ERROR, SL_REPETITION };
enum sl_stop_kind { SL_STOP_NONE = 0 /* EOS, or not stopped */, SL_STOP_TOKEN, SL_STOP_STRING };

struct sl_logprob {
    int32_t token;
    int32_t rank; /* 1: the most probable */
    float logprob;
};
/* The chosen (or prompt's) token first, then the top k in order, then logprob_token_ids. */
struct sl_token_logprobs {
    const struct sl_logprob *entry;
    int n; /* 0 for the first prompt token */
};

/* What one choice has gained since the last output. Pointers live until the next call on the
 * request. Text never ends inside a UTF-8 character, nor inside what may become a stop string. */
struct sl_output {
    int index;        /* choice, 0 .. n-1 */
    const char *text; /* NUL-terminated too */
    size_t text_bytes;
    const int32_t *tokens;
    int n_tokens;
    const struct sl_token_logprobs *logprobs; /* [n_tokens], NULL when not asked for */
    const size_t
        *token_text_end; /* [n_tokens]: bytes of the choice's whole text after each token */
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    int32_t stop_token;
    const char *stop_string;
    const struct sl_err *error; /* with SL_ERROR */
    /* With `finish`, NaN if no logprobs were asked for and neither best_of nor beam search needs
     * them. score: what beam search ranks by; otherwise the same. */
    double cumulative_logprob, score;
};

/* Called on the engine thread when an output may be ready. It must not block, nor call into
 * the library: write an eventfd, signal a condition. */
typedef void (*sl_wake_fn)(void *ctx);

/* Checks the parameters, copies what it needs and queues the request. The caller owns *out.
 * SL_EAGAIN: the queue is full, try later (HTTP 429). */
SL_API SL_MUST_CHECK enum sl_status sl_submit(struct sl_engine *e, const struct sl_input *in,
                                              const struct sl_sampling_params *params,
                                              sl_wake_fn wake, void *ctx, struct sl_request **out,
                                              struct sl_err *err);
/* The same for what the prompt's hidden states come to. Such a request has one output, without
 * tokens, and ends with it. */
SL_API void sl_pooling_params_init(struct sl_pooling_params *p, const struct sl_engine *e);
SL_API SL_MUST_CHECK enum sl_status sl_pool(struct sl_engine *e, const struct sl_input *in,
                                            const struct sl_pooling_params *params, sl_wake_fn wake,
                                            void *ctx, struct sl_request **out, struct sl_err *err);
/* After an output with SL_STOP: [rows, cols] values, owned by the request. NULL before. */
SL_API const float *sl_request_pooled(const struct sl_request *r, int *rows, int *cols);
/* The next output that is ready, or NULL. Never blocks. */
SL_API const struct sl_output *sl_request_next(struct sl_request *r);
/* SL_OK when an output is ready, SL_EAGAIN after timeout_ms (-1: no limit), SL_ESHUTDOWN when all
 * choices have finished and everything was read. */
SL_API enum sl_status sl_request_wait(struct sl_request *r, int timeout_ms);
SL_API bool sl_request_done(const struct sl_request *r);
/* Frees the request's KV within one step; its choices finish with SL_ABORT. */
SL_API void sl_request_abort(struct sl_request *r);
/* Aborts if need be and gives the handle up. *r may be NULL; leaves it NULL. */
SL_API void sl_request_release(struct sl_request **r);

struct sl_usage {
    int prompt_tokens, completion_tokens, cached_tokens;
};
SL_API void sl_request_usage(const struct sl_request *r, struct sl_usage *out);
SL_API const char *sl_request_id(const struct sl_request *r);
/* The prompt's tokens as computed (after truncation), and their logprobs ([n], NULL if not asked
 * for or not there yet; complete with the first output). Owned by the request. */
SL_API const int32_t *sl_request_prompt(const struct sl_request *r, int *n);
SL_API const struct sl_token_logprobs *sl_request_prompt_logprobs(const struct sl_request *r);

/* ---- text ----------------------------------------------------------------------------------- */

/* A model's tokenizer and chat templates; needs no weights. Immutable: any thread.
 * model: a folder, or NULL for a chat template alone. chat_template: a file, the name of one of the
 * model's, or the template itself; NULL: the model's own. */
struct sl_text;

SL_API SL_MUST_CHECK enum sl_status sl_text_open(struct sl_text **out, const char *model,
                                                 const char *chat_template, struct sl_err *err);
SL_API void sl_text_close(struct sl_text **t);
SL_API const struct sl_text *sl_engine_text(const struct sl_engine *e); /* NULL without tokenizer */

/* Encode. *ids is allocated; free it with sl_free. Special tokens written in the text are
 * recognized, as in transformers. */
SL_API SL_MUST_CHECK enum sl_status sl_text_encode(const struct sl_text *t, const char *text,
                                                   size_t bytes, bool add_special_tokens,
                                                   int32_t **ids, size_t *n, struct sl_err *err);
/* The same, with SL_EINVAL as soon as more than max_tokens are certain (0: no limit). */
SL_API SL_MUST_CHECK enum sl_status sl_text_encode_max(const struct sl_text *t, const char *text,
                                                       size_t bytes, bool add_special_tokens,
                                                       size_t max_tokens, int32_t **ids, size_t *n,
                                                       struct sl_err *err);
/* A pair of texts, as cross-encoders take it ([CLS] A [SEP] B [SEP]); *n_first: the tokens before
 * B's own, for sl_pooling_params. */
SL_API SL_MUST_CHECK enum sl_status sl_text_encode_pair(const struct sl_text *t, const char *a,
                                                        size_t a_bytes, const char *b,
                                                        size_t b_bytes, int32_t **ids, size_t *n,
                                                        size_t *n_first, struct sl_err *err);
/* A pair of texts as the one that a model which answers with a word was trained on
 * (sl_engine_info). vars, a JSON object: what the chat template makes of it, with roles "query" and
 * "document" and these further variables. NULL: b follows a. *text is freed with sl_free. */
SL_API SL_MUST_CHECK enum sl_status sl_text_pair(const struct sl_text *t, const char *a,
                                                 size_t a_bytes, const char *b, size_t b_bytes,
                                                 const char *vars, char **text, size_t *bytes,
                                                 struct sl_err *err);
/* Cuts what sl_text_encode (n_first NULL) or sl_text_encode_pair gave to `keep` tokens, as
 * transformers does: special tokens around the texts stay, of a pair the longer one loses first.
 * left: what is kept is a text's end. */
SL_API SL_MUST_CHECK enum sl_status sl_text_truncate(const struct sl_text *t, int32_t *ids,
                                                     size_t *n, size_t *n_first, size_t keep,
                                                     bool left, struct sl_err *err);
/* Decode; *text is NUL-terminated, free it with sl_free. Ids outside the vocabulary: SL_EINVAL. */
SL_API SL_MUST_CHECK enum sl_status sl_text_decode(const struct sl_text *t, const int32_t *ids,
                                                   size_t n, bool skip_special_tokens, char **text,
                                                   size_t *bytes, struct sl_err *err);
/* The token as the vocabulary writes it ("\u0120tar"), and as the text it stands for; borrowed. */
SL_API const char *sl_text_token(const struct sl_text *t, int32_t id);
/* The bytes that the token stands for in the middle of a text; they need not be UTF-8 (a part of a
 * character). NULL outside the vocabulary; borrowed. */
SL_API const unsigned char *sl_text_token_bytes(const struct sl_text *t, int32_t id, size_t *n);
/* Render the chat template. `vars` is a JSON object: messages, tools, add_generation_prompt, ...;
 * every key is a template variable. `now` fixes strftime_now ("2024-07-26T12:00:00"; NULL: clock).
 */
SL_API SL_MUST_CHECK enum sl_status sl_text_render(const struct sl_text *t, const char *vars,
                                                   const char *now, char **text,
                                                   struct sl_err *err);
/* The same with a template of the request's own (or the name of one of the model's; NULL: the
 * model's), and the length of the text, which may hold NUL. With continue_final_message among the
 * variables the text ends where the last message's does. */
SL_API SL_MUST_CHECK enum sl_status sl_text_render_with(const struct sl_text *t, const char *vars,
                                                        const char *chat_template, const char *now,
                                                        char **text, size_t *bytes,
                                                        struct sl_err *err);
/* The template (the request's own, or the model's for requests with or without tools) goes through
 * a message's content as a list of parts, as those of multimodal models do. */
SL_API bool sl_text_reads_parts(const struct sl_text *t, bool tools, const char *chat_template);
SL_API void sl_free(void *p);

/* ---- OpenAI requests and the server -----------------------------------------------------------
 */

enum sl_content_format {
    SL_CONTENT_AUTO,   /* as the template reads it */
    SL_CONTENT_STRING, /* text parts are joined */
    SL_CONTENT_OPENAI  /* a list of parts, also where the request has a string */
};

/* The server's settings: the front-end flags of `sluice serve`. */
struct sl_server_config {
    const char *host; /* "127.0.0.1" */
    int port;         /* 8000; 0: any free one */
    const char *uds;  /* UNIX socket path instead of host and port, or NULL */
    const char *const *api_keys;
    int n_api_keys;
    const char *ssl_keyfile, *ssl_certfile, *ssl_ca_certs;
    const char *root_path;
    const char *const *allowed_origins; /* NULL: ["*"] */
    int n_allowed_origins;
    int loops;                   /* HTTP threads; 0: chosen */
    size_t max_body_bytes;       /* 16 MiB */
    size_t max_body_bytes_total; /* 256 MiB over all connections */
    size_t max_output_buffer;    /* bytes waiting in one connection, 1 MiB */
    int max_connections;         /* 16384 */
    int header_timeout_s, idle_timeout_s;
    int shutdown_timeout_s;                   /* 30 */
    const char *response_role;                /* "assistant" */
    const char *default_chat_template_kwargs; /* JSON object or NULL */
    bool trust_request_chat_template, enable_prompt_tokens_details, enable_force_include_usage;
    bool enable_request_id_headers, enable_server_load_tracking, enable_tokenizer_info_endpoint;
    bool return_tokens_as_token_ids, disable_access_log;
    const char *disable_access_log_for; /* "/health,/metrics" */
    const char *fingerprint_mode;       /* "full", "hash", "none" or custom text */
    const char *tool_call_parser;       /* "hermes", ... or NULL: tool calls are not looked for */
    const char *reasoning_parser;       /* "qwen3", ... or NULL */
    bool enable_auto_tool_choice, exclude_tools_when_tool_choice_none;
    enum sl_content_format content_format; /* how templates get a message's content */
};
SL_API void sl_server_config_init(struct sl_server_config *cfg);

struct sl_server;
/* Binds and starts the loops: on return clients can connect. Borrows the engine. */
SL_API SL_MUST_CHECK enum sl_status sl_server_start(struct sl_server **out, struct sl_engine *e,
                                                    const struct sl_server_config *cfg,
                                                    struct sl_err *err);
SL_API int sl_server_port(const struct sl_server *s);
/* Drain: /health and new requests get 503, running ones have timeout_s; safe from any thread, and
 * may be called again with 0 to end at once. */
SL_API void sl_server_drain(struct sl_server *s, int timeout_s);
SL_API enum sl_status sl_server_wait(struct sl_server *s); /* until drained, or the engine died */
SL_API void sl_server_stop(struct sl_server **s);

/* One OpenAI request without a socket, as run-batch does it: `url` such as "/v1/chat/completions",
 * `body` JSON. Calls done() once, from a library thread, with HTTP status and a JSON body. */
typedef void (*sl_openai_done_fn)(void *ctx, int http_status, const char *body, size_t bytes);
SL_API SL_MUST_CHECK enum sl_status sl_openai_call(struct sl_server *s, const char *url,
                                                   const char *body, size_t bytes,
                                                   sl_openai_done_fn done, void *ctx,
                                                   struct sl_err *err);
/* A server with no socket, for sl_openai_call alone. */
SL_API SL_MUST_CHECK enum sl_status sl_server_start_offline(struct sl_server **out,
                                                            struct sl_engine *e,
                                                            const struct sl_server_config *cfg,
                                                            struct sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
