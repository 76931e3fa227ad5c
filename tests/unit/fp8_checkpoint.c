/* Checkpoints of FP8 weights as vLLM, compressed-tensors and ModelOpt write them: what is supported
 * loads with the values that it stands for, what is not is refused by name.
 * SPDX-License-Identifier: Apache-2.0 */
#include "support/drive.h"
#include "support/tempdir.h"

#include "base/fp8.h"
#include "base/mem.h"
#include "base/strbuf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { HIDDEN = 32, FFN = 48, VOCAB = 64, N_TOKENS = 20 };

#define CONFIG                                                                               \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":32,\"intermediate_size\":48," \
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,"           \
    "\"head_dim\":16,\"vocab_size\":64,\"max_position_embeddings\":64,"                      \
    "\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":false"

#define VLLM(more) "\"quant_method\":\"fp8\",\"activation_scheme\":" more
#define COMPRESSED(weights, activations)                                                         \
    "\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"ignore\":["        \
    "\"lm_head\"],\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":" weights \
    ",\"input_activations\":" activations "}}"
#define FLOAT8(strategy) "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"" strategy "\"}"

#define LAYER "model.layers.0."
static const struct {
    const char *name;
    int rows, cols;
    bool linear;
} tensors[] = {
    {"lm_head.weight", VOCAB, HIDDEN, false},
    {"model.embed_tokens.weight", VOCAB, HIDDEN, false},
    {"model.norm.weight", HIDDEN, 0, false},
    {LAYER "input_layernorm.weight", HIDDEN, 0, false},
    {LAYER "post_attention_layernorm.weight", HIDDEN, 0, false},
    {LAYER "self_attn.q_proj.weight", 32, HIDDEN, true},
    {LAYER "self_attn.k_proj.weight", 16, HIDDEN, true},
    {LAYER "self_attn.v_proj.weight", 16, HIDDEN, true},
    {LAYER "self_attn.o_proj.weight", HIDDEN, 32, true},
    {LAYER "mlp.gate_proj.weight", FFN, HIDDEN, true},
    {LAYER "mlp.up_proj.weight", FFN, HIDDEN, true},
    {LAYER "mlp.down_proj.weight", HIDDEN, FFN, true},
};
enum { N_TENSORS = sizeof tensors / sizeof *tensors };

/* How linear layers are written. */
enum form {
    PLAIN,       /* BF16 */
    PER_TENSOR,  /* weight_scale F32 [] and input_scale */
    PER_CHANNEL, /* weight_scale BF16 [rows, 1] */
    NO_SCALE,    /* wrong from here on */
    BLOCK_SCALE,
    SCALE_OF_NAN,
    CODE_OF_NAN
};

static char dir[TEMPDIR_BYTES];
static const char *device_of_codes = "ref"; /* or the program's argument */

static int make_dir(void **state)
{
    (void)state;
    return tempdir_make(dir);
}

static int remove_dir(void **state)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    (void)state;
    return tempdir_remove(dir, names, 2);
}

/* ---- writing ----------------------------------------------------------------------------------
 */

struct file {
    struct strbuf header, data;
};

static void begin_tensor(struct file *f, const char *name, const char *end, const char *dtype,
                         const char *shape, size_t bytes)
{
    size_t at = f->data.len;
    strbuf_addf(&f->header, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                f->header.len ? "," : "{", name, end, dtype, shape, at, at + bytes);
}

static void add_bf16(struct file *f, float v)
{
    uint16_t h = f32_bf16(v);
    strbuf_add(&f->data, (const char *)&h, 2);
}

static void add_scale(struct file *f, const char *name, enum form form, int rows, float scale)
{
    char shape[32];
    float v = form == SCALE_OF_NAN ? NAN : scale;
    if (form == NO_SCALE)
        return;
    if (form == BLOCK_SCALE) {
        begin_tensor(f, name, "_scale", "F32", "[2,1]", 8);
        strbuf_add(&f->data, (const char *)&v, 4);
        strbuf_add(&f->data, (const char *)&v, 4);
        return;
    }
    if (form == PER_CHANNEL) {
        snprintf(shape, sizeof shape, "[%d,1]", rows);
        begin_tensor(f, name, "_scale", "BF16", shape, 2 * (size_t)rows);
        for (int r = 0; r < rows; r++)
            add_bf16(f, scale);
        return;
    }
    char base[128];
    snprintf(base, sizeof base, "%.*sinput_scale", (int)(strlen(name) - 6), name);
    begin_tensor(f, base, "", "F32", "[1]", 4);
    strbuf_add(&f->data, (const char *)&v, 4);
    begin_tensor(f, name, "_scale", "F32", "[]", 4);
    strbuf_add(&f->data, (const char *)&v, 4);
}

