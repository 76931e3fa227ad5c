/* Structural tags: text in which some stretches must have a form.
 *
 * Both forms that vLLM takes: {"structures": [{begin, schema, end}], "triggers": [...]}, and
 * {"type": "structural_tag", "format": {...}} with XGrammar's formats.
 *
 * A special token in the text of begin, end or a trigger may be written as itself: the trie has it
 * between two bytes that are in no UTF-8 text, so nothing else can produce it.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/internal.h"
#include "grammar/schema.h"

#include <string.h>

enum { NEST_MAX = 30, TAGS_MAX = 2000 };

struct tags {
    struct work *w;
    struct rules *g;
    const struct grammar_lib *lib;
    const struct grammar_spec *spec;
    int depth;
};

static struct expr *read_format(struct tags *t, const json_t *f, const char *until, size_t n_until);

static const char *text_of(struct tags *t, const json_t *o, const char *key, size_t *n)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v)) {
        work_refuse(t->w, "'%s' is missing or not a string", key);
        *n = 0;
        return "";
    }
    *n = json_string_length(v);
    return json_string_value(v);
}

/* ---- texts with special tokens --------------------------------------------------------------- */

/* The longest special token whose text begins at s; its length, 0: none. */
static size_t special_at(const struct tags *t, const char *s, size_t n)
{
    const struct vocab *v = t->lib->vocab;
    size_t best = 0;
    for (int32_t id = 0; id < v->n; id++) {
        size_t len;
        if (!(v->flags[id] & VOCAB_SPECIAL))
            continue;
        const uint8_t *p = vocab_bytes(v, id, &len);
        if (len > best && len <= n && memcmp(p, s, len) == 0)
            best = len;
    }
    return best;
}

static struct expr *with_mark(struct tags *t, const char *s, size_t n)
{
    struct expr *alt = expr_new(t->w, EXPR_ALT);
    char *p = work_alloc(t->w, n + 2, 1);
    if (!p)
        return NULL;
    p[0] = (char)SPECIAL_OPEN;
    memcpy(p + 1, s, n);
    p[n + 1] = (char)SPECIAL_CLOSE;
    expr_add(t->w, alt, expr_bytes(t->w, p, n + 2));
    expr_add(t->w, alt, expr_bytes(t->w, s, n));
    return alt;
}

static struct expr *text_expr(struct tags *t, const char *s, size_t n)
{
    struct expr *cat = expr_new(t->w, EXPR_CAT);
    for (size_t i = 0, from = 0; i <= n && work_spend(t->w, 200);) {
        /* special tokens begin with punctuation: letters need no look */
        bool word = i < n && ((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') ||
                              (s[i] >= '0' && s[i] <= '9') || s[i] == ' ');
        size_t len = i < n && !word ? special_at(t, s + i, n - i) : 0;
        if (!len && i < n) {
            i++;
            continue;
        }
        if (i > from)
            expr_add(t->w, cat, expr_bytes(t->w, s + from, i - from));
        if (i == n)
            break;
        expr_add(t->w, cat, with_mark(t, s + i, len));
        from = i += len;
    }
    return t->w->st ? NULL : cat;
}

/* ---- free text ------------------------------------------------------------------------------- */

/* Every text in which none of these occur. */
static struct expr *text_without(struct tags *t, const json_t *list, const char *until,
                                 size_t n_until)
{
    struct work *w = t->w;
    struct nfa a;
    nfa_init(&a, w);
    int start = nfa_state(&a), end = nfa_state(&a);
    bool any = false;
    if (w->st)
        return NULL;
    for (int q = start; q <= end; q++) {
        nfa_range(&a, q, 0, 0xD7FF, q);
        nfa_range(&a, q, 0xE000, CODE_POINT_MAX, q);
    }
    for (size_t i = 0; i <= json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        bool last = i == json_array_size(list);
        const char *s = last ? until : json_string_value(v);
        size_t n = last ? n_until : json_string_length(v);
        if (!s || n == 0)
            continue;
        any = true;
        const struct fsm *m = fsm_literal(w, s, n);
        if (m)
            nfa_add_fsm(&a, m, start, end);
    }
    if (w->st)
        return NULL;
    a.final[end] = true;
    const struct fsm *all = fsm_all(w);
    const struct fsm *m = any ? fsm_without(w, all, fsm_from_nfa(&a, start)) : all;
    return expr_call(w, rules_leaf(t->g, fsm_to_bytes(w, m, false)));
}

/* ---- tags ------------------------------------------------------------------------------------ */

static struct expr *schema_expr(struct tags *t, const json_t *schema)
{
    if (!schema)
        work_refuse(t->w, "a tag without its schema");
    return t->w->st ? NULL : expr_call(t->w, schema_rules(t->g, t->spec, schema));
}

/* {begin, content, end}, or as the older form writes it {begin, schema, end}. end: a string, or a
 * list of them. */
static struct expr *read_tag(struct tags *t, const json_t *tag)
{
    size_t n, n_end = 0;
    const char *begin = text_of(t, tag, "begin", &n), *until = NULL;
    const json_t *end = json_object_get(tag, "end"), *content = json_object_get(tag, "content");
    struct expr *ends = expr_new(t->w, EXPR_ALT), *middle;
    size_t n_ends = json_is_array(end) ? json_array_size(end) : 1;
    for (size_t i = 0; i < n_ends && !t->w->st; i++) {
        const json_t *v = json_is_array(end) ? json_array_get(end, i) : end;
        if (!json_is_string(v)) {
            work_refuse(t->w, "'end' is missing or not a string");
            return NULL;
        }
        until = json_string_value(v);
        n_end = json_string_length(v);
        expr_add(t->w, ends, text_expr(t, until, n_end));
    }
    middle = content ? read_format(t, content, until, n_end)
                     : schema_expr(t, json_object_get(tag, "schema"));
    return t->w->st ? NULL
                    : expr_cat(t->w, text_expr(t, begin, n), middle, ends, (struct expr *)NULL);
}

static struct expr *read_tags(struct tags *t, const json_t *list)
{
    struct expr *alt = expr_new(t->w, EXPR_ALT);
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > TAGS_MAX)
        work_refuse(t->w, "needs a list of 1 to %d tags", TAGS_MAX);
    for (size_t i = 0; i < json_array_size(list) && !t->w->st; i++)
        expr_add(t->w, alt, read_tag(t, json_array_get(list, i)));
    return alt;
}

