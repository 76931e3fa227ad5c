/* SPDX-License-Identifier: Apache-2.0
 *
 * str's methods. Positions count code points; searching works on bytes, which is the same thing in
 * UTF-8. A Markup string gives Markup back. */
#include "text/jinja.h"

#include <string.h>

size_t jmem_find(const char *hay, size_t n, const char *needle, size_t m)
{
    if (!m)
        return 0;
    const char *p = n ? memmem(hay, n, needle, m) : NULL;
    return p ? (size_t)(p - hay) : SIZE_MAX;
}

/* Plain search from the right; a text and a needle made to be slow are paid for in steps. */
static size_t rfind(struct jrt *rt, const char *hay, size_t n, const char *needle, size_t m)
{
    for (size_t i = n >= m ? n - m + 1 : 0; i-- > 0;) {
        if (m && hay[i] != *needle)
            continue;
        jstep_bytes(rt, m);
        if (!memcmp(hay + i, needle, m))
            return i;
    }
    return SIZE_MAX;
}

static struct jval like(struct jval self, struct jstr *s)
{
    struct jval v = jstrv(s);
    v.markup = self.markup;
    return v;
}

static struct jstr *piece(struct jrt *rt, const struct jstr *s, size_t from, size_t to)
{
    struct jstr *p = jstr_view(rt, s->p + from, to - from);
    p->in = s->in;
    if (s->chars == s->n)
        p->chars = p->n;
    return p;
}

static struct jstr *need_str(struct jrt *rt, struct jval v, const char *what)
{
    if (v.kind == J_UNDEF)
        jfail(rt, JERR_TYPE, "%s must be str, not Undefined", what);
    if (v.kind != J_STR)
        jfail(rt, JERR_TYPE, "%s must be str, not %s", what, jtype(v));
    return v.s;
}

static int64_t opt_int(struct jrt *rt, struct jval v, int64_t fallback, const char *what)
{
    if (v.kind == J_BIG)
        return jbig_negative(v) ? INT64_MIN / 4 : INT64_MAX / 4;
    return v.kind == J_MISSING ? fallback : jneed_int(rt, v, what);
}

/* ---- strip
 * ---------------------------------------------------------------------------------------- */

static bool in_set(const struct jstr *set, const char *p, size_t n)
{
    for (size_t i = 0; i < set->n;) {
        uint32_t cp;
        size_t m = juni_decode(set->p + i, set->n - i, &cp);
        if (m == n && !memcmp(set->p + i, p, n))
            return true;
        i += m;
    }
    return false;
}

static bool strips(const struct jstr *set, const char *p, size_t n, uint32_t cp)
{
    return set ? in_set(set, p, n) : juni_space(cp);
}

struct jval jstr_strip(struct jrt *rt, struct jval self, struct jval chars, bool left, bool right)
{
    const struct jstr *s = self.s, *set = NULL;
    if (chars.kind != J_MISSING && chars.kind != J_NONE)
        set = need_str(rt, chars, "strip arg");
    size_t from = 0, to = s->n, n;
    uint32_t cp;
    for (; left && from < to; from += n) {
        n = juni_decode(s->p + from, to - from, &cp);
        if (!strips(set, s->p + from, n, cp))
            break;
        jstep(rt, 1 + (set ? set->n / 8 : 0));
    }
    while (right && to > from) {
        size_t at = to - 1;
        while (at > from && (s->p[at] & 0xc0) == 0x80)
            at--;
        n = juni_decode(s->p + at, to - at, &cp);
        if (!strips(set, s->p + at, n, cp))
            break;
        jstep(rt, 1 + (set ? set->n / 8 : 0));
        to = at;
    }
    return like(self, piece(rt, s, from, to));
}

/* ---- case
 * ------------------------------------------------------------------------------------------- */

