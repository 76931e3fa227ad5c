/* fsm.h - finite automata over code points or over bytes, with calls of grammar rules as symbols.
 *
 * An nfa is built edge by edge; fsm_from_nfa makes it deterministic (subset construction) and trims
 * what cannot reach an end; fsm_minimize merges equal states; fsm_both and fsm_without are
 * intersection and difference. State 0 is the start. An fsm without states matches nothing.
 *
 * The same machine over code points becomes one over bytes with fsm_to_bytes: as UTF-8, or as the
 * inside of a JSON string, where escapes are other spellings of a character: what JSON must escape
 * in either form it has, everything beyond ASCII also as \uXXXX (surrogates in pairs).
 *
 * All memory is the compilation's (work.h), every loop spends its effort.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_FSM_H
#define SL_GRAMMAR_FSM_H

#include "grammar/work.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CODE_POINT_MAX = 0x10FFFF,
    FSM_STATES_MAX = 60000 /* of one automaton */
};

/* A set of code points: ascending, disjoint, not touching. */
struct crange {
    uint32_t lo, hi;
};
struct cset {
    int n, cap;
    struct crange *r;
};
void cset_add(struct work *w, struct cset *s, uint32_t lo, uint32_t hi); /* any order */
void cset_add_set(struct work *w, struct cset *s, const struct cset *o);
void cset_normalize(struct cset *s);              /* after the last add */
void cset_invert(struct work *w, struct cset *s); /* all characters but these */
void cset_fold(struct work *w, struct cset *s);   /* adds the other case of ASCII letters */
bool cset_has(const struct cset *s, uint32_t c);

enum nfa_kind { NFA_EPS, NFA_RANGE, NFA_CALL };
struct nfa_edge {
    enum nfa_kind kind;
    uint32_t lo, hi; /* NFA_CALL: lo is the rule */
    int to;
    int next; /* of the same state, -1: none */
};
struct nfa {
    struct work *w;
    int *first; /* [n]: a state's edges */
    bool *final;
    int n, cap, cap_final;
    struct nfa_edge *e;
    int n_e, cap_e;
};
void nfa_init(struct nfa *a, struct work *w);
int nfa_state(struct nfa *a); /* 0 after a failure */
void nfa_eps(struct nfa *a, int from, int to);
void nfa_range(struct nfa *a, int from, uint32_t lo, uint32_t hi, int to);
void nfa_set(struct nfa *a, int from, const struct cset *s, int to);
void nfa_call(struct nfa *a, int from, int rule, int to);

struct fedge {
    uint32_t lo, hi;
    int to;
};
struct fcall {
    int rule, to;
};
struct fstate {
    struct fedge *e; /* ascending, disjoint */
    struct fcall *c;
    int n_e, n_c;
    bool final;
};
struct fsm {
    int n, cap;
    struct fstate *s;
};

/* NULL: failed. */
struct fsm *fsm_from_nfa(struct nfa *a, int start);
struct fsm *fsm_minimize(struct work *w, struct fsm *m);
struct fsm *fsm_both(struct work *w, const struct fsm *a, const struct fsm *b);
struct fsm *fsm_without(struct work *w, const struct fsm *a, const struct fsm *b);
struct fsm *fsm_either(struct work *w, const struct fsm *a, const struct fsm *b);
bool fsm_empty(const struct fsm *m);
/* Does the machine accept these code points (or bytes)? */
bool fsm_matches(const struct fsm *m, const uint32_t *c, size_t n);
bool fsm_matches_utf8(const struct fsm *m, const char *s, size_t n);
/* Adds m to a, from state `from`, its ends leading to `to`. */
void nfa_add_fsm(struct nfa *a, const struct fsm *m, int from, int to);

struct fsm *fsm_all(struct work *w);                      /* every string */
struct fsm *fsm_length(struct work *w, int min, int max); /* in code points; max < 0: none */
struct fsm *fsm_literal(struct work *w, const char *s, size_t n); /* of UTF-8 */

/* One code point set as bytes: UTF-8, or as the inside of a JSON string. */
void nfa_add_utf8(struct nfa *a, const struct cset *s, int from, int to);
void nfa_add_json_char(struct nfa *a, const struct cset *s, int from, int to);
struct fsm *fsm_to_bytes(struct work *w, const struct fsm *m, bool json);

/* Decodes one character; 0 at an invalid one. */
size_t utf8_take(const char *s, size_t n, uint32_t *c);

#endif
