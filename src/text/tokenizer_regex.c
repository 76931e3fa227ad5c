/* Regular expressions of tokenizer files, through PCRE2.
 *
 * The tokenizers library compiles them with Oniguruma in its Ruby syntax; what differs is
 * rewritten: class intersections and nested classes, \h, \w, \uHHHH, long property names, (?m) for
 * "dot matches newlines", and {n,m}+ which repeats instead of being possessive.
 * SPDX-License-Identifier: Apache-2.0 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <pcre2.h>
#include <string.h>

enum {
    MAX_PATTERN = 1 << 16,
    MAX_DEPTH = 50,
    MATCH_LIMIT = 20000000, /* a run-away pattern ends in an error, about a second on */
    JIT_STACK_MAX = 8 << 20
};

struct regex {
    pcre2_code *code;
    bool jit;
};

/* ---- rewriting --------------------------------------------------------------------------------
 */

struct rewrite {
    const char *s, *end;
    struct strbuf out;
    const char *why; /* the first error */
};

/* Oniguruma's \w: Alphabetic (where circled letters are), marks, Nd, Pc; outside a class also the
 * six other numbers in Latin-1. */
#define WORD_SET                                           \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}" \
    "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
#define WORD_ALONE WORD_SET "\\xB2\\xB3\\xB9\\xBC-\\xBE"

static const struct {
    const char *name, *is;
} long_names[] = {
    {"letter", "L"},
    {"uppercase_letter", "Lu"},
    {"lowercase_letter", "Ll"},
    {"titlecase_letter", "Lt"},
    {"modifier_letter", "Lm"},
    {"other_letter", "Lo"},
    {"mark", "M"},
    {"nonspacing_mark", "Mn"},
    {"spacing_mark", "Mc"},
    {"enclosing_mark", "Me"},
    {"number", "N"},
    {"decimal_number", "Nd"},
    {"letter_number", "Nl"},
    {"other_number", "No"},
    {"punctuation", "P"},
    {"connector_punctuation", "Pc"},
    {"dash_punctuation", "Pd"},
    {"open_punctuation", "Ps"},
    {"close_punctuation", "Pe"},
    {"initial_punctuation", "Pi"},
    {"final_punctuation", "Pf"},
    {"other_punctuation", "Po"},
    {"symbol", "S"},
    {"math_symbol", "Sm"},
    {"currency_symbol", "Sc"},
    {"modifier_symbol", "Sk"},
    {"other_symbol", "So"},
    {"separator", "Z"},
    {"space_separator", "Zs"},
    {"line_separator", "Zl"},
    {"paragraph_separator", "Zp"},
    {"other", "C"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"private_use", "Co"},
    {"surrogate", "Cs"},
    {"unassigned", "Cn"},
    {"alpha", "Alphabetic"},
    {"digit", "Nd"},
    {"punct", "P"},
    {"upper", "Uppercase"},
    {"lower", "Lowercase"},
    {"space", "Xps"},
    {"cntrl", "Cc"},
};

/* Not a script: a category, or a property with a yes or no. */
static bool is_property(const char *name, size_t n)
{
    static const char *const binary[] = {
        "any",
        "alphabetic",
        "uppercase",
        "lowercase",
        "white_space",
        "ascii",
        "hex_digit",
        "ascii_hex_digit",
        "ideographic",
        "emoji",
        "math",
        "dash",
        "emoji_presentation",
        "id_start",
        "id_continue",
        "xps",
        "xan",
        "extended_pictographic",
    };
    for (size_t i = 0; i < sizeof binary / sizeof *binary; i++) {
        if (strlen(binary[i]) == n && !strncasecmp(binary[i], name, n))
            return true;
    }
    return n <= 2;
}

/* After \p or \P: copies {name}, long general categories as their short names, scripts so that
 * PCRE2 takes the Script property and not its extensions. */
