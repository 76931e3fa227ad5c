/* tokenizer_config.json and its older companions: what transformers adds to a tokenizer from them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static const char *const named[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
enum { N_NAMED = sizeof named / sizeof *named };

/* A token is written as a string or as an object with "content". */
const char *config_token(const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

struct keyed {
    long long id;
    json_t *value;
    const char *key;
};

static int by_id(const void *a, const void *b)
{
    const struct keyed *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* The tokens of added_tokens_decoder once more, in the order of their ids; their flags win over
 * those in tokenizer.json. */
static enum sl_status add_decoder_tokens(struct tokenizer *t, json_t *decoder, struct sl_err *err)
{
    size_t n = 0;
    struct keyed *list = mem_alloc(json_object_size(decoder) + 1, sizeof *list);
    if (!list)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    const char *key;
    json_t *value;
    json_object_foreach(decoder, key, value)
    {
        list[n++] = (struct keyed){strtoll(key, NULL, 10), value, key};
    }
    qsort(list, n, sizeof *list, by_id);
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < n && !st; i++)
        st = added_parse(t, list[i].value, list[i].id, err);
    mem_free(list);
    return st;
}

/* added_tokens.json: {"token": id}. */
static enum sl_status add_listed_tokens(struct tokenizer *t, json_t *listed, struct sl_err *err)
{
    size_t n = 0;
    struct keyed *list = mem_alloc(json_object_size(listed) + 1, sizeof *list);
    if (!list)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for added tokens");
    const char *key;
    json_t *value;
    json_object_foreach(listed, key, value)
    {
        double id = json_number_value(value);
        bool usable = json_is_number(value) && id >= 0 && id < TOK_MAX_ID;
        list[n++] = (struct keyed){usable ? (long long)id : -1, value, key};
    }
    qsort(list, n, sizeof *list, by_id);
    enum sl_status st = SL_OK;
    for (size_t i = 0; i < n && !st; i++) {
        struct added_token tok = {.id = (int32_t)list[i].id,
                                  .content = (char *)list[i].key,
                                  .len = (uint32_t)strlen(list[i].key),
                                  .normalized = true};
        st = added_put(t, &tok, err);
    }
    mem_free(list);
    return st;
}

/* A token that a name makes special: as an object with its flags; as a string it keeps the flags of
 * the added token it names, or is not normalized. */
static enum sl_status add_named(struct tokenizer *t, const json_t *value, bool keep_flags,
                                struct sl_err *err)
{
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    const char *s = json_string_value(content);
    if (!s || !s[0])
        return SL_OK;
    uint32_t n = (uint32_t)json_string_length(content);
    struct added_token tok = {.id = -1, .content = (char *)s, .len = n, .special = true};
    int32_t known = strmap_get(&t->added.by_content, s, n);
    if (keep_flags && known >= 0) {
        tok = t->added.tokens[known];
        tok.special = true;
        tok.content = (char *)s;
    } else if (json_is_object(value)) {
        tok.lstrip = json_is_true(json_object_get(value, "lstrip"));
        tok.rstrip = json_is_true(json_object_get(value, "rstrip"));
        tok.single_word = json_is_true(json_object_get(value, "single_word"));
        tok.normalized = json_is_true(json_object_get(value, "normalized"));
    }
    return added_put(t, &tok, err);
}

static bool is_named(const char *key)
{
    for (int i = 0; i < N_NAMED; i++) {
        if (!strcmp(key, named[i]))
            return true;
    }
    return false;
}

/* "image_token": "<image>" and the like. */
static bool names_a_token(const char *key, const json_t *value)
{
    size_t n = strlen(key);
    return json_is_string(value) && n > 6 && !strcmp(key + n - 6, "_token") && !is_named(key);
}

static enum sl_status add_named_tokens(struct tokenizer *t, json_t *config, struct sl_err *err)
{
    enum sl_status st = SL_OK;
    for (int i = 0; i < N_NAMED && !st; i++)
        st = add_named(t, json_object_get(config, named[i]), true, err);
    const char *key;
    json_t *value;
    json_object_foreach(config, key, value)
    {
        if (!st && names_a_token(key, value))
            st = add_named(t, value, false, err);
    }
    json_t *extra = json_object_get(config, "extra_special_tokens");
    if (!json_is_array(extra) && !json_is_object(extra))
        extra = json_object_get(config, "additional_special_tokens");
    size_t i;
    json_array_foreach(extra, i, value)
    {
        if (!st)
            st = add_named(t, value, false, err);
    }
    if (json_is_object(extra)) {
        json_object_foreach(extra, key, value)
        {
            if (!st)
                st = add_named(t, value, false, err);
        }
    }
    return st;
}

/* ---- beginning and end of a text --------------------------------------------------------------
 */

static enum sl_status token_piece(struct tokenizer *t, const char *token, json_t *pieces,
                                  json_t *specials, struct sl_err *err)
{
    int32_t id = tokenizer_token_id(t, token);
    if (id < 0)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: %.80s is not in the vocabulary", token);
    json_array_append_new(pieces, json_pack("{s:{s:s}}", "SpecialToken", "id", token));
    json_object_set_new(specials, token, json_pack("{s:[i]}", "ids", (int)id));
    return SL_OK;
}

enum sl_status config_set_bos_eos(struct tokenizer *t, const char *bos, const char *eos,
                                  struct sl_err *err)
{
    json_t *specials = json_object(), *list[2] = {json_array(), json_array()};
    enum sl_status st = SL_OK;
    for (int pair = 0; pair < 2 && !st; pair++) {
        for (int seq = 0; seq <= pair && !st; seq++) {
            if (bos)
                st = token_piece(t, bos, list[pair], specials, err);
            json_array_append_new(list[pair],
                                  json_pack("{s:{s:s}}", "Sequence", "id", seq ? "B" : "A"));
            if (!st && eos)
                st = token_piece(t, eos, list[pair], specials, err);
        }
    }
    json_t *post = json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single",
                             list[0], "pair", list[1], "special_tokens", specials);
    if (!post)
        st = SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the post-processor");
    post_fini(&t->post);
    if (!st)
        st = post_parse(t, post, err);
    json_decref(post);
    return st;
}

