/* sampler: the order of its processors, the distribution of its draws, and that a row's token
 * depends on its own request alone.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "core/philox.h"
#include "sample/rowmath.h"
#include "sample/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 300, MAX_ROWS = 16 };

/* One request with one sequence of a two-token prompt, and what it has generated. */
struct fake {
    struct request req;
    struct sequence seq;
    int32_t tokens[64];
};

static void fake_init(struct fake *f, uint64_t seed)
{
    *f = (struct fake){.tokens = {7, 9}};
    sl_sampling_params_init(&f->req.params.p);
    f->req.params.p.max_tokens = 50;
    f->req.params.seed = seed;
    f->req.params.eos_token = -1;
    f->req.prompt = f->tokens;
    f->req.n_prompt = 2;
    sequence_init(&f->seq, &f->req, 0);
}

static void fake_output(struct fake *f, int n, const int32_t *out)
{
    memcpy(f->tokens + 2, out, (size_t)n * sizeof *out);
    f->seq.n_tokens = 2 + n;
}

struct bench {
    struct sampler *s;
    struct batch *b;
    struct step_result *r;
    float logits[MAX_ROWS * VOCAB];
};

static void bench_init(struct bench *t, enum sl_logprobs_mode mode)
{
    struct batch_limits l = {.max_tokens = MAX_ROWS,
                             .max_seqs = MAX_ROWS,
                             .max_blocks = MAX_ROWS,
                             .max_samples = MAX_ROWS,
                             .max_logits = MAX_ROWS,
                             .n_groups = 1};
    assert_int_equal(sampler_create(&t->s, VOCAB, mode, NULL), SL_OK);
    assert_int_equal(batch_create(&t->b, &l, NULL), SL_OK);
    assert_int_equal(step_result_create(&t->r, &l, NULL), SL_OK);
}

static void bench_fini(struct bench *t)
{
    sampler_destroy(&t->s);
    batch_destroy(&t->b);
    step_result_destroy(&t->r);
}

static void bench_add(struct bench *t, struct fake *f, int logit)
{
    t->b->sample[t->b->n_samples++] =
        (struct sample_row){.seq = &f->seq, .logit = logit, .pos = f->seq.n_tokens};
    if (logit >= t->b->n_logits)
        t->b->n_logits = logit + 1;
}

static int32_t bench_one(struct bench *t, struct fake *f, int logit)
{
    batch_clear(t->b);
    bench_add(t, f, logit);
    assert_int_equal(sampler_run(t->s, t->b, t->logits, t->r, NULL), SL_OK);
    return t->r->token[0];
}

static void fill_logits(float *x, int n, unsigned seed)
{
    for (int i = 0; i < n; i++)
        x[i] = (float)((double)philox_bits53(seed, (uint64_t)i, 0, PHILOX_TOKEN) * 0x1p-50 - 4);
}

/* ---- random numbers -------------------------------------------------------------------------- */

static void philox_known_answers(void **state)
{
    (void)state;
    /* of the authors' Random123 distribution */
    static const struct {
        uint32_t ctr[4];
        uint64_t key;
        uint32_t want[4];
    } kat[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
        uint32_t got[4];
        philox4x32(kat[i].ctr, kat[i].key, got);
        assert_memory_equal(got, kat[i].want, sizeof got);
    }
}

/* ---- passes over a row ----------------------------------------------------------------------- */

static void exponentials_are_accurate(void **state)
{
    (void)state;
    float x[1001], w[1001];
    double worst = 0, sum = 0;
    for (int i = 0; i < 1001; i++)
        x[i] = -(float)i * 0.08f;
    row_exp(w, x, 1001, 0);
    for (int i = 0; i < 1001; i++) {
        double want = exp((double)x[i]), rel = fabs((double)w[i] - want) / want;
        worst = rel > worst ? rel : worst;
        sum += want;
    }
    assert_true(worst < 2.5e-7); /* 2 ulp of float */
    assert_true(fabs((double)row_sum_exp(x, 1001, 0) * 0x1p-40 - sum) < 1e-6 * sum);
    assert_true(w[0] == 1.0f);
    x[0] = -INFINITY;
    row_exp(w, x, 1, 5);
    assert_true(w[0] == 0.0f);
}

