/* proposer.h - who guesses a sequence's next tokens, for the model to verify them all in one step.
 *
 * The scheduler asks inside sched_plan(), when it has decided who decodes in this step and how many
 * guesses pay; what is proposed is computed in that very step, beside everybody else's work. An
 * n-gram lookup, a tree of earlier outputs, a smaller model, heads over the hidden states: each is
 * one of these. A proposal can be wrong, too short or empty; it never changes what a request says.
 *
 * Heads that continue the target's own hidden states (Medusa, EAGLE) are shown those of each step
 * in step_begun(), and keep what they need of them by sequence and position. Which tokens were
 * drawn the sequences know when propose() is called: the state at n_tokens - 2 is the last one of a
 * token that stayed.
 *
 * Thread: the engine thread, all calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_PROPOSER_H
#define SL_CORE_PROPOSER_H

#include "core/batch.h"

enum { DRAFT_MAX = SL_DRAFT_MAX }; /* guesses for one sequence and step */

/* One sequence that decodes in this step. Its blocks cover positions [0, n_tokens + n), those from
 * n_tokens - 1 on its own. */
struct draft_item {
    struct sequence *seq; /* n_drafted is the proposer's to move */
    int32_t *token;       /* where the guess for position n_tokens goes, then the next: the
                             sequence's own array, so that seq->tokens reads on into it */
    int most;             /* how many are wanted */
    int n;                /* in: as many; out: how many there are */
    const float *prob;    /* out: [n, vocab_size] what each was drawn from, until the step is read;
                             NULL: they were certain, or nobody asks */
};

struct proposer;

struct proposer_ops {
    void (*propose)(struct proposer *p, struct draft_item *item, int n_items);
    /* These may be NULL. A block of the group that the draft's cache lives in has a new owner: what
     * the proposer keeps under its number is worthless. */
    void (*block_taken)(struct proposer *p, int32_t blk);
    /* The sequence has ended, its tokens complete. */
    void (*finished)(struct proposer *p, const struct sequence *seq);
    /* A step was given to the device; hidden: backend_ops.hidden, NULL where there are none. */
    void (*step_begun)(struct proposer *p, const struct batch *b,
                       const struct hidden_states *hidden);
    void (*destroy)(struct proposer *p);
};

struct proposer {
    const struct proposer_ops *ops;
    const char *name; /* "ngram", "suffix", "draft_model" */
    int max_tokens;   /* guesses a sequence and step at most, 1 to DRAFT_MAX */
    float cost_share; /* what a row costs it, as a share of what it costs the target; 0: nothing */
    int n_caught_up;  /* positions that the last call had to compute before it could guess */
    bool fixed;       /* as many as can be, whether they pay or not */
    int max_batch;    /* with more sequences than this nobody is guessed for; 0: no such limit */
    int group;        /* layer group whose block numbers its own cache uses */
    int vocab_size;   /* the target's: ids beyond it are thrown away */
    int layer[HIDDEN_LAYERS_MAX], n_layers; /* whose outputs it wants to see too */
};

#endif
