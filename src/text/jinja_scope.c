/* SPDX-License-Identifier: Apache-2.0
 *
 * Which variable a name means. Jinja compiles to Python functions, and its scoping is what falls
 * out of that: a frame (loop body, with, set block, ...) decides once, from all of its text,
 * whether a name is its own; a name that a frame stores starts as a copy of the outer one, and one
 * that it only reads is looked up in the context when the frame is entered, not when it is read; a
 * macro sees the variables around it as they are when it is called. Templates rely on all of it, so
 * this file follows Jinja's rules one by one.
 *
 * A variable is a pair (level of nesting, name); within one function equal pairs share a slot. */
#include "text/jinja.h"

#include <string.h>

struct var { /* a name that a frame knows itself */
    struct jstr *name;
    enum load_kind load;
    struct slot alias;  /* hops from this frame's function */
    bool stored, known; /* known: has a slot (a name may be stored before it is known) */
    uint16_t index;
};

struct owner { /* a func, while it is being analysed */
    struct owner *up;
    struct func *func;
    struct var *slots; /* name and level of each slot */
    int *levels;
    size_t n, cap;
};

struct frame {
    struct frame *up;
    struct owner *owner;
    int level;
    struct var *v;
    size_t n, cap;
    bool soft, toplevel; /* soft: inside an if, where unknown filters are a matter of run time */
};

struct scoper {
    struct jrt *rt;
    struct template *t;
};

static uint16_t slot_for(struct scoper *s, struct owner *o, int level, struct jstr *name)
{
    for (size_t i = 0; i < o->n; i++)
        if (o->levels[i] == level && jstr_eq(o->slots[i].name, name))
            return (uint16_t)i;
    if (o->n == o->cap) {
        size_t cap = o->cap ? o->cap * 2 : 16;
        struct var *v = jalloc(s->rt, cap, sizeof *v);
        int *levels = jalloc(s->rt, cap, sizeof *levels);
        if (o->n) {
            memcpy(v, o->slots, o->n * sizeof *v);
            memcpy(levels, o->levels, o->n * sizeof *levels);
        }
        o->slots = v;
        o->levels = levels;
        o->cap = cap;
    }
    if (o->n == UINT16_MAX)
        jfail(s->rt, JERR_LIMIT, "too many variables");
    o->slots[o->n] = (struct var){.name = name};
    o->levels[o->n] = level;
    o->func->n_slots = o->n + 1;
    return (uint16_t)o->n++;
}

static struct var *var_of(struct frame *f, const struct jstr *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (jstr_eq(f->v[i].name, name))
            return &f->v[i];
    return NULL;
}

static struct var *var_add(struct scoper *s, struct frame *f, struct jstr *name)
{
    struct var *v = var_of(f, name);
    if (v)
        return v;
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 8;
        v = jalloc(s->rt, cap, sizeof *v);
        if (f->n)
            memcpy(v, f->v, f->n * sizeof *v);
        f->v = v;
        f->cap = cap;
    }
    v = &f->v[f->n++];
    *v = (struct var){.name = name};
    return v;
}

/* The slot that `name` means in f, as seen from f's function. */
static bool find_ref(struct frame *f, const struct jstr *name, struct slot *out)
{
    uint16_t hops = 0;
    for (struct frame *g = f; g; g = g->up) {
        struct var *v = var_of(g, name);
        if (v && v->known) {
            *out = (struct slot){hops, v->index};
            return true;
        }
        if (g->up)
            for (struct owner *o = g->owner; o != g->up->owner; o = o->up)
                hops++;
    }
    return false;
}

/* The same, but starting outside of f. */
static bool find_outer(struct frame *f, const struct jstr *name, struct slot *out)
{
    if (!f->up || !find_ref(f->up, name, out))
        return false;
    for (struct owner *o = f->owner; o != f->up->owner; o = o->up)
        out->hops++;
    return true;
}

static struct var *define(struct scoper *s, struct frame *f, struct jstr *name, enum load_kind load)
{
    struct var *v = var_add(s, f, name);
    v->known = true;
    v->load = load;
    v->index = slot_for(s, f->owner, f->level, name);
    return v;
}

