/* SPDX-License-Identifier: Apache-2.0
 *
 * Texts to numbers, dates, and what is left of HTML and word wrapping. */
#include "text/jinja.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- int() and float()
 * --------------------------------------------------------------------------- */

/* Python lets white space stand around a number and single underscores between its digits. Other
 * scripts' digits count too. The result is ASCII; n is 0 where that fails. */
static char *plain_number(struct jrt *rt, const struct jstr *text, size_t *n)
{
    struct jstr *s = jstr_strip(rt, jstrv((struct jstr *)text), JMISSING, true, true).s;
    char *out = jalloc(rt, s->n + 1, 1);
    uint32_t cp, before = 0;
    *n = 0;
    for (size_t i = 0; i < s->n;) {
        i += juni_decode(s->p + i, s->n - i, &cp);
        int digit;
        if (cp == '_') {
            bool ok = before && before != '_' && before < 0x80 && i < s->n && s->p[i] != '_' &&
                      ((before >= '0' && before <= '9') ||
                       ((before | 32) >= 'a' && (before | 32) <= 'z'));
            if (!ok)
                return *n = 0, out;
        } else if (cp < 0x80) {
            out[(*n)++] = (char)cp;
        } else if (juni_decimal(cp, &digit)) {
            out[(*n)++] = (char)('0' + digit);
            cp = '0';
        } else {
            return *n = 0, out;
        }
        before = cp;
    }
    return out;
}

static bool parse_int(struct jrt *rt, const struct jstr *text, int64_t base, struct jval *out)
{
    size_t n;
    if (base != 0 && (base < 2 || base > 36))
        return false;
    char *p = plain_number(rt, text, &n);
    bool negative = n && *p == '-';
    size_t sign = n && (*p == '-' || *p == '+');
    p += sign;
    n -= sign;
    if (n > 2 && *p == '0') {
        char b = (char)(p[1] | 32);
        int64_t named = b == 'x' ? 16 : b == 'o' ? 8 : b == 'b' ? 2 : 0;
        if (named && (base == named || base == 0)) {
            base = named;
            p += 2;
            n -= 2;
        }
    }
    bool zeros = base == 0 && n > 1 && *p == '0';
    if (base == 0)
        base = 10;
    for (size_t i = 0; i < n; i++) {
        int d = p[i] >= '0' && p[i] <= '9'                 ? p[i] - '0'
                : (p[i] | 32) >= 'a' && (p[i] | 32) <= 'z' ? (p[i] | 32) - 'a' + 10
                                                           : 99;
        if (d >= base || (zeros && d))
            return false;
    }
    if (!n)
        return false;
    if (n > 4300 && (base & (base - 1)))
        return false;
    *out = jbig_parse(rt, p, n, (int)base, negative);
    return true;
}

static bool parse_float(struct jrt *rt, const struct jstr *text, double *out)
{
    size_t n;
    char *p = plain_number(rt, text, &n);
    bool ok;
    for (size_t i = 0; i < n; i++) /* no hexadecimal, no nan(...) */
        if (!((p[i] >= '0' && p[i] <= '9') || strchr("+-.eEinfatyINFATY", p[i])) || !p[i])
            return false;
    *out = jstrtod(p, n, &ok);
    return ok;
}

struct jval jto_int(struct jrt *rt, struct jval v, struct jval fallback, int64_t base)
{
    double f;
    struct jval out;
    switch (v.kind) {
    case J_BOOL:
        return jint(v.b);
    case J_INT:
    case J_BIG:
        return v;
    case J_FLOAT:
        if (isnan(v.f))
            return fallback;
        if (isinf(v.f))
            jfail(rt, JERR_VALUE, "cannot convert float infinity to integer");
        return jbig_from_double(rt, v.f);
    case J_STR:
        if (parse_int(rt, v.s, base, &out))
            return out;
        if (!parse_float(rt, v.s, &f) || !isfinite(f))
            return fallback;
        return jbig_from_double(rt, f);
    case J_UNDEF:
        jfail_undef(rt, v);
    default:
        return fallback;
    }
}

struct jval jto_float(struct jrt *rt, struct jval v, struct jval fallback)
{
    double f;
    if (jis_number(v))
        return jfloat(jnumber(rt, v));
    if (v.kind == J_UNDEF)
        jfail_undef(rt, v);
    return v.kind == J_STR && parse_float(rt, v.s, &f) ? jfloat(f) : fallback;
}

/* ---- dates ---------------------------------------------------------------------------------- */

static bool parse_now(const char *now, struct tm *tm)
{
    int n = 0;
    if (sscanf(now, "%4d-%2d-%2dT%2d:%2d:%2d%n", &tm->tm_year, &tm->tm_mon, &tm->tm_mday,
               &tm->tm_hour, &tm->tm_min, &tm->tm_sec, &n) != 6 ||
        tm->tm_mon < 1 || tm->tm_mon > 12 || tm->tm_mday < 1 || tm->tm_mday > 31 ||
        tm->tm_hour > 23 || tm->tm_min > 59 || tm->tm_sec > 59)
        return false;
    tm->tm_year -= 1900;
    tm->tm_mon--;
    struct tm utc = *tm;
    (void)timegm(&utc); /* for the day of the week and of the year */
    tm->tm_wday = utc.tm_wday;
    tm->tm_yday = utc.tm_yday;
    return true;
}

