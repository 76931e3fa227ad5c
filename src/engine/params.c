/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/params.h"

#include "base/log.h"
#include "base/strbuf.h"
#include "engine/pyrepr.h"

#include <math.h>
#include <string.h>

/* A beam's row has a candidate for every stop token, so their number is bounded there. */
enum { MAX_N = 16384, MAX_LOGPROB_IDS = 128, LIST_BYTES = 512, MAX_BEAM_STOP_IDS = 128 };

static const float MAX_LENGTH_PENALTY = 10;

static const float LOWEST_TEMPERATURE = 0.01f, GREEDY_BELOW = 1e-5f;

/* ---- single values --------------------------------------------------------------------------- */

/* "{name}{rule}, got {v}." */
static enum sl_status bad_float(struct sl_err *err, const char *name, const char *rule, float v)
{
    struct strbuf b;
    strbuf_init(&b, 64);
    pyrepr_float(&b, v);
    enum sl_status st =
        SL_FAIL_PARAM(err, SL_EINVAL, name, "%s %s, got %s.", name, rule, b.data ? b.data : "?");
    strbuf_fini(&b);
    return st;
}

static enum sl_status check_penalties(const struct sl_sampling_params *p, struct sl_err *err)
{
    if (!(p->presence_penalty >= -2 && p->presence_penalty <= 2))
        return bad_float(err, "presence_penalty", "must be in [-2, 2]", p->presence_penalty);
    if (!(p->frequency_penalty >= -2 && p->frequency_penalty <= 2))
        return bad_float(err, "frequency_penalty", "must be in [-2, 2]", p->frequency_penalty);
    if (!isfinite(p->repetition_penalty))
        return bad_float(err, "repetition_penalty", "must be a finite number",
                         p->repetition_penalty);
    if (p->repetition_penalty <= 0)
        return bad_float(err, "repetition_penalty", "must be greater than zero",
                         p->repetition_penalty);
    return SL_OK;
}

static enum sl_status check_shape(const struct sl_sampling_params *p, struct sl_err *err)
{
    if (!isfinite(p->temperature))
        return bad_float(err, "temperature", "must be a finite number", p->temperature);
    if (p->temperature < 0)
        return bad_float(err, "temperature", "must be non-negative", p->temperature);
    if (p->temperature > 2)
        return bad_float(err, "temperature", "must be in [0, 2]", p->temperature);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return bad_float(err, "top_p", "must be in (0, 1]", p->top_p);
    if (p->top_k < -1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "top_k",
                             "top_k must be 0 (disable), or at least 1, got %d.", p->top_k);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return bad_float(err, "min_p", "must be in [0, 1]", p->min_p);
    return SL_OK;
}

static enum sl_status check_lengths(const struct sl_sampling_params *p, struct sl_err *err)
{
    bool limited = p->max_tokens != SL_NONE;
    if (limited && p->max_tokens < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "max_tokens", "max_tokens must be at least 1, got %d.",
                             p->max_tokens);
    if (p->min_tokens < 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "min_tokens",
                             "min_tokens must be greater than or equal to 0, got %d.",
                             p->min_tokens);
    if (limited && p->min_tokens > p->max_tokens)
        return SL_FAIL_PARAM(err, SL_EINVAL, "min_tokens",
                             "min_tokens must be less than or equal to max_tokens=%d, got %d.",
                             p->max_tokens, p->min_tokens);
    if (p->truncate_prompt_tokens != SL_NONE && p->truncate_prompt_tokens < -1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "truncate_prompt_tokens",
                             "truncate_prompt_tokens must be greater than or equal to -1, got %d.",
                             p->truncate_prompt_tokens);
    if (p->stream_interval < 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "stream_interval",
                             "stream_interval must be at least 1, got %d.", p->stream_interval);
    return SL_OK;
}

static enum sl_status check_repetition(const struct sl_sampling_params *p, struct sl_err *err)
{
    int max = p->repetition_max_pattern, min = p->repetition_min_pattern;
    if (max < 0 || min < 0 || min > max)
        return SL_FAIL_PARAM(err, SL_EINVAL, "repetition_detection",
                             "max_pattern_size, min_pattern_size must be >=0, with "
                             "min_pattern_size <= max_pattern_size. Set both to 0 to disable "
                             "repetitive pattern detection.");
    if (max > 0 && p->repetition_min_count < 2)
        return SL_FAIL_PARAM(err, SL_EINVAL, "repetition_detection",
                             "min_count must be >= 2 to detect repetitive patterns in engine "
                             "output. If you do not wish to detect repetitive patterns, set "
                             "max_pattern_size to 0.");
    return SL_OK;
}

/* ---- lists ----------------------------------------------------------------------------------- */

