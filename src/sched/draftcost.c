/* SPDX-License-Identifier: Apache-2.0 */
#include "sched/draftcost.h"

#include <math.h>

enum { CHUNK = 256 }; /* rows of a typical piece of a prompt */
enum { EXACT_ROWS = 8, PER_OCTAVE = 4, N_THRESHOLDS = 7, TRY_AGAIN = 256, FREE_ROWS = 16, FEW = 4 };
enum {
    TRIAL = 4,          /* decisions: with steps in flight the first ones only wait */
    MEASURE = 6,        /* steps before a verdict */
    SMOOTH = 16,        /* steps that the mean is of */
    REST = 128,         /* decisions, the first time */
    REST_MAX = 8192,    /* and at most */
    REMEMBER = 256,     /* measured steps after which steps without are looked at again */
    REMEMBER_STEPS = 4, /* so many */
};

static const float threshold_of[N_THRESHOLDS] = {0.8f, 0.6f, 0.45f, 0.3f, 0.2f, 0.1f, 0.05f};
static const double CLEARLY = 1.05;   /* guessing must promise that much more than not guessing */
static const double CROWDED = 1.25;   /* and this much where rows cost: estimates err there */
static const double TRY_LOSS = 0.8;   /* a trial may cost at most this share of a step's tokens */
static const double WEIGHT = 1.0 / 8; /* of a new measurement */
static const float PAYS = 1.02f;      /* measured: below it guessing rests */

/* ---- curves ---------------------------------------------------------------------------------- */

static int bucket_of(int rows)
{
    if (rows <= EXACT_ROWS)
        return rows > 0 ? rows - 1 : 0;
    int b = EXACT_ROWS - 1 + (int)ceilf(PER_OCTAVE * log2f((float)rows / EXACT_ROWS));
    return b < COST_BUCKETS ? b : COST_BUCKETS - 1;
}

static double rows_of(int bucket)
{
    if (bucket < EXACT_ROWS)
        return bucket + 1;
    return EXACT_ROWS * exp2((double)(bucket - (EXACT_ROWS - 1)) / PER_OCTAVE);
}

/* One slow step (a page fault, a busy host) must not close speculation for long. */
void cost_curve_add(struct cost_curve *c, int rows, double ns)
{
    float *v = &c->ns[bucket_of(rows)];
    if (ns <= 0)
        return;
    double old = (double)*v;
    if (old <= 0) {
        *v = (float)ns;
        return;
    }
    double now = ns > 2 * old ? 2 * old : ns < old / 2 ? old / 2 : ns;
    *v = (float)(old + (now - old) * WEIGHT);
}

double cost_curve_at(const struct cost_curve *c, int rows)
{
    int b = bucket_of(rows), lo = b, hi = b;
    while (lo >= 0 && c->ns[lo] <= 0)
        lo--;
    while (hi < COST_BUCKETS && c->ns[hi] <= 0)
        hi++;
    if (lo < 0)
        return hi < COST_BUCKETS ? (double)c->ns[hi] : 0;
    if (hi == lo)
        return (double)c->ns[lo];
    if (hi >= COST_BUCKETS) { /* nobody knows: as if rows were free to a point, and then no more */
        double full = rows_of(lo) > FREE_ROWS ? rows_of(lo) : FREE_ROWS;
        return (double)c->ns[lo] * (rows > full ? rows / full : 1);
    }
    double share = (rows_of(b) - rows_of(lo)) / (rows_of(hi) - rows_of(lo));
    return (double)c->ns[lo] + share * (double)(c->ns[hi] - c->ns[lo]);
}

/* ---- the choice ------------------------------------------------------------------------------ */

int draft_level(float acceptance)
{
    int level = (int)(acceptance * DRAFT_LEVELS);
    return level < 0 ? 0 : level >= DRAFT_LEVELS ? DRAFT_LEVELS - 1 : level;
}

static double acceptance_of(int level)
{
    return (level + 0.5) / DRAFT_LEVELS;
}

int draft_count(int threshold, int level, int max_tokens)
{
    double a = acceptance_of(level), p = a;
    int n = 0;
    for (; n < max_tokens && p >= (double)threshold_of[threshold]; p *= a)
        n++;
    return n;
}

/* Were steps of about so many rows seen? */
static bool is_known(const struct cost_curve *c, int rows)
{
    bool seen = false;
    for (int b = bucket_of(rows / 2); b <= bucket_of(2 * rows); b++)
        seen |= c->ns[b] > 0;
    return seen;
}

static double guessed_ns(const struct draft_cost *c, int rows)
{
    bool known = c->guessed.ns[bucket_of(rows)] > 0;
    return cost_curve_at(known ? &c->guessed : &c->step, rows);
}

