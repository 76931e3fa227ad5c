/* Normalization forms over utf8proc's tables.
 *
 * utf8proc_decompose orders combining marks by moving each back step by step, which is quadratic in
 * a long run of them; here a run is sorted (stably) instead, so no text costs more than n log n.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/unicode.h"
#include "text/unicode_tables.h"
#include "base/mem.h"

#include <string.h>
#include <utf8proc.h>

struct points {
    int32_t *cp;
    size_t n, cap;
    bool failed;
};

static bool points_room(struct points *p, size_t more)
{
    if (more <= p->cap - p->n)
        return true;
    size_t cap = p->cap ? p->cap * 2 : 256;
    while (cap - p->n < more)
        cap *= 2;
    int32_t *cp = mem_realloc(p->cp, cap, sizeof *cp);
    if (!cp)
        return !(p->failed = true);
    p->cp = cp;
    p->cap = cap;
    return true;
}

static unsigned combining_class(int32_t cp)
{
    if (cp < 0x300 || (unicode_flags(cp) & UNICODE_INERT))
        return 0;
    return (unsigned)utf8proc_get_property(cp)->combining_class;
}

static void sort_small(int32_t *cp, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        int32_t c = cp[i];
        unsigned cc = combining_class(c);
        size_t k = i;
        for (; k && combining_class(cp[k - 1]) > cc; k--)
            cp[k] = cp[k - 1];
        cp[k] = c;
    }
}

/* Stable counting sort by class, for runs that nobody writes but an attacker. */
static bool sort_large(int32_t *cp, size_t n)
{
    size_t at[257] = {0};
    int32_t *copy = mem_alloc(n, sizeof *copy);
    if (!copy)
        return false;
    memcpy(copy, cp, n * sizeof *cp);
    for (size_t i = 0; i < n; i++)
        at[(combining_class(cp[i]) & 0xFF) + 1]++;
    for (int k = 1; k < 257; k++)
        at[k] += at[k - 1];
    for (size_t i = 0; i < n; i++)
        cp[at[combining_class(copy[i]) & 0xFF]++] = copy[i];
    mem_free(copy);
    return true;
}

/* Canonical ordering: each run of characters with a combining class, sorted by it. */
static bool order_marks(int32_t *cp, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (!combining_class(cp[i])) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < n && combining_class(cp[end]))
            end++;
        if (end - i <= 32)
            sort_small(cp + i, end - i);
        else if (!sort_large(cp + i, end - i))
            return false;
        i = end;
    }
    return true;
}

static void decompose(struct points *p, const char *s, size_t n, utf8proc_option_t options)
{
    int boundary = 0;
    for (size_t i = 0; i < n && !p->failed;) {
        int32_t c;
        i += utf8_next(s + i, &c);
        if (!points_room(p, 32))
            return;
        if (c < 0xA0 || (unicode_flags(c) & UNICODE_INERT)) { /* itself in every form */
            p->cp[p->n++] = c;
            continue;
        }
        utf8proc_ssize_t k =
            utf8proc_decompose_char(c, p->cp + p->n, (utf8proc_ssize_t)(p->cap - p->n),
                                    (utf8proc_option_t)options, &boundary);
        if (k > 0 && (size_t)k <= p->cap - p->n)
            p->n += (size_t)k;
        else
            p->cp[p->n++] = c;
    }
}

/* The character that a and b make; 0: none. */
static int32_t pair(int32_t a, int32_t b)
{
    int32_t two[3] = {a, b, 0};
    if (b < 0x300 || utf8proc_normalize_utf32(
                         two, 2, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE)) != 1)
        return 0;
    return unicode_flags(two[0]) & UNICODE_INERT ? 0 : two[0];
}

/* Canonical composition, in place; gives the new length. */
static size_t compose_all(int32_t *cp, size_t n)
{
    size_t k = 0, starter = SIZE_MAX;
    int last = -1; /* class of the last character behind the starter; -1: none */
    for (size_t i = 0; i < n; i++) {
        int cc = (int)combining_class(cp[i]);
        int32_t both = starter != SIZE_MAX && last < cc ? pair(cp[starter], cp[i]) : 0;
        if (both) {
            cp[starter] = both;
            continue;
        }
        if (!cc)
            starter = k;
        last = cc ? cc : -1;
        cp[k++] = cp[i];
    }
    return k;
}

/* True if s is in NFC whatever stands in it: nothing at or past U+0300. */
static bool all_below_300(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)s[i] >= 0xCC)
            return false;
    }
    return true;
}

static bool all_ascii(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)s[i] >= 0x80)
            return false;
    }
    return true;
}

static void normalize_run(struct strbuf *out, const char *s, size_t n, enum unicode_form form)
{
    bool compose = form == UNICODE_NFC || form == UNICODE_NFKC;
    bool compat = form == UNICODE_NFKC || form == UNICODE_NFKD;
    struct points p = {0};
    decompose(&p, s, n, UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0));
    if (p.failed || !order_marks(p.cp, p.n)) {
        out->failed = true;
    } else {
        size_t len = compose ? compose_all(p.cp, p.n) : p.n;
        for (size_t i = 0; i < len; i++)
            utf8_add(out, p.cp[i]);
    }
    mem_free(p.cp);
}

void unicode_normalize(struct strbuf *out, const char *s, size_t n, enum unicode_form form)
{
    if (form == UNICODE_NFC ? all_below_300(s, n) : all_ascii(s, n))
        strbuf_add(out, s, n);
    else
        normalize_run(out, s, n, form);
}
