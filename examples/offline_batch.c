/* Several prompts at once through libsluice: submit all, then read them one after another.
 *
 *     cc offline_batch.c $(pkg-config --cflags --libs sluice) -o offline_batch
 *     ./offline_batch models/pebble "Once upon a time" "The capital of France"
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <sluice.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PROMPTS = 64 };

static enum sl_status submit(struct sl_engine *engine, const char *prompt,
                             struct sl_request **request, struct sl_err *err)
{
    int32_t *ids;
    size_t n;
    enum sl_status st =
        sl_text_encode(sl_engine_text(engine), prompt, strlen(prompt), true, &ids, &n, err);
    if (st != SL_OK)
        return st;
    struct sl_input in = {.tokens = ids, .n_tokens = (int)n};
    struct sl_sampling_params params;
    sl_engine_default_params(engine, &params);
    params.temperature = 0;
    params.max_tokens = 24;
    st = sl_submit(engine, &in, &params, NULL, NULL, request, err);
    sl_free(ids);
    return st;
}

int main(int argc, char **argv)
{
    struct sl_request *requests[MAX_PROMPTS] = {NULL};
    struct sl_engine *engine = NULL;
    struct sl_config config;
    struct sl_err err = {0};
    sl_config_init(&config);
    config.model = argc > 1 ? argv[1] : "models/pebble";
    sl_log_set_level(SL_LOG_WARNING);
    enum sl_status st = sl_engine_create(&engine, &config, &err);
    int n = argc - 2 < MAX_PROMPTS ? argc - 2 : MAX_PROMPTS;
    for (int i = 0; i < n && st == SL_OK; i++)
        st = submit(engine, argv[i + 2], &requests[i], &err);
    for (int i = 0; i < n && st == SL_OK; i++) {
        printf("%s", argv[i + 2]);
        while (sl_request_wait(requests[i], -1) == SL_OK)
            for (const struct sl_output *out; (out = sl_request_next(requests[i]));)
                fwrite(out->text, 1, out->text_bytes, stdout);
        printf("\n---\n");
    }
    for (int i = 0; i < n; i++)
        sl_request_release(&requests[i]);
    sl_engine_destroy(&engine);
    if (st != SL_OK)
        fprintf(stderr, "%s\n", err.msg);
    return st == SL_OK ? 0 : 1;
}
