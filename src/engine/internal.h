/* internal.h - the engine's own structures: one engine, one request.
 *
 * Threads meet in two places, each with one lock: the engine's inbox (LOCK_SUBMIT), which carries
 * new requests, aborts and cancelled choices; and each request's events (LOCK_EVENTS). Everything
 * else has one owner, named at the field. A request is freed with its last reference: the
 * consumer's handle, the engine's, and one while it lies in the inbox.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_ENGINE_INTERNAL_H
#define SL_ENGINE_INTERNAL_H

#include "base/sync.h"
#include "draft/draft.h"
#include "engine/choice.h"
#include "engine/core.h"
#include "engine/engine.h"
#include "engine/params.h"
#include "sample/sampler.h"

#include <stdatomic.h>

struct sl_request {
    struct request core; /* id, prompt, params: fixed at submission; the rest: engine thread */
    struct sl_engine *engine;
    atomic_int refs; /* released by whoever lets go, acquired by the one who frees */

    /* What each token touches on the engine thread stands together: with hundreds of streams it is
     * cold in the cache, and a step has microseconds. */
    _Alignas(64) struct mutex lock; /* rank LOCK_EVENTS */
    bool notified;                  /* lock: the consumer was told of what is pending, and has not
                                       looked since; never set while nothing is, because it is set
                                       for something and pump() takes all and clears it at once */
    bool to_wake, told;             /* engine thread; told: an event was sent */
    bool finished;                  /* engine thread: every choice, but a step may name it still */
    int n_open;                     /* engine thread: choices not finished */
    int n_made, n_choices;          /* fixed: choices that the engine reports; that are given */
    struct event_buf pending;       /* lock */
    sl_wake_fn wake;                /* lock */
    void *wake_ctx;                 /* lock */
    struct sl_request *wake_next;   /* engine thread */
    int wake_interval;              /* fixed: tokens of a choice for which its consumer is woken */
    enum sl_finish closed;          /* lock: not SL_RUNNING: no more events, choices end with it */
    struct cond ready;

    /* under `lock` */
    struct sl_err error; /* why, with SL_ERROR */
    int n_cached;        /* these two are there with the first event */
    int64_t scheduled_ns;

    /* under the engine's lock */
    struct sl_request *inbox_next;
    bool in_inbox, is_new, want_abort, want_cancel;
    bool *cancel; /* [n_seqs] choices that a stop string ended */

    /* engine thread */
    struct sl_request *prev, *next, *done_next; /* lists of live and of finished requests */
    int *unsent;     /* [n_seqs] tokens since the consumer was last woken for that choice */
    bool *cancelled; /* [n_seqs] `cancel`, as the message that is being handled had it */

    /* Prompt logprobs: the engine thread writes them before the first token's event, the consumer
     * reads them after it has taken that event. */
    struct sl_logprob *plp; /* [n_prompt, plp_width], NULL: not asked for */
    struct sl_token_logprobs *plp_list;
    int plp_width;

    /* consumer */
    struct choice_rules rules;
    struct choice *choice; /* [n_made] */
    struct event_buf taken;
    int *ready_ring; /* [n_made] choices that have an output, oldest first */
    int ready_first, n_ready;
    int n_ended;          /* choices whose last output was given */
    int n_done;           /* choices that have finished, told or not */
    int n_longest;        /* tokens of the longest */
    struct choice *given; /* its output is in the caller's hands */
    struct sl_output out;
    struct sl_err failure; /* making text failed */
    struct sl_usage usage;
    int64_t seen_scheduled_ns;
    bool started; /* the first event was taken */
    bool ranked;  /* best_of: choice[] is in order, best first */
};

/* Structured output: grammars of this tokenizer, and room for the masks of steps in flight. */
struct structured {
    struct mutex lock; /* rank LOCK_STRUCTURED */
    bool has_lock;
    struct grammar_lib *lib; /* lock; made for the first request that wants it */
    bool compact, closed;    /* fixed: --structured-outputs-config */
    int n_words;             /* fixed: of a mask */
    uint32_t *nothing;       /* fixed: [n_words], a mask that allows no token */
    uint32_t *scratch;       /* engine thread: [n_words] */
    atomic_int n_live;       /* requests with a grammar: submitters count up, who frees them down */
    struct mask_room {
        uint32_t **row; /* [n] masks of n_words each */
        int n, cap;
    } room[CORE_DEPTH_MAX]; /* engine thread: of each step in flight */
};

struct sl_engine {
    /* fixed before the thread starts */
    struct sl_config cfg; /* strings are copies */
    struct arena strings;
    struct backend *be;    /* its clock is CLOCK_MONOTONIC */
    struct runner *runner; /* be's, NULL on sim; so are the next two */
    const struct ops *ops;
    struct device *device;
    struct sampler *sampler;                /* NULL on sim */
    struct proposer *proposer;              /* NULL: no speculation */
    bool device_draws, device_keeps_tokens; /* the device samples what it can; for penalties */
    struct draft_config draft;
    struct model_spec *draft_spec; /* NULL: no draft model */
    struct model_spec *spec;
    struct sl_text *text;
    struct core *core; /* used by the engine thread alone */
    struct sl_engine_info info;
    struct sl_sampling_params defaults;
    struct params_limits limits;
    struct sched_config sched_cfg;
    struct metrics *metrics;
    struct structured structured;
    char *cache_info; /* labels of vllm:cache_config_info */
    int64_t started_ns;
    pthread_t thread;
    bool has_thread;

