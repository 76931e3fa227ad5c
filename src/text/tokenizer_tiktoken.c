/* Byte-pair vocabularies that come as ranks of byte strings: tiktoken files and Mistral's
 * tekken.json.
 *
 * There are no merges: of all adjacent pairs whose bytes together are a token, the one with the
 * lowest rank is merged. So each way to cut a token in two tokens is a merge of the token's rank.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <stdio.h>
#include <string.h>

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_PATTERN CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" TAIL
#define QWEN_PATTERN CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" TAIL
#define O200K_PATTERN                                                                           \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                                            \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"                                                            \
    "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum { LLAMA3_RANKS = 128000 };

const char tokenizer_qwen_pattern[] = QWEN_PATTERN;

struct ranks {
    struct strmap bytes; /* -> id */
    struct strbuf name;  /* scratch */
};

/* The token under its id, its bytes written in GPT-2's characters. */
static enum sl_status add_token(struct tokenizer *t, struct ranks *r, const char *s, size_t n,
                                int32_t id, struct sl_err *err)
{
    strbuf_clear(&r->name);
    for (size_t i = 0; i < n; i++)
        utf8_add(&r->name, byte_to_char((unsigned char)s[i]));
    if (!n || strmap_get(&r->bytes, s, n) >= 0)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: token %d is empty or there twice", id);
    if (r->name.failed || !strmap_put(&r->bytes, s, n, id) ||
        !strmap_put(&t->model_vocab, r->name.data, r->name.len, id))
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the vocabulary");
    return SL_OK;
}

struct cut {
    int32_t left, right, id;
};

/* Each cut of each token in two tokens. */
static bool find_cuts(const struct strmap *m, struct cut **cuts, size_t *n)
{
    size_t cap = 0;
    *cuts = NULL;
    *n = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        const struct strmap_entry *e = &m->entries[i];
        const char *s = m->pool + e->off;
        if (*n + e->len > cap) {
            cap = (*n + e->len) * 2 + 1024;
            struct cut *p = mem_realloc(*cuts, cap, sizeof *p);
            if (!p)
                return false;
            *cuts = p;
        }
        for (uint32_t k = 1; k < e->len; k++) {
            int32_t left = strmap_get(m, s, k);
            int32_t right = left < 0 ? -1 : strmap_get(m, s + k, e->len - k);
            if (right >= 0)
                (*cuts)[(*n)++] = (struct cut){left, right, e->id};
        }
    }
    return true;
}

static enum sl_status build_merges(struct tokenizer *t, struct ranks *r, struct sl_err *err)
{
    struct cut *cuts;
    size_t n;
    enum sl_status st = find_cuts(&r->bytes, &cuts, &n)
                            ? bpe_reserve_merges(&t->bpe, n, err)
                            : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the merges");
    for (size_t i = 0; i < n && !st; i++) {
        if (i + 16 < n)
            bpe_prefetch_merge(&t->bpe, cuts[i + 16].left, cuts[i + 16].right);
        bpe_put_merge(&t->bpe, cuts[i].left, cuts[i].right, (uint32_t)cuts[i].id, cuts[i].id);
    }
    mem_free(cuts);
    return st;
}

static enum sl_status finish(struct tokenizer *t, struct ranks *r, const char *pattern,
                             struct sl_err *err)
{
    t->kind = MODEL_BPE;
    t->exact_ids = true;
    t->bpe.ignore_merges = true;
    enum sl_status st = build_merges(t, r, err);
    if (st)
        return st;
    struct pre_step *p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->behavior = SPLIT_ISOLATED;
    st = pattern_regex(&p->pattern, pattern, strlen(pattern), err);
    if (!st)
        st = pre_push_byte_level(t, false, false, err);
    return st ? st : dec_push(t, DEC_BYTE_LEVEL, err) ? SL_OK : SL_EFORMAT;
}

