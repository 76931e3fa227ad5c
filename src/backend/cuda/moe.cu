/* moe.cu - mixtures of experts: each row's experts, rows in order of expert, and the products of
 * all experts in one launch.
 *
 * A pair is a row and one of its experts. Pairs are numbered by expert, then by row; each expert's
 * are cut into tiles of a few rows, so that no expert is padded to the largest. How many tiles
 * there are only the device knows: blocks take what is there, nothing waits for the host.
 *
 * Kinds of product kernel, all with the same bits (cuda.h: K in steps of 16 into one accumulator).
 * few_kernel is bound by the weights' bytes: a warp owns sixteen rows of an expert's matrix and
 * streams them through a ring of its own. many_kernel is bound by multiplications: a block makes
 * MANY_ROWS x 128 outputs; on Hopper wide.cu takes its place. All round as the dense products do:
 * gate and up, then the activation, then an expert's output, then the weighted sum, experts in
 * ascending order, the shared one last.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/common.cuh"

static const int FEW_WARPS = 4, FEW_RING = 48 << 10; /* bytes of a warp */
static const int MANY_ROWS = 128, MANY_STAGES = 3, MANY_STAGE = 2 * 128 * 128;
static const int ROUTE_WARPS = 8, SORT_THREADS = 1024;
static const int LONE_EXPERTS = 32;
static const int FUSED_PAIRS = 1024; /* so few are sorted by the block that routes them */

/* ---- routing ----------------------------------------------------------------------------------
 */

/* By one warp: lane l has experts l, l + 32, ... Probabilities are not negative, so their bits
 * compare as they do; one more than them, so that 0 is an expert that cannot be chosen. */
template <int N> struct router {
    float p[N];
    unsigned taken;

    /* False: NaN is among them. */
    __device__ bool softmax(const float *logit, int n)
    {
        const int lane = threadIdx.x % 32;
        float top = -INFINITY, total = 0;
        bool nan = false;
#pragma unroll
        for (int j = 0; j < N; j++) {
            p[j] = j * 32 + lane < n ? logit[j * 32 + lane] : -INFINITY;
            nan = nan || isnan(p[j]);
            top = fmaxf(top, p[j]);
        }
        for (int o = 16; o; o >>= 1)
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
#pragma unroll
        for (int j = 0; j < N; j++) {
            p[j] = expf(__fsub_rn(p[j], top));
            total = __fadd_rn(total, p[j]);
        }
        total = block_sum<32>(total, NULL);
#pragma unroll
        for (int j = 0; j < N; j++) {
            p[j] = __fdiv_rn(p[j], total);
            nan = nan || isnan(p[j]);
        }
        return !__any_sync(0xffffffffu, nan);
    }

    /* The likeliest that is not taken, the lower index of equals. */
    __device__ int best(int n) const
    {
        const int lane = threadIdx.x % 32;
        unsigned most = 0, at = ~0u;
#pragma unroll
        for (int j = 0; j < N; j++) {
            bool there = j * 32 + lane < n && !(taken >> j & 1);
            unsigned v = there ? __float_as_uint(p[j]) + 1 : 0;
            if (v > most) {
                most = v;
                at = j * 32 + lane;
            }
        }
        unsigned top = __reduce_max_sync(0xffffffffu, most);
        return (int)__reduce_min_sync(0xffffffffu, most == top ? at : ~0u);
    }

    /* Takes expert e; its probability. */
    __device__ float take(int e)
    {
        float mine = 0;
#pragma unroll
        for (int j = 0; j < N; j++)
            mine = j == e / 32 ? p[j] : mine;
        if (e % 32 == threadIdx.x % 32)
            taken |= 1u << e / 32;
        return __shfl_sync(0xffffffffu, mine, e % 32);
    }
};

/* Sigmoid of the shared expert's gate, by one warp. */
__device__ float shared_gate(const moe_args &a, int r)
{
    const bf16 *x = (const bf16 *)a.x + (size_t)r * a.hidden, *w = (const bf16 *)a.shared_gate;
    float sum = 0;
    for (int i = threadIdx.x % 32; i < a.hidden; i += 32)
        sum = __fmaf_rn(to_f(x[i]), to_f(w[i]), sum);
    return 1 / (1 + expf(-block_sum<32>(sum, NULL)));
}

