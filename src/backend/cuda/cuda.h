/* cuda.h - the CUDA device's insides: its memory, one step's arrays, and the kernel launchers.
 *
 * Activations are bf16, the residual stream is f32, norms and logits are computed in f32.
 * Launchers (in the .cu files) validate nothing and synchronize nothing: they launch on `stream`
 * and return; cuda_launched() turns a refused launch into SL_EDEVICE with the kernel's name.
 *
 * The order of sums. On Hopper, a bf16 product with f32 accumulation that walks K in steps of 16
 * into one accumulator gives the same bits through mma.sync, through wgmma, and through cuBLASLt
 * kernels that do not split K, where K is a multiple of 64: docs/determinism.md has the
 * measurement, and tests/gpu repeats it. So products and attention may choose their kernel by shape
 * and the row contract holds, as long as nothing splits K.
 *
 * Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_CUDA_H
#define SL_BACKEND_CUDA_CUDA_H

#include "core/drawrow.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cuda_stream;

/* No kernel starts before the one before it has ended: --enforce-eager, and tools that watch
 * kernels one by one. Set before the first launch. */
extern bool cuda_plain_launches;

/* KV chunks on this device: absolute multiples of it, in decode and prefill alike. */
enum { CUDA_ATTN_CHUNK = 256 };

/* The token table: what was drawn for a row of it at a position, kept for as many steps as may be
 * in flight. TOKEN_NONE: bad logits (core/batch.h's TOKEN_BAD_LOGITS). */
enum { TABLE_DEPTH = 4, TOKEN_NONE = -2 };

/* One step's arrays on the device, as core/batch.h describes them.
 * token[r] < 0: the one that was drawn for row ~token[r] of the table at pos[r]. slot[r] < 0: row r
 * is padding, nothing is written for it. */
struct step_arrays {
    const int32_t *token, *pos, *token_type, *q_start, *kv_len, *logit_row;
    const int32_t *table; /* [max_seqs][TABLE_DEPTH] */
    int32_t *seen;        /* the token at every KV slot of the group that keeps them, or NULL */
    const int32_t *seen_slot;
    const int32_t *slot;        /* of one layer group */
    const int32_t *block_start; /* of one layer group, [n_seqs + 1]: offsets from `block` */
    const int32_t *block;
    int n_tokens, n_seqs;
};

/* K and V of one layer: [n_blocks][n_kv_heads][block_size][head_dim] bf16; or e4m3 where there are
 * scales: [n_blocks][n_kv_heads][block_size], one a position and head. */
struct kv_cache {
    void *k, *v;
    float *k_scale, *v_scale; /* NULL: bf16 */
};

/* Rows as e4m3, and the scale of each. */
struct coded {
    void *q;
    float *scale;
};

struct attn_shape {
    int n_heads, n_kv_heads, head_dim, block_size;
    float scale, softcap;
    int window;         /* 0: all */
    const float *alibi; /* device, or NULL */
    bool causal;
};

struct norm_args {
    const float *w, *b;
    float eps;
    bool rms;
    int head_stride; /* q and k norms: from one head's weights to the next, 0: shared */
};

struct rope_args {
    const float *inv_freq; /* NULL: none */
    int rot_dims;
    float mscale;
    bool interleaved;
};

/* A cudaError_t: whether this build has kernels for the GPU that is here. */
int cuda_find_kernels(void);

/* ---- elementwise.cu ---------------------------------------------------------------------------
 */
/* row_scale: of an e4m3 table; NULL: bf16. */
void launch_embed(cuda_stream s, float *h, const void *table, const float *row_scale,
                  const struct step_arrays *a, int n, float scale, const void *pos_table,
                  int pos_offset);
/* h += the row of `types` that each token's type names. */
void launch_embed_types(cuda_stream s, float *h, const void *types, const struct step_arrays *a,
                        int n);
/* h = x, bf16. */
void launch_residual(cuda_stream s, float *h, const void *x, size_t n);
/* n bf16 within +- width, those that model/dummy.c makes of `key`. */
void launch_make_up(cuda_stream s, void *out, size_t n, uint64_t key, float width);
/* post: norms what is added, or NULL. coded: where x goes as e4m3 too, or NULL; then n % 8 == 0. */
void launch_add_norm(cuda_stream s, void *x, float *h, const void *add, float add_scale,
                     const struct norm_args *post, const struct norm_args *norm, int rows, int n,
                     const struct coded *coded);
/* Rows are `stride` values apart. */
void launch_norm(cuda_stream s, void *y, const void *x, const struct norm_args *norm, int rows,
                 int n, size_t stride);
