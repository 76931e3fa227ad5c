/* SPDX-License-Identifier: Apache-2.0 */
#include "support/pebble.h"

#include "engine/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct sl_config pebble_config(enum sl_device device, enum sl_dtype dtype)
{
    struct sl_config cfg;
    sl_config_init(&cfg);
    cfg.model = "models/pebble";
    cfg.device = device;
    cfg.dtype = dtype;
    cfg.threads = 1;
    cfg.kv_cache_bytes = 256 << 20;
    return cfg;
}

struct sl_engine *pebble_start(const struct sl_config *cfg)
{
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    if (sl_engine_create(&e, cfg, &err))
        fail_msg("no engine: %s", err.msg);
    return e;
}

struct sl_engine *pebble_start_swapping(const struct sl_config *cfg)
{
    struct sl_engine *e = NULL;
    struct sl_err err = {0};
    if (engine_init(&e, cfg, &err) || setup_open(e, &err))
        fail_msg("no engine: %s", err.msg);
    e->sched_cfg.token_ns = 1e12;
    if (engine_start(e, &err))
        fail_msg("no engine: %s", err.msg);
    return e;
}

enum sl_device pebble_device(int argc, char **argv)
{
    if (argc < 2)
        return SL_DEVICE_CPU;
#ifdef SLUICE_CUDA
    if (strcmp(argv[1], "cuda") == 0)
        return SL_DEVICE_CUDA;
#endif
    fprintf(stderr, "%s: '%s' is no device that it was built for\n", argv[0], argv[1]);
    exit(2);
}
