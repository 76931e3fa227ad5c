/* linear: weights of every format and source type, packed and multiplied, against double sums;
 * the row contract over M and threads; embeddings and logits; no allocation once warm.
 * SPDX-License-Identifier: Apache-2.0 */
#include "kernels/chk.h"

#include "base/mem.h"

#define OK(call)                                                       \
    do {                                                               \
        if ((call) != SL_OK)                                           \
            fail_msg("%s: %s", #call, err.msg); /* the caller's err */ \
    } while (0)

/* A matrix of three parts (two with a bias) and what its values are once they are stored. */
struct matrix {
    int rows, cols, part[3];
    char *src[3], *bias[2];
    size_t src_bytes[3], elem;
    struct weight_source ws;
    float *value; /* [rows][cols] as the source says */
    float *bias_value;
    struct weight w;
};

static void put(char *p, size_t i, float v, enum sl_dtype t)
{
    uint16_t h = t == SL_DTYPE_F16 ? f32_f16(v) : f32_bf16(v);
    if (t == SL_DTYPE_F32)
        memcpy(p + 4 * i, &v, 4);
    else
        memcpy(p + 2 * i, &h, 2);
}

static float rounded(float v, enum sl_dtype t)
{
    return t == SL_DTYPE_F32 ? v : t == SL_DTYPE_F16 ? f16_f32(f32_f16(v)) : bf16_f32(f32_bf16(v));
}

static void make(struct matrix *m, int rows, int cols, enum sl_dtype t)
{
    *m = (struct matrix){.rows = rows, .cols = cols, .elem = t == SL_DTYPE_F32 ? 4 : 2};
    m->part[0] = rows / 2;
    m->part[1] = rows / 3;
    m->part[2] = rows - m->part[0] - m->part[1];
    m->value = mem_alloc((size_t)rows * cols, 4);
    m->bias_value = mem_zalloc(rows, 4);
    m->ws = (struct weight_source){.dtype = t, .cols = cols};
    for (int p = 0, row = 0; p < 3; p++) {
        if (m->part[p] == 0)
            continue;
        int n = m->ws.n_parts++;
        m->src_bytes[n] = (size_t)m->part[p] * cols * m->elem;
        m->src[n] = chk_alloc(m->src_bytes[n]);
        m->ws.part[n].data = m->src[n];
        m->ws.part[n].rows = m->part[p];
        for (size_t i = 0; i < (size_t)m->part[p] * cols; i++) {
            float v = rounded(chk_float() / sqrtf((float)cols), t);
            put(m->src[n], i, v, t);
            m->value[(size_t)row * cols + i] = v;
        }
        if (n < 2) {
            m->bias[n] = chk_alloc((size_t)m->part[p] * m->elem);
            m->ws.part[n].bias = m->bias[n];
            for (int i = 0; i < m->part[p]; i++) {
                float v = rounded(chk_float(), t);
                put(m->bias[n], i, v, t);
                m->bias_value[row + i] = v;
            }
        }
        row += m->part[p];
    }
}

static void unmake(struct matrix *m)
{
    for (int n = 0; n < m->ws.n_parts; n++) {
        chk_free(m->src[n], m->src_bytes[n]);
        if (n < 2)
            chk_free(m->bias[n], (size_t)m->ws.part[n].rows * m->elem);
    }
    mem_free(m->value);
    mem_free(m->bias_value);
}

/* The error that each output may have: what the stored weights and the packed activations lose
 * (uniform within half a step, so its sum over k grows as the root), then f32 sums. */
static double tolerance(const struct matrix *m, enum wformat f, enum cpu_isa isa, int n,
                        const float *x)
{
    double wmax = 0, xmax = 0, x2 = 0, w2 = 0, mag = 0;
    for (int k = 0; k < m->cols; k++) {
        double w = m->value[(size_t)n * m->cols + k];
        wmax = fmax(wmax, fabs(w));
        xmax = fmax(xmax, fabs(x[k]));
        x2 += (double)x[k] * x[k];
        w2 += w * w;
        mag += fabs(w * x[k]);
    }
    double tol = 4 * FLT_EPSILON * (mag + fabs(m->bias_value[n]));
    double wstep = f == W_I8 ? wmax / 127 : f == W_I4 ? wmax / 7 : 0;
    double xstep = f == W_I8 || f == W_I4 ? xmax / 127 : 0;
    if (f == W_BF16) { /* relative rounding of both where bf16 is multiplied */
        double both = isa >= ISA_AVX512 ? 2 : 1;
        return tol + both * 6 * 0x1p-9 * sqrt(x2 * w2 / m->cols) + 0x1p-40;
    }
    if (f == W_F16)
        tol += 6 * 0x1p-12 * sqrt(x2 * w2 / m->cols) + 6 * 0x1p-25 * sqrt(x2);
    double noise = wstep * wstep / 12 * x2 + xstep * xstep / 12 * w2 +
                   wstep * wstep * xstep * xstep / 144 * m->cols;
    return tol + 6 * sqrt(noise); /* six standard deviations, over thousands of outputs */
}

static struct device *open_device(const struct ops **ops, int threads)
{
    struct device *d = NULL;
    struct sl_err err = {0};
    OK(cpu_device_create(ops, &d, threads, &err));
    return d;
}

static void check_values(enum cpu_isa isa, enum wformat f, enum sl_dtype t, int rows, int cols)
{
    enum { M = 9 };
    const struct ops *ops;
    struct device *d = open_device(&ops, 2);
    struct matrix m;
    struct sl_err err = {0};
    float *x = chk_floats((size_t)M * cols), *y = chk_floats((size_t)M * rows);
    make(&m, rows, cols, t);
    chk_fill(x, (size_t)M * cols);
    OK(ops->weight_prepare(d, &m.w, &m.ws, f, "test", &err));
    assert_true(m.w.rows == rows && m.w.cols == cols && m.w.bytes > 0);
    ops->linear(d, y, &m.w, x, M);
    for (int r = 0; r < M; r++) {
        for (int n = 0; n < rows; n++) {
            double want = m.bias_value[n];
            for (int k = 0; k < cols; k++)
                want += (double)x[r * cols + k] * m.value[(size_t)n * cols + k];
            chk_close(y[r * rows + n], want, tolerance(&m, f, isa, n, x + r * cols),
                      "%s, format %d from dtype %d, %d x %d, row %d, output %d\n",
                      cpu_isa_name(isa), f, t, rows, cols, r, n);
        }
    }
    x[cols / 2] = NAN; /* row 0 alone turns NaN */
    ops->linear(d, y, &m.w, x, M);
    assert_true(isnan(y[0]) && isnan(y[rows - 1]));
    for (int n = 0; n < rows; n++)
        assert_true(isfinite(y[rows + n]));
    ops->weight_release(d, &m.w);
    assert_null(m.w.data);
    unmake(&m);
    chk_free(x, (size_t)M * cols * 4);
    chk_free(y, (size_t)M * rows * 4);
    ops->destroy(d);
}

static const enum wformat formats[] = {W_F32, W_F16, W_BF16, W_I8, W_I4};

static void values(void **state)
{
    (void)state;
    static const int shape[][2] = {{1, 1}, {64, 128}, {65, 31}, {191, 257}, {200, 512}};
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int f = 0; f < 5; f++)
            for (int s = 0; s < 5; s++)
                check_values(isa, formats[f], (enum sl_dtype)(SL_DTYPE_F32 + (f + s) % 3),
                             shape[s][0], shape[s][1]);
    }
}

