/* Tokens and logprobs that the device draws are the host sampler's, for the same logits: every
 * processor, cuts inside ties, masks, rows that cannot be drawn from. Then how long a
 * step's draws take.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"
#include "sample/sampler.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 96, BLOCK = 16, PER_SEQ = 8, LENGTH = 100, PROMPT = 40, KINDS = 16 };

static const struct ops *ops;

struct fake {
    struct request req;
    struct sequence seq;
    int32_t tokens[LENGTH];
    int32_t allowed[64], stop[3];
    struct sl_logit_bias bias[40];
};

struct bench {
    struct device *d;
    int vocab;
    struct batch *b;
    struct fake *f;
    uint32_t *mask; /* [ROWS], of mask_words */
    int mask_words;
    struct sampler *s;
    struct draw_rows rows;
    struct step_result *want, *got, *none;
    float *logits, *on_device;
    uint32_t rng;
};

static void ok(enum sl_status st, const struct sl_err *err)
{
    if (st)
        fail_msg("%s", err->msg);
}

static uint32_t next(struct bench *t)
{
    t->rng = t->rng * 1664525 + 1013904223;
    return t->rng >> 8;
}

static float uniform(struct bench *t)
{
    return (float)next(t) * 0x1p-24f;
}

/* Parameters of row i: every processor alone, then together. */
static void make_request(struct bench *t, int i)
{
    struct fake *f = &t->f[i];
    struct seq_params *sp = &f->req.params;
    struct sl_sampling_params *p = &sp->p;
    int kind = i % KINDS;
    *f = (struct fake){0};
    sl_sampling_params_init(p);
    p->max_tokens = 1000;
    p->temperature = kind == 0 ? 0 : kind == 1 ? 1 : 0.3f + 1.5f * uniform(t);
    p->logprobs = i % 3 ? SL_NONE : i % 25;
    p->top_k = kind == 2 ? 50 : kind == 3 ? 1 : kind == 4 ? 700 : kind == 15 ? 20 : 0;
    p->top_p = kind == 5 ? 0.9f : kind == 6 ? 0.999f : kind == 7 ? 0.01f : kind == 15 ? 0.8f : 1;
    p->min_p = kind == 8 ? 0.1f : kind == 15 ? 0.02f : 0;
    if (kind == 9 || kind == 15) {
        p->repetition_penalty = 1.3f;
        p->frequency_penalty = 0.4f;
        p->presence_penalty = -0.2f;
    }
    p->frequency_penalty = kind == 10 ? 0.7f : p->frequency_penalty;
    for (int j = 0; j < 64; j++)
        f->allowed[j] = (int32_t)(next(t) % (uint32_t)t->vocab);
    for (int j = 0; j < 40; j++)
        f->bias[j] = (struct sl_logit_bias){j * 17 % t->vocab, 20 * uniform(t) - 10};
    for (int j = 0; j < 3; j++)
        f->stop[j] = (int32_t)(next(t) % (uint32_t)t->vocab);
    p->allowed_token_ids = f->allowed;
    p->n_allowed_token_ids = kind == 11 ? 64 : -1;
    p->logit_bias = f->bias;
    p->n_logit_bias = kind == 12 || kind == 15 ? 40 : 0;
    p->min_tokens = kind == 13 ? LENGTH : 0;
    sp->all_stop_ids = f->stop;
    sp->n_all_stop_ids = 3;
    sp->eos_token = -1;
    sp->seed = (uint64_t)next(t) << 24 | next(t);
    for (int j = 0; j < LENGTH; j++)
        f->tokens[j] = (int32_t)(next(t) % (j % 2 ? 37u : (uint32_t)t->vocab));
    f->req.prompt = f->tokens;
    f->req.n_prompt = PROMPT;
    sequence_init(&f->seq, &f->req, 0);
    f->seq.n_tokens = PROMPT + (int)(next(t) % (LENGTH - PROMPT));
}

