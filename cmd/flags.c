/* Reading the command line and the environment into struct options; see flags.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "flags.h"
#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define MAX_NAME 64 /* longer than any flag; what is longer cannot be one */

void flags_init(struct flags *f, const struct flag *table, int n, unsigned command,
                const char *command_name, void *options)
{
    *f = (struct flags){.table = table,
                        .n = n,
                        .command = command,
                        .command_name = command_name,
                        .options = options,
                        .source = xcalloc((size_t)n, 1),
                        .text = xcalloc((size_t)n, sizeof *f->text)};
}

bool flags_fail(struct flags *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->error, sizeof f->error, fmt, ap);
    va_end(ap);
    return false;
}

/* ---- names -------------------------------------------------------------------------------- */

/* "max_model_len" -> "max-model-len"; false when it is too long to be a flag. */
static bool canonical(const char *name, size_t len, char out[MAX_NAME])
{
    if (len >= MAX_NAME)
        return false;
    for (size_t i = 0; i < len; i++)
        out[i] = name[i] == '_' ? '-' : name[i];
    out[len] = '\0';
    return true;
}

static const struct flag *lookup(const struct flags *f, const char *name)
{
    for (int i = 0; i < f->n; i++)
        if (f->table[i].commands & f->command && strcmp(f->table[i].name, name) == 0)
            return &f->table[i];
    return NULL;
}

const struct flag *flags_find(const struct flags *f, const char *name, bool *negated)
{
    char key[MAX_NAME];
    *negated = false;
    if (!canonical(name, strlen(name), key))
        return NULL;
    const struct flag *flag = lookup(f, key);
    if (flag || strncmp(key, "no-", 3) != 0)
        return flag;
    flag = lookup(f, key + 3);
    if (!flag || flag->kind != FLAG_BOOL)
        return NULL;
    *negated = true;
    return flag;
}

static const struct flag *find_short(const struct flags *f, const char *name, size_t len)
{
    for (int i = 0; i < f->n; i++) {
        const char *s = f->table[i].short_name;
        if (s && f->table[i].commands & f->command && strlen(s) == len && !strncmp(s, name, len))
            return &f->table[i];
    }
    return NULL;
}

/* Edit distance, both names under MAX_NAME characters. */
static int distance(const char *a, const char *b)
{
    int row[MAX_NAME + 1], n = (int)strlen(b);
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

/* The name that was probably meant, or NULL: a third of the letters may be wrong. */
static const char *nearest(const struct flags *f, const char *name)
{
    const char *best = NULL;
    int best_distance = (int)strlen(name) / 3 + 1;
    for (int i = 0; i < f->n; i++) {
        const struct flag *flag = &f->table[i];
        if (!(flag->commands & f->command) || strlen(flag->name) >= MAX_NAME)
            continue;
        int d = distance(name, flag->name);
        if (d < best_distance) {
            best_distance = d;
            best = flag->name;
        }
    }
    return best;
}

static bool unknown(struct flags *f, const char *dashes, const char *name)
{
    char key[MAX_NAME];
    const char *base = strncmp(name, "no-", 3) == 0 ? name + 3 : name;
    const char *near = NULL;
    if (canonical(base, strlen(base), key))
        near = nearest(f, key);
    for (int i = 0; i < f->n && !near; i++)
        if (strcmp(f->table[i].name, key) == 0)
            return flags_fail(f, "%s%.80s is not a flag of `sluice %s`; see `sluice %s --help`",
                              dashes, name, f->command_name, f->command_name);
    if (near)
        return flags_fail(f, "unknown flag %s%.80s; did you mean --%s?", dashes, name, near);
    return flags_fail(f, "unknown flag %s%.80s; `sluice %s --help=all` lists them", dashes, name,
                      f->command_name);
}

/* ---- values ------------------------------------------------------------------------------- */

bool flags_number(const char *text, long long *out)
{
    static const struct {
        char letter;
        double factor;
    } suffix[] = {{'k', 1e3},    {'m', 1e6},           {'g', 1e9},
                  {'K', 1024.0}, {'M', 1024.0 * 1024}, {'G', 1024.0 * 1024 * 1024}};
    char *end;
    if (!isdigit((unsigned char)*text) && *text != '-' && *text != '+' && *text != '.')
        return false;
    errno = 0;
    long long whole = strtoll(text, &end, 10);
    if (*end == '\0' && end != text) {
        *out = whole;
        return errno == 0;
    }
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || end[0] == '\0' || end[1] != '\0' || errno != 0 || !isfinite(value))
        return false;
    for (size_t i = 0; i < sizeof suffix / sizeof *suffix; i++) {
        if (suffix[i].letter != end[0])
            continue;
        double scaled = value * suffix[i].factor;
        double rounded = nearbyint(scaled);
        /* 25.6k is 25600 though 25.6 has no exact double; 1.0001k is nothing whole */
        if (fabs(scaled) > 9e18 || fabs(scaled - rounded) > 1e-6 * fabs(scaled) + 1e-9)
            return false;
        *out = (long long)rounded;
        return true;
    }
    return false;
}