/* ---- the row contract ----------------------------------------------------------------------- */

enum { ROWS_MAX = 600, N_OUT = 150 };

static void check_rows(const char *isa, enum wformat f, int cols, int n_rows)
{
    static const int ms[] = {1, 2, 7, 16, 17, 64, 333, ROWS_MAX};
    const struct ops *ops[2];
    struct device *d[2] = {open_device(&ops[0], 1), open_device(&ops[1], 2)};
    struct matrix m;
    struct sl_err err = {0};
    float *x = chk_floats((size_t)ROWS_MAX * cols), *y = chk_floats((size_t)ROWS_MAX * N_OUT);
    float *want = chk_floats((size_t)ROWS_MAX * N_OUT);
    chk_fill(x, (size_t)ROWS_MAX * cols);
    make(&m, N_OUT, cols, SL_DTYPE_BF16);
    OK(ops[0]->weight_prepare(d[0], &m.w, &m.ws, f, "test", &err));
    struct weight w2;
    OK(ops[1]->weight_prepare(d[1], &w2, &m.ws, f, "test", &err));
    ops[0]->linear(d[0], want, &m.w, x, n_rows);
    for (int threads = 0; threads < 2; threads++) {
        const struct weight *w = threads ? &w2 : &m.w;
        for (int i = 0; i < 8 && ms[i] <= n_rows; i++) {
            int last = n_rows - ms[i]; /* the first rows, the last, and some between */
            for (int j = 0, r = 0; j < 3; j++, r = last * j / 2) {
                ops[threads]->linear(d[threads], y, w, x + (size_t)r * cols, ms[i]);
                if (memcmp(y, want + (size_t)r * N_OUT, (size_t)ms[i] * N_OUT * 4) != 0)
                    fail_msg("%s, format %d, k %d: row bits differ at M = %d, %d threads", isa, f,
                             cols, ms[i], threads + 1);
            }
        }
    }
    ops[0]->weight_release(d[0], &m.w);
    ops[1]->weight_release(d[1], &w2);
    unmake(&m);
    chk_free(x, (size_t)ROWS_MAX * cols * 4);
    chk_free(y, (size_t)ROWS_MAX * N_OUT * 4);
    chk_free(want, (size_t)ROWS_MAX * N_OUT * 4);
    ops[0]->destroy(d[0]);
    ops[1]->destroy(d[1]);
}