/* Logits as models make them; few values, so that every cut is in a tie; and rows to refuse. */
static void make_logits(struct bench *t, int i)
{
    float *x = t->logits + (size_t)i * (size_t)t->vocab;
    int how = i / KINDS % 6;
    for (int j = 0; j < t->vocab; j++) {
        float g = uniform(t) + uniform(t) + uniform(t) + uniform(t) - 2;
        x[j] = how == 0 ? 6 * g : how == 1 ? 0.5f * g : how == 2 ? floorf(3 * g) : 12 * g;
        if (how == 3 && next(t) % 4 == 0)
            x[j] = -INFINITY;
        if (how == 4)
            x[j] = 1; /* all the same */
    }
    if (how == 5) {
        x[next(t) % (uint32_t)t->vocab] = i % 2 ? NAN : INFINITY;
        if (i % 7 == 0)
            for (int j = 0; j < t->vocab; j++)
                x[j] = -INFINITY;
    }
}

/* A third of the rows: nothing, one token, a few, half or nearly all are allowed. */
static void make_mask(struct bench *t, int i)
{
    struct sample_row *row = &t->b->sample[i];
    uint32_t *mask = t->mask + (size_t)i * (size_t)t->mask_words;
    int how = (int)(next(t) % 5);
    if (next(t) % 3)
        return;
    row->mask = mask;
    for (int w = 0; w < t->mask_words; w++) {
        uint32_t any = next(t) << 16 ^ next(t), more = next(t) << 16 ^ next(t);
        mask[w] = how == 2 ? (next(t) % 16 ? 0 : any & more) : how == 3 ? any : how == 4 ? ~0u : 0;
    }
    if (how == 1) {
        row->forced = (int32_t)(next(t) % (uint32_t)(t->vocab + 2)); /* the model may lack it */
        mask[row->forced / 32] |= 1u << row->forced % 32;
    }
}

static void make_batch(struct bench *t)
{
    struct batch *b = t->b;
    int32_t *seen = mem_zalloc(ROWS * PER_SEQ * BLOCK, sizeof *seen);
    batch_clear(b);
    for (int i = 0; i < ROWS; i++) {
        struct fake *f = &t->f[i];
        int pos = f->seq.n_tokens - 1;
        b->token[i] = f->tokens[pos];
        b->pos[i] = pos;
        b->q_start[i + 1] = i + 1;
        b->kv_len[i] = pos + 1;
        b->seq[i] = &f->seq;
        b->seq_row[i] = i;
        b->logit_row[i] = i;
        b->block_start[i + 1] = (i + 1) * PER_SEQ;
        for (int j = 0; j < PER_SEQ; j++)
            b->block[i * PER_SEQ + j] = (i * PER_SEQ + j) * 5 % (ROWS * PER_SEQ);
        for (int j = 0; j <= pos; j++)
            seen[b->block[i * PER_SEQ + j / BLOCK] * BLOCK + j % BLOCK] = f->tokens[j];
        b->slot[i] = b->block[i * PER_SEQ + pos / BLOCK] * BLOCK + pos % BLOCK;
        b->sample[i] = (struct sample_row){
            .seq = &f->seq, .logit = i, .seq_row = i, .pos = pos + 1, .forced = -1};
        make_mask(t, i);
    }
    b->n_tokens = b->n_seqs = b->n_logits = b->n_samples = ROWS;
    cudaMemcpy(t->d->seen, seen, ROWS * PER_SEQ * BLOCK * sizeof *seen, cudaMemcpyHostToDevice);
    mem_free(seen);
}