/* Greek: a sigma that ends a word has a lower case of its own. */
static bool final_sigma(const struct jstr *s, size_t at, size_t n)
{
    bool before = false, after = false;
    uint32_t cp;
    for (size_t i = at; i > 0 && !before;) {
        do
            i--;
        while (i > 0 && (s->p[i] & 0xc0) == 0x80);
        juni_decode(s->p + i, s->n - i, &cp);
        if (juni_ignorable(cp))
            continue;
        before = juni_cased(cp);
        break;
    }
    for (size_t i = at + n; i < s->n;) {
        i += juni_decode(s->p + i, s->n - i, &cp);
        if (juni_ignorable(cp))
            continue;
        after = juni_cased(cp);
        break;
    }
    return before && !after;
}

static void add_case(struct jbuild *b, const struct jstr *s, size_t at, size_t n, uint32_t cp,
                     enum juni_case how)
{
    uint32_t out[3];
    if (cp == 0x3a3 && how == JCASE_LOWER) {
        jb_cp(b, final_sigma(s, at, n) ? 0x3c2 : 0x3c3);
        return;
    }
    int m = juni_map(cp, how, out);
    for (int i = 0; i < m; i++)
        jb_cp(b, out[i]);
}

struct jval jstr_case(struct jrt *rt, struct jval self, int id)
{
    const struct jstr *s = self.s;
    struct jbuild b = {.rt = rt};
    bool in_word = false;
    jstep_bytes(rt, s->n * 4);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        size_t n = juni_decode(s->p + i, s->n - i, &cp);
        enum juni_case how = JCASE_LOWER;
        if (id == JM_upper)
            how = JCASE_UPPER;
        else if (id == JM_casefold)
            how = JCASE_FOLD;
        else if (id == JM_capitalize && i == 0)
            how = JCASE_TITLE;
        else if (id == JM_title && !in_word)
            how = JCASE_TITLE;
        else if (id == JM_swapcase && !juni_upper(cp))
            how = juni_lower(cp) ? JCASE_UPPER : JCASE_LOWER;
        if (id == JM_swapcase && !juni_upper(cp) && !juni_lower(cp))
            jb_cp(&b, cp);
        else
            add_case(&b, s, i, n, cp, how);
        if (id == JM_title)
            in_word = juni_cased(cp);
        i += n;
    }
    return like(self, jb_done(&b));
}

/* ---- split
 * --------------------------------------------------------------------------------------------- */

static void push(struct jrt *rt, struct jlist *l, struct jval self, size_t from, size_t to)
{
    jlist_push(rt, l, like(self, piece(rt, self.s, from, to)));
}

static size_t space_end(const struct jstr *s, size_t at, bool spaces)
{
    while (at < s->n) {
        uint32_t cp;
        size_t n = juni_decode(s->p + at, s->n - at, &cp);
        if (juni_space(cp) != spaces)
            break;
        at += n;
    }
    return at;
}

static size_t space_begin(const struct jstr *s, size_t end, bool spaces)
{
    while (end > 0) {
        size_t at = end - 1;
        while (at > 0 && (s->p[at] & 0xc0) == 0x80)
            at--;
        uint32_t cp;
        juni_decode(s->p + at, s->n - at, &cp);
        if (juni_space(cp) != spaces)
            break;
        end = at;
    }
    return end;
}

static void split_spaces(struct jrt *rt, struct jval self, int64_t max, struct jlist *out)
{
    const struct jstr *s = self.s;
    size_t at = space_end(s, 0, true);
    while (at < s->n) {
        if (max == 0) {
            push(rt, out, self, at, s->n);
            return;
        }
        size_t end = space_end(s, at, false);
        push(rt, out, self, at, end);
        at = space_end(s, end, true);
        max -= max > 0;
    }
}

static void reverse_list(struct jlist *l)
{
    for (size_t i = 0, k = l->n; i + 1 < k; i++) {
        struct jval t = l->v[i];
        l->v[i] = l->v[--k];
        l->v[k] = t;
    }
}

