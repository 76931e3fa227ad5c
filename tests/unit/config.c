/* config: what config.json and generation_config.json say, and what is refused; a whole load
 * against wrong tensors, NaN, other dtypes, and every failing allocation.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/loader.h"
#include "model/spec.h"

#include "base/half.h"
#include "base/mem.h"
#include "support/tempdir.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[TEMPDIR_BYTES];

static int make_dir(void **state)
{
    (void)state;
    return tempdir_make(dir);
}

static void write_bytes(const char *name, const void *bytes, size_t n)
{
    tempdir_write(dir, name, bytes, n);
}

static int remove_dir(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "config.json",
                                        "generation_config.json"};
    return tempdir_remove(dir, names, sizeof names / sizeof *names);
}

/* ---- config.json --------------------------------------------------------------------------- */

static const char tiny[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":32,\"intermediate_size\":40,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"vocab_size\":24,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,"
    "\"torch_dtype\":\"float32\",\"eos_token_id\":[5,3],\"bos_token_id\":1}";

static struct model_spec *load(const char *overrides)
{
    struct model_spec *s = NULL;
    struct sl_err err = {0};
    if (model_spec_load(&s, dir, overrides, "auto", &err))
        fail_msg("%s", err.msg);
    return s;
}

static void refused(const char *overrides, enum sl_status want, const char *says)
{
    struct model_spec *s = NULL;
    struct sl_err err = {0};
    assert_int_equal(model_spec_load(&s, dir, overrides, "auto", &err), want);
    assert_null(s);
    if (!strstr(err.msg, says))
        fail_msg("%s: '%s' does not say '%s'", overrides ? overrides : "", err.msg, says);
}

static void reads_a_llama(void **state)
{
    (void)state;
    write_bytes("config.json", tiny, sizeof tiny - 1);
    struct model_spec *s = load(NULL);
    struct model_info info;
    model_spec_info(s, &info);
    assert_string_equal(info.architecture, "LlamaForCausalLM");
    assert_int_equal(s->head_dim, 8);
    assert_int_equal(info.dtype, SL_DTYPE_F32);
    assert_int_equal(info.bos, 1);
    assert_int_equal(info.n_eos, 2);
    assert_int_equal(info.eos[0], 5);
    assert_true(isnan(info.temperature));
    assert_int_equal(info.top_k, SL_NONE);
    assert_int_equal(info.layout.n_groups, 1);
    assert_int_equal(info.layout.group[0].n_layers, 2);
    assert_int_equal(info.layout.group[0].bytes_per_token, 2 * 2 * 16 * 4);
    /* lm_head; per layer q, o, k, v, gate, up, down and two norms; the final norm */
    uint64_t params = 24 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 40 + 2 * 32) + 32;
    assert_int_equal(info.flops_per_token, 2 * params);
    assert_int_equal(info.weight_bytes, 4 * params);
    assert_float_equal(s->rope[0].inv_freq[0], 1, 0);
    assert_float_equal(s->rope[0].inv_freq[1], 0.1, 1e-8);
    model_spec_destroy(&s);
}

static void overrides_merge(void **state)
{
    (void)state;
    struct model_spec *s = load("{\"rope_theta\":16.0,\"num_hidden_layers\":3}");
    assert_int_equal(s->n_layers, 3);
    assert_float_equal(s->rope[0].inv_freq[1], 0.5, 1e-7);
    model_spec_destroy(&s);
    refused("[1]", SL_EFORMAT, "hf_overrides: a JSON object");
    refused("{", SL_EFORMAT, "hf_overrides: not valid JSON");
}

