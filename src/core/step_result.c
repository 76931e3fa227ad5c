/* SPDX-License-Identifier: Apache-2.0 */
#include "core/batch.h"

#include "base/mem.h"

enum sl_status step_result_create(struct step_result **out, const struct batch_limits *limits,
                                  struct sl_err *err)
{
    struct step_result *r = mem_zalloc(1, sizeof *r);
    if (!r)
        return SL_FAIL(err, SL_ENOMEM, "step result: no memory");
    r->token = mem_zalloc((size_t)limits->max_samples, sizeof *r->token);
    r->lp_start = mem_zalloc((size_t)limits->max_samples + 1, sizeof *r->lp_start);
    r->plp_start = mem_zalloc((size_t)limits->max_logits + 1, sizeof *r->plp_start);
    if (!r->token || !r->lp_start || !r->plp_start) {
        step_result_destroy(&r);
        return SL_FAIL(err, SL_ENOMEM, "step result: no memory for %d samples",
                       limits->max_samples);
    }
    *out = r;
    return SL_OK;
}

void step_result_destroy(struct step_result **r)
{
    if (!*r)
        return;
    mem_free((*r)->token);
    mem_free((*r)->lp_start);
    mem_free((*r)->plp_start);
    mem_free((*r)->lp);
    mem_free((*r)->plp);
    mem_free(*r);
    *r = NULL;
}

bool step_result_reserve(struct sl_logprob **entries, int *cap, int used, int n)
{
    int want;
    if (__builtin_add_overflow(used, n, &want))
        return false;
    if (want <= *cap)
        return true;
    int grown = *cap < 64 ? 64 : *cap;
    while (grown < want)
        grown = grown > INT32_MAX / 2 ? want : grown * 2;
    struct sl_logprob *p = mem_realloc(*entries, (size_t)grown, sizeof *p);
    if (!p)
        return false;
    *entries = p;
    *cap = grown;
    return true;
}
