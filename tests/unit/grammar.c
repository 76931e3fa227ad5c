/* grammar: regular expressions, GBNF, Lark, structural tags and JSON schemas, byte by byte and with
 * made-up vocabularies whose masks are compared with brute force; rollback, clones, the cache;
 * refusals; failing allocations.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "grammar/grammar.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- vocabularies ---------------------------------------------------------------------------- */

/* All single bytes, then pieces of JSON and English, some of them overlapping, one twice, one
 * special, one too strange to be text. The last is the end of sequence. */
static const char *const pieces[] = {
    "{\"",
    "\":",
    "\": ",
    "\",",
    "\", \"",
    "\"}",
    "}",
    "},",
    "[",
    "[\"",
    "]",
    "]}",
    ": ",
    ", ",
    "true",
    "false",
    "null",
    "name",
    "\"name\"",
    "age",
    "12",
    "123",
    "1234567890",
    "0.",
    ".5",
    "-1",
    "e+1",
    "the",
    "th",
    "there",
    " the",
    " a",
    "a",
    "aa",
    "aaa",
    "ab",
    "abc",
    "b",
    "bc",
    "\n",
    "\n  ",
    "  ",
    "    ",
    "\\\"",
    "\\n",
    "\\u00",
    "\\ud83d\\ude00",
    "\xc3",
    "\xc3\xa9",
    "\xa9",
    "\xf0\x9f\x98\x80",
    "caf\xc3\xa9",
    "\xe6\x9d\xb1\xe4\xba\xac",
    "yes",
    "no",
    "y",
    "es",
    "n",
    "o",
    "the",
    "<tool>",
    "</tool>",
    "<",
    "tool",
    "SELECT",
    " FROM",
    " t",
    "+",
    "*",
    "(",
    ")",
    "x+",
    "hello world, this is a long token that counts many characters",
    "xxxxxxxxxxxxxxxxxxxxxxxx",
    "\xff\xfe",
    "2024-",
    "07-",
    "26",
    "T",
    "12:00:00",
    "Z"};
enum { N_PIECES = (int)(sizeof pieces / sizeof *pieces), N_VOCAB = 256 + N_PIECES + 3 };
enum { SPECIAL = 256 + N_PIECES, UNUSED, EOS };

static uint32_t starts[N_VOCAB + 1];
static uint8_t bytes[8192], flags[N_VOCAB];
static struct vocab vocab = {N_VOCAB, starts, bytes, flags};
static struct grammar_lib *lib;
static const int32_t stops[] = {EOS};

static void add_token(int id, const char *s, size_t n)
{
    assert_true(starts[id] + n < sizeof bytes);
    memcpy(bytes + starts[id], s, n);
    starts[id + 1] = starts[id] + (uint32_t)n;
}

static int make_lib(void **state)
{
    struct sl_err err = {0};
    (void)state;
    for (int i = 0; i < 256; i++) {
        char c = (char)i;
        add_token(i, &c, 1);
    }
    for (int i = 0; i < N_PIECES; i++)
        add_token(256 + i, pieces[i], strlen(pieces[i]));
    add_token(SPECIAL, "<|call|>", 8);
    flags[SPECIAL] = VOCAB_SPECIAL | VOCAB_ADDED;
    add_token(UNUSED, "the", 3);
    flags[UNUSED] = VOCAB_UNUSED;
    add_token(EOS, "</s>", 4);
    return grammar_lib_create(&lib, &vocab, EOS, &err);
}

static int free_lib(void **state)
{
    (void)state;
    grammar_lib_destroy(&lib);
    return 0;
}

static struct grammar_spec spec_of(enum grammar_kind kind, const char *text)
{
    return (struct grammar_spec){.kind = kind, .text = text, .n_text = text ? strlen(text) : 0};
}

static struct grammar *compile(enum grammar_kind kind, const char *text)
{
    struct grammar_spec spec = spec_of(kind, text);
    struct sl_err err = {0};
    struct grammar *g = NULL;
    if (grammar_compile(lib, &spec, &g, &err))
        fail_msg("%s\n%s", text ? text : "", err.msg);
    return g;
}

static struct matcher *match(struct grammar *g)
{
    struct matcher *m = NULL;
    struct sl_err err = {0};
    assert_int_equal(matcher_create(&m, g, stops, 1, &err), SL_OK);
    return m;
}

static bool accepts_bytes(struct matcher *m, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (matcher_accept(m, (unsigned char)s[i]))
            return false;
    return true;
}

