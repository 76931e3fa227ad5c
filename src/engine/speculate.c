/* From --speculative-config to a proposer.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "engine/internal.h"

static enum sl_status create(struct sl_engine *e, const struct draft_config *c, struct sl_err *err)
{
    switch (c->method) {
    case DRAFT_NGRAM:
        return ngram_create(&e->proposer, c, e->info.vocab_size, err);
    default:
        return SL_FAIL_PARAM(err, SL_ENOSUPPORT, "speculative_config",
                             "speculative_config: this method is not there yet");
    }
}

enum sl_status speculate_open(struct sl_engine *e, struct sl_err *err)
{
    struct draft_config c;
    const char *json = e->cfg.speculative_config, *method = e->cfg.rejection_sample_method;
    if (!json && !method)
        return SL_OK;
    if (!json)
        return SL_FAIL_PARAM(err, SL_EINVAL, "rejection_sample_method",
                             "rejection_sample_method needs a speculative_config");
    enum sl_status st = draft_config_parse(&c, json, method, &e->strings, err);
    if (!st)
        st = create(e, &c, err);
    if (st)
        return st;
    e->sched_cfg.proposer = e->proposer;
    log_info("Speculative decoding: %s, up to %d tokens a step, %s verification", e->proposer->name,
             e->proposer->max_tokens, c.verify == DRAFT_COUPLED ? "coupled" : "standard");
    return SL_OK;
}

void speculate_close(struct sl_engine *e)
{
    if (e->proposer)
        e->proposer->ops->destroy(e->proposer);
    e->proposer = NULL;
}
