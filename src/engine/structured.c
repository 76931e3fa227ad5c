/* Structured output in the engine: grammars are compiled where a request is submitted; the engine
 * thread follows each output through its grammar and gives the rows of a plan their masks, before
 * their logits are computed.
 *
 * A matcher is brought to where its sequence is only when a row needs a mask, from the tokens
 * themselves: preemption, forks, beams and refuted guesses need no word of it.
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/structured.h"

#include "base/log.h"
#include "engine/internal.h"
#include "grammar/grammar.h"

#include <string.h>

/* ---- from JSON ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    enum sl_structured_kind kind;
} kinds[] = {
    {"json", SL_STRUCTURED_JSON},
    {"regex", SL_STRUCTURED_REGEX},
    {"choice", SL_STRUCTURED_CHOICE},
    {"grammar", SL_STRUCTURED_GRAMMAR},
    {"json_object", SL_STRUCTURED_JSON_OBJECT},
    {"structural_tag", SL_STRUCTURED_TAG},
};
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

static const char FIELD[] = "structured_outputs";

static const json_t *present(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "structured_outputs: no memory");
}

/* Texts stay texts; objects and arrays become one. */
static enum sl_status copy_text(const json_t *v, struct arena *a, const char **out,
                                struct sl_err *err)
{
    if (json_is_string(v)) {
        *out = arena_strndup(a, json_string_value(v), json_string_length(v));
        if (*out && strlen(*out) != json_string_length(v))
            return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs: a text with a NUL");
        return *out ? SL_OK : no_memory(err);
    }
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    *out = text ? arena_strndup(a, text, strlen(text)) : NULL;
    free(text);
    return *out ? SL_OK : no_memory(err);
}

static enum sl_status read_flag(const json_t *so, const char *name, bool *to, struct sl_err *err)
{
    const json_t *v = present(so, name);
    if (v && !json_is_boolean(v))
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs.%s must be a boolean",
                             name);
    *to = json_is_true(v);
    return SL_OK;
}

static enum sl_status check_type(const json_t *v, int k, struct sl_err *err)
{
    bool text = json_is_string(v), ok = text;
    const char *want = "a string";
    if (kinds[k].kind == SL_STRUCTURED_JSON || kinds[k].kind == SL_STRUCTURED_TAG) {
        ok = text || json_is_object(v) || (k == 0 && json_is_boolean(v));
        want = "an object, or a string that holds one";
    } else if (kinds[k].kind == SL_STRUCTURED_CHOICE) {
        ok = json_is_array(v);
        want = "a list of strings";
    } else if (kinds[k].kind == SL_STRUCTURED_JSON_OBJECT) {
        ok = json_is_true(v);
        want = "true";
    }
    if (ok)
        return SL_OK;
    return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs.%s must be %s", kinds[k].name,
                         want);
}

static enum sl_status find_kind(const json_t *so, int *found, struct sl_err *err)
{
    char names[96] = {0};
    int n = 0;
    for (int k = 0; k < N_KINDS; k++) {
        const json_t *v = present(so, kinds[k].name);
        if (!v)
            continue;
        if (kinds[k].kind == SL_STRUCTURED_JSON_OBJECT && json_is_false(v))
            continue;
        size_t used = strlen(names), len = strlen(kinds[k].name);
        if (n)
            memcpy(names + used, ", ", 2);
        memcpy(names + used + (n ? 2 : 0), kinds[k].name, len);
        *found = k;
        n++;
    }
    if (n == 1)
        return SL_OK;
    if (n)
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD,
                             "You can only use one kind of structured outputs constraint but "
                             "multiple are specified: %s",
                             names);
    return SL_FAIL_PARAM(err, SL_EINVAL, FIELD,
                         "You must use one kind of structured outputs constraint but none are "
                         "specified: json, regex, choice, grammar, json_object or structural_tag");
}

