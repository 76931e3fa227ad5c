/* --speculative-config: vLLM's keys, each checked, none ignored.
 * SPDX-License-Identifier: Apache-2.0 */
#include "draft/draft.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static const char FLAG[] = "speculative_config";
enum { LOOKUP_MAX = 1024, SUFFIX_DEPTH_MAX = 256, SUFFIX_REQUESTS_MAX = 1 << 20 };

static enum sl_status bad_type(const char *key, const char *what, struct sl_err *err)
{
    return SL_FAIL_PARAM(err, SL_EINVAL, FLAG, "speculative_config: %s must be %s", key, what);
}

/* Absent or null leaves *out. */
static enum sl_status get_int(const json_t *o, const char *key, int min, int max, int *out,
                              struct sl_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return SL_OK;
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < min || i > max)
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: %s must be an integer from %d to %d", key, min,
                             max);
    *out = (int)i;
    return SL_OK;
}

static enum sl_status get_number(const json_t *o, const char *key, double min, double max,
                                 double *out, struct sl_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return SL_OK;
    double d = json_number_value(v);
    if (!json_is_number(v) || !(d >= min && d <= max))
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: %s must be a number from %g to %g", key, min,
                             max);
    *out = d;
    return SL_OK;
}

/* Borrowed from o. */
static enum sl_status get_string(const json_t *o, const char *key, const char **out,
                                 struct sl_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return SL_OK;
    if (!json_is_string(v) || !json_string_length(v))
        return bad_type(key, "a string", err);
    *out = json_string_value(v);
    return SL_OK;
}

static enum sl_status check_keys(json_t *o, struct sl_err *err)
{
    static const char *const known[] = {"method",
                                        "model",
                                        "num_speculative_tokens",
                                        "prompt_lookup_min",
                                        "prompt_lookup_max",
                                        "suffix_decoding_max_tree_depth",
                                        "suffix_decoding_max_cached_requests",
                                        "suffix_decoding_max_spec_factor",
                                        "suffix_decoding_min_token_prob",
                                        "max_model_len",
                                        "disable_by_batch_size",
                                        "quantization",
                                        "rejection_sample_method",
                                        "draft_tensor_parallel_size",
                                        "adaptive"};
    const char *key;
    json_t *v;
    json_object_foreach(o, key, v)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found = found || !strcmp(key, known[i]);
        if (!found)
            return SL_FAIL_PARAM(err, SL_EINVAL, FLAG, "speculative_config: unknown key '%.64s'",
                                 key);
    }
    return SL_OK;
}

static enum sl_status parse_verify(const char *name, const char *param, enum draft_verify *out,
                                   struct sl_err *err)
{
    if (!name)
        return SL_OK;
    if (!strcmp(name, "coupled") || !strcmp(name, "strict"))
        *out = DRAFT_COUPLED;
    else if (!strcmp(name, "standard") || !strcmp(name, "probabilistic"))
        *out = DRAFT_STANDARD;
    else
        return SL_FAIL_PARAM(err, SL_EINVAL, param,
                             "rejection_sample_method '%.32s' is not known; there are coupled "
                             "(the default) and standard",
                             name);
    return SL_OK;
}

static enum sl_status parse_method(const char *method, struct draft_config *c, struct sl_err *err)
{
    static const char *const later[] = {"eagle", "eagle3",       "medusa",      "mlp_speculator",
                                        "mtp",   "deepseek_mtp", "custom_class"};
    bool names_ngram = c->model && (!strcmp(c->model, "ngram") || !strcmp(c->model, "[ngram]"));
    if (!method)
        method = names_ngram ? "ngram" : c->model ? "draft_model" : "";
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (!strcmp(method, later[i]))
            return SL_FAIL_PARAM(err, SL_ENOSUPPORT, FLAG,
                                 "speculative_config: method '%s' is not there yet; there are "
                                 "draft_model, ngram and suffix",
                                 method);
    if (!strcmp(method, "ngram"))
        c->method = DRAFT_NGRAM;
    else if (!strcmp(method, "suffix"))
        c->method = DRAFT_SUFFIX;
    else if (!strcmp(method, "draft_model"))
        c->method = DRAFT_MODEL;
    else if (!*method)
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: give a model or a method (draft_model, ngram, "
                             "suffix)");
    else
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: method '%.32s' is not known; there are "
                             "draft_model, ngram and suffix",
                             method);
    if (c->method == DRAFT_MODEL && !c->model)
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: method draft_model needs a model");
    return SL_OK;
}