static void sym_store(struct scoper *s, struct frame *f, struct jstr *name)
{
    struct var *v = var_add(s, f, name);
    v->stored = true;
    if (v->known)
        return;
    struct slot outer;
    if (find_outer(f, name, &outer)) {
        v = define(s, f, name, LOAD_ALIAS);
        v->alias = outer;
    } else {
        define(s, f, name, LOAD_UNDEFINED);
    }
}

static struct slot sym_param(struct scoper *s, struct frame *f, struct jstr *name)
{
    struct var *v = define(s, f, name, LOAD_PARAM);
    v->stored = true;
    return (struct slot){0, v->index};
}

static void sym_load(struct scoper *s, struct frame *f, struct jstr *name)
{
    struct slot ignored;
    if (!find_ref(f, name, &ignored))
        define(s, f, name, LOAD_RESOLVE);
}

/* ---- which names the text of a frame loads and stores ------------------------------------------
 */

static void see_all(struct scoper *s, struct frame *f, const struct nodes *l, bool param);

static void see_args(struct scoper *s, struct frame *f, const struct call_args *a)
{
    see_all(s, f, &a->pos, false);
    for (size_t i = 0; i < a->n_kw; i++)
        see_all(s, f, &(struct nodes){&a->kw[i].value, 1, 1}, false);
    struct node *dyn[] = {a->dyn_args, a->dyn_kwargs};
    see_all(s, f, &(struct nodes){dyn, 2, 2}, false);
}

static struct frame frame_copy(struct scoper *s, const struct frame *f)
{
    struct frame c = *f;
    c.v = jalloc(s->rt, f->n + 1, sizeof *c.v);
    c.cap = f->n + 1;
    if (f->n)
        memcpy(c.v, f->v, f->n * sizeof *c.v);
    return c;
}

/* After an if: a name stored in a branch and not before may or may not have been set, so it starts
 * as whatever it is outside. */
static void merge_branches(struct scoper *s, struct frame *f, struct frame branch[3])
{
    struct frame before = frame_copy(s, f);
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < branch[i].n; k++) {
            struct var *from = &branch[i].v[k];
            struct var *v = var_add(s, f, from->name);
            bool stored = v->stored || from->stored;
            *v = *from;
            v->stored = stored;
        }
    }
    for (size_t k = 0; k < f->n; k++) {
        struct var *v = &f->v[k], *old = var_of(&before, v->name);
        if (!v->stored || (old && old->stored))
            continue;
        struct slot outer;
        if (find_outer(f, v->name, &outer)) {
            v->load = LOAD_ALIAS;
            v->alias = outer;
        } else {
            v->load = LOAD_RESOLVE;
        }
    }
}

static void see(struct scoper *s, struct frame *f, const struct node *n, bool param);

static void see_if(struct scoper *s, struct frame *f, const struct node *n)
{
    see(s, f, n->cond.test, false);
    const struct nodes *bodies[] = {&n->cond.body, &n->cond.elifs, &n->cond.otherwise};
    struct frame branch[3];
    for (int i = 0; i < 3; i++) {
        branch[i] = frame_copy(s, f);
        see_all(s, &branch[i], bodies[i], false);
    }
    merge_branches(s, f, branch);
}

static void see_statement(struct scoper *s, struct frame *f, const struct node *n)
{
    switch (n->kind) {
    case N_OUTPUT:
        see_all(s, f, &n->list, false);
        break;
    case N_IF:
        see_if(s, f, n);
        break;
    case N_FOR:
        see(s, f, n->loop.iter, false);
        break;
    case N_MACRO:
        sym_store(s, f, n->macro.name);
        break;
    case N_CALLBLOCK:
        see(s, f, n->macro.call, false);
        break;
    case N_FILTERBLOCK:
        see(s, f, n->set.filter, false);
        break;
    case N_WITH:
        see_all(s, f, &n->set.values, false);
        break;
    case N_SET:
        see(s, f, n->set.value, false);
        see(s, f, n->set.target, false);
        break;
    case N_SETBLOCK:
        see(s, f, n->set.target, false);
        break;
    default: /* blocks and autoescape have frames of their own, the rest has no names */
        break;
    }
}

