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

enum { STAGING_BYTES = 16 << 20, N_GEMM_CHOICES = 1024, CUDA_DEPTH = 2 };

/* A launch that waits for the next op, which may become part of it (fuse.c). */
struct held {
    enum { HELD_NOTHING, HELD_POST_NORM, HELD_NORM, HELD_LINEAR, HELD_EXPERTS } kind;
    const void *add; /* HELD_NORM: what h has not had yet, or NULL; and whether there is a norm */
    float add_scale;
    bool plain, has_post;
    struct norm_args post; /* HELD_NORM: of `add`, if it has one */
    struct narrow_args a;  /* HELD_NORM: h, norm and x_out, m, cols; HELD_POST_NORM: not h */
    struct moe_args moe;   /* HELD_EXPERTS: their last product and the sum */
};

/* One of the steps that may be in flight: pinned memory, reused when the step was collected. */
struct step_slot {
    int32_t *upload;
    cudaEvent_t done;
};

/* Rows of a step's arrays, padding included. */
struct step_rows {
    int tokens, seqs, logits;
};

/* Launches of a padded step, which its rows and attention's blocks determine. */
enum { GRAPHS_MAX = 96, GRAPH_ROWS_MAX = 512 };
struct step_graph {
    int rows, n_blocks[KV_GROUPS_MAX];
    cudaGraphExec_t exec; /* NULL: launched one by one so far */
};

/* The cuBLASLt kernel kept for one shape: chosen at first use. */
struct gemm_choice {
    int rows, cols, m_class; /* m_class: rows of x, rounded up to a power of two */
    bool out_f32, ours;      /* ours: no kernel of cuBLASLt's has the bits of our own product */
    cublasLtMatmulAlgo_t algo;
};

/* What a KV block of a group is made of. */
struct kv_parts {
    struct kv_part *list, *device_list;
    int n;
    size_t most, block_bytes; /* of one part, of all */
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
    bool fast; /* may split K */
    cudaEvent_t timer[2];
    void *workspace;
    struct gemm_choice choice[N_GEMM_CHOICES];
    int n_choices;
    void *gathered; /* rows of x that logits are made of */
    size_t gathered_bytes;
    struct coded coded;       /* the rows that meet FP8 weights now, [coded_rows, fp8_cols] */
    int coded_rows, fp8_cols; /* fp8_cols: of the widest such weight, 0: there is none */

    /* KV cache; a group's layers share one attn_spec but for layer_in_group */
    int block_size, n_groups;
    struct kv_cache *kv[KV_GROUPS_MAX];
    int n_kv[KV_GROUPS_MAX];
    struct attn_spec group[KV_GROUPS_MAX];
    size_t block_bytes[KV_GROUPS_MAX]; /* of K (or V) of one block and layer */
    size_t scale_bytes[KV_GROUPS_MAX]; /* of its scales, 0: bf16 */
    struct kv_parts kv_part[KV_GROUPS_MAX];
    void *host_kv; /* pinned */
    void *partial;
    int *counter;         /* attn_plan's ticket, then its counters */
    struct kv_cache wide; /* of an FP8 cache: one layer at a time as bf16, for attn_plan */
    size_t max_parts;
    int32_t *seen;  /* the token at each KV slot of group seen_group */
    int seen_group; /* the first without a window, -1: all have one */
    int n_sms;
    bool is_hopper; /* has the tensor copy engine and warpgroup instructions */

    /* the step in progress */
    const struct batch *batch;
    struct step_slot slot[CUDA_DEPTH];
    uint64_t n_begun, n_collected;
    int32_t *upload_host, *upload_device; /* of the slot, and its copy */
    size_t upload_used, upload_cap;       /* in words of 4 bytes */
    int32_t *table;                       /* [max_seqs][TABLE_DEPTH] */
    const int32_t *header;                /* slot; of each group: number of pairs, their offset */
    struct draw_result *result; /* host memory that kernels write: [CUDA_DEPTH][max_samples] */
    struct draw_top *top;       /* the same, DRAW_TOP_MAX each */
    int max_samples, max_seqs;
    struct step_rows rows;
    bool padded, no_graphs;
    struct step_graph graph[GRAPHS_MAX];
    int n_graphs;
    struct step_graph *capturing, *replayed; /* this step is */
    struct step_arrays arrays[KV_GROUPS_MAX];
    struct attn_plan plan[KV_GROUPS_MAX];