/* "token_id(s) [..] in {name} contain out-of-vocab token ids. Vocabulary size: {V}" */
static enum sl_status out_of_vocab(struct sl_err *err, const char *name, const int32_t *ids, int n,
                                   size_t stride, int vocab)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    int n_bad = 0;
    for (int i = 0; i < n && b.len < LIST_BYTES; i++) {
        int32_t id = *(const int32_t *)((const char *)ids + (size_t)i * stride);
        if (id < 0 || id >= vocab)
            strbuf_addf(&b, n_bad++ ? ", %d" : "%d", (int)id);
    }
    enum sl_status st = SL_OK;
    if (n_bad)
        st = SL_FAIL_PARAM(err, SL_EINVAL, name,
                           "token_id(s) [%s] in %s contain out-of-vocab token ids. Vocabulary "
                           "size: %d",
                           b.data ? b.data : "", name, vocab);
    strbuf_fini(&b);
    return st;
}

static enum sl_status check_logprobs_field(const struct params_limits *l, const char *name,
                                           const char *what, int v, struct sl_err *err)
{
    if (v == SL_NONE)
        return SL_OK;
    if (v < -1)
        return SL_FAIL_PARAM(err, SL_EINVAL, name, "%s must be non-negative or -1, got %d.", name,
                             v);
    int n = v == -1 ? l->vocab_size : v;
    int max = l->max_logprobs == -1 ? l->vocab_size : l->max_logprobs;
    if (n > max && l->vocab_size)
        return SL_FAIL_PARAM(err, SL_EINVAL, name,
                             "Requested %s logprobs of %d, which is greater than max allowed: %d",
                             what, n, max);
    return SL_OK;
}

static enum sl_status check_logprobs(const struct params_limits *l,
                                     const struct sl_sampling_params *p, struct sl_err *err)
{
    enum sl_status st = check_logprobs_field(l, "logprobs", "sample", p->logprobs, err);
    if (!st)
        st = check_logprobs_field(l, "prompt_logprobs", "prompt", p->prompt_logprobs, err);
    if (st)
        return st;
    if (p->n_logprob_token_ids > MAX_LOGPROB_IDS)
        return SL_FAIL_PARAM(err, SL_EINVAL, "logprob_token_ids",
                             "Requested logprob_token_ids of length %d, which is greater than max "
                             "allowed: %d",
                             p->n_logprob_token_ids, MAX_LOGPROB_IDS);
    if (l->vocab_size)
        return out_of_vocab(err, "logprob_token_ids", p->logprob_token_ids, p->n_logprob_token_ids,
                            sizeof *p->logprob_token_ids, l->vocab_size);
    return SL_OK;
}

static enum sl_status check_token_lists(const struct params_limits *l,
                                        const struct sl_sampling_params *p, struct sl_err *err)
{
    if (l->vocab_size && p->n_logit_bias) {
        enum sl_status st = out_of_vocab(err, "logit_bias", &p->logit_bias[0].token,
                                         p->n_logit_bias, sizeof *p->logit_bias, l->vocab_size);
        if (st)
            return st;
    }
    for (int i = 0; i < p->n_logit_bias; i++)
        if (isnan(p->logit_bias[i].bias))
            return SL_FAIL_PARAM(err, SL_EINVAL, "logit_bias",
                                 "logit_bias of token %d must be a number, got nan.",
                                 (int)p->logit_bias[i].token);
    if (p->n_allowed_token_ids == 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "allowed_token_ids",
                             "allowed_token_ids is not None and empty!");
    for (int i = 0; i < p->n_allowed_token_ids && l->vocab_size; i++)
        if (p->allowed_token_ids[i] < 0 || p->allowed_token_ids[i] >= l->vocab_size)
            return SL_FAIL_PARAM(err, SL_EINVAL, "allowed_token_ids",
                                 "allowed_token_ids contains out-of-vocab token id!");
    return SL_OK;
}

static enum sl_status check_strings(const struct sl_sampling_params *p, struct sl_err *err)
{
    for (int i = 0; i < p->n_stop; i++)
        if (!p->stop[i][0])
            return SL_FAIL_PARAM(err, SL_EINVAL, "stop", "stop cannot contain an empty string.");
    if (p->n_stop && !p->detokenize)
        return SL_FAIL_PARAM(err, SL_EINVAL, "stop",
                             "stop strings are only supported when detokenize is True. Set "
                             "detokenize=True to use stop.");
    for (int i = 0; i < p->n_bad_words; i++) {
        if (p->bad_words[i][0])
            continue;
        struct strbuf b;
        strbuf_init(&b, 1 << 16);
        pyrepr_strs(&b, p->bad_words, p->n_bad_words);
        enum sl_status st = SL_FAIL_PARAM(
            err, SL_EINVAL, "bad_words",
            "bad_words cannot contain an empty string. Got bad_words=%s", b.data ? b.data : "[]");
        strbuf_fini(&b);
        return st;
    }
    return SL_OK;
}

/* ---- several choices ------------------------------------------------------------------------- */

