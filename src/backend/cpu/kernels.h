/* kernels.h - the table of everything whose speed depends on the instruction set.
 *
 * cpu_kernels_init() fills it once per device; each better level overwrites what it improves. The
 * _ref functions (kernels_ref.c) are the specification: short, in double, never optimised.
 *
 * Panels. A weight matrix [n, k] is cut into panels of PANEL outputs. Inside a panel all outputs'
 * values for one "granule" of k lie side by side, so that one vector load serves 16 outputs and a
 * panel is read front to back, whatever the number of rows:
 *
 *     f32   [k][64]            granule 1           bf16  [k/2][64][2]      granule 2
 *     f16   [k][64]            granule 1           i8    [k/4][64][4]      granule 4, w + 128
 *     i4    [k/8][64][4]       granule 8: byte i holds q[8g + i] in its low half and
 *                              q[8g + 4 + i] in its high half; w = scale q + offset, q in 0 .. 15
 *
 * This is also what AMX wants as its B tiles (16 granules of 16 outputs, 256 bytes apart).
 * Outputs beyond n and k beyond the matrix are zeros (for i8 the zero point; for i4 anything, as
 * activations there are zeros).
 *
 * K order. An output element is one accumulator that takes granule after granule from k = 0 on.
 * Blocking over k stores it to C and loads it again, which changes nothing. So the bits of a row
 * depend on neither `rows` nor the blocking.
 *
 * KV tiles. K and V of one head are kept in tiles of TILE_POS positions that look like panels:
 *     K tile: [hd/granule][16 positions][granule]        (scores: outputs are positions, k is hd)
 *     V tile: [16 positions/granule][hd][granule]        (values: outputs are dims, k is positions)
 * with the granules of the float formats above, so one inner loop serves all three products.
 * i8 tiles have granule 2 and are followed by 16 f32 scales, one a position. They meet s16:
 * queries, and probabilities times the scales of V, each row rounded to 16 bits of its largest; 512
 * dims or 256 positions of such products fit int32, whose sums are exact in any order.
 *
 * Pointers to packed data are 64-byte aligned. Thread: the table is constant once filled.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CPU_KERNELS_H
#define SL_BACKEND_CPU_KERNELS_H

#include "backend/cpu/isa.h"
#include "backend/ops.h"

enum {
    PANEL = 64,
    TILE_POS = 16,
    CHUNK_TILES = ATTN_CHUNK / TILE_POS,
    I4_GROUP = 128, /* k values that share an int4 scale */
    N_FORMATS = W_FP8 + 1
};

/* C[rows, PANEL] (+)= X W for one panel and one range of k. */
struct gemm {
    float *c;                /* f32; between k blocks of i8 the int32 sums */
    size_t ldc;              /* elements from row to row */
    const char *x;           /* packed rows, at the range's first k: f32, bf16 or s8 */
    size_t x_stride;         /* bytes */
    const char *w;           /* the panel, at the range's first k */
    const char *ahead;       /* as many bytes that are read next, or NULL: fetched meanwhile */
    int rows, k;             /* k: whole granules (i4: whole groups) */
    bool first, last;        /* range of k: first starts from zero, last finishes (scales) */
    const float *w_scale;    /* i8: [PANEL] */
    const uint32_t *w_group; /* i4: [groups of the range][PANEL], see i4_pair */
    const float *x_scale;    /* i8, i4: [rows] */
    const int32_t *x_sum; /* i8: [rows] sum of the whole row; i4: [rows][x_sum_stride] per group */
    size_t x_sum_stride;
};
typedef void (*gemm_fn)(const struct gemm *g);

/* K or V tiles of one head, in the order of their positions. While tile[i] is read, ahead[i] is
 * fetched, a tile that will be read soon (ahead NULL: none). */
struct tiles {
    const void *const *tile, *const *ahead;
};

/* s[rows, n_tiles * 16] = Q[rows, hd] K^T. q: f32, or bf16 where x_bf16; s16 for i8 K. */
typedef void (*qk_fn)(float *s, size_t s_stride, const void *q, size_t q_stride, int rows,
                      const struct tiles *k, int n_tiles, int hd);
/* o[rows, hd] += P[rows, lo .. hi) V; positions count from the first tile. p: as q above; p of
 * positions outside [lo, hi) is not read, V there is not used (it may be anything). i8 V: o is
 * int32, and the scales of V are in p already. */
typedef void (*pv_fn)(float *o, size_t o_stride, const void *p, size_t p_stride, int rows,
                      const struct tiles *v, int lo, int hi, int hd);

static inline size_t i8_scale_at(int hd) /* of an i8 tile's scales, in bytes */
{
    return (size_t)TILE_POS * (size_t)hd;
}

/* What softmax does to one row of one chunk before the exponential. Scores and their maximum are in
 * units of log2(e): 2^x costs less than e^x. */
