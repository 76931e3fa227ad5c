/* Pre-tokenizers: a list of steps, each cutting or rewriting a piece and handing the parts to the
 * next; behind the last stands the model. Depth first, so nothing but the text is ever stored.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "text/unicode.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

void pre_step_fini(struct pre_step *p)
{
    pattern_fini(&p->pattern);
}

struct pre_step *pre_push(struct tokenizer *t, enum pre_kind kind, struct sl_err *err)
{
    if (t->n_pre == TOK_MAX_STEPS) {
        SL_FAIL(err, SL_EFORMAT, "tokenizer: more than %d pre-tokenizers", TOK_MAX_STEPS);
        return NULL;
    }
    struct pre_step *p = &t->pre[t->n_pre++];
    *p = (struct pre_step){.kind = kind};
    return p;
}

/* ---- running ----------------------------------------------------------------------------------
 */

/* Collects the parts of one piece and joins them as the behavior says. */
struct cutter {
    struct encoder *e;
    int next; /* the step that gets the parts */
    const char *s;
    bool at_origin;
    enum split_behavior behavior;
    bool pending, match; /* a part is held back; the last part was a match */
    size_t start, end;   /* the part held back */
};

static enum sl_status cut_out(struct cutter *c, size_t start, size_t end)
{
    if (start == end)
        return SL_OK;
    return pre_run(c->e, c->next, c->s + start, end - start, c->at_origin && !start);
}

static enum sl_status cut_flush(struct cutter *c)
{
    bool pending = c->pending;
    c->pending = false;
    return pending ? cut_out(c, c->start, c->end) : SL_OK;
}

static enum sl_status cut_hold(struct cutter *c, size_t start, size_t end)
{
    enum sl_status st = cut_flush(c);
    c->pending = true;
    c->start = start;
    c->end = end;
    return st;
}

static enum sl_status cut_part(struct cutter *c, size_t start, size_t end, bool match)
{
    bool before = c->match;
    c->match = match;
    switch (c->behavior) {
    case SPLIT_REMOVED:
        return match ? SL_OK : cut_out(c, start, end);
    case SPLIT_ISOLATED:
        return cut_out(c, start, end);
    case SPLIT_MERGED_WITH_PREVIOUS:
        if (match && !before && c->pending) {
            c->end = end;
            return SL_OK;
        }
        return cut_hold(c, start, end);
    case SPLIT_MERGED_WITH_NEXT:
        if (c->pending && !match) { /* only a match is ever held back */
            c->end = end;
            return cut_flush(c);
        }
        return match ? cut_hold(c, start, end) : cut_out(c, start, end);
    case SPLIT_CONTIGUOUS:
        if (c->pending && match == before) {
            c->end = end;
            return SL_OK;
        }
        return cut_hold(c, start, end);
    }
    return SL_EINVAL;
}

static enum sl_status too_expensive(struct encoder *e, int rc)
{
    if (rc == SL_ENOMEM)
        return SL_FAIL(e->err, SL_ENOMEM, "tokenizer: no memory to match a pattern");
    return SL_FAIL(e->err, SL_EINVAL, "the tokenizer's pattern is too expensive on this text");
}

static enum sl_status run_split(struct encoder *e, int step, const char *s, size_t n,
                                bool at_origin)
{
    const struct pre_step *p = &e->t->pre[step];
    struct cutter c = {e, step + 1, s, at_origin, p->behavior, false, false, 0, 0};
    struct pattern_iter it = {0};
    size_t done = 0, start, end;
    const char *text = s;
    if (p->pattern.kind == PATTERN_REGEX)
        text = unicode_for_regex(s, n, &e->sc->shadow[step]);
    int rc;
    enum sl_status st = SL_OK;
    while (!st && (rc = pattern_next(&p->pattern, e->sc, text, n, &it, &start, &end)) != 0) {
        if (rc < 0)
            return too_expensive(e, rc);
        if (done < start)
            st = cut_part(&c, done, start, p->invert);
        if (!st)
            st = cut_part(&c, start, end, !p->invert);
        done = end;
    }
    if (!st && done < n)
        st = cut_part(&c, done, n, p->invert);
    return st ? st : cut_flush(&c);
}

