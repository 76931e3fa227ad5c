/* From --speculative-config to a proposer.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "engine/internal.h"
#include "model/spec.h"
#include "text/tokenizer.h"

#include <string.h>

static const char FLAG[] = "speculative_config";

/* ---- a draft model -------------------------------------------------------------------------- */

static bool same_vocab(const struct vocab *a, const struct vocab *b, int32_t *differs)
{
    *differs = a->n < b->n ? a->n : b->n;
    for (int32_t id = 0; id < *differs; id++) {
        size_t n_a, n_b;
        const uint8_t *bytes_a = vocab_bytes(a, id, &n_a), *bytes_b = vocab_bytes(b, id, &n_b);
        if (n_a != n_b || memcmp(bytes_a, bytes_b, n_a) || a->flags[id] != b->flags[id]) {
            *differs = id;
            return false;
        }
    }
    return a->n == b->n;
}

/* A guess is an id: it must be the same token in both. */
static enum sl_status check_vocabulary(const struct sl_engine *e, struct sl_err *err)
{
    const char *dir = e->draft.model;
    if (e->draft_spec->vocab_size != e->info.vocab_size)
        return SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                             "speculative_config: the draft model %s has a vocabulary of %d "
                             "tokens, the model one of %d; they must be the same",
                             dir, e->draft_spec->vocab_size, e->info.vocab_size);
    if (!e->text)
        return SL_OK;
    struct tokenizer *t = NULL;
    struct sl_err own = {0};
    enum sl_status st = tokenizer_load(&t, dir, &own);
    if (st == SL_ENOTFOUND) {
        log_warning("%s has no tokenizer: that its tokens are the model's is not checked.", dir);
        return SL_OK;
    }
    if (st)
        return SL_FAIL_PARAM(err, st, FLAG, "speculative_config: the draft model's tokenizer: %s",
                             own.msg);
    int32_t differs;
    if (!same_vocab(tokenizer_vocab(text_tokenizer(e->text)), tokenizer_vocab(t), &differs))
        st = SL_FAIL_PARAM(err, SL_EINVAL, FLAG,
                           "speculative_config: the draft model %s has another tokenizer than the "
                           "model: token %d differs",
                           dir, (int)differs);
    tokenizer_destroy(&t);
    return st;
}

/* The layer group whose block tables the draft reads: one that keeps every position, or as many as
 * the draft ever looks back at. */
static enum sl_status find_group(const struct sl_engine *e, int *group, struct sl_err *err)
{
    const struct kv_layout *l = &e->be->layout;
    struct model_info mi;
    model_spec_info(e->draft_spec, &mi);
    int reach = 0; /* the draft's widest window, 0: all */
    for (int g = 0; g < mi.layout.n_groups; g++) {
        int window = mi.layout.group[g].window;
        reach = g == 0 ? window : !window || !reach ? 0 : window > reach ? window : reach;
    }
    for (*group = 0; *group < l->n_groups; ++*group) {
        int window = l->group[*group].window;
        if (!window || (reach && reach <= window))
            return SL_OK;
    }
    return SL_FAIL_PARAM(err, SL_ENOSUPPORT, FLAG,
                         "speculative_config: the draft model %s looks further back than the "
                         "model's sliding windows keep",
                         e->draft.model);
}

/* Until the scheduler has measured it. */
static void set_cost_share(struct sl_engine *e)
{
    struct model_info own, draft;
    model_spec_info(e->spec, &own);
    model_spec_info(e->draft_spec, &draft);
    if (own.flops_per_token)
        e->proposer->cost_share = (float)draft.flops_per_token / (float)own.flops_per_token;
}

static enum sl_status open_model(struct sl_engine *e, struct sl_err *err)
{
    if (!e->runner)
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, FLAG,
                             "speculative_config: device sim runs no draft model");
    enum sl_status st = model_spec_load(&e->draft_spec, e->draft.model, NULL, "vllm", err);
    int group = 0;
    if (!st)
        st = check_vocabulary(e, err);
    if (!st)
        st = find_group(e, &group, err);
    struct runner_config rc = {
        .spec = e->draft_spec,
        .dir = e->draft.model,
        .load_format = e->cfg.load_format,
        .seed = (uint64_t)e->cfg.seed + 1,
        .dtype = e->cfg.dtype,
        .quantization = e->draft.quantization,
        .kv_cache_dtype = e->cfg.kv_cache_dtype,
        .block_size = e->cfg.block_size,
    };
    if (!st)
        st = setup_device(&e->cfg, &rc, err);
    if (st)
        return st;
    log_info("Starting to load draft model %s...", e->draft.model);
    st = draft_model_open(&e->proposer, &e->draft, &rc, group, err);
    if (!st)
        set_cost_share(e);
    return st;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static enum sl_status create(struct sl_engine *e, struct sl_err *err)
{
    switch (e->draft.method) {
    case DRAFT_NGRAM:
        return ngram_create(&e->proposer, &e->draft, e->info.vocab_size, err);
    case DRAFT_SUFFIX:
        return suffix_create(&e->proposer, &e->draft, e->info.vocab_size, err);
    case DRAFT_MODEL:
        break;
    }
    return open_model(e, err);
}

enum sl_status speculate_open(struct sl_engine *e, struct sl_err *err)
{
    const char *json = e->cfg.speculative_config, *method = e->cfg.rejection_sample_method;
    if (!json && !method)
        return SL_OK;
    if (!json)
        return SL_FAIL_PARAM(err, SL_EINVAL, "rejection_sample_method",
                             "rejection_sample_method needs a speculative_config");
    enum sl_status st = draft_config_parse(&e->draft, json, method, &e->strings, err);
    if (!st)
        st = create(e, err);
    if (st)
        return st;
    if (e->runner)
        runner_keep_layers(e->runner, e->proposer->layer, e->proposer->n_layers);
    bool standard = e->draft.verify == DRAFT_STANDARD;
    if (standard && e->sampler)
        sampler_reject_by_probability(e->sampler);
    log_info("Speculative decoding: %s, up to %d tokens a step, %s verification", e->proposer->name,
             e->proposer->max_tokens, standard ? "standard" : "coupled");
    return SL_OK;
}

enum sl_status speculate_take_memory(struct sl_engine *e, const struct batch_limits *limits,
                                     struct sl_err *err)
{
    if (!e->draft_spec)
        return SL_OK;
    return draft_model_take_memory(e->proposer, e->sched_cfg.layout.n_blocks, limits, err);
}

void speculate_close(struct sl_engine *e)
{
    if (e->proposer)
        e->proposer->ops->destroy(e->proposer);
    e->proposer = NULL;
    model_spec_destroy(&e->draft_spec);
}