void launch_act(cuda_stream s, void *y, const void *x, int kind, bool gated, int rows, int n);
void launch_add_bias(cuda_stream s, void *y, const float *bias, int rows, int n);
void launch_gather_rows(cuda_stream s, void *out, const void *x, const int32_t *row, int n,
                        int width);
void launch_finish_logits(cuda_stream s, float *logits, const float *bias, int rows, int n,
                          float scale, float softcap);
/* A part of every KV block of a group: `bytes` of it at device + block * bytes, a multiple of 16,
 * and as much in host memory that the device can reach. */
struct kv_part {
    char *device, *host;
    size_t bytes;
};
/* copies: [n_copies][KV_COPY_WORDS]: kind, from, to; of all parts, in order. */
enum { KV_TO_HOST = 1, KV_FROM_HOST = 2, KV_COPY_WORDS = 3 };
void launch_copy_blocks(cuda_stream s, const struct kv_part *parts, int n_parts, size_t most_bytes,
                        const int32_t *copies, int n_copies);
/* qkv's q and k normed and rotated in place; K and V written to the cache. */
void launch_qkv_rope_cache(cuda_stream s, void *qkv, const struct kv_cache *kv,
                           const struct step_arrays *a, const struct attn_shape *shape,
                           const struct rope_args *rope, const struct norm_args *q_norm,
                           const struct norm_args *k_norm);

/* ---- fp8.cu ---------------------------------------------------------------------------------- */
/* Each row of x, [rows, n] bf16, as e4m3 with a scale of its own; n % 8 == 0. */
void launch_quantize(cuda_stream s, const struct coded *out, const void *x, int rows, int n);
/* y[m, rows] = x W^T, as bf16 or f32; w: e4m3 [rows, cols], x: [m, cols], cols % 16 == 0. */
void launch_fp8_product(cuda_stream s, void *y, bool out_f32, const void *w, const float *w_scale,
                        int rows, int cols, const struct coded *x, int m);

/* ---- attention.cu --------------------------------------------------------------------------- */
/* Work for one step, made on the host: rows of q tiles and (sequence, chunk) pairs. */
struct attn_plan {
    /* decode: blocks of threads share out (row, chunk) pairs, a sequence's one after the other */
    const int32_t *n_split; /* on the device: how many, and where in `split` they begin */
    const int32_t *split;   /* [n_split][4]: row, chunk (absolute), kv_len, block_start */
    int n_blocks;           /* of threads for each KV head, 0: no decoding sequence */
    /* prefill: tiles of q rows */
    const int32_t *tile_seq;   /* [n_tiles] */
    const int32_t *tile_first; /* [n_tiles]: first token row of the tile */
    int n_tiles;
    int tokens_per_tile;
    int *ticket; /* 0 before and after */
    int n_sms;
    bool hopper;          /* wgmma is there */
    void *partial;        /* attn_partial_bytes() each pair */
    int *counter;         /* [pairs][n_heads], 0 before and after */
    struct kv_cache wide; /* of an e4m3 cache: room for one layer's values as bf16 */
};
int attn_decode_blocks_per_sm(int head_dim);
int attn_tokens_per_tile(int n_heads, int n_kv_heads);
bool attn_supports(int head_dim, bool fp8); /* fp8: K and V are e4m3 */
size_t attn_partial_bytes(int n_heads, int head_dim);
/* out: [n_tokens, n_heads * head_dim]. q: the leading part of qkv's rows. */
void launch_attention(cuda_stream s, void *out, const void *qkv, const struct kv_cache *kv,
                      const struct step_arrays *a, const struct attn_shape *shape,
                      const struct attn_plan *plan);
/* The tiles only. false: head_dim is not for it, or the tensor maps were refused. */
bool launch_attention_hopper(cuda_stream s, void *out, const void *qkv, const struct kv_cache *kv,
                             const struct step_arrays *a, const struct attn_shape *shape,
                             const struct attn_plan *plan);

/* ---- narrow.cu, wide.cu ---------------------------------------------------------------------- */
/* Rows of x: where wide.cu begins; that narrow.cu norms itself; that fp8_narrow.cu takes; where
 * cuBLASLt's bf16 is faster. */
