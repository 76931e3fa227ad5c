/* Alternatives to rules.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <string.h>

enum {
    GRID_MAX = 60000, /* states of an object's or array's counting */
    WHITE_MAX = 100   /* white space between two tokens of JSON: enough for deep indentation */
};

int put_json_text(struct nfa *a, int from, const char *s, size_t n)
{
    for (size_t i = 0; i < n && !a->w->st;) {
        uint32_t ch = 0;
        size_t len = utf8_take(s + i, n - i, &ch);
        struct crange r = {ch, ch};
        struct cset one = {.n = 1, .cap = 1, .r = &r};
        int to = nfa_state(a);
        if (len == 0) {
            work_refuse(a->w, "a text in it is not valid UTF-8");
            return 0;
        }
        nfa_add_json_char(a, &one, from, to);
        from = to;
        i += len;
    }
    return from;
}

static int put_byte(struct nfa *a, int from, char b)
{
    int to = nfa_state(a);
    nfa_range(a, from, (unsigned char)b, (unsigned char)b, to);
    return to;
}

static int put_white(struct schema *c, struct nfa *a, int from)
{
    int to = nfa_state(a);
    nfa_call(a, from, c->ws, to);
    return to;
}

/* After a comma or a colon. */
static int put_gap(struct schema *c, struct nfa *a, int from)
{
    if (!c->spec->compact || c->spec->whitespace)
        return put_white(c, a, from);
    int to = put_byte(a, from, ' ');
    nfa_eps(a, from, to);
    return to;
}

static int put_value(struct schema *c, struct nfa *a, int from, int conj)
{
    struct expr *e = schema_value(c, conj);
    return e ? expr_emit(a, e, from, false) : 0;
}

static struct expr *finish(struct nfa *a, int start, int end)
{
    if (a->w->st)
        return NULL;
    a->final[end] = true;
    return expr_fsm(a->w, fsm_from_nfa(a, start));
}

/* ---- scalars --------------------------------------------------------------------------------- */

static struct expr *leaf(struct schema *c, const struct fsm *chars)
{
    return expr_call(c->w, rules_leaf(c->g, fsm_to_bytes(c->w, chars, false)));
}

static struct expr *number_value(struct schema *c, const struct alt *a)
{
    const struct fsm *m = a->num;
    int *shared = a->integer ? &c->integer_rule : &c->number_rule;
    if (m || a->limit) {
        if (a->integer)
            m = m ? fsm_both(c->w, m, schema_whole_number(c)) : schema_whole_number(c);
        if (a->limit)
            m = m ? fsm_both(c->w, m, a->limit) : a->limit;
        return leaf(c, m);
    }
    if (*shared < 0) {
        const char *text = "-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]{1,3})?";
        m = a->integer ? schema_whole_number(c) : regex_fsm(c->w, text, strlen(text), false);
        *shared = c->w->st ? -1 : rules_leaf(c->g, fsm_to_bytes(c->w, m, false));
    }
    return expr_call(c->w, *shared);
}

/* Quotes around a language of characters. */
static const struct fsm *quoted(struct schema *c, const struct fsm *chars)
{
    struct nfa a;
    const struct fsm *inside = fsm_to_bytes(c->w, chars, true);
    if (c->w->st)
        return NULL;
    nfa_init(&a, c->w);
    int start = nfa_state(&a), from = put_byte(&a, start, '"'), to = nfa_state(&a);
    nfa_add_fsm(&a, inside, from, to);
    int end = put_byte(&a, to, '"');
    if (c->w->st)
        return NULL;
    a.final[end] = true;
    return fsm_minimize(c->w, fsm_from_nfa(&a, start));
}

static struct expr *string_value(struct schema *c, const struct alt *a)
{
    const struct fsm *m = a->str;
    if (!m)
        return expr_call(c->w, rules_string(c->g, a->min, a->max));
    if (a->min > 0 || a->max >= 0) {
        if (a->min > 20000 || a->max > 20000) {
            work_refuse(c->w, "minLength or maxLength above 20000 beside a pattern or format");
            return NULL;
        }
        m = fsm_both(c->w, m, fsm_length(c->w, a->min, a->max));
    }
    return expr_call(c->w, rules_leaf(c->g, quoted(c, m)));
}

