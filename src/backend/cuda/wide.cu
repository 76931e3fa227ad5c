/* wide.cu - products on Hopper's warpgroup instructions: y[m, rows] = x[m, cols] W^T, bf16 or e4m3.
 *
 * A block makes tiles of BM rows of x times N rows of W, one after the other; K is walked in order
 * into one accumulator, so bits are those of every other product here (cuda.h) whatever the tile.
 * One thread asks the tensor copy engine for boxes of x and W through a ring in shared memory;
 * each warpgroup that multiplies owns 64 rows of x and all N of W. The ring fills across tiles, so
 * the next one's operands arrive while this one is written, and with the first tile's W before the
 * kernel that made x has ended.
 *
 * The blocks of a cluster have the same tile of W and neighbouring ones of x. Each brings its share
 * of W and hands it to all of them, so that W is read from L2 once for the cluster; a slot of the
 * ring is free when the warps of all of them are done with it.
 *
 * Few rows of x: time is that of W's bytes. A small W is shared out equally, a tile for every
 * multiprocessor; a large one goes in small tiles, so that what is read is not waiting for what is
 * written. Many rows: 128 x 256, where operands cost shared memory and L2 the least.
 *
 * A gated tile of W is half of gate and half of up, so that a thread has both of an output.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/wgmma.cuh"

#include <math.h>

__host__ __device__ __forceinline__ static int up(int n, int d)
{
    return (n + d - 1) / d;
}

static const int SHARED_MAX = 227 * 1024, RING_MAX = 16;

/* GROUPS: of 64 rows of x. BOXES: of 128 bytes of K in a stage. CLUSTER: blocks. */
template <bool E4M3_, int GROUPS_, int N_, int BOXES_, int CLUSTER_> struct wide_config {
    static const bool E4M3 = E4M3_;
    static const int GROUPS = GROUPS_, N = N_, BOXES = BOXES_, CLUSTER = CLUSTER_;
    static const int BM = 64 * GROUPS, THREADS = 128 * (GROUPS + 1);
    static const int BAND = 2048 / BM / CLUSTER; /* tiles of x that stay in L2 */
    static const int BOX = E4M3 ? 128 : 64;      /* columns */
    static const int X_BYTES = BM * ROW, W_BYTES = N * ROW, STAGE = BOXES * (X_BYTES + W_BYTES);
    /* Eights of columns that a warp writes at once, and where it turns them into rows. */
    static const int EIGHTS = N % 64 == 0 ? 8 : N % 32 == 0 ? 4 : 2;
    static const int OUT_STRIDE = EIGHTS * 16 + 16, OUT_BYTES = 16 * OUT_STRIDE;
    static const int FIT =
        (SHARED_MAX - 2048 - (E4M3 ? 2 * GROUPS * N * 4 : 0) - GROUPS * 4 * OUT_BYTES) / STAGE;
    static const int STAGES = FIT < RING_MAX ? FIT : RING_MAX;
    static const int SHARED = 1024 + STAGES * STAGE + GROUPS * 4 * OUT_BYTES;
    static_assert(STAGES >= 3 && N / CLUSTER % 8 == 0 && N / 8 % EIGHTS == 0, "");
};

/* Where a block's tile begins in x, W and the output; rows from x_end on are not its own. */
struct tile {
    int x, x_end, w, group;
};

/* A cluster's tiles: the t-th, and every n_clusters-th after it. */
template <class C> struct tile_walk {
    const narrow_args &a;
    int t, group, passed; /* passed: tiles of the groups before `group` */

    __device__ tile_walk(const narrow_args &args)
        : a(args), t(blockIdx.x / C::CLUSTER), group(0), passed(0)
    {
    }

    /* A band of x stays in L2 while all of W passes by. */
    __device__ __forceinline__ tile place(int at, int n_x, int n_w, int first, int end) const
    {
        int band = at / (C::BAND * n_w), in = at % (C::BAND * n_w);
        int band_x = min(C::BAND, n_x - band * C::BAND);
        int x = (band * C::BAND + in % band_x) * C::CLUSTER + (int)blockIdx.x % C::CLUSTER;
        return {first + x * C::BM, end, in / band_x * C::N, group};
    }

    __device__ bool next(tile &out)
    {
        const int n_w = up(a.rows, C::N), now = t;
        t += gridDim.x / C::CLUSTER;
        if (!a.group_start) {
            int n_x = up(a.m, C::BM * C::CLUSTER);
            if (now >= n_x * n_w)
                return false;
            out = place(now, n_x, n_w, 0, a.m);
            return true;
        }
        for (; group < a.n_groups; group++) {
            int first = a.group_start[group], end = a.group_start[group + 1];
            int n_x = up(end - first, C::BM * C::CLUSTER);
            if (now - passed < n_x * n_w) {
                out = place(now - passed, n_x, n_w, first, end);
                return true;
            }
            passed += n_x * n_w;
        }
        return false;
    }
};

