/* params_copy: parameters are copied in depth, and what is derived from them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "engine/params.h"
#include "engine/pyrepr.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct params_limits limits = {
    .vocab_size = 1000, .max_logprobs = 20, .max_model_len = 4096, .eos = {4, 2}, .n_eos = 2};

static struct sl_sampling_params defaults(void)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    return p;
}

static void copies_are_deep(void **state)
{
    (void)state;
    char stop[] = "stop";
    const char *stops[] = {stop};
    int32_t ids[] = {9, 2, 9, 5000, -3, 7};
    struct sl_logit_bias bias[] = {{3, 1000}, {4, -1000}};
    struct sl_sampling_params p = defaults();
    struct seq_params sp;
    struct arena a;
    arena_init(&a, 0);
    p.stop = stops;
    p.n_stop = 1;
    p.stop_token_ids = ids;
    p.n_stop_token_ids = 6;
    p.logit_bias = bias;
    p.n_logit_bias = 2;
    p.allowed_token_ids = ids + 1;
    p.n_allowed_token_ids = 1;
    assert_int_equal(params_copy(&limits, &p, NULL, &a, &sp, NULL), SL_OK);
    memset(stop, 'x', 4);
    memset(ids, 0, sizeof ids);
    memset(bias, 0, sizeof bias);
    assert_string_equal(sp.p.stop[0], "stop");
    assert_int_equal(sp.p.allowed_token_ids[0], 2);
    assert_true(sp.p.logit_bias[0].bias == 100 && sp.p.logit_bias[1].bias == -100);
    /* duplicates and ids that cannot occur go; the model's second EOS is there already */
    int32_t want[] = {9, 2, 7, 4};
    assert_int_equal(sp.p.n_stop_token_ids, 3);
    assert_memory_equal(sp.p.stop_token_ids, want, 3 * sizeof *want);
    assert_int_equal(sp.n_all_stop_ids, 4);
    assert_memory_equal(sp.all_stop_ids, want, 4 * sizeof *want);
    assert_int_equal(sp.eos_token, 4);
    arena_fini(&a);

    p = defaults();
    assert_int_equal(params_copy(&limits, &p, NULL, &a, &sp, NULL), SL_OK);
    assert_int_equal(sp.p.n_stop_token_ids, 1);
    assert_int_equal(sp.p.stop_token_ids[0], 2);
    arena_fini(&a);
    p.ignore_eos = true; /* then nothing stops, but min_tokens still forbids them */
    assert_int_equal(params_copy(&limits, &p, NULL, &a, &sp, NULL), SL_OK);
    assert_int_equal(sp.p.n_stop_token_ids, 0);
    assert_int_equal(sp.n_all_stop_ids, 2);
    arena_fini(&a);
}

static void copying_survives_lack_of_memory(void **state)
{
    (void)state;
    const char *stops[] = {"a", "b"};
    struct sl_sampling_params p = defaults();
    p.stop = stops;
    p.n_stop = 2;
    for (size_t limit = 1; limit < 4096; limit += 16) {
        struct arena a;
        struct seq_params sp;
        struct sl_err err = {0};
        arena_init(&a, limit);
        enum sl_status st = params_copy(&limits, &p, NULL, &a, &sp, &err);
        arena_fini(&a);
        if (st == SL_OK)
            return;
        assert_int_equal(st, SL_ENOMEM);
        assert_true(err.msg[0]);
    }
    fail_msg("no limit was enough");
}

/* As vLLM's update_from_tokenizer: each word as it begins a text, and after a space where that
 * makes another token of it. */
static void bad_words_become_tokens(void **state)
{
    (void)state;
    const char *words[] = {"tar", "  archive", "of the"};
    struct tokenizer *t;
    struct sl_sampling_params p = defaults();
    struct seq_params sp;
    struct arena a;
    arena_init(&a, 0);
    assert_int_equal(tokenizer_load(&t, "models/pebble", NULL), SL_OK);
    p.bad_words = words;
    p.n_bad_words = 3;
    assert_int_equal(params_copy(&limits, &p, t, &a, &sp, NULL), SL_OK);
    int at = 0;
    for (int w = 0; w < 3; w++) {
        const char *word = words[w] + strspn(words[w], " ");
        char spaced[32];
        struct token_vec plain = {0}, after_space = {0};
        snprintf(spaced, sizeof spaced, " %s", word);
        assert_int_equal(tokenizer_encode(t, word, strlen(word), 0, 0, &plain, NULL), SL_OK);
        assert_int_equal(tokenizer_encode(t, spaced, strlen(spaced), 0, 0, &after_space, NULL),
                         SL_OK);
        for (int s = 0; s < 2; s++) {
            const struct token_vec *want = s ? &after_space : &plain;
            if (s && (want->n != plain.n || want->ids[0] == plain.ids[0]))
                continue;
            assert_true(at < sp.n_bad_word_seqs);
            int start = sp.bad_word_start[at], end = sp.bad_word_start[at + 1];
            assert_int_equal(end - start, want->n);
            assert_memory_equal(sp.bad_word_tokens + start, want->ids, want->n * sizeof *want->ids);
            at++;
        }
        token_vec_fini(&plain);
        token_vec_fini(&after_space);
    }
    assert_int_equal(at, sp.n_bad_word_seqs);
    assert_true(at > 3); /* the spaced form of one at least */

    const char *many[129];
    struct sl_err err = {0};
    for (int i = 0; i < 129; i++)
        many[i] = words[0];
    p.bad_words = many;
    p.n_bad_words = 129;
    assert_int_equal(params_copy(&limits, &p, t, &a, &sp, &err), SL_EINVAL);
    assert_non_null(strstr(err.msg, "Too many bad words after tokenization: "));
    assert_non_null(strstr(err.msg, ". The max number is 128."));
    arena_fini(&a);
    tokenizer_destroy(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_are_deep),
        cmocka_unit_test(bad_words_become_tokens),
        cmocka_unit_test(copying_survives_lack_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