/* Row r's experts and their weights, in ascending order of expert. */
template <int N> __device__ void route_row(const moe_args &a, int r)
{
    const int lane = threadIdx.x % 32;
    const float *forced = a.forced ? a.forced + (size_t)r * a.top_k : NULL;
    int at = r * a.top_k;
    if (a.slot[r] < 0) { /* padding visits none */
        for (int k = lane; k < a.top_k; k += 32)
            a.expert[at + k] = -1;
        return;
    }
    if (a.shared_gate) {
        float gate = shared_gate(a, r);
        if (lane == 0)
            a.shared_weight[r] = gate;
    }
    router<N> x;
    x.taken = 0;
    bool valid = x.softmax(a.logits + (size_t)r * a.n_experts, a.n_experts);
    float chosen = 0;
    for (int k = 0; k < a.top_k; k++) {
        int e = !valid ? k : forced && forced[0] >= 0 ? (int)forced[k] : x.best(a.n_experts);
        chosen = __fadd_rn(chosen, x.take(e));
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool mine = x.taken >> j & 1;
        unsigned all = __ballot_sync(0xffffffffu, mine);
        if (mine) {
            int to = at + __popc(all & ((1u << lane) - 1));
            float w = a.renormalize ? __fdiv_rn(x.p[j], chosen) : x.p[j];
            a.expert[to] = j * 32 + lane;
            a.weight[to] = valid ? w : NAN;
        }
        at += __popc(all);
    }
}

/* How many pairs each expert has, where they begin, and its tiles. */
struct counted {
    int count[MOE_EXPERTS_MAX], start[MOE_EXPERTS_MAX], tile[MOE_EXPERTS_MAX], n_tiles;
};

__device__ int scan(int v)
{
    for (int o = 1; o < 32; o *= 2) {
        int before = __shfl_up_sync(0xffffffffu, v, o);
        v += (int)threadIdx.x % 32 >= o ? before : 0;
    }
    return v;
}

__device__ void count_experts(counted &c, const moe_args &a)
{
    for (int e = threadIdx.x; e < a.n_experts; e += blockDim.x)
        c.count[e] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < a.rows * a.top_k; i += blockDim.x)
        if (a.expert[i] >= 0)
            atomicAdd(&c.count[a.expert[i]], 1);
    __syncthreads();
    if (threadIdx.x < 32) {
        int pairs = 0, tiles = 0;
        for (int e = threadIdx.x; e - (int)threadIdx.x < a.n_experts; e += 32) {
            int n = e < a.n_experts ? c.count[e] : 0, t = (n + a.tile_rows - 1) / a.tile_rows;
            int n_to = scan(n), t_to = scan(t);
            if (e < a.n_experts) {
                c.start[e] = pairs + n_to - n;
                c.tile[e] = tiles + t_to - t;
            }
            pairs += __shfl_sync(0xffffffffu, n_to, 31);
            tiles += __shfl_sync(0xffffffffu, t_to, 31);
        }
        c.n_tiles = tiles;
    }
    __syncthreads();
}

__device__ void write_tiles(const counted &c, const moe_args &a, int e)
{
    for (int i = 0, at = c.tile[e]; i < c.count[e]; i += a.tile_rows, at++)
        ((int4 *)a.tile)[at] = make_int4(e, c.start[e] + i, min(a.tile_rows, c.count[e] - i), 0);
}

