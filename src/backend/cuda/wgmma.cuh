/* wgmma.cuh - a warpgroup's matrix instructions: d[64, N] += a[64, k] b[N, k]^T, both in shared
 * memory as boxes of tma.cuh, k = 32 bytes of a row: 16 bf16 or 32 e4m3.
 *
 * Thread t of the group has, of each eight columns j, d[4 j + 2 h + i]: row t / 32 * 16 + t / 4 % 8
 * + 8 h, column 8 j + t % 4 * 2 + i.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_WGMMA_CUH
#define SL_BACKEND_CUDA_WGMMA_CUH

#include "backend/cuda/tma.cuh"

/* Of a box at `address`, whose eights of rows are `stride` bytes apart. `leading`: bytes from one
 * box to the next where columns are what the product keeps. */
__device__ __forceinline__ uint64_t box_descriptor(unsigned address, int leading = 16,
                                                   int stride = 1024)
{
    return (uint64_t)(address >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

/* Of the few rows of a first operand of which all lie in eights of sixteen bytes: chunk c of row r
 * at c * `pitch` + r * 16. Rows that are not there are what follows, once for each eight. */
__device__ __forceinline__ uint64_t few_descriptor(unsigned address, int pitch)
{
    return (uint64_t)(address >> 4) | (uint64_t)(pitch >> 4) << 16;
}

__device__ __forceinline__ void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N commits are under way. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* The first `add` of a sum may be false: what d holds is nothing. */
template <int N, bool E4M3> struct wgmma;

#define WGMMA_REGS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_REGS_16 WGMMA_REGS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_REGS_24 WGMMA_REGS_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define WGMMA_REGS_32 WGMMA_REGS_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_REGS_48 \
    WGMMA_REGS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_REGS_64 \
    WGMMA_REGS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_REGS_96                                                                             \
    WGMMA_REGS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82," \
                  "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_REGS_112 \
    WGMMA_REGS_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_REGS_128                                                                            \
    WGMMA_REGS_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126," \
                   "%127"

#define WGMMA_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define WGMMA_D_8 WGMMA_D4(0), WGMMA_D4(4)
#define WGMMA_D_16 WGMMA_D_8, WGMMA_D4(8), WGMMA_D4(12)
#define WGMMA_D_24 WGMMA_D_16, WGMMA_D4(16), WGMMA_D4(20)
#define WGMMA_D_32 WGMMA_D_24, WGMMA_D4(24), WGMMA_D4(28)
#define WGMMA_D_48 WGMMA_D_32, WGMMA_D4(32), WGMMA_D4(36), WGMMA_D4(40), WGMMA_D4(44)
#define WGMMA_D_64 WGMMA_D_48, WGMMA_D4(48), WGMMA_D4(52), WGMMA_D4(56), WGMMA_D4(60)
#define WGMMA_D_96                                                                    \
    WGMMA_D_64, WGMMA_D4(64), WGMMA_D4(68), WGMMA_D4(72), WGMMA_D4(76), WGMMA_D4(80), \
        WGMMA_D4(84), WGMMA_D4(88), WGMMA_D4(92)
#define WGMMA_D_112 WGMMA_D_96, WGMMA_D4(96), WGMMA_D4(100), WGMMA_D4(104), WGMMA_D4(108)
#define WGMMA_D_128 WGMMA_D_112, WGMMA_D4(112), WGMMA_D4(116), WGMMA_D4(120), WGMMA_D4(124)

/* REGS = N / 2; A, B and P number the operands behind them. */
#define WGMMA_OF(N, REGS, E4M3, KIND, TAIL, A, B, P)                                         \
    template <> struct wgmma<N, E4M3> {                                                      \
        static __device__ __forceinline__ void run(float (&d)[REGS], uint64_t a, uint64_t b, \
                                                   int add)                                  \
        {                                                                                    \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N KIND " {" WGMMA_REGS_##REGS  \
                         "}, %" #A ", %" #B ", p, 1, 1" TAIL ";\n}\n"                        \
                         : WGMMA_D_##REGS                                                    \
                         : "l"(a), "l"(b), "r"(add));                                        \
        }                                                                                    \
    };
#define WGMMA(N, REGS, A, B, P)                                      \
    WGMMA_OF(N, REGS, false, "k16.f32.bf16.bf16", ", 0, 0", A, B, P) \
    WGMMA_OF(N, REGS, true, "k32.f32.e4m3.e4m3", "", A, B, P)

WGMMA(16, 8, 8, 9, 10)
WGMMA(32, 16, 16, 17, 18)
WGMMA(48, 24, 24, 25, 26)
WGMMA(64, 32, 32, 33, 34)
WGMMA(96, 48, 48, 49, 50)
WGMMA(128, 64, 64, 65, 66)
WGMMA(192, 96, 96, 97, 98)
WGMMA(224, 112, 112, 113, 114)
WGMMA(256, 128, 128, 129, 130)

/* a in registers, as ldmatrix would lay its 64 x 16 bf16 out; b[16, N], its rows of N. */
template <int N> struct wgmma_held;

#define WGMMA_HELD(N, REGS, A0, A1, A2, A3, B, P)                                                 \
    template <> struct wgmma_held<N> {                                                            \
        static __device__ __forceinline__ void run(float (&d)[REGS], const unsigned (&a)[4],      \
                                                   uint64_t b, int add)                           \
        {                                                                                         \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                         \
                         "wgmma.mma_async.sync.aligned.m64n" #N                                   \
                         "k16.f32.bf16.bf16 {" WGMMA_REGS_##REGS                                  \
                         "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 1;\n}\n" \
                         : WGMMA_D_##REGS                                                         \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));         \
        }                                                                                         \
    };

WGMMA_HELD(64, 32, 32, 33, 34, 35, 36, 37)
WGMMA_HELD(128, 64, 64, 65, 66, 67, 68, 69)

#endif