struct wide_ring {
    uint64_t full[RING_MAX], empty[RING_MAX];
};

/* A box of W to the same place in all blocks of the cluster, and word to their barriers. */
template <int CLUSTER>
__device__ __forceinline__ void w_copy(unsigned to, const CUtensorMap *map, int col, int row,
                                       int group, unsigned barrier)
{
    if (CLUSTER > 1)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
            ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
            "l"(map), "r"(col), "r"(row), "r"(group), "r"(barrier), "h"((short)((1 << CLUSTER) - 1))
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
            "l"(map), "r"(col), "r"(row), "r"(group), "r"(barrier)
            : "memory");
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
}

__device__ __forceinline__ void arrive_at(uint64_t *b, int rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}\n" ::"r"(shared_address(b)),
                 "r"(rank)
                 : "memory");
}

/* The one thread that asks for boxes. */
template <class C> struct wide_asker {
    const narrow_args &a;
    const CUtensorMap *w_map, *x_map;
    unsigned ring;
    wide_ring &b;
    int n_stages, rank, x_box; /* x_box: rows of a box of x */

    /* This block's share of a tile of W: the first half of a gated one is of gate, the other of up.
     */
    __device__ __forceinline__ void ask_w(int slot, int k, const tile &at) const
    {
        const int part = C::N / C::CLUSTER, first = rank * part, half = C::N / 2;
        const unsigned to = ring + slot * C::STAGE + C::BOXES * C::X_BYTES;
        const unsigned barrier = shared_address(b.full + slot);
        barrier_expect(b.full + slot, C::BOXES * (C::W_BYTES + x_box * ROW));
        if (!a.gated) {
#pragma unroll
            for (int i = 0; i < C::BOXES; i++)
                w_copy<C::CLUSTER>(to + i * C::W_BYTES + first * ROW, w_map,
                                   (k * C::BOXES + i) * C::BOX, at.w + first, at.group, barrier);
            return;
        }
        for (int r = first; r < first + part; r += half) {
            int row = at.w / 2 + (r < half ? r : a.rows / 2 + r - half);
#pragma unroll
            for (int i = 0; i < C::BOXES; i++)
                w_copy<C::CLUSTER>(to + i * C::W_BYTES + r * ROW, w_map,
                                   (k * C::BOXES + i) * C::BOX, row, at.group, barrier);
        }
    }

    __device__ __forceinline__ void ask_x(int slot, int k, const tile &at) const
    {
#pragma unroll
        for (int i = 0; i < C::BOXES; i++)
            box_copy_at(ring + slot * C::STAGE + i * C::X_BYTES, x_map, (k * C::BOXES + i) * C::BOX,
                        at.x, shared_address(b.full + slot));
    }

    __device__ void run() const
    {
        tile_walk<C> walk(a);
        tile at;
        int slot = 0, phase = 1, ahead = 0; /* ahead: stages whose W was asked for early */
        if (a.group_start)
            wait_for_dependencies();
        bool more = walk.next(at);
        if (!a.group_start) {
            ahead = more ? min(C::STAGES, n_stages) : 0;
            for (int k = 0; k < ahead; k++)
                ask_w(k, k, at);
            wait_for_dependencies();
        }
        asm volatile("fence.proxy.async.global;" ::: "memory");
        for (; more; more = walk.next(at))
            for (int k = 0; k < n_stages; k++) {
                if (ahead) {
                    ahead--;
                } else {
                    barrier_wait(b.empty + slot, phase);
                    ask_w(slot, k, at);
                }
                ask_x(slot, k, at);
                if (++slot == C::STAGES) {
                    slot = 0;
                    phase ^= 1;
                }
            }
    }
};

/* v[i] = activate(v[i]) * u[i]: the kind is asked for once, so that eights overlap. */
template <int KIND> __device__ __forceinline__ void gate8_as(bf16x8 &v, const bf16x8 &u)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 g = __bfloat1622float2(v.v[i]), by = __bfloat1622float2(u.v[i]);
        v.v[i] = __floats2bfloat162_rn(activate(KIND, g.x) * by.x, activate(KIND, g.y) * by.y);
    }
}

