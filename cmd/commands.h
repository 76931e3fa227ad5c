/* commands.h - the subcommands. Each gets its options parsed and returns the exit code:
 * 0 done, 1 it failed (a sentence is on stderr), 2 the command line was wrong, 130 interrupted.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_COMMANDS_H
#define CMD_COMMANDS_H

#include "options.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

int command_serve(struct options *o);
int command_chat(struct options *o);
int command_complete(struct options *o);
int command_generate(struct options *o);
int command_run_batch(struct options *o);
int command_embed(struct options *o);
int command_tokenize(struct options *o);
int command_detokenize(struct options *o);
int command_render(struct options *o);
int command_pull(struct options *o);
int command_ls(struct options *o);
int command_rm(struct options *o);
int command_bench_throughput(struct options *o);
int command_bench_latency(struct options *o);
int command_bench_serve(struct options *o);
int command_bench_startup(struct options *o);
int command_bench_sim(struct options *o);
int command_bench_policies(struct options *o);
int command_bench_ceilings(struct options *o);

#endif