static void rsplit_spaces(struct jrt *rt, struct jval self, int64_t max, struct jlist *out)
{
    const struct jstr *s = self.s;
    size_t end = space_begin(s, s->n, true);
    while (end > 0) {
        if (max == 0) {
            push(rt, out, self, 0, end);
            break;
        }
        size_t at = space_begin(s, end, false);
        push(rt, out, self, at, end);
        end = space_begin(s, at, true);
        max -= max > 0;
    }
    reverse_list(out);
}

static void split_sep(struct jrt *rt, struct jval self, const struct jstr *sep, int64_t max,
                      struct jlist *out)
{
    const struct jstr *s = self.s;
    size_t at = 0;
    for (; max != 0; max -= max > 0) {
        size_t i = jmem_find(s->p + at, s->n - at, sep->p, sep->n);
        if (i == SIZE_MAX)
            break;
        push(rt, out, self, at, at + i);
        at += i + sep->n;
    }
    push(rt, out, self, at, s->n);
}

static void rsplit_sep(struct jrt *rt, struct jval self, const struct jstr *sep, int64_t max,
                       struct jlist *out)
{
    const struct jstr *s = self.s;
    size_t end = s->n;
    for (; max != 0; max -= max > 0) {
        size_t i = rfind(rt, s->p, end, sep->p, sep->n);
        if (i == SIZE_MAX)
            break;
        push(rt, out, self, i + sep->n, end);
        end = i;
    }
    push(rt, out, self, 0, end);
    reverse_list(out);
}

static struct jval split(struct jrt *rt, struct jval self, const struct jargs *args, bool right)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, right ? "rsplit" : "split", "sep? maxsplit?", args, a);
    struct jlist *out = jlist_new(rt, 0);
    int64_t max = opt_int(rt, a[1], -1, "maxsplit");
    jstep_bytes(rt, self.s->n);
    if (a[0].kind == J_MISSING || a[0].kind == J_NONE) {
        (right ? rsplit_spaces : split_spaces)(rt, self, max, out);
        return jlistv(out);
    }
    const struct jstr *sep = need_str(rt, a[0], "separator");
    if (!sep->n)
        jfail(rt, JERR_VALUE, "empty separator");
    (right ? rsplit_sep : split_sep)(rt, self, sep, max, out);
    return jlistv(out);
}

static bool is_line_end(uint32_t cp)
{
    return (cp >= 10 && cp <= 13) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

struct jlist *jstr_splitlines(struct jrt *rt, struct jval self, bool keep_ends)
{
    const struct jstr *s = self.s;
    struct jlist *out = jlist_new(rt, 0);
    size_t from = 0;
    jstep_bytes(rt, s->n);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        size_t n = juni_decode(s->p + i, s->n - i, &cp);
        if (!is_line_end(cp)) {
            i += n;
            continue;
        }
        if (cp == '\r' && i + 1 < s->n && s->p[i + 1] == '\n')
            n = 2;
        push(rt, out, self, from, keep_ends ? i + n : i);
        from = i += n;
    }
    if (from < s->n)
        push(rt, out, self, from, s->n);
    return out;
}

static struct jval partition(struct jrt *rt, struct jval self, const struct jargs *args, bool right)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, right ? "rpartition" : "partition", "sep", args, a);
    const struct jstr *s = self.s, *sep = need_str(rt, a[0], "separator");
    if (!sep->n)
        jfail(rt, JERR_VALUE, "empty separator");
    jstep_bytes(rt, s->n);
    size_t at =
        right ? rfind(rt, s->p, s->n, sep->p, sep->n) : jmem_find(s->p, s->n, sep->p, sep->n);
    struct jlist *l = jlist_new(rt, 3);
    size_t from = at == SIZE_MAX ? (right ? 0 : s->n) : at;
    size_t to = at == SIZE_MAX ? from : at + sep->n;
    l->v[0] = like(self, piece(rt, s, 0, from));
    l->v[1] = like(self, piece(rt, s, from, to));
    l->v[2] = like(self, piece(rt, s, to, s->n));
    return jtuplev(l);
}