static bool accepts(struct grammar *g, const char *s)
{
    struct matcher *m = match(g);
    bool ok = accepts_bytes(m, s, strlen(s)) && matcher_may_end(m);
    matcher_destroy(&m);
    return ok;
}

/* Each text up to NULL is accepted, or is not. */
static void check_texts(enum grammar_kind kind, const char *text, bool want, const char *const *s)
{
    struct grammar *g = compile(kind, text);
    for (; *s; s++)
        if (accepts(g, *s) != want)
            fail_msg("%s\n%s %s", text, want ? "rejects" : "accepts", *s);
    grammar_unref(&g);
}
#define YES(kind, text, ...) check_texts(kind, text, true, (const char *const[]){__VA_ARGS__, NULL})
#define NO(kind, text, ...) check_texts(kind, text, false, (const char *const[]){__VA_ARGS__, NULL})

static void refused(enum grammar_kind kind, const char *text, const char *why)
{
    struct grammar_spec spec = spec_of(kind, text);
    struct sl_err err = {0};
    struct grammar *g = NULL;
    enum sl_status st = grammar_compile(lib, &spec, &g, &err);
    if (st != SL_EINVAL || !strstr(err.msg, why))
        fail_msg("%.300s\ngave %d '%s', not '%s'", text, st, err.msg, why);
    assert_null(g);
    assert_non_null(err.param);
}

/* ---- masks against brute force --------------------------------------------------------------- */

static void check_mask(struct matcher *m, const char *what)
{
    uint32_t bits[N_VOCAB / 32 + 2];
    int n_allowed, n = 0;
    int32_t forced, one = -1;
    assert_int_equal(matcher_mask(m, bits, N_VOCAB / 32 + 2, &n_allowed, &forced), SL_OK);
    for (int id = 0; id < N_VOCAB; id++) {
        bool in = bits[id / 32] >> (id % 32) & 1;
        bool want = matcher_accept(m, id) == SL_OK;
        if (want) {
            matcher_rollback(m, 1);
            n++;
            one = id;
        }
        if (in != want)
            fail_msg("%s: after %d tokens, token %d is %s the mask", what, matcher_length(m), id,
                     in ? "wrongly in" : "missing in");
    }
    assert_int_equal(n, n_allowed);
    assert_int_equal(forced, n == 1 ? one : -1);
}

/* Random outputs, their masks compared at each step; each can be finished, and ends as the grammar
 * says. */
static void walk_randomly(enum grammar_kind kind, const char *text, unsigned seed)
{
    struct grammar *g = compile(kind, text);
    uint64_t x = seed * 2654435761u + 1;
    for (int round = 0; round < 6; round++) {
        struct matcher *m = match(g);
        for (int step = 0; step < 40; step++) {
            uint32_t bits[N_VOCAB / 32 + 1];
            int n_allowed;
            int32_t forced, pick = -1;
            check_mask(m, text);
            assert_int_equal(matcher_mask(m, bits, N_VOCAB / 32 + 1, &n_allowed, &forced), SL_OK);
            assert_true(n_allowed > 0);
            x = x * 6364136223846793005u + 1442695040888963407u;
            int k = (int)((x >> 33) % (unsigned)n_allowed);
            for (int id = 0; id < N_VOCAB && pick < 0; id++)
                if (bits[id / 32] >> (id % 32) & 1 && k-- == 0)
                    pick = id;
            assert_int_equal(matcher_accept(m, pick), SL_OK);
            if (pick == EOS) {
                assert_true(matcher_is_done(m));
                break;
            }
        }
        matcher_destroy(&m);
    }
    grammar_unref(&g);
}

static const char person[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"minLength\":2,"
    "\"maxLength\":9},\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":130},\"tags\":"
    "{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"caf\\u00e9\",\"there\"]},\"maxItems\":3},"
    "\"next\":{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}},\"required\":[\"name\"]}";

