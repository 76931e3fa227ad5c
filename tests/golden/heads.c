/* The seam that Medusa and EAGLE heads need: a proposer sees the hidden states of every row, final
 * ones and those behind layers it asked for. The head here remembers what followed a state. A text
 * told again has the same states to the bit, so all of its guesses are right, in other company and
 * in other chunks; one row too far, and none would be.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "model/model.h"
#include "sample/sampler.h"
#include "support/pebble.h"

#define test_calloc calloc
#define test_free free
#include "sched_world.h"

#include <math.h>
#include <stdlib.h>

enum { TEXTS = 6, PROMPT = 30, TOKENS = 40, LENGTH = PROMPT + TOKENS, AHEAD = 4, LAYER = 1 };
enum { SEQS = 8, BLOCKS = 256, MEMORY = TEXTS * LENGTH };

struct memory {
    uint64_t state;
    int n;
    int32_t next[AHEAD];
};

struct head {
    struct proposer p; /* first */
    const struct ops *ops;
    struct device *device;
    size_t row_bytes;
    uint64_t state[2 * TEXTS + 1][LENGTH]; /* by number of the request and position */
    struct memory memory[MEMORY];
    int n_memory, n_rows;
    float worst; /* how far the last layer's state, normed, is from the final one */
};

static uint64_t hash(uint64_t h, const void *row, size_t bytes)
{
    const unsigned char *c = row;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ c[i]) * 0x100000001b3u;
    return h;
}

/* final = norm(last) * w: of two rows the quotients of both have one factor between them. */
static void compare_last(struct head *h, const float *final, const float *last, int n)
{
    const float *final2 = final + n, *last2 = last + n;
    float factor = 0;
    for (int i = 0; i < n; i++) {
        float a = final[i] / last[i], b = final2[i] / last2[i];
        if (!(fabsf(last[i]) > 0.1f && fabsf(last2[i]) > 0.1f && fabsf(b) > 1e-3f))
            continue;
        factor = factor == 0 ? a / b : factor;
        h->worst = fmaxf(h->worst, fabsf(a / b / factor - 1));
    }
    assert_true(factor > 0);
}

/* In host memory. */
static const char *rows_of(const struct head *h, const void *from, int n, int slot)
{
    static char host[2][1 << 20];
    size_t bytes = (size_t)n * h->row_bytes;
    struct sl_err err = {0};
    if (!h->ops->fetch)
        return from;
    assert_true(bytes <= sizeof host[slot]);
    assert_int_equal(h->ops->fetch(h->device, host[slot], from, bytes, &err), SL_OK);
    return host[slot];
}

static void step_begun(struct proposer *p, const struct batch *b,
                       const struct hidden_states *hidden)
{
    struct head *h = (struct head *)p;
    assert_non_null(hidden);
    const char *final = rows_of(h, hidden->final, b->n_tokens, 0);
    const char *inner = rows_of(h, hidden->layer[0], b->n_tokens, 1);
    for (int s = 0; s < b->n_seqs; s++)
        for (int r = b->q_start[s]; r < b->q_start[s + 1]; r++) {
            size_t at = (size_t)r * h->row_bytes;
            uint64_t x = hash(7, final + at, h->row_bytes);
            x = hash(x, inner + at, h->row_bytes);
            h->state[b->seq[s]->req->number][b->pos[r]] = x;
            h->n_rows++;
        }
    if (b->n_tokens > 1 && !h->ops->fetch)
        compare_last(h, hidden->final, hidden->layer[1], (int)(h->row_bytes / sizeof(float)));
}

static const struct memory *recall(const struct head *h, uint64_t state)
{
    for (int i = 0; i < h->n_memory; i++)
        if (h->memory[i].state == state)
            return &h->memory[i];
    return NULL;
}

static void propose(struct proposer *p, struct draft_item *item, int n_items)
{
    struct head *h = (struct head *)p;
    for (int i = 0; i < n_items; i++) {
        const struct sequence *q = item[i].seq;
        const struct memory *m = recall(h, h->state[q->req->number][q->n_tokens - 2]);
        int n = m ? m->n : 0;
        item[i].n = n < item[i].n ? n : item[i].n;
        for (int j = 0; j < item[i].n; j++)
            item[i].token[j] = m->next[j];
    }
}

/* What came behind the token that each state gave. */
static void finished(struct proposer *p, const struct sequence *q)
{
    struct head *h = (struct head *)p;
    for (int pos = q->n_prompt - 1; pos + 2 < q->n_tokens; pos++) {
        uint64_t x = h->state[q->req->number][pos];
        if (recall(h, x))
            continue;
        assert_true(h->n_memory < MEMORY);
        struct memory *m = &h->memory[h->n_memory++];
        m->state = x;
        for (int t = pos + 2; t < q->n_tokens && m->n < AHEAD; t++)
            m->next[m->n++] = q->tokens[t];
    }
}