static void see(struct scoper *s, struct frame *f, const struct node *n, bool param)
{
    if (!n)
        return;
    jenter(s->rt);
    switch (n->kind) {
    case N_NAME:
        if (param)
            sym_param(s, f, n->name.name);
        else if (n->store)
            sym_store(s, f, n->name.name);
        else
            sym_load(s, f, n->name.name);
        break;
    case N_NSREF:
        sym_load(s, f, n->name.name);
        break;
    case N_TUPLE:
    case N_LIST:
    case N_DICT:
    case N_CONCAT:
        see_all(s, f, &n->list, param);
        break;
    case N_ATTR:
        see(s, f, n->attr.base, false);
        break;
    case N_CALL:
    case N_FILTER:
    case N_TEST:
        see(s, f, n->call.base, false);
        see_args(s, f, n->call.args);
        break;
    case N_COMPARE:
        see(s, f, n->cmp.first, false);
        see_all(s, f, &n->cmp.rest, false);
        break;
    case N_ITEM:
    case N_SLICE:
    case N_NOT:
    case N_NEG:
    case N_POS:
    case N_BIN:
    case N_AND:
    case N_OR:
    case N_COND:
        see(s, f, n->e.a, false);
        see(s, f, n->e.b, false);
        see(s, f, n->e.c, false);
        break;
    default:
        see_statement(s, f, n);
    }
    jleave(s->rt);
}

static void see_all(struct scoper *s, struct frame *f, const struct nodes *l, bool param)
{
    for (size_t i = 0; i < l->n; i++)
        see(s, f, l->v[i], param);
}

/* ---- is a special name used before it is set? ----------------------------------------------- */

struct special {
    const char *name[3];
    bool used[3], hidden[3];
};

static void look(struct scoper *s, struct special *q, const struct node *n);

static void look_all(struct scoper *s, struct special *q, const struct nodes *l)
{
    for (size_t i = 0; i < l->n; i++)
        look(s, q, l->v[i]);
}

static void look_name(struct special *q, const struct node *n)
{
    for (int i = 0; i < 3 && q->name[i]; i++) {
        if (!jstr_is(n->name.name, q->name[i]))
            continue;
        if (n->kind == N_NAME && !n->store && !q->hidden[i])
            q->used[i] = true;
        else if (n->kind == N_NAME && n->store)
            q->hidden[i] = true;
    }
}

static void look_func(struct scoper *s, struct special *q, const struct func *f)
{
    look_all(s, q, &f->params);
    look_all(s, q, &f->defaults);
}

static void look_statement(struct scoper *s, struct special *q, const struct node *n)
{
    switch (n->kind) {
    case N_OUTPUT:
        look_all(s, q, &n->list);
        break;
    case N_FOR:
        look(s, q, n->loop.target);
        look(s, q, n->loop.iter);
        look_all(s, q, &n->loop.body);
        look_all(s, q, &n->loop.otherwise);
        look(s, q, n->loop.test);
        break;
    case N_IF:
        look(s, q, n->cond.test);
        look_all(s, q, &n->cond.body);
        look_all(s, q, &n->cond.elifs);
        look_all(s, q, &n->cond.otherwise);
        break;
    case N_MACRO:
    case N_CALLBLOCK:
        look(s, q, n->macro.call);
        look_func(s, q, n->macro.func);
        look_all(s, q, &n->macro.body);
        break;
    case N_FILTERBLOCK:
        look_all(s, q, &n->set.body);
        look(s, q, n->set.filter);
        break;
    case N_WITH:
    case N_SET:
    case N_SETBLOCK:
    case N_AUTOESCAPE:
        look_all(s, q, &n->set.targets);
        look_all(s, q, &n->set.values);
        look(s, q, n->set.target);
        look(s, q, n->set.value);
        look(s, q, n->set.filter);
        look_all(s, q, &n->set.body);
        break;
    default: /* blocks are functions apart */
        break;
    }
}

