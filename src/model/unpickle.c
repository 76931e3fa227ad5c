/* SPDX-License-Identifier: Apache-2.0 */
#include "model/unpickle.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum global_kind { GLOBAL_STORAGE, GLOBAL_REBUILD, GLOBAL_ORDERED_DICT };

struct pickle_global {
    const char *module, *name;
    enum global_kind kind;
    enum st_dtype dtype; /* of a storage */
};

static const struct pickle_global globals[] = {
    {"torch", "FloatStorage", GLOBAL_STORAGE, ST_F32},
    {"torch", "HalfStorage", GLOBAL_STORAGE, ST_F16},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, ST_BF16},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, ST_F64},
    {"torch", "LongStorage", GLOBAL_STORAGE, ST_I64},
    {"torch", "IntStorage", GLOBAL_STORAGE, ST_I32},
    {"torch", "ShortStorage", GLOBAL_STORAGE, ST_I16},
    {"torch", "CharStorage", GLOBAL_STORAGE, ST_I8},
    {"torch", "ByteStorage", GLOBAL_STORAGE, ST_U8},
    {"torch", "BoolStorage", GLOBAL_STORAGE, ST_BOOL},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_REBUILD, ST_U8},
    {"collections", "OrderedDict", GLOBAL_ORDERED_DICT, ST_U8},
};

struct machine {
    const unsigned char *at, *end;
    struct pickle *p;
    const char *file;
    struct sl_err *err;
    struct pickle_value *stack, *memo;
    size_t n, cap, n_memo, cap_memo;
    bool stopped;
};

#define BAD(m, ...) bad((m), __LINE__, __VA_ARGS__)

