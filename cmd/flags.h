/* flags.h - one table of flags, read from the command line, a YAML file and the environment.
 *
 * Every flag is a row: its name, what kind of value it takes, where the value goes in `struct
 * options`, and what Sluice does with it. The command line wins over --config FILE.yaml, which wins
 * over the environment, which wins over the default. Names are vLLM's, so `--no-x` pairs, `-tp`,
 * `--flag=value`, underscores, dotted JSON (`--a.b 1`) and number suffixes ("25.6k") work as there.
 *
 * A mistake is one sentence (in flags.error), with the nearest name when a name is unknown.
 * Thread: main's, before anything else runs.   Memory: lives until the process ends.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_FLAGS_H
#define CMD_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum flag_kind {
    FLAG_BOOL,   /* bool; --x and --no-x */
    FLAG_INT,    /* int, with suffixes */
    FLAG_I64,    /* int64_t, with suffixes */
    FLAG_SIZE,   /* size_t, with suffixes */
    FLAG_FLOAT,  /* float */
    FLAG_DOUBLE, /* double; "inf" is a number */
    FLAG_STRING, /* const char * */
    FLAG_LIST,   /* const char *const *, and an int at off_n; one or more values, may repeat */
    FLAG_ENUM,   /* int: the index of the word in `choices` */
    FLAG_JSON    /* const char *: text of a JSON object; --name.key value sets one key */
};

enum flag_state {
    FLAG_WORKS,
    FLAG_NO_EFFECT, /* accepted, one log line: it cannot change results here */
    FLAG_LATER      /* refused by name, unless the value is `only`, which is what happens anyway */
};

#define FLAG_NOWHERE ((size_t)-1) /* `off` of a row that is checked but not stored */

struct flag {
    const char *name;       /* "max-model-len" */
    const char *short_name; /* "tp" for -tp, or NULL */
    enum flag_kind kind;
    enum flag_state state;
    unsigned commands;   /* set of command bits, see options.h */
    const char *group;   /* heading in --help */
    size_t off, off_n;   /* into struct options */
    const char *choices; /* "auto|float16"; a value may be written several ways: "auto=0|half=2" */
    const char *only;    /* FLAG_LATER: the values that are fine: "auto|generate" */
    const char *env;     /* environment variable that sets it, or NULL */
    const char *shown;   /* default, as --help shows it; NULL: none */
    const char *meta;    /* what the value is called in --help */
    const char *help;
    bool secret;    /* its value is never printed */
    bool json_list; /* FLAG_LIST whose value may also be a JSON array of strings */
};

enum flag_source { FLAG_UNSET, FLAG_FROM_ENV, FLAG_FROM_FILE, FLAG_FROM_LINE };

struct flags {
    const struct flag *table;
    int n;
    unsigned command;         /* the bit of the command being parsed */
    const char *command_name; /* "serve", "bench latency" */
    void *options;
    unsigned char *source; /* [n] enum flag_source */
    char **text;           /* [n] the value as written, for "non-default args" */
    char **positional;
    int n_positional;
    const char *help; /* NULL, "" for --help, or what followed --help= */
    char error[1024]; /* set when a call below returned false */
};

void flags_init(struct flags *f, const struct flag *table, int n, unsigned command,
                const char *command_name, void *options);
/* argv without the program's and the command's name. */
bool flags_parse_line(struct flags *f, int argc, char **argv);
bool flags_parse_yaml(struct flags *f, const char *path);
bool flags_parse_env(struct flags *f);
/* One value, from any source; a lower source never replaces a higher one. `text` may be NULL for a
 * flag that stands alone. */
bool flags_set(struct flags *f, enum flag_source source, const char *name, const char *text);
bool flags_is_set(const struct flags *f, const char *name);
/* "{'model': 'x', 'port': 8001}": what the command line and the file set, secrets hidden. */
void flags_describe(const struct flags *f, char *out, size_t size);
/* Calls say() once for each flag that was given and has no effect. */
void flags_report_no_effect(const struct flags *f, void (*say)(const char *sentence));

/* For the parsers and the help. */
const struct flag *flags_find(const struct flags *f, const char *name, bool *negated);
bool flags_fail(struct flags *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Number with an optional suffix: k 1e3, K 1024, m 1e6, M 1024^2, g 1e9, G 1024^3; a fraction only
 * with a suffix. */
bool flags_number(const char *text, long long *out);

/* `topic`: "" for the usual page, "all", a group's name, or a flag's. False: no such topic. */
/* The whole table as docs/flags.md; command_names[i] is the name of bit i. */
void flags_markdown(const struct flag *table, int n, const char *const *command_names, FILE *out);

bool flags_help(const struct flags *f, const char *usage, const char *topic, FILE *out);

#endif