    struct held held;

    /* drawing tokens */
    const struct draw_rows *draws;   /* of the next step */
    const struct draw_row *draw_row; /* on the device */
    float *draw_work;                /* [draw_rows, vocab_size], and as many counters */
    uint32_t *draw_count;
    int draw_rows, vocab_size;
};

enum sl_status cuda_check(cudaError_t e, const char *what, struct sl_err *err);
/* After a launch: remember the step's first failure, with the kernel's name. */
void cuda_note(struct device *d, const char *kernel);

/* device.c: at least `rows` rows in d->coded, if any weight is FP8 */
enum sl_status coded_reserve(struct device *d, int rows, struct sl_err *err);

/* step.c */
enum sl_status step_begin(struct device *d, const struct batch *b, struct sl_err *err);
enum sl_status step_end(struct device *d,
                        struct sl_err *err); /* waits; SL_EDEVICE names the kernel */
enum sl_status step_reserve(struct device *d, const struct batch_limits *l, struct sl_err *err);
enum sl_status step_launched(struct device *d, struct sl_err *err);
enum sl_status step_collect(struct device *d, const struct draw_result **result,
                            const struct draw_top **top, struct sl_err *err);
void step_fini(struct device *d);

/* kvcopy.c */
enum sl_status kv_parts_create(struct device *d, int n_host_blocks, struct sl_err *err);
void kv_parts_destroy(struct device *d);
int kv_copies_place(const struct device *d, int g, int32_t *to); /* gives their number */
void kv_copies_run(struct device *d, int g, const int32_t *copies, int n);

/* graph.c */
void graph_begin(struct device *d); /* after the step's upload */
void graph_end(struct device *d);
void graphs_fini(struct device *d);

/* fuse.c */
void fuse_flush(struct device *d); /* before anything else is launched */
void fuse_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                   const struct norm *norm, int rows, int n);
/* y = norm(y). */
void fuse_post_norm(struct device *d, void *y, const struct norm *norm, int rows, int n);
void fuse_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows);
/* y: f32 [rows, w->rows]; nothing follows that could be part of it. */
void fuse_linear_f32(struct device *d, float *y, const struct weight *w, const void *x, int rows);
void fuse_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
              int n);
/* Whether W's products of m rows are made by kernels of our own. */
bool product_takes(const struct device *d, const struct weight *w, int m);
void product_run(struct device *d, const struct narrow_args *a);
/* After a launch of wide.cu or narrow.cu: whether its tensor maps were taken. */
void cuda_mapped(struct device *d, bool launched);
struct norm_args norm_args(const struct norm *n); /* device.c */
/* What a product of our own needs to know of W and x: it may do the norm that makes x. */
struct narrow_args fuse_input(struct device *d, const struct weight *w, const void *x, int rows);
/* y[rows, w->rows], as bf16 or f32, of weights that product_takes() leaves; without the bias. */
void fuse_other(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
                int rows);

/* moe.c */
size_t cuda_moe_bytes(const struct moe *m, int hidden, int rows);
void cuda_moe(struct device *d, void *out, const void *x, const struct moe *m, int rows,
              void *scratch);

/* gemm.c */
enum sl_status gemm_init(struct device *d, struct sl_err *err);
void gemm_fini(struct device *d);
/* y[m, w->rows] = x[m, w->cols] W^T; y is bf16, or f32. */
void gemm_run(struct device *d, void *y, bool out_f32, const struct weight *w, const void *x,
              int m);

#endif