/* One block: all rows, and their pairs in order of expert. */
template <int N> __global__ void __launch_bounds__(1024) route_and_sort_kernel(moe_args a)
{
    begin();
    __shared__ counted c;
    __shared__ int expert[FUSED_PAIRS];
    const int n_pairs = a.rows * a.top_k;
    a.expert = expert; /* nobody else reads it */
    for (int r = threadIdx.x / 32; r < a.rows; r += blockDim.x / 32)
        route_row<N>(a, r);
    __syncthreads();
    count_experts(c, a);
    for (int e = threadIdx.x; e < a.n_experts; e += blockDim.x)
        write_tiles(c, a, e);
    if (threadIdx.x == 0)
        *a.n_tiles = c.n_tiles;
    for (int i = threadIdx.x; i < n_pairs; i += blockDim.x) {
        int before = 0, e = expert[i];
        for (int j = 0; j < i; j++)
            before += expert[j] == e;
        int at = e < 0 ? -1 : c.start[e] + before;
        a.pair_of[i] = at;
        if (at >= 0)
            a.row_of[at] = i / a.top_k;
    }
}

/* One warp a row. */
template <int N> __global__ void __launch_bounds__(ROUTE_WARPS * 32) route_kernel(moe_args a)
{
    begin();
    int r = blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    if (r < a.rows)
        route_row<N>(a, r);
}

