/* pytorch_model.bin: what a pickle and its archive may say, and one clear refusal for everything
 * that they may not. tests/golden/families/opt-bin has files that torch itself wrote.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "model/safetensors.h"
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

/* ---- writing files ------------------------------------------------------------------------- */

/* A zip archive under construction: members first, then their directory. */
struct file {
    unsigned char *bytes, directory[4096];
    size_t n, n_directory;
    int n_members;
};

static void add_bytes(struct file *f, const void *p, size_t n)
{
    f->bytes = realloc(f->bytes, f->n + n + 1);
    assert_non_null(f->bytes);
    if (n)
        memcpy(f->bytes + f->n, p, n);
    f->n += n;
}

static void put(unsigned char *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static void member(struct file *f, const char *name, const void *data, size_t n)
{
    unsigned char local[30] = {'P', 'K', 3, 4}, *c = f->directory + f->n_directory;
    size_t n_name = strlen(name);
    assert_true(f->n_directory + 46 + n_name <= sizeof f->directory);
    put(local + 18, n, 4);
    put(local + 22, n, 4);
    put(local + 26, n_name, 2);
    put(local + 28, 5, 2); /* an extra field that only the local header has */
    memset(c, 0, 46);
    memcpy(c, "PK\1\2", 4);
    put(c + 20, n, 4);
    put(c + 24, n, 4);
    put(c + 28, n_name, 2);
    put(c + 42, f->n, 4);
    memcpy(c + 46, name, n_name);
    f->n_directory += 46 + n_name;
    f->n_members++;
    add_bytes(f, local, sizeof local);
    add_bytes(f, name, n_name);
    add_bytes(f, "\0\0\0\0\0", 5);
    add_bytes(f, data, n);
}

static void finish(struct file *f)
{
    unsigned char end[22] = {'P', 'K', 5, 6};
    put(end + 8, (uint64_t)f->n_members, 2);
    put(end + 10, (uint64_t)f->n_members, 2);
    put(end + 12, f->n_directory, 4);
    put(end + 16, f->n, 4);
    add_bytes(f, f->directory, f->n_directory);
    add_bytes(f, end, sizeof end);
}

/* An archive with this pickle and the storages "0" (24 bytes: 1 to 6 as f32) and "1" (8 bytes). */
static struct file archive(const void *pickle, size_t n)
{
    static const float six[6] = {1, 2, 3, 4, 5, 6};
    struct file f = {0};
    member(&f, "m/data.pkl", pickle, n);
    member(&f, "m/byteorder", "little", 6);
    member(&f, "m/data/0", six, sizeof six);
    member(&f, "m/data/1", "abcdefgh", 8);
    finish(&f);
    return f;
}

#define BEGIN "\x80\x02}("
#define KEY(length, name) "X" length "\0\0\0" name
#define STORAGE(type, key, n) \
    "(X\7\0\0\0storagectorch\n" type "Storage\nX\1\0\0\0" key "X\3\0\0\0cpuK" n "tQ"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define NO_HOOKS \
    "\x89"       \
    "ccollections\nOrderedDict\n)R"
/* Arguments as opcodes: a tensor of `size` and `stride`. */
#define TENSOR(storage, offset, size, stride) \
    REBUILD "(" storage "K" offset size stride NO_HOOKS "tR"
#define END "u."

static enum sl_status parse(const void *pickle, size_t n, struct safetensors **out,
                            struct sl_err *err, struct file *f)
{
    *f = archive(pickle, n);
    return safetensors_parse_torch(out, f->bytes, f->n, "f.bin", err);
}

static void says(const struct sl_err *err, const char *what)
{
    if (!strstr(err->msg, what) || !strstr(err->msg, "f.bin"))
        fail_msg("'%s' does not say '%s'", err->msg, what);
}

static void refused_bytes(const void *pickle, size_t n, const char *what)
{
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    struct file f;
    if (parse(pickle, n, &s, &err, &f) != SL_EFORMAT)
        fail_msg("'%s' was expected, but it is read", what);
    assert_null(s);
    says(&err, what);
    free(f.bytes);
}
#define REFUSED(pickle, what) refused_bytes(pickle, sizeof pickle - 1, what)

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

static int remove_dir(void **state)
{
    (void)state;
    static const char *const names[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "a",
                                        "b", "model.safetensors"};
    return tempdir_remove(dir, names, sizeof names / sizeof *names);
}

/* ---- good files ---------------------------------------------------------------------------- */

static const char two_tensors[] = BEGIN KEY("\1", "w")
    TENSOR(STORAGE("Float", "0", "\6"), "\0", "K\2K\3\x86", "K\3K\1\x86") KEY("\4", "tied")
        TENSOR(STORAGE("Float", "0", "\6"), "\2", "K\4\x85", "K\1\x85") KEY("\1", "h")
            TENSOR(STORAGE("Half", "1", "\4"), "\0", "K\1K\4\x86", "K\7K\1\x86") KEY("\5", "empty")
                TENSOR(STORAGE("Long", "1", "\1"), "\1", "K\0K\5\x86", "K\5K\1\x86")
                    KEY("\6", "scalar") TENSOR(STORAGE("Long", "1", "\1"), "\0", ")", ")") END;

static void reads_what_is_there(void **state)
{
    (void)state;
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    struct file f;
    if (parse(two_tensors, sizeof two_tensors - 1, &s, &err, &f))
        fail_msg("%s", err.msg);
    assert_int_equal(safetensors_count(s), 5);
    const struct st_tensor *w = safetensors_find(s, "w"), *tied = safetensors_find(s, "tied");
    assert_int_equal(w->dtype, ST_F32);
    assert_int_equal(w->n_dims, 2);
    assert_int_equal(w->dim[1], 3);
    float first;
    memcpy(&first, w->data, sizeof first);
    assert_true(first == 1);
    memcpy(&first, tied->data, sizeof first);
    assert_true(first == 3); /* from the third on, of the same storage */
    assert_int_equal(tied->bytes, 16);
    assert_int_equal(safetensors_find(s, "h")->dtype, ST_F16);
    assert_memory_equal(safetensors_find(s, "h")->data, "abcdefgh", 8);
    assert_int_equal(safetensors_find(s, "empty")->bytes, 0);
    assert_int_equal(safetensors_find(s, "scalar")->n_dims, 0);
    safetensors_close(&s);
    free(f.bytes);
}

/* An OrderedDict with attributes, memo, frames and protocol 4's strings. */
static void reads_other_dialects(void **state)
{
    (void)state;
    static const char ordered[] =
        "\x80\x02"
        "ccollections\nOrderedDict\nq\0)Rq\1(" KEY("\1", "w")
            TENSOR(STORAGE("BFloat16", "1", "\4"), "\0", "K\4\x85q\2",
                   "K\1\x85") "u}X\11\0\0\0_metadatah\0)R(X\0\0\0\0}X\7\0\0\0versionK\1susb.";
    static const char frames[] = "\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(\x8c\1w\x8c\x0ctorch._"
                                 "utils\x8c\x12_rebuild_tensor_v2\x93"
                                 "((\x8c\7storage\x8c\5torch\x8c\x0b"
                                 "ByteStorage\x93\x8c\1"
                                 "1\x8c\3cpuK\x08tQK\0"
                                 "\x8a\1\x08\x85K\1\x85\x89}tRu.";
    static const struct {
        const char *p;
        size_t n;
    } all[] = {{ordered, sizeof ordered - 1}, {frames, sizeof frames - 1}};
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    struct file f;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (parse(all[i].p, all[i].n, &s, &err, &f))
            fail_msg("%s", err.msg);
        assert_int_equal(safetensors_count(s), 1);
        assert_memory_equal(safetensors_find(s, "w")->data, "abcdefgh", 8);
        safetensors_close(&s);
        free(f.bytes);
    }
}

