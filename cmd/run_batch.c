/* run-batch: a file of OpenAI batch requests, one JSON object a line, answered in order.
 *
 * The same code that serve runs answers each line (sl_openai_call), so the bodies are the same. A
 * bounded number of lines is in flight; an answer waits until those before it are written.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "batch_url.h"
#include "commands.h"
#include "progress.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#define MAX_LINE_BYTES ((size_t)64 << 20)
#define SUPPORTED "/v1/chat/completions, /v1/completions, /v1/embeddings, /score, /rerank"

/* One line, from reading it to writing its answer. */
struct slot {
    struct batch *batch;
    json_t *custom_id;
    int status;
    char *body;        /* the answer's JSON; under batch->lock until done */
    size_t body_bytes; /* */
    char *message;     /* or a plain text: the line never became a request */
    bool done;         /* under batch->lock */
};

struct batch {
    const struct options *o;
    struct sl_server *server;
    FILE *in, *out;
    pthread_mutex_t lock;
    pthread_cond_t some_done;
    struct slot *slots; /* ring of n_slots: lines n_written .. n_read - 1 */
    long n_slots, n_read, n_written;
    long n_failed, n_done; /* n_done under lock */
    unsigned long long tokens;
    struct progress progress;
    struct timespec start;
    bool write_failed;
    bool pools; /* the model embeds or scores, it does not generate */
};

static void on_answer(void *ctx, int http_status, const char *body, size_t bytes)
{
    struct slot *s = ctx;
    char *copy = xcalloc(bytes + 1, 1);
    memcpy(copy, body, bytes);
    for (size_t i = 0; i < bytes; i++) /* an answer is one line, whatever its JSON looks like */
        if (copy[i] == '\n')
            copy[i] = ' ';
    pthread_mutex_lock(&s->batch->lock);
    s->status = http_status;
    s->body = copy;
    s->body_bytes = bytes;
    s->done = true;
    s->batch->n_done++;
    pthread_cond_signal(&s->batch->some_done);
    pthread_mutex_unlock(&s->batch->lock);
}

/* ---- a line in ----------------------------------------------------------------------------------
 */

static void refuse(struct slot *s, char *message)
{
    s->status = 400;
    s->message = message;
    s->done = true;
}

static bool generates(const char *url)
{
    return !strcmp(url, "/v1/chat/completions") || !strcmp(url, "/v1/completions");
}

static bool pools(const char *url)
{
    size_t len = strlen(url);
    return !strcmp(url, "/v1/embeddings") || (len >= 6 && !strcmp(url + len - 6, "/score")) ||
           (len >= 7 && !strcmp(url + len - 7, "/rerank"));
}

/* What vLLM knows and this model does not do. */
static bool other_endpoint(const struct batch *b, const char *url)
{
    return (b->pools ? generates(url) : pools(url)) || !strcmp(url, "/v1/audio/transcriptions") ||
           !strcmp(url, "/v1/audio/translations");
}

/* NULL when the line is a request; else what is wrong with it. */
static char *check_line(const struct batch *b, const json_t *line)
{
    const char *url = json_string_value(json_object_get(line, "url"));
    const char *method = json_string_value(json_object_get(line, "method"));
    const json_t *body = json_object_get(line, "body");
    if (!json_is_object(line))
        return xstrdup("each line must be a JSON object");
    if (!json_is_string(json_object_get(line, "custom_id")))
        return xstrdup("\"custom_id\" must be a string");
    if (!method || strcmp(method, "POST") != 0)
        return xstrdup("\"method\" must be \"POST\"");
    if (!url)
        return xstrdup("\"url\" must be a string");
    if (other_endpoint(b, url))
        return xformat("Model does not support endpoint: %.200s", url);
    if (!generates(url) && !pools(url))
        return xformat("URL %.200s was used. Supported endpoints: " SUPPORTED, url);
    if (!json_is_object(body))
        return xstrdup("\"body\" must be a JSON object");
    if (json_is_true(json_object_get(body, "stream")))
        return xstrdup("Request must not be sent in stream mode");
    return NULL;
}

static void wait_a_moment(struct batch *b)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&b->lock);
    struct slot *oldest = &b->slots[b->n_written % b->n_slots];
    if (!oldest->done)
        pthread_cond_timedwait(&b->some_done, &b->lock, &until);
    pthread_mutex_unlock(&b->lock);
}

