/* SPDX-License-Identifier: Apache-2.0
 *
 * Which template a request takes and what it sees, over model folders made for the purpose; then
 * the bundled model's own. */
#include "base/mem.h"
#include "text/chat.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static void path_of(char *out, size_t n, const char *name)
{
    snprintf(out, n, "%s/%s", dir, name);
}

static void put(const char *name, const char *text)
{
    char path[256];
    path_of(path, sizeof path, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sluice-chat-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

static struct chat *opened(const char *chosen)
{
    struct chat *c = NULL;
    struct sl_err err = {0};
    if (chat_open(&c, dir, chosen, &err))
        fail_msg("%s", err.msg);
    return c;
}

static char *render(const struct chat *c, const char *vars, const char *override,
                    struct sl_err *err)
{
    char *text = NULL;
    size_t bytes;
    json_t *j = json_loads(vars, 0, NULL);
    assert_non_null(j);
    json_t *before = json_deep_copy(j);
    if (chat_render(c, j, override, NULL, &text, &bytes, err))
        assert_null(text);
    else
        assert_int_equal(bytes, strlen(text));
    assert_true(json_equal(j, before));
    json_decref(before);
    json_decref(j);
    return text;
}

static void gives(const struct chat *c, const char *vars, const char *override, const char *want)
{
    struct sl_err err = {0};
    char *text = render(c, vars, override, &err);
    if (!text)
        fail_msg("%s", err.msg);
    assert_string_equal(text, want);
    mem_free(text);
}

static void fails(const struct chat *c, const char *vars, const char *override, const char *want)
{
    struct sl_err err = {0};
    assert_null(render(c, vars, override, &err));
    if (!strstr(err.msg, want))
        fail_msg("'%s' lacks '%s'", err.msg, want);
}

static void test_no_template(void **state)
{
    (void)state;
    struct chat *c = opened(NULL);
    assert_false(chat_has_template(c));
    assert_non_null(chat_problem(c));
    fails(c, "{}", NULL, "no chat template");
    gives(c, "{\"x\": 1}", "{{ x }}", "1");
    chat_close(&c);
    assert_null(c);
}

static void test_config(void **state)
{
    (void)state;
    put("tokenizer_config.json",
        "{\"chat_template\": \"{{ bos_token }}{{ pad_token }}{{ tools }}{{ add_generation_prompt }}"
        "{{ additional_special_tokens }}{{ image_token }}\", \"bos_token\": {\"content\": "
        "\"<s>\"}, "
        "\"eos_token\": null, \"added_tokens_decoder\": {}, \"extra_special_tokens\": "
        "{\"image_token\": \"<i>\"}, \"additional_special_tokens\": [\"a\", {\"content\": "
        "\"b\"}]}");
    put("special_tokens_map.json", "{\"bos_token\": \"<other>\", \"pad_token\": \"<pad>\"}");
    struct chat *c = opened(NULL);
    assert_null(chat_problem(c));
    gives(c, "{}", NULL, "<s>NoneFalse['a', 'b']<i>");
    gives(c, "{\"bos_token\": \"B\", \"tools\": []}", NULL, "B[]False['a', 'b']<i>");
    chat_close(&c);
    put("tokenizer_config.json",
        "{\"chat_template\": \"{{ bos_token }}{{ pad_token }}\", \"bos_token\": \"<s>\"}");
    c = opened(NULL);
    gives(c, "{}", NULL, "<other><pad>");
    chat_close(&c);
}

static void test_named(void **state)
{
    (void)state;
    put("tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"D\"}, {\"name\": "
        "\"tool_use\", \"template\": \"T\"}, {\"name\": \"rag\", \"template\": \"R\"}]}");
    struct chat *c = opened(NULL);
    gives(c, "{}", NULL, "D");
    gives(c, "{\"tools\": null}", NULL, "D");
    gives(c, "{\"tools\": []}", NULL, "T");
    gives(c, "{\"tools\": []}", "rag", "R");
    gives(c, "{}", "O", "O");
    chat_close(&c);
    c = opened("rag");
    gives(c, "{\"tools\": []}", NULL, "R");
    chat_close(&c);
    put("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"x\", \"template\": \"X\"}, "
                                 "{\"name\": \"y\", \"template\": \"Y\"}]}");
    c = opened(NULL);
    fails(c, "{}", NULL, "name one of: x, y");
    chat_close(&c);
}

static void test_files(void **state)
{
    (void)state;
    char path[256];
    put("tokenizer_config.json", "{\"chat_template\": \"config\"}");
    put("chat_template.jinja", "file {{ x }}\n");
    path_of(path, sizeof path, "additional_chat_templates");
    assert_int_equal(mkdir(path, 0700), 0);
    put("additional_chat_templates/tool_use.jinja", "tools");
    put("additional_chat_templates/readme.txt", "{% nonsense");
    struct chat *c = opened(NULL);
    gives(c, "{\"x\": 1}", NULL, "file 1");
    gives(c, "{\"tools\": [1]}", NULL, "tools");
    chat_close(&c);
    put("other.jinja", "other");
    path_of(path, sizeof path, "other.jinja");
    c = opened(path);
    gives(c, "{\"tools\": [1]}", NULL, "other");
    chat_close(&c);
    c = opened("text {{ x }}");
    gives(c, "{\"tools\": [1], \"x\": 2}", NULL, "text 2");
    chat_close(&c);
}

static void test_broken(void **state)
{
    (void)state;
    struct sl_err err = {0};
    struct chat *c = NULL;
    put("tokenizer_config.json", "{\"chat_template\": \"{% if %}\"}");
    c = opened(NULL);
    assert_true(chat_has_template(c));
    assert_non_null(strstr(chat_problem(c), "line 1"));
    fails(c, "{}", NULL, "line 1");
    gives(c, "{}", "fine", "fine");
    chat_close(&c);
    assert_int_equal(chat_open(&c, dir, "{% if %}", &err), SL_EINVAL);
    assert_string_equal(err.param, "chat_template");
    err = (struct sl_err){0};
    assert_int_equal(chat_open(&c, dir, "/nonexistent/file", &err), SL_EINVAL);
    put("tokenizer_config.json", "{");
    err = (struct sl_err){0};
    assert_int_equal(chat_open(&c, dir, NULL, &err), SL_EFORMAT);
    put("tokenizer_config.json", "[1]");
    err = (struct sl_err){0};
    assert_int_equal(chat_open(&c, dir, NULL, &err), SL_EFORMAT);
    assert_null(c);
}

#define LAST(text) "{\"continue_final_message\": true, \"messages\": [{\"content\": \"" text "\"}]}"

static void test_continue(void **state)
{
    (void)state;
    struct chat *c = opened("{% for m in messages %}<{{ m.content }}>{% endfor %}");
    gives(c, LAST("so it"), NULL, "<so it");
    gives(c, LAST("so it "), NULL, "<so it ");
    fails(c, "{\"continue_final_message\": true}", NULL, "no message");
    fails(c, "{\"continue_final_message\": true, \"messages\": [{}]}", NULL, "no text");
    chat_close(&c);
    c = opened("{% for m in messages %}<{{ m.content|trim }}>{% endfor %}");
    gives(c, LAST("so it "), NULL, "<so it");
    chat_close(&c);
    c = opened("{% for m in messages %}{{ m.content[0].text }}.{% endfor %}");
    gives(c,
          "{\"continue_final_message\": true, \"messages\": [{\"content\": [{\"text\": \"ab\"}, "
          "{\"image\": 1}]}]}",
          NULL, "ab");
    chat_close(&c);
    c = opened("{{ messages|length }}");
    fails(c, LAST("x"), NULL, "does not appear");
    chat_close(&c);
}

/* Whatever allocation fails, the call says so and nothing leaks or breaks. */
static void test_no_memory(void **state)
{
    (void)state;
    put("tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"{% for m in messages %}"
        "{{ m.content ~ '|' ~ m|tojson }}{% endfor %}\"}]}");
    json_t *vars =
        json_loads("{\"messages\": [{\"content\": \"x\"}, {\"content\": \"y\"}]}", 0, NULL);
    bool done = false;
    long n = 0;
    for (n = 1; !done; n++) {
        struct chat *c = NULL;
        struct sl_err err = {0};
        char *text = NULL;
        size_t bytes;
        mem_fail_nth(n);
        enum sl_status st = chat_open(&c, dir, "default", &err);
        if (!st)
            st = chat_render(c, vars, NULL, NULL, &text, &bytes, &err);
        done = !st;
        if (st)
            assert_int_equal(st, SL_ENOMEM);
        else
            assert_string_equal(text, "x|{\"content\": \"x\"}y|{\"content\": \"y\"}");
        mem_fail_nth(0);
        mem_free(text);
        chat_close(&c);
        assert_true(n < 10000);
    }
    assert_true(n > 10);
    json_decref(vars);
}

static void test_pebble(void **state)
{
    (void)state;
    struct chat *c = NULL;
    struct sl_err err = {0};
    assert_int_equal(chat_open(&c, "models/pebble", NULL, &err), SL_OK);
    gives(c,
          "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", "
          "\"content\": \"U\"}], \"add_generation_prompt\": true}",
          NULL,
          "<|bos|><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
          "<|im_start|>assistant\n");
    gives(c,
          "{\"messages\": [{\"role\": \"user\", \"content\": \"U\"}, {\"role\": \"assistant\", "
          "\"content\": null, \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": "
          "{\"a\": 1}}}]}, {\"role\": \"tool\", \"content\": \"R\"}]}",
          NULL,
          "<|bos|><|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": "
          "\"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>\n<|im_start|>tool\n"
          "<tool_response>\nR\n</tool_response><|im_end|>\n");
    chat_close(&c);
}

int main(void)
{
#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, drop_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(test_no_template), IN_DIR(test_config),           IN_DIR(test_named),
        IN_DIR(test_files),       IN_DIR(test_broken),           IN_DIR(test_continue),
        IN_DIR(test_no_memory),   cmocka_unit_test(test_pebble),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
