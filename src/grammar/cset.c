/* Sets of code points, and how they are spelt in bytes.
 * SPDX-License-Identifier: Apache-2.0 */
#include "grammar/fsm.h"

#include <stdlib.h>
#include <string.h>

enum { SURROGATE_LO = 0xD800, SURROGATE_HI = 0xDFFF };

size_t utf8_take(const char *s, size_t n, uint32_t *c)
{
    const unsigned char *p = (const unsigned char *)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len;
    if (n == 0)
        return 0;
    if (p[0] < 0x80) {
        *c = p[0];
        return 1;
    }
    len = p[0] >= 0xF0 && p[0] < 0xF8 ? 4 : p[0] >= 0xE0 && p[0] < 0xF0 ? 3 : p[0] >= 0xC2 ? 2 : 0;
    if (len == 0 || p[0] >= 0xF8 || len > n)
        return 0;
    uint32_t v = p[0] & (0xFFu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return 0;
        v = v << 6 | (p[i] & 0x3Fu);
    }
    if (v < least[len] || v > CODE_POINT_MAX || (v >= SURROGATE_LO && v <= SURROGATE_HI))
        return 0;
    *c = v;
    return len;
}

void cset_add(struct work *w, struct cset *s, uint32_t lo, uint32_t hi)
{
    if (lo > hi || !work_grow(w, &s->r, &s->cap, s->n + 1, sizeof *s->r))
        return;
    s->r[s->n++] = (struct crange){lo, hi};
}

void cset_add_set(struct work *w, struct cset *s, const struct cset *o)
{
    for (int i = 0; i < o->n; i++)
        cset_add(w, s, o->r[i].lo, o->r[i].hi);
}

