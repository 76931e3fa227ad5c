/* SPDX-License-Identifier: Apache-2.0
 *
 * Statements, macros and blocks. Output goes to one buffer; what a macro or a set block writes is
 * cut off its end again. */
#include "text/jinja_run.h"

#include <string.h>

/* ---- variables ---------------------------------------------------------------------------------
 */

struct env *jenv_new(struct jrt *rt, const struct func *f, struct env *up)
{
    struct env *e = jalloc(rt, 1, sizeof *e + f->n_slots * sizeof e->slot[0]);
    e->up = up; /* the slots are zeroed: J_MISSING */
    return e;
}

struct jval jresolve(struct jrt *rt, struct jstr *name)
{
    struct jval *known = jdict_get_str(rt->context, name);
    if (known)
        return *known;
    struct jval v = JMISSING;
    const json_t *j = json_object_getn(rt->vars, name->p, name->n);
    if (!j)
        j = json_object_getn(rt->defaults, name->p, name->n);
    if (j)
        v = jval_from_json(rt, j);
    else if (!jfunc_find(name, &v))
        return JMISSING;
    jdict_set(rt, rt->context, jstrv(name), v);
    return v;
}

void jenter_scope(struct jrt *rt, const struct scope *s)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct load *l = &s->v[i];
        if (l->kind == LOAD_RESOLVE)
            rt->env->slot[l->index] = jresolve(rt, l->name);
        else if (l->kind == LOAD_ALIAS)
            rt->env->slot[l->index] = *jslot(rt, l->from);
        else if (l->kind == LOAD_UNDEFINED)
            rt->env->slot[l->index] = JMISSING;
    }
}

void jleave_scope(struct jrt *rt, const struct scope *s)
{
    for (size_t i = 0; i < s->n; i++)
        rt->env->slot[s->v[i].index] = JMISSING;
}

static void export_target(struct jrt *rt, const struct node *target)
{
    if (target->kind == N_NAME)
        jdict_set(rt, rt->context, jstrv(target->name.name), *jslot(rt, target->name.slot));
    for (size_t i = 0; target->kind == N_TUPLE && i < target->list.n; i++)
        export_target(rt, target->list.v[i]);
}

/* ---- output
 * --------------------------------------------------------------------------------------- */

size_t jcapture(struct jrt *rt)
{
    return rt->out.len;
}

static void drop_output(struct jrt *rt, size_t mark)
{
    rt->out.len = mark;
    if (rt->out.data)
        rt->out.data[mark] = 0;
}

struct jval jcaptured(struct jrt *rt, size_t mark)
{
    size_t n = rt->out.len - mark;
    jstep_bytes(rt, n);
    struct jval v = jstrv(jstr_new(rt, rt->out.data ? rt->out.data + mark : "", n));
    v.markup = rt->autoescape;
    drop_output(rt, mark);
    return v;
}

static void put(struct jrt *rt, struct jval v)
{
    if (rt->autoescape)
        v = jescape(rt, v);
    if (v.kind != J_UNDEF) {
        struct jstr *s = jto_str(rt, v);
        jout(rt, s->p, s->n);
    }
}

/* Filter and call blocks write what they get as it is, which must be text: here Jinja does not
 * convert. */
static void put_text(struct jrt *rt, struct jval v)
{
    if (v.kind != J_STR)
        jfail(rt, JERR_TYPE, "the block gives a value of type '%s' where text is needed", jtype(v));
    jout(rt, v.s->p, v.s->n);
}

/* ---- macros
 * ---------------------------------------------------------------------------------------- */

struct jstr *jmacro_name(struct jval macro)
{
    return macro.mac->node->kind == N_MACRO ? macro.mac->node->macro.name : NULL;
}

struct jval jmacro_attr(struct jrt *rt, struct jval macro, struct jstr *name)
{
    const struct func *f = macro.mac->node->macro.func;
    if (jstr_is(name, "name"))
        return jmacro_name(macro) ? jstrv(jmacro_name(macro)) : JNONE;
    if (jstr_is(name, "catch_kwargs"))
        return jbool(f->uses_kwargs);
    if (jstr_is(name, "catch_varargs"))
        return jbool(f->uses_varargs);
    if (jstr_is(name, "caller"))
        return jbool(f->uses_caller);
    if (jstr_is(name, "explicit_caller"))
        return jbool(f->explicit_caller);
    if (!jstr_is(name, "arguments"))
        return JMISSING;
    struct jlist *l = jlist_new(rt, f->params.n);
    for (size_t i = 0; i < l->n; i++)
        l->v[i] = jstrv(f->params.v[i]->name.name);
    return jtuplev(l);
}

