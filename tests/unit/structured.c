/* Structured output in the engine, over sim: outputs follow their grammar whatever the depth, the
 * choices, preemption; it may begin after a reasoning; forced tokens; what is refused at
 * submission. SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/mem.h"
#include "sluice.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_MAX = 4, BYTES_MAX = 4096 };

static const char schema[] =
    "{\"type\":\"object\",\"properties\":{\"id\":{\"type\":\"integer\",\"minimum\":10,\"maximum\":"
    "99},"
    "\"kind\":{\"enum\":[\"dot\",\"box\"]},\"note\":{\"type\":\"string\",\"maxLength\":12}},"
    "\"required\":[\"id\",\"kind\"],\"additionalProperties\":false}";

struct answer {
    char text[BYTES_MAX];
    int32_t token[512];
    int n_tokens;
    enum sl_finish finish;
};

static struct sl_engine *start(int depth, int n_blocks, const char *speculative)
{
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = "models/pebble";
    cfg.device = SL_DEVICE_SIM;
    cfg.sim_step_ms = 0.05;
    cfg.sim_depth = depth;
    cfg.num_blocks_override = n_blocks;
    cfg.max_model_len = 320;
    cfg.speculative_config = speculative;
    if (sl_engine_create(&e, &cfg, &err))
        fail_msg("no engine: %s", err.msg);
    return e;
}

static struct sl_sampling_params params(enum sl_structured_kind kind, const char *text, int n)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 300;
    p.n = n;
    p.has_seed = true;
    p.seed = 5;
    p.structured.kind = kind;
    p.structured.text = text;
    return p;
}

static struct sl_request *submit(struct sl_engine *e, const struct sl_sampling_params *p)
{
    static const int32_t prompt[] = {300, 301, 302, 303, 304, 305, 306, 307};
    struct sl_input in = {.tokens = prompt, .n_tokens = 8};
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    if (sl_submit(e, &in, p, NULL, NULL, &r, &err))
        fail_msg("submit: %s", err.msg);
    return r;
}

static void read_all(struct sl_request *r, struct answer *a)
{
    const struct sl_output *o;
    while (sl_request_wait(r, 60000) == SL_OK)
        while ((o = sl_request_next(r))) {
            struct answer *x = &a[o->index];
            assert_true(strlen(x->text) + o->text_bytes < BYTES_MAX);
            memcpy(x->text + strlen(x->text), o->text, o->text_bytes + 1);
            for (int i = 0; i < o->n_tokens && x->n_tokens < 512; i++)
                x->token[x->n_tokens++] = o->tokens[i];
            x->finish = o->finish;
        }
    sl_request_release(&r);
}

static void run(struct sl_engine *e, const struct sl_sampling_params *p, struct answer *a)
{
    memset(a, 0, (size_t)p->n * sizeof *a);
    read_all(submit(e, p), a);
}

static void check_person(const struct answer *a)
{
    json_error_t je;
    json_t *v = json_loads(a->text, 0, &je);
    if (a->finish != SL_STOP || !v)
        fail_msg("finish %d: %s", a->finish, a->text);
    const char *kind = json_string_value(json_object_get(v, "kind"));
    json_int_t id = json_integer_value(json_object_get(v, "id"));
    assert_true(kind && (!strcmp(kind, "dot") || !strcmp(kind, "box")));
    assert_in_range(id, 10, 99);
    json_decref(v);
}

/* Alone, four at once, with steps in flight, and with so few blocks that they drive each other out:
 * the same tokens. */
static void outputs_follow_their_schema(void **state)
{
    static const struct {
        int depth, blocks;
    } cases[] = {{1, 4096}, {2, 4096}, {4, 4096}, {1, 24}, {4, 24}};
    static struct answer first[N_MAX], a[8][N_MAX];
    struct sl_sampling_params p = params(SL_STRUCTURED_JSON, schema, N_MAX);
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct sl_engine *e = start(cases[c].depth, cases[c].blocks, NULL);
        struct sl_request *r[8];
        memset(a, 0, sizeof a);
        for (int i = 0; i < 8; i++) {
            p.seed = 5 + i;
            r[i] = submit(e, &p);
        }
        for (int i = 0; i < 8; i++)
            read_all(r[i], a[i]);
        for (int i = 0; i < 8; i++)
            for (int k = 0; k < N_MAX; k++)
                check_person(&a[i][k]);
        if (c == 0)
            memcpy(first, a[3], sizeof first);
        for (int k = 0; k < N_MAX; k++)
            assert_string_equal(first[k].text, a[3][k].text);
        sl_engine_destroy(&e);
    }
}

/* Guesses are cut where the grammar forbids them, and go on where it leaves no choice: a text of
 * which every byte is known is guessed without a miss. */
static void guesses_change_nothing(void **state)
{
    static struct answer plain[1], guessed[1];
    struct sl_draft_stats st;
    struct sl_sampling_params p = params(SL_STRUCTURED_REGEX, "((ab|cd){3}-){6}([0-9]{2} ){8}", 1);
    (void)state;
    struct sl_engine *e = start(1, 4096, NULL);
    run(e, &p, plain);
    sl_engine_destroy(&e);
    e = start(2, 4096,
              "{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"prompt_lookup_min\": 1, "
              "\"prompt_lookup_max\": 3, \"adaptive\": false}");
    run(e, &p, guessed);
    assert_string_equal(plain->text, guessed->text);
    assert_int_equal(plain->finish, SL_STOP);
    assert_int_equal(plain->n_tokens, guessed->n_tokens);
    sl_engine_destroy(&e);
    p = params(SL_STRUCTURED_REGEX, "(#[%]#[%]#[%]#[%]){3}", 1);
    e = start(2, 4096,
              "{\"method\": \"suffix\", \"num_speculative_tokens\": 6, \"adaptive\": false}");
    run(e, &p, guessed);
    assert_string_equal(guessed->text, "#%#%#%#%#%#%#%#%#%#%#%#%");
    sl_engine_draft_stats(e, &st);
    print_message("%llu of %llu guesses kept\n", (unsigned long long)st.n_accepted,
                  (unsigned long long)st.n_draft_tokens);
    assert_true(st.n_draft_tokens > 0);
    assert_int_equal(st.n_accepted, st.n_draft_tokens);
    sl_engine_destroy(&e);
}

