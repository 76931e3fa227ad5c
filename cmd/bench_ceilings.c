/* bench ceilings: what this machine can do at most, in memory bandwidth and multiply-adds.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "commands.h"
#include "util.h"

#include "backend/cpu/ceilings.h"

#include <jansson.h>

enum { MEASURE_MS = 600 };

int command_bench_ceilings(struct options *o)
{
    struct ceilings *c = NULL;
    struct sl_err err = {0};
    if (ceilings_create(&c, o->engine.threads, 0, &err) != SL_OK)
        return fail_with(EXIT_FAILED, "%s", err.msg);
    json_t *json = json_pack("{s:i, s:s}", "threads", ceilings_threads(c), "isa",
                             cpu_isa_name(ceilings_isa(c)));
    printf("%d threads, %s\n", ceilings_threads(c), cpu_isa_name(ceilings_isa(c)));
    for (enum ceiling w = CEILING_READ; w < N_CEILINGS; w++) {
        double rate = ceilings_measure(c, w, MEASURE_MS);
        const char *unit = w == CEILING_READ ? "GB/s" : w == CEILING_I8 ? "GOP/s" : "GFLOP/s";
        char key[64];
        if (rate > 0)
            printf("%-5s %9.1f %s\n", ceiling_name(w), rate / 1e9, unit);
        snprintf(key, sizeof key, "%s_%s", ceiling_name(w),
                 w == CEILING_READ ? "gb_s"
                 : w == CEILING_I8 ? "gop_s"
                                   : "gflop_s");
        json_object_set_new(json, key, json_real(rate / 1e9));
    }
    ceilings_destroy(&c);
    const char *path = o->workload.output_json;
    int rc = EXIT_DONE;
    if (path && json_dump_file(json, path, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) != 0)
        rc = fail_with(EXIT_FAILED, "cannot write %s", path);
    json_decref(json);
    return rc;
}
