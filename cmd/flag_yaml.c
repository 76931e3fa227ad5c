/* --config FILE.yaml: a mapping whose keys are flag names (libyaml does the parsing).
 *
 *     model: models/pebble
 *     max-num-seqs: 64
 *     served-model-name: [pebble, small]
 *     default-chat-template-kwargs: {enable_thinking: false}
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "flags.h"
#include "util.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <yaml.h>

#define MAX_FILE_BYTES (1 << 20)
#define MAX_NODES 20000 /* aliases can make a small file name a huge tree */
#define MAX_DEPTH 32

struct reader {
    struct flags *flags;
    yaml_document_t doc;
    const char *path;
    int n_nodes;
};

/* A plain scalar is typed as YAML's core schema does it; a quoted one is text. */
static json_t *scalar_to_json(const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;
    size_t len = node->data.scalar.length;
    if (node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE) {
        if (len == 0 || !strcmp(text, "~") || !strcasecmp(text, "null"))
            return json_null();
        if (!strcasecmp(text, "true") || !strcasecmp(text, "false"))
            return json_boolean(strcasecmp(text, "true") == 0);
        json_t *number = json_loadb(text, len, JSON_DECODE_ANY, NULL);
        if (json_is_number(number))
            return number;
        json_decref(number);
    }
    return json_stringn(text, len);
}

static json_t *node_to_json(struct reader *r, int index, int depth)
{
    yaml_node_t *node = yaml_document_get_node(&r->doc, index);
    if (!node || depth > MAX_DEPTH || ++r->n_nodes > MAX_NODES)
        return NULL;
    if (node->type == YAML_SCALAR_NODE)
        return scalar_to_json(node);
    if (node->type == YAML_SEQUENCE_NODE) {
        json_t *list = json_array();
        for (yaml_node_item_t *i = node->data.sequence.items.start;
             i < node->data.sequence.items.top; i++) {
            json_t *item = node_to_json(r, *i, depth + 1);
            if (!item || json_array_append_new(list, item)) {
                json_decref(list);
                return NULL;
            }
        }
        return list;
    }
    json_t *object = json_object();
    for (yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top;
         p++) {
        yaml_node_t *key = yaml_document_get_node(&r->doc, p->key);
        json_t *value = node_to_json(r, p->value, depth + 1);
        if (!value || !key || key->type != YAML_SCALAR_NODE ||
            json_object_set_new(object, (const char *)key->data.scalar.value, value)) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static bool set_json(struct reader *r, const char *name, int index)
{
    json_t *value = node_to_json(r, index, 0);
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(value);
    if (!text)
        return flags_fail(r->flags, "the value is nested too deeply, too large, or not UTF-8");
    bool ok = flags_set(r->flags, FLAG_FROM_FILE, name, text);
    free(text);
    return ok;
}

static bool set_list(struct reader *r, const char *name, const yaml_node_t *list)
{
    bool negated;
    const struct flag *flag = flags_find(r->flags, name, &negated);
    if (!flag) /* says that there is none by that name */
        return flags_set(r->flags, FLAG_FROM_FILE, name, NULL);
    if (flag->kind != FLAG_LIST)
        return flags_fail(r->flags, "--%s takes one value, not a list", flag->name);
    for (yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top;
         i++) {
        yaml_node_t *item = yaml_document_get_node(&r->doc, *i);
        if (!item || item->type != YAML_SCALAR_NODE)
            return flags_fail(r->flags, "the list may hold plain values only");
        if (!flags_set(r->flags, FLAG_FROM_FILE, name, (const char *)item->data.scalar.value))
            return false;
    }
    return true;
}

static bool set_pair(struct reader *r, const yaml_node_pair_t *pair)
{
    yaml_node_t *key = yaml_document_get_node(&r->doc, pair->key);
    yaml_node_t *value = yaml_document_get_node(&r->doc, pair->value);
    if (!key || !value || key->type != YAML_SCALAR_NODE)
        return flags_fail(r->flags, "a key must be the name of a flag");
    const char *name = (const char *)key->data.scalar.value;
    if (!strcmp(name, "config"))
        return flags_fail(r->flags, "config: a config file cannot name another");
    if (value->type == YAML_MAPPING_NODE)
        return set_json(r, name, pair->value);
    if (value->type == YAML_SEQUENCE_NODE)
        return set_list(r, name, value);
    return flags_set(r->flags, FLAG_FROM_FILE, name, (const char *)value->data.scalar.value);
}

static bool set_all(struct reader *r)
{
    yaml_node_t *root = yaml_document_get_root_node(&r->doc);
    if (!root)
        return true; /* an empty file says nothing */
    if (root->type != YAML_MAPPING_NODE)
        return flags_fail(r->flags, "--config %s: a mapping of flag names to values is needed",
                          r->path);
    for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top;
         p++) {
        if (set_pair(r, p))
            continue;
        yaml_node_t *key = yaml_document_get_node(&r->doc, p->key);
        char why[sizeof r->flags->error];
        memcpy(why, r->flags->error, sizeof why);
        return flags_fail(r->flags, "%s line %d: %.900s", r->path,
                          key ? (int)key->start_mark.line + 1 : 0, why);
    }
    return true;
}

static bool load(struct reader *r, FILE *in)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return flags_fail(r->flags, "--config %s: out of memory", r->path);
    yaml_parser_set_input_file(&parser, in);
    bool ok = yaml_parser_load(&parser, &r->doc);
    if (ok) {
        ok = set_all(r);
        yaml_document_delete(&r->doc);
    } else {
        flags_fail(r->flags, "%s line %d: %s", r->path, (int)parser.problem_mark.line + 1,
                   parser.problem ? parser.problem : "not YAML");
    }
    yaml_parser_delete(&parser);
    return ok;
}

bool flags_parse_yaml(struct flags *f, const char *path)
{
    struct reader r = {.flags = f, .path = path};
    FILE *in = fopen(path, "rb");
    if (!in)
        return flags_fail(f, "--config %s: %s", path, strerror(errno));
    bool ok = false;
    if (fseek(in, 0, SEEK_END) || ftell(in) < 0 || ftell(in) > MAX_FILE_BYTES)
        flags_fail(f, "--config %s: not a file of at most 1 MiB", path);
    else {
        rewind(in);
        ok = load(&r, in);
    }
    fclose(in);
    return ok;
}
