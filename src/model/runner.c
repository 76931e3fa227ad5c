/* runner.c - a model on a device as a struct backend.
 *
 * On a device that draws tokens itself submit() launches everything, and up to its depth of steps
 * are in flight; rows that are left to the host are sampled inside submit(). On others the depth is
 * 1: submit() runs the layers; collect() makes logits, has them sampled and returns the tokens.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/forward.h"

#include "base/clock.h"
#include "base/half.h"

#include <string.h>

/* A step with more logits than this takes them in pieces (prompt logprobs of a large vocabulary).
 */
static const size_t LOGITS_BYTES = (size_t)128 << 20;

enum { DEPTH_MAX = 4 };

/* A step in flight on a device that draws by itself. */
struct flight {
    const struct batch *b;
    struct draw_rows rows;
    struct step_result *host; /* rows that the host sampled, and prompt logprobs */
};

struct runner {
    struct backend base; /* first: a runner is a backend */
    const struct model_spec *spec;
    struct model_weights weights;
    struct attn_spec *attn; /* [n_layers] */
    struct forward forward;
    int keep_layer[HIDDEN_LAYERS_MAX], n_keep; /* whose outputs a proposer wants */
    struct hidden_states states;
    const struct ops *ops;
    struct device *device;
    enum wformat kv_format;
    float *logits;      /* [logits_rows, vocab_size], device memory */
    float *logits_host; /* the same for the sampler; equal to logits where that is host memory */
    int logits_rows;
    struct sample_row *piece_sample;     /* [max_samples] */
    struct plogprob_row *piece_plogprob; /* [max_logits] */
    struct step_result *piece;
    float *hidden; /* [POOL_ROWS, hidden] of a device that does not compute in host memory */
    sample_fn sample;
    void *sample_ctx;
    const struct batch *in_flight;
    const struct draw_hooks *draw; /* NULL: the host samples everything */
    struct flight flight[DEPTH_MAX];
    uint64_t n_submitted, n_collected;
    enum sl_status dead; /* SL_EDEVICE once the device failed */
};

static struct runner *as_runner(struct backend *be)
{
    return (struct runner *)be;
}

/* ---- a step -------------------------------------------------------------------------------- */

static enum sl_status poison(struct runner *r, enum sl_status st)
{
    if (st == SL_EDEVICE)
        r->dead = st;
    return st;
}

static enum sl_status is_dead(struct sl_err *err)
{
    return SL_FAIL(err, SL_EDEVICE, "the device failed earlier");
}

enum { POOL_ROWS = 64 }; /* hidden states that are fetched at once */

/* Hidden states of n batch rows from `row` on; at most POOL_ROWS where they must be fetched. */
static enum sl_status fetch_hidden(struct runner *r, int row, int n, const float **out,
                                   struct sl_err *err)
{
    size_t hidden = (size_t)spec_dim(r->spec, DIM_EMBED), act = r->ops->act_bytes,
           count = (size_t)n * hidden;
    const char *x = (const char *)r->forward.x + (size_t)row * hidden * act;
    *out = (const float *)x;
    if (!r->ops->fetch)
        return SL_OK;
    *out = r->hidden;
    /* Shorter values come into the second half, so that widening them forward harms none. */
    char *at = (char *)r->hidden + count * (sizeof(float) - act);
    enum sl_status st = r->ops->fetch(r->device, at, x, count * act, err);
    for (size_t i = 0; st == SL_OK && act == 2 && i < count; i++) {
        uint16_t h;
        memcpy(&h, at + 2 * i, sizeof h);
        r->hidden[i] = bf16_f32(h);
    }
    return st;
}

static enum sl_status pool_rows(struct runner *r, const struct batch *b, struct sl_err *err)
{
    for (int i = 0; i < b->n_pools; i++) {
        const struct pool_row *row = &b->pool[i];
        struct pooling *p = row->seq->req->pooling;
        for (int at = 0; at < row->n;) {
            int n = row->n - at;
            n = r->ops->fetch && n > POOL_ROWS ? POOL_ROWS : n;
            const float *hidden = NULL;
            enum sl_status st = fetch_hidden(r, row->row + at, n, &hidden, err);
            if (st)
                return st;
            pool_take(p, hidden, b->pos[row->row + at], n, spec_dim(r->spec, DIM_EMBED));
            at += n;
        }
        if (p->n_done == row->seq->n_prompt)
            pool_finish(p, r->spec, &r->weights.head);
    }
    return SL_OK;
}