/* ---- find ----------------------------------------------------------------------------------- */

struct window { /* the part of the text that start and stop leave, in bytes */
    size_t from, to;
    bool empty;
};

static struct window window_of(struct jrt *rt, struct jstr *s, struct jval start, struct jval stop)
{
    int64_t n = (int64_t)jstr_chars(s);
    int64_t from = start.kind == J_NONE ? 0 : opt_int(rt, start, 0, "start");
    int64_t to = stop.kind == J_NONE ? n : opt_int(rt, stop, n, "end");
    from = from < 0 ? (from + n < 0 ? 0 : from + n) : from;
    to = to < 0 ? (to + n < 0 ? 0 : to + n) : to > n ? n : to;
    if (from > to)
        return (struct window){.empty = true};
    return (struct window){jstr_offset(s, (size_t)from), jstr_offset(s, (size_t)to), false};
}

static int64_t chars_before(const struct jstr *s, size_t at)
{
    int64_t n = 0;
    for (size_t i = 0; i < at; i++)
        n += (s->p[i] & 0xc0) != 0x80;
    return n;
}

static struct jval find(struct jrt *rt, struct jval self, const struct jargs *args, int id)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, jattr_name(id), "sub start? end?", args, a);
    const struct jstr *sub = need_str(rt, a[0], "argument");
    struct window w = window_of(rt, self.s, a[1], a[2]);
    jstep_bytes(rt, self.s->n * 2);
    size_t at = SIZE_MAX;
    const char *p = self.s->p + w.from;
    size_t n = w.to - w.from;
    if (!w.empty)
        at = id == JM_find || id == JM_index ? jmem_find(p, n, sub->p, sub->n)
                                             : rfind(rt, p, n, sub->p, sub->n);
    if (at == SIZE_MAX && (id == JM_index || id == JM_rindex))
        jfail(rt, JERR_VALUE, "substring not found");
    return jint(at == SIZE_MAX ? -1 : chars_before(self.s, w.from + at));
}

static struct jval count(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "count", "sub start? end?", args, a);
    struct jstr *sub = need_str(rt, a[0], "argument");
    struct window w = window_of(rt, self.s, a[1], a[2]);
    jstep_bytes(rt, self.s->n);
    if (w.empty)
        return jint(0);
    const char *p = self.s->p + w.from;
    size_t n = w.to - w.from, at;
    if (!sub->n) {
        int64_t chars = 1;
        for (size_t i = 0; i < n; i++)
            chars += (p[i] & 0xc0) != 0x80;
        return jint(chars);
    }
    int64_t found = 0;
    while ((at = jmem_find(p, n, sub->p, sub->n)) != SIZE_MAX) {
        found++;
        p += at + sub->n;
        n -= at + sub->n;
    }
    return jint(found);
}

static bool affix_is(const struct jstr *s, struct window w, const struct jstr *affix, bool at_end)
{
    size_t n = w.to - w.from;
    return affix->n <= n && !memcmp(s->p + (at_end ? w.to - affix->n : w.from), affix->p, affix->n);
}

static struct jval affix(struct jrt *rt, struct jval self, const struct jargs *args, bool at_end)
{
    struct jval a[JMAX_PARAMS];
    const char *fn = at_end ? "endswith" : "startswith";
    jbind(rt, fn, "prefix start? end?", args, a);
    struct window w = window_of(rt, self.s, a[1], a[2]);
    if (a[0].kind != J_TUPLE && a[0].kind != J_STR)
        jfail(rt, JERR_TYPE, "%s first arg must be str or a tuple of str, not %s", fn, jtype(a[0]));
    if (a[0].kind == J_STR)
        return jbool(!w.empty && affix_is(self.s, w, a[0].s, at_end));
    for (size_t i = 0; i < a[0].l->n; i++) {
        if (a[0].l->v[i].kind != J_STR)
            jfail(rt, JERR_TYPE, "tuple for %s must only contain str, not %s", fn,
                  jtype(a[0].l->v[i]));
        if (!w.empty && affix_is(self.s, w, a[0].l->v[i].s, at_end))
            return jbool(true);
    }
    return jbool(false);
}