struct jval jstrftime(struct jrt *rt, struct jval fmt)
{
    struct tm tm = {0};
    if (fmt.kind != J_STR)
        jfail(rt, JERR_TYPE, "strftime() argument 1 must be str, not %s", jtype(fmt));
    if (rt->now) {
        if (!parse_now(rt->now, &tm))
            jfail(rt, JERR_VALUE, "the time '%s' is not of the form YYYY-MM-DDTHH:MM:SS", rt->now);
    } else {
        time_t t = time(NULL);
        if (!localtime_r(&t, &tm))
            jfail(rt, JERR_VALUE, "the clock cannot be read");
    }
    struct jbuild b = {.rt = rt};
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    jstep_bytes(rt, fmt.s->n * 16);
    for (size_t i = 0; i < fmt.s->n; i++) {
        char one[4] = {'%', 0, 0, 0}, text[64];
        if (fmt.s->p[i] != '%' || i + 1 == fmt.s->n) {
            jb_addc(&b, fmt.s->p[i]);
            continue;
        }
        one[1] = fmt.s->p[++i];
        if (one[1] == 'f') /* what datetime.now() knows beyond C's struct tm */
            jb_adds(&b, "000000");
        else if (one[1] == '-' && i + 1 < fmt.s->n)
            one[2] = fmt.s->p[++i];
        if (one[1] == 'f' || one[1] == 'z' || one[1] == 'Z' || !c)
            continue;
        jb_add(&b, text, strftime_l(text, sizeof text, one, &tm, c));
    }
    if (c)
        freelocale(c);
    return jstrv(jb_done(&b));
}

/* ---- HTML ----------------------------------------------------------------------------------- */

static void drop_between(char *p, size_t *n, const char *open, const char *close)
{
    size_t m = strlen(open), k = strlen(close), from = 0, to = 0, at;
    while ((at = jmem_find(p + from, *n - from, open, m)) != SIZE_MAX) {
        size_t end = jmem_find(p + from + at, *n - from - at, close, k);
        if (end == SIZE_MAX)
            break;
        memmove(p + to, p + from, at);
        to += at;
        from += at + end + k;
    }
    memmove(p + to, p + from, *n - from);
    *n = to + *n - from;
}

static size_t entity(const char *p, size_t n, struct jbuild *b)
{
    static const struct {
        const char *name;
        uint32_t cp;
    } names[] = {{"amp", '&'},   {"lt", '<'},    {"gt", '>'},       {"quot", '"'},
                 {"apos", '\''}, {"nbsp", 0xa0}, {"raquo", 0xbb},   {"laquo", 0xab},
                 {"copy", 0xa9}, {"reg", 0xae},  {"hellip", 0x2026}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t m = strlen(names[i].name);
        if (n > m + 1 && !memcmp(p + 1, names[i].name, m) && p[m + 1] == ';') {
            jb_cp(b, names[i].cp);
            return m + 2;
        }
    }
    if (n < 4 || p[1] != '#')
        return 0;
    bool hex = (p[2] | 32) == 'x';
    uint32_t cp = 0;
    size_t at = hex ? 3 : 2, first = at;
    for (; at < n && at < first + 8; at++) {
        int d = p[at] >= '0' && p[at] <= '9'                        ? p[at] - '0'
                : hex && (p[at] | 32) >= 'a' && (p[at] | 32) <= 'f' ? (p[at] | 32) - 'a' + 10
                                                                    : -1;
        if (d < 0)
            break;
        cp = cp * (hex ? 16 : 10) + (uint32_t)d;
    }
    if (at == first || at >= n || p[at] != ';' || !cp || cp > 0x10ffff ||
        (cp >= 0xd800 && cp < 0xe000))
        return 0;
    jb_cp(b, cp);
    return at + 1;
}

struct jval jstrip_tags(struct jrt *rt, struct jval v)
{
    struct jstr *s = jto_str(rt, v);
    char *p = jalloc(rt, s->n + 1, 1);
    size_t n = s->n;
    memcpy(p, s->p, n);
    jstep_bytes(rt, n * 8);
    drop_between(p, &n, "<!--", "-->");
    drop_between(p, &n, "<", ">");
    struct jval words = jstr_method(rt, jstrv(jstr_view(rt, p, n)), JM_split, &(struct jargs){0});
    s = jstr_join(rt, jstr_lit(rt, " "), words, true).s;
    struct jbuild b = {.rt = rt};
    for (size_t i = 0; i < s->n;) {
        size_t m = s->p[i] == '&' ? entity(s->p + i, s->n - i, &b) : 0;
        if (!m)
            jb_addc(&b, s->p[i++]);
        i += m;
    }
    return jstrv(jb_done(&b));
}
