/* expr.h - what the front ends write grammars in: expressions over characters, bytes and rules.
 *
 * A grammar is a list of rules: expressions that may call other rules; leaves, finished automata
 * over bytes; counted repetitions of another rule, kept as a counter instead of copies; and
 * strings, JSON's own with bounds on their length. grammar.c compiles them.
 *
 * All memory is the compilation's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_EXPR_H
#define SL_GRAMMAR_EXPR_H

#include "grammar/fsm.h"

enum expr_kind {
    EXPR_EMPTY,
    EXPR_NEVER,
    EXPR_SET,   /* one character */
    EXPR_BYTES, /* these bytes */
    EXPR_CAT,
    EXPR_ALT,
    EXPR_REP,
    EXPR_CALL,
    EXPR_FSM,   /* an automaton over bytes; in regular expressions, over code points */
    EXPR_BEGIN, /* ^: only in regular expressions */
    EXPR_END    /* $ */
};

struct expr {
    enum expr_kind kind;
    int n, cap; /* CAT, ALT: children */
    struct expr **child;
    int min, max; /* REP; max < 0: no bound */
    int rule;     /* CALL */
    struct cset set;
    const char *bytes;
    size_t n_bytes;
    const struct fsm *fsm;
};

/* Marks of a string's ends in automata of regular expressions. */
enum { MARK_BEGIN = CODE_POINT_MAX + 2, MARK_END = CODE_POINT_MAX + 4 };

struct expr *expr_new(struct work *w, enum expr_kind kind);
void expr_add(struct work *w, struct expr *parent, struct expr *child);
struct expr *expr_bytes(struct work *w, const char *s, size_t n);
struct expr *expr_call(struct work *w, int rule);
struct expr *expr_rep(struct work *w, struct expr *body, int min, int max);
struct expr *expr_fsm(struct work *w, const struct fsm *m);
/* CAT of what is given, up to NULL. */
struct expr *expr_cat(struct work *w, ...);
/* Adds e from state `from`; returns the state where it ends. chars: characters are symbols, and
 * literals must be UTF-8; else bytes. */
int expr_emit(struct nfa *a, const struct expr *e, int from, bool chars);

/* ---- regular expressions ---------------------------------------------------------------------
 * The common subset of ECMA-262, Python and PCRE that is regular: classes, groups, alternatives,
 * greedy and lazy repetition, anchors, \d\w\s, \p{..}, (?i). Look-around, back references, word
 * boundaries and possessive repetition are refused by name. */
struct expr *regex_parse(struct work *w, const char *s, size_t n);
/* Over code points. search: matches anywhere (JSON Schema's pattern); else the whole string. */
struct fsm *regex_fsm(struct work *w, const char *s, size_t n, bool search);
/* The set of [...], s[*i] being what follows the bracket; regex's own rules. */
bool regex_class(struct work *w, const char *s, size_t n, size_t *i, struct cset *out);

/* ---- grammars -------------------------------------------------------------------------------- */

enum rule_kind { RULE_EXPR, RULE_LEAF, RULE_COUNT, RULE_STRING };

struct rule {
    enum rule_kind kind;
    const char *name; /* for messages; NULL: made up */
    struct expr *body;
    const struct fsm *fsm; /* RULE_LEAF: over bytes */
    int of, min, max;      /* RULE_COUNT: rule `of`; RULE_STRING: code points; max < 0: no bound */
    bool defined;
};

struct rules {
    struct work *w;
    struct rule *r;
    int n, cap;
    int root;
    int string_rule; /* RULE_STRING without bounds, -1: not yet */
};

void rules_init(struct rules *g, struct work *w);
int rules_new(struct rules *g, const char *name); /* RULE_EXPR, undefined yet; 0 after a failure */
void rules_define(struct rules *g, int rule, struct expr *body);
int rules_leaf(struct rules *g, const struct fsm *bytes);
int rules_string(struct rules *g, int min, int max); /* a JSON string, quotes included */
/* A reader's names and their rules. Zero-initialise. */
struct names {
    struct name {
        const char *s; /* not terminated */
        size_t n;
        int rule, chain;
    } * e;
    int n, cap, bucket[256];
    bool ready;
};
/* The rule of a name, made when it is new. */
int names_rule(struct rules *g, struct names *t, const char *s, size_t n);
int names_find(const struct names *t, const char *s, size_t n); /* -1: none */
/* body{min,max}: copies where they are few, else a counter. */
struct expr *rules_repeat(struct rules *g, struct expr *body, int min, int max);

/* ---- front ends: they give the rule to begin with, 0 after a failure --------------------------
 */

int gbnf_read(struct rules *g, const char *text, size_t n);
int lark_read(struct rules *g, const char *text, size_t n);
/* Is this text Lark's rather than GBNF? As vLLM decides: GBNF has a ::=. */
bool grammar_is_lark(const char *text, size_t n);

#endif
