/* ops.h - the kernels that a forward pass is made of, and the buffers they work on.
 *
 * src/model/forward.c calls these in order and knows nothing of the machine; ref/ is their
 * specification (plain C, double accumulation), cpu/ and cuda/ are faster ways to the same result.
 * Launches are in order; on a device they are asynchronous.
 *
 * Row contract: a row's bits depend only on that row's input and on the cache up to its position.
 * Never on how many rows there are, on threads, or on whether the position came in a prefill, a
 * chunk or a decode. Each kernel keeps one order of sums for every number of rows. Attention sums
 * over KV chunks of ATTN_CHUNK positions, aligned to absolute multiples of it, and combines them in
 * order. K and V are always read as the cache stores them.
 *
 * Activations are row-major; their element type is the device's own (`act_bytes` each: f32 on ref
 * and cpu, bf16 on cuda with an f32 residual stream). Buffers are opaque device memory.
 *
 * Thread: the engine thread.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_OPS_H
#define SL_BACKEND_OPS_H

#include "core/batch.h"
#include "core/drawrow.h"
#include "core/kvlayout.h"

enum { ATTN_CHUNK = 256 };

/* W_FP8: e4m3 with a scale for each output; a product's input rows become e4m3 too, each with a
 * scale of its own (base/fp8.h), and an output is the sum of codes times both scales. As a KV
 * format: e4m3 with a scale for each position and head. */
enum wformat { W_F32, W_F16, W_BF16, W_I8, W_I4, W_FP8 };

/* A prepared weight matrix, [rows = outputs, cols = inputs], in the layout that the device's kernel
 * reads. Made once by weight_prepare; the source may be unmapped afterwards unless `borrowed`. */
struct weight {
    enum wformat format;
    int rows, cols;
    void *data;    /* device layout */
    void *scale;   /* per row or per group, by format; NULL for floats */
    void *bias;    /* [rows] f32 or NULL */
    size_t bytes;  /* of data and scale: what a decode step reads */
    bool borrowed; /* data points into the mapped file */
    bool in_stack; /* data belongs to the first weight of its stack */
};

/* How a checkpoint stores a tensor: parts are stacked by rows (q, k, v -> one matrix). */
struct weight_source {
    enum sl_dtype dtype; /* F32, F16 or BF16 */
    int n_parts;
    struct {
        const void *data;   /* [rows, cols] row-major, mapped; NULL: the device makes it up */
        const float *scale; /* [rows]: data is e4m3 and times this; or NULL (then all are) */
        int rows;
        uint64_t made_up_key; /* of model/dummy.c, with it the width that values are within */
        float made_up_width;
        const void *bias; /* [rows] of the same dtype, or NULL */
    } part[4];
    int cols;
    /* The weight is number stack_at of stack_n alike, prepared in order into an array: a device may
     * lay their data end to end. 0: not of a stack. */
    int stack_at, stack_n;
};

enum act_kind { ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_RELU, ACT_RELU2 };

/* rms: w * h / sqrt(mean(h^2) + eps). Else layernorm: w * (h - mean) / sqrt(var + eps) + b.
 * Model constants such as Gemma's 1 + w are added by vector_prepare. */
struct norm {
    const float *w; /* [n] device vectors; NULL: ones */
    const float *b; /* NULL: zeros */
    float eps;
    bool rms;
};

/* Position encoding of one layer; inv_freq comes from the model (all rope scalings end there).
 * The angle is the f32 product (float)pos * inv_freq[i], as transformers computes it: at position
 * 3000 its rounding is 1e-4, so a double would be a different model. cos and sin are of that. */
struct rope {
    const float *inv_freq; /* [rot_dims / 2] device vector; NULL: no rope */
    int rot_dims;          /* leading dims of each head that rotate */
    float mscale;          /* factor on cos and sin, 1 */
    bool interleaved;      /* pairs (2i, 2i+1) instead of (i, i + rot/2) */
};

/* What q and k norms run over, and whose weights they use. */
enum qk_norm {
    QK_NORM_HEAD,  /* each head by itself, weights [head_dim] shared by all heads */
    QK_NORM_HEADS, /* each head by itself, weights of its own: [heads, head_dim] */
    QK_NORM_ALL    /* all heads of q (of k) together, weights [heads * head_dim] */
};

struct attn_spec {
    int n_heads, n_kv_heads, head_dim;
    enum qk_norm qk_norm;
    int group, layer_in_group; /* where its K and V live */
    float scale;
    float softcap;      /* 0: off */
    int window;         /* 0: all */
    const float *alibi; /* [n_heads] slopes, device vector, or NULL */
    bool causal;
};