static void look(struct scoper *s, struct special *q, const struct node *n)
{
    if (!n)
        return;
    jenter(s->rt);
    switch (n->kind) {
    case N_NAME:
    case N_NSREF:
        look_name(q, n);
        break;
    case N_TUPLE:
    case N_LIST:
    case N_DICT:
    case N_CONCAT:
        look_all(s, q, &n->list);
        break;
    case N_ATTR:
        look(s, q, n->attr.base);
        break;
    case N_CALL:
    case N_FILTER:
    case N_TEST:
        look(s, q, n->call.base);
        look_all(s, q, &n->call.args->pos);
        for (size_t i = 0; i < n->call.args->n_kw; i++)
            look(s, q, n->call.args->kw[i].value);
        look(s, q, n->call.args->dyn_args);
        look(s, q, n->call.args->dyn_kwargs);
        break;
    case N_COMPARE:
        look(s, q, n->cmp.first);
        look_all(s, q, &n->cmp.rest);
        break;
    case N_ITEM:
    case N_SLICE:
    case N_NOT:
    case N_NEG:
    case N_POS:
    case N_BIN:
    case N_AND:
    case N_OR:
    case N_COND:
        look(s, q, n->e.a);
        look(s, q, n->e.b);
        look(s, q, n->e.c);
        break;
    default:
        look_statement(s, q, n);
    }
    jleave(s->rt);
}

static struct special look_for(struct scoper *s, const struct nodes *body, const char *a,
                               const char *b, const char *c)
{
    struct special q = {.name = {a, b, c}};
    look_all(s, &q, body);
    return q;
}

/* ---- giving every name its slot ----------------------------------------------------------------
 */

static void place(struct scoper *s, struct frame *f, struct node *n);

static void place_all(struct scoper *s, struct frame *f, struct nodes *l)
{
    for (size_t i = 0; i < l->n; i++)
        place(s, f, l->v[i]);
}

static struct frame frame_inner(struct frame *up, struct owner *owner)
{
    return (struct frame){.up = up, .owner = owner, .level = up->level + 1};
}

/* What entering the frame does; called when the frame's names are complete. */
static void finish(struct scoper *s, const struct frame *f, struct scope *out)
{
    out->v = jalloc(s->rt, f->n + 1, sizeof *out->v);
    out->n = 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct var *v = &f->v[i];
        if (v->known)
            out->v[out->n++] = (struct load){v->load, v->index, v->alias, v->name};
    }
}

/* Jinja forgets to look at the arguments of a set block's filter when it collects a frame's names,
 * and then fails on those that nothing else in the frame has named. */
static struct slot place_name(struct scoper *s, struct frame *f, struct jstr *name)
{
    struct slot slot;
    if (!find_ref(f, name, &slot))
        jfail(s->rt, JERR_SYNTAX,
              "the name '%.*s' is not known in the filter of a set block; set a variable first",
              (int)name->n, name->p);
    return slot;
}

static void place_for(struct scoper *s, struct frame *f, struct node *n)
{
    struct owner mine = {.up = f->owner}, filter = {.up = f->owner};
    place(s, f, n->loop.iter);
    if (n->loop.recursive) {
        mine.func = n->loop.func = jalloc(s->rt, 1, sizeof *mine.func);
        filter.up = &mine;
    }
    struct owner *owner = n->loop.recursive ? &mine : f->owner;
    struct frame body = frame_inner(f, owner), otherwise = frame_inner(f, owner);
    struct special q = look_for(s, &n->loop.body, "loop", NULL, NULL);
    n->loop.has_loop = n->loop.recursive || q.used[0];
    if (n->loop.has_loop)
        n->loop.loop = sym_param(s, &body, jstr_lit(s->rt, "loop").s);
    see(s, &body, n->loop.target, true);
    see_all(s, &body, &n->loop.body, false);
    see_all(s, &otherwise, &n->loop.otherwise, false);
    if (n->loop.test) {
        filter.func = n->loop.test_func = jalloc(s->rt, 1, sizeof *filter.func);
        struct frame test = frame_inner(f, &filter);
        see(s, &test, n->loop.test_target, true);
        see(s, &test, n->loop.test, false);
        place(s, &test, n->loop.test_target);
        place(s, &test, n->loop.test);
        finish(s, &test, &filter.func->scope);
    }
    place(s, &body, n->loop.target);
    place_all(s, &body, &n->loop.body);
    place_all(s, &otherwise, &n->loop.otherwise);
    finish(s, &body, &n->loop.scope);
    finish(s, &otherwise, &n->loop.else_scope);
}

