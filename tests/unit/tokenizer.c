/* tokenizer, detok: the bundled vocabulary, small hand-made ones of each kind, hostile files.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/strbuf.h"
#include "text/tokenizer.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct tokenizer *from_json(const char *json)
{
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    if (tokenizer_from_json(&t, json, strlen(json), &err))
        fail_msg("%s", err.msg);
    return t;
}

static void expect_ids(const struct tokenizer *t, const char *text, unsigned flags,
                       const int32_t *want, size_t n)
{
    struct token_vec v = {0};
    struct sl_err err = {0};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), flags, 0, &v, &err), SL_OK);
    if (v.n != n || (n && memcmp(v.ids, want, n * sizeof *want))) {
        for (size_t i = 0; i < v.n; i++)
            print_message("%d ", v.ids[i]);
        fail_msg("wrong ids for: %s", text);
    }
    token_vec_fini(&v);
}

#define EXPECT(t, text, flags, ...)                                   \
    do {                                                              \
        static const int32_t want[] = {__VA_ARGS__};                  \
        expect_ids(t, text, flags, want, sizeof want / sizeof *want); \
    } while (0)

/* Decodes whole and token by token; both must give `want`. */
static void expect_text(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip,
                        const char *want)
{
    char *text = NULL;
    size_t bytes = 0;
    struct sl_err err = {0};
    struct detok *d = NULL;
    struct strbuf b;
    assert_int_equal(tokenizer_decode(t, ids, n, skip, &text, &bytes, &err), SL_OK);
    assert_string_equal(text, want);
    assert_int_equal(bytes, strlen(want));
    mem_free(text);
    strbuf_init(&b, 0);
    assert_int_equal(detok_create(&d, t, skip, true, &err), SL_OK);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(detok_push(d, ids[i], &b), SL_OK);
        assert_false(b.len && (b.data[b.len - 1] & 0xC0) == 0xC0); /* ends in a lead byte */
    }
    assert_int_equal(detok_finish(d, &b), SL_OK);
    assert_string_equal(b.data ? b.data : "", want);
    detok_destroy(&d);
    strbuf_fini(&b);
}

#define EXPECT_TEXT(t, skip, want, ...)                            \
    do {                                                           \
        static const int32_t ids[] = {__VA_ARGS__};                \
        expect_text(t, ids, sizeof ids / sizeof *ids, skip, want); \
    } while (0)

/* ---- the bundled vocabulary -------------------------------------------------------------------
 */

static struct tokenizer *pebble(void)
{
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    if (tokenizer_load(&t, "models/pebble", &err))
        fail_msg("%s", err.msg);
    return t;
}

static void pebble_encodes(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    EXPECT(t, "How do I list the contents of a tar archive?", 0, 700, 392, 341, 612, 284, 2270, 319,
           273, 4531, 1814, 46);
    EXPECT(t, "<|im_start|>user\012hi<|im_end|>", ENCODE_ADD_SPECIAL, 1, 3, 326, 214, 7129, 4);
    EXPECT(t, "h\303\251llo w\303\266rld \360\237\230\200  12345\012\012 x", 0, 87, 5854, 2579, 286,
           143, 130, 97, 362, 236, 5905, 262, 238, 236, 236, 32, 33, 34, 35, 36, 331, 1084);
    EXPECT(t, "I'll we've IT'S  don't", 0, 56, 1454, 481, 1789, 341, 67, 8104, 236, 1283, 682);
    EXPECT(t, "", ENCODE_ADD_SPECIAL, 1);
    EXPECT(t, "<|im_start|>x", ENCODE_PLAIN, 278, 276, 294, 279, 103);
    tokenizer_destroy(&t);
}

static void pebble_round_trips(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    static const char *const texts[] = {
        "",
        " ",
        "\n\n\n",
        "plain",
        "h\xC3\xA9llo \xF0\x9F\x98\x80 w\xC3\xB6rld",
        "a\tb\r\nc   d",
        "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C 123456",
        "<|im_start|>x"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct token_vec v = {0};
        assert_int_equal(tokenizer_encode(t, texts[i], strlen(texts[i]), 0, 0, &v, NULL), SL_OK);
        expect_text(t, v.ids, v.n, false, texts[i]);
        token_vec_fini(&v);
    }
    tokenizer_destroy(&t);
}

