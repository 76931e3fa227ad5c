/* attention: the op against a plain double loop, over block sizes, head groups, windows, biases and
 * KV types; and the row contract: a row's bits are the same at q_len 1, 16 and 512, alone or beside
 * other sequences, on 1 and 2 threads.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kernels/chk.h"

#include "base/mem.h"

enum { MAX_SEQS = 4, MAX_LEN = 700 };

struct shape {
    struct attn_spec a;
    int block_size;
    enum wformat kv;
    bool rope, norms;
};

/* Sequences with fixed inputs; a run computes them in steps of its own and leaves every row's
 * output. */
struct world {
    const struct ops *ops;
    struct device *d;
    struct batch *b;
    struct shape s;
    int n_seqs, len[MAX_SEQS], done[MAX_SEQS];
    int width, out_width;
    float *in[MAX_SEQS], *out[MAX_SEQS]; /* [len][width], [len][out_width] */
    int32_t *blocks[MAX_SEQS];
    float *inv_freq, *q_w, *k_w;
    struct rope rope;
    struct norm q_norm, k_norm;
    float *qkv, *step_out;
};

#define OK(call)                                                       \
    do {                                                               \
        if ((call) != SL_OK)                                           \
            fail_msg("%s: %s", #call, err.msg); /* the caller's err */ \
    } while (0)

static void make_inputs(struct world *w)
{
    const struct attn_spec *a = &w->s.a;
    w->width = (a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    w->out_width = a->n_heads * a->head_dim;
    for (int s = 0; s < w->n_seqs; s++) {
        w->in[s] = chk_floats((size_t)w->len[s] * w->width);
        w->out[s] = chk_floats((size_t)w->len[s] * w->out_width);
        chk_fill_bf16(w->in[s], (size_t)w->len[s] * w->width);
    }
}

static void free_inputs(struct world *w)
{
    for (int s = 0; s < w->n_seqs; s++) {
        chk_free(w->in[s], (size_t)w->len[s] * w->width * 4);
        chk_free(w->out[s], (size_t)w->len[s] * w->out_width * 4);
    }
}

static void make_model(struct world *w)
{
    const struct attn_spec *a = &w->s.a;
    int half = a->head_dim / 2;
    float freq[256], q[512], k[512];
    for (int i = 0; i < half; i++)
        freq[i] = powf(10000, -(float)i / (float)half);
    for (int i = 0; i < a->head_dim; i++) {
        q[i] = 1 + 0.1f * (float)(i % 7);
        k[i] = 1 - 0.1f * (float)(i % 5);
    }
    struct device *d = w->d;
    w->inv_freq = w->ops->vector_prepare(d, freq, SL_DTYPE_F32, half, 0, NULL);
    w->q_w = w->ops->vector_prepare(d, q, SL_DTYPE_F32, a->head_dim, 0, NULL);
    w->k_w = w->ops->vector_prepare(d, k, SL_DTYPE_F32, a->head_dim, 0, NULL);
    w->rope = (struct rope){w->inv_freq, half * 2, 1, false};
    w->q_norm = (struct norm){w->q_w, NULL, 1e-5f, true};
    w->k_norm = (struct norm){w->k_w, NULL, 1e-5f, true};
}

static void open_device(struct world *w, int threads)
{
    int per_seq = (MAX_LEN + w->s.block_size - 1) / w->s.block_size, n = per_seq * w->n_seqs + 3;
    struct kv_layout l = {.n_groups = 1, .block_size = w->s.block_size, .n_blocks = n};
    struct batch_limits lim = {.max_tokens = MAX_SEQS * MAX_LEN,
                               .max_seqs = MAX_SEQS,
                               .max_blocks = n,
                               .max_samples = 1,
                               .max_logits = 1,
                               .n_groups = 1};
    struct sl_err err = {0};
    OK(cpu_device_create(&w->ops, &w->d, threads, &err));
    OK(w->ops->kv_create(w->d, &l, &w->s.a, 1, w->s.kv, &err));
    OK(batch_create(&w->b, &lim, &err));
    w->qkv = w->ops->alloc(w->d, (size_t)lim.max_tokens * w->width * 4, "qkv", &err);
    w->step_out = w->ops->alloc(w->d, (size_t)lim.max_tokens * w->out_width * 4, "out", &err);
    assert_true(w->qkv && w->step_out);
    make_model(w);
    for (int s = 0; s < w->n_seqs; s++) {
        w->blocks[s] = mem_alloc((size_t)per_seq, sizeof(int32_t));
        for (int i = 0; i < per_seq; i++) /* interleaved and backwards */
            w->blocks[s][i] = n - 1 - (i * w->n_seqs + s);
        w->done[s] = 0;
    }
}

static void close_device(struct world *w)
{
    for (int s = 0; s < w->n_seqs; s++)
        mem_free(w->blocks[s]);
    batch_destroy(&w->b);
    w->ops->free(w->d, w->qkv);
    w->ops->free(w->d, w->step_out);
    w->ops->free(w->d, w->inv_freq);
    w->ops->free(w->d, w->q_w);
    w->ops->free(w->d, w->k_w);
    w->ops->destroy(w->d);
}

/* One step: take[s] more positions of each sequence (0: not in it). */
static void step(struct world *w, const int *take)
{
    struct batch *b = w->b;
    int bs = w->s.block_size, n_blocks = 0;
    batch_clear(b);
    for (int s = 0; s < w->n_seqs; s++) {
        if (!take[s])
            continue;
        for (int i = 0; i < take[s]; i++) {
            int pos = w->done[s] + i;
            b->pos[b->n_tokens] = pos;
            b->slot[b->n_tokens] = w->blocks[s][pos / bs] * bs + pos % bs;
            memcpy(w->qkv + (size_t)b->n_tokens * w->width, w->in[s] + (size_t)pos * w->width,
                   (size_t)w->width * 4);
            b->n_tokens++;
        }
        int end = w->done[s] + take[s];
        b->kv_len[b->n_seqs] = end;
        b->block_start[b->n_seqs] = n_blocks;
        for (int i = 0; i * bs < end; i++)
            b->block[n_blocks++] = w->blocks[s][i];
        b->n_seqs++;
        b->q_start[b->n_seqs] = b->n_tokens;
        b->block_start[b->n_seqs] = n_blocks;
    }
    struct sl_err err = {0};
    OK(w->ops->begin(w->d, b, &err));
    w->ops->qkv_rope_cache(w->d, w->qkv, &w->s.a, w->s.rope ? &w->rope : NULL,
                           w->s.norms ? &w->q_norm : NULL, w->s.norms ? &w->k_norm : NULL);
    memset(w->step_out, 0xff, (size_t)b->n_tokens * w->out_width * 4);
    w->ops->attention(w->d, w->step_out, w->qkv, &w->s.a);
    OK(w->ops->end(w->d, &err));
    for (int s = 0, row = 0; s < w->n_seqs; s++) {
        memcpy(w->out[s] + (size_t)w->done[s] * w->out_width,
               w->step_out + (size_t)row * w->out_width, (size_t)take[s] * w->out_width * 4);
        row += take[s];
        w->done[s] += take[s];
    }
}

/* All sequences to their ends, at most q_len positions of each a step, together or in turn. */
static void compute(struct world *w, int threads, int q_len, bool together)
{
    open_device(w, threads);
    for (int first = 0; first < (together ? 1 : w->n_seqs); first++) {
        for (bool any = true; any;) {
            int take[MAX_SEQS] = {0};
            any = false;
            for (int s = 0; s < w->n_seqs; s++) {
                int left = w->len[s] - w->done[s];
                if (together || s == first)
                    take[s] = left < q_len ? left : q_len;
                any |= take[s] > 0;
            }
            if (any)
                step(w, take);
        }
    }
    close_device(w);
}

/* ---- against the plain loop ----------------------------------------------------------------- */

/* One head's K or V at one position, as the cache keeps it. */
static void as_stored(double *out, const float *v, int hd, enum wformat kv)
{
    float max = 0;
    for (int i = 0; i < hd; i++)
        max = fmaxf(max, fabsf(v[i]));
    for (int i = 0; i < hd; i++)
        out[i] = kv == W_F16    ? f16_f32(f32_f16(v[i]))
                 : kv == W_BF16 ? bf16_f32(f32_bf16(v[i]))
                 : kv == W_I8   ? rintf(v[i] * (127 / max)) * (max / 127)
                                : v[i];
}

/* One row, one head; magnitude: sum of p |v| per dim, what errors of p are relative to. For i8 that
 * is the largest |v| as well: p is rounded to 16 bits of its largest. */
static void plain_row(const struct world *w, int s, int pos, int head, double *out, double *mag)
{
    const struct attn_spec *a = &w->s.a;
    static double p[MAX_LEN];
    double kept[512], top = 0;
    int hd = a->head_dim, kv_head = head / (a->n_heads / a->n_kv_heads);
    int lo = a->window && pos >= a->window ? pos - a->window + 1 : 0;
    int hi = a->causal ? pos + 1 : w->len[s];
    const float *q = w->in[s] + (size_t)pos * w->width + (size_t)head * hd;
    double max = -INFINITY, sum = 0;
    for (int i = lo; i < hi; i++) {
        const float *k = w->in[s] + (size_t)i * w->width + (size_t)(a->n_heads + kv_head) * hd;
        p[i] = 0;
        as_stored(kept, k, hd, w->s.kv);
        for (int d = 0; d < hd; d++)
            p[i] += (double)q[d] * kept[d];
        p[i] *= a->scale;
        if (a->softcap != 0)
            p[i] = a->softcap * tanh(p[i] / a->softcap);
        if (a->alibi)
            p[i] += a->alibi[head] * (double)(i - pos);
        max = p[i] > max ? p[i] : max;
    }
    for (int d = 0; d < hd; d++)
        out[d] = mag[d] = 0;
    for (int i = lo; i < hi; i++) {
        const float *v =
            w->in[s] + (size_t)i * w->width + (size_t)(a->n_heads + a->n_kv_heads + kv_head) * hd;
        p[i] = exp(p[i] - max);
        sum += p[i];
        as_stored(kept, v, hd, w->s.kv);
        for (int d = 0; d < hd; d++) {
            out[d] += p[i] * kept[d];
            mag[d] += p[i] * fabs(v[d]);
            top = fmax(top, fabs(v[d]));
        }
    }
    for (int d = 0; d < hd; d++) {
        out[d] /= sum;
        mag[d] = mag[d] / sum + (w->s.kv == W_I8 ? top : 0);
    }
}

static void check_against_plain(const struct world *w, enum cpu_isa isa)
{
    double want[512], mag[512];
    const struct attn_spec *a = &w->s.a;
    /* Probabilities are rounded to bf16 where bf16 is multiplied; else only f32 rounding, of scores
     * up to about 20 too, whose error the exponential passes on. i8: queries and probabilities in
     * 16 bits, whose errors add up over 256 positions as their root. */
    double eps = w->s.kv == W_I8                          ? 0x1p-11
                 : w->s.kv == W_BF16 && isa >= ISA_AVX512 ? 0x1p-8
                                                          : 64 * FLT_EPSILON;
    for (int s = 0; s < w->n_seqs; s++) {
        for (int pos = 0; pos < w->len[s]; pos += pos < 40 ? 1 : 37) {
            for (int h = 0; h < a->n_heads; h++) {
                plain_row(w, s, pos, h, want, mag);
                const float *got = w->out[s] + (size_t)pos * w->out_width + (size_t)h * a->head_dim;
                for (int d = 0; d < a->head_dim; d++)
                    chk_close(got[d], want[d], eps * mag[d],
                              "%s, block %d, kv %d, heads %d/%d x %d, window %d: seq %d, pos %d, "
                              "head %d, dim %d\n",
                              cpu_isa_name(isa), w->s.block_size, w->s.kv, a->n_heads,
                              a->n_kv_heads, a->head_dim, a->window, s, pos, h, d);
            }
        }
    }
}

/* Every head size that the CPU takes: rows against the plain loop, and the same bits one by one. */
static void head_size(enum cpu_isa isa, int hd, enum wformat kv)
{
    struct world w = {.n_seqs = 2, .len = {45, 7}};
    w.s = (struct shape){.block_size = 16, .kv = kv};
    w.s.a = (struct attn_spec){.n_heads = 3,
                               .n_kv_heads = 1,
                               .head_dim = hd,
                               .scale = 1 / sqrtf((float)hd),
                               .window = hd % 16 ? 20 : 0,
                               .causal = true};
    make_inputs(&w);
    compute(&w, 2, MAX_LEN, true);
    check_against_plain(&w, isa);
    size_t bytes = (size_t)w.len[0] * w.out_width * 4;
    float *want = mem_alloc(1, bytes);
    memcpy(want, w.out[0], bytes);
    compute(&w, 1, 1, true);
    if (memcmp(want, w.out[0], bytes))
        fail_msg("%s, kv %d: heads of %d differ one by one", cpu_isa_name(isa), (int)kv, hd);
    mem_free(want);
    free_inputs(&w);
}

static void every_head_size(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int hd = 8; hd <= 512; hd += 8)
            for (int kv = W_F32; kv <= W_I8; kv++)
                head_size(isa, hd, (enum wformat)kv);
    }
}

