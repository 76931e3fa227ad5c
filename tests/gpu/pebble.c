/* pebble on the CUDA device in bfloat16: transformers' tokens up to a near tie, and the row
 * contract bit by bit: a position's logits do not depend on chunking, decoding or neighbours.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/cuda.h"
#include "support/golden.h"

#include "base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* What a test runs with. FP8 is another model, whose tokens part earlier than at near ties. */
struct way {
    const char *quantization, *kv_cache_dtype;
    int least;   /* prompts identical to the end, of 64 */
    double most; /* perplexity over the golden one, less 1: 0.0000, 0.0098, 0.0012, 0.0110 */
};

static const struct way bf16 = {NULL, NULL, 57, 0.005}, fp8_weights = {"fp8", NULL, 45, 0.012},
                        fp8_kv = {NULL, "fp8", 45, 0.005}, fp8_both = {"fp8", "fp8", 40, 0.02};

static struct drive *open_pebble(const struct way *w)
{
    const struct drive_config config = {.device = "cuda",
                                        .model = "models/pebble",
                                        .dtype = SL_DTYPE_BF16,
                                        .quantization = w->quantization,
                                        .kv_cache_dtype = w->kv_cache_dtype,
                                        .max_tokens = 1024,
                                        .max_seqs = 64,
                                        .kv_tokens = 16384};
    return drive_create(&config);
}

static void prompts(void **state)
{
    const struct way *way = *state;
    struct drive *d = open_pebble(way);
    int n;
    struct golden *g = golden_load(&n);
    struct golden_report r;
    golden_run(d, g, n, 64, 0.05, &r);
    print_message("%d of %d prompts identical to the end, %d bad, worst logprob error %.2e\n",
                  r.n_identical, n, r.n_bad, r.worst_logprob);
    if (way == &bf16)
        assert_int_equal(r.n_bad, 0);
    assert_true(r.n_identical >= way->least);
    golden_free(&g, n);
    drive_destroy(&d);
}

/* ---- the row contract -------------------------------------------------------------------------
 */

enum { LENGTH_MAX = 700, KEPT = 8 };

static int length = LENGTH_MAX;

struct kept {
    float *logits[2]; /* [length, vocab]: what is wanted, what came */
    int which, item;
    int n_seen;
};

static void keep(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct kept *k = ctx;
    if (item != k->item || pos >= length)
        return;
    memcpy(k->logits[k->which] + (size_t)pos * (size_t)vocab, logits,
           (size_t)vocab * sizeof(float));
    k->n_seen++;
}

static void run(struct drive *d, struct kept *k, const int32_t *tokens, int chunk, int decode_from,
                int n_others)
{
    struct drive_seq seq, other[KEPT];
    struct drive_item item[KEPT + 1];
    drive_seq_init(d, &seq, tokens, length, length);
    for (int i = 0; i < n_others; i++)
        drive_seq_init(d, &other[i], tokens + i + 1, 300 + 10 * i, 300 + 10 * i);
    for (int at = 0; at < length;) {
        int want = at >= decode_from ? 1 : chunk, n_items = 0;
        int n = length - at < want ? length - at : want;
        for (int i = 0; i < n_others; i++) /* neighbours before it, in lengths of their own */
            if (other[i].n_computed < other[i].n)
                item[n_items++] = (struct drive_item){
                    &other[i], 1 + i % 2 < other[i].n - other[i].n_computed ? 1 + i % 2 : 1, false};
        k->item = n_items;
        item[n_items++] = (struct drive_item){&seq, n, true};
        drive_step(d, item, n_items, keep, k);
        at += n;
    }
    drive_seq_fini(d, &seq);
    for (int i = 0; i < n_others; i++)
        drive_seq_fini(d, &other[i]);
}

static void invariance(void **state)
{
    static const struct {
        int chunk, decode_from, n_others;
    } way[] = {{16, LENGTH_MAX, 0}, {1, 0, 0}, {333, 600, 0}, {64, 128, KEPT}, {7, LENGTH_MAX, 3}};
    struct drive *d = open_pebble(*state);
    size_t vocab = (size_t)drive_vocab(d);
    struct kept k = {.logits = {mem_alloc(LENGTH_MAX * vocab, sizeof(float)),
                                mem_alloc(LENGTH_MAX * vocab, sizeof(float))}};
    int32_t tokens[LENGTH_MAX + 16];
    uint32_t x = 1;
    for (int i = 0; i < LENGTH_MAX + 16; i++) {
        x = x * 1664525 + 1013904223;
        tokens[i] = (int32_t)(x >> 8) % 8000 + 100;
    }
    run(d, &k, tokens, length, length, 0);
    assert_int_equal(k.n_seen, length);
    k.which = 1;
    for (size_t w = 0; w < sizeof way / sizeof *way; w++) {
        k.n_seen = 0;
        run(d, &k, tokens, way[w].chunk, way[w].decode_from, way[w].n_others);
        assert_int_equal(k.n_seen, length);
        for (size_t p = 0; p < (size_t)length; p++)
            if (memcmp(k.logits[0] + p * vocab, k.logits[1] + p * vocab, vocab * sizeof(float)))
                fail_msg("chunk %d, decode from %d, %d others: position %zu differs", way[w].chunk,
                         way[w].decode_from, way[w].n_others, p);
        print_message("chunk %3d, decode from %3d, %d others: the same bits\n", way[w].chunk,
                      way[w].decode_from, way[w].n_others);
    }
    mem_free(k.logits[0]);
    mem_free(k.logits[1]);
    drive_destroy(&d);
}

static void perplexity(void **state)
{
    const struct way *way = *state;
    struct drive *d = open_pebble(way);
    int n;
    int32_t *ids = golden_text_ids(&n);
    double ratio = golden_perplexity_ratio(d, ids, 0, n / 1024);
    print_message("perplexity: %.4f of the golden\n", ratio);
    assert_true(fabs(ratio - 1) < way->most);
    mem_free(ids);
    drive_destroy(&d);
}

#define WITH(test, way)                                  \
    {                                                    \
#test " " #way, test, NULL, NULL, (void *)&(way) \
    }

/* Any argument: plain launches and short inputs, for compute-sanitizer. */
int main(int argc, char **argv)
{
    (void)argv;
    const struct CMUnitTest tests[] = {
        WITH(invariance, bf16),        WITH(prompts, bf16),        WITH(perplexity, bf16),
        WITH(invariance, fp8_weights), WITH(prompts, fp8_weights), WITH(perplexity, fp8_weights),
        WITH(invariance, fp8_kv),      WITH(prompts, fp8_kv),      WITH(perplexity, fp8_kv),
        WITH(invariance, fp8_both),    WITH(prompts, fp8_both),    WITH(perplexity, fp8_both)};
    const struct CMUnitTest watched[] = {WITH(invariance, bf16), WITH(invariance, fp8_both)};
    if (argc == 1)
        return cmocka_run_group_tests(tests, NULL, NULL);
    cuda_plain_launches = true;
    length = 40;
    return cmocka_run_group_tests(watched, NULL, NULL);
}
