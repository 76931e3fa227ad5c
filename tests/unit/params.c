/* params: each rule of SamplingParams with its exact text, and what is normalized.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "engine/params.h"
#include "engine/pyrepr.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct params_limits limits = {.vocab_size = 1000, .max_logprobs = 20};

static struct sl_sampling_params defaults(void)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    return p;
}

static void assert_refused(struct sl_sampling_params p, const char *param, const char *text)
{
    struct sl_err err = {0};
    assert_int_equal(params_check(&limits, &p, &err), SL_EINVAL);
    assert_string_equal(err.msg, text);
    assert_string_equal(err.param, param);
}

#define REFUSED(param, text, ...)                 \
    do {                                          \
        struct sl_sampling_params p = defaults(); \
        __VA_ARGS__;                              \
        assert_refused(p, param, text);           \
    } while (0)

static void values_out_of_range(void **state)
{
    (void)state;
    REFUSED("n", "n must be at least 1, got 0.", p.n = 0);
    REFUSED("n",
            "n must be at most 16384, got 16385. To increase this limit, set the "
            "VLLM_MAX_N_SEQUENCES environment variable.",
            p.n = 16385);
    REFUSED("n", "n must be 1 when using greedy sampling, got 2.", p.n = 2; p.temperature = 0);
    REFUSED("best_of", "best_of must be at least 1, got 0.", p.best_of = 0);
    REFUSED("best_of", "best_of must be greater than or equal to n, got n=3 and best_of=2.",
            p.n = 3;
            p.best_of = 2);
    REFUSED("best_of", "best_of must be 1 when using greedy sampling, got 2.", p.best_of = 2;
            p.temperature = 0);
    REFUSED("length_penalty", "length_penalty must be in [-10, 10], got nan.",
            p.length_penalty = NAN);
    REFUSED("best_of",
            "best_of must be at most the vocabulary size of 1000 when using beam search, got "
            "1001.",
            p.use_beam_search = true;
            p.best_of = 1001);
    REFUSED("repetition_detection", "repetition_detection is not supported with beam search.",
            p.use_beam_search = true;
            p.repetition_max_pattern = p.repetition_min_count = 2);
    REFUSED("presence_penalty", "presence_penalty must be in [-2, 2], got 2.1.",
            p.presence_penalty = 2.1f);
    REFUSED("presence_penalty", "presence_penalty must be in [-2, 2], got nan.",
            p.presence_penalty = NAN);
    REFUSED("frequency_penalty", "frequency_penalty must be in [-2, 2], got -3.0.",
            p.frequency_penalty = -3);
    REFUSED("repetition_penalty", "repetition_penalty must be a finite number, got inf.",
            p.repetition_penalty = INFINITY);
    REFUSED("repetition_penalty", "repetition_penalty must be greater than zero, got 0.0.",
            p.repetition_penalty = 0);
    REFUSED("temperature", "temperature must be a finite number, got nan.", p.temperature = NAN);
    REFUSED("temperature", "temperature must be non-negative, got -0.5.", p.temperature = -0.5f);
    REFUSED("temperature", "temperature must be in [0, 2], got 2.5.", p.temperature = 2.5f);
    REFUSED("top_p", "top_p must be in (0, 1], got 0.0.", p.top_p = 0);
    REFUSED("top_p", "top_p must be in (0, 1], got 1.1.", p.top_p = 1.1f);
    REFUSED("top_k", "top_k must be 0 (disable), or at least 1, got -2.", p.top_k = -2);
    REFUSED("min_p", "min_p must be in [0, 1], got -1e-06.", p.min_p = -1e-6f);
    REFUSED("max_tokens", "max_tokens must be at least 1, got 0.", p.max_tokens = 0);
    REFUSED("min_tokens", "min_tokens must be greater than or equal to 0, got -1.",
            p.min_tokens = -1);
    REFUSED("min_tokens", "min_tokens must be less than or equal to max_tokens=16, got 17.",
            p.min_tokens = 17);
    REFUSED("stream_interval", "stream_interval must be at least 1, got -1.",
            p.stream_interval = -1);
    REFUSED("repetition_detection",
            "max_pattern_size, min_pattern_size must be >=0, with min_pattern_size <= "
            "max_pattern_size. Set both to 0 to disable repetitive pattern detection.",
            p.repetition_max_pattern = 2;
            p.repetition_min_pattern = 3);
    REFUSED("repetition_detection",
            "min_count must be >= 2 to detect repetitive patterns in engine output. If you do not "
            "wish to detect repetitive patterns, set max_pattern_size to 0.",
            p.repetition_max_pattern = 4;
            p.repetition_min_count = 1);
}

static void logprobs_out_of_range(void **state)
{
    (void)state;
    static int32_t many[129], outside[] = {5, 1000, -7};
    REFUSED("logprobs", "logprobs must be non-negative or -1, got -2.", p.logprobs = -2);
    REFUSED("prompt_logprobs", "prompt_logprobs must be non-negative or -1, got -5.",
            p.prompt_logprobs = -5);
    REFUSED("logprobs", "Requested sample logprobs of 21, which is greater than max allowed: 20",
            p.logprobs = 21);
    REFUSED("logprobs", "Requested sample logprobs of 1000, which is greater than max allowed: 20",
            p.logprobs = -1);
    REFUSED("prompt_logprobs",
            "Requested prompt logprobs of 21, which is greater than max allowed: 20",
            p.prompt_logprobs = 21);
    REFUSED("logprob_token_ids",
            "Requested logprob_token_ids of length 129, which is greater than max allowed: 128",
            p.logprob_token_ids = many;
            p.n_logprob_token_ids = 129);
    REFUSED("logprob_token_ids",
            "token_id(s) [1000, -7] in logprob_token_ids contain out-of-vocab token ids. "
            "Vocabulary size: 1000",
            p.logprob_token_ids = outside;
            p.n_logprob_token_ids = 3);
    struct params_limits open = limits;
    struct sl_sampling_params p = defaults();
    open.max_logprobs = -1;
    p.logprobs = -1;
    p.prompt_logprobs = 1000;
    assert_int_equal(params_check(&open, &p, NULL), SL_OK);
}

static void lists_that_are_wrong(void **state)
{
    (void)state;
    static const char *empty[] = {"a", ""}, *word[] = {"it's", ""}, *stop[] = {"x"};
    static struct sl_logit_bias bias[] = {{1, 1}, {1234, 1}}, nan_bias[] = {{1, NAN}};
    static int32_t outside[] = {1, 1000};
    REFUSED("stop", "stop cannot contain an empty string.", p.stop = empty; p.n_stop = 2);
    REFUSED("stop",
            "stop strings are only supported when detokenize is True. Set detokenize=True to use "
            "stop.",
            p.stop = stop;
            p.n_stop = 1; p.detokenize = false);
    REFUSED("bad_words", "bad_words cannot contain an empty string. Got bad_words=[\"it's\", '']",
            p.bad_words = word;
            p.n_bad_words = 2);
    REFUSED("logit_bias",
            "token_id(s) [1234] in logit_bias contain out-of-vocab token ids. Vocabulary size: "
            "1000",
            p.logit_bias = bias;
            p.n_logit_bias = 2);
    REFUSED("logit_bias", "logit_bias of token 1 must be a number, got nan.",
            p.logit_bias = nan_bias;
            p.n_logit_bias = 1);
    REFUSED("allowed_token_ids", "allowed_token_ids is not None and empty!",
            p.n_allowed_token_ids = 0);
    REFUSED("allowed_token_ids", "allowed_token_ids contains out-of-vocab token id!",
            p.allowed_token_ids = outside;
            p.n_allowed_token_ids = 2);
}

static void what_is_normalized(void **state)
{
    (void)state;
    struct sl_sampling_params p = defaults();
    p.temperature = 0.001f;
    p.top_k = -1;
    p.has_seed = true;
    p.seed = -1;
    assert_int_equal(params_check(&limits, &p, NULL), SL_OK);
    assert_true(p.temperature == 0.01f);
    assert_int_equal(p.top_k, 0);
    assert_false(p.has_seed);

    p = defaults();
    p.temperature = 0;
    p.top_k = 5;
    p.top_p = 0.5f;
    p.min_p = 0.1f;
    assert_int_equal(params_check(&limits, &p, NULL), SL_OK);
    assert_true(p.top_k == 0 && p.top_p == 1 && p.min_p == 0);

    p = defaults();
    p.max_tokens = SL_NONE;
    p.min_tokens = 100000;
    p.n = 16384;
    assert_int_equal(params_check(&limits, &p, NULL), SL_OK);
}

static void python_prints(void **state)
{
    (void)state;
    static const struct {
        float v;
        const char *text;
    } floats[] = {
        {0, "0.0"},
        {1, "1.0"},
        {-2.5f, "-2.5"},
        {0.1f, "0.1"},
        {1e-4f, "0.0001"},
        {1e-5f, "1e-05"},
        {123456.789f, "123456.79"},
        {1e15f, "1e+15"},
        {1e16f, "1e+16"},
        {3e38f, "3e+38"},
        {1.0f / 3, "0.33333334"},
        {-INFINITY, "-inf"},
    };
    struct strbuf b;
    strbuf_init(&b, 0);
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        strbuf_clear(&b);
        pyrepr_float(&b, floats[i].v);
        if (floats[i].v == 1e15f) /* one float, many decimal numbers: repr's digits vary */
            assert_int_equal(strtof(b.data, NULL) == 1e15f, 1);
        else
            assert_string_equal(b.data, floats[i].text);
    }
    strbuf_clear(&b);
    pyrepr_strs(&b, (const char *const[]){"a", "b'c", "\"'\n\x01\\"}, 3);
    assert_string_equal(b.data, "['a', \"b'c\", '\"\\'\\n\\x01\\\\']");
    strbuf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_out_of_range),  cmocka_unit_test(logprobs_out_of_range),
        cmocka_unit_test(lists_that_are_wrong), cmocka_unit_test(what_is_normalized),
        cmocka_unit_test(python_prints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