/* Linear weights are codes times 2^-9, which bf16 holds exactly. */
static void add_tensor(struct file *f, int t, enum form form)
{
    int n = tensors[t].rows * (tensors[t].cols ? tensors[t].cols : 1);
    bool coded = form != PLAIN && tensors[t].linear;
    uint32_t x = (uint32_t)t + 1;
    char shape[32];
    if (tensors[t].cols)
        snprintf(shape, sizeof shape, "[%d,%d]", tensors[t].rows, tensors[t].cols);
    else
        snprintf(shape, sizeof shape, "[%d]", tensors[t].rows);
    begin_tensor(f, tensors[t].name, "", coded ? "F8_E4M3" : "BF16", shape,
                 (size_t)n * (coded ? 1 : 2));
    for (int i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        uint8_t code = (uint8_t)((x >> 31) << 7 | (0x40 + (x >> 20) % 0x2f));
        if (!tensors[t].cols)
            add_bf16(f, 1);
        else if (!coded)
            add_bf16(f, e4m3_f32(code) * 0x1p-9f);
        else
            strbuf_addc(&f->data, (char)(form == CODE_OF_NAN && i == 5 ? 0xff : code));
    }
    if (coded)
        add_scale(f, tensors[t].name, form, tensors[t].rows, 0x1p-9f);
}

/* A checkpoint whose quantization_config is {quantization} (NULL: it has none). */
static void write_model(const char *quantization, enum form form)
{
    struct file f;
    struct strbuf s;
    strbuf_init(&f.header, 1 << 20);
    strbuf_init(&f.data, 1 << 20);
    strbuf_init(&s, 1 << 20);
    for (int t = 0; t < N_TENSORS; t++)
        add_tensor(&f, t, form);
    strbuf_adds(&f.header, "}");
    while (f.header.len % 8)
        strbuf_addc(&f.header, ' ');
    uint64_t n = f.header.len;
    strbuf_add(&s, (const char *)&n, 8);
    strbuf_add(&s, f.header.data, f.header.len);
    strbuf_add(&s, f.data.data, f.data.len);
    assert_false(f.header.failed || f.data.failed || s.failed);
    tempdir_write(dir, "model.safetensors", s.data, s.len);
    char config[2048];
    snprintf(config, sizeof config, CONFIG "%s%s%s}",
             quantization ? ",\"quantization_config\":{" : "", quantization ? quantization : "",
             quantization ? "}" : "");
    tempdir_write(dir, "config.json", config, strlen(config));
    strbuf_fini(&f.header);
    strbuf_fini(&f.data);
    strbuf_fini(&s);
}

/* ---- running ----------------------------------------------------------------------------------
 */

static void keep(void *ctx, int item, int pos, const float *logits, int vocab)
{
    (void)item;
    memcpy((float *)ctx + (size_t)pos * VOCAB, logits, (size_t)vocab * sizeof *logits);
}

static void run(const char *device, const char *quantization, float *logits)
{
    int32_t tokens[N_TOKENS];
    const struct drive_config c = {.device = device,
                                   .model = dir,
                                   .dtype = SL_DTYPE_BF16,
                                   .quantization = quantization,
                                   .threads = 1,
                                   .max_tokens = N_TOKENS,
                                   .max_seqs = 1,
                                   .kv_tokens = 64};
    struct drive *d = drive_create(&c);
    struct drive_seq seq;
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = i * 29 % VOCAB;
    drive_seq_init(d, &seq, tokens, N_TOKENS, N_TOKENS);
    struct drive_item it = {&seq, N_TOKENS, true};
    drive_step(d, &it, 1, keep, logits);
    drive_seq_fini(d, &seq);
    drive_destroy(&d);
}

/* The difference's size, as a share of want's. */
static double distance(const float *got, const float *want)
{
    double sum = 0, square = 0;
    for (int i = 0; i < N_TOKENS * VOCAB; i++) {
        sum += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        square += (double)want[i] * (double)want[i];
    }
    return sqrt(sum / square);
}

static const struct {
    const char *config;
    enum form form;
} good[] = {
    {VLLM("\"static\""), PER_TENSOR},
    {VLLM("\"dynamic\",\"ignored_layers\":[\"lm_head\"]"), PER_TENSOR},
    {COMPRESSED(FLOAT8("tensor"), FLOAT8("tensor")), PER_TENSOR},
    {COMPRESSED(FLOAT8("channel"), FLOAT8("token")), PER_CHANNEL},
    {"\"quant_method\":\"modelopt\",\"quant_algo\":\"FP8\"", PER_TENSOR},
};
enum { N_GOOD = sizeof good / sizeof *good };