static void masks_are_what_brute_force_says(void **state)
{
    (void)state;
    walk_randomly(GRAMMAR_REGEX, "[a-z]+( the)?|\\d{3}-\\d{4}", 1);
    walk_randomly(GRAMMAR_REGEX, "(a|aa|ab)*c", 2);
    walk_randomly(GRAMMAR_REGEX, ".{3,20}", 3);
    walk_randomly(GRAMMAR_CHOICE, "[\"yes\",\"no\",\"the\",\"there\",\"caf\\u00e9\"]", 4);
    walk_randomly(GRAMMAR_JSON_OBJECT, NULL, 5);
    walk_randomly(GRAMMAR_JSON_SCHEMA, person, 6);
    walk_randomly(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"maxLength\":5}", 7);
    walk_randomly(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"minLength\":18,\"maxLength\":40}",
                  8);
    walk_randomly(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"format\":\"date-time\"}", 9);
    walk_randomly(GRAMMAR_JSON_SCHEMA, "{\"type\":\"number\",\"minimum\":-1.5,\"maximum\":12.25}",
                  10);
    walk_randomly(GRAMMAR_JSON_SCHEMA, "true", 11);
    walk_randomly(GRAMMAR_EBNF,
                  "root ::= expr\nexpr ::= term (\"+\" term)*\n"
                  "term ::= [a-z]+ | \"(\" expr \")\" | [0-9]{1,40}",
                  12);
    walk_randomly(GRAMMAR_EBNF, "start: WORD (\",\" WORD)~0..3\nWORD: /[a-z]+/\n%ignore \" \"", 13);
    walk_randomly(GRAMMAR_TAGS,
                  "{\"structures\":[{\"begin\":\"<tool>\",\"schema\":{\"type\":\"object\"},\"end\":"
                  "\"</tool>\"}],\"triggers\":[\"<tool>\"]}",
                  14);
}

/* ---- the languages --------------------------------------------------------------------------- */

static void regular_expressions(void **state)
{
    (void)state;
    YES(GRAMMAR_REGEX, "a{2,3}b?", "aa", "aaa", "aab");
    NO(GRAMMAR_REGEX, "a{2,3}b?", "a", "aaaa", "b", "");
    YES(GRAMMAR_REGEX, "^(cat|dog)s?$", "cat", "dogs");
    YES(GRAMMAR_REGEX, "[^a-c\\d]+", "xyz", "\xc3\xa9");
    NO(GRAMMAR_REGEX, "[^a-c\\d]+", "xa", "1");
    YES(GRAMMAR_REGEX, "(?i)yes", "YES", "yEs");
    YES(GRAMMAR_REGEX, "(?:x|y)+?z", "xyz");
    YES(GRAMMAR_REGEX, "\\u00e9\\x41\\t",
        "\xc3\xa9"
        "A\t");
    YES(GRAMMAR_REGEX, "\\p{Lu}\\p{Ll}+", "\xc3\x89t\xc3\xa9");
    NO(GRAMMAR_REGEX, ".", "\n", "ab", "");
    YES(GRAMMAR_REGEX, "", "");
    YES(GRAMMAR_REGEX, "[\\w.+-]+@[\\w-]+\\.[a-z]{2,}", "j.doe+x@mail-1.org");
    refused(GRAMMAR_REGEX, "(?=a)b", "look-around");
    refused(GRAMMAR_REGEX, "(a)\\1", "back reference");
    refused(GRAMMAR_REGEX, "a\\b", "word boundary");
    refused(GRAMMAR_REGEX, "a(b", "without its )");
    refused(GRAMMAR_REGEX, "[a", "without its ]");
    refused(GRAMMAR_REGEX, "*a", "repeats nothing");
    refused(GRAMMAR_REGEX, "a{3,2}", "backwards");
    refused(GRAMMAR_REGEX, "a\\", "backslash");
    refused(GRAMMAR_REGEX, "a$b", "no text can match");
    /* what makes a backtracking matcher or a careless compiler explode */
    refused(GRAMMAR_REGEX, "((((a{1,99}){1,99}){1,99}){1,99}){1,99}", "too ");
    refused(GRAMMAR_REGEX, "(a|b)*a(a|b){60}", "too ");
    YES(GRAMMAR_REGEX, "(a+)+b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab");
    YES(GRAMMAR_REGEX, "(a|a|a)*(a|aa)*", "aaaaaaaaaaaa");
}