enum { NARROW_MAX = 16, NARROW_NORM_MAX = 2, FP8_NARROW_MAX = 2, WIDE_BF16_MAX = 128 };
/* y[m, rows] = x[m, cols] W^T. What is not used is zero. */
struct narrow_args {
    const void *w; /* [rows, cols] bf16, or e4m3 if w_scale */
    int rows, cols;
    const void *x; /* [m, cols] of the same type; bf16 for fp8_narrow.cu, which has no x_scale */
    int m;
    const float *w_scale, *x_scale; /* e4m3: of each row of W, [rows], and of x, [m] */
    const float *h;                 /* not NULL: x is the norm of it, and goes to x_out too */
    void *x_out;
    struct norm_args norm;
    const float *bias; /* [rows] or NULL */
    /* Where it goes: y as f32, times scale and capped; y as bf16; residual += add_scale times it;
     * y[m, rows / 2] = act(first half) * second half. */
    void *y;
    bool out_f32, gated;
    float scale, softcap;
    float *residual;
    float add_scale;
    int act;
    /* Not NULL: W, w_scale and bias are n_groups in a row, and rows [group_start[g],
     * group_start[g + 1]) of x meet W of group g. On the device. */
    const int32_t *group_start;
    int n_groups;
    int groups_per_block, stages; /* launch_narrow's own */
};
/* bf16, cols % 16 == 0, up to NARROW_MAX rows, no groups. false: the tensor maps were refused. */
bool launch_narrow(cuda_stream s, const struct narrow_args *a, int n_sms);
/* e4m3, cols % 16 == 0, up to FP8_NARROW_MAX rows of bf16 or of a norm, no groups. */
bool launch_fp8_narrow(cuda_stream s, const struct narrow_args *a, int n_sms);
/* Any number of rows. bf16: cols % 8 == 0; e4m3: cols % 16 == 0. h is not for it. tile: which of
 * its kernels, all of the same bits; -1: the one that suits the shape. */
bool launch_wide(cuda_stream s, const struct narrow_args *a, int n_sms, int tile);
int wide_tiles(void); /* how many there are */

/* ---- moe.cu ---------------------------------------------------------------------------------- */
enum { MOE_EXPERTS_MAX = 512 };
/* A pair is a row and one of its experts; pairs are in order of expert. */
struct moe_args {
    int rows, top_k, n_experts, hidden, ffn, act;
    bool renormalize;
    const int32_t *slot;        /* [rows], negative: padding */
    const float *logits;        /* [rows, n_experts], of the router */
    const float *forced;        /* as struct moe's */
    const void *x;              /* [rows, hidden] bf16 */
    const void *gate_up, *down; /* [n_experts][2 ffn, hidden], [n_experts][hidden, ffn] bf16 */
    /* made by routing */
    int tile_rows;    /* pairs in a tile, at most: moe_tile_rows() */
    bool wide;        /* wide.cu multiplies where an expert has many rows */
    int32_t *expert;  /* [rows, top_k] ascending, -1: none */
    float *weight;    /* [rows, top_k] */
    int32_t *pair_of; /* [rows, top_k] */
    int32_t *row_of;  /* [pairs] */
    int32_t *tile;    /* [n_tiles][4]: expert, first pair, pairs, 0 */
    int32_t *n_tiles;
    int32_t *first; /* [n_experts + 1]: first pair of each expert; for wide.cu */
    /* made by the products */
    void *mid, *sub; /* [pairs, ffn], [pairs, hidden] bf16 */
    /* the expert that all visit: its output, NULL: none; its gate's weights, NULL: 1 */
    const void *shared, *shared_gate;
    float *shared_weight; /* [rows] */
    /* The sum goes to out as bf16, or residual += add_scale times it. */
    void *out;
    float *residual;
    float add_scale;
};
/* large_shared: a multiprocessor has the shared memory of Hopper. */
int moe_tile_rows(int rows, int top_k, int n_experts, bool large_shared);
void launch_moe_route(cuda_stream s, const struct moe_args *a);
/* false: wide.cu's tensor maps were refused. Down makes the sum too. */
bool launch_moe_gate_up(cuda_stream s, const struct moe_args *a, int n_sms);
bool launch_moe_down(cuda_stream s, const struct moe_args *a, int n_sms);

/* ---- sample.cu ------------------------------------------------------------------------------ */
struct draw_args {
    float *logits; /* [n_logits, n]: rows first_logit, ... of the step; masks are applied to them */
    int first_logit, n_logits, n;
    const struct draw_row *row; /* its list and mask: places in `word` */
    const int32_t *word;
    int first_row, max_rows;                   /* of `row`; at most max_rows at once */
    float *work;                               /* [max_rows, n] */
    uint32_t *count;                           /* [max_rows, n], zero before and after */
    const int32_t *seen, *block_start, *block; /* the tokens of a sequence */
    int block_size;
    int32_t *table;
    const int32_t *slot; /* which of the slots of results, of slot_rows rows each */
    int slot_rows;
    struct draw_result *result; /* host memory, [slots][rows] */
    struct draw_top *top;       /* host memory, [slots][rows][DRAW_TOP_MAX] */
};
void launch_draw(cuda_stream s, const struct draw_args *a, int n_rows);

#ifdef __cplusplus
}
#endif
#endif
