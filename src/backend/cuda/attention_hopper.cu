/* attention_hopper.cu - attention of many query rows on Hopper: the copy engine and wgmma.
 *
 * A block stays on its multiprocessor and takes items in turn: 128 query rows (the heads of a group
 * for tokens_per_tile tokens) of one sequence and KV head, against all the keys that they see. One
 * warp asks the copy engine for queries and, page by page, for tiles of K, one for tiles of V; one
 * looks items up ahead of the others; two warpgroups of 64 rows each multiply. While the tensor
 * cores make q k^T of an item's first tile, results of the item before are written.
 *
 * The arithmetic is attention.cuh's. A chunk's o begins at nothing, so a row has two of them at a
 * chunk's end; the one that is folded so far lies in shared memory, each thread's part in places of
 * its own, and is touched only there.
 *
 * Tiles lie in panels of 64 columns, rows of 128 bytes, sixteens of bytes swizzled by the row:
 * queries one panel after the other, K and V eight rows of every panel after another eight, so that
 * one box brings sixteen keys.
 * Columns past head_dim, pages that are gone and keys past kv_len come as zeros; what a page's end
 * holds past kv_len is cleared in V, since 0 times what nobody wrote need not be 0.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/attention.cuh"
#include "backend/cuda/wgmma.cuh"

static const int ROWS = 128, GROUP_THREADS = 128, THREADS = 3 * GROUP_THREADS;
static const int PANEL = ROWS * 128; /* bytes of 64 columns of a tile, of K, V or queries */
static const int STAGES = 2;

/* What a block does for one ticket. */
struct item {
    int kv_head, first, n_tokens, first_row; /* first: token row of the batch */
    int lowest, kv_len, block_start;         /* position of the first token */
    int first_tile, end_tile;                /* of keys */
    int clear_first, clear_end;              /* tiles that every row sees whole */

    __device__ __forceinline__ void look_up(int i, const step_arrays &a, const attn_shape &shape,
                                            const attn_plan &plan, int parts)
    {
        int per_tile = shape.n_kv_heads * parts, t = i / per_tile, seq = plan.tile_seq[t];
        kv_head = i % per_tile / parts;
        first_row = i % parts * ROWS;
        first = plan.tile_first[t];
        n_tokens = min(a.q_start[seq + 1] - first, plan.tokens_per_tile);
        kv_len = a.kv_len[seq];
        block_start = a.block_start[seq];
        lowest = a.pos[first];
        int highest = lowest + n_tokens - 1, unseen = shape.window ? lowest + 1 - shape.window : 0;
        first_tile = unseen > 0 ? unseen / ATTN_TILE : 0;
        end_tile = (shape.causal ? highest : kv_len - 1) / ATTN_TILE + 1;
        clear_end = (shape.causal ? min(lowest + 1, kv_len) : kv_len) / ATTN_TILE;
        clear_first =
            shape.window && highest >= shape.window ? (highest - shape.window) / ATTN_TILE + 1 : 0;
    }
};

/* A box has some heads' queries of some tokens, rows as the item has them. */
struct query_boxes {
    int heads, tokens;
};

static const int ITEMS = 4; /* looked up ahead */

struct hopper_barriers {
    uint64_t q_full, q_empty, tail;
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    uint64_t item_full[ITEMS], item_empty[ITEMS];
    item items[ITEMS]; /* n_tokens 0: that was all */
};

template <int HD> struct hopper_config {
    static const int PANELS = HD / 64, TILE_BYTES = PANELS * PANEL, EIGHT = PANELS * 1024;
    static const int SUM_BYTES = 2 * GROUP_THREADS * (HD / 2) * (int)sizeof(float);
    static const int SHARED =
        TILE_BYTES * (1 + 2 * STAGES) + SUM_BYTES + (int)sizeof(hopper_barriers);
};

/* A place in a ring of N and how often it came round. */
template <int N> struct ring_place {
    int slot, phase;

    __device__ __forceinline__ void next()
    {
        if (++slot == N) {
            slot = 0;
            phase ^= 1;
        }
    }
};

