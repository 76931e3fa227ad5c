/* KV waste: slots that are allocated and not computed, a reserved prompt's included, as a share of
 * what is allocated. PagedAttention's paper has under 4 %.
 * SPDX-License-Identifier: Apache-2.0 */
#include "sched_world.h"

#include <stdio.h>
#include <stdlib.h>

static struct sched_config config(void)
{
    struct sched_config cfg = world_config();
    cfg.max_num_seqs = 256;
    cfg.max_num_batched_tokens = 8192;
    cfg.max_model_len = 8192;
    cfg.depth = 2;
    cfg.layout.block_size = 16;
    cfg.layout.n_blocks = 16384;
    cfg.layout.group[0] = (struct kv_group){.n_layers = 32, .bytes_per_token = 131072};
    return cfg;
}

static double run(struct world *w, const char *what)
{
    struct sl_err err = {0};
    struct sched_stats st;
    while (core_step(w->core, &err) == SL_OK)
        ;
    assert_true(core_idle(w->core));
    sched_check(world_sched(w));
    sched_get_stats(world_sched(w), &st);
    double waste = 1 - (double)st.kv_slots_used / (double)st.kv_slots_reserved;
    printf("%s: %.2f %% of the allocated KV slots are not computed (%llu choices)\n", what,
           100 * waste, (unsigned long long)st.n_finished);
    return waste;
}

static void prompts_and_outputs_of_128(void **state)
{
    (void)state;
    struct sched_config cfg = config();
    struct world w;
    world_init(&w, &cfg);
    for (int i = 0; i < 2000; i++)
        world_add(&w, 128, 128);
    double waste = run(&w, "128 in, 128 out");
    assert_true(waste > 0 && waste < 0.04);
    world_fini(&w);
}

static void azure_conversations(void **state)
{
    (void)state;
    struct sched_config cfg = config();
    struct world w;
    world_init(&w, &cfg);
    FILE *in = fopen("bench/traces/azure_conv.csv", "r");
    assert_non_null(in);
    char line[128];
    int n = 0;
    while (fgets(line, sizeof line, in)) {
        char *rest = strchr(line, ',');
        if (!rest || line[0] < '0' || line[0] > '9')
            continue;
        int n_in = (int)strtol(rest + 1, &rest, 10), n_out = (int)strtol(rest + 1, NULL, 10);
        world_add(&w, n_in, n_out);
        n++;
    }
    fclose(in);
    assert_int_equal(n, 5000);
    double waste = run(&w, "Azure conversations");
    assert_true(waste > 0 && waste < 0.01);
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_and_outputs_of_128),
        cmocka_unit_test(azure_conversations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
