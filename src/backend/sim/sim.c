/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/sim/sim.h"

#include "backend/sim/cost.h"
#include "base/clock.h"
#include "base/mem.h"

#include <errno.h>
#include <math.h>
#include <time.h>

enum { SIM_DEPTH_MAX = 16 };

/* A step in flight. */
struct sim_step {
    const struct batch *b;
    int64_t end_ns;
};

struct sim {
    struct backend be; /* first: a struct backend * is one of these */
    struct sim_config cfg;
    const struct sim_device *device;
    struct sim_model model;
    int64_t clock_ns; /* virtual; not used in real time */
    int64_t free_ns;  /* when the device has done what was submitted */
    int64_t busy_ns;
    int n_submitted;
    struct sim_step step[SIM_DEPTH_MAX];
    int first, n_steps;
};

/* splitmix64's finalizer: every bit of x reaches every bit of the result. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t row_hash(const struct sequence *q, int pos)
{
    return mix(mix(q->req->params.seed + (uint64_t)q->index) ^ (uint64_t)pos);
}

/* One of the tokens that a mask allows; -1: there is none. */
static int32_t masked_token(const struct sim *sim, const struct sample_row *row, uint64_t hash)
{
    int64_t k = row->n_allowed > 0 ? (int64_t)(hash % (uint64_t)row->n_allowed) : -1;
    for (int32_t t = 0; t < sim->cfg.vocab_size && k >= 0; t++)
        if (row->mask[t >> 5] >> (t & 31) & 1 && k-- == 0)
            return t;
    return TOKEN_BAD_LOGITS;
}

static int32_t to_token(const struct sim *sim, uint64_t hash)
{
    int32_t t = (int32_t)(hash % (uint64_t)sim->cfg.vocab_size);
    if (t != sim->cfg.eos)
        return t;
    return t > 0 ? t - 1 : sim->cfg.vocab_size > 1;
}

/* Entries as a model would give: `token` first, then the k most probable, ranks and logprobs
 * falling. Distinct tokens: consecutive ids from a hash on. */
static bool make_logprobs(const struct sim *sim, struct sl_logprob **lp, int *cap, int *used,
                          uint64_t hash, int32_t token, int k)
{
    int vocab = sim->cfg.vocab_size;
    k = k < 0 || k > vocab ? vocab : k;
    if (!step_result_reserve(lp, cap, *used, k + 1))
        return false;
    struct sl_logprob *e = *lp + *used;
    int rank = 1 + (int)(hash >> 40) % 4; /* sampling takes a lesser one now and then */
    rank = rank < vocab ? rank : vocab;
    e[0] = (struct sl_logprob){.token = token, .rank = rank, .logprob = -0.5f * (float)rank};
    for (int i = 1; i <= k; i++) {
        int32_t other = (int32_t)((token + (i < rank ? i : i - rank)) % vocab);
        if (i < rank)
            other = (int32_t)((token + vocab - (rank - i)) % vocab);
        e[i] = (struct sl_logprob){.token = other, .rank = i, .logprob = -0.5f * (float)i};
    }
    *used += k + 1;
    return true;
}

/* A beam's candidates: from a hash on, a little more probable or less; then the named ids. */
static bool make_candidates(struct step_result *r, int *used, const struct sample_row *row,
                            int32_t token, int vocab)
{
    const struct seq_params *p = &row->seq->req->params;
    int n = p->n_beam_top < vocab ? p->n_beam_top : vocab, n_named = p->p.n_logprob_token_ids;
    if (!step_result_reserve(&r->lp, &r->cap_lp, *used, n + n_named))
        return false;
    struct sl_logprob *e = r->lp + *used;
    int n_made = 0;
    for (int i = 0; i < vocab && n_made < n && token >= 0; i++) {
        int32_t t = (token + i) % vocab;
        if (row->mask && !(row->mask[t >> 5] >> (t & 31) & 1))
            continue;
        e[n_made] = (struct sl_logprob){t, n_made + 1, -0.5f * (float)(n_made + 1)};
        n_made++;
    }
    for (int i = 0; i < n_named; i++)
        e[n_made + i] = (struct sl_logprob){p->p.logprob_token_ids[i], vocab, -20.0f};
    *used += n_made + n_named;
    return true;
}

