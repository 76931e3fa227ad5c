/* device.h - struct device of the CUDA backend, shared by its C files.
 *
 * Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_DEVICE_H
#define SL_BACKEND_CUDA_DEVICE_H

#include "backend/cuda/cuda.h"
#include "backend/ops.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

enum { STAGING_BYTES = 16 << 20, N_GEMM_CHOICES = 1024 };

/* The cuBLASLt kernel kept for one shape: chosen at first use, never measured. */
struct gemm_choice {
    int rows, cols, m_class; /* m_class: rows of x, rounded up to a power of two */
    bool out_f32;
    cublasLtMatmulAlgo_t algo;
};

struct device {
    cudaStream_t stream;
    cudaError_t failed; /* the first failed launch of the step in progress */
    const char *failed_what;

    /* loading */
    void *staging[2];
    cudaEvent_t staged[2];
    int next_staging;

    /* products */
    cublasLtHandle_t lt;
    void *workspace;
    struct gemm_choice choice[N_GEMM_CHOICES];
    int n_choices;
    void *gathered; /* rows of x that logits are made of */
    size_t gathered_bytes;

    /* KV cache; a group's layers share one attn_spec but for layer_in_group */
    int block_size, n_groups;
    struct kv_cache *kv[KV_GROUPS_MAX];
    int n_kv[KV_GROUPS_MAX];
    struct attn_spec group[KV_GROUPS_MAX];
    size_t block_bytes[KV_GROUPS_MAX]; /* of K (or V) of one block and layer */
    void *partial;
    size_t max_parts;

    /* the step in progress */
    const struct batch *batch;
    int32_t *upload_host, *upload_device; /* pinned, and its copy */
    size_t upload_used, upload_cap;       /* in words of 4 bytes */
    struct step_arrays arrays[KV_GROUPS_MAX];
    struct attn_plan plan[KV_GROUPS_MAX];
};

enum sl_status cuda_check(cudaError_t e, const char *what, struct sl_err *err);
/* After a launch: remember the step's first failure, with the kernel's name. */
void cuda_note(struct device *d, const char *kernel);

/* step.c */
enum sl_status step_begin(struct device *d, const struct batch *b, struct sl_err *err);
enum sl_status step_end(struct device *d,
                        struct sl_err *err); /* waits; SL_EDEVICE names the kernel */
void step_fini(struct device *d);

/* gemm.c */
enum sl_status gemm_init(struct device *d, struct sl_err *err);
void gemm_fini(struct device *d);
/* y[m, w->rows] = x[m, w->cols] W^T; y is bf16, or f32. */
void gemm_run(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
              int m);

#endif