template <int HD> struct hopper_shared {
    typedef hopper_config<HD> C;
    unsigned char *q, *k, *v;
    float4 *sum;
    hopper_barriers *b;

    __device__ __forceinline__ hopper_shared(unsigned char *raw)
    {
        q = raw;
        k = q + C::TILE_BYTES;
        v = k + STAGES * C::TILE_BYTES;
        sum = (float4 *)(v + STAGES * C::TILE_BYTES);
        b = (hopper_barriers *)((unsigned char *)sum + C::SUM_BYTES);
    }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int N> __device__ __forceinline__ float (&flat(float (&d)[N][4]))[N * 4]
{
    return reinterpret_cast<float(&)[N * 4]>(d);
}

/* The next item, once it is there, until it is given back. */
__device__ __forceinline__ const item &take_item(hopper_barriers *b, const ring_place<ITEMS> &at)
{
    barrier_wait(b->item_full + at.slot, at.phase);
    return b->items[at.slot];
}

__device__ __forceinline__ void give_back(hopper_barriers *b, ring_place<ITEMS> &at)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(b->item_empty + at.slot);
    at.next();
}

/* ---- the warps that ask for queries, keys and values ----------------------------------------- */

template <int HD> struct asker {
    typedef hopper_config<HD> C;
    const hopper_shared<HD> &m;
    const query_boxes &queries;
    const CUtensorMap *q_map, *k_map, *v_map;
    const attn_shape &shape;
    ring_place<STAGES> k_at, v_at;
    bool whole; /* a head is as wide as its panels */
    int q_phase, tail_phase;

    /* Tokens of other sequences may come with the item's; there is no need to tell them apart. */
    __device__ __forceinline__ void ask_queries(const item &w)
    {
        const int lane = threadIdx.x % 32, group = shape.n_heads / shape.n_kv_heads;
        const int n = min(ROWS, group - w.first_row) / queries.heads * C::PANELS;
        barrier_wait(&m.b->q_empty, q_phase ^ 1);
        q_phase ^= 1;
        if (lane == 0)
            barrier_expect(&m.b->q_full, n * queries.heads * queries.tokens * 128);
        __syncwarp();
        for (int i = lane; i < n; i += 32) {
            int row = i / C::PANELS * queries.heads, panel = i % C::PANELS;
            box_copy_3d(m.q + panel * PANEL + row * 128, q_map, panel * 64,
                        w.kv_head * group + w.first_row + row, w.first, &m.b->q_full);
        }
    }

    /* Lane i asks for sixteen keys, `row` of the cache being the first. */
    __device__ __forceinline__ void ask(unsigned char *to, const CUtensorMap *map, int row,
                                        uint64_t *bar) const
    {
        const int lane = threadIdx.x % 32;
        if (lane == 0)
            barrier_expect(bar, C::TILE_BYTES);
        __syncwarp();
        if (whole) {
            if (lane < 8)
                box_copy_4d(to + lane * 2 * C::EIGHT, map, row / 8, bar);
            return;
        }
        const int eight = lane / C::PANELS, panel = lane % C::PANELS;
        const int from = __shfl_sync(0xffffffffu, row, eight / 2) + eight % 2 * 8;
        if (lane < 16 * C::PANELS)
            box_copy(to + lane * 1024, map, panel * 64, from, bar);
    }

    /* Rows n..., up to the next sixteen, of a tile of V become zero. */
    __device__ __forceinline__ void clear(unsigned char *v, int n) const
    {
        const int lane = threadIdx.x % 32;
        for (int key = n; key % 16; key++)
            if (lane < 8 * C::PANELS)
                *(uint4 *)(v + key / 8 * C::EIGHT + lane / 8 * 1024 + key % 8 * 128 +
                           lane % 8 * 16) = make_uint4(0, 0, 0, 0);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
    }

    __device__ __forceinline__ void ask_k(int row)
    {
        barrier_wait(m.b->k_empty + k_at.slot, k_at.phase ^ 1);
        ask(m.k + k_at.slot * C::TILE_BYTES, k_map, row, m.b->k_full + k_at.slot);
        k_at.next();
    }

    __device__ __forceinline__ void ask_v(int row, int n_keys)
    {
        unsigned char *to = m.v + v_at.slot * C::TILE_BYTES;
        uint64_t *full = m.b->v_full + v_at.slot;
        barrier_wait(m.b->v_empty + v_at.slot, v_at.phase ^ 1);
        bool tail = n_keys < ATTN_TILE && n_keys % 16;
        ask(to, v_map, row, tail ? &m.b->tail : full);
        if (tail) {
            barrier_wait(&m.b->tail, tail_phase);
            tail_phase ^= 1;
            clear(to, n_keys);
            if (threadIdx.x % 32 == 0)
                barrier_arrive(full);
        }
        v_at.next();
    }

    /* Row of the cache where this lane's sixteen keys begin, or one that is outside of it. */
    __device__ __forceinline__ int row_of(const int32_t *block, int kv_head, int tile,
                                          int kv_len) const
    {
        int key = tile * ATTN_TILE + threadIdx.x % 8 * 16;
        int row = key < kv_len ? key_row(block, key, kv_head, shape) : NOWHERE;
        return row == NOWHERE ? -16 : row;
    }

    /* One warp has the item's queries and K, another one V: neither waits for the other's room. */
    __device__ void run(const item &w, const int32_t *blocks, bool values)
    {
        const int32_t *block = blocks + w.block_start;
        int row = row_of(block, w.kv_head, w.first_tile, w.kv_len);
        for (int t = w.first_tile; t < w.end_tile; t++) {
            int row_next = row_of(block, w.kv_head, t + 1, w.kv_len);
            if (values)
                ask_v(row, w.kv_len - t * ATTN_TILE);
            else
                ask_k(row);
            if (!values && t == w.first_tile)
                ask_queries(w);
            row = row_next;
        }
    }
};