/* Block e finds the pairs of expert e, eight in a row a thread. */
__global__ void __launch_bounds__(SORT_THREADS) sort_kernel(moe_args a)
{
    begin();
    __shared__ counted c;
    __shared__ int of_warp[SORT_THREADS / 32];
    const int e = blockIdx.x, n_pairs = a.rows * a.top_k, warp = threadIdx.x / 32;
    count_experts(c, a);
    if (threadIdx.x == 0) {
        write_tiles(c, a, e);
        a.first[e] = c.start[e];
        if (e == 0)
            *a.n_tiles = c.n_tiles;
        if (e == a.n_experts - 1)
            a.first[e + 1] = c.start[e] + c.count[e];
    }
    for (int first = 0, at = c.start[e]; first < n_pairs; first += SORT_THREADS * 8) {
        int from = first + threadIdx.x * 8, n = 0;
        bool mine[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int expert = from + j < n_pairs ? a.expert[from + j] : -1;
            if (expert < 0 && from + j < n_pairs && e == 0)
                a.pair_of[from + j] = -1;
            mine[j] = expert == e;
            n += mine[j];
        }
        int upto = scan(n);
        __syncthreads();
        if (threadIdx.x % 32 == 31)
            of_warp[warp] = upto;
        __syncthreads();
        int to = at + upto - n;
        for (int w = 0; w < SORT_THREADS / 32; w++) {
            to += w < warp ? of_warp[w] : 0;
            at += of_warp[w];
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (mine[j]) {
                a.pair_of[from + j] = to;
                a.row_of[to++] = (from + j) / a.top_k;
            }
    }
}

/* The routing of a single row, which a block of few_kernel makes by itself: that is quicker than a
 * kernel before it. Its experts are its pairs, one to a tile. */
struct lone_row {
    int4 tile[LONE_EXPERTS];
    int expert[LONE_EXPERTS], pair_of[LONE_EXPERTS], row_of[LONE_EXPERTS], n_tiles;
    float weight[LONE_EXPERTS], shared_weight;

    __device__ void route(moe_args &a)
    {
        const int k = threadIdx.x;
        a.expert = expert;
        a.weight = weight;
        a.shared_weight = &shared_weight;
        if (k < 32) {
            if (a.n_experts > 128)
                route_row<MOE_EXPERTS_MAX / 32>(a, 0);
            else
                route_row<4>(a, 0);
            __syncwarp();
            bool there = k < a.top_k && expert[k] >= 0;
            if (k < LONE_EXPERTS) {
                tile[k] = make_int4(there ? expert[k] : 0, k, 1, 0);
                pair_of[k] = there ? k : -1;
                row_of[k] = 0;
            }
            if (k == 0)
                n_tiles = there ? a.top_k : 0;
        }
        a.tile = (int32_t *)tile;
        a.pair_of = pair_of;
        a.row_of = row_of;
        a.n_tiles = &n_tiles;
        __syncthreads();
    }
};

static bool is_lone(const moe_args &a)
{
    return a.tile_rows == 8 && a.rows == 1 && a.top_k <= LONE_EXPERTS;
}

/* ---- the weighted sum -------------------------------------------------------------------------
 */

/* sum += w * eight bf16. */
__device__ __forceinline__ void add_eight(float (&sum)[8], float w, const void *from, size_t at)
{
    bf16x8 v = *(const bf16x8 *)((const bf16 *)from + at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = __bfloat1622float2(v.v[i]);
        sum[2 * i] = __fmaf_rn(w, two.x, sum[2 * i]);
        sum[2 * i + 1] = __fmaf_rn(w, two.y, sum[2 * i + 1]);
    }
}

/* Eight values of row r; hidden % 8 == 0. */
__device__ __forceinline__ void mix_eight(const moe_args &a, int r, int col)
{
    const size_t at = (size_t)r * a.hidden + col;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll 4
    for (int k = 0; k < a.top_k; k++) {
        int pair = a.pair_of[r * a.top_k + k];
        if (pair >= 0)
            add_eight(sum, a.weight[r * a.top_k + k], a.sub, (size_t)pair * a.hidden + col);
    }
    if (a.shared)
        add_eight(sum, a.shared_gate ? a.shared_weight[r] : 1.f, a.shared, at);
    bf16x8 y;
#pragma unroll
    for (int i = 0; i < 4; i++)
        y.v[i] = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
    if (!a.residual) {
        *(bf16x8 *)((bf16 *)a.out + at) = y;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 *h = (float2 *)(a.residual + at) + i, was = *h, two = __bfloat1622float2(y.v[i]);
        *h =
            make_float2(__fmaf_rn(two.x, a.add_scale, was.x), __fmaf_rn(two.y, a.add_scale, was.y));
    }
}

/* One block a row. */
__global__ void __launch_bounds__(256) mix_kernel(moe_args a)
{
    begin();
    for (int i = threadIdx.x * 8; i < a.hidden; i += blockDim.x * 8)
        mix_eight(a, blockIdx.x, i);
}

/* ---- products of a few rows -------------------------------------------------------------------
 */

/* NT: eights of pairs in a tile. GATED: gate and up of x, activated; else down, and the sum. A
 * stage is 64 columns: sixteen rows of W (of gate and of up), and the tile's rows of x; sixteens of
 * bytes swizzled by the row. */
template <int NT_, bool GATED_> struct few_config {
    static const int NT = NT_, W_BYTES = 16 * 128;
    static const bool GATED = GATED_;
    static const int X_PART = W_BYTES * (GATED ? 2 : 1), STAGE = X_PART + NT * 8 * 128;
    static const int STAGES = FEW_RING / STAGE;
};

/* A warp's tasks: first, first + step, ... below n. Task t is group first_group + t % groups of
 * sixteen rows for tile t / groups. */
struct few_tasks {
    int first, step, n, groups, first_group;
};

/* What a warp asks for, stage by stage, one task after the other. */
template <class C> struct few_stream {
    const moe_args &a;
    few_tasks t;
    unsigned char *ring;
    int task, k, slot, group, cols, n_rows, x_row[C::NT * 2];
    const bf16 *w;

    __device__ few_stream(const moe_args &args, const few_tasks &tasks, unsigned char *to)
        : a(args), t(tasks), ring(to), task(tasks.first), k(0), slot(0),
          cols(C::GATED ? args.hidden : args.ffn), n_rows(C::GATED ? args.ffn : args.hidden)
    {
        enter();
    }

    __device__ void enter()
    {
        const int lane = threadIdx.x % 32;
        if (task >= t.n)
            return;
        int4 tile = ((const int4 *)a.tile)[task / t.groups];
        group = t.first_group + task % t.groups;
        size_t row = (size_t)tile.x * n_rows * (C::GATED ? 2 : 1) + group * 16 + lane / 8;
        w = (const bf16 *)(C::GATED ? a.gate_up : a.down) + row * cols + lane % 8 * 8;
#pragma unroll
        for (int i = 0; i < C::NT * 2; i++) {
            int j = i * 4 + lane / 8;
            x_row[i] = j >= tile.z ? -1 : C::GATED ? a.row_of[tile.y + j] : tile.y + j;
        }
    }

    __device__ void load_w(unsigned char *to, int col) const
    {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = i * 4 + lane / 8;
            bool there = col < cols && group * 16 + r < n_rows;
            const bf16 *from = there ? w + (size_t)i * 4 * cols + k * 64 : w;
            unsigned char *at = to + r * 128 + ((lane % 8 ^ r % 8) << 4);
            cp_async16(at, from, there);
            if (C::GATED)
                cp_async16(at + C::W_BYTES, there ? from + (size_t)n_rows * cols : w, there);
        }
    }

    __device__ void load_x(unsigned char *to, int col) const
    {
        const int lane = threadIdx.x % 32;
        const bf16 *x = (const bf16 *)(C::GATED ? a.x : a.mid);
#pragma unroll
        for (int i = 0; i < C::NT * 2; i++) {
            int r = i * 4 + lane / 8;
            bool there = col < cols && x_row[i] >= 0;
            cp_async16(to + C::X_PART + r * 128 + ((lane % 8 ^ r % 8) << 4),
                       there ? x + (size_t)x_row[i] * cols + col : x, there);
        }
    }

    __device__ void load(bool with_w, bool with_x)
    {
        if (task < t.n) {
            int col = k * 64 + threadIdx.x % 8 * 8;
            if (with_w)
                load_w(ring + slot * C::STAGE, col);
            if (with_x)
                load_x(ring + slot * C::STAGE, col);
            if (++k * 64 >= cols) {
                k = 0;
                task += t.step;
                enter();
            }
        }
        slot = slot + 1 == C::STAGES ? 0 : slot + 1;
    }
};

