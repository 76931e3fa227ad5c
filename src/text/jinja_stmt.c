/* SPDX-License-Identifier: Apache-2.0
 *
 * Statements: Jinja's own tags, break and continue (the loopcontrols extension), and transformers'
 * generation tag. include, import and extends parse, but there is nothing to load from: they fail
 * when they are reached, as they do there. */
#include "text/jinja.h"

#include <stdio.h>
#include <string.h>

static void parse_body(struct parser *p, struct nodes *body, const char *tag, const char *ends);

static const char *tags_text(struct parser *p, const char *ends)
{
    struct jbuild b = {.rt = p->rt};
    for (const char *at = ends; *at;) {
        size_t n = strcspn(at, " ");
        if (at > ends)
            jb_adds(&b, " or ");
        jb_addc(&b, '\'');
        jb_add(&b, at, n);
        jb_addc(&b, '\'');
        at += n + (at[n] == ' ');
    }
    return jb_done(&b)->p;
}

static bool is_end(const struct tok *t, const char *ends)
{
    for (const char *at = ends; *at;) {
        size_t n = strcspn(at, " ");
        if (t->kind == T_NAME && t->n == n && memcmp(t->p, at, n) == 0)
            return true;
        at += n + (at[n] == ' ');
    }
    return false;
}

static void fail_unclosed(struct parser *p, const struct tok *tag, struct jpos pos)
{
    struct jbuild b = {.rt = p->rt};
    if (tag)
        jb_fmt(&b, "encountered unknown tag '%s'", tok_text(p->rt, tag));
    else
        jb_adds(&b, "unexpected end of template");
    if (p->n_open) {
        const char *ends = p->looking_for[p->n_open - 1];
        bool misplaced = false;
        for (int i = 0; tag && i < p->n_open; i++)
            misplaced |= is_end(tag, p->looking_for[i]);
        jb_fmt(&b,
               misplaced ? "; it closes an outer block, but the tags wanted here are %s"
                         : "; the tags wanted here are %s",
               tags_text(p, ends));
        jb_fmt(&b, "; the innermost open block is '%s'", p->open[p->n_open - 1]);
    }
    parse_fail(p, pos, "%s", jb_done(&b)->p);
}

/* ---- tags ----------------------------------------------------------------------------------- */

static struct jstr *take_name(struct parser *p)
{
    struct tok *t = tok_expect(p, T_NAME);
    return jstr_view(p->rt, t->p, t->n);
}

static struct node *clone_target(struct parser *p, const struct node *n)
{
    struct node *c = node_new(p, n->kind, n->pos);
    *c = *n;
    if (n->kind == N_TUPLE) {
        c->list = (struct nodes){0};
        for (size_t i = 0; i < n->list.n; i++)
            nodes_add(p->rt, &c->list, clone_target(p, n->list.v[i]));
    }
    return c;
}

static void refuse_loop_target(struct parser *p, const struct node *n)
{
    if (n->kind == N_NAME && jstr_is(n->name.name, "loop"))
        parse_fail(p, n->pos, "can't assign to special loop variable in for-loop target");
    for (size_t i = 0; n->kind == N_TUPLE && i < n->list.n; i++)
        refuse_loop_target(p, n->list.v[i]);
}

static struct node *parse_for(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_FOR, pos);
    n->loop.target = parse_target(p, false, "in");
    refuse_loop_target(p, n->loop.target);
    tok_expect_name(p, "in");
    n->loop.iter = parse_tuple(p, false, false, "recursive");
    if (tok_skip_name(p, "if")) {
        n->loop.test = parse_expr(p, true);
        n->loop.test_target = clone_target(p, n->loop.target);
    }
    n->loop.recursive = tok_skip_name(p, "recursive");
    bool in_loop = p->in_loop;
    p->in_loop = true;
    parse_body(p, &n->loop.body, "for", "endfor else");
    p->in_loop = in_loop && !n->loop.recursive;
    if (tok_is(tok_take(p), "else")) {
        parse_body(p, &n->loop.otherwise, "for", "endfor");
        tok_take(p);
    }
    p->in_loop = in_loop;
    return n;
}

static struct node *parse_if(struct parser *p, struct jpos pos)
{
    struct node *first = node_new(p, N_IF, pos), *n = first;
    for (;;) {
        n->cond.test = parse_tuple(p, false, false, NULL);
        parse_body(p, &n->cond.body, "if", "elif else endif");
        struct tok *t = tok_take(p);
        if (tok_is(t, "elif")) {
            n = node_new(p, N_IF, t->pos);
            nodes_add(p->rt, &first->cond.elifs, n);
            continue;
        }
        if (tok_is(t, "else")) {
            parse_body(p, &first->cond.otherwise, "if", "endif");
            tok_take(p);
        }
        return first;
    }
}