static void open_bench(struct bench *t, int vocab, uint32_t seed)
{
    struct sl_err err = {0};
    size_t n = (size_t)ROWS * (size_t)vocab;
    struct batch_limits l = {.max_tokens = ROWS,
                             .max_seqs = ROWS,
                             .max_blocks = ROWS * PER_SEQ,
                             .max_samples = ROWS,
                             .max_logits = ROWS,
                             .n_groups = 1};
    struct kv_layout layout = {.n_groups = 1, .block_size = BLOCK, .n_blocks = ROWS * PER_SEQ};
    struct attn_spec spec = {
        .n_heads = 1, .n_kv_heads = 1, .head_dim = 64, .scale = 1, .causal = true};
    layout.group[0].n_layers = 1;
    *t = (struct bench){.vocab = vocab, .rng = seed};
    ok(cuda_device_create(&ops, &t->d, &err), &err);
    ok(ops->kv_create(t->d, &layout, &spec, 1, W_BF16, &err), &err);
    ok(ops->draw_plan(t->d, &l, ROWS - 7, vocab, &err), &err);
    ok(batch_create(&t->b, &l, &err), &err);
    ok(sampler_create(&t->s, vocab, SL_RAW_LOGPROBS, &err), &err);
    ok(step_result_create(&t->want, &l, &err), &err);
    ok(step_result_create(&t->got, &l, &err), &err);
    ok(step_result_create(&t->none, &l, &err), &err);
    t->f = mem_zalloc(ROWS, sizeof *t->f);
    t->logits = mem_alloc(n, sizeof *t->logits);
    t->on_device = ops->alloc(t->d, n * sizeof(float), "logits", &err);
    cudaDeviceSynchronize(); /* memory is cleared on the device's own stream, filled on another */
    t->rows.cap_words = ROWS * DRAW_WORDS_MAX;
    t->rows.row = mem_alloc(ROWS, sizeof *t->rows.row);
    t->rows.word = mem_alloc((size_t)t->rows.cap_words, sizeof *t->rows.word);
    t->rows.cap_masks = ROWS;
    t->rows.mask = mem_alloc(ROWS, sizeof *t->rows.mask);
    t->mask_words = draw_mask_words(vocab + 2); /* tokenizers know more tokens than some models */
    t->mask = mem_alloc((size_t)ROWS * (size_t)t->mask_words, sizeof *t->mask);
    for (int i = 0; i < ROWS; i++) {
        make_request(t, i);
        make_logits(t, i);
    }
    cudaMemcpy(t->on_device, t->logits, n * sizeof(float), cudaMemcpyHostToDevice);
    make_batch(t);
    cudaDeviceSynchronize();
}

static void close_bench(struct bench *t)
{
    ops->free(t->d, t->on_device);
    ops->destroy(t->d);
    batch_destroy(&t->b);
    sampler_destroy(&t->s);
    step_result_destroy(&t->want);
    step_result_destroy(&t->got);
    step_result_destroy(&t->none);
    mem_free(t->f);
    mem_free(t->logits);
    mem_free(t->rows.row);
    mem_free(t->rows.word);
    mem_free(t->rows.mask);
    mem_free(t->mask);
}

/* One step's draws, in pieces of `piece` rows of logits. */
static void draw(struct bench *t, int piece)
{
    struct sl_err err = {0};
    const struct draw_result *result;
    const struct draw_top *top;
    sampler_describe(t->b, &t->rows);
    assert_int_equal(t->rows.n_host, 0);
    ops->expect(t->d, &t->rows);
    ok(ops->begin(t->d, t->b, &err), &err);
    for (int first = 0; first < ROWS; first += piece)
        ops->draw(t->d, t->on_device + (size_t)first * (size_t)t->vocab, first,
                  ROWS - first < piece ? ROWS - first : piece);
    ok(ops->launched(t->d, &err), &err);
    ok(ops->collect(t->d, &result, &top, &err), &err);
    ok(sampler_read(t->s, t->b, &t->rows, result, top, t->none, t->got, &err), &err);
}