enum sl_status structured_from_json(const json_t *so, struct arena *a,
                                    struct sl_structured_output *out, struct sl_err *err)
{
    int k = 0;
    *out = (struct sl_structured_output){0};
    if (!json_is_object(so))
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs must be an object");
    enum sl_status st = find_kind(so, &k, err);
    if (st)
        return st;
    const json_t *v = present(so, kinds[k].name), *white = present(so, "whitespace_pattern");
    if (white && !json_is_string(white))
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD,
                             "structured_outputs.whitespace_pattern must be a string");
    st = check_type(v, k, err);
    if (!st)
        st = copy_text(v, a, &out->text, err);
    if (!st && white)
        st = copy_text(white, a, &out->whitespace_pattern, err);
    if (!st)
        st = read_flag(so, "disable_any_whitespace", &out->disable_any_whitespace, err);
    if (!st)
        st = read_flag(so, "disable_additional_properties", &out->disable_additional_properties,
                       err);
    if (!st)
        out->kind = kinds[k].kind;
    return st;
}

enum sl_status sl_structured_output_parse(const char *json, size_t bytes,
                                          struct sl_structured_output *out, char **memory,
                                          struct sl_err *err)
{
    json_error_t e;
    struct arena a;
    json_t *so = json_loadb(json, bytes, 0, &e);
    if (!so)
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs: not valid JSON: %s",
                             e.text);
    arena_init(&a, 0);
    enum sl_status st = structured_from_json(so, &a, out, err);
    json_decref(so);
    size_t n = st || !out->text ? 0 : strlen(out->text) + 1;
    size_t m = st || !out->whitespace_pattern ? 0 : strlen(out->whitespace_pattern) + 1;
    char *own = st ? NULL : mem_alloc(n + m, 1); /* one piece, to be freed in one */
    if (!st && !own)
        st = no_memory(err);
    if (!st && n)
        out->text = memcpy(own, out->text, n);
    if (!st && m)
        out->whitespace_pattern = memcpy(own + n, out->whitespace_pattern, m);
    arena_fini(&a);
    if (!st)
        *memory = own;
    return st;
}

/* ---- the engine's share ---------------------------------------------------------------------- */

static enum sl_status read_config(struct sl_engine *e, struct sl_err *err)
{
    const char *text = e->cfg.structured_outputs_config;
    json_t *c = text ? json_loads(text, 0, NULL) : NULL;
    if (text && !json_is_object(c)) {
        json_decref(c);
        return SL_FAIL_PARAM(err, SL_EINVAL, "structured_outputs_config",
                             "structured_outputs_config must be a JSON object");
    }
    e->structured.compact = json_is_true(json_object_get(c, "disable_any_whitespace"));
    e->structured.closed = json_is_true(json_object_get(c, "disable_additional_properties"));
    json_decref(c);
    return SL_OK;
}

enum sl_status structured_start(struct sl_engine *e, struct sl_err *err)
{
    struct structured *s = &e->structured;
    mutex_init(&s->lock, LOCK_STRUCTURED);
    s->has_lock = true;
    int n_text = e->text ? tokenizer_vocab(text_tokenizer(e->text))->n : 0;
    int n = n_text > e->info.vocab_size ? n_text : e->info.vocab_size;
    s->n_words = (n + 31) / 32;
    s->nothing = mem_zalloc((size_t)s->n_words, sizeof *s->nothing);
    s->scratch = mem_alloc((size_t)s->n_words, sizeof *s->scratch);
    if (!s->nothing || !s->scratch)
        return SL_FAIL(err, SL_ENOMEM, "engine: no memory");
    core_set_masks(e->core, structured_masks, e);
    sched_set_refine(core_sched(e->core), structured_refine, e);
    return read_config(e, err);
}

