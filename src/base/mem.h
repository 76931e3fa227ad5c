/* mem.h - all allocation goes through here, so that tests can count it and fail the nth one.
 *
 * Sizes are (count, size) pairs and are checked for overflow. NULL means no memory; the caller
 * reports it. Buffers for kernels are 64-byte aligned.   Thread: any.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_BASE_MEM_H
#define SL_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t n, size_t size);            /* uninitialised; n * size == 0 gives 1 byte */
void *mem_zalloc(size_t n, size_t size);           /* zeroed */
void *mem_realloc(void *p, size_t n, size_t size); /* on failure p stays valid */
void *mem_aligned(size_t n, size_t size, size_t align); /* free with mem_free */
char *mem_strdup(const char *s);                        /* s may be NULL: gives NULL */
char *mem_strndup(const char *s, size_t n);
void mem_free(void *p);

/* Large, long-lived, zeroed memory straight from the kernel: 2 MiB aligned and on huge pages where
 * the system grants them, page-aligned when smaller. Pages are taken when first touched. */
void *mem_pages(size_t bytes);
void mem_pages_free(void *p, size_t bytes); /* p may be NULL */

/* Tests: the nth allocation from now (1 = the next) fails once; 0 turns it off. */
void mem_fail_nth(long n);
/* Allocations since the process began: a warmed-up step must not move it. */
uint64_t mem_count(void);

/* An arena: what a request owns, freed in one call. Never gives single pieces back.
 * Zero-initialise, or arena_init with a limit in bytes (0: none). Thread: its owner's. */
struct arena {
    struct arena_chunk *head;
    size_t used, total, limit;
};
void arena_init(struct arena *a, size_t limit);
void *arena_alloc(struct arena *a, size_t n,
                  size_t size); /* 16-byte aligned, zeroed; NULL: limit or memory */
char *arena_strndup(struct arena *a, const char *s, size_t n);
void arena_fini(struct arena *a);

#endif
