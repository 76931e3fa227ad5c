/* outparse_block.c - calls between markers of their own: deepseek_v3 and qwen3_xml.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/outparse_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool go(struct stage *s, size_t at, int state)
{
    s->at = at;
    s->state = state;
    return true;
}

/* ---- deepseek_v3 ---------------------------------------------------------------------------- */

enum { D_TEXT, D_BLOCK, D_TYPE, D_NAME, D_ARGUMENTS };
#define CALLS_BEGIN "<｜tool▁calls▁begin｜>"
#define CALLS_END "<｜tool▁calls▁end｜>"
#define CALL_BEGIN "<｜tool▁call▁begin｜>"
#define CALL_END "<｜tool▁call▁end｜>"
#define CALL_SEP "<｜tool▁sep｜>"

/* A call without its parts is skipped: the next one may be whole. */
static bool deepseek_head(struct outparse *p, struct stage *s)
{
    static const char *const parts[] = {NULL, CALL_END, CALL_BEGIN, CALLS_END};
    bool type = s->state == D_TYPE;
    const char *const markers[] = {type ? CALL_SEP : "\n```json\n", parts[1], parts[2], parts[3]};
    int which;
    size_t to = stage_seek(s, s->at, p->eof, markers, 4, &which);
    if (to - s->at > OUT_MAX_NAME || which > 0)
        return go(s, to, D_BLOCK);
    if (which < 0)
        return false;
    if (!type) {
        out_call(p, stage_text(s, s->at), to - s->at, false);
        p->call.args_open = true;
    }
    return go(s, to + strlen(markers[0]), type ? D_NAME : D_ARGUMENTS);
}

static bool deepseek_arguments(struct outparse *p, struct stage *s)
{
    static const char *const ends[] = {"\n```" CALL_END, "```" CALL_END, CALL_END, CALLS_END};
    int which;
    size_t to = stage_seek(s, s->at, p->eof, ends, 4, &which);
    out_arguments(p, stage_text(s, s->at), to - s->at);
    s->at = to;
    if (which < 0) {
        p->broken |= p->eof;
        return false;
    }
    out_call_end(p);
    return go(s, which == 3 ? to : to + strlen(ends[which]), D_BLOCK);
}

bool deepseek_step(struct outparse *p, struct stage *s)
{
    static const char *const opens[] = {CALLS_BEGIN};
    static const char *const marks[] = {CALL_BEGIN, CALLS_END};
    int which;
    size_t to;
    switch (s->state) {
    case D_TEXT:
        to = stage_seek(s, s->at, p->eof, opens, 1, &which);
        out_content_to(p, s, to);
        if (which < 0)
            return false;
        p->took = true;
        return go(s, to + strlen(CALLS_BEGIN), D_BLOCK);
    case D_BLOCK:
        to = stage_seek(s, s->at, p->eof, marks, 2, &which);
        s->at = to;
        if (which < 0)
            return false;
        return which ? go(s, to, OUT_STATE_DROP) : go(s, to + strlen(CALL_BEGIN), D_TYPE);
    case D_TYPE:
    case D_NAME:
        return deepseek_head(p, s);
    default:
        return deepseek_arguments(p, s);
    }
}

/* ---- qwen3_xml: values become JSON as their schema says -------------------------------------- */

enum { X_TEXT, X_OPEN, X_NAME, X_ARGUMENTS, X_KEY, X_VALUE, X_BETWEEN };
enum {
    TYPE_NULL = 1,
    TYPE_INTEGER = 2,
    TYPE_NUMBER = 4,
    TYPE_BOOLEAN = 8,
    TYPE_OBJECT = 16,
    TYPE_ARRAY = 32,
    TYPE_STRING = 64,
    TYPE_OTHER = 128
};
enum { MAX_SCHEMA_DEPTH = 16, MAX_SCHEMA_NODES = 1000 };

static unsigned type_bit(const char *name)
{
    static const struct {
        const char *names;
        unsigned bit;
    } types[] = {{" null ", TYPE_NULL},
                 {" integer int int32 int64 uint uint32 uint64 long short unsigned ", TYPE_INTEGER},
                 {" number float float32 float64 double ", TYPE_NUMBER},
                 {" boolean bool ", TYPE_BOOLEAN},
                 {" object dict ", TYPE_OBJECT},
                 {" array arr list sequence ", TYPE_ARRAY},
                 {" string str text varchar char enum ", TYPE_STRING}};
    size_t n = name ? strlen(name) : 0;
    for (size_t i = 0; n && i < sizeof types / sizeof types[0]; i++)
        for (const char *at = types[i].names; (at = strcasestr(at, name)); at++)
            if (at[-1] == ' ' && at[n] == ' ')
                return types[i].bit;
    return TYPE_OTHER;
}

static unsigned value_type(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return TYPE_OBJECT;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_INTEGER:
        return TYPE_INTEGER;
    case JSON_REAL:
        return TYPE_NUMBER;
    case JSON_NULL:
        return TYPE_NULL;
    default:
        return TYPE_BOOLEAN;
    }
}

