/* chat.h - a model's chat templates: where they lie, which one a request takes, what it sees.
 *
 * As transformers finds them: chat_template.jinja and additional_chat_templates/NAME.jinja; where
 * there is none of these, `chat_template` of tokenizer_config.json (a text, or a list of named
 * ones), then chat_template.json. A request with tools takes the one named "tool_use", others
 * "default". The template sees the special tokens of tokenizer_config.json (bos_token, ...; of
 * special_tokens_map.json in old checkpoints), and tools and documents as none and
 * add_generation_prompt as false where the request says nothing.
 *
 * Immutable after chat_open().   Thread: any, all calls.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_CHAT_H
#define SL_TEXT_CHAT_H

#include "base/status.h"

#include <jansson.h>

struct chat;

/* dir: a model folder, or NULL when `chosen` is all there is. chosen (--chat-template): the name of
 * a file, or of one of the model's templates, or the template itself; NULL: the model's own.
 * A model without any template opens fine. A broken template of the model's own is reported when a
 * request needs it; a broken `chosen` one here. */
SL_MUST_CHECK enum sl_status chat_open(struct chat **out, const char *dir, const char *chosen,
                                       struct sl_err *err);
void chat_close(struct chat **chat); /* *chat may be NULL; leaves it NULL */
bool chat_has_template(const struct chat *chat);
/* Why the template that requests without tools take cannot be used; NULL: it can. */
const char *chat_problem(const struct chat *chat);

/* Whether the template that a request takes reads contents as lists of parts; see
 * template_reads_parts(). */
bool chat_reads_parts(const struct chat *chat, bool tools, const char *override);

/* Renders a request. vars: an object, each key a variable of the template (messages, tools,
 * documents, add_generation_prompt, the keys of chat_template_kwargs, ...); borrowed, not changed.
 * override: a template of the request's own, or the name of one of the model's; NULL: none.
 * When vars has continue_final_message true (or the name of the message's field), the text ends
 * where the last message's text does. now: see template_render().
 * SL_EINVAL: the request's fault; err->msg is what the template said (raise_exception), or where
 * and how it failed. *text is NUL-terminated, free it with mem_free. */
SL_MUST_CHECK enum sl_status chat_render(const struct chat *chat, const json_t *vars,
                                         const char *override, const char *now, char **text,
                                         size_t *bytes, struct sl_err *err);

#endif
