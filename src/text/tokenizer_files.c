/* A model folder: which of its files make the tokenizer.
 *
 * tokenizer.json wins; where it is missing, in this order: tekken.json, a SentencePiece or tiktoken
 * tokenizer.model, *.tiktoken, vocab.json with merges.txt, vocab.txt.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/status.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct file {
    char *data; /* NULL: no such file */
    size_t bytes;
};

static enum sl_status read_file(const char *path, struct file *out, struct sl_err *err)
{
    return file_read(path, TOK_MAX_FILE_BYTES, &out->data, &out->bytes, err);
}

static enum sl_status read_in(const char *dir, const char *name, struct file *out,
                              struct sl_err *err)
{
    struct strbuf path;
    strbuf_init(&path, 1 << 16);
    strbuf_addf(&path, "%s/%s", dir, name);
    enum sl_status st = path.failed ? SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a path")
                                    : read_file(path.data, out, err);
    strbuf_fini(&path);
    return st;
}

/* model_max_length is often 1e30 written out: integers are read as reals unless exact ids are
 * needed. */
static enum sl_status parse_json(const struct file *f, const char *name, size_t flags, json_t **out,
                                 struct sl_err *err)
{
    json_error_t why;
    *out = json_loadb(f->data, f->bytes, flags, &why);
    return *out ? SL_OK : SL_FAIL(err, SL_EFORMAT, "%s: line %d: %s", name, why.line, why.text);
}

/* NULL in *out: no such file. */
static enum sl_status read_json(const char *dir, const char *name, json_t **out, struct sl_err *err)
{
    struct file f = {0};
    enum sl_status st = read_in(dir, name, &f, err);
    if (!st && f.data)
        st = parse_json(&f, name, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, out, err);
    mem_free(f.data);
    if (!st && *out && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        st = SL_FAIL(err, SL_EFORMAT, "%s: not an object", name);
    }
    return st;
}

/* ---- vocab.json and merges.txt ----------------------------------------------------------------
 */

static enum sl_status parse_merge_lines(struct tokenizer *t, const struct file *f,
                                        struct sl_err *err)
{
    size_t lines = 1, at = 0;
    for (size_t i = 0; i < f->bytes; i++)
        lines += f->data[i] == '\n';
    enum sl_status st = bpe_reserve_merges(&t->bpe, lines, err);
    struct strbuf joined;
    strbuf_init(&joined, 0);
    uint32_t rank = 0;
    while (!st && at < f->bytes) {
        const char *s = f->data + at, *end = memchr(s, '\n', f->bytes - at);
        size_t n = end ? (size_t)(end - s) : f->bytes - at;
        at += n + 1;
        if (n && s[n - 1] == '\r')
            n--;
        if (!n || (n >= 8 && !memcmp(s, "#version", 8)))
            continue;
        const char *space = memchr(s, ' ', n);
        size_t left = space ? (size_t)(space - s) : n;
        if (!space || memchr(space + 1, ' ', n - left - 1))
            st = SL_FAIL(err, SL_EFORMAT, "merges.txt: merge %u is not a pair", rank + 1);
        else
            st = bpe_add_merge(t, s, left, space + 1, n - left - 1, rank++, &joined, err);
    }
    strbuf_fini(&joined);
    return st;
}

static enum sl_status add_if_known(struct tokenizer *t, const char *name, struct sl_err *err)
{
    struct added_token tok = {
        .id = -1, .content = (char *)name, .len = (uint32_t)strlen(name), .special = true};
    return strmap_get(&t->model_vocab, name, tok.len) < 0 ? SL_OK : added_put(t, &tok, err);
}

static bool class_is(const json_t *config, const char *prefix)
{
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    return class && !strncmp(class, prefix, strlen(prefix));
}

/* GPT-2's layout; Qwen2 normalizes and has a pattern of its own, RoBERTa puts <s> and </s> around.
 */
