/* openai_request: bodies in, parameters or error JSON out. No engine, no tokenizer, no socket.
 * SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *names[] = {"pebble", "second"};
static struct sl_server_config server;

static void env_init(struct oai_env *env)
{
    server = (struct sl_server_config){.response_role = "assistant"};
    *env = (struct oai_env){.cfg = &server, .max_new_tokens = SL_NONE};
    env->info = (struct sl_engine_info){
        .served_names = names, .n_served_names = 2, .max_model_len = 100, .vocab_size = 8192};
    sl_sampling_params_init(&env->defaults);
}

static bool parse(struct oai_request *r, enum oai_api api, const char *body, struct oai_error *e)
{
    struct oai_env env;
    env_init(&env);
    *e = (struct oai_error){0};
    return oai_parse(r, api, &env, body, strlen(body), e);
}

static void completion_fields_land(void **state)
{
    (void)state;
    struct oai_request r;
    struct oai_error e;
    assert_true(parse(
        &r, OAI_COMPLETIONS,
        "{\"prompt\":\"hi\",\"model\":\"second\",\"max_tokens\":7,\"temperature\":0.25,\"top_p\":"
        "\"0.5\",\"n\":2.0,\"seed\":-9007199254740993,\"stop\":[\"a\",\"b\"],\"stream\":1,"
        "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true},\"logprobs\":"
        "3,"
        "\"echo\":\"yes\",\"logit_bias\":{\"5\":1000,\"7\":-0.5},\"stop_token_ids\":[4,2],"
        "\"allowed_token_ids\":[],\"bad_words\":[\"x y\"],\"priority\":-3,\"cache_salt\":\"s\","
        "\"truncate_prompt_tokens\":-1,\"truncation_side\":\"right\",\"min_tokens\":1,"
        "\"request_id\":\"abc\",\"return_token_ids\":true,\"top_k\":1099511627776,"
        "\"repetition_detection\":{\"max_pattern_size\":4,\"min_pattern_size\":2,\"min_count\":3},"
        "\"stream_interval\":4,\"unknown\":{\"is\":\"ignored\"}}",
        &e));
    assert_string_equal(r.model, "second");
    assert_int_equal(r.max_tokens, 7);
    assert_true(r.params.temperature == 0.25f && r.params.top_p == 0.5f);
    assert_int_equal(r.params.n, 2);
    assert_true(r.params.has_seed && r.params.seed == -9007199254740993);
    assert_int_equal(r.params.n_stop, 2);
    assert_string_equal(r.params.stop[1], "b");
    assert_true(r.stream && r.echo && r.include_usage && r.continuous_usage);
    assert_true(r.want_logprobs && r.params.logprobs == 3 && r.params.prompt_logprobs == 3);
    assert_int_equal(r.params.n_logit_bias, 2);
    assert_true(r.params.logit_bias[0].token == 5 && r.params.logit_bias[0].bias == 100.0f);
    assert_int_equal(r.params.stop_token_ids[0], 4);
    assert_int_equal(r.params.n_allowed_token_ids, 0);
    assert_string_equal(r.params.bad_words[0], "x y");
    assert_int_equal(r.priority, -3);
    assert_string_equal(r.cache_salt, "s");
    assert_int_equal(r.params.truncate_prompt_tokens, -1);
    assert_true(r.truncate_right && r.return_token_ids && !r.only_echo && r.add_special_tokens);
    assert_string_equal(r.request_id, "abc");
    assert_int_equal(r.params.top_k, INT32_MAX);
    assert_int_equal(r.params.repetition_max_pattern, 4);
    assert_int_equal(r.params.repetition_min_count, 3);
    assert_int_equal(r.params.stream_interval, 4);
    oai_fini(&r);
}

static void defaults_stay(void **state)
{
    (void)state;
    struct oai_request r;
    struct oai_error e;
    assert_true(parse(&r, OAI_COMPLETIONS,
                      "{\"prompt\":[1],\"max_tokens\":null,\"n\":null,\"seed\":-1,\"stop\":null,"
                      "\"logprobs\":null,\"temperature\":null}",
                      &e));
    assert_int_equal(r.max_tokens, 16);
    assert_int_equal(r.params.n, 1);
    assert_false(r.params.has_seed);
    assert_true(r.params.temperature == 1.0f);
    assert_int_equal(r.params.logprobs, SL_NONE);
    assert_int_equal(r.params.prompt_logprobs, SL_NONE);
    assert_int_equal(r.params.n_allowed_token_ids, -1);
    assert_false(r.stream);
    oai_fini(&r);
    assert_true(parse(&r, OAI_CHAT, "{\"messages\":[],\"logprobs\":true,\"top_logprobs\":2}", &e));
    assert_int_equal(r.max_tokens, SL_NONE);
    assert_true(r.add_generation_prompt && !r.add_special_tokens);
    assert_int_equal(r.params.logprobs, 2);
    oai_fini(&r);
    assert_true(
        parse(&r, OAI_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":true,\"max_tokens\":0}", &e));
    assert_true(r.only_echo);
    oai_fini(&r);
}

struct refusal {
    enum oai_api api;
    const char *body;
    int status;
    const char *type, *param, *message; /* message: a part of it */
};