/* A mixture of experts in place of an MLP. A row's experts are the top_k largest softmax
 * probabilities of its router logits (the lower index wins ties); their outputs are added in
 * ascending order of expert, then the shared expert's. All of them gated MLPs. */
struct moe {
    int n_experts, top_k, ffn, shared_ffn;
    bool renormalize; /* the chosen probabilities are divided by their sum */
    enum act_kind act;
    const struct weight *router;                       /* [n_experts, hidden] */
    const struct weight *gate_up, *down;               /* [n_experts] of them */
    const struct weight *shared_gate_up, *shared_down; /* NULL: none */
    const struct weight *shared_gate; /* [1, hidden]: its sigmoid scales the shared expert; or NULL
                                       */
    /* [rows, top_k] device vector of expert numbers, NULL in a model. Comparisons across number
     * formats set it for rows whose router is so close that rounding may turn it around: such a
     * row's experts are these, at the probabilities that its own router gives them. A row whose
     * first number is negative chooses by itself. */
    const float *forced;
};

struct device; /* private to ref/, cpu/, cuda/ */

struct ops {
    const char *name;
    size_t act_bytes;
    int head_dim_max; /* of attention; sizes are multiples of 8. 0: any */
    bool fp8_weights; /* weight_prepare takes W_FP8 */

    /* Memory. Buffers are zeroed, 64-byte aligned; named for error messages. */
    void *(*alloc)(struct device *d, size_t bytes, const char *name, struct sl_err *err);
    void (*free)(struct device *d, void *p); /* of alloc and vector_prepare; p may be NULL */
    /* Bytes of the device's own memory. NULL: it computes in the host's. */
    SL_MUST_CHECK enum sl_status (*memory)(struct device *d, size_t *left, size_t *total,
                                           struct sl_err *err);
    /* Before the first step: kernels may be chosen for speed alone, against the row contract. NULL:
     * there are no others. */
    void (*set_fast)(struct device *d);
    /* Whether this device can run weights of this dtype (--dtype auto asks). */
    bool (*supports)(struct device *d, enum sl_dtype dtype);
    SL_MUST_CHECK enum sl_status (*weight_prepare)(struct device *d, struct weight *out,
                                                   const struct weight_source *src,
                                                   enum wformat format, const char *name,
                                                   struct sl_err *err);
    void (*weight_release)(struct device *d, struct weight *w);
    bool makes_up; /* weight_prepare takes parts without data: values of model/dummy.c, in bf16 */
    /* A vector of n values (norm weights, ...) as f32 device memory. */
    float *(*vector_prepare)(struct device *d, const void *src, enum sl_dtype dtype, int n,
                             float add, struct sl_err *err);
    /* The KV cache: layout->n_blocks blocks for every group. */
    SL_MUST_CHECK enum sl_status (*kv_create)(struct device *d, const struct kv_layout *layout,
                                              const struct attn_spec *layers, int n_layers,
                                              enum wformat kv_format, struct sl_err *err);

    /* A step. begin() sees the batch first (uploads, block copies); end() follows the last op. */
    SL_MUST_CHECK enum sl_status (*begin)(struct device *d, const struct batch *b,
                                          struct sl_err *err);
    SL_MUST_CHECK enum sl_status (*end)(struct device *d, struct sl_err *err);

