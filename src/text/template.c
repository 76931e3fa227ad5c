/* SPDX-License-Identifier: Apache-2.0 */
#include "text/jinja_run.h"

#include "base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A template is a page of text; a render holds a conversation and some copies of its pieces. */
const struct template_limits template_default_limits = {
    .output_bytes = (size_t)64 << 20,
    .memory_bytes = (size_t)256 << 20,
    .depth = 800,
    .steps = 50 * 1000 * 1000,
};
static const struct template_limits compile_limits = {
    .memory_bytes = (size_t)64 << 20, .depth = 300, .steps = 20 * 1000 * 1000};
enum { MAX_SOURCE_BYTES = 4 << 20 };

/* ---- failing
 * ------------------------------------------------------------------------------------------- */

static void leave(struct jrt *rt, enum sl_status status)
{
    rt->status = status;
    longjmp(rt->fail, 1);
}

void jfail(struct jrt *rt, enum jerr_kind kind, const char *fmt, ...)
{
    char text[900];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)kind;
    leave(rt, SL_FAIL(rt->err, SL_EINVAL, "chat template, line %u, column %u: %s", rt->at.line,
                      rt->at.col, text));
    __builtin_unreachable();
}

void jfail_raised(struct jrt *rt, struct jstr *msg)
{
    leave(rt, SL_FAIL(rt->err, SL_EINVAL, "%.*s", (int)(msg->n < 1000 ? msg->n : 1000), msg->p));
    __builtin_unreachable();
}

void jfail_steps(struct jrt *rt)
{
    jfail(rt, JERR_LIMIT, "the template does not come to an end (more than %llu steps)",
          (unsigned long long)rt->limits->steps);
}

void jfail_depth(struct jrt *rt)
{
    jfail(rt, JERR_LIMIT, "nested too deeply (more than %d levels)", rt->limits->depth);
}

void *jalloc(struct jrt *rt, size_t n, size_t size)
{
    size_t bytes;
    void *p = arena_alloc(&rt->arena, n, size);
    if (p)
        return p;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > rt->arena.limit - rt->arena.total)
        jfail(rt, JERR_LIMIT, "the template needs more than %zu MiB of memory",
              rt->arena.limit >> 20);
    leave(rt, SL_FAIL(rt->err, SL_ENOMEM, "no memory for the chat template"));
    __builtin_unreachable();
}

void jout(struct jrt *rt, const char *p, size_t n)
{
    jstep_bytes(rt, n);
    strbuf_add(&rt->out, p, n);
    if (!rt->out.failed)
        return;
    if (n > rt->out.max || rt->out.len > rt->out.max - n)
        jfail(rt, JERR_LIMIT, "the template writes more than %zu bytes", rt->out.max);
    leave(rt, SL_FAIL(rt->err, SL_ENOMEM, "no memory for the chat template's output"));
}

/* ---- the two entrances
 * ------------------------------------------------------------------------------------- */

static void compile(struct jrt *rt, struct template *t, const char *source, size_t bytes)
{
    rt->at = (struct jpos){1, 1};
    if (bytes > MAX_SOURCE_BYTES)
        jfail(rt, JERR_LIMIT, "the template is larger than %d MiB", MAX_SOURCE_BYTES >> 20);
    if (!juni_valid(source, bytes))
        jfail(rt, JERR_SYNTAX, "the template is not valid UTF-8");
    struct parser p = {.rt = rt};
    jlex(rt, source, bytes, &p.toks);
    jparse(&p, &t->body);
    t->blocks = p.blocks;
    t->root = jalloc(rt, 1, sizeof *t->root);
    jscope(rt, t);
}

enum sl_status template_compile(struct template **out, const char *source, size_t bytes,
                                struct sl_err *err)
{
    struct template *t = mem_zalloc(1, sizeof *t);
    struct jrt *rt = mem_zalloc(1, sizeof *rt);
    enum sl_status st = SL_OK;
    if (!t || !rt) {
        mem_free(t);
        mem_free(rt);
        return SL_FAIL(err, SL_ENOMEM, "no memory for the chat template");
    }
    rt->err = err;
    rt->limits = &compile_limits;
    arena_init(&rt->arena, compile_limits.memory_bytes);
    if (!setjmp(rt->fail))
        compile(rt, t, source, bytes);
    else
        st = rt->status;
    t->arena = rt->arena;
    mem_free(rt);
    if (st)
        template_destroy(&t);
    else
        *out = t;
    return st;
}

void template_destroy(struct template **t)
{
    if (!*t)
        return;
    arena_fini(&(*t)->arena);
    mem_free(*t);
    *t = NULL;
}

/* Lone surrogates cannot be written as UTF-8: Python fails when it encodes the text, so do we. */
static void refuse_surrogates(struct jrt *rt)
{
    const char *p = rt->out.data;
    for (size_t i = 0; i + 2 < rt->out.len; i++)
        if ((unsigned char)p[i] == 0xed && (unsigned char)p[i + 1] >= 0xa0)
            jfail(rt, JERR_VALUE, "the text holds a surrogate, which UTF-8 cannot encode");
}

static void render(struct jrt *rt)
{
    const struct template *t = rt->t;
    rt->at = (struct jpos){1, 1};
    rt->context = jdict_new(rt);
    rt->env = jenv_new(rt, t->root, NULL);
    jenter_scope(rt, &t->root->scope);
    if (t->root->uses_kwargs)
        rt->env->slot[t->root->kwargs.index] = (struct jval){.kind = J_SELF};
    (void)jexec(rt, &t->body);
    refuse_surrogates(rt);
}

enum sl_status template_render(const struct template *t, const json_t *vars, const json_t *defaults,
                               const char *now, const struct template_limits *limits, char **text,
                               size_t *bytes, struct sl_err *err)
{
    struct jrt *rt = mem_zalloc(1, sizeof *rt);
    enum sl_status st = SL_OK;
    if (!rt)
        return SL_FAIL(err, SL_ENOMEM, "no memory for the chat template");
    rt->err = err;
    rt->limits = limits ? limits : &template_default_limits;
    rt->t = t;
    rt->vars = vars;
    rt->defaults = defaults;
    rt->now = now;
    rt->seed = (uint64_t)clock_mono_ns() * 0x9e3779b97f4a7c15ULL ^ (uintptr_t)rt;
    arena_init(&rt->arena, rt->limits->memory_bytes);
    strbuf_init(&rt->out, rt->limits->output_bytes);
    if (!setjmp(rt->fail)) {
        render(rt);
        size_t n = rt->out.len;
        char *p = strbuf_take(&rt->out);
        if (!p) {
            st = SL_FAIL(err, SL_ENOMEM, "no memory for the chat template's output");
        } else {
            *text = p;
            *bytes = n;
        }
    } else {
        st = rt->status;
    }
    strbuf_fini(&rt->out);
    arena_fini(&rt->arena);
    mem_free(rt);
    return st;
}
