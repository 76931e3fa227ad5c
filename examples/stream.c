/* One chat answer, streamed: the engine's callback wakes our thread, which prints.
 *
 *     cc stream.c $(pkg-config --cflags --libs sluice) -o stream && ./stream models/pebble
 * SPDX-License-Identifier: Apache-2.0 */
#include <sluice.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* On the engine's thread: it may only signal. */
static void wake(void *ctx)
{
    uint64_t one = 1;
    if (write(*(int *)ctx, &one, sizeof one) < 0)
        perror("eventfd");
}

static const char question[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"How do I count the lines of a file?\"}],"
    " \"add_generation_prompt\": true}";

int main(int argc, char **argv)
{
    struct sl_engine *engine = NULL;
    struct sl_request *request = NULL;
    struct sl_sampling_params params;
    struct sl_config config;
    struct sl_err err = {0};
    char *prompt = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    int ready = eventfd(0, EFD_CLOEXEC);
    sl_config_init(&config);
    config.model = argc > 1 ? argv[1] : "models/pebble";
    sl_log_set_level(SL_LOG_WARNING);
    if (sl_engine_create(&engine, &config, &err) == SL_OK &&
        sl_text_render(sl_engine_text(engine), question, NULL, &prompt, &err) == SL_OK &&
        sl_text_encode(sl_engine_text(engine), prompt, strlen(prompt), false, &ids, &n, &err) ==
            SL_OK) {
        struct sl_input in = {.tokens = ids, .n_tokens = (int)n};
        sl_engine_default_params(engine, &params);
        params.max_tokens = 100;
        if (sl_submit(engine, &in, &params, wake, &ready, &request, &err) == SL_OK) {
            for (uint64_t n_woken;
                 !sl_request_done(request) && read(ready, &n_woken, sizeof n_woken) > 0;)
                for (const struct sl_output *out; (out = sl_request_next(request)); fflush(stdout))
                    fwrite(out->text, 1, out->text_bytes, stdout);
            printf("\n");
        }
    }
    fputs(err.msg, stderr);
    sl_request_release(&request);
    sl_free(ids);
    sl_free(prompt);
    sl_engine_destroy(&engine);
    return err.code == SL_OK ? 0 : 1;
}
