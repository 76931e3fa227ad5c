/* Any bytes as a config.json: refused with a message, or a model whose numbers a forward pass can
 * trust; to generate, and to pool.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/plan.h"
#include "model/spec.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* A folder with an empty config; what is tried are overrides of it. */
static const char *folder(void)
{
    static char dir[] = "/tmp/sluice-fuzz-XXXXXX", path[64];
    if (path[0])
        return dir;
    SL_ASSERT(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    SL_ASSERT(f && fputs("{}", f) >= 0 && fclose(f) == 0);
    return dir;
}

static void check_ropes(const struct model_spec *s)
{
    for (int i = 0; i < s->n_ropes; i++) {
        const struct rope_spec *r = &s->rope[i];
        SL_ASSERT(r->rot_dims >= 2 && r->rot_dims % 2 == 0 && r->rot_dims <= s->head_dim);
        for (int k = 0; k < r->rot_dims / 2; k++)
            SL_ASSERT(isfinite(r->inv_freq[k]));
        SL_ASSERT(isfinite(r->mscale));
    }
}

static void check_layers(const struct model_spec *s)
{
    int in_group[KV_GROUPS_MAX] = {0};
    for (int l = 0; l < s->n_layers; l++) {
        const struct layer_spec *y = &s->layer[l];
        SL_ASSERT(y->window >= 0 && y->rope >= -1 && y->rope < s->n_ropes);
        SL_ASSERT(y->group >= 0 && y->group < s->info.layout.n_groups);
        SL_ASSERT(y->layer_in_group == in_group[y->group]++);
        SL_ASSERT(!y->moe || (s->n_experts >= s->top_k && s->top_k > 0 && s->moe_ffn > 0));
    }
}

static void check(const struct model_spec *s)
{
    SL_ASSERT(s->vocab_size > 0 && s->hidden > 0 && s->n_layers > 0 && s->ffn > 0);
    SL_ASSERT(s->n_heads > 0 && s->n_kv_heads > 0 && s->n_heads % s->n_kv_heads == 0);
    SL_ASSERT(s->head_dim > 0 && s->head_dim % 8 == 0 && s->max_position > 0);
    SL_ASSERT(isfinite(s->norm_eps) && isfinite(s->attn_scale) && isfinite(s->alibi_scale));
    check_ropes(s);
    check_layers(s);
    struct plan p = {0};
    struct sl_err err = {0};
    if (plan_create(&p, s, &err) == SL_OK) {
        for (int i = 0; i < p.n; i++)
            SL_ASSERT(p.tensor[i].rows > 0 && p.tensor[i].cols > 0);
        plan_fini(&p);
    } else {
        SL_ASSERT(err.msg[0]);
    }
}

static void try_as(const char *text, enum sl_runner runner)
{
    struct model_spec *s = NULL;
    struct sl_err err = {0};
    const struct spec_options o = {
        .hf_overrides = text, .generation_config = "vllm", .runner = runner};
    enum sl_status st = model_spec_load_as(&s, folder(), &o, &err);
    if (st) {
        SL_ASSERT(!s && err.code == st && err.msg[0]);
        return;
    }
    check(s);
    model_spec_destroy(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    SL_ASSERT(text);
    memcpy(text, data, n);
    text[n] = 0;
    try_as(text, SL_RUNNER_AUTO);
    try_as(text, SL_RUNNER_POOLING);
    free(text);
    return 0;
}