static void top_is_a_sorted_prefix(void **state)
{
    (void)state;
    float x[VOCAB];
    int32_t all[VOCAB], some[VOCAB];
    fill_logits(x, VOCAB, 3);
    for (int i = 0; i < VOCAB; i += 3)
        x[i] = 1.25f; /* many ties */
    row_top(x, NULL, VOCAB, VOCAB, all);
    for (int i = 1; i < VOCAB; i++)
        assert_true(x[all[i - 1]] > x[all[i]] ||
                    (x[all[i - 1]] == x[all[i]] && all[i - 1] < all[i]));
    for (int k = 0; k <= VOCAB; k += 7) {
        row_top(x, NULL, VOCAB, k, some);
        assert_memory_equal(some, all, (size_t)k * sizeof *some);
    }
    assert_int_equal(row_count_ge(x, VOCAB, x[all[0]]), x[all[0]] == x[all[1]] ? 2 : 1);
}

static void maximum_finds_what_is_broken(void **state)
{
    (void)state;
    float x[VOCAB], m;
    for (int at = 0; at < VOCAB; at++) {
        fill_logits(x, VOCAB, 4);
        x[at] = 100;
        assert_true(row_max(x, VOCAB, &m));
        assert_true(m == 100.0f);
        assert_int_equal(row_find(x, VOCAB, m), at);
        x[at] = NAN;
        assert_false(row_max(x, VOCAB, &m));
        x[at] = INFINITY;
        assert_false(row_max(x, VOCAB, &m));
        x[at] = -INFINITY;
        assert_true(row_max(x, VOCAB, &m));
    }
}

/* ---- greedy and processors ------------------------------------------------------------------- */

static void greedy_takes_the_lowest_of_equals(void **state)
{
    struct bench *t = *state;
    struct fake f;
    fake_init(&f, 1);
    f.req.params.p.temperature = 0;
    fill_logits(t->logits, VOCAB, 5);
    t->logits[250] = t->logits[77] = t->logits[199] = 9;
    assert_int_equal(bench_one(t, &f, 0), 77);
}

static void broken_rows_fail_alone(void **state)
{
    struct bench *t = *state;
    struct fake f[4];
    for (int i = 0; i < 4; i++) {
        fake_init(&f[i], 5);
        f[i].req.params.p.temperature = i % 2 ? 1 : 0;
        f[i].req.params.p.logprobs = 2;
    }
    fill_logits(t->logits, 4 * VOCAB, 6);
    t->logits[VOCAB + 17] = NAN;
    t->logits[2 * VOCAB + 299] = INFINITY;
    batch_clear(t->b);
    for (int i = 0; i < 4; i++)
        bench_add(t, &f[i], i);
    assert_int_equal(sampler_run(t->s, t->b, t->logits, t->r, NULL), SL_OK);
    assert_true(t->r->token[0] >= 0);
    assert_int_equal(t->r->token[1], TOKEN_BAD_LOGITS);
    assert_int_equal(t->r->token[2], TOKEN_BAD_LOGITS);
    assert_true(t->r->token[3] >= 0);
    int want[] = {0, 3, 3, 3, 6};
    assert_memory_equal(t->r->lp_start, want, sizeof want);

    static const int32_t only[] = {5};
    f[0].req.params.p.allowed_token_ids = only;
    f[0].req.params.p.n_allowed_token_ids = 1;
    f[0].req.params.all_stop_ids = (int32_t *)only;
    f[0].req.params.n_all_stop_ids = 1;
    f[0].req.params.p.min_tokens = 1;
    assert_int_equal(bench_one(t, &f[0], 0), TOKEN_BAD_LOGITS); /* nothing is left to choose */
    f[0].req.params.p.min_tokens = 0;
    assert_int_equal(bench_one(t, &f[0], 0), 5);
}

