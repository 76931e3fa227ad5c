/* oai_choice.h - what one choice has gained and not sent yet, kept as pieces of JSON text.
 *
 * Outputs are appended as they come. A stream takes them out with every event, or with fewer
 * events while its client reads slowly; an answer in one piece takes them out at the end.
 *
 * Thread: the loop that owns the call.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_HTTP_OAI_CHOICE_H
#define SL_HTTP_OAI_CHOICE_H

#include "base/strbuf.h"
#include "http/oai.h"
#include "http/pieces.h"

/* How a request wants its tokens shown; the same for all its choices. */
struct oai_style {
    enum oai_api api;
    bool logprobs, token_ids, as_ids; /* as_ids: tokens are written "token_id:17" */
    struct pieces *pieces;
    const struct outparse_spec *parse; /* NULL: the text is the content */
    bool stream;
    bool hide_reasoning, one_call, short_ids; /* include_reasoning, parallel_tool_calls, Mistral */
    bool count_reasoning;
    enum oai_tool_mode tools;
    struct http_metrics
        *metrics; /* counts what the tool parser finds; NULL: none, or nobody does */
};

struct oai_choice {
    struct strbuf text;              /* escaped, without quotes; the content, when parsed */
    struct outparse *parser;         /* of a stream */
    struct strbuf raw;               /* the model's text: an answer in one piece is parsed last */
    struct strbuf reasoning;         /* escaped */
    struct strbuf calls;             /* entries of tool_calls, the last one perhaps open */
    int n_calls, open_call;          /* open_call: whose entry is open; -1: none */
    bool has_content, has_reasoning; /* in one piece: not null */
    size_t *ends;                    /* of tokens not yet known to be thoughts or not */
    size_t n_ends, cap_ends, next_end, last_end, n_blank;
    int n_reasoning; /* tokens of thoughts */
    const struct oai_style *style;
    struct strbuf ids;                  /* "1,2,3" */
    struct strbuf content;              /* chat: logprob objects. Completions: tokens */
    struct strbuf values, top, offsets; /* completions */
    int n_tokens;                       /* of the whole choice */
    int n_pending;                      /* tokens that `ids` and the logprobs hold */
    size_t chars;                       /* code points of the tokens shown so far: text_offset */
    enum sl_finish finish;
    enum sl_stop_kind stop_kind;
    int32_t stop_token;
    char *stop_string; /* owned */
    bool echoed;       /* the prompt was put in front */
    bool started;      /* an event of this choice went out */
    bool ended;        /* the event with its finish_reason went out */
};

/* max: bytes that each of the buffers may grow to. */
void oai_choice_init(struct oai_choice *c, size_t max);
void oai_choice_fini(struct oai_choice *c);
void oai_choice_add(struct oai_choice *c, const struct oai_style *s, const struct sl_output *out);
/* An answer in one piece: its text has come; content, reasoning and calls are made of it. */
void oai_choice_parse(struct oai_choice *c, const struct oai_style *s);
/* There is something of the message to send. */
bool oai_choice_has_delta(const struct oai_choice *c);
/* "content":..,"reasoning":..,"tool_calls":[..]: those that there are. */
void oai_choice_put_delta(struct strbuf *b, struct oai_choice *c);
/* echo: the prompt in front. lps may be NULL. */
void oai_choice_add_prompt(struct oai_choice *c, const struct oai_style *s,
                           const struct oai_prompt *p, const struct sl_token_logprobs *lps);
/* Bytes waiting here. */
size_t oai_choice_pending(const struct oai_choice *c);
bool oai_choice_failed(
    const struct oai_choice *c);             /* a buffer ran over its maximum, or out of memory */
void oai_choice_clear(struct oai_choice *c); /* what was waiting has been sent */

/* {"content":[...]}, {"text_offset":...} or null. */
void oai_choice_put_logprobs(struct strbuf *b, const struct oai_choice *c,
                             const struct oai_style *s);
void oai_choice_put_ids(struct strbuf *b, const struct oai_choice *c, const struct oai_style *s);
void oai_choice_put_finish(struct strbuf *b, const struct oai_choice *c); /* "stop" or null */
void oai_choice_put_stop_reason(struct strbuf *b, const struct oai_choice *c);
/* [null, {"17": {"logprob","rank","decoded_token"}}, ...] */
void put_prompt_logprobs(struct strbuf *b, const struct sl_token_logprobs *lps, int n,
                         struct pieces *pieces);
void put_token_list(struct strbuf *b, const int32_t *tokens, int n);

#endif