/* Hands the body to the server; a full queue is waited for. */
static void call(struct batch *b, struct slot *s, const json_t *line)
{
    struct sl_err err = {0};
    const char *url = json_string_value(json_object_get(line, "url"));
    char *body = json_dumps(json_object_get(line, "body"), JSON_COMPACT);
    enum sl_status st;
    while ((st = sl_openai_call(b->server, url, body, strlen(body), on_answer, s, &err)) ==
           SL_EAGAIN)
        wait_a_moment(b);
    free(body);
    if (st != SL_OK)
        refuse(s, xstrdup(err.msg));
}

static void take_line(struct batch *b, const char *text, size_t len)
{
    struct slot *s = &b->slots[b->n_read % b->n_slots];
    json_error_t why;
    *s = (struct slot){.batch = b};
    json_t *line = json_loadb(text, len, JSON_ALLOW_NUL, &why);
    char *wrong = line ? check_line(b, line) : xformat("not JSON: %s", why.text);
    s->custom_id = json_incref(json_object_get(line, "custom_id"));
    b->n_read++;
    if (wrong)
        refuse(s, wrong);
    else
        call(b, s, line);
    json_decref(line);
}

/* ---- a line out ---------------------------------------------------------------------------------
 */

static void random_hex(char out[33])
{
    unsigned char bytes[16] = {0};
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, bytes, sizeof bytes) != (ssize_t)sizeof bytes)
            memset(bytes, 0, sizeof bytes);
        close(fd);
    }
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* Bodies are copied as the server wrote them, so that no number changes its digits. */
static void write_answer(struct batch *b, const struct slot *s)
{
    char id[33], request_id[33];
    random_hex(id);
    random_hex(request_id);
    json_t *text = s->message ? json_string(s->message) : NULL;
    char *message = text ? json_dumps(text, JSON_ENCODE_ANY) : NULL;
    char *custom_id = s->custom_id ? json_dumps(s->custom_id, JSON_ENCODE_ANY) : NULL;
    bool good = !s->message && s->status == 200;
    fprintf(b->out,
            "{\"id\":\"vllm-%s\",\"custom_id\":%s,\"response\":{\"status_code\":%d,"
            "\"request_id\":\"vllm-batch-%s\",\"body\":%s},\"error\":%s}\n",
            id, custom_id ? custom_id : "null", s->status, request_id, good ? s->body : "null",
            good ? "null" : (s->message ? (message ? message : "\"failed\"") : s->body));
    b->n_failed += !good;
    if (good && b->progress.shown) {
        json_t *body = json_loadb(s->body, s->body_bytes, JSON_ALLOW_NUL, NULL);
        b->tokens += (unsigned long long)json_integer_value(
            json_object_get(json_object_get(body, "usage"), "completion_tokens"));
        json_decref(body);
    }
    free(message);
    free(custom_id);
    json_decref(text);
}

/* Writes finished lines in order; with `all`, waits for every one. */
static void write_done(struct batch *b, bool all)
{
    while (b->n_written < b->n_read) {
        struct slot *s = &b->slots[b->n_written % b->n_slots];
        pthread_mutex_lock(&b->lock);
        bool done = s->done;
        pthread_mutex_unlock(&b->lock);
        if (!done && !all)
            break;
        if (!done) {
            wait_a_moment(b);
        } else {
            write_answer(b, s);
            json_decref(s->custom_id);
            free(s->body);
            free(s->message);
            b->n_written++;
        }
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        progress_show(&b->progress, (int)b->n_written, (int)b->n_read,
                      (double)(now.tv_sec - b->start.tv_sec) +
                          1e-9 * (double)(now.tv_nsec - b->start.tv_nsec),
                      (long long)b->tokens);
    }
    b->write_failed |= fflush(b->out) != 0 || ferror(b->out);
}

/* ---- the run ------------------------------------------------------------------------------------
 */