static void compare(struct bench *t)
{
    for (int i = 0; i < ROWS; i++) {
        int from = t->want->lp_start[i], n = t->want->lp_start[i + 1] - from;
        if (t->got->token[i] != t->want->token[i])
            fail_msg("vocabulary %d, row %d (kind %d, logits %d): drew %d, the host %d", t->vocab,
                     i, i % KINDS, i / KINDS % 6, t->got->token[i], t->want->token[i]);
        assert_int_equal(t->got->lp_start[i + 1] - t->got->lp_start[i], n);
        if (n && memcmp(t->got->lp + t->got->lp_start[i], t->want->lp + from,
                        (size_t)n * sizeof *t->want->lp))
            fail_msg("vocabulary %d, row %d (kind %d, logits %d): other logprobs", t->vocab, i,
                     i % KINDS, i / KINDS % 6);
    }
}

static void equals_the_host(void **state)
{
    static const int vocab[] = {1000, 8192, 128256, 151937};
    (void)state;
    for (size_t v = 0; v < sizeof vocab / sizeof *vocab; v++)
        for (uint32_t seed = 1; seed <= 3; seed++) {
            struct bench t;
            struct sl_err err = {0};
            open_bench(&t, vocab[v], seed);
            ok(sampler_run(t.s, t.b, t.logits, t.want, &err), &err);
            draw(&t, ROWS);
            compare(&t);
            draw(&t, 10); /* the counters are clean again, and pieces change nothing */
            compare(&t);
            close_bench(&t);
        }
}

static void how_long(void **state)
{
    static const char *const what[] = {"greedy",           "temperature 1",  "top_k 50",
                                       "top_p .9, peaked", "top_p .9, flat", "all, 5 logprobs",
                                       "a mask, temp. 1"};
    static const int n_rows[] = {1, 64, 96};
    (void)state;
    struct bench t;
    open_bench(&t, 128256, 1);
    memset(t.mask, 0x11, (size_t)ROWS * (size_t)t.mask_words * sizeof *t.mask);
    for (int kind = 0; kind < 7; kind++) {
        for (int i = 0; i < ROWS; i++) {
            static const int likes[] = {0, 1, 2, 5, 5, 15, 1};
            int like = likes[kind];
            struct fake *f = &t.f[i];
            t.b->sample[i].forced = -1;
            t.b->sample[i].mask = kind == 6 ? t.mask + (size_t)i * (size_t)t.mask_words : NULL;
            f->req.params.p = t.f[like].req.params.p;
            f->req.params.p.logprobs = kind == 5 ? 5 : SL_NONE;
            f->req.params.p.temperature = kind == 0 ? 0 : 1;
        }
        sampler_describe(t.b, &t.rows);
        struct sl_err err = {0};
        for (size_t r = 0; r < sizeof n_rows / sizeof *n_rows; r++) {
            float ms = 0, best = 1e9f;
            for (int again = 0; again < 8; again++) {
                cudaEvent_t a, b;
                cudaEventCreate(&a);
                cudaEventCreate(&b);
                t.rows.n_rows = n_rows[r];
                for (int i = 0; i < ROWS; i++) /* all from one row of the wanted kind of logits */
                    t.rows.row[i].logit = t.b->sample[i].logit = kind == 4 ? KINDS : 0;
                ops->expect(t.d, &t.rows);
                ok(ops->begin(t.d, t.b, &err), &err);
                cudaEventRecord(a, t.d->stream);
                ops->draw(t.d, t.on_device, 0, ROWS);
                cudaEventRecord(b, t.d->stream);
                ok(ops->end(t.d, &err), &err);
                cudaEventElapsedTime(&ms, a, b);
                best = ms < best ? ms : best;
                cudaEventDestroy(a);
                cudaEventDestroy(b);
            }
            print_message("draw %-18s %3d rows of 128256: %7.1f us\n", what[kind], n_rows[r],
                          1000 * (double)best);
        }
    }
    close_bench(&t);
}

/* Any argument: speed instead of bits. */
int main(int argc, char **argv)
{
    const struct CMUnitTest right[] = {cmocka_unit_test(equals_the_host)};
    const struct CMUnitTest fast[] = {cmocka_unit_test(how_long)};
    (void)argv;
    return argc > 1 ? cmocka_run_group_tests(fast, NULL, NULL)
                    : cmocka_run_group_tests(right, NULL, NULL);
}
