/* SPDX-License-Identifier: Apache-2.0
 *
 * Calling things: argument binding, the global functions, and methods of everything but strings. */
#include "text/jinja_run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- arguments ---------------------------------------------------------------------------------
 */

struct jval *jarg_kw(const struct jargs *args, const char *name)
{
    for (size_t i = 0; i < args->n_kw; i++)
        if (jstr_is(args->kw_name[i].s, name))
            return &args->kw[i];
    return NULL;
}

static void bind_keywords(struct jrt *rt, const char *fn, const char *params,
                          const struct jargs *args, struct jval *out)
{
    for (size_t k = 0; k < args->n_kw; k++) {
        const struct jstr *name = args->kw_name[k].s;
        const char *at = params;
        bool bound = false;
        for (size_t i = 0; *at && !bound;) {
            size_t n = strcspn(at, " ?");
            if (*at == '|') {
                at += 2;
                continue;
            }
            if (n == name->n && !memcmp(at, name->p, n)) {
                if (out[i].kind != J_MISSING)
                    jfail(rt, JERR_TYPE, "%s() got multiple values for argument '%.*s'", fn, (int)n,
                          at);
                out[i] = args->kw[k];
                bound = true;
            }
            at += n + (at[n] == '?');
            at += *at == ' ';
            i++;
        }
        if (!bound)
            jfail(rt, JERR_TYPE, "%s() got an unexpected keyword argument '%.*s'", fn, (int)name->n,
                  name->p);
    }
}

void jbind(struct jrt *rt, const char *fn, const char *params, const struct jargs *args,
           struct jval *out)
{
    size_t n_params = 0, n_positional = SIZE_MAX;
    for (size_t i = 0; i < JMAX_PARAMS; i++)
        out[i] = i < args->n ? args->pos[i] : JMISSING;
    for (const char *at = params; *at; at += strcspn(at, " "), at += *at == ' ') {
        if (*at == '|')
            n_positional = n_params;
        else
            n_params++;
    }
    if (n_positional > n_params)
        n_positional = n_params;
    if (args->n > n_positional)
        jfail(rt, JERR_TYPE, "%s() takes at most %zu argument(s), but %zu were given", fn,
              n_positional, args->n);
    if (args->n_kw)
        bind_keywords(rt, fn, params, args, out);
    size_t i = 0;
    for (const char *at = params; *at; at += *at == ' ') {
        size_t n = strcspn(at, " ");
        if (*at != '|') {
            if (at[n - 1] != '?' && out[i].kind == J_MISSING)
                jfail(rt, JERR_TYPE, "%s() missing required argument: '%.*s'", fn, (int)n, at);
            i++;
        }
        at += n;
    }
}

struct jval jfilter_call(struct jrt *rt, const struct jfilter *f, struct jval v,
                         const struct jargs *args)
{
    struct jval bound[JMAX_PARAMS];
    if (f->params)
        jbind(rt, f->name, f->params, args, bound);
    return f->fn(rt, v, bound, args);
}

bool jtest_call(struct jrt *rt, const struct jtest *t, struct jval v, const struct jargs *args)
{
    struct jval bound[JMAX_PARAMS];
    jbind(rt, t->name, t->params, args, bound);
    return t->fn(rt, v, bound);
}

/* ---- global functions
 * ------------------------------------------------------------------------------ */

static const char *const func_names[] = {
    [JF_RANGE] = "range",           [JF_DICT] = "dict",
    [JF_LIPSUM] = "lipsum",         [JF_CYCLER] = "cycler",
    [JF_JOINER] = "joiner",         [JF_NAMESPACE] = "namespace",
    [JF_RAISE] = "raise_exception", [JF_STRFTIME] = "strftime_now",
};

bool jfunc_find(const struct jstr *name, struct jval *out)
{
    for (size_t i = 0; i < sizeof func_names / sizeof *func_names; i++)
        if (jstr_is(name, func_names[i])) {
            *out = (struct jval){.kind = J_FUNC, .fn = (int)i};
            return true;
        }
    return false;
}

const char *jfunc_name(int fn)
{
    return func_names[fn];
}

