/* From a caller's input to a request in the engine's inbox: everything that can be wrong with it
 * is found here, on the caller's thread.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/pyrepr.h"
#include "core/philox.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

enum { CONTEXT_TOKENS = 16 };
static const size_t MAX_PROMPT_LOGPROB_BYTES = 256 << 20;

enum sl_status request_no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "no memory for a request");
}

static char *make_id(struct arena *a, const char *given)
{
    if (given)
        return arena_strndup(a, given, strlen(given));
    uint64_t r[2];
    char hex[33];
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r) { /* cannot fail for so few bytes */
        r[0] = (uint64_t)clock_mono_ns();
        r[1] = (uint64_t)clock_wall_s();
    }
    snprintf(hex, sizeof hex, "%016" PRIx64 "%016" PRIx64, r[0], r[1]);
    return arena_strndup(a, hex, 32);
}

/* ---- the prompt ------------------------------------------------------------------------------ */

enum sl_status request_truncate(const struct sl_engine *e, int keep, bool right, int whole,
                                const int32_t **tokens, int *n, struct sl_err *err)
{
    if (keep == SL_NONE)
        return SL_OK;
    if (keep > e->info.max_model_len)
        return SL_FAIL_PARAM(err, SL_EINVAL, "truncate_prompt_tokens",
                             "truncate_prompt_tokens value is greater than max_model_len. Please, "
                             "select a smaller truncation size.");
    if (keep < 0)
        keep = whole;
    if (*n > keep) {
        if (!right)
            *tokens += *n - keep;
        *n = keep;
    }
    return SL_OK;
}

enum sl_status request_check_tokens(const struct sl_engine *e, const int32_t *tokens, int n,
                                    bool generates, struct sl_err *err)
{
    int max_len = e->info.max_model_len;
    if (n < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "prompt", "The decoder prompt cannot be empty");
    if (n > max_len)
        return SL_FAIL_PARAM(err, SL_EINVAL, "input_tokens",
                             "The decoder prompt (length %d) is longer than the maximum model "
                             "length of %d. Make sure that `max_model_len` is no smaller than the "
                             "number of text tokens.",
                             n, max_len);
    if (generates && n == max_len)
        return SL_FAIL_PARAM(err, SL_EINVAL, "input_tokens",
                             "The decoder prompt (length %d) plus the number of requested output "
                             "tokens (at least 1) is longer than the maximum model length of %d. "
                             "Make sure that `max_model_len` is no smaller than the number of text "
                             "tokens (prompt + requested output tokens).",
                             n, max_len);
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= e->info.vocab_size)
            return SL_FAIL_PARAM(err, SL_EINVAL, "prompt", "Token id %d is out of vocabulary",
                                 (int)tokens[i]);
    return SL_OK;
}

enum sl_status request_take_input(struct sl_request *r, const struct sl_input *in,
                                  const int32_t *tokens, int n, struct sl_err *err)
{
    struct request *c = &r->core;
    c->id = make_id(&c->arena, in->id);
    c->prompt = arena_alloc(&c->arena, (size_t)n, sizeof *c->prompt);
    if (in->cache_salt)
        c->cache_salt = arena_strndup(&c->arena, in->cache_salt, strlen(in->cache_salt));
    if (!c->id || !c->prompt || (in->cache_salt && !c->cache_salt))
        return request_no_memory(err);
    memcpy(c->prompt, tokens, (size_t)n * sizeof *tokens);
    c->n_prompt = n;
    c->priority = in->priority;
    c->arrival_ns = in->arrival_ns ? in->arrival_ns : clock_mono_ns();
    c->consumer = r;
    c->number = 1 + atomic_fetch_add_explicit(&r->engine->n_requests, 1, memory_order_relaxed);
    return SL_OK;
}

/* -1 keeps what leaves room for the output. */
static enum sl_status take_prompt(const struct sl_engine *e, const struct sl_sampling_params *p,
                                  const int32_t **tokens, int *n, struct sl_err *err)
{
    int max_len = e->info.max_model_len, output = p->max_tokens == SL_NONE ? 1 : p->max_tokens;
    enum sl_status st = request_truncate(e, p->truncate_prompt_tokens, p->truncate_right,
                                         output < max_len ? max_len - output : 1, tokens, n, err);
    if (!st)
        st = request_check_tokens(e, *tokens, *n, true, err);
    if (!st && !sched_can_ever_fit(core_sched(e->core), *n))
        st = SL_FAIL_PARAM(err, SL_EINVAL, "input_tokens",
                           "The prompt (length %d) does not fit into the KV cache, which holds "
                           "%d tokens of one sequence.",
                           *n, sched_max_len(core_sched(e->core)));
    return st;
}

