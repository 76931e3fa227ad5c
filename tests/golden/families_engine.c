/* Every family through the engine: three prompts at once in steps of 16 tokens, on a pool of KV
 * blocks that only just holds the longest (so that sequences wait or are preempted, and take the
 * blocks that fell out of windows), then again over what the prefix cache kept. Greedy tokens are
 * those that transformers chose (tests/golden/families).
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/internal.h"
#include "model/safetensors.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define FOLDER "tests/golden/families/"
enum { N = 3, CHUNK = 16, BLOCK = 16 };
static const double TIE = 1e-3; /* of logits around 1 to 10, in f32 */

static const struct st_tensor *tensor(const struct safetensors *s, const char *what, int i)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%d", what, i);
    const struct st_tensor *t = safetensors_find(s, name);
    assert_non_null(t);
    return t;
}

static struct sl_engine *open_engine(const char *dir, int longest)
{
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    sl_config_init(&cfg);
    cfg.model = dir;
    cfg.device = SL_DEVICE_CPU;
    cfg.dtype = SL_DTYPE_F32;
    cfg.threads = 1;
    cfg.skip_tokenizer_init = true;
    cfg.block_size = BLOCK;
    cfg.max_num_batched_tokens = CHUNK;
    cfg.max_num_seqs = N;
    cfg.max_model_len = longest;
    cfg.num_blocks_override = (longest + BLOCK - 1) / BLOCK;
    cfg.disable_log_stats = true;
    if (sl_engine_create(&e, &cfg, &err))
        fail_msg("%s: %s", dir, err.msg);
    return e;
}

static struct sl_request *submit(struct sl_engine *e, const struct safetensors *golden, int i)
{
    struct sl_sampling_params p;
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    const struct st_tensor *prompt = tensor(golden, "prompt", i);
    const struct sl_input in = {.tokens = prompt->data, .n_tokens = (int)prompt->dim[0]};
    sl_sampling_params_init(&p);
    p.temperature = 0;
    p.max_tokens = (int)tensor(golden, "greedy", i)->dim[0];
    p.ignore_eos = true;
    p.detokenize = false;
    if (sl_submit(e, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

static void check(struct sl_request *r, const char *name, const struct safetensors *golden, int i)
{
    const struct st_tensor *t = tensor(golden, "greedy", i);
    const int32_t *want = t->data;
    const float *gap = tensor(golden, "gap", i)->data;
    const struct sl_output *out;
    int n = 0;
    bool tied = false;
    while (sl_request_wait(r, -1) == SL_OK && (out = sl_request_next(r))) {
        if (out->finish == SL_ERROR)
            fail_msg("%s: %s", name, out->error ? out->error->msg : "error");
        for (int k = 0; k < out->n_tokens && n < (int)t->dim[0]; k++, n++) {
            tied = tied || (out->tokens[k] != want[n] && (double)gap[n] < TIE);
            if (!tied && out->tokens[k] != want[n])
                fail_msg("%s: prompt %d, token %d is %d, not %d", name, i, n, out->tokens[k],
                         want[n]);
        }
        if (out->finish != SL_RUNNING)
            break;
    }
    assert_int_equal(n, t->dim[0]);
}

static void run_family(const char *name)
{
    char dir[160], path[192];
    struct safetensors *golden = NULL;
    struct sl_err err = {0};
    snprintf(dir, sizeof dir, FOLDER "%.100s", name);
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    if (safetensors_open_file(&golden, path, &err))
        fail_msg("%s", err.msg);
    int longest =
        (int)(tensor(golden, "prompt", N - 1)->dim[0] + tensor(golden, "greedy", N - 1)->dim[0]);
    struct sl_engine *e = open_engine(dir, longest);
    for (int again = 0; again < 2; again++) {
        struct sl_request *r[N];
        for (int i = 0; i < N; i++)
            r[i] = submit(e, golden, i);
        for (int i = 0; i < N; i++) {
            check(r[i], name, golden, i);
            sl_request_release(&r[i]);
        }
    }
    sl_engine_destroy(&e);
    safetensors_close(&golden);
}

static void every_family(void **state)
{
    (void)state;
    int n = 0;
    DIR *d = opendir(FOLDER);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));)
        if (!strchr(entry->d_name, '.') && !strchr(entry->d_name, '_')) {
            run_family(entry->d_name);
            n++;
        }
    closedir(d);
    assert_true(n >= 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_family)};
    sl_log_set_level(SL_LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