static int word_class(int32_t cp)
{
    return unicode_is_word(cp) ? 1 : unicode_is_space(cp) ? 0 : 2;
}

static enum sl_status run_words(struct encoder *e, int step, const char *s, size_t n,
                                bool at_origin)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t start = i;
        i += utf8_next(s + i, &cp);
        int class = word_class(cp);
        while (i < n) {
            size_t len = utf8_next(s + i, &cp);
            if (word_class(cp) != class)
                break;
            i += len;
        }
        enum sl_status st =
            class ? pre_run(e, step + 1, s + start, i - start, at_origin && !start) : SL_OK;
        if (st)
            return st;
    }
    return SL_OK;
}

static enum sl_status run_rewritten(struct encoder *e, int step, bool at_origin)
{
    struct strbuf *b = &e->sc->step[step];
    if (b->failed)
        return SL_FAIL(e->err, SL_ENOMEM, "tokenizer: no memory for the text");
    return b->len ? pre_run(e, step + 1, b->data, b->len, at_origin) : SL_OK;
}

static enum sl_status run_prefix_space(struct encoder *e, int step, const char *s, size_t n,
                                       bool at_origin)
{
    if (s[0] == ' ')
        return pre_run(e, step + 1, s, n, at_origin);
    struct strbuf *b = &e->sc->step[step];
    strbuf_clear(b);
    strbuf_addc(b, ' ');
    strbuf_add(b, s, n);
    return run_rewritten(e, step, at_origin);
}

static enum sl_status run_byte_map(struct encoder *e, int step, const char *s, size_t n,
                                   bool at_origin)
{
    struct strbuf *b = &e->sc->step[step];
    strbuf_clear(b);
    for (size_t i = 0; i < n; i++)
        utf8_add(b, byte_to_char((unsigned char)s[i]));
    return run_rewritten(e, step, at_origin);
}

static enum sl_status run_metaspace(struct encoder *e, int step, const char *s, size_t n,
                                    bool at_origin)
{
    const struct pre_step *p = &e->t->pre[step];
    size_t rep = strlen(p->replacement);
    struct strbuf *b = &e->sc->step[step];
    strbuf_clear(b);
    bool starts = s[0] == ' ' || (n >= rep && !memcmp(s, p->replacement, rep));
    if (!starts && (p->scheme == PREPEND_ALWAYS || (p->scheme == PREPEND_FIRST && at_origin)))
        strbuf_add(b, p->replacement, rep);
    while (n) {
        const char *space = memchr(s, ' ', n);
        size_t k = space ? (size_t)(space - s) : n;
        strbuf_add(b, s, k);
        if (space) {
            strbuf_add(b, p->replacement, rep);
            k++;
        }
        s += k;
        n -= k;
    }
    return run_rewritten(e, step, at_origin);
}

/* Cuts where the script changes; characters of any script go with what is before them. */
static enum sl_status run_scripts(struct encoder *e, int step, const char *s, size_t n,
                                  bool at_origin)
{
    size_t start = 0;
    int last = -1;
    bool any_yet = false; /* the library's first cut is in front of the first real script */
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t at = i;
        i += utf8_next(s + i, &cp);
        int script = unicode_script(cp);
        if (!script)
            continue;
        if (script != last) {
            if (any_yet && start < at) {
                enum sl_status st =
                    pre_run(e, step + 1, s + start, at - start, at_origin && !start);
                if (st)
                    return st;
            }
            start = at; /* what stands before the first script is lost, as in the library */
            any_yet = true;
        }
        last = script;
    }
    return any_yet && start < n ? pre_run(e, step + 1, s + start, n - start, at_origin && !start)
                                : SL_OK;
}

static enum sl_status run_fixed(struct encoder *e, int step, const char *s, size_t n,
                                bool at_origin)
{
    size_t length = e->t->pre[step].length;
    for (size_t i = 0; i < n;) {
        size_t start = i;
        for (size_t k = 0; k < length && i < n; k++)
            i += utf8_len(s[i]);
        enum sl_status st = pre_run(e, step + 1, s + start, i - start, at_origin && !start);
        if (st)
            return st;
    }
    return SL_OK;
}

