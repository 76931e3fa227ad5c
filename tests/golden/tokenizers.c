/* Every vector of ../shared/data/tokenizers against the real vocabularies, from each kind of file
 * that the folder has: ids equal, incremental detokenizing equal to the whole, byte-level text back
 * again.
 *
 * SLUICE_SHARED names the folder (default ../shared); without it the test is skipped.
 * SLUICE_WRITE_DOCS=1 writes the table in docs/tokenizers.md.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/strbuf.h"
#include "text/tokenizer.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

enum { MAX_FILES = 3, MAX_VECTORS = 4 };

static const struct set {
    const char *name, *kind;
    struct {
        const char *from, *as; /* in shared, in the folder made for the test */
    } files[MAX_FILES];
    const char *config; /* tokenizer_config.json made up here; NULL: none */
    const char *vectors[MAX_VECTORS];
    bool round_trip; /* decoding gives the text back */
} sets[] = {
    {"Llama 3, tokenizer.json",
     "byte-level BPE",
     {{"llama3/tokenizer.json.gz", "tokenizer.json"},
      {"llama3/tokenizer_config.json", "tokenizer_config.json"}},
     NULL,
     {"llama3/vectors.jsonl", "llama3/vectors_own.jsonl"},
     true},
    {"Llama 3, tokenizer.model",
     "tiktoken",
     {{"llama3/tokenizer.model.gz", "tokenizer.model"}},
     NULL,
     {"llama3/vectors.jsonl", "llama3/vectors_own.jsonl"},
     true},
    {"Qwen2, tokenizer.json",
     "byte-level BPE, NFC",
     {{"qwen2/tokenizer.json.gz", "tokenizer.json"}},
     NULL,
     {"qwen2/vectors.jsonl", "qwen2/vectors_own.jsonl"},
     false},
    {"Qwen2.5, tokenizer.json",
     "byte-level BPE, NFC",
     {{"qwen2/tokenizer.qwen2.5.json.gz", "tokenizer.json"},
      {"qwen2/tokenizer_config.qwen2.5.json", "tokenizer_config.json"}},
     NULL,
     {"qwen2/vectors.jsonl", "qwen2/vectors_own.jsonl", "qwen2/vectors_own.qwen2.5.jsonl"},
     false},
    {"Qwen3, tokenizer.json",
     "byte-level BPE, NFC, merges as arrays",
     {{"qwen2/tokenizer.qwen3.json.gz", "tokenizer.json"},
      {"qwen2/tokenizer_config.qwen3.json", "tokenizer_config.json"}},
     NULL,
     {"qwen2/vectors.jsonl", "qwen2/vectors_own.jsonl", "qwen2/vectors_own.qwen3.jsonl"},
     false},
    {"Qwen2, vocab.json and merges.txt",
     "byte-level BPE, NFC",
     {{"qwen2/vocab.json.gz", "vocab.json"},
      {"qwen2/merges.txt", "merges.txt"},
      {"qwen2/tokenizer_config.qwen2.5.json", "tokenizer_config.json"}},
     NULL,
     {"qwen2/vectors.jsonl", "qwen2/vectors_own.jsonl", "qwen2/vectors_own.qwen2.5.jsonl"},
     false},
    {"GPT-2, tokenizer.json",
     "byte-level BPE, no model type",
     {{"gpt2/tokenizer.json", "tokenizer.json"}},
     NULL,
     {"gpt2/vectors.jsonl", "gpt2/vectors_own.jsonl"},
     true},
    {"GPT-2, vocab.json and merges.txt",
     "byte-level BPE",
     {{"gpt2/vocab.json", "vocab.json"}, {"gpt2/merges.txt", "merges.txt"}},
     NULL,
     {"gpt2/vectors.jsonl", "gpt2/vectors_own.jsonl"},
     true},
    {"Llama 2, tokenizer.json",
     "BPE with byte fallback",
     {{"llama2/tokenizer.json", "tokenizer.json"},
      {"llama2/tokenizer_config.json", "tokenizer_config.json"},
      {"llama2/special_tokens_map.json", "special_tokens_map.json"}},
     NULL,
     {"llama2/vectors.jsonl", "llama2/vectors_own.jsonl"},
     false},
    {"Llama 2, tokenizer.model",
     "SentencePiece BPE with byte fallback",
     {{"llama2/tokenizer.model", "tokenizer.model"}},
     NULL,
     {"llama2/vectors.jsonl", "llama2/vectors_own.jsonl"},
     false},
    {"T5, tokenizer.json",
     "Unigram, precompiled character map",
     {{"t5/tokenizer.json", "tokenizer.json"},
      {"t5/tokenizer_config.json", "tokenizer_config.json"}},
     NULL,
     {"t5/vectors.jsonl", "t5/vectors_own.jsonl"},
     false},
    {"BERT, tokenizer.json",
     "WordPiece",
     {{"bert/tokenizer.json", "tokenizer.json"},
      {"bert/tokenizer_config.json", "tokenizer_config.json"}},
     NULL,
     {"bert/vectors.jsonl", "bert/pair_vectors.jsonl"},
     false},
    {"BERT, vocab.txt",
     "WordPiece",
     {{"bert/vocab.txt", "vocab.txt"}, {"bert/tokenizer_config.json", "tokenizer_config.json"}},
     NULL,
     {"bert/vectors.jsonl", "bert/pair_vectors.jsonl"},
     false},
    {"cl100k_base.tiktoken",
     "tiktoken",
     {{"cl100k/cl100k_base.tiktoken", "cl100k_base.tiktoken"}},
     "100257 <|endoftext|> 100258 <|fim_prefix|> 100259 <|fim_middle|> 100260 <|fim_suffix|> "
     "100276 <|endofprompt|>",
     {"cl100k/vectors.jsonl", "cl100k/vectors_own.jsonl"},
     true},
    {"o200k_base.tiktoken",
     "tiktoken",
     {{"o200k/o200k_base.tiktoken.gz", "o200k_base.tiktoken"}},
     "199999 <|endoftext|> 200018 <|endofprompt|>",
     {"o200k/vectors.jsonl", "o200k/vectors_own.jsonl"},
     true},
    {"o200k harmony",
     "tiktoken",
     {{"o200k/o200k_base.tiktoken.gz", "o200k_base.tiktoken"}},
     "199998 <|startoftext|> 199999 <|endoftext|> 200002 <|return|> 200003 <|constrain|> "
     "200005 <|channel|> 200006 <|start|> 200007 <|end|> 200008 <|message|> 200012 <|call|> "
     "200013 <|reserved_200013|> 200018 <|endofprompt|>",
     {"o200k/vectors_own.harmony.jsonl"},
     true},
};
enum { N_SETS = sizeof sets / sizeof *sets };

