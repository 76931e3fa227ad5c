/* jinja.h - inside the chat-template interpreter; template.h is its only face.
 *
 *   source --lex--> tokens --parse--> tree --scope--> tree with variable slots --eval--> text
 *
 * The language is Jinja2 3.1 as transformers configures it, with Python's values underneath.
 *
 * Errors do not travel as return values here: jfail() jumps back to template_compile() or
 * template_render(). An expression interpreter fails in hundreds of places, all of its memory is
 * in one arena and its output in one buffer, so there is nothing to undo on the way, and a value
 * can be returned as a value. Nothing outside this folder sees the jump.
 *
 * Values never change once made (the sandbox forbids it), save namespaces, cyclers, joiners, loops
 * and iterators. So strings and lists share memory freely, and `a + b` may write b behind a when
 * nobody has yet: building a text piece by piece stays linear.
 *
 * Memory: one arena per compiled template, one per render, both limited.
 * Thread: a struct jrt belongs to one call; a tree is read-only after compilation.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_JINJA_H
#define SL_TEXT_JINJA_H

#include "base/mem.h"
#include "base/strbuf.h"
#include "text/template.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- values --------------------------------------------------------------------------------- */

enum jkind {
    J_MISSING, /* no value at all: an unset slot, an argument not given; templates never see it */
    J_UNDEF,
    J_NONE,
    J_BOOL,
    J_INT,
    J_BIG, /* an integer outside int64 */
    J_FLOAT,
    J_STR,
    J_TUPLE,
    J_LIST,
    J_DICT,
    J_RANGE,
    J_VIEW, /* dict.keys(), values(), items() */
    J_ITER,
    J_NS,
    J_FUNC,   /* a global function */
    J_METHOD, /* a method bound to its object */
    J_MACRO,
    J_LOOP,
    J_CYCLER,
    J_JOINER,
    J_SELF,  /* the `self` of blocks */
    J_BLOCK, /* self.name */
};

struct jval {
    uint8_t kind;
    bool markup; /* J_STR: a markupsafe.Markup */
    union {
        bool b;
        int64_t i;
        double f;
        int fn; /* J_FUNC: enum jfunc */
        struct jbig *big;
        struct jstr *s;
        struct jlist *l; /* J_TUPLE, J_LIST */
        struct jdict *d; /* J_DICT, J_NS */
        struct jrange *r;
        struct jview *w;
        struct jiter *it;
        struct jundef *u;
        struct jmethod *m;
        struct jmacro *mac;
        struct jloop *loop;
        struct jcycler *cyc;
        struct jjoiner *join;
        struct node *block;
    };
};

/* Text is UTF-8; code points are what templates count. Lone surrogates (from '\ud800' escapes) are
 * carried as their three-byte form and refused when the text is handed out. */
struct jstr {
    const char *p;
    size_t n;
    size_t chars;     /* code points; SIZE_MAX: not counted yet */
    struct jgrow *in; /* the growing block that p lies in, or NULL */
};
struct jlist {
    struct jval *v;
    size_t n;
    struct jgrow *in;
    bool group; /* a groupby pair: has .grouper and .list */
};
struct jgrow {
    char *data;
    size_t used, cap; /* bytes; what lies beyond `used` nobody has seen */
};
struct jpair {
    struct jval key, value;
    uint64_t hash;
};
struct jdict {
    struct jpair *v; /* in order of insertion */
    size_t n, cap;
    uint32_t *index; /* open addressing, entry + 1; NULL while small */
    size_t n_index;
    uint64_t seed;
    bool printing; /* a namespace may hold itself */
};
struct jrange {
    int64_t start, stop, step, n;
};
enum jview_kind { JVIEW_KEYS, JVIEW_VALUES, JVIEW_ITEMS };
struct jview {
    struct jdict *d;
    enum jview_kind kind;
};
struct jundef {
    const char *hint; /* the whole message, or NULL: made from obj and name */
    struct jval obj;  /* J_MISSING: a variable */
    struct jval name;
};
struct jmethod {
    struct jval self;
    int id; /* enum jattr */
};
struct jcycler {
    struct jval *v;
    size_t n, pos;
};
struct jjoiner {
    struct jval sep;
    bool used;
};

