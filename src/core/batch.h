/* batch.h - one step's work as flat arrays, and one step's result; identical on every backend.
 *
 * Rows: a step computes n_tokens rows, grouped by sequence: sequence s owns rows
 * [q_start[s], q_start[s+1]), consecutive positions. Row r embeds token[r] at pos[r] and writes its
 * K and V to slot[g][r] in every layer group g (slot = block * block_size + offset); then it
 * attends to positions [0, pos[r]] of its sequence, through the block table.
 * token[r] == TOKEN_FROM_TABLE: the token that an earlier step sampled for (seq_row[s], pos[r]),
 * found in the device's own token table.
 * Logits are computed for rows logit_row[0 .. n_logits); sample rows and prompt-logprob rows name
 * an index into logit_row, in ascending order each, so that a runner may take logits in pieces.
 * Several sample rows may share one (n > 1 after the prompt).
 * Copies come before everything else of the step, in order (one may read what a later one writes).
 * A block-table entry may be -1 where a group's window has passed it: no row of the step reads it.
 *
 * Arrays are declared in BATCH_ARRAYS alone: name, type, length bound. batch_create() plans them
 * from the limits and allocates once; a step never allocates.
 *
 * Thread: the engine thread fills it; the backend reads it until the step is collected.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_BATCH_H
#define SL_CORE_BATCH_H

#include "base/status.h"
#include "core/kvlayout.h"
#include "core/sequence.h"

enum { TOKEN_FROM_TABLE = -1 };

struct batch_limits {
    int max_tokens;  /* rows a step: max_num_batched_tokens */
    int max_seqs;    /* max_num_seqs */
    int max_blocks;  /* block-table entries a step and group (all sequences) */
    int max_samples; /* sample rows */
    int max_logits;  /* logit rows */
    int n_groups;
    int max_copies; /* KV blocks copied before the step */
};

/* A whole KV block to copy before the step computes, in every layer of the group: on write of a
 * shared one, to host memory, or back from there (layout.n_host_blocks). */
enum copy_kind { COPY_ON_DEVICE, COPY_TO_HOST, COPY_FROM_HOST, N_COPY_KINDS };
struct block_copy {
    int32_t kind, group, src, dst;
};
/* For a cache that is in host memory itself, where those blocks follow the n_blocks others. */
static inline size_t block_copy_src(const struct block_copy *c, int n_blocks)
{
    return (size_t)c->src + (c->kind == COPY_FROM_HOST ? (size_t)n_blocks : 0);
}
static inline size_t block_copy_dst(const struct block_copy *c, int n_blocks)
{
    return (size_t)c->dst + (c->kind == COPY_TO_HOST ? (size_t)n_blocks : 0);
}

/* Draw the token at position `pos` (the next one) of `seq` from logits row `logit`. */
struct sample_row {
    const struct sequence *seq; /* params, and on host backends the tokens so far */
    int32_t logit;              /* index into logit_row */
    int32_t seq_row;            /* token table row that receives it */
    int32_t pos;                /* position that the token will have */
    /* `draft` was proposed for it, and is computed as the next row of this step. Consecutive sample
     * rows of one sequence are one proposal and what follows it: a row counts only if every row
     * before it drew what was proposed. */
    bool has_draft;
    int32_t draft;
    const float *draft_prob; /* [vocab] what the draft was drawn from; NULL: it was certain */
    /* Bit t of mask[t / 32]: token t is allowed; NULL: all are. Set after the plan, before the step
     * is submitted; lives as long as the step. n_allowed bits are set; forced: the only one, or -1
     * (also without a mask). */
    const uint32_t *mask;
    int32_t n_allowed, forced;
};

/* Logprobs of the prompt token at pos+1, from logits row `logit`. */
struct plogprob_row {
    const struct sequence *seq;
    int32_t logit;
    int32_t token; /* prompt token whose logprob is asked for */
};

/* Hidden states of batch rows [row, row + n) go to seq's pooling. */
struct pool_row {
    const struct sequence *seq;
    int32_t row, n;
};

