/* --help, --help=all, --help=Group, --help=flag, from the table.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "flags.h"

#include <string.h>

enum { NAME_COLUMNS = 34, PAGE_COLUMNS = 100 };

static bool mine(const struct flags *f, const struct flag *flag)
{
    return flag->commands & f->command;
}

/* Words of `text` wrapped into the right-hand column; the cursor is at column `at`. */
static void wrap(FILE *out, int at, const char *text)
{
    for (; at < NAME_COLUMNS; at++)
        fputc(' ', out);
    for (const char *space = ""; *text; text += *text == ' ') {
        int word = (int)strcspn(text, " ");
        if (*space && at + 1 + word > PAGE_COLUMNS) {
            fprintf(out, "\n%*s", NAME_COLUMNS, "");
            at = NAME_COLUMNS;
            space = "";
        }
        at += fprintf(out, "%s%.*s", space, word, text);
        text += word;
        space = " ";
    }
    fputc('\n', out);
}

static void value_name(const struct flag *flag, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    if (flag->kind == FLAG_BOOL)
        return;
    if (flag->choices && (flag->kind == FLAG_ENUM || flag->kind == FLAG_STRING) &&
        strlen(flag->choices) < 48) {
        for (const char *p = flag->choices; *p && used + 1 < size;) {
            size_t span = strcspn(p, "|");
            used += (size_t)snprintf(out + used, size - used, "%s%.*s", used ? "|" : " ",
                                     (int)strcspn(p, "=|"), p);
            p += span + (p[span] == '|');
        }
        return;
    }
    static const char *const names[] = {
        [FLAG_INT] = "N",      [FLAG_I64] = "N",     [FLAG_SIZE] = "BYTES",
        [FLAG_FLOAT] = "X",    [FLAG_DOUBLE] = "X",  [FLAG_STRING] = "S",
        [FLAG_LIST] = "S ...", [FLAG_ENUM] = "NAME", [FLAG_JSON] = "JSON",
    };
    snprintf(out, size, " %s", flag->meta ? flag->meta : names[flag->kind]);
}

static void print_flag(const struct flag *flag, FILE *out)
{
    char value[96], text[900];
    value_name(flag, value, sizeof value);
    int at = fprintf(out, "  ");
    if (flag->short_name)
        at += fprintf(out, "-%s, ", flag->short_name);
    bool on = flag->kind == FLAG_BOOL && flag->shown && !strcmp(flag->shown, "on");
    at += fprintf(out, "--%s%s%s", on ? "[no-]" : "", flag->name, value);
    if (at >= NAME_COLUMNS) {
        fputc('\n', out);
        at = 0;
    }
    static const char *const note[] = {[FLAG_WORKS] = "",
                                       [FLAG_NO_EFFECT] = " [accepted, no effect]",
                                       [FLAG_LATER] = " [not there yet]"};
    snprintf(text, sizeof text, "%s%s%s%s%s%s%s%s", flag->help, flag->shown ? " (default: " : "",
             flag->shown ? flag->shown : "", flag->shown ? ")" : "", flag->env ? " [env: " : "",
             flag->env ? flag->env : "", flag->env ? "]" : "", note[flag->state]);
    wrap(out, at, text);
}

static void print_group(const struct flags *f, const char *group, bool all, FILE *out)
{
    bool any = false;
    for (int i = 0; i < f->n; i++) {
        const struct flag *flag = &f->table[i];
        if (!mine(f, flag) || strcmp(flag->group, group) != 0)
            continue;
        if (!all && flag->state != FLAG_WORKS)
            continue;
        if (!any)
            fprintf(out, "\n%s\n", group);
        any = true;
        print_flag(flag, out);
    }
}

/* The first row of each group stands for it. */
static bool first_of_group(const struct flags *f, int at)
{
    if (!mine(f, &f->table[at]))
        return false;
    for (int i = 0; i < at; i++)
        if (mine(f, &f->table[i]) && strcmp(f->table[i].group, f->table[at].group) == 0)
            return false;
    return true;
}

