/* openai_answer: outputs in, events and bodies out; no engine behind them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/internal.h"
#include "http/answer.h"
#include "http/json_out.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *names[] = {"peb\"ble"};
static struct sl_server_config server;
static struct oai_env env;
static struct oai_prompt prompt;
static int32_t prompt_tokens[] = {1, 7};
static struct sl_request request, *requests[] = {&request};

/* No tokenizer: pieces are empty, so tokens are shown by their ids. */
static void begin(struct answer *a, struct oai_request *r, enum oai_api api)
{
    struct pieces *pieces;
    server = (struct sl_server_config){.enable_prompt_tokens_details = true};
    env = (struct oai_env){.cfg = &server};
    env.info.served_names = names;
    env.info.n_served_names = 1;
    prompt = (struct oai_prompt){.text = "in", .bytes = 2, .tokens = prompt_tokens, .n_tokens = 2};
    request = (struct sl_request){.usage = {.cached_tokens = 1}};
    r->api = api;
    r->params.n = r->params.n ? r->params.n : 1;
    r->prompts = &prompt;
    r->n_prompts = 1;
    r->role = "assistant";
    r->return_tokens_as_token_ids = true;
    assert_int_equal(pieces_create(&pieces, NULL, 100, NULL), SL_OK);
    assert_true(answer_init(a, &env, r, pieces, "id", "fp"));
}

static void end(struct answer *a)
{
    struct pieces *pieces = a->style.pieces;
    answer_fini(a);
    pieces_destroy(&pieces);
}

static void take(struct answer *a, int index, const char *text, int32_t token, enum sl_finish f)
{
    static const struct sl_logprob entries[] = {{5, 2, -1.5f}, {6, 1, -0.25f}, {5, 2, -1.5f}};
    static const struct sl_token_logprobs lp = {entries, 3};
    struct sl_output out = {.index = index,
                            .text = text,
                            .text_bytes = strlen(text),
                            .tokens = &token,
                            .n_tokens = 1,
                            .logprobs = &lp,
                            .finish = f};
    if (f == SL_STOP) {
        out.stop_kind = SL_STOP_STRING;
        out.stop_string = "END";
    }
    assert_true(answer_take(a, 0, &request, &out));
}

/* Each event of a stream, [DONE] as null. */
static json_t *events(const struct strbuf *b)
{
    json_t *list = json_array();
    for (const char *p = b->data; p && *p;) {
        const char *stop = strstr(p, "\n\n");
        assert_non_null(stop);
        assert_memory_equal(p, "data: ", 6);
        json_t *e = json_loadb(p + 6, (size_t)(stop - p - 6), 0, NULL);
        if (!e)
            assert_memory_equal(p, "data: [DONE]\n\n", 14);
        json_array_append_new(list, e ? e : json_null());
        p = stop + 2;
    }
    return list;
}

static const char *text_at(json_t *e, const char *path) /* "choices.0.delta.content" */
{
    char copy[100];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *part = copy, *next; part; part = next) {
        next = strchr(part, '.');
        if (next)
            *next++ = 0;
        e = json_is_array(e) ? json_array_get(e, (size_t)strtol(part, NULL, 10))
                             : json_object_get(e, part);
    }
    if (json_is_integer(e)) {
        static char number[4][24];
        static int at;
        snprintf(number[++at & 3], 24, "%lld", (long long)json_integer_value(e));
        return number[at & 3];
    }
    return json_is_null(e) ? "null" : e ? json_string_value(e) : "absent";
}

