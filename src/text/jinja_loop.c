/* SPDX-License-Identifier: Apache-2.0
 *
 * The for loop and its `loop` variable. A loop that never names `loop` is read item by item; one
 * that does may look one item ahead, and asking for the length of a generator reads all of it. */
#include "text/jinja_run.h"

#include <string.h>

struct jloop {
    const struct node *node; /* recursive loops call themselves through it */
    struct env *env;         /* around the loop */
    struct jval iterable, it;
    struct jval current, before, after; /* J_MISSING: none */
    struct jval changed;                /* the tuple last given to loop.changed() */
    int64_t index0, length, depth0;     /* length -1: not known yet */
};

/* ---- the condition of a loop
 * ------------------------------------------------------------------------ */

bool jwhere_next(struct jrt *rt, struct jgen *g, struct jval *out)
{
    struct env *back = rt->env;
    const struct node *n = g->loop;
    bool found = false;
    rt->env = g->env;
    while (!found && jnext(rt, g->it, out)) {
        jassign(rt, n->loop.test_target, *out);
        found = jtruth(rt, jeval(rt, n->loop.test));
    }
    rt->env = back;
    return found;
}

static struct jval where(struct jrt *rt, struct jval source, const struct node *n)
{
    struct jgen *g = jalloc(rt, 1, sizeof *g);
    struct env *back = rt->env;
    g->kind = JGEN_WHERE;
    g->loop = n;
    g->source = source;
    g->env = rt->env = jenv_new(rt, n->loop.test_func, back);
    jenter_scope(rt, &n->loop.test_func->scope);
    rt->env = back;
    return jgenerator(rt, g);
}

/* ---- loop
 * -------------------------------------------------------------------------------------------- */

int64_t jloop_length(struct jrt *rt, struct jval v)
{
    struct jloop *l = v.loop;
    if (l->length >= 0)
        return l->length;
    if (!jlen(rt, l->iterable, &l->length)) {
        struct jlist *rest = jlist_of(rt, l->it);
        l->it = jiter(rt, jlistv(rest));
        l->length = (int64_t)rest->n + l->index0 + 1 + (l->after.kind != J_MISSING);
    }
    return l->length;
}

static bool loop_next(struct jrt *rt, struct jloop *l)
{
    struct jval v = l->after;
    l->after = JMISSING;
    if (v.kind == J_MISSING && !jnext(rt, l->it, &v))
        return false;
    l->index0++;
    l->before = l->current;
    l->current = v;
    return true;
}

static bool peek(struct jrt *rt, struct jloop *l)
{
    struct jval v;
    if (l->after.kind == J_MISSING && jnext(rt, l->it, &v))
        l->after = v;
    return l->after.kind != J_MISSING;
}

struct jval jloop_attr(struct jrt *rt, struct jval v, struct jstr *name)
{
    struct jloop *l = v.loop;
    if (jstr_is(name, "first"))
        return jbool(l->index0 == 0);
    if (jstr_is(name, "last"))
        return jbool(!peek(rt, l));
    if (jstr_is(name, "index"))
        return jint(l->index0 + 1);
    if (jstr_is(name, "index0"))
        return jint(l->index0);
    if (jstr_is(name, "length"))
        return jint(jloop_length(rt, v));
    if (jstr_is(name, "revindex"))
        return jint(jloop_length(rt, v) - l->index0);
    if (jstr_is(name, "revindex0"))
        return jint(jloop_length(rt, v) - l->index0 - 1);
    if (jstr_is(name, "previtem"))
        return l->index0 == 0 ? jundef_hint(rt, "there is no previous item") : l->before;
    if (jstr_is(name, "nextitem"))
        return peek(rt, l) ? l->after : jundef_hint(rt, "there is no next item");
    if (jstr_is(name, "depth"))
        return jint(l->depth0 + 1);
    if (jstr_is(name, "depth0"))
        return jint(l->depth0);
    return JMISSING;
}

