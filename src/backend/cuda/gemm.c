/* gemm.c - matrix products through cuBLASLt.
 *
 * Only cuBLASLt kernels that do not split K are taken (cuda.h says why that keeps the row
 * contract): once for each shape and power-of-two class of rows, the fastest of its heuristic's
 * first few, and kept. They are tried on the product that is asked for: the heuristic counts on
 * split K, and its order without may be ten times off. Which one wins must not be seen but in time:
 * where our own product takes fewer rows of the same W, only those with its bits are taken, and if
 * there is none our own takes them all. --fast-nondeterministic takes any, and those that split K:
 * then a row's bits depend on how many rows there are.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const size_t WORKSPACE_BYTES = (size_t)32 << 20;

static enum sl_status lt_check(cublasStatus_t s, const char *what, struct sl_err *err)
{
    if (s == CUBLAS_STATUS_SUCCESS)
        return SL_OK;
    return SL_FAIL(err, SL_EDEVICE, "cuBLASLt: %s: status %d", what, (int)s);
}

enum sl_status gemm_init(struct device *d, struct sl_err *err)
{
    enum sl_status st = lt_check(cublasLtCreate(&d->lt), "making a handle", err);
    for (int i = 0; st == SL_OK && i < 2; i++)
        st = cuda_check(cudaEventCreate(&d->timer[i]), "an event", err);
    if (st == SL_OK)
        st = cuda_check(cudaMalloc(&d->workspace, WORKSPACE_BYTES), "the product workspace", err);
    return st;
}

void gemm_fini(struct device *d)
{
    cudaFree(d->workspace);
    for (int i = 0; i < 2; i++)
        if (d->timer[i])
            cudaEventDestroy(d->timer[i]);
    if (d->lt)
        cublasLtDestroy(d->lt);
}

/* Row-major y[m, rows] is column-major [rows, m] = W[cols, rows]^T x[cols, m]. */
struct layouts {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, y;
};

static enum sl_status layouts_init(struct layouts *l, bool out_f32, const struct weight *w, int m,
                                   struct sl_err *err)
{
    uint64_t rows = (uint64_t)w->rows, cols = (uint64_t)w->cols;
    cublasOperation_t t = CUBLAS_OP_T;
    *l = (struct layouts){0};
    cublasStatus_t s = cublasLtMatmulDescCreate(&l->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulDescSetAttribute(l->op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&l->w, CUDA_R_16BF, cols, rows, (int64_t)cols);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&l->x, CUDA_R_16BF, cols, (uint64_t)m, (int64_t)cols);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutCreate(&l->y, out_f32 ? CUDA_R_32F : CUDA_R_16BF, rows, (uint64_t)m,
                                       (int64_t)rows);
    return lt_check(s, "describing a product", err);
}

static void layouts_fini(struct layouts *l)
{
    if (l->y)
        cublasLtMatrixLayoutDestroy(l->y);
    if (l->x)
        cublasLtMatrixLayoutDestroy(l->x);
    if (l->w)
        cublasLtMatrixLayoutDestroy(l->w);
    if (l->op)
        cublasLtMatmulDescDestroy(l->op);
}

static bool splits_k(const cublasLtMatmulAlgo_t *algo)
{
    int32_t split = 0;
    uint32_t reduction = 0;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                         sizeof split, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                         sizeof reduction, &n);
    return split > 1 || reduction != CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Microseconds of one product, after one that warms up; a huge number if it cannot run. */
static float try_out(struct device *d, const struct layouts *l, const cublasLtMatmulAlgo_t *algo,
                     void *y, const void *w, const void *x)
{
    const float one = 1, zero = 0, never = 1e30f;
    float ms = never;
    for (int i = 0; i < 2; i++) {
        cudaEventRecord(d->timer[0], d->stream);
        if (cublasLtMatmul(d->lt, l->op, &one, w, l->w, x, l->x, &zero, y, l->y, y, l->y, algo,
                           d->workspace, WORKSPACE_BYTES, d->stream) != CUBLAS_STATUS_SUCCESS)
            return never;
        cudaEventRecord(d->timer[1], d->stream);
    }
    if (cudaEventSynchronize(d->timer[1]) != cudaSuccess ||
        cudaEventElapsedTime(&ms, d->timer[0], d->timer[1]) != cudaSuccess)
        return never;
    return ms;
}

static void run_ours(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
                     int m)
{
    product_run(d, &(struct narrow_args){.w = w->data,
                                         .rows = w->rows,
                                         .cols = w->cols,
                                         .x = x,
                                         .m = m,
                                         .y = y,
                                         .out_f32 = out_f32,
                                         .scale = 1});
}