static void chat_stream(void **state)
{
    (void)state;
    struct answer a;
    struct oai_request r = {.stream = true, .include_usage = true, .return_token_ids = true};
    struct strbuf b;
    strbuf_init(&b, 0);
    begin(&a, &r, OAI_CHAT);
    take(&a, 0, "h\"\n", 5, SL_RUNNING);
    answer_event(&a, 0, requests, &b);
    answer_event(&a, 0, requests, &b); /* nothing new: nothing is written */
    take(&a, 0, "", 6, SL_RUNNING);    /* two outputs in one event */
    take(&a, 0, "x", 7, SL_STOP);
    answer_event(&a, 0, requests, &b);
    answer_end(&a, requests, &b);
    json_t *e = events(&b);
    assert_int_equal(json_array_size(e), 5);
    assert_string_equal(text_at(e, "0.id"), "chatcmpl-id");
    assert_string_equal(text_at(e, "0.object"), "chat.completion.chunk");
    assert_string_equal(text_at(e, "0.model"), "peb\"ble");
    assert_string_equal(text_at(e, "0.choices.0.delta.role"), "assistant");
    assert_string_equal(text_at(e, "0.choices.0.delta.content"), "");
    assert_string_equal(text_at(e, "0.prompt_token_ids.1"), "7");
    assert_string_equal(text_at(e, "1.choices.0.delta.content"), "h\"\n");
    assert_string_equal(text_at(e, "1.choices.0.finish_reason"), "null");
    assert_string_equal(text_at(e, "1.choices.0.stop_reason"), "absent");
    assert_string_equal(text_at(e, "1.choices.0.token_ids.0"), "5");
    assert_string_equal(text_at(e, "2.choices.0.delta.content"), "x");
    assert_string_equal(text_at(e, "2.choices.0.token_ids.1"), "7");
    assert_string_equal(text_at(e, "2.choices.0.finish_reason"), "stop");
    assert_string_equal(text_at(e, "2.choices.0.stop_reason"), "END");
    assert_string_equal(text_at(e, "2.system_fingerprint"), "absent");
    assert_int_equal(json_array_size(json_object_get(json_array_get(e, 3), "choices")), 0);
    assert_string_equal(text_at(e, "3.usage.completion_tokens"), "3");
    assert_string_equal(text_at(e, "3.usage.total_tokens"), "5");
    assert_string_equal(text_at(e, "3.usage.prompt_tokens_details.cached_tokens"), "1");
    assert_string_equal(text_at(e, "3.system_fingerprint"), "fp");
    assert_true(json_is_null(json_array_get(e, 4)));
    json_decref(e);
    strbuf_fini(&b);
    end(&a);
}

static void completion_stream(void **state)
{
    (void)state;
    struct answer a;
    struct oai_request r = {.stream = true,
                            .continuous_usage = true,
                            .echo = true,
                            .want_logprobs = true,
                            .params = {.n = 2}};
    struct strbuf b;
    strbuf_init(&b, 0);
    begin(&a, &r, OAI_COMPLETIONS);
    take(&a, 1, "b", 6, SL_RUNNING);
    answer_event(&a, 1, requests, &b);
    take(&a, 1, "c", 6, SL_LENGTH);
    answer_event(&a, 1, requests, &b);
    assert_int_equal(a.n_finished, 1);
    json_t *e = events(&b);
    assert_string_equal(text_at(e, "0.object"), "text_completion");
    assert_string_equal(text_at(e, "0.choices.0.index"), "1");
    assert_string_equal(text_at(e, "0.choices.0.text"), "inb"); /* the prompt, once */
    assert_string_equal(text_at(e, "0.choices.0.logprobs.tokens.0"), "token_id:1");
    assert_string_equal(text_at(e, "0.choices.0.logprobs.token_logprobs.0"), "null");
    assert_string_equal(text_at(e, "0.choices.0.logprobs.text_offset.2"), "20");
    assert_string_equal(text_at(e, "0.usage.completion_tokens"), "1");
    assert_string_equal(text_at(e, "1.choices.0.text"), "c");
    assert_string_equal(text_at(e, "1.choices.0.finish_reason"), "length");
    assert_string_equal(text_at(e, "1.choices.0.stop_reason"), "null");
    assert_string_equal(text_at(e, "1.choices.0.logprobs.text_offset.0"), "30");
    assert_string_equal(text_at(e, "1.system_fingerprint"), "fp");
    json_t *top = json_object_get(
        json_object_get(json_array_get(json_object_get(json_array_get(e, 1), "choices"), 0),
                        "logprobs"),
        "top_logprobs");
    assert_int_equal(json_object_size(json_array_get(top, 0)), 2); /* the chosen one once */
    json_decref(e);
    strbuf_fini(&b);
    end(&a);
}