static void generation_config(void **state)
{
    (void)state;
    static const char gen[] = "{\"eos_token_id\":[3,7,-1],\"temperature\":0.5,\"top_k\":20,"
                              "\"max_new_tokens\":9}";
    struct model_info info;
    struct sl_err err = {0};
    write_bytes("generation_config.json", gen, sizeof gen - 1);
    struct model_spec *s = load(NULL);
    model_spec_info(s, &info);
    assert_int_equal(info.n_eos, 3); /* 5, 3 of config.json, then 7 */
    assert_int_equal(info.eos[2], 7);
    assert_float_equal(info.temperature, 0.5, 0);
    assert_int_equal(info.top_k, 20);
    assert_int_equal(info.max_new_tokens, 9);
    assert_true(isnan(info.top_p));
    model_spec_destroy(&s);
    assert_int_equal(model_spec_load(&s, dir, NULL, "vllm", &err), SL_OK);
    model_spec_info(s, &info);
    assert_int_equal(info.n_eos, 3);
    assert_true(isnan(info.temperature));
    assert_int_equal(info.top_k, SL_NONE);
    model_spec_destroy(&s);
    assert_int_equal(model_spec_load(&s, dir, NULL, "/nowhere", &err), SL_ENOTFOUND);
    assert_non_null(strstr(err.msg, "/nowhere/generation_config.json"));
    write_bytes("generation_config.json", "{\"eos_token_id\":\"x\"}", 20);
    refused(NULL, SL_EFORMAT, "eos_token_id must be");
    write_bytes("generation_config.json", "{\"top_k\":1.5}", 13);
    refused(NULL, SL_EFORMAT, "generation_config.json: top_k must be a whole number");
}

static void refuses_what_it_cannot_run(void **state)
{
    (void)state;
    static const struct {
        const char *override, *says;
    } bad[] = {
        {"{\"architectures\":[\"NoSuchModel\"]}",
         "'NoSuchModel' is not known; known are: LlamaForCausalLM, MistralForCausalLM"},
        {"{\"architectures\":[]}", "(none given)"},
        {"{\"architectures\":7}", "(none given)"},
        {"{\"vocab_size\":0}", "vocab_size is 0; it must be between"},
        {"{\"vocab_size\":1e9}", "vocab_size must be a whole number"},
        {"{\"hidden_size\":\"x\"}", "hidden_size must be a whole number"},
        {"{\"hidden_size\":null}", "hidden_size is missing"},
        {"{\"hidden_size\":33}", "no multiple of num_attention_heads"},
        {"{\"hidden_size\":36}", "head size 9 is no multiple of 8"},
        {"{\"hidden_size\":2}", "no multiple of num_attention_heads"},
        {"{\"head_dim\":20}", "head size 20 is no multiple of 8"},
        {"{\"num_key_value_heads\":3}", "4 attention heads are no multiple of 3 KV heads"},
        {"{\"num_attention_heads\":4096,\"head_dim\":4096}", "more than 1048576 values"},
        {"{\"num_hidden_layers\":-1}", "num_hidden_layers is -1"},
        {"{\"rms_norm_eps\":0}", "epsilon"},
        {"{\"rms_norm_eps\":\"a\"}", "rms_norm_eps must be a number"},
        {"{\"rope_theta\":-1}", "rope_theta is -1"},
        {"{\"rope_theta\":0}", "rope_theta is 0"},
        {"{\"rope_scaling\":{\"type\":\"warp\",\"factor\":2}}", "rope type 'warp' is not known"},
        {"{\"rope_scaling\":{\"type\":\"linear\"}}", "factor must be 1 or more"},
        {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e300}}", "factor must be"},
        {"{\"rope_scaling\":[]}", "rope_scaling must be an object"},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4}}",
         "low_freq_factor and high_freq_factor do not fit"},
        {"{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"beta_fast\":0}}", "beta_fast is 0"},
        {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1]}}",
         "short_factor must list 4 numbers"},
        {"{\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,0,1]}}",
         "entry 2 of short_factor is not above 0"},
        {"{\"architectures\":[\"MixtralForCausalLM\"]}", "num_local_experts is missing"},
        {"{\"architectures\":[\"MixtralForCausalLM\"],\"num_local_experts\":2,"
         "\"num_experts_per_tok\":3}",
         "num_experts_per_tok 3 is more than num_local_experts 2"},
        {"{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"num_experts\":2}",
         "moe_intermediate_size is missing"},
        {"{\"architectures\":[\"OPTForCausalLM\"],\"layer_norm_elementwise_affine\":false}",
         "layer_norm_elementwise_affine false"},
        {"{\"architectures\":[\"GPT2LMHeadModel\"],\"n_embd\":32,\"n_layer\":1,\"n_head\":4}",
         "n_positions is missing"},
        {"{\"architectures\":[\"SmolLM3ForCausalLM\"],\"no_rope_layers\":[1]}",
         "no_rope_layers names 1 layers of 2"},
        {"{\"architectures\":[\"StableLmForCausalLM\"],\"partial_rotary_factor\":2}",
         "partial_rotary_factor is 2"},
        {"{\"architectures\":[\"GraniteForCausalLM\"],\"logits_scaling\":0}",
         "a scale in the config is not a finite number"},
        {"{\"hidden_act\":\"mish\"}", "hidden_act 'mish' is not known"},
        {"{\"hidden_act\":1}", "hidden_act must be a string"},
        {"{\"tie_word_embeddings\":1}", "tie_word_embeddings must be true or false"},
        {"{\"torch_dtype\":\"int4\"}", "dtype 'int4' is not known"},
        {"{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", "more than 16 ids"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i].override, SL_EFORMAT, bad[i].says);
    write_bytes("config.json", "{\"a\":", 5);
    refused(NULL, SL_EFORMAT, "config.json: not valid JSON");
    char *deep = malloc(200000);
    memset(deep, '[', 200000);
    write_bytes("config.json", deep, 200000);
    free(deep);
    refused(NULL, SL_EFORMAT, "nested deeper than 32");
    write_bytes("config.json", tiny, sizeof tiny - 1);
    dir[strlen(dir) - 1] ^= 1;
    refused(NULL, SL_ENOTFOUND, "config.json: No such file");
    dir[strlen(dir) - 1] ^= 1;
}