static struct jval macro_new(struct jrt *rt, const struct node *n)
{
    struct jmacro *m = jalloc(rt, 1, sizeof *m);
    *m = (struct jmacro){n, rt->env};
    return (struct jval){.kind = J_MACRO, .mac = m};
}

/* Takes the keyword out of the arguments; J_MISSING: not there. */
static struct jval pop_kw(struct jargs *a, const struct jstr *name)
{
    for (size_t i = 0; i < a->n_kw; i++) {
        if (!jstr_eq(a->kw_name[i].s, name))
            continue;
        struct jval v = a->kw[i];
        memmove(&a->kw[i], &a->kw[i + 1], (a->n_kw - i - 1) * sizeof *a->kw);
        memmove(&a->kw_name[i], &a->kw_name[i + 1], (a->n_kw - i - 1) * sizeof *a->kw_name);
        a->n_kw--;
        return v;
    }
    return JMISSING;
}

static struct jargs copy_args(struct jrt *rt, const struct jargs *args)
{
    struct jargs a = *args;
    a.kw = jalloc(rt, a.n_kw + 1, sizeof *a.kw);
    a.kw_name = jalloc(rt, a.n_kw + 1, sizeof *a.kw_name);
    if (a.n_kw) {
        memcpy(a.kw, args->kw, a.n_kw * sizeof *a.kw);
        memcpy(a.kw_name, args->kw_name, a.n_kw * sizeof *a.kw_name);
    }
    return a;
}

static void macro_fail(struct jrt *rt, struct jval macro, const char *what)
{
    struct jstr *name = jmacro_name(macro);
    jfail(rt, JERR_TYPE, "macro '%.*s' %s", name ? (int)name->n : 4, name ? name->p : "None", what);
}

static void refuse_kw(struct jrt *rt, struct jval macro, const struct jargs *a)
{
    for (size_t i = 0; i < a->n_kw; i++)
        if (jstr_is(a->kw_name[i].s, "caller"))
            macro_fail(rt, macro, "was invoked with two values for the special caller argument");
    struct jbuild b = {.rt = rt};
    jb_adds(&b, "takes no keyword argument ");
    jrepr_of(&b, a->kw_name[0]);
    macro_fail(rt, macro, jb_done(&b)->p);
}

static void set_slot(struct env *e, const struct node *param, struct jval v)
{
    e->slot[param->name.slot.index] = v;
}

/* The arguments into e's slots, in the order in which Jinja takes them. */
static void bind_macro(struct jrt *rt, struct jval macro, const struct jargs *args, struct env *e)
{
    const struct func *f = macro.mac->node->macro.func;
    struct jargs a = copy_args(rt, args);
    for (size_t i = 0; i < f->params.n; i++)
        set_slot(e, f->params.v[i], i < a.n ? a.pos[i] : pop_kw(&a, f->params.v[i]->name.name));
    if (f->uses_caller && !f->explicit_caller) {
        struct jval caller = pop_kw(&a, jstr_lit(rt, "caller").s);
        if (caller.kind == J_MISSING || caller.kind == J_NONE)
            caller = jundef_hint(rt, "No caller defined");
        e->slot[f->caller.index] = caller;
    }
    if (f->uses_kwargs) {
        struct jdict *d = jdict_new(rt);
        for (size_t i = 0; i < a.n_kw; i++)
            jdict_set(rt, d, a.kw_name[i], a.kw[i]);
        e->slot[f->kwargs.index] = jdictv(d);
    } else if (a.n_kw) {
        refuse_kw(rt, macro, &a);
    }
    size_t extra = a.n > f->params.n ? a.n - f->params.n : 0;
    if (f->uses_varargs) {
        struct jlist *l = jlist_new(rt, extra);
        if (extra)
            memcpy(l->v, a.pos + f->params.n, extra * sizeof *l->v);
        e->slot[f->varargs.index] = jtuplev(l);
    } else if (extra) {
        struct jbuild b = {.rt = rt};
        jb_fmt(&b, "takes not more than %zu argument(s)", f->params.n);
        macro_fail(rt, macro, jb_done(&b)->p);
    }
}