static void whole_bodies(void **state)
{
    (void)state;
    struct answer a;
    struct oai_request r = {.want_logprobs = true, .echo_text = "so: "};
    struct strbuf b;
    strbuf_init(&b, 0);
    begin(&a, &r, OAI_CHAT);
    take(&a, 0, "a", 5, SL_RUNNING);
    take(&a, 0, "b", 5, SL_REPETITION);
    answer_body(&a, requests, &b);
    json_t *j = json_loads(b.data, 0, NULL);
    assert_non_null(j);
    assert_string_equal(text_at(j, "choices.0.message.content"), "so: ab");
    assert_string_equal(text_at(j, "choices.0.message.tool_calls"), "absent");
    assert_string_equal(text_at(j, "choices.0.message.reasoning"), "null");
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "repetition");
    assert_string_equal(text_at(j, "choices.0.stop_reason"), "repetition_detected");
    assert_string_equal(text_at(j, "choices.0.logprobs.content.1.token"), "token_id:5");
    assert_string_equal(text_at(j, "choices.0.logprobs.content.1.top_logprobs.0.token"),
                        "token_id:6");
    assert_string_equal(text_at(j, "choices.0.logprobs.content.0.bytes.0"), "116");
    assert_string_equal(text_at(j, "usage.prompt_tokens"), "2");
    assert_string_equal(text_at(j, "prompt_logprobs"), "null");
    assert_string_equal(text_at(j, "service_tier"), "null");
    assert_string_equal(text_at(j, "system_fingerprint"), "fp");
    json_decref(j);
    end(&a);

    strbuf_clear(&b);
    struct oai_request only = {.echo = true, .only_echo = true, .return_token_ids = true};
    begin(&a, &only, OAI_COMPLETIONS);
    take(&a, 0, "dropped", 5, SL_LENGTH);
    answer_body(&a, requests, &b);
    j = json_loads(b.data, 0, NULL);
    assert_string_equal(text_at(j, "choices.0.text"), "in");
    assert_string_equal(text_at(j, "choices.0.prompt_token_ids.0"), "1");
    assert_string_equal(text_at(j, "usage.completion_tokens"), "0");
    json_decref(j);
    end(&a);
    strbuf_fini(&b);
}

static void errors_end_the_call(void **state)
{
    (void)state;
    struct answer a;
    struct oai_request r = {.stream = true};
    struct sl_err why = {.code = SL_EDEVICE, .msg = "the device is gone"};
    struct sl_output out = {.text = "", .finish = SL_ERROR, .error = &why};
    struct strbuf b;
    strbuf_init(&b, 0);
    begin(&a, &r, OAI_CHAT);
    assert_false(answer_take(&a, 0, &request, &out));
    assert_int_equal(a.error.status, 503);
    answer_error_event(&a.error, &b);
    json_t *e = events(&b);
    assert_string_equal(text_at(e, "0.error.code"), "503");
    assert_true(json_is_null(json_array_get(e, 1)));
    json_decref(e);
    end(&a);
    begin(&a, &r, OAI_CHAT);
    why.code = SL_EINVAL;
    assert_false(answer_take(&a, 0, &request, &out));
    assert_string_equal(a.error.err.msg, "Internal server error");
    end(&a);
    strbuf_fini(&b);
}

