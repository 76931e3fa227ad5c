/* tma.cuh - what products share: the tensor copy engine, its barriers, its maps.
 *
 * A box is some rows of 128 bytes; in shared memory their sixteens of bytes are swizzled by the row
 * (chunk c of row r lies at c ^ r % 8), which keeps ldmatrix and wgmma free of bank conflicts. What
 * is outside of a matrix comes as zeros.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BACKEND_CUDA_TMA_CUH
#define SL_BACKEND_CUDA_TMA_CUH

#include "backend/cuda/common.cuh"

#include <cuda.h>
#include <cudaTypedefs.h>

static const int ROW = 128; /* bytes of a box's rows */

__device__ __forceinline__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void barrier_init(uint64_t *b, int arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barrier_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t *b, int phase)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra again;\n"
                 "}\n" ::"r"(shared_address(b)),
                 "r"(phase)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

/* The copy engine brings the box at (row, col) and tells the barrier. */
__device__ __forceinline__ void box_copy_at(unsigned to, const CUtensorMap *map, int col, int row,
                                            unsigned barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(col), "r"(row), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void box_copy(void *to, const CUtensorMap *map, int col, int row,
                                         uint64_t *b)
{
    box_copy_at(shared_address(to), map, col, row, shared_address(b));
}

__device__ __forceinline__ void box_copy_3d(void *to, const CUtensorMap *map, int col, int row,
                                            int plane, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
                 "l"(map), "r"(col), "r"(row), "r"(plane), "r"(shared_address(b))
                 : "memory");
}

/* A box that has the whole of the first three dimensions. */
__device__ __forceinline__ void box_copy_4d(void *to, const CUtensorMap *map, int at, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %2, %2, %3}], [%4];" ::"r"(shared_address(to)),
                 "l"(map), "r"(0), "r"(at), "r"(shared_address(b))
                 : "memory");
}

/* A map of `n_dims` dimensions, the innermost one contiguous and in boxes of 128 bytes.
 * stride[i]: bytes from one index of dimension i + 1 to the next. */
static inline bool tensor_map(CUtensorMap *map, const void *data, bool bytes, int n_dims,
                              const cuuint64_t *dim, const cuuint64_t *stride,
                              const cuuint32_t *box)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    const cuuint32_t step[5] = {1, 1, 1, 1, 1};
    if (!encode &&
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                         cudaEnableDefault, &found) != cudaSuccess)
        return false;
    return encode(map, bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  (cuuint32_t)n_dims, (void *)data, dim, stride, box, step,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Of a matrix [rows, cols] of bf16 or bytes, in boxes of box_rows. */
static inline bool rows_map(CUtensorMap *map, const void *data, int rows, int cols, bool bytes,
                            int box_rows)
{
    int size = bytes ? 1 : 2;
    cuuint64_t dim[2] = {(cuuint64_t)cols, (cuuint64_t)rows}, stride = (cuuint64_t)cols * size;
    cuuint32_t box[2] = {(cuuint32_t)(ROW / size), (cuuint32_t)box_rows};
    return tensor_map(map, data, bytes, 2, dim, &stride, box);
}

#endif
