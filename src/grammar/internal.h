/* internal.h - the compiled grammar, its caches, and the vocabulary's trie, as the files of
 * grammar/ share them.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_GRAMMAR_INTERNAL_H
#define SL_GRAMMAR_INTERNAL_H

#include "base/sync.h"
#include "grammar/expr.h"
#include "grammar/grammar.h"

#include <stdatomic.h>

enum {
    DEPTH_MAX = 400,       /* frames of a stack */
    STACKS_MAX = 128,      /* stacks of one state of an output */
    WIDE_BYTES = 4,        /* an automaton state with as many next bytes is worth a split: even
                              white space begins hundreds of tokens */
    SUBTREE_MIN = 24,      /* and a subtree of the trie of as many nodes */
    TOKEN_BYTES_MAX = 256, /* longer tokens are never allowed */
    UNITS_MAX = 255,
    NEED_NEVER = 1 << 20, /* frames that never suffice */
    SPECIAL_OPEN = 0xFF,  /* a special token in the trie: these bytes around its text; */
    SPECIAL_CLOSE = 0xFE  /* neither occurs in UTF-8 */
};

/* ---- the trie of a vocabulary ---------------------------------------------------------------- */

/* Nodes in breadth-first order: a node's children are first[i] .. first[i + 1], by byte. Node 0 is
 * the root. */
struct trie {
    int n, n_tokens;
    int32_t *first;   /* [n + 1] */
    uint8_t *byte;    /* [n] */
    int32_t *token;   /* [n]: one that ends here, -1: none */
    int32_t *same;    /* [n_tokens]: another with the same bytes, -1: none */
    int32_t *subtree; /* [n]: nodes below, itself included */
    int n_words;      /* of a bit set of tokens */
};

/* The bytes that the trie has for a token; 0: none, it is never allowed. buf: TOKEN_BYTES_MAX. */
size_t trie_token_bytes(const struct vocab *v, int32_t eos, int32_t id, uint8_t *buf);
SL_MUST_CHECK enum sl_status trie_init(struct trie *t, const struct vocab *v, int32_t eos,
                                       struct sl_err *err);
void trie_fini(struct trie *t);

static inline void set_bit(uint32_t *bits, int32_t i)
{
    bits[i >> 5] |= 1u << (i & 31);
}

static inline void trie_mark(const struct trie *t, int node, uint32_t *bits)
{
    for (int32_t id = t->token[node]; id >= 0; id = t->same[id])
        set_bit(bits, id);
}

static inline bool byte_in(const uint64_t *set, unsigned b)
{
    return set[b >> 6] >> (b & 63) & 1;
}

/* ---- leaves: rules that call no other, shared between grammars ---------------------------------
 *
 * In a string leaf the state `body` stands between two characters of a JSON string; a byte other
 * than the quote begins one more, which a frame's counter bounds. */
struct leaf {
    uint64_t hash;
    int n, n_class;
    uint8_t cls[256];
    int32_t *next;        /* [n][n_class], -1: dead */
    uint8_t *final;       /* [n] */
    uint64_t (*allow)[4]; /* [n]: bytes that go on */
    uint8_t *wide;        /* [n] */
    int body;             /* string leaf; -1: it counts nothing */
    size_t bytes;
    /* under the library's lock: */
    int refs;
    struct leaf *chain;   /* of the library's hash table */
    struct split **split; /* open addressing by (state, node) */
    int n_split, cap_split;
    size_t split_bytes;
};

/* What tokens below a trie node do in a leaf, from one of its states, whoever called it:
 *   inside: the token ends in the leaf. Sorted by units, the characters it begins.
 *   shut: it ends where the leaf is over; only string leaves tell these apart, for the minimum.
 *   exit: the leaf may be over at this node, what is below it is the caller's to judge.
 * bits: the inside ones as a set, when they are many; below[u]: of those with at most u units. */
struct split_at {
    int32_t id; /* token, or trie node */
    int32_t units;
};
enum { BELOW = 16 };
struct split {
    int state, node;
    int n_inside, n_shut, n_exit;
    struct split_at *inside, *shut, *exit;
    int max_units;
    uint32_t *bits, *below[BELOW];
    size_t bytes;
};

struct leaf *leaf_make(struct grammar_lib *lib, struct work *w, const struct fsm *m, int body);
void leaf_unref(struct grammar_lib *lib, struct leaf *l);
/* NULL: no memory. Made when it is first asked for. *mine: the caller frees it (mem_free). */
struct split *leaf_split(struct grammar_lib *lib, struct leaf *l, int state, int node, bool *mine);

static inline int leaf_step(const struct leaf *l, int state, unsigned byte)
{
    return l->next[state * l->n_class + l->cls[byte]];
}

/* ---- compiled -------------------------------------------------------------------------------- */

struct gedge {
    uint8_t lo, hi;
    int32_t to;
};

struct gcall {
    int32_t rule, to;
};