/* ---- the tree ------------------------------------------------------------------------------- */

struct jpos {
    uint32_t line, col; /* from 1; columns count code points */
};

enum jop { JOP_ADD, JOP_SUB, JOP_MUL, JOP_DIV, JOP_FLOORDIV, JOP_MOD, JOP_POW };
enum jcmp { JCMP_EQ, JCMP_NE, JCMP_LT, JCMP_LE, JCMP_GT, JCMP_GE, JCMP_IN, JCMP_NOTIN };

enum node_kind {
    /* expressions */
    N_CONST,
    N_NAME,
    N_NSREF, /* ns.attr as a target */
    N_TUPLE,
    N_LIST,
    N_DICT,
    N_ATTR,
    N_ITEM,
    N_SLICE,
    N_CALL,
    N_FILTER,
    N_TEST,
    N_NOT,
    N_NEG,
    N_POS,
    N_BIN,
    N_AND,
    N_OR,
    N_CONCAT,
    N_COMPARE,
    N_COND,
    /* statements */
    N_DATA,
    N_OUTPUT,
    N_FOR,
    N_IF,
    N_MACRO,
    N_CALLBLOCK,
    N_FILTERBLOCK,
    N_WITH,
    N_SET,
    N_SETBLOCK,
    N_BLOCK,
    N_AUTOESCAPE,
    N_BREAK,
    N_CONTINUE,
    N_NOLOADER, /* include, import, from, extends: there is nothing to load from */
};

struct nodes {
    struct node **v;
    size_t n, cap;
};
struct jkw {
    struct jstr *name;
    struct node *value;
};
struct call_args {
    struct nodes pos;
    struct jkw *kw;
    size_t n_kw;
    struct node *dyn_args, *dyn_kwargs;
};

/* A variable's place: so many functions out, then a slot. */
struct slot {
    uint16_t hops, index;
};
enum load_kind { LOAD_UNDEFINED, LOAD_RESOLVE, LOAD_ALIAS, LOAD_PARAM };
struct load {
    enum load_kind kind;
    uint16_t index; /* the slot of this function that is set */
    struct slot from;
    struct jstr *name;
};
/* What a block of statements does to its slots on entry; on exit they are all unset. */
struct scope {
    struct load *v;
    size_t n;
};
/* A macro, a call block, a template, a recursive loop, a loop's condition: has slots of its own. */
struct func {
    size_t n_slots;
    struct scope scope;
    struct nodes params, defaults;
    struct slot caller, kwargs, varargs;
    bool uses_caller, uses_kwargs, uses_varargs, explicit_caller;
};

struct node {
    uint8_t kind, op;
    bool store;  /* N_NAME: a target */
    bool export; /* N_SET, N_MACRO, N_SETBLOCK at the top level: blocks see the names too */
    struct jpos pos;
    union {
        struct jval konst;
        struct {
            struct jstr *name;
            struct slot slot;
            struct jstr *attr; /* N_NSREF */
        } name;
        struct nodes list; /* N_DICT: key, value, key, value */
        struct {
            struct node *a, *b, *c; /* N_COND: test, then, else; N_ITEM: b may be an N_SLICE */
        } e;
        struct {
            struct node *base;
            struct jstr *name;
            int attr; /* enum jattr, or -1 */
        } attr;
        struct {
            struct node *base; /* NULL: the block's text (filter blocks) */
            struct call_args *args;
            const struct jfilter *filter;
            const struct jtest *test;
            struct jstr *name;
        } call;
        struct {
            struct node *first;
            struct nodes rest;
            uint8_t *ops; /* enum jcmp */
        } cmp;
        struct {
            const char *p;
            size_t n;
        } data;
        struct {
            struct node *target, *iter, *test, *test_target;
            struct nodes body, otherwise;
            struct scope scope, else_scope;
            struct func *test_func, *func; /* func: recursive loops */
            struct slot loop;
            bool recursive, has_loop;
        } loop;
        struct {
            struct node *test;
            struct nodes body, elifs, otherwise; /* elifs: N_IF with a test and a body each */
        } cond;
        struct {
            struct jstr *name;
            struct func *func;
            struct nodes body;
            struct slot slot;
            struct node *call; /* N_CALLBLOCK; NULL: a generation block, which calls its body */
        } macro;
        struct {
            struct node *target, *value, *filter;
            struct nodes targets, values, body;
            struct scope scope;
        } set; /* N_SET, N_SETBLOCK, N_FILTERBLOCK, N_WITH, N_AUTOESCAPE */
        struct {
            struct jstr *name;
            struct func *func;
            struct nodes body;
            bool scoped, required;
        } block;
        const char *what; /* N_NOLOADER */
    };
};

