/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/ceilings.h"

#include "backend/cpu/peak.h"
#include "base/clock.h"
#include "base/mem.h"

#include <string.h>
#include <time.h>

/* Runs are short, so that some of them fall between other load's turns. */
enum { PIECE = 1 << 17, RUN_PIECES = 512, RUN_US = 1500, BASELINE_CHAINS = 16 };

static const size_t RUN_BYTES = (size_t)RUN_PIECES * PIECE;

struct ceilings {
    struct pool *pool;
    enum cpu_isa isa;
    struct peak peak;
    char *data;
    size_t bytes;
    int first_piece; /* where the next reading run begins: it never finds the last one's data */
    /* of the run under way */
    peak_rate_fn rate;
    int64_t n, rounds[N_CEILINGS]; /* rounds: 0 until calibrated */
    struct slot {
        _Alignas(64) double ops;
        uint64_t sum;
    } * slot; /* per thread */
};

/* ---- without vector instructions of our own ------------------------------------------------- */

static uint64_t read_plain(const void *p, size_t bytes)
{
    const uint64_t *w = p;
    uint64_t sum[4] = {0};
    for (size_t i = 0; i < bytes / 8; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] ^= w[i + j];
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

static double f32_plain(int64_t n)
{
    float acc[BASELINE_CHAINS] = {0};
    volatile float one = 1;
    float x = one;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < BASELINE_CHAINS; j++)
            acc[j] = acc[j] * x + x;
    float sum = 0;
    for (int j = 0; j < BASELINE_CHAINS; j++)
        sum += acc[j];
    return sum != 0 ? 2.0 * BASELINE_CHAINS * (double)n : 0;
}

void peak_plain(struct peak *p)
{
    *p = (struct peak){read_plain, f32_plain, NULL, NULL};
}

static void choose(struct ceilings *c)
{
    c->isa = cpu_isa_current();
    peak_plain(&c->peak);
#if defined(__x86_64__)
    if (c->isa >= ISA_AVX2)
        peak_avx2(&c->peak);
    if (c->isa >= ISA_AVX512)
        peak_avx512(&c->peak);
    if (c->isa >= ISA_AMX)
        peak_amx(&c->peak);
#endif
}

/* ---- life ----------------------------------------------------------------------------------- */

static void touch(void *ctx, int piece, int thread)
{
    struct ceilings *c = ctx;
    (void)thread;
    memset(c->data + (size_t)piece * PIECE, piece, PIECE);
}

enum sl_status ceilings_create(struct ceilings **out, int threads, size_t read_bytes,
                               struct sl_err *err)
{
    struct ceilings *c = mem_zalloc(1, sizeof *c);
    if (!c)
        return SL_FAIL(err, SL_ENOMEM, "ceilings: no memory");
    enum sl_status st = pool_create(&c->pool, threads, err);
    if (st == SL_OK) {
        c->bytes = (read_bytes ? read_bytes : (size_t)512 << 20) / RUN_BYTES * RUN_BYTES;
        c->data = mem_pages(c->bytes);
        c->slot = mem_aligned((size_t)pool_threads(c->pool), sizeof *c->slot, 64);
        if (!c->data || !c->slot)
            st = SL_FAIL(err, SL_ENOMEM, "ceilings: no memory for %zu bytes to read", c->bytes);
    }
    if (st != SL_OK) {
        ceilings_destroy(&c);
        return st;
    }
    choose(c);
    pool_for(c->pool, (int)(c->bytes / PIECE), touch, c);
    *out = c;
    return SL_OK;
}

void ceilings_destroy(struct ceilings **pc)
{
    struct ceilings *c = *pc;
    if (!c)
        return;
    pool_destroy(&c->pool);
    mem_pages_free(c->data, c->bytes);
    mem_free(c->slot);
    mem_free(c);
    *pc = NULL;
}

int ceilings_threads(const struct ceilings *c)
{
    return pool_threads(c->pool);
}

enum cpu_isa ceilings_isa(const struct ceilings *c)
{
    return c->isa;
}

const char *ceiling_name(enum ceiling what)
{
    static const char *const names[] = {"read", "f32", "bf16", "int8"};
    return names[what];
}

/* ---- measuring ------------------------------------------------------------------------------ */

static void read_piece(void *ctx, int piece, int thread)
{
    struct ceilings *c = ctx;
    c->slot[thread].sum ^= c->peak.read(c->data + (size_t)(c->first_piece + piece) * PIECE, PIECE);
}

static void run_rate(void *ctx, int thread, int n_threads)
{
    struct ceilings *c = ctx;
    (void)n_threads;
    c->slot[thread].ops = c->rate(c->n);
}

int64_t ceilings_now_ns(const struct ceilings *c)
{
    struct timespec t;
    if (pool_threads(c->pool) > 1)
        return clock_mono_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Rounds that take about RUN_US. */
static int64_t calibrate(const struct ceilings *c, peak_rate_fn rate)
{
    for (int64_t n = 1000;; n *= 2) {
        int64_t t0 = ceilings_now_ns(c);
        rate(n);
        if (ceilings_now_ns(c) - t0 > RUN_US * 500LL)
            return 2 * n;
    }
}

static double run_reads(struct ceilings *c)
{
    pool_for(c->pool, RUN_PIECES, read_piece, c);
    return (double)RUN_BYTES;
}

static double run_rates(struct ceilings *c)
{
    double ops = 0;
    pool_run(c->pool, run_rate, c);
    for (int i = 0; i < pool_threads(c->pool); i++)
        ops += c->slot[i].ops;
    return ops;
}

double ceilings_run(struct ceilings *c, enum ceiling what)
{
    const peak_rate_fn rates[] = {NULL, c->peak.f32, c->peak.bf16, c->peak.i8};
    c->rate = rates[what];
    if (what != CEILING_READ && !c->rate)
        return 0;
    if (what != CEILING_READ && !c->rounds[what])
        c->rounds[what] = calibrate(c, c->rate);
    c->n = c->rounds[what];
    int64_t t0 = ceilings_now_ns(c);
    double done = what == CEILING_READ ? run_reads(c) : run_rates(c);
    int64_t ns = ceilings_now_ns(c) - t0;
    if (what == CEILING_READ)
        c->first_piece = (c->first_piece + RUN_PIECES) % (int)(c->bytes / PIECE);
    return done * 1e9 / (double)(ns > 0 ? ns : 1);
}

double ceilings_measure(struct ceilings *c, enum ceiling what, int ms)
{
    double best = 0;
    int64_t end = clock_mono_ns() + ms * 1000000LL;
    do {
        double r = ceilings_run(c, what);
        best = r > best ? r : best;
    } while (best > 0 && clock_mono_ns() < end);
    return best;
}
