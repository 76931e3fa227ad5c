/* bench_dnnl: oneDNN's matrix products at the shapes of bench_cpu_kernels, in its own packed
 * layout, as a yardstick: its sums depend on the number of rows, so it cannot serve here. Built
 * where libdnnl-dev is; prints bench_cpu_kernels' lines.
 *
 *     OMP_NUM_THREADS=2 bench_dnnl THREADS
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/ceilings.h"
#include "base/clock.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUND_MS = 250, MATRICES = 16, COLD_BYTES = 300 << 20 };

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "bench_dnnl: %s failed\n", what);
    exit(1);
}

#define OK(call) need((call) == dnnl_success, #call)

struct kind {
    const char *name;
    dnnl_data_type_t type;
    enum ceiling rate;
    size_t bytes;
};

struct product {
    dnnl_primitive_t primitive;
    dnnl_memory_t x, y, w[MATRICES];
    int n_w;
};

static dnnl_memory_t new_memory(const dnnl_memory_desc_t *md, dnnl_engine_t engine)
{
    dnnl_memory_t m;
    void *p = NULL;
    OK(dnnl_memory_create(&m, md, engine, DNNL_MEMORY_ALLOCATE));
    OK(dnnl_memory_get_data_handle(m, &p));
    memset(p, 1, dnnl_memory_desc_get_size(md)); /* small numbers in every type */
    return m;
}

static void open_product(struct product *p, const struct kind *k, dnnl_engine_t engine, int n,
                         int cols, int m)
{
    dnnl_memory_desc_t x, w, y;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    OK(dnnl_memory_desc_init_by_tag(&x, 2, (dnnl_dims_t){m, cols}, k->type, dnnl_ab));
    OK(dnnl_memory_desc_init_by_tag(&w, 2, (dnnl_dims_t){cols, n}, k->type, dnnl_format_tag_any));
    OK(dnnl_memory_desc_init_by_tag(&y, 2, (dnnl_dims_t){m, n}, dnnl_f32, dnnl_ab));
    OK(dnnl_matmul_desc_init(&desc, &x, &w, NULL, &y));
    OK(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL));
    OK(dnnl_primitive_create(&p->primitive, pd));
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    size_t bytes = dnnl_memory_desc_get_size(packed);
    p->n_w = (int)(COLD_BYTES / bytes) + 1;
    p->n_w = p->n_w < MATRICES ? p->n_w : MATRICES;
    for (int i = 0; i < p->n_w; i++)
        p->w[i] = new_memory(packed, engine);
    p->x = new_memory(&x, engine);
    p->y = new_memory(&y, engine);
    OK(dnnl_primitive_desc_destroy(pd));
}

static void close_product(struct product *p)
{
    for (int i = 0; i < p->n_w; i++)
        dnnl_memory_destroy(p->w[i]);
    dnnl_memory_destroy(p->x);
    dnnl_memory_destroy(p->y);
    dnnl_primitive_destroy(p->primitive);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static void row(struct ceilings *c, const struct kind *k, dnnl_engine_t engine,
                dnnl_stream_t stream, int n, int cols, int m)
{
    enum { MAX = 512 };
    static double seconds[MAX], of_read[MAX], of_peak[MAX];
    struct product p;
    open_product(&p, k, engine, n, cols, m);
    double ops = 2.0 * n * cols * m, bytes = (double)n * cols * (double)k->bytes;
    int count = 0;
    int64_t end = clock_mono_ns() + ROUND_MS * 1000000LL;
    for (; count < 3 || (count < MAX && clock_mono_ns() < end); count++) {
        dnnl_exec_arg_t args[] = {
            {DNNL_ARG_SRC, p.x}, {DNNL_ARG_WEIGHTS, p.w[count % p.n_w]}, {DNNL_ARG_DST, p.y}};
        double peak = ceilings_run(c, k->rate), read = ceilings_run(c, CEILING_READ);
        int64_t t0 = ceilings_now_ns(c);
        OK(dnnl_primitive_execute(p.primitive, stream, 3, args));
        OK(dnnl_stream_wait(stream));
        seconds[count] = (double)(ceilings_now_ns(c) - t0) * 1e-9;
        of_read[count] = bytes / seconds[count] / read;
        of_peak[count] = ops / seconds[count] / (peak > 0 ? peak : 1);
    }
    double r = median(of_read, count), q = median(of_peak, count), s = median(seconds, count);
    printf("%-9s %6d x %-5d M %4d %9.3f ms %6.1f GB/s %5.1f %% %7.1f G/s %5.1f %% of %s\n", k->name,
           n, cols, m, s * 1e3, bytes / s / 1e9, r * 100, ops / s / 1e9, q * 100,
           ceiling_name(k->rate));
    fflush(stdout);
    close_product(&p);
}

int main(int argc, char **argv)
{
    static const struct kind kinds[] = {{"dnnl_bf16", dnnl_bf16, CEILING_BF16, 2},
                                        {"dnnl_int8", dnnl_s8, CEILING_I8, 1},
                                        {"dnnl_f32", dnnl_f32, CEILING_F32, 4}};
    static const int shape[][2] = {{16384, 2048}, {2048, 8192}}, ms[] = {1, 4, 16, 32, 64, 512};
    struct sl_err err = {0};
    struct ceilings *c;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0;
    need(ceilings_create(&c, threads, 0, &err) == SL_OK, "ceilings_create");
    OK(dnnl_engine_create(&engine, dnnl_cpu, 0));
    OK(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    for (int k = 0; k < 3; k++)
        for (int s = 0; s < 2; s++)
            for (int i = 0; i < 6; i++)
                row(c, &kinds[k], engine, stream, shape[s][0], shape[s][1], ms[i]);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    ceilings_destroy(&c);
    return 0;
}