__device__ __forceinline__ void gate8(int kind, bf16x8 &v, const bf16x8 &u)
{
    switch (kind) {
    case 0:
        return gate8_as<0>(v, u);
    case 1:
        return gate8_as<1>(v, u);
    case 2:
        return gate8_as<2>(v, u);
    case 3:
        return gate8_as<3>(v, u);
    default:
        return gate8_as<4>(v, u);
    }
}

/* What a tile becomes: a warp's sixteen rows of x, turned from registers into rows of y. */
template <class C> struct wide_writer {
    const narrow_args &a;
    unsigned char *stage; /* this warp's */
    int row, end, col, group, out_cols;
    float x_scale[2], w_scale[2];

    /* Eight outputs from column c on, as bf16. */
    __device__ __forceinline__ void add_bias(bf16x8 &v, int c) const
    {
        const float *bias = a.bias + (size_t)group * a.rows + c;
        bf16 *e = (bf16 *)&v;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (c + i < a.rows)
                e[i] = to_bf(to_f(e[i]) + bias[i]);
    }

    __device__ __forceinline__ float4 added(float4 h, const bf16 *y) const
    {
        return make_float4(
            __fmaf_rn(to_f(y[0]), a.add_scale, h.x), __fmaf_rn(to_f(y[1]), a.add_scale, h.y),
            __fmaf_rn(to_f(y[2]), a.add_scale, h.z), __fmaf_rn(to_f(y[3]), a.add_scale, h.w));
    }

    /* Columns that are not there, or rows that are not aligned. */
    __device__ void store_some(const bf16x8 &v, size_t at, int n) const
    {
        const bf16 *e = (const bf16 *)&v;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < n && a.residual)
                a.residual[at + i] = __fmaf_rn(to_f(e[i]), a.add_scale, a.residual[at + i]);
            else if (i < n)
                ((bf16 *)a.y)[at + i] = e[i];
    }

    __device__ __forceinline__ void store(const bf16x8 &v, int r, int c) const
    {
        size_t at = (size_t)r * out_cols + c;
        if (out_cols % 8) {
            store_some(v, at, out_cols - c);
        } else if (a.residual) {
            float4 *h = (float4 *)(a.residual + at), lo = h[0], hi = h[1];
            h[0] = added(lo, (const bf16 *)&v);
            h[1] = added(hi, (const bf16 *)&v + 4);
        } else {
            *(bf16x8 *)((bf16 *)a.y + at) = v;
        }
    }

    /* EIGHTS of columns from c on lie in `stage`; gated, those of gate and of up in turn. */
    template <bool GATED> __device__ __forceinline__ void flush(int c) const
    {
        const int lane = threadIdx.x % 32, n = C::EIGHTS / (GATED ? 2 : 1), items = 16 * n;
#pragma unroll
        for (int at = 0; at < items; at += 32) {
            int i = at + lane, r = i / n, e = i % n, out = (GATED ? c / 2 : c) + e * 8;
            if (row + r >= end || out >= out_cols || i >= items)
                continue;
            const bf16x8 *from = (const bf16x8 *)(stage + r * C::OUT_STRIDE);
            bf16x8 v = from[GATED ? 2 * e : e];
            if (a.bias)
                add_bias(v, out);
            if (GATED) {
                bf16x8 u = from[2 * e + 1];
                if (a.bias)
                    add_bias(u, out + out_cols);
                gate8(a.act, v, u);
            }
            store(v, row + r, out);
        }
    }

    template <bool GATED> __device__ __forceinline__ void run_bf16(const float (&d)[C::N / 2]) const
    {
        const unsigned to = shared_address(stage) + threadIdx.x % 16 * C::OUT_STRIDE;
#pragma unroll
        for (int i = 0; i < C::N / 8; i++) {
            const int j = GATED ? i / 2 + i % 2 * (C::N / 16) : i;
            asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(
                             to + i % C::EIGHTS * 16),
                         "r"(pack_bf16(d[4 * j], d[4 * j + 1])),
                         "r"(pack_bf16(d[4 * j + 2], d[4 * j + 3]))
                         : "memory");
            if (i % C::EIGHTS < C::EIGHTS - 1)
                continue;
            __syncwarp();
            flush<GATED>(col + (i + 1 - C::EIGHTS) * 8);
            __syncwarp();
        }
    }

    /* Half as many columns of f32 lie in `stage`. */
    __device__ __forceinline__ void flush_f32(int c) const
    {
        const int lane = threadIdx.x % 32, n = C::EIGHTS * 4;
#pragma unroll 4
        for (int i = lane; i < 16 * n; i += 32) {
            int r = row + i / n, out = c + i % n;
            if (r >= end || out >= a.rows)
                continue;
            float v = ((const float *)(stage + i / n * C::OUT_STRIDE))[i % n];
            v = (v + (a.bias ? a.bias[(size_t)group * a.rows + out] : 0.f)) * a.scale;
            ((float *)a.y)[(size_t)r * a.rows + out] =
                a.softcap != 0 ? a.softcap * tanhf(v / a.softcap) : v;
        }
    }

    __device__ __forceinline__ void run_f32(const float (&d)[C::N / 2]) const
    {
        const int lane = threadIdx.x % 32, at_once = C::EIGHTS / 2;
        unsigned char *to = stage + lane / 4 * C::OUT_STRIDE + lane % 4 * 8;
#pragma unroll
        for (int j = 0; j < C::N / 8; j++) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(float2 *)(to + h * 8 * C::OUT_STRIDE + j % at_once * 32) =
                    make_float2(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]);
            if (j % at_once < at_once - 1)
                continue;
            __syncwarp();
            flush_f32(col + (j + 1 - at_once) * 8);
            __syncwarp();
        }
    }

    /* The row of W, of its group, that column c of the tile is. */
    __device__ __forceinline__ int w_row(int c) const
    {
        const int half = C::N / 2;
        return !a.gated ? col + c : col / 2 + (c < half ? c : out_cols + c - half);
    }

    /* Before the tile's products, so that they hide the time that it takes: this thread's rows'
     * scales, and its share of the columns'. */
    __device__ __forceinline__ void load_scales()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = row + (int)threadIdx.x % 32 / 4 + 8 * h;
            x_scale[h] = r < end ? a.x_scale[r] : 0.f;
            int c = threadIdx.x % 128 + 128 * h, w = c < C::N ? w_row(c) : a.rows;
            w_scale[h] = w < a.rows ? a.w_scale[(size_t)group * a.rows + w] : 0.f;
        }
    }

    /* e4m3: accumulators become values. `columns` are the warpgroup's, of every other tile. */
    __device__ __forceinline__ void scale(float (&d)[C::N / 2], float *columns) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++)
            if ((int)threadIdx.x % 128 + 128 * h < C::N)
                columns[threadIdx.x % 128 + 128 * h] = w_scale[h];
        asm volatile("bar.sync %0, 128;" ::"r"((int)threadIdx.x / 128 + 1) : "memory");