static struct jval call_range(struct jrt *rt, const struct jargs *args)
{
    enum { MAX_RANGE = 100000 };
    if (args->n_kw)
        jfail(rt, JERR_TYPE, "range() takes no keyword arguments");
    if (!args->n || args->n > 3)
        jfail(rt, JERR_TYPE, "range expected 1 to 3 arguments, got %zu", args->n);
    int64_t v[3];
    for (size_t i = 0; i < args->n; i++)
        v[i] = jneed_int(rt, args->pos[i], "range");
    struct jrange *r = jalloc(rt, 1, sizeof *r);
    r->start = args->n > 1 ? v[0] : 0;
    r->stop = v[args->n > 1];
    r->step = args->n > 2 ? v[2] : 1;
    if (!r->step)
        jfail(rt, JERR_VALUE, "range() arg 3 must not be zero");
    uint64_t n = 0;
    if (r->step > 0 && r->start < r->stop)
        n = ((uint64_t)r->stop - (uint64_t)r->start - 1) / (uint64_t)r->step + 1;
    else if (r->step < 0 && r->stop < r->start)
        n = ((uint64_t)r->start - (uint64_t)r->stop - 1) / (-(uint64_t)r->step) + 1;
    if (n > MAX_RANGE)
        jfail(rt, JERR_LIMIT, "range too big: the sandbox blocks ranges larger than %d", MAX_RANGE);
    r->n = (int64_t)n;
    return (struct jval){.kind = J_RANGE, .r = r};
}

/* dict(mapping or pairs, **kwargs), which namespace() takes too */
static struct jdict *make_dict(struct jrt *rt, const struct jargs *args)
{
    struct jdict *d = jdict_new(rt);
    if (args->n > 1)
        jfail(rt, JERR_TYPE, "dict expected at most 1 argument, got %zu", args->n);
    if (args->n && args->pos[0].kind == J_DICT) {
        const struct jdict *from = args->pos[0].d;
        for (size_t i = 0; i < from->n; i++)
            jdict_set(rt, d, from->v[i].key, from->v[i].value);
    } else if (args->n) {
        struct jval it = jiter(rt, args->pos[0]), pair;
        for (size_t i = 0; jnext(rt, it, &pair); i++) {
            if (!jiterable(pair))
                jfail(rt, JERR_TYPE,
                      "cannot convert dictionary update sequence element #%zu to a sequence", i);
            struct jlist *l = jlist_of(rt, pair);
            if (l->n != 2)
                jfail(rt, JERR_VALUE,
                      "dictionary update sequence element #%zu has length %zu; 2 is required", i,
                      l->n);
            jdict_set(rt, d, l->v[0], l->v[1]);
        }
    }
    for (size_t i = 0; i < args->n_kw; i++)
        jdict_set(rt, d, args->kw_name[i], args->kw[i]);
    return d;
}

static struct jval call_cycler(struct jrt *rt, const struct jargs *args)
{
    if (args->n_kw)
        jfail(rt, JERR_TYPE, "cycler() got an unexpected keyword argument");
    if (!args->n)
        jfail(rt, JERR_RUNTIME, "at least one item has to be provided");
    struct jcycler *c = jalloc(rt, 1, sizeof *c);
    *c = (struct jcycler){args->pos, args->n, 0};
    return (struct jval){.kind = J_CYCLER, .cyc = c};
}

static struct jval call_joiner(struct jrt *rt, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "joiner", "sep?", args, a);
    struct jjoiner *j = jalloc(rt, 1, sizeof *j);
    j->sep = a[0].kind == J_MISSING ? jstr_lit(rt, ", ") : a[0];
    return (struct jval){.kind = J_JOINER, .join = j};
}

struct jval jfunc_call(struct jrt *rt, int fn, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    switch (fn) {
    case JF_RANGE:
        return call_range(rt, args);
    case JF_DICT:
        return jdictv(make_dict(rt, args));
    case JF_NAMESPACE:
        return (struct jval){.kind = J_NS, .d = make_dict(rt, args)};
    case JF_CYCLER:
        return call_cycler(rt, args);
    case JF_JOINER:
        return call_joiner(rt, args);
    case JF_RAISE:
        jbind(rt, "raise_exception", "message", args, a);
        jfail_raised(rt, jto_str(rt, a[0]));
    case JF_STRFTIME:
        jbind(rt, "strftime_now", "format", args, a);
        return jstrftime(rt, a[0]);
    default:
        jfail(rt, JERR_RUNTIME, "lipsum() is not supported: its text would be random");
    }
}