template <class C>
__device__ __forceinline__ void few_add(float (&c)[C::NT][4], float (&up)[C::NT][4],
                                        const unsigned char *stage)
{
    const int lane = threadIdx.x % 32;
    unsigned w[4][4], u[C::GATED ? 4 : 1][4], x[2][C::NT][4];
    const unsigned char *w_row = stage + lane % 16 * 128;
#pragma unroll
    for (int s = 0; s < 4; s++) {
        int at = (s * 2 + lane / 16 ^ lane % 8) << 4;
        ldmatrix4(w[s], w_row + at);
        if (C::GATED)
            ldmatrix4(u[C::GATED ? s : 0], w_row + C::W_BYTES + at);
    }
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int t = 0; t < C::NT; t++)
            ldmatrix4(x[s][t], stage + C::X_PART + (t * 8 + lane % 8) * 128 +
                                   ((s * 4 + lane / 8 ^ lane % 8) << 4));
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
        for (int t = 0; t < C::NT; t++) {
            unsigned b0 = x[s / 2][t][s % 2 * 2], b1 = x[s / 2][t][s % 2 * 2 + 1];
            mma16816(c[t], w[s], b0, b1);
            if (C::GATED)
                mma16816(up[t], u[C::GATED ? s : 0], b0, b1);
        }
}

template <class C>
__device__ __forceinline__ void few_put(const moe_args &a, const int4 &tile, int row, int j,
                                        float v, float up)
{
    if (j >= tile.z || row >= (C::GATED ? a.ffn : a.hidden))
        return;
    if (C::GATED)
        ((bf16 *)a.mid)[(size_t)(tile.y + j) * a.ffn + row] =
            to_bf(activate(a.act, to_f(to_bf(v))) * to_f(to_bf(up)));
    else
        ((bf16 *)a.sub)[(size_t)(tile.y + j) * a.hidden + row] = to_bf(v);
}

/* Gate and up: warps of all blocks share out all tasks, neighbours on different multiprocessors.
 * Down: a block owns groups of sixteen outputs for all tiles, so that it can add them up. */
template <class C> __device__ few_tasks few_share(const moe_args &a)
{
    const int warp = threadIdx.x / 32, n_tiles = *a.n_tiles;
    const int groups = ((C::GATED ? a.ffn : a.hidden) + 15) / 16;
    if (C::GATED)
        return {(int)(warp * gridDim.x + blockIdx.x), (int)(gridDim.x * FEW_WARPS),
                n_tiles * groups, groups, 0};
    const int each = (groups + gridDim.x - 1) / gridDim.x, first = blockIdx.x * each;
    const int own = max(min(each, groups - first), 0);
    return {warp, FEW_WARPS, n_tiles * own, own, first};
}