/* ---- lies ---------------------------------------------------------------------------------- */

static void code_is_refused(void **state)
{
    (void)state;
    REFUSED("\x80\x02"
            "cos\nsystem\nX\2\0\0\0ls\x85R.",
            "asks for os.system; only tensors are built");
    REFUSED("\x80\x02"
            "cbuiltins\neval\n.",
            "builtins.eval");
    REFUSED("\x80\x04\x8c\x08"
            "builtins\x8c\4exec\x93.",
            "builtins.exec");
    REFUSED("\x80\x02"
            "ctorch.storage\n_load_from_bytes\n.",
            "torch.storage._load_from_bytes");
    REFUSED("\x80\x02"
            "ctorch\nFloatStorage\n)R.",
            "torch.FloatStorage with arguments");
    REFUSED("\x80\x02"
            "(ios\nsystem\n.",
            "opcode 0x69");
    REFUSED("\x80\x02"
            "K\1K\2R.",
            "calls what is no function");
    REFUSED("\x80\x02"
            "ccollections\nOrderedDict\nK\1\x85R.",
            "with arguments");
    REFUSED("\x80\x02\x82\1.", "opcode 0x82");
    REFUSED("\x80\x02"
            "c",
            "truncated?");
    REFUSED("\x80\x02"
            "X\1\0\0\0aX\1\0\0\0b\x93.",
            "asks for a.b");
    REFUSED("\x80\x02K\1K\1\x93.", "without a name");
}