static enum sl_status submit_drawn(struct runner *r, const struct batch *b, struct sl_err *err);
static enum sl_status collect_drawn(struct runner *r, struct step_result *out, struct sl_err *err);

static enum sl_status runner_submit(struct backend *be, const struct batch *b, struct sl_err *err)
{
    struct runner *r = as_runner(be);
    if (r->dead)
        return is_dead(err);
    if (r->draw)
        return poison(r, submit_drawn(r, b, err));
    SL_ASSERT(!r->in_flight && r->logits && r->sample);
    enum sl_status st = r->ops->begin(r->device, b, err);
    if (st)
        return poison(r, st);
    forward_run(&r->forward, b->n_tokens);
    if ((st = pool_rows(r, b, err)))
        return poison(r, st);
    r->in_flight = b;
    return SL_OK;
}

/* Logits of rows [first, first + n) of the batch, on the device. */
static void launch_logits(const struct runner *r, int first, int n)
{
    const struct model_spec *s = r->spec;
    const struct weight *head =
        weights_matrix(&r->weights, s->tied ? SLOT_EMBED : SLOT_LM_HEAD, -1);
    r->ops->logits(r->device, r->logits, head, r->forward.x, first, n, s->logit_scale,
                   s->logit_softcap);
}

/* n rows of logits, to where the host sampler can read them. */
static enum sl_status fetch_logits(const struct runner *r, int n, struct sl_err *err)
{
    if (!r->ops->fetch)
        return SL_OK;
    size_t bytes = (size_t)n * (size_t)r->spec->vocab_size * sizeof(float);
    return r->ops->fetch(r->device, r->logits_host, r->logits, bytes, err);
}

static enum sl_status make_logits(const struct runner *r, int first, int n, struct sl_err *err)
{
    launch_logits(r, first, n);
    return fetch_logits(r, n, err);
}

/* The rows of b that read logits [first, first + n), renumbered from 0; with `rows`, only those
 * that the device leaves. *sample and *plogprob say where the next piece begins (both lists are in
 * order of logits). */
static struct batch piece_of(struct runner *r, const struct batch *b, int first, int n, int *sample,
                             int *plogprob, const struct draw_rows *rows)
{
    struct batch v = *b;
    v.n_logits = n;
    v.logit_row = b->logit_row + first;
    v.sample = r->piece_sample;
    v.plogprob = r->piece_plogprob;
    v.n_samples = v.n_plogprobs = 0;
    for (; *sample < b->n_samples && b->sample[*sample].logit < first + n; ++*sample) {
        if (rows && rows->row[*sample].logit >= 0)
            continue;
        v.sample[v.n_samples] = b->sample[*sample];
        v.sample[v.n_samples++].logit -= first;
    }
    for (; *plogprob < b->n_plogprobs && b->plogprob[*plogprob].logit < first + n; ++*plogprob) {
        v.plogprob[v.n_plogprobs] = b->plogprob[*plogprob];
        v.plogprob[v.n_plogprobs++].logit -= first;
    }
    return v;
}

/* Append n ragged rows of logprobs. */
static bool append_rows(int32_t *to_start, int at, struct sl_logprob **to, int *cap,
                        const int32_t *from_start, const struct sl_logprob *from, int n)
{
    int used = to_start[at], more = from_start[n];
    if (!step_result_reserve(to, cap, used, more))
        return false;
    if (more)
        memcpy(*to + used, from, (size_t)more * sizeof *from);
    for (int i = 1; i <= n; i++)
        to_start[at + i] = used + from_start[i];
    return true;
}

static bool append_piece(struct step_result *r, const struct step_result *p)
{
    if (p->n_samples)
        memcpy(r->token + r->n_samples, p->token, (size_t)p->n_samples * sizeof *p->token);
    if (!append_rows(r->lp_start, r->n_samples, &r->lp, &r->cap_lp, p->lp_start, p->lp,
                     p->n_samples) ||
        !append_rows(r->plp_start, r->n_plogprobs, &r->plp, &r->cap_plp, p->plp_start, p->plp,
                     p->n_plogprobs))
        return false;
    r->n_samples += p->n_samples;
    r->n_plogprobs += p->n_plogprobs;
    return true;
}

