/* sample.cu - from logits to a token on the device, equal to the host sampler's bit by bit.
 *
 * One block of 1024 threads draws one row. Nothing is sorted: a cut (the k-th largest logit, the
 * edge of top_p, the last of some ties) is the largest 32-bit key whose upper set weighs enough,
 * found two bits a pass over the row; where the cut is far up, over a short list in shared memory
 * instead. Weights are integers (core/drawrow.h), so no sum depends on who adds what; everything
 * else repeats src/sample operation by operation, with roundings written out so that nothing is
 * contracted.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/common.cuh"
#include "core/race.h"

#include <limits.h>

static const int DRAW_THREADS = 1024;
static const int WARPS = DRAW_THREADS / 32;
static const int LIST_MAX = 4096; /* candidates in shared memory */

/* src/sample/rowmath.c's exp_neg: x <= 0. */
__device__ __forceinline__ float exp_neg(float x)
{
    float y = x < -87.0f ? -87.0f : x;
    float kf = __fadd_rn(__fmul_rn(y, 1.44269504f), 12582912.0f);
    int bits = __float_as_int(kf);
    float k = __fsub_rn(kf, 12582912.0f);
    float r = __fsub_rn(y, __fmul_rn(k, 0.693359375f));
    r = __fadd_rn(r, __fmul_rn(k, 2.12194440e-4f));
    float p = 1.9875691500e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    p = __fmul_rn(p, __int_as_float((int)((unsigned)(bits - 0x4B400000 + 127) << 23)));
    return x < -87.0f ? 0.0f : p;
}

__device__ __forceinline__ unsigned long long weight_of(float w)
{
    return (unsigned long long)(long long)(__fmul_rn(w, (float)(1ull << DRAW_BITS)));
}

/* Order of floats as order of unsigned; -inf is the smallest that occurs. */
__device__ __forceinline__ unsigned key_of(float x)
{
    unsigned b = __float_as_uint(x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

struct draw_shared {
    unsigned long long sum[3][WARPS];
    double time[WARPS];
    float f[WARPS];
    int id[WARPS];
    int n_list, at, flag;
    unsigned long long before;
    unsigned list_id[LIST_MAX];
    float list_x[LIST_MAX];
};

typedef unsigned long long u64;

template <int N> __device__ __forceinline__ void sum_all(u64 (&v)[N], draw_shared &s)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N; j++)
        for (int o = 16; o; o >>= 1)
            v[j] += __shfl_xor_sync(0xffffffffu, v[j], o);
    __syncthreads(); /* s.sum may still be read */
    if (lane == 0)
#pragma unroll
        for (int j = 0; j < N; j++)
            s.sum[j][warp] = v[j];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < N; j++) {
        u64 t = s.sum[j][lane];
        for (int o = 16; o; o >>= 1)
            t += __shfl_xor_sync(0xffffffffu, t, o);
        v[j] = t;
    }
}

__device__ __forceinline__ u64 sum_one(u64 x, draw_shared &s)
{
    u64 v[1] = {x};
    sum_all(v, s);
    return v[0];
}

/* The largest key whose upper set {k >= key} weighs at least `want`, which all of them together
 * do. each(f) calls f(key, weight) for this thread's share. *above: what lies over that key. */
template <class E> __device__ unsigned find_cut(E each, u64 want, u64 *above, draw_shared &s)
{
    unsigned found = 0;
    u64 over = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        u64 v[3] = {0, 0, 0};
        unsigned base = found;
        each([&](unsigned key, u64 w) {
            if (key < base)
                return;
            unsigned d = (key - base) >> shift;
            v[0] += d >= 1 ? w : 0;
            v[1] += d >= 2 ? w : 0;
            v[2] += d >= 3 ? w : 0;
        });
        sum_all(v, s);
        int d = v[2] >= want ? 3 : v[1] >= want ? 2 : v[0] >= want ? 1 : 0;
        found += (unsigned)d << shift;
        over = d == 3 ? over : v[d]; /* keys at or over found + (1 << shift) */
    }
    *above = over;
    return found;
}