static enum sl_status pair_stages(struct tokenizer *t, const json_t *config, struct sl_err *err)
{
    bool prefix = json_is_true(json_object_get(config, "add_prefix_space"));
    enum sl_status st = SL_OK;
    if (class_is(config, "Qwen2")) {
        struct normalizer *n = norm_push(t, NORM_UNICODE, err);
        struct pre_step *p = n ? pre_push(t, PRE_SPLIT, err) : NULL;
        if (!p)
            return SL_EFORMAT;
        n->form = norm_form_nfc();
        p->behavior = SPLIT_ISOLATED;
        st =
            pattern_regex(&p->pattern, tokenizer_qwen_pattern, strlen(tokenizer_qwen_pattern), err);
        if (!st)
            st = pre_push_byte_level(t, prefix, false, err);
    } else {
        st = pre_push_byte_level(t, prefix, true, err);
    }
    if (!st && !dec_push(t, DEC_BYTE_LEVEL, err))
        st = SL_EFORMAT;
    if (!st &&
        (class_is(config, "Roberta") || class_is(config, "Longformer") || class_is(config, "Bart")))
        st = post_set_cls_sep(t, "<s>", "</s>", true, err);
    return st ? st : add_if_known(t, "<|endoftext|>", err);
}

static enum sl_status from_pair(struct tokenizer *t, const struct file *vocab,
                                const struct file *merges, const json_t *config, struct sl_err *err)
{
    json_t *json = NULL;
    enum sl_status st = parse_json(vocab, "vocab.json", JSON_ALLOW_NUL, &json, err);
    t->kind = MODEL_BPE;
    if (!st && class_is(config, "CLIP"))
        st = SL_FAIL(err, SL_ENOSUPPORT, "CLIP from vocab.json: it needs a tokenizer.json");
    if (!st)
        st = vocab_parse(t, json, err);
    json_decref(json);
    if (!st)
        st = parse_merge_lines(t, merges, err);
    return st ? st : pair_stages(t, config, err);
}

/* ---- vocab.txt: BERT --------------------------------------------------------------------------
 */