static void json_writing(void **state)
{
    (void)state;
    struct strbuf b;
    strbuf_init(&b, 0);
    const float values[] = {-0.1f, -1e-30f, 0, -3, -1e30f, -INFINITY, -12345.678f, -0.333333343f};
    strbuf_addc(&b, '[');
    for (size_t i = 0; i < 8; i++) {
        json_put_logprob(&b, values[i]);
        strbuf_addc(&b, ',');
    }
    json_put_logprob(&b, NAN);
    strbuf_addc(&b, ',');
    json_put_int(&b, INT64_MIN);
    strbuf_addc(&b, ',');
    json_put_str(&b, "\x01\"\\\x7f/\xc3\xa9\n", 8);
    strbuf_addc(&b, ',');
    json_put_lossy(&b, "a\xff\xc3(\xe2\x82", 6);
    strbuf_addc(&b, ']');
    json_t *j = json_loads(b.data, 0, NULL);
    assert_non_null(j);
    for (size_t i = 0; i < 8; i++) {
        float want = values[i] < -9999.0f ? -9999.0f : values[i];
        assert_true(json_is_real(json_array_get(j, i))); /* a float, also when it is whole */
        assert_true((float)json_real_value(json_array_get(j, i)) == want);
    }
    assert_true(json_is_null(json_array_get(j, 8)));
    assert_true(json_integer_value(json_array_get(j, 9)) == INT64_MIN);
    assert_string_equal(json_string_value(json_array_get(j, 10)), "\x01\"\\\x7f/\xc3\xa9\n");
    assert_string_equal(json_string_value(json_array_get(j, 11)),
                        "a\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd\xef\xbf\xbd");
    json_decref(j);
    strbuf_fini(&b);
}

/* The tokens of `text`, one a piece, with where their text ends; the last ends the answer. */
static void take_pieces(struct answer *a, const char *const *pieces, int n, enum sl_finish finish)
{
    size_t end = 0;
    for (int i = 0; i <= n; i++) {
        int32_t token = i;
        const char *text = i < n ? pieces[i] : "";
        end += strlen(text);
        struct sl_output out = {.text = text,
                                .text_bytes = strlen(text),
                                .tokens = &token,
                                .n_tokens = 1,
                                .token_text_end = &end,
                                .finish = i < n ? SL_RUNNING : finish};
        assert_true(answer_take(a, 0, &request, &out));
    }
}

static const char *const thinking[] = {
    "<thi",           "nk>",           "a",           "b",
    "</think>",       "\n\nHi",        " <tool",      "_call>{\"name\": \"f\", \"arg",
    "uments\": {\"x", "\": \"\\n\"}}", "</tool_call>"};
enum { N_THINKING = sizeof thinking / sizeof thinking[0] };

static void reads_tools(struct oai_request *r, enum oai_tool_mode mode)
{
    r->tool_mode = mode;
    r->parse = (struct outparse_spec){.tool = OUT_HERMES, .reasoning = OUT_QWEN3};
    r->include_reasoning = r->parallel_tool_calls = true;
}

static void tool_stream(void **state)
{
    (void)state;
    struct answer a;
    struct oai_request r = {.stream = true, .include_usage = true};
    struct strbuf b;
    struct strbuf arguments;
    strbuf_init(&b, 0);
    strbuf_init(&arguments, 0);
    reads_tools(&r, OAI_TOOLS_AUTO);
    begin(&a, &r, OAI_CHAT);
    env.reasoning_parser = OUT_QWEN3;
    env.tool_parser = OUT_MISTRAL; /* for its ids */
    answer_fini(&a);
    assert_true(answer_init(&a, &env, &r, a.style.pieces, "id", NULL));
    for (int i = 0; i < N_THINKING; i++) {
        size_t end = 0;
        for (int k = 0; k <= i; k++)
            end += strlen(thinking[k]);
        int32_t token = i;
        struct sl_output out = {.text = thinking[i],
                                .text_bytes = strlen(thinking[i]),
                                .tokens = &token,
                                .n_tokens = 1,
                                .token_text_end = &end,
                                .finish = i + 1 < N_THINKING ? SL_RUNNING : SL_LENGTH};
        assert_true(answer_take(&a, 0, &request, &out));
        answer_event(&a, 0, requests, &b);
    }
    answer_end(&a, requests, &b);
    json_t *list = events(&b);
    assert_string_equal(text_at(list, "0.choices.0.delta.role"), "assistant");
    assert_string_equal(text_at(list, "1.choices.0.delta.reasoning"), "a");
    assert_string_equal(text_at(list, "1.choices.0.delta.content"), "absent");
    assert_string_equal(text_at(list, "2.choices.0.delta.reasoning"), "b");
    assert_string_equal(text_at(list, "3.choices.0.delta.content"), "\n\nHi");
    assert_string_equal(text_at(list, "4.choices.0.delta.content"), " ");
    assert_string_equal(text_at(list, "4.choices.0.delta.tool_calls.0.function.name"), "f");
    assert_int_equal(strlen(text_at(list, "4.choices.0.delta.tool_calls.0.id")), 9);
    assert_string_equal(text_at(list, "4.choices.0.delta.tool_calls.0.type"), "function");
    assert_string_equal(text_at(list, "5.choices.0.delta.tool_calls.0.id"), "absent");
    assert_string_equal(text_at(list, "5.choices.0.delta.tool_calls.0.index"), "0");
    for (size_t i = 4; i < 6; i++) {
        char path[80];
        snprintf(path, sizeof path, "%zu.choices.0.delta.tool_calls.0.function.arguments", i);
        strbuf_adds(&arguments, text_at(list, path));
    }
    assert_string_equal(arguments.data, "{\"x\": \"\\n\"}");
    assert_string_equal(text_at(list, "6.choices.0.finish_reason"), "tool_calls");
    assert_string_equal(text_at(list, "7.usage.completion_tokens_details.reasoning_tokens"), "2");
    assert_int_equal(json_array_size(list), 9);
    json_decref(list);
    strbuf_fini(&b);
    strbuf_fini(&arguments);
    end(&a);
}