static void fill_defaults(struct jrt *rt, const struct func *f)
{
    for (size_t i = 0; i < f->params.n; i++) {
        const struct node *param = f->params.v[i];
        if (rt->env->slot[param->name.slot.index].kind != J_MISSING)
            continue;
        size_t first = f->params.n - f->defaults.n;
        struct jval v;
        if (i >= first) {
            v = jeval(rt, f->defaults.v[i - first]);
        } else {
            struct jbuild b = {.rt = rt};
            jb_fmt(&b, "parameter '%.*s' was not provided", (int)param->name.name->n,
                   param->name.name->p);
            v = jundef_hint(rt, jb_done(&b)->p);
        }
        set_slot(rt->env, param, v);
    }
}

struct jval jmacro_call(struct jrt *rt, struct jval macro, const struct jargs *args)
{
    const struct node *n = macro.mac->node;
    struct env *back = rt->env;
    struct env *e = jenv_new(rt, n->macro.func, macro.mac->env);
    bind_macro(rt, macro, args, e);
    jenter(rt);
    rt->env = e;
    size_t mark = jcapture(rt);
    jenter_scope(rt, &n->macro.func->scope);
    fill_defaults(rt, n->macro.func);
    (void)jexec(rt, &n->macro.body);
    struct jval text = jcaptured(rt, mark);
    rt->env = back;
    jleave(rt);
    return text;
}

static void exec_call_block(struct jrt *rt, const struct node *n)
{
    struct jval caller = macro_new(rt, n), v;
    if (!n->macro.call) { /* a generation block */
        v = jmacro_call(rt, caller, &(struct jargs){0});
    } else {
        const struct node *call = n->macro.call;
        struct jval f = jeval(rt, call->call.base);
        struct jargs args = jeval_args(rt, call->call.args, 1);
        if (jarg_kw(&args, "caller"))
            jfail(rt, JERR_TYPE, "got multiple values for keyword argument 'caller'");
        struct jargs with = copy_args(rt, &args);
        with.kw_name[with.n_kw] = jstr_lit(rt, "caller");
        with.kw[with.n_kw++] = caller;
        rt->at = call->pos;
        v = jcall(rt, f, &with);
    }
    put_text(rt, v);
}

/* ---- blocks
 * ------------------------------------------------------------------------------------------ */

struct jval jblock_find(struct jrt *rt, struct jval name)
{
    const struct nodes *blocks = &rt->t->blocks;
    for (size_t i = 0; name.kind == J_STR && i < blocks->n; i++)
        if (jstr_eq(blocks->v[i]->block.name, name.s))
            return (struct jval){.kind = J_BLOCK, .block = blocks->v[i]};
    return JMISSING;
}

static void exec_block(struct jrt *rt, const struct node *n)
{
    struct env *back = rt->env;
    const struct func *f = n->block.func;
    if (n->block.required)
        jfail(rt, JERR_RUNTIME, "required block '%.*s' not found", (int)n->block.name->n,
              n->block.name->p);
    jenter(rt);
    rt->env = jenv_new(rt, f, NULL);
    if (f->uses_kwargs)
        rt->env->slot[f->kwargs.index] = (struct jval){.kind = J_SELF};
    if (f->uses_varargs)
        rt->env->slot[f->varargs.index] = jundef_hint(rt, "there is no parent block");
    jenter_scope(rt, &f->scope);
    (void)jexec(rt, &n->block.body);
    rt->env = back;
    jleave(rt);
}

struct jval jblock_call(struct jrt *rt, const struct node *block)
{
    size_t mark = jcapture(rt);
    exec_block(rt, block);
    return jcaptured(rt, mark);
}

/* ---- statements
 * -------------------------------------------------------------------------------------- */

static void exec_output(struct jrt *rt, const struct node *n)
{
    for (size_t i = 0; i < n->list.n; i++) {
        struct jval v = jeval(rt, n->list.v[i]);
        rt->at = n->pos;
        put(rt, v);
    }
}

