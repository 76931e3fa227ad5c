/* stop strings: where a text is cut, what is held back, and that neither depends on how tokens are
 * grouped into events and outputs.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "engine/choice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the search ------------------------------------------------------------------------------ */

static unsigned seed = 1;
static unsigned rnd(unsigned n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/* The definition: every end position after `from`, the first one wins, then the list's order. */
static int naive_find(const char *const *stop, int n, const char *text, size_t bytes, size_t from,
                      size_t *start, size_t *end)
{
    for (size_t e = from + 1; e <= bytes; e++)
        for (int i = 0; i < n; i++) {
            size_t len = strlen(stop[i]);
            if (len <= e && memcmp(text + e - len, stop[i], len) == 0) {
                *start = e - len;
                *end = e;
                return i;
            }
        }
    return -1;
}

static void search_is_the_definition(void **state)
{
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[40], stops[3][6];
        const char *stop[3];
        size_t bytes = rnd(sizeof text), from = bytes ? rnd((unsigned)bytes) : 0;
        int n = 1 + (int)rnd(3);
        for (size_t i = 0; i < bytes; i++)
            text[i] = (char)('a' + rnd(2));
        for (int i = 0; i < n; i++) {
            size_t len = 1 + rnd(5);
            for (size_t j = 0; j < len; j++)
                stops[i][j] = (char)('a' + rnd(2));
            stops[i][len] = 0;
            stop[i] = stops[i];
        }
        struct stop_strings s;
        size_t a = 0, b = 0, c = 0, d = 0;
        stop_strings_init(&s, stop, n);
        int want = naive_find(stop, n, text, bytes, from, &a, &b);
        int got = stop_strings_find(&s, text, bytes, from, &c, &d);
        assert_int_equal(got, want);
        if (want >= 0)
            assert_true(a == c && b == d);
    }
}

static void held_back_are_characters(void **state)
{
    (void)state;
    struct stop_strings s;
    stop_strings_init(&s, (const char *const[]){"ab", "\xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97"}, 2);
    assert_int_equal(s.hold_chars, 2);
    assert_int_equal(s.max_bytes, 9);
    const char *text = "x\xe4\xb8\xad\xc3\xa9";
    assert_int_equal(stop_strings_tail(text, strlen(text), 1), 2);
    assert_int_equal(stop_strings_tail(text, strlen(text), 2), 5);
    assert_int_equal(stop_strings_tail(text, strlen(text), 9), strlen(text));
    assert_int_equal(stop_strings_tail(text, strlen(text), 0), 0);
}

/* ---- a choice -------------------------------------------------------------------------------- */

static struct tokenizer *tok;

struct run {
    struct sl_sampling_params p;
    struct choice_rules rules;
    struct choice c;
    char text[4096];
    size_t bytes;
    int n_tokens, n_outputs, taken;
    struct sl_output last;
};

static void run_init(struct run *r, const char *const *stop, int n)
{
    *r = (struct run){0};
    sl_sampling_params_init(&r->p);
    r->p.stop = stop;
    r->p.n_stop = n;
    r->rules = (struct choice_rules){.tokenizer = tok, .p = &r->p, .stream_interval = 1};
    stop_strings_init(&r->rules.stop, stop, n);
    choice_init(&r->c, 0);
}

static void run_read(struct run *r)
{
    while (choice_ready(&r->c, &r->rules)) {
        struct sl_output *o = &r->last;
        assert_int_equal(choice_output(&r->c, &r->rules, o, NULL), SL_OK);
        assert_true(r->bytes + o->text_bytes < sizeof r->text);
        assert_int_equal(strlen(o->text), o->text_bytes);
        memcpy(r->text + r->bytes, o->text, o->text_bytes + 1);
        r->bytes += o->text_bytes;
        r->n_tokens += o->n_tokens;
        r->n_outputs++;
        choice_taken(&r->c);
    }
}

/* Feeds tokens, reading after every `group` of them; the last ends with `finish`. */
static void run_feed(struct run *r, const int32_t *ids, size_t n, size_t group,
                     enum sl_finish finish)
{
    for (size_t i = 0; i < n; i++) {
        struct event ev = {.t_ns = (int64_t)i + 1, .token = ids[i], .has_token = true};
        ev.finish = i + 1 == n ? (uint8_t)finish : SL_RUNNING;
        assert_int_equal(choice_take(&r->c, &r->rules, &ev, NULL, NULL), SL_OK);
        if ((i + 1) % group == 0)
            run_read(r);
    }
    run_read(r);
}

static void encode(const char *text, struct token_vec *v)
{
    *v = (struct token_vec){0};
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), 0, 0, v, NULL), SL_OK);
}

static void cut_before_or_after(void **state)
{
    (void)state;
    static const char *const stop[] = {"-czf", "archive"};
    struct token_vec v;
    encode("tar -czf archive.tar.gz folder", &v);
    for (int include = 0; include < 2; include++)
        for (size_t group = 1; group < 6; group++) {
            struct run r;
            run_init(&r, stop, 2);
            r.p.include_stop_str_in_output = include;
            run_feed(&r, v.ids, v.n, group, SL_LENGTH);
            assert_string_equal(r.text, include ? "tar -czf" : "tar ");
            assert_int_equal(r.last.finish, SL_STOP);
            assert_int_equal(r.last.stop_kind, SL_STOP_STRING);
            assert_string_equal(r.last.stop_string, "-czf");
            assert_true(r.n_tokens < (int)v.n); /* what follows is neither text nor usage */
            assert_int_equal(r.n_tokens, r.c.n_tokens);
            choice_fini(&r.c);
        }
    token_vec_fini(&v);
}