static int by_lo(const void *a, const void *b)
{
    const struct crange *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

void cset_normalize(struct cset *s)
{
    if (s->n < 2)
        return;
    if (s->n > 0)
        qsort(s->r, (size_t)s->n, sizeof *s->r, by_lo);
    int n = 1;
    for (int i = 1; i < s->n; i++) {
        struct crange *last = &s->r[n - 1];
        if (s->r[i].lo <= last->hi + 1)
            last->hi = s->r[i].hi > last->hi ? s->r[i].hi : last->hi;
        else
            s->r[n++] = s->r[i];
    }
    s->n = n;
}

void cset_invert(struct work *w, struct cset *s)
{
    struct cset out = {0};
    uint32_t next = 0;
    cset_add(w, s, SURROGATE_LO, SURROGATE_HI); /* not characters, so never in the complement */
    cset_normalize(s);
    for (int i = 0; i < s->n; i++) {
        if (s->r[i].lo > next)
            cset_add(w, &out, next, s->r[i].lo - 1);
        next = s->r[i].hi + 1;
    }
    if (next <= CODE_POINT_MAX)
        cset_add(w, &out, next, CODE_POINT_MAX);
    *s = out;
}

void cset_fold(struct work *w, struct cset *s)
{
    for (int i = 0, n = s->n; i < n; i++) {
        struct crange r = s->r[i];
        for (uint32_t c = 'a'; c <= 'z'; c++) {
            if (r.lo <= c && c <= r.hi)
                cset_add(w, s, c - 32, c - 32);
            if (r.lo <= c - 32 && c - 32 <= r.hi)
                cset_add(w, s, c, c);
        }
    }
    cset_normalize(s);
}

bool cset_has(const struct cset *s, uint32_t c)
{
    for (int i = 0; i < s->n; i++)
        if (s->r[i].lo <= c && c <= s->r[i].hi)
            return true;
    return false;
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

/* `n` continuation bytes of any value, then `to`. */
static int tail_any(struct nfa *a, int n, int to)
{
    for (; n > 0; n--) {
        int q = nfa_state(a);
        nfa_range(a, q, 0x80, 0xBF, to);
        to = q;
    }
    return to;
}

/* Adds the bytes of code points [lo, hi], all of `len` bytes; `left` bytes are still to come and
 * share the bits above them. tail[k]: k bytes of any value, then the end. */
static void utf8_range(struct nfa *a, uint32_t lo, uint32_t hi, int left, bool lead, int len,
                       int from, const int *tail)
{
    static const uint32_t mark[] = {0, 0, 0xC0, 0xE0, 0xF0};
    if (left == 0) {
        nfa_eps(a, from, tail[0]);
        return;
    }
    int shift = 6 * (left - 1);
    uint32_t base = lead ? (len == 1 ? 0 : mark[len]) : 0x80;
    uint32_t first = lo >> shift, last = hi >> shift, mask = ((uint32_t)1 << shift) - 1;
    if ((lo & mask) == 0 && (hi & mask) == mask) {
        nfa_range(a, from, base | first, base | last, tail[left - 1]);
        return;
    }
    if (first == last) {
        int q = nfa_state(a);
        nfa_range(a, from, base | first, base | first, q);
        utf8_range(a, lo & mask, hi & mask, left - 1, false, len, q, tail);
        return;
    }
    if ((lo & mask) != 0) {
        utf8_range(a, lo, lo | mask, left, lead, len, from, tail);
        lo = (lo | mask) + 1;
    }
    if ((hi & mask) != mask) {
        utf8_range(a, hi & ~mask, hi, left, lead, len, from, tail);
        hi = (hi & ~mask) - 1;
    }
    if (lo <= hi)
        utf8_range(a, lo, hi, left, lead, len, from, tail);
}

void nfa_add_utf8(struct nfa *a, const struct cset *s, int from, int to)
{
    static const struct crange group[] = {
        {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, CODE_POINT_MAX}};
    static const int len_of[] = {1, 2, 3, 3, 4};
    int tail[4] = {to, -1, -1, -1};
    for (int i = 0; i < s->n; i++)
        for (int g = 0; g < 5; g++) {
            uint32_t lo = s->r[i].lo > group[g].lo ? s->r[i].lo : group[g].lo;
            uint32_t hi = s->r[i].hi < group[g].hi ? s->r[i].hi : group[g].hi;
            if (lo > hi)
                continue;
            for (int k = 1; k < len_of[g]; k++)
                if (tail[k] < 0)
                    tail[k] = tail_any(a, 1, tail[k - 1]);
            utf8_range(a, lo, hi, len_of[g], true, len_of[g], from, tail);
        }
}

/* ---- inside a JSON string -------------------------------------------------------------------- */

/* One hex digit of value [lo, hi], in either case. */
static void hex_digit(struct nfa *a, int from, uint32_t lo, uint32_t hi, int to)
{
    if (lo <= 9)
        nfa_range(a, from, '0' + lo, '0' + (hi < 9 ? hi : 9), to);
    if (hi >= 10) {
        uint32_t first = lo > 10 ? lo : 10;
        nfa_range(a, from, 'a' + first - 10, 'a' + hi - 10, to);
        nfa_range(a, from, 'A' + first - 10, 'A' + hi - 10, to);
    }
}

/* `left` hex digits that spell [lo, hi]; tail[k]: k digits of any value, then the end. */
static void hex_range(struct nfa *a, uint32_t lo, uint32_t hi, int left, int from, const int *tail)
{
    if (left == 0) {
        nfa_eps(a, from, tail[0]);
        return;
    }
    int shift = 4 * (left - 1);
    uint32_t first = lo >> shift, last = hi >> shift, mask = ((uint32_t)1 << shift) - 1;
    if ((lo & mask) == 0 && (hi & mask) == mask) {
        hex_digit(a, from, first, last, tail[left - 1]);
        return;
    }
    if (first == last) {
        int q = nfa_state(a);
        hex_digit(a, from, first, first, q);
        hex_range(a, lo & mask, hi & mask, left - 1, q, tail);
        return;
    }
    if ((lo & mask) != 0) {
        hex_range(a, lo, lo | mask, left, from, tail);
        lo = (lo | mask) + 1;
    }
    if ((hi & mask) != mask) {
        hex_range(a, hi & ~mask, hi, left, from, tail);
        hi = (hi & ~mask) - 1;
    }
    if (lo <= hi)
        hex_range(a, lo, hi, left, from, tail);
}

static void hex_tails(struct nfa *a, int to, int *tail)
{
    tail[0] = to;
    for (int k = 1; k < 4; k++) {
        tail[k] = nfa_state(a);
        hex_digit(a, tail[k], 0, 15, tail[k - 1]);
    }
}

/* Two \u escapes for the characters beyond U+FFFF; `from` comes after the first backslash and u. */
static void surrogate_pairs(struct nfa *a, uint32_t lo, uint32_t hi, int from, int to)
{
    int low_tail[4], whole = -1;
    hex_tails(a, to, low_tail);
    lo -= 0x10000;
    hi -= 0x10000;
    while (lo <= hi) { /* runs of high halves that take every low half go together */
        uint32_t high = lo >> 10, end = high;
        uint32_t a0 = lo & 0x3FF, b0 = (hi >> 10) == high ? hi & 0x3FF : 0x3FF;
        bool full = a0 == 0 && b0 == 0x3FF;
        if (full)
            end = (hi & 0x3FF) == 0x3FF ? hi >> 10 : (hi >> 10) - 1;
        int mid = nfa_state(a), tail[4];
        hex_tails(a, mid, tail);
        hex_range(a, SURROGATE_LO + high, SURROGATE_LO + end, 4, from, tail);
        if (full && whole >= 0) {
            nfa_eps(a, mid, whole);
        } else {
            int bs = nfa_state(a), u = nfa_state(a);
            nfa_range(a, mid, '\\', '\\', bs);
            nfa_range(a, bs, 'u', 'u', u);
            hex_range(a, 0xDC00 + a0, 0xDC00 + b0, 4, u, low_tail);
            if (full)
                whole = mid;
        }
        if (!work_spend(a->w, 50))
            return;
        lo = full ? (end + 1) << 10 : (lo | 0x3FF) + 1;
    }
}

static void json_escapes(struct nfa *a, const struct cset *s, int esc, int to)
{
    static const char *names = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int u = -1, tail[4];
    for (int i = 0; names[i]; i++)
        if (cset_has(s, (unsigned char)values[i]))
            nfa_range(a, esc, (unsigned char)names[i], (unsigned char)names[i], to);
    for (int i = 0; i < s->n; i++) {
        static const struct crange spelt[] = {
            {0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {0x7F, 0xD7FF}, {0xE000, 0xFFFF}};
        for (int g = 0; g < 5; g++) {
            uint32_t lo = s->r[i].lo > spelt[g].lo ? s->r[i].lo : spelt[g].lo;
            uint32_t hi = s->r[i].hi < spelt[g].hi ? s->r[i].hi : spelt[g].hi;
            if (lo > hi)
                continue;
            if (u < 0) {
                u = nfa_state(a);
                nfa_range(a, esc, 'u', 'u', u);
                hex_tails(a, to, tail);
            }
            hex_range(a, lo, hi, 4, u, tail);
        }
        if (s->r[i].hi >= 0x10000) {
            if (u < 0) {
                u = nfa_state(a);
                nfa_range(a, esc, 'u', 'u', u);
                hex_tails(a, to, tail);
            }
            surrogate_pairs(a, s->r[i].lo > 0x10000 ? s->r[i].lo : 0x10000, s->r[i].hi, u, to);
        }
    }
}

static bool needs_escapes(const struct cset *s)
{
    for (int i = 0; i < s->n; i++)
        if (s->r[i].lo < 0x20 || s->r[i].hi >= 0x7F)
            return true;
    return cset_has(s, '"') || cset_has(s, '\\') || cset_has(s, '/');
}

void nfa_add_json_char(struct nfa *a, const struct cset *s, int from, int to)
{
    static const struct crange plain[] = {
        {0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, CODE_POINT_MAX}};
    struct cset raw = {0};
    for (int i = 0; i < s->n; i++)
        for (int g = 0; g < 3; g++) {
            uint32_t lo = s->r[i].lo > plain[g].lo ? s->r[i].lo : plain[g].lo;
            uint32_t hi = s->r[i].hi < plain[g].hi ? s->r[i].hi : plain[g].hi;
            cset_add(a->w, &raw, lo, hi);
        }
    nfa_add_utf8(a, &raw, from, to);
    if (needs_escapes(s)) {
        int esc = nfa_state(a);
        nfa_range(a, from, '\\', '\\', esc);
        json_escapes(a, s, esc, to);
    }
}
