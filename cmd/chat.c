/* chat and complete: a conversation (or plain continuations) in the terminal.
 *
 * libedit reads the lines, so there is history and editing; answers stream as they are made; Ctrl-C
 * stops an answer, not the program. Without a terminal, lines are read as they come.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "sampling_json.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINE_BYTES ((size_t)1 << 20)
#define HISTORY_LINES 1000

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

struct chat {
    struct options *o;
    struct sl_engine *engine;
    struct sl_sampling_params params;
    json_t *messages;
    bool raw;      /* complete: no template, no conversation */
    bool terminal; /* both ends are one */
    EditLine *edit;
    History *history;
    struct termios before; /* how the terminal was, if has_before */
    bool has_before;
    char *line; /* when there is no terminal */
    size_t capacity;
};

/* ---- reading lines ------------------------------------------------------------------------------
 */

static const char *prompt_text(EditLine *edit)
{
    struct chat *c = NULL;
    el_get(edit, EL_CLIENTDATA, &c);
    return c && c->raw ? "| " : "> ";
}

/* Between prompts the terminal is in line mode. Two of its habits go, so that keys typed in that
 * time do what they do at the prompt: Ctrl-D stays a character for the editor, not an end of input
 * that is lost in the change of mode; Ctrl-C does not throw away what was printed. libedit sets the
 * mode up again and again, so this follows each line. */
static void keep_keys(void)
{
    struct termios t;
    if (tcgetattr(STDIN_FILENO, &t) != 0)
        return;
    t.c_lflag |= NOFLSH;
    t.c_cc[VEOF] = _POSIX_VDISABLE;
    tcsetattr(STDIN_FILENO, TCSANOW, &t);
}

static void open_editor(struct chat *c)
{
    HistEvent event;
    c->has_before = tcgetattr(STDIN_FILENO, &c->before) == 0;
    keep_keys();
    c->edit = el_init("sluice", stdin, stdout, stderr);
    c->history = history_init();
    if (!c->edit || !c->history)
        return;
    history(c->history, &event, H_SETSIZE, HISTORY_LINES);
    history(c->history, &event, H_SETUNIQUE, 1);
    if (c->o->history_file && *c->o->history_file)
        history(c->history, &event, H_LOAD, c->o->history_file);
    el_set(c->edit, EL_CLIENTDATA, c);
    el_set(c->edit, EL_PROMPT, prompt_text);
    el_set(c->edit, EL_EDITOR, "emacs");
    el_set(c->edit, EL_HIST, history, c->history);
    el_set(c->edit, EL_SIGNAL, 0);
    el_set(c->edit, EL_SETTY, "-x", "+noflsh", NULL);
    el_source(c->edit, NULL); /* ~/.editrc */
}

static void close_editor(struct chat *c)
{
    HistEvent event;
    if (c->history && c->o->history_file && *c->o->history_file) {
        mode_t old = umask(077); /* what was asked is nobody else's business */
        history(c->history, &event, H_SAVE, c->o->history_file);
        umask(old);
    }
    if (c->history)
        history_end(c->history);
    if (c->edit)
        el_end(c->edit);
    if (c->has_before)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &c->before);
}

/* Without its newline; NULL at the end of input. The caller frees it. */
static char *read_one(struct chat *c)
{
    size_t len;
    bool too_long;
    if (!c->edit) {
        char *line = read_line(stdin, &c->line, &c->capacity, MAX_LINE_BYTES, &len, &too_long);
        return line ? xstrdup(line) : NULL;
    }
    for (;;) {
        int n = 0;
        interrupted = 0;
        const char *line = el_gets(c->edit, &n);
        keep_keys();
        if (!line && interrupted) { /* Ctrl-C while typing: a fresh line */
            el_reset(c->edit);
            fputc('\n', stdout);
            continue;
        }
        if (!line || n <= 0)
            return NULL;
        char *copy = xstrdup(line);
        copy[strcspn(copy, "\n")] = '\0';
        if (*copy) {
            HistEvent event;
            history(c->history, &event, H_ENTER, copy);
        }
        return copy;
    }
}

/* A line that ends in a backslash goes on in the next. */
static char *read_message(struct chat *c)
{
    char *all = read_one(c);
    while (all && *all && all[strlen(all) - 1] == '\\') {
        all[strlen(all) - 1] = '\n';
        char *more = read_one(c);
        char *both = xformat("%s%s", all, more ? more : "");
        free(all);
        free(more);
        all = both;
        if (!more)
            break;
    }
    return all;
}