static void rewrite_property(struct rewrite *r, char p)
{
    const char *close =
        r->s < r->end && *r->s == '{' ? memchr(r->s, '}', (size_t)(r->end - r->s)) : NULL;
    strbuf_addc(&r->out, '\\');
    strbuf_addc(&r->out, p);
    if (!close)
        return;
    const char *name = r->s + 1;
    strbuf_addc(&r->out, '{');
    if (name < close && *name == '^') {
        strbuf_addc(&r->out, '^');
        name++;
    }
    size_t n = (size_t)(close - name);
    const char *is = NULL;
    for (size_t i = 0; i < sizeof long_names / sizeof *long_names; i++) {
        if (strlen(long_names[i].name) == n && !strncasecmp(long_names[i].name, name, n))
            is = long_names[i].is;
    }
    if (!is && !is_property(name, n) && !memchr(name, ':', n) && !memchr(name, '=', n))
        strbuf_adds(&r->out, "sc:");
    strbuf_add(&r->out, is ? is : name, is ? strlen(is) : n);
    strbuf_addc(&r->out, '}');
    r->s = close + 1;
}

/* r->s is behind a backslash. */
static void rewrite_escape(struct rewrite *r, bool in_class)
{
    if (r->s == r->end) {
        r->why = "it ends in a backslash";
        return;
    }
    char c = *r->s++;
    switch (c) {
    case 'p':
    case 'P':
        rewrite_property(r, c);
        return;
    case 'h':
        strbuf_adds(&r->out, in_class ? "0-9a-fA-F" : "[0-9a-fA-F]");
        return;
    case 'w':
        strbuf_adds(&r->out, in_class ? WORD_SET : "[" WORD_ALONE "]");
        return;
    case 'W':
        strbuf_adds(&r->out, in_class ? "\\W" : "[^" WORD_ALONE "]");
        return;
    case 'u':
        if (r->end - r->s < 4) {
            r->why = "\\u needs four hexadecimal digits";
            return;
        }
        strbuf_adds(&r->out, "\\x{");
        strbuf_add(&r->out, r->s, 4);
        strbuf_addc(&r->out, '}');
        r->s += 4;
        return;
    default:
        strbuf_addc(&r->out, '\\');
        strbuf_addc(&r->out, c);
        for (; r->s < r->end && (*r->s & 0xC0) == 0x80; r->s++) /* the rest of a character */
            strbuf_addc(&r->out, *r->s);
    }
}

/* r->s is at "[:": copies the bracket, or what it stands for where PCRE2 means less by it. */
static void rewrite_posix(struct rewrite *r)
{
    static const char *const sets[][2] = {
        {"[:punct:]", "\\p{P}\\p{S}"},           {"[:alpha:]", "\\p{Alphabetic}"},
        {"[:upper:]", "\\p{Uppercase}"},         {"[:lower:]", "\\p{Lowercase}"},
        {"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"}, {"[:word:]", WORD_SET},
    };
    const char *close = memchr(r->s, ']', (size_t)(r->end - r->s));
    size_t n = close ? (size_t)(close + 1 - r->s) : 2;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (strlen(sets[i][0]) == n && !memcmp(sets[i][0], r->s, n)) {
            strbuf_adds(&r->out, sets[i][1]);
            r->s += n;
            return;
        }
    }
    strbuf_add(&r->out, r->s, n);
    r->s += n;
}

static void rewrite_class(struct rewrite *r, int depth);

/* One operand of && up to the next && or the closing bracket: its own characters as one PCRE2 class
 * and the classes nested in it, as alternatives. */