/* Each processor is seen through the processed logits it leaves. */
static void processors_one_by_one(void **state)
{
    (void)state;
    struct bench t = {0};
    bench_init(&t, SL_PROCESSED_LOGITS);
    struct fake f;
    fake_init(&f, 1);
    struct seq_params *sp = &f.req.params;
    sp->p.temperature = 0;
    sp->p.logprobs = -1;
    fake_output(&f, 3, (int32_t[]){20, 21, 20});
    fill_logits(t.logits, VOCAB, 8);
    t.logits[20] = 2;
    t.logits[9] = -2;
    float got[VOCAB];
#define RUN()                                           \
    do {                                                \
        assert_true(bench_one(&t, &f, 0) >= 0);         \
        assert_int_equal(t.r->lp_start[1], VOCAB + 1);  \
        for (int e = 1; e <= VOCAB; e++)                \
            got[t.r->lp[e].token] = t.r->lp[e].logprob; \
    } while (0)

    RUN();
    assert_memory_equal(got, t.logits, sizeof got);

    sp->p.allowed_token_ids = (int32_t[]){3, 250};
    sp->p.n_allowed_token_ids = 2;
    RUN();
    for (int i = 0; i < VOCAB; i++)
        assert_true(i == 3 || i == 250 ? got[i] == t.logits[i] : got[i] == -INFINITY);
    sp->p.n_allowed_token_ids = -1;

    /* [20] always; [21, 20, 30] matches the output's end; [20, 21, 31] does not; too long */
    sp->bad_word_tokens = (int32_t[]){20, 21, 20, 30, 20, 21, 31, 20, 21, 20, 21, 40};
    sp->bad_word_start = (int[]){0, 1, 4, 7, 12};
    sp->n_bad_word_seqs = 4;
    RUN();
    for (int i = 0; i < VOCAB; i++)
        assert_true(i == 20 || i == 30 ? got[i] == -INFINITY : got[i] == t.logits[i]);
    sp->n_bad_word_seqs = 0;

    sp->all_stop_ids = (int32_t[]){50, 51, 5000};
    sp->n_all_stop_ids = 3;
    sp->p.min_tokens = 4;
    RUN();
    assert_true(got[50] == -INFINITY && got[51] == -INFINITY && got[52] == t.logits[52]);
    sp->p.min_tokens = 3;
    RUN();
    assert_memory_equal(got, t.logits, sizeof got);

    struct sl_logit_bias bias[] = {{60, 1.5f}, {61, -100}};
    sp->p.logit_bias = bias;
    sp->p.n_logit_bias = 2;
    RUN();
    assert_true(got[60] == t.logits[60] + 1.5f && got[61] == t.logits[61] - 100);
    sp->p.n_logit_bias = 0;

    sp->p.repetition_penalty = 2;
    RUN();
    assert_true(got[20] == 1.0f && got[9] == -4.0f); /* output and prompt, positive and negative */
    assert_true(got[22] == t.logits[22]);
    sp->p.repetition_penalty = 1;
    sp->p.frequency_penalty = 0.5f;
    sp->p.presence_penalty = 0.25f;
    RUN();
    assert_true(got[20] == 2 - 1.0f - 0.25f);
    assert_true(got[21] == t.logits[21] - 0.5f - 0.25f);
    assert_true(got[9] == -2.0f); /* the prompt does not count */
    bench_fini(&t);
#undef RUN
}

/* ---- distributions --------------------------------------------------------------------------- */

struct setting {
    float temperature, min_p, top_p;
    int top_k;
};

/* The definition, in double and with a full sort. */
static void naive_probs(const struct setting *g, const float *logits, double *p)
{
    int32_t order[VOCAB];
    double z = 0, acc = 0;
    row_top(logits, NULL, VOCAB, VOCAB, order);
    double max = (double)logits[order[0]];
    for (int i = 0; i < VOCAB; i++)
        p[i] = exp(((double)logits[i] - max) / (double)g->temperature);
    for (int i = 0; i < VOCAB; i++) {
        bool drop = p[i] < (double)g->min_p;
        if (g->top_k && logits[i] < logits[order[g->top_k - 1]])
            drop = true;
        p[i] = drop ? 0 : p[i];
        z += p[i];
    }
    for (int i = 0; i < VOCAB; i++) { /* keep while what came before is under top_p */
        double before = acc;
        acc += p[order[i]] / z;
        if (i && before >= (double)g->top_p)
            p[order[i]] = 0;
    }
    z = 0;
    for (int i = 0; i < VOCAB; i++)
        z += p[i];
    for (int i = 0; i < VOCAB; i++)
        p[i] /= z;
}

/* Upper point of chi-squared that chance passes once in a million (Wilson-Hilferty). */
static double chi2_limit(int dof)
{
    double a = 2.0 / (9.0 * dof);
    return dof * pow(1 - a + 4.753 * sqrt(a), 3);
}