static void machines_are_checked(void **state)
{
    (void)state;
    REFUSED("", "truncated?");
    REFUSED("\x80\x01.", "protocol 1");
    REFUSED("\x80\x02.", "leaves 0 values");
    REFUSED("\x80\x02}}.", "leaves 2 values");
    REFUSED("\x80\x02(.", "leaves 1 values");
    REFUSED("\x80\x02t.", "takes more from its stack");
    REFUSED("\x80\x02(\x85.", "takes more from its stack");
    REFUSED("\x80\x02K\1\x87.", "takes more");
    REFUSED("\x80\x02R.", "takes more");
    REFUSED("\x80\x02Q.", "takes more");
    REFUSED("\x80\x02s.", "takes more");
    REFUSED("\x80\x02"
            "b.",
            "takes more");
    REFUSED("\x80\x02q\0.", "takes more");
    REFUSED("\x80\x02h\0.", "asks for memo 0 of 0");
    REFUSED("\x80\x02}r\xff\xff\xff\xff.", "memo goes from 0 to 4294967295");
    REFUSED("\x80\x02}j\xff\xff\xff\xff.", "asks for memo");
    REFUSED("\x80\x02X\xff\xff\xff\xff"
            "a.",
            "truncated?");
    REFUSED("\x80\x02\x8a\x09"
            "aaaaaaaaa.",
            "integer of 9 bytes");
    REFUSED("\x80\x02K\1(K\1K\2u.", "something else than a dictionary");
    REFUSED("\x80\x02}(K\1u.", "something else than a dictionary");
    REFUSED("\x80\x02K\1K\2K\3s.", "something else than a dictionary");
    REFUSED("\x80\x02K\1}b.", "attributes to something else");
    REFUSED("\x80\x02K\1K\2"
            "a.",
            "no list");
    REFUSED("\x80\x02K\1(K\2e.", "no list");
    REFUSED("\x80\x02]K\1"
            "a].",
            "leaves 2 values");
    REFUSED("\x80\x02].", "a dictionary of tensors is expected");
    REFUSED("\x80\x02K\1.", "a dictionary of tensors is expected");
    REFUSED(BEGIN "K\1K\2" END, "is no name");
    REFUSED(BEGIN KEY("\1", "\0") "K\2" END, "is no name");
    REFUSED(BEGIN KEY("\5", "epoch") "K\2" END, "'epoch' is no tensor");
    REFUSED(BEGIN KEY("\5", "model") "}" END, "'model' is no tensor");
}

