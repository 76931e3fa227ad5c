/* SPDX-License-Identifier: Apache-2.0 */
#include "sampling_json.h"
#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put_float(float *at, float value)
{
    if (!isnan(value))
        *at = value;
}

static void put_int(int *at, int value)
{
    if (value != SL_NONE)
        *at = value;
}

void sampling_from_options(struct sl_sampling_params *p, const struct sampling_options *s)
{
    put_float(&p->temperature, s->temperature);
    put_float(&p->top_p, s->top_p);
    put_float(&p->min_p, s->min_p);
    put_float(&p->presence_penalty, s->presence_penalty);
    put_float(&p->frequency_penalty, s->frequency_penalty);
    put_float(&p->repetition_penalty, s->repetition_penalty);
    put_int(&p->top_k, s->top_k);
    put_int(&p->max_tokens, s->max_tokens);
    put_int(&p->min_tokens, s->min_tokens);
    put_int(&p->logprobs, s->logprobs);
    put_int(&p->prompt_logprobs, s->prompt_logprobs);
    p->n = s->n;
    p->ignore_eos = p->ignore_eos || s->ignore_eos;
    p->use_beam_search = p->use_beam_search || s->use_beam_search;
    if (s->n_stop) {
        p->stop = s->stop;
        p->n_stop = s->n_stop;
    }
}

enum key_kind { KEY_INT, KEY_FLOAT, KEY_BOOL, KEY_INTS, KEY_STRINGS, KEY_EARLY };

#define KEY(name_, kind_)                                            \
    {                                                                \
#name_, kind_, offsetof(struct sl_sampling_params, name_), 0 \
    }
#define LIST_KEY(name_, count_, kind_)                             \
    {                                                              \
#name_, kind_, offsetof(struct sl_sampling_params, name_), \
            offsetof(struct sl_sampling_params, count_)            \
    }

static const struct {
    const char *name;
    enum key_kind kind;
    size_t off, off_n;
} keys[] = {
    KEY(n, KEY_INT),
    KEY(best_of, KEY_INT),
    KEY(use_beam_search, KEY_BOOL),
    KEY(length_penalty, KEY_FLOAT),
    KEY(early_stopping, KEY_EARLY),
    KEY(top_k, KEY_INT),
    KEY(max_tokens, KEY_INT),
    KEY(min_tokens, KEY_INT),
    KEY(logprobs, KEY_INT),
    KEY(prompt_logprobs, KEY_INT),
    KEY(stream_interval, KEY_INT),
    KEY(truncate_prompt_tokens, KEY_INT),
    KEY(presence_penalty, KEY_FLOAT),
    KEY(frequency_penalty, KEY_FLOAT),
    KEY(repetition_penalty, KEY_FLOAT),
    KEY(temperature, KEY_FLOAT),
    KEY(top_p, KEY_FLOAT),
    KEY(min_p, KEY_FLOAT),
    KEY(ignore_eos, KEY_BOOL),
    KEY(include_stop_str_in_output, KEY_BOOL),
    KEY(skip_special_tokens, KEY_BOOL),
    KEY(spaces_between_special_tokens, KEY_BOOL),
    KEY(detokenize, KEY_BOOL),
    LIST_KEY(stop_token_ids, n_stop_token_ids, KEY_INTS),
    LIST_KEY(allowed_token_ids, n_allowed_token_ids, KEY_INTS),
    LIST_KEY(logprob_token_ids, n_logprob_token_ids, KEY_INTS),
    LIST_KEY(stop, n_stop, KEY_STRINGS),
    LIST_KEY(bad_words, n_bad_words, KEY_STRINGS),
};

static bool get_ints(const json_t *value, const int32_t **out, int *n)
{
    size_t count = json_array_size(value);
    int32_t *list = xcalloc(count, sizeof *list);
    bool ok = json_is_array(value);
    for (size_t i = 0; i < count && ok; i++) {
        json_int_t v = json_integer_value(json_array_get(value, i));
        ok = json_is_integer(json_array_get(value, i)) && v >= INT32_MIN && v <= INT32_MAX;
        list[i] = (int32_t)v;
    }
    *out = list;
    *n = (int)count;
    return ok;
}