static enum sl_status make_results(struct sim *sim, const struct batch *b, struct step_result *r,
                                   struct sl_err *err)
{
    int n_lp = 0, n_plp = 0;
    bool ok = true;
    for (int i = 0; i < b->n_samples; i++) {
        const struct sample_row *row = &b->sample[i];
        const struct sl_sampling_params *p = &row->seq->req->params.p;
        uint64_t hash = row_hash(row->seq, row->pos);
        r->token[i] = row->mask ? masked_token(sim, row, hash) : to_token(sim, hash);
        r->lp_start[i] = n_lp;
        if (row->seq->req->params.beam_width)
            ok = ok && make_candidates(r, &n_lp, row, r->token[i], sim->cfg.vocab_size);
        else if (p->logprobs != SL_NONE && r->token[i] >= 0)
            ok =
                ok && make_logprobs(sim, &r->lp, &r->cap_lp, &n_lp, hash, r->token[i], p->logprobs);
    }
    for (int i = 0; i < b->n_plogprobs; i++) {
        const struct plogprob_row *row = &b->plogprob[i];
        uint64_t hash = row_hash(row->seq, b->pos[b->logit_row[row->logit]] + 1);
        r->plp_start[i] = n_plp;
        ok = ok && make_logprobs(sim, &r->plp, &r->cap_plp, &n_plp, hash, row->token,
                                 row->seq->req->params.p.prompt_logprobs);
    }
    r->lp_start[b->n_samples] = n_lp;
    r->plp_start[b->n_plogprobs] = n_plp;
    r->n_samples = b->n_samples;
    r->n_plogprobs = b->n_plogprobs;
    return ok ? SL_OK : SL_FAIL(err, SL_ENOMEM, "sim: no memory for logprobs");
}

static int64_t now_ns(struct backend *be)
{
    struct sim *sim = (struct sim *)be;
    return sim->cfg.real_time ? clock_mono_ns() : sim->clock_ns;
}

static enum sl_status submit(struct backend *be, const struct batch *b, struct sl_err *err)
{
    struct sim *sim = (struct sim *)be;
    SL_ASSERT(sim->n_steps < be->depth);
    if (++sim->n_submitted >= sim->cfg.fail_step && sim->cfg.fail_step > 0)
        return SL_FAIL(err, SL_EDEVICE, "sim: step %d fails, as was asked for", sim->n_submitted);
    double cost = sim->cfg.fixed_step_ns > 0
                      ? sim->cfg.fixed_step_ns
                      : sim_step_ns(sim->device, &sim->model, &sim->cfg.layout, b);
    int64_t start = now_ns(be), ns = (int64_t)llround(cost);
    if (start < sim->free_ns) /* steps run one after another */
        start = sim->free_ns;
    sim->free_ns = start + ns;
    sim->busy_ns += ns;
    sim->step[(sim->first + sim->n_steps++) % SIM_DEPTH_MAX] =
        (struct sim_step){.b = b, .end_ns = sim->free_ns};
    return SL_OK;
}

static void sleep_until(int64_t t_ns)
{
    struct timespec t = {.tv_sec = t_ns / 1000000000, .tv_nsec = t_ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static enum sl_status collect(struct backend *be, struct step_result *r, struct sl_err *err)
{
    struct sim *sim = (struct sim *)be;
    SL_ASSERT(sim->n_steps > 0);
    struct sim_step step = sim->step[sim->first];
    sim->first = (sim->first + 1) % SIM_DEPTH_MAX;
    sim->n_steps--;
    if (sim->cfg.real_time)
        sleep_until(step.end_ns);
    else if (sim->clock_ns < step.end_ns)
        sim->clock_ns = step.end_ns;
    r->done_ns = step.end_ns;
    return make_results(sim, step.b, r, err);
}

static void skip_to(struct backend *be, int64_t t_ns)
{
    struct sim *sim = (struct sim *)be;
    if (sim->clock_ns < t_ns)
        sim->clock_ns = t_ns;
}

static void destroy(struct backend *be)
{
    mem_free(be);
}

enum sl_status sim_create(struct backend **out, const struct sim_config *cfg, struct sl_err *err)
{
    static const struct backend_ops virtual_time = {submit,  collect, now_ns,
                                                    skip_to, destroy, NULL};
    static const struct backend_ops real_time = {submit, collect, now_ns, NULL, destroy, NULL};
    const char *name = cfg->device ? cfg->device : "h200";
    const struct sim_device *device = sim_device_find(name);
    if (!device)
        return SL_FAIL(err, SL_EINVAL, "sim: no device '%s', there are h200 and cpu", name);
    if (cfg->depth < 1 || cfg->depth > SIM_DEPTH_MAX)
        return SL_FAIL(err, SL_EINVAL, "sim: depth %d, 1 to %d are possible", cfg->depth,
                       SIM_DEPTH_MAX);
    if (cfg->vocab_size < 2)
        return SL_FAIL(err, SL_EINVAL, "sim: a vocabulary of %d tokens", cfg->vocab_size);
    struct sim *sim = mem_zalloc(1, sizeof *sim);
    if (!sim)
        return SL_FAIL(err, SL_ENOMEM, "sim: no memory");
    sim->cfg = *cfg;
    sim->device = device;
    sim->model =
        (struct sim_model){cfg->weight_bytes, cfg->flops_per_token, cfg->attn_flops_per_pair};
    sim->be = (struct backend){.ops = cfg->real_time ? &real_time : &virtual_time,
                               .name = "sim",
                               .depth = cfg->depth,
                               .layout = cfg->layout,
                               .vocab_size = cfg->vocab_size};
    *out = &sim->be;
    return SL_OK;
}

int64_t sim_busy_ns(const struct backend *be)
{
    return ((const struct sim *)be)->busy_ns;
}
