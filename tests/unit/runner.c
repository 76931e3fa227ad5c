/* runner: logits in pieces give what whole ones give, and a warmed-up step allocates nothing.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "model/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* 2^20 tokens: 32 rows of logits are the 128 MiB that a runner takes at once. */
static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":16,\"intermediate_size\":16,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":1048576,"
    "\"max_position_embeddings\":64,\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":true}";

enum { N = 40, BLOCK = 16, ENTRIES = 3, HIDDEN = 16 };

static struct model_spec *spec;
static struct backend *backend;
static const struct batch_limits limits = {N, 1, 8, 4, N, 1, 0};
static const struct request request;
static struct sequence sequence = {.req = (struct request *)&request};

static int open_runner(void **state)
{
    (void)state;
    char dir[] = "/tmp/sluice-run-XXXXXX", path[64];
    struct sl_err err = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(config, f);
    fclose(f);
    enum sl_status st = model_spec_load(&spec, dir, NULL, "vllm", &err);
    unlink(path);
    rmdir(dir);
    struct runner_config rc = {
        .spec = spec, .dir = dir, .load_format = SL_LOAD_DUMMY, .seed = 3, .block_size = BLOCK};
    struct runner *r = NULL;
    if (st || ref_device_create(&rc.ops, &rc.device, &err) || runner_create(&r, &rc, &err) ||
        runner_take_kv(r, 4, &limits, &err))
        fail_msg("%s", err.msg);
    backend = runner_backend(r);
    assert_int_equal(runner_activation_bytes(r, &limits) >> 20, 128);
    return 0;
}

static int close_runner(void **state)
{
    (void)state;
    backend->ops->destroy(backend);
    model_spec_destroy(&spec);
    return 0;
}

/* A token and a ragged number of entries that depend on the row's logits. */
static enum sl_status sample(void *ctx, const struct batch *b, const float *logits,
                             struct step_result *r, struct sl_err *err)
{
    size_t vocab = (size_t)backend->vocab_size;
    (void)err;
    ++*(int *)ctx;
    r->n_samples = b->n_samples;
    r->n_plogprobs = b->n_plogprobs;
    r->lp_start[0] = r->plp_start[0] = 0;
    for (int i = 0; i < b->n_samples; i++) {
        const float *row = logits + (size_t)b->sample[i].logit * vocab;
        assert_true(step_result_reserve(&r->lp, &r->cap_lp, r->lp_start[i], 1));
        r->token[i] = (int32_t)(row[7] * 1e6f);
        r->lp[r->lp_start[i]] = (struct sl_logprob){b->sample[i].pos, 1, row[9]};
        r->lp_start[i + 1] = r->lp_start[i] + 1;
    }
    for (int i = 0; i < b->n_plogprobs; i++) {
        const float *row = logits + (size_t)b->plogprob[i].logit * vocab;
        int at = r->plp_start[i], n = b->plogprob[i].token % ENTRIES;
        assert_true(step_result_reserve(&r->plp, &r->cap_plp, at, n));
        for (int k = 0; k < n; k++)
            r->plp[at + k] = (struct sl_logprob){b->plogprob[i].token, k, row[1000 * k]};
        r->plp_start[i + 1] = at + n;
    }
    return SL_OK;
}

/* Tokens [from, to) of one sequence; logits of all, two samples after the last. */
static void fill(struct batch *b, int from, int to)
{
    batch_clear(b);
    for (int p = from; p < to; p++) {
        int row = b->n_tokens++;
        b->token[row] = p * 26213 % 1048576;
        b->pos[row] = b->slot[row] = p;
        b->logit_row[b->n_logits++] = row;
        if (p + 1 < N)
            b->plogprob[b->n_plogprobs++] = (struct plogprob_row){&sequence, row, p + 1};
    }
    b->n_seqs = 1;
    b->q_start[1] = b->n_tokens;
    b->kv_len[0] = to;
    b->seq_row[0] = 0;
    b->seq[0] = &sequence;
    b->block_start[1] = (to + BLOCK - 1) / BLOCK;
    for (int i = 0; i < b->block_start[1]; i++)
        b->block[i] = i;
    for (int i = 0; i < 2 && to == N; i++)
        b->sample[b->n_samples++] =
            (struct sample_row){.seq = &sequence, .logit = b->n_logits - 1, .pos = N + i};
}

static void step(struct batch *b, int from, int to, struct step_result *r)
{
    struct sl_err err = {0};
    fill(b, from, to);
    if (backend->ops->submit(backend, b, &err) || backend->ops->collect(backend, r, &err))
        fail_msg("%s", err.msg);
}

/* The final hidden state of row r of the step that was submitted last; activations of ref. */
static const float *hidden(int r)
{
    return (const float *)backend->ops->hidden(backend)->final + (size_t)r * HIDDEN;
}

static void pieces(void **state)
{
    (void)state;
    struct batch *b = NULL;
    struct step_result *whole[2] = {NULL}, *cut = NULL;
    struct sl_err err = {0};
    int calls = 0;
    assert_int_equal(batch_create(&b, &limits, &err), SL_OK);
    assert_int_equal(step_result_create(&whole[0], &limits, &err), SL_OK);
    assert_int_equal(step_result_create(&whole[1], &limits, &err), SL_OK);
    assert_int_equal(step_result_create(&cut, &limits, &err), SL_OK);
    runner_set_sampler((struct runner *)backend, sample, &calls);
    step(b, 0, 20, whole[0]);
    step(b, 20, N, whole[1]);
    float last[HIDDEN];
    memcpy(last, hidden(N - 21), sizeof last);
    assert_true(last[0] < 0 || last[0] > 0);
    assert_int_equal(calls, 2);
    step(b, 0, N, cut);
    assert_int_equal(calls, 4);
    assert_memory_equal(hidden(N - 1), last, sizeof last);

    assert_int_equal(cut->n_samples, 2);
    assert_memory_equal(cut->token, whole[1]->token, 2 * sizeof *cut->token);
    assert_memory_equal(cut->lp, whole[1]->lp, 2 * sizeof *cut->lp);
    assert_int_equal(cut->lp_start[2], 2);
    assert_int_equal(cut->n_plogprobs, N - 1);
    for (int i = 0; i < N - 1; i++) {
        const struct step_result *w = whole[i >= 20];
        int at = i % 20, n = w->plp_start[at + 1] - w->plp_start[at];
        assert_int_equal(cut->plp_start[i + 1] - cut->plp_start[i], n);
        assert_memory_equal(cut->plp + cut->plp_start[i], w->plp + w->plp_start[at],
                            (size_t)n * sizeof *cut->plp);
    }
    uint64_t before = mem_count();
    step(b, 0, N, cut);
    step(b, 20, N, whole[1]);
    assert_int_equal(mem_count(), before);
    batch_destroy(&b);
    step_result_destroy(&whole[0]);
    step_result_destroy(&whole[1]);
    step_result_destroy(&cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(pieces)};
    return cmocka_run_group_tests(tests, open_runner, close_runner);
}
