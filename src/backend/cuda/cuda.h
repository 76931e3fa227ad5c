/* cuda.h - the CUDA device's insides: its memory, one step's arrays, and the kernel launchers.
 *
 * Activations are bf16, the residual stream is f32, norms and logits are computed in f32.
 * Launchers (in the .cu files) validate nothing and synchronize nothing: they launch on `stream`
 * and return; cuda_launched() turns a refused launch into SL_EDEVICE with the kernel's name.
 *
 * The order of sums. On Hopper, a bf16 product with f32 accumulation that walks K in steps of 16
 * into one accumulator gives the same bits through mma.sync, through wgmma, and through every
 * cuBLASLt kernel that does not split K: docs/determinism.md has the measurement, and tests/gpu
 * repeats it. So products and attention may choose their kernel by shape and the row contract
 * holds, as long as nothing splits K.
 *
 * Thread: the engine thread.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_CUDA_H
#define SL_BACKEND_CUDA_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cuda_stream;

/* KV chunks on this device: absolute multiples of it, in decode and prefill alike. */
enum { CUDA_ATTN_CHUNK = 128 };

/* One step's arrays on the device, as core/batch.h describes them. */
struct step_arrays {
    const int32_t *token, *pos, *q_start, *kv_len, *logit_row;
    const int32_t *slot;        /* of one layer group */
    const int32_t *block_start; /* of one layer group, [n_seqs + 1] */
    const int32_t *block;       /* of one layer group */
    int n_tokens, n_seqs;
};

/* K or V of one layer: [n_blocks][n_kv_heads][block_size][head_dim] bf16. */
struct kv_cache {
    void *k, *v;
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
};

struct rope_args {
    const float *inv_freq; /* NULL: none */
    int rot_dims;
    float mscale;
    bool interleaved;
};

/* ---- elementwise.cu ---------------------------------------------------------------------------
 */
void launch_embed(cuda_stream s, float *h, const void *table, const struct step_arrays *a, int n,
                  float scale, const void *pos_table, int pos_offset);
void launch_add_norm(cuda_stream s, void *x, float *h, const void *add, float add_scale,
                     const struct norm_args *norm, int rows, int n);
void launch_norm(cuda_stream s, void *y, const void *x, const struct norm_args *norm, int rows,
                 int n);
void launch_act(cuda_stream s, void *y, const void *x, int kind, bool gated, int rows, int n);
void launch_add_bias(cuda_stream s, void *y, const float *bias, int rows, int n);
void launch_gather_rows(cuda_stream s, void *out, const void *x, const int32_t *row, int n,
                        int width);
void launch_finish_logits(cuda_stream s, float *logits, const float *bias, int rows, int n,
                          float scale, float softcap);
void launch_copy_blocks(cuda_stream s, void *cache, const int32_t *src_dst, int n_copies,
                        size_t block_bytes);
/* qkv's q and k normed and rotated in place; K and V written to the cache. */
void launch_qkv_rope_cache(cuda_stream s, void *qkv, const struct kv_cache *kv,
                           const struct step_arrays *a, const struct attn_shape *shape,
                           const struct rope_args *rope, const struct norm_args *q_norm,
                           const struct norm_args *k_norm);

/* ---- attention.cu --------------------------------------------------------------------------- */
/* Work for one step, made on the host: rows of q tiles and (sequence, chunk) pairs. */
struct attn_plan {
    /* decode: sequences whose q rows fit one tile; every (sequence, chunk) is a block of threads */
    const int32_t *split_seq;   /* [n_split] sequence */
    const int32_t *split_chunk; /* [n_split] chunk, absolute */
    const int32_t *split_part;  /* [n_seqs + 1]: where a sequence's partial results begin */
    int n_split;
    /* prefill: tiles of q rows */
    const int32_t *tile_seq;   /* [n_tiles] */
    const int32_t *tile_first; /* [n_tiles]: first token row of the tile */
    int n_tiles;
    int tokens_per_tile;
    void *partial; /* [split parts][n_heads][head_dim + 2] f32 */
};
int attn_tokens_per_tile(int n_heads, int n_kv_heads);
bool attn_supports(int head_dim);
int attn_padded_dim(int head_dim); /* values a head takes in `partial` */
/* out: [n_tokens, n_heads * head_dim]. q: the leading part of qkv's rows. */
void launch_attention(cuda_stream s, void *out, const void *qkv, const struct kv_cache *kv,
                      const struct step_arrays *a, const struct attn_shape *shape,
                      const struct attn_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