static enum sl_status make_prompt_logprobs(struct sl_request *r, struct sl_err *err)
{
    const struct sl_sampling_params *p = &r->core.params.p;
    int vocab = r->engine->info.vocab_size;
    if (p->prompt_logprobs == SL_NONE)
        return SL_OK;
    int top = p->prompt_logprobs < 0 || p->prompt_logprobs > vocab ? vocab : p->prompt_logprobs;
    size_t n = (size_t)r->core.n_prompt, width = 1 + (size_t)top + (size_t)p->n_logprob_token_ids;
    if (width > MAX_PROMPT_LOGPROB_BYTES / sizeof *r->plp / n)
        return SL_FAIL_PARAM(err, SL_EINVAL, "prompt_logprobs",
                             "prompt_logprobs of %zu tokens with %zu entries each would take more "
                             "than %zu MiB.",
                             n, width, MAX_PROMPT_LOGPROB_BYTES >> 20);
    r->plp_width = (int)width;
    r->plp = mem_alloc(n * width, sizeof *r->plp);
    r->plp_list = arena_alloc(&r->core.arena, n, sizeof *r->plp_list);
    return r->plp && r->plp_list ? SL_OK : request_no_memory(err);
}

/* ---- the request ----------------------------------------------------------------------------- */

static enum sl_status make_core(struct sl_request *r, const struct sl_input *in,
                                const struct sl_sampling_params *p, struct sl_err *err)
{
    struct sl_engine *e = r->engine;
    struct request *c = &r->core;
    const int32_t *tokens = in->tokens;
    int n = in->n_tokens;
    enum sl_status st = take_prompt(e, p, &tokens, &n, err);
    if (!st)
        st = params_copy(&e->limits, p, e->text ? text_tokenizer(e->text) : NULL, &c->arena,
                         &c->params, err);
    if (!st)
        st = request_take_input(r, in, tokens, n, err);
    if (st)
        return st;
    c->n_seqs = p->best_of == SL_NONE ? p->n : p->best_of;
    int room = e->info.max_model_len - n;
    c->params.max_tokens = p->max_tokens == SL_NONE || p->max_tokens > room ? room : p->max_tokens;
    if (c->params.p.min_tokens > c->params.max_tokens)
        c->params.p.min_tokens = c->params.max_tokens;
    c->params.seed = p->has_seed ? (uint64_t)p->seed
                                 : philox_u64((uint64_t)e->cfg.seed, c->number, 0, PHILOX_SEED);
    bool rejects = e->draft.verify == DRAFT_STANDARD && c->params.p.temperature > 0; /* host */
    c->on_host = c->lockstep =
        e->device_draws &&
        (rejects || !sampler_device_can(&c->params, e->cfg.logprobs_mode, e->device_keeps_tokens));
    st = structured_prepare(e, c, p, err);
    if (st)
        return st;
    if (!p->has_seed)
        log_debug("Request %s: seed %" PRIu64, c->id, c->params.seed);
    st = request_make_seqs(c, err);
    return st ? st : sched_prepare(c, err);
}

enum sl_status request_make_consumer(struct sl_request *r, struct sl_err *err)
{
    struct sl_engine *e = r->engine;
    struct sl_sampling_params *p = &r->core.params.p;
    struct arena *a = &r->core.arena;
    size_t n = (size_t)r->core.n_seqs;
    r->n_choices = p->n;
    r->n_made = r->n_open = p->use_beam_search ? p->n : r->core.n_seqs;
    r->cancel = arena_alloc(a, n, sizeof *r->cancel);
    r->cancelled = arena_alloc(a, n, sizeof *r->cancelled);
    r->unsent = arena_alloc(a, n, sizeof *r->unsent);
    r->ready_ring = arena_alloc(a, n, sizeof *r->ready_ring);
    r->choice = arena_alloc(a, n, sizeof *r->choice);
    if (!r->cancel || !r->cancelled || !r->unsent || !r->ready_ring || !r->choice)
        return request_no_memory(err);
    for (int i = 0; i < r->n_made; i++)
        choice_init(&r->choice[i], i);
    r->rules.show_logprobs = p->logprobs != SL_NONE || p->n_logprob_token_ids;
    r->rules.beams = p->use_beam_search;
    if (r->n_made > r->n_choices && p->logprobs == SL_NONE)
        p->logprobs = 0; /* to rank them */
    r->rules.p = p;
    r->rules.tokenizer = e->text ? text_tokenizer(e->text) : NULL;
    if (p->n_stop && !r->rules.tokenizer)
        return SL_FAIL_PARAM(err, SL_EINVAL, "stop",
                             "stop strings need a tokenizer, and the engine has none.");
    r->rules.n_context = r->core.n_prompt < CONTEXT_TOKENS ? r->core.n_prompt : CONTEXT_TOKENS;
    r->rules.context = r->core.prompt + r->core.n_prompt - r->rules.n_context;
    stop_strings_init(&r->rules.stop, p->stop, p->n_stop);
    r->rules.stream_interval =
        p->stream_interval > e->cfg.stream_interval ? p->stream_interval : e->cfg.stream_interval;
    /* stop strings must be looked for in every token */
    r->wake_interval = p->n_stop ? 1 : r->rules.stream_interval;
    if (e->cfg.log_outputs)
        r->rules.max_log_bytes = e->cfg.max_log_len >= 0 ? (size_t)e->cfg.max_log_len : SIZE_MAX;
    r->usage.prompt_tokens = r->core.n_prompt;
    return make_prompt_logprobs(r, err);
}

