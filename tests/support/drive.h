/* drive.h - a model run without scheduler and sampler: tests say which tokens a step computes.
 *
 * Every sequence gets KV blocks of its own, scattered over the pool. Logits are handed to a
 * callback, row by row.   A failure ends the test (cmocka).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_DRIVE_H
#define TESTS_SUPPORT_DRIVE_H

#include "model/model.h"

struct drive_config {
    const char *device; /* "ref" or "cpu" */
    const char *model;  /* folder */
    enum sl_dtype dtype;
    const char *quantization, *kv_cache_dtype;
    const char *hf_overrides;
    enum sl_load_format load_format;
    int threads;    /* cpu */
    int max_tokens; /* a step */
    int max_seqs;   /* that exist at once */
    int kv_tokens;  /* that all sequences may hold together */
};

struct drive_seq {
    int32_t *tokens;
    int n, cap;     /* tokens known */
    int n_computed; /* of them in the cache */
    int32_t *block[KV_GROUPS_MAX];
    int n_blocks;
};

/* What a step does for one sequence. */
struct drive_item {
    struct drive_seq *seq;
    int n;           /* tokens to compute from n_computed on */
    bool all_logits; /* of each of them, else of the last one only */
};

/* Logits after position `pos` of item i of the step. */
typedef void (*drive_logits)(void *ctx, int item, int pos, const float *logits, int vocab);

struct drive;

struct drive *drive_create(const struct drive_config *cfg);
void drive_destroy(struct drive **d);
int drive_vocab(const struct drive *d);
int drive_block_size(const struct drive *d);
const struct model_info *drive_info(const struct drive *d);

void drive_seq_init(struct drive *d, struct drive_seq *s, const int32_t *tokens, int n, int cap);
void drive_seq_push(struct drive_seq *s, int32_t token);
void drive_seq_fini(struct drive *d, struct drive_seq *s);
void drive_step(struct drive *d, struct drive_item *items, int n_items, drive_logits fn, void *ctx);
/* Compute all known tokens, at most `chunk` a step; logits of the last one. */
void drive_prefill(struct drive *d, struct drive_seq *s, int chunk, drive_logits fn, void *ctx);

/* From now on rows at position p < n_pos have the experts at [layer][p][top_k], and choose by
 * themselves where the first of them is negative or p is beyond n_pos; `layer` counts the layers
 * with experts. NULL: all choose. The list is borrowed. */
void drive_force_experts(struct drive *d, const int32_t *experts, int n_pos);

/* How far a model in bf16 may be from f32, as a share of the largest logit: 4 eps sqrt(k), as for
 * every kernel here. k roundings to bf16 follow each other, ten a layer (two norms, q k v, scores'
 * and values' operands, the projection, the MLP's three) and two at the ends; sums of `width`
 * products in f32 add the same with f32's eps. */
double drive_bf16_bound(int n_layers, int width);

/* ln p(token), in double. */
double drive_logprob(const float *logits, int vocab, int32_t token);
int32_t drive_argmax(const float *logits, int vocab);

#endif
