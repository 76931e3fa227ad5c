/* SPDX-License-Identifier: Apache-2.0 */
#include "text/chat.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "text/chat_files.h"
#include "text/template.h"

#include <stdio.h>
#include <string.h>

struct named {
    char *name;         /* "" for --chat-template's own */
    struct template *t; /* NULL: broken, for the reason in `err` */
    struct sl_err err;
};

struct chat {
    struct named *v;
    size_t n, pick;   /* pick: the one that --chat-template names; SIZE_MAX: none */
    json_t *defaults; /* variables that a request may leave out */
};

/* ---- opening -------------------------------------------------------------------------------- */

static enum sl_status no_memory(struct sl_err *err)
{
    return SL_FAIL(err, SL_ENOMEM, "no memory for the chat templates");
}

static enum sl_status add_template(void *ctx, const char *name, const char *source, size_t bytes,
                                   struct sl_err *err)
{
    struct chat *c = ctx;
    struct named *v = mem_realloc(c->v, c->n + 1, sizeof *v);
    if (!v)
        return no_memory(err);
    c->v = v;
    v += c->n;
    *v = (struct named){.name = mem_strdup(name)};
    if (!v->name)
        return no_memory(err);
    c->n++;
    if (template_compile(&v->t, source, bytes, &v->err) == SL_ENOMEM)
        return no_memory(err);
    return SL_OK;
}

static size_t find(const struct chat *c, const char *name)
{
    for (size_t i = 0; i < c->n; i++)
        if (*name && !strcmp(c->v[i].name, name))
            return i;
    return SIZE_MAX;
}

/* A template's text holds braces or line breaks; a file's name does not. */
static bool is_text(const char *s)
{
    return strpbrk(s, "{}\n") != NULL;
}

/* --chat-template: a name, a file or a text. */
static enum sl_status pick_template(struct chat *c, const char *chosen, struct sl_err *err)
{
    char *data = NULL;
    size_t bytes = 0;
    enum sl_status st = SL_OK;
    c->pick = find(c, chosen);
    if (c->pick == SIZE_MAX) {
        if (!is_text(chosen))
            st = file_read(chosen, CHAT_MAX_FILE_BYTES, &data, &bytes, err);
        if (!st && !data && !is_text(chosen))
            st = SL_FAIL_PARAM(err, SL_EINVAL, "chat_template",
                               "the chat template '%s' is no text with braces and no file that is "
                               "there",
                               chosen);
        if (!st)
            st = add_template(c, "", data ? data : chosen, data ? bytes : strlen(chosen), err);
        c->pick = c->n - 1;
    }
    mem_free(data);
    if (!st && !c->v[c->pick].t)
        st = SL_FAIL_PARAM(err, c->v[c->pick].err.code, "chat_template", "%s",
                           c->v[c->pick].err.msg);
    return st;
}

static enum sl_status open_all(struct chat *c, const char *dir, const char *chosen,
                               struct sl_err *err)
{
    enum sl_status st = SL_OK;
    c->defaults = json_pack("{s:n, s:n, s:b}", "tools", "documents", "add_generation_prompt", 0);
    if (!c->defaults)
        return no_memory(err);
    if (dir)
        st = chat_read_folder(dir, add_template, c, c->defaults, err);
    return st || !chosen ? st : pick_template(c, chosen, err);
}

enum sl_status chat_open(struct chat **out, const char *dir, const char *chosen, struct sl_err *err)
{
    struct chat *c = mem_zalloc(1, sizeof *c);
    if (!c)
        return no_memory(err);
    c->pick = SIZE_MAX;
    enum sl_status st = open_all(c, dir, chosen, err);
    if (st)
        chat_close(&c);
    else
        *out = c;
    return st;
}

void chat_close(struct chat **chat)
{
    struct chat *c = *chat;
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++) {
        mem_free(c->v[i].name);
        template_destroy(&c->v[i].t);
    }
    mem_free(c->v);
    json_decref(c->defaults);
    mem_free(c);
    *chat = NULL;
}

/* ---- choosing ------------------------------------------------------------------------------- */

static enum sl_status no_default(const struct chat *c, struct sl_err *err)
{
    char names[512] = "";
    size_t used = 0;
    if (!c->n)
        return SL_FAIL(err, SL_EINVAL,
                       "the model has no chat template; give one with "
                       "--chat-template");
    for (size_t i = 0; i < c->n; i++)
        if (used + strlen(c->v[i].name) + 3 < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "",
                                     c->v[i].name);
    return SL_FAIL(err, SL_EINVAL,
                   "the model has several chat templates and none of them is the default; name one "
                   "of: %s",
                   names);
}

static enum sl_status usable(const struct chat *c, size_t i, const struct template **out,
                             struct sl_err *err)
{
    *out = c->v[i].t;
    return *out ? SL_OK : SL_FAIL(err, SL_EINVAL, "%s", c->v[i].err.msg);
}

static enum sl_status choose(const struct chat *c, bool tools, const struct template **out,
                             struct sl_err *err)
{
    size_t i = c->pick;
    if (i == SIZE_MAX && tools)
        i = find(c, "tool_use");
    if (i == SIZE_MAX)
        i = find(c, "default");
    return i == SIZE_MAX ? no_default(c, err) : usable(c, i, out, err);
}

bool chat_has_template(const struct chat *c)
{
    return c->n > 0;
}

const char *chat_problem(const struct chat *c)
{
    size_t i = c->pick != SIZE_MAX ? c->pick : find(c, "default");
    if (i == SIZE_MAX)
        return c->n ? "the model has several chat templates and no default" : "no chat template";
    return c->v[i].t ? NULL : c->v[i].err.msg;
}