/* ---- the warpgroups that multiply ------------------------------------------------------------ */

template <int HD> struct multiplier {
    typedef hopper_config<HD> C;
    const hopper_shared<HD> &m;
    const attn_shape &shape;
    float factor;
    bool bent;
    int group; /* 0 or 1 */
    ring_place<STAGES> k_at, v_at;
    int pos[2]; /* of rows g and g + 8 */
    float o[HD / 8][4];
    unsigned p[ATTN_TILE / 16][4];
    row_pair t, sum;
    float4 *kept; /* o of the chunks so far */
    bool has_kept;

    __device__ __forceinline__ int in_group() const
    {
        return shape.n_heads / shape.n_kv_heads;
    }

    /* Row g or g + 8 of this warp, among those of the item's tokens. */
    __device__ __forceinline__ int row_of(const item &w, int h) const
    {
        return w.first_row + group * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * h;
    }

    __device__ __forceinline__ int head_of(const item &w, int h) const
    {
        return w.kv_head * in_group() + row_of(w, h) % in_group();
    }

    __device__ __forceinline__ void arrive(uint64_t *b) const
    {
        if (threadIdx.x % 32 == 0)
            barrier_arrive(b);
    }

    /* s = q k^T of the next tile of K, under way when this returns. */
    __device__ __forceinline__ void begin_scores(tile_scores &s)
    {
        unsigned q = shared_address(m.q) + group * 64 * 128;
        unsigned k = shared_address(m.k + k_at.slot * C::TILE_BYTES);
        wgmma_begin();
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            int at = d / 4 * PANEL + d % 4 * 32;
            wgmma<ATTN_TILE, false>::run(
                flat(s), box_descriptor(q + at),
                box_descriptor(k + d / 4 * 1024 + d % 4 * 32, 16, C::EIGHT), d > 0);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void wait_for_keys() const
    {
        barrier_wait(m.b->k_full + k_at.slot, k_at.phase);
    }

    __device__ __forceinline__ void end_scores(bool last)
    {
        arrive(m.b->k_empty + k_at.slot);
        k_at.next();
        if (last)
            arrive(&m.b->q_empty);
    }

    /* o += P V of the next tile of V, or = where a chunk begins. */
    __device__ __forceinline__ void begin_values(bool first)
    {
        barrier_wait(m.b->v_full + v_at.slot, v_at.phase);
        unsigned v = shared_address(m.v + v_at.slot * C::TILE_BYTES);
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < ATTN_TILE / 16; j++)
            wgmma_held<HD>::run(flat(o), p[j], box_descriptor(v + j * 2 * C::EIGHT, 1024, C::EIGHT),
                                j > 0 || !first);
        wgmma_commit();
    }

    __device__ __forceinline__ void end_values()
    {
        arrive(m.b->v_empty + v_at.slot);
        v_at.next();
    }

    __device__ __forceinline__ void mask(tile_scores &s, const item &w, int tile) const
    {
        bool masked = tile < w.clear_first || tile >= w.clear_end;
        if (!bent && !masked)
            return;
        const int head[2] = {bent ? head_of(w, 0) : 0, bent ? head_of(w, 1) : 0};
        mask_tile(s, shape, pos, head, tile * ATTN_TILE, w.kv_len, bent, masked);
    }

    /* m and l of a chunk that is over join those before it; f: what o needs. */
    __device__ __forceinline__ void end_chunk(fold_factors (&f)[2])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            f[h] = fold_max(sum.m[h], t.m[h]);
            sum.l[h] = fold(sum.l[h], row_sum(t.l[h]), f[h]);
        }
        t.clear();
    }

    /* o of a chunk that is over joins those before it. `last`: it stays in o. */
    __device__ __forceinline__ void fold_values(const fold_factors (&f)[2], bool last)
    {
        if (has_kept)
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                float4 old = kept[d * GROUP_THREADS];
                o[d][0] = fold(old.x, o[d][0], f[0]);
                o[d][1] = fold(old.y, o[d][1], f[0]);
                o[d][2] = fold(old.z, o[d][2], f[1]);
                o[d][3] = fold(old.w, o[d][3], f[1]);
            }
        has_kept = !last;
        if (!last)