static const float slopes[8] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.03f, 0.015f, 0.007f, 0.004f};

static void matches_plain(void **state)
{
    (void)state;
    static const struct {
        int heads, kv_heads, hd, block, window;
        enum wformat kv;
        float softcap;
        bool alibi, bidirectional;
    } c[] = {
        {4, 1, 64, 16, 0, W_BF16, 0, false, false},  {6, 2, 64, 16, 0, W_F32, 0, false, false},
        {2, 2, 128, 32, 0, W_F16, 0, false, false},  {3, 1, 80, 8, 0, W_BF16, 0, false, false},
        {8, 8, 40, 1, 0, W_BF16, 0, true, false},    {4, 2, 96, 24, 50, W_BF16, 30, false, false},
        {4, 2, 16, 128, 300, W_F32, 0, true, false}, {5, 1, 64, 4, 33, W_F16, 0, false, false},
        {2, 1, 256, 16, 0, W_BF16, 50, false, true}, {4, 1, 64, 16, 0, W_I8, 0, false, false},
        {6, 2, 80, 24, 50, W_I8, 30, false, false},  {3, 1, 40, 1, 0, W_I8, 0, true, false},
        {2, 1, 512, 16, 0, W_I8, 0, false, true},
    };
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int i = 0; i < (int)(sizeof c / sizeof c[0]); i++) {
            struct world w = {.n_seqs = 3, .len = {1, 290, 113}};
            w.s = (struct shape){.block_size = c[i].block, .kv = c[i].kv};
            w.s.a = (struct attn_spec){.n_heads = c[i].heads,
                                       .n_kv_heads = c[i].kv_heads,
                                       .head_dim = c[i].hd,
                                       .scale = 1 / sqrtf((float)c[i].hd),
                                       .softcap = c[i].softcap,
                                       .window = c[i].window,
                                       .alibi = c[i].alibi ? slopes : NULL,
                                       .causal = !c[i].bidirectional};
            make_inputs(&w);
            compute(&w, 2, MAX_LEN, true);
            check_against_plain(&w, isa);
            free_inputs(&w);
        }
    }
}

