/* metrics: families, buckets and the text format, as a scraper of vLLM expects them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "core/metrics.h"

#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char *render(const struct metrics *m)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    metrics_render(m, "block_size=\"16\"", &b);
    char *text = strbuf_take(&b);
    assert_non_null(text);
    return text;
}

static void assert_line(const char *text, const char *line)
{
    size_t n = strlen(line);
    for (const char *at = text; (at = strstr(at, line)); at++)
        if ((at == text || at[-1] == '\n') && at[n] == '\n')
            return;
    fail_msg("no line: %s", line);
}

#define L "engine=\"0\",model_name=\"m\""

static void counters_and_gauges(void **state)
{
    (void)state;
    struct metrics *m;
    assert_int_equal(metrics_create(&m, "m", 4096, NULL), SL_OK);
    metrics_add(m, M_GENERATION_TOKENS, 3);
    metrics_add(m, M_FINISHED_LENGTH, 2);
    metrics_set(m, M_KV_USAGE_PPM, 62500);
    metrics_set(m, M_RUNNING, 7);
    char *t = render(m);
    assert_line(t, "# TYPE vllm:generation_tokens_total counter");
    assert_line(t, "vllm:generation_tokens_total{" L "} 3.0");
    assert_line(t, "vllm:request_success_total{" L ",finished_reason=\"length\"} 2.0");
    assert_line(t, "vllm:request_success_total{" L ",finished_reason=\"stop\"} 0.0");
    assert_line(t, "vllm:kv_cache_usage_perc{" L "} 0.0625");
    assert_line(t, "vllm:num_requests_running{" L "} 7.0");
    assert_line(t, "vllm:cache_config_info{" L ",block_size=\"16\"} 1.0");
    assert_line(t, "vllm:engine_sleep_state{" L ",sleep_state=\"awake\"} 1.0");
    mem_free(t);
    metrics_destroy(&m);
}

static void histograms(void **state)
{
    (void)state;
    struct metrics *m;
    assert_int_equal(metrics_create(&m, "m", 4096, NULL), SL_OK);
    metrics_observe(m, M_TTFT, 1000000); /* on the bound: inside */
    metrics_observe(m, M_TTFT, 1000001); /* just above */
    metrics_observe(m, M_TTFT, INT64_C(3000000000000));
    metrics_observe(m, M_TTFT, -5);
    metrics_observe(m, M_REQUEST_PROMPT_TOKENS, 2001);
    metrics_observe(m, M_ITERATION_TOKENS, 16384);
    char *t = render(m);
    assert_line(t, "# TYPE vllm:time_to_first_token_seconds histogram");
    assert_line(t, "vllm:time_to_first_token_seconds_bucket{" L ",le=\"0.001\"} 2.0");
    assert_line(t, "vllm:time_to_first_token_seconds_bucket{" L ",le=\"0.005\"} 3.0");
    assert_line(t, "vllm:time_to_first_token_seconds_bucket{" L ",le=\"2560.0\"} 3.0");
    assert_line(t, "vllm:time_to_first_token_seconds_bucket{" L ",le=\"+Inf\"} 4.0");
    assert_line(t, "vllm:time_to_first_token_seconds_count{" L "} 4.0");
    assert_line(t, "vllm:time_to_first_token_seconds_sum{" L "} 3000.002000001");
    assert_line(t, "vllm:request_prompt_tokens_bucket{" L ",le=\"2000.0\"} 0.0");
    assert_line(t, "vllm:request_prompt_tokens_bucket{" L ",le=\"+Inf\"} 1.0");
    assert_null(strstr(t, "vllm:request_prompt_tokens_bucket{" L ",le=\"5000.0\"}"));
    assert_line(t, "vllm:iteration_tokens_total_bucket{" L ",le=\"16384.0\"} 1.0");
    assert_line(t, "vllm:inter_token_latency_seconds_bucket{" L ",le=\"0.025\"} 0.0");
    assert_line(t, "vllm:e2e_request_latency_seconds_bucket{" L ",le=\"7680.0\"} 0.0");
    mem_free(t);
    metrics_destroy(&m);
}

/* Every family of vLLM 0.26 that needs no flag of its own. */
static void all_families_are_there(void **state)
{
    (void)state;
    static const char *const family[] = {
        "cache_config_info gauge",
        "e2e_request_latency_seconds histogram",
        "engine_sleep_state gauge",
        "external_prefix_cache_hits_total counter",
        "external_prefix_cache_queries_total counter",
        "generation_tokens_total counter",
        "inter_token_latency_seconds histogram",
        "iteration_tokens_total histogram",
        "kv_cache_usage_perc gauge",
        "mm_cache_hits_total counter",
        "mm_cache_queries_total counter",
        "num_preemptions_total counter",
        "num_requests_running gauge",
        "num_requests_waiting gauge",
        "num_requests_waiting_by_reason gauge",
        "prefix_cache_hits_total counter",
        "prefix_cache_queries_total counter",
        "prompt_tokens_by_source_total counter",
        "prompt_tokens_cached_total counter",
        "prompt_tokens_total counter",
        "request_decode_time_seconds histogram",
        "request_generation_tokens histogram",
        "request_inference_time_seconds histogram",
        "request_max_num_generation_tokens histogram",
        "request_params_max_tokens histogram",
        "request_params_n histogram",
        "request_prefill_kv_computed_tokens histogram",
        "request_prefill_time_seconds histogram",
        "request_prompt_tokens histogram",
        "request_queue_time_seconds histogram",
        "request_success_total counter",
        "request_time_per_output_token_seconds histogram",
        "time_to_first_token_seconds histogram",
    };
    struct metrics *m;
    assert_int_equal(metrics_create(&m, "m", 100, NULL), SL_OK);
    char *t = render(m), line[128];
    size_t n_type = 0;
    for (size_t i = 0; i < sizeof family / sizeof *family; i++) {
        snprintf(line, sizeof line, "# TYPE vllm:%s", family[i]);
        assert_line(t, line);
    }
    for (const char *at = t; (at = strstr(at, "# TYPE ")); at++)
        n_type++;
    assert_int_equal(n_type, sizeof family / sizeof *family); /* each once, and no others */
    mem_free(t);
    metrics_destroy(&m);
}

static void labels_are_escaped(void **state)
{
    (void)state;
    struct metrics *m;
    assert_int_equal(metrics_create(&m, "a\"b\\c\nd", 100, NULL), SL_OK);
    char *t = render(m);
    assert_line(t, "vllm:num_requests_running{engine=\"0\",model_name=\"a\\\"b\\\\c\\nd\"} 0.0");
    mem_free(t);
    metrics_destroy(&m);
}

static void *count_a_lot(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        metrics_add(arg, M_GENERATION_TOKENS, 1);
        metrics_observe(arg, M_ITL, i);
    }
    return NULL;
}

static void threads_lose_nothing(void **state)
{
    (void)state;
    struct metrics *m;
    pthread_t thread[4];
    assert_int_equal(metrics_create(&m, "m", 100, NULL), SL_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, count_a_lot, m), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    assert_true(metrics_counter(m, M_GENERATION_TOKENS) == 80000);
    assert_true(metrics_count(m, M_ITL) == 80000);
    metrics_destroy(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_and_gauges),    cmocka_unit_test(histograms),
        cmocka_unit_test(all_families_are_there), cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