static void rows_do_not_see_each_other(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int f = 0; f < 5; f++) {
            int rows = isa == ISA_PLAIN ? 64 : ROWS_MAX;
            check_rows(cpu_isa_name(isa), formats[f], 96, ROWS_MAX);
            /* long enough to be cut in k blocks */
            check_rows(cpu_isa_name(isa), formats[f], isa == ISA_PLAIN ? 1700 : 4800, rows);
        }
    }
}

/* ---- with an activation --------------------------------------------------------------------- */

/* Its bits are those of linear and act, whether gates have panels of their own or not. */
static void check_act(enum wformat f, int ffn, bool gated, enum act_kind kind)
{
    enum { M = 530, COLS = 2100 };
    int n_out = gated ? 2 * ffn : ffn;
    const struct ops *ops;
    struct device *d = open_device(&ops, 2);
    struct matrix m;
    struct sl_err err = {0};
    float *x = chk_floats((size_t)M * COLS), *wide = chk_floats((size_t)M * n_out);
    float *want = chk_floats((size_t)M * ffn), *got = chk_floats((size_t)M * ffn);
    chk_fill(x, (size_t)M * COLS);
    make(&m, n_out, COLS, SL_DTYPE_BF16);
    OK(ops->weight_prepare(d, &m.w, &m.ws, f, "test", &err));
    ops->linear(d, wide, &m.w, x, M);
    ops->act(d, want, wide, kind, gated, M, ffn);
    for (int rows = M; rows > 0; rows /= 5) {
        memset(wide, 0xff, (size_t)M * n_out * sizeof *wide);
        ops->linear_act(d, got, wide, &m.w, x, kind, gated, rows);
        if (memcmp(got, want, (size_t)rows * ffn * sizeof *got) != 0)
            fail_msg("format %d, ffn %d, %d rows: not the bits of linear and act", f, ffn, rows);
    }
    ops->weight_release(d, &m.w);
    unmake(&m);
    chk_free(x, (size_t)M * COLS * 4);
    chk_free(wide, (size_t)M * n_out * 4);
    chk_free(want, (size_t)M * ffn * 4);
    chk_free(got, (size_t)M * ffn * 4);
    ops->destroy(d);
}

static void activation_changes_no_bit(void **state)
{
    (void)state;
    EACH_ISA(isa, ISA_AVX2)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (int f = 0; f < 5; f++) {
            check_act(formats[f], 128, true, ACT_SILU);
            check_act(formats[f], 70, f % 2 == 0, ACT_GELU_TANH);
        }
    }
}

/* ---- embed, logits, allocations ------------------------------------------------------------- */