/* The row after penalties and temperature. */
struct row_view {
    const float *x;
    int n;
    float temperature; /* 0: as it is */
    float max;
    __device__ __forceinline__ float at(int i) const
    {
        return temperature == 0 ? x[i] : __fdiv_rn(x[i], temperature);
    }
    __device__ __forceinline__ float w(float v) const
    {
        return exp_neg(__fsub_rn(v, max));
    }
};

/* What may be drawn: values from lo on, and of their weights those over (w, id) and under `light`.
 */
struct kept_set {
    float lo;
    unsigned w; /* bits of the smallest weight kept */
    int id;     /* the last id of those with that weight */
    u64 light = ~(u64)0;
    __device__ __forceinline__ u64 weight(const row_view &r, float v, int i) const
    {
        if (!(v >= lo))
            return 0;
        float f = r.w(v);
        unsigned b = __float_as_uint(f);
        u64 k = b > w || (b == w && i <= id) ? weight_of(f) : 0;
        return k < light ? k : 0;
    }
};

/* Penalties and lists, from raw logits into x. One block. */
__device__ void process(float *x, const float *raw, int n, const draw_row &r, const int32_t *word,
                        uint32_t *count, const int32_t *seen, const int32_t *block, int block_size)
{
    const int32_t *allowed = word + r.list, *forbidden = allowed + max(r.n_allowed, 0);
    const int32_t *bias = forbidden + r.n_forbidden;
    const uint32_t mark = 1u << 31;
    for (int i = threadIdx.x; i < n; i += DRAW_THREADS)
        x[i] = r.n_allowed >= 0 ? -INFINITY : raw[i];
    __syncthreads();
    for (int i = threadIdx.x; i < r.n_allowed; i += DRAW_THREADS)
        if ((unsigned)allowed[i] < (unsigned)n)
            x[allowed[i]] = raw[allowed[i]];
    __syncthreads();
    for (int i = threadIdx.x; i < r.n_forbidden; i += DRAW_THREADS)
        if ((unsigned)forbidden[i] < (unsigned)n)
            x[forbidden[i]] = -INFINITY;
    __syncthreads();
    for (int i = threadIdx.x; i < r.n_bias; i += DRAW_THREADS)
        if ((unsigned)bias[i] < (unsigned)n)
            x[bias[i]] = __fadd_rn(x[bias[i]], __int_as_float(bias[r.n_bias + i]));
    __syncthreads();
    if (r.repetition == 1.0f && r.frequency == 0.0f && r.presence == 0.0f)
        return;
    int first = r.repetition != 1.0f ? 0 : r.n_prompt;
    for (int p = first + threadIdx.x; p < r.pos; p += DRAW_THREADS) {
        int id = seen[(size_t)block[p / block_size] * block_size + p % block_size];
        if ((unsigned)id >= (unsigned)n)
            continue;
        atomicOr(&count[id], mark);
        if (p >= r.n_prompt)
            atomicAdd(&count[id], 1u);
    }
    __syncthreads();
    for (int p = first + threadIdx.x; p < r.pos; p += DRAW_THREADS) {
        int id = seen[(size_t)block[p / block_size] * block_size + p % block_size];
        if ((unsigned)id >= (unsigned)n)
            continue;
        uint32_t c = atomicExch(&count[id], 0u); /* the first to come applies it and cleans up */
        if (!c)
            continue;
        float v = x[id];
        uint32_t in_output = c & ~mark;
        if (r.repetition != 1.0f)
            v = v > 0 ? __fdiv_rn(v, r.repetition) : __fmul_rn(v, r.repetition);
        if (in_output) {
            v = __fsub_rn(v, __fmul_rn(r.frequency, (float)in_output));
            v = __fsub_rn(v, r.presence);
        }
        x[id] = v;
    }
    __syncthreads();
}

/* What a mask forbids becomes -inf, and nothing that comes after sees another value; NaN stays, so
 * that it is found. Blocks that draw from one row have one mask. */
__device__ void apply_mask(float *raw, int n, const int32_t *mask)
{
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += DRAW_THREADS) {
        float v = raw[i];
        if (!(mask[i / 32] >> (i % 32) & 1) && v == v)
            raw[i] = -INFINITY;
    }
    __syncthreads();
}