/* An array or object that is given whole, in any spelling. */
static int put_json(struct schema *c, struct nfa *a, int from, const json_t *v)
{
    if (json_is_string(v)) {
        from = put_byte(a, from, '"');
        from = put_json_text(a, from, json_string_value(v), json_string_length(v));
        return put_byte(a, from, '"');
    }
    if (json_is_array(v)) {
        from = put_white(c, a, put_byte(a, from, '['));
        for (size_t i = 0; i < json_array_size(v) && !c->w->st; i++) {
            if (i)
                from = put_gap(c, a, put_byte(a, from, ','));
            from = put_white(c, a, put_json(c, a, from, json_array_get(v, i)));
        }
        return put_byte(a, from, ']');
    }
    if (json_is_object(v)) {
        const char *key;
        json_t *child;
        bool first = true;
        from = put_white(c, a, put_byte(a, from, '{'));
        json_object_foreach((json_t *)v, key, child)
        {
            if (c->w->st)
                return 0;
            if (!first)
                from = put_gap(c, a, put_byte(a, from, ','));
            first = false;
            from = put_json_text(a, put_byte(a, from, '"'), key, strlen(key));
            from = put_byte(a, put_white(c, a, put_byte(a, from, '"')), ':');
            from = put_white(c, a, put_json(c, a, put_gap(c, a, from), child));
        }
        return put_byte(a, from, '}');
    }
    if (json_is_number(v)) {
        const struct fsm *m = schema_number_value(c, v, v, false);
        int to = nfa_state(a);
        if (m)
            nfa_add_fsm(a, m, from, to);
        return to;
    }
    const char *word = json_is_null(v) ? "null" : json_is_true(v) ? "true" : "false";
    for (; *word; word++)
        from = put_byte(a, from, *word);
    return from;
}

static struct expr *given_value(struct schema *c, const struct alt *a)
{
    struct nfa n;
    nfa_init(&n, c->w);
    int start = nfa_state(&n), end = c->w->st ? 0 : put_json(c, &n, start, a->value);
    return finish(&n, start, end);
}

/* ---- arrays ---------------------------------------------------------------------------------- */

static int item_at(const struct alt *a, int i)
{
    return i < a->n_prefix ? a->prefix[i] : a->items;
}

/* Elements from index i on, each after a comma; nested, so that each may be the last. */
static struct expr *rest_of_array(struct schema *c, const struct alt *a, int i)
{
    struct work *w = c->w;
    struct nfa gap;
    struct expr *tail = NULL;
    nfa_init(&gap, w);
    int start = nfa_state(&gap);
    int end = put_gap(c, &gap, put_byte(&gap, put_white(c, &gap, start), ','));
    struct expr *comma = finish(&gap, start, end);
    int n = a->max < 0 || a->n_prefix < a->max ? a->n_prefix : a->max, from = n > i ? n : i;
    if (a->max < 0 || a->max > from) {
        int min = a->min > from ? a->min - from : 0, max = a->max < 0 ? -1 : a->max - from;
        struct expr *item = schema_value(c, a->items);
        tail = rules_repeat(c->g, expr_cat(w, comma, item, (struct expr *)NULL), min, max);
    } else {
        tail = expr_new(w, EXPR_EMPTY);
    }
    for (int k = n - 1; k >= i && !w->st; k--) {
        tail = expr_cat(w, comma, schema_value(c, a->prefix[k]), tail, (struct expr *)NULL);
        if (k >= a->min)
            tail = expr_rep(w, tail, 0, 1);
    }
    return w->st ? NULL : tail;
}

static struct expr *plain_array(struct schema *c, const struct alt *a)
{
    struct work *w = c->w;
    struct nfa n;
    nfa_init(&n, w);
    int start = nfa_state(&n), from = put_white(c, &n, put_byte(&n, start, '[')),
        close = nfa_state(&n);
    if (w->st)
        return NULL;
    if (a->min == 0)
        nfa_eps(&n, from, close);
    if (a->max != 0) {
        int to = put_value(c, &n, from, item_at(a, 0));
        struct expr *rest = w->st ? NULL : rest_of_array(c, a, 1);
        if (!rest)
            return NULL;
        nfa_eps(&n, put_white(c, &n, expr_emit(&n, rest, to, false)), close);
    }
    return finish(&n, start, put_byte(&n, close, ']'));
}

/* Counts elements and, among them, those that `contains` asks for. With a maximum, the others must
 * not be like them. */