/* ---- answering ----------------------------------------------------------------------------------
 */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool make_prompt(struct chat *c, const char *words, int32_t **ids, size_t *n,
                        struct sl_err *err)
{
    const struct sl_text *text = sl_engine_text(c->engine);
    if (c->raw)
        return sl_text_encode(text, words, strlen(words), true, ids, n, err) == SL_OK;
    json_t *vars = json_pack("{s:O, s:b}", "messages", c->messages, "add_generation_prompt", 1);
    char *json = json_dumps(vars, JSON_COMPACT), *rendered = NULL;
    json_decref(vars);
    bool ok = json && sl_text_render(text, json, NULL, &rendered, err) == SL_OK &&
              sl_text_encode(text, rendered, strlen(rendered), false, ids, n, err) == SL_OK;
    free(json);
    sl_free(rendered);
    return ok;
}

static void append(char **all, size_t *used, const char *text, size_t bytes)
{
    *all = xrealloc(*all, *used + bytes + 1, 1);
    memcpy(*all + *used, text, bytes);
    *used += bytes;
    (*all)[*used] = '\0';
}

static void print_stats(const struct chat *c, const struct sl_request *r, double start,
                        double first, const char *why)
{
    struct sl_usage usage;
    double end = now_s();
    sl_request_usage(r, &usage);
    if (!c->terminal || first == 0 || usage.completion_tokens == 0)
        return;
    double rate = end > first ? (usage.completion_tokens - 1) / (end - first) : 0;
    printf("\033[2m[%d tokens, %.1f tokens/s, first after %.0f ms, %d of %d prompt tokens cached%s]"
           "\033[0m\n",
           usage.completion_tokens, rate, (first - start) * 1e3, usage.cached_tokens,
           usage.prompt_tokens, why);
}

/* Streams one request to standard output; the text is *answer's, which the caller frees. */
static bool stream(struct chat *c, struct sl_request *r, double start, char **answer,
                   struct sl_err *err)
{
    size_t used = 0;
    double first = 0;
    const char *why = "";
    append(answer, &used, "", 0);
    for (enum sl_status st; (st = sl_request_wait(r, 100)) != SL_ESHUTDOWN;) {
        if (interrupted) {
            sl_request_abort(r);
            why = ", stopped";
            interrupted = 0;
        }
        for (const struct sl_output *out; (out = sl_request_next(r));) {
            if (first == 0 && out->n_tokens)
                first = now_s();
            if (out->finish == SL_ERROR && out->error)
                *err = *out->error;
            if (out->finish == SL_LENGTH)
                why = ", cut at --max-tokens or the context's end";
            if (out->text_bytes == 0)
                continue;
            append(answer, &used, out->text, out->text_bytes);
            fwrite(out->text, 1, out->text_bytes, stdout);
            fflush(stdout);
        }
    }
    fputc('\n', stdout);
    print_stats(c, r, start, first, why);
    fflush(stdout);
    return err->code == SL_OK;
}

/* NULL: it failed, and a sentence was printed. */
static char *answer(struct chat *c, const char *words)
{
    struct sl_err err = {0};
    struct sl_request *r = NULL;
    int32_t *ids = NULL;
    size_t n;
    char *text = NULL;
    double start = now_s();
    interrupted = 0;
    bool ok = make_prompt(c, words, &ids, &n, &err);
    if (ok) {
        struct sl_input in = {.tokens = ids, .n_tokens = (int)n};
        struct sl_sampling_params params = c->params;
        ok = sl_submit(c->engine, &in, &params, NULL, NULL, &r, &err) == SL_OK &&
             stream(c, r, start, &text, &err);
        sl_request_release(&r);
    }
    sl_free(ids);
    if (ok)
        return text;
    free(text);
    fail_with(0, "%s", err.msg[0] ? err.msg : "the request was refused");
    return NULL;
}

static void say(json_t *messages, const char *role, const char *content)
{
    json_t *text = json_string(content);
    json_array_append_new(
        messages, json_pack("{s:s, s:o}", "role", role, "content", text ? text : json_string("")));
}

/* One turn; a turn that failed is not part of the conversation. */
static bool turn(struct chat *c, const char *words)
{
    if (!c->raw)
        say(c->messages, "user", words);
    char *text = answer(c, words);
    if (!c->raw && text)
        say(c->messages, "assistant", text);
    else if (!c->raw)
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
    free(text);
    return text != NULL;
}

/* ---- commands -----------------------------------------------------------------------------------
 */

static void start_over(struct chat *c)
{
    json_array_clear(c->messages);
    if (c->o->system_prompt)
        say(c->messages, "system", c->o->system_prompt);
}