/* Largest value and the lowest id that has it; false if a value is NaN or +inf. */
__device__ bool best_of(const float *x, int n, float *max, int *id, float *own, draw_shared &s)
{
    float m = -INFINITY;
    int at = INT_MAX;
    bool bad = false;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += DRAW_THREADS) {
        float v = x[i];
        bad |= !(v < INFINITY);
        if (v > m) {
            m = v;
            at = i;
        }
    }
    *own = m;
    for (int o = 16; o; o >>= 1) {
        float v = __shfl_xor_sync(0xffffffffu, m, o);
        int a = __shfl_xor_sync(0xffffffffu, at, o);
        if (v > m || (v == m && a < at)) {
            m = v;
            at = a;
        }
    }
    int any = __syncthreads_or(bad);
    if (threadIdx.x % 32 == 0) {
        s.f[threadIdx.x / 32] = m;
        s.id[threadIdx.x / 32] = at;
    }
    __syncthreads();
    m = -INFINITY;
    at = INT_MAX;
    for (int w = 0; w < WARPS; w++)
        if (s.f[w] > m || (s.f[w] == m && s.id[w] < at)) {
            m = s.f[w];
            at = s.id[w];
        }
    *max = m;
    *id = at;
    __syncthreads();
    return !any;
}

/* Values >= `from` into the list, unordered; false if they are too many for it. */
__device__ bool gather(const row_view &r, float from, draw_shared &s)
{
    if (threadIdx.x == 0)
        s.n_list = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < r.n; i += DRAW_THREADS) {
        float v = r.at(i);
        if (v >= from) {
            int to = atomicAdd(&s.n_list, 1);
            if (to < LIST_MAX) {
                s.list_id[to] = (unsigned)i;
                s.list_x[to] = v;
            }
        }
    }
    __syncthreads();
    return s.n_list <= LIST_MAX;
}

/* A value that at least k values reach, from each thread's largest; k <= DRAW_THREADS, n >= k. */
__device__ float reached_by(float own, int k, draw_shared &s)
{
    u64 above;
    unsigned key = key_of(own);
    unsigned cut = find_cut([&](auto f) { f(key, (u64)1); }, (u64)k, &above, s);
    return __uint_as_float(cut & 0x80000000u ? cut & 0x7fffffffu : ~cut);
}

/* The k-th largest value. own: this thread's largest. 0 < k < n. */
__device__ float kth_largest(const row_view &r, int k, float own, draw_shared &s)
{
    u64 above;
    unsigned cut;
    if (k <= DRAW_THREADS / 2 && gather(r, reached_by(own, k, s), s)) {
        int n = s.n_list;
        cut = find_cut(
            [&](auto f) {
                for (int i = threadIdx.x; i < n; i += DRAW_THREADS)
                    f(key_of(s.list_x[i]), (u64)1);
            },
            (u64)k, &above, s);
    } else {
        cut = find_cut(
            [&](auto f) {
#pragma unroll 4
                for (int i = threadIdx.x; i < r.n; i += DRAW_THREADS)
                    f(key_of(r.at(i)), (u64)1);
            },
            (u64)k, &above, s);
    }
    return __uint_as_float(cut & 0x80000000u ? cut & 0x7fffffffu : ~cut);
}

/* each(f) calls f(id, value) for this thread's share of all that top_p may keep. */
template <class E>
__device__ void cut_top_p(E each, const row_view &r, u64 want, kept_set &kept, draw_shared &s)
{
    u64 above;
    unsigned cut = find_cut(
        [&](auto f) {
            each([&](int, float v) {
                float w = r.w(v);
                f(__float_as_uint(w), weight_of(w));
            });
        },
        want, &above, s);
    u64 one = weight_of(__uint_as_float(cut));
    u64 need = one ? (want - above + one - 1) / one : 1; /* how many of those at the cut */
    u64 ties = 0, over;
    each([&](int, float v) { ties += __float_as_uint(r.w(v)) == cut; });
    ties = sum_one(ties, s);
    kept.w = cut;
    kept.id = INT_MAX;
    if (ties <= need)
        return;
    unsigned last = find_cut(
        [&](auto f) {
            each([&](int i, float v) {
                if (__float_as_uint(r.w(v)) == cut)
                    f(~(unsigned)i, (u64)1);
            });
        },
        need, &over, s);
    kept.id = (int)~last;
}

