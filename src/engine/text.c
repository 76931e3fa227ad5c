/* A model's tokenizer and chat templates, as one immutable object of the public interface.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/mem.h"
#include "base/status.h"
#include "engine/internal.h"
#include "text/chat.h"
#include "text/template.h"

#include <string.h>

struct sl_text {
    struct tokenizer *tokenizer; /* NULL: only a chat template was asked for */
    struct chat *chat;
};

enum sl_status sl_text_open(struct sl_text **out, const char *model, const char *chat_template,
                            struct sl_err *err)
{
    if (!model && !chat_template)
        return SL_FAIL_PARAM(err, SL_EINVAL, "model", "neither a model nor a template was given");
    struct sl_text *t = mem_zalloc(1, sizeof *t);
    if (!t)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a tokenizer");
    enum sl_status st = model ? tokenizer_load(&t->tokenizer, model, err) : SL_OK;
    if (!st)
        st = chat_open(&t->chat, model, chat_template, err);
    if (st) {
        sl_text_close(&t);
        return st;
    }
    if (model && chat_has_template(t->chat) && chat_problem(t->chat))
        log_warning("The chat template cannot be used: %s", chat_problem(t->chat));
    *out = t;
    return SL_OK;
}

void sl_text_close(struct sl_text **t)
{
    if (!*t)
        return;
    tokenizer_destroy(&(*t)->tokenizer);
    chat_close(&(*t)->chat);
    mem_free(*t);
    *t = NULL;
}

const struct tokenizer *text_tokenizer(const struct sl_text *t)
{
    return t->tokenizer;
}

bool text_has_template(const struct sl_text *t)
{
    return chat_has_template(t->chat);
}

static enum sl_status need_tokenizer(const struct sl_text *t, struct sl_err *err)
{
    if (t && t->tokenizer)
        return SL_OK;
    return SL_FAIL(err, SL_EINVAL, "there is no tokenizer");
}

enum sl_status sl_text_encode_max(const struct sl_text *t, const char *text, size_t bytes,
                                  bool add_special_tokens, size_t max_tokens, int32_t **ids,
                                  size_t *n, struct sl_err *err)
{
    struct token_vec v = {0};
    enum sl_status st = need_tokenizer(t, err);
    if (!st)
        st = tokenizer_encode(t->tokenizer, text, bytes,
                              add_special_tokens ? ENCODE_ADD_SPECIAL : 0, max_tokens, &v, err);
    if (!st && !v.ids && !(v.ids = mem_alloc(1, sizeof *v.ids)))
        st = SL_FAIL(err, SL_ENOMEM, "no memory for tokens");
    if (st) {
        token_vec_fini(&v);
        return st;
    }
    *ids = v.ids;
    *n = v.n;
    return SL_OK;
}

enum sl_status sl_text_encode(const struct sl_text *t, const char *text, size_t bytes,
                              bool add_special_tokens, int32_t **ids, size_t *n, struct sl_err *err)
{
    return sl_text_encode_max(t, text, bytes, add_special_tokens, 0, ids, n, err);
}

enum sl_status sl_text_encode_pair(const struct sl_text *t, const char *a, size_t a_bytes,
                                   const char *b, size_t b_bytes, int32_t **ids, size_t *n,
                                   size_t *n_first, struct sl_err *err)
{
    struct token_vec v = {0};
    enum sl_status st = need_tokenizer(t, err);
    if (!st)
        st = tokenizer_encode_pair(t->tokenizer, a, a_bytes, b, b_bytes, ENCODE_ADD_SPECIAL,
                                   n_first, &v, err);
    if (!st && !v.ids && !(v.ids = mem_alloc(1, sizeof *v.ids)))
        st = SL_FAIL(err, SL_ENOMEM, "no memory for tokens");
    if (st) {
        token_vec_fini(&v);
        return st;
    }
    *ids = v.ids;
    *n = v.n;
    return SL_OK;
}

/* Where the texts lie among the special tokens: [start, start + n). */
struct span {
    size_t start, n;
};

/* From what the tokenizer puts around empty texts. */
static enum sl_status find_texts(const struct sl_text *t, const int32_t *ids, size_t n,
                                 const size_t *n_first, struct span text[2], struct sl_err *err)
{
    int32_t *bare = NULL;
    size_t n_bare = 0, second = 0, lead = 0;
    enum sl_status st = n_first ? sl_text_encode_pair(t, "", 0, "", 0, &bare, &n_bare, &second, err)
                                : sl_text_encode(t, "", 0, true, &bare, &n_bare, err);
    if (st)
        return st;
    size_t first = n_first ? second : n_bare; /* special tokens up to the second text, or all */
    while (lead < first && lead < n && ids[lead] == bare[lead])
        lead++;
    mem_free(bare);
    size_t end = n_first ? *n_first : n,
           after = first - lead; /* between the first and the second */
    if (n < n_bare || end < lead + after)
        return SL_FAIL(err, SL_EINVAL, "these are not the tokens of such a text");
    text[0] = (struct span){lead, end - lead - after};
    text[1] = (struct span){end, n_first ? n - end - (n_bare - second) : 0};
    return SL_OK;
}