static void gbnf(void **state)
{
    (void)state;
    const char *list = "root ::= \"[\" (item (\",\" item)*)? \"]\" # a list\n"
                       "item ::= [a-z]+ | root |\n  \"\\\"\" [^\"\\n]* \"\\\"\"\n";
    YES(GRAMMAR_EBNF, list, "[]", "[ab,c]", "[[],[x,[y]]]", "[\"Q \xc3\xa9\"]");
    NO(GRAMMAR_EBNF, list, "[", "[a,]", "[A]", "[]]");
    const char *left = "root ::= root \"+\" num | num\nnum ::= [0-9]+";
    YES(GRAMMAR_EBNF, left, "1", "1+22+3");
    NO(GRAMMAR_EBNF, left, "+1", "1+");
    YES(GRAMMAR_EBNF, "root ::= \"a\" root \"b\" | \"\"", "", "ab", "aaabbb");
    NO(GRAMMAR_EBNF, "root ::= \"a\" root \"b\" | \"\"", "aab", "abb");
    YES(GRAMMAR_EBNF, "root ::= pair{20}\npair ::= [xy] \"-\"",
        "x-y-x-y-x-y-x-y-x-y-x-y-x-y-x-y-x-y-x-y-");
    NO(GRAMMAR_EBNF, "root ::= pair{20}\npair ::= [xy] \"-\"", "x-y-");
    refused(GRAMMAR_EBNF, "root ::= a\na ::= b \"x\"\nb ::= a \"y\" | \"z\"", "left recursive");
    refused(GRAMMAR_EBNF, "root ::= missing", "'missing' is not defined");
    refused(GRAMMAR_EBNF, "top ::= \"a\"", "no rule named root");
    refused(GRAMMAR_EBNF, "root ::= \"a", "ends inside");
    refused(GRAMMAR_EBNF, "root ::= (\"a\"", "without its )");
    refused(GRAMMAR_EBNF, "root ::= \"a\" root", "no text can match");
    refused(GRAMMAR_EBNF, "root ::= \"a\"\nroot ::= \"b\"", "defined twice");
    refused(GRAMMAR_EBNF, "start: \"a\\", "without its end");
    refused(GRAMMAR_EBNF, "start: /a\\", "without its end");
    refused(GRAMMAR_EBNF, "root ::= x{1000}\nx ::= \"a\"?", "may be empty");
}

static void lark(void **state)
{
    (void)state;
    const char *sum =
        "?start: sum\n"
        "sum: product | sum \"+\" product -> add\n"
        "product: atom | product \"*\" atom\n"
        "atom: NUMBER | \"(\" sum \")\" | NAME\n"
        "NAME.2: /[a-z]\\w*/i\n%import common.NUMBER\n%import common.WS\n%ignore WS\n";
    YES(GRAMMAR_EBNF, sum, "1", " 1 + 2*(x1 +  3.5 ) ", "Abc*7");
    NO(GRAMMAR_EBNF, sum, "1 +", "", "(1", "1 2");
    YES(GRAMMAR_EBNF,
        "start: \"SELECT\"i \" \" COL (\", \" COL)* // columns\nCOL: \"a\"..\"c\" | \"x\"",
        "select a, b", "SELECT x");
    YES(GRAMMAR_EBNF, "start: [A] B~2..3\nA: \"a\"\nB: \"b\"", "abb", "bbb");
    NO(GRAMMAR_EBNF, "start: [A] B~2..3\nA: \"a\"\nB: \"b\"", "ab", "abbbb");
    refused(GRAMMAR_EBNF, "start: x\n%import python (NAME)\nx: \"a\"", "leaves the document");
    refused(GRAMMAR_EBNF, "start: x\n%declare Y\nx: \"a\"", "%declare is not supported");
    refused(GRAMMAR_EBNF, "start: t{\"a\"}\nt{x}: x", "templates");
    refused(GRAMMAR_EBNF, "begin: \"a\"", "no rule named start");
    refused(GRAMMAR_EBNF, "start: \"a\" $", "unexpected '$'");
}

static void structural_tags(void **state)
{
    (void)state;
    const char *old =
        "{\"type\":\"structural_tag\",\"structures\":[{\"begin\":\"<f=a>\",\"schema\":{\"type\":"
        "\"object\",\"properties\":{\"x\":{\"type\":\"integer\"}},\"required\":[\"x\"]},"
        "\"end\":\"</f>\"},{\"begin\":\"<f=b>\",\"schema\":{\"enum\":[7]},\"end\":\"</f>\"}],"
        "\"triggers\":[\"<f=\"]}";
    YES(GRAMMAR_TAGS, old, "", "free < text", "so <f=a>{\"x\": 1}</f> and <f=b>7</f>.");
    NO(GRAMMAR_TAGS, old, "<f=", "<f=c>", "<f=a>{}</f>", "<f=b>8</f>", "<f=b>7</f", "x<f=b>");
    const char *seq =
        "{\"type\":\"structural_tag\",\"format\":{\"type\":\"sequence\",\"elements\":[{\"type\":"
        "\"tag\",\"begin\":\"<think>\",\"content\":{\"type\":\"any_text\"},\"end\":\"</think>\"},"
        "{\"type\":\"or\",\"elements\":[{\"type\":\"regex\",\"pattern\":\"[0-9]+\"},{\"type\":"
        "\"const_string\",\"value\":\"none\"}]}]}}";
    YES(GRAMMAR_TAGS, seq, "<think>hm</think>42", "<think></think>none");
    NO(GRAMMAR_TAGS, seq, "<think>a</think>b</think>4", "42", "<think>x");
    const char *sep =
        "{\"format\":{\"type\":\"tags_with_separator\",\"separator\":\",\",\"at_least_one\":true,"
        "\"tags\":[{\"begin\":\"(\",\"content\":{\"type\":\"json_schema\",\"json_schema\":"
        "{\"type\":\"boolean\"}},\"end\":\")\"}]}}";
    YES(GRAMMAR_TAGS, sep, "(true)", "(true),(false)");
    NO(GRAMMAR_TAGS, sep, "", "(true),", "(1)");
    refused(GRAMMAR_TAGS, "{\"format\":{\"type\":\"magic\"}}", "'magic' is not supported");
    refused(GRAMMAR_TAGS,
            "{\"structures\":[{\"begin\":\"<g>\",\"schema\":true,\"end\":\"\"}],"
            "\"triggers\":[\"<f\"]}",
            "begins with no trigger");
    refused(GRAMMAR_TAGS, "{}", "needs a 'format'");
    refused(GRAMMAR_TAGS, "{", "not valid JSON");
}

