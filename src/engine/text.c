/* A model's tokenizer and chat template, as one immutable object of the public interface.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/status.h"
#include "engine/internal.h"

struct sl_text {
    struct tokenizer *tokenizer;
};

enum sl_status sl_text_open(struct sl_text **out, const char *model, const char *chat_template,
                            struct sl_err *err)
{
    (void)chat_template;
    struct sl_text *t = mem_zalloc(1, sizeof *t);
    if (!t)
        return SL_FAIL(err, SL_ENOMEM, "no memory for a tokenizer");
    enum sl_status st = tokenizer_load(&t->tokenizer, model, err);
    if (st)
        sl_text_close(&t);
    else
        *out = t;
    return st;
}

void sl_text_close(struct sl_text **t)
{
    if (!*t)
        return;
    tokenizer_destroy(&(*t)->tokenizer);
    mem_free(*t);
    *t = NULL;
}

const struct tokenizer *text_tokenizer(const struct sl_text *t)
{
    return t->tokenizer;
}

bool text_has_template(const struct sl_text *t)
{
    (void)t;
    return false;
}
