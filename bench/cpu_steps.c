/* bench_cpu_steps: whole forward passes on the CPU device, with dummy weights and an empty cache,
 * each beside the machine's ceilings. What bench/cpu.sh's rows of prefill and decode come from.
 *
 *     bench_cpu_steps MODEL_DIR THREADS FORMAT [KV_TYPE [one]]
 *
 * FORMAT: bf16, int8 or int4; one: only the decode step of one sequence.
 *
 * A line gives the median time of a step, and the medians of what the ceilings allow meanwhile:
 * bytes read (time x bandwidth) and operations (time x rate).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/ceilings.h"
#include "base/clock.h"
#include "base/mem.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 16,
    CONTEXT = 256,
    SHORT = 16,
    PREFILL = 512,
    MOST = 64,
    ROUND_MS = 4000,
    CEILING_RUNS = 4
};

struct bench {
    struct ceilings *ceilings;
    enum ceiling rate;
    struct model_spec *spec;
    struct model_info info;
    struct backend *backend;
    struct batch *batch;
    struct step_result *result;
    const char *format;
};

static void need(bool ok, const struct sl_err *err)
{
    if (ok)
        return;
    fprintf(stderr, "bench_cpu_steps: %s\n", err && err->msg[0] ? err->msg : "no memory");
    exit(1);
}

static enum sl_status no_samples(void *ctx, const struct batch *b, const float *logits,
                                 struct step_result *r, struct sl_err *err)
{
    (void)ctx, (void)b, (void)logits, (void)err;
    r->n_samples = r->n_plogprobs = 0;
    r->lp_start[0] = r->plp_start[0] = 0;
    return SL_OK;
}

static void open_model(struct bench *b, const char *dir, int threads, const char *kv)
{
    struct sl_err err = {0};
    need(model_spec_load(&b->spec, dir, NULL, "auto", &err) == SL_OK, &err);
    model_spec_info(b->spec, &b->info);
    struct batch_limits limits = {.max_tokens = PREFILL,
                                  .max_seqs = MOST,
                                  .max_blocks = MOST * (CONTEXT / BLOCK + 1),
                                  .max_samples = PREFILL,
                                  .max_logits = MOST,
                                  .n_groups = b->info.layout.n_groups};
    struct runner_config rc = {.spec = b->spec,
                               .dir = dir,
                               .load_format = SL_LOAD_DUMMY,
                               .dtype = SL_DTYPE_BF16,
                               .quantization = strcmp(b->format, "bf16") ? b->format : NULL,
                               .kv_cache_dtype = kv,
                               .block_size = BLOCK,
                               .limits = limits};
    struct runner *r = NULL;
    int64_t t0 = clock_mono_ns();
    need(cpu_device_create(&rc.ops, &rc.device, threads, &err) == SL_OK, &err);
    need(runner_create(&r, &rc, &err) == SL_OK, &err);
    need(runner_take_kv(r, limits.max_blocks, &limits, &err) == SL_OK, &err);
    runner_set_sampler(r, no_samples, b);
    b->backend = runner_backend(r);
    need(batch_create(&b->batch, &limits, &err) == SL_OK, &err);
    need(step_result_create(&b->result, &limits, &err) == SL_OK, &err);
    printf("load %s: %.2f s\n", b->format, (double)(clock_mono_ns() - t0) * 1e-9);
}

/* n_seqs sequences that have `context` positions and compute n more; one row of logits each. */
static void fill(struct bench *bench, int n_seqs, int context, int n)
{
    struct batch *b = bench->batch;
    int per = (context + n + BLOCK - 1) / BLOCK;
    batch_clear(b);
    for (int s = 0; s < n_seqs; s++) {
        for (int i = 0; i < n; i++) {
            int row = b->n_tokens++, pos = context + i;
            b->token[row] = (s * 997 + i * 31) % bench->info.vocab_size;
            b->pos[row] = pos;
            b->slot[row] = (s * per + pos / BLOCK) * BLOCK + pos % BLOCK;
        }
        b->logit_row[b->n_logits++] = b->n_tokens - 1;
        for (int i = 0; i < per; i++)
            b->block[s * per + i] = s * per + i;
        b->kv_len[s] = context + n;
        b->seq_row[s] = s;
        b->q_start[s + 1] = b->n_tokens;
        b->block_start[s + 1] = (s + 1) * per;
    }
    b->n_seqs = n_seqs;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static double ceiling(struct bench *b, enum ceiling what)
{
    double v[CEILING_RUNS];
    for (int i = 0; i < CEILING_RUNS; i++)
        v[i] = ceilings_run(b->ceilings, what);
    return median(v, CEILING_RUNS);
}

static void row(struct bench *b, int n_seqs, int context, int n)
{
    enum { MAX = 40 };
    static double seconds[MAX], bytes[MAX], ops[MAX];
    struct sl_err err = {0};
    int count = 0;
    int64_t end = 0;
    fill(b, n_seqs, context, n);
    for (int warm = 1; count < 3 || (count < MAX && clock_mono_ns() < end); warm = 0) {
        double peak = ceiling(b, b->rate), read = ceiling(b, CEILING_READ);
        int64_t t0 = ceilings_now_ns(b->ceilings);
        need(b->backend->ops->submit(b->backend, b->batch, &err) == SL_OK, &err);
        need(b->backend->ops->collect(b->backend, b->result, &err) == SL_OK, &err);
        double s = (double)(ceilings_now_ns(b->ceilings) - t0) * 1e-9;
        read = 0.5 * (read + ceiling(b, CEILING_READ));
        peak = 0.5 * (peak + ceiling(b, b->rate));
        if (warm) { /* caches, page tables, scratch */
            end = clock_mono_ns() + ROUND_MS * 1000000LL;
            continue;
        }
        seconds[count] = s;
        bytes[count] = s * read;
        ops[count++] = s * peak;
    }
    printf("step %s batch %d context %d tokens %d: %.3f ms, readable %.6g bytes, possible %.6g "
           "operations\n",
           b->format, n_seqs, context, n, median(seconds, count) * 1e3, median(bytes, count),
           median(ops, count));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct sl_err err = {0};
    if (argc < 4) {
        fprintf(stderr, "usage: bench_cpu_steps MODEL_DIR THREADS bf16|int8|int4 [KV_TYPE]\n");
        return 2;
    }
    int threads = (int)strtol(argv[2], NULL, 10);
    b.format = argv[3];
    b.rate = strcmp(b.format, "bf16") ? CEILING_I8 : CEILING_BF16;
    need(ceilings_create(&b.ceilings, threads, 0, &err) == SL_OK, &err);
    if (ceilings_run(b.ceilings, b.rate) <= 0)
        b.rate = CEILING_F32;
    open_model(&b, argv[1], threads, argc > 4 ? argv[4] : "auto");
    row(&b, 1, SHORT, 1);
    if (argc < 6) {
        row(&b, 16, CONTEXT, 1);
        row(&b, 32, CONTEXT, 1);
        row(&b, MOST, CONTEXT, 1);
        row(&b, 1, 0, PREFILL);
    }
    b.backend->ops->destroy(b.backend);
    batch_destroy(&b.batch);
    step_result_destroy(&b.result);
    model_spec_destroy(&b.spec);
    ceilings_destroy(&b.ceilings);
    return 0;
}