static void codes_run_as_they_are(void **state)
{
    static float plain[N_TOKENS * VOCAB], first[N_TOKENS * VOCAB], got[N_TOKENS * VOCAB];
    (void)state;
    write_model(NULL, PLAIN);
    run(device_of_codes, NULL, plain);
    for (int i = 0; i < N_GOOD; i++) {
        write_model(good[i].config, good[i].form);
        run(device_of_codes, i % 2 ? "fp8" : NULL, got);
        if (i == 0)
            memcpy(first, got, sizeof got);
        assert_memory_equal(got, first, sizeof got); /* the same codes and scales */
    }
    /* Activations in e4m3: each product's own error is about 2^-4 / sqrt(6) of its values. */
    double e = distance(got, plain);
    print_message("activations in fp8 move the logits by %.4f\n", e);
    assert_true(e > 1e-4 && e < 0.0625);
}

static void the_cpu_widens_them(void **state)
{
    static float plain[N_TOKENS * VOCAB], got[N_TOKENS * VOCAB];
    (void)state;
    write_model(NULL, PLAIN);
    run("cpu", NULL, plain);
    for (int i = 0; i < N_GOOD; i++) {
        write_model(good[i].config, good[i].form);
        run("cpu", NULL, got);
        assert_memory_equal(got, plain, sizeof got);
    }
}

/* ---- what is refused --------------------------------------------------------------------------
 */

static void refuses(const char *device, const char *quantization, const char *why)
{
    struct model_spec *spec = NULL;
    struct sl_err err = {0};
    struct runner *r = NULL;
    enum sl_status st = model_spec_load(&spec, dir, NULL, "vllm", &err);
    if (st == SL_OK) {
        struct runner_config rc = {.spec = spec,
                                   .dir = dir,
                                   .dtype = SL_DTYPE_BF16,
                                   .quantization = quantization,
                                   .block_size = 16};
        st = strcmp(device, "cpu") ? ref_device_create(&rc.ops, &rc.device, &err)
                                   : cpu_device_create(&rc.ops, &rc.device, 1, &err);
        if (st == SL_OK)
            st = runner_create(&r, &rc, &err);
    }
    assert_int_not_equal(st, SL_OK);
    if (!strstr(err.msg, why))
        fail_msg("'%s' does not say '%s'", err.msg, why);
    model_spec_destroy(&spec);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        enum form form;
        const char *device, *quantization, *why;
    } bad[] = {
        {"\"quant_method\":\"gptq\"", PLAIN, "ref", NULL, "quant_method 'gptq' is not supported"},
        {VLLM("\"dynamic\",\"weight_block_size\":[128,128]"), PER_TENSOR, "ref", NULL,
         "weight_block_size [128, 128] is not supported"},
        {VLLM("\"never\""), PER_TENSOR, "ref", NULL, "activation_scheme 'never'"},
        {COMPRESSED(FLOAT8("channel"), "null"), PER_CHANNEL, "ref", NULL,
         "activations that are not quantized"},
        {COMPRESSED("{\"num_bits\":4,\"type\":\"int\",\"strategy\":\"group\"}", FLOAT8("token")),
         PER_CHANNEL, "ref", NULL, "weights of 4 bits, type 'int'"},
        {COMPRESSED(FLOAT8("block"), FLOAT8("token")), PER_CHANNEL, "ref", NULL,
         "weights with strategy 'block'"},
        {"\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"", PER_TENSOR, "ref", NULL,
         "quant_algo 'NVFP4'"},
        {NULL, PER_TENSOR, "ref", NULL, "has dtype F8_E4M3"},
        {VLLM("\"static\""), NO_SCALE, "ref", NULL, "has no 'model.layers.0."},
        {VLLM("\"static\""), BLOCK_SCALE, "ref", NULL, "one floating-point scale"},
        {VLLM("\"static\""), SCALE_OF_NAN, "ref", NULL, "weight_scale' holds NaN"},
        {VLLM("\"static\""), CODE_OF_NAN, "ref", NULL, "holds NaN or Inf (first at [0, 5])"},
        {VLLM("\"static\""), CODE_OF_NAN, "cpu", NULL, "holds NaN or Inf (first at [0, 5])"},
        {VLLM("\"static\""), PER_TENSOR, "ref", "int8", "does not match"},
        {NULL, PLAIN, "cpu", "fp8", "device cpu has no FP8 products"},
        {NULL, PLAIN, "ref", "awq", "quantization 'awq' is not known"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_model(bad[i].config, bad[i].form);
        refuses(bad[i].device, bad[i].quantization, bad[i].why);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(codes_run_as_they_are, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(the_cpu_widens_them, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(refusals, make_dir, remove_dir)};
    if (argc > 1)
        device_of_codes = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