struct jval jloop_cycle(struct jrt *rt, struct jval v, const struct jargs *args)
{
    if (args->n_kw || !args->n)
        jfail(rt, JERR_TYPE, "no items for cycling given");
    return args->pos[v.loop->index0 % (int64_t)args->n];
}

struct jval jloop_changed(struct jrt *rt, struct jval v, const struct jargs *args)
{
    struct jlist *l = jlist_new(rt, args->n);
    if (args->n_kw)
        jfail(rt, JERR_TYPE, "changed() got an unexpected keyword argument");
    if (args->n)
        memcpy(l->v, args->pos, args->n * sizeof *l->v);
    bool changed = v.loop->changed.kind == J_MISSING || !jeq(rt, v.loop->changed, jtuplev(l));
    if (changed)
        v.loop->changed = jtuplev(l);
    return jbool(changed);
}

/* ---- running it
 * ------------------------------------------------------------------------------------- */

/* false: break */
static bool run_body(struct jrt *rt, const struct node *n, struct jval item, bool *completed)
{
    rt->at = n->pos;
    jassign(rt, n->loop.target, item);
    jenter_scope(rt, &n->loop.scope);
    enum jflow flow = jexec(rt, &n->loop.body);
    if (flow == FLOW_ON)
        *completed = true;
    return flow != FLOW_BREAK;
}

/* An else branch runs when no pass of the body came to its end: so says Jinja's code, not its
 * manual, when a loop is left by break or continue. */
static enum jflow run(struct jrt *rt, const struct node *n, struct jval source, int64_t depth0,
                      struct env *around)
{
    enum jflow flow = FLOW_ON;
    bool completed = false;
    if (n->loop.test)
        source = where(rt, source, n);
    rt->at = n->loop.iter->pos;
    struct jval it = jiter(rt, source);
    if (n->loop.has_loop) {
        struct jloop *l = jalloc(rt, 1, sizeof *l);
        *l = (struct jloop){.node = n,
                            .env = around,
                            .iterable = source,
                            .it = it,
                            .index0 = -1,
                            .length = -1,
                            .depth0 = depth0};
        struct jval loop = {.kind = J_LOOP, .loop = l};
        while (loop_next(rt, l)) {
            rt->env->slot[n->loop.loop.index] = loop;
            if (!run_body(rt, n, l->current, &completed))
                break;
        }
    } else {
        struct jval item;
        while (jnext(rt, it, &item))
            if (!run_body(rt, n, item, &completed))
                break;
    }
    jleave_scope(rt, &n->loop.scope);
    if (!completed && n->loop.otherwise.n) {
        jenter_scope(rt, &n->loop.else_scope);
        flow = jexec(rt, &n->loop.otherwise);
        jleave_scope(rt, &n->loop.else_scope);
    }
    return flow;
}

static struct jval run_recursive(struct jrt *rt, const struct node *n, struct jval source,
                                 int64_t depth0, struct env *around)
{
    struct env *back = rt->env;
    jenter(rt);
    size_t mark = jcapture(rt);
    rt->env = jenv_new(rt, n->loop.func, around);
    (void)run(rt, n, source, depth0, around);
    struct jval text = jcaptured(rt, mark);
    rt->env = back;
    jleave(rt);
    return text;
}

enum jflow jexec_for(struct jrt *rt, const struct node *n)
{
    struct jval source = jeval(rt, n->loop.iter);
    if (!n->loop.recursive)
        return run(rt, n, source, 0, rt->env);
    struct jval text = run_recursive(rt, n, source, 0, rt->env);
    jout(rt, text.s->p, text.s->n);
    return FLOW_ON;
}

struct jval jloop_call(struct jrt *rt, struct jval v, const struct jargs *args)
{
    const struct jloop *l = v.loop;
    if (args->n != 1 || args->n_kw)
        jfail(rt, JERR_TYPE, "loop() takes one argument: what to loop over");
    if (!l->node->loop.recursive)
        jfail(rt, JERR_TYPE, "The loop must have the 'recursive' marker to be called recursively.");
    return run_recursive(rt, l->node, args->pos[0], l->depth0 + 1, l->env);
}