static void rewrite_operand(struct rewrite *r, int depth)
{
    struct strbuf whole = r->out, nested;
    strbuf_init(&r->out, MAX_PATTERN * 8);
    strbuf_init(&nested, MAX_PATTERN * 8);
    const char *from = r->s;
    while (!r->why && r->s < r->end) {
        char c = *r->s;
        if ((c == ']' && r->s > from) || (c == '&' && r->end - r->s > 1 && r->s[1] == '&'))
            break;
        if (c == '[' && r->end - r->s > 1 && r->s[1] == ':') {
            rewrite_posix(r);
        } else if (c == '[') {
            struct strbuf own = r->out;
            strbuf_init(&r->out, MAX_PATTERN * 8);
            r->s++;
            rewrite_class(r, depth + 1);
            strbuf_addc(&nested, '|');
            strbuf_add(&nested, r->out.data ? r->out.data : "", r->out.len);
            strbuf_fini(&r->out);
            r->out = own;
        } else if (c == '\\') {
            r->s++;
            rewrite_escape(r, true);
        } else {
            strbuf_addc(&r->out, c);
            r->s++;
        }
    }
    struct strbuf own = r->out;
    r->out = whole;
    if (own.len && nested.len)
        strbuf_adds(&r->out, "(?:");
    if (own.len) {
        strbuf_addc(&r->out, '[');
        strbuf_add(&r->out, own.data, own.len);
        strbuf_addc(&r->out, ']');
    }
    if (nested.len) {
        strbuf_adds(&r->out, own.len ? "" : "(?:");
        strbuf_adds(&r->out, own.len ? nested.data : nested.data + 1);
        strbuf_addc(&r->out, ')');
    }
    strbuf_fini(&own);
    strbuf_fini(&nested);
}

/* True if the class at s (behind its bracket) has neither && nor a class inside. */
static bool plain_class(const char *s, const char *end)
{
    const char *from = s;
    if (s < end && *s == '^')
        from = ++s;
    for (; s < end; s++) {
        if (*s == '\\' && s + 1 < end)
            s++;
        else if (*s == '[')
            return s + 1 < end && s[1] == ':' ? plain_class(s + 1, end) : false;
        else if (*s == '&' && s + 1 < end && s[1] == '&')
            return false;
        else if (*s == ']' && s > from)
            return true;
    }
    return true;
}

/* r->s is behind the opening bracket. */
static void rewrite_class(struct rewrite *r, int depth)
{
    if (depth > MAX_DEPTH) {
        r->why = "its classes are nested too deep";
        return;
    }
    bool plain = plain_class(r->s, r->end), negated = r->s < r->end && *r->s == '^';
    const char *from = r->s += negated;
    if (plain) {
        strbuf_adds(&r->out, negated ? "[^" : "[");
        while (!r->why && r->s < r->end && (*r->s != ']' || r->s == from)) {
            char c = *r->s;
            if (c == '[') {
                rewrite_posix(r); /* a plain class has no other */
                continue;
            }
            r->s++;
            if (c == '\\')
                rewrite_escape(r, true);
            else
                strbuf_addc(&r->out, c);
        }
        strbuf_addc(&r->out, ']');
    } else { /* each operand but the last as a lookahead: one character that all of them match */
        strbuf_adds(&r->out, negated ? "(?:(?!" : "(?:");
        bool more = true;
        while (more && !r->why) {
            size_t mark = r->out.len;
            rewrite_operand(r, depth);
            more = r->end - r->s > 1 && r->s[0] == '&';
            if (more) {
                r->s += 2;
                char *operand = mem_strndup(r->out.data + mark, r->out.len - mark);
                r->out.len = mark;
                strbuf_addf(&r->out, "(?=%s)", operand ? operand : "");
                r->out.failed |= !operand;
                mem_free(operand);
            }
        }
        strbuf_adds(&r->out, negated ? ")(?s:.))" : ")");
    }
    if (!r->why && (r->s >= r->end || *r->s != ']'))
        r->why = "a class has no end";
    r->s++;
}

/* r->s is behind '(': copies what introduces the group. */
static void rewrite_group(struct rewrite *r)
{
    strbuf_addc(&r->out, '(');
    if (r->s < r->end && *r->s == '*') {
        r->why = "(* is not supported";
        return;
    }
    if (r->s == r->end || *r->s != '?')
        return;
    strbuf_addc(&r->out, *r->s++);
    while (r->s < r->end && strchr("imx-", *r->s)) {
        strbuf_addc(&r->out, *r->s == 'm' ? 's' : *r->s);
        r->s++;
    }
}

