/* Verified guesses have the target's distribution: chi-squared per position, for both ways of
 * verifying, and convergence to the target but not to another distribution.
 *
 * Target and draft are Markov chains over a small vocabulary: logits depend on the token before, so
 * what each position should be is known exactly. Seeds are fixed: the outcome is too.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sample/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { V = 12, PLACES = 4, MAX_K = 3, CAP = PLACES + MAX_K + 2 };

/* Logits of the token after `before`. */
static void target_logits(int before, float *x)
{
    for (int v = 0; v < V; v++)
        x[v] = 2.2f * sinf((float)(1 + before * 7 + v * 3)) + (v == 3 ? 1 : 0);
}

static void draft_logits(int before, float *x)
{
    target_logits(before, x);
    for (int v = 0; v < V; v++)
        x[v] += 1.1f * cosf((float)(before * 5 + v * 11)); /* alike, not equal */
}

/* ---- what is right, by other means ------------------------------------------------------------
 */

static void probabilities(const struct sl_sampling_params *p, const float *x, double *prob)
{
    double max = -INFINITY, sum = 0, total = 0;
    bool kept[V] = {false};
    for (int v = 0; v < V; v++)
        max = fmax(max, (double)x[v]);
    for (int v = 0; v < V; v++)
        prob[v] = exp(((double)x[v] - max) / (double)p->temperature);
    for (int v = 0; v < V && p->top_k; v++) {
        int better = 0;
        for (int u = 0; u < V; u++)
            better += x[u] > x[v];
        if (better >= p->top_k)
            prob[v] = 0;
    }
    for (int v = 0; v < V; v++)
        sum += prob[v];
    for (double have = 0; have < (double)p->top_p * sum - 1e-12;) {
        int best = -1;
        for (int v = 0; v < V; v++)
            if (!kept[v] && prob[v] > 0 && (best < 0 || prob[v] > prob[best]))
                best = v;
        if (best < 0)
            break;
        kept[best] = true;
        have += prob[best];
    }
    for (int v = 0; v < V; v++)
        total += kept[v] ? prob[v] : 0;
    for (int v = 0; v < V; v++)
        prob[v] = kept[v] ? prob[v] / total : 0;
}

/* marginal[i]: of the i-th token after a prompt that ends with token 0. */
static void marginals(const struct sl_sampling_params *p, double marginal[PLACES][V])
{
    double step[V][V];
    float x[V];
    for (int u = 0; u < V; u++) {
        target_logits(u, x);
        probabilities(p, x, step[u]);
    }
    memcpy(marginal[0], step[0], sizeof step[0]);
    for (int i = 1; i < PLACES; i++)
        for (int v = 0; v < V; v++) {
            marginal[i][v] = 0;
            for (int u = 0; u < V; u++)
                marginal[i][v] += marginal[i - 1][u] * step[u][v];
        }
}

/* ---- a round of guesses and its verification --------------------------------------------------
 */

struct setup {
    struct sl_sampling_params p;
    int k;
    bool standard;
    bool certain; /* guesses as an n-gram lookup makes them: the draft's best token, no q */
};

struct rig {
    struct sampler *target, *draft;
    struct batch *b;
    struct step_result *r;
    struct request req;
    struct sequence seq;
    int32_t tokens[CAP + 1];
    float logits[(MAX_K + 1) * V], prob[MAX_K * V];
    long n_guesses, n_kept;
};

static void rig_open(struct rig *g, const struct setup *u)
{
    static const struct batch_limits limits = {.max_tokens = MAX_K + 1,
                                               .max_seqs = 1,
                                               .max_blocks = 1,
                                               .max_samples = MAX_K + 1,
                                               .max_logits = MAX_K + 1,
                                               .n_groups = 1};
    struct sl_err err = {0};
    *g = (struct rig){0};
    assert_int_equal(sampler_create(&g->target, V, SL_RAW_LOGPROBS, &err), SL_OK);
    assert_int_equal(sampler_create(&g->draft, V, SL_RAW_LOGPROBS, &err), SL_OK);
    if (u->standard)
        sampler_reject_by_probability(g->target);
    assert_int_equal(batch_create(&g->b, &limits, &err), SL_OK);
    assert_int_equal(step_result_create(&g->r, &limits, &err), SL_OK);
    g->req.params.p = u->p;
    g->seq = (struct sequence){.req = &g->req, .tokens = g->tokens, .n_prompt = 1, .n_tokens = 1};
}

static void rig_close(struct rig *g)
{
    sampler_destroy(&g->target);
    sampler_destroy(&g->draft);
    batch_destroy(&g->b);
    step_result_destroy(&g->r);
}

static void guess(struct rig *g, const struct setup *u, int j)
{
    float x[V];
    int at = g->seq.n_tokens + j;
    struct sample_row row = {.seq = &g->seq, .pos = at};
    draft_logits(g->tokens[at - 1], x);
    if (u->certain) {
        g->tokens[at] = 0;
        for (int v = 1; v < V; v++)
            if (x[v] > x[g->tokens[at]])
                g->tokens[at] = v;
        return;
    }
    g->tokens[at] = sampler_draft(g->draft, &row, x, u->standard ? g->prob + j * V : NULL);
    assert_true(g->tokens[at] >= 0);
}