/* y is what a kernel made of x: are its first rows those of our own product? */
static bool bits_are_ours(struct device *d, const void *y, bool out_f32, const struct weight *w,
                          const void *x, int m)
{
    const int rows = m < 2 ? m : 2;
    const size_t row = (size_t)w->rows * (out_f32 ? sizeof(float) : sizeof(uint16_t)),
                 bytes = (size_t)rows * row;
    if (!product_takes(d, w, rows) || bytes > WORKSPACE_BYTES)
        return true; /* nothing to compare with */
    char *got = mem_alloc(2, bytes), *want = got + bytes;
    if (!got)
        return false;
    run_ours(d, d->workspace, out_f32, w, x, rows);
    bool same = cudaMemcpyAsync(got, y, bytes, cudaMemcpyDeviceToHost, d->stream) == cudaSuccess &&
                cudaMemcpyAsync(want, d->workspace, bytes, cudaMemcpyDeviceToHost, d->stream) ==
                    cudaSuccess &&
                cudaStreamSynchronize(d->stream) == cudaSuccess && memcmp(got, want, bytes) == 0;
    free(got);
    return same;
}

/* l is of m rows, `of_class` of the class's. */
static enum sl_status choose(struct device *d, const struct layouts *of_class, int m,
                             const struct layouts *l, void *y, bool out_f32, const struct weight *w,
                             const void *x, struct gemm_choice *c, struct sl_err *err)
{
    enum { N = 32 };
    cublasLtMatmulHeuristicResult_t found[N];
    cublasLtMatmulPreference_t want;
    uint32_t schemes = d->fast ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_NONE;
    int n = 0, n_tried = 0;
    float best = 1e31f;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&want);
    if (s != CUBLAS_STATUS_SUCCESS)
        return lt_check(s, "asking for kernels", err);
    cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &WORKSPACE_BYTES, sizeof WORKSPACE_BYTES);
    cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                         sizeof schemes);
    s = cublasLtMatmulAlgoGetHeuristic(d->lt, of_class->op, of_class->w, of_class->x, of_class->y,
                                       of_class->y, want, N, found, &n);
    cublasLtMatmulPreferenceDestroy(want);
    if (s != CUBLAS_STATUS_SUCCESS)
        return lt_check(s, "asking for kernels", err);
    for (int i = 0; i < n && n_tried < (m > 256 ? 4 : N); i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || (!d->fast && splits_k(&found[i].algo)))
            continue;
        float ms = try_out(d, l, &found[i].algo, y, w->data, x);
        if (!d->fast && !bits_are_ours(d, y, out_f32, w, x, m))
            continue;
        if (ms < best) {
            best = ms;
            c->algo = found[i].algo;
        }
        n_tried++;
    }
    c->ours = n_tried == 0 && product_takes(d, w, 1);
    if (n_tried || c->ours)
        return SL_OK;
    return SL_FAIL(err, SL_EDEVICE, "cuBLASLt has no kernel for this product that keeps K whole");
}

/* Below 64 rows the heuristic offers nothing fast without split K; its choices for 64 run there. */
static int class_of(int m)
{
    int c = 64;
    while (c < m)
        c *= 2;
    return c;
}

static const struct gemm_choice *choice_for(struct device *d, const struct layouts *of_m,
                                            bool out_f32, void *y, const struct weight *w,
                                            const void *x, int m, struct sl_err *err)
{
    int m_class = class_of(m);
    for (int i = 0; i < d->n_choices; i++) {
        const struct gemm_choice *c = &d->choice[i];
        if (c->rows == w->rows && c->cols == w->cols && c->m_class == m_class &&
            c->out_f32 == out_f32)
            return c;
    }
    if (d->n_choices == N_GEMM_CHOICES)
        d->n_choices = 0; /* more shapes than any model has: start over */
    struct gemm_choice *c = &d->choice[d->n_choices];
    *c = (struct gemm_choice){
        .rows = w->rows, .cols = w->cols, .m_class = m_class, .out_f32 = out_f32};
    struct layouts l;
    enum sl_status st = layouts_init(&l, out_f32, w, m_class, err);
    if (st == SL_OK)
        st = choose(d, &l, m, of_m, y, out_f32, w, x, c, err);
    layouts_fini(&l);
    if (st)
        return NULL;
    d->n_choices++;
    return c;
}

static enum sl_status lt_run(struct device *d, void *y, bool out_f32, const struct weight *w,
                             const void *x, int m, struct sl_err *err)
{
    const float one = 1, zero = 0;
    struct layouts l;
    enum sl_status st = layouts_init(&l, out_f32, w, m, err);
    const struct gemm_choice *c = NULL;
    if (st == SL_OK && !(c = choice_for(d, &l, out_f32, y, w, x, m, err)))
        st = SL_EDEVICE;
    if (st == SL_OK && c->ours)
        run_ours(d, y, out_f32, w, x, m);
    else if (st == SL_OK)
        st = lt_check(cublasLtMatmul(d->lt, l.op, &one, w->data, l.w, x, l.x, &zero, y, l.y, y, l.y,
                                     &c->algo, d->workspace, WORKSPACE_BYTES, d->stream),
                      "a product", err);
    layouts_fini(&l);
    return st;
}

void gemm_run(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x, int m)
{
    if (lt_run(d, y, out_f32, w, x, m, NULL) && d->failed == cudaSuccess) {
        d->failed = cudaErrorLaunchFailure;
        d->failed_what = "a cuBLASLt product";
    }
}