static void rope_scalings(void **state)
{
    (void)state;
    struct model_spec *s =
        load("{\"head_dim\":64,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}");
    assert_float_equal(s->rope[0].inv_freq[0], 0.25, 0);
    assert_int_equal(s->max_position, 256);
    model_spec_destroy(&s);
    /* Llama 3.1's own numbers, from the formula of its paper's code: the first frequencies stay,
     * the last are divided by 8, one in between is mixed. */
    s = load(
        "{\"head_dim\":128,\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,"
        "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
        "\"original_max_position_embeddings\":8192}}");
    const float *f = s->rope[0].inv_freq;
    assert_float_equal(f[0], 1, 0);
    assert_float_equal(f[28], pow(500000, -56.0 / 128), 1e-9);
    assert_float_equal(f[63], pow(500000, -126.0 / 128) / 8, 1e-12);
    double mid = pow(500000, -60.0 / 128), keep = (8192 / (2 * M_PI / mid) - 1) / 3;
    assert_true(keep > 0 && keep < 1);
    assert_float_equal(f[30], (1 - keep) * mid / 8 + keep * mid, 1e-9);
    assert_int_equal(s->max_position, 64);
    model_spec_destroy(&s);
}

static void windows_make_groups(void **state)
{
    (void)state;
    struct model_spec *s =
        load("{\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":16}");
    assert_int_equal(s->info.layout.n_groups, 1);
    assert_int_equal(s->info.layout.group[0].window, 16);
    model_spec_destroy(&s);
    s = load("{\"architectures\":[\"Qwen3ForCausalLM\"],\"sliding_window\":16,"
             "\"use_sliding_window\":true,\"num_hidden_layers\":3,"
             "\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\"]}");
    assert_int_equal(s->info.layout.n_groups, 2);
    assert_int_equal(s->info.layout.group[0].n_layers, 2);
    assert_int_equal(s->info.layout.group[1].window, 16);
    assert_int_equal(s->layer[2].layer_in_group, 1);
    model_spec_destroy(&s);
    s = load("{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":16,"
             "\"use_sliding_window\":true,\"max_window_layers\":1}");
    assert_int_equal(s->layer[0].window, 0);
    assert_int_equal(s->layer[1].window, 16);
    assert_true(s->qkv_bias && !s->o_bias);
    model_spec_destroy(&s);
    refused("{\"architectures\":[\"Qwen2ForCausalLM\"],\"layer_types\":[\"full_attention\"]}",
            SL_EFORMAT, "names 1 layers of 2");
    refused("{\"architectures\":[\"Qwen2ForCausalLM\"],\"layer_types\":[\"odd\",\"odd\"]}",
            SL_EFORMAT, "'odd' is not known");
}

