/* outparse_impl.h - the parts of outparse, for its own files only.
 *
 * A stage holds the text that it has not decided about. Its step() function looks at what is there
 * and either decides about some of it (and returns true) or waits for more. At the end of the text
 * `eof` is set and nothing may wait any more. A decision must be one that no further text changes:
 * that is what makes the events independent of the cuts.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_OUTPARSE_IMPL_H
#define SL_TEXT_OUTPARSE_IMPL_H

#include "text/outparse.h"

#include <stdint.h>

/* Functions have short names; a longer one is not a name but text gone wrong. */
enum { OUT_MAX_NAME = 256 };

struct stage {
    struct strbuf in; /* in.data[0] has offset `base` in the stage's whole text */
    size_t base;
    size_t at; /* all before it is decided; an absolute offset, as all positions are */
    int state;
};

/* ---- JSON, a byte at a time */

enum jscan_result { JSCAN_MORE, JSCAN_DONE, JSCAN_BAD };
enum { JSCAN_DEPTH = 512 };
struct jscan {
    uint8_t st;
    bool key; /* the string being read, or just read, is a key */
    uint8_t hex;
    const char *literal; /* what is left of true, false, null */
    int depth;
    uint64_t object[JSCAN_DEPTH / 64]; /* a bit a level: an object, or an array */
};
void jscan_init(struct jscan *j);
/* Python's json.loads: strict, no NaN. DONE: the value that began at depth 0 is complete. Only
 * objects, arrays and strings end by themselves there. */
enum jscan_result jscan_byte(struct jscan *j, unsigned char c);
bool jscan_in_number(const struct jscan *j);
bool jscan_after_value(const struct jscan *j);
bool jscan_wants_value(const struct jscan *j);

/* {"name": ..., "arguments": ...}, followed through the stage's text; sends its call as soon as the
 * name is known and the arguments have begun. */
struct jcall {
    struct jscan js;
    size_t pos;       /* next byte to look at */
    size_t key_start; /* inside the quotes */
    size_t value_start, args_start, args_end, sent;
    enum { JKEY_OTHER, JKEY_NAME, JKEY_ARGS } key;
    bool in_value, has_name, has_args, args_open, committed;
    struct strbuf name;
};
enum jcall_keys { JCALL_ARGUMENTS = 1, JCALL_PARAMETERS = 2, JCALL_OPTIONAL = 4 };

struct outparse {
    struct outparse_spec spec;
    outparse_fn fn;
    void *ctx;
    bool failed, eof;

    char tail[4]; /* a character that is not complete yet */
    size_t n_tail;

    struct stage think, tools;
    bool thought;                  /* a reasoning section was found */
    bool tool_mark_seen;           /* qwen3: no closing tag is looked for in a call */
    size_t think_from, think_scan; /* granite: the thoughts held back, and how far they were read */

    int n_calls;
    bool call_open;
    bool broken;          /* a call was begun, and then the text was not one */
    bool took;            /* markers were taken away, even if no call came of them */
    bool has_content;     /* other than whitespace was sent */
    bool content_is_held; /* deepseek_v3: a broken call takes nothing of the text before it back */
    struct strbuf spaces; /* whitespace of the content that may have to go */
    struct strbuf *all;   /* all that came to the tool stage; NULL: not kept */
    struct jcall call;
    unsigned call_keys;
    const char *raw_end; /* what ends a broken call */
    int after_raw;       /* and the state then */
    bool raw_mute;       /* its arguments were complete: the rest is dropped */
    bool list_begun;     /* an array has had an item */

    size_t scan; /* text before it was looked at */
    /* pythonic */
    size_t call_from;
    int nest;
    char quote;
    bool triple;
    /* qwen3_xml */
    struct strbuf function;
    int n_params;
    const json_t *properties;
    /* harmony */
    int kind; /* of the message being read */
    bool kind_begun, any_message;
    bool sent[2]; /* a message of this kind with text: reasoning, content */
};

/* ---- outparse.c */
size_t stage_end(const struct stage *s);
const char *stage_text(const struct stage *s, size_t pos);
/* Where the first of the n markers begins at or after pos, its number in *which; or with *which -1
 * where one might begin at the end of the text, which is the end itself when none might. */
size_t stage_seek(const struct stage *s, size_t pos, bool eof, const char *const *markers, int n,
                  int *which);
/* 1: the text at pos begins with it; 0: it does not; -1: too short to tell. */
int stage_begins(const struct stage *s, size_t pos, bool eof, const char *marker);
size_t stage_skip_spaces(const struct stage *s, size_t pos);
bool out_is_space(char c);

void out_reasoning(struct outparse *p, const struct stage *s, size_t from, size_t to);
/* From the reasoning stage to the tool stage. */
void out_to_tools(struct outparse *p, const char *text, size_t n);
/* Content of the tool stage: whitespace waits until it is known to be part of it. */
void out_content(struct outparse *p, const char *text, size_t n);
/* Moves the stage's `at` to `to`, the text between is content. */
void out_content_to(struct outparse *p, struct stage *s, size_t to);
/* A call begins: held whitespace goes out, unless it is all there is or `trim` is set. */
void out_call(struct outparse *p, const char *name, size_t n, bool trim);
void out_arguments(struct outparse *p, const char *text, size_t n);
void out_call_end(struct outparse *p);
/* Content as it is. */
void out_plain(struct outparse *p, const char *text, size_t n);
/* The newline between two messages of one kind. */
void out_joint(struct outparse *p, bool reasoning);
/* The call that was begun is not one: what is left of it, up to `end`, is sent as it is. */
bool out_call_broken(struct outparse *p, struct stage *s, const char *end, int after);
/* From s->at on all is content. */
bool out_give_up(struct outparse *p, struct stage *s);
enum { OUT_STATE_PASS = 100, OUT_STATE_DROP = 101, OUT_STATE_RAW = 102 };
/* The states that all tool parsers share. */
bool out_step_common(struct outparse *p, struct stage *s);

/* ---- outparse_json.c */
void jcall_begin(struct jcall *c, size_t pos);
/* Looks at all the text there is. BAD: see c->committed. DONE: the text up to c->pos is a call,
 * sent and ended, or an object that is none (not committed). */
enum jscan_result jcall_step(struct outparse *p, struct stage *s, bool trim);

/* ---- the stages */
bool think_step(struct outparse *p, struct stage *s);
bool harmony_step(struct outparse *p, struct stage *s);
bool hermes_step(struct outparse *p, struct stage *s);
bool llama3_step(struct outparse *p, struct stage *s);
bool mistral_step(struct outparse *p, struct stage *s);
bool array_step(struct outparse *p, struct stage *s); /* granite, required */
bool named_step(struct outparse *p, struct stage *s);
bool deepseek_step(struct outparse *p, struct stage *s);
bool xml_step(struct outparse *p, struct stage *s);
bool pythonic_step(struct outparse *p, struct stage *s);

/* ---- outparse_python.c: a call "name(key=literal, ...)" as JSON. False: it is none. */
bool python_call(const char *text, size_t n, struct strbuf *name, struct strbuf *arguments);

#endif