static enum sl_status sample_in_pieces(struct runner *r, const struct batch *b,
                                       struct step_result *out, struct sl_err *err)
{
    int sample = 0, plogprob = 0;
    out->n_samples = out->n_plogprobs = 0;
    out->lp_start[0] = out->plp_start[0] = 0;
    for (int first = 0; first < b->n_logits; first += r->logits_rows) {
        int n = b->n_logits - first < r->logits_rows ? b->n_logits - first : r->logits_rows;
        struct batch v = piece_of(r, b, first, n, &sample, &plogprob, NULL);
        enum sl_status st = make_logits(r, first, n, err);
        if (st == SL_OK)
            st = r->sample(r->sample_ctx, &v, r->logits_host, r->piece, err);
        if (st)
            return st;
        if (!append_piece(out, r->piece))
            return SL_FAIL(err, SL_ENOMEM, "no memory for a step's logprobs");
    }
    SL_ASSERT(sample == b->n_samples && plogprob == b->n_plogprobs);
    return SL_OK;
}

static enum sl_status runner_collect(struct backend *be, struct step_result *out,
                                     struct sl_err *err)
{
    struct runner *r = as_runner(be);
    const struct batch *b = r->in_flight;
    if (r->dead)
        return is_dead(err);
    if (r->draw)
        return poison(r, collect_drawn(r, out, err));
    SL_ASSERT(b);
    r->in_flight = NULL;
    enum sl_status st = SL_OK;
    if (b->n_logits <= r->logits_rows) {
        if (b->n_logits)
            st = make_logits(r, 0, b->n_logits, err);
        if (st == SL_OK)
            st = r->sample(r->sample_ctx, b, r->logits_host, out, err);
    } else {
        st = sample_in_pieces(r, b, out, err);
    }
    enum sl_status ended = r->ops->end(r->device, err);
    out->done_ns = clock_mono_ns();
    return poison(r, st ? st : ended);
}

/* ---- a step of a device that draws by itself ------------------------------------------------ */

/* What the device leaves of the piece: rows for the host, prompt logprobs. Waits for the logits. */
static enum sl_status sample_left(struct runner *r, struct flight *f, const struct batch *piece,
                                  struct sl_err *err)
{
    if (!piece->n_samples && !piece->n_plogprobs)
        return SL_OK;
    enum sl_status st = fetch_logits(r, piece->n_logits, err);
    if (st == SL_OK)
        st = r->sample(r->sample_ctx, piece, r->logits_host, r->piece, err);
    if (st == SL_OK && !append_piece(f->host, r->piece))
        st = SL_FAIL(err, SL_ENOMEM, "no memory for a step's logprobs");
    return st;
}

static enum sl_status submit_drawn(struct runner *r, const struct batch *b, struct sl_err *err)
{
    struct flight *f = &r->flight[r->n_submitted % (uint64_t)r->base.depth];
    SL_ASSERT(r->n_submitted - r->n_collected < (uint64_t)r->base.depth);
    f->b = b;
    r->draw->describe(b, &f->rows);
    r->ops->expect(r->device, &f->rows);
    enum sl_status st = r->ops->begin(r->device, b, err);
    if (st)
        return st;
    int sample = 0, plogprob = 0, rows = r->ops->rows(r->device);
    int n_logits = rows > b->n_tokens ? rows : rows ? b->n_logits : 0;
    f->host->n_samples = f->host->n_plogprobs = 0;
    f->host->lp_start[0] = f->host->plp_start[0] = 0;
    if (rows)
        forward_run(&r->forward, rows);
    st = pool_rows(r, b, err);
    for (int first = 0; st == SL_OK && first < n_logits; first += r->logits_rows) {
        int n = n_logits - first < r->logits_rows ? n_logits - first : r->logits_rows;
        launch_logits(r, first, n);
        if (f->rows.n_rows > f->rows.n_host)
            r->ops->draw(r->device, r->logits, first, n);
        if (f->rows.n_host || b->n_plogprobs) {
            struct batch piece = piece_of(r, b, first, n, &sample, &plogprob, &f->rows);
            st = sample_left(r, f, &piece, err);
        }
    }
    if (st == SL_OK)
        st = r->ops->launched(r->device, err);
    if (st == SL_OK)
        r->n_submitted++;
    return st;
}

static enum sl_status collect_drawn(struct runner *r, struct step_result *out, struct sl_err *err)
{
    struct flight *f = &r->flight[r->n_collected % (uint64_t)r->base.depth];
    const struct draw_result *result;
    const struct draw_top *top;
    SL_ASSERT(r->n_collected < r->n_submitted);
    r->n_collected++;
    enum sl_status st = r->ops->collect(r->device, &result, &top, err);
    out->done_ns = clock_mono_ns();
    if (st == SL_OK)
        st = r->draw->read(r->sample_ctx, f->b, &f->rows, result, top, f->host, out, err);
    return st;
}