enum sl_status pre_run(struct encoder *e, int step, const char *s, size_t n, bool at_origin)
{
    if (step == e->t->n_pre)
        return model_word(e, s, n);
    switch (e->t->pre[step].kind) {
    case PRE_SPLIT:
        return run_split(e, step, s, n, at_origin);
    case PRE_WORDS:
        return run_words(e, step, s, n, at_origin);
    case PRE_PREFIX_SPACE:
        return run_prefix_space(e, step, s, n, at_origin);
    case PRE_BYTE_MAP:
        return run_byte_map(e, step, s, n, at_origin);
    case PRE_METASPACE:
        return run_metaspace(e, step, s, n, at_origin);
    case PRE_SCRIPTS:
        return run_scripts(e, step, s, n, at_origin);
    case PRE_FIXED_LENGTH:
        return run_fixed(e, step, s, n, at_origin);
    }
    return SL_EINVAL;
}

/* ---- parsing ----------------------------------------------------------------------------------
 */

static bool flag(const json_t *json, const char *key, bool absent)
{
    const json_t *v = json_object_get(json, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

static enum sl_status parse_behavior(const json_t *json, enum split_behavior absent,
                                     enum split_behavior *out, struct sl_err *err)
{
    static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious",
                                            "MergedWithNext", "Contiguous"};
    const char *s = json_string_value(json);
    *out = absent;
    if (!json)
        return SL_OK;
    for (int i = 0; s && i < 5; i++) {
        if (!strcmp(s, behaviors[i])) {
            *out = (enum split_behavior)i;
            return SL_OK;
        }
    }
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown split behavior %.40s", s ? s : "");
}

static enum sl_status push_class(struct tokenizer *t, bool (*in_class)(int32_t),
                                 enum split_behavior behavior, struct sl_err *err)
{
    struct pre_step *p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->pattern = (struct pattern){.kind = PATTERN_CLASS, .in_class = in_class};
    p->behavior = behavior;
    return SL_OK;
}

enum sl_status pre_push_byte_level(struct tokenizer *t, bool prefix_space, bool use_regex,
                                   struct sl_err *err)
{
    if (prefix_space && !pre_push(t, PRE_PREFIX_SPACE, err))
        return SL_EFORMAT;
    if (use_regex) {
        struct pre_step *p = pre_push(t, PRE_SPLIT, err);
        if (!p)
            return SL_EFORMAT;
        p->behavior = SPLIT_ISOLATED;
        enum sl_status st = pattern_regex(&p->pattern, GPT2_PATTERN, strlen(GPT2_PATTERN), err);
        if (st)
            return st;
    }
    return pre_push(t, PRE_BYTE_MAP, err) ? SL_OK : SL_EFORMAT;
}

static enum sl_status parse_byte_level(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    return pre_push_byte_level(t, flag(json, "add_prefix_space", true),
                               flag(json, "use_regex", true), err);
}

static enum sl_status parse_split(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    struct pre_step *p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->invert = flag(json, "invert", false);
    enum sl_status st =
        parse_behavior(json_object_get(json, "behavior"), SPLIT_ISOLATED, &p->behavior, err);
    return st ? st : pattern_parse(&p->pattern, json_object_get(json, "pattern"), "Split", err);
}

static enum sl_status parse_metaspace(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    struct pre_step *p = pre_push(t, PRE_METASPACE, err);
    if (!p)
        return SL_EFORMAT;
    const char *rep = json_string_value(json_object_get(json, "replacement"));
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    if (!rep || !rep[0] || strlen(rep) != utf8_len(rep[0]))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: Metaspace needs one character of replacement");
    memcpy(p->replacement, rep, strlen(rep) + 1);
    p->scheme = !scheme || !strcmp(scheme, "always") ? PREPEND_ALWAYS
                : !strcmp(scheme, "first")           ? PREPEND_FIRST
                                                     : PREPEND_NEVER;
    if (!flag(json, "add_prefix_space", true))
        p->scheme = PREPEND_NEVER;
    if (!flag(json, "split", true))
        return SL_OK;
    p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->behavior = SPLIT_MERGED_WITH_NEXT;
    return pattern_literal(&p->pattern, rep, strlen(rep), err);
}

enum sl_status pre_push_bert(struct tokenizer *t, struct sl_err *err)
{
    enum sl_status st = push_class(t, unicode_is_space, SPLIT_REMOVED, err);
    return st ? st : push_class(t, unicode_is_punctuation, SPLIT_ISOLATED, err);
}

static enum sl_status parse_bert(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    (void)json;
    return pre_push_bert(t, err);
}

static enum sl_status parse_words(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    (void)json;
    return pre_push(t, PRE_WORDS, err) ? SL_OK : SL_EFORMAT;
}

static enum sl_status parse_space_split(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    (void)json;
    return push_class(t, unicode_is_space, SPLIT_REMOVED, err);
}

static enum sl_status parse_digits(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    bool each = flag(json, "individual_digits", false);
    return push_class(t, unicode_is_number, each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, err);
}

static enum sl_status parse_punctuation(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    enum split_behavior behavior;
    enum sl_status st =
        parse_behavior(json_object_get(json, "behavior"), SPLIT_ISOLATED, &behavior, err);
    return st ? st : push_class(t, unicode_is_punctuation, behavior, err);
}

static enum sl_status parse_delimiter(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    const char *d = json_string_value(json_object_get(json, "delimiter"));
    if (!d || !d[0] || strlen(d) != utf8_len(d[0]))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: CharDelimiterSplit needs one character");
    struct pre_step *p = pre_push(t, PRE_SPLIT, err);
    if (!p)
        return SL_EFORMAT;
    p->behavior = SPLIT_REMOVED;
    return pattern_literal(&p->pattern, d, strlen(d), err);
}

static enum sl_status parse_scripts(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    (void)json;
    return pre_push(t, PRE_SCRIPTS, err) ? SL_OK : SL_EFORMAT;
}

static enum sl_status parse_fixed(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    const json_t *length = json_object_get(json, "length");
    json_int_t n = length ? json_integer_value(length) : 5;
    if (n < 1)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: FixedLength needs a length of at least 1");
    struct pre_step *p = pre_push(t, PRE_FIXED_LENGTH, err);
    if (!p)
        return SL_EFORMAT;
    p->length = (size_t)n;
    return SL_OK;
}

static enum sl_status parse_sequence(struct tokenizer *t, const json_t *list, int depth,
                                     struct sl_err *err)
{
    if (!json_is_array(list))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a Sequence without \"pretokenizers\"");
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        enum sl_status st = pre_parse(t, item, depth + 1, err);
        if (st)
            return st;
    }
    return SL_OK;
}

static const struct {
    const char *name;
    enum sl_status (*parse)(struct tokenizer *t, const json_t *json, struct sl_err *err);
} names[] = {
    {"ByteLevel", parse_byte_level},
    {"Split", parse_split},
    {"Metaspace", parse_metaspace},
    {"BertPreTokenizer", parse_bert},
    {"Whitespace", parse_words},
    {"WhitespaceSplit", parse_space_split},
    {"Digits", parse_digits},
    {"Punctuation", parse_punctuation},
    {"CharDelimiterSplit", parse_delimiter},
    {"UnicodeScripts", parse_scripts},
    {"FixedLength", parse_fixed},
};

enum sl_status pre_parse(struct tokenizer *t, const json_t *json, int depth, struct sl_err *err)
{
    if (!json || json_is_null(json))
        return SL_OK;
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a pre-tokenizer has no \"type\"");
    if (depth > 16)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: pre-tokenizers are nested too deep");
    if (!strcmp(type, "Sequence"))
        return parse_sequence(t, json_object_get(json, "pretokenizers"), depth, err);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(type, names[i].name))
            return names[i].parse(t, json, err);
    }
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown pre-tokenizer %.80s", type);
}