__attribute__((format(printf, 3, 4))) static enum sl_status bad(const struct machine *m, int line,
                                                                const char *fmt, ...)
{
    char why[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    return sl_err_set(m->err, SL_EFORMAT, __FILE__, line, NULL, "%s: its pickle %s", m->file, why);
}

static enum sl_status no_memory(const struct machine *m)
{
    return SL_FAIL(m->err, SL_ENOMEM, "%s: no memory for its pickle", m->file);
}

/* ---- stack and memo ------------------------------------------------------------------------ */

static bool grow(struct pickle_value **v, size_t n, size_t *cap)
{
    if (n < *cap)
        return true;
    size_t more = *cap ? 2 * *cap : 64;
    struct pickle_value *p = mem_realloc(*v, more, sizeof *p);
    if (!p)
        return false;
    *v = p;
    *cap = more;
    return true;
}

static enum sl_status push(struct machine *m, struct pickle_value v)
{
    if (!grow(&m->stack, m->n, &m->cap))
        return no_memory(m);
    m->stack[m->n++] = v;
    return SL_OK;
}

static enum sl_status push_kind(struct machine *m, enum pickle_kind kind, int64_t integer)
{
    return push(m, (struct pickle_value){.kind = kind, .integer = integer});
}

/* The n values on top, none of them a mark; NULL: they are not there. */
static struct pickle_value *top(const struct machine *m, size_t n)
{
    if (n > m->n)
        return NULL;
    for (size_t i = 1; i <= n; i++)
        if (m->stack[m->n - i].kind == PICKLE_MARK)
            return NULL;
    return m->stack + m->n - n;
}

/* The values above the last mark, which goes away with them; NULL: no mark. */
static struct pickle_value *pop_mark(struct machine *m, size_t *n)
{
    size_t i = m->n;
    while (i && m->stack[i - 1].kind != PICKLE_MARK)
        i--;
    if (!i)
        return NULL;
    *n = m->n - i;
    m->n = i - 1;
    return m->stack + i;
}

static enum sl_status underflow(const struct machine *m)
{
    return BAD(m, "takes more from its stack than is there");
}

/* Numbers in order, as every pickler gives them: a large one must not take memory. */
static enum sl_status memo_put(struct machine *m, uint64_t i)
{
    const struct pickle_value *v = top(m, 1);
    if (!v)
        return underflow(m);
    if (i > m->n_memo)
        return BAD(m, "memo goes from %zu to %llu", m->n_memo, (unsigned long long)i);
    if (!grow(&m->memo, m->n_memo, &m->cap_memo))
        return no_memory(m);
    m->memo[i] = *v;
    m->n_memo += i == m->n_memo;
    return SL_OK;
}

static enum sl_status memo_get(struct machine *m, uint64_t i)
{
    if (i >= m->n_memo)
        return BAD(m, "asks for memo %llu of %zu", (unsigned long long)i, m->n_memo);
    return push(m, m->memo[i]);
}

/* ---- operands ------------------------------------------------------------------------------ */

static enum sl_status take(struct machine *m, size_t n, const unsigned char **out)
{
    if (n > (size_t)(m->end - m->at))
        return BAD(m, "ends in the middle (truncated?)");
    *out = m->at;
    m->at += n;
    return SL_OK;
}

static enum sl_status number(struct machine *m, size_t bytes, uint64_t *out)
{
    const unsigned char *p = NULL;
    enum sl_status st = take(m, bytes, &p);
    if (st)
        return st;
    *out = 0;
    for (size_t i = bytes; i-- > 0;)
        *out = *out << 8 | p[i];
    return SL_OK;
}

static enum sl_status push_string(struct machine *m, size_t length_bytes)
{
    uint64_t n = 0;
    const unsigned char *p = NULL;
    enum sl_status st = number(m, length_bytes, &n);
    if (st || (st = take(m, (size_t)n, &p)))
        return st;
    return push(m, (struct pickle_value){
                       .kind = PICKLE_STRING, .n = (uint32_t)n, .string = (const char *)p});
}

/* Two's complement, of any length that fits. */
static enum sl_status push_long(struct machine *m)
{
    uint64_t n = 0, v = 0;
    enum sl_status st = number(m, 1, &n);
    if (st)
        return st;
    if (n > 8)
        return BAD(m, "holds an integer of %llu bytes", (unsigned long long)n);
    if ((st = number(m, (size_t)n, &v)))
        return st;
    if (n && n < 8 && v >> (8 * n - 1))
        v |= UINT64_MAX << 8 * n;
    return push_kind(m, PICKLE_INT, (int64_t)v);
}

/* The bytes up to a newline. */
static enum sl_status line(struct machine *m, struct pickle_value *out)
{
    const unsigned char *nl = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!nl)
        return BAD(m, "ends in the middle (truncated?)");
    *out = (struct pickle_value){
        .kind = PICKLE_STRING, .n = (uint32_t)(nl - m->at), .string = (const char *)m->at};
    m->at = nl + 1;
    return SL_OK;
}

static bool equals(const struct pickle_value *v, const char *s)
{
    return v->kind == PICKLE_STRING && v->n == strlen(s) && !memcmp(v->string, s, v->n);
}

/* ---- what torch's pickles do --------------------------------------------------------------- */

static enum sl_status push_global(struct machine *m, const struct pickle_value *module,
                                  const struct pickle_value *name)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (equals(module, globals[i].module) && equals(name, globals[i].name))
            return push(m, (struct pickle_value){.kind = PICKLE_GLOBAL, .global = &globals[i]});
    int n_module = module->n < 100 ? (int)module->n : 100, n = name->n < 100 ? (int)name->n : 100;
    return BAD(m, "asks for %.*s.%.*s; only tensors are built, and nothing else is run", n_module,
               module->string, n, name->string);
}

static enum sl_status read_global(struct machine *m)
{
    struct pickle_value module = {0}, name = {0};
    enum sl_status st = line(m, &module);
    if (st || (st = line(m, &name)))
        return st;
    return push_global(m, &module, &name);
}