static const struct hidden_states *runner_hidden(struct backend *be)
{
    return &as_runner(be)->states;
}

static int64_t runner_now(struct backend *be)
{
    (void)be;
    return clock_mono_ns();
}

/* ---- making one ---------------------------------------------------------------------------- */

static void free_buffers(struct runner *r)
{
    if (r->forward.ops)
        forward_fini(&r->forward);
    if (r->ops) {
        if (r->logits_host != r->logits)
            mem_free(r->logits_host);
        r->ops->free(r->device, r->logits);
    }
    r->logits = r->logits_host = NULL;
    mem_free(r->hidden);
    r->hidden = NULL;
    mem_free(r->piece_sample);
    mem_free(r->piece_plogprob);
    r->piece_sample = NULL;
    r->piece_plogprob = NULL;
    step_result_destroy(&r->piece);
    for (int i = 0; i < DEPTH_MAX; i++) {
        mem_free(r->flight[i].rows.row);
        mem_free(r->flight[i].rows.word);
        mem_free(r->flight[i].rows.mask);
        step_result_destroy(&r->flight[i].host);
        r->flight[i] = (struct flight){0};
    }
}

static void runner_destroy(struct backend *be)
{
    struct runner *r = as_runner(be);
    free_buffers(r);
    weights_fini(&r->weights);
    mem_free(r->attn);
    r->ops->destroy(r->device);
    mem_free(r);
}

static const struct backend_ops runner_ops = {.submit = runner_submit,
                                              .collect = runner_collect,
                                              .hidden = runner_hidden,
                                              .now_ns = runner_now,
                                              .destroy = runner_destroy};

static enum sl_status check_heads(const struct runner_config *cfg, struct sl_err *err)
{
    int most = cfg->ops->head_dim_max, n = cfg->spec->head_dim;
    if (!most || n <= most)
        return SL_OK;
    return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "device",
                         "%s: its attention heads have %d values; device %s takes multiples "
                         "of 8 up to %d",
                         cfg->spec->architecture, n, cfg->ops->name, most);
}

static enum sl_dtype choose_dtype(const struct runner_config *cfg)
{
    static const enum sl_dtype instead[] = {SL_DTYPE_BF16, SL_DTYPE_F16, SL_DTYPE_F32};
    if (cfg->dtype != SL_DTYPE_AUTO)
        return cfg->dtype;
    enum sl_dtype own = cfg->spec->dtype;
    for (int i = 0; i < 3 && !cfg->ops->supports(cfg->device, own); i++)
        own = instead[i];
    return own;
}

static enum sl_status choose_kv_format(const char *name, enum sl_dtype dtype, enum wformat *out,
                                       struct sl_err *err)
{
    static const struct {
        const char *name;
        enum wformat format;
    } known[] = {{"float32", W_F32}, {"float16", W_F16}, {"bfloat16", W_BF16},
                 {"int8", W_I8},     {"fp8", W_FP8},     {"fp8_e4m3", W_FP8}};
    *out = dtype == SL_DTYPE_F32 ? W_F32 : dtype == SL_DTYPE_F16 ? W_F16 : W_BF16;
    if (!name || !strcmp(name, "auto"))
        return SL_OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].format;
            return SL_OK;
        }
    return SL_FAIL_PARAM(err, SL_EINVAL, "kv_cache_dtype", "kv_cache_dtype '%.32s' is not known",
                         name);
}

/* Bytes of one head's K or V at one position; 8-bit formats keep an f32 scale beside it. */
static size_t kv_head_bytes(enum wformat f, int head_dim)
{
    size_t n = (size_t)head_dim;
    return f == W_F32 ? 4 * n : f == W_F16 || f == W_BF16 ? 2 * n : n + sizeof(float);
}