/* The classes whose fast tokenizers write the post-processor anew from these two flags. */
static bool obeys_bos_eos(const char *class)
{
    static const char *const families[] = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer",
                                           "CohereTokenizer"};
    for (size_t i = 0; class && i < sizeof families / sizeof *families; i++) {
        if (!strncmp(class, families[i], strlen(families[i])))
            return true;
    }
    return false;
}

static enum sl_status apply_bos_eos(struct tokenizer *t, const json_t *config, struct sl_err *err)
{
    const json_t *add_bos = json_object_get(config, "add_bos_token");
    const json_t *add_eos = json_object_get(config, "add_eos_token");
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    if (!obeys_bos_eos(class) || (!json_is_boolean(add_bos) && !json_is_boolean(add_eos)))
        return SL_OK;
    const char *bos = json_is_false(add_bos) ? NULL : config_token(config, "bos_token");
    const char *eos = json_is_true(add_eos) ? config_token(config, "eos_token") : NULL;
    return config_set_bos_eos(t, bos, eos, err);
}

/* transformers' clean_up_tokenization, as more decoder steps; it leaves BPE alone. */
static enum sl_status apply_cleanup(struct tokenizer *t, const json_t *config, struct sl_err *err)
{
    static const char *const pairs[][2] = {
        {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
        {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    t->n_dec_token = t->n_dec;
    if (t->kind == MODEL_BPE ||
        !json_is_true(json_object_get(config, "clean_up_tokenization_spaces")))
        return SL_OK;
    if (!dec_push(t, DEC_FUSE, err))
        return SL_EFORMAT;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct dec_step *d = dec_push(t, DEC_REPLACE, err);
        if (!d)
            return SL_EFORMAT;
        d->content = mem_strdup(pairs[i][1]);
        d->content_len = strlen(pairs[i][1]);
        enum sl_status st = pattern_literal(&d->pattern, pairs[i][0], strlen(pairs[i][0]), err);
        if (st || !d->content)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a decoder");
    }
    return SL_OK;
}

/* What special_tokens_map.json says is used where tokenizer_config.json lists no added tokens. */
enum sl_status config_apply(struct tokenizer *t, json_t *config, json_t *map, json_t *listed,
                            struct sl_err *err)
{
    json_t *decoder = json_object_get(config, "added_tokens_decoder");
    enum sl_status st = SL_OK;
    t->has_config_tokens = json_object_size(decoder) > 0;
    if (decoder) {
        st = add_decoder_tokens(t, decoder, err);
    } else {
        json_object_update(config, map);
        if (listed)
            st = add_listed_tokens(t, listed, err);
    }
    if (!st)
        st = add_named_tokens(t, config, err);
    if (!st)
        st = apply_bos_eos(t, config, err);
    return st ? st : apply_cleanup(t, config, err);
}