static void print_page(const struct flags *f, const char *usage, bool all, FILE *out)
{
    int hidden = 0;
    fputs(usage, out);
    for (int i = 0; i < f->n; i++) {
        if (first_of_group(f, i))
            print_group(f, f->table[i].group, all, out);
        hidden += mine(f, &f->table[i]) && f->table[i].state != FLAG_WORKS;
    }
    fputs(
        "\nNumbers take suffixes: k, m, g (1000s) and K, M, G (1024s). --flag=value and underscores"
        "\nwork too; --help=NAME shows one flag or one group.",
        out);
    if (!all && hidden)
        fprintf(out,
                " --help=all adds %d flags of vLLM's that are\naccepted without effect or not "
                "there yet.",
                hidden);
    fputc('\n', out);
}

bool flags_help(const struct flags *f, const char *usage, const char *topic, FILE *out)
{
    if (!*topic || strcmp(topic, "all") == 0) {
        print_page(f, usage, *topic != '\0', out);
        return true;
    }
    for (int i = 0; i < f->n; i++) {
        if (first_of_group(f, i) && strcasecmp(f->table[i].group, topic) == 0) {
            print_group(f, f->table[i].group, true, out);
            return true;
        }
    }
    bool negated;
    while (*topic == '-')
        topic++;
    const struct flag *flag = flags_find(f, topic, &negated);
    if (flag)
        print_flag(flag, out);
    return flag != NULL;
}

/* ---- docs/flags.md ----------------------------------------------------------------------------
 */

static void markdown_text(const char *text, FILE *out)
{
    for (; *text; text++) {
        if (*text == '|' || *text == '<' || *text == '*' || *text == '_')
            fputc('\\', out);
        fputc(*text, out);
    }
}

static void markdown_row(const struct flag *flag, const char *const *command_names, FILE *out)
{
    static const char *const state[] = {
        [FLAG_WORKS] = "works", [FLAG_NO_EFFECT] = "no effect", [FLAG_LATER] = "not yet"};
    char value[96];
    value_name(flag, value, sizeof value);
    for (char *p = value; *p; p++)
        *p = *p == '|' ? '/' : *p; /* a column ends at '|' even inside backquotes */
    fprintf(out, "| `--%s%s`", flag->name, value);
    if (flag->short_name)
        fprintf(out, ", `-%s`", flag->short_name);
    fputs(" | ", out);
    markdown_text(flag->shown ? flag->shown : "", out);
    fprintf(out, " | %s | ", state[flag->state]);
    markdown_text(flag->help, out);
    if (flag->only) {
        fputs(" Only ", out);
        for (const char *p = flag->only; *p; p++)
            fputs(*p == '|' ? ", " : (char[]){*p, 0}, out);
        fputs(" for now.", out);
    }
    if (flag->env)
        fprintf(out, " Environment: `%s`.", flag->env);
    fputs(" | ", out);
    const char *comma = "";
    for (int bit = 0; command_names[bit]; bit++) {
        if (flag->commands & 1u << bit) {
            fprintf(out, "%s%s", comma, command_names[bit]);
            comma = ", ";
        }
    }
    fputs(" |\n", out);
}

void flags_markdown(const struct flag *table, int n, const char *const *command_names, FILE *out)
{
    fputs("# Flags\n\n"
          "Made by `sluice --help=markdown`; CI compares. Names and defaults are vLLM's, so its "
          "command lines work.\n"
          "\"works\": does what it says. \"no effect\": accepted with one log line, because it "
          "cannot change results here.\n"
          "\"not yet\": refused by name, unless it asks for what happens anyway.\n\n"
          "`--no-x` turns a switch off, `--flag=value` and underscores work, numbers take the "
          "suffixes k m g (1000s) and K M G (1024s),\n"
          "`--a.b value` sets a key of a JSON flag, `--config FILE.yaml` reads flags by name. The "
          "command line wins over the file, the file\n"
          "over the environment.\n",
          out);
    for (int i = 0; i < n; i++) {
        bool first = true;
        for (int k = 0; k < i && first; k++)
            first = strcmp(table[k].group, table[i].group) != 0;
        if (!first)
            continue;
        fprintf(out,
                "\n## %s\n\n| flag | default | state | meaning | commands |\n"
                "| --- | --- | --- | --- | --- |\n",
                table[i].group);
        for (int k = i; k < n; k++)
            if (strcmp(table[k].group, table[i].group) == 0)
                markdown_row(&table[k], command_names, out);
    }
}