static void see_func(struct scoper *s, struct frame *f, struct func *fn, struct nodes *body)
{
    see_all(s, f, &fn->params, true);
    see_all(s, f, &fn->defaults, false);
    see_all(s, f, body, false);
}

static void place_macro(struct scoper *s, struct frame *f, struct node *n)
{
    struct func *fn = n->macro.func;
    struct owner owner = {.up = f->owner, .func = fn};
    struct frame in = frame_inner(f, &owner);
    see_func(s, &in, fn, &n->macro.body);
    bool named_kwargs = false, named_varargs = false;
    size_t caller_at = fn->params.n;
    for (size_t i = 0; i < fn->params.n; i++) {
        const struct jstr *name = fn->params.v[i]->name.name;
        named_kwargs |= jstr_is(name, "kwargs");
        named_varargs |= jstr_is(name, "varargs");
        if (jstr_is(name, "caller")) {
            fn->explicit_caller = true;
            caller_at = i;
        }
    }
    struct special q = look_for(s, &n->macro.body, "caller", "kwargs", "varargs");
    fn->uses_caller = q.used[0];
    if (fn->uses_caller && fn->explicit_caller && caller_at + fn->defaults.n < fn->params.n) {
        s->rt->at = n->pos;
        jfail(s->rt, JERR_SYNTAX,
              "the special \"caller\" argument must be omitted or be given a default");
    }
    if (fn->uses_caller && !fn->explicit_caller)
        fn->caller = sym_param(s, &in, jstr_lit(s->rt, "caller").s);
    fn->uses_kwargs = q.used[1] && !named_kwargs;
    if (fn->uses_kwargs)
        fn->kwargs = sym_param(s, &in, jstr_lit(s->rt, "kwargs").s);
    fn->uses_varargs = q.used[2] && !named_varargs;
    if (fn->uses_varargs)
        fn->varargs = sym_param(s, &in, jstr_lit(s->rt, "varargs").s);
    see_func(s, &in, fn, &n->macro.body);
    place_all(s, &in, &fn->params);
    place_all(s, &in, &fn->defaults);
    place_all(s, &in, &n->macro.body);
    finish(s, &in, &fn->scope);
}

static void place_block(struct scoper *s, struct node *n)
{
    struct owner owner = {.func = n->block.func};
    struct frame in = {.owner = &owner};
    struct special q = look_for(s, &n->block.body, "self", "super", NULL);
    if (q.used[0])
        n->block.func->kwargs = sym_param(s, &in, jstr_lit(s->rt, "self").s);
    if (q.used[1])
        n->block.func->varargs = sym_param(s, &in, jstr_lit(s->rt, "super").s);
    n->block.func->uses_kwargs = q.used[0];
    n->block.func->uses_varargs = q.used[1];
    see_all(s, &in, &n->block.body, false);
    place_all(s, &in, &n->block.body);
    finish(s, &in, &n->block.func->scope);
}

/* set blocks, filter blocks, with, autoescape: a frame inside the function. */
static void place_inner(struct scoper *s, struct frame *f, struct node *n)
{
    struct frame in = frame_inner(f, f->owner);
    see_all(s, &in, &n->set.targets, true);
    if (n->kind == N_AUTOESCAPE)
        see(s, &in, n->set.value, false);
    see_all(s, &in, &n->set.body, false);
    if (n->kind == N_FILTERBLOCK)
        see(s, &in, n->set.filter, false);
    place_all(s, &in, &n->set.targets);
    place_all(s, n->kind == N_WITH ? f : &in, &n->set.values);
    place(s, &in, n->set.value);
    place_all(s, &in, &n->set.body);
    place(s, &in, n->set.filter);
    place(s, f, n->set.target);
    finish(s, &in, &n->set.scope);
}