/* ---- a whole load -------------------------------------------------------------------------- */

/* One tensor of a checkpoint that a test changes. */
struct edit {
    const char *name, *rename, *dtype, *shape; /* what is set replaces */
    bool drop;
    float value; /* of element 3, if not 0 */
};

/* A checkpoint for `tiny`, all F32, with one change. */
static void write_checkpoint(const struct edit *e)
{
    static const struct {
        const char *name;
        int rows, cols;
    } all[] = {{"self_attn.q_proj.weight", 32, 32},       {"self_attn.k_proj.weight", 16, 32},
               {"self_attn.v_proj.weight", 16, 32},       {"self_attn.o_proj.weight", 32, 32},
               {"mlp.gate_proj.weight", 40, 32},          {"mlp.up_proj.weight", 40, 32},
               {"mlp.down_proj.weight", 32, 40},          {"input_layernorm.weight", 32, 0},
               {"post_attention_layernorm.weight", 32, 0}};
    static char header[16384], data[1 << 17];
    size_t at = 0;
    int h = snprintf(header, sizeof header, "{\"__metadata__\":{}");
    memset(data, 0, sizeof data);
    for (int i = 0; i < 21; i++) {
        char name[64];
        int rows = i < 2 ? 24 : 32, cols = i < 2 ? 32 : 0;
        if (i < 3) {
            static const char *const top[] = {"model.embed_tokens.weight", "lm_head.weight",
                                              "model.norm.weight"};
            snprintf(name, sizeof name, "%s", top[i]);
        } else {
            int t = (i - 3) % 9;
            snprintf(name, sizeof name, "model.layers.%d.%s", (i - 3) / 9, all[t].name);
            rows = all[t].rows;
            cols = all[t].cols;
        }
        bool edited = e && !strcmp(name, e->name);
        if (edited && e->drop)
            continue;
        size_t n = (size_t)rows * (size_t)(cols ? cols : 1);
        const char *dtype = edited && e->dtype ? e->dtype : "F32";
        size_t bytes = n * (strcmp(dtype, "F32") ? 2 : 4);
        char shape[32];
        snprintf(shape, sizeof shape, cols ? "[%d,%d]" : "[%d]", rows, cols);
        h += snprintf(header + h, sizeof header - (size_t)h,
                      ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                      edited && e->rename ? e->rename : name, dtype,
                      edited && e->shape ? e->shape : shape, at, at + bytes);
        for (size_t k = 0; k < n; k++) {
            float v = edited && k == 3 && e->value != 0 ? e->value : (float)(k % 7) * 0.125f;
            uint16_t half = f32_bf16(v);
            if (bytes == 4 * n)
                memcpy(data + at + 4 * k, &v, 4);
            else
                memcpy(data + at + 2 * k, &half, 2);
        }
        at += bytes;
    }
    h += snprintf(header + h, sizeof header - (size_t)h, "}");
    static char file[sizeof header + sizeof data + 8];
    uint64_t len = (uint64_t)h;
    memcpy(file, &len, 8);
    memcpy(file + 8, header, (size_t)h);
    memcpy(file + 8 + h, data, at);
    write_bytes("model.safetensors", file, 8 + (size_t)h + at);
}