/* One step: k guesses are verified, the sequence grows by what stands and one more. */
static void round_of(struct rig *g, const struct setup *u)
{
    struct batch *b = g->b;
    struct sl_err err = {0};
    for (int j = 0; j < u->k; j++)
        guess(g, u, j);
    b->n_samples = b->n_logits = u->k + 1;
    b->n_plogprobs = 0;
    for (int j = 0; j <= u->k; j++) {
        int at = g->seq.n_tokens + j;
        target_logits(g->tokens[at - 1], g->logits + j * V);
        b->sample[j] = (struct sample_row){.seq = &g->seq, .logit = j, .pos = at};
        if (j == u->k)
            break;
        b->sample[j].has_draft = true;
        b->sample[j].draft = g->tokens[at];
        b->sample[j].draft_prob = u->standard && !u->certain ? g->prob + j * V : NULL;
    }
    assert_int_equal(sampler_run(g->target, b, g->logits, g->r, &err), SL_OK);
    for (int j = 0; j <= u->k; j++) {
        bool stands = j < u->k && g->r->token[j] == b->sample[j].draft;
        assert_true(g->r->token[j] >= 0 && g->r->token[j] < V);
        g->n_guesses += j < u->k;
        g->n_kept += stands;
        g->tokens[g->seq.n_tokens++] = g->r->token[j];
        if (!stands) {
            for (int i = j + 1; i <= u->k; i++)
                assert_int_equal(g->r->token[i], TOKEN_REFUTED);
            break;
        }
    }
}

static void answer(struct rig *g, const struct setup *u, uint64_t seed)
{
    g->req.params.seed = seed;
    g->tokens[0] = 0;
    g->seq.n_tokens = 1;
    while (g->seq.n_tokens <= PLACES)
        round_of(g, u);
}

/* count[i][v]: how often place i was v; pair: (place 0, place 1). Returns the share kept. */
static double sample(const struct setup *u, int n, uint64_t seed, double count[PLACES][V],
                     double pair[V][V])
{
    struct rig g;
    rig_open(&g, u);
    memset(count, 0, PLACES * sizeof *count);
    memset(pair, 0, V * sizeof *pair);
    for (int i = 0; i < n; i++) {
        answer(&g, u, seed + (uint64_t)i);
        for (int place = 0; place < PLACES; place++)
            count[place][g.tokens[1 + place]]++;
        pair[g.tokens[1]][g.tokens[2]]++;
    }
    double kept = (double)g.n_kept / (double)g.n_guesses;
    rig_close(&g);
    return kept;
}

/* ---- tests ------------------------------------------------------------------------------------
 */

/* Chi-squared is below its 1 - 1e-5 quantile (Wilson-Hilferty), rare cells pooled. */
static void assert_distribution(const double *count, const double *want, int cells, int n,
                                const char *what, int place)
{
    double chi = 0, rest_count = 0, rest_want = 0;
    int df = -1;
    for (int c = 0; c < cells; c++) {
        double expected = want[c] * n;
        if (want[c] <= 0 && count[c] > 0)
            fail_msg("%s: place %d: %d has probability 0", what, place, c);
        if (expected < 5) {
            rest_count += count[c];
            rest_want += expected;
            continue;
        }
        chi += (count[c] - expected) * (count[c] - expected) / expected;
        df++;
    }
    if (rest_want > 1) {
        chi += (rest_count - rest_want) * (rest_count - rest_want) / rest_want;
        df++;
    }
    if (df < 1)
        return;
    double h = 2.0 / (9.0 * df), z = 4.265, root = 1 - h + z * sqrt(h);
    if (chi > df * root * root * root)
        fail_msg("%s: place %d: chi-squared %.1f with %d degrees of freedom", what, place, chi, df);
}

static void check(const struct setup *u, int n)
{
    char what[128];
    double want[PLACES][V], count[PLACES][V], pair[V][V], want_pair[V][V], next[V];
    snprintf(what, sizeof what, "%s%s, k %d, temperature %g, top_k %d, top_p %g",
             u->standard ? "standard" : "coupled", u->certain ? " of certain guesses" : "", u->k,
             (double)u->p.temperature, u->p.top_k, (double)u->p.top_p);
    double kept = sample(u, n, 1000, count, pair);
    marginals(&u->p, want);
    for (int i = 0; i < PLACES; i++)
        assert_distribution(count[i], want[i], V, n, what, i);
    for (int a = 0; a < V; a++) {
        float x[V];
        target_logits(a, x);
        probabilities(&u->p, x, next);
        for (int b = 0; b < V; b++)
            want_pair[a][b] = want[0][a] * next[b];
    }
    assert_distribution(pair[0], want_pair[0], V * V, n, what, -1);
    if (kept < 0.05 || kept > 0.98)
        fail_msg("%s: %.3f of the guesses kept: nothing was tested", what, kept);
}

