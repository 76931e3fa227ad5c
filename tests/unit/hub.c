/* hub: which names pass, which files are chosen, where a token may go, and what the cache does.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "hub/cache.h"
#include "hub/download.h"
#include "hub/transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
#define OTHER "76543210fedcba9876543210fedcba9876543210"

/* ---- names ------------------------------------------------------------------------------------
 */

static void names(void **state)
{
    (void)state;
    static const char *const good[] = {"gpt2", "org/model", "Qwen/Qwen3-0.6B", "a/b_c.d-e", "0/0"};
    static const char *const bad[] = {
        "",     "/",    "/m",     "org/", "a/b/c",   "../m", "a/..", ".a/b", "a./b",      "-a/b",
        "a/b-", "a--b", "a/b..c", "a b",  "a/b.git", "a\\b", "~/m",  "./m",  "a/\xc3\xa4"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(repo_name_ok(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(repo_name_ok(bad[i]));
    assert_true(revision_ok("main") && revision_ok("refs/pr/1") && revision_ok("v1.0-rc_2"));
    assert_false(revision_ok("") || revision_ok("..") || revision_ok("a/../b") ||
                 revision_ok("/a") || revision_ok("a b") || revision_ok("a//b"));
    assert_true(commit_ok(COMMIT));
    assert_false(commit_ok(COMMIT "0") || commit_ok("0123") ||
                 commit_ok("0123456789ABCDEF0123456789abcdef01234567"));
}

static void file_names(void **state)
{
    (void)state;
    static const char *const good[] = {"config.json", "a/b/c", "..a",     "a..",
                                       "...",         " ",     "\xc3\xa4"};
    static const char *const bad[] = {"",    "/",    "/a",   "a/",     "a//b",  ".",
                                      "..",  "./a",  "a/..", "a/../b", "..\\a", "a\\b",
                                      "a\n", "\x7f", "a/.",  "../a"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(file_name_ok(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(file_name_ok(bad[i]));
    char long_part[300], long_path[2000];
    memset(long_part, 'a', 256);
    long_part[256] = '\0';
    assert_false(file_name_ok(long_part));
    for (size_t i = 0; i < 1500; i++)
        long_path[i] = i % 100 == 99 ? '/' : 'a';
    long_path[1500] = '\0';
    assert_false(file_name_ok(long_path));
}

static void etags(void **state)
{
    (void)state;
    char out[160];
    assert_true(etag_normalize("\"abc\"", out));
    assert_string_equal(out, "abc");
    assert_true(etag_normalize("W/\"abc-1\"", out));
    assert_string_equal(out, "abc-1");
    assert_true(etag_normalize("abc", out));
    static const char *const bad[] = {"",         "\"\"",    "\"..\"",          "\"a/b\"",
                                      "\"../x\"", "\"a b\"", "\".incomplete\"", "W/"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(etag_normalize(bad[i], out));
    char huge[400];
    memset(huge, 'a', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    assert_false(etag_normalize(huge, out));
}

static void origins(void **state)
{
    (void)state;
    assert_true(url_same_origin("https://hub.co", "https://HUB.co:443/x/y?z"));
    assert_true(url_same_origin("http://h/a", "http://h:80/b"));
    static const char *const others[] = {"http://hub.co",
                                         "https://hub.co:444",
                                         "https://hub.co.evil",
                                         "https://cdn.hub.co",
                                         "https://hub.co@evil",
                                         "https://u:p@hub.co",
                                         "x"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(url_same_origin("https://hub.co", others[i]));
    assert_true(url_check("https://h") && url_check("http://127.0.0.1:80/x"));
    assert_false(url_check("ftp://h") || url_check("file:///etc/passwd") || url_check("h") ||
                 url_check("") || url_check("http://u@h"));
    struct strbuf b;
    strbuf_init(&b, 0);
    url_quote(&b, "refs/pr/1 %?#", false);
    strbuf_addc(&b, ' ');
    url_quote(&b, "a/b c\xc3\xa4", true);
    assert_string_equal(b.data, "refs%2Fpr%2F1%20%25%3F%23 a/b%20c%C3%A4");
    strbuf_fini(&b);
}

/* ---- the listing ------------------------------------------------------------------------------
 */

static void listings(void **state)
{
    (void)state;
    static const char good[] = "{\"sha\":\"" COMMIT "\",\"siblings\":[{\"rfilename\":\"a/b\"},"
                               "{\"rfilename\":\"c\",\"size\":3}],\"x\":[1]}";
    struct listing l;
    struct sl_err err = {0};
    assert_int_equal(listing_parse(&l, good, sizeof good - 1, "org/m", &err), SL_OK);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.commit, COMMIT);
    assert_true(listing_has(&l, "a/b") && listing_has(&l, "c") && !listing_has(&l, "b"));
    listing_fini(&l);
    for (size_t n = 0; n < sizeof good - 1; n++) {
        err = (struct sl_err){0};
        assert_int_equal(listing_parse(&l, good, n, "org/m", &err), SL_EFORMAT);
        assert_non_null(strstr(err.msg, "org/m"));
    }
    static const char nul[] =
        "{\"sha\":\"" COMMIT "\",\"siblings\":[{\"rfilename\":\"a\\u0000b\"}]}";
    assert_int_equal(listing_parse(&l, nul, sizeof nul - 1, "org/m", NULL), SL_EFORMAT);
    for (long nth = 1; nth < 6; nth++) { /* each allocation in turn */
        mem_fail_nth(nth);
        enum sl_status st = listing_parse(&l, good, sizeof good - 1, "org/m", NULL);
        mem_fail_nth(0);
        assert_true(st == SL_OK || st == SL_ENOMEM);
        listing_fini(&l);
    }
}

struct shards {
    char text[200];
};

static enum sl_status add_shard(void *ctx, const char *shard, struct sl_err *err)
{
    struct shards *s = ctx;
    size_t n = strlen(s->text);
    (void)err;
    snprintf(s->text + n, sizeof s->text - n, "%s;", shard);
    return SL_OK;
}

static enum sl_status shards_of(const char *text, struct shards *s, struct sl_err *err)
{
    *s = (struct shards){0};
    *err = (struct sl_err){0};
    return index_shards("the.index.json", text, strlen(text), add_shard, s, err);
}

static void indexes(void **state)
{
    (void)state;
    struct shards s;
    struct sl_err err;
    assert_int_equal(shards_of("{\"weight_map\":{\"x\":\"b\",\"y\":\"a\",\"z\":\"b\"}}", &s, &err),
                     SL_OK);
    assert_string_equal(s.text, "a;b;");
    static const char *const bad[] = {"../a", "/a", "a/b", "", "..", "a\\\\b", "a\\u0000b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[100];
        snprintf(text, sizeof text, "{\"weight_map\":{\"w.1\":\"%s\"}}", bad[i]);
        assert_int_equal(shards_of(text, &s, &err), SL_EFORMAT);
        assert_non_null(strstr(err.msg, "the.index.json: tensor 'w.1'"));
        assert_string_equal(s.text, "");
    }
    static const char *const none[] = {
        "", "[]", "{}", "{\"weight_map\":{}}", "{\"weight_map\":1}", "{\"weight_map\":{\"a\":1}}"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(shards_of(none[i], &s, &err), SL_EFORMAT);
}

static bool in_text(const void *ctx, const char *name)
{
    char word[100];
    snprintf(word, sizeof word, "|%s|", name);
    return strstr(ctx, word) != NULL;
}

static void choices(void **state)
{
    (void)state;
    const char *file;
    assert_int_equal(weights_choose(in_text, "|pytorch_model.bin|model.safetensors|", &file),
                     WEIGHTS_SINGLE);
    assert_string_equal(file, "model.safetensors");
    assert_int_equal(weights_choose(in_text, "|model.safetensors.index.json|", &file),
                     WEIGHTS_INDEXED);
    assert_int_equal(weights_choose(in_text, "|pytorch_model.bin.index.json|", &file),
                     WEIGHTS_INDEXED);
    assert_int_equal(weights_choose(in_text, "|consolidated.safetensors|m.gguf|", &file),
                     WEIGHTS_NONE);
    assert_true(file_is_text("config.json", true) && file_is_text("chat_template.jinja", true));
    assert_true(file_is_text("additional_chat_templates/rag.jinja", true));
    assert_true(file_is_text("vocab.json", false) && file_is_text("qwen.tiktoken", false));
    assert_false(file_is_text("vocab.json", true) || file_is_text("x/config.json", true) ||
                 file_is_text("modeling_x.py", false) || file_is_text("x/y.tiktoken", false) ||
                 file_is_text("additional_chat_templates/x/y.jinja", true) ||
                 file_is_text("README.md", false) || file_is_text("training_args.bin", false));
}

/* ---- the cache --------------------------------------------------------------------------------
 */

static char folder[] = "/tmp/sluice-hub-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    memcpy(folder + sizeof folder - 7, "XXXXXX", 7);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char command[100];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void put(const struct repo_cache *c, const char *commit, const char *name, const char *blob,
                const char *text)
{
    char *path = cache_path(c, "blobs", blob);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    mem_free(path);
    assert_int_equal(cache_link(c, commit, name, blob, NULL), SL_OK);
}

static void the_cache(void **state)
{
    (void)state;
    struct repo_cache c;
    char commit[HUB_COMMIT + 1];
    assert_int_equal(cache_open(&c, folder, "org/m", NULL), SL_OK);
    assert_int_equal(cache_make_folders(&c, COMMIT, NULL), SL_OK);
    cache_read_ref(&c, "main", commit);
    assert_string_equal(commit, "");
    assert_int_equal(cache_write_ref(&c, "main", COMMIT, NULL), SL_OK);
    assert_int_equal(cache_write_ref(&c, "refs/pr/1", OTHER, NULL), SL_OK);
    cache_read_ref(&c, "refs/pr/1", commit);
    assert_string_equal(commit, OTHER);
    assert_int_equal(cache_write_ref(&c, "main", OTHER, NULL), SL_OK);
    cache_read_ref(&c, "main", commit);
    assert_string_equal(commit, OTHER);
    cache_read_ref(&c, COMMIT, commit);
    assert_string_equal(commit, COMMIT);

    put(&c, COMMIT, "config.json", "b1", "{}");
    assert_false(cache_is_whole(&c, COMMIT, true));
    assert_true(cache_is_whole(&c, COMMIT, false));
    put(&c, COMMIT, "model.safetensors.index.json", "b2",
        "{\"weight_map\":{\"x\":\"s1\",\"y\":\"s2\"}}");
    put(&c, COMMIT, "s1", "b3", "1");
    assert_false(cache_is_whole(&c, COMMIT, true));
    put(&c, COMMIT, "s2", "b3", "1");
    assert_true(cache_is_whole(&c, COMMIT, true));
    put(&c, COMMIT, "s2", "b1", "{}"); /* a link that is there is replaced */
    char *blob = cache_path(&c, "blobs", "b3");
    unlink(blob); /* a link that leads nowhere is no file */
    mem_free(blob);
    assert_false(cache_is_whole(&c, COMMIT, true));
    cache_close(&c);
}

static void locks(void **state)
{
    (void)state;
    struct repo_cache c;
    int a = -1, b = -1;
    assert_int_equal(cache_open(&c, folder, "org/m", NULL), SL_OK);
    assert_int_equal(cache_make_folders(&c, COMMIT, NULL), SL_OK);
    assert_int_equal(cache_try_lock(&c, "x", &a, NULL), SL_OK);
    assert_int_equal(cache_try_lock(&c, "x", &b, NULL), SL_EAGAIN);
    assert_int_equal(cache_try_lock(&c, "y", &b, NULL), SL_OK);
    close(a);
    close(b);
    assert_int_equal(cache_try_lock(&c, "x", &a, NULL), SL_OK);
    close(a);
    cache_close(&c);
}

/* Everything that the public calls allocate fails once. */
static void without_memory(void **state)
{
    (void)state;
    struct repo_cache c;
    struct sl_hub_config cfg;
    struct sl_hub_entry *list = NULL;
    size_t n = 0;
    char *dir = NULL;
    sl_hub_config_init(&cfg);
    cfg.cache_dir = folder;
    cfg.offline = true;
    assert_int_equal(cache_open(&c, folder, "org/m", NULL), SL_OK);
    assert_int_equal(cache_make_folders(&c, COMMIT, NULL), SL_OK);
    put(&c, COMMIT, "config.json", "b1", "{}");
    put(&c, COMMIT, "model.safetensors", "b2", "x");
    assert_int_equal(cache_write_ref(&c, "main", COMMIT, NULL), SL_OK);
    cache_close(&c);
    for (long nth = 1; nth < 60; nth++) {
        mem_fail_nth(nth);
        enum sl_status st = sl_hub_fetch(&cfg, "org/m", NULL, true, &dir, NULL);
        mem_fail_nth(0);
        if (st == SL_OK)
            sl_free(dir);
        mem_fail_nth(nth);
        st = sl_hub_list(&cfg, &list, &n, NULL);
        mem_fail_nth(0);
        if (st == SL_OK)
            sl_hub_list_free(list, n);
    }
    assert_int_equal(sl_hub_fetch(&cfg, "org/m", "main", true, &dir, NULL), SL_OK);
    assert_non_null(strstr(dir, "/models--org--m/snapshots/" COMMIT));
    sl_free(dir);
    assert_int_equal(sl_hub_list(&cfg, &list, &n, NULL), SL_OK);
    assert_int_equal(n, 1);
    assert_string_equal(list[0].refs, "main");
    assert_int_equal(list[0].bytes, 3);
    sl_hub_list_free(list, n);
    int64_t bytes = 0;
    for (long nth = 1; nth < 40; nth++) {
        mem_fail_nth(nth);
        (void)!sl_hub_remove(&cfg, "org/none", "main", &bytes, NULL);
        mem_fail_nth(0);
    }
    assert_int_equal(sl_hub_remove(&cfg, "org/m", NULL, &bytes, NULL), SL_OK);
    assert_int_equal(bytes, 3 + HUB_COMMIT); /* and the ref */
}

/* What is refused before anything is asked. */
static void arguments(void **state)
{
    (void)state;
    struct sl_hub_config cfg;
    struct sl_err err = {0};
    char *dir = NULL;
    sl_hub_config_init(&cfg);
    assert_int_equal(sl_hub_fetch(&cfg, "org/m", NULL, true, &dir, &err), SL_EINVAL);
    assert_non_null(strstr(err.msg, "no folder to keep it in"));
    cfg.cache_dir = folder;
    assert_int_equal(sl_hub_fetch(&cfg, "../m", NULL, true, &dir, NULL), SL_EINVAL);
    assert_int_equal(sl_hub_fetch(&cfg, "org/m", "../x", true, &dir, NULL), SL_EINVAL);
    cfg.token = "a\r\nb";
    err = (struct sl_err){0};
    assert_int_equal(sl_hub_fetch(&cfg, "org/m", NULL, true, &dir, &err), SL_EINVAL);
    assert_null(strstr(err.msg, "a\r"));
    cfg.token = NULL;
    cfg.endpoint = "ftp://x";
    assert_int_equal(sl_hub_fetch(&cfg, "org/m", NULL, true, &dir, NULL), SL_EINVAL);
    assert_null(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(file_names),
        cmocka_unit_test(etags),
        cmocka_unit_test(origins),
        cmocka_unit_test(listings),
        cmocka_unit_test(indexes),
        cmocka_unit_test(choices),
        cmocka_unit_test_setup_teardown(the_cache, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(locks, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(without_memory, make_folder, remove_folder),
        cmocka_unit_test(arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