#define C OAI_COMPLETIONS
#define M OAI_CHAT
#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define TOOL "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
#define BAD "BadRequestError"

static const struct refusal refusals[] = {
    {C, "", 400, "Bad Request", "body.0", "JSON decode error"},
    {C, "{\"prompt\": ", 400, "Bad Request", "body.11", "JSON decode error"},
    {C, "[1]", 400, "Bad Request", "body",
     "1 validation error:\n  {'type': 'model_attributes_type'"},
    {C, "{\"prompt\":\"\xff\"}", 400, "Bad Request", NULL, "There was an error parsing the body"},
    {C, "{}", 400, BAD, "prompt", "Either prompt or prompt_embeds must be provided and non-empty."},
    {C, "{\"prompt\":\"\"}", 400, BAD, "prompt", "Either prompt or prompt_embeds must be"},
    {M, "{}", 400, "Bad Request", "body.messages", "'msg': 'Field required'"},
    {C, "{\"prompt\":\"a\",\"n\":\"many\",\"top_p\":[]}", 400, "Bad Request", "body.n",
     "2 validation errors:"},
    {C, "{\"prompt\":\"a\",\"max_tokens\":1.5}", 400, "Bad Request", "body.max_tokens",
     "fractional part"},
    {C, "{\"prompt\":\"a\",\"seed\":99999999999999999999}", 400, "Bad Request", NULL, ""},
    {C, "{\"prompt\":\"a\",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", 400, "Bad Request",
     "body.stop", "at most 4 items"},
    {C, "{\"prompt\":\"a\",\"stop\":[1]}", 400, "Bad Request", "body.stop", "valid string"},
    {C, "{\"prompt\":\"a\",\"stop_token_ids\":[1,\"x\"]}", 400, "Bad Request",
     "body.stop_token_ids.1", "valid integer"},
    {C, "{\"prompt\":\"a\",\"truncate_prompt_tokens\":-2}", 400, "Bad Request",
     "body.truncate_prompt_tokens", "greater than or equal to -1"},
    {C, "{\"prompt\":\"a\",\"stream_interval\":0}", 400, "Bad Request", "body.stream_interval",
     "greater than or equal to 1"},
    {C, "{\"prompt\":\"a\",\"truncation_side\":\"up\"}", 400, "Bad Request", "body.truncation_side",
     "left or right"},
    {C, "{\"prompt\":\"a\",\"logprobs\":\"5\"}", 400, BAD, "logprobs",
     "`logprobs` must be an integer."},
    {C, "{\"prompt\":\"a\",\"logprobs\":-2}", 400, BAD, "logprobs",
     "`logprobs` must be a positive value."},
    {C, "{\"prompt\":\"a\",\"prompt_logprobs\":-5}", 400, BAD, "prompt_logprobs",
     "`prompt_logprobs` must be a positive value or -1."},
    {C, "{\"prompt\":\"a\",\"prompt_logprobs\":1,\"stream\":true}", 400, BAD, "prompt_logprobs",
     "`prompt_logprobs` are not available when `stream=True`."},
    {M, "{" MSG ",\"top_logprobs\":2}", 400, BAD, "top_logprobs",
     "when using `top_logprobs`, `logprobs` must be set to true."},
    {M, "{" MSG ",\"top_logprobs\":-2,\"logprobs\":true}", 400, BAD, "top_logprobs",
     "`top_logprobs` must be a positive value or -1."},
    {M, "{" MSG ",\"top_logprobs\":{}}", 400, BAD, "top_logprobs",
     "`top_logprobs` must be an integer."},
    {C, "{\"prompt\":\"a\",\"stream_options\":{\"include_usage\":true}}", 400, BAD,
     "stream_options", "Stream options can only be defined when `stream=True`."},
    {C, "{\"prompt\":\"a\",\"logit_bias\":{\"abc\":1}}", 400, BAD, "logit_bias",
     "logit_bias contains key(s) that cannot be converted to integer token IDs: ['abc']"},
    {C, "{\"prompt\":\"a\",\"model\":\"gpt-9\"}", 404, "NotFoundError", "model",
     "The model `gpt-9` does not exist."},
    {C, "{\"prompt\":\"a\",\"suffix\":\"b\"}", 400, BAD, "suffix",
     "suffix is not currently supported"},
    {C, "{\"prompt\":\"a\",\"use_beam_search\":true,\"stream\":true}", 400, BAD, NULL,
     "Streaming is not currently supported with beam search"},
    {C, "{\"prompt\":\"a\",\"use_beam_search\":true,\"early_stopping\":\"often\"}", 400, BAD,
     "early_stopping", "early_stopping must be True, False, or 'never'."},
    {C, "{\"prompt\":\"a\",\"n\":3,\"best_of\":2}", 400, BAD, "best_of",
     "best_of must be greater than or equal to n, got n=3 and best_of=2."},
    {C, "{\"prompt\":\"a\",\"best_of\":0}", 400, BAD, "best_of",
     "best_of must be greater than or equal to n, got n=1 and best_of=0."},
    {C, "{\"prompt\":\"a\",\"best_of\":20000}", 400, BAD, "best_of",
     "best_of must be at most 16384, got 20000."},
    {M, "{" MSG ",\"best_of\":2,\"stream\":true}", 400, BAD, "best_of",
     "Streaming is not supported when `best_of` is greater than `n`"},
    {C, "{\"prompt\":\"a\",\"structured_outputs\":{}}", 400, BAD, "structured_outputs",
     "You must use one kind of structured outputs constraint but none are specified"},
    {C, "{\"prompt\":\"a\",\"structured_outputs\":{\"regex\":\"a\",\"grammar\":\"b\"}}", 400, BAD,
     "structured_outputs", "but multiple are specified: regex, grammar"},
    {C, "{\"prompt\":\"a\",\"structured_outputs\":{\"choice\":\"a\"}}", 400, BAD,
     "structured_outputs", "structured_outputs.choice must be a list of strings"},
    {M,
     "{" MSG
     ",\"response_format\":{\"type\":\"json_object\"},\"structured_outputs\":{\"regex\":\"a\"}}",
     400, BAD, "structured_outputs", "but multiple are specified: regex, json_object"},
    {M, "{" MSG ",\"response_format\":{\"type\":\"xml\"}}", 400, "Bad Request",
     "body.response_format",
     "Input tag should be one of text, json_object, json_schema, structural_tag"},
    {M, "{" MSG ",\"response_format\":{\"type\":\"structural_tag\"}}", 400, BAD, "response_format",
     "Invalid response_format structural_tag specification."},
    {M, "{" MSG ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\"}}}",
     400, BAD, "response_format", "response_format.json_schema.schema must be a JSON schema."},
    {C, "{\"prompt\":\"a\",\"structured_outputs\":{\"regex\":\"a\",\"json\":{}}}", 400, BAD,
     "structured_outputs", "You can only use one kind of constraints for structured outputs"},
    {M, "{" MSG ",\"response_format\":{\"type\":\"json_schema\"}}", 400, BAD, "response_format",
     "When response_format type is 'json_schema', the 'json_schema' field must be provided."},
    {M, "{" MSG ",\"tools\":[]}", 400, BAD, "tools", "`tools` must not be an empty array."},
    {M, "{" MSG "," TOOL "}", 400, BAD, NULL,
     "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"},
    {M, "{" MSG ",\"tool_choice\":\"auto\"}", 400, BAD, "tool_choice",
     "When using `tool_choice`, `tools` must be set."},
    {M, "{" MSG "," TOOL ",\"tool_choice\":\"maybe\"}", 400, BAD, "tool_choice",
     "Invalid value for `tool_choice`: maybe! Only named tools, \"none\", \"auto\" or "
     "\"required\" are supported."},
    {M, "{" MSG "," TOOL ",\"tool_choice\":\"required\"}", 400, BAD, NULL,
     "requires --tool-call-parser to be set"},
    {M, "{" MSG "," TOOL ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}}}",
     400, BAD, "tool_choice", "does not match any of the specified `tools`"},
    {M, "{" MSG ",\"continue_final_message\":true,\"add_generation_prompt\":true}", 400, BAD, NULL,
     "Cannot set both `continue_final_message` and `add_generation_prompt` to True."},
    {M, "{" MSG ",\"chat_template\":\"x\"}", 400, BAD, NULL,
     "Chat template is passed with request, but --trust-request-chat-template is not set."},
    {M, "{" MSG ",\"tools\":[5]}", 400, "Bad Request", "body.tools.0.function",
     "Input should be a valid dictionary"},
    {M, "{" MSG ",\"tools\":[{\"type\":\"retrieval\",\"function\":{\"name\":\"f\"}}]}", 400,
     "Bad Request", "body.tools.0.type", "Input should be 'function'"},
    {M, "{" MSG ",\"tools\":[{\"function\":{\"name\":\"\"}}]}", 400, "Bad Request",
     "body.tools.0.function.name", "1 to 256 bytes"},
    {M, "{" MSG ",\"tools\":[{\"function\":{\"description\":\"d\"}}]}", 400, "Bad Request",
     "body.tools.0.function.name",
     "('body', 'tools', 0, 'function', 'name'), 'msg': 'Field required'"},
    {M, "{" MSG ",\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":[]}}]}", 400,
     "Bad Request", "body.tools.0.function.parameters", "valid dictionary"},
    {M, "{" MSG ",\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":3}}}]}",
     400, "Bad Request", "body.tools.0.function.parameters", "should be an object"},
    {M, "{" MSG ",\"tools\":[{\"function\":{\"name\":\"f\",\"strict\":\"very\"}}]}", 400,
     "Bad Request", "body.tools.0.function.strict", "valid boolean"},
    {M, "{" MSG ",\"parallel_tool_calls\":\"often\"}", 400, "Bad Request",
     "body.parallel_tool_calls", "valid boolean"},
    {M, "{" MSG ",\"reasoning_effort\":\"heroic\"}", 400, "Bad Request", "body.reasoning_effort",
     "Input should be"},
    {C, "{\"prompt\":\"a\",\"cache_salt\":\"\"}", 400, BAD, "cache_salt", "non-empty string"},
    {C, "{\"prompt\":\"a\",\"request_id\":\"a\\u0000b\"}", 400, "Bad Request", "body.request_id",
     "without NUL"},
    {OAI_DETOKENIZE, "{}", 400, "Bad Request", "body.tokens", "Field required"},
    {OAI_TOKENIZE, "{}", 400, "Bad Request", "body.prompt", "Field required"},
};