static void draws_follow_the_distribution(void **state)
{
    struct bench *t = *state;
    static const struct setting settings[] = {
        {1, 0, 1, 0},      {0.5f, 0, 1, 0},      {2, 0, 1, 0},     {1, 0, 1, 10},
        {1, 0, 0.9f, 0},   {0.7f, 0, 0.5f, 0},   {1, 0.1f, 1, 0},  {0.8f, 0.05f, 0.95f, 40},
        {1, 0, 0.99f, 40}, {1.5f, 0, 0.999f, 0}, {1, 0, 1e-6f, 0}, {1, 1, 1, 0},
    };
    enum { DRAWS = 40000 };
    for (size_t g = 0; g < sizeof settings / sizeof *settings; g++) {
        const struct setting *set = &settings[g];
        struct fake f;
        double p[VOCAB], chi2 = 0, rest_p = 0, rest_n = 0;
        static int seen[VOCAB];
        int cells = 0;
        memset(seen, 0, sizeof seen);
        fake_init(&f, 1000 + g);
        f.req.params.p.temperature = set->temperature;
        f.req.params.p.min_p = set->min_p;
        f.req.params.p.top_p = set->top_p;
        f.req.params.p.top_k = set->top_k;
        fill_logits(t->logits, VOCAB, (unsigned)(20 + g));
        naive_probs(set, t->logits, p);
        batch_clear(t->b);
        bench_add(t, &f, 0);
        for (int i = 0; i < DRAWS; i++) {
            t->b->sample[0].pos = 2 + i;
            assert_int_equal(sampler_run(t->s, t->b, t->logits, t->r, NULL), SL_OK);
            assert_in_range(t->r->token[0], 0, VOCAB - 1);
            seen[t->r->token[0]]++;
        }
        for (int i = 0; i < VOCAB; i++) {
            if (p[i] == 0) {
                assert_int_equal(seen[i], 0); /* what is filtered never comes */
            } else if (p[i] * DRAWS < 5) {
                rest_p += p[i];
                rest_n += seen[i];
            } else {
                double e = p[i] * DRAWS;
                chi2 += (seen[i] - e) * (seen[i] - e) / e;
                cells++;
            }
        }
        if (rest_p * DRAWS >= 5) {
            chi2 += (rest_n - rest_p * DRAWS) * (rest_n - rest_p * DRAWS) / (rest_p * DRAWS);
            cells++;
        }
        if (cells > 1 && chi2 > chi2_limit(cells - 1))
            fail_msg("setting %zu: chi-squared %.1f over %d cells", g, chi2, cells);
    }
}

/* Equal weights: ties at top_p's edge go to the lower ids. */
static void ties_at_the_edge(void **state)
{
    struct bench *t = *state;
    struct fake f;
    fake_init(&f, 3);
    f.req.params.p.top_p = 0.25f;
    for (int i = 0; i < VOCAB; i++)
        t->logits[i] = 1;
    int highest = 0;
    for (int i = 0; i < 2000; i++) {
        f.req.params.seed = (uint64_t)i;
        int32_t got = bench_one(t, &f, 0);
        highest = got > highest ? got : highest;
    }
    assert_int_equal(highest, VOCAB / 4 - 1);
    f.req.params.p.top_p = 1;
    f.req.params.p.top_k = 3; /* ties with the third all stay, as in vLLM */
    highest = 0;
    for (int i = 0; i < 2000; i++) {
        f.req.params.seed = (uint64_t)i;
        int32_t got = bench_one(t, &f, 0);
        highest = got > highest ? got : highest;
    }
    assert_true(highest > 3 * VOCAB / 4);
}

/* ---- independence ---------------------------------------------------------------------------- */