static enum sl_status load_weights(struct model_weights *w, const struct model_spec *spec,
                                   const struct ops **ops, struct device **dev,
                                   enum sl_load_format format, struct sl_err *err)
{
    enum sl_status st = ref_device_create(ops, dev, err);
    if (st)
        return st;
    struct load_request req = {.spec = spec,
                               .dir = dir,
                               .load_format = format,
                               .dtype = SL_DTYPE_F32,
                               .ops = *ops,
                               .device = *dev};
    st = weights_load(w, &req, err);
    if (st)
        (*ops)->destroy(*dev);
    return st;
}

static void loads_weights(void **state)
{
    (void)state;
    struct model_spec *spec = load(NULL);
    struct model_weights w;
    const struct ops *ops;
    struct device *dev;
    struct sl_err err = {0};
    struct edit mixed = {.name = "model.layers.1.self_attn.k_proj.weight", .dtype = "BF16"};
    write_checkpoint(&mixed);
    if (load_weights(&w, spec, &ops, &dev, SL_LOAD_AUTO, &err))
        fail_msg("%s", err.msg);
    const struct weight *qkv = weights_matrix(&w, SLOT_QKV, 1);
    assert_int_equal(qkv->rows, 64);
    assert_int_equal(qkv->cols, 32);
    const float *v = qkv->data;
    for (int part = 0, row = 0; part < 3; row += part ? 16 : 32, part++)
        for (int i = 0; i < 32; i++)
            assert_float_equal(v[row * 32 + i], (i % 7) * 0.125f, 0);
    assert_null(weights_norm(&w, SLOT_Q_NORM, 0));
    assert_float_equal(weights_norm(&w, SLOT_FINAL_NORM, -1)->w[2], 0.25f, 0);
    assert_int_equal(w.n_ropes, 1);
    weights_fini(&w);
    ops->destroy(dev);
    model_spec_destroy(&spec);
}

static enum sl_status takes_memory(struct device *d, struct weight *out,
                                   const struct weight_source *src, enum wformat format,
                                   const char *name, struct sl_err *err)
{
    (void)d, (void)out, (void)src, (void)format;
    return SL_FAIL(err, SL_ENOMEM, "memory was taken for '%s'", name);
}

/* Refused before the device gives memory for any weight. */
static void refused_early(const struct model_spec *spec, const char *folder, const char *says)
{
    struct model_weights w;
    const struct ops *ops;
    struct device *dev;
    struct sl_err err = {0};
    assert_int_equal(ref_device_create(&ops, &dev, &err), SL_OK);
    struct ops strict = *ops;
    strict.weight_prepare = takes_memory;
    const struct load_request req = {.spec = spec,
                                     .dir = folder,
                                     .load_format = SL_LOAD_AUTO,
                                     .dtype = SL_DTYPE_F32,
                                     .ops = &strict,
                                     .device = dev};
    assert_int_equal(weights_load(&w, &req, &err), SL_EFORMAT);
    if (!strstr(err.msg, says))
        fail_msg("'%s' does not say '%s'", err.msg, says);
    ops->destroy(dev);
}