static void tensors_are_checked(void **state)
{
    (void)state;
#define ONE(storage, offset, size, stride) \
    BEGIN KEY("\1", "w") TENSOR(storage, offset, size, stride) END
#define SIX STORAGE("Float", "0", "\6")
    REFUSED(ONE(SIX, "\0", "K\7\x85", "K\1\x85"), "'w' reaches past its storage");
    REFUSED(ONE(SIX, "\1", "K\6\x85", "K\1\x85"), "'w' reaches past its storage");
    REFUSED(ONE(SIX, "\7", "K\0\x85", "K\1\x85"), "'w' reaches past its storage");
    REFUSED(ONE(SIX, "\0", "K\3K\2\x86", "K\1K\3\x86"), "'w' is a view with strides");
    REFUSED(ONE(SIX, "\0", "K\6\x85", "K\0\x85"), "'w' is a view with strides");
    REFUSED(ONE(SIX, "\0", "K\6\x85", "K\1K\1\x86"), "other arguments than torch does");
    REFUSED(ONE(SIX, "\0", "J\xff\xff\xff\xff\x85", "K\1\x85"), "no size");
    REFUSED(ONE(SIX, "\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"),
            "9 dimensions");
    REFUSED(ONE(SIX, "\0", "\x8a\10\0\0\0\0\0\0\0\x40K\4\x86", "K\4K\1\x86"), "larger than any");
    REFUSED(ONE(STORAGE("Float", "0", "\7"), "\0", "K\1\x85", "K\1\x85"), "too few for 7 elements");
    REFUSED(ONE(STORAGE("Double", "0", "\6"), "\0", "K\1\x85", "K\1\x85"), "too few");
    REFUSED(ONE(STORAGE("Float", "9", "\6"), "\0", "K\1\x85", "K\1\x85"), "storage '9' is not in");
    REFUSED(ONE("K\1", "\0", "K\1\x85", "K\1\x85"), "other arguments than torch does");
    REFUSED("\x80\x02"
            "X\1\0\0\0aQ.",
            "no storage");
    REFUSED("\x80\x02"
            "(X\6\0\0\0modulectorch\nFloatStorage\nX\1\0\0\0"
            "0X\3\0\0\0cpuK\1tQ.",
            "no storage");
    REFUSED(BEGIN KEY("\1", "w") SIX END, "'w' is no tensor");
    REFUSED(BEGIN KEY("\1", "w") TENSOR(SIX, "\0", "K\6\x85", "K\1\x85") KEY("\1", "w")
                TENSOR(SIX, "\0", "K\6\x85", "K\1\x85") END,
            "'w' is in f.bin too");
}

static void archives_are_checked(void **state)
{
    (void)state;
    struct file f = archive(two_tensors, sizeof two_tensors - 1);
    struct safetensors *s = NULL;
    for (size_t n = 0; n < f.n; n++) { /* every truncation */
        struct sl_err err = {0};
        unsigned char *part = malloc(n ? n : 1);
        memcpy(part, f.bytes, n);
        assert_int_equal(safetensors_parse_torch(&s, part, n, "f.bin", &err), SL_EFORMAT);
        free(part);
    }
    /* Every byte of the directory and the headers changed: refused, or read, but never past the
     * end (ASan looks). */
    for (size_t i = 0; i < f.n; i++)
        for (int bit = 0; bit < 8; bit++) {
            struct sl_err err = {0};
            f.bytes[i] ^= (unsigned char)(1 << bit);
            if (safetensors_parse_torch(&s, f.bytes, f.n, "f.bin", &err) == SL_OK)
                safetensors_close(&s);
            f.bytes[i] ^= (unsigned char)(1 << bit);
        }
    free(f.bytes);
}

