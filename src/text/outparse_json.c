/* outparse_json.c - JSON a byte at a time, and the calls written as JSON objects.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <string.h>

/* ---- the scanner ---------------------------------------------------------------------------- */

enum {
    S_VALUE,       /* a value */
    S_ARRAY_FIRST, /* a value or ] */
    S_OBJECT_FIRST,
    S_KEY,
    S_COLON,
    S_AFTER, /* a value has ended: comma or closing bracket */
    S_STRING,
    S_ESCAPE,
    S_HEX,
    S_LITERAL,
    S_MINUS, /* the number states come last */
    S_ZERO,
    S_DIGITS,
    S_POINT,
    S_FRACTION,
    S_E,
    S_E_SIGN,
    S_EXPONENT
};

void jscan_init(struct jscan *j)
{
    *j = (struct jscan){.st = S_VALUE};
}

bool jscan_in_number(const struct jscan *j)
{
    return j->st >= S_MINUS;
}

bool jscan_after_value(const struct jscan *j)
{
    return j->st == S_AFTER;
}

bool jscan_wants_value(const struct jscan *j)
{
    return j->st == S_VALUE || j->st == S_ARRAY_FIRST;
}

static bool digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool in_object(const struct jscan *j)
{
    int level = j->depth - 1;
    return j->object[level / 64] >> (level % 64) & 1;
}

static enum jscan_result open_bracket(struct jscan *j, bool object)
{
    if (j->depth == JSCAN_DEPTH)
        return JSCAN_BAD;
    uint64_t bit = (uint64_t)1 << (j->depth % 64), *word = &j->object[j->depth / 64];
    *word = object ? *word | bit : *word & ~bit;
    j->depth++;
    j->st = object ? S_OBJECT_FIRST : S_ARRAY_FIRST;
    return JSCAN_MORE;
}

static enum jscan_result close_bracket(struct jscan *j, unsigned char c)
{
    if (!j->depth || in_object(j) != (c == '}'))
        return JSCAN_BAD;
    j->st = S_AFTER;
    return --j->depth ? JSCAN_MORE : JSCAN_DONE;
}

static enum jscan_result begin_value(struct jscan *j, unsigned char c)
{
    switch (c) {
    case '{':
    case '[':
        return open_bracket(j, c == '{');
    case '"':
        j->st = S_STRING;
        j->key = false;
        return JSCAN_MORE;
    case 't':
    case 'f':
    case 'n':
        j->literal = c == 't' ? "rue" : c == 'f' ? "alse" : "ull";
        j->st = S_LITERAL;
        return JSCAN_MORE;
    case '-':
        j->st = S_MINUS;
        return JSCAN_MORE;
    default:
        if (!digit(c))
            return JSCAN_BAD;
        j->st = c == '0' ? S_ZERO : S_DIGITS;
        return JSCAN_MORE;
    }
}

static enum jscan_result after_value(struct jscan *j, unsigned char c)
{
    if (c == '}' || c == ']')
        return close_bracket(j, c);
    if (c != ',' || !j->depth)
        return JSCAN_BAD;
    j->st = in_object(j) ? S_KEY : S_VALUE;
    return JSCAN_MORE;
}

static enum jscan_result in_string(struct jscan *j, unsigned char c)
{
    if (c < 0x20)
        return JSCAN_BAD;
    if (c == '\\')
        j->st = S_ESCAPE;
    if (c != '"')
        return JSCAN_MORE;
    j->st = j->key ? S_COLON : S_AFTER;
    return j->depth ? JSCAN_MORE : JSCAN_DONE;
}

static enum jscan_result in_escape(struct jscan *j, unsigned char c)
{
    if (j->st == S_ESCAPE) {
        if (!c || !strchr("\"\\/bfnrtu", c))
            return JSCAN_BAD;
        j->st = c == 'u' ? S_HEX : S_STRING;
        j->hex = 4;
        return JSCAN_MORE;
    }
    bool hex = digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    if (hex && !--j->hex)
        j->st = S_STRING;
    return hex ? JSCAN_MORE : JSCAN_BAD;
}

/* True: c is a part of the number. A number that cannot end here makes *bad true. */
static bool in_number(struct jscan *j, unsigned char c, bool *bad)
{
    bool may_end =
        j->st == S_ZERO || j->st == S_DIGITS || j->st == S_FRACTION || j->st == S_EXPONENT;
    int next = -1;
    if (digit(c))
        next = j->st == S_MINUS      ? (c == '0' ? S_ZERO : S_DIGITS)
               : j->st == S_ZERO     ? -1
               : j->st == S_DIGITS   ? S_DIGITS
               : j->st <= S_FRACTION ? S_FRACTION
                                     : S_EXPONENT;
    else if (c == '.' && (j->st == S_ZERO || j->st == S_DIGITS))
        next = S_POINT;
    else if ((c == 'e' || c == 'E') && may_end && j->st != S_EXPONENT)
        next = S_E;
    else if ((c == '+' || c == '-') && j->st == S_E)
        next = S_E_SIGN;
    if (next >= 0)
        j->st = (uint8_t)next;
    *bad = next < 0 && !may_end;
    return next >= 0;
}