/* Looks `text` up in "auto|float16" or "auto=0|half=2|float16=2". */
static bool choice(const char *choices, const char *text, long long *out)
{
    size_t len = strlen(text);
    long long index = 0;
    for (const char *p = choices; *p; index++) {
        size_t span = strcspn(p, "|");
        size_t word = strcspn(p, "=|");
        if (word == len && strncmp(p, text, len) == 0) {
            *out = word < span ? strtoll(p + word + 1, NULL, 10) : index;
            return true;
        }
        p += span + (p[span] == '|');
    }
    return false;
}

/* "auto=0|half=2" -> "auto, half" */
static void list_choices(const char *choices, char *out, size_t size)
{
    size_t used = 0;
    for (const char *p = choices; *p && used < size;) {
        size_t span = strcspn(p, "|");
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", used ? ", " : "",
                                 (int)strcspn(p, "=|"), p);
        p += span + (p[span] == '|');
    }
}

static bool bad_value(struct flags *f, const struct flag *flag, const char *text, const char *want)
{
    if (flag->secret)
        return flags_fail(f, "--%s needs %s", flag->name, want);
    return flags_fail(f, "--%s needs %s, got \"%.100s\"", flag->name, want, text);
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off", "1", "0"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2 == 0;
            return true;
        }
    }
    return false;
}

static void store_bytes(struct flags *f, const struct flag *flag, const void *value, size_t size)
{
    if (flag->off != FLAG_NOWHERE)
        memcpy((char *)f->options + flag->off, value, size);
}

static bool store_integer(struct flags *f, const struct flag *flag, const char *text)
{
    long long v;
    bool word = flag->choices && choice(flag->choices, text, &v);
    if (!word && !flags_number(text, &v))
        return bad_value(f, flag, text, "a whole number (suffixes k, m, g and K, M, G work)");
    if (flag->kind == FLAG_INT) {
        if (v < INT_MIN + 1 || v > INT_MAX)
            return bad_value(f, flag, text, "a number of at most 2147483647");
        int small = (int)v;
        store_bytes(f, flag, &small, sizeof small);
    } else if (flag->kind == FLAG_SIZE) {
        if (v < 0)
            return bad_value(f, flag, text, "a number that is not negative");
        size_t big = (size_t)v;
        store_bytes(f, flag, &big, sizeof big);
    } else {
        int64_t big = v;
        store_bytes(f, flag, &big, sizeof big);
    }
    return true;
}

static bool store_real(struct flags *f, const struct flag *flag, const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || isnan(v) || (isinf(v) && flag->kind == FLAG_FLOAT))
        return bad_value(f, flag, text, "a number");
    float narrow = (float)v;
    if (flag->kind == FLAG_FLOAT)
        store_bytes(f, flag, &narrow, sizeof narrow);
    else
        store_bytes(f, flag, &v, sizeof v);
    return true;
}

static void append(struct flags *f, const struct flag *flag, const char *text)
{
    if (flag->off == FLAG_NOWHERE)
        return;
    const char ***list = (const char ***)(void *)((char *)f->options + flag->off);
    int *n = (int *)(void *)((char *)f->options + flag->off_n);
    *list = xrealloc((void *)*list, (size_t)*n + 1, sizeof **list);
    (*list)[(*n)++] = text;
}