static enum sl_status add_special(struct tokenizer *t, const char *name, json_int_t id,
                                  struct sl_err *err)
{
    struct added_token tok = {
        .id = (int32_t)id, .content = (char *)name, .len = (uint32_t)strlen(name), .special = true};
    return added_put(t, &tok, err);
}

/* ---- tiktoken: "base64 rank" lines ------------------------------------------------------------
 */

bool is_tiktoken(const char *data, size_t bytes)
{
    size_t i = 0;
    while (i < bytes && i < 1000 && (unsigned char)data[i] > ' ' && (unsigned char)data[i] < 0x7F)
        i++;
    if (!i || i + 1 >= bytes || data[i] != ' ')
        return false;
    return data[i + 1] >= '0' && data[i + 1] <= '9';
}

static const char *pattern_for(const char *name)
{
    if (strstr(name, "o200k"))
        return O200K_PATTERN;
    if (strstr(name, "qwen"))
        return QWEN_PATTERN;
    if (strstr(name, "gpt2") || strstr(name, "r50k") || strstr(name, "p50k"))
        return GPT2_PATTERN;
    return LLAMA3_PATTERN; /* cl100k's too */
}

static enum sl_status parse_line(struct tokenizer *t, struct ranks *r, const char *s, size_t n,
                                 int line, struct sl_err *err)
{
    const char *space = memchr(s, ' ', n);
    struct strbuf token;
    long rank = 0;
    size_t i = space ? (size_t)(space - s) + 1 : n;
    bool ok = i < n;
    for (; ok && i < n && s[i] != '\r'; i++) {
        ok = s[i] >= '0' && s[i] <= '9' && rank < TOK_MAX_ID;
        rank = rank * 10 + (s[i] - '0');
    }
    strbuf_init(&token, 1 << 16);
    if (!ok || rank >= TOK_MAX_ID || !base64_decode(&token, s, (size_t)(space - s))) {
        strbuf_fini(&token);
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: line %d is not \"base64 rank\"", line);
    }
    enum sl_status st =
        add_token(t, r, token.data ? token.data : "", token.len, (int32_t)rank, err);
    strbuf_fini(&token);
    return st;
}

enum sl_status tokenizer_from_tiktoken(struct tokenizer *t, const char *data, size_t bytes,
                                       const char *name, struct sl_err *err)
{
    struct ranks r = {0};
    enum sl_status st = SL_OK;
    strbuf_init(&r.name, 0);
    for (int line = 1; bytes && !st; line++) {
        const char *end = memchr(data, '\n', bytes);
        size_t n = end ? (size_t)(end - data) : bytes;
        if (n && data[0] != '\r')
            st = parse_line(t, &r, data, n, line, err);
        n += end != NULL;
        data += n;
        bytes -= n;
    }
    t->llama3 = r.bytes.n == LLAMA3_RANKS && !strcmp(name, "tokenizer.model");
    if (!st)
        st = finish(t, &r, pattern_for(name), err);
    strmap_fini(&r.bytes);
    strbuf_fini(&r.name);
    return st;
}

/* The names in Llama 3.1 and later; the others of the 256 are reserved. */
static const char *const llama3_specials[] = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    NULL,
    NULL,
    "<|finetune_right_pad_id|>",
    NULL,
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
};

/* Llama 3's tokenizer.model says nothing of its special tokens, nor that a text begins with one. */
enum sl_status tiktoken_finish_llama3(struct tokenizer *t, struct sl_err *err)
{
    int reserved = 0;
    enum sl_status st = SL_OK;
    for (int i = 0; i < 256 && !t->has_config_tokens && !st; i++) {
        char filler[48];
        const char *name =
            i < (int)(sizeof llama3_specials / sizeof *llama3_specials) ? llama3_specials[i] : NULL;
        if (!name) {
            snprintf(filler, sizeof filler, "<|reserved_special_token_%d|>", reserved++);
            name = filler;
        }
        st = add_special(t, name, LLAMA3_RANKS + i, err);
    }
    if (!st && !t->post.n_single && tokenizer_token_id(t, llama3_specials[0]) >= 0)
        st = config_set_bos_eos(t, llama3_specials[0], NULL, err);
    return st;
}

