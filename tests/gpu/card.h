/* card.h - memory of the CUDA device for programs that end at the first failure.
 *
 * SPDX-License-Identifier: Apache-2.0
 * Thread: any. */
#ifndef TESTS_GPU_CARD_H
#define TESTS_GPU_CARD_H

#include "backend/cuda/device.h"

#include <stdio.h>
#include <stdlib.h>

static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

/* cudaFree() gives it back, or the end of the program. */
static inline void *take(size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess)
        die("cudaMalloc");
    return p;
}

#endif
