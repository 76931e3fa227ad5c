/* What `format` asks of a string, as regular expressions.
 *
 * Each is within its RFC, and strict where validators differ: times have an offset, days exist in
 * their months, domains have a dot, URIs have an authority.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/schema.h"

#include <string.h>

#define YEAR_LEAP "([0-9][0-9](0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
#define YEAR "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
#define DATE                                                                                  \
    "(" YEAR "-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|" \
    "02-(0[1-9]|1[0-9]|2[0-8]))|" YEAR_LEAP "-02-29)"
#define TIME                                                               \
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01]" \
    "[0-9]|2[0-3]):[0-5][0-9])"
#define N "[0-9]{1,9}"
#define DUR_TIME "T(" N "H(" N "M(" N "S)?)?|" N "M(" N "S)?|" N "S)"
#define DURATION \
    "P((" N "Y(" N "M(" N "D)?)?|" N "M(" N "D)?|" N "D)(" DUR_TIME ")?|" DUR_TIME "|" N "W)"
#define LABEL(n) "[A-Za-z0-9]([A-Za-z0-9-]{0," n "}[A-Za-z0-9])?"
/* at most 253 characters: few long labels, or more short ones */
#define HOST "((" LABEL("61") "\\.){0,2}" LABEL("61") "|(" LABEL("28") "\\.){0,7}" LABEL("28") ")"
#define DOTTED "((" LABEL("61") "\\.){1,2}" LABEL("61") "|(" LABEL("28") "\\.){1,7}" LABEL("28") ")"
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
#define OCTET "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define IPV4 "(" OCTET "\\.){3}" OCTET
#define H "[0-9A-Fa-f]{1,4}"
#define IPV6                                                                                \
    "((" H ":){7}" H "|(" H ":){1,7}:|(" H ":){1,6}:" H "|(" H ":){1,5}(:" H "){1,2}|(" H   \
    ":){1,4}(:" H "){1,3}|(" H ":){1,3}(:" H "){1,4}|(" H ":){1,2}(:" H "){1,5}|" H ":(:" H \
    "){1,6}|:(:" H "){1,7}|::|(" H ":){6}" IPV4 "|::(" H ":){0,5}" IPV4 "|(" H ":){1,4}:" IPV4 ")"
#define PCHAR "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
#define PCHAR_NC "([A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})" /* without a colon */
#define QUERY "(\\?(" PCHAR "|[/?])*)?(#(" PCHAR "|[/?])*)?"
#define AUTHORITY                                                                                 \
    "(([A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|" \
    "\\[" IPV6 "\\])(:[0-9]{1,5})?"
#define URI "[a-z][a-z0-9+.-]*://" AUTHORITY "(/" PCHAR "*)*" QUERY
#define URI_REF                                                                              \
    "(" URI "|//" AUTHORITY "(/" PCHAR "*)*" QUERY "|/(" PCHAR "+(/" PCHAR "*)*)?" QUERY "|" \
    "(" PCHAR_NC "+(/" PCHAR "*)*)?" QUERY ")"
#define VARNAME "([A-Za-z0-9_]|%[0-9A-Fa-f]{2})+"
#define VARSPEC VARNAME "(\\*|:[1-9][0-9]{0,3})?"

static const struct {
    const char *name, *regex;
} formats[] = {
    {"date-time", DATE "T" TIME},
    {"date", DATE},
    {"time", TIME},
    {"duration", DURATION},
    {"email", ATOM "{1,30}(\\." ATOM "{1,30})?@" DOTTED},
    {"idn-email", ATOM "{1,30}(\\." ATOM "{1,30})?@" DOTTED},
    {"hostname", HOST},
    {"idn-hostname", HOST},
    {"ipv4", IPV4},
    {"ipv6", IPV6},
    {"uri", URI},
    {"iri", URI},
    {"url", URI},
    {"uri-reference", URI_REF},
    {"iri-reference", URI_REF},
    {"uri-template", URI "|([A-Za-z0-9._~/-]|\\{[+#./;?&]?" VARSPEC "(," VARSPEC ")*\\})*"},
    {"uuid", "[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"},
    {"json-pointer", "(/([^~/]|~[01])*)*"},
    {"relative-json-pointer", "(0|[1-9][0-9]{0,8})(#|(/([^~/]|~[01])*)*)"},
};

const struct fsm *schema_format(struct schema *c, const json_t *s, const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(formats[i].name, name) == 0)
            return regex_fsm(c->w, formats[i].regex, strlen(formats[i].regex), false);
    schema_refuse(c, s, "format", "'%s' cannot be enforced", name);
    return NULL;
}