/* A tag whose begin is a special token's text may be that token; elsewhere it is never allowed. */
static void special_tokens_begin_tags(void **state)
{
    (void)state;
    struct grammar *g =
        compile(GRAMMAR_TAGS, "{\"structures\":[{\"begin\":\"<|call|>\",\"schema\":{\"type\":"
                              "\"boolean\"},\"end\":\"\\n\"}],\"triggers\":[\"<|call|>\"]}");
    struct matcher *m = match(g);
    assert_true(accepts_bytes(m, "hi", 2));
    assert_int_equal(matcher_accept(m, SPECIAL), SL_OK);
    assert_int_equal(matcher_accept(m, SPECIAL), SL_EINVAL);
    assert_false(matcher_may_end(m));
    assert_true(accepts_bytes(m, "true\n", 5));
    assert_true(matcher_may_end(m));
    matcher_destroy(&m);
    grammar_unref(&g);
    g = compile(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\"}");
    m = match(g);
    assert_true(accepts_bytes(m, "\"", 1));
    assert_int_equal(matcher_accept(m, SPECIAL), SL_EINVAL);
    assert_int_equal(matcher_accept(m, UNUSED), SL_EINVAL);
    assert_int_equal(matcher_accept(m, EOS), SL_EINVAL);
    matcher_destroy(&m);
    grammar_unref(&g);
}

/* ---- JSON schema ----------------------------------------------------------------------------- */

#define JS GRAMMAR_JSON_SCHEMA

static void schema_scalars(void **state)
{
    (void)state;
    YES(JS, "{\"type\":\"integer\",\"minimum\":-5,\"exclusiveMaximum\":100}", "-5", "0", "99");
    NO(JS, "{\"type\":\"integer\",\"minimum\":-5,\"exclusiveMaximum\":100}", "-6", "100", "07",
       "1.5", "-0");
    YES(JS, "{\"type\":\"number\",\"minimum\":3.14,\"maximum\":3.15}", "3.14", "3.145", "3.15",
        "3.1500");
    NO(JS, "{\"type\":\"number\",\"minimum\":3.14,\"maximum\":3.15}", "3.1", "3.2", "3", "3.151");
    YES(JS, "{\"type\":\"integer\",\"multipleOf\":7}", "0", "-14", "7000");
    NO(JS, "{\"type\":\"integer\",\"multipleOf\":7}", "1", "-13");
    YES(JS, "{\"type\":\"number\",\"multipleOf\":0.25}", "1.5", "0.75", "2.00", "3");
    NO(JS, "{\"type\":\"number\",\"multipleOf\":0.25}", "1.1", "0.251");
    YES(JS, "{\"type\":\"number\",\"maximum\":1e300}", "1", "123456.5");
    YES(JS, "{\"type\":\"string\",\"maxLength\":2}", "\"\"", "\"\xc3\xa9\xc3\xa9\"",
        "\"\\ud83d\\ude00x\"", "\"\\n\\\"\"");
    NO(JS, "{\"type\":\"string\",\"maxLength\":2}", "\"abc\"", "\"\\ud83d\"", "\"\n\"");
    YES(JS, "{\"type\":\"string\",\"pattern\":\"b\"}", "\"b\"", "\"abc\"", "\"\\nb\"");
    NO(JS, "{\"type\":\"string\",\"pattern\":\"b\"}", "\"\"", "\"ac\"");
    YES(JS, "{\"type\":\"string\",\"pattern\":\"^.{2}$\",\"minLength\":1}", "\"a\\\\\"");
    YES(JS, "{\"const\":1.5}", "1.5");
    YES(JS, "{\"enum\":[1,\"a\\\"b\",null,true,[1,{\"k\":2}]]}", "1", "\"a\\\"b\"", "null", "true",
        "[1, {\"k\": 2}]");
    NO(JS, "{\"enum\":[1,\"a\\\"b\",null,true]}", "2", "false", "\"a\"");
    YES(JS, "{\"type\":[\"integer\",\"null\"],\"enum\":[1,2,null,\"x\"]}", "1", "null");
    NO(JS, "{\"type\":[\"integer\",\"null\"],\"enum\":[1,2,null,\"x\"]}", "\"x\"", "3");
    NO(JS, "{\"type\":\"string\",\"format\":\"date\"}", "\"2023-02-29\"", "\"2024-04-31\"",
       "\"0000-01-01\"");
    YES(JS, "{\"type\":\"string\",\"format\":\"date\"}", "\"2024-02-29\"", "\"1999-12-31\"");
}