static void set_parameter(struct chat *c, const char *rest)
{
    char why[200], *name = xstrdup(rest), *value = strchr(name, ' ');
    if (!value) {
        puts("/set NAME VALUE, such as /set temperature 0.2");
    } else {
        *value++ = '\0';
        json_t *parsed = json_loads(value, JSON_DECODE_ANY, NULL);
        json_t *object = json_pack("{s:o}", name, parsed ? parsed : json_string(value));
        struct sl_sampling_params try = c->params;
        if (!sampling_from_json(&try, object, why, sizeof why))
            puts(why);
        else if (!sampling_has_key(name))
            printf("%s is not a sampling parameter\n", name);
        else
            c->params = try;
        if (!json_object_get(object, "stop") && !json_object_get(object, "bad_words"))
            json_decref(object); /* those two are borrowed from it from here on */
    }
    free(name);
}

static void undo(struct chat *c)
{
    size_t n = json_array_size(c->messages);
    while (n > 0) {
        const char *role =
            json_string_value(json_object_get(json_array_get(c->messages, --n), "role"));
        if (strcmp(role, "system") == 0)
            return;
        json_array_remove(c->messages, n);
        if (strcmp(role, "user") == 0)
            return;
    }
}

static void save(const struct chat *c, const char *path)
{
    if (!*path)
        puts("/save FILE writes the conversation as JSON");
    else if (json_dump_file(c->messages, path, JSON_INDENT(2)) != 0)
        printf("%s: %s\n", path, strerror(errno));
}

/* A line that begins with '/' and a known word; false: it is for the model. */
static bool command(struct chat *c, const char *line, bool *quit)
{
    size_t word = strcspn(line, " ");
    const char *rest = line + word + strspn(line + word, " ");
#define IS(name) (word == sizeof(name) - 1 && strncmp(line, name, word) == 0)
    if (IS("/quit") || IS("/exit") || IS("/q"))
        *quit = true;
    else if (IS("/reset") || IS("/clear"))
        start_over(c);
    else if (IS("/undo"))
        undo(c);
    else if (IS("/set"))
        set_parameter(c, rest);
    else if (IS("/save"))
        save(c, rest);
    else if (IS("/system")) {
        c->o->system_prompt = *rest ? xstrdup(rest) : NULL;
        start_over(c);
    } else if (IS("/help") || IS("/?"))
        puts("/reset        forget the conversation\n"
             "/undo         forget the last question and its answer\n"
             "/system TEXT  another system message, and a fresh start\n"
             "/set NAME VALUE  a sampling parameter, such as temperature 0.2 or max_tokens 50\n"
             "/save FILE    write the conversation as JSON\n"
             "/quit         (or Ctrl-D) end; Ctrl-C stops an answer; a \\ at the end goes on");
    else
        return false;
#undef IS
    return true;
}

static bool blank(const char *line)
{
    return line[strspn(line, " \t\n")] == '\0';
}

static int converse(struct chat *c)
{
    bool quit = false, failed = false;
    if (c->o->quick_text)
        return turn(c, c->o->quick_text) ? EXIT_DONE : EXIT_FAILED;
    if (c->terminal)
        printf("%s. /help for commands, Ctrl-D to end.\n", options_model_name(c->o));
    for (char *line; !quit && (line = read_message(c)); free(line))
        if (!blank(line) && (c->raw || !command(c, line, &quit)))
            failed = !turn(c, line) || failed;
    if (c->terminal)
        fputc('\n', stdout);
    return failed && !c->terminal ? EXIT_FAILED : EXIT_DONE;
}

static int run(struct options *o, bool raw)
{
    struct chat c = {.o = o, .raw = raw, .messages = json_array()};
    struct sl_err err = {0};
    struct sl_engine_info info;
    int code = EXIT_FAILED;
    if (sl_engine_create(&c.engine, &o->engine, &err) != SL_OK) {
        json_decref(c.messages);
        return fail_with(EXIT_FAILED, "%s", err.msg);
    }
    sl_engine_info(c.engine, &info);
    if (!raw && !info.has_chat_template) {
        fail_with(0,
                  "%s has no chat template; give one with --chat-template, or use `sluice "
                  "complete`",
                  options_model_name(o));
    } else if (!info.has_tokenizer) {
        fail_with(0, "%s has no tokenizer", options_model_name(o));
    } else {
        struct sigaction action = {.sa_handler = on_interrupt};
        sigaction(SIGINT, &action, NULL);
        sl_engine_default_params(c.engine, &c.params);
        c.params.max_tokens = SL_NONE;
        sampling_from_options(&c.params, &o->sampling);
        c.params.n = 1;
        start_over(&c);
        c.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
        if (c.terminal && !o->quick_text)
            open_editor(&c);
        code = converse(&c);
        close_editor(&c);
    }
    free(c.line);
    json_decref(c.messages);
    sl_engine_destroy(&c.engine);
    return code;
}

int command_chat(struct options *o)
{
    return run(o, false);
}

int command_complete(struct options *o)
{
    return run(o, true);
}