static enum sl_status make_layers(struct runner *r, struct sl_err *err)
{
    const struct model_spec *s = r->spec;
    if (!(r->attn = mem_zalloc((size_t)s->n_layers, sizeof *r->attn)))
        return SL_FAIL(err, SL_ENOMEM, "no memory for %d layers", s->n_layers);
    for (int l = 0; l < s->n_layers; l++)
        r->attn[l] = (struct attn_spec){.n_heads = s->n_heads,
                                        .n_kv_heads = s->n_kv_heads,
                                        .head_dim = s->head_dim,
                                        .qk_norm = s->qk_norm,
                                        .group = s->layer[l].group,
                                        .layer_in_group = s->layer[l].layer_in_group,
                                        .scale = s->attn_scale,
                                        .softcap = s->attn_softcap,
                                        .window = s->layer[l].window,
                                        .causal = !s->both_ways};
    struct kv_layout *kv = &r->base.layout;
    *kv = s->info.layout;
    for (int g = 0; g < kv->n_groups; g++)
        kv->group[g].bytes_per_token = 2 * (size_t)kv->group[g].n_layers * (size_t)s->n_kv_heads *
                                       kv_head_bytes(r->kv_format, s->head_dim);
    if (r->ops->kv_more_bytes)
        kv->more_bytes_per_token = r->ops->kv_more_bytes(r->kv_format, s->n_kv_heads, s->head_dim);
    return SL_OK;
}

static enum sl_status load(struct runner *r, const struct runner_config *cfg, enum sl_dtype dtype,
                           struct sl_err *err)
{
    struct load_request req = {.spec = cfg->spec,
                               .dir = cfg->dir,
                               .load_format = cfg->load_format,
                               .seed = cfg->seed,
                               .dtype = dtype,
                               .quantization = cfg->quantization,
                               .ops = cfg->ops,
                               .device = cfg->device};
    enum sl_status st = weights_load(&r->weights, &req, err);
    for (int l = 0; st == SL_OK && l < r->spec->n_layers; l++)
        r->attn[l].alibi = r->weights.alibi;
    return st;
}

enum sl_status runner_create(struct runner **out, const struct runner_config *cfg,
                             struct sl_err *err)
{
    struct runner *r = mem_zalloc(1, sizeof *r);
    if (!r) {
        cfg->ops->destroy(cfg->device);
        return SL_FAIL(err, SL_ENOMEM, "no memory for a runner");
    }
    r->base = (struct backend){.ops = &runner_ops,
                               .name = cfg->ops->name,
                               .depth = 1,
                               .vocab_size = cfg->spec->vocab_size};
    r->spec = cfg->spec;
    r->ops = cfg->ops;
    r->device = cfg->device;
    enum sl_dtype dtype = choose_dtype(cfg);
    enum sl_status st = SL_OK;
    if (!cfg->ops->supports(cfg->device, dtype))
        st = SL_FAIL_PARAM(err, SL_ENOSUPPORT, "dtype", "device %s does not run this dtype",
                           cfg->ops->name);
    if (st == SL_OK)
        st = check_heads(cfg, err);
    if (st == SL_OK)
        st = choose_kv_format(cfg->kv_cache_dtype, dtype, &r->kv_format, err);
    if (st == SL_OK)
        st = make_layers(r, err);
    if (st == SL_OK)
        st = load(r, cfg, dtype, err);
    if (st) {
        runner_destroy(&r->base);
        return st;
    }
    r->base.layout.block_size = cfg->block_size;
    *out = r;
    return SL_OK;
}

static int logits_rows(const struct runner *r, const struct batch_limits *limits)
{
    size_t row = (size_t)r->spec->vocab_size * sizeof(float), n = LOGITS_BYTES / row;
    if (r->spec->pool.only)
        return 1; /* none are made */
    return n < 1 ? 1 : n < (size_t)limits->max_logits ? (int)n : limits->max_logits;
}

size_t runner_weight_bytes(const struct runner *r)
{
    return r->weights.bytes;
}

size_t runner_activation_bytes(const struct runner *r, const struct batch_limits *limits)
{
    const struct forward f = {
        .spec = r->spec, .weights = &r->weights, .ops = r->ops, .n_keep = r->n_keep};
    int rows = logits_rows(r, limits), vocab = r->spec->vocab_size;
    return forward_bytes(&f, limits->max_tokens) + (size_t)rows * (size_t)vocab * sizeof(float) +
           (r->draw ? r->ops->draw_bytes(rows, vocab) : 0) +
           (r->ops->step_bytes ? r->ops->step_bytes(r->device, limits->max_tokens) : 0);
}

