/* SPDX-License-Identifier: Apache-2.0 */
#include "http/oai.h"

#include "http/json_out.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    int status;
    const char *type;
} types[] = {
    {400, "BadRequestError"},
    {401, "Unauthorized"},
    {404, "NotFoundError"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {413, "Request Entity Too Large"},
    {422, "UnprocessableEntityError"},
    {429, "Too Many Requests"},
    {500, "InternalServerError"},
    {501, "NotImplementedError"},
    {503, "Service Unavailable"},
};

const char *oai_status_type(int status)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].status == status)
            return types[i].type;
    return status < 500 ? "BadRequestError" : "InternalServerError";
}

bool oai_fail(struct oai_error *e, int status, const char *type, const char *param, const char *fmt,
              ...)
{
    if (e->status)
        return false;
    e->status = status;
    e->type = type ? type : oai_status_type(status);
    e->err.code = SL_EINVAL;
    snprintf(e->err.param, sizeof e->err.param, "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->err.msg, sizeof e->err.msg, fmt, ap);
    va_end(ap);
    return false;
}

static int status_of(enum sl_status code)
{
    switch (code) {
    case SL_EINVAL:
    case SL_EFORMAT:
        return 400;
    case SL_ENOTFOUND:
        return 404;
    case SL_EAGAIN:
        return 429;
    case SL_ENOSUPPORT:
        return 501;
    case SL_EDEVICE:
    case SL_ESHUTDOWN:
        return 503;
    default:
        return 500;
    }
}

bool oai_fail_err(struct oai_error *e, const struct sl_err *err)
{
    return oai_fail(e, status_of(err->code), NULL, err->param, "%s", err->msg);
}

void oai_error_json(struct strbuf *out, const struct oai_error *e)
{
    strbuf_adds(out, "{\"error\":{\"message\":");
    json_put_lossy(out, e->err.msg, strlen(e->err.msg));
    strbuf_adds(out, ",\"type\":");
    json_put_cstr(out, e->type);
    strbuf_adds(out, ",\"param\":");
    json_put_cstr(out, e->err.param[0] ? e->err.param : NULL);
    strbuf_addf(out, ",\"code\":%d}}", e->status);
}