/* ["a", "b"] as one value of a list flag */
static bool append_json(struct flags *f, const struct flag *flag, const char *text)
{
    json_t *list = json_loads(text, 0, NULL), *item;
    size_t i;
    bool ok = json_is_array(list);
    json_array_foreach(list, i, item)
    {
        ok = ok && json_is_string(item);
        if (ok)
            append(f, flag, xstrdup(json_string_value(item)));
    }
    json_decref(list);
    return ok || bad_value(f, flag, text, "plain values or a JSON array of strings");
}

static bool store_json(struct flags *f, const struct flag *flag, const char *text)
{
    json_error_t why;
    json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    bool object = json_is_object(value);
    json_decref(value);
    if (!value)
        return flags_fail(f, "--%s needs a JSON object: %.200s", flag->name, why.text);
    if (!object)
        return bad_value(f, flag, text, "a JSON object");
    store_bytes(f, flag, &text, sizeof text);
    return true;
}

/* `text` lives as long as the options. */
static bool store(struct flags *f, const struct flag *flag, const char *text)
{
    long long index = 0;
    switch (flag->kind) {
    case FLAG_BOOL:
        return true; /* flags_set has done it */
    case FLAG_INT:
    case FLAG_I64:
    case FLAG_SIZE:
        return store_integer(f, flag, text);
    case FLAG_FLOAT:
    case FLAG_DOUBLE:
        return store_real(f, flag, text);
    case FLAG_LIST:
        if (flag->json_list && text[0] == '[')
            return append_json(f, flag, text);
        append(f, flag, text);
        return true;
    case FLAG_JSON:
        return store_json(f, flag, text);
    case FLAG_ENUM:
    case FLAG_STRING:
        break;
    }
    if (flag->choices && !choice(flag->choices, text, &index)) {
        char words[400], want[440];
        list_choices(flag->choices, words, sizeof words);
        snprintf(want, sizeof want, "one of %s", words);
        return bad_value(f, flag, text, want);
    }
    if (flag->kind == FLAG_STRING) {
        store_bytes(f, flag, &text, sizeof text);
    } else {
        int i = (int)index;
        store_bytes(f, flag, &i, sizeof i);
    }
    return true;
}

static bool same_number(const char *a, const char *b)
{
    char *end_a, *end_b;
    double x = strtod(a, &end_a), y = strtod(b, &end_b);
    return end_a != a && end_b != b && !*end_a && !*end_b && x == y;
}

/* A flag that is not there yet is fine when it asks for what happens anyway. */
static bool refuse(struct flags *f, const struct flag *flag, const char *text)
{
    long long index;
    if (flag->only && (choice(flag->only, text, &index) || same_number(flag->only, text)))
        return true;
    if (flag->kind == FLAG_BOOL)
        return flags_fail(f, "--%s is known but not there yet in this version", flag->name);
    if (flag->only) {
        char fine[200];
        list_choices(flag->only, fine, sizeof fine);
        return flags_fail(f, "--%s %.80s is known but not there yet in this version (only %s)",
                          flag->name, text, fine);
    }
    return flags_fail(f, "--%s is known but not there yet in this version", flag->name);
}

/* ---- setting one flag --------------------------------------------------------------------- */

static bool set_bool(struct flags *f, const struct flag *flag, bool negated, const char *text,
                     bool *value)
{
    *value = true;
    if (text && !parse_bool(text, value))
        return bad_value(f, flag, text, "true or false, or no value");
    *value ^= negated;
    store_bytes(f, flag, value, sizeof *value);
    return true;
}

/* What is told of a list is a string of its own, since the options borrow each value. */
static char *list_text(char *before, bool again, const char *value)
{
    char *text = again ? xformat("%s, %s", before, value) : xstrdup(value);
    free(before);
    return text;
}

static bool borrows_value(const struct flag *list, const char *value)
{
    return list->off != FLAG_NOWHERE && !(list->json_list && value[0] == '[');
}