static void schema_composition(void **state)
{
    (void)state;
    YES(JS, "{\"allOf\":[{\"type\":\"integer\"},{\"minimum\":3},{\"maximum\":4}]}", "3", "4");
    NO(JS, "{\"allOf\":[{\"type\":\"integer\"},{\"minimum\":3},{\"maximum\":4}]}", "2", "5");
    YES(JS, "{\"type\":\"integer\",\"oneOf\":[{\"minimum\":5},{\"maximum\":9}]}", "4", "10");
    NO(JS, "{\"type\":\"integer\",\"oneOf\":[{\"minimum\":5},{\"maximum\":9}]}", "5", "9", "7");
    YES(JS, "{\"type\":\"string\",\"not\":{\"pattern\":\"^x\"}}", "\"a\"", "\"\"");
    NO(JS, "{\"type\":\"string\",\"not\":{\"pattern\":\"^x\"}}", "\"xa\"");
    YES(JS, "{\"type\":\"string\",\"not\":{\"enum\":[\"a\",\"b\"]}}", "\"c\"", "\"ab\"");
    NO(JS, "{\"type\":\"string\",\"not\":{\"enum\":[\"a\",\"b\"]}}", "\"a\"");
    const char *cond =
        "{\"type\":\"object\",\"properties\":{\"k\":{\"enum\":[\"a\",\"b\"]},\"n\":{\"type\":"
        "\"integer\"}},\"required\":[\"k\"],\"if\":{\"properties\":{\"k\":{\"const\":\"a\"}},"
        "\"required\":[\"k\"]},\"then\":{\"required\":[\"n\"]},\"else\":{\"properties\":{\"n\":"
        "false}}}";
    YES(JS, cond, "{\"k\": \"a\", \"n\": 1}", "{\"k\": \"b\"}");
    NO(JS, cond, "{\"k\": \"a\"}", "{\"k\": \"b\", \"n\": 1}");
    const char *dep =
        "{\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},\"type\":\"object\","
        "\"dependentRequired\":{\"a\":[\"b\"]}}";
    YES(JS, dep, "{}", "{\"b\":null}", "{\"a\":null,\"b\":null}");
    NO(JS, dep, "{\"a\":null}");
    refused(JS, "{\"allOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}", "no text can match");
    refused(JS, "{\"$ref\":\"#\"}", "leads to itself");
    refused(JS, "{\"$ref\":\"http://example.com/x\"}", "leaves the document");
    refused(JS, "{\"properties\":{\"a/b\":{\"$ref\":\"#/nowhere\"}}}", "nothing is at");
    refused(JS, "{\"properties\":{\"p\":{\"type\":\"string\",\"pattern\":\"(?=a)\"}}}",
            "/properties/p/pattern");
    refused(JS, "{\"type\":\"string\",\"format\":\"regex\"}", "'regex' cannot be enforced");
    refused(JS, "{\"type\":\"text\"}", "'text' is not a type");
    refused(JS, "[]", "not a JSON schema");
    refused(JS,
            "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
            "no text can match");
}

