/* response_format and structured_outputs: what they ask of the output, as one thing.
 * SPDX-License-Identifier: Apache-2.0 */
#include "engine/structured.h"
#include "http/oai.h"

#include <string.h>

static json_t *present(const json_t *object, const char *key)
{
    json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

static bool bad_format(struct oai_error *e, const char *type, const char *msg)
{
    return oai_fail(e, 400, "Bad Request", "body.response_format",
                    "1 validation error:\n  {'type': '%s', 'loc': ('body', 'response_format'), "
                    "'msg': '%s'}",
                    type, msg);
}

/* Adds what response_format asks for to so, an object as structured_outputs. */
static bool add_format(const json_t *rf, json_t *so, struct oai_error *e)
{
    const char *type = json_string_value(json_object_get(rf, "type"));
    int failed = 0;
    if (type && !strcmp(type, "text"))
        return true;
    if (type && !strcmp(type, "json_object")) {
        failed = json_object_set_new(so, "json_object", json_true());
    } else if (type && !strcmp(type, "json_schema")) {
        const json_t *js = present(rf, "json_schema");
        json_t *schema = present(js, "schema");
        if (!json_is_object(js) || !json_is_string(json_object_get(js, "name")))
            return oai_fail(e, 400, NULL, "response_format",
                            "response_format.json_schema must be an object with a name and a "
                            "schema.");
        if (!json_is_object(schema) && !json_is_boolean(schema))
            return oai_fail(e, 400, NULL, "response_format",
                            "response_format.json_schema.schema must be a JSON schema.");
        failed = json_object_set(so, "json", schema);
    } else if (type && !strcmp(type, "structural_tag")) {
        if (!present(rf, "format") && !present(rf, "structures"))
            return oai_fail(e, 400, NULL, "response_format",
                            "Invalid response_format structural_tag specification.");
        failed = json_object_set(so, "structural_tag", (json_t *)rf);
    } else {
        return bad_format(e, "union_tag_invalid",
                          "Input tag should be one of text, json_object, json_schema, "
                          "structural_tag");
    }
    return !failed || oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
}

bool oai_structured(struct oai_request *r, struct oai_error *e)
{
    const json_t *asked = r->structured_outputs;
    json_t *so = asked ? json_copy((json_t *)asked) : json_object();
    if (!so)
        return oai_fail(e, 500, NULL, NULL, "There is not enough memory for the request");
    bool ok = !r->response_format || add_format(r->response_format, so, e);
    struct sl_err err = {0};
    if (ok && (asked || json_object_size(so))) {
        err.code = structured_from_json(so, &r->arena, &r->params.structured, &err);
        ok = !err.code || oai_fail_err(e, &err);
        r->params.structured.field = asked ? NULL : "response_format";
    }
    json_decref(so);
    return ok;
}
