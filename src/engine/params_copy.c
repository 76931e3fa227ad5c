/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/params.h"

#include "base/strbuf.h"

#include <string.h>

enum { MAX_BAD_WORDS = 128 };

static bool copy_array(struct arena *a, const void **field, int n, size_t size)
{
    if (n <= 0) {
        *field = NULL;
        return true;
    }
    void *copy = arena_alloc(a, (size_t)n, size);
    if (copy)
        memcpy(copy, *field, (size_t)n * size);
    *field = copy;
    return copy != NULL;
}

static bool copy_strings(struct arena *a, const char *const **field, int n)
{
    const char **copy = n > 0 ? arena_alloc(a, (size_t)n, sizeof *copy) : NULL;
    if (n > 0 && !copy)
        return false;
    for (int i = 0; i < n; i++)
        if (!(copy[i] = arena_strndup(a, (*field)[i], strlen((*field)[i]))))
            return false;
    *field = copy;
    return true;
}

static bool copy_biases(struct arena *a, struct sl_sampling_params *p)
{
    struct sl_logit_bias *copy =
        p->n_logit_bias > 0 ? arena_alloc(a, (size_t)p->n_logit_bias, sizeof *copy) : NULL;
    if (p->n_logit_bias > 0 && !copy)
        return false;
    for (int i = 0; i < p->n_logit_bias; i++) {
        float v = p->logit_bias[i].bias;
        copy[i] = p->logit_bias[i];
        copy[i].bias = v < -100 ? -100 : v > 100 ? 100 : v;
    }
    p->logit_bias = copy;
    return true;
}

/* Appends id unless the bitmap says that it is there, or outside the vocabulary. */
static void add_once(int32_t *ids, int *n, int32_t id, uint8_t *bitmap, int vocab)
{
    if (id < 0 || id >= vocab || (bitmap[id >> 3] >> (id & 7) & 1))
        return;
    bitmap[id >> 3] |= (uint8_t)(1 << (id & 7));
    ids[(*n)++] = id;
}

/* Two lists: what stops (a request's ids, then the model's further EOS ids unless ignored), and
 * what min_tokens forbids (all of these and every EOS, ignored or not): the second is the first
 * with more behind it. */
static bool merge_stops(const struct params_limits *l, struct arena *a, struct seq_params *sp)
{
    struct sl_sampling_params *p = &sp->p;
    int32_t *ids = arena_alloc(a, (size_t)p->n_stop_token_ids + (size_t)l->n_eos + 1, sizeof *ids);
    uint8_t *bitmap = mem_zalloc((size_t)l->vocab_size / 8 + 1, 1);
    int n = 0;
    if (!ids || !bitmap) {
        mem_free(bitmap);
        return false;
    }
    for (int i = 0; i < p->n_stop_token_ids; i++)
        add_once(ids, &n, p->stop_token_ids[i], bitmap, l->vocab_size);
    for (int i = 1; i < l->n_eos && !p->ignore_eos; i++)
        add_once(ids, &n, l->eos[i], bitmap, l->vocab_size);
    p->stop_token_ids = sp->all_stop_ids = ids;
    p->n_stop_token_ids = n;
    for (int i = 0; i < l->n_eos; i++)
        add_once(ids, &n, l->eos[i], bitmap, l->vocab_size);
    sp->n_all_stop_ids = n;
    sp->eos_token = l->n_eos ? l->eos[0] : -1;
    mem_free(bitmap);
    return true;
}

/* The words found so far: one list of tokens, and where each ends. */
struct word_list {
    struct token_vec tokens;
    int end[MAX_BAD_WORDS];
    int n; /* may pass MAX_BAD_WORDS: then it only counts */
};

/* Keep what was appended to the tokens since `from`, or drop it again. */
static void close_word(struct word_list *l, size_t from, bool keep)
{
    if (keep && l->n < MAX_BAD_WORDS)
        l->end[l->n] = (int)l->tokens.n;
    else
        l->tokens.n = from;
    l->n += keep;
}