static void log_received(const struct sl_request *r)
{
    const struct sl_sampling_params *p = &r->core.params.p;
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_addf(&b, "SamplingParams(n=%d, ", p->n);
    if (p->best_of != SL_NONE)
        strbuf_addf(&b, "best_of=%d, ", p->best_of);
    if (p->use_beam_search) {
        static const char *const early[] = {"False", "True", "'never'"};
        strbuf_addf(&b, "use_beam_search=True, early_stopping=%s, length_penalty=",
                    early[p->early_stopping]);
        pyrepr_float(&b, p->length_penalty);
        strbuf_adds(&b, ", ");
    }
    strbuf_adds(&b, "presence_penalty=");
    pyrepr_float(&b, p->presence_penalty);
    strbuf_adds(&b, ", frequency_penalty=");
    pyrepr_float(&b, p->frequency_penalty);
    strbuf_adds(&b, ", repetition_penalty=");
    pyrepr_float(&b, p->repetition_penalty);
    strbuf_adds(&b, ", temperature=");
    pyrepr_float(&b, p->temperature);
    strbuf_adds(&b, ", top_p=");
    pyrepr_float(&b, p->top_p);
    strbuf_addf(&b, ", top_k=%d, min_p=", p->top_k);
    pyrepr_float(&b, p->min_p);
    strbuf_addf(&b, ", seed=%" PRIu64 ", stop=", r->core.params.seed);
    pyrepr_strs(&b, p->stop, p->n_stop);
    strbuf_addf(&b, ", max_tokens=%d, min_tokens=%d)", r->core.params.max_tokens, p->min_tokens);
    log_info("Received request %s: params: %s, lora_request: None.", r->core.id,
             b.data ? b.data : "?");
    strbuf_fini(&b);
}

static bool gives_logprobs(enum sl_logprobs_mode mode)
{
    return mode == SL_RAW_LOGPROBS || mode == SL_PROCESSED_LOGPROBS;
}

struct sl_request *request_new(struct sl_engine *e, sl_wake_fn wake, void *ctx)
{
    struct sl_request *r = mem_aligned(1, sizeof *r, _Alignof(struct sl_request));
    if (!r)
        return NULL;
    memset(r, 0, sizeof *r);
    r->engine = e;
    r->wake = wake;
    r->wake_ctx = ctx;
    atomic_init(&r->refs, 1);
    mutex_init(&r->lock, LOCK_EVENTS);
    cond_init(&r->ready);
    arena_init(&r->core.arena, 0);
    return r;
}

enum sl_status sl_submit(struct sl_engine *e, const struct sl_input *in,
                         const struct sl_sampling_params *params, sl_wake_fn wake, void *ctx,
                         struct sl_request **out, struct sl_err *err)
{
    struct sl_sampling_params p = *params;
    if (e->info.pools)
        return SL_FAIL(err, SL_ENOSUPPORT,
                       "the model generates nothing: its runner is pooling (sl_pool)");
    enum sl_status st = params_check(&e->limits, &p, err);
    bool ranks = !p.use_beam_search && p.best_of != SL_NONE && p.best_of > p.n;
    if (!st && ranks && !gives_logprobs(e->cfg.logprobs_mode))
        st = SL_FAIL_PARAM(err, SL_EINVAL, "best_of",
                           "best_of needs logprobs, and --logprobs-mode gives logits.");
    if (st)
        return st;
    struct sl_request *r = request_new(e, wake, ctx);
    if (!r)
        return request_no_memory(err);
    st = make_core(r, in, &p, err);
    if (!st)
        st = request_make_consumer(r, err);
    if (!st && e->cfg.log_requests)
        log_received(r);
    if (!st)
        st = engine_post_new(r, err);
    if (st)
        request_unref(r);
    else
        *out = r;
    return st;
}