static void check_triggers(struct tags *t, const json_t *triggers, const json_t *tags)
{
    if (!json_is_array(triggers) || json_array_size(triggers) == 0 ||
        json_array_size(triggers) > TAGS_MAX)
        work_refuse(t->w, "'triggers' is not a list of 1 to %d strings", TAGS_MAX);
    for (size_t i = 0; i < json_array_size(triggers); i++)
        if (json_string_length(json_array_get(triggers, i)) == 0)
            work_refuse(t->w, "a trigger is empty or not a string");
    for (size_t i = 0; i < json_array_size(tags) && !t->w->st; i++) {
        size_t n;
        bool found = false;
        const char *begin = text_of(t, json_array_get(tags, i), "begin", &n);
        for (size_t k = 0; k < json_array_size(triggers); k++) {
            const json_t *v = json_array_get(triggers, k);
            found |= json_string_length(v) <= n &&
                     memcmp(begin, json_string_value(v), json_string_length(v)) == 0;
        }
        if (!found)
            work_refuse(t->w, "the tag that begins with '%.60s' begins with no trigger", begin);
    }
}

static bool is_true(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key));
}

/* (text tag)* text, where the text contains no trigger. */
static struct expr *triggered(struct tags *t, const json_t *triggers, const json_t *tags,
                              bool at_least_one, bool stop_after_first, const char *until,
                              size_t n_until)
{
    struct work *w = t->w;
    check_triggers(t, triggers, tags);
    struct expr *text = w->st ? NULL : text_without(t, triggers, until, n_until);
    struct expr *tag = w->st ? NULL : read_tags(t, tags);
    if (w->st)
        return NULL;
    struct expr *one = expr_cat(w, text, tag, (struct expr *)NULL);
    if (stop_after_first && at_least_one)
        return one;
    if (stop_after_first) {
        struct expr *alt = expr_new(w, EXPR_ALT);
        expr_add(w, alt, one);
        expr_add(w, alt, text);
        return alt;
    }
    return expr_cat(w, expr_rep(w, one, at_least_one, -1), text, (struct expr *)NULL);
}

static struct expr *separated(struct tags *t, const json_t *f)
{
    struct work *w = t->w;
    size_t n;
    const char *sep = text_of(t, f, "separator", &n);
    struct expr *tag = read_tags(t, json_object_get(f, "tags"));
    if (w->st)
        return NULL;
    struct expr *e = tag;
    if (!is_true(f, "stop_after_first")) {
        struct expr *more = expr_cat(w, text_expr(t, sep, n), tag, (struct expr *)NULL);
        e = expr_cat(w, tag, expr_rep(w, more, 0, -1), (struct expr *)NULL);
    }
    return is_true(f, "at_least_one") ? e : expr_rep(w, e, 0, 1);
}

/* ---- formats --------------------------------------------------------------------------------- */

