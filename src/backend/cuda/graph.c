/* graph.c - steps of pure decode replay CUDA graphs.
 *
 * The first step of its kind is launched op by op (that is when products choose their kernels), the
 * second is captured as it is launched, all others are one launch. A graph knows addresses and
 * numbers of rows; whatever else changes from step to step is read from the upload.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

static struct step_graph *find(struct device *d)
{
    for (int i = 0; i < d->n_graphs; i++) {
        struct step_graph *g = &d->graph[i];
        bool same = g->rows == d->rows.tokens;
        for (int k = 0; k < d->n_groups; k++)
            same = same && g->n_blocks[k] == d->plan[k].n_blocks;
        if (same)
            return g;
    }
    return NULL;
}

void graph_begin(struct device *d)
{
    d->capturing = d->replayed = NULL;
    if (!d->padded)
        return;
    struct step_graph *g = find(d);
    if (!g && d->n_graphs < GRAPHS_MAX) {
        g = &d->graph[d->n_graphs++];
        *g = (struct step_graph){.rows = d->rows.tokens};
        for (int k = 0; k < d->n_groups; k++)
            g->n_blocks[k] = d->plan[k].n_blocks;
    } else if (g && g->exec) {
        cudaGraphLaunch(g->exec, d->stream);
        cuda_note(d, "a step's graph");
        d->replayed = g;
    } else if (g) {
        cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
        cuda_note(d, "capturing a step");
        d->capturing = g;
    }
}

void graph_end(struct device *d)
{
    cudaGraph_t graph = NULL;
    if (!d->capturing)
        return;
    cudaStreamEndCapture(d->stream, &graph);
    cuda_note(d, "capturing a step");
    if (graph && cudaGraphInstantiate(&d->capturing->exec, graph, 0) == cudaSuccess)
        cudaGraphLaunch(d->capturing->exec, d->stream);
    cuda_note(d, "a step's graph");
    if (graph)
        cudaGraphDestroy(graph);
    d->capturing = NULL;
}

void graphs_fini(struct device *d)
{
    for (int i = 0; i < d->n_graphs; i++)
        if (d->graph[i].exec)
            cudaGraphExecDestroy(d->graph[i].exec);
    d->n_graphs = 0;
}
