/* SPDX-License-Identifier: Apache-2.0
 *
 * Unicode as Python's str methods see it. Categories and simple case pairs come from utf8proc; what
 * it leaves out (mappings to several characters, title case of those, numeric classes) is in the
 * tables here. */
#include "text/jinja.h"

#include <string.h>
#include <utf8proc.h>

size_t juni_decode(const char *p, size_t n, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)p;
    size_t len = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (len > n || s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    uint32_t c = s[0] & (0xff >> (len + 1));
    for (size_t i = 1; i < len; i++)
        c = c << 6 | (s[i] & 0x3f);
    *cp = c;
    return len;
}

size_t juni_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len; i-- > 1; cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)((0xf00 >> len) | cp);
    return len;
}

bool juni_valid(const char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        if ((unsigned char)p[i] < 0x80) {
            i++;
            continue;
        }
        utf8proc_int32_t cp;
        utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)p + i,
                                                (utf8proc_ssize_t)(n - i < 4 ? n - i : 4), &cp);
        if (len <= 0)
            return false;
        i += (size_t)len;
    }
    return true;
}

bool juni_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x1f);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool juni_alpha(uint32_t cp)
{
    if (cp < 0x80)
        return (cp | 32) >= 'a' && (cp | 32) <= 'z';
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool juni_decimal(uint32_t cp, int *digit)
{
    if (cp < 0x80) {
        *digit = (int)cp - '0';
        return cp >= '0' && cp <= '9';
    }
    if (category(cp) != UTF8PROC_CATEGORY_ND)
        return false;
    /* Decimal digits come in runs of ten; the mathematical ones in five runs from one start. */
    uint32_t first = cp;
    if (cp >= 0x1d7ce && cp <= 0x1d7ff) {
        *digit = (int)((cp - 0x1d7ce) % 10);
        return true;
    }
    while (cp - first < 9 && category(first - 1) == UTF8PROC_CATEGORY_ND)
        first--;
    *digit = (int)(cp - first);
    return true;
}

bool juni_digit(uint32_t cp)
{
    static const uint32_t extra[][2] = {
        {0xb2, 0xb3},       {0xb9, 0xb9},       {0x1369, 0x1371},   {0x19da, 0x19da},
        {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
        {0x2474, 0x247c},   {0x2488, 0x2490},   {0x24ea, 0x24ea},   {0x24f5, 0x24fd},
        {0x24ff, 0x24ff},   {0x2776, 0x277e},   {0x2780, 0x2788},   {0x278a, 0x2792},
        {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a}};
    int d;
    if (juni_decimal(cp, &d))
        return true;
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++)
        if (cp >= extra[i][0] && cp <= extra[i][1])
            return true;
    return false;
}

bool juni_printable(uint32_t cp)
{
    if (cp < 0x7f)
        return cp >= 0x20;
    utf8proc_category_t c = category(cp);
    return c != UTF8PROC_CATEGORY_CN && !(c >= UTF8PROC_CATEGORY_ZS && c <= UTF8PROC_CATEGORY_CO);
}

bool juni_title(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LT;
}

bool juni_id_start(uint32_t cp)
{
    if (cp < 0x80)
        return cp == '_' || juni_alpha(cp);
    return juni_alpha(cp) || category(cp) == UTF8PROC_CATEGORY_NL || cp == 0x2118 || cp == 0x212e;
}

bool juni_id_continue(uint32_t cp)
{
    if (cp < 0x80)
        return juni_id_start(cp) || (cp >= '0' && cp <= '9');
    utf8proc_category_t c = category(cp);
    return juni_id_start(cp) || c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_MN ||
           c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_PC || cp == 0xb7;
}

/* ---- case ----------------------------------------------------------------------------------- */

#include "text/jinja_case.inc"

static bool in_ranges(const uint32_t (*r)[2], size_t n, uint32_t cp)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > r[mid][1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && cp >= r[lo][0];
}
#define IN(ranges, cp) in_ranges(ranges, sizeof ranges / sizeof *ranges, cp)

bool juni_lower(uint32_t cp)
{
    if (cp < 0x80)
        return cp >= 'a' && cp <= 'z';
    return category(cp) == UTF8PROC_CATEGORY_LL || IN(other_lower, cp);
}

bool juni_upper(uint32_t cp)
{
    if (cp < 0x80)
        return cp >= 'A' && cp <= 'Z';
    return category(cp) == UTF8PROC_CATEGORY_LU || IN(other_upper, cp);
}

bool juni_cased(uint32_t cp)
{
    return juni_lower(cp) || juni_upper(cp) || juni_title(cp);
}

bool juni_numeric(uint32_t cp)
{
    if (cp < 0x80)
        return cp >= '0' && cp <= '9';
    utf8proc_category_t c = category(cp);
    return (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO) || IN(numeric_letters, cp);
}

bool juni_ignorable(uint32_t cp)
{
    static const uint32_t more[] = {'\'',   '.',    ':',    0xb7,   0x387,  0x55f,
                                    0x5f4,  0x2018, 0x2019, 0x2024, 0x2027, 0xfe13,
                                    0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        if (more[i] == cp)
            return true;
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_SK;
}

int juni_map(uint32_t cp, enum juni_case how, uint32_t out[3])
{
    if (cp < 0x80) {
        bool up = how == JCASE_UPPER || how == JCASE_TITLE;
        out[0] =
            up ? (cp >= 'a' && cp <= 'z' ? cp - 32 : cp) : (cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
        return 1;
    }
    size_t lo = 0, hi = sizeof case_maps / sizeof *case_maps;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (case_maps[mid].how < how || (case_maps[mid].how == how && case_maps[mid].from < cp))
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < sizeof case_maps / sizeof *case_maps && case_maps[lo].how == how &&
        case_maps[lo].from == cp) {
        memcpy(out, case_maps[lo].to, sizeof case_maps[lo].to);
        return out[2] ? 3 : out[1] ? 2 : 1;
    }
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    out[0] = (uint32_t)(how == JCASE_UPPER   ? utf8proc_toupper(c)
                        : how == JCASE_TITLE ? utf8proc_totitle(c)
                                             : utf8proc_tolower(c));
    return 1;
}