/* ---- methods
 * -------------------------------------------------------------------------------------------- */

static struct jval dict_get(struct jrt *rt, struct jval self, const struct jargs *args)
{
    if (args->n_kw)
        jfail(rt, JERR_TYPE, "dict.get() takes no keyword arguments");
    if (!args->n || args->n > 2)
        jfail(rt, JERR_TYPE, "get expected 1 to 2 arguments, got %zu", args->n);
    struct jval *v = jdict_get(rt, self.d, args->pos[0]);
    return v ? *v : args->n > 1 ? args->pos[1] : JNONE;
}

static struct jval dict_view(struct jrt *rt, struct jval self, enum jview_kind kind)
{
    struct jview *w = jalloc(rt, 1, sizeof *w);
    *w = (struct jview){self.d, kind};
    return (struct jval){.kind = J_VIEW, .w = w};
}

static struct jval dict_fromkeys(struct jrt *rt, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS], it, key;
    jbind(rt, "fromkeys", "iterable value?", args, a);
    struct jdict *d = jdict_new(rt);
    it = jiter(rt, a[0]);
    while (jnext(rt, it, &key))
        jdict_set(rt, d, key, a[1].kind == J_MISSING ? JNONE : a[1]);
    return jdictv(d);
}

static struct jval seq_count(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "count", "value", args, a);
    int64_t n = 0;
    if (self.kind == J_RANGE)
        return jint(jcontains(rt, self, a[0]));
    for (size_t i = 0; i < self.l->n; i++)
        n += jis_same(self.l->v[i], a[0]) || jeq(rt, self.l->v[i], a[0]);
    return jint(n);
}

static struct jval seq_index(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "index", "value start? stop?", args, a);
    if (self.kind == J_RANGE) {
        if (!jcontains(rt, self, a[0]))
            jfail(rt, JERR_VALUE, "the value is not in range");
        return jint((jneed_int(rt, a[0], "index") - self.r->start) / self.r->step);
    }
    int64_t n = (int64_t)self.l->n;
    int64_t from = a[1].kind == J_MISSING ? 0 : jneed_int(rt, a[1], "index");
    int64_t to = a[2].kind == J_MISSING ? n : jneed_int(rt, a[2], "index");
    from = from < 0 ? (from + n < 0 ? 0 : from + n) : from;
    to = to < 0 ? to + n : to > n ? n : to;
    for (int64_t i = from; i < to; i++)
        if (jis_same(self.l->v[i], a[0]) || jeq(rt, self.l->v[i], a[0]))
            return jint(i);
    jfail(rt, JERR_VALUE, "the value is not in the %s", jtype(self));
}

static struct jval view_isdisjoint(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS], v;
    jbind(rt, "isdisjoint", "other", args, a);
    struct jval it = jiter(rt, a[0]);
    while (jnext(rt, it, &v))
        if (jcontains(rt, self, v))
            return jbool(false);
    return jbool(true);
}

static struct jval int_ratio(struct jrt *rt, struct jval self)
{
    if (self.kind != J_FLOAT)
        return jpair_tuple(rt, self, jint(1));
    if (!isfinite(self.f))
        jfail(rt, JERR_VALUE, "cannot convert %s to integer ratio",
              isnan(self.f) ? "NaN" : "Infinity");
    double f = self.f;
    struct jval den = jint(1);
    while (f != floor(f)) {
        f *= 2;
        den = jbinary(rt, JOP_MUL, den, jint(2));
    }
    return jpair_tuple(rt, jbig_from_double(rt, f), den);
}

static struct jval bit_count(struct jrt *rt, struct jval v)
{
    if (v.kind == J_BIG) {
        struct jbuild b = {.rt = rt};
        jbig_print(&b, v, 2);
        int64_t n = 0;
        for (size_t i = 0; i < b.n; i++)
            n += b.p[i] == '1';
        return jint(n);
    }
    int64_t i = v.kind == J_BOOL ? v.b : v.i;
    return jint(__builtin_popcountll(i < 0 ? -(uint64_t)i : (uint64_t)i));
}

