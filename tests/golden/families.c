/* Every model family against transformers: logits after each position and greedy tokens of the tiny
 * checkpoints in tests/golden/families (made by make.py there), on each device; on the CPU at each
 * of its levels.
 *
 * `golden_families --table docs/models.md` writes down what was measured; `golden_families cuda`
 * runs a GPU's way alone and, with `--record FILE`, leaves its errors where the table looks for
 * them (CUDA_ERRORS).
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "model/safetensors.h"
#include "support/drive.h"
#include "support/levels.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char FOLDER[] = "tests/golden/families";
enum { MAX_FAMILIES = 128, MAX_ROWS = 128, CHUNK = 29 };

struct way {
    const char *device;
    enum sl_dtype dtype;
    double tolerance; /* of the largest logit's size; 0: by the model's depth and width */
};

/* f32: the bound. bf16: weights are exact, activations and K and V carry 8 bits. */
static const struct way ways[] = {{"ref", SL_DTYPE_F32, 2e-4},
                                  {"cpu", SL_DTYPE_F32, 2e-4},
                                  {"cpu", SL_DTYPE_BF16, 0},
                                  {"cuda", SL_DTYPE_BF16, 0}};
enum { N_WAYS = sizeof ways / sizeof *ways, CPU_BF16 = 2, CUDA_BF16 };

struct family_result {
    char name[64], architecture[64];
    double worst[N_WAYS], bound[N_WAYS]; /* |error| / largest |logit|, and what it may be */
    bool measured[N_WAYS];
};

static struct family_result results[MAX_FAMILIES];
static int n_results;

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct family_result *)a)->name, ((const struct family_result *)b)->name);
}

static void list_families(void)
{
    DIR *d = opendir(FOLDER);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.' || strchr(e->d_name, '.') || strchr(e->d_name, '_'))
            continue;
        assert_true(n_results < MAX_FAMILIES);
        snprintf(results[n_results++].name, sizeof results->name, "%.63s", e->d_name);
    }
    closedir(d);
    qsort(results, (size_t)n_results, sizeof *results, by_text);
}

static double bound_of(const struct way *w, const struct model_info *info)
{
    return w->tolerance > 0 ? w->tolerance : drive_bf16_bound(info->n_layers, info->hidden);
}

/* ---- one family on one device -------------------------------------------------------------- */

struct expected {
    const int32_t *prompt, *greedy;
    const float *logits, *gap;
    const int32_t *experts;  /* [moe_layers, n_prompt + n_greedy, top_k], NULL: no experts */
    const float *router_gap; /* [moe_layers, n_prompt + n_greedy] */
    int n_prompt, n_greedy, moe_layers, top_k;
};

static const void *golden_tensor(const struct safetensors *s, const char *what, int i,
                                 enum st_dtype dtype, int n[3])
{
    char name[32];
    snprintf(name, sizeof name, "%s.%d", what, i);
    const struct st_tensor *t = safetensors_find(s, name);
    if (!t)
        return NULL;
    assert_int_equal(t->dtype, dtype);
    assert_int_equal((uintptr_t)t->data % 4, 0);
    for (int k = 0; k < 3; k++)
        n[k] = k < t->n_dims ? (int)t->dim[k] : 1;
    return t->data;
}

static bool read_expected(const struct safetensors *s, int i, struct expected *e)
{
    int n[3];
    *e = (struct expected){0};
    if (!(e->prompt = golden_tensor(s, "prompt", i, ST_I32, n)))
        return false;
    e->n_prompt = n[0];
    e->greedy = golden_tensor(s, "greedy", i, ST_I32, n);
    e->n_greedy = n[0];
    e->gap = golden_tensor(s, "gap", i, ST_F32, n);
    e->logits = golden_tensor(s, "logits", i, ST_F32, n);
    assert_int_equal(n[0], e->n_prompt);
    if (!(e->experts = golden_tensor(s, "experts", i, ST_I32, n)))
        return true;
    assert_int_equal(n[1], e->n_prompt + e->n_greedy);
    e->moe_layers = n[0];
    e->top_k = n[2];
    assert_non_null(e->router_gap = golden_tensor(s, "router_gap", i, ST_F32, n));
    assert_true(n[0] == e->moe_layers && n[1] == e->n_prompt + e->n_greedy);
    return true;
}

/* The golden's experts for rows whose router has a gap that an error of `bound` of the largest
 * logit, up for one and down for another, can close; -1 for the others, which choose. */