static bool json_space(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

enum jscan_result jscan_byte(struct jscan *j, unsigned char c)
{
    if (j->st == S_STRING)
        return in_string(j, c);
    if (j->st == S_ESCAPE || j->st == S_HEX)
        return in_escape(j, c);
    if (j->st == S_LITERAL) {
        if (c != (unsigned char)*j->literal++)
            return JSCAN_BAD;
        if (!*j->literal)
            j->st = S_AFTER;
        return JSCAN_MORE;
    }
    if (jscan_in_number(j)) {
        bool bad;
        if (in_number(j, c, &bad))
            return JSCAN_MORE;
        if (bad)
            return JSCAN_BAD;
        j->st = S_AFTER;
    }
    if (json_space(c))
        return JSCAN_MORE;
    switch (j->st) {
    case S_VALUE:
        return begin_value(j, c);
    case S_ARRAY_FIRST:
        return c == ']' ? close_bracket(j, c) : begin_value(j, c);
    case S_OBJECT_FIRST:
        if (c == '}')
            return close_bracket(j, c);
        /* fall through */
    case S_KEY:
        j->st = S_STRING;
        j->key = true;
        return c == '"' ? JSCAN_MORE : JSCAN_BAD;
    case S_COLON:
        j->st = S_VALUE;
        return c == ':' ? JSCAN_MORE : JSCAN_BAD;
    default:
        return after_value(j, c);
    }
}

/* ---- a call --------------------------------------------------------------------------------- */

void jcall_begin(struct jcall *c, size_t pos)
{
    struct strbuf name = c->name;
    *c = (struct jcall){.pos = pos, .name = name};
    strbuf_clear(&c->name);
    jscan_init(&c->js);
}

/* Which of the call's keys ends before `end`; written plainly, as models do. */
static void read_key(struct outparse *p, struct jcall *c, const struct stage *s, size_t end)
{
    c->key = JKEY_OTHER;
    if (c->committed) /* the key's text may be gone already, and nothing is looked for */
        return;
    const char *key = stage_text(s, c->key_start);
    size_t n = end - c->key_start;
    if (n == 4 && !memcmp(key, "name", 4) && !c->has_name)
        c->key = JKEY_NAME;
    else if (!c->has_args &&
             ((n == 9 && !memcmp(key, "arguments", 9) && p->call_keys & JCALL_ARGUMENTS) ||
              (n == 10 && !memcmp(key, "parameters", 10) && p->call_keys & JCALL_PARAMETERS)))
        c->key = JKEY_ARGS;
}

/* The name's string, decoded. Other values than strings are no names. */
static void read_name(struct jcall *c, const struct stage *s, size_t end)
{
    const char *text = stage_text(s, c->value_start);
    size_t n = end - c->value_start;
    if (*text != '"' || n > 6 * OUT_MAX_NAME)
        return;
    json_t *v = json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (v) {
        strbuf_add(&c->name, json_string_value(v), json_string_length(v));
        c->has_name = true;
    }
    json_decref(v);
}

static void end_value(struct jcall *c, const struct stage *s, size_t end)
{
    c->in_value = false;
    if (c->key == JKEY_NAME)
        read_name(c, s, end);
    if (c->key == JKEY_ARGS) {
        c->args_open = false;
        c->args_end = end;
    }
}

static void begin_call_value(struct jcall *c, size_t pos)
{
    c->in_value = true;
    c->value_start = pos;
    if (c->key == JKEY_ARGS) {
        c->has_args = c->args_open = true;
        c->args_start = c->sent = pos;
    }
}

/* One byte: keeps track of the outer object's keys and values. */
static enum jscan_result call_byte(struct outparse *p, struct jcall *c, const struct stage *s)
{
    struct jscan *j = &c->js;
    unsigned char b = (unsigned char)*stage_text(s, c->pos);
    bool outer = j->depth == 1, number = jscan_in_number(j);
    bool in_key = outer && j->st == S_STRING && j->key;
    if (outer && jscan_wants_value(j) && !c->in_value && !json_space(b))
        begin_call_value(c, c->pos);
    if (outer && (j->st == S_KEY || j->st == S_OBJECT_FIRST) && b == '"')
        c->key_start = c->pos + 1;
    enum jscan_result r = jscan_byte(j, b);
    if (r == JSCAN_BAD)
        return r;
    if (in_key && j->st == S_COLON)
        read_key(p, c, s, c->pos);
    if (c->in_value && outer && number && !jscan_in_number(j))
        end_value(c, s, c->pos);
    else if (c->in_value && j->depth == 1 && j->st == S_AFTER)
        end_value(c, s, c->pos + 1);
    c->pos++;
    return r;
}

/* Sends what can be sent: the name once both are known, the arguments as far as they were read. */
static void send_call(struct outparse *p, struct jcall *c, struct stage *s, bool trim)
{
    if (!c->has_name || !c->has_args)
        return;
    if (!c->committed)
        out_call(p, c->name.data ? c->name.data : "", c->name.len, trim);
    c->committed = true;
    size_t to = c->args_open ? c->pos : c->args_end;
    if (to > c->sent)
        out_arguments(p, stage_text(s, c->sent), to - c->sent);
    c->sent = to > c->sent ? to : c->sent;
    s->at = c->pos;
}

enum jscan_result jcall_step(struct outparse *p, struct stage *s, bool trim)
{
    struct jcall *c = &p->call;
    enum jscan_result r = JSCAN_MORE;
    while (r == JSCAN_MORE && c->pos < stage_end(s))
        r = call_byte(p, c, s);
    if (r == JSCAN_DONE && c->has_name && !c->has_args && p->call_keys & JCALL_OPTIONAL) {
        out_call(p, c->name.data ? c->name.data : "", c->name.len, trim);
        out_arguments(p, "{}", 2);
        c->committed = true;
    }
    send_call(p, c, s, trim);
    if (c->committed && r == JSCAN_DONE) {
        s->at = c->pos;
        out_call_end(p);
    }
    return r;
}