void structured_fini(struct sl_engine *e)
{
    struct structured *s = &e->structured;
    for (int i = 0; i < CORE_DEPTH_MAX; i++) {
        for (int k = 0; k < s->room[i].n; k++)
            mem_free(s->room[i].row[k]);
        mem_free(s->room[i].row);
    }
    mem_free(s->nothing);
    mem_free(s->scratch);
    grammar_lib_destroy(&s->lib);
    if (s->has_lock)
        mutex_fini(&s->lock);
}

/* ---- a request's ----------------------------------------------------------------------------- */

static enum sl_status get_lib(struct sl_engine *e, struct grammar_lib **lib, struct sl_err *err)
{
    struct structured *s = &e->structured;
    enum sl_status st = SL_OK;
    if (!e->text)
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD,
                             "structured_outputs need a tokenizer, and skip_tokenizer_init is "
                             "set.");
    mutex_lock(&s->lock);
    if (!s->lib) {
        int32_t eos = e->limits.n_eos ? e->limits.eos[0] : -1;
        st = grammar_lib_create(&s->lib, tokenizer_vocab(text_tokenizer(e->text)), eos, err);
    }
    *lib = s->lib;
    mutex_unlock(&s->lock);
    return st;
}

enum sl_status structured_prepare(struct sl_engine *e, struct request *r,
                                  const struct sl_sampling_params *p, struct sl_err *err)
{
    static const enum grammar_kind kind_of[] = {[SL_STRUCTURED_JSON] = GRAMMAR_JSON_SCHEMA,
                                                [SL_STRUCTURED_JSON_OBJECT] = GRAMMAR_JSON_OBJECT,
                                                [SL_STRUCTURED_REGEX] = GRAMMAR_REGEX,
                                                [SL_STRUCTURED_CHOICE] = GRAMMAR_CHOICE,
                                                [SL_STRUCTURED_GRAMMAR] = GRAMMAR_EBNF,
                                                [SL_STRUCTURED_TAG] = GRAMMAR_TAGS};
    const struct sl_structured_output *s = &p->structured;
    struct grammar_lib *lib = NULL;
    if (s->kind == SL_STRUCTURED_NONE)
        return SL_OK;
    if (s->kind < SL_STRUCTURED_NONE || s->kind > SL_STRUCTURED_TAG ||
        (!s->text && s->kind != SL_STRUCTURED_JSON_OBJECT))
        return SL_FAIL_PARAM(err, SL_EINVAL, FIELD, "structured_outputs: no text, or no such kind");
    enum sl_status st = get_lib(e, &lib, err);
    if (st)
        return st;
    struct grammar_spec spec = {
        .kind = kind_of[s->kind],
        .text = s->kind == SL_STRUCTURED_JSON_OBJECT ? NULL : s->text,
        .field = s->field,
        .compact = s->disable_any_whitespace || e->structured.compact,
        .closed = s->disable_additional_properties || e->structured.closed,
        .whitespace = s->whitespace_pattern,
    };
    spec.n_text = spec.text ? strlen(spec.text) : 0;
    st = grammar_compile(lib, &spec, &r->grammar, err);
    if (st)
        return st;
    r->lockstep = true; /* what may come next is known when the token before it is */
    atomic_fetch_add_explicit(&e->structured.n_live, 1, memory_order_release);
    return SL_OK;
}

void structured_release(struct sl_engine *e, struct request *r)
{
    if (!r->grammar)
        return;
    for (int i = 0; r->seq && i < r->n_seqs; i++)
        if (r->seq[i])
            matcher_destroy(&r->seq[i]->matcher);
    grammar_unref(&r->grammar);
    atomic_fetch_sub_explicit(&e->structured.n_live, 1, memory_order_relaxed);
}

/* ---- a step's masks -------------------------------------------------------------------------- */

/* Where the grammar begins in the output: behind the first place where `after` stands; -1: it has
 * not come. */
