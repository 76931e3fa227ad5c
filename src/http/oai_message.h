/* oai_message.h - a choice's text as a chat message: content, reasoning and tool calls.
 *
 * Thread: the loop that owns the call.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_OAI_MESSAGE_H
#define SL_HTTP_OAI_MESSAGE_H

#include "http/oai_choice.h"

/* Takes an output's text, and its end. */
void oai_choice_read(struct oai_choice *c, const struct oai_style *s, const struct sl_output *out);
/* Its finish_reason is "tool_calls". */
bool oai_choice_called(const struct oai_choice *c);

#endif