static void schema_containers(void **state)
{
    (void)state;
    const char *array =
        "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"boolean\"}],"
        "\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":4}";
    YES(JS, array, "[\"a\"]", "[\"a\",true]", "[\"a\", true, 1, 2]");
    NO(JS, array, "[]", "[1]", "[\"a\",1]", "[\"a\",true,1,2,3]");
    YES(JS, "{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":30,\"maxItems\":31}",
        "[null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,"
        "null,"
        "null,null,null,null,null,null,null,null,null,null,null,null]");
    NO(JS, "{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":30}", "[null]", "[]");
    const char *contains =
        "{\"type\":\"array\",\"items\":{\"enum\":[1,2,3]},\"contains\":{\"const\":2},"
        "\"maxContains\":2}";
    YES(JS, contains, "[2]", "[1,2,3]", "[2,2]");
    NO(JS, contains, "[]", "[1,3]", "[2,2,2]");
    const char *map =
        "{\"type\":\"object\",\"patternProperties\":{\"^x-\":{\"type\":\"string\"}},"
        "\"additionalProperties\":{\"type\":\"integer\"},\"properties\":{\"id\":{\"type\":"
        "\"null\"}},\"maxProperties\":3}";
    YES(JS, map, "{}", "{\"id\":null,\"x-a\":\"b\",\"k\":1}", "{\"x\": 2}");
    NO(JS, map, "{\"x-a\":1}", "{\"k\":\"b\"}", "{\"id\":1}", "{\"a\":1,\"b\":1,\"c\":1,\"d\":1}");
    YES(JS, "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-z]+$\"}}", "{\"ab\": [1]}");
    NO(JS, "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-z]+$\"}}", "{\"A\": 1}");
    YES(JS, "{\"type\":\"object\"}", "{\"any\": {\"thing\": [true, null, 1e5, -2.5]}}");
    YES(JS, "{\"type\":\"object\",\"properties\":{\"a\":{}},\"additionalProperties\":true}",
        "{\"a\":1,\"b\":2}");
    NO(JS, "{\"type\":\"object\",\"properties\":{\"a\":{}}}", "{\"a\":1,\"b\":2}");
    struct grammar_spec compact = spec_of(JS, "{\"type\":\"array\",\"items\":{\"type\":\"null\"}}");
    struct sl_err err = {0};
    struct grammar *g = NULL;
    compact.compact = true;
    assert_int_equal(grammar_compile(lib, &compact, &g, &err), SL_OK);
    assert_true(accepts(g, "[null, null]"));
    assert_true(accepts(g, "[null,null]"));
    assert_false(accepts(g, "[ null]"));
    grammar_unref(&g);
}

/* ---- bounds ---------------------------------------------------------------------------------- */

/* An output may nest only as deep as can still be closed. */
static void depth_is_bounded(void **state)
{
    (void)state;
    struct grammar *g = compile(GRAMMAR_EBNF, "root ::= \"[\" root \"]\" | \"x\"");
    struct matcher *m = match(g);
    int depth = 0;
    while (matcher_accept(m, '[') == SL_OK)
        depth++;
    assert_in_range(depth, 100, 1000);
    assert_int_equal(matcher_accept(m, 'x'), SL_OK);
    for (int i = 0; i < depth; i++)
        assert_int_equal(matcher_accept(m, ']'), SL_OK);
    assert_true(matcher_is_done(m));
    matcher_destroy(&m);
    grammar_unref(&g);
}

/* A grammar of exponentially many derivations, and a long output: time and memory stay small. */
static void ambiguity_is_bounded(void **state)
{
    (void)state;
    struct grammar *g =
        compile(GRAMMAR_EBNF, "root ::= s\ns ::= \"a\" s* s? | \"a\" t\nt ::= s t | \"b\"?");
    struct matcher *m = match(g);
    struct grammar_stats st;
    for (int i = 0; i < 3000; i++)
        assert_int_equal(matcher_accept(m, 'a'), SL_OK);
    grammar_get_stats(g, &st);
    assert_true(st.cache_bytes < (size_t)256 << 20);
    matcher_destroy(&m);
    grammar_unref(&g);
}

static void rollback_clone_and_sync(void **state)
{
    (void)state;
    struct grammar *g = compile(JS, person);
    struct matcher *m = match(g), *c = NULL;
    struct sl_err err = {0};
    const char *text = "{\"name\": \"ab\"}";
    int32_t tokens[64];
    int n = (int)strlen(text);
    for (int i = 0; i < n; i++)
        tokens[i] = (unsigned char)text[i];
    assert_int_equal(matcher_sync(m, tokens, n), SL_OK);
    assert_true(matcher_is_done(m));
    assert_int_equal(matcher_clone(&c, m, &err), SL_OK);
    matcher_rollback(m, 2);
    assert_false(matcher_may_end(m));
    assert_true(matcher_is_done(c));
    assert_int_equal(matcher_accept(m, 'c'), SL_OK);
    assert_int_equal(matcher_sync(m, tokens, n), SL_OK); /* another end after the same beginning */
    assert_true(matcher_is_done(m));
    tokens[3] = 'X';
    assert_int_equal(matcher_sync(m, tokens, n), SL_EINVAL);
    assert_int_equal(matcher_length(m), 3);
    assert_int_equal(matcher_accept(c, EOS), SL_OK);
    assert_true(matcher_is_done(c));
    matcher_destroy(&m);
    matcher_destroy(&c);
    grammar_unref(&g);
}