#pragma unroll
        for (int j = 0; j < C::N / 8; j++) {
            float2 w = *(const float2 *)(columns + j * 8 + threadIdx.x % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float *v = d + 4 * j + 2 * h;
                v[0] = __fmul_rn(__fmul_rn(v[0], x_scale[h]), w.x);
                v[1] = __fmul_rn(__fmul_rn(v[1], x_scale[h]), w.y);
            }
        }
    }

    __device__ __forceinline__ void run(float (&d)[C::N / 2], float *columns) const
    {
        if (C::E4M3)
            scale(d, columns);
        if (a.out_f32)
            run_f32(d);
        else if (a.gated)
            run_bf16<true>(d);
        else
            run_bf16<false>(d);
    }
};

/* A warpgroup that multiplies. */
template <class C> struct wide_multiplier {
    const narrow_args &a;
    unsigned ring;
    unsigned char *out;
    float *scales; /* [2][GROUPS][N]: of W's rows, of this tile and the one before */
    wide_ring &b;
    int n_stages, wg;

    /* This warp is done with a slot: word to all blocks that fill it. */
    __device__ __forceinline__ void release(int slot) const
    {
        const int i = threadIdx.x % 32;
        if (C::CLUSTER > 1 && i < C::CLUSTER)
            arrive_at(b.empty + slot, i);
        else if (C::CLUSTER == 1 && i == 0)
            barrier_arrive(b.empty + slot);
    }

    __device__ __forceinline__ void stage(float (&d)[C::N / 2], int slot, bool first) const
    {
        unsigned x = ring + slot * C::STAGE + wg * 64 * ROW;
        unsigned w = ring + slot * C::STAGE + C::BOXES * C::X_BYTES;
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < C::BOXES; i++) {
            uint64_t xd = box_descriptor(x + i * C::X_BYTES);
            uint64_t wd = box_descriptor(w + i * C::W_BYTES);
#pragma unroll
            for (int s = 0; s < 4; s++) /* 32 bytes of K each */
                wgmma<C::N, C::E4M3>::run(d, xd + 2 * s, wd + 2 * s, !first || i || s);
        }
        wgmma_commit();
    }

    __device__ void run() const
    {
        tile_walk<C> walk(a);
        tile at;
        int slot = 0, phase = 0, odd = 0;
        wait_for_dependencies();
        while (walk.next(at)) {
            const int warp = threadIdx.x / 32 % 4;
            wide_writer<C> to = {a,
                                 out + (wg * 4 + warp) * C::OUT_BYTES,
                                 at.x + wg * 64 + warp * 16,
                                 at.x_end,
                                 at.w,
                                 at.group,
                                 a.gated ? a.rows / 2 : a.rows};
            float d[C::N / 2];
            int before = 0;
            if (C::E4M3)
                to.load_scales();
            for (int k = 0; k < n_stages; k++) {
                barrier_wait(b.full + slot, phase);
                stage(d, slot, k == 0);
                wgmma_wait<1>();
                if (k)
                    release(before);
                before = slot;
                if (++slot == C::STAGES) {
                    slot = 0;
                    phase ^= 1;
                }
            }
            wgmma_wait<0>();
            release(before);
            to.run(d, scales + (odd * C::GROUPS + wg) * C::N);
            odd ^= 1;
        }
    }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define IN_CLUSTERS_OF(n) /* refused there, and the kernel is empty */