struct gstate {
    int32_t edge, call; /* first ones */
    int32_t rule;
    int32_t need; /* frames on top of this one that suffice to finish the rule */
    uint16_t n_edge, n_call;
    bool final;
    bool tail; /* final, and nothing else: returning here is returning further */
};

struct grule {
    enum rule_kind kind;
    int32_t first;        /* its states are first .. */
    struct leaf *leaf;    /* RULE_LEAF, RULE_STRING */
    int32_t of, min, max; /* RULE_COUNT, RULE_STRING; max < 0: no bound */
};

/* A frame on its caller: interned, so that equal stacks are one number. */
struct stack {
    int32_t state, count, parent; /* -1: the bottom */
    int32_t depth;
    int32_t chain;
    int32_t below; /* the set of where its parent goes on, -1: not made */
    uint32_t mark;
};

/* Where an output may be: stacks whose top consumes bytes, closed over calls and returns. */
struct set {
    uint64_t hash, allow[4];
    int32_t first, n; /* in g->member */
    int32_t chain;
    int32_t narrow; /* the same without the stacks that have a split; -1: not made */
    bool accept;    /* the output may end here */
    bool wide;      /* some stack has a split */
    struct mask *mask;
};

/* The tokens allowed in a set: a list when few. */
struct mask {
    int n;
    int32_t *ids; /* NULL: bits */
    uint32_t *bits;
    size_t bytes;
};

struct trans {
    uint64_t key; /* set << 8 | byte, plus one: 0 is free */
    int32_t to;
};

enum { SET_DEAD = 0, SET_ENDED = 1 };

struct grammar {
    struct grammar_lib *lib;
    atomic_int refs; /* grammar_ref and _unref, any thread; who brings it to 0 frees it */
    struct grule *rule;
    int n_rules;
    struct gstate *state;
    int n_states;
    struct gedge *edge;
    struct gcall *call;
    uint64_t (*allow)[4]; /* [n_states]: of states with edges of their own */
    int root;
    size_t bytes;

    /* The cache: one thread. A new generation forgets it all. */
    uint32_t generation;
    int room; /* the cache may hold as many times its usual size: outputs in progress need it */
    struct stack *stack;
    int n_stack, cap_stack, *stack_bucket, n_stack_bucket;
    struct set *set;
    int n_set, cap_set, *set_bucket, n_set_bucket;
    int32_t *member;
    int n_member, cap_member;
    struct trans *trans;
    int n_trans, cap_trans;
    int start_set;
    uint32_t stamp;
    int32_t *todo, *out; /* of a closure in the making */
    int n_todo, cap_todo, n_out, cap_out;
    uint32_t *scratch; /* [n_words] */
    size_t mask_bytes;
    bool no_memory;

    /* Of the library's cache, under its lock. */
    struct grammar *newer, *older;
    char *key;
    size_t n_key;
    uint64_t key_hash;
};

SL_MUST_CHECK enum sl_status grammar_build(struct grammar_lib *lib, struct rules *r,
                                           struct grammar **out);
void grammar_free(struct grammar *g);

/* ---- the machine (machine.c) ----------------------------------------------------------------- */

/* Before a matcher uses the cache: makes the start, and a new generation when it grew too large.
 * false: no memory. */
bool machine_ready(struct grammar *g);
/* After an output was followed anew in a new generation: if that alone fills half of the cache, it
 * may grow, or it would be dropped at each token. */
void machine_settle(struct grammar *g);
void machine_clear(struct grammar *g);
int machine_step(struct grammar *g, int set, unsigned byte); /* SET_DEAD: no way on */
int machine_below(struct grammar *g, int stack);             /* where its caller goes on */
int machine_narrow(struct grammar *g, int set);
/* NULL: no memory. Belongs to the cache. */
const struct mask *machine_mask(struct grammar *g, int set);

static inline struct grule *stack_rule(const struct grammar *g, const struct stack *s)
{
    return &g->rule[g->state[s->state].rule];
}

/* Can this stack's masks be read from splits? */
static inline bool stack_is_wide(const struct grammar *g, const struct stack *s)
{
    const struct grule *r = stack_rule(g, s);
    return r->leaf && r->leaf->wide[s->state - r->first];
}

/* ---- the library (lib.c) --------------------------------------------------------------------- */

enum { LEAF_BUCKETS = 512 };

struct grammar_lib {
    const struct vocab *vocab;
    int32_t eos;
    struct trie trie;
    struct mutex lock; /* rank LOCK_GRAMMAR: leaves and their splits, the cache of grammars */
    struct leaf *leaf[LEAF_BUCKETS];
    struct grammar *newest, *oldest;
    int n_cached;
    size_t cached_bytes;
    uint64_t n_compiled, n_hits;
};

/* A structural tag's rule (tags.c). */
struct json_t;
int tags_rules(struct rules *g, const struct grammar_lib *lib, const struct grammar_spec *spec,
               const struct json_t *root);
/* Fills r from spec (front.c). */
void grammar_front(struct rules *r, const struct grammar_lib *lib, const struct grammar_spec *spec);

#endif
