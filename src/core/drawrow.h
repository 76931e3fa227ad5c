/* drawrow.h - what a device needs to know to draw a token by itself, and what it gives back.
 *
 * sample/ makes a draw_row of a request's parameters; the device applies them to the row's logits
 * in the host sampler's order and draws. Weights are integers (DRAW_ONE for the most probable
 * token), so that their sums are exact in any order and both samplers give the same token for the
 * same logits. The tokens that penalties count are not sent: a device keeps what it has embedded,
 * by KV slot (ops->keeps_tokens).
 *
 * Plain data.   SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_DRAWROW_H
#define SL_CORE_DRAWROW_H

#include <stdbool.h>
#include <stdint.h>

/* Ids in a row's lists, best logprobs that a device gives, bytes of a step's masks: what is more is
 * sampled on the host. */
enum { DRAW_WORDS_MAX = 256, DRAW_TOP_MAX = 24, DRAW_MASK_BYTES = 8 << 20, DRAW_BITS = 40 };

struct draw_row {
    uint64_t seed;   /* of core/race.h, with pos and choice */
    int32_t logit;   /* index into logit_row; -1: this row is not for the device */
    int32_t seq;     /* sequence of the batch whose tokens precede this one */
    int32_t seq_row; /* where in the token table the token goes */
    int32_t pos;     /* position that the token will have */
    uint32_t choice;
    int32_t n_prompt;
    float temperature; /* 0: the best */
    float min_p_log;   /* log(min_p), -inf: off */
    float top_p;       /* 1: off */
    int32_t top_k;     /* 0: off */
    float repetition, frequency, presence;
    int32_t n_top; /* best logprobs that are wanted beside the token's own, -1: none at all */
    /* Lists, one after the other, in draw_rows.word from `list` on. */
    int32_t list;
    int32_t n_allowed;   /* -1: all are */
    int32_t n_forbidden; /* min_tokens: the stop ids */
    int32_t n_bias;      /* ids, then as many floats */
    int32_t mask;        /* of draw_rows.mask, -1: every token is allowed */
    int32_t forced;      /* the token, whatever the logits; -1: it is drawn */
};

/* A step's: row[i] is for sample[i] of the batch. */
struct draw_rows {
    struct draw_row *row;  /* [max_samples] */
    int32_t *word;         /* [cap_words] */
    const uint32_t **mask; /* [cap_masks], as sample_row.mask */
    int n_rows, n_words, cap_words, n_masks, cap_masks;
    int n_host; /* rows that are not for the device */
};

static inline int draw_mask_words(int vocab_size)
{
    return (vocab_size + 31) / 32;
}

/* Masks that a step of so many samples can have. */
static inline int draw_masks_max(int vocab_size, int max_samples)
{
    int fit = DRAW_MASK_BYTES / 4 / (draw_mask_words(vocab_size) + 3); /* placed 16-byte aligned */
    return fit < max_samples ? fit : max_samples;
}

/* Logprobs are the host's arithmetic from these: log p = x - (max + log(sum / DRAW_ONE)). */
struct draw_result {
    uint64_t sum; /* of the raw row's weights */
    int32_t token;
    int32_t rank; /* raw logits that are at least the token's */
    float x, max; /* raw logit of the token, and the largest */
    int32_t n_top, pad;
};

struct draw_top {
    int32_t id;
    float x;
};

/* The weight of a token whose probability is w times the largest one's. */
static inline uint64_t draw_weight(float w)
{
    return (uint64_t)(int64_t)(w * (float)((uint64_t)1 << DRAW_BITS));
}

#endif