enum sl_status sl_text_truncate(const struct sl_text *t, int32_t *ids, size_t *n, size_t *n_first,
                                size_t keep, bool left, struct sl_err *err)
{
    struct span text[2];
    if (*n <= keep)
        return SL_OK;
    enum sl_status st = find_texts(t, ids, *n, n_first, text, err);
    if (st)
        return st;
    size_t over = *n - keep, cut[2] = {0};
    for (; over && text[0].n + text[1].n; over--) { /* one by one from the longer */
        int from = text[0].n >= text[1].n ? 0 : 1;
        text[from].n--;
        cut[from]++;
    }
    for (int i = 1; i >= 0; i--) { /* the later one first: the other's place stays */
        size_t at = text[i].start + (left ? 0 : text[i].n);
        memmove(ids + at, ids + at + cut[i], (*n - at - cut[i]) * sizeof *ids);
        *n -= cut[i];
    }
    if (n_first)
        *n_first -= cut[0];
    *n = *n < keep ? *n : keep; /* less than the special tokens: they are cut too */
    return SL_OK;
}

enum sl_status sl_text_decode(const struct sl_text *t, const int32_t *ids, size_t n,
                              bool skip_special_tokens, char **text, size_t *bytes,
                              struct sl_err *err)
{
    enum sl_status st = need_tokenizer(t, err);
    return st ? st : tokenizer_decode(t->tokenizer, ids, n, skip_special_tokens, text, bytes, err);
}

const char *sl_text_token(const struct sl_text *t, int32_t id)
{
    return t && t->tokenizer ? tokenizer_token(t->tokenizer, id) : NULL;
}

const unsigned char *sl_text_token_bytes(const struct sl_text *t, int32_t id, size_t *n)
{
    const struct vocab *v = t && t->tokenizer ? tokenizer_vocab(t->tokenizer) : NULL;
    *n = 0;
    return v && id >= 0 && id < v->n ? vocab_bytes(v, id, n) : NULL;
}

enum sl_status sl_text_render_with(const struct sl_text *t, const char *vars,
                                   const char *chat_template, const char *now, char **text,
                                   size_t *bytes, struct sl_err *err)
{
    if (!t || (!chat_template && !chat_has_template(t->chat)))
        return SL_FAIL(err, SL_EINVAL, "the model has no chat template");
    json_t *v = template_vars_parse(vars, strlen(vars), err);
    if (!v)
        return SL_EINVAL;
    enum sl_status st = json_is_object(v)
                            ? chat_render(t->chat, v, chat_template, now, text, bytes, err)
                            : SL_FAIL(err, SL_EINVAL, "template variables must be a JSON object");
    json_decref(v);
    return st;
}

static enum sl_status render_pair(const struct sl_text *t, const char *a, size_t a_bytes,
                                  const char *b, size_t b_bytes, const char *vars, char **text,
                                  size_t *bytes, struct sl_err *err)
{
    json_t *v = template_vars_parse(vars, strlen(vars), err);
    if (!v)
        return SL_EINVAL;
    json_object_set_new(v, "messages",
                        json_pack("[{s:s, s:s%}, {s:s, s:s%}]", "role", "query", "content", a,
                                  a_bytes, "role", "document", "content", b, b_bytes));
    json_object_set_new(v, "tools", json_null());
    enum sl_status st = json_object_get(v, "messages")
                            ? chat_render(t->chat, v, NULL, NULL, text, bytes, err)
                            : SL_FAIL(err, SL_EINVAL, "a pair of texts must be valid UTF-8");
    json_decref(v);
    return st;
}

enum sl_status sl_text_pair(const struct sl_text *t, const char *a, size_t a_bytes, const char *b,
                            size_t b_bytes, const char *vars, char **text, size_t *bytes,
                            struct sl_err *err)
{
    if (vars)
        return render_pair(t, a, a_bytes, b, b_bytes, vars, text, bytes, err);
    if (!(*text = mem_alloc(a_bytes + b_bytes + 1, 1)))
        return SL_FAIL(err, SL_ENOMEM, "no memory for a pair of texts");
    memcpy(*text, a, a_bytes);
    memcpy(*text + a_bytes, b, b_bytes);
    (*text)[a_bytes + b_bytes] = 0;
    *bytes = a_bytes + b_bytes;
    return SL_OK;
}

bool sl_text_reads_parts(const struct sl_text *t, bool tools, const char *chat_template)
{
    return t && chat_reads_parts(t->chat, tools, chat_template);
}

enum sl_status sl_text_render(const struct sl_text *t, const char *vars, const char *now,
                              char **text, struct sl_err *err)
{
    size_t bytes;
    return sl_text_render_with(t, vars, NULL, now, text, &bytes, err);
}