template <class C>
__global__ void __launch_bounds__(FEW_WARPS * 32) few_kernel(moe_args a, bool lone)
{
    extern __shared__ __align__(128) unsigned char rings[];
    __shared__ lone_row row;
    unsigned char *ring = rings + threadIdx.x / 32 * FEW_RING;
    const int lane = threadIdx.x % 32, n_k = ((C::GATED ? a.hidden : a.ffn) + 63) / 64;
    if (C::GATED)
        begin();
    /* When the kernel before the down product let it start, the routing was complete: weights may
     * come before what they are multiplied with is there. */
    if (C::NT == 1 && lone)
        row.route(a);
    const few_tasks t = few_share<C>(a);
    few_stream<C> stream(a, t, ring);
    if (!C::GATED) {
        few_stream<C> ahead(a, t, ring);
        for (int i = 0; i < C::STAGES - 1; i++)
            ahead.load(true, false);
        begin();
    }
    for (int i = 0; i < C::STAGES - 1; i++) {
        stream.load(C::GATED, true);
        cp_async_commit();
    }
    int slot = 0;
    for (int task = t.first; task < t.n; task += t.step) {
        const int4 tile = ((const int4 *)a.tile)[task / t.groups];
        float c[C::NT][4], up[C::NT][4];
#pragma unroll
        for (int i = 0; i < C::NT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                c[i][e] = up[i][e] = 0;
#pragma unroll 1
        for (int k = 0; k < n_k; k++) {
            cp_async_wait<C::STAGES - 2>();
            __syncwarp();
            stream.load(true, true); /* where the stage before this one was */
            cp_async_commit();
            few_add<C>(c, up, ring + slot * C::STAGE);
            slot = slot + 1 == C::STAGES ? 0 : slot + 1;
        }
        const int first_row = (t.first_group + task % t.groups) * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < C::NT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                few_put<C>(a, tile, first_row + e / 2 * 8, i * 8 + lane % 4 * 2 + e % 2, c[i][e],
                           up[i][e]);
    }
    if (C::GATED)
        return;
    __syncthreads();
    const int first = t.first_group * 16, width = min(t.groups * 16, a.hidden - first);
    for (int i = threadIdx.x * 8; i < a.rows * width; i += FEW_WARPS * 32 * 8)
        mix_eight(a, i / width, first + i % width);
}

/* ---- products of many rows --------------------------------------------------------------------
 */

/* Eight warps, each 32 pairs by 64 outputs (of 32 gates and the 32 ups that belong to them). */
template <bool GATED> struct many_tile {
    const moe_args &a;
    int4 tile;
    int column, cols, n_rows; /* first output of the block */

    __device__ many_tile(const moe_args &args) : a(args)
    {
        tile = ((const int4 *)a.tile)[blockIdx.y];
        column = blockIdx.x * (GATED ? 64 : 128);
        cols = GATED ? a.hidden : a.ffn;
        n_rows = GATED ? a.ffn : a.hidden;
    }

    __device__ void load(unsigned char *to, int k, const int (&x_row)[4]) const
    {
        const bf16 *x = (const bf16 *)(GATED ? a.x : a.mid);
        const bf16 *w = (const bf16 *)(GATED ? a.gate_up : a.down) +
                        (size_t)tile.x * n_rows * (GATED ? 2 : 1) * cols;
        const int col = k * 64 + threadIdx.x % 8 * 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = i * 32 + threadIdx.x / 8, w_row = column + (GATED ? r % 64 : r);
            int at = r * 128 + ((threadIdx.x % 8 ^ r % 8) << 4);
            bool x_there = col < cols && x_row[i] >= 0, w_there = col < cols && w_row < n_rows;
            w_row += GATED && r >= 64 ? n_rows : 0;
            cp_async16(to + at, x_there ? x + (size_t)x_row[i] * cols + col : x, x_there);
            cp_async16(to + MANY_STAGE / 2 + at, w_there ? w + (size_t)w_row * cols + col : w,
                       w_there);
        }
    }

    __device__ void put(int j, int col, float v0, float v1) const
    {
        if (j < tile.z && col < n_rows)
            *(unsigned *)((bf16 *)(GATED ? a.mid : a.sub) + (size_t)(tile.y + j) * n_rows + col) =
                pack_bf16(v0, v1);
    }
};