static void nothing_is_given_that_may_be_cut(void **state)
{
    (void)state;
    static const char *const stop[] = {"archive.zip"};
    struct token_vec v;
    struct run r;
    encode("tar -czf archive.tar.gz archive.zip", &v);
    run_init(&r, stop, 1);
    for (size_t i = 0; i < v.n; i++) {
        struct event ev = {.token = v.ids[i], .has_token = true};
        assert_int_equal(choice_take(&r.c, &r.rules, &ev, NULL, NULL), SL_OK);
        run_read(&r);
        size_t total = r.c.base + r.c.text.len; /* all ASCII: characters are bytes */
        if (r.c.finish == SL_RUNNING)
            assert_int_equal(r.bytes, total > 10 ? total - 10 : 0);
    }
    assert_string_equal(r.text, "tar -czf archive.tar.gz ");
    choice_fini(&r.c);
    token_vec_fini(&v);
}

static void stop_strings_wait_for_min_tokens(void **state)
{
    (void)state;
    static const char *const stop[] = {"a"};
    struct token_vec v;
    encode("a a a a a a a a", &v);
    for (int min = 0; min < 6; min++) {
        struct run r;
        run_init(&r, stop, 1);
        r.p.min_tokens = min;
        run_feed(&r, v.ids, v.n, 1, SL_LENGTH);
        assert_int_equal(r.n_tokens, min + 1); /* each token here ends in an "a" */
        choice_fini(&r.c);
    }
    token_vec_fini(&v);
}

static void a_stop_token_is_not_text(void **state)
{
    (void)state;
    struct token_vec v;
    encode("list files", &v);
    for (int include = 0; include < 2; include++) {
        struct run r;
        run_init(&r, NULL, 0);
        r.p.include_stop_str_in_output = include;
        run_feed(&r, v.ids, v.n, 1, SL_STOP);
        assert_int_equal(r.n_tokens, (int)v.n);
        assert_true(include == (strcmp(r.text, "list files") == 0));
        choice_fini(&r.c);
    }
    token_vec_fini(&v);
}

static void intervals_coalesce(void **state)
{
    (void)state;
    struct token_vec v;
    encode("tar -czf archive.tar.gz some folder with many files in it", &v);
    struct run r;
    run_init(&r, NULL, 0);
    r.rules.stream_interval = 4;
    run_feed(&r, v.ids, v.n, 1, SL_LENGTH);
    assert_string_equal(r.text, "tar -czf archive.tar.gz some folder with many files in it");
    assert_int_equal(r.n_tokens, (int)v.n);
    /* the first at once, then every fourth, then the rest */
    assert_int_equal(r.n_outputs, 1 + ((int)v.n - 1 + 3) / 4);
    choice_fini(&r.c);
    token_vec_fini(&v);
}

/* Random texts and stop strings: grouping never shows, and the cut is where a search over the whole
 * text, token by token, puts it. */
static void grouping_never_shows(void **state)
{
    (void)state;
    const struct vocab *vocab = tokenizer_vocab(tok);
    int n_stopped = 0;
    for (int round = 0; round < 400; round++) {
        int32_t ids[30];
        size_t n = 1 + rnd(30);
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)(5 + rnd((unsigned)vocab->n - 5));
        char *whole;
        size_t bytes;
        assert_int_equal(tokenizer_decode(tok, ids, n, true, &whole, &bytes, NULL), SL_OK);
        char cut[8] = "zz";
        if (bytes > 8) { /* some piece of the text, from a character's start to a character's end */
            size_t at = rnd((unsigned)bytes - 6), len = 1 + rnd(5);
            while (at > 0 && ((unsigned char)whole[at] & 0xC0) == 0x80)
                at--;
            while (((unsigned char)whole[at + len] & 0xC0) == 0x80)
                len--;
            if (len && len < sizeof cut && !memchr(whole + at, 0, len)) {
                memcpy(cut, whole + at, len);
                cut[len] = 0;
            }
        }
        const char *stop[] = {cut, "never there"};
        struct run one;
        run_init(&one, stop, 2);
        run_feed(&one, ids, n, 1, SL_LENGTH);
        n_stopped += one.last.finish == SL_STOP;
        if (one.last.finish == SL_STOP && strcmp(cut, "zz"))
            assert_ptr_equal(strstr(whole, cut), whole + one.bytes);
        else if (!strstr(whole, cut))
            assert_string_equal(one.text, whole);
        for (size_t group = 2; group < 32; group = group * 2 + 1) {
            struct run r;
            run_init(&r, stop, 2);
            r.rules.stream_interval = 1 + (int)rnd(5);
            run_feed(&r, ids, n, group, SL_LENGTH);
            assert_string_equal(r.text, one.text);
            assert_int_equal(r.n_tokens, one.n_tokens);
            assert_int_equal(r.last.finish, one.last.finish);
            choice_fini(&r.c);
        }
        choice_fini(&one.c);
        mem_free(whole);
    }
    assert_true(n_stopped > 200);
}

static int setup(void **state)
{
    (void)state;
    return tokenizer_load(&tok, "models/pebble", NULL);
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_destroy(&tok);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search_is_the_definition),
        cmocka_unit_test(held_back_are_characters),
        cmocka_unit_test(cut_before_or_after),
        cmocka_unit_test(nothing_is_given_that_may_be_cut),
        cmocka_unit_test(stop_strings_wait_for_min_tokens),
        cmocka_unit_test(a_stop_token_is_not_text),
        cmocka_unit_test(intervals_coalesce),
        cmocka_unit_test(grouping_never_shows),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