/* vLLM's: both 5 when neither is given, else the one that is. */
static enum sl_status set_lookup(struct draft_config *c, struct sl_err *err)
{
    if (!c->lookup_min && !c->lookup_max)
        c->lookup_min = c->lookup_max = 5;
    if (!c->lookup_min)
        c->lookup_min = c->lookup_max;
    if (!c->lookup_max)
        c->lookup_max = c->lookup_min;
    if (c->lookup_min > c->lookup_max)
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: prompt_lookup_min (%d) must not be greater than "
                             "prompt_lookup_max (%d)",
                             c->lookup_min, c->lookup_max);
    return SL_OK;
}

static enum sl_status parse_fields(json_t *o, struct draft_config *c, const char **method,
                                   const char **verify, struct sl_err *err)
{
    enum sl_status st = check_keys(o, err);
    const struct {
        const char *key;
        int min, max, *to;
    } ints[] = {
        {"num_speculative_tokens", 1, DRAFT_MAX, &c->n_tokens},
        {"prompt_lookup_min", 1, LOOKUP_MAX, &c->lookup_min},
        {"prompt_lookup_max", 1, LOOKUP_MAX, &c->lookup_max},
        {"suffix_decoding_max_tree_depth", 1, SUFFIX_DEPTH_MAX, &c->suffix_depth},
        {"suffix_decoding_max_cached_requests", 0, SUFFIX_REQUESTS_MAX, &c->suffix_requests},
        {"max_model_len", 1, INT32_MAX, &c->max_model_len},
        {"disable_by_batch_size", 1, INT32_MAX, &c->max_batch},
        {"draft_tensor_parallel_size", 1, 1, &(int){1}},
    };
    const struct {
        const char *key, **to;
    } strings[] = {{"method", method},
                   {"model", &c->model},
                   {"quantization", &c->quantization},
                   {"rejection_sample_method", verify}};
    for (size_t i = 0; !st && i < sizeof ints / sizeof *ints; i++)
        st = get_int(o, ints[i].key, ints[i].min, ints[i].max, ints[i].to, err);
    for (size_t i = 0; !st && i < sizeof strings / sizeof *strings; i++)
        st = get_string(o, strings[i].key, strings[i].to, err);
    const json_t *adaptive = json_object_get(o, "adaptive"); /* ours, not vLLM's */
    if (!st && adaptive && !json_is_boolean(adaptive))
        st = bad_type("adaptive", "true or false", err);
    c->fixed = json_is_false(adaptive);
    if (!st)
        st = get_number(o, "suffix_decoding_max_spec_factor", 0, 1000, &c->suffix_factor, err);
    if (!st)
        st = get_number(o, "suffix_decoding_min_token_prob", 0, 1, &c->suffix_min_prob, err);
    return st;
}

static enum sl_status keep_strings(struct draft_config *c, struct arena *strings,
                                   struct sl_err *err)
{
    const char **all[] = {&c->model, &c->quantization};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (*all[i] && !(*all[i] = arena_strndup(strings, *all[i], strlen(*all[i]))))
            return SL_FAIL(err, SL_ENOMEM, "speculative_config: no memory");
    return SL_OK;
}

enum sl_status draft_config_parse(struct draft_config *out, const char *json,
                                  const char *rejection_method, struct arena *strings,
                                  struct sl_err *err)
{
    *out = (struct draft_config){
        .suffix_depth = 24, .suffix_requests = 10000, .suffix_factor = 1, .suffix_min_prob = 0.1};
    json_error_t je;
    json_t *o = json ? json_loads(json, JSON_REJECT_DUPLICATES, &je) : NULL;
    if (!json_is_object(o)) {
        json_decref(o);
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG, "speculative_config must be a JSON object");
    }
    const char *method = NULL, *verify = NULL;
    enum sl_status st = parse_fields(o, out, &method, &verify, err);
    if (!st)
        st = parse_method(method, out, err);
    if (!st)
        st = set_lookup(out, err);
    if (!st)
        st = parse_verify(verify, FLAG, &out->verify, err);
    if (!st)
        st = parse_verify(rejection_method, "rejection_sample_method", &out->verify, err);
    if (!st && !out->n_tokens && out->method == DRAFT_SUFFIX)
        out->n_tokens = out->suffix_depth < DRAFT_MAX ? out->suffix_depth : DRAFT_MAX;
    if (!st && !out->n_tokens)
        st = SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                           "speculative_config: num_speculative_tokens must be provided");
    if (!st)
        st = keep_strings(out, strings, err);
    json_decref(o);
    return st;
}