static void pebble_vocab(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    const struct vocab *v = tokenizer_vocab(t);
    size_t n;
    assert_int_equal(v->n, 8192);
    assert_int_equal(v->flags[1], VOCAB_SPECIAL | VOCAB_ADDED);
    int32_t id = tokenizer_token_id(t, "<tool_call>");
    assert_true(id > 0);
    assert_int_equal(v->flags[id], VOCAB_ADDED);
    assert_string_equal(tokenizer_token(t, id), "<tool_call>");
    id = tokenizer_token_id(t, "\xC4\xA0the"); /* the space's stand-in */
    assert_true(id > 0);
    const uint8_t *bytes = vocab_bytes(v, id, &n);
    assert_int_equal(n, 4);
    assert_memory_equal(bytes, " the", 4);
    assert_null(tokenizer_token(t, 8192));
    assert_null(tokenizer_token(t, -1));
    assert_int_equal(tokenizer_token_id(t, "no such token"), -1);
    char *text;
    struct sl_err err = {0};
    static const int32_t outside[] = {8192};
    assert_int_equal(tokenizer_decode(t, outside, 1, false, &text, &n, &err), SL_EINVAL);
    tokenizer_destroy(&t);
}

static void half_characters_wait(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    struct detok *d = NULL;
    struct strbuf b;
    strbuf_init(&b, 0);
    /* F0 9F 98 80, a byte a token: nothing until the last */
    static const char *const bytes[] = {"\xC3\xB0", "\xC5\x81", "\xC4\xBA", "\xC4\xA2"};
    assert_int_equal(detok_create(&d, t, true, true, NULL), SL_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(b.len, 0);
        int32_t id = tokenizer_token_id(t, bytes[i]);
        assert_true(id >= 0);
        assert_true(tokenizer_vocab(t)->flags[id] & VOCAB_BYTE);
        assert_int_equal(detok_push(d, id, &b), SL_OK);
    }
    assert_string_equal(b.data, "\xF0\x9F\x98\x80");
    strbuf_clear(&b);
    assert_int_equal(detok_push(d, tokenizer_token_id(t, bytes[0]), &b), SL_OK);
    assert_int_equal(b.len, 0);
    assert_int_equal(detok_push(d, 100000000, &b), SL_OK); /* no token: nothing */
    assert_int_equal(detok_finish(d, &b), SL_OK);
    assert_string_equal(b.data, "\xEF\xBF\xBD");
    detok_destroy(&d);
    strbuf_fini(&b);
    tokenizer_destroy(&t);
}

static void invalid_utf8_is_repaired(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    struct token_vec a = {0}, b = {0};
    const char *bad = "x\xC3(\xE2\x82z\xED\xA0\x80";
    const char *good = "x\xEF\xBF\xBD(\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    assert_int_equal(tokenizer_encode(t, bad, strlen(bad), 0, 0, &a, NULL), SL_OK);
    assert_int_equal(tokenizer_encode(t, good, strlen(good), 0, 0, &b, NULL), SL_OK);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    token_vec_fini(&a);
    token_vec_fini(&b);
    tokenizer_destroy(&t);
}

static void a_limit_stops_encoding(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    struct token_vec v = {0};
    struct sl_err err = {0};
    const char *text = "one two three four";
    assert_int_equal(tokenizer_encode(t, text, strlen(text), 0, 3, &v, &err), SL_EINVAL);
    assert_int_equal(v.n, 0);
    assert_int_equal(tokenizer_encode(t, "one", 3, 0, 3, &v, NULL), SL_OK);
    token_vec_fini(&v);
    tokenizer_destroy(&t);
}

/* A megabyte without a space, and one of spaces: seconds would be quadratic time. */
static void long_words_are_not_quadratic(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    size_t n = 1 << 20;
    char *text = malloc(n);
    static const char *const fill[] = {"a", " ", "ab", "\n ", "the"};
    for (size_t f = 0; f < sizeof fill / sizeof *fill; f++) {
        struct token_vec v = {0};
        for (size_t i = 0; i < n; i++)
            text[i] = fill[f][i % strlen(fill[f])];
        assert_int_equal(tokenizer_encode(t, text, n, 0, 0, &v, NULL), SL_OK);
        assert_true(v.n > 0);
        token_vec_fini(&v);
    }
    free(text);
    tokenizer_destroy(&t);
}