static struct jval remove_affix(struct jrt *rt, struct jval self, const struct jargs *args,
                                bool at_end)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, at_end ? "removesuffix" : "removeprefix", "affix", args, a);
    const struct jstr *x = need_str(rt, a[0], "argument");
    if (!affix_is(self.s, (struct window){0, self.s->n, false}, x, at_end))
        return self;
    return like(self, at_end ? piece(rt, self.s, 0, self.s->n - x->n)
                             : piece(rt, self.s, x->n, self.s->n));
}

/* ---- replace, join, pad
 * --------------------------------------------------------------------------------- */

struct jval jstr_replace(struct jrt *rt, struct jval self, struct jval from_v, struct jval to_v,
                         int64_t max)
{
    const struct jstr *s = self.s, *from = need_str(rt, from_v, "replace() argument 1");
    if (self.markup)
        to_v = jescape(rt, to_v);
    const struct jstr *to = need_str(rt, to_v, "replace() argument 2");
    struct jbuild b = {.rt = rt};
    size_t at = 0;
    jstep_bytes(rt, s->n);
    for (int64_t done = 0; max < 0 || done < max; done++) {
        if (!from->n) { /* between all characters */
            jb_str(&b, to);
            if (at == s->n)
                break;
            uint32_t cp;
            size_t n = juni_decode(s->p + at, s->n - at, &cp);
            jb_add(&b, s->p + at, n);
            at += n;
            continue;
        }
        size_t i = jmem_find(s->p + at, s->n - at, from->p, from->n);
        if (i == SIZE_MAX)
            break;
        jstep_bytes(rt, to->n);
        jb_add(&b, s->p + at, i);
        jb_str(&b, to);
        at += i + from->n;
    }
    if (!at && !b.n)
        return self;
    jb_add(&b, s->p + at, s->n - at);
    return like(self, jb_done(&b));
}

struct jval jstr_join(struct jrt *rt, struct jval sep, struct jval items, bool to_str)
{
    struct jval it = jiter(rt, items), v;
    struct jbuild b = {.rt = rt};
    for (size_t i = 0; jnext(rt, it, &v); i++) {
        if (!to_str && v.kind != J_STR && !sep.markup)
            jfail(rt, JERR_TYPE, "sequence item %zu: expected str instance, %s found", i, jtype(v));
        if (i)
            jb_str(&b, sep.s);
        struct jstr *s = sep.markup ? jescape(rt, v).s : jto_str(rt, v);
        jstep_bytes(rt, s->n);
        jb_str(&b, s);
    }
    return like(sep, jb_done(&b));
}

static struct jval pad(struct jrt *rt, struct jval self, int64_t left, int64_t right,
                       const struct jstr *fill)
{
    if (left <= 0 && right <= 0)
        return self;
    struct jbuild b = {.rt = rt};
    if (left > 0)
        jb_fill(&b, fill->p, fill->n, (size_t)left);
    jb_str(&b, self.s);
    if (right > 0)
        jb_fill(&b, fill->p, fill->n, (size_t)right);
    return like(self, jb_done(&b));
}

static const struct jstr *fill_char(struct jrt *rt, struct jval v)
{
    if (v.kind == J_MISSING)
        return jstr_view(rt, " ", 1);
    struct jstr *s = need_str(rt, v, "the fill character");
    if (jstr_chars(s) != 1)
        jfail(rt, JERR_TYPE, "the fill character must be exactly one character long");
    return s;
}