    /* h[r,:] = E[token(r),:] * scale (+ P[pos(r) + pos_offset,:] if P is given), for the batch's
     * rows; h: f32 residual [n_tokens, cols]. Any prepared weight can be E: tied embeddings use the
     * same handle for `logits`, so a device gathers rows from its own layout. E may be NULL if P
     * is given: only positions. */
    void (*embed)(struct device *d, float *h, const struct weight *e, float scale,
                  const struct weight *p, int pos_offset);
    /* h[r,:] += T[token_type(r),:], for the batch's rows. */
    void (*embed_types)(struct device *d, float *h, const struct weight *types);
    /* h = x: norms after the sublayers are over the residual itself. */
    void (*residual)(struct device *d, float *h, const void *x, int rows, int n);
    /* residual h: [rows, n] f32; if add: h += add * add_scale first. x = norm(h), activations;
     * norm NULL: x = h. x may be NULL: only the addition. */
    void (*add_norm)(struct device *d, void *x, float *h, const void *add, float add_scale,
                     const struct norm *norm, int rows, int n);
    /* y = norm(x), both activations [rows, n]; y may equal x (norms after a sublayer). */
    void (*norm)(struct device *d, void *y, const void *x, const struct norm *norm, int rows,
                 int n);
    /* y = x W^T + bias; x: [rows, W.cols] activations, y: [rows, W.rows] activations. */
    void (*linear)(struct device *d, void *y, const struct weight *w, const void *x, int rows);
    /* linear and act in one, the same bits; wide: room for linear's y. NULL: the device has only
     * the two. */
    void (*linear_act)(struct device *d, void *y, void *wide, const struct weight *w, const void *x,
                       enum act_kind kind, bool gated, int rows);
    /* qkv: [n_tokens, (n_heads + 2 n_kv_heads) head_dim]. Normalizes q and k if given norms, as
     * a->qk_norm says; rotates q and k in place by the batch's positions, and writes K and
     * V to the cache at the batch's slots. */
    void (*qkv_rope_cache)(struct device *d, void *qkv, const struct attn_spec *a,
                           const struct rope *rope, const struct norm *q_norm,
                           const struct norm *k_norm);
    /* out: [n_tokens, n_heads head_dim]; q is the leading part of qkv's rows. */
    void (*attention)(struct device *d, void *out, const void *qkv, const struct attn_spec *a);
    /* gate_up: [rows, 2 n] -> y[r,i] = act(gate_up[r,i]) * gate_up[r,n+i], gated;
     * plain: [rows, n] -> y = act(x). */
    void (*act)(struct device *d, void *y, const void *x, enum act_kind kind, bool gated, int rows,
                int n);
    /* out: [rows, hidden] activations = the mixture of x: [rows, hidden]. scratch: moe_bytes(). */
    void (*moe)(struct device *d, void *out, const void *x, const struct moe *m, int rows,
                void *scratch);
    size_t (*moe_bytes)(const struct moe *m, int hidden, int rows);
    /* logits[i,:] = x[logit_row[first + i],:] W^T for i in [0, n), f32 [n, W.rows]; times scale,
     * then softcap * tanh(. / softcap) if not 0. x: [n_tokens, W.cols] activations. The runner asks
     * in pieces when a step wants more logits than its buffer holds. */
    void (*logits)(struct device *d, float *logits, const struct weight *w, const void *x,
                   int first, int n, float scale, float softcap);
    /* Copies device memory to the host after all that was launched before. NULL: buffers from alloc
     * are host memory. */
    SL_MUST_CHECK enum sl_status (*fetch)(struct device *d, void *host, const void *from,
                                          size_t bytes, struct sl_err *err);

    /* What a step of max_tokens rows takes beside activations. NULL: nothing. Weights are there. */
    size_t (*step_bytes)(struct device *d, int max_tokens);
    /* What kv_create takes for each position beside K and V of the layers. NULL: nothing. */
    size_t (*kv_more_bytes)(enum wformat kv_format, int n_kv_heads, int head_dim);

    /* A device that draws tokens by itself; NULL elsewhere. It has a token table for rows whose
     * token is TOKEN_FROM_TABLE, and keeps the tokens that it embeds, so up to `depth` steps may be
     * begun before the first is collected.
     * draw_plan: memory to draw from `rows` rows of logits at once, beside draw_bytes() nothing.
     * expect: what to draw in the step that begins next. draw: those of its rows whose logits are
     * [first, first + n), given at `logits`, where masks are applied. launched: nothing more comes
     * for this step. collect: waits for the oldest step; the results, by sample row, are good until
     * the next begin(). rows: how many to compute in the step that began, at least n_tokens. If
     * more, the rest is padding, and every row has logits and is drawn from. 0: all of the step is
     * launched already. set_eager: one launch after the other, nothing is captured and replayed. */
    int depth;
    size_t (*draw_bytes)(int rows, int vocab_size);
    SL_MUST_CHECK enum sl_status (*draw_plan)(struct device *d, const struct batch_limits *limits,
                                              int rows, int vocab_size, struct sl_err *err);
    void (*expect)(struct device *d, const struct draw_rows *rows);
    int (*rows)(struct device *d);
    void (*set_eager)(struct device *d, bool eager);
    void (*draw)(struct device *d, float *logits, int first, int n);
    SL_MUST_CHECK enum sl_status (*launched)(struct device *d, struct sl_err *err);
    SL_MUST_CHECK enum sl_status (*collect)(struct device *d, const struct draw_result **result,
                                            const struct draw_top **top, struct sl_err *err);
    void (*destroy)(struct device *d);
};

/* Each gives an ops table and its device. threads: 0 chooses. */
SL_MUST_CHECK enum sl_status ref_device_create(const struct ops **ops, struct device **d,
                                               struct sl_err *err);
SL_MUST_CHECK enum sl_status cpu_device_create(const struct ops **ops, struct device **d,
                                               int threads, struct sl_err *err);
#ifdef SLUICE_CUDA
/* SL_ENOTFOUND: there is no GPU that this build has kernels for. */
SL_MUST_CHECK enum sl_status cuda_device_create(const struct ops **ops, struct device **d,
                                                struct sl_err *err);
#endif

#endif