static void refusals_have_vllms_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *f = &refusals[i];
        struct oai_request r;
        struct oai_error e;
        bool ok = parse(&r, f->api, f->body, &e);
        oai_fini(&r);
        if (ok)
            fail_msg("accepted: %s", f->body);
        struct strbuf b;
        strbuf_init(&b, 0);
        oai_error_json(&b, &e);
        json_t *j = json_loads(b.data, 0, NULL), *err = json_object_get(j, "error");
        const char *msg = json_string_value(json_object_get(err, "message"));
        const char *param = json_string_value(json_object_get(err, "param"));
        const char *type = json_string_value(json_object_get(err, "type"));
        if (!msg || !strstr(msg, f->message) || !type || strcmp(type, f->type) ||
            json_integer_value(json_object_get(err, "code")) != f->status ||
            (f->param && (!param || strcmp(param, f->param))))
            fail_msg("%s\n-> %s", f->body, b.data);
        json_decref(j);
        strbuf_fini(&b);
    }
}

static void too_many_values(void **state)
{
    (void)state;
    enum { N = 3 << 20 };
    char *body = malloc(N + 64);
    int at = snprintf(body, 64, "{\"prompt\":\"a\",\"x\":[0");
    for (int i = 0; i < N / 2; i++) {
        body[at++] = ',';
        body[at++] = '1';
    }
    memcpy(body + at, "]}", 3);
    struct oai_request r;
    struct oai_error e;
    assert_false(parse(&r, OAI_COMPLETIONS, body, &e));
    assert_non_null(strstr(e.err.msg, "JSON values"));
    oai_fini(&r);
    /* commas inside a string are text */
    memset(body + 11, ',', N);
    memcpy(body, "{\"prompt\":\"", 11);
    memcpy(body + N, "\"}", 3);
    assert_true(parse(&r, OAI_COMPLETIONS, body, &e));
    oai_fini(&r);
    free(body);
}