/* Every type that a schema allows; a schema that says nothing allows strings. */
static unsigned schema_types(const json_t *schema, int depth, int *nodes)
{
    static const char *const choices[] = {"anyOf", "oneOf", "allOf"};
    unsigned types = 0;
    if (!json_is_object(schema) || depth > MAX_SCHEMA_DEPTH || ++*nodes > MAX_SCHEMA_NODES)
        return TYPE_STRING;
    const json_t *type = json_object_get(schema, "type"), *list = json_object_get(schema, "enum");
    if (json_is_string(type))
        types |= type_bit(json_string_value(type));
    for (size_t i = 0; i < json_array_size(type); i++)
        types |= type_bit(json_string_value(json_array_get(type, i)));
    for (size_t i = 0; i < json_array_size(list); i++)
        types |= value_type(json_array_get(list, i));
    for (size_t c = 0; c < 3; c++) {
        list = json_object_get(schema, choices[c]);
        for (size_t i = 0; i < json_array_size(list); i++)
            types |= schema_types(json_array_get(list, i), depth + 1, nodes);
    }
    return types ? types : TYPE_STRING;
}

static void put_string(struct strbuf *b, const char *text, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    strbuf_addc(b, '"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            strbuf_addc(b, '\\');
            strbuf_addc(b, (char)c);
        } else if (c == '\n') {
            strbuf_adds(b, "\\n");
        } else if (c < 0x20) {
            strbuf_adds(b, "\\u00");
            strbuf_addc(b, hex[c >> 4]);
            strbuf_addc(b, hex[c & 15]);
        } else {
            strbuf_addc(b, (char)c);
        }
    }
    strbuf_addc(b, '"');
}

static bool is_word(const char *text, size_t n, const char *word)
{
    return n == strlen(word) && !strncasecmp(text, word, n);
}

/* "+07" -> 7: Python's int() or float() as JSON. */
static bool put_integer(struct strbuf *b, const char *t, size_t n)
{
    bool minus = n && *t == '-';
    if (n && (*t == '-' || *t == '+')) {
        t++;
        n--;
    }
    size_t digits = 0;
    while (digits < n && t[digits] >= '0' && t[digits] <= '9')
        digits++;
    if (!n || digits < n)
        return false;
    for (; n > 1 && *t == '0'; n--)
        t++;
    if (minus && *t != '0')
        strbuf_addc(b, '-');
    strbuf_add(b, t, n);
    return true;
}

static bool put_number(struct strbuf *b, const char *t, size_t n)
{
    char copy[64], *end;
    if (!n || n >= sizeof copy || t[strspn(t, "+-.0123456789eE")])
        return false;
    memcpy(copy, t, n);
    copy[n] = 0;
    double d = strtod(copy, &end);
    if (end == copy || *end || !isfinite(d))
        return false;
    if (d == floor(d) && fabs(d) < 1e15)
        strbuf_addf(b, "%.0f", d == 0 ? 0.0 : d);
    else
        strbuf_addf(b, "%.17g", d);
    return true;
}

/* The text itself, if it is JSON. */
static bool put_json(struct strbuf *b, const char *t, size_t n)
{
    json_t *v = json_loadb(t, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (v)
        strbuf_add(b, t, n);
    json_decref(v);
    return v != NULL;
}

/* vLLM's order: null, integer, number, boolean, object, array, string. text is NUL-terminated. */
static void put_value(struct strbuf *b, const char *text, size_t n, unsigned types)
{
    const char *t = text;
    size_t k = n;
    for (; k && out_is_space(*t); k--)
        t++;
    while (k && out_is_space(t[k - 1]))
        k--;
    if (types & TYPE_NULL && is_word(text, n, "null"))
        strbuf_adds(b, "null");
    else if ((types & TYPE_INTEGER && put_integer(b, t, k)) ||
             (types & TYPE_NUMBER && put_number(b, t, k)))
        return;
    else if (types & TYPE_BOOLEAN && (is_word(t, k, "true") || is_word(t, k, "1")))
        strbuf_adds(b, "true");
    else if (types & TYPE_BOOLEAN && (is_word(t, k, "false") || is_word(t, k, "0")))
        strbuf_adds(b, "false");
    else if (types & (TYPE_OBJECT | TYPE_ARRAY) && put_json(b, t, k))
        return;
    else if (types & TYPE_STRING || !put_json(b, t, k))
        put_string(b, text, n);
}

static const json_t *find_properties(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *f = json_object_get(json_array_get(tools, i), "function");
        const char *other = json_string_value(json_object_get(f, "name"));
        if (other && !strcmp(other, name))
            return json_object_get(json_object_get(f, "parameters"), "properties");
    }
    return NULL;
}

static bool end_function(struct outparse *p, struct stage *s, size_t at, int state)
{
    out_arguments(p, "}", 1);
    out_call_end(p);
    return go(s, at, state);
}