/* ---- the row contract ----------------------------------------------------------------------- */

static void same_bits(struct world *w, int threads, int q_len, bool together, float **want,
                      const char *isa)
{
    compute(w, threads, q_len, together);
    for (int s = 0; s < w->n_seqs; s++) {
        size_t n = (size_t)w->len[s] * w->out_width * 4;
        if (memcmp(w->out[s], want[s], n) != 0)
            fail_msg("%s, kv %d, block %d, window %d: sequence %d differs at q_len %d, %d threads",
                     isa, w->s.kv, w->s.block_size, w->s.a.window, s, q_len, threads);
    }
}

static void rows_do_not_see_their_step(void **state)
{
    (void)state;
    static const struct {
        int heads, kv_heads, hd, block, window;
        enum wformat kv;
    } c[] = {{4, 1, 64, 16, 0, W_BF16}, {6, 2, 32, 16, 100, W_BF16}, {2, 1, 48, 8, 0, W_F32},
             {4, 4, 16, 32, 0, W_F16},  {4, 1, 64, 16, 0, W_I8},     {3, 1, 48, 8, 100, W_I8}};
    EACH_ISA(isa, ISA_PLAIN)
    {
        const char *name = cpu_isa_name(isa);
        assert_true(cpu_isa_limit(name));
        for (int i = 0; i < 6; i++) {
            struct world w = {.n_seqs = 2, .len = {isa ? 601 : 300, 77}};
            w.s = (struct shape){
                .block_size = c[i].block, .kv = c[i].kv, .rope = true, .norms = i % 2};
            w.s.a = (struct attn_spec){.n_heads = c[i].heads,
                                       .n_kv_heads = c[i].kv_heads,
                                       .head_dim = c[i].hd,
                                       .scale = 0.2f,
                                       .window = c[i].window,
                                       .causal = true};
            make_inputs(&w);
            for (int s = 0; s < 2; s++)
                chk_fill(w.in[s], (size_t)w.len[s] * w.width);
            compute(&w, 1, 512, true);
            float *want[2];
            for (int s = 0; s < 2; s++) {
                size_t n = (size_t)w.len[s] * w.out_width;
                want[s] = mem_alloc(n, 4);
                memcpy(want[s], w.out[s], n * 4);
            }
            same_bits(&w, 1, 1, true, want, name);
            same_bits(&w, 2, 1, false, want, name);
            same_bits(&w, 2, 16, true, want, name);
            same_bits(&w, 1, 13, false, want, name);
            same_bits(&w, 2, 512, false, want, name);
            same_bits(&w, 5, 512, true, want, name); /* chunks split over threads */
            same_bits(&w, 7, 1, true, want, name);
            mem_free(want[0]);
            mem_free(want[1]);
            free_inputs(&w);
        }
    }
}