#define BATCH_ARRAYS(X)                                                                          \
    X(token, int32_t, l->max_tokens)                                                             \
    X(pos, int32_t, l->max_tokens)                                                               \
    X(token_type, int32_t, l->max_tokens)                 /* 0, or 1: of a pair's second text */ \
    X(slot, int32_t, (size_t)l->n_groups * l->max_tokens) /* [group][max_tokens] */              \
    X(q_start, int32_t, l->max_seqs + 1)                                                         \
    X(kv_len, int32_t, l->max_seqs) /* positions in the cache after this step */                 \
    X(seq_row, int32_t, l->max_seqs)                                                             \
    X(seq, const struct sequence *, l->max_seqs)                                                 \
    X(block_start, int32_t, (size_t)l->n_groups *(l->max_seqs + 1)) /* [group][max_seqs + 1] */  \
    X(block, int32_t, (size_t)l->n_groups * l->max_blocks)          /* [group][max_blocks] */    \
    X(logit_row, int32_t, l->max_logits)                                                         \
    X(sample, struct sample_row, l->max_samples)                                                 \
    X(plogprob, struct plogprob_row, l->max_logits)                                              \
    X(pool, struct pool_row, l->max_seqs)                                                        \
    X(copy, struct block_copy, l->max_copies)

/* What the scheduler will want to know of a step when it learns what guessing costs. */
struct batch_drafts {
    bool on;       /* guesses were thought to pay */
    int n_running; /* sequences, when it was planned */
    bool ahead;    /* planned while another step was in flight */
    int n;         /* guesses among its rows */
    int n_waiting; /* sequences that wait for a step in flight, to be guessed for */
    int64_t ns;    /* what making the guesses took */
};

struct batch {
    struct batch_limits limits;
    int n_tokens, n_seqs, n_logits, n_samples, n_plogprobs, n_pools, n_copies;
    uint64_t step;      /* counts from 1 */
    int64_t planned_ns; /* when the plan was made, drafts included */
    struct batch_drafts drafts;
    void *memory; /* one allocation that holds every array */
#define BATCH_FIELD(name, type, len) type *name;
    BATCH_ARRAYS(BATCH_FIELD)
#undef BATCH_FIELD
};

SL_MUST_CHECK enum sl_status batch_create(struct batch **out, const struct batch_limits *limits,
                                          struct sl_err *err);
void batch_destroy(struct batch **b);
void batch_clear(struct batch *b);
/* Asserts what the first comment says, O(tokens + blocks); debug builds run it on every step. */
void batch_check(const struct batch *b, const struct kv_layout *layout);

static inline const int32_t *batch_blocks(const struct batch *b, int group, int s, int *n)
{
    const int32_t *start = b->block_start + (size_t)group * (b->limits.max_seqs + 1) + s;
    *n = start[1] - start[0];
    return b->block + (size_t)group * b->limits.max_blocks + start[0];
}

/* ---- what a step leaves on its device -------------------------------------------------------- */

enum { HIDDEN_LAYERS_MAX = 4 };

/* A row for each of the batch's, in the device's memory and type of activations. */
struct hidden_states {
    const void *final;                    /* normed, as the head of the model takes them */
    const void *layer[HIDDEN_LAYERS_MAX]; /* the residual behind the layers that were asked for */
};

/* ---- result --------------------------------------------------------------------------------- */

enum {
    TOKEN_BAD_LOGITS = -2, /* NaN in the logits: this sequence alone ends with an error */
    TOKEN_REFUTED = -3     /* not drawn: a row before it did not draw what was proposed */
};

/* token[i] answers sample[i]. Logprobs are ragged: those of sample i are
 * lp[lp_start[i] .. lp_start[i+1]), chosen first; prompt logprobs likewise in plp. */
struct step_result {
    int n_samples, n_plogprobs;
    int32_t *token;              /* [max_samples] */
    int32_t *lp_start;           /* [max_samples + 1] */
    int32_t *plp_start;          /* [max_logits + 1] */
    struct sl_logprob *lp, *plp; /* grow to what was asked for, keep their memory */
    int cap_lp, cap_plp;
    int64_t done_ns; /* the backend's clock when the step ended */
};

SL_MUST_CHECK enum sl_status
step_result_create(struct step_result **out, const struct batch_limits *limits, struct sl_err *err);
void step_result_destroy(struct step_result **r);
/* Room for n more logprob entries after used ones; false: no memory. */
SL_MUST_CHECK bool step_result_reserve(struct sl_logprob **entries, int *cap, int used, int n);

#endif
