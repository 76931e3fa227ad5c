/* The row contract, bitwise: one sequence's logits at every position, computed alone in one step,
 * in chunks, token by token, beside others, and on one thread or two.
 *
 * Windowed layers, q and k norms and biases are in it through dummy weights of Qwen3 and Qwen2
 * shape. `golden_invariance cuda`: on a GPU.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/isa.h"
#include "base/mem.h"
#include "support/golden.h"
#include "support/levels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_ROWS = 560 };

/* A model on a device. */
struct subject {
    const char *device;
    enum sl_dtype dtype;
    const char *quantization, *overrides;
    int n_tokens; /* of the sequence under test */
    int max_tokens;
    const char *model; /* NULL: pebble */
    const char *kv_cache_dtype;
};

/* Logits that a run gives, [n_tokens][vocab]. */
struct record {
    float *logits;
    int vocab, item;
    uint8_t seen[MAX_ROWS];
};

static void take(void *ctx, int item, int pos, const float *logits, int vocab)
{
    struct record *r = ctx;
    if (item != r->item)
        return;
    memcpy(r->logits + (size_t)pos * (size_t)vocab, logits, (size_t)vocab * sizeof *logits);
    r->seen[pos] = 1;
}

static struct drive *open_subject(const struct subject *s, int threads)
{
    struct drive_config c = {.device = s->device,
                             .model = s->model ? s->model : "models/pebble",
                             .dtype = s->dtype,
                             .quantization = s->quantization,
                             .kv_cache_dtype = s->kv_cache_dtype,
                             .hf_overrides = s->overrides,
                             .load_format = s->overrides ? SL_LOAD_DUMMY : SL_LOAD_AUTO,
                             .threads = threads,
                             .max_tokens = s->max_tokens,
                             .max_seqs = 33,
                             .kv_tokens = 8192};
    return drive_create(&c);
}

/* Tokens of a golden text, and others for the neighbours; all below the smallest vocabulary. */
static const int32_t *text(void)
{
    static int32_t *ids;
    int n;
    if (!ids) {
        ids = golden_text_ids(&n);
        for (int i = 0; i < n; i++)
            ids[i] %= 96;
    }
    return ids;
}

/* How a run computes the sequence: `head` tokens in one step, then pieces of `chunk`, with n_others
 * sequences at other positions around it. */
struct way {
    const char *what;
    int head, chunk, n_others;
};

static void run(struct drive *d, const struct subject *s, const struct way *w, struct record *r)
{
    int n_others = w->n_others;
    struct drive_seq seq, other[32];
    memset(r->seen, 0, sizeof r->seen);
    r->item = n_others / 2;
    drive_seq_init(d, &seq, text(), s->n_tokens, s->n_tokens);
    for (int i = 0; i < n_others; i++)
        drive_seq_init(d, &other[i], text() + 1000 + 100 * i, 97, 97);
    for (int step = 0; seq.n_computed < seq.n; step++) {
        struct drive_item items[33];
        int n = 0;
        for (int i = 0; i <= n_others; i++) {
            if (i == r->item) {
                int left = seq.n - seq.n_computed, want = step ? w->chunk : w->head;
                items[n++] = (struct drive_item){
                    .seq = &seq, .n = left < want ? left : want, .all_logits = true};
            }
            if (i == n_others)
                break;
            int want = 1 + (i * 5 + step) % 3;
            if (97 - other[i].n_computed < want)
                other[i].n_computed = 0; /* start again: the neighbours never stop */
            items[n++] = (struct drive_item){.seq = &other[i], .n = want};
        }
        drive_step(d, items, n, take, r);
    }
    for (int i = 0; i < n_others; i++)
        drive_seq_fini(d, &other[i]);
    drive_seq_fini(d, &seq);
}

static void same(const struct record *want, const struct record *got, int n, const char *what,
                 const struct subject *s)
{
    for (int p = 0; p < n; p++) {
        size_t bytes = (size_t)want->vocab * sizeof(float), at = (size_t)p * (size_t)want->vocab;
        assert_true(got->seen[p] && want->seen[p]);
        if (memcmp(want->logits + at, got->logits + at, bytes))
            fail_msg("%s %s, %s, %s, dtype %d %s: position %d differs", s->model ? s->model : "",
                     s->overrides ? s->overrides : "", s->device, what, (int)s->dtype,
                     s->quantization ? s->quantization : "", p);
    }
}

static struct record *new_record(int n, int vocab)
{
    struct record *r = mem_zalloc(1, sizeof *r);
    r->vocab = vocab;
    r->logits = mem_alloc((size_t)n * (size_t)vocab, sizeof(float));
    assert_non_null(r->logits);
    return r;
}

static void free_record(struct record *r)
{
    mem_free(r->logits);
    mem_free(r);
}

