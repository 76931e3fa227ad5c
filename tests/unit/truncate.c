/* sl_text_truncate: what is cut from a text, or a pair, and what stays around it; with the ids that
 * transformers' tokenizer gives (truncation true or longest_first, either side).
 * SPDX-License-Identifier: Apache-2.0 */
#include "sluice.h"
#include "support/tempdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char dir[TEMPDIR_BYTES];
static struct sl_text *bert, *bare;

#define HEAD                                                                                   \
    "{\"added_tokens\":[{\"id\":1,\"content\":\"[CLS]\",\"special\":true},"                    \
    "{\"id\":2,\"content\":\"[SEP]\",\"special\":true}],\"normalizer\":null,"                  \
    "\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"decoder\":null,\"model\":{\"type\":"  \
    "\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_prefix\":\"##\","              \
    "\"max_input_chars_per_word\":100,\"vocab\":{\"[UNK]\":0,\"[CLS]\":1,\"[SEP]\":2,\"a\":3," \
    "\"b\":4,\"c\":5,\"d\":6,\"e\":7,\"x\":8,\"y\":9,\"z\":10}},\"post_processor\":"
#define TOKEN(t) "{\"SpecialToken\":{\"id\":\"" t "\",\"type_id\":0}}"
#define TEXT(t) "{\"Sequence\":{\"id\":\"" t "\",\"type_id\":0}}"

static const char with_tokens[] = HEAD
    "{\"type\":\"TemplateProcessing\",\"single\":[" TOKEN("[CLS]") "," TEXT("A") "," TOKEN("[SEP]") "],\"pair\":[" TOKEN(
        "[CLS]") "," TEXT("A") "," TOKEN("[SEP]") "," TEXT("B") "," TOKEN("[SEP]") "],\"special_"
                                                                                   "tokens\":{\"["
                                                                                   "CLS]\":{\"id\":"
                                                                                   "\"[CLS]\","
                                                                                   "\"ids\":[1],"
                                                                                   "\"tokens\":[\"["
                                                                                   "CLS]\"]},"
                                                                                   "\"[SEP]\":{"
                                                                                   "\"id\":\"[SEP]"
                                                                                   "\",\"ids\":[2],"
                                                                                   "\"tokens\":[\"["
                                                                                   "SEP]\"]}}}}";
static const char without_tokens[] = HEAD "null}";

static struct sl_text *open_with(const char *json)
{
    struct sl_text *t = NULL;
    struct sl_err err = {0};
    tempdir_write(dir, "tokenizer.json", json, strlen(json));
    if (sl_text_open(&t, dir, NULL, &err))
        fail_msg("%s", err.msg);
    return t;
}

static int open_both(void **state)
{
    (void)state;
    if (tempdir_make(dir))
        return -1;
    bert = open_with(with_tokens);
    bare = open_with(without_tokens);
    return 0;
}

static int close_both(void **state)
{
    static const char *const names[] = {"tokenizer.json"};
    (void)state;
    sl_text_close(&bert);
    sl_text_close(&bare);
    return tempdir_remove(dir, names, 1);
}

