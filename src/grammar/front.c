/* From what a request asks for to rules.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"
#include "grammar/schema.h"

#include <string.h>

enum { TEXT_MAX = 4 << 20, CHOICES_MAX = 100000 };

static json_t *parse(struct rules *g, const char *text, size_t n)
{
    json_error_t e;
    size_t flags = JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_t *v = json_loadb(text, n, flags, &e);
    if (!v && json_error_code(&e) == json_error_numeric_overflow) /* an integer beyond 64 bits */
        v = json_loadb(text, n, flags | JSON_DECODE_INT_AS_REAL, &e);
    if (!v)
        work_refuse(g->w, "not valid JSON: %s (line %d, column %d)", e.text, e.line, e.column);
    return v;
}

static void read_regex(struct rules *g, const struct grammar_spec *s)
{
    const struct fsm *m = regex_fsm(g->w, s->text, s->n_text, false);
    g->root = m ? rules_leaf(g, fsm_to_bytes(g->w, m, false)) : 0;
}

static void read_choice(struct rules *g, const json_t *list)
{
    struct nfa a;
    nfa_init(&a, g->w);
    int start = nfa_state(&a), end = nfa_state(&a);
    if (!json_is_array(list) || json_array_size(list) == 0)
        work_refuse(g->w, "not an array of strings, or an empty one");
    if (json_array_size(list) > CHOICES_MAX)
        work_refuse(g->w, "more than %d choices", CHOICES_MAX);
    for (size_t i = 0; i < json_array_size(list) && !g->w->st; i++) {
        const json_t *v = json_array_get(list, i);
        struct expr *e = json_is_string(v)
                             ? expr_bytes(g->w, json_string_value(v), json_string_length(v))
                             : NULL;
        if (!json_is_string(v))
            work_refuse(g->w, "choice %zu is not a string", i);
        else if (e)
            nfa_eps(&a, expr_emit(&a, e, start, false), end);
    }
    if (g->w->st)
        return;
    a.final[end] = true;
    g->root = rules_leaf(g, fsm_minimize(g->w, fsm_from_nfa(&a, start)));
}

static void read_json_object(struct rules *g, const struct grammar_spec *s)
{
    json_t *any = json_pack("{s:s}", "type", "object");
    struct grammar_spec open = *s;
    open.closed = false; /* it would leave {} */
    if (any)
        g->root = schema_rules(g, &open, any);
    else
        work_refuse(g->w, "no memory");
    json_decref(any);
}

void grammar_front(struct rules *g, const struct grammar_lib *lib, const struct grammar_spec *s)
{
    json_t *v = NULL;
    if (s->n_text > TEXT_MAX) {
        work_refuse(g->w, "longer than %d MiB", TEXT_MAX >> 20);
        return;
    }
    switch (s->kind) {
    case GRAMMAR_JSON_SCHEMA:
        if ((v = parse(g, s->text, s->n_text)) != NULL)
            g->root = schema_rules(g, s, v);
        break;
    case GRAMMAR_JSON_OBJECT:
        read_json_object(g, s);
        break;
    case GRAMMAR_REGEX:
        read_regex(g, s);
        break;
    case GRAMMAR_CHOICE:
        if ((v = parse(g, s->text, s->n_text)) != NULL)
            read_choice(g, v);
        break;
    case GRAMMAR_EBNF:
        if (grammar_is_lark(s->text, s->n_text))
            g->root = lark_read(g, s->text, s->n_text);
        else
            g->root = gbnf_read(g, s->text, s->n_text);
        break;
    case GRAMMAR_TAGS:
        if ((v = parse(g, s->text, s->n_text)) != NULL)
            g->root = tags_rules(g, lib, s, v);
        break;
    }
    json_decref(v);
}