static enum jflow exec_if(struct jrt *rt, const struct node *n)
{
    if (jtruth(rt, jeval(rt, n->cond.test)))
        return jexec(rt, &n->cond.body);
    for (size_t i = 0; i < n->cond.elifs.n; i++) {
        const struct node *e = n->cond.elifs.v[i];
        if (jtruth(rt, jeval(rt, e->cond.test)))
            return jexec(rt, &e->cond.body);
    }
    return jexec(rt, &n->cond.otherwise);
}

static void exec_set(struct jrt *rt, const struct node *n)
{
    jcheck_targets(rt, n->set.target);
    struct jval v = jeval(rt, n->set.value);
    jassign(rt, n->set.target, v);
    if (n->export)
        export_target(rt, n->set.target);
}

/* {% set x %}...{% endset %} and {% filter f %}...{% endfilter %} */
static enum jflow exec_capture(struct jrt *rt, const struct node *n)
{
    size_t mark = jcapture(rt);
    jenter_scope(rt, &n->set.scope);
    enum jflow flow = jexec(rt, &n->set.body);
    if (flow != FLOW_ON) {
        drop_output(rt, mark);
        return flow;
    }
    struct jval text = jcaptured(rt, mark);
    if (n->set.filter)
        text = jeval_filter(rt, n->set.filter, text);
    if (n->kind == N_FILTERBLOCK) {
        put_text(rt, text);
    } else {
        jcheck_targets(rt, n->set.target);
        if (rt->autoescape && text.kind == J_STR)
            text.markup = true;
        jassign(rt, n->set.target, text);
        if (n->export)
            export_target(rt, n->set.target);
    }
    jleave_scope(rt, &n->set.scope);
    return FLOW_ON;
}

static enum jflow exec_with(struct jrt *rt, const struct node *n)
{
    jenter_scope(rt, &n->set.scope);
    for (size_t i = 0; i < n->set.targets.n; i++)
        jassign(rt, n->set.targets.v[i], jeval(rt, n->set.values.v[i]));
    enum jflow flow = jexec(rt, &n->set.body);
    if (flow == FLOW_ON)
        jleave_scope(rt, &n->set.scope);
    return flow;
}

static enum jflow exec_autoescape(struct jrt *rt, const struct node *n)
{
    bool before = rt->autoescape;
    jenter_scope(rt, &n->set.scope);
    rt->autoescape = jtruth(rt, jeval(rt, n->set.value));
    enum jflow flow = jexec(rt, &n->set.body);
    rt->autoescape = before;
    jleave_scope(rt, &n->set.scope);
    return flow;
}

static void exec_macro(struct jrt *rt, const struct node *n)
{
    struct jval m = macro_new(rt, n);
    *jslot(rt, n->macro.slot) = m;
    if (n->export)
        jdict_set(rt, rt->context, jstrv(n->macro.name), m);
}

static enum jflow exec_one(struct jrt *rt, const struct node *n)
{
    switch (n->kind) {
    case N_DATA:
        jout(rt, n->data.p, n->data.n);
        return FLOW_ON;
    case N_OUTPUT:
        exec_output(rt, n);
        return FLOW_ON;
    case N_IF:
        return exec_if(rt, n);
    case N_FOR:
        return jexec_for(rt, n);
    case N_SET:
        exec_set(rt, n);
        return FLOW_ON;
    case N_SETBLOCK:
    case N_FILTERBLOCK:
        return exec_capture(rt, n);
    case N_WITH:
        return exec_with(rt, n);
    case N_AUTOESCAPE:
        return exec_autoescape(rt, n);
    case N_MACRO:
        exec_macro(rt, n);
        return FLOW_ON;
    case N_CALLBLOCK:
        exec_call_block(rt, n);
        return FLOW_ON;
    case N_BLOCK:
        exec_block(rt, n);
        return FLOW_ON;
    case N_BREAK:
        return FLOW_BREAK;
    case N_CONTINUE:
        return FLOW_CONTINUE;
    default:
        rt->at = n->pos;
        jfail(rt, JERR_TYPE, "no loader for this environment specified (%s)", n->what);
    }
}

enum jflow jexec(struct jrt *rt, const struct nodes *body)
{
    if (!body->n)
        return FLOW_ON;
    jenter(rt);
    enum jflow flow = FLOW_ON;
    for (size_t i = 0; i < body->n && flow == FLOW_ON; i++) {
        jstep(rt, 1);
        flow = exec_one(rt, body->v[i]);
    }
    jleave(rt);
    return flow;
}
