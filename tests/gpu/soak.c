/* 20,000 mixed requests through the library, hundreds at a time, in a KV cache that is too small
 * for them: preempted, swapped to host memory and back, cancelled, found in the prefix cache on the
 * device and in host memory. Requests repeat: whoever ends by himself gives what the first of his
 * kind gave, and who is cancelled a beginning of it. At the end all blocks are free, and both the
 * host's memory and the device's are as they were: nobody else may use the card meanwhile.
 *
 *     gpu_soak [DEVICE [REQUESTS]]        cuda, 20000
 * SPDX-License-Identifier: Apache-2.0 */
#include "support/golden.h"
#include "support/pebble.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { N_KINDS = 600, WINDOW = 400, CHOICES = 2, MAX_NEW = 48, MAX_PROMPT = 400 };

static enum sl_device device = SL_DEVICE_CUDA;
static int n_requests = 20000;
static struct golden *prompt;
static int n_prompts;

/* What a kind of request gave when it was first complete. */
struct kind {
    bool known;
    int n[CHOICES];
    int32_t token[CHOICES][MAX_NEW];
};
static struct kind kinds[N_KINDS];

struct live {
    struct sl_request *r;
    int kind, patience; /* outputs until it is cancelled */
    bool cancelled, cut;
    int n[CHOICES];
    int32_t token[CHOICES][MAX_NEW];
};
static struct live live[WINDOW];
static int n_whole, n_cancelled;
static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)seed * n) >> 32);
}

static struct sl_sampling_params params_of(int kind)
{
    struct sl_sampling_params p;
    sl_sampling_params_init(&p);
    p.max_tokens = 1 + kind * 7 % MAX_NEW;
    p.temperature = kind % 2 ? 0.9f : 0;
    p.top_p = kind % 4 == 1 ? 0.9f : 1;
    p.top_k = kind % 8 == 3 ? 30 : 0;
    p.repetition_penalty = kind % 3 ? 1 : 1.1f;
    p.frequency_penalty = kind % 5 ? 0 : 0.3f;
    p.logprobs = kind % 7 ? SL_NONE : 3;
    p.n = kind % 22 == 11 ? CHOICES : 1; /* of those that are drawn */
    p.has_seed = true;
    p.seed = kind;
    p.detokenize = false;
    p.ignore_eos = true;
    return p;
}

static void begin(struct sl_engine *e, struct live *l)
{
    struct sl_err err = {0};
    int kind = (int)rnd(N_KINDS);
    const struct golden *g = &prompt[kind % n_prompts];
    int n = g->n_prompt < MAX_PROMPT ? g->n_prompt : MAX_PROMPT;
    struct sl_sampling_params p = params_of(kind);
    struct sl_input in = {.tokens = g->prompt, .n_tokens = n};
    *l = (struct live){.kind = kind, .patience = rnd(8) ? INT32_MAX : (int)rnd(20)};
    if (sl_submit(e, &in, &p, NULL, NULL, &l->r, &err))
        fail_msg("kind %d: %s", kind, err.msg);
}

static void compare(const struct live *l)
{
    struct kind *k = &kinds[l->kind];
    for (int i = 0; i < CHOICES; i++) {
        if (!k->known && !l->cut) {
            k->n[i] = l->n[i];
            memcpy(k->token[i], l->token[i], sizeof k->token[i]);
        }
        if (!k->known && l->cut)
            continue;
        if (l->cut ? l->n[i] > k->n[i] : l->n[i] != k->n[i])
            fail_msg("kind %d gave %d tokens, not %d", l->kind, l->n[i], k->n[i]);
        if (memcmp(l->token[i], k->token[i], (size_t)l->n[i] * sizeof(int32_t)))
            fail_msg("kind %d gave other tokens than before", l->kind);
    }
    k->known = k->known || !l->cut;
}