/* The word as it begins a text, and after a space if that makes another token of it. */
static enum sl_status encode_bad_word(const struct tokenizer *t, const char *word,
                                      struct word_list *l, struct sl_err *err)
{
    word += strspn(word, " \t\n\v\f\r");
    struct strbuf spaced;
    strbuf_init(&spaced, 0);
    strbuf_addc(&spaced, ' ');
    strbuf_adds(&spaced, word);
    size_t plain = l->tokens.n, after, end;
    int32_t first = -1;
    enum sl_status st = spaced.failed ? SL_FAIL(err, SL_ENOMEM, "bad_words: no memory") : SL_OK;
    if (!st)
        st = tokenizer_encode(t, word, strlen(word), 0, 0, &l->tokens, err);
    if (!st) {
        after = l->tokens.n;
        first = after > plain ? l->tokens.ids[plain] : -1;
        close_word(l, plain, after > plain);
        size_t spaced_at = l->tokens.n;
        st = tokenizer_encode(t, spaced.data, spaced.len, 0, 0, &l->tokens, err);
        end = l->tokens.n;
        if (!st)
            close_word(l, spaced_at,
                       end > spaced_at && end - spaced_at == after - plain &&
                           l->tokens.ids[spaced_at] != first);
    }
    strbuf_fini(&spaced);
    return st;
}

static enum sl_status encode_bad_words(const struct tokenizer *t, struct arena *a,
                                       struct seq_params *sp, struct sl_err *err)
{
    if (sp->p.n_bad_words == 0)
        return SL_OK;
    if (!t)
        return SL_FAIL_PARAM(err, SL_EINVAL, "bad_words",
                             "bad_words need a tokenizer, and skip_tokenizer_init is set.");
    struct word_list l = {0};
    enum sl_status st = SL_OK;
    for (int i = 0; i < sp->p.n_bad_words && !st; i++)
        st = encode_bad_word(t, sp->p.bad_words[i], &l, err);
    if (!st && l.n > MAX_BAD_WORDS)
        st = SL_FAIL_PARAM(err, SL_EINVAL, "bad_words",
                           "Too many bad words after tokenization: %d. The max number is %d.", l.n,
                           MAX_BAD_WORDS);
    if (!st) {
        sp->bad_word_tokens = arena_alloc(a, l.tokens.n + 1, sizeof *sp->bad_word_tokens);
        sp->bad_word_start = arena_alloc(a, (size_t)l.n + 1, sizeof *sp->bad_word_start);
        if (!sp->bad_word_tokens || !sp->bad_word_start)
            st = SL_FAIL(err, SL_ENOMEM, "bad_words: no memory");
    }
    if (!st) {
        if (l.tokens.n)
            memcpy(sp->bad_word_tokens, l.tokens.ids, l.tokens.n * sizeof *l.tokens.ids);
        memcpy(sp->bad_word_start + 1, l.end, (size_t)l.n * sizeof *l.end);
        sp->n_bad_word_seqs = l.n;
    }
    token_vec_fini(&l.tokens);
    return st;
}

enum sl_status params_copy(const struct params_limits *l, const struct sl_sampling_params *p,
                           const struct tokenizer *t, struct arena *a, struct seq_params *out,
                           struct sl_err *err)
{
    *out = (struct seq_params){.p = *p, .eos_token = -1};
    struct sl_sampling_params *q = &out->p;
    const void *allowed = q->allowed_token_ids, *named = q->logprob_token_ids;
    const void *after = q->structured.after;
    bool ok = copy_strings(a, &q->stop, q->n_stop) &&
              copy_strings(a, &q->bad_words, q->n_bad_words) &&
              copy_array(a, &allowed, q->n_allowed_token_ids, sizeof *q->allowed_token_ids) &&
              copy_array(a, &named, q->n_logprob_token_ids, sizeof *q->logprob_token_ids) &&
              copy_array(a, &after, q->structured.n_after, sizeof *q->structured.after) &&
              copy_biases(a, q) && merge_stops(l, a, out);
    if (!ok)
        return SL_FAIL(err, SL_ENOMEM, "no memory for the request's parameters");
    if (q->use_beam_search) {
        out->beam_width = q->best_of == SL_NONE ? q->n : q->best_of;
        int top = out->beam_width + out->n_all_stop_ids;
        bool whole = q->logprobs != SL_NONE && q->logprobs < 0;
        top = q->logprobs > top ? q->logprobs : top;
        out->n_beam_top = whole || top > l->vocab_size ? l->vocab_size : top;
    }
    q->structured.text = q->structured.field = q->structured.whitespace_pattern = NULL;
    q->structured.after = after;
    q->allowed_token_ids = allowed;
    q->logprob_token_ids = named;
    return encode_bad_words(t, a, out, err);
}