static void rows_do_not_see_each_other(void **state)
{
    struct bench *t = *state;
    static struct fake f[MAX_ROWS];
    int32_t alone[MAX_ROWS];
    static struct sl_logprob lp[MAX_ROWS][6];
    fill_logits(t->logits, MAX_ROWS * VOCAB, 40);
    for (int i = 0; i < MAX_ROWS; i++) {
        fake_init(&f[i], (uint64_t)i / 4);
        struct sl_sampling_params *p = &f[i].req.params.p;
        p->temperature = i % 3 ? 0.9f : 0;
        p->top_p = i % 4 ? 0.8f : 1;
        p->top_k = i % 5 ? 0 : 7;
        p->repetition_penalty = i % 2 ? 1.3f : 1;
        p->logprobs = 5;
        fake_output(&f[i], 3, (int32_t[]){i, 100 + i, i});
        alone[i] = bench_one(t, &f[i], i);
        assert_int_equal(t->r->lp_start[1], 6);
        memcpy(lp[i], t->r->lp, sizeof lp[i]);
    }
    for (int first = 0; first < MAX_ROWS; first += 5) {
        batch_clear(t->b);
        for (int j = 0; j < MAX_ROWS; j++)
            bench_add(t, &f[(first + 7 * j) % MAX_ROWS], (first + 7 * j) % MAX_ROWS);
        assert_int_equal(sampler_run(t->s, t->b, t->logits, t->r, NULL), SL_OK);
        for (int j = 0; j < MAX_ROWS; j++) {
            int i = (first + 7 * j) % MAX_ROWS;
            assert_int_equal(t->r->token[j], alone[i]);
            assert_memory_equal(t->r->lp + t->r->lp_start[j], lp[i], sizeof lp[i]);
        }
    }
}

/* Choices, positions and seeds draw differently: agreement is what chance gives. */
static void choices_are_not_correlated(void **state)
{
    struct bench *t = *state;
    struct fake f;
    fake_init(&f, 99);
    f.req.params.p.top_k = 8;
    for (int i = 0; i < VOCAB; i++)
        t->logits[i] = i < 8 ? 1 : -9;
    int same = 0;
    enum { N = 8000 };
    for (int i = 0; i < N; i++) {
        f.seq.n_tokens = 2 + i % 40;
        f.req.params.seed = (uint64_t)i / 40;
        f.seq.index = 0;
        int32_t a = bench_one(t, &f, 0);
        f.seq.index = 1;
        same += a == bench_one(t, &f, 0);
    }
    double sd = sqrt(N * (1 / 8.0) * (7 / 8.0));
    assert_true(fabs(same - N / 8.0) < 5 * sd);
}

/* ---- logprobs -------------------------------------------------------------------------------- */

static void logprobs_are_log_softmax(void **state)
{
    struct bench *t = *state;
    struct fake f;
    double z = 0;
    fake_init(&f, 1);
    f.req.params.p.temperature = 0.5f; /* raw logprobs do not see it */
    f.req.params.p.logprobs = 3;
    f.req.params.p.logprob_token_ids = (int32_t[]){11, 299};
    f.req.params.p.n_logprob_token_ids = 2;
    fill_logits(t->logits, VOCAB, 50);
    for (int i = 0; i < VOCAB; i++)
        z += exp((double)t->logits[i]);
    int32_t chosen = bench_one(t, &f, 0), order[VOCAB];
    row_top(t->logits, NULL, VOCAB, VOCAB, order);
    assert_int_equal(t->r->lp_start[1], 6);
    for (int e = 0; e < 6; e++) {
        const struct sl_logprob *lp = &t->r->lp[e];
        int32_t id = e == 0 ? chosen : e < 4 ? order[e - 1] : e == 4 ? 11 : 299;
        assert_int_equal(lp->token, id);
        assert_true(fabs((double)lp->logprob - ((double)t->logits[id] - log(z))) < 2e-6);
        assert_int_equal(order[lp->rank - 1], id);
    }
    f.req.params.p.logprobs = 0;
    f.req.params.p.n_logprob_token_ids = 0;
    bench_one(t, &f, 0);
    assert_int_equal(t->r->lp_start[1], 1);
    f.req.params.p.logprobs = SL_NONE;
    bench_one(t, &f, 0);
    assert_int_equal(t->r->lp_start[1], 0);
}