#else
#define IN_CLUSTERS_OF(n) __cluster_dims__(n, 1, 1)
#endif

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) IN_CLUSTERS_OF(C::CLUSTER)
    wide_kernel(narrow_args a, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ CUtensorMap x_map, int x_box)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char raw_shared[];
    __shared__ wide_ring b;
    __shared__ __align__(16) float scales[C::E4M3 ? 2 * C::GROUPS * C::N : 1];
    const int wg = threadIdx.x / 128, rank = blockIdx.x % C::CLUSTER;
    const int n_stages = up(a.cols, C::BOX * C::BOXES);
    const unsigned pad = (1024 - shared_address(raw_shared) % 1024) % 1024;
    const unsigned ring = shared_address(raw_shared) + pad;
    if (threadIdx.x == 0) {
        for (int i = 0; i < C::STAGES; i++) {
            barrier_init(b.full + i, 1);
            barrier_init(b.empty + i, C::GROUPS * 4 * C::CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\n"
                     "fence.proxy.async.shared::cta;" ::
                         : "memory");
    }
    launch_dependents();
    if (C::CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    if (wg == C::GROUPS) {
        if (C::GROUPS == 2)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % 128 == 0) {
            wide_asker<C> in = {a, &w_map, &x_map, ring, b, n_stages, rank, x_box};
            in.run();
        }
    } else {
        if (C::GROUPS == 2)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        wide_multiplier<C> m = {a,        ring, raw_shared + pad + C::STAGES * C::STAGE, scales, b,
                                n_stages, wg};
        m.run();
    }
    __syncwarp();
    if (C::CLUSTER > 1)
        cluster_sync(); /* others may still write here */
#endif
}

/* (column, row, group) */
static bool w_tensor_map(CUtensorMap *map, const narrow_args &a, int box_rows)
{
    const int size = a.w_scale ? 1 : 2;
    const cuuint64_t rows = a.rows, line = (cuuint64_t)a.cols * size;
    const cuuint64_t dim[3] = {(cuuint64_t)a.cols, rows, a.group_start ? a.n_groups : 1u};
    const cuuint64_t stride[2] = {line, line * rows};
    const cuuint32_t box[3] = {(cuuint32_t)(ROW / size), (cuuint32_t)box_rows, 1};
    return tensor_map(map, a.w, a.w_scale != NULL, 3, dim, stride, box);
}

