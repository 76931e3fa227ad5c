/* kvcopy.c - KV blocks copied before a step: on the device, to pinned host memory and back.
 *
 * A block of a group lies in parts: K and V of each layer and their scales, and the tokens of its
 * positions. A part's blocks follow each other, on the device and again in host memory. One kernel
 * goes through a step's copies, and reaches the host's memory by itself: a block's parts are too
 * small and too many for the copy engines. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

void kv_parts_destroy(struct device *d)
{
    for (int g = 0; g < KV_GROUPS_MAX; g++) {
        cudaFree(d->kv_part[g].device_list);
        mem_free(d->kv_part[g].list);
        d->kv_part[g] = (struct kv_parts){0};
    }
    cudaFreeHost(d->host_kv);
    d->host_kv = NULL;
}

static void add_part(struct kv_parts *p, void *on_device, size_t bytes)
{
    p->list[p->n++] = (struct kv_part){.device = on_device, .bytes = bytes};
    p->most = bytes > p->most ? bytes : p->most;
    p->block_bytes += bytes;
}

static bool list_parts(struct device *d, int g)
{
    struct kv_parts *p = &d->kv_part[g];
    if (!(p->list = mem_alloc(4 * (size_t)d->n_kv[g] + 1, sizeof *p->list)))
        return false;
    for (int l = 0; l < d->n_kv[g]; l++) {
        const struct kv_cache *kv = &d->kv[g][l];
        add_part(p, kv->k, d->block_bytes[g]);
        add_part(p, kv->v, d->block_bytes[g]);
        if (!kv->k_scale)
            continue;
        add_part(p, kv->k_scale, d->scale_bytes[g]);
        add_part(p, kv->v_scale, d->scale_bytes[g]);
    }
    if (g == d->seen_group)
        add_part(p, d->seen, (size_t)d->block_size * sizeof *d->seen);
    return true;
}

static enum sl_status take_host(struct device *d, size_t n_blocks, struct sl_err *err)
{
    size_t bytes = 0;
    int64_t start = clock_mono_ns();
    for (int g = 0; g < d->n_groups; g++)
        bytes += d->kv_part[g].block_bytes * n_blocks;
    cudaError_t e = bytes ? cudaHostAlloc(&d->host_kv, bytes, cudaHostAllocDefault) : cudaSuccess;
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return SL_FAIL(err, SL_ENOMEM, "CUDA: no pinned host memory for KV blocks (%zu bytes): %s",
                       bytes, cudaGetErrorString(e));
    }
    char *at = d->host_kv;
    for (int g = 0; bytes && g < d->n_groups; g++)
        for (int i = 0; i < d->kv_part[g].n; i++) {
            d->kv_part[g].list[i].host = at;
            at += d->kv_part[g].list[i].bytes * n_blocks;
        }
    if (bytes)
        log_info("Pinning %zu bytes of host memory took %.2f seconds", bytes,
                 (double)(clock_mono_ns() - start) * 1e-9);
    return SL_OK;
}

enum sl_status kv_parts_create(struct device *d, int n_host_blocks, struct sl_err *err)
{
    for (int g = 0; g < d->n_groups; g++)
        if (!list_parts(d, g))
            return SL_FAIL(err, SL_ENOMEM, "no memory for %d layers", d->n_kv[g]);
    enum sl_status st = take_host(d, (size_t)n_host_blocks, err);
    for (int g = 0; st == SL_OK && g < d->n_groups; g++) {
        struct kv_parts *p = &d->kv_part[g];
        size_t bytes = (size_t)p->n * sizeof *p->list;
        st = cuda_check(cudaMalloc((void **)&p->device_list, bytes), "the parts of KV blocks", err);
        if (st == SL_OK)
            st = cuda_check(cudaMemcpy(p->device_list, p->list, bytes, cudaMemcpyHostToDevice),
                            "the parts of KV blocks", err);
    }
    return st;
}

int kv_copies_place(const struct device *d, int g, int32_t *to)
{
    const struct batch *b = d->batch;
    int n = 0;
    for (int i = 0; i < b->n_copies; i++) {
        const struct block_copy *c = &b->copy[i];
        if (c->group != g)
            continue;
        to[KV_COPY_WORDS * n] = c->kind;
        to[KV_COPY_WORDS * n + 1] = c->src;
        to[KV_COPY_WORDS * n++ + 2] = c->dst;
    }
    return n;
}

void kv_copies_run(struct device *d, int g, const int32_t *copies, int n)
{
    const struct kv_parts *p = &d->kv_part[g];
    if (!n)
        return;
    launch_copy_blocks(d->stream, p->device_list, p->n, p->most, copies, n);
    cuda_note(d, "copy_blocks");
}