static void *encode_often(void *arg)
{
    const struct tokenizer *t = arg;
    const char *text = "One tokenizer, many threads: caf\xC3\xA9 123 <|im_start|> and so on.";
    intptr_t sum = 0;
    for (int i = 0; i < 200; i++) {
        struct token_vec v = {0};
        char *back = NULL;
        size_t n = 0;
        if (tokenizer_encode(t, text, strlen(text), 0, 0, &v, NULL) ||
            tokenizer_decode(t, v.ids, v.n, false, &back, &n, NULL) || strcmp(back, text))
            return NULL;
        for (size_t k = 0; k < v.n; k++)
            sum += v.ids[k];
        mem_free(back);
        token_vec_fini(&v);
    }
    return (void *)sum;
}

static void threads_share_a_tokenizer(void **state)
{
    (void)state;
    struct tokenizer *t = pebble();
    pthread_t thread[4];
    void *want = encode_often(t), *got;
    assert_non_null(want);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, encode_often, t), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], &got);
        assert_ptr_equal(got, want);
    }
    tokenizer_destroy(&t);
}

/* ---- small vocabularies of each kind ----------------------------------------------------------
 */

static void merges_by_rank_leftmost_first(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(
        "{\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"fuse_unk\":true,"
        "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"aa\":5,\"abc\":6,\"?\":7},"
        "\"merges\":[\"b c\",[\"a\",\"b\"],\"a a\",\"a bc\"]}}");
    EXPECT(t, "abc", 0, 6);    /* bc first, then a bc */
    EXPECT(t, "aaa", 0, 5, 0); /* the leftmost of equals */
    EXPECT(t, "abab", 0, 3, 3);
    EXPECT(t, "xyabzz", 0, 7, 3, 7);     /* unknowns fuse */
    EXPECT_TEXT(t, false, "ab c", 3, 2); /* no decoder: joined by spaces */
    tokenizer_destroy(&t);
}

static void added_tokens_match_as_told(void **state)
{
    (void)state;
    struct tokenizer *t =
        from_json("{\"added_tokens\":["
                  "{\"id\":0,\"content\":\"<l>\",\"lstrip\":true,\"special\":true},"
                  "{\"id\":0,\"content\":\"<r>\",\"rstrip\":true,\"special\":false},"
                  "{\"id\":0,\"content\":\"wo\",\"single_word\":true},"
                  "{\"id\":0,\"content\":\"<l>>\",\"normalized\":false}],"
                  "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},"
                  "\"behavior\":\"Isolated\",\"invert\":false},"
                  "\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"?\","
                  "\"vocab\":{\"?\":0,\" \":1,\"w\":2,\"o\":3}}}");
    EXPECT(t, "w  <l> o", 0, 2, 4, 1, 3);  /* takes the spaces on its left */
    EXPECT(t, "w <r>  o", 0, 2, 1, 5, 3);  /* on its right */
    EXPECT(t, "<l>>o", 0, 7, 3);           /* the longest */
    EXPECT(t, "wo wow", 0, 6, 1, 2, 3, 2); /* a word of its own */
    EXPECT(t, "<l>", ENCODE_PLAIN, 0, 0, 0);
    EXPECT(t, "<r>", ENCODE_PLAIN, 5); /* not special */
    EXPECT_TEXT(t, true, "w <r>", 2, 4, 5);
    tokenizer_destroy(&t);
}