static void processed_logprobs_see_the_filters(void **state)
{
    (void)state;
    struct bench t = {0};
    bench_init(&t, SL_PROCESSED_LOGPROBS);
    struct setting set = {0.7f, 0, 0.6f, 20};
    struct fake f;
    double p[VOCAB];
    fake_init(&f, 1);
    f.req.params.p.temperature = set.temperature;
    f.req.params.p.top_k = set.top_k;
    f.req.params.p.top_p = set.top_p;
    f.req.params.p.logprobs = -1;
    fill_logits(t.logits, VOCAB, 51);
    naive_probs(&set, t.logits, p);
    bench_one(&t, &f, 0);
    assert_int_equal(t.r->lp_start[1], VOCAB + 1);
    for (int e = 0; e <= VOCAB; e++) {
        double want = p[t.r->lp[e].token];
        if (want > 0)
            assert_true(fabs((double)t.r->lp[e].logprob - log(want)) < 1e-5);
        else
            assert_true(t.r->lp[e].logprob == -INFINITY);
    }
    bench_fini(&t);
}

static void prompt_logprobs_name_the_prompts_token(void **state)
{
    struct bench *t = *state;
    struct fake f;
    fake_init(&f, 1);
    f.req.params.p.prompt_logprobs = 1;
    fill_logits(t->logits, 2 * VOCAB, 52);
    batch_clear(t->b);
    t->b->n_logits = 2;
    t->b->n_plogprobs = 2;
    t->b->plogprob[0] = (struct plogprob_row){.seq = &f.seq, .logit = 1, .token = 123};
    t->b->plogprob[1] = (struct plogprob_row){.seq = &f.seq, .logit = 0, .token = 7};
    assert_int_equal(sampler_run(t->s, t->b, t->logits, t->r, NULL), SL_OK);
    assert_int_equal(t->r->n_plogprobs, 2);
    assert_int_equal(t->r->plp_start[1], 2);
    assert_int_equal(t->r->plp_start[2], 4);
    assert_int_equal(t->r->plp[0].token, 123);
    assert_int_equal(t->r->plp[2].token, 7);
    double z = 0;
    for (int i = 0; i < VOCAB; i++)
        z += exp((double)t->logits[VOCAB + i]);
    assert_true(fabs((double)t->r->plp[0].logprob - ((double)t->logits[VOCAB + 123] - log(z))) <
                2e-6);
}

static void a_warm_run_allocates_nothing(void **state)
{
    struct bench *t = *state;
    struct fake f;
    fake_init(&f, 1);
    f.req.params.p.logprobs = 20;
    f.req.params.p.top_p = 0.9f;
    f.req.params.p.presence_penalty = 1;
    fill_logits(t->logits, VOCAB, 60);
    bench_one(t, &f, 0);
    uint64_t before = mem_count();
    for (int i = 0; i < 20; i++)
        bench_one(t, &f, 0);
    assert_true(mem_count() == before);
}

/* The best tokens of log_softmax, whatever the mode; processors change the logprobs, which are not
 * normalized again. */
static void a_beams_row_gives_candidates(void **state)
{
    struct bench *t = *state, logits;
    struct fake f;
    double z = 0;
    int32_t order[VOCAB];
    fake_init(&f, 1);
    f.req.params.beam_width = 4;
    f.req.params.n_beam_top = 6;
    f.req.params.p.temperature = 0;
    f.req.params.p.logprob_token_ids = (int32_t[]){11, 299};
    f.req.params.p.n_logprob_token_ids = 2;
    fill_logits(t->logits, VOCAB, 51);
    t->logits[200] = t->logits[20] = 4.5f; /* a tie: the lower id goes first */
    for (int i = 0; i < VOCAB; i++)
        z += exp((double)t->logits[i]);
    row_top(t->logits, NULL, VOCAB, VOCAB, order);
    bench_init(&logits, SL_PROCESSED_LOGITS);
    memcpy(logits.logits, t->logits, sizeof t->logits);
    for (int mode = 0; mode < 2; mode++) {
        struct bench *u = mode ? &logits : t;
        assert_int_equal(bench_one(u, &f, 0), 20);
        assert_int_equal(u->r->lp_start[1], 8);
        for (int e = 0; e < 8; e++) {
            const struct sl_logprob *lp = &u->r->lp[e];
            int32_t id = e < 6 ? order[e] : e == 6 ? 11 : 299;
            assert_int_equal(lp->token, id);
            assert_true(fabs((double)lp->logprob - ((double)t->logits[id] - log(z))) < 2e-6);
            assert_int_equal(order[lp->rank - 1], id);
        }
    }
    bench_fini(&logits);
    struct sl_logit_bias bias = {.token = order[5], .bias = 50};
    f.req.params.p.logit_bias = &bias;
    f.req.params.p.n_logit_bias = 1;
    assert_int_equal(bench_one(t, &f, 0), order[5]);
    assert_true(fabs((double)t->r->lp[0].logprob - ((double)t->logits[order[5]] - log(z) + 50)) <
                1e-5);
    assert_true(fabs((double)t->r->lp[1].logprob - (4.5 - log(z))) < 2e-6);
    t->logits[7] = NAN;
    assert_int_equal(bench_one(t, &f, 0), TOKEN_BAD_LOGITS);
    assert_int_equal(t->r->lp_start[1], 0);
}