static void for_every_setup(bool standard)
{
    static const float temperatures[] = {0.4f, 1, 1.8f};
    static const struct {
        int top_k;
        float top_p;
    } cuts[] = {{0, 1}, {5, 1}, {0, 0.8f}, {7, 0.9f}};
    for (int certain = 0; certain < 2; certain++)
        for (int k = 1; k <= 3; k += 2)
            for (size_t t = 0; t < 3; t++)
                for (size_t c = 0; c < 4; c++) {
                    struct setup u = {.k = k, .standard = standard, .certain = certain};
                    sl_sampling_params_init(&u.p);
                    u.p.logprobs = u.p.prompt_logprobs = SL_NONE;
                    u.p.temperature = temperatures[t];
                    u.p.top_k = cuts[c].top_k;
                    u.p.top_p = cuts[c].top_p;
                    check(&u, 6000);
                }
}

static void coupled_has_the_distribution(void **state)
{
    (void)state;
    for_every_setup(false);
}

static void standard_has_the_distribution(void **state)
{
    (void)state;
    for_every_setup(true);
}

static double distance(const double *count, const double *want, int n)
{
    double sum = 0;
    for (int v = 0; v < V; v++)
        sum += fabs(count[v] / n - want[v]);
    return sum / 2;
}

/* The distance to the target falls with the square root of the samples; that to the draft's own
 * distribution stays. */
static void converges(void **state)
{
    (void)state;
    for (int standard = 0; standard < 2; standard++) {
        struct setup u = {.k = 3, .standard = standard};
        double want[PLACES][V], draft[V], count[PLACES][V], pair[V][V];
        double to_target[3] = {0}, to_draft[3] = {0};
        float x[V];
        sl_sampling_params_init(&u.p);
        u.p.logprobs = u.p.prompt_logprobs = SL_NONE;
        marginals(&u.p, want);
        draft_logits(0, x);
        probabilities(&u.p, x, draft);
        for (int size = 0, n = 100; size < 3; size++, n *= 16) {
            enum { REPEATS = 5 };
            for (int again = 0; again < REPEATS; again++) {
                sample(&u, n, 1u + 1000000u * (unsigned)again, count, pair);
                for (int i = 0; i < PLACES; i++)
                    to_target[size] += distance(count[i], want[i], n) / (REPEATS * PLACES);
                to_draft[size] += distance(count[0], draft, n) / REPEATS;
            }
        }
        print_message("%s: to the target %.4f %.4f %.4f, to the draft %.4f %.4f %.4f\n",
                      standard ? "standard" : "coupled", to_target[0], to_target[1], to_target[2],
                      to_draft[0], to_draft[1], to_draft[2]);
        for (int size = 1; size < 3; size++) { /* 16 times the samples: a quarter of the distance */
            assert_true(to_target[size] < to_target[size - 1] / 2.5);
            assert_true(to_draft[size] > 0.6 * to_draft[0]);
        }
        assert_true(to_draft[2] > 10 * to_target[2]);
    }
}

/* Coupled, a seeded answer is the one without guesses, whatever k is. */
static void coupled_is_the_same_answer(void **state)
{
    (void)state;
    for (int k = 1; k <= 3; k++) {
        struct setup with = {.k = k}, without = {.k = 0};
        struct rig a, b;
        sl_sampling_params_init(&with.p);
        with.p.logprobs = with.p.prompt_logprobs = SL_NONE;
        with.p.repetition_penalty = 1.3f;
        with.p.frequency_penalty = 0.5f;
        without.p = with.p;
        rig_open(&a, &with);
        rig_open(&b, &without);
        for (uint64_t seed = 0; seed < 500; seed++) {
            answer(&a, &with, seed);
            answer(&b, &without, seed);
            assert_memory_equal(a.tokens, b.tokens, (1 + PLACES) * sizeof *a.tokens);
        }
        assert_true(a.n_kept > 100);
        rig_close(&a);
        rig_close(&b);
    }
}

/* Greedy: both ways keep exactly the best token. */
static void greedy_is_the_same_answer(void **state)
{
    (void)state;
    for (int standard = 0; standard < 2; standard++) {
        struct setup with = {.k = 3, .standard = standard}, without = {.k = 0};
        struct rig a, b;
        sl_sampling_params_init(&with.p);
        with.p.logprobs = with.p.prompt_logprobs = SL_NONE;
        with.p.temperature = 0;
        without.p = with.p;
        rig_open(&a, &with);
        rig_open(&b, &without);
        answer(&a, &with, 1);
        answer(&b, &without, 1);
        assert_memory_equal(a.tokens, b.tokens, (1 + PLACES) * sizeof *a.tokens);
        rig_close(&a);
        rig_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(coupled_has_the_distribution),
        cmocka_unit_test(standard_has_the_distribution),
        cmocka_unit_test(converges),
        cmocka_unit_test(coupled_is_the_same_answer),
        cmocka_unit_test(greedy_is_the_same_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