static void splits_behave(void **state)
{
    (void)state;
    static const struct {
        const char *behavior;
        int32_t ids[8];
        size_t n;
    } cases[] = {{"Removed", {1, 1, 1}, 3},
                 {"Isolated", {1, 2, 1, 2, 2, 1}, 6},
                 {"MergedWithPrevious", {3, 3, 2, 1}, 4},
                 {"MergedWithNext", {1, 4, 2, 4}, 4},
                 {"Contiguous", {1, 2, 1, 5, 1}, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[512];
        snprintf(
            json, sizeof json,
            "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"-\"},\"behavior\":"
            "\"%s\",\"invert\":false},\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"?\","
            "\"vocab\":{\"?\":0,\"a\":1,\"-\":2,\"a-\":3,\"-a\":4,\"--\":5}}}",
            cases[i].behavior);
        struct tokenizer *t = from_json(json);
        expect_ids(t, "a-a--a", 0, cases[i].ids, cases[i].n);
        tokenizer_destroy(&t);
    }
}

static void unigram_takes_the_best_path(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(
        "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"<unk>\",0],[\"a\",0],"
        "[\"b\",0],[\"c\",0],[\"d\",0],[\"cd\",1],[\"ab\",2],[\"abc\",5],[\"abcd\",10]]}}");
    EXPECT(t, "abcd", 0, 8);
    EXPECT(t, "abcdacdxx", 0, 8, 1, 5, 0); /* unknowns fuse */
    tokenizer_destroy(&t);
}

static void wordpiece_is_greedy(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(
        "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"decoder\":{\"type\":\"WordPiece\","
        "\"prefix\":\"##\",\"cleanup\":true},\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"?\","
        "\"continuing_subword_prefix\":\"##\",\"max_input_chars_per_word\":5,"
        "\"vocab\":{\"?\":0,\"un\":1,\"##a\":2,\"##able\":3,\".\":4,\"u\":5}}}");
    EXPECT(t, "una una.", 0, 1, 2, 1, 2, 4);
    EXPECT(t, "unx u", 0, 0, 5); /* a word that does not come out even */
    EXPECT(t, "unable", 0, 0);   /* too many characters */
    EXPECT_TEXT(t, false, "una u.", 1, 2, 5, 4);
    tokenizer_destroy(&t);
}

static void byte_fallback_waits_for_the_run(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(
        "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"
        "{\"String\":\"_\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
        "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"_a\":0,\"<0xC3>\":1,"
        "\"<0xA9>\":2,\"<0x41>\":3,\"b\":4},\"merges\":[]}}");
    EXPECT(t, "b\xC3\xA9", 0, 4, 1, 2);
    EXPECT_TEXT(t, false, "a a", 0, 0);
    EXPECT_TEXT(t, false,
                "\xC3\xA9"
                "A a",
                1, 2, 3, 0);
    EXPECT_TEXT(t, false, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", 1, 2, 1); /* not all valid */
    struct strbuf b;
    struct detok *d = NULL;
    static const int32_t prompt[] = {4, 0};
    strbuf_init(&b, 0);
    assert_int_equal(detok_create(&d, t, true, true, NULL), SL_OK);
    assert_int_equal(detok_prime(d, prompt, 2), SL_OK);
    assert_int_equal(detok_push(d, 0, &b), SL_OK); /* its space stays behind a prompt */
    assert_int_equal(detok_finish(d, &b), SL_OK);
    assert_string_equal(b.data, " a");
    detok_destroy(&d);
    strbuf_fini(&b);
    tokenizer_destroy(&t);
}

/* ---- files that mean harm ---------------------------------------------------------------------
 */

static void expect_refused(const char *json, const char *part)
{
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    enum sl_status st = tokenizer_from_json(&t, json, strlen(json), &err);
    if (!st)
        fail_msg("accepted: %.200s", json);
    assert_null(t);
    if (!strstr(err.msg, part))
        fail_msg("\"%s\" does not say \"%s\"", err.msg, part);
}

static void broken_files_are_refused(void **state)
{
    (void)state;
    expect_refused("", "line 1");
    expect_refused("[]", "not an object");
    expect_refused("{\"model\":", "line 1");
    expect_refused("{}", "\"model\"");
    expect_refused("{\"model\":{\"type\":\"Nonsense\"}}", "Nonsense");
    expect_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "empty");
    expect_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967296},\"merges\":[]}}",
                   "usable id");
    expect_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}",
                   "usable id");
    expect_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}",
                   "not all in the vocabulary");
    expect_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}",
                   "not a pair");
    expect_refused("{\"model\":{\"type\":\"Unigram\",\"unk_id\":7,\"vocab\":[[\"a\",0]]}}",
                   "unk_id");
}

#define WITH(part) \
    "{" part ",\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{\"a\":0}}}"

static void broken_stages_are_refused(void **state)
{
    (void)state;
    expect_refused(WITH("\"normalizer\":{\"type\":\"Nope\"}"), "Nope");
    expect_refused(WITH("\"pre_tokenizer\":{\"type\":\"Nope\"}"), "Nope");
    expect_refused(WITH("\"decoder\":{\"type\":\"Nope\"}"), "Nope");
    expect_refused(WITH("\"post_processor\":{\"type\":\"Nope\"}"), "Nope");
    expect_refused(WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
                        "\"behavior\":\"Isolated\",\"invert\":false}"),
                   "pattern");
    expect_refused(
        WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"////\"}"),
        "truncated");
    expect_refused(WITH("\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"x\",9],"
                        "\"cls\":[\"y\",0]}"),
                   "vocabulary of 1");
}