static void check(const struct subject *s)
{
    struct drive *d = open_subject(s, 1);
    struct record *want = new_record(s->n_tokens, drive_vocab(d));
    struct record *got = new_record(s->n_tokens, drive_vocab(d));
    /* The decode tail crosses a block, and for long sequences an attention chunk. */
    int n = s->n_tokens, tail = n > 270 ? n - 250 : n - 18;
    const struct way alone = {"alone", n, n, 0};
    const struct way ways[] = {{"chunks of 16", 16, 16, 0},
                               {"chunks of 7", 5, 7, 0},
                               {"chunks of 16 among others", 16, 16, 11},
                               {"chunks of 100 among others", 30, 100, 32},
                               {"token by token", tail, 1, 0},
                               {"token by token among others", n - 9, 1, 32}};
    run(d, s, &alone, want);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        run(d, s, &ways[i], got);
        same(want, got, n, ways[i].what, s);
    }
    drive_destroy(&d);
    if (!strcmp(s->device, "cpu")) {
        d = open_subject(s, 2);
        run(d, s, &alone, got);
        same(want, got, n, "two threads", s);
        run(d, s, &ways[3], got);
        same(want, got, n, "two threads, chunks of 100 among others", s);
        drive_destroy(&d);
    }
    free_record(want);
    free_record(got);
}

/* Two layers, one with a window of 24, head size 24, odd widths. */
static const char windowed[] =
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":120,\"intermediate_size\":200,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":24,"
    "\"vocab_size\":500,\"use_sliding_window\":true,\"sliding_window\":24,"
    "\"layer_types\":[\"full_attention\",\"sliding_attention\"]}";
static const char biased[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":96,\"intermediate_size\":136,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":3,\"num_key_value_heads\":3,\"head_dim\":32,"
    "\"vocab_size\":500,\"tie_word_embeddings\":false}";

/* Many experts with few rows each, and so many rows that the products go another way. */
static const char experts[] =
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"hidden_size\":192,\"intermediate_size\":200,"
    "\"moe_intermediate_size\":104,\"num_experts\":20,\"num_experts_per_tok\":4,"
    "\"norm_topk_prob\":true,\"num_hidden_layers\":2,\"num_attention_heads\":6,"
    "\"num_key_value_heads\":2,\"head_dim\":32,\"vocab_size\":500}";

static void reference(void **state)
{
    (void)state;
    check(&(struct subject){"ref", SL_DTYPE_F32, NULL, NULL, 24, 160, NULL, NULL});
    check(&(struct subject){"ref", SL_DTYPE_BF16, NULL, windowed, 40, 160, NULL, NULL});
    check(&(struct subject){"ref", SL_DTYPE_BF16, "fp8", windowed, 40, 160, NULL, "fp8"});
}

/* One checkpoint of each kind. */
static const char *const kinds[] = {"mixtral", "qwen2-moe", "falcon-rw",
                                    "gpt2",    "gemma2",    "stablelm-parallel",
                                    "olmo2",   "neox",      "opt-350m"};

static void check_kinds(const char *device, enum sl_dtype dtype)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char model[64];
        snprintf(model, sizeof model, "tests/golden/families/%s", kinds[i]);
        check(&(struct subject){device, dtype, NULL, NULL, 100, 256, model, NULL});
        print_message("%s: the same bits\n", kinds[i]);
    }
}

static void cuda(void **state)
{
    (void)state;
    check(&(struct subject){"cuda", SL_DTYPE_BF16, NULL, windowed, 300, 512, NULL, NULL});
    check(&(struct subject){"cuda", SL_DTYPE_BF16, NULL, biased, 300, 512, NULL, NULL});
    check(&(struct subject){"cuda", SL_DTYPE_BF16, NULL, experts, 500, 640, NULL, NULL});
    check_kinds("cuda", SL_DTYPE_BF16);
    static const char two_layers[] = "{\"num_hidden_layers\":2,\"vocab_size\":500}";
    check(&(struct subject){"cuda", SL_DTYPE_BF16, NULL, two_layers, 530, 640,
                            "bench/configs/qwen3-30b-a3b", NULL});
    check(&(struct subject){"cuda", SL_DTYPE_BF16, NULL, two_layers, 300, 512,
                            "bench/configs/mixtral-8x7b", NULL});
}

static void cpu(void **state)
{
    (void)state;
    static const struct subject subjects[] = {
        {"cpu", SL_DTYPE_F32, NULL, NULL, 300, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, NULL, NULL, 530, 640, NULL, NULL},
        {"cpu", SL_DTYPE_F16, NULL, NULL, 130, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, "int8", NULL, 130, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, "int4", NULL, 130, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, NULL, NULL, 300, 512, NULL, "int8"},
        {"cpu", SL_DTYPE_BF16, "int4", windowed, 300, 512, NULL, "int8"},
        {"cpu", SL_DTYPE_F32, NULL, windowed, 300, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, NULL, windowed, 300, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, NULL, biased, 300, 512, NULL, NULL},
        {"cpu", SL_DTYPE_BF16, NULL, experts, 300, 512, NULL, NULL},
    };
    EACH_ISA(isa, ISA_PLAIN)
    {
        assert_true(cpu_isa_limit(cpu_isa_name(isa)));
        for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++) {
            struct subject s = subjects[i];
            if (isa == ISA_PLAIN && !s.overrides)
                continue; /* a whole pebble is slow there; its loops are the same for every row */
            check(&s);
        }
        check_kinds("cpu", SL_DTYPE_F32);
        check_kinds("cpu", SL_DTYPE_BF16);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reference), cmocka_unit_test(cpu)};
    const struct CMUnitTest on_gpu[] = {cmocka_unit_test(cuda)};
    if (argc > 1 && !strcmp(argv[1], "cuda"))
        return cmocka_run_group_tests(on_gpu, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