/* Tokens a nanosecond if this threshold is used; *n_rows: guesses that it makes. */
static double rate_of(const struct draft_cost *c, const struct draft_case *k, int threshold,
                      double decode_ns, double base_ns, int *n_rows)
{
    double gain = 0;
    int rows = 0, deepest = 0, n_seqs = 0;
    for (int level = 0; level < DRAFT_LEVELS; level++) {
        int n = k->level[level] ? draft_count(threshold, level, k->max_tokens) : 0;
        double a = acceptance_of(level), each = a * (1 - pow(a, n)) / (1 - a);
        gain += each * k->level[level];
        rows += n * k->level[level];
        n_seqs += n ? k->level[level] : 0;
        deepest = n > deepest ? n : deepest;
    }
    *n_rows = rows;
    gain *= 1 - (double)c->missed;
    rows = (int)ceil(rows * (1 - (double)c->missed));
    if (rows > k->max_rows) { /* those who come last get none */
        gain *= (double)k->max_rows / rows;
        rows = k->max_rows;
    }
    double more = guessed_ns(c, k->n_rows + rows) - base_ns;
    double call = cost_curve_at(&c->call, n_seqs);
    if (call <= 0)
        call = k->cost_share * cost_curve_at(&c->step, n_seqs);
    double ns = decode_ns + (more > 0 ? more : 0) + deepest * call;
    ns += k->cost_share * k->catch_up_rows * cost_curve_at(&c->step, CHUNK) / CHUNK;
    return (k->n_decodes + gain) / ns;
}

/* A step may hold prompts too; guesses are weighed by the time that they add to it, against the
 * time that tokens cost in a step of decodes alone. */
int draft_choose(struct draft_cost *c, const struct draft_case *k)
{
    double decode_ns = cost_curve_at(&c->step, k->n_decodes);
    double base_ns = cost_curve_at(&c->step, k->n_rows);
    if (k->max_rows <= 0 || k->n_decodes <= 0)
        return DRAFT_NONE;
    if (!is_known(&c->step, k->n_decodes))
        return DRAFT_NONE; /* the first steps tell what they cost without */
    double without = k->n_decodes / decode_ns, best_rate = 0;
    int best = DRAFT_NONE;
    for (int t = 0; t < N_THRESHOLDS; t++) {
        int n_rows;
        double rate = rate_of(c, k, t, decode_ns, base_ns, &n_rows);
        if (n_rows > 0 && rate > best_rate) {
            best = t;
            best_rate = rate;
        }
    }
    if (best == DRAFT_NONE)
        return DRAFT_NONE;
    bool pays = best_rate > (k->n_decodes > FEW ? CROWDED : CLEARLY) * without;
    unsigned patience = k->n_decodes > FREE_ROWS ? 4 * TRY_AGAIN : TRY_AGAIN;
    /* Not where a draft model would first have to read everybody's prompt. */
    bool cheap = k->cost_share * k->catch_up_rows <= 0.25 * k->n_decodes;
    if (!pays && ++c->n_refused >= patience && cheap && best_rate > TRY_LOSS * without) {
        c->n_refused = 0;
        c->n_trial = TRIAL;
    }
    if (!pays && c->n_trial <= 0)
        return DRAFT_NONE;
    c->n_trial -= c->n_trial > 0;
    return best;
}

/* ---- what it came to ------------------------------------------------------------------------- */

static struct draft_payoff *payoff_of(struct draft_cost *c, int n_live)
{
    int i = 0;
    while (n_live > 1 && i < CROWD_SIZES - 1) {
        n_live >>= 1;
        i++;
    }
    return &c->payoff[i];
}

bool draft_rests(struct draft_cost *c, int n_live)
{
    struct draft_payoff *p = payoff_of(c, n_live);
    if (p->rest <= 0)
        return false;
    p->rest--;
    return true;
}

void draft_measured(struct draft_cost *c, int n_live, double gained, double expected)
{
    struct draft_payoff *p = payoff_of(c, n_live);
    float fade = p->n == 0 ? 0 : p->n < SMOOTH ? 1 : 1 - 1.0f / SMOOTH;
    p->n++;
    p->gained = p->gained * fade + (float)gained;
    p->expected = p->expected * fade + (float)expected;
    if (p->n < MEASURE)
        return;
    if (p->gained < PAYS * p->expected) {
        p->backoff = p->backoff == 0 ? REST : p->backoff < REST_MAX ? 2 * p->backoff : REST_MAX;
        p->rest = p->backoff;
        p->n = 0;
    } else {
        p->backoff = 0;
        if (p->n >= REMEMBER) {
            p->rest = REMEMBER_STEPS;
            p->n = 0;
        }
    }
}

void draft_found(struct draft_cost *c, int n, int n_found)
{
    float missed = (float)(n - n_found) / (float)n;
    c->missed += (missed - c->missed) * (float)WEIGHT;
}
