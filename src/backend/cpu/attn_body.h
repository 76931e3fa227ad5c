/* attn_body.h - the table's entries for one level's attention, over its qk_all() and pv_all().
 * Included by attn_avx2.c and attn_avx512.c, after mac_*.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
INLINE bool is_pair(enum wformat f)
{
    return f == W_BF16 || f == MAC_I8_PAIRS;
}

#define ATTENTION(LEVEL, NAME, FORMAT)                                                         \
    static void qk_##NAME##_##LEVEL(float *s, size_t s_stride, const void *q, size_t q_stride, \
                                    int rows, const struct tiles *k, int n_tiles, int hd)      \
    {                                                                                          \
        qk_all(s, s_stride, q, q_stride, rows, k, n_tiles, hd, FORMAT);                        \
    }                                                                                          \
    static void pv_##NAME##_##LEVEL(float *o, size_t o_stride, const void *p, size_t p_stride, \
                                    int rows, const struct tiles *v, int lo, int hi, int hd)   \
    {                                                                                          \
        pv_all(o, o_stride, p, p_stride, rows, v, lo, hi, hd, FORMAT);                         \
    }

#define ATTENTION_LEVEL(LEVEL)                      \
    ATTENTION(LEVEL, f32, W_F32)                    \
    ATTENTION(LEVEL, f16, W_F16)                    \
    ATTENTION(LEVEL, bf16, W_BF16)                  \
    ATTENTION(LEVEL, i8, MAC_I8_PAIRS)              \
    void attn_##LEVEL##_fill(struct cpu_kernels *k) \
    {                                               \
        k->qk[W_F32] = qk_f32_##LEVEL;              \
        k->qk[W_F16] = qk_f16_##LEVEL;              \
        k->qk[W_BF16] = qk_bf16_##LEVEL;            \
        k->qk[W_I8] = qk_i8_##LEVEL;                \
        k->pv[W_F32] = pv_f32_##LEVEL;              \
        k->pv[W_F16] = pv_f16_##LEVEL;              \
        k->pv[W_BF16] = pv_bf16_##LEVEL;            \
        k->pv[W_I8] = pv_i8_##LEVEL;                \
    }