/* What lies in the cache behind a row's last position must not matter, even if it is NaN: here the
 * last token is poisoned, at an even and at an odd position. */
static void poison_last(int kv, int n)
{
    struct world w = {.n_seqs = 1, .len = {n}};
    w.s = (struct shape){.block_size = 16, .kv = (enum wformat)kv};
    w.s.a = (struct attn_spec){
        .n_heads = 3, .n_kv_heads = 1, .head_dim = 64, .scale = 0.125f, .causal = true};
    make_inputs(&w);
    compute(&w, 1, n, true);
    size_t row = (size_t)w.out_width * 4, before = row * (size_t)(n - 1);
    float *want = mem_alloc(1, before);
    memcpy(want, w.out[0], before);
    for (int i = 0; i < w.width; i++)
        w.in[0][(size_t)(n - 1) * w.width + i] = NAN;
    for (int q_len = n; q_len > 0; q_len -= n - 1) {
        compute(&w, 1, q_len, true);
        assert_memory_equal(want, w.out[0], before);
        assert_true(isnan(w.out[0][(size_t)(n - 1) * w.out_width]));
    }
    mem_free(want);
    free_inputs(&w);
}

static void later_tokens_are_not_seen(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int kv = W_F32; kv <= W_I8; kv++) {
            poison_last(kv, 75);
            poison_last(kv, 76);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_plain),
        cmocka_unit_test(every_head_size),
        cmocka_unit_test(rows_do_not_see_their_step),
        cmocka_unit_test(later_tokens_are_not_seen),
    };
    chk_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
