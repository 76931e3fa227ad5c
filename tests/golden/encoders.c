/* Encoders, embeddings and classification heads against transformers: the tiny checkpoints in
 * tests/golden/encoders (made by make.py there), through the engine, on each device, the CPU at
 * each of its levels; and the same bits alone or in a batch, on one thread or two.
 * `golden_encoders cuda`: on a GPU.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/safetensors.h"
#include "sluice.h"
#include "support/drive.h"
#include "support/levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FOLDER "tests/golden/encoders/"
enum { HIDDEN = 32, MAX_PROMPTS = 8 };

static const char *const names[] = {"bert",          "bert-mean",  "bert-score", "bert-labels",
                                    "roberta",       "xlmr-score", "distilbert", "qwen3-embed",
                                    "mistral-embed", "llama-score"};
enum { N_NAMES = sizeof names / sizeof *names };

/* ---- engines and requests ------------------------------------------------------------------ */

static struct sl_engine *open_engine(const char *name, enum sl_device device, enum sl_dtype dtype,
                                     int threads)
{
    char dir[160];
    struct sl_config cfg;
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    snprintf(dir, sizeof dir, FOLDER "%s", name);
    sl_config_init(&cfg);
    cfg.model = dir;
    cfg.device = device;
    cfg.dtype = dtype;
    cfg.threads = threads;
    cfg.skip_tokenizer_init = true;
    cfg.kv_cache_bytes = 1 << 20;
    cfg.max_num_seqs = 16;
    cfg.disable_log_stats = true;
    if (strncmp(name, "qwen3", 5) == 0 || strstr(name, "llama") || strstr(name, "mistral"))
        cfg.max_num_batched_tokens = 64; /* decoders are computed in chunks */
    if (sl_engine_create(&e, &cfg, &err))
        fail_msg("%s: %s", name, err.msg);
    return e;
}

static struct sl_request *submit(struct sl_engine *e, const int32_t *tokens, int n, int n_first,
                                 enum sl_pool_task task, int use_activation)
{
    struct sl_request *r = NULL;
    struct sl_err err = {0};
    struct sl_pooling_params p;
    struct sl_input in = {.tokens = tokens, .n_tokens = n};
    sl_pooling_params_init(&p, e);
    p.task = task;
    p.use_activation = use_activation;
    p.n_first = n_first;
    if (sl_pool(e, &in, &p, NULL, NULL, &r, &err))
        fail_msg("%s", err.msg);
    return r;
}

static const float *result(struct sl_request *r, int *rows, int *cols)
{
    assert_int_equal(sl_request_wait(r, -1), SL_OK);
    const struct sl_output *out = sl_request_next(r);
    assert_non_null(out);
    assert_int_equal(out->finish, SL_STOP);
    assert_int_equal(out->n_tokens, 0);
    const float *v = sl_request_pooled(r, rows, cols);
    assert_non_null(v);
    return v;
}

/* ---- goldens ------------------------------------------------------------------------------- */

struct golden {
    struct safetensors *file;
    int n;
    bool classifies;
    struct prompt {
        const int32_t *tokens;
        int n, n_first, n_values;
        const float *values; /* [n, HIDDEN] or [labels] */
    } p[MAX_PROMPTS];
};

static const struct st_tensor *tensor(const struct golden *g, const char *what, int i)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%d", what, i);
    return safetensors_find(g->file, name);
}

static void read_golden(struct golden *g, const char *name)
{
    char path[192];
    struct sl_err err = {0};
    *g = (struct golden){0};
    snprintf(path, sizeof path, FOLDER "%s/golden.safetensors", name);
    if (safetensors_open_file(&g->file, path, &err))
        fail_msg("%s", err.msg);
    for (const struct st_tensor *t; (t = tensor(g, "prompt", g->n)); g->n++) {
        struct prompt *p = &g->p[g->n];
        const struct st_tensor *types = tensor(g, "types", g->n), *v = tensor(g, "logits", g->n);
        assert_true(g->n < MAX_PROMPTS);
        g->classifies = v != NULL;
        v = v ? v : tensor(g, "hidden", g->n);
        p->tokens = t->data;
        p->n = (int)t->dim[0];
        p->values = v->data;
        p->n_values = (int)(v->bytes / sizeof(float));
        while (types && p->n_first < p->n && ((const int32_t *)types->data)[p->n_first] == 0)
            p->n_first++;
        p->n_first = p->n_first == p->n ? 0 : p->n_first; /* one text alone is all of type 0 */
    }
    assert_true(g->n >= 4);
}