static int begins_at(const struct sl_structured_output *s, const int32_t *out, int n)
{
    size_t bytes = (size_t)(s->n_after > 0 ? s->n_after : 0) * sizeof *s->after;
    if (!bytes)
        return 0;
    for (int i = 0; i + s->n_after <= n; i++)
        if (memcmp(out + i, s->after, bytes) == 0)
            return i + s->n_after;
    return -1;
}

static uint32_t *take_row(struct structured *s, struct mask_room *room, int i)
{
    if (i >= room->cap) {
        int cap = room->cap ? 2 * room->cap : 8;
        uint32_t **p = mem_realloc(room->row, (size_t)cap, sizeof *p);
        if (!p)
            return NULL;
        room->row = p;
        room->cap = cap;
    }
    if (i >= room->n) {
        room->row[i] = mem_alloc((size_t)s->n_words, sizeof(uint32_t));
        if (!room->row[i])
            return NULL;
        room->n = i + 1;
    }
    return room->row[i];
}

/* Brings the matcher to the row's place. SL_EINVAL: the tokens before it are not the grammar's,
 * which a guess may be. */
static enum sl_status follow(struct sequence *q, const int32_t *out, int n)
{
    const struct seq_params *sp = &q->req->params;
    if (!q->matcher) {
        enum sl_status st = matcher_create(&q->matcher, q->req->grammar, sp->all_stop_ids,
                                           sp->n_all_stop_ids, NULL);
        if (st)
            return st;
    }
    return matcher_sync(q->matcher, out, n);
}

static void mask_row(struct structured *s, struct mask_room *room, int *used,
                     struct sample_row *row)
{
    struct sequence *q = (struct sequence *)row->seq; /* the engine thread's */
    const int32_t *out = q->tokens + q->n_prompt;
    int n = row->pos - q->n_prompt, n_allowed = 0;
    int from = begins_at(&q->req->params.p.structured, out, n);
    if (from < 0)
        return;
    enum sl_status st = follow(q, out + from, n - from);
    if (st == SL_EINVAL && row->pos > q->n_tokens)
        return; /* behind a guess that cannot be: this row will not count */
    int32_t forced = -1;
    uint32_t *bits = st ? NULL : take_row(s, room, *used);
    if (bits)
        st = matcher_mask(q->matcher, bits, s->n_words, &n_allowed, &forced);
    *used += bits != NULL;
    row->mask = bits && !st ? bits : s->nothing; /* no memory: this request alone ends */
    row->n_allowed = bits && !st ? n_allowed : 0;
    row->forced = bits && !st ? forced : -1;
}

void structured_masks(void *engine, int slot, struct batch *b)
{
    struct sl_engine *e = engine;
    struct structured *s = &e->structured;
    int used = 0;
    if (atomic_load_explicit(&s->n_live, memory_order_acquire) == 0)
        return;
    for (int i = 0; i < b->n_samples; i++)
        if (b->sample[i].seq->req->grammar)
            mask_row(s, &s->room[slot], &used, &b->sample[i]);
}

/* ---- guesses --------------------------------------------------------------------------------- */

int structured_refine(void *engine, struct sequence *q, int n, int most)
{
    struct structured *s = &((struct sl_engine *)engine)->structured;
    int32_t *out = q->tokens + q->n_prompt, forced;
    int known = q->n_tokens - q->n_prompt, end = known + n, n_allowed;
    int from = begins_at(&q->req->params.p.structured, out, end);
    if (from < 0)
        return n;
    int at = from > known ? from : known;
    if (follow(q, out + from, at - from))
        return n; /* the rows themselves will tell */
    while (at < end && matcher_accept(q->matcher, out[at]) == SL_OK)
        at++;
    while (at == end && at < known + most && !matcher_is_done(q->matcher) &&
           matcher_mask(q->matcher, s->scratch, s->n_words, &n_allowed, &forced) == SL_OK &&
           forced >= 0 && matcher_accept(q->matcher, forced) == SL_OK)
        out[at++] = forced, end++;
    return at - known;
}