static char root[4096];
static struct result {
    int right, all, n_ids;
} results[N_SETS];

/* The file, unpacked if it is packed; free it. */
static char *slurp(const char *from, size_t *bytes)
{
    char path[8192];
    snprintf(path, sizeof path, "%s/data/tokenizers/%s", root, from);
    gzFile f = gzopen(path, "rb");
    if (!f)
        fail_msg("%s: cannot open", path);
    size_t cap = 1 << 22, n = 0;
    char *p = malloc(cap + 1);
    for (int got; p && (got = gzread(f, p + n, (unsigned)(cap - n))) > 0;) {
        n += (size_t)got;
        if (n == cap)
            p = realloc(p, (cap *= 2) + 1);
    }
    gzclose(f);
    assert_non_null(p);
    p[n] = 0;
    *bytes = n;
    return p;
}

static void spit(const char *dir, const char *name, const char *data, size_t bytes)
{
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
}

/* "id content id content ..." as added_tokens_decoder. */
static void spit_config(const char *dir, const char *list)
{
    json_t *decoder = json_object();
    char id[16], content[64];
    int used;
    for (; sscanf(list, "%15s %63s%n", id, content, &used) == 2; list += used)
        json_object_set_new(
            decoder, id,
            json_pack("{s:s, s:b, s:b}", "content", content, "special", 1, "normalized", 0));
    json_t *config = json_pack("{s:o}", "added_tokens_decoder", decoder);
    char *text = json_dumps(config, 0);
    spit(dir, "tokenizer_config.json", text, strlen(text));
    free(text);
    json_decref(config);
}

static struct tokenizer *load(const struct set *s)
{
    char dir[] = "/tmp/sluice-tokenizers-XXXXXX", path[8192];
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < MAX_FILES && s->files[i].from; i++) {
        size_t bytes;
        char *data = slurp(s->files[i].from, &bytes);
        spit(dir, s->files[i].as, data, bytes);
        free(data);
    }
    if (s->config)
        spit_config(dir, s->config);
    struct tokenizer *t = NULL;
    struct sl_err err = {0};
    enum sl_status st = tokenizer_load(&t, dir, &err);
    for (int i = 0; i < MAX_FILES && s->files[i].from; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, s->files[i].as);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    unlink(path);
    rmdir(dir);
    if (st)
        fail_msg("%s: %s", s->name, err.msg);
    return t;
}

static bool ids_equal(const struct token_vec *v, const json_t *want)
{
    if (v->n != json_array_size(want))
        return false;
    for (size_t i = 0; i < v->n; i++) {
        if (v->ids[i] != json_integer_value(json_array_get(want, i)))
            return false;
    }
    return true;
}