#pragma unroll
            for (int d = 0; d < HD / 8; d++)
                kept[d * GROUP_THREADS] = make_float4(o[d][0], o[d][1], o[d][2], o[d][3]);
    }

    __device__ __forceinline__ void rescale(const float (&f)[2])
    {
        if (!__any_sync(0xffffffffu, f[0] != 1.f || f[1] != 1.f))
            return;
#pragma unroll
        for (int d = 0; d < HD / 8; d++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[d][e] = __fmul_rn(o[d][e], f[e / 2]);
    }

    __device__ __forceinline__ void pack(const tile_scores &s)
    {
#pragma unroll
        for (int j = 0; j < ATTN_TILE / 16; j++)
            pack_weights(p[j], s, j);
    }

    /* Where the sixteen bytes `piece` of a row of this warp wait to be written: in its part of
     * `kept`, which is not in use between items. */
    __device__ __forceinline__ unsigned char *waiting(int row, int piece) const
    {
        return (unsigned char *)(kept - threadIdx.x % 32 + row / 2 * GROUP_THREADS) +
               row % 2 * HD * 2 + (piece ^ row % 8) * 16;
    }

    __device__ __forceinline__ void write(bf16 *out, const item &w) const
    {
        const int lane = threadIdx.x % 32, PIECES = HD / 8;
        const int first = w.first_row + group * 64 + threadIdx.x / 32 % 4 * 16;
        __syncwarp();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float part = __frcp_rn(sum.l[h]);
#pragma unroll
            for (int d = 0; d < PIECES; d++)
                *(unsigned *)(waiting(lane / 4 + 8 * h, d) + lane % 4 * 4) =
                    pack_bf16(result(o[d][2 * h], part), result(o[d][2 * h + 1], part));
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PIECES / 2; i++) {
            int row = i * (32 / PIECES) + lane / PIECES, piece = lane % PIECES;
            int token = (first + row) / in_group();
            size_t head = (size_t)w.kv_head * in_group() + (first + row) % in_group();
            if (token < w.n_tokens && piece * 8 < shape.head_dim)
                *(uint4 *)(out +
                           ((size_t)(w.first + token) * shape.n_heads + head) * shape.head_dim +
                           piece * 8) = *(const uint4 *)waiting(row, piece);
        }
    }

    __device__ __forceinline__ void begin_item(const item &w)
    {
        pos[0] = w.lowest + row_of(w, 0) / in_group();
        pos[1] = w.lowest + row_of(w, 1) / in_group();
        t.clear();
        sum.clear();
        has_kept = false;
    }

    /* Scores that are there become weights, those of the item's tile `tile`. */
    __device__ __forceinline__ void weigh(tile_scores &s, const item &w, int tile,
                                          float (&raise)[2])
    {
        end_scores(tile + 1 == w.end_tile);
        mask(s, w, tile);
        weigh_tile(s, t, raise, factor);
    }

    /* The item after another one has its first scores made behind that one's last values. */
    __device__ __forceinline__ void run(bf16 *out)
    {
        tile_scores s;
        fold_factors f[2];
        float raise[2];
        ring_place<ITEMS> at = {0, 0};
        int q_phase = 0;
        bool there = take_item(m.b, at).n_tokens;
        if (there) {
            barrier_wait(&m.b->q_full, 0);
            wait_for_keys();
        }
        begin_scores(s);
        wgmma_wait<0>();
        while (there) {
            const item &w = m.b->items[at.slot];
            begin_item(w);
            weigh(s, w, w.first_tile, raise);
            pack(s);
            bool fresh = true; /* o holds nothing of this chunk */
#pragma unroll 1
            for (int tile = w.first_tile + 1; tile < w.end_tile; tile++) {
                wait_for_keys();
                begin_scores(s);
                begin_values(fresh);
                wgmma_wait<1>();
                fresh = tile % TILES_PER_CHUNK == 0;
                if (fresh)
                    end_chunk(f);
                weigh(s, w, tile, raise);
                wgmma_wait<0>();
                end_values();
                pack(s);
                if (fresh)
                    fold_values(f, false);
                else
                    rescale(raise);
            }
            begin_values(fresh);
            end_chunk(f);
            ring_place<ITEMS> after = at;
            after.next();
            there = take_item(m.b, after).n_tokens;
            if (there) {
                barrier_wait(&m.b->q_full, q_phase ^= 1);
                wait_for_keys();
            }
            begin_scores(s); /* of nothing, after the last item */
            wgmma_wait<1>();
            end_values();
            fold_values(f, true);
            write(out, w);
            give_back(m.b, at);
            wgmma_wait<0>();
        }
    }
};