struct jval jstr_center(struct jrt *rt, struct jval self, int64_t width, struct jval fill)
{
    int64_t n = (int64_t)jstr_chars(self.s), total = width > n ? width - n : 0;
    int64_t left = total / 2 + (total & width & 1);
    return pad(rt, self, left, total - left, fill_char(rt, fill));
}

static struct jval justify(struct jrt *rt, struct jval self, const struct jargs *args, int id)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, jattr_name(id), "width fillchar?", args, a);
    if (self.markup && a[1].kind == J_STR)
        a[1] = jescape(rt, a[1]);
    int64_t width = opt_int(rt, a[0], 0, "width");
    if (id == JM_center)
        return jstr_center(rt, self, width, a[1]);
    int64_t n = (int64_t)jstr_chars(self.s), total = width > n ? width - n : 0;
    const struct jstr *fill = fill_char(rt, a[1]);
    return pad(rt, self, id == JM_rjust ? total : 0, id == JM_rjust ? 0 : total, fill);
}

static struct jval zfill(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "zfill", "width", args, a);
    int64_t width = opt_int(rt, a[0], 0, "width"), n = (int64_t)jstr_chars(self.s);
    if (width <= n)
        return self;
    struct jbuild b = {.rt = rt};
    size_t sign = self.s->n && (self.s->p[0] == '-' || self.s->p[0] == '+');
    jb_add(&b, self.s->p, sign);
    jb_fill(&b, "0", 1, (size_t)(width - n));
    jb_add(&b, self.s->p + sign, self.s->n - sign);
    return like(self, jb_done(&b));
}

static struct jval expandtabs(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "expandtabs", "tabsize?", args, a);
    int64_t size = opt_int(rt, a[0], 8, "tabsize"), col = 0;
    struct jbuild b = {.rt = rt};
    for (size_t i = 0; i < self.s->n; i++) {
        char c = self.s->p[i];
        if (c == '\t') {
            if (size > 0)
                jb_fill(&b, " ", 1, (size_t)(size - col % size));
            col += size > 0 ? size - col % size : 0;
            continue;
        }
        jb_addc(&b, c);
        col = c == '\n' || c == '\r' ? 0 : col + ((c & 0xc0) != 0x80);
    }
    return like(self, jb_done(&b));
}

/* ---- questions
 * --------------------------------------------------------------------------------------------- */

static bool is_identifier(const struct jstr *s)
{
    uint32_t cp;
    for (size_t i = 0, n; i < s->n; i += n) {
        n = juni_decode(s->p + i, s->n - i, &cp);
        if (!(i ? juni_id_continue(cp) : juni_id_start(cp)))
            return false;
    }
    return s->n > 0;
}

static bool has_class(uint32_t cp, int id)
{
    int digit;
    switch (id) {
    case JM_isalpha:
        return juni_alpha(cp);
    case JM_isalnum:
        return juni_alpha(cp) || juni_numeric(cp) || juni_digit(cp);
    case JM_isdecimal:
        return juni_decimal(cp, &digit);
    case JM_isdigit:
        return juni_digit(cp);
    case JM_isnumeric:
        return juni_numeric(cp);
    case JM_isspace:
        return juni_space(cp);
    case JM_isprintable:
        return juni_printable(cp);
    default:
        return cp < 0x80;
    }
}

static bool all_are(const struct jstr *s, int id)
{
    uint32_t cp;
    for (size_t i = 0; i < s->n;) {
        i += juni_decode(s->p + i, s->n - i, &cp);
        if (!has_class(cp, id))
            return false;
    }
    return s->n > 0 || id == JM_isprintable || id == JM_isascii;
}

