/* schema.h - JSON Schema (draft 2020-12) to rules, as the files schema*.c share it.
 *
 * A value's schemas are a conjunction: an interned list of schemas, each as it stands in the
 * document or negated. schema_alts() turns one into alternatives of one type each, in which
 * keywords have become languages: of strings and of numbers' texts (automata), of elements, of
 * properties (conjunctions again, so recursion ends where the same conjunction comes back). anyOf
 * is union, allOf and $ref are intersection, not pushes negation inwards, oneOf is each branch
 * without those others that it could overlap with, if/then/else and the dependent keywords are
 * unions of cases. What a step cannot do exactly it refuses by keyword and place; it never lets
 * more pass.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_SCHEMA_H
#define SL_GRAMMAR_SCHEMA_H

#include "grammar/expr.h"
#include "grammar/grammar.h"

#include <jansson.h>

enum {
    ALTS_MAX = 400,   /* alternatives of one value */
    CONJ_MAX = 20000, /* conjunctions of one document */
    LOOK_MAX = 4,     /* levels of properties looked into for a value that cannot be */
    APPLY_MAX = 60,   /* $ref, allOf, anyOf, ... inside one another on one value */
    ANYTHING = 0      /* the conjunction of nothing */
};

enum alt_type { ALT_NULL, ALT_BOOL, ALT_NUM, ALT_STR, ALT_ARR, ALT_OBJ, ALT_VALUE, N_ALT };

struct prop {
    const char *name;
    size_t n_name;
    int conj;
    bool required;
};

/* Properties that have no entry of their own: those whose name is in `keys` (NULL: any) have values
 * in `conj`. The groups of an alternative are disjoint; a name in none is forbidden. */
struct group {
    const struct fsm *keys;
    int conj;
    bool soft;  /* no keyword speaks of its values: allowed, but not made */
    bool asked; /* unless its names are described */
};

struct contains {
    int conj, min, max;
};

struct alt {
    enum alt_type type;
    bool yes, no; /* BOOL */
    /* NUM: texts without an exponent (NULL: every number), exact; what is made is also in `limit`
     */
    const struct fsm *num, *limit;
    bool integer;
    const struct fsm *str;        /* STR: over code points; NULL: any */
    int min, max;                 /* STR, ARR, OBJ; max < 0: none */
    int *prefix, n_prefix, items; /* ARR: conjunctions */
    struct contains *contains;
    int n_contains;
    bool items_known;
    struct prop *prop; /* OBJ */
    int n_prop, cap_prop;
    struct group *group;
    int n_group, cap_group;
    const json_t *value; /* VALUE: exactly this array or object */
};

struct alts {
    int n, cap;
    struct alt **a;
};

struct lit {
    const json_t *s;
    bool negated;
};

struct conj {
    struct lit *lit;
    int n;
    bool never;
    uint64_t hash;
    int chain;
    struct alts *alts; /* NULL: not made */
    bool open;         /* being made */
    int rule;          /* -1: none */
    struct expr *expr; /* NULL: not made */
};

struct schema {
    struct work *w;
    struct rules *g;
    const json_t *root;
    const struct grammar_spec *spec;
    struct conj *conj;
    int n_conj, cap_conj;
    int bucket[1024];
    int depth;  /* of applicators on one value */
    int nested; /* conj_is_never, inside itself */
    bool nested_id;
    int *queue, n_queue, cap_queue;  /* conjunctions whose rules are not defined yet */
    int ws;                          /* rule */
    int number_rule, integer_rule;   /* -1: not made */
    const struct fsm *plain, *whole; /* numbers without an exponent; -?digits */
};

/* "<field>: <pointer>: ..." where s is a schema of the document; keyword NULL: the schema itself.
 */
void schema_refuse(struct schema *c, const json_t *s, const char *keyword, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- conjunctions (schema_conj.c) ------------------------------------------------------------ */

int conj_of(struct schema *c, const json_t *s, bool negated);
int conj_and(struct schema *c, int a, int b);
int conj_never(struct schema *c);
bool conj_is_never(struct schema *c, int conj); /* quickly seen to have no value */

/* ---- alternatives (schema_alt.c) ------------------------------------------------------------- */

struct alt *alt_new(struct schema *c, enum alt_type type); /* any value of the type */
struct alts *alts_new(struct schema *c);
struct alts *alts_any(struct schema *c);
void alts_add(struct schema *c, struct alts *a, struct alt *x); /* x may be NULL */
void alts_join(struct schema *c, struct alts *a, const struct alts *b);
struct alts *alts_and(struct schema *c, const struct alts *a, const struct alts *b);
struct alt *alt_copy(struct schema *c, const struct alt *a);
struct prop *alt_prop(const struct alt *a, const char *name, size_t n);
/* The entry of a name, made from its group if it has none; NULL: the name is forbidden. */
struct prop *alt_need_prop(struct schema *c, struct alt *a, const char *name, size_t n);
void alt_add_prop(struct schema *c, struct alt *a, struct prop p);
void alt_add_group(struct schema *c, struct alt *a, struct group g);
bool alt_is_empty(struct schema *c, const struct alt *a);

/* ---- reading (schema_read.c) ----------------------------------------------------------------- */

struct alts *schema_alts(struct schema *c, int conj);
struct alts *schema_read(struct schema *c, const json_t *s, bool negated);
/* One keyword's negation (schema_not.c). */
struct alts *schema_read_not(struct schema *c, const json_t *s);
struct alts *schema_values(struct schema *c, const json_t *s, const json_t *list); /* enum, const */
const json_t *schema_resolve(struct schema *c, const json_t *s, const char *ref);
struct alts *schema_types(struct schema *c, const json_t *s, const json_t *type, bool negated);
/* min, max and so on, as a count >= 0; -1: absent. */
int schema_count(struct schema *c, const json_t *s, const char *keyword);
const struct fsm *schema_pattern(struct schema *c, const json_t *s, const char *keyword,
                                 const char *pattern, size_t n);

/* ---- languages of scalars -------------------------------------------------------------------- */

/* NULL: the work failed. Strings of a format; unknown ones are refused. */
const struct fsm *schema_format(struct schema *c, const json_t *s, const char *name);
struct bounds {
    const json_t *lo, *hi, *lo_open, *hi_open, *multiple; /* NULL: none */
};
const struct fsm *schema_number(struct schema *c, const json_t *s, const struct bounds *b);
const struct fsm *schema_plain_number(struct schema *c);
const struct fsm *schema_whole_number(struct schema *c); /* -?digits */
const struct fsm *schema_number_value(struct schema *c, const json_t *s, const json_t *v,
                                      bool exact); /* exact: 1, 1.0, 1.00, ...; else the text */

/* ---- documents ------------------------------------------------------------------------------- */

/* The rule of a document's values; 0 after a failure. spec: white space, closed objects. */
int schema_rules(struct rules *g, const struct grammar_spec *spec, const json_t *root);

/* ---- rules (schema_emit.c) ------------------------------------------------------------------- */

struct expr *schema_value(struct schema *c, int conj);
/* Text as a JSON string's inside. */
int put_json_text(struct nfa *a, int from, const char *s, size_t n);

#endif
