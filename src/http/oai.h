/* oai.h - an OpenAI API request as data: JSON body -> checked fields -> tokens and parameters.
 *
 * Three steps, all without a socket and without waiting:
 *   oai_parse    body bytes -> struct oai_request: the fields' table, then the rules across fields;
 *   oai_prompts  chat template and tokenizer: the token ids of each prompt, lengths checked;
 *   (call.c      submits them and turns outputs into JSON with oai_choice.h.)
 * Names, defaults and error texts are vLLM's.
 *
 * Thread: a request belongs to one thread at a time; struct oai_env is immutable while serving.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_OAI_H
#define SL_HTTP_OAI_H

#include "base/mem.h"
#include "base/status.h"
#include "base/strbuf.h"
#include "text/outparse.h"

#include <jansson.h>

enum oai_api {
    OAI_COMPLETIONS = 1,
    OAI_CHAT = 2,
    OAI_TOKENIZE = 4,
    OAI_DETOKENIZE = 8,
    OAI_EMBEDDINGS = 1 << 12,
    OAI_POOLING = 1 << 13,
    OAI_CLASSIFY = 1 << 14,
    OAI_SCORE = 1 << 15,
    OAI_RERANK = 1 << 16,
    OAI_PAIRS = OAI_SCORE | OAI_RERANK,
    OAI_INPUTS = OAI_EMBEDDINGS | OAI_POOLING | OAI_CLASSIFY,
    OAI_POOLS = OAI_PAIRS | OAI_INPUTS,
    OAI_GENERATE = OAI_COMPLETIONS | OAI_CHAT
};

enum {
    OAI_MAX_PROMPTS = 1024, /* VLLM_MAX_COMPLETION_PROMPTS */
    OAI_MAX_STOP = 4,       /* VLLM_MAX_STOP_STRINGS */
    OAI_MAX_TOOLS = 1024,
    OAI_MAX_TOOL_NAME = 256,
    OAI_MAX_CHOICES = 16384,       /* prompts x n of one HTTP request */
    OAI_MAX_PAIR_BYTES = 32 << 20, /* texts of all pairs of one, a query with each document */
    OAI_MAX_JSON_VALUES = 1 << 20  /* each costs about 50 bytes once parsed */
};

enum oai_tool_mode { OAI_TOOLS_NONE, OAI_TOOLS_AUTO, OAI_TOOLS_REQUIRED, OAI_TOOLS_NAMED };

/* What requests are checked against. */
struct oai_env {
    const struct sl_server_config *cfg;
    const struct sl_text *text; /* NULL without a tokenizer */
    struct sl_engine_info info;
    struct sl_sampling_params defaults; /* of the model's generation config */
    json_t *default_kwargs;             /* --default-chat-template-kwargs: object or NULL */
    int max_new_tokens;                 /* server-wide cap of the generation config; SL_NONE */
    size_t max_token_chars;             /* of the longest token; 0: unknown */
    enum out_tool tool_parser;          /* --tool-call-parser */
    enum out_reasoning reasoning_parser;
    struct http_metrics *metrics; /* NULL: nobody counts */
};

/* An error on its way to the client. The first one stays. */
struct oai_error {
    int status; /* 0: no error */
    const char *type;
    struct sl_err err; /* msg and param; param "" becomes null */
};
/* `type` NULL: the one that belongs to the status. Returns false, so that a check can end in it. */
bool oai_fail(struct oai_error *e, int status, const char *type, const char *param, const char *fmt,
              ...) __attribute__((format(printf, 5, 6)));
bool oai_fail_err(struct oai_error *e, const struct sl_err *err);
const char *oai_status_type(int status); /* "BadRequestError", ... */
/* {"error":{"message","type","param","code"}} */
void oai_error_json(struct strbuf *out, const struct oai_error *e);

struct oai_prompt {
    const char *text; /* as sent or rendered; NULL for token ids and after truncation */
    size_t bytes;
    int32_t *tokens; /* owned, sl_free */
    int n_tokens;
    int n_first;    /* of a pair: tokens before the second text */
    int max_tokens; /* for params.max_tokens: what fits */
};

/* What requests to the pooling endpoints have of their own. */
struct oai_pool {
    json_t *input, *query, *queries, *documents, *items, *data_1, *data_2, *text_1, *text_2;
    json_t *normalize; /* refused: it has another name now */
    const char *encoding_format, *embed_dtype, *endianness, *task, *instruction;
    bool use_activation, has_use_activation;
    int dimensions; /* SL_NONE: absent */
    int top_n, max_tokens_per_query, max_tokens_per_doc;
    int n_queries; /* score, rerank by two vectors: prompts before the documents */
};