/* ---- tekken.json ------------------------------------------------------------------------------
 */

/* What version 3 files without "special_tokens" mean. */
static const char *const tekken_specials[] = {
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
};

/* Ids below `reserved` are special tokens, named or not. */
static enum sl_status add_tekken_specials(struct tokenizer *t, json_t *list, json_int_t reserved,
                                          struct sl_err *err)
{
    json_int_t n = json_is_array(list)
                       ? (json_int_t)json_array_size(list)
                       : (json_int_t)(sizeof tekken_specials / sizeof *tekken_specials);
    for (json_int_t i = 0; i < reserved; i++) {
        char filler[32];
        const char *name = filler;
        json_int_t id = i;
        snprintf(filler, sizeof filler, "<SPECIAL_%d>", (int)i);
        if (i < n && json_is_array(list)) {
            const json_t *item = json_array_get(list, (size_t)i);
            name = json_string_value(json_object_get(item, "token_str"));
            id = json_integer_value(json_object_get(item, "rank"));
            if (!name || id < 0 || id >= reserved)
                return SL_FAIL(err, SL_EFORMAT, "tekken.json: special token %d is wrong", (int)i);
        } else if (i < n) {
            name = tekken_specials[i];
        }
        enum sl_status st = add_special(t, name, id, err);
        if (st)
            return st;
    }
    return SL_OK;
}

static enum sl_status add_tekken_vocab(struct tokenizer *t, struct ranks *r, json_t *vocab,
                                       json_int_t keep, json_int_t reserved, struct sl_err *err)
{
    struct strbuf token;
    strbuf_init(&token, 1 << 16);
    enum sl_status st = SL_OK;
    size_t i;
    json_t *item;
    json_array_foreach(vocab, i, item)
    {
        const json_t *bytes = json_object_get(item, "token_bytes");
        json_int_t rank = json_integer_value(json_object_get(item, "rank"));
        strbuf_clear(&token);
        if (st || (json_int_t)i >= keep)
            break;
        if (!json_is_string(bytes) || rank < 0 || rank >= TOK_MAX_ID - reserved ||
            !base64_decode(&token, json_string_value(bytes), json_string_length(bytes)))
            st = SL_FAIL(err, SL_EFORMAT, "tekken.json: entry %zu of the vocabulary is wrong", i);
        else
            st = add_token(t, r, token.data ? token.data : "", token.len,
                           (int32_t)(rank + reserved), err);
    }
    strbuf_fini(&token);
    return st;
}

enum sl_status tokenizer_from_tekken(struct tokenizer *t, const json_t *root, struct sl_err *err)
{
    const json_t *config = json_object_get(root, "config");
    const char *pattern = json_string_value(json_object_get(config, "pattern"));
    json_int_t reserved = json_integer_value(json_object_get(config, "default_num_special_tokens"));
    json_int_t size = json_integer_value(json_object_get(config, "default_vocab_size"));
    if (!pattern || reserved < 3 || reserved > 100000 || size <= reserved || size > TOK_MAX_ID)
        return SL_FAIL(err, SL_EFORMAT, "tekken.json: \"config\" lacks a pattern or usable sizes");
    struct ranks r = {0};
    strbuf_init(&r.name, 0);
    enum sl_status st =
        add_tekken_vocab(t, &r, json_object_get(root, "vocab"), size - reserved, reserved, err);
    if (!st)
        st = finish(t, &r, pattern, err);
    if (!st)
        st = add_tekken_specials(t, json_object_get(root, "special_tokens"), reserved, err);
    if (!st && tokenizer_token_id(t, "<s>") >= 0)
        st = config_set_bos_eos(t, "<s>", NULL, err);
    strmap_fini(&r.bytes);
    strbuf_fini(&r.name);
    return st;
}