/* The cache of a grammar is dropped when it grew too large, in the middle of an output. */
static void long_outputs_outlive_the_cache(void **state)
{
    (void)state;
    struct grammar *g = compile(GRAMMAR_EBNF, "root ::= [ab]{0,100000} \"c\"");
    struct matcher *m = match(g), *early = match(g);
    assert_true(accepts_bytes(early, "ab", 2));
    for (int i = 0; i < 99000; i++)
        assert_int_equal(matcher_accept(m, i % 3 ? 'a' : 'b'), SL_OK);
    assert_int_equal(matcher_length(m), 99000);
    assert_true(accepts_bytes(m, "c", 1));
    assert_true(matcher_is_done(m));
    assert_true(accepts_bytes(early, "bac", 3));
    assert_true(matcher_is_done(early));
    matcher_destroy(&m);
    matcher_destroy(&early);
    grammar_unref(&g);
}

static void grammars_are_cached(void **state)
{
    (void)state;
    struct grammar_lib_stats a, b;
    struct grammar *x = compile(JS, "{\"type\":\"integer\",\"minimum\":77}");
    grammar_lib_stats(lib, &a);
    struct grammar *y = compile(JS, "{\"type\":\"integer\",\"minimum\":77}");
    grammar_lib_stats(lib, &b);
    assert_ptr_equal(x, y);
    assert_int_equal(b.n_hits, a.n_hits + 1);
    assert_int_equal(b.n_compiled, a.n_compiled);
    grammar_unref(&x);
    grammar_unref(&y);
    for (int i = 0; i < 600; i++) { /* more than are kept */
        char text[64];
        snprintf(text, sizeof text, "x{%d}", i % 100 + i);
        x = compile(GRAMMAR_REGEX, text);
        grammar_unref(&x);
    }
    grammar_lib_stats(lib, &b);
    assert_true(b.n_cached <= 256);
}

/* Every allocation fails once: an error each time, nothing lost. */
static void failing_allocations(void **state)
{
    (void)state;
    int n_failed = 0;
    for (long n = 1;; n++) {
        struct grammar_lib *own = NULL;
        struct grammar_spec spec = spec_of(JS, person);
        struct grammar *g = NULL;
        struct matcher *m = NULL;
        struct sl_err err = {0};
        uint32_t bits[N_VOCAB / 32 + 1];
        int n_allowed;
        int32_t forced;
        mem_fail_nth(n);
        enum sl_status st = grammar_lib_create(&own, &vocab, EOS, &err);
        if (!st)
            st = grammar_compile(own, &spec, &g, &err);
        if (!st)
            st = matcher_create(&m, g, stops, 1, &err);
        for (const char *s = "{\"name\": \"b"; !st && *s; s++) {
            st = matcher_accept(m, (unsigned char)*s);
            if (!st)
                st = matcher_mask(m, bits, N_VOCAB / 32 + 1, &n_allowed, &forced);
        }
        mem_fail_nth(0);
        assert_true(st == SL_OK || st == SL_ENOMEM);
        matcher_destroy(&m);
        grammar_unref(&g);
        grammar_lib_destroy(&own);
        if (!st && n > 400)
            break;
        n_failed += st != SL_OK;
        if (n > 200)
            n += n / 50;
    }
    assert_true(n_failed > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_are_what_brute_force_says),
        cmocka_unit_test(regular_expressions),
        cmocka_unit_test(gbnf),
        cmocka_unit_test(lark),
        cmocka_unit_test(structural_tags),
        cmocka_unit_test(special_tokens_begin_tags),
        cmocka_unit_test(schema_scalars),
        cmocka_unit_test(schema_composition),
        cmocka_unit_test(schema_containers),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(ambiguity_is_bounded),
        cmocka_unit_test(rollback_clone_and_sync),
        cmocka_unit_test(long_outputs_outlive_the_cache),
        cmocka_unit_test(grammars_are_cached),
        cmocka_unit_test(failing_allocations),
    };
    return cmocka_run_group_tests(tests, make_lib, free_lib);
}