static enum sl_status stack_global(struct machine *m)
{
    const struct pickle_value *v = top(m, 2);
    if (!v)
        return underflow(m);
    struct pickle_value module = v[0], name = v[1];
    if (module.kind != PICKLE_STRING || name.kind != PICKLE_STRING)
        return BAD(m, "asks for a global without a name");
    m->n -= 2;
    return push_global(m, &module, &name);
}

static enum sl_status push_tuple(struct machine *m, const struct pickle_value *items, size_t n)
{
    struct pickle_value *copy = arena_alloc(&m->p->arena, n ? n : 1, sizeof *copy);
    if (!copy)
        return no_memory(m);
    if (n)
        memcpy(copy, items, n * sizeof *copy);
    return push(m, (struct pickle_value){.kind = PICKLE_TUPLE, .n = (uint32_t)n, .item = copy});
}

static enum sl_status tuple_of(struct machine *m, size_t n)
{
    const struct pickle_value *v = top(m, n);
    if (!v)
        return underflow(m);
    m->n -= n;
    return push_tuple(m, v, n);
}

static enum sl_status push_dict(struct machine *m)
{
    struct pickle_dict *d = arena_alloc(&m->p->arena, 1, sizeof *d);
    return d ? push(m, (struct pickle_value){.kind = PICKLE_DICT, .dict = d}) : no_memory(m);
}

/* The n values go into the dictionary on top of the stack below them. */
static enum sl_status set_items(struct machine *m, const struct pickle_value *v, size_t n)
{
    const struct pickle_value *on = top(m, 1);
    if (!on || on->kind != PICKLE_DICT || n % 2)
        return BAD(m, "sets items of something else than a dictionary");
    struct pickle_dict *d = on->dict;
    if (d->n + n / 2 > d->cap) { /* grown in the arena: doubling keeps it linear */
        size_t cap = 2 * d->cap + n / 2;
        struct pickle_value *more = arena_alloc(&m->p->arena, 2 * cap, sizeof *more);
        if (!more)
            return no_memory(m);
        if (d->n)
            memcpy(more, d->pair, 2 * d->n * sizeof *more);
        d->pair = more;
        d->cap = cap;
    }
    if (n)
        memcpy(d->pair + 2 * d->n, v, n * sizeof *v);
    d->n += n / 2;
    return SL_OK;
}

