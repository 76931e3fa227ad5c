/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/pyrepr.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void pyrepr_float(struct strbuf *b, float v)
{
    if (isnan(v) || isinf(v)) {
        strbuf_adds(b, isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
        return;
    }
    char digits[48];
    int precision = 0; /* digits after the first one */
    do
        snprintf(digits, sizeof digits, "%.*e", precision, (double)v);
    while (strtof(digits, NULL) != v && ++precision < 9);
    int exponent = (int)strtol(strchr(digits, 'e') + 1, NULL, 10);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        snprintf(digits, sizeof digits, "%.*f", decimals > 0 ? decimals : 1, (double)v);
    }
    strbuf_adds(b, digits);
}

void pyrepr_str(struct strbuf *b, const char *s)
{
    char quote = strchr(s, '\'') && !strchr(s, '"') ? '"' : '\'';
    strbuf_addc(b, quote);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == (unsigned char)quote || c == '\\')
            strbuf_addf(b, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            strbuf_adds(b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (c < 0x20 || c == 0x7f)
            strbuf_addf(b, "\\x%02x", c);
        else
            strbuf_addc(b, (char)c);
    }
    strbuf_addc(b, quote);
}

void pyrepr_strs(struct strbuf *b, const char *const *s, int n)
{
    strbuf_addc(b, '[');
    for (int i = 0; i < n; i++) {
        if (i)
            strbuf_adds(b, ", ");
        pyrepr_str(b, s[i]);
    }
    strbuf_addc(b, ']');
}

void pyrepr_ints(struct strbuf *b, const int32_t *v, int n)
{
    strbuf_addc(b, '[');
    for (int i = 0; i < n; i++)
        strbuf_addf(b, i ? ", %d" : "%d", (int)v[i]);
    strbuf_addc(b, ']');
}