static bool get_strings(const json_t *value, const char *const **out, int *n)
{
    bool one = json_is_string(value), ok = one || json_is_array(value);
    size_t count = one ? 1 : json_array_size(value);
    const char **list = xcalloc(count, sizeof *list);
    for (size_t i = 0; i < count && ok; i++) {
        list[i] = json_string_value(one ? value : json_array_get(value, i));
        ok = list[i] != NULL;
    }
    *out = list;
    *n = (int)count;
    return ok;
}

static bool get_early_stopping(const json_t *value, enum sl_early_stopping *out)
{
    bool never = json_is_string(value) && strcmp(json_string_value(value), "never") == 0;
    *out = never ? SL_EARLY_NEVER : json_is_true(value) ? SL_EARLY_TRUE : SL_EARLY_FALSE;
    return never || json_is_boolean(value);
}

static bool get_key(struct sl_sampling_params *p, size_t k, const json_t *value)
{
    char *at = (char *)p + keys[k].off;
    int *n = (int *)(void *)((char *)p + keys[k].off_n);
    json_int_t v = json_integer_value(value);
    switch (keys[k].kind) {
    case KEY_INT:
        *(int *)(void *)at = (int)v;
        return json_is_integer(value) && v > INT32_MIN && v <= INT32_MAX;
    case KEY_FLOAT:
        *(float *)(void *)at = (float)json_number_value(value);
        return json_is_number(value);
    case KEY_BOOL:
        *(bool *)(void *)at = json_is_true(value);
        return json_is_boolean(value);
    case KEY_INTS:
        return get_ints(value, (const int32_t **)(void *)at, n);
    case KEY_STRINGS:
        return get_strings(value, (const char *const **)(void *)at, n);
    case KEY_EARLY:
        return get_early_stopping(value, (enum sl_early_stopping *)(void *)at);
    }
    return false;
}

/* {"15": -100, "27": 2.5} */
static bool get_bias(struct sl_sampling_params *p, json_t *value)
{
    struct sl_logit_bias *list = xcalloc(json_object_size(value), sizeof *list);
    const char *key;
    json_t *bias;
    int n = 0;
    json_object_foreach(value, key, bias)
    {
        char *end;
        long token = strtol(key, &end, 10);
        if (*end || end == key || !json_is_number(bias) || token < INT32_MIN || token > INT32_MAX)
            return false;
        list[n++] = (struct sl_logit_bias){(int32_t)token, (float)json_number_value(bias)};
    }
    p->logit_bias = list;
    p->n_logit_bias = n;
    return json_is_object(value);
}

static bool get_structured(struct sl_sampling_params *p, const json_t *value, char *why,
                           size_t size)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY), *memory = NULL;
    struct sl_err err = {0};
    bool ok = text && sl_structured_output_parse(text, strlen(text), &p->structured, &memory,
                                                 &err) == SL_OK; /* memory: as long as p */
    if (!ok)
        snprintf(why, size, "%s", err.msg);
    free(text);
    return ok;
}

bool sampling_from_json(struct sl_sampling_params *p, const json_t *object, char *why, size_t size)
{
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const json_t *value = json_object_get(object, keys[k].name);
        if (!value || json_is_null(value) || get_key(p, k, value))
            continue;
        static const char *const want[] = {"a whole number",
                                           "a number",
                                           "true or false",
                                           "a list of token ids",
                                           "a string or a list of strings",
                                           "true, false or \"never\""};
        snprintf(why, size, "\"%s\" must be %s", keys[k].name, want[keys[k].kind]);
        return false;
    }
    json_t *bias = json_object_get(object, "logit_bias");
    if (bias && !json_is_null(bias) && !get_bias(p, bias)) {
        snprintf(why, size, "\"logit_bias\" must map token ids to numbers");
        return false;
    }
    const json_t *structured = json_object_get(object, "structured_outputs");
    if (structured && !json_is_null(structured) && !get_structured(p, structured, why, size))
        return false;
    const json_t *seed = json_object_get(object, "seed");
    if (seed && !json_is_null(seed)) {
        p->seed = json_integer_value(seed);
        p->has_seed = p->seed != -1;
        if (!json_is_integer(seed)) {
            snprintf(why, size, "\"seed\" must be a whole number");
            return false;
        }
    }
    return true;
}

bool sampling_has_key(const char *name)
{
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        if (strcmp(name, keys[k].name) == 0)
            return true;
    return strcmp(name, "seed") == 0 || strcmp(name, "structured_outputs") == 0 ||
           strcmp(name, "logit_bias") == 0;
}