struct template
{
    struct arena arena;
    struct nodes body;
    struct func *root;
    struct nodes blocks;
};

/* ---- one compilation or render -------------------------------------------------------------- */

struct env { /* the slots of one call of a func */
    struct env *up;
    struct jval slot[];
};

struct jrt {
    struct arena arena;
    jmp_buf fail;
    struct sl_err *err;
    enum sl_status status;
    struct jpos at; /* what is being evaluated or parsed, for messages */
    const struct template_limits *limits;
    uint64_t steps;
    int depth;
    /* rendering only */
    const struct template *t;
    struct strbuf out;
    const json_t *vars, *defaults;
    struct jdict *context; /* variables looked up so far, and the top level's assignments */
    struct env *env;
    const char *now;
    uint64_t seed; /* of string hashes */
    bool autoescape;
};

enum jerr_kind {
    JERR_SYNTAX,
    JERR_TYPE,
    JERR_VALUE,
    JERR_UNDEFINED,
    JERR_SECURITY,
    JERR_LIMIT,
    JERR_RUNTIME,
    JERR_RAISED, /* raise_exception: the message is the template's own, without a position */
};
void jfail(struct jrt *rt, enum jerr_kind kind, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));
void jfail_raised(struct jrt *rt, struct jstr *msg) __attribute__((noreturn));
void *jalloc(struct jrt *rt, size_t n, size_t size); /* zeroed, never NULL */
void jfail_steps(struct jrt *rt) __attribute__((noreturn));
void jfail_depth(struct jrt *rt) __attribute__((noreturn));
void jout(struct jrt *rt, const char *p, size_t n);

/* Every loop and every recursion of the interpreter pays here, so that both are bounded. */
static inline void jstep(struct jrt *rt, uint64_t n)
{
    rt->steps += n;
    if (rt->steps > rt->limits->steps)
        jfail_steps(rt);
}
static inline void jstep_bytes(struct jrt *rt, size_t n)
{
    jstep(rt, 1 + n / 32);
}
static inline void jenter(struct jrt *rt)
{
    if (++rt->depth > rt->limits->depth)
        jfail_depth(rt);
}
static inline void jleave(struct jrt *rt)
{
    rt->depth--;
}

/* ---- compilation ---------------------------------------------------------------------------- */

enum tok_kind {
    T_EOF,
    T_DATA,
    T_VAR_BEGIN,
    T_VAR_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_ADD,
    T_SUB,
    T_MUL,
    T_DIV,
    T_FLOORDIV,
    T_MOD,
    T_POW,
    T_TILDE,
    T_LBRACKET,
    T_RBRACKET,
    T_LPAREN,
    T_RPAREN,
    T_LBRACE,
    T_RBRACE,
    T_EQ,
    T_NE,
    T_GT,
    T_GE,
    T_LT,
    T_LE,
    T_ASSIGN,
    T_DOT,
    T_COLON,
    T_PIPE,
    T_COMMA,
    T_SEMICOLON,
};
struct tok {
    enum tok_kind kind;
    struct jpos pos;
    const char *p; /* T_NAME, T_DATA, T_STRING: the (unescaped) text */
    size_t n;
    struct jval num; /* T_INT, T_FLOAT */
};
struct toks {
    struct tok *v;
    size_t n, cap;
};
void jlex(struct jrt *rt, const char *source, size_t bytes, struct toks *out);