static void embeddings_and_logits(void **state)
{
    (void)state;
    enum { VOCAB = 130, HIDDEN = 72, N = 5 };
    struct sl_err err = {0};
    struct batch *b;
    struct batch_limits lim = {N, N, 1, N, N, 1, 0};
    OK(batch_create(&b, &lim, &err));
    for (int f = 0; f < 5; f++) {
        const struct ops *ops;
        struct device *d = open_device(&ops, 2);
        struct matrix m, p;
        float h[N * HIDDEN], logits[N * VOCAB], direct[N * VOCAB];
        make(&m, VOCAB, HIDDEN, SL_DTYPE_F32);
        make(&p, 9, HIDDEN, SL_DTYPE_F32);
        for (int i = 0; i < m.ws.n_parts; i++)
            m.ws.part[i].bias = p.ws.part[i].bias = NULL;
        OK(ops->weight_prepare(d, &m.w, &m.ws, formats[f], "embed", &err));
        OK(ops->weight_prepare(d, &p.w, &p.ws, W_F32, "pos", &err));
        batch_clear(b);
        b->n_tokens = N;
        for (int i = 0; i < N; i++) {
            b->token[i] = i == 0 ? VOCAB - 1 : chk_int(VOCAB);
            b->pos[i] = i;
            b->logit_row[i] = N - 1 - i;
        }
        b->n_logits = N;
        OK(ops->begin(d, b, &err));
        ops->embed(d, h, &m.w, 2, &p.w, 2);
        for (int i = 0; i < N * HIDDEN; i++) {
            float v = m.value[(size_t)b->token[i / HIDDEN] * HIDDEN + i % HIDDEN] * 2;
            double tol = formats[f] == W_F32    ? 0
                         : formats[f] == W_F16  ? 0x1p-10 * fabs(v) + 0x1p-24
                         : formats[f] == W_BF16 ? 0x1p-8 * fabs(v)
                         : formats[f] == W_I8   ? 2.0 / 127
                                                : 2.0 / 7;
            chk_close(h[i], v + p.value[(i / HIDDEN + 2) * HIDDEN + i % HIDDEN],
                      tol + 4 * FLT_EPSILON, "embed, format %d\n", formats[f]);
        }
        ops->linear(d, direct, &m.w, h, N);
        ops->logits(d, logits, &m.w, h, 1, N - 1, 0.5f, 0);
        for (int i = 0; i < (N - 1) * VOCAB; i++)
            assert_true(logits[i] == direct[(N - 2 - i / VOCAB) * VOCAB + i % VOCAB] * 0.5f);
        ops->logits(d, logits, &m.w, h, 0, N, 1, 3);
        for (int i = 0; i < N * VOCAB; i++)
            chk_close(logits[i], 3 * tanh(direct[(N - 1 - i / VOCAB) * VOCAB + i % VOCAB] / 3),
                      1e-5, "softcap\n");
        OK(ops->end(d, &err));
        ops->weight_release(d, &m.w);
        ops->weight_release(d, &p.w);
        unmake(&m);
        unmake(&p);
        ops->destroy(d);
    }
    batch_destroy(&b);
}

static void failures_are_reported(void **state)
{
    (void)state;
    const struct ops *ops;
    struct device *d = open_device(&ops, 2);
    struct matrix m;
    make(&m, 100, 100, SL_DTYPE_F16);
    for (int n = 1; n < 50; n++) {
        struct sl_err err = {0};
        struct weight w = {0};
        mem_fail_nth(n);
        enum sl_status st = ops->weight_prepare(d, &w, &m.ws, W_I4, "the.name", &err);
        mem_fail_nth(0);
        if (st == SL_OK) {
            assert_true(n > 3);
            ops->weight_release(d, &w);
            break;
        }
        assert_int_equal(st, SL_ENOMEM);
        assert_null(w.data);
        assert_true(err.msg[0] != 0);
    }
    struct sl_err err = {0};
    struct weight w;
    assert_int_equal(ops->weight_prepare(d, &w, &m.ws, W_FP8, "the.name", &err), SL_ENOSUPPORT);
    assert_non_null(strstr(err.msg, "the.name"));
    unmake(&m);
    ops->destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(rows_do_not_see_each_other),
        cmocka_unit_test(activation_changes_no_bit),
        cmocka_unit_test(embeddings_and_logits),
        cmocka_unit_test(failures_are_reported),
    };
    chk_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