static void place_statement(struct scoper *s, struct frame *f, struct node *n)
{
    switch (n->kind) {
    case N_OUTPUT:
        place_all(s, f, &n->list);
        break;
    case N_IF: {
        bool soft = f->soft;
        f->soft = true;
        place(s, f, n->cond.test);
        place_all(s, f, &n->cond.body);
        place_all(s, f, &n->cond.elifs);
        place_all(s, f, &n->cond.otherwise);
        f->soft = soft;
        break;
    }
    case N_FOR:
        place_for(s, f, n);
        break;
    case N_MACRO:
        n->macro.slot = place_name(s, f, n->macro.name);
        n->export = f->toplevel;
        place_macro(s, f, n);
        break;
    case N_CALLBLOCK:
        place_macro(s, f, n);
        place(s, f, n->macro.call);
        break;
    case N_SET:
        n->export = f->toplevel;
        place(s, f, n->set.value);
        place(s, f, n->set.target);
        break;
    case N_SETBLOCK:
    case N_FILTERBLOCK:
    case N_WITH:
    case N_AUTOESCAPE:
        n->export = f->toplevel && n->kind == N_SETBLOCK;
        place_inner(s, f, n);
        break;
    default: /* place_block() is called for all blocks once */
        break;
    }
}

static void place_args(struct scoper *s, struct frame *f, struct call_args *a)
{
    place_all(s, f, &a->pos);
    for (size_t i = 0; i < a->n_kw; i++)
        place(s, f, a->kw[i].value);
    place(s, f, a->dyn_args);
    place(s, f, a->dyn_kwargs);
}

static void check_known(struct scoper *s, const struct frame *f, const struct node *n)
{
    if (f->soft || (n->kind == N_FILTER ? n->call.filter != NULL : n->call.test != NULL))
        return;
    s->rt->at = n->pos;
    jfail(s->rt, JERR_SYNTAX, "no %s named '%.*s'", n->kind == N_FILTER ? "filter" : "test",
          (int)n->call.name->n, n->call.name->p);
}

static void place(struct scoper *s, struct frame *f, struct node *n)
{
    if (!n)
        return;
    jenter(s->rt);
    bool soft = f->soft;
    switch (n->kind) {
    case N_NAME:
    case N_NSREF:
        s->rt->at = n->pos;
        n->name.slot = place_name(s, f, n->name.name);
        break;
    case N_TUPLE:
    case N_LIST:
    case N_DICT:
    case N_CONCAT:
        place_all(s, f, &n->list);
        break;
    case N_ATTR:
        place(s, f, n->attr.base);
        break;
    case N_FILTER:
    case N_TEST:
        check_known(s, f, n);
        __attribute__((fallthrough));
    case N_CALL:
        place(s, f, n->call.base);
        place_args(s, f, n->call.args);
        break;
    case N_COMPARE:
        place(s, f, n->cmp.first);
        place_all(s, f, &n->cmp.rest);
        break;
    case N_COND:
        f->soft = true;
        __attribute__((fallthrough));
    case N_ITEM:
    case N_SLICE:
    case N_NOT:
    case N_NEG:
    case N_POS:
    case N_BIN:
    case N_AND:
    case N_OR:
        place(s, f, n->e.a);
        place(s, f, n->e.b);
        place(s, f, n->e.c);
        f->soft = soft;
        break;
    default:
        place_statement(s, f, n);
    }
    jleave(s->rt);
}

void jscope(struct jrt *rt, struct template *t)
{
    struct scoper s = {rt, t};
    struct owner owner = {.func = t->root};
    struct frame root = {.owner = &owner, .toplevel = true};
    struct special q = look_for(&s, &t->body, "self", NULL, NULL);
    t->root->uses_kwargs = q.used[0];
    if (q.used[0])
        t->root->kwargs = sym_param(&s, &root, jstr_lit(rt, "self").s);
    see_all(&s, &root, &t->body, false);
    place_all(&s, &root, &t->body);
    finish(&s, &root, &t->root->scope);
    for (size_t i = 0; i < t->blocks.n; i++)
        place_block(&s, t->blocks.v[i]);
}