/* s->at is where the call's text begins, p->scan where the name does. */
static bool function_name(struct outparse *p, struct stage *s)
{
    static const char *const ends[] = {">", "</function>"};
    int which;
    size_t to = stage_seek(s, p->scan, p->eof, ends, 2, &which);
    const char *name = stage_text(s, p->scan);
    size_t n = to - p->scan;
    if (n > OUT_MAX_NAME)
        return out_give_up(p, s);
    if (which < 0 && !p->eof)
        return false;
    for (; n && out_is_space(*name); n--)
        name++;
    while (n && out_is_space(name[n - 1]))
        n--;
    if (!n)
        return out_give_up(p, s);
    strbuf_clear(&p->function);
    strbuf_add(&p->function, name, n);
    out_call(p, name, n, true);
    out_arguments(p, "{", 1);
    p->n_params = 0;
    p->properties = p->function.failed ? NULL : find_properties(p->spec.tools, p->function.data);
    if (which == 0)
        return go(s, to + 1, X_ARGUMENTS);
    return end_function(p, s, which < 0 ? to : to + strlen(ends[1]), X_BETWEEN);
}

/* The parameter's name is in `function`, its value is [s->at, to). */
static void parameter(struct outparse *p, struct stage *s, size_t to)
{
    const char *key = p->function.data ? p->function.data : "";
    const char *text = stage_text(s, s->at);
    size_t n = to - s->at;
    struct strbuf value, out;
    strbuf_init(&value, 0);
    strbuf_init(&out, 0);
    if (n && *text == '\n') {
        text++;
        n--;
    }
    n -= n && text[n - 1] == '\n';
    strbuf_add(&value, text, n);
    strbuf_addc(&value, 0);
    const json_t *schema = json_object_get(p->properties, key);
    int nodes = 0;
    if (p->n_params++)
        strbuf_adds(&out, ", ");
    put_string(&out, key, p->function.len);
    strbuf_adds(&out, ": ");
    if (!value.failed)
        put_value(&out, value.data, n, schema_types(schema, 0, &nodes));
    out_arguments(p, out.data ? out.data : "", out.len);
    p->failed |= value.failed || out.failed;
    strbuf_fini(&value);
    strbuf_fini(&out);
}

static bool parameter_step(struct outparse *p, struct stage *s)
{
    static const char *const angle[] = {">"};
    static const char *const ends[] = {"</parameter>", "<parameter=", "</function>"};
    int which;
    size_t to;
    if (s->state == X_KEY) {
        to = stage_seek(s, p->scan, p->eof, angle, 1, &which);
        p->scan = to;
        if (which < 0)
            return p->eof && end_function(p, s, to, OUT_STATE_DROP);
        strbuf_clear(&p->function);
        strbuf_add(&p->function, stage_text(s, s->at), to - s->at);
        p->scan = to + 1;
        return go(s, to + 1, X_VALUE);
    }
    to = stage_seek(s, p->scan, p->eof, ends, 3, &which);
    p->scan = to;
    if (which < 0) /* cut off: the call goes without it */
        return p->eof && end_function(p, s, to, OUT_STATE_DROP);
    parameter(p, s, to);
    return go(s, which ? to : to + strlen(ends[0]), X_ARGUMENTS);
}

static bool arguments_step(struct outparse *p, struct stage *s)
{
    static const char *const marks[] = {"<parameter=", "</function>", "</tool_call>"};
    int which;
    size_t to = stage_seek(s, s->at, p->eof, marks, 3, &which);
    s->at = to;
    if (which < 0)
        return p->eof && end_function(p, s, to, OUT_STATE_DROP);
    if (which)
        return end_function(p, s, to + strlen(marks[which]), X_BETWEEN);
    p->scan = to + strlen(marks[0]);
    return go(s, p->scan, X_KEY);
}

bool xml_step(struct outparse *p, struct stage *s)
{
    static const char *const opens[] = {"<function=", "<tool_call>"};
    int which, is;
    size_t to;
    switch (s->state) {
    case X_TEXT:
    case X_BETWEEN:
        to = stage_seek(s, s->at, p->eof, opens, 2, &which);
        if (s->state == X_TEXT)
            out_content_to(p, s, to);
        s->at = to;
        if (which < 0)
            return false;
        p->scan = to + strlen(opens[which]);
        return go(s, to, which ? X_OPEN : X_NAME);
    case X_OPEN:
        p->scan = stage_skip_spaces(s, p->scan);
        is = stage_begins(s, p->scan, p->eof, opens[0]);
        if (is < 0)
            return false;
        if (!is)
            return out_give_up(p, s);
        p->scan += strlen(opens[0]);
        return go(s, s->at, X_NAME);
    case X_NAME:
        return function_name(p, s);
    case X_ARGUMENTS:
        return arguments_step(p, s);
    default:
        return parameter_step(p, s);
    }
}