/* float.hex(): C's %a, with Python's choice of leading digit and zeros. */
static struct jval float_hex(struct jrt *rt, double f)
{
    struct jbuild b = {.rt = rt};
    if (!isfinite(f)) {
        char text[32];
        jfloat_repr(text, f);
        return jstrv(jstr_new(rt, text, strlen(text)));
    }
    int exp = 0;
    double m = fabs(f);
    if (m != 0) {
        m = frexp(m, &exp) * 2;
        exp--;
        while (exp < -1022) {
            m /= 2;
            exp++;
        }
    }
    uint64_t bits = (uint64_t)ldexp(m - floor(m), 52);
    if (f == 0)
        jb_fmt(&b, "%s0x0.0p+0", signbit(f) ? "-" : "");
    else
        jb_fmt(&b, "%s0x%d.%013llxp%+d", f < 0 ? "-" : "", (int)m, (unsigned long long)bits, exp);
    return jstrv(jb_done(&b));
}

static void no_args(struct jrt *rt, int id, const struct jargs *args)
{
    if (args->n + args->n_kw)
        jfail(rt, JERR_TYPE, "%s() takes no arguments (%zu given)", jattr_name(id),
              args->n + args->n_kw);
}

struct jval jobj_method(struct jrt *rt, struct jval self, int id, const struct jargs *args)
{
    switch (id) {
    case JM_get:
        return dict_get(rt, self, args);
    case JM_fromkeys:
        return dict_fromkeys(rt, args);
    case JM_count:
        return seq_count(rt, self, args);
    case JM_index:
        return seq_index(rt, self, args);
    case JM_isdisjoint:
        return view_isdisjoint(rt, self, args);
    case JM_cycle:
        return jloop_cycle(rt, self, args);
    case JM_changed:
        return jloop_changed(rt, self, args);
    default:
        break;
    }
    no_args(rt, id, args);
    switch (id) {
    case JM_items:
        return dict_view(rt, self, JVIEW_ITEMS);
    case JM_keys:
        return dict_view(rt, self, JVIEW_KEYS);
    case JM_values:
        return dict_view(rt, self, JVIEW_VALUES);
    case JM_copy: /* nothing can change either, so one will do; `is sameas` alone could tell */
        if (self.kind == J_DICT)
            return jdictv(make_dict(rt, &(struct jargs){.pos = &self, .n = 1}));
        return jlistv(jlist_cat(rt, self.l, jlist_new(rt, 0)));
    case JM_as_integer_ratio:
        return int_ratio(rt, self.kind == J_BOOL ? jint(self.b) : self);
    case JM_bit_length:
        return jint((int64_t)jbig_bits(self));
    case JM_bit_count:
        return bit_count(rt, self);
    case JM_conjugate:
        return self.kind == J_BOOL ? jint(self.b) : self;
    case JM_is_integer:
        return jbool(isfinite(self.f) && self.f == floor(self.f));
    case JM_hex:
        return float_hex(rt, self.f);
    case JM_next: {
        struct jval v = self.cyc->v[self.cyc->pos];
        self.cyc->pos = (self.cyc->pos + 1) % self.cyc->n;
        return v;
    }
    case JM_reset:
        self.cyc->pos = 0;
        return JNONE;
    default:
        jfail(rt, JERR_TYPE, "%s() is not supported", jattr_name(id));
    }
}

static struct jval call_joined(struct jrt *rt, struct jval f, const struct jargs *args)
{
    if (args->n + args->n_kw)
        jfail(rt, JERR_TYPE, "a joiner takes no arguments");
    bool first = !f.join->used;
    f.join->used = true;
    return first ? jstr_lit(rt, "") : f.join->sep;
}

struct jval jcall(struct jrt *rt, struct jval f, const struct jargs *args)
{
    jstep(rt, 1);
    switch (f.kind) {
    case J_FUNC:
        return jfunc_call(rt, f.fn, args);
    case J_METHOD:
        return f.m->self.kind == J_STR ? jstr_method(rt, f.m->self, f.m->id, args)
                                       : jobj_method(rt, f.m->self, f.m->id, args);
    case J_MACRO:
        return jmacro_call(rt, f, args);
    case J_LOOP:
        return jloop_call(rt, f, args);
    case J_JOINER:
        return call_joined(rt, f, args);
    case J_BLOCK:
        return jblock_call(rt, f.block);
    case J_UNDEF:
        jfail_undef(rt, f);
    default:
        jfail(rt, JERR_TYPE, "'%s' object is not callable", jtype(f));
    }
}
