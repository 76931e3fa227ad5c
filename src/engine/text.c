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
    if (chat_problem(t->chat))
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
