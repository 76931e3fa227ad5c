/* oai_tool_grammar.h - what an answer that calls tools must look like, as JSON for the grammar.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_OAI_TOOL_GRAMMAR_H
#define SL_HTTP_OAI_TOOL_GRAMMAR_H

#include "text/outparse.h"

/* New references; NULL: no memory. tools: checked (oai_check_tools). */

/* tool_choice "required": a list of {"name", "parameters"}, at least one (or just one), each one of
 * the tools. */
json_t *oai_required_schema(const json_t *tools, bool just_one);
/* A named tool: its parameters. */
json_t *oai_named_schema(const json_t *tools, const char *name);
/* `strict` tools with tool_choice "auto": free text, but a call that is begun has the arguments
 * that its tool's schema allows. As vLLM: once one tool is strict, all are but those that say
 * strict false. NULL also where the parser's form cannot be told so. */
json_t *oai_strict_tag(const json_t *tools, enum out_tool parser);

#endif
