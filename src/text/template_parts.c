/* template_parts.c - does a template go through a message's content as a list of parts?
 *
 * vLLM's rule, on the syntax tree alone: there is a loop over `content`, or over .content (or
 * ["content"]) of what loops over `messages` call a message. Filters, tests and slices on the way
 * do not matter, nor does renaming (`set all = messages`). Scopes are not looked at.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/jinja.h"
#include "text/template.h"

#include <string.h>

enum { MAX_NAMES = 32 };

struct names {
    const struct jstr *v[MAX_NAMES];
    size_t n;
};

static bool is_text(const struct jstr *s, const char *text)
{
    return s->n == strlen(text) && !memcmp(s->p, text, s->n);
}

static bool known(const struct names *names, const struct jstr *s)
{
    for (size_t i = 0; i < names->n; i++)
        if (names->v[i]->n == s->n && !memcmp(names->v[i]->p, s->p, s->n))
            return true;
    return false;
}

static bool add(struct names *names, const struct jstr *s)
{
    if (names->n == MAX_NAMES || known(names, s))
        return false;
    names->v[names->n++] = s;
    return true;
}

/* What filters, tests and slices are applied to. */
static const struct node *bare(const struct node *e)
{
    while (e) {
        if ((e->kind == N_FILTER || e->kind == N_TEST) && e->call.base)
            e = e->call.base;
        else if (e->kind == N_ITEM && e->e.b && e->e.b->kind == N_SLICE)
            e = e->e.a;
        else
            break;
    }
    return e;
}

static bool is_name_of(const struct node *e, const struct names *names)
{
    return e && e->kind == N_NAME && !e->store && known(names, e->name.name);
}

static bool is_content_of(const struct node *e, const struct names *messages)
{
    if (e && e->kind == N_ATTR)
        return is_text(e->attr.name, "content") && is_name_of(e->attr.base, messages);
    return e && e->kind == N_ITEM && e->e.b && e->e.b->kind == N_CONST &&
           e->e.b->konst.kind == J_STR && is_text(e->e.b->konst.s, "content") &&
           is_name_of(e->e.a, messages);
}

struct search {
    struct names lists, messages; /* names of the list of messages; of one message */
    bool grew, found;
};

static void look_at(struct search *s, const struct node *n)
{
    if (n->kind == N_SET && n->set.target && n->set.target->kind == N_NAME &&
        is_name_of(bare(n->set.value), &s->lists))
        s->grew |= add(&s->lists, n->set.target->name.name);
    if (n->kind != N_FOR || !n->loop.target || n->loop.target->kind != N_NAME)
        return;
    const struct node *iter = bare(n->loop.iter);
    if (is_name_of(iter, &s->lists))
        s->grew |= add(&s->messages, n->loop.target->name.name);
    const struct node *plain = n->loop.iter;
    s->found |= is_content_of(iter, &s->messages) ||
                (plain->kind == N_NAME && is_text(plain->name.name, "content"));
}

/* Statements nest as deep as the parser lets them. */
static void walk(struct search *s, const struct nodes *body)
{
    for (size_t i = 0; i < body->n; i++) {
        const struct node *n = body->v[i];
        look_at(s, n);
        switch (n->kind) {
        case N_FOR:
            walk(s, &n->loop.body);
            walk(s, &n->loop.otherwise);
            break;
        case N_IF:
            walk(s, &n->cond.body);
            walk(s, &n->cond.elifs);
            walk(s, &n->cond.otherwise);
            break;
        case N_MACRO:
        case N_CALLBLOCK:
            walk(s, &n->macro.body);
            break;
        case N_FILTERBLOCK:
        case N_WITH:
        case N_SETBLOCK:
        case N_AUTOESCAPE:
            walk(s, &n->set.body);
            break;
        case N_BLOCK:
            walk(s, &n->block.body);
            break;
        default:
            break;
        }
    }
}

bool template_reads_parts(const struct template *t)
{
    static const struct jstr messages = {.p = "messages", .n = 8};
    struct search s = {0};
    add(&s.lists, &messages);
    do {
        s.grew = false;
        walk(&s, &t->body);
    } while (s.grew); /* at most MAX_NAMES times each */
    return s.found;
}