static const struct proposer_ops head_ops = {
    .propose = propose, .finished = finished, .step_begun = step_begun};

static enum sl_status sample(void *ctx, const struct batch *b, const float *logits,
                             struct step_result *r, struct sl_err *err)
{
    return sampler_run(ctx, b, logits, r, err);
}

static struct rec *add(struct world *w, int text)
{
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (text * 577 + i * 131) % 1000 + 100;
    struct rec *rec = world_make(w, prompt, PROMPT, TOKENS, 1);
    sl_sampling_params_init(&rec->r.params.p);
    rec->r.params.p.temperature = 0;
    rec->r.params.p.logprobs = rec->r.params.p.prompt_logprobs = SL_NONE;
    rec->r.params.eos_token = -1;
    sched_add(world_sched(w), &rec->r);
    return rec;
}

/* CPU, or the one that is named on the command line. */
static enum sl_device device_of_tests = SL_DEVICE_CPU;

static enum sl_status device_create(struct runner_config *rc, struct sl_err *err)
{
#ifdef SLUICE_CUDA
    if (device_of_tests == SL_DEVICE_CUDA)
        return cuda_device_create(&rc->ops, &rc->device, err);
#endif
    return cpu_device_create(&rc->ops, &rc->device, 1, err);
}

static struct backend *open_pebble(struct model_spec **spec, struct head *h, int max_tokens)
{
    const struct batch_limits limits = {.max_tokens = max_tokens,
                                        .max_seqs = SEQS,
                                        .max_blocks = BLOCKS,
                                        .max_samples = SEQS * (1 + AHEAD),
                                        .max_logits = SEQS * (1 + AHEAD) + 128,
                                        .n_groups = 1};
    struct sl_err err = {0};
    struct model_info mi;
    struct runner *r = NULL;
    if (model_spec_load(spec, "models/pebble", NULL, "vllm", &err))
        fail_msg("%s", err.msg);
    model_spec_info(*spec, &mi);
    struct runner_config rc = {.spec = *spec, .dir = "models/pebble", .block_size = 16};
    *h = (struct head){.p = {.ops = &head_ops,
                             .name = "head",
                             .max_tokens = AHEAD,
                             .fixed = true,
                             .vocab_size = mi.vocab_size,
                             .layer = {LAYER, mi.n_layers - 1},
                             .n_layers = 2}};
    if (device_create(&rc, &err) || runner_create(&r, &rc, &err))
        fail_msg("%s", err.msg);
    h->ops = rc.ops;
    h->device = rc.device;
    h->row_bytes = (size_t)mi.hidden * rc.ops->act_bytes;
    runner_keep_layers(r, h->p.layer, h->p.n_layers);
    if (runner_take_kv(r, BLOCKS, &limits, &err))
        fail_msg("%s", err.msg);
    static struct sampler *sampler;
    sampler_destroy(&sampler);
    assert_int_equal(sampler_create(&sampler, mi.vocab_size, SL_RAW_LOGPROBS, &err), SL_OK);
    runner_set_sampler(r, sample, sampler);
    return runner_backend(r);
}

static void told_again(void **state)
{
    static struct head head;
    static int32_t told[TEXTS][TOKENS];
    struct model_spec *spec = NULL;
    struct world w;
    struct sched_config cfg = world_config();
    (void)state;
    struct backend *be = open_pebble(&spec, &head, cfg.max_num_batched_tokens);
    cfg.layout = be->layout;
    cfg.enable_prefix_caching = false;
    cfg.proposer = &head.p;
    world_init_on(&w, &cfg, be);
    struct sched_stats before, after;
    for (int t = 0; t < TEXTS; t++) { /* one after the other */
        struct rec *rec = add(&w, t);
        (void)world_run(&w, 1000);
        assert_int_equal(rec->n_out[0], TOKENS);
        memcpy(told[t], rec->out[0], sizeof told[t]);
    }
    sched_get_stats(world_sched(&w), &before);
    struct rec *again[TEXTS];
    for (int t = 0; t < TEXTS; t++) /* all at once */
        again[t] = add(&w, TEXTS - 1 - t);
    int n_steps = world_run(&w, 1000);
    for (int t = 0; t < TEXTS; t++)
        assert_memory_equal(again[t]->out[0], told[TEXTS - 1 - t], sizeof told[0]);
    sched_get_stats(world_sched(&w), &after);
    uint64_t n = after.n_draft_tokens - before.n_draft_tokens;
    print_message("%d steps, %d guesses, %d states, last layer within %g\n", n_steps, (int)n,
                  head.n_rows, (double)head.worst);
    assert_int_equal(after.n_draft_accepted - before.n_draft_accepted, n);
    assert_true(n > TEXTS * TOKENS * 3 / 4 && n_steps < TOKENS);
    assert_true(head.worst < 1e-3f);
    world_fini(&w);
    model_spec_destroy(&spec);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(told_again)};
    device_of_tests = pebble_device(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
