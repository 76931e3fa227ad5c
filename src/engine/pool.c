/* Pooling requests: a prompt in, vectors or a head's values out.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "engine/internal.h"
#include "model/spec.h"

static const size_t MAX_OUT_BYTES = 256 << 20;

void sl_pooling_params_init(struct sl_pooling_params *p, const struct sl_engine *e)
{
    *p = (struct sl_pooling_params){.task = e ? e->info.task : SL_POOL_EMBED,
                                    .use_activation = -1,
                                    .truncate_prompt_tokens = SL_NONE};
}

/* ---- what was asked for -------------------------------------------------------------------- */

static enum sl_status check_task(const struct sl_engine *e, const struct sl_pooling_params *p,
                                 struct sl_err *err)
{
    if (!e->info.pools)
        return SL_FAIL(err, SL_ENOSUPPORT,
                       "the model generates text: with the runner pooling it would embed");
    bool classifies = e->spec->pool.classify, wants = p->task == SL_POOL_CLASSIFY;
    if (classifies != wants)
        return SL_FAIL_PARAM(err, SL_EINVAL, "task", "the model %s",
                             classifies ? "classifies, it does not embed"
                                        : "embeds, it has no classification head");
    if (p->use_activation < -1 || p->use_activation > 1)
        return SL_FAIL_PARAM(err, SL_EINVAL, "use_activation",
                             "use_activation must be -1, 0 or 1, got %d", p->use_activation);
    return SL_OK;
}

static void list_dims(struct strbuf *b, const struct pool_spec *s)
{
    strbuf_init(b, 0);
    for (int i = 0; i < s->n_dims; i++)
        strbuf_addf(b, "%s%d", i ? ", " : "", s->dims[i]);
}

static enum sl_status check_dimensions(const struct sl_engine *e, int n, struct sl_err *err)
{
    const struct pool_spec *s = &e->spec->pool;
    const char *name = e->info.served_names[0];
    if (!n)
        return SL_OK;
    if (!s->matryoshka || s->classify)
        return SL_FAIL_PARAM(err, SL_EINVAL, "dimensions",
                             "Model '%.300s' does not support Matryoshka embeddings; dimensions "
                             "must be unset (received dimensions=%d).",
                             name, n);
    int width = spec_dim(e->spec, DIM_EMBED);
    if (n < 1 || n > width)
        return SL_FAIL_PARAM(err, SL_EINVAL, "dimensions",
                             "Model '%.300s' only supports dimensions in range [1, %d], got %d.",
                             name, width, n);
    bool found = s->n_dims == 0;
    for (int i = 0; i < s->n_dims; i++)
        found = found || s->dims[i] == n;
    if (found)
        return SL_OK;
    struct strbuf b;
    list_dims(&b, s);
    enum sl_status st =
        SL_FAIL_PARAM(err, SL_EINVAL, "dimensions",
                      "Model '%.300s' only supports Matryoshka dimensions [%s], got "
                      "%d.",
                      name, b.data ? b.data : "", n);
    strbuf_fini(&b);
    return st;
}

/* ---- the prompt ---------------------------------------------------------------------------- */

static enum sl_status take_prompt(const struct sl_engine *e, const struct sl_pooling_params *p,
                                  const int32_t **tokens, int *n, struct sl_err *err)
{
    enum sl_status st = request_truncate(e, p->truncate_prompt_tokens, p->truncate_right,
                                         e->info.max_model_len, tokens, n, err);
    if (!st)
        st = request_check_tokens(e, *tokens, *n, false, err);
    if (!st && !sched_can_ever_fit(core_sched(e->core), *n))
        st = SL_FAIL_PARAM(err, SL_EINVAL, "input_tokens",
                           "The prompt (length %d) does not fit into the KV cache.", *n);
    return st;
}

/* ---- the request --------------------------------------------------------------------------- */

