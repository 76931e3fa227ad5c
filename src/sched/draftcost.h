/* draftcost.h - how many guesses pay: what a step's rows cost, against what guesses are worth.
 *
 * A machine that waits for memory computes a few rows more for nothing; one that is busy with a
 * large batch pays for each. So the time of a step is learned as a curve over its rows, from the
 * steps themselves - prompts teach it what many rows cost - and likewise what making guesses costs.
 * A guess is worth the tokens that it is expected to bring: the j-th of a sequence whose guesses
 * are right with probability a brings a^j. Of a few thresholds on a^j the one with the most tokens
 * a second wins, and no guess at all wins unless another one is clearly better.
 *
 * That is a forecast. What guessing then brings is measured: tokens a second of the steps with
 * guesses over those that the steps without would have given, the time between two results being a
 * step's (on a device with steps in flight it holds the wait for the one before). Where it brought
 * nothing in crowds of that size it rests, twice as long each time.
 *
 * Thread: its owner's.   Plain data, no allocation.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_SCHED_DRAFTCOST_H
#define SL_SCHED_DRAFTCOST_H

#include <stdbool.h>
#include <stdint.h>

enum { COST_BUCKETS = 72, DRAFT_LEVELS = 16, DRAFT_NONE = -1, CROWD_SIZES = 16 };

/* Nanoseconds over a number of rows: exact to 8, then four points an octave. */
struct cost_curve {
    float ns[COST_BUCKETS]; /* 0: not seen */
};

void cost_curve_add(struct cost_curve *c, int rows, double ns);
double cost_curve_at(const struct cost_curve *c, int rows); /* 0: nothing is known */

/* What guessing brought in crowds of 2^i to 2^(i + 1) sequences. */
struct draft_payoff {
    float gained;      /* tokens of the last steps, */
    float expected;    /* and those that steps without guesses give in the same time */
    int n;             /* steps measured since it last rested */
    int rest, backoff; /* decisions for none to come; how many the last time, 0: it pays */
};

struct draft_cost {
    struct cost_curve step;    /* a step of so many rows, while nobody is guessed for */
    struct cost_curve guessed; /* while somebody is; making the guesses apart */
    struct cost_curve call;    /* one guess each for so many sequences */
    float missed;              /* share of the sequences asked for that had no guess */
    struct draft_payoff payoff[CROWD_SIZES];
    unsigned n_refused; /* decisions for no guess, since the last that was for some */
    int n_trial;        /* decisions left of a trial */
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
/* In a crowd of n_live sequences: is guessing to rest? Asked once a decision, before the others. */
bool draft_rests(struct draft_cost *c, int n_live);
/* A step with guesses in such a crowd gave so many tokens, where those without would have given
 * `expected` in its time. Sums are compared: of two steps in flight one seems long and one short.
 */
void draft_measured(struct draft_cost *c, int n_live, double gained, double expected);
/* Of n sequences asked for n_found had a guess. */
void draft_found(struct draft_cost *c, int n, int n_found);
/* Guesses that a threshold gives to a sequence of this level, at most max_tokens. */
int draft_count(int threshold, int level, int max_tokens);

#endif
