/* Structured output on pebble through the public interface: what is answered follows its grammar,
 * and tokens, text and logprobs are bit for bit the same alone, beside 63 others, in small chunks,
 * when sequences drive each other out, and whatever guesses their tokens.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "core/metrics.h"
#include "engine/engine.h"
#include "grammar/grammar.h"
#include "support/crowd.h"
#include "support/pebble.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { N = CROWD_MAX };

static struct crowd crowd;
static struct answer base[N], got[N];

/* CPU, or the one that is named on the command line. */
static enum sl_device device_of_tests = SL_DEVICE_CPU;

static const struct {
    enum sl_structured_kind kind;
    enum grammar_kind grammar;
    const char *text;
} wanted[] = {
    {SL_STRUCTURED_JSON, GRAMMAR_JSON_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":9},\"age\":"
     "{\"type\":\"integer\",\"minimum\":0,\"maximum\":120},\"tags\":{\"type\":\"array\",\"items\":"
     "{\"enum\":[\"red\",\"green\"]},\"maxItems\":2}},\"required\":[\"name\",\"age\"],"
     "\"additionalProperties\":false}"},
    {SL_STRUCTURED_REGEX, GRAMMAR_REGEX, "(the (red|green|old) [a-z]{2,8}, ){2}and [0-9]{3}"},
    {SL_STRUCTURED_CHOICE, GRAMMAR_CHOICE, "[\"yes\", \"no, never\", \"perhaps tomorrow\"]"},
    {SL_STRUCTURED_GRAMMAR, GRAMMAR_EBNF,
     "root ::= item (\"+\" item){0,4}\nitem ::= [0-9]{1,3} | \"(\" root \")\""},
    {SL_STRUCTURED_JSON_OBJECT, GRAMMAR_JSON_OBJECT, NULL},
};
enum { N_WANTED = sizeof wanted / sizeof *wanted };

static struct sl_sampling_params params_of(int i)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 30 + i % 30;
    p.logprobs = i % 3 ? ANSWER_TOP : SL_NONE; /* without them a lone token is not sampled */
    p.temperature = i % 2 ? 0.5f + 0.1f * (float)(i % 8) : 0;
    p.top_p = i % 4 == 1 ? 0.9f : 1;
    p.repetition_penalty = i % 7 ? 1 : 1.1f;
    p.has_seed = true;
    p.seed = 1000 + i;
    p.structured.kind = wanted[i % N_WANTED].kind;
    p.structured.text = wanted[i % N_WANTED].text;
    return p;
}

/* ---- what it says ---------------------------------------------------------------------------- */

static struct grammar *compile(struct grammar_lib *lib, int k)
{
    struct grammar_spec spec = {.kind = wanted[k].grammar,
                                .text = wanted[k].text,
                                .n_text = wanted[k].text ? strlen(wanted[k].text) : 0};
    struct grammar *g = NULL;
    struct sl_err err = {0};
    if (grammar_compile(lib, &spec, &g, &err))
        fail_msg("%s", err.msg);
    return g;
}

/* A whole text of the grammar, or a beginning of one where the answer was cut off. */
static void check_answer(const struct tokenizer *t, struct grammar *g, const struct answer *a)
{
    struct token_vec v = {0};
    struct matcher *m = NULL;
    struct sl_err err = {0};
    assert_int_equal(tokenizer_encode(t, a->text, a->bytes, ENCODE_PLAIN, 0, &v, &err), SL_OK);
    assert_int_equal(matcher_create(&m, g, NULL, 0, &err), SL_OK);
    for (size_t i = 0; i < v.n; i++)
        if (matcher_accept(m, v.ids[i]))
            fail_msg("'%s' leaves its grammar at token %zu", a->text, i);
    if (a->finish == SL_STOP)
        assert_true(matcher_may_end(m));
    else
        assert_int_equal(a->finish, SL_LENGTH);
    matcher_destroy(&m);
    token_vec_fini(&v);
}

static void check_answers(void)
{
    struct tokenizer *t = NULL;
    struct grammar_lib *lib = NULL;
    struct grammar *g[N_WANTED];
    struct sl_err err = {0};
    int n_ended = 0;
    assert_int_equal(tokenizer_load(&t, "models/pebble", &err), SL_OK);
    assert_int_equal(grammar_lib_create(&lib, tokenizer_vocab(t), -1, &err), SL_OK);
    for (int k = 0; k < N_WANTED; k++)
        g[k] = compile(lib, k);
    for (int i = 0; i < N; i++) {
        if (!crowd.chosen[i])
            continue;
        check_answer(t, g[i % N_WANTED], &base[i]);
        n_ended += base[i].finish == SL_STOP;
    }
    print_message("%d answers came to their end\n", n_ended);
    assert_true(n_ended > N / 4);
    for (int k = 0; k < N_WANTED; k++)
        grammar_unref(&g[k]);
    grammar_lib_destroy(&lib);
    tokenizer_destroy(&t);
}

/* ---- the same bits --------------------------------------------------------------------------- */

static const struct {
    const char *name, *json;
} methods[] = {
    {"ngram", "{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"prompt_lookup_min\": 1, "
              "\"prompt_lookup_max\": 4, \"adaptive\": false}"},
    {"suffix", "{\"method\": \"suffix\", \"num_speculative_tokens\": 6, \"adaptive\": false}"},
    {"draft model", "{\"model\": \"models/pebble-draft\", \"num_speculative_tokens\": 4, "
                    "\"adaptive\": false}"},
};
enum { N_METHODS = sizeof methods / sizeof *methods };

static void compare(const struct sl_config *cfg, const char *what)
{
    struct sl_engine *e = pebble_start(cfg);
    struct sl_draft_stats s = {0};
    crowd_run(&crowd, e, N, params_of, got);
    crowd_assert_same(&crowd, base, got, what);
    if (cfg->speculative_config) {
        sl_engine_draft_stats(e, &s);
        print_message("%s: %llu of %llu guesses kept\n", what, (unsigned long long)s.n_accepted,
                      (unsigned long long)s.n_draft_tokens);
        assert_true(s.n_accepted > 0);
    }
    if (cfg->num_blocks_override)
        assert_true(metrics_counter(engine_metrics(e), M_PREEMPTIONS) > 0);
    sl_engine_destroy(&e);
}

static void whatever_the_batch(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16);
    struct sl_engine *e = pebble_start(&cfg);
    crowd_choose(&crowd, 1, 4096);
    crowd_run(&crowd, e, 1, params_of, base);
    sl_engine_destroy(&e);
    check_answers();
    compare(&cfg, "beside the others");
    cfg.max_num_batched_tokens = cfg.max_num_seqs = 24;
    compare(&cfg, "in steps of 24 tokens");
    cfg.max_num_batched_tokens = cfg.max_num_seqs = 0;
    for (int m = 0; m < N_METHODS; m++) {
        cfg.speculative_config = methods[m].json;
        compare(&cfg, methods[m].name);
    }
    crowd_choose(&crowd, 1, 150);
    cfg.num_blocks_override = 16;
    cfg.max_model_len = 250;
    for (int m = -1; m < N_METHODS; m++) {
        cfg.speculative_config = m < 0 ? NULL : methods[m].json;
        compare(&cfg, m < 0 ? "after preemptions" : methods[m].name);
    }
}

static int setup(void **state)
{
    (void)state;
    return crowd_load(&crowd);
}

static int teardown(void **state)
{
    (void)state;
    crowd_free(&crowd);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whatever_the_batch)};
    device_of_tests = pebble_device(argc, argv);
    return cmocka_run_group_tests(tests, setup, teardown);
}
