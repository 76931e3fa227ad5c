/* oai_prompt.c - prompts become token ids, and are measured against the model's context.
 *
 * The slow part of a request's life before the engine: runs on a worker, never on a loop.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define TOO_LONG "This model's maximum context length is %d tokens. However, you requested %d "
#define REDUCE \
    " Please reduce the length of the input prompt or the number of requested output tokens."

/* Output tokens that the request names itself; 0: none. */
static int asked_output(const struct oai_request *r)
{
    int asked = r->max_tokens;
    if (r->api == OAI_CHAT && r->max_completion_tokens != SL_NONE)
        asked = r->max_completion_tokens;
    return asked == SL_NONE || asked < 0 ? 0 : asked;
}

int oai_prompt_limit(const struct oai_request *r, const struct oai_env *env)
{
    int asked = asked_output(r);
    if (asked < 1)
        asked = 1; /* a prompt that fills the context leaves no room for an answer */
    return asked < env->info.max_model_len ? env->info.max_model_len - asked : 0;
}

static bool too_many_tokens(const struct oai_request *r, const struct oai_env *env, int n,
                            struct oai_error *e)
{
    int asked = asked_output(r);
    return oai_fail(e, 400, NULL, "input_tokens",
                    TOO_LONG "output tokens and your prompt contains %d input tokens, for a total "
                             "of %lld tokens." REDUCE,
                    env->info.max_model_len, asked, n, (long long)asked + n);
}

static size_t count_chars(const char *s, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += ((unsigned char)s[i] & 0xc0) != 0x80;
    return n;
}

/* No token is longer than max_token_chars, so a text may be hopeless before it is tokenized. This
 * also bounds the time that one prompt can take. */
static bool check_chars(const struct oai_request *r, const struct oai_env *env,
                        const struct oai_prompt *p, struct oai_error *e)
{
    int limit = oai_prompt_limit(r, env);
    size_t bound = env->max_token_chars * (size_t)limit;
    if (!env->max_token_chars || p->bytes <= bound)
        return true;
    size_t chars = count_chars(p->text, p->bytes);
    return chars <= bound ||
           oai_fail(e, 400, NULL, "input_text",
                    TOO_LONG "output tokens and your prompt contains %zu characters (more than %zu "
                             "characters, which is the upper bound for %d input tokens)." REDUCE,
                    env->info.max_model_len, asked_output(r), chars, bound, limit);
}

static bool encode(const struct oai_request *r, const struct oai_env *env, struct oai_prompt *p,
                   struct oai_error *e)
{
    if (!env->text)
        return oai_fail(e, 400, NULL, NULL,
                        "Unable to get tokenizer because `skip_tokenizer_init=True`");
    if (r->api & OAI_GENERATE && r->params.truncate_prompt_tokens == SL_NONE &&
        !check_chars(r, env, p, e))
        return false;
    struct sl_err err = {0};
    size_t n = 0;
    if (sl_text_encode(env->text, p->text, p->bytes, r->add_special_tokens, &p->tokens, &n, &err))
        return oai_fail_err(e, &err);
    if (n > INT_MAX)
        return oai_fail(e, 400, NULL, NULL, "The prompt has too many tokens");
    p->n_tokens = (int)n;
    return true;
}

static bool bad_prompt(struct oai_error *e, const char *type, const char *msg)
{
    return oai_fail(e, 400, "Bad Request", "body.prompt",
                    "1 validation error:\n  {'type': '%s', 'loc': ('body', 'prompt'), 'msg': "
                    "'%s'}",
                    type, msg);
}

static bool copy_ids(const json_t *list, const struct oai_env *env, struct oai_prompt *p,
                     struct oai_error *e)
{
    size_t n = json_array_size(list);
    p->tokens = mem_alloc(n, sizeof *p->tokens);
    if (!p->tokens)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the prompt");
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_array_get(list, i);
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v))
            return bad_prompt(e, "int_type", "Input should be a valid integer");
        if (id < 0)
            return bad_prompt(e, "greater_than_equal",
                              "Input should be greater than or equal to 0");
        if (id >= env->info.vocab_size)
            return oai_fail(e, 400, NULL, "prompt", "Token id %lld is out of vocabulary",
                            (long long)id);
        p->tokens[i] = (int32_t)id;
    }
    p->n_tokens = (int)n; /* a body holds at most OAI_MAX_JSON_VALUES of them */
    return true;
}

static bool read_one(const struct oai_request *r, const struct oai_env *env, const json_t *v,
                     struct oai_prompt *p, struct oai_error *e)
{
    if (json_is_array(v))
        return copy_ids(v, env, p, e);
    if (!json_is_string(v))
        return bad_prompt(e, "string_type",
                          "Input should be a string, a list of strings, a list of token ids or a "
                          "list of such lists");
    p->text = json_string_value(v);
    p->bytes = json_string_length(v);
    return encode(r, env, p, e);
}