static bool config_flag(const json_t *config, const char *key, bool absent)
{
    const json_t *v = json_object_get(config, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

static enum sl_status bert_vocab(struct tokenizer *t, const struct file *f, struct sl_err *err)
{
    size_t at = 0;
    for (int32_t id = 0; at < f->bytes; id++) {
        const char *s = f->data + at, *end = memchr(s, '\n', f->bytes - at);
        size_t n = end ? (size_t)(end - s) : f->bytes - at;
        at += n + 1;
        while (n && (s[n - 1] == '\r' || s[n - 1] == ' ' || s[n - 1] == '\t'))
            n--;
        if (id == TOK_MAX_ID)
            return SL_FAIL(err, SL_EFORMAT, "vocab.txt: too many lines");
        if (!text_is_utf8(s, n))
            return SL_FAIL(err, SL_EFORMAT, "vocab.txt: line %d is not UTF-8", id + 1);
        if (!strmap_put(&t->model_vocab, s, n, id))
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    }
    return SL_OK;
}

static enum sl_status from_bert(struct tokenizer *t, const struct file *f, const json_t *config,
                                struct sl_err *err)
{
    static const char *const specials[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    enum sl_status st = bert_vocab(t, f, err);
    t->kind = MODEL_WORDPIECE;
    t->wp_max_chars = 100;
    t->unk_id = strmap_get(&t->model_vocab, "[UNK]", 5);
    if (!st)
        st = wordpiece_build(t, "##", err);
    struct normalizer *n = st ? NULL : norm_push(t, NORM_BERT, err);
    if (!n)
        return st ? st : SL_EFORMAT;
    n->clean = true;
    n->lower = config_flag(config, "do_lower_case", true);
    n->cjk = config_flag(config, "tokenize_chinese_chars", true);
    n->strip_accents = config_flag(config, "strip_accents", n->lower);
    st = pre_push_bert(t, err);
    struct dec_step *d = st ? NULL : dec_push(t, DEC_WORDPIECE, err);
    if (!d)
        return st ? st : SL_EFORMAT;
    d->content = mem_strdup("##");
    d->content_len = 2;
    d->cleanup = true;
    if (!d->content)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
    for (size_t i = 0; i < sizeof specials / sizeof *specials && !st; i++)
        st = add_if_known(t, specials[i], err);
    return st ? st : post_set_cls_sep(t, "[CLS]", "[SEP]", false, err);
}

/* ---- what is there ----------------------------------------------------------------------------
 */

static bool ends_in(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

/* One file that says by itself what it is. */
static enum sl_status from_file(struct tokenizer *t, const struct file *f, const char *name,
                                const json_t *config, struct sl_err *err)
{
    const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    size_t i = 0;
    while (i < f->bytes && strchr(" \t\r\n", f->data[i]))
        i++;
    if (i < f->bytes && f->data[i] == '{') {
        json_t *root = NULL;
        enum sl_status st = parse_json(f, base, JSON_ALLOW_NUL, &root, err);
        if (!st && !json_object_get(root, "model") && json_object_get(root, "config"))
            st = tokenizer_from_tekken(t, root, err);
        else if (!st)
            st = tokenizer_parse_json(t, root, err);
        json_decref(root);
        return st;
    }
    if (is_tiktoken(f->data, f->bytes))
        return tokenizer_from_tiktoken(t, f->data, f->bytes, base, err);
    if (is_sentencepiece(f->data, f->bytes))
        return tokenizer_from_sentencepiece(t, f->data, f->bytes, config, err);
    if (ends_in(base, ".txt"))
        return from_bert(t, f, config, err);
    return SL_FAIL(err, SL_EFORMAT, "%s is no tokenizer file that is known", base);
}

/* The first *.tiktoken of the folder; "" when there is none. */
static void find_tiktoken(const char *dir, char name[256])
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    name[0] = 0;
    while (d && (e = readdir(d))) {
        if (ends_in(e->d_name, ".tiktoken") && (!name[0] || strcmp(e->d_name, name) < 0))
            memcpy(name, e->d_name, strlen(e->d_name) + 1);
    }
    if (d)
        closedir(d);
}

static enum sl_status from_any(struct tokenizer *t, const char *dir, const json_t *config,
                               struct sl_err *err)
{
    char tiktoken[256];
    find_tiktoken(dir, tiktoken);
    const char *const names[] = {"tokenizer.json", "tekken.json", "tokenizer.model", "spiece.model",
                                 tiktoken};
    struct file f = {0}, merges = {0};
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && !st; i++) {
        st = names[i][0] ? read_in(dir, names[i], &f, err) : SL_OK;
        if (st || !f.data)
            continue;
        st = from_file(t, &f, names[i], config, err);
        mem_free(f.data);
        return st;
    }
    if (!st)
        st = read_in(dir, "vocab.json", &f, err);
    if (!st)
        st = read_in(dir, "merges.txt", &merges, err);
    if (!st && f.data && merges.data) {
        st = from_pair(t, &f, &merges, config, err);
    } else if (!st) {
        mem_free(f.data);
        f = (struct file){0};
        st = read_in(dir, "vocab.txt", &f, err);
        if (!st && f.data)
            st = from_bert(t, &f, config, err);
        else if (!st)
            st = SL_FAIL(err, SL_ENOTFOUND, "%s has no tokenizer.json and no other tokenizer file",
                         dir);
    }
    mem_free(f.data);
    mem_free(merges.data);
    return st;
}

static enum sl_status from_folder(struct tokenizer *t, const char *dir, struct sl_err *err)
{
    json_t *config = NULL, *map = NULL, *listed = NULL;
    enum sl_status st = read_json(dir, "tokenizer_config.json", &config, err);
    if (!st)
        st = read_json(dir, "special_tokens_map.json", &map, err);
    if (!st)
        st = read_json(dir, "added_tokens.json", &listed, err);
    if (!st && !config && !(config = json_object()))
        st = SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory");
    if (!st)
        st = from_any(t, dir, config, err);
    if (!st)
        st = config_apply(t, config, map, listed, err);
    json_decref(config);
    json_decref(map);
    json_decref(listed);
    return st;
}

enum sl_status tokenizer_from_dir(struct tokenizer *t, const char *path, struct sl_err *err)
{
    struct stat info;
    struct file f = {0};
    if (stat(path, &info))
        return SL_FAIL(err, SL_ENOTFOUND, "no tokenizer at %s: %s", path, strerror(errno));
    enum sl_status st =
        S_ISDIR(info.st_mode) ? from_folder(t, path, err) : read_file(path, &f, err);
    if (!st && f.data)
        st = from_file(t, &f, path, NULL, err);
    mem_free(f.data);
    return !st && t->llama3 ? tiktoken_finish_llama3(t, err) : st;
}