static double worst_error(const float *got, const float *want, int n, double *largest)
{
    double worst = 0;
    for (int i = 0; i < n; i++) {
        double e = fabs((double)got[i] - (double)want[i]);
        worst = e > worst || isnan(e) ? (isnan(e) ? INFINITY : e) : worst;
        *largest = fmax(*largest, fabs((double)want[i]));
    }
    return worst;
}

/* What `name` pools: the golden's hidden states, by the rule in plain words. */
static void expected_vector(const char *name, const struct prompt *p, float *out)
{
    double v[HIDDEN] = {0}, square = 0;
    bool mean = strcmp(name, "bert-mean") == 0,
         last = !strcmp(name, "qwen3-embed") || !strcmp(name, "mistral-embed");
    for (int i = 0; i < p->n; i++)
        for (int k = 0; k < HIDDEN; k++)
            if (mean || (last ? i == p->n - 1 : i == 0))
                v[k] += (double)p->values[i * HIDDEN + k];
    for (int k = 0; k < HIDDEN; k++)
        square += v[k] * v[k];
    for (int k = 0; k < HIDDEN; k++)
        out[k] = (float)(v[k] / sqrt(square));
}

/* ---- the tests ----------------------------------------------------------------------------- */

static double check_embeds(struct sl_engine *e, const char *name, const struct golden *g,
                           double tolerance)
{
    struct sl_request *all[MAX_PROMPTS], *one[MAX_PROMPTS];
    double worst = 0, largest = 0, off = 0, unit = 0;
    int n = 0;
    for (; n < g->n; n++) {
        struct sl_engine_info info;
        sl_engine_info(e, &info);
        if (g->p[n].n > info.max_model_len)
            break; /* bert-mean's sentence_bert_config.json says 256 */
        all[n] = submit(e, g->p[n].tokens, g->p[n].n, g->p[n].n_first, SL_POOL_TOKEN_EMBED, 0);
        one[n] = submit(e, g->p[n].tokens, g->p[n].n, g->p[n].n_first, SL_POOL_EMBED, -1);
    }
    for (int i = 0; i < n; i++) {
        int rows, cols;
        float want[HIDDEN];
        const float *v = result(all[i], &rows, &cols);
        assert_int_equal(rows, g->p[i].n);
        assert_int_equal(cols, HIDDEN);
        worst = fmax(worst, worst_error(v, g->p[i].values, rows * cols, &largest));
        v = result(one[i], &rows, &cols);
        assert_int_equal(rows, 1);
        expected_vector(name, &g->p[i], want);
        off = fmax(off, worst_error(v, want, cols, &unit));
        sl_request_release(&all[i]);
        sl_request_release(&one[i]);
    }
    if (!(worst / largest <= tolerance && off <= tolerance))
        fail_msg("%s: hidden states off by %.1e of the largest, vectors by %.1e", name,
                 worst / largest, off);
    return fmax(worst / largest, off);
}

static double check_scores(struct sl_engine *e, const char *name, const struct golden *g,
                           double tolerance)
{
    double worst = 0, largest = 0;
    for (int i = 0; i < g->n; i++) {
        const struct prompt *p = &g->p[i];
        int rows, cols;
        struct sl_request *plain = submit(e, p->tokens, p->n, p->n_first, SL_POOL_CLASSIFY, 0);
        struct sl_request *probs = submit(e, p->tokens, p->n, p->n_first, SL_POOL_CLASSIFY, -1);
        const float *v = result(plain, &rows, &cols);
        assert_int_equal(cols, p->n_values);
        worst = fmax(worst, worst_error(v, p->values, cols, &largest));
        double sum = 0, logit = (double)v[0];
        v = result(probs, &rows, &cols);
        for (int k = 0; k < cols; k++)
            sum += (double)v[k];
        if (cols == 1)
            assert_true(fabs(sum - 1 / (1 + exp(-logit))) < 1e-6);
        else
            assert_true(fabs(sum - 1) < 1e-6);
        sl_request_release(&plain);
        sl_request_release(&probs);
    }
    if (!(worst / largest <= tolerance))
        fail_msg("%s: logits off by %.1e of the largest", name, worst / largest);
    return worst / largest;
}