/* "1 3 2" */
static void say(char *buf, size_t n, const int32_t *ids, size_t count)
{
    size_t at = 0;
    buf[0] = 0;
    for (size_t i = 0; i < count && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%d", i ? " " : "", ids[i]);
}

static void one(const struct sl_text *t, const char *text, size_t keep, bool left, const char *want)
{
    int32_t *ids = NULL;
    size_t n = 0;
    char got[256];
    struct sl_err err = {0};
    if (sl_text_encode(t, text, strlen(text), true, &ids, &n, &err) ||
        sl_text_truncate(t, ids, &n, NULL, keep, left, &err))
        fail_msg("%s", err.msg);
    say(got, sizeof got, ids, n);
    assert_string_equal(got, want);
    sl_free(ids);
}

static void two(const struct sl_text *t, const char *a, const char *b, size_t keep, bool left,
                size_t first, const char *want)
{
    int32_t *ids = NULL;
    size_t n = 0, n_first = 0;
    char got[256];
    struct sl_err err = {0};
    if (sl_text_encode_pair(t, a, strlen(a), b, strlen(b), &ids, &n, &n_first, &err) ||
        sl_text_truncate(t, ids, &n, &n_first, keep, left, &err))
        fail_msg("%s", err.msg);
    say(got, sizeof got, ids, n);
    assert_string_equal(got, want);
    assert_int_equal(n_first, first);
    sl_free(ids);
}

static void a_text(void **state)
{
    (void)state;
    one(bert, "a b c d e", 7, false, "1 3 4 5 6 7 2");
    one(bert, "a b c d e", 5, false, "1 3 4 5 2");
    one(bert, "a b c d e", 5, true, "1 5 6 7 2");
    one(bert, "a b c d e", 3, false, "1 3 2");
    one(bert, "a b c d e", 2, true, "1 2");
    one(bert, "a b c d e", 1, false, "1");
    one(bert, "a b c d e", 0, false, "");
    one(bert, "", 2, false, "1 2");
    one(bare, "a b c d e", 2, false, "3 4");
    one(bare, "a b c d e", 2, true, "6 7");
}

static void a_pair(void **state)
{
    (void)state;
    two(bert, "a b c", "x y z", 9, false, 5, "1 3 4 5 2 8 9 10 2");
    /* The longer one loses first; of equals the first. */
    two(bert, "a b c d e", "x y", 8, false, 5, "1 3 4 5 2 8 9 2");
    two(bert, "a b c d e", "x y", 8, true, 5, "1 5 6 7 2 8 9 2");
    two(bert, "a", "x y z", 6, false, 3, "1 3 2 8 9 2");
    two(bert, "a", "x y z", 6, true, 3, "1 3 2 9 10 2");
    two(bert, "a b c", "x y z", 7, false, 4, "1 3 4 2 8 9 2");
    two(bert, "a b", "x y", 3, false, 2, "1 2 2");
    two(bert, "", "x y", 4, false, 2, "1 2 8 2");
}

static void other_tokens_are_refused(void **state)
{
    (void)state;
    struct sl_err err = {0};
    int32_t ids[] = {1};
    size_t n = 1;
    assert_int_equal(sl_text_truncate(bert, ids, &n, NULL, 0, false, &err), SL_EINVAL);
    assert_string_equal(err.msg, "these are not the tokens of such a text");
    assert_int_equal(n, 1);
}

static void pairs_as_one_text(void **state)
{
    (void)state;
    struct sl_err err = {0};
    char *text = NULL;
    size_t n = 0;
    static const char template[] =
        "{{ instruction }}|{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}";
    struct sl_text *t = NULL;
    assert_int_equal(sl_text_open(&t, NULL, template, &err), SL_OK);
    assert_int_equal(sl_text_pair(t, "a\0b", 3, "c", 1, NULL, &text, &n, &err), SL_OK);
    assert_int_equal(n, 4);
    assert_memory_equal(text, "a\0bc", 5);
    sl_free(text);
    assert_int_equal(
        sl_text_pair(t, "q 1", 3, "d \"2\"", 5, "{\"instruction\":\"do\"}", &text, &n, &err),
        SL_OK);
    assert_string_equal(text, "do|query=q 1;document=d \"2\";");
    sl_free(text);
    assert_int_equal(sl_text_pair(t, "\xff", 1, "c", 1, "{}", &text, &n, &err), SL_EINVAL);
    assert_string_equal(err.msg, "a pair of texts must be valid UTF-8");
    sl_text_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text),
        cmocka_unit_test(a_pair),
        cmocka_unit_test(other_tokens_are_refused),
        cmocka_unit_test(pairs_as_one_text),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
