/* ref.h - the reference device's insides: host memory, one thread, sums in double.
 *
 * What these functions give is what every other device is compared with. They are kept short and
 * are never optimised beyond what lets a test suite wait for them.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_REF_REF_H
#define SL_BACKEND_REF_REF_H

#include "backend/ops.h"

/* K and V of one layer: [(n_blocks + n_host_blocks) * block_size][n_kv_heads * head_dim], as
 * kv_format stores it. */
struct ref_kv {
    void *k, *v;
    float *k_scale, *v_scale; /* [n_blocks * block_size][n_kv_heads] of W_FP8, else NULL */
    int width;                /* n_kv_heads * head_dim */
    int n_heads;
};

struct device {
    const struct batch *batch; /* of the step between begin and end */
    int block_size, n_blocks;
    enum wformat kv_format;
    struct ref_kv *kv[KV_GROUPS_MAX]; /* [group][layer_in_group] */
    int n_kv[KV_GROUPS_MAX];
    double *row; /* [row_cap]: one weight row or one head's sums, widened */
    size_t row_cap;
    double chunk[ATTN_CHUNK]; /* scores of one KV chunk */
    float *kv_row;            /* [kv_row_cap]: one head's K or V, widened */
    size_t kv_row_cap;
    int fp8_cols;   /* of the widest W_FP8 weight, 0: none */
    float *coded;   /* [coded_cap]: rows as e4m3 has them, without their scales */
    float *x_scale; /* [max_tokens] */
    size_t coded_cap;
};

/* Element i of values stored as W_F32, W_F16, W_BF16 or W_FP8; of the last without its scale. */
float ref_get(const void *data, enum wformat format, size_t i);
void ref_put(void *data, enum wformat format, size_t i, float v);
size_t ref_bytes(enum wformat format); /* 0: not a format that ref stores */

void ref_embed_types(struct device *d, float *h, const struct weight *types);
void ref_residual(struct device *d, float *h, const void *x, int rows, int n);
void ref_embed(struct device *d, float *h, const struct weight *e, float scale,
               const struct weight *p, int pos_offset);
void ref_add_norm(struct device *d, void *x, float *h, const void *add, float add_scale,
                  const struct norm *norm, int rows, int n);
void ref_norm(struct device *d, void *y, const void *x, const struct norm *norm, int rows, int n);
void ref_linear(struct device *d, void *y, const struct weight *w, const void *x, int rows);
void ref_qkv_rope_cache(struct device *d, void *qkv, const struct attn_spec *a,
                        const struct rope *rope, const struct norm *q_norm,
                        const struct norm *k_norm);
void ref_attention(struct device *d, void *out, const void *qkv, const struct attn_spec *a);
void ref_act(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
             int n);
void ref_logits(struct device *d, float *logits, const struct weight *w, const void *x, int first,
                int n, float scale, float softcap);

#endif
