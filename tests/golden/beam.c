/* Beam search through the public interface against transformers' (tests/golden/beam/make.py): every
 * case's sequences and scores, on ref and cpu in float32; and that the answer's bits do not depend
 * on what else runs, on chunks, on prefix hits or on preemption.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/mem.h"
#include "core/metrics.h"
#include "engine/engine.h"
#include "support/pebble.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_BEAMS = 8, MAX_NEW = 24, MAX_CASES = 27 };

/* CPU, or the one that is named on the command line. */
static enum sl_device device_of_tests = SL_DEVICE_CPU;

/* Two sequences whose golden scores are this close may change places. */
static const double NEAR_TIE = 2e-5;

/* ---- one search ------------------------------------------------------------------------------ */

struct found {
    int32_t token[MAX_BEAMS][MAX_NEW];
    int n[MAX_BEAMS];
    double score[MAX_BEAMS], sum[MAX_BEAMS];
    enum sl_finish finish[MAX_BEAMS];
};

static int ids_of(const json_t *list, int32_t *out, int max)
{
    int n = (int)json_array_size(list);
    assert_true(n <= max);
    for (int i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return n;
}

static enum sl_early_stopping early_of(const json_t *v)
{
    return json_is_string(v) ? SL_EARLY_NEVER : json_is_true(v) ? SL_EARLY_TRUE : SL_EARLY_FALSE;
}

static struct sl_request *submit(struct sl_engine *e, const json_t *prompt, const json_t *c,
                                 int max_tokens)
{
    int32_t ids[512];
    struct sl_input in = {.tokens = ids,
                          .n_tokens = ids_of(json_object_get(prompt, "prompt_ids"), ids, 512)};
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.use_beam_search = true;
    p.n = (int)json_integer_value(json_object_get(c, "beams"));
    p.length_penalty = (float)json_number_value(json_object_get(c, "length_penalty"));
    p.early_stopping = early_of(json_object_get(c, "early_stopping"));
    p.max_tokens = max_tokens;
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    if (sl_submit(e, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

static void collect(struct sl_request **r, struct found *f)
{
    const struct sl_output *o;
    *f = (struct found){0};
    while (sl_request_wait(*r, 120000) == SL_OK && (o = sl_request_next(*r))) {
        int i = o->index;
        assert_null(o->logprobs); /* not asked for */
        for (int t = 0; t < o->n_tokens; t++)
            f->token[i][f->n[i]++] = o->tokens[t];
        f->finish[i] = o->finish;
        f->score[i] = o->score;
        f->sum[i] = o->cumulative_logprob;
    }
    assert_true(sl_request_done(*r));
    sl_request_release(r);
}

/* All cases of a prompt at once. */
static void search_all(struct sl_engine *e, const json_t *prompt, int max_tokens, struct found *f)
{
    const json_t *cases = json_object_get(prompt, "cases");
    struct sl_request *r[MAX_CASES];
    int n = (int)json_array_size(cases);
    assert_true(n <= MAX_CASES);
    for (int i = 0; i < n; i++)
        r[i] = submit(e, prompt, json_array_get(cases, (size_t)i), max_tokens);
    for (int i = 0; i < n; i++)
        collect(&r[i], &f[i]);
}

/* ---- against transformers -------------------------------------------------------------------- */

struct report {
    int n_cases, n_same, n_swapped;
    double worst;
};

static bool is_golden(const json_t *seqs, const json_t *c, size_t rank, const struct found *f,
                      int i)
{
    int32_t want[MAX_NEW];
    size_t at = (size_t)json_integer_value(json_array_get(json_object_get(c, "sequences"), rank));
    int n = ids_of(json_array_get(seqs, at), want, MAX_NEW);
    return n == f->n[i] && memcmp(want, f->token[i], (size_t)n * sizeof *want) == 0;
}

static void compare(const char *id, const json_t *seqs, const json_t *c, const struct found *f,
                    struct report *out)
{
    const json_t *scores = json_object_get(c, "scores");
    size_t n = json_array_size(scores);
    bool same = true;
    out->n_cases++;
    for (size_t i = 0; i < n; i++) {
        double want = json_number_value(json_array_get(scores, i));
        double err = fabs(f->score[i] - want);
        out->worst = err > out->worst ? err : out->worst;
        if (is_golden(seqs, c, i, f, (int)i))
            continue;
        same = false;
        bool tied = false;
        for (size_t k = 0; k < n; k++) {
            double other = json_number_value(json_array_get(scores, k));
            tied = tied || (k != i && fabs(other - want) < NEAR_TIE);
        }
        if (!tied) {
            char *text = json_dumps(c, JSON_COMPACT);
            fail_msg("%s %s: place %zu, score %.6f", id, text, i, f->score[i]);
        }
    }
    out->n_same += same;
    out->n_swapped += !same;
}

/* Every stride-th prompt: the reference device is slow. */
static void check_device(enum sl_device device, const char *name, int stride)
{
    struct sl_config cfg = pebble_config(device, SL_DTYPE_F32);
    struct sl_engine *e = pebble_start(&cfg);
    json_error_t why;
    json_t *golden = json_load_file("tests/golden/beam/pebble.json", 0, &why);
    if (!golden)
        fail_msg("pebble.json: %s", why.text);
    int max_tokens = (int)json_integer_value(json_object_get(golden, "max_new_tokens"));
    const json_t *prompts = json_object_get(golden, "prompts");
    struct report r = {0};
    static struct found f[MAX_CASES];
    for (size_t i = 0; i < json_array_size(prompts); i += (size_t)stride) {
        const json_t *p = json_array_get(prompts, i), *cases = json_object_get(p, "cases");
        search_all(e, p, max_tokens, f);
        for (size_t k = 0; k < json_array_size(cases); k++)
            compare(json_string_value(json_object_get(p, "id")), json_object_get(p, "sequences"),
                    json_array_get(cases, k), &f[k], &r);
    }
    print_message("%s: %d of %d cases identical, %d with near ties swapped, worst score error "
                  "%.1e\n",
                  name, r.n_same, r.n_cases, r.n_swapped, r.worst);
    assert_int_equal(r.n_cases, 16 / stride * 27);
    assert_true(r.n_swapped <= 4);
    assert_true(r.worst < 1e-3);
    json_decref(golden);
    sl_engine_destroy(&e);
}

static void on_ref(void **state)
{
    (void)state;
    check_device(SL_DEVICE_REF, "ref", 4);
}

static void on_cpu(void **state)
{
    (void)state;
    check_device(SL_DEVICE_CPU, "cpu", 1);
}

/* The logprob that float32 gives the first sequence found behind its prompt. */
static double rescore(struct sl_engine *f32, const json_t *prompt, const struct found *f)
{
    int32_t ids[512 + MAX_NEW];
    int n_prompt = ids_of(json_object_get(prompt, "prompt_ids"), ids, 512);
    struct sl_input in = {.tokens = ids, .n_tokens = n_prompt + f->n[0]};
    struct sl_sampling_params p;
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    double sum = 0;
    memcpy(ids + n_prompt, f->token[0], (size_t)f->n[0] * sizeof *ids);
    sl_sampling_params_init(&p);
    p.temperature = 0;
    p.max_tokens = 1;
    p.prompt_logprobs = 0;
    if (sl_submit(f32, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s", err.msg);
    while (sl_request_wait(r, 120000) == SL_OK && sl_request_next(r))
        ;
    const struct sl_token_logprobs *lp = sl_request_prompt_logprobs(r);
    assert_non_null(lp);
    for (int i = n_prompt; i < in.n_tokens; i++)
        sum += (double)lp[i].entry[0].logprob;
    sl_request_release(&r);
    return sum;
}

/* In bf16 a search may go another way at a near tie. What it finds must be worth what it says, and
 * about as much as what float32 found. */
static void in_bf16(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device_of_tests, SL_DTYPE_BF16),
                     exact = pebble_config(SL_DEVICE_CPU, SL_DTYPE_F32);
    struct sl_engine *e = pebble_start(&cfg), *f32 = pebble_start(&exact);
    json_error_t why;
    json_t *golden = json_load_file("tests/golden/beam/pebble.json", 0, &why);
    if (!golden)
        fail_msg("pebble.json: %s", why.text);
    const json_t *prompts = json_object_get(golden, "prompts");
    static struct found f[MAX_CASES];
    int n = 0, n_same = 0;
    double worst = 0, loss = 0;
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        const json_t *p = json_array_get(prompts, i), *cases = json_object_get(p, "cases");
        search_all(e, p, MAX_NEW, f);
        for (size_t k = 0; k < json_array_size(cases); k++, n++) {
            const json_t *c = json_array_get(cases, k);
            double want = json_number_value(json_array_get(json_object_get(c, "scores"), 0));
            double penalty = json_number_value(json_object_get(c, "length_penalty"));
            double sum = rescore(f32, p, &f[k]);
            double worse = want * pow(f[k].n[0], penalty) - sum; /* nats of the whole sequence */
            n_same += is_golden(json_object_get(p, "sequences"), c, 0, &f[k], 0);
            worst = fmax(worst, fabs(f[k].sum[0] - sum) / f[k].n[0]);
            loss += worse;
        }
    }
    print_message("bf16: the best sequence is float32's in %d of %d cases; a token's logprob is "
                  "off by %.1e at most; a sequence is worth %.3f nats less on average\n",
                  n_same, n, worst, loss / n);
    assert_true(worst < 0.02);
    assert_true(loss < 0.1 * n);
    json_decref(golden);
    sl_engine_destroy(&e);
    sl_engine_destroy(&f32);
}

/* ---- the same bits --------------------------------------------------------------------------- */

static void assert_same_bits(const struct found *a, const struct found *b)
{
    for (int i = 0; i < MAX_BEAMS; i++) {
        assert_int_equal(a->n[i], b->n[i]);
        assert_memory_equal(a->token[i], b->token[i], sizeof a->token[i]);
        assert_memory_equal(&a->score[i], &b->score[i], sizeof a->score[i]);
        assert_memory_equal(&a->sum[i], &b->sum[i], sizeof a->sum[i]);
        assert_int_equal(a->finish[i], b->finish[i]);
    }
}

static void whatever_the_batch(void **state)
{
    (void)state;
    enum sl_dtype dtype = device_of_tests == SL_DEVICE_CPU ? SL_DTYPE_F32 : SL_DTYPE_BF16;
    struct sl_config cfg = pebble_config(device_of_tests, dtype);
    json_error_t why;
    json_t *golden = json_load_file("tests/golden/beam/pebble.json", 0, &why);
    const json_t *prompt =
        json_array_get(json_object_get(golden, "prompts"), 11); /* the longest one */
    const json_t *cases = json_object_get(prompt, "cases");
    static struct found alone[MAX_CASES], crowd[MAX_CASES];
    struct sl_engine *e = pebble_start(&cfg);
    for (size_t i = 0; i < MAX_CASES; i++) {
        struct sl_request *r = submit(e, prompt, json_array_get(cases, i), MAX_NEW);
        collect(&r, &alone[i]);
    }
    sl_engine_destroy(&e);
    /* in chunks, all at once, in a cache that cannot hold half of them, with and without hits */
    for (int caching = 0; caching < 2; caching++) {
        cfg.enable_prefix_caching = caching;
        cfg.max_num_batched_tokens = 48;
        cfg.max_num_seqs = 24;
        cfg.max_model_len = 320;
        cfg.kv_cache_bytes = dtype == SL_DTYPE_F32 ? 4 << 20 : 2 << 20;
        e = pebble_start(&cfg);
        search_all(e, prompt, MAX_NEW, crowd);
        struct strbuf text;
        strbuf_init(&text, 0);
        engine_metrics_render(e, &text);
        const char *line = strstr(text.data, "\nvllm:num_preemptions_total{");
        assert_non_null(line);
        print_message("preemptions:%.8s\n", strchr(line, '}') + 1);
        assert_true(strncmp(strchr(line, '}') + 1, " 0.0", 4) != 0);
        strbuf_fini(&text);
        for (int i = 0; i < MAX_CASES; i++)
            assert_same_bits(&alone[i], &crowd[i]);
        sl_engine_destroy(&e);
    }
    json_decref(golden);
}

int main(int argc, char **argv)
{
    log_set_level(LOG_WARNING);
    const struct CMUnitTest any[] = {cmocka_unit_test(in_bf16),
                                     cmocka_unit_test(whatever_the_batch)};
    const struct CMUnitTest here[] = {cmocka_unit_test(on_ref), cmocka_unit_test(on_cpu)};
    device_of_tests = pebble_device(argc, argv);
    int failed = cmocka_run_group_tests(any, NULL, NULL);
    if (device_of_tests == SL_DEVICE_CPU)
        failed += cmocka_run_group_tests(here, NULL, NULL);
    return failed;
}
