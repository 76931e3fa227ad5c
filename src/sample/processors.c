/* SPDX-License-Identifier: Apache-2.0 */
#include "sample/processors.h"

#include <math.h>
#include <string.h>

static bool has_penalties(const struct sl_sampling_params *p)
{
    return p->repetition_penalty != 1.0f || p->frequency_penalty != 0.0f ||
           p->presence_penalty != 0.0f;
}

bool processors_needed(const struct sequence *seq, int pos)
{
    const struct seq_params *sp = &seq->req->params;
    return sp->p.n_allowed_token_ids >= 0 || sp->n_bad_word_seqs > 0 || sp->p.n_logit_bias > 0 ||
           pos - seq->n_prompt < sp->p.min_tokens || has_penalties(&sp->p);
}

static inline bool in_vocab(int32_t id, int n)
{
    return id >= 0 && id < n;
}

/* count marks the allowed ids, and is swept clean again. */
static void keep_allowed(const struct sl_sampling_params *p, float *x, int n, uint32_t *count)
{
    for (int i = 0; i < p->n_allowed_token_ids; i++)
        if (in_vocab(p->allowed_token_ids[i], n))
            count[p->allowed_token_ids[i]] = 1;
    for (int i = 0; i < n; i++) {
        if (!count[i])
            x[i] = -INFINITY;
        count[i] = 0;
    }
}

/* A bad word's last token is forbidden where the output ends with the tokens before it. */
static void forbid_bad_words(const struct seq_params *sp, const int32_t *out, int n_out, float *x,
                             int n)
{
    for (int w = 0; w < sp->n_bad_word_seqs; w++) {
        const int32_t *word = sp->bad_word_tokens + sp->bad_word_start[w];
        int len = sp->bad_word_start[w + 1] - sp->bad_word_start[w];
        if (len < 1 || len - 1 > n_out || !in_vocab(word[len - 1], n))
            continue;
        if (memcmp(out + n_out - (len - 1), word, (size_t)(len - 1) * sizeof *word) == 0)
            x[word[len - 1]] = -INFINITY;
    }
}

static void forbid_stops(const struct seq_params *sp, float *x, int n)
{
    for (int i = 0; i < sp->n_all_stop_ids; i++)
        if (in_vocab(sp->all_stop_ids[i], n))
            x[sp->all_stop_ids[i]] = -INFINITY;
}

/* Repetition looks at prompt and output, frequency and presence at the output alone.
 * A count's top bit says "seen in prompt or output", the rest counts the output. */
static void apply_penalties(const struct sl_sampling_params *p, const int32_t *tokens, int n_prompt,
                            int n_tokens, float *x, int n, uint32_t *count, int32_t *seen)
{
    const uint32_t mark = 1u << 31;
    int n_seen = 0;
    for (int i = p->repetition_penalty != 1.0f ? 0 : n_prompt; i < n_tokens; i++) {
        int32_t id = tokens[i];
        if (!in_vocab(id, n))
            continue;
        if (!count[id])
            seen[n_seen++] = id;
        count[id] = (count[id] | mark) + (i >= n_prompt);
    }
    for (int i = 0; i < n_seen; i++) {
        int32_t id = seen[i];
        uint32_t in_output = count[id] & ~mark;
        if (p->repetition_penalty != 1.0f)
            x[id] = x[id] > 0 ? x[id] / p->repetition_penalty : x[id] * p->repetition_penalty;
        if (in_output) {
            x[id] -= p->frequency_penalty * (float)in_output;
            x[id] -= p->presence_penalty;
        }
        count[id] = 0;
    }
}

void processors_apply(const struct sequence *seq, int pos, float *x, int n, uint32_t *count,
                      int32_t *seen)
{
    const struct seq_params *sp = &seq->req->params;
    const struct sl_sampling_params *p = &sp->p;
    const int32_t *out = seq->tokens + seq->n_prompt;
    int n_out = pos - seq->n_prompt;

    if (p->n_allowed_token_ids >= 0)
        keep_allowed(p, x, n, count);
    forbid_bad_words(sp, out, n_out, x, n);
    if (n_out < p->min_tokens)
        forbid_stops(sp, x, n);
    for (int i = 0; i < p->n_logit_bias; i++)
        if (in_vocab(p->logit_bias[i].token, n))
            x[p->logit_bias[i].token] += p->logit_bias[i].bias;
    if (has_penalties(p))
        apply_penalties(p, seq->tokens, seq->n_prompt, pos, x, n, count, seen);
}