/* (a, b=1): what a macro or a call block takes. */
static void parse_signature(struct parser *p, struct func *f)
{
    tok_expect(p, T_LPAREN);
    while (tok_now(p)->kind != T_RPAREN) {
        if (f->params.n)
            tok_expect(p, T_COMMA);
        struct node *param = node_new(p, N_NAME, tok_now(p)->pos);
        param->name.name = take_name(p);
        param->store = true;
        for (size_t i = 0; i < f->params.n; i++)
            if (jstr_eq(f->params.v[i]->name.name, param->name.name))
                parse_fail(p, param->pos, "duplicate argument '%.*s'", (int)param->name.name->n,
                           param->name.name->p);
        nodes_add(p->rt, &f->params, param);
        if (tok_skip(p, T_ASSIGN))
            nodes_add(p->rt, &f->defaults, parse_expr(p, true));
        else if (f->defaults.n)
            parse_fail(p, tok_now(p)->pos, "non-default argument follows default argument");
    }
    tok_take(p);
}

static void parse_func_body(struct parser *p, struct nodes *body, const char *tag, const char *end)
{
    bool in_loop = p->in_loop;
    p->in_loop = false;
    parse_body(p, body, tag, end);
    tok_take(p);
    p->in_loop = in_loop;
}

static struct node *parse_macro(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_MACRO, pos);
    n->macro.func = jalloc(p->rt, 1, sizeof *n->macro.func);
    n->macro.name = take_name(p);
    parse_signature(p, n->macro.func);
    parse_func_body(p, &n->macro.body, "macro", "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_CALLBLOCK, pos);
    n->macro.func = jalloc(p->rt, 1, sizeof *n->macro.func);
    if (tok_now(p)->kind == T_LPAREN)
        parse_signature(p, n->macro.func);
    n->macro.call = parse_expr(p, true);
    if (n->macro.call->kind != N_CALL)
        parse_fail(p, pos, "expected call");
    parse_func_body(p, &n->macro.body, "call", "endcall");
    return n;
}

static struct node *parse_generation(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_CALLBLOCK, pos);
    n->macro.func = jalloc(p->rt, 1, sizeof *n->macro.func);
    parse_func_body(p, &n->macro.body, "generation", "endgeneration");
    return n;
}

static struct node *parse_set(struct parser *p, struct jpos pos)
{
    struct node *target = parse_target(p, true, NULL);
    struct node *n = node_new(p, tok_skip(p, T_ASSIGN) ? N_SET : N_SETBLOCK, pos);
    n->set.target = target;
    if (n->kind == N_SET) {
        n->set.value = parse_tuple(p, true, false, NULL);
        return n;
    }
    n->set.filter = parse_filters(p, NULL, false);
    parse_body(p, &n->set.body, "set", "endset");
    tok_take(p);
    return n;
}

static struct node *parse_filter_block(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_FILTERBLOCK, pos);
    n->set.filter = parse_filters(p, NULL, true);
    parse_body(p, &n->set.body, "filter", "endfilter");
    tok_take(p);
    return n;
}

static struct node *parse_with(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_WITH, pos);
    while (tok_now(p)->kind != T_BLOCK_END) {
        if (n->set.targets.n)
            tok_expect(p, T_COMMA);
        nodes_add(p->rt, &n->set.targets, parse_target(p, false, NULL));
        tok_expect(p, T_ASSIGN);
        nodes_add(p->rt, &n->set.values, parse_expr(p, true));
    }
    parse_body(p, &n->set.body, "with", "endwith");
    tok_take(p);
    return n;
}

static struct node *parse_autoescape(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_AUTOESCAPE, pos);
    n->set.value = parse_expr(p, true);
    parse_body(p, &n->set.body, "autoescape", "endautoescape");
    tok_take(p);
    return n;
}

static struct node *parse_block(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_BLOCK, pos);
    n->block.func = jalloc(p->rt, 1, sizeof *n->block.func);
    n->block.name = take_name(p);
    n->block.scoped = tok_skip_name(p, "scoped");
    n->block.required = tok_skip_name(p, "required");
    for (size_t i = 0; i < p->blocks.n; i++)
        if (jstr_eq(p->blocks.v[i]->block.name, n->block.name))
            parse_fail(p, pos, "block '%.*s' defined twice", (int)n->block.name->n,
                       n->block.name->p);
    nodes_add(p->rt, &p->blocks, n);
    parse_func_body(p, &n->block.body, "block", "endblock");
    struct tok *t = tok_now(p);
    if (t->kind == T_NAME && t->n == n->block.name->n && !memcmp(t->p, n->block.name->p, t->n))
        tok_take(p);
    return n;
}