static void run_way(enum sl_device device, enum sl_dtype dtype, double tolerance)
{
    for (int i = 0; i < N_NAMES; i++) {
        struct golden g;
        struct sl_engine *e = open_engine(names[i], device, dtype, 2);
        read_golden(&g, names[i]);
        double worst = g.classifies ? check_scores(e, names[i], &g, tolerance)
                                    : check_embeds(e, names[i], &g, tolerance);
        print_message("%-13s %.1e\n", names[i], worst);
        sl_engine_destroy(&e);
        safetensors_close(&g.file);
    }
}

static void run_cpu_way(enum sl_dtype dtype, double tolerance)
{
    EACH_ISA(isa, ISA_PLAIN)
    {
        print_message("%s kernels\n", cpu_isa_name(isa));
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        run_way(SL_DEVICE_CPU, dtype, tolerance);
    }
}

static void ref_f32(void **state)
{
    (void)state;
    run_way(SL_DEVICE_REF, SL_DTYPE_F32, 2e-4);
}

static void cpu_f32(void **state)
{
    (void)state;
    run_cpu_way(SL_DTYPE_F32, 2e-4);
}

static void cpu_bf16(void **state)
{
    (void)state;
    run_cpu_way(SL_DTYPE_BF16, drive_bf16_bound(3, HIDDEN));
}

/* The same bits alone, with others, and on another number of threads. */
static void same_bits(enum sl_device device)
{
    for (int i = 0; i < N_NAMES; i++) {
        struct golden g;
        float alone[MAX_PROMPTS][HIDDEN];
        int rows, cols;
        read_golden(&g, names[i]);
        enum sl_pool_task task = g.classifies ? SL_POOL_CLASSIFY : SL_POOL_EMBED;
        int n = strcmp(names[i], "bert-mean") ? g.n : g.n - 1;
        struct sl_engine *e = open_engine(names[i], device, SL_DTYPE_AUTO, 1);
        for (int k = 0; k < n; k++) {
            struct sl_request *r = submit(e, g.p[k].tokens, g.p[k].n, g.p[k].n_first, task, -1);
            const float *v = result(r, &rows, &cols);
            memcpy(alone[k], v, (size_t)cols * sizeof *v);
            sl_request_release(&r);
        }
        sl_engine_destroy(&e);
        e = open_engine(names[i], device, SL_DTYPE_AUTO, 2);
        struct sl_request *r[3 * MAX_PROMPTS];
        for (int k = 0; k < 3 * n; k++) {
            const struct prompt *p = &g.p[k % n];
            r[k] = submit(e, p->tokens, p->n, p->n_first, task, -1);
        }
        for (int k = 0; k < 3 * n; k++) {
            const float *v = result(r[k], &rows, &cols);
            if (memcmp(v, alone[k % n], (size_t)cols * sizeof *v))
                fail_msg("%s: prompt %d has other bits in a batch", names[i], k % n);
            sl_request_release(&r[k]);
        }
        sl_engine_destroy(&e);
        safetensors_close(&g.file);
    }
}

static void invariance(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        same_bits(SL_DEVICE_CPU);
    }
}

static void cuda_bf16(void **state)
{
    (void)state;
    run_way(SL_DEVICE_CUDA, SL_DTYPE_BF16, drive_bf16_bound(3, HIDDEN));
}

static void cuda_invariance(void **state)
{
    (void)state;
    same_bits(SL_DEVICE_CUDA);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ref_f32), cmocka_unit_test(cpu_f32),
                                       cmocka_unit_test(cpu_bf16), cmocka_unit_test(invariance)};
    const struct CMUnitTest on_gpu[] = {cmocka_unit_test(cuda_bf16),
                                        cmocka_unit_test(cuda_invariance)};
    sl_log_set_level(SL_LOG_WARNING);
    if (argc > 1 && !strcmp(argv[1], "cuda"))
        return cmocka_run_group_tests(on_gpu, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