struct oai_request {
    enum oai_api api;
    struct oai_pool pool;
    struct arena arena; /* arrays made from the body */
    json_t *body;       /* strings are borrowed from it; oai_drop_body gives it up */

    const char *model;
    bool stream, echo, add_special_tokens;
    bool want_logprobs;
    int top_logprobs; /* chosen and this many; -1: all. Completions: `logprobs` */
    bool include_usage, continuous_usage;
    bool return_tokens_as_token_ids, return_token_ids, return_token_strs, return_prompt_text;
    int max_tokens, max_completion_tokens; /* SL_NONE: absent */
    int priority;
    const char *request_id, *cache_salt;
    bool truncate_right;
    struct sl_sampling_params params;

    /* completions */
    json_t *prompt;
    /* chat and tokenize */
    json_t *messages, *tools, *tool_choice, *documents, *chat_template_kwargs;
    const char *chat_template, *reasoning_effort;
    bool add_generation_prompt, continue_final_message, has_add_generation_prompt;
    char *rendered; /* what the template made; owned (sl_free) */
    size_t rendered_bytes;
    const char *echo_text; /* chat: the last message, when `echo` repeats it */
    const char *role;      /* of the answer */
    enum oai_tool_mode tool_mode;
    bool parallel_tool_calls, include_reasoning;
    struct outparse_spec parse; /* how the answer is read */
    json_t *kept_tools;         /* owned: outlives the body */
    /* detokenize */
    const int32_t *tokens;
    int n_tokens;

    /* made by oai_prompts */
    struct oai_prompt *prompts;
    int n_prompts;
    bool only_echo; /* completions: echo with max_tokens 0 */

    /* raw fields that only the cross-field rules look at */
    json_t *stop, *stream_options, *response_format, *structured_outputs, *prompt_embeds,
        *kv_transfer_params, *ec_transfer_params, *vllm_xargs, *repetition_detection, *logit_bias,
        *early_stopping;
    const char *suffix, *truncation_side;
    bool logprobs_flag;
    int thinking_token_budget, logprobs_count;
};

/* 32 hexadecimal digits and the NUL. */
void oai_random_id(char out[33]);
/* False: *e says what is wrong. The request must be freed with oai_fini either way. */
bool oai_parse(struct oai_request *r, enum oai_api api, const struct oai_env *env, const char *body,
               size_t bytes, struct oai_error *e);
bool oai_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e);
/* The messages as text, in r->rendered. */
bool oai_render(struct oai_request *r, const struct oai_env *env, struct oai_error *e);
/* oai_pool.c: the same for the pooling endpoints, and their answer from the requests' results, of
 * r->n_prompts requests. */
bool oai_pool_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e);
void oai_pool_params(const struct oai_request *r, const struct oai_env *env,
                     struct sl_pooling_params *p);
void oai_pool_body(const struct oai_request *r, const struct oai_env *env,
                   struct sl_request *const *reqs, const char *id, int64_t created,
                   struct strbuf *out);
/* The model serves this endpoint; false: *e says that it does not. */
bool oai_served(enum oai_api api, const struct oai_env *env, struct oai_error *e);
/* After the prompts were submitted: the body is not needed any more. */
void oai_drop_body(struct oai_request *r);
void oai_fini(struct oai_request *r);

/* ---- pieces of the above, for each other and for tests */

/* oai_fields.c: the table. Applies every known field of `body` to *r. */
bool oai_fields_apply(struct oai_request *r, const json_t *body, struct oai_error *e);
/* Known fields of an API in the table's order, for tests against openapi.json; NULL at the end. */
const char *oai_field_name(enum oai_api api, int i);

/* oai_structured.c: response_format and structured_outputs to params.structured. */
bool oai_structured(struct oai_request *r, struct oai_error *e);

/* oai_chat.c: messages as the template wants them, and the template's variables (new reference). */
json_t *oai_chat_vars(struct oai_request *r, const struct oai_env *env, struct oai_error *e);

/* oai_tools.c: the rules of tools, tool_choice and the reasoning parser. */
bool oai_check_tool_choice(const json_t *body, struct oai_error *e);
bool oai_check_tools(const json_t *tools, struct oai_error *e);
bool oai_settle_tools(struct oai_request *r, const struct oai_env *env, struct oai_error *e);
/* vars: of the template. Once the prompt was rendered. */
void oai_settle_reasoning(struct oai_request *r, const json_t *vars);
bool oai_settle_grammar(struct oai_request *r, const struct oai_env *env, struct oai_error *e);

/* Largest number of prompt tokens that leaves room for the output asked for. */
int oai_prompt_limit(const struct oai_request *r, const struct oai_env *env);

#endif