/* Takes what there is; true: it has ended and is gone. */
static bool advance(struct live *l)
{
    const struct sl_output *o;
    while ((o = sl_request_next(l->r))) {
        assert_true(o->finish != SL_ERROR);
        l->cut = l->cut || o->finish == SL_ABORT;
        for (int t = 0; t < o->n_tokens; t++)
            l->token[o->index][l->n[o->index]++] = o->tokens[t];
        if (--l->patience < 0 && !l->cancelled) {
            l->cancelled = true;
            sl_request_abort(l->r);
        }
    }
    if (!sl_request_done(l->r))
        return false;
    compare(l);
    n_whole += !l->cut;
    n_cancelled += l->cut;
    sl_request_release(&l->r);
    return true;
}

static size_t resident(void)
{
    unsigned long size = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &size, &pages), 2);
    fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static size_t device_left(struct sl_engine *e)
{
    size_t left = 0, total;
    if (e->ops->memory)
        assert_int_equal(e->ops->memory(e->device, &left, &total, NULL), SL_OK);
    return left;
}

/* Hundreds are under way until `until` have begun; then all end. */
static void run(struct sl_engine *e, int *n_begun, int until)
{
    for (int n_live = 1; n_live > 0;) {
        bool moved = false;
        n_live = 0;
        for (int i = 0; i < WINDOW; i++) {
            if (!live[i].r && *n_begun < until) {
                begin(e, &live[i]);
                ++*n_begun;
            }
            if (live[i].r)
                moved = advance(&live[i]) || moved;
            n_live += live[i].r != NULL;
        }
        if (!moved)
            usleep(200);
    }
}

static void soak(void **state)
{
    (void)state;
    struct sl_config cfg = pebble_config(device, SL_DTYPE_BF16);
    struct sched_stats st;
    cfg.threads = 0;
    cfg.num_blocks_override = 250;
    cfg.max_model_len = 1024;
    cfg.max_num_seqs = 256;
    cfg.max_num_batched_tokens = 2048;
    cfg.swap_space = 0.01;
    cfg.kv_offloading_size = 0.02;
    struct sl_engine *e = pebble_start_swapping(&cfg);
    int64_t t0 = clock_mono_ns();
    int n_begun = 0;
    run(e, &n_begun, n_requests / 2);
    size_t rss = resident(), left = device_left(e);
    run(e, &n_begun, n_requests);
    sl_engine_drain(e, 0);
    size_t rss_end = resident(), left_end = device_left(e);
    sched_check(core_sched(e->core));
    sched_get_stats(core_sched(e->core), &st);
    print_message(
        "%d whole, %d cancelled, %llu preemptions, %llu of them swaps, %llu prefix tokens "
        "and %llu from host memory in %.1f s; host memory grew by %.1f MiB, device memory "
        "by %.1f\n",
        n_whole, n_cancelled, (unsigned long long)st.n_preemptions, (unsigned long long)st.n_swaps,
        (unsigned long long)st.prefix_hits, (unsigned long long)st.host_hits,
        (double)(clock_mono_ns() - t0) * 1e-9, ((double)rss_end - (double)rss) / (1 << 20),
        ((double)left - (double)left_end) / (1 << 20));
    assert_int_equal(n_whole + n_cancelled, n_requests);
    assert_int_equal(st.n_blocks_used + st.n_host_blocks_used, 0);
    assert_int_equal(st.n_running + st.n_waiting, 0);
    assert_true(st.n_swaps > 50 && n_cancelled > n_requests / 50);
    assert_true(st.prefix_hits > 0 && st.host_hits > 0);
    assert_true(rss_end < rss + (16 << 20));
    assert_true(left_end + (16 << 20) > left);
    sl_engine_destroy(&e);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        device = !strcmp(argv[1], "cpu") ? SL_DEVICE_CPU : SL_DEVICE_CUDA;
    if (argc > 2)
        n_requests = atoi(argv[2]);
    log_set_level(LOG_WARNING);
    prompt = golden_load(&n_prompts);
    const struct CMUnitTest tests[] = {cmocka_unit_test(soak)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    golden_free(&prompt, n_prompts);
    return failed;
}
