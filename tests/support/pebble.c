/* SPDX-License-Identifier: Apache-2.0 */
#include "support/pebble.h"

#include "engine/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

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