/* Token by token, never ending inside a character, and the same as at once. */
static void check_decoding(const struct tokenizer *t, const struct token_vec *v, const char *text)
{
    char *whole = NULL;
    size_t bytes = 0;
    struct detok *d = NULL;
    struct strbuf b;
    assert_int_equal(tokenizer_decode(t, v->ids, v->n, false, &whole, &bytes, NULL), SL_OK);
    if (text)
        assert_string_equal(whole, text);
    strbuf_init(&b, 0);
    assert_int_equal(detok_create(&d, t, false, true, NULL), SL_OK);
    for (size_t i = 0; i < v->n; i++) {
        size_t from = b.len;
        assert_int_equal(detok_push(d, v->ids[i], &b), SL_OK);
        json_t *valid = json_stringn(b.len > from ? b.data + from : "", b.len - from);
        assert_non_null(valid); /* jansson refuses what is not UTF-8 */
        json_decref(valid);
    }
    assert_int_equal(detok_finish(d, &b), SL_OK);
    assert_int_equal(b.len, bytes);
    assert_memory_equal(b.len ? b.data : "", whole, bytes);
    detok_destroy(&d);
    strbuf_fini(&b);
    mem_free(whole);
}

static bool check_line(const struct tokenizer *t, const json_t *line, bool round_trip)
{
    const json_t *text = json_object_get(line, "text"), *pair = json_object_get(line, "text_pair");
    const char *s = json_string_value(text);
    size_t n = json_string_length(text);
    bool special = json_is_true(json_object_get(line, "add_special_tokens"));
    struct token_vec v = {0};
    struct sl_err err = {0};
    unsigned flags = special ? ENCODE_ADD_SPECIAL : 0;
    size_t second;
    enum sl_status st =
        pair ? tokenizer_encode_pair(t, s, n, json_string_value(pair), json_string_length(pair),
                                     flags, &second, &v, &err)
             : tokenizer_encode(t, s, n, flags, 0, &v, &err);
    if (st)
        fail_msg("%s", err.msg);
    bool right = ids_equal(&v, json_object_get(line, "ids"));
    if (!right)
        print_message("differs: %.200s\n", s);
    check_decoding(t, &v, round_trip && !special && strlen(s) == n ? s : NULL);
    token_vec_fini(&v);
    return right;
}

static void check_vectors(const struct tokenizer *t, const struct set *s, const char *file,
                          struct result *r)
{
    size_t bytes;
    char *data = slurp(file, &bytes);
    for (char *at = data, *end; at < data + bytes; at = end + 1) {
        end = strchr(at, '\n');
        if (!end)
            end = data + bytes;
        json_t *line = json_loadb(at, (size_t)(end - at), JSON_ALLOW_NUL, NULL);
        if (!line)
            continue;
        r->all++;
        r->right += check_line(t, line, s->round_trip);
        json_decref(line);
    }
    free(data);
}

static void vectors_pass(void **state)
{
    const struct set *s = *state;
    struct result *r = &results[s - sets];
    struct tokenizer *t = load(s);
    for (int i = 0; i < MAX_VECTORS && s->vectors[i]; i++)
        check_vectors(t, s, s->vectors[i], r);
    r->n_ids = tokenizer_vocab(t)->n;
    tokenizer_destroy(&t);
    print_message("%s: %d of %d vectors\n", s->name, r->right, r->all);
    assert_true(r->all > 0);
    assert_int_equal(r->right, r->all);
}

/* Replaces what stands between the two marks. */
static void write_docs(void)
{
    const char *path = "docs/tokenizers.md", *begin = "<!-- vectors -->\n";
    const char *end = "<!-- end of vectors -->";
    FILE *f = fopen(path, "rb");
    if (!f)
        return;
    static char text[1 << 16];
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *a = strstr(text, begin), *b = strstr(text, end);
    if (!a || !b || !(f = fopen(path, "wb")))
        return;
    fwrite(text, 1, (size_t)(a - text) + strlen(begin), f);
    fprintf(f, "| tokenizer | kind | tokens | vectors passed |\n|---|---|---:|---:|\n");
    for (int i = 0; i < N_SETS; i++)
        fprintf(f, "| %s | %s | %d | %d of %d |\n", sets[i].name, sets[i].kind, results[i].n_ids,
                results[i].right, results[i].all);
    fputs(b, f);
    fclose(f);
}

int main(void)
{
    const char *shared = getenv("SLUICE_SHARED");
    char probe[8192];
    snprintf(root, sizeof root, "%s", shared ? shared : "../shared");
    snprintf(probe, sizeof probe, "%s/data/tokenizers/README.md", root);
    if (access(probe, R_OK)) {
        printf("skipped: no tokenizers under %s (SLUICE_SHARED names another folder)\n", root);
        return 0;
    }
    struct CMUnitTest tests[N_SETS];
    for (int i = 0; i < N_SETS; i++)
        tests[i] = (struct CMUnitTest){.name = sets[i].name,
                                       .test_func = vectors_pass,
                                       .initial_state = (void *)(uintptr_t)&sets[i]};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    const char *docs = getenv("SLUICE_WRITE_DOCS");
    if (!failed && docs && docs[0] == '1')
        write_docs();
    return failed;
}