static struct expr *array_that_contains(struct schema *c, const struct alt *a)
{
    struct work *w = c->w;
    struct contains k = a->contains[0];
    int floor_i = a->min > a->n_prefix ? a->min : a->n_prefix;
    int n_i = a->max >= 0 ? a->max : floor_i, n_k = k.max >= 0 ? k.max : k.min;
    struct nfa n;
    if (a->n_contains > 1) {
        work_refuse(w, "several contains for one array are not supported");
        return NULL;
    }
    int other = ANYTHING;
    if (k.max >= 0) {
        if (c->conj[k.conj].n != 1) {
            work_refuse(w, "maxContains beside a contains of true or false is not supported");
            return NULL;
        }
        other = conj_of(c, c->conj[k.conj].lit[0].s, !c->conj[k.conj].lit[0].negated);
    }
    if (n_i > GRID_MAX || n_k > GRID_MAX || (n_i + 1) * (long)(n_k + 1) > GRID_MAX / 8) {
        work_refuse(w, "contains: too many items to count");
        return NULL;
    }
    nfa_init(&n, w);
    int start = nfa_state(&n), first = put_white(c, &n, put_byte(&n, start, '['));
    int close = nfa_state(&n), base = w->st ? 0 : n.n, cols = n_k + 1;
    for (int i = 0; i < (n_i + 1) * cols * 2; i++)
        nfa_state(&n); /* for each count: before an element, and after one */
    if (w->st)
        return NULL;
    nfa_eps(&n, first, base);
    for (int i = 0; i <= n_i && !w->st; i++)
        for (int j = 0; j <= n_k && !w->st; j++) {
            int before = base + (i * cols + j) * 2, after = before + 1;
            bool may_end = i >= a->min && j >= k.min;
            if (may_end && i == 0 && j == 0)
                nfa_eps(&n, first, close);
            if (may_end)
                nfa_eps(&n, put_white(c, &n, after), close);
            if (i > 0 || a->max < 0)
                nfa_eps(&n, put_gap(c, &n, put_byte(&n, put_white(c, &n, after), ',')), before);
            int i2 = i < n_i ? i + 1 : a->max < 0 ? i : -1;
            int j2 = j < n_k ? j + 1 : k.max < 0 ? j : -1;
            if (i2 < 0)
                continue;
            if (j2 >= 0)
                nfa_eps(&n, put_value(c, &n, before, conj_and(c, item_at(a, i), k.conj)),
                        base + (i2 * cols + j2) * 2 + 1);
            nfa_eps(&n, put_value(c, &n, before, conj_and(c, item_at(a, i), other)),
                    base + (i2 * cols + j) * 2 + 1);
        }
    return finish(&n, start, put_byte(&n, close, ']'));
}

/* ---- objects --------------------------------------------------------------------------------- */

/* After a key: the colon and a value. */
static int put_member(struct schema *c, struct nfa *a, int key_end, int conj)
{
    int colon = put_byte(a, put_white(c, a, key_end), ':');
    return put_value(c, a, put_gap(c, a, colon), conj);
}

/* Names of a group but those with an entry of their own, in quotes. */
static int put_group_key(struct schema *c, struct nfa *a, int from, const struct alt *o,
                         const struct group *g)
{
    const struct fsm *keys = g->keys;
    struct nfa names;
    if (!keys && o->n_prop == 0) {
        int to = nfa_state(a);
        nfa_call(a, from, rules_string(c->g, 0, -1), to);
        return to;
    }
    nfa_init(&names, c->w);
    int start = nfa_state(&names), end = nfa_state(&names);
    if (c->w->st)
        return 0;
    names.final[end] = true;
    for (int i = 0; i < o->n_prop && !c->w->st; i++)
        nfa_add_fsm(&names, fsm_literal(c->w, o->prop[i].name, o->prop[i].n_name), start, end);
    const struct fsm *own = c->w->st ? NULL : fsm_from_nfa(&names, start);
    keys = keys ? keys : fsm_all(c->w);
    if (o->n_prop)
        keys = fsm_without(c->w, keys, own);
    int to = nfa_state(a);
    nfa_call(a, from, rules_leaf(c->g, quoted(c, keys)), to);
    return to;
}

struct object {
    struct schema *c;
    const struct alt *o;
    struct nfa n;
    struct prop *prop; /* that may be there */
    int n_prop, n_group;
    int cols;       /* counts told apart; the last one stands for more */
    int key, after; /* [n_prop + 1][cols] states: before a key, and after a value */
    int close;
};

static int key_at(const struct object *x, int i, int k)
{
    return x->key + i * x->cols + k;
}

static int after_at(const struct object *x, int i, int k)
{
    return x->after + i * x->cols + k;
}

static bool has_required(const struct object *x, int i)
{
    for (; i < x->n_prop; i++)
        if (x->prop[i].required)
            return true;
    return false;
}

/* -1: one too many. */
static int count_up(const struct object *x, int k)
{
    if (k + 1 < x->cols)
        return k + 1;
    return x->o->max >= 0 ? -1 : k;
}