static void refused_archive(struct file *f, const char *what)
{
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(safetensors_parse_torch(&s, f->bytes, f->n, "f.bin", &err), SL_EFORMAT);
    says(&err, what);
    free(f->bytes);
}

static void other_files_are_named(void **state)
{
    (void)state;
    struct file f = {0};
    add_bytes(&f, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.",
              21);
    refused_archive(&f, "before 1.6");
    f = (struct file){0};
    add_bytes(&f, "version https://git-lfs.github.com/spec/v1\n", 43);
    refused_archive(&f, "no zip archive");
    f = (struct file){0};
    member(&f, "m/other", "", 0);
    finish(&f);
    refused_archive(&f, "without data.pkl");
    f = (struct file){0};
    member(&f, "m/data.pkl", "\x80\x02}.", 4);
    member(&f, "m/byteorder", "big", 3);
    finish(&f);
    refused_archive(&f, "not little-endian");
    f = (struct file){0};
    member(&f, "m/data.pkl", "\x80\x02}.", 4);
    f.directory[10] = 8;
    finish(&f);
    refused_archive(&f, "'m/data.pkl' is compressed");
    f = (struct file){0};
    member(&f, "m/data.pkl", "\x80\x02}.", 4);
    member(&f, "m/data.pkl", "\x80\x02}.", 4);
    finish(&f);
    refused_archive(&f, "two members of one name");
}

/* ---- folders ------------------------------------------------------------------------------- */

static void folders(void **state)
{
    (void)state;
    static const char w[] = BEGIN KEY("\1", "w") TENSOR(SIX, "\0", "K\6\x85", "K\1\x85") END;
    static const char v[] = BEGIN KEY("\1", "v") TENSOR(SIX, "\0", "K\6\x85", "K\1\x85") END;
    static const char index[] = "{\"weight_map\":{\"w\":\"a\",\"v\":\"b\"}}";
    static const char safe[] = "\x02\0\0\0\0\0\0\0{}";
    struct file a = archive(w, sizeof w - 1), b = archive(v, sizeof v - 1);
    struct safetensors *s = NULL;
    struct sl_err err = {0};
    write_bytes("a", a.bytes, a.n);
    write_bytes("b", b.bytes, b.n);
    write_bytes("pytorch_model.bin.index.json", index, sizeof index - 1);
    assert_int_equal(safetensors_open(&s, dir, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 2);
    assert_non_null(strstr(safetensors_find(s, "v")->file, "/b"));
    safetensors_close(&s);
    for (long nth = 1;; nth++) { /* every allocation fails once */
        err = (struct sl_err){0};
        mem_fail_nth(nth);
        enum sl_status st = safetensors_open(&s, dir, &err);
        mem_fail_nth(0);
        if (st == SL_OK)
            break;
        assert_int_equal(st, SL_ENOMEM);
        assert_null(s);
    }
    safetensors_close(&s);
    write_bytes("b", a.bytes, a.n);
    err = (struct sl_err){0};
    assert_int_equal(safetensors_open(&s, dir, &err), SL_EFORMAT);
    assert_non_null(strstr(err.msg, "'w' is in"));
    write_bytes("pytorch_model.bin", b.bytes, b.n); /* wins over its index */
    assert_int_equal(safetensors_open(&s, dir, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 1);
    safetensors_close(&s);
    write_bytes("model.safetensors", safe, sizeof safe - 1); /* wins over both */
    assert_int_equal(safetensors_open(&s, dir, &err), SL_OK);
    assert_int_equal(safetensors_count(s), 0);
    safetensors_close(&s);
    free(a.bytes);
    free(b.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_is_there),
        cmocka_unit_test(reads_other_dialects),
        cmocka_unit_test(code_is_refused),
        cmocka_unit_test(machines_are_checked),
        cmocka_unit_test(tensors_are_checked),
        cmocka_unit_test(archives_are_checked),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test_setup_teardown(folders, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
