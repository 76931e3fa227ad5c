/* draftcost.h - how many guesses pay: what a step's rows cost, against what guesses are worth.
 *
 * A machine that waits for memory computes a few rows more for nothing; one that is busy with a
 * large batch pays for each. So the time of a step is learned as a curve over its rows, from the
 * steps themselves - prompts teach it what many rows cost - and likewise what making guesses costs.
 * A guess is worth the tokens that it is expected to bring: the j-th of a sequence whose guesses
 * are right with probability a brings a^j. Of a few thresholds on a^j the one with the most tokens
 * a second wins, and no guess at all wins unless another one is clearly better.
 *
 * Thread: its owner's.   Plain data, no allocation.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SCHED_DRAFTCOST_H
#define SL_SCHED_DRAFTCOST_H

#include <stdbool.h>
#include <stdint.h>

enum { COST_BUCKETS = 72, DRAFT_LEVELS = 16, DRAFT_NONE = -1 };

/* Nanoseconds over a number of rows: exact to 8, then four points an octave. */
struct cost_curve {
    float ns[COST_BUCKETS]; /* 0: not seen */
};

void cost_curve_add(struct cost_curve *c, int rows, double ns);
double cost_curve_at(const struct cost_curve *c, int rows); /* 0: nothing is known */

struct draft_cost {
    struct cost_curve step; /* a step of so many rows */
    struct cost_curve call; /* one guess each for so many sequences */
    unsigned n_refused;     /* decisions for no guess, since the last that was for some */
};

/* What a plan knows before it adds guesses. */
struct draft_case {
    int level[DRAFT_LEVELS]; /* sequences that may be guessed for, by acceptance */
    int n_rows;              /* of the step so far */
    int n_decodes;           /* rows that give a token */
    int max_rows;            /* guesses for which there is room */
    int max_tokens;          /* guesses a sequence, 1 to DRAFT_MAX */
    double cost_share;       /* of making a guess, in steps of one row, until it was measured */
    double catch_up_rows;    /* what the guesser lacks of their tokens, spread over the steps that
                                are left to them */
};

/* The level of an acceptance in [0, 1]. */
int draft_level(float acceptance);
/* The threshold to use, or DRAFT_NONE. Now and then one that seems a little too dear is tried, to
 * learn what it costs today. */
int draft_choose(struct draft_cost *c, const struct draft_case *k);
/* Guesses that a threshold gives to a sequence of this level, at most max_tokens. */
int draft_count(int threshold, int level, int max_tokens);

#endif
