/* narrow.cu - products of a few rows: y[m, rows] = x[m, cols] W^T for m up to NARROW_MAX.
 *
 * Bound by the weights' bytes. A warp owns sixteen rows of W and walks all of their columns in
 * steps of sixteen through one accumulator (weights are the mma's first operand), so bits are those
 * of every other product here (cuda.h). That walk is one long chain of dependent mmas, some 33
 * cycles each, and a multiprocessor has few such warps: every instruction between two mmas counts.
 * So a warp of its own asks the tensor copy engine for tiles, through a ring in shared memory, and
 * the others load operands one stage ahead, in the shadow of the mmas. The ring begins to fill
 * before the kernel that made x has ended (programmatic dependent launch), which hides launch and
 * ramp-up. Blocks are as many as multiprocessors where the shape allows.
 *
 * A stage is one or two boxes of 64 columns of the block's rows of W (of gate and of up), and of x:
 * rows of 128 bytes, sixteens of bytes swizzled by the row (chunk c of row r lies at c ^ r % 8),
 * which keeps ldmatrix free of bank conflicts. What is outside of W or x comes as zeros.
 *
 * What comes before and after a product in a layer is done in it, with the same roundings as the
 * kernels of elementwise.cu: the norm of the residual that makes x, a bias, the addition to the
 * residual, the activation of a gated MLP (then a warp owns sixteen rows of gate and of up).
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/tma.cuh"

static const int WARPS = 7, STAGES_MAX = 32;    /* warps that multiply; one more asks */
static const int BOX = ROW / (int)sizeof(bf16); /* columns of a box */

/* NT: eights of rows of x. NORMED: x is made here and stays whole in shared memory; a thread holds
 * so many of a row's values (0: it comes normed). */
template <int NT_, bool GATED_, int NORMED_> struct narrow_config {
    static const int NT = NT_, X_BYTES = NORMED_ ? 0 : NT * 8 * ROW; /* of a box */
    static const bool GATED = GATED_, NORMED = NORMED_ > 0;
    using norm = row_norm<NORMED ? NORMED_ : 1>;
    /* Of columns, in a stage: two where registers allow, for fewer barriers. */
    static const int BOXES = GATED ? 1 : 2, KS = BOXES * BOX, STEPS = KS / 16;
};

/* The ring of a block: full[i] is the copy engine's word, empty[i] the multiplying warps'. */
struct ring_barriers {
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
};

/* One lane asks for all stages of the block's rows. */
template <class C> struct asker {
    const narrow_args &a;
    const CUtensorMap *w, *x;
    unsigned char *ring;
    ring_barriers &b;
    int n_stages, w_bytes, x_part, stage, row, ahead;

    __device__ __forceinline__ void ask_w(int slot, int k) const
    {
        unsigned char *to = ring + slot * stage;
        barrier_expect(b.full + slot, stage);
#pragma unroll
        for (int j = 0; j < C::BOXES; j++)
            box_copy(to + j * w_bytes, w, k * C::KS + j * BOX, row, b.full + slot);
        if (C::GATED)
            box_copy(to + w_bytes, w, k * C::KS, a.rows / 2 + row, b.full + slot);
    }

    __device__ __forceinline__ void ask_x(int slot, int k) const
    {
        if (!C::NORMED)
#pragma unroll
            for (int j = 0; j < C::BOXES; j++)
                box_copy(ring + slot * stage + x_part + j * C::X_BYTES, x, k * C::KS + j * BOX, 0,
                         b.full + slot);
    }

    /* What the ring holds, before x is there. */
    __device__ void begin()
    {
        const int used = a.groups_per_block;
        w_bytes = used * 16 * ROW;
        x_part = C::BOXES * w_bytes * (C::GATED ? 2 : 1);
        stage = x_part + C::BOXES * C::X_BYTES;
        row = blockIdx.x * used * 16;
        ahead = min(a.stages, n_stages);
        for (int k = 0; k < ahead; k++)
            ask_w(k, k);
    }

    __device__ void rest() const
    {
        asm volatile("fence.proxy.async.global;" ::: "memory");
        for (int k = 0; k < ahead; k++)
            ask_x(k, k);
        for (int k = ahead, slot = 0, phase = 0; k < n_stages; k++) {
            barrier_wait(b.empty + slot, phase);
            ask_w(slot, k);
            ask_x(slot, k);
            if (++slot == a.stages) {
                slot = 0;
                phase ^= 1;
            }
        }
    }
};

/* The operands of one stage in registers. */
template <class C> struct operands {
    unsigned w[C::STEPS][4], up[C::GATED ? C::STEPS : 1][4], x[C::STEPS][C::NT][2];

    /* Step s of a stage; x comes for two steps at a time. w_at, up_at, x_at: where this lane points
     * ldmatrix at for step 0, in bytes of shared memory. */
    __device__ __forceinline__ void load(unsigned w_at, unsigned up_at,
                                         const unsigned (&x_at)[C::NT], int s, int w_bytes)
    {
        const int box = s / 4, in = s % 4;
        ldmatrix4_at(w[s], (w_at ^ in << 5) + box * w_bytes);
        if (C::GATED)
            ldmatrix4_at(up[C::GATED ? s : 0], up_at ^ s << 5);
        if (s % 2)
            return;
#pragma unroll
        for (int t = 0; t < C::NT; t++) {
            unsigned b[4];
            ldmatrix4_at(b,
                         C::NORMED ? x_at[t] + s * 32 : (x_at[t] ^ in / 2 << 6) + box * C::X_BYTES);
            x[s][t][0] = b[0];
            x[s][t][1] = b[1];
            x[s + 1][t][0] = b[2];
            x[s + 1][t][1] = b[3];
        }
    }
};

