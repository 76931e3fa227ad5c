/* outparse.h - a model's raw text becomes content, reasoning and tool calls, as it comes.
 *
 *     text --> reasoning parser --> tool parser --> events
 *
 * The events depend on the text alone, never on how it was cut into pieces: what may still become
 * a marker is held back, and nothing that was sent is ever taken back. So a stream's pieces, put
 * together, are the whole answer, with one exception that outparse_whole() makes on purpose: when a
 * call turns out broken after its beginning went out, a stream has already named it, while an
 * answer in one piece gives the text as content, as vLLM does.
 *
 * A failed parse is content, never an error. Time is linear in the text, memory bounded by it.
 *
 * Thread: its owner's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_OUTPARSE_H
#define SL_TEXT_OUTPARSE_H

#include "base/status.h"
#include "base/strbuf.h"

#include <jansson.h>

enum out_tool {
    OUT_TOOL_NONE, /* all is content */
    OUT_HERMES,
    OUT_LLAMA3_JSON,
    OUT_MISTRAL,
    OUT_PYTHONIC,
    OUT_GRANITE,
    OUT_DEEPSEEK_V3,
    OUT_QWEN3_XML,
    OUT_HARMONY,
    OUT_REQUIRED, /* a JSON array of {"name", "parameters"}: tool_choice "required" */
    OUT_NAMED     /* the arguments of the one function that tool_choice names */
};
enum out_reasoning {
    OUT_REASONING_NONE,
    OUT_DEEPSEEK_R1,
    OUT_QWEN3,
    OUT_GPTOSS, /* harmony's channels */
    OUT_GRANITE_THOUGHTS
};

/* Parsers by the names of --tool-call-parser and --reasoning-parser; false: unknown. */
bool outparse_tool_named(const char *name, enum out_tool *out);
bool outparse_reasoning_named(const char *name, enum out_reasoning *out);
const char *outparse_tool_name(int i); /* NULL at the end */
const char *outparse_reasoning_name(int i);
/* The text that ends the reasoning, for a grammar that begins after it; NULL: there is none. */
const char *outparse_reasoning_end(enum out_reasoning kind);

struct outparse_spec {
    enum out_tool tool;
    enum out_reasoning reasoning;
    const json_t *tools; /* the request's, or NULL: they type qwen3_xml's values; borrowed */
    const char *named;   /* OUT_NAMED: the function's name; borrowed */
};

enum out_event {
    OUT_EV_CONTENT,
    OUT_EV_REASONING,
    OUT_EV_CALL,      /* text: the function's name */
    OUT_EV_ARGUMENTS, /* the next piece of the call's arguments: JSON, as the model wrote it */
    OUT_EV_CALL_END
};
struct outparse_piece {
    enum out_event event;
    int call; /* 0, 1, ... in the order of OUT_EV_CALL */
    const char *text;
    size_t bytes;
    size_t raw_end; /* OUT_EV_REASONING: offset in the model's text where the piece ends */
};
typedef void (*outparse_fn)(void *ctx, const struct outparse_piece *piece);

struct outparse;

SL_MUST_CHECK enum sl_status outparse_create(struct outparse **out,
                                             const struct outparse_spec *spec, outparse_fn fn,
                                             void *ctx, struct sl_err *err);
void outparse_destroy(struct outparse **p); /* *p may be NULL; leaves it NULL */
void outparse_feed(struct outparse *p, const char *text, size_t bytes);
void outparse_finish(struct outparse *p); /* the text ends here; what was held back comes out */
int outparse_calls(const struct outparse *p);
/* Out of memory: the events are incomplete. */
bool outparse_failed(const struct outparse *p);

/* ---- an answer in one piece */

struct outparse_call {
    struct strbuf name, arguments;
};
struct outparse_message {
    bool has_content, has_reasoning; /* false: null */
    struct strbuf content, reasoning;
    struct outparse_call *calls;
    int n_calls;
    size_t *reasoning_ends; /* pairs: offsets in the text where reasoning begins and ends */
    int n_spans;
};
SL_MUST_CHECK enum sl_status outparse_whole(struct outparse_message *out,
                                            const struct outparse_spec *spec, const char *text,
                                            size_t bytes, struct sl_err *err);
void outparse_message_fini(struct outparse_message *m);

#endif
