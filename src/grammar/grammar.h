/* grammar.h - what an output must look like: compiled once, walked token by token.
 *
 * A JSON schema, a regular expression, a list of choices, a grammar (GBNF or Lark) or a structural
 * tag becomes rules, each a deterministic automaton over bytes that may call other rules; the state
 * of an output is a set of stacks of them, shared and interned, so that equal states are one
 * number. A vocabulary is a trie of bytes; the tokens that may come next are the paths of the trie
 * that the automaton can follow. docs/structured.md has the story, and what is refused.
 *
 * Bounds: compiling (work.h: memory, effort); the depth of nesting (a stack may never grow so deep
 * that it could not be finished within the bound); the stacks of one state (in an ambiguous grammar
 * the first ones stay: less is accepted, never more); the caches of a grammar (dropped and
 * rebuilt).
 *
 * Thread: grammar_lib and grammar_compile: any. A grammar's matchers, all together: one thread at a
 * time (they share its caches).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_GRAMMAR_H
#define SL_GRAMMAR_GRAMMAR_H

#include "base/status.h"
#include "core/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- one tokenizer's share: the trie, compiled grammars ----------------------------------------
 */

struct grammar_lib;

/* vocab is borrowed. eos: never text, whatever its bytes; -1: none. */
SL_MUST_CHECK enum sl_status grammar_lib_create(struct grammar_lib **out, const struct vocab *vocab,
                                                int32_t eos, struct sl_err *err);
void grammar_lib_destroy(struct grammar_lib **lib); /* after every grammar of it is given back */

struct grammar_lib_stats {
    uint64_t n_compiled, n_hits; /* grammar_compile: made, found */
    int n_cached;
    size_t cached_bytes;
};
void grammar_lib_stats(struct grammar_lib *lib, struct grammar_lib_stats *out);

/* ---- grammars -------------------------------------------------------------------------------- */

enum grammar_kind {
    GRAMMAR_JSON_SCHEMA, /* text: the schema */
    GRAMMAR_JSON_OBJECT, /* any JSON object; no text */
    GRAMMAR_REGEX,       /* the whole output matches */
    GRAMMAR_CHOICE,      /* text: a JSON array of strings */
    GRAMMAR_EBNF,        /* GBNF or Lark, told apart by "::=" */
    GRAMMAR_TAGS         /* text: a structural tag, as JSON */
};

struct grammar_spec {
    enum grammar_kind kind;
    const char *text;
    size_t n_text;
    const char *field;      /* the request's field, for messages; NULL: the kind's usual one */
    bool compact;           /* JSON: no white space outside strings but one space after , and : */
    bool closed;            /* JSON: objects have no properties but those named */
    const char *whitespace; /* JSON: a regular expression for white space; NULL: the default */
};

struct grammar;

/* From the cache, or compiled and kept there. SL_EINVAL: it cannot be enforced, and err says what
 * and where. The caller gives it back with grammar_unref. */
SL_MUST_CHECK enum sl_status grammar_compile(struct grammar_lib *lib,
                                             const struct grammar_spec *spec, struct grammar **out,
                                             struct sl_err *err);
struct grammar *grammar_ref(struct grammar *g);
void grammar_unref(struct grammar **g); /* *g may be NULL; leaves it NULL */

struct grammar_stats {
    int n_rules, n_states;
    size_t bytes;         /* tables */
    int n_stacks, n_sets; /* of the matchers' caches */
    size_t cache_bytes;
};
void grammar_get_stats(const struct grammar *g, struct grammar_stats *out);

/* ---- following an output --------------------------------------------------------------------- */

struct matcher;

/* stop: token ids that may end the output, allowed where it may end; borrowed. */
SL_MUST_CHECK enum sl_status matcher_create(struct matcher **out, struct grammar *g,
                                            const int32_t *stop, int n_stop, struct sl_err *err);
void matcher_destroy(struct matcher **m);
/* A second matcher at the same place (n > 1, beams). */
SL_MUST_CHECK enum sl_status matcher_clone(struct matcher **out, struct matcher *m,
                                           struct sl_err *err);

/* One token more. SL_EINVAL (no message): it is not allowed, nothing changed. */
SL_MUST_CHECK enum sl_status matcher_accept(struct matcher *m, int32_t token);
int matcher_length(const struct matcher *m);     /* tokens accepted */
void matcher_rollback(struct matcher *m, int n); /* forgets the last n tokens */
/* Goes to where exactly these tokens were accepted, from the longest common beginning. SL_EINVAL:
 * one was not allowed; then the matcher stands before it. */
SL_MUST_CHECK enum sl_status matcher_sync(struct matcher *m, const int32_t *tokens, int n);

bool matcher_may_end(struct matcher *m); /* what was accepted is a whole output */
bool matcher_is_done(struct matcher *m); /* and nothing but its end may follow */

/* Bit t of bits[t / 32] set: token t may come next. n_words covers at least the vocabulary; bits
 * beyond it are cleared. *n_allowed: bits set; *forced: the only one, or -1. Where nothing fits
 * (the vocabulary cannot spell what must come), the stop tokens are allowed. */
SL_MUST_CHECK enum sl_status matcher_mask(struct matcher *m, uint32_t *bits, int n_words,
                                          int *n_allowed, int32_t *forced);

#endif
