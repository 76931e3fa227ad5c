/* safetensors: what headers may say, and one clear error for everything that they may not.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"

#include "base/mem.h"
#include "support/tempdir.h"

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

/* ---- helpers ------------------------------------------------------------------------------- */

/* A file in memory: length, header, n_data bytes of zeros. Free with free(). */
static unsigned char *make_file(const char *header, size_t n_data, size_t *n)
{
    size_t len = strlen(header);
    unsigned char *f = calloc(1, 8 + len + n_data);
    assert_non_null(f);
    for (int i = 0; i < 8; i++)
        f[i] = (unsigned char)((uint64_t)len >> 8 * i);
    memcpy(f + 8, header, len);
    *n = 8 + len + n_data;
    return f;
}

static enum sl_status parse(const char *header, size_t n_data, struct safetensors **out,
                            struct sl_err *err)
{
    size_t n;
    unsigned char *f = make_file(header, n_data, &n);
    enum sl_status st = safetensors_parse(out, f, n, "f.safetensors", err);
    free(f); /* tensors' data pointers dangle: tests that call this do not follow them */
    return st;
}

/* The header is refused, and the message has both texts. */
static void refused(const char *header, size_t n_data, const char *says, const char *and_says)
{
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(parse(header, n_data, &s, &err), SL_EFORMAT);
    assert_null(s);
    if (!strstr(err.msg, says) || !strstr(err.msg, and_says) || !strstr(err.msg, "f.safetensors"))
        fail_msg("'%s' does not say '%s' and '%s'", err.msg, says, and_says);
}

static char dir[TEMPDIR_BYTES];

static int make_dir(void **state)
{
    (void)state;
    return tempdir_make(dir);
}

static void write_bytes(const char *name, const void *bytes, size_t n)
{
    tempdir_write(dir, name, bytes, n);
}

static void write_file(const char *name, const char *header, size_t n_data)
{
    size_t n;
    unsigned char *f = make_file(header, n_data, &n);
    write_bytes(name, f, n);
    free(f);
}

static void remove_file(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static int remove_dir(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "a",
                                        "b"};
    return tempdir_remove(dir, names, sizeof names / sizeof *names);
}

static void open_refused(enum sl_status want, const char *says, const char *and_says)
{
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(safetensors_open(&s, dir, &err), want);
    assert_null(s);
    if (!strstr(err.msg, says) || !strstr(err.msg, and_says))
        fail_msg("'%s' does not say '%s' and '%s'", err.msg, says, and_says);
}

/* ---- good files ---------------------------------------------------------------------------- */

static void reads_what_is_there(void **state)
{
    (void)state;
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    size_t n;
    unsigned char *f =
        make_file("{\"__metadata__\":{\"format\":\"pt\"},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},"
                  "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,4],\"data_offsets\":[8,8]},"
                  "\"scalar\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[32,40]},"
                  "\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[0,8]}}   ",
                  40, &n);
    assert_int_equal(safetensors_parse(&s, f, n, "f", &err), SL_OK);
    assert_int_equal(safetensors_count(s), 4);
    assert_string_equal(safetensors_at(s, 0)->name, "a");
    const struct st_tensor *b = safetensors_find(s, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, ST_F32);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dim[1], 3);
    assert_ptr_equal(b->data, f + n - 40 + 8);
    assert_int_equal(safetensors_find(s, "scalar")->n_dims, 0);
    assert_null(safetensors_find(s, "c"));
    safetensors_close(&s);
    free(f);
    assert_int_equal(parse("{}", 0, &s, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 0);
    assert_null(safetensors_find(s, "a"));
    safetensors_close(&s);
}

/* ---- lies ---------------------------------------------------------------------------------- */

#define T(name, dtype, shape, from, to)                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]" \
    "}"