static void wrong_checkpoints(void **state)
{
    (void)state;
    static const char mid[] = "model.layers.1.mlp.up_proj.weight";
    static const struct {
        struct edit e;
        const char *says;
    } bad[] = {
        {{.name = mid, .drop = true}, "no tensor 'model.layers.1.mlp.up_proj.weight'"},
        {{.name = mid, .rename = "model.layers.1.mlp.upp_proj.weight"},
         "no tensor 'model.layers.1.mlp.up_proj.weight'"},
        {{.name = mid, .shape = "[32,40]"},
         "has shape [32, 40], but config.json makes it [40, 32]"},
        {{.name = mid, .shape = "[1280]"}, "has shape [1280]"},
        {{.name = mid, .dtype = "I16"}, "has dtype I16; weights are F32, F16 or BF16"},
        {{.name = mid, .value = NAN}, "holds NaN or Inf (first at [0, 3])"},
        {{.name = mid, .value = -INFINITY}, "holds NaN or Inf (first at [0, 3])"},
        {{.name = mid, .dtype = "BF16", .value = NAN}, "holds NaN or Inf"},
        {{.name = "model.norm.weight", .value = NAN}, "'model.norm.weight' holds NaN or Inf"},
    };
    struct model_spec *spec = load(NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct model_weights w;
        const struct ops *ops;
        struct device *dev;
        struct sl_err err = {0};
        write_checkpoint(&bad[i].e);
        if (bad[i].e.value == 0) { /* what is wrong stands in the header */
            refused_early(spec, dir, bad[i].says);
            continue;
        }
        assert_int_equal(load_weights(&w, spec, &ops, &dev, SL_LOAD_AUTO, &err), SL_EFORMAT);
        if (!strstr(err.msg, bad[i].says))
            fail_msg("'%s' does not say '%s'", err.msg, bad[i].says);
    }
    model_spec_destroy(&spec);
    spec = load("{\"num_hidden_layers\":1,\"tie_word_embeddings\":true}");
    struct model_weights w;
    const struct ops *ops;
    struct device *dev;
    struct sl_err err = {0};
    write_checkpoint(NULL); /* a layer too many; lm_head is a copy of the tied table */
    assert_int_equal(load_weights(&w, spec, &ops, &dev, SL_LOAD_AUTO, &err), SL_EFORMAT);
    assert_non_null(strstr(err.msg, "'model.layers.1.input_layernorm.weight' (and 8 more)"));
    model_spec_destroy(&spec);
}

/* A checkpoint of 4 experts under a config of 5. */
static void missing_expert(void **state)
{
    (void)state;
    static const char folder[] = "tests/golden/families/mixtral";
    struct model_spec *spec = NULL;
    struct sl_err err = {0};
    if (model_spec_load(&spec, folder, "{\"num_local_experts\":5}", "vllm", &err))
        fail_msg("%s", err.msg);
    refused_early(spec, folder, "has no tensor 'model.layers.0.block_sparse_moe.experts.4.");
    model_spec_destroy(&spec);
}

/* Every size at once is too much, though each alone would do. */
static void too_many_tensors(void **state)
{
    (void)state;
    struct model_spec *spec =
        load("{\"architectures\":[\"MixtralForCausalLM\"],\"num_local_experts\":4096,"
             "\"num_hidden_layers\":4096}");
    refused_early(spec, dir, "config.json makes 50360323 tensors; at most 1048576 are taken");
    model_spec_destroy(&spec);
}

/* Each number of a config as numbers should not be: refused by its name. */
static void hostile_numbers(void **state)
{
    (void)state;
    static const char *const keys[] = {
        "hidden_size",  "intermediate_size", "num_hidden_layers",       "num_attention_heads",
        "vocab_size",   "head_dim",          "max_position_embeddings", "num_key_value_heads",
        "rms_norm_eps", "rope_theta"};
    static const char *const values[] = {
        "-1", "-9223372036854775808", "1e308", "\"x\"", "{}", "[]", "true"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char over[96];
            bool eps = !strcmp(keys[k], "rms_norm_eps") && v < 3;
            snprintf(over, sizeof over, "{\"%s\":%s}", keys[k], values[v]);
            refused(over, SL_EFORMAT, eps ? "epsilon" : keys[k]);
        }
    static const char *const no_json[] = {"NaN", "Infinity", "1e999", "99999999999999999999",
                                          "0x10"};
    for (size_t v = 0; v < sizeof no_json / sizeof *no_json; v++) {
        char over[96];
        snprintf(over, sizeof over, "{\"rope_theta\":%s}", no_json[v]);
        refused(over, SL_EFORMAT, "not valid JSON");
    }
}