static bool set_found(struct flags *f, enum flag_source source, const struct flag *flag,
                      bool negated, const char *text)
{
    size_t i = (size_t)(flag - f->table);
    if (f->source[i] > source)
        return true;
    if (!text && flag->kind != FLAG_BOOL)
        return flags_fail(f, "--%s needs a value", flag->name);
    bool again = flag->kind == FLAG_LIST && f->source[i] == source, ok;
    char *kept, *before = f->text[i];
    if (flag->kind == FLAG_BOOL) {
        bool value;
        if (!set_bool(f, flag, negated, text, &value))
            return false;
        kept = xstrdup(value ? "True" : "False");
        ok = flag->state != FLAG_LATER || value == (flag->only && !strcmp(flag->only, "True")) ||
             refuse(f, flag, kept);
    } else {
        if (flag->kind == FLAG_LIST && !again && flag->off != FLAG_NOWHERE)
            *(int *)(void *)((char *)f->options + flag->off_n) = 0;
        kept = xstrdup(text);
        ok = store(f, flag, kept) && (flag->state != FLAG_LATER || refuse(f, flag, kept));
    }
    f->source[i] = (unsigned char)source;
    if (flag->kind != FLAG_LIST) {
        f->text[i] = kept; /* and the options may borrow it */
        return ok;
    }
    f->text[i] = list_text(before, again, kept);
    if (!borrows_value(flag, kept))
        free(kept);
    return ok;
}

/* --name.path value: one key in a JSON flag's object. */
static bool set_dotted(struct flags *f, enum flag_source source, const char *name, const char *dot,
                       const char *text)
{
    char base[MAX_NAME];
    bool negated;
    if (!canonical(name, (size_t)(dot - name), base))
        return unknown(f, "--", name);
    const struct flag *flag = flags_find(f, base, &negated);
    if (!flag || negated)
        return unknown(f, "--", name);
    if (flag->kind != FLAG_JSON)
        return flags_fail(f, "--%s is not a JSON flag, so --%.80s means nothing", base, name);
    if (!text)
        return flags_fail(f, "--%.80s needs a value", name);
    size_t i = (size_t)(flag - f->table);
    if (f->source[i] > source)
        return true;
    json_t *root = f->text[i] ? json_loads(f->text[i], 0, NULL) : NULL;
    if (!root)
        root = json_object();
    json_t *at = root;
    char *path = xstrdup(dot + 1), *rest = path, *key;
    while ((key = strsep(&rest, "."))) {
        if (!*key || !json_is_object(at)) {
            json_decref(root);
            return flags_fail(f, "--%.80s does not name a key", name);
        }
        if (!rest)
            break;
        if (!json_is_object(json_object_get(at, key)))
            json_object_set_new(at, key, json_object());
        at = json_object_get(at, key);
    }
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    json_object_set_new(at, key, value ? value : json_string(text));
    free(path);
    char *whole = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    bool ok = whole && set_found(f, source, flag, false, whole);
    free(whole);
    return ok;
}

bool flags_set(struct flags *f, enum flag_source source, const char *name, const char *text)
{
    bool negated;
    const char *dot = strchr(name, '.');
    if (dot)
        return set_dotted(f, source, name, dot, text);
    const struct flag *flag = flags_find(f, name, &negated);
    if (!flag)
        return unknown(f, source == FLAG_FROM_LINE ? "--" : "", name);
    return set_found(f, source, flag, negated, text);
}

bool flags_is_set(const struct flags *f, const char *name)
{
    for (int i = 0; i < f->n; i++)
        if (f->source[i] != FLAG_UNSET && strcmp(f->table[i].name, name) == 0)
            return true;
    return false;
}

/* ---- the command line --------------------------------------------------------------------- */

static bool looks_like_flag(const char *arg)
{
    return arg[0] == '-' && (arg[1] == '-' || isalpha((unsigned char)arg[1]));
}

/* One flag and its values; *i is left on the last argument used. `name` ends at '=' or NUL. */
static bool take_flag(struct flags *f, const char *name, int argc, char **argv, int *i)
{
    size_t len = strcspn(name, "=");
    const char *value = name[len] == '=' ? name + len + 1 : NULL;
    char *word = xformat("%.*s", (int)len, name);
    bool negated;
    const struct flag *flag = flags_find(f, word, &negated);
    bool dotted = strchr(word, '.') != NULL;
    bool list = flag && flag->kind == FLAG_LIST;
    if (!flag && !dotted) {
        unknown(f, "--", word);
        free(word);
        return false;
    }
    if (!value && (dotted || flag->kind != FLAG_BOOL) && *i + 1 < argc &&
        strncmp(argv[*i + 1], "--", 2) != 0)
        value = argv[++*i];
    bool ok = flags_set(f, FLAG_FROM_LINE, word, value);
    while (ok && list && *i + 1 < argc && !looks_like_flag(argv[*i + 1]))
        ok = flags_set(f, FLAG_FROM_LINE, word, argv[++*i]);
    free(word);
    return ok;
}