static void deep_json_is_refused(void **state)
{
    (void)state;
    enum { DEEP = 100000 };
    char *body = malloc(DEEP + 16);
    memset(body, '[', DEEP);
    memcpy(body, "{\"a\":", 5);
    body[DEEP] = 0;
    struct oai_request r;
    struct oai_error e;
    assert_false(parse(&r, OAI_CHAT, body, &e));
    assert_int_equal(e.status, 400);
    oai_fini(&r);
    free(body);
}

static json_t *chat_vars(struct oai_request *r, const char *body, struct oai_error *e)
{
    struct oai_env env;
    env_init(&env);
    env.default_kwargs = json_pack("{s:i,s:i}", "kept", 1, "replaced", 1);
    assert_true(parse(r, OAI_CHAT, body, e));
    json_t *vars = oai_chat_vars(r, &env, e);
    json_decref(env.default_kwargs);
    return vars;
}

static void messages_are_made_plain(void **state)
{
    (void)state;
    struct oai_request r;
    struct oai_error e;
    json_t *vars = chat_vars(
        &r,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}],\"name\":\"joe\",\"extra\":1},"
        "{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"hm\",\"tool_calls\":"
        "[{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
        "\"{\\\"x\\\": 1}\"}}]},{\"role\":\"tool\",\"content\":\"7\",\"tool_call_id\":\"1\"}],"
        "\"chat_template_kwargs\":{\"replaced\":2,\"messages\":[]},\"reasoning_effort\":"
        "\"low\"," TOOL ",\"tool_choice\":\"none\"}",
        &e);
    assert_non_null(vars);
    json_t *want = json_pack(
        "{s:i,s:i,s:[{s:s,s:s,s:s},{s:s,s:s,s:s,s:s,s:[{s:s,s:s,s:{s:s,s:{s:i}}}]},{s:s,s:s,s:s}],"
        "s:[{s:s,s:{s:s}}],s:n,s:b,s:b,s:s,s:b}",
        "kept", 1, "replaced", 2, "messages", "role", "user", "content", "a\nb", "name", "joe",
        "role", "assistant", "content", "", "reasoning", "hm", "reasoning_content", "hm",
        "tool_calls", "id", "1", "type", "function", "function", "name", "f", "arguments", "x", 1,
        "role", "tool", "content", "7", "tool_call_id", "1", "tools", "type", "function",
        "function", "name", "f", "documents", "add_generation_prompt", 1, "continue_final_message",
        0, "reasoning_effort", "low", "enable_thinking", 1);
    assert_non_null(want);
    assert_true(json_equal(vars, want));
    assert_string_equal(r.role, "assistant");
    json_decref(want);
    json_decref(vars);
    oai_fini(&r);
}