static void dummy_weights(void **state)
{
    (void)state;
    float a[9], b[9];
    uint16_t h[9];
    dummy_fill(a, SL_DTYPE_F32, 9, 1, "w", 0, 2);
    dummy_fill(b, SL_DTYPE_F32, 9, 1, "w", 0, 2);
    assert_memory_equal(a, b, sizeof a);
    dummy_fill(h, SL_DTYPE_BF16, 9, 1, "w", 0, 2);
    for (int i = 0; i < 9; i++) {
        assert_true(fabsf(a[i]) <= 2);
        assert_int_equal(h[i], f32_bf16(a[i]));
    }
    dummy_fill(b, SL_DTYPE_F32, 9, 2, "w", 0, 2);
    assert_memory_not_equal(a, b, sizeof a);
    dummy_fill(b, SL_DTYPE_F32, 9, 1, "v", 0, 2);
    assert_memory_not_equal(a, b, sizeof a);
}

/* Every allocation of a load fails once; nothing leaks, the error is SL_ENOMEM. */
static void survives_no_memory(void **state)
{
    (void)state;
    write_checkpoint(NULL);
    for (int format = SL_LOAD_AUTO; format <= SL_LOAD_DUMMY; format++)
        for (long nth = 1;; nth++) {
            struct model_spec *spec = NULL;
            struct runner *r = NULL;
            struct runner_config rc = {
                .dir = dir, .load_format = (enum sl_load_format)format, .block_size = 16};
            struct batch_limits limits = {8, 2, 8, 2, 8, 1, 0};
            struct sl_err err = {0};
            mem_fail_nth(nth);
            enum sl_status st = model_spec_load(&spec, dir, NULL, "vllm", &err);
            if (st == SL_OK)
                st = ref_device_create(&rc.ops, &rc.device, &err);
            rc.spec = spec;
            if (st == SL_OK)
                st = runner_create(&r, &rc, &err);
            if (st == SL_OK)
                st = runner_take_kv(r, 4, &limits, &err);
            mem_fail_nth(0);
            if (r)
                runner_backend(r)->ops->destroy(runner_backend(r));
            model_spec_destroy(&spec);
            if (st == SL_OK) {
                assert_true(nth > 60);
                break;
            }
            assert_int_equal(st, SL_ENOMEM);
            assert_true(err.msg[0]);
        }
}

static void half_conversions(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_f32((uint16_t)h), b = bf16_f32((uint16_t)h);
        if (!isnan(f))
            assert_int_equal(f32_f16(f), h);
        else
            assert_true(isnan(f16_f32(f32_f16(f))));
        if (!isnan(b))
            assert_int_equal(f32_bf16(b), h);
        else
            assert_true(isnan(bf16_f32(f32_bf16(b))));
    }
    assert_int_equal(f32_f16(65519.9f), 0x7bff);
    assert_int_equal(f32_f16(65520.f), 0x7c00);
    assert_int_equal(f32_f16(1.f + 0x1p-11f), 0x3c00); /* ties to even */
    assert_int_equal(f32_f16(1.f + 0x1p-11f + 0x1p-20f), 0x3c01);
    assert_int_equal(f32_f16(0x1p-25f), 0);
    assert_int_equal(f32_f16(0x1.8p-25f), 1);
    assert_int_equal(f32_bf16(1.f + 0x1p-8f), 0x3f80);
    assert_int_equal(f32_bf16(1.f + 0x1.8p-7f), 0x3f82);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_llama),      cmocka_unit_test(overrides_merge),
        cmocka_unit_test(rope_scalings),      cmocka_unit_test(windows_make_groups),
        cmocka_unit_test(loads_weights),      cmocka_unit_test(wrong_checkpoints),
        cmocka_unit_test(missing_expert),     cmocka_unit_test(dummy_weights),
        cmocka_unit_test(too_many_tensors),   cmocka_unit_test(hostile_numbers),
        cmocka_unit_test(survives_no_memory), cmocka_unit_test(refuses_what_it_cannot_run),
        cmocka_unit_test(half_conversions),   cmocka_unit_test(generation_config),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