/* Row r of x, normed, to shared memory, and by the first block to where others may read it. */
template <class N>
__device__ void norm_row(bf16 *to, int padded, const narrow_args &a, N &row, int r)
{
    const float *h = a.h + (size_t)r * a.cols;
    bf16 *out = (bf16 *)a.x_out + (size_t)r * a.cols;
    row.run([&](int i) { return h[i]; },
            [&](int i, float v) {
                to[i] = to_bf(v);
                if (blockIdx.x == 0)
                    out[i] = to_bf(v);
            },
            a.cols, a.norm);
    for (int i = a.cols + threadIdx.x; i < padded; i += 256)
        to[i] = to_bf(0.f);
}

/* Output `row` of token `tok`; `up` only if gated. */
template <bool GATED>
__device__ __forceinline__ void put(const narrow_args &a, int row, int tok, float v, float up)
{
    if (tok >= a.m || row >= (GATED ? a.rows / 2 : a.rows))
        return;
    if (GATED) {
        float g = to_f(to_bf(v)), u = to_f(to_bf(up));
        ((bf16 *)a.y)[(size_t)tok * (a.rows / 2) + row] = to_bf(activate(a.act, g) * u);
        return;
    }
    const size_t at = (size_t)tok * a.rows + row;
    put_value(a, row, at, v, [&] { return a.residual[at]; });
}

/* One warp's sixteen rows, all columns. */
template <class C>
__device__ __forceinline__ void multiply(const narrow_args &a, unsigned ring, unsigned xs,
                                         int x_stride, ring_barriers &b, int n_stages)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, used = a.groups_per_block;
    const int w_bytes = used * 16 * ROW, x_part = C::BOXES * w_bytes * (C::GATED ? 2 : 1);
    const int stage = x_part + C::BOXES * C::X_BYTES;
    const unsigned w_off = (warp * 16 + lane % 16) * ROW + ((lane / 16 ^ lane % 8) << 4);
    unsigned x_off[C::NT];
#pragma unroll
    for (int t = 0; t < C::NT; t++) { /* rows that are not there: their columns of y are not used */
        int r = t * 8 + lane % 8;
        x_off[t] = C::NORMED ? xs + (min(r, a.m - 1) * x_stride + lane / 8 * 8) * 2
                             : x_part + r * ROW + ((lane / 8 ^ lane % 8) << 4);
    }
    operands<C> even, odd;
    float c[C::NT][4], up[C::GATED ? C::NT : 1][4];
    int slot = 0, phase = 0; /* of the stage whose operands are being loaded */
    unsigned w_at, x_at[C::NT];
    auto wait = [&](int k) {
        barrier_wait(b.full + slot, phase);
        unsigned at = ring + slot * stage;
        w_at = at + w_off;
#pragma unroll
        for (int t = 0; t < C::NT; t++)
            x_at[t] = (C::NORMED ? k * C::KS * 2 : at) + x_off[t];
    };
    auto release = [&]() { /* its operands are in registers */
                           __syncwarp();
                           if (lane == 0)
                               barrier_arrive(b.empty + slot);
                           if (++slot == a.stages) {
                               slot = 0;
                               phase ^= 1;
                           }
    };
    auto add = [&](const operands<C> &o, int s) {
#pragma unroll
        for (int t = 0; t < C::NT; t++) {
            mma16816(c[t], o.w[s], o.x[s][t][0], o.x[s][t][1]);
            if (C::GATED)
                mma16816(up[C::GATED ? t : 0], o.up[C::GATED ? s : 0], o.x[s][t][0], o.x[s][t][1]);
        }
    };
    auto one = [&](operands<C> &now, operands<C> &then, int next) {
        bool more = next < n_stages;
        if (more)
            wait(next);
#pragma unroll
        for (int s = 0; s < C::STEPS; s++) {
            add(now, s);
            then.load(w_at, w_at + w_bytes, x_at, s, w_bytes);
        }
        if (more)
            release();
    };