static bool case_is(const struct jstr *s, int id)
{
    bool any = false, in_word = false;
    uint32_t cp;
    for (size_t i = 0; i < s->n;) {
        i += juni_decode(s->p + i, s->n - i, &cp);
        bool lower = juni_lower(cp), upper = juni_upper(cp), title = juni_title(cp);
        if (id == JM_islower ? upper || title : id == JM_isupper && (lower || title))
            return false;
        if (id == JM_istitle && ((upper || title) ? in_word : lower && !in_word))
            return false;
        in_word = lower || upper || title;
        any |= id == JM_islower ? lower : id == JM_isupper ? upper : in_word;
    }
    return any;
}

/* ---- the table
 * --------------------------------------------------------------------------------------------- */

static struct jval asking(struct jrt *rt, struct jval self, int id)
{
    jstep_bytes(rt, self.s->n * 2);
    if (id == JM_isidentifier)
        return jbool(is_identifier(self.s));
    if (id == JM_islower || id == JM_isupper || id == JM_istitle)
        return jbool(case_is(self.s, id));
    return jbool(all_are(self.s, id));
}

static struct jval splitlines(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "splitlines", "keepends?", args, a);
    return jlistv(jstr_splitlines(rt, self, opt_int(rt, a[0], 0, "keepends") != 0));
}

static struct jval replace(struct jrt *rt, struct jval self, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, "replace", "old new count?", args, a);
    return jstr_replace(rt, self, a[0], a[1], opt_int(rt, a[2], -1, "count"));
}

static struct jval strip(struct jrt *rt, struct jval self, const struct jargs *args, int id)
{
    struct jval a[JMAX_PARAMS];
    jbind(rt, jattr_name(id), "chars?", args, a);
    return jstr_strip(rt, self, a[0], id != JM_rstrip, id != JM_lstrip);
}

struct jval jstr_method(struct jrt *rt, struct jval self, int id, const struct jargs *args)
{
    struct jval a[JMAX_PARAMS];
    switch (id) {
    case JM_strip:
    case JM_lstrip:
    case JM_rstrip:
        return strip(rt, self, args, id);
    case JM_split:
    case JM_rsplit:
        return split(rt, self, args, id == JM_rsplit);
    case JM_splitlines:
        return splitlines(rt, self, args);
    case JM_partition:
    case JM_rpartition:
        return partition(rt, self, args, id == JM_rpartition);
    case JM_startswith:
    case JM_endswith:
        return affix(rt, self, args, id == JM_endswith);
    case JM_removeprefix:
    case JM_removesuffix:
        return remove_affix(rt, self, args, id == JM_removesuffix);
    case JM_replace:
        return replace(rt, self, args);
    case JM_join:
        jbind(rt, "join", "iterable", args, a);
        return jstr_join(rt, self, a[0], false);
    case JM_find:
    case JM_rfind:
    case JM_index:
    case JM_rindex:
        return find(rt, self, args, id);
    case JM_count:
        return count(rt, self, args);
    case JM_center:
    case JM_ljust:
    case JM_rjust:
        return justify(rt, self, args, id);
    case JM_zfill:
        return zfill(rt, self, args);
    case JM_expandtabs:
        return expandtabs(rt, self, args);
    case JM_format:
        return jformat(rt, self, args);
    case JM_format_map:
        jbind(rt, "format_map", "mapping", args, a);
        return jformat_map(rt, self, a[0]);
    case JM_escape:
        jbind(rt, "escape", "s", args, a);
        return jescape(rt, a[0]);
    case JM_encode:
    case JM_maketrans:
    case JM_translate:
    case JM_unescape:
        jfail(rt, JERR_RUNTIME, "str.%s() is not supported in chat templates", jattr_name(id));
    default:
        break;
    }
    jbind(rt, jattr_name(id), "", args, a);
    switch (id) {
    case JM_upper:
    case JM_lower:
    case JM_title:
    case JM_capitalize:
    case JM_swapcase:
    case JM_casefold:
        return jstr_case(rt, self, id);
    case JM_striptags:
        return jstrip_tags(rt, self);
    default:
        return asking(rt, self, id);
    }
}