static void lengths_are_checked(void **state)
{
    (void)state;
    static const unsigned char huge[16] = {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'};
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    for (size_t n = 0; n < sizeof huge; n++) {
        err.code = SL_OK;
        assert_int_equal(safetensors_parse(&s, huge, n, "f", &err), SL_EFORMAT);
        assert_non_null(strstr(err.msg, n < 8 ? "no safetensors file" : "truncated?"));
    }
    size_t n = 8 + (17u << 20);
    unsigned char *big = malloc(n);
    memset(big, ' ', n);
    memcpy(big, (unsigned char[]){0, 0, 0x10, 1, 0, 0, 0, 0}, 8); /* 17 MiB */
    err.code = SL_OK;
    assert_int_equal(safetensors_parse(&s, big, n, "f", &err), SL_EFORMAT);
    assert_non_null(strstr(err.msg, "a header of 17825792 bytes"));
    free(big);
}

static void json_is_checked(void **state)
{
    (void)state;
    refused("", 0, "not valid JSON", "");
    refused("[]", 0, "object is expected", "");
    refused("{\"a\":", 0, "not valid JSON", "");
    refused("{} {}", 0, "not valid JSON", "");
    refused("{\"a\":{\"shape\":[[[1]]]}}", 0, "nested deeper", "3");
    refused("{\"a\\u0000b\":{}}", 0, "not valid JSON", "");
    refused("{\"\xff\":{}}", 0, "not valid JSON", "");
    refused("{" T("a", "U8", "[1]", "0", "1") "," T("a", "U8", "[1]", "0", "1") "}", 1, "duplicate",
            "a");
    /* 100,000 levels must not reach the parser's stack. */
    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = 0;
    refused(deep, 0, "nested deeper", "");
    free(deep);
}

static void entries_are_checked(void **state)
{
    (void)state;
    refused("{\"w\":7}", 0, "'w'", "not an object");
    refused("{\"w\":{}}", 0, "'w'", "no dtype");
    refused("{\"w\":{\"dtype\":3}}", 0, "'w'", "no dtype");
    refused("{" T("w", "F12", "[1]", "0", "1") "}", 1, "'w'", "unknown dtype 'F12'");
    refused("{\"w\":{\"dtype\":\"U8\"}}", 0, "'w'", "no shape");
    refused("{" T("w", "U8", "[-1]", "0", "1") "}", 1, "'w'", "dimension 0");
    refused("{" T("w", "U8", "[1.0]", "0", "1") "}", 1, "'w'", "dimension 0");
    refused("{" T("w", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, "'w'", "9 dimensions");
    refused("{" T("w", "F32", "[4294967296,4294967296]", "0", "1") "}", 1, "'w'", "larger than");
    refused("{" T("w", "F32", "[4611686018427387904,2]", "0", "0") "}", 1, "'w'", "do not match");
    refused("{" T("w", "U8", "[99999999999999999999]", "0", "1") "}", 1, "not valid JSON", "");
    refused("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "'w'",
            "data_offsets");
    refused("{" T("w", "U8", "[1]", "-1", "0") "}", 1, "'w'", "data_offsets");
    refused("{" T("w", "U8", "[1]", "1", "0") "}", 1, "'w'", "before it begins");
    refused("{" T("w", "U8", "[2]", "0", "2") "}", 1, "'w'", "only 1 (truncated?)");
    refused("{" T("w", "U8", "[1]", "0", "9223372036854775807") "}", 1, "'w'", "truncated?");
    refused("{" T("w", "F32", "[1]", "0", "3") "}", 3, "'w'", "do not match");
    char name[700], header[900];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    snprintf(header, sizeof header,
             "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", name);
    refused(header, 0, "a name of 699 bytes", "");
}

static void ranges_cover_the_data(void **state)
{
    (void)state;
    refused("{" T("a", "U8", "[2]", "0", "2") "," T("b", "U8", "[2]", "1", "3") "}", 3, "'b'",
            "overlaps that of 'a'");
    refused("{" T("a", "U8", "[2]", "0", "2") "," T("b", "U8", "[1]", "0", "1") "}", 2, "overlaps",
            "'a'");
    refused("{" T("a", "U8", "[1]", "0", "1") "," T("b", "U8", "[1]", "2", "3") "}", 3, "'b'",
            "1 bytes before its data");
    refused("{" T("a", "U8", "[1]", "1", "2") "}", 2, "'a'", "1 bytes before");
    refused("{" T("a", "U8", "[1]", "0", "1") "}", 5, "4 bytes at the end", "");
    refused("{}", 1, "1 bytes at the end", "");
}

/* ---- folders ------------------------------------------------------------------------------- */

static const char shard_a[] = "{" T("x", "U8", "[4]", "0", "4") "}";
static const char shard_b[] = "{" T("y", "U8", "[4]", "0", "4") "}";

static void write_index(const char *map)
{
    char text[512];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":8},\"weight_map\":%s}", map);
    write_bytes("model.safetensors.index.json", text, strlen(text));
}

static void folders(void **state)
{
    (void)state;
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    open_refused(SL_ENOTFOUND, dir, "neither model.safetensors nor");
    write_file("a", shard_a, 4);
    write_file("b", shard_b, 4);
    write_index("{\"x\":\"a\",\"y\":\"b\"}");
    assert_int_equal(safetensors_open(&s, dir, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 2);
    assert_non_null(strstr(safetensors_find(s, "y")->file, "/b"));
    safetensors_close(&s);

    write_index("{\"x\":\"a\",\"y\":\"a\"}");
    open_refused(SL_EFORMAT, "'y' is not in a", "index");
    write_index("{\"x\":\"a\",\"y\":\"b\",\"z\":\"b\"}");
    open_refused(SL_EFORMAT, "'z' is not in b", "index");
    write_index("{\"y\":\"b\",\"x\":\"c\"}");
    open_refused(SL_ENOTFOUND, "/c", "No such file");
    static const char *const outside[] = {"../b", "/etc/passwd", "..", ".", "", "d/b"};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char map[128];
        snprintf(map, sizeof map, "{\"x\":\"a\",\"y\":\"%s\"}", outside[i]);
        write_index(map);
        open_refused(SL_EFORMAT, "'y'", "not the name of a file in this folder");
    }
    write_index("{\"x\":\"a\",\"y\":5}");
    open_refused(SL_EFORMAT, "'y'", "not the name of a file");
    write_index("{}");
    open_refused(SL_EFORMAT, "no weight_map", "");

    write_file("b", "{" T("y", "U8", "[2]", "0", "2") "," T("w", "U8", "[2]", "2", "4") "}", 4);
    write_index("{\"x\":\"a\",\"y\":\"b\"}");
    open_refused(SL_EFORMAT, "tensor 'w'", "not in the index");
    write_file("b", shard_a, 4);
    open_refused(SL_EFORMAT, "tensor 'x' is in", "too");
    write_file("b", shard_b, 3);
    open_refused(SL_EFORMAT, "/b: tensor 'y'", "truncated?");
    write_bytes("b", "", 0);
    open_refused(SL_EFORMAT, "/b", "no safetensors file");

    write_file("model.safetensors", shard_a, 4); /* wins over the index */
    assert_int_equal(safetensors_open(&s, dir, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 1);
    safetensors_close(&s);
}

/* Every allocation fails once: an error each time, nothing leaks (ASan looks), then it works. */
static void survives_no_memory(void **state)
{
    (void)state;
    remove_file("model.safetensors");
    write_file("a", shard_a, 4);
    write_file("b", shard_b, 4);
    write_index("{\"x\":\"a\",\"y\":\"b\"}");
    for (long nth = 1;; nth++) {
        struct safetensors *s = NULL;
        struct sl_err err = {0};
        mem_fail_nth(nth);
        enum sl_status st = safetensors_open(&s, dir, &err);
        mem_fail_nth(0);
        if (st == SL_OK) {
            safetensors_close(&s);
            assert_true(nth > 5);
            return;
        }
        assert_int_equal(st, err.code);
        assert_int_equal(st, SL_ENOMEM);
        assert_null(s);
    }
}

static void reads_pebble(void **state)
{
    (void)state;
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(safetensors_open(&s, "models/pebble", &err), SL_OK);
    const struct st_tensor *t = safetensors_find(s, "model.layers.7.mlp.up_proj.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, ST_BF16);
    assert_int_equal(t->dim[0], 640);
    assert_int_equal(t->dim[1], 384);
    safetensors_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_is_there),
        cmocka_unit_test(lengths_are_checked),
        cmocka_unit_test(json_is_checked),
        cmocka_unit_test(entries_are_checked),
        cmocka_unit_test(ranges_cover_the_data),
        cmocka_unit_test_setup_teardown(folders, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(survives_no_memory, make_dir, remove_dir),
        cmocka_unit_test(reads_pebble),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