static void put_property(struct object *x, int i, int k)
{
    struct nfa *n = &x->n;
    int next = count_up(x, k), from = key_at(x, i, k);
    const struct prop *p = &x->prop[i];
    if (!p->required)
        nfa_eps(n, from, key_at(x, i + 1, k));
    if (next < 0)
        return;
    int key = put_byte(n, put_json_text(n, put_byte(n, from, '"'), p->name, p->n_name), '"');
    nfa_eps(n, put_member(x->c, n, key, p->conj), after_at(x, i + 1, next));
}

static void put_groups(struct object *x, int k)
{
    struct nfa *n = &x->n;
    int next = count_up(x, k), from = key_at(x, x->n_prop, k);
    for (int g = 0; g < x->o->n_group && next >= 0 && !x->c->w->st; g++) {
        const struct group *group = &x->o->group[g];
        if (group->soft && !group->asked && x->n_group)
            continue;
        int key = put_group_key(x->c, n, from, x->o, group);
        nfa_eps(n, put_member(x->c, n, key, group->conj), after_at(x, x->n_prop, next));
    }
}

/* Which entries and groups are made. n_group: groups that are, soft ones only where nothing else
 * is there. */
static bool choose_members(struct object *x)
{
    const struct alt *o = x->o;
    struct schema *c = x->c;
    x->prop = work_alloc(c->w, (size_t)o->n_prop, sizeof *x->prop);
    for (int i = 0; i < o->n_prop && !c->w->st; i++) {
        if (c->conj[o->prop[i].conj].never && !o->prop[i].required)
            continue;
        x->prop[x->n_prop++] = o->prop[i];
    }
    for (int g = 0; g < o->n_group; g++)
        x->n_group += (!o->group[g].soft || o->group[g].asked) && !c->conj[o->group[g].conj].never;
    bool made = x->n_group > 0;
    if (o->min > 1 && (made || x->n_prop == 0) && !c->w->st)
        work_refuse(c->w, "minProperties above 1 where names are free: a name could come twice");
    return !c->w->st;
}

static struct expr *object_value(struct schema *c, const struct alt *o)
{
    struct object x = {.c = c, .o = o};
    struct nfa *n = &x.n;
    if (!choose_members(&x))
        return NULL;
    bool soft = x.n_prop == 0 && x.n_group == 0 && !c->spec->closed;
    bool groups = x.n_group > 0 || soft;
    x.cols = (o->max >= 0 ? o->max : o->min) + 1;
    if (o->max > x.n_prop && !groups)
        x.cols = x.n_prop + 1;
    if ((x.n_prop + 1) * (long)x.cols > GRID_MAX) {
        work_refuse(c->w, "minProperties or maxProperties: too many to count");
        return NULL;
    }
    nfa_init(n, c->w);
    int start = nfa_state(n), first = put_white(c, n, put_byte(n, start, '{'));
    x.close = nfa_state(n);
    x.key = c->w->st ? 0 : n->n;
    x.after = x.key + (x.n_prop + 1) * x.cols;
    for (int i = 0; i < 2 * (x.n_prop + 1) * x.cols; i++)
        nfa_state(n);
    if (c->w->st)
        return NULL;
    nfa_eps(n, first, key_at(&x, 0, 0));
    if (o->min == 0 && !has_required(&x, 0))
        nfa_eps(n, first, x.close);
    for (int k = 0; k < x.cols && !c->w->st; k++)
        for (int i = 0; i <= x.n_prop && !c->w->st; i++) {
            bool more = i < x.n_prop || groups;
            int white = put_white(c, n, after_at(&x, i, k));
            if (k >= o->min && !has_required(&x, i))
                nfa_eps(n, white, x.close);
            if (more)
                nfa_eps(n, put_gap(c, n, put_byte(n, white, ',')), key_at(&x, i, k));
            if (i < x.n_prop)
                put_property(&x, i, k);
            else if (groups)
                put_groups(&x, k);
        }
    return finish(n, start, put_byte(n, x.close, '}'));
}

/* ---- values ---------------------------------------------------------------------------------- */

static struct expr *alt_value(struct schema *c, const struct alt *a)
{
    struct expr *e;
    switch (a->type) {
    case ALT_NULL:
        return expr_bytes(c->w, "null", 4);
    case ALT_BOOL:
        e = expr_new(c->w, EXPR_ALT);
        if (a->yes)
            expr_add(c->w, e, expr_bytes(c->w, "true", 4));
        if (a->no)
            expr_add(c->w, e, expr_bytes(c->w, "false", 5));
        return e;
    case ALT_NUM:
        return number_value(c, a);
    case ALT_STR:
        return string_value(c, a);
    case ALT_ARR:
        return a->n_contains ? array_that_contains(c, a) : plain_array(c, a);
    case ALT_OBJ:
        return object_value(c, a);
    default:
        return given_value(c, a);
    }
}