__device__ void keep_top_p(const row_view &r, float top_p, float own, kept_set &kept,
                           draw_shared &s)
{
    const kept_set all = kept;
    u64 total = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < r.n; i += DRAW_THREADS) {
        float v = r.at(i);
        total += v >= kept.lo ? weight_of(r.w(v)) : 0;
    }
    total = sum_one(total, s);
    u64 want = __double2ull_rz(__dmul_rn(__ull2double_rn(total), (double)top_p));
    want = want ? want : 1; /* one is always kept */
    float from = fmaxf(kept.lo, reached_by(own, DRAW_THREADS / 2, s));
    bool fits = gather(r, from, s);
    u64 listed = 0;
    int n = fits ? s.n_list : 0;
    for (int i = threadIdx.x; i < n; i += DRAW_THREADS)
        listed += weight_of(r.w(s.list_x[i]));
    listed = sum_one(listed, s);
    if (fits && listed >= want) {
        cut_top_p(
            [&](auto f) {
                for (int i = threadIdx.x; i < n; i += DRAW_THREADS)
                    f((int)s.list_id[i], s.list_x[i]);
            },
            r, want, kept, s);
        /* Values under `from` may have the cut's weight too: then ids decide among all. */
        if (from == all.lo || kept.w > __float_as_uint(r.w(from)))
            return;
    }
    kept = all;
    cut_top_p(
        [&](auto f) {
#pragma unroll 2
            for (int i = threadIdx.x; i < r.n; i += DRAW_THREADS) {
                float v = r.at(i);
                if (v >= all.lo)
                    f(i, v);
            }
        },
        r, want, kept, s);
}

/* The id whose share of [0, total) holds u / 2^53, along the ids in order. Three levels: a warp's
 * part of the row, a warp's part of that, one value. */
__device__ int pick(const row_view &r, const kept_set &kept, u64 u, draw_shared &s)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int begin = 0, end = r.n;
    u64 before = 0, target = 0;
    for (int level = 0; level < 2; level++) {
        int part = (end - begin + WARPS - 1) / WARPS, to = min(begin + (warp + 1) * part, end);
        u64 mine = 0;
#pragma unroll 4
        for (int i = begin + warp * part + lane; i < to; i += 32)
            mine += kept.weight(r, r.at(i), i);
        for (int o = 16; o; o >>= 1)
            mine += __shfl_xor_sync(0xffffffffu, mine, o);
        __syncthreads();
        if (lane == 0)
            s.sum[0][warp] = mine;
        __syncthreads();
        if (level == 0) {
            u64 total = 0;
            for (int w = 0; w < WARPS; w++)
                total += s.sum[0][w];
            target = __umul64hi(u << 11, total);
        }
        int w = 0;
        while (w < WARPS - 1 && before + s.sum[0][w] <= target)
            before += s.sum[0][w++];
        end = min(begin + (w + 1) * part, end);
        begin += w * part;
    }
    /* begin..end: a few values, one warp */
    if (warp == 0) {
        int found = end - 1;
        u64 run = before;
        for (int at = begin; at < end; at += 32) {
            int i = at + lane;
            u64 w = i < end ? kept.weight(r, r.at(i), i) : 0, up_to = w;
            for (int o = 1; o < 32; o <<= 1) {
                u64 v = __shfl_up_sync(0xffffffffu, up_to, o);
                up_to += lane >= o ? v : 0;
            }
            unsigned hit = __ballot_sync(0xffffffffu, i < end && run + up_to > target);
            if (hit) {
                found = at + __ffs(hit) - 1;
                break;
            }
            run += __shfl_sync(0xffffffffu, up_to, 31);
        }
        if (lane == 0)
            s.at = found;
    }
    __syncthreads();
    int at = s.at;
    __syncthreads();
    return at;
}