static enum sl_status make_pooling(struct sl_request *r, const struct sl_pooling_params *p,
                                   int n_first, struct sl_err *err)
{
    const struct model_spec *s = r->engine->spec;
    int width = spec_dim(s, DIM_EMBED);
    struct arena *a = &r->core.arena;
    struct pooling *g = arena_alloc(a, 1, sizeof *g);
    if (!g)
        return request_no_memory(err);
    bool all = p->task == SL_POOL_TOKEN_EMBED;
    int dimensions = p->dimensions ? p->dimensions : s->pool.dimensions;
    g->kind = all ? POOL_ALL : s->pool.kind;
    g->classify = p->task == SL_POOL_CLASSIFY;
    g->activate =
        p->use_activation >= 0 ? p->use_activation == 1 : g->classify || s->pool.normalize;
    g->n_first = s->n_types > 1 ? n_first : 0;
    g->n_rows = all ? r->core.n_prompt : 1;
    g->n_cols = g->classify ? s->pool.n_labels : dimensions ? dimensions : width;
    size_t cols = (size_t)g->n_cols, rows = (size_t)g->n_rows;
    if (cols > MAX_OUT_BYTES / sizeof *g->out / rows)
        return SL_FAIL_PARAM(err, SL_EINVAL, "input",
                             "vectors of %zu tokens with %zu values each would take more than %zu "
                             "MiB",
                             rows, cols, MAX_OUT_BYTES >> 20);
    /* The head's first matrix leaves its row there. */
    size_t room = rows * cols > (size_t)width ? rows * cols : (size_t)width;
    g->out = arena_alloc(a, room, sizeof *g->out);
    g->sum = arena_alloc(a, (size_t)width, sizeof *g->sum);
    r->core.pooling = g;
    return g->out && g->sum ? SL_OK : request_no_memory(err);
}

static enum sl_status make_core(struct sl_request *r, const struct sl_input *in,
                                const struct sl_pooling_params *p, struct sl_err *err)
{
    struct request *c = &r->core;
    const int32_t *tokens = in->tokens;
    int n = in->n_tokens, n_first = p->n_first;
    enum sl_status st = take_prompt(r->engine, p, &tokens, &n, err);
    if (!st)
        st = request_take_input(r, in, tokens, n, err);
    if (st)
        return st;
    int dropped = (int)(tokens - in->tokens);
    if (dropped)
        n_first = n_first > dropped ? n_first - dropped : 0;
    sl_sampling_params_init(&c->params.p);
    c->params.p.detokenize = false;
    c->params.eos_token = -1;
    c->params.max_tokens = 1;
    c->n_seqs = 1;
    st = make_pooling(r, p, n_first, err);
    return st ? st : request_make_seqs(c, err);
}

static void log_received(const struct sl_request *r)
{
    static const char *const task[] = {"embed", "token_embed", "classify"};
    const struct pooling *p = r->core.pooling;
    int which = p->classify ? 2 : p->kind == POOL_ALL;
    log_info("Received request %s: params: PoolingParams(task=%s, dimensions=%d, "
             "use_activation=%s), lora_request: None.",
             r->core.id, task[which], p->n_cols, p->activate ? "True" : "False");
}

enum sl_status sl_pool(struct sl_engine *e, const struct sl_input *in,
                       const struct sl_pooling_params *params, sl_wake_fn wake, void *ctx,
                       struct sl_request **out, struct sl_err *err)
{
    enum sl_status st = check_task(e, params, err);
    if (!st)
        st = check_dimensions(e, params->dimensions, err);
    if (st)
        return st;
    struct sl_request *r = request_new(e, wake, ctx);
    if (!r)
        return request_no_memory(err);
    st = make_core(r, in, params, err);
    if (!st)
        st = request_make_consumer(r, err);
    if (!st && e->cfg.log_requests)
        log_received(r);
    if (!st)
        st = engine_post_new(r, err);
    if (st)
        request_unref(r);
    else
        *out = r;
    return st;
}

const float *sl_request_pooled(const struct sl_request *r, int *rows, int *cols)
{
    const struct pooling *p = r->core.pooling;
    if (!p || r->n_ended == 0 || r->out.finish != SL_STOP)
        return NULL;
    *rows = p->n_rows;
    *cols = p->n_cols;
    return p->out;
}