static json_t *body_of(struct answer *a, struct oai_request *r, enum sl_finish finish, int n)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    begin(a, r, OAI_CHAT);
    env.reasoning_parser = OUT_QWEN3;
    answer_fini(a);
    assert_true(answer_init(a, &env, r, a->style.pieces, "id", NULL));
    take_pieces(a, thinking, n, finish);
    answer_body(a, requests, &b);
    json_t *j = json_loadb(b.data, b.len, 0, NULL);
    assert_non_null(j);
    strbuf_fini(&b);
    end(a);
    return j;
}

static void tool_body(void **state)
{
    (void)state;
    static const struct {
        enum oai_tool_mode mode;
        enum sl_finish finish;
        const char *want;
    } reasons[] = {{OAI_TOOLS_AUTO, SL_LENGTH, "tool_calls"},
                   {OAI_TOOLS_REQUIRED, SL_STOP, "tool_calls"},
                   {OAI_TOOLS_REQUIRED, SL_LENGTH, "length"},
                   {OAI_TOOLS_NAMED, SL_STOP, "stop"}};
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        struct answer a;
        struct oai_request r = {0};
        reads_tools(&r, reasons[i].mode);
        json_t *j = body_of(&a, &r, reasons[i].finish, N_THINKING);
        assert_string_equal(text_at(j, "choices.0.finish_reason"), reasons[i].want);
        assert_string_equal(text_at(j, "choices.0.message.content"), "\n\nHi ");
        assert_string_equal(text_at(j, "choices.0.message.reasoning"), "ab");
        assert_string_equal(text_at(j, "choices.0.message.tool_calls.0.function.name"), "f");
        assert_string_equal(text_at(j, "choices.0.message.tool_calls.0.function.arguments"),
                            "{\"x\": \"\\n\"}");
        assert_string_equal(text_at(j, "usage.completion_tokens_details.reasoning_tokens"), "2");
        json_decref(j);
    }
    struct answer a;
    struct oai_request r = {0};
    reads_tools(&r, OAI_TOOLS_AUTO);
    json_t *j = body_of(&a, &r, SL_LENGTH, 4); /* still thinking */
    assert_string_equal(text_at(j, "choices.0.message.content"), "null");
    assert_string_equal(text_at(j, "choices.0.message.tool_calls"), "absent");
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "length");
    json_decref(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tool_stream),  cmocka_unit_test(tool_body),
        cmocka_unit_test(chat_stream),  cmocka_unit_test(completion_stream),
        cmocka_unit_test(whole_bodies), cmocka_unit_test(errors_end_the_call),
        cmocka_unit_test(json_writing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