struct parser {
    struct jrt *rt;
    struct toks toks;
    size_t at;
    struct nodes blocks;
    const char *looking_for[64]; /* the end tags of the open blocks, for messages */
    const char *open[64];
    int n_open;
    bool in_loop;
};
void jparse(struct parser *p, struct nodes *body);
/* between the two halves of the parser */
struct node *parse_expr(struct parser *p, bool with_cond);
struct node *parse_tuple(struct parser *p, bool with_cond, bool parens, const char *end);
struct node *parse_target(struct parser *p, bool with_ns, const char *end);
struct node *parse_filters(struct parser *p, struct node *base, bool first_inline);
struct node *node_new(struct parser *p, enum node_kind kind, struct jpos pos);
void nodes_add(struct jrt *rt, struct nodes *l, struct node *n);
struct tok *tok_now(struct parser *p);
struct tok *tok_take(struct parser *p);
bool tok_is(const struct tok *t, const char *name); /* the name token `name` */
bool tok_skip(struct parser *p, enum tok_kind kind);
bool tok_skip_name(struct parser *p, const char *name);
struct tok *tok_expect(struct parser *p, enum tok_kind kind);
void tok_expect_name(struct parser *p, const char *name);
const char *tok_text(struct jrt *rt, const struct tok *t);
void parse_fail(struct parser *p, struct jpos pos, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 3, 4)));

void jscope(struct jrt *rt, struct template *t);

/* ---- making values -------------------------------------------------------------------------- */

#define JNONE ((struct jval){.kind = J_NONE})
#define JMISSING ((struct jval){.kind = J_MISSING})
static inline struct jval jbool(bool b)
{
    return (struct jval){.kind = J_BOOL, .b = b};
}
static inline struct jval jint(int64_t i)
{
    return (struct jval){.kind = J_INT, .i = i};
}
static inline struct jval jfloat(double f)
{
    return (struct jval){.kind = J_FLOAT, .f = f};
}
static inline struct jval jstrv(struct jstr *s)
{
    return (struct jval){.kind = J_STR, .s = s};
}
static inline struct jval jlistv(struct jlist *l)
{
    return (struct jval){.kind = J_LIST, .l = l};
}
static inline struct jval jtuplev(struct jlist *l)
{
    return (struct jval){.kind = J_TUPLE, .l = l};
}
static inline struct jval jdictv(struct jdict *d)
{
    return (struct jval){.kind = J_DICT, .d = d};
}
struct jstr *jstr_view(struct jrt *rt, const char *p, size_t n); /* borrows p */
struct jstr *jstr_new(struct jrt *rt, const char *p, size_t n);  /* copies */
struct jval jstr_lit(struct jrt *rt, const char *s);             /* borrows */
struct jstr *jstr_cat(struct jrt *rt, struct jstr *a, struct jstr *b);
bool jstr_eq(const struct jstr *a, const struct jstr *b);
bool jstr_is(const struct jstr *a, const char *s);
int jstr_cmp(const struct jstr *a, const struct jstr *b); /* by code point */
size_t jstr_chars(struct jstr *s);
bool jstr_ascii(struct jstr *s);
size_t jstr_offset(struct jstr *s, size_t chars); /* byte offset of a code point */
struct jstr *jstr_sub(struct jrt *rt, struct jstr *s, size_t from, size_t to); /* code points */
struct jstr *jstr_char(struct jrt *rt, uint32_t cp);

struct jlist *jlist_new(struct jrt *rt, size_t n);               /* n unset items */
void jlist_push(struct jrt *rt, struct jlist *l, struct jval v); /* while it is being made */
struct jlist *jlist_cat(struct jrt *rt, struct jlist *a, struct jlist *b);
struct jval jpair_tuple(struct jrt *rt, struct jval a, struct jval b);

struct jdict *jdict_new(struct jrt *rt);
struct jval *jdict_get(struct jrt *rt, const struct jdict *d, struct jval key); /* NULL: absent */
struct jval *jdict_get_str(const struct jdict *d, const struct jstr *key);
void jdict_set(struct jrt *rt, struct jdict *d, struct jval key, struct jval v);
struct jval jundef_name(struct jrt *rt, struct jstr *name);
struct jval jundef_hint(struct jrt *rt, const char *hint);
struct jval jundef_attr(struct jrt *rt, struct jval obj, struct jval name);
void jfail_undef(struct jrt *rt, struct jval u) __attribute__((noreturn));
struct jval jval_from_json(struct jrt *rt, const json_t *j);
/* What template_vars_parse() writes for what jansson cannot read. */
#define JINJA_KEY_PREFIX "\001key:"
#define JINJA_BIG_KEY "\001integer" /* {JINJA_BIG_KEY: "123..."} */