static int32_t *forced_experts(const struct expected *e, double bound)
{
    size_t rows = (size_t)e->moe_layers * (size_t)(e->n_prompt + e->n_greedy);
    size_t k = (size_t)e->top_k;
    if (!e->experts)
        return NULL;
    int32_t *forced = mem_alloc(rows * k, sizeof *forced);
    assert_non_null(forced);
    for (size_t i = 0; i < rows * k; i++)
        forced[i] = (double)e->router_gap[i / k] < 2 * bound ? e->experts[i] : -1;
    return forced;
}

struct comparison {
    const struct expected *e;
    double worst, largest;
    int32_t next; /* greedy choice after the last position seen */
};

static void compare(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct comparison *c = ctx;
    (void)item;
    c->next = drive_argmax(logits, vocab);
    if (pos >= c->e->n_prompt)
        return;
    const float *want = c->e->logits + (size_t)pos * (size_t)vocab;
    for (int i = 0; i < vocab; i++) {
        double error = fabs((double)logits[i] - (double)want[i]);
        c->largest = fmax(c->largest, fabs((double)want[i]));
        if (!(error <= c->worst))
            c->worst = isnan(error) ? INFINITY : error;
    }
}

/* Prompt in chunks that end off the blocks, then token by token. Where the golden's best two are
 * closer than the tolerance, another choice is no error, and the rest is not compared. */
static double run_prompt(struct drive *d, const struct expected *e, double bound)
{
    struct drive_seq s;
    struct comparison c = {.e = e};
    int32_t *forced = forced_experts(e, bound);
    drive_force_experts(d, forced, e->n_prompt + e->n_greedy);
    drive_seq_init(d, &s, e->prompt, e->n_prompt, e->n_prompt + e->n_greedy);
    while (s.n_computed < s.n) {
        int left = s.n - s.n_computed;
        struct drive_item it = {.seq = &s, .n = left < CHUNK ? left : CHUNK, .all_logits = true};
        drive_step(d, &it, 1, compare, &c);
    }
    for (int i = 0; i < e->n_greedy; i++) {
        double tie = 2 * bound * c.largest;
        if (c.next != e->greedy[i] && (double)e->gap[i] < tie)
            break;
        if (c.next != e->greedy[i])
            c.worst = INFINITY;
        drive_seq_push(&s, c.next);
        struct drive_item it = {.seq = &s, .n = 1};
        drive_step(d, &it, 1, compare, &c);
    }
    drive_seq_fini(d, &s);
    mem_free(forced);
    return c.worst / c.largest;
}

static void run_family(struct family_result *f, int way)
{
    char dir[160], path[192];
    struct safetensors *golden = NULL;
    struct sl_err err = {0};
    snprintf(dir, sizeof dir, "%s/%s", FOLDER, f->name);
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    if (safetensors_open_file(&golden, path, &err))
        fail_msg("%s", err.msg);
    struct drive_config config = {.device = ways[way].device,
                                  .model = dir,
                                  .dtype = ways[way].dtype,
                                  .threads = 2,
                                  .max_tokens = MAX_ROWS,
                                  .max_seqs = 2,
                                  .kv_tokens = 512};
    struct drive *d = drive_create(&config);
    struct expected e;
    snprintf(f->architecture, sizeof f->architecture, "%s", drive_info(d)->architecture);
    f->measured[way] = true;
    f->bound[way] = bound_of(&ways[way], drive_info(d));
    int n = 0;
    for (; read_expected(golden, n, &e); n++) {
        double worst = run_prompt(d, &e, f->bound[way]);
        f->worst[way] = fmax(f->worst[way], worst);
    }
    assert_true(n >= 3);
    if (!(f->worst[way] <= f->bound[way]))
        print_message("%s on %s: error %.2e of the largest logit\n", f->name, ways[way].device,
                      f->worst[way]);
    drive_destroy(&d);
    safetensors_close(&golden);
}

static void run_way(int way)
{
    int n_bad = 0;
    for (int i = 0; i < n_results; i++) {
        run_family(&results[i], way);
        n_bad += !(results[i].worst[way] <= results[i].bound[way]);
    }
    assert_int_equal(n_bad, 0);
    assert_true(n_results >= 50);
}

static void run_cpu_way(int way)
{
    EACH_ISA(isa, ISA_PLAIN)
    {
        print_message("%s kernels\n", cpu_isa_name(isa));
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        run_way(way);
    }
}

static void ref_f32(void **state)
{
    (void)state;
    run_way(0);
}

static void cpu_f32(void **state)
{
    (void)state;
    run_cpu_way(1);
}

static void cpu_bf16(void **state)
{
    (void)state;
    run_cpu_way(CPU_BF16);
}

static void cuda_bf16(void **state)
{
    (void)state;
    run_way(CUDA_BF16);
}

/* ---- the table ----------------------------------------------------------------------------- */

