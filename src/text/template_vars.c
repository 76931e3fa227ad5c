/* SPDX-License-Identifier: Apache-2.0
 *
 * Python's json module reads two things that jansson does not: integers outside int64, and keys
 * with NUL in them. The first are rewritten as {JINJA_BIG_KEY: "digits"}, the second escaped behind
 * JINJA_KEY_PREFIX, before jansson sees the text. */
#include "text/jinja.h"

#include <string.h>

static size_t string_end(const char *p, size_t n, size_t at)
{
    for (at++; at < n && p[at] != '"'; at++)
        at += p[at] == '\\';
    return at < n ? at + 1 : n;
}

static size_t number_end(const char *p, size_t n, size_t at, bool *integer)
{
    *integer = true;
    for (at += p[at] == '-'; at < n; at++) {
        if (p[at] == '.' || p[at] == 'e' || p[at] == 'E' || p[at] == '+' || p[at] == '-')
            *integer = false;
        else if (p[at] < '0' || p[at] > '9')
            break;
    }
    return at;
}

static bool fits(const char *p, size_t n)
{
    size_t sign = n && *p == '-';
    if (n - sign != 19)
        return n - sign < 19;
    return memcmp(p + sign, sign ? "9223372036854775808" : "9223372036854775807", 19) <= 0;
}

static bool is_escape(const char *p, size_t n, const char *escape)
{
    return n >= 6 && !memcmp(p, escape, 6);
}

/* from..to is a string with its quotes: a key with a NUL in it? */
static bool is_nul_key(const char *p, size_t n, size_t from, size_t to)
{
    bool nul = false;
    for (size_t i = from + 1; i < to; i++) {
        nul |= is_escape(p + i, to - i, "\\u0000");
        i += p[i] == '\\';
    }
    while (nul && to < n && strchr(" \t\n\r", p[to]) && p[to])
        to++;
    return nul && to < n && p[to] == ':';
}

static void add_nul_key(struct strbuf *b, const char *p, size_t from, size_t to)
{
    strbuf_adds(b, "\"\\u0001key:");
    for (size_t i = from + 1; i < to; i++) {
        bool nul = is_escape(p + i, to - i, "\\u0000");
        if (nul || is_escape(p + i, to - i, "\\u0001")) {
            strbuf_adds(b, nul ? "\\u00010" : "\\u00011");
            i += 5;
            continue;
        }
        strbuf_addc(b, p[i]);
        if (p[i] == '\\' && i + 1 < to)
            strbuf_addc(b, p[++i]);
    }
}

json_t *template_vars_parse(const char *json, size_t bytes, struct sl_err *err)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    size_t kept = 0;
    for (size_t at = 0; at < bytes;) {
        if (json[at] == '"') {
            size_t end = string_end(json, bytes, at);
            if (is_nul_key(json, bytes, at, end)) {
                strbuf_add(&b, json + kept, at - kept);
                add_nul_key(&b, json, at, end);
                kept = end;
            }
            at = end;
        } else if (json[at] == '-' || (json[at] >= '0' && json[at] <= '9')) {
            bool integer;
            size_t end = number_end(json, bytes, at, &integer);
            if (integer && !fits(json + at, end - at)) {
                strbuf_add(&b, json + kept, at - kept);
                strbuf_adds(&b, "{\"\\u0001integer\":\"");
                strbuf_add(&b, json + at, end - at);
                strbuf_adds(&b, "\"}");
                kept = end;
            }
            at = end;
        } else {
            at++;
        }
    }
    json_error_t e;
    json_t *vars = NULL;
    if (!kept) {
        vars = json_loadb(json, bytes, JSON_ALLOW_NUL, &e);
    } else {
        strbuf_add(&b, json + kept, bytes - kept);
        if (!b.failed)
            vars = json_loadb(b.data, b.len, JSON_ALLOW_NUL, &e);
    }
    if (b.failed)
        (void)SL_FAIL(err, SL_ENOMEM, "no memory for the template's variables");
    else if (!vars)
        (void)SL_FAIL(err, SL_EINVAL, "invalid JSON: %s (line %d, column %d)", e.text, e.line,
                      e.column);
    else if (!json_is_object(vars)) {
        json_decref(vars);
        vars = NULL;
        (void)SL_FAIL(err, SL_EINVAL, "the template's variables must be a JSON object");
    }
    strbuf_fini(&b);
    return vars;
}