static void it_may_begin_after_a_reasoning(void **state)
{
    struct sl_engine *e = start(1, 4096, NULL);
    struct sl_sampling_params p = params(SL_STRUCTURED_NONE, NULL, 1);
    static struct answer free_text[1], a[1];
    (void)state;
    p.max_tokens = 20;
    p.ignore_eos = true;
    run(e, &p, free_text);
    p.structured = (struct sl_structured_output){.kind = SL_STRUCTURED_CHOICE,
                                                 .text = "[\"yes\",\"no\"]",
                                                 .after = &free_text->token[9],
                                                 .n_after = 2};
    p.ignore_eos = false;
    p.max_tokens = 60;
    run(e, &p, a);
    assert_memory_equal(free_text->token, a->token, 11 * sizeof a->token[0]);
    assert_int_equal(a->finish, SL_STOP);
    size_t n = strlen(a->text);
    assert_true((n > 3 && !strcmp(a->text + n - 3, "yes")) || !strcmp(a->text + n - 2, "no"));
    sl_engine_destroy(&e);
}

static void ends_and_limits(void **state)
{
    struct sl_engine *e = start(2, 4096, NULL);
    struct sl_sampling_params p = params(SL_STRUCTURED_CHOICE, "[\"x\"]", 1);
    static struct answer a[1];
    (void)state;
    run(e, &p, a); /* every token is forced */
    assert_string_equal(a->text, "x");
    assert_int_equal(a->finish, SL_STOP);
    p.logprobs = 2;
    run(e, &p, a);
    assert_string_equal(a->text, "x");
    p.ignore_eos = true; /* then nothing but ends, to the limit */
    p.max_tokens = 9;
    run(e, &p, a);
    assert_int_equal(a->finish, SL_LENGTH);
    assert_int_equal(a->n_tokens, 9);
    p = params(SL_STRUCTURED_JSON_OBJECT, NULL, 1);
    p.max_tokens = 5;
    run(e, &p, a);
    assert_int_equal(a->text[0], '{');
    p = params(SL_STRUCTURED_CHOICE, "[\"left\",\"right\"]", 1);
    p.use_beam_search = true;
    p.temperature = 0;
    run(e, &p, a);
    assert_true(!strcmp(a->text, "left") || !strcmp(a->text, "right"));
    sl_engine_destroy(&e);
}

static void refusals_name_the_field(void **state)
{
    static const struct {
        enum sl_structured_kind kind;
        const char *text, *field, *words;
    } cases[] = {
        {SL_STRUCTURED_JSON, "{\"pattern\":\"(\"}", NULL, "structured_outputs.json: /pattern"},
        {SL_STRUCTURED_JSON, "{\"type\":1}", "response_format", "response_format: /type"},
        {SL_STRUCTURED_REGEX, "a\\b", NULL, "word boundary"},
        {SL_STRUCTURED_GRAMMAR, "x", NULL, "structured_outputs.grammar"},
        {SL_STRUCTURED_REGEX, NULL, NULL, "no text"},
    };
    struct sl_engine *e = start(1, 4096, NULL);
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const int32_t prompt[] = {300};
        struct sl_sampling_params p = params(cases[i].kind, cases[i].text, 1);
        struct sl_input in = {.tokens = prompt, .n_tokens = 1};
        struct sl_request *r = NULL;
        struct sl_err err = {0};
        p.structured.field = cases[i].field;
        assert_int_equal(sl_submit(e, &in, &p, NULL, NULL, &r, &err), SL_EINVAL);
        if (!strstr(err.msg, cases[i].words))
            fail_msg("%s, not %s", err.msg, cases[i].words);
        assert_true(err.param[0] != 0);
    }
    sl_engine_destroy(&e);
}

static void objects_are_parsed(void **state)
{
    struct sl_structured_output s;
    struct sl_err err = {0};
    char *memory = NULL;
    const char *text = "{\"json\": {\"type\": \"null\"}, \"whitespace_pattern\": \" ?\", "
                       "\"disable_additional_properties\": true, \"regex\": null}";
    (void)state;
    assert_int_equal(sl_structured_output_parse(text, strlen(text), &s, &memory, &err), SL_OK);
    assert_int_equal(s.kind, SL_STRUCTURED_JSON);
    assert_string_equal(s.text, "{\"type\":\"null\"}");
    assert_string_equal(s.whitespace_pattern, " ?");
    assert_true(s.disable_additional_properties && !s.disable_any_whitespace);
    sl_free(memory);
    text = "{\"json\": 5}";
    assert_int_equal(sl_structured_output_parse(text, strlen(text), &s, &memory, &err), SL_EINVAL);
}

static int quiet(void **state)
{
    (void)state;
    sl_log_set_level(SL_LOG_ERROR);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_follow_their_schema),    cmocka_unit_test(guesses_change_nothing),
        cmocka_unit_test(it_may_begin_after_a_reasoning), cmocka_unit_test(ends_and_limits),
        cmocka_unit_test(refusals_name_the_field),        cmocka_unit_test(objects_are_parsed),
    };
    return cmocka_run_group_tests(tests, quiet, NULL);
}