/* At a quantifier {n,m}: copies it; when a + follows, the atom from `atom` on repeats. */
static void rewrite_braces(struct rewrite *r, size_t atom)
{
    const char *close = memchr(r->s, '}', (size_t)(r->end - r->s));
    const char *p = r->s + 1;
    while (close && p < close && (*p == ',' || (*p >= '0' && *p <= '9')))
        p++;
    if (!close || p != close) {
        strbuf_addc(&r->out, *r->s++);
        return;
    }
    if (r->s[1] == ',') { /* {,m} */
        strbuf_adds(&r->out, "{0");
        r->s++;
    }
    strbuf_add(&r->out, r->s, (size_t)(close + 1 - r->s));
    r->s = close + 1;
    if (r->s < r->end && *r->s == '+') {
        char *tail = mem_strndup(r->out.data + atom, r->out.len - atom);
        r->out.len = atom;
        strbuf_addf(&r->out, "(?:%s)", tail ? tail : "");
        r->out.failed |= !tail;
        mem_free(tail);
    }
}

static void rewrite_all(struct rewrite *r)
{
    size_t atom = 0, open[MAX_DEPTH * 4];
    int depth = 0;
    while (!r->why && r->s < r->end) {
        char c = *r->s;
        size_t before = r->out.len;
        if (c == '{') {
            rewrite_braces(r, atom);
            continue;
        }
        r->s++;
        if (c == '\\') {
            rewrite_escape(r, false);
        } else if (c == '[') {
            rewrite_class(r, 0);
        } else if (c == '(') {
            if (depth == MAX_DEPTH * 4)
                r->why = "its groups are nested too deep";
            else
                open[depth++] = before;
            rewrite_group(r);
        } else {
            strbuf_addc(&r->out, c);
            if (c == ')' && depth) {
                atom = open[--depth];
                continue;
            }
            if (strchr("*+?", c))
                continue;
            for (; r->s < r->end && (*r->s & 0xC0) == 0x80; r->s++)
                strbuf_addc(&r->out, *r->s);
        }
        atom = before;
    }
}

/* ---- compiling and matching -------------------------------------------------------------------
 */

static enum sl_status compile(struct regex *re, const char *pattern, size_t n, struct sl_err *err)
{
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (cc) {
        pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(cc, MAX_DEPTH * 4);
        pcre2_set_max_pattern_length(cc, MAX_PATTERN * 8);
    }
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    re->code = pcre2_compile((PCRE2_SPTR)pattern, n, options, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!re->code) {
        PCRE2_UCHAR why[120];
        pcre2_get_error_message(code, why, sizeof why);
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the pattern %.200s is wrong: %s", pattern,
                       (char *)why);
    }
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    return SL_OK;
}

enum sl_status regex_create(struct regex **out, const char *pattern, size_t n, struct sl_err *err)
{
    if (n > MAX_PATTERN)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a pattern of %zu bytes is too long", n);
    struct rewrite r = {.s = pattern, .end = pattern + n};
    strbuf_init(&r.out, MAX_PATTERN * 8);
    rewrite_all(&r);
    enum sl_status st = SL_OK;
    struct regex *re = mem_zalloc(1, sizeof *re);
    if (r.why)
        st = SL_FAIL(err, SL_EFORMAT, "tokenizer: the pattern %.200s is wrong: %s", pattern, r.why);
    else if (r.out.failed || !re)
        st = SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a pattern");
    else
        st = compile(re, r.out.data ? r.out.data : "", r.out.len, err);
    strbuf_fini(&r.out);
    if (st) {
        regex_destroy(&re);
        return st;
    }
    *out = re;
    return SL_OK;
}

void regex_destroy(struct regex **r)
{
    if (*r)
        pcre2_code_free((*r)->code);
    mem_free(*r);
    *r = NULL;
}

static bool scratch_ready(struct scratch *sc)
{
    if (sc->match_data)
        return true;
    sc->match_data = pcre2_match_data_create(1, NULL);
    sc->match_context = pcre2_match_context_create(NULL);
    sc->jit_stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX, NULL);
    if (!sc->match_data || !sc->match_context)
        return false;
    pcre2_set_match_limit(sc->match_context, MATCH_LIMIT);
    pcre2_set_heap_limit(sc->match_context, 64 << 10); /* KiB */
    if (sc->jit_stack)
        pcre2_jit_stack_assign(sc->match_context, NULL, sc->jit_stack);
    return true;
}