template <class C> static bool wide_launch(cudaStream_t s, const narrow_args &a, int n_sms)
{
    static int most; /* clusters at once */
    CUtensorMap w_map, x_map;
    if (!most) {
        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {C::CLUSTER, 1, 1};
        cudaLaunchConfig_t c = {};
        c.gridDim = dim3(n_sms / C::CLUSTER * C::CLUSTER);
        c.blockDim = dim3(C::THREADS);
        c.dynamicSmemBytes = C::SHARED;
        c.attrs = &cluster;
        c.numAttrs = 1;
        cudaFuncSetAttribute(wide_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             C::SHARED);
        if (cudaOccupancyMaxActiveClusters(&most, wide_kernel<C>, &c) != cudaSuccess)
            return false;
    }
    const int x_rows = up(a.m, 8) * 8, x_box = x_rows < C::BM ? x_rows : C::BM;
    const int w_box = a.gated && C::CLUSTER == 1 ? C::N / 2 : C::N / C::CLUSTER;
    if (!w_tensor_map(&w_map, a, w_box) || !rows_map(&x_map, a.x, a.m, a.cols, C::E4M3, x_box))
        return false;
    int n_x = up(a.m, C::BM * C::CLUSTER), n_w = up(a.rows, C::N);
    int clusters = a.group_start || n_x > most / n_w ? most : n_x * n_w;
    launch_after(s, wide_kernel<C>, dim3(clusters * C::CLUSTER), dim3(C::THREADS), C::SHARED, a,
                 w_map, x_map, x_box);
    return true;
}

struct wide_tile {
    int bm, n, cluster;
    bool (*bf16)(cudaStream_t, const narrow_args &, int);
    bool (*e4m3)(cudaStream_t, const narrow_args &, int);
};

template <int GROUPS, int N, int BOXES, int CLUSTER> static constexpr wide_tile tile_of()
{
    return {64 * GROUPS, N, CLUSTER, wide_launch<wide_config<false, GROUPS, N, BOXES, CLUSTER>>,
            wide_launch<wide_config<true, GROUPS, N, BOXES, CLUSTER>>};
}

static const wide_tile wide_tile_list[] = {
    tile_of<2, 256, 1, 2>(), tile_of<2, 256, 1, 1>(), tile_of<2, 192, 1, 2>(),
    tile_of<2, 128, 1, 2>(), tile_of<2, 128, 1, 1>(), tile_of<2, 96, 1, 2>(),
    tile_of<1, 224, 1, 1>(), tile_of<1, 128, 1, 2>(), tile_of<1, 128, 1, 1>(),
    tile_of<1, 96, 1, 2>(),  tile_of<1, 64, 2, 2>(),  tile_of<1, 64, 2, 1>(),
    tile_of<1, 48, 2, 1>(),  tile_of<1, 32, 2, 1>(),
};

extern "C" int wide_tiles(void)
{
    return (int)(sizeof wide_tile_list / sizeof *wide_tile_list);
}

/* Rows of operands that the busiest multiprocessor brings: that orders tiles as their times do,
 * unless reading W takes longer, a row of it from memory as long as 3.5 from L2. Then what counts
 * is how soon the last tile is written and how many begin. Where that is equal too, rows that come
 * from L2 decide; more of them if clusters have tiles of x that are not there. */
static double tile_cost(const wide_tile &t, const narrow_args &a, int n_sms)
{
    int groups = !a.group_start ? 1 : a.m < a.n_groups ? a.m : a.n_groups, m = up(a.m, groups);
    int n_x = up(m, t.bm * t.cluster) * t.cluster;
    double blocks = (double)groups * n_x * up(a.rows, t.n);
    double rounds = ceil(blocks / (n_sms / t.cluster * t.cluster));
    int x_rows = up(m, 8) * 8 < t.bm ? up(m, 8) * 8 : t.bm;
    double l2 = blocks * (x_rows + (double)t.n / t.cluster) / n_sms;
    double read = a.group_start || a.w_scale ? 0 : 3.5 * a.rows / n_sms; /* measured with bf16 */
    return fmax(rounds * (x_rows + t.n), read) + 0.1 * t.n + 2 * rounds +
           0.01 * l2 * n_x / up(m, t.bm);
}

extern "C" bool launch_wide(cuda_stream s, const struct narrow_args *a, int n_sms, int tile)
{
    double least = INFINITY;
    for (int i = 0, any = tile < 0; any && i < wide_tiles(); i++) {
        double cost = tile_cost(wide_tile_list[i], *a, n_sms);
        if (cost < least) {
            least = cost;
            tile = i;
        }
    }
    const wide_tile &t = wide_tile_list[tile];
    return (a->w_scale ? t.e4m3 : t.bf16)(s, *a, n_sms);
}