    atomic_bool dead; /* the engine thread sets it after dead_err; anyone reads */
    struct sl_err dead_err;
    atomic_ullong n_requests; /* submitters count; numbers and seeds come from it */

    /* under `lock` */
    struct mutex lock; /* rank LOCK_SUBMIT */
    struct cond work, drained;
    struct sl_request *inbox, **inbox_end;
    int n_inbox_new; /* new requests in it */
    int n_waiting;   /* the scheduler's, when the engine thread last looked */
    int n_live;      /* submitted and not finished */
    bool draining, abort_all, stop;

    /* engine thread */
    struct sl_request *live, *to_wake, *done; /* done: finished, not yet given up */
    bool stalled;                             /* the last step found nothing to do */
    struct stats {
        int64_t last_ns;
        bool active; /* something happened since the last line */
        uint64_t prompt_tokens, generation_tokens, preemptions, prefix_queries, prefix_hits,
            host_queries, host_hits;
        uint64_t logged_prompt, logged_generation, logged_preemptions;
        struct sl_draft_stats drafts, logged_drafts;
    } stats;
};

/* setup.c: model, tokenizer, device and sizes, from e->cfg. */
SL_MUST_CHECK enum sl_status setup_open(struct sl_engine *e, struct sl_err *err);
/* The device that cfg names, into rc. */
SL_MUST_CHECK enum sl_status setup_device(const struct sl_config *cfg, struct runner_config *rc,
                                          struct sl_err *err);
/* Once the scheduler's limits are known: the KV cache and the buffers of a step. */
SL_MUST_CHECK enum sl_status setup_take_memory(struct sl_engine *e, struct sl_err *err);
void setup_close(struct sl_engine *e);

/* engine.c: sl_engine_create() in two steps, so that tests can bring a backend of their own: they
 * set e->be, sched_cfg, limits and info between them. Destroy e if one fails. */
SL_MUST_CHECK enum sl_status engine_init(struct sl_engine **out, const struct sl_config *cfg,
                                         struct sl_err *err);
SL_MUST_CHECK enum sl_status engine_start(struct sl_engine *e, struct sl_err *err);

/* speculate.c: what --speculative-config asks for, once the model is open. */
SL_MUST_CHECK enum sl_status speculate_open(struct sl_engine *e, struct sl_err *err);
SL_MUST_CHECK enum sl_status
speculate_take_memory(struct sl_engine *e, const struct batch_limits *limits, struct sl_err *err);
void speculate_close(struct sl_engine *e);

/* loop.c */
void *engine_main(void *engine);
void engine_sink(void *engine, const struct sched_event *ev);
/* Any thread: hand the request to the engine thread again. */
SL_MUST_CHECK enum sl_status engine_post_new(struct sl_request *r, struct sl_err *err);
void engine_post_abort(struct sl_request *r);
void engine_post_cancel(struct sl_request *r, int choice);

/* submit.c: what every kind of request begins with. */
struct sl_request *request_new(struct sl_engine *e, sl_wake_fn wake, void *ctx); /* NULL: memory */
enum sl_status request_no_memory(struct sl_err *err);
/* truncate_prompt_tokens: which part of the prompt is kept; below 0 `whole` tokens. */
SL_MUST_CHECK enum sl_status request_truncate(const struct sl_engine *e, int keep, bool right,
                                              int whole, const int32_t **tokens, int *n,
                                              struct sl_err *err);
/* generates: a token must follow the prompt. */
SL_MUST_CHECK enum sl_status request_check_tokens(const struct sl_engine *e, const int32_t *tokens,
                                                  int n, bool generates, struct sl_err *err);
/* Into r->core: the id, the prompt, and what else the caller said of it. */
SL_MUST_CHECK enum sl_status request_take_input(struct sl_request *r, const struct sl_input *in,
                                                const int32_t *tokens, int n, struct sl_err *err);
/* Once r->core is complete. */
SL_MUST_CHECK enum sl_status request_make_consumer(struct sl_request *r, struct sl_err *err);

/* stats.c */
void stats_after_step(struct sl_engine *e, bool stepped);
void stats_tick(struct sl_engine *e, int64_t now_ns); /* writes the line when it is due */
int64_t stats_deadline(const struct sl_engine *e);    /* of the next line; INT64_MAX: none */

/* text.c */
const struct tokenizer *text_tokenizer(const struct sl_text *t);
bool text_has_template(const struct sl_text *t);

/* structured.c */
SL_MUST_CHECK enum sl_status structured_start(struct sl_engine *e, struct sl_err *err);
void structured_fini(struct sl_engine *e);
/* Compiles what p asks for, or finds it; *g stays NULL when it asks for nothing. Any thread. */
SL_MUST_CHECK enum sl_status structured_prepare(struct sl_engine *e, struct request *r,
                                                const struct sl_sampling_params *p,
                                                struct sl_err *err);
void structured_release(struct sl_engine *e, struct request *r);
/* A core_masks: which tokens each sample row may give. */
void structured_masks(void *engine, int slot, struct batch *b);
/* A sched_refine. */
int structured_refine(void *engine, struct sequence *q, int n, int most);

/* request.c */
void request_unref(struct sl_request *r);

#endif
