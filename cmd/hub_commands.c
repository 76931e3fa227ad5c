/* ls and rm: what was fetched from the hub, and taking it out again.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "hub_setup.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

static void print_table(const struct sl_hub_entry *list, size_t n)
{
    size_t name = 5, refs = 4;
    for (size_t i = 0; i < n; i++) {
        name = strlen(list[i].name) > name ? strlen(list[i].name) : name;
        refs = strlen(list[i].refs) > refs ? strlen(list[i].refs) : refs;
    }
    printf("%-*s  %-12s  %-*s  %9s  %5s  %s\n", (int)name, "MODEL", "REVISION", (int)refs, "REFS",
           "SIZE", "FILES", "LAST USED");
    for (size_t i = 0; i < n; i++) {
        char size[32], when[32] = "";
        time_t t = (time_t)list[i].last_used_s;
        struct tm day;
        if (t && localtime_r(&t, &day))
            strftime(when, sizeof when, "%Y-%m-%d %H:%M", &day);
        printf("%-*s  %-12.12s  %-*s  %9s  %5d  %s\n", (int)name, list[i].name,
               *list[i].commit ? list[i].commit : "(unfinished)", (int)refs, list[i].refs,
               hub_bytes(size, list[i].bytes), list[i].n_files, when);
    }
}

static void print_json(const struct sl_hub_entry *list, size_t n)
{
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        const struct sl_hub_entry *e = &list[i];
        json_t *refs = json_array();
        for (const char *p = e->refs; *p;) {
            size_t len = strcspn(p, ",");
            json_array_append_new(refs, json_stringn(p, len));
            p += len + (p[len] ? 2 : 0);
        }
        json_array_append_new(
            all, json_pack("{s:s, s:s, s:o, s:I, s:i, s:I, s:s}", "model", e->name, "revision",
                           e->commit, "refs", refs, "size_on_disk", (json_int_t)e->bytes, "files",
                           e->n_files, "last_used", (json_int_t)e->last_used_s, "path", e->path));
    }
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

int command_ls(struct options *o)
{
    struct sl_hub_config cfg;
    struct sl_hub_entry *list;
    struct sl_err err = {0};
    size_t n;
    hub_config(&cfg, o);
    if (sl_hub_list(&cfg, &list, &n, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    if (o->json_lines)
        print_json(list, n);
    else if (n)
        print_table(list, n);
    else
        printf("no models in %s\n", cfg.cache_dir);
    sl_hub_list_free(list, n);
    return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

/* Whether a person at the terminal says yes. */
static bool asked(const struct options *o, const struct sl_hub_config *cfg)
{
    struct sl_hub_entry *list;
    size_t n, revisions = 0;
    int64_t bytes = 0;
    char size[32], *line = NULL;
    size_t capacity = 0;
    if (sl_hub_list(cfg, &list, &n, NULL) == SL_OK) {
        for (size_t i = 0; i < n; i++)
            if (!strcmp(list[i].name, o->engine.model)) {
                revisions++;
                bytes += list[i].bytes;
            }
        sl_hub_list_free(list, n);
    }
    if (o->hub.revision)
        printf("Remove revision %s of %s? [y/N] ", o->hub.revision, o->engine.model);
    else
        printf("Remove %s (%zu revision%s, %s)? [y/N] ", o->engine.model, revisions,
               revisions == 1 ? "" : "s", hub_bytes(size, bytes));
    fflush(stdout);
    bool yes = getline(&line, &capacity, stdin) > 0 && (line[0] == 'y' || line[0] == 'Y');
    free(line);
    return yes;
}

int command_rm(struct options *o)
{
    struct sl_hub_config cfg;
    struct sl_err err = {0};
    int64_t bytes;
    char size[32];
    hub_config(&cfg, o);
    if (!o->hub.yes && !isatty(STDIN_FILENO))
        return fail_with(EXIT_USAGE, "`sluice rm` asks before it removes; give --yes where nobody "
                                     "can answer");
    if (!o->hub.yes && !asked(o, &cfg))
        return fail_with(EXIT_FAILED, "nothing was removed");
    if (sl_hub_remove(&cfg, o->engine.model, o->hub.revision, &bytes, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    printf("removed %s%s%s: %s\n", o->engine.model, o->hub.revision ? " " : "",
           o->hub.revision ? o->hub.revision : "", hub_bytes(size, bytes));
    return EXIT_DONE;
}
