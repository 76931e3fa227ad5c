/* sluice: one program, its work in subcommands. Flags and the environment are read here, once.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "hub_setup.h"
#include "util.h"

#include "backend/cpu/isa.h"

#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum model_need { MODEL_NONE, MODEL_OPTIONAL, MODEL_NEEDED };

struct command {
    const char *group, *name; /* group: "bench" or NULL */
    unsigned bit;
    int (*run)(struct options *o);
    enum model_need model;
    bool more_args;              /* positional arguments after the model */
    enum sl_log_level log_level; /* unless --log-level says otherwise */
    const char *usage, *about;
};

static const struct command commands[] = {
    {NULL, "serve", CMD_SERVE, command_serve, MODEL_NEEDED, false, SL_LOG_INFO, "MODEL",
     "Serve MODEL over HTTP with OpenAI's API."},
    {NULL, "chat", CMD_CHAT, command_chat, MODEL_NEEDED, false, SL_LOG_WARNING, "MODEL",
     "Talk with MODEL in the terminal."},
    {NULL, "complete", CMD_COMPLETE, command_complete, MODEL_NEEDED, false, SL_LOG_WARNING, "MODEL",
     "Type a beginning, read how MODEL goes on; no chat template."},
    {NULL, "generate", CMD_GENERATE, command_generate, MODEL_NEEDED, true, SL_LOG_WARNING,
     "MODEL [PROMPT ...]",
     "Complete many prompts at once.\n"
     "They are arguments, or lines of a file (-i), or lines of standard input.\n"
     "A line that begins with { is a JSON object: prompt (text or token ids), messages, id, and\n"
     "sampling parameters by their names. Results come in the order of the prompts."},
    {NULL, "embed", CMD_EMBED, command_embed, MODEL_NEEDED, true, SL_LOG_WARNING,
     "MODEL [TEXT ...]",
     "Texts to vectors, or to the values of a classification head; JSON Lines out.\n"
     "They are arguments, or lines of a file (-i), or lines of standard input.\n"
     "A line that begins with { is a JSON object: text (and pair, for a cross-encoder) or tokens,\n"
     "and id. Any decoder embeds too: by its last position, unless its files say otherwise."},
    {NULL, "run-batch", CMD_RUN_BATCH, command_run_batch, MODEL_NEEDED, false, SL_LOG_INFO,
     "-i IN.jsonl -o OUT.jsonl --model MODEL",
     "Answer a file of OpenAI batch requests, one JSON object a line."},
    {NULL, "tokenize", CMD_TOKENIZE, command_tokenize, MODEL_NEEDED, false, SL_LOG_WARNING,
     "MODEL < in.jsonl",
     "Text to token ids, JSON Lines in and out.\n{\"text\":..., \"add_special_tokens\":true} -> "
     "{\"ids\":[...]}"},
    {NULL, "detokenize", CMD_DETOKENIZE, command_detokenize, MODEL_NEEDED, false, SL_LOG_WARNING,
     "MODEL < in.jsonl",
     "Token ids to text, JSON Lines in and out.\n{\"ids\":[...], \"skip_special_tokens\":true} -> "
     "{\"text\":...}"},
    {NULL, "render", CMD_RENDER, command_render, MODEL_OPTIONAL, false, SL_LOG_WARNING,
     "MODEL < in.jsonl | --chat-template FILE < in.jsonl",
     "Messages to text through the chat template, JSON Lines in and out.\n"
     "{\"messages\":..., \"tools\":..., \"add_generation_prompt\":true} -> {\"text\":...}\n"
     "Every key of a line is a variable of the chat template."},
    {"bench", "throughput", CMD_BENCH_THROUGHPUT, command_bench_throughput, MODEL_NEEDED, false,
     SL_LOG_WARNING, "MODEL", "Offline throughput: all requests at once, or as --trace says."},
    {"bench", "latency", CMD_BENCH_LATENCY, command_bench_latency, MODEL_NEEDED, false,
     SL_LOG_WARNING, "MODEL", "How long one batch takes from start to end."},
    {"bench", "serve", CMD_BENCH_SERVE, command_bench_serve, MODEL_OPTIONAL, false, SL_LOG_WARNING,
     "[--model MODEL] [--host H] [--port P]",
     "Load a running server over HTTP and measure what its clients see."},
    {"bench", "startup", CMD_BENCH_STARTUP, command_bench_startup, MODEL_NEEDED, false,
     SL_LOG_WARNING, "MODEL", "How long the engine takes to be ready."},
    {"bench", "sim", CMD_BENCH_SIM, command_bench_sim, MODEL_OPTIONAL, false, SL_LOG_WARNING,
     "[MODEL] --trace FILE.csv", "The real scheduler on a simulated device, in virtual time."},
    {"bench", "policies", CMD_BENCH_POLICIES, command_bench_policies, MODEL_OPTIONAL, false,
     SL_LOG_WARNING, "[MODEL] --trace FILE.csv", "Compare batching policies on one trace."},
    {"bench", "ceilings", CMD_BENCH_CEILINGS, command_bench_ceilings, MODEL_NONE, false,
     SL_LOG_WARNING, "", "What this machine can do at most: memory and matrix rates."},
    {NULL, "pull", CMD_PULL, command_pull, MODEL_NEEDED, false, SL_LOG_INFO, "NAME",
     "Fetch a model from the hub, without running it.\n"
     "NAME is org/name; its folder is printed. Where it is there already, nothing is fetched."},
    {NULL, "ls", CMD_LS, command_ls, MODEL_NONE, false, SL_LOG_WARNING, "",
     "List the models that were fetched from the hub."},
    {NULL, "rm", CMD_RM, command_rm, MODEL_NEEDED, false, SL_LOG_WARNING, "NAME",
     "Remove a fetched model, or one revision of it."},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_commands(FILE *out)
{
    fprintf(out,
            "sluice %s: an LLM inference and serving engine\n\n"
            "usage: sluice COMMAND [MODEL] [flags]\n\n",
            sl_version());
    for (int i = 0; i < N_COMMANDS; i++) {
        const struct command *c = &commands[i];
        char *name = xformat("%s%s%s", c->group ? c->group : "", c->group ? " " : "", c->name);
        fprintf(out, "  %-18s%.*s\n", name, (int)strcspn(c->about, "\n"), c->about);
        free(name);
    }
    fputs("\n  sluice COMMAND --help     its flags\n"
          "  sluice --version          the version\n\n"
          "Begin with:  sluice serve models/pebble    or    sluice chat models/pebble\n",
          out);
}

/* The command that argv names; *used is how many words did. */
static const struct command *find_command(int argc, char **argv, int *used)
{
    for (int i = 0; i < N_COMMANDS; i++) {
        const struct command *c = &commands[i];
        if (!c->group && argc > 1 && strcmp(argv[1], c->name) == 0) {
            *used = 2;
            return c;
        }
        if (c->group && argc > 2 && !strcmp(argv[1], c->group) && !strcmp(argv[2], c->name)) {
            *used = 3;
            return c;
        }
    }
    return NULL;
}

/* Names by bit; bits are dense, whatever the table's order. */
static int print_markdown(void)
{
    const char *names[N_COMMANDS + 1] = {NULL};
    for (int i = 0; i < N_COMMANDS; i++)
        names[__builtin_ctz(commands[i].bit)] =
            commands[i].group ? xformat("%s %s", commands[i].group, commands[i].name)
                              : xstrdup(commands[i].name);
    flags_markdown(flag_table, flag_table_n, names, stdout);
    for (int i = 0; i < N_COMMANDS; i++)
        free((void *)names[i]);
    return EXIT_DONE;
}

static int no_command(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    if (!strcmp(word, "--version") || !strcmp(word, "-v") || !strcmp(word, "version")) {
        printf("sluice %s\n", sl_version());
        return EXIT_DONE;
    }
    if (!strcmp(word, "--help=markdown"))
        return print_markdown();
    if (argc < 2 || !strcmp(word, "help") || !strncmp(word, "--help", 6) || !strcmp(word, "-h")) {
        print_commands(stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_DONE;
    }
    if (!strcmp(word, "bench")) {
        bool ask = argc > 2 && (!strncmp(argv[2], "--help", 6) || !strcmp(argv[2], "-h"));
        fputs("usage: sluice bench COMMAND [flags]\n\n", ask ? stdout : stderr);
        for (int i = 0; i < N_COMMANDS; i++)
            if (commands[i].group)
                fprintf(ask ? stdout : stderr, "  %-12s%s\n", commands[i].name, commands[i].about);
        return ask ? EXIT_DONE : EXIT_USAGE;
    }
    return fail_with(EXIT_USAGE, "\"%.60s\" is not a command; `sluice --help` lists them", word);
}

/* The model is the first positional argument or --model; what follows it belongs to the command. */
static bool take_positional(struct options *o, const struct command *c)
{
    struct flags *f = &o->flags;
    int next = 0;
    const char *first = f->n_positional ? f->positional[0] : NULL;
    o->engine.model = o->model_flag;
    if (c->model != MODEL_NONE && first && !(c->more_args && o->model_flag)) {
        next = 1;
        o->engine.model = first;
        if (o->model_flag && strcmp(first, o->model_flag) != 0)
            return flags_fail(f, "two models: \"%.80s\" and --model %.80s", first, o->model_flag);
    }
    o->args = f->positional + next;
    o->n_args = f->n_positional - next;
    if (c->model == MODEL_NEEDED && !o->engine.model)
        return flags_fail(f, "no model given: `sluice %s %s`, such as %s", f->command_name,
                          c->usage, c->bit & (CMD_PULL | CMD_RM) ? "org/name" : "models/pebble");
    if (o->n_args && !c->more_args)
        return flags_fail(f, "\"%.80s\" is one argument too many", o->args[0]);
    return true;
}

static void default_history(struct options *o)
{
    const char *home = getenv("HOME");
    if (home && *home)
        o->history_file = xformat("%s/.sluice_history", home);
}

static bool read_options(struct options *o, const struct command *c, int argc, char **argv)
{
    struct flags *f = &o->flags;
    if (!flags_parse_line(f, argc, argv))
        return false;
    if (f->help)
        return true;
    if (o->config_file && !flags_parse_yaml(f, o->config_file))
        return false;
    return flags_parse_env(f) && take_positional(o, c);
}

/* Said at the quietest level that the command still shows. */
static void say_no_effect(const char *sentence)
{
    sl_log(SL_LOG_WARNING, __FILE__, __LINE__, "%s", sentence);
}

static int print_help(const struct options *o, const struct command *c)
{
    char *usage = xformat("usage: sluice %s %s%s[flags]\n\n%s\n", o->flags.command_name, c->usage,
                          *c->usage ? " " : "", c->about);
    bool found = flags_help(&o->flags, usage, o->flags.help, stdout);
    free(usage);
    if (found)
        return EXIT_DONE;
    return fail_with(EXIT_USAGE, "\"%.60s\" is neither a flag nor a group of `sluice %s`",
                     o->flags.help, o->flags.command_name);
}

int main(int argc, char **argv)
{
    int used = 0;
    setlocale(LC_CTYPE, "C.UTF-8"); /* libedit's idea of a character */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a failed write, not the end */
    const struct command *c = find_command(argc, argv, &used);
    if (!c)
        return no_command(argc, argv);

    static struct options o; /* lives as long as the process: the engine may borrow from it */
    options_init(&o);
    default_history(&o);
    char *name = xformat("%s%s%s", c->group ? c->group : "", c->group ? " " : "", c->name);
    flags_init(&o.flags, flag_table, flag_table_n, c->bit, name, &o);
    if (!read_options(&o, c, argc - used, argv + used))
        return fail_with(EXIT_USAGE, "%s", o.flags.error);
    if (o.flags.help)
        return print_help(&o, c);
    sl_log_set_level(o.log_level >= 0 ? (enum sl_log_level)o.log_level : c->log_level);
    flags_report_no_effect(&o.flags, say_no_effect);
    if (o.cpu_isa && strcmp(o.cpu_isa, "auto") != 0 && !cpu_isa_limit(o.cpu_isa))
        return fail_with(EXIT_USAGE, "--cpu-isa %s is not a level", o.cpu_isa);
    if (c->bit & (CMD_PULL | CMD_LS | CMD_RM))
        return c->run(&o);
    int code = hub_resolve(&o);
    return code != EXIT_DONE ? code : c->run(&o);
}