#pragma unroll
    for (int t = 0; t < C::NT; t++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            c[t][e] = up[C::GATED ? t : 0][e] = 0;
    wait(0);
#pragma unroll
    for (int s = 0; s < C::STEPS; s++)
        even.load(w_at, w_at + w_bytes, x_at, s, w_bytes);
    release();
#pragma unroll 1
    for (int k = 0; k < n_stages; k += 2) {
        one(even, odd, k + 1);
        if (k + 1 < n_stages)
            one(odd, even, k + 2);
    }
    const int row = (blockIdx.x * used + warp) * 16 + lane / 4;
#pragma unroll
    for (int t = 0; t < C::NT; t++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            put<C::GATED>(a, row + e / 2 * 8, t * 8 + lane % 4 * 2 + e % 2, c[t][e],
                          up[C::GATED ? t : 0][e]);
}

template <class C>
__global__ void __launch_bounds__((WARPS + 1) * 32, C::NT == 1 ? 2 : 1)
    narrow_kernel(narrow_args a, const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ CUtensorMap x_map)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ unsigned char raw_shared[];
    __shared__ ring_barriers b;
    const int warp = threadIdx.x / 32, used = a.groups_per_block;
    const int n_stages = (a.cols + C::KS - 1) / C::KS, padded = n_stages * C::KS,
              x_stride = padded + 8;
    unsigned char *ring = raw_shared + (1024 - shared_address(raw_shared) % 1024) % 1024;
    bf16 *xs =
        (bf16 *)(ring + a.stages * C::BOXES * (used * 16 * ROW * (C::GATED ? 2 : 1) + C::X_BYTES));
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
            barrier_init(b.full + i, 1);
            barrier_init(b.empty + i, used);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* so that the engine knows */
    }
    launch_dependents();
    __syncthreads();
    const bool asks = warp == (C::NORMED ? WARPS : used) && threadIdx.x % 32 == 0;
    asker<C> in = {a, &w_map, &x_map, ring, b, n_stages};
    typename C::norm row;
    if (asks)
        in.begin();
    if (C::NORMED)
        row.load_weights(a.norm, a.cols);
    wait_for_dependencies();
    if (C::NORMED) {
        for (int r = 0; r < a.m; r++)
            norm_row(xs + r * x_stride, padded, a, row, r);
        __syncthreads();
    }
    if (asks)
        in.rest();
    else if (warp < used)
        multiply<C>(a, shared_address(ring), shared_address(xs), x_stride, b, n_stages);
#endif
}

/* One block a multiprocessor, if there are no more: then it takes more than half of the shared
 * memory, so that the next kernel's blocks, which come while this one's end, cannot gather in pairs
 * on some multiprocessors and leave others idle. */
template <class C> static bool launch(cudaStream_t s, narrow_args a, int blocks, int n_sms)
{
    const int most = (blocks > n_sms ? 100 : 144) << 10, align = 1024, used = a.groups_per_block;
    int n_k = (a.cols + C::KS - 1) / C::KS, parts = C::GATED ? 2 : 1;
    int x = C::NORMED ? a.m * (n_k * C::KS + 8) * (int)sizeof(bf16) : 0;
    int stage = C::BOXES * (used * 16 * ROW * parts + C::X_BYTES), stages = (most - x) / stage;
    a.stages = stages < 3 ? 3 : stages > STAGES_MAX ? STAGES_MAX : stages;
    int bytes = x + a.stages * stage + align;
    if (blocks <= n_sms && bytes < (116 << 10))
        bytes = 116 << 10;
    static int allowed; /* shared memory that this kernel may have by now */
    if (bytes > allowed) {
        cudaFuncSetAttribute(narrow_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        allowed = bytes;
    }
    CUtensorMap w_map, x_map;
    if (!rows_map(&w_map, a.w, a.rows, a.cols, false, used * 16) ||
        !rows_map(&x_map, C::NORMED ? a.w : a.x, C::NORMED ? a.rows : a.m, a.cols, false,
                  C::NT * 8))
        return false;
    int warps = (C::NORMED ? WARPS : used) + 1; /* norms add in the order of 256 threads */
    launch_after(s, narrow_kernel<C>, dim3(blocks), dim3(warps * 32), bytes, a, w_map, x_map);
    return true;
}

template <int NT, int NORMED>
static bool launch_gated(cudaStream_t s, const narrow_args &a, int blocks, int n_sms)
{
    return a.gated ? launch<narrow_config<NT, true, NORMED>>(s, a, blocks, n_sms)
                   : launch<narrow_config<NT, false, NORMED>>(s, a, blocks, n_sms);
}

template <int NT>
static bool launch_kind(cudaStream_t s, const narrow_args &a, int blocks, int n_sms)
{
    if constexpr (NT == 1)
        if (a.h)
            return a.cols <= ROW_SHORT * 256 ? launch_gated<1, ROW_SHORT>(s, a, blocks, n_sms)
                                             : launch_gated<1, ROW_LONG>(s, a, blocks, n_sms);
    return launch_gated<NT, 0>(s, a, blocks, n_sms);
}

extern "C" bool launch_narrow(cuda_stream s, const struct narrow_args *args, int n_sms)
{
    narrow_args a = *args;
    if (a.m > NARROW_MAX)
        return false;
    int groups = ((a.gated ? a.rows / 2 : a.rows) + 15) / 16;
    int per = (groups + n_sms - 1) / n_sms;
    a.groups_per_block = per > WARPS ? WARPS : per;
    int blocks = (groups + a.groups_per_block - 1) / a.groups_per_block;
    return a.m <= 8 ? launch_kind<1>(s, a, blocks, n_sms) : launch_kind<2>(s, a, blocks, n_sms);
}
