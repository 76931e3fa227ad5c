/* Fuzz target: what a hub sends. The first byte picks the reader: a listing, an index of shards, or
 * the names and tags that become paths.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "hub/download.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Nothing that passed may leave the folder that it is joined to. */
static void stays_inside(const char *name)
{
    SL_ASSERT(name[0] && name[0] != '/' && !strchr(name, '\\'));
    for (const char *p = name; p; p = strchr(p, '/')) {
        p += *p == '/';
        size_t n = strcspn(p, "/");
        SL_ASSERT(n > 0 && !(n == 1 && p[0] == '.') && !(n == 2 && p[0] == '.' && p[1] == '.'));
    }
}

static enum sl_status shard(void *ctx, const char *name, struct sl_err *err)
{
    (void)ctx, (void)err;
    stays_inside(name);
    SL_ASSERT(!strchr(name, '/'));
    return SL_OK;
}

static void names(const char *text, size_t size)
{
    char tag[160];
    char *s = mem_strndup(text, size);
    if (!s)
        return;
    if (file_name_ok(s))
        stays_inside(s);
    if (revision_ok(s))
        stays_inside(s);
    if (etag_normalize(s, tag)) {
        stays_inside(tag);
        SL_ASSERT(!strchr(tag, '/'));
    }
    if (repo_name_ok(s))
        stays_inside(s);
    (void)url_check(s);
    mem_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct listing l;
    const char *text = (const char *)data + 1;
    if (size == 0)
        return 0;
    if (data[0] % 3 == 0 && listing_parse(&l, text, size - 1, "org/m", NULL) == SL_OK) {
        for (size_t i = 0; i < l.n; i++)
            stays_inside(l.name[i]);
        listing_fini(&l);
    } else if (data[0] % 3 == 1) {
        (void)!index_shards("index.json", text, size - 1, shard, NULL, NULL);
    } else if (data[0] % 3 == 2) {
        names(text, size - 1);
    }
    return 0;
}