/* Text under construction, in the arena. */
struct jbuild {
    struct jrt *rt;
    char *p;
    size_t n, cap;
};
void jb_add(struct jbuild *b, const char *p, size_t n);
void jb_adds(struct jbuild *b, const char *s);
void jb_addc(struct jbuild *b, char c);
void jb_fill(struct jbuild *b, const char *p, size_t n, size_t times);
void jb_str(struct jbuild *b, const struct jstr *s);
void jb_cp(struct jbuild *b, uint32_t cp);
void jb_fmt(struct jbuild *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
struct jstr *jb_done(struct jbuild *b);

/* ---- asking about values -------------------------------------------------------------------- */

bool jtruth(struct jrt *rt, struct jval v);
bool jeq(struct jrt *rt, struct jval a, struct jval b);
bool jis_same(struct jval a, struct jval b);                              /* Python's `is` */
int jorder(struct jrt *rt, struct jval a, struct jval b, const char *op); /* fails on mixed types */
bool jless(struct jrt *rt, struct jval a, struct jval b);
bool jcompare(struct jrt *rt, enum jcmp op, struct jval a, struct jval b);
bool jcontains(struct jrt *rt, struct jval container, struct jval item);
bool jlen(struct jrt *rt, struct jval v, int64_t *n); /* false: has no len() */
uint64_t jhash(struct jrt *rt, struct jval v);
const char *jtype(struct jval v);              /* Python's name of the type */
const char *jtype_long(struct jval v);         /* "dict object", as messages say it */
bool jis_number(struct jval v);                /* int, float, bool */
bool jis_intlike(struct jval v, int64_t *out); /* int or bool */
int64_t jneed_int(struct jrt *rt, struct jval v, const char *what);
double jnumber(struct jrt *rt, struct jval v);
bool jiterable(struct jval v);

void jstr_of(struct jbuild *b, struct jval v);  /* str(v) */
void jrepr_of(struct jbuild *b, struct jval v); /* repr(v) */
struct jstr *jto_str(struct jrt *rt, struct jval v);
struct jval jsoft_str(struct jrt *rt, struct jval v); /* strings stay what they are */
struct jval jescape(struct jrt *rt, struct jval v);
void jfloat_repr(char out[32], double f);
/* printf's %e, %f or %g in the C locale */
int jformat_double(char *out, size_t cap, char type, int precision, bool alt, double f);
double jstrtod(const char *p, size_t n, bool *ok); /* the C locale's */

/* ---- operations ----------------------------------------------------------------------------- */

struct jval jbinary(struct jrt *rt, enum jop op, struct jval a, struct jval b);
struct jval jnegate(struct jrt *rt, struct jval v, bool plus);
struct jval jget_attr(struct jrt *rt, struct jval obj, struct jstr *name, int attr);
struct jval jget_item(struct jrt *rt, struct jval obj, struct jval key);
struct jval jslice(struct jrt *rt, struct jval obj, struct jval from, struct jval to,
                   struct jval step);
/* Python's own o[k]: J_MISSING where that raises LookupError or TypeError. */
struct jval jsubscript(struct jrt *rt, struct jval obj, struct jval key);

/* Integers outside int64. Both operands are J_INT, J_BOOL or J_BIG. */
struct jval jbig_binary(struct jrt *rt, enum jop op, struct jval a, struct jval b);
struct jval jbig_negate(struct jrt *rt, struct jval a);
int jbig_cmp(struct jrt *rt, struct jval a, struct jval b);
int jbig_cmp_float(struct jrt *rt, struct jval a, double b);
struct jval jbig_parse(struct jrt *rt, const char *digits, size_t n, int base, bool negative);
struct jval jbig_from_double(struct jrt *rt, double d); /* truncates; d is finite */
double jbig_double(struct jrt *rt, struct jval a);
void jbig_print(struct jbuild *b, struct jval a, int base); /* 10, or a power of two */
bool jbig_negative(struct jval a);
bool jbig_odd(struct jval a);
size_t jbig_bits(struct jval a);
uint64_t jbig_hash(struct jval a);

/* ---- iterators ------------------------------------------------------------------------------ */

struct jval jiter(struct jrt *rt, struct jval v); /* iter(v); fails when it cannot be iterated */
bool jnext(struct jrt *rt, struct jval it, struct jval *out); /* false: *out means nothing */
struct jlist *jlist_of(struct jrt *rt, struct jval v); /* list(v); a list is shared, not copied */
struct jval jreversed(struct jrt *rt, struct jval v, bool *ok);

struct jargs {
    struct jval *pos;
    size_t n;
    struct jval *kw_name, *kw; /* [n_kw], names are J_STR */
    size_t n_kw;
};
enum jgen_kind {
    JGEN_MAP,
    JGEN_SELECT,
    JGEN_UNIQUE,
    JGEN_BATCH,
    JGEN_SLICE,
    JGEN_ITEMS,
    JGEN_WHERE
};
struct jattrs { /* "a.b.0" */
    struct jval *v;
    size_t n;
};
struct jgen {
    enum jgen_kind kind;
    struct jval source; /* iterated from the first jnext() on, as a Python generator does */
    struct jargs args;
    bool prepared, by_attr, negate, ignore_case;
    struct jattrs attrs;
    struct jval fallback;
    const struct jfilter *filter;
    const struct jtest *test;
    struct jval it;
    struct jdict *seen;
    int64_t count, pos, offset;
    struct jlist *all;
    const struct node *loop; /* JGEN_WHERE */
    struct env *env;
};
struct jval jgenerator(struct jrt *rt, struct jgen *g);
bool jgen_next(struct jrt *rt, struct jgen *g, struct jval *out);
bool jwhere_next(struct jrt *rt, struct jgen *g, struct jval *out); /* for x in xs if ... */

/* ---- calls ---------------------------------------------------------------------------------- */

struct jval jcall(struct jrt *rt, struct jval f, const struct jargs *args);
struct jval *jarg_kw(const struct jargs *args, const char *name);
/* Python's binding of arguments to the parameters named in `params` ("old new count?"; after `|`
 * keyword only); out gets J_MISSING for optional ones that were not given. */
void jbind(struct jrt *rt, const char *fn, const char *params, const struct jargs *args,
           struct jval *out);
enum { JMAX_PARAMS = 8 };

typedef struct jval (*jfilter_fn)(struct jrt *rt, struct jval v, struct jval *a,
                                  const struct jargs *raw);
struct jfilter {
    const char *name;
    jfilter_fn fn;
    const char *params; /* NULL: takes `raw` as it is */
};
typedef bool (*jtest_fn)(struct jrt *rt, struct jval v, struct jval *a);
struct jtest {
    const char *name;
    jtest_fn fn;
    const char *params;
};
const struct jfilter *jfilter_find(const char *name, size_t n);
const struct jtest *jtest_find(const char *name, size_t n);
extern const struct jfilter jfilters_text[], jfilters_seq[]; /* end with a NULL name */
struct jval jfilter_call(struct jrt *rt, const struct jfilter *f, struct jval v,
                         const struct jargs *args);
bool jtest_call(struct jrt *rt, const struct jtest *t, struct jval v, const struct jargs *args);
struct jattrs jattrs_of(struct jrt *rt, struct jval attribute);
struct jval jattrs_get(struct jrt *rt, const struct jattrs *a, struct jval v, struct jval fallback);
struct jval jignore_case(struct jrt *rt, struct jval v);
void jsort(struct jrt *rt, struct jval *items, struct jval *keys, size_t n, bool reverse);

enum jfunc {
    JF_RANGE,
    JF_DICT,
    JF_LIPSUM,
    JF_CYCLER,
    JF_JOINER,
    JF_NAMESPACE,
    JF_RAISE,
    JF_STRFTIME,
};
bool jfunc_find(const struct jstr *name, struct jval *out);
const char *jfunc_name(int fn);
struct jval jfunc_call(struct jrt *rt, int fn, const struct jargs *args);
struct jval jstr_method(struct jrt *rt, struct jval self, int id, const struct jargs *args);
struct jval jobj_method(struct jrt *rt, struct jval self, int id, const struct jargs *args);
struct jval jpercent(struct jrt *rt, struct jval fmt, struct jval args);
struct jval jformat(struct jrt *rt, struct jval fmt, const struct jargs *args);
struct jval jformat_map(struct jrt *rt, struct jval fmt, struct jval map);
struct jval jstrip_tags(struct jrt *rt, struct jval v);
struct jval jtojson(struct jrt *rt, struct jval v, struct jval *a, const struct jargs *raw);
struct jval jwordwrap(struct jrt *rt, struct jval v, struct jval *a);
struct jval jstrftime(struct jrt *rt, struct jval fmt);
struct jval jstr_join(struct jrt *rt, struct jval sep, struct jval items, bool to_str);
struct jlist *jstr_splitlines(struct jrt *rt, struct jval s, bool keep_ends);
struct jval jstr_replace(struct jrt *rt, struct jval s, struct jval from, struct jval to,
                         int64_t count);
struct jval jstr_strip(struct jrt *rt, struct jval s, struct jval chars, bool left, bool right);
struct jval jstr_case(struct jrt *rt, struct jval s, int id);
struct jval jstr_center(struct jrt *rt, struct jval s, int64_t width, struct jval fill);
size_t jmem_find(const char *hay, size_t n, const char *needle, size_t m); /* SIZE_MAX: absent */
struct jval jto_int(struct jrt *rt, struct jval v, struct jval fallback, int64_t base);
struct jval jto_float(struct jrt *rt, struct jval v, struct jval fallback);

/* Loops and macros, for attribute access and calls. */
struct jval jloop_attr(struct jrt *rt, struct jval loop, struct jstr *name);
int64_t jloop_length(struct jrt *rt, struct jval loop);
struct jval jmacro_attr(struct jrt *rt, struct jval macro, struct jstr *name);
struct jstr *jmacro_name(struct jval macro);
struct jval jblock_find(struct jrt *rt, struct jval name);

/* ---- attribute names that Python's own types have ------------------------------------------- */

/* name, types that have it, types on which the sandbox hides it because it would change them */
#define JATTRS(X)                             \
    X(capitalize, JA_STR, 0)                  \
    X(casefold, JA_STR, 0)                    \
    X(center, JA_STR, 0)                      \
    X(encode, JA_STR, 0)                      \
    X(endswith, JA_STR, 0)                    \
    X(expandtabs, JA_STR, 0)                  \
    X(find, JA_STR, 0)                        \
    X(format, JA_STR, 0)                      \
    X(format_map, JA_STR, 0)                  \
    X(isalnum, JA_STR, 0)                     \
    X(isalpha, JA_STR, 0)                     \
    X(isascii, JA_STR, 0)                     \
    X(isdecimal, JA_STR, 0)                   \
    X(isdigit, JA_STR, 0)                     \
    X(isidentifier, JA_STR, 0)                \
    X(islower, JA_STR, 0)                     \
    X(isnumeric, JA_STR, 0)                   \
    X(isprintable, JA_STR, 0)                 \
    X(isspace, JA_STR, 0)                     \
    X(istitle, JA_STR, 0)                     \
    X(isupper, JA_STR, 0)                     \
    X(join, JA_STR, 0)                        \
    X(ljust, JA_STR, 0)                       \
    X(lower, JA_STR, 0)                       \
    X(lstrip, JA_STR, 0)                      \
    X(maketrans, JA_STR, 0)                   \
    X(partition, JA_STR, 0)                   \
    X(removeprefix, JA_STR, 0)                \
    X(removesuffix, JA_STR, 0)                \
    X(replace, JA_STR, 0)                     \
    X(rfind, JA_STR, 0)                       \
    X(rindex, JA_STR, 0)                      \
    X(rjust, JA_STR, 0)                       \
    X(rpartition, JA_STR, 0)                  \
    X(rsplit, JA_STR, 0)                      \
    X(rstrip, JA_STR, 0)                      \
    X(split, JA_STR, 0)                       \
    X(splitlines, JA_STR, 0)                  \
    X(startswith, JA_STR, 0)                  \
    X(strip, JA_STR, 0)                       \
    X(swapcase, JA_STR, 0)                    \
    X(title, JA_STR, 0)                       \
    X(translate, JA_STR, 0)                   \
    X(upper, JA_STR, 0)                       \
    X(zfill, JA_STR, 0)                       \
    X(escape, JA_MARKUP, 0)                   \
    X(striptags, JA_MARKUP, 0)                \
    X(unescape, JA_MARKUP, 0)                 \
    X(count, JA_STR | JA_SEQ | JA_RANGE, 0)   \
    X(index, JA_STR | JA_SEQ | JA_RANGE, 0)   \
    X(copy, JA_LIST | JA_DICT, 0)             \
    X(append, 0, JA_LIST)                     \
    X(clear, 0, JA_LIST | JA_DICT)            \
    X(extend, 0, JA_LIST)                     \
    X(insert, 0, JA_LIST)                     \
    X(pop, 0, JA_LIST | JA_DICT)              \
    X(remove, 0, JA_LIST)                     \
    X(reverse, 0, JA_LIST)                    \
    X(sort, 0, JA_LIST)                       \
    X(fromkeys, JA_DICT, 0)                   \
    X(get, JA_DICT, 0)                        \
    X(items, JA_DICT, 0)                      \
    X(keys, JA_DICT, 0)                       \
    X(values, JA_DICT, 0)                     \
    X(popitem, 0, JA_DICT)                    \
    X(setdefault, 0, JA_DICT)                 \
    X(update, 0, JA_DICT)                     \
    X(isdisjoint, JA_VIEW, 0)                 \
    X(as_integer_ratio, JA_INT | JA_FLOAT, 0) \
    X(bit_count, JA_INT, 0)                   \
    X(bit_length, JA_INT, 0)                  \
    X(conjugate, JA_INT | JA_FLOAT, 0)        \
    X(hex, JA_FLOAT, 0)                       \
    X(is_integer, JA_FLOAT, 0)                \
    X(cycle, JA_LOOP, 0)                      \
    X(changed, JA_LOOP, 0)                    \
    X(next, JA_CYCLER, 0)                     \
    X(reset, JA_CYCLER, 0)
enum {
    JA_STR = 1,
    JA_LIST = 2,
    JA_TUPLE = 4,
    JA_SEQ = JA_LIST | JA_TUPLE,
    JA_DICT = 8,
    JA_RANGE = 16,
    JA_VIEW = 32,
    JA_INT = 64,
    JA_FLOAT = 128,
    JA_LOOP = 256,
    JA_CYCLER = 512,
    JA_MARKUP = 1024,
};
enum jattr {
#define X(name, has, hides) JM_##name,
    JATTRS(X)
#undef X
        JM_COUNT
};
int jattr_find(const char *name, size_t n); /* -1: no built-in type has it */
const char *jattr_name(int attr);

/* ---- Unicode, as Python's str sees it ------------------------------------------------------- */

size_t juni_decode(const char *p, size_t n, uint32_t *cp); /* bytes taken; trusts its input */
size_t juni_encode(uint32_t cp, char out[4]);
bool juni_valid(const char *p, size_t n);
bool juni_space(uint32_t cp);
bool juni_alpha(uint32_t cp);
bool juni_decimal(uint32_t cp, int *digit);
bool juni_digit(uint32_t cp);
bool juni_numeric(uint32_t cp);
bool juni_printable(uint32_t cp);
bool juni_lower(uint32_t cp);
bool juni_upper(uint32_t cp);
bool juni_title(uint32_t cp);
bool juni_cased(uint32_t cp);
bool juni_ignorable(uint32_t cp); /* skipped when looking for a final sigma */
bool juni_id_start(uint32_t cp);
bool juni_id_continue(uint32_t cp);
/* Full mappings: up to three code points. */
enum juni_case { JCASE_LOWER, JCASE_UPPER, JCASE_TITLE, JCASE_FOLD };
int juni_map(uint32_t cp, enum juni_case how, uint32_t out[3]);

#endif
