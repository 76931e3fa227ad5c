/* device.h - the CPU device's insides, shared by the files of this folder.
 *
 * device.c makes the ops table; weight.c packs weights; linear.c multiplies; kvcache.c keeps K and
 * V; attention.c reads them; rows.c does what is done row by row.
 *
 * Memory: scratch is sized when weights and KV are set up, or at the first begin() with larger
 * limits; a warmed-up step allocates nothing. Ops return void, so what goes wrong inside one (only
 * memory can) is kept in `err` until end() reports it.
 *
 * Thread: the engine thread; pool threads only inside a pool_run() of its.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_DEVICE_H
#define SL_BACKEND_CPU_DEVICE_H

#include "backend/cpu/kernels.h"
#include "backend/cpu/pool.h"

enum {
    SLAB_ROWS = 512,    /* rows of activations packed at a time: more are done in turns */
    ATTN_ROWS = 64,     /* (position, head) rows that one attention item computes together */
    HEAD_DIM_MAX = 512, /* longer sums of 16-bit queries times 8-bit keys leave 32 bits */
    ROPE_TABLES = 4
};

/* Memory that remembers its size. */
void *cpu_alloc(size_t bytes, const char *name, struct sl_err *err); /* zeroed, 64-aligned */
void cpu_free(void *p);

/* Grow-only scratch; what it held is lost. */
struct scratch {
    void *p;
    size_t bytes;
};
SL_MUST_CHECK enum sl_status scratch_need(struct scratch *s, size_t bytes, const char *name,
                                          struct sl_err *err);

/* Rows of activations in the form that a weight format's kernel reads. */
struct packed {
    char *x; /* f32, bf16 or s8; may be the caller's own rows */
    size_t stride;
    float *scale;           /* i8, i4: [rows] */
    int32_t *total, *group; /* i8: [rows]; i4: [rows][n_groups] */
    int n_groups;
};

struct rope_table {
    const float *inv_freq; /* NULL: free */
    float mscale;
    int half;               /* rot_dims / 2 */
    struct scratch cos_sin; /* [n_tokens][half] cos, then sin, for this step's positions */
};

struct kv_group_memory {
    char *data; /* [layer][block, the host's last][kv head]{K tiles, V tiles} */
    int n_layers, n_kv_heads, head_dim;
    int hd_pad;         /* head_dim rounded up to whole vectors; zeros between */
    int tiles;          /* K tiles of one head in one block, and as many V tiles behind them */
    size_t tile_bytes;  /* one K or V tile */
    size_t head_bytes;  /* K and V tiles of one head in one block */
    size_t block_bytes; /* of one layer */
    size_t layer_bytes;
};

struct kv_cache {
    struct kv_layout layout;
    enum wformat format;
    struct kv_group_memory group[KV_GROUPS_MAX];
};

struct device {
    struct cpu_kernels k;
    struct pool *pool;
    struct sl_err err; /* first failure inside an op of this step */

    /* linear.c */
    struct scratch packed, packed_sums, sums;
    int max_cols; /* of the weights prepared so far */

    const struct batch *batch; /* between begin() and end() */
    struct rope_table rope[ROPE_TABLES];
    struct kv_cache kv;

    /* attention.c */
    struct scratch attn_threads, attn_split; /* see attention.c */
    struct scratch attn_items;               /* [max_seqs + 1]: first item of each sequence */
    int attn_hd_pad;
};

/* ---- weight.c */
int weight_k_pad(enum wformat format, int cols); /* k values stored */
size_t weight_panel_bytes(enum wformat format, int cols);
size_t weight_k_bytes(enum wformat format, int k); /* offset of k inside a panel */
SL_MUST_CHECK enum sl_status cpu_weight_prepare(struct device *d, struct weight *out,
                                                const struct weight_source *src,
                                                enum wformat format, const char *name,
                                                struct sl_err *err);
void cpu_weight_release(struct device *d, struct weight *w);
float *cpu_vector_prepare(struct device *d, const void *src, enum sl_dtype dtype, int n, float add,
                          struct sl_err *err);
/* Row `row` of the matrix as f32: y[0 .. cols), or n values from column k on. */
void weight_read_row(const struct weight *w, int row, float *y);
void weight_read_part(const struct weight *w, int row, int k, int n, float *y);

/* ---- linear.c */
SL_MUST_CHECK enum sl_status linear_reserve(struct device *d, int cols, struct sl_err *err);
/* y[i,:] = W x[map ? map[i] : i,:] + bias */
void linear_rows(struct device *d, float *y, const struct weight *w, const float *x,
                 const int32_t *map, int rows);
void cpu_linear_act(struct device *d, void *y, void *wide, const struct weight *w, const void *x,
                    enum act_kind kind, bool gated, int rows);

/* ---- kvcache.c */
SL_MUST_CHECK enum sl_status kv_cache_create(struct device *d, const struct kv_layout *layout,
                                             const struct attn_spec *layers, int n_layers,
                                             enum wformat format, struct sl_err *err);
void kv_cache_fini(struct device *d);
void kv_cache_copy_blocks(struct device *d);
/* The K tile that holds the block's position `offset`; its V tile lies tiles * tile_bytes behind.
 */
char *kv_tile(const struct kv_group_memory *g, int layer, int block, int head, int offset);
void cpu_qkv_rope_cache(struct device *d, void *qkv, const struct attn_spec *a,
                        const struct rope *rope, const struct norm *q_norm,
                        const struct norm *k_norm);

/* ---- attention.c */
SL_MUST_CHECK enum sl_status attention_reserve(struct device *d, const struct attn_spec *layers,
                                               int n_layers, struct sl_err *err);
void cpu_attention(struct device *d, void *out, const void *qkv, const struct attn_spec *a);

/* ---- rows.c */
void cpu_embed_types(struct device *d, float *h, const struct weight *types);
void cpu_residual(struct device *d, float *h, const void *x, int rows, int n);
void cpu_embed(struct device *d, float *h, const struct weight *e, float scale,
               const struct weight *p, int pos_offset);
void cpu_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                  const struct norm *norm, int rows, int n);
void cpu_norm(struct device *d, void *y, const void *x, const struct norm *norm, int rows, int n);
void cpu_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
             int n);

#endif