static enum sl_status sizes(const struct machine *m, const struct pickle_value *v, uint64_t *out)
{
    for (uint32_t i = 0; i < v->n; i++) {
        if (v->item[i].kind != PICKLE_INT || v->item[i].integer < 0)
            return BAD(m, "gives a tensor a size or stride that is no size");
        out[i] = (uint64_t)v->item[i].integer;
    }
    return SL_OK;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static enum sl_status rebuild(struct machine *m, const struct pickle_value *args)
{
    const struct pickle_value *a = args->item;
    if ((args->n != 6 && args->n != 7) || a[0].kind != PICKLE_STORAGE || a[1].kind != PICKLE_INT ||
        a[1].integer < 0 || a[2].kind != PICKLE_TUPLE || a[3].kind != PICKLE_TUPLE ||
        a[2].n != a[3].n)
        return BAD(m, "calls _rebuild_tensor_v2 with other arguments than torch does");
    if (a[2].n > ST_MAX_DIMS)
        return BAD(m, "holds a tensor of %u dimensions, at most %d are known", a[2].n, ST_MAX_DIMS);
    struct pickle_tensor *t = arena_alloc(&m->p->arena, 1, sizeof *t);
    if (!t)
        return no_memory(m);
    t->storage = a[0].storage;
    t->offset = (uint64_t)a[1].integer;
    t->n_dims = (int)a[2].n;
    enum sl_status st = sizes(m, &a[2], t->dim);
    if (st || (st = sizes(m, &a[3], t->stride)))
        return st;
    return push(m, (struct pickle_value){.kind = PICKLE_TENSOR, .tensor = t});
}

static enum sl_status reduce(struct machine *m)
{
    const struct pickle_value *v = top(m, 2);
    if (!v)
        return underflow(m);
    struct pickle_value fn = v[0], args = v[1];
    m->n -= 2;
    if (fn.kind != PICKLE_GLOBAL || args.kind != PICKLE_TUPLE)
        return BAD(m, "calls what is no function");
    if (fn.global->kind == GLOBAL_REBUILD)
        return rebuild(m, &args);
    if (fn.global->kind == GLOBAL_ORDERED_DICT && args.n == 0)
        return push_dict(m);
    return BAD(m, "calls %s.%s with arguments that torch.save does not write", fn.global->module,
               fn.global->name);
}

/* ('storage', type, key, location, elements); the old format adds what a view is of. */
static enum sl_status persistent(struct machine *m)
{
    const struct pickle_value *id = top(m, 1);
    if (!id)
        return underflow(m);
    const struct pickle_value *a = id->item;
    if (id->kind != PICKLE_TUPLE || id->n < 5 || id->n > 6 || !equals(&a[0], "storage") ||
        a[1].kind != PICKLE_GLOBAL || a[1].global->kind != GLOBAL_STORAGE ||
        a[2].kind != PICKLE_STRING || a[4].kind != PICKLE_INT || a[4].integer < 0)
        return BAD(m, "names something outside of it that is no storage");
    if (id->n == 6 && a[5].kind != PICKLE_NONE)
        return BAD(m, "names a view of a storage");
    struct pickle_storage *s = arena_alloc(&m->p->arena, 1, sizeof *s);
    if (!s)
        return no_memory(m);
    *s = (struct pickle_storage){.dtype = a[1].global->dtype,
                                 .key = a[2].string,
                                 .key_bytes = a[2].n,
                                 .elements = (uint64_t)a[4].integer};
    m->n--;
    return push(m, (struct pickle_value){.kind = PICKLE_STORAGE, .storage = s});
}

/* An OrderedDict's attributes (a state dict's _metadata): of no use here. */
static enum sl_status build(struct machine *m)
{
    const struct pickle_value *v = top(m, 2);
    if (!v)
        return underflow(m);
    if (v[0].kind != PICKLE_DICT)
        return BAD(m, "gives attributes to something else than a dictionary");
    m->n--;
    return SL_OK;
}

/* ---- opcodes ------------------------------------------------------------------------------- */

static enum sl_status set_item(struct machine *m)
{
    const struct pickle_value *v = top(m, 2);
    if (!v)
        return underflow(m);
    m->n -= 2;
    return set_items(m, v, 2);
}

/* Up to the last mark: a tuple, a dictionary's items, or a list's. */
static enum sl_status marked(struct machine *m, int op)
{
    size_t n = 0;
    const struct pickle_value *v = pop_mark(m, &n);
    if (!v)
        return underflow(m);
    if (op == 't')
        return push_tuple(m, v, n);
    if (op == 'u')
        return set_items(m, v, n);
    v = top(m, 1);
    return v && v->kind == PICKLE_LIST ? SL_OK : BAD(m, "appends to what is no list");
}

static enum sl_status append(struct machine *m)
{
    const struct pickle_value *v = top(m, 2);
    if (!v || v[0].kind != PICKLE_LIST)
        return BAD(m, "appends to what is no list");
    m->n--;
    return SL_OK;
}

static enum sl_status push_int(struct machine *m, size_t bytes)
{
    uint64_t v = 0;
    enum sl_status st = number(m, bytes, &v);
    return st ? st : push_kind(m, PICKLE_INT, bytes == 4 ? (int32_t)v : (int64_t)v);
}

static enum sl_status memo_op(struct machine *m, size_t bytes, bool put)
{
    uint64_t i = 0;
    enum sl_status st = number(m, bytes, &i);
    return st ? st : put ? memo_put(m, i) : memo_get(m, i);
}

static enum sl_status skip(struct machine *m, size_t n)
{
    const unsigned char *p = NULL;
    return take(m, n, &p);
}

static enum sl_status protocol(struct machine *m)
{
    uint64_t v = 0;
    enum sl_status st = number(m, 1, &v);
    if (st == SL_OK && (v < 2 || v > 5))
        st = BAD(m, "is of protocol %llu; 2 to 5 are read", (unsigned long long)v);
    return st;
}

static enum sl_status real(struct machine *m)
{
    enum sl_status st = skip(m, 8);
    return st ? st : push_kind(m, PICKLE_REAL, 0);
}

/* Pushes that need no thought; SL_EAGAIN: another opcode. */
static enum sl_status step_value(struct machine *m, int op)
{
    switch (op) {
    case 'N':
        return push_kind(m, PICKLE_NONE, 0);
    case 0x88:
    case 0x89:
        return push_kind(m, PICKLE_BOOL, op == 0x88);
    case 'K':
        return push_int(m, 1);
    case 'M':
        return push_int(m, 2);
    case 'J':
        return push_int(m, 4);
    case 0x8a:
        return push_long(m);
    case 'G':
        return real(m);
    case 'X': /* strings, with a length of 4 bytes or 1; of Python 2: */
    case 'T':
        return push_string(m, 4);
    case 0x8c:
    case 'U':
        return push_string(m, 1);
    case '(':
        return push_kind(m, PICKLE_MARK, 0);
    case ')':
        return push_tuple(m, NULL, 0);
    case ']':
        return push_kind(m, PICKLE_LIST, 0);
    case '}':
        return push_dict(m);
    }
    return SL_EAGAIN;
}

static enum sl_status step(struct machine *m, int op)
{
    enum sl_status st = step_value(m, op);
    if (st != SL_EAGAIN)
        return st;
    switch (op) {
    case 0x80:
        return protocol(m);
    case 0x95: /* FRAME: how much follows */
        return skip(m, 8);
    case 'q':
        return memo_op(m, 1, true);
    case 'r':
        return memo_op(m, 4, true);
    case 0x94:
        return memo_put(m, m->n_memo);
    case 'h':
        return memo_op(m, 1, false);
    case 'j':
        return memo_op(m, 4, false);
    case 't':
    case 'u':
    case 'e':
        return marked(m, op);
    case 0x85:
    case 0x86:
    case 0x87:
        return tuple_of(m, (size_t)(op - 0x84));
    case 's':
        return set_item(m);
    case 'a':
        return append(m);
    case 'c':
        return read_global(m);
    case 0x93:
        return stack_global(m);
    case 'R':
        return reduce(m);
    case 'Q':
        return persistent(m);
    case 'b':
        return build(m);
    case '.':
        m->stopped = true;
        return SL_OK;
    }
    return BAD(m, "has opcode 0x%02x, which torch.save does not write for tensors", (unsigned)op);
}

enum sl_status unpickle(struct pickle *p, const void *bytes, size_t n, const char *file,
                        struct sl_err *err)
{
    struct machine m = {
        .at = bytes, .end = (const unsigned char *)bytes + n, .p = p, .file = file, .err = err};
    enum sl_status st = SL_OK;
    *p = (struct pickle){0};
    if (n > PICKLE_MAX_BYTES)
        m.end = m.at + PICKLE_MAX_BYTES;
    while (st == SL_OK && !m.stopped) {
        if (m.at == m.end)
            st = n > PICKLE_MAX_BYTES ? BAD(&m, "has more than %d bytes", PICKLE_MAX_BYTES)
                                      : BAD(&m, "ends in the middle (truncated?)");
        else
            st = step(&m, *m.at++);
    }
    if (st == SL_OK && (m.n != 1 || m.stack[0].kind == PICKLE_MARK))
        st = BAD(&m, "leaves %zu values", m.n);
    if (st == SL_OK)
        p->root = m.stack[0];
    mem_free(m.stack);
    mem_free(m.memo);
    if (st)
        pickle_fini(p);
    return st;
}

void pickle_fini(struct pickle *p)
{
    arena_fini(&p->arena);
    *p = (struct pickle){0};
}