static const char INTRODUCTION[] =
    "# Model families\n\n"
    "Written by `build/golden_families --table docs/models.md` (the CUDA column by "
    "`golden_families "
    "cuda --record\ntests/golden/families/cuda.txt` on an H200). Each line is a tiny checkpoint "
    "with random weights in\n`tests/golden/families/`, made by transformers (`make.py` there); its "
    "name says which switch it is about (`-v4`: a config as\ntransformers 4 wrote it, `-old`: as "
    "Falcon's first code did, `-bin`: pytorch_model.bin in place of safetensors).\n\n"
    "The numbers are the largest error of any logit after any position of three prompts (up to 70 "
    "tokens, across KV blocks and\nwindows), as a share of the largest logit; the CPU's are the "
    "worst of its levels (plain C, AVX2, AVX-512, AMX where there is).\nGreedy tokens are equal up "
    "to the first tie closer than the bound: 2e-4 in f32; in bf16 four times its rounding times "
    "the\nsquare root of how many follow each other (ten a layer), which the last column has.\n\n"
    "Where a router's choice of experts is closer than twice the bound (of its largest logit), a "
    "row is computed with the\nexperts that the reference chose.\n\n"
    "Rope scalings: default, linear, llama3, yarn, dynamic (up to the trained length, where it "
    "changes nothing), longrope (the\nlong factors when `max_position_embeddings` exceeds the "
    "original length, else the short ones: a token's bits must not\ndepend on how long its "
    "sequence "
    "becomes). Attention heads are multiples of 8 values: up to 512 on the CPU, up to 256 "
    "on\nCUDA. "
    "Any other architecture, rope type or head size is refused by name before weights are "
    "read.\n\n";

static void print_table(FILE *out)
{
    fprintf(out, "| checkpoint | architecture |");
    for (int w = 0; w < N_WAYS; w++)
        fprintf(out, " %s %s |", ways[w].device, ways[w].dtype == SL_DTYPE_F32 ? "f32" : "bf16");
    fprintf(out, " bf16's bound |\n| --- |");
    for (int column = 0; column < N_WAYS + 2; column++)
        fprintf(out, " --- |");
    fprintf(out, "\n");
    for (int i = 0; i < n_results; i++) {
        const struct family_result *f = &results[i];
        fprintf(out, "| %s | %s |", f->name, f->architecture);
        for (int w = 0; w < N_WAYS; w++)
            f->measured[w] ? fprintf(out, " %.1e |", f->worst[w]) : fprintf(out, " - |");
        fprintf(out, " %.1e |\n", fmax(f->bound[CPU_BF16], f->bound[CUDA_BF16]));
    }
}

static bool write_table(const char *path)
{
    FILE *out = fopen(path, "w");
    if (!out)
        return false;
    fputs(INTRODUCTION, out);
    print_table(out);
    return fclose(out) == 0;
}

/* ---- a GPU's errors, measured on another machine --------------------------------------------- */

static const char CUDA_ERRORS[] = "tests/golden/families/cuda.txt";

static bool record_cuda_errors(const char *path)
{
    FILE *out = fopen(path, "w");
    if (!out)
        return false;
    for (int i = 0; i < n_results; i++)
        if (results[i].measured[CUDA_BF16])
            fprintf(out, "%s %.1e\n", results[i].name, results[i].worst[CUDA_BF16]);
    return fclose(out) == 0;
}

static void read_cuda_errors(void)
{
    FILE *in = fopen(CUDA_ERRORS, "r");
    char name[64];
    double worst;
    while (in && fscanf(in, "%63s %lf", name, &worst) == 2)
        for (int i = 0; i < n_results; i++)
            if (!strcmp(results[i].name, name)) {
                results[i].worst[CUDA_BF16] = worst;
                results[i].measured[CUDA_BF16] = true;
            }
    if (in)
        fclose(in);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ref_f32), cmocka_unit_test(cpu_f32),
                                       cmocka_unit_test(cpu_bf16)};
    const struct CMUnitTest on_gpu[] = {cmocka_unit_test(cuda_bf16)};
    bool cuda = argc > 1 && !strcmp(argv[1], "cuda");
    char **option = argv + 1 + cuda;
    list_families();
    if (!cuda)
        read_cuda_errors();
    int failed = cuda ? cmocka_run_group_tests(on_gpu, NULL, NULL)
                      : cmocka_run_group_tests(tests, NULL, NULL);
    print_table(stdout);
    if (option[0] && option[1] && !strcmp(option[0], "--table"))
        failed += !write_table(option[1]);
    if (option[0] && option[1] && !strcmp(option[0], "--record"))
        failed += !record_cuda_errors(option[1]);
    return failed;
}