int regex_find(const struct regex *r, struct scratch *sc, const char *s, size_t n, size_t from,
               size_t *start, size_t *end)
{
    if (!scratch_ready(sc))
        return SL_ENOMEM;
    PCRE2_SPTR text = (PCRE2_SPTR)s;
    int rc = r->jit ? pcre2_jit_match(r->code, text, n, from, PCRE2_NO_UTF_CHECK, sc->match_data,
                                      sc->match_context)
                    : PCRE2_ERROR_JIT_STACKLIMIT;
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, sc->match_data,
                         sc->match_context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0)
        return rc == PCRE2_ERROR_NOMEMORY ? SL_ENOMEM : SL_EINVAL;
    const PCRE2_SIZE *o = pcre2_get_ovector_pointer(sc->match_data);
    *start = o[0];
    *end = o[1] < o[0] ? o[0] : o[1]; /* \K in a lookahead can turn them round */
    return 1;
}

void pattern_fini(struct pattern *p)
{
    mem_free(p->literal);
    regex_destroy(&p->regex);
    *p = (struct pattern){0};
}

static int find_in_class(const struct pattern *p, const char *s, size_t n, size_t from,
                         size_t *start, size_t *end)
{
    while (from < n) {
        int32_t cp;
        size_t len = utf8_next(s + from, &cp);
        if (p->in_class(cp)) {
            *start = from;
            *end = from + len;
            return 1;
        }
        from += len;
    }
    return 0;
}

static int find(const struct pattern *p, struct scratch *sc, const char *s, size_t n, size_t from,
                size_t *start, size_t *end)
{
    switch (p->kind) {
    case PATTERN_REGEX:
        return regex_find(p->regex, sc, s, n, from, start, end);
    case PATTERN_CLASS:
        return find_in_class(p, s, n, from, start, end);
    case PATTERN_LITERAL:
        break;
    }
    const char *hit =
        p->literal_len ? memmem(s + from, n - from, p->literal, p->literal_len) : s + from;
    if (!hit)
        return 0;
    *start = (size_t)(hit - s);
    *end = *start + p->literal_len;
    return 1;
}

int pattern_next(const struct pattern *p, struct scratch *sc, const char *s, size_t n,
                 struct pattern_iter *it, size_t *start, size_t *end)
{
    while (it->pos <= n) {
        int rc = find(p, sc, s, n, it->pos, start, end);
        if (rc <= 0)
            return rc;
        if (*start == *end && it->started && it->last == *end) {
            it->pos += it->pos < n ? utf8_len(s[it->pos]) : 1;
            continue;
        }
        it->pos = it->last = *end;
        it->started = true;
        return 1;
    }
    return 0;
}

enum sl_status pattern_literal(struct pattern *p, const char *s, size_t n, struct sl_err *err)
{
    *p = (struct pattern){.kind = PATTERN_LITERAL, .literal = mem_strndup(s, n), .literal_len = n};
    return p->literal ? SL_OK : SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for a pattern");
}

enum sl_status pattern_regex(struct pattern *p, const char *s, size_t n, struct sl_err *err)
{
    *p = (struct pattern){.kind = PATTERN_REGEX};
    return regex_create(&p->regex, s, n, err);
}

enum sl_status pattern_parse(struct pattern *p, const json_t *json, const char *what,
                             struct sl_err *err)
{
    const json_t *literal = json_object_get(json, "String"),
                 *regex = json_object_get(json, "Regex");
    if (json_is_string(literal))
        return pattern_literal(p, json_string_value(literal), json_string_length(literal), err);
    if (json_is_string(regex))
        return pattern_regex(p, json_string_value(regex), json_string_length(regex), err);
    if (json_is_string(json)) /* as SentencePiece converters wrote it once */
        return pattern_literal(p, json_string_value(json), json_string_length(json), err);
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: %s needs a pattern with \"String\" or \"Regex\"",
                   what);
}
