/* Any bytes as the body of any API call: parsed into parameters that can be checked, or an error
 * that is valid JSON with a status. The first byte chooses the call.
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/params.h"
#include "http/oai.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_error(const struct oai_error *e)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    oai_error_json(&b, e);
    json_t *j = json_loadb(b.data, b.len, 0, NULL), *error = json_object_get(j, "error");
    SL_ASSERT(e->status >= 400 && e->status < 600 && e->status != 500);
    SL_ASSERT(json_string_length(json_object_get(error, "message")) > 0);
    SL_ASSERT(json_integer_value(json_object_get(error, "code")) == e->status);
    json_decref(j);
    strbuf_fini(&b);
}

static void check_params(struct sl_sampling_params *p)
{
    struct params_limits l = {.vocab_size = 8192, .max_logprobs = 20, .max_model_len = 4096};
    struct sl_err err = {0};
    p->max_tokens = p->max_tokens == SL_NONE ? 16 : p->max_tokens;
    if (params_check(&l, p, &err))
        SL_ASSERT(err.code == SL_EINVAL && err.msg[0]);
    for (int i = 0; i < p->n_stop; i++)
        SL_ASSERT(strlen(p->stop[i]) < SIZE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const enum oai_api apis[] = {OAI_COMPLETIONS, OAI_CHAT, OAI_TOKENIZE, OAI_DETOKENIZE};
    static const char *const names[] = {"pebble"};
    struct sl_server_config cfg;
    struct oai_env env = {.cfg = &cfg, .max_new_tokens = SL_NONE};
    if (!n)
        return 0;
    sl_server_config_init(&cfg);
    cfg.trust_request_chat_template = data[0] & 4;
    sl_sampling_params_init(&env.defaults);
    env.info.served_names = names;
    env.info.n_served_names = 1;
    env.info.max_model_len = 4096;
    env.info.vocab_size = 8192;

    struct oai_request r;
    struct oai_error e = {0};
    bool ok = oai_parse(&r, apis[data[0] & 3], &env, (const char *)data + 1, n - 1, &e);
    SL_ASSERT(ok == !e.status);
    if (ok && r.messages) {
        json_t *vars = oai_chat_vars(&r, &env, &e);
        SL_ASSERT(!vars == !!e.status);
        json_decref(vars);
    }
    if (ok && r.api & OAI_GENERATE)
        check_params(&r.params);
    if (e.status)
        check_error(&e);
    oai_fini(&r);
    return 0;
}