/* Whether a token surely comes after `time`, without a logarithm: -ln(u) >= 1 - u. The margin is
 * larger than what race_time() leaves out. */
__device__ __forceinline__ bool comes_after(u64 wait, u64 weight, float time)
{
    const float least = __fmul_rd(__ull2float_rd(((u64)1 << 53) - 1 - wait), 0x1p-53f);
    return __fmul_rd(least, 0.9999f) > __fmul_ru(time, __ull2float_ru(weight));
}

/* sample/draw.c's race: of the kept tokens the heavy ones each for itself, the light as one. */
__device__ int race(const row_view &r, kept_set kept, const race_key &key, draw_shared &s)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 light = 0;
    double best = INFINITY;
    int at = INT_MAX;
    float soon = INFINITY; /* this warp's best of a while ago, rounded up */
    for (int begin = 0; begin < r.n; begin += 4 * DRAW_THREADS) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int i = begin + j * DRAW_THREADS + (int)threadIdx.x;
            const u64 k = i < r.n ? kept.weight(r, r.at(i), i) : 0;
            if (k < RACE_LIGHT) {
                light += k;
                continue;
            }
            const u64 wait = race_noise(&key, i).wait;
            if (comes_after(wait, k, soon))
                continue;
            double t = race_time(wait, k);
            at = t < best ? i : at;
            best = t < best ? t : best;
        }
        soon = __uint_as_float(
            __reduce_min_sync(0xffffffffu, __float_as_uint(__double2float_ru(best))));
    }
    for (int o = 16; o; o >>= 1) {
        double t = __shfl_xor_sync(0xffffffffu, best, o);
        int i = __shfl_xor_sync(0xffffffffu, at, o);
        if (t < best || (t == best && i < at)) {
            best = t;
            at = i;
        }
    }
    light = sum_one(light, s); /* and s is free */
    __syncthreads();
    if (lane == 0) {
        s.time[warp] = best;
        s.id[warp] = at;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        if (s.time[w] < best || (s.time[w] == best && s.id[w] < at)) {
            best = s.time[w];
            at = s.id[w];
        }
    __syncthreads();
    if (light == 0)
        return at;
    struct race_noise noise = race_noise(&key, -1);
    if (race_time(noise.wait, light) >= best)
        return at;
    kept.light = RACE_LIGHT;
    return pick(r, kept, noise.pick, s);
}

/* The k best raw logits, best first, ties by id; and what logprobs are made of. */
__device__ void logprobs(const row_view &raw, int token, int k, float own, draw_result *out,
                         draw_top *top, draw_shared &s)
{
    float x = raw.x[token];
    u64 v[2] = {0, 0};
#pragma unroll 4
    for (int i = threadIdx.x; i < raw.n; i += DRAW_THREADS) {
        v[0] += weight_of(raw.w(raw.x[i]));
        v[1] += raw.x[i] >= x;
    }
    sum_all(v, s);
    k = min(k, raw.n);
    if (threadIdx.x == 0) {
        out->sum = v[0];
        out->rank = (int)v[1];
        out->x = x;
        out->max = raw.max;
        out->n_top = k;
    }
    if (k == 0)
        return;
    float cut = k < raw.n ? kth_largest(raw, k, own, s) : -INFINITY;
    unsigned last = 0; /* ~id of the last that is taken among those at the cut */
    u64 more = 0, over;
    for (int i = threadIdx.x; i < raw.n; i += DRAW_THREADS)
        more += raw.x[i] > cut;
    more = sum_one(more, s);
    last = find_cut(
        [&](auto f) {
            for (int i = threadIdx.x; i < raw.n; i += DRAW_THREADS)
                if (raw.x[i] == cut)
                    f(~(unsigned)i, (u64)1);
        },
        (u64)k - more, &over, s);
    if (threadIdx.x == 0)
        s.n_list = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < raw.n; i += DRAW_THREADS)
        if (raw.x[i] > cut || (raw.x[i] == cut && ~(unsigned)i >= last)) {
            int to = atomicAdd(&s.n_list, 1);
            if (to < LIST_MAX) {
                s.list_id[to] = (unsigned)i;
                s.list_x[to] = raw.x[i];
            }
        }
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += DRAW_THREADS) {
        int before = 0;
        for (int i = 0; i < k; i++)
            before += s.list_x[i] > s.list_x[j] ||
                      (s.list_x[i] == s.list_x[j] && s.list_id[i] < s.list_id[j]);
        top[before] = {(int32_t)s.list_id[j], s.list_x[j]};
    }
    __syncthreads();
}