static int run_lines(struct batch *b)
{
    char *line = NULL;
    size_t capacity = 0, len;
    bool too_long = false;
    while (read_line(b->in, &line, &capacity, MAX_LINE_BYTES, &len, &too_long)) {
        if (strspn(line, " \t") == len)
            continue;
        while (b->n_read - b->n_written == b->n_slots) {
            write_done(b, false);
            if (b->n_read - b->n_written == b->n_slots)
                wait_a_moment(b);
        }
        take_line(b, line, len);
    }
    free(line);
    write_done(b, true);
    progress_end(&b->progress);
    if (too_long)
        return fail_with(EXIT_FAILED, "a line is longer than 64 MiB; the lines before it are done");
    if (ferror(b->in))
        return fail_with(EXIT_FAILED, "%s: cannot read", b->o->input_file);
    if (b->write_failed)
        return fail_with(EXIT_FAILED, "%s: cannot write: %s", b->o->output_file, strerror(errno));
    sl_log(SL_LOG_INFO, __FILE__, __LINE__, "Batch complete. Written: %ld, failed: %ld",
           b->n_written, b->n_failed);
    return EXIT_DONE;
}

/* A file, a standard stream, or what a URL leads to; NULL: it failed, and said so. */
static FILE *open_input(const struct options *o)
{
    struct sl_err err = {0};
    FILE *in = is_url(o->input_file)             ? url_get(o->input_file, o->output_tmp_dir, &err)
               : strcmp(o->input_file, "-") == 0 ? stdin
                                                 : fopen(o->input_file, "rb");
    if (!in && err.code)
        fail_with(EXIT_FAILED, "-i: %s", err.msg);
    else if (!in)
        fail_with(EXIT_FAILED, "%s: %s", o->input_file, strerror(errno));
    return in;
}

static FILE *open_output(const struct options *o)
{
    struct sl_err err = {0};
    FILE *out = is_url(o->output_file)             ? url_scratch(o->output_tmp_dir, &err)
                : strcmp(o->output_file, "-") == 0 ? stdout
                                                   : fopen(o->output_file, "wb");
    if (!out && err.code)
        fail_with(EXIT_FAILED, "-o: %s", err.msg);
    else if (!out)
        fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    return out;
}

/* Whatever was answered is sent, also after a failure: it is what there is. */
static int close_output(const struct options *o, FILE *out, int code)
{
    struct sl_err err = {0};
    if (is_url(o->output_file) && url_put(o->output_file, out, &err) != SL_OK)
        code = fail_with(EXIT_FAILED, "-o: the answers could not be sent: %s", err.msg);
    if (out != stdout && fclose(out) != 0)
        code = fail_with(EXIT_FAILED, "%s: %s", o->output_file, strerror(errno));
    return code;
}

static int run_with_engine(struct batch *b)
{
    struct options *o = (struct options *)(void *)b->o;
    struct sl_engine *engine = NULL;
    struct sl_engine_info info;
    struct sl_err err = {0};
    int code = EXIT_FAILED;
    if (sl_engine_create(&engine, &o->engine, &err) != SL_OK ||
        sl_server_start_offline(&b->server, engine, &o->server, &err) != SL_OK) {
        fail_with(EXIT_FAILED, "%s", err.msg);
    } else {
        sl_engine_info(engine, &info);
        b->pools = info.pools;
        b->n_slots = 2L * (info.max_num_seqs > 0 ? info.max_num_seqs : 1);
        b->slots = xcalloc((size_t)b->n_slots, sizeof *b->slots);
        clock_gettime(CLOCK_MONOTONIC, &b->start);
        code = run_lines(b);
    }
    sl_server_stop(&b->server);
    sl_engine_destroy(&engine);
    free(b->slots);
    return code;
}

int command_run_batch(struct options *o)
{
    struct batch b = {.o = o};
    if (!o->input_file || !o->output_file)
        return fail_with(EXIT_USAGE, "`sluice run-batch` needs -i IN.jsonl and -o OUT.jsonl");
    if (!(b.in = open_input(o)))
        return EXIT_FAILED;
    if (!(b.out = open_output(o))) {
        fclose(b.in);
        return EXIT_FAILED;
    }
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.some_done, NULL);
    progress_begin(&b.progress, "answering", !o->no_progress);
    int code = run_with_engine(&b);
    pthread_cond_destroy(&b.some_done);
    pthread_mutex_destroy(&b.lock);
    if (b.in != stdin)
        fclose(b.in);
    return close_output(o, b.out, code);
}
