/* Post-processors: which ids stand around the text's own.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer_impl.h"
#include "base/mem.h"
#include "base/status.h"

#include <string.h>

enum { MAX_PIECES = 256 };

void post_piece_fini(struct post_piece *p, int n)
{
    for (int i = 0; p && i < n; i++)
        mem_free(p[i].ids);
    mem_free(p);
}

void post_fini(struct post *p)
{
    post_piece_fini(p->single, p->n_single);
    post_piece_fini(p->pair, p->n_pair);
    *p = (struct post){0};
}

static enum sl_status add_piece(struct post_piece **list, int *n, int sequence, const int32_t *ids,
                                int n_ids, struct sl_err *err)
{
    struct post_piece *p = mem_realloc(*list, (size_t)*n + 1, sizeof *p);
    if (!p)
        return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the post-processor");
    *list = p;
    p[*n] = (struct post_piece){.sequence = sequence, .n = n_ids};
    if (sequence < 0) {
        p[*n].ids = mem_alloc((size_t)n_ids, sizeof *ids);
        if (!p[*n].ids)
            return SL_FAIL(err, SL_ENOMEM, "tokenizer: no memory for the post-processor");
        memcpy(p[*n].ids, ids, (size_t)n_ids * sizeof *ids);
    }
    ++*n;
    return SL_OK;
}

/* An id that a post-processor names must be one of the vocabulary's. */
static bool id_of(const json_t *json, int32_t *id)
{
    json_int_t v = json_is_integer(json) ? json_integer_value(json) : -1;
    *id = (int32_t)v;
    return v >= 0 && v < TOK_MAX_ID;
}

static enum sl_status special_piece(struct post_piece **list, int *n, const json_t *specials,
                                    const char *name, struct sl_err *err)
{
    const json_t *ids = json_object_get(json_object_get(specials, name), "ids");
    int32_t out[64];
    size_t k = json_array_size(ids);
    if (!json_is_array(ids) || k > 64)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the template's token %.80s has no ids", name);
    for (size_t i = 0; i < k; i++) {
        if (!id_of(json_array_get(ids, i), &out[i]))
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: the template's token %.80s has a wrong id",
                           name);
    }
    return add_piece(list, n, -1, out, (int)k, err);
}

static enum sl_status parse_template(struct post_piece **list, int *n, const json_t *json,
                                     const json_t *specials, struct sl_err *err)
{
    if (!json_is_array(json) || json_array_size(json) > MAX_PIECES)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: TemplateProcessing needs \"single\", \"pair\"");
    enum sl_status st = SL_OK;
    size_t i;
    json_t *piece;
    json_array_foreach(json, i, piece)
    {
        const json_t *seq = json_object_get(piece, "Sequence");
        const char *which = json_string_value(json_object_get(seq, "id"));
        const char *name =
            json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        if (which)
            st = add_piece(list, n, strcmp(which, "B") == 0, NULL, 0, err);
        else if (name)
            st = special_piece(list, n, specials, name, err);
        else
            st = SL_FAIL(err, SL_EFORMAT,
                         "tokenizer: a template's piece is neither Sequence nor "
                         "SpecialToken");
        if (st)
            return st;
    }
    return SL_OK;
}

/* ["[SEP]", 102] */
static enum sl_status named_id(const json_t *json, const char *key, int32_t *id, struct sl_err *err)
{
    if (!id_of(json_array_get(json_object_get(json, key), 1), id))
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: the post-processor's \"%s\" is wrong", key);
    return SL_OK;
}

/* BERT: cls A sep B sep. RoBERTa: cls A sep sep B sep. */
static enum sl_status set_cls_sep(struct post *p, int32_t cls, int32_t sep, bool roberta,
                                  struct sl_err *err)
{
    enum sl_status st = SL_OK;
    for (int pair = 0; pair < 2 && !st; pair++) {
        struct post_piece **list = pair ? &p->pair : &p->single;
        int *n = pair ? &p->n_pair : &p->n_single;
        st = add_piece(list, n, -1, &cls, 1, err);
        for (int seq = 0; seq <= pair && !st; seq++) {
            if (seq && roberta)
                st = add_piece(list, n, -1, &sep, 1, err);
            if (!st)
                st = add_piece(list, n, seq, NULL, 0, err);
            if (!st)
                st = add_piece(list, n, -1, &sep, 1, err);
        }
    }
    return st;
}

static enum sl_status parse_cls_sep(struct post *p, const json_t *json, bool roberta,
                                    struct sl_err *err)
{
    int32_t cls, sep;
    enum sl_status st = named_id(json, "cls", &cls, err);
    if (!st)
        st = named_id(json, "sep", &sep, err);
    return st ? st : set_cls_sep(p, cls, sep, roberta, err);
}

enum sl_status post_set_cls_sep(struct tokenizer *t, const char *cls, const char *sep, bool roberta,
                                struct sl_err *err)
{
    int32_t c = tokenizer_token_id(t, cls), s = tokenizer_token_id(t, sep);
    if (c < 0 || s < 0)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: %s or %s is not in the vocabulary", cls, sep);
    return set_cls_sep(&t->post, c, s, roberta, err);
}

static enum sl_status parse(struct post *p, const json_t *json, int depth, struct sl_err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type || depth > 16)
        return SL_FAIL(err, SL_EFORMAT, "tokenizer: a post-processor has no \"type\"");
    if (!strcmp(type, "ByteLevel")) /* trims offsets, adds nothing */
        return SL_OK;
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(json, "processors");
        size_t i;
        json_t *item;
        if (!json_is_array(list))
            return SL_FAIL(err, SL_EFORMAT, "tokenizer: a Sequence without \"processors\"");
        json_array_foreach((json_t *)list, i, item)
        {
            enum sl_status st = parse(p, item, depth + 1, err);
            if (st)
                return st;
        }
        return SL_OK;
    }
    if (p->n_single)
        return SL_FAIL(err, SL_ENOSUPPORT, "tokenizer: two post-processors that add tokens");
    if (!strcmp(type, "TemplateProcessing")) {
        const json_t *specials = json_object_get(json, "special_tokens");
        enum sl_status st = parse_template(&p->single, &p->n_single,
                                           json_object_get(json, "single"), specials, err);
        return st ? st
                  : parse_template(&p->pair, &p->n_pair, json_object_get(json, "pair"), specials,
                                   err);
    }
    if (!strcmp(type, "BertProcessing"))
        return parse_cls_sep(p, json, false, err);
    if (!strcmp(type, "RobertaProcessing"))
        return parse_cls_sep(p, json, true, err);
    return SL_FAIL(err, SL_EFORMAT, "tokenizer: unknown post-processor %.80s", type);
}

enum sl_status post_parse(struct tokenizer *t, const json_t *json, struct sl_err *err)
{
    if (!json || json_is_null(json))
        return SL_OK;
    return parse(&t->post, json, 0, err);
}