static void allocation_failures_are_reported(void **state)
{
    (void)state;
    for (long nth = 1;; nth++) {
        struct sampler *s = NULL;
        struct sl_err err = {0};
        mem_fail_nth(nth);
        enum sl_status st = sampler_create(&s, VOCAB, SL_RAW_LOGPROBS, &err);
        mem_fail_nth(0);
        if (st == SL_OK) {
            sampler_destroy(&s);
            assert_true(nth > 5);
            break;
        }
        assert_int_equal(st, SL_ENOMEM);
        assert_null(s);
        assert_true(err.msg[0]);
    }
}

static int setup(void **state)
{
    static struct bench t;
    bench_init(&t, SL_RAW_LOGPROBS);
    *state = &t;
    return 0;
}

static int teardown(void **state)
{
    bench_fini(*state);
    return 0;
}

/* What a device is told: a row that is left to the host has nothing that it would look up. */
static void a_device_is_told_of_its_rows_alone(void **state)
{
    static const uint32_t mask[(VOCAB + 31) / 32] = {6};
    struct fake host, free_, masked, forced;
    struct bench t;
    struct draw_row row[4];
    int32_t words[4 * DRAW_WORDS_MAX];
    const uint32_t *masks[1];
    struct draw_rows out = {
        .row = row, .word = words, .mask = masks, .cap_words = 4 * DRAW_WORDS_MAX, .cap_masks = 1};
    struct fake *all[] = {&host, &free_, &masked, &forced};
    (void)state;
    bench_init(&t, SL_RAW_LOGPROBS);
    for (int i = 0; i < 4; i++) {
        fake_init(all[i], 1);
        bench_add(&t, all[i], i);
        t.b->q_start[i] = t.b->logit_row[i] = i;
    }
    t.b->q_start[4] = 4;
    host.req.on_host = true;
    for (int i = 2; i < 4; i++)
        t.b->sample[i].mask = mask;
    t.b->sample[2].forced = -1;
    t.b->sample[3].forced = 2;
    memset(row, 0x7f, sizeof row);
    sampler_describe(t.b, &out);
    assert_int_equal(out.n_host, 1);
    assert_int_equal(out.n_masks, 1);
    assert_ptr_equal(masks[0], mask);
    static const int logit[] = {-1, 1, 2, 3}, has_mask[] = {-1, -1, 0, -1},
                     only[] = {-1, -1, -1, 2};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(row[i].logit, logit[i]);
        assert_int_equal(row[i].mask, has_mask[i]);
        assert_int_equal(row[i].forced, only[i]);
    }
    t.b->sample[1].mask = mask; /* one more than there is room for: the host's */
    t.b->sample[1].forced = -1;
    sampler_describe(t.b, &out);
    assert_int_equal(out.n_host, 2);
    assert_int_equal(row[2].logit, -1);
    assert_int_equal(row[2].mask, -1);
    bench_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(exponentials_are_accurate),
        cmocka_unit_test(top_is_a_sorted_prefix),
        cmocka_unit_test(maximum_finds_what_is_broken),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(broken_rows_fail_alone),
        cmocka_unit_test(processors_one_by_one),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(ties_at_the_edge),
        cmocka_unit_test(rows_do_not_see_each_other),
        cmocka_unit_test(choices_are_not_correlated),
        cmocka_unit_test(logprobs_are_log_softmax),
        cmocka_unit_test(a_beams_row_gives_candidates),
        cmocka_unit_test(processed_logprobs_see_the_filters),
        cmocka_unit_test(prompt_logprobs_name_the_prompts_token),
        cmocka_unit_test(a_device_is_told_of_its_rows_alone),
        cmocka_unit_test(a_warm_run_allocates_nothing),
        cmocka_unit_test(allocation_failures_are_reported),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