static void bad_messages_are_named(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"[1]", "body.messages.0"},
        {"[{\"content\":\"a\"}]", "body.messages.0.role"},
        {"[{\"role\":\"user\",\"content\":5}]", "body.messages.0.content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "body.messages.0.content"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
         "\"{\"}}]}]",
         "body.messages.0.tool_calls"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[300];
        snprintf(body, sizeof body, "{\"messages\":%s}", cases[i][0]);
        struct oai_request r;
        struct oai_error e;
        assert_null(chat_vars(&r, body, &e));
        assert_int_equal(e.status, 400);
        assert_string_equal(e.err.param, cases[i][1]);
        oai_fini(&r);
    }
}

static void long_messages_stay_utf8(void **state)
{
    (void)state;
    char body[3000] = "{\"prompt\":\"a\",\"model\":\"x";
    while (strlen(body) < 2500)
        strcat(body, "\xf0\x9f\x90\x8a");
    strcat(body, "\"}");
    struct oai_request r;
    struct oai_error e;
    assert_false(parse(&r, OAI_COMPLETIONS, body, &e));
    oai_fini(&r);
    struct strbuf b;
    strbuf_init(&b, 0);
    oai_error_json(&b, &e);
    json_t *j = json_loads(b.data, 0, NULL);
    assert_non_null(j);
    json_decref(j);
    strbuf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completion_fields_land),    cmocka_unit_test(defaults_stay),
        cmocka_unit_test(refusals_have_vllms_words), cmocka_unit_test(too_many_values),
        cmocka_unit_test(deep_json_is_refused),      cmocka_unit_test(messages_are_made_plain),
        cmocka_unit_test(bad_messages_are_named),    cmocka_unit_test(long_messages_stay_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