/* -tp 2, -tp=2, -O2: the longest short name that the argument begins with. */
static bool take_short(struct flags *f, int argc, char **argv, int *i)
{
    const char *arg = argv[*i] + 1;
    size_t len = strcspn(arg, "=");
    const struct flag *flag = find_short(f, arg, len);
    if (flag) {
        char *name = xformat("%s%s", flag->name, arg + len);
        bool ok = take_flag(f, name, argc, argv, i);
        free(name);
        return ok;
    }
    for (size_t k = len; k > 0; k--) { /* -O2, -cc.mode=3 */
        flag = find_short(f, arg, k);
        if (flag && isdigit((unsigned char)arg[k]))
            return flags_set(f, FLAG_FROM_LINE, flag->name, arg + k);
        if (flag && arg[k] == '.') {
            char *name = xformat("%s%s", flag->name, arg + k);
            bool ok = take_flag(f, name, argc, argv, i);
            free(name);
            return ok;
        }
    }
    return unknown(f, "-", arg);
}

bool flags_parse_line(struct flags *f, int argc, char **argv)
{
    f->positional = xcalloc((size_t)argc + 1, sizeof *f->positional);
    bool only_positional = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (only_positional || !looks_like_flag(arg)) {
            f->positional[f->n_positional++] = argv[i];
        } else if (strcmp(arg, "--") == 0) {
            only_positional = true;
        } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            f->help = "";
        } else if (strncmp(arg, "--help=", 7) == 0) {
            f->help = arg + 7;
        } else if (arg[1] == '-') {
            if (!take_flag(f, arg + 2, argc, argv, &i))
                return f->help != NULL;
        } else if (!take_short(f, argc, argv, &i)) {
            return f->help != NULL;
        }
    }
    return true;
}

bool flags_parse_env(struct flags *f)
{
    for (int i = 0; i < f->n; i++) {
        const struct flag *flag = &f->table[i];
        const char *value = flag->env && flag->commands & f->command ? getenv(flag->env) : NULL;
        if (!value || !*value)
            continue;
        if (!set_found(f, FLAG_FROM_ENV, flag, false, value)) {
            char why[sizeof f->error];
            memcpy(why, f->error, sizeof why);
            return flags_fail(f, "environment variable %s: %.900s", flag->env, why);
        }
    }
    return true;
}

/* ---- telling -------------------------------------------------------------------------------- */

void flags_describe(const struct flags *f, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "{");
    const char *comma = "";
    for (int i = 0; i < f->n && used < size; i++) {
        const struct flag *flag = &f->table[i];
        if (f->source[i] < FLAG_FROM_FILE)
            continue;
        bool bare = flag->kind != FLAG_STRING && flag->kind != FLAG_ENUM && flag->kind != FLAG_LIST;
        const char *value = flag->secret ? "***" : f->text[i];
        char name[MAX_NAME];
        snprintf(name, sizeof name, "%s", flag->name);
        for (char *p = name; *p; p++)
            *p = *p == '-' ? '_' : *p;
        used += (size_t)snprintf(out + used, size - used, bare ? "%s'%s': %s" : "%s'%s': '%s'",
                                 comma, name, value);
        comma = ", ";
    }
    if (used < size)
        snprintf(out + used, size - used, "}");
}

void flags_report_no_effect(const struct flags *f, void (*say)(const char *sentence))
{
    for (int i = 0; i < f->n; i++) {
        if (f->source[i] == FLAG_UNSET || f->table[i].state != FLAG_NO_EFFECT)
            continue;
        char *line = xformat("--%s is accepted and has no effect here", f->table[i].name);
        say(line);
        free(line);
    }
}