static void depth_is_bounded(void **state)
{
    (void)state;
    struct strbuf json;
    strbuf_init(&json, 0);
    strbuf_adds(&json, "{\"normalizer\":");
    for (int i = 0; i < 500; i++)
        strbuf_adds(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
    strbuf_adds(&json, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 500; i++)
        strbuf_adds(&json, "]}");
    strbuf_adds(&json,
                ",\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{\"a\":0}}}");
    expect_refused(json.data, "too deep");
    strbuf_clear(&json);
    for (int i = 0; i < 100000; i++)
        strbuf_addc(&json, '[');
    expect_refused(json.data, "depth");
    strbuf_fini(&json);
}

/* Each step of the pattern tries two ways: 2^40 of them, if it were let. */
static void a_runaway_pattern_ends(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(
        WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?:x|x|xx)+z\"},"
             "\"behavior\":\"Isolated\",\"invert\":false}"));
    char text[65] = {0};
    struct token_vec v = {0};
    struct sl_err err = {0};
    memset(text, 'x', 62);
    memcpy(text + 62, "-z", 2);
    assert_int_equal(tokenizer_encode(t, text, 64, 0, 0, &v, &err), SL_EINVAL);
    assert_non_null(strstr(err.msg, "too expensive"));
    token_vec_fini(&v);
    tokenizer_destroy(&t);
}

/* Ordering combining marks step by step, as utf8proc does, would take the square of their number.
 */
static void marks_are_not_quadratic(void **state)
{
    (void)state;
    struct tokenizer *t = from_json(WITH("\"normalizer\":{\"type\":\"NFC\"}"));
    size_t n = 1 << 20;
    char *text = malloc(n);
    struct token_vec v = {0};
    for (size_t i = 0; i < n; i += 2) /* U+0301 (230), then U+0316 (220) */
        memcpy(text + i, i < n / 2 ? "\xCC\x81" : "\xCC\x96", 2);
    assert_int_equal(tokenizer_encode(t, text, n, 0, 0, &v, NULL), SL_OK);
    token_vec_fini(&v);
    free(text);
    tokenizer_destroy(&t);
}

/* Every allocation of a load and an encode fails once: an error each time, and nothing leaks. */
static void no_memory_is_an_error(void **state)
{
    (void)state;
    static const char json[] =
        "{\"added_tokens\":[{\"id\":2,\"content\":\"<s>\",\"special\":true}],"
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Metaspace\","
        "\"replacement\":\"_\",\"prepend_scheme\":\"always\"},\"decoder\":{\"type\":\"Metaspace\","
        "\"replacement\":\"_\"},\"model\":{\"type\":\"Unigram\",\"unk_id\":0,"
        "\"vocab\":[[\"?\",0],[\"_a\",-1]]}}";
    bool done = false;
    for (long nth = 1; !done && nth < 500; nth++) {
        struct tokenizer *t = NULL;
        struct token_vec v = {0};
        struct sl_err err = {0};
        mem_fail_nth(nth);
        enum sl_status st = tokenizer_from_json(&t, json, sizeof json - 1, &err);
        if (!st)
            st = tokenizer_encode(t, "a e\xCC\x81<s>", 8, 0, 0, &v, &err);
        mem_fail_nth(0);
        if (st)
            assert_int_equal(st, SL_ENOMEM);
        done = !st;
        token_vec_fini(&v);
        tokenizer_destroy(&t);
    }
    assert_true(done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pebble_encodes),
        cmocka_unit_test(pebble_round_trips),
        cmocka_unit_test(pebble_vocab),
        cmocka_unit_test(half_characters_wait),
        cmocka_unit_test(invalid_utf8_is_repaired),
        cmocka_unit_test(a_limit_stops_encoding),
        cmocka_unit_test(long_words_are_not_quadratic),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(merges_by_rank_leftmost_first),
        cmocka_unit_test(added_tokens_match_as_told),
        cmocka_unit_test(splits_behave),
        cmocka_unit_test(unigram_takes_the_best_path),
        cmocka_unit_test(wordpiece_is_greedy),
        cmocka_unit_test(byte_fallback_waits_for_the_run),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(broken_stages_are_refused),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(a_runaway_pattern_ends),
        cmocka_unit_test(marks_are_not_quadratic),
        cmocka_unit_test(no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