/* ---- the block ------------------------------------------------------------------------------- */

/* Looks items up ahead of those who need them: one lane. The last ticket sets the counter back. */
__device__ void hand_out(hopper_barriers *b, const step_arrays &a, const attn_shape &shape,
                         const attn_plan &plan, int parts)
{
    const int n_items = plan.n_tiles * shape.n_kv_heads * parts;
    ring_place<ITEMS> at = {0, 0};
    for (;;) {
        item w = {};
        int ticket = atomicAdd(plan.ticket, 1);
        if (ticket < n_items)
            w.look_up(ticket, a, shape, plan, parts);
        else if (ticket == n_items + (int)gridDim.x - 1)
            *plan.ticket = 0;
        barrier_wait(b->item_empty + at.slot, at.phase ^ 1);
        b->items[at.slot] = w;
        barrier_arrive(b->item_full + at.slot);
        at.next();
        if (ticket >= n_items)
            return;
    }
}

__device__ __forceinline__ void init_barriers(hopper_barriers *b)
{
    const int readers = 2 * GROUP_THREADS / 32;
    barrier_init(&b->q_full, 1);
    barrier_init(&b->q_empty, readers);
    barrier_init(&b->tail, 1);
    for (int i = 0; i < STAGES; i++) {
        barrier_init(b->k_full + i, 1);
        barrier_init(b->v_full + i, 1);
        barrier_init(b->k_empty + i, readers);
        barrier_init(b->v_empty + i, readers);
    }
    for (int i = 0; i < ITEMS; i++) {
        barrier_init(b->item_full + i, 1);
        barrier_init(b->item_empty + i, readers + 2);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

#endif

template <int HD>
__global__ void __launch_bounds__(THREADS, 1)
    hopper_kernel(bf16 *out, step_arrays a, attn_shape shape, attn_plan plan, int parts,
                  query_boxes queries, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) unsigned char raw_shared[]; /* for swizzled boxes */
    hopper_shared<HD> m(raw_shared);
    if (threadIdx.x == 0)
        init_barriers(m.b);
    __syncthreads();
    begin();
    if (threadIdx.x < GROUP_THREADS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x < 64) {
            asm volatile("fence.proxy.async.global;" ::: "memory");
            asker<HD> ask = {
                m, queries, &q_map, &k_map, &v_map, shape, {0, 0}, {0, 0}, shape.head_dim == HD,
                0, 0};
            ring_place<ITEMS> at = {0, 0};
            while (take_item(m.b, at).n_tokens) {
                ask.run(m.b->items[at.slot], a.block, threadIdx.x >= 32);
                give_back(m.b, at);
            }
        } else if (threadIdx.x == 64) {
            hand_out(m.b, a, shape, plan, parts);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        multiplier<HD> mul = {m, shape, score_factor(shape), is_bent(shape)};
        mul.group = threadIdx.x / GROUP_THREADS - 1;
        mul.kept = m.sum + mul.group * (HD / 8) * GROUP_THREADS + threadIdx.x % GROUP_THREADS;
        mul.run(out);
    }
#endif
}

/* Rows of the cache are heads of tokens; block numbers keep within it. Sixteen rows are a box,
 * eight and eight of them, each by panels, if a head is as wide as its panels; or eight of a panel.
 */
template <int HD> static bool kv_map(CUtensorMap *map, const void *data, int head_dim)
{
    const cuuint64_t row = (cuuint64_t)head_dim * 2;
    const cuuint64_t dim[4] = {64, 8, HD / 64, 1 << 27}, stride[3] = {row, 128, 8 * row};
    const cuuint32_t box[4] = {64, 8, HD / 64, 2};
    return head_dim == HD ? tensor_map(map, data, false, 4, dim, stride, box)
                          : rows_map(map, data, 1 << 30, head_dim, false, 8);
}

/* The whole of an item in one box, if it has all heads of a group. */
static query_boxes boxes_of(const attn_shape &shape, const attn_plan &plan)
{
    const int group = shape.n_heads / shape.n_kv_heads, even = group & -group;
    return {group <= ROWS ? group : even < ROWS ? even : ROWS, plan.tokens_per_tile};
}

static bool query_map(CUtensorMap *map, const void *qkv, int n_tokens, const attn_shape &shape,
                      const query_boxes &queries)
{
    const cuuint64_t heads = shape.n_heads + 2 * shape.n_kv_heads, bytes = shape.head_dim * 2;
    const cuuint64_t dim[3] = {(cuuint64_t)shape.head_dim, heads, (cuuint64_t)n_tokens};
    const cuuint64_t stride[2] = {bytes, heads * bytes};
    const cuuint32_t box[3] = {64, (cuuint32_t)queries.heads, (cuuint32_t)queries.tokens};
    return tensor_map(map, qkv, false, 3, dim, stride, box);
}

template <int HD>
static bool launch(cudaStream_t s, bf16 *out, const bf16 *qkv, const kv_cache &kv,
                   const step_arrays &a, const attn_shape &shape, const attn_plan &plan)
{
    const int rows = plan.tokens_per_tile * (shape.n_heads / shape.n_kv_heads);
    const int parts = (rows + ROWS - 1) / ROWS, items = plan.n_tiles * shape.n_kv_heads * parts;
    const query_boxes queries = boxes_of(shape, plan);
    CUtensorMap q_map, k_map, v_map;
    if (!query_map(&q_map, qkv, a.n_tokens, shape, queries) ||
        !kv_map<HD>(&k_map, kv.k, shape.head_dim) || !kv_map<HD>(&v_map, kv.v, shape.head_dim))
        return false;
    static bool allowed;
    if (!allowed)
        cudaFuncSetAttribute(hopper_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             hopper_config<HD>::SHARED);
    allowed = true;
    launch_after(s, hopper_kernel<HD>, dim3(items < plan.n_sms ? items : plan.n_sms), dim3(THREADS),
                 hopper_config<HD>::SHARED, out, a, shape, plan, parts, queries, q_map, k_map,
                 v_map);
    return true;
}

extern "C" bool launch_attention_hopper(cuda_stream s, void *out, const void *qkv,
                                        const struct kv_cache *kv, const struct step_arrays *a,
                                        const struct attn_shape *shape,
                                        const struct attn_plan *plan)
{
    bf16 *to = (bf16 *)out;
    const bf16 *from = (const bf16 *)qkv;
    if (shape->head_dim > 128)
        return false;
    return shape->head_dim > 64 ? launch<128>(s, to, from, *kv, *a, *shape, *plan)
                                : launch<64>(s, to, from, *kv, *a, *shape, *plan);
}