struct softmax {
    int lo, hi;  /* valid positions of the chunk */
    float scale; /* (softcap(s * scale) + alibi bias) * log2(e) */
    float softcap;
    float alibi;     /* slope, 0: none */
    int alibi_first; /* chunk's first position - row's position */
};

/* The scale and the offset of an int4 group, both bf16: one word that a step reads. */
static inline uint32_t i4_pair(uint16_t scale, uint16_t offset)
{
    return (uint32_t)scale << 16 | offset;
}

/* Ranges that fit_i4 tries, as shares of [min, max]. */
#define I4_RANGES              \
    {                          \
        1.0f, 0.9f, 0.8f, 0.7f \
    }

struct cpu_kernels {
    enum cpu_isa isa;
    /* Activations that meet bf16 weights, K or V are bf16 pairs (the CPU multiplies bf16). Else
     * they stay f32 and bf16 is widened on the way. */
    bool x_bf16;
    /* Do not cut k to fit a cache: a sum kept in C loses bits (the reference adds in double), or
     * the kernel does so by itself. */
    bool whole_k[N_FORMATS];
    size_t x_cache; /* where it does: bytes of activations that should stay cached, 0: any */

    gemm_fn gemm[N_FORMATS]; /* W_F32 .. W_I4; W_FP8: NULL */

    /* y[0 .. n_pad) = bf16(x), zeros from n on. */
    void (*to_bf16)(uint16_t *y, const float *x, int n, int n_pad);
    /* q = round(x / scale) in [-127, 127], zeros from n on; scale = max|x| / 127 (NaN if x has NaN
     * or Inf, so that it shows); sum[i] of each I4_GROUP, total of all. n_pad % I4_GROUP == 0. */
    void (*quantize)(int8_t *q, float *scale, int32_t *sum, int32_t *total, const float *x, int n,
                     int n_pad);

    /* I4_GROUP weights as w ~ scale q + offset (gives i4_pair): of a few ranges, most of which clip
     * outliers, the one whose fit by least squares has the smallest squared error. Weights that are
     * not finite make both NaN. */
    uint32_t (*fit_i4)(uint8_t *q, const float *w);

    void (*axpy)(float *h, const float *x, float a, int n); /* h += a x */
    /* y = norm(x), see struct norm; y may equal x. */
    void (*norm)(float *y, const float *x, const struct norm *norm, int n);
    /* y = act(x), times up if given; y may equal x. */
    void (*act)(float *y, const float *x, const float *up, enum act_kind kind, int n);
    void (*softcap)(float *x, float scale, float cap, int n); /* x * scale, capped if cap */

    qk_fn qk[N_FORMATS]; /* by KV format: W_F32, W_F16, W_BF16, W_I8 */
    pv_fn pv[N_FORMATS];
    /* p[i] = 2^(s[i] - max), 0 outside [lo, hi), for the tiles that [lo, hi) touches; in f32, or
     * bf16 when p_bf16. Gives max and the sum of p as rounded. NaN in, NaN out. */
    void (*softmax)(void *p, bool p_bf16, float *max, float *sum, float *s,
                    const struct softmax *a);
    /* q = round(x / scale) in [-32767, 32767], zeros from n on; scale = max|x| / 32767 (NaN if x
     * has NaN or Inf). n_pad % 16 == 0. q may lie at or before x in the same memory. */
    void (*to_i16)(int16_t *q, float *scale, const float *x, int n, int n_pad);
    /* p[i] *= scale of position i of i8 tiles, for the tiles that [lo, hi) touches; 0 outside. */
    void (*times_scales)(float *p, const void *const *tile, int hd, int lo, int hi);
    void (*from_i32)(float *o, float scale, int n); /* o holds int32: o = o * scale */
    /* Adds a chunk's (max, sum, o) to the running one: both rescaled to the larger max. */
    void (*combine)(float *o, float *max, float *sum, const float *o2, float max2, float sum2,
                    int n);
    void (*scale_out)(float *y, const float *o, float sum, int n); /* y = o / sum */
};

/* isa: at most what cpu_isa_detect() says. */
void cpu_kernels_init(struct cpu_kernels *k, enum cpu_isa isa);

/* One per level, called in rising order; the rest are their parts, one per file. */
void cpu_kernels_ref(struct cpu_kernels *k);
void cpu_kernels_avx2(struct cpu_kernels *k);
void cpu_kernels_avx512(struct cpu_kernels *k);
void cpu_kernels_amx(struct cpu_kernels *k);
void gemm_avx2_fill(struct cpu_kernels *k);
void attn_avx2_fill(struct cpu_kernels *k);
void gemm_avx512_fill(struct cpu_kernels *k);
void gemm_i8_avx512(const struct gemm *g); /* what AMX leaves to it */
void attn_avx512_fill(struct cpu_kernels *k);

#endif