static struct node *parse_print(struct parser *p, struct jpos pos)
{
    struct node *n = node_new(p, N_OUTPUT, pos);
    while (tok_now(p)->kind != T_BLOCK_END) {
        if (n->list.n)
            tok_expect(p, T_COMMA);
        nodes_add(p->rt, &n->list, parse_expr(p, true));
    }
    return n;
}

static struct node *parse_loader_tag(struct parser *p, struct jpos pos, const char *tag)
{
    struct node *n = node_new(p, N_NOLOADER, pos);
    n->what = tag;
    parse_expr(p, true);
    while (tok_now(p)->kind != T_BLOCK_END && tok_now(p)->kind != T_EOF)
        tok_take(p); /* `ignore missing`, `as x`, `import a, b with context` */
    return n;
}

static struct node *parse_jump(struct parser *p, struct jpos pos, bool is_break)
{
    if (!p->in_loop)
        parse_fail(p, pos, "'%s' outside loop", is_break ? "break" : "continue");
    return node_new(p, is_break ? N_BREAK : N_CONTINUE, pos);
}

static struct node *parse_statement(struct parser *p)
{
    static const char *const loaders[] = {"include", "import", "from", "extends"};
    struct tok *t = tok_now(p);
    if (t->kind != T_NAME)
        parse_fail(p, t->pos, "tag name expected");
    struct jpos pos = t->pos;
    tok_take(p);
    if (tok_is(t, "if"))
        return parse_if(p, pos);
    if (tok_is(t, "for"))
        return parse_for(p, pos);
    if (tok_is(t, "set"))
        return parse_set(p, pos);
    if (tok_is(t, "macro"))
        return parse_macro(p, pos);
    if (tok_is(t, "call"))
        return parse_call_block(p, pos);
    if (tok_is(t, "filter"))
        return parse_filter_block(p, pos);
    if (tok_is(t, "generation"))
        return parse_generation(p, pos);
    if (tok_is(t, "with"))
        return parse_with(p, pos);
    if (tok_is(t, "block"))
        return parse_block(p, pos);
    if (tok_is(t, "print"))
        return parse_print(p, pos);
    if (tok_is(t, "autoescape"))
        return parse_autoescape(p, pos);
    if (tok_is(t, "break") || tok_is(t, "continue"))
        return parse_jump(p, pos, t->n == 5);
    for (size_t i = 0; i < sizeof loaders / sizeof *loaders; i++)
        if (tok_is(t, loaders[i]))
            return parse_loader_tag(p, pos, loaders[i]);
    fail_unclosed(p, t, pos);
    return NULL;
}

/* ---- bodies --------------------------------------------------------------------------------- */

static void parse_text(struct parser *p, struct nodes *body)
{
    struct tok *t = tok_take(p);
    struct node *n;
    if (t->kind == T_DATA) {
        n = node_new(p, N_DATA, t->pos);
        n->data.p = t->p;
        n->data.n = t->n;
    } else {
        n = node_new(p, N_OUTPUT, t->pos);
        nodes_add(p->rt, &n->list, parse_tuple(p, true, false, NULL));
        tok_expect(p, T_VAR_END);
    }
    nodes_add(p->rt, body, n);
}

/* Until one of the tags in `ends` ("endif else"), whose name token is then the current one. */
static void parse_until(struct parser *p, struct nodes *body, const char *ends)
{
    while (tok_now(p)->kind != T_EOF) {
        if (tok_now(p)->kind != T_BLOCK_BEGIN) {
            parse_text(p, body);
            continue;
        }
        tok_take(p);
        if (ends && is_end(tok_now(p), ends))
            return;
        nodes_add(p->rt, body, parse_statement(p));
        tok_expect(p, T_BLOCK_END);
    }
    if (ends)
        fail_unclosed(p, NULL, tok_now(p)->pos);
}

static void parse_body(struct parser *p, struct nodes *body, const char *tag, const char *ends)
{
    tok_skip(p, T_COLON);
    tok_expect(p, T_BLOCK_END);
    if (p->n_open == (int)(sizeof p->open / sizeof *p->open))
        parse_fail(p, tok_now(p)->pos, "more than %d blocks inside each other", p->n_open);
    p->open[p->n_open] = tag;
    p->looking_for[p->n_open++] = ends;
    parse_until(p, body, ends);
    p->n_open--;
}

void jparse(struct parser *p, struct nodes *body)
{
    parse_until(p, body, NULL);
}
