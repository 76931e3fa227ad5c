/* philox.h - counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
 *
 * No state: the same key and counter give the same four words on every machine, so a draw can be
 * repeated, skipped or made out of order. The key is the request's seed; the counter says which
 * draw it is.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_CORE_PHILOX_H
#define SL_CORE_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__ /* devices draw too */
#define PHILOX_FN static __host__ __device__ inline
#else
#define PHILOX_FN static inline
#endif

/* Draws for different purposes at one position must not be correlated. */
enum philox_purpose {
    PHILOX_TOKEN,
    PHILOX_SEED,
    PHILOX_DRAFT,   /* a draft's own draw, where it must not be coupled to the target's */
    PHILOX_ACCEPT,  /* whether a draft stands */
    PHILOX_RESIDUAL /* what stands instead */
};

PHILOX_FN void philox4x32(const uint32_t ctr[4], uint64_t seed, uint32_t out[4])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1: the paper's Weyl sequence */
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

PHILOX_FN uint64_t philox_u64(uint64_t seed, uint64_t position, uint32_t choice,
                              enum philox_purpose purpose)
{
    uint32_t ctr[4] = {(uint32_t)position, (uint32_t)(position >> 32), choice, (uint32_t)purpose};
    uint32_t out[4];
    philox4x32(ctr, seed, out);
    return (uint64_t)out[1] << 32 | out[0];
}

/* 53 random bits: as many as a double holds. */
PHILOX_FN uint64_t philox_bits53(uint64_t seed, uint64_t position, uint32_t choice,
                                 enum philox_purpose purpose)
{
    return philox_u64(seed, position, choice, purpose) >> 11;
}

#endif
