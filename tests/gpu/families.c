/* Every family of tests/golden/families through the library on the CUDA device, where steps of
 * decode replay graphs: a request's tokens and logprobs are those that it has alone, launched op by
 * op, bit by bit.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sluice.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char FOLDER[] = "tests/golden/families";
enum { N_REQUESTS = 21, MAX_PROMPT = 60, N_NEW = 32, TOP = 2 };

struct result {
    int n;
    int32_t token[N_NEW];
    struct sl_logprob lp[N_NEW][TOP + 1];
};

static struct sl_engine *open_engine(const char *model, bool eager)
{
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = model;
    cfg.device = SL_DEVICE_CUDA;
    cfg.skip_tokenizer_init = true;
    cfg.kv_cache_bytes = 4 << 20;
    cfg.max_num_seqs = 32;
    cfg.disable_log_stats = true;
    cfg.enforce_eager = eager;
    if (sl_engine_create(&e, &cfg, &err))
        fail_msg("%s: %s", model, err.msg);
    return e;
}

/* Request i: a prompt of its own length, greedy or drawn. */
static struct sl_request *submit(struct sl_engine *e, int i)
{
    int32_t prompt[MAX_PROMPT];
    struct sl_input in = {.tokens = prompt, .n_tokens = 3 + i * 11 % (MAX_PROMPT - 3)};
    struct sl_sampling_params p;
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    for (int k = 0; k < in.n_tokens; k++)
        prompt[k] = 5 + (i * 31 + k * k * 7 + k) % 90;
    sl_sampling_params_init(&p);
    p.max_tokens = N_NEW;
    p.ignore_eos = true;
    p.logprobs = TOP;
    p.temperature = i % 2 ? 0.8f : 0;
    p.has_seed = true;
    p.seed = i;
    if (sl_submit(e, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

static void collect(struct sl_request *r, struct result *out)
{
    const struct sl_output *o;
    memset(out, 0, sizeof *out);
    while (sl_request_wait(r, 60000) == SL_OK && (o = sl_request_next(r)))
        for (int i = 0; i < o->n_tokens; i++, out->n++) {
            out->token[out->n] = o->tokens[i];
            memcpy(out->lp[out->n], o->logprobs[i].entry, sizeof out->lp[0]);
        }
    sl_request_release(&r);
    assert_int_equal(out->n, N_NEW);
}

static void check(const char *name)
{
    static struct result alone[N_REQUESTS], together;
    struct sl_request *r[N_REQUESTS];
    char model[128];
    snprintf(model, sizeof model, "%s/%s", FOLDER, name);
    struct sl_engine *e = open_engine(model, true);
    for (int i = 0; i < N_REQUESTS; i++)
        collect(submit(e, i), &alone[i]);
    sl_engine_destroy(&e);
    e = open_engine(model, false);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_REQUESTS; i++)
            r[i] = submit(e, i);
        for (int i = 0; i < N_REQUESTS; i++) {
            collect(r[i], &together);
            if (memcmp(&together, &alone[i], sizeof together))
                fail_msg("%s: request %d has other bits in a batch", name, i);
        }
    }
    sl_engine_destroy(&e);
    print_message("%s: the same bits\n", name);
}

static void all(void **state)
{
    (void)state;
    DIR *d = opendir(FOLDER);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));)
        if (!strchr(entry->d_name, '.') && !strchr(entry->d_name, '_')) {
            check(entry->d_name);
            n++;
        }
    closedir(d);
    assert_true(n >= 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all)};
    sl_log_set_level(SL_LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