/* ---- continue_final_message
 * ---------------------------------------------------------------------- */

/* Written behind the last message's text, so that the place can be found in the rendered one. The
 * space at its end tells whether the template strips what it is given. */
static const char tag[] = "CONTINUE_FINAL_MESSAGE_TAG ";

struct ending {
    json_t *vars; /* with the tag in them; NULL: the request does not ask for it */
    char *final;  /* the last message's text, as it was */
};

static enum sl_status refuse(struct sl_err *err, const char *why)
{
    return SL_FAIL(err, SL_EINVAL, "continue_final_message is set but %s", why);
}

/* A string with the tag behind it; NULL: no memory. */
static json_t *tagged(const json_t *text)
{
    struct strbuf b;
    strbuf_init(&b, 0);
    strbuf_add(&b, json_string_value(text), json_string_length(text));
    strbuf_adds(&b, tag);
    json_t *out = b.failed ? NULL : json_stringn_nocheck(b.data, b.len);
    strbuf_fini(&b);
    return out;
}

/* `message` is a deep copy, ours to change. */
static enum sl_status tag_message(json_t *message, const char *field, struct ending *e,
                                  struct sl_err *err)
{
    json_t *owner = message, *text = json_object_get(message, field);
    const char *key = field;
    if (json_is_array(text)) {
        const json_t *parts = text;
        text = NULL;
        for (size_t i = json_array_size(parts); i-- > 0 && !text;) {
            owner = json_array_get(parts, i);
            text = json_object_get(owner, key = "text");
        }
        if (!text)
            return refuse(err, "we could not find any text to continue in the final message!");
    }
    if (!json_is_string(text))
        return refuse(err, "the final message has no text to continue!");
    e->final = mem_strndup(json_string_value(text), json_string_length(text));
    json_t *with = tagged(text);
    if (!e->final || !with || json_object_set_new(owner, key, with))
        return no_memory(err);
    return SL_OK;
}

static enum sl_status tag_vars(const json_t *vars, struct ending *e, struct sl_err *err)
{
    const json_t *flag = json_object_get(vars, "continue_final_message");
    json_t *messages = json_object_get(vars, "messages");
    size_t n = json_array_size(messages);
    if (!flag || json_is_false(flag) || json_is_null(flag))
        return SL_OK;
    if (!n)
        return refuse(err, "there is no message to continue!");
    json_t *all = json_copy(messages), *last = json_deep_copy(json_array_get(messages, n - 1));
    e->vars = json_copy((json_t *)vars);
    enum sl_status st = all && last && e->vars ? SL_OK : no_memory(err);
    if (!st)
        st = tag_message(last, json_is_string(flag) ? json_string_value(flag) : "content", e, err);
    if (!st && (json_array_set(all, n - 1, last) || json_object_set(e->vars, "messages", all)))
        st = no_memory(err);
    json_decref(all);
    json_decref(last);
    return st;
}

static bool is_space(char c)
{
    return c && strchr(" \t\n\r\v\f", c);
}

static enum sl_status cut_text(const struct ending *e, char *text, size_t *bytes,
                               struct sl_err *err)
{
    size_t n = sizeof tag - 2, at = *bytes; /* the tag without its space */
    const char *final = e->final;
    size_t core = strlen(final);
    while (is_space(*final)) {
        final++;
        core--;
    }
    while (core && is_space(final[core - 1]))
        core--;
    while (at && (*bytes - at < n || memcmp(text + at, tag, n)))
        at--;
    if (*bytes < n || memcmp(text + at, tag, n) || (core && !memmem(text, *bytes, final, core)))
        return refuse(err, "the final message does not appear in the chat after applying the chat "
                           "template! This can happen if the chat template deletes portions of the "
                           "final message.");
    bool kept = *bytes - at > n && text[at + n] == ' ';
    while (!kept && at && is_space(text[at - 1]))
        at--;
    text[at] = 0;
    *bytes = at;
    return SL_OK;
}

/* ---- rendering
 * ------------------------------------------------------------------------------------ */

static enum sl_status override_template(const struct chat *c, const char *override,
                                        struct template **own, const struct template **out,
                                        struct sl_err *err)
{
    size_t i = find(c, override);
    if (i != SIZE_MAX)
        return usable(c, i, out, err);
    enum sl_status st = template_compile(own, override, strlen(override), err);
    *out = *own;
    return st;
}

bool chat_reads_parts(const struct chat *c, bool tools, const char *override)
{
    const struct template *t = NULL;
    struct template *own = NULL;
    enum sl_status st =
        override ? override_template(c, override, &own, &t, NULL) : choose(c, tools, &t, NULL);
    bool parts = !st && template_reads_parts(t);
    template_destroy(&own);
    return parts;
}

enum sl_status chat_render(const struct chat *c, const json_t *vars, const char *override,
                           const char *now, char **text, size_t *bytes, struct sl_err *err)
{
    const json_t *tools = json_object_get(vars, "tools");
    const struct template *t = NULL;
    struct template *own = NULL;
    struct ending e = {0};
    char *p = NULL;
    size_t n = 0;
    enum sl_status st = override ? override_template(c, override, &own, &t, err)
                                 : choose(c, tools && !json_is_null(tools), &t, err);
    if (!st)
        st = tag_vars(vars, &e, err);
    if (!st)
        st = template_render(t, e.vars ? e.vars : vars, c->defaults, now, NULL, &p, &n, err);
    if (!st && e.vars)
        st = cut_text(&e, p, &n, err);
    if (st) {
        mem_free(p);
    } else {
        *text = p;
        *bytes = n;
    }
    json_decref(e.vars);
    mem_free(e.final);
    template_destroy(&own);
    return st;
}