static struct expr *all_values(struct schema *c, const struct alts *a)
{
    struct expr *e = expr_new(c->w, EXPR_ALT);
    for (int i = 0; i < a->n && !c->w->st; i++)
        expr_add(c->w, e, alt_value(c, a->a[i]));
    return e;
}

struct expr *schema_value(struct schema *c, int conj)
{
    struct alts *a = schema_alts(c, conj);
    bool scalar = true;
    if (c->w->st)
        return NULL;
    if (c->conj[conj].expr)
        return c->conj[conj].expr;
    for (int i = 0; i < a->n; i++)
        scalar &= a->a[i]->type < ALT_ARR;
    struct expr *e;
    if (scalar) {
        e = all_values(c, a);
    } else { /* a rule, to be defined when its turn comes: it may call itself */
        int rule = rules_new(c->g, NULL);
        if (!work_grow(c->w, &c->queue, &c->cap_queue, c->n_queue + 1, sizeof *c->queue))
            return NULL;
        c->conj[conj].rule = rule;
        c->queue[c->n_queue++] = conj;
        e = expr_call(c->w, rule);
    }
    c->conj[conj].expr = e;
    return c->w->st ? NULL : e;
}

/* ---- documents ------------------------------------------------------------------------------- */

static bool has_nested_id(const json_t *at, bool root, int depth)
{
    const char *key;
    json_t *v;
    if (depth > 200)
        return false;
    if (!root && json_is_string(json_object_get(at, "$id")))
        return true;
    json_object_foreach((json_t *)at, key, v)
    {
        if (strcmp(key, "enum") != 0 && strcmp(key, "const") != 0 &&
            has_nested_id(v, false, depth + 1))
            return true;
    }
    for (size_t i = 0; i < json_array_size(at); i++)
        if (has_nested_id(json_array_get(at, i), false, depth + 1))
            return true;
    return false;
}

static int white_rule(struct schema *c)
{
    const char *text = c->spec->whitespace;
    int n = c->spec->compact ? 0 : WHITE_MAX;
    if (!text) {
        struct nfa a;
        nfa_init(&a, c->w);
        for (int i = 0; i <= n; i++)
            nfa_state(&a);
        for (int i = 0; i <= n && !c->w->st; i++) {
            a.final[i] = true;
            for (const char *b = " \t\n\r"; *b && i < n; b++)
                nfa_range(&a, i, (unsigned char)*b, (unsigned char)*b, i + 1);
        }
        return c->w->st ? 0 : rules_leaf(c->g, fsm_from_nfa(&a, 0));
    }
    return rules_leaf(c->g, fsm_to_bytes(c->w, regex_fsm(c->w, text, strlen(text), false), false));
}

int schema_rules(struct rules *g, const struct grammar_spec *spec, const json_t *root)
{
    struct schema c = {
        .w = g->w, .g = g, .root = root, .spec = spec, .number_rule = -1, .integer_rule = -1};
    memset(c.bucket, -1, sizeof c.bucket);
    int any = 0;
    struct work *w = g->w;
    c.nested_id = has_nested_id(root, true, 0);
    if (!work_grow(w, &c.conj, &c.cap_conj, 1, sizeof *c.conj))
        return 0;
    c.conj[0] = (struct conj){.chain = -1, .rule = -1}; /* ANYTHING */
    c.n_conj = 1;
    c.ws = white_rule(&c);
    if (!json_is_boolean(root) && !json_is_object(root))
        work_refuse(w, "not a JSON schema (an object or a boolean)");
    any = w->st ? 0 : conj_of(&c, root, false);
    struct expr *e = w->st ? NULL : schema_value(&c, any);
    int top = rules_new(g, NULL);
    rules_define(g, top, e);
    for (int i = 0; i < c.n_queue && !w->st; i++) {
        int conj = c.queue[i], rule = c.conj[conj].rule;
        struct expr *body = all_values(&c, c.conj[conj].alts);
        if (body && body->n == 1 && body->child[0] && body->child[0]->kind == EXPR_FSM) {
            g->r[rule].kind = RULE_LEAF; /* deterministic already */
            g->r[rule].fsm = body->child[0]->fsm;
            g->r[rule].defined = true;
        } else {
            rules_define(g, rule, body);
        }
    }
    return top;
}