static enum sl_status check_choices(const struct sl_sampling_params *p, struct sl_err *err)
{
    if (p->n < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "n", "n must be at least 1, got %d.", p->n);
    if (p->n > MAX_N)
        return SL_FAIL_PARAM(err, SL_EINVAL, "n",
                             "n must be at most %d, got %d. To increase this limit, set the "
                             "VLLM_MAX_N_SEQUENCES environment variable.",
                             MAX_N, p->n);
    if (p->best_of == SL_NONE)
        return SL_OK;
    if (p->best_of < 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "best_of", "best_of must be at least 1, got %d.",
                             p->best_of);
    if (p->best_of < p->n)
        return SL_FAIL_PARAM(err, SL_EINVAL, "best_of",
                             "best_of must be greater than or equal to n, got n=%d and "
                             "best_of=%d.",
                             p->n, p->best_of);
    if (p->best_of > MAX_N)
        return SL_FAIL_PARAM(err, SL_EINVAL, "best_of", "best_of must be at most %d, got %d.",
                             MAX_N, p->best_of);
    return SL_OK;
}

static enum sl_status check_beams(const struct params_limits *l, const struct sl_sampling_params *p,
                                  struct sl_err *err)
{
    const char *name = p->best_of == SL_NONE ? "n" : "best_of";
    int width = p->best_of == SL_NONE ? p->n : p->best_of;
    if (!(fabsf(p->length_penalty) <= MAX_LENGTH_PENALTY))
        return bad_float(err, "length_penalty", "must be in [-10, 10]", p->length_penalty);
    if ((unsigned)p->early_stopping > SL_EARLY_NEVER)
        return SL_FAIL_PARAM(err, SL_EINVAL, "early_stopping",
                             "early_stopping must be True, False, or 'never', got %d.",
                             (int)p->early_stopping);
    if (!p->use_beam_search)
        return SL_OK;
    if (l->max_beams < 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "use_beam_search",
                             "use_beam_search is not supported with --batching-policy static or "
                             "request.");
    if (l->max_beams && width > l->max_beams)
        return SL_FAIL_PARAM(err, SL_EINVAL, name,
                             "%s must be at most %d (max_num_seqs) when using beam search, because "
                             "all beams are computed together, got %d.",
                             name, l->max_beams, width);
    if (l->vocab_size && width > l->vocab_size)
        return SL_FAIL_PARAM(err, SL_EINVAL, name,
                             "%s must be at most the vocabulary size of %d when using beam search, "
                             "got %d.",
                             name, l->vocab_size, width);
    if (p->n_stop)
        return SL_FAIL_PARAM(err, SL_EINVAL, "stop",
                             "stop strings are not supported with beam search; use "
                             "stop_token_ids.");
    if (p->n_stop_token_ids > MAX_BEAM_STOP_IDS)
        return SL_FAIL_PARAM(err, SL_EINVAL, "stop_token_ids",
                             "stop_token_ids must have at most %d entries when using beam search, "
                             "got %d.",
                             MAX_BEAM_STOP_IDS, p->n_stop_token_ids);
    if (p->repetition_max_pattern > 0)
        return SL_FAIL_PARAM(err, SL_EINVAL, "repetition_detection",
                             "repetition_detection is not supported with beam search.");
    return SL_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void normalize_first(struct sl_sampling_params *p)
{
    if (p->temperature > 0 && p->temperature < LOWEST_TEMPERATURE) {
        log_warning("temperature %g is less than %g, which may cause numerical errors nan or inf "
                    "in logits. We have raised it to %g.",
                    (double)p->temperature, (double)LOWEST_TEMPERATURE, (double)LOWEST_TEMPERATURE);
        p->temperature = LOWEST_TEMPERATURE;
    }
    if (p->seed == -1)
        p->has_seed = false;
}

static enum sl_status normalize_last(struct sl_sampling_params *p, struct sl_err *err)
{
    if (p->top_k == -1)
        p->top_k = 0;
    if (p->use_beam_search)
        p->temperature = 0; /* nothing is drawn, as in vLLM and transformers */
    if (p->temperature >= GREEDY_BELOW)
        return SL_OK;
    p->temperature = 0;
    p->top_p = 1;
    p->top_k = 0;
    p->min_p = 0;
    if (p->use_beam_search)
        return SL_OK;
    if (p->n > 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "n", "n must be 1 when using greedy sampling, got %d.",
                             p->n);
    if (p->best_of > 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "best_of",
                             "best_of must be 1 when using greedy sampling, got %d.", p->best_of);
    return SL_OK;
}

enum sl_status params_check(const struct params_limits *l, struct sl_sampling_params *p,
                            struct sl_err *err)
{
    normalize_first(p);
    enum sl_status st = check_choices(p, err);
    if (!st)
        st = check_penalties(p, err);
    if (!st)
        st = check_shape(p, err);
    if (!st)
        st = check_lengths(p, err);
    if (!st)
        st = check_logprobs(l, p, err);
    if (!st)
        st = check_strings(p, err);
    if (!st)
        st = check_repetition(p, err);
    if (!st)
        st = check_token_lists(l, p, err);
    if (!st)
        st = check_beams(l, p, err);
    return st ? st : normalize_last(p, err);
}