/* One block a row of a.row[first_row ..]; rows of other logits, or of the host, are left alone. */
__global__ void __launch_bounds__(DRAW_THREADS) draw_kernel(draw_args a)
{
    begin();
    __shared__ draw_shared s;
    const int i = a.first_row + blockIdx.x;
    const draw_row r = a.row[i];
    if (r.logit < a.first_logit || r.logit >= a.first_logit + a.n_logits)
        return;
    float *raw = a.logits + (size_t)(r.logit - a.first_logit) * a.n;
    const size_t result = (size_t)*a.slot * a.slot_rows + i;
    draw_result *out = a.result + result;
    if (r.forced >= 0) {
        if (threadIdx.x == 0)
            out->token = r.forced < a.n ? r.forced : TOKEN_NONE;
        return;
    }
    if (r.mask >= 0)
        apply_mask(raw, a.n, a.word + r.mask);
    float raw_max, raw_own, max, own;
    int token, best;
    bool ok = best_of(raw, a.n, &raw_max, &token, &raw_own, s) && raw_max > -INFINITY;
    row_view v = {raw, a.n, r.temperature, raw_max};
    max = raw_max;
    own = raw_own;
    if (ok && (r.n_allowed >= 0 || r.n_forbidden || r.n_bias || r.repetition != 1.0f ||
               r.frequency != 0.0f || r.presence != 0.0f)) {
        float *x = a.work + (size_t)blockIdx.x * a.n;
        process(x, raw, a.n, r, a.word, a.count + (size_t)blockIdx.x * a.n, a.seen,
                a.block + a.block_start[r.seq], a.block_size);
        ok = best_of(x, a.n, &max, &best, &own, s);
        if (max == -INFINITY &&
            r.mask >= 0) { /* where a grammar leaves no other way it goes first */
            max = raw_max;
            own = raw_own;
        } else {
            v.x = x;
            token = best;
        }
        ok = ok && max > -INFINITY;
    }
    if (ok && r.temperature != 0) {
        v.max = __fdiv_rn(max, r.temperature);
        ok = v.max < INFINITY;
        if (ok) {
            kept_set kept = {__fadd_rn(v.max, r.min_p_log), 0, INT_MAX};
            own = __fdiv_rn(own, r.temperature);
            if (r.top_k > 0 && r.top_k < a.n)
                kept.lo = fmaxf(kept.lo, kth_largest(v, r.top_k, own, s));
            if (r.top_p < 1)
                keep_top_p(v, r.top_p, own, kept, s);
            token = race(v, kept, {r.seed, (uint32_t)r.pos, r.choice}, s);
        }
    }
    token = ok ? token : TOKEN_NONE;
    if (threadIdx.x == 0) {
        a.table[(size_t)r.seq_row * TABLE_DEPTH + r.pos % TABLE_DEPTH] = token;
        out->token = token;
    }
    if (ok && r.n_top >= 0) {
        row_view plain = {raw, a.n, 0, raw_max};
        logprobs(plain, token, r.n_top, raw_own, out, a.top + result * DRAW_TOP_MAX, s);
    }
}

extern "C" void launch_draw(cuda_stream s, const struct draw_args *a, int n_rows)
{
    for (int at = 0; at < n_rows; at += a->max_rows) {
        draw_args part = *a;
        part.first_row = a->first_row + at;
        launch_after(s, draw_kernel, dim3(min(a->max_rows, n_rows - at)), dim3(DRAW_THREADS), 0,
                     part);
    }
}