static bool completion_prompts(struct oai_request *r, const struct oai_env *env,
                               struct oai_error *e)
{
    json_t *first = json_array_get(r->prompt, 0);
    bool several = first && !json_is_integer(first);
    size_t n = several ? json_array_size(r->prompt) : 1;
    if (json_is_array(r->prompt) && !first)
        return oai_fail(e, 400, NULL, "prompt",
                        "Either prompt or prompt_embeds must be provided and non-empty.");
    bool more = r->params.best_of != SL_NONE;
    int each = more ? r->params.best_of : r->params.n;
    const char *name = more ? "best_of" : "n";
    if (n > OAI_MAX_PROMPTS || (long long)n * each > OAI_MAX_CHOICES)
        return oai_fail(e, 400, NULL, name,
                        "prompts times %s must be at most %d, got %zu times %d.", name,
                        OAI_MAX_CHOICES, n, each);
    r->prompts = arena_alloc(&r->arena, n, sizeof *r->prompts);
    if (!r->prompts)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    for (size_t i = 0; i < n; i++) {
        r->n_prompts = (int)i + 1; /* oai_fini frees what this one has so far */
        if (!read_one(r, env, several ? json_array_get(r->prompt, i) : r->prompt, &r->prompts[i],
                      e))
            return false;
    }
    return true;
}

bool oai_render(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!env->info.has_chat_template && !r->chat_template)
        return oai_fail(e, 400, NULL, NULL,
                        "As of transformers v4.44, default chat template is no longer allowed, so "
                        "you must provide a chat template if the tokenizer does not define one.");
    json_t *vars = oai_chat_vars(r, env, e);
    if (!vars)
        return false;
    char *text = json_dumps(vars, JSON_COMPACT);
    struct sl_err err = {0};
    bool ok = true;
    if (!text)
        ok = oai_fail(e, 500, NULL, NULL, "There is not enough memory for the messages");
    else if (sl_text_render_with(env->text, text, r->chat_template, NULL, &r->rendered,
                                 &r->rendered_bytes, &err))
        ok = oai_fail_err(e, &err);
    if (ok) {
        oai_settle_reasoning(r, vars);
        ok = oai_settle_grammar(r, env, e);
    }
    free(text);
    json_decref(vars);
    return ok;
}

static bool chat_prompt(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    if (!env->text)
        return oai_fail(e, 400, NULL, NULL,
                        "Unable to get tokenizer because `skip_tokenizer_init=True`");
    r->prompts = arena_alloc(&r->arena, 1, sizeof *r->prompts);
    if (!r->prompts)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    if (!oai_render(r, env, e))
        return false;
    r->n_prompts = 1;
    r->prompts[0].text = r->rendered;
    r->prompts[0].bytes = r->rendered_bytes;
    return encode(r, env, &r->prompts[0], e);
}

static void truncate(const struct oai_request *r, int limit, struct oai_prompt *p)
{
    int keep = r->params.truncate_prompt_tokens;
    if (keep == SL_NONE)
        return;
    if (keep < 0 || keep > limit)
        keep = limit;
    if (p->n_tokens <= keep)
        return;
    if (!r->truncate_right)
        memmove(p->tokens, p->tokens + (p->n_tokens - keep), (size_t)keep * sizeof *p->tokens);
    p->n_tokens = keep;
    p->text = NULL; /* it is not what the model sees any more */
}

/* Room for the answer: what was asked, what fits, what the server caps. */
static bool measure(const struct oai_request *r, const struct oai_env *env, struct oai_prompt *p,
                    struct oai_error *e)
{
    int limit = oai_prompt_limit(r, env);
    truncate(r, limit, p);
    if (!p->n_tokens)
        return oai_fail(e, 400, NULL, NULL, "The decoder prompt cannot be empty");
    if (p->n_tokens > limit)
        return too_many_tokens(r, env, p->n_tokens, e);
    int max = env->info.max_model_len - p->n_tokens;
    if (env->max_new_tokens != SL_NONE && env->max_new_tokens < max)
        max = env->max_new_tokens;
    int asked = r->max_tokens;
    if (r->api == OAI_CHAT && r->max_completion_tokens != SL_NONE)
        asked = r->max_completion_tokens;
    if (asked != SL_NONE && asked < max)
        max = asked;
    p->max_tokens = r->only_echo ? 1 : max;
    return true;
}

/* echo shows the prompt as text, also where only its tokens are known. */
static bool echo_text(struct oai_request *r, const struct oai_env *env, struct oai_prompt *p,
                      struct oai_error *e)
{
    char *text = NULL;
    size_t bytes = 0;
    struct sl_err err = {0};
    if (p->text) {
        p->text = arena_strndup(&r->arena, p->text, p->bytes); /* it outlives the body */
    } else {
        if (!env->text)
            return oai_fail(e, 400, NULL, NULL,
                            "Unable to get tokenizer because `skip_tokenizer_init=True`");
        if (sl_text_decode(env->text, p->tokens, (size_t)p->n_tokens, false, &text, &bytes, &err))
            return oai_fail_err(e, &err);
        p->text = arena_strndup(&r->arena, text, bytes);
        p->bytes = bytes;
        sl_free(text);
    }
    return p->text || oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
}

bool oai_prompts(struct oai_request *r, const struct oai_env *env, struct oai_error *e)
{
    bool messages = r->api == OAI_CHAT || (r->api == OAI_TOKENIZE && r->messages);
    if (!(messages ? chat_prompt(r, env, e) : completion_prompts(r, env, e)))
        return false;
    if (!(r->api & OAI_GENERATE))
        return true;
    for (int i = 0; i < r->n_prompts; i++)
        if (!measure(r, env, &r->prompts[i], e) ||
            (r->api == OAI_COMPLETIONS && r->echo && !echo_text(r, env, &r->prompts[i], e)))
            return false;
    r->params.truncate_prompt_tokens = SL_NONE;
    return true;
}