static struct expr *read_elements(struct tags *t, const json_t *f, enum expr_kind kind,
                                  const char *until, size_t n_until)
{
    const json_t *list = json_object_get(f, "elements");
    struct expr *e = expr_new(t->w, kind);
    if (!json_is_array(list) || json_array_size(list) == 0)
        work_refuse(t->w, "'elements' is missing or empty");
    for (size_t i = 0; i < json_array_size(list) && !t->w->st; i++)
        expr_add(t->w, e, read_format(t, json_array_get(list, i), until, n_until));
    return e;
}

static struct expr *read_regex(struct tags *t, const json_t *f)
{
    size_t n;
    const char *s = text_of(t, f, "pattern", &n);
    const struct fsm *m = t->w->st ? NULL : regex_fsm(t->w, s, n, false);
    return m ? expr_call(t->w, rules_leaf(t->g, fsm_to_bytes(t->w, m, false))) : NULL;
}

static struct expr *read_grammar(struct tags *t, const json_t *f)
{
    size_t n;
    const char *s = text_of(t, f, "grammar", &n);
    if (t->w->st)
        return NULL;
    return expr_call(t->w, grammar_is_lark(s, n) ? lark_read(t->g, s, n) : gbnf_read(t->g, s, n));
}

static struct expr *repeated(struct tags *t, const json_t *f, int min, int max, const char *until,
                             size_t n_until)
{
    struct expr *e = read_format(t, json_object_get(f, "content"), until, n_until);
    return e ? expr_rep(t->w, e, min, max) : NULL;
}

static struct expr *of_type(struct tags *t, const json_t *f, const char *type, const char *until,
                            size_t n_until)
{
    size_t n;
    const char *s;
    if (strcmp(type, "const_string") == 0) {
        s = text_of(t, f, "value", &n);
        return text_expr(t, s, n);
    }
    if (strcmp(type, "json_schema") == 0) {
        const char *style = json_string_value(json_object_get(f, "style"));
        if (style && strcmp(style, "json") != 0) {
            work_refuse(t->w, "json_schema: style '%.40s' is not supported", style);
            return NULL;
        }
        return schema_expr(t, json_object_get(f, "json_schema"));
    }
    if (strcmp(type, "regex") == 0)
        return read_regex(t, f);
    if (strcmp(type, "grammar") == 0)
        return read_grammar(t, f);
    if (strcmp(type, "any_text") == 0)
        return text_without(t, json_object_get(f, "excludes"), until, n_until);
    if (strcmp(type, "sequence") == 0)
        return read_elements(t, f, EXPR_CAT, until, n_until);
    if (strcmp(type, "or") == 0)
        return read_elements(t, f, EXPR_ALT, until, n_until);
    if (strcmp(type, "tag") == 0)
        return read_tag(t, f);
    if (strcmp(type, "triggered_tags") == 0)
        return triggered(t, json_object_get(f, "triggers"), json_object_get(f, "tags"),
                         is_true(f, "at_least_one"), is_true(f, "stop_after_first"), until,
                         n_until);
    if (strcmp(type, "tags_with_separator") == 0)
        return separated(t, f);
    if (strcmp(type, "optional") == 0)
        return repeated(t, f, 0, 1, until, n_until);
    if (strcmp(type, "star") == 0)
        return repeated(t, f, 0, -1, until, n_until);
    if (strcmp(type, "plus") == 0)
        return repeated(t, f, 1, -1, until, n_until);
    work_refuse(t->w, "format type '%.40s' is not supported", type);
    return NULL;
}

/* until: the text that ends the tag around this; free text does not contain it. */
static struct expr *read_format(struct tags *t, const json_t *f, const char *until, size_t n_until)
{
    const char *type = json_string_value(json_object_get(f, "type"));
    struct expr *e;
    if (!type)
        work_refuse(t->w, "a format needs a 'type'");
    if (++t->depth > NEST_MAX)
        work_refuse(t->w, "more than %d formats inside one another", NEST_MAX);
    e = t->w->st ? NULL : of_type(t, f, type, until, n_until);
    t->depth--;
    return e;
}

int tags_rules(struct rules *g, const struct grammar_lib *lib, const struct grammar_spec *spec,
               const struct json_t *root)
{
    struct tags t = {.w = g->w, .g = g, .lib = lib, .spec = spec};
    const json_t *format = json_object_get(root, "format");
    const json_t *structures = json_object_get(root, "structures");
    struct expr *e = NULL;
    if (format)
        e = read_format(&t, format, NULL, 0);
    else if (structures)
        e = triggered(&t, json_object_get(root, "triggers"), structures, false, false, NULL, 0);
    else
        work_refuse(g->w, "needs a 'format', or 'structures' and 'triggers'");
    int top = rules_new(g, NULL);
    rules_define(g, top, e);
    return g->w->st ? 0 : top;
}
