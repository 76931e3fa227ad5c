/* pooling_config: what sentence-transformers' files, config.json and --pooler-config say about
 * pooling, in that order, and what they may not say.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/spec.h"
#include "support/tempdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[TEMPDIR_BYTES];

static const char decoder[] =
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":32,\"intermediate_size\":40,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"vocab_size\":24,\"max_position_embeddings\":64}";
static const char encoder[] =
    "{\"architectures\":[\"BertModel\"],\"hidden_size\":32,\"intermediate_size\":40,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":24,"
    "\"max_position_embeddings\":64,\"type_vocab_size\":2}";

#define MODULE(kind, path) \
    "{\"path\":\"" path "\",\"type\":\"sentence_transformers.models." kind "\"}"
#define MODULES(more) "[" MODULE("Transformer", "") "," MODULE("Pooling", "1_Pooling") more "]"

static int make_dir(void **state)
{
    char sub[TEMPDIR_BYTES + 16];
    (void)state;
    if (tempdir_make(dir))
        return -1;
    snprintf(sub, sizeof sub, "%s/1_Pooling", dir);
    return mkdir(sub, 0755);
}

/* NULL: the file is not there. */
static void write_file(const char *name, const char *text)
{
    char path[TEMPDIR_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
    if (text)
        tempdir_write(dir, name, text, strlen(text));
}

static int remove_dir(void **state)
{
    static const char *const names[] = {"config.json", "modules.json", "1_Pooling/config.json",
                                        "sentence_bert_config.json"};
    char sub[TEMPDIR_BYTES + 16];
    (void)state;
    for (int i = 0; i < 4; i++)
        write_file(names[i], NULL);
    snprintf(sub, sizeof sub, "%s/1_Pooling", dir);
    rmdir(sub);
    return tempdir_remove(dir, NULL, 0);
}

static void write_folder(const char *config, const char *modules, const char *pooling)
{
    write_file("config.json", config);
    write_file("modules.json", modules);
    write_file("1_Pooling/config.json", pooling);
    write_file("sentence_bert_config.json", NULL);
}

static struct model_spec *load(struct spec_options o)
{
    struct model_spec *s = NULL;
    struct sl_err err = {0};
    if (model_spec_load_as(&s, dir, &o, &err))
        fail_msg("%s", err.msg);
    return s;
}

static void refused(struct spec_options o, const char *says)
{
    struct model_spec *s = NULL;
    struct sl_err err = {0};
    assert_int_not_equal(model_spec_load_as(&s, dir, &o, &err), SL_OK);
    assert_null(s);
    if (!strstr(err.msg, says))
        fail_msg("'%s' does not say '%s'", err.msg, says);
}

static void expect(struct spec_options o, bool pools, enum pool_kind kind, bool normalize)
{
    struct model_spec *s = load(o);
    assert_int_equal(s->pool.only, pools);
    if (pools) {
        assert_int_equal(s->pool.kind, kind);
        assert_int_equal(s->pool.normalize, normalize);
    }
    model_spec_destroy(&s);
}

static const struct spec_options plain = {0}, pooling = {.runner = SL_RUNNER_POOLING};

static void without_files(void **state)
{
    (void)state;
    write_folder(decoder, NULL, NULL);
    expect(plain, false, POOL_LAST, false);
    expect(pooling, true, POOL_LAST, true);
    expect((struct spec_options){.convert = "embed"}, true, POOL_LAST, true);
    refused((struct spec_options){.convert = "classify"}, "no classification head");
    refused((struct spec_options){.convert = "none", .runner = SL_RUNNER_POOLING},
            "pools nothing unless it is converted");
    write_folder(encoder, NULL, NULL);
    expect(plain, true, POOL_CLS, true);
    refused((struct spec_options){.runner = SL_RUNNER_GENERATE}, "generates nothing");
}

static void sentence_transformers(void **state)
{
    (void)state;
    static const struct {
        const char *pooling;
        enum pool_kind kind;
    } known[] = {
        {"{\"pooling_mode_cls_token\":true,\"pooling_mode_mean_tokens\":false}", POOL_CLS},
        {"{\"pooling_mode_mean_tokens\":true}", POOL_MEAN},
        {"{\"pooling_mode_lasttoken\":true,\"include_prompt\":true}", POOL_LAST},
        {"{\"pooling_mode\":\"mean\"}", POOL_MEAN},
        {"{\"pooling_mode\":\"lasttoken\"}", POOL_LAST},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        for (int normalize = 0; normalize < 2; normalize++) {
            write_folder(i % 2 ? decoder : encoder,
                         normalize ? MODULES("," MODULE("Normalize", "2_Normalize")) : MODULES(""),
                         known[i].pooling);
            expect(plain, true, known[i].kind, normalize);
        }
    write_folder(decoder, MODULES(""), "{\"pooling_mode_lasttoken\":true}");
    write_file("sentence_bert_config.json", "{\"max_seq_length\":48}");
    struct model_spec *s = load(plain);
    assert_int_equal(s->info.max_position, 48);
    model_spec_destroy(&s);
}

static void bad_files(void **state)
{
    (void)state;
    static const struct {
        const char *modules, *pooling, *says;
    } bad[] = {
        {MODULES("," MODULE("Dense", "2_Dense")), "{\"pooling_mode_mean_tokens\":true}",
         "module 'Dense' is not there yet"},
        {MODULES(""), "{\"pooling_mode_max_tokens\":true}", "mode 'max_tokens' is not there yet"},
        {MODULES(""), "{\"pooling_mode_max_tokens\":true,\"pooling_mode_cls_token\":true}",
         "several modes at once"},
        {MODULES(""), NULL, "1_Pooling/config.json"},
        {MODULES(""), "[]", "config.json: a JSON object"},
        {"[" MODULE("Pooling", "../..") "]", NULL, "path is no folder in this one"},
        {"[" MODULE("Pooling", "/etc") "]", NULL, "path is no folder in this one"},
        {"{", NULL, "modules.json: not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_folder(encoder, bad[i].modules, bad[i].pooling);
        refused(plain, bad[i].says);
    }
}

static void pooler_config(void **state)
{
    (void)state;
    write_folder(decoder, MODULES(""), "{\"pooling_mode_mean_tokens\":true}");
    expect((struct spec_options){.pooler_config = "{\"pooling_type\":\"LAST\"}"}, true, POOL_LAST,
           false);
    expect((struct spec_options){.pooler_config =
                                     "{\"seq_pooling_type\":\"cls\",\"use_activation\":true}"},
           true, POOL_CLS, true);
    struct model_spec *s = load((struct spec_options){
        .pooler_config = "{\"task\":\"token_embed\",\"dimensions\":16,\"pooling_type\":null}"});
    assert_true(s->pool.token_level);
    assert_int_equal(s->pool.dimensions, 16);
    model_spec_destroy(&s);
    static const char *const bad[][2] = {
        {"{\"pooling_type\":\"MAX\"}", "pooling_type 'MAX' is not known"},
        {"{\"normalize\":true}", "use `use_activation` instead"},
        {"{\"dimensions\":33}", "dimensions is 33; it must be between 1 and 32"},
        {"{\"dimensions\":-1}", "dimensions is -1"},
        {"{\"task\":\"classify\"}", "task 'classify' is not one of this model"},
        {"{\"step_tag_id\":3}", "'step_tag_id' is not there yet"},
        {"[]", "pooler_config: a JSON object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused((struct spec_options){.pooler_config = bad[i][0]}, bad[i][1]);
}

static void matryoshka(void **state)
{
    (void)state;
    write_folder(encoder, NULL, NULL);
    struct model_spec *s =
        load((struct spec_options){.hf_overrides = "{\"matryoshka_dimensions\":[8,32]}"});
    assert_true(s->pool.matryoshka);
    assert_int_equal(s->pool.n_dims, 2);
    assert_int_equal(s->pool.dims[0], 8);
    model_spec_destroy(&s);
    s = load((struct spec_options){.hf_overrides = "{\"is_matryoshka\":true}"});
    assert_true(s->pool.matryoshka && s->pool.n_dims == 0);
    model_spec_destroy(&s);
    refused((struct spec_options){.hf_overrides = "{\"matryoshka_dimensions\":[33]}"},
            "every entry must be between 1 and 32");
    refused((struct spec_options){.hf_overrides = "{\"matryoshka_dimensions\":[\"8\"]}"},
            "every entry must be between 1 and 32");
}

#define HEAD "\"architectures\":[\"Qwen3ForSequenceClassification\"]"

static void heads(void **state)
{
    (void)state;
    write_folder(decoder, NULL, NULL);
    struct model_spec *s = load((struct spec_options){
        .hf_overrides = "{" HEAD ",\"id2label\":{\"0\":\"no\",\"1\":\"maybe\",\"2\":\"yes\"}}"});
    assert_true(s->pool.classify && !s->pool.head_token && !s->pool.joins_pairs);
    assert_int_equal(s->pool.n_labels, 3);
    assert_string_equal(s->pool.label[1], "maybe");
    assert_string_equal(s->pool.head_rows[0].name, "score.weight");
    model_spec_destroy(&s);
    s = load((struct spec_options){
        .hf_overrides = "{" HEAD ",\"classifier_from_token\":[\"no\",\"yes\"],"
                        "\"is_original_qwen3_reranker\":true,\"tie_word_embeddings\":true}"});
    assert_true(s->pool.two_way && s->pool.joins_pairs);
    assert_int_equal(s->pool.n_labels, 1);
    assert_int_equal(s->pool.n_head_tokens, 2);
    assert_string_equal(s->pool.head_token[1], "yes");
    assert_int_equal(s->pool.head_id[1], -1);
    assert_string_equal(s->pool.head_rows[0].name, "model.embed_tokens.weight");
    model_spec_destroy(&s);
    s = load((struct spec_options){
        .convert = "classify",
        .hf_overrides = "{\"classifier_from_token\":[\"a\",\"b\",\"c\"],\"use_sep_token\":true,"
                        "\"method\":\"no_post_processing\"}"});
    assert_true(!s->pool.two_way && !s->pool.joins_pairs);
    assert_int_equal(s->pool.n_labels, 3);
    assert_string_equal(s->pool.head_rows[0].name, "lm_head.weight");
    model_spec_destroy(&s);
    static const char *const bad[][2] = {
        {"{" HEAD ",\"classifier_from_token\":[\"no\",\"yes\"]}", "method '' of"},
        {"{" HEAD ",\"method\":\"from_2_way_softmax\"}", "must list two tokens"},
        {"{" HEAD ",\"method\":\"no_post_processing\",\"classifier_from_token\":[3]}",
         "must list 1 to 64 tokens, as strings"},
        {"{" HEAD ",\"sbert_ce_default_activation_function\":\"torch.nn.Tanh\"}",
         "activation 'torch.nn.Tanh' of its scores is not known"},
        {"{" HEAD ",\"num_labels\":0}", "num_labels is 0"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused((struct spec_options){.hf_overrides = bad[i][0]}, bad[i][1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_files), cmocka_unit_test(sentence_transformers),
        cmocka_unit_test(bad_files),     cmocka_unit_test(pooler_config),
        cmocka_unit_test(matryoshka),    cmocka_unit_test(heads),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