static enum sl_status take_flights(struct runner *r, const struct batch_limits *limits,
                                   struct sl_err *err)
{
    size_t n = (size_t)limits->max_samples;
    for (int i = 0; r->draw && i < r->base.depth; i++) {
        struct flight *f = &r->flight[i];
        f->rows.cap_words = limits->max_samples * DRAW_WORDS_MAX;
        f->rows.row = mem_alloc(n, sizeof *f->rows.row);
        f->rows.word = mem_alloc((size_t)f->rows.cap_words, sizeof *f->rows.word);
        f->rows.cap_masks = draw_masks_max(r->spec->vocab_size, limits->max_samples);
        f->rows.mask = mem_alloc((size_t)f->rows.cap_masks, sizeof *f->rows.mask);
        if (!f->rows.row || !f->rows.word || !f->rows.mask)
            return SL_FAIL(err, SL_ENOMEM, "no memory for %zu samples", n);
        enum sl_status st = step_result_create(&f->host, limits, err);
        if (st)
            return st;
    }
    if (!r->draw)
        return SL_OK;
    return r->ops->draw_plan(r->device, limits, r->logits_rows, r->spec->vocab_size, err);
}

static enum sl_status take_buffers(struct runner *r, const struct batch_limits *limits,
                                   struct sl_err *err)
{
    r->forward = (struct forward){.spec = r->spec,
                                  .weights = &r->weights,
                                  .attn = r->attn,
                                  .ops = r->ops,
                                  .device = r->device,
                                  .keep_layer = r->keep_layer,
                                  .n_keep = r->n_keep};
    enum sl_status st = forward_alloc(&r->forward, limits->max_tokens, err);
    if (st)
        return st;
    r->states.final = r->forward.x;
    for (int i = 0; i < r->n_keep; i++)
        r->states.layer[i] = r->forward.kept[i];
    r->logits_rows = logits_rows(r, limits);
    size_t bytes = (size_t)r->logits_rows * (size_t)r->spec->vocab_size * sizeof(float);
    if (!(r->logits = r->ops->alloc(r->device, bytes, "logits", err)))
        return SL_FAIL(err, SL_ENOMEM, "no memory for logits (%zu bytes)", bytes);
    r->logits_host = r->ops->fetch ? mem_aligned(bytes, 1, 64) : r->logits;
    if (!r->logits_host)
        return SL_FAIL(err, SL_ENOMEM, "no host memory for logits (%zu bytes)", bytes);
    st = take_flights(r, limits, err);
    if (st)
        return st;
    if (r->spec->pool.only && r->ops->fetch &&
        !(r->hidden = mem_alloc((size_t)POOL_ROWS * (size_t)spec_dim(r->spec, DIM_EMBED),
                                sizeof *r->hidden)))
        return SL_FAIL(err, SL_ENOMEM, "no memory for hidden states");
    if ((r->logits_rows == limits->max_logits && !r->draw) || r->spec->pool.only)
        return SL_OK;
    r->piece_sample = mem_alloc((size_t)limits->max_samples, sizeof *r->piece_sample);
    r->piece_plogprob = mem_alloc((size_t)limits->max_logits, sizeof *r->piece_plogprob);
    if (!r->piece_sample || !r->piece_plogprob)
        return SL_FAIL(err, SL_ENOMEM, "no memory for %d logit rows", limits->max_logits);
    return step_result_create(&r->piece, limits, err);
}

void runner_keep_layers(struct runner *r, const int *layer, int n)
{
    SL_ASSERT(n >= 0 && n <= HIDDEN_LAYERS_MAX);
    r->n_keep = n;
    for (int i = 0; i < n; i++) {
        SL_ASSERT(layer[i] >= 0 && layer[i] < r->spec->n_layers);
        r->keep_layer[i] = layer[i];
    }
}

void runner_set_host_kv(struct runner *r, int n_blocks)
{
    r->base.layout.n_host_blocks = n_blocks;
}

enum sl_status runner_take_kv(struct runner *r, int n_blocks, const struct batch_limits *limits,
                              struct sl_err *err)
{
    free_buffers(r);
    r->base.layout.n_blocks = n_blocks;
    enum sl_status st = r->ops->kv_create(r->device, &r->base.layout, r->attn, r->spec->n_layers,
                                          r->kv_format, err);
    if (st == SL_OK)
        st = take_buffers(r, limits, err);
    if (st)
        free_buffers(r);
    return st;
}

void runner_set_sampler(struct runner *r, sample_fn fn, void *ctx)
{
    r->sample = fn;
    r->sample_ctx = ctx;
}

bool runner_set_draw(struct runner *r, const struct draw_hooks *hooks, bool eager)
{
    if (!r->ops->draw || r->ops->depth > DEPTH_MAX)
        return false;
    r->ops->set_eager(r->device, eager);
    r->draw = hooks;
    r->base.depth = r->ops->depth;
    return true;
}

struct backend *runner_backend(struct runner *r)
{
    return &r->base;
}