__device__ __forceinline__ void many_add(float (&c)[2][8][4], const unsigned char *stage,
                                         int warp_m, const int (&w_row)[4])
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < 4; s++) {
        unsigned x[2][4], w[4][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
            ldmatrix4(x[i], stage + (warp_m * 32 + i * 16 + lane % 16) * 128 +
                                ((s * 2 + lane / 16 ^ lane % 8) << 4));
#pragma unroll
        for (int j = 0; j < 4; j++)
            ldmatrix4(w[j], stage + MANY_STAGE / 2 + (w_row[j] + lane % 8 + lane / 16 * 8) * 128 +
                                ((s * 2 + lane / 8 % 2 ^ lane % 8) << 4));
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                mma16816(c[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
    }
}

template <bool GATED> __global__ void __launch_bounds__(256, 2) many_kernel(moe_args a)
{
    begin();
    extern __shared__ __align__(128) unsigned char ring[];
    if (blockIdx.y >= *a.n_tiles)
        return;
    const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 64, warp_n = threadIdx.x / 32 % 2;
    const many_tile<GATED> t(a);
    const int n_k = (t.cols + 63) / 64;
    int x_row[4], w_row[4];
    float c[2][8][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int r = i * 32 + threadIdx.x / 8;
        x_row[i] = r >= t.tile.z ? -1 : GATED ? a.row_of[t.tile.y + r] : t.tile.y + r;
        w_row[i] = GATED ? i / 2 * 64 + warp_n * 32 + i % 2 * 16 : warp_n * 64 + i * 16;
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                c[i][j][e] = 0;
    for (int k = 0; k < MANY_STAGES - 1; k++) {
        if (k < n_k)
            t.load(ring + k * MANY_STAGE, k, x_row);
        cp_async_commit();
    }
#pragma unroll 1
    for (int k = 0; k < n_k; k++) {
        cp_async_wait<MANY_STAGES - 2>();
        __syncthreads();
        if (k + MANY_STAGES - 1 < n_k)
            t.load(ring + (k + MANY_STAGES - 1) % MANY_STAGES * MANY_STAGE, k + MANY_STAGES - 1,
                   x_row);
        cp_async_commit();
        many_add(c, ring + k % MANY_STAGES * MANY_STAGE, warp_m, w_row);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int j = warp_m * 32 + i * 16 + lane / 4 + h * 8;
#pragma unroll
            for (int n = 0; n < (GATED ? 4 : 8); n++) {
                int col = t.column + warp_n * (GATED ? 32 : 64) + n * 8 + lane % 4 * 2;
                float v[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    v[e] = c[i][n][2 * h + e];
                    if (GATED)
                        v[e] = activate(a.act, to_f(to_bf(v[e]))) *
                               to_f(to_bf(c[i][(n + 4) % 8][2 * h + e]));
                }
                t.put(j, col, v[0], v[1]);
            }
        }
}

/* Pair blockIdx.x's row of x, to sub: nobody needs that before the products of down. */
__global__ void __launch_bounds__(128) gather_kernel(moe_args a)
{
    begin();
    const int pair = blockIdx.x;
    if (pair >= a.first[a.n_experts])
        return;
    const uint4 *from = (const uint4 *)((const bf16 *)a.x + (size_t)a.row_of[pair] * a.hidden);
    uint4 *to = (uint4 *)((bf16 *)a.sub + (size_t)pair * a.hidden);
    for (int i = threadIdx.x; i < a.hidden / 8; i += blockDim.x)
        to[i] = from[i];
}

/* ---- launches ---------------------------------------------------------------------------------
 */

extern "C" void launch_moe_route(cuda_stream s, const struct moe_args *a)
{
    const bool wide = a->n_experts > 128;
    if (is_lone(*a))
        return;
    if (a->rows * a->top_k <= FUSED_PAIRS && a->rows <= 32) {
        int threads = 32 * (a->rows < 4 ? 4 : a->rows);
        launch_after(s,
                     wide ? route_and_sort_kernel<MOE_EXPERTS_MAX / 32> : route_and_sort_kernel<4>,
                     dim3(1), dim3(threads), 0, *a);
        return;
    }
    launch_after(s, wide ? route_kernel<MOE_EXPERTS_MAX / 32> : route_kernel<4>,
                 dim3((a->rows + ROUTE_WARPS - 1) / ROUTE_WARPS), dim3(ROUTE_WARPS * 32), 0, *a);
    launch_after(s, sort_kernel, dim3(a->n_experts), dim3(SORT_THREADS), 0, *a);
}

template <class C> static void launch_few(cudaStream_t s, const moe_args &a, int n_blocks)
{
    const int bytes = FEW_WARPS * FEW_RING;
    cudaFuncSetAttribute(few_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    launch_after(s, few_kernel<C>, dim3(n_blocks), dim3(FEW_WARPS * 32), bytes, a, is_lone(a));
}

template <bool GATED> static bool launch_grouped(cudaStream_t s, const moe_args &a, int n_sms)
{
    narrow_args p = {};
    p.w = GATED ? a.gate_up : a.down;
    p.rows = GATED ? 2 * a.ffn : a.hidden;
    p.cols = GATED ? a.hidden : a.ffn;
    p.x = GATED ? a.sub : a.mid;
    p.y = GATED ? a.mid : a.sub;
    p.m = a.rows * a.top_k;
    p.gated = GATED;
    p.act = a.act;
    p.group_start = a.first;
    p.n_groups = a.n_experts;
    return launch_wide(s, &p, n_sms, -1);
}

template <bool GATED> static bool launch_product(cudaStream_t s, const moe_args &a, int n_sms)
{
    if (a.tile_rows == MANY_ROWS && a.wide) {
        if (GATED)
            launch_after(s, gather_kernel, dim3(a.rows * a.top_k), dim3(128), 0, a);
        return launch_grouped<GATED>(s, a, n_sms);
    }
    if (a.tile_rows == MANY_ROWS) {
        const int bytes = MANY_STAGES * MANY_STAGE, width = GATED ? 64 : 128;
        const int pairs = a.rows * a.top_k;
        dim3 grid(((GATED ? a.ffn : a.hidden) + width - 1) / width,
                  pairs / MANY_ROWS + (pairs < a.n_experts ? pairs : a.n_experts));
        cudaFuncSetAttribute(many_kernel<GATED>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes);
        launch_after(s, many_kernel<GATED>, grid, dim3(256), bytes, a);
    } else if (a.tile_rows == 8) {
        launch_few<few_config<1, GATED>>(s, a, n_sms);
    } else if (a.tile_rows == 16) {
        launch_few<few_config<2, GATED>>(s, a, n_sms);
    } else {
        launch_few<few_config<4, GATED>>(s, a, n_sms);
    }
    return true;
}

extern "C" int moe_tile_rows(int rows, int top_k, int n_experts, bool large_shared)
{
    int pairs = rows * top_k; /* an expert has pairs / n_experts on average, at most `rows` */
    if (!large_shared)
        return MANY_ROWS;
    if (rows <= 8 || pairs <= 3 * n_experts)
        return 8;
    if (rows <= 16 || pairs <= 8 * n_experts)
        return 16;
    return rows <= 32 || pairs <= 24 * n_experts ? 32 : MANY_ROWS;
}

extern "C" bool launch_moe_gate_up(cuda_stream s, const struct moe_args *a, int n_sms)
{
    return launch_product<true>(s, *a, n_sms);
}

extern "C" bool launch_moe_down(cuda_stream s, const struct moe_args *a, int n_sms)
{
    bool launched = launch_product<false>(s, *a, n_sms);
    if (a->tile_rows == MANY_ROWS)
        launch_after(s, mix_kernel, dim3(a->rows), dim3(256), 0, *a);
    return launched;
}
